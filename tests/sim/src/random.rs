//! Independent streams of random numbers from one seed.
//!
//! Each concern draws from a stream of its own, so that turning one fault off leaves the
//! topology, the traffic and the other faults of a seed as they were: that is what makes a
//! failing run small.

use fastrand::Rng;

use crate::options::Span;

/// A concern with numbers of its own.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Stream {
    Topology = 1,
    Network,
    Faults,
    Traffic,
    Workers,
    Clients,
    Disks,
    Nodes,
    Hostile,
    Checks,
    Options,
    Wishes,
}

/// The stream of one concern.
pub(crate) fn stream(seed: u64, concern: Stream) -> Rng {
    Rng::with_seed(mix(seed ^ mix(concern as u64)))
}

/// Spreads a number over all 64 bits (the finalizer of SplitMix64).
pub(crate) fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Draws, in the simulator's units.
pub(crate) trait Draw {
    fn within(&mut self, span: Span) -> u64;
    /// A span of milliseconds, drawn in microseconds.
    fn micros(&mut self, span_ms: Span) -> u64;
    fn chance(&mut self, share: f64) -> bool;
    /// Microseconds to the next of events that come at `rate` a second.
    fn pause(&mut self, rate: f64) -> u64;
}

impl Draw for Rng {
    fn within(&mut self, span: Span) -> u64 {
        self.u64(span.low..=span.high)
    }

    fn micros(&mut self, span_ms: Span) -> u64 {
        self.u64(span_ms.low * 1000..=span_ms.high * 1000)
    }

    fn chance(&mut self, share: f64) -> bool {
        // No draw at the ends: an option that is off costs nothing and moves nothing.
        share > 0.0 && (share >= 1.0 || self.f64() < share)
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a positive number of microseconds, far below 2^64"
    )]
    fn pause(&mut self, rate: f64) -> u64 {
        // Uniform around the mean rather than exponential: no logarithm, whose last bit could
        // differ from one platform's mathematics library to another's.
        1 + (self.f64() * 2_000_000.0 / rate) as u64
    }
}
