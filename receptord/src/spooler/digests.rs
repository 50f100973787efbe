//! SHA-256 of payloads that come for works of this node, made while they come.
//!
//! Owns these sums, so that nobody has to read a large payload once more before its plugin gets it. Only what came
//! whole since the start has one; whoever needs another reads the file. Never says that the disk still has what
//! came: the checksums beside the file do.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use receptor_mesh::EntryId;
use sha2::{Digest as _, Sha256};

/// The SHA-256 of a payload.
pub(crate) type Digest = [u8; 32];

/// Payloads of which a sum is known or being made; works that wait are few, and others can do without.
const MAX: usize = 1000;

/// See the module. The keeper adds to it, and the engine looks.
#[derive(Debug, Default)]
pub(super) struct Digests {
    whole: Mutex<BTreeMap<EntryId, Digest>>,
}

/// The sums of payloads that are still coming.
#[derive(Debug, Default)]
pub(super) struct Growing(BTreeMap<EntryId, (u64, Sha256)>);

impl Digests {
    /// Nothing in here panics with the lock held, so that what it guards is always whole.
    fn whole(&self) -> MutexGuard<'_, BTreeMap<EntryId, Digest>> {
        self.whole.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, entry: EntryId) -> Option<Digest> {
        self.whole().get(&entry).copied()
    }

    pub(super) fn remove(&self, entry: EntryId) {
        self.whole().remove(&entry);
    }
}

impl Growing {
    /// A payload will come, unless some of it is there from before.
    pub(super) fn begin(&mut self, entry: EntryId) {
        if self.0.len() < MAX {
            self.0.entry(entry).or_default();
        }
    }

    /// The next part of one.
    pub(super) fn add(&mut self, entry: EntryId, offset: u64, bytes: &[u8]) {
        let Some((end, sum)) = self.0.get_mut(&entry) else {
            return;
        };
        if *end == offset {
            *end += bytes.len() as u64;
            sum.update(bytes);
        } else {
            self.0.remove(&entry);
        }
    }

    /// It has come.
    pub(super) fn end(&mut self, entry: EntryId, digests: &Digests) {
        if let Some((_, sum)) = self.0.remove(&entry) {
            let mut whole = digests.whole();
            if whole.len() < MAX {
                whole.insert(entry, sum.finalize().into());
            }
        }
    }

    pub(super) fn remove(&mut self, entry: EntryId) {
        self.0.remove(&entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_there_before_has_no_sum() {
        let (mut growing, digests) = (Growing::default(), Digests::default());
        let entry = EntryId(1);
        growing.begin(entry);
        growing.add(entry, 3, b"two");
        growing.end(entry, &digests);
        assert_eq!(digests.get(entry), None);
    }
}
