//! What a node writes to its own disk: messages on their way, and what it must remember of
//! those that are gone.
//!
//! One record is a kind byte and that kind's fields. Everything is encoded as on the link
//! ([`crate::wire`]); `bytes` and `node` are a length and that many bytes.
//!
//! ```text
//!   outgoing   1  entry:varint  at-ms:varint  size:varint  recipient:node  envelope:bytes  body:bytes
//!   incoming   2  entry:varint  at-ms:varint  size:varint  origin:node     envelope:bytes  body:bytes
//!   started    3  entry:varint
//!   received   4  origin:node  epoch:varint  floor:varint  count:varint  (first:varint last:varint)…
//!   transit    5  entry:varint  at-ms:varint  size:varint  recipient:node  envelope:bytes  body:bytes  origin:node
//!   64 … 127      the store's own
//! ```
//!
//! `at-ms` is the wall clock at the write, in milliseconds since 1970: reading takes the time
//! that has passed off what the message has left to live; a clock that went back takes off
//! nothing. `size` is that of the whole payload; one above [`SEGMENT_MAX`] is not in `body`.
//! `envelope` is the message as on the link without its payload.
//!
//! Later versions add fields at the end of a record or of its envelope, where this one skips
//! them, and add kinds, which this one reads as `None`; a store keeps both as they are. This
//! module knows nothing of how records are framed, checked or found again.

use alloc::vec::Vec;

use bytes::Bytes;

use crate::id::NodeId;
use crate::packet::{Message, SEGMENT_MAX};
use crate::wire::{DecodeError, Reader, Writer};

/// The first kind byte that a store may use for itself.
pub const STORE_KIND_FIRST: u8 = 64;
/// The last one.
pub const STORE_KIND_LAST: u8 = 127;

/// One stored message or payload, as the core names it. Never used twice over all restarts
/// that share a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId(pub u64);

/// A stored thing, as the store gives it back after a restart and as it is asked to write it.
#[derive(Debug, Clone, PartialEq)]
pub enum Record {
    /// A message of this node that its recipient has not confirmed, or a request that still
    /// waits for its last response. `message.body` is the payload unless it is stored under
    /// `entry` as segments are.
    Outgoing {
        /// Its name in the store.
        entry: EntryId,
        /// To whom.
        recipient: NodeId,
        /// The envelope. `remaining_ms` as of the write; a store that knows how long ago that
        /// was takes it off.
        message: Message,
    },
    /// A message for this node, complete.
    Incoming {
        /// Its name in the store.
        entry: EntryId,
        /// From whom.
        origin: NodeId,
        /// The envelope; `remaining_ms` as of the write.
        message: Message,
    },
    /// A message from one other node to a second that is kept here until there is a way: in
    /// custody. Its payload is never larger than [`SEGMENT_MAX`].
    Transit {
        /// Its name in the store.
        entry: EntryId,
        /// From whom.
        origin: NodeId,
        /// To whom.
        recipient: NodeId,
        /// The envelope and payload; `remaining_ms` as of the write.
        message: Message,
    },
    /// Of an incoming request: its work is handed to a plugin. Of an outgoing request: its
    /// recipient has it and must not be sent it again. Of an incoming response: its client took
    /// it and all before it.
    Started {
        /// The message's entry.
        entry: EntryId,
    },
    /// What was received in one flow, so that repeats are recognised after the entries are gone.
    /// A later record of the same origin and epoch replaces an earlier one; one with floor
    /// [`u64::MAX`] says that nothing is left to remember, and need not be kept at all.
    Received {
        /// The flow's origin.
        origin: NodeId,
        /// The flow's epoch.
        epoch: u64,
        /// Everything below is received or will never come.
        floor: u64,
        /// First and last of the runs received from there on.
        ranges: Vec<(u64, u64)>,
    },
}

/// The kind bytes, for stores that keep records without reading them.
pub mod kind {
    /// [`super::Record::Outgoing`].
    pub const OUTGOING: u8 = 1;
    /// [`super::Record::Incoming`].
    pub const INCOMING: u8 = 2;
    /// [`super::Record::Started`].
    pub const STARTED: u8 = 3;
    /// [`super::Record::Received`].
    pub const RECEIVED: u8 = 4;
    /// [`super::Record::Transit`].
    pub const TRANSIT: u8 = 5;
}

/// What a store must know of a record to file it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Label {
    /// [`Record::Outgoing`], [`Record::Incoming`] or [`Record::Transit`].
    Message {
        /// Its name.
        entry: EntryId,
        /// It is an outgoing one.
        outgoing: bool,
        /// The origin of an incoming one, the recipient of any other.
        node: NodeId,
        /// Bytes of the payload, wherever it is.
        size: u64,
    },
    /// [`Record::Started`].
    Started(EntryId),
    /// [`Record::Received`].
    Received {
        /// The flow's origin.
        origin: NodeId,
        /// The flow's epoch.
        epoch: u64,
        /// Nothing is left to remember.
        over: bool,
    },
    /// Of the store itself, or of a later version.
    Other(u8),
}

/// Room that is made for an envelope, and for what stands before it, so that it is not made byte by byte: what
/// they seldom take more than.
const ENVELOPE: usize = 128;
const HEAD: usize = 64;

impl Record {
    /// Appends this record as written at `now_ms`, in milliseconds since 1970.
    pub fn encode(&self, now_ms: u64, out: &mut Vec<u8>) {
        let mut w = Writer(out);
        match self {
            Self::Outgoing {
                entry,
                recipient: node,
                message,
            }
            | Self::Incoming {
                entry,
                origin: node,
                message,
            }
            | Self::Transit {
                entry,
                recipient: node,
                message,
                ..
            } => {
                w.0.reserve(HEAD + ENVELOPE + message.body.len());
                w.u8(match self {
                    Self::Outgoing { .. } => kind::OUTGOING,
                    Self::Transit { .. } => kind::TRANSIT,
                    Self::Incoming { .. } | Self::Started { .. } | Self::Received { .. } => {
                        kind::INCOMING
                    }
                });
                w.varint(entry.0);
                w.varint(now_ms);
                w.varint(message.size);
                w.node(node);
                let mut envelope = Vec::with_capacity(ENVELOPE);
                message.encode_envelope(&mut Writer(&mut envelope));
                w.bytes(&envelope);
                w.bytes(&message.body);
                if let Self::Transit { origin, .. } = self {
                    w.node(origin);
                }
            }
            Self::Started { entry } => {
                w.0.reserve(HEAD);
                w.u8(kind::STARTED);
                w.varint(entry.0);
            }
            Self::Received {
                origin,
                epoch,
                floor,
                ranges,
            } => {
                w.0.reserve(HEAD);
                w.u8(kind::RECEIVED);
                w.node(origin);
                w.varint(*epoch);
                w.varint(*floor);
                w.varint(ranges.len() as u64);
                for (first, last) in ranges {
                    w.varint(*first);
                    w.varint(*last);
                }
            }
        }
    }

    /// Reads a record at `now_ms`; `None` is a kind of a store or of a later version. Bodies
    /// are slices of `bytes`.
    ///
    /// # Errors
    ///
    /// When it is no record.
    pub fn decode(bytes: Bytes, now_ms: u64) -> Result<Option<Self>, DecodeError> {
        let mut r = Reader::new(bytes);
        let kind = r.u8("record kind")?;
        Ok(Some(match kind {
            kind::OUTGOING | kind::INCOMING | kind::TRANSIT => {
                let prefix = Prefix::decode(&mut r)?;
                let mut envelope = Reader::new(r.bytes(r.remaining(), "envelope")?);
                let mut message = Message::decode_envelope(&mut envelope)?;
                let body = r.bytes(SEGMENT_MAX, "body")?;
                message = message.with_body(body)?;
                if message.size != prefix.size {
                    return Err(DecodeError::Bad { what: "size" });
                }
                let age = now_ms.saturating_sub(prefix.at_ms);
                message.remaining_ms = message.remaining_ms.saturating_sub(age);
                let Prefix { entry, node, .. } = prefix;
                match kind {
                    kind::OUTGOING => Self::Outgoing {
                        entry,
                        recipient: node,
                        message,
                    },
                    kind::TRANSIT => Self::Transit {
                        entry,
                        origin: r.node("origin")?,
                        recipient: node,
                        message,
                    },
                    _ => Self::Incoming {
                        entry,
                        origin: node,
                        message,
                    },
                }
            }
            kind::STARTED => Self::Started {
                entry: EntryId(r.varint("entry")?),
            },
            kind::RECEIVED => {
                let origin = r.node("origin")?;
                let epoch = r.varint("epoch")?;
                let floor = r.varint("floor")?;
                let count = r.count(2, "ranges")?;
                let ranges = (0..count)
                    .map(|_| Ok((r.varint("range")?, r.varint("range")?)))
                    .collect::<Result<Vec<_>, DecodeError>>()?;
                if ranges.iter().any(|(first, last)| first > last) {
                    return Err(DecodeError::Bad { what: "range" });
                }
                Self::Received {
                    origin,
                    epoch,
                    floor,
                    ranges,
                }
            }
            _ => return Ok(None),
        }))
    }
}

impl Label {
    /// Reads what stands at the front of a record, and no more than that.
    ///
    /// # Errors
    ///
    /// When it is no record.
    pub fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        Ok(match r.u8("record kind")? {
            kind @ (kind::OUTGOING | kind::INCOMING | kind::TRANSIT) => {
                let Prefix {
                    entry, size, node, ..
                } = Prefix::decode(&mut r)?;
                Self::Message {
                    entry,
                    outgoing: kind == kind::OUTGOING,
                    node,
                    size,
                }
            }
            kind::STARTED => Self::Started(EntryId(r.varint("entry")?)),
            kind::RECEIVED => Self::Received {
                origin: r.node("origin")?,
                epoch: r.varint("epoch")?,
                over: r.varint("floor")? == u64::MAX,
            },
            kind => Self::Other(kind),
        })
    }
}

/// Reads the payload out of a stored message, without its envelope; empty when it is elsewhere.
///
/// # Errors
///
/// When it is no message.
pub fn body(bytes: Bytes) -> Result<Bytes, DecodeError> {
    let mut r = Reader::new(bytes);
    let (kind::OUTGOING | kind::INCOMING | kind::TRANSIT) = r.u8("record kind")? else {
        return Err(DecodeError::Bad {
            what: "record kind",
        });
    };
    Prefix::decode(&mut r)?;
    r.bytes(r.remaining(), "envelope")?;
    r.bytes(SEGMENT_MAX, "body")
}

struct Prefix {
    entry: EntryId,
    at_ms: u64,
    size: u64,
    node: NodeId,
}

impl Prefix {
    fn decode(r: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self {
            entry: EntryId(r.varint("entry")?),
            at_ms: r.varint("time")?,
            size: r.varint("size")?,
            node: r.node("node")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{CancelReason, Content, Eof, MessageKind, PAYLOAD_MAX};
    use crate::{Directive, ErrorBody, ErrorCode, MessageId};
    use alloc::string::ToString as _;
    use proptest::prelude::*;

    fn node() -> impl Strategy<Value = NodeId> {
        "[a-zA-Z0-9_@:][a-zA-Z0-9._@:-]{0,127}".prop_map(|text| NodeId::new(&text).unwrap())
    }

    fn message_kind() -> impl Strategy<Value = MessageKind> {
        let error = proptest::option::of("\\PC{0,40}")
            .prop_map(|text| text.map(|text| ErrorBody::new(ErrorCode::Internal, text)));
        let eof = (any::<u32>(), error).prop_map(|(code, error)| Eof { code, error });
        prop_oneof![
            any::<bool>().prop_map(|respond| MessageKind::Request {
                directive: Directive::new("runner:execute").unwrap(),
                respond,
            }),
            (any::<u64>(), proptest::option::of(eof), any::<bool>()).prop_map(
                |(serial, eof, in_doubt)| MessageKind::Response {
                    serial,
                    in_doubt: in_doubt && eof.is_some(),
                    eof
                }
            ),
            Just(MessageKind::Cancel {
                reason: CancelReason::SenderGone
            }),
        ]
    }

    fn message() -> impl Strategy<Value = Message> {
        let name = proptest::option::of("[a-z]{1,255}");
        let numbers: (_, _, _, _) = (any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>());
        let payload = prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..300)
                .prop_map(|body| (body.len() as u64, body)),
            (SEGMENT_MAX as u64 + 1..=PAYLOAD_MAX).prop_map(|size| (size, Vec::new())),
        ];
        (message_kind(), name, numbers, any::<u128>(), payload).prop_map(
            |(kind, name, (epoch, seq, floor, remaining_ms), work, (size, body))| Message {
                epoch,
                seq,
                floor,
                work: MessageId::from_u128(work),
                kind,
                volatile: false,
                remaining_ms,
                content: Content::Bytes,
                name,
                size,
                body: body.into(),
            },
        )
    }

    fn record() -> impl Strategy<Value = Record> {
        let range = (any::<u64>(), any::<u64>()).prop_map(|(a, b)| (a.min(b), a.max(b)));
        let ranges = proptest::collection::vec(range, 0..20);
        prop_oneof![
            (any::<u64>(), node(), message()).prop_map(|(entry, recipient, message)| {
                Record::Outgoing {
                    entry: EntryId(entry),
                    recipient,
                    message,
                }
            }),
            (any::<u64>(), node(), message()).prop_map(|(entry, origin, message)| {
                Record::Incoming {
                    entry: EntryId(entry),
                    origin,
                    message,
                }
            }),
            (any::<u64>(), node(), node(), message())
                .prop_filter("kept whole", |(.., message)| !message.is_segmented())
                .prop_map(|(entry, origin, recipient, message)| {
                    Record::Transit {
                        entry: EntryId(entry),
                        origin,
                        recipient,
                        message,
                    }
                }),
            any::<u64>().prop_map(|entry| Record::Started {
                entry: EntryId(entry)
            }),
            (node(), any::<u64>(), any::<u64>(), ranges).prop_map(
                |(origin, epoch, floor, ranges)| Record::Received {
                    origin,
                    epoch,
                    floor,
                    ranges,
                }
            ),
        ]
    }

    proptest! {
        #[test]
        fn records_survive(record in record(), now: u64) {
            let mut out = Vec::new();
            record.encode(now, &mut out);
            let bytes = Bytes::from(out);
            prop_assert_eq!(&Record::decode(bytes.clone(), now).unwrap().unwrap(), &record);
            match (Label::decode(bytes.clone()).unwrap(), &record) {
                (
                    Label::Message { entry, outgoing, node, size },
                    Record::Outgoing { entry: e, recipient: n, message }
                    | Record::Incoming { entry: e, origin: n, message }
                    | Record::Transit { entry: e, recipient: n, message, .. },
                ) => {
                    prop_assert_eq!((entry, &node, size), (*e, n, message.size));
                    prop_assert_eq!(outgoing, matches!(record, Record::Outgoing { .. }));
                    prop_assert_eq!(&body(bytes).unwrap(), &message.body);
                }
                (Label::Started(entry), Record::Started { entry: e }) => {
                    prop_assert_eq!(entry, *e);
                }
                (
                    Label::Received { origin, epoch, over },
                    Record::Received { origin: o, epoch: e, floor, .. },
                ) => {
                    prop_assert_eq!((&origin, epoch, over), (o, *e, *floor == u64::MAX));
                }
                (label, _) => prop_assert!(false, "{:?}", label),
            }
        }

        #[test]
        fn fields_of_later_versions_are_skipped(record in record(), more: Vec<u8>) {
            let mut out = Vec::new();
            record.encode(7, &mut out);
            out.extend_from_slice(&more);
            prop_assert_eq!(Record::decode(out.into(), 7).unwrap().unwrap(), record);
        }

        #[test]
        fn random_bytes_never_panic(mut input: Vec<u8>, kind in 0..7u8) {
            if let Some(first) = input.first_mut() {
                *first = kind;
            }
            let bytes = Bytes::from(input);
            let _ = Label::decode(bytes.clone());
            let _ = body(bytes.clone());
            let _ = Record::decode(bytes, 0);
        }

        #[test]
        fn a_cut_record_is_no_record(record in record(), cut: prop::sample::Index) {
            let mut out = Vec::new();
            record.encode(7, &mut out);
            out.truncate(cut.index(out.len()));
            prop_assert!(Record::decode(out.into(), 7).is_err());
        }
    }

    #[test]
    fn time_passes_while_a_record_lies_on_the_disk() {
        let record = |remaining_ms| Record::Outgoing {
            entry: EntryId(1),
            recipient: NodeId::new("a").unwrap(),
            message: Message {
                epoch: 1,
                seq: 1,
                floor: 0,
                work: MessageId::from_u128(1),
                kind: MessageKind::Cancel {
                    reason: CancelReason::User,
                },
                volatile: false,
                remaining_ms,
                content: Content::None,
                name: Some("name".to_string()),
                size: 0,
                body: Bytes::new(),
            },
        };
        let mut out = Vec::new();
        record(1000).encode(5_000, &mut out);
        let bytes = Bytes::from(out);
        for (now, left) in [(5_000, 1000), (5_400, 600), (9_000, 0), (1, 1000)] {
            let read = Record::decode(bytes.clone(), now).unwrap();
            assert_eq!(read, Some(record(left)), "at {now}");
        }
    }

    #[test]
    fn kinds_of_later_versions_are_no_errors() {
        let bytes = Bytes::from_static(&[200, 1, 2, 3]);
        assert_eq!(Record::decode(bytes.clone(), 0), Ok(None));
        assert_eq!(Label::decode(bytes), Ok(Label::Other(200)));
    }
}
