//! The routing half: links and adjacencies, the link-state database, routes, and packets on
//! their way. Knows nothing of messages and works.
//!
//! ```text
//!   frames ─▶ adjacency ─▶ origin ─▶ lsdb ◀─▶ flood ─▶ frames
//!                                     │
//!                                    spf ─▶ routes
//!                                              │
//!   packets ──────────────▶ forward ◀──────────┘ ─▶ queue ─▶ packets
//! ```
//!
//! Everything that can wait for a link's writer passes [`Router::pump`], in this order: grants,
//! control packets, acknowledgements of statements, statements, small packets, bulk. Hellos,
//! probes and goodbyes wait for nothing and leave from [`adjacency`].

mod adjacency;
mod digest;
mod echo;
mod flood;
mod forward;
mod guard;
mod link;
mod lsdb;
mod names;
mod origin;
mod pace;
mod queue;
mod rival;
mod routes;
mod spf;
mod timers;

#[cfg(test)]
mod tests;

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use receptor_proto::frame::Frame;
use receptor_proto::packet::sealed::Keepsake;
use receptor_proto::packet::{Body, Message, Packet, Priority};
use receptor_proto::{Directive, ErrorBody, ErrorCode, NodeId};

use self::adjacency::Neighbor;
use self::echo::{EchoRequest, Echoes};
use self::forward::Transit;
use self::guard::Guard;
use self::link::{Link, State};
use self::lsdb::{Index, LIFETIME_MAX, Lsdb};
use self::origin::Own;
use self::pace::Pace;
use self::spf::{Route, Spf};
use self::timers::{Timer, Timers};
use crate::policy::Gate;
use crate::wiring::Net;
use crate::{Config, Counters, Event, Instant, LinkId, Output, Reachability, Security};

type Out = VecDeque<Output>;

/// The shortest [`Config::lsa_lifetime`] that is used; less would be lost on a long way.
const LIFETIME_FLOOR: Duration = Duration::from_secs(60);

/// A packet that has arrived.
#[derive(Debug)]
pub(crate) enum Local {
    /// For [`crate::delivery::Delivery::handle_packet`].
    Deliver(NodeId, Body),
    /// Of others, without a way: for [`crate::delivery::Delivery::keep`], or else
    /// [`Router::give_back`].
    Stuck(Packet, ErrorCode),
    /// A volatile message of this epoch and sequence, for another start of this node.
    OtherStart(NodeId, u64, u64),
    /// To be answered with [`Router::answer_echo`].
    Echo(EchoRequest),
}

/// Everything about links, routes and packets.
#[derive(Debug)]
pub(crate) struct Router {
    config: Config,
    counters: Counters,
    rng: fastrand::Rng,
    timers: Timers,
    closing: bool,

    links: BTreeMap<LinkId, Link>,
    /// Links that may have something to send.
    ready: BTreeSet<LinkId>,
    /// Links to routers, over which everything is flooded.
    flooding: BTreeSet<LinkId>,
    neighbors: BTreeMap<Index, Neighbor>,
    /// How many links are being checked for a rival, and whether one should be looked at.
    checking: usize,
    recheck: bool,

    lsdb: Lsdb,
    own: Own,

    spf: Spf,
    /// By index.
    routes: Vec<Route>,
    old_routes: Vec<Route>,
    /// By node: the one before it on the way there, or on the last that there was.
    ways: Vec<Index>,
    routes_pace: Pace,
    /// A route, or a link that one uses or could use, has changed.
    routes_changed: bool,
    /// Some node may offer something else than before.
    offers_changed: bool,
    /// A neighbor is gone and routes still lead through it; they are computed any moment.
    routes_stale: bool,
    /// Where a leaf sends what it knows no way for.
    gateway: Option<Index>,
    /// Its other routers, for nodes that the gateway has no route to, and until when.
    detours: BTreeMap<NodeId, (Index, Instant)>,

    transit: Transit,
    echoes: Echoes,
    /// In a mesh with certificates.
    guard: Option<Guard>,
    gate: Gate,
}

impl Router {
    pub(crate) fn new(
        mut config: Config,
        now: Instant,
        security: Option<Box<dyn Security>>,
    ) -> Self {
        config.lsa_lifetime = config.lsa_lifetime.clamp(LIFETIME_FLOOR, LIFETIME_MAX);
        let mut rng = fastrand::Rng::with_seed(config.seed);
        let mut router = Self {
            counters: Counters::default(),
            lsdb: Lsdb::new(
                &config.node,
                rng.u64(..),
                (config.limits.lsas, config.limits.lsa_bytes),
                now,
            ),
            rng,
            timers: Timers::default(),
            closing: false,
            links: BTreeMap::new(),
            ready: BTreeSet::new(),
            flooding: BTreeSet::new(),
            neighbors: BTreeMap::new(),
            checking: 0,
            recheck: false,
            own: Own::new(&config, security.is_some()),
            spf: Spf::default(),
            routes: Vec::new(),
            old_routes: Vec::new(),
            ways: Vec::new(),
            routes_pace: Pace::new(routes::PACE),
            routes_changed: false,
            offers_changed: false,
            routes_stale: false,
            gateway: None,
            detours: BTreeMap::new(),
            transit: Transit::default(),
            echoes: Echoes::default(),
            guard: security.map(Guard::new),
            gate: Gate::default(),
            config,
        };
        router.lsdb.keep_spent(router.is_secured());
        router.recheck_security(now);
        router.refresh(now);
        router.update_statements(now);
        router.sweep(now, &mut Out::new());
        router
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.timers.next()
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant, out: &mut Out) {
        while let Some((due, timer)) = self.timers.pop(now) {
            match timer {
                Timer::Adjacency(link) => self.adjacency_timeout(now, due, link, out),
                Timer::Flood(id) => {
                    if let Some(link) = self.links.get_mut(&id) {
                        link.flood_timer = None;
                    }
                    self.wake(id);
                }
                // They are looked at after every input.
                Timer::Originate | Timer::Routes => {}
                Timer::Refresh => self.refresh(now),
                Timer::Sweep => self.sweep(now, out),
                Timer::Echo => self.expire_echoes(now, out),
                Timer::Guard => self.guard_timeout(now),
            }
        }
    }

    pub(crate) fn handle_frame(&mut self, now: Instant, id: LinkId, frame: Frame, out: &mut Out) {
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        link.heard = now;
        link.counters.frames_in += 1;
        let (opening, up) = (matches!(link.state, State::Opening), link.is_up());
        match frame {
            Frame::Hello(hello) if opening => self.handle_hello(now, id, hello, out),
            Frame::Goodbye(goodbye) => self.handle_goodbye(now, id, goodbye, out),
            _ if opening => self.break_off(now, id, "the first frame must be a hello", out),
            Frame::Hello(_) => self.break_off(now, id, "a second hello", out),
            Frame::Probe { nonce } => self.handle_probe(now, id, nonce, out),
            Frame::ProbeReply { nonce } => self.handle_probe_reply(now, id, nonce, out),
            Frame::Credit { total } => {
                link.queue.grant(total);
                self.wake(id);
            }
            Frame::Packet(packet) => self.handle_packet(now, id, packet, out),
            Frame::Cost { cost } => self.handle_cost(now, id, cost),
            Frame::Unknown { .. } => self.counters.unknown += 1,
            // While it is unclear who speaks, nothing is believed. It is said again.
            Frame::Digest { .. } | Frame::Summary { .. } | Frame::Lsas(_) | Frame::LsaAck(_)
                if !up => {}
            Frame::Digest { reply, buckets } => self.handle_digest(id, reply, &buckets),
            Frame::Summary {
                bucket,
                more,
                entries,
            } => self.handle_summary(id, bucket, more, &entries),
            Frame::Lsas(lsas) => self.handle_lsas(now, id, lsas, out),
            Frame::LsaAck(entries) => self.handle_lsa_ack(id, &entries),
        }
    }

    pub(crate) fn handle_room(&mut self, id: LinkId, bytes: usize) {
        if let Some(link) = self.links.get_mut(&id) {
            link.add_room(bytes);
            self.wake(id);
        }
    }

    /// The link may have something to send.
    fn wake(&mut self, id: LinkId) {
        self.ready.insert(id);
    }

    /// A peer did something that makes no sense.
    fn mistake(&mut self, link: LinkId, reason: ErrorBody, out: &mut Out) {
        self.counters.peer_mistakes += 1;
        out.push_back(Output::Event(Event::PeerMistake { link, reason }));
    }

    /// Up to `most`, drawn, so that nodes that started together do not act together.
    fn jitter(&mut self, most: Duration) -> Duration {
        let micros = u64::try_from(most.as_micros()).unwrap_or(u64::MAX - 1);
        Duration::from_micros(self.rng.u64(..=micros))
    }

    pub(crate) fn counters(&self) -> Counters {
        self.counters
    }

    pub(crate) fn lsdb_digest(&self) -> u64 {
        let mixed = |sum, bucket: &u64| digest::mixed(sum, *bucket);
        self.lsdb.digests().iter().fold(0, mixed)
    }

    pub(crate) fn lsdb_len(&self) -> usize {
        self.lsdb.len()
    }

    pub(crate) fn is_quiet(&self) -> bool {
        let at_rest = |link: &Link| link.is_up() && link.flood.is_empty();
        self.own.due().is_none()
            && self.routes_pace.due().is_none()
            && self.links.values().all(at_rest)
    }

    pub(crate) fn queued(&self, id: LinkId) -> [usize; Priority::ALL.len()] {
        let link = self.links.get(&id);
        link.map_or_else(Default::default, |link| link.queue.bytes())
    }

    /// Brings statements and routes up to date, as far as it is time for it. Whether a route or
    /// the link of one changed.
    pub(crate) fn update(&mut self, now: Instant, out: &mut Out) -> bool {
        self.update_statements(now);
        self.update_routes(now, out);
        self.rescue(now);
        self.recheck(now, out);
        core::mem::take(&mut self.routes_changed)
    }

    /// Whether some node may offer something else than when this was asked last.
    pub(crate) fn take_offers_changed(&mut self) -> bool {
        core::mem::take(&mut self.offers_changed)
    }

    /// Moves what waits onto links with room. Whether a queue that was full has room again.
    pub(crate) fn pump(&mut self, now: Instant, out: &mut Out) -> bool {
        let guard = self.guard.as_mut();
        let mut eased = guard.is_some_and(|guard| core::mem::take(&mut guard.eased));
        while let Some(id) = self.ready.pop_first() {
            eased |= self.pump_link(now, id, out);
        }
        eased
    }

    fn pump_link(&mut self, now: Instant, id: LinkId, out: &mut Out) -> bool {
        loop {
            let Some(link) = self.links.get_mut(&id).filter(|link| link.is_up()) else {
                return false;
            };
            if link.takes_urgent()
                && let Some(total) = link.queue.next_grant()
            {
                link.transmit(now, Frame::Credit { total }, out);
            }
            let queued = if !link.has_room() {
                link.pump_flood(now, &self.lsdb, &mut self.counters, out);
                None
            } else if let Some(queued) = link.queue.pop_control() {
                Some(queued)
            } else if link.pump_flood(now, &self.lsdb, &mut self.counters, out) {
                continue;
            } else if link.has_room() {
                link.queue.pop_data()
            } else {
                // Acknowledgements took the last of it.
                None
            };
            let Some(queued) = queued else { break };
            link.transmit(now, Frame::Packet(queued.packet), out);
            if let Some(from) = queued.keeps {
                self.waited(from, queued.size);
            }
        }
        let Some(link) = self.links.get_mut(&id) else {
            return false;
        };
        let at = link.next_flood();
        if at != link.flood_timer {
            link.flood_timer = at;
            match at {
                Some(at) => self.timers.set(Timer::Flood(id), at),
                None => self.timers.clear(Timer::Flood(id)),
            }
        }
        link.queue.eased()
    }

    /// Whether [`Self::next_local`], [`Self::update`] or [`Self::pump`] have something to do.
    pub(crate) fn is_pending(&self, now: Instant) -> bool {
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        self.transit.is_pending(self.routes_stale)
            || !self.ready.is_empty()
            || self.guard.as_ref().is_some_and(|guard| guard.eased)
            || self.routes_changed
            || self.offers_changed
            || self.recheck && self.checking > 0
            || due(self.own.due())
            || due(self.routes_pace.due())
    }
}

impl Net for Router {
    fn reachability(&self, node: &NodeId) -> Reachability {
        self.find_reachability(node)
    }

    fn next_link(&self, node: &NodeId) -> Option<LinkId> {
        self.next(node).ok().map(|(_, link)| link)
    }

    fn path(&self, node: &NodeId) -> u64 {
        self.find_path(node)
    }

    fn custodian(&self, node: &NodeId) -> Option<NodeId> {
        self.find_custodian(node)
    }

    fn is_on_way(&self, node: &NodeId, destination: &NodeId) -> bool {
        self.find_on_way(node, destination)
    }

    fn fingerprint(&self, message: &Message) -> u64 {
        let keepsake = Keepsake::decode(message.body.clone());
        let guard = self.guard.as_ref().zip(keepsake.ok());
        guard.map_or(0, |(guard, keepsake)| guard.fingerprint(&keepsake.message))
    }

    fn stated_start(&self, node: &NodeId) -> u64 {
        self.find_stated_start(node)
    }

    fn room(&self, node: &NodeId, priority: Priority) -> usize {
        if *node == self.config.node {
            return usize::MAX;
        }
        self.next(node).map_or(0, |(_, link)| {
            let link = self.links.get(&link);
            link.map_or(0, |link| link.queue.room(priority))
        })
    }

    fn pass_on(&mut self, packet: Packet) -> Result<(), ErrorCode> {
        self.send_own(packet)
    }

    fn send(&mut self, now: Instant, to: &NodeId, body: &Body) -> Result<(), ErrorCode> {
        self.post_body(now, to, body)
    }

    fn send_message(
        &mut self,
        now: Instant,
        to: &NodeId,
        message: &Message,
        instance: u64,
    ) -> Result<(), ErrorCode> {
        self.post_message(now, to, message, instance)
    }

    fn resolve(
        &mut self,
        directive: &Directive,
        metadata: &BTreeMap<String, String>,
    ) -> Option<NodeId> {
        self.find_match(directive, metadata)
    }
}
