//! Works: `work list`, `show`, `cancel`, `release`. Their responses are with [`super::send`].

use receptor_proto::control::{
    CancelCommand, CancelReply, ReleaseCommand, ReleaseReply, WorkRole, WorkState, WorkStatus,
    WorksCommand, WorksReply,
};
use receptor_proto::{Directive, IdPrefix, NodeId};

use super::send::told;
use super::{Context, With};
use crate::exit::{Exit, Failure};
use crate::output::{Cell, Out, Table, Tone, count, duration, note, printable, size};

/// Digits of an id in a table: enough to tell the works of a day apart.
pub(super) const SHORT: usize = 16;

pub(super) fn list(context: &Context) -> Result<Exit, Failure> {
    let command = With {
        command: "works",
        fields: WorksCommand::default(),
    };
    context.query(&command, |out, reply: &WorksReply| {
        let mut table = Table::new([
            "ID",
            "ROLE",
            "STATE",
            "DIRECTIVE",
            "FROM",
            "TO",
            "AGE",
            "RESPONSES",
            "KEPT",
            "SAYS",
        ]);
        for work in &reply.works {
            table.row([
                short(&work.id.to_string()).into(),
                role(work).into(),
                state(work),
                directive(work).into(),
                node(work.sender.as_ref()).into(),
                node(work.recipient.as_ref()).into(),
                duration(work.age_ms).into(),
                work.responses.to_string().into(),
                kept(work).into(),
                says(work).into(),
            ]);
        }
        if table.is_empty() {
            note("no works");
            return Ok(());
        }
        out.table(&table)?;
        let shown = reply.works.len() as u64;
        if shown < reply.total {
            note(&format!(
                "the youngest {shown} of {}",
                count(reply.total, "work")
            ));
        }
        Ok(())
    })
}

pub(super) fn show(context: &Context, id: IdPrefix) -> Result<Exit, Failure> {
    let command = With {
        command: "works",
        fields: WorksCommand { id: Some(id) },
    };
    context.query(&command, |out, reply: &WorksReply| {
        for (number, work) in reply.works.iter().enumerate() {
            if number > 0 {
                out.line("")?;
            }
            one(out, work)?;
        }
        Ok(())
    })
}

pub(super) fn cancel(context: &Context, id: IdPrefix) -> Result<Exit, Failure> {
    let command = With {
        command: "cancel",
        fields: CancelCommand { id },
    };
    context.query(&command, |out, reply: &CancelReply| {
        out.line(format!("cancelling {}", reply.cancelling))
    })
}

pub(super) fn release(context: &Context, id: IdPrefix) -> Result<Exit, Failure> {
    let command = With {
        command: "release",
        fields: ReleaseCommand { id },
    };
    context.query(&command, |out, reply: &ReleaseReply| {
        out.line(format!("released {}", reply.released))
    })
}

fn one(out: &mut Out, work: &WorkStatus) -> Result<(), Failure> {
    let mut fields = vec![
        ("id", work.id.to_string()),
        ("role", role(work).to_owned()),
        ("state", shown_state(work)),
        ("directive", directive(work).to_owned()),
        ("from", node(work.sender.as_ref()).to_owned()),
        ("to", node(work.recipient.as_ref()).to_owned()),
        ("since", format!("{} ago", duration(work.age_ms))),
    ];
    if let Some(ended) = work.ended_ms {
        fields.push(("ended", format!("{} ago", duration(ended))));
    }
    if let Some(message) = &work.message {
        fields.push(("says", message.clone()));
    }
    if let Some((done, all)) = work.progress {
        fields.push(("progress", format!("{done} of {all}")));
    }
    for (name, part) in [("arrived", work.sent), ("coming", work.coming)] {
        if let Some((done, all)) = part {
            fields.push((name, format!("{} of {}", size(done), size(all))));
        }
    }
    fields.push(("responses", work.responses.to_string()));
    if work.role == WorkRole::Sent {
        fields.push(("kept", kept(work)));
    }
    if let Some(error) = &work.error {
        fields.push(("error", told(error)));
    }
    for (name, value) in fields {
        let value = if value.is_empty() { "-" } else { &value };
        let mut lines = value.lines();
        let first = lines.next().unwrap_or_default();
        out.line(format!("{name:<10} {}", printable(first)))?;
        for line in lines {
            out.line(format!("{:<10} {}", "", printable(line)))?;
        }
    }
    Ok(())
}

/// The beginning of an id, which is enough for a command line.
pub(super) fn short(id: &str) -> &str {
    id.get(..SHORT).unwrap_or(id)
}

fn role(work: &WorkStatus) -> &'static str {
    match work.role {
        WorkRole::Sent => "sent",
        WorkRole::Here => "here",
    }
}

fn shown_state(work: &WorkStatus) -> String {
    let state = work.state.as_str();
    if work.cancelling {
        return format!("{state}, cancelling");
    }
    match work.code {
        Some(code) if work.state == WorkState::Failed && work.error.is_none() => {
            format!("{state}({code})")
        }
        Some(_) | None => state.to_owned(),
    }
}

fn state(work: &WorkStatus) -> Cell {
    let text = shown_state(work);
    match work.state {
        WorkState::Succeeded => Cell::tone(text, Tone::Good),
        WorkState::Failed
        | WorkState::Expired
        | WorkState::Refused
        | WorkState::Interrupted
        | WorkState::Lost => Cell::tone(text, Tone::Bad),
        WorkState::Cancelled => Cell::tone(text, Tone::Strange),
        WorkState::Accepted | WorkState::Sent | WorkState::Queued | WorkState::Running => {
            text.into()
        }
    }
}

fn directive(work: &WorkStatus) -> &str {
    work.directive.as_ref().map_or("", Directive::as_str)
}

fn node(node: Option<&NodeId>) -> &str {
    node.map_or("", NodeId::as_str)
}

fn kept(work: &WorkStatus) -> String {
    if work.dropped {
        "dropped".to_owned()
    } else if work.kept_bytes > 0 {
        size(work.kept_bytes)
    } else {
        String::new()
    }
}

fn says(work: &WorkStatus) -> String {
    if let Some(error) = &work.error {
        return error.to_string();
    }
    let message = work.message.clone().unwrap_or_default();
    match work.progress {
        Some((done, all)) if message.is_empty() => format!("{done}/{all}"),
        Some((done, all)) => format!("{done}/{all} {message}"),
        None => message,
    }
}
