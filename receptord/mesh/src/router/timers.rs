//! When the routing half wants to be called, by what for. Timers are coarse on purpose: one a
//! link for its adjacency and one for its flooding, each looked at again when it fires, so that
//! nothing is re-armed for every frame.

use alloc::collections::{BTreeMap, BTreeSet};

use crate::{Instant, LinkId};

/// What to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// Hello, hold time, probes and the check for a rival.
    Adjacency(LinkId),
    /// Flooding, acknowledgements, retransmissions and summary exchange.
    Flood(LinkId),
    /// Statements of this node that wait for their turn.
    Originate,
    /// Statements of this node that must be repeated.
    Refresh,
    /// Routes that wait to be computed.
    Routes,
    /// Statements and nodes that have aged.
    Sweep,
    /// The next echo to give up.
    Echo,
    /// Who is believed, and who has not said who it is.
    Guard,
}

/// All timers.
#[derive(Debug, Default)]
pub(super) struct Timers {
    at: BTreeMap<Timer, Instant>,
    queue: BTreeSet<(Instant, Timer)>,
}

impl Timers {
    /// Fires at `at`, whatever was set before.
    pub(super) fn set(&mut self, timer: Timer, at: Instant) {
        if let Some(before) = self.at.insert(timer, at) {
            if before == at {
                return;
            }
            self.queue.remove(&(before, timer));
        }
        self.queue.insert((at, timer));
    }

    /// Fires at `at` or earlier.
    pub(super) fn set_earlier(&mut self, timer: Timer, at: Instant) {
        if self.at.get(&timer).is_none_or(|before| at < *before) {
            self.set(timer, at);
        }
    }

    pub(super) fn clear(&mut self, timer: Timer) {
        if let Some(before) = self.at.remove(&timer) {
            self.queue.remove(&(before, timer));
        }
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.queue.first().map(|(at, _)| *at)
    }

    /// The next timer that is due, taken off, and when it was.
    pub(super) fn pop(&mut self, now: Instant) -> Option<(Instant, Timer)> {
        let (at, timer) = *self.queue.first()?;
        if at > now {
            return None;
        }
        self.clear(timer);
        Some((at, timer))
    }
}
