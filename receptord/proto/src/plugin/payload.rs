//! What goes into a job and what comes out of it: JSON, text, bytes, or a file beside the pipe.
//!
//! JSON is carried as the text it came in and is not taken apart on the way. `Debug` never shows
//! contents, because payloads must not end in a log.

use alloc::{
    borrow::{Cow, ToOwned},
    boxed::Box,
    string::{String, ToString},
    vec::Vec,
};
use core::fmt;

use base64_simd::STANDARD as BASE64;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{DeserializeOwned, Error as _},
    ser::SerializeStruct,
};
use serde_json::value::RawValue;

use super::{Data, EncodeError, Execute, MAX_LINE};

/// A JSON value, checked and kept as the text it came in, except that line breaks between its
/// parts became spaces: it is always fit to be a part of a line.
#[derive(Clone)]
pub struct Json(Box<RawValue>);

impl Json {
    /// Checks that the bytes are one JSON value.
    ///
    /// # Errors
    /// When they are not.
    pub fn parse(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        let value: &RawValue = match core::str::from_utf8(bytes) {
            Ok(text) => serde_json::from_str(text)?,
            Err(e) => return Err(serde_json::Error::custom(e)),
        };
        Ok(Self::from(value.to_owned()))
    }

    /// The one JSON value that these bytes are, as text on one line, without keeping it.
    ///
    /// # Errors
    /// When they are none.
    pub fn line(bytes: &[u8]) -> Result<Cow<'_, str>, serde_json::Error> {
        let text = core::str::from_utf8(bytes).map_err(serde_json::Error::custom)?;
        let value: &RawValue = serde_json::from_str(text)?;
        Ok(on_one_line(value.get()))
    }

    /// Writes a value as JSON.
    ///
    /// # Errors
    /// When the value has no JSON form (a map whose keys are not strings).
    pub fn from_value<T: Serialize + ?Sized>(value: &T) -> Result<Self, serde_json::Error> {
        RawValue::from_string(serde_json::to_string(value)?).map(Self)
    }

    /// The JSON text, on one line.
    pub fn get(&self) -> &str {
        self.0.get()
    }

    /// Reads the value into a type.
    ///
    /// # Errors
    /// When the value is not of that form.
    pub fn to<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_str(self.0.get())
    }
}

impl From<Box<RawValue>> for Json {
    fn from(value: Box<RawValue>) -> Self {
        match on_one_line(value.get()) {
            Cow::Borrowed(_) => Self(value),
            // Still the same JSON; keeping the old text is the harmless side of the impossible case.
            Cow::Owned(text) => Self(RawValue::from_string(text).unwrap_or(value)),
        }
    }
}

/// The same JSON, with blanks for line breaks. Inside of strings it has these only in escaped form, and
/// between its tokens a blank does as well.
fn on_one_line(json: &str) -> Cow<'_, str> {
    if memchr::memchr2(b'\n', b'\r', json.as_bytes()).is_none() {
        return Cow::Borrowed(json);
    }
    Cow::Owned(json.replace(['\n', '\r'], " "))
}

impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Json({} bytes)", self.get().len())
    }
}

impl PartialEq for Json {
    fn eq(&self, other: &Self) -> bool {
        self.get() == other.get()
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Box::<RawValue>::deserialize(deserializer).map(Self::from)
    }
}

/// A payload or a result.
#[derive(Clone, PartialEq)]
pub enum Payload {
    /// A JSON value.
    Json(Json),
    /// Text.
    Text(String),
    /// Bytes; in base64 on the wire, so for little ones only.
    Bytes(Vec<u8>),
    /// The contents of a file.
    File(FileRef),
}

impl Payload {
    /// Length in bytes, where it is known.
    pub fn size(&self) -> Option<u64> {
        let len = match self {
            Self::Json(json) => json.get().len(),
            Self::Text(text) => text.len(),
            Self::Bytes(bytes) => bytes.len(),
            Self::File(file) => return file.size,
        };
        u64::try_from(len).ok()
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Json(json) => json.fmt(f),
            Self::Text(text) => write!(f, "Text({} bytes)", text.len()),
            Self::Bytes(bytes) => write!(f, "Bytes({})", bytes.len()),
            Self::File(file) => file.fmt(f),
        }
    }
}

/// A file of the job.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileRef {
    /// Where, relative to the working directory the plugin was started in
    /// (see [`is_relative_path`](super::is_relative_path)).
    pub path: String,
    /// What a person would call it (results only).
    pub name: Option<String>,
    /// Its size in bytes.
    pub size: Option<u64>,
    /// The SHA-256 of its contents in lower-case hexadecimal.
    pub sha256: Option<String>,
}

impl FileRef {
    /// A file of which only the path is known.
    pub fn new(path: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            ..Self::default()
        }
    }
}

/// A [`Payload`] whose parts are elsewhere.
#[derive(Clone, Copy)]
pub enum PayloadRef<'a> {
    /// A JSON value, checked, and without line breaks.
    Json(&'a [u8]),
    /// Text.
    Text(&'a str),
    /// Bytes.
    Bytes(&'a [u8]),
    /// The contents of a file.
    File(&'a FileRef),
}

impl fmt::Debug for PayloadRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Json(json) => write!(f, "Json({} bytes)", json.len()),
            Self::Text(text) => write!(f, "Text({} bytes)", text.len()),
            Self::Bytes(bytes) => write!(f, "Bytes({})", bytes.len()),
            Self::File(file) => file.fmt(f),
        }
    }
}

/// An [`Execute`] whose parts are elsewhere. A host writes one for every job, so that it is
/// written straight into the line and without a copy of its payload.
#[derive(Debug, Clone, Copy)]
pub struct ExecuteRef<'a> {
    /// The job's id, see [`is_job_id`](super::is_job_id).
    pub id: &'a str,
    /// Which of the plugin's actions.
    pub action: &'a str,
    /// The node the message came from.
    pub sender: &'a str,
    /// The message's payload; `None` only for actions that take none.
    pub payload: Option<PayloadRef<'a>>,
    /// The host ends the job after this many milliseconds.
    pub timeout_ms: Option<u64>,
    /// 1 for the first attempt; more when an idempotent job is run again.
    pub attempt: u32,
}

impl ExecuteRef<'_> {
    /// Adds the message to `lines`, as [`HostMessage::to_line`](super::HostMessage::to_line)
    /// writes an [`Execute`].
    ///
    /// # Errors
    /// When the line would be too long; `lines` is then as it was.
    pub fn put_line(&self, lines: &mut Vec<u8>) -> Result<(), EncodeError> {
        let start = lines.len();
        let written = self.put(lines);
        let len = lines.len() - start;
        if written.is_err() || len > MAX_LINE {
            lines.truncate(start);
            written?;
            return Err(EncodeError::TooLong {
                len,
                limit: MAX_LINE,
            });
        }
        Ok(())
    }

    fn put(&self, out: &mut Vec<u8>) -> Result<(), serde_json::Error> {
        out.extend_from_slice(b"{\"type\":\"execute\",\"id\":");
        put_text(out, self.id)?;
        out.extend_from_slice(b",\"action\":");
        put_text(out, self.action)?;
        out.extend_from_slice(b",\"sender\":");
        put_text(out, self.sender)?;
        match self.payload {
            None => {}
            Some(PayloadRef::Json(json)) => {
                out.extend_from_slice(b",\"payload\":");
                out.extend_from_slice(json);
            }
            Some(PayloadRef::Text(text)) => {
                out.extend_from_slice(b",\"payload_text\":");
                put_text(out, text)?;
            }
            Some(PayloadRef::Bytes(bytes)) => {
                out.extend_from_slice(b",\"payload_base64\":\"");
                BASE64.encode_append(bytes, out);
                out.push(b'"');
            }
            Some(PayloadRef::File(file)) => {
                out.extend_from_slice(b",\"payload_file\":");
                put_text(out, &file.path)?;
                if let Some(size) = file.size {
                    out.extend_from_slice(b",\"payload_size\":");
                    put_number(out, size);
                }
                if let Some(sha256) = &file.sha256 {
                    out.extend_from_slice(b",\"payload_sha256\":");
                    put_text(out, sha256)?;
                }
            }
        }
        if let Some(timeout_ms) = self.timeout_ms {
            out.extend_from_slice(b",\"timeout_ms\":");
            put_number(out, timeout_ms);
        }
        out.extend_from_slice(b",\"attempt\":");
        put_number(out, self.attempt.into());
        out.extend_from_slice(b"}\n");
        Ok(())
    }
}

/// Reads a line that says exactly what [`ExecuteRef::put_line`] writes for a payload of bytes without anything escaped.
/// Plugins that serve get these by the hundred thousand, and a parser for all of JSON is most of what one costs them. All
/// other lines, wrong ones among them, are that parser's.
pub(super) fn plain_execute(line: &str) -> Option<Execute> {
    let rest = line.strip_prefix("{\"type\":\"execute\",\"id\":\"")?;
    let (id, rest) = plain_text(rest)?;
    let (action, rest) = plain_text(rest.strip_prefix(",\"action\":\"")?)?;
    let (sender, rest) = plain_text(rest.strip_prefix(",\"sender\":\"")?)?;
    let rest = rest.strip_prefix(",\"payload_base64\":\"")?;
    let (base64, rest) = rest.split_once('"')?;
    let (timeout_ms, rest) = match rest.strip_prefix(",\"timeout_ms\":") {
        Some(rest) => {
            let (timeout_ms, rest) = plain_number(rest)?;
            (Some(timeout_ms), rest)
        }
        None => (None, rest),
    };
    let (attempt, rest) = plain_number(rest.strip_prefix(",\"attempt\":")?)?;
    if rest != "}\n" {
        return None;
    }
    Some(Execute {
        id: id.to_owned(),
        action: action.to_owned(),
        sender: sender.to_owned(),
        payload: Some(Payload::Bytes(BASE64.decode_to_vec(base64).ok()?)),
        timeout_ms,
        attempt: attempt.try_into().ok()?,
    })
}

/// Text up to its quote, if nothing in it is escaped or would have to be.
fn plain_text(rest: &str) -> Option<(&str, &str)> {
    let end = rest.bytes().position(|byte| !is_plain(byte))?;
    Some((rest.get(..end)?, rest.get(end..)?.strip_prefix('"')?))
}

/// A number as [`put_number`] writes it.
fn plain_number(rest: &str) -> Option<(u64, &str)> {
    let end = rest.bytes().position(|byte| !byte.is_ascii_digit())?;
    let (digits, rest) = rest.split_at_checked(end)?;
    let is_padded = digits.len() > 1 && digits.starts_with('0');
    (!is_padded).then_some((digits.parse().ok()?, rest))
}

/// Whether a byte of a text stands for itself in JSON.
fn is_plain(byte: u8) -> bool {
    byte >= b' ' && byte != b'"' && byte != b'\\'
}

fn put_text(out: &mut Vec<u8>, text: &str) -> Result<(), serde_json::Error> {
    if text.bytes().all(is_plain) {
        out.push(b'"');
        out.extend_from_slice(text.as_bytes());
        out.push(b'"');
    } else {
        out.extend_from_slice(&serde_json::to_vec(text)?);
    }
    Ok(())
}

fn put_number(out: &mut Vec<u8>, number: u64) {
    let start = out.len();
    let mut rest = number;
    loop {
        // A remainder by ten is a digit.
        let digit = u8::try_from(rest % 10).unwrap_or_default();
        out.push(b'0' + digit);
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if let Some(digits) = out.get_mut(start..) {
        digits.reverse();
    }
}

const ONE_PAYLOAD: &str = "more than one of the payload's forms in one message";

/// What both messages with a payload make of their four possible fields.
fn exactly_one(
    json: Option<Json>,
    text: Option<String>,
    base64: Option<String>,
    file: Option<FileRef>,
) -> Result<Option<Payload>, String> {
    let payload = match (json, text, base64, file) {
        (None, None, None, None) => return Ok(None),
        (Some(json), None, None, None) => Payload::Json(json),
        (None, Some(text), None, None) => Payload::Text(text),
        (None, None, Some(base64), None) => Payload::Bytes(
            BASE64
                .decode_to_vec(base64.as_bytes())
                .map_err(|e| e.to_string())?,
        ),
        (None, None, None, Some(file)) => Payload::File(file),
        _ => return Err(ONE_PAYLOAD.to_string()),
    };
    Ok(Some(payload))
}

/// `null` is a JSON value like any other and not the absence of one.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Json>, D::Error> {
    Json::deserialize(deserializer).map(Some)
}

fn first() -> u32 {
    1
}

#[derive(Deserialize)]
pub(super) struct ExecuteWire {
    id: String,
    action: String,
    #[serde(default)]
    sender: String,
    #[serde(default, deserialize_with = "present")]
    payload: Option<Json>,
    payload_text: Option<String>,
    payload_base64: Option<String>,
    payload_file: Option<String>,
    payload_size: Option<u64>,
    payload_sha256: Option<String>,
    timeout_ms: Option<u64>,
    #[serde(default = "first")]
    attempt: u32,
}

impl TryFrom<ExecuteWire> for Execute {
    type Error = String;

    fn try_from(wire: ExecuteWire) -> Result<Self, String> {
        let file = wire.payload_file.map(|path| FileRef {
            path,
            name: None,
            size: wire.payload_size,
            sha256: wire.payload_sha256,
        });
        Ok(Self {
            id: wire.id,
            action: wire.action,
            sender: wire.sender,
            payload: exactly_one(wire.payload, wire.payload_text, wire.payload_base64, file)?,
            timeout_ms: wire.timeout_ms,
            attempt: wire.attempt,
        })
    }
}

impl Serialize for Execute {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut s = serializer.serialize_struct("Execute", 8)?;
        s.serialize_field("id", &self.id)?;
        s.serialize_field("action", &self.action)?;
        s.serialize_field("sender", &self.sender)?;
        match &self.payload {
            None => {}
            Some(Payload::Json(json)) => s.serialize_field("payload", json)?,
            Some(Payload::Text(text)) => s.serialize_field("payload_text", text)?,
            Some(Payload::Bytes(bytes)) => {
                s.serialize_field("payload_base64", &BASE64.encode_to_string(bytes))?;
            }
            Some(Payload::File(file)) => {
                s.serialize_field("payload_file", &file.path)?;
                if let Some(size) = file.size {
                    s.serialize_field("payload_size", &size)?;
                }
                if let Some(sha256) = &file.sha256 {
                    s.serialize_field("payload_sha256", sha256)?;
                }
            }
        }
        if let Some(timeout_ms) = self.timeout_ms {
            s.serialize_field("timeout_ms", &timeout_ms)?;
        }
        s.serialize_field("attempt", &self.attempt)?;
        s.end()
    }
}

#[derive(Deserialize)]
pub(super) struct DataWire {
    id: String,
    #[serde(default, deserialize_with = "present")]
    data: Option<Json>,
    text: Option<String>,
    base64: Option<String>,
    file: Option<String>,
    name: Option<String>,
    size: Option<u64>,
    sha256: Option<String>,
}

impl TryFrom<DataWire> for Data {
    type Error = String;

    fn try_from(wire: DataWire) -> Result<Self, String> {
        let file = wire.file.map(|path| FileRef {
            path,
            name: wire.name,
            size: wire.size,
            sha256: wire.sha256,
        });
        let body = exactly_one(wire.data, wire.text, wire.base64, file)?
            .ok_or("one of \"data\", \"text\", \"base64\" and \"file\" is missing")?;
        Ok(Self { id: wire.id, body })
    }
}

impl Serialize for Data {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut s = serializer.serialize_struct("Data", 5)?;
        s.serialize_field("id", &self.id)?;
        match &self.body {
            Payload::Json(json) => s.serialize_field("data", json)?,
            Payload::Text(text) => s.serialize_field("text", text)?,
            Payload::Bytes(bytes) => {
                s.serialize_field("base64", &BASE64.encode_to_string(bytes))?;
            }
            Payload::File(file) => {
                s.serialize_field("file", &file.path)?;
                if let Some(name) = &file.name {
                    s.serialize_field("name", name)?;
                }
                if let Some(size) = file.size {
                    s.serialize_field("size", &size)?;
                }
                if let Some(sha256) = &file.sha256 {
                    s.serialize_field("sha256", sha256)?;
                }
            }
        }
        s.end()
    }
}
