//! Takes lines out of a stream, in place and with a limit.

use std::io::{self, Read};

/// Bytes asked for at once; twice what a pipe usually holds costs little and saves calls.
const CHUNK: usize = 131_072;

/// A stream cut into lines.
pub(crate) struct Lines<R> {
    input: R,
    buffer: Vec<u8>,
    /// Where the part not yet handed out begins.
    start: usize,
    /// Up to where there is certainly no newline.
    searched: usize,
    /// Where what was read ends.
    end: usize,
    limit: usize,
}

/// What [`Lines::fill`] found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Filled {
    /// There is more to look at.
    More,
    /// The stream has ended.
    End,
    /// The line that began is longer than the limit.
    TooLong,
}

impl<R: Read> Lines<R> {
    /// `limit` is the longest line in bytes, its newline included.
    pub(crate) fn new(input: R, limit: usize) -> Self {
        Self {
            input,
            buffer: vec![0; CHUNK],
            start: 0,
            searched: 0,
            end: 0,
            limit,
        }
    }

    /// The next whole line already read, with its newline.
    pub(crate) fn next_line(&mut self) -> Option<&[u8]> {
        let unsearched = self.buffer.get(self.searched..self.end)?;
        let Some(found) = memchr::memchr(b'\n', unsearched) else {
            self.searched = self.end;
            return None;
        };
        let line = self.start..self.searched + found + 1;
        self.start = line.end;
        self.searched = line.end;
        self.buffer.get(line)
    }

    /// Reads more; to be called when [`Self::next_line`] has nothing.
    pub(crate) fn fill(&mut self) -> io::Result<Filled> {
        if self.end - self.start >= self.limit {
            return Ok(Filled::TooLong);
        }
        self.buffer.copy_within(self.start..self.end, 0);
        self.searched -= self.start;
        self.end -= self.start;
        self.start = 0;
        if self.buffer.len() - self.end < CHUNK / 2 {
            self.buffer.resize(self.buffer.len() * 2, 0);
        }
        let Some(free) = self.buffer.get_mut(self.end..) else {
            return Ok(Filled::End);
        };
        loop {
            match self.input.read(free) {
                Ok(0) => return Ok(Filled::End),
                Ok(n) => {
                    self.end += n;
                    return Ok(Filled::More);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives at most `step` bytes at once.
    struct Slow<'a> {
        bytes: &'a [u8],
        step: usize,
    }

    impl Read for Slow<'_> {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            let n = self.step.min(self.bytes.len()).min(buf.len());
            let (now, later) = self.bytes.split_at(n);
            buf[..n].copy_from_slice(now);
            self.bytes = later;
            Ok(n)
        }
    }

    fn all(bytes: &[u8], step: usize, limit: usize) -> (Vec<Vec<u8>>, Filled) {
        let mut lines = Lines::new(Slow { bytes, step }, limit);
        let mut found = Vec::new();
        loop {
            while let Some(line) = lines.next_line() {
                found.push(line.to_vec());
            }
            let filled = lines.fill().unwrap();
            if filled != Filled::More {
                return (found, filled);
            }
        }
    }

    #[test]
    fn lines_come_whole_however_they_arrive() {
        let long = [vec![b'x'; CHUNK * 3], b"\n".to_vec()].concat();
        let bytes = [b"a\n\nbc\n".as_slice(), &long, b"d\nhalf"].concat();
        for step in [1, 2, 7, 1000, CHUNK, bytes.len()] {
            let (lines, end) = all(&bytes, step, 1 << 20);
            assert_eq!(end, Filled::End);
            assert_eq!(
                lines,
                [
                    b"a\n".to_vec(),
                    b"\n".to_vec(),
                    b"bc\n".to_vec(),
                    long.clone(),
                    b"d\n".to_vec()
                ],
                "step {step}"
            );
        }
    }

    #[test]
    fn a_line_over_the_limit_is_noticed() {
        let (lines, end) = all(b"abc\nabcdefgh", 1, 4);
        assert_eq!(lines, [b"abc\n"]);
        assert_eq!(end, Filled::TooLong);
    }
}
