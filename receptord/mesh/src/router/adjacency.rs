//! Adjacencies: from the first hello to the last goodbye. Owns who may be a neighbor, how long
//! silence is believed, and which of two links to one neighbor is used. Knows nothing of what
//! the links carry. The question whether an id is in use is [`super::rival`]'s.
//!
//! ```text
//!             hello                        nobody else answers
//!   Opening ─────────▶ (id in use?) ──yes──▶ Checking ──▶ Up
//!      │                    └──no───────────────────────▶ Up
//!      └ no hello in time, bad hello ──▶ goodbye     Checking ─ somebody answers ─▶ goodbye
//!                                                    Up ─ silence for the hold time ─▶ goodbye
//! ```

use alloc::format;
use alloc::vec::Vec;
use core::time::Duration;

use receptor_proto::frame::{CREDIT_FLOOR, Frame, Goodbye, Hello, MAX_FRAME_FLOOR, VERSIONS};
use receptor_proto::lsa::{COST_MAX, LINKS_MAX, LsaKind};
use receptor_proto::signed::STATEMENT_MAX;
use receptor_proto::wire::{DecodeError, bytes_len};
use receptor_proto::{ErrorBody, ErrorCode, NodeId};

use super::link::{Link, Peer, State};
use super::lsdb::Index;
use super::rival::Rival;
use super::timers::Timer;
use super::{Out, Router};
use crate::policy::Gate;
use crate::{Event, Instant, LinkId, LinkInfo, Output};

/// How long the other side may take for its hello: a slow TLS handshake is over by then, and a
/// port scanner does not hold a link for long.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// The shortest hold time that is believed, so that no peer makes this node probe all the time.
const HOLD_FLOOR: Duration = Duration::from_millis(200);
/// How old a round-trip time gets before it is taken again.
const RTT_AGE: Duration = Duration::from_secs(30);

/// All links to one node.
#[derive(Debug)]
pub(super) struct Neighbor {
    pub(super) node: NodeId,
    pub(super) instance: u64,
    pub(super) leaf: bool,
    /// By cost, then id: the first is in use, the others stand by.
    links: Vec<(u32, LinkId)>,
}

impl Neighbor {
    /// The link in use and its cost.
    pub(super) fn best(&self) -> (u32, LinkId) {
        // A neighbor without links is removed with its last one.
        self.links[0]
    }

    pub(super) fn links(&self) -> impl Iterator<Item = LinkId> {
        self.links.iter().map(|(_, id)| *id)
    }
}

/// How a link ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// This side says goodbye.
    Ours,
    /// The other side said it.
    Theirs,
    /// The transport ended.
    Transport,
}

impl Router {
    pub(crate) fn handle_link_up(
        &mut self,
        now: Instant,
        id: LinkId,
        mut info: LinkInfo,
        out: &mut Out,
    ) {
        if self.links.contains_key(&id) {
            return;
        }
        info.cost = info.cost.clamp(1, COST_MAX);
        let hello = Hello {
            versions: (*VERSIONS.start(), *VERSIONS.end()),
            node: self.config.node.clone(),
            instance: self.config.instance,
            features: 0,
            max_frame: u32::try_from(crate::MAX_FRAME).unwrap_or(u32::MAX),
            credit: 0,
            hold_time_ms: u32::try_from(self.config.hold_time.as_millis()).unwrap_or(u32::MAX),
            router: self.config.router,
            cost: info.cost,
            software: self.config.software.clone(),
        };
        let mut link = Link::new(id, info, &self.config.limits, now);
        let credit = link.queue.window();
        let full = self.links.len() >= self.config.limits.links;
        if !full && !self.closing {
            link.transmit(now, Frame::Hello(Hello { credit, ..hello }), out);
        }
        self.links.insert(id, link);
        self.timers.set(Timer::Adjacency(id), now + HELLO_TIMEOUT);
        if self.closing {
            let reason = ErrorBody::new(ErrorCode::Shutdown, "this node shuts down");
            self.end_link(now, id, reason, End::Ours, out);
        } else if full {
            let reason = ErrorBody::new(ErrorCode::Busy, "this node has no room for more links");
            self.end_link(now, id, reason, End::Ours, out);
        }
    }

    pub(crate) fn handle_link_down(
        &mut self,
        now: Instant,
        id: LinkId,
        reason: ErrorBody,
        out: &mut Out,
    ) {
        self.end_link(now, id, reason, End::Transport, out);
    }

    pub(crate) fn close_link(
        &mut self,
        now: Instant,
        id: LinkId,
        reason: ErrorBody,
        out: &mut Out,
    ) {
        self.end_link(now, id, reason, End::Ours, out);
    }

    pub(crate) fn handle_bad_frame(
        &mut self,
        now: Instant,
        id: LinkId,
        error: &DecodeError,
        out: &mut Out,
    ) {
        self.break_off(now, id, &format!("{error}"), out);
    }

    /// Asks the rules anew about everybody who has said hello.
    pub(crate) fn set_gate(&mut self, now: Instant, gate: Gate, out: &mut Out) {
        self.gate = gate;
        let refused: Vec<_> = self
            .links
            .iter()
            .filter_map(|(id, link)| {
                let peer = link.peer.as_ref()?;
                let reason = self.gate.link_refusal(&self.config.node, &peer.node)?;
                Some((*id, reason))
            })
            .collect();
        for (id, reason) in refused {
            self.end_link(now, id, reason, End::Ours, out);
        }
    }

    /// Ends a link whose peer broke the protocol in a way that cannot be skipped.
    pub(super) fn break_off(&mut self, now: Instant, id: LinkId, what: &str, out: &mut Out) {
        let reason = ErrorBody::new(ErrorCode::BadFrame, format!("bad frame: {what}"));
        if self.links.contains_key(&id) {
            self.mistake(id, reason.clone(), out);
            self.end_link(now, id, reason, End::Ours, out);
        }
    }

    pub(super) fn handle_goodbye(
        &mut self,
        now: Instant,
        id: LinkId,
        goodbye: Goodbye,
        out: &mut Out,
    ) {
        if goodbye.code == ErrorCode::DuplicateNodeId {
            out.push_back(Output::Event(Event::DuplicateNodeId {
                node: self.config.node.clone(),
                ours: true,
            }));
        }
        let reason = ErrorBody::new(goodbye.code, goodbye.message);
        self.end_link(now, id, reason, End::Theirs, out);
    }

    pub(super) fn handle_hello(&mut self, now: Instant, id: LinkId, hello: Hello, out: &mut Out) {
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        let credit = hello.credit;
        let fault = self
            .config
            .refusal(&link.info.proven, &hello)
            .or_else(|| {
                (!(CREDIT_FLOOR..=u64::MAX / 2).contains(&credit))
                    .then(|| ErrorBody::new(ErrorCode::BadFrame, "the credit is out of range"))
            })
            .or_else(|| self.gate.link_refusal(&self.config.node, &hello.node));
        let own = hello.node == self.config.node;
        let index = if fault.is_some() {
            None
        } else {
            self.lsdb.intern(&hello.node, now)
        };
        let full = || ErrorBody::new(ErrorCode::Busy, "this node has no room for more nodes");
        let fault = fault.or_else(|| index.is_none().then(full));
        let hold = Duration::from_millis(u64::from(hello.hold_time_ms)).max(HOLD_FLOOR);
        link.peer = Some(Peer {
            index: index.unwrap_or(Index::MAX),
            node: hello.node.clone(),
            instance: hello.instance,
            router: hello.router,
            max_frame: usize::try_from(hello.max_frame).unwrap_or(usize::MAX),
            hold: hold.min(self.config.hold_time.max(HOLD_FLOOR)),
            cost: hello.cost.clamp(1, COST_MAX),
            software: hello.software,
        });
        link.cost = link.info.cost.max(hello.cost).clamp(1, COST_MAX);
        link.queue.open(credit);
        if own
            && fault
                .as_ref()
                .is_some_and(|fault| fault.code == ErrorCode::DuplicateNodeId)
        {
            out.push_back(Output::Event(Event::DuplicateNodeId {
                node: hello.node.clone(),
                ours: self.config.instance > hello.instance,
            }));
        }
        if let Some(reason) = fault {
            self.end_link(now, id, reason, End::Ours, out);
            return;
        }
        // What was known of the node may just have gone.
        self.update_routes(now, out);
        match self.rival(id) {
            Rival::None => self.accept(now, id, out),
            rival @ (Rival::Neighbor | Rival::Mesh) => self.start_check(now, id, &rival, out),
        }
    }

    pub(super) fn accept(&mut self, now: Instant, id: LinkId, out: &mut Out) {
        let Some(link) = self.links.get(&id) else {
            return;
        };
        let Some(peer) = &link.peer else { return };
        let (index, instance, leaf) = (peer.index, peer.instance, !peer.router);
        let node = peer.node.clone();
        if let Some(old) = self.neighbors.get(&index)
            && old.instance != instance
        {
            let text = "another start of this node took its place";
            let reason = ErrorBody::new(ErrorCode::DuplicateNodeId, text);
            for (_, old) in old.links.clone() {
                self.end_link(now, old, reason.clone(), End::Ours, out);
            }
        }
        if !self.neighbors.contains_key(&index) && !self.states_one_more(&node) {
            let text = "this node has no room for more neighbors";
            let reason = ErrorBody::new(ErrorCode::Busy, text);
            self.end_link(now, id, reason, End::Ours, out);
            return;
        }
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        if matches!(link.state, State::Checking(_)) {
            self.checking -= 1;
        }
        link.state = State::Up;
        let cost = link.cost;
        let software = link.peer.as_ref().map(|peer| peer.software.clone());
        if let Some(digest) = self.leaf_digest()
            && let Some(link) = self.links.get_mut(&id)
        {
            link.transmit(now, digest, out);
        }
        let neighbor = self.neighbors.entry(index).or_insert_with(|| Neighbor {
            node: node.clone(),
            instance,
            leaf,
            links: Vec::new(),
        });
        neighbor.links.push((cost, id));
        neighbor.links.sort_unstable();
        self.adjacencies_changed(now);
        self.start_flooding(now, id);
        self.set_probe_timer(now, id);
        out.push_back(Output::Event(Event::NeighborUp {
            link: id,
            node,
            cost,
            leaf,
            software: software.unwrap_or_default(),
        }));
        self.recheck = true;
    }

    /// Whether this node's statement has room for another neighbor.
    fn states_one_more(&self, node: &NodeId) -> bool {
        // Cost takes up to three bytes, the flag one, the count of all up to three.
        let size = |node: &NodeId| bytes_len(node.as_str().len()) + 4;
        let sum: usize = self.neighbors.values().map(|known| size(&known.node)).sum();
        self.neighbors.len() < LINKS_MAX && sum + size(node) + 3 <= STATEMENT_MAX
    }

    /// The links of this node are not what they were.
    fn adjacencies_changed(&mut self, now: Instant) {
        self.routes_changed = true;
        self.request_statement(now, LsaKind::LINKS);
        self.request_routes(now);
    }

    pub(crate) fn set_cost(&mut self, now: Instant, id: LinkId, cost: u32, out: &mut Out) {
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        let cost = cost.clamp(1, COST_MAX);
        if cost == link.info.cost {
            return;
        }
        link.info.cost = cost;
        // The hello has left already, also when the other side's is not here yet.
        link.transmit(now, Frame::Cost { cost }, out);
        self.cost_changed(now, id);
    }

    /// The other side has another cost than it said.
    pub(super) fn handle_cost(&mut self, now: Instant, id: LinkId, cost: u32) {
        if let Some(peer) = self.links.get_mut(&id).and_then(|link| link.peer.as_mut()) {
            peer.cost = cost.clamp(1, COST_MAX);
            self.cost_changed(now, id);
        }
    }

    /// The higher of both sides' costs holds.
    fn cost_changed(&mut self, now: Instant, id: LinkId) {
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        let theirs = link.peer.as_ref().map_or(1, |peer| peer.cost);
        let cost = link.info.cost.max(theirs);
        if cost == link.cost {
            return;
        }
        link.cost = cost;
        let Some(index) = link.peer.as_ref().map(|peer| peer.index) else {
            return;
        };
        let Some(neighbor) = self.neighbors.get_mut(&index) else {
            return;
        };
        for entry in neighbor.links.iter_mut().filter(|entry| entry.1 == id) {
            entry.0 = cost;
        }
        neighbor.links.sort_unstable();
        self.adjacencies_changed(now);
    }

    pub(crate) fn shutdown(&mut self, now: Instant, out: &mut Out) {
        self.closing = true;
        self.take_back(now);
        let ids: Vec<LinkId> = self.links.keys().copied().collect();
        for id in &ids {
            if let Some(link) = self.links.get_mut(id) {
                // The last word must not wait for room.
                link.add_room(i32::MAX as usize);
                while link.is_up() && link.pump_flood(now, &self.lsdb, &mut self.counters, out) {}
            }
        }
        for id in ids {
            let reason = ErrorBody::new(ErrorCode::Shutdown, "this node shuts down");
            self.end_link(now, id, reason, End::Ours, out);
        }
    }

    /// Forgets a link, and all that hangs on it.
    pub(super) fn end_link(
        &mut self,
        now: Instant,
        id: LinkId,
        reason: ErrorBody,
        end: End,
        out: &mut Out,
    ) {
        let Some(mut link) = self.links.remove(&id) else {
            return;
        };
        self.timers.clear(Timer::Adjacency(id));
        self.timers.clear(Timer::Flood(id));
        self.ready.remove(&id);
        self.flooding.remove(&id);
        if let Some(guard) = &mut self.guard {
            guard.forget_link(id);
        }
        if end == End::Ours {
            let goodbye = Goodbye {
                code: reason.code.clone(),
                message: reason.message.clone(),
            };
            link.transmit(now, Frame::Goodbye(goodbye), out);
        }
        if end != End::Transport {
            let reason = reason.clone();
            out.push_back(Output::CloseLink { link: id, reason });
        }
        self.strand(&mut link);
        let node = link.peer.as_ref().map(|peer| peer.node.clone());
        match (link.state, link.peer) {
            (State::Up, Some(peer)) => {
                if let Some(neighbor) = self.neighbors.get_mut(&peer.index) {
                    neighbor.links.retain(|(_, other)| *other != id);
                    if neighbor.links.is_empty() {
                        self.neighbors.remove(&peer.index);
                    }
                }
                self.adjacencies_changed(now);
                self.request_links_now(now);
                self.request_routes_now(now);
                let node = peer.node;
                out.push_back(Output::Event(Event::NeighborDown {
                    link: id,
                    node,
                    reason,
                }));
            }
            (state @ (State::Opening | State::Checking(_) | State::Up), _) => {
                if matches!(state, State::Checking(_)) {
                    self.checking -= 1;
                }
                if end != End::Transport {
                    out.push_back(Output::Event(Event::LinkRefused {
                        link: id,
                        node,
                        reason,
                        by_peer: end == End::Theirs,
                    }));
                }
            }
        }
        self.recheck = true;
    }

    pub(super) fn handle_probe(&mut self, now: Instant, id: LinkId, nonce: u64, out: &mut Out) {
        if let Some(link) = self.links.get_mut(&id)
            && link.takes_urgent()
        {
            link.transmit(now, Frame::ProbeReply { nonce }, out);
        }
    }

    pub(super) fn handle_probe_reply(
        &mut self,
        now: Instant,
        id: LinkId,
        nonce: u64,
        out: &mut Out,
    ) {
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        if let Some((asked, at)) = link.probe
            && asked == nonce
        {
            let rtt = now.since(at);
            link.rtt = Some(link.rtt.map_or(rtt, |old| (7 * old + rtt) / 8));
            link.probe = None;
        }
        self.rival_probed(now, id, nonce, out);
    }

    /// When this side has to say something if nothing else is sent.
    fn set_probe_timer(&mut self, now: Instant, id: LinkId) {
        let Some((link, hold)) = self.links.get(&id).and_then(|link| {
            let peer = link.peer.as_ref()?;
            Some((link, peer.hold))
        }) else {
            return;
        };
        // One side is a little faster, so that the other's answers are all that it has to say.
        // Not at once again even when the last probe found the writer overdrawn.
        let quarter = probe_after(&self.config.node, link, hold);
        let probe = (link.sent() + quarter).max(now + quarter / 4);
        let at = probe.min(link.heard + hold);
        self.timers.set(Timer::Adjacency(id), at);
    }

    /// Looks after one adjacency; `due` is when it should have been.
    pub(super) fn adjacency_timeout(
        &mut self,
        now: Instant,
        due: Instant,
        id: LinkId,
        out: &mut Out,
    ) {
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        match &link.state {
            State::Opening => {
                let text = "no hello came in time";
                let reason = ErrorBody::new(ErrorCode::HelloTimeout, text);
                self.end_link(now, id, reason, End::Ours, out);
            }
            State::Checking(check) if check.answered => self.refuse_newcomer(now, id, out),
            State::Checking(_) => self.accept(now, id, out),
            State::Up => {
                let hold = link.peer.as_ref().map_or(HOLD_FLOOR, |peer| peer.hold);
                let quarter = probe_after(&self.config.node, link, hold);
                if now.since(link.heard) >= hold {
                    if now.since(due) < quarter {
                        let text = format!("nothing was heard for {hold:?}");
                        let reason = ErrorBody::new(ErrorCode::HoldTime, text);
                        self.end_link(now, id, reason, End::Ours, out);
                        return;
                    }
                    // This node itself was stopped: what was sent meanwhile is yet to be read.
                    link.heard = now - (hold - quarter);
                }
                let old = link.probed.is_none_or(|at| now.since(at) >= RTT_AGE);
                if (old || now.since(link.sent()) >= quarter) && link.takes_urgent() {
                    let nonce = self.rng.u64(..);
                    link.probe = Some((nonce, now));
                    link.probed = Some(now);
                    link.transmit(now, Frame::Probe { nonce }, out);
                }
                self.set_probe_timer(now, id);
            }
        }
    }
}

/// The silence on this side after which it probes: a quarter of the hold time, for one of the
/// two sides a little more.
fn probe_after(own: &NodeId, link: &Link, hold: Duration) -> Duration {
    let slower = link.peer.as_ref().is_some_and(|peer| peer.node < *own);
    if slower {
        hold / 4 + hold / 32
    } else {
        hold / 4
    }
}

impl crate::Config {
    /// Why a peer that opens like this is not let in.
    fn refusal(&self, proven: &[NodeId], hello: &Hello) -> Option<ErrorBody> {
        let (low, high) = hello.versions;
        if low.max(*VERSIONS.start()) > high.min(*VERSIONS.end()) {
            let (ours_low, ours_high) = (VERSIONS.start(), VERSIONS.end());
            let text = format!(
                "this node speaks versions {ours_low} to {ours_high} of the link protocol, \
                 the other one {low} to {high}"
            );
            return Some(ErrorBody::new(ErrorCode::UnsupportedVersion, text));
        }
        if !proven.is_empty() && !proven.contains(&hello.node) {
            let proven: Vec<&str> = proven.iter().map(NodeId::as_str).collect();
            let text = format!(
                "the certificate is for node {}, the hello says {}",
                proven.join(", "),
                hello.node
            );
            return Some(ErrorBody::new(ErrorCode::IdentityMismatch, text));
        }
        if hello.node == self.node {
            return Some(if hello.instance == self.instance {
                let text = "this link leads back to the node it started from";
                ErrorBody::new(ErrorCode::SelfConnection, text)
            } else {
                let text = format!("another running node has the id {}", self.node);
                ErrorBody::new(ErrorCode::DuplicateNodeId, text)
            });
        }
        if usize::try_from(hello.max_frame).unwrap_or(usize::MAX) < MAX_FRAME_FLOOR {
            let text = format!("frames of {MAX_FRAME_FLOOR} bytes must be taken");
            return Some(ErrorBody::new(ErrorCode::BadFrame, text));
        }
        None
    }
}
