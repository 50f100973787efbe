//! Large payloads on their way in: which part is written, which is being written.
//!
//! Parts are taken in order only and go to the store as they come, so that nothing of them
//! stays in memory but what the store has not written yet. What the store has kept over a
//! restart is taken up again. Never asks for a part; the origin learns from receipts how far it
//! is.

use alloc::collections::BTreeMap;
use core::time::Duration;

use receptor_proto::packet::Message;

use super::RemoteId;
use super::flow::Key;
use crate::{EntryId, Instant};

/// Unfinished payloads at once, of all nodes. Each is an open file of the store.
pub(crate) const PARTIALS_MAX: usize = 256;
/// Unfinished payloads of one node.
pub(crate) const PARTIALS_OF_ONE: usize = 16;
/// One that got nothing for this long gives way to another.
const IDLE: Duration = Duration::from_secs(60);
/// Bytes of one payload that may be with the store, unwritten.
const UNWRITTEN_MAX: u64 = 8 << 20;

/// One of them.
#[derive(Debug)]
pub(crate) struct Partial {
    /// The envelope.
    pub(crate) message: Message,
    pub(crate) entry: EntryId,
    /// Given to the store.
    pub(crate) given: u64,
    /// Written.
    pub(crate) written: u64,
    /// When the message is worth nothing any more.
    pub(crate) expires: Instant,
    touched: Instant,
}

/// All of them, by origin and number.
#[derive(Debug, Default)]
pub(crate) struct Partials {
    by_key: BTreeMap<(RemoteId, Key), Partial>,
    by_entry: BTreeMap<EntryId, (RemoteId, Key)>,
}

impl Partials {
    pub(crate) fn get_mut(&mut self, remote: RemoteId, key: Key) -> Option<&mut Partial> {
        self.by_key.get_mut(&(remote, key))
    }

    pub(crate) fn owner(&self, entry: EntryId) -> Option<(RemoteId, Key)> {
        self.by_entry.get(&entry).copied()
    }

    /// Whether one more of this node may begin.
    pub(crate) fn room(&self, now: Instant, remote: RemoteId) -> Room {
        let own = self.of(remote).count();
        let crowded =
            |candidates: &mut dyn Iterator<Item = ((RemoteId, Key), Instant)>| match candidates
                .min_by_key(|(_, touched)| *touched)
            {
                Some((key, touched)) if now.since(touched) >= IDLE => Room::Instead(key.0, key.1),
                Some(_) | None => Room::Full,
            };
        let all = |(key, partial): (&(RemoteId, Key), &Partial)| (*key, partial.touched);
        if own >= PARTIALS_OF_ONE {
            crowded(
                &mut self
                    .by_key
                    .range((remote, (0, 0))..=(remote, (u64::MAX, u64::MAX)))
                    .map(all),
            )
        } else if self.by_key.len() >= PARTIALS_MAX {
            crowded(&mut self.by_key.iter().map(all))
        } else {
            Room::Free
        }
    }

    pub(crate) fn insert(
        &mut self,
        now: Instant,
        remote: RemoteId,
        message: Message,
        entry: EntryId,
        written: u64,
    ) {
        let key = (message.epoch, message.seq);
        let expires = now + Duration::from_millis(message.remaining_ms);
        let partial = Partial {
            message,
            entry,
            given: written,
            written,
            expires,
            touched: now,
        };
        self.by_entry.insert(entry, (remote, key));
        self.by_key.insert((remote, key), partial);
    }

    pub(crate) fn remove(&mut self, remote: RemoteId, key: Key) -> Option<Partial> {
        let partial = self.by_key.remove(&(remote, key))?;
        self.by_entry.remove(&partial.entry);
        Some(partial)
    }

    fn of(&self, remote: RemoteId) -> impl Iterator<Item = (&(RemoteId, Key), &Partial)> {
        self.by_key
            .range((remote, (0, 0))..=(remote, (u64::MAX, u64::MAX)))
    }

    /// The one of this node that `which` holds for.
    pub(crate) fn find(
        &self,
        remote: RemoteId,
        which: impl Fn(Key, &Partial) -> bool,
    ) -> Option<Key> {
        self.of(remote)
            .find(|((_, key), partial)| which(*key, partial))
            .map(|((_, key), _)| *key)
    }

    /// How much is written of one of this node, and its size.
    pub(crate) fn progress(
        &self,
        remote: RemoteId,
        which: impl Fn(&Message) -> bool,
    ) -> Option<(u64, u64)> {
        let mut partials = self.of(remote).map(|(_, partial)| partial);
        let partial = partials.find(|partial| which(&partial.message))?;
        Some((partial.written, partial.message.size))
    }

    /// One whose time is over.
    pub(crate) fn expired(&self, now: Instant) -> Option<(RemoteId, Key)> {
        self.by_key
            .iter()
            .find(|(_, partial)| partial.expires <= now)
            .map(|(key, _)| *key)
    }

    /// When the next one's time is over. They are few.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.by_key.values().map(|partial| partial.expires).min()
    }
}

/// See [`Partials::room`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Room {
    Free,
    /// When this idle one is given up.
    Instead(RemoteId, Key),
    Full,
}

/// What to do with a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Write it.
    Write,
    /// Nothing: it is a repeat, comes too early, or the store is behind.
    Drop,
    /// Nothing: it reaches beyond the payload's end.
    Mistake,
}

impl Partial {
    /// Judges a part, and counts it as given to the store when it is to be written.
    pub(crate) fn take(&mut self, now: Instant, offset: u64, length: u64) -> Part {
        let Some(end) = offset.checked_add(length) else {
            return Part::Mistake;
        };
        if end > self.message.size || length == 0 {
            return Part::Mistake;
        }
        if offset != self.given || end - self.written > UNWRITTEN_MAX {
            return Part::Drop;
        }
        self.given = end;
        self.touched = now;
        Part::Write
    }
}
