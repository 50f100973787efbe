//! Signed statements: this node's own are signed, others' are checked before they are used or passed on.
//!
//! What is not proved is not acknowledged: a neighbor sends it again, so nothing is lost that had to wait.
//! A statement whose time was over, or that was taken back, is *spent*: it is not believed again, whoever
//! brings it. Checked is what is news alone: a version that is there already, or an older one, costs nothing,
//! and neither does one that was refused before.

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};

use bytes::Bytes;
use receptor_proto::frame::Frame;
use receptor_proto::lsa::{Lsa, LsaKey, LsaKind, Version};
use receptor_proto::signed::SignedBody;
use receptor_proto::{ErrorBody, ErrorCode, NodeId};

use super::Guard;
use crate::router::{Out, Router};
use crate::security::Learned;
use crate::{Instant, LinkId};

/// Statements that were refused and are remembered, so that each is checked once.
const DISBELIEVED_MAX: usize = 1024;
/// Statements that are spent and are remembered.
const SPENT_MAX: usize = 4096;
/// A certificate's chain may have several signatures, and a statement has its own.
const LEARN_COST: u32 = 4;

/// Refused statements, by what they are about.
#[derive(Debug, Default)]
pub(super) struct Disbelieved(BTreeMap<LsaKey, Version>);

/// Statements that are not believed again, as they were at the end.
#[derive(Debug, Default)]
pub(super) struct Spent(BTreeMap<LsaKey, Lsa>);

/// Whether news may be used and passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::router) enum Vouched {
    /// It may.
    Yes,
    /// It is kept until its originator is known.
    Waits,
    /// It may not, or not now; then it comes again.
    No,
}

/// What is known of a statement that came.
enum Proof {
    /// It is its originator's.
    Good,
    /// So it is, and it says who that is.
    Introduced,
    /// Its originator is not known yet.
    Waits,
    /// Its neighbor has caused too much work just now.
    Later,
    /// It is not believed, and was not before.
    BadAgain,
    /// Newer than this one is believed only.
    Spent(Lsa),
    /// It is not believed.
    Bad(String),
}

impl Disbelieved {
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    fn forget(&mut self, node: &NodeId) {
        self.0.retain(|key, _| key.node != *node);
    }

    fn add(&mut self, lsa: &Lsa) {
        while self.0.len() >= DISBELIEVED_MAX {
            self.0.pop_first();
        }
        self.0.insert(lsa.key.clone(), lsa.version());
    }
}

impl Spent {
    pub(in crate::router) fn add(&mut self, lsa: Lsa) {
        while self.0.len() >= SPENT_MAX {
            self.0.pop_first();
        }
        self.0.insert(lsa.key.clone(), lsa);
    }

    pub(super) fn forget(&mut self, node: &NodeId) {
        self.0.retain(|key, _| key.node != *node);
    }
}

impl Guard {
    /// Signs what this node states. `None`: it cannot, and states nothing.
    pub(in crate::router) fn sign(
        &mut self,
        key: &LsaKey,
        (seq, instance): (u64, u64),
        lifetime_s: u32,
        statement: Bytes,
    ) -> Option<Bytes> {
        let covered = SignedBody::covered(key, seq, instance, lifetime_s, &statement);
        let signature = Bytes::from(self.security.sign(&covered));
        let signed = SignedBody {
            statement,
            lifetime_s,
            signature,
        };
        (!signed.signature.is_empty()).then(|| signed.join())
    }

    /// Who this node says it is.
    pub(in crate::router) fn own_identity(&self) -> Bytes {
        self.security.identity()
    }

    /// The time of these statements is over.
    pub(in crate::router) fn spend(&mut self, lsas: impl IntoIterator<Item = Lsa>) {
        for lsa in lsas {
            self.spent.add(lsa);
        }
    }

    fn prove(&mut self, now: Instant, neighbor: &NodeId, lsa: &Lsa) -> Proof {
        let Some(signed) = SignedBody::split(&lsa.body) else {
            return Proof::Bad("it is not signed".to_string());
        };
        if !signed.allows(lsa) {
            return Proof::Bad("it lives longer than was stated".to_string());
        }
        if self.disbelieved.0.get(&lsa.key) == Some(&lsa.version()) {
            return Proof::BadAgain;
        }
        if let Some(spent) = self.spent.0.get(&lsa.key)
            && spent.seq >= lsa.seq
        {
            return if self.checks.take(now, neighbor, 1) {
                Proof::Spent(spent.clone())
            } else {
                Proof::Later
            };
        }
        let node = &lsa.key.node;
        let mut introduced = false;
        let known = self.security.known(node);
        if lsa.key.kind == LsaKind::IDENTITY && lsa.remaining_s > 0 {
            if known.as_ref() != Some(&signed.statement) {
                if !self.checks.take(now, neighbor, LEARN_COST) {
                    return Proof::Later;
                }
                match self.security.learn(now, node, &signed.statement) {
                    Ok(learned) => introduced = learned == Learned::New,
                    Err(why) => {
                        self.disbelieved.add(lsa);
                        return Proof::Bad(why.to_string());
                    }
                }
            }
        } else if known.is_none() {
            return Proof::Waits;
        }
        if !self.checks.take(now, neighbor, 1) {
            return Proof::Later;
        }
        let covered = SignedBody::covered(
            &lsa.key,
            lsa.seq,
            lsa.instance,
            signed.lifetime_s,
            &signed.statement,
        );
        if !self.security.verify(node, &covered, &signed.signature) {
            self.disbelieved.add(lsa);
            return Proof::Bad("its signature is not that of its originator".to_string());
        }
        if introduced {
            self.disbelieved.forget(node);
            Proof::Introduced
        } else {
            Proof::Good
        }
    }
}

impl Router {
    /// Whether news of a neighbor may be used and passed on.
    pub(in crate::router) fn vouch(
        &mut self,
        now: Instant,
        id: LinkId,
        lsa: &Lsa,
        out: &mut Out,
    ) -> Vouched {
        if !self.is_secured() {
            return Vouched::Yes;
        }
        let Some(peer) = self.links.get(&id).and_then(|link| link.peer.as_ref()) else {
            return Vouched::No;
        };
        let neighbor = peer.node.clone();
        self.is_introduced(now, &lsa.key.node, Some(&neighbor));
        let Some(guard) = &mut self.guard else {
            return Vouched::Yes;
        };
        match guard.prove(now, &neighbor, lsa) {
            Proof::Good => Vouched::Yes,
            Proof::Introduced => {
                self.introduced(now, &lsa.key.node, out);
                Vouched::Yes
            }
            Proof::Waits => {
                guard.waiting.keep(id, lsa.clone());
                Vouched::Waits
            }
            Proof::Later => Vouched::No,
            Proof::BadAgain => {
                self.counters.unproved += 1;
                Vouched::No
            }
            Proof::Spent(spent) => {
                self.counters.unproved += u64::from(spent.version() != lsa.version());
                // Should its originator be alive, it has forgotten what it used to state, and goes above.
                if let Some(link) = self.links.get_mut(&id) {
                    link.transmit(now, Frame::Lsas(alloc::vec![spent]), out);
                }
                Vouched::No
            }
            Proof::Bad(why) => {
                self.counters.unproved += 1;
                let text = alloc::format!("a statement of {} is refused: {why}", lsa.key.node);
                self.mistake(id, ErrorBody::new(ErrorCode::BadFrame, text), out);
                Vouched::No
            }
        }
    }
}
