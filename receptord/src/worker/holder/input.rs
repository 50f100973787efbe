//! What is on its way to a plugin's stdin.
//!
//! Owns the bytes between the daemon and the pipe. Only whole lines go into the pipe: of a daemon that
//! was killed in the middle of one, the plugin sees nothing of it. Bounded by [`MAX_WAITING`].

use receptor_proto::plugin::MAX_LINE;

/// Bytes that may wait for the plugin: the daemon sends a line when little waits, and few words beside it.
const MAX_WAITING: usize = 4 * MAX_LINE;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Input {
    /// Whole lines that the pipe has not taken, behind `written` bytes that it has.
    waiting: Vec<u8>,
    written: usize,
    /// The beginning of a line.
    partial: Vec<u8>,
    /// Bytes that came in whole lines.
    whole: u64,
}

/// More than a plugin can be sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooMuch;

impl Input {
    /// Takes what the daemon sent.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<(), TooMuch> {
        if self.waiting.len() + self.partial.len() + bytes.len() > MAX_WAITING {
            return Err(TooMuch);
        }
        let Some(end) = memchr::memrchr(b'\n', bytes) else {
            self.partial.extend_from_slice(bytes);
            return Ok(());
        };
        let (lines, rest) = bytes.split_at(end + 1);
        let count = self.partial.len() + lines.len();
        self.whole += u64::try_from(count).unwrap_or(0);
        self.waiting.append(&mut self.partial);
        self.waiting.extend_from_slice(lines);
        self.partial.extend_from_slice(rest);
        Ok(())
    }

    /// Bytes that came in whole lines.
    pub(super) fn whole(&self) -> u64 {
        self.whole
    }

    /// Bytes of these that were written, or that nobody reads any more.
    pub(super) fn fed(&self) -> u64 {
        self.whole - u64::try_from(self.unwritten().len()).unwrap_or(0)
    }

    /// What the pipe is to take.
    pub(super) fn unwritten(&self) -> &[u8] {
        self.waiting.get(self.written..).unwrap_or_default()
    }

    /// The pipe has taken so much.
    pub(super) fn wrote(&mut self, count: usize) {
        self.written += count;
        if self.unwritten().is_empty() {
            self.clear();
        }
    }

    /// Nobody reads it.
    pub(super) fn clear(&mut self) {
        // A large payload must not leave its buffer behind for the rest of a job.
        self.waiting = Vec::new();
        self.written = 0;
    }

    /// The rest of the line that was begun will not come.
    pub(super) fn drop_partial(&mut self) {
        self.partial.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_lines_go_to_the_plugin() {
        let mut input = Input::default();
        input.push(b"one\ntw").unwrap();
        assert_eq!((input.unwritten(), input.whole()), (&b"one\n"[..], 4));
        input.wrote(1);
        input.push(b"o").unwrap();
        assert_eq!((input.unwritten(), input.fed()), (&b"ne\n"[..], 1));
        input.push(b"\nthree").unwrap();
        assert_eq!(input.unwritten(), b"ne\ntwo\n");
        input.drop_partial();
        input.push(b"four\n").unwrap();
        assert_eq!(input.unwritten(), b"ne\ntwo\nfour\n");
        input.wrote(12);
        assert_eq!((input.whole(), input.fed()), (13, 13));
    }

    #[test]
    fn what_nobody_reads_counts_as_written() {
        let mut input = Input::default();
        input.push(b"one\n").unwrap();
        input.clear();
        assert_eq!((input.whole(), input.fed()), (4, 4));
        assert_eq!(input.push(&vec![b'x'; MAX_WAITING + 1]), Err(TooMuch));
    }
}
