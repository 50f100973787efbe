//! Echoes: asking a node, or the n-th node on the way, for a sign of life. Every echo ends in
//! exactly one result, at the latest at its deadline.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::vec::Vec;
use core::time::Duration;

use receptor_proto::packet::{ActiveWork, Body, EchoReply};
use receptor_proto::{ErrorBody, ErrorCode, NodeId};

use super::timers::Timer;
use super::{Out, Router};
use crate::{EchoAnswer, EchoId, Instant, LinkId, Output};

/// An echo that asks this node.
#[derive(Debug)]
pub(crate) struct EchoRequest {
    pub(super) source: NodeId,
    pub(super) nonce: u64,
    pub(super) hops: u8,
    pub(super) arrived: bool,
}

/// Who waits for an answer.
#[derive(Debug, Clone, Copy)]
enum For {
    /// A client, and whether it set the hop limit, so that its end is an answer.
    Client(EchoId, bool),
    /// The check of the newcomer on this link.
    Check(LinkId),
}

#[derive(Debug)]
struct Echo {
    purpose: For,
    node: NodeId,
    sent: Instant,
    deadline: Instant,
}

/// Echoes under way.
#[derive(Debug, Default)]
pub(super) struct Echoes {
    by_nonce: BTreeMap<u64, Echo>,
    deadlines: BTreeSet<(Instant, u64)>,
    next: u64,
}

impl Echoes {
    fn take(&mut self, nonce: u64) -> Option<Echo> {
        let echo = self.by_nonce.remove(&nonce)?;
        self.deadlines.remove(&(echo.deadline, nonce));
        Some(echo)
    }
}

impl Router {
    pub(crate) fn echo(
        &mut self,
        now: Instant,
        node: &NodeId,
        hop_limit: Option<u8>,
        timeout: Duration,
        out: &mut Out,
    ) -> EchoId {
        let id = EchoId(self.echoes.next);
        self.echoes.next += 1;
        let limit = self.config.limits.echoes;
        if self.echoes.by_nonce.len() >= limit {
            let text = format!("{limit} echoes are under way already");
            let result = Err(ErrorBody::new(ErrorCode::Busy, text));
            out.push_back(Output::EchoResult { id, result });
            return id;
        }
        let nonce = self.rng.u64(..);
        let mut packet = self.packet(node.clone(), &Body::Echo { nonce });
        packet.hop_limit = hop_limit.unwrap_or(packet.hop_limit);
        if let Err(code) = self.send_own(packet) {
            let result = Err(if code == ErrorCode::Busy {
                let text = format!("too much waits on the way to {node}");
                ErrorBody::new(code, text)
            } else {
                self.no_way(node)
            });
            out.push_back(Output::EchoResult { id, result });
            return id;
        }
        self.expect(
            now,
            node.clone(),
            nonce,
            now + timeout,
            For::Client(id, hop_limit.is_some()),
        );
        id
    }

    /// Asks through the mesh whether the node that a newcomer says it is still lives.
    pub(super) fn echo_rival(
        &mut self,
        now: Instant,
        link: LinkId,
        node: NodeId,
        nonce: u64,
        deadline: Instant,
    ) {
        // When it cannot be sent nobody will answer, which is an answer too.
        let _ = self.send_own(self.packet(node.clone(), &Body::Echo { nonce }));
        self.expect(now, node, nonce, deadline, For::Check(link));
    }

    fn expect(&mut self, now: Instant, node: NodeId, nonce: u64, deadline: Instant, purpose: For) {
        let echo = Echo {
            purpose,
            node,
            sent: now,
            deadline,
        };
        self.echoes.by_nonce.insert(nonce, echo);
        self.echoes.deadlines.insert((deadline, nonce));
        self.timers.set_earlier(Timer::Echo, deadline);
    }

    /// Answers an echo that [`Self::next_local`] gave out.
    pub(crate) fn answer_echo(&mut self, echo: EchoRequest, active: u64, works: Vec<ActiveWork>) {
        let EchoRequest {
            source,
            nonce,
            hops,
            arrived,
        } = echo;
        // Whoever looks for the way asks nothing about the nodes on it.
        let (active, works) = if arrived {
            (active, works)
        } else {
            (0, Vec::new())
        };
        let reply = EchoReply {
            nonce,
            hops,
            arrived,
            active,
            works,
        };
        // Without a way back the source runs into its timeout.
        let _ = self.send_own(self.packet(source, &Body::EchoReply(reply)));
    }

    pub(super) fn handle_echo_reply(
        &mut self,
        now: Instant,
        from: NodeId,
        reply: EchoReply,
        out: &mut Out,
    ) {
        let nonce = reply.nonce;
        let forged = |echo: &Echo| reply.arrived != (echo.node == from);
        if self.echoes.by_nonce.get(&nonce).is_none_or(forged) {
            // Too late, or not from where it was asked.
            return;
        }
        let Some(echo) = self.echoes.take(nonce) else {
            return;
        };
        match echo.purpose {
            For::Check(link) => self.rival_answered(now, link, reply.arrived, out),
            For::Client(id, false) if !reply.arrived => {
                let text = format!(
                    "the echo to {} went through {} nodes; {from} was the last",
                    echo.node,
                    u32::from(reply.hops) + 1
                );
                let result = Err(ErrorBody::new(ErrorCode::HopLimit, text));
                out.push_back(Output::EchoResult { id, result });
            }
            For::Client(id, _) => {
                let own = from == self.config.node;
                let result = Ok(EchoAnswer {
                    from,
                    arrived: reply.arrived,
                    hops: if own { 0 } else { reply.hops.saturating_add(1) },
                    rtt: now.since(echo.sent),
                    active: reply.active,
                    works: reply.works,
                });
                out.push_back(Output::EchoResult { id, result });
            }
        }
    }

    pub(super) fn echo_undeliverable(
        &mut self,
        now: Instant,
        reporter: &NodeId,
        code: ErrorCode,
        destination: &NodeId,
        nonce: u64,
        out: &mut Out,
    ) {
        let other = |echo: &Echo| echo.node != *destination;
        if self.echoes.by_nonce.get(&nonce).is_none_or(other) {
            return;
        }
        let Some(echo) = self.echoes.take(nonce) else {
            return;
        };
        let id = match echo.purpose {
            For::Check(link) if matches!(code, ErrorCode::NoRoute | ErrorCode::NoSuchNode) => {
                return self.rival_answered(now, link, false, out);
            }
            For::Check(_) => return,
            For::Client(id, _) => id,
        };
        let own = *reporter == self.config.node;
        let no_route = code == ErrorCode::NoRoute;
        let unknown = code == ErrorCode::NoSuchNode;
        let error = if own && (no_route || unknown) {
            self.no_way(destination)
        } else {
            let text = if no_route {
                format!("no route to {destination}: {reporter} on the way has none")
            } else if unknown {
                format!("no node {destination} is known to {reporter} on the way")
            } else if code == ErrorCode::PermissionDenied {
                format!("{reporter} on the way does not forward to {destination} for this node")
            } else {
                format!("{reporter} did not pass the echo on to {destination}")
            };
            ErrorBody::new(code, text)
        };
        let result = Err(error.with("reported-by", reporter.as_str()));
        out.push_back(Output::EchoResult { id, result });
    }

    /// Gives up echoes whose time is over.
    pub(super) fn expire_echoes(&mut self, now: Instant, out: &mut Out) {
        while let Some((deadline, nonce)) = self.echoes.deadlines.first().copied() {
            if deadline > now {
                self.timers.set(Timer::Echo, deadline);
                return;
            }
            let Some(echo) = self.echoes.take(nonce) else {
                return;
            };
            // The check of a newcomer has its own timer.
            if let For::Client(id, _) = echo.purpose {
                let waited = deadline.since(echo.sent);
                let text = format!("no answer from {} within {waited:?}", echo.node);
                let result = Err(ErrorBody::new(ErrorCode::Timeout, text));
                out.push_back(Output::EchoResult { id, result });
            }
        }
    }
}
