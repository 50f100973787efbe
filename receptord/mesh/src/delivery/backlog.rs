//! What is known of messages that wait for their recipient in the store alone.
//!
//! Owns the pages of each recipient, which say of about a thousand messages where they are, how
//! many and how large, and when the first of them expires; and for the whole node a few bytes
//! for every such message, by which its page is found again. Holds no envelope and no payload, so
//! that a backlog takes next to no memory. Never asks the store for anything.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::time::Duration;

use receptor_proto::MessageId;
use receptor_proto::packet::{Message, MessageKind, SMALL_MAX};

use super::flow::Key;
use crate::{EntryId, Instant};

/// Small ones, bulk, and those whose payload is stored.
const SIZES: usize = 3;
/// These of requests and of responses: each kind waits in order, and none waits for another.
pub(crate) const LANES: usize = 2 * SIZES;

/// Which lane a message waits in.
pub(crate) fn lane(message: &Message) -> usize {
    let size = if message.is_segmented() {
        2
    } else {
        usize::from(message.size > SMALL_MAX as u64)
    };
    match message.kind {
        MessageKind::Request { .. } | MessageKind::Cancel { .. } => size,
        MessageKind::Response { .. } => SIZES + size,
    }
}

/// What a message is found by among those in pages: a request by its id, because others ask for
/// it by that; a response, of which a request may have thousands, by its entry.
pub(crate) fn name(message: &Message, entry: EntryId) -> MessageId {
    match message.kind {
        MessageKind::Request { .. } | MessageKind::Cancel { .. } => message.work,
        MessageKind::Response { .. } => MessageId::from_u128(entry.0.into()),
    }
}

/// Names a page among those of this node; a name is used again when its page is gone.
pub(crate) type Tag = u16;

/// Messages of one lane that are next to each other. What is in memory is in no page.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) tag: Tag,
    /// First and last; pages of one lane follow each other.
    pub(crate) keys: (Key, Key),
    /// All of its entries are between these. So may be others.
    pub(crate) entries: (EntryId, EntryId),
    pub(crate) count: usize,
    /// Their payloads.
    pub(crate) bytes: u64,
    /// When the first of them expires.
    pub(crate) expires: Instant,
    /// It is not looked at before.
    pub(crate) rests: Instant,
    /// Some of it is wanted before its turn.
    pub(crate) wanted: bool,
    /// The store is asked for it.
    pub(crate) loading: bool,
    /// Loads that failed since one did not.
    pub(crate) failures: u32,
}

/// What a page knows of one message.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Paged {
    pub(crate) key: Key,
    pub(crate) entry: EntryId,
    pub(crate) size: u64,
    pub(crate) expires: Instant,
}

impl Paged {
    pub(crate) fn new(now: Instant, entry: EntryId, message: &Message) -> Self {
        Self {
            key: (message.epoch, message.seq),
            entry,
            size: message.size,
            expires: now + Duration::from_millis(message.remaining_ms),
        }
    }
}

impl Page {
    pub(crate) fn new(tag: Tag, first: Paged) -> Self {
        Self {
            tag,
            keys: (first.key, first.key),
            entries: (first.entry, first.entry),
            count: 1,
            bytes: first.size,
            expires: first.expires,
            rests: Instant::default(),
            wanted: false,
            loading: false,
            failures: 0,
        }
    }

    pub(crate) fn add(&mut self, paged: Paged) {
        self.keys = (self.keys.0.min(paged.key), self.keys.1.max(paged.key));
        let (first, last) = self.entries;
        self.entries = (first.min(paged.entry), last.max(paged.entry));
        self.count += 1;
        self.bytes += paged.size;
        self.expires = self.expires.min(paged.expires);
    }

    /// When something is to be done about it.
    fn due(&self) -> Option<Instant> {
        if self.loading {
            None
        } else if self.wanted || self.failures > 0 {
            Some(self.rests)
        } else {
            Some(self.expires.max(self.rests))
        }
    }
}

/// The pages of one recipient.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    lanes: [VecDeque<Page>; LANES],
    messages: usize,
    due: Option<Instant>,
}

impl Backlog {
    pub(crate) fn is_empty(&self) -> bool {
        self.lanes.iter().all(VecDeque::is_empty)
    }

    /// Messages in pages.
    pub(crate) fn messages(&self) -> usize {
        self.messages
    }

    /// Whether anything waits in this lane.
    pub(crate) fn waits(&self, lane: usize) -> bool {
        !self.lanes[lane].is_empty()
    }

    /// Whether responses wait in a page.
    pub(crate) fn responses_wait(&self) -> bool {
        (SIZES..LANES).any(|lane| self.waits(lane))
    }

    /// No message in a page has a lower number.
    pub(crate) fn first_key(&self) -> Option<Key> {
        let fronts = self.lanes.iter().filter_map(VecDeque::front);
        fronts.map(|page| page.keys.0).min()
    }

    /// The page that comes next.
    pub(crate) fn front(&self, lane: usize) -> Option<&Page> {
        self.lanes[lane].front()
    }

    /// Whether a message with this number comes after all others of its lane.
    pub(crate) fn is_last(&self, lane: usize, key: Key) -> bool {
        self.lanes[lane].back().is_none_or(|page| page.keys.1 < key)
    }

    /// Adds to the last page. False: there is none that takes more.
    pub(crate) fn add(&mut self, lane: usize, paged: Paged, most: usize) -> bool {
        let Some(page) = self.lanes[lane].back_mut() else {
            return false;
        };
        if page.loading || page.count >= most {
            return false;
        }
        page.add(paged);
        self.messages += 1;
        let due = page.due();
        self.due = [self.due, due].into_iter().flatten().min();
        true
    }

    /// The tag of the last page.
    pub(crate) fn last_tag(&self, lane: usize) -> Option<Tag> {
        self.lanes[lane].back().map(|page| page.tag)
    }

    /// Adds a page behind all others.
    pub(crate) fn push(&mut self, lane: usize, page: Page) {
        self.messages += page.count;
        self.due = [self.due, page.due()].into_iter().flatten().min();
        self.lanes[lane].push_back(page);
    }

    pub(crate) fn page(&self, lane: usize, tag: Tag) -> Option<&Page> {
        self.lanes[lane].iter().find(|page| page.tag == tag)
    }

    /// Changes a page; one that is empty then is gone. Gives back whether it is.
    pub(crate) fn change(&mut self, lane: usize, tag: Tag, change: impl FnOnce(&mut Page)) -> bool {
        let pages = &mut self.lanes[lane];
        let Some(at) = pages.iter().position(|page| page.tag == tag) else {
            return true;
        };
        let page = &mut pages[at];
        self.messages -= page.count;
        change(page);
        self.messages += page.count;
        let gone = page.count == 0 && !page.loading;
        if gone {
            pages.remove(at);
        }
        self.due = self.lanes.iter().flatten().filter_map(Page::due).min();
        gone
    }

    /// When [`Self::take_due`] has something.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Pages about which something is to be done.
    pub(crate) fn take_due(&self, now: Instant) -> Vec<(usize, Tag)> {
        if self.due.is_none_or(|due| due > now) {
            return Vec::new();
        }
        let mut due = Vec::new();
        for (lane, pages) in self.lanes.iter().enumerate() {
            let pages = pages
                .iter()
                .filter(|page| page.due().is_some_and(|at| at <= now));
            due.extend(pages.map(|page| (lane, page.tag)));
        }
        due
    }

    /// Bytes of memory.
    pub(crate) fn size(&self) -> usize {
        let pages: usize = self.lanes.iter().map(VecDeque::capacity).sum();
        pages * size_of::<Page>()
    }
}

/// How many parts the table of ids has, as a power of two: so many that of a million ids what
/// is to be moved for a new one is two kilobytes.
const SHARDS_LOG: u32 = 11;
/// Bytes kept of an id, beside the number of its part: with eleven bits for that, two of a million
/// ids are taken for one with a probability of one in four thousand, and a new one for one of
/// them with one in two thousand million.
const PRINT: usize = 5;
/// The same and the page's tag.
const SLOT: usize = PRINT + size_of::<Tag>();

/// Which page the message of a [`name`] is in, in seven bytes each: a part of a hash of the name,
/// and the page's tag.
#[derive(Debug)]
pub(crate) struct Ids {
    seed: u64,
    /// By the hash's highest bits; sorted.
    shards: Vec<Vec<[u8; SLOT]>>,
}

impl Ids {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            seed,
            shards: Vec::new(),
        }
    }

    fn place(&self, id: MessageId) -> (usize, [u8; PRINT]) {
        let id = id.as_u128();
        #[expect(clippy::cast_possible_truncation, reason = "both halves are taken")]
        let (high, low) = ((id >> 64) as u64, id as u64);
        let hash = mix(mix(high ^ self.seed) ^ low);
        let [_, _, _, print @ ..] = hash.to_be_bytes();
        let shard = usize::try_from(hash >> (64 - SHARDS_LOG)).unwrap_or(0);
        (shard, print)
    }

    /// Notes that the message of this name is in this page.
    pub(crate) fn insert(&mut self, id: MessageId, tag: Tag) {
        if self.shards.is_empty() {
            self.shards = (0..1usize << SHARDS_LOG).map(|_| Vec::new()).collect();
        }
        let (shard, print) = self.place(id);
        let slot = slot(print, tag);
        let shard = &mut self.shards[shard];
        // Grown by little: what is spared here is what a backlog costs.
        if shard.len() == shard.capacity() {
            shard.reserve_exact((shard.len() / 16).max(4));
        }
        let at = position(shard, slot);
        shard.insert(at, slot);
    }

    /// The pages that may have the message of this name; hardly ever more than one.
    pub(crate) fn find(&self, id: MessageId) -> impl Iterator<Item = Tag> {
        let (shard, print) = self.place(id);
        let shard = self.shards.get(shard).map_or(&[][..], Vec::as_slice);
        let at = position(shard, slot(print, Tag::MIN));
        shard[at..]
            .iter()
            .take_while(move |other| other[..PRINT] == print[..])
            .map(|other| Tag::from_be_bytes([other[PRINT], other[PRINT + 1]]))
    }

    pub(crate) fn contains(&self, id: MessageId) -> bool {
        !self.shards.is_empty() && self.find(id).next().is_some()
    }

    /// Whether the message of this name is in this page.
    pub(crate) fn is_in(&self, id: MessageId, tag: Tag) -> bool {
        self.find(id).any(|other| other == tag)
    }

    pub(crate) fn remove(&mut self, id: MessageId, tag: Tag) {
        if self.shards.is_empty() {
            return;
        }
        let (shard, print) = self.place(id);
        let shard = &mut self.shards[shard];
        let slot = slot(print, tag);
        let at = position(shard, slot);
        if shard.get(at) == Some(&slot) {
            shard.remove(at);
            if shard.len() < shard.capacity() / 2 {
                shard.shrink_to(shard.len() + shard.len() / 16);
            }
        }
    }

    /// Forgets what is left of a page, whichever ids these are. Slow, and rare.
    pub(crate) fn forget(&mut self, tag: Tag) {
        let tag = tag.to_be_bytes();
        for shard in &mut self.shards {
            shard.retain(|slot| slot[PRINT..] != tag);
        }
    }

    /// Bytes of memory.
    pub(crate) fn size(&self) -> usize {
        let slots: usize = self.shards.iter().map(Vec::capacity).sum();
        slots * SLOT + self.shards.capacity() * size_of::<Vec<[u8; SLOT]>>()
    }
}

/// How many of a sorted part come before this one. Hashes are spread evenly, so that it is looked
/// for where it should be: a binary search would touch ten places of memory that is in no cache.
fn position(shard: &[[u8; SLOT]], slot: [u8; SLOT]) -> usize {
    let [a, b, c, ..] = slot;
    let share = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
    let mut at = (shard.len() * share) >> 24;
    while at > 0 && shard[at - 1] >= slot {
        at -= 1;
    }
    while at < shard.len() && shard[at] < slot {
        at += 1;
    }
    at
}

fn slot(print: [u8; PRINT], tag: Tag) -> [u8; SLOT] {
    let [a, b, c, d, e] = print;
    let [y, z] = tag.to_be_bytes();
    [a, b, c, d, e, y, z]
}

/// A bijection without pattern (the finalizer of splitmix64).
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paged(seq: u64) -> Paged {
        Paged {
            key: (1, seq),
            entry: EntryId(seq),
            size: 10,
            expires: Instant::from_micros(1000 - seq),
        }
    }

    #[test]
    fn ids_are_found_until_they_are_removed() {
        let mut ids = Ids::new(7);
        let id = |n: u64| MessageId::from_u128(u128::from(n) << 64 | 5);
        let page = |n: u64| Tag::try_from(n / 1000).unwrap();
        assert!(!ids.contains(id(1)));
        for n in 0..20_000 {
            ids.insert(id(n), page(n));
        }
        let empty = (1 << SHARDS_LOG) * size_of::<Vec<[u8; SLOT]>>();
        assert!(ids.size() < 20_000 * 12 + empty, "{}", ids.size());
        for n in 0..20_000 {
            assert!(ids.is_in(id(n), page(n)));
            assert!(!ids.contains(id(n + 20_000)));
        }
        for n in 0..19_000 {
            ids.remove(id(n), page(n));
        }
        assert!(!ids.contains(id(18_999)) && ids.contains(id(19_000)));
        ids.forget(19);
        assert!(!ids.contains(id(19_000)));
        assert!(ids.size() < 2 * empty, "{}", ids.size());
    }

    #[test]
    fn pages_know_their_first_and_when_they_are_due() {
        let at = Instant::from_micros;
        let mut backlog = Backlog::default();
        assert!(!backlog.add(0, paged(5), 3));
        backlog.push(0, Page::new(1, paged(5)));
        assert!(backlog.add(0, paged(6), 3));
        assert!(backlog.add(0, paged(7), 3));
        assert!(!backlog.add(0, paged(8), 3));
        backlog.push(0, Page::new(2, paged(8)));
        backlog.push(1, Page::new(3, paged(3)));
        assert_eq!(backlog.messages(), 5);
        assert_eq!(backlog.first_key(), Some((1, 3)));
        assert!(backlog.is_last(0, (1, 9)) && !backlog.is_last(0, (1, 8)));
        assert_eq!(backlog.due(), Some(at(992)));
        assert_eq!(backlog.take_due(at(992)), [(0, 2)]);
        backlog.change(0, 2, |page| page.loading = true);
        assert!(!backlog.add(0, paged(9), 3));
        assert_eq!(backlog.due(), Some(at(993)));
        let gone = backlog.change(0, 2, |page| {
            page.loading = false;
            page.count = 0;
        });
        assert!(gone && backlog.page(0, 2).is_none());
        assert_eq!(backlog.messages(), 4);
    }
}
