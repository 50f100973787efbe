//! Reading back what waits for one recipient, piece by piece.
//!
//! Owns no state: whoever asks knows where it was.

use bytes::Bytes;
use receptor_proto::NodeId;
use receptor_proto::record::{EntryId, Record};

use crate::disk::{Access, Disk, read_full};
use crate::error::SpoolError;
use crate::log::segment_path;
use crate::spool::Spool;

/// Some messages to one recipient.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Page {
    /// In order of entry.
    pub records: Vec<Record>,
    /// Where to go on, when there are more.
    pub next: Option<EntryId>,
    /// What is not as it was written, and what it seems to say, without its payload.
    pub damaged: Vec<(EntryId, Option<Record>)>,
}

/// Whether a record says itself that it is the one that is wanted.
fn is_of(record: &Record, wanted: EntryId, to: &NodeId) -> bool {
    match record {
        Record::Outgoing {
            entry, recipient, ..
        } => (*entry, recipient) == (wanted, to),
        Record::Incoming { .. }
        | Record::Transit { .. }
        | Record::Started { .. }
        | Record::Received { .. } => false,
    }
}

impl<D: Disk> Spool<D> {
    /// Messages to one recipient whose entries are from `first` to `last`, in order of entry, as
    /// of `now_ms`: `records` of them at most. Their payloads take `bytes` at most; those of further
    /// records are left out.
    ///
    /// # Errors
    ///
    /// When the disk fails. A message that is damaged is passed over and named.
    pub fn page(
        &self,
        now_ms: u64,
        recipient: &NodeId,
        (first, last): (EntryId, EntryId),
        records: usize,
        bytes: usize,
    ) -> Result<Page, SpoolError> {
        let mut page = Page::default();
        let mut room = bytes;
        let mut open: Option<(u32, D::File)> = None;
        for (entry, slot) in self.index.to(recipient, first) {
            if entry > last.0 {
                break;
            }
            if page.records.len() >= records {
                page.next = Some(EntryId(entry));
                break;
            }
            let path = segment_path(slot.segment);
            let failed = |error| SpoolError::io(format!("reading {path}"), &error);
            let mut buffer = vec![0; slot.place.length as usize];
            let at = u64::from(slot.place.offset);
            let read = if let Some(file) = self.log.active_file(slot.segment) {
                read_full(file, &mut buffer, at)
            } else {
                if open.as_ref().is_none_or(|(open, _)| *open != slot.segment) {
                    let file = self.disk.open(&path, Access::Read).map_err(failed)?;
                    open = Some((slot.segment, file));
                }
                open.as_ref()
                    .map_or(Ok(0), |(_, file)| read_full(file, &mut buffer, at))
            };
            read.map_err(failed)?;
            let is_good = crc32c::crc32c(&buffer) == slot.place.crc;
            let mut record = Record::decode(buffer.into(), now_ms).ok().flatten();
            if let Some(Record::Outgoing { message, .. }) = &mut record {
                if !is_good {
                    message.body = Bytes::new();
                } else if message.body.len() > room {
                    message.body = Bytes::new();
                    room = 0;
                }
                room -= message.body.len();
            }
            match record {
                Some(record) if is_good => page.records.push(record),
                record => {
                    let record = record.filter(|record| is_of(record, EntryId(entry), recipient));
                    page.damaged.push((EntryId(entry), record));
                }
            }
        }
        Ok(page)
    }
}
