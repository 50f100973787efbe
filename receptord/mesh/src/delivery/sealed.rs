//! What delivery does otherwise in a mesh with certificates: messages in custody stay as their origin sealed
//! them, and what was received is remembered for as long as somebody may send it again.

use receptor_proto::NodeId;
use receptor_proto::packet::sealed::{Keepsake, SealedKept};
use receptor_proto::packet::{Body, Content, Message, Packet, kind};

use super::{BUSY, Delivery};

impl Delivery {
    /// A message that was entrusted to this node, as its origin itself would have sent it. `None`: it makes no
    /// sense.
    pub(super) fn onward(
        &self,
        origin: &NodeId,
        recipient: &NodeId,
        message: &Message,
    ) -> Option<Packet> {
        let (origin, recipient) = (origin.clone(), recipient.clone());
        if message.content != Content::Sealed {
            return Some(Packet::with_message(
                origin,
                recipient,
                self.hop_limit,
                message,
            ));
        }
        let keepsake = Keepsake::decode(message.body.clone()).ok()?;
        let mut body = alloc::vec::Vec::with_capacity(message.body.len());
        keepsake.message.encode(&mut body);
        Some(Packet {
            hop_limit: self.hop_limit,
            hops: 0,
            priority: message.priority(),
            source: origin,
            destination: recipient,
            kind: kind::SEALED | kind::MESSAGE,
            body: body.into(),
        })
    }

    /// A message in custody, with its payload, on its way to its recipient.
    pub(super) fn kept_packet(
        &self,
        origin: NodeId,
        recipient: NodeId,
        message: Message,
    ) -> Packet {
        let custodian = self.node.clone();
        if message.content != Content::Sealed {
            let body = Body::Kept { custodian, message };
            return Packet::new(origin, recipient, self.hop_limit, &body);
        }
        let kept = SealedKept {
            custodian,
            remaining_ms: message.remaining_ms,
            keepsake: message.body.clone(),
        };
        Packet {
            hop_limit: self.hop_limit,
            hops: 0,
            priority: message.priority(),
            source: origin,
            destination: recipient,
            kind: kind::SEALED | kind::KEPT,
            body: kept.encode(),
        }
    }

    /// A volatile message came that was sent to another start of this node. That one may have taken it, so it is not
    /// taken here; its origin is told which start this is, and sends it again if it still waits for word.
    pub(crate) fn on_other_start(&mut self, source: &NodeId, epoch: u64, seq: u64) {
        if let Some(from) = self.remote(source) {
            self.acks(from).busy((epoch, seq), BUSY);
        }
    }
}
