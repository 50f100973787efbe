//! A few whole nodes, wired by links in memory, under a clock that the test moves.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a test looks for one kind of frame or output among all"
)]

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use core::time::Duration;

use receptor_proto::frame::{Frame, Goodbye, Hello};
use receptor_proto::lsa::{
    CapabilitiesBody, Capability, LinkEntry, LinksBody, Lsa, LsaKey, LsaKind,
};
use receptor_proto::packet::{Body, Packet, Piece, Priority, Receipt, Segment, kind};
use receptor_proto::{ErrorBody, ErrorCode, NodeId};

use crate::{
    Config, EchoAnswer, EchoId, Event, Instant, LinkId, LinkInfo, LinkState, Mesh, Output,
    Reachability,
};

const MS: Duration = Duration::from_millis(1);
/// One way over every link.
const LATENCY: Duration = MS;

fn id(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

/// One end of a wire: which node, by number, and its name for the link.
type End = (usize, LinkId);
type Loses = dyn FnMut(End, &Frame) -> bool;

struct Host {
    mesh: Mesh,
    events: Vec<Event>,
    echoes: BTreeMap<EchoId, Result<EchoAnswer, ErrorBody>>,
    closed: BTreeMap<LinkId, ErrorBody>,
    running: bool,
}

/// Nodes and wires. A wire carries frames in order after [`LATENCY`], unless it is cut, which
/// both ends are told, or swallows everything, which nobody is told.
struct Net {
    now: Instant,
    hosts: Vec<Host>,
    wires: BTreeMap<End, End>,
    swallows: BTreeSet<End>,
    /// Frames that a wire loses: asked with the receiving end.
    loses: Box<Loses>,
    /// Room is given back only to these links' writers when set.
    stuck: BTreeSet<End>,
    flying: BTreeMap<(Instant, u64), (End, Frame)>,
    next: u64,
    /// Every frame that was delivered, for tests that look at order.
    seen: Vec<(End, Frame)>,
    record: bool,
}

impl Net {
    fn new() -> Self {
        Self {
            now: Instant::from_micros(1_000_000),
            hosts: Vec::new(),
            wires: BTreeMap::new(),
            swallows: BTreeSet::new(),
            loses: Box::new(|_, _| false),
            stuck: BTreeSet::new(),
            flying: BTreeMap::new(),
            next: 1,
            seen: Vec::new(),
            record: false,
        }
    }

    fn config(name: &str, instance: u64) -> Config {
        let seed = name
            .bytes()
            .fold(instance, |seed, byte| seed * 31 + u64::from(byte));
        let mut config = Config::new(id(name), instance, seed);
        config.software = "test".to_string();
        config
    }

    fn add(&mut self, name: &str) -> usize {
        self.add_with(Self::config(name, 100))
    }

    fn add_leaf(&mut self, name: &str) -> usize {
        let mut config = Self::config(name, 100);
        config.router = false;
        self.add_with(config)
    }

    fn add_with(&mut self, config: Config) -> usize {
        self.hosts.push(Host {
            mesh: Mesh::new(config, self.now, []),
            events: Vec::new(),
            echoes: BTreeMap::new(),
            closed: BTreeMap::new(),
            running: true,
        });
        self.hosts.len() - 1
    }

    /// The same node again after a crash, with a new instance and nothing else.
    fn restart(&mut self, host: usize, instance: u64) {
        let mut config = self.hosts[host].mesh.config().clone();
        config.instance = instance;
        self.hosts[host].mesh = Mesh::new(config, self.now, []);
        self.hosts[host].running = true;
    }

    /// Ends a process: its links break.
    fn kill(&mut self, host: usize) {
        self.hosts[host].running = false;
        let ends: Vec<End> = self.wires.keys().copied().collect();
        for end in ends.into_iter().filter(|end| end.0 == host) {
            self.cut(end.1);
        }
    }

    fn connect(&mut self, a: usize, b: usize) -> LinkId {
        self.connect_at(a, b, 1)
    }

    /// A link between two nodes; both ends have the same name for it.
    fn connect_at(&mut self, a: usize, b: usize, cost: u32) -> LinkId {
        let link = LinkId(self.next);
        self.next += 1;
        self.wires.insert((a, link), (b, link));
        self.wires.insert((b, link), (a, link));
        for (host, dialled) in [(a, true), (b, false)] {
            self.up(host, link, cost, dialled, Vec::new());
        }
        link
    }

    fn up(&mut self, host: usize, link: LinkId, cost: u32, dialled: bool, proven: Vec<NodeId>) {
        let info = LinkInfo {
            cost,
            proven,
            address: "wire".to_string(),
            dialled,
        };
        let now = self.now;
        self.hosts[host].mesh.handle_link_up(now, link, info);
        self.hosts[host].mesh.handle_room(now, link, 1 << 20);
        self.drain(host);
    }

    /// A link whose other end is the test.
    fn wire_to_test(&mut self, host: usize) -> LinkId {
        let link = LinkId(self.next);
        self.next += 1;
        self.up(host, link, 1, false, Vec::new());
        link
    }

    fn hello(name: &str, instance: u64) -> Hello {
        Hello {
            versions: (1, 1),
            node: id(name),
            instance,
            features: 0,
            max_frame: 1 << 20,
            credit: 4 << 20,
            hold_time_ms: 4000,
            router: true,
            cost: 1,
            software: "hand-made".to_string(),
        }
    }

    fn say(&mut self, host: usize, link: LinkId, frame: Frame) {
        let now = self.now;
        self.hosts[host].mesh.handle_frame(now, link, frame);
        self.drain(host);
    }

    fn cut(&mut self, link: LinkId) {
        let ends: Vec<End> = self.wires.keys().copied().collect();
        for end in ends.into_iter().filter(|end| end.1 == link) {
            self.wires.remove(&end);
            let reason = ErrorBody::new(ErrorCode::Transport, "cut");
            let now = self.now;
            self.hosts[end.0].mesh.handle_link_down(now, link, reason);
            self.drain(end.0);
        }
    }

    fn swallow(&mut self, link: LinkId) {
        let ends = self.wires.keys().copied();
        self.swallows.extend(ends.filter(|end| end.1 == link));
    }

    fn drain(&mut self, host: usize) {
        while let Some(output) = self.hosts[host].mesh.poll_output() {
            let running = self.hosts[host].running;
            match output {
                Output::Transmit { link, frame } => {
                    let end = (host, link);
                    if !self.stuck.contains(&end) && running {
                        let size = frame.encoded_len();
                        let now = self.now;
                        self.hosts[host].mesh.handle_room(now, link, size);
                    }
                    if self.record {
                        self.seen.push((end, frame.clone()));
                    }
                    if let Some(to) = self.wires.get(&end)
                        && !self.swallows.contains(&end)
                        && running
                    {
                        let key = (self.now + LATENCY, self.next);
                        self.next += 1;
                        self.flying.insert(key, (*to, frame));
                    }
                }
                Output::CloseLink { link, reason } => {
                    self.hosts[host].closed.insert(link, reason);
                    let swallowed = self.swallows.contains(&(host, link));
                    if let Some(to) = self.wires.remove(&(host, link))
                        && !swallowed
                    {
                        // The other end reads what is under way and then the end of the stream.
                        let goodbye = Frame::Unknown { kind: 0 };
                        let key = (self.now + LATENCY, self.next);
                        self.next += 1;
                        self.wires.remove(&to);
                        self.flying.insert(key, (to, goodbye));
                    }
                }
                Output::EchoResult { id, result } => {
                    self.hosts[host].echoes.insert(id, result);
                }
                Output::Event(event) => self.hosts[host].events.push(event),
                // Nothing here sends messages.
                output => unreachable!("{output:?}"),
            }
        }
    }

    /// Lets time pass until `end`, or until `done`. Whether it was done.
    fn run_until(&mut self, end: Instant, mut done: impl FnMut(&mut Self) -> bool) -> bool {
        loop {
            if done(self) {
                return true;
            }
            let running = self.hosts.iter().filter(|host| host.running);
            let timer = running.filter_map(|host| host.mesh.poll_timeout()).min();
            let frame = self.flying.keys().next().map(|(at, _)| *at);
            let Some(next) = [timer, frame].into_iter().flatten().min() else {
                self.now = end;
                return false;
            };
            if next > end {
                self.now = end;
                return false;
            }
            self.now = self.now.max(next);
            if frame.is_some_and(|at| at <= self.now) {
                let Some((_, (to, frame))) = self.flying.pop_first() else {
                    continue;
                };
                self.arrive(to, frame);
                continue;
            }
            let now = self.now;
            for host in 0..self.hosts.len() {
                let Host { mesh, running, .. } = &mut self.hosts[host];
                if *running && mesh.poll_timeout().is_some_and(|at| at <= now) {
                    mesh.handle_timeout(now);
                    assert!(
                        mesh.poll_timeout().is_none_or(|at| at > now),
                        "a timer stands still"
                    );
                    self.drain(host);
                }
            }
        }
    }

    fn arrive(&mut self, to: End, frame: Frame) {
        if !self.hosts[to.0].running || (self.loses)(to, &frame) {
            return;
        }
        let now = self.now;
        let mesh = &mut self.hosts[to.0].mesh;
        if frame == (Frame::Unknown { kind: 0 }) {
            let reason = ErrorBody::new(ErrorCode::Transport, "closed by the other end");
            mesh.handle_link_down(now, to.1, reason);
        } else {
            mesh.handle_frame(now, to.1, frame);
        }
        self.drain(to.0);
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        self.run_until(end, |_| false);
    }

    /// Runs until all running nodes that are connected agree and nothing is under way.
    fn settle(&mut self) {
        let end = self.now + Duration::from_secs(30);
        assert!(self.run_until(end, |net| net.quiet()), "not quiet in time");
    }

    fn quiet(&self) -> bool {
        let mut running = self.hosts.iter().filter(|host| host.running);
        self.flying.is_empty() && running.all(|host| host.mesh.is_quiet())
    }

    fn mesh(&mut self, host: usize) -> &mut Mesh {
        &mut self.hosts[host].mesh
    }

    fn reaches(&self, host: usize, node: &str) -> bool {
        self.hosts[host].mesh.reachability(&id(node)) == Reachability::Reachable
    }

    fn echo(&mut self, host: usize, node: &str) -> Result<EchoAnswer, ErrorBody> {
        self.echo_at(host, node, None)
    }

    fn echo_at(
        &mut self,
        host: usize,
        node: &str,
        limit: Option<u8>,
    ) -> Result<EchoAnswer, ErrorBody> {
        let now = self.now;
        let timeout = Duration::from_secs(2);
        let echo = self.hosts[host].mesh.echo(now, &id(node), limit, timeout);
        self.drain(host);
        let end = now + 2 * timeout;
        let done = |net: &mut Self| net.hosts[host].echoes.contains_key(&echo);
        assert!(self.run_until(end, done), "an echo without a result");
        self.hosts[host].echoes.remove(&echo).unwrap()
    }

    fn had(&self, host: usize, wanted: impl Fn(&Event) -> bool) -> bool {
        self.hosts[host].events.iter().any(wanted)
    }

    fn forget_events(&mut self) {
        for host in &mut self.hosts {
            host.events.clear();
        }
    }

    fn closed_code(&self, host: usize, link: LinkId) -> Option<&ErrorCode> {
        self.hosts[host]
            .closed
            .get(&link)
            .map(|reason| &reason.code)
    }

    /// What a node sent over a link.
    fn sent(&self, end: End) -> impl Iterator<Item = &Frame> {
        self.seen
            .iter()
            .filter(move |(from, _)| *from == end)
            .map(|(_, frame)| frame)
    }
}

fn chain(names: &[&str]) -> (Net, Vec<LinkId>) {
    let mut net = Net::new();
    for name in names {
        net.add(name);
    }
    let links = (1..names.len())
        .map(|host| net.connect(host - 1, host))
        .collect();
    (net, links)
}

mod adjacency;
mod flooding;
mod packets;
mod policy;
