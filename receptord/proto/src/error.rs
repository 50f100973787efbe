//! The closed list of error codes that cross a boundary, and the object that carries one.

use alloc::string::{String, ToString};
use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The longest code that travels on a link, in bytes: far longer than any of the list.
pub const CODE_MAX: usize = 64;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal;)*) => {
        /// What went wrong, for a program to act on. Written in kebab-case, in JSON and on
        /// links alike. New codes may be added; a code this version does not know is
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
    NoSuchNode = "no-such-node";
    /// The node is known, but there is no way to it now.
    NoRoute = "no-route";
    /// The packet passed through too many nodes.
    HopLimit = "hop-limit";
    /// Nobody answered in time.
    Timeout = "timeout";
    /// The message's lifetime ended before it reached its recipient.
    Expired = "expired";
    /// A volatile message was lost on its way.
    Lost = "lost";
    /// A limit is reached now; the same request may pass later.
    Busy = "busy";
    /// The node is finishing what it has and takes nothing new.
    Draining = "draining";
    /// The message is larger than the recipient takes.
    PayloadTooLarge = "payload-too-large";
    /// No reachable node has what `--any` asked for.
    NoMatch = "no-match";
    /// The recipient is known and answers, but refuses.
    Refused = "refused";

    // Work.
    /// The recipient has no such plugin.
    NoSuchPlugin = "no-such-plugin";
    /// The plugin has no such action.
    NoSuchAction = "no-such-action";
    /// The payload is not what the action takes.
    InvalidPayload = "invalid-payload";
    /// The plugin is installed, but says that it cannot work.
    NotReady = "not-ready";
    /// Something that the plugin needs is not installed.
    MissingDependency = "missing-dependency";
    /// The work was cancelled.
    Cancelled = "cancelled";
    /// The plugin sent nothing for too long.
    IdleTimeout = "idle-timeout";
    /// The plugin could not be started.
    PluginStart = "plugin-start";
    /// The plugin ended without an answer.
    PluginExit = "plugin-exit";
    /// The other side broke the protocol.
    ProtocolError = "protocol-error";
    /// The work made more results than it may.
    ResultQuota = "result-quota";
    /// The work was cut short by a restart of its node.
    Interrupted = "interrupted";

    // Everybody.
    /// The request itself is malformed.
    InvalidRequest = "invalid-request";
    /// There is no such command.
    UnknownCommand = "unknown-command";
    /// Policy does not allow it.
    PermissionDenied = "permission-denied";
    /// There is no such message, work or plugin here.
    NotFound = "not-found";
    /// What was stored is not what it was: the disk changed it, and nothing was done with it.
    Damaged = "damaged";
    /// A defect of Receptor itself.
    Internal = "internal";
    /// The configuration was not accepted.
    Configuration = "configuration";

    // Links.
    /// The peer speaks no version that this node speaks.
    UnsupportedVersion = "unsupported-version";
    /// A bad, unexpected or oversized frame.
    BadFrame = "bad-frame";
    /// Another running node has this node id.
    DuplicateNodeId = "duplicate-node-id";
    /// The proven identity is not the one the hello names.
    IdentityMismatch = "identity-mismatch";
    /// A certificate is not believed, at this end or the other: expired, revoked, or not from a trusted authority.
    Untrusted = "untrusted";
    /// Nothing was heard for the hold time.
    HoldTime = "hold-time";
    /// The node shuts down.
    Shutdown = "shutdown";
    /// The peer is this node itself.
    SelfConnection = "self-connection";
    /// The link is no longer in the configuration.
    Deconfigured = "deconfigured";
    /// No hello came in time.
    HelloTimeout = "hello-timeout";
    /// The transport failed or was closed.
    Transport = "transport";
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
    fn codes_survive_text() {
        for code in ErrorCode::ALL {
            assert!(code.as_str().len() <= CODE_MAX);
            assert_eq!(code.as_str().parse::<ErrorCode>().as_ref(), Ok(code));
        }
        assert_eq!(
            "x-mine".parse(),
            Ok(ErrorCode::Unknown("x-mine".to_string()))
        );
    }
}
