//! What goes wrong, when, for how long, and how it all ends.
//!
//! Every kind of trouble comes at a rate of its own, hits a random victim, and mends itself
//! after a while. [`World::heal`] mends the rest at once.

use crate::event::{Event, NodeIndex, ProcessEvent, Trouble};
use crate::fake::opens_with;
use crate::random::Draw;
use crate::world::{InCustody, World, key_in};
use receptor_mesh::Record;
use receptor_proto::packet::MessageKind;
use receptor_proto::{MessageId, NodeId};

/// How long a process that has said goodbye lets its frames leave.
const GOODBYE_US: u64 = 200_000;

impl World {
    fn rate(&self, trouble: Trouble) -> f64 {
        let options = &self.options;
        match trouble {
            Trouble::Flap => options.flaps,
            Trouble::BlackHole => options.black_holes,
            Trouble::OneWay => options.one_way,
            Trouble::Crash => options.crashes,
            Trouble::PowerCut => options.power_cuts,
            Trouble::Freeze => options.freezes,
            Trouble::Change => options.changes,
            Trouble::Shutdown => options.shutdowns,
            Trouble::DiskOutage => options.disk_outages,
        }
    }

    pub(crate) fn plan_trouble(&mut self, trouble: Trouble) {
        let rate = self.rate(trouble);
        if rate > 0.0 {
            let pause = self.faults.pause(rate);
            self.queue.after(pause, Event::Trouble(trouble));
        }
    }

    /// The trouble's time has come.
    pub(crate) fn trouble(&mut self, trouble: Trouble) {
        if !self.troubled {
            return;
        }
        let outage = self.faults.micros(self.options.outage_ms);
        self.next_fault += 1;
        let fault = self.next_fault;
        match trouble {
            Trouble::Flap | Trouble::BlackHole | Trouble::OneWay => {
                let wire = self.faults.usize(0..self.net.wires.len().max(1));
                let way = self.faults.usize(0..2);
                self.hit_wire(wire, trouble, way, outage, fault);
            }
            Trouble::Crash | Trouble::PowerCut => {
                let node = self.faults.usize(0..self.hosts.len());
                let data = self.faults.chance(self.options.data_loss);
                if self.hosts[node].mesh.is_some() {
                    self.crash(node, matches!(trouble, Trouble::Crash), data);
                    self.queue.after(outage, Event::Start(node));
                }
            }
            Trouble::Freeze => {
                let node = self.faults.usize(0..self.hosts.len());
                let now = self.queue.now();
                let host = &mut self.hosts[node];
                if host.mesh.is_some() && host.frozen.is_none() {
                    host.frozen = Some(fault);
                    self.trace.line(now, || format!("node {node} is frozen"));
                    self.queue.after(outage, Event::Thaw(node, fault));
                }
            }
            Trouble::Change => {
                let node = self.faults.usize(0..self.hosts.len());
                let process = self.hosts[node].life.process;
                self.queue
                    .after(0, Event::Process(node, process, ProcessEvent::Change));
            }
            Trouble::Shutdown => {
                let node = self.faults.usize(0..self.hosts.len());
                if self.hosts[node].frozen.is_none() {
                    self.shut_down(node);
                    self.queue.after(GOODBYE_US + outage, Event::Start(node));
                }
            }
            Trouble::DiskOutage => {
                let node = self.faults.usize(0..self.members().len());
                let now = self.queue.now();
                self.trace
                    .line(now, || format!("the disk of node {node} fails"));
                self.hosts[node].disk_outage = Some(fault);
                self.queue.after(outage, Event::DiskMend(node, fault));
            }
        }
        self.plan_trouble(trouble);
    }

    /// The disk of this node works again.
    pub(crate) fn mend_disk(&mut self, node: NodeIndex) {
        let now = self.queue.now();
        self.hosts[node].disk_outage = None;
        self.trace
            .line(now, || format!("the disk of node {node} works again"));
    }

    /// Damages requests in the store of a node that starts. Gives back origins and works of those
    /// that were for it.
    pub(crate) fn damage(&mut self, node: NodeIndex) -> Vec<(NodeId, MessageId)> {
        if self.options.damage == 0.0 {
            return Vec::new();
        }
        let stored = self.hosts[node].store.messages().cloned();
        let stored: Vec<Record> = stored.collect();
        let mut lost = Vec::new();
        for record in stored {
            let (entry, message, origin) = match record {
                Record::Incoming {
                    entry,
                    origin,
                    message,
                } => (entry, message, Some(origin)),
                Record::Outgoing { entry, message, .. } => (entry, message, None),
                Record::Transit { .. } | Record::Started { .. } | Record::Received { .. } => {
                    continue;
                }
            };
            let request = matches!(message.kind, MessageKind::Request { .. });
            if !request || !self.disks.chance(self.options.damage) {
                continue;
            }
            let (now, work) = (self.queue.now(), message.work);
            self.trace
                .line(now, || format!("{node}: {work} is damaged on the disk"));
            self.hosts[node].store.damage(entry);
            if let Some(letter) = self.ledger.letters.get_mut(&work) {
                letter.damaged(origin.is_none());
            }
            lost.extend(origin.map(|origin| (origin, work)));
        }
        lost
    }

    /// Whether something that the disk of this node is asked for now fails.
    pub(crate) fn disk_fails(&mut self, node: NodeIndex) -> bool {
        let share = self.options.disk_faults;
        self.hosts[node].disk_outage.is_some() || self.troubled && self.disks.chance(share)
    }

    /// Breaks or blocks a wire, and mends it after `outage`, unless it is in trouble already.
    pub(crate) fn hit_wire(
        &mut self,
        wire: usize,
        trouble: Trouble,
        way: usize,
        outage: u64,
        fault: u64,
    ) {
        let now = self.queue.now();
        let Some(state) = self.net.wires.get_mut(wire) else {
            return;
        };
        if state.fault.is_some() || state.cut {
            return;
        }
        state.fault = Some(fault);
        let ends = state.ends;
        self.trace.line(now, || {
            format!("{trouble:?} of the wire {ends:?} for {outage} us")
        });
        match trouble {
            Trouble::BlackHole => state.blocked = [true; 2],
            Trouble::OneWay => state.blocked[way] = true,
            Trouble::Flap
            | Trouble::Crash
            | Trouble::PowerCut
            | Trouble::Freeze
            | Trouble::Change
            | Trouble::Shutdown
            | Trouble::DiskOutage => self.net.break_wire(&mut self.queue, wire),
        }
        self.queue.after(outage, Event::Mend(wire, fault));
    }

    fn shut_down(&mut self, node: NodeIndex) {
        let clock = self.clock(node);
        let now = self.queue.now();
        let Some(mesh) = self.hosts[node].mesh.as_mut() else {
            return;
        };
        self.trace.line(now, || format!("node {node} shuts down"));
        mesh.shutdown(clock);
        self.hosts[node].closing = true;
        self.pump(node);
        let process = self.hosts[node].life.process;
        self.queue.after(
            GOODBYE_US,
            Event::Process(node, process, ProcessEvent::Stop),
        );
    }

    /// A node's plugin comes or goes, or a link's cost changes.
    pub(crate) fn change(&mut self, node: NodeIndex) {
        if self.faults.bool() {
            self.hosts[node].capable = !self.hosts[node].capable;
            self.advertise(node);
            return;
        }
        let clock = self.clock(node);
        let links = self.net.conns_of(node);
        if links.is_empty() {
            return;
        }
        let (conn, side) = links[self.faults.usize(0..links.len())];
        let cost = u32::try_from(self.faults.within(self.options.cost)).unwrap_or(u32::MAX);
        if let Some(wire) = self.net.conn(conn).map(|conn| conn.wire) {
            self.net.wires[wire].cost[side] = cost;
        }
        if let Some(mesh) = self.hosts[node].mesh.as_mut() {
            mesh.set_cost(clock, crate::net::link_id(conn, side), cost);
        }
    }

    /// The end of all trouble: wires carry, machines run, nobody new comes. What was cut stays
    /// cut.
    pub(crate) fn heal(&mut self) {
        self.troubled = false;
        self.net.healed = true;
        let now = self.queue.now();
        self.trace.line(now, || "all trouble ends".to_string());
        for wire in 0..self.net.wires.len() {
            let strange = self.net.wires[wire]
                .ends
                .iter()
                .any(|end| *end >= self.members().len());
            if strange || self.faults.chance(self.options.cut) {
                self.net.break_wire(&mut self.queue, wire);
                self.net.wires[wire].cut = true;
                self.net.wires[wire].fault = None;
            } else if self.net.wires[wire].fault.is_some() {
                self.net.mend_wire(&mut self.queue, wire);
            }
        }
        for _ in 0..self.options.gone.min(self.members().len()) {
            let node = self.faults.usize(0..self.members().len());
            self.go(node);
        }
        self.note_custody();
        for node in 0..self.hosts.len() {
            if self.hosts[node].frozen.is_some() {
                self.thaw(node);
            }
            if self.hosts[node].disk_outage.is_some() {
                self.mend_disk(node);
            }
            if node >= self.members().len() {
                self.crash(node, true, true);
            } else if self.hosts[node].mesh.is_none() {
                self.queue.after(0, Event::Start(node));
            }
        }
    }

    /// A node is killed and never seen again.
    fn go(&mut self, node: NodeIndex) {
        let now = self.queue.now();
        self.trace
            .line(now, || format!("node {node} is gone for good"));
        if self.hosts[node].mesh.is_some() {
            self.crash(node, true, false);
        }
        self.hosts[node].gone = true;
        for wire in 0..self.net.wires.len() {
            if self.net.wires[wire].ends.contains(&node) {
                self.net.break_wire(&mut self.queue, wire);
                self.net.wires[wire].cut = true;
                self.net.wires[wire].fault = None;
            }
        }
    }

    /// Notes the requests that are in custody now: they must be run, whoever has gone.
    fn note_custody(&mut self) {
        for custodian in 0..self.members().len() {
            if self.hosts[custodian].gone {
                continue;
            }
            for record in self.hosts[custodian].store.messages() {
                if let Record::Transit {
                    recipient, message, ..
                } = record
                    && matches!(message.kind, MessageKind::Request { .. })
                    && let Some(&to) = self.by_id.get(recipient)
                {
                    let life = self.hosts[to].life;
                    self.in_custody.push(InCustody {
                        work: message.work,
                        custodian,
                        life,
                        key_lost: opens_with(message).is_some_and(|key| key != key_in(life)),
                    });
                }
            }
        }
    }

    /// Breaks one wire for this long. For measurements.
    pub(crate) fn flap(&mut self, wire: usize, outage: u64) {
        self.next_fault += 1;
        let fault = self.next_fault;
        self.hit_wire(wire, Trouble::Flap, 0, outage, fault);
    }
}
