//! What this node lets others do: the seam to whoever holds the rules.
//!
//! Owns the questions and what is said of a no. Never knows a rule: answers come from the driver's
//! [`Policy`], which must be quick, because it is asked for every packet and message.

use alloc::format;
use alloc::sync::Arc;
use core::fmt::Debug;

use receptor_proto::{Directive, ErrorBody, ErrorCode, NodeId};

/// Who may do what at this node. Gives the same answer to the same question until another one takes
/// its place ([`crate::Mesh::set_policy`]).
pub trait Policy: Debug + Send + Sync {
    /// Whether a node may have this directive run here.
    fn may_use(&self, sender: &NodeId, directive: &Directive) -> bool;

    /// Whether a node may be a neighbor.
    fn may_link(&self, node: &NodeId) -> bool;

    /// Whether this node forwards from one node to another. Asked of every packet; as whatever is asked is
    /// answered, the answer must be the same the other way round.
    fn may_pass(&self, from: &NodeId, to: &NodeId) -> bool;
}

/// What was denied, for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Denied {
    /// A message that asks for work.
    Work {
        /// Who asked.
        sender: NodeId,
        /// What for.
        directive: Directive,
    },
    /// A packet on its way.
    Transit {
        /// From whom.
        from: NodeId,
        /// To whom.
        to: NodeId,
    },
}

/// The rules as the core holds them; without any, everything is permitted.
#[derive(Debug, Clone, Default)]
pub(crate) struct Gate(Option<Arc<dyn Policy>>);

impl Gate {
    pub(crate) fn new(policy: Arc<dyn Policy>) -> Self {
        Self(Some(policy))
    }

    /// What a sender is told whose message is not taken.
    pub(crate) fn use_refusal(
        &self,
        node: &NodeId,
        sender: &NodeId,
        directive: &Directive,
    ) -> Option<ErrorBody> {
        let denied = self.0.as_ref()?;
        (!denied.may_use(sender, directive)).then(|| use_denied(node, sender, directive))
    }

    /// What a node is told that may not be a neighbor.
    pub(crate) fn link_refusal(&self, node: &NodeId, peer: &NodeId) -> Option<ErrorBody> {
        let policy = self.0.as_ref()?;
        (!policy.may_link(peer)).then(|| {
            let text = format!("{node} does not permit links with {peer}");
            ErrorBody::new(ErrorCode::PermissionDenied, text)
        })
    }

    pub(crate) fn may_pass(&self, from: &NodeId, to: &NodeId) -> bool {
        self.0
            .as_ref()
            .is_none_or(|policy| policy.may_pass(from, to))
    }
}

/// What a sender is told of a directive that `node` does not permit it.
#[must_use]
pub fn use_denied(node: &NodeId, sender: &NodeId, directive: &Directive) -> ErrorBody {
    let text = format!("{node} does not permit {directive} to {sender}");
    ErrorBody::new(ErrorCode::PermissionDenied, text)
        .with("node", node.as_str())
        .with("directive", directive.as_str())
}
