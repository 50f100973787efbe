//! Reading everything back, segment by segment.
//!
//! Owns the order of reading and nothing else; what is there and where, the index says.

use bytes::Bytes;
use receptor_proto::record::{EntryId, Record};

use crate::disk::Disk;
use crate::error::SpoolError;
use crate::segment::Place;
use crate::spool::Spool;

/// What lies where in a segment.
enum Wanted {
    Message { started: bool },
    Flow,
}

/// See [`Spool::records`].
pub struct Records<'a, D: Disk> {
    spool: &'a Spool<D>,
    now_ms: u64,
    /// By segment and place, last first.
    wanted: Vec<(u32, Place, EntryId, Wanted)>,
    segment: u32,
    bytes: Vec<u8>,
    next: Option<Record>,
}

impl<D: Disk> std::fmt::Debug for Records<'_, D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Records({} left)", self.wanted.len())
    }
}

impl<'a, D: Disk> Records<'a, D> {
    pub(crate) fn new(spool: &'a Spool<D>, now_ms: u64) -> Self {
        let flows = spool.index.flows.values().filter(|flow| !flow.is_over);
        let flows = flows.map(|flow| (flow.segment, flow.place, EntryId(0), Wanted::Flow));
        let entries = spool.index.entries.iter();
        let entries = entries.map(|(entry, slot)| {
            let started = slot.started != 0;
            let wanted = Wanted::Message { started };
            (slot.segment, slot.place, EntryId(entry), wanted)
        });
        let mut wanted: Vec<_> = entries.chain(flows).collect();
        wanted.sort_unstable_by_key(|(segment, place, ..)| {
            std::cmp::Reverse((*segment, place.offset))
        });
        Self {
            spool,
            now_ms,
            wanted,
            segment: 0,
            bytes: Vec::new(),
            next: None,
        }
    }
}

impl<D: Disk> Iterator for Records<'_, D> {
    type Item = Result<Record, SpoolError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(record) = self.next.take() {
            return Some(Ok(record));
        }
        let (segment, place, entry, wanted) = self.wanted.pop()?;
        if segment != self.segment {
            let read = self.spool.read_segment(segment, &mut self.bytes);
            self.segment = if read.is_ok() { segment } else { 0 };
            if let Err(error) = read {
                return Some(Err(error));
            }
        }
        let start = place.offset as usize;
        let record = self.bytes.get(start..start + place.length as usize);
        let record = record.filter(|record| crc32c::crc32c(record) == place.crc);
        let record = record.map(Bytes::copy_from_slice);
        let record = record.and_then(|record| Record::decode(record, self.now_ms).ok()?);
        if let Wanted::Message { started: true } = wanted {
            self.next = record.as_ref().map(|_| Record::Started { entry });
        }
        Some(record.ok_or(SpoolError::Damaged(entry)))
    }
}
