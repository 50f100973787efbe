//! What goes into and comes out of a [`crate::Mesh`]: plain data, owned by neither side.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use bytes::Bytes;
use receptor_proto::frame::Frame;
use receptor_proto::lsa::Capability;
use receptor_proto::packet::{ActiveWork, CancelReason, Content, Eof, Message, Piece};
pub use receptor_proto::record::{EntryId, Record};
use receptor_proto::{Directive, ErrorBody, ErrorCode, MessageId, NodeId};

use crate::{Denied, Instant};

/// Who this node is and how it behaves. Every limit has its default in [`Config::new`].
#[derive(Debug, Clone)]
pub struct Config {
    /// This node.
    pub node: NodeId,
    /// Which start of this node this is. Must be higher at every start of the same node, also
    /// when the clock was set back; wall-clock milliseconds, raised above the last one used,
    /// serve well.
    pub instance: u64,
    /// For every random choice.
    pub seed: u64,
    /// False: a leaf, which forwards nothing and takes no part in flooding.
    pub router: bool,
    /// Name and version of the program, for people.
    pub software: String,
    /// Silence after which an adjacency is down; probes go out at a quarter of it.
    pub hold_time: Duration,
    /// How many nodes a packet may pass through.
    pub hop_limit: u8,
    /// How long this node's LSAs stay valid without being repeated; they are repeated at half of
    /// it. Between a minute and a day; anything else is taken as the nearer of them.
    pub lsa_lifetime: Duration,
    /// How long the LSAs of a node that cannot be reached are kept.
    pub dead_node_retention: Duration,
    /// Every bound.
    pub limits: Limits,
}

/// The bounds of one node's memory and patience.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Links at once.
    pub links: usize,
    /// LSAs in the database.
    pub lsas: usize,
    /// Bytes of what other nodes' LSAs state: a thousand routers with a hundred leaves each, of which
    /// all have some plugins, take a quarter of the default.
    pub lsa_bytes: usize,
    /// Bytes of packets that a peer may send on one link before it is granted more; less than
    /// [`receptor_proto::frame::CREDIT_FLOOR`] is taken as that.
    pub link_credit: u64,
    /// Bytes of packets waiting for one link, except 256 KiB more for those of priority control;
    /// less than sixteen full frames (1,152 KiB) is taken as that.
    pub link_queue: usize,
    /// Bytes in flight from here to one recipient without a receipt.
    pub flow_window: usize,
    /// Messages in flight from here to one recipient without a receipt.
    pub flow_messages: usize,
    /// Durable requests, and durable responses, to one recipient kept in memory, of each of three
    /// kinds (small, bulk, stored payload): those in flight and those that come next. The others
    /// wait in the store, and are known as pages only.
    pub flow_waiting: usize,
    /// Messages in one such page.
    pub page_messages: usize,
    /// Bytes of messages and payloads that this node keeps for others to take.
    pub outgoing_bytes: u64,
    /// Messages that this node keeps for others to take.
    pub outgoing_entries: usize,
    /// Messages of others that this node keeps because it cannot pass them on.
    pub custody_entries: usize,
    /// The same for one recipient.
    pub custody_entries_each: usize,
    /// Their bytes.
    pub custody_bytes: u64,
    /// Works accepted here and not finished.
    pub works: usize,
    /// Bytes of responses of one work waiting at its worker's node before the plugin is held.
    pub work_backlog: u64,
    /// Bytes of responses of one work waiting at its sender's node for a client to take them.
    pub inbox_bytes: u64,
    /// Echoes under way at once.
    pub echoes: usize,
}

/// One transport connection, as its driver names it. Never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

/// What is known of a link when it comes up.
#[derive(Debug, Clone)]
pub struct LinkInfo {
    /// The configured cost, 1 to [`receptor_proto::lsa::COST_MAX`].
    pub cost: u32,
    /// The node ids that the transport proved the other end may use; empty without TLS.
    pub proven: Vec<NodeId>,
    /// Where it leads or comes from, for people.
    pub address: String,
    /// This side made the connection.
    pub dialled: bool,
}

/// One batch of writes, to be confirmed by [`crate::Mesh::handle_persisted`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PersistToken(pub u64);

/// One [`Output::Load`], to be answered with [`crate::Mesh::handle_loaded`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LoadToken(pub u64);

/// An answer to [`Output::Load`].
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// What was asked for, in order of entry; nothing else does harm, it is passed over.
    pub records: Vec<Record>,
    /// What is not as it was written any more: what it seems to say, and that the store has it
    /// under this entry. Of those the store cannot read at all nothing is here.
    pub damaged: Vec<Record>,
    /// Where to go on, when there may be more than `records` has.
    pub next: Option<EntryId>,
}

/// An echo under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EchoId(pub u64);

/// A payload: in hand, or in the store because it is larger than
/// [`receptor_proto::packet::SEGMENT_MAX`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    /// At most [`receptor_proto::packet::SEGMENT_MAX`] bytes.
    Inline(Bytes),
    /// A stored payload.
    Stored {
        /// Where it is.
        entry: EntryId,
        /// Its size, in bytes.
        size: u64,
    },
}

/// To whom a message goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recipient {
    /// This node.
    Node(NodeId),
    /// The nearest reachable node that has the directive's plugin ready and all of this
    /// metadata; chosen once, and again only while it is certain that the first choice, which cannot be
    /// reached any more, does not have the message. This node itself counts.
    Any {
        /// All must be equal.
        metadata: BTreeMap<String, String>,
    },
}

/// A message that a client asks to send.
#[derive(Debug, Clone)]
pub struct Submission {
    /// Names the message and its work. The caller makes it; a UUID.
    pub id: MessageId,
    /// To whom.
    pub recipient: Recipient,
    /// What to run.
    pub directive: Directive,
    /// What the payload is.
    pub content: Content,
    /// The payload. A stored one lies in the store already, under an entry from
    /// [`crate::Mesh::new_entry`]; the core owns that entry from here on.
    pub payload: Payload,
    /// At most once, never on a disk.
    pub volatile: bool,
    /// False: fire and forget.
    pub respond: bool,
    /// How long the message is worth delivering.
    pub expiry: Duration,
    /// Not to be sent before it is on the disk: should this node lose it, it may be submitted
    /// again with the same id.
    pub repeatable: bool,
}

/// What the driver must do, in this order.
#[derive(Debug)]
pub enum Output {
    /// Send this frame on the link. Emitted only while the link has room
    /// ([`crate::Mesh::handle_room`]), small urgent frames excepted.
    Transmit {
        /// On which link.
        link: LinkId,
        /// What.
        frame: Frame,
    },
    /// Send what was transmitted and close the link. The core has forgotten it; do not call
    /// `handle_link_down` for it.
    CloseLink {
        /// Which.
        link: LinkId,
        /// Why, for the log; the goodbye frame was transmitted already.
        reason: ErrorBody,
    },
    /// Write these records in one atomic, durable step and then call
    /// [`crate::Mesh::handle_persisted`], in the order of the tokens; or
    /// [`crate::Mesh::handle_persist_failed`].
    Persist {
        /// Names the step.
        token: PersistToken,
        /// What to write.
        records: Vec<Record>,
        /// Somebody waits for it: a client for its `Accepted`, a work for its start, another node
        /// for a word that lets it go on. False: it only lets others forget what they keep; the
        /// driver may wait a moment for company, so that both share a sync. The order of the
        /// steps stays.
        urgent: bool,
    },
    /// Forget the entry, what was written about it, and its payload. Needs no confirmation and
    /// no sync of its own, but takes effect in order: an entry that a crash brings back brings
    /// back all those that were removed later and none that was removed before.
    Remove {
        /// Which.
        entry: EntryId,
    },
    /// Read a part of a stored payload, or of the body of a stored message, and call
    /// [`crate::Mesh::handle_fetched`]. The core drops bodies from memory while they wait.
    Fetch {
        /// Which.
        entry: EntryId,
        /// Where it begins.
        offset: u64,
        /// How many bytes, at most [`receptor_proto::packet::SEGMENT_MAX`].
        length: usize,
    },
    /// Read outgoing messages to one recipient and call [`crate::Mesh::handle_loaded`]: those
    /// [`Record::Outgoing`] whose entry is at least `first` and at most `last`, in order of
    /// entry, `remaining_ms` less by the time since the write as at a start. Requests suffice;
    /// whether one was [`Record::Started`] does not matter. Entries whose [`Output::Remove`]
    /// came before this must not be among them. A record that cannot be read is left out (and
    /// reported by the store); an error is for all of it, and the core asks again later. The core
    /// keeps but pages of messages that wait in memory, at a few bytes for each.
    Load {
        /// Names the answer.
        token: LoadToken,
        /// To whom.
        recipient: NodeId,
        /// The first entry that is wanted.
        first: EntryId,
        /// The last one.
        last: EntryId,
        /// How many at most; [`Loaded::next`] says where to go on.
        records: usize,
        /// Payloads in these records, in bytes, at most: further records come with an empty
        /// `message.body`, and the core fetches it when it is needed.
        bytes: usize,
    },
    /// A payload of this message will come in parts, each an [`Output::Append`]. A store that
    /// remembers this gives what it has of the payload to [`crate::Mesh::restore_partial`] at the
    /// next start, and the origin goes on from there. Nothing is to be called.
    Begin {
        /// Where the parts go.
        entry: EntryId,
        /// From whom.
        origin: NodeId,
        /// The envelope.
        message: Box<Message>,
    },
    /// Write a part of an incoming payload behind what is there, then call
    /// [`crate::Mesh::handle_appended`]: when the part is the last, best after a sync of them
    /// all, so that the entry's `Persist` need not wait for one. Several may be under way; those
    /// behind one that failed fail too. Without a `Persist` the payload is nobody's when the
    /// process has ended, and the store forgets it, or gives it to
    /// [`crate::Mesh::restore_partial`].
    Append {
        /// Which.
        entry: EntryId,
        /// Where it begins: always where the last one ended.
        offset: u64,
        /// The part, with the checksum that it was sent with. A part that has another by now is
        /// not written: that is a failure, after which the origin sends it all again.
        piece: Piece,
    },
    /// A client's message is safe; tell the client.
    Accepted {
        /// The message.
        work: MessageId,
        /// To whom it goes; chosen now when the submission said «any».
        recipient: NodeId,
    },
    /// A message that «any» node may get goes to another one than was said: the first cannot be
    /// reached, and certainly never had it.
    Readdressed {
        /// The message.
        work: MessageId,
        /// To whom it goes.
        recipient: NodeId,
    },
    /// A client's message that wants no responses could not be written: it is not accepted, and
    /// nothing more comes of it. Of one that wants responses its last one says so.
    NotAccepted {
        /// The message.
        work: MessageId,
        /// Why.
        reason: ErrorBody,
    },
    /// Prepare to run this work. When a plugin can take it, at once if possible (before the
    /// next output is polled: then one sync covers arrival and start), call
    /// [`crate::Mesh::work_started`]; but hand it over only at [`Output::Start`]. Report with
    /// [`crate::Mesh::work_data`] and, exactly once and also when it never starts,
    /// [`crate::Mesh::work_done`]. Works of an earlier start of this node come before there is
    /// nothing to do for the first time, each that was cancelled then with its [`Output::CancelWork`].
    Dispatch {
        /// The work.
        work: MessageId,
        /// Who asks.
        sender: NodeId,
        /// What to run.
        directive: Directive,
        /// What the payload is.
        content: Content,
        /// The payload; a stored one stays until `work_done`.
        payload: Payload,
        /// 1; or 2 when this node went down after it had started: call
        /// [`crate::Mesh::work_adopted`] if its plugin still runs. Otherwise run it again only if its
        /// plugin says that the action is idempotent, and end it with
        /// [`ErrorCode::Interrupted`] if not.
        attempt: u32,
    },
    /// The start of this work is on the disk: hand it to its plugin. Handing it over earlier
    /// would run it twice when the node crashes in between. Comes once, after
    /// [`crate::Mesh::work_started`].
    Start {
        /// Which.
        work: MessageId,
    },
    /// End this work, started or not. It still ends with [`crate::Mesh::work_done`].
    CancelWork {
        /// Which.
        work: MessageId,
        /// Why.
        reason: CancelReason,
    },
    /// The work may send data again after [`WorkRoom::Wait`].
    ResumeWork {
        /// Which.
        work: MessageId,
    },
    /// A restart knows the responses of this work up to here: nothing of what its plugin gave for them has
    /// to be kept any more. Comes for works that are not volatile, now and then for what it was said of
    /// already, or one that was never dispatched; with the serial of the end when a restart knows of that, or at the latest when it
    /// does not know the work any more.
    ResponsesSafe {
        /// Which.
        work: MessageId,
        /// What [`Taken::serial`] or [`crate::Mesh::work_done`] said.
        serial: u64,
    },
    /// A work here that is not volatile has ended: this is what its sender is told, or what it says that it
    /// was told before. Comes before the [`Output::Persist`] or [`Output::Remove`] of its last response,
    /// so that whoever notes it can do so in the same write; what is written later must not be safe
    /// without it. Of works that nobody waits for only those that failed. What comes later for the same work
    /// replaces it.
    Ended {
        /// Which. There may be none of it here, if it was refused.
        work: MessageId,
        /// Who asked.
        sender: NodeId,
        /// Responses, the last one too.
        responses: u64,
        /// How it ended.
        eof: Eof,
    },
    /// A response for a client, in serial order, after the request's [`Output::Accepted`] if it
    /// was accepted at all. Call [`crate::Mesh::consumed`] when the client has taken it or is
    /// gone. After a restart some that were consumed shortly before may come again.
    Deliver {
        /// The request.
        work: MessageId,
        /// From whom.
        sender: NodeId,
        /// 1, 2, 3 …
        serial: u64,
        /// What the payload is.
        content: Content,
        /// The payload's name, when it has one.
        name: Option<String>,
        /// The payload; a stored one stays until `consumed`.
        payload: Payload,
        /// Present on the last one.
        eof: Option<Eof>,
    },
    /// A node that ran a work of this one tells of an end that is in doubt, of a work that has none to come
    /// here: call [`crate::Mesh::handle_end`] with what is remembered of it. Nothing happens until
    /// then, and it is asked again.
    AskEnd {
        /// Which.
        work: MessageId,
        /// Who tells of it.
        recipient: NodeId,
        /// The place of what it said; to be given back.
        place: (u64, u64),
    },
    /// A request was given up: one of this node, or one in custody whose origin cannot be told. Keep
    /// it for an operator, its payload too, then call [`crate::Mesh::handle_dead_letter`]. Only when
    /// that says that the letter is on the disk its sender is told why, and its entry removed: a
    /// crash before finds the message again, and gives it up again. The message's body is empty, its
    /// size is not, when it is in the store only. A bounded number of them waits for an answer at
    /// once.
    DeadLetter {
        /// Where it is stored.
        entry: EntryId,
        /// Whose it is, when it was in custody; `None`: it is this node's own.
        origin: Option<NodeId>,
        /// To whom it was going.
        recipient: NodeId,
        /// The request.
        message: Box<Message>,
        /// Why.
        reason: ErrorBody,
    },
    /// An echo came back, or will not.
    EchoResult {
        /// Which.
        id: EchoId,
        /// What came of it.
        result: Result<EchoAnswer, ErrorBody>,
    },
    /// Something worth a log line.
    Event(Event),
}

/// An answered echo.
#[derive(Debug, Clone, PartialEq)]
pub struct EchoAnswer {
    /// Who answered: the destination, or the node where the hop limit ended.
    pub from: NodeId,
    /// Whether that is the destination.
    pub arrived: bool,
    /// Links between here and there.
    pub hops: u8,
    /// There and back.
    pub rtt: Duration,
    /// Works accepted there and not finished.
    pub active: u64,
    /// Some of them.
    pub works: Vec<ActiveWork>,
}

/// Whether a work may send more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkRoom {
    /// Go on.
    Open,
    /// This one was taken; wait for [`Output::ResumeWork`] before the next.
    Wait,
}

/// What became of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// Whether there may be more.
    pub room: WorkRoom,
    /// Its number among the work's responses, over all of its runs. `None`: nobody wants it.
    pub serial: Option<u64>,
}

/// How a work goes on whose plugin has outlived an earlier start of this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Adopted {
    /// How many of the next results this node has already. They are to be given again all the same;
    /// nobody looks at what is in them.
    pub repeats: u64,
    /// Whether it may give any now.
    pub room: WorkRoom,
}

/// A thing that happened, for logs. Levels are the driver's choice.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A hello was exchanged; the neighbor can be used.
    NeighborUp {
        /// Over which link.
        link: LinkId,
        /// Who.
        node: NodeId,
        /// The effective cost.
        cost: u32,
        /// The neighbor is a leaf.
        leaf: bool,
        /// Name and version of its program.
        software: String,
    },
    /// A neighbor that was up is so no longer, over this link.
    NeighborDown {
        /// Over which link.
        link: LinkId,
        /// Who.
        node: NodeId,
        /// Why.
        reason: ErrorBody,
    },
    /// The other end refused the link, or this one did.
    LinkRefused {
        /// Which.
        link: LinkId,
        /// Who it said it was, when it came to that.
        node: Option<NodeId>,
        /// Why.
        reason: ErrorBody,
        /// The other end refused.
        by_peer: bool,
    },
    /// Another running node claims this node's id or a neighbor's.
    DuplicateNodeId {
        /// The id.
        node: NodeId,
        /// Whether this node itself is the newcomer that was refused.
        ours: bool,
    },
    /// A node became reachable.
    NodeReachable {
        /// Who.
        node: NodeId,
    },
    /// A node cannot be reached any more.
    NodeUnreachable {
        /// Who.
        node: NodeId,
    },
    /// A node was forgotten.
    NodeForgotten {
        /// Who.
        node: NodeId,
    },
    /// A message of this node was given up; its sender is told.
    GivenUp {
        /// Which.
        work: MessageId,
        /// To whom it was going.
        recipient: NodeId,
        /// Why.
        reason: ErrorBody,
    },
    /// A node remembers a later start of this one, whose data were lost, and takes no messages of
    /// this start. The next start has to have a higher number than that.
    Behind {
        /// Who says so.
        node: NodeId,
        /// The number of that start.
        start: u64,
    },
    /// A message that was given up could not be kept as a dead letter.
    NoDeadLetter {
        /// Which.
        work: MessageId,
        /// Why.
        reason: ErrorBody,
    },
    /// The [`crate::Policy`] says no; whoever asked is told, unless it wants no answer. Comes for each
    /// message and packet: rate-limit these.
    Denied(Denied),
    /// A peer sent something that makes no sense. Rate-limit these.
    PeerMistake {
        /// Over which link.
        link: LinkId,
        /// What.
        reason: ErrorBody,
    },
}

/// Why a submission was not taken.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct SubmitError(pub ErrorBody);

/// A message of this node that its recipient has not confirmed.
#[derive(Debug, Clone, PartialEq)]
pub struct WaitingView {
    /// The request that it is or is about.
    pub work: MessageId,
    /// From whom, when it is in custody here; `None`: it is this node's own.
    pub origin: Option<NodeId>,
    /// To whom it goes.
    pub recipient: NodeId,
    /// What it is.
    pub kind: WaitingKind,
    /// Bytes of its payload.
    pub size: u64,
    /// It is in memory only.
    pub volatile: bool,
    /// It left this node, and its receipt is waited for.
    pub sent: bool,
    /// What is left of its lifetime.
    pub remaining: Duration,
}

/// A work that was accepted here and has not finished.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkView {
    /// Names it.
    pub work: MessageId,
    /// Who asked.
    pub sender: NodeId,
    /// What runs.
    pub directive: Directive,
    /// Since when it is here.
    pub since: Instant,
    /// It was given to its plugin.
    pub running: bool,
    /// It has said its last; only its request is not forgotten yet.
    pub ended: bool,
    /// Its end was asked for.
    pub cancelled: bool,
    /// It is in memory only.
    pub volatile: bool,
    /// Responses that it gave.
    pub responses: u64,
}

/// What a [`WaitingView`] is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WaitingKind {
    /// It asks for work.
    Request {
        /// What is to be run.
        directive: Directive,
    },
    /// It is a response of work that was done here.
    Response {
        /// 1, 2, 3 …
        serial: u64,
    },
    /// It asks for the end of work.
    Cancel,
}

/// One node, as this node knows it.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeView {
    /// Its id.
    pub node: NodeId,
    /// The way there; `None` when there is none now.
    pub route: Option<RouteView>,
    /// Whether it forwards for others.
    pub router: bool,
    /// Name and version of its program; empty when unknown.
    pub software: String,
    /// Its free metadata.
    pub metadata: BTreeMap<String, String>,
    /// Its plugins.
    pub plugins: Vec<Capability>,
    /// Its adjacencies as it states them, with costs; for a leaf, as its routers state them.
    pub links: Vec<(NodeId, u32)>,
    /// When it was last heard of: an LSA of its own, or a change of its reachability.
    pub changed: Instant,
}

/// The way to a node.
#[derive(Debug, Clone, PartialEq)]
pub struct RouteView {
    /// Sum of the costs.
    pub cost: u32,
    /// Number of links.
    pub hops: u8,
    /// The neighbor to send to; the node itself when adjacent. This node's own id for itself.
    pub next_hop: NodeId,
    /// The link to send on; `None` for this node itself.
    pub link: Option<LinkId>,
}

/// One link.
#[derive(Debug, Clone, PartialEq)]
pub struct LinkView {
    /// Its name here.
    pub link: LinkId,
    /// Who is at the other end, once it said so.
    pub node: Option<NodeId>,
    /// What state its adjacency is in.
    pub state: LinkState,
    /// The effective cost.
    pub cost: u32,
    /// The better of two links to one neighbor; the other stands by.
    pub in_use: bool,
    /// Where it leads or comes from.
    pub address: String,
    /// This side made the connection.
    pub dialled: bool,
    /// Smoothed round-trip time of probes.
    pub rtt: Option<Duration>,
    /// When the link came up.
    pub since: Instant,
    /// When something was last heard.
    pub heard: Instant,
    /// Frames and bytes of packets sent and received.
    pub counters: LinkCounters,
    /// Bytes waiting to be sent.
    pub queued: usize,
}

/// State of the adjacency over one link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkState {
    /// Waiting for the other side's hello.
    Opening,
    /// Waiting to learn whether another node with the same id is alive.
    Checking,
    /// Usable.
    Up,
}

/// What went over a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LinkCounters {
    /// Frames sent.
    pub frames_out: u64,
    /// Frames received.
    pub frames_in: u64,
    /// Packets dropped for lack of room or route.
    pub dropped: u64,
}

/// Totals since the start, for status, metrics and the simulator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Shortest-path computations.
    pub spf_runs: u64,
    /// LSAs sent in [`Frame::Lsas`].
    pub lsas_sent: u64,
    /// LSAs received, and how many of them were news.
    pub lsas_received: u64,
    /// See above.
    pub lsas_new: u64,
    /// Packets passed on for others.
    pub forwarded: u64,
    /// Packets dropped: no route.
    pub dropped_no_route: u64,
    /// Packets dropped: hop limit.
    pub dropped_hop_limit: u64,
    /// Packets dropped: queue full.
    pub dropped_queue_full: u64,
    /// Bodies and frames of unknown kind.
    pub unknown: u64,
    /// Things peers got wrong.
    pub peer_mistakes: u64,
    /// Statements and packets that were refused because they do not prove whose they are; in meshes with
    /// certificates.
    pub unproved: u64,
    /// Messages of this node sent again.
    pub retransmitted: u64,
    /// Messages that came again and were recognised.
    pub duplicates: u64,
    /// Responses that nobody here waits for; received and dropped.
    pub orphans: u64,
}

/// Why a call about a work was not taken: a mistake of the driver that does no harm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("there is no such work in progress")]
pub struct NoSuchWork;

/// The state of a destination, for commands that must say why they fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reachability {
    /// This node itself, or there is a route.
    Reachable,
    /// Known, without a route: [`ErrorCode::NoRoute`].
    NoRoute,
    /// Never heard of, or forgotten: [`ErrorCode::NoSuchNode`].
    Unknown,
}

impl Reachability {
    /// The error code, unless reachable.
    #[must_use]
    pub fn code(self) -> Option<ErrorCode> {
        match self {
            Self::Reachable => None,
            Self::NoRoute => Some(ErrorCode::NoRoute),
            Self::Unknown => Some(ErrorCode::NoSuchNode),
        }
    }
}

impl Config {
    /// A node with every limit at its default.
    #[must_use]
    pub fn new(node: NodeId, instance: u64, seed: u64) -> Self {
        Self {
            node,
            instance,
            seed,
            router: true,
            software: String::new(),
            hold_time: Duration::from_secs(4),
            hop_limit: 30,
            lsa_lifetime: Duration::from_secs(3600),
            dead_node_retention: Duration::from_secs(600),
            limits: Limits::default(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            links: 4096,
            lsas: 250_000,
            lsa_bytes: 128 << 20,
            link_credit: 4 << 20,
            link_queue: 4 << 20,
            flow_window: 2 << 20,
            flow_messages: 4096,
            flow_waiting: 2048,
            page_messages: 1000,
            outgoing_bytes: 10 << 30,
            outgoing_entries: 1_000_000,
            custody_entries: 10_000,
            custody_entries_each: 1000,
            custody_bytes: 256 << 20,
            works: 10_000,
            work_backlog: 1 << 20,
            inbox_bytes: 4 << 20,
            echoes: 1024,
        }
    }
}
