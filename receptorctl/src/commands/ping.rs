//! `ping`: echoes, as ping(8) shows them.

use std::os::fd::AsFd as _;
use std::time::Duration;

use nix::poll::PollFlags;
use receptor_proto::control::{PingCommand, PingReply};
use receptor_proto::{ErrorBody, ErrorCode};
use serde::Serialize;

use super::{Context, With};
use crate::args::Ping;
use crate::client::{Connection, Deadline, parse, wait};
use crate::exit::{Exit, Failure};
use crate::interrupt::Interrupts;
use crate::output::{Cell, Out, Table, duration, milliseconds, printable};

/// How long one echo may take, when the user gave no `--timeout`.
const ECHO: Duration = Duration::from_secs(10);
/// How much longer than an echo's own limit the daemon may take to say that it is over.
const MARGIN: Duration = Duration::from_secs(5);

/// What came of all echoes; the last line of `--json`.
#[derive(Debug, Default, Serialize)]
struct Summary {
    summary: bool,
    sent: u64,
    received: u64,
    loss_percent: u64,
    min_ns: Option<u64>,
    avg_ns: Option<u64>,
    max_ns: Option<u64>,
    #[serde(skip)]
    total_ns: u64,
}

pub(super) fn run(context: &Context, args: &Ping) -> Result<Exit, Failure> {
    let mut connection = context.connect()?;
    // Without an interval to sit through, Ctrl-C may do what it always does.
    let interrupts = if args.count > 1 {
        Some(Interrupts::watch().map_err(|e| Failure::system("cannot watch for Ctrl-C", &e))?)
    } else {
        None
    };
    let mut out = Out::new();
    let json = context.global.json;
    if !json {
        out.line(format!("PING {} from {}", args.node, connection.node()))?;
        out.flush()?;
    }
    let mut summary = Summary {
        summary: true,
        ..Summary::default()
    };
    let mut works = Vec::new();
    let mut last_error = None;
    for seq in 1..=args.count {
        let next = Deadline::after(Some(args.interval));
        summary.sent += 1;
        let Some((line, reply)) = echo(context, args, &mut connection, interrupts.as_ref())? else {
            break;
        };
        let error = failed(&reply);
        if json {
            out.line(&line)?;
        } else if let Some(error) = &error {
            out.line(format!(
                "no reply: seq={seq} {}",
                printable(&error.to_string())
            ))?;
        } else {
            out.line(format!(
                "reply from {}: seq={seq} hops={} time={} active={}",
                reply.from.as_ref().unwrap_or(&args.node),
                reply.hops,
                milliseconds(reply.time_ns),
                reply.active
            ))?;
        }
        out.flush()?;
        match error {
            None => {
                summary.add(reply.time_ns);
                works = reply.works;
            }
            Some(error) if is_final(&error.code) => {
                last_error = Some(error);
                break;
            }
            Some(error) => last_error = Some(error),
        }
        if seq == args.count || context.deadline.is_over() {
            break;
        }
        if rest(next, context.deadline, interrupts.as_ref())? == Rest::Over {
            break;
        }
    }
    summary.finish();
    if json {
        let line = serde_json::to_vec(&summary)
            .map_err(|e| Failure::new(Exit::Internal, e.to_string()))?;
        out.line(line)?;
    } else {
        out.line(format!("--- {} ping statistics ---", args.node))?;
        out.line(summary.text())?;
        if !works.is_empty() {
            let mut table = Table::new(["WORK", "DIRECTIVE", "STATE", "FOR"]);
            for work in &works {
                let state = if work.running { "running" } else { "waiting" };
                table.row([
                    work.id.to_string().into(),
                    work.directive.as_str().into(),
                    Cell::from(state),
                    duration(work.age_ms).into(),
                ]);
            }
            out.table(&table)?;
        }
    }
    out.flush()?;
    if summary.received > 0 {
        return Ok(Exit::Done);
    }
    match last_error {
        Some(error) => Err(Failure::answered(&error)),
        None => Err(Failure::silent(Exit::Interrupted)),
    }
}

/// Why an echo failed, in one form.
pub(super) fn failed(reply: &PingReply) -> Option<ErrorBody> {
    if reply.success && reply.error.is_none() && reply.error_text.is_none() {
        return None;
    }
    if let Some(error) = &reply.error {
        return Some(error.clone());
    }
    let text = reply.error_text.as_deref().unwrap_or("no reason given");
    Some(ErrorBody::new(ErrorCode::Refused, text))
}

/// Sends one echo; `None` when Ctrl-C came before its answer.
fn echo(
    context: &Context,
    args: &Ping,
    connection: &mut Connection,
    interrupts: Option<&Interrupts>,
) -> Result<Option<(Vec<u8>, PingReply)>, Failure> {
    let limit = context.deadline.left_up_to(ECHO);
    connection.set_deadline(Deadline::after(Some(limit + MARGIN)));
    connection.send(&With {
        command: "ping",
        fields: PingCommand {
            target: args.node.to_string(),
            timeout_ms: u64::try_from(limit.as_millis()).ok(),
        },
    })?;
    let line = match interrupts {
        None => connection.line()?,
        Some(interrupts) => match connection.line_or_interrupt(interrupts)? {
            Some(line) => line,
            None => return Ok(None),
        },
    };
    match parse(&line) {
        Ok(reply) => Ok(Some((line, reply))),
        Err(failure) => {
            Err(crate::client::error_in(&line).map_or(failure, |e| Failure::answered(&e)))
        }
    }
}

/// What another echo cannot change.
fn is_final(code: &ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::InvalidRequest | ErrorCode::PermissionDenied | ErrorCode::UnknownCommand
    )
}

#[derive(Debug, PartialEq, Eq)]
enum Rest {
    Done,
    Over,
}

/// Sits through what is left of an interval.
fn rest(next: Deadline, all: Deadline, interrupts: Option<&Interrupts>) -> Result<Rest, Failure> {
    let until = match (next.left(), all.left()) {
        (Some(a), Some(b)) if b < a => all,
        _ => next,
    };
    let Some(interrupts) = interrupts else {
        return Ok(Rest::Done);
    };
    wait([(interrupts.as_fd(), PollFlags::POLLIN)], until)
        .map_err(|e| Failure::system("cannot wait", &e))?;
    if interrupts.came() || all.is_over() {
        return Ok(Rest::Over);
    }
    Ok(Rest::Done)
}

impl Summary {
    fn add(&mut self, ns: u64) {
        self.received += 1;
        self.total_ns = self.total_ns.saturating_add(ns);
        self.min_ns = Some(self.min_ns.map_or(ns, |min| min.min(ns)));
        self.max_ns = Some(self.max_ns.map_or(ns, |max| max.max(ns)));
    }

    fn finish(&mut self) {
        self.avg_ns = self
            .total_ns
            .checked_div(self.received)
            .filter(|_| self.received > 0);
        let lost = self.sent - self.received;
        self.loss_percent = (lost * 100).checked_div(self.sent).unwrap_or(0);
    }

    fn text(&self) -> String {
        let mut text = format!(
            "{} sent, {} received, {}% loss",
            self.sent, self.received, self.loss_percent
        );
        if let (Some(min), Some(avg), Some(max)) = (self.min_ns, self.avg_ns, self.max_ns) {
            text.push_str("; min/avg/max = ");
            let times = [min, avg, max].map(milliseconds).join("/");
            text.push_str(&times.replace(" ms/", "/"));
        }
        text
    }
}
