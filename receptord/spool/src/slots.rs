//! A map from numbers that mostly grow to small values, as tightly as they can be packed.
//!
//! Runs of sorted pairs, in order. The last run and the few that were changed last are open: their pairs lie
//! side by side. All others are packed: of each pair only what its predecessor does not tell,
//! which is for a million entries in a row five bytes each instead of thirty-two. Looking
//! something up in a packed run reads it from its beginning and leaves it as it is; a change
//! opens it. Never holds a key twice.

use std::iter::Peekable;

/// Pairs in one run: few enough that moving half of one, or packing it, costs nothing next to a
/// write.
const RUN: usize = 128;
/// Runs that are open at once: those at both ends, and a few between, as messages end about in
/// the order in which they came.
const OPEN_MAX: usize = 4;

/// A value that is written as what is different from the one before.
pub(crate) trait Pack: Copy + Default {
    /// Appends it.
    fn pack(&self, before: &Self, out: &mut Vec<u8>);

    /// Reads it again.
    fn unpack(before: &Self, from: &mut Unpack<'_>) -> Self;
}

/// A set has no values.
impl Pack for () {
    fn pack(&self, (): &(), _out: &mut Vec<u8>) {}

    fn unpack((): &(), _from: &mut Unpack<'_>) {}
}

/// Appends a number: seven bits a byte, lowest first.
pub(crate) fn pack_number(mut number: u64, out: &mut Vec<u8>) {
    while number > 0x7f {
        out.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    out.push(number.to_le_bytes()[0]);
}

/// Appends a number as its difference from one that it is likely to be near to.
pub(crate) fn pack_near(number: u32, near: u32, out: &mut Vec<u8>) {
    let difference = i64::from(number) - i64::from(near);
    // The sign goes to the lowest bit, so that little below is as short as little above.
    pack_number(
        ((difference << 1) ^ (difference >> 63)).cast_unsigned(),
        out,
    );
}

/// Bytes that were packed, from somewhere on. What is not there reads as zero.
#[derive(Debug, Clone)]
pub(crate) struct Unpack<'a>(&'a [u8]);

impl Unpack<'_> {
    pub(crate) fn byte(&mut self) -> u8 {
        let Some((byte, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *byte
    }

    pub(crate) fn bytes(&mut self) -> [u8; 4] {
        [(); 4].map(|()| self.byte())
    }

    pub(crate) fn number(&mut self) -> u64 {
        let (mut number, mut shift) = (0, 0);
        loop {
            let byte = self.byte();
            number |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 || shift > 63 {
                return number;
            }
        }
    }

    pub(crate) fn near(&mut self, near: u32) -> u32 {
        let number = self.number();
        let difference = (number >> 1).cast_signed() ^ -(number & 1).cast_signed();
        u32::try_from(i64::from(near) + difference).unwrap_or(0)
    }
}

/// Pairs that follow each other; never none.
#[derive(Debug)]
struct Run<V> {
    /// No key is lower, and none of the run before is as high.
    first: u64,
    pairs: Pairs<V>,
}

#[derive(Debug)]
enum Pairs<V> {
    Open(Vec<(u64, V)>),
    /// How far a key is behind the last one, its value, and so on; 0 instead, and a number: so
    /// many keys without a gap between them, and their values.
    Packed {
        count: usize,
        bytes: Box<[u8]>,
    },
}

impl<V: Pack> Run<V> {
    fn len(&self) -> usize {
        match &self.pairs {
            Pairs::Open(pairs) => pairs.len(),
            Pairs::Packed { count, .. } => *count,
        }
    }

    fn iter(&self) -> RunIter<'_, V> {
        match &self.pairs {
            Pairs::Open(pairs) => RunIter::Open(pairs.iter()),
            Pairs::Packed { bytes, .. } => RunIter::Packed {
                bytes: Unpack(bytes),
                key: self.first.wrapping_sub(1),
                left: 0,
                value: V::default(),
            },
        }
    }

    fn get(&self, key: u64) -> Option<V> {
        match &self.pairs {
            Pairs::Open(pairs) => {
                let found = pairs.binary_search_by_key(&key, |pair| pair.0);
                found.ok().map(|place| pairs[place].1)
            }
            Pairs::Packed { .. } => {
                let pair = self.iter().find(|(other, _)| *other >= key);
                pair.filter(|(other, _)| *other == key)
                    .map(|(_, value)| value)
            }
        }
    }

    /// Its pairs, to be changed.
    fn open(&mut self) -> &mut Vec<(u64, V)> {
        if let Pairs::Packed { .. } = self.pairs {
            let mut pairs = Vec::with_capacity(RUN);
            pairs.extend(self.iter());
            self.pairs = Pairs::Open(pairs);
        }
        match &mut self.pairs {
            Pairs::Open(pairs) => pairs,
            Pairs::Packed { .. } => unreachable!("it was opened above"),
        }
    }

    fn pack(&mut self) {
        let Pairs::Open(pairs) = &self.pairs else {
            return;
        };
        let mut bytes = Vec::new();
        let (mut last, mut before) = (self.first.wrapping_sub(1), V::default());
        for stretch in pairs.chunk_by(|(key, _), (next, _)| key + 1 == *next) {
            for (nth, (key, value)) in stretch.iter().enumerate() {
                if nth == 0 {
                    pack_number(key.wrapping_sub(last), &mut bytes);
                } else if nth == 1 {
                    pack_number(0, &mut bytes);
                    pack_number(stretch.len() as u64 - 1, &mut bytes);
                }
                value.pack(&before, &mut bytes);
                (last, before) = (*key, *value);
            }
        }
        self.pairs = Pairs::Packed {
            count: pairs.len(),
            bytes: bytes.into(),
        };
    }
}

/// The pairs of one run.
#[derive(Debug)]
enum RunIter<'a, V> {
    Open(std::slice::Iter<'a, (u64, V)>),
    Packed {
        bytes: Unpack<'a>,
        /// The last key.
        key: u64,
        /// Keys that follow without a gap.
        left: u64,
        /// The last value.
        value: V,
    },
}

impl<V: Pack> Iterator for RunIter<'_, V> {
    type Item = (u64, V);

    fn next(&mut self) -> Option<(u64, V)> {
        match self {
            Self::Open(pairs) => pairs.next().copied(),
            Self::Packed {
                bytes,
                key,
                left,
                value,
            } => {
                let mut gap = 1;
                if *left == 0 {
                    if bytes.0.is_empty() {
                        return None;
                    }
                    gap = bytes.number();
                    if gap == 0 {
                        (gap, *left) = (1, bytes.number());
                    }
                }
                *left = left.saturating_sub(1);
                *key = key.wrapping_add(gap);
                *value = V::unpack(value, bytes);
                Some((*key, *value))
            }
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Slots<V> {
    runs: Vec<Run<V>>,
    /// Which of them are open, the one that was changed last at the end.
    open: Vec<usize>,
}

impl<V> Default for Slots<V> {
    fn default() -> Self {
        Self {
            runs: Vec::new(),
            open: Vec::new(),
        }
    }
}

impl<V: Pack> Slots<V> {
    /// The run where a key is, or would be; 0 also when there is none.
    fn run(&self, key: u64) -> usize {
        let after = self.runs.partition_point(|run| run.first <= key);
        after.saturating_sub(1)
    }

    /// The pairs of a run, to be changed. Packs the run whose last change is longest ago, when
    /// too many are open.
    fn open(&mut self, at: usize) -> &mut Vec<(u64, V)> {
        if self.open.last() != Some(&at) {
            self.open.retain(|open| *open != at);
            self.open.push(at);
            if self.open.len() > OPEN_MAX {
                // Never the last: new keys belong there, and each is looked for before it comes.
                let last = self.runs.len() - 1;
                let oldest = self.open.iter().position(|open| *open != last);
                let oldest = self.open.remove(oldest.unwrap_or_default());
                self.runs[oldest].pack();
            }
        }
        self.runs[at].open()
    }

    /// Adds a run, which is open.
    fn add_run(&mut self, at: usize, pairs: Vec<(u64, V)>) {
        for open in self.open.iter_mut().filter(|open| **open >= at) {
            *open += 1;
        }
        let first = pairs[0].0;
        let pairs = Pairs::Open(pairs);
        self.runs.insert(at, Run { first, pairs });
        self.open(at);
    }

    fn remove_run(&mut self, at: usize) -> Run<V> {
        self.open.retain(|open| *open != at);
        for open in self.open.iter_mut().filter(|open| **open > at) {
            *open -= 1;
        }
        self.runs.remove(at)
    }

    pub(crate) fn get(&self, key: u64) -> Option<V> {
        self.runs.get(self.run(key))?.get(key)
    }

    /// This key is about to be looked at more than once, and then changed: its run is opened for all of
    /// that.
    pub(crate) fn prepare(&mut self, key: u64) {
        let at = self.run(key);
        if at < self.runs.len() {
            self.open(at);
        }
    }

    pub(crate) fn get_mut(&mut self, key: u64) -> Option<&mut V> {
        let at = self.run(key);
        self.runs.get(at)?.get(key)?;
        let pairs = self.open(at);
        let place = pairs.binary_search_by_key(&key, |pair| pair.0).ok()?;
        Some(&mut pairs[place].1)
    }

    pub(crate) fn contains(&self, key: u64) -> bool {
        self.get(key).is_some()
    }

    pub(crate) fn insert(&mut self, key: u64, value: V) {
        let at = self.run(key);
        if self.runs.is_empty() {
            // It grows as it must: there are many maps with few keys.
            return self.add_run(0, vec![(key, value)]);
        }
        let pairs = self.open(at);
        let place = match pairs.binary_search_by_key(&key, |pair| pair.0) {
            Ok(place) => {
                pairs[place].1 = value;
                return;
            }
            Err(place) => place,
        };
        if pairs.len() < RUN {
            pairs.insert(place, (key, value));
        } else {
            // Behind the last: the full run stays full.
            let split = if place == RUN { RUN } else { RUN / 2 };
            let mut behind = Vec::with_capacity(RUN);
            behind.extend(pairs.drain(split..));
            if place >= split {
                behind.insert(place - split, (key, value));
            } else {
                pairs.insert(place, (key, value));
            }
            self.add_run(at + 1, behind);
        }
        let run = &mut self.runs[at];
        run.first = run.first.min(key);
    }

    pub(crate) fn remove(&mut self, key: u64) -> Option<V> {
        let at = self.run(key);
        self.runs.get(at)?.get(key)?;
        let pairs = self.open(at);
        let place = pairs.binary_search_by_key(&key, |pair| pair.0).ok()?;
        let (_, value) = pairs.remove(place);
        let length = pairs.len();
        if length == 0 {
            self.remove_run(at);
        } else if length < RUN / 4 {
            // With a neighbour, while both fill no more than half of one.
            let fits = |other: Option<&Run<V>>| other.is_some_and(|o| o.len() + length <= RUN / 2);
            if fits(self.runs.get(at + 1)) {
                self.join(at);
            } else if at > 0 && fits(self.runs.get(at - 1)) {
                self.join(at - 1);
            }
        }
        Some(value)
    }

    /// Makes one run of this one and the next.
    fn join(&mut self, at: usize) {
        let mut behind = self.remove_run(at + 1);
        self.open(at).append(behind.open());
    }

    /// In order, from this key on.
    pub(crate) fn range(&self, first: u64) -> Iter<'_, V> {
        let mut runs = self.runs.get(self.run(first)..).unwrap_or_default().iter();
        let run = runs.next().map(Run::iter);
        Iter { first, runs, run }
    }

    pub(crate) fn iter(&self) -> Iter<'_, V> {
        self.range(0)
    }

    /// For looking up many keys that are near to each other, lower ones first.
    pub(crate) fn finder(&self) -> Finder<'_, V> {
        Finder {
            slots: self,
            at: 0,
            pairs: None,
        }
    }
}

/// Pairs in order.
#[derive(Debug)]
pub(crate) struct Iter<'a, V> {
    first: u64,
    runs: std::slice::Iter<'a, Run<V>>,
    run: Option<RunIter<'a, V>>,
}

impl<V: Pack> Iterator for Iter<'_, V> {
    type Item = (u64, V);

    fn next(&mut self) -> Option<(u64, V)> {
        loop {
            match self.run.as_mut()?.next() {
                Some((key, value)) if key >= self.first => return Some((key, value)),
                Some(_) => {}
                None => self.run = self.runs.next().map(Run::iter),
            }
        }
    }
}

/// See [`Slots::finder`]: it reads a packed run once for all keys in it.
#[derive(Debug)]
pub(crate) struct Finder<'a, V: Pack> {
    slots: &'a Slots<V>,
    at: usize,
    /// What is left of the run there.
    pairs: Option<Peekable<RunIter<'a, V>>>,
}

impl<V: Pack> Finder<'_, V> {
    /// The value of a key that is higher than those before.
    pub(crate) fn next(&mut self, key: u64) -> Option<V> {
        let at = self.slots.run(key);
        if self.pairs.is_none() || self.at != at {
            self.at = at;
            self.pairs = Some(self.slots.runs.get(at)?.iter().peekable());
        }
        let pairs = self.pairs.as_mut()?;
        while pairs.next_if(|(other, _)| *other < key).is_some() {}
        let found = pairs.next_if(|(other, _)| *other == key);
        found.map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    impl Pack for u32 {
        fn pack(&self, before: &Self, out: &mut Vec<u8>) {
            pack_near(*self, *before, out);
        }

        fn unpack(before: &Self, from: &mut Unpack<'_>) -> Self {
            from.near(*before)
        }
    }

    impl<V> Slots<V> {
        /// Bytes of memory.
        pub(crate) fn size(&self) -> usize {
            let pairs = self.runs.iter().map(|run| match &run.pairs {
                Pairs::Open(pairs) => pairs.capacity() * size_of::<(u64, V)>(),
                Pairs::Packed { bytes, .. } => bytes.len(),
            });
            self.runs.capacity() * size_of::<Run<V>>() + pairs.sum::<usize>()
        }
    }

    fn check<V: Pack + PartialEq + std::fmt::Debug>(slots: &Slots<V>, map: &BTreeMap<u64, V>) {
        for first in [0, 1, 700, 1999, 2000, u64::MAX] {
            let rest = map.range(first..).map(|(key, value)| (*key, *value));
            assert!(slots.range(first).eq(rest));
        }
        let all = map.iter().map(|(key, value)| (*key, *value));
        assert!(slots.iter().eq(all));
        let mut finder = slots.finder();
        for key in (0..4000).step_by(3).chain([u64::MAX]) {
            assert_eq!(finder.next(key), map.get(&key).copied(), "{key}");
        }
        for run in &slots.runs {
            assert!((1..=RUN).contains(&run.len()));
        }
        let is_open = |at: &usize| matches!(slots.runs[*at].pairs, Pairs::Open(_));
        let mut open = slots.open.clone();
        open.sort_unstable();
        assert!((0..slots.runs.len()).filter(is_open).eq(open));
        assert!(slots.open.len() <= OPEN_MAX);
    }

    proptest! {
        #[test]
        fn it_is_a_map(
            steps in proptest::collection::vec((0..4u8, 0..4000u64, any::<u32>()), 0..6000),
        ) {
            let mut slots = Slots::default();
            let mut map = BTreeMap::new();
            let mut next = 0;
            for (what, key, value) in steps {
                match what {
                    0 => {
                        next += 1;
                        slots.insert(next, value);
                        map.insert(next, value);
                    }
                    1 => {
                        slots.insert(key, value);
                        map.insert(key, value);
                    }
                    2 => prop_assert_eq!(slots.remove(key), map.remove(&key)),
                    _ => {
                        prop_assert_eq!(slots.get(key), map.get(&key).copied());
                        prop_assert_eq!(slots.get_mut(key), map.get_mut(&key));
                    }
                }
            }
            check(&slots, &map);
        }

        #[test]
        fn keys_and_values_may_be_anything(
            pairs in proptest::collection::btree_map(any::<u64>(), any::<u32>(), 0..3000),
        ) {
            let mut slots = Slots::default();
            for (key, value) in &pairs {
                slots.insert(*key, *value);
            }
            check(&slots, &pairs);
        }

        #[test]
        fn numbers_are_read_as_they_were_packed(
            number in any::<u64>(), pair in any::<(u32, u32)>(), few in 0..300u64,
        ) {
            let mut bytes = Vec::new();
            pack_number(number, &mut bytes);
            pack_number(few, &mut bytes);
            pack_near(pair.0, pair.1, &mut bytes);
            let mut from = Unpack(&bytes);
            prop_assert_eq!((from.number(), from.number()), (number, few));
            prop_assert_eq!(from.near(pair.1), pair.0);
            prop_assert!(from.0.is_empty());
        }
    }

    #[test]
    fn where_new_keys_come_nothing_is_unpacked() {
        let mut slots = Slots::default();
        let runs = 3 * OPEN_MAX as u64;
        for key in 0..runs * RUN as u64 {
            slots.insert(key, ());
        }
        for run in 0..runs - 1 {
            slots.prepare(run * RUN as u64);
            let is_open = |run: &Run<()>| matches!(run.pairs, Pairs::Open(_));
            assert!(slots.runs.last().is_some_and(is_open));
            assert!(slots.runs.iter().filter(|run| is_open(run)).count() <= OPEN_MAX);
        }
    }

    #[test]
    fn many_in_a_row_take_next_to_nothing() {
        let mut set = Slots::default();
        for key in 1000..101_000 {
            set.insert(key, ());
        }
        assert!(set.size() < 70_000, "{}", set.size());
    }
}
