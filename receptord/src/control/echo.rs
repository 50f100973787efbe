//! `ping` and `traceroute`.
//!
//! Owns asking for echoes and the form of their answers. That a node does not answer is an
//! answer, not an error.

use std::collections::BTreeMap;
use std::time::Duration;

use receptor_mesh::EchoAnswer;
use receptor_proto::control::{PingCommand, PingReply, TraceHop, TracerouteCommand};
use receptor_proto::{ErrorBody, NodeId};
use serde_json::value::RawValue;

use super::Context;
use super::command::invalid;
use super::outlet::{Outlet, tagged};
use super::session::Failure;
use crate::engine::{EngineGone, Input};

/// How long an echo is waited for when the client does not say.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The longest that a client may say.
const TIMEOUT_MAX: Duration = Duration::from_secs(3600);

pub(super) async fn ping(context: &Context, command: &PingCommand) -> Result<PingReply, Failure> {
    let timeout = timeout(command.timeout_ms);
    Ok(match command.target.parse::<NodeId>() {
        Ok(node) => reply(echo(context, node, None, timeout).await?),
        Err(error) => reply(Err(invalid(error.to_string()))),
    })
}

/// Each hop as its own line when the client wants a stream; the last line is returned.
pub(super) async fn traceroute(
    context: &Context,
    outlet: &Outlet,
    tag: Option<&RawValue>,
    command: &TracerouteCommand,
) -> Result<Vec<u8>, Failure> {
    let timeout = timeout(command.timeout_ms);
    let target = match command.target.parse::<NodeId>() {
        Ok(target) => target,
        Err(error) => {
            let reply = reply(Err(invalid(error.to_string())));
            return Ok(if command.stream {
                tagged(
                    tag,
                    &TraceHop {
                        hop: 1,
                        reply,
                        eof: true,
                    },
                )
            } else {
                tagged(tag, &BTreeMap::from([("0", reply)]))
            });
        }
    };
    let mut hops = BTreeMap::new();
    if target == context.node || !command.stream {
        // Go Receptor's first answer is the local node's.
        let own = echo(context, context.node.clone(), None, timeout).await?;
        if target == context.node {
            let reply = reply(own);
            return Ok(if command.stream {
                tagged(
                    tag,
                    &TraceHop {
                        hop: 0,
                        reply,
                        eof: true,
                    },
                )
            } else {
                tagged(tag, &BTreeMap::from([("0", reply)]))
            });
        }
        hops.insert(0, reply(own));
    }
    let hop_limit = context.settings.borrow().routing.hop_limit;
    let mut hop = 1;
    loop {
        let result = echo(context, target.clone(), Some(hop - 1), timeout).await?;
        let eof = match &result {
            Ok(answer) => answer.arrived,
            Err(_) => true,
        } || hop >= hop_limit;
        let reply = reply(result);
        if command.stream {
            let line = tagged(tag, &TraceHop { hop, reply, eof });
            if eof {
                return Ok(line);
            }
            outlet.line(line).await;
        } else {
            hops.insert(hop, reply);
            if eof {
                let hops: serde_json::Map<_, _> = hops
                    .into_iter()
                    .filter_map(|(hop, reply)| {
                        Some((hop.to_string(), serde_json::to_value(reply).ok()?))
                    })
                    .collect();
                return Ok(tagged(tag, &hops));
            }
        }
        hop += 1;
    }
}

fn timeout(millis: Option<u64>) -> Duration {
    millis.map_or(TIMEOUT, |millis| {
        Duration::from_millis(millis).min(TIMEOUT_MAX)
    })
}

async fn echo(
    context: &Context,
    node: NodeId,
    hop_limit: Option<u8>,
    timeout: Duration,
) -> Result<Result<EchoAnswer, ErrorBody>, EngineGone> {
    let ask = |reply| Input::Echo {
        node,
        hop_limit,
        timeout,
        reply,
    };
    context.engine.ask(ask).await
}

fn reply(result: Result<EchoAnswer, ErrorBody>) -> PingReply {
    match result {
        Ok(answer) => PingReply {
            success: true,
            from: Some(answer.from),
            time_ns: u64::try_from(answer.rtt.as_nanos()).unwrap_or(u64::MAX),
            time_text: go_duration(answer.rtt),
            error_text: None,
            error: None,
            hops: answer.hops,
            active: answer.active,
            works: answer.works,
        },
        Err(error) => PingReply {
            success: false,
            from: None,
            time_ns: 0,
            time_text: go_duration(Duration::ZERO),
            error_text: Some(error.message.clone()),
            error: Some(error),
            hops: 0,
            active: 0,
            works: Vec::new(),
        },
    }
}

/// A duration below a minute as Go prints it: `1.5ms`.
fn go_duration(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    let (divisor, unit) = match nanos {
        0 => return "0s".to_owned(),
        1..1_000 => (1, "ns"),
        1_000..1_000_000 => (1_000, "µs"),
        1_000_000..1_000_000_000 => (1_000_000, "ms"),
        _ => (1_000_000_000, "s"),
    };
    let whole = nanos / divisor;
    let rest = nanos % divisor;
    let digits = divisor.ilog10() as usize;
    let fraction = format!("{rest:0digits$}");
    let fraction = fraction.trim_end_matches('0');
    if fraction.is_empty() || digits == 0 {
        format!("{whole}{unit}")
    } else {
        format!("{whole}.{fraction}{unit}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_look_as_in_go() {
        for (nanos, text) in [
            (0, "0s"),
            (999, "999ns"),
            (1_000, "1µs"),
            (85_300, "85.3µs"),
            (1_230_000, "1.23ms"),
            (2_000_000_000, "2s"),
            (2_050_000_000, "2.05s"),
        ] {
            assert_eq!(go_duration(Duration::from_nanos(nanos)), text);
        }
    }
}
