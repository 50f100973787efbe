//! The wires between nodes and the connections over them.
//!
//! Owns how frames travel: latency, bandwidth, loss, order, what a broken, swallowing or cut
//! wire does, and how much a connection takes. Knows nodes by number only and never looks into
//! a core: what happens at an end leaves as an event.

use std::collections::VecDeque;

use fastrand::Rng;
use receptor_mesh::LinkId;
use receptor_proto::ErrorCode;

use crate::event::{Carried, ConnIndex, Event, LinkEvent, NodeIndex, Queue};
use crate::options::{Options, Transport};
use crate::random::{Draw, Stream, stream};
use crate::topology::Wire as Plan;

/// How long TCP waits before it sends again what was lost, at least: Linux's minimum.
const RETRANSMIT_US: u64 = 200_000;
/// The first pause before a connection is tried again.
const BACKOFF_FIRST_US: u64 = 100_000;
/// The longest pause before a connection is tried again.
const BACKOFF_LAST_US: u64 = 4_000_000;
/// How long a connection attempt takes to fail where nothing answers.
const CONNECT_TIMEOUT_US: u64 = 1_000_000;

/// A configured link between two nodes.
#[derive(Debug)]
pub(crate) struct Wire {
    pub(crate) ends: [NodeIndex; 2],
    /// Each end's configured cost.
    pub(crate) cost: [u32; 2],
    latency_us: u64,
    /// Connections can be made and last.
    pub(crate) up: bool,
    /// Swallows what each end sends.
    pub(crate) blocked: [bool; 2],
    /// The fault that it is under, if any.
    pub(crate) fault: Option<u64>,
    /// Stays down for ever.
    pub(crate) cut: bool,
    /// Whether the transport proves who is there.
    pub(crate) proves: bool,
    backoff_us: u64,
    dial_planned: bool,
    conns: Vec<ConnIndex>,
}

/// One end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EndState {
    /// The connection is made, its process does not know yet.
    Pending,
    Open,
    Closed,
}

#[derive(Debug)]
enum Sent {
    Frame(Carried, bool),
    Fin(ErrorCode),
}

/// What one end sends to the other.
#[derive(Debug, Default)]
struct Pipe {
    /// When the sender's line is free again.
    free_at: u64,
    /// When the last frame arrives.
    last_arrival: u64,
    /// What a swallowing wire holds back, in order.
    held: VecDeque<Sent>,
    /// Bytes taken off the pipe that the sender was not told of.
    taken: i64,
    /// Bytes that the sender believes it may still send.
    room: i64,
    reset_planned: bool,
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) wire: usize,
    pub(crate) ends: [EndState; 2],
    pipes: [Pipe; 2],
}

/// All wires and connections.
#[derive(Debug)]
pub(crate) struct Net {
    pub(crate) wires: Vec<Wire>,
    conns: Vec<Option<Box<Conn>>>,
    rng: Rng,
    transport: Transport,
    bandwidth: u64,
    socket_buffer: u64,
    loss: f64,
    duplication: f64,
    reorder: f64,
    spikes: f64,
    spike_ms: crate::options::Span,
    /// Once true, wires are faithful.
    pub(crate) healed: bool,
}

/// The link id by which the process at one end knows a connection.
pub(crate) fn link_id(conn: ConnIndex, side: usize) -> LinkId {
    LinkId(conn as u64 * 2 + side as u64)
}

/// The connection and end that a process means.
pub(crate) fn conn_of(link: LinkId) -> (ConnIndex, usize) {
    let number = usize::try_from(link.0).unwrap_or(usize::MAX);
    (number / 2, number % 2)
}

impl Net {
    pub(crate) fn new(options: &Options, plan: &[Plan]) -> Self {
        let mut rng = stream(options.seed, Stream::Network);
        let wires = plan
            .iter()
            .map(|plan| Wire {
                ends: plan.ends,
                cost: plan.cost,
                latency_us: plan.latency_us,
                up: true,
                blocked: [false; 2],
                fault: None,
                cut: false,
                proves: rng.bool(),
                backoff_us: BACKOFF_FIRST_US,
                dial_planned: false,
                conns: Vec::new(),
            })
            .collect();
        Self {
            wires,
            conns: Vec::new(),
            rng,
            transport: options.transport,
            bandwidth: options.bandwidth,
            socket_buffer: options.socket_buffer,
            loss: options.loss,
            duplication: options.duplication,
            reorder: options.reorder,
            spikes: options.spikes,
            spike_ms: options.spike_ms,
            healed: false,
        }
    }

    /// The connection, unless both its ends are closed.
    pub(crate) fn conn(&self, conn: ConnIndex) -> Option<&Conn> {
        self.conns.get(conn)?.as_deref()
    }

    fn conn_mut(&mut self, conn: ConnIndex) -> Option<&mut Conn> {
        self.conns.get_mut(conn)?.as_deref_mut()
    }

    /// The node at one end.
    pub(crate) fn node_at(&self, conn: ConnIndex, side: usize) -> Option<NodeIndex> {
        Some(self.wires[self.conn(conn)?.wire].ends[side])
    }

    /// Connections of a node that are not closed at its end, with that end's side.
    pub(crate) fn conns_of(&self, node: NodeIndex) -> Vec<(ConnIndex, usize)> {
        let mut found = Vec::new();
        for wire in &self.wires {
            for side in 0..2 {
                if wire.ends[side] != node {
                    continue;
                }
                found.extend(
                    wire.conns
                        .iter()
                        .filter(|conn| {
                            self.conn(**conn)
                                .is_some_and(|conn| conn.ends[side] != EndState::Closed)
                        })
                        .map(|conn| (*conn, side)),
                );
            }
        }
        found
    }

    /// Plans the next attempt to connect, unless one is planned.
    pub(crate) fn plan_dial(&mut self, queue: &mut Queue, wire: usize, soon: bool) {
        let state = &mut self.wires[wire];
        if state.dial_planned || state.cut {
            return;
        }
        state.dial_planned = true;
        let pause = if soon {
            state.backoff_us = BACKOFF_FIRST_US;
            self.rng.u64(0..20_000)
        } else {
            let pause = state.backoff_us / 2 + self.rng.u64(0..=state.backoff_us / 2);
            state.backoff_us = (state.backoff_us * 2).min(BACKOFF_LAST_US);
            pause
        };
        queue.after(pause, Event::Dial(wire));
    }

    /// The neighbor is there: the next attempt after a failure is soon again.
    pub(crate) fn reset_backoff(&mut self, conn: ConnIndex) {
        if let Some(wire) = self.conn(conn).map(|conn| conn.wire) {
            self.wires[wire].backoff_us = BACKOFF_FIRST_US;
        }
    }

    /// An attempt to connect, `alive` telling which ends have a process.
    pub(crate) fn dial(&mut self, queue: &mut Queue, wire: usize, alive: [bool; 2]) {
        self.wires[wire].dial_planned = false;
        if self.wires[wire].cut || !alive[0] {
            return;
        }
        let busy = self.wires[wire].conns.iter().any(|conn| {
            self.conn(*conn)
                .is_some_and(|conn| conn.ends[0] != EndState::Closed)
        });
        if busy {
            return;
        }
        let state = &mut self.wires[wire];
        if state.blocked != [false; 2] {
            state.dial_planned = true;
            queue.after(CONNECT_TIMEOUT_US, Event::Dial(wire));
            return;
        }
        if !state.up || !alive[1] {
            self.plan_dial(queue, wire, false);
            return;
        }
        let pipe = || Pipe {
            room: i64::try_from(self.socket_buffer).unwrap_or(i64::MAX),
            ..Pipe::default()
        };
        let conn = self.conns.len();
        self.conns.push(Some(Box::new(Conn {
            wire,
            ends: [EndState::Pending; 2],
            pipes: [pipe(), pipe()],
        })));
        state.conns.push(conn);
        queue.after(state.latency_us, Event::Link(conn, 1, LinkEvent::Up));
        queue.after(2 * state.latency_us, Event::Link(conn, 0, LinkEvent::Up));
    }

    /// The process at this end takes the connection. `None`: it is gone already.
    pub(crate) fn open(&mut self, conn: ConnIndex, side: usize) -> Option<&Wire> {
        let state = self.conn_mut(conn)?;
        if state.ends[side] != EndState::Pending {
            return None;
        }
        state.ends[side] = EndState::Open;
        let wire = state.wire;
        Some(&self.wires[wire])
    }

    /// The process at this end sends. `urgent` frames need no room; `routing` ones suffer what
    /// datagrams suffer. `peer_powered` tells whether the machine at the other end runs.
    pub(crate) fn send(
        &mut self,
        queue: &mut Queue,
        (conn, side): (ConnIndex, usize),
        frame: Carried,
        (urgent, routing): (bool, bool),
        peer_powered: bool,
    ) -> Result<(), String> {
        let size = i64::try_from(frame.size()).unwrap_or(i64::MAX);
        let Some(state) = self.conn_mut(conn) else {
            return Err(format!(
                "a frame on the closed link {:?}",
                link_id(conn, side)
            ));
        };
        if state.ends[side] != EndState::Open {
            return Err(format!(
                "a frame on the closed link {:?}",
                link_id(conn, side)
            ));
        }
        let pipe = &mut state.pipes[side];
        if !urgent && pipe.room <= 0 {
            return Err(format!(
                "a frame of {size} bytes on {:?}, which has no room",
                link_id(conn, side)
            ));
        }
        pipe.room -= size;
        let wire = state.wire;
        if state.ends[1 - side] == EndState::Closed {
            // Nobody takes it. A running machine says so, a dead one does not.
            let plan = &self.wires[wire];
            if peer_powered && plan.up && plan.blocked == [false; 2] {
                let pause = 2 * plan.latency_us;
                if let Some(state) = self.conn_mut(conn)
                    && !std::mem::replace(&mut state.pipes[side].reset_planned, true)
                {
                    let down = LinkEvent::Down(ErrorCode::Transport);
                    queue.after(pause, Event::Link(conn, side, down));
                }
            }
            return Ok(());
        }
        self.carry(queue, conn, side, Sent::Frame(frame, routing));
        Ok(())
    }

    fn carry(&mut self, queue: &mut Queue, conn: ConnIndex, side: usize, sent: Sent) {
        let Some(wire_index) = self.conn(conn).map(|conn| conn.wire) else {
            return;
        };
        let wire = &self.wires[wire_index];
        let latency = wire.latency_us;
        let datagram = self.transport == Transport::Datagram && !self.healed;
        if wire.blocked[side] {
            if datagram && matches!(sent, Sent::Frame(_, true)) {
                return;
            }
            if let Some(state) = self.conn_mut(conn) {
                state.pipes[side].held.push_back(sent);
            }
            return;
        }
        let now = queue.now();
        let mut delay = latency + self.rng.u64(0..=latency / 10);
        if !self.healed && self.rng.chance(self.spikes) {
            delay += self.rng.micros(self.spike_ms);
        }
        let lost = !self.healed && self.rng.chance(self.loss);
        let loose = datagram && matches!(sent, Sent::Frame(_, true));
        let (twice, overtaken) = (
            loose && self.rng.chance(self.duplication),
            loose && self.rng.chance(self.reorder),
        );
        let overtaken_by = self.rng.u64(0..=4 * latency);
        let again = self.rng.u64(0..=4 * latency);
        let bandwidth = self.bandwidth;
        let Some(state) = self.conns[conn].as_deref_mut() else {
            return;
        };
        let pipe = &mut state.pipes[side];
        let size = match &sent {
            Sent::Frame(frame, _) => frame.size(),
            Sent::Fin(_) => 0,
        };
        let mut at = now;
        if let Some(takes) = (size * 1_000_000).checked_div(bandwidth) {
            pipe.free_at = pipe.free_at.max(now) + takes;
            at = pipe.free_at;
        }
        at += delay;
        if lost {
            if loose {
                pipe.taken = pipe.taken.saturating_add_unsigned(size);
                return;
            }
            at += RETRANSMIT_US;
        }
        if overtaken {
            at += overtaken_by;
        } else {
            at = at.max(pipe.last_arrival);
            pipe.last_arrival = at;
        }
        let event = match sent {
            Sent::Frame(frame, _) => {
                if twice {
                    // It takes the sender's room once only.
                    pipe.taken = pipe.taken.saturating_sub_unsigned(size);
                    let copy = LinkEvent::Arrive(frame.clone());
                    queue.at(at + again, Event::Link(conn, 1 - side, copy));
                }
                LinkEvent::Arrive(frame)
            }
            Sent::Fin(code) => LinkEvent::Down(code),
        };
        queue.at(at, Event::Link(conn, 1 - side, event));
    }

    /// A frame has come to this end; whether there is still somebody to take it. The other end
    /// is told of its room now and then, as a writer would.
    pub(crate) fn arrived(
        &mut self,
        queue: &mut Queue,
        conn: ConnIndex,
        side: usize,
        size: u64,
    ) -> bool {
        let notice = i64::try_from(self.socket_buffer / 8).unwrap_or(i64::MAX);
        let Some(state) = self.conn_mut(conn) else {
            return false;
        };
        if state.ends[side] != EndState::Open {
            return false;
        }
        let pipe = &mut state.pipes[1 - side];
        pipe.taken = pipe.taken.saturating_add_unsigned(size);
        if pipe.taken >= notice {
            queue.after(0, Event::Link(conn, 1 - side, LinkEvent::Room));
        }
        true
    }

    /// What the process at this end is to be told of room: 0 for nothing.
    pub(crate) fn take_room(&mut self, conn: ConnIndex, side: usize) -> usize {
        let Some(state) = self.conn_mut(conn) else {
            return 0;
        };
        if state.ends[side] != EndState::Open {
            return 0;
        }
        let pipe = &mut state.pipes[side];
        let taken = pipe.taken.max(0);
        pipe.taken -= taken;
        pipe.room += taken;
        usize::try_from(taken).unwrap_or(usize::MAX)
    }

    /// This end is closed from now on. Whether it was open, so that its process must be told.
    pub(crate) fn close(&mut self, queue: &mut Queue, conn: ConnIndex, side: usize) -> bool {
        let Some(state) = self.conn_mut(conn) else {
            return false;
        };
        let was = std::mem::replace(&mut state.ends[side], EndState::Closed);
        if was == EndState::Closed {
            return false;
        }
        let wire = state.wire;
        if state.ends == [EndState::Closed; 2] {
            self.conns[conn] = None;
            self.wires[wire].conns.retain(|other| *other != conn);
        }
        if side == 0 {
            self.plan_dial(queue, wire, false);
        }
        was == EndState::Open
    }

    /// This end was closed in order; the other learns of it behind all that was sent.
    pub(crate) fn finish(&mut self, queue: &mut Queue, conn: ConnIndex, side: usize) {
        let other_open = self
            .conn(conn)
            .is_some_and(|conn| conn.ends[1 - side] != EndState::Closed);
        if other_open {
            self.carry(queue, conn, side, Sent::Fin(ErrorCode::Transport));
        }
        self.close(queue, conn, side);
    }

    /// The process at this end was killed; its machine tells the other end.
    pub(crate) fn abort(&mut self, queue: &mut Queue, conn: ConnIndex, side: usize) {
        if let Some(state) = self.conn(conn) {
            let wire = &self.wires[state.wire];
            if state.ends[1 - side] != EndState::Closed && wire.up && wire.blocked == [false; 2] {
                let pause = wire.latency_us;
                let down = LinkEvent::Down(ErrorCode::Transport);
                queue.after(pause, Event::Link(conn, 1 - side, down));
            }
        }
        self.close(queue, conn, side);
    }

    /// The wire breaks: connections over it fail at both ends, not at the same moment.
    pub(crate) fn break_wire(&mut self, queue: &mut Queue, wire: usize) {
        self.wires[wire].up = false;
        let reach = 4 * self.wires[wire].latency_us;
        for conn in self.wires[wire].conns.clone() {
            for side in 0..2 {
                let pause = self.rng.u64(0..=reach);
                let down = LinkEvent::Down(ErrorCode::Transport);
                queue.after(pause, Event::Link(conn, side, down));
            }
        }
    }

    /// The wire carries again; what it held back comes late.
    pub(crate) fn mend_wire(&mut self, queue: &mut Queue, wire: usize) {
        let state = &mut self.wires[wire];
        state.fault = None;
        if state.cut {
            return;
        }
        state.up = true;
        state.blocked = [false; 2];
        for conn in self.wires[wire].conns.clone() {
            for side in 0..2 {
                let Some(state) = self.conn_mut(conn) else {
                    continue;
                };
                let held = std::mem::take(&mut state.pipes[side].held);
                for sent in held {
                    self.carry(queue, conn, side, sent);
                }
            }
        }
    }
}
