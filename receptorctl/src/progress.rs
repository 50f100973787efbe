//! A line on stderr that says how far a payload is, when stderr is a terminal.
//!
//! Owns that line and nothing else: what is measured, and when it is looked at again, is its
//! owner's business. Draws nothing for what is over soon, never more often than an eye can see,
//! and leaves the line empty behind itself.

use std::io::{self, IsTerminal as _};
use std::time::{Duration, Instant};

use crate::output::size;

/// What is over sooner shows no progress.
pub(crate) const AFTER: Duration = Duration::from_millis(500);
/// It is drawn this often.
const EVERY: Duration = Duration::from_millis(100);
/// Characters of the bar: with everything else less than 80, for whatever a label is short.
const BAR: u64 = 16;
/// The longest label that is shown whole.
const LABEL_MAX: usize = 14;

/// Seconds beyond which nobody waits for the end: a hundred hours.
const FORETOLD_MAX: u64 = 360_000;

/// See the module.
#[derive(Debug)]
pub(crate) struct Progress {
    label: String,
    total: Option<u64>,
    start: Instant,
    /// What was there when it began, which says nothing about the rate.
    before: Option<u64>,
    drawn: Option<Instant>,
    wanted: bool,
}

impl Progress {
    /// Of so many bytes, where that is known.
    pub(crate) fn new(label: impl Into<String>, total: Option<u64>) -> Self {
        Self {
            label: label.into(),
            total,
            start: Instant::now(),
            before: None,
            drawn: None,
            wanted: is_wanted(),
        }
    }

    /// So many bytes are done.
    pub(crate) fn draw(&mut self, done: u64) {
        let before = *self.before.get_or_insert(done);
        let elapsed = self.start.elapsed();
        let due = self.drawn.is_none_or(|at| at.elapsed() >= EVERY);
        if self.wanted && elapsed >= AFTER && due {
            self.drawn = Some(Instant::now());
            write(&format!("\r\x1b[K{}", self.line(before, done, elapsed)));
        }
    }

    /// Takes the line away, until it is drawn again.
    pub(crate) fn clear(&mut self) {
        if self.drawn.take().is_some() {
            write("\r\x1b[K");
        }
    }

    fn line(&self, before: u64, done: u64, elapsed: Duration) -> String {
        let ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
        let rate = done.saturating_sub(before).saturating_mul(1000) / ms.max(1);
        let label: String = self.label.chars().take(LABEL_MAX).collect();
        let speed = format!("{}/s", size(rate));
        let Some(total) = self.total else {
            return format!("{label}  {}  {speed}", size(done));
        };
        let part = |of: u64| {
            done.saturating_mul(of)
                .checked_div(total)
                .unwrap_or(of)
                .min(of)
        };
        let filled = usize::try_from(part(BAR)).unwrap_or(0);
        let bar = "=".repeat(filled);
        let left = match total.saturating_sub(done).checked_div(rate) {
            Some(seconds) if seconds < FORETOLD_MAX => format!("  {} left", clock(seconds)),
            Some(_) | None => String::new(),
        };
        let width = usize::try_from(BAR).unwrap_or(0);
        let all = size(total);
        let percent = part(100);
        format!("{label} [{bar:<width$}] {percent:>3}% of {all}  {speed}{left}")
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Whether there is a terminal to draw on.
pub(crate) fn is_wanted() -> bool {
    io::stderr().is_terminal()
}

/// `0:07`, `12:34`, `1:02:03`.
fn clock(seconds: u64) -> String {
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 {
        format!("{hours}:{minutes:02}:{seconds:02}")
    } else {
        format!("{minutes}:{seconds:02}")
    }
}

fn write(text: &str) {
    let mut stderr = io::stderr().lock();
    // A terminal that went away shows no progress.
    let _ = io::Write::write_all(&mut stderr, text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_fit_a_terminal_and_say_how_far_it_is() {
        let half = Duration::from_millis(500);
        let line = |total, before, done| Progress::new("to c", total).line(before, done, half);
        assert_eq!(
            line(Some(4 << 20), 0, 1 << 20),
            "to c [====            ]  25% of 4.0 MiB  2.0 MiB/s  0:01 left"
        );
        assert_eq!(
            line(Some(400 << 20), 100 << 20, 101 << 20),
            "to c [====            ]  25% of 400.0 MiB  2.0 MiB/s  2:29 left"
        );
        assert_eq!(
            line(Some(0), 0, 0),
            "to c [================] 100% of 0 B  0 B/s"
        );
        assert_eq!(line(None, 0, 1 << 20), "to c  1.0 MiB  2.0 MiB/s");
        let long = Progress::new("x".repeat(200), Some(u64::MAX));
        let line = long.line(0, 1 << 40, Duration::from_secs(3600));
        assert!(line.len() < 80, "{line}");
        assert_eq!((clock(59), clock(3723)), ("0:59".into(), "1:02:03".into()));
    }
}
