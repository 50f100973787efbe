//! When a peer is dialled again.
//!
//! Owns the pauses between attempts: at once after a loss, then each at most an eighth of the time
//! that the peer has been away, so that no outage lasts noticeably longer for waiting; after the first
//! minute ever longer up to the configured ceiling; and long ones after a refusal, which does not pass by
//! asking again quickly. All pauses are spread, so that a hub that restarts is not hit by all at once.
//! Pure: time and chance are arguments.

use std::time::Duration;

/// The first pause after a loss lies in this range, in milliseconds.
const FIRST_MS: std::ops::Range<u64> = 10..50;
/// For this long after a loss the pauses stay below [`DENSE_CEILING`].
const DENSE_TIME: Duration = Duration::from_secs(60);
/// The longest pause of that time.
const DENSE_CEILING: Duration = Duration::from_secs(1);
/// Of the time that the peer has been away; what waiting adds to an outage.
const SHARE: u32 = 8;
/// A share of less is no reason for another attempt.
const SHORT: Duration = Duration::from_millis(50);
/// After a refusal the pauses are at least this long.
const REFUSED_MIN: Duration = Duration::from_secs(5);
/// A link that was up for this long was a good one: the next loss begins anew.
const GOOD: Duration = Duration::from_secs(2);

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    min: Duration,
    max: Duration,
    failures: u32,
    /// Links in a row that were up for a moment only.
    flaps: u32,
    refusals: u32,
    /// Pauses since the peer was last there.
    spent: Duration,
}

impl Backoff {
    /// Pauses from about `min` to about `max`.
    pub(crate) fn new(min: Duration, max: Duration) -> Self {
        Self {
            min,
            max: max.max(min),
            failures: 0,
            flaps: 0,
            refusals: 0,
            spent: Duration::ZERO,
        }
    }

    /// The pause after a link that was up for this long was lost.
    pub(crate) fn lost(&mut self, up: Duration, rng: &mut fastrand::Rng) -> Duration {
        self.refusals = 0;
        if up < GOOD {
            let pause = doubled(self.min, self.flaps, self.ceiling(DENSE_CEILING));
            self.flaps = self.flaps.saturating_add(1);
            return self.pause(pause, rng);
        }
        self.failures = 0;
        self.flaps = 0;
        self.spent = Duration::ZERO;
        Duration::from_millis(rng.u64(FIRST_MS))
    }

    /// The pause after an attempt that took so long and led to nothing.
    pub(crate) fn failed(&mut self, took: Duration, rng: &mut fastrand::Rng) -> Duration {
        self.refusals = 0;
        let share = (self.spent / SHARE).clamp(SHORT, DENSE_CEILING);
        let pause = doubled(self.min, self.failures, self.ceiling(share));
        self.failures = self.failures.saturating_add(1);
        self.spent = self.spent.saturating_add(took);
        self.pause(pause, rng)
    }

    /// No pause is longer now; `dense` while it may come back soon.
    fn ceiling(&self, dense: Duration) -> Duration {
        if self.spent < DENSE_TIME {
            self.max.min(dense.max(self.min))
        } else {
            self.max
        }
    }

    fn pause(&mut self, pause: Duration, rng: &mut fastrand::Rng) -> Duration {
        let pause = spread(pause, rng);
        self.spent = self.spent.saturating_add(pause);
        pause
    }

    /// The pause after the peer, or this node, refused the link.
    pub(crate) fn refused(&mut self, rng: &mut fastrand::Rng) -> Duration {
        let pause = doubled(REFUSED_MIN, self.refusals, self.max.max(REFUSED_MIN));
        self.refusals = self.refusals.saturating_add(1);
        spread(pause, rng)
    }
}

fn doubled(from: Duration, times: u32, ceiling: Duration) -> Duration {
    from.saturating_mul(1u32.checked_shl(times).unwrap_or(u32::MAX))
        .min(ceiling)
}

/// Three quarters to five quarters of `pause`.
fn spread(pause: Duration, rng: &mut fastrand::Rng) -> Duration {
    pause.mul_f64(0.75 + rng.f64() / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIN: Duration = Duration::from_millis(25);
    const MAX: Duration = Duration::from_secs(15);

    #[test]
    fn a_lost_link_is_tried_at_once_and_densely_for_a_minute() {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut backoff = Backoff::new(MIN, MAX);
        let first = backoff.lost(Duration::from_secs(10), &mut rng);
        assert!(first < Duration::from_millis(50));
        let mut spent = Duration::ZERO;
        let mut longest = Duration::ZERO;
        let mut within_half_a_second = 0;
        while spent < DENSE_TIME {
            let pause = backoff.failed(Duration::ZERO, &mut rng);
            spent += pause;
            longest = longest.max(pause);
            within_half_a_second += u32::from(spent < Duration::from_millis(500));
        }
        assert!(within_half_a_second >= 7);
        assert!(longest <= DENSE_CEILING.mul_f64(1.25));
        for _ in 0..10 {
            longest = backoff.failed(Duration::ZERO, &mut rng);
        }
        assert!(longest >= MAX.mul_f64(0.75) && longest <= MAX.mul_f64(1.25));
    }

    #[test]
    fn a_link_that_never_stays_up_is_not_tried_at_once_for_ever() {
        let mut rng = fastrand::Rng::with_seed(2);
        let mut backoff = Backoff::new(MIN, MAX);
        let pauses: Vec<_> = (0..10)
            .map(|_| backoff.lost(Duration::from_millis(1), &mut rng))
            .collect();
        assert!(pauses[9] > Duration::from_millis(700), "{pauses:?}");
    }

    #[test]
    fn refusals_are_not_hammered_at() {
        let mut rng = fastrand::Rng::with_seed(3);
        let mut backoff = Backoff::new(MIN, MAX);
        assert!(backoff.refused(&mut rng) > Duration::from_secs(3));
        for _ in 0..100 {
            assert!(backoff.refused(&mut rng) <= MAX.mul_f64(1.25));
        }
    }
}
