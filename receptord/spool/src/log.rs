//! Writing: the segment that is written to, what is gathered for it, and what becomes of it when
//! a write fails.
//!
//! Owns the order in which things become durable. What is gathered takes effect in the index
//! when it is written, and in no other order than it was gathered. After a failed write or sync
//! a segment is never written to again: what is behind its safe part is cut off, and where that
//! cannot be done, the next segment's header says that it does not count.

use std::collections::BTreeSet;
use std::io;

use fastrand::Rng;
use receptor_proto::NodeId;
use receptor_proto::record::{EntryId, STORE_KIND_FIRST};
use receptor_proto::wire::{DecodeError, Reader, Writer};

use crate::disk::{Access, Disk, DiskFile, write_full};
use crate::error::SpoolError;
use crate::index::Index;
use crate::segment::{FIRST, FrameWriter, Header, Place, SEALS_MAX, end_mark};

/// The kind of a record that names removed entries and the segments where they were.
pub(crate) const REMOVED: u8 = STORE_KIND_FIRST;
/// The kind of a memo ([`crate::Op::Memo`]).
pub(crate) const MEMO: u8 = STORE_KIND_FIRST + 1;
/// Where the log is.
pub(crate) const SEGMENTS: &str = "segments";
/// A segment grows by as many zeros at once: a sync that changes no length is cheaper.
const GROWTH: u64 = 1 << 20;
/// Bytes of the write buffer that are kept between two batches.
const BUFFER_KEPT: usize = 2 << 20;
/// Empty segments kept for later: some so that a full disk can be emptied ([`Reserve`]), one more
/// because its place on the disk is known already.
const SPARES_MAX: usize = 3;
/// The highest number of a segment: more than a disk can write in its life.
pub(crate) const NUMBER_MAX: u32 = u32::MAX - 1;
/// How far apart the two marks at the end are: in other pages.
const MARK_APART: u64 = 8192;
/// Bytes that one removal takes at most, next to others.
const REMOVED_MAX: usize = 16;
/// Bytes that a number takes at most.
const VARINT_MAX: usize = 10;
/// Removals in one frame.
const REMOVED_AT_ONCE: usize = 4096;

/// What is left to others when the disk is full, in empty segments kept for later: what brings new
/// work must not take the place of what ends it, nor that of what gives space back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reserve {
    /// New work leaves something to answers, and to removals.
    Answers = 2,
    /// Answers and notes leave something to removals.
    Removals = 1,
    /// Removals, and copies that make room, take what there is.
    Nothing = 0,
}

impl Reserve {
    /// Segments that are left.
    fn segments(self) -> usize {
        self as usize
    }
}

/// What becomes true when what was gathered is written.
#[derive(Debug)]
pub(crate) enum Effect {
    /// A message is there.
    Message {
        entry: EntryId,
        recipient: Option<NodeId>,
        place: Place,
    },
    /// A memo is there.
    Memo { entry: EntryId, place: Place },
    /// A message was started.
    Started(EntryId),
    /// What was received in a flow.
    Received {
        key: (NodeId, u64),
        place: Place,
        over: bool,
    },
    /// An entry is gone; it was in this segment, and perhaps in others.
    Removed(EntryId, u32),
    /// A removal was copied.
    Removal(u32),
    /// A record that is not understood was copied.
    Unknown,
    /// The group at this place of the batch is complete.
    Group(usize),
}

struct Active<F> {
    number: u32,
    salt: u64,
    file: F,
    /// Bytes written.
    tail: u32,
    /// Bytes that are safe.
    durable: u32,
    /// Bytes that the file has.
    size: u64,
    /// Bytes that it may have.
    limit: u64,
}

impl Effect {
    /// The same, of a record that is here.
    pub(crate) fn at(self, here: Place) -> Self {
        match self {
            Self::Message {
                entry, recipient, ..
            } => Self::Message {
                entry,
                recipient,
                place: here,
            },
            Self::Memo { entry, .. } => Self::Memo { entry, place: here },
            Self::Received { key, over, .. } => Self::Received {
                key,
                place: here,
                over,
            },
            Self::Started(_)
            | Self::Removed(..)
            | Self::Removal(_)
            | Self::Unknown
            | Self::Group(_) => self,
        }
    }
}

/// See the module.
pub(crate) struct Log<F> {
    active: Option<Active<F>>,
    /// What is to be written next.
    buffer: Vec<u8>,
    effects: Vec<Effect>,
    /// Of what is gathered: new messages and flows.
    pub(crate) fresh: BTreeSet<u64>,
    /// The last segment written to before, and how much of it is safe.
    pub(crate) last: Option<(u32, u32)>,
    /// How often what was gathered became the index's, or was given up.
    pub(crate) flushes: u64,
    pub(crate) next: u32,
    pub(crate) spares: Vec<u32>,
    salts: Rng,
    segment_bytes: u64,
    /// Removals written and not yet synced.
    unsynced: Vec<(EntryId, u32)>,
    /// Removals that could not be written.
    pub(crate) carry: Vec<(EntryId, u32)>,
    /// Entries to be removed, not yet in the buffer.
    removing: Vec<EntryId>,
    /// The active segment's name may not be durable.
    is_new: bool,
    /// The disk was full once: nothing is kept that is not needed.
    is_tight: bool,
}

/// How the groups of a batch ended, by their place in it.
pub(crate) type Results = Vec<(usize, Result<(), SpoolError>)>;

impl<F> std::fmt::Debug for Log<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let active = self.active.as_ref();
        f.debug_struct("Log")
            .field("active", &active.map(|a| (a.number, a.tail, a.durable)))
            .field("next", &self.next)
            .field("spares", &self.spares)
            .finish_non_exhaustive()
    }
}

pub(crate) fn segment_path(number: u32) -> String {
    format!("{SEGMENTS}/{number:016x}.seg")
}

pub(crate) fn spare_path(number: u32) -> String {
    format!("{SEGMENTS}/{number:016x}.spare")
}

/// Appends a record that says that these entries are removed.
pub(crate) fn encode_removed(removed: &[(EntryId, u32)], out: &mut Vec<u8>) {
    let mut w = Writer(out);
    w.0.reserve(VARINT_MAX + removed.len() * REMOVED_MAX);
    w.u8(REMOVED);
    w.varint(removed.len() as u64);
    for (entry, segment) in removed {
        w.varint(entry.0);
        w.varint(u64::from(*segment));
    }
}

/// Appends a memo.
pub(crate) fn encode_memo(entry: EntryId, memo: &[u8], out: &mut Vec<u8>) {
    let mut w = Writer(out);
    w.0.reserve(3 * VARINT_MAX + memo.len());
    w.u8(MEMO);
    w.varint(entry.0);
    w.bytes(memo);
}

/// Reads the name of a memo, and the memo unless only the front of it is given.
pub(crate) fn decode_memo(
    record: bytes::Bytes,
) -> Result<(EntryId, Option<bytes::Bytes>), DecodeError> {
    let mut r = Reader::new(record);
    r.u8("record kind")?;
    let entry = EntryId(r.varint("entry")?);
    let memo = r.bytes(crate::spool::MEMO_MAX, "memo").ok();
    Ok((entry, memo))
}

/// Reads a record that [`encode_removed`] made.
pub(crate) fn decode_removed(record: bytes::Bytes) -> Result<Vec<(EntryId, u32)>, DecodeError> {
    let mut r = Reader::new(record);
    r.u8("record kind")?;
    let count = r.count(2, "removed")?;
    (0..count)
        .map(|_| Ok((EntryId(r.varint("entry")?), r.varint_u32("segment")?)))
        .collect()
}

impl<F: DiskFile> Log<F> {
    pub(crate) fn new(segment_bytes: u64, salt: u64) -> Self {
        Self {
            active: None,
            buffer: Vec::new(),
            effects: Vec::new(),
            fresh: BTreeSet::new(),
            last: None,
            flushes: 0,
            next: 1,
            spares: Vec::new(),
            salts: Rng::with_seed(salt),
            segment_bytes,
            unsynced: Vec::new(),
            carry: Vec::new(),
            removing: Vec::new(),
            is_new: false,
            is_tight: false,
        }
    }

    pub(crate) fn active(&self) -> Option<u32> {
        self.active.as_ref().map(|active| active.number)
    }

    /// The file of the active segment.
    pub(crate) fn active_file(&self, number: u32) -> Option<&F> {
        let active = self.active.as_ref()?;
        (active.number == number).then_some(&active.file)
    }

    /// Everything that was written is safe, removals too.
    pub(crate) fn is_settled(&self) -> bool {
        let active = self.active.as_ref();
        self.carry.is_empty()
            && self.buffer.is_empty()
            && active.is_none_or(|active| active.tail == active.durable)
    }

    /// Removals that a sync would make safe.
    pub(crate) fn unsettled(&self) -> usize {
        self.unsynced.len() + self.carry.len()
    }

    /// Gathers a frame. What its records become is `effects`, in their order, made from their
    /// places.
    pub(crate) fn gather<D: Disk<File = F>>(
        &mut self,
        disk: &D,
        index: &mut Index,
        results: &mut Results,
        mut frame: FrameWriter,
        reserve: Reserve,
        effects: impl FnOnce(Vec<Place>) -> Vec<Effect>,
    ) -> Result<(), SpoolError> {
        // Nothing overtakes a removal.
        self.gather_removals(disk, index, results)?;
        self.make_room(disk, index, results, frame.length(), reserve)?;
        let Some(active) = &self.active else {
            return Err(SpoolError::DiskFull);
        };
        let at = active.tail + u32::try_from(self.buffer.len()).unwrap_or(u32::MAX);
        let places = frame.finish(active.salt, at, active.durable, &mut self.buffer);
        self.effects.extend(effects(places));
        Ok(())
    }

    /// An entry is to be removed, after everything gathered so far.
    pub(crate) fn remove(&mut self, entry: EntryId) {
        self.removing.push(entry);
    }

    /// Gathers the removals asked for. Those that cannot be are carried, and forgotten here.
    pub(crate) fn gather_removals<D: Disk<File = F>>(
        &mut self,
        disk: &D,
        index: &mut Index,
        results: &mut Results,
    ) -> Result<(), SpoolError> {
        let mut result = Ok(());
        for chunk in std::mem::take(&mut self.carry).chunks(REMOVED_AT_ONCE) {
            if result.is_ok() {
                result = self.gather_removed(disk, index, results, chunk);
            }
            if result.is_err() {
                self.carry.extend_from_slice(chunk);
            }
        }
        for chunk in std::mem::take(&mut self.removing).chunks(REMOVED_AT_ONCE) {
            let mut removed = Vec::with_capacity(chunk.len());
            for entry in chunk {
                let mut segments = index.whereabouts(*entry);
                if self.fresh.contains(&entry.0) {
                    segments.extend(self.active());
                }
                if segments.is_empty() {
                    self.forget(index, *entry);
                }
                removed.extend(segments.into_iter().map(|segment| (*entry, segment)));
            }
            if removed.is_empty() {
                continue;
            }
            if result.is_ok() {
                result = self.gather_removed(disk, index, results, &removed);
            }
            if result.is_err() {
                for (entry, _) in &removed {
                    self.forget(index, *entry);
                }
                self.carry.append(&mut removed);
            }
        }
        result
    }

    /// Forgets an entry now.
    fn forget(&mut self, index: &mut Index, entry: EntryId) {
        if let Some(size) = index.remove(entry) {
            index.doomed.push((entry, size));
        }
    }

    fn gather_removed<D: Disk<File = F>>(
        &mut self,
        disk: &D,
        index: &mut Index,
        results: &mut Results,
        removed: &[(EntryId, u32)],
    ) -> Result<(), SpoolError> {
        let most = 64 + REMOVED_MAX * removed.len();
        self.make_room(disk, index, results, most, Reserve::Nothing)?;
        let Some(active) = &self.active else {
            return Err(SpoolError::DiskFull);
        };
        let mut frame = FrameWriter::default();
        frame.record(|out| encode_removed(removed, out));
        let at = active.tail + u32::try_from(self.buffer.len()).unwrap_or(u32::MAX);
        frame.finish(active.salt, at, active.durable, &mut self.buffer);
        // What the index still holds of them goes when they are written; carried ones are gone.
        let effects = removed.iter();
        self.effects
            .extend(effects.map(|(entry, segment)| Effect::Removed(*entry, *segment)));
        Ok(())
    }

    /// Makes sure that a frame of this length fits behind what is gathered.
    fn make_room<D: Disk<File = F>>(
        &mut self,
        disk: &D,
        index: &mut Index,
        results: &mut Results,
        length: usize,
        reserve: Reserve,
    ) -> Result<(), SpoolError> {
        self.keep_reserve(disk, reserve)?;
        if let Some(active) = &self.active {
            let end = u64::from(active.tail) + (self.buffer.len() + length) as u64;
            if end <= active.limit {
                return Ok(());
            }
        }
        self.flush(disk, index, results, true)?;
        self.roll(disk, index, length, reserve)
    }

    /// Makes sure that there is what must be left when the disk is full.
    fn keep_reserve<D: Disk<File = F>>(
        &mut self,
        disk: &D,
        reserve: Reserve,
    ) -> Result<(), SpoolError> {
        while self.spares.len() < reserve.segments() {
            self.make_spare(disk)?;
        }
        Ok(())
    }

    fn make_spare<D: Disk<File = F>>(&mut self, disk: &D) -> Result<(), SpoolError> {
        let number = self.number()?;
        let path = spare_path(number);
        let made = disk.open(&path, Access::Create).and_then(|file| {
            file.allocate(self.segment_bytes)?;
            file.sync()
        });
        match made {
            Ok(()) => {
                self.spares.push(number);
                Ok(())
            }
            Err(error) => {
                self.is_tight = true;
                let _ = disk.remove(&path);
                Err(SpoolError::io(format!("making {path}"), &error))
            }
        }
    }

    /// A number that no segment had before.
    fn number(&mut self) -> Result<u32, SpoolError> {
        let number = self.next;
        if number > NUMBER_MAX {
            let error = io::Error::other("the numbers of segments are used up");
            return Err(SpoolError::io("beginning a segment", &error));
        }
        self.next += 1;
        Ok(number)
    }

    /// Begins a new segment. Everything gathered must be written.
    fn roll<D: Disk<File = F>>(
        &mut self,
        disk: &D,
        index: &mut Index,
        length: usize,
        reserve: Reserve,
    ) -> Result<(), SpoolError> {
        Self::clean(disk, index);
        let mut seals: Vec<(u32, u32)> = index
            .segments
            .iter()
            .filter(|(number, segment)| segment.is_dirty && Some(**number) != self.active())
            .map(|(number, segment)| (*number, segment.length))
            .collect();
        let last = self.active.as_ref().map(|a| (a.number, a.durable));
        let last = last.or(self.last);
        if let Some(last) = last
            && !seals.iter().any(|(number, _)| *number == last.0)
        {
            seals.push(last);
        }
        if seals.len() > SEALS_MAX {
            let error = io::Error::other("too many segments that cannot be repaired");
            return Err(SpoolError::io("beginning a segment", &error));
        }
        let most = u64::from(FIRST) + length as u64;
        let is_large = most > self.segment_bytes;
        let number = self.number()?;
        let path = segment_path(number);
        let opened = if !is_large && self.spares.len() > reserve.segments() {
            let spare = self.spares[0];
            let renamed = disk.rename(&spare_path(spare), &path);
            renamed.and_then(|()| {
                self.spares.remove(0);
                let opened = disk.open(&path, Access::Write);
                let opened = opened.and_then(|file| Ok((file.size()?, file)));
                if opened.is_err() {
                    // It is no spare any more, and nothing in it counts: to be removed.
                    let segment = index.segment(number);
                    segment.file = self.segment_bytes;
                    segment.is_dirty = true;
                }
                opened
            })
        } else {
            disk.open(&path, Access::Create).map(|file| (0, file))
        };
        let (size, file) =
            opened.map_err(|error| SpoolError::io(format!("making {path}"), &error))?;
        if let Some(active) = self.active.take() {
            let mark = end_mark(active.salt, active.tail, active.durable);
            // Says once more what the next header says; not needed.
            if u64::from(active.tail) + mark.len() as u64 <= active.size {
                let _ = write_full(&active.file, &mark, u64::from(active.tail));
            }
        }
        self.last = last;
        let header = Header {
            number,
            salt: self.salts.u64(..),
            seals,
        };
        header.encode(&mut self.buffer);
        index.segment(number).file = size;
        self.is_new = true;
        self.active = Some(Active {
            number,
            salt: header.salt,
            file,
            tail: 0,
            durable: 0,
            size,
            limit: most.max(self.segment_bytes),
        });
        Ok(())
    }

    /// Writes what is gathered, and syncs if asked to. A group is done only after a sync.
    pub(crate) fn flush<D: Disk<File = F>>(
        &mut self,
        disk: &D,
        index: &mut Index,
        results: &mut Results,
        sync: bool,
    ) -> Result<(), SpoolError> {
        let Some(active) = &mut self.active else {
            return Ok(());
        };
        if self.buffer.is_empty() && (!sync || active.tail == active.durable) {
            return Ok(());
        }
        let written = write(active, &mut self.buffer, sync).and_then(|()| {
            if sync && self.is_new {
                disk.sync_dir(SEGMENTS)?;
                self.is_new = false;
            }
            Ok(())
        });
        self.buffer.clear();
        self.buffer.shrink_to(BUFFER_KEPT);
        self.fresh.clear();
        self.flushes += 1;
        let number = active.number;
        if let Err(error) = written {
            let error = SpoolError::io(format!("writing {}", segment_path(number)), &error);
            self.give_up(index, results, &error);
            return Err(error);
        }
        if sync {
            active.durable = active.tail;
        }
        let segment = index.segment(number);
        segment.length = active.durable;
        segment.file = active.size;
        for effect in std::mem::take(&mut self.effects) {
            match effect {
                Effect::Message {
                    entry,
                    recipient,
                    place,
                } => index.put(entry, number, place, recipient.as_ref()),
                Effect::Memo { entry, place } => index.put_memo(entry, number, place),
                Effect::Started(entry) => {
                    index.start(entry, number);
                }
                Effect::Received { key, place, over } => {
                    index.receive(key, number, place, over);
                }
                Effect::Removed(entry, segment) => {
                    self.unsynced.push((entry, segment));
                    self.forget(index, entry);
                }
                Effect::Removal(target) => index.kill(number, target),
                Effect::Unknown => index.segment(number).unknown += 1,
                Effect::Group(group) => results.push((group, Ok(()))),
            }
        }
        if sync {
            for (_, target) in self.unsynced.drain(..) {
                index.kill(number, target);
            }
        }
        Ok(())
    }

    /// What was gathered could not be written, or what was written not be synced.
    fn give_up(&mut self, index: &mut Index, results: &mut Results, error: &SpoolError) {
        let Some(active) = self.active.take() else {
            return;
        };
        self.is_tight |= *error == SpoolError::DiskFull;
        let segment = index.segment(active.number);
        segment.length = active.durable;
        segment.file = active.size;
        segment.is_dirty = true;
        // One of which nothing is safe says nothing of those before it.
        if active.durable > 0 {
            self.last = Some((active.number, active.durable));
        }
        let mut carry = std::mem::take(&mut self.unsynced);
        carry.append(&mut self.carry);
        for effect in std::mem::take(&mut self.effects) {
            match effect {
                Effect::Removed(entry, segment) => {
                    carry.push((entry, segment));
                    self.forget(index, entry);
                }
                Effect::Group(group) => results.push((group, Err(error.clone()))),
                Effect::Message { .. }
                | Effect::Memo { .. }
                | Effect::Started(_)
                | Effect::Received { .. }
                | Effect::Removal(_)
                | Effect::Unknown => {}
            }
        }
        self.carry = carry;
    }

    /// After a failure: sees to it that what failed does not come back. True: it cannot.
    pub(crate) fn repair<D: Disk<File = F>>(
        &mut self,
        disk: &D,
        index: &mut Index,
        results: &mut Results,
    ) -> bool {
        if Self::clean(disk, index) {
            return true;
        }
        self.active.is_some()
            || self
                .roll(disk, index, 0, Reserve::Nothing)
                .and_then(|()| self.flush(disk, index, results, true))
                .is_ok()
    }

    /// Cuts off what does not count. True: nothing of that kind is left.
    pub(crate) fn clean<D: Disk<File = F>>(disk: &D, index: &mut Index) -> bool {
        let dirty: Vec<(u32, u32)> = index
            .segments
            .iter()
            .filter(|(_, segment)| segment.is_dirty)
            .map(|(number, segment)| (*number, segment.length))
            .collect();
        let mut all = true;
        for (number, length) in dirty {
            let path = segment_path(number);
            let cleaned = if length < FIRST {
                gone(disk.remove(&path)).and_then(|()| disk.sync_dir(SEGMENTS))
            } else {
                disk.open(&path, Access::Write).and_then(|file| {
                    file.set_len(u64::from(length))?;
                    file.sync()
                })
            };
            match cleaned {
                Ok(()) if length < FIRST => index.retire(number),
                Ok(()) => {
                    let segment = index.segment(number);
                    segment.is_dirty = false;
                    segment.file = u64::from(length);
                }
                Err(_) => all = false,
            }
        }
        all
    }

    /// Removes the files of segments that nothing needs, or keeps them for later. Only when
    /// everything is settled: a removal that is not safe must not outlive what it removed.
    pub(crate) fn collect<D: Disk<File = F>>(
        &mut self,
        disk: &D,
        index: &mut Index,
    ) -> Result<(), SpoolError> {
        loop {
            let mut idle = index.idle(self.active());
            if idle.is_empty() {
                return Ok(());
            }
            if !Self::clean(disk, index) {
                // Its header may be the one that says what of an older one does not count.
                let dirty = index.segments.iter().find(|(_, s)| s.is_dirty);
                let first = dirty.map_or(0, |(number, _)| *number);
                idle.retain(|number| *number < first);
            }
            idle.retain(|number| index.segments.contains_key(number));
            if idle.is_empty() {
                return Ok(());
            }
            let mut spares = Vec::new();
            // What is beyond the reserve may be what others of this disk lack.
            let most = if self.is_tight {
                Reserve::Answers.segments()
            } else {
                SPARES_MAX
            };
            for &number in &idle {
                let path = segment_path(number);
                let size = index.segment(number).file;
                let keep = self.spares.len() + spares.len() < most && size == self.segment_bytes;
                let done = if keep {
                    let renamed = disk.rename(&path, &spare_path(number));
                    if renamed.is_ok() {
                        spares.push(number);
                    }
                    gone(renamed)
                } else {
                    gone(disk.remove(&path))
                };
                done.map_err(|error| SpoolError::io(format!("removing {path}"), &error))?;
            }
            disk.sync_dir(SEGMENTS)
                .map_err(|error| SpoolError::io(format!("syncing {SEGMENTS}"), &error))?;
            self.spares.append(&mut spares);
            for number in idle {
                index.retire(number);
            }
        }
    }

    /// Keeps no more than is needed, from here on: others lack room on this disk. What they write
    /// ends work as well, so that they get the place of answers.
    pub(crate) fn tighten<D: Disk<File = F>>(&mut self, disk: &D) {
        self.is_tight = true;
        while self.spares.len() > Reserve::Removals.segments()
            && let Some(spare) = self.spares.pop()
        {
            if gone(disk.remove(&spare_path(spare))).is_err() {
                self.spares.push(spare);
                return;
            }
        }
        // The segment that is written to grows again when it must, or the next takes its place.
        if let Some(active) = &mut self.active {
            let size = u64::from(active.tail).next_multiple_of(GROWTH) + GROWTH;
            if size < active.size && active.file.set_len(size).is_ok() {
                active.size = size;
            }
        }
    }

    pub(crate) fn is_tight(&self) -> bool {
        self.is_tight
    }

    /// Says in the active segment how much of it is safe, in two places: what is damaged later
    /// is then not taken for something that was never complete.
    pub(crate) fn end(&mut self) -> Result<(), SpoolError> {
        let Some(active) = &mut self.active else {
            return Ok(());
        };
        if active.tail != active.durable {
            return Ok(());
        }
        let mark = end_mark(active.salt, active.tail, active.durable);
        let first = u64::from(active.tail);
        write_full(&active.file, &mark, first)
            .and_then(|()| write_full(&active.file, &mark, first + MARK_APART))
            .and_then(|()| active.file.sync())
            .map_err(|error| SpoolError::io("closing", &error))
    }
}

/// Writes at the end of a segment, which grows by more zeros than that when it must grow.
fn write<F: DiskFile>(active: &mut Active<F>, bytes: &mut Vec<u8>, sync: bool) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
    let end = u64::from(active.tail) + u64::from(length);
    if end > active.size {
        let size = end.next_multiple_of(GROWTH).min(active.limit).max(end);
        bytes.resize(bytes.len() + usize::try_from(size - end).unwrap_or(0), 0);
        // Also when it fails: what was written of it counts.
        active.size = size;
    }
    write_full(&active.file, bytes, u64::from(active.tail))?;
    if sync {
        active.file.sync()?;
    }
    active.tail += length;
    Ok(())
}

/// One that is not there is as good as removed.
pub(crate) fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
