//! One link: what is known of its other end, what was sent and heard, and how much its writer
//! takes. Owns no decision.

use alloc::string::String;
use core::time::Duration;

use receptor_proto::NodeId;
use receptor_proto::frame::Frame;

use super::Out;
use super::flood::Flood;
use super::lsdb::Index;
use super::queue::Queue;
use crate::{Instant, Limits, LinkCounters, LinkId, LinkInfo, LinkState, Output};

/// How far frames that do not wait for room may overdraw it, in bytes. A peer that asks and does
/// not read the answers fills no more than that; what is left out then can be said later.
const OVERDRAFT: i64 = 64 * 1024;

/// Who is at the other end.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) node: NodeId,
    pub(super) index: Index,
    pub(super) instance: u64,
    pub(super) router: bool,
    pub(super) max_frame: usize,
    /// The shorter of both sides'.
    pub(super) hold: Duration,
    pub(super) cost: u32,
    pub(super) software: String,
}

/// Whether another node with the peer's id is alive is being found out.
#[derive(Debug)]
pub(super) struct Check {
    /// Of the probes and the echo that ask.
    pub(super) nonce: u64,
    /// Something answered for the node that the database knows.
    pub(super) answered: bool,
}

/// Where the adjacency stands.
#[derive(Debug)]
pub(super) enum State {
    /// The other side's hello is awaited.
    Opening,
    Checking(Check),
    Up,
}

/// One link.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) id: LinkId,
    pub(super) info: LinkInfo,
    pub(super) state: State,
    pub(super) peer: Option<Peer>,
    /// The effective cost.
    pub(super) cost: u32,
    pub(super) since: Instant,
    pub(super) heard: Instant,
    sent: Instant,
    /// The probe that is not answered yet.
    pub(super) probe: Option<(u64, Instant)>,
    pub(super) probed: Option<Instant>,
    pub(super) rtt: Option<Duration>,
    pub(super) queue: Queue,
    pub(super) flood: Flood,
    /// When the timer for flooding is set to fire.
    pub(super) flood_timer: Option<Instant>,
    pub(super) counters: LinkCounters,
    /// Bytes that the writer takes; below zero when it was overdrawn.
    budget: i64,
}

impl Link {
    pub(super) fn new(id: LinkId, info: LinkInfo, limits: &Limits, now: Instant) -> Self {
        Self {
            id,
            state: State::Opening,
            peer: None,
            cost: info.cost,
            info,
            since: now,
            heard: now,
            sent: now,
            probe: None,
            probed: None,
            rtt: None,
            queue: Queue::new(limits),
            flood: Flood::default(),
            flood_timer: None,
            counters: LinkCounters::default(),
            budget: 0,
        }
    }

    /// Hands a frame to the driver.
    pub(super) fn transmit(&mut self, now: Instant, frame: Frame, out: &mut Out) {
        let size = i64::try_from(frame.encoded_len()).unwrap_or(i64::MAX);
        self.budget = self.budget.saturating_sub(size);
        self.sent = now;
        self.counters.frames_out += 1;
        let link = self.id;
        out.push_back(Output::Transmit { link, frame });
    }

    pub(super) fn add_room(&mut self, bytes: usize) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.budget = self.budget.saturating_add(bytes);
    }

    /// Whether what can wait may be sent.
    pub(super) fn has_room(&self) -> bool {
        self.budget > 0
    }

    /// Whether what is small and urgent may be sent.
    pub(super) fn takes_urgent(&self) -> bool {
        self.budget > -OVERDRAFT
    }

    pub(super) fn sent(&self) -> Instant {
        self.sent
    }

    pub(super) fn is_up(&self) -> bool {
        matches!(self.state, State::Up)
    }

    pub(super) fn view_state(&self) -> LinkState {
        match self.state {
            State::Opening => LinkState::Opening,
            State::Checking(_) => LinkState::Checking,
            State::Up => LinkState::Up,
        }
    }
}
