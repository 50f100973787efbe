//! One run: all nodes, wires, clients and workers, and the loop that drives them.
//!
//! ```text
//!   faults ──▶ ┌─────────┐   Link    ┌───────────────── Host ─────────────────┐
//!   traffic ─▶ │  Queue  │ ────────▶ │ Mesh (the real core) ── Output ──▶ pump │
//!              │ of time │ ◀──────── │ Store · works · clients                 │
//!              └─────────┘  planned  └─────────────────────────────────────────┘
//!                   ▲                                   │ Transmit
//!                   └───────────────── Net ◀────────────┘
//! ```
//!
//! Owns the order of things and the first broken promise, which ends the run. Reads no clock,
//! opens no socket and iterates nothing whose order is not fixed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use fastrand::Rng;
use receptor_mesh::{Config, EntryId, Instant, LinkInfo, LoadToken, Loaded, Mesh, Record};
use receptor_proto::frame::{Frame, HELLO_MAX, MAX_FRAME_FLOOR};
use receptor_proto::lsa::Capability;
use receptor_proto::{ErrorBody, ErrorCode, MessageId, NodeId};

use crate::event::{Carried, Event, LinkEvent, NodeIndex, ProcessEvent, Queue, Trouble};
use crate::fake::{Authority, Fake};
use crate::holder::Held;
use crate::ledger::{Ledger, Life};
use crate::net::{Net, link_id};
use crate::options::{Bounds, Certificates, Codec, Options, Transport};
use crate::random::{Draw, Stream, mix, stream};
use crate::receipts::Receipts;
use crate::stats::Stats;
use crate::store::Store;
use crate::tamper::Traitor;
use crate::topology::{Wire, plan};
use crate::trace::{Lines, Trace};
use crate::worker::Job;

/// How often a node may ask for a timeout that has passed already, in a row.
const IDLE_TURNS_MAX: u32 = 1000;
/// How many outputs one input may cause.
const OUTPUTS_MAX: usize = 200_000;
/// How many zones nodes say that they are in.
pub(crate) const ZONES: usize = 3;

/// A job of a node's disk, done in order.
#[derive(Debug)]
pub(crate) enum DiskJob {
    Persist {
        token: u64,
        failed: bool,
    },
    Fetch {
        entry: EntryId,
        offset: u64,
        length: usize,
        failed: Option<ErrorCode>,
    },
    Append {
        entry: EntryId,
        end: u64,
        failed: bool,
    },
    DeadLetter {
        entry: EntryId,
        failed: bool,
    },
    /// With what was read when it was asked for; `None`: it is read when it is answered.
    Load {
        token: LoadToken,
        asked: LoadAsked,
        read: Option<Loaded>,
        failed: bool,
    },
}

/// What a load is to bring.
#[derive(Debug)]
pub(crate) struct LoadAsked {
    pub(crate) recipient: NodeId,
    pub(crate) range: (EntryId, EntryId),
    pub(crate) most: (usize, usize),
}

/// One machine with one node on it.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) id: NodeId,
    pub(crate) router: bool,
    /// The process; `None` while it does not run.
    pub(crate) mesh: Option<Mesh>,
    pub(crate) powered: bool,
    pub(crate) life: Life,
    /// The last instance used, kept with the data.
    instance: u64,
    clock_back: bool,
    clock_offset: u64,
    pub(crate) frozen: Option<u64>,
    /// Says goodbye.
    pub(crate) closing: bool,
    /// When it last went on.
    pub(crate) thawed_at: u64,
    /// When its process last started.
    pub(crate) started_at: u64,
    deferred: VecDeque<Event>,
    timer: Option<u64>,
    idle_turns: u32,
    pub(crate) store: Store,
    pub(crate) disk: VecDeque<DiskJob>,
    /// Steps written and not confirmed.
    pub(crate) unconfirmed: VecDeque<(u64, Vec<Record>)>,
    pub(crate) disk_free_at: u64,
    pub(crate) jobs: BTreeMap<MessageId, Job>,
    /// What plugins have said of them; stays when plugins outlive the process.
    pub(crate) held: BTreeMap<MessageId, Held>,
    /// Payloads that clients and plugins of this process have stored for the core.
    pub(crate) uploads: BTreeSet<EntryId>,
    /// Its disk neither writes nor reads; which fault that is.
    pub(crate) disk_outage: Option<u64>,
    /// Payloads of which a part could not be written.
    pub(crate) torn: BTreeSet<EntryId>,
    /// Has the plugin that work is for.
    pub(crate) capable: bool,
    /// Never comes back.
    pub(crate) gone: bool,
}

/// A request that lay in a custodian's store when all trouble ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct InCustody {
    pub(crate) work: MessageId,
    pub(crate) custodian: NodeIndex,
    /// The recipient's life then.
    pub(crate) life: Life,
    /// It is sealed with a key that its recipient has lost with its data: none but its origin, which
    /// may not have heard of the loss, can send it.
    pub(crate) key_lost: bool,
}

/// A run under way.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) options: Options,
    pub(crate) queue: Queue,
    /// The nodes, and behind them the clones.
    pub(crate) hosts: Vec<Host>,
    members: usize,
    pub(crate) by_id: BTreeMap<NodeId, NodeIndex>,
    pub(crate) net: Net,
    pub(crate) ledger: Ledger,
    pub(crate) receipts: Receipts,
    pub(crate) stats: Stats,
    /// What the cores of ended processes counted.
    ended: Stats,
    pub(crate) trace: Trace,
    pub(crate) violation: Option<String>,
    pub(crate) faults: Rng,
    pub(crate) traffic: Rng,
    pub(crate) workers: Rng,
    pub(crate) clients: Rng,
    /// Of clients and operators, what they want beside.
    pub(crate) wishes: Rng,
    pub(crate) disks: Rng,
    nodes: Rng,
    pub(crate) hostile: Vec<crate::hostile::Hostile>,
    pub(crate) hostiles: Rng,
    pub(crate) traitors: BTreeMap<NodeIndex, Traitor>,
    authority: Rc<Authority>,
    pub(crate) next_fault: u64,
    pub(crate) next_message: u64,
    pub(crate) echoes: BTreeMap<(NodeIndex, u32, u64), (NodeIndex, u64)>,
    /// What was not as it should be when last looked at.
    pub(crate) last: String,
    /// From when on everything is as it should be.
    pub(crate) calm_since: u64,
    /// The last echo that came to nothing since then.
    pub(crate) echo_failure: Option<String>,
    /// Traffic and faults go on.
    pub(crate) troubled: bool,
    pub(crate) in_custody: Vec<InCustody>,
    scratch: Vec<u8>,
    pub(crate) spf_clock: Option<crate::stats::SpfClock>,
}

impl Host {
    /// A machine that has not started yet; `id` names the node.
    fn new(id: usize, router: bool, options: &Options) -> Self {
        Self {
            id: node_id(id),
            router,
            mesh: None,
            powered: true,
            life: Life {
                data: 0,
                process: 0,
            },
            instance: 0,
            clock_back: false,
            clock_offset: 0,
            frozen: None,
            closing: false,
            thawed_at: 0,
            started_at: 0,
            deferred: VecDeque::new(),
            timer: None,
            idle_turns: 0,
            store: Store::new(options.store),
            disk: VecDeque::new(),
            unconfirmed: VecDeque::new(),
            disk_free_at: 0,
            jobs: BTreeMap::new(),
            held: BTreeMap::new(),
            uploads: BTreeSet::new(),
            disk_outage: None,
            torn: BTreeSet::new(),
            capable: false,
            gone: false,
        }
    }
}

impl World {
    pub(crate) fn new(options: &Options, lines: Lines) -> Self {
        let mut plan = plan(options);
        let mut nodes = stream(options.seed, Stream::Nodes);
        let hosts: Vec<Host> = plan
            .routers
            .iter()
            .enumerate()
            .map(|(index, router)| {
                let mut host = Host::new(index, *router, options);
                host.capable = nodes.chance(0.7);
                host
            })
            .collect();
        let mut hosts = hosts;
        let mut hostiles = stream(options.seed, Stream::Hostile);
        let members = hosts.len();
        for _ in 0..options.clones {
            let (twin, neighbor) = (hostiles.usize(0..members), hostiles.usize(0..members));
            plan.wires.push(Wire {
                ends: [hosts.len(), neighbor],
                cost: [1, 1],
                latency_us: 1000,
            });
            hosts.push(Host::new(twin, true, options));
        }
        let traitors = crate::tamper::plan(options, &mut hostiles, &plan.routers);
        let hostile = crate::hostile::plan(options, &mut hostiles, hosts.len(), &mut plan.wires);
        let mut world = Self {
            by_id: hosts[..members]
                .iter()
                .enumerate()
                .map(|(index, host)| (host.id.clone(), index))
                .collect(),
            net: Net::new(options, &plan.wires),
            members,
            hosts,
            queue: Queue::default(),
            ledger: Ledger::default(),
            receipts: Receipts::default(),
            stats: Stats::default(),
            ended: Stats::default(),
            trace: Trace::new(lines),
            violation: None,
            faults: stream(options.seed, Stream::Faults),
            traffic: stream(options.seed, Stream::Traffic),
            workers: stream(options.seed, Stream::Workers),
            clients: stream(options.seed, Stream::Clients),
            wishes: stream(options.seed, Stream::Wishes),
            disks: stream(options.seed, Stream::Disks),
            nodes,
            hostile,
            hostiles,
            traitors,
            authority: Authority::new(options.seed),
            next_fault: 0,
            next_message: 0,
            echoes: BTreeMap::new(),
            last: String::new(),
            calm_since: u64::MAX,
            echo_failure: None,
            troubled: false,
            in_custody: Vec::new(),
            scratch: Vec::new(),
            spf_clock: None,
            options: options.clone(),
        };
        for node in 0..world.hosts.len() {
            // A clone comes when the node that it is a clone of is known.
            let late = if node < world.members {
                50_000
            } else {
                10_000_000
            };
            let pause = world.nodes.u64(0..late);
            world.queue.at(pause, Event::Start(node));
        }
        world.start_hostile();
        world
    }

    /// The run's options, a node's local time, its life.
    pub(crate) fn clock(&self, node: NodeIndex) -> Instant {
        Instant::from_micros(self.queue.now() + self.hosts[node].clock_offset)
    }

    pub(crate) fn is_core(&self, node: NodeIndex) -> bool {
        node < self.hosts.len()
    }

    /// Notes the first broken promise.
    pub(crate) fn check(&mut self, result: Result<(), String>) {
        if let Err(why) = result
            && self.violation.is_none()
        {
            let now = self.queue.now();
            self.trace.line(now, || format!("BROKEN: {why}"));
            self.violation = Some(why);
        }
    }

    /// As [`Self::check`], for what holds among honest nodes only: a neighbor that forges packets
    /// of others can have works run and answered that nobody asked for.
    pub(crate) fn check_honest(&mut self, result: Result<(), String>) {
        if self.all_themselves() {
            self.check(result);
        }
    }

    /// Lets `until` (microseconds) come, or the first broken promise.
    pub(crate) fn run_until(&mut self, until: u64) {
        while self.violation.is_none() {
            let Some(event) = self.queue.next(until) else {
                return;
            };
            self.stats.events += 1;
            self.handle(event);
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Link(conn, side, event) => {
                let Some(node) = self.net.node_at(conn, side) else {
                    return;
                };
                if !self.is_core(node) {
                    self.hostile_link(node - self.hosts.len(), conn, side, event);
                    return;
                }
                if self.hosts[node].frozen.is_some() {
                    let event = Event::Link(conn, side, event);
                    self.hosts[node].deferred.push_back(event);
                    return;
                }
                self.link(node, conn, side, event);
            }
            Event::Process(node, process, event) => {
                let host = &mut self.hosts[node];
                if host.life.process != process || host.mesh.is_none() {
                    return;
                }
                if host.frozen.is_some() {
                    host.deferred
                        .push_back(Event::Process(node, process, event));
                    return;
                }
                self.process(node, event);
            }
            Event::Dial(wire) => {
                let alive = self.net.wires[wire]
                    .ends
                    .map(|node| self.hosts.get(node).is_none_or(|host| host.mesh.is_some()));
                self.net.dial(&mut self.queue, wire, alive);
            }
            Event::Mend(wire, fault) => {
                if self.net.wires[wire].fault == Some(fault) {
                    self.net.mend_wire(&mut self.queue, wire);
                }
            }
            Event::Start(node) => self.start(node),
            Event::Thaw(node, fault) => {
                if self.hosts[node].frozen == Some(fault) {
                    self.thaw(node);
                }
            }
            Event::DiskMend(node, fault) => {
                if self.hosts[node].disk_outage == Some(fault) {
                    self.mend_disk(node);
                }
            }
            Event::Trouble(trouble) => self.trouble(trouble),
            Event::Traffic => self.plan_message(),
            Event::Echoes => self.plan_echo(),
            Event::Ask(work) => self.ask_again(work),
            Event::Drop(work) => self.drop_somewhere(work),
            Event::Hostile(number) => self.hostile_acts(number),
        }
    }

    pub(crate) fn thaw(&mut self, node: NodeIndex) {
        let now = self.queue.now();
        self.hosts[node].frozen = None;
        self.hosts[node].thawed_at = now;
        self.trace.line(now, || format!("node {node} goes on"));
        while self.hosts[node].frozen.is_none()
            && let Some(event) = self.hosts[node].deferred.pop_front()
        {
            self.handle(event);
        }
    }

    fn config(&mut self, node: NodeIndex) -> Config {
        let wall_ms = 1_700_000_000_000 + self.queue.now() / 1000;
        let host = &mut self.hosts[node];
        let wall_ms = if std::mem::take(&mut host.clock_back) {
            wall_ms - 3_600_000
        } else {
            wall_ms
        };
        host.instance = wall_ms.max(host.instance + 1);
        let seed = mix(self.options.seed ^ mix(node as u64) ^ mix(host.instance));
        let mut config = Config::new(host.id.clone(), host.instance, seed);
        config.router = host.router;
        config.software = "sim".to_string();
        config.hold_time = std::time::Duration::from_millis(self.options.hold_ms);
        if self.options.bounds == Bounds::Tight {
            config.limits.link_credit = 256 << 10;
            config.limits.link_queue = 16 * MAX_FRAME_FLOOR;
            config.limits.flow_window = 192 << 10;
            config.limits.flow_messages = 8;
            config.limits.works = 6;
            config.limits.work_backlog = 128 << 10;
            config.limits.inbox_bytes = 128 << 10;
        }
        config.limits.flow_waiting = self.options.window;
        config.limits.page_messages = self.options.page;
        config.limits.custody_entries_each = self.options.custody;
        // Tight ones meet the limit for all recipients as well.
        config.limits.custody_entries = config.limits.custody_entries.min(2 * self.options.custody);
        config.limits.outgoing_entries = self.options.room;
        config
    }

    fn start(&mut self, node: NodeIndex) {
        let superfluous = node >= self.members && self.net.healed;
        if self.hosts[node].mesh.is_some() || self.hosts[node].gone || superfluous {
            return;
        }
        let config = self.config(node);
        let now = self.queue.now();
        let host = &mut self.hosts[node];
        host.powered = true;
        host.clock_offset = self.nodes.u64(0..1 << 40);
        host.timer = None;
        host.disk_free_at = now;
        host.started_at = now;
        let (instance, life) = (host.instance, host.life);
        self.trace
            .line(now, || format!("node {node} starts: {instance} {life:?}"));
        let lost = self.damage(node);
        let records = self.hosts[node].store.records(now);
        // What was not confirmed may have survived.
        self.receipts.stored(&self.by_id, node, life, &records);
        let clock = self.clock(node);
        let mut mesh = match self.fake(node) {
            None => Mesh::new(config, clock, records),
            Some(fake) => Mesh::secured(config, clock, records, Box::new(fake)),
        };
        for (record, written) in self.hosts[node].store.unfinished(now) {
            if let Record::Incoming {
                entry,
                origin,
                message,
            } = record
            {
                mesh.restore_partial(clock, entry, &origin, message, written);
            }
        }
        for (origin, work) in lost {
            mesh.restore_damaged(clock, &origin, work);
        }
        self.hosts[node].mesh = Some(mesh);
        self.advertise(node);
        self.pump(node);
        self.end_the_lost(node);
        for wire in 0..self.net.wires.len() {
            if self.net.wires[wire].ends[0] == node {
                self.net.plan_dial(&mut self.queue, wire, true);
            }
        }
    }

    /// The keys of a node, which lie beside its store and are lost with it.
    fn fake(&self, node: NodeIndex) -> Option<Fake> {
        let host = &self.hosts[node];
        let fake = Fake::new(&self.authority, &host.id, host.instance);
        let fake = fake.with_key(key_in(host.life));
        match self.options.certificates {
            Certificates::Off => None,
            Certificates::Hidden => Some(fake),
            Certificates::Shown => Some(fake.showing()),
        }
    }

    /// Tells the core of this node what it can do.
    pub(crate) fn advertise(&mut self, node: NodeIndex) {
        let clock = self.clock(node);
        let host = &mut self.hosts[node];
        let Some(mesh) = host.mesh.as_mut() else {
            return;
        };
        let plugins = if host.capable {
            vec![Capability {
                plugin: "sim".to_string(),
                version: "1".to_string(),
                ready: true,
                actions: ["again", "fail", "run"].map(str::to_string).into(),
            }]
        } else {
            Vec::new()
        };
        mesh.set_capabilities(clock, plugins);
        let zone = ("zone".to_string(), zone(node));
        mesh.set_metadata(clock, [zone].into());
    }

    /// The process of this node is gone. `kill`: its machine lives and says so on its
    /// connections. `data`: its data directory is gone too.
    pub(crate) fn crash(&mut self, node: NodeIndex, kill: bool, data: bool) {
        let now = self.queue.now();
        self.trace.line(now, || {
            let how = if kill { "is killed" } else { "loses power" };
            format!(
                "node {node} {how}{}",
                if data { " and its data" } else { "" }
            )
        });
        let rng = &mut self.disks;
        let result = self.hosts[node].store.crash(rng, data);
        self.check(result);
        self.hosts[node].powered = kill;
        self.end_process(node, kill, data);
        for (conn, side) in self.net.conns_of(node) {
            if kill {
                self.net.abort(&mut self.queue, conn, side);
            } else {
                self.net.close(&mut self.queue, conn, side);
            }
        }
    }

    /// The process of this node ends in order; the core has said goodbye.
    pub(crate) fn stop(&mut self, node: NodeIndex) {
        let now = self.queue.now();
        self.trace.line(now, || format!("node {node} stops"));
        let result = self.hosts[node].store.close();
        self.check(result);
        self.end_process(node, true, false);
        for (conn, side) in self.net.conns_of(node) {
            self.net.finish(&mut self.queue, conn, side);
        }
    }

    /// `kill`: its machine lives, and plugins on it may.
    fn end_process(&mut self, node: NodeIndex, kill: bool, data: bool) {
        if let Some(mesh) = &self.hosts[node].mesh {
            let counters = mesh.counters();
            self.ended.add_counters(&counters);
        }
        let forgets = data || self.options.store == crate::options::StoreKind::Memory;
        let back = self.faults.chance(self.options.clock_back);
        let outlived = kill && !forgets && self.faults.chance(self.options.outlive);
        let host = &mut self.hosts[node];
        host.mesh = None;
        host.frozen = None;
        host.closing = false;
        host.deferred.clear();
        host.disk.clear();
        host.unconfirmed.clear();
        host.jobs.clear();
        if !outlived {
            host.held.clear();
        }
        host.uploads.clear();
        host.torn.clear();
        host.disk_outage = None;
        host.life.process += 1;
        if forgets {
            host.life.data += 1;
        }
        if data {
            // Nothing says what the last instance was: the wall clock must be right.
            host.instance = 0;
        } else {
            host.clock_back = back;
        }
    }

    fn link(&mut self, node: NodeIndex, conn: usize, side: usize, event: LinkEvent) {
        let clock = self.clock(node);
        let now = self.queue.now();
        let link = link_id(conn, side);
        match event {
            LinkEvent::Up => {
                let Some(wire) = self.net.open(conn, side) else {
                    return;
                };
                let peer = wire.ends[1 - side];
                let proven = if wire.proves {
                    vec![self.peer_id(peer)]
                } else {
                    Vec::new()
                };
                let wire = &self.net.wires[self.net.conn(conn).map_or(0, |conn| conn.wire)];
                let info = LinkInfo {
                    cost: wire.cost[side],
                    proven,
                    address: String::new(),
                    dialled: side == 0,
                };
                let room = usize::try_from(self.options.socket_buffer).unwrap_or(usize::MAX);
                self.trace.numbers([1, now, link.0]);
                self.trace
                    .line(now, || format!("{node}: {link:?} up, to {peer}"));
                let Some(mesh) = self.hosts[node].mesh.as_mut() else {
                    return;
                };
                mesh.handle_link_up(clock, link, info);
                mesh.handle_room(clock, link, room);
            }
            LinkEvent::Arrive(carried) => {
                if !self
                    .net
                    .arrived(&mut self.queue, conn, side, carried.size())
                {
                    return;
                }
                self.trace.numbers([2, now, link.0, carried.size()]);
                let frame = match carried {
                    Carried::Frame(frame, _) => Ok(*frame),
                    Carried::Bytes(bytes) => {
                        self.trace.bytes(&bytes);
                        decode(bytes)
                    }
                };
                let Some(mesh) = self.hosts[node].mesh.as_mut() else {
                    return;
                };
                match frame {
                    Ok(frame) => {
                        self.trace
                            .line(now, || format!("{node}: {link:?} brings {}", brief(&frame)));
                        mesh.handle_frame(clock, link, frame);
                    }
                    Err(error) => {
                        self.trace
                            .line(now, || format!("{node}: {link:?} brings no frame: {error}"));
                        mesh.handle_bad_frame(clock, link, error);
                    }
                }
            }
            LinkEvent::Room => {
                let room = self.net.take_room(conn, side);
                if room == 0 {
                    return;
                }
                let Some(mesh) = self.hosts[node].mesh.as_mut() else {
                    return;
                };
                mesh.handle_room(clock, link, room);
            }
            LinkEvent::Down(code) => {
                if !self.net.close(&mut self.queue, conn, side) {
                    return;
                }
                self.trace.numbers([3, now, link.0]);
                self.trace.line(now, || format!("{node}: {link:?} down"));
                let Some(mesh) = self.hosts[node].mesh.as_mut() else {
                    return;
                };
                let reason = ErrorBody::new(code, "the connection broke");
                mesh.handle_link_down(clock, link, reason);
            }
        }
        self.pump(node);
    }

    fn process(&mut self, node: NodeIndex, event: ProcessEvent) {
        match event {
            ProcessEvent::Timer => self.timer(node),
            ProcessEvent::Disk => self.disk_done(node),
            ProcessEvent::Work(work) => self.work_step(node, work),
            ProcessEvent::Consume(work, serial) => self.consume(node, work, serial),
            ProcessEvent::Cancel(work) => self.cancel(node, work),
            ProcessEvent::Submit => self.submit(node),
            ProcessEvent::Echo => self.echo(node),
            ProcessEvent::Change => self.change(node),
            ProcessEvent::Stop => {
                self.stop(node);
                return;
            }
        }
        self.pump(node);
    }

    fn timer(&mut self, node: NodeIndex) {
        let now = self.queue.now();
        // A later time: another event will come for it. An earlier one: this one waited in a
        // frozen process.
        if self.hosts[node].timer.is_none_or(|timer| timer > now) {
            return;
        }
        let clock = self.clock(node);
        let host = &mut self.hosts[node];
        host.timer = None;
        let Some(mesh) = host.mesh.as_mut() else {
            return;
        };
        if mesh.poll_timeout().is_none_or(|due| due > clock) {
            return;
        }
        self.trace.numbers([4, now, node as u64]);
        match &mut self.spf_clock {
            None => mesh.handle_timeout(clock),
            Some(spf) => spf.measure(mesh, |mesh| mesh.handle_timeout(clock)),
        }
        host.idle_turns = if mesh.poll_timeout().is_some_and(|due| due <= clock) {
            host.idle_turns + 1
        } else {
            0
        };
        if host.idle_turns > IDLE_TURNS_MAX {
            self.check(Err(format!(
                "node {node} asks for a timeout again and again"
            )));
        }
    }

    /// Does everything that a core wants done, and plans its next timeout.
    pub(crate) fn pump(&mut self, node: NodeIndex) {
        let mut outputs = 0;
        loop {
            let Some(mesh) = self.hosts[node].mesh.as_mut() else {
                return;
            };
            let Some(output) = mesh.poll_output() else {
                break;
            };
            outputs += 1;
            if outputs > OUTPUTS_MAX {
                self.check(Err(format!("node {node} never has done")));
                return;
            }
            self.output(node, output);
        }
        self.stats.outputs_max = self.stats.outputs_max.max(outputs);
        let now = self.queue.now();
        let host = &mut self.hosts[node];
        let Some(due) = host.mesh.as_ref().and_then(Mesh::poll_timeout) else {
            return;
        };
        let due = due.as_micros().saturating_sub(host.clock_offset).max(now);
        if host.timer.is_none_or(|timer| timer > due) {
            host.timer = Some(due);
            let process = host.life.process;
            self.queue
                .at(due, Event::Process(node, process, ProcessEvent::Timer));
        }
    }

    /// Puts a core's frame on its link.
    pub(crate) fn transmit(&mut self, node: NodeIndex, link: receptor_mesh::LinkId, frame: Frame) {
        let now = self.queue.now();
        self.trace
            .line(now, || format!("{node}: {link:?} takes {}", brief(&frame)));
        if let Some(why) = self.over_queue(node, link) {
            self.check(Err(why));
        }
        let size = frame.encoded_len();
        let limit = match frame {
            Frame::Hello(_) => HELLO_MAX,
            Frame::Goodbye(_)
            | Frame::Probe { .. }
            | Frame::ProbeReply { .. }
            | Frame::Digest { .. }
            | Frame::Summary { .. }
            | Frame::Lsas(_)
            | Frame::LsaAck(_)
            | Frame::Credit { .. }
            | Frame::Packet(_)
            | Frame::Cost { .. }
            | Frame::Unknown { .. } => MAX_FRAME_FLOOR,
        };
        if size > limit {
            self.check(Err(format!(
                "node {node} sends a frame of {size} bytes: {}",
                brief(&frame)
            )));
        }
        self.stats.frame(&frame, size as u64);
        if let Frame::Packet(packet) = &frame {
            let life = self.hosts[node].life;
            let revealed = self.authority.reveal(packet);
            match self.receipts.sent(
                &self.by_id,
                node,
                life,
                packet,
                revealed,
                &self.hosts[node].store,
            ) {
                Ok(loose) => {
                    for place in loose {
                        self.check_honest(Err(format!(
                            "node {node} confirms {place:?} before it is durable"
                        )));
                    }
                }
                Err(why) => self.check(Err(why)),
            }
        }
        let patient = matches!(
            frame,
            Frame::Packet(_) | Frame::Lsas(_) | Frame::Summary { .. } | Frame::Digest { .. }
        );
        // The last words of a node that shuts down wait for nothing.
        // What a traitor adds its core knows nothing of.
        let urgent = !patient || self.hosts[node].closing || self.traitors.contains_key(&node);
        // Where no packet is lost, neither is what its sender may send next.
        let routing = matches!(
            frame,
            Frame::Digest { .. }
                | Frame::Summary { .. }
                | Frame::Lsas(_)
                | Frame::LsaAck(_)
                | Frame::Probe { .. }
                | Frame::ProbeReply { .. }
        );
        for frame in self.tamper(node, frame) {
            self.put_on_link(node, link, frame, urgent, routing);
        }
    }

    fn put_on_link(
        &mut self,
        node: NodeIndex,
        link: receptor_mesh::LinkId,
        frame: Frame,
        urgent: bool,
        routing: bool,
    ) {
        let size = frame.encoded_len();
        let carried = match self.options.codec {
            Codec::Off => Carried::Frame(Box::new(frame), size as u64),
            Codec::On => {
                self.scratch.clear();
                frame.encode(&mut self.scratch);
                if self.scratch.len() != size {
                    let why = format!("{} is not {size} bytes", brief(&frame));
                    self.check(Err(why));
                }
                Carried::Bytes(bytes::Bytes::copy_from_slice(&self.scratch))
            }
        };
        self.overhear(&carried);
        let at = crate::net::conn_of(link);
        let peer_powered = self
            .net
            .node_at(at.0, 1 - at.1)
            .is_some_and(|peer| self.hosts.get(peer).is_none_or(|host| host.powered));
        let result = self.net.send(
            &mut self.queue,
            at,
            carried,
            (urgent, routing),
            peer_powered,
        );
        self.check(result.map_err(|why| format!("node {node} sends {why}")));
    }

    fn peer_id(&self, node: NodeIndex) -> NodeId {
        self.hosts
            .get(node)
            .map_or_else(|| node_id(node), |host| host.id.clone())
    }

    /// Whether peers are honest and links faithful, so that a complaint about a peer is a defect.
    pub(crate) fn all_honest(&self) -> bool {
        let nobody_means_harm = self.hostile.is_empty() && self.traitors.is_empty();
        self.all_themselves() && nobody_means_harm && self.options.transport == Transport::Tcp
    }

    /// Whether nobody speaks for another.
    pub(crate) fn all_themselves(&self) -> bool {
        let strangers = self.options.certificates == Certificates::Off && !self.hostile.is_empty();
        !strangers && self.members == self.hosts.len()
    }

    /// The nodes that stay, without clones.
    pub(crate) fn members(&self) -> &[Host] {
        &self.hosts[..self.members]
    }

    /// Begins with faults and traffic.
    pub(crate) fn begin_trouble(&mut self) {
        self.troubled = true;
        for trouble in Trouble::ALL {
            self.plan_trouble(trouble);
        }
        if self.options.rate > 0.0 {
            self.queue.after(0, Event::Traffic);
        }
        if self.options.echoes > 0.0 {
            self.queue.after(0, Event::Echoes);
        }
    }

    /// Brings what the cores count into the totals.
    pub(crate) fn collect_counters(&mut self) {
        self.stats.restart_counters(&self.ended);
        for host in &self.hosts {
            if let Some(mesh) = &host.mesh {
                self.stats.add_counters(&mesh.counters());
            }
        }
    }

    /// The present life of a node.
    pub(crate) fn life(&self, node: NodeIndex) -> Life {
        self.hosts[node].life
    }

    /// A code for what a model of the outside has to say.
    pub(crate) fn disk_error() -> ErrorBody {
        ErrorBody::new(ErrorCode::Internal, "the disk is broken")
    }
}

/// The name of a node.
pub(crate) fn node_id(node: NodeIndex) -> NodeId {
    NodeId::new(&format!("n{node}")).expect("a letter and digits make a node id")
}

/// Which key a node has in this life: it lies beside the data, and is lost with it.
pub(crate) fn key_in(life: Life) -> u32 {
    life.data + 1
}

/// The zone that a node says it is in.
pub(crate) fn zone(node: NodeIndex) -> String {
    format!("z{}", node % ZONES)
}

fn decode(bytes: bytes::Bytes) -> Result<Frame, receptor_proto::wire::DecodeError> {
    let mut input = bytes::BytesMut::from(bytes);
    match Frame::split(&mut input, MAX_FRAME_FLOOR)? {
        Some(frame) => Frame::decode(frame),
        // Only a hostile peer sends half a frame; a real reader would wait for the rest, and
        // here there is none.
        None => Ok(Frame::Unknown { kind: 0 }),
    }
}

/// A frame in a few words.
pub(crate) fn brief(frame: &Frame) -> String {
    let list = |lsas: &mut dyn Iterator<Item = String>| lsas.collect::<Vec<_>>().join(" ");
    match frame {
        Frame::Hello(hello) => format!("hello of {} {}", hello.node, hello.instance),
        Frame::Goodbye(bye) => format!("goodbye {} {}", bye.code, bye.message),
        Frame::Probe { nonce } => format!("probe {nonce}"),
        Frame::ProbeReply { nonce } => format!("probe reply {nonce}"),
        Frame::Digest { reply, buckets } => {
            format!("digest of {} buckets, reply {reply}", buckets.len())
        }
        Frame::Summary {
            bucket, entries, ..
        } => format!("summary of bucket {bucket}, {} entries", entries.len()),
        Frame::Lsas(lsas) => format!(
            "LSAs {}",
            list(
                &mut lsas
                    .iter()
                    .map(|lsa| format!("{}/{}:{}", lsa.key.node, lsa.key.kind.0, lsa.seq))
            )
        ),
        Frame::LsaAck(entries) => format!(
            "LSA acks {}",
            list(&mut entries.iter().map(|entry| format!(
                "{}/{}:{}",
                entry.key.node, entry.key.kind.0, entry.version.seq
            )))
        ),
        Frame::Credit { total } => format!("credit {total}"),
        Frame::Packet(packet) => crate::receipts::brief(packet),
        Frame::Cost { cost } => format!("cost {cost}"),
        Frame::Unknown { kind } => format!("unknown {kind}"),
    }
}
