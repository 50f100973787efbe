//! Reading everything back.
//!
//! Owns the order of reading and nothing else; what is there and where, the index says. Outgoing
//! messages come last and in order of entry, so that whoever keeps only some of them in memory
//! can take them one by one. Memos are read by themselves. Keeps one window of one segment in
//! memory.

use bytes::Bytes;
use receptor_proto::record::{EntryId, Record};

use crate::disk::{Access, Disk, read_full};
use crate::error::SpoolError;
use crate::index::Slot;
use crate::log::{decode_memo, segment_path};
use crate::segment::Place;
use crate::slots::Iter;
use crate::spool::{MEMO_FIRST, Spool};

/// Bytes that are read at once: records mostly lie in the order in which they are read.
const WINDOW: usize = 1 << 20;

/// What comes next.
enum Wanted {
    /// A record that is no outgoing message, and whether its message was started.
    Other(u32, Place, EntryId, bool),
    /// Of an outgoing message.
    Started(EntryId),
}

/// See [`Spool::records`].
pub struct Records<'a, D: Disk> {
    spool: &'a Spool<D>,
    now_ms: u64,
    /// All but outgoing messages; last first.
    wanted: Vec<Wanted>,
    /// Everything; outgoing messages are read as they come.
    outgoing: Iter<'a, Slot>,
    window: Window,
    next: Option<Record>,
}

/// A part of a segment, so that what lies side by side is read at once.
#[derive(Default)]
struct Window {
    segment: u32,
    start: usize,
    bytes: Vec<u8>,
}

impl Window {
    /// The record at this place; `None` when it is not as it was written.
    fn record<D: Disk>(
        &mut self,
        spool: &Spool<D>,
        segment: u32,
        place: Place,
    ) -> Result<Option<Bytes>, SpoolError> {
        let (offset, length) = (place.offset as usize, place.length as usize);
        let Self {
            segment: in_window,
            start,
            bytes,
        } = self;
        if *in_window != segment || offset < *start || offset + length > *start + bytes.len() {
            let path = segment_path(segment);
            bytes.resize(length.max(WINDOW), 0);
            let read = spool.disk.open(&path, Access::Read);
            let read = read.and_then(|file| read_full(&file, bytes, u64::from(place.offset)));
            (*in_window, *start) = (segment, offset);
            bytes.truncate(*read.as_ref().unwrap_or(&0));
            read.map_err(|error| SpoolError::io(format!("reading {path}"), &error))?;
        }
        let from = offset - *start;
        let record = bytes.get(from..from + length);
        let record = record.filter(|record| crc32c::crc32c(record) == place.crc);
        Ok(record.map(Bytes::copy_from_slice))
    }
}

impl<D: Disk> std::fmt::Debug for Records<'_, D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Records({} and outgoing left)", self.wanted.len())
    }
}

impl<'a, D: Disk> Records<'a, D> {
    pub(crate) fn new(spool: &'a Spool<D>, now_ms: u64) -> Self {
        let flows = spool.index.flows.values().filter(|flow| !flow.is_over);
        let flows = flows.map(|flow| Wanted::Other(flow.segment, flow.place, EntryId(0), false));
        let entries = spool.index.entries.iter();
        let entries = entries.filter_map(|(entry, slot)| {
            let (entry, started) = (EntryId(entry), slot.started != 0);
            if slot.is_memo() {
                return None;
            }
            if slot.is_outgoing() {
                return started.then_some(Wanted::Started(entry));
            }
            Some(Wanted::Other(slot.segment, slot.place, entry, started))
        });
        let mut wanted: Vec<_> = entries.chain(flows).collect();
        wanted.sort_unstable_by_key(|wanted| {
            std::cmp::Reverse(match wanted {
                Wanted::Other(segment, place, ..) => (*segment, place.offset),
                Wanted::Started(_) => (u32::MAX, 0),
            })
        });
        Self {
            spool,
            now_ms,
            wanted,
            outgoing: spool.index.entries.iter(),
            window: Window::default(),
            next: None,
        }
    }

    fn read(&mut self, segment: u32, place: Place, entry: EntryId) -> Result<Record, SpoolError> {
        let record = self.window.record(self.spool, segment, place)?;
        let record = record.and_then(|record| Record::decode(record, self.now_ms).ok()?);
        record.ok_or(SpoolError::Damaged(entry))
    }
}

impl<D: Disk> Iterator for Records<'_, D> {
    type Item = Result<Record, SpoolError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(record) = self.next.take() {
            return Some(Ok(record));
        }
        match self.wanted.pop() {
            Some(Wanted::Other(segment, place, entry, started)) => {
                let record = self.read(segment, place, entry);
                if started && record.is_ok() {
                    self.next = Some(Record::Started { entry });
                }
                return Some(record);
            }
            Some(Wanted::Started(entry)) => return Some(Ok(Record::Started { entry })),
            None => {}
        }
        let (entry, slot) = self.outgoing.find(|(_, slot)| slot.is_outgoing())?;
        Some(self.read(slot.segment, slot.place, EntryId(entry)))
    }
}

/// See [`Spool::memos`].
pub struct Memos<'a, D: Disk> {
    spool: &'a Spool<D>,
    /// Last first.
    wanted: Vec<(u32, Place)>,
    window: Window,
}

impl<D: Disk> std::fmt::Debug for Memos<'_, D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Memos({} left)", self.wanted.len())
    }
}

impl<'a, D: Disk> Memos<'a, D> {
    pub(crate) fn new(spool: &'a Spool<D>) -> Self {
        let memos = spool.index.entries.range(MEMO_FIRST);
        let mut wanted: Vec<_> = memos.map(|(_, slot)| (slot.segment, slot.place)).collect();
        wanted.sort_unstable_by_key(|(segment, place)| std::cmp::Reverse((*segment, place.offset)));
        Self {
            spool,
            wanted,
            window: Window::default(),
        }
    }
}

impl<D: Disk> Iterator for Memos<'_, D> {
    type Item = (EntryId, Bytes);

    fn next(&mut self) -> Option<Self::Item> {
        while let Some((segment, place)) = self.wanted.pop() {
            let record = self.window.record(self.spool, segment, place);
            let memo = record.ok().flatten().map(decode_memo);
            if let Some(Ok((entry, Some(memo)))) = memo {
                return Some((entry, memo));
            }
        }
        None
    }
}
