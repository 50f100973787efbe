//! The thread that owns the spool.
//!
//! Takes what is queued, in order. Writes and removals are gathered and written as one batch
//! with one sync; reads and parts of payloads are done at once, unless they are about an entry
//! that the batch names: then the batch goes first. With nothing to do it tidies up, bit by
//! bit. Says once that the disk fails and once that it works again.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use receptor_mesh::{EntryId, Loaded, PersistToken, Record};
use receptor_proto::control::SpoolDamage;
use receptor_proto::packet::{MessageKind, Piece};
use receptor_proto::{ErrorBody, ErrorCode};
use receptor_spool::{FsDisk, Op, Spool, SpoolError, Synced};
use tokio::sync::{mpsc, oneshot};

use super::digests::Growing;
use super::queue::{Answer, Job, Queue, Reply, Taken};
use super::syncer::Syncer;
use super::{Done, now_ms, refusal};

/// Operations of one batch, so that the first is not told too late.
const BATCH_MAX: usize = 4096;
/// Bytes of one batch, for the same reason.
const BATCH_BYTES: u64 = 16 << 20;
/// What was done without a batch is told at the latest when there is so much of it.
const DONE_MAX: usize = 64;
/// Bytes of a growing payload that are synced at once: what a restart may cost of it, and small
/// enough that a disk takes it in a moment.
const SYNC_EVERY: u64 = 16 << 20;
/// Bytes of a growing payload that may be written and not synced. Beyond that whoever writes
/// waits, so that the disk's speed is felt at once and not at the end.
const UNSYNCED_MAX: u64 = 2 * SYNC_EVERY;
/// Memos that wait for a disk that failed; of more, the oldest are lost.
const UNKEPT_MAX: usize = 1000;
/// Quiet after which there is time to tidy up.
const QUIET: Duration = Duration::from_millis(200);
/// The pause after tidying up failed.
const AGAIN: Duration = Duration::from_secs(5);

/// See the module.
pub(super) struct Keeper {
    spool: Spool<FsDisk>,
    queue: Arc<Queue>,
    reports: mpsc::Sender<Vec<Done>>,
    batch: Vec<Op>,
    batch_bytes: u64,
    done: Vec<Done>,
    syncer: Syncer,
    /// Sizes of payloads that belong to a message to come, until they are complete.
    begun: BTreeMap<EntryId, u64>,
    /// The sums of those that are for works here.
    growing: Growing,
    /// Who is told when less of a growing payload is not synced: up to which end, each.
    held: BTreeMap<EntryId, Vec<(u64, Reply)>>,
    /// Who is told when a complete payload is durable.
    finishing: BTreeMap<EntryId, Finishing>,
    /// Memos that could not be written, oldest first.
    unkept: VecDeque<(EntryId, Bytes)>,
    /// The disk failed when it was used last.
    failing: bool,
    _ending: Ending,
}

/// Who waits for a payload.
enum Finishing {
    /// The engine, which appended up to here.
    Engine(u64),
    Waiter(oneshot::Sender<Result<Piece, ErrorBody>>),
}

impl Keeper {
    pub(super) fn new(
        spool: Spool<FsDisk>,
        queue: Arc<Queue>,
        syncer: Syncer,
        reports: mpsc::Sender<Vec<Done>>,
    ) -> Self {
        let size = |(record, _): (Record, u64)| match record {
            Record::Incoming { entry, message, .. } => Some((entry, message.size)),
            Record::Outgoing { .. }
            | Record::Transit { .. }
            | Record::Started { .. }
            | Record::Received { .. } => None,
        };
        let begun = spool.unfinished(0).into_iter().filter_map(size).collect();
        Self {
            spool,
            syncer,
            begun,
            growing: Growing::default(),
            held: BTreeMap::new(),
            finishing: BTreeMap::new(),
            _ending: Ending(Arc::clone(&queue)),
            queue,
            reports,
            batch: Vec::new(),
            batch_bytes: 0,
            done: Vec::new(),
            unkept: VecDeque::new(),
            failing: false,
        }
    }

    /// Works until the queue is closed.
    pub(super) fn run(mut self) {
        let mut patience = None;
        loop {
            match self.queue.take(patience) {
                Taken::Jobs(jobs, weight) => {
                    let mut end = None;
                    for job in jobs {
                        if let Some(reply) = self.job(job) {
                            end = Some(reply);
                            break;
                        }
                    }
                    self.commit();
                    // Before that is given back, or it would count nowhere for a moment.
                    self.publish();
                    self.queue.done(weight);
                    if let Some(reply) = end {
                        self.close();
                        // One that does not wait any more is as well.
                        let _ = reply.send(());
                        return;
                    }
                    patience = Some(QUIET);
                }
                Taken::Idle => patience = self.tidy(),
                Taken::Closed => return self.close(),
            }
        }
    }

    /// Does one job, or puts it into the batch. `Some`: it is the last.
    fn job(&mut self, job: Job) -> Option<oneshot::Sender<()>> {
        match job {
            Job::Persist {
                token,
                records,
                bytes,
            } => {
                self.batch.push(Op::Write {
                    token: token.0,
                    records,
                });
                self.batch_bytes += bytes;
            }
            Job::Memo(entry, bytes) => self.batch.push(Op::Memo { entry, bytes }),
            Job::Remove(entry) => {
                self.unkept.retain(|(memo, _)| *memo != entry);
                self.begun.remove(&entry);
                self.growing.remove(entry);
                self.queue.digests().remove(entry);
                self.finishing.remove(&entry);
                self.held.remove(&entry);
                self.batch.push(Op::Remove(entry));
            }
            Job::Begin(record) => {
                if let Record::Incoming { entry, message, .. } = &*record {
                    self.begun.insert(*entry, message.size);
                    if let MessageKind::Request { .. } = message.kind {
                        self.growing.begin(*entry);
                    }
                }
                self.spool.begin(now_ms(), &record);
            }
            Job::RoomFor {
                recipient,
                size,
                reply,
            } => {
                let mut result = self.spool.room_for(recipient.as_ref(), size);
                if result.is_err() && !self.batch.is_empty() {
                    // What the batch removes makes room.
                    self.commit();
                    result = self.spool.room_for(recipient.as_ref(), size);
                }
                done(reply, result);
            }
            Job::Finish { entry, reply } => {
                self.finishing.insert(entry, Finishing::Waiter(reply));
                self.finish(entry);
            }
            Job::Synced(synced) => self.synced(synced),
            Job::Append {
                entry,
                offset,
                bytes,
                sum,
                reply,
            } => {
                self.settle(entry);
                let mut result = self.spool.append(entry, offset, &bytes, sum);
                if matches!(result, Err(SpoolError::Full { .. })) && !self.batch.is_empty() {
                    // What the batch removes makes room.
                    self.commit();
                    result = self.spool.append(entry, offset, &bytes, sum);
                }
                if let Err(error) = &result {
                    self.failed(error);
                }
                let end = offset + bytes.len() as u64;
                if result.is_ok() {
                    self.growing.add(entry, offset, &bytes);
                    if self.begun.get(&entry) == Some(&end) {
                        self.begun.remove(&entry);
                        self.growing.end(entry, self.queue.digests());
                        self.finishing.insert(entry, Finishing::Engine(end));
                        self.finish(entry);
                        return None;
                    }
                    self.grow(entry, SYNC_EVERY);
                    if let Some(crowded) = self.spool.crowded() {
                        self.grow(crowded, 1);
                    }
                    if self.spool.is_syncing(entry) && self.spool.unsynced(entry) > UNSYNCED_MAX {
                        self.held.entry(entry).or_default().push((end, reply));
                        return None;
                    }
                }
                self.appended(entry, end, result, reply);
            }
            Job::Read {
                entry,
                offset,
                length,
                reply,
            } => {
                self.settle(entry);
                let result = self.spool.read(entry, offset, length);
                if matches!(result, Err(SpoolError::Damaged(_))) {
                    self.set_aside(entry);
                }
                match reply {
                    Reply::Engine => {
                        let result = result.map_err(|error| refusal(&error));
                        self.tell(Done::Fetched(entry, offset, result));
                    }
                    Reply::Waiter(waiter) => answer(waiter, result),
                }
            }
            Job::Page {
                token,
                recipient,
                range,
                most: (records, bytes),
            } => {
                // What was removed before must not be among them.
                self.commit();
                let page = self.spool.page(now_ms(), &recipient, range, records, bytes);
                let page = page.map_err(|error| refusal(&error)).map(|page| {
                    for (entry, _) in &page.damaged {
                        tracing::error!(entry = entry.0, "a stored message is damaged");
                        self.queue.trouble().add_once(SpoolDamage {
                            file: None,
                            offset: None,
                            bytes: None,
                            entry: Some(entry.0),
                            message: SpoolError::Damaged(*entry).to_string(),
                        });
                    }
                    let damaged = page.damaged.into_iter();
                    Loaded {
                        records: page.records,
                        damaged: damaged.filter_map(|(_, record)| record).collect(),
                        next: page.next,
                    }
                });
                self.tell(Done::Page(token, page));
            }
            Job::Tighten => self.spool.tighten(),
            Job::Adopt {
                entry,
                from,
                size,
                sums,
            } => {
                self.settle(entry);
                if let Err(error) = self.spool.adopt(entry, &from, size, sums) {
                    tracing::warn!(entry = entry.0, %error, "a result of a work was not kept");
                    let _ = fs::remove_file(from);
                }
            }
            Job::SetAside(entry) => self.set_aside(entry),
            Job::Load { work, from } => {
                let result = load(&from);
                self.tell(Done::Loaded(work, result));
            }
            Job::Settle(answers) => self.answer(answers),
            Job::Close(reply) => return Some(reply),
        }
        if self.batch.len() >= BATCH_MAX || self.batch_bytes >= BATCH_BYTES {
            self.commit();
        }
        None
    }

    fn appended(&mut self, entry: EntryId, end: u64, result: Result<(), SpoolError>, reply: Reply) {
        match reply {
            Reply::Engine => {
                let result = result.map_err(|error| refusal(&error));
                self.tell(Done::Appended(entry, end, result));
            }
            Reply::Waiter(waiter) => done(waiter, result),
        }
    }

    /// Has so much of a payload synced, if there is so much.
    fn grow(&mut self, entry: EntryId, least: u64) {
        match self.spool.growing(entry, least) {
            Ok(Some(file)) => self.syncer.sync(file),
            Ok(None) => {}
            // Whoever needs the payload meets the error again.
            Err(error) => self.failed(&error),
        }
    }

    /// Has the rest of a payload synced, and tells who waits for that when there is none.
    fn finish(&mut self, entry: EntryId) {
        self.grow(entry, 1);
        if !self.spool.is_syncing(entry) {
            self.finished(entry, Ok(()));
        }
    }

    fn synced(&mut self, synced: Synced) {
        let entry = synced.entry();
        let result = self.spool.synced(synced);
        if let Err(error) = &result {
            self.failed(error);
        }
        for (end, reply) in self.held.remove(&entry).unwrap_or_default() {
            let result = result.as_ref().map(|_| ()).map_err(Clone::clone);
            self.appended(entry, end, result, reply);
        }
        if self.finishing.contains_key(&entry) {
            match result {
                // More was written meanwhile.
                Ok(false) => self.finish(entry),
                result => self.finished(entry, result.map(|_| ())),
            }
        } else {
            self.grow(entry, SYNC_EVERY);
        }
    }

    fn finished(&mut self, entry: EntryId, result: Result<(), SpoolError>) {
        match self.finishing.remove(&entry) {
            Some(Finishing::Engine(end)) => {
                let result = result.map_err(|error| refusal(&error));
                self.tell(Done::Appended(entry, end, result));
            }
            Some(Finishing::Waiter(waiter)) => done(waiter, result),
            None => {}
        }
    }

    /// What is to be done with this entry follows what was asked about it before.
    fn settle(&mut self, entry: EntryId) {
        let names = |op: &Op| match op {
            Op::Write { records, .. } => records.iter().any(|record| match record {
                Record::Outgoing { entry: other, .. }
                | Record::Incoming { entry: other, .. }
                | Record::Transit { entry: other, .. } => *other == entry,
                Record::Started { .. } | Record::Received { .. } => false,
            }),
            Op::Remove(other) => *other == entry,
            Op::Memo { .. } => false,
        };
        if self.batch.iter().any(names) {
            self.commit();
        }
    }

    /// Writes the batch, and tells everything that was done.
    fn commit(&mut self) {
        if !self.batch.is_empty() {
            // Who waits for a read need not wait for the sync.
            self.report();
            if !self.failing {
                let unkept = self.unkept.drain(..);
                let memos = unkept.map(|(entry, bytes)| Op::Memo { entry, bytes });
                self.batch.splice(0..0, memos);
            }
            let outcomes = self.spool.commit(now_ms(), &self.batch);
            self.keep_memos_for_later();
            self.batch.clear();
            self.batch_bytes = 0;
            for outcome in outcomes {
                match &outcome.result {
                    Ok(()) => self.succeeded(),
                    Err(error) => self.failed(error),
                }
                let result = outcome.result.map_err(|error| refusal(&error));
                self.done
                    .push(Done::Persisted(PersistToken(outcome.token), result));
            }
            self.publish();
        }
        self.report();
    }

    /// Memos of the batch that are not on the disk are written when it can be written again.
    fn keep_memos_for_later(&mut self) {
        for op in &self.batch {
            match op {
                Op::Memo { entry, bytes } if !self.spool.has_memo(*entry) => {
                    if self.unkept.len() >= UNKEPT_MAX {
                        self.unkept.pop_front();
                    }
                    self.unkept.push_back((*entry, bytes.clone()));
                }
                Op::Remove(entry) => self.unkept.retain(|(memo, _)| memo != entry),
                Op::Memo { .. } | Op::Write { .. } => {}
            }
        }
    }

    fn tell(&mut self, done: Done) {
        self.done.push(done);
        if self.done.len() >= DONE_MAX {
            self.report();
        }
    }

    /// Waits while the engine has enough to do.
    fn report(&mut self) {
        if !self.done.is_empty() {
            // An engine that is gone needs to know nothing.
            let _ = self.reports.blocking_send(std::mem::take(&mut self.done));
        }
    }

    fn publish(&mut self) {
        for file in self.spool.take_freed() {
            self.syncer.close(file);
        }
        let usage = self.spool.usage();
        self.queue.set_usage(usage.entries, usage.bytes);
    }

    /// Does a part of what makes the spool smaller; how long to wait before the next.
    fn tidy(&mut self) -> Option<Duration> {
        let result = self.spool.maintain();
        self.publish();
        match result {
            Ok(true) => Some(Duration::ZERO),
            Ok(false) => None,
            Err(error) => {
                self.failed(&error);
                Some(AGAIN)
            }
        }
    }

    /// Tells these, when everything before is durable.
    fn answer(&mut self, answers: Vec<Answer>) {
        self.commit();
        let result = self.spool.settle();
        if let Err(error) = &result {
            self.failed(error);
        }
        for Answer { work, reply } in answers {
            let result = result.as_ref().map(|()| work).map_err(|error| {
                let text = format!("done, but a restart may undo it: {error}");
                ErrorBody::new(ErrorCode::Busy, text)
            });
            // A client that has gone wants no answer.
            let _ = reply.send(result);
        }
    }

    /// Makes everything durable, removals too.
    fn close(self) {
        if let Err(error) = self.spool.close() {
            tracing::warn!(%error, "the spool did not end in order; nothing is lost");
        }
    }

    /// A payload was found damaged: it is not given to anybody.
    fn set_aside(&mut self, entry: EntryId) {
        let Some(found) = self.spool.set_aside(entry) else {
            return;
        };
        if self.queue.trouble().add_once((&found).into()) {
            tracing::error!(entry = entry.0, "a stored payload is damaged: {found}");
        }
    }

    fn succeeded(&mut self) {
        if std::mem::take(&mut self.failing) {
            self.queue.trouble().error = None;
            tracing::info!("the spool can be written again");
        }
    }

    /// Notes what failed, if that was the disk.
    fn failed(&mut self, error: &SpoolError) {
        if matches!(error, SpoolError::DiskFull | SpoolError::Disk { .. }) && !self.failing {
            self.failing = true;
            let what_to_do = if *error == SpoolError::DiskFull {
                "make room on it"
            } else {
                "look at the system's log, and mend or replace the disk"
            };
            let text =
                format!("{error}; nothing new is kept until it can be written: {what_to_do}");
            self.queue.trouble().error = Some(text);
            tracing::error!(%error, "nothing new is kept until the spool can be written");
        }
    }
}

/// However the thread ends, nobody waits for it in vain.
struct Ending(Arc<Queue>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.end();
    }
}

fn done(waiter: oneshot::Sender<Result<Piece, ErrorBody>>, result: Result<(), SpoolError>) {
    let nothing = |()| Piece {
        sum: 0,
        bytes: Bytes::new(),
    };
    answer(waiter, result.map(nothing));
}

fn answer(waiter: oneshot::Sender<Result<Piece, ErrorBody>>, result: Result<Piece, SpoolError>) {
    // One that does not wait any more has no use for it.
    let _ = waiter.send(result.map_err(|error| refusal(&error)));
}

fn load(from: &Path) -> Result<Bytes, ErrorBody> {
    let read = fs::read(from).and_then(|bytes| fs::remove_file(from).map(|()| bytes));
    read.map(Bytes::from).map_err(|error| {
        let text = format!("a result cannot be read: {error}");
        ErrorBody::new(ErrorCode::Internal, text)
    })
}
