//! What a plugin has said and nobody has put away yet.
//!
//! Owns the bytes between the pipe and the daemon, in the pieces in which they were read: they are said
//! again in the same pieces, because to a plugin that gives raw bytes each is a response. Bounded by
//! [`WINDOW`]; never looks into them.

use std::collections::VecDeque;

use bytes::{Buf as _, Bytes};
use receptor_proto::plugin::MAX_LINE;

/// Bytes beyond which no more is read from the plugin: the longest line, and as much again to go on with
/// while that one is being put away.
pub(super) const WINDOW: usize = 2 * MAX_LINE;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Kept {
    pieces: VecDeque<Bytes>,
    /// How many of them were sent.
    sent: usize,
    /// Bytes before the first of them.
    offset: u64,
    /// Bytes before the first that was not sent.
    sent_offset: u64,
    /// Bytes in all of them.
    bytes: usize,
}

impl Kept {
    /// Whether the plugin may be read.
    pub(super) fn has_room(&self) -> bool {
        self.bytes < WINDOW
    }

    /// Bytes that were put away.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// Adds what was read.
    pub(super) fn push(&mut self, piece: Bytes) {
        self.bytes += piece.len();
        self.pieces.push_back(piece);
    }

    /// The next piece to send, and how many bytes came before it.
    pub(super) fn next(&self) -> Option<(u64, &Bytes)> {
        let piece = self.pieces.get(self.sent)?;
        Some((self.sent_offset, piece))
    }

    /// It was sent.
    pub(super) fn sent(&mut self) {
        if let Some(piece) = self.pieces.get(self.sent) {
            self.sent_offset += len(piece);
            self.sent += 1;
        }
    }

    /// All of it is to be sent again.
    pub(super) fn again(&mut self) {
        self.sent = 0;
        self.sent_offset = self.offset;
    }

    /// What comes before this offset was put away. Only what was sent can be.
    pub(super) fn seen(&mut self, offset: u64) {
        while self.sent > 0
            && self.offset < offset
            && let Some(piece) = self.pieces.front_mut()
        {
            let wanted = usize::try_from(offset - self.offset).unwrap_or(usize::MAX);
            let count = wanted.min(piece.len());
            piece.advance(count);
            self.offset += u64::try_from(count).unwrap_or(0);
            self.bytes -= count;
            if piece.is_empty() {
                self.pieces.pop_front();
                self.sent -= 1;
            }
        }
    }

    /// Nobody wants any of it.
    pub(super) fn clear(&mut self) {
        self.pieces.clear();
        self.bytes = 0;
        self.sent = 0;
    }
}

fn len(piece: &Bytes) -> u64 {
    u64::try_from(piece.len()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(kept: &mut Kept) -> Vec<(u64, Bytes)> {
        let mut out = Vec::new();
        while let Some((offset, piece)) = kept.next() {
            out.push((offset, piece.clone()));
            kept.sent();
        }
        out
    }

    #[test]
    fn what_was_not_put_away_is_said_again_in_the_same_pieces() {
        let mut kept = Kept::default();
        for piece in ["abc", "defg", "h"] {
            kept.push(piece.into());
        }
        let all = [(0, "abc".into()), (3, "defg".into()), (7, "h".into())];
        assert_eq!(sent(&mut kept), all);
        kept.seen(3);
        kept.again();
        assert_eq!(sent(&mut kept), all[1..]);
        kept.seen(5);
        kept.push("ij".into());
        assert_eq!(sent(&mut kept), [(8, "ij".into())]);
        kept.again();
        let rest = [(5, "fg".into()), (7, "h".into()), (8, "ij".into())];
        assert_eq!(sent(&mut kept), rest);
        kept.seen(10);
        assert_eq!((kept.offset(), kept.bytes), (10, 0));
    }

    #[test]
    fn what_was_not_said_cannot_be_put_away() {
        let mut kept = Kept::default();
        kept.push("abc".into());
        kept.seen(2);
        assert_eq!(sent(&mut kept), [(0, "abc".into())]);
        kept.push("d".into());
        kept.seen(99);
        assert_eq!(sent(&mut kept), [(3, "d".into())]);
    }

    #[test]
    fn there_is_room_for_the_longest_line_and_more() {
        let mut kept = Kept::default();
        kept.push(vec![0; MAX_LINE].into());
        assert!(kept.has_room());
        kept.push(vec![0; MAX_LINE].into());
        assert!(!kept.has_room());
        sent(&mut kept);
        kept.seen(1);
        assert!(kept.has_room());
    }
}
