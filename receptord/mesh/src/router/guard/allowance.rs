//! How much public-key work each neighbor may cause: so much at once, and so much a second.

use alloc::collections::BTreeMap;

use receptor_proto::NodeId;

use crate::Instant;

/// Neighbors that are remembered. Beyond, those who took nothing lately are forgotten, which changes nothing
/// for them.
const NEIGHBORS_MAX: usize = 4096;

/// An allowance.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rate {
    /// At once, after a quiet time.
    pub(super) burst: u32,
    /// In the long run.
    pub(super) per_second: u32,
}

/// What is left of it to each neighbor, over whichever link: a new connection brings nothing new.
#[derive(Debug)]
pub(super) struct Allowances {
    rate: Rate,
    /// Microseconds of work that were taken, and when that was counted last.
    taken: BTreeMap<NodeId, (u64, Instant)>,
}

impl Allowances {
    pub(super) fn new(rate: Rate) -> Self {
        Self {
            rate,
            taken: BTreeMap::new(),
        }
    }

    /// Whether this neighbor may cause this much more. Takes it if so.
    pub(super) fn take(&mut self, now: Instant, neighbor: &NodeId, cost: u32) -> bool {
        // Counted in how long the allowance takes to come back, so that nothing is ever rounded.
        let each = 1_000_000 / u64::from(self.rate.per_second.max(1));
        let left = |(taken, at): (u64, Instant)| {
            let passed = u64::try_from(now.since(at).as_micros()).unwrap_or(u64::MAX);
            taken.saturating_sub(passed)
        };
        if self.taken.len() >= NEIGHBORS_MAX && !self.taken.contains_key(neighbor) {
            self.taken.retain(|_, taken| left(*taken) > 0);
            if self.taken.len() >= NEIGHBORS_MAX {
                return false;
            }
        }
        let (taken, at) = self.taken.entry(neighbor.clone()).or_insert((0, now));
        *taken = left((*taken, *at));
        *at = now;
        let after = *taken + each * u64::from(cost);
        let most = each * u64::from(self.rate.burst);
        if after > most {
            return false;
        }
        *taken = after;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::time::Duration;

    #[test]
    fn a_neighbor_has_its_burst_and_then_its_rate_and_takes_nothing_of_others() {
        let rate = Rate {
            burst: 10,
            per_second: 4,
        };
        let mut allowances = Allowances::new(rate);
        let start = Instant::from_micros(7);
        let mut taken = |number: u32, after: Duration| {
            let now = start + after;
            let neighbor = NodeId::new(&alloc::format!("n{number}")).unwrap();
            (0..100)
                .filter(|_| allowances.take(now, &neighbor, 1))
                .count()
        };
        assert_eq!(taken(1, Duration::ZERO), 10);
        assert_eq!(taken(1, Duration::from_secs(1)), 4);
        assert_eq!(taken(2, Duration::from_secs(1)), 10);
        assert_eq!(taken(1, Duration::from_secs(2)), 4);
        assert_eq!(taken(1, Duration::from_secs(100)), 10);
    }
}
