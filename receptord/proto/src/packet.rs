//! Packets: what travels from one node to another over any number of links.
//!
//! A transit node reads the header alone and passes the body on as it came. Bodies whose kind
//! this version does not know are passed on too, and dropped only at their destination.
//!
//! Messages flow from an origin to a recipient in a *flow*: each carries the origin's epoch
//! (which start of the node it was accepted in) and a sequence number that is the flow's own,
//! so that the recipient recognises repeats with a few ranges. A message whose payload is larger than
//! [`SEGMENT_MAX`] sends its envelope first and its payload in [`Segment`]s.

mod message;
pub mod sealed;

use alloc::vec::Vec;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::directive::{Directive, NAME_MAX};
use crate::error::{CODE_MAX, ErrorCode};
use crate::id::{MessageId, NodeId};
use crate::wire::{DecodeError, Reader, Writer, bytes_len};

use self::message::SHORT_ERROR_MAX;

pub use self::message::{
    CancelReason, Content, ERROR_MAX, Eof, Message, MessageKind, PAYLOAD_MAX, RESULT_NAME_MAX,
    SMALL_MAX,
};

/// The largest payload carried inside its message, and the largest segment, in bytes: large
/// enough that headers do not matter, small enough that a ping waits half a millisecond for one
/// at 1 Gbit/s, and 50 ms at 10 Mbit/s.
pub const SEGMENT_MAX: usize = 64 * 1024;
/// The most ranges in one receipt, and runs in one word about custody.
pub const RANGES_MAX: usize = 256;
/// What a node id mostly takes, in bytes.
const NODE_HINT: usize = 40;
/// The most works in one inquiry: with all of them it is a control packet.
pub const INQUIRY_MAX: usize = 256;
/// How many works an echo reply names; the rest is counted only.
pub const ACTIVE_MAX: usize = 16;

/// Which packets go first when a link has several to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// Receipts, echoes and other small answers that free memory elsewhere.
    Control,
    /// Messages of up to [`SMALL_MAX`] bytes.
    Small,
    /// Everything larger.
    Bulk,
}

/// The largest packet that travels as [`Priority::Control`], in bytes of its frame: a receipt
/// with every list full. Anything larger, and every message and segment, counts as
/// [`Priority::Bulk`] whatever its sender says, because control packets take no credit.
pub const CONTROL_MAX: usize = 16 * 1024;

impl Priority {
    /// In order of precedence.
    pub const ALL: [Self; 3] = [Self::Control, Self::Small, Self::Bulk];
}

/// One packet.
#[derive(Debug, Clone, PartialEq)]
pub struct Packet {
    /// How many more nodes may pass it on.
    pub hop_limit: u8,
    /// How many nodes passed it on.
    pub hops: u8,
    /// Which queue it takes.
    pub priority: Priority,
    /// Where it comes from.
    pub source: NodeId,
    /// Where it goes.
    pub destination: NodeId,
    /// What kind of body follows.
    pub kind: u8,
    /// [`Body::encode`].
    pub body: Bytes,
}

impl Packet {
    /// A packet as its source sends it.
    #[must_use]
    pub fn new(source: NodeId, destination: NodeId, hop_limit: u8, body: &Body) -> Self {
        let (kind, bytes) = body.encode();
        Self {
            hop_limit,
            hops: 0,
            priority: body.priority(),
            source,
            destination,
            kind,
            body: bytes,
        }
    }

    /// [`Packet::new`] for a message that stays with its owner.
    #[must_use]
    pub fn with_message(
        source: NodeId,
        destination: NodeId,
        hop_limit: u8,
        message: &Message,
    ) -> Self {
        let mut out = Vec::with_capacity(message.size_hint());
        message.encode(&mut Writer(&mut out));
        Self {
            hop_limit,
            hops: 0,
            priority: message.priority(),
            source,
            destination,
            kind: kind::MESSAGE,
            body: out.into(),
        }
    }

    /// Bytes of a whole frame with this packet; what credit is counted in.
    #[must_use]
    pub fn wire_size(&self) -> usize {
        crate::frame::HEADER + self.encoded_len()
    }

    pub(crate) fn encoded_len(&self) -> usize {
        4 + bytes_len(self.source.as_str().len())
            + bytes_len(self.destination.as_str().len())
            + self.body.len()
    }

    /// Everything but the body, which comes last.
    pub(crate) fn encode_head(&self, w: &mut Writer<'_>) {
        w.u8(self.hop_limit);
        w.u8(self.hops);
        w.u8(match self.priority {
            Priority::Control => 0,
            Priority::Small => 1,
            Priority::Bulk => 2,
        });
        w.node(&self.source);
        w.node(&self.destination);
        w.u8(self.kind);
    }

    pub(crate) fn decode(r: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self {
            hop_limit: r.u8("hop limit")?,
            hops: r.u8("hops")?,
            priority: match r.u8("priority")? {
                0 => Priority::Control,
                1 => Priority::Small,
                _ => Priority::Bulk,
            },
            source: r.node("source")?,
            destination: r.node("destination")?,
            kind: r.u8("packet kind")?,
            body: r.clone().into_rest(),
        })
    }
}

/// What a packet is for.
#[derive(Debug, Clone, PartialEq)]
pub enum Body {
    /// Asks the destination, or the node where the hop limit ends, for an [`EchoReply`].
    Echo {
        /// Comes back in the reply.
        nonce: u64,
    },
    /// Answers an echo.
    EchoReply(EchoReply),
    /// A node could not pass a packet on.
    Undeliverable(Undeliverable),
    /// An envelope, and its payload when that is small.
    Message(Message),
    /// A part of a large payload.
    Segment(Segment),
    /// What the recipient of a flow has.
    Receipt(Receipt),
    /// A message that a node on the way kept, and now sends for its origin, which is the packet's
    /// source.
    Kept {
        /// Who kept it, and wants to know when it has arrived.
        custodian: NodeId,
        /// The message, whole.
        message: Message,
    },
    /// Who has messages of a flow in custody, or that nobody needs to any more.
    Custody(Custody),
    /// From a message's origin, without a way to its recipient, to a node that is nearer: to be
    /// passed on, or kept until there is a way.
    Entrusted {
        /// Whom it is for.
        recipient: NodeId,
        /// The message, whole.
        message: Message,
    },
    /// Whether a node that has received requests still knows of them, and its answer.
    Inquiry(Inquiry),
    /// A kind of a newer version; dropped and counted.
    /// So is one that is sealed, see [`sealed`]: it is opened before anybody asks what it is.
    Unknown {
        /// The kind byte.
        kind: u8,
    },
}

/// Answers [`Body::Echo`].
#[derive(Debug, Clone, PartialEq)]
pub struct EchoReply {
    /// The echo's.
    pub nonce: u64,
    /// How many nodes the echo passed through, the destination not counted.
    pub hops: u8,
    /// False: this node is not the destination; the echo's hop limit ended here.
    pub arrived: bool,
    /// How many works the node has accepted and not finished.
    pub active: u64,
    /// Some of them, oldest first, at most [`ACTIVE_MAX`].
    pub works: Vec<ActiveWork>,
}

/// A work in an [`EchoReply`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActiveWork {
    /// Names it.
    pub id: MessageId,
    /// What runs.
    pub directive: Directive,
    /// Since when it is there, in milliseconds.
    pub age_ms: u64,
    /// Running, or still waiting.
    pub running: bool,
}

/// What an [`Undeliverable`] is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum About {
    /// An echo with this nonce.
    Echo(u64),
    /// A message or segment with this epoch and sequence of the flow.
    Message {
        /// The flow's epoch.
        epoch: u64,
        /// The message's sequence number.
        seq: u64,
    },
}

/// Tells the source of a packet that it was not passed on. Its own source is the node that
/// could not. Never sent about another undeliverable, and to leaves alone about receipts and echo
/// replies, so that they try another of their routers: those are named by epoch and sequence 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Undeliverable {
    /// `no-route`, `no-such-node`, `hop-limit` or `busy`.
    pub code: ErrorCode,
    /// Where the packet was going.
    pub destination: NodeId,
    /// Which packet it was.
    pub about: About,
}

/// A part of a large payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// The message's.
    pub epoch: u64,
    /// The message's.
    pub seq: u64,
    /// Where the part begins.
    pub offset: u64,
    /// The part.
    pub piece: Piece,
}

/// A piece of a payload with the checksum that it had where it was accepted, so that whoever
/// stores it knows that it is what the sender gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// CRC-32C of the bytes. This crate carries it and does not look at it.
    pub sum: u32,
    /// The piece.
    pub bytes: Bytes,
}

/// What the recipient of a flow has safe, may not take now, and has of unfinished payloads.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Receipt {
    /// The flow's epoch.
    pub epoch: u64,
    /// First and last sequence numbers of runs received whole, in order.
    pub received: Vec<(u64, u64)>,
    /// Sequence number and how many bytes of its payload are here, for unfinished ones.
    pub progress: Vec<(u64, u64)>,
    /// Sequence number and for how many milliseconds not to send it again: there is no room now.
    /// 0: send it again, from its beginning; there is room after all.
    pub busy: Vec<(u64, u64)>,
    /// Which start of the recipient this is; grows over restarts. 0: not said.
    pub instance: u64,
    /// The epoch that the recipient knows of this origin, when the flow's is an earlier one. It takes no
    /// requests and cancels of that any more, because their origin is done with them; one that
    /// never had the later epoch has lost its memory, and what is `received` of these was not
    /// taken. 0: it knows none.
    pub later: u64,
    /// How a work ended before one of what is `received` came, which says that its end is in doubt.
    pub earlier: Option<EarlierEnd>,
}

/// The end that a request's origin had of a work before another came that is in doubt. It counts at both
/// ends of the work.
#[derive(Debug, Clone, PartialEq)]
pub struct EarlierEnd {
    /// The sequence number of the last response that came too late.
    pub seq: u64,
    /// How many responses the origin has, the last one too.
    pub responses: u64,
    /// How the work ended.
    pub eof: Eof,
}

/// What is said of messages that a node on the way keeps, or was asked to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holding {
    /// From the custodian to their origin, and to the node that kept them before: they are on
    /// its disk.
    Kept,
    /// From their recipient to the custodian: they are in its hands, or will never be wanted.
    Done,
    /// From the custodian to their origin: it does not keep them, for lack of room.
    Refused,
    /// From the custodian to their origin: it keeps them no longer, because their time is over
    /// or they cannot be read any more.
    Dropped,
    /// From the custodian to their origin: its operator gave them up, and they are to be given up.
    GivenUp,
    /// From their recipient to the custodian: what it sent under this name cannot be opened, and never will
    /// be. Of sealed messages only; with the fingerprint of the one that came, so that it is not believed of
    /// another.
    Unopened(u64),
    /// A word of a later version; says nothing.
    Unknown(u8),
}

/// The byte of [`Holding::Unopened`].
const UNOPENED: u8 = 5;

/// What became of messages that were kept on their way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Custody {
    /// What is said of them.
    pub holding: Holding,
    /// Whose messages.
    pub origin: NodeId,
    /// Whom they are for.
    pub recipient: NodeId,
    /// The flow's epoch.
    pub epoch: u64,
    /// First and last sequence numbers of runs, in order; at most [`RANGES_MAX`].
    pub messages: Vec<(u64, u64)>,
    /// They are not kept, and were never sent on from there: who sent each of them once can be
    /// certain that nobody has them.
    pub never_sent: bool,
}

/// Asks the recipient of requests that had arrived whether it still knows of them: one that has lost
/// its disk does not, and nobody else would ever say so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inquiry {
    /// Comes back in the reply.
    pub nonce: u64,
    /// It is the reply.
    pub is_reply: bool,
    /// The works asked about, of which the packet's source has sent the requests; in a reply, those of
    /// them that its source has no record of. At most [`INQUIRY_MAX`].
    pub works: Vec<MessageId>,
}

impl Holding {
    fn byte(self) -> u8 {
        match self {
            Self::Kept => 0,
            Self::Done => 1,
            Self::Refused => 2,
            Self::Dropped => 3,
            Self::GivenUp => 4,
            Self::Unopened(_) => UNOPENED,
            Self::Unknown(byte) => byte,
        }
    }

    fn of(byte: u8) -> Self {
        match byte {
            0 => Self::Kept,
            1 => Self::Done,
            2 => Self::Refused,
            3 => Self::Dropped,
            4 => Self::GivenUp,
            byte => Self::Unknown(byte),
        }
    }
}

/// The kind bytes of bodies, for nodes that pass packets on without reading them.
pub mod kind {
    /// [`super::Body::Echo`].
    pub const ECHO: u8 = 1;
    /// [`super::Body::EchoReply`].
    pub const ECHO_REPLY: u8 = 2;
    /// [`super::Body::Undeliverable`].
    pub const UNDELIVERABLE: u8 = 3;
    /// [`super::Body::Message`].
    pub const MESSAGE: u8 = 4;
    /// [`super::Body::Segment`].
    pub const SEGMENT: u8 = 5;
    /// [`super::Body::Receipt`].
    pub const RECEIPT: u8 = 6;
    /// [`super::Body::Kept`].
    pub const KEPT: u8 = 7;
    /// [`super::Body::Custody`].
    pub const CUSTODY: u8 = 8;
    /// [`super::Body::Entrusted`].
    pub const ENTRUSTED: u8 = 9;
    /// [`super::Body::Inquiry`].
    pub const INQUIRY: u8 = 10;
    /// [`super::sealed::Identity`].
    pub const IDENTITY: u8 = 11;
    /// Added to the kind of a body that travels sealed, see [`super::sealed`].
    pub const SEALED: u8 = 64;

    /// What the body is, whether it is sealed or not.
    #[must_use]
    pub const fn plain(kind: u8) -> u8 {
        kind & !SEALED
    }
}

impl Body {
    /// Which queue a packet with this body takes.
    #[must_use]
    pub fn priority(&self) -> Priority {
        match self {
            Self::Echo { .. }
            | Self::EchoReply(_)
            | Self::Undeliverable(_)
            | Self::Receipt(_)
            | Self::Custody(_)
            | Self::Inquiry(_)
            | Self::Unknown { .. } => Priority::Control,
            Self::Message(message)
            | Self::Kept { message, .. }
            | Self::Entrusted { message, .. } => message.priority(),
            Self::Segment(_) => Priority::Bulk,
        }
    }

    /// The kind byte and the bytes of this body.
    #[must_use]
    pub fn encode(&self) -> (u8, Bytes) {
        let mut out = Vec::with_capacity(self.size_hint());
        let mut w = Writer(&mut out);
        let kind = match self {
            Self::Echo { nonce } => {
                w.varint(*nonce);
                kind::ECHO
            }
            Self::EchoReply(reply) => {
                reply.encode(&mut w);
                kind::ECHO_REPLY
            }
            Self::Undeliverable(notice) => {
                notice.encode(&mut w);
                kind::UNDELIVERABLE
            }
            Self::Message(message) => {
                message.encode(&mut w);
                kind::MESSAGE
            }
            Self::Segment(segment) => {
                w.varint(segment.epoch);
                w.varint(segment.seq);
                w.varint(segment.offset);
                w.fixed_u32(segment.piece.sum);
                w.0.extend_from_slice(&segment.piece.bytes);
                kind::SEGMENT
            }
            Self::Receipt(receipt) => {
                receipt.encode(&mut w);
                kind::RECEIPT
            }
            Self::Kept { custodian, message } => {
                w.node(custodian);
                message.encode(&mut w);
                kind::KEPT
            }
            Self::Custody(custody) => {
                custody.encode(&mut w);
                kind::CUSTODY
            }
            Self::Entrusted { recipient, message } => {
                w.node(recipient);
                message.encode(&mut w);
                kind::ENTRUSTED
            }
            Self::Inquiry(inquiry) => {
                inquiry.encode(&mut w);
                kind::INQUIRY
            }
            Self::Unknown { kind } => *kind,
        };
        (kind, out.into())
    }

    /// Reads a body of this kind.
    pub fn decode(kind: u8, body: Bytes) -> Result<Self, DecodeError> {
        let mut r = Reader::new(body);
        Ok(match kind {
            kind::ECHO => Self::Echo {
                nonce: r.varint("nonce")?,
            },
            kind::ECHO_REPLY => Self::EchoReply(EchoReply::decode(&mut r)?),
            kind::UNDELIVERABLE => Self::Undeliverable(Undeliverable::decode(&mut r)?),
            kind::MESSAGE => Self::Message(Message::decode(r)?),
            kind::SEGMENT => {
                let epoch = r.varint("epoch")?;
                let seq = r.varint("sequence")?;
                let offset = r.varint("offset")?;
                let sum = r.fixed_u32("checksum")?;
                let bytes = r.into_rest();
                if bytes.len() > SEGMENT_MAX {
                    let (size, limit) = (bytes.len() as u64, SEGMENT_MAX as u64);
                    return Err(DecodeError::TooLarge {
                        what: "segment",
                        size,
                        limit,
                    });
                }
                Self::Segment(Segment {
                    epoch,
                    seq,
                    offset,
                    piece: Piece { sum, bytes },
                })
            }
            kind::RECEIPT => Self::Receipt(Receipt::decode(&mut r)?),
            kind::KEPT => Self::Kept {
                custodian: r.node("custodian")?,
                message: Message::decode(r)?,
            },
            kind::CUSTODY => Self::Custody(Custody::decode(&mut r)?),
            kind::ENTRUSTED => Self::Entrusted {
                recipient: r.node("recipient")?,
                message: Message::decode(r)?,
            },
            kind::INQUIRY => Self::Inquiry(Inquiry::decode(&mut r)?),
            kind => Self::Unknown { kind },
        })
    }

    fn size_hint(&self) -> usize {
        match self {
            Self::Message(message) => message.size_hint(),
            Self::Kept { message, .. } | Self::Entrusted { message, .. } => {
                message.size_hint() + NODE_HINT
            }
            Self::Segment(segment) => segment.piece.bytes.len() + 36,
            Self::Inquiry(inquiry) => 16 * inquiry.works.len() + 16,
            Self::Echo { .. }
            | Self::EchoReply(_)
            | Self::Undeliverable(_)
            | Self::Receipt(_)
            | Self::Custody(_)
            | Self::Unknown { .. } => 32,
        }
    }
}

impl EchoReply {
    fn encode(&self, w: &mut Writer<'_>) {
        w.varint(self.nonce);
        w.u8(self.hops);
        w.u8(u8::from(self.arrived));
        w.varint(self.active);
        w.varint(self.works.len() as u64);
        for work in &self.works {
            write_id(w, work.id);
            w.str(work.directive.as_str());
            w.varint(work.age_ms);
            w.u8(u8::from(work.running));
        }
    }

    fn decode(r: &mut Reader) -> Result<Self, DecodeError> {
        let nonce = r.varint("nonce")?;
        let hops = r.u8("hops")?;
        let arrived = r.bool("arrived")?;
        let active = r.varint("active works")?;
        let count = r.count(20, "active works")?;
        if count > ACTIVE_MAX {
            let (size, limit) = (count as u64, ACTIVE_MAX as u64);
            return Err(DecodeError::TooLarge {
                what: "active works",
                size,
                limit,
            });
        }
        let mut works = Vec::with_capacity(count);
        for _ in 0..count {
            works.push(ActiveWork {
                id: read_id(r)?,
                directive: read_directive(r)?,
                age_ms: r.varint("age")?,
                running: r.bool("running")?,
            });
        }
        Ok(Self {
            nonce,
            hops,
            arrived,
            active,
            works,
        })
    }
}

impl Undeliverable {
    fn encode(&self, w: &mut Writer<'_>) {
        w.str(self.code.as_str());
        w.node(&self.destination);
        match &self.about {
            About::Echo(nonce) => {
                w.u8(1);
                w.varint(*nonce);
            }
            About::Message { epoch, seq } => {
                w.u8(2);
                w.varint(*epoch);
                w.varint(*seq);
            }
        }
    }

    fn decode(r: &mut Reader) -> Result<Self, DecodeError> {
        let code = r
            .str(CODE_MAX, "code")?
            .parse()
            .unwrap_or(ErrorCode::Internal);
        let destination = r.node("destination")?;
        let about = match r.u8("about")? {
            1 => About::Echo(r.varint("nonce")?),
            2 => About::Message {
                epoch: r.varint("epoch")?,
                seq: r.varint("sequence")?,
            },
            _ => return Err(DecodeError::Bad { what: "about" }),
        };
        Ok(Self {
            code,
            destination,
            about,
        })
    }
}

impl Custody {
    fn encode(&self, w: &mut Writer<'_>) {
        w.u8(self.holding.byte());
        w.node(&self.origin);
        w.node(&self.recipient);
        w.varint(self.epoch);
        w.varint(self.messages.len() as u64);
        for (first, last) in &self.messages {
            w.varint(*first);
            w.varint(*last);
        }
        w.u8(u8::from(self.never_sent));
        if let Holding::Unopened(fingerprint) = self.holding {
            w.fixed_u64(fingerprint);
        }
    }

    fn decode(r: &mut Reader) -> Result<Self, DecodeError> {
        let holding = r.u8("holding")?;
        let origin = r.node("origin")?;
        let recipient = r.node("recipient")?;
        let epoch = r.varint("epoch")?;
        let count = r.count(2, "kept messages")?;
        if count > RANGES_MAX {
            let (size, limit) = (count as u64, RANGES_MAX as u64);
            let what = "kept messages";
            return Err(DecodeError::TooLarge { what, size, limit });
        }
        let mut messages = Vec::with_capacity(count);
        for _ in 0..count {
            let (first, last) = (r.varint("first")?, r.varint("last")?);
            if first > last {
                return Err(DecodeError::Bad {
                    what: "kept messages",
                });
            }
            messages.push((first, last));
        }
        let flags = if r.remaining() > 0 { r.u8("flags")? } else { 0 };
        let holding = match holding {
            UNOPENED => Holding::Unopened(r.fixed_u64("fingerprint")?),
            byte => Holding::of(byte),
        };
        Ok(Self {
            holding,
            origin,
            recipient,
            epoch,
            messages,
            never_sent: flags & 1 != 0,
        })
    }
}

impl Inquiry {
    fn encode(&self, w: &mut Writer<'_>) {
        w.varint(self.nonce);
        w.u8(u8::from(self.is_reply));
        w.varint(self.works.len() as u64);
        for work in &self.works {
            write_id(w, *work);
        }
    }

    fn decode(r: &mut Reader) -> Result<Self, DecodeError> {
        let nonce = r.varint("nonce")?;
        let is_reply = r.bool("reply")?;
        let what = "works asked about";
        let count = r.count(16, what)?;
        if count > INQUIRY_MAX {
            let (size, limit) = (count as u64, INQUIRY_MAX as u64);
            return Err(DecodeError::TooLarge { what, size, limit });
        }
        let works = (0..count).map(|_| read_id(r)).collect::<Result<_, _>>()?;
        Ok(Self {
            nonce,
            is_reply,
            works,
        })
    }
}

impl Receipt {
    fn encode(&self, w: &mut Writer<'_>) {
        w.varint(self.epoch);
        for list in [&self.received, &self.progress, &self.busy] {
            w.varint(list.len() as u64);
            for (a, b) in list {
                w.varint(*a);
                w.varint(*b);
            }
        }
        w.varint(self.instance);
        if self.later > 0 || self.earlier.is_some() {
            w.varint(self.later);
        }
        if let Some(EarlierEnd {
            seq,
            responses,
            eof,
        }) = &self.earlier
        {
            w.varint(*seq);
            w.varint(*responses);
            w.u8(u8::from(eof.error.is_some()));
            eof.encode(w, SHORT_ERROR_MAX);
        }
    }

    fn decode(r: &mut Reader) -> Result<Self, DecodeError> {
        let epoch = r.varint("epoch")?;
        let mut list = |what| {
            let count = r.count(2, what)?;
            if count > RANGES_MAX {
                let (size, limit) = (count as u64, RANGES_MAX as u64);
                return Err(DecodeError::TooLarge { what, size, limit });
            }
            (0..count)
                .map(|_| Ok((r.varint(what)?, r.varint(what)?)))
                .collect::<Result<Vec<_>, DecodeError>>()
        };
        let received = list("received")?;
        if received.iter().any(|(first, last)| first > last) {
            return Err(DecodeError::Bad { what: "received" });
        }
        let progress = list("progress")?;
        let busy = list("busy")?;
        let mut added = |what| if r.is_empty() { Ok(0) } else { r.varint(what) };
        Ok(Self {
            epoch,
            received,
            progress,
            busy,
            instance: added("instance")?,
            later: added("later epoch")?,
            earlier: match added("earlier end")? {
                0 => None,
                seq => {
                    let responses = r.varint("responses")?;
                    let has_error = r.bool("error")?;
                    let eof = Eof::decode(r, has_error)?;
                    Some(EarlierEnd {
                        seq,
                        responses,
                        eof,
                    })
                }
            },
        })
    }
}

pub(super) fn write_id(w: &mut Writer<'_>, id: MessageId) {
    w.0.extend_from_slice(&id.as_u128().to_be_bytes());
}

pub(super) fn read_id(r: &mut Reader) -> Result<MessageId, DecodeError> {
    let high = r.fixed_u64("message id")?;
    let low = r.fixed_u64("message id")?;
    Ok(MessageId::from_u128(
        u128::from(high) << 64 | u128::from(low),
    ))
}

pub(super) fn read_directive(r: &mut Reader) -> Result<Directive, DecodeError> {
    r.text(2 * NAME_MAX + 1, "directive", |text| {
        Directive::new(text).ok()
    })
}
