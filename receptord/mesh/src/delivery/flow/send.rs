//! One turn of a flow: what is sent now, in which order, as far as window and links have room.
//! Large payloads are read from the store on the way.
//!
//! Never decides that something is sent again.

use alloc::collections::VecDeque;

use receptor_proto::ErrorCode;
use receptor_proto::packet::{Piece, Priority, SEGMENT_MAX, Segment};

use super::{
    Class, ENVELOPE, Floors, Flow, Key, Pipe, Pumped, READ_AGAIN, READS, State, TRANSFERS, TURN,
    Why,
};
use crate::delivery::window::Window;
use crate::delivery::{choice, millis};
use crate::{Instant, Limits};

impl Flow {
    /// Sends what can be sent now, up to one turn.
    pub(crate) fn pump(&mut self, pipe: &mut Pipe<'_>) -> Pumped {
        if self.is_empty() {
            return Pumped::Idle;
        }
        if pipe.loopback.is_none() && self.path == 0 {
            self.path = pipe.net.path(pipe.recipient);
            if self.path == 0 {
                let pumped = self.pump_trusted(pipe);
                if pumped != Pumped::Idle {
                    return pumped;
                }
                let reachability = pipe.net.reachability(pipe.recipient);
                return Pumped::NoRoute(reachability.code().unwrap_or(ErrorCode::NoRoute));
            }
            self.unpark(pipe.now);
        }
        let mut budget = TURN;
        let mut blocked = false;
        for class in [Class::Small, Class::Bulk] {
            match self.pump_lane(class, &mut budget, pipe) {
                Pumped::Idle => {}
                Pumped::Blocked => blocked = true,
                ended @ (Pumped::More | Pumped::NoRoute(_)) => return ended,
            }
        }
        match self.pump_large(&mut budget, pipe) {
            Pumped::Idle if blocked => Pumped::Blocked,
            ended @ (Pumped::Idle | Pumped::More | Pumped::Blocked | Pumped::NoRoute(_)) => ended,
        }
    }

    fn pump_lane(&mut self, class: Class, budget: &mut usize, pipe: &mut Pipe<'_>) -> Pumped {
        let mut room = None;
        let mut floors = Floors::default();
        while let Some((key, requests)) = self.front(class) {
            let floor = floors.of(key, &self.outstanding, &self.held, &self.backlog);
            let Some(outgoing) = self.outstanding.get_mut(&key) else {
                return Pumped::Idle;
            };
            let cost = outgoing.cost();
            let (used, share) = match class {
                Class::Small => (self.small_bytes, small_share(&self.window, self.bulk_bytes)),
                Class::Bulk => (self.bulk_bytes, bulk_share(&self.window)),
            };
            if self.messages >= pipe.limits.flow_messages || used > 0 && used + cost > share {
                return Pumped::Idle;
            }
            if *budget < cost {
                return Pumped::More;
            }
            *budget -= cost;
            if outgoing.absent {
                if let Some(entry) = outgoing.entry {
                    let length = usize::try_from(outgoing.message.size).unwrap_or(SEGMENT_MAX);
                    outgoing.fetched = true;
                    pipe.fetch(entry, key, 0, length);
                }
                self.charge(class, key, requests, State::Fetching);
                continue;
            }
            let left = room.get_or_insert_with(|| pipe.room(class.priority()));
            if *left < cost {
                return Pumped::Blocked;
            }
            outgoing.message.floor = floor;
            if let Err(ended) = self.transmit(key, pipe) {
                return ended;
            }
            *left -= cost;
            self.charge(class, key, requests, State::InFlight);
            self.sent.push_back((pipe.now, key));
        }
        Pumped::Idle
    }

    /// Without a way: entrusts what is on this node's disk to the node nearest to the recipient,
    /// as much of it at once as may be under way.
    fn pump_trusted(&mut self, pipe: &mut Pipe<'_>) -> Pumped {
        if !self.entrusting || self.trusted.is_empty() {
            return Pumped::Idle;
        }
        let trustee = self
            .trustee
            .get_or_insert_with(|| pipe.net.custodian(pipe.recipient));
        let Some(trustee) = trustee.clone() else {
            return Pumped::Idle;
        };
        let mut budget = TURN;
        let mut floors = Floors::default();
        while self.messages < pipe.limits.flow_messages
            && let Some(key) = self.trusted.first().copied()
        {
            let floor = floors.of(key, &self.outstanding, &self.held, &self.backlog);
            let waits = self.outstanding.get_mut(&key);
            let Some(outgoing) = waits.filter(|outgoing| outgoing.may_be_entrusted()) else {
                self.trusted.remove(&key);
                continue;
            };
            let cost = outgoing.cost();
            let used = self.small_bytes + self.bulk_bytes;
            if used > 0 && used + cost > self.window.size() {
                return Pumped::Idle;
            }
            let Some(left) = budget.checked_sub(cost) else {
                return Pumped::More;
            };
            budget = left;
            if outgoing.absent {
                if let Some(entry) = outgoing.entry {
                    let length = usize::try_from(outgoing.message.size).unwrap_or(SEGMENT_MAX);
                    outgoing.fetched = true;
                    pipe.fetch(entry, key, 0, length);
                }
                self.trusted.remove(&key);
                self.occupy(key, State::Fetching);
                continue;
            }
            if pipe.net.room(&trustee, outgoing.class().priority()) < cost {
                return Pumped::Blocked;
            }
            outgoing.message.floor = floor;
            let remaining = outgoing.expires.since(pipe.now);
            outgoing.message.remaining_ms = if outgoing.moot { 0 } else { millis(remaining) };
            outgoing.open |= !outgoing.moot;
            if pipe.entrust(&trustee, &outgoing.message).is_err() {
                self.trustee = None;
                return Pumped::Idle;
            }
            self.used = true;
            self.trusted.remove(&key);
            outgoing.sent_at = pipe.now;
            // When its receipt comes says nothing of the way.
            outgoing.attempts = outgoing.attempts.max(1) + 1;
            outgoing.handed += 1;
            self.entrusted = Some(trustee.clone());
            self.occupy(key, State::InFlight);
            self.sent.push_back((pipe.now, key));
        }
        Pumped::Idle
    }

    /// Where the payload of a message is that goes to another recipient. Those that are asked for fill
    /// the window.
    pub(crate) fn body_for_moving(&mut self, key: Key, limits: &Limits) -> choice::Body {
        let Some(outgoing) = self.outstanding.get_mut(&key) else {
            return choice::Body::Later;
        };
        let (true, Some(entry)) = (outgoing.absent, outgoing.entry) else {
            return choice::Body::Here;
        };
        let used = self.small_bytes + self.bulk_bytes;
        let full = self.messages >= limits.flow_messages
            || used > 0 && used + outgoing.cost() > self.window.size();
        if full {
            return choice::Body::Later;
        }
        let length = usize::try_from(outgoing.message.size).unwrap_or(SEGMENT_MAX);
        outgoing.fetched = true;
        self.occupy(key, State::Fetching);
        choice::Body::Fetch { entry, length }
    }

    /// The first message of a lane that may be sent, and whether it is a request.
    fn front(&mut self, class: Class) -> Option<(Key, bool)> {
        let lane = match class {
            Class::Small => &mut self.small,
            Class::Bulk => &mut self.bulk,
        };
        let outstanding = &self.outstanding;
        let first = |queue: &mut VecDeque<Key>| {
            while let Some(key) = queue.front() {
                let waits = outstanding
                    .get(key)
                    .is_some_and(|outgoing| outgoing.state == State::Queued);
                if waits {
                    return Some(*key);
                }
                queue.pop_front();
            }
            None
        };
        let may_ask = self.requests < self.request_allowance && self.requests_held.is_none();
        let request = if may_ask {
            first(&mut lane.requests)
        } else {
            None
        };
        let other = first(&mut lane.others);
        match (request, other) {
            (Some(key), None) => Some((key, true)),
            (None, Some(key)) => Some((key, false)),
            (Some(request), Some(other)) => Some(if lane.requests_next {
                (request, true)
            } else {
                (other, false)
            }),
            (None, None) => None,
        }
    }

    /// Takes the first message out of its queue and charges the window.
    fn charge(&mut self, class: Class, key: Key, request: bool, state: State) {
        let lane = match class {
            Class::Small => &mut self.small,
            Class::Bulk => &mut self.bulk,
        };
        if request {
            lane.requests.pop_front();
        } else {
            lane.others.pop_front();
        }
        lane.requests_next = !request;
        self.occupy(key, state);
    }

    /// A message takes its part of the window.
    fn occupy(&mut self, key: Key, state: State) {
        let Some(outgoing) = self.outstanding.get_mut(&key) else {
            return;
        };
        outgoing.state = state;
        match outgoing.class() {
            Class::Small => self.small_bytes += outgoing.cost(),
            Class::Bulk => self.bulk_bytes += outgoing.cost(),
        }
        self.messages += 1;
        self.requests += usize::from(outgoing.is_request());
    }

    /// Sends a message, or the head of a large one.
    fn transmit(&mut self, key: Key, pipe: &mut Pipe<'_>) -> Result<(), Pumped> {
        let Some(outgoing) = self.outstanding.get_mut(&key) else {
            return Ok(());
        };
        let remaining = outgoing.expires.since(pipe.now);
        let over = outgoing.moot || outgoing.doubted;
        outgoing.open |= !over;
        outgoing.message.remaining_ms = if over { 0 } else { millis(remaining) };
        match pipe.message(&outgoing.message) {
            Ok(()) => {
                self.used = true;
                outgoing.sent_at = pipe.now;
                outgoing.attempts += 1;
                outgoing.handed += 1;
                if outgoing.attempts > 1 {
                    *pipe.retransmitted += 1;
                }
                Ok(())
            }
            Err(code) => Err(self.not_sent(code)),
        }
    }

    fn not_sent(&mut self, code: ErrorCode) -> Pumped {
        if code == ErrorCode::NoRoute || code == ErrorCode::NoSuchNode {
            self.path = 0;
            return Pumped::NoRoute(code);
        }
        Pumped::Blocked
    }

    fn pump_large(&mut self, budget: &mut usize, pipe: &mut Pipe<'_>) -> Pumped {
        while self.active.len() < TRANSFERS {
            let Some(key) = self.large.pop_front() else {
                break;
            };
            if let Some(outgoing) = self.outstanding.get_mut(&key)
                && outgoing.state == State::Queued
            {
                outgoing.state = State::Active;
                self.active.push_back(key);
            }
        }
        let mut blocked = false;
        for _ in 0..self.active.len() {
            let Some(key) = self.active.pop_front() else {
                break;
            };
            self.active.push_back(key);
            match self.pump_transfer(key, budget, pipe) {
                Pumped::Idle => {}
                Pumped::Blocked => blocked = true,
                ended @ (Pumped::More | Pumped::NoRoute(_)) => return ended,
            }
        }
        if blocked {
            Pumped::Blocked
        } else {
            Pumped::Idle
        }
    }

    fn pump_transfer(&mut self, key: Key, budget: &mut usize, pipe: &mut Pipe<'_>) -> Pumped {
        let floor = Floors::default().of(key, &self.outstanding, &self.held, &self.backlog);
        let Some(outgoing) = self.outstanding.get_mut(&key) else {
            return Pumped::Idle;
        };
        let (epoch, seq) = key;
        let (Some(entry), Some(transfer)) = (outgoing.entry, &outgoing.transfer) else {
            return Pumped::Idle;
        };
        if transfer.needs_head() {
            if pipe.room(Priority::Small) < ENVELOPE {
                return Pumped::Blocked;
            }
            outgoing.message.floor = floor;
            if let Err(ended) = self.transmit(key, pipe) {
                return ended;
            }
        }
        let Some(transfer) = self
            .outstanding
            .get_mut(&key)
            .and_then(|outgoing| outgoing.transfer.as_mut())
        else {
            return Pumped::Idle;
        };
        if transfer.needs_head() {
            transfer.head_sent(pipe.now);
        }
        loop {
            while let Some((offset, piece)) = transfer.next_part() {
                let cost = piece.bytes.len() + ENVELOPE;
                if *budget < cost {
                    return Pumped::More;
                }
                if pipe.room(Priority::Bulk) < cost {
                    return Pumped::Blocked;
                }
                let segment = Segment {
                    epoch,
                    seq,
                    offset,
                    piece: piece.clone(),
                };
                if let Err(code) = pipe.segment(segment) {
                    return self.not_sent(code);
                }
                *budget -= cost;
                transfer.part_sent(pipe.now);
            }
            // Whatever the window, one part may go.
            let share = bulk_share(&self.window).saturating_sub(self.bulk_bytes);
            let allowance = if self.bulk_bytes == 0 {
                share.max(SEGMENT_MAX)
            } else {
                share
            };
            let before = transfer.reserved();
            let Some(part) = transfer.next_read(allowance) else {
                return Pumped::Idle;
            };
            self.bulk_bytes += transfer.reserved() - before;
            if let Some((offset, length)) = part {
                pipe.fetch(entry, key, offset, length);
            }
        }
    }

    /// The store's answer to a fetch. `Err` when the message cannot be read any more.
    pub(crate) fn fetched(&mut self, key: Key, offset: u64, piece: Piece) -> Result<(), ()> {
        let Some(outgoing) = self.outstanding.get_mut(&key) else {
            return Ok(());
        };
        outgoing.failed_reads = 0;
        if let Some(transfer) = &mut outgoing.transfer {
            return if transfer.read(offset, piece) {
                Ok(())
            } else {
                Err(())
            };
        }
        if !outgoing.absent {
            return Ok(());
        }
        if piece.bytes.len() as u64 != outgoing.message.size {
            return Err(());
        }
        outgoing.absent = false;
        self.resident += piece.bytes.len();
        outgoing.message.body = piece.bytes;
        if outgoing.state == State::Fetching {
            self.take_out(key);
            self.queue(key, true);
        }
        Ok(())
    }

    /// The store could not read. True: that was once too often.
    pub(crate) fn fetch_failed(&mut self, now: Instant, key: Key, offset: u64) -> bool {
        let Some(outgoing) = self.outstanding.get_mut(&key) else {
            return false;
        };
        if let Some(transfer) = &mut outgoing.transfer {
            transfer.read_failed(offset);
        }
        match outgoing.state {
            State::Fetching | State::Active => {}
            State::Queued | State::Behind | State::InFlight | State::Delayed(..) => return false,
        }
        outgoing.failed_reads += 1;
        if outgoing.failed_reads >= READS {
            return true;
        }
        let wait = READ_AGAIN * (1 << (outgoing.failed_reads - 1));
        self.delay(key, now + wait, Why::Refused);
        false
    }
}

/// What bulk may fill: large payloads leave a quarter for everything else.
fn bulk_share(window: &Window) -> usize {
    window.size() / 4 * 3
}

/// What small messages may fill: all that bulk leaves, and a quarter in any case.
fn small_share(window: &Window, bulk: usize) -> usize {
    window.size().saturating_sub(bulk).max(window.size() / 4)
}
