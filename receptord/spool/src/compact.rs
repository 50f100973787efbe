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
use crate::log::{Effect, REMOVED, Results, decode_removed, encode_removed};
use crate::segment::{FrameWriter, Header, Place, Scan};
use crate::spool::Spool;

/// Bytes of one frame of copies.
const FRAME_BYTES: usize = 256 << 10;

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
        let copied = self.copy_out(victim);
        if copied.is_err() {
            // Until the next start; others may be readable.
            self.index.segment(victim).is_stuck = true;
            self.log
                .repair(&self.disk, &mut self.index, &mut Results::new());
        }
        copied?;
        self.index.emptied(victim);
        if self.index.segment(victim).live > 0 {
            // A part of it cannot be read any more. The next start sets that aside.
            self.index.segment(victim).is_stuck = true;
        }
        self.log.collect(&self.disk, &mut self.index)?;
        Ok(true)
    }

    fn copy_out(&mut self, victim: u32) -> Result<(), SpoolError> {
        let mut bytes = Vec::new();
        self.read_segment(victim, &mut bytes)?;
        let bytes = Bytes::from(bytes);
        let mut results = Results::new();
        if let Ok(header) = Header::decode(&bytes) {
            let length = self.index.segment(victim).length;
            let scan = Scan::new(&bytes, header.salt, Some(length));
            let mut frame = FrameWriter::default();
            let mut effects = Vec::new();
            let mut started = BTreeSet::new();
            for (place, record) in scan.records(&bytes) {
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
        self.log
            .gather(&self.disk, &mut self.index, results, frame, false, placed)
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
            Ok(Label::Other(_)) | Err(_) => Effect::Unknown,
        };
        Some((record.clone(), vec![effect]))
    }
}
