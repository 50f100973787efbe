//! What is to be written and what is to happen when it is.
//!
//! Records of one turn go out as one [`Output::Persist`], except requests of clients, and responses
//! while others are refused for lack of room: each is a step of its own, so that one that there is
//! no room for fails alone. What has no hurry (that a request arrived, that incoming entries can be
//! forgotten) is gathered and goes along later. Before an incoming entry is removed, what its flow
//! received is written, so that a repeat is recognised also after a restart. Never looks into a
//! record.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use core::time::Duration;

use receptor_proto::MessageId;
use receptor_proto::packet::{EarlierEnd, Eof};

use super::RemoteId;
use super::choice::Moved;
use super::flow::Key;
use super::inbox::Stored;
use crate::{EntryId, Instant, Output, PersistToken, Record};

/// How long what has no hurry waits for company.
const GATHER: Duration = Duration::from_millis(200);
/// How much of it is company enough.
const GATHER_MAX: usize = 256;
/// How long after a failed write it is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// What waits for a write.
#[derive(Debug)]
pub(crate) enum Done {
    /// A request of a client is safe.
    Request(MessageId),
    /// A response of a work here is safe.
    Response {
        remote: RemoteId,
        key: Key,
        work: MessageId,
        serial: u64,
        eof: bool,
        /// It leaves when it is written, and not before.
        awaited: bool,
    },
    /// Only for [`Journal::again`]: the responses of a work.
    Responses(MessageId),
    /// A cancel to another node is safe.
    Cancel { remote: RemoteId, key: Key },
    /// A message for this node is safe; its origin can be told.
    Arrived {
        remote: RemoteId,
        key: Key,
        what: Arrival,
    },
    /// A request was written once more without its payload.
    Slimmed {
        work: MessageId,
        old: EntryId,
        entry: EntryId,
    },
    /// The start of a work is safe.
    Started(MessageId),
    /// That a request arrived is safe.
    Mark(MessageId, EntryId),
    /// The end that this node itself gave a request is safe.
    OwnEnd {
        work: MessageId,
        serial: u64,
        entry: EntryId,
        eof: Eof,
    },
    /// The number of a message that was given up is no longer needed: what takes its place is
    /// safe.
    GivenUp { remote: RemoteId, key: Key },
    /// The new place of a request is safe.
    Moved(Moved),
    /// A message of others is safe here.
    Kept(EntryId),
    /// The request of a work whose end nothing else tells of is gone.
    Gone { work: MessageId, serial: u64 },
    /// Incoming entries can be removed.
    Retired(Vec<Retired>),
    /// What is remembered of the end of a work is safe: its node can be told, which has another.
    Earlier {
        remote: RemoteId,
        epoch: u64,
        end: Box<EarlierEnd>,
    },
}

impl Done {
    /// Whether somebody waits for it. Most responses were sent on, or given to the client, when they
    /// came, so that the write of one only lets others forget it: its work the request, its worker's
    /// node the response. What is written about requests and entries that are done with changes
    /// nothing but what a restart finds.
    fn is_urgent(&self) -> bool {
        match self {
            Self::Response { awaited: false, .. }
            | Self::Arrived {
                what: Arrival::Response { .. },
                ..
            }
            | Self::Slimmed { .. }
            | Self::Mark(..)
            | Self::Gone { .. }
            | Self::Retired(_) => false,
            Self::Request(_)
            | Self::Response { awaited: true, .. }
            | Self::Responses(_)
            | Self::Cancel { .. }
            | Self::Arrived {
                what: Arrival::Work(_) | Arrival::Number | Arrival::Cancel { .. },
                ..
            }
            | Self::Started(_)
            | Self::OwnEnd { .. }
            | Self::GivenUp { .. }
            | Self::Moved(_)
            | Self::Kept(_)
            | Self::Earlier { .. } => true,
        }
    }
}

/// What arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// A request that became a work.
    Work(MessageId),
    /// Something that nothing is kept of but its number, which is in the same write. So is the
    /// answer, if it gets one.
    Number,
    /// A response to a request of this node.
    Response {
        work: MessageId,
        /// The request's place: when this is written the work may be another one, whose key was used again.
        request: Key,
        serial: u64,
        entry: EntryId,
    },
    /// A cancel.
    Cancel { work: MessageId, entry: EntryId },
}

/// An incoming entry that is needed no longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Retired {
    pub(crate) remote: RemoteId,
    pub(crate) key: Key,
    pub(crate) entry: EntryId,
    /// A response that the client of this request took later: to be noted first.
    pub(crate) after: Option<(MessageId, Stored)>,
    pub(crate) with: With,
}

/// What is over when an incoming entry is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum With {
    Nothing,
    /// This work is gone.
    Work(MessageId),
    /// Nothing is known any more of a cancel of this request that came ahead of it. The receipt of
    /// another cancel, which says that this is so, waits for that.
    Early(MessageId, Option<Key>),
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    last_token: u64,
    /// Writes that were given out.
    batches: u64,
    records: Vec<Record>,
    done: Vec<Done>,
    /// Steps of their own, before the others.
    alone: Vec<(Record, Done)>,
    removed: Vec<EntryId>,
    written: VecDeque<(PersistToken, Vec<Done>)>,
    /// Requests whose arrival is to be noted.
    marks: BTreeMap<EntryId, MessageId>,
    retired: Vec<Retired>,
    /// Such a write is under way. There is one at a time, so that one that fails can join the
    /// next without any that came later being ahead of it.
    retiring: bool,
    gather_until: Option<Instant>,
    again: Vec<Done>,
    again_at: Option<Instant>,
}

impl Journal {
    /// Writes with the next batch.
    pub(crate) fn write(&mut self, record: Record, done: Done) {
        self.records.push(record);
        self.done.push(done);
    }

    /// Writes in a step of its own, ahead of the next batch.
    pub(crate) fn write_alone(&mut self, record: Record, done: Done) {
        self.alone.push((record, done));
    }

    /// Writes with the next batch, for whose sake nothing waits.
    pub(crate) fn note(&mut self, record: Record) {
        self.records.push(record);
    }

    /// Lets something wait for the next batch as well.
    pub(crate) fn also(&mut self, done: Done) {
        self.done.push(done);
    }

    /// Removes an entry, after what is about to be written: that may be the entry itself.
    pub(crate) fn remove(&mut self, entry: EntryId) {
        self.removed.push(entry);
    }

    /// Removes an entry if there is one.
    pub(crate) fn remove_any(&mut self, entry: Option<EntryId>) {
        self.removed.extend(entry);
    }

    /// The number of the write that is being gathered.
    pub(crate) fn batch(&self) -> u64 {
        self.batches + 1
    }

    /// Notes soon that the outgoing request arrived.
    pub(crate) fn mark(&mut self, now: Instant, work: MessageId, entry: EntryId) {
        self.marks.insert(entry, work);
        self.gather_until.get_or_insert(now + GATHER);
    }

    /// The request is over; its arrival needs no note.
    pub(crate) fn unmark(&mut self, entry: EntryId) {
        self.marks.remove(&entry);
    }

    /// Removes an incoming entry soon.
    pub(crate) fn retire(&mut self, now: Instant, retired: Retired) {
        self.retired.push(retired);
        self.gather_until.get_or_insert(now + GATHER);
    }

    /// This entry could not be written, so that it need not be removed.
    pub(crate) fn not_retired(&mut self, failed: EntryId) -> Option<Retired> {
        let own = self.retired.iter().position(|r| r.entry == failed);
        own.map(|at| self.retired.remove(at))
    }

    /// A response that may be named here could not be written: nothing is noted of it. Gives
    /// back the one before it, unless a later one takes its place.
    pub(crate) fn never_stored(&mut self, failed: EntryId) -> Option<Stored> {
        let own = self.not_retired(failed);
        let before = self
            .retired
            .iter()
            .position(|r| r.after.is_some_and(|(_, after)| after.entry == failed))?;
        if let Some(own) = own {
            self.retired[before].after = own.after;
            return None;
        }
        let Retired { key, entry, .. } = self.retired.remove(before);
        Some(Stored { key, entry })
    }

    /// Whether a cancel that came ahead of this request is about to be forgotten: the place of the cancel
    /// whose receipt waits for that.
    pub(crate) fn forgets_early(
        &mut self,
        from: RemoteId,
        request: MessageId,
    ) -> Option<&mut Option<Key>> {
        let under_way = self.written.iter_mut().flat_map(|(_, done)| done);
        let under_way = under_way.filter_map(|done| {
            let Done::Retired(retired) = done else {
                return None;
            };
            Some(retired)
        });
        let all = under_way.chain([&mut self.retired]).flatten();
        all.filter(|retired| retired.remote == from)
            .find_map(|retired| match &mut retired.with {
                With::Early(id, owed) if *id == request => Some(owed),
                With::Nothing | With::Work(_) | With::Early(..) => None,
            })
    }

    /// Tries again later what could not be written.
    pub(crate) fn again(&mut self, now: Instant, done: Done) {
        self.again.push(done);
        self.again_at.get_or_insert(now + AGAIN);
    }

    /// What is to be tried again now.
    pub(crate) fn take_again(&mut self, now: Instant) -> Vec<Done> {
        if self.again_at.is_some_and(|at| at <= now) {
            self.again_at = None;
            return core::mem::take(&mut self.again);
        }
        Vec::new()
    }

    /// What was gathered, when it is time: the requests to note and the entries to remove.
    pub(crate) fn take_gathered(
        &mut self,
        now: Instant,
    ) -> (BTreeMap<EntryId, MessageId>, Vec<Retired>) {
        let due = self.gather_until.is_some_and(|until| until <= now);
        let retired = if (due || self.retired.len() >= GATHER_MAX) && !self.retiring {
            core::mem::take(&mut self.retired)
        } else {
            Vec::new()
        };
        // Notes are small, and go along with whatever is written.
        let writes = !self.records.is_empty() || !self.alone.is_empty();
        let marks = if due || !retired.is_empty() || writes {
            core::mem::take(&mut self.marks)
        } else {
            BTreeMap::new()
        };
        if due {
            self.gather_until = None;
        }
        (marks, retired)
    }

    /// Lets these wait for the next write; no others are given out until [`Self::retired`].
    pub(crate) fn retire_now(&mut self, retired: Vec<Retired>) {
        self.retiring = true;
        self.done.push(Done::Retired(retired));
    }

    /// That write succeeded, or `failed` is to be tried again.
    pub(crate) fn retired(&mut self, now: Instant, mut failed: Vec<Retired>) {
        self.retiring = false;
        failed.append(&mut self.retired);
        self.retired = failed;
        if !self.retired.is_empty() {
            self.gather_until.get_or_insert(now + GATHER);
        }
    }

    /// Asks for the next write, if there is anything to write, and for what is to be removed.
    pub(crate) fn flush(&mut self, out: &mut VecDeque<Output>) {
        if !self.alone.is_empty() {
            for (record, done) in core::mem::take(&mut self.alone) {
                self.ask(alloc::vec![record], alloc::vec![done], out);
            }
        }
        if !self.records.is_empty() || !self.done.is_empty() {
            self.batches += 1;
            let records = core::mem::take(&mut self.records);
            let done = core::mem::take(&mut self.done);
            self.ask(records, done, out);
        }
        if !self.removed.is_empty() {
            out.extend(self.removed.drain(..).map(|entry| Output::Remove { entry }));
        }
    }

    fn ask(&mut self, records: Vec<Record>, done: Vec<Done>, out: &mut VecDeque<Output>) {
        self.last_token += 1;
        let token = PersistToken(self.last_token);
        let urgent = done.iter().any(Done::is_urgent);
        self.written.push_back((token, done));
        out.push_back(Output::Persist {
            token,
            records,
            urgent,
        });
    }

    /// The driver's word about a batch: what waited for it.
    pub(crate) fn take_written(&mut self, token: PersistToken) -> Vec<Done> {
        match self.written.front() {
            Some((first, _)) if *first == token => self
                .written
                .pop_front()
                .map_or(Vec::new(), |(_, done)| done),
            _ => {
                let at = self.written.iter().position(|(other, _)| *other == token);
                at.and_then(|at| self.written.remove(at))
                    .map_or(Vec::new(), |(_, done)| done)
            }
        }
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        Instant::earlier(self.gather_until, self.again_at)
    }
}
