//! The link-state database: what every node last stated about itself, in any order of arrival
//! the same. Owns node indices, versions, ages and digests; never decides whom to tell.
//!
//! Node ids are interned ([`super::names`]): everything beside this file works on [`Index`].
//! Bodies stay as they came; of adjacencies an indexed copy is kept for [`super::spf`].
//!
//! A node that cannot be reached for long is *hidden*: its statements are left out of digests,
//! summaries, flooding and views, but kept until they expire. So they cannot come back through a
//! neighbor that hides it a little later, and the node is there at once when a way to it appears.
//! When the database is nearly full they go at once.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec;
use alloc::vec::Vec;
use core::time::Duration;

use bytes::Bytes;
use receptor_proto::NodeId;
use receptor_proto::frame::DIGEST_BUCKETS;
use receptor_proto::lsa::{CapabilitiesBody, LinksBody, Lsa, LsaKey, LsaKind, LsaSummary, Version};
use receptor_proto::signed::SIGNED_MORE;
use receptor_proto::wire::DecodeError;

use super::digest::NodeHash;
use super::names::Names;
use super::spf::{Edge, Graph};
use crate::Instant;

/// A node's place in every table.
pub(super) type Index = u32;
/// This node's own index.
pub(super) const OWN: Index = 0;
/// What an LSA is filed under. Kinds come first so that adjacencies are flooded before the rest.
pub(super) type Key = (LsaKind, Index);

/// The kinds that one node may state: those of this version and room for later ones.
const KINDS_MAX: usize = 8;
/// How long a taken-back statement is remembered, so that an old copy that is still under way
/// does not bring it back.
pub(super) const PURGE_KEEP: Duration = Duration::from_secs(60);
/// The longest lifetime that is believed, whatever an LSA says.
pub(super) const LIFETIME_MAX: Duration = Duration::from_secs(24 * 3600);
/// Sequence numbers from here on are refused, so that a node can always state something newer.
/// `instance << 20` of a wall clock in milliseconds stays below it until the year 2248.
pub(super) const SEQ_MAX: u64 = 1 << 63;

/// One statement.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) kind: LsaKind,
    pub(super) version: Version,
    pub(super) instance: u64,
    pub(super) expires: Instant,
    /// Taken back by its originator; the body has nothing but a signature.
    pub(super) purged: bool,
    pub(super) body: Bytes,
}

/// One node.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) id: NodeId,
    hash: NodeHash,
    /// By kind. Room for exactly what is there: most nodes have two.
    pub(super) lsas: Vec<Stored>,
    /// By index.
    pub(super) edges: Vec<Edge>,
    /// Decoded when first asked for.
    capabilities: Option<Box<CapabilitiesBody>>,
    pub(super) hidden: bool,
    /// When a way to it was lost; `None` while there is one.
    pub(super) unreachable: Option<Instant>,
    /// The neighbor that it was last reached through.
    pub(super) last_via: Option<NodeId>,
    pub(super) changed: Instant,
}

/// How an LSA compares with what is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// Nothing is there.
    Unknown,
    /// It is newer.
    Newer,
    /// It is what is there.
    Same,
    /// What is there is newer.
    Older,
}

/// Why an LSA was not taken.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Its body makes no sense.
    Bad(DecodeError),
    /// There is no room.
    Full,
}

/// What a new LSA changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Installed {
    pub(super) key: Key,
    /// Paths may be different now.
    pub(super) topology: bool,
}

/// What a sweep took away.
#[derive(Debug, Default)]
pub(super) struct Swept {
    /// Nodes that were known and are no longer.
    pub(super) forgotten: Vec<NodeId>,
    /// Paths may be different now.
    pub(super) topology: bool,
    /// What expired, if that is to be remembered.
    pub(super) spent: Vec<Lsa>,
}

/// The database.
#[derive(Debug)]
pub(super) struct Lsdb {
    names: Names,
    /// The nodes of each bucket of the digest, in no order.
    buckets: Vec<Vec<Index>>,
    nodes: Vec<Option<Node>>,
    free: Vec<Index>,
    digests: [u64; DIGEST_BUCKETS],
    /// Of nodes that lost an adjacency, who had the last one with them; also when nothing else is
    /// known of them any more.
    last_neighbors: BTreeMap<NodeId, NodeId>,
    /// LSAs, tombstones included.
    len: usize,
    limit: usize,
    /// Whether a sweep says what expired.
    keeps_spent: bool,
    /// Of their bodies.
    bytes: usize,
    bytes_limit: usize,
}

impl Stored {
    /// As it was at the end of its time.
    fn spent(&self, node: &NodeId) -> Lsa {
        Lsa {
            key: LsaKey {
                node: node.clone(),
                kind: self.kind,
            },
            seq: self.version.seq,
            instance: self.instance,
            remaining_s: u32::from(!self.purged),
            body: self.body.clone(),
        }
    }
}

impl Node {
    fn new(id: NodeId, now: Instant) -> Self {
        Self {
            hash: NodeHash::new(&id),
            id,
            lsas: Vec::new(),
            edges: Vec::new(),
            capabilities: None,
            hidden: false,
            unreachable: Some(now),
            last_via: None,
            changed: now,
        }
    }

    fn body_bytes(&self) -> usize {
        self.lsas.iter().map(|lsa| lsa.body.len()).sum()
    }

    pub(super) fn lsa(&self, kind: LsaKind) -> Option<&Stored> {
        self.lsas.iter().find(|lsa| lsa.kind == kind)
    }

    /// Whether anybody should be told of this node.
    pub(super) fn known(&self) -> bool {
        !self.hidden && !self.lsas.is_empty()
    }

    /// The latest start of this node that it stated something in; 0 when it stated nothing.
    pub(super) fn instance(&self) -> u64 {
        let live = self.lsas.iter().filter(|lsa| !lsa.purged);
        live.map(|lsa| lsa.instance).max().unwrap_or(0)
    }

    /// What it can do, as it states it.
    pub(super) fn read_capabilities(&self) -> Option<CapabilitiesBody> {
        let lsa = self.lsa(LsaKind::CAPABILITIES)?;
        // An undecodable body was not let in.
        (!lsa.purged).then(|| CapabilitiesBody::decode(&lsa.body).ok())?
    }

    fn digest_of(&self, lsa: &Stored) -> u64 {
        if lsa.purged || self.hidden {
            0
        } else {
            self.hash.lsa(lsa.kind, lsa.version)
        }
    }

    fn digest(&self) -> u64 {
        self.lsas
            .iter()
            .fold(0, |sum, lsa| sum.wrapping_add(self.digest_of(lsa)))
    }
}

impl Lsdb {
    /// A database that knows this node's name, at [`OWN`], and nothing else. `limit` bounds LSAs
    /// and names alike, `bytes_limit` the bodies of others' LSAs; `seed` keys the table of names.
    pub(super) fn new(
        own: &NodeId,
        seed: u64,
        (limit, bytes_limit): (usize, usize),
        now: Instant,
    ) -> Self {
        let mut lsdb = Self {
            names: Names::new(seed),
            buckets: vec![Vec::new(); DIGEST_BUCKETS],
            nodes: Vec::new(),
            free: Vec::new(),
            digests: [0; DIGEST_BUCKETS],
            last_neighbors: BTreeMap::new(),
            len: 0,
            limit: limit.max(KINDS_MAX),
            keeps_spent: false,
            bytes: 0,
            bytes_limit,
        };
        lsdb.intern(own, now);
        lsdb
    }

    pub(super) fn find(&self, id: &NodeId) -> Option<Index> {
        let text = id.as_str();
        self.names.find(id, |index| {
            self.node(index).is_some_and(|node| {
                // Most often it is the very same string.
                core::ptr::eq(node.id.as_str(), text) || node.id.as_str() == text
            })
        })
    }

    /// The index of this name, given now if need be; `None` when there are too many names.
    pub(super) fn intern(&mut self, id: &NodeId, now: Instant) -> Option<Index> {
        if let Some(index) = self.find(id) {
            return Some(index);
        }
        if self.names.len() >= self.limit {
            return None;
        }
        let node = Node::new(id.clone(), now);
        let bucket = node.hash.bucket();
        let node = Some(node);
        let index = if let Some(index) = self.free.pop() {
            self.nodes[index as usize] = node;
            index
        } else {
            let index = Index::try_from(self.nodes.len()).ok()?;
            self.nodes.push(node);
            index
        };
        self.buckets[bucket].push(index);
        let nodes = &self.nodes;
        self.names.insert(id, index, |index| {
            Some(&nodes.get(index as usize)?.as_ref()?.id)
        });
        Some(index)
    }

    pub(super) fn node(&self, index: Index) -> Option<&Node> {
        self.nodes.get(index as usize)?.as_ref()
    }

    pub(super) fn node_mut(&mut self, index: Index) -> Option<&mut Node> {
        self.nodes.get_mut(index as usize)?.as_mut()
    }

    /// Every name, in order of index.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Index, &Node)> {
        (0..)
            .zip(&self.nodes)
            .filter_map(|(index, node)| Some((index, node.as_ref()?)))
    }

    pub(super) fn get(&self, key: Key) -> Option<&Stored> {
        self.node(key.1)?.lsa(key.0)
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn digests(&self) -> &[u64; DIGEST_BUCKETS] {
        &self.digests
    }

    /// How a version of the LSA with this key compares with what is here, and its key here.
    /// Everywhere the same one of two counts, so that nobody is left with another when its
    /// originator is gone. What states something counts before what takes it back, so that its
    /// originator hears of it.
    pub(super) fn compare(&self, key: &LsaKey, version: Version) -> (Standing, Option<Key>) {
        let Some(index) = self.find(&key.node) else {
            return (Standing::Unknown, None);
        };
        let standing = match self.get((key.kind, index)) {
            None => Standing::Unknown,
            Some(stored) => match version.cmp(&stored.version) {
                core::cmp::Ordering::Less => Standing::Older,
                core::cmp::Ordering::Equal => Standing::Same,
                core::cmp::Ordering::Greater => Standing::Newer,
            },
        };
        (standing, Some((key.kind, index)))
    }

    /// Puts an LSA in the place of an older one or of none.
    pub(super) fn install(&mut self, now: Instant, lsa: &Lsa) -> Result<Installed, Refusal> {
        let purged = lsa.remaining_s == 0;
        let mut stated = None;
        if purged {
            // What is taken back states nothing.
        } else if lsa.key.kind == LsaKind::LINKS {
            stated = Some(LinksBody::decode(&lsa.body).map_err(Refusal::Bad)?);
        } else if lsa.key.kind == LsaKind::CAPABILITIES {
            CapabilitiesBody::decode(&lsa.body).map_err(Refusal::Bad)?;
        }
        let index = self.intern(&lsa.key.node, now).ok_or(Refusal::Full)?;
        if self.len >= self.limit && self.get((lsa.key.kind, index)).is_none() {
            return Err(Refusal::Full);
        }
        let before = self.get((lsa.key.kind, index));
        let before = before.map_or(0, |stored| stored.body.len());
        // What takes back states nothing, but may be signed.
        let body = if purged && lsa.body.len() > SIGNED_MORE {
            Bytes::new()
        } else {
            lsa.body.clone()
        };
        let bytes = self.bytes - before + body.len();
        // What is taken back or gets shorter makes room, and a node always states itself.
        if index != OWN && !purged && body.len() > before && bytes > self.bytes_limit {
            return Err(Refusal::Full);
        }
        let links = lsa.key.kind == LsaKind::LINKS;
        let mut edges: Vec<Edge> = Vec::new();
        for link in stated.iter().flat_map(|body| &body.links) {
            // Names beyond the limit are left out: they are no nodes that anything is known of.
            let Some(to) = self.intern(&link.neighbor, now) else {
                continue;
            };
            if to != index {
                let (cost, leaf) = (link.cost, link.leaf);
                edges.push(Edge { to, cost, leaf });
            }
        }
        edges.sort_unstable();
        edges.shrink_to_fit();
        let Some(node) = self.nodes[index as usize].as_mut() else {
            return Err(Refusal::Full);
        };
        let mut topology = links && node.edges != edges;
        let digest = &mut self.digests[node.hash.bucket()];
        let kind = lsa.key.kind;
        let place = node.lsas.binary_search_by_key(&kind, |lsa| lsa.kind);
        if place.is_err() && node.lsas.len() >= KINDS_MAX {
            return Err(Refusal::Full);
        }
        let lifetime = if purged {
            PURGE_KEEP
        } else {
            Duration::from_secs(u64::from(lsa.remaining_s)).min(LIFETIME_MAX)
        };
        let stored = Stored {
            kind,
            version: lsa.version(),
            instance: lsa.instance,
            expires: now + lifetime,
            purged,
            body,
        };
        self.bytes = bytes;
        // The same string as in what is passed on, so that comparing need not look at it.
        node.id = lsa.key.node.clone();
        node.changed = now;
        *digest = digest.wrapping_add(node.digest_of(&stored));
        match place {
            Ok(place) => {
                let before = core::mem::replace(&mut node.lsas[place], stored);
                *digest = digest.wrapping_sub(node.digest_of(&before));
                // A new start of a node makes a new path of the same nodes.
                topology |= before.instance != lsa.instance;
            }
            Err(place) => {
                node.lsas.reserve_exact(1);
                node.lsas.insert(place, stored);
                self.len += 1;
                topology = true;
            }
        }
        let ended = if links {
            core::mem::replace(&mut node.edges, edges)
        } else {
            Vec::new()
        };
        if kind == LsaKind::CAPABILITIES {
            node.capabilities = None;
        }
        if node.hidden {
            // Something new from it: it lives.
            node.unreachable = node.unreachable.map(|_| now);
            self.show(index);
        }
        if !ended.is_empty() {
            self.note_ended(index, &ended);
        }
        let key = (kind, index);
        Ok(Installed { key, topology })
    }

    /// Notes of adjacencies that a node stated before and does not now who had them.
    fn note_ended(&mut self, index: Index, before: &[Edge]) {
        let Some(node) = self.node(index) else {
            return;
        };
        let mut ended: Vec<(NodeId, NodeId)> = Vec::new();
        for edge in before {
            let stays = node.edges.iter().any(|now| now.to == edge.to);
            if let (false, Some(to)) = (stays, self.node(edge.to)) {
                ended.push((to.id.clone(), node.id.clone()));
                if node.edges.is_empty() && !edge.leaf {
                    ended.push((node.id.clone(), to.id.clone()));
                }
            }
        }
        for (node, neighbor) in ended {
            if self.last_neighbors.len() >= self.limit {
                self.last_neighbors.clear();
            }
            self.last_neighbors.insert(node, neighbor);
        }
    }

    /// Who stated the last adjacency with this node that has ended since.
    pub(super) fn last_neighbor(&self, node: &NodeId) -> Option<&NodeId> {
        self.last_neighbors.get(node)
    }

    /// The LSA as it goes out now; `None` when there is none, or it is about to expire or
    /// hidden. Remaining seconds are rounded down, so that they shrink from node to node.
    pub(super) fn outgoing(&self, now: Instant, key: Key) -> Option<Lsa> {
        let node = self.node(key.1)?;
        let stored = node.lsa(key.0)?;
        let remaining = stored.expires.since(now).as_secs();
        if node.hidden || remaining == 0 {
            return None;
        }
        let remaining = u32::try_from(remaining).unwrap_or(u32::MAX);
        Some(Lsa {
            key: LsaKey {
                node: node.id.clone(),
                kind: key.0,
            },
            seq: stored.version.seq,
            instance: stored.instance,
            remaining_s: if stored.purged { 0 } else { remaining },
            body: stored.body.clone(),
        })
    }

    /// The known nodes of a bucket from `after` on, in order of id.
    fn bucket(&self, bucket: usize, after: Option<&LsaKey>) -> Vec<(&Node, Index)> {
        let from = |node: &Node| after.is_none_or(|after| node.id >= after.node);
        let nodes = self.buckets[bucket].iter();
        let nodes = nodes.filter_map(|index| Some((self.node(*index)?, *index)));
        let mut nodes: Vec<_> = nodes
            .filter(|(node, _)| node.known() && from(node))
            .collect();
        nodes.sort_unstable_by(|a, b| a.0.id.cmp(&b.0.id));
        nodes
    }

    /// Up to `max` LSAs of a bucket behind `after`, in order of key, and whether there are more.
    /// Tombstones are among them, so that a neighbor with an old copy is told.
    pub(super) fn summaries(
        &self,
        bucket: usize,
        after: Option<&LsaKey>,
        max: usize,
    ) -> (Vec<LsaSummary>, bool) {
        let mut found = Vec::new();
        for (node, _) in self.bucket(bucket, after) {
            for lsa in &node.lsas {
                let key = LsaKey {
                    node: node.id.clone(),
                    kind: lsa.kind,
                };
                if after.is_some_and(|after| key <= *after) {
                    continue;
                }
                if found.len() == max {
                    return (found, true);
                }
                let version = lsa.version;
                found.push(LsaSummary { key, version });
            }
        }
        (found, false)
    }

    /// What to send to a neighbor that has `entries` between `after` and the last of them, or
    /// the bucket's end if nothing follows: what it lacks and what it has older.
    pub(super) fn missing(
        &self,
        bucket: usize,
        after: Option<&LsaKey>,
        entries: &[LsaSummary],
        more: bool,
    ) -> Vec<Key> {
        let theirs: BTreeMap<&LsaKey, Version> = entries
            .iter()
            .map(|entry| (&entry.key, entry.version))
            .collect();
        let last = if more { entries.last() } else { None };
        let mut missing = Vec::new();
        for (node, index) in self.bucket(bucket, after) {
            for lsa in &node.lsas {
                let key = LsaKey {
                    node: node.id.clone(),
                    kind: lsa.kind,
                };
                let before = after.is_some_and(|after| key <= *after);
                if before || last.is_some_and(|last| key > last.key) {
                    continue;
                }
                match theirs.get(&key) {
                    Some(version) if *version >= lsa.version => {}
                    // Nobody needs to be told that what it never heard of was taken back.
                    None if lsa.purged => {}
                    Some(_) | None => missing.push((lsa.kind, index)),
                }
            }
        }
        missing
    }

    /// The decoded capabilities, kept for the next time.
    pub(super) fn capabilities(&mut self, index: Index) -> Option<&CapabilitiesBody> {
        let node = self.node_mut(index)?;
        if node.capabilities.is_none() {
            node.capabilities = node.read_capabilities().map(Box::new);
        }
        node.capabilities.as_deref()
    }

    /// From now on a sweep says which statements expired.
    pub(super) fn keep_spent(&mut self, keeps: bool) {
        self.keeps_spent = keeps;
    }

    /// Removes all that a node stated. Whether there was something.
    pub(super) fn forget(&mut self, index: Index) -> bool {
        let Some(node) = self.nodes.get_mut(index as usize).and_then(Option::as_mut) else {
            return false;
        };
        let digest = &mut self.digests[node.hash.bucket()];
        *digest = digest.wrapping_sub(node.digest());
        let lsas = core::mem::take(&mut node.lsas);
        self.len -= lsas.len();
        node.edges = Vec::new();
        node.capabilities = None;
        !lsas.is_empty()
    }

    /// Ends the hiding of a node.
    pub(super) fn show(&mut self, index: Index) {
        self.set_hidden(index, false);
    }

    fn set_hidden(&mut self, index: Index, hidden: bool) {
        let Some(node) = self.nodes.get_mut(index as usize).and_then(Option::as_mut) else {
            return;
        };
        let digest = &mut self.digests[node.hash.bucket()];
        *digest = digest.wrapping_sub(node.digest());
        node.hidden = hidden;
        *digest = digest.wrapping_add(node.digest());
    }

    /// Removes what has expired, hides nodes that could not be reached for `retention`, and
    /// frees names that nothing refers to. `pinned` are in use elsewhere.
    pub(super) fn sweep(
        &mut self,
        now: Instant,
        retention: Duration,
        pinned: &BTreeSet<Index>,
    ) -> Swept {
        let mut swept = Swept::default();
        let mut referred: BTreeSet<Index> = BTreeSet::new();
        let mut bare: Vec<Index> = Vec::new();
        let mut stale: Vec<Index> = Vec::new();
        let crowded = self.len >= self.limit - self.limit / 4
            || self.bytes >= self.bytes_limit - self.bytes_limit / 4;
        for (index, node) in (0..).zip(&mut self.nodes) {
            let Some(node) = node else { continue };
            let known = node.known();
            let digest = &mut self.digests[node.hash.bucket()];
            let drop = crowded && node.hidden;
            if index != OWN && (drop || node.lsas.iter().any(|lsa| lsa.expires <= now)) {
                *digest = digest.wrapping_sub(node.digest());
                self.len -= node.lsas.len();
                if self.keeps_spent {
                    let expired = node.lsas.iter().filter(|lsa| lsa.expires <= now);
                    swept.spent.extend(expired.map(|lsa| lsa.spent(&node.id)));
                }
                self.bytes -= node.body_bytes();
                node.lsas.retain(|lsa| !drop && lsa.expires > now);
                self.len += node.lsas.len();
                self.bytes += node.body_bytes();
                *digest = digest.wrapping_add(node.digest());
                node.capabilities = None;
                if !node.edges.is_empty() && node.lsa(LsaKind::LINKS).is_none() {
                    node.edges = Vec::new();
                    swept.topology = true;
                }
            }
            if known && node.lsas.is_empty() && node.unreachable.is_some() {
                swept.forgotten.push(node.id.clone());
            }
            let unreachable = node.unreachable.map_or(Duration::ZERO, |at| now.since(at));
            if index != OWN && node.known() && unreachable >= retention {
                swept.forgotten.push(node.id.clone());
                stale.push(index);
            }
            if node.lsas.is_empty() && index != OWN && !pinned.contains(&index) {
                bare.push(index);
            } else {
                referred.extend(node.edges.iter().map(|edge| edge.to));
            }
        }
        for index in stale {
            self.set_hidden(index, true);
        }
        bare.retain(|index| !referred.contains(index));
        for index in &bare {
            if let Some(node) = self.nodes[*index as usize].take() {
                self.buckets[node.hash.bucket()].retain(|other| other != index);
            }
        }
        if !bare.is_empty() {
            let names = (0..).zip(&self.nodes);
            self.names
                .rebuild(names.filter_map(|(index, node)| Some((index, &node.as_ref()?.id))));
            self.free.append(&mut bare);
        }
        swept
    }
}

impl Graph for Lsdb {
    fn size(&self) -> usize {
        self.nodes.len()
    }

    fn edges(&self, node: Index) -> &[Edge] {
        self.node(node).map_or(&[], |node| &node.edges)
    }

    fn instance(&self, node: Index) -> u64 {
        self.node(node).map_or(0, Node::instance)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use receptor_proto::lsa::LinkEntry;

    fn id(number: u64) -> NodeId {
        NodeId::new(&alloc::format!("node-{number}")).unwrap()
    }

    fn links(node: u64, seq: u64, neighbors: &[u64]) -> Lsa {
        let mut links: Vec<LinkEntry> = neighbors
            .iter()
            .map(|neighbor| LinkEntry {
                neighbor: id(*neighbor),
                cost: 1,
                leaf: false,
            })
            .collect();
        links.sort_by(|a, b| a.neighbor.cmp(&b.neighbor));
        links.dedup();
        Lsa {
            key: LsaKey {
                node: id(node),
                kind: LsaKind::LINKS,
            },
            seq,
            instance: 1,
            remaining_s: 100,
            body: LinksBody { links }.encode(),
        }
    }

    fn empty(limit: usize) -> Lsdb {
        Lsdb::new(&id(0), 7, (limit, 1 << 20), Instant::default())
    }

    fn offer(lsdb: &mut Lsdb, lsa: &Lsa) {
        match lsdb.compare(&lsa.key, lsa.version()).0 {
            Standing::Unknown | Standing::Newer => {
                lsdb.install(Instant::default(), lsa).unwrap();
            }
            Standing::Same | Standing::Older => {}
        }
    }

    fn content(lsdb: &Lsdb) -> Vec<(NodeId, u8, Version, bool, Vec<NodeId>)> {
        let mut all: Vec<_> = lsdb
            .iter()
            .flat_map(|(_, node)| {
                let edges = node.edges.iter().map(|edge| lsdb.node(edge.to).unwrap());
                let mut edges: Vec<NodeId> = edges.map(|node| node.id.clone()).collect();
                edges.sort();
                node.lsas.iter().map(move |lsa| {
                    let (kind, version) = (lsa.kind.0, lsa.version);
                    (node.id.clone(), kind, version, lsa.purged, edges.clone())
                })
            })
            .collect();
        all.sort();
        all
    }

    fn lsa() -> impl Strategy<Value = Lsa> {
        (0..6u64, 1..5u64, 0..4u8, 0..3u64).prop_map(|(node, seq, kind, other)| {
            // Two nodes with one id state different things under one number.
            let mut lsa = links(node, seq, &[(node + seq + other) % 6, (node * seq) % 6]);
            lsa.instance = 1 + other % 2;
            if kind == 0 {
                lsa.key.kind = LsaKind(77);
            }
            if seq == 4 && node % 2 == 0 {
                lsa.remaining_s = 0;
            }
            lsa
        })
    }

    proptest! {
        #[test]
        fn any_order_of_arrival_makes_the_same_database(
            lsas in prop::collection::vec(lsa(), 0..40),
            seed: u64,
        ) {
            let mut one = empty(100);
            for lsa in &lsas {
                offer(&mut one, lsa);
            }
            let mut shuffled = lsas.clone();
            fastrand::Rng::with_seed(seed).shuffle(&mut shuffled);
            let mut two = empty(100);
            for lsa in shuffled.iter().chain(&lsas) {
                offer(&mut two, lsa);
            }
            prop_assert_eq!(content(&one), content(&two));
            prop_assert_eq!(one.digests(), two.digests());
            prop_assert_eq!(one.len(), two.len());
            let mut live = [0u64; DIGEST_BUCKETS];
            for (_, node) in one.iter() {
                let sum = &mut live[node.hash.bucket()];
                *sum = sum.wrapping_add(node.digest());
            }
            prop_assert_eq!(&live, one.digests());
        }

        #[test]
        fn summaries_find_exactly_what_differs(
            ours in prop::collection::vec(lsa(), 0..30),
            theirs in prop::collection::vec(lsa(), 0..30),
            chunk in 1..5usize,
        ) {
            let (mut one, mut two) = (empty(100), empty(100));
            for lsa in &ours {
                offer(&mut one, lsa);
            }
            for lsa in &theirs {
                offer(&mut two, lsa);
            }
            let mut pushed = BTreeSet::new();
            for bucket in 0..DIGEST_BUCKETS {
                let mut after: Option<LsaKey> = None;
                loop {
                    let (entries, more) = two.summaries(bucket, after.as_ref(), chunk);
                    pushed.extend(one.missing(bucket, after.as_ref(), &entries, more));
                    if !more {
                        break;
                    }
                    after = entries.last().map(|entry| entry.key.clone());
                }
            }
            for (index, node) in one.iter() {
                for lsa in &node.lsas {
                    let key = LsaKey { node: node.id.clone(), kind: lsa.kind };
                    let expected = match two.compare(&key, lsa.version).0 {
                        Standing::Unknown => !lsa.purged,
                        Standing::Newer => true,
                        Standing::Same | Standing::Older => false,
                    };
                    prop_assert_eq!(pushed.contains(&(lsa.kind, index)), expected);
                }
            }
        }
    }

    #[test]
    fn the_limit_holds_for_statements_and_for_names() {
        let mut lsdb = empty(10);
        for node in 1..9 {
            lsdb.install(Instant::default(), &links(node, 1, &[]))
                .unwrap();
        }
        let many: Vec<u64> = (100..200).collect();
        lsdb.install(Instant::default(), &links(9, 1, &many))
            .unwrap();
        assert_eq!(lsdb.iter().count(), 10);
        let full = lsdb.install(Instant::default(), &links(10, 1, &[]));
        assert_eq!(full, Err(Refusal::Full));
        // Newer versions of what is there always find room.
        assert!(lsdb.install(Instant::default(), &links(9, 2, &[1])).is_ok());
    }

    #[test]
    fn the_limit_of_bytes_holds_and_room_comes_back() {
        let now = Instant::default();
        let mut lsdb = empty(100);
        let many: Vec<u64> = (100..150).collect();
        lsdb.install(now, &links(1, 1, &many)).unwrap();
        lsdb.bytes_limit = lsdb.bytes + 10;
        let full = lsdb.install(now, &links(2, 1, &many));
        assert_eq!(full, Err(Refusal::Full));
        // One that does not grow is taken, and so is what this node says of itself.
        lsdb.install(now, &links(1, 2, &many)).unwrap();
        lsdb.install(now, &links(0, 1, &many)).unwrap();
        lsdb.install(now, &links(0, 2, &[])).unwrap();
        lsdb.install(now, &links(1, 3, &[])).unwrap();
        lsdb.install(now, &links(2, 1, &many)).unwrap();
        let end = now + Duration::from_secs(1000);
        lsdb.sweep(end, Duration::from_secs(600), &BTreeSet::new());
        let kept: usize = lsdb.nodes.iter().flatten().map(Node::body_bytes).sum();
        assert_eq!(lsdb.bytes, kept);
    }

    /// What takes back keeps its signature, and may be followed by another that does.
    #[test]
    fn what_takes_back_is_counted_as_what_it_is() {
        let now = Instant::default();
        let mut lsdb = empty(100);
        let signed = |seq| Lsa {
            remaining_s: 0,
            body: Bytes::from_static(&[7; SIGNED_MORE]),
            ..links(0, seq, &[])
        };
        for seq in 1..4 {
            lsdb.install(now, &signed(seq)).unwrap();
            assert_eq!(lsdb.bytes, SIGNED_MORE);
        }
        lsdb.install(now, &links(0, 4, &[1])).unwrap();
        let kept: usize = lsdb.nodes.iter().flatten().map(Node::body_bytes).sum();
        assert_eq!(lsdb.bytes, kept);
    }

    #[test]
    fn lifetimes_shrink_and_end() {
        let mut lsdb = empty(10);
        let start = Instant::default();
        let key = lsdb.install(start, &links(1, 1, &[2])).unwrap().key;
        let soon = start + Duration::from_millis(1);
        assert_eq!(lsdb.outgoing(soon, key).unwrap().remaining_s, 99);
        let late = start + Duration::from_millis(99_500);
        assert_eq!(lsdb.outgoing(late, key), None);
        let end = start + Duration::from_secs(100);
        let swept = lsdb.sweep(end, Duration::from_secs(600), &BTreeSet::new());
        assert_eq!((swept.forgotten, swept.topology), (vec![id(1)], true));
        assert_eq!((lsdb.len(), lsdb.iter().count()), (0, 1));
        assert_eq!(lsdb.digests(), empty(10).digests());
    }

    #[test]
    fn hidden_nodes_make_room() {
        let mut lsdb = empty(8);
        let start = Instant::default();
        let retention = Duration::from_secs(10);
        for node in 1..8 {
            lsdb.install(start, &links(node, 1, &[])).unwrap();
        }
        let later = start + retention;
        for _ in 0..2 {
            lsdb.sweep(later, retention, &BTreeSet::new());
        }
        assert_eq!((lsdb.len(), lsdb.iter().count()), (0, 1));
    }

    #[test]
    fn a_hidden_node_comes_back_only_by_itself() {
        let mut lsdb = empty(10);
        let start = Instant::default();
        lsdb.install(start, &links(1, 1, &[])).unwrap();
        let retention = Duration::from_secs(10);
        let later = start + retention;
        let swept = lsdb.sweep(later, retention, &BTreeSet::new());
        assert_eq!(swept.forgotten, [id(1)]);
        assert_eq!(lsdb.digests(), empty(10).digests());
        let again = links(1, 1, &[]);
        // A neighbor that is slower offers it again: it is no news.
        let standing = lsdb.compare(&again.key, again.version()).0;
        assert_eq!(standing, Standing::Same);
        assert!(
            lsdb.sweep(later, retention, &BTreeSet::new())
                .forgotten
                .is_empty()
        );
        // The node itself says something new.
        lsdb.install(later, &links(1, 2, &[])).unwrap();
        assert_ne!(lsdb.digests(), empty(10).digests());
    }
}
