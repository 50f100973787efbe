//! What this node states about itself, and that it alone does so. Owns sequence numbers and the
//! pace of statements.
//!
//! Sequence numbers start at `instance << 20`, so that those of a later start are higher without
//! anything being kept. A statement of this node's that comes back from the mesh with a higher
//! number is left from an earlier start whose instance was higher (a clock set back, a data
//! directory lost): this node goes above it. When that happens again and again although it did
//! go above, another node with its id is alive; of the two the one started later gives way.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use bytes::Bytes;
use receptor_proto::lsa::{
    ACTIONS_MAX, CapabilitiesBody, Capability, LinkEntry, LinksBody, Lsa, LsaKey, LsaKind,
    METADATA_MAX, PLUGINS_MAX,
};
use receptor_proto::signed::{STATEMENT_MAX, SignedBody};

use super::lsdb::{Key, OWN, SEQ_MAX, Standing};
use super::pace::{Pace, Rules};
use super::timers::Timer;
use super::{Out, Router};
use crate::{Config, Event, Instant, LinkId, Output};

/// Statements follow changes at once, then at 25 ms, 50 ms … 1 s while changes go on: a link
/// that flaps costs the mesh two floodings a second. That a link is gone is never held back for
/// long, because others send packets to it until they know.
const PACE: Rules = Rules {
    first: Duration::ZERO,
    second: Duration::from_millis(25),
    slowest: Duration::from_secs(1),
};
/// What even bad news waits after the last statement.
const URGENT_GAP: Duration = Duration::from_millis(10);
/// After how many answers above its own this node believes that another one has its id. Copies
/// left in corners of the mesh may look like one or two.
const CONTESTS: u32 = 4;
/// How long contests are remembered.
const CONTEST_MEMORY: Duration = Duration::from_secs(60);

/// The kinds of statements of this version, in the order in which they are to be known.
const KINDS: [LsaKind; 3] = [LsaKind::IDENTITY, LsaKind::LINKS, LsaKind::CAPABILITIES];

/// One kind of statement.
#[derive(Debug)]
struct Statement {
    /// The highest number that this node used or saw.
    seq: u64,
    pace: Pace,
    /// To be stated although it says nothing new.
    forced: bool,
    /// Stated by this start since it last saw a higher number.
    above: bool,
}

/// The node that contests this one's id.
#[derive(Debug)]
struct Contest {
    instance: u64,
    count: u32,
    at: Instant,
}

/// What this node states.
#[derive(Debug)]
pub(super) struct Own {
    links: Statement,
    capabilities: Statement,
    identity: Option<Statement>,
    plugins: Vec<Capability>,
    metadata: BTreeMap<String, String>,
    contest: Option<Contest>,
}

impl Statement {
    fn new(config: &Config) -> Self {
        Self {
            seq: (config.instance << 20).min(SEQ_MAX / 2),
            pace: Pace::new(PACE),
            forced: false,
            above: false,
        }
    }
}

impl Own {
    pub(super) fn new(config: &Config, is_secured: bool) -> Self {
        Self {
            links: Statement::new(config),
            capabilities: Statement::new(config),
            identity: is_secured.then(|| Statement::new(config)),
            plugins: Vec::new(),
            metadata: BTreeMap::new(),
            contest: None,
        }
    }

    fn statement(&mut self, kind: LsaKind) -> Option<&mut Statement> {
        match kind {
            LsaKind::LINKS => Some(&mut self.links),
            LsaKind::CAPABILITIES => Some(&mut self.capabilities),
            LsaKind::IDENTITY => self.identity.as_mut(),
            _ => None,
        }
    }

    /// When the next statement is due.
    pub(super) fn due(&self) -> Option<Instant> {
        let all = [
            Some(&self.links),
            Some(&self.capabilities),
            self.identity.as_ref(),
        ];
        all.into_iter().flatten().filter_map(|s| s.pace.due()).min()
    }
}

impl Router {
    pub(crate) fn set_capabilities(&mut self, now: Instant, mut plugins: Vec<Capability>) {
        plugins.sort_by(|a, b| a.plugin.cmp(&b.plugin));
        self.own.plugins = plugins;
        self.request_statement(now, LsaKind::CAPABILITIES);
    }

    pub(crate) fn set_metadata(&mut self, now: Instant, metadata: BTreeMap<String, String>) {
        self.own.metadata = metadata;
        self.request_statement(now, LsaKind::CAPABILITIES);
    }

    /// What this node states has changed, or may have.
    pub(super) fn request_statement(&mut self, now: Instant, kind: LsaKind) {
        if self.closing || kind == LsaKind::LINKS && !self.config.router {
            return;
        }
        if let Some(statement) = self.own.statement(kind) {
            let due = statement.pace.changed(now);
            self.timers.set_earlier(Timer::Originate, due);
        }
    }

    /// An adjacency that others count on is gone or has become worse.
    pub(super) fn request_links_now(&mut self, now: Instant) {
        if !self.closing && self.config.router {
            let due = self.own.links.pace.urgent(now, URGENT_GAP);
            self.timers.set_earlier(Timer::Originate, due);
        }
    }

    /// States everything anew although nothing changed.
    pub(super) fn refresh(&mut self, now: Instant) {
        for kind in KINDS {
            if let Some(statement) = self.own.statement(kind) {
                statement.forced = true;
            }
            self.request_statement(now, kind);
        }
        let half = self.config.lsa_lifetime / 2;
        let jitter = self.jitter(half / 10);
        self.timers.set(Timer::Refresh, now + (half - jitter));
    }

    /// Makes the statements that are due.
    pub(super) fn update_statements(&mut self, now: Instant) {
        if self.own.due().is_none_or(|due| due > now) {
            return;
        }
        for kind in KINDS {
            let due = self.own.statement(kind);
            if due.is_some_and(|statement| statement.pace.take(now)) {
                self.state(now, kind);
            }
        }
        match self.own.due() {
            Some(due) => self.timers.set(Timer::Originate, due),
            None => self.timers.clear(Timer::Originate),
        }
    }

    fn state(&mut self, now: Instant, kind: LsaKind) {
        let body = match kind {
            LsaKind::LINKS => self.links_body(),
            LsaKind::IDENTITY => self.identity_body(),
            _ => self.capabilities_body(),
        };
        let stored = self.lsdb.get((kind, OWN)).filter(|stored| !stored.purged);
        let is_secured = self.is_secured();
        let same = stored.is_some_and(|stored| {
            if is_secured {
                SignedBody::statement_of(&stored.body) == body
            } else {
                stored.body == body
            }
        });
        let Some(statement) = self.own.statement(kind) else {
            return;
        };
        if same && !statement.forced {
            return;
        }
        statement.forced = false;
        statement.above = true;
        let lifetime = u32::try_from(self.config.lsa_lifetime.as_secs()).unwrap_or(u32::MAX);
        self.publish(now, kind, lifetime.max(1), body);
    }

    /// Takes back everything that this node stated.
    pub(super) fn take_back(&mut self, now: Instant) {
        // Who this node is last: the others are believed by it.
        for kind in KINDS.into_iter().rev() {
            if self.lsdb.get((kind, OWN)).is_some() {
                self.publish(now, kind, 0, Bytes::new());
            }
        }
    }

    /// Puts a statement of this node above all earlier ones and floods it.
    fn publish(&mut self, now: Instant, kind: LsaKind, remaining_s: u32, body: Bytes) {
        let stored = self
            .lsdb
            .get((kind, OWN))
            .map_or(0, |stored| stored.version.seq);
        let seq = match self.own.statement(kind) {
            Some(statement) => {
                statement.seq = statement.seq.max(stored) + 1;
                statement.seq
            }
            None => stored + 1,
        };
        if seq >= SEQ_MAX {
            // Somebody used up all numbers; what it stated has to expire first.
            return;
        }
        let key = LsaKey {
            node: self.config.node.clone(),
            kind,
        };
        let instance = self.config.instance;
        let body = match &mut self.guard {
            None => Some(body),
            Some(guard) => guard.sign(&key, (seq, instance), remaining_s, body),
        };
        let Some(body) = body else {
            return;
        };
        let lsa = Lsa {
            key,
            seq,
            instance,
            remaining_s,
            body,
        };
        if let Ok(installed) = self.lsdb.install(now, &lsa) {
            self.offers_changed |= kind == LsaKind::CAPABILITIES;
            self.flood(installed.key, None);
        }
    }

    fn links_body(&self) -> Bytes {
        let mut links: Vec<LinkEntry> = self
            .neighbors
            .values()
            .map(|neighbor| LinkEntry {
                neighbor: neighbor.node.clone(),
                cost: neighbor.best().0,
                leaf: neighbor.leaf,
            })
            .collect();
        links.sort_unstable_by(|a, b| a.neighbor.cmp(&b.neighbor));
        LinksBody { links }.encode()
    }

    fn identity_body(&self) -> Bytes {
        let guard = self.guard.as_ref();
        guard.map_or_else(Bytes::new, |guard| guard.own_identity())
    }

    /// The capabilities, cut to what other nodes accept.
    fn capabilities_body(&self) -> Bytes {
        let mut body = CapabilitiesBody {
            software: self.config.software.clone(),
            router: self.config.router,
            bundles: true,
            metadata: self.own.metadata.clone(),
            plugins: self.own.plugins.clone(),
        };
        while body.metadata.len() > METADATA_MAX {
            body.metadata.pop_last();
        }
        body.plugins.truncate(PLUGINS_MAX);
        for plugin in &mut body.plugins {
            plugin.actions.truncate(ACTIONS_MAX);
        }
        let fits =
            |bytes: &Bytes| bytes.len() <= STATEMENT_MAX && CapabilitiesBody::decode(bytes).is_ok();
        loop {
            let bytes = body.encode();
            if fits(&bytes) {
                return bytes;
            }
            // Without actions a plugin is advertised for all of them.
            let named = body.plugins.iter_mut().rev();
            if let Some(plugin) = named.into_iter().find(|plugin| !plugin.actions.is_empty()) {
                plugin.actions.clear();
            } else if body.plugins.pop().is_none() && body.metadata.pop_last().is_none() {
                body.software.clear();
                return body.encode();
            }
        }
    }

    /// A statement of this node came from a neighbor.
    pub(super) fn handle_own_lsa(
        &mut self,
        now: Instant,
        id: LinkId,
        lsa: &Lsa,
        standing: Standing,
        out: &mut Out,
    ) {
        let key: Key = (lsa.key.kind, OWN);
        let foreign = lsa.instance != self.config.instance;
        match standing {
            Standing::Older => self.answer_with_newer(now, id, Some(key)),
            Standing::Same if !foreign || lsa.remaining_s == 0 => {
                self.acknowledge(now, id, lsa, Some(key));
            }
            Standing::Same | Standing::Unknown | Standing::Newer => {
                self.acknowledge(now, id, lsa, Some(key));
                if self.own.statement(lsa.key.kind).is_none() || self.closing {
                    // Left by a version of this node that states more.
                    self.purge_own(now, lsa);
                    return;
                }
                if lsa.key.kind == LsaKind::LINKS && !self.config.router {
                    self.purge_own(now, lsa);
                    return;
                }
                let reacted = self.go_above(now, lsa);
                if foreign && reacted && lsa.remaining_s > 0 {
                    self.contested(now, lsa.instance, out);
                }
            }
        }
    }

    /// Sees to it that the next statement is above this one. Whether it was made in answer to
    /// one of this start.
    fn go_above(&mut self, now: Instant, lsa: &Lsa) -> bool {
        let Some(statement) = self.own.statement(lsa.key.kind) else {
            return false;
        };
        let reacted = statement.above && lsa.seq >= statement.seq;
        statement.seq = statement.seq.max(lsa.seq);
        statement.forced = true;
        statement.above = false;
        self.request_statement(now, lsa.key.kind);
        reacted
    }

    fn purge_own(&mut self, now: Instant, lsa: &Lsa) {
        if lsa.remaining_s == 0 {
            return;
        }
        if let Some(statement) = self.own.statement(lsa.key.kind) {
            statement.seq = statement.seq.max(lsa.seq);
        } else if self.lsdb.install(now, lsa).is_err() {
            return;
        }
        self.publish(now, lsa.key.kind, 0, Bytes::new());
    }

    fn contested(&mut self, now: Instant, instance: u64, out: &mut Out) {
        let contest = self
            .own
            .contest
            .take()
            .filter(|contest| contest.instance == instance)
            .filter(|contest| now.since(contest.at) < CONTEST_MEMORY);
        let count = contest.map_or(0, |contest| contest.count) + 1;
        if count < CONTESTS {
            let at = now;
            self.own.contest = Some(Contest {
                instance,
                count,
                at,
            });
            return;
        }
        let ours = self.config.instance > instance;
        out.push_back(Output::Event(Event::DuplicateNodeId {
            node: self.config.node.clone(),
            ours,
        }));
        if ours {
            self.yield_id(now, out);
        }
    }
}
