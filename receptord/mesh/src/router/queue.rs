//! Packets waiting for one link, and the credit of both directions.
//!
//! Strict precedence between three classes. Control packets take no credit and have a small
//! room of their own; the others share [`crate::Limits::link_queue`], of which bulk must leave
//! an eighth to small ones. Likewise bulk leaves an eighth of the peer's credit, so that a small
//! message never waits for a grant behind a large one.
//!
//! **Credit.** A packet that came over a link keeps its sender's credit while it waits for
//! another, which is what slows a sender down to what is behind this node. But one slow or stuck
//! neighbor must not stop what goes elsewhere over the same link: one queue keeps at most a
//! quarter of a window, all queues together at most three quarters; what is beyond gives its
//! credit back at once and takes its chance with the queue's bound.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use receptor_proto::frame::{CREDIT_FLOOR, MAX_FRAME_FLOOR};
use receptor_proto::packet::{CONTROL_MAX, Packet, Priority, kind};

use crate::{Limits, LinkId};

/// Bytes of control packets waiting for one link: what 16 full receipts take.
pub(super) const CONTROL_QUEUE: usize = 16 * CONTROL_MAX;
/// The least [`Limits::link_queue`] that is used: less could not hold a full frame in each share.
pub(super) const QUEUE_FLOOR: usize = 16 * MAX_FRAME_FLOOR;

const CLASSES: usize = Priority::ALL.len();

/// A packet that waits.
#[derive(Debug)]
pub(super) struct Queued {
    pub(super) packet: Packet,
    /// Of the packet in a frame, in bytes.
    pub(super) size: usize,
    /// The link it came over, whose credit it keeps.
    pub(super) keeps: Option<LinkId>,
}

/// Packets waiting for one link, and its credit.
#[derive(Debug)]
pub(super) struct Queue {
    classes: [VecDeque<Queued>; CLASSES],
    bytes: [usize; CLASSES],
    limit: usize,
    /// Bytes here that keep credit of other links.
    kept: u64,
    /// Whether delivery may be waiting for room here.
    tight: bool,

    /// Bytes that the peer has granted, and that were sent, since the link came up.
    granted: u64,
    sent: u64,
    /// What bulk leaves of the peer's credit.
    reserve: u64,

    /// Bytes that came over this link, that were granted for it and that are through.
    window: u64,
    received: u64,
    given: u64,
    released: u64,
    /// Bytes that came over this link and wait in some queue with their credit.
    waiting: u64,
}

/// The class that counts for a packet, whatever it says of itself.
pub(super) fn class(packet: &Packet, size: usize) -> Priority {
    match packet.priority {
        Priority::Control
            if size > CONTROL_MAX
                || matches!(
                    kind::plain(packet.kind),
                    kind::MESSAGE | kind::SEGMENT | kind::KEPT | kind::ENTRUSTED
                ) =>
        {
            Priority::Bulk
        }
        Priority::Control | Priority::Small | Priority::Bulk => packet.priority,
    }
}

impl Queue {
    pub(super) fn new(limits: &Limits) -> Self {
        let window = limits.link_credit.max(CREDIT_FLOOR);
        Self {
            classes: Default::default(),
            bytes: [0; CLASSES],
            limit: limits.link_queue.max(QUEUE_FLOOR),
            kept: 0,
            tight: false,
            granted: 0,
            sent: 0,
            reserve: 0,
            window,
            received: 0,
            given: window,
            released: 0,
            waiting: 0,
        }
    }

    /// The credit for the hello.
    pub(super) fn window(&self) -> u64 {
        self.window
    }

    /// Bytes waiting, by class.
    pub(super) fn bytes(&self) -> [usize; CLASSES] {
        self.bytes
    }

    fn data(&self) -> usize {
        self.bytes[Priority::Small as usize] + self.bytes[Priority::Bulk as usize]
    }

    /// Bytes that the class still takes of what others send.
    fn space(&self, class: Priority) -> usize {
        match class {
            Priority::Control => CONTROL_QUEUE.saturating_sub(self.bytes[class as usize]),
            Priority::Small => self.limit.saturating_sub(self.data()),
            Priority::Bulk => (self.limit - self.limit / 8).saturating_sub(self.data()),
        }
    }

    /// Bytes that the class still takes of what this node itself sends: a quarter of the queue
    /// keeps a link busy, and the rest is for those who cannot see how full it is.
    pub(super) fn room(&self, class: Priority) -> usize {
        let own = match class {
            Priority::Control => usize::MAX,
            Priority::Small | Priority::Bulk => {
                (self.limit / 4).saturating_sub(self.bytes[class as usize])
            }
        };
        own.min(self.space(class))
    }

    /// Takes a packet, or gives it back when it finds no room.
    pub(super) fn push(&mut self, queued: Queued) -> Result<(), Queued> {
        let class = queued.packet.priority;
        if queued.size > self.space(class) {
            return Err(queued);
        }
        if queued.keeps.is_some() {
            self.kept += queued.size as u64;
        }
        self.bytes[class as usize] += queued.size;
        self.tight |= self.room(class) < 2 * MAX_FRAME_FLOOR;
        self.classes[class as usize].push_back(queued);
        Ok(())
    }

    /// The next control packet.
    pub(super) fn pop_control(&mut self) -> Option<Queued> {
        self.pop(Priority::Control)
    }

    /// The next other packet that the peer's credit allows.
    pub(super) fn pop_data(&mut self) -> Option<Queued> {
        let credit = self.granted.saturating_sub(self.sent);
        let (class, size, left) = if let Some(small) = self.front(Priority::Small) {
            (Priority::Small, small, 0)
        } else {
            (Priority::Bulk, self.front(Priority::Bulk)?, self.reserve)
        };
        if credit < size as u64 + left {
            return None;
        }
        self.sent += size as u64;
        self.pop(class)
    }

    fn front(&self, class: Priority) -> Option<usize> {
        self.classes[class as usize]
            .front()
            .map(|queued| queued.size)
    }

    fn pop(&mut self, class: Priority) -> Option<Queued> {
        let queued = self.classes[class as usize].pop_front()?;
        self.bytes[class as usize] -= queued.size;
        if queued.keeps.is_some() {
            self.kept -= queued.size as u64;
        }
        Some(queued)
    }

    /// Whether delivery, having found little room, should look again: the queue has drained to
    /// half of what this node itself may fill. Said once.
    pub(super) fn eased(&mut self) -> bool {
        let mark = self.limit / 8;
        let low = |class: Priority| self.bytes[class as usize] <= mark;
        let space = self.space(Priority::Bulk) >= mark;
        if self.tight && low(Priority::Small) && low(Priority::Bulk) && space {
            self.tight = false;
            return true;
        }
        false
    }

    /// Delivery found less room than it wanted.
    pub(super) fn set_tight(&mut self) {
        self.tight = true;
    }

    /// Everything, in order of precedence.
    pub(super) fn take_all(&mut self) -> Vec<Queued> {
        self.bytes = [0; CLASSES];
        self.kept = 0;
        self.classes.iter_mut().flat_map(core::mem::take).collect()
    }

    // Sending.

    /// The credit of the peer's hello.
    pub(super) fn open(&mut self, credit: u64) {
        self.granted = credit;
        self.reserve = credit / 8;
    }

    /// The peer granted this much in all.
    pub(super) fn grant(&mut self, total: u64) {
        self.granted = self.granted.max(total);
    }

    // Receiving.

    /// Counts a packet that came; false when the peer had no credit for it.
    pub(super) fn receive(&mut self, size: usize) -> bool {
        self.received += size as u64;
        self.received <= self.given
    }

    /// Counts a packet that is through.
    pub(super) fn release(&mut self, size: usize) {
        self.released += size as u64;
    }

    /// Whether a packet of this link may keep its credit while it waits in a queue that already
    /// keeps `kept`.
    pub(super) fn may_wait(&self, size: usize, kept: u64) -> bool {
        let size = size as u64;
        kept + size <= self.window / 4 && self.waiting + size <= self.window / 4 * 3
    }

    pub(super) fn kept(&self) -> u64 {
        self.kept
    }

    /// A packet of this link keeps its credit from now on.
    pub(super) fn wait(&mut self, size: usize) {
        self.waiting += size as u64;
    }

    /// A packet of this link does not wait any more.
    pub(super) fn waited(&mut self, size: usize) {
        self.waiting -= size as u64;
        self.release(size);
    }

    /// The total to grant now, when it is worth a frame: a quarter of the window more.
    pub(super) fn next_grant(&mut self) -> Option<u64> {
        let total = self.released + self.window;
        if total - self.given < self.window / 4 {
            return None;
        }
        self.given = total;
        Some(total)
    }

    /// Whether [`Self::next_grant`] has one.
    pub(super) fn owes_grant(&self) -> bool {
        self.released + self.window - self.given >= self.window / 4
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use receptor_proto::NodeId;

    fn queued(priority: Priority, size: usize) -> Queued {
        let packet = Packet {
            hop_limit: 1,
            hops: 0,
            priority,
            source: NodeId::new("a").unwrap(),
            destination: NodeId::new("b").unwrap(),
            kind: kind::SEGMENT,
            body: Bytes::new(),
        };
        Queued {
            packet,
            size,
            keeps: None,
        }
    }

    fn queue() -> Queue {
        let limits = Limits {
            link_queue: QUEUE_FLOOR,
            link_credit: CREDIT_FLOOR,
            ..Limits::default()
        };
        Queue::new(&limits)
    }

    #[test]
    fn small_goes_before_bulk_and_finds_room_and_credit_behind_it() {
        let mut queue = queue();
        queue.open(CREDIT_FLOOR);
        let mut bulk = 0;
        while queue.push(queued(Priority::Bulk, 60_000)).is_ok() {
            bulk += 60_000;
        }
        assert!(bulk <= QUEUE_FLOOR - QUEUE_FLOOR / 8);
        let mut sent = 0;
        while let Some(packet) = queue.pop_data() {
            assert_eq!(packet.packet.priority, Priority::Bulk);
            sent += packet.size;
        }
        assert!(sent > 0);
        assert!(queue.push(queued(Priority::Small, 4000)).is_ok());
        let next = queue.pop_data().unwrap();
        assert_eq!(next.packet.priority, Priority::Small);
        queue.grant(2 * CREDIT_FLOOR);
        assert_eq!(queue.pop_data().unwrap().packet.priority, Priority::Bulk);
    }

    #[test]
    fn the_peer_may_send_what_was_granted_and_no_more() {
        let mut queue = queue();
        let half = usize::try_from(CREDIT_FLOOR / 2).unwrap();
        assert!(queue.receive(half));
        assert_eq!(queue.next_grant(), None);
        queue.release(half);
        assert_eq!(queue.next_grant(), Some(CREDIT_FLOOR * 3 / 2));
        assert_eq!(queue.next_grant(), None);
        assert!(queue.receive(half) && queue.receive(half));
        assert!(!queue.receive(1));
    }

    #[test]
    fn a_stuck_neighbor_keeps_a_quarter_of_a_window() {
        let mut queue = queue();
        let quarter = usize::try_from(CREDIT_FLOOR / 4).unwrap();
        assert!(queue.may_wait(quarter, 0));
        assert!(!queue.may_wait(quarter, 1));
        for _ in 0..3 {
            assert!(queue.may_wait(quarter, 0));
            queue.wait(quarter);
        }
        assert!(!queue.may_wait(1, 0));
        queue.waited(quarter);
        assert!(queue.may_wait(1, 0));
    }

    #[test]
    fn room_is_announced_once_after_it_was_short() {
        let mut queue = queue();
        queue.open(u64::MAX / 2);
        assert!(!queue.eased());
        while queue.room(Priority::Bulk) >= 60_000 {
            queue.push(queued(Priority::Bulk, 60_000)).unwrap();
        }
        assert!(!queue.eased());
        while queue.pop_data().is_some() {}
        assert!(queue.eased());
        assert!(!queue.eased());
    }

    #[test]
    fn who_claims_precedence_for_a_message_does_not_get_it() {
        let mut packet = queued(Priority::Control, 100).packet;
        assert_eq!(class(&packet, 100), Priority::Bulk);
        packet.kind = kind::RECEIPT;
        assert_eq!(class(&packet, 100), Priority::Control);
        assert_eq!(class(&packet, CONTROL_MAX + 1), Priority::Bulk);
    }
}
