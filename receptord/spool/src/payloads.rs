//! Payloads too large for the log: a file each, written and read in parts.
//!
//! Owns `payloads/`. A payload is counted as it grows, is durable before the message that owns
//! it is written, and is never in memory whole. Removing the files is not done here: that must
//! wait until the removal of their messages is safe.

use std::path::Path;

use receptor_proto::record::EntryId;

use crate::disk::{Access, Disk, DiskFile, write_full};
use crate::error::SpoolError;
use crate::limits::Share;
use crate::recover::{CORRUPT, CORRUPT_MAX, Damage};
use crate::spool::Spool;
use crate::sums::{SUMS, Sums, sums_path};

/// Where payloads are.
pub(crate) const PAYLOADS: &str = "payloads";
/// Payload files held open while they grow. Of more, those that have been open for longest are to
/// be synced and closed ([`Spool::crowded`]).
const OPEN_PAYLOADS: usize = 256;
/// When there are so many for all that, one is synced here and now: of the files that a process
/// may have open, others need some too, and each one that waits for its sync takes three more.
const OPEN_PAYLOADS_MAX: usize = 512;

/// Where the payload of an entry lies in the spool's directory, if it is a file of its own.
#[must_use]
pub fn payload_path(entry: EntryId) -> String {
    format!("{PAYLOADS}/{:016x}", entry.0)
}

/// Where a payload goes that is not what it was.
pub(crate) fn aside_path(entry: EntryId) -> String {
    format!("{CORRUPT}/{:016x}.payload", entry.0)
}

impl<D: Disk> Spool<D> {
    /// Writes a part of a payload behind what is there. It is nobody's, and gone after a
    /// restart, until a message with this entry is written. Unless it was said to [begin](Self::begin)
    /// as something else, it counts as that of a request, which leaves room for answers. `sum` is the checksum that the part
    /// came with, if it came with one.
    ///
    /// # Errors
    ///
    /// [`SpoolError::OutOfOrder`] when it does not begin where the last one ended;
    /// [`SpoolError::Changed`] when it has another checksum; full; or the disk fails. Then the
    /// payload is as long as before.
    pub fn append(
        &mut self,
        entry: EntryId,
        offset: u64,
        bytes: &[u8],
        sum: Option<u32>,
    ) -> Result<(), SpoolError> {
        if sum.is_some_and(|sum| sum != crc32c::crc32c(bytes)) {
            return Err(SpoolError::Changed(entry));
        }
        let payload = self.index.payloads.get(&entry.0).copied();
        let end = payload.map_or(0, |payload| payload.size);
        let closed = payload.is_some_and(|payload| payload.owned);
        if !self.writable {
            return Err(SpoolError::ReadOnly);
        }
        if offset != end || closed || self.index.entries.contains(entry.0) {
            return Err(SpoolError::OutOfOrder { entry, offset, end });
        }
        if payload.is_some_and(|payload| payload.lost) {
            return Err(SpoolError::Incomplete(entry));
        }
        // What was not begun is somebody's new work.
        let note = self.notes.get(&entry.0);
        let share = note.map_or(Share::Work, |note| note.share);
        self.has_room(bytes.len() as u64, share)?;
        let path = payload_path(entry);
        let failed = |error: std::io::Error| SpoolError::io(format!("writing {path}"), &error);
        if !self.open.iter().any(|(open, _)| *open == entry) {
            let access = if payload.is_some() {
                Access::Write
            } else {
                Access::Create
            };
            self.sum_again(entry, end).map_err(failed)?;
            let file = self.disk.open(&path, access).map_err(failed)?;
            self.is_payload_new = true;
            self.close_synced();
            if self.open.len() >= OPEN_PAYLOADS_MAX {
                // An error that nobody has seen yet is told to who has the file open.
                let (old, file) = self.open.remove(0);
                let synced = file.sync();
                if let Some(payload) = self.index.payloads.get_mut(&old.0) {
                    payload.synced = synced.is_ok();
                    payload.safe = if payload.synced { payload.size } else { 0 };
                    payload.lost |= synced.is_err();
                }
            }
            self.open.push((entry, file));
            // Known from here on, so that it is removed.
            self.index.grow_payload(entry, 0);
        }
        let Some((_, file)) = self.open.iter().find(|(open, _)| *open == entry) else {
            return Err(SpoolError::NoEntry(entry));
        };
        if let Err(error) = write_full(file, bytes, offset) {
            if let Some(payload) = self.index.payloads.get_mut(&entry.0) {
                payload.ragged = true;
            }
            return Err(failed(error));
        }
        self.index.grow_payload(entry, bytes.len() as u64);
        self.sum_part(entry, bytes, sum);
        Ok(())
    }

    /// Takes a file on the same file system as a payload, which has these checksums. It may take
    /// the room that is left for answers; the message that it belongs to may still be refused.
    ///
    /// # Errors
    ///
    /// As [`Self::append`]; the file is where it was then.
    pub fn adopt(
        &mut self,
        entry: EntryId,
        from: &Path,
        size: u64,
        sums: Sums,
    ) -> Result<(), SpoolError> {
        if !self.writable {
            return Err(SpoolError::ReadOnly);
        }
        if self.index.payloads.contains_key(&entry.0) || self.index.entries.contains(entry.0) {
            return Err(SpoolError::EntryExists(entry));
        }
        // Its plugin does not make it again.
        self.has_room(size, Share::End)?;
        let path = payload_path(entry);
        self.disk
            .adopt(from, &path)
            .map_err(|error| SpoolError::io(format!("moving a file to {path}"), &error))?;
        self.is_payload_new = true;
        self.index.grow_payload(entry, size);
        self.sum_file(entry, sums);
        Ok(())
    }

    /// Closes files beyond [`OPEN_PAYLOADS`] of which nothing is left to sync.
    pub(crate) fn close_synced(&mut self) {
        let mut excess = self.open.len().saturating_sub(OPEN_PAYLOADS);
        let payloads = &self.index.payloads;
        self.open.retain(|(entry, _)| {
            let payload = payloads.get(&entry.0);
            let is_done = payload.is_none_or(|payload| payload.synced || payload.lost);
            let is_closed = excess > 0 && is_done;
            excess -= usize::from(is_closed);
            !is_closed
        });
    }

    /// When more payloads grow than should have their files open: one that is to be synced, as by
    /// [`Self::growing`], so that its file can be closed. To be asked after [`Self::append`].
    #[must_use]
    pub fn crowded(&self) -> Option<EntryId> {
        let excess = self.open.len().saturating_sub(OPEN_PAYLOADS);
        let mut oldest = self.open.iter().take(excess).map(|(entry, _)| *entry);
        oldest.find(|entry| {
            let payload = self.index.payloads.get(&entry.0);
            payload.is_some_and(|payload| {
                !payload.syncing && !payload.synced && !payload.lost && !payload.ragged
            })
        })
    }

    /// Makes a payload durable that a message is about to be written of.
    pub(crate) fn sync_payload(&mut self, entry: EntryId, size: u64) -> Result<(), SpoolError> {
        let Some(payload) = self.index.payloads.get(&entry.0).copied() else {
            return Err(SpoolError::Incomplete(entry));
        };
        if payload.size != size || payload.lost {
            return Err(SpoolError::Incomplete(entry));
        }
        let path = payload_path(entry);
        let failed = |error: std::io::Error| SpoolError::io(format!("syncing {path}"), &error);
        if !payload.synced {
            let file = match self.open.iter().position(|(open, _)| *open == entry) {
                Some(at) => self.open.swap_remove(at).1,
                None => self.disk.open(&path, Access::Write).map_err(failed)?,
            };
            let cut = if payload.ragged {
                file.set_len(size)
            } else {
                Ok(())
            };
            let synced = cut.and_then(|()| file.sync());
            // A file that was taken over may be another than its owner thinks.
            let synced = synced.and_then(|()| match file.size()? {
                real if real == size => Ok(()),
                _ => Err(std::io::ErrorKind::InvalidData.into()),
            });
            if let Some(payload) = self.index.payloads.get_mut(&entry.0) {
                payload.synced = synced.is_ok();
                payload.lost = synced.is_err();
            }
            synced.map_err(failed)?;
        }
        if !self.is_saved(entry, size) {
            let unsaved = self.unsaved(entry);
            let saved = unsaved.and_then(|unsaved| unsaved.map_or(Ok(()), |sums| sums.save()));
            if saved.is_err()
                && let Some(payload) = self.index.payloads.get_mut(&entry.0)
            {
                payload.lost = true;
            }
            saved.map_err(failed)?;
            self.saved(entry, size);
        }
        if self.is_payload_new {
            self.disk.sync_dir(PAYLOADS).map_err(failed)?;
            self.is_payload_new = false;
        }
        Ok(())
    }

    /// Puts a payload aside that is not what it was. Its message stays, and reading the payload
    /// says that it is damaged, until whoever owns the message has told its sender and removes it.
    pub fn set_aside(&mut self, entry: EntryId) -> Option<Damage> {
        let payload = self.index.payloads.get_mut(&entry.0)?;
        payload.lost = true;
        let size = payload.size;
        self.close_reading(entry);
        let file = payload_path(entry);
        let kept = aside_path(entry);
        let fits = self.writable && self.aside.saturating_add(size) <= CORRUPT_MAX;
        let kept = fits && self.disk.rename(&file, &kept).is_ok();
        if kept {
            self.aside += size;
            let sums = format!("{}{SUMS}", aside_path(entry));
            // What was damaged is found without them, and this is not needed by anything here.
            let _ = self.disk.rename(&sums_path(entry), &sums);
            let _ = self.disk.sync_dir(CORRUPT);
        }
        Some(Damage {
            file,
            offset: 0,
            length: size,
            entry: Some(entry),
            kept: kept.then(|| aside_path(entry)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::SimDisk;
    use crate::spool::{Op, Options};
    use receptor_proto::packet::{CancelReason, Content, Message, MessageKind, SEGMENT_MAX};
    use receptor_proto::record::Record;
    use receptor_proto::{Directive, MessageId, NodeId};

    /// One more part for each of so many payloads.
    fn grow(spool: &mut Spool<SimDisk>, payloads: usize) {
        for entry in 1..=payloads as u64 {
            let end = spool.index.payloads.get(&entry).map_or(0, |p| p.size);
            let entry = EntryId(entry);
            spool.append(entry, end, &[7; 1000], None).unwrap();
        }
    }

    #[test]
    fn no_part_of_many_payloads_waits_for_a_sync() {
        let disk = SimDisk::new(1);
        let (mut spool, _) = Spool::open(disk.clone(), &Options::new(1)).unwrap();
        let before = disk.syncs();
        for _ in 0..3 {
            grow(&mut spool, OPEN_PAYLOADS_MAX);
        }
        assert_eq!(disk.syncs(), before);
        // More of them cost syncs and no open files.
        grow(&mut spool, OPEN_PAYLOADS_MAX + 1);
        assert!(disk.syncs() > before);
        assert_eq!(spool.open.len(), OPEN_PAYLOADS_MAX);
    }

    /// A large message that is to be received.
    fn large(entry: u64, kind: MessageKind) -> Record {
        Record::Incoming {
            entry: EntryId(entry),
            origin: NodeId::new("a").unwrap(),
            message: Message {
                epoch: 1,
                seq: 2,
                floor: 0,
                work: MessageId::from_u128(3),
                kind,
                volatile: false,
                remaining_ms: 60_000,
                content: Content::Bytes,
                name: None,
                size: 1 << 30,
                body: bytes::Bytes::new(),
            },
        }
    }

    /// Appends until something is refused, and gives what was taken.
    fn fill(spool: &mut Spool<SimDisk>, entry: u64) -> u64 {
        let mut end = 0;
        loop {
            match spool.append(EntryId(entry), end, &[1; 1000], None) {
                Ok(()) => end += 1000,
                Err(SpoolError::Full { .. }) => return end,
                Err(error) => panic!("{error}"),
            }
        }
    }

    #[test]
    fn payloads_of_requests_leave_room_for_those_of_answers_and_for_cancels() {
        let request = MessageKind::Request {
            directive: Directive::new("echo:echo").unwrap(),
            respond: true,
        };
        let response = MessageKind::Response {
            serial: 1,
            eof: None,
            in_doubt: false,
        };
        for is_begun in [false, true] {
            let mut options = Options::new(1);
            options.limits.max_bytes = 80_000;
            let (mut spool, _) = Spool::open(SimDisk::new(1), &options).unwrap();
            if is_begun {
                spool.begin(0, &large(1, request.clone()));
            }
            assert_eq!(fill(&mut spool, 1), 70_000);
            spool.begin(0, &large(2, response.clone()));
            spool.append(EntryId(2), 0, &[2; 5000], None).unwrap();
            let reason = CancelReason::User;
            let mut cancel = large(3, MessageKind::Cancel { reason });
            if let Record::Incoming { message, .. } = &mut cancel {
                message.size = 0;
            }
            let records = vec![cancel];
            let done = spool.commit(0, &[Op::Write { token: 1, records }]);
            assert_eq!(done[0].result, Ok(()));
        }
    }

    #[test]
    fn files_of_many_payloads_are_closed_when_they_are_synced_elsewhere() {
        let disk = SimDisk::new(1);
        let (mut spool, _) = Spool::open(disk.clone(), &Options::new(1)).unwrap();
        grow(&mut spool, OPEN_PAYLOADS);
        assert_eq!(spool.crowded(), None);
        grow(&mut spool, OPEN_PAYLOADS + 3);
        let mut crowded = Vec::new();
        while let Some(entry) = spool.crowded() {
            crowded.push(spool.growing(entry, 1).unwrap().unwrap());
        }
        assert_eq!((crowded.len(), spool.open.len()), (3, OPEN_PAYLOADS + 3));
        // What was written meanwhile is synced with the next.
        spool.append(EntryId(1), 2000, b"more", None).unwrap();
        for growing in crowded {
            spool.synced(growing.run()).unwrap();
        }
        assert_eq!(spool.open.len(), OPEN_PAYLOADS + 1);
        let growing = spool.growing(spool.crowded().unwrap(), 1).unwrap().unwrap();
        assert!(spool.synced(growing.run()).unwrap());
        assert_eq!(spool.open.len(), OPEN_PAYLOADS);
        // Those whose files were closed grow as before.
        spool.append(EntryId(1), 2004, b"and more", None).unwrap();
        assert_eq!(
            &spool.read(EntryId(1), 2000, 9).unwrap().bytes[..],
            b"moreand m"
        );
    }

    #[test]
    fn what_was_read_of_a_large_payload_is_not_kept_in_memory() {
        let disk = SimDisk::new(1);
        let (mut spool, _) = Spool::open(disk.clone(), &Options::new(1)).unwrap();
        let part = [1; SEGMENT_MAX];
        let request = MessageKind::Request {
            directive: Directive::new("echo:echo").unwrap(),
            respond: true,
        };
        for (entry, parts) in [(1, 10 << 4), (2, 3 << 4)] {
            for at in 0..parts {
                let offset = at * SEGMENT_MAX as u64;
                spool.append(EntryId(entry), offset, &part, None).unwrap();
            }
            let mut record = large(entry, request.clone());
            if let Record::Incoming { message, .. } = &mut record {
                message.size = parts * SEGMENT_MAX as u64;
            }
            let records = vec![record];
            let done = spool.commit(0, &[Op::Write { token: 1, records }]);
            assert_eq!(done[0].result, Ok(()));
            for at in 0..parts {
                let offset = at * SEGMENT_MAX as u64;
                spool.read(EntryId(entry), offset, SEGMENT_MAX).unwrap();
            }
        }
        // Of the small one nothing.
        assert_eq!(disk.forgotten(), 8 << 20);
        // What is sent again from somewhere else is as good.
        let read = spool.read(EntryId(1), 1 << 20, 4).unwrap();
        assert_eq!(&read.bytes[..], &part[..4]);
    }

    #[test]
    fn behind_the_end_of_a_payload_there_is_nothing() {
        let (mut spool, _) = Spool::open(SimDisk::new(1), &Options::new(1)).unwrap();
        spool.append(EntryId(1), 0, &[1; 300], None).unwrap();
        for (offset, rest) in [(299, 1), (300, 0), (50_000, 0), (u64::MAX, 0)] {
            let read = spool.read(EntryId(1), offset, 1 << 16).unwrap();
            assert_eq!(read.bytes.len(), rest, "{offset}");
        }
    }
}
