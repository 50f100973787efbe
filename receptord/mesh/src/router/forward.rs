//! Packets: those that arrive for this node, those on their way, and those that go no further.
//! A packet of others is never opened, except to tell its source that it was not passed on.

use alloc::collections::{BTreeMap, VecDeque};
use core::time::Duration;

use receptor_proto::packet::sealed::{Place, Sealed};
use receptor_proto::packet::{
    About, Body, Message, Packet, Priority, Segment, Undeliverable, kind,
};
use receptor_proto::{ErrorBody, ErrorCode, NodeId};

use super::echo::EchoRequest;
use super::guard::Opened;
use super::link::{Link, State};
use super::queue::{Queued, class};
use super::{Local, Out, Router};
use crate::{Denied, Event, Instant, LinkId, Output};

/// Least time between two notices to one source about one destination, echoes excepted: one is
/// enough to stop a flow, and a full queue must not fill the way back.
const NOTICE_GAP: Duration = Duration::from_millis(20);
/// How many pairs of source and destination are remembered for that.
const NOTICES: usize = 1024;

/// What a notice is about whose packet has no place in a flow: a receipt, an answer to an echo.
const NOTHING: About = About::Message { epoch: 0, seq: 0 };

/// A packet for this node.
#[derive(Debug)]
struct Arrived {
    packet: Packet,
    /// The link that it came over; `None` when this node sent it to itself.
    from: Option<LinkId>,
    /// Its hop limit ended here.
    cut_short: bool,
}

/// Packets that are neither in a queue nor delivered.
#[derive(Debug, Default)]
pub(super) struct Transit {
    arrived: VecDeque<Arrived>,
    /// Packets that wait for routes because their link is gone.
    stranded: VecDeque<Queued>,
    /// Bytes of them.
    waiting: usize,
    /// Messages without a way that this node may keep.
    stuck: VecDeque<(Packet, ErrorCode)>,
    stuck_bytes: usize,
    notices: BTreeMap<(NodeId, NodeId), Instant>,
}

impl Transit {
    pub(super) fn is_pending(&self, stale: bool) -> bool {
        !self.arrived.is_empty() || !self.stuck.is_empty() || !stale && !self.stranded.is_empty()
    }

    fn strand(&mut self, queued: Queued) {
        self.waiting += queued.size;
        self.stranded.push_back(queued);
    }

    /// Whether a notice to this source about this destination may go out now.
    fn may_notify(&mut self, now: Instant, source: &NodeId, destination: &NodeId) -> bool {
        let recent = |at: &Instant| now.since(*at) < NOTICE_GAP;
        let key = (source.clone(), destination.clone());
        if self.notices.get(&key).is_some_and(recent) {
            return false;
        }
        if self.notices.len() >= NOTICES {
            self.notices.retain(|_, at| recent(at));
        }
        if self.notices.len() >= NOTICES {
            return false;
        }
        self.notices.insert(key, now);
        true
    }
}

impl Router {
    pub(super) fn handle_packet(
        &mut self,
        now: Instant,
        id: LinkId,
        mut packet: Packet,
        out: &mut Out,
    ) {
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        let size = packet.wire_size();
        let said = packet.priority;
        packet.priority = class(&packet, size);
        let charged = packet.priority != Priority::Control;
        if charged && !link.queue.receive(size) {
            self.break_off(now, id, "more packets than this node granted", out);
            return;
        }
        if said != packet.priority {
            let text = "a packet claims a precedence that it does not have";
            self.mistake(id, ErrorBody::new(ErrorCode::BadFrame, text), out);
        }
        let taken = self.take_in(now, id, packet, size, out);
        if charged && !taken {
            self.released(id, size);
        }
    }

    /// Passes a packet to where it belongs. Whether it keeps its credit.
    fn take_in(
        &mut self,
        now: Instant,
        id: LinkId,
        mut packet: Packet,
        size: usize,
        out: &mut Out,
    ) -> bool {
        let Some(link) = self.links.get(&id) else {
            return false;
        };
        let Some(peer) = &link.peer else {
            return false;
        };
        let own = packet.source == self.config.node && kind::plain(packet.kind) != kind::KEPT;
        if !matches!(link.state, State::Up) || own {
            self.drop_packet(Some(id));
            return false;
        }
        if !peer.router && packet.source != peer.node {
            let text = alloc::format!("the leaf {} sends for {}", peer.node, packet.source);
            self.mistake(id, ErrorBody::new(ErrorCode::BadFrame, text), out);
            self.drop_packet(Some(id));
            return false;
        }
        if packet.destination == self.config.node {
            self.arrive(packet, Some(id), false);
            return false;
        }
        if !self.may_pass(&packet) {
            self.drop_packet(Some(id));
            return false;
        }
        if !self.config.router {
            self.refuse(now, &packet, ErrorCode::NoRoute);
            self.drop_packet(Some(id));
            return false;
        }
        let (source, destination) = (&packet.source, &packet.destination);
        if !self.gate.may_pass(source, destination) {
            let (from, to) = (source.clone(), destination.clone());
            out.push_back(Output::Event(Event::Denied(Denied::Transit { from, to })));
            self.refuse(now, &packet, ErrorCode::PermissionDenied);
            self.drop_packet(Some(id));
            return false;
        }
        if packet.hop_limit == 0 {
            if packet.kind == kind::ECHO {
                self.arrive(packet, Some(id), true);
                return false;
            }
            self.refuse(now, &packet, ErrorCode::HopLimit);
            self.drop_packet(Some(id));
            return false;
        }
        packet.hop_limit -= 1;
        packet.hops = packet.hops.saturating_add(1);
        match self.enqueue(packet, size, Some(id)) {
            Ok(keeps) => {
                self.counters.forwarded += 1;
                keeps
            }
            // The way is being looked for at this very moment.
            Err((packet, ErrorCode::NoRoute))
                if self.routes_stale && self.transit.waiting < self.config.limits.link_queue =>
            {
                self.transit.strand(Queued {
                    packet,
                    size,
                    keeps: None,
                });
                false
            }
            Err((packet, code)) => {
                self.drop_packet(Some(id));
                self.stop(now, packet, code);
                false
            }
        }
    }

    /// A packet goes no further: it is offered for keeping, or refused.
    fn stop(&mut self, now: Instant, packet: Packet, code: ErrorCode) {
        let size = packet.body.len();
        let may_keep = self.config.router
            && matches!(kind::plain(packet.kind), kind::MESSAGE | kind::KEPT)
            && matches!(code, ErrorCode::NoRoute | ErrorCode::NoSuchNode)
            && packet.source != self.config.node
            && self.transit.stuck_bytes + size <= self.config.limits.link_queue;
        if may_keep {
            // A leaf may have another router that has a way.
            if self.is_own_leaf(&packet.source) {
                self.refuse(now, &packet, code.clone());
            }
            self.transit.stuck_bytes += size;
            self.transit.stuck.push_back((packet, code));
        } else {
            self.refuse(now, &packet, code);
        }
    }

    /// Such a packet is not kept.
    pub(crate) fn give_back(&mut self, now: Instant, packet: &Packet, code: ErrorCode) {
        self.refuse(now, packet, code);
    }

    pub(super) fn arrive(&mut self, packet: Packet, from: Option<LinkId>, cut_short: bool) {
        self.transit.arrived.push_back(Arrived {
            packet,
            from,
            cut_short,
        });
    }

    /// Puts a packet into the queue of its next link. Whether it keeps the credit of the link it
    /// came over.
    fn enqueue(
        &mut self,
        packet: Packet,
        size: usize,
        from: Option<LinkId>,
    ) -> Result<bool, (Packet, ErrorCode)> {
        let next = match self.next(&packet.destination) {
            Ok((_, next)) => next,
            Err(code) => return Err((packet, code)),
        };
        let charged = packet.priority != Priority::Control;
        let kept = self.links.get(&next).map_or(0, |link| link.queue.kept());
        let keeps = from.filter(|from| {
            let from = self.links.get(from);
            charged && from.is_some_and(|from| from.queue.may_wait(size, kept))
        });
        let Some(link) = self.links.get_mut(&next) else {
            return Err((packet, ErrorCode::NoRoute));
        };
        if link.peer.as_ref().is_none_or(|peer| size > peer.max_frame) {
            return Err((packet, ErrorCode::PayloadTooLarge));
        }
        let queued = Queued {
            packet,
            size,
            keeps,
        };
        if let Err(queued) = link.queue.push(queued) {
            link.queue.set_tight();
            link.counters.dropped += 1;
            return Err((queued.packet, ErrorCode::Busy));
        }
        self.ready.insert(next);
        if let Some(from) = keeps.and_then(|from| self.links.get_mut(&from)) {
            from.queue.wait(size);
        }
        Ok(keeps.is_some())
    }

    /// Sends a packet of this node's own.
    pub(super) fn send_own(&mut self, packet: Packet) -> Result<(), ErrorCode> {
        if packet.destination == self.config.node {
            self.arrive(packet, None, false);
            return Ok(());
        }
        let size = packet.wire_size();
        self.enqueue(packet, size, None)
            .map(|_| ())
            .map_err(|(_, code)| code)
    }

    /// Bytes of a packet that came over this link are through.
    pub(super) fn released(&mut self, id: LinkId, size: usize) {
        if let Some(link) = self.links.get_mut(&id) {
            link.queue.release(size);
            if link.queue.owes_grant() {
                self.ready.insert(id);
            }
        }
    }

    /// A packet left the queue that it waited in with another link's credit.
    pub(super) fn waited(&mut self, id: LinkId, size: usize) {
        if let Some(link) = self.links.get_mut(&id) {
            link.queue.waited(size);
            if link.queue.owes_grant() {
                self.ready.insert(id);
            }
        }
    }

    fn drop_packet(&mut self, id: Option<LinkId>) {
        if let Some(link) = id.and_then(|id| self.links.get_mut(&id)) {
            link.counters.dropped += 1;
        }
    }

    fn is_own_leaf(&self, node: &NodeId) -> bool {
        let neighbor = self.lsdb.find(node);
        let neighbor = neighbor.and_then(|index| self.neighbors.get(&index));
        neighbor.is_some_and(|neighbor| neighbor.leaf)
    }

    /// Counts a packet that is not passed on, and tells its source.
    fn refuse(&mut self, now: Instant, packet: &Packet, code: ErrorCode) {
        if code == ErrorCode::Busy {
            self.counters.dropped_queue_full += 1;
        } else if code == ErrorCode::HopLimit {
            self.counters.dropped_hop_limit += 1;
        } else {
            self.counters.dropped_no_route += 1;
        }
        let Some(about) = about(packet) else {
            return;
        };
        let (source, destination) = (&packet.source, &packet.destination);
        let tell = match about {
            About::Echo(_) => true,
            // A leaf has no other way to learn that another of its routers may do better.
            NOTHING if !self.is_own_leaf(source) => false,
            // Each such notice ends the message that it is about.
            About::Message { .. } if code == ErrorCode::PermissionDenied && about != NOTHING => {
                true
            }
            About::Message { .. } => self.transit.may_notify(now, source, destination),
        };
        if !tell {
            return;
        }
        let body = Body::Undeliverable(Undeliverable {
            code,
            destination: destination.clone(),
            about,
        });
        // Without a way back the source finds out by itself.
        let _ = self.post_body(now, source, &body);
    }

    /// A packet of this node's own with the usual hop limit.
    pub(super) fn packet(&self, destination: NodeId, body: &Body) -> Packet {
        let own = self.config.node.clone();
        Packet::new(own, destination, self.config.hop_limit, body)
    }

    /// Takes what waits for a link that is gone. It is routed anew once routes are; this node's
    /// own messages are not, because delivery sends them again.
    pub(super) fn strand(&mut self, link: &mut Link) {
        for mut queued in link.queue.take_all() {
            if let Some(from) = queued.keeps.take() {
                self.waited(from, queued.size);
            }
            let own = queued.packet.source == self.config.node;
            if !own || queued.packet.priority == Priority::Control {
                self.transit.strand(queued);
            }
        }
    }

    /// Routes anew what waited for links that are gone.
    pub(super) fn rescue(&mut self, now: Instant) {
        if self.routes_stale {
            return;
        }
        self.transit.waiting = 0;
        while let Some(queued) = self.transit.stranded.pop_front() {
            if let Err((packet, code)) = self.enqueue(queued.packet, queued.size, None) {
                self.stop(now, packet, code);
            }
        }
    }

    /// The next packet for this node, what concerns routing itself already dealt with.
    pub(crate) fn next_local(&mut self, now: Instant, out: &mut Out) -> Option<Local> {
        if let Some((packet, code)) = self.transit.stuck.pop_front() {
            self.transit.stuck_bytes -= packet.body.len();
            return Some(Local::Stuck(packet, code));
        }
        while let Some(arrived) = self.transit.arrived.pop_front() {
            let Arrived {
                packet,
                from,
                cut_short,
            } = arrived;
            let (source, hops) = (packet.source.clone(), packet.hops);
            let body = match self.open(now, from, packet, out) {
                Opened::Body(body) => body,
                Opened::Local(local) => return Some(local),
                Opened::Nothing => continue,
            };
            if let Body::Undeliverable(notice) = &body
                && matches!(notice.code, ErrorCode::NoRoute | ErrorCode::NoSuchNode)
            {
                self.take_detour(now, &source, &notice.destination);
                self.ask_sooner(now, &notice.destination);
            }
            match body {
                Body::Undeliverable(Undeliverable { about: NOTHING, .. }) => {}
                Body::Echo { nonce } => {
                    return Some(Local::Echo(EchoRequest {
                        source,
                        nonce,
                        hops,
                        arrived: !cut_short,
                    }));
                }
                Body::EchoReply(reply) => self.handle_echo_reply(now, source, reply, out),
                Body::Undeliverable(Undeliverable {
                    code,
                    destination,
                    about: About::Echo(nonce),
                }) => self.echo_undeliverable(now, &source, code, &destination, nonce, out),
                Body::Undeliverable(_)
                | Body::Message(_)
                | Body::Kept { .. }
                | Body::Custody(_)
                | Body::Entrusted { .. }
                | Body::Inquiry(_)
                | Body::Segment(_)
                | Body::Receipt(_) => {
                    return Some(Local::Deliver(source, body));
                }
                Body::Unknown { .. } => self.counters.unknown += 1,
            }
        }
        None
    }
}

/// What a notice to the source of a packet that goes no further is about; `None`: it hears nothing.
fn about(packet: &Packet) -> Option<About> {
    let body = packet.body.clone();
    let plain = kind::plain(packet.kind);
    match plain {
        kind::ECHO | kind::MESSAGE | kind::SEGMENT if packet.kind == plain => {
            match Body::decode(plain, body).ok()? {
                Body::Echo { nonce } => Some(About::Echo(nonce)),
                Body::Message(Message { epoch, seq, .. })
                | Body::Segment(Segment { epoch, seq, .. }) => Some(About::Message { epoch, seq }),
                Body::EchoReply(_)
                | Body::Undeliverable(_)
                | Body::Receipt(_)
                | Body::Kept { .. }
                | Body::Custody(_)
                | Body::Entrusted { .. }
                | Body::Inquiry(_)
                | Body::Unknown { .. } => None,
            }
        }
        kind::MESSAGE | kind::SEGMENT => {
            let Place { epoch, seq } = Sealed::decode(body).ok()?.place(plain)?;
            Some(About::Message { epoch, seq })
        }
        kind::RECEIPT
        | kind::ECHO_REPLY
        | kind::CUSTODY
        | kind::ENTRUSTED
        | kind::INQUIRY
        | kind::IDENTITY => Some(NOTHING),
        _ => None,
    }
}
