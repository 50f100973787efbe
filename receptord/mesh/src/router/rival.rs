//! Two nodes with one id: a newcomer whose id another node seems to have waits until that one has
//! shown that it lives, and is refused then, or shows nothing for a while, and is let in. Owns
//! that question; whether a peer is let in otherwise is [`super::adjacency`]'s.

use alloc::format;
use alloc::vec::Vec;
use core::time::Duration;

use receptor_proto::frame::Frame;
use receptor_proto::{ErrorBody, ErrorCode};

use super::adjacency::End;
use super::link::{Check, Link, State};
use super::lsdb::Node;
use super::timers::Timer;
use super::{Out, Router};
use crate::{Event, Instant, LinkId, Output};

/// How long a node with the id of a newcomer has to show that it lives.
const DUPLICATE_CHECK: Duration = Duration::from_secs(1);

/// Who already has the id of a newcomer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Rival {
    /// Nobody, or an older start of which nothing is left.
    None,
    /// A neighbor.
    Neighbor,
    /// A node elsewhere in the mesh.
    Mesh,
}

impl Router {
    /// Who else has the id of the node at the end of this link.
    pub(super) fn rival(&self, id: LinkId) -> Rival {
        let Some(peer) = self.links.get(&id).and_then(|link| link.peer.as_ref()) else {
            return Rival::None;
        };
        if let Some(neighbor) = self.neighbors.get(&peer.index) {
            return if neighbor.instance == peer.instance {
                Rival::None
            } else {
                Rival::Neighbor
            };
        }
        let stated = self.lsdb.node(peer.index).map_or(0, Node::instance);
        if stated != 0 && stated != peer.instance && self.has_route(peer.index) {
            Rival::Mesh
        } else {
            Rival::None
        }
    }

    /// Asks whoever has the newcomer's id for a sign of life.
    pub(super) fn start_check(&mut self, now: Instant, id: LinkId, rival: &Rival, out: &mut Out) {
        let nonce = self.rng.u64(..);
        let deadline = now + DUPLICATE_CHECK;
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        let Some(peer) = &link.peer else { return };
        let (index, node) = (peer.index, peer.node.clone());
        link.state = State::Checking(Check {
            nonce,
            answered: false,
        });
        self.checking += 1;
        self.timers.set(Timer::Adjacency(id), deadline);
        if *rival == Rival::Mesh {
            self.echo_rival(now, id, node, nonce, deadline);
            return;
        }
        let links: Vec<LinkId> = self
            .neighbors
            .get(&index)
            .map_or_else(Vec::new, |old| old.links().collect());
        for old in links {
            if let Some(old) = self.links.get_mut(&old) {
                old.transmit(now, Frame::Probe { nonce }, out);
            }
        }
    }

    /// Something is different about a node that is being checked: perhaps it is settled.
    pub(super) fn recheck(&mut self, now: Instant, out: &mut Out) {
        if !core::mem::take(&mut self.recheck) || self.checking == 0 {
            return;
        }
        let checking =
            |(id, link): (&LinkId, &Link)| matches!(link.state, State::Checking(_)).then_some(*id);
        let ids: Vec<LinkId> = self.links.iter().filter_map(checking).collect();
        for id in ids {
            if self.rival(id) == Rival::None {
                self.accept(now, id, out);
            }
        }
    }

    /// The echo that looks for the rival of the node behind this link had an answer or will have
    /// none.
    pub(super) fn rival_answered(&mut self, now: Instant, id: LinkId, alive: bool, out: &mut Out) {
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        let State::Checking(check) = &mut link.state else {
            return;
        };
        if alive {
            // It may have been the newcomer itself, reached another way: its statements are
            // here before the time is up then.
            check.answered = true;
        } else {
            self.accept(now, id, out);
        }
    }

    /// The node at the end of this link has answered a probe: if that looked for the rival of a
    /// newcomer, it lives.
    pub(super) fn rival_probed(&mut self, now: Instant, id: LinkId, nonce: u64, out: &mut Out) {
        if self.checking == 0 {
            return;
        }
        let link = self.links.get(&id);
        let index = link.and_then(|link| Some(link.peer.as_ref()?.index));
        let newcomer = self.links.iter().find_map(|(other, link)| {
            let State::Checking(check) = &link.state else {
                return None;
            };
            let same = link.peer.as_ref().map(|peer| peer.index) == index;
            (check.nonce == nonce && same && *other != id).then_some(*other)
        });
        if let Some(newcomer) = newcomer {
            self.refuse_newcomer(now, newcomer, out);
        }
    }

    pub(super) fn refuse_newcomer(&mut self, now: Instant, id: LinkId, out: &mut Out) {
        let Some(peer) = self.links.get(&id).and_then(|link| link.peer.as_ref()) else {
            return;
        };
        let node = peer.node.clone();
        let text = format!("another running node has the id {node}");
        let ours = false;
        out.push_back(Output::Event(Event::DuplicateNodeId { node, ours }));
        let reason = ErrorBody::new(ErrorCode::DuplicateNodeId, text);
        self.end_link(now, id, reason, End::Ours, out);
    }

    /// Closes all links of a node that must not be in this mesh.
    pub(super) fn yield_id(&mut self, now: Instant, out: &mut Out) {
        let text = format!("another running node has the id {}", self.config.node);
        let reason = ErrorBody::new(ErrorCode::DuplicateNodeId, text);
        let ids: Vec<LinkId> = self.links.keys().copied().collect();
        for id in ids {
            self.end_link(now, id, reason.clone(), End::Ours, out);
        }
    }
}
