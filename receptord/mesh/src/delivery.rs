//! Delivery: from a client's submission to a plugin on another node, and back.
//!
//! The origin of a message keeps it until it has the recipient's receipt; the recipient writes
//! before it gives one. Everything between them may lose, repeat and reorder. Requests,
//! responses and cancels all travel like that, so one [`flow::Flow`] per recipient, one
//! [`received::Received`] per origin and its epochs serve all three.
//!
//! ```text
//!   client ─ submit ─▶ inbox::Request ─▶ flow ══ packets ══▶ received ─▶ works::Work ─▶ plugin
//!                           │                                                │
//!   client ◀─ Deliver ─ inbox::Request ◀─ received ══ packets ══ flow ◀─ work_data, work_done
//! ```
//!
//! A message of this node to itself takes the same way, but for the packets.
//!
//! Nothing is written, sent or acknowledged inside a `handle_*`; that happens in
//! [`Delivery::flush`], once for everything that came in before the driver asks what to do. One
//! write and one receipt then stand for a whole burst.
//!
//! What a restart must know is in the records alone, and the entries themselves tell most of it:
//! a request's entry stays until its last response was taken, so a stored request is one whose
//! client still waits; the last response that was taken or received stays until the next one is,
//! so the next serial is known. An incoming entry goes only after what its flow received is on
//! the disk. Entries are removed in an order that makes every prefix of it a true story.
//!
//! Volatile requests are sent once and may be lost. Volatile responses are sent until they
//! arrive, because their reader recognises repeats by their serial; they only never outlive
//! either node.

mod answers;
mod backlog;
mod cancels;
mod choice;
mod custody;
mod deadlines;
mod doubt;
mod flow;
mod inbox;
mod incoming;
mod inquiries;
mod journal;
mod letters;
mod outgoing;
mod paging;
mod partial;
mod ranges;
mod receipts;
mod received;
mod restore;
mod sealed;
mod transfer;
mod views;
mod window;
mod works;
mod written;

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;
use core::time::Duration;

use receptor_proto::packet::{ActiveWork, Body};
use receptor_proto::{ErrorBody, ErrorCode, MessageId, NodeId};

use crate::policy::Gate;
use crate::wiring::Net;
use crate::{Config, Counters, EntryId, Instant, Limits, Output, Record};
use cancels::Early;
use custody::Keeper;
use flow::{Flow, Key, Pipe, Pumped};
use inbox::Requests;
use inquiries::Inquiries;
use journal::{Done, Journal};
use letters::Letters;
use paging::Paging;
use partial::Partials;
use receipts::{Acks, Lingering};
use received::Received;
use works::Works;

/// Nodes that messages are exchanged with; beyond, strangers are not heard.
const REMOTES_MAX: usize = 250_000;
/// How often what is not needed any more is looked for.
const SWEEP: Duration = Duration::from_secs(600);
/// How long a response is kept for a sender who cannot be reached.
const RESPONSE_LIFETIME: Duration = Duration::from_secs(7 * 24 * 3600);
/// The same for one that is in memory only.
const VOLATILE_RESPONSE_LIFETIME: Duration = Duration::from_secs(3600);
/// How long a cancel of a request that arrived is worth delivering.
const CANCEL_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// The longest lifetime believed of a peer's message; what it asks beyond is not remembered.
const LIFETIME_MOST: Duration = Duration::from_secs(30 * 24 * 3600);
/// After which a refused message may come again: limits of memory, which works free quickly.
const BUSY: Duration = Duration::from_millis(250);
/// After which one may come again that the disk refused.
const DISK_BUSY: Duration = Duration::from_secs(2);

/// Responses that the disk refused of which is remembered that they are to come again when there is
/// room; others come by themselves, later.
const NO_ROOM_MAX: usize = 1024;

type Out = VecDeque<Output>;

/// What every step needs of the world.
struct Cx<'a> {
    now: Instant,
    net: &'a mut dyn Net,
    out: &'a mut Out,
}

/// A node that messages go to or come from, by its place in a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct RemoteId(usize);

/// This node itself.
const OWN: RemoteId = RemoteId(0);

/// Everything about one node.
#[derive(Debug)]
struct Remote {
    node: NodeId,
    flow: Flow,
    /// By epoch.
    received: BTreeMap<u64, Received>,
    acks: Acks,
    /// Nothing of an epoch before this one comes any more.
    first_epoch: u64,
    /// Which start of it was last heard of; 0: none.
    instance: u64,
    /// Volatile requests that it has and that wait for responses: they end with it.
    waiting: usize,
    /// The request of it that was refused last for lack of room; it is in `put_off` then.
    put_off: Option<Key>,
    /// It is in `ready`.
    is_ready: bool,
    /// It is in `touched`.
    is_touched: bool,
    /// It is in `blocked`.
    is_blocked: bool,
    /// It is in `owed`.
    is_owed: bool,
    /// It is in `lingering`.
    is_lingering: bool,
    /// A message was sent to it since receipts were given last: one leaves along with it.
    was_sent_to: bool,
    /// What it sent last was large.
    sends_large: bool,
    /// A receipt for it found no way: it is owed one as soon as there is one.
    is_unreceipted: bool,
    /// A message of it was taken, so that works and requests may refer to it.
    is_known: bool,
    /// When its timer is set.
    timer: Option<Instant>,
    /// Works that were told to wait until their node's disk has more of what was said to it.
    held: BTreeSet<MessageId>,
}

/// Everything about messages of and for this node.
#[derive(Debug)]
pub(crate) struct Delivery {
    node: NodeId,
    instance: u64,
    hop_limit: u8,
    limits: Limits,
    gate: Gate,
    remotes: Vec<Remote>,
    by_node: BTreeMap<NodeId, RemoteId>,
    /// The one looked up last: packets come in bursts.
    last: RemoteId,
    free: Vec<RemoteId>,
    journal: Journal,
    requests: Requests,
    paging: Paging,
    letters: Letters,
    keeper: Keeper,
    /// Everything comes proved, and what one node says of a message counts once.
    is_secured: bool,
    /// A leaf keeps nothing of others.
    takes_custody: bool,
    works: Works,
    /// Who asked for them and the serial of the word that stands for what was given up.
    broken_off: BTreeMap<MessageId, (RemoteId, u64)>,
    partials: Partials,
    early: BTreeMap<MessageId, Early>,
    /// Requests that were damaged on the disk, whose they were, and whose senders need not have heard
    /// of it: one that comes again may have run.
    damaged: BTreeMap<MessageId, RemoteId>,
    inquiries: Inquiries,
    /// Flows whose next record brings numbers that nothing else is written of.
    numbered: BTreeSet<(RemoteId, u64)>,
    /// Nodes of which an earlier epoch is over.
    moved_on: BTreeSet<RemoteId>,
    /// Payloads that the store is asked for.
    sources: BTreeMap<EntryId, (RemoteId, Key)>,
    /// Nodes with something to send.
    ready: VecDeque<RemoteId>,
    /// Nodes whose way was full.
    blocked: Vec<RemoteId>,
    /// Nodes whose requests were refused for lack of room, in their order.
    put_off: VecDeque<RemoteId>,
    /// Responses that the disk refused, oldest first.
    no_room: VecDeque<(RemoteId, Key)>,
    /// Nodes to give receipts to, or to see whether these can wait.
    owed: Vec<RemoteId>,
    /// Nodes whose receipts wait for company.
    lingering: Lingering,
    /// Nodes whose timer may have to change.
    touched: Vec<RemoteId>,
    /// What this node sent itself.
    loopback: VecDeque<Body>,
    timers: BTreeSet<(Instant, RemoteId)>,
    next_entry: u64,
    /// Messages and bytes kept for others to take.
    kept: usize,
    kept_bytes: u64,
    /// What a restart has to say first.
    restored: Out,
    /// The highest start of this node, after this one, that others remember.
    behind: u64,
    /// What works had said before it: asked for until the first flush.
    said: BTreeMap<(RemoteId, MessageId), restore::Said>,
    sweep_at: Option<Instant>,
    /// When early cancels are looked at.
    early_at: Option<Instant>,
    deadline: Option<Instant>,
    retransmitted: u64,
    duplicates: u64,
    mistakes: u64,
    orphans: u64,
    /// Reused.
    done: Vec<flow::Outgoing>,
}

impl Delivery {
    pub(crate) fn new(
        config: &Config,
        now: Instant,
        records: impl IntoIterator<Item = Record>,
        is_secured: bool,
    ) -> Self {
        let mut delivery = Self {
            node: config.node.clone(),
            instance: config.instance,
            hop_limit: config.hop_limit,
            limits: config.limits.clone(),
            gate: Gate::default(),
            remotes: Vec::new(),
            by_node: BTreeMap::new(),
            last: OWN,
            free: Vec::new(),
            journal: Journal::default(),
            requests: Requests::default(),
            paging: Paging::new(config.seed),
            letters: Letters::default(),
            keeper: Keeper::default(),
            is_secured,
            takes_custody: config.router,
            works: Works::new(config.seed),
            broken_off: BTreeMap::new(),
            partials: Partials::default(),
            early: BTreeMap::new(),
            damaged: BTreeMap::new(),
            inquiries: Inquiries::new(config.seed),
            numbered: BTreeSet::new(),
            moved_on: BTreeSet::new(),
            sources: BTreeMap::new(),
            ready: VecDeque::new(),
            blocked: Vec::new(),
            put_off: VecDeque::new(),
            no_room: VecDeque::new(),
            owed: Vec::new(),
            lingering: Lingering::default(),
            touched: Vec::new(),
            loopback: VecDeque::new(),
            timers: BTreeSet::new(),
            // Entries of one start are told from those of another by the start: no start writes
            // four million messages a millisecond. Where instances are not milliseconds, the
            // records themselves keep the two apart.
            next_entry: config.instance << 22,
            kept: 0,
            kept_bytes: 0,
            restored: VecDeque::new(),
            behind: 0,
            said: BTreeMap::new(),
            sweep_at: None,
            early_at: None,
            deadline: None,
            retransmitted: 0,
            duplicates: 0,
            mistakes: 0,
            orphans: 0,
            done: Vec::new(),
        };
        let own = delivery.node.clone();
        delivery.add_remote(own);
        delivery.restore(now, records);
        delivery
    }

    /// A packet for this node.
    pub(crate) fn handle_packet(
        &mut self,
        now: Instant,
        net: &mut dyn Net,
        source: NodeId,
        body: Body,
        out: &mut Out,
    ) {
        let cx = &mut Cx { now, net, out };
        if source == self.node {
            return;
        }
        match body {
            Body::Message(message) => {
                if let Some(remote) = self.remote(&source) {
                    self.on_message(cx, remote, message);
                }
            }
            Body::Kept { custodian, message } => {
                if let Some(remote) = self.remote(&source) {
                    self.on_kept(cx, remote, custodian, message);
                }
            }
            Body::Custody(custody) => self.on_custody(cx, &source, &custody),
            Body::Entrusted { recipient, message } => {
                self.on_entrusted(cx, source, recipient, message);
            }
            Body::Inquiry(inquiry) => {
                // One of whom nothing is known is to hear just that.
                if let Some(remote) = self.remote(&source) {
                    self.on_inquiry(cx, remote, inquiry);
                }
            }
            Body::Segment(segment) => {
                if let Some(remote) = self.find(&source) {
                    self.on_segment(cx, remote, segment);
                }
            }
            Body::Receipt(receipt) => match self.find(&source) {
                Some(remote) => self.on_receipt(cx, remote, &receipt),
                None => self.mistakes += 1,
            },
            Body::Undeliverable(notice) => self.on_undeliverable(cx, &source, notice),
            Body::Echo { .. } | Body::EchoReply(_) | Body::Unknown { .. } => {}
        }
    }

    /// Routes are other ones.
    pub(crate) fn handle_routes_changed(&mut self, now: Instant, net: &mut dyn Net, out: &mut Out) {
        let cx = &mut Cx { now, net, out };
        self.send_all_kept(cx);
        if self.requests.iter().next().is_some() {
            self.inquiries.ways_changed(now);
        }
        let mut given_up = Vec::new();
        for at in 1..self.remotes.len() {
            let remote = &mut self.remotes[at];
            if remote.is_unreceipted && cx.net.path(&remote.node) != 0 {
                remote.is_unreceipted = false;
                self.receipt_again(RemoteId(at));
            }
            let remote = &mut self.remotes[at];
            if remote.flow.is_empty() && remote.waiting == 0 {
                continue;
            }
            let path = cx.net.path(&remote.node);
            let code = cx.net.reachability(&remote.node).code();
            let code = code.unwrap_or(ErrorCode::NoRoute);
            let custodian = remote.flow.custodian();
            if custodian.is_some_and(|custodian| cx.net.path(custodian) == 0) {
                remote.flow.custodian_lost();
                self.set_ready(RemoteId(at));
            }
            let remote = &mut self.remotes[at];
            if remote
                .flow
                .route_changed(cx.now, path, &code, &mut given_up)
            {
                self.set_ready(RemoteId(at));
            }
            self.touch(RemoteId(at));
            for given_up in given_up.drain(..) {
                self.given_up(cx, RemoteId(at), given_up);
            }
            if path == 0 {
                self.remotes[at].flow.look_for_others((0, 0));
                self.choose_again(cx, RemoteId(at));
            }
        }
    }

    /// Nodes offer something else: one of them may take what waits for any that does.
    pub(crate) fn handle_offers_changed(&mut self, now: Instant, net: &mut dyn Net, out: &mut Out) {
        let cx = &mut Cx { now, net, out };
        for at in 1..self.remotes.len() {
            let remote = &mut self.remotes[at];
            if remote.flow.has_choices() && cx.net.path(&remote.node) == 0 {
                remote.flow.look_for_others((0, 0));
                self.choose_again(cx, RemoteId(at));
            }
        }
    }

    /// A link has room again.
    pub(crate) fn handle_room(&mut self, now: Instant, net: &mut dyn Net, out: &mut Out) {
        for remote in core::mem::take(&mut self.blocked) {
            self.remotes[remote.0].is_blocked = false;
            self.set_ready(remote);
        }
        self.send_all_kept(&mut Cx { now, net, out });
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant, net: &mut dyn Net, out: &mut Out) {
        let cx = &mut Cx { now, net, out };
        let mut given_up = Vec::new();
        while let Some(&(at, id)) = self.timers.first() {
            if at > now {
                break;
            }
            self.timers.pop_first();
            let remote = &mut self.remotes[id.0];
            remote.timer = None;
            let due = remote.flow.timeout(now, &mut given_up);
            self.touch(id);
            self.look_at_pages(cx, id);
            if due.ready {
                self.set_ready(id);
            }
            for given_up in given_up.drain(..) {
                self.given_up(cx, id, given_up);
            }
            if due.lost_touch {
                self.end_waiting(cx, id, u64::MAX, "its node cannot be reached any more");
            }
        }
        while let Some(work) = self.requests.pop_ended(now) {
            self.end_request(
                cx,
                work,
                ErrorBody::new(
                    ErrorCode::Lost,
                    "no answer came as long as the message was worth delivering",
                ),
            );
        }
        self.look_at_kept(cx);
        self.letters.give(now, cx.out);
        for done in self.journal.take_again(now) {
            self.write_again(cx, done);
        }
        while let Some((remote, key)) = self.partials.expired(now) {
            self.drop_partial(remote, key);
        }
        if self.sweep_at.is_some_and(|at| at <= now) {
            self.sweep(now);
        }
        if self.early_at.is_some_and(|at| at <= now) {
            self.sweep_early(now);
        }
        self.inquire(cx);
    }

    /// When [`Self::handle_timeout`] wants to be called; right after [`Self::flush`].
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.deadline
    }

    /// Works accepted and not finished: how many, and the oldest.
    pub(crate) fn active_works(&self, now: Instant) -> (u64, Vec<ActiveWork>) {
        self.works.view(now)
    }

    pub(crate) fn set_gate(&mut self, gate: Gate) {
        self.gate = gate;
    }

    pub(crate) fn new_entry(&mut self) -> EntryId {
        self.next_entry += 1;
        EntryId(self.next_entry)
    }

    /// Adds what this half counts.
    pub(crate) fn count(&self, counters: &mut Counters) {
        counters.retransmitted += self.retransmitted;
        counters.duplicates += self.duplicates;
        counters.peer_mistakes += self.mistakes;
        counters.orphans += self.orphans;
    }

    /// Sends, writes and acknowledges what follows from everything since the last time. Cheap
    /// when that is nothing.
    pub(crate) fn flush(&mut self, now: Instant, net: &mut dyn Net, out: &mut Out) {
        let cx = &mut Cx { now, net, out };
        if !self.restored.is_empty() {
            cx.out.append(&mut self.restored);
        }
        self.said.clear();
        self.end_linger(now);
        loop {
            while let Some(remote) = self.ready.pop_front() {
                self.remotes[remote.0].is_ready = false;
                self.pump(cx, remote);
            }
            while let Some(body) = self.loopback.pop_front() {
                self.on_loopback(cx, body);
            }
            self.give_receipts(cx);
            self.feed();
            if self.ready.is_empty() && self.loopback.is_empty() {
                break;
            }
        }
        self.send_notices(cx);
        self.gather(now);
        self.journal.flush(cx.out);
        let touched = self.touched.len();
        for at in 0..touched {
            let id = self.touched[at];
            self.remotes[id.0].is_touched = false;
            self.arm(id);
            self.let_all_go_on(cx, id);
        }
        self.touched.drain(..touched);
        self.deadline = [
            self.requests.deadline(),
            self.journal.deadline(),
            self.partials.deadline(),
            self.letters.deadline(),
            self.keeper.deadline(),
            self.receipts_due(),
            self.sweep_at,
            self.early_at,
            self.inquiries.deadline(),
        ]
        .into_iter()
        .fold(self.timers.first().map(|(at, _)| *at), Instant::earlier);
    }

    /// Takes the next turn of one flow.
    fn pump(&mut self, cx: &mut Cx<'_>, id: RemoteId) {
        let remote = &mut self.remotes[id.0];
        let mut pipe = Pipe {
            now: cx.now,
            net: &mut *cx.net,
            recipient: &remote.node,
            instance: remote.instance,
            remote: id,
            sources: &mut self.sources,
            loopback: (id == OWN).then_some(&mut self.loopback),
            out: &mut *cx.out,
            retransmitted: &mut self.retransmitted,
            limits: &self.limits,
            sent: false,
        };
        let pumped = remote.flow.pump(&mut pipe);
        if pipe.sent {
            self.was_sent_to(id);
        }
        self.touch(id);
        match pumped {
            Pumped::Idle => self.refill(cx, id),
            Pumped::More => {
                self.refill(cx, id);
                self.set_ready(id);
            }
            Pumped::Blocked => {
                self.refill(cx, id);
                let remote = &mut self.remotes[id.0];
                if !remote.is_blocked {
                    remote.is_blocked = true;
                    self.blocked.push(id);
                }
            }
            Pumped::NoRoute(code) => {
                let mut given_up = Vec::new();
                self.remotes[id.0].flow.park(cx.now, &code, &mut given_up);
                for given_up in given_up {
                    self.given_up(cx, id, given_up);
                }
                self.choose_again(cx, id);
            }
        }
    }

    fn on_loopback(&mut self, cx: &mut Cx<'_>, body: Body) {
        match body {
            Body::Message(message) => self.on_message(cx, OWN, message),
            Body::Segment(segment) => self.on_segment(cx, OWN, segment),
            Body::Receipt(receipt) => self.on_receipt(cx, OWN, &receipt),
            Body::Undeliverable(_)
            | Body::Kept { .. }
            | Body::Custody(_)
            | Body::Entrusted { .. }
            | Body::Inquiry(_)
            | Body::Echo { .. }
            | Body::EchoReply(_)
            | Body::Unknown { .. } => {}
        }
    }

    /// Adds what had time to the next write.
    fn gather(&mut self, now: Instant) {
        let (marks, retired) = self.journal.take_gathered(now);
        if marks.is_empty()
            && retired.is_empty()
            && self.moved_on.is_empty()
            && self.numbered.is_empty()
        {
            return;
        }
        for (entry, work) in marks {
            self.journal
                .write(Record::Started { entry }, Done::Mark(work, entry));
        }
        self.note_first_epochs();
        let mut flows = core::mem::take(&mut self.numbered);
        let mut gone = BTreeSet::new();
        let mut waits = BTreeSet::new();
        let mut ripe = Vec::new();
        for retired in retired {
            let received = &self.remotes[retired.remote.0].received;
            let pending = |(epoch, seq): Key| {
                received
                    .get(&epoch)
                    .is_some_and(|received| received.is_pending(seq))
            };
            if pending(retired.key)
                || retired.after.is_some_and(|(_, after)| pending(after.key))
                || waits.contains(&retired.entry)
            {
                waits.extend(retired.after.map(|(_, after)| after.entry));
                self.journal.retire(now, retired);
            } else {
                flows.insert((retired.remote, retired.key.0));
                gone.insert(retired.entry);
                ripe.push(retired);
            }
        }
        for (request, after) in ripe.iter().filter_map(|retired| retired.after) {
            let entry = after.entry;
            let request = self.requests.get(request);
            let noted = request.is_none_or(|request| request.noted == Some(entry));
            if !noted && gone.insert(entry) {
                self.journal.note(Record::Started { entry });
            }
        }
        let write = self.journal.batch();
        for (remote, epoch) in flows {
            let remote = &mut self.remotes[remote.0];
            if let Some(received) = remote.received.get_mut(&epoch) {
                let (floor, ranges) = received.snapshot(write);
                self.journal.note(Record::Received {
                    origin: remote.node.clone(),
                    epoch,
                    floor,
                    ranges,
                });
            }
        }
        if !ripe.is_empty() {
            self.journal.retire_now(ripe);
        }
    }

    /// Writes which epochs are over, together with what says so.
    fn note_first_epochs(&mut self) {
        for id in core::mem::take(&mut self.moved_on) {
            let remote = &mut self.remotes[id.0];
            let first = remote.first_epoch;
            let kept = remote.received.split_off(&first);
            for epoch in core::mem::replace(&mut remote.received, kept).into_keys() {
                self.journal.note(Record::Received {
                    origin: remote.node.clone(),
                    epoch,
                    floor: u64::MAX,
                    ranges: Vec::new(),
                });
            }
            self.numbered.insert((id, first));
        }
    }

    /// Sets the timer of a flow, if it has to ring earlier than it is set.
    fn arm(&mut self, id: RemoteId) {
        let remote = &mut self.remotes[id.0];
        let Some(at) = remote.flow.deadline() else {
            return;
        };
        if remote.timer.is_some_and(|timer| timer <= at) {
            return;
        }
        if let Some(timer) = remote.timer.replace(at) {
            self.timers.remove(&(timer, id));
        }
        self.timers.insert((at, id));
    }

    fn touch(&mut self, id: RemoteId) {
        let remote = &mut self.remotes[id.0];
        if !remote.is_touched {
            remote.is_touched = true;
            self.touched.push(id);
        }
    }

    fn set_ready(&mut self, id: RemoteId) {
        let remote = &mut self.remotes[id.0];
        if !remote.is_ready {
            remote.is_ready = true;
            self.ready.push_back(id);
        }
    }

    fn find(&mut self, node: &NodeId) -> Option<RemoteId> {
        if self.remotes[self.last.0].node != *node {
            self.last = *self.by_node.get(node)?;
        }
        Some(self.last)
    }

    /// Messages to this node that it has not confirmed.
    pub(crate) fn outstanding(&self, node: &NodeId) -> usize {
        let id = self.by_node.get(node);
        id.map_or(0, |id| self.remotes[id.0].flow.outstanding())
    }

    /// The remote of this name, if there is one or may be one more.
    fn remote(&mut self, node: &NodeId) -> Option<RemoteId> {
        if let Some(id) = self.find(node) {
            return Some(id);
        }
        if self.by_node.len() >= REMOTES_MAX {
            return None;
        }
        Some(self.add_remote(node.clone()))
    }

    fn add_remote(&mut self, node: NodeId) -> RemoteId {
        let remote = Remote {
            node: node.clone(),
            flow: Flow::new(&self.limits),
            received: BTreeMap::new(),
            acks: Acks::default(),
            first_epoch: 0,
            instance: 0,
            waiting: 0,
            put_off: None,
            is_ready: false,
            is_touched: false,
            is_blocked: false,
            is_owed: false,
            is_lingering: false,
            was_sent_to: false,
            sends_large: false,
            is_unreceipted: false,
            is_known: false,
            timer: None,
            held: BTreeSet::new(),
        };
        let id = if let Some(id) = self.free.pop() {
            self.remotes[id.0] = remote;
            id
        } else {
            self.remotes.push(remote);
            RemoteId(self.remotes.len() - 1)
        };
        self.by_node.insert(node, id);
        id
    }

    /// Forgets what no repeat can need any more: flows of old epochs, nodes that nothing was ever
    /// sent to.
    fn sweep(&mut self, now: Instant) {
        self.sweep_at = None;
        let mut kept = false;
        // Of nodes that nothing came from, clients and the store may still be asked about.
        let requests = self.requests.iter().map(|(_, request)| request.remote);
        let sources = self.sources.values().map(|(remote, _)| *remote);
        let referred: BTreeSet<RemoteId> = requests.chain(sources).collect();
        for at in 0..self.remotes.len() {
            let remote = &mut self.remotes[at];
            let over = if self.is_secured {
                first_epochs_over(remote, now)
            } else {
                let over =
                    |(epoch, received): (&u64, &Received)| received.is_over(now).then_some(*epoch);
                remote.received.iter().filter_map(over).collect()
            };
            for epoch in &over {
                remote.received.remove(epoch);
            }
            if self.is_secured
                && !over.is_empty()
                && let Some(first) = close_epochs(remote)
            {
                self.numbered.insert((RemoteId(at), first));
            }
            for epoch in over {
                self.journal.note(Record::Received {
                    origin: remote.node.clone(),
                    epoch,
                    floor: u64::MAX,
                    ranges: Vec::new(),
                });
            }
            kept |= !remote.received.is_empty();
            let idle = at != OWN.0
                && !remote.is_known
                && !referred.contains(&RemoteId(at))
                && remote.flow.is_unused()
                && remote.acks.is_empty()
                && !(remote.is_ready || remote.is_touched || remote.is_blocked)
                && !(remote.is_owed || remote.is_lingering)
                && remote.timer.is_none()
                && self.by_node.get(&remote.node) == Some(&RemoteId(at));
            if idle {
                if self.last == RemoteId(at) {
                    self.last = OWN;
                }
                self.by_node.remove(&self.remotes[at].node);
                self.free.push(RemoteId(at));
            }
        }
        if kept {
            self.sweep_at = Some(now + SWEEP);
        }
    }

    fn plan_sweep(&mut self, at: Instant) {
        self.sweep_at = Some(self.sweep_at.map_or(at, |planned| planned.min(at)));
    }
}

/// Where somebody may send again what was heard long ago, the last epoch is never forgotten, and others are in
/// their order, so that what was forgotten is always before what is known.
fn first_epochs_over(remote: &Remote, now: Instant) -> Vec<u64> {
    let last = remote.received.keys().last();
    let over =
        |(epoch, received): &(&u64, &Received)| Some(*epoch) != last && received.is_over(now);
    let first = remote.received.iter().take_while(over);
    first.map(|(epoch, _)| *epoch).collect()
}

/// None of the epochs before the first one that is known is heard again. The record of that one, which is given back,
/// says so.
fn close_epochs(remote: &mut Remote) -> Option<u64> {
    let (&first, received) = remote.received.iter_mut().next()?;
    received.raise_floor(1);
    remote.first_epoch = remote.first_epoch.max(first);
    Some(first)
}

/// A duration as messages carry it, rounded up: what is left of a lifetime is never nothing.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros().div_ceil(1000)).unwrap_or(u64::MAX)
}
