//! Messages: the envelope of a request, a response or a cancel, with its payload when that is
//! small. Owns their form and the limits of what is in them; what they mean is the core's.

use alloc::string::String;
use alloc::vec::Vec;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Priority, SEGMENT_MAX, read_directive, read_id, write_id};
use crate::directive::Directive;
use crate::error::{CODE_MAX, ErrorBody, ErrorCode};
use crate::id::MessageId;
use crate::wire::{DecodeError, Reader, Writer};

/// The largest payload that travels as [`Priority::Small`], in bytes.
pub const SMALL_MAX: usize = 4 * 1024;
/// The largest payload that a message may announce, in bytes: more than any disk holds, and so little
/// that sums of sizes fit 64 bits.
pub const PAYLOAD_MAX: u64 = 1 << 56;
/// The longest result name, in bytes.
pub const RESULT_NAME_MAX: usize = 255;
/// The longest encoded error inside a packet, in bytes; longer messages are cut.
pub const ERROR_MAX: usize = 16 * 1024;
/// The same where the error must fit a control packet.
pub(super) const SHORT_ERROR_MAX: usize = 8 * 1024;

/// What a payload is, so that it can be shown and checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Content {
    /// No payload.
    None,
    /// A JSON text.
    Json,
    /// UTF-8 text.
    Text,
    /// Anything.
    Bytes,
    /// The payloads of many volatile requests that want no responses, see [`crate::bundle`]. Made by
    /// nodes, for nodes that say that they take them; never by a client.
    #[serde(skip)]
    Bundle,
    /// In custody only: the whole message as its origin sealed it, see [`super::sealed`]. It is its
    /// recipient's to know what is in it.
    #[serde(skip)]
    Sealed,
}

impl Content {
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Json => 1,
            Self::Text => 2,
            Self::Bytes => 3,
            Self::Bundle => 4,
            Self::Sealed => 5,
        }
    }

    pub(crate) fn from_code(code: u8) -> Self {
        match code {
            0 => Self::None,
            1 => Self::Json,
            2 => Self::Text,
            4 => Self::Bundle,
            5 => Self::Sealed,
            _ => Self::Bytes,
        }
    }
}

/// Why a cancel was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CancelReason {
    /// A person or program asked.
    User,
    /// The sender is gone and wants no results.
    SenderGone,
}

/// What a message is.
#[derive(Debug, Clone, PartialEq)]
pub enum MessageKind {
    /// Asks the recipient to run a directive.
    Request {
        /// What to run.
        directive: Directive,
        /// False: nobody waits for responses; none is sent.
        respond: bool,
    },
    /// One response of the work.
    Response {
        /// 1, 2, 3 …
        serial: u64,
        /// Present on the last one.
        eof: Option<Eof>,
        /// Of the last one: its node was restarted after the work had started, or gave responses of it up, so
        /// that the request's origin may have had another one before.
        in_doubt: bool,
    },
    /// Asks the recipient to end the work.
    Cancel {
        /// Why.
        reason: CancelReason,
    },
}

/// The end of a work.
#[derive(Debug, Clone, PartialEq)]
pub struct Eof {
    /// 0: the plugin says it went well. Otherwise not 0.
    pub code: u32,
    /// The job could not be run or was stopped; absent when the plugin answered.
    pub error: Option<ErrorBody>,
}

/// An envelope, with the payload inside when it is at most [`SEGMENT_MAX`] bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// Which start of the origin this flow belongs to.
    pub epoch: u64,
    /// The message's place in the flow; the first is 1.
    pub seq: u64,
    /// The origin has nothing outstanding below this sequence number in this epoch, and nothing
    /// at all in earlier ones; 0 while it has.
    pub floor: u64,
    /// The request, or the request that this belongs to.
    pub work: MessageId,
    /// What it is.
    pub kind: MessageKind,
    /// At most once, and never on a disk.
    pub volatile: bool,
    /// How much longer the message is worth delivering, in milliseconds; shrinks wherever it waits.
    pub remaining_ms: u64,
    /// What the payload is.
    pub content: Content,
    /// A name for the payload, when the plugin gave one to a file.
    pub name: Option<String>,
    /// Size of the whole payload, in bytes.
    pub size: u64,
    /// The payload, or nothing when it follows in segments.
    pub body: Bytes,
}

impl Message {
    /// Whether the payload follows in segments.
    #[must_use]
    pub fn is_segmented(&self) -> bool {
        self.size > SEGMENT_MAX as u64
    }

    /// Which queue it takes.
    #[must_use]
    pub fn priority(&self) -> Priority {
        // Bundles never overtake each other, however much is in them.
        if self.body.len() <= SMALL_MAX && self.content != Content::Bundle {
            Priority::Small
        } else {
            Priority::Bulk
        }
    }

    pub(super) fn size_hint(&self) -> usize {
        self.body.len() + 128
    }
}

mod flag {
    pub(super) const VOLATILE: u8 = 1;
    pub(super) const RESPOND: u8 = 2;
    pub(super) const EOF: u8 = 4;
    pub(super) const ERROR: u8 = 8;
    pub(super) const NAME: u8 = 16;
    pub(super) const SENDER_GONE: u8 = 32;
    pub(super) const IN_DOUBT: u8 = 64;
}

impl Message {
    pub(super) fn encode(&self, w: &mut Writer<'_>) {
        self.encode_envelope(w);
        w.0.extend_from_slice(&self.body);
    }

    /// Everything but the payload.
    pub(crate) fn encode_envelope(&self, w: &mut Writer<'_>) {
        self.encode_fields(w, self.content, self.end(), self.name.as_deref());
    }

    /// An envelope that says no more than those need to know who keep the message on its way.
    pub(super) fn encode_clear(&self, w: &mut Writer<'_>) {
        self.encode_fields(w, Content::None, End::default(), None);
    }

    fn encode_fields(
        &self,
        w: &mut Writer<'_>,
        content: Content,
        end: End<'_>,
        name: Option<&str>,
    ) {
        let mut flags = if self.volatile { flag::VOLATILE } else { 0 };
        flags |= end_flags(end, name);
        let kind = match &self.kind {
            MessageKind::Request { respond, .. } => {
                flags |= if *respond { flag::RESPOND } else { 0 };
                1
            }
            MessageKind::Response { .. } => 2,
            MessageKind::Cancel { reason } => {
                flags |= if *reason == CancelReason::SenderGone {
                    flag::SENDER_GONE
                } else {
                    0
                };
                3
            }
        };
        w.u8(kind);
        w.u8(flags);
        w.u8(content.code());
        w.varint(self.epoch);
        w.varint(self.seq);
        w.varint(self.floor);
        write_id(w, self.work);
        w.varint(self.remaining_ms);
        w.varint(self.size);
        match &self.kind {
            MessageKind::Request { directive, .. } => w.str(directive.as_str()),
            MessageKind::Response { serial, .. } => w.varint(*serial),
            MessageKind::Cancel { .. } => {}
        }
        encode_end(w, end.eof, name);
    }

    fn end(&self) -> End<'_> {
        match &self.kind {
            MessageKind::Response { eof, in_doubt, .. } => End {
                eof: eof.as_ref(),
                in_doubt: *in_doubt,
            },
            MessageKind::Request { .. } | MessageKind::Cancel { .. } => End::default(),
        }
    }

    /// What [`Self::encode_clear`] leaves out, but for the payload, which comes behind it.
    pub(super) fn encode_hidden(&self, w: &mut Writer<'_>) {
        let end = self.end();
        w.u8(end_flags(end, self.name.as_deref()));
        w.u8(self.content.code());
        encode_end(w, end.eof, self.name.as_deref());
    }

    /// Completes what [`Self::decode_envelope`] read of [`Self::encode_clear`] with what
    /// [`Self::encode_hidden`] wrote and the payload.
    pub(super) fn with_hidden(mut self, hidden: Bytes) -> Result<Self, DecodeError> {
        let mut r = Reader::new(hidden);
        let flags = r.u8("message flags")?;
        self.content = Content::from_code(r.u8("content")?);
        let end = decode_end(&mut r, flags)?;
        match &mut self.kind {
            MessageKind::Response { eof, in_doubt, .. } => {
                *in_doubt = is_in_doubt(flags);
                *eof = end;
            }
            MessageKind::Request { .. } | MessageKind::Cancel { .. } if end.is_none() => {}
            MessageKind::Request { .. } | MessageKind::Cancel { .. } => {
                return Err(DecodeError::Bad { what: "end" });
            }
        }
        self.name = decode_name(&mut r, flags)?;
        self.check_content()?;
        if self.content == Content::Sealed {
            return Err(DecodeError::Bad { what: "content" });
        }
        self.with_body(r.into_rest())
    }

    fn check_content(&self) -> Result<(), DecodeError> {
        let one_way =
            self.volatile && matches!(self.kind, MessageKind::Request { respond: false, .. });
        if self.content == Content::Bundle && !one_way {
            return Err(DecodeError::Bad { what: "bundle" });
        }
        Ok(())
    }

    pub(super) fn decode(mut r: Reader) -> Result<Self, DecodeError> {
        let envelope = Self::decode_envelope(&mut r)?;
        envelope.check_place()?;
        if envelope.content == Content::Sealed {
            return Err(DecodeError::Bad { what: "content" });
        }
        envelope.with_body(r.into_rest())
    }

    pub(super) fn check_place(&self) -> Result<(), DecodeError> {
        if self.seq == 0 || self.floor > self.seq {
            return Err(DecodeError::Bad { what: "sequence" });
        }
        Ok(())
    }

    /// Takes a payload of the size that the envelope says.
    pub(crate) fn with_body(self, body: Bytes) -> Result<Self, DecodeError> {
        let expected = if self.is_segmented() { 0 } else { self.size };
        if body.len() as u64 != expected {
            return Err(DecodeError::Bad {
                what: "payload size",
            });
        }
        Ok(Self { body, ..self })
    }

    /// What [`Self::encode_envelope`] wrote; the body is left empty.
    pub(crate) fn decode_envelope(r: &mut Reader) -> Result<Self, DecodeError> {
        let kind = r.u8("message kind")?;
        let flags = r.u8("message flags")?;
        let content = Content::from_code(r.u8("content")?);
        let epoch = r.varint("epoch")?;
        let seq = r.varint("sequence")?;
        let floor = r.varint("floor")?;
        let work = read_id(r)?;
        let remaining_ms = r.varint("lifetime")?;
        let size = r.varint("size")?;
        if size > PAYLOAD_MAX {
            let (what, limit) = ("payload", PAYLOAD_MAX);
            return Err(DecodeError::TooLarge { what, size, limit });
        }
        let kind = match kind {
            1 => MessageKind::Request {
                directive: read_directive(r)?,
                respond: flags & flag::RESPOND != 0,
            },
            2 => MessageKind::Response {
                serial: r.varint("serial")?,
                eof: decode_end(r, flags)?,
                in_doubt: is_in_doubt(flags),
            },
            3 => MessageKind::Cancel {
                reason: if flags & flag::SENDER_GONE == 0 {
                    CancelReason::User
                } else {
                    CancelReason::SenderGone
                },
            },
            _ => {
                return Err(DecodeError::Bad {
                    what: "message kind",
                });
            }
        };
        let volatile = flags & flag::VOLATILE != 0;
        let name = decode_name(r, flags)?;
        let envelope = Self {
            epoch,
            seq,
            floor,
            work,
            kind,
            volatile,
            remaining_ms,
            content,
            name,
            size,
            body: Bytes::new(),
        };
        envelope.check_content()?;
        Ok(envelope)
    }
}

/// What a message says of the end of a work.
#[derive(Default, Clone, Copy)]
struct End<'a> {
    eof: Option<&'a Eof>,
    in_doubt: bool,
}

fn end_flags(end: End<'_>, name: Option<&str>) -> u8 {
    let named = if name.is_some() { flag::NAME } else { 0 };
    let ends = end.eof.map_or(0, |eof| {
        let error = if eof.error.is_some() { flag::ERROR } else { 0 };
        let in_doubt = if end.in_doubt { flag::IN_DOUBT } else { 0 };
        flag::EOF | error | in_doubt
    });
    named | ends
}

/// Says nothing of what is not the last response.
fn is_in_doubt(flags: u8) -> bool {
    flags & flag::EOF != 0 && flags & flag::IN_DOUBT != 0
}

fn encode_end(w: &mut Writer<'_>, eof: Option<&Eof>, name: Option<&str>) {
    if let Some(eof) = eof {
        eof.encode(w, ERROR_MAX);
    }
    if let Some(name) = name {
        w.str(name);
    }
}

fn decode_end(r: &mut Reader, flags: u8) -> Result<Option<Eof>, DecodeError> {
    if flags & flag::EOF == 0 {
        return Ok(None);
    }
    Eof::decode(r, flags & flag::ERROR != 0).map(Some)
}

impl Eof {
    /// With an error of at most so many bytes; whether there is one is said elsewhere.
    pub(super) fn encode(&self, w: &mut Writer<'_>, most: usize) {
        w.varint(u64::from(self.code));
        if let Some(error) = &self.error {
            w.bytes(&encode_error(error, most));
        }
    }

    pub(super) fn decode(r: &mut Reader, has_error: bool) -> Result<Self, DecodeError> {
        let code = r.varint_u32("code")?;
        let error = if has_error {
            let bytes = r.bytes(ERROR_MAX, "error")?;
            let error = serde_json::from_slice(&bytes);
            Some(error.map_err(|_| DecodeError::Bad { what: "error" })?)
        } else {
            None
        };
        Ok(Self { code, error })
    }
}

fn decode_name(r: &mut Reader, flags: u8) -> Result<Option<String>, DecodeError> {
    if flags & flag::NAME == 0 {
        return Ok(None);
    }
    r.str(RESULT_NAME_MAX, "result name").map(Some)
}

/// An error's JSON, cut to so many bytes by leaving out its detail, shortening its message and,
/// where a plugin made up an endless code, calling that internal.
fn encode_error(error: &ErrorBody, most: usize) -> Vec<u8> {
    if let Ok(bytes) = serde_json::to_vec(error)
        && bytes.len() <= most
    {
        return bytes;
    }
    // A character takes at most six bytes in JSON (a control character's escape).
    let message: String = error.message.chars().take(most / 8).collect();
    let made_up = error.code.as_str().len() > CODE_MAX;
    let code = if made_up {
        ErrorCode::Internal
    } else {
        error.code.clone()
    };
    serde_json::to_vec(&ErrorBody::new(code, message)).unwrap_or_default()
}
