//! The seam between the two halves of a node: what delivery may ask of routing while it works.
//!
//! Owns no state. Delivery knows destinations and never links; routing knows packets and never
//! messages. Whatever either needs of the other goes through here or through the methods of
//! [`crate::delivery::Delivery`] that [`crate::Mesh`] calls.

use alloc::collections::BTreeMap;
use alloc::string::String;

use receptor_proto::packet::{Body, Message, Packet, Priority};
use receptor_proto::{Directive, ErrorCode, NodeId};

use crate::{Instant, LinkId, Reachability};

/// What delivery may ask of the routing half while it works.
pub(crate) trait Net {
    /// Whether there is a way to `node`; this node itself is reachable.
    fn reachability(&self, node: &NodeId) -> Reachability;

    /// The link that packets to `node` take now; `None` without a route and for this node
    /// itself. Only for comparing: changed or not.
    fn next_link(&self, node: &NodeId) -> Option<LinkId>;

    /// A number that changes when packets to `node` take other nodes, or a node among them or
    /// `node` itself was started anew: what was on its way may be lost then. 0 without a route.
    fn path(&self, node: &NodeId) -> u64 {
        self.next_link(node).map_or(0, |link| link.0 + 1)
    }

    /// The router that can be reached and is nearest to where `node`, to whom there is no way,
    /// was last; `None` when nobody is nearer than this node, or nothing is known of `node`.
    fn custodian(&self, node: &NodeId) -> Option<NodeId>;

    /// Whether `node` is between this node and `destination` on the way there, or was on the last one
    /// that there was, as far as this node knows. Nobody needs to be asked about a leaf's way
    /// but its routers.
    fn is_on_way(&self, node: &NodeId, destination: &NodeId) -> bool;

    /// Which start of a node its statements are of; 0: none is known.
    fn stated_start(&self, node: &NodeId) -> u64;

    /// The fingerprint of a sealed message in custody; 0 for any other.
    fn fingerprint(&self, message: &Message) -> u64;

    /// Bytes ([`Packet::wire_size`]) that the queue towards `node` can still take in this
    /// priority class; 0 without a route, [`usize::MAX`] for this node itself.
    fn room(&self, node: &NodeId, priority: Priority) -> usize;

    /// Routes and queues a packet in the name of the node that it is of: [`ErrorCode::NoRoute`] or
    /// [`ErrorCode::NoSuchNode`] when there is no route, [`ErrorCode::Busy`] when there is no room. A packet
    /// to this node itself comes back through [`crate::delivery::Delivery::handle_packet`] after the current
    /// call has returned.
    fn pass_on(&mut self, packet: Packet) -> Result<(), ErrorCode>;

    /// The same with a body of this node; sealed, in a mesh with certificates. There it is busy also
    /// when `to` must say first who it is.
    fn send(&mut self, now: Instant, to: &NodeId, body: &Body) -> Result<(), ErrorCode>;

    /// The same with a message. A volatile one is for the start `instance` of the recipient, if
    /// nothing later is known of it; 0: none is known.
    fn send_message(
        &mut self,
        now: Instant,
        to: &NodeId,
        message: &Message,
        instance: u64,
    ) -> Result<(), ErrorCode>;

    /// The nearest reachable node that has the directive's plugin ready, with the action if it
    /// names its actions, and all of this metadata; this node counts, at no distance. Among
    /// equals one is drawn, so that work spreads.
    fn resolve(
        &mut self,
        directive: &Directive,
        metadata: &BTreeMap<String, String>,
    ) -> Option<NodeId>;
}
