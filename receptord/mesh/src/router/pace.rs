//! Back-off for things that follow changes: at once after a quiet time, then ever slower while
//! changes keep coming (the idea of RFC 8405 and of OSPF's `MinLSInterval`).

use core::time::Duration;

use crate::Instant;

/// How something is paced.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    /// Wait after the first change in a quiet time, to gather what belongs to it.
    pub(super) first: Duration,
    /// Least time between the first and the second run; doubles from run to run.
    pub(super) second: Duration,
    /// Where doubling ends.
    pub(super) slowest: Duration,
}

/// After how many of its gaps without a run it is quiet again.
const QUIET: u32 = 4;

/// One paced thing.
#[derive(Debug)]
pub(super) struct Pace {
    rules: Rules,
    /// Least time from the last run to the next.
    gap: Duration,
    last: Option<Instant>,
    due: Option<Instant>,
}

impl Pace {
    pub(super) fn new(rules: Rules) -> Self {
        Self {
            rules,
            gap: rules.second,
            last: None,
            due: None,
        }
    }

    /// Ends doubling here from now on.
    pub(super) fn set_slowest(&mut self, slowest: Duration) {
        self.rules.slowest = slowest;
        self.gap = self.gap.min(slowest);
    }

    fn is_quiet(&self, now: Instant) -> bool {
        self.last
            .is_none_or(|last| now.since(last) >= QUIET * self.gap)
    }

    /// Something changed: a run is due then.
    pub(super) fn changed(&mut self, now: Instant) -> Instant {
        if let Some(due) = self.due {
            return due;
        }
        let soon = now + self.rules.first;
        let due = match self.last {
            Some(last) if !self.is_quiet(now) => soon.max(last + self.gap),
            _ => soon,
        };
        self.due = Some(due);
        due
    }

    /// Something changed that cannot wait: a run is due then, at least `gap` after the last.
    pub(super) fn urgent(&mut self, now: Instant, gap: Duration) -> Instant {
        let soonest = self.last.map_or(now, |last| now.max(last + gap));
        let due = self.due.map_or(soonest, |due| due.min(soonest));
        self.due = Some(due);
        due
    }

    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Whether a run is due now; then it counts as run.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        if self.due.is_none_or(|due| due > now) {
            return false;
        }
        self.gap = if self.is_quiet(now) {
            self.rules.second
        } else {
            (2 * self.gap).min(self.rules.slowest)
        };
        self.due = None;
        self.last = Some(now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules = Rules {
        first: Duration::from_millis(2),
        second: Duration::from_millis(10),
        slowest: Duration::from_millis(100),
    };

    #[test]
    fn steady_change_slows_down_and_quiet_resets() {
        let mut pace = Pace::new(RULES);
        let mut now = Instant::default();
        let mut gaps = alloc::vec::Vec::new();
        for _ in 0..8 {
            let due = pace.changed(now);
            assert!(!pace.take(due - Duration::from_micros(1)));
            assert!(pace.take(due));
            gaps.push(due.since(now).as_millis());
            now = due;
        }
        assert_eq!(gaps, [2, 10, 20, 40, 80, 100, 100, 100]);
        now = now + Duration::from_millis(400);
        assert_eq!(pace.changed(now), now + RULES.first);
    }

    #[test]
    fn the_urgent_does_not_wait_for_the_slow() {
        let mut pace = Pace::new(RULES);
        let start = Instant::default();
        for _ in 0..8 {
            let due = pace.changed(start);
            pace.take(due);
        }
        let now = start + Duration::from_secs(1);
        let slow = pace.changed(now);
        let gap = Duration::from_millis(5);
        assert!(pace.urgent(now, gap) <= slow);
        assert!(pace.take(now));
        assert_eq!(pace.urgent(now, gap), now + gap);
    }
}
