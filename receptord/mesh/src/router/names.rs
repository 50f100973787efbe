//! Node ids by index: a hash table that can be asked without touching a string that is not the
//! one asked for. Every statement, acknowledgement and packet begins with a look in here.
//!
//! Open addressing with linear probing, at most half full. The hash is keyed with this node's
//! seed, so that no member can choose names that collide. Names are removed only all at once,
//! by building the table anew; its order is never seen.

use alloc::vec;
use alloc::vec::Vec;

use receptor_proto::NodeId;

use super::lsdb::Index;

/// No name.
const EMPTY: Index = Index::MAX;
const SLOTS_MIN: usize = 16;

/// A part of the hash, and whose it is.
#[derive(Debug, Clone, Copy)]
struct Slot {
    tag: u32,
    index: Index,
}

/// The table. The ids themselves are kept by the caller, who hands them in for comparison.
#[derive(Debug)]
pub(super) struct Names {
    key: u64,
    slots: Vec<Slot>,
    len: usize,
}

impl Names {
    pub(super) fn new(key: u64) -> Self {
        Self {
            key,
            slots: vec![
                Slot {
                    tag: 0,
                    index: EMPTY
                };
                SLOTS_MIN
            ],
            len: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The index whose id is this one; `is` says whether an index is.
    pub(super) fn find(&self, node: &NodeId, is: impl Fn(Index) -> bool) -> Option<Index> {
        let (mut place, tag) = self.place(node);
        loop {
            let slot = self.slots[place];
            if slot.index == EMPTY {
                return None;
            }
            if slot.tag == tag && is(slot.index) {
                return Some(slot.index);
            }
            place = (place + 1) % self.slots.len();
        }
    }

    /// Adds a name that is not there. `id` gives the names that are.
    pub(super) fn insert<'a>(
        &mut self,
        node: &NodeId,
        index: Index,
        id: impl Fn(Index) -> Option<&'a NodeId>,
    ) {
        if 2 * (self.len + 1) > self.slots.len() {
            let old: Vec<Index> = self.slots.iter().map(|slot| slot.index).collect();
            self.clear(2 * self.slots.len());
            for index in old {
                if let Some(node) = id(index) {
                    self.put(node, index);
                }
            }
        }
        self.put(node, index);
    }

    /// Forgets all names, and makes room for `slots / 2`, a power of two.
    fn clear(&mut self, slots: usize) {
        self.slots.clear();
        let (tag, index) = (0, EMPTY);
        self.slots.resize(slots, Slot { tag, index });
        self.len = 0;
    }

    /// Forgets all names but these.
    pub(super) fn rebuild<'a>(&mut self, names: impl Iterator<Item = (Index, &'a NodeId)>) {
        self.clear(self.slots.len());
        for (index, node) in names {
            self.put(node, index);
        }
    }

    fn put(&mut self, node: &NodeId, index: Index) {
        let (mut place, tag) = self.place(node);
        while self.slots[place].index != EMPTY {
            place = (place + 1) % self.slots.len();
        }
        self.slots[place] = Slot { tag, index };
        self.len += 1;
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "two parts of one hash, cut to size"
    )]
    fn place(&self, node: &NodeId) -> (usize, u32) {
        let hash = keyed(self.key, node.as_str().as_bytes());
        (hash as usize & (self.slots.len() - 1), (hash >> 32) as u32)
    }
}

/// A hash in the manner of wyhash: eight bytes at a time are folded into the state by a 128-bit
/// multiplication with it.
fn keyed(key: u64, bytes: &[u8]) -> u64 {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let fold = |state: u64, word: u64| {
        let product = u128::from(state ^ word ^ ODD) * u128::from(key | 1);
        #[expect(clippy::cast_possible_truncation, reason = "the lower half")]
        let low = product as u64;
        low ^ u64::try_from(product >> 64).unwrap_or_default()
    };
    let (words, rest) = bytes.as_chunks::<8>();
    let mut state = fold(key, bytes.len() as u64);
    for word in words {
        state = fold(state, u64::from_le_bytes(*word));
    }
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    fold(fold(state, u64::from_le_bytes(last)), ODD)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeMap;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn names_are_found_as_in_a_map(
            key: u64,
            names in prop::collection::vec("[a-z]{1,20}", 0..200),
            keep: u64,
        ) {
            let mut table = Names::new(key);
            let mut ids: Vec<NodeId> = Vec::new();
            let mut map = BTreeMap::new();
            let found = |table: &Names, ids: &[NodeId], id: &NodeId| {
                table.find(id, |index| ids[index as usize] == *id)
            };
            for name in &names {
                let id = NodeId::new(name).unwrap();
                prop_assert_eq!(found(&table, &ids, &id), map.get(&id).copied());
                let index = Index::try_from(ids.len()).unwrap();
                if let alloc::collections::btree_map::Entry::Vacant(entry) = map.entry(id.clone()) {
                    entry.insert(index);
                    table.insert(&id, index, |index| ids.get(index as usize));
                    ids.push(id);
                }
            }
            map.retain(|_, index| (keep >> (*index % 64)) & 1 == 1);
            table.rebuild(map.iter().map(|(id, index)| (*index, id)));
            prop_assert_eq!(table.len(), map.len());
            for id in &ids {
                prop_assert_eq!(found(&table, &ids, id), map.get(id).copied());
            }
        }
    }

    #[test]
    fn similar_names_spread() {
        let mut places = alloc::collections::BTreeSet::new();
        for number in 0..1000 {
            let name = alloc::format!("node-{number}");
            places.insert(keyed(12345, name.as_bytes()) % 4096);
        }
        // 1000 random ones of 4096 would hit 887 on average.
        assert!(places.len() > 850, "{}", places.len());
    }
}
