//! Flooding: every statement reaches every router once over each link, and is sent again until
//! it is acknowledged; two databases are compared when an adjacency comes up.
//!
//! What a link has to send is a set of keys, not of versions: a key that changes twice before
//! there is room goes out once, in its last version, and the set is never larger than the
//! database. Statements that follow each other closely share a frame.
//!
//! **Comparison.** Both sides send a digest of 64 buckets, then summaries of the buckets that
//! differ, and each pushes what the other lacks. As long as the digests have differed the
//! exchange is repeated, ever more rarely, so that nothing depends on a single frame.
//!
//! Leaves take no part. A leaf and its router tell each other only what each states of itself,
//! and the router what it has of the leaf's, so that a leaf that lost its data learns which
//! sequence numbers it has used.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::time::Duration;

use receptor_proto::frame::{DIGEST_BUCKETS, Frame, MAX_FRAME_FLOOR, SUMMARY_MAX};
use receptor_proto::lsa::{Lsa, LsaKey, LsaKind, LsaSummary, Version};
use receptor_proto::{ErrorBody, ErrorCode};

use super::guard::Vouched;
use super::link::Link;
use super::lsdb::{Index, Key, Lsdb, OWN, Refusal, SEQ_MAX, Standing};
use super::{Out, Router};
use crate::{Counters, Instant, LinkId};

/// Least time between two frames of statements on one link, so that those that follow each other
/// closely share one; the first goes at once.
const LSAS_GAP: Duration = Duration::from_millis(4);
/// How long an acknowledgement may wait for others, or for any other frame.
const ACK_DELAY: Duration = Duration::from_millis(10);
/// Patience for an acknowledgement; four round trips if that is more. Doubles with every try.
const RETRANSMIT: Duration = Duration::from_secs(1);
/// Doublings of [`RETRANSMIT`]: a neighbor that is alive is asked every 8 s at least.
const RETRANSMIT_DOUBLINGS: u32 = 3;
/// First and longest time between two comparisons of databases that differed.
const COMPARE_FIRST: Duration = Duration::from_secs(1);
const COMPARE_LONGEST: Duration = Duration::from_secs(16);
/// Bytes of statements in one frame, unless a single one is larger. Far below the frame limit,
/// so that packets do not wait long behind it.
const LSAS_FRAME: usize = 16 * 1024;

/// A statement that was sent and not acknowledged.
#[derive(Debug)]
struct Sent {
    version: Version,
    at: Instant,
    tries: u32,
}

/// What one link has to flood.
#[derive(Debug, Default)]
pub(super) struct Flood {
    dirty: BTreeSet<Key>,
    unacked: BTreeMap<Key, Sent>,
    retransmit_at: Option<Instant>,
    /// When statements were sent last.
    lsas_at: Option<Instant>,
    acks: Vec<LsaSummary>,
    ack_at: Option<Instant>,
    digest_due: bool,
    /// The next digest asks for the neighbor's. The first one does not: the neighbor sends its
    /// own then anyway.
    ask: bool,
    /// When to compare again, and how long to wait after that; `None`: nothing to compare.
    compare_at: Option<Instant>,
    compare_gap: Duration,
    /// Buckets of which summaries are to be sent.
    buckets: BTreeSet<u8>,
    /// Behind which key the first of them goes on.
    resume: Option<LsaKey>,
    /// Where the peer's last summary ended, if more of its bucket follows.
    heard_to: Option<(u8, LsaKey)>,
}

impl Flood {
    fn retransmit_after(tries: u32, rtt: Option<Duration>) -> Duration {
        let base = RETRANSMIT.max(4 * rtt.unwrap_or_default());
        base * (1 << tries.min(RETRANSMIT_DOUBLINGS))
    }

    /// The peer has this version.
    fn acknowledged(&mut self, key: Key, version: Version, ours: Option<Version>) -> bool {
        if Some(version) >= ours {
            self.dirty.remove(&key);
        }
        let sent = self.unacked.get(&key);
        let covers = sent.is_some_and(|sent| sent.version <= version);
        if covers {
            self.unacked.remove(&key);
        }
        covers
    }

    fn acknowledge(&mut self, now: Instant, lsa: &Lsa) {
        // Beyond this the peer has to send again: it does not read.
        if self.acks.len() < 4 * SUMMARY_MAX {
            self.acks.push(lsa.summary());
        }
        if self.acks.len() >= SUMMARY_MAX {
            self.ack_at = Some(now);
        }
        let _ = self.ack_at.get_or_insert(now + ACK_DELAY);
    }

    /// Starts a comparison.
    pub(super) fn compare(&mut self, now: Instant, jitter: Duration) {
        self.digest_due = true;
        self.compare_gap = COMPARE_FIRST;
        self.compare_at = Some(now + COMPARE_FIRST + jitter);
    }

    pub(super) fn mark(&mut self, key: Key) {
        self.dirty.insert(key);
    }

    /// When there is something to do; what waits for room is not counted.
    fn next(&self, room: bool) -> Option<Instant> {
        let lsas = self.lsas_at.filter(|_| room && !self.dirty.is_empty());
        let times = [
            self.retransmit_at,
            self.ack_at,
            self.compare_at,
            lsas.map(|at| at + LSAS_GAP),
        ];
        times.into_iter().flatten().min()
    }

    /// What is to be sent first: who somebody is goes before what that node states.
    fn next_key(&self) -> Option<Key> {
        let identities = (LsaKind::IDENTITY, 0)..=(LsaKind::IDENTITY, Index::MAX);
        let first = self.dirty.range(identities).next();
        first.or_else(|| self.dirty.first()).copied()
    }

    /// Whether the peer has everything.
    pub(super) fn is_empty(&self) -> bool {
        self.dirty.is_empty() && self.unacked.is_empty() && self.buckets.is_empty()
    }
}

impl Link {
    /// Sends what is due now and may not wait, then at most one frame of what needs room.
    /// Whether there may be more.
    pub(super) fn pump_flood(
        &mut self,
        now: Instant,
        lsdb: &Lsdb,
        counters: &mut Counters,
        out: &mut Out,
    ) -> bool {
        if self.flood.compare_at.is_some_and(|at| at <= now) {
            let gap = (2 * self.flood.compare_gap).min(COMPARE_LONGEST);
            self.flood.compare_gap = gap;
            self.flood.compare_at = Some(now + gap);
            self.flood.digest_due = true;
            self.flood.ask = true;
        }
        if self.flood.retransmit_at.is_some_and(|at| at <= now) {
            self.retransmit(now);
        }
        let ack_due = self.flood.ack_at.is_none_or(|at| at <= now);
        if ack_due && !self.flood.acks.is_empty() {
            self.send_acks(now, out);
        }
        if !self.has_room() {
            return false;
        }
        if core::mem::take(&mut self.flood.digest_due) {
            let digests = lsdb.digests().to_vec();
            let reply = core::mem::take(&mut self.flood.ask);
            let buckets = digests;
            self.transmit(now, Frame::Digest { reply, buckets }, out);
            return true;
        }
        let lsas_at = self.flood.lsas_at.map_or(now, |at| at + LSAS_GAP);
        if !self.flood.dirty.is_empty() && lsas_at <= now {
            return self.send_lsas(now, lsdb, counters, out);
        }
        if let Some(bucket) = self.flood.buckets.first().copied() {
            self.send_summary(now, bucket, lsdb, out);
            return true;
        }
        false
    }

    /// When to look at this link's flooding again.
    pub(super) fn next_flood(&self) -> Option<Instant> {
        self.flood.next(self.has_room())
    }

    fn send_lsas(
        &mut self,
        now: Instant,
        lsdb: &Lsdb,
        counters: &mut Counters,
        out: &mut Out,
    ) -> bool {
        let rtt = self.rtt;
        let flood = &mut self.flood;
        let mut lsas = Vec::new();
        let mut size = 0;
        while let Some(key) = flood.next_key() {
            let Some(lsa) = lsdb.outgoing(now, key) else {
                flood.dirty.remove(&key);
                flood.unacked.remove(&key);
                continue;
            };
            if !lsas.is_empty() && size + lsa.encoded_len() > LSAS_FRAME {
                break;
            }
            size += lsa.encoded_len();
            flood.dirty.remove(&key);
            let version = lsa.version();
            let sent = flood.unacked.entry(key).or_insert(Sent {
                version,
                at: now,
                tries: 0,
            });
            sent.tries = if sent.version == version {
                sent.tries
            } else {
                0
            };
            sent.version = version;
            sent.at = now;
            let due = now + Flood::retransmit_after(sent.tries, rtt);
            flood.retransmit_at = Some(flood.retransmit_at.map_or(due, |at| at.min(due)));
            lsas.push(lsa);
        }
        if lsas.is_empty() {
            return true;
        }
        // A link with more than a frame's worth to say does not pause between frames.
        flood.lsas_at = flood.dirty.is_empty().then_some(now);
        counters.lsas_sent += lsas.len() as u64;
        self.transmit(now, Frame::Lsas(lsas), out);
        self.send_acks(now, out);
        true
    }

    pub(super) fn send_acks(&mut self, now: Instant, out: &mut Out) {
        while !self.flood.acks.is_empty() && self.takes_urgent() {
            let count = self.flood.acks.len().min(SUMMARY_MAX);
            let rest = self.flood.acks.split_off(count);
            let acks = core::mem::replace(&mut self.flood.acks, rest);
            self.transmit(now, Frame::LsaAck(acks), out);
        }
        // With an overdrawn writer they wait for its room.
        self.flood.ack_at = None;
    }

    fn retransmit(&mut self, now: Instant) {
        let rtt = self.rtt;
        let flood = &mut self.flood;
        flood.retransmit_at = None;
        for (key, sent) in &mut flood.unacked {
            if flood.dirty.contains(key) {
                continue;
            }
            let due = sent.at + Flood::retransmit_after(sent.tries, rtt);
            if due <= now {
                sent.tries += 1;
                flood.dirty.insert(*key);
            } else {
                flood.retransmit_at = Some(flood.retransmit_at.map_or(due, |at| at.min(due)));
            }
        }
    }

    fn send_summary(&mut self, now: Instant, bucket: u8, lsdb: &Lsdb, out: &mut Out) {
        let after = self.flood.resume.take();
        let (entries, more) = lsdb.summaries(usize::from(bucket), after.as_ref(), SUMMARY_MAX);
        if more {
            self.flood.resume = entries.last().map(|entry| entry.key.clone());
        } else {
            self.flood.buckets.remove(&bucket);
        }
        let frame = Frame::Summary {
            bucket,
            more,
            entries,
        };
        self.transmit(now, frame, out);
    }
}

// The largest summary and the largest statement fit the smallest frame limit.
const _: () = assert!(SUMMARY_MAX * (receptor_proto::id::NODE_ID_MAX + 21) < MAX_FRAME_FLOOR);
const _: () = assert!(receptor_proto::lsa::LSA_BODY_MAX + 512 < MAX_FRAME_FLOOR);

impl Router {
    /// What a new adjacency is told first.
    pub(super) fn start_flooding(&mut self, now: Instant, id: LinkId) {
        let full = self.config.router;
        let jitter = self.jitter(COMPARE_FIRST);
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        let Some(peer) = &link.peer else { return };
        if full && peer.router {
            self.flooding.insert(id);
            link.flood.compare(now, jitter);
        } else {
            for index in [OWN, peer.index] {
                for lsa in self.lsdb.node(index).iter().flat_map(|node| &node.lsas) {
                    link.flood.mark((lsa.kind, index));
                }
            }
        }
        self.wake(id);
    }

    /// A leaf says with an empty digest that it wants no flooding.
    pub(super) fn leaf_digest(&self) -> Option<Frame> {
        (!self.config.router).then(|| Frame::Digest {
            reply: false,
            buckets: Vec::new(),
        })
    }

    /// Passes a statement on to every neighbor that is to have it, but not to where it came from.
    pub(super) fn flood(&mut self, key: Key, from: Option<LinkId>) {
        if key.1 == OWN {
            for (id, link) in &mut self.links {
                if link.is_up() {
                    link.flood.mark(key);
                    self.ready.insert(*id);
                }
            }
            return;
        }
        // A leaf is told what the mesh holds in its name that is not of its present start: it
        // alone can take that back.
        if let Some(leaf) = self.neighbors.get(&key.1).filter(|peer| peer.leaf)
            && let Some(stored) = self.lsdb.get(key)
            && stored.instance != leaf.instance
        {
            for id in leaf.links().filter(|id| Some(*id) != from) {
                if let Some(link) = self.links.get_mut(&id) {
                    link.flood.mark(key);
                    self.ready.insert(id);
                }
            }
        }
        for id in &self.flooding {
            if Some(*id) != from
                && let Some(link) = self.links.get_mut(id)
            {
                link.flood.mark(key);
                self.ready.insert(*id);
            }
        }
    }

    pub(super) fn handle_digest(&mut self, id: LinkId, reply: bool, digest: &[u64]) {
        let router = self.config.router;
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        if !router || digest.len() != DIGEST_BUCKETS {
            return;
        }
        link.flood.digest_due |= reply;
        let mut same = true;
        for ((bucket, ours), theirs) in (0u8..).zip(self.lsdb.digests()).zip(digest) {
            if ours != theirs {
                same = false;
                link.flood.buckets.insert(bucket);
            }
        }
        // The resumed bucket is always the first; a new first one starts from its beginning.
        link.flood.resume = None;
        if same {
            link.flood.compare_at = None;
        } else if link.flood.compare_at.is_none() {
            link.flood.compare_at = Some(link.heard + COMPARE_FIRST);
            link.flood.compare_gap = COMPARE_FIRST;
        }
        self.wake(id);
    }

    pub(super) fn handle_summary(
        &mut self,
        id: LinkId,
        bucket: u8,
        more: bool,
        entries: &[LsaSummary],
    ) {
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        let leaf = link.peer.as_ref().is_none_or(|peer| !peer.router);
        if !self.config.router || leaf || usize::from(bucket) >= DIGEST_BUCKETS {
            return;
        }
        let after = match link.flood.heard_to.take() {
            Some((before, key)) if before == bucket => Some(key),
            _ => None,
        };
        for key in self
            .lsdb
            .missing(usize::from(bucket), after.as_ref(), entries, more)
        {
            link.flood.mark(key);
        }
        if let (true, Some(last)) = (more, entries.last()) {
            link.flood.heard_to = Some((bucket, last.key.clone()));
        }
        self.wake(id);
    }

    pub(super) fn handle_lsa_ack(&mut self, id: LinkId, entries: &[LsaSummary]) {
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        for entry in entries {
            let (_, key) = self.lsdb.compare(&entry.key, entry.version);
            if let Some(key) = key {
                let ours = self.lsdb.get(key).map(|stored| stored.version);
                link.flood.acknowledged(key, entry.version, ours);
            }
        }
    }

    pub(super) fn handle_lsas(&mut self, now: Instant, id: LinkId, lsas: Vec<Lsa>, out: &mut Out) {
        let Some(peer) = self.links.get(&id).and_then(|link| link.peer.as_ref()) else {
            return;
        };
        // From a leaf, and by a leaf, nothing is taken but what the sender says of itself.
        let only = (!peer.router || !self.config.router).then(|| peer.node.clone());
        for lsa in lsas {
            self.counters.lsas_received += 1;
            if lsa.seq >= SEQ_MAX {
                let text = alloc::format!("an impossible sequence number of {}", lsa.key.node);
                self.mistake(id, ErrorBody::new(ErrorCode::BadFrame, text), out);
                continue;
            }
            let (standing, key) = self.lsdb.compare(&lsa.key, lsa.version());
            let is_news = matches!(standing, Standing::Unknown | Standing::Newer);
            let is_of_peer = only.as_ref().is_none_or(|peer| *peer == lsa.key.node);
            if is_news && (is_of_peer || key.is_some_and(|key| key.1 == OWN)) {
                match self.vouch(now, id, &lsa, out) {
                    Vouched::Yes => {}
                    // Who takes everything back may never be known here again. What it takes back
                    // cannot be used before that either, so it need not come again.
                    Vouched::Waits if standing == Standing::Unknown && lsa.remaining_s == 0 => {
                        self.acknowledge(now, id, &lsa, None);
                        continue;
                    }
                    Vouched::Waits | Vouched::No => continue,
                }
            }
            if key.is_some_and(|key| key.1 == OWN) {
                self.handle_own_lsa(now, id, &lsa, standing, out);
                continue;
            }
            match &only {
                Some(peer) if *peer != lsa.key.node && self.config.router => {
                    let text = alloc::format!("the leaf {peer} speaks for {}", lsa.key.node);
                    self.mistake(id, ErrorBody::new(ErrorCode::BadFrame, text), out);
                }
                // It need not be sent to this leaf again.
                Some(peer) if *peer != lsa.key.node => self.acknowledge(now, id, &lsa, None),
                _ => self.handle_lsa(now, id, &lsa, standing, key, out),
            }
        }
        self.wake(id);
    }

    fn handle_lsa(
        &mut self,
        now: Instant,
        id: LinkId,
        lsa: &Lsa,
        standing: Standing,
        key: Option<Key>,
        out: &mut Out,
    ) {
        match standing {
            // Nobody behind this node heard of it from here. It is remembered all the same: an
            // older copy may have been overtaken, and nobody would take that one back again.
            Standing::Unknown if lsa.remaining_s == 0 => {
                let installed = self.lsdb.install(now, lsa).ok();
                self.acknowledge(now, id, lsa, installed.map(|installed| installed.key));
            }
            Standing::Unknown | Standing::Newer => match self.lsdb.install(now, lsa) {
                Ok(installed) => {
                    self.counters.lsas_new += 1;
                    if installed.topology {
                        self.request_routes(now);
                    }
                    self.offers_changed |= installed.key.0 == LsaKind::CAPABILITIES;
                    self.acknowledge(now, id, lsa, Some(installed.key));
                    // A newcomer's own statements may settle whose id it has.
                    self.recheck = true;
                    self.flood(installed.key, Some(id));
                }
                Err(Refusal::Bad(error)) => {
                    let text = alloc::format!("a bad statement of {}: {error}", lsa.key.node);
                    self.mistake(id, ErrorBody::new(ErrorCode::BadFrame, text), out);
                    self.acknowledge(now, id, lsa, None);
                }
                Err(Refusal::Full) => {
                    let text = alloc::format!("no room for statements of {}", lsa.key.node);
                    self.mistake(id, ErrorBody::new(ErrorCode::Busy, text), out);
                    self.acknowledge(now, id, lsa, None);
                }
            },
            Standing::Same => {
                let Some((link, key)) = self.links.get_mut(&id).zip(key) else {
                    return;
                };
                // Our own copy, if it is under way, answers theirs.
                let version = lsa.version();
                if !link.flood.acknowledged(key, version, Some(version)) {
                    link.flood.acknowledge(now, lsa);
                }
            }
            Standing::Older => self.answer_with_newer(now, id, key),
        }
    }

    /// The peer sent an old version; it gets ours unless that is under way.
    pub(super) fn answer_with_newer(&mut self, now: Instant, id: LinkId, key: Option<Key>) {
        let Some((link, key)) = self.links.get_mut(&id).zip(key) else {
            return;
        };
        let under_way = link.flood.unacked.get(&key).is_some_and(|sent| {
            let ours = self.lsdb.get(key);
            ours.is_some_and(|ours| ours.version == sent.version) && now.since(sent.at) < RETRANSMIT
        });
        if !under_way {
            link.flood.mark(key);
        }
    }

    /// Tells the peer that it need not send this again; what of it was to be sent there is not.
    pub(super) fn acknowledge(&mut self, now: Instant, id: LinkId, lsa: &Lsa, key: Option<Key>) {
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        if let Some(key) = key {
            let ours = self.lsdb.get(key).map(|stored| stored.version);
            link.flood.acknowledged(key, lsa.version(), ours);
        }
        link.flood.acknowledge(now, lsa);
    }
}
