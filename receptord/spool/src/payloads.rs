//! Payloads too large for the log: a file each, written and read in parts.
//!
//! Owns `payloads/`. A payload is counted as it grows, is durable before the message that owns
//! it is written, and is never in memory whole. Removing the files is not done here: that must
//! wait until the removal of their messages is safe.

use std::path::Path;

use receptor_proto::record::EntryId;

use crate::disk::{Access, Disk, DiskFile, write_full};
use crate::error::SpoolError;
use crate::recover::{CORRUPT, CORRUPT_MAX, Damage};
use crate::spool::Spool;
use crate::sums::{SUMS, Sums, sums_path};

/// Where payloads are.
pub(crate) const PAYLOADS: &str = "payloads";
/// Payload files held open until they are synced.
const OPEN_PAYLOADS_MAX: usize = 64;

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
    /// restart, until a message with this entry is written. `sum` is the checksum that the part
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
        let own = crc32c::crc32c(bytes);
        if sum.is_some_and(|sum| sum != own) {
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
        self.has_room(bytes.len() as u64)?;
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
        self.sum_part(entry, bytes, own);
        Ok(())
    }

    /// Takes a file on the same file system as a payload, which has these checksums.
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
        self.has_room(size)?;
        let path = payload_path(entry);
        self.disk
            .adopt(from, &path)
            .map_err(|error| SpoolError::io(format!("moving a file to {path}"), &error))?;
        self.is_payload_new = true;
        self.index.grow_payload(entry, size);
        self.sum_file(entry, sums);
        Ok(())
    }

    fn has_room(&self, more: u64) -> Result<(), SpoolError> {
        let max = self.limits.max_bytes;
        if self.index.total().bytes.saturating_add(more) > max {
            return Err(SpoolError::Full {
                limit: "max-bytes",
                max,
            });
        }
        Ok(())
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
