//! Many deadlines of which hardly any is ever met: a heap that forgets lazily.
//!
//! Adding costs next to nothing when deadlines come in order, and removing costs nothing: the
//! owner says which keys are still alive when the heap has grown to twice their number.

use alloc::collections::BinaryHeap;
use core::cmp::Reverse;

use crate::Instant;

/// Below this size the heap is not worth a look.
const SMALL: usize = 64;

/// Deadlines by key.
#[derive(Debug)]
pub(crate) struct Deadlines<K: Ord>(BinaryHeap<Reverse<(Instant, K)>>);

impl<K: Ord> Default for Deadlines<K> {
    fn default() -> Self {
        Self(BinaryHeap::new())
    }
}

impl<K: Ord + Copy> Deadlines<K> {
    pub(crate) fn push(&mut self, at: Instant, key: K) {
        self.0.push(Reverse((at, key)));
    }

    /// The earliest of a living key; those of dead ones before it are forgotten.
    pub(crate) fn next(&mut self, alive: impl Fn(K, Instant) -> bool) -> Option<Instant> {
        while let Some(&Reverse((at, key))) = self.0.peek() {
            if alive(key, at) {
                return Some(at);
            }
            self.0.pop();
        }
        None
    }

    /// Takes the earliest that is due, of a living key or not.
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<K> {
        let Reverse((at, _)) = self.0.peek()?;
        if *at > now {
            return None;
        }
        self.0.pop().map(|Reverse((_, key))| key)
    }

    /// Forgets dead keys when they are more than the `living`.
    pub(crate) fn tidy(&mut self, living: usize, alive: impl Fn(K, Instant) -> bool) {
        if self.0.len() > 2 * living + SMALL {
            self.0.retain(|Reverse((at, key))| alive(*key, *at));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(micros: u64) -> Instant {
        Instant::from_micros(micros)
    }

    #[test]
    fn the_dead_are_forgotten_and_the_living_come_in_order() {
        let mut deadlines = Deadlines::default();
        for n in 0..1000u64 {
            deadlines.push(at(2000 - n), n);
        }
        deadlines.tidy(10, |key, _| key % 100 == 0);
        assert_eq!(deadlines.0.len(), 10);
        assert_eq!(deadlines.next(|key, _| key < 500), Some(at(1600)));
        assert_eq!(deadlines.pop_due(at(1599)), None);
        assert_eq!(deadlines.pop_due(at(1600)), Some(400));
    }
}
