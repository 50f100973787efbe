//! What a member can do with a certificate of its own: sign its statements, and seal what it sends.
//!
//! Owns its keys and what it has heard of who others are. It signs and seals whatever it is given, and nothing for others.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use receptor_identity::{Credentials, Member, SealKeys, Trust, UnixTime};
use receptor_proto::NodeId;
use receptor_proto::lsa::{Lsa, LsaKey, LsaKind};
use receptor_proto::packet::sealed::{Form, Sealed, Split};
use receptor_proto::packet::{Body, Packet, kind};
use receptor_proto::signed::SignedBody;

/// For how long it states anything.
const LIFETIME_S: u32 = 3600;
/// Where a seal has the key that it is of, behind the numbers of two others.
const ENCAPSULATED: Range<usize> = 8..40;

/// See the module.
pub(super) struct Papers {
    id: NodeId,
    member: Member,
    /// Seals that were.
    scribbled: u64,
}

impl Papers {
    pub(super) fn new(id: &NodeId, credentials: Credentials, trust: Trust) -> Self {
        let keys = SealKeys::generate(UnixTime::now().as_secs());
        let member = Member::new(id.clone(), Arc::new(credentials), trust, keys);
        Self {
            id: id.clone(),
            member: member.expect("a certificate for this id"),
            scribbled: 0,
        }
    }

    /// Who it is, signed; newer than what any member here said before.
    pub(super) fn identity(&self) -> Lsa {
        static SAID: AtomicU64 = AtomicU64::new(1);
        let seq = SAID.fetch_add(1, Ordering::Relaxed);
        let body = self.member.statement(seq).expect("randomness");
        self.signed(Lsa {
            key: LsaKey {
                node: self.id.clone(),
                kind: LsaKind::IDENTITY,
            },
            seq,
            instance: 1,
            remaining_s: LIFETIME_S,
            body,
        })
    }

    /// The same statement with a signature of this member, whoever it is about.
    pub(super) fn signed(&self, mut lsa: Lsa) -> Lsa {
        lsa.remaining_s = LIFETIME_S;
        let covered = SignedBody::covered(&lsa.key, lsa.seq, lsa.instance, LIFETIME_S, &lsa.body);
        let signature = self.member.sign(&covered).expect("randomness").into();
        let signed = SignedBody {
            statement: lsa.body,
            lifetime_s: LIFETIME_S,
            signature,
        };
        lsa.body = signed.join();
        lsa
    }

    /// Hears what others say of who they are.
    pub(super) fn hear(&mut self, lsa: &Lsa) {
        if lsa.key.kind == LsaKind::IDENTITY {
            let statement: Bytes = SignedBody::statement_of(&lsa.body);
            // Whoever is not believed is not written to.
            let _ = self
                .member
                .learn(&lsa.key.node, &statement, UnixTime::now());
        }
    }

    /// Whether anything can be sealed to this node.
    pub(super) fn knows(&self, node: &NodeId) -> bool {
        self.member.knows(node)
    }

    /// The same packet, sealed. As it is when nothing is known of its destination, or nothing of its kind is sealed.
    pub(super) fn sealed(&mut self, packet: Packet) -> Packet {
        let body = Body::decode(packet.kind, packet.body.clone()).ok();
        let Some(split) = body.as_ref().and_then(Split::body) else {
            return packet;
        };
        let kind = kind::SEALED | split.kind;
        let bound = Sealed::bound(split.kind, Form::Hidden, &split.clear, &[]);
        let mut seal = Vec::new();
        let sealed = self.member.seal(
            &packet.destination,
            &bound,
            &[&split.hidden, &split.rest],
            &mut seal,
            Duration::ZERO,
        );
        if sealed.is_err() {
            return packet;
        }
        let mut body = Vec::new();
        Sealed {
            form: Form::Hidden,
            clear: split.clear.into(),
            shown: Bytes::new(),
            seal: seal.into(),
        }
        .encode(&mut body);
        Packet {
            kind,
            body: body.into(),
            ..packet
        }
    }
    /// A sealed packet whose seal is of a key that nobody has, another one each time.
    pub(super) fn scribbled(&mut self, packet: Packet) -> Packet {
        let packet = self.sealed(packet);
        let Ok(mut sealed) = Sealed::decode(packet.body.clone()) else {
            return packet;
        };
        self.scribbled += 1;
        let mut seal = sealed.seal.to_vec();
        seal[ENCAPSULATED][..8].copy_from_slice(&self.scribbled.to_be_bytes());
        sealed.seal = seal.into();
        let mut body = Vec::new();
        sealed.encode(&mut body);
        Packet {
            body: body.into(),
            ..packet
        }
    }
}
