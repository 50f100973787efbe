//! What must hold of the mesh as a whole once it is left alone, against an oracle that knows
//! everything, and what must hold of each node at any time.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use receptor_mesh::{LinkId, LinkState, LinkView, Record};
use receptor_proto::ErrorCode;
use receptor_proto::packet::{CONTROL_MAX, Eof, MessageKind};

use crate::event::NodeIndex;
use crate::net::{EndState, conn_of};
use crate::random::{Stream, stream};
use crate::world::{Host, World};

/// Up to this many nodes all routes are compared; beyond, those of a sample of this many.
const SOURCES_MAX: usize = 150;
/// How much of a sample, beyond.
const SOURCES_SAMPLE: usize = 30;
/// Bytes of receipts and the like that one link's queue may hold beyond its limit.
const QUEUE_SLACK: usize = 16 * CONTROL_MAX;

/// Who is adjacent to whom, over which best link, at what cost; as each end says.
#[derive(Debug)]
pub(crate) struct Adjacencies(Vec<BTreeMap<NodeIndex, u32>>);

impl World {
    /// What is wrong with the bounds of the nodes, if anything.
    pub(crate) fn over_bounds(&self) -> Option<String> {
        for (node, host) in self.members().iter().enumerate() {
            let Some(mesh) = &host.mesh else {
                continue;
            };
            let mut links = mesh.links().into_iter();
            if let Some(why) = links.find_map(|link| self.over_queue(node, link.link)) {
                return Some(why);
            }
            // What was over but for its removal may come back with a start.
            let new = host.jobs.values().filter(|job| !job.came_back()).count();
            if new > mesh.config().limits.works {
                return Some(format!("node {node} has {new} works"));
            }
        }
        None
    }

    /// Whether more waits for a link than may.
    pub(crate) fn over_queue(&self, node: NodeIndex, link: LinkId) -> Option<String> {
        let mesh = self.hosts[node].mesh.as_ref()?;
        let queued: usize = mesh.queued(link).iter().sum();
        let over = queued > mesh.config().limits.link_queue + QUEUE_SLACK;
        over.then(|| format!("node {node} has {queued} bytes for {link:?}"))
    }

    /// What is not yet as it must become when the mesh is left alone; the cheapest first.
    pub(crate) fn unsettled(&self) -> Option<String> {
        let links: Vec<Vec<LinkView>> = self
            .members()
            .iter()
            .map(|host| {
                host.mesh
                    .as_ref()
                    .map_or_else(Vec::new, |mesh| mesh.links())
            })
            .collect();
        self.unlinked(&links)
            .or_else(|| {
                let routers: Vec<bool> = self.members().iter().map(|host| host.router).collect();
                let part = self.adjacencies(&links).parts(&routers);
                let whole = part.iter().all(|part| *part == 0);
                let gone = |node: NodeIndex| self.hosts[node].gone;
                let apart = |a: NodeIndex, b: NodeIndex| part[a] != part[b] || gone(a) || gone(b);
                if !self.all_themselves() {
                    return None;
                }
                self.ledger
                    .unfinished(|node| self.life(node), apart, self.options.breaks_disks())
                    .or_else(|| self.uncollected(apart))
                    .or_else(|| self.disagreement(apart))
                    .or_else(|| self.leftovers(whole))
            })
            .or_else(|| self.unrouted(&links))
    }

    /// As [`Self::unsettled`], of routing alone.
    pub(crate) fn unconverged(&self) -> Option<String> {
        let links: Vec<Vec<LinkView>> = self
            .members()
            .iter()
            .map(|host| {
                host.mesh
                    .as_ref()
                    .map_or_else(Vec::new, |mesh| mesh.links())
            })
            .collect();
        self.unlinked(&links).or_else(|| self.unrouted(&links))
    }

    /// A node that does not run, or a wire whose ends are no neighbors.
    fn unlinked(&self, links: &[Vec<LinkView>]) -> Option<String> {
        let stands = |host: &Host| host.mesh.is_none() && !host.gone;
        if let Some(node) = self.members().iter().position(stands) {
            return Some(format!("node {node} does not run"));
        }
        let mut up = vec![[false; 2]; self.net.wires.len()];
        for (node, links) in links.iter().enumerate() {
            for link in links {
                let (conn, side) = conn_of(link.link);
                let Some(conn) = self.net.conn(conn) else {
                    return Some(format!("node {node} has the closed link {:?}", link.link));
                };
                if conn.ends[side] != EndState::Open {
                    return Some(format!("node {node} has the closed link {:?}", link.link));
                }
                let peer = self.net.wires[conn.wire].ends[1 - side];
                let right = link.node.as_ref() == self.hosts.get(peer).map(|host| &host.id);
                up[conn.wire][side] |= right && link.state == LinkState::Up;
            }
        }
        for (wire, up) in self.net.wires.iter().zip(up) {
            if !wire.cut && up != [true; 2] {
                return Some(format!("the wire {:?} is no adjacency: {up:?}", wire.ends));
            }
        }
        None
    }

    /// A message that stays in custody although its recipient can be reached, or that was and
    /// never reached its plugin.
    fn uncollected(&self, apart: impl Fn(NodeIndex, NodeIndex) -> bool) -> Option<String> {
        for (node, host) in self.members().iter().enumerate().filter(|(_, h)| !h.gone) {
            for record in host.store.messages() {
                if let Record::Transit { recipient, .. } = record
                    && let Some(&to) = self.by_id.get(recipient)
                    && !apart(node, to)
                {
                    return Some(format!("node {node} has in custody {record:?}"));
                }
            }
        }
        let now = self.queue.now();
        self.in_custody.iter().find_map(|kept| {
            let letter = self.ledger.letters.get(&kept.work)?;
            let to = letter.recipient?;
            let excused = apart(kept.custodian, to)
                // What a traitor gave to its custodian may have been spoilt: that is a way to drop it.
                || !self.traitors.is_empty()
                || !letter.runs.is_empty()
                || letter.said.last_word.is_some()
                || letter.cancelled
                || letter.is_damaged()
                || letter.given_up
                || letter.end.is_some()
                || letter.expiry_us <= now - letter.sent_at
                // A node that forgot begins anew, and what it said before counts no more.
                || self.hosts[letter.from].life.data != letter.from_life.data
                || self.hosts[to].life.data != letter.recipient_life.data
                || kept.key_lost && apart(letter.from, to)
                // It had arrived there before, and was cut short.
                || kept.life.process != letter.recipient_life.process;
            (!excused).then(|| {
                let (custodian, work) = (kept.custodian, kept.work);
                format!("{work} was in the custody of {custodian} and was never run")
            })
        })
    }

    /// A work that its sender and its worker list differently.
    fn disagreement(&self, apart: impl Fn(NodeIndex, NodeIndex) -> bool) -> Option<String> {
        for (work, letter) in &self.ledger.letters {
            let (from, Some(to)) = (letter.from, letter.recipient) else {
                continue;
            };
            let same = self.hosts[from].life.data == letter.from_life.data
                && self.hosts[to].life.data == letter.recipient_life.data;
            if letter.volatile || !letter.respond || !same || apart(from, to) {
                continue;
            }
            let (Some(sender), Some(worker)) = (&self.hosts[from].mesh, &self.hosts[to].mesh)
            else {
                continue;
            };
            let runs = worker.work(*work).is_some();
            let waits = sender.has_arrived(*work);
            if runs && waits.is_none() || waits == Some(true) && !runs {
                return Some(format!(
                    "{work} is under way at {to}: {runs}; for its sender {from}: {waits:?}"
                ));
            }
            // A sender that has lost sight of a work, or could not ask its node, does not know how it ended; what
            // could not be written there was not accepted; and of what its disk has damaged it may not know.
            let is_unsure = |eof: &&Eof| {
                let error = eof.error.as_ref();
                error.is_some_and(|error| {
                    matches!(error.code, ErrorCode::Lost | ErrorCode::Damaged)
                        || error.message.contains("could not be told")
                })
            };
            let end = letter.end.as_ref();
            let end = end.filter(|end| letter.accepted && !is_unsure(end));
            let other = self.hosts[to].store.ending(*work);
            if let (Some(end), Some(other)) = (end, other)
                && state(end) != state(other)
            {
                return Some(format!(
                    "{work} has ended at {to} with {other:?}; for its sender {from} with {end:?}"
                ));
            }
        }
        None
    }

    /// A message or work that lies about when all is done.
    fn leftovers(&self, whole: bool) -> Option<String> {
        if let Some((node, process, echo)) = self.echoes.iter().find_map(|(key, _)| {
            let (node, process, _) = *key;
            (self.hosts[node].life.process == process).then_some(*key)
        }) {
            return Some(format!(
                "echo {echo} of node {node} in life {process} has no result"
            ));
        }
        // What a node forgot, others may wait for until it expires; so they may for one they
        // cannot reach.
        if !whole || self.members().iter().any(|host| host.life.data > 0) {
            return None;
        }
        for (node, host) in self.members().iter().enumerate() {
            let mut kept = host.store.messages();
            if let Some(record) = kept.find(|record| !self.waits_for_more(record)) {
                return Some(format!("node {node} keeps {record:?}"));
            }
            let payloads = host.store.loose_payloads();
            // Of one that another node began to send and gave up, what came stays until the
            // message expires.
            if let Some(entry) = payloads.iter().find(|entry| host.uploads.contains(*entry)) {
                return Some(format!(
                    "node {node} keeps the payload {entry:?} of no message"
                ));
            }
            let paged = host.mesh.as_ref().map_or(0, |mesh| mesh.paged().0);
            if paged > 0 {
                return Some(format!("node {node} has {paged} messages in pages"));
            }
            if let Some(work) = host.jobs.keys().next() {
                return Some(format!("node {node} still has the work {work}"));
            }
        }
        None
    }

    /// A response to a volatile message whose other responses were lost: it stays until the
    /// message expires.
    fn waits_for_more(&self, record: &Record) -> bool {
        let Record::Incoming { message, .. } = record else {
            return false;
        };
        let letter = self.ledger.letters.get(&message.work);
        match message.kind {
            MessageKind::Response { .. } => {
                letter.is_some_and(|letter| letter.volatile && letter.end.is_none())
            }
            MessageKind::Request { .. } | MessageKind::Cancel { .. } => false,
        }
    }

    fn adjacencies(&self, links: &[Vec<LinkView>]) -> Adjacencies {
        let mut all: Vec<BTreeMap<NodeIndex, u32>> = vec![BTreeMap::new(); self.members().len()];
        for (node, links) in links.iter().enumerate() {
            for link in links {
                let peer = link.node.as_ref().and_then(|id| self.by_id.get(id));
                if let (Some(&peer), LinkState::Up) = (peer, link.state) {
                    let cost = all[node].entry(peer).or_insert(u32::MAX);
                    *cost = link.cost.min(*cost);
                }
            }
        }
        Adjacencies(all)
    }

    /// Databases that differ, or a route that is not the oracle's.
    fn unrouted(&self, links: &[Vec<LinkView>]) -> Option<String> {
        let adjacencies = self.adjacencies(links);
        let routers: Vec<bool> = self.members().iter().map(|host| host.router).collect();
        let part = adjacencies.parts(&routers);
        let mut digests: BTreeMap<usize, (u64, NodeIndex)> = BTreeMap::new();
        for (node, host) in self.members().iter().enumerate() {
            let Some(mesh) = &host.mesh else {
                continue;
            };
            if host.router {
                let digest = mesh.lsdb_digest();
                let (first, at) = *digests.entry(part[node]).or_insert((digest, node));
                if first != digest {
                    return Some(format!(
                        "the databases of {at} and {node} differ: {}; {}",
                        self.describe(at),
                        self.describe(node)
                    ));
                }
            }
        }
        let count = self.members().len();
        let mut rng = stream(self.options.seed, Stream::Checks);
        let sources: Vec<NodeIndex> = if count <= SOURCES_MAX {
            (0..count).collect()
        } else {
            (0..SOURCES_SAMPLE).map(|_| rng.usize(0..count)).collect()
        };
        sources
            .into_iter()
            .find_map(|node| self.misrouted(node, &adjacencies, &routers))
    }

    /// A route of this node that is not the oracle's.
    fn misrouted(
        &self,
        node: NodeIndex,
        adjacencies: &Adjacencies,
        routers: &[bool],
    ) -> Option<String> {
        let mesh = self.hosts[node].mesh.as_ref()?;
        if !routers[node] {
            return self.misrouted_leaf(node, adjacencies, routers);
        }
        let right = adjacencies.costs(node, routers);
        for (to, host) in self.members().iter().enumerate() {
            let route = mesh.route(&host.id);
            let cost = route.as_ref().map(|route| route.cost);
            if cost != right[to] {
                return Some(format!(
                    "node {node} has {route:?} to {to}, right is {:?}: {}",
                    right[to],
                    self.describe(node)
                ));
            }
            let Some(route) = route.filter(|_| to != node) else {
                continue;
            };
            // Every step comes nearer by what it costs: no loop, and an arrival.
            let next = self.by_id.get(&route.next_hop).copied();
            let step = next.and_then(|next| adjacencies.0[node].get(&next));
            let (Some(next), Some(step)) = (next, step) else {
                return Some(format!("node {node} goes to {to} over {}", route.next_hop));
            };
            let rest = if next == to {
                Some(0)
            } else {
                let next_mesh = self.hosts[next].mesh.as_ref()?;
                next_mesh.route(&host.id).map(|route| route.cost)
            };
            let leads = next == to || routers[next];
            if rest.map(|rest| rest + step) != cost || !leads {
                return Some(format!(
                    "node {node} goes to {to} for {cost:?} over {next}, which is {step} away and goes on for {rest:?}"
                ));
            }
        }
        None
    }

    /// A leaf knows its routers only; whatever it sends goes to one of them.
    fn misrouted_leaf(
        &self,
        node: NodeIndex,
        adjacencies: &Adjacencies,
        routers: &[bool],
    ) -> Option<String> {
        let mesh = self.hosts[node].mesh.as_ref()?;
        let part = adjacencies.parts(routers);
        for (to, host) in self.members().iter().enumerate() {
            let reached = mesh.next_link(&host.id);
            let linked = !adjacencies.0[node].is_empty();
            if to != node && part[to] == part[node] && linked && reached.is_none() {
                return Some(format!("leaf {node} has no way to {to}"));
            }
        }
        None
    }
}

/// What a list shows of an end.
fn state(end: &Eof) -> (u32, Option<&ErrorCode>) {
    (end.code, end.error.as_ref().map(|error| &error.code))
}

impl Adjacencies {
    /// For each node, the first node of its part of the mesh. A leaf joins nothing.
    fn parts(&self, routers: &[bool]) -> Vec<NodeIndex> {
        let mut part: Vec<NodeIndex> = (0..self.0.len()).collect();
        let mut changed = true;
        while changed {
            changed = false;
            for (node, neighbors) in self.0.iter().enumerate() {
                for &peer in neighbors.keys() {
                    let lower = part[node].min(part[peer]);
                    // A leaf takes the part of its lowest router and gives none on.
                    if routers[node] && routers[peer] {
                        changed |= part[node] != lower || part[peer] != lower;
                        (part[node], part[peer]) = (lower, lower);
                    }
                }
            }
        }
        for (node, neighbors) in self.0.iter().enumerate() {
            if !routers[node]
                && let Some(lowest) = neighbors.keys().map(|peer| part[*peer]).min()
            {
                part[node] = lowest;
            }
        }
        part
    }

    /// The costs of the shortest ways from a router to all nodes. A leaf costs what its routers
    /// say and passes nothing on; a link counts when both routers say so.
    fn costs(&self, from: NodeIndex, routers: &[bool]) -> Vec<Option<u32>> {
        let mut costs = vec![None; self.0.len()];
        let mut heap = BinaryHeap::from([Reverse((0, from))]);
        while let Some(Reverse((cost, node))) = heap.pop() {
            if costs[node].is_some() {
                continue;
            }
            costs[node] = Some(cost);
            if !routers[node] {
                continue;
            }
            for (&peer, &step) in &self.0[node] {
                if self.0[peer].contains_key(&node) {
                    heap.push(Reverse((cost + step, peer)));
                }
            }
        }
        costs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oracle_goes_around_leaves_and_one_sided_links() {
        // 0 -1- 1 -1- 2; leaf 3 on 0 and 2; 4 says it has 0, 0 does not.
        let mut all = vec![BTreeMap::new(); 5];
        for (a, b, cost) in [(0, 1, 1), (1, 2, 1), (0, 3, 1), (2, 3, 5)] {
            all[a].insert(b, cost);
            all[b].insert(a, cost);
        }
        all[4].insert(0, 1);
        let adjacencies = Adjacencies(all);
        let routers = [true, true, true, false, true];
        assert_eq!(
            adjacencies.costs(2, &routers),
            [Some(2), Some(1), Some(0), Some(3), None]
        );
    }
}
