//! A large payload on its way out: which part the recipient has, which are under way, which are
//! being read from the store.
//!
//! The message's head goes first. Parts follow in order, each read from the store when the
//! window has room for it, so that no more than the window is ever in memory. The recipient
//! takes parts in order only and says how far it is; after a loss or a change of the way the
//! head is sent again, and its answer says from where to go on. Never sends; [`super::flow`]
//! does.

use alloc::collections::{BTreeMap, BTreeSet};

use receptor_proto::packet::{Piece, SEGMENT_MAX};

use crate::Instant;

/// Where a transfer stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The head is to be sent. The first time parts follow at once; later only when the recipient has said how far it is.
    Head { follow: bool },
    /// The head was sent; the recipient's answer is awaited.
    Probing,
    /// Parts are being sent.
    Flowing,
}

/// Its state. Offsets are `acked` ≤ `sent` ≤ `asked` ≤ `size`.
#[derive(Debug)]
pub(crate) struct Transfer {
    size: u64,
    /// The recipient has everything below.
    acked: u64,
    /// Sent, since the last start, up to here.
    sent: u64,
    /// Asked of the store up to here. What lies between `acked` and here fills the window.
    asked: u64,
    /// Reads of the store under way; outlives a new start.
    asking: BTreeSet<u64>,
    /// Read and not sent.
    parts: BTreeMap<u64, Piece>,
    phase: Phase,
    /// When something was last sent or heard.
    touched: Instant,
    /// Nobody wants the payload any more; only the head is still worth sending.
    withdrawn: bool,
}

/// A part of a transfer to be read: offset and length.
pub(crate) type Part = (u64, usize);

impl Transfer {
    pub(crate) fn new(size: u64, now: Instant) -> Self {
        Self {
            size,
            acked: 0,
            sent: 0,
            asked: 0,
            asking: BTreeSet::new(),
            parts: BTreeMap::new(),
            phase: Phase::Head { follow: true },
            touched: now,
            withdrawn: false,
        }
    }

    /// Bytes of the window that it fills.
    pub(crate) fn reserved(&self) -> usize {
        usize::try_from(self.asked - self.acked).unwrap_or(usize::MAX)
    }

    /// Bytes that the recipient has, and all.
    pub(crate) fn progressed(&self) -> (u64, u64) {
        (self.acked, self.size)
    }

    pub(crate) fn needs_head(&self) -> bool {
        matches!(self.phase, Phase::Head { .. })
    }

    pub(crate) fn is_flowing(&self) -> bool {
        self.phase == Phase::Flowing
    }

    pub(crate) fn head_sent(&mut self, now: Instant) {
        self.touched = now;
        self.phase = match self.phase {
            Phase::Head { follow: true } if !self.withdrawn => Phase::Flowing,
            Phase::Head { .. } | Phase::Probing | Phase::Flowing => Phase::Probing,
        };
    }

    /// Something got lost, or the way is another one: ask the recipient how far it is.
    pub(crate) fn restart(&mut self) {
        self.phase = Phase::Head { follow: false };
        self.parts.clear();
        self.sent = self.acked;
        self.asked = self.acked;
    }

    /// The recipient has nothing of it.
    pub(crate) fn begin_anew(&mut self) {
        self.acked = 0;
        self.restart();
    }

    /// Sends no more parts: the request was cancelled, and the recipient has to learn that it
    /// was there at all.
    pub(crate) fn withdraw(&mut self) {
        self.withdrawn = true;
        self.restart();
    }

    /// The next part to read, when it fits into `allowance`; marks it as asked for. `None` as
    /// the inner value: it is being read already.
    pub(crate) fn next_read(&mut self, allowance: usize) -> Option<Option<Part>> {
        if self.phase != Phase::Flowing || self.withdrawn || self.asked >= self.size {
            return None;
        }
        let offset = self.asked;
        let length = self.part_length(offset);
        if length > allowance {
            return None;
        }
        self.asked += length as u64;
        Some(self.asking.insert(offset).then_some((offset, length)))
    }

    fn part_length(&self, offset: u64) -> usize {
        usize::try_from(self.size - offset).map_or(SEGMENT_MAX, |rest| rest.min(SEGMENT_MAX))
    }

    /// A part was read. False: the store gave something else than was asked for.
    pub(crate) fn read(&mut self, offset: u64, piece: Piece) -> bool {
        if !self.asking.remove(&offset) || offset >= self.size {
            return true;
        }
        if offset >= self.sent && offset < self.asked {
            if piece.bytes.len() != self.part_length(offset) {
                return false;
            }
            self.parts.insert(offset, piece);
        }
        true
    }

    /// A part could not be read.
    pub(crate) fn read_failed(&mut self, offset: u64) {
        self.asking.remove(&offset);
    }

    /// The next part to send.
    pub(crate) fn next_part(&self) -> Option<(u64, &Piece)> {
        self.parts.get(&self.sent).map(|piece| (self.sent, piece))
    }

    pub(crate) fn part_sent(&mut self, now: Instant) {
        if let Some(piece) = self.parts.remove(&self.sent) {
            self.sent += piece.bytes.len() as u64;
            self.touched = now;
        }
    }

    /// The recipient says how far it is. `None`: further than there is anything.
    pub(crate) fn progress(&mut self, now: Instant, bytes: u64) -> Option<usize> {
        if bytes > self.size {
            return None;
        }
        let before = self.acked;
        if self.withdrawn {
            // Not what is waited for: the cancel makes it answer with a receipt.
            return Some(0);
        }
        match self.phase {
            // The answer to the head, or an older one, which makes some parts go twice.
            Phase::Probing => {
                self.acked = bytes;
                self.sent = bytes;
                self.asked = bytes;
                self.parts.clear();
                self.phase = Phase::Flowing;
            }
            Phase::Flowing => {
                self.acked = self.acked.max(bytes);
                if self.sent < self.acked {
                    // Parts of before the last start arrived after all.
                    self.parts.clear();
                    self.sent = self.acked;
                    self.asked = self.acked;
                }
            }
            Phase::Head { .. } => return Some(0),
        }
        if self.acked != before || self.acked == self.size {
            self.touched = now;
        }
        Some(usize::try_from(self.acked.saturating_sub(before)).unwrap_or(usize::MAX))
    }

    /// Since when an answer is awaited; `None` while none is.
    pub(crate) fn waiting_since(&self) -> Option<Instant> {
        let waits = match self.phase {
            Phase::Head { .. } => false,
            Phase::Probing => true,
            Phase::Flowing => self.sent > self.acked || self.acked == self.size,
        };
        waits.then_some(self.touched)
    }

    /// Everything arrived; only the receipt is missing, which waits for a disk.
    pub(crate) fn arrived(&self) -> bool {
        self.acked == self.size
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    const PART: u64 = SEGMENT_MAX as u64;

    fn now() -> Instant {
        Instant::from_micros(1)
    }

    fn part(length: usize) -> Piece {
        let bytes = vec![7; length].into();
        Piece { sum: 1, bytes }
    }

    fn send_all(transfer: &mut Transfer) -> u64 {
        let mut sent = 0;
        while let Some((_, piece)) = transfer.next_part() {
            sent += piece.bytes.len() as u64;
            transfer.part_sent(now());
        }
        sent
    }

    #[test]
    fn goes_in_order_within_its_allowance() {
        let mut transfer = Transfer::new(2 * PART + 10, now());
        assert!(transfer.needs_head());
        assert_eq!(transfer.next_read(usize::MAX), None);
        transfer.head_sent(now());
        assert_eq!(transfer.next_read(SEGMENT_MAX - 1), None);
        assert_eq!(
            transfer.next_read(SEGMENT_MAX),
            Some(Some((0, SEGMENT_MAX)))
        );
        assert_eq!(
            transfer.next_read(usize::MAX),
            Some(Some((PART, SEGMENT_MAX)))
        );
        assert_eq!(transfer.next_read(usize::MAX), Some(Some((2 * PART, 10))));
        assert_eq!(transfer.next_read(usize::MAX), None);
        assert_eq!(transfer.reserved(), 2 * SEGMENT_MAX + 10);
        assert!(transfer.read(PART, part(SEGMENT_MAX)));
        assert_eq!(transfer.next_part(), None);
        assert!(transfer.read(0, part(SEGMENT_MAX)));
        assert_eq!(send_all(&mut transfer), 2 * PART);
        assert!(!transfer.read(2 * PART, part(9)));
        assert_eq!(transfer.progress(now(), PART), Some(SEGMENT_MAX));
        assert_eq!(transfer.progress(now(), PART - 1), Some(0));
        assert_eq!(transfer.progress(now(), 3 * PART), None);
        assert_eq!(transfer.reserved(), SEGMENT_MAX + 10);
    }

    #[test]
    fn goes_on_after_a_loss_where_the_recipient_is() {
        let mut transfer = Transfer::new(3 * PART, now());
        transfer.head_sent(now());
        while transfer.next_read(usize::MAX).is_some() {}
        assert!(transfer.read(0, part(SEGMENT_MAX)));
        send_all(&mut transfer);
        assert!(transfer.waiting_since().is_some());
        transfer.restart();
        assert!(transfer.needs_head());
        assert_eq!(transfer.reserved(), 0);
        transfer.head_sent(now());
        assert_eq!(transfer.next_read(usize::MAX), None, "waits for the answer");
        assert_eq!(transfer.progress(now(), PART), Some(SEGMENT_MAX));
        // Both reads are still under way and are not asked for again.
        assert_eq!(transfer.next_read(usize::MAX), Some(None));
        assert!(transfer.read(PART, part(SEGMENT_MAX)));
        assert_eq!(transfer.next_part().map(|(offset, _)| offset), Some(PART));
        // The recipient lost what it had.
        transfer.restart();
        transfer.head_sent(now());
        assert_eq!(transfer.progress(now(), 0), Some(0));
        assert_eq!(transfer.next_read(usize::MAX), Some(Some((0, SEGMENT_MAX))));
    }

    #[test]
    fn a_withdrawn_one_sends_its_head_alone() {
        let mut transfer = Transfer::new(3 * PART, now());
        transfer.head_sent(now());
        transfer.withdraw();
        assert!(transfer.needs_head());
        transfer.head_sent(now());
        assert_eq!(transfer.progress(now(), 0), Some(0));
        assert_eq!(transfer.next_read(usize::MAX), None);
        assert!(transfer.waiting_since().is_some(), "until its receipt");
    }
}
