//! Sealed packets: bodies that their destination alone can open, and only as coming from their source.
//!
//! Owns the form of what is around the seal, which part of a body is *clear* (read by whoever keeps or
//! gives back a packet on its way, and bound to the seal) and which is *hidden*. Never seals or opens:
//! that is done with keys that this crate knows nothing of.
//!
//! ```text
//! packet of kind 64 + k:  form · length, clear · [length, shown] · seal
//!                         └──────── bound to the seal ────────┘
//! ```

use alloc::vec::Vec;

use bytes::Bytes;

use super::{Body, Content, ERROR_MAX, Message, Piece, Priority, SEGMENT_MAX, Segment, kind};
use crate::id::NodeId;
use crate::wire::{DecodeError, Reader, Writer};

/// The largest statement of an identity that a packet carries, in bytes; that of an LSA's body.
pub const IDENTITY_MAX: usize = crate::lsa::LSA_BODY_MAX;
/// The same beside a kept message, so that both fit the smallest frame limit. A chain of four
/// certificates has less.
pub const KEPT_IDENTITY_MAX: usize = 6 * 1024;
/// The most bytes of a clear part: a message's envelope without its end.
const CLEAR_MAX: usize = 512;
/// The most bytes of a hidden part that is shown: a message's payload, name and error.
const SHOWN_MAX: usize = SEGMENT_MAX + ERROR_MAX + 1024;

/// What happens to the hidden part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// It is in the seal, and nobody on the way can read it.
    Hidden,
    /// It is beside the seal, which only proves where it comes from.
    Shown,
}

/// A body, split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// The body's kind, unsealed.
    pub kind: u8,
    /// What nodes on the way need.
    pub clear: Vec<u8>,
    /// What the destination alone needs.
    pub hidden: Vec<u8>,
    /// The payload, behind that, which is as large as all else is small and is not copied.
    pub rest: Bytes,
}

/// A sealed body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// What happened to the hidden part.
    pub form: Form,
    /// The clear part.
    pub clear: Bytes,
    /// The hidden part with [`Form::Shown`]; empty otherwise.
    pub shown: Bytes,
    /// What the keys made.
    pub seal: Bytes,
}

/// What the clear part of a message or segment says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The flow's epoch.
    pub epoch: u64,
    /// The message's sequence number.
    pub seq: u64,
}

/// A sealed message as a node on its way keeps it: with its origin's statement of who it is, so that
/// it can be opened when its origin is long gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keepsake {
    /// The statement of the message's origin.
    pub identity: Bytes,
    /// The message.
    pub message: Sealed,
}

/// Body of a packet of kind [`kind::KEPT`] that is sealed: from a custodian, in its origin's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedKept {
    /// Who kept it, and wants to know when it has arrived.
    pub custodian: NodeId,
    /// What is left of the message's lifetime, in milliseconds. What the seal says is the most that is
    /// believed.
    pub remaining_ms: u64,
    /// [`Keepsake::encode`].
    pub keepsake: Bytes,
}

/// Body of a packet of kind [`kind::ENTRUSTED`] that is sealed: sealed to the recipient, not to the
/// router that it is entrusted to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedEntrusted {
    /// Whom it is for.
    pub recipient: NodeId,
    /// The message.
    pub message: Sealed,
}

/// Body of a packet of kind [`kind::IDENTITY`]: who a node is, from itself. The statement proves
/// itself; nothing else in it is to be believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The other node's is asked for.
    pub ask: bool,
    /// Which start of the source speaks.
    pub instance: u64,
    /// The source's statement.
    pub statement: Bytes,
}

impl Split {
    /// A message. A volatile one is for one start of its recipient alone: `instance`, 0 when
    /// it is not known.
    #[must_use]
    pub fn message(message: &Message, instance: u64) -> Self {
        let mut clear = Vec::with_capacity(96);
        let mut w = Writer(&mut clear);
        message.encode_clear(&mut w);
        w.varint(if message.volatile { instance } else { 0 });
        let mut hidden = Vec::with_capacity(16);
        message.encode_hidden(&mut Writer(&mut hidden));
        Self {
            kind: kind::MESSAGE,
            clear,
            hidden,
            rest: message.body.clone(),
        }
    }

    /// A part of a payload.
    #[must_use]
    pub fn segment(segment: &Segment) -> Self {
        let mut clear = Vec::with_capacity(32);
        let mut w = Writer(&mut clear);
        w.varint(segment.epoch);
        w.varint(segment.seq);
        w.varint(segment.offset);
        let mut hidden = Vec::with_capacity(4);
        Writer(&mut hidden).fixed_u32(segment.piece.sum);
        Self {
            kind: kind::SEGMENT,
            clear,
            hidden,
            rest: segment.piece.bytes.clone(),
        }
    }

    /// Any body that travels sealed between its ends. `None`: one that does not.
    #[must_use]
    pub fn body(body: &Body) -> Option<Self> {
        match body {
            Body::Message(message) => Some(Self::message(message, 0)),
            Body::Segment(segment) => Some(Self::segment(segment)),
            Body::Receipt(_) | Body::Custody(_) | Body::Undeliverable(_) | Body::Inquiry(_) => {
                let (kind, hidden) = body.encode();
                Some(Self {
                    kind,
                    clear: Vec::new(),
                    hidden: Vec::new(),
                    rest: hidden,
                })
            }
            Body::Echo { .. }
            | Body::EchoReply(_)
            | Body::Kept { .. }
            | Body::Entrusted { .. }
            | Body::Unknown { .. } => None,
        }
    }
}

/// Puts together what [`Split`] took apart, the hidden part whole; and for a volatile message, for which start of its
/// recipient it is.
///
/// # Errors
///
/// When the parts are not those of such a body.
pub fn join(kind: u8, clear: &Bytes, hidden: Bytes) -> Result<(Body, u64), DecodeError> {
    match kind {
        kind::MESSAGE => {
            let mut r = Reader::new(clear.clone());
            let envelope = Message::decode_envelope(&mut r)?;
            envelope.check_place()?;
            let instance = r.varint("instance")?;
            let message = envelope.with_hidden(hidden)?;
            Ok((Body::Message(message), instance))
        }
        kind::SEGMENT => {
            let mut r = Reader::new(clear.clone());
            let (epoch, seq) = (r.varint("epoch")?, r.varint("sequence")?);
            let offset = r.varint("offset")?;
            let mut r = Reader::new(hidden);
            let sum = r.fixed_u32("checksum")?;
            let bytes = r.into_rest();
            if bytes.len() > SEGMENT_MAX {
                let (size, limit) = (bytes.len() as u64, SEGMENT_MAX as u64);
                let what = "segment";
                return Err(DecodeError::TooLarge { what, size, limit });
            }
            let piece = Piece { sum, bytes };
            let segment = Segment {
                epoch,
                seq,
                offset,
                piece,
            };
            Ok((Body::Segment(segment), 0))
        }
        kind::RECEIPT | kind::CUSTODY | kind::UNDELIVERABLE | kind::INQUIRY => {
            Ok((Body::decode(kind, hidden)?, 0))
        }
        _ => Err(DecodeError::Bad {
            what: "kind of a sealed packet",
        }),
    }
}

impl Sealed {
    /// What is bound to a seal: everything that stands before it, and what kind of body it is of.
    #[must_use]
    pub fn bound(kind: u8, form: Form, clear: &[u8], shown: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(clear.len() + shown.len() + 12);
        let mut w = Writer(&mut out);
        w.u8(kind);
        encode_front(&mut w, form, clear, shown);
        out
    }

    /// Appends this body; the seal comes last.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut w = Writer(out);
        encode_front(&mut w, self.form, &self.clear, &self.shown);
        w.0.extend_from_slice(&self.seal);
    }

    /// Reads a body without believing it.
    ///
    /// # Errors
    ///
    /// When it breaks the rules of its form.
    pub fn decode(body: Bytes) -> Result<Self, DecodeError> {
        let mut r = Reader::new(body);
        let form = match r.u8("form")? {
            0 => Form::Hidden,
            1 => Form::Shown,
            _ => return Err(DecodeError::Bad { what: "form" }),
        };
        let clear = r.bytes(CLEAR_MAX, "clear part")?;
        let shown = match form {
            Form::Hidden => Bytes::new(),
            Form::Shown => r.bytes(SHOWN_MAX, "shown part")?,
        };
        Ok(Self {
            form,
            clear,
            shown,
            seal: r.into_rest(),
        })
    }

    /// The message's envelope, as far as it is clear; its payload is left out.
    ///
    /// # Errors
    ///
    /// When this is no message.
    pub fn envelope(&self) -> Result<Message, DecodeError> {
        let envelope = Message::decode_envelope(&mut Reader::new(self.clear.clone()))?;
        envelope.check_place()?;
        Ok(envelope)
    }

    /// The place in its flow of a sealed body of this kind; `None` if it has none.
    #[must_use]
    pub fn place(&self, kind: u8) -> Option<Place> {
        match kind {
            kind::MESSAGE => {
                let Message { epoch, seq, .. } = self.envelope().ok()?;
                Some(Place { epoch, seq })
            }
            kind::SEGMENT => {
                let mut r = Reader::new(self.clear.clone());
                let epoch = r.varint("epoch").ok()?;
                let seq = r.varint("sequence").ok()?;
                Some(Place { epoch, seq })
            }
            _ => None,
        }
    }
}

fn encode_front(w: &mut Writer<'_>, form: Form, clear: &[u8], shown: &[u8]) {
    match form {
        Form::Hidden => {
            w.u8(0);
            w.bytes(clear);
        }
        Form::Shown => {
            w.u8(1);
            w.bytes(clear);
            w.bytes(shown);
        }
    }
}

impl Keepsake {
    /// The bytes of it.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let size = self.identity.len() + self.message.seal.len() + self.message.shown.len();
        let mut out = Vec::with_capacity(size + CLEAR_MAX);
        Writer(&mut out).bytes(&self.identity);
        self.message.encode(&mut out);
        out.into()
    }

    /// Reads it without believing anything.
    ///
    /// # Errors
    ///
    /// When it breaks the rules of its form.
    pub fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        Ok(Self {
            identity: r.bytes(KEPT_IDENTITY_MAX, "identity")?,
            message: Sealed::decode(r.into_rest())?,
        })
    }

    /// The message that a store keeps of it: the clear part of the envelope, and this as its payload.
    ///
    /// # Errors
    ///
    /// When it is no message.
    pub fn message(&self) -> Result<Message, DecodeError> {
        let envelope = self.message.envelope()?;
        let body = self.encode();
        Ok(Message {
            content: Content::Sealed,
            size: body.len() as u64,
            body,
            ..envelope
        })
    }
}

impl SealedKept {
    /// The bytes of it.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(self.keepsake.len() + 48);
        let mut w = Writer(&mut out);
        w.node(&self.custodian);
        w.varint(self.remaining_ms);
        w.0.extend_from_slice(&self.keepsake);
        out.into()
    }

    /// Reads it without believing anything.
    ///
    /// # Errors
    ///
    /// When it breaks the rules of its form.
    pub fn decode(body: Bytes) -> Result<Self, DecodeError> {
        let mut r = Reader::new(body);
        Ok(Self {
            custodian: r.node("custodian")?,
            remaining_ms: r.varint("lifetime")?,
            keepsake: r.into_rest(),
        })
    }
}

impl SealedEntrusted {
    /// The bytes of it.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(self.message.seal.len() + CLEAR_MAX);
        Writer(&mut out).node(&self.recipient);
        self.message.encode(&mut out);
        out.into()
    }

    /// Reads it without believing anything.
    ///
    /// # Errors
    ///
    /// When it breaks the rules of its form.
    pub fn decode(body: Bytes) -> Result<Self, DecodeError> {
        let mut r = Reader::new(body);
        Ok(Self {
            recipient: r.node("recipient")?,
            message: Sealed::decode(r.into_rest())?,
        })
    }
}

impl Identity {
    /// The bytes of it.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(self.statement.len() + 16);
        let mut w = Writer(&mut out);
        w.u8(u8::from(self.ask));
        w.varint(self.instance);
        w.bytes(&self.statement);
        out.into()
    }

    /// Reads it without believing anything.
    ///
    /// # Errors
    ///
    /// When it breaks the rules of its form.
    pub fn decode(body: Bytes) -> Result<Self, DecodeError> {
        let mut r = Reader::new(body);
        Ok(Self {
            ask: r.u8("what of an identity")? & 1 == 1,
            instance: r.varint("instance")?,
            statement: r.bytes(IDENTITY_MAX, "identity")?,
        })
    }

    /// Which queue a packet with it takes.
    #[must_use]
    pub fn priority(&self) -> Priority {
        // What goes ahead of everything is small.
        if self.statement.len() <= super::CONTROL_MAX / 2 {
            Priority::Control
        } else {
            Priority::Bulk
        }
    }
}
