//! A model of one node's store: an ordered log of changes, of which a prefix is durable.
//!
//! A write is confirmed when it and everything before it is durable. A crash keeps what was
//! confirmed and a random prefix of what was not, never a part of one step. Complains when the
//! core asks for what no store can do: an entry's name used twice, a payload with holes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use fastrand::Rng;
use receptor_mesh::{EntryId, Loaded, Record};
use receptor_proto::packet::{Eof, Message, MessageKind, Piece};
use receptor_proto::{MessageId, NodeId};

use crate::options::StoreKind;

/// How many changes may wait for a write to make them durable; the oldest go first then.
const TAIL_MAX: usize = 256;

#[derive(Debug)]
enum Change {
    /// Token, when, what.
    Records(u64, u64, Vec<Record>),
    Remove(EntryId),
    /// When, from whom, what.
    Begin(EntryId, u64, NodeId, Box<Message>),
    Append(EntryId, u64, Bytes),
    Ended(MessageId, Eof),
}

/// What is stored.
#[derive(Debug, Default, Clone)]
struct State {
    /// With the moment of the write.
    messages: BTreeMap<EntryId, (u64, Record)>,
    started: BTreeSet<EntryId>,
    received: BTreeMap<(NodeId, u64), Record>,
    payloads: BTreeMap<EntryId, Vec<Bytes>>,
    /// What unfinished payloads are part of, as incoming records.
    begun: BTreeMap<EntryId, (u64, Record)>,
    retired: BTreeSet<EntryId>,
    requests: BTreeSet<MessageId>,
    /// How works that ran here ended.
    endings: BTreeMap<MessageId, Eof>,
}

/// One node's store.
#[derive(Debug)]
pub(crate) struct Store {
    kind: StoreKind,
    durable: State,
    current: State,
    tail: VecDeque<Change>,
}

impl State {
    fn apply(&mut self, change: &Change) -> Result<(), String> {
        match change {
            Change::Records(_, at, records) => {
                for record in records {
                    self.record(*at, record)?;
                }
            }
            Change::Remove(entry) => {
                self.messages.remove(entry);
                self.started.remove(entry);
                self.payloads.remove(entry);
                self.begun.remove(entry);
                self.retired.insert(*entry);
            }
            Change::Begin(entry, at, origin, message) => {
                let record = Record::Incoming {
                    entry: *entry,
                    origin: origin.clone(),
                    message: (**message).clone(),
                };
                if self.retired.contains(entry)
                    || self.begun.insert(*entry, (*at, record)).is_some()
                {
                    return Err(format!("{entry:?} is begun twice"));
                }
            }
            Change::Append(entry, offset, bytes) => {
                if self.retired.contains(entry) {
                    return Err(format!("{entry:?} is used after it was removed"));
                }
                let parts = self.payloads.entry(*entry).or_default();
                let length: usize = parts.iter().map(Bytes::len).sum();
                if length as u64 != *offset {
                    return Err(format!(
                        "a part of {entry:?} at {offset}, which has {length} bytes"
                    ));
                }
                parts.push(bytes.clone());
            }
            Change::Ended(work, eof) => {
                self.endings.insert(*work, eof.clone());
            }
        }
        Ok(())
    }

    fn record(&mut self, at: u64, record: &Record) -> Result<(), String> {
        match record {
            Record::Outgoing { entry, message, .. }
            | Record::Incoming { entry, message, .. }
            | Record::Transit { entry, message, .. } => {
                if self.retired.contains(entry) || self.messages.contains_key(entry) {
                    return Err(format!("{entry:?} is used twice"));
                }
                if message.volatile {
                    return Err(format!("volatile {} on a disk", message.work));
                }
                let stored: usize = self
                    .payloads
                    .get(entry)
                    .map_or(0, |parts| parts.iter().map(Bytes::len).sum());
                let length = if message.is_segmented() {
                    stored
                } else {
                    message.body.len()
                };
                if length as u64 != message.size {
                    return Err(format!(
                        "{entry:?} of {} has {length} bytes of {}",
                        message.work, message.size
                    ));
                }
                let own = !matches!(record, Record::Transit { .. });
                if own && matches!(message.kind, MessageKind::Request { .. }) {
                    self.requests.insert(message.work);
                }
                self.begun.remove(entry);
                self.messages.insert(*entry, (at, record.clone()));
            }
            Record::Started { entry } => {
                // One that could not be written is said again, perhaps of what is gone by then.
                if self.messages.contains_key(entry) {
                    self.started.insert(*entry);
                } else if !self.retired.contains(entry) {
                    return Err(format!("{entry:?} is started and is no message"));
                }
            }
            Record::Received {
                origin,
                epoch,
                floor,
                ..
            } => {
                let key = (origin.clone(), *epoch);
                if *floor == u64::MAX {
                    self.received.remove(&key);
                } else {
                    self.received.insert(key, record.clone());
                }
            }
        }
        Ok(())
    }
}

impl Store {
    pub(crate) fn new(kind: StoreKind) -> Self {
        Self {
            kind,
            durable: State::default(),
            current: State::default(),
            tail: VecDeque::new(),
        }
    }

    /// Writes records in one step, durable once [`Self::confirm`] is called with this token.
    pub(crate) fn persist(
        &mut self,
        now: u64,
        token: u64,
        records: Vec<Record>,
    ) -> Result<(), String> {
        self.change(Change::Records(token, now, records))
    }

    pub(crate) fn remove(&mut self, entry: EntryId) -> Result<(), String> {
        self.change(Change::Remove(entry))
    }

    /// Notes how a work ended. A disk that fails gets it later: that is never forgotten while the process
    /// lives.
    pub(crate) fn ended(&mut self, work: MessageId, eof: Eof) -> Result<(), String> {
        self.change(Change::Ended(work, eof))
    }

    /// How a work ended that ran here.
    pub(crate) fn ending(&self, work: MessageId) -> Option<&Eof> {
        self.current.endings.get(&work)
    }

    pub(crate) fn begin(
        &mut self,
        now: u64,
        entry: EntryId,
        origin: NodeId,
        message: Box<Message>,
    ) -> Result<(), String> {
        self.change(Change::Begin(entry, now, origin, message))
    }

    pub(crate) fn append(
        &mut self,
        entry: EntryId,
        offset: u64,
        part: Piece,
    ) -> Result<(), String> {
        if !is_whole(&part) {
            return Err(format!(
                "{entry:?} gets something else at {offset} than was sent"
            ));
        }
        self.change(Change::Append(entry, offset, part.bytes))
    }

    fn change(&mut self, change: Change) -> Result<(), String> {
        self.current.apply(&change)?;
        self.tail.push_back(change);
        while self.tail.len() > TAIL_MAX
            && !matches!(self.tail.front(), Some(Change::Records(..)) | None)
        {
            self.settle()?;
        }
        Ok(())
    }

    /// Makes the oldest change durable.
    fn settle(&mut self) -> Result<(), String> {
        match self.tail.pop_front() {
            Some(change) => self.durable.apply(&change),
            None => Ok(()),
        }
    }

    /// The step of this token and all before it are durable.
    pub(crate) fn confirm(&mut self, token: u64) -> Result<(), String> {
        let waits = |change: &Change| matches!(change, Change::Records(t, ..) if *t == token);
        while self.tail.iter().any(waits) {
            self.settle()?;
        }
        Ok(())
    }

    /// A part of a payload or of a message's body, at most `length` bytes.
    pub(crate) fn fetch(&self, entry: EntryId, offset: u64, length: usize) -> Option<Bytes> {
        let body = match self.current.messages.get(&entry) {
            Some((
                _,
                Record::Outgoing { message, .. }
                | Record::Incoming { message, .. }
                | Record::Transit { message, .. },
            )) => {
                vec![message.body.clone()]
            }
            Some((_, Record::Started { .. } | Record::Received { .. })) | None => Vec::new(),
        };
        let parts = self.current.payloads.get(&entry).unwrap_or(&body);
        if parts.is_empty() {
            return None;
        }
        let mut skip = usize::try_from(offset).ok()?;
        let mut out = Vec::new();
        for part in parts {
            if skip >= part.len() {
                skip -= part.len();
                continue;
            }
            let end = part.len().min(skip + length - out.len());
            out.extend_from_slice(&part[skip..end]);
            skip = 0;
            if out.len() == length {
                break;
            }
        }
        Some(out.into())
    }

    /// Outgoing requests to this node, between two entries, with bodies while there is room for
    /// them.
    pub(crate) fn load(
        &self,
        now: u64,
        recipient: &NodeId,
        (first, last): (EntryId, EntryId),
        (most, bytes): (usize, usize),
    ) -> Loaded {
        let mut loaded = Loaded {
            records: Vec::new(),
            damaged: Vec::new(),
            next: None,
        };
        let mut room = bytes;
        for (entry, (at, record)) in self.current.messages.range(first..=last) {
            if !matches!(record, Record::Outgoing { recipient: to, .. } if to == recipient) {
                continue;
            }
            if loaded.records.len() == most {
                loaded.next = Some(*entry);
                break;
            }
            let mut record = aged(now, *at, record);
            if let Record::Outgoing { message, .. } = &mut record {
                match room.checked_sub(message.body.len()) {
                    Some(left) => room = left,
                    None => message.body = Bytes::new(),
                }
            }
            loaded.records.push(record);
        }
        loaded
    }

    /// The payloads without a message.
    pub(crate) fn loose_payloads(&self) -> Vec<EntryId> {
        let state = &self.current;
        let loose = |entry: &&EntryId| !state.messages.contains_key(entry);
        state.payloads.keys().filter(loose).copied().collect()
    }

    /// Whether the entry was removed.
    pub(crate) fn is_retired(&self, entry: EntryId) -> bool {
        self.current.retired.contains(&entry)
    }

    /// Whether this request is or was on the disk.
    pub(crate) fn was_durable(&self, work: MessageId) -> bool {
        self.durable.requests.contains(&work)
    }

    /// Whether no restart would wait for the end of this work that was sent from here.
    pub(crate) fn is_over(&self, work: MessageId) -> bool {
        let waits = |record: &Record| {
            matches!(record, Record::Outgoing { message, .. }
                if message.work == work && matches!(message.kind, MessageKind::Request { .. }))
        };
        !self
            .durable
            .messages
            .values()
            .any(|(_, record)| waits(record))
    }

    /// The disk has damaged this message: nothing of it can be read.
    pub(crate) fn damage(&mut self, entry: EntryId) {
        for state in [&mut self.current, &mut self.durable] {
            state.messages.remove(&entry);
            state.started.remove(&entry);
            state.payloads.remove(&entry);
        }
    }

    /// The messages stored.
    pub(crate) fn messages(&self) -> impl Iterator<Item = &Record> {
        self.current.messages.values().map(|(_, record)| record)
    }

    /// The process is gone. What it finds when it starts again is what was confirmed and some
    /// of what was not.
    pub(crate) fn crash(&mut self, rng: &mut Rng, lose_everything: bool) -> Result<(), String> {
        if lose_everything || self.kind == StoreKind::Memory {
            *self = Self::new(self.kind);
            return Ok(());
        }
        for _ in 0..rng.usize(0..=self.tail.len()) {
            self.settle()?;
        }
        self.tail.clear();
        let (messages, begun) = (&self.durable.messages, &self.durable.begun);
        self.durable
            .payloads
            .retain(|entry, _| messages.contains_key(entry) || begun.contains_key(entry));
        let payloads = &self.durable.payloads;
        self.durable
            .begun
            .retain(|entry, _| payloads.contains_key(entry));
        self.current = self.durable.clone();
        Ok(())
    }

    /// The process ended in order: everything is durable.
    pub(crate) fn close(&mut self) -> Result<(), String> {
        if self.kind == StoreKind::Memory {
            *self = Self::new(self.kind);
            return Ok(());
        }
        while !self.tail.is_empty() {
            self.settle()?;
        }
        Ok(())
    }

    /// Unfinished payloads: the message as an incoming record, and how much there is.
    pub(crate) fn unfinished(&self, now: u64) -> Vec<(Record, u64)> {
        let length = |entry| {
            let parts = self.current.payloads.get(entry);
            let parts = parts.into_iter().flatten();
            parts.map(|part| part.len() as u64).sum()
        };
        let begun = self.current.begun.iter();
        begun
            .map(|(entry, (at, record))| (aged(now, *at, record), length(entry)))
            .collect()
    }

    /// What a start at this moment is given, outgoing messages last.
    pub(crate) fn records(&self, now: u64) -> Vec<Record> {
        let started = self
            .current
            .started
            .iter()
            .map(|entry| Record::Started { entry: *entry });
        let messages = self.current.messages.values();
        let (outgoing, incoming): (Vec<Record>, Vec<Record>) = messages
            .map(|(at, record)| aged(now, *at, record))
            .partition(|record| matches!(record, Record::Outgoing { .. }));
        self.current
            .received
            .values()
            .cloned()
            .chain(started)
            .chain(incoming)
            .chain(outgoing)
            .collect()
    }
}

/// A record as it is given back: what the message still has to live is less by the time since it
/// was written.
fn aged(now: u64, at: u64, record: &Record) -> Record {
    let mut record = record.clone();
    match &mut record {
        Record::Outgoing { message, .. }
        | Record::Incoming { message, .. }
        | Record::Transit { message, .. } => {
            let age_ms = (now - at) / 1000;
            message.remaining_ms = message.remaining_ms.saturating_sub(age_ms);
        }
        Record::Started { .. } | Record::Received { .. } => {}
    }
    record
}

/// A part as a store gives it away: with its checksum.
pub(crate) fn piece(bytes: Bytes) -> Piece {
    let sum = crc32c::crc32c(&bytes);
    Piece { sum, bytes }
}

/// Whether a part is what its checksum says.
pub(crate) fn is_whole(part: &Piece) -> bool {
    crc32c::crc32c(&part.bytes) == part.sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(floor: u64) -> Vec<Record> {
        vec![Record::Received {
            origin: NodeId::new("a").unwrap(),
            epoch: 1,
            floor,
            ranges: Vec::new(),
        }]
    }

    #[test]
    fn a_crash_keeps_what_was_confirmed() {
        for seed in 0..20 {
            let mut store = Store::new(StoreKind::Disk);
            store.persist(0, 1, received(1)).unwrap();
            store.persist(0, 2, received(2)).unwrap();
            store.persist(0, 3, received(3)).unwrap();
            store.confirm(2).unwrap();
            store.crash(&mut Rng::with_seed(seed), false).unwrap();
            assert!([received(2), received(3)].contains(&store.records(0)));
        }
    }

    #[test]
    fn what_no_store_can_do_is_refused() {
        let mut store = Store::new(StoreKind::Disk);
        let part = piece(Bytes::from_static(b"abcdef"));
        store.append(EntryId(1), 0, part.clone()).unwrap();
        assert!(store.append(EntryId(1), 7, part.clone()).is_err());
        store.append(EntryId(1), 6, part.clone()).unwrap();
        assert_eq!(
            store.fetch(EntryId(1), 4, 5).unwrap(),
            Bytes::from_static(b"efabc")
        );
        store.remove(EntryId(1)).unwrap();
        assert!(store.append(EntryId(1), 0, part).is_err());
        assert!(
            store
                .persist(0, 1, vec![Record::Started { entry: EntryId(9) }])
                .is_err()
        );
    }
}
