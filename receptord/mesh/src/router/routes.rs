//! Routes: when they are computed, what changed by it, and what is known of every node.
//!
//! A leaf computes nothing: it reaches its neighbors, and everything else through the best
//! router among them.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::time::Duration;

use receptor_proto::lsa::CapabilitiesBody;
use receptor_proto::{Directive, ErrorBody, ErrorCode, NodeId};

use super::adjacency::Neighbor;
use super::lsdb::{Index, Node, OWN};
use super::pace::Rules;
use super::spf::{Graph, Root, Route};
use super::timers::Timer;
use super::{Out, Router};
use crate::{Event, Instant, LinkId, LinkView, NodeView, Output, Reachability, RouteView};

/// Routes follow the first change after 2 ms, so that what both ends of a link say is counted
/// together, and the next ones after 10 ms, 20 ms … while changes go on, up to [`slowest`].
pub(super) const PACE: Rules = Rules {
    first: Duration::from_millis(2),
    second: Duration::from_millis(10),
    slowest: Duration::from_secs(1),
};
/// The longest gap between computations: as long as nodes disagree packets may go in circles, so
/// it is no longer than keeps the cost of computing around a hundredth of one processor.
fn slowest(nodes: usize) -> Duration {
    let micros = 20_000 + 100 * u64::try_from(nodes).unwrap_or(u64::MAX / 200);
    Duration::from_micros(micros).min(PACE.slowest)
}
/// When a link of this node's own fails, routes wait for nothing but this since the last time:
/// many links that fail together cost a few computations.
const URGENT_GAP: Duration = Duration::from_millis(5);
/// How many nodes a leaf reaches over another router than its gateway at the same time.
const DETOURS_MAX: usize = 4096;
/// How many nodes are looked at to find the one nearest to a node without a way.
const SEARCH_MAX: usize = 1024;
/// How long it does so before it asks its gateway again.
const DETOUR: Duration = Duration::from_secs(600);
/// How soon after a detour another one counts as a new route: routers that know no way either are
/// asked one after the other, and messages need not be sent to each of them at once.
const DETOUR_GAP: Duration = Duration::from_secs(2);

impl Router {
    /// Paths may be different now.
    pub(super) fn request_routes(&mut self, now: Instant) {
        let due = self.routes_pace.changed(now);
        self.timers.set_earlier(Timer::Routes, due);
    }

    /// An adjacency of this node is gone.
    pub(super) fn request_routes_now(&mut self, now: Instant) {
        self.routes_stale = true;
        let due = self.routes_pace.urgent(now, URGENT_GAP);
        self.timers.set_earlier(Timer::Routes, due);
    }

    /// Computes routes if it is time.
    pub(super) fn update_routes(&mut self, now: Instant, out: &mut Out) {
        if !self.routes_pace.take(now) {
            return;
        }
        self.routes_pace.set_slowest(slowest(self.lsdb.size()));
        self.timers.clear(Timer::Routes);
        self.routes_stale = false;
        self.counters.spf_runs += 1;
        let mut neighbors: Vec<_> = self.neighbors.iter().collect();
        neighbors.sort_unstable_by(|a, b| a.1.node.cmp(&b.1.node));
        let roots: Vec<Root> = neighbors
            .iter()
            .map(|(index, neighbor)| Root {
                neighbor: **index,
                cost: neighbor.best().0,
                leaf: neighbor.leaf,
            })
            .collect();
        let gateway = roots
            .iter()
            .filter(|root| !root.leaf && !self.config.router);
        let gateway = gateway
            .min_by_key(|root| root.cost)
            .map(|root| root.neighbor);
        if gateway != self.gateway {
            self.gateway = gateway;
            self.routes_changed = true;
        }
        let mut before = core::mem::take(&mut self.old_routes);
        core::mem::swap(&mut before, &mut self.routes);
        let transit = self.config.router;
        self.spf
            .run(&self.lsdb, OWN, &roots, transit, &mut self.routes);
        for index in 0..self.lsdb.size().max(before.len()) {
            let old = before.get(index).copied().unwrap_or(Route::NONE);
            let new = self.routes.get(index).copied().unwrap_or(Route::NONE);
            if (old.via, old.path) == (new.via, new.path) {
                continue;
            }
            self.routes_changed = true;
            let Ok(index) = Index::try_from(index) else {
                break;
            };
            self.note_way(index, new);
            if old.exists() != new.exists() {
                self.reachability_changed(now, index, old, out);
            }
        }
        self.old_routes = before;
        self.recheck = true;
    }

    fn reachability_changed(&mut self, now: Instant, index: Index, old: Route, out: &mut Out) {
        let via = self.lsdb.node(old.via).map(|via| via.id.clone());
        let Some(node) = self.lsdb.node_mut(index) else {
            return;
        };
        node.changed = now;
        let id = node.id.clone();
        let event = if old.exists() {
            node.unreachable = Some(now);
            node.last_via = via;
            Event::NodeUnreachable { node: id }
        } else {
            node.unreachable = None;
            Event::NodeReachable { node: id }
        };
        if node.hidden && !old.exists() {
            self.lsdb.show(index);
        }
        out.push_back(Output::Event(event));
    }

    /// Lets statements and nodes age.
    pub(super) fn sweep(&mut self, now: Instant, out: &mut Out) {
        self.detours.retain(|_, (_, until)| *until > now);
        let mut pinned: BTreeSet<Index> = self.neighbors.keys().copied().collect();
        let peers = self.links.values().filter_map(|link| link.peer.as_ref());
        pinned.extend(peers.map(|peer| peer.index));
        let routed = (0..).zip(&self.routes).filter(|(_, route)| route.exists());
        pinned.extend(routed.map(|(index, _)| index));
        let swept = self
            .lsdb
            .sweep(now, self.config.dead_node_retention, &pinned);
        if swept.topology {
            self.request_routes(now);
        }
        if let Some(guard) = &mut self.guard {
            guard.spend(swept.spent);
        }
        for node in swept.forgotten {
            out.push_back(Output::Event(Event::NodeForgotten { node }));
        }
        let age = (self.config.lsa_lifetime / 32).min(self.config.dead_node_retention / 8);
        let gap = age.clamp(Duration::from_secs(1), Duration::from_secs(60));
        self.timers.set(Timer::Sweep, now + gap);
    }

    pub(super) fn has_route(&self, index: Index) -> bool {
        self.routes
            .get(index as usize)
            .is_some_and(|route| route.exists())
    }

    /// The neighbor and link that packets to `node` take.
    pub(super) fn next(&self, node: &NodeId) -> Result<(Index, LinkId), ErrorCode> {
        let index = self.lsdb.find(node);
        let via = index
            .and_then(|index| self.routes.get(index as usize))
            .filter(|route| route.exists())
            .map(|route| route.via)
            .or_else(|| {
                let (via, _) = self.detours.get(node)?;
                self.neighbors.contains_key(via).then_some(*via)
            })
            .or(self.gateway);
        match via.and_then(|via| Some((via, self.neighbors.get(&via)?.best().1))) {
            Some(next) => Ok(next),
            None if index.is_some_and(|index| self.is_known(index)) => Err(ErrorCode::NoRoute),
            // A leaf cannot know who exists.
            None if !self.config.router => Err(ErrorCode::NoRoute),
            None => Err(ErrorCode::NoSuchNode),
        }
    }

    /// The neighbor `said` has no route to `destination`. A leaf asks the next of its routers
    /// then: they may be in parts of the mesh that nothing else joins.
    pub(super) fn take_detour(&mut self, now: Instant, said: &NodeId, destination: &NodeId) {
        if self.config.router {
            return;
        }
        let Ok((via, _)) = self.next(destination) else {
            return;
        };
        let Some(asked) = self.neighbors.get(&via).filter(|n| n.node == *said) else {
            return;
        };
        let place = |neighbor: &Neighbor| (neighbor.best().0, neighbor.node.clone());
        let asked = place(asked);
        let routers = self.neighbors.iter().filter(|(_, n)| !n.leaf);
        let mut routers: Vec<_> = routers.map(|(index, n)| (place(n), *index)).collect();
        routers.sort_unstable();
        let next = routers.iter().find(|(place, _)| *place > asked);
        let Some((_, next)) = next.or(routers.first()) else {
            return;
        };
        if self.detours.len() >= DETOURS_MAX {
            self.detours.clear();
        }
        let before = self
            .detours
            .insert(destination.clone(), (*next, now + DETOUR));
        let recent = before.is_some_and(|(_, until)| now + DETOUR < until + DETOUR_GAP);
        if *next != via && !recent {
            self.routes_changed = true;
        }
    }

    fn is_known(&self, index: Index) -> bool {
        self.has_route(index) || self.lsdb.node(index).is_some_and(Node::known)
    }

    pub(super) fn find_reachability(&self, node: &NodeId) -> Reachability {
        if *node == self.config.node {
            return Reachability::Reachable;
        }
        match self.next(node) {
            Ok(_) => Reachability::Reachable,
            Err(ErrorCode::NoRoute) => Reachability::NoRoute,
            Err(_) => Reachability::Unknown,
        }
    }

    pub(super) fn find_path(&self, node: &NodeId) -> u64 {
        let Ok((_, link)) = self.next(node) else {
            return 0;
        };
        let index = self.lsdb.find(node);
        let route = index.and_then(|index| self.routes.get(index as usize));
        // Another link to the same neighbor is another path.
        super::digest::mixed(route.map_or(0, |route| route.path), link.0) | 1
    }

    /// The reachable router that is nearest to where `node` was last. Goes from the node outwards,
    /// over what its side of the mesh stated last and over who had it as a neighbor; all that are
    /// equally far are looked at before others.
    pub(super) fn find_custodian(&self, node: &NodeId) -> Option<NodeId> {
        if !self.config.router || *node == self.config.node {
            return None;
        }
        let mut seen: BTreeSet<NodeId> = BTreeSet::from([node.clone()]);
        let mut level: Vec<NodeId> = Vec::from([node.clone()]);
        while !level.is_empty() && seen.len() < SEARCH_MAX {
            let mut next: BTreeSet<(u32, NodeId)> = BTreeSet::new();
            for at in &level {
                let index = self.lsdb.find(at);
                let edges = index.map_or(&[][..], |index| self.lsdb.edges(index));
                let routers = edges.iter().filter(|edge| !edge.leaf);
                let stated = routers.filter_map(|edge| {
                    let neighbor = self.lsdb.node(edge.to)?;
                    Some((edge.cost, neighbor.id.clone()))
                });
                let last = self.lsdb.last_neighbor(at);
                next.extend(stated.chain(last.map(|last| (u32::MAX, last.clone()))));
            }
            next.retain(|(_, id)| seen.insert(id.clone()));
            let own = &self.config.node;
            if next.iter().any(|(_, id)| id == own) {
                return None;
            }
            let reached = |id: &NodeId| {
                self.lsdb
                    .find(id)
                    .is_some_and(|index| self.has_route(index))
            };
            if let Some((_, id)) = next.iter().find(|(_, id)| reached(id)) {
                return Some(id.clone());
            }
            level = next.into_iter().map(|(_, id)| id).collect();
        }
        None
    }

    fn note_way(&mut self, index: Index, route: Route) {
        let at = index as usize;
        if self.ways.len() <= at {
            self.ways.resize(at + 1, Index::MAX);
        }
        if route.exists() {
            self.ways[at] = route.last;
        }
    }

    /// A leaf knows of no way but its routers.
    pub(super) fn find_on_way(&self, node: &NodeId, destination: &NodeId) -> bool {
        let (Some(node), Some(mut at)) = (self.lsdb.find(node), self.lsdb.find(destination)) else {
            return false;
        };
        if !self.config.router {
            return self.neighbors.get(&node).is_some_and(|n| !n.leaf);
        }
        for _ in 0..=u8::MAX {
            let Some(&last) = self.ways.get(at as usize).filter(|last| **last != OWN) else {
                return false;
            };
            if last == node {
                return true;
            }
            at = last;
        }
        false
    }

    /// Why there is no way to `node`, for people.
    pub(super) fn no_way(&self, node: &NodeId) -> ErrorBody {
        match self.find_reachability(node) {
            Reachability::Unknown => {
                let text = alloc::format!("no node {node} is known in the mesh");
                ErrorBody::new(ErrorCode::NoSuchNode, text)
            }
            Reachability::Reachable | Reachability::NoRoute => {
                let last = self.lsdb.find(node).and_then(|index| self.lsdb.node(index));
                let last = last.and_then(|node| node.last_via.as_ref());
                let text = match last {
                    Some(last) if last != node => {
                        alloc::format!("no route to {node}; the last one went through {last}")
                    }
                    Some(_) => alloc::format!("no route to {node}, which was a neighbor"),
                    None => alloc::format!("no route to {node}"),
                };
                ErrorBody::new(ErrorCode::NoRoute, text)
            }
        }
    }

    pub(super) fn find_match(
        &mut self,
        directive: &Directive,
        metadata: &BTreeMap<String, String>,
    ) -> Option<NodeId> {
        let mut best: Option<(u32, Index)> = None;
        let mut equals = 0;
        for index in 0..Index::try_from(self.lsdb.size()).ok()? {
            // A node that came after the last computation has no route yet.
            let cost = if index == OWN {
                0
            } else {
                let route = self.routes.get(index as usize);
                route.map_or(u32::MAX, |route| route.cost)
            };
            if cost == u32::MAX || best.is_some_and(|(lowest, _)| cost > lowest) {
                continue;
            }
            let Some(capabilities) = self.lsdb.capabilities(index) else {
                continue;
            };
            if !serves(capabilities, directive, metadata) {
                continue;
            }
            if best.is_none_or(|(lowest, _)| cost < lowest) {
                equals = 0;
            }
            equals += 1;
            // Each of the equals is taken in the end with the same chance.
            if self.rng.usize(..equals) == 0 {
                best = Some((cost, index));
            }
        }
        let (_, index) = best?;
        Some(self.lsdb.node(index)?.id.clone())
    }

    fn route_view(&self, index: Index) -> Option<RouteView> {
        if index == OWN {
            return Some(RouteView {
                cost: 0,
                hops: 0,
                next_hop: self.config.node.clone(),
                link: None,
            });
        }
        let route = self
            .routes
            .get(index as usize)
            .filter(|route| route.exists())?;
        let neighbor = self.neighbors.get(&route.via)?;
        Some(RouteView {
            cost: route.cost,
            hops: u8::try_from(route.hops).unwrap_or(u8::MAX),
            next_hop: neighbor.node.clone(),
            link: Some(neighbor.best().1),
        })
    }

    pub(crate) fn route(&self, node: &NodeId) -> Option<RouteView> {
        self.lsdb
            .find(node)
            .and_then(|index| self.route_view(index))
    }

    /// Whether a node says that it takes requests in bundles.
    pub(crate) fn takes_bundles(&mut self, node: &NodeId) -> bool {
        let index = self.lsdb.find(node);
        let capabilities = index.and_then(|index| self.lsdb.capabilities(index));
        capabilities.is_some_and(|capabilities| capabilities.bundles)
    }

    pub(crate) fn nodes(&self) -> Vec<NodeView> {
        let mut leaves: BTreeMap<Index, Vec<(NodeId, u32)>> = BTreeMap::new();
        for (_, node) in self.lsdb.iter() {
            for edge in node.edges.iter().filter(|edge| edge.leaf) {
                let stated = leaves.entry(edge.to).or_default();
                stated.push((node.id.clone(), edge.cost));
            }
        }
        let known = self.lsdb.iter().filter(|(index, _)| self.is_known(*index));
        let mut views: Vec<NodeView> = known
            .map(|(index, node)| {
                let own = |edge: &super::spf::Edge| {
                    let neighbor = self.lsdb.node(edge.to)?;
                    Some((neighbor.id.clone(), edge.cost))
                };
                let mut links: Vec<_> = node.edges.iter().filter_map(own).collect();
                links.extend(leaves.remove(&index).unwrap_or_default());
                links.sort_unstable();
                let capabilities = node.read_capabilities().unwrap_or_default();
                NodeView {
                    node: node.id.clone(),
                    route: self.route_view(index),
                    router: capabilities.router,
                    software: capabilities.software,
                    metadata: capabilities.metadata,
                    plugins: capabilities.plugins,
                    links,
                    changed: node.changed,
                }
            })
            .collect();
        views.sort_unstable_by(|a, b| a.node.cmp(&b.node));
        views
    }

    pub(crate) fn links(&self) -> Vec<LinkView> {
        let view = |link: &super::link::Link| LinkView {
            link: link.id,
            node: link.peer.as_ref().map(|peer| peer.node.clone()),
            state: link.view_state(),
            cost: link.cost,
            in_use: link
                .peer
                .as_ref()
                .and_then(|peer| self.neighbors.get(&peer.index))
                .is_some_and(|neighbor| neighbor.best().1 == link.id),
            address: link.info.address.to_string(),
            dialled: link.info.dialled,
            rtt: link.rtt,
            since: link.since,
            heard: link.heard,
            counters: link.counters,
            queued: link.queue.bytes().iter().sum(),
        };
        self.links.values().map(view).collect()
    }
}

/// Whether a node with these capabilities can run the directive.
fn serves(
    capabilities: &CapabilitiesBody,
    directive: &Directive,
    metadata: &BTreeMap<String, String>,
) -> bool {
    let has = |(key, value): (&String, &String)| capabilities.metadata.get(key) == Some(value);
    let action = directive.action();
    metadata.iter().all(has)
        && capabilities.plugins.iter().any(|plugin| {
            plugin.plugin == directive.plugin()
                && plugin.ready
                && (plugin.actions.is_empty() || plugin.actions.iter().any(|name| name == action))
        })
}
