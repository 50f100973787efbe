//! What the daemon knows of the mesh, as tables: `nodes`, `routes`, `links`, `capabilities`.

use std::collections::BTreeMap;
use std::fmt::Display;

use receptor_proto::NodeId;
use receptor_proto::control::{CapabilitiesReply, LinksReply, NodesReply, RoutesReply};

use super::{Context, plain};
use crate::exit::{Exit, Failure};
use crate::output::{Cell, Table, Tone, duration, milliseconds, note, size};

pub(super) fn nodes(context: &Context) -> Result<Exit, Failure> {
    context.query(&plain("nodes"), |out, reply: &NodesReply| {
        let mut table = Table::new([
            "NODE", "STATE", "HOPS", "COST", "ROLE", "CHANGED", "SOFTWARE", "PLUGINS", "METADATA",
        ]);
        for node in &reply.nodes {
            table.row([
                node.node.as_str().into(),
                reachability(node.reachable),
                optional(node.hops),
                optional(node.cost),
                if node.router { "router" } else { "leaf" }.into(),
                format!("{} ago", duration(node.changed_ms)).into(),
                (&node.software).into(),
                node.plugins.join(",").into(),
                pairs(&node.metadata).into(),
            ]);
        }
        if table.is_empty() {
            note("no nodes are known");
            return Ok(());
        }
        out.table(&table)
    })
}

pub(super) fn routes(context: &Context) -> Result<Exit, Failure> {
    context.query(&plain("routes"), |out, reply: &RoutesReply| {
        let mut table = Table::new(["DESTINATION", "NEXT HOP", "HOPS", "COST", "VIA"]);
        for route in &reply.routes {
            table.row([
                route.destination.as_str().into(),
                route.next_hop.as_str().into(),
                route.hops.to_string().into(),
                route.cost.to_string().into(),
                (&route.via).into(),
            ]);
        }
        if table.is_empty() {
            note("no routes: this node reaches no other");
            return Ok(());
        }
        out.table(&table)
    })
}

pub(super) fn links(context: &Context) -> Result<Exit, Failure> {
    context.query(&plain("links"), |out, reply: &LinksReply| {
        let mut table = Table::new([
            "NODE", "STATE", "FOR", "RTT", "COST", "SENT", "RECEIVED", "QUEUED", "DROPPED",
            "ADDRESS", "REASON",
        ]);
        for link in &reply.links {
            let way = if link.dialled { "to" } else { "from" };
            table.row([
                link.node.as_ref().map_or("", NodeId::as_str).into(),
                link_state(&link.state),
                duration(link.age_ms).into(),
                link.rtt_us.map(microseconds).unwrap_or_default().into(),
                link.cost.to_string().into(),
                size(link.bytes_out).into(),
                size(link.bytes_in).into(),
                size(link.queued).into(),
                link.dropped.to_string().into(),
                format!("{way} {}", link.address).into(),
                link.error
                    .as_ref()
                    .map(ToString::to_string)
                    .unwrap_or_default()
                    .into(),
            ]);
        }
        if table.is_empty() {
            note("no links, and no peers configured");
            return Ok(());
        }
        out.table(&table)
    })
}

pub(super) fn capabilities(context: &Context) -> Result<Exit, Failure> {
    context.query(&plain("capabilities"), |out, reply: &CapabilitiesReply| {
        let mut table = Table::new([
            "NODE", "STATE", "PLUGIN", "VERSION", "READY", "ACTIONS", "METADATA",
        ]);
        for node in &reply.nodes {
            let metadata = pairs(&node.metadata);
            for plugin in &node.plugins {
                table.row([
                    node.node.as_str().into(),
                    reachability(node.reachable),
                    (&plugin.plugin).into(),
                    (&plugin.version).into(),
                    if plugin.ready {
                        Cell::tone("yes", Tone::Good)
                    } else {
                        Cell::tone("no", Tone::Bad)
                    },
                    plugin.actions.join(",").into(),
                    (&metadata).into(),
                ]);
            }
            if node.plugins.is_empty() {
                table.row([
                    node.node.as_str().into(),
                    reachability(node.reachable),
                    "".into(),
                    "".into(),
                    "".into(),
                    "".into(),
                    (&metadata).into(),
                ]);
            }
        }
        if table.is_empty() {
            note("no node has told its capabilities");
            return Ok(());
        }
        out.table(&table)
    })
}

fn reachability(reachable: bool) -> Cell {
    if reachable {
        Cell::tone("reachable", Tone::Good)
    } else {
        Cell::tone("unreachable", Tone::Bad)
    }
}

/// A link's or peer's state in its colour.
pub(super) fn link_state(state: &str) -> Cell {
    match state {
        "up" | "standby" => Cell::tone(state, Tone::Good),
        "waiting" => Cell::tone(state, Tone::Bad),
        _ => Cell::tone(state, Tone::Strange),
    }
}

pub(super) fn microseconds(us: u64) -> String {
    milliseconds(us.saturating_mul(1000))
}

fn optional(value: Option<impl Display>) -> Cell {
    value.map(|v| v.to_string()).unwrap_or_default().into()
}

/// `site=berlin,rack=4`.
fn pairs(map: &BTreeMap<String, String>) -> String {
    let pairs: Vec<_> = map
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    pairs.join(",")
}
