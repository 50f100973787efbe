//! Command lines: what a client asks for, in either form.
//!
//! Owns the understanding of one line. Runs nothing; whatever a line holds, the worst that
//! comes of it is an error.

use receptor_proto::control::{
    CancelCommand, DeadLetterCommand, Envelope, LogLevelCommand, PingCommand, PluginRestartCommand,
    PolicyCommand, ReleaseCommand, SpoolCommand, SpoolDropCommand, StatusCommand, TAG_MAX,
    TracerouteCommand, WorksCommand,
};
use receptor_proto::{ErrorBody, ErrorCode, IdPrefix};
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::outlet::Tag;
use crate::policy::Right;

/// A command as it stands in its line.
pub(super) struct Command<'a> {
    pub(super) name: String,
    pub(super) tag: Tag,
    pub(super) form: Form<'a>,
}

pub(super) enum Form<'a> {
    /// The whole line.
    Json(&'a str),
    /// What follows the first word.
    Words(Vec<&'a str>),
}

/// A command that is answered with one line, or lines of its own and a last one.
pub(super) enum Request {
    Ping(PingCommand),
    Traceroute(TracerouteCommand),
    Status(StatusCommand),
    Reload,
    Nodes,
    Routes,
    Links,
    Capabilities,
    Plugins,
    Describe,
    PluginRestart(PluginRestartCommand),
    LogLevel(LogLevelCommand),
    Policy(PolicyCommand),
    Cancel(IdPrefix),
    Release(IdPrefix),
    Works(Option<IdPrefix>),
    Spool(Option<IdPrefix>),
    SpoolDrop(IdPrefix),
    DeadLetters,
    DeadLetterRetry(DeadLetterCommand),
    DeadLetterDrop(IdPrefix),
}

impl Request {
    /// What a client needs for it.
    pub(super) fn needs(&self) -> Right {
        match self {
            Self::Ping(_)
            | Self::Traceroute(_)
            | Self::Status(_)
            | Self::Nodes
            | Self::Routes
            | Self::Links
            | Self::Capabilities
            | Self::Plugins
            | Self::Describe
            | Self::LogLevel(LogLevelCommand { level: None })
            | Self::Policy(_)
            | Self::Works(_)
            | Self::Spool(_)
            | Self::DeadLetters => Right::Look,
            // Of what others have sent; of its own, see `rights`.
            Self::Cancel(_) | Self::Release(_) => Right::Administer,
            Self::Reload
            | Self::PluginRestart(_)
            | Self::LogLevel(LogLevelCommand { level: Some(_) })
            | Self::SpoolDrop(_)
            | Self::DeadLetterRetry(_)
            | Self::DeadLetterDrop(_) => Right::Administer,
        }
    }
}

/// The commands that Go Receptor knows: their errors are `ERROR:` lines.
pub(super) fn is_go(name: &str) -> bool {
    !matches!(
        name,
        "send"
            | "results"
            | "nodes"
            | "routes"
            | "links"
            | "capabilities"
            | "plugins"
            | "describe"
            | "plugin-restart"
            | "log-level"
            | "policy"
            | "cancel"
            | "release"
            | "works"
            | "spool"
            | "spool-drop"
            | "dead-letters"
            | "dead-letter-retry"
            | "dead-letter-drop"
    )
}

pub(super) fn parse(line: &[u8]) -> Result<Command<'_>, String> {
    if line.first() == Some(&b'{') {
        let line = std::str::from_utf8(line).map_err(|error| json_error(&error))?;
        let envelope: Envelope = serde_json::from_str(line).map_err(|error| json_error(&error))?;
        if let Some(tag) = &envelope.tag {
            check_tag(tag)?;
        }
        return Ok(Command {
            name: envelope.command,
            tag: envelope.tag,
            form: Form::Json(line),
        });
    }
    let Ok(text) = std::str::from_utf8(line) else {
        return Err("Unknown command".to_owned());
    };
    let mut words = text.split_ascii_whitespace();
    let name = words.next().unwrap_or_default().to_ascii_lowercase();
    Ok(Command {
        name,
        tag: None,
        form: Form::Words(words.collect()),
    })
}

fn check_tag(tag: &RawValue) -> Result<(), String> {
    let text = tag.get();
    let good = text.starts_with(|c: char| c == '"' || c == '-' || c.is_ascii_digit());
    if text.len() > TAG_MAX || !good {
        return Err(format!(
            "tag: expected a string or number of at most {TAG_MAX} bytes"
        ));
    }
    Ok(())
}

fn json_error(error: &dyn std::error::Error) -> String {
    format!("the line is not a JSON command: {error}")
}

pub(super) fn from_json<T: DeserializeOwned>(line: &str) -> Result<T, ErrorBody> {
    serde_json::from_str(line).map_err(|error| invalid(error.to_string()))
}

pub(super) fn request(name: &str, form: Form<'_>) -> Result<Request, ErrorBody> {
    let none = |request: Request, form: Form<'_>| match form {
        Form::Words(words) if !words.is_empty() => {
            Err(invalid(format!("{name} command does not take parameters")))
        }
        Form::Words(_) | Form::Json(_) => Ok(request),
    };
    Ok(match name {
        "ping" => Request::Ping(match form {
            Form::Json(line) => from_json(line)?,
            Form::Words(words) => PingCommand {
                target: target("ping", &words)?,
                timeout_ms: None,
            },
        }),
        "traceroute" => Request::Traceroute(match form {
            Form::Json(line) => from_json(line)?,
            Form::Words(words) => TracerouteCommand {
                target: target("traceroute", &words)?,
                stream: false,
                timeout_ms: None,
            },
        }),
        "status" => match form {
            Form::Json(line) => Request::Status(from_json(line).map_err(|error| {
                invalid(format!(
                    "requested_fields must be a list of texts: {}",
                    error.message
                ))
            })?),
            Form::Words(_) => none(Request::Status(StatusCommand::default()), form)?,
        },
        "reload" => none(Request::Reload, form)?,
        "nodes" => none(Request::Nodes, form)?,
        "routes" => none(Request::Routes, form)?,
        "links" => none(Request::Links, form)?,
        "capabilities" => none(Request::Capabilities, form)?,
        "plugins" => none(Request::Plugins, form)?,
        "describe" => none(Request::Describe, form)?,
        "plugin-restart" => Request::PluginRestart(match form {
            Form::Json(line) => from_json(line)?,
            Form::Words(words) => match words[..] {
                [plugin] => PluginRestartCommand {
                    name: plugin.to_owned(),
                },
                _ => return Err(invalid("plugin-restart needs the name of a plugin")),
            },
        }),
        "log-level" => Request::LogLevel(match form {
            Form::Json(line) => from_json(line)?,
            Form::Words(words) => match words[..] {
                [] => LogLevelCommand { level: None },
                [level] => LogLevelCommand {
                    level: Some(level.to_owned()),
                },
                _ => return Err(invalid("log-level takes one level")),
            },
        }),
        "policy" => Request::Policy(match form {
            Form::Json(line) => from_json(line)?,
            Form::Words(_) => return Err(invalid("policy needs JSON")),
        }),
        "cancel" => Request::Cancel(match form {
            Form::Json(line) => from_json::<CancelCommand>(line)?.id,
            Form::Words(words) => id_word("cancel", &words)?,
        }),
        "release" => Request::Release(match form {
            Form::Json(line) => from_json::<ReleaseCommand>(line)?.id,
            Form::Words(words) => id_word("release", &words)?,
        }),
        "works" => Request::Works(match form {
            Form::Json(line) => from_json::<WorksCommand>(line)?.id,
            Form::Words(words) if words.is_empty() => None,
            Form::Words(words) => Some(id_word("works", &words)?),
        }),
        "spool" => Request::Spool(match form {
            Form::Json(line) => from_json::<SpoolCommand>(line)?.id,
            Form::Words(words) if words.is_empty() => None,
            Form::Words(words) => Some(id_word("spool", &words)?),
        }),
        "spool-drop" => Request::SpoolDrop(match form {
            Form::Json(line) => from_json::<SpoolDropCommand>(line)?.id,
            Form::Words(words) => id_word("spool-drop", &words)?,
        }),
        "dead-letters" => none(Request::DeadLetters, form)?,
        "dead-letter-retry" => Request::DeadLetterRetry(match form {
            Form::Json(line) => from_json(line)?,
            Form::Words(words) => DeadLetterCommand {
                id: id_word("dead-letter-retry", &words)?,
                expires_ms: None,
            },
        }),
        "dead-letter-drop" => Request::DeadLetterDrop(match form {
            Form::Json(line) => from_json::<DeadLetterCommand>(line)?.id,
            Form::Words(words) => id_word("dead-letter-drop", &words)?,
        }),
        "connect" | "work" => {
            let text = format!(
                "this receptord does not offer the command {name}; work is sent with the command send"
            );
            return Err(ErrorBody::new(ErrorCode::UnknownCommand, text));
        }
        _ => return Err(ErrorBody::new(ErrorCode::UnknownCommand, "Unknown command")),
    })
}

fn target(name: &str, words: &[&str]) -> Result<String, ErrorBody> {
    match words {
        [] => Err(invalid(format!("no {name} target"))),
        [target] => Ok((*target).to_owned()),
        _ => Err(invalid(format!("{name} takes one target"))),
    }
}

pub(super) fn id_word(name: &str, words: &[&str]) -> Result<IdPrefix, ErrorBody> {
    match words {
        [id] => id.parse().map_err(|error| invalid(format!("{error}"))),
        _ => Err(invalid(format!("{name} needs the id of a message"))),
    }
}

pub(super) fn invalid(text: impl Into<String>) -> ErrorBody {
    ErrorBody::new(ErrorCode::InvalidRequest, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_case_insensitive_and_json_is_not() {
        let command = parse(b"PiNg node-b").unwrap();
        assert_eq!(command.name, "ping");
        assert!(matches!(command.form, Form::Words(words) if words == ["node-b"]));
        assert_eq!(parse(br#"{"command":"PING"}"#).unwrap().name, "PING");
    }

    #[test]
    fn what_is_no_command_is_one_error() {
        for line in [
            &b"{"[..],
            b"{}",
            b"{\"command\":1}",
            b"\xff\xfe",
            b"{\"command\":\"\xff\"}",
            b"{\"command\":\"ping\",\"tag\":{}}",
            b"{\"command\":\"ping\",\"tag\":[1]}",
        ] {
            assert!(parse(line).is_err(), "{line:?}");
        }
    }

    #[test]
    fn every_command_that_is_described_is_there() {
        // These two are more than a question and its answer, and the session's own.
        for name in receptor_proto::control::commands() {
            let known = request(name, Form::Json("{}"))
                .map_or_else(|error| error.code != ErrorCode::UnknownCommand, |_| true);
            assert!(known || matches!(name, "send" | "results"), "{name}");
        }
    }

    #[test]
    fn bad_parameters_are_errors() {
        for line in [
            &br#"{"command":"status","requested_fields":"Version"}"#[..],
            br#"{"command":"ping"}"#,
            br#"{"command":"cancel","id":"x"}"#,
            b"ping",
            b"ping a b",
            b"status now",
            b"cancel",
            b"nonsense",
            b"work list",
            b"connect a control",
        ] {
            let command = parse(line).unwrap();
            assert!(request(&command.name, command.form).is_err(), "{line:?}");
        }
    }
}
