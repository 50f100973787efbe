//! A small mesh of real cores in one process, for tests that need more than one node and want to
//! say exactly what happens when: wires without delay that are cut, joined and stalled, disks that
//! keep what was confirmed, and a plugin that answers at once.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use receptor_mesh::{
    Config, EntryId, Instant, LinkId, LinkInfo, LoadToken, Loaded, Mesh, Output, Payload,
    PersistToken, Recipient, Record, Security as _, Submission, WorkRoom,
};
use receptor_proto::frame::Frame;
use receptor_proto::lsa::{Capability, Lsa, LsaSummary};
use receptor_proto::packet::sealed::{Form, Sealed, Split};
use receptor_proto::packet::{Body, Content, Eof, Message, Packet, Piece, kind};
use receptor_proto::{Directive, ErrorBody, ErrorCode, MessageId, NodeId};

use crate::fake::{Authority, Fake};

/// Room of a link's writer.
const ROOM: usize = 1 << 20;

pub(crate) fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

pub(crate) fn id(n: u128) -> MessageId {
    MessageId::from_u128(n)
}

/// What a node has on its disk.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    pub(crate) messages: BTreeMap<EntryId, Record>,
    /// When they were written.
    since: BTreeMap<EntryId, Instant>,
    clock: Instant,
    started: BTreeSet<EntryId>,
    received: BTreeMap<(NodeId, u64), Record>,
    /// How works that ran here ended.
    pub(crate) endings: BTreeMap<MessageId, Eof>,
    /// How works ended that were sent from here: where they ran, their responses, their ends.
    pub(crate) remembered: BTreeMap<MessageId, (NodeId, u64, Eof)>,
    /// Steps that are asked for and not yet done, while it `rests`.
    waiting: VecDeque<Step>,
    pub(crate) rests: bool,
    /// Pages that are asked for and not read yet, while reading `reads_rest`.
    loads: VecDeque<(LoadToken, NodeId, EntryId, EntryId)>,
    pub(crate) reads_rest: bool,
    /// Every write fails.
    pub(crate) broken: bool,
    /// Messages that there is room for; a write that brings more fails.
    pub(crate) most: Option<usize>,
    /// So does every read.
    pub(crate) unreadable: bool,
}

/// What a disk does at once.
#[derive(Debug)]
enum Step {
    Write {
        token: PersistToken,
        records: Vec<Record>,
    },
    Ending(MessageId, Eof),
    Remember(MessageId, (NodeId, u64, Eof)),
    Remove(EntryId),
}

impl Disk {
    /// Does this; what is to be confirmed then.
    fn make(&mut self, step: Step) -> Option<PersistToken> {
        match step {
            Step::Write { token, records } => {
                self.write(records);
                Some(token)
            }
            Step::Ending(work, eof) => {
                self.endings.insert(work, eof);
                None
            }
            Step::Remember(work, end) => {
                self.remembered.insert(work, end);
                None
            }
            Step::Remove(entry) => {
                self.messages.remove(&entry);
                self.started.remove(&entry);
                None
            }
        }
    }

    /// Whether there is no room for all of these.
    fn is_full_for(&self, records: &[Record]) -> bool {
        let messages = records
            .iter()
            .filter(|record| !matches!(record, Record::Started { .. } | Record::Received { .. }));
        self.most
            .is_some_and(|most| self.messages.len() + messages.count() > most)
    }

    /// Does this in its turn, which nobody waits for.
    fn ask(&mut self, step: Step) {
        if self.rests {
            self.waiting.push_back(step);
        } else {
            self.make(step);
        }
    }

    fn write(&mut self, records: Vec<Record>) {
        for record in records {
            match record {
                Record::Outgoing { entry, .. }
                | Record::Incoming { entry, .. }
                | Record::Transit { entry, .. } => {
                    self.since.insert(entry, self.clock);
                    let before = self.messages.insert(entry, record);
                    assert!(before.is_none(), "{entry:?} is written twice");
                }
                Record::Started { entry } => {
                    self.started.insert(entry);
                }
                Record::Received {
                    ref origin, epoch, ..
                } => {
                    self.received.insert((origin.clone(), epoch), record);
                }
            }
        }
    }

    /// Pages that it was asked for and has not read.
    pub(crate) fn unread_pages(&self) -> usize {
        self.loads.len()
    }

    /// Nothing is asked of it that it has not done.
    pub(crate) fn is_idle(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Messages between these entries, with what is left of their lifetimes.
    fn between(&self, first: EntryId, last: EntryId) -> impl Iterator<Item = Record> {
        let messages = self.messages.range(first..=last);
        messages.map(|(entry, record)| {
            let mut record = record.clone();
            if let Record::Outgoing { message, .. }
            | Record::Incoming { message, .. }
            | Record::Transit { message, .. } = &mut record
            {
                let age = self.clock.since(self.since[entry]).as_millis();
                let age = u64::try_from(age).unwrap();
                message.remaining_ms = message.remaining_ms.saturating_sub(age);
            }
            record
        })
    }

    /// What a start reads.
    fn records(&self) -> Vec<Record> {
        let outgoing = |record: &Record| matches!(record, Record::Outgoing { .. });
        let all = self.between(EntryId(0), EntryId(u64::MAX));
        let (outgoing, others): (Vec<_>, Vec<_>) = all.partition(outgoing);
        let started = self
            .started
            .iter()
            .map(|entry| Record::Started { entry: *entry });
        let mut records: Vec<Record> = others;
        records.extend(started);
        records.extend(self.received.values().cloned());
        records.extend(outgoing);
        records
    }

    fn body(&self, entry: EntryId) -> Option<Bytes> {
        match self.messages.get(&entry)? {
            Record::Outgoing { message, .. }
            | Record::Incoming { message, .. }
            | Record::Transit { message, .. } => Some(message.body.clone()),
            Record::Started { .. } | Record::Received { .. } => None,
        }
    }
}

/// One node.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) id: NodeId,
    config: Config,
    /// Which of its keys it uses, in a mesh with certificates.
    pub(crate) key: u32,
    /// Whether it shows payloads to those on their way.
    pub(crate) shows: bool,
    pub(crate) mesh: Option<Mesh>,
    pub(crate) disk: Disk,
    /// Takes works, does not finish them.
    pub(crate) busy: bool,
    /// Takes no works; they are queued.
    pub(crate) full: bool,
    pub(crate) queued: Vec<MessageId>,
    /// Runs again what was cut short.
    pub(crate) idempotent: bool,
    /// Its plugins go on when it is killed.
    pub(crate) outlived: bool,
    /// What they have said that a restart may not know.
    said: BTreeMap<MessageId, Said>,
    /// What clients that do not read have not taken.
    untaken: Vec<(MessageId, u64)>,
    offers: Option<Capability>,
    /// Works given to the plugin, in order.
    pub(crate) runs: Vec<MessageId>,
    pub(crate) accepted: BTreeMap<MessageId, NodeId>,
    /// Last words that clients got.
    pub(crate) ends: BTreeMap<MessageId, Eof>,
    /// Serials that clients got, in order.
    pub(crate) serials: BTreeMap<MessageId, Vec<u64>>,
    /// Messages whose clients do not read.
    pub(crate) unread: BTreeSet<MessageId>,
    /// Works that were told to go on.
    pub(crate) resumed: Vec<MessageId>,
    /// Messages given up, as dead letters.
    pub(crate) letters: Vec<(MessageId, Option<NodeId>, ErrorBody)>,
    /// Packets of others and its own that it sent.
    pub(crate) sent: Vec<Packet>,
    /// Statements of others and its own that it sent.
    pub(crate) stated: Vec<Lsa>,
    /// Statements that it acknowledged.
    pub(crate) acknowledged: Vec<LsaSummary>,
    /// The highest that any link's queue was, in bytes.
    pub(crate) queued_most: usize,
}

/// What a plugin has said of a work, behind what is safe.
#[derive(Debug, Default)]
struct Said {
    /// The last response that is.
    after: u64,
    results: VecDeque<Bytes>,
    /// With its serial.
    end: Option<(Eof, u64)>,
}

#[derive(Debug)]
struct Wire {
    ends: [usize; 2],
    links: Option<[LinkId; 2]>,
    /// Takes no more bytes from this end than it has room for now.
    stalled: [bool; 2],
    /// Loses what is no routing, from this end.
    loses: [bool; 2],
    owed: [usize; 2],
}

/// All of them, and the clock.
#[derive(Debug)]
pub(crate) struct Wired {
    pub(crate) hosts: Vec<Host>,
    wires: Vec<Wire>,
    last_link: u64,
    micros: u64,
    frames: VecDeque<(usize, usize, LinkId, Frame)>,
    authority: Option<Rc<Authority>>,
}

impl Wired {
    /// Nodes that run, without wires.
    pub(crate) fn new(names: &[&str]) -> Self {
        let host = |name: &&str| {
            let id = node(name);
            let mut config = Config::new(id.clone(), 1, 7);
            config.hold_time = Duration::from_secs(1);
            Host {
                id,
                config,
                key: 1,
                shows: false,
                mesh: None,
                disk: Disk::default(),
                busy: false,
                full: false,
                queued: Vec::new(),
                idempotent: false,
                outlived: false,
                said: BTreeMap::new(),
                untaken: Vec::new(),
                offers: None,
                runs: Vec::new(),
                accepted: BTreeMap::new(),
                ends: BTreeMap::new(),
                serials: BTreeMap::new(),
                unread: BTreeSet::new(),
                resumed: Vec::new(),
                letters: Vec::new(),
                sent: Vec::new(),
                stated: Vec::new(),
                acknowledged: Vec::new(),
                queued_most: 0,
            }
        };
        Self {
            hosts: names.iter().map(host).collect(),
            wires: Vec::new(),
            last_link: 0,
            micros: 1_000_000,
            frames: VecDeque::new(),
            authority: None,
        }
    }

    /// The same, with certificates.
    pub(crate) fn secured(names: &[&str]) -> Self {
        Self {
            authority: Some(Authority::new(7)),
            ..Self::new(names)
        }
    }

    pub(crate) fn authority(&self) -> &Rc<Authority> {
        self.authority.as_ref().unwrap()
    }

    /// Nodes in a line with certificates, that know each other.
    pub(crate) fn secured_chain(names: &[&str]) -> Self {
        let mut wired = Self::secured(names);
        for at in 1..names.len() {
            wired.wire(at - 1, at);
        }
        wired.run(2000);
        wired
    }

    /// Nodes in a line, that know each other.
    pub(crate) fn chain(names: &[&str]) -> Self {
        let mut wired = Self::new(names);
        for at in 1..names.len() {
            wired.wire(at - 1, at);
        }
        wired.run(2000);
        wired
    }

    pub(crate) fn at(&self, name: &str) -> usize {
        let at = self.hosts.iter().position(|host| host.id.as_str() == name);
        at.unwrap()
    }

    pub(crate) fn host(&mut self, name: &str) -> &mut Host {
        let at = self.at(name);
        &mut self.hosts[at]
    }

    pub(crate) fn mesh(&mut self, name: &str) -> &mut Mesh {
        self.host(name).mesh.as_mut().unwrap()
    }

    /// Changes a node's configuration before it first starts.
    pub(crate) fn configure(&mut self, name: &str, change: impl FnOnce(&mut Config)) {
        let host = self.host(name);
        assert!(host.mesh.is_none(), "it runs");
        change(&mut host.config);
    }

    pub(crate) fn now(&self) -> Instant {
        Instant::from_micros(self.micros)
    }

    /// Joins two nodes; those that do not run are started.
    pub(crate) fn wire(&mut self, a: usize, b: usize) -> usize {
        for host in [a, b] {
            if self.hosts[host].mesh.is_none() {
                self.start_host(host);
            }
        }
        self.wires.push(Wire {
            ends: [a, b],
            links: None,
            stalled: [false; 2],
            loses: [false; 2],
            owed: [0; 2],
        });
        let wire = self.wires.len() - 1;
        self.join(wire);
        wire
    }

    pub(crate) fn wire_between(&self, a: &str, b: &str) -> usize {
        let (a, b) = (self.at(a), self.at(b));
        let ends = [[a, b], [b, a]];
        let wire = self.wires.iter().position(|wire| ends.contains(&wire.ends));
        wire.unwrap()
    }

    pub(crate) fn join(&mut self, wire: usize) {
        if self.wires[wire].links.is_some() {
            return;
        }
        let ends = self.wires[wire].ends;
        if ends.iter().any(|end| self.hosts[*end].mesh.is_none()) {
            return;
        }
        let links = [LinkId(self.last_link + 1), LinkId(self.last_link + 2)];
        self.last_link += 2;
        self.wires[wire].links = Some(links);
        self.wires[wire].owed = [0; 2];
        let now = self.now();
        for side in 0..2 {
            let info = LinkInfo {
                cost: 1,
                proven: Vec::new(),
                address: String::new(),
                dialled: side == 0,
            };
            let mesh = self.hosts[ends[side]].mesh.as_mut().unwrap();
            mesh.handle_link_up(now, links[side], info);
            mesh.handle_room(now, links[side], ROOM);
        }
        self.settle();
    }

    /// Breaks a wire; both ends notice.
    pub(crate) fn cut(&mut self, wire: usize) {
        let Some(links) = self.wires[wire].links.take() else {
            return;
        };
        self.frames.retain(|(over, ..)| *over != wire);
        self.wires[wire].stalled = [false; 2];
        let ends = self.wires[wire].ends;
        let now = self.now();
        for side in 0..2 {
            if let Some(mesh) = self.hosts[ends[side]].mesh.as_mut() {
                let reason = ErrorBody::new(ErrorCode::Internal, "cut");
                mesh.handle_link_down(now, links[side], reason);
            }
        }
        self.settle();
    }

    /// From now on the far end reads nothing more of what `from` writes, but for what keeps the link up.
    pub(crate) fn stall(&mut self, wire: usize, from: &str, stalled: bool) {
        let side = usize::from(self.wires[wire].ends[1] == self.at(from));
        self.wires[wire].stalled[side] = stalled;
        let owed = std::mem::take(&mut self.wires[wire].owed[side]);
        if let (false, Some(links)) = (stalled, self.wires[wire].links) {
            let now = self.now();
            let end = self.wires[wire].ends[side];
            let mesh = self.hosts[end].mesh.as_mut().unwrap();
            mesh.handle_room(now, links[side], owed);
            self.settle();
        } else {
            self.wires[wire].owed[side] = owed;
        }
    }

    /// A wire loses the packets that `from` sends, and nothing else.
    pub(crate) fn lose_packets(&mut self, wire: usize, from: &str, loses: bool) {
        let side = usize::from(self.wires[wire].ends[1] == self.at(from));
        self.wires[wire].loses[side] = loses;
    }

    /// As `kill -9` does: the peers notice at once.
    pub(crate) fn kill(&mut self, name: &str) {
        let at = self.at(name);
        let host = &mut self.hosts[at];
        host.mesh = None;
        host.disk.waiting.clear();
        host.disk.loads.clear();
        host.queued.clear();
        if !host.outlived {
            host.said.clear();
        }
        host.untaken.clear();
        for wire in 0..self.wires.len() {
            if self.wires[wire].ends.contains(&at) {
                self.cut(wire);
            }
        }
    }

    /// Starts a node again, with all its wires.
    pub(crate) fn start(&mut self, name: &str) {
        let at = self.at(name);
        self.start_host(at);
        for wire in 0..self.wires.len() {
            if self.wires[wire].ends.contains(&at) {
                self.join(wire);
            }
        }
    }

    fn start_host(&mut self, at: usize) {
        let now = self.now();
        let host = &mut self.hosts[at];
        assert!(host.mesh.is_none(), "it runs");
        host.config.instance += 1;
        let records = host.disk.records();
        let config = host.config.clone();
        let mut mesh = match &self.authority {
            None => Mesh::new(config, now, records),
            Some(authority) => {
                let fake = Fake::new(authority, &host.id, config.instance).with_key(host.key);
                let fake = if host.shows { fake.showing() } else { fake };
                Mesh::secured(config, now, records, Box::new(fake))
            }
        };
        if let Some(offers) = &host.offers {
            mesh.set_capabilities(now, vec![offers.clone()]);
        }
        host.mesh = Some(mesh);
        self.settle();
        // Plugins of works that are over are ended.
        let host = &mut self.hosts[at];
        if let Some(mesh) = &host.mesh {
            host.said.retain(|work, _| mesh.work(*work).is_some());
        }
    }

    /// A work that is dispatched once more goes on where its plugin is.
    fn adopt(&mut self, at: usize, work: MessageId) {
        let now = self.now();
        let host = &mut self.hosts[at];
        let (Some(mesh), Some(said)) = (&mut host.mesh, host.said.get_mut(&work)) else {
            return;
        };
        let adopted = mesh.work_adopted(now, work, host.idempotent, said.after);
        let repeats = adopted.unwrap().repeats;
        assert!(repeats <= said.results.len() as u64, "not said: {said:?}");
        let first = said.after + 1;
        for (serial, payload) in (first..).zip(said.results.clone()) {
            let payload = Payload::Inline(payload);
            let taken = mesh.work_data(now, work, Content::Bytes, None, payload);
            assert_eq!(taken.unwrap().serial, Some(serial));
        }
        if let Some((eof, serial)) = &mut said.end {
            let nothing = Payload::Inline(Bytes::new());
            let end = mesh.work_done(now, work, eof.clone(), Content::None, nothing);
            *serial = end.unwrap().unwrap();
        }
    }

    /// Lets a node say that it has a plugin.
    pub(crate) fn offer(&mut self, name: &str, plugin: &str) {
        let now = self.now();
        let host = self.host(name);
        let offer = Capability {
            plugin: plugin.to_owned(),
            version: "1".to_owned(),
            ready: true,
            actions: Vec::new(),
        };
        host.offers = Some(offer.clone());
        if let Some(mesh) = &mut host.mesh {
            mesh.set_capabilities(now, vec![offer]);
        }
        self.settle();
    }

    /// What a client asks for, with answers, for an hour.
    pub(crate) fn submission(work: u128, recipient: Recipient, payload: Bytes) -> Submission {
        Submission {
            id: id(work),
            recipient,
            directive: Directive::new("p:run").unwrap(),
            content: Content::Bytes,
            payload: Payload::Inline(payload),
            volatile: false,
            respond: true,
            expiry: Duration::from_secs(3600),
            repeatable: false,
        }
    }

    pub(crate) fn submit(&mut self, from: &str, submission: Submission) {
        let now = self.now();
        self.mesh(from).submit(now, submission).unwrap();
        self.settle();
    }

    /// An empty message, durable, with answers.
    pub(crate) fn send(&mut self, from: &str, to: &str, work: u128) {
        let recipient = Recipient::Node(node(to));
        self.submit(from, Self::submission(work, recipient, Bytes::new()));
    }

    /// A packet comes to a node over a wire, whoever made it.
    pub(crate) fn inject(&mut self, wire: usize, to: &str, source: &str, body: &Body) {
        let packet = Packet::new(node(source), node(to), 30, body);
        self.inject_frame(wire, to, Frame::Packet(packet));
    }

    /// What a node with a certificate can make of a body for another.
    pub(crate) fn sealed_by(&mut self, from: &str, to: &str, body: &Body) -> Packet {
        let (from, to) = (node(from), node(to));
        let mut fake = Fake::new(self.authority(), &from, u64::MAX);
        let theirs = Fake::new(self.authority(), &to, u64::MAX).identity();
        fake.learn(self.now(), &to, &theirs).unwrap();
        let split = Split::body(body).unwrap();
        let bound = Sealed::bound(split.kind, Form::Hidden, &split.clear, &[]);
        let mut out = bound[1..].to_vec();
        let now = self.now();
        let plain = [&split.hidden[..], &split.rest[..]];
        fake.seal(now, &to, &bound, &plain, &mut out).unwrap();
        Packet {
            kind: kind::SEALED | split.kind,
            body: out.into(),
            ..Packet::new(from, to, 30, body)
        }
    }

    /// A frame comes to a node over a wire, whoever made it.
    pub(crate) fn inject_frame(&mut self, wire: usize, to: &str, frame: Frame) {
        let at = self.at(to);
        let side = usize::from(self.wires[wire].ends[1] == at);
        let link = self.wires[wire].links.unwrap()[side];
        let now = self.now();
        let mesh = self.hosts[at].mesh.as_mut().unwrap();
        mesh.handle_frame(now, link, frame);
        self.settle();
    }

    /// Messages of others that a node keeps.
    pub(crate) fn custody(&self, name: &str) -> usize {
        let mesh = self.hosts[self.at(name)].mesh.as_ref();
        mesh.map_or(0, |mesh| mesh.in_custody().0)
    }

    /// Lets time pass, in milliseconds.
    pub(crate) fn run(&mut self, ms: u64) {
        let end = self.micros + ms * 1000;
        loop {
            let due = self
                .hosts
                .iter()
                .filter_map(|host| host.mesh.as_ref()?.poll_timeout());
            let Some(next) = due.min().filter(|next| next.as_micros() <= end) else {
                break;
            };
            self.advance(next.as_micros());
            let now = self.now();
            for at in 0..self.hosts.len() {
                if let Some(mesh) = &mut self.hosts[at].mesh
                    && mesh.poll_timeout().is_some_and(|due| due <= now)
                {
                    mesh.handle_timeout(now);
                }
            }
            self.settle();
        }
        self.advance(end);
    }

    fn advance(&mut self, micros: u64) {
        self.micros = self.micros.max(micros);
        let now = self.now();
        for host in &mut self.hosts {
            host.disk.clock = now;
        }
    }

    /// Runs until something holds; gives back how long that took, in milliseconds.
    pub(crate) fn run_until(
        &mut self,
        most_ms: u64,
        mut holds: impl FnMut(&mut Self) -> bool,
    ) -> u64 {
        let begin = self.micros;
        while !holds(self) {
            let passed = (self.micros - begin) / 1000;
            assert!(passed < most_ms, "not within {most_ms} ms");
            self.run(1);
        }
        (self.micros - begin) / 1000
    }

    pub(crate) fn start_if_down(&mut self, name: &str) {
        if self.host(name).mesh.is_none() {
            self.start(name);
        }
    }

    /// A disk that rests does the first write that it was asked for.
    pub(crate) fn wake_one(&mut self, name: &str) {
        let now = self.now();
        let host = self.host(name);
        let token = loop {
            let step = host.disk.waiting.pop_front().unwrap();
            if let Some(token) = host.disk.make(step) {
                break token;
            }
        };
        host.mesh.as_mut().unwrap().handle_persisted(now, token);
        self.settle();
    }

    /// A disk that rests fails in every write that it was asked for.
    pub(crate) fn fail_waiting(&mut self, name: &str) {
        let now = self.now();
        while let Some(step) = self.host(name).disk.waiting.pop_front() {
            if let Step::Write { token, .. } = step {
                let error = ErrorBody::new(ErrorCode::Internal, "the disk is broken");
                self.mesh(name).handle_persist_failed(now, token, error);
            } else {
                self.host(name).disk.make(step);
            }
        }
        self.settle();
    }

    /// A disk that rests does what it was asked for, and the node is killed before it hears of it.
    pub(crate) fn write_and_kill(&mut self, name: &str) {
        let disk = &mut self.host(name).disk;
        disk.rests = false;
        while let Some(step) = disk.waiting.pop_front() {
            disk.make(step);
        }
        self.kill(name);
    }

    /// A disk that rested does what it was asked for.
    pub(crate) fn wake_disk(&mut self, name: &str) {
        let at = self.at(name);
        self.hosts[at].disk.rests = false;
        let now = self.now();
        while let Some(step) = self.hosts[at].disk.waiting.pop_front() {
            let token = self.hosts[at].disk.make(step);
            if let (Some(mesh), Some(token)) = (&mut self.hosts[at].mesh, token) {
                mesh.handle_persisted(now, token);
            }
        }
        self.settle();
    }

    /// Does everything that everybody wants done now.
    pub(crate) fn settle(&mut self) {
        loop {
            let mut moved = false;
            for at in 0..self.hosts.len() {
                while let Some(output) = self.hosts[at].mesh.as_mut().and_then(Mesh::poll_output) {
                    moved = true;
                    self.output(at, output);
                }
            }
            while let Some((_, at, link, frame)) = self.frames.pop_front() {
                moved = true;
                let now = self.now();
                if let Some(mesh) = &mut self.hosts[at].mesh {
                    mesh.handle_frame(now, link, frame);
                }
            }
            if !moved {
                return;
            }
        }
    }

    fn output(&mut self, at: usize, output: Output) {
        let now = self.now();
        match output {
            Output::Transmit { link, frame } => self.transmit(at, link, frame),
            Output::CloseLink { link, .. } => {
                let ours = |wire: &Wire| wire.links.is_some_and(|links| links.contains(&link));
                if let Some(wire) = self.wires.iter().position(ours) {
                    let links = self.wires[wire].links.take().unwrap();
                    let side = usize::from(links[0] == link);
                    let peer = self.wires[wire].ends[side];
                    let reason = ErrorBody::new(ErrorCode::Internal, "closed");
                    if let Some(mesh) = &mut self.hosts[peer].mesh {
                        mesh.handle_link_down(now, links[side], reason);
                    }
                }
            }
            Output::Persist { token, records, .. } => {
                let host = &mut self.hosts[at];
                let fails = host.disk.broken || host.disk.is_full_for(&records);
                let step = Step::Write { token, records };
                if host.disk.rests {
                    host.disk.waiting.push_back(step);
                    return;
                }
                let mesh = host.mesh.as_mut().unwrap();
                if fails {
                    let error = ErrorBody::new(ErrorCode::Internal, "the disk is broken");
                    mesh.handle_persist_failed(now, token, error);
                    return;
                }
                host.disk.make(step);
                mesh.handle_persisted(now, token);
            }
            Output::Remove { entry } => self.hosts[at].disk.ask(Step::Remove(entry)),
            Output::Fetch {
                entry,
                offset,
                length,
            } => {
                let host = &mut self.hosts[at];
                let body = host.disk.body(entry).filter(|_| !host.disk.unreadable);
                let part = body.map(|body| {
                    let from = usize::try_from(offset).unwrap().min(body.len());
                    body.slice(from..(from + length).min(body.len()))
                });
                let lost = || ErrorBody::new(ErrorCode::Internal, "cannot be read");
                let piece = part.map(|bytes| Piece { sum: 0, bytes });
                let mesh = host.mesh.as_mut().unwrap();
                mesh.handle_fetched(now, entry, offset, piece.ok_or_else(lost));
            }
            Output::Load {
                token,
                recipient,
                first,
                last,
                ..
            } => {
                let disk = &mut self.hosts[at].disk;
                disk.loads.push_back((token, recipient, first, last));
                if !disk.reads_rest {
                    self.load(at);
                }
            }
            Output::Accepted { work, recipient } => {
                let before = self.hosts[at].accepted.insert(work, recipient);
                assert!(before.is_none(), "{work} is accepted twice");
            }
            Output::Readdressed { work, recipient } => {
                self.hosts[at].accepted.insert(work, recipient);
            }
            Output::Dispatch { work, attempt, .. } => {
                let host = &mut self.hosts[at];
                if attempt > 1 && host.said.contains_key(&work) {
                    self.adopt(at, work);
                } else if attempt > 1 && !host.idempotent {
                    let error = ErrorBody::new(ErrorCode::Interrupted, "interrupted");
                    self.end(at, work, Some(error));
                } else if host.full {
                    host.queued.push(work);
                } else {
                    let mesh = host.mesh.as_mut().unwrap();
                    mesh.work_started(now, work, host.idempotent);
                }
            }
            Output::Start { work } => {
                self.hosts[at].runs.push(work);
                self.hosts[at].said.insert(work, Said::default());
                if !self.hosts[at].busy {
                    self.end(at, work, None);
                }
            }
            Output::CancelWork { work, .. } => {
                self.hosts[at].queued.retain(|queued| *queued != work);
                let error = ErrorBody::new(ErrorCode::Cancelled, "cancelled");
                self.end(at, work, Some(error));
            }
            Output::Deliver {
                work,
                sender,
                serial,
                eof,
                ..
            } => {
                let host = &mut self.hosts[at];
                if let Some(eof) = eof {
                    let end = (sender, serial, eof.clone());
                    host.disk.ask(Step::Remember(work, end));
                    let before = host.ends.insert(work, eof.clone());
                    let same = before.as_ref().is_none_or(|before| *before == eof);
                    assert!(same, "{work} ended with {before:?}, and now with {eof:?}");
                }
                host.serials.entry(work).or_default().push(serial);
                if host.unread.contains(&work) {
                    host.untaken.push((work, serial));
                } else {
                    host.mesh.as_mut().unwrap().consumed(now, work, serial);
                }
            }
            Output::Ended { work, eof, .. } => self.hosts[at].disk.ask(Step::Ending(work, eof)),
            Output::AskEnd {
                work,
                recipient,
                place,
            } => {
                let host = &mut self.hosts[at];
                // It is remembered as soon as it is asked for.
                let waiting = host.disk.waiting.iter().rev().find_map(|step| match step {
                    Step::Remember(id, end) if *id == work => Some(end),
                    Step::Remember(..)
                    | Step::Write { .. }
                    | Step::Ending(..)
                    | Step::Remove(_) => None,
                });
                let end = waiting.or_else(|| host.disk.remembered.get(&work)).cloned();
                let end = end.filter(|(node, ..)| *node == recipient);
                let end = end.map(|(_, responses, eof)| (responses, eof));
                let mesh = host.mesh.as_mut().unwrap();
                mesh.handle_end(now, &recipient, place, end);
            }
            Output::DeadLetter {
                entry,
                message,
                origin,
                reason,
                ..
            } => {
                let host = &mut self.hosts[at];
                host.letters.push((message.work, origin, reason));
                host.mesh
                    .as_mut()
                    .unwrap()
                    .handle_dead_letter(now, entry, Ok(()));
            }
            Output::Begin { .. } | Output::Append { .. } => panic!("no large payloads here"),
            Output::NotAccepted { work, reason } => {
                panic!("{work}: every write succeeds: {reason}")
            }
            Output::ResumeWork { work } => self.hosts[at].resumed.push(work),
            Output::ResponsesSafe { work, serial } => {
                let host = &mut self.hosts[at];
                if let Some(said) = host.said.get_mut(&work) {
                    while said.after < serial && said.results.pop_front().is_some() {
                        said.after += 1;
                    }
                    if said.end.as_ref().is_some_and(|(_, end)| *end <= serial) {
                        host.said.remove(&work);
                    }
                }
            }
            Output::EchoResult { .. } | Output::Event(_) => {}
        }
    }

    /// Reads the pages that are asked for.
    fn load(&mut self, at: usize) {
        let now = self.now();
        let host = &mut self.hosts[at];
        while let Some((token, recipient, first, last)) = host.disk.loads.pop_front() {
            let wanted = |record: &Record| matches!(record, Record::Outgoing { recipient: to, .. } if *to == recipient);
            let records = host.disk.between(first, last).filter(wanted).collect();
            let loaded = Loaded {
                records,
                damaged: Vec::new(),
                next: None,
            };
            let mesh = host.mesh.as_mut().unwrap();
            mesh.handle_loaded(now, token, Ok(loaded));
        }
    }

    /// A disk whose reading rested reads what it was asked for.
    pub(crate) fn wake_reads(&mut self, name: &str) {
        let at = self.at(name);
        self.hosts[at].disk.reads_rest = false;
        self.load(at);
        self.settle();
    }

    /// A work of this node that is busy says something. True: it is to wait.
    pub(crate) fn respond(&mut self, name: &str, work: MessageId, payload: Bytes) -> bool {
        let now = self.now();
        let host = self.host(name);
        if let Some(said) = host.said.get_mut(&work) {
            said.results.push_back(payload.clone());
        }
        let payload = Payload::Inline(payload);
        let mesh = host.mesh.as_mut().unwrap();
        let taken = mesh.work_data(now, work, Content::Bytes, None, payload);
        self.settle();
        taken.unwrap().room == WorkRoom::Wait
    }

    /// A work of this node that is busy ends well.
    pub(crate) fn finish(&mut self, name: &str, work: MessageId) {
        self.end(self.at(name), work, None);
        self.settle();
    }

    /// A plugin that was full takes what is queued for it.
    pub(crate) fn take_queued(&mut self, name: &str) {
        let now = self.now();
        let host = self.host(name);
        host.full = false;
        for work in std::mem::take(&mut host.queued) {
            let mesh = host.mesh.as_mut().unwrap();
            mesh.work_started(now, work, host.idempotent);
        }
        self.settle();
    }

    /// A plugin that was busy has done what it runs.
    pub(crate) fn finish_all(&mut self, name: &str) {
        let at = self.at(name);
        self.hosts[at].busy = false;
        let Some(mesh) = &self.hosts[at].mesh else {
            return;
        };
        let (works, _) = mesh.works(usize::MAX);
        for view in works.iter().filter(|view| view.running && !view.ended) {
            self.end(at, view.work, None);
        }
        self.settle();
    }

    /// Somebody at the worker ends a work there.
    pub(crate) fn cancel_there(&mut self, name: &str, work: MessageId) {
        let at = self.at(name);
        self.hosts[at].queued.retain(|queued| *queued != work);
        let error = ErrorBody::new(ErrorCode::Cancelled, "cancelled");
        self.end(at, work, Some(error));
        self.settle();
    }

    /// Clients that were slow take what there is.
    pub(crate) fn read(&mut self, name: &str) {
        let now = self.now();
        let host = self.host(name);
        host.unread.clear();
        for (work, serial) in std::mem::take(&mut host.untaken) {
            host.mesh.as_mut().unwrap().consumed(now, work, serial);
        }
        self.settle();
    }

    fn end(&mut self, at: usize, work: MessageId, error: Option<ErrorBody>) {
        let now = self.now();
        let eof = Eof {
            code: u32::from(error.is_some()),
            error,
        };
        let nothing = Payload::Inline(Bytes::new());
        let host = &mut self.hosts[at];
        let mesh = host.mesh.as_mut().unwrap();
        // One that was cancelled while it was busy may have ended.
        let end = mesh.work_done(now, work, eof.clone(), Content::None, nothing);
        if let (Ok(Some(serial)), Some(said)) = (end, host.said.get_mut(&work)) {
            said.end = Some((eof, serial));
        }
    }

    fn transmit(&mut self, at: usize, link: LinkId, frame: Frame) {
        let now = self.now();
        let over = |wire: &Wire| wire.links.is_some_and(|links| links.contains(&link));
        let Some(wire) = self.wires.iter().position(over) else {
            return;
        };
        if let Frame::Packet(packet) = &frame {
            self.hosts[at].sent.push(packet.clone());
        }
        if let Frame::Lsas(lsas) = &frame {
            self.hosts[at].stated.extend_from_slice(lsas);
        }
        if let Frame::LsaAck(summaries) = &frame {
            self.hosts[at].acknowledged.extend_from_slice(summaries);
        }
        let links = self.wires[wire].links.unwrap();
        let side = usize::from(links[1] == link);
        let size = frame.encoded_len();
        let host = &mut self.hosts[at];
        let mesh = host.mesh.as_mut().unwrap();
        let queued: usize = mesh.queued(link).iter().sum();
        host.queued_most = host.queued_most.max(queued);
        if self.wires[wire].stalled[side] {
            self.wires[wire].owed[side] += size;
        } else {
            mesh.handle_room(now, link, size);
        }
        if self.wires[wire].loses[side] && matches!(frame, Frame::Packet(_)) {
            return;
        }
        let peer = self.wires[wire].ends[1 - side];
        self.frames.push_back((wire, peer, links[1 - side], frame));
    }
}

/// Messages among packets, by what they ask for.
pub(crate) fn messages(packets: &[Packet]) -> Vec<(NodeId, Message)> {
    let message = |packet: &Packet| match Body::decode(packet.kind, packet.body.clone()).ok()? {
        Body::Message(message) | Body::Kept { message, .. } | Body::Entrusted { message, .. } => {
            Some((packet.destination.clone(), message))
        }
        Body::Echo { .. }
        | Body::EchoReply(_)
        | Body::Undeliverable(_)
        | Body::Segment(_)
        | Body::Receipt(_)
        | Body::Custody(_)
        | Body::Inquiry(_)
        | Body::Unknown { .. } => None,
    };
    packets.iter().filter_map(message).collect()
}
