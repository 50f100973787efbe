//! Giving space back: what is needed of the emptiest segment is copied to the end of the log,
//! as it is, so that the segment can go.
//!
//! Reads records only as far as their label. A segment goes only after what was copied out of it
//! is safe; a crash in between leaves both, and removals then name both.

use std::collections::BTreeSet;

use bytes::Bytes;
use receptor_proto::record::Label;

use crate::disk::Disk;
use crate::error::SpoolError;
use crate::log::{Effect, MEMO, REMOVED, Reserve, Results};
use crate::log::{decode_memo, decode_removed, encode_removed};
use crate::segment::{FrameWriter, Header, Place, Scan};
use crate::spool::Spool;

/// Bytes of one frame of copies.
const FRAME_BYTES: usize = 256 << 10;
/// Commits after copies that could not be written, until a commit copies again. Each attempt may
/// cost the segment that is written to, so that a disk that is full is not asked each time.
const COPY_AGAIN: u32 = 1000;

impl<D: Disk> Spool<D> {
    /// Copies what is needed out of the segment of which the smallest part is needed. False:
    /// there is none worth it.
    pub(crate) fn compact(&mut self) -> Result<bool, SpoolError> {
        let active = self.log.active();
        let candidates = self.index.segments.iter().filter(|(number, segment)| {
            Some(**number) != active && !segment.is_stuck && segment.needed() < segment.file
        });
        let emptiest = candidates.min_by_key(|(_, segment)| {
            // In parts of a thousand.
            (1000 * segment.needed()) / segment.file.max(1)
        });
        let Some((&victim, _)) = emptiest else {
            return Ok(false);
        };
        let mut bytes = Vec::new();
        if let Err(error) = self.read_segment(victim, &mut bytes) {
            // Until the next start; others may be readable.
            self.index.segment(victim).is_stuck = true;
            return Err(error);
        }
        if let Err(error) = self.copy_out(victim, &bytes.into()) {
            // The disk may take it later, and the segment is as good as before.
            self.copy_in = COPY_AGAIN;
            self.log
                .repair(&self.disk, &mut self.index, &mut Results::new());
            return Err(error);
        }
        self.copy_in = 0;
        self.index.emptied(victim);
        if self.index.segment(victim).live > 0 {
            // A part of it cannot be read any more. The next start sets that aside.
            self.index.segment(victim).is_stuck = true;
        }
        self.log.collect(&self.disk, &mut self.index)?;
        Ok(true)
    }

    fn copy_out(&mut self, victim: u32, bytes: &Bytes) -> Result<(), SpoolError> {
        let mut results = Results::new();
        if let Ok(header) = Header::decode(bytes) {
            let length = self.index.segment(victim).length;
            let scan = Scan::new(bytes, header.salt, Some(length));
            let mut frame = FrameWriter::default();
            let mut effects = Vec::new();
            let mut started = BTreeSet::new();
            for (place, record) in scan.records(bytes) {
                let copied = self.copied(victim, place, &record, &mut started);
                let Some((record, effect)) = copied else {
                    continue;
                };
                frame.record(|out| out.extend_from_slice(&record));
                effects.push(effect);
                if frame.length() >= FRAME_BYTES {
                    let full = std::mem::take(&mut frame);
                    self.gather_copies(full, std::mem::take(&mut effects), &mut results)?;
                }
            }
            if !frame.is_empty() {
                self.gather_copies(frame, effects, &mut results)?;
            }
        }
        self.log
            .flush(&self.disk, &mut self.index, &mut results, true)
    }

    fn gather_copies(
        &mut self,
        frame: FrameWriter,
        effects: Vec<Vec<Effect>>,
        results: &mut Results,
    ) -> Result<(), SpoolError> {
        let placed = |places: Vec<Place>| {
            let effects = effects.into_iter().zip(places);
            effects
                .flat_map(|(effects, place)| {
                    effects.into_iter().map(move |effect| effect.at(place))
                })
                .collect()
        };
        self.log.gather(
            &self.disk,
            &mut self.index,
            results,
            frame,
            Reserve::Nothing,
            placed,
        )
    }

    /// What is to be written of a record elsewhere, and what that does.
    fn copied(
        &self,
        victim: u32,
        place: Place,
        record: &Bytes,
        started: &mut BTreeSet<u64>,
    ) -> Option<(Bytes, Vec<Effect>)> {
        let index = &self.index;
        let effect = match Label::decode(record.clone()) {
            Ok(Label::Message { entry, .. }) => {
                let slot = index.entries.get(entry.0)?;
                if (slot.segment, slot.place) != (victim, place) {
                    return None;
                }
                Effect::Message {
                    entry,
                    recipient: None,
                    place,
                }
            }
            Ok(Label::Started(entry)) => {
                let slot = index.entries.get(entry.0)?;
                if slot.started != victim || !started.insert(entry.0) {
                    return None;
                }
                Effect::Started(entry)
            }
            Ok(Label::Received {
                origin,
                epoch,
                over,
            }) => {
                let key = (origin, epoch);
                let flow = index.flows.get(&key)?;
                if (flow.segment, flow.place) != (victim, place) {
                    return None;
                }
                Effect::Received { key, place, over }
            }
            Ok(Label::Other(REMOVED)) => {
                let mut removed = decode_removed(record.clone()).ok()?;
                removed
                    .retain(|(_, target)| *target != victim && index.segments.contains_key(target));
                if removed.is_empty() {
                    return None;
                }
                let mut out = Vec::new();
                encode_removed(&removed, &mut out);
                let effects = removed.iter().map(|(_, target)| Effect::Removal(*target));
                return Some((out.into(), effects.collect()));
            }
            Ok(Label::Other(MEMO)) => {
                let (entry, _) = decode_memo(record.clone()).ok()?;
                let slot = index.entries.get(entry.0)?;
                if (slot.segment, slot.place) != (victim, place) {
                    return None;
                }
                Effect::Memo { entry, place }
            }
            Ok(Label::Other(_)) | Err(_) => Effect::Unknown,
        };
        Some((record.clone(), vec![effect]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::{Faults, SimDisk};
    use crate::spool::{Op, Options};
    use receptor_proto::record::{EntryId, Record};
    use receptor_proto::{MessageId, NodeId, packet};

    fn write(entry: u64) -> Op {
        let message = packet::Message {
            epoch: 1,
            seq: entry,
            floor: 0,
            work: MessageId::from_u128(u128::from(entry)),
            kind: packet::MessageKind::Cancel {
                reason: packet::CancelReason::User,
            },
            volatile: false,
            remaining_ms: 1,
            content: packet::Content::Bytes,
            name: None,
            size: 1000,
            body: vec![7; 1000].into(),
        };
        let record = Record::Incoming {
            entry: EntryId(entry),
            origin: NodeId::new("a").unwrap(),
            message,
        };
        Op::Write {
            token: entry,
            records: vec![record],
        }
    }

    fn options(salt: u64) -> Options {
        let mut options = Options::new(salt);
        options.segment_bytes = 32 << 10;
        options
    }

    #[test]
    fn what_a_later_version_wrote_is_kept() {
        let disk = SimDisk::new(1);
        let (mut spool, _) = Spool::open(disk.clone(), &options(1)).unwrap();
        let later = b"\xc8 of a later version";
        let mut frame = FrameWriter::default();
        frame.record(|out| out.extend_from_slice(later));
        let effects = |_| vec![Effect::Unknown];
        spool
            .log
            .gather(
                &spool.disk,
                &mut spool.index,
                &mut Results::new(),
                frame,
                Reserve::Nothing,
                effects,
            )
            .unwrap();
        let mut first = spool.log.active();
        for entry in 1..500 {
            assert_eq!(spool.commit(0, &[write(entry)])[0].result, Ok(()));
            spool.commit(0, &[Op::Remove(EntryId(entry))]);
            first = first.or(spool.log.active());
        }
        let first = first.expect("something was written");
        while spool.index.segments.contains_key(&first) {
            assert!(spool.compact().unwrap());
        }
        spool.close().unwrap();
        let files = disk.files();
        let kept = files.iter().filter(|(name, content)| {
            name.ends_with(".seg") && content.windows(later.len()).any(|part| part == later)
        });
        assert_eq!(kept.count(), 1);
        let (spool, report) = Spool::open(disk, &options(2)).unwrap();
        assert_eq!(report.damage, []);
        assert_eq!(spool.usage().entries, 0);
        let unknown = spool
            .index
            .segments
            .values()
            .map(|s| s.unknown)
            .sum::<u32>();
        assert_eq!(unknown, 1);
    }

    #[test]
    fn the_disk_holds_little_more_than_what_is_needed() {
        let mut rng = fastrand::Rng::with_seed(5);
        let (mut spool, _) = Spool::open(SimDisk::new(1), &options(1)).unwrap();
        let mut live = Vec::new();
        for entry in 1..4000 {
            let mut batch = vec![write(entry)];
            live.push(entry);
            let keep = if entry < 2000 { 300 } else { 20 };
            while live.len() > keep {
                let gone = live.swap_remove(rng.usize(0..live.len()));
                batch.push(Op::Remove(EntryId(gone)));
            }
            assert_eq!(spool.commit(0, &batch)[0].result, Ok(()));
            // What one commit cannot copy the next ones do.
            let needed = 3 * spool.usage().bytes * 5 / 4 + 8 * (32 << 10);
            let used = spool.segment_bytes();
            assert!(
                (2000..2100).contains(&entry) || used <= needed,
                "{used} of {needed} after {entry}"
            );
        }
        while spool.maintain().unwrap() {}
        assert!(spool.segment_bytes() <= 2 * spool.usage().bytes + 4 * (32 << 10));
        for entry in live {
            let read = spool.read(EntryId(entry), 0, 2000).unwrap();
            assert_eq!(read.bytes.len(), 1000);
        }
    }

    /// A disk that fails for a moment now and then while segments are emptied, and is well again.
    fn after_moments_of(faults: Faults) -> (SimDisk, Spool<SimDisk>) {
        let disk = SimDisk::new(1);
        let (mut spool, _) = Spool::open(disk.clone(), &options(1)).unwrap();
        // 60 segments, of which every tenth message is needed.
        for entry in 1..1800 {
            assert_eq!(spool.commit(0, &[write(entry)])[0].result, Ok(()));
        }
        let mut failures = 0;
        for entry in (1..1800).filter(|entry| entry % 10 != 0) {
            spool.commit(0, &[Op::Remove(EntryId(entry))]);
            if entry > 600 && entry % 50 == 1 {
                // So that the copies are all that is to be written.
                spool.maintain().unwrap();
                disk.set_faults(faults);
                failures += usize::from(spool.maintain().is_err());
                failures += usize::from(spool.maintain().is_err());
                disk.set_faults(Faults::default());
            }
        }
        assert!(failures >= 10, "{failures}");
        (disk, spool)
    }

    fn failing() -> [Faults; 2] {
        let write = Faults {
            write: 1.0,
            ..Faults::default()
        };
        let read = Faults {
            read: 1.0,
            ..Faults::default()
        };
        [write, read]
    }

    #[test]
    fn tidying_ends_after_moments_of_failure() {
        for faults in failing() {
            let (disk, mut spool) = after_moments_of(faults);
            let mut rounds = 0;
            while spool.maintain().unwrap() {
                rounds += 1;
                let changes = disk.changes();
                assert!(rounds < 1000, "copied for ever: {changes} changes");
            }
        }
    }

    #[test]
    fn space_comes_back_after_moments_of_failure() {
        for faults in failing() {
            let (_, mut spool) = after_moments_of(faults);
            for entry in 1..1800 {
                spool.commit(0, &[Op::Remove(EntryId(entry))]);
            }
            for _ in 0..1000 {
                if !spool.maintain().unwrap() {
                    break;
                }
            }
            assert_eq!(spool.usage().entries, 0);
            let left = spool.segment_bytes();
            let most = 4 * (32 << 10);
            assert!(left <= most, "{left} bytes of segments for no message");
        }
    }

    #[test]
    fn a_disk_that_did_not_take_copies_is_not_asked_at_each_commit() {
        let disk = SimDisk::new(1);
        let (mut spool, _) = Spool::open(disk.clone(), &options(1)).unwrap();
        for entry in 1..1800 {
            assert_eq!(spool.commit(0, &[write(entry)])[0].result, Ok(()));
        }
        let gone = (1..1800).filter(|entry| entry % 10 != 0);
        let gone: Vec<Op> = gone.map(|entry| Op::Remove(EntryId(entry))).collect();
        spool.commit(0, &gone);
        spool.maintain().unwrap();
        let [write_fails, _] = failing();
        disk.set_faults(write_fails);
        spool.maintain().unwrap_err();
        disk.set_faults(Faults::default());
        let segments = spool.index.segments.iter();
        let needed = segments.filter(|(_, segment)| segment.live > 0);
        let before: BTreeSet<u32> = needed.map(|(number, _)| *number).collect();
        let are_kept = |spool: &Spool<_>| {
            let mut before = before.iter();
            before.all(|number| spool.index.segments.contains_key(number))
        };
        let mut commits = 0;
        while are_kept(&spool) {
            commits += 1;
            let entry = EntryId(u64::from(5000 + commits));
            spool.commit(0, &[write(entry.0), Op::Remove(entry)]);
            assert!(commits <= COPY_AGAIN, "never asked again");
        }
        assert_eq!(commits, COPY_AGAIN);
    }

    #[test]
    fn no_segment_is_forgotten_that_could_not_be_begun() {
        for seed in 0..50 {
            let disk = SimDisk::new(seed);
            let (mut spool, _) = Spool::open(disk.clone(), &options(seed)).unwrap();
            let mut refused = 0;
            // What opens, renames and removes fails every now and then.
            disk.set_faults(Faults {
                other: 0.5,
                ..Faults::default()
            });
            for entry in 1..200 {
                let done = spool.commit(0, &[write(entry)]);
                refused += u64::from(done[0].result.is_err());
                spool.commit(0, &[Op::Remove(EntryId(entry))]);
            }
            disk.set_faults(Faults::default());
            assert!(refused > 0);
            while spool.maintain().unwrap() {}
            let files = disk.files().into_keys();
            let found: BTreeSet<String> = files.filter(|name| name.ends_with(".seg")).collect();
            let known = spool.index.segments.keys();
            let known = known.map(|number| crate::log::segment_path(*number));
            assert_eq!(found, known.collect(), "{seed}");
        }
    }

    #[test]
    fn a_full_disk_can_be_emptied() {
        let disk = SimDisk::new(1);
        let (mut spool, _) = Spool::open(disk.clone(), &options(1)).unwrap();
        let faults = Faults {
            capacity: 300_000,
            ..Default::default()
        };
        disk.set_faults(faults);
        let mut entry = 0;
        let error = loop {
            entry += 1;
            if let Err(error) = &spool.commit(0, &[write(entry)])[0].result {
                break error.clone();
            }
        };
        assert_eq!(error.to_string(), "the spool's disk is full");
        assert!(entry > 150, "{entry}");
        for again in 0..50 {
            let refused = spool.commit(0, &[write(entry + again)]);
            assert_eq!(refused[0].result, Err(SpoolError::DiskFull));
        }
        for gone in 1..entry {
            spool.commit(0, &[Op::Remove(EntryId(gone))]);
        }
        spool.maintain().unwrap();
        assert_eq!(spool.usage().entries, 0);
        for more in 1000..1100 {
            assert_eq!(spool.commit(0, &[write(more)])[0].result, Ok(()));
        }
        disk.crash();
        let (spool, report) = Spool::open(disk, &options(2)).unwrap();
        assert_eq!((spool.usage().entries, report.damage), (100, vec![]));
    }

    #[test]
    fn a_group_larger_than_a_segment_is_written_and_one_larger_than_the_limit_is_not() {
        let disk = SimDisk::new(1);
        let (mut spool, _) = Spool::open(disk.clone(), &options(1)).unwrap();
        let group = |range: std::ops::Range<u64>| {
            let records = range.flat_map(|entry| match write(entry) {
                Op::Write { records, .. } => records,
                Op::Memo { .. } | Op::Remove(_) => Vec::new(),
            });
            let (token, records) = (1, records.collect());
            [Op::Write { token, records }]
        };
        assert_eq!(spool.commit(0, &group(1..200))[0].result, Ok(()));
        let refused = spool.commit(0, &group(200..70_000))[0].result.clone();
        assert!(matches!(refused, Err(SpoolError::TooLarge { .. })));
        assert_eq!(spool.commit(0, &[write(200)])[0].result, Ok(()));
        disk.crash();
        let (spool, _) = Spool::open(disk, &options(2)).unwrap();
        assert_eq!(spool.usage().entries, 200);
    }
}
