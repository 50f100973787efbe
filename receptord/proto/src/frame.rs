//! Frames: what two daemons send each other on one link.
//!
//! A frame is a 4-byte big-endian length of what follows, one type byte, and the body.
//! The first frame either side sends is [`Hello`], with a magic number, so that a stranger's
//! bytes are told apart at once. Types this version does not know are skipped; fields are only
//! ever appended to a body, and what is missing at its end has a default.
//!
//! ```text
//!  0        4      5
//!  +--------+------+----------------------+
//!  | length | type | body (length - 1)    |
//!  +--------+------+----------------------+
//! ```

use alloc::string::String;
use alloc::vec::Vec;

use bytes::{Buf, Bytes, BytesMut};

use crate::error::{CODE_MAX, ErrorCode};
use crate::id::NodeId;
use crate::lsa::{LSA_MIN, Lsa, LsaSummary};
use crate::packet::Packet;
use crate::wire::{DecodeError, Reader, Writer, bytes_len, varint_len};

/// Starts every hello body.
pub const MAGIC: [u8; 8] = *b"receptor";
/// The protocol versions this build speaks.
pub const VERSIONS: core::ops::RangeInclusive<u32> = 1..=1;
/// The largest frame before the peer's hello is read, in bytes including the length.
pub const HELLO_MAX: usize = 4096;
/// The largest frame that any node must take, in bytes including the length: a full segment
/// ([`crate::packet::SEGMENT_MAX`]) and its headers.
pub const MAX_FRAME_FLOOR: usize = 72 * 1024;
/// The least [`Hello::credit`], in bytes: four full frames, so that grants overlap with sending.
pub const CREDIT_FLOOR: u64 = 4 * MAX_FRAME_FLOOR as u64;
/// Bytes before the body.
pub const HEADER: usize = 5;
/// How many buckets a [`Frame::Digest`] has.
pub const DIGEST_BUCKETS: usize = 64;
/// The most entries in one [`Frame::Summary`] or [`Frame::LsaAck`].
pub const SUMMARY_MAX: usize = 256;
/// The longest human text in a frame, in bytes.
pub const TEXT_MAX: usize = 512;

/// Opens a link: who speaks, which versions, what it can take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// The lowest and highest version the sender speaks; the highest common one is used.
    pub versions: (u32, u32),
    /// The sender.
    pub node: NodeId,
    /// Which start of the sender this is; grows over restarts.
    pub instance: u64,
    /// Optional abilities, one bit each; unknown bits are ignored.
    pub features: u64,
    /// The largest frame that the sender takes; at least [`MAX_FRAME_FLOOR`].
    pub max_frame: u32,
    /// Bytes of [`Frame::Packet`] frames that the sender takes before it grants more, at least
    /// [`CREDIT_FLOOR`]. Packets of priority control take no credit.
    pub credit: u64,
    /// The silence after which the sender gives the adjacency up, in milliseconds.
    pub hold_time_ms: u32,
    /// The sender forwards for others; false: a leaf.
    pub router: bool,
    /// The sender's cost for this link; the higher of both sides holds for both directions.
    pub cost: u32,
    /// For people: name and version of the program.
    pub software: String,
}

/// The last frame on a link: why the sender closes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Goodbye {
    /// For programs.
    pub code: ErrorCode,
    /// For people, at most [`TEXT_MAX`] bytes.
    pub message: String,
}

/// One frame.
#[derive(Debug, Clone, PartialEq)]
pub enum Frame {
    /// Opens the link; the first frame of either side.
    Hello(Hello),
    /// Ends the link.
    Goodbye(Goodbye),
    /// «I am here»; the other side answers at once with [`Frame::ProbeReply`].
    Probe {
        /// Comes back in the reply.
        nonce: u64,
    },
    /// Answers a probe.
    ProbeReply {
        /// The probe's.
        nonce: u64,
    },
    /// One hash a bucket over all LSAs the sender has, sent when an adjacency comes up; empty
    /// from a leaf, which wants no flooding.
    Digest {
        /// The receiver is to send its own digest, without asking back.
        reply: bool,
        /// The hashes, [`DIGEST_BUCKETS`] or none.
        buckets: Vec<u64>,
    },
    /// All LSAs that the sender has in some buckets whose digests differ.
    Summary {
        /// Which bucket, 0 to 63.
        bucket: u8,
        /// More entries of this bucket follow in the next summary.
        more: bool,
        /// In order of key.
        entries: Vec<LsaSummary>,
    },
    /// LSAs that the sender believes to be new to the receiver.
    Lsas(Vec<Lsa>),
    /// LSAs that the sender has now, in these or newer versions.
    LsaAck(Vec<LsaSummary>),
    /// The total of [`Frame::Packet`] bytes granted since the link came up, so that a lost
    /// grant does no harm.
    Credit {
        /// Only ever grows.
        total: u64,
    },
    /// A packet on its way.
    Packet(Packet),
    /// The sender's cost for this link from now on, in place of the one in its hello.
    Cost {
        /// As [`Hello::cost`].
        cost: u32,
    },
    /// A type of a newer version; skipped and counted.
    Unknown {
        /// The type byte.
        kind: u8,
    },
}

/// The type bytes of frames, for those who look at one before they decode it.
pub mod kind {
    /// [`super::Frame::Hello`].
    pub const HELLO: u8 = 1;
    /// [`super::Frame::Goodbye`].
    pub const GOODBYE: u8 = 2;
    /// [`super::Frame::Probe`].
    pub const PROBE: u8 = 3;
    /// [`super::Frame::ProbeReply`].
    pub const PROBE_REPLY: u8 = 4;
    /// [`super::Frame::Digest`].
    pub const DIGEST: u8 = 5;
    /// [`super::Frame::Summary`].
    pub const SUMMARY: u8 = 6;
    /// [`super::Frame::Lsas`].
    pub const LSAS: u8 = 7;
    /// [`super::Frame::LsaAck`].
    pub const LSA_ACK: u8 = 8;
    /// [`super::Frame::Credit`].
    pub const CREDIT: u8 = 9;
    /// [`super::Frame::Packet`].
    pub const PACKET: u8 = 10;
    /// [`super::Frame::Cost`].
    pub const COST: u8 = 11;
}

impl Frame {
    /// Appends the whole frame, length included, to `out`.
    ///
    /// # Panics
    /// When the frame would be 4 GiB or longer, which no limit of this crate allows.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let apart = self.encode_apart(out, usize::MAX);
        debug_assert_eq!(apart, None, "no body is as large");
    }

    /// As [`Frame::encode`], but a packet's body of `least` bytes or more is not copied: it is returned, and belongs
    /// behind what was appended.
    ///
    /// # Panics
    /// As [`Frame::encode`].
    #[must_use = "without its body the frame is not whole"]
    pub fn encode_apart(&self, out: &mut Vec<u8>, least: usize) -> Option<Bytes> {
        let start = out.len();
        let mut apart = None;
        out.extend_from_slice(&[0; 4]);
        let mut w = Writer(out);
        match self {
            Self::Hello(hello) => {
                w.u8(kind::HELLO);
                hello.encode(&mut w);
            }
            Self::Goodbye(goodbye) => {
                w.u8(kind::GOODBYE);
                w.str(goodbye.code.as_str());
                w.str(goodbye.cut_message());
            }
            Self::Probe { nonce } => {
                w.u8(kind::PROBE);
                w.varint(*nonce);
            }
            Self::ProbeReply { nonce } => {
                w.u8(kind::PROBE_REPLY);
                w.varint(*nonce);
            }
            Self::Digest { reply, buckets } => {
                w.u8(kind::DIGEST);
                w.u8(u8::from(*reply));
                w.varint(buckets.len() as u64);
                for bucket in buckets {
                    w.fixed_u64(*bucket);
                }
            }
            Self::Summary {
                bucket,
                more,
                entries,
            } => {
                w.u8(kind::SUMMARY);
                w.u8(*bucket);
                w.u8(u8::from(*more));
                encode_summaries(&mut w, entries);
            }
            Self::Lsas(lsas) => {
                w.u8(kind::LSAS);
                w.varint(lsas.len() as u64);
                for lsa in lsas {
                    lsa.encode(&mut w);
                }
            }
            Self::LsaAck(entries) => {
                w.u8(kind::LSA_ACK);
                encode_summaries(&mut w, entries);
            }
            Self::Credit { total } => {
                w.u8(kind::CREDIT);
                w.varint(*total);
            }
            Self::Packet(packet) => {
                w.u8(kind::PACKET);
                packet.encode_head(&mut w);
                if packet.body.len() < least {
                    w.0.extend_from_slice(&packet.body);
                } else {
                    apart = Some(packet.body.clone());
                }
            }
            Self::Cost { cost } => {
                w.u8(kind::COST);
                w.varint(u64::from(*cost));
            }
            Self::Unknown { kind } => w.u8(*kind),
        }
        let length = out.len() - start - 4 + apart.as_ref().map_or(0, Bytes::len);
        let length = u32::try_from(length).expect("frames are far below 4 GiB");
        out[start..start + 4].copy_from_slice(&length.to_be_bytes());
        apart
    }

    /// The exact number of bytes that [`Frame::encode`] appends.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        HEADER
            + match self {
                Self::Hello(hello) => hello.encoded_len(),
                Self::Goodbye(goodbye) => {
                    bytes_len(goodbye.code.as_str().len()) + bytes_len(goodbye.cut_message().len())
                }
                Self::Probe { nonce } | Self::ProbeReply { nonce } => varint_len(*nonce),
                Self::Digest { buckets, .. } => {
                    1 + varint_len(buckets.len() as u64) + 8 * buckets.len()
                }
                Self::Summary { entries, .. } => 2 + summaries_len(entries),
                Self::Lsas(lsas) => {
                    varint_len(lsas.len() as u64) + lsas.iter().map(Lsa::encoded_len).sum::<usize>()
                }
                Self::LsaAck(entries) => summaries_len(entries),
                Self::Credit { total } => varint_len(*total),
                Self::Packet(packet) => packet.encoded_len(),
                Self::Cost { cost } => varint_len(u64::from(*cost)),
                Self::Unknown { .. } => 0,
            }
    }

    /// Reads the type and body of one frame, the length already taken off.
    pub fn decode(frame: Bytes) -> Result<Self, DecodeError> {
        let mut r = Reader::new(frame);
        Ok(match r.u8("frame type")? {
            kind::HELLO => Self::Hello(Hello::decode(&mut r)?),
            kind::GOODBYE => {
                let code = r.str(CODE_MAX, "goodbye code")?;
                let code = code.parse().unwrap_or(ErrorCode::Internal);
                Self::Goodbye(Goodbye {
                    code,
                    message: r.str(TEXT_MAX, "goodbye message")?,
                })
            }
            kind::PROBE => Self::Probe {
                nonce: r.varint("nonce")?,
            },
            kind::PROBE_REPLY => Self::ProbeReply {
                nonce: r.varint("nonce")?,
            },
            kind::DIGEST => {
                let reply = r.bool("reply")?;
                let count = r.count(8, "digest")?;
                if count != 0 && count != DIGEST_BUCKETS {
                    return Err(DecodeError::Bad { what: "digest" });
                }
                let buckets: Result<_, _> = (0..count).map(|_| r.fixed_u64("digest")).collect();
                Self::Digest {
                    reply,
                    buckets: buckets?,
                }
            }
            kind::SUMMARY => {
                let bucket = r.u8("bucket")?;
                if usize::from(bucket) >= DIGEST_BUCKETS {
                    return Err(DecodeError::Bad { what: "bucket" });
                }
                let more = r.bool("more")?;
                Self::Summary {
                    bucket,
                    more,
                    entries: decode_summaries(&mut r)?,
                }
            }
            kind::LSAS => {
                let count = r.count(LSA_MIN, "LSAs")?;
                let mut lsas = Vec::new();
                for _ in 0..count {
                    lsas.push(Lsa::decode(&mut r)?);
                }
                Self::Lsas(lsas)
            }
            kind::LSA_ACK => Self::LsaAck(decode_summaries(&mut r)?),
            kind::CREDIT => Self::Credit {
                total: r.varint("credit")?,
            },
            kind::PACKET => Self::Packet(Packet::decode(&mut r)?),
            kind::COST => Self::Cost {
                cost: r.varint_u32("cost")?,
            },
            kind => Self::Unknown { kind },
        })
    }

    /// Takes the next whole frame off the front of `input`, without its length; `None` while
    /// more bytes are needed. A length of 0 or over `max_frame` (which counts the length's own
    /// 4 bytes) is refused as soon as it is seen, before the frame is waited for.
    pub fn split(input: &mut BytesMut, max_frame: usize) -> Result<Option<Bytes>, DecodeError> {
        let Some(head) = input.first_chunk::<4>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*head) as usize;
        if length == 0 {
            return Err(DecodeError::Bad {
                what: "frame length",
            });
        }
        if length + 4 > max_frame {
            let (size, limit) = (length as u64 + 4, max_frame as u64);
            return Err(DecodeError::TooLarge {
                what: "frame",
                size,
                limit,
            });
        }
        if input.len() < length + 4 {
            return Ok(None);
        }
        input.advance(4);
        Ok(Some(input.split_to(length).freeze()))
    }
}

fn summaries_len(entries: &[LsaSummary]) -> usize {
    varint_len(entries.len() as u64) + entries.iter().map(LsaSummary::encoded_len).sum::<usize>()
}

fn encode_summaries(w: &mut Writer<'_>, entries: &[LsaSummary]) {
    w.varint(entries.len() as u64);
    for entry in entries {
        entry.encode(w);
    }
}

fn decode_summaries(r: &mut Reader) -> Result<Vec<LsaSummary>, DecodeError> {
    let count = r.count(4, "summaries")?;
    if count > SUMMARY_MAX {
        let (size, limit) = (count as u64, SUMMARY_MAX as u64);
        return Err(DecodeError::TooLarge {
            what: "summaries",
            size,
            limit,
        });
    }
    (0..count).map(|_| LsaSummary::decode(r)).collect()
}

impl Goodbye {
    /// The message, cut to [`TEXT_MAX`].
    fn cut_message(&self) -> &str {
        let mut end = self.message.len().min(TEXT_MAX);
        while !self.message.is_char_boundary(end) {
            end -= 1;
        }
        &self.message[..end]
    }
}

impl Hello {
    fn encoded_len(&self) -> usize {
        MAGIC.len()
            + varint_len(u64::from(self.versions.0))
            + varint_len(u64::from(self.versions.1))
            + bytes_len(self.node.as_str().len())
            + varint_len(self.instance)
            + varint_len(self.features)
            + varint_len(u64::from(self.max_frame))
            + varint_len(self.credit)
            + varint_len(u64::from(self.hold_time_ms))
            + 1
            + varint_len(u64::from(self.cost))
            + bytes_len(self.software.len())
    }

    fn encode(&self, w: &mut Writer<'_>) {
        w.0.extend_from_slice(&MAGIC);
        w.varint(u64::from(self.versions.0));
        w.varint(u64::from(self.versions.1));
        w.node(&self.node);
        w.varint(self.instance);
        w.varint(self.features);
        w.varint(u64::from(self.max_frame));
        w.varint(self.credit);
        w.varint(u64::from(self.hold_time_ms));
        w.u8(u8::from(self.router));
        w.varint(u64::from(self.cost));
        w.str(&self.software);
    }

    fn decode(r: &mut Reader) -> Result<Self, DecodeError> {
        if r.fixed_u64("magic")? != u64::from_be_bytes(MAGIC) {
            return Err(DecodeError::Bad { what: "magic" });
        }
        let versions = (r.varint_u32("version")?, r.varint_u32("version")?);
        if versions.0 > versions.1 {
            return Err(DecodeError::Bad {
                what: "version range",
            });
        }
        Ok(Self {
            versions,
            node: r.node("node id")?,
            instance: r.varint("instance")?,
            features: r.varint("features")?,
            max_frame: r.varint_u32("max frame")?,
            credit: r.varint("credit")?,
            hold_time_ms: r.varint_u32("hold time")?,
            router: r.u8("router")? & 1 == 1,
            cost: r.varint_u32("cost")?,
            software: r.str(TEXT_MAX, "software")?,
        })
    }
}
