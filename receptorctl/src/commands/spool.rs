//! Messages that wait here and those that were given up: `spool`, `dead-letter`.

use std::path::PathBuf;
use std::time::Duration;

use receptor_proto::control::{
    DeadLetterCommand, DeadLettersReply, DropReply, RetryReply, SpoolCommand, SpoolDropCommand,
    SpoolEntry, SpoolKind, SpoolReason, SpoolReply,
};
use receptor_proto::{Directive, IdPrefix};

use super::work::short;
use super::{Context, With, offline, plain};
use crate::args::Stopped;
use crate::client::is_deserted;
use crate::exit::{Exit, Failure};
use crate::output::{Out, Table, count, duration, note, size};

pub(super) fn list(
    context: &Context,
    id: Option<IdPrefix>,
    stopped: &Stopped,
) -> Result<Exit, Failure> {
    if let Some(data_dir) = data_dir(context, stopped) {
        let reply = offline::list(&data_dir, id.as_ref())?;
        return answer(context, &reply, |out| show(out, &reply));
    }
    let command = With {
        command: "spool",
        fields: SpoolCommand { id },
    };
    context.query(&command, show)
}

/// Where to look without a daemon, when that is wanted, or when the packaged one does not run.
fn data_dir(context: &Context, stopped: &Stopped) -> Option<PathBuf> {
    if stopped.data_dir.is_some() {
        return stopped.data_dir.clone();
    }
    if !context.global.is_default_socket() || !is_deserted(&context.global.socket_path) {
        return None;
    }
    let data_dir = offline::fallback()?;
    let shown = data_dir.display();
    note(&format!(
        "receptord does not run; this is what {shown} holds"
    ));
    Some(data_dir)
}

/// Prints an answer that no daemon gave.
fn answer(
    context: &Context,
    value: &impl serde::Serialize,
    show: impl FnOnce(&mut Out) -> Result<(), Failure>,
) -> Result<Exit, Failure> {
    let mut out = Out::new();
    if context.global.json {
        let line = serde_json::to_vec(value).map_err(|error| {
            let error = std::io::Error::from(error);
            Failure::system("writing JSON", &error)
        })?;
        out.line(line)?;
    } else {
        show(&mut out)?;
    }
    out.flush()?;
    Ok(Exit::Done)
}

fn show(out: &mut Out, reply: &SpoolReply) -> Result<(), Failure> {
    for damaged in &reply.damaged {
        note(&damaged.message);
    }
    let mut table = Table::new([
        "ID",
        "WHAT",
        "FOR",
        "DIRECTIVE",
        "SIZE",
        "SINCE",
        "EXPIRES",
        "WAITS FOR",
    ]);
    for entry in &reply.messages {
        let since = entry.age_ms.map(|age| format!("{} ago", duration(age)));
        table.row([
            short(&entry.id.to_string()).into(),
            what(entry).into(),
            entry.recipient.as_str().into(),
            entry
                .directive
                .as_ref()
                .map_or("", Directive::as_str)
                .into(),
            size(entry.size).into(),
            since.unwrap_or_default().into(),
            format!("in {}", duration(entry.expires_ms)).into(),
            why(entry.reason).into(),
        ]);
    }
    if table.is_empty() {
        note("nothing waits here");
        return Ok(());
    }
    out.table(&table)?;
    let shown = reply.messages.len() as u64;
    if shown < reply.total {
        note(&format!("{shown} of {}", count(reply.total, "message")));
    }
    Ok(())
}

pub(super) fn drop(context: &Context, id: IdPrefix) -> Result<Exit, Failure> {
    let command = With {
        command: "spool-drop",
        fields: SpoolDropCommand { id },
    };
    context.query(&command, |out, reply: &DropReply| {
        out.line(format!("dropped {}", reply.dropped))
    })
}

pub(super) fn letters(context: &Context, stopped: &Stopped) -> Result<Exit, Failure> {
    if let Some(data_dir) = data_dir(context, stopped) {
        let reply = offline::letters(&data_dir)?;
        return answer(context, &reply, |out| show_letters(out, &reply));
    }
    context.query(&plain("dead-letters"), show_letters)
}

fn show_letters(out: &mut Out, reply: &DeadLettersReply) -> Result<(), Failure> {
    let mut table = Table::new(["ID", "DIRECTIVE", "FOR", "SIZE", "GIVEN UP", "REASON"]);
    for letter in &reply.letters {
        table.row([
            short(&letter.id.to_string()).into(),
            letter.directive.as_str().into(),
            match &letter.origin {
                Some(origin) => format!("{}, from {origin}", letter.recipient).into(),
                None => letter.recipient.as_str().into(),
            },
            size(letter.size).into(),
            format!("{} ago", duration(letter.age_ms)).into(),
            letter.reason.to_string().into(),
        ]);
    }
    if table.is_empty() {
        note("no dead letters");
        return Ok(());
    }
    out.table(&table)?;
    let shown = reply.letters.len() as u64;
    if shown < reply.total {
        note(&format!(
            "the youngest {shown} of {}",
            count(reply.total, "letter")
        ));
    }
    Ok(())
}

pub(super) fn retry(
    context: &Context,
    id: IdPrefix,
    expires: Option<Duration>,
) -> Result<Exit, Failure> {
    let expires_ms = expires.map(|d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX));
    let command = With {
        command: "dead-letter-retry",
        fields: DeadLetterCommand { id, expires_ms },
    };
    context.query(&command, |out, reply: &RetryReply| {
        out.line(reply.id.to_string())
    })
}

pub(super) fn drop_letter(context: &Context, id: IdPrefix) -> Result<Exit, Failure> {
    let command = With {
        command: "dead-letter-drop",
        fields: DeadLetterCommand {
            id,
            expires_ms: None,
        },
    };
    context.query(&command, |out, reply: &DropReply| {
        out.line(format!("dropped {}", reply.dropped))
    })
}

fn what(entry: &SpoolEntry) -> String {
    let what = match (entry.kind, entry.serial) {
        (SpoolKind::Request, _) => "request".to_owned(),
        (SpoolKind::Response, Some(serial)) => format!("response {serial}"),
        (SpoolKind::Response, None) => "response".to_owned(),
        (SpoolKind::Cancel, _) => "cancel".to_owned(),
    };
    match &entry.origin {
        Some(origin) => format!("{what} in custody, from {origin}"),
        None => what,
    }
}

fn why(reason: SpoolReason) -> &'static str {
    match reason {
        SpoolReason::UnknownNode => "a node that is not known yet",
        SpoolReason::NoRoute => "a route",
        SpoolReason::NotSent => "its turn",
        SpoolReason::NoReceipt => "the receipt",
        SpoolReason::Stopped => "receptord",
    }
}
