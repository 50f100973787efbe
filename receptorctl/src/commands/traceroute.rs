//! `traceroute`: each node on the way, as it answers.

use std::time::Duration;

use receptor_proto::ErrorBody;
use receptor_proto::control::{TraceHop, TracerouteCommand};

use super::{Context, With};
use crate::args::Traceroute;
use crate::client::{Answer, PATIENCE};
use crate::exit::{Exit, Failure};
use crate::output::{Out, milliseconds, printable};

/// How long one hop may take, when the user gave no `--timeout`.
const HOP: Duration = Duration::from_secs(5);

pub(super) fn run(context: &Context, args: &Traceroute) -> Result<Exit, Failure> {
    let mut connection = context.connect()?;
    let timeout = context.deadline.left_up_to(HOP);
    connection.send(&With {
        command: "traceroute",
        fields: TracerouteCommand {
            target: args.node.to_string(),
            stream: true,
            timeout_ms: u64::try_from(timeout.as_millis()).ok(),
        },
    })?;
    let mut out = Out::new();
    let json = context.global.json;
    if !json {
        out.line(format!(
            "traceroute to {} from {}",
            args.node,
            connection.node()
        ))?;
    }
    loop {
        out.flush()?;
        connection.set_deadline(context.deadline.or(PATIENCE));
        let line = connection.line()?;
        // A hop that failed carries an error and is part of the answer; a refusal is the whole of it.
        let hop: TraceHop = match crate::client::parse(&line) {
            Ok(hop) => hop,
            Err(_) => Answer::read(line.clone())?.value,
        };
        let error = failed(&hop);
        if json {
            out.line(&line)?;
        } else if let Some(error) = &error {
            out.line(format!(
                "{:>2}  *  {}",
                hop.hop,
                printable(&error.to_string())
            ))?;
        } else {
            let node = hop.reply.from.as_ref().map_or("?", |node| node.as_str());
            out.line(format!(
                "{:>2}  {node}  {}",
                hop.hop,
                milliseconds(hop.reply.time_ns)
            ))?;
        }
        if hop.eof {
            out.flush()?;
            return match error {
                Some(error) => Err(Failure::answered(&error)),
                None => Ok(Exit::Done),
            };
        }
    }
}

fn failed(hop: &TraceHop) -> Option<ErrorBody> {
    super::ping::failed(&hop.reply)
}
