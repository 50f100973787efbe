//! What an action's function may fail with: anything that is an error, or an error with a code.

use std::error::Error as StdError;

use receptor_proto::plugin::{ErrorCode, Json, PluginError};

/// Result of an action's function and of what it calls on its [`Job`](crate::Job).
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Longest chain of causes that is reported.
const MAX_CAUSES: usize = 16;

/// Why a job could not be run or was stopped.
///
/// Any [`std::error::Error`] becomes one through `?`, with the code `internal` and its chain of
/// sources as causes; a [`PluginError`] keeps its code.
pub struct Error(Box<PluginError>);

impl Error {
    /// An error with a code and a sentence for people.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self(Box::new(PluginError::new(code, message)))
    }

    /// The payload is not what the action takes.
    pub fn invalid_payload(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidPayload, message)
    }

    /// Something that is neither the sender's nor the operator's fault.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Internal, message)
    }

    /// Says whether the same job may succeed when it is sent again, where that differs from what
    /// the code says.
    #[must_use]
    pub fn retryable(mut self, retryable: bool) -> Self {
        self.0.retryable = retryable;
        self
    }

    /// Adds an error and its sources as causes.
    #[must_use]
    pub fn caused_by(mut self, cause: &(dyn StdError + 'static)) -> Self {
        let mut next = Some(cause);
        while let Some(cause) = next
            && self.0.caused_by.len() < MAX_CAUSES
        {
            self.0.caused_by.push(cause.to_string());
            next = cause.source();
        }
        self
    }

    /// Adds more for programs; a value without a JSON form is left out.
    #[must_use]
    pub fn details<T: serde::Serialize + ?Sized>(mut self, details: &T) -> Self {
        self.0.details = Json::from_value(details).ok();
        self
    }

    /// The error as it will be sent.
    pub fn as_plugin_error(&self) -> &PluginError {
        &self.0
    }

    /// The error as it will be sent.
    pub fn into_plugin_error(self) -> PluginError {
        *self.0
    }
}

// `Error` is deliberately no `std::error::Error`: only so can every one of those become it.
impl<E: StdError + 'static> From<E> for Error {
    fn from(error: E) -> Self {
        let error: &(dyn StdError + 'static) = &error;
        if let Some(known) = error.downcast_ref::<PluginError>() {
            return Self(Box::new(known.clone()));
        }
        let new = Self::internal(error.to_string());
        match error.source() {
            Some(source) => new.caused_by(source),
            None => new,
        }
    }
}

impl std::fmt::Debug for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// What serde says about a payload, without the strings out of it: the text goes into logs, and
/// a payload may hold secrets.
pub(crate) fn describe_json_error(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let Some((start, rest)) = text.split_once("string \"") else {
        return text;
    };
    match rest.rsplit_once("\", expected ") {
        Some((_, end)) => format!("{start}a string, expected {end}"),
        None => start.trim_end().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_error_becomes_internal_with_its_causes() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer")]
        struct Outer(#[source] std::io::Error);
        fn fails() -> Result<()> {
            Err(Outer(std::io::Error::other("inner")))?;
            Ok(())
        }
        let error = fails().unwrap_err().into_plugin_error();
        assert_eq!(error.code, ErrorCode::Internal);
        assert_eq!(error.message, "outer");
        assert_eq!(error.caused_by, ["inner"]);
    }

    #[test]
    fn a_plugin_error_keeps_its_code() {
        fn fails() -> Result<()> {
            Err(PluginError::new(ErrorCode::Busy, "later"))?;
            Ok(())
        }
        let error = fails().unwrap_err().into_plugin_error();
        assert_eq!(error.code, ErrorCode::Busy);
        assert!(error.retryable);
    }

    #[test]
    fn strings_of_a_payload_are_not_repeated() {
        #[derive(Debug, serde::Deserialize)]
        struct Want {
            #[expect(dead_code, reason = "only its type matters")]
            n: u32,
        }
        let error = serde_json::from_str::<Want>(r#"{"n":"hun\", expected ter2"}"#).unwrap_err();
        let text = describe_json_error(&error);
        assert!(
            text.starts_with("invalid type: a string, expected u32"),
            "{text}"
        );
        let error = serde_json::from_str::<Want>("{\"m\":1}").unwrap_err();
        assert!(describe_json_error(&error).contains("missing field `n`"));
    }
}
