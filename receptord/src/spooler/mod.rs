//! The durable store as the engine and the sessions reach it.
//!
//! Owns the thread that owns the [`Spool`], and the bounded queue to it. Whoever asks for
//! something never waits for the disk: the engine is told later, in order, what was done
//! ([`Done`]), and sessions wait for their own answer alone. The thread takes everything that is
//! queued, writes and syncs it as one, and reports all of it, so that what comes up during one
//! sync shares the next. What nobody waits for does not even call it: it goes along with the next
//! that somebody waits for, or a moment later. Payloads of their own files are synced by a second thread while they
//! grow, so that nobody else's sync waits for them. Decides nothing about a message; what is volatile never comes here.
//!
//! ```text
//!                                                          ┌────────┐
//!                                                          │ syncer │ (thread)
//!                                                          └────────┘
//!                                                         files │▲ done
//!   engine ──Persist, Remove, Fetch, Append──▶ ┌───────┐ ─▶ ┌─────────┐
//!   sessions ──────────write, read───────────▶ │ queue │    │ keeper  │──▶ <data-dir>/spool
//!   engine ◀─────────Done, in order──────────  └───────┘ ◀─ │ (thread)│
//!   sessions ◀───────their answers───────────────────────── └─────────┘
//! ```

mod digests;
mod keeper;
mod queue;
mod syncer;

use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use nix::sys::statvfs::statvfs;
use receptor_mesh::{EntryId, LoadToken, Loaded, PersistToken, Record};
use receptor_proto::control::SpoolDamage;
use receptor_proto::packet::{Message, Piece};
use receptor_proto::{ErrorBody, ErrorCode, MessageId, NodeId};
use receptor_spool::{
    FsDisk, Limits, LostRequest, MEMO_FIRST, Options, Report, Spool, SpoolError, Sums,
};
use tokio::sync::{mpsc, oneshot};

pub(crate) use self::digests::Digest;
use self::keeper::Keeper;
pub(crate) use self::queue::{Answer, Trouble};
use self::queue::{Job, Queue, Reply};
use self::syncer::Syncer;
use crate::config;

/// The spool's directory in the data directory.
const DIR: &str = "spool";
/// Bytes that may wait for the disk before further messages are refused: much more than is
/// written while a disk that works syncs once.
const QUEUE_MAX: u64 = 64 << 20;
/// What a record counts in the queue beside its body.
const RECORD: u64 = 256;
/// How long what nobody waits for waits for company: longer than a client next door takes to send
/// its next message when it has its answer, so that both share a sync.
const LINGER: Duration = Duration::from_millis(2);
/// So much of it is company enough.
const LINGER_MAX: u64 = 64 << 10;
/// Segments that the spool is to have room for: their size follows from that.
const SEGMENTS: u64 = 32;
/// The smallest segment, in bytes: a few of the largest messages.
const SEGMENT_LEAST: u64 = 256 << 10;
/// The largest: beyond that nothing gets faster, and more is in memory while one is read.
const SEGMENT_MOST: u64 = 16 << 20;
/// How long the start waits for somebody who reads the spool, such as `receptorctl spool list
/// --data-dir`: a million messages are read in a few seconds.
const READER_PATIENCE: Duration = Duration::from_secs(15);
/// How often it is looked meanwhile.
const READER_PAUSE: Duration = Duration::from_millis(20);
/// Reports that may wait for the engine, each of a whole batch. The thread waits then.
const REPORTS: usize = 64;

/// How much is kept, and how much may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Usage {
    /// Messages.
    pub(crate) entries: u64,
    /// Their bytes, payloads included.
    pub(crate) bytes: u64,
    /// The limit of bytes.
    pub(crate) max_bytes: u64,
}

/// What was done, for the engine.
#[derive(Debug)]
pub(crate) enum Done {
    /// Call `handle_persisted` or `handle_persist_failed`.
    Persisted(PersistToken, Result<(), ErrorBody>),
    /// Call `handle_fetched`.
    Fetched(EntryId, u64, Result<Piece, ErrorBody>),
    /// Call `handle_appended`.
    Appended(EntryId, u64, Result<(), ErrorBody>),
    /// A small result of this work was read from its file, which is gone.
    Loaded(MessageId, Result<Bytes, ErrorBody>),
    /// Call `handle_loaded`.
    Page(LoadToken, Result<Loaded, ErrorBody>),
}

/// What was done, in order, batch by batch.
pub(crate) type Reports = mpsc::Receiver<Vec<Done>>;

/// See the module. Clones are the same store.
#[derive(Clone)]
pub(crate) struct Store(Rc<Face>);

struct Face {
    dir: PathBuf,
    max_bytes: u64,
    queue: Arc<Queue>,
    /// The thread is not woken for every job of one turn.
    held: Cell<bool>,
    /// There are jobs that it is to be woken for.
    unseen: Cell<bool>,
    /// There are others, which wait for company until then, and what they count.
    linger: Cell<Option<Instant>>,
    lingering: Cell<u64>,
    next_memo: Cell<u64>,
    keeper: RefCell<Option<std::thread::JoinHandle<()>>>,
}

impl Drop for Face {
    fn drop(&mut self) {
        self.queue.close();
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({:?})", self.usage())
    }
}

/// An opened spool that is not in use yet: its records are for the core.
pub(crate) struct Recovered {
    spool: Spool<FsDisk>,
    lost: Vec<LostRequest>,
}

impl std::fmt::Debug for Recovered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Recovered({:?})", self.spool.usage())
    }
}

impl Recovered {
    /// Everything that is stored. What cannot be read is reported and left out.
    pub(crate) fn records(&self) -> impl Iterator<Item = Record> {
        self.spool.records(now_ms()).filter_map(|record| {
            record
                .inspect_err(|error| tracing::warn!(%error, "a stored message cannot be used"))
                .ok()
        })
    }
}

impl Recovered {
    /// What was kept by [`Store::keep_memo`], in no order.
    pub(crate) fn memos(&self) -> impl Iterator<Item = (EntryId, Bytes)> {
        self.spool.memos()
    }

    /// Requests that cannot be used any more.
    pub(crate) fn lost(&self) -> &[LostRequest] {
        &self.lost
    }

    /// Payloads that were on their way in: the message as an incoming record, and how much there
    /// is. Those that are not wanted must be removed.
    pub(crate) fn unfinished(&self) -> Vec<(Record, u64)> {
        self.spool.unfinished(now_ms())
    }
}

impl Store {
    /// Whether an earlier run left something to be read at the start.
    pub(crate) fn is_used(data_dir: &Path) -> bool {
        let segments = std::fs::read_dir(data_dir.join(DIR).join("segments"));
        segments.is_ok_and(|mut names| names.next().is_some())
    }

    /// Opens the spool in a data directory and recovers what an earlier run left there. Nothing
    /// is done of what is asked until [`Self::start`].
    ///
    /// # Errors
    ///
    /// When it is in use, is of a newer version, or the disk fails. Damage is no error.
    pub(crate) fn open(
        data_dir: &Path,
        config: &config::Spool,
    ) -> Result<(Self, Recovered), SpoolError> {
        let dir = data_dir.join(DIR);
        let mut options = Options::new(fastrand::u64(..));
        options.segment_bytes = segment_bytes(config.max_bytes.min(room(data_dir)));
        options.limits = Limits {
            max_bytes: config.max_bytes,
            max_entries: config.max_entries,
            max_bytes_per_recipient: config.max_bytes_per_recipient,
            max_entries_per_recipient: config.max_entries_per_recipient,
        };
        let began = Instant::now();
        let (spool, report) = open(&dir, &options)?;
        for damage in &report.damage {
            let kept = damage.kept.as_ref().map(|kept| dir.join(kept));
            let kept = kept.as_ref().map(|kept| kept.display().to_string());
            tracing::warn!(
                file = %dir.join(&damage.file).display(),
                set_aside = kept.unwrap_or_default(),
                "a part of the spool is damaged: {damage}"
            );
        }
        if report.orphans > 0 {
            let files = report.orphans;
            tracing::info!(files, "payloads that no message owns were removed");
        }
        if report.usage.entries > 0 {
            tracing::info!(
                entries = report.usage.entries,
                bytes = report.usage.bytes,
                took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
                "messages of an earlier run are kept"
            );
        }
        let trouble = found(&dir, &report);
        let queue = Queue::new(report.usage.entries, report.usage.bytes, trouble);
        let next_memo = spool.last_memo().map_or(MEMO_FIRST, |last| last.0 + 1);
        let store = Self(Rc::new(Face {
            dir,
            max_bytes: config.max_bytes,
            queue: Arc::new(queue),
            held: Cell::new(false),
            unseen: Cell::new(false),
            linger: Cell::new(None),
            lingering: Cell::new(0),
            next_memo: Cell::new(next_memo),
            keeper: RefCell::new(None),
        }));
        let lost = report.lost;
        Ok((store, Recovered { spool, lost }))
    }

    /// Starts the thread. What it did comes through [`Reports`].
    ///
    /// # Errors
    ///
    /// When the system gives no thread.
    pub(crate) fn start(&self, recovered: Recovered) -> std::io::Result<Reports> {
        let (reports, receiver) = mpsc::channel(REPORTS);
        let syncer = Syncer::start(Arc::clone(&self.0.queue))?;
        let keeper = Keeper::new(recovered.spool, Arc::clone(&self.0.queue), syncer, reports);
        let thread = std::thread::Builder::new().name("spool".to_owned());
        let handle = thread.spawn(move || keeper.run())?;
        *self.0.keeper.borrow_mut() = Some(handle);
        Ok(receiver)
    }

    /// From here to [`Self::release`] the thread is not woken: what a turn of the engine asks
    /// for becomes one batch. Nobody must wait for the disk in between.
    pub(crate) fn hold(&self) {
        self.0.held.set(true);
    }

    /// Whether [`Self::release`] will wake the thread for something that somebody waits for.
    pub(crate) fn is_called_for(&self) -> bool {
        self.0.unseen.get()
    }

    /// Lets the thread have what was asked for since [`Self::hold`], and what has waited for
    /// company long enough.
    pub(crate) fn release(&self) {
        let face = &*self.0;
        face.held.set(false);
        let is_due = |until| until <= Instant::now();
        if face.unseen.get() || face.linger.get().is_some_and(is_due) {
            self.wake();
        }
    }

    /// When [`Self::release`] is to be called at the latest.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.0.linger.get()
    }

    /// Keeps records, those that are not urgent with the next that are, or a moment later. `Some`:
    /// they are refused at once; otherwise [`Done::Persisted`] follows.
    pub(crate) fn persist(
        &self,
        token: PersistToken,
        records: Vec<Record>,
        urgent: bool,
    ) -> Option<(PersistToken, Result<(), ErrorBody>)> {
        let size = |record: &Record| match record {
            Record::Outgoing { message, .. }
            | Record::Incoming { message, .. }
            | Record::Transit { message, .. } => RECORD + message.body.len() as u64,
            Record::Started { .. } | Record::Received { .. } => 0,
        };
        let bytes: u64 = records.iter().map(size).sum();
        // What frees room, or ends works, is let through.
        if bytes > 0 && self.0.queue.waiting_bytes() + bytes > QUEUE_MAX {
            let text = "the disk of the spool is too slow for what is asked of it";
            return Some((token, Err(ErrorBody::new(ErrorCode::Busy, text))));
        }
        let job = Job::Persist {
            token,
            records,
            bytes,
        };
        if urgent {
            self.push(job);
        } else {
            self.push_along(job, RECORD + bytes);
        }
        None
    }

    /// Keeps a few bytes, at most [`receptor_spool::MEMO_MAX`], until their entry is removed; what is asked for after
    /// this is never durable without them. A disk that fails gets them later.
    pub(crate) fn keep_memo(&self, bytes: Bytes) -> EntryId {
        let entry = EntryId(self.0.next_memo.get());
        self.0.next_memo.set(entry.0 + 1);
        let size = RECORD + bytes.len() as u64;
        self.push_along(Job::Memo(entry, bytes), size);
        entry
    }

    /// Forgets a message and its payload, or a memo.
    pub(crate) fn remove(&self, entry: EntryId) {
        self.push_along(Job::Remove(entry), RECORD);
    }

    /// Answers these when everything that was asked for before is durable.
    pub(crate) fn settle(&self, answers: Vec<Answer>) {
        self.push(Job::Settle(answers));
    }

    /// For the core: reads a part; [`Done::Fetched`] follows.
    pub(crate) fn fetch(&self, entry: EntryId, offset: u64, length: usize) {
        self.push(Job::Read {
            entry,
            offset,
            length,
            reply: Reply::Engine,
        });
    }

    /// For the core: reads messages to a recipient with entries in this range, at most so many
    /// and so many bytes of bodies; [`Done::Page`] follows.
    pub(crate) fn load_page(
        &self,
        token: LoadToken,
        recipient: NodeId,
        range: (EntryId, EntryId),
        most: (usize, usize),
    ) {
        self.push(Job::Page {
            token,
            recipient,
            range,
            most,
        });
    }

    /// For the core: parts that are appended to this entry are of a message. What is durable of
    /// them is among [`Recovered::unfinished`] after a restart.
    pub(crate) fn begin(&self, entry: EntryId, origin: NodeId, message: Message) {
        let record = Record::Incoming {
            entry,
            origin,
            message,
        };
        self.push(Job::Begin(Box::new(record)));
    }

    /// For the core: writes a part; [`Done::Appended`] follows, for the last one of what was said
    /// to [begin](Self::begin) when all are durable.
    pub(crate) fn append(&self, entry: EntryId, offset: u64, piece: Piece) {
        self.push(Job::Append {
            entry,
            offset,
            bytes: piece.bytes,
            sum: Some(piece.sum),
            reply: Reply::Engine,
        });
    }

    /// For others: writes a part of a payload behind what is there. It is durable with the message
    /// that it belongs to.
    pub(crate) fn write(&self, entry: EntryId, offset: u64, bytes: Bytes) -> Writing {
        let (reply, answer) = oneshot::channel();
        self.push(Job::Append {
            entry,
            offset,
            bytes,
            sum: None,
            reply: Reply::Waiter(reply),
        });
        Writing(answer)
    }

    /// For others: whether there is room for a payload of this size to this recipient. That it is
    /// when the message is written nobody says: others may take it.
    pub(crate) async fn room_for(
        &self,
        recipient: Option<NodeId>,
        size: u64,
    ) -> Result<(), ErrorBody> {
        let (reply, answer) = oneshot::channel();
        self.push(Job::RoomFor {
            recipient,
            size,
            reply,
        });
        wait(answer).await.map(|_| ())
    }

    /// For others: waits until all parts of a payload are durable, so that the message needs
    /// not wait for that.
    pub(crate) async fn finish(&self, entry: EntryId) -> Result<(), ErrorBody> {
        let (reply, answer) = oneshot::channel();
        self.push(Job::Finish { entry, reply });
        wait(answer).await.map(|_| ())
    }

    /// For others: reads a part of a payload, at most
    /// [`receptor_proto::packet::SEGMENT_MAX`] bytes of it; nothing at its end.
    pub(crate) async fn read(
        &self,
        entry: EntryId,
        offset: u64,
        length: usize,
    ) -> Result<Bytes, ErrorBody> {
        let (reply, answer) = oneshot::channel();
        self.push(Job::Read {
            entry,
            offset,
            length,
            reply: Reply::Waiter(reply),
        });
        wait(answer).await.map(|piece| piece.bytes)
    }

    /// Takes a file of the same file system as a payload, with its checksums. Whoever reads the
    /// entry finds it.
    ///
    /// # Errors
    ///
    /// When there is no room for it; then the file is removed.
    pub(crate) fn adopt(
        &self,
        entry: EntryId,
        from: PathBuf,
        size: u64,
        sums: Sums,
    ) -> Result<(), ErrorBody> {
        let queue = &self.0.queue;
        let coming = queue.waiting_bytes() + queue.adopting_bytes();
        if queue.usage().1 + coming.saturating_add(size) > self.0.max_bytes {
            let _ = std::fs::remove_file(from);
            let max = self.0.max_bytes;
            return Err(refusal(&SpoolError::Full {
                limit: "max-bytes",
                max,
            }));
        }
        self.push(Job::Adopt {
            entry,
            from,
            size,
            sums,
        });
        Ok(())
    }

    /// The payload of this entry is damaged, as somebody who read its file found.
    pub(crate) fn set_aside(&self, entry: EntryId) {
        self.push(Job::SetAside(entry));
    }

    /// What is wrong with it.
    pub(crate) fn trouble(&self) -> Trouble {
        self.0.queue.trouble().clone()
    }

    /// Others lack room on the disk: the spool gives back what it can do without.
    pub(crate) fn tighten(&self) {
        self.push(Job::Tighten);
    }

    /// Reads a small file and removes it; [`Done::Loaded`] follows.
    pub(crate) fn load(&self, work: MessageId, from: PathBuf) {
        self.push(Job::Load { work, from });
    }

    /// The file of a stored payload.
    pub(crate) fn path(&self, entry: EntryId) -> PathBuf {
        self.0.dir.join(receptor_spool::payload_path(entry))
    }

    /// The SHA-256 of a stored payload as it came, if it came whole since the start. What the disk has of it
    /// may be something else by now.
    pub(crate) fn digest(&self, entry: EntryId) -> Option<Digest> {
        self.0.queue.digests().get(entry)
    }

    /// What is kept.
    pub(crate) fn usage(&self) -> Usage {
        let (entries, bytes) = self.0.queue.usage();
        Usage {
            entries,
            bytes,
            max_bytes: self.0.max_bytes,
        }
    }

    /// Does what was asked for until now, makes it durable and ends. What is asked afterwards
    /// is not done.
    pub(crate) async fn close(&self) {
        let (reply, ended) = oneshot::channel();
        self.push(Job::Close(reply));
        self.release();
        if ended.await.is_err() {
            tracing::debug!("the spool had ended before");
        }
        if let Some(keeper) = self.0.keeper.borrow_mut().take() {
            let _ = keeper.join();
        }
    }

    fn push(&self, job: Job) {
        self.0.queue.push(job);
        if self.0.held.get() {
            self.0.unseen.set(true);
        } else {
            self.wake();
        }
    }

    /// The same of what nobody waits for: it goes along with the next that somebody waits for.
    /// Only in a turn of the engine, which looks at [`Self::due`] after it.
    fn push_along(&self, job: Job, size: u64) {
        let face = &*self.0;
        let lingering = face.lingering.get() + size;
        if lingering > LINGER_MAX || !face.held.get() {
            self.push(job);
            return;
        }
        face.queue.push(job);
        face.lingering.set(lingering);
        if face.linger.get().is_none() {
            face.linger.set(Some(Instant::now() + LINGER));
        }
    }

    fn wake(&self) {
        let face = &*self.0;
        face.unseen.set(false);
        face.linger.set(None);
        face.lingering.set(0);
        face.queue.wake();
    }
}

/// Segments for a spool of at most so many bytes: one is written to and two are in reserve, of
/// which a small disk must have room for more than a few.
fn segment_bytes(most: u64) -> u64 {
    let share = (most / SEGMENTS).clamp(SEGMENT_LEAST, SEGMENT_MOST);
    1 << share.ilog2()
}

/// Bytes that the spool has and may take of its disk; any number when the system does not say.
fn room(data_dir: &Path) -> u64 {
    let Ok(disk) = statvfs(data_dir) else {
        return u64::MAX;
    };
    let files = std::fs::read_dir(data_dir.join(DIR).join("segments"));
    let files = files.into_iter().flatten().flatten();
    let own: u64 = files
        .filter_map(|file| Some(file.metadata().ok()?.len()))
        .sum();
    own.saturating_add(disk.blocks_available().saturating_mul(disk.fragment_size()))
}

/// Opens the spool, and waits for one who reads it: no other daemon has this data directory.
fn open(dir: &Path, options: &Options) -> Result<(Spool<FsDisk>, Report), SpoolError> {
    let deadline = Instant::now() + READER_PATIENCE;
    let mut told = false;
    loop {
        match Spool::open(FsDisk::new(dir), options) {
            Err(SpoolError::InUse) if Instant::now() < deadline => {
                if !std::mem::replace(&mut told, true) {
                    tracing::info!("the spool is being read by another process; waiting for that");
                }
                std::thread::sleep(READER_PAUSE);
            }
            opened => return opened,
        }
    }
}

/// A part of a payload that is being written, whether or not anybody waits for it.
#[derive(Debug)]
pub(crate) struct Writing(oneshot::Receiver<Result<Piece, ErrorBody>>);

impl Writing {
    /// Waits until it is, once.
    pub(crate) async fn done(&mut self) -> Result<(), ErrorBody> {
        wait(&mut self.0).await.map(|_| ())
    }
}

async fn wait(
    answer: impl Future<Output = Result<Result<Piece, ErrorBody>, oneshot::error::RecvError>>,
) -> Result<Piece, ErrorBody> {
    answer.await.unwrap_or_else(|_| {
        let text = "the spool has ended";
        Err(ErrorBody::new(ErrorCode::Internal, text))
    })
}

/// The wall clock, in milliseconds since 1970.
fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0))
}

/// What is damaged at the start: what was found now, and what earlier runs set aside.
fn found(dir: &Path, report: &Report) -> Trouble {
    let mut trouble = Trouble::default();
    for part in &report.damage {
        trouble.add(part.into());
    }
    let aside = std::fs::read_dir(dir.join(receptor_spool::CORRUPT));
    for file in aside.into_iter().flatten().flatten() {
        let name = format!("{}/{}", receptor_spool::CORRUPT, file.file_name().display());
        let is_known = report
            .damage
            .iter()
            .any(|part| part.kept.as_ref() == Some(&name));
        if is_known || name.ends_with(receptor_spool::SUMS) {
            continue;
        }
        trouble.add(SpoolDamage {
            message: format!(
                "{name} is what an earlier run set aside; remove it when nobody needs it"
            ),
            file: Some(name),
            offset: None,
            bytes: file.metadata().ok().map(|data| data.len()),
            entry: None,
        });
    }
    trouble
}

/// What the sender of a message is told.
fn refusal(error: &SpoolError) -> ErrorBody {
    let code = match error {
        SpoolError::Full { .. } | SpoolError::FullFor { .. } | SpoolError::DiskFull => {
            ErrorCode::Busy
        }
        SpoolError::TooLarge { .. } => ErrorCode::PayloadTooLarge,
        SpoolError::Damaged(_) | SpoolError::Changed(_) => ErrorCode::Damaged,
        SpoolError::Disk { .. }
        | SpoolError::NoEntry(_)
        | SpoolError::EntryExists(_)
        | SpoolError::OutOfOrder { .. }
        | SpoolError::Incomplete(_)
        | SpoolError::InUse
        | SpoolError::Newer { .. }
        | SpoolError::ReadOnly => ErrorCode::Internal,
    };
    ErrorBody::new(code, error.to_string())
}

#[cfg(test)]
mod tests;
