//! The plugin protocol: what a daemon and a plugin say to each other on the plugin's stdin and
//! stdout, one JSON object a line.
//!
//! This module owns the message types, their encoding, the limits and the checks that a daemon
//! and `receptorctl plugin check` must agree on. It never reads or writes a pipe, starts a
//! process or looks at a file. The text of the protocol is `PROTOCOL-plugin.md`; a test holds
//! every example in it against these types.
//!
//! Both sides ignore message types and fields they do not know, so that the protocol can grow.

mod error;
mod hello;
mod name;
mod payload;

use alloc::{
    borrow::Cow,
    string::{String, ToString},
    vec::Vec,
};
use core::time::Duration;

use serde::{Deserialize, Serialize};

pub use error::{CancelReason, ErrorCode, PluginError};
pub use hello::{
    ActionDescriptor, HelloProblem, HostHello, Limits, Mode, OutputKind, PayloadKind, PluginHello,
    feature,
};
pub use name::{is_job_id, is_name, is_relative_path, plugin_name};
pub use payload::{ExecuteRef, FileRef, Json, Payload, PayloadRef};

/// The version of the protocol that these types speak.
pub const PROTOCOL_VERSION: u32 = 1;

/// Longest line in bytes, its newline included, in both directions. Longer lines were measured to
/// be no faster, and a line has to be held in memory whole.
pub const MAX_LINE: usize = 1_048_576;
/// Longest hello line in bytes, its newline included. A hello is read from a program nobody has
/// checked yet, and is kept for as long as the plugin is installed.
pub const MAX_HELLO: usize = 65_536;
/// Largest payload or result, in bytes of JSON or text, that is put into a line; larger ones go
/// by file, which is faster and keeps the daemon's memory flat.
pub const MAX_INLINE: usize = 262_144;
/// Longest job id, in bytes.
pub const MAX_JOB_ID: usize = 128;
/// Longest plugin or action name, in bytes: a name is part of a directive and of file names.
pub const MAX_NAME: usize = crate::directive::NAME_MAX;
/// Most actions a plugin may have: they are advertised through the whole mesh.
pub const MAX_ACTIONS: usize = crate::lsa::ACTIONS_MAX;
/// Most jobs at once that a plugin may ask for.
pub const MAX_JOBS: u32 = 65_536;
/// Longest free text of a hello (version, about, reason) in bytes.
pub const MAX_TEXT: usize = 1_024;
/// Status messages kept for a job in a second; in between the latest wins.
pub const MAX_STATUS_PER_SECOND: u32 = 4;
/// Bytes of stderr kept for a job.
pub const STDERR_KEPT: usize = 8_192;
/// Bytes of stderr shown in a `plugin-exit` error.
pub const STDERR_SHOWN: usize = 4_096;
/// Bytes of an offending line shown in a `protocol-error`.
pub const EXCERPT: usize = 200;

/// Longest wait for the plugin's hello.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for the exit of a plugin without a job, once its stdin is closed.
pub const DESCRIBE_EXIT: Duration = Duration::from_secs(2);
/// Time a plugin gets to end a cancelled job itself.
pub const CANCEL_GRACE: Duration = Duration::from_secs(10);
/// Time between SIGTERM and SIGKILL.
pub const TERM_GRACE: Duration = Duration::from_secs(5);
/// Time a plugin gets to end when the daemon shuts down.
pub const SHUTDOWN_GRACE: Duration = Duration::from_secs(10);
/// Time a plugin's stdout may stay open after its exit: a grandchild can hold it.
pub const DRAIN_AFTER_EXIT: Duration = Duration::from_secs(1);
/// A serving plugin without a job for this long is stopped.
pub const SERVE_IDLE: Duration = Duration::from_secs(60);
/// A job of a serving plugin that was silent for this long is asked for a sign of life.
pub const PING_AFTER: Duration = Duration::from_secs(30);

/// Names of the environment variables that a plugin is started with.
pub mod env {
    /// The protocol version; its absence means that a person started the plugin by hand.
    pub const PROTOCOL: &str = "RECEPTOR_PLUGIN_PROTOCOL";
    /// The id of the daemon's node.
    pub const NODE: &str = "RECEPTOR_NODE";
    /// The job's id (job mode). Also how processes that a job left behind are found.
    pub const JOB_ID: &str = "RECEPTOR_JOB_ID";
    /// The job directory, absolute; also the working directory.
    pub const JOB_DIR: &str = "RECEPTOR_JOB_DIR";
    /// The action (job mode).
    pub const ACTION: &str = "RECEPTOR_ACTION";
    /// The node that sent the message (job mode).
    pub const SENDER: &str = "RECEPTOR_SENDER";
    /// The payload's file, relative to the job directory, when it came by file (job mode).
    pub const PAYLOAD_FILE: &str = "RECEPTOR_PAYLOAD_FILE";
}

/// What a daemon says to a plugin.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum HostMessage {
    /// The answer to the plugin's hello.
    Hello(HostHello),
    /// Run a job.
    Execute(Execute),
    /// Stop a job.
    Cancel(Cancel),
    /// Ask for a sign of life.
    Ping(Ping),
    /// Finish what is running and exit; stdin is closed at the latest after the grace time.
    Shutdown(Shutdown),
    /// A type from a newer protocol, to be ignored.
    #[serde(skip_serializing)]
    Unknown {
        /// The message's `type`.
        kind: String,
    },
}

/// What a plugin says to its daemon.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum PluginMessage {
    /// Who the plugin is: its first line, before it reads anything.
    Hello(PluginHello),
    /// One result, to be delivered to the sender in order.
    Data(Data),
    /// What a job is doing; the latest wins.
    Status(Status),
    /// A line for the daemon's log.
    Log(Log),
    /// The job ran: its one final message.
    Done(Done),
    /// The job could not be run or was stopped: its one final message.
    Error(JobError),
    /// Whether jobs have a chance, when that differs from the hello.
    Ready(Ready),
    /// The answer to a ping.
    Pong(Ping),
    /// A type from a newer protocol, to be ignored.
    #[serde(skip_serializing)]
    Unknown {
        /// The message's `type`.
        kind: String,
    },
}

/// A job to run.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "payload::ExecuteWire")]
pub struct Execute {
    /// The job's id, see [`is_job_id`].
    pub id: String,
    /// Which of the plugin's actions.
    pub action: String,
    /// The node the message came from.
    pub sender: String,
    /// The message's payload; `None` only for actions that take none.
    pub payload: Option<Payload>,
    /// The host ends the job after this many milliseconds.
    pub timeout_ms: Option<u64>,
    /// 1 for the first attempt; more when an idempotent job is run again.
    pub attempt: u32,
}

/// A job to stop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cancel {
    /// The job's id.
    pub id: String,
    /// Why.
    pub reason: CancelReason,
    /// Milliseconds until the host ends the job's processes itself.
    pub grace_ms: u64,
}

/// A request for a sign of life, or the answer to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ping {
    /// Sent back unchanged.
    pub nonce: u64,
}

/// A request to finish and exit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shutdown {
    /// Milliseconds until the host ends the plugin itself.
    pub grace_ms: u64,
}

/// Whether jobs have a chance now. A plugin says it after it has seen its configuration in the
/// daemon's hello, and whenever it changes; the latest word holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// Whether jobs sent now have a chance.
    pub ready: bool,
    /// Why not, when it is not ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// One result of a job.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "payload::DataWire")]
pub struct Data {
    /// The job's id.
    pub id: String,
    /// The result. A file belongs to the host from here on.
    pub body: Payload,
}

/// What a job is doing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The job's id.
    pub id: String,
    /// One word, such as `running`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// One line for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Steps done, and steps in all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<(u64, u64)>,
}

/// A line for the daemon's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Log {
    /// The job's id.
    pub id: String,
    /// How much it matters.
    #[serde(default)]
    pub level: Level,
    /// The line.
    pub message: String,
}

/// How much a log line matters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Something did not work.
    Error,
    /// Worth waking someone.
    Warn,
    /// For finding a fault.
    Debug,
    /// For the plugin's author.
    Trace,
    /// Worth keeping; also what a level unknown here is taken for.
    #[default]
    #[serde(other)]
    Info,
}

/// The end of a job that ran.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Done {
    /// The job's id.
    pub id: String,
    /// 0 for success, else the job's own result code.
    pub code: i64,
    /// A last word to the sender.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Json>,
}

/// The end of a job that could not be run, or was stopped.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobError {
    /// The job's id.
    pub id: String,
    /// What went wrong.
    pub error: PluginError,
}

/// Why a line is no message. Any of these ends the job with [`ErrorCode::ProtocolError`].
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The line, or the hello, is longer than the protocol allows.
    #[error("the line has {len} bytes, more than {limit}")]
    TooLong {
        /// The line's length, its newline included.
        len: usize,
        /// The limit it passed.
        limit: usize,
    },
    /// The line is not UTF-8.
    #[error("the line is not UTF-8")]
    NotUtf8(#[from] core::str::Utf8Error),
    /// The line is not JSON, or a field is missing or of the wrong type.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// The object has no `type`.
    #[error("the message has no \"type\"")]
    NoType,
    /// The id is not 1–128 of `[A-Za-z0-9._:-]`.
    #[error("the job id {0:?} is not 1 to 128 of A-Z a-z 0-9 . _ : -")]
    JobId(String),
}

/// Why a message cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// The line, or the hello, would be longer than the protocol allows.
    #[error("the line would have {len} bytes, more than {limit}")]
    TooLong {
        /// The line's length, its newline included.
        len: usize,
        /// The limit it passed.
        limit: usize,
    },
    /// The message has no form on the wire ([`HostMessage::Unknown`], [`PluginMessage::Unknown`]).
    #[error(transparent)]
    Json(#[from] serde_json::Error),
}

impl HostMessage {
    /// Reads one line, with or without its newline.
    ///
    /// # Errors
    /// [`DecodeError`] when the line breaks the protocol; an unknown type is no error.
    pub fn decode(line: &[u8]) -> Result<Self, DecodeError> {
        let line = text(line)?;
        if let Some(message) = payload::plain_execute(line) {
            check_id(&message.id)?;
            return Ok(Self::Execute(message));
        }
        let message = match &*kind(line)? {
            "hello" => Self::Hello(hello(line)?),
            "execute" => {
                let message: Execute = serde_json::from_str(line)?;
                check_id(&message.id)?;
                Self::Execute(message)
            }
            "cancel" => {
                let message: Cancel = serde_json::from_str(line)?;
                check_id(&message.id)?;
                Self::Cancel(message)
            }
            "ping" => Self::Ping(serde_json::from_str(line)?),
            "shutdown" => Self::Shutdown(serde_json::from_str(line)?),
            other => Self::Unknown {
                kind: unknown(line, other)?,
            },
        };
        Ok(message)
    }

    /// Writes the message as one line with its newline.
    ///
    /// # Errors
    /// [`EncodeError`] when the line would be too long.
    pub fn to_line(&self) -> Result<Vec<u8>, EncodeError> {
        to_line(self, matches!(self, Self::Hello(_)))
    }
}

impl PluginMessage {
    /// Reads one line, with or without its newline.
    ///
    /// # Errors
    /// [`DecodeError`] when the line breaks the protocol; an unknown type is no error.
    pub fn decode(line: &[u8]) -> Result<Self, DecodeError> {
        let line = text(line)?;
        let message = match &*kind(line)? {
            "hello" => Self::Hello(hello(line)?),
            "data" => Self::Data(serde_json::from_str(line)?),
            "status" => Self::Status(serde_json::from_str(line)?),
            "log" => Self::Log(serde_json::from_str(line)?),
            "done" => Self::Done(serde_json::from_str(line)?),
            "error" => Self::Error(serde_json::from_str(line)?),
            "ready" => Self::Ready(serde_json::from_str(line)?),
            "pong" => Self::Pong(serde_json::from_str(line)?),
            other => Self::Unknown {
                kind: unknown(line, other)?,
            },
        };
        if let Some(id) = message.id() {
            check_id(id)?;
        }
        Ok(message)
    }

    /// Writes the message as one line with its newline.
    ///
    /// # Errors
    /// [`EncodeError`] when the line would be too long.
    pub fn to_line(&self) -> Result<Vec<u8>, EncodeError> {
        to_line(self, matches!(self, Self::Hello(_)))
    }

    /// Adds the line to others, as [`Self::to_line`] writes it. The plain end of a job, which every
    /// one has, is written straight.
    ///
    /// # Errors
    /// [`EncodeError`] when the line would be too long; `lines` is then as it was.
    pub fn put_line(&self, lines: &mut Vec<u8>) -> Result<(), EncodeError> {
        match self {
            Self::Done(Done {
                id,
                code: 0,
                result: None,
            }) if is_job_id(id) => {
                lines.extend_from_slice(b"{\"type\":\"done\",\"id\":\"");
                lines.extend_from_slice(id.as_bytes());
                lines.extend_from_slice(b"\",\"code\":0}\n");
            }
            Self::Hello(_)
            | Self::Data(_)
            | Self::Status(_)
            | Self::Log(_)
            | Self::Done(_)
            | Self::Error(_)
            | Self::Ready(_)
            | Self::Pong(_)
            | Self::Unknown { .. } => lines.extend_from_slice(&self.to_line()?),
        }
        Ok(())
    }

    /// The job that the message is about.
    pub fn id(&self) -> Option<&str> {
        match self {
            Self::Data(m) => Some(&m.id),
            Self::Status(m) => Some(&m.id),
            Self::Log(m) => Some(&m.id),
            Self::Done(m) => Some(&m.id),
            Self::Error(m) => Some(&m.id),
            Self::Hello(_) | Self::Ready(_) | Self::Pong(_) | Self::Unknown { .. } => None,
        }
    }

    /// Whether this is a job's one final message.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Done(_) | Self::Error(_))
    }
}

/// The start of a line that broke the protocol, short enough for an error and fit for a log:
/// control characters and bytes that are not UTF-8 are replaced, and its end is left away.
pub fn excerpt(line: &[u8]) -> String {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let start = line.get(..EXCERPT).unwrap_or(line);
    String::from_utf8_lossy(start)
        .chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

fn text(line: &[u8]) -> Result<&str, DecodeError> {
    if line.len() > MAX_LINE {
        return Err(DecodeError::TooLong {
            len: line.len(),
            limit: MAX_LINE,
        });
    }
    Ok(core::str::from_utf8(line)?)
}

/// The message's type. Nearly every message begins with it, so that one look is enough; the rest
/// of the line is checked when the message itself is read.
fn kind(line: &str) -> Result<Cow<'_, str>, DecodeError> {
    #[derive(Deserialize)]
    struct Head<'a> {
        #[serde(borrow, rename = "type")]
        kind: Option<Cow<'a, str>>,
    }
    if let Some(rest) = line.strip_prefix("{\"type\":\"")
        && let Some(end) = rest.find(['"', '\\'])
        && rest.as_bytes().get(end) == Some(&b'"')
    {
        return Ok(Cow::Borrowed(rest.get(..end).unwrap_or_default()));
    }
    let head: Head<'_> = serde_json::from_str(line)?;
    head.kind.ok_or(DecodeError::NoType)
}

fn hello<'a, T: Deserialize<'a>>(line: &'a str) -> Result<T, DecodeError> {
    if line.len() > MAX_HELLO {
        return Err(DecodeError::TooLong {
            len: line.len(),
            limit: MAX_HELLO,
        });
    }
    Ok(serde_json::from_str(line)?)
}

fn unknown(line: &str, kind: &str) -> Result<String, DecodeError> {
    let _: serde::de::IgnoredAny = serde_json::from_str(line)?;
    Ok(kind.to_string())
}

fn check_id(id: &str) -> Result<(), DecodeError> {
    if is_job_id(id) {
        return Ok(());
    }
    Err(DecodeError::JobId(excerpt(id.as_bytes())))
}

fn to_line<T: Serialize>(message: &T, is_hello: bool) -> Result<Vec<u8>, EncodeError> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    let limit = if is_hello { MAX_HELLO } else { MAX_LINE };
    if line.len() > limit {
        return Err(EncodeError::TooLong {
            len: line.len(),
            limit,
        });
    }
    Ok(line)
}

#[cfg(test)]
mod tests;
