//! The store behind the core: messages in memory, large payloads in files.
//!
//! Owns `payloads/` in the data directory and the limit on what may be kept. Messages live as
//! long as the process; payloads above
//! [`receptor_proto::packet::SEGMENT_MAX`] are files, so that memory does not grow
//! with them. All file work happens off the engine's thread, in the order in which it was asked
//! for, one batch at a time: what comes up while a batch runs becomes the next one. What a run
//! of the daemon left behind is swept when the next one starts.
//!
//! ```text
//!   <data-dir>/payloads/<entry, 16 hexadecimal digits>
//! ```

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

use bytes::Bytes;
use receptor_mesh::{EntryId, Loaded, PersistToken, Record};
use receptor_proto::packet::{Message, MessageKind};
use receptor_proto::{ErrorBody, ErrorCode, MessageId, NodeId};
use tokio::sync::oneshot;

use crate::task;

/// Bytes of messages kept in memory; payload files come on top and do not count here.
const MEMORY_MAX: u64 = 256 << 20;
/// What a message counts beside its body.
const RECORD_OVERHEAD: u64 = 256;
/// Payload files kept open between two batches.
const OPEN_FILES_MAX: usize = 64;
/// Jobs of one batch, so that its results come soon.
const BATCH_MAX: usize = 64;

/// How much is kept, and how much may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Usage {
    /// Messages and payloads.
    pub(crate) entries: u64,
    /// Their bytes.
    pub(crate) bytes: u64,
    /// The limit of bytes.
    pub(crate) max_bytes: u64,
}

/// What was done, for the core.
#[derive(Debug)]
pub(crate) enum Done {
    /// Call `handle_persisted` or `handle_persist_failed`.
    Persisted(PersistToken, Result<(), ErrorBody>),
    /// Call `handle_fetched`.
    Fetched(EntryId, u64, Result<Bytes, ErrorBody>),
    /// Call `handle_appended`.
    Appended(EntryId, u64, Result<(), ErrorBody>),
    /// A small result of this work was read from its file, which is gone.
    Loaded(MessageId, Result<Bytes, ErrorBody>),
}

/// Takes what was done, in order.
pub(crate) type OnDone = Box<dyn Fn(Vec<Done>)>;

/// See the module. Clones are the same store.
#[derive(Clone)]
pub(crate) struct Store(Rc<RefCell<State>>);

struct State {
    dir: PathBuf,
    max_bytes: u64,
    memory: u64,
    /// Bodies of messages.
    bodies: HashMap<EntryId, Bytes>,
    /// Requests that were sent from here, without their bodies, and when they were written.
    requests: BTreeMap<EntryId, (NodeId, Box<Message>, Instant)>,
    /// Sizes of payload files.
    sizes: HashMap<EntryId, u64>,
    file_bytes: u64,
    pending: Vec<Job>,
    /// `None` while a batch runs.
    files: Option<Files>,
    on_done: Option<OnDone>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({:?})", self.usage())
    }
}

/// One piece of file work.
struct Job {
    entry: EntryId,
    work: Work,
    reply: Reply,
}

enum Work {
    Write { offset: u64, bytes: Bytes },
    Read { offset: u64, length: usize },
    Adopt { from: PathBuf },
    Load { from: PathBuf },
    Delete,
}

enum Reply {
    Core,
    Work(MessageId),
    Waiter(oneshot::Sender<Result<Bytes, ErrorBody>>),
    None,
}

impl Store {
    /// Opens the store in a data directory and removes what an earlier run left there.
    ///
    /// # Errors
    ///
    /// When the directory cannot be made or read.
    pub(crate) fn open(data_dir: &Path, max_bytes: u64) -> io::Result<Self> {
        let dir = data_dir.join("payloads");
        DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        let mut swept = 0u64;
        for file in fs::read_dir(&dir)? {
            fs::remove_file(file?.path())?;
            swept += 1;
        }
        if swept > 0 {
            tracing::info!(files = swept, "payloads of an earlier run were removed");
        }
        Ok(Self(Rc::new(RefCell::new(State {
            dir: dir.clone(),
            max_bytes,
            memory: 0,
            bodies: HashMap::new(),
            requests: BTreeMap::new(),
            sizes: HashMap::new(),
            file_bytes: 0,
            pending: Vec::new(),
            files: Some(Files {
                dir,
                open: HashMap::new(),
            }),
            on_done: None,
        }))))
    }

    /// Who is told what was done for the core.
    pub(crate) fn set_on_done(&self, on_done: OnDone) {
        self.0.borrow_mut().on_done = Some(on_done);
    }

    /// Keeps records. `Some`: done at once; otherwise [`Done::Persisted`] follows.
    pub(crate) fn persist(
        &self,
        token: PersistToken,
        records: Vec<Record>,
    ) -> Option<(PersistToken, Result<(), ErrorBody>)> {
        let mut state = self.0.borrow_mut();
        let size = |record: &Record| match record {
            Record::Outgoing { message, .. } | Record::Incoming { message, .. } => {
                RECORD_OVERHEAD + message.body.len() as u64
            }
            Record::Started { .. } | Record::Received { .. } => 0,
        };
        let sum: u64 = records.iter().map(size).sum();
        if state.memory + sum > MEMORY_MAX || !state.has_room(sum) {
            return Some((token, Err(full())));
        }
        let now = Instant::now();
        for record in records {
            let (entry, mut message, recipient) = match record {
                Record::Outgoing {
                    entry,
                    message,
                    recipient,
                } => (entry, message, Some(recipient)),
                Record::Incoming { entry, message, .. } => (entry, message, None),
                Record::Started { .. } | Record::Received { .. } => continue,
            };
            // A slice of a read buffer would keep the whole buffer.
            let body = Bytes::copy_from_slice(&message.body);
            if let Some(recipient) = recipient
                && matches!(message.kind, MessageKind::Request { .. })
            {
                message.body = Bytes::new();
                let request = (recipient, Box::new(message), now);
                state.requests.insert(entry, request);
            }
            state.memory += RECORD_OVERHEAD + body.len() as u64;
            if let Some(old) = state.bodies.insert(entry, body) {
                state.memory -= RECORD_OVERHEAD + old.len() as u64;
            }
        }
        Some((token, Ok(())))
    }

    /// Forgets a message and its payload.
    pub(crate) fn remove(&self, entry: EntryId) {
        let mut state = self.0.borrow_mut();
        if let Some(body) = state.bodies.remove(&entry) {
            state.memory -= RECORD_OVERHEAD + body.len() as u64;
        }
        state.requests.remove(&entry);
        if let Some(size) = state.sizes.remove(&entry) {
            state.file_bytes -= size;
            state.pending.push(Job {
                entry,
                work: Work::Delete,
                reply: Reply::None,
            });
        }
        drop(state);
        self.kick();
    }

    /// For the core: reads a part. `Some`: at once; otherwise [`Done::Fetched`] follows.
    pub(crate) fn fetch(
        &self,
        entry: EntryId,
        offset: u64,
        length: usize,
    ) -> Option<Result<Bytes, ErrorBody>> {
        if let Some(body) = self.0.borrow().bodies.get(&entry)
            && !body.is_empty()
        {
            let start = usize::try_from(offset)
                .unwrap_or(usize::MAX)
                .min(body.len());
            let end = start.saturating_add(length).min(body.len());
            return Some(Ok(body.slice(start..end)));
        }
        self.push(entry, Work::Read { offset, length }, Reply::Core);
        None
    }

    /// For the core: requests to this node with entries from `first` to `last`, at most so many
    /// and so many bytes of bodies.
    pub(crate) fn load_page(
        &self,
        recipient: &NodeId,
        (first, last): (EntryId, EntryId),
        (most, bytes): (usize, usize),
    ) -> Loaded {
        let state = self.0.borrow();
        let now = Instant::now();
        let mut room = bytes;
        let mut records = Vec::new();
        let mut next = None;
        for (entry, (to, message, written)) in state.requests.range(first..=last) {
            if to != recipient {
                continue;
            }
            if records.len() == most {
                next = Some(*entry);
                break;
            }
            let mut message = (**message).clone();
            let age = now.saturating_duration_since(*written).as_millis();
            let age = u64::try_from(age).unwrap_or(u64::MAX);
            message.remaining_ms = message.remaining_ms.saturating_sub(age);
            if let Some(body) = state.bodies.get(entry)
                && let Some(left) = room.checked_sub(body.len())
            {
                room = left;
                message.body = body.clone();
            }
            records.push(Record::Outgoing {
                entry: *entry,
                recipient: to.clone(),
                message,
            });
        }
        Loaded { records, next }
    }

    /// For the core: writes a part; [`Done::Appended`] follows, or the error comes at once.
    pub(crate) fn append(
        &self,
        entry: EntryId,
        offset: u64,
        bytes: Bytes,
    ) -> Result<(), ErrorBody> {
        self.grow(entry, offset, bytes.len() as u64)?;
        self.push(entry, Work::Write { offset, bytes }, Reply::Core);
        Ok(())
    }

    /// For others: writes a part of a payload and waits until it is written.
    pub(crate) async fn write(
        &self,
        entry: EntryId,
        offset: u64,
        bytes: Bytes,
    ) -> Result<(), ErrorBody> {
        self.grow(entry, offset, bytes.len() as u64)?;
        self.ask(entry, Work::Write { offset, bytes }).await?;
        Ok(())
    }

    /// For others: reads a part of a payload. Shorter than asked for only at its end.
    pub(crate) async fn read(
        &self,
        entry: EntryId,
        offset: u64,
        length: usize,
    ) -> Result<Bytes, ErrorBody> {
        self.ask(entry, Work::Read { offset, length }).await
    }

    /// Takes a file of the same file system as a payload. Whoever reads the entry finds it.
    ///
    /// # Errors
    ///
    /// When there is no room for it; then the file is removed.
    pub(crate) fn adopt(&self, entry: EntryId, from: PathBuf, size: u64) -> Result<(), ErrorBody> {
        if let Err(error) = self.grow(entry, 0, size) {
            let _ = fs::remove_file(from);
            return Err(error);
        }
        self.push(entry, Work::Adopt { from }, Reply::None);
        Ok(())
    }

    /// Reads a small file and removes it; [`Done::Loaded`] follows.
    pub(crate) fn load(&self, work: MessageId, from: PathBuf) {
        // No entry of the core: ids begin at 1.
        self.push(EntryId(0), Work::Load { from }, Reply::Work(work));
    }

    /// The file of a stored payload.
    pub(crate) fn path(&self, entry: EntryId) -> PathBuf {
        path(&self.0.borrow().dir, entry)
    }

    /// What is kept.
    pub(crate) fn usage(&self) -> Usage {
        let state = self.0.borrow();
        let only_files = state
            .sizes
            .keys()
            .filter(|entry| !state.bodies.contains_key(entry))
            .count();
        Usage {
            entries: (state.bodies.len() + only_files) as u64,
            bytes: state.memory + state.file_bytes,
            max_bytes: state.max_bytes,
        }
    }

    fn grow(&self, entry: EntryId, offset: u64, length: u64) -> Result<(), ErrorBody> {
        let mut state = self.0.borrow_mut();
        let before = state.sizes.get(&entry).copied().unwrap_or(0);
        let after = before.max(offset.saturating_add(length));
        if !state.has_room(after - before) {
            return Err(full());
        }
        state.file_bytes += after - before;
        state.sizes.insert(entry, after);
        Ok(())
    }

    async fn ask(&self, entry: EntryId, work: Work) -> Result<Bytes, ErrorBody> {
        let (reply, answer) = oneshot::channel();
        self.push(entry, work, Reply::Waiter(reply));
        answer.await.unwrap_or_else(|_| {
            let text = "the store has ended";
            Err(ErrorBody::new(ErrorCode::Internal, text))
        })
    }

    fn push(&self, entry: EntryId, work: Work, reply: Reply) {
        self.0.borrow_mut().pending.push(Job { entry, work, reply });
        self.kick();
    }

    /// Starts a batch unless one runs.
    fn kick(&self) {
        let mut state = self.0.borrow_mut();
        if state.pending.is_empty() {
            return;
        }
        let Some(files) = state.files.take() else {
            return;
        };
        let store = self.clone();
        drop(state);
        task::spawn("store", store.run(files));
    }

    async fn run(self, mut files: Files) {
        loop {
            let jobs = {
                let mut state = self.0.borrow_mut();
                if state.pending.is_empty() {
                    state.files = Some(files);
                    return;
                }
                let count = state.pending.len().min(BATCH_MAX);
                state.pending.drain(..count).collect::<Vec<_>>()
            };
            let batch = tokio::task::spawn_blocking(move || {
                let results = jobs
                    .into_iter()
                    .map(|job| {
                        let result = files.work(job.entry, &job.work);
                        (job, result)
                    })
                    .collect::<Vec<_>>();
                (files, results)
            });
            let Ok((back, results)) = batch.await else {
                // Only when the runtime ends.
                return;
            };
            files = back;
            self.deliver(results);
        }
    }

    fn deliver(&self, results: Vec<(Job, io::Result<Bytes>)>) {
        let mut done = Vec::new();
        for (job, result) in results {
            let Job { entry, work, reply } = job;
            let result = result.map_err(|error| io_error(&error));
            match (reply, work) {
                (Reply::Core, Work::Write { offset, bytes }) => {
                    let end = offset + bytes.len() as u64;
                    done.push(Done::Appended(entry, end, result.map(|_| ())));
                }
                (Reply::Core, Work::Read { offset, .. }) => {
                    done.push(Done::Fetched(entry, offset, result));
                }
                (Reply::Waiter(waiter), _) => {
                    let _ = waiter.send(result);
                }
                (Reply::Work(work), _) => done.push(Done::Loaded(work, result)),
                (Reply::Core, Work::Delete | Work::Adopt { .. } | Work::Load { .. })
                | (Reply::None, _) => {
                    if let Err(error) = result {
                        tracing::warn!(entry = entry.0, %error, "a payload was not moved or removed");
                    }
                }
            }
        }
        if !done.is_empty()
            && let Some(on_done) = &self.0.borrow().on_done
        {
            on_done(done);
        }
    }
}

impl State {
    fn has_room(&self, more: u64) -> bool {
        self.memory + self.file_bytes + more <= self.max_bytes
    }
}

fn full() -> ErrorBody {
    let text = "the store is full (spool.max-bytes)";
    ErrorBody::new(ErrorCode::Busy, text)
}

fn io_error(error: &io::Error) -> ErrorBody {
    let text = format!("the store cannot be used: {error}");
    ErrorBody::new(ErrorCode::Internal, text)
}

fn path(dir: &Path, entry: EntryId) -> PathBuf {
    dir.join(format!("{:016x}", entry.0))
}

/// The files, on whatever thread the batch runs.
struct Files {
    dir: PathBuf,
    open: HashMap<EntryId, File>,
}

impl Files {
    fn work(&mut self, entry: EntryId, work: &Work) -> io::Result<Bytes> {
        match work {
            Work::Write { offset, bytes } => {
                self.file(entry, true)?.write_all_at(bytes, *offset)?;
                Ok(Bytes::new())
            }
            Work::Read { offset, length } => {
                let file = self.file(entry, false)?;
                let mut buffer = vec![0; *length];
                let mut filled = 0;
                while filled < buffer.len() {
                    match file.read_at(&mut buffer[filled..], offset + filled as u64)? {
                        0 => break,
                        count => filled += count,
                    }
                }
                buffer.truncate(filled);
                Ok(buffer.into())
            }
            Work::Adopt { from } => {
                fs::rename(from, path(&self.dir, entry))?;
                Ok(Bytes::new())
            }
            Work::Load { from } => {
                let bytes = fs::read(from)?;
                fs::remove_file(from)?;
                Ok(bytes.into())
            }
            Work::Delete => {
                self.open.remove(&entry);
                match fs::remove_file(path(&self.dir, entry)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                    _ => Ok(Bytes::new()),
                }
            }
        }
    }

    fn file(&mut self, entry: EntryId, create: bool) -> io::Result<&File> {
        if self.open.len() >= OPEN_FILES_MAX && !self.open.contains_key(&entry) {
            self.open.clear();
        }
        match self.open.entry(entry) {
            std::collections::hash_map::Entry::Occupied(found) => Ok(found.into_mut()),
            std::collections::hash_map::Entry::Vacant(free) => {
                let file = OpenOptions::new()
                    .read(true)
                    .write(true)
                    .create(create)
                    .truncate(false)
                    .mode(0o600)
                    .open(path(&self.dir, entry))?;
                Ok(free.insert(file))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, test);
    }

    #[test]
    fn payloads_are_written_read_and_removed_in_order() {
        run(async {
            let dir = tempfile::tempdir().unwrap();
            let store = Store::open(dir.path(), 1 << 20).unwrap();
            let entry = EntryId(7);
            store
                .write(entry, 0, Bytes::from_static(b"hello "))
                .await
                .unwrap();
            store
                .write(entry, 6, Bytes::from_static(b"world"))
                .await
                .unwrap();
            assert_eq!(&store.read(entry, 3, 100).await.unwrap()[..], b"lo world");
            assert_eq!(store.usage().bytes, 11);
            store.remove(entry);
            assert!(store.read(entry, 0, 1).await.is_err());
            assert_eq!(
                store.usage(),
                Usage {
                    entries: 0,
                    bytes: 0,
                    max_bytes: 1 << 20
                }
            );
        });
    }

    #[test]
    fn the_core_hears_of_what_it_asked_for() {
        run(async {
            let dir = tempfile::tempdir().unwrap();
            let store = Store::open(dir.path(), 1 << 20).unwrap();
            let heard = Rc::new(RefCell::new(Vec::new()));
            let (heard2, notify) = (Rc::clone(&heard), Rc::new(tokio::sync::Notify::new()));
            let told = Rc::clone(&notify);
            store.set_on_done(Box::new(move |done| {
                heard2.borrow_mut().extend(done);
                told.notify_one();
            }));
            store
                .append(EntryId(1), 0, Bytes::from_static(b"abc"))
                .unwrap();
            assert!(store.fetch(EntryId(1), 1, 2).is_none());
            while heard.borrow().len() < 2 {
                notify.notified().await;
            }
            let heard = heard.borrow();
            assert!(matches!(heard[0], Done::Appended(EntryId(1), 3, Ok(()))));
            let Done::Fetched(_, 1, Ok(bytes)) = &heard[1] else {
                panic!("{heard:?}");
            };
            assert_eq!(&bytes[..], b"bc");
        });
    }

    #[test]
    fn a_full_store_says_so() {
        run(async {
            let dir = tempfile::tempdir().unwrap();
            let store = Store::open(dir.path(), 10).unwrap();
            let error = store
                .write(EntryId(1), 0, Bytes::from_static(b"01234567890"))
                .await
                .unwrap_err();
            assert_eq!(error.code, ErrorCode::Busy);
            store
                .write(EntryId(1), 0, Bytes::from_static(b"0123456789"))
                .await
                .unwrap();
        });
    }

    #[test]
    fn what_an_earlier_run_left_is_swept() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("payloads")).unwrap();
        let left = dir.path().join("payloads/00000000000000ff");
        fs::write(&left, "x").unwrap();
        Store::open(dir.path(), 10).unwrap();
        assert!(!left.exists());
    }
}
