//! Messages that wait here and those that were given up: `spool`, `dead-letter`.

use std::time::Duration;

use receptor_proto::control::{
    DeadLetterCommand, DeadLettersReply, DropReply, RetryReply, SpoolCommand, SpoolDropCommand,
    SpoolEntry, SpoolKind, SpoolReason, SpoolReply,
};
use receptor_proto::{Directive, IdPrefix};

use super::work::short;
use super::{Context, With, plain};
use crate::exit::{Exit, Failure};
use crate::output::{Table, count, duration, note, size};

pub(super) fn list(context: &Context, id: Option<IdPrefix>) -> Result<Exit, Failure> {
    let command = With {
        command: "spool",
        fields: SpoolCommand { id },
    };
    context.query(&command, |out, reply: &SpoolReply| {
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
    })
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

pub(super) fn letters(context: &Context) -> Result<Exit, Failure> {
    context.query(&plain("dead-letters"), |out, reply: &DeadLettersReply| {
        let mut table = Table::new(["ID", "DIRECTIVE", "FOR", "SIZE", "GIVEN UP", "REASON"]);
        for letter in &reply.letters {
            table.row([
                short(&letter.id.to_string()).into(),
                letter.directive.as_str().into(),
                letter.recipient.as_str().into(),
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
    })
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
    }
}
