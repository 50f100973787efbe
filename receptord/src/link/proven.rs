//! Whom the links of this node are proven to lead to.
//!
//! Owns what each encrypted link was proven with, for as long as it stands, and says which of them would not be
//! made again: a certificate is over, revoked, or from an authority that is trusted no more.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use receptor_identity::{CertificateDer, Refusal, Role, Trust, UnixTime};
use receptor_mesh::LinkId;
use receptor_proto::NodeId;

/// What the other end of a TLS connection has proven.
#[derive(Debug)]
pub(crate) struct Proven {
    /// The certificates that it presented, its own first.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    /// As what.
    pub(crate) role: Role,
    /// The nodes that it may be; at least one.
    pub(crate) node_ids: Vec<NodeId>,
    /// When the first of the certificates is over, in seconds since 1970.
    pub(crate) not_after: u64,
}

/// The node ids that the other end may use; empty when nothing is proven.
pub(super) fn node_ids(proven: Option<&Proven>) -> Vec<NodeId> {
    proven.map_or_else(Vec::new, |proven| proven.node_ids.clone())
}

/// The links that stand on a certificate.
#[derive(Debug, Default)]
pub(super) struct ProvenLinks {
    by_link: RefCell<BTreeMap<LinkId, Rc<Proven>>>,
}

/// One of them; dropping it forgets it.
#[derive(Debug)]
pub(super) struct Standing {
    links: Rc<ProvenLinks>,
    link: LinkId,
}

impl Drop for Standing {
    fn drop(&mut self) {
        self.links.by_link.borrow_mut().remove(&self.link);
    }
}

impl ProvenLinks {
    /// Keeps what a link was proven with until the answer is dropped.
    pub(super) fn keep(self: &Rc<Self>, link: LinkId, proven: Proven) -> Standing {
        self.by_link.borrow_mut().insert(link, Rc::new(proven));
        Standing {
            links: Rc::clone(self),
            link,
        }
    }

    /// When the certificate of a link is over, in seconds since 1970.
    pub(super) fn not_after(&self, link: LinkId) -> Option<u64> {
        let by_link = self.by_link.borrow();
        by_link.get(&link).map(|proven| proven.not_after)
    }

    /// The links whose certificate is over at this time.
    pub(super) fn expired(&self, now: u64) -> Vec<(LinkId, Refusal)> {
        let by_link = self.by_link.borrow();
        let over = by_link.iter().filter(|(_, proven)| proven.not_after < now);
        over.map(|(link, proven)| {
            let not_after = proven.not_after;
            (*link, Refusal::Expired { not_after })
        })
        .collect()
    }

    /// All that stand now.
    pub(super) fn all(&self) -> Vec<(LinkId, Rc<Proven>)> {
        let by_link = self.by_link.borrow();
        let all = by_link.iter();
        all.map(|(link, proven)| (*link, Rc::clone(proven)))
            .collect()
    }
}

impl Proven {
    /// Whether the same certificates would be believed at this time.
    ///
    /// # Errors
    ///
    /// Why not.
    pub(super) fn check(&self, trust: &Trust, now: u64) -> Result<(), Refusal> {
        let time = UnixTime::since_unix_epoch(Duration::from_secs(now));
        trust.verify(&self.chain, self.role, time).map(drop)
    }
}
