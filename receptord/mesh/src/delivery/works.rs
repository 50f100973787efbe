//! The works of this node: every request taken from another node, or from itself, until its
//! last response is safe.
//!
//! ```text
//!   arrived ── Dispatch ──▶ waiting ── work_started ──▶ starting ── on disk ──▶ running
//!      │                       │                            │                      │
//!      └── could not be        └────────── work_done ───────┴──────────────────────┤
//!          written: withdrawn                                                      ▼
//!                                     closing ◀── last response on disk ──────── ending
//!                                        │
//!                                        └── request forgotten on disk ──▶ gone
//! ```
//!
//! One that an earlier start of this node had started, and whose plugin still runs, goes from waiting to running
//! at once.
//!
//! Never runs anything and never answers; [`super::Delivery`] does both.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;

use foldhash::fast::FixedState;
use hashbrown::HashMap;
use receptor_proto::packet::{ACTIVE_MAX, ActiveWork};
use receptor_proto::{Directive, MessageId};

use super::RemoteId;
use super::flow::Key;
use crate::{EntryId, Instant, WorkRoom};

/// Bytes of payloads of works that wait for a plugin, kept in memory: a thousand full ones.
pub(crate) const WAITING_BYTES: usize = 64 << 20;

/// How many works are remembered that are gone.
const GONE_MAX: usize = 1024;

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Waiting,
    Starting,
    Running,
    Ending,
    Closing,
}

/// One work.
#[derive(Debug)]
pub(crate) struct Work {
    /// Who asked.
    pub(crate) remote: RemoteId,
    /// The request's place in its flow.
    pub(crate) key: Key,
    /// The request's entry, unless it is volatile.
    pub(crate) entry: Option<EntryId>,
    /// The request is on the disk, or needs not be.
    pub(crate) stored: bool,
    /// Which write it is in.
    pub(crate) batch: u64,
    /// So is, or was, its start.
    pub(crate) start_written: bool,
    /// That write is done: a restart knows that it was started.
    pub(crate) start_stored: bool,
    /// A restart runs it again, even if it had started.
    pub(crate) idempotent: bool,
    /// An earlier start of this node had started it, and nothing has become of that yet.
    pub(crate) cut: bool,
    /// The same, whatever becomes of it: its end may have been told and never have been on the disk.
    pub(crate) in_doubt: bool,
    pub(crate) directive: Directive,
    pub(crate) respond: bool,
    pub(crate) volatile: bool,
    pub(crate) since: Instant,
    pub(crate) state: State,
    /// The last serial that was given out.
    pub(crate) serial: u64,
    /// How many up to there its plugin says once more.
    pub(crate) repeats: u64,
    /// Bytes of responses without a receipt.
    pub(crate) backlog: u64,
    /// Its plugin was told to wait.
    pub(crate) held: bool,
    pub(crate) cancelled: bool,
    /// A cancel's place and entry, kept as long as the work.
    pub(crate) cancel: Option<(Key, EntryId)>,
    /// Its request could not be written: whatever it does, nobody is told.
    pub(crate) withdrawn: bool,
    /// The same, but it was answered: it is remembered until the answer is with its sender.
    pub(crate) lingers: bool,
    /// A response was given up: all that may follow is the word that it was.
    pub(crate) broken: bool,
    /// That word's place in its flow: of the responses before it none counts as safe any more.
    pub(crate) word: Option<Key>,
    /// The highest serial on the disk.
    pub(crate) stored_serial: u64,
    /// Responses in a write that is under way, and which write that is.
    pub(crate) writing: (usize, u64),
    /// Responses whose turn to be written comes after that: what is on the disk has no gaps.
    pub(crate) unwritten: VecDeque<Unwritten>,
    /// A restart knows that it has ended.
    pub(crate) end_safe: bool,
    /// A write failed; the next is tried later.
    pub(crate) write_failed: bool,
    /// The last response that its reader has; stays on the disk until a later one is there, so
    /// that a restart knows which serial comes next.
    pub(crate) retained: Option<(u64, EntryId)>,
    /// Payload bytes counted in [`Works::waiting_bytes`].
    waiting_bytes: usize,
    order: u64,
}

impl Work {
    /// It may still say something.
    pub(crate) fn is_in_progress(&self) -> bool {
        match self.state {
            State::Waiting | State::Starting | State::Running => true,
            State::Ending | State::Closing => false,
        }
    }

    /// Nobody hears what it says.
    pub(crate) fn is_silent(&self) -> bool {
        !self.respond || self.broken || self.withdrawn
    }

    /// Whether its plugin may say more.
    pub(crate) fn room(&self) -> WorkRoom {
        if self.held {
            WorkRoom::Wait
        } else {
            WorkRoom::Open
        }
    }

    /// Whether this response must be on the disk before anybody hears of it, because a restart would
    /// say something else in its place.
    pub(crate) fn is_told_when_safe(&self, serial: u64, eof: bool) -> bool {
        if self.entry.is_none() {
            return false;
        }
        if eof && !self.start_stored {
            // A restart starts it, whatever was said.
            return true;
        }
        // A restart says everything anew, behind what is on the disk: whatever the reader has beyond
        // that would be taken for it. Behind an end nothing is taken.
        self.idempotent && !(eof && self.stored_serial + 1 == serial)
    }
}

/// A response that waits for its turn to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unwritten {
    pub(crate) key: Key,
    pub(crate) serial: u64,
    pub(crate) eof: bool,
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Works {
    /// Asked for a dozen times for every message, and never walked through: its order says nothing.
    by_id: HashMap<MessageId, Work, FixedState>,
    /// Those that count, oldest first.
    by_age: BTreeMap<u64, MessageId>,
    next_order: u64,
    waiting_bytes: usize,
    /// The last ones that are gone.
    gone: VecDeque<MessageId>,
}

/// What a new work is made of.
#[derive(Debug)]
pub(crate) struct NewWork {
    pub(crate) remote: RemoteId,
    pub(crate) key: Key,
    pub(crate) entry: Option<EntryId>,
    pub(crate) stored: bool,
    pub(crate) batch: u64,
    pub(crate) directive: Directive,
    pub(crate) respond: bool,
    pub(crate) volatile: bool,
    /// Bytes of its payload in memory.
    pub(crate) inline: usize,
}

impl Works {
    /// None yet. Ids are chosen by others: the seed keeps them from choosing ones that collide.
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            by_id: HashMap::with_hasher(FixedState::with_seed(seed)),
            by_age: BTreeMap::new(),
            next_order: 0,
            waiting_bytes: 0,
            gone: VecDeque::new(),
        }
    }

    pub(crate) fn get(&self, id: MessageId) -> Option<&Work> {
        self.by_id.get(&id)
    }

    pub(crate) fn get_mut(&mut self, id: MessageId) -> Option<&mut Work> {
        self.by_id.get_mut(&id)
    }

    /// Accepted and not finished.
    pub(crate) fn active(&self) -> usize {
        self.by_age.len()
    }

    /// Whether a payload of this size may wait in memory with the others.
    pub(crate) fn has_room(&self, inline: usize) -> bool {
        self.waiting_bytes == 0 || self.waiting_bytes + inline <= WAITING_BYTES
    }

    pub(crate) fn insert(&mut self, now: Instant, id: MessageId, new: NewWork) -> &mut Work {
        let order = self.next_order;
        self.next_order += 1;
        self.by_age.insert(order, id);
        self.waiting_bytes += new.inline;
        self.by_id.entry(id).or_insert(Work {
            remote: new.remote,
            key: new.key,
            entry: new.entry,
            stored: new.stored,
            batch: new.batch,
            start_written: false,
            start_stored: false,
            idempotent: false,
            cut: false,
            in_doubt: false,
            directive: new.directive,
            respond: new.respond,
            volatile: new.volatile,
            since: now,
            state: State::Waiting,
            serial: 0,
            repeats: 0,
            backlog: 0,
            held: false,
            cancelled: false,
            cancel: None,
            withdrawn: false,
            lingers: false,
            broken: false,
            word: None,
            stored_serial: 0,
            writing: (0, 0),
            unwritten: VecDeque::new(),
            end_safe: false,
            write_failed: false,
            retained: None,
            waiting_bytes: new.inline,
            order,
        })
    }

    /// Its payload left this node's hands.
    pub(crate) fn release_payload(&mut self, id: MessageId) {
        if let Some(work) = self.by_id.get_mut(&id) {
            self.waiting_bytes -= core::mem::take(&mut work.waiting_bytes);
        }
    }

    /// Whether it was here not long ago: a cancel often comes when its work has just ended.
    pub(crate) fn was_here(&self, id: MessageId) -> bool {
        self.gone.contains(&id)
    }

    /// It counts no longer.
    pub(crate) fn close(&mut self, id: MessageId) {
        self.release_payload(id);
        if let Some(work) = self.by_id.get_mut(&id) {
            work.state = State::Closing;
            self.by_age.remove(&work.order);
        }
    }

    pub(crate) fn remove(&mut self, id: MessageId) -> Option<Work> {
        self.close(id);
        let work = self.by_id.remove(&id)?;
        // The request of one that was withdrawn comes again.
        if !work.withdrawn {
            if self.gone.len() >= GONE_MAX {
                self.gone.pop_front();
            }
            self.gone.push_back(id);
        }
        Some(work)
    }

    /// Those that count, oldest first.
    pub(crate) fn open(&self) -> impl Iterator<Item = MessageId> {
        self.by_age.values().copied()
    }

    /// How many, and the oldest of them.
    pub(crate) fn view(&self, now: Instant) -> (u64, Vec<ActiveWork>) {
        let works = self.by_age.values().take(ACTIVE_MAX).filter_map(|id| {
            let work = self.by_id.get(id)?;
            let age = now.since(work.since).as_millis();
            Some(ActiveWork {
                id: *id,
                directive: work.directive.clone(),
                age_ms: u64::try_from(age).unwrap_or(u64::MAX),
                running: match work.state {
                    State::Waiting | State::Starting => false,
                    State::Running | State::Ending | State::Closing => true,
                },
            })
        });
        (self.by_age.len() as u64, works.collect())
    }
}
