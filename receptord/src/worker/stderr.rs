//! What a plugin says on stderr, and what becomes of it.
//!
//! Owns the last bytes of it, for the error of a plugin that ended badly, and its way into the
//! daemon's log: line by line, with the level that a line asks for (`<0>` to `<7>`), and no faster than a
//! log can bear. Never holds a plugin up: what is too much is counted and dropped.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::BytesMut;
use receptor_proto::plugin::{Level, STDERR_KEPT, STDERR_SHOWN};

/// Longest line that is logged in one piece, in bytes.
const MAX_LINE: usize = 2048;
/// Lines that may be logged at once.
const BURST: u32 = 200;
/// Lines that may be logged in a second, in the long run.
const RATE: u32 = 50;

/// How many log lines a process still may write.
#[derive(Debug)]
pub(super) struct LogBudget {
    left: u32,
    since: Instant,
    dropped: u64,
}

impl LogBudget {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            left: BURST,
            since: now,
            dropped: 0,
        }
    }

    /// Whether one more line may be logged, and how many were dropped before it.
    fn take(&mut self, now: Instant) -> Option<u64> {
        let earned = now.duration_since(self.since).as_millis() * u128::from(RATE) / 1000;
        if let Ok(earned @ 1..) = u32::try_from(earned) {
            self.left = self.left.saturating_add(earned).min(BURST);
            self.since = now;
        }
        if self.left == 0 {
            self.dropped += 1;
            return None;
        }
        self.left -= 1;
        Some(std::mem::take(&mut self.dropped))
    }
}

/// Whose lines they are.
#[derive(Debug, Clone)]
pub(super) struct Source {
    /// The plugin.
    pub plugin: String,
    /// The job, or what else the process was started for.
    pub job: String,
}

/// The stderr of one process.
#[derive(Debug)]
pub(super) struct Stderr {
    source: Source,
    /// Where to read into; holds less than one line otherwise.
    pub buffer: BytesMut,
    tail: VecDeque<u8>,
    budget: LogBudget,
}

impl Stderr {
    pub(super) fn new(source: Source, now: Instant) -> Self {
        Self {
            source,
            buffer: BytesMut::new(),
            tail: VecDeque::new(),
            budget: LogBudget::new(now),
        }
    }

    /// Takes what was read.
    pub(super) fn take(&mut self, now: Instant) {
        while let Some(at) = self.buffer.iter().position(|byte| *byte == b'\n') {
            let line = self.buffer.split_to(at + 1);
            self.line(&line, now);
        }
        while self.buffer.len() >= MAX_LINE {
            let line = self.buffer.split_to(MAX_LINE);
            self.line(&line, now);
        }
    }

    /// Takes the rest at the end.
    pub(super) fn finish(&mut self, now: Instant) {
        let line = self.buffer.split();
        if !line.is_empty() {
            self.line(&line, now);
        }
        if self.budget.dropped > 0 {
            self.budget.left = 1;
            self.log(Level::Warn, "", now);
        }
    }

    /// The last of it, for an error.
    pub(super) fn tail(&self) -> String {
        let skip = self.tail.len().saturating_sub(STDERR_SHOWN);
        let bytes: Vec<u8> = self.tail.iter().skip(skip).copied().collect();
        String::from_utf8_lossy(&bytes).trim_end().to_owned()
    }

    /// Logs a line that came as a message, within the same budget.
    pub(super) fn log(&mut self, level: Level, text: &str, now: Instant) {
        let Some(dropped) = self.budget.take(now) else {
            return;
        };
        let Source { plugin, job } = &self.source;
        if dropped > 0 {
            tracing::warn!(%plugin, %job, dropped, "the plugin logs too much: lines were dropped");
        }
        if text.is_empty() {
            return;
        }
        match level {
            Level::Error => tracing::error!(%plugin, %job, "{text}"),
            Level::Warn => tracing::warn!(%plugin, %job, "{text}"),
            Level::Info => tracing::info!(%plugin, %job, "{text}"),
            Level::Debug => tracing::debug!(%plugin, %job, "{text}"),
            Level::Trace => tracing::trace!(%plugin, %job, "{text}"),
        }
    }

    fn line(&mut self, line: &[u8], now: Instant) {
        self.tail.extend(line);
        let over = self.tail.len().saturating_sub(STDERR_KEPT);
        self.tail.drain(..over);
        let (level, text) = level(line);
        let text = String::from_utf8_lossy(text);
        self.log(level, text.trim_end(), now);
    }
}

/// The level that a line asks for, and the line without that.
fn level(line: &[u8]) -> (Level, &[u8]) {
    let [b'<', digit @ b'0'..=b'7', b'>', rest @ ..] = line else {
        return (Level::Info, line);
    };
    let level = match digit {
        b'0'..=b'3' => Level::Error,
        b'4' => Level::Warn,
        b'7' => Level::Debug,
        _ => Level::Info,
    };
    (level, rest)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn levels() {
        assert_eq!(level(b"<3>bad\n"), (Level::Error, &b"bad\n"[..]));
        assert_eq!(level(b"<4>hm"), (Level::Warn, &b"hm"[..]));
        assert_eq!(level(b"<8>hm"), (Level::Info, &b"<8>hm"[..]));
        assert_eq!(level(b"plain"), (Level::Info, &b"plain"[..]));
    }

    #[test]
    fn the_tail_is_bounded_and_the_last() {
        let source = Source {
            plugin: "p".into(),
            job: "j".into(),
        };
        let now = Instant::now();
        let mut stderr = Stderr::new(source, now);
        for n in 0..100_000 {
            stderr
                .buffer
                .extend_from_slice(format!("line {n}\n").as_bytes());
            stderr.take(now);
        }
        stderr.buffer.extend_from_slice(b"the end");
        stderr.finish(now);
        assert!(stderr.tail.len() <= STDERR_KEPT);
        assert!(stderr.tail().len() <= STDERR_SHOWN);
        assert!(stderr.tail().ends_with("line 99999\nthe end"));
    }

    #[test]
    fn a_budget_is_spent_and_earned() {
        let start = Instant::now();
        let mut budget = LogBudget::new(start);
        let logged = (0..1000).filter(|_| budget.take(start).is_some()).count();
        assert_eq!(logged, usize::try_from(BURST).unwrap());
        assert_eq!(budget.take(start + Duration::from_millis(20)), Some(800));
        assert_eq!(budget.take(start + Duration::from_millis(21)), None);
        let later = start + Duration::from_secs(60);
        let logged = (0..1000).filter(|_| budget.take(later).is_some()).count();
        assert_eq!(logged, usize::try_from(BURST).unwrap());
    }
}
