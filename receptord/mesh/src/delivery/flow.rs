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

mod again;
mod message;
mod send;

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;
use core::time::Duration;

use bytes::Bytes;
use receptor_proto::ErrorCode;
use receptor_proto::NodeId;
use receptor_proto::packet::{Body, Message, Priority, Segment};

use super::RemoteId;
use super::backlog::{Backlog, LANES, lane};
use super::deadlines::Deadlines;
use super::transfer::Transfer;
use super::window::{Patience, Window};
use crate::wiring::Net;
use crate::{EntryId, Instant, Limits, Output};
use message::{Class, State, Why};
pub(crate) use message::{GivenUp, Key, Outgoing};

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
/// How long after its lifetime the recipient of a request that may have arrived is asked whether
/// it did: long enough for a link to come back and several tries.
const DOUBT: Duration = Duration::from_secs(5);
/// How long what may be lost waits for a way to come back.
pub(crate) const VOLATILE_GRACE: Duration = Duration::from_secs(10);
/// The longest wait after a refusal, of a response or large payload.
const REFUSED_MOST: Duration = Duration::from_secs(30);
/// Messages that the recipient has no room for and that do not count as waiting in memory, so that
/// responses to clients that do not read never keep back those to others: as many as four such
/// works have under way.
const REFUSED_ASIDE: usize = 16_384;
/// The longest wait of all requests together: a recipient with room again says so, but that may
/// get lost.
const HELD_MOST: Duration = Duration::from_secs(2);
/// The longest wait after a notice that a packet found no way: the notice came back, so that
/// asking again costs little, and a leaf has no other way to learn of a new route.
const NO_WAY_MOST: Duration = Duration::from_secs(2);
/// How long a node that dropped a packet for lack of room is left alone.
const CONGESTED: Duration = Duration::from_millis(20);

/// With a way, how long a message that another node keeps is not sent again, at first and whenever
/// the way has changed: whoever keeps it sends it first, and as long as receipts come in it does.
/// Twice that after each further word that it is kept.
const IN_CUSTODY: Duration = Duration::from_secs(1);
/// The same at most: that node may be gone for good, or the receipt was lost.
const IN_CUSTODY_MOST: Duration = Duration::from_secs(15);
/// Without a way, how long it is waited for one before messages are entrusted to the node that is
/// nearest: most outages are short.
const ENTRUST: Duration = Duration::from_millis(500);
/// How long a node is left alone that had no room for what it was entrusted with.
const ENTRUST_AGAIN: Duration = Duration::from_secs(60);
/// Until something happens.
const FOREVER: Instant = Instant::from_micros(u64::MAX);

/// How often a read of the store may fail before the message counts as unreadable.
const READS: u32 = 5;
/// How long after the first failed read the next is tried; twice that after the second, and on.
const READ_AGAIN: Duration = Duration::from_secs(1);

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
    pub(crate) recipient: &'a NodeId,
    /// Which start of it was last heard of; 0: none.
    pub(crate) instance: u64,
    pub(crate) remote: RemoteId,
    /// Whose payloads the store is asked for.
    pub(crate) sources: &'a mut BTreeMap<EntryId, (RemoteId, Key)>,
    /// Set when the recipient is this node.
    pub(crate) loopback: Option<&'a mut VecDeque<Body>>,
    pub(crate) out: &'a mut VecDeque<Output>,
    pub(crate) retransmitted: &'a mut u64,
    pub(crate) limits: &'a Limits,
    /// A message of the flow was sent to the recipient.
    pub(crate) sent: bool,
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
        self.net
            .send_message(self.now, self.recipient, message, self.instance)?;
        self.sent = true;
        Ok(())
    }

    fn entrust(&mut self, to: &NodeId, message: &Message) -> Result<(), ErrorCode> {
        let body = Body::Entrusted {
            recipient: self.recipient.clone(),
            message: message.clone(),
        };
        self.net.send(self.now, to, &body)
    }

    fn segment(&mut self, segment: Segment) -> Result<(), ErrorCode> {
        let body = Body::Segment(segment);
        if let Some(loopback) = &mut self.loopback {
            loopback.push_back(body);
            return Ok(());
        }
        self.net.send(self.now, self.recipient, &body)
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Flow {
    outstanding: BTreeMap<Key, Box<Outgoing>>,
    /// Those of it that may be sent once only.
    once: BTreeSet<Key>,
    /// What waits in the store alone, behind what is outstanding here.
    pub(crate) backlog: Backlog,
    /// Requests here whose recipient was chosen among others; and from which message on it is to be
    /// seen whether there is another one.
    any: usize,
    movable_from: Option<Key>,
    /// Messages here that may wait there, by lane; those of them that soon will, and those that
    /// the recipient has no room for.
    pageable: [usize; LANES],
    behind: [usize; LANES],
    refused: [usize; LANES],
    /// What responses take that are not written yet, in bytes.
    unsaved: usize,
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
    /// Without a way messages are entrusted to another node.
    entrusting: bool,
    /// From then on they are.
    entrust_at: Option<Instant>,
    /// To whom; unknown until it is asked for.
    trustee: Option<Option<NodeId>>,
    /// Without a way, what may be entrusted to it; and perhaps some of what no longer may.
    trusted: BTreeSet<Key>,
    /// Who was last entrusted with messages of this flow.
    entrusted: Option<NodeId>,
    /// Who said last that it keeps messages of this flow.
    custodian: Option<NodeId>,
    /// When a receipt last named something that another node keeps.
    progressed: Instant,
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
            once: BTreeSet::new(),
            backlog: Backlog::default(),
            any: 0,
            movable_from: None,
            pageable: [0; LANES],
            behind: [0; LANES],
            refused: [0; LANES],
            unsaved: 0,
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
            entrusting: false,
            entrust_at: None,
            trustee: None,
            trusted: BTreeSet::new(),
            entrusted: None,
            custodian: None,
            progressed: Instant::default(),
            turned_back: None,
            grace: None,
        }
    }

    /// Messages without a receipt.
    pub(crate) fn outstanding(&self) -> usize {
        self.outstanding.len() + self.backlog.messages()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.outstanding.is_empty() && self.backlog.is_empty()
    }

    /// Whether there is a way to the recipient, as far as is known.
    pub(crate) fn has_way(&self) -> bool {
        self.path != 0 && !self.parked
    }

    /// Messages of a lane in memory that may wait in the store alone, but for some that the
    /// recipient has no room for.
    pub(crate) fn in_memory(&self, lane: usize) -> usize {
        self.pageable[lane] - self.refused[lane].min(REFUSED_ASIDE)
    }

    /// What responses take that are not written yet, in bytes.
    pub(crate) fn unsaved(&self) -> usize {
        self.unsaved
    }

    /// Whether a further message of a lane has to wait behind others in the store.
    pub(crate) fn is_full(&self, lane: usize, allowance: usize) -> bool {
        self.backlog.waits(lane) || self.behind[lane] > 0 || self.pageable[lane] >= allowance
    }

    /// Whether nobody would notice if the flow began anew.
    pub(crate) fn is_unused(&self) -> bool {
        !self.used && self.is_empty() && self.held.is_empty() && self.grace.is_none()
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

    /// Takes messages that another recipient may get instead of this one and that were not looked
    /// at since something changed for them; and whether there are more.
    pub(crate) fn take_movable(&mut self, current: u64, most: usize) -> (Vec<Key>, bool) {
        let Some(first) = self.movable_from.take() else {
            return (Vec::new(), false);
        };
        let movable = self.outstanding.range(first..).filter(|(_, outgoing)| {
            outgoing.any
                && outgoing.state == State::Queued
                && outgoing.stored
                && !outgoing.is_large()
                && outgoing.is_here_alone(current)
        });
        let mut keys: Vec<Key> = movable.map(|(key, _)| *key).take(most + 1).collect();
        if keys.len() > most {
            self.movable_from = keys.pop();
        }
        (keys, self.movable_from.is_some())
    }

    /// Whether some of its messages may go to another recipient.
    pub(crate) fn has_choices(&self) -> bool {
        self.any > 0
    }

    /// Another recipient may be found now for what waits from this message on.
    pub(crate) fn look_for_others(&mut self, from: Key) {
        if self.any > 0 {
            let from = self.movable_from.map_or(from, |before| before.min(from));
            self.movable_from = Some(from);
        }
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

    /// Takes a message to send; one that is `behind` only until it leaves for the store.
    pub(crate) fn push(
        &mut self,
        outgoing: Outgoing,
        now: Instant,
        limits: &Limits,
        behind: bool,
    ) -> Key {
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
        if outgoing.once() {
            self.once.insert(key);
        }
        let lane = lane(&outgoing.message);
        self.pageable[lane] += usize::from(outgoing.is_pageable());
        self.unsaved += outgoing.unsaved();
        self.any += usize::from(outgoing.any);
        if behind {
            outgoing.state = State::Behind;
            self.behind[lane] += 1;
            self.outstanding.insert(key, outgoing);
        } else {
            self.outstanding.insert(key, outgoing);
            self.queue(key, false);
        }
        self.drop_body(key, limits);
        key
    }

    /// Lets a message that was behind wait with the others after all.
    pub(crate) fn come_forward(&mut self, key: Key) {
        self.take_out(key);
        self.queue(key, false);
    }

    /// The message is on the disk.
    pub(crate) fn stored(&mut self, key: Key, limits: &Limits) {
        if let Some(outgoing) = self.outstanding.get_mut(&key) {
            self.unsaved -= outgoing.unsaved();
            outgoing.stored = true;
            let any = outgoing.any;
            self.drop_body(key, limits);
            self.trust(key);
            if any {
                self.look_for_others(key);
            }
        }
    }

    /// Notes what may be entrusted to another node.
    fn trust(&mut self, key: Key) {
        let waits = self.outstanding.get(&key);
        if self.parked && waits.is_some_and(|outgoing| outgoing.may_be_entrusted()) {
            self.trusted.insert(key);
        }
    }

    /// There is no way, and what is on the disk goes to another node.
    pub(crate) fn is_entrusting(&self) -> bool {
        self.entrusting
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
        let any = outgoing.any;
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
        // What left it by another door left its key.
        if queue.len() > 2 * self.outstanding.len() + 64 {
            let mut seen = BTreeSet::new();
            let outstanding = &self.outstanding;
            queue.retain(|key| {
                let waits = outstanding.get(key).map(|outgoing| outgoing.state);
                waits == Some(State::Queued) && seen.insert(*key)
            });
        }
        self.trust(key);
        if any {
            self.look_for_others(key);
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
            State::Behind => self.behind[lane(&outgoing.message)] -= 1,
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
            State::Delayed(until, why) => {
                if why == Why::Refused {
                    self.refused[lane(&outgoing.message)] -= usize::from(outgoing.is_pageable());
                }
                self.delayed.remove(&(until, key));
            }
        }
    }

    /// Forgets a message.
    pub(crate) fn remove(&mut self, key: Key) -> Option<Box<Outgoing>> {
        self.take_out(key);
        let outgoing = self.outstanding.remove(&key)?;
        self.trusted.remove(&key);
        if outgoing.once() {
            self.once.remove(&key);
        }
        self.resident -= outgoing.message.body.len();
        self.pageable[lane(&outgoing.message)] -= usize::from(outgoing.is_pageable());
        self.unsaved -= outgoing.unsaved();
        self.any -= usize::from(outgoing.any);
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
        self.entrusted = None;
        self.custodian = None;
        self.expiry = Deadlines::default();
    }

    fn delay(&mut self, key: Key, until: Instant, why: Why) {
        self.take_out(key);
        if let Some(outgoing) = self.outstanding.get_mut(&key) {
            if why == Why::Refused {
                self.refused[lane(&outgoing.message)] += usize::from(outgoing.is_pageable());
            }
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
        backlog: &Backlog,
    ) -> u64 {
        match self.known {
            Some((epoch, floor)) if epoch == key.0 => floor,
            _ => {
                let first = outstanding
                    .keys()
                    .next()
                    .into_iter()
                    .chain(held.first())
                    .copied()
                    .chain(backlog.first_key())
                    .min();
                let floor = match first {
                    Some((epoch, _)) if epoch < key.0 => 0,
                    Some((_, seq)) => key.1.min(seq),
                    None => key.1,
                };
                self.known = Some((key.0, floor));
                floor
            }
        }
    }
}
