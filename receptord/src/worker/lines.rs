//! Lines out of a stream of bytes.
//!
//! Owns the buffer between a plugin's stdout and the protocol, and its bound: one line of the
//! longest length plus one read. Never looks into a line.

use std::ops::Range;

use bytes::{Buf as _, Bytes, BytesMut};

/// A line was longer than allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TooLong {
    /// Its beginning.
    pub start: Bytes,
}

/// Bytes read and not yet taken.
#[derive(Debug, Default)]
pub(super) struct Lines {
    buffer: BytesMut,
    /// So many bytes at the front were handed out in place.
    taken: usize,
    /// So many bytes at the front, those included, are known to hold no further newline.
    searched: usize,
}

impl Lines {
    /// Where to read into.
    pub(super) fn buffer(&mut self) -> &mut BytesMut {
        self.drop_taken();
        &mut self.buffer
    }

    /// Bytes that were read and not taken.
    pub(super) fn len(&self) -> usize {
        self.buffer.len() - self.taken
    }

    fn drop_taken(&mut self) {
        self.buffer.advance(self.taken);
        self.searched -= self.taken;
        self.taken = 0;
    }

    /// The next line with its newline, when it is complete.
    ///
    /// # Errors
    /// When more than `limit` bytes have come without a newline.
    pub(super) fn next(&mut self, limit: usize) -> Result<Option<BytesMut>, TooLong> {
        self.drop_taken();
        let Some(line) = self.find(limit)? else {
            return Ok(None);
        };
        self.searched = 0;
        Ok(Some(self.buffer.split_to(line.end)))
    }

    /// As [`Self::next`], where it lies.
    pub(super) fn next_in_place(&mut self, limit: usize) -> Result<Option<&[u8]>, TooLong> {
        let Some(line) = self.find(limit)? else {
            return Ok(None);
        };
        self.taken = line.end;
        self.searched = line.end;
        Ok(self.buffer.get(line))
    }

    /// Where the next line is.
    fn find(&mut self, limit: usize) -> Result<Option<Range<usize>>, TooLong> {
        let unsearched = self.buffer.get(self.searched..).unwrap_or_default();
        let found = memchr::memchr(b'\n', unsearched);
        let end = match found {
            Some(at) => self.searched + at + 1,
            None => {
                self.searched = self.buffer.len();
                // Room for the newline that must still come.
                self.searched + 1
            }
        };
        if end - self.taken > limit {
            self.drop_taken();
            self.searched = 0;
            let start = self.buffer.get(..limit.min(self.buffer.len()));
            return Err(TooLong {
                start: Bytes::copy_from_slice(start.unwrap_or_default()),
            });
        }
        Ok(found.map(|_| self.taken..end))
    }

    /// Everything, at the end of the stream or when lines do not matter.
    pub(super) fn rest(&mut self, limit: usize) -> BytesMut {
        self.drop_taken();
        self.searched = 0;
        let len = self.buffer.len().min(limit);
        self.buffer.split_to(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(lines: &mut Lines, bytes: &[u8]) {
        lines.buffer().extend_from_slice(bytes);
    }

    #[test]
    fn lines_come_out_as_they_went_in_however_they_are_cut() {
        let text = b"one\n\ntwo and more\nlast";
        for cut in 0..text.len() {
            let mut lines = Lines::default();
            let mut out = Vec::new();
            for part in [&text[..cut], &text[cut..]] {
                feed(&mut lines, part);
                while let Some(line) = lines.next(64).unwrap() {
                    out.push(line.to_vec());
                }
            }
            assert_eq!(
                out,
                [&b"one\n"[..], b"\n", b"two and more\n"],
                "cut at {cut}"
            );
            assert_eq!(lines.rest(64), &b"last"[..]);
        }
    }

    #[test]
    fn lines_are_found_where_they_lie() {
        let text = b"one\n\ntwo and more\nlast";
        for cut in 0..text.len() {
            let mut lines = Lines::default();
            let mut out = Vec::new();
            for part in [&text[..cut], &text[cut..]] {
                feed(&mut lines, part);
                while let Some(line) = lines.next_in_place(13).unwrap() {
                    out.push(line.to_vec());
                }
            }
            assert_eq!(
                out,
                [&b"one\n"[..], b"\n", b"two and more\n"],
                "cut at {cut}"
            );
            feed(&mut lines, b" one, too long");
            let error = lines.next_in_place(13).unwrap_err();
            assert_eq!(error.start, &b"last one, too"[..]);
            assert_eq!(lines.rest(64), &b"last one, too long"[..]);
        }
    }

    #[test]
    fn the_limit_counts_the_newline() {
        let mut lines = Lines::default();
        feed(&mut lines, b"1234567\n");
        assert_eq!(lines.next(8).unwrap().unwrap(), &b"1234567\n"[..]);
        feed(&mut lines, b"1234567");
        assert_eq!(lines.next(8), Ok(None));
        feed(&mut lines, b"8");
        let error = lines.next(8).unwrap_err();
        assert_eq!(error.start, &b"12345678"[..]);
        let mut lines = Lines::default();
        feed(&mut lines, b"12345678\n");
        assert!(lines.next(8).is_err());
    }
}
