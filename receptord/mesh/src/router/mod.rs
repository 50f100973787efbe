//! The routing half: links and adjacencies, the link-state database, routes, and packets on
//! their way. Knows nothing of messages and works.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use receptor_proto::frame::Frame;
use receptor_proto::lsa::Capability;
use receptor_proto::packet::{ActiveWork, Body, Packet, Priority};
use receptor_proto::wire::DecodeError;
use receptor_proto::{Directive, ErrorBody, ErrorCode, NodeId};

use crate::wiring::Net;
use crate::{
    Config, Counters, EchoId, Instant, LinkId, LinkInfo, LinkView, NodeView, Output, Reachability,
    RouteView,
};

type Out = VecDeque<Output>;

/// A packet that has arrived.
#[derive(Debug)]
pub(crate) enum Local {
    /// For [`crate::delivery::Delivery::handle_packet`].
    Deliver(NodeId, Body),
    /// To be answered with [`Router::answer_echo`].
    Echo(EchoRequest),
}

/// An echo that asks this node.
#[derive(Debug)]
pub(crate) struct EchoRequest {
    source: NodeId,
    nonce: u64,
    hops: u8,
    arrived: bool,
}

/// Everything about links, routes and packets.
#[derive(Debug)]
pub(crate) struct Router {
    config: Config,
    counters: Counters,
    next_echo: u64,
}

impl Router {
    pub(crate) fn new(config: Config, _now: Instant) -> Self {
        Self {
            config,
            counters: Counters::default(),
            next_echo: 0,
        }
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        None
    }

    pub(crate) fn handle_timeout(&mut self, _now: Instant, _out: &mut Out) {}

    pub(crate) fn handle_link_up(
        &mut self,
        _now: Instant,
        _link: LinkId,
        _info: LinkInfo,
        _out: &mut Out,
    ) {
    }

    pub(crate) fn handle_frame(
        &mut self,
        _now: Instant,
        _link: LinkId,
        _frame: Frame,
        _out: &mut Out,
    ) {
    }

    pub(crate) fn handle_bad_frame(
        &mut self,
        _now: Instant,
        _link: LinkId,
        _error: &DecodeError,
        _out: &mut Out,
    ) {
    }

    pub(crate) fn handle_link_down(
        &mut self,
        _now: Instant,
        _link: LinkId,
        _reason: ErrorBody,
        _out: &mut Out,
    ) {
    }

    pub(crate) fn handle_room(&mut self, _link: LinkId, _bytes: usize) {}

    pub(crate) fn set_cost(&mut self, _now: Instant, _link: LinkId, _cost: u32, _out: &mut Out) {}

    pub(crate) fn close_link(
        &mut self,
        _now: Instant,
        _link: LinkId,
        _reason: ErrorBody,
        _out: &mut Out,
    ) {
    }

    pub(crate) fn shutdown(&mut self, _now: Instant, _out: &mut Out) {}

    pub(crate) fn set_capabilities(&mut self, _now: Instant, _plugins: Vec<Capability>) {}

    pub(crate) fn set_metadata(&mut self, _now: Instant, _metadata: BTreeMap<String, String>) {}

    pub(crate) fn echo(
        &mut self,
        _now: Instant,
        node: &NodeId,
        _hop_limit: Option<u8>,
        _timeout: Duration,
        out: &mut Out,
    ) -> EchoId {
        let id = EchoId(self.next_echo);
        self.next_echo += 1;
        out.push_back(Output::EchoResult {
            id,
            result: Err(ErrorBody::new(
                ErrorCode::NoSuchNode,
                alloc::format!("no node {node} is known"),
            )),
        });
        id
    }

    pub(crate) fn nodes(&self) -> Vec<NodeView> {
        Vec::new()
    }

    pub(crate) fn links(&self) -> Vec<LinkView> {
        Vec::new()
    }

    pub(crate) fn route(&self, node: &NodeId) -> Option<RouteView> {
        (*node == self.config.node).then(|| RouteView {
            cost: 0,
            hops: 0,
            next_hop: node.clone(),
            link: None,
        })
    }

    pub(crate) fn counters(&self) -> Counters {
        self.counters
    }

    pub(crate) fn lsdb_digest(&self) -> u64 {
        0
    }

    pub(crate) fn lsdb_len(&self) -> usize {
        0
    }

    pub(crate) fn queued(&self, _link: LinkId) -> [usize; Priority::ALL.len()] {
        [0; Priority::ALL.len()]
    }

    /// The next packet for this node, echoes of its own and bad bodies already dealt with.
    pub(crate) fn next_local(&mut self, _now: Instant, _out: &mut Out) -> Option<Local> {
        None
    }

    /// Answers an echo that [`Self::next_local`] gave out.
    pub(crate) fn answer_echo(
        &mut self,
        _now: Instant,
        echo: EchoRequest,
        _active: u64,
        _works: Vec<ActiveWork>,
    ) {
        let EchoRequest {
            source: _,
            nonce: _,
            hops: _,
            arrived: _,
        } = echo;
    }

    /// Brings statements and routes up to date, as far as it is time for it. Whether a route or
    /// the link of one changed.
    pub(crate) fn update(&mut self, _now: Instant, _out: &mut Out) -> bool {
        false
    }

    /// Moves what waits onto links with room. Whether a queue that was full has room again.
    pub(crate) fn pump(&mut self, _now: Instant, _out: &mut Out) -> bool {
        false
    }

    /// Whether [`Self::next_local`], [`Self::update`] or [`Self::pump`] have something to do.
    pub(crate) fn is_pending(&self, _now: Instant) -> bool {
        false
    }
}

impl Net for Router {
    fn reachability(&self, node: &NodeId) -> Reachability {
        if *node == self.config.node {
            Reachability::Reachable
        } else {
            Reachability::Unknown
        }
    }

    fn next_link(&self, _node: &NodeId) -> Option<LinkId> {
        None
    }

    fn room(&self, node: &NodeId, _priority: Priority) -> usize {
        if *node == self.config.node {
            usize::MAX
        } else {
            0
        }
    }

    fn send(&mut self, _now: Instant, _packet: Packet) -> Result<(), ErrorCode> {
        Err(ErrorCode::NoSuchNode)
    }

    fn resolve(
        &mut self,
        _directive: &Directive,
        _metadata: &BTreeMap<String, String>,
    ) -> Option<NodeId> {
        None
    }
}
