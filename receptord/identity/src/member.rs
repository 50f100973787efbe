//! This node among the others: whom it knows, what it signs and checks, what it seals and opens.
//!
//! Owns one bounded table of nodes, each with its verified statement and its contexts. It never passes judgement
//! on what a message may ask for, recognises no replays (whoever numbers messages does), and does public-key work
//! for a packet only when its context is not known yet.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use receptor_proto::NodeId;
use rustls_pki_types::UnixTime;

use crate::cache::Cache;
use crate::context::{Incoming, Outgoing, Sealed, context_name};
use crate::credentials::{Credentials, Purpose, SignError, VerifyingKey};
use crate::error::Refusal;
use crate::seal_keys::{SealKeys, SealPublicKey};
use crate::statement::Statement;
use crate::trust::Trust;

/// The most nodes whose identity is kept; those not used for longest are forgotten and have to be learned again. With
/// one context each way a node takes about 1.5 KiB beside its statement, which is shared with its LSA.
pub const PEERS_MAX: usize = 16_384;

/// The most contexts of one sender that are kept: its present one, the one before, and those of what waited on its way.
pub const INCOMING_MAX: usize = 4;

/// What a statement was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Learned {
    /// The first of the node.
    New,
    /// It replaces one that was known.
    Newer,
    /// The one that is known.
    Known,
    /// One that was replaced before; the newer one stays.
    Older,
}

/// What [`Member::recheck`] did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Recheck {
    /// Who is not believed any more and was forgotten, and why.
    pub refused: Vec<(NodeId, Refusal)>,
    /// There are more to be checked again: call it once more, soon.
    pub more: bool,
}

#[derive(Debug)]
struct Peer {
    statement: Bytes,
    sequence: u64,
    /// Seconds since 1970.
    not_after: u64,
    /// Which of this node's trusts believed it.
    believed_by: u64,
    key: VerifyingKey,
    seal_keys: Vec<SealPublicKey>,
    outgoing: Option<Box<Outgoing>>,
    incoming: Vec<Incoming>,
}

/// This node among the others.
#[derive(Debug)]
pub struct Member {
    node: NodeId,
    credentials: Arc<Credentials>,
    trust: Trust,
    /// Counts the trusts that there were.
    generation: u64,
    keys: SealKeys,
    peers: Cache<NodeId, Peer>,
}

impl Member {
    /// A member that knows nobody.
    ///
    /// # Errors
    ///
    /// When the certificate is not for `node`.
    pub fn new(
        node: NodeId,
        credentials: Arc<Credentials>,
        trust: Trust,
        keys: SealKeys,
    ) -> Result<Self, Refusal> {
        is_for(&credentials, &node)?;
        Ok(Self {
            node,
            credentials,
            trust,
            generation: 0,
            keys,
            peers: Cache::new(PEERS_MAX),
        })
    }

    /// This node's own statement. `sequence` must grow, see [`Statement::make`].
    ///
    /// # Errors
    ///
    /// When the system gives no randomness.
    pub fn statement(&self, sequence: u64) -> Result<Bytes, SignError> {
        Statement::make(&self.node, sequence, &self.credentials, &self.keys.public())
    }

    /// Signs an LSA of this node.
    ///
    /// # Errors
    ///
    /// When the system gives no randomness.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
        self.credentials.key().sign(Purpose::Lsa, message)
    }

    /// Takes in the statement of `node`, if it is to be believed and no older than the one that is known. The bytes
    /// are kept, so they should be a slice of what is kept anyway.
    ///
    /// # Errors
    ///
    /// Why it is not believed. What was known of the node stays.
    pub fn learn(
        &mut self,
        node: &NodeId,
        statement: &Bytes,
        now: UnixTime,
    ) -> Result<Learned, Refusal> {
        let generation = self.generation;
        if let Some(peer) = self.peers.get_mut(node)
            && peer.statement == *statement
            && peer.believed_by == generation
            && now.as_secs() <= peer.not_after
        {
            return Ok(Learned::Known);
        }
        let read = Statement::read(statement)?;
        if read.node() != node {
            return Err(Refusal::OtherNode {
                node: node.clone(),
                certified: vec![read.node().clone()],
            });
        }
        let verified = read.verify(&self.trust, now)?;
        let mut peer = Peer {
            statement: statement.clone(),
            sequence: read.sequence(),
            not_after: verified.not_after,
            believed_by: generation,
            key: verified.key,
            seal_keys: read.keys().to_vec(),
            outgoing: None,
            incoming: Vec::new(),
        };
        let Some(known) = self.peers.get_mut(node) else {
            self.peers.insert(node.clone(), peer);
            return Ok(Learned::New);
        };
        // Of two with one number, which an honest node does not make, all nodes keep the same.
        if (peer.sequence, &peer.statement) < (known.sequence, &known.statement) {
            return Ok(Learned::Older);
        }
        let same = peer.statement == known.statement;
        // Contexts name the keys they are of, so those whose keys are gone fall out of use by themselves.
        peer.outgoing = known.outgoing.take();
        peer.incoming = std::mem::take(&mut known.incoming);
        let keys: Vec<_> = peer.seal_keys.iter().map(SealPublicKey::id).collect();
        peer.incoming
            .retain(|context| keys.contains(&context.sender_key()));
        *known = peer;
        Ok(if same { Learned::Known } else { Learned::Newer })
    }

    /// Whether the node's statement is known.
    #[must_use]
    pub fn knows(&self, node: &NodeId) -> bool {
        self.peers.contains(node)
    }

    /// The node's statement that is known.
    #[must_use]
    pub fn statement_of(&self, node: &NodeId) -> Option<&Bytes> {
        Some(&self.peers.peek(node)?.statement)
    }

    /// Whether [`Self::open`] takes no public-key work: the packet is of a context that is known, or cannot be opened
    /// anyway.
    #[must_use]
    pub fn opens_cheaply(&self, from: &NodeId, sealed: &[u8]) -> bool {
        let Some(name) = context_name(sealed) else {
            return true;
        };
        let peer = self.peers.peek(from);
        peer.is_none_or(|peer| peer.incoming.iter().any(|known| known.is_named(name)))
    }

    /// How many nodes' statements are known; at most [`PEERS_MAX`].
    #[must_use]
    pub fn known(&self) -> usize {
        self.peers.len()
    }

    /// Forgets a node, as when its statement has aged out.
    pub fn forget(&mut self, node: &NodeId) {
        self.peers.remove(node);
    }

    /// Checks that `node` signed this LSA.
    ///
    /// # Errors
    ///
    /// [`Refusal::UnknownNode`] or [`Refusal::Signature`].
    pub fn verify(
        &mut self,
        node: &NodeId,
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), Refusal> {
        let peer = self.peers.get_mut(node).ok_or(Refusal::UnknownNode)?;
        if peer.key.verifies(Purpose::Lsa, message, signature) {
            Ok(())
        } else {
            Err(Refusal::Signature)
        }
    }

    /// Appends to `out` these parts as what only `to` can open, and only as coming from this node and with the same `aad`:
    /// [`crate::OVERHEAD`] bytes more than `plain`. Both node ids are bound to it in any case. `uptime` is any clock that is never set back.
    ///
    /// # Errors
    ///
    /// [`Refusal::UnknownNode`] when its statement must be learned first; [`Refusal::NoKey`] when it has no usable key.
    /// Then nothing is appended.
    ///
    /// # Panics
    ///
    /// When a new context is due and the system gives no randomness.
    pub fn seal(
        &mut self,
        to: &NodeId,
        aad: &[u8],
        plain: &[&[u8]],
        out: &mut Vec<u8>,
        uptime: Duration,
    ) -> Result<(), Refusal> {
        let peer = self.peers.get_mut(to).ok_or(Refusal::UnknownNode)?;
        let theirs = peer.seal_keys.first().ok_or(Refusal::NoKey)?;
        let own = self.keys.newest().ok_or(Refusal::NoKey)?;
        let usable = peer
            .outgoing
            .take()
            .filter(|context| !context.is_over(own.public().id(), theirs.id(), uptime));
        let context = match usable {
            Some(context) => context,
            None => Box::new(Outgoing::new(&self.node, own, to, theirs, uptime)?),
        };
        peer.outgoing.insert(context).seal(aad, plain, out)
    }

    /// Opens in place what `from` sealed to this node with the same `aad`; the plain text is a part of `sealed`. What
    /// cannot be opened is left in no particular state.
    ///
    /// A packet may be opened any number of times: replays are for the caller to recognise.
    ///
    /// # Errors
    ///
    /// [`Refusal::UnknownNode`] and [`Refusal::UnknownKey`] when a statement of `from` must be learned first, in which
    /// case `sealed` is as it was; [`Refusal::NotOurs`] when the key it was sealed to is gone;
    /// [`Refusal::NotAuthentic`] when it was not made so by `from` for this node.
    pub fn open<'a>(
        &mut self,
        from: &NodeId,
        aad: &[u8],
        sealed: &'a mut [u8],
        uptime: Duration,
    ) -> Result<&'a mut [u8], Refusal> {
        let packet = Sealed::parse(sealed)?;
        let peer = self.peers.get_mut(from).ok_or(Refusal::UnknownNode)?;
        let own = self
            .keys
            .find(packet.recipient_key())
            .ok_or(Refusal::NotOurs)?;
        let theirs = peer
            .seal_keys
            .iter()
            .find(|key| key.id() == packet.sender_key())
            .ok_or(Refusal::UnknownKey)?;
        if let Some(context) = peer.incoming.iter_mut().find(|known| known.opens(&packet)) {
            return context.open(packet, aad, uptime);
        }
        let mut context = Incoming::new(&packet, from, theirs, &self.node, own)?;
        let plain = context.open(packet, aad, uptime)?;
        // Kept only now that `from` has proved to have made it: nobody else can fill the table or empty it.
        if peer.incoming.len() == INCOMING_MAX {
            let oldest = (0..INCOMING_MAX).min_by_key(|at| peer.incoming[*at].used());
            peer.incoming.swap_remove(oldest.unwrap_or(0));
        }
        peer.incoming.push(context);
        Ok(plain)
    }

    /// Uses another certificate and key from now on; statement and signatures are then to be made anew.
    ///
    /// # Errors
    ///
    /// When the certificate is not for this node. Then nothing changes.
    pub fn set_credentials(&mut self, credentials: Arc<Credentials>) -> Result<(), Refusal> {
        is_for(&credentials, &self.node)?;
        self.credentials = credentials;
        Ok(())
    }

    /// Believes by other authorities and revocation lists from now on. Those who are known stay until
    /// [`Member::recheck`] has looked at them again.
    pub fn set_trust(&mut self, trust: Trust) {
        self.trust = trust;
        self.generation += 1;
    }

    /// Changes the keys by `change`, such as [`SealKeys::rotate`]; what it returns is handed on.
    pub fn with_seal_keys<T>(&mut self, change: impl FnOnce(&mut SealKeys) -> T) -> T {
        change(&mut self.keys)
    }

    /// Forgets whose certificate has expired, and looks again at up to `at_most` of those that were believed before
    /// [`Member::set_trust`], 0.2 to 1 ms each. Called every few seconds, and at once after a change of trust.
    pub fn recheck(&mut self, now: UnixTime, at_most: usize) -> Recheck {
        let mut result = Recheck::default();
        let mut checked = 0;
        for (node, peer) in self.peers.iter_mut() {
            if now.as_secs() > peer.not_after {
                let not_after = peer.not_after;
                let refusal = Refusal::Expired { not_after };
                result.refused.push((node.clone(), refusal));
            } else if peer.believed_by != self.generation {
                if checked == at_most {
                    result.more = true;
                    continue;
                }
                checked += 1;
                let again = Statement::read(&peer.statement)
                    .and_then(|statement| statement.verify(&self.trust, now));
                match again {
                    Ok(verified) => {
                        peer.not_after = verified.not_after;
                        peer.believed_by = self.generation;
                    }
                    Err(refusal) => result.refused.push((node.clone(), refusal)),
                }
            }
        }
        for (node, _) in &result.refused {
            self.peers.remove(node);
        }
        result
    }

    /// Drops contexts that are not used any more. Called every few minutes.
    pub fn tidy(&mut self, uptime: Duration) {
        for (_, peer) in self.peers.iter_mut() {
            peer.outgoing.take_if(|context| context.is_old(uptime));
            peer.incoming.retain(|context| !context.is_idle(uptime));
        }
    }
}

/// The first 64 bits of a SHA-256: enough to tell one message from all that somebody could make to pass for it.
#[must_use]
pub fn fingerprint(bytes: &[u8]) -> u64 {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    let first = digest.as_ref().first_chunk::<8>();
    first.map_or(0, |first| u64::from_be_bytes(*first))
}

fn is_for(credentials: &Credentials, node: &NodeId) -> Result<(), Refusal> {
    if credentials.node_ids().contains(node) {
        return Ok(());
    }
    Err(Refusal::OtherNode {
        node: node.clone(),
        certified: credentials.node_ids().to_vec(),
    })
}
