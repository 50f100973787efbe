//! A map from numbers that mostly grow to small values, as tightly as they can be packed.
//!
//! Runs of sorted pairs, in order. A map of the standard library leaves its nodes half empty
//! when keys come in order, which at a million entries is 40 MiB. Never holds a key twice.

/// Pairs in one run: few enough that moving half of one costs nothing next to a write.
const RUN: usize = 128;

/// See the module.
#[derive(Debug)]
pub(crate) struct Slots<V> {
    /// None is empty.
    runs: Vec<Vec<(u64, V)>>,
}

impl<V> Default for Slots<V> {
    fn default() -> Self {
        Self { runs: Vec::new() }
    }
}

impl<V> Slots<V> {
    /// The run where a key is, or would be; 0 also when there is none.
    fn run(&self, key: u64) -> usize {
        let after = self.runs.partition_point(|run| run[0].0 <= key);
        after.saturating_sub(1)
    }

    fn find(&self, key: u64) -> Option<(usize, usize)> {
        let at = self.run(key);
        let found = self.runs.get(at)?.binary_search_by_key(&key, |pair| pair.0);
        found.ok().map(|place| (at, place))
    }

    pub(crate) fn get(&self, key: u64) -> Option<&V> {
        let (run, place) = self.find(key)?;
        Some(&self.runs[run][place].1)
    }

    pub(crate) fn get_mut(&mut self, key: u64) -> Option<&mut V> {
        let (run, place) = self.find(key)?;
        Some(&mut self.runs[run][place].1)
    }

    pub(crate) fn contains(&self, key: u64) -> bool {
        self.find(key).is_some()
    }

    pub(crate) fn insert(&mut self, key: u64, value: V) {
        let at = self.run(key);
        let Some(run) = self.runs.get_mut(at) else {
            // It grows as it must: there are many maps with few keys.
            self.runs.push(vec![(key, value)]);
            return;
        };
        let place = match run.binary_search_by_key(&key, |pair| pair.0) {
            Ok(place) => {
                run[place].1 = value;
                return;
            }
            Err(place) => place,
        };
        if run.len() < RUN {
            run.insert(place, (key, value));
            return;
        }
        // Behind the last: the full run stays full.
        let split = if place == RUN { RUN } else { RUN / 2 };
        let mut behind = Vec::with_capacity(RUN);
        behind.extend(run.drain(split..));
        if place >= split {
            behind.insert(place - split, (key, value));
        } else {
            run.insert(place, (key, value));
        }
        self.runs.insert(at + 1, behind);
    }

    pub(crate) fn remove(&mut self, key: u64) -> Option<V> {
        let (at, place) = self.find(key)?;
        let (_, value) = self.runs[at].remove(place);
        let length = self.runs[at].len();
        if length == 0 {
            self.runs.remove(at);
        } else if length < RUN / 4 {
            // With a neighbour, while both fill no more than half of one.
            let fits = |other: Option<&Vec<_>>| other.is_some_and(|o| o.len() + length <= RUN / 2);
            if fits(self.runs.get(at + 1)) {
                let mut behind = self.runs.remove(at + 1);
                self.runs[at].append(&mut behind);
            } else if at > 0 && fits(self.runs.get(at - 1)) {
                let mut behind = self.runs.remove(at);
                self.runs[at - 1].append(&mut behind);
            }
        }
        Some(value)
    }

    /// In order, from this key on.
    pub(crate) fn range(&self, first: u64) -> impl Iterator<Item = (u64, &V)> {
        let runs = self.runs.get(self.run(first)..).unwrap_or_default();
        let pairs = runs.iter().flatten().map(|(key, value)| (*key, value));
        pairs.skip_while(move |(key, _)| *key < first)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &V)> {
        self.runs.iter().flatten().map(|(key, value)| (*key, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn it_is_a_map(
            steps in proptest::collection::vec((0..4u8, 0..2000u64), 0..3000),
        ) {
            let mut slots = Slots::default();
            let mut map = BTreeMap::new();
            let mut next = 0;
            for (nth, (what, key)) in steps.into_iter().enumerate() {
                match what {
                    0 => {
                        next += 1;
                        slots.insert(next, nth);
                        map.insert(next, nth);
                    }
                    1 => {
                        slots.insert(key, nth);
                        map.insert(key, nth);
                    }
                    2 => prop_assert_eq!(slots.remove(key), map.remove(&key)),
                    _ => {
                        prop_assert_eq!(slots.get(key), map.get(&key));
                        prop_assert_eq!(slots.get_mut(key), map.get_mut(&key));
                    }
                }
            }
            for first in [0, 1, 700, 1999, 2000] {
                let rest = map.range(first..).map(|(key, value)| (*key, value));
                prop_assert!(slots.range(first).eq(rest));
            }
            prop_assert!(slots.iter().eq(map.iter().map(|(key, value)| (*key, value))));
            prop_assert!(slots.runs.iter().all(|run| !run.is_empty() && run.len() <= RUN));
        }
    }
}
