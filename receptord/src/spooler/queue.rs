//! What waits for the spool's thread, and what that says of the spool.
//!
//! Owns the only state that two threads share. Its bound is in bytes and held by
//! [`super::Store::persist`] for messages; reads, parts of payloads and removals are bounded by
//! those who ask for them: the core's windows, one per session, and what is stored. Never
//! waits for anything but work.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use receptor_mesh::{EntryId, LoadToken, PersistToken, Record};
use receptor_proto::control::SpoolDamage;
use receptor_proto::packet::Piece;
use receptor_proto::{ErrorBody, MessageId, NodeId};
use receptor_spool::{Sums, Synced};
use tokio::sync::oneshot;

use super::digests::Digests;

/// One thing to do.
#[derive(Debug)]
pub(super) enum Job {
    /// Write these records, all or none.
    Persist {
        token: PersistToken,
        records: Vec<Record>,
        /// What they count in the queue.
        bytes: u64,
    },
    Remove(EntryId),
    Memo(EntryId, Bytes),
    /// Appended parts will be of this record, an incoming one.
    Begin(Box<Record>),
    Append {
        entry: EntryId,
        offset: u64,
        bytes: Bytes,
        /// The checksum that they came with.
        sum: Option<u32>,
        reply: Reply,
    },
    Read {
        entry: EntryId,
        offset: u64,
        length: usize,
        reply: Reply,
    },
    /// Others lack room on the disk.
    Tighten,
    /// At most so many records, and so many bytes of bodies.
    Page {
        token: LoadToken,
        recipient: NodeId,
        range: (EntryId, EntryId),
        most: (usize, usize),
    },
    /// Whether a payload of this size would be taken.
    RoomFor {
        recipient: Option<NodeId>,
        size: u64,
        reply: oneshot::Sender<Result<Piece, ErrorBody>>,
    },
    /// Everything that was appended is to be durable.
    Finish {
        entry: EntryId,
        reply: oneshot::Sender<Result<Piece, ErrorBody>>,
    },
    /// From the other thread.
    Synced(Synced),
    Adopt {
        entry: EntryId,
        from: PathBuf,
        size: u64,
        sums: Sums,
    },
    /// Whoever read the payload of this entry found that it is damaged.
    SetAside(EntryId),
    Load {
        work: MessageId,
        from: PathBuf,
    },
    /// These are told when everything before this is durable.
    Settle(Vec<Answer>),
    Close(oneshot::Sender<()>),
}

/// What was done for a client, who hears of it when no crash can undo it.
#[derive(Debug)]
pub(crate) struct Answer {
    /// To which work.
    pub(crate) work: MessageId,
    /// Where the client waits.
    pub(crate) reply: oneshot::Sender<Result<MessageId, ErrorBody>>,
}

/// Who is told.
#[derive(Debug)]
pub(super) enum Reply {
    Engine,
    Waiter(oneshot::Sender<Result<Piece, ErrorBody>>),
}

/// Damaged parts that are remembered one by one; of more, only how many there are.
const DAMAGE_MAX: usize = 100;

/// What is wrong with the spool, for those who ask.
#[derive(Debug, Clone, Default)]
pub(crate) struct Trouble {
    /// The disk fails: what it says, and what to do.
    pub(crate) error: Option<String>,
    /// Parts that are damaged.
    pub(crate) damaged: u64,
    /// The first of them.
    pub(crate) parts: Vec<SpoolDamage>,
}

impl Trouble {
    pub(super) fn add(&mut self, damage: SpoolDamage) {
        self.damaged += 1;
        if self.parts.len() < DAMAGE_MAX {
            self.parts.push(damage);
        }
    }

    /// The same, unless it is known of this entry that it is damaged. False: it is.
    pub(super) fn add_once(&mut self, damage: SpoolDamage) -> bool {
        let same = |part: &SpoolDamage| part.entry.is_some() && part.entry == damage.entry;
        let is_new = !self.parts.iter().any(same);
        if is_new {
            self.add(damage);
        }
        is_new
    }
}

/// What jobs count until they are done.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Weight {
    /// Bytes to write.
    written: u64,
    /// Bytes of files to take over. They take room and no time: each is renamed.
    adopted: u64,
}

impl std::iter::Sum for Weight {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| Self {
            written: sum.written + one.written,
            adopted: sum.adopted + one.adopted,
        })
    }
}

impl Job {
    fn weight(&self) -> Weight {
        let written = match self {
            Self::Persist { bytes, .. } => *bytes,
            Self::Append { bytes, .. } => bytes.len() as u64,
            Self::Memo(_, bytes) => bytes.len() as u64,
            Self::Adopt { size, .. } => {
                return Weight {
                    adopted: *size,
                    ..Weight::default()
                };
            }
            Self::Remove(_)
            | Self::SetAside(_)
            | Self::Tighten
            | Self::Begin(_)
            | Self::RoomFor { .. }
            | Self::Finish { .. }
            | Self::Synced(_)
            | Self::Read { .. }
            | Self::Page { .. }
            | Self::Load { .. }
            | Self::Settle(_)
            | Self::Close(_) => 0,
        };
        Weight {
            written,
            ..Weight::default()
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    work: Condvar,
    /// Of what waits or is being done: [`Weight::written`] and [`Weight::adopted`].
    waiting: AtomicU64,
    adopting: AtomicU64,
    entries: AtomicU64,
    bytes: AtomicU64,
    trouble: Mutex<Trouble>,
    digests: Digests,
}

#[derive(Debug, Default)]
struct State {
    jobs: VecDeque<Job>,
    /// The thread is to look.
    called: bool,
    closed: bool,
}

/// What there is to do.
#[derive(Debug)]
pub(super) enum Taken {
    /// These, and what they count.
    Jobs(VecDeque<Job>, Weight),
    /// Nothing for so long.
    Idle,
    /// Nothing ever again.
    Closed,
}

impl Queue {
    pub(super) fn new(entries: u64, bytes: u64, trouble: Trouble) -> Self {
        Self {
            state: Mutex::default(),
            work: Condvar::new(),
            waiting: AtomicU64::new(0),
            adopting: AtomicU64::new(0),
            entries: AtomicU64::new(entries),
            bytes: AtomicU64::new(bytes),
            trouble: Mutex::new(trouble),
            digests: Digests::default(),
        }
    }

    /// Nothing in here panics with the lock held, so that what it guards is always whole.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn push(&self, job: Job) {
        let weight = job.weight();
        let mut state = self.state();
        // Who waits for a job that is dropped learns it by that.
        if !state.closed {
            self.waiting.fetch_add(weight.written, Ordering::Relaxed);
            self.adopting.fetch_add(weight.adopted, Ordering::Relaxed);
            state.jobs.push_back(job);
        }
    }

    /// Lets the thread look. Until then what was pushed waits, also when it looks for more.
    pub(super) fn wake(&self) {
        self.state().called = true;
        self.work.notify_one();
    }

    /// Nothing more is taken; what waits is still done.
    pub(super) fn close(&self) {
        self.state().closed = true;
        self.wake();
    }

    /// Nothing more is done.
    pub(super) fn end(&self) {
        let mut state = self.state();
        state.closed = true;
        state.jobs.clear();
    }

    /// Everything that waits, when the thread was told to look; waits itself for that, at most so
    /// long when a time is given.
    pub(super) fn take(&self, patience: Option<Duration>) -> Taken {
        let mut state = self.state();
        loop {
            let called = std::mem::take(&mut state.called) || state.closed;
            if called && !state.jobs.is_empty() {
                let jobs = std::mem::take(&mut state.jobs);
                let weight = jobs.iter().map(Job::weight).sum();
                return Taken::Jobs(jobs, weight);
            }
            if state.closed {
                return Taken::Closed;
            }
            let Some(patience) = patience else {
                let waited = self.work.wait(state);
                state = waited.unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let waited = self.work.wait_timeout(state, patience);
            let (guard, result) = waited.unwrap_or_else(PoisonError::into_inner);
            state = guard;
            if result.timed_out() && state.jobs.is_empty() && !state.closed {
                return Taken::Idle;
            }
        }
    }

    /// So much of what was taken is done.
    pub(super) fn done(&self, weight: Weight) {
        self.waiting.fetch_sub(weight.written, Ordering::Relaxed);
        self.adopting.fetch_sub(weight.adopted, Ordering::Relaxed);
    }

    /// Bytes that wait or are being written.
    pub(super) fn waiting_bytes(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Bytes of files that are to be taken over.
    pub(super) fn adopting_bytes(&self) -> u64 {
        self.adopting.load(Ordering::Relaxed)
    }

    /// Messages that are kept, and their bytes.
    pub(super) fn usage(&self) -> (u64, u64) {
        let entries = self.entries.load(Ordering::Relaxed);
        (entries, self.bytes.load(Ordering::Relaxed))
    }

    /// What is wrong.
    pub(super) fn trouble(&self) -> MutexGuard<'_, Trouble> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sums of payloads.
    pub(super) fn digests(&self) -> &Digests {
        &self.digests
    }

    pub(super) fn set_usage(&self, entries: u64, bytes: u64) {
        self.entries.store(entries, Ordering::Relaxed);
        self.bytes.store(bytes, Ordering::Relaxed);
    }
}
