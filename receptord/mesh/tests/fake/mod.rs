//! Certificates for tests: keyed hashes in place of signatures and ciphers, with a secret for every node that only
//! the authority knows. Whoever has no [`Fake`] of a node cannot sign, seal or open in its name.
//!
//! What is sealed is really covered (a stream of the hash), so that a canary in a payload is not found in it. Counts
//! what would be public-key work.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use receptor_mesh::{Changes, Disbelief, Instant, Learned, NotOpened, Security, Stranger};
use receptor_proto::NodeId;
use receptor_proto::packet::sealed::{Form, Keepsake, Sealed, SealedEntrusted, join};
use receptor_proto::packet::{Body, Content, Message, Packet, kind};
use receptor_proto::wire::{Reader, Writer};

/// Who says which node has which key.
#[derive(Debug, Default)]
pub(crate) struct Authority {
    seed: u64,
    revoked: RefCell<BTreeSet<NodeId>>,
    /// Whether nodes forget whom they know every few seconds, as those do who know too many.
    pub(crate) forgets: Cell<bool>,
    /// Public-key operations of all nodes.
    pub(crate) work: Cell<u64>,
}

/// One node's.
#[derive(Debug)]
pub(crate) struct Fake {
    node: NodeId,
    authority: Rc<Authority>,
    hides: bool,
    /// Which start of the node this is; a context belongs to one.
    start: u64,
    /// Which of the node's keys is in use; lower ones are kept but for those below `oldest`.
    key: u32,
    oldest: u32,
    counter: u64,
    known: BTreeMap<NodeId, (u32, Bytes)>,
    /// Contexts that were opened before, and those that were made.
    contexts: BTreeSet<(NodeId, u64)>,
    sealing: BTreeSet<NodeId>,
    seen_revoked: usize,
}

fn hash(parts: &[&[u8]]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for part in parts {
        part.hash(&mut hasher);
    }
    hasher.finish()
}

fn cover(key: u64, bytes: &mut [u8]) {
    for (chunk, at) in bytes.chunks_mut(8).zip(0u64..) {
        let stream = hash(&[&key.to_le_bytes(), &at.to_le_bytes()]).to_le_bytes();
        for (byte, with) in chunk.iter_mut().zip(stream) {
            *byte ^= with;
        }
    }
}

impl Authority {
    pub(crate) fn new(seed: u64) -> Rc<Self> {
        Rc::new(Self {
            seed,
            ..Self::default()
        })
    }

    /// Nobody is to believe this node any more.
    pub(crate) fn revoke(&self, node: &NodeId) {
        self.revoked.borrow_mut().insert(node.clone());
    }

    fn secret(&self, node: &NodeId) -> u64 {
        hash(&[&self.seed.to_le_bytes(), node.as_str().as_bytes()])
    }

    fn worked(&self) {
        self.work.set(self.work.get() + 1);
    }

    /// What a packet between two nodes says. `None`: nothing, or nothing sealed.
    pub(crate) fn reveal(&self, packet: &Packet) -> Option<Body> {
        if packet.kind & kind::SEALED == 0 {
            return None;
        }
        let (from, body) = (&packet.source, packet.body.clone());
        match kind::plain(packet.kind) {
            kind::KEPT => None,
            kind::ENTRUSTED => {
                let SealedEntrusted { recipient, message } = SealedEntrusted::decode(body).ok()?;
                let body = self.uncover(from, &recipient, kind::MESSAGE, &message)?;
                let Body::Message(message) = body else {
                    return None;
                };
                Some(Body::Entrusted { recipient, message })
            }
            kind => {
                let sealed = Sealed::decode(body).ok()?;
                self.uncover(from, &packet.destination, kind, &sealed)
            }
        }
    }

    fn uncover(&self, from: &NodeId, to: &NodeId, kind: u8, sealed: &Sealed) -> Option<Body> {
        let (head, rest) = sealed.seal.split_at_checked(HEAD)?;
        let mut text = rest[..rest.len().checked_sub(TAG)?].to_vec();
        cover(self.pair(from, to, head), &mut text);
        let hidden = match sealed.form {
            Form::Hidden => text.into(),
            Form::Shown => sealed.shown.clone(),
        };
        Some(join(kind, &sealed.clear, hidden).ok()?.0)
    }

    fn pair(&self, from: &NodeId, to: &NodeId, head: &[u8]) -> u64 {
        let (one, other) = (self.secret(from), self.secret(to));
        hash(&[&one.to_le_bytes(), &other.to_le_bytes(), head])
    }

    fn identity(&self, node: &NodeId, key: u32) -> Bytes {
        let mut out = Vec::new();
        let mut w = Writer(&mut out);
        w.node(node);
        w.fixed_u32(key);
        let proof = hash(&[b"identity", &self.seed.to_le_bytes(), w.0]);
        Writer(&mut out).fixed_u64(proof);
        out.into()
    }
}

impl Fake {
    pub(crate) fn new(authority: &Rc<Authority>, node: &NodeId, start: u64) -> Self {
        Self {
            node: node.clone(),
            authority: Rc::clone(authority),
            hides: true,
            start,
            key: 1,
            oldest: 1,
            counter: 0,
            known: BTreeMap::new(),
            contexts: BTreeSet::new(),
            sealing: BTreeSet::new(),
            seen_revoked: 0,
        }
    }

    /// Shows payloads to those on their way.
    pub(crate) fn showing(mut self) -> Self {
        self.hides = false;
        self
    }

    /// Uses this key, and has forgotten all before it.
    pub(crate) fn with_key(mut self, key: u32) -> Self {
        (self.key, self.oldest) = (key, key);
        self
    }
}

/// Which key of its recipient opens a message in custody. `None`: it is not sealed.
pub(crate) fn opens_with(kept: &Message) -> Option<u32> {
    if kept.content != Content::Sealed {
        return None;
    }
    let keepsake = Keepsake::decode(kept.body.clone()).ok()?;
    let key = keepsake.message.seal.first_chunk()?;
    Some(u32::from_be_bytes(*key))
}

/// Recipient's key, sender's key, context and counter.
const HEAD: usize = 4 + 4 + 8 + 8;
const TAG: usize = 8;

impl Security for Fake {
    fn identity(&self) -> Bytes {
        self.authority.identity(&self.node, self.key)
    }

    fn hides(&self) -> bool {
        self.hides
    }

    fn sign(&mut self, statement: &[u8]) -> Vec<u8> {
        self.authority.worked();
        let secret = self.authority.secret(&self.node).to_le_bytes();
        hash(&[b"sign", &secret, statement]).to_le_bytes().to_vec()
    }

    fn known(&self, node: &NodeId) -> Option<Bytes> {
        Some(self.known.get(node)?.1.clone())
    }

    fn learn(
        &mut self,
        _now: Instant,
        node: &NodeId,
        identity: &Bytes,
    ) -> Result<Learned, Disbelief> {
        if self.known(node).as_ref() == Some(identity) {
            return Ok(Learned::Known);
        }
        self.authority.worked();
        let no = |why: &str| Disbelief(why.to_owned());
        let mut r = Reader::new(identity.clone());
        let named = r.node("node").map_err(|_| no("it makes no sense"))?;
        let key = r.fixed_u32("key").map_err(|_| no("it makes no sense"))?;
        if named != *node || self.authority.identity(node, key) != *identity {
            return Err(no("it proves nothing"));
        }
        if self.authority.revoked.borrow().contains(node) {
            return Err(no("it is revoked"));
        }
        if self.known.get(node).is_some_and(|(known, _)| *known > key) {
            return Ok(Learned::Known);
        }
        self.known.insert(node.clone(), (key, identity.clone()));
        Ok(Learned::New)
    }

    fn verify(&mut self, node: &NodeId, statement: &[u8], signature: &[u8]) -> bool {
        self.authority.worked();
        let secret = self.authority.secret(node).to_le_bytes();
        signature == hash(&[b"sign", &secret, statement]).to_le_bytes()
    }

    fn seal(
        &mut self,
        _now: Instant,
        to: &NodeId,
        bound: &[u8],
        plain: &[&[u8]],
        out: &mut Vec<u8>,
    ) -> Result<(), Stranger> {
        let (theirs, _) = self.known.get(to).ok_or(Stranger)?;
        if self.sealing.insert(to.clone()) {
            self.authority.worked();
        }
        self.counter += 1;
        let from = out.len();
        out.extend_from_slice(&theirs.to_be_bytes());
        out.extend_from_slice(&self.key.to_be_bytes());
        out.extend_from_slice(&self.start.to_be_bytes());
        out.extend_from_slice(&self.counter.to_be_bytes());
        let key = self.authority.pair(&self.node, to, &out[from..]);
        let plain = plain.concat();
        let tag = hash(&[&key.to_le_bytes(), bound, &plain]);
        let text = out.len();
        out.extend_from_slice(&plain);
        cover(key, &mut out[text..]);
        out.extend_from_slice(&tag.to_be_bytes());
        Ok(())
    }

    fn fingerprint(&self, bytes: &[u8]) -> u64 {
        hash(&[b"fingerprint", bytes])
    }

    fn opens_cheaply(&self, from: &NodeId, sealed: &[u8]) -> bool {
        let start = sealed.get(8..16).and_then(|start| start.try_into().ok());
        let start = start.map(u64::from_be_bytes);
        start.is_some_and(|start| self.contexts.contains(&(from.clone(), start)))
    }

    fn open(
        &mut self,
        _now: Instant,
        from: &NodeId,
        bound: &[u8],
        mut sealed: BytesMut,
    ) -> Result<Bytes, NotOpened> {
        if sealed.len() < HEAD + TAG {
            return Err(NotOpened::Forged);
        }
        let head = sealed.split_to(HEAD);
        let tag = sealed.split_off(sealed.len() - TAG);
        let number = |at: usize| u32::from_be_bytes([0, 1, 2, 3].map(|n| head[at + n]));
        let (theirs, _) = self.known.get(from).ok_or(NotOpened::Stranger)?;
        if !(self.oldest..=self.key).contains(&number(0)) {
            return Err(NotOpened::NotOurs);
        }
        if number(4) > *theirs {
            return Err(NotOpened::Stranger);
        }
        if !self.opens_cheaply(from, &head) {
            self.authority.worked();
        }
        let key = self.authority.pair(from, &self.node, &head);
        cover(key, &mut sealed);
        let right = hash(&[&key.to_le_bytes(), bound, &sealed]).to_be_bytes();
        if tag[..] != right {
            return Err(NotOpened::Forged);
        }
        let start = u64::from_be_bytes(head[8..16].try_into().map_err(|_| NotOpened::Forged)?);
        self.contexts.insert((from.clone(), start));
        Ok(sealed.freeze())
    }

    fn recheck(&mut self, _now: Instant) -> Changes {
        if self.authority.forgets.get() {
            self.known.clear();
        }
        let revoked = self.authority.revoked.borrow();
        let trust = revoked.len() != self.seen_revoked;
        self.seen_revoked = revoked.len();
        let gone: Vec<NodeId> = revoked
            .iter()
            .filter(|node| self.known.remove(*node).is_some())
            .cloned()
            .collect();
        let why = || Disbelief("it is revoked".to_owned());
        Changes {
            own: false,
            trust,
            more: false,
            refused: gone.into_iter().map(|node| (node, why())).collect(),
        }
    }
}
