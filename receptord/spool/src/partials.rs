//! Payloads that are still being written: made durable as they grow, and known after a restart.
//!
//! Owns the notes beside payload files, and what of an unfinished payload is safe. A payload is
//! synced from time to time while it grows, by [`Growing`] on whatever thread its owner has for
//! that, so that a commit which needs it finds little left to sync. One that is known to be part
//! of a message ([`Spool::begin`]) gets a note with the message's envelope at its first sync, and
//! a mark in it at each: after a restart it is there up to the last mark. Never reads a payload
//! and never waits for a sync itself.
//!
//! ```text
//! note   head: length:u32 crc:u32 record    an incoming record, as in receptor_proto::record
//!        mark, then another: safe:u64 crc:u32 (of the head's crc and of `safe`)
//! ```
//!
//! Marks are written in turn, so that one of them is whole whatever happens to the other.

use std::io;

use bytes::Bytes;
use receptor_proto::record::{EntryId, Record};

use crate::disk::{Access, Disk, DiskFile, read_full, write_full};
use crate::error::SpoolError;
use crate::limits::Share;
use crate::payloads::{PAYLOADS, payload_path};
use crate::spool::Spool;
use crate::sums::Unsaved;

/// What a note's name ends with.
pub(crate) const NOTE: &str = ".part";
/// The largest note, in bytes: an envelope is far smaller.
const NOTE_MAX: u64 = 64 << 10;
/// Length and checksum in front of the record.
const HEAD: usize = 8;
/// One mark.
const MARK: usize = 12;

/// Where the note about the payload of an entry lies.
pub(crate) fn note_path(entry: EntryId) -> String {
    format!("{}{NOTE}", payload_path(entry))
}

/// The part that a growing payload is of.
#[derive(Debug)]
pub(crate) struct Note {
    /// The incoming record.
    record: Bytes,
    /// Bytes of the whole payload.
    size: u64,
    /// What it may take of the limits.
    pub(crate) share: Share,
    /// Marks written so far by this process; the note has a file once there is one.
    marks: u64,
}

/// A payload's file that is to be made durable: [`Self::run`] on any thread, then
/// [`Spool::synced`].
#[derive(Debug)]
pub struct Growing<F> {
    entry: EntryId,
    size: u64,
    file: F,
    sums: Option<Unsaved<F>>,
    mark: Option<Mark<F>>,
}

/// What is written to a note once the payload is safe.
#[derive(Debug)]
struct Mark<F> {
    note: F,
    at: u64,
    bytes: Vec<u8>,
}

/// What became of it.
#[derive(Debug)]
pub struct Synced {
    entry: EntryId,
    size: u64,
    result: io::Result<()>,
}

impl<F: DiskFile> Growing<F> {
    /// Syncs. Blocks for as long as the disk takes.
    #[must_use]
    pub fn run(self) -> Synced {
        let sums = || self.sums.as_ref().map_or(Ok(()), Unsaved::save);
        let result = self.file.sync().and_then(|()| sums());
        if let (Ok(()), Some(Mark { note, at, bytes })) = (&result, &self.mark) {
            // Without its mark the payload is begun anew after a restart, and no more than that.
            let _ = write_full(note, bytes, *at).and_then(|()| note.sync());
        }
        Synced {
            entry: self.entry,
            size: self.size,
            result,
        }
    }
}

impl Synced {
    /// Whose payload it is.
    #[must_use]
    pub fn entry(&self) -> EntryId {
        self.entry
    }
}

impl<D: Disk> Spool<D> {
    /// A payload will be appended under the entry of this record, which is to be written once it
    /// is complete. Until then [`Self::unfinished`] gives it back after a restart. Touches no
    /// disk.
    pub fn begin(&mut self, now_ms: u64, record: &Record) {
        let Record::Incoming { entry, message, .. } = record else {
            return;
        };
        let mut bytes = Vec::new();
        record.encode(now_ms, &mut bytes);
        let note = Note {
            record: bytes.into(),
            size: message.size,
            share: Share::of(&message.kind, false),
            marks: 0,
        };
        self.notes.insert(entry.0, note);
    }

    /// What is to be synced of a payload that is being appended, when that is `least` bytes or
    /// more and no sync of it is under way.
    ///
    /// # Errors
    ///
    /// When the disk fails.
    pub fn growing(
        &mut self,
        entry: EntryId,
        least: u64,
    ) -> Result<Option<Growing<D::File>>, SpoolError> {
        let Some(payload) = self.index.payloads.get(&entry.0).copied() else {
            return Ok(None);
        };
        if payload.syncing
            || payload.owned
            || payload.lost
            || payload.ragged
            || payload.size - payload.safe < least.max(1)
        {
            return Ok(None);
        }
        let path = payload_path(entry);
        let failed = |error: io::Error| SpoolError::io(format!("syncing {path}"), &error);
        let open = self.open.iter().find(|(open, _)| *open == entry);
        let file = match open {
            Some((_, file)) => file.again(),
            None => self.disk.open(&path, Access::Write),
        };
        let file = file.map_err(failed)?;
        let sums = self.unsaved(entry).map_err(failed)?;
        let mark = self.mark(entry, payload.size).map_err(failed)?;
        if self.is_payload_new {
            self.disk.sync_dir(PAYLOADS).map_err(failed)?;
            self.is_payload_new = false;
        }
        if let Some(payload) = self.index.payloads.get_mut(&entry.0) {
            payload.syncing = true;
        }
        Ok(Some(Growing {
            entry,
            size: payload.size,
            file,
            sums,
            mark,
        }))
    }

    /// The next mark in an entry's note: the file, where, and what.
    fn mark(&mut self, entry: EntryId, safe: u64) -> io::Result<Option<Mark<D::File>>> {
        // One that is complete is soon its message's.
        let note = self.notes.get_mut(&entry.0);
        let Some(note) = note.filter(|note| safe < note.size) else {
            return Ok(None);
        };
        let path = note_path(entry);
        let head = head(&note.record);
        let at = head.len() as u64 + note.marks % 2 * MARK as u64;
        let bytes = mark(&head, safe);
        let next = if note.marks == 0 {
            let file = self.disk.open(&path, Access::Create)?;
            self.is_payload_new = true;
            Mark {
                note: file,
                at: 0,
                bytes: [&head[..], &bytes].concat(),
            }
        } else {
            Mark {
                note: self.disk.open(&path, Access::Write)?,
                at,
                bytes: bytes.to_vec(),
            }
        };
        note.marks += 1;
        Ok(Some(next))
    }

    /// Whether a sync of this payload is under way.
    #[must_use]
    pub fn is_syncing(&self, entry: EntryId) -> bool {
        let payload = self.index.payloads.get(&entry.0);
        payload.is_some_and(|payload| payload.syncing)
    }

    /// Bytes of a payload that are not known to be durable.
    #[must_use]
    pub fn unsynced(&self, entry: EntryId) -> u64 {
        let payload = self.index.payloads.get(&entry.0);
        payload.map_or(0, |payload| payload.size - payload.safe)
    }

    /// A sync ended. `Ok(true)`: the payload is durable as far as it was written.
    ///
    /// # Errors
    ///
    /// The sync's. The payload is lost with it.
    pub fn synced(&mut self, synced: Synced) -> Result<bool, SpoolError> {
        let Some(payload) = self.index.payloads.get_mut(&synced.entry.0) else {
            return Ok(false);
        };
        payload.syncing = false;
        match synced.result {
            Ok(()) => {
                payload.safe = payload.safe.max(synced.size);
                payload.synced = payload.safe == payload.size && !payload.ragged;
                let is_synced = payload.synced;
                self.saved(synced.entry, synced.size);
                self.close_synced();
                Ok(is_synced)
            }
            Err(error) => {
                payload.lost = true;
                let path = payload_path(synced.entry);
                Err(SpoolError::io(format!("syncing {path}"), &error))
            }
        }
    }

    /// What an earlier process left unfinished: each record that was said to [begin](Self::begin),
    /// and how much of its payload there is. Whoever does not want one removes its entry.
    pub fn unfinished(&self, now_ms: u64) -> Vec<(Record, u64)> {
        let notes = self.notes.iter().filter_map(|(entry, note)| {
            let payload = self.index.payloads.get(entry)?;
            let record = Record::decode(note.record.clone(), now_ms).ok()??;
            Some((record, payload.size))
        });
        notes.collect()
    }

    /// The entry is removed: what nothing was written of is simply forgotten.
    pub(crate) fn forget_note(&mut self, entry: EntryId) {
        if self.notes.get(&entry.0).is_some_and(|note| note.marks == 0) {
            self.notes.remove(&entry.0);
        }
    }

    /// Removes notes that are needed no longer.
    pub(crate) fn sweep_notes(&mut self) {
        let payloads = &self.index.payloads;
        let disk = &self.disk;
        self.notes.retain(|entry, note| {
            // One that waits for its first part has no payload yet.
            let wanted = payloads
                .get(entry)
                .map_or(note.marks == 0, |payload| !payload.owned);
            wanted
                || note.marks > 0
                    && disk
                        .remove(&note_path(EntryId(*entry)))
                        .is_err_and(|error| error.kind() != io::ErrorKind::NotFound)
        });
    }
}

fn head(record: &[u8]) -> Vec<u8> {
    let mut head = Vec::with_capacity(HEAD + record.len() + MARK);
    let length = u32::try_from(record.len()).unwrap_or(u32::MAX);
    head.extend_from_slice(&length.to_be_bytes());
    head.extend_from_slice(&crc32c::crc32c(record).to_be_bytes());
    head.extend_from_slice(record);
    head
}

fn mark(head: &[u8], safe: u64) -> [u8; MARK] {
    let mut mark = [0; MARK];
    mark[..8].copy_from_slice(&safe.to_be_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(head), &mark[..8]);
    mark[8..].copy_from_slice(&crc.to_be_bytes());
    mark
}

/// Reads a note: the record, and how much of its payload is safe. `None`: it says nothing.
pub(crate) fn read<D: Disk>(disk: &D, entry: EntryId) -> io::Result<Option<(Note, u64)>> {
    let file = disk.open(&note_path(entry), Access::Read)?;
    let size = usize::try_from(file.size()?.min(NOTE_MAX)).unwrap_or(0);
    let mut bytes = vec![0; size];
    let count = read_full(&file, &mut bytes, 0)?;
    bytes.truncate(count);
    Ok(decode(entry, &bytes))
}

fn decode(entry: EntryId, bytes: &[u8]) -> Option<(Note, u64)> {
    let length = u32::from_be_bytes(*bytes.first_chunk::<4>()?) as usize;
    let record = bytes.get(HEAD..HEAD.checked_add(length)?)?;
    let head = head(record);
    if bytes.get(..head.len()) != Some(&head[..]) {
        return None;
    }
    let marks = bytes.get(head.len()..)?.chunks_exact(MARK).take(2);
    let safe = marks.map(|bytes| {
        let safe = bytes
            .first_chunk::<8>()
            .map(|safe| u64::from_be_bytes(*safe));
        safe.filter(|safe| mark(&head, *safe)[..] == *bytes)
    });
    // The next mark takes the place of the lesser one.
    let safe: Vec<Option<u64>> = safe.collect();
    let best = safe.iter().copied().flatten().max()?;
    let marks = if safe.first() == Some(&Some(best)) {
        1
    } else {
        2
    };
    let record = Bytes::copy_from_slice(record);
    match Record::decode(record.clone(), 0) {
        Ok(Some(Record::Incoming {
            entry: own,
            message,
            ..
        })) if own == entry && message.size > best => {
            let size = message.size;
            let note = Note {
                record,
                size,
                share: Share::of(&message.kind, false),
                marks,
            };
            Some((note, best))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::SimDisk;
    use crate::spool::{Op, Options};
    use receptor_proto::packet::{Content, Message, MessageKind};
    use receptor_proto::{Directive, MessageId, NodeId};

    const ENTRY: EntryId = EntryId(7);
    const SIZE: u64 = 300_000;

    fn record() -> Record {
        Record::Incoming {
            entry: ENTRY,
            origin: NodeId::new("a").unwrap(),
            message: Message {
                epoch: 1,
                seq: 2,
                floor: 0,
                work: MessageId::from_u128(3),
                kind: MessageKind::Request {
                    directive: Directive::new("echo:echo").unwrap(),
                    respond: true,
                },
                volatile: false,
                remaining_ms: 60_000,
                content: Content::Bytes,
                name: None,
                size: SIZE,
                body: Bytes::new(),
            },
        }
    }

    fn open(disk: &SimDisk) -> Spool<SimDisk> {
        Spool::open(disk.clone(), &Options::new(5)).unwrap().0
    }

    fn part(offset: u64, length: u64) -> Vec<u8> {
        (offset..offset + length)
            .map(|at| u8::try_from(at % 251).unwrap())
            .collect()
    }

    fn append(spool: &mut Spool<SimDisk>, offset: u64, length: u64) {
        spool
            .append(ENTRY, offset, &part(offset, length), None)
            .unwrap();
    }

    fn sync(spool: &mut Spool<SimDisk>, least: u64) -> Option<bool> {
        let growing = spool.growing(ENTRY, least).unwrap()?;
        Some(spool.synced(growing.run()).unwrap())
    }

    #[test]
    fn what_was_synced_of_a_payload_is_there_after_a_crash_and_goes_on() {
        for seed in 0..50 {
            let disk = SimDisk::new(seed);
            let mut spool = open(&disk);
            spool.begin(1_000, &record());
            append(&mut spool, 0, 100_000);
            assert_eq!(sync(&mut spool, 100_001), None);
            let growing = spool.growing(ENTRY, 100_000).unwrap().unwrap();
            append(&mut spool, 100_000, 50_000);
            assert!(spool.growing(ENTRY, 1).unwrap().is_none(), "one at a time");
            assert!(!spool.synced(growing.run()).unwrap());
            assert_eq!(sync(&mut spool, 1), Some(true));
            append(&mut spool, 150_000, 20_000);
            disk.crash();
            drop(spool);

            let mut spool = open(&disk);
            let unfinished = spool.unfinished(11_000);
            let [(Record::Incoming { entry, message, .. }, 150_000)] = &unfinished[..] else {
                panic!("{unfinished:?}");
            };
            assert_eq!((*entry, message.remaining_ms), (ENTRY, 50_000));
            assert_eq!(spool.usage().bytes, 150_000);
            append(&mut spool, 150_000, 40_000);
            assert_eq!(sync(&mut spool, 1), Some(true));
            drop(spool);
            disk.crash();

            let mut spool = open(&disk);
            assert_eq!(spool.unfinished(0)[0].1, 190_000);
            append(&mut spool, 190_000, SIZE - 190_000);
            assert_eq!(sync(&mut spool, 1), Some(true));
            let records = vec![record()];
            let done = spool.commit(0, &[Op::Write { token: 1, records }]);
            assert_eq!(done[0].result, Ok(()));
            disk.crash();
            drop(spool);

            let spool = open(&disk);
            assert!(spool.unfinished(0).is_empty());
            assert_eq!(spool.records(0).count(), 1);
            for offset in (0..SIZE).step_by(50_000) {
                let read = spool.read(ENTRY, offset, 50_000).unwrap().bytes;
                assert_eq!(read, part(offset, 50_000));
            }
            let notes = disk.files().into_keys().filter(|name| name.ends_with(NOTE));
            assert_eq!(notes.count(), 0);
        }
    }

    #[test]
    fn one_that_is_removed_leaves_nothing() {
        let disk = SimDisk::new(1);
        let mut spool = open(&disk);
        spool.begin(0, &record());
        append(&mut spool, 0, 100_000);
        assert_eq!(sync(&mut spool, 1), Some(true));
        spool.commit(0, &[Op::Remove(ENTRY)]);
        while spool.maintain().unwrap() {}
        assert_eq!(spool.usage().bytes, 0);
        drop(spool);
        let files = disk.files();
        assert!(
            !files.keys().any(|name| name.starts_with(PAYLOADS)),
            "{files:?}"
        );
    }

    #[test]
    fn a_note_without_a_mark_or_of_something_else_says_nothing() {
        let mut bytes = Vec::new();
        record().encode(0, &mut bytes);
        let head = head(&bytes);
        let whole = [&head[..], &mark(&head, 5), &mark(&head, 9)].concat();
        assert_eq!(decode(ENTRY, &whole).map(|(_, safe)| safe), Some(9));
        assert!(decode(EntryId(8), &whole).is_none());
        for length in 0..head.len() + MARK {
            assert!(decode(ENTRY, &whole[..length]).is_none());
        }
        for at in 0..whole.len() {
            let mut torn = whole.clone();
            torn[at] ^= 1;
            let safe = decode(ENTRY, &torn).map(|(_, safe)| safe);
            let expected = match at.checked_sub(head.len()) {
                None => None,
                Some(0..MARK) => Some(9),
                Some(_) => Some(5),
            };
            assert_eq!(safe, expected, "{at}");
        }
    }
}
