//! How a job ended, in the words of the mesh.
//!
//! Owns the mapping from the plugin protocol to the last response of a work: which code, which
//! error, which payload. A plugin's error is cut to what fits a packet; nothing else of it changes
//! but three names of codes.

use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

use bytes::Bytes;
use receptor_proto::packet::{Content, Eof};
use receptor_proto::plugin::{self, Json, PluginError};
use receptor_proto::{ErrorBody, ErrorCode};
use serde_json::{Value, json};

/// Longest message of a plugin's error that is passed on, in bytes.
const MAX_MESSAGE: usize = 4096;
/// Most causes of a plugin's error that are passed on.
const MAX_CAUSES: usize = 8;
/// Longest of these, in bytes.
const MAX_CAUSE: usize = 512;
/// Largest details of a plugin's error that are passed on, in bytes.
const MAX_DETAILS: usize = 4096;

/// How a job ended.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Outcome {
    /// It ran and said so.
    Done {
        /// 0, or its own code.
        code: i64,
        /// Its last word.
        result: Option<Json>,
    },
    /// It could not be run or was stopped.
    Failed(ErrorBody),
}

impl Outcome {
    /// The parts of the last response.
    pub(super) fn into_parts(self) -> (Eof, Content, Bytes) {
        match self {
            Self::Done { code: 0, result } => {
                let eof = Eof {
                    code: 0,
                    error: None,
                };
                match result {
                    Some(result) => (eof, Content::Json, bytes_of(result.get())),
                    None => (eof, Content::None, Bytes::new()),
                }
            }
            Self::Done { code, result } => {
                let eof = Eof {
                    code: 1,
                    error: None,
                };
                let result = result.as_ref().map_or("null", Json::get);
                let text = format!("{{\"code\":{code},\"result\":{result}}}");
                (eof, Content::Json, text.into())
            }
            Self::Failed(error) => {
                let eof = Eof {
                    code: 1,
                    error: Some(error),
                };
                (eof, Content::None, Bytes::new())
            }
        }
    }

    /// What a plugin's `error` becomes.
    pub(super) fn of_plugin(error: PluginError) -> Self {
        Self::Failed(translate(error))
    }
}

fn bytes_of(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

/// An error of the host about a plugin or a job.
pub(super) fn error(code: ErrorCode, message: impl Into<String>) -> ErrorBody {
    let retryable = matches!(
        code,
        ErrorCode::NotReady | ErrorCode::Busy | ErrorCode::PluginStart | ErrorCode::PluginExit
    );
    ErrorBody::new(code, message).with("retryable", retryable)
}

fn translate(error: PluginError) -> ErrorBody {
    // Three are called otherwise in the mesh.
    let code = match error.code.as_str() {
        "canceled" => ErrorCode::Cancelled,
        "unknown-plugin" => ErrorCode::NoSuchPlugin,
        "unknown-action" => ErrorCode::NoSuchAction,
        other => match other.parse() {
            Ok(code) => code,
            Err(never) => match never {},
        },
    };
    let mut body = ErrorBody::new(code, cut(error.message, MAX_MESSAGE));
    if let Some(details) = error.details.filter(|d| d.get().len() <= MAX_DETAILS) {
        match details.to::<Value>() {
            Ok(Value::Object(details)) => body.detail = details,
            Ok(Value::Null) | Err(_) => {}
            Ok(other) => body = body.with("details", other),
        }
    }
    if !error.caused_by.is_empty() {
        let causes = error.caused_by.into_iter().take(MAX_CAUSES);
        let causes: Vec<String> = causes.map(|cause| cut(cause, MAX_CAUSE)).collect();
        body = body.with("caused_by", causes);
    }
    body.with("retryable", error.retryable)
}

/// Shortens a text to at most so many bytes.
pub(super) fn cut(mut text: String, most: usize) -> String {
    if let Some(end) = (0..=most.min(text.len())).rfind(|end| text.is_char_boundary(*end)) {
        text.truncate(end);
    }
    text
}

/// `plugin-exit`: the process ended and had not said how the job did.
pub(super) fn plugin_exit(plugin: &str, status: Option<ExitStatus>, stderr: &str) -> ErrorBody {
    let how = describe(status);
    let last = stderr.lines().next_back().unwrap_or_default();
    let message = if last.is_empty() {
        format!("{plugin} {how} without a final message")
    } else {
        let last = cut(last.to_owned(), MAX_CAUSE);
        format!("{plugin} {how} without a final message; its last line on stderr: {last}")
    };
    with_exit(error(ErrorCode::PluginExit, message), status, stderr)
}

/// `plugin-start`: there was no hello, or none that can be used.
pub(super) fn plugin_start(
    plugin: &str,
    what: &str,
    status: Option<ExitStatus>,
    stderr: &str,
) -> ErrorBody {
    let last = stderr.lines().next_back().unwrap_or_default();
    let mut message = format!("{plugin} could not be started: {what}");
    if !last.is_empty() {
        message.push_str("; its last line on stderr: ");
        message.push_str(&cut(last.to_owned(), MAX_CAUSE));
    }
    with_exit(error(ErrorCode::PluginStart, message), status, stderr)
}

/// `protocol-error`, with the beginning of the line that broke it.
pub(super) fn protocol_error(plugin: &str, what: &str, line: Option<&[u8]>) -> ErrorBody {
    let body = error(
        ErrorCode::ProtocolError,
        format!("{plugin} broke the plugin protocol: {what}"),
    );
    match line {
        Some(line) => body.with("line", plugin::excerpt(line)),
        None => body,
    }
}

fn with_exit(body: ErrorBody, status: Option<ExitStatus>, stderr: &str) -> ErrorBody {
    let mut body = body;
    if let Some(status) = status {
        body = match (status.code(), status.signal()) {
            (Some(code), _) => body.with("exit_status", code),
            (None, Some(signal)) => body.with("signal", signal_name(signal)),
            (None, None) => body,
        };
    }
    if stderr.is_empty() {
        return body;
    }
    body.with("stderr", json!(stderr))
}

/// How a process ended, as the end of «the plugin …».
pub(super) fn describe(status: Option<ExitStatus>) -> String {
    let Some(status) = status else {
        return "closed its stdout".to_owned();
    };
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with status {code}"),
        (None, Some(signal)) => format!("was killed by {}", signal_name(signal)),
        (None, None) => "ended".to_owned(),
    }
}

fn signal_name(number: i32) -> String {
    nix::sys::signal::Signal::try_from(number)
        .map_or_else(|_| format!("signal {number}"), |s| s.as_str().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_answer_is_not_an_error() {
        let outcome = Outcome::Done {
            code: 2,
            result: Some(Json::parse(b"{\"failed\": 1}").unwrap()),
        };
        let (eof, content, payload) = outcome.into_parts();
        assert_eq!((eof.code, eof.error, content), (1, None, Content::Json));
        assert_eq!(payload, &b"{\"code\":2,\"result\":{\"failed\": 1}}"[..]);
        let none = Outcome::Done {
            code: -3,
            result: None,
        };
        assert_eq!(none.into_parts().2, &b"{\"code\":-3,\"result\":null}"[..]);
    }

    #[test]
    fn codes_and_facts_of_a_plugin_s_error_are_kept() {
        let mut plugin = PluginError::new(plugin::ErrorCode::Canceled, "stopped");
        plugin.details = Some(Json::parse(b"{\"pid\": 7}").unwrap());
        plugin.caused_by = vec!["a".into(), "b".into()];
        let body = translate(plugin);
        assert_eq!(body.code, ErrorCode::Cancelled);
        assert_eq!(body.detail["pid"], 7);
        assert_eq!(body.detail["caused_by"], json!(["a", "b"]));
        assert_eq!(body.detail["retryable"], false);
        let own = translate(PluginError::new("x-quota".into(), "no"));
        assert_eq!(own.code, ErrorCode::Unknown("x-quota".into()));
        let known = translate(PluginError::new(plugin::ErrorCode::MissingDependency, "no"));
        assert_eq!(known.code, ErrorCode::MissingDependency);
    }

    #[test]
    fn a_huge_error_is_cut() {
        let mut plugin = PluginError::new(plugin::ErrorCode::Internal, "é".repeat(100_000));
        plugin.caused_by = vec!["x".repeat(100_000); 1000];
        plugin.details = Some(Json::from_value(&"x".repeat(100_000)).unwrap());
        let body = translate(plugin);
        assert!(serde_json::to_vec(&body).unwrap().len() < receptor_proto::packet::ERROR_MAX);
    }
}
