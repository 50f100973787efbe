//! `status`: this node at one look.

use receptor_proto::NodeId;
use receptor_proto::control::{PeerStatus, PluginStatus, Status};
use serde::Deserialize;

use super::lists::{link_state, microseconds};
use super::plugin::readiness;
use super::{Context, plain};
use crate::exit::{Exit, Failure};
use crate::output::{Out, Table, Tone, count, duration, printable, size};

/// Tables stand below the values of the fields.
const INDENT: &str = "           ";

/// The part of the answer that is ours; the rest is for other clients.
#[derive(Debug, Deserialize)]
struct Answer {
    receptor: Status,
}

pub(super) fn run(context: &Context) -> Result<Exit, Failure> {
    context.query(&plain("status"), |out, answer: &Answer| {
        show(out, &answer.receptor)
    })
}

fn show(out: &mut Out, status: &Status) -> Result<(), Failure> {
    let healthy = status.warnings.is_empty();
    let tone = if healthy { Tone::Good } else { Tone::Strange };
    let dot = out.paint(tone, "●");
    out.line(format!(
        "{dot} {} - receptord {}, up {}, pid {}",
        status.node,
        printable(&status.version),
        duration(status.uptime_ms),
        status.pid
    ))?;
    let role = if status.router { "router" } else { "leaf" };
    let security = match status.security.as_str() {
        "tls" => "TLS",
        "none" => "no TLS",
        other => other,
    };
    let sealed = if status.sealed {
        ", messages sealed"
    } else {
        ""
    };
    field(out, "Role", &format!("{role}, {security}{sealed}"))?;
    if let Some(certificate) = &status.certificate {
        let text = format!(
            "expires {}, issued by {}",
            certificate.expires_at, certificate.issuer
        );
        field(out, "TLS", &text)?;
    }
    field(out, "Data", &status.data_dir)?;
    if status.listeners.is_empty() {
        field(out, "Listens", "nowhere")?;
    }
    for (number, url) in status.listeners.iter().enumerate() {
        field(out, if number == 0 { "Listens" } else { "" }, url)?;
    }
    let unreachable = status.nodes_known.saturating_sub(status.nodes_reachable);
    let mut nodes = format!("{} reachable", status.nodes_reachable);
    if unreachable > 0 {
        nodes.push_str(&format!(", {unreachable} unreachable"));
    }
    field(out, "Nodes", &nodes)?;
    field(out, "Works", &format!("{} active", status.works_active))?;
    let spool = &status.spool;
    let custody = match spool.in_custody {
        0 => String::new(),
        number => format!(" ({number} in custody for other nodes)"),
    };
    let waiting = format!(
        "{} waiting{custody}, {} of {}",
        count(spool.entries, "message"),
        size(spool.bytes),
        size(spool.max_bytes)
    );
    field(out, "Spool", &waiting)?;
    if spool.damaged > 0 {
        let parts = count(spool.damaged, "damaged part");
        field(
            out,
            "",
            &format!("{parts} set aside, see 'receptorctl spool list'"),
        )?;
    }
    if let Some(error) = &spool.error {
        field(out, "", error)?;
    }
    field(out, "Clients", &status.clients.to_string())?;
    if status.peers.is_empty() {
        field(out, "Peers", "none")?;
    } else {
        field(out, "Peers", &up_of(&status.peers))?;
        out.indented(INDENT, &peers(&status.peers))?;
    }
    if status.plugins.is_empty() {
        field(out, "Plugins", "none")?;
    } else {
        let ready = status.plugins.iter().filter(|p| p.ready).count();
        field(
            out,
            "Plugins",
            &format!("{ready} of {} ready", status.plugins.len()),
        )?;
        out.indented(INDENT, &plugins(&status.plugins))?;
    }
    for warning in &status.warnings {
        let label = out.paint(Tone::Strange, "Warning");
        out.line(format!("  {label}: {}", printable(warning)))?;
    }
    Ok(())
}

fn field(out: &mut Out, name: &str, value: &str) -> Result<(), Failure> {
    let colon = if name.is_empty() { ' ' } else { ':' };
    out.line(format!("  {name:>7}{colon} {}", printable(value)))
}

fn up_of(peers: &[PeerStatus]) -> String {
    let up = peers.iter().filter(|peer| peer.state == "up").count();
    format!("{up} of {} up", peers.len())
}

fn plugins(plugins: &[PluginStatus]) -> Table {
    let mut table = Table::new([
        "NAME", "VERSION", "STATE", "RUNNING", "WAITING", "ACTIONS", "REASON",
    ]);
    for plugin in plugins {
        table.row([
            (&plugin.name).into(),
            (&plugin.version).into(),
            readiness(plugin),
            plugin.running.to_string().into(),
            plugin.waiting.to_string().into(),
            plugin.actions.join(",").into(),
            plugin.reason.as_deref().unwrap_or_default().into(),
        ]);
    }
    table
}

fn peers(peers: &[PeerStatus]) -> Table {
    let mut table = Table::new(["NODE", "STATE", "RTT", "COST", "ADDRESS", "REASON"]);
    for peer in peers {
        table.row([
            peer.node.as_ref().map_or("", NodeId::as_str).into(),
            link_state(&peer.state),
            peer.rtt_us.map(microseconds).unwrap_or_default().into(),
            peer.cost.to_string().into(),
            (&peer.address).into(),
            peer.error
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default()
                .into(),
        ]);
    }
    table
}
