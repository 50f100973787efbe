//! One job as its function sees it: what it was asked, and what it may say.

use std::{
    borrow::Cow,
    fmt,
    fs::File,
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use receptor_proto::plugin::{
    Cancel, CancelReason, Data, Done, EncodeError, ErrorCode, Execute, FileRef, HostHello,
    JobError, Json, Level, Log, Payload, PluginMessage, Status, feature, is_relative_path,
};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    Error, Result,
    error::describe_json_error,
    output::{Output, SendError},
};

/// Largest payload that is read into memory when the action names no limit of its own.
const MAX_IN_MEMORY: u64 = 64 * 1024 * 1024;
/// Largest bytes that go in base64; above it a file is cheaper.
const MAX_BASE64: usize = 65_536;

/// How a job that ran has ended.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outcome {
    /// 0 for success, else the job's own result code.
    pub code: i64,
    /// A last word to the sender.
    pub result: Option<Json>,
}

impl Outcome {
    /// The job ran and all is well.
    pub fn ok() -> Self {
        Self::default()
    }

    /// The job ran and the answer is this code; 0 is success.
    pub fn code(code: i64) -> Self {
        Self { code, result: None }
    }

    /// Adds a last word to the sender.
    ///
    /// # Errors
    /// When the value has no JSON form.
    pub fn with_result<T: Serialize + ?Sized>(mut self, result: &T) -> Result<Self> {
        self.result = Some(Json::from_value(result)?);
        Ok(self)
    }
}

/// What all jobs of a process share.
pub(crate) struct Session {
    pub(crate) output: Output,
    pub(crate) host: HostHello,
    /// Absolute, so that a plugin may change its working directory.
    pub(crate) dir: PathBuf,
}

/// A job: its payload, and the way back to the sender.
pub struct Job {
    execute: Execute,
    session: Arc<Session>,
    stop: Arc<Stop>,
    max_payload: u64,
    /// Runs on the reading thread, which flushes when it has nothing more to read.
    inline: bool,
    files: AtomicU32,
}

impl Job {
    pub(crate) fn new(
        execute: Execute,
        session: Arc<Session>,
        stop: Arc<Stop>,
        max_payload: Option<u64>,
        inline: bool,
    ) -> Self {
        Self {
            execute,
            session,
            stop,
            max_payload: max_payload.unwrap_or(MAX_IN_MEMORY),
            inline,
            files: AtomicU32::new(0),
        }
    }

    /// The job's id.
    pub fn id(&self) -> &str {
        &self.execute.id
    }

    /// The action that was asked for.
    pub fn action(&self) -> &str {
        &self.execute.action
    }

    /// The node the message came from.
    pub fn sender(&self) -> &str {
        &self.execute.sender
    }

    /// 1 for the first attempt; more when an idempotent job is run again.
    pub fn attempt(&self) -> u32 {
        self.execute.attempt
    }

    /// The host ends the job after this time.
    pub fn timeout(&self) -> Option<Duration> {
        self.execute.timeout_ms.map(Duration::from_millis)
    }

    /// What the daemon said about itself.
    pub fn host(&self) -> &HostHello {
        &self.session.host
    }

    /// The plugin's part of the node's configuration; an absent one reads as `{}`.
    ///
    /// # Errors
    /// `internal` when it is not of that form.
    pub fn config<T: DeserializeOwned>(&self) -> Result<T> {
        let text = self.session.host.config.as_ref().map_or("{}", Json::get);
        serde_json::from_str(text).map_err(|e| {
            Error::internal(format!(
                "the node's configuration of this plugin: {}",
                describe_json_error(&e)
            ))
        })
    }

    /// The directory for files of the job, absolute; shared by all jobs of a serving plugin.
    pub fn dir(&self) -> &Path {
        &self.session.dir
    }

    /// The payload as it came; `None` when the action takes none.
    pub fn payload(&self) -> Option<&Payload> {
        self.execute.payload.as_ref()
    }

    /// The payload, as bytes to read, without holding it in memory.
    ///
    /// # Errors
    /// When the payload's file cannot be opened.
    pub fn reader(&self) -> Result<Box<dyn Read + '_>> {
        Ok(match &self.execute.payload {
            Some(Payload::File(file)) => Box::new(self.open(file)?),
            None | Some(Payload::Json(_) | Payload::Text(_) | Payload::Bytes(_)) => {
                Box::new(io::Cursor::new(self.bytes()?))
            }
        })
    }

    /// The payload's bytes; none when there is no payload.
    ///
    /// # Errors
    /// `payload-too-large` when it is a file over the action's limit, or 64 MiB without one.
    pub fn bytes(&self) -> Result<Cow<'_, [u8]>> {
        Ok(match &self.execute.payload {
            None => Cow::Borrowed(&[]),
            Some(Payload::Json(json)) => Cow::Borrowed(json.get().as_bytes()),
            Some(Payload::Text(text)) => Cow::Borrowed(text.as_bytes()),
            Some(Payload::Bytes(bytes)) => Cow::Borrowed(bytes),
            Some(Payload::File(file)) => {
                let mut bytes = Vec::new();
                self.open(file)?
                    .take(self.max_payload.saturating_add(1))
                    .read_to_end(&mut bytes)?;
                if u64::try_from(bytes.len()).is_ok_and(|len| len > self.max_payload) {
                    return Err(Error::new(
                        ErrorCode::PayloadTooLarge,
                        format!("the payload is larger than {} bytes", self.max_payload),
                    ));
                }
                Cow::Owned(bytes)
            }
        })
    }

    /// The payload as text.
    ///
    /// # Errors
    /// `invalid-payload` when it is not UTF-8, and as [`Self::bytes`].
    pub fn text(&self) -> Result<Cow<'_, str>> {
        match self.bytes()? {
            Cow::Borrowed(bytes) => std::str::from_utf8(bytes).map(Cow::Borrowed).ok(),
            Cow::Owned(bytes) => String::from_utf8(bytes).map(Cow::Owned).ok(),
        }
        .ok_or_else(|| Error::invalid_payload("the payload is not UTF-8"))
    }

    /// The payload, read from JSON.
    ///
    /// # Errors
    /// `invalid-payload` when it is not JSON or not of that form, and as [`Self::bytes`].
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(&self.bytes()?)
            .map_err(|e| Error::invalid_payload(describe_json_error(&e)))
    }

    /// Sends one result, as JSON.
    ///
    /// # Errors
    /// When the value has no JSON form, or the daemon no longer listens.
    pub fn data<T: Serialize + ?Sized>(&self, value: &T) -> Result<()> {
        self.data_json(Json::from_value(value)?)
    }

    /// Sends one result that is JSON already.
    ///
    /// # Errors
    /// When the daemon no longer listens.
    pub fn data_json(&self, json: Json) -> Result<()> {
        if self.too_large(json.get().len()) {
            return self.spill(json.get().as_bytes());
        }
        self.send_data(Payload::Json(json))
    }

    /// Sends one result, as text.
    ///
    /// # Errors
    /// When the daemon no longer listens.
    pub fn data_text(&self, text: impl Into<String>) -> Result<()> {
        let text = text.into();
        if self.too_large(text.len()) {
            return self.spill(text.as_bytes());
        }
        self.send_data(Payload::Text(text))
    }

    /// Sends one result, as bytes.
    ///
    /// # Errors
    /// When the daemon no longer listens.
    pub fn data_bytes(&self, bytes: impl Into<Vec<u8>>) -> Result<()> {
        let bytes = bytes.into();
        if bytes.len() > MAX_BASE64 && self.takes_files() {
            return self.spill(&bytes);
        }
        self.send_data(Payload::Bytes(bytes))
    }

    /// Sends a file below [`Self::dir`] as one result. The file belongs to the daemon from here
    /// on: do not touch it again. `name` is what a person would call it.
    ///
    /// # Errors
    /// When the file is not below [`Self::dir`] or not there, or the daemon no longer listens.
    pub fn data_file(&self, path: &Path, name: Option<&str>) -> Result<()> {
        let below = path.strip_prefix(self.dir()).unwrap_or(path);
        let Some(relative) = below.to_str().filter(|p| is_relative_path(p)) else {
            return Err(Error::internal(format!(
                "{} is not below the job directory",
                path.display()
            )));
        };
        let size = std::fs::symlink_metadata(self.dir().join(relative))?.len();
        self.send_data(Payload::File(FileRef {
            path: relative.to_owned(),
            name: name.map(str::to_owned),
            size: Some(size),
            sha256: None,
        }))
    }

    /// Says what the job is doing: one word, and one line for people. The latest wins.
    ///
    /// # Errors
    /// When the daemon no longer listens.
    pub fn status(&self, state: &str, message: &str) -> Result<()> {
        self.send_status(Status {
            state: Some(state.to_owned()),
            message: Some(message.to_owned()),
            ..Status::default()
        })
    }

    /// Says how far the job is.
    ///
    /// # Errors
    /// When the daemon no longer listens.
    pub fn progress(&self, done: u64, total: u64) -> Result<()> {
        self.send_status(Status {
            progress: Some((done, total)),
            ..Status::default()
        })
    }

    /// Says what the job is doing; the id is filled in.
    ///
    /// # Errors
    /// When the daemon no longer listens.
    pub fn send_status(&self, status: Status) -> Result<()> {
        let id = self.id().to_owned();
        self.send(&PluginMessage::Status(Status { id, ..status }))
    }

    /// Writes a line into the daemon's log. Never put payloads there.
    ///
    /// # Errors
    /// When the daemon no longer listens.
    pub fn log(&self, level: Level, message: impl Into<String>) -> Result<()> {
        self.send(&PluginMessage::Log(Log {
            id: self.id().to_owned(),
            level,
            message: message.into(),
        }))
    }

    /// Whether the job shall stop.
    pub fn is_canceled(&self) -> bool {
        self.stop.flag.load(Ordering::Acquire)
    }

    /// Why the job shall stop, if it shall.
    pub fn canceled(&self) -> Option<Cancel> {
        if !self.is_canceled() {
            return None;
        }
        self.stop.lock().cancel.clone()
    }

    /// Ends a function that is called often enough: an error when the job shall stop.
    ///
    /// # Errors
    /// `canceled`, or `timeout`, when the job shall stop.
    pub fn check_canceled(&self) -> Result<()> {
        match self.canceled() {
            None => Ok(()),
            Some(cancel) => Err(canceled_error(&cancel)),
        }
    }

    /// Sleeps, but not on when the job shall stop. Returns whether it shall.
    pub fn sleep(&self, time: Duration) -> bool {
        let until = Instant::now().checked_add(time);
        let mut state = self.stop.lock();
        while state.cancel.is_none() {
            let left = match until {
                None => Duration::MAX,
                Some(until) => until.saturating_duration_since(Instant::now()),
            };
            if left.is_zero() {
                return false;
            }
            let wait = self.stop.changed.wait_timeout(state, left);
            state = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Calls a function once when the job shall stop; at once if that is so already. It runs on
    /// the thread that reads from the daemon and must not block.
    pub fn on_cancel(&self, call: impl FnOnce(&Cancel) + Send + 'static) {
        let mut state = self.stop.lock();
        match state.cancel.clone() {
            Some(cancel) => {
                drop(state);
                call(&cancel);
            }
            None => state.calls.push(Box::new(call)),
        }
    }

    /// A handle that can stop the job from elsewhere, for plugins that take signals.
    pub fn stopper(&self) -> Stopper {
        Stopper {
            id: self.id().to_owned(),
            stop: Arc::clone(&self.stop),
        }
    }

    /// Sends the job's final message.
    pub(crate) fn finish(self, result: Result<Outcome>) -> std::result::Result<(), SendError> {
        let id = self.execute.id.clone();
        let message = match result {
            Ok(Outcome { code, result }) => PluginMessage::Done(Done { id, code, result }),
            Err(error) => PluginMessage::Error(JobError {
                id,
                error: error.into_plugin_error(),
            }),
        };
        match self.write(&message) {
            Err(SendError::Encode(EncodeError::TooLong { len, limit })) => {
                let error = Error::new(
                    ErrorCode::ResultQuota,
                    format!("the final message would have {len} bytes, more than {limit}"),
                );
                self.write(&PluginMessage::Error(JobError {
                    id: self.execute.id.clone(),
                    error: error.into_plugin_error(),
                }))
            }
            other => other,
        }
    }

    fn send_data(&self, body: Payload) -> Result<()> {
        self.send(&PluginMessage::Data(Data {
            id: self.id().to_owned(),
            body,
        }))
    }

    fn send(&self, message: &PluginMessage) -> Result<()> {
        Ok(self.write(message)?)
    }

    fn write(&self, message: &PluginMessage) -> std::result::Result<(), SendError> {
        if self.inline {
            self.session.output.queue(message)
        } else {
            self.session.output.send(message)
        }
    }

    fn takes_files(&self) -> bool {
        self.session
            .host
            .features
            .iter()
            .any(|f| f == feature::FILE)
    }

    fn too_large(&self, len: usize) -> bool {
        len > self.session.host.limits.inline && self.takes_files()
    }

    /// Sends a large result by file.
    fn spill(&self, bytes: &[u8]) -> Result<()> {
        let n = self.files.fetch_add(1, Ordering::Relaxed);
        let path = self.dir().join(format!("{}.out{n}", self.id()));
        let mut file = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?;
        file.write_all(bytes)?;
        drop(file);
        self.data_file(&path, None)
    }

    fn open(&self, file: &FileRef) -> Result<File> {
        let path = self.dir().join(&file.path);
        File::open(&path)
            .map_err(|e| Error::internal(format!("the payload {}", path.display())).caused_by(&e))
    }
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job")
            .field("execute", &self.execute)
            .field("canceled", &self.is_canceled())
            .finish_non_exhaustive()
    }
}

/// Stops a job as if the daemon had asked for it.
#[derive(Clone)]
pub struct Stopper {
    id: String,
    stop: Arc<Stop>,
}

impl Stopper {
    /// Stops the job; the first reason stays.
    pub fn stop(&self, reason: CancelReason, grace: Duration) {
        self.stop.cancel(&Cancel {
            id: self.id.clone(),
            reason,
            grace_ms: u64::try_from(grace.as_millis()).unwrap_or(u64::MAX),
        });
    }
}

impl fmt::Debug for Stopper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stopper")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

fn canceled_error(cancel: &Cancel) -> Error {
    let code = match cancel.reason {
        CancelReason::Timeout => ErrorCode::Timeout,
        CancelReason::Quota => ErrorCode::ResultQuota,
        CancelReason::User
        | CancelReason::Shutdown
        | CancelReason::SenderGone
        | CancelReason::Other(_) => ErrorCode::Canceled,
    };
    Error::new(code, format!("the job was stopped ({})", cancel.reason))
}

/// Whether a job shall stop, known to its function and to the thread that reads.
#[derive(Default)]
pub(crate) struct Stop {
    flag: AtomicBool,
    state: Mutex<StopState>,
    changed: Condvar,
}

type OnCancel = Box<dyn FnOnce(&Cancel) + Send>;

#[derive(Default)]
struct StopState {
    cancel: Option<Cancel>,
    calls: Vec<OnCancel>,
}

impl Stop {
    /// The first reason stays.
    pub(crate) fn cancel(&self, cancel: &Cancel) {
        let mut state = self.lock();
        if state.cancel.is_some() {
            return;
        }
        state.cancel = Some(cancel.clone());
        self.flag.store(true, Ordering::Release);
        let calls = std::mem::take(&mut state.calls);
        drop(state);
        self.changed.notify_all();
        for call in calls {
            call(cancel);
        }
    }

    fn lock(&self) -> MutexGuard<'_, StopState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
