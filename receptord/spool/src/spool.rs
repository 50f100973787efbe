//! The spool itself: what a batch of operations does, payloads, reading, and keeping it small.
//!
//! Owns the moment at which files may be removed. Never promises what is not
//! synced, and never holds a payload in memory.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use receptor_proto::NodeId;
use receptor_proto::packet::{Piece, SEGMENT_MAX};
use receptor_proto::record::{self, EntryId, Record};

use crate::disk::{Access, Disk, read_full};
use crate::error::SpoolError;
use crate::index::{Index, Usage};
use crate::limits::{Limits, Share, Taken};
use crate::log::{Effect, Log, Reserve, Results, encode_memo, gone, segment_path};
use crate::partials::Note;
use crate::payloads::payload_path;
use crate::records::{Memos, Records};
use crate::recover::{self, Report};
use crate::segment::{FIRST, FrameWriter, GROUP_MAX, Place};
use crate::sums::{Growths, Reading, sums_path};

/// Removals that wait for a sync of something else; 4096 messages come back after a crash.
const UNSETTLED_MAX: usize = 4096;
/// Payload files that wait for a sync of something else before they are removed.
const DOOMED_MAX: usize = 64;
/// Bytes of such files that do. A disk with little room needs it back soon.
const DOOMED_BYTES: u64 = 64 << 20;
/// Freeing a file takes the system as long as its size demands. One larger than this is kept
/// open when its name goes, so that it is freed by whoever closes it.
const FREED_HERE: u64 = 16 << 20;
/// Segments whose files may be empty in part, whatever is in them: the one written to, and
/// those that are being emptied.
const SEGMENTS_FREE: u64 = 4;
/// The same when the disk was full.
const SEGMENTS_FREE_TIGHT: u64 = 1;
/// Bytes of segments for each needed byte before a commit itself copies what is needed out of
/// one; half as much is enough for [`Spool::maintain`].
const SPREAD_MAX: u64 = 3;

/// Bytes of one memo.
pub const MEMO_MAX: usize = 8 << 10;
/// The names of memos begin here; those of messages end before.
pub const MEMO_FIRST: u64 = 1 << 63;

/// How the spool is opened.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How large it may be.
    pub limits: Limits,
    /// Bytes of one segment, at least 16 KiB and at most 1 GiB; anything else is taken as the
    /// nearer of them.
    pub segment_bytes: u64,
    /// Random, another one at each opening, and known to nobody: what a message contains must
    /// not be able to look like the spool's own.
    pub salt: u64,
}

impl Options {
    /// The usual sizes.
    #[must_use]
    pub fn new(salt: u64) -> Self {
        Self {
            limits: Limits::default(),
            segment_bytes: 16 << 20,
            salt,
        }
    }
}

/// One thing to do.
#[derive(Debug, Clone)]
pub enum Op {
    /// Write these records, all or none.
    Write {
        /// Comes back with the outcome.
        token: u64,
        /// What to write.
        records: Vec<Record>,
    },
    /// Keep a few bytes under a name of their own until they are removed. They are read back by
    /// [`Spool::memos`] alone and count for no limit: whoever writes them bounds them. What is
    /// written after a memo is never durable without it, unless the memo could not be written:
    /// there is no outcome, [`Spool::has_memo`] says. One with a name that is in use, or of more
    /// than [`MEMO_MAX`] bytes, is not kept.
    Memo {
        /// Its name: [`MEMO_FIRST`] or above, never used before.
        entry: EntryId,
        /// What it says.
        bytes: Bytes,
    },
    /// Forget an entry, what was written about it, and its payload.
    Remove(EntryId),
}

/// What became of one [`Op::Write`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Of the operation.
    pub token: u64,
    /// It is durable, or none of it counts, now and after a restart.
    pub result: Result<(), SpoolError>,
}

/// See the crate.
pub struct Spool<D: Disk> {
    pub(crate) disk: D,
    pub(crate) limits: Limits,
    pub(crate) segment_bytes: u64,
    pub(crate) index: Index,
    pub(crate) log: Log<D::File>,
    /// Payloads that are being written.
    pub(crate) open: Vec<(EntryId, D::File)>,
    /// See [`Self::take_freed`].
    freed: Vec<D::File>,
    /// A payload's name may not be durable.
    pub(crate) is_payload_new: bool,
    /// What payloads that are being written are part of, by entry.
    pub(crate) notes: BTreeMap<u64, Note>,
    /// Checksums of payloads that are being written.
    pub(crate) sums: Growths,
    /// Payloads that are being read, the last one last.
    pub(crate) reading: RefCell<Vec<Reading<D::File>>>,
    /// Commits until one copies again; see [`Self::compact`].
    pub(crate) copy_in: u32,
    /// Bytes of what was set aside.
    pub(crate) aside: u64,
    pub(crate) writable: bool,
    _lock: D::Lock,
}

impl<D: Disk> std::fmt::Debug for Spool<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Spool")
            .field("usage", &self.usage())
            .field("log", &self.log)
            .finish_non_exhaustive()
    }
}

impl<D: Disk> Spool<D> {
    /// Opens a spool to write to it, and recovers what is there. An empty directory is an empty
    /// spool.
    ///
    /// # Errors
    ///
    /// [`SpoolError::InUse`], [`SpoolError::Newer`], and failures of the disk. Damage is no
    /// error: see the report.
    pub fn open(disk: D, options: &Options) -> Result<(Self, Report), SpoolError> {
        recover::open(disk, options, true)
    }

    /// Opens the spool of a daemon that does not run, and changes nothing.
    ///
    /// # Errors
    ///
    /// As [`Self::open`].
    pub fn open_read_only(disk: D) -> Result<(Self, Report), SpoolError> {
        recover::open(disk, &Options::new(0), false)
    }

    pub(crate) fn assemble(
        disk: D,
        options: &Options,
        index: Index,
        log: Log<D::File>,
        notes: BTreeMap<u64, Note>,
        lock: D::Lock,
        writable: bool,
    ) -> Self {
        Self {
            disk,
            limits: options.limits,
            segment_bytes: options.segment_bytes,
            index,
            log,
            open: Vec::new(),
            freed: Vec::new(),
            is_payload_new: true,
            notes,
            sums: Growths::new(),
            reading: RefCell::default(),
            copy_in: 0,
            aside: 0,
            writable,
            _lock: lock,
        }
    }

    /// Other limits, from here on. What is there stays.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Does all of it in order, with one write and one sync, or a few when a segment ends in
    /// between. A batch of removals alone is not synced: they are with the next one, or
    /// with [`Self::maintain`]. Blocks for as long as the disk takes.
    ///
    /// Gives one outcome for each write, in the order of the batch. `now_ms` is the wall clock
    /// in milliseconds since 1970: what the lifetime of messages is reckoned from.
    pub fn commit(&mut self, now_ms: u64, batch: &[Op]) -> Vec<Outcome> {
        let mut results = Results::new();
        let mut taken = Taken::default();
        for (at, op) in batch.iter().enumerate() {
            match op {
                Op::Write { records, .. } => {
                    let staged = if self.writable {
                        self.write(now_ms, at, records, &mut taken, &mut results)
                    } else {
                        Err(SpoolError::ReadOnly)
                    };
                    if let Err(error) = staged {
                        results.push((at, Err(error)));
                    }
                }
                Op::Memo { entry, bytes } if self.writable => {
                    // Whoever wants to know looks whether it is there.
                    let _ = self.gather_memo(*entry, bytes, &mut results);
                }
                Op::Memo { .. } => {}
                Op::Remove(entry) if self.writable => {
                    self.forget_note(*entry);
                    self.index.entries.prepare(entry.0);
                    taken.free(&self.index, *entry);
                    self.log.remove(*entry);
                }
                Op::Remove(_) => {}
            }
        }
        if self.writable {
            let writes = |op: &Op| !matches!(op, Op::Remove(_));
            self.finish(batch.iter().any(writes), &mut results);
        }
        results.sort_by_key(|(at, _)| *at);
        let outcome = |(at, result)| match &batch[at] {
            Op::Write { token, .. } => Some(Outcome {
                token: *token,
                result,
            }),
            Op::Memo { .. } | Op::Remove(_) => None,
        };
        results.into_iter().filter_map(outcome).collect()
    }

    /// Writes what is gathered and removes what is needed no longer.
    fn finish(&mut self, writes: bool, results: &mut Results) {
        // Those that cannot be written are with the next batch.
        let _ = self
            .log
            .gather_removals(&self.disk, &mut self.index, results);
        let doomed = &self.index.doomed;
        let sync = writes
            || self.log.unsettled() > UNSETTLED_MAX
            || doomed.len() > DOOMED_MAX
            || doomed.iter().map(|(_, size)| size).sum::<u64>() > DOOMED_BYTES;
        let flushed = self.log.flush(&self.disk, &mut self.index, results, sync);
        let failed = results.iter().any(|(_, result)| result.is_err());
        if flushed.is_err() || failed || !self.log.carry.is_empty() {
            self.log.repair(&self.disk, &mut self.index, results);
        }
        if self.log.is_settled() {
            self.sweep();
            self.copy_in = self.copy_in.saturating_sub(1);
            if self.copy_in == 0 && self.spread() > SPREAD_MAX * self.needed() + self.free() {
                // What cannot be copied stays where it is.
                let _ = self.compact();
            }
        }
    }

    /// Removes files of payloads and segments that are needed no longer. Everything must be
    /// settled. What cannot be removed now is tried again.
    fn sweep(&mut self) {
        for (entry, size) in std::mem::take(&mut self.index.doomed) {
            let path = payload_path(entry);
            if size > FREED_HERE
                && let Ok(file) = self.disk.open(&path, Access::Read)
            {
                self.freed.push(file);
            }
            self.open.retain(|(open, _)| *open != entry);
            self.close_reading(entry);
            let removed = gone(self.disk.remove(&path));
            if removed
                .and_then(|()| gone(self.disk.remove(&sums_path(entry))))
                .is_err()
            {
                self.index.doomed.push((entry, size));
            }
        }
        self.sweep_notes();
        self.sweep_sums();
        let _ = self.log.collect(&self.disk, &mut self.index);
    }

    /// Large files that have lost their names. Closing one can take the disk a while, which
    /// somebody else may do than who commits.
    pub fn take_freed(&mut self) -> Vec<D::File> {
        std::mem::take(&mut self.freed)
    }

    /// To be called now and then when there is nothing else to do: syncs removals, gives space
    /// back, and copies what is needed out of at most one segment. True: there is more of that.
    ///
    /// # Errors
    ///
    /// When the disk fails. Nothing is lost then; call it again later.
    pub fn maintain(&mut self) -> Result<bool, SpoolError> {
        if !self.writable {
            return Ok(false);
        }
        self.settle()?;
        if !self.log.is_settled() {
            return Ok(false);
        }
        self.sweep();
        if 2 * self.spread() <= SPREAD_MAX * self.needed() + self.free() / 2 {
            return Ok(false);
        }
        self.compact()
    }

    /// Makes everything durable that was committed, removals too.
    ///
    /// # Errors
    ///
    /// When the disk fails. What was removed may be there again after a crash until this succeeds.
    pub fn settle(&mut self) -> Result<(), SpoolError> {
        if !self.writable {
            return Ok(());
        }
        let mut results = Results::new();
        let gathered = self
            .log
            .gather_removals(&self.disk, &mut self.index, &mut results);
        let flushed = self
            .log
            .flush(&self.disk, &mut self.index, &mut results, true);
        let flushed = gathered.and(flushed);
        if flushed.is_err() || !self.log.carry.is_empty() {
            self.log.repair(&self.disk, &mut self.index, &mut results);
        }
        flushed
    }

    /// Others lack room on this disk: what is kept for speed alone is given back, from here on.
    /// [`Self::maintain`] goes on with that.
    pub fn tighten(&mut self) {
        if self.writable {
            self.log.tighten(&self.disk);
        }
    }

    /// Bytes of segments that may be empty.
    fn free(&self) -> u64 {
        let segments = if self.log.is_tight() {
            SEGMENTS_FREE_TIGHT
        } else {
            SEGMENTS_FREE
        };
        segments * self.segment_bytes
    }

    /// Bytes of all segments that could be emptied.
    fn spread(&self) -> u64 {
        let active = self.log.active();
        let segments = self.index.segments.iter();
        segments
            .filter(|(number, segment)| Some(**number) != active && !segment.is_stuck)
            .map(|(_, segment)| segment.file)
            .sum()
    }

    /// Bytes that are needed of those, and of the one that is written to.
    fn needed(&self) -> u64 {
        let segments = self.index.segments.values();
        segments.filter(|s| !s.is_stuck).map(|s| s.needed()).sum()
    }

    /// Ends in order: everything is durable, removals too.
    ///
    /// # Errors
    ///
    /// When the disk fails; then it is as after a crash.
    pub fn close(mut self) -> Result<(), SpoolError> {
        if !self.writable {
            return Ok(());
        }
        let mut results = Results::new();
        let gathered = self
            .log
            .gather_removals(&self.disk, &mut self.index, &mut results);
        self.log
            .flush(&self.disk, &mut self.index, &mut results, true)?;
        gathered?;
        if self.log.is_settled() {
            self.sweep();
        }
        self.log.end()
    }

    /// Gathers one group of records, if it may be written.
    fn write(
        &mut self,
        now_ms: u64,
        at: usize,
        records: &[Record],
        taken: &mut Taken,
        results: &mut Results,
    ) -> Result<(), SpoolError> {
        let mut frame = FrameWriter::default();
        let mut planned = Vec::with_capacity(records.len());
        let mut group = Taken::default();
        let mut messages = BTreeSet::new();
        let mut started = BTreeSet::new();
        for record in records {
            match record {
                Record::Outgoing { entry, message, .. }
                | Record::Incoming { entry, message, .. }
                | Record::Transit { entry, message, .. } => {
                    if self.index.entries.contains(entry.0)
                        || self.log.fresh.contains(&entry.0)
                        || !messages.insert(entry.0)
                    {
                        return Err(SpoolError::EntryExists(*entry));
                    }
                    if message.is_segmented() {
                        self.sync_payload(*entry, message.size)?;
                    }
                }
                Record::Started { entry } => {
                    if !self.index.entries.contains(entry.0)
                        && !self.log.fresh.contains(&entry.0)
                        && !messages.contains(&entry.0)
                    {
                        // The message is gone; there is nothing to say of it.
                        continue;
                    }
                    started.insert(entry.0);
                }
                Record::Received {
                    origin,
                    epoch,
                    floor,
                    ..
                } => {
                    let key = (origin.clone(), *epoch);
                    if *floor != u64::MAX {
                        group.flows.insert(key);
                    } else if !self.index.flows.contains_key(&key)
                        && !taken.flows.contains(&key)
                        && !group.flows.contains(&key)
                    {
                        continue;
                    }
                }
            }
            frame.record(|out| record.encode(now_ms, out));
            planned.push((record, frame.last_length()));
            if frame.length() > GROUP_MAX {
                return Err(SpoolError::TooLarge {
                    size: frame.length(),
                    max: GROUP_MAX,
                });
            }
        }
        let mut reserve = Reserve::Removals;
        for (record, length) in &planned {
            let (node, entry, message) = match record {
                Record::Outgoing {
                    recipient,
                    entry,
                    message,
                } => (Some(recipient), entry, message),
                Record::Incoming { entry, message, .. }
                | Record::Transit { entry, message, .. } => (None, entry, message),
                Record::Started { .. } | Record::Received { .. } => continue,
            };
            let has_arrived = node.is_some() && started.contains(&entry.0);
            let share = Share::of(&message.kind, has_arrived);
            if share == Share::Work {
                reserve = Reserve::Answers;
            }
            let payload = self.index.payloads.get(&entry.0).map_or(0, |p| p.size);
            self.admit(u64::from(*length), payload, share, node, taken, &mut group)?;
        }
        if frame.is_empty() {
            results.push((at, Ok(())));
            return Ok(());
        }
        let effects = |places: Vec<Place>| {
            let effect = |(record, place): (&Record, Place)| match record {
                Record::Outgoing {
                    entry, recipient, ..
                } => Effect::Message {
                    entry: *entry,
                    recipient: Some(recipient.clone()),
                    place,
                },
                Record::Incoming { entry, .. } | Record::Transit { entry, .. } => Effect::Message {
                    entry: *entry,
                    recipient: None,
                    place,
                },
                Record::Started { entry } => Effect::Started(*entry),
                Record::Received {
                    origin,
                    epoch,
                    floor,
                    ..
                } => Effect::Received {
                    key: (origin.clone(), *epoch),
                    place,
                    over: *floor == u64::MAX,
                },
            };
            let records = planned.iter().map(|(record, _)| *record);
            let mut effects: Vec<Effect> = records.zip(places).map(effect).collect();
            effects.push(Effect::Group(at));
            effects
        };
        let flushes = self.log.flushes;
        let gathered = self.log.gather(
            &self.disk,
            &mut self.index,
            results,
            frame,
            reserve,
            effects,
        );
        if self.log.flushes != flushes {
            taken.settle(&self.index);
        }
        gathered?;
        self.log.fresh.extend(messages);
        taken.add(group);
        Ok(())
    }

    fn gather_memo(
        &mut self,
        entry: EntryId,
        memo: &Bytes,
        results: &mut Results,
    ) -> Result<(), SpoolError> {
        if memo.len() > MEMO_MAX {
            let (size, max) = (memo.len(), MEMO_MAX);
            return Err(SpoolError::TooLarge { size, max });
        }
        if self.index.entries.contains(entry.0) || self.log.fresh.contains(&entry.0) {
            return Err(SpoolError::EntryExists(entry));
        }
        let mut frame = FrameWriter::default();
        frame.record(|out| encode_memo(entry, memo, out));
        let effects = |places: Vec<Place>| {
            let places = places.into_iter();
            places.map(|place| Effect::Memo { entry, place }).collect()
        };
        let reserve = Reserve::Removals;
        self.log.gather(
            &self.disk,
            &mut self.index,
            results,
            frame,
            reserve,
            effects,
        )?;
        self.log.fresh.insert(entry.0);
        Ok(())
    }

    // Reading.

    /// Reads a part of a stored payload, or of the body of a stored message: at most `length`
    /// bytes, less at its end. What is given is what was stored.
    ///
    /// # Errors
    ///
    /// [`SpoolError::NoEntry`], [`SpoolError::Damaged`], or the disk fails.
    pub fn read(&self, entry: EntryId, offset: u64, length: usize) -> Result<Piece, SpoolError> {
        if let Some(payload) = self.index.payloads.get(&entry.0) {
            if payload.lost {
                return Err(SpoolError::Damaged(entry));
            }
            // Two records may differ in how long it is, and the file is as long as it is.
            let offset = offset.min(payload.size);
            let rest = payload.size - offset;
            let length = length.min(usize::try_from(rest).unwrap_or(usize::MAX));
            let length = length.min(SEGMENT_MAX);
            let (bytes, sum) = self.read_payload(entry, (offset, length), payload.size)?;
            let bytes = bytes.into();
            return Ok(Piece { sum, bytes });
        }
        let Some(slot) = self.index.entries.get(entry.0) else {
            return Err(SpoolError::NoEntry(entry));
        };
        let record = self.read_record(slot.segment, slot.place)?;
        let body = record
            .and_then(|record| record::body(record).ok())
            .ok_or(SpoolError::Damaged(entry))?;
        let start = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(body.len());
        let end = start.saturating_add(length).min(body.len());
        let bytes = body.slice(start..end);
        let sum = crc32c::crc32c(&bytes);
        Ok(Piece { sum, bytes })
    }

    /// `None`: it is not as it was written.
    fn read_record(&self, segment: u32, place: Place) -> Result<Option<Bytes>, SpoolError> {
        let mut buffer = vec![0; place.length as usize];
        let at = u64::from(place.offset);
        let read = match self.log.active_file(segment) {
            Some(file) => read_full(file, &mut buffer, at),
            None => self
                .disk
                .open(&segment_path(segment), Access::Read)
                .and_then(|file| read_full(&file, &mut buffer, at)),
        };
        read.map_err(|error| SpoolError::io(format!("reading {}", segment_path(segment)), &error))?;
        let is_good = crc32c::crc32c(&buffer) == place.crc;
        Ok(is_good.then(|| buffer.into()))
    }

    /// Where a payload that is a file of its own lies in the spool's directory.
    #[must_use]
    pub fn payload_file(&self, entry: EntryId) -> Option<String> {
        let known = self.index.payloads.contains_key(&entry.0);
        known.then(|| payload_path(entry))
    }

    /// What is there.
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.index.total()
    }

    /// Recipients with messages, and how much there is for each.
    pub fn recipients(&self) -> impl Iterator<Item = (&NodeId, Usage)> {
        self.index.recipients()
    }

    /// Bytes of the files of all segments, those kept for later not counted.
    #[must_use]
    pub fn segment_bytes(&self) -> u64 {
        self.index
            .segments
            .values()
            .map(|segment| segment.file)
            .sum()
    }

    /// Everything there is, as of `now_ms`: what is left of each message's lifetime is less by
    /// the time since it was written. First all but outgoing messages, then those, in order of
    /// entry.
    pub fn records(&self, now_ms: u64) -> Records<'_, D> {
        Records::new(self, now_ms)
    }

    /// All memos, in no order. What cannot be read is left out.
    pub fn memos(&self) -> Memos<'_, D> {
        Memos::new(self)
    }

    /// The highest name that a memo has.
    #[must_use]
    pub fn last_memo(&self) -> Option<EntryId> {
        let last = self.index.entries.range(MEMO_FIRST).last();
        last.map(|(entry, _)| EntryId(entry))
    }

    /// Whether there is a memo of this name.
    #[must_use]
    pub fn has_memo(&self, entry: EntryId) -> bool {
        let slot = self.index.entries.get(entry.0);
        slot.is_some_and(|slot| slot.is_memo())
    }

    /// Reads all that can be believed of a segment.
    pub(crate) fn read_segment(&self, number: u32, buffer: &mut Vec<u8>) -> Result<(), SpoolError> {
        let length = self.index.segments.get(&number).map_or(0, |s| s.length);
        let path = segment_path(number);
        buffer.resize((length as usize).max(FIRST as usize), 0);
        let read = self
            .disk
            .open(&path, Access::Read)
            .and_then(|file| read_full(&file, buffer, 0));
        let count = read.map_err(|error| SpoolError::io(format!("reading {path}"), &error))?;
        buffer.truncate(count);
        Ok(())
    }
}
