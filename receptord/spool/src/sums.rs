//! Checksums of payload files: what a payload is read back as is what was accepted.
//!
//! Owns the files beside payloads that end in `.sums`: a CRC-32C, big-endian, for each block of
//! [`BLOCK`] bytes, the last of them perhaps shorter. They are made from memory as a payload
//! comes in, or once from a file that is taken over, are durable before the payload's message is,
//! and go wherever the payload's name goes. A payload without such a file was stored by a version
//! that made none, and is not checked. What is public here is for those who have
//! a payload under another name, such as a plugin's job. Never repairs.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use crc32c::{crc32c, crc32c_append};
use receptor_proto::packet::SEGMENT_MAX;
use receptor_proto::record::EntryId;

use crate::disk::{Access, Disk, DiskFile, read_full, write_full};
use crate::error::SpoolError;
use crate::payloads::payload_path;
use crate::spool::Spool;

/// Bytes that share a checksum: what one segment of a payload has, so that a segment is sent
/// with a checksum that is already there.
pub const BLOCK: usize = SEGMENT_MAX;
/// What the name of such a file ends with.
pub const SUMS: &str = ".sums";
/// Bytes of one checksum.
pub(crate) const SUM: usize = 4;
/// Checksums that are read at once.
const AT_ONCE: usize = 1024;
/// Payloads whose files are held open between two reads: as many as are sent at one time on a
/// node that does nothing else.
const READING_MAX: usize = 16;
/// Bytes of a payload that the system may keep in memory when they were read.
const PASSED_MAX: u64 = 4 << 20;

/// Where the checksums of an entry's payload lie in the spool's directory.
pub(crate) fn sums_path(entry: EntryId) -> String {
    format!("{}{SUMS}", payload_path(entry))
}

/// Where the checksums of a payload lie whose file has this name.
#[must_use]
pub fn sums_beside(payload: &Path) -> PathBuf {
    let mut name = payload.as_os_str().to_owned();
    name.push(SUMS);
    name.into()
}

/// The checksums of a payload, as they are made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sums {
    /// Of whole blocks.
    blocks: Vec<u32>,
    /// Of what there is of the next one.
    last: u32,
    filled: usize,
}

impl Sums {
    /// Those of a whole file. Blocks for as long as reading it takes.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub fn of_file(path: &Path) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let mut sums = Self::default();
        let mut buffer = vec![0; 4 * BLOCK];
        loop {
            match file.read(&mut buffer) {
                Ok(0) => return Ok(sums),
                Ok(count) => sums.add(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// More of the payload.
    pub fn add(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(BLOCK - self.filled));
            self.last = crc32c_append(self.last, now);
            self.advance(now.len());
            bytes = later;
        }
    }

    /// The same for what has this checksum, when it is known.
    fn add_summed(&mut self, bytes: &[u8], sum: Option<u32>) {
        match sum {
            Some(sum) if self.filled == 0 && bytes.len() <= BLOCK => {
                self.last = sum;
                self.advance(bytes.len());
            }
            _ => self.add(bytes),
        }
    }

    fn advance(&mut self, length: usize) {
        self.filled += length;
        if self.filled == BLOCK {
            self.blocks.push(std::mem::take(&mut self.last));
            self.filled = 0;
        }
    }

    fn encode(&self) -> Vec<u8> {
        let last = (self.filled > 0).then_some(self.last);
        let sums = self.blocks.iter().copied().chain(last);
        sums.flat_map(u32::to_be_bytes).collect()
    }
}

/// Gives a payload one more name outside of the spool, and its checksums the name beside that;
/// what had these names is gone.
///
/// # Errors
///
/// When it cannot be linked.
pub fn link_payload(from: &Path, to: &Path) -> io::Result<()> {
    replace(from, to)?;
    match replace(&sums_beside(from), &sums_beside(to)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn replace(from: &Path, to: &Path) -> io::Result<()> {
    match fs::hard_link(from, to) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::remove_file(to)?;
            fs::hard_link(from, to)
        }
        result => result,
    }
}

/// Whether what this file holds is what was stored under its name, as far as there are checksums
/// beside it. Blocks for as long as reading it takes.
///
/// # Errors
///
/// [`io::ErrorKind::InvalidData`] when it is not, and when it cannot be read.
pub fn verify_payload(path: &Path) -> io::Result<()> {
    let mut verifier = Verifier::beside(path)?;
    if verifier.known.is_none() {
        return Ok(());
    }
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 4 * BLOCK];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return verifier.end(),
            Ok(count) => verifier.add(&buffer[..count])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Compares a payload that is read from its beginning with the checksums beside it.
#[derive(Debug)]
pub struct Verifier {
    /// `None`: there are none.
    known: Option<BufReader<File>>,
    last: u32,
    filled: usize,
}

impl Verifier {
    /// Of the payload in this file.
    ///
    /// # Errors
    ///
    /// When there are checksums and they cannot be read.
    pub fn beside(payload: &Path) -> io::Result<Self> {
        let known = match File::open(sums_beside(payload)) {
            Ok(file) => Some(BufReader::new(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        Ok(Self {
            known,
            last: 0,
            filled: 0,
        })
    }

    /// More of the payload.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::InvalidData`] when it is not what it was.
    pub fn add(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while self.known.is_some() && !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(BLOCK - self.filled));
            self.last = crc32c_append(self.last, now);
            self.filled += now.len();
            if self.filled == BLOCK {
                self.block()?;
            }
            bytes = later;
        }
        Ok(())
    }

    /// The payload has ended.
    ///
    /// # Errors
    ///
    /// As [`Self::add`].
    pub fn end(mut self) -> io::Result<()> {
        if self.filled > 0 {
            self.block()
        } else {
            Ok(())
        }
    }

    fn block(&mut self) -> io::Result<()> {
        let Some(known) = &mut self.known else {
            return Ok(());
        };
        let mut sum = [0; SUM];
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, "its checksum is another");
        match known.read_exact(&mut sum) {
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => return Err(error),
            Ok(()) if u32::from_be_bytes(sum) == self.last => {}
            _ => return Err(damaged()),
        }
        (self.last, self.filled) = (0, 0);
        Ok(())
    }
}

/// The checksums of a payload that is not yet a message's.
#[derive(Debug, Default)]
pub(crate) struct Growth {
    /// Behind what is in the file for good.
    sums: Sums,
    /// Whole blocks whose checksums are there.
    filed: u64,
    /// Blocks of `sums` that are being written by a sync of the payload.
    issued: usize,
    /// Bytes of the payload whose checksums are durable.
    safe: u64,
}

/// Checksums that are to be written to their file and synced.
#[derive(Debug)]
pub(crate) struct Unsaved<F> {
    file: F,
    at: u64,
    bytes: Vec<u8>,
}

impl<F: DiskFile> Unsaved<F> {
    pub(crate) fn save(&self) -> io::Result<()> {
        write_full(&self.file, &self.bytes, self.at)?;
        self.file.sync()
    }
}

/// The files of a payload that is being read.
#[derive(Debug)]
pub(crate) struct Reading<F> {
    entry: EntryId,
    payload: F,
    sums: Option<F>,
    /// Checksums that were read: from which block on, and how many bytes of them there are.
    window: (u64, Vec<u8>),
    /// Where that begins of what was read which the system may still keep in memory.
    passed: u64,
}

impl<F: DiskFile> Reading<F> {
    fn open<D: Disk<File = F>>(disk: &D, entry: EntryId, from: u64) -> io::Result<Self> {
        let sums = match disk.open(&sums_path(entry), Access::Read) {
            Ok(file) => Some(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        Ok(Self {
            entry,
            payload: disk.open(&payload_path(entry), Access::Read)?,
            sums,
            window: (0, Vec::new()),
            passed: from,
        })
    }

    /// The checksum of a block. `None`: it cannot be checked.
    fn sum(&mut self, block: u64) -> io::Result<Option<Result<u32, ()>>> {
        let Some(sums) = &self.sums else {
            return Ok(None);
        };
        let (first, bytes) = &mut self.window;
        if block < *first || small(block - *first) >= bytes.len() / SUM {
            *first = block;
            bytes.resize(AT_ONCE * SUM, 0);
            let count = read_full(sums, bytes, block * SUM as u64)?;
            bytes.truncate(count);
        }
        let at = small(block - *first) * SUM;
        let sum = bytes.get(at..at + SUM).and_then(|sum| sum.try_into().ok());
        Ok(Some(sum.map(u32::from_be_bytes).ok_or(())))
    }

    /// A payload is read once, from its beginning on, by whoever sends it. What is read again after a
    /// link failed may come from the disk; the memory is better used for what is being written.
    fn pass(&mut self, end: u64) {
        match end.checked_sub(self.passed) {
            Some(read) if read < PASSED_MAX => {}
            Some(read) => {
                self.payload.forget(self.passed, read);
                self.passed = end;
            }
            // It is sent again.
            None => self.passed = end,
        }
    }

    /// At most so many bytes of a payload of this size, of which the blocks below `checked` have
    /// a checksum to compare with, and their own. `None`: they are not what they were.
    fn read(
        &mut self,
        (offset, length): (u64, usize),
        size: u64,
        checked: u64,
    ) -> io::Result<Option<(Vec<u8>, u32)>> {
        let block = BLOCK as u64;
        let end = size.min(offset.saturating_add(length as u64));
        let first = offset / block;
        let (from, to) = (first * block, size.min(end.next_multiple_of(block)));
        let wanted = small(to.saturating_sub(from));
        let mut bytes = vec![0; wanted];
        if read_full(&self.payload, &mut bytes, from)? < wanted {
            return Ok(None);
        }
        self.pass(end);
        let mut whole = None;
        for (number, part) in (first..checked).zip(bytes.chunks(BLOCK)) {
            match self.sum(number)? {
                None => break,
                Some(Ok(sum)) if sum == crc32c(part) => whole = Some(sum),
                Some(_) => return Ok(None),
            }
        }
        let asked = small(offset - from)..small(end - from);
        if asked == (0..bytes.len()) && bytes.len() <= BLOCK {
            let sum = whole.unwrap_or_else(|| crc32c(&bytes));
            return Ok(Some((bytes, sum)));
        }
        bytes.truncate(asked.end);
        bytes.drain(..asked.start);
        let sum = crc32c(&bytes);
        Ok(Some((bytes, sum)))
    }
}

/// A number of bytes or blocks that was made from something in memory.
fn small(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

impl<D: Disk> Spool<D> {
    /// Takes note of a part that was appended, and has this checksum when it is known.
    pub(crate) fn sum_part(&mut self, entry: EntryId, bytes: &[u8], sum: Option<u32>) {
        let growth = self.sums.entry(entry.0).or_default();
        growth.sums.add_summed(bytes, sum);
    }

    /// An unfinished payload of an earlier process goes on behind `size` bytes.
    pub(crate) fn sum_again(&mut self, entry: EntryId, size: u64) -> io::Result<()> {
        if size == 0 || self.sums.contains_key(&entry.0) {
            return Ok(());
        }
        let filed = size / BLOCK as u64;
        let mut tail = vec![0; small(size % BLOCK as u64)];
        let file = self.disk.open(&payload_path(entry), Access::Read)?;
        if read_full(&file, &mut tail, filed * BLOCK as u64)? < tail.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut growth = Growth {
            filed,
            ..Growth::default()
        };
        growth.sums.add(&tail);
        self.sums.insert(entry.0, growth);
        Ok(())
    }

    /// The checksums of a file that is taken over.
    pub(crate) fn sum_file(&mut self, entry: EntryId, sums: Sums) {
        let growth = Growth {
            sums,
            ..Growth::default()
        };
        self.sums.insert(entry.0, growth);
    }

    /// What is to be written of an entry's checksums.
    pub(crate) fn unsaved(&mut self, entry: EntryId) -> io::Result<Option<Unsaved<D::File>>> {
        let Some(growth) = self.sums.get_mut(&entry.0) else {
            return Ok(None);
        };
        let access = if growth.filed == 0 && growth.issued == 0 {
            self.is_payload_new = true;
            Access::Create
        } else {
            Access::Write
        };
        let file = self.disk.open(&sums_path(entry), access)?;
        growth.issued = growth.sums.blocks.len();
        Ok(Some(Unsaved {
            file,
            at: growth.filed * SUM as u64,
            bytes: growth.sums.encode(),
        }))
    }

    /// Those of so many bytes of the payload are durable.
    pub(crate) fn saved(&mut self, entry: EntryId, size: u64) {
        if let Some(growth) = self.sums.get_mut(&entry.0) {
            growth.safe = growth.safe.max(size);
            let filed = growth.issued.min(growth.sums.blocks.len());
            growth.sums.blocks.drain(..filed);
            growth.filed += filed as u64;
            growth.issued = 0;
        }
    }

    /// Whether those of a payload of this size are durable.
    pub(crate) fn is_saved(&self, entry: EntryId, size: u64) -> bool {
        let growth = self.sums.get(&entry.0);
        growth.is_none_or(|growth| growth.safe == size)
    }

    /// Forgets those of payloads that are gone or complete.
    pub(crate) fn sweep_sums(&mut self) {
        let payloads = &self.index.payloads;
        self.sums
            .retain(|entry, _| payloads.get(entry).is_some_and(|payload| !payload.owned));
    }

    /// A part of a payload of this size, with its checksum.
    pub(crate) fn read_payload(
        &self,
        entry: EntryId,
        part: (u64, usize),
        size: u64,
    ) -> Result<(Vec<u8>, u32), SpoolError> {
        let failed = |error| SpoolError::io(format!("reading {}", payload_path(entry)), &error);
        let mut reading = self.reading.borrow_mut();
        let at = reading.iter().position(|open| open.entry == entry);
        let mut open = match at {
            Some(at) => reading.remove(at),
            None => match Reading::open(&self.disk, entry, part.0) {
                Ok(open) => open,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(SpoolError::Damaged(entry));
                }
                Err(error) => return Err(failed(error)),
            },
        };
        // Of one that grows only what the file has for good is compared.
        let growth = self.sums.get(&entry.0);
        let checked = growth.map_or(u64::MAX, |growth| growth.filed);
        let read = open.read(part, size, checked);
        if growth.is_none() {
            if reading.len() >= READING_MAX {
                reading.remove(0);
            }
            reading.push(open);
        }
        read.map_err(failed)?.ok_or(SpoolError::Damaged(entry))
    }

    /// Its files are about to go.
    pub(crate) fn close_reading(&self, entry: EntryId) {
        self.reading.borrow_mut().retain(|open| open.entry != entry);
    }
}

/// Checksums that are being made, by entry.
pub(crate) type Growths = BTreeMap<u64, Growth>;
