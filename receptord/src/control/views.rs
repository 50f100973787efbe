//! What the daemon says about itself: the replies to `status`, `nodes`, `routes`, `links` and
//! `capabilities`.
//!
//! Owns the translation from the engine's and the links' views to the control protocol's
//! types. Never changes anything.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use receptor_identity::date;
use receptor_mesh::{LinkState, NodeView};
use receptor_proto::control::{
    CapabilitiesReply, CertificateStatus, CounterStatus, GoAdvertisement, GoConnection,
    GoWorkCommand, LinkStatus, LinksReply, NodeCapabilities, NodeStatus, NodesReply, PeerStatus,
    RouteStatus, RoutesReply, SpoolStatus, Status, StatusReply, VERSION,
};

use super::Context;
use crate::engine::{EngineGone, Health, Input, LinkReport, Query};
use crate::keyring::{Keys, seconds_since_1970};
use crate::link::{PeerView, Phase};

/// A store that is this full is worth a warning, in percent.
const FULL_PERCENT: u64 = 90;
/// A peer that is away for this long is worth a warning.
const AWAY: Duration = Duration::from_secs(30);

async fn nodes(context: &Context) -> Result<Vec<(NodeView, Duration)>, EngineGone> {
    let ask = |reply| Input::Query(Query::Nodes(reply));
    context.engine.ask(ask).await
}

async fn links(context: &Context) -> Result<Vec<LinkReport>, EngineGone> {
    let ask = |reply| Input::Query(Query::Links(reply));
    context.engine.ask(ask).await
}

/// `nodes`.
pub(super) async fn nodes_reply(context: &Context) -> Result<NodesReply, EngineGone> {
    let nodes = nodes(context).await?.into_iter().map(|(view, age)| {
        let (cost, hops) = match &view.route {
            Some(route) => (Some(route.cost), Some(route.hops)),
            None => (None, None),
        };
        NodeStatus {
            reachable: view.route.is_some(),
            cost,
            hops,
            router: view.router,
            software: view.software,
            metadata: view.metadata,
            plugins: view
                .plugins
                .into_iter()
                .map(|plugin| plugin.plugin)
                .collect(),
            links: view.links.into_iter().collect(),
            changed_ms: millis(age),
            node: view.node,
        }
    });
    Ok(NodesReply {
        nodes: nodes.collect(),
    })
}

/// `routes`.
pub(super) async fn routes_reply(context: &Context) -> Result<RoutesReply, EngineGone> {
    let links = links(context).await?;
    let address = |id| {
        links
            .iter()
            .find(|report| report.view.link == id)
            .map(|report| report.view.address.clone())
    };
    let nodes = nodes(context).await?.into_iter();
    let routes = nodes.filter_map(|(view, _)| {
        let route = view.route?;
        Some(RouteStatus {
            destination: view.node,
            next_hop: route.next_hop,
            via: route.link.and_then(address).unwrap_or_default(),
            cost: route.cost,
            hops: route.hops,
        })
    });
    Ok(RoutesReply {
        routes: routes.collect(),
    })
}

/// `capabilities`.
pub(super) async fn capabilities_reply(context: &Context) -> Result<CapabilitiesReply, EngineGone> {
    let nodes = nodes(context).await?.into_iter();
    let nodes = nodes.map(|(view, _)| NodeCapabilities {
        reachable: view.route.is_some(),
        metadata: view.metadata,
        plugins: view.plugins,
        node: view.node,
    });
    Ok(CapabilitiesReply {
        nodes: nodes.collect(),
    })
}

/// `links`: those that stand, and the configured peers that have none.
pub(super) async fn links_reply(context: &Context) -> Result<LinksReply, EngineGone> {
    let mut all: Vec<_> = links(context)
        .await?
        .iter()
        .map(|report| link_status(context, report))
        .collect();
    let now = Instant::now();
    for peer in context.links.peers() {
        if let Some(state) = idle_state(&peer) {
            all.push(LinkStatus {
                node: None,
                state: state.to_owned(),
                address: peer.address,
                dialled: true,
                cost: peer.cost,
                rtt_us: None,
                age_ms: millis(now.saturating_duration_since(peer.state.since)),
                heard_ms: None,
                frames_out: 0,
                frames_in: 0,
                bytes_out: 0,
                bytes_in: 0,
                queued: 0,
                dropped: 0,
                certificate_expires: None,
                error: peer.state.error,
            });
        }
    }
    all.sort_by(|a, b| (&a.node, &a.address).cmp(&(&b.node, &b.address)));
    Ok(LinksReply { links: all })
}

fn link_status(context: &Context, report: &LinkReport) -> LinkStatus {
    let view = &report.view;
    let up = view.state == LinkState::Up;
    LinkStatus {
        node: view.node.clone(),
        state: state_name(report).to_owned(),
        address: view.address.clone(),
        dialled: view.dialled,
        cost: view.cost,
        rtt_us: view.rtt.map(micros),
        age_ms: millis(report.age),
        heard_ms: up.then(|| millis(report.heard)),
        frames_out: view.counters.frames_out,
        frames_in: view.counters.frames_in,
        bytes_out: report.bytes_out,
        bytes_in: report.bytes_in,
        queued: (view.queued + report.waiting) as u64,
        dropped: view.counters.dropped,
        certificate_expires: context.links.proven_until(view.link),
        error: None,
    }
}

fn state_name(report: &LinkReport) -> &'static str {
    match (report.view.state, report.view.in_use) {
        (LinkState::Opening, _) => "opening",
        (LinkState::Checking, _) => "checking",
        (LinkState::Up, true) => "up",
        (LinkState::Up, false) => "standby",
    }
}

/// What a peer does that has no link; `None` when it has one.
fn idle_state(peer: &PeerView) -> Option<&'static str> {
    match peer.state.phase {
        Phase::Connecting => Some("connecting"),
        Phase::Waiting => Some("waiting"),
        Phase::Connected(_) => None,
    }
}

/// `status`.
pub(super) async fn status_reply(context: &Context) -> Result<StatusReply, EngineGone> {
    let nodes = nodes(context).await?;
    let links = links(context).await?;
    let works_active = context
        .engine
        .ask(|reply| Input::Query(Query::WorksActive(reply)))
        .await?;
    let health = context
        .engine
        .ask(|reply| Input::Query(Query::Health(reply)))
        .await?;
    let peers = context.links.peers();
    let reachable: Vec<_> = nodes
        .iter()
        .map(|(view, _)| view)
        .filter(|view| view.route.is_some())
        .collect();
    let mut connections: BTreeMap<_, u32> = BTreeMap::new();
    for view in links.iter().map(|report| &report.view) {
        if let (LinkState::Up, Some(node)) = (view.state, &view.node) {
            let cost = connections.entry(node.clone()).or_insert(view.cost);
            *cost = view.cost.min(*cost);
        }
    }
    let next_hop = |view: &&NodeView| {
        let route = view.route.as_ref()?;
        (view.node != context.node).then(|| (view.node.clone(), route.next_hop.clone()))
    };
    let costs = |view: &&NodeView| {
        let links = view.links.iter();
        let costs = links.map(|(node, cost)| (node.clone(), f64::from(*cost)));
        (!view.links.is_empty()).then(|| (view.node.clone(), costs.collect()))
    };
    let now = humantime::format_rfc3339_nanos(SystemTime::now()).to_string();
    let usage = context.store.usage();
    let trouble = context.store.trouble();
    let plugins = context.plugins().await;
    let settings = context.settings.borrow();
    let status = Status {
        node: context.node.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        control: VERSION,
        pid: std::process::id(),
        uptime_ms: millis(context.started.elapsed()),
        router: settings.router,
        data_dir: settings.data_dir.display().to_string(),
        listeners: context.links.listening(),
        peers: peers_status(&links, &peers),
        nodes_reachable: reachable.len() as u64,
        nodes_known: nodes.len() as u64,
        works_active,
        spool: SpoolStatus {
            entries: usage.entries,
            bytes: usage.bytes,
            max_bytes: usage.max_bytes,
            in_custody: health.in_custody as u64,
            damaged: trouble.damaged,
            error: trouble.error,
        },
        plugins,
        clients: u64::from(context.clients.get()),
        security: context.security().to_owned(),
        sealed: context.is_member && settings.security.seal,
        certificate: context.keyring.keys().map(|keys| certificate_status(&keys)),
        warnings: warnings(context, &peers, &health),
        counters: counter_status(&health, &links),
    };
    Ok(StatusReply {
        node_id: context.node.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        cpu_count: std::thread::available_parallelism().map_or(1, |count| count.get() as u64),
        memory_mib: memory_mib(),
        connections: connections
            .into_iter()
            .map(|(node_id, cost)| GoConnection {
                node_id,
                cost: f64::from(cost),
            })
            .collect(),
        routing_table: reachable.iter().filter_map(next_hop).collect(),
        advertisements: reachable
            .iter()
            .map(|view| advertisement(view, &now))
            .collect(),
        known_connection_costs: reachable.iter().filter_map(costs).collect(),
        receptor: status,
    })
}

fn certificate_status(keys: &Keys) -> CertificateStatus {
    let (certificate, expires) = (keys.credentials.certificate(), keys.not_after());
    CertificateStatus {
        node_ids: keys.credentials.node_ids().to_vec(),
        issuer: certificate.issuer.clone(),
        fingerprint: certificate.fingerprint.to_string(),
        expires,
        expires_at: date(expires),
    }
}

fn counter_status(health: &Health, links: &[LinkReport]) -> CounterStatus {
    let counters = &health.counters;
    let queued = links
        .iter()
        .map(|report| report.view.queued + report.waiting);
    CounterStatus {
        forwarded: counters.forwarded,
        dropped_no_route: counters.dropped_no_route,
        dropped_hop_limit: counters.dropped_hop_limit,
        dropped_queue_full: counters.dropped_queue_full,
        unknown: counters.unknown,
        peer_mistakes: counters.peer_mistakes,
        unproved: counters.unproved,
        resent: counters.retransmitted,
        duplicates: counters.duplicates,
        orphans: counters.orphans,
        lsas_sent: counters.lsas_sent,
        lsas_received: counters.lsas_received,
        lsas_new: counters.lsas_new,
        spf_runs: counters.spf_runs,
        lsas_held: health.lsas as u64,
        queued_bytes: queued.sum::<usize>() as u64,
    }
}

fn peers_status(links: &[LinkReport], peers: &[PeerView]) -> Vec<PeerStatus> {
    let standing = links.iter().map(|report| PeerStatus {
        node: report.view.node.clone(),
        address: report.view.address.clone(),
        state: match report.view.state {
            LinkState::Up => "up",
            LinkState::Opening | LinkState::Checking => "opening",
        }
        .to_owned(),
        cost: report.view.cost,
        rtt_us: report.view.rtt.map(micros),
        error: None,
    });
    let idle = peers.iter().filter_map(|peer| {
        Some(PeerStatus {
            node: None,
            address: peer.address.clone(),
            state: idle_state(peer)?.to_owned(),
            cost: peer.cost,
            rtt_us: None,
            error: peer.state.error.clone(),
        })
    });
    standing.chain(idle).collect()
}

fn advertisement(view: &NodeView, now: &str) -> GoAdvertisement {
    let works = view.plugins.iter().filter(|plugin| plugin.ready);
    let works: Vec<_> = works
        .flat_map(|plugin| {
            plugin.actions.iter().map(|action| GoWorkCommand {
                work_type: format!("{}:{action}", plugin.plugin),
                secure: false,
            })
        })
        .collect();
    GoAdvertisement {
        node_id: view.node.clone(),
        service: "control".to_owned(),
        // It is reachable, so it was there just now.
        time: now.to_owned(),
        conn_type: 1,
        tags: (!view.metadata.is_empty()).then(|| view.metadata.clone()),
        work_commands: (!works.is_empty()).then_some(works),
    }
}

fn warnings(context: &Context, peers: &[PeerView], health: &Health) -> Vec<String> {
    let mut warnings = Vec::new();
    for (node, ours, ago) in &health.twins {
        let seconds = ago.as_secs();
        warnings.push(if *ours {
            format!(
                "Another running node has this node's id, {node} ({seconds} s ago): give one of them another with --node-id."
            )
        } else {
            format!("Two running nodes have the id {node}; one of them was refused {seconds} s ago.")
        });
    }
    if let Some(keys) = context.keyring.keys() {
        warnings.extend(keys.warnings(seconds_since_1970()));
    }
    if let Some(problem) = context.keyring.problem() {
        warnings.push(format!(
            "The files of [tls] are not in force, those before are: {problem}."
        ));
    }
    let usage = context.store.usage();
    if usage.max_bytes > 0 && usage.bytes / (usage.max_bytes / 100).max(1) >= FULL_PERCENT {
        warnings.push(format!(
            "The store is almost full: {} of {} bytes.",
            usage.bytes, usage.max_bytes
        ));
    }
    for peer in peers {
        if let (Some(_), Some(error)) = (idle_state(peer), &peer.state.error)
            && peer.state.away.is_some_and(|since| since.elapsed() > AWAY)
        {
            warnings.push(format!(
                "Peer {} cannot be reached: {}.",
                peer.address, error.message
            ));
        }
    }
    warnings
}

/// Memory of this host; 0 when the system does not say.
fn memory_mib() -> u64 {
    nix::sys::sysinfo::sysinfo().map_or(0, |info| info.ram_total() >> 20)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
