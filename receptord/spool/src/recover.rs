//! Opening: what is on the disk becomes the index, and what cannot be used is set aside.
//!
//! Reads every segment once, oldest first, one at a time in memory. Loses nothing that counts:
//! damaged parts of segments are copied to `corrupt/` and damaged payloads moved there, files that
//! nobody owns are removed, unfinished payloads are cut to what is safe of them, and the last that
//! was written is written once more, so that what was seen here stays. A crash here costs
//! nothing, and opening twice finds the same. What must not be read again of a segment is cut off
//! or declared void with the first write. Opened to be read, nothing is changed.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use bytes::Bytes;
use receptor_proto::control::SpoolDamage;
use receptor_proto::packet::{Message, MessageKind, SEGMENT_MAX};
use receptor_proto::record::{EntryId, Label, Record};
use receptor_proto::{Directive, MessageId, NodeId};

use crate::disk::{Access, Disk, DiskFile, read_full, write_full};
use crate::error::SpoolError;
use crate::index::{Index, Usage};
use crate::log::{Log, MEMO, NUMBER_MAX, REMOVED, SEGMENTS};
use crate::log::{decode_memo, decode_removed, segment_path, spare_path};
use crate::partials::{self, NOTE, Note, note_path};
use crate::payloads::{PAYLOADS, aside_path, payload_path};
use crate::segment::{FIRST, Header, NoHeader, Place, Scan, VERSION};
use crate::spool::{MEMO_FIRST, Options, Spool};
use crate::sums::{BLOCK, SUM, SUMS, sums_path};

/// The directory where what cannot be used is kept for somebody to look at.
pub const CORRUPT: &str = "corrupt";
/// Bytes kept there; what is found beyond is reported and not kept.
pub(crate) const CORRUPT_MAX: u64 = 256 << 20;
/// Says which version of the format the directory has.
const FORMAT: &str = "format";
/// Where a new one of that is made.
const FORMAT_NEW: &str = "format.new";
/// What stands before the version.
const FORMAT_WORD: &str = "receptor-spool ";
/// The smallest segment, in bytes: a header and something.
const SEGMENT_LEAST: u64 = 16 << 10;
/// The largest, so that any group fits and places are 32 bits.
const SEGMENT_MOST: u64 = 1 << 30;

/// What opening a spool found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// What is there.
    pub usage: Usage,
    /// What was there and cannot be used.
    pub damage: Vec<Damage>,
    /// Files of payloads that no message owns; removed.
    pub orphans: u64,
    /// Requests among what cannot be used.
    pub lost: Vec<LostRequest>,
}

/// A request that is damaged, and that somebody waits for an answer to. What is said here was read
/// out of it and may be wrong as well: it is good for telling who seems to have sent it, and for
/// nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LostRequest {
    /// Another node's, to this one.
    Incoming {
        /// Who sent it.
        origin: NodeId,
        /// What for.
        work: MessageId,
    },
    /// This node's. It is told of at every start until its entry is removed.
    Outgoing {
        /// The name that it had; no other message that is here has it.
        entry: EntryId,
        /// Who it was for.
        recipient: NodeId,
        /// Its work.
        work: MessageId,
        /// What was asked for.
        directive: Directive,
        /// Its place in its flow: epoch and number.
        key: (u64, u64),
    },
}

impl LostRequest {
    /// With the entry that it had, when that much can be read and an answer is waited for.
    fn read(record: &[u8]) -> Option<(EntryId, Self)> {
        let record = Record::decode(Bytes::copy_from_slice(record), 0);
        match record.ok()?? {
            Record::Incoming {
                entry,
                origin,
                message,
            } => {
                awaited(&message)?;
                let work = message.work;
                Some((entry, Self::Incoming { origin, work }))
            }
            Record::Outgoing {
                entry,
                recipient,
                message,
            } => {
                let request = Self::Outgoing {
                    entry,
                    recipient,
                    work: message.work,
                    directive: awaited(&message)?.clone(),
                    key: (message.epoch, message.seq),
                };
                (entry.0 < MEMO_FIRST).then_some((entry, request))
            }
            // Its origin has it too.
            Record::Transit { .. } | Record::Started { .. } | Record::Received { .. } => None,
        }
    }
}

/// What a message asks for, if it is answered.
fn awaited(message: &Message) -> Option<&Directive> {
    match &message.kind {
        MessageKind::Request { directive, respond } => respond.then_some(directive),
        MessageKind::Response { .. } | MessageKind::Cancel { .. } => None,
    }
}

/// A part of the spool that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// Which file.
    pub file: String,
    /// Where it begins.
    pub offset: u64,
    /// How many bytes.
    pub length: u64,
    /// The message that is lost with it, where that is known.
    pub entry: Option<EntryId>,
    /// Where its bytes were put, when they were kept.
    pub kept: Option<String>,
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} bytes of {} at {}",
            self.length, self.file, self.offset
        )?;
        if let Some(entry) = self.entry {
            write!(f, ", with entry {}", entry.0)?;
        }
        match &self.kept {
            Some(kept) => write!(f, " cannot be used; they are kept in {kept}"),
            None => write!(f, " cannot be used"),
        }
    }
}

/// As the operator is told.
impl From<&Damage> for SpoolDamage {
    fn from(damage: &Damage) -> Self {
        Self {
            file: Some(damage.file.clone()),
            offset: Some(damage.offset),
            bytes: Some(damage.length),
            entry: damage.entry.map(|entry| entry.0),
            message: damage.to_string(),
        }
    }
}

struct Recovery<'a, D> {
    disk: &'a D,
    writable: bool,
    index: Index,
    /// Messages said to be started that were not seen yet.
    marks: BTreeMap<u64, u32>,
    /// Of payloads that were being written.
    notes: BTreeMap<u64, Note>,
    /// Sizes of payloads that messages say to have.
    large: BTreeMap<u64, u64>,
    /// Damaged requests that were not removed, by entry.
    lost: BTreeMap<u64, LostRequest>,
    report: Report,
    kept_bytes: u64,
    /// For one segment after the other.
    buffer: Vec<u8>,
}

pub(crate) fn open<D: Disk>(
    disk: D,
    options: &Options,
    writable: bool,
) -> Result<(Spool<D>, Report), SpoolError> {
    let mut options = *options;
    options.segment_bytes = options.segment_bytes.clamp(SEGMENT_LEAST, SEGMENT_MOST);
    // Before anything is touched: what a newer version wrote is left as it is.
    let known = known_format(&disk)?;
    if writable {
        disk.prepare(&[SEGMENTS, PAYLOADS, CORRUPT])
            .map_err(|error| SpoolError::io("making the directories", &error))?;
    }
    let lock = disk.lock(writable).map_err(|error| {
        if error.kind() == io::ErrorKind::WouldBlock {
            SpoolError::InUse
        } else {
            SpoolError::io("locking", &error)
        }
    })?;
    if writable && !known {
        write_format(&disk)?;
    }
    let mut recovery = Recovery {
        disk: &disk,
        writable,
        index: Index::default(),
        marks: BTreeMap::new(),
        notes: BTreeMap::new(),
        large: BTreeMap::new(),
        lost: BTreeMap::new(),
        report: Report::default(),
        kept_bytes: 0,
        buffer: Vec::new(),
    };
    let mut log = Log::new(options.segment_bytes, options.salt);
    recovery.count_kept()?;
    recovery.payloads()?;
    recovery.segments(&mut log)?;
    recovery.match_payloads()?;
    let (index, mut report) = (recovery.index, recovery.report);
    // Of some there is another copy that can be used.
    let lost = recovery.lost.into_iter();
    let lost = lost.filter(|(entry, _)| index.entries.get(*entry).is_none());
    report.lost = lost.map(|(_, request)| request).collect();
    let notes = recovery.notes;
    report.usage = index.total();
    let aside = recovery.kept_bytes;
    let mut spool = Spool::assemble(disk, &options, index, log, notes, lock, writable);
    spool.aside = aside;
    Ok((spool, report))
}

fn failed(doing: &str, path: &str) -> impl FnOnce(io::Error) -> SpoolError {
    let doing = format!("{doing} {path}");
    move |error| SpoolError::io(doing, &error)
}

fn read_file<D: Disk>(disk: &D, path: &str, at_most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    read_into(disk, path, at_most, &mut bytes)?;
    Ok(bytes)
}

fn read_into<D: Disk>(disk: &D, path: &str, at_most: u64, to: &mut Vec<u8>) -> io::Result<()> {
    let file = disk.open(path, Access::Read)?;
    let size = file.size()?.min(at_most);
    to.resize(
        usize::try_from(size).map_err(|_| io::ErrorKind::FileTooLarge)?,
        0,
    );
    let count = read_full(&file, to, 0)?;
    to.truncate(count);
    Ok(())
}

/// Whether the directory says which version its format has. It does not when it is new, or when
/// its segments must say it.
fn known_format<D: Disk>(disk: &D) -> Result<bool, SpoolError> {
    let text = match read_file(disk, FORMAT, 64) {
        Ok(text) => String::from_utf8_lossy(&text).into_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(SpoolError::io("reading format", &error)),
    };
    let version = text.strip_prefix(FORMAT_WORD);
    match version.and_then(|version| version.trim_end().parse::<u32>().ok()) {
        Some(found) if found > VERSION => Err(SpoolError::Newer {
            found,
            known: VERSION,
        }),
        known => Ok(known.is_some()),
    }
}

fn write_format<D: Disk>(disk: &D) -> Result<(), SpoolError> {
    let write = || {
        let file = disk.open(FORMAT_NEW, Access::Create)?;
        write_full(&file, format!("{FORMAT_WORD}{VERSION}\n").as_bytes(), 0)?;
        file.sync()?;
        disk.rename(FORMAT_NEW, FORMAT)?;
        disk.sync_dir("")
    };
    write().map_err(failed("writing", FORMAT))
}

/// The number in a file's name.
fn number(name: &str, ending: &str) -> Option<u64> {
    let digits = name.strip_suffix(ending)?;
    let is_own = digits.len() == 16 && !digits.contains(|c: char| c.is_ascii_uppercase());
    u64::from_str_radix(digits, 16)
        .ok()
        .filter(|_| is_own && !digits.starts_with('+'))
}

fn segment_number(name: &str, ending: &str) -> Option<u32> {
    let number = u32::try_from(number(name, ending)?).ok()?;
    (number > 0 && number <= NUMBER_MAX).then_some(number)
}

impl<D: Disk> Recovery<'_, D> {
    fn list(&self, dir: &str) -> Result<Vec<String>, SpoolError> {
        let mut names = self.disk.list(dir).map_err(failed("listing", dir))?;
        names.sort_unstable();
        Ok(names)
    }

    fn count_kept(&mut self) -> Result<(), SpoolError> {
        for name in self.list(CORRUPT)? {
            let file = self.disk.open(&format!("{CORRUPT}/{name}"), Access::Read);
            self.kept_bytes += file.and_then(|file| file.size()).unwrap_or(0);
        }
        Ok(())
    }

    /// Which payload files there are. Whose they are is not known yet.
    fn payloads(&mut self) -> Result<(), SpoolError> {
        for name in self.list(PAYLOADS)? {
            let Some(entry) = number(&name, "").map(EntryId) else {
                continue;
            };
            let path = payload_path(entry);
            let file = self.disk.open(&path, Access::Read);
            let size = file
                .and_then(|file| file.size())
                .map_err(failed("opening", &path))?;
            self.index.grow_payload(entry, size);
            if let Some(payload) = self.index.payloads.get_mut(&entry.0) {
                payload.synced = true;
            }
        }
        Ok(())
    }

    fn segments(&mut self, log: &mut Log<D::File>) -> Result<(), SpoolError> {
        if self.writable {
            // A killed process may have removed a segment without having made that durable. What
            // is not seen here must not come back when removals that name it are gone.
            self.disk
                .sync_dir(SEGMENTS)
                .map_err(failed("syncing", SEGMENTS))?;
        }
        let names = self.list(SEGMENTS)?;
        let numbers = |ending| {
            let numbers = names
                .iter()
                .filter_map(move |name| segment_number(name, ending));
            numbers.collect::<BTreeSet<u32>>()
        };
        let spares = numbers(".spare");
        let all = numbers(".seg");
        let mut sealed: BTreeMap<u32, u32> = BTreeMap::new();
        let mut headers = BTreeMap::new();
        for &number in &all {
            let path = segment_path(number);
            let bytes =
                read_file(self.disk, &path, u64::from(FIRST)).map_err(failed("reading", &path))?;
            let header = Header::decode(&bytes);
            // One with an older name was taken to become this one, and never did.
            let header = match header {
                Ok(header) if header.number < number => Err(NoHeader::Blank),
                Ok(header) if header.number > number => Err(NoHeader::Broken),
                header => header,
            };
            if let Ok(header) = &header {
                for &(other, length) in &header.seals {
                    let seal = sealed.entry(other).or_insert(length);
                    *seal = length.min(*seal);
                }
            }
            if let Err(NoHeader::Newer(found)) = header {
                return Err(SpoolError::Newer {
                    found,
                    known: VERSION,
                });
            }
            headers.insert(number, header);
        }
        // A spare may have been renamed and written to before a crash that undid the renaming. Its
        // number must not be used again, or what was written would count.
        let mut inside = 0;
        for number in &spares {
            let path = spare_path(*number);
            let bytes =
                read_file(self.disk, &path, u64::from(FIRST)).map_err(failed("reading", &path))?;
            inside = inside.max(Header::highest(&bytes).unwrap_or(0));
        }
        let names = all.iter().chain(&spares).chain(sealed.keys());
        let highest = names.copied().max().unwrap_or(0).max(inside);
        log.next = highest.saturating_add(1);
        log.spares = spares.into_iter().collect();
        for (number, header) in headers {
            let path = segment_path(number);
            let seal = sealed.get(&number).copied();
            match header {
                Ok(header) if seal.is_none_or(|seal| seal >= FIRST) => {
                    self.segment(log, &header, seal)?;
                }
                Err(NoHeader::Broken) if seal != Some(0) => {
                    let bytes = read_file(self.disk, &path, CORRUPT_MAX)
                        .map_err(failed("reading", &path))?;
                    // Where nothing but a header was written, nothing is lost with it.
                    let holds = bytes.get(FIRST as usize..).unwrap_or(&[]);
                    if seal.is_some() || holds.iter().any(|&byte| byte != 0) {
                        self.set_aside(&path, 0, &bytes, None);
                    }
                    self.drop_file(&path);
                }
                // Everything in it was given up. Remembered until it is gone for good.
                Ok(_) => self.index.segment(number).is_dirty = true,
                // Of what it holds, nothing was ever said to be safe.
                Err(NoHeader::Broken | NoHeader::Blank | NoHeader::Newer(_)) => {
                    self.drop_file(&path);
                }
            }
        }
        self.marks.clear();
        Ok(())
    }

    /// Removes a file that holds nothing. When that fails it is found again.
    fn drop_file(&self, path: &str) {
        if self.writable {
            let _ = self.disk.remove(path);
        }
    }

    fn segment(
        &mut self,
        log: &mut Log<D::File>,
        header: &Header,
        seal: Option<u32>,
    ) -> Result<(), SpoolError> {
        let number = header.number;
        let path = segment_path(number);
        let mut bytes = std::mem::take(&mut self.buffer);
        read_into(self.disk, &path, u64::from(u32::MAX), &mut bytes)
            .map_err(failed("reading", &path))?;
        let bytes = Bytes::from(bytes);
        let scan = Scan::new(&bytes, header.salt, seal);
        let segment = self.index.segment(number);
        segment.length = scan.end;
        segment.file = bytes.len() as u64;
        segment.is_dirty = scan.is_dirty;
        log.last = Some((number, scan.end));
        if scan.is_open && self.writable {
            // It may be in memory only, when the process was killed in the middle of a commit.
            let from = scan.durable.min(scan.end);
            self.make_durable(&path, from, bytes.get(from as usize..scan.end as usize))
                .map_err(failed("writing", &path))?;
        }
        for range in &scan.damage {
            let place = range.start as usize..(range.end as usize).min(bytes.len());
            let lost = bytes.get(place).unwrap_or(&[]);
            let lost_entry = match Label::decode(Bytes::copy_from_slice(lost)) {
                Ok(Label::Message { entry, .. }) => Some(entry),
                _ => None,
            };
            self.set_aside(&path, u64::from(range.start), lost, lost_entry);
            if let Some((entry, request)) = LostRequest::read(lost) {
                self.index.put_copy(entry, number);
                self.lost.insert(entry.0, request);
            }
        }
        for (place, record) in scan.records(&bytes) {
            self.record(number, place, record);
        }
        self.buffer = bytes.into();
        Ok(())
    }

    fn make_durable(&self, path: &str, from: u32, bytes: Option<&[u8]>) -> io::Result<()> {
        let Some(bytes) = bytes else {
            return Ok(());
        };
        if bytes.is_empty() {
            return Ok(());
        }
        let file = self.disk.open(path, Access::Write)?;
        // A sync alone says nothing about what an earlier one failed to write.
        write_full(&file, bytes, u64::from(from))?;
        file.sync()
    }

    fn record(&mut self, number: u32, place: Place, record: Bytes) {
        match Label::decode(record.slice(..record.len().min(1024))) {
            Ok(Label::Message {
                entry,
                outgoing,
                node,
                size,
            }) => {
                self.index
                    .put(entry, number, place, outgoing.then_some(&node));
                if let Some(mark) = self.marks.remove(&entry.0) {
                    self.index.start(entry, mark);
                }
                if size > SEGMENT_MAX as u64 {
                    self.large.insert(entry.0, size);
                }
            }
            Ok(Label::Started(entry)) => {
                // Its message may have been copied to where it comes later.
                if !self.index.start(entry, number) {
                    self.marks.insert(entry.0, number);
                }
            }
            Ok(Label::Received {
                origin,
                epoch,
                over,
            }) => self.index.receive((origin, epoch), number, place, over),
            Ok(Label::Other(REMOVED)) => match decode_removed(record) {
                Ok(removed) => {
                    for (entry, target) in removed {
                        self.marks.remove(&entry.0);
                        self.large.remove(&entry.0);
                        self.lost.remove(&entry.0);
                        self.index.remove(entry);
                        self.index.kill(number, target);
                    }
                }
                Err(_) => self.index.segment(number).unknown += 1,
            },
            Ok(Label::Other(MEMO)) => match decode_memo(record) {
                Ok((entry, _)) => self.index.put_memo(entry, number, place),
                Err(_) => self.index.segment(number).unknown += 1,
            },
            Ok(Label::Other(_)) | Err(_) => self.index.segment(number).unknown += 1,
        }
    }

    /// Sets payloads aside that are not as long as their messages say, and removes those
    /// without a message.
    fn match_payloads(&mut self) -> Result<(), SpoolError> {
        for (entry, size) in std::mem::take(&mut self.large) {
            let entry = EntryId(entry);
            let payload = self.index.payloads.get(&entry.0).copied();
            if payload.is_some_and(|payload| payload.size == size) {
                continue;
            }
            if payload.is_some() && self.index.was_started(entry) {
                // It was handed over, perhaps for good: whoever wants it once more compares it
                // with its checksums.
                continue;
            }
            // What owns its message finds that out when it reads it, and tells the sender.
            self.index.lose_payload(entry, size);
            let found = payload.map_or(0, |payload| payload.size);
            let path = payload_path(entry);
            let kept = aside_path(entry);
            let fits = self.kept_bytes.saturating_add(found) <= CORRUPT_MAX;
            let moved = self.writable && payload.is_some() && fits;
            let moved = moved && self.disk.rename(&path, &kept).is_ok();
            if moved {
                self.kept_bytes += found;
            }
            self.report.damage.push(Damage {
                file: path,
                offset: 0,
                length: found,
                entry: Some(entry),
                kept: moved.then_some(kept),
            });
        }
        let owned: BTreeSet<u64> = self
            .index
            .payloads
            .iter()
            .filter(|(_, payload)| payload.owned)
            .map(|(entry, _)| *entry)
            .collect();
        let names = self.list(PAYLOADS)?;
        for name in &names {
            let Some(entry) = number(name, NOTE) else {
                continue;
            };
            if owned.contains(&entry) || !self.take_up(EntryId(entry)) {
                self.drop_file(&note_path(EntryId(entry)));
            }
        }
        for name in &names {
            let Some(entry) = number(name, SUMS) else {
                continue;
            };
            if !owned.contains(&entry) && !self.notes.contains_key(&entry) {
                self.drop_file(&sums_path(EntryId(entry)));
            }
        }
        for name in names {
            let Some(entry) = number(&name, "") else {
                continue;
            };
            if owned.contains(&entry) || self.notes.contains_key(&entry) {
                continue;
            }
            self.index.remove(EntryId(entry));
            self.report.orphans += 1;
            self.drop_file(&payload_path(EntryId(entry)));
        }
        Ok(())
    }

    /// Keeps what is safe of an unfinished payload. False: nothing is.
    fn take_up(&mut self, entry: EntryId) -> bool {
        let Ok(Some((note, safe))) = partials::read(self.disk, entry) else {
            return false;
        };
        let size = self.index.payloads.get(&entry.0).map_or(0, |p| p.size);
        let sums = self.disk.open(&sums_path(entry), Access::Read);
        let summed = sums.and_then(|file| file.size()).unwrap_or(0) / SUM as u64 * BLOCK as u64;
        if size < safe || summed < safe / BLOCK as u64 * BLOCK as u64 {
            return false;
        }
        if self.writable && size > safe {
            let file = self.disk.open(&payload_path(entry), Access::Write);
            if file.and_then(|file| file.set_len(safe)).is_err() {
                return false;
            }
        }
        self.index.cut_payload(entry, safe);
        self.notes.insert(entry.0, note);
        true
    }

    /// Reports what cannot be used, and keeps a copy.
    fn set_aside(&mut self, path: &str, offset: u64, bytes: &[u8], entry: Option<EntryId>) {
        let name = path.rsplit('/').next().unwrap_or(path);
        let kept = format!("{CORRUPT}/{name}-{offset}");
        let is_kept = self.writable && self.keep(&kept, bytes).unwrap_or(false);
        self.report.damage.push(Damage {
            file: path.to_owned(),
            offset,
            length: bytes.len() as u64,
            entry,
            kept: is_kept.then_some(kept),
        });
    }

    fn keep(&mut self, path: &str, bytes: &[u8]) -> io::Result<bool> {
        if self.disk.open(path, Access::Read).is_ok() {
            return Ok(true);
        }
        if self.kept_bytes.saturating_add(bytes.len() as u64) > CORRUPT_MAX {
            return Ok(false);
        }
        let file = self.disk.open(path, Access::Create)?;
        write_full(&file, bytes, 0)?;
        file.sync()?;
        self.disk.sync_dir(CORRUPT)?;
        self.kept_bytes += bytes.len() as u64;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::SimDisk;
    use crate::spool::Op;
    use receptor_proto::packet::Content;

    fn write(epoch: u64) -> [Op; 1] {
        let record = Record::Received {
            origin: NodeId::new("a").unwrap(),
            epoch,
            floor: 1,
            ranges: Vec::new(),
        };
        let records = vec![record];
        [Op::Write { token: 1, records }]
    }

    #[test]
    fn the_number_of_a_segment_whose_renaming_was_undone_is_not_used_again() {
        let disk = SimDisk::new(1);
        let mut last = String::new();
        for salt in 0..5 {
            let (mut spool, _) = Spool::open(disk.clone(), &Options::new(salt)).unwrap();
            assert_eq!(spool.commit(0, &write(salt))[0].result, Ok(()));
            last = segment_path(spool.log.active().unwrap());
        }
        let number = segment_number(last.strip_prefix("segments/").unwrap(), ".seg").unwrap();
        let other = SimDisk::new(2);
        other.put(&spare_path(1), &disk.files()[&last]);
        let (mut spool, report) = Spool::open(other.clone(), &Options::new(9)).unwrap();
        assert_eq!(report, Report::default());
        assert_eq!(spool.commit(0, &write(9))[0].result, Ok(()));
        assert!(spool.log.active().unwrap() > number);
    }

    #[test]
    fn opening_without_a_write_changes_no_segment() {
        let disk = SimDisk::new(1);
        let (mut spool, _) = Spool::open(disk.clone(), &Options::new(1)).unwrap();
        assert_eq!(spool.commit(0, &write(1))[0].result, Ok(()));
        disk.crash();
        let before = disk.files();
        for salt in 2..5 {
            drop(Spool::open(disk.clone(), &Options::new(salt)).unwrap());
            assert_eq!(disk.files(), before);
        }
    }

    fn message(entry: u64) -> Message {
        Message {
            epoch: 1,
            seq: entry,
            floor: 0,
            work: MessageId::from_u128(entry.into()),
            kind: MessageKind::Request {
                directive: Directive::new("step:once").unwrap(),
                respond: true,
            },
            volatile: false,
            remaining_ms: 1000,
            content: Content::Bytes,
            name: None,
            size: 7,
            body: Bytes::from_static(b"payload"),
        }
    }

    fn request(entry: u64) -> Record {
        Record::Incoming {
            entry: EntryId(entry),
            origin: NodeId::new("a").unwrap(),
            message: message(entry),
        }
    }

    fn own_request(entry: u64) -> Record {
        Record::Outgoing {
            entry: EntryId(entry),
            recipient: NodeId::new("b").unwrap(),
            message: message(entry),
        }
    }

    /// A request's payload is not what it was, in its segment; what is found at the next start.
    fn damaged(disk: &SimDisk) -> (Spool<SimDisk>, Report) {
        for (path, mut bytes) in disk.files() {
            if let Some(at) = bytes.windows(7).position(|word| word == b"payload") {
                bytes[at] ^= 1;
                disk.put(&path, &bytes);
            }
        }
        Spool::open(disk.clone(), &Options::new(2)).unwrap()
    }

    #[test]
    fn a_damaged_request_of_this_node_is_told_until_it_is_removed() {
        let disk = SimDisk::new(1);
        let (mut spool, _) = Spool::open(disk.clone(), &Options::new(1)).unwrap();
        for record in [own_request(1), own_request(2)] {
            let records = vec![record];
            let written = spool.commit(0, &[Op::Write { token: 1, records }]);
            assert_eq!(written[0].result, Ok(()));
        }
        spool.close().unwrap();
        let (mut spool, report) = damaged(&disk);
        let request = LostRequest::Outgoing {
            entry: EntryId(1),
            recipient: NodeId::new("b").unwrap(),
            work: MessageId::from_u128(1),
            directive: Directive::new("step:once").unwrap(),
            key: (1, 1),
        };
        assert_eq!(report.lost, [request]);
        assert_eq!(spool.usage().entries, 1);
        spool.commit(0, &[Op::Remove(EntryId(1))]);
        spool.close().unwrap();
        let (spool, report) = Spool::open(disk, &Options::new(3)).unwrap();
        assert_eq!(report.lost, []);
        assert_eq!(spool.usage().entries, 1);
    }

    #[test]
    fn a_damaged_message_of_a_page_says_what_can_be_read_of_it() {
        let disk = SimDisk::new(1);
        let (mut spool, _) = Spool::open(disk.clone(), &Options::new(1)).unwrap();
        let records = vec![own_request(1), own_request(2)];
        spool.commit(0, &[Op::Write { token: 1, records }]);
        let path = segment_path(spool.log.active().unwrap());
        spool.close().unwrap();
        let (spool, _) = Spool::open(disk.clone(), &Options::new(2)).unwrap();
        let mut bytes = disk.files()[&path].clone();
        let at = bytes
            .windows(7)
            .position(|word| word == b"payload")
            .unwrap();
        bytes[at] ^= 1;
        disk.put(&path, &bytes);
        let all = (EntryId(0), EntryId(9));
        let node = NodeId::new("b").unwrap();
        let page = spool.page(0, &node, all, 9, 999).unwrap();
        assert_eq!(page.records, [own_request(2)]);
        let [(EntryId(1), Some(Record::Outgoing { message, .. }))] = &page.damaged[..] else {
            panic!("{:?}", page.damaged);
        };
        assert_eq!(message.work, MessageId::from_u128(1));
        assert!(message.body.is_empty(), "it is not to be believed");
    }

    #[test]
    fn whose_damaged_requests_were_is_told_unless_they_are_done_with() {
        let disk = SimDisk::new(1);
        let (mut spool, _) = Spool::open(disk.clone(), &Options::new(1)).unwrap();
        for entry in [1, 2] {
            let records = vec![request(entry)];
            let written = spool.commit(0, &[Op::Write { token: 1, records }]);
            assert_eq!(written[0].result, Ok(()));
        }
        spool.commit(0, &[Op::Remove(EntryId(1))]);
        assert_eq!(spool.commit(0, &write(1))[0].result, Ok(()));
        let path = segment_path(spool.log.active().unwrap());
        drop(spool);
        let mut bytes = disk.files()[&path].clone();
        let mut damaged = 0;
        while let Some(at) = bytes.windows(9).position(|word| word == b"step:once") {
            bytes[at] ^= 1;
            damaged += 1;
        }
        assert_eq!(damaged, 2);
        disk.put(&path, &bytes);
        let (_, report) = Spool::open(disk, &Options::new(2)).unwrap();
        assert_eq!(report.damage.len(), 2, "{report:?}");
        let request = LostRequest::Incoming {
            origin: NodeId::new("a").unwrap(),
            work: MessageId::from_u128(2),
        };
        assert_eq!(report.lost, [request]);
    }

    #[test]
    fn names_that_are_not_the_spools_are_left_alone() {
        assert_eq!(segment_number("000000000000000a.seg", ".seg"), Some(10));
        for name in [
            "0000000000000000.seg",
            "00000000ffffffff.seg",
            "000000000000000A.seg",
            "+00000000000000a.seg",
            "a.seg",
            "000000000000000a.seg~",
        ] {
            assert_eq!(segment_number(name, ".seg"), None, "{name}");
        }
    }
}
