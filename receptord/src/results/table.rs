//! All works that were sent from here and are known, and how many there may be.
//!
//! Owns the table and its counts. Touches no disk: memos of works that it forgets are left in
//! [`Table::take_forgotten`] for the keeper.

use std::collections::BTreeSet;

use receptor_mesh::EntryId;
use receptor_proto::MessageId;

use super::OnChange;
use super::frame::End;
use super::now_ms;
use super::work::Work;
use crate::by_id::ById;

/// Works that are known at once. Of more, the oldest that nothing came of are known to the core
/// alone until a response comes.
const WORKS_MAX: usize = 20_000;
/// Looking for those that can go takes at least this part of them, so that not every work looks.
const PART: usize = 10;

/// See the module.
pub(super) struct Table {
    pub(super) works: ById<Work>,
    /// Those that have ended, by when.
    pub(super) ended: BTreeSet<(u64, MessageId)>,
    /// Works with a file, and bytes on the disk.
    pub(super) files: u64,
    pub(super) bytes: u64,
    /// Works that have ended and are still known, unless something is kept of them.
    ended_max: usize,
    /// From how many on it is looked again for those that can go: where none can, looking at all of them
    /// for each new one would cost the more the more there are.
    look_at_ended: usize,
    look_at_works: usize,
    /// Works whose responses could not be written, or that came while that was so: all are tried
    /// again together.
    pub(super) stalled: BTreeSet<MessageId>,
    pub(super) on_change: Option<OnChange>,
    forgotten: Vec<EntryId>,
}

impl Table {
    pub(super) fn new(ended_max: usize) -> Self {
        Self {
            works: ById::default(),
            ended: BTreeSet::new(),
            files: 0,
            bytes: 0,
            ended_max,
            look_at_ended: 0,
            look_at_works: 0,
            stalled: BTreeSet::new(),
            on_change: None,
            forgotten: Vec::new(),
        }
    }

    /// A work has ended. False: that was known.
    pub(super) fn end(&mut self, id: MessageId, end: End) -> bool {
        self.end_at(id, end, now_ms())
    }

    /// The same, of one that ended a while ago.
    pub(super) fn end_at(&mut self, id: MessageId, end: End, at_ms: u64) -> bool {
        let Some(work) = self.works.get_mut(&id).filter(|work| work.end.is_none()) else {
            return false;
        };
        work.end = Some((end, at_ms));
        work.changed.notify_waiters();
        self.ended.insert((at_ms, id));
        true
    }

    /// What was believed to be the end of a work is not.
    pub(super) fn reopen(&mut self, id: MessageId) {
        if let Some((_, at_ms)) = self.works.get_mut(&id).and_then(|work| work.end.take()) {
            self.ended.remove(&(at_ms, id));
        }
    }

    /// Whether there are as many works as may be.
    pub(super) fn is_full(&self) -> bool {
        self.works.len() >= WORKS_MAX
    }

    pub(super) fn forget(&mut self, id: MessageId) {
        if let Some(work) = self.works.remove(&id) {
            if let Some((_, at)) = work.end {
                self.ended.remove(&(at, id));
            }
            self.forgotten.extend(work.memo);
            work.changed.notify_waiters();
        }
    }

    /// The memos of works that were forgotten since this was asked last.
    pub(super) fn take_forgotten(&mut self) -> Vec<EntryId> {
        std::mem::take(&mut self.forgotten)
    }

    /// Keeps the table within its limits; what has a file is bounded by other limits.
    pub(super) fn bound(&mut self) {
        let part = (self.ended_max / PART).max(1);
        if self.ended.len() > self.look_at_ended.max(self.ended_max) {
            let over = |(_, id): &&(u64, MessageId)| {
                let work = self.works.get(id);
                work.is_none_or(|work| {
                    !work.has_file && work.told >= work.last && (!work.client || work.is_served())
                })
            };
            let oldest: Vec<_> = self
                .ended
                .iter()
                .filter(over)
                .take(part)
                .map(|(_, id)| *id)
                .collect();
            for id in oldest {
                self.forget(id);
            }
            self.look_at_ended = self.ended.len() + part;
        }
        if self.works.len() > self.look_at_works.max(WORKS_MAX) {
            let mut idle: Vec<_> = self
                .works
                .iter()
                .filter(|(_, work)| {
                    !work.client
                        && work.accepted
                        && work.last == 0
                        && !work.has_file
                        && work.end.is_none()
                })
                .map(|(id, work)| (work.since_ms, *id))
                .collect();
            idle.sort_unstable();
            idle.truncate(WORKS_MAX / PART);
            for (_, id) in idle {
                self.forget(id);
            }
            self.look_at_works = self.works.len() + WORKS_MAX / PART;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_has_had_is_forgotten_while_it_stays() {
        const MAX: usize = 1000;
        let mut table = Table::new(MAX);
        for number in 0..2 * MAX {
            let id = MessageId::from_u128(number as u128);
            let mut work = Work::new(0);
            work.client = true;
            (work.last, work.taken, work.told) = (1, 1, 1);
            work.memo = Some(EntryId(number as u64));
            table.works.insert(id, work);
            let end = End {
                code: 0,
                error: None,
            };
            table.end(id, end);
            table.bound();
        }
        assert!(table.works.len() <= MAX);
        assert_eq!(table.ended.len(), table.works.len());
        let forgotten = table.take_forgotten().len();
        assert_eq!(forgotten + table.works.len(), 2 * MAX, "each has its memo");
    }
}
