//! What came from one node in one epoch of it, so that repeats are recognised.
//!
//! The origin's floor says below which number nothing will come any more; above it, runs are
//! kept. A number is *pending* while its message is being written: it is taken, but no receipt
//! may say so. Never bounds what a message costs, only what remembering it does.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::time::Duration;

use super::ranges::Ranges;
use crate::Instant;

/// The most runs remembered of one flow: 64 KiB. A window's worth of messages with every second
/// one refused fits; a peer that leaves more gaps is asked to fill them first.
pub(crate) const RUNS_MAX: usize = 4096;
/// The most epochs of one node: as many restarts with messages still under way.
pub(crate) const EPOCHS_MAX: usize = 64;
/// How much longer than its messages live a flow is remembered: what a transit node may hold
/// back, and clocks that run at different speed.
pub(crate) const REMEMBERED: Duration = Duration::from_secs(3600);

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Received {
    floor: u64,
    acked: Ranges,
    pending: BTreeSet<u64>,
    /// Those of them of which nothing is written but the number.
    numbers: BTreeMap<u64, Number>,
    /// The last write that says what was received of this flow.
    said_in: u64,
    /// Until then a repeat may come.
    keep_until: Instant,
}

/// How far it is that a number of which nothing else is written is on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Number {
    /// In this write, together with the answer. Writes after it say nothing of the number: they may
    /// succeed where this one fails, and a number without its answer would leave the origin waiting.
    WithAnswer(u64),
    /// The answer is safe. A later write that did not have the number took the place of the one
    /// that had, so that it is being written once more.
    Again,
}

/// What a sequence number is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// To be taken.
    New,
    /// Taken and safe: say so again.
    Received,
    /// Taken and being written.
    Pending,
    /// Below the floor: received, or given up by its origin.
    Stale,
    /// There are too many gaps to remember one more.
    Full,
}

impl Received {
    /// Adds a later record, or an older one.
    pub(crate) fn merge(&mut self, floor: u64, ranges: &[(u64, u64)]) {
        let mut runs = self.acked.runs().to_vec();
        runs.extend_from_slice(ranges);
        self.acked = Ranges::from_runs(runs);
        self.raise_floor(floor);
    }

    /// Nothing below comes any more.
    pub(crate) fn raise_floor(&mut self, floor: u64) -> bool {
        if floor <= self.floor {
            return false;
        }
        self.floor = floor;
        self.acked.drop_below(floor);
        true
    }

    pub(crate) fn floor(&self) -> u64 {
        self.floor
    }

    pub(crate) fn check(&self, seq: u64) -> Verdict {
        if self.pending.contains(&seq) {
            Verdict::Pending
        } else if seq < self.floor {
            Verdict::Stale
        } else if self.acked.contains(seq) {
            Verdict::Received
        } else if self.acked.len() + self.pending.len() >= RUNS_MAX && self.acked.adds_run(seq) {
            Verdict::Full
        } else {
            Verdict::New
        }
    }

    /// Whether every number below has come, so that nothing older can follow in this epoch.
    pub(crate) fn complete_below(&self, seq: u64) -> bool {
        let mut next = self.floor.max(1);
        while next < seq {
            if let Some((_, last)) = self.acked.run(next) {
                next = last.saturating_add(1);
            } else if self.pending.contains(&next) {
                next += 1;
            } else {
                return false;
            }
        }
        true
    }

    /// Takes a number whose message is being written.
    pub(crate) fn take(&mut self, seq: u64) {
        self.pending.insert(seq);
    }

    /// Takes a number of which nothing else is written, but perhaps an answer: both in this write.
    pub(crate) fn take_number(&mut self, seq: u64, write: u64) {
        self.pending.insert(seq);
        self.numbers.insert(seq, Number::WithAnswer(write));
    }

    /// A write that has this number succeeded. False: a later one has it not, and it is to be
    /// written again before anybody is told.
    pub(crate) fn number_written(&mut self, seq: u64) -> bool {
        match self.numbers.get_mut(&seq) {
            Some(number @ Number::WithAnswer(_)) => {
                let last = *number == Number::WithAnswer(self.said_in);
                *number = Number::Again;
                last
            }
            Some(Number::Again) | None => true,
        }
    }

    /// The message could not be written: it may come again.
    pub(crate) fn untake(&mut self, seq: u64) {
        self.numbers.remove(&seq);
        self.pending.remove(&seq);
    }

    /// The message is safe, or needs not be.
    pub(crate) fn ack(&mut self, seq: u64) {
        self.pending.remove(&seq);
        self.numbers.remove(&seq);
        if seq >= self.floor {
            self.acked.insert(seq);
        }
    }

    pub(crate) fn is_pending(&self, seq: u64) -> bool {
        self.pending.contains(&seq)
    }

    /// A message that lives as long may come again.
    pub(crate) fn keep(&mut self, until: Instant) {
        self.keep_until = self.keep_until.max(until + REMEMBERED);
    }

    /// Whether no repeat can come any more.
    pub(crate) fn is_over(&self, now: Instant) -> bool {
        self.keep_until <= now && self.pending.is_empty()
    }

    /// First and last of the safe run around this number.
    pub(crate) fn run(&self, seq: u64) -> (u64, u64) {
        self.acked.run(seq).unwrap_or((seq, seq))
    }

    /// The last number of every run that is safe.
    pub(crate) fn lasts(&self) -> impl Iterator<Item = u64> {
        self.acked.runs().iter().map(|(_, last)| *last)
    }

    /// Floor and runs, for a record in this write.
    pub(crate) fn snapshot(&mut self, write: u64) -> (u64, Vec<(u64, u64)>) {
        self.said_in = write;
        let mut whole = self.acked.clone();
        for (&seq, number) in &self.numbers {
            let goes = matches!(number, Number::Again) || *number == Number::WithAnswer(write);
            if goes && seq >= self.floor {
                whole.insert(seq);
            }
        }
        (self.floor, whole.runs().to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn a_number_is_new_then_pending_then_received_then_stale() {
        let mut received = Received::default();
        assert_eq!(received.check(3), Verdict::New);
        received.take(3);
        assert_eq!(received.check(3), Verdict::Pending);
        received.untake(3);
        assert_eq!(received.check(3), Verdict::New);
        received.take(3);
        received.ack(3);
        assert_eq!(received.check(3), Verdict::Received);
        assert!(!received.complete_below(4));
        assert!(received.raise_floor(3));
        assert!(!received.raise_floor(2));
        assert!(received.complete_below(4));
        assert_eq!(received.check(2), Verdict::Stale);
        assert_eq!(received.check(3), Verdict::Received);
        received.raise_floor(4);
        assert_eq!(received.check(3), Verdict::Stale);
        assert_eq!(received.snapshot(1), (4, vec![]));
    }

    #[test]
    fn a_number_is_not_written_where_its_answer_may_fail() {
        let mut received = Received::default();
        received.take_number(7, 1);
        assert_eq!(received.snapshot(1).1, [(7, 7)]);
        // Something else is written while the first write is under way.
        received.take_number(9, 2);
        assert_eq!(received.snapshot(2).1, [(9, 9)]);
        // The first failed: nothing on the disk says that 7 came.
        received.untake(7);
        assert_eq!(received.check(7), Verdict::New);
        assert!(received.number_written(9));
        received.ack(9);
        assert_eq!(received.snapshot(3).1, [(9, 9)]);
    }

    #[test]
    fn a_number_that_a_later_write_left_out_is_written_again_before_its_receipt() {
        let mut received = Received::default();
        received.take_number(7, 1);
        received.snapshot(1);
        received.snapshot(2);
        assert!(!received.number_written(7));
        assert_eq!(received.check(7), Verdict::Pending);
        assert_eq!(received.snapshot(3).1, [(7, 7)]);
        assert_eq!(received.snapshot(4).1, [(7, 7)]);
        assert!(received.number_written(7));
        received.ack(7);
        assert_eq!(received.check(7), Verdict::Received);
    }

    #[test]
    fn a_peer_that_leaves_gaps_is_asked_to_fill_them() {
        let mut received = Received::default();
        for n in 1..=RUNS_MAX as u64 {
            assert_eq!(received.check(2 * n), Verdict::New);
            received.ack(2 * n);
        }
        let next = 2 * RUNS_MAX as u64 + 2;
        assert_eq!(received.check(next), Verdict::Full);
        assert_eq!(received.check(next - 1), Verdict::New);
        assert_eq!(received.check(1), Verdict::New);
        assert_eq!(received.check(2), Verdict::Received);
    }

    #[test]
    fn a_record_brings_back_what_was_received() {
        let mut received = Received::default();
        received.merge(5, &[(2, 3), (7, 9)]);
        assert_eq!(received.snapshot(1), (5, vec![(7, 9)]));
        received.merge(4, &[(5, 6), (20, 20)]);
        assert_eq!(received.snapshot(1), (5, vec![(5, 9), (20, 20)]));
    }
}
