//! What this node has to say to one recipient: every message without a receipt, and when it is
//! sent, again or at all.
//!
//! Messages carry a sequence number of their own to this recipient and the epoch of this node's
//! start; those of earlier starts keep theirs. What is sent fills the [`Window`]; small messages
//! go before large ones and large ones leave a part of the window free, so that a large payload
//! never delays a small request. A message without a receipt is sent again when its time runs
//! out, or at once when the way changes, except requests that may arrive at most once. Responses
//! that may are sent again all the same: their reader recognises repeats by their serial.
//!
//! Never decides what becomes of a message that was given up, never writes to the store, and
//! with no way to the recipient keeps no timer but those of expiry.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;
use core::time::Duration;

use bytes::Bytes;
use receptor_proto::ErrorCode;
use receptor_proto::NodeId;
use receptor_proto::packet::{Body, Message, MessageKind, Packet, Priority, Receipt, Segment};
use receptor_proto::packet::{SEGMENT_MAX, SMALL_MAX};

use super::deadlines::Deadlines;
use super::transfer::Transfer;
use super::window::{Patience, Window};
use super::{RemoteId, millis};
use crate::wiring::Net;
use crate::{EntryId, Instant, Limits, Output};

/// What an envelope takes of a window or queue beside its payload, in bytes.
pub(crate) const ENVELOPE: usize = 256;
/// Large payloads under way at once to one recipient; more would only share the same window.
const TRANSFERS: usize = 4;
/// What one flow sends before the next has its turn, in bytes.
const TURN: usize = 128 * 1024;
/// How long a request that may arrive at most once waits for its receipt.
const VOLATILE_PATIENCE: Duration = Duration::from_secs(1);
/// The same in retransmission times, where those are long.
const VOLATILE_ROUNDS: u32 = 4;
/// How long what may be lost waits for a way to come back.
pub(crate) const VOLATILE_GRACE: Duration = Duration::from_secs(10);
/// The longest wait after a refusal, of a response or large payload.
const REFUSED_MOST: Duration = Duration::from_secs(30);
/// The longest wait of all requests together: a recipient with room again says so, but that may
/// get lost.
const HELD_MOST: Duration = Duration::from_secs(2);
/// The longest wait after a notice that a packet found no way: the notice came back, so that
/// asking again costs little, and a leaf has no other way to learn of a new route.
const NO_WAY_MOST: Duration = Duration::from_secs(2);
/// How long a node that dropped a packet for lack of room is left alone.
const CONGESTED: Duration = Duration::from_millis(20);

/// How often a read of the store may fail before the message counts as unreadable.
const READS: u32 = 5;
/// How long after the first failed read the next is tried; twice that after the second, and on.
const READ_AGAIN: Duration = Duration::from_secs(1);

/// Epoch and sequence number: names a message of one flow.
pub(crate) type Key = (u64, u64);

/// A message without a receipt.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) message: Message,
    /// Where it is, or is being, stored; `None` when it never is.
    pub(crate) entry: Option<EntryId>,
    /// When it is worth nothing any more.
    pub(crate) expires: Instant,
    /// It is known to be on the disk.
    pub(crate) stored: bool,
    /// A cancel of a request that has arrived: there is nothing to remember it for.
    pub(crate) moot: bool,
    /// It stands for responses that were given up; when it is, nothing takes its place.
    pub(crate) last_word: bool,
    /// The body is in the store only.
    absent: bool,
    /// The store was asked for it.
    fetched: bool,
    /// Reads that failed since one did not.
    failed_reads: u32,
    state: State,
    attempts: u32,
    refusals: u32,
    sent_at: Instant,
    transfer: Option<Box<Transfer>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// In a queue.
    Queued,
    /// The store was asked for its body.
    Fetching,
    /// Sent; fills the window.
    InFlight,
    /// One of the active transfers.
    Active,
    /// In `delayed`.
    Delayed(Instant, Why),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    /// The recipient has no room: only time helps.
    Refused,
    /// Something on the way failed: another way helps.
    Lost,
    /// It must not be sent again, and this is its last chance of a receipt.
    Doomed,
}

impl Outgoing {
    pub(crate) fn new(message: Message, entry: Option<EntryId>, expires: Instant) -> Self {
        Self {
            message,
            entry,
            expires,
            stored: false,
            moot: false,
            last_word: false,
            absent: false,
            fetched: false,
            failed_reads: 0,
            state: State::Queued,
            attempts: 0,
            refusals: 0,
            sent_at: Instant::default(),
            transfer: None,
        }
    }

    pub(crate) fn key(&self) -> Key {
        (self.message.epoch, self.message.seq)
    }

    /// Whether it left this node, as far as this start of it knows.
    pub(crate) fn was_sent(&self) -> bool {
        self.attempts > 0
    }

    /// Whether the store was ever asked for its payload.
    pub(crate) fn was_fetched(&self) -> bool {
        self.fetched || self.transfer.is_some()
    }

    /// A request that may arrive at most once must not be sent a second time: the recipient
    /// remembers it until it restarts and no longer.
    fn once(&self) -> bool {
        self.message.volatile && self.is_request()
    }

    fn is_request(&self) -> bool {
        matches!(self.message.kind, MessageKind::Request { .. })
    }

    fn is_large(&self) -> bool {
        self.message.is_segmented()
    }

    fn class(&self) -> Class {
        if self.message.size <= SMALL_MAX as u64 || self.is_large() {
            Class::Small
        } else {
            Class::Bulk
        }
    }

    /// What it takes of the window and of a queue.
    fn cost(&self) -> usize {
        if self.is_large() {
            return ENVELOPE;
        }
        ENVELOPE + usize::try_from(self.message.size).unwrap_or(SEGMENT_MAX)
    }
}

/// A message that will not be sent again.
#[derive(Debug)]
pub(crate) struct GivenUp {
    pub(crate) outgoing: Box<Outgoing>,
    pub(crate) code: ErrorCode,
}

/// Which queue a message waits in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Small,
    Bulk,
}

impl Class {
    fn priority(self) -> Priority {
        match self {
            Self::Small => Priority::Small,
            Self::Bulk => Priority::Bulk,
        }
    }
}

/// Messages of one class: requests apart, because a recipient can be full of requests alone.
#[derive(Debug, Default)]
struct Lane {
    requests: VecDeque<Key>,
    others: VecDeque<Key>,
    /// Whose turn it is when both wait.
    requests_next: bool,
}

/// How pumping ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Pumped {
    /// Nothing more can be sent until something happens to this flow.
    Idle,
    /// Others have their turn.
    More,
    /// The queue on the way is full.
    Blocked,
    /// There is no way.
    NoRoute(ErrorCode),
}

/// Where a flow's packets go.
pub(crate) struct Pipe<'a> {
    pub(crate) now: Instant,
    pub(crate) net: &'a mut dyn Net,
    pub(crate) own: &'a NodeId,
    pub(crate) recipient: &'a NodeId,
    pub(crate) hop_limit: u8,
    pub(crate) remote: RemoteId,
    /// Whose payloads the store is asked for.
    pub(crate) sources: &'a mut BTreeMap<EntryId, (RemoteId, Key)>,
    /// Set when the recipient is this node.
    pub(crate) loopback: Option<&'a mut VecDeque<Body>>,
    pub(crate) out: &'a mut VecDeque<Output>,
    pub(crate) retransmitted: &'a mut u64,
    pub(crate) limits: &'a Limits,
}

impl Pipe<'_> {
    fn room(&self, priority: Priority) -> usize {
        if self.loopback.is_some() {
            return usize::MAX;
        }
        self.net.room(self.recipient, priority)
    }

    fn fetch(&mut self, entry: EntryId, key: Key, offset: u64, length: usize) {
        self.sources.insert(entry, (self.remote, key));
        self.out.push_back(Output::Fetch {
            entry,
            offset,
            length,
        });
    }

    fn message(&mut self, message: &Message) -> Result<(), ErrorCode> {
        if let Some(loopback) = &mut self.loopback {
            loopback.push_back(Body::Message(message.clone()));
            return Ok(());
        }
        let packet = Packet::with_message(
            self.own.clone(),
            self.recipient.clone(),
            self.hop_limit,
            message,
        );
        self.net.send(self.now, packet)
    }

    fn segment(&mut self, segment: Segment) -> Result<(), ErrorCode> {
        let body = Body::Segment(segment);
        if let Some(loopback) = &mut self.loopback {
            loopback.push_back(body);
            return Ok(());
        }
        let packet = Packet::new(
            self.own.clone(),
            self.recipient.clone(),
            self.hop_limit,
            &body,
        );
        self.net.send(self.now, packet)
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Flow {
    outstanding: BTreeMap<Key, Box<Outgoing>>,
    /// Numbers below which the floor stays though they are not outstanding any more.
    held: BTreeSet<Key>,
    next_seq: u64,
    /// Something left this node, so that the recipient may remember its number.
    used: bool,
    small: Lane,
    bulk: Lane,
    /// Large messages that wait for their turn to become active.
    large: VecDeque<Key>,
    active: VecDeque<Key>,
    delayed: BTreeSet<(Instant, Key)>,
    /// What was sent, in order; stale when the message was sent again or is gone.
    sent: VecDeque<(Instant, Key)>,
    expiry: Deadlines<Key>,
    window: Window,
    patience: Patience,
    /// In flight, by class; parts of large payloads are bulk.
    small_bytes: usize,
    bulk_bytes: usize,
    messages: usize,
    requests: usize,
    /// The most requests in flight, while the recipient refuses some.
    request_allowance: usize,
    /// No requests until then.
    requests_held: Option<Instant>,
    /// How often in a row they were held.
    requests_refused: u32,
    /// Bodies in memory, in bytes.
    resident: usize,
    /// [`Net::path`] as it was last seen; 0: there is no way.
    path: u64,
    /// There is no way.
    parked: bool,
    /// When a notice last counted that there was no way.
    turned_back: Option<Instant>,
    /// Without a way until then, what may be lost is.
    grace: Option<Instant>,
}

/// What [`Flow::timeout`] found.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Due {
    /// There may be something to send.
    pub(crate) ready: bool,
    /// There was no way for so long that what may be lost is.
    pub(crate) lost_touch: bool,
}

impl Flow {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            outstanding: BTreeMap::new(),
            held: BTreeSet::new(),
            next_seq: 1,
            used: false,
            small: Lane::default(),
            bulk: Lane::default(),
            large: VecDeque::new(),
            active: VecDeque::new(),
            delayed: BTreeSet::new(),
            sent: VecDeque::new(),
            expiry: Deadlines::default(),
            window: Window::new(limits.flow_window),
            patience: Patience::default(),
            small_bytes: 0,
            bulk_bytes: 0,
            messages: 0,
            requests: 0,
            request_allowance: usize::MAX,
            requests_held: None,
            requests_refused: 0,
            resident: 0,
            path: 0,
            parked: false,
            turned_back: None,
            grace: None,
        }
    }

    /// Messages without a receipt.
    pub(crate) fn outstanding(&self) -> usize {
        self.outstanding.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.outstanding.is_empty()
    }

    /// Whether nobody would notice if the flow began anew.
    pub(crate) fn is_unused(&self) -> bool {
        !self.used && self.outstanding.is_empty() && self.grace.is_none()
    }

    pub(crate) fn get(&self, key: Key) -> Option<&Outgoing> {
        self.outstanding.get(&key).map(|outgoing| &**outgoing)
    }

    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut Outgoing> {
        self.outstanding
            .get_mut(&key)
            .map(|outgoing| &mut **outgoing)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Outgoing> {
        self.outstanding.values().map(|outgoing| &**outgoing)
    }

    /// The next sequence number of this epoch.
    pub(crate) fn next_seq(&mut self) -> u64 {
        let seq = self.next_seq;
        self.next_seq += 1;
        seq
    }

    /// Never gives out this number or one below it.
    pub(crate) fn skip(&mut self, seq: u64) {
        self.next_seq = self.next_seq.max(seq.saturating_add(1));
    }

    /// Takes a message to send.
    pub(crate) fn push(&mut self, outgoing: Outgoing, now: Instant, limits: &Limits) -> Key {
        let key = outgoing.key();
        let mut outgoing = Box::new(outgoing);
        if outgoing.is_large() {
            outgoing.transfer = Some(Box::new(Transfer::new(outgoing.message.size, now)));
        }
        self.resident += outgoing.message.body.len();
        self.expiry.push(outgoing.expires, key);
        if self.parked && outgoing.message.volatile {
            self.grace.get_or_insert(now + VOLATILE_GRACE);
        }
        self.outstanding.insert(key, outgoing);
        self.queue(key, false);
        self.drop_body(key, limits);
        key
    }

    /// The message is on the disk.
    pub(crate) fn stored(&mut self, key: Key, limits: &Limits) {
        if let Some(outgoing) = self.outstanding.get_mut(&key) {
            outgoing.stored = true;
            self.drop_body(key, limits);
        }
    }

    /// Keeps in memory about as much of what waits as may be in flight.
    fn drop_body(&mut self, key: Key, limits: &Limits) {
        let Some(outgoing) = self.outstanding.get_mut(&key) else {
            return;
        };
        let size = outgoing.message.body.len();
        if size > 0
            && outgoing.stored
            && outgoing.state == State::Queued
            && self.resident > limits.flow_window
        {
            self.resident -= size;
            outgoing.message.body = Bytes::new();
            outgoing.absent = true;
        }
    }

    /// Puts a message into its queue; `first` when it was there before.
    fn queue(&mut self, key: Key, first: bool) {
        let Some(outgoing) = self.outstanding.get_mut(&key) else {
            return;
        };
        outgoing.state = State::Queued;
        let queue = if outgoing.is_large() {
            &mut self.large
        } else {
            let lane = match outgoing.class() {
                Class::Small => &mut self.small,
                Class::Bulk => &mut self.bulk,
            };
            if outgoing.is_request() {
                &mut lane.requests
            } else {
                &mut lane.others
            }
        };
        if first {
            queue.push_front(key);
        } else {
            queue.push_back(key);
        }
    }

    /// Takes a message out of whatever it is in, so that it can be put elsewhere. Queues and
    /// `sent` are left to find out for themselves.
    fn take_out(&mut self, key: Key) {
        let Some(outgoing) = self.outstanding.get_mut(&key) else {
            return;
        };
        match outgoing.state {
            State::Queued => {}
            State::Fetching | State::InFlight => {
                let cost = outgoing.cost();
                match outgoing.class() {
                    Class::Small => self.small_bytes -= cost,
                    Class::Bulk => self.bulk_bytes -= cost,
                }
                self.messages -= 1;
                self.requests -= usize::from(outgoing.is_request());
            }
            State::Active => {
                if let Some(transfer) = &mut outgoing.transfer {
                    self.bulk_bytes -= transfer.reserved();
                    transfer.restart();
                }
                self.active.retain(|active| *active != key);
            }
            State::Delayed(until, _) => {
                self.delayed.remove(&(until, key));
            }
        }
    }

    /// Forgets a message.
    pub(crate) fn remove(&mut self, key: Key) -> Option<Box<Outgoing>> {
        self.take_out(key);
        let outgoing = self.outstanding.remove(&key)?;
        self.resident -= outgoing.message.body.len();
        if self.outstanding.is_empty() {
            self.clear();
        } else {
            let outstanding = &self.outstanding;
            self.expiry
                .tidy(outstanding.len(), |key, _| outstanding.contains_key(&key));
        }
        Some(outgoing)
    }

    /// Keeps the floor at a message that was given up, until [`Self::release`]: should a restart
    /// bring the message back, its number must not pass for one that was received.
    pub(crate) fn hold(&mut self, key: Key) {
        self.held.insert(key);
    }

    pub(crate) fn release(&mut self, key: Key) {
        self.held.remove(&key);
    }

    /// Nothing is left: neither are the queues' stale keys.
    fn clear(&mut self) {
        for lane in [&mut self.small, &mut self.bulk] {
            lane.requests.clear();
            lane.others.clear();
        }
        self.large.clear();
        self.sent.clear();
        self.expiry = Deadlines::default();
    }

    fn delay(&mut self, key: Key, until: Instant, why: Why) {
        self.take_out(key);
        if let Some(outgoing) = self.outstanding.get_mut(&key) {
            outgoing.state = State::Delayed(until, why);
            self.delayed.insert((until, key));
        }
    }

    /// The request was cancelled: of a large payload nothing more is sent than its head, until
    /// the recipient, who gets the cancel too, answers it.
    pub(crate) fn withdraw_payload(&mut self, key: Key) {
        let Some(outgoing) = self.outstanding.get_mut(&key) else {
            return;
        };
        if let Some(transfer) = &mut outgoing.transfer {
            if outgoing.state == State::Active {
                self.bulk_bytes -= transfer.reserved();
            }
            transfer.withdraw();
        }
    }

    /// Sends what can be sent now, up to one turn.
    pub(crate) fn pump(&mut self, pipe: &mut Pipe<'_>) -> Pumped {
        if self.outstanding.is_empty() {
            return Pumped::Idle;
        }
        if pipe.loopback.is_none() && self.path == 0 {
            self.path = pipe.net.path(pipe.recipient);
            if self.path == 0 {
                let reachability = pipe.net.reachability(pipe.recipient);
                return Pumped::NoRoute(reachability.code().unwrap_or(ErrorCode::NoRoute));
            }
            self.parked = false;
            self.grace = None;
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
            let floor = floors.of(key, &self.outstanding, &self.held);
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
        let Some(outgoing) = self.outstanding.get_mut(&key) else {
            return;
        };
        outgoing.state = state;
        match class {
            Class::Small => self.small_bytes += outgoing.cost(),
            Class::Bulk => self.bulk_bytes += outgoing.cost(),
        }
        self.messages += 1;
        self.requests += usize::from(request);
    }

    /// Sends a message, or the head of a large one.
    fn transmit(&mut self, key: Key, pipe: &mut Pipe<'_>) -> Result<(), Pumped> {
        let Some(outgoing) = self.outstanding.get_mut(&key) else {
            return Ok(());
        };
        let remaining = outgoing.expires.since(pipe.now);
        outgoing.message.remaining_ms = if outgoing.moot { 0 } else { millis(remaining) };
        match pipe.message(&outgoing.message) {
            Ok(()) => {
                self.used = true;
                outgoing.sent_at = pipe.now;
                outgoing.attempts += 1;
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
        let floor = Floors::default().of(key, &self.outstanding, &self.held);
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
            while let Some((offset, bytes)) = transfer.next_part() {
                let cost = bytes.len() + ENVELOPE;
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
                    bytes: bytes.clone(),
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
    pub(crate) fn fetched(&mut self, key: Key, offset: u64, bytes: Bytes) -> Result<(), ()> {
        let Some(outgoing) = self.outstanding.get_mut(&key) else {
            return Ok(());
        };
        outgoing.failed_reads = 0;
        if let Some(transfer) = &mut outgoing.transfer {
            return if transfer.read(offset, bytes) {
                Ok(())
            } else {
                Err(())
            };
        }
        if !outgoing.absent {
            return Ok(());
        }
        if bytes.len() as u64 != outgoing.message.size {
            return Err(());
        }
        outgoing.absent = false;
        self.resident += bytes.len();
        outgoing.message.body = bytes;
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
            State::Queued | State::InFlight | State::Delayed(..) => return false,
        }
        outgoing.failed_reads += 1;
        if outgoing.failed_reads >= READS {
            return true;
        }
        let wait = READ_AGAIN * (1 << (outgoing.failed_reads - 1));
        self.delay(key, now + wait, Why::Refused);
        false
    }

    /// Something came from the recipient. True: the timer may have to ring earlier.
    pub(crate) fn heard(&mut self) -> bool {
        self.patience.calm()
    }

    /// What the recipient says it has. Appends to `done` what is no longer outstanding; gives
    /// back how many of its statements make no sense.
    pub(crate) fn receipt(
        &mut self,
        now: Instant,
        receipt: &Receipt,
        current: u64,
        done: &mut Vec<Outgoing>,
    ) -> u64 {
        let epoch = receipt.epoch;
        let before = done.len();
        let mut mistakes = 0;
        let mut sample = None;
        for &(first, last) in &receipt.received {
            let mut from = first;
            while let Some((&key, outgoing)) =
                self.outstanding.range((epoch, from)..=(epoch, last)).next()
            {
                if !outgoing.was_sent() && epoch == current {
                    mistakes += 1;
                    break;
                }
                if outgoing.attempts == 1 && outgoing.transfer.is_none() {
                    sample = sample.max(Some(outgoing.sent_at));
                }
                let request = outgoing.is_request();
                let bytes = match outgoing.state {
                    State::InFlight => outgoing.cost(),
                    State::Active | State::Queued | State::Fetching | State::Delayed(..) => 0,
                };
                self.window.grow(bytes);
                self.patience.reset();
                if request {
                    self.request_allowance = self.request_allowance.saturating_mul(2);
                    self.requests_refused = 0;
                }
                done.extend(self.remove(key).map(|outgoing| *outgoing));
                let Some(next) = key.1.checked_add(1) else {
                    break;
                };
                from = next;
                if from > last {
                    break;
                }
            }
        }
        if let Some(sent_at) = sample {
            self.patience.measure(now.since(sent_at));
        } else if done.len() > before {
            // The way carries again: what else was lost on it need not wait as long as it did.
            self.patience.reset();
        }
        for &(seq, bytes) in &receipt.progress {
            mistakes += self.progress(now, (epoch, seq), bytes);
        }
        // Backwards, so that what goes back to its queue is in order there.
        for &(seq, ms) in receipt.busy.iter().rev() {
            self.refused(now, (epoch, seq), ms);
        }
        mistakes
    }

    fn progress(&mut self, now: Instant, key: Key, bytes: u64) -> u64 {
        let Some(outgoing) = self.outstanding.get_mut(&key) else {
            return 0;
        };
        let Some(transfer) = &mut outgoing.transfer else {
            return 1;
        };
        let before = transfer.reserved();
        let Some(acked) = transfer.progress(now, bytes) else {
            return 1;
        };
        if outgoing.state == State::Active {
            self.bulk_bytes = self.bulk_bytes + transfer.reserved() - before;
        }
        if acked > 0 {
            outgoing.refusals = 0;
            self.patience.reset();
            self.window.grow(acked);
        }
        0
    }

    fn refused(&mut self, now: Instant, key: Key, ms: u64) {
        if ms == 0 {
            self.wanted_again(key);
            return;
        }
        let Some(outgoing) = self.outstanding.get_mut(&key) else {
            return;
        };
        match outgoing.state {
            State::InFlight | State::Active | State::Delayed(_, Why::Lost | Why::Doomed) => {}
            State::Queued | State::Fetching | State::Delayed(_, Why::Refused) => return,
        }
        let asked = Duration::from_millis(ms).min(REFUSED_MOST);
        if outgoing.is_request() && !outgoing.is_large() {
            // The recipient is full, and others would be refused as well. Try one at a time
            // after the pause, and double while they are taken.
            if self.requests_held.is_none() {
                let wait = asked.saturating_mul(1 << self.requests_refused.min(8));
                self.requests_held = Some(now + wait.min(HELD_MOST));
                self.requests_refused += 1;
            }
            self.request_allowance = 1;
            self.take_out(key);
            self.queue(key, true);
            return;
        }
        outgoing.refusals += 1;
        let most = if outgoing.is_request() {
            HELD_MOST
        } else {
            REFUSED_MOST
        };
        let wait = asked
            .saturating_mul(1 << (outgoing.refusals - 1).min(8))
            .min(most);
        self.delay(key, now + wait, Why::Refused);
        if let Some(transfer) = self
            .outstanding
            .get_mut(&key)
            .and_then(|outgoing| outgoing.transfer.as_mut())
        {
            transfer.begin_anew();
        }
    }

    /// The recipient has room for what it refused, or knows nothing of a payload that is being
    /// sent.
    fn wanted_again(&mut self, key: Key) {
        let Some(outgoing) = self.outstanding.get_mut(&key) else {
            // The request that was refused last is not there any more; others may be.
            self.requests_held = None;
            return;
        };
        match (outgoing.state, &mut outgoing.transfer) {
            (State::Delayed(until, Why::Refused), _) => {
                self.delayed.remove(&(until, key));
                outgoing.refusals = 0;
                self.queue(key, true);
            }
            (State::Active, Some(transfer)) if transfer.is_flowing() => {
                self.bulk_bytes -= transfer.reserved();
                transfer.restart();
            }
            (State::Queued, None) => self.requests_held = None,
            (
                State::Queued
                | State::Fetching
                | State::InFlight
                | State::Active
                | State::Delayed(..),
                _,
            ) => {}
        }
    }

    /// A node on the way could not pass a message on. `Some` when it is given up.
    pub(crate) fn undeliverable(
        &mut self,
        now: Instant,
        key: Key,
        code: ErrorCode,
    ) -> Option<GivenUp> {
        let round_trip = self.patience.round_trip();
        let outgoing = self.outstanding.get_mut(&key)?;
        match outgoing.state {
            State::InFlight | State::Active | State::Delayed(_, Why::Doomed) => {}
            State::Queued | State::Fetching | State::Delayed(_, Why::Refused | Why::Lost) => {
                return None;
            }
        }
        if code == ErrorCode::Busy {
            self.window.shrink(now, round_trip);
            self.delay(key, now + CONGESTED.max(round_trip), Why::Lost);
            return None;
        }
        if outgoing.once() {
            let outgoing = self.remove(key)?;
            return Some(GivenUp { outgoing, code });
        }
        // All that was under way comes back at once: that is one failure, not many.
        if self.turned_back.is_none_or(|at| now.since(at) > round_trip) {
            self.turned_back = Some(now);
            self.patience.ran_out();
        }
        let wait = self.patience.length().min(NO_WAY_MOST);
        self.delay(key, now + wait, Why::Lost);
        None
    }

    /// The way to the recipient may be another one, or none. True: there is something to send.
    pub(crate) fn route_changed(
        &mut self,
        now: Instant,
        path: u64,
        code: &ErrorCode,
        given_up: &mut Vec<GivenUp>,
    ) -> bool {
        if self.path == path && (path != 0 || self.parked) {
            return false;
        }
        self.path = path;
        self.patience.reset();
        if path == 0 {
            self.park(now, code, given_up);
            return false;
        }
        self.parked = false;
        self.grace = None;
        self.send_again(|outgoing| !outgoing.once());
        true
    }

    /// There is no way: requests that may be lost are, everything else waits.
    pub(crate) fn park(&mut self, now: Instant, code: &ErrorCode, given_up: &mut Vec<GivenUp>) {
        self.path = 0;
        if !self.parked {
            self.parked = true;
            self.grace = Some(now + VOLATILE_GRACE);
        }
        self.send_again(|outgoing| !outgoing.once());
        let once: Vec<Key> = self
            .outstanding
            .iter()
            .filter(|(_, outgoing)| outgoing.once())
            .map(|(key, _)| *key)
            .collect();
        for key in once {
            if let Some(outgoing) = self.remove(key) {
                let code = if outgoing.was_sent() {
                    ErrorCode::Lost
                } else {
                    code.clone()
                };
                given_up.push(GivenUp { outgoing, code });
            }
        }
    }

    /// Notes the way of a flow that had nothing to send, so that a later change is noticed.
    pub(crate) fn look(&mut self, path: u64) {
        self.path = path;
        self.parked = false;
        self.grace = None;
    }

    /// Puts everything that is under way, in order, before what was not sent yet.
    fn send_again(&mut self, which: impl Fn(&Outgoing) -> bool) {
        let mut keys: Vec<Key> = Vec::new();
        for (at, key) in &self.sent {
            if let Some(outgoing) = self.outstanding.get(key)
                && outgoing.state == State::InFlight
                && outgoing.sent_at == *at
                && which(outgoing)
            {
                keys.push(*key);
            }
        }
        for (_, key) in &self.delayed {
            if let Some(outgoing) = self.outstanding.get(key)
                && matches!(outgoing.state, State::Delayed(_, Why::Lost))
                && which(outgoing)
            {
                keys.push(*key);
            }
        }
        keys.sort_unstable();
        keys.dedup();
        for key in keys.into_iter().rev() {
            self.take_out(key);
            self.queue(key, true);
        }
        for key in &self.active {
            if let Some(transfer) = self
                .outstanding
                .get_mut(key)
                .and_then(|outgoing| outgoing.transfer.as_mut())
            {
                self.bulk_bytes -= transfer.reserved();
                transfer.restart();
            }
        }
    }

    /// What is due: expired messages and those lost for good are given up, others put back into
    /// their queues.
    pub(crate) fn timeout(&mut self, now: Instant, given_up: &mut Vec<GivenUp>) -> Due {
        while let Some(key) = self.expiry.pop_due(now) {
            if let Some(outgoing) = self.outstanding.get(&key)
                && outgoing.expires <= now
                && let Some(outgoing) = self.remove(key)
            {
                given_up.push(GivenUp {
                    outgoing,
                    code: ErrorCode::Expired,
                });
            }
        }
        let mut due = Due {
            ready: self.delayed_due(now, given_up),
            lost_touch: false,
        };
        if self.grace.is_some_and(|grace| grace <= now) {
            self.grace = None;
            self.give_up_volatile(given_up);
            due.lost_touch = true;
        }
        if self.requests_held.is_some_and(|held| held <= now) {
            self.requests_held = None;
            due.ready = true;
        }
        due.ready |= self.overdue(now);
        due
    }

    fn delayed_due(&mut self, now: Instant, given_up: &mut Vec<GivenUp>) -> bool {
        let mut ready = false;
        while let Some(&(until, key)) = self.delayed.first() {
            if until > now {
                break;
            }
            let why = self.outstanding.get(&key).map(|outgoing| outgoing.state);
            if why == Some(State::Delayed(until, Why::Doomed)) {
                if let Some(outgoing) = self.remove(key) {
                    given_up.push(GivenUp {
                        outgoing,
                        code: ErrorCode::Lost,
                    });
                }
                continue;
            }
            self.delayed.pop_first();
            self.queue(key, true);
            ready = true;
        }
        ready
    }

    fn give_up_volatile(&mut self, given_up: &mut Vec<GivenUp>) {
        let keys: Vec<Key> = self
            .outstanding
            .iter()
            .filter(|(_, outgoing)| outgoing.message.volatile)
            .map(|(key, _)| *key)
            .collect();
        for key in keys {
            if let Some(outgoing) = self.remove(key) {
                given_up.push(GivenUp {
                    outgoing,
                    code: ErrorCode::Lost,
                });
            }
        }
    }

    /// Messages whose receipt did not come in time.
    fn overdue(&mut self, now: Instant) -> bool {
        let patience = self.patience.length();
        let mut late: Vec<Key> = Vec::new();
        while let Some((at, key)) = self.first_sent() {
            if at + patience > now {
                break;
            }
            self.sent.pop_front();
            late.push(key);
        }
        let mut transfers: Vec<Key> = Vec::new();
        for key in &self.active {
            if let Some(outgoing) = self.outstanding.get(key)
                && let Some(transfer) = &outgoing.transfer
                && transfer
                    .waiting_since()
                    .is_some_and(|since| since + patience <= now)
            {
                transfers.push(*key);
            }
        }
        if late.is_empty() && transfers.is_empty() {
            return false;
        }
        let mut lost = false;
        late.sort_unstable();
        late.dedup();
        for key in late.into_iter().rev() {
            let Some(outgoing) = self.outstanding.get(&key) else {
                continue;
            };
            lost = true;
            if outgoing.once() {
                let whole = VOLATILE_PATIENCE.max(patience * VOLATILE_ROUNDS);
                let until = outgoing.sent_at + whole;
                self.delay(key, until, Why::Doomed);
                continue;
            }
            self.take_out(key);
            self.queue(key, true);
        }
        for key in transfers {
            if let Some(transfer) = self
                .outstanding
                .get_mut(&key)
                .and_then(|outgoing| outgoing.transfer.as_mut())
            {
                lost |= !transfer.arrived();
                self.bulk_bytes -= transfer.reserved();
                transfer.restart();
            }
        }
        if lost {
            self.window.shrink(now, self.patience.round_trip());
        }
        self.patience.ran_out();
        true
    }

    /// The message that was sent longest ago and has no receipt; forgets stale ones before it.
    fn first_sent(&mut self) -> Option<(Instant, Key)> {
        let outstanding = &self.outstanding;
        let waits = |(at, key): &(Instant, Key)| {
            outstanding.get(key).is_some_and(|outgoing| {
                outgoing.state == State::InFlight && outgoing.sent_at == *at
            })
        };
        if self.sent.len() > 2 * self.messages + 64 {
            self.sent.retain(waits);
        }
        while let Some(first) = self.sent.front() {
            if waits(first) {
                return Some(*first);
            }
            self.sent.pop_front();
        }
        None
    }

    /// When [`Flow::timeout`] wants to be called.
    pub(crate) fn deadline(&mut self) -> Option<Instant> {
        if self.outstanding.is_empty() {
            return self.grace;
        }
        let patience = self.patience.length();
        let outstanding = &self.outstanding;
        let expiry = self
            .expiry
            .next(|key, at| outstanding.get(&key).is_some_and(|o| o.expires == at));
        let transfers = self
            .active
            .iter()
            .filter_map(|key| outstanding.get(key)?.transfer.as_ref()?.waiting_since())
            .min()
            .map(|since| since + patience);
        let delayed = self.delayed.first().map(|(until, _)| *until);
        let sent = self.first_sent().map(|(at, _)| at + patience);
        [
            expiry,
            transfers,
            delayed,
            sent,
            self.grace,
            self.requests_held,
        ]
        .into_iter()
        .flatten()
        .min()
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

/// The lowest outstanding sequence number of an epoch, or 0 while something of an earlier one is
/// outstanding. Looked up once a turn: it only rises.
#[derive(Default)]
struct Floors {
    known: Option<Key>,
}

impl Floors {
    fn of(
        &mut self,
        key: Key,
        outstanding: &BTreeMap<Key, Box<Outgoing>>,
        held: &BTreeSet<Key>,
    ) -> u64 {
        match self.known {
            Some((epoch, floor)) if epoch == key.0 => floor,
            _ => {
                let first = outstanding
                    .keys()
                    .next()
                    .into_iter()
                    .chain(held.first())
                    .min();
                let floor = match first {
                    Some((epoch, _)) if *epoch < key.0 => 0,
                    Some((_, seq)) => key.1.min(*seq),
                    None => key.1,
                };
                self.known = Some((key.0, floor));
                floor
            }
        }
    }
}
