//! How often a denial is told in the log.
//!
//! Owns what was told lately: of the same thing to the same node or user one line an interval, with
//! the number of those in between, however many messages are refused. Bounded: whoever makes up new
//! names shares the lines of all others.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Between two lines about the same.
const EVERY: Duration = Duration::from_secs(60);
/// Different denials remembered at once. Beyond, new ones are counted under one name.
const KNOWN_MAX: usize = 256;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Denials {
    known: HashMap<String, Told>,
}

#[derive(Debug)]
struct Told {
    at: Instant,
    since: u64,
}

impl Denials {
    /// Notes one. `Some` when it is time for a line: how many were not told since the last about the same.
    pub(crate) fn note(&mut self, what: String, now: Instant) -> Option<u64> {
        if !self.known.contains_key(&what) && self.known.len() >= KNOWN_MAX {
            self.known.retain(|_, told| now - told.at < EVERY);
        }
        let full = self.known.len() >= KNOWN_MAX && !self.known.contains_key(&what);
        let what = if full { String::new() } else { what };
        let Some(told) = self.known.get_mut(&what) else {
            self.known.insert(what, Told { at: now, since: 0 });
            return Some(0);
        };
        if now - told.at < EVERY {
            told.since += 1;
            return None;
        }
        told.at = now;
        Some(std::mem::take(&mut told.since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_told_once_an_interval_with_its_count() {
        let mut denials = Denials::default();
        let start = Instant::now();
        let mut note = |what: &str, seconds| {
            denials.note(what.to_owned(), start + Duration::from_secs(seconds))
        };
        assert_eq!(note("a", 0), Some(0));
        assert_eq!(note("a", 1), None);
        assert_eq!(note("b", 1), Some(0));
        assert_eq!(note("a", 59), None);
        assert_eq!(note("a", 61), Some(2));
        assert_eq!(note("a", 62), None);
    }

    #[test]
    fn made_up_names_fill_neither_memory_nor_the_log() {
        let mut denials = Denials::default();
        let start = Instant::now();
        let lines = (0..10 * KNOWN_MAX).filter(|n| denials.note(n.to_string(), start).is_some());
        assert_eq!(lines.count(), KNOWN_MAX + 1);
        assert!(denials.known.len() <= KNOWN_MAX + 1);
        let later = start + EVERY;
        assert_eq!(denials.note("new".to_owned(), later), Some(0));
        assert!(denials.known.len() <= 2, "{}", denials.known.len());
    }
}
