//! How much may be under way to one recipient, and how long to wait for its receipt.
//!
//! [`Window`] grows while receipts come and halves when one is missed (AIMD, as TCP does);
//! [`Patience`] is RFC 6298's retransmission timer. Neither knows what is under way.

use core::time::Duration;

use receptor_proto::packet::SEGMENT_MAX;

use crate::Instant;

/// What a flow begins with, in bytes: enough for a burst of small requests or four segments.
const START: usize = 4 * SEGMENT_MAX;
/// The least that is left after losses, in bytes. Whatever it is, one message may always go.
const LEAST: usize = 16 * 1024;

/// Bytes that may be without a receipt.
#[derive(Debug)]
pub(crate) struct Window {
    size: usize,
    most: usize,
    /// Below this the window doubles in a round trip, above it grows by a segment.
    threshold: usize,
    /// One loss event is one halving, however many messages it took.
    halved: Option<Instant>,
}

impl Window {
    pub(crate) fn new(most: usize) -> Self {
        let most = most.max(LEAST);
        Self {
            size: START.min(most),
            most,
            threshold: most,
            halved: None,
        }
    }

    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// A receipt for this many bytes came.
    pub(crate) fn grow(&mut self, bytes: usize) {
        let step = if self.size < self.threshold {
            bytes
        } else {
            (SEGMENT_MAX.saturating_mul(bytes) / self.size).max(1)
        };
        self.size = self.size.saturating_add(step).min(self.most);
    }

    /// Something got lost or was dropped for lack of room.
    pub(crate) fn shrink(&mut self, now: Instant, round_trip: Duration) {
        if self
            .halved
            .is_some_and(|halved| now.since(halved) < round_trip)
        {
            return;
        }
        self.halved = Some(now);
        self.size = (self.size / 2).max(LEAST);
        self.threshold = self.size;
    }
}

/// The first guess, before anything was measured: a mesh is mostly near, but a disk may be slow.
const FIRST: Duration = Duration::from_secs(1);
/// A receipt may wait for a sync of the recipient's disk.
const SHORTEST: Duration = Duration::from_millis(200);
/// However bad it looks, try this often: a leaf does not see that a way is there again.
const LONGEST: Duration = Duration::from_secs(8);

/// How often it may have run out and still be no longer than that, when the other side is alive.
const CALM: u32 = 2;

/// How long until a message without a receipt counts as lost.
#[derive(Debug, Default)]
pub(crate) struct Patience {
    /// Smoothed round trip and its variation.
    measured: Option<(Duration, Duration)>,
    /// How often it ran out in a row.
    backoff: u32,
}

impl Patience {
    /// A message sent once was answered after `sample`.
    pub(crate) fn measure(&mut self, sample: Duration) {
        self.backoff = 0;
        self.measured = Some(match self.measured {
            None => (sample, sample / 2),
            Some((smooth, variation)) => (
                (smooth * 7 + sample) / 8,
                (variation * 3 + smooth.abs_diff(sample)) / 4,
            ),
        });
    }

    /// It ran out: wait longer next time.
    pub(crate) fn ran_out(&mut self) {
        self.backoff = (self.backoff + 1).min(10);
    }

    /// Something got there, or the way is another one: what ran out before says nothing.
    pub(crate) fn reset(&mut self) {
        self.backoff = 0;
    }

    /// The other side was heard: it may be slow, but there is a way. True: that shortens it.
    pub(crate) fn calm(&mut self) -> bool {
        let shorter = self.backoff > CALM;
        self.backoff = self.backoff.min(CALM);
        shorter
    }

    /// The smoothed round trip, or the guess.
    pub(crate) fn round_trip(&self) -> Duration {
        self.measured.map_or(FIRST, |(smooth, _)| smooth)
    }

    /// Until a message counts as lost.
    pub(crate) fn length(&self) -> Duration {
        let base = self
            .measured
            .map_or(FIRST, |(smooth, variation)| smooth + variation * 4);
        base.clamp(SHORTEST, LONGEST)
            .saturating_mul(1 << self.backoff)
            .min(LONGEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_doubles_halves_once_a_round_trip_and_then_creeps() {
        let mut window = Window::new(1 << 20);
        window.grow(window.size());
        assert_eq!(window.size(), 2 * START);
        let now = Instant::from_micros(5_000_000);
        window.shrink(now, Duration::from_millis(10));
        window.shrink(now + Duration::from_millis(9), Duration::from_millis(10));
        assert_eq!(window.size(), START);
        window.grow(window.size());
        assert_eq!(window.size(), START + SEGMENT_MAX);
        for n in 1..100 {
            window.shrink(now + Duration::from_secs(n), Duration::from_millis(10));
        }
        assert_eq!(window.size(), LEAST);
        for _ in 0..10_000 {
            window.grow(4096);
        }
        assert_eq!(window.size(), 1 << 20);
    }

    #[test]
    fn patience_follows_what_is_measured_within_its_limits() {
        let mut patience = Patience::default();
        assert_eq!(patience.length(), FIRST);
        for _ in 0..100 {
            patience.measure(Duration::from_millis(1));
        }
        assert_eq!(patience.length(), SHORTEST);
        patience.ran_out();
        patience.ran_out();
        assert_eq!(patience.length(), SHORTEST * 4);
        for _ in 0..100 {
            patience.ran_out();
        }
        assert_eq!(patience.length(), LONGEST);
        patience.measure(Duration::from_secs(3));
        assert!(patience.length() > Duration::from_secs(1));
        assert!(patience.length() < LONGEST);
    }
}
