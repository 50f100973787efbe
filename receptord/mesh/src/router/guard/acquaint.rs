//! Getting to know nodes whose statements do not come by flooding: a leaf hears of nobody, and what
//! waited long on its way may be of a node that has left.
//!
//! A node asks another for its statement and gives its own with the question, so that one exchange
//! serves both directions. What is asked, answered and remembered is bounded in number and time; a
//! statement proves itself, so that it does not matter who answers.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::time::Duration;

use receptor_proto::NodeId;
use receptor_proto::lsa::LsaKind;
use receptor_proto::packet::sealed::Identity;
use receptor_proto::packet::{Packet, kind};
use receptor_proto::signed::SignedBody;

use crate::router::timers::Timer;
use crate::router::{Out, Router};
use crate::security::Learned;
use crate::{Instant, LinkId};

/// The most nodes that are asked at once who they are.
const ASKED_MAX: usize = 1024;
/// The first and the longest time before a node is asked again.
const ASK_FIRST: Duration = Duration::from_secs(1);
const ASK_LONGEST: Duration = Duration::from_secs(30);
/// How often a node is asked before this one stops until it has a reason again.
const TRIES: u32 = 10;
/// The most nodes that were told lately who this one is.
const TOLD_MAX: usize = 1024;
/// How long they are not told again.
const TOLD: Duration = Duration::from_secs(1);
/// What a packet with a statement costs of the neighbor's allowance that brought it.
const LEARN_COST: u32 = 4;

#[derive(Debug)]
struct Asked {
    again: Instant,
    tries: u32,
    /// Something of this node's own waits for the answer.
    wanted: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Acquaintances {
    asked: BTreeMap<NodeId, Asked>,
    told: BTreeMap<NodeId, Instant>,
}

impl Acquaintances {
    /// Whether a node may be told now.
    fn may_tell(&mut self, now: Instant, node: &NodeId) -> bool {
        let recent = |at: &Instant| now.since(*at) < TOLD;
        if self.told.get(node).is_some_and(recent) {
            return false;
        }
        if self.told.len() >= TOLD_MAX {
            self.told.retain(|_, at| recent(at));
        }
        if self.told.len() >= TOLD_MAX {
            return false;
        }
        self.told.insert(node.clone(), now);
        true
    }
}

impl Router {
    /// Nothing can be sealed to, or opened from, this node before it says who it is. `wanted`: something is to be
    /// sealed to it; so it goes before those who are asked because somebody used their names.
    pub(in crate::router) fn ask_identity(&mut self, now: Instant, node: &NodeId, wanted: bool) {
        let has_way = self.next(node).is_ok();
        let Some(guard) = self.guard.as_mut().filter(|_| has_way) else {
            return;
        };
        let asked = &mut guard.acquaintances.asked;
        if let Some(asked) = asked.get_mut(node) {
            asked.wanted |= wanted;
            return;
        }
        if asked.len() >= ASKED_MAX {
            let other = asked.iter().find(|(_, asked)| wanted && !asked.wanted);
            let Some(other) = other.map(|(node, _)| node.clone()) else {
                return;
            };
            asked.remove(&other);
        }
        let again = now + ASK_FIRST;
        let tries = 1;
        let one = Asked {
            again,
            tries,
            wanted,
        };
        asked.insert(node.clone(), one);
        self.timers.set_earlier(Timer::Guard, again);
        self.say_identity(node, true);
    }

    /// Asks those again who have not answered.
    pub(super) fn ask_again(&mut self, now: Instant) {
        let Some(guard) = &mut self.guard else {
            return;
        };
        let mut due: Vec<NodeId> = Vec::new();
        let mut given_up = false;
        guard.acquaintances.asked.retain(|node, asked| {
            if asked.again > now {
                return true;
            }
            asked.tries += 1;
            asked.again = now + (ASK_FIRST * (1 << asked.tries.min(5))).min(ASK_LONGEST);
            let goes_on = asked.tries <= TRIES;
            given_up |= !goes_on;
            if goes_on {
                due.push(node.clone());
            }
            goes_on
        });
        // Whoever waits for it tries again, and so asks again.
        guard.eased |= given_up;
        if let Some(next) = guard.acquaintances.asked.values().map(|a| a.again).min() {
            self.timers.set_earlier(Timer::Guard, next);
        }
        for node in due {
            self.say_identity(&node, true);
        }
    }

    /// There may be another way to this node now: if it is asked who it is, it need not be asked much later.
    pub(in crate::router) fn ask_sooner(&mut self, now: Instant, node: &NodeId) {
        let guard = self.guard.as_mut();
        if let Some(asked) = guard.and_then(|guard| guard.acquaintances.asked.get_mut(node)) {
            asked.again = asked.again.min(now + ASK_FIRST);
            self.timers.set_earlier(Timer::Guard, asked.again);
        }
    }

    /// Says who this node is to one that uses a key that this one has not any more.
    pub(super) fn tell_identity(&mut self, now: Instant, node: &NodeId) {
        let guard = self.guard.as_mut();
        if guard.is_some_and(|guard| guard.acquaintances.may_tell(now, node)) {
            self.say_identity(node, false);
        }
    }

    fn say_identity(&mut self, node: &NodeId, ask: bool) {
        let Some(guard) = &self.guard else {
            return;
        };
        let identity = Identity {
            ask,
            instance: self.config.instance,
            statement: guard.security.identity(),
        };
        let packet = Packet {
            hop_limit: self.config.hop_limit,
            hops: 0,
            priority: identity.priority(),
            source: self.config.node.clone(),
            destination: node.clone(),
            kind: kind::IDENTITY,
            body: identity.encode(),
        };
        // Without a way it is said when it is needed again.
        let _ = self.send_own(packet);
    }

    /// A node says who it is, and may ask who this one is.
    pub(super) fn handle_identity(
        &mut self,
        now: Instant,
        from: LinkId,
        source: &NodeId,
        identity: &Identity,
        out: &mut Out,
    ) {
        let (Some(guard), Some(link)) = (&mut self.guard, self.links.get(&from)) else {
            return;
        };
        let Some(peer) = &link.peer else {
            return;
        };
        let known = guard.security.known(source);
        if known.as_ref() != Some(&identity.statement) {
            if !guard.openings.take(now, &peer.node, LEARN_COST) {
                return;
            }
            match guard.security.learn(now, source, &identity.statement) {
                Ok(Learned::New) => self.introduced(now, source, out),
                Ok(Learned::Known) => {}
                Err(why) => {
                    self.unproved(from, source, &why, out);
                    return;
                }
            }
        }
        if identity.ask {
            self.tell_identity(now, source);
        }
    }

    /// Whether a node is known, by what it states if it was forgotten otherwise. That takes public-key work, which
    /// `neighbor` causes if it is somebody else's doing.
    pub(super) fn is_introduced(
        &mut self,
        now: Instant,
        node: &NodeId,
        neighbor: Option<&NodeId>,
    ) -> bool {
        let Some(guard) = &mut self.guard else {
            return false;
        };
        if guard.security.known(node).is_some() {
            return true;
        }
        let index = self.lsdb.find(node);
        let stored = index.and_then(|index| self.lsdb.get((LsaKind::IDENTITY, index)));
        let Some(stored) = stored.filter(|stored| !stored.purged) else {
            return false;
        };
        let may = |neighbor: &NodeId| guard.checks.take(now, neighbor, LEARN_COST);
        if !neighbor.is_none_or(may) {
            return false;
        }
        let statement = SignedBody::statement_of(&stored.body);
        guard.security.learn(now, node, &statement).is_ok()
    }

    /// A node is known now: what waited for that goes on.
    pub(super) fn introduced(&mut self, now: Instant, node: &NodeId, out: &mut Out) {
        let Some(guard) = &mut self.guard else {
            return;
        };
        guard.eased = true;
        guard.acquaintances.asked.remove(node);
        let lsas = guard.waiting.take(node);
        for (from, packet) in guard.unopened.take(node) {
            self.arrive(packet, Some(from), false);
        }
        for (link, lsa) in lsas {
            self.handle_lsas(now, link, alloc::vec![lsa], out);
        }
    }
}
