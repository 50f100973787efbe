//! The bytes of a segment: its header, its frames, and what of them can be believed.
//!
//! ```text
//!   0        header             ┐ twice, so that one bad sector does not
//!   4096     header once more   ┘ take all that follows with it
//!   4096+N   frame, frame, …      each at a multiple of 8
//! ```
//!
//! Owns the encoding and the rules by which a reader tells what was safe (it must be there, and
//! what is missing is damage), what was being written when the power went (it may be there, but
//! only up to the first gap) and what was given up (it must not come back). Knows nothing of
//! files, or of what is in a record.

use std::collections::BTreeSet;
use std::ops::Range;

use bytes::Bytes;
use crc32c::{crc32c, crc32c_append};

/// The version of the whole format.
pub(crate) const VERSION: u32 = 1;
/// Where the header's copy begins: in another sector and another page.
const COPY_AT: usize = 4096;
/// Predecessors that one header can speak of.
pub(crate) const SEALS_MAX: usize = 128;
/// Bytes of a header with all of them.
const HEADER: usize = 32 + 8 * SEALS_MAX;
/// Where the frames begin.
pub(crate) const FIRST: u32 = 5152;
const _: () = assert!(FIRST as usize == (COPY_AT + HEADER).next_multiple_of(ALIGN));
/// Bytes of a frame before its table.
const FRAME: usize = 24;
/// Bytes of the table for each record.
const ROW: usize = 8;
/// Frames begin at multiples of this, so that a reader who lost its way finds the next.
const ALIGN: usize = 8;
/// The most bytes of one group: several times what a core writes at once.
pub(crate) const GROUP_MAX: usize = 64 << 20;

const MAGIC: [u8; 8] = *b"rcptseg\0";

/// What a segment says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) number: u32,
    /// Random: what a reused file held before is not taken for this segment's.
    pub(crate) salt: u64,
    /// How much of older segments was safe when this one began: everything behind was given up.
    pub(crate) seals: Vec<(u32, u32)>,
}

/// Why there is no header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoHeader {
    /// Nothing was ever written.
    Blank,
    /// By a later version.
    Newer(u32),
    /// Something else.
    Broken,
}

impl Header {
    /// Both copies, and what lies between: [`FIRST`] bytes.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let mut header = Vec::with_capacity(HEADER);
        header.extend_from_slice(&MAGIC);
        header.extend_from_slice(&VERSION.to_be_bytes());
        header.extend_from_slice(&self.number.to_be_bytes());
        header.extend_from_slice(&self.salt.to_be_bytes());
        let count = self.seals.len().min(SEALS_MAX);
        header.extend_from_slice(&u32::try_from(count).unwrap_or(0).to_be_bytes());
        for (number, length) in &self.seals[..count] {
            header.extend_from_slice(&number.to_be_bytes());
            header.extend_from_slice(&length.to_be_bytes());
        }
        header.resize(HEADER - 4, 0);
        // In front, so that a header with few seals fits one sector.
        let crc = crc32c(&header);
        header.splice(8..8, crc.to_be_bytes());
        out.extend_from_slice(&header);
        out.resize(COPY_AT, 0);
        out.extend_from_slice(&header);
        out.resize(FIRST as usize, 0);
    }

    pub(crate) fn decode(segment: &[u8]) -> Result<Self, NoHeader> {
        let copies = [0, COPY_AT].map(|at| segment.get(at..at + HEADER));
        let mut why = NoHeader::Blank;
        for copy in copies {
            match copy.map(Self::decode_one) {
                Some(Ok(header)) => return Ok(header),
                Some(Err(NoHeader::Blank)) | None => {}
                Some(Err(newer @ NoHeader::Newer(_))) => why = newer,
                Some(Err(NoHeader::Broken)) if why == NoHeader::Blank => why = NoHeader::Broken,
                Some(Err(NoHeader::Broken)) => {}
            }
        }
        if why == NoHeader::Blank && segment.iter().any(|&byte| byte != 0) {
            why = NoHeader::Broken;
        }
        Err(why)
    }

    /// The highest number that a file says of itself: it may have been about to become another.
    pub(crate) fn highest(segment: &[u8]) -> Option<u32> {
        let copies = [0, COPY_AT].into_iter();
        let copies = copies.filter_map(|at| segment.get(at..at + HEADER));
        let headers = copies.filter_map(|copy| Self::decode_one(copy).ok());
        headers.map(|header| header.number).max()
    }

    fn decode_one(bytes: &[u8]) -> Result<Self, NoHeader> {
        if bytes.iter().all(|&byte| byte == 0) {
            return Err(NoHeader::Blank);
        }
        let crc = crc32c_append(crc32c(&bytes[..8]), &bytes[12..]);
        if crc != be32(bytes, 8) || bytes[..8] != MAGIC {
            return Err(NoHeader::Broken);
        }
        let version = be32(bytes, 12);
        if version != VERSION {
            return Err(NoHeader::Newer(version));
        }
        let count = (be32(bytes, 28) as usize).min(SEALS_MAX);
        let seals = (0..count).map(|i| (be32(bytes, 32 + 8 * i), be32(bytes, 36 + 8 * i)));
        Ok(Self {
            number: be32(bytes, 16),
            salt: u64::from(be32(bytes, 20)) << 32 | u64::from(be32(bytes, 24)),
            seals: seals.collect(),
        })
    }
}

/// One record's place in a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Place {
    pub(crate) offset: u32,
    pub(crate) length: u32,
    pub(crate) crc: u32,
}

impl Place {
    /// Where the record behind this one begins: if it is in the same frame, and if it is the
    /// only one of the next.
    pub(crate) fn behind(self) -> (u32, u32) {
        let end = u64::from(self.offset) + u64::from(self.length);
        let next = end.next_multiple_of(ALIGN as u64) + (FRAME + ROW) as u64;
        let clamp = |at| u32::try_from(at).unwrap_or(u32::MAX);
        (clamp(end), clamp(next))
    }
}

/// Gathers the records of one frame.
#[derive(Debug, Default)]
pub(crate) struct FrameWriter {
    rows: Vec<(u32, u32)>,
    records: Vec<u8>,
}

impl FrameWriter {
    /// Appends what `encode` writes as one record.
    pub(crate) fn record(&mut self, encode: impl FnOnce(&mut Vec<u8>)) {
        let before = self.records.len();
        encode(&mut self.records);
        let record = &self.records[before..];
        let length = u32::try_from(record.len()).unwrap_or(u32::MAX);
        self.rows.push((length, crc32c(record)));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub(crate) fn last_length(&self) -> u32 {
        self.rows.last().map_or(0, |(length, _)| *length)
    }

    /// Bytes of the whole frame.
    pub(crate) fn length(&self) -> usize {
        (FRAME + ROW * self.rows.len() + self.records.len()).next_multiple_of(ALIGN)
    }

    /// Appends the frame, which will lie at `at` of a segment with this salt of which `durable`
    /// bytes are safe, and says where each record is. Leaves this empty.
    pub(crate) fn finish(
        &mut self,
        salt: u64,
        at: u32,
        durable: u32,
        out: &mut Vec<u8>,
    ) -> Vec<Place> {
        let length = self.length();
        let start = out.len();
        let field = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        out.extend_from_slice(&tag(salt).to_be_bytes());
        out.extend_from_slice(&field(length).to_be_bytes());
        out.extend_from_slice(&field(self.rows.len()).to_be_bytes());
        out.extend_from_slice(&durable.to_be_bytes());
        out.extend_from_slice(&[0; 8]);
        let mut offset = at + field(FRAME + ROW * self.rows.len());
        let mut places = Vec::with_capacity(self.rows.len());
        for (length, crc) in self.rows.drain(..) {
            out.extend_from_slice(&length.to_be_bytes());
            out.extend_from_slice(&crc.to_be_bytes());
            places.push(Place {
                offset,
                length,
                crc,
            });
            offset += length;
        }
        let table = out.len();
        let crc = frame_crc(salt, &out[start..table]);
        out[start + 16..start + 20].copy_from_slice(&crc.to_be_bytes());
        out.append(&mut self.records);
        out.resize(start + length, 0);
        places
    }
}

/// Never 0, which is what is found where nothing was written.
fn tag(salt: u64) -> u32 {
    (salt >> 32) as u32 | 1
}

/// Over the header without its checksum, and the table. The salt comes first, so that no frame
/// of another segment counts.
fn frame_crc(salt: u64, frame: &[u8]) -> u32 {
    let crc = crc32c(&salt.to_be_bytes());
    let crc = crc32c_append(crc, &frame[..16]);
    crc32c_append(crc, &frame[20..])
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..at + 4)
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(0, u32::from_be_bytes)
}

#[derive(Debug, Clone, Copy)]
struct Frame {
    at: u32,
    end: u32,
    count: u32,
    durable: u32,
}

/// What can be believed of a segment.
#[derive(Debug)]
pub(crate) struct Scan {
    frames: Vec<Frame>,
    /// Where the next frame would come.
    pub(crate) end: u32,
    /// How much is known to have been safe.
    pub(crate) durable: u32,
    /// Something counts of which that is not known.
    pub(crate) is_open: bool,
    /// What was safe and can no longer be read.
    pub(crate) damage: Vec<Range<u32>>,
    /// Behind the end lies what must not be read by a later scan.
    pub(crate) is_dirty: bool,
    /// Where the records begin that are not as they were written.
    bad: BTreeSet<u32>,
}

impl Scan {
    /// Reads a segment of which this much is known to have been safe, when that is known.
    /// Segments are shorter than 4 GiB.
    pub(crate) fn new(segment: &[u8], salt: u64, sealed: Option<u32>) -> Self {
        let found = find(segment, salt);
        let said = found.iter().map(|frame| frame.durable).max();
        let durable = sealed.or(said).unwrap_or(0).max(FIRST);
        let mut frames = Vec::with_capacity(found.len());
        let mut damage = Vec::new();
        let mut end = FIRST;
        let mut rest = found.into_iter().peekable();
        while let Some(frame) = rest.next_if(|frame| frame.at < durable) {
            if frame.at > end {
                damage.push(end..frame.at);
            }
            end = frame.end;
            frames.push(frame);
        }
        if end < durable {
            damage.push(end..durable);
            end = durable;
        }
        if sealed.is_none() {
            while let Some(frame) =
                rest.next_if(|frame| frame.at == end && is_whole(segment, frame))
            {
                end = frame.end;
                frames.push(frame);
            }
        }
        let mut bad = BTreeSet::new();
        for frame in &frames {
            for (place, is_good) in places(segment, frame) {
                if !is_good {
                    bad.insert(place.offset);
                    damage.push(place.offset..place.offset.saturating_add(place.length));
                }
            }
        }
        let is_open = frames.iter().any(|f| f.count > 0 && f.end > durable);
        Self {
            frames,
            is_open,
            end,
            durable: if durable > FIRST { durable } else { 0 },
            damage,
            is_dirty: rest.any(|frame| frame.count > 0),
            bad,
        }
    }

    /// Every record that is as it was written, in order.
    pub(crate) fn records(&self, segment: &Bytes) -> impl Iterator<Item = (Place, Bytes)> {
        self.frames.iter().flat_map(move |frame| {
            let good = rows(segment, frame).filter(|place| !self.bad.contains(&place.offset));
            good.map(|place| (place, segment.slice(range(place.offset, place.length))))
        })
    }
}

/// The frame that says how much of its segment is safe, and nothing else.
pub(crate) fn end_mark(salt: u64, at: u32, durable: u32) -> Vec<u8> {
    let mut out = Vec::new();
    FrameWriter::default().finish(salt, at, durable, &mut out);
    out
}

fn range(offset: u32, length: u32) -> Range<usize> {
    offset as usize..offset as usize + length as usize
}

/// Every frame with a good header, wherever it is.
fn find(segment: &[u8], salt: u64) -> Vec<Frame> {
    let mut frames = Vec::new();
    let tag = tag(salt).to_be_bytes();
    let mut at = FIRST as usize;
    while at + FRAME <= segment.len() {
        match frame(segment, at, salt, tag) {
            Some(frame) => {
                at = frame.end as usize;
                frames.push(frame);
            }
            None => at += ALIGN,
        }
    }
    frames
}

fn frame(segment: &[u8], at: usize, salt: u64, tag: [u8; 4]) -> Option<Frame> {
    let head = &segment[at..at + FRAME];
    if head[..4] != tag {
        return None;
    }
    let length = be32(head, 4) as usize;
    let count = be32(head, 8) as usize;
    let table = FRAME + ROW.checked_mul(count)?;
    if table > length || !length.is_multiple_of(ALIGN) || length > segment.len() - at {
        return None;
    }
    if frame_crc(salt, &segment[at..at + table]) != be32(head, 16) {
        return None;
    }
    Some(Frame {
        at: u32::try_from(at).ok()?,
        end: u32::try_from(at + length).ok()?,
        count: be32(head, 8),
        durable: be32(head, 12),
    })
}

fn is_whole(segment: &[u8], frame: &Frame) -> bool {
    places(segment, frame).all(|(_, is_good)| is_good)
}

/// Where the records of a frame are, and whether each is as it was written.
fn places(segment: &[u8], frame: &Frame) -> impl Iterator<Item = (Place, bool)> {
    let end = frame.end;
    rows(segment, frame).map(move |place| {
        let record = segment.get(range(place.offset, place.length));
        let is_inside = place.offset.saturating_add(place.length) <= end;
        let is_good = is_inside && record.is_some_and(|record| crc32c(record) == place.crc);
        (place, is_good)
    })
}

/// Where the records of a frame are, says its table.
fn rows(segment: &[u8], frame: &Frame) -> impl Iterator<Item = Place> {
    let table = frame.at as usize + FRAME;
    let first = table + ROW * frame.count as usize;
    let mut offset = u32::try_from(first).unwrap_or(u32::MAX);
    (0..frame.count as usize).map(move |row| {
        let length = be32(segment, table + ROW * row);
        let crc = be32(segment, table + ROW * row + 4);
        let place = Place {
            offset,
            length,
            crc,
        };
        offset = offset.saturating_add(length);
        place
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SALT: u64 = 0x1234_5678_9abc_def0;

    fn header() -> Header {
        Header {
            number: 7,
            salt: SALT,
            seals: vec![(5, 100), (6, 5000)],
        }
    }

    /// A segment with frames of one record each, all but the last `open` of them safe.
    fn segment(records: &[&[u8]], open: usize) -> (Vec<u8>, Vec<u32>) {
        let mut out = Vec::new();
        header().encode(&mut out);
        let mut starts = Vec::new();
        for (nth, record) in records.iter().enumerate() {
            let at = u32::try_from(out.len()).unwrap();
            let mut writer = FrameWriter::default();
            writer.record(|out| out.extend_from_slice(record));
            let durable = starts.get((records.len() - open).min(nth)).copied();
            writer.finish(SALT, at, durable.unwrap_or(at), &mut out);
            starts.push(at);
        }
        (out, starts)
    }

    fn read(segment: &[u8], sealed: Option<u32>) -> (Vec<Vec<u8>>, Scan) {
        let bytes = Bytes::copy_from_slice(segment);
        let scan = Scan::new(segment, SALT, sealed);
        let records = scan.records(&bytes).map(|(_, record)| record.to_vec());
        (records.collect(), scan)
    }

    #[test]
    fn one_bad_header_is_not_the_end() {
        let mut out = Vec::new();
        header().encode(&mut out);
        assert_eq!(out.len(), FIRST as usize);
        assert_eq!(Header::decode(&out), Ok(header()));
        out[20] ^= 1;
        assert_eq!(Header::decode(&out), Ok(header()));
        out[COPY_AT + 20] ^= 1;
        assert_eq!(Header::decode(&out), Err(NoHeader::Broken));
        assert_eq!(Header::decode(&[0; 9000]), Err(NoHeader::Blank));
        assert_eq!(Header::decode(&[]), Err(NoHeader::Blank));
    }

    #[test]
    fn a_gap_in_what_was_safe_is_damage_and_no_end() {
        let (mut bytes, starts) = segment(&[b"one", b"two", b"three"], 0);
        bytes[starts[1] as usize] ^= 0x10;
        let (records, scan) = read(&bytes, None);
        assert_eq!(records, [b"one".to_vec(), b"three".to_vec()]);
        assert_eq!(scan.damage, vec![starts[1]..starts[2]]);
    }

    #[test]
    fn a_bad_record_of_what_was_safe_takes_no_other_with_it() {
        let mut bytes = Vec::new();
        header().encode(&mut bytes);
        let mut writer = FrameWriter::default();
        for record in [b"one", b"two"] {
            writer.record(|out| out.extend_from_slice(record));
        }
        let places = writer.finish(SALT, FIRST, FIRST, &mut bytes);
        let end = u32::try_from(bytes.len()).unwrap();
        bytes.extend(end_mark(SALT, end, end));
        bytes[places[0].offset as usize] ^= 1;
        let (records, scan) = read(&bytes, None);
        assert_eq!(records, [b"two".to_vec()]);
        let lost = places[0].offset..places[0].offset + 3;
        assert_eq!(scan.damage, vec![lost]);
    }

    #[test]
    fn nothing_behind_a_gap_in_what_was_not_safe_counts() {
        let (mut bytes, starts) = segment(&[b"one", b"two", b"three"], 2);
        bytes[starts[1] as usize + FRAME + ROW] ^= 0x10;
        let (records, scan) = read(&bytes, None);
        assert_eq!(records, [b"one".to_vec()]);
        assert_eq!(scan.damage, []);
        assert_eq!(scan.end, starts[1]);
        assert!(scan.is_dirty);
    }

    #[test]
    fn what_was_given_up_does_not_come_back() {
        let (bytes, starts) = segment(&[b"one", b"two", b"three"], 2);
        let (records, scan) = read(&bytes, Some(starts[2]));
        assert_eq!(records, [b"one".to_vec(), b"two".to_vec()]);
        assert!(scan.is_dirty);
    }

    proptest! {
        #[test]
        fn any_prefix_of_a_write_is_all_or_nothing(
            records in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..100), 1..10),
            cut: prop::sample::Index,
        ) {
            let slices: Vec<&[u8]> = records.iter().map(Vec::as_slice).collect();
            let (mut bytes, starts) = segment(&slices, slices.len());
            let cut = FIRST as usize + cut.index(bytes.len() - FIRST as usize + 1);
            let whole = starts.iter().skip(1).filter(|&&start| start as usize <= cut).count()
                + usize::from(cut == bytes.len());
            bytes.truncate(cut);
            bytes.resize(cut + 100, 0);
            let (read, scan) = read(&bytes, None);
            // The padding of a frame may be missing: it is zeros.
            prop_assert!(read.len() == whole || read.len() == whole + 1);
            prop_assert_eq!(&read[..], &records[..read.len()]);
            prop_assert!(scan.damage.is_empty());
        }

        #[test]
        fn no_flipped_bit_goes_unnoticed(
            records in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..20), 1..6),
            at: prop::sample::Index,
            bit in 0..8u8,
        ) {
            let mut bytes = Vec::new();
            header().encode(&mut bytes);
            let mut writer = FrameWriter::default();
            for record in &records {
                writer.record(|out| out.extend_from_slice(record));
            }
            let places = writer.finish(SALT, FIRST, FIRST, &mut bytes);
            let last = places[places.len() - 1];
            let end = u32::try_from(bytes.len()).unwrap();
            bytes.extend(end_mark(SALT, end, end));
            let most = (last.offset + last.length) as usize;
            bytes[FIRST as usize + at.index(most - FIRST as usize)] ^= 1 << bit;
            let (read, scan) = read(&bytes, None);
            prop_assert!(read.len() < records.len() && !scan.damage.is_empty());
            let mut originals = records.iter();
            prop_assert!(read.iter().all(|read| originals.any(|original| original == read)));
        }

        #[test]
        fn arbitrary_bytes_are_no_trouble(
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
            at: prop::sample::Index,
            sealed: Option<u32>,
        ) {
            let (mut segment, _) = segment(&[b"one", b"two"], 1);
            let at = at.index(segment.len());
            segment.splice(at.., bytes);
            let _ = Header::decode(&segment);
            let sealed = sealed.map(|s| s % 10_000);
            let _ = read(&segment, sealed);
        }
    }
}
