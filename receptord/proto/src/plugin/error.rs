//! Why a job could not be run or was stopped.

use alloc::{
    borrow::Cow,
    string::{String, ToString},
    vec::Vec,
};
use core::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Json;

/// Why a job could not be run or was stopped, as the sender will read it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[error("{code}: {message}")]
pub struct PluginError {
    /// What kind of failure.
    pub code: ErrorCode,
    /// One or a few sentences for people: what was seen, and what to do about it.
    pub message: String,
    /// The chain of causes, outermost first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub caused_by: Vec<String>,
    /// Whether the same job may succeed when it is sent again.
    #[serde(default)]
    pub retryable: bool,
    /// More for programs, by code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<Json>,
}

impl PluginError {
    /// An error with the code's usual answer to whether a retry makes sense.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            retryable: code.is_retryable(),
            code,
            message: message.into(),
            caused_by: Vec::new(),
            details: None,
        }
    }
}

/// What kind of failure. The list may grow, and plugins have their own (`x-…`).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// The payload is not what the action takes.
    InvalidPayload,
    /// The payload is larger than the action or the node takes.
    PayloadTooLarge,
    /// No plugin of this name is installed.
    UnknownPlugin,
    /// The plugin has no such action.
    UnknownAction,
    /// The sender may not use this directive here.
    PermissionDenied,
    /// The plugin says that it cannot work now.
    NotReady,
    /// The plugin has more to do than it bears.
    Busy,
    /// Something the plugin needs is not installed.
    MissingDependency,
    /// The job was cancelled.
    Canceled,
    /// The job took too long.
    Timeout,
    /// The job said nothing for too long.
    IdleTimeout,
    /// The plugin could not be started, or did not say a usable hello in time.
    PluginStart,
    /// The plugin ended without a final message.
    PluginExit,
    /// The plugin broke the protocol.
    ProtocolError,
    /// The results are more than the spool may keep for a job.
    ResultQuota,
    /// Anything else that is not the sender's fault.
    Internal,
    /// A plugin's own code (`x-…`), or one from a newer protocol.
    Other(String),
}

/// Every known code with its name and whether a retry makes sense.
const CODES: &[(ErrorCode, &str, bool)] = &[
    (ErrorCode::InvalidPayload, "invalid-payload", false),
    (ErrorCode::PayloadTooLarge, "payload-too-large", false),
    (ErrorCode::UnknownPlugin, "unknown-plugin", false),
    (ErrorCode::UnknownAction, "unknown-action", false),
    (ErrorCode::PermissionDenied, "permission-denied", false),
    (ErrorCode::NotReady, "not-ready", true),
    (ErrorCode::Busy, "busy", true),
    (ErrorCode::MissingDependency, "missing-dependency", false),
    (ErrorCode::Canceled, "canceled", false),
    (ErrorCode::Timeout, "timeout", false),
    (ErrorCode::IdleTimeout, "idle-timeout", false),
    (ErrorCode::PluginStart, "plugin-start", true),
    (ErrorCode::PluginExit, "plugin-exit", true),
    (ErrorCode::ProtocolError, "protocol-error", false),
    (ErrorCode::ResultQuota, "result-quota", false),
    (ErrorCode::Internal, "internal", false),
];

impl ErrorCode {
    /// The code as it is written.
    pub fn as_str(&self) -> &str {
        if let Self::Other(code) = self {
            return code;
        }
        CODES
            .iter()
            .find(|(code, ..)| code == self)
            .map_or("internal", |(_, name, _)| name)
    }

    /// Whether the same job may succeed when it is sent again; `false` for codes unknown here.
    pub fn is_retryable(&self) -> bool {
        CODES
            .iter()
            .any(|(code, _, retryable)| code == self && *retryable)
    }
}

impl From<&str> for ErrorCode {
    fn from(name: &str) -> Self {
        CODES
            .iter()
            .find(|(_, known, _)| *known == name)
            .map_or_else(|| Self::Other(name.to_string()), |(code, ..)| code.clone())
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for ErrorCode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for ErrorCode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self::from(&*Cow::<'_, str>::deserialize(deserializer)?))
    }
}

/// Why a job is stopped.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum CancelReason {
    /// Somebody asked for it.
    User,
    /// It took too long.
    Timeout,
    /// The daemon is shutting down.
    Shutdown,
    /// The node that sent the message is gone for good.
    SenderGone,
    /// Its results are more than may be kept.
    Quota,
    /// A reason from a newer protocol.
    Other(String),
}

impl CancelReason {
    /// The reason as it is written.
    pub fn as_str(&self) -> &str {
        match self {
            Self::User => "user",
            Self::Timeout => "timeout",
            Self::Shutdown => "shutdown",
            Self::SenderGone => "sender-gone",
            Self::Quota => "quota",
            Self::Other(reason) => reason,
        }
    }
}

impl From<&str> for CancelReason {
    fn from(name: &str) -> Self {
        match name {
            "user" => Self::User,
            "timeout" => Self::Timeout,
            "shutdown" => Self::Shutdown,
            "sender-gone" => Self::SenderGone,
            "quota" => Self::Quota,
            other => Self::Other(other.to_string()),
        }
    }
}

impl fmt::Display for CancelReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for CancelReason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for CancelReason {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self::from(&*Cow::<'_, str>::deserialize(deserializer)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_reads_back() {
        for (code, name, retryable) in CODES {
            assert_eq!(code.as_str(), *name);
            assert_eq!(ErrorCode::from(*name), *code);
            assert_eq!(code.is_retryable(), *retryable);
        }
        let own = ErrorCode::from("x-quota");
        assert_eq!(own, ErrorCode::Other("x-quota".into()));
        assert!(!own.is_retryable());
    }
}
