//! The closed list of error codes that cross a boundary, and the object that carries one.

use alloc::string::{String, ToString};
use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $number:literal;)*) => {
        /// What went wrong, for a program to act on. Written in kebab-case in JSON and as a
        /// number on links. New codes may be added; a code this version does not know is
        /// kept as [`ErrorCode::Unknown`] and shown as it came.
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum ErrorCode {
            $($(#[$doc])* $name,)*
            /// A code of a newer peer or a plugin's own (`x-…`).
            Unknown(String),
        }

        impl ErrorCode {
            /// Every code this version knows.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The code as it is written.
            #[must_use]
            pub fn as_str(&self) -> &str {
                match self {
                    $(Self::$name => $text,)*
                    Self::Unknown(text) => text,
                }
            }

            /// The code's number on links; 0 for an unknown one.
            #[must_use]
            pub fn number(&self) -> u8 {
                match self {
                    $(Self::$name => $number,)*
                    Self::Unknown(_) => 0,
                }
            }

            /// The code with this number, if this version knows it.
            #[must_use]
            pub fn from_number(number: u8) -> Option<Self> {
                match number {
                    $($number => Some(Self::$name),)*
                    _ => None,
                }
            }
        }

        impl FromStr for ErrorCode {
            type Err = core::convert::Infallible;
            fn from_str(s: &str) -> Result<Self, Self::Err> {
                Ok(match s {
                    $($text => Self::$name,)*
                    other => Self::Unknown(other.to_string()),
                })
            }
        }
    };
}

codes! {
    // Routing and delivery.
    /// The node is not known anywhere in the mesh.
    NoSuchNode = "no-such-node", 1;
    /// The node is known, but there is no way to it now.
    NoRoute = "no-route", 2;
    /// The packet passed through too many nodes.
    HopLimit = "hop-limit", 3;
    /// Nobody answered in time.
    Timeout = "timeout", 4;
    /// The message's lifetime ended before it reached its recipient.
    Expired = "expired", 5;
    /// A volatile message was lost on its way.
    Lost = "lost", 6;
    /// A limit is reached now; the same request may pass later.
    Busy = "busy", 7;
    /// The node is finishing what it has and takes nothing new.
    Draining = "draining", 8;
    /// The message is larger than the recipient takes.
    PayloadTooLarge = "payload-too-large", 9;
    /// No reachable node has what `--any` asked for.
    NoMatch = "no-match", 10;
    /// The recipient is known and answers, but refuses.
    Refused = "refused", 11;

    // Work.
    /// The recipient has no such plugin.
    NoSuchPlugin = "no-such-plugin", 20;
    /// The plugin has no such action.
    NoSuchAction = "no-such-action", 21;
    /// The payload is not what the action takes.
    InvalidPayload = "invalid-payload", 22;
    /// The plugin is installed, but says that it cannot work.
    NotReady = "not-ready", 23;
    /// Something that the plugin needs is not installed.
    MissingDependency = "missing-dependency", 24;
    /// The work was cancelled.
    Cancelled = "cancelled", 25;
    /// The plugin sent nothing for too long.
    IdleTimeout = "idle-timeout", 26;
    /// The plugin could not be started.
    PluginStart = "plugin-start", 27;
    /// The plugin ended without an answer.
    PluginExit = "plugin-exit", 28;
    /// The other side broke the protocol.
    ProtocolError = "protocol-error", 29;
    /// The work made more results than it may.
    ResultQuota = "result-quota", 30;
    /// The work was cut short by a restart of its node.
    Interrupted = "interrupted", 31;

    // Everybody.
    /// The request itself is malformed.
    InvalidRequest = "invalid-request", 40;
    /// There is no such command.
    UnknownCommand = "unknown-command", 41;
    /// Policy does not allow it.
    PermissionDenied = "permission-denied", 42;
    /// There is no such message, work or plugin here.
    NotFound = "not-found", 43;
    /// A defect of Receptor itself.
    Internal = "internal", 44;
    /// The configuration was not accepted.
    Configuration = "configuration", 45;

    // Links.
    /// The peer speaks no version that this node speaks.
    UnsupportedVersion = "unsupported-version", 60;
    /// A bad, unexpected or oversized frame.
    BadFrame = "bad-frame", 61;
    /// Another running node has this node id.
    DuplicateNodeId = "duplicate-node-id", 62;
    /// The proven identity is not the one the hello names.
    IdentityMismatch = "identity-mismatch", 63;
    /// Nothing was heard for the hold time.
    HoldTime = "hold-time", 64;
    /// The node shuts down.
    Shutdown = "shutdown", 65;
    /// The peer is this node itself.
    SelfConnection = "self-connection", 66;
    /// The link is no longer in the configuration.
    Deconfigured = "deconfigured", 67;
    /// No hello came in time.
    HelloTimeout = "hello-timeout", 68;
    /// The transport failed or was closed.
    Transport = "transport", 69;
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl Serialize for ErrorCode {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for ErrorCode {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        match text.parse() {
            Ok(code) => Ok(code),
            Err(never) => match never {},
        }
    }
}

/// An error as it crosses the wire: `{"code": "no-route", "message": "…", "detail": {…}}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// For programs.
    pub code: ErrorCode,
    /// For people: what, where, what to do.
    pub message: String,
    /// Further facts, by code.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub detail: serde_json::Map<String, serde_json::Value>,
}

impl ErrorBody {
    /// An error without detail.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            detail: serde_json::Map::new(),
        }
    }

    /// The same error with one more fact.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<serde_json::Value>) -> Self {
        self.detail.insert(key.to_string(), value.into());
        self
    }
}

impl fmt::Display for ErrorBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message, self.code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_survive_text_and_number() {
        for code in ErrorCode::ALL {
            assert_eq!(code.as_str().parse::<ErrorCode>().as_ref(), Ok(code));
            assert_eq!(ErrorCode::from_number(code.number()).as_ref(), Some(code));
        }
        assert_eq!(
            "x-mine".parse(),
            Ok(ErrorCode::Unknown("x-mine".to_string()))
        );
    }
}
