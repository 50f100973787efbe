//! What is in the spool and where: one small slot for each entry, and for each segment how much
//! of it is still needed.
//!
//! Owns all counting. A segment is *needed* while a record in it counts, or a removal in it
//! names an older segment that is still there: without the removal, what that segment holds
//! would come back. Does no I/O and encodes nothing.

use std::collections::BTreeMap;

use receptor_proto::NodeId;
use receptor_proto::record::EntryId;

use crate::segment::Place;
use crate::slots::{Pack, Slots, Unpack, pack_near};

/// What a note without a place of its own counts, in bytes: that a message was started, that an
/// entry was removed.
const NOTE: u64 = 24;
/// The slot of a message that counts for no recipient.
const NOBODY: u32 = u32::MAX;
/// The slot of a memo, which counts for no limit.
const MEMO: u32 = u32::MAX - 1;
/// No segment: their numbers begin at 1.
const NONE: u32 = 0;

/// How much there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Messages.
    pub entries: u64,
    /// Their bytes, payloads included.
    pub bytes: u64,
}

impl Usage {
    pub(crate) fn add(&mut self, bytes: u64) {
        self.entries += 1;
        self.bytes += bytes;
    }

    /// What is left when this is gone.
    pub(crate) fn without(self, gone: Self) -> Self {
        Self {
            entries: self.entries.saturating_sub(gone.entries),
            bytes: self.bytes.saturating_sub(gone.bytes),
        }
    }

    fn sub(&mut self, bytes: u64) {
        self.entries = self.entries.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

/// Where a message is. There may be a million of these.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) segment: u32,
    pub(crate) place: Place,
    /// Whose limit it counts for.
    node: u32,
    /// Where the mark is that it was started, or [`NONE`].
    pub(crate) started: u32,
}

impl Slot {
    /// Whether it is a message to another.
    pub(crate) fn is_outgoing(&self) -> bool {
        self.node < MEMO
    }

    /// Whether it is a memo and no message.
    pub(crate) fn is_memo(&self) -> bool {
        self.node == MEMO
    }
}

// What of a slot is not as it was to be expected behind the one before; then it follows.
const OTHER_SEGMENT: u8 = 1;
const OTHER_OFFSET: u8 = 1 << 1;
const OTHER_LENGTH: u8 = 1 << 2;
const OTHER_NODE: u8 = 1 << 3;
const OTHER_START: u8 = 1 << 4;
/// It lies in the same frame as the one before, and not in the next.
const SAME_FRAME: u8 = 1 << 5;

/// In memory, slots next to each other are mostly of messages that were written one after the
/// other, each in a frame of its own: nothing but the checksum is kept of those.
impl Pack for Slot {
    fn pack(&self, before: &Self, out: &mut Vec<u8>) {
        let flag = |is_other: bool, flag| if is_other { flag } else { 0 };
        let (same, next) = before.place.behind();
        let is_same = self.place.offset == same;
        let flags = flag(self.segment != before.segment, OTHER_SEGMENT)
            | flag(is_same, SAME_FRAME)
            | flag(!is_same && self.place.offset != next, OTHER_OFFSET)
            | flag(self.place.length != before.place.length, OTHER_LENGTH)
            | flag(self.node != before.node, OTHER_NODE)
            | flag(self.started != before.started, OTHER_START);
        out.push(flags);
        out.extend_from_slice(&self.place.crc.to_le_bytes());
        if flags & OTHER_SEGMENT != 0 {
            pack_near(self.segment, before.segment, out);
        }
        if flags & OTHER_OFFSET != 0 {
            pack_near(self.place.offset, next, out);
        }
        if flags & OTHER_LENGTH != 0 {
            pack_near(self.place.length, before.place.length, out);
        }
        if flags & OTHER_NODE != 0 {
            pack_near(self.node, before.node, out);
        }
        if flags & OTHER_START != 0 {
            pack_near(self.started, before.started, out);
        }
    }

    fn unpack(before: &Self, from: &mut Unpack<'_>) -> Self {
        let flags = from.byte();
        let crc = u32::from_le_bytes(from.bytes());
        let mut near = |flag, expected| {
            if flags & flag == 0 {
                expected
            } else {
                from.near(expected)
            }
        };
        let (same, next) = before.place.behind();
        let segment = near(OTHER_SEGMENT, before.segment);
        let expected = if flags & SAME_FRAME == 0 { next } else { same };
        let offset = near(OTHER_OFFSET, expected);
        let length = near(OTHER_LENGTH, before.place.length);
        Self {
            segment,
            place: Place {
                offset,
                length,
                crc,
            },
            node: near(OTHER_NODE, before.node),
            started: near(OTHER_START, before.started),
        }
    }
}

/// The last that was written about what was received in one flow.
#[derive(Debug)]
pub(crate) struct Flow {
    pub(crate) segment: u32,
    pub(crate) place: Place,
    /// Nothing is left to remember; kept as long as an older record could come back.
    pub(crate) is_over: bool,
    /// Other segments with a record of this flow.
    older: Vec<u32>,
}

/// One segment, as far as its contents go.
#[derive(Debug, Default)]
pub(crate) struct Segment {
    /// Bytes of it that can be believed.
    pub(crate) length: u32,
    /// Bytes of its file.
    pub(crate) file: u64,
    /// Bytes of records that count.
    pub(crate) live: u64,
    /// Records of later versions, which count for ever.
    pub(crate) unknown: u32,
    /// How many removals in it name which older segment.
    kills: BTreeMap<u32, u32>,
    /// All of them.
    all_kills: u64,
    /// Behind its end lies what must not be read.
    pub(crate) is_dirty: bool,
    /// A part of it cannot be read: it is not emptied before the next start.
    pub(crate) is_stuck: bool,
}

/// The payload of a message, in a file of its own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Payload {
    pub(crate) size: u64,
    /// A message that counts has it.
    pub(crate) owned: bool,
    /// Everything is durable.
    pub(crate) synced: bool,
    /// The file may be longer than `size`.
    pub(crate) ragged: bool,
    /// A sync failed: what is in the file is not known.
    pub(crate) lost: bool,
    /// So much is durable.
    pub(crate) safe: u64,
    /// A sync is under way elsewhere.
    pub(crate) syncing: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Index {
    pub(crate) entries: Slots<Slot>,
    /// Segments with a copy of an entry that does not count, where there are any.
    copies: BTreeMap<u64, Vec<u32>>,
    pub(crate) flows: BTreeMap<(NodeId, u64), Flow>,
    pub(crate) segments: BTreeMap<u32, Segment>,
    pub(crate) payloads: BTreeMap<u64, Payload>,
    /// Payloads, with their sizes, whose files can go as soon as their removal is safe.
    pub(crate) doomed: Vec<(EntryId, u64)>,
    nodes: Nodes,
    total: Usage,
}

#[derive(Debug, Default)]
struct Nodes {
    numbers: BTreeMap<NodeId, u32>,
    list: Vec<Option<Node>>,
    free: Vec<u32>,
}

/// A recipient of messages.
#[derive(Debug)]
struct Node {
    name: NodeId,
    usage: Usage,
    /// Which messages.
    entries: Slots<()>,
}

impl Segment {
    /// Bytes that a copy of what is needed of it would take.
    pub(crate) fn needed(&self) -> u64 {
        self.live + NOTE * (self.all_kills + u64::from(self.unknown))
    }
}

impl Index {
    pub(crate) fn total(&self) -> Usage {
        self.total
    }

    pub(crate) fn of(&self, node: &NodeId) -> Usage {
        self.nodes.of(node)
    }

    /// Messages to a recipient, in order, from this entry on. Takes as long as there are such
    /// messages, however many there are to others.
    pub(crate) fn to(&self, node: &NodeId, first: EntryId) -> impl Iterator<Item = (u64, Slot)> {
        let entries = self.nodes.get(node).map(|node| node.entries.range(first.0));
        let entries = entries.into_iter().flatten();
        let mut slots = self.entries.finder();
        entries.filter_map(move |(entry, ())| Some((entry, slots.next(entry)?)))
    }

    /// Recipients with messages, and how much there is for each.
    pub(crate) fn recipients(&self) -> impl Iterator<Item = (&NodeId, Usage)> {
        let used = self.nodes.list.iter().flatten();
        used.map(|node| (&node.name, node.usage))
    }

    pub(crate) fn segment(&mut self, number: u32) -> &mut Segment {
        self.segments.entry(number).or_default()
    }

    /// Bytes of an entry in all: its record and its payload's file.
    fn size(&self, entry: EntryId, slot: &Slot) -> u64 {
        let payload = self.payloads.get(&entry.0).map_or(0, |p| p.size);
        u64::from(slot.place.length) + payload
    }

    /// What the removal of an entry would give back, and for whom.
    pub(crate) fn usage_of(&self, entry: EntryId) -> Option<(Usage, Option<&NodeId>)> {
        let Some(slot) = self.entries.get(entry.0) else {
            let bytes = self.payloads.get(&entry.0)?.size;
            return Some((Usage { entries: 0, bytes }, None));
        };
        if slot.is_memo() {
            return None;
        }
        let bytes = self.size(entry, &slot);
        let usage = Usage { entries: 1, bytes };
        Some((usage, self.nodes.name(slot.node)))
    }

    /// More bytes of a payload that is not yet a message's.
    pub(crate) fn grow_payload(&mut self, entry: EntryId, more: u64) {
        self.total.bytes += more;
        let payload = self.payloads.entry(entry.0).or_insert(Payload {
            size: 0,
            owned: false,
            synced: false,
            ragged: false,
            lost: false,
            safe: 0,
            syncing: false,
        });
        payload.size += more;
        payload.synced = false;
    }

    /// The payload of a message is not what it was: it counts as what its message says.
    pub(crate) fn lose_payload(&mut self, entry: EntryId, size: u64) {
        let before = self
            .payloads
            .get(&entry.0)
            .map_or(0, |payload| payload.size);
        self.grow_payload(entry, 0);
        if let Some(payload) = self.payloads.get_mut(&entry.0) {
            (payload.size, payload.lost, payload.owned) = (size, true, true);
        }
        self.total.bytes = self.total.bytes + size - before;
        if let Some(slot) = self.entries.get(entry.0) {
            self.nodes.resize(slot.node, before, size);
        }
    }

    /// An unfinished payload is as long as this, and durable.
    pub(crate) fn cut_payload(&mut self, entry: EntryId, size: u64) {
        if let Some(payload) = self.payloads.get_mut(&entry.0) {
            self.total.bytes = self.total.bytes - payload.size + size;
            payload.size = size;
            payload.safe = size;
            payload.synced = true;
        }
    }

    /// A message was written. `recipient` is whose limit it counts for.
    pub(crate) fn put(
        &mut self,
        entry: EntryId,
        segment: u32,
        place: Place,
        recipient: Option<&NodeId>,
    ) {
        if let Some(old) = self.entries.get_mut(entry.0) {
            // A copy, whose source is still there.
            let before = std::mem::replace(&mut old.segment, segment);
            let length = u64::from(std::mem::replace(&mut old.place, place).length);
            let node = old.node;
            let now = u64::from(place.length);
            self.total.bytes = self.total.bytes + now - length;
            self.nodes.resize(node, length, now);
            self.segment(before).live -= length;
            self.segment(segment).live += now;
            if before != segment {
                self.put_copy(entry, before);
            }
            return;
        }
        let node = recipient.map_or(NOBODY, |node| self.nodes.number(node));
        let slot = Slot {
            segment,
            place,
            node,
            started: NONE,
        };
        let size = self.size(entry, &slot);
        if let Some(payload) = self.payloads.get_mut(&entry.0) {
            payload.owned = true;
            self.total.bytes -= payload.size;
        }
        self.total.add(size);
        self.nodes.add(node, entry, size);
        self.entries.insert(entry.0, slot);
        self.segment(segment).live += u64::from(place.length);
    }

    /// In this segment is a copy of an entry, which does not count.
    pub(crate) fn put_copy(&mut self, entry: EntryId, segment: u32) {
        self.copies.entry(entry.0).or_default().push(segment);
    }

    /// A memo was written, or copied.
    pub(crate) fn put_memo(&mut self, entry: EntryId, segment: u32, place: Place) {
        if self.entries.contains(entry.0) {
            return self.put(entry, segment, place, None);
        }
        let slot = Slot {
            segment,
            place,
            node: MEMO,
            started: NONE,
        };
        self.entries.insert(entry.0, slot);
        self.segment(segment).live += u64::from(place.length);
    }

    /// Whether a message was started.
    pub(crate) fn was_started(&self, entry: EntryId) -> bool {
        let slot = self.entries.get(entry.0);
        slot.is_some_and(|slot| slot.started != NONE)
    }

    /// A message was started, says a record in this segment. False: there is no such message.
    pub(crate) fn start(&mut self, entry: EntryId, segment: u32) -> bool {
        let Some(slot) = self.entries.get_mut(entry.0) else {
            return false;
        };
        let before = std::mem::replace(&mut slot.started, segment);
        self.unmark(before);
        self.segment(segment).live += NOTE;
        true
    }

    fn unmark(&mut self, segment: u32) {
        if let Some(segment) = self.segments.get_mut(&segment) {
            segment.live = segment.live.saturating_sub(NOTE);
        }
    }

    /// What was received in a flow was written anew.
    pub(crate) fn receive(&mut self, key: (NodeId, u64), segment: u32, place: Place, over: bool) {
        let length = u64::from(place.length);
        let Some(flow) = self.flows.get_mut(&key) else {
            if over {
                return;
            }
            self.segment(segment).live += length;
            let flow = Flow {
                segment,
                place,
                is_over: over,
                older: Vec::new(),
            };
            self.flows.insert(key, flow);
            return;
        };
        let (before, was) = (flow.segment, flow.place);
        flow.segment = segment;
        flow.place = place;
        flow.is_over = over;
        if !flow.older.contains(&before) {
            flow.older.push(before);
        }
        let moot = over && flow.older.iter().all(|older| *older == segment);
        self.segment(before).live -= u64::from(was.length);
        if moot {
            // What it replaces goes with it.
            self.flows.remove(&key);
        } else {
            self.segment(segment).live += length;
        }
    }

    /// The segments where copies of an entry are: what its removal must name.
    pub(crate) fn whereabouts(&self, entry: EntryId) -> Vec<u32> {
        let mut all: Vec<u32> = self.copies.get(&entry.0).cloned().unwrap_or_default();
        all.extend(self.entries.get(entry.0).map(|slot| slot.segment));
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Forgets an entry. `Some`: its payload's file, of this size, is nobody's now.
    pub(crate) fn remove(&mut self, entry: EntryId) -> Option<u64> {
        self.copies.remove(&entry.0);
        let slot = self.entries.remove(entry.0);
        if let Some(slot) = &slot {
            if !slot.is_memo() {
                let size = self.size(entry, slot);
                self.total.sub(size);
                self.nodes.sub(slot.node, entry, size);
            }
            let (segment, length) = (slot.segment, u64::from(slot.place.length));
            self.segment(segment).live -= length;
            self.unmark(slot.started);
        }
        let payload = self.payloads.remove(&entry.0);
        if let (Some(payload), None) = (payload, slot) {
            self.total.bytes -= payload.size;
        }
        payload.map(|payload| payload.size)
    }

    /// A removal in `segment` keeps what is in `target` from coming back.
    pub(crate) fn kill(&mut self, segment: u32, target: u32) {
        if target != segment && self.segments.contains_key(&target) {
            let segment = self.segment(segment);
            *segment.kills.entry(target).or_default() += 1;
            segment.all_kills += 1;
        }
    }

    /// What this segment held was copied elsewhere, removals and what is not understood too.
    pub(crate) fn emptied(&mut self, number: u32) {
        let segment = self.segment(number);
        segment.kills.clear();
        segment.all_kills = 0;
        segment.unknown = 0;
    }

    /// Segments that nothing needs, except `active`.
    pub(crate) fn idle(&self, active: Option<u32>) -> Vec<u32> {
        let segments = self.segments.iter();
        segments
            .filter(|(number, segment)| {
                Some(**number) != active
                    && segment.live == 0
                    && segment.unknown == 0
                    && segment.kills.is_empty()
            })
            .map(|(number, _)| *number)
            .collect()
    }

    /// A segment is gone for good.
    pub(crate) fn retire(&mut self, number: u32) {
        self.segments.remove(&number);
        for segment in self.segments.values_mut() {
            let kills = segment.kills.remove(&number);
            segment.all_kills -= u64::from(kills.unwrap_or(0));
        }
        self.copies.retain(|_, segments| {
            segments.retain(|segment| *segment != number);
            !segments.is_empty()
        });
        let mut over = Vec::new();
        self.flows.retain(|_, flow| {
            flow.older.retain(|segment| *segment != number);
            // A record in its own segment is older too, and goes with it.
            let last = flow.older.iter().all(|segment| *segment == flow.segment);
            if flow.is_over && last {
                over.push((flow.segment, u64::from(flow.place.length)));
            }
            !(flow.is_over && last)
        });
        for (segment, length) in over {
            if let Some(segment) = self.segments.get_mut(&segment) {
                segment.live -= length;
            }
        }
    }
}

impl Nodes {
    fn number(&mut self, node: &NodeId) -> u32 {
        if let Some(number) = self.numbers.get(node) {
            return *number;
        }
        let number = self.free.pop().unwrap_or_else(|| {
            self.list.push(None);
            u32::try_from(self.list.len() - 1).unwrap_or(NOBODY)
        });
        if let Some(place) = self.list.get_mut(number as usize) {
            *place = Some(Node {
                name: node.clone(),
                usage: Usage::default(),
                entries: Slots::default(),
            });
            self.numbers.insert(node.clone(), number);
        }
        number
    }

    fn get(&self, node: &NodeId) -> Option<&Node> {
        let number = self.numbers.get(node)?;
        self.list.get(*number as usize)?.as_ref()
    }

    fn get_mut(&mut self, number: u32) -> Option<&mut Node> {
        self.list.get_mut(number as usize)?.as_mut()
    }

    fn of(&self, node: &NodeId) -> Usage {
        self.get(node)
            .map_or_else(Usage::default, |node| node.usage)
    }

    fn name(&self, number: u32) -> Option<&NodeId> {
        let place = self.list.get(number as usize)?;
        place.as_ref().map(|node| &node.name)
    }

    fn add(&mut self, number: u32, entry: EntryId, bytes: u64) {
        if let Some(node) = self.get_mut(number) {
            node.usage.add(bytes);
            node.entries.insert(entry.0, ());
        }
    }

    fn resize(&mut self, number: u32, before: u64, now: u64) {
        if let Some(node) = self.get_mut(number) {
            node.usage.bytes = node.usage.bytes + now - before;
        }
    }

    fn sub(&mut self, number: u32, entry: EntryId, bytes: u64) {
        let Some(node) = self.get_mut(number) else {
            return;
        };
        node.usage.sub(bytes);
        node.entries.remove(entry.0);
        if node.usage.entries == 0 {
            let name = node.name.clone();
            self.numbers.remove(&name);
            self.list[number as usize] = None;
            self.free.push(number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(offset: u32) -> Place {
        Place {
            offset,
            length: 100,
            crc: 0,
        }
    }

    #[test]
    fn a_removal_is_kept_while_any_copy_could_come_back() {
        let mut index = Index::default();
        let entry = EntryId(9);
        for number in 1..=4 {
            index.segment(number).length = 1000;
        }
        index.put(entry, 2, place(0), None);
        // Segment 2 cannot go yet: it removed something of segment 1.
        index.put(EntryId(8), 1, place(0), None);
        index.kill(2, 1);
        // Its message was copied, and the process ended before it was removed.
        index.put(entry, 3, place(0), None);
        assert_eq!(index.total().entries, 2);
        assert_eq!(index.whereabouts(entry), [2, 3]);
        for target in index.whereabouts(entry) {
            index.kill(4, target);
        }
        index.remove(entry);
        assert_eq!(index.idle(None), [3]);
        index.retire(3);
        assert!(
            index.idle(None).is_empty(),
            "2 would bring it back without 4"
        );
        index.remove(EntryId(8));
        assert_eq!(index.idle(None), [1]);
        index.retire(1);
        assert_eq!(index.idle(None), [2]);
        index.retire(2);
        assert_eq!(index.idle(None), [4]);
        assert_eq!(index.total(), Usage::default());
    }

    #[test]
    fn a_flow_that_is_over_is_remembered_while_it_could_come_back() {
        let mut index = Index::default();
        let key = || (NodeId::new("a").unwrap(), 1);
        index.receive(key(), 1, place(0), false);
        index.receive(key(), 2, place(0), true);
        assert_eq!(index.idle(None), [1]);
        index.retire(1);
        assert!(index.flows.is_empty());
        assert_eq!(index.idle(None), [2]);
        index.receive(key(), 2, place(100), true);
        assert!(index.flows.is_empty(), "there was nothing to forget");
    }

    #[test]
    fn messages_to_one_recipient_are_found_among_those_to_others() {
        let mut index = Index::default();
        let node = |number: u64| NodeId::new(&format!("node-{number}")).unwrap();
        for entry in 0..3000 {
            index.put(EntryId(entry), 1, place(0), Some(&node(entry % 7)));
        }
        // A copy, and one that is gone.
        index.put(EntryId(703), 2, place(0), None);
        index.remove(EntryId(710));
        for number in 0..8 {
            let node = node(number);
            let found = index.to(&node, EntryId(700));
            let found: Vec<u64> = found.map(|(entry, _)| entry).collect();
            let there = (700..3000).filter(|entry| *entry != 710);
            let there: Vec<u64> = there.filter(|entry| entry % 7 == number).collect();
            assert_eq!(found, there);
            let all = index
                .nodes
                .get(&node)
                .map(|node| node.entries.iter().count());
            assert_eq!(all.unwrap_or(0) as u64, index.of(&node).entries);
        }
    }

    /// Memory does not grow much with the backlog: most of an entry is on the disk.
    #[test]
    fn an_entry_takes_a_few_bytes() {
        const COUNT: u64 = 100_000;
        for recipients in [1, 50] {
            let mut index = Index::default();
            let mut last = Place::default();
            for entry in 0..COUNT {
                let (_, offset) = last.behind();
                last = Place {
                    offset: offset % (16 << 20),
                    // Numbers in it grow by a byte now and then.
                    length: 1111 + u32::from(entry % 1000 == 0),
                    crc: crc32c::crc32c(&entry.to_be_bytes()),
                };
                let segment = u32::try_from(1 + entry / 14_000).unwrap();
                let node = NodeId::new(&format!("node-{}", entry % recipients)).unwrap();
                index.put(EntryId(entry), segment, last, Some(&node));
            }
            let lists = index.nodes.list.iter().flatten();
            let size = index.entries.size() + lists.map(|node| node.entries.size()).sum::<usize>();
            // What was changed last is not packed.
            let open = (16 << 10) + (4 << 10) * recipients;
            assert!(
                (size as u64) < 8 * COUNT + open,
                "{size} with {recipients} recipients"
            );
        }
    }

    #[test]
    fn recipients_without_messages_take_no_memory() {
        let mut index = Index::default();
        for round in 0..100 {
            let node = NodeId::new(&format!("node-{round}")).unwrap();
            index.put(EntryId(round), 1, place(0), Some(&node));
            assert_eq!(index.of(&node).bytes, 100);
            index.remove(EntryId(round));
            assert_eq!(index.of(&node), Usage::default());
        }
        assert_eq!(index.nodes.list.len(), 1);
        assert_eq!(index.recipients().count(), 0);
    }
}
