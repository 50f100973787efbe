//! What happened, as one number and, when asked, as the last lines of text.
//!
//! The number is over everything that crossed a border: two runs with the same number did the
//! same. Lines are made only while a failed run is repeated to be told.

use std::collections::VecDeque;

use crate::random::mix;

/// How many lines a failure shows.
const TAIL: usize = 40;

/// The record of a run.
#[derive(Debug)]
pub(crate) struct Trace {
    hash: u64,
    lines: Option<VecDeque<String>>,
    every: bool,
}

impl Trace {
    /// A trace that keeps its last lines, or none.
    pub(crate) fn new(lines: Lines) -> Self {
        Self {
            hash: 0,
            lines: (lines != Lines::None).then(VecDeque::new),
            every: lines == Lines::All,
        }
    }

    /// Takes bytes into the number.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.hash = mix(self.hash ^ u64::from_le_bytes(word));
        }
        self.hash = mix(self.hash ^ bytes.len() as u64);
    }

    /// Takes numbers into the number.
    pub(crate) fn numbers<const N: usize>(&mut self, numbers: [u64; N]) {
        for number in numbers {
            self.hash = mix(self.hash ^ number);
        }
    }

    /// Adds a line, when lines are kept.
    pub(crate) fn line(&mut self, now: u64, line: impl FnOnce() -> String) {
        if let Some(lines) = &mut self.lines {
            if lines.len() >= TAIL && !self.every {
                lines.pop_front();
            }
            let (seconds, micros) = (now / 1_000_000, now % 1_000_000);
            lines.push_back(format!("{seconds:>4}.{micros:06} {}", line()));
        }
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    pub(crate) fn take_lines(&mut self) -> Vec<String> {
        self.lines.take().unwrap_or_default().into()
    }
}

/// Which lines of a run are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lines {
    /// None; the fastest.
    None,
    /// The last ones.
    Tail,
    /// All. For short runs.
    All,
}
