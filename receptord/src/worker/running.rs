//! One job, whichever process it runs in.
//!
//! Owns what job mode and serve mode have in common: the window of results that the engine has not
//! confirmed, the times, the quota, the latest status, the form in which results leave. [`Control`]
//! is the part that the host's own task shares with the task that talks to the plugin.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use receptor_proto::packet::{Content, RESULT_NAME_MAX, SEGMENT_MAX};
use receptor_proto::plugin::{
    ActionDescriptor, CancelReason, FileRef, MAX_STATUS_PER_SECOND, Payload, PayloadKind, Status,
};
use receptor_proto::{ErrorBody, ErrorCode, MessageId};
use tokio::sync::Notify;

use super::api::{Report, ReportPayload, WINDOW_BYTES, WINDOW_RESULTS};
use super::config::PluginConfig;
use super::holder::Mark;
use super::job_dir::{self, FileProblem, check_sum, take_result};
use super::outcome::{self, Outcome, cut, error};

/// Ends the name of a file that the engine gets, when there is another one to keep.
const GIVEN: &str = "given";
/// Longest `state` of a status in bytes.
const MAX_STATE: usize = 64;
/// Longest `message` of a status in bytes.
const MAX_STATUS: usize = 1024;
/// Time between two statuses that are passed on.
const STATUS_PAUSE: Duration = Duration::from_millis(1000 / MAX_STATUS_PER_SECOND as u64);

/// What the host tells the task that runs a job.
#[derive(Debug)]
pub(super) struct Control {
    go: Cell<bool>,
    cancel: RefCell<Option<CancelReason>>,
    /// Bytes in memory of each result that was not confirmed, oldest first.
    unconfirmed: RefCell<VecDeque<usize>>,
    held: Cell<usize>,
    /// So many results have found a place that outlives this daemon, or need none.
    safe: Cell<u64>,
    /// So has the end.
    end_safe: Flag,
    /// The next daemon is to go on with it.
    left: Flag,
    work: MessageId,
    /// It is among [`Changes::jobs`].
    listed: Cell<bool>,
    changes: Rc<Changes>,
}

/// Something that one task waits for beside all else.
#[derive(Debug, Default)]
struct Flag {
    set: Cell<bool>,
    notify: Notify,
}

impl Flag {
    fn set(&self) {
        self.set.set(true);
        self.notify.notify_one();
    }

    async fn is_set(&self) {
        while !self.set.get() {
            self.notify.notified().await;
        }
    }
}

/// What wakes the task that runs a job, or many.
#[derive(Debug, Default)]
pub(super) struct Changes {
    notify: Notify,
    /// The jobs that were told to start or to end and not looked at since, each once.
    jobs: RefCell<Vec<MessageId>>,
}

impl Changes {
    /// Wakes the task.
    pub(super) fn wake(&self) {
        self.notify.notify_one();
    }

    /// Waits until it is woken.
    pub(super) async fn woken(&self) {
        self.notify.notified().await;
    }

    /// The jobs to look at. Each is to be told so with [`Control::look`].
    pub(super) fn take(&self) -> Vec<MessageId> {
        self.jobs.take()
    }
}

impl Control {
    /// `changes` wakes the task.
    pub(super) fn new(work: MessageId, changes: Rc<Changes>) -> Self {
        Self {
            go: Cell::new(false),
            cancel: RefCell::new(None),
            unconfirmed: RefCell::new(VecDeque::new()),
            held: Cell::new(0),
            safe: Cell::new(0),
            end_safe: Flag::default(),
            left: Flag::default(),
            work,
            listed: Cell::new(false),
            changes,
        }
    }

    fn tell(&self) {
        if !self.listed.replace(true) {
            self.changes.jobs.borrow_mut().push(self.work);
        }
        self.changes.wake();
    }

    /// The task looks at the job now: what comes from here on is told anew.
    pub(super) fn look(&self) {
        self.listed.set(false);
    }

    /// The start is on the disk.
    pub(super) fn start(&self) {
        self.go.set(true);
        self.tell();
    }

    pub(super) fn may_start(&self) -> bool {
        self.go.get()
    }

    /// The first reason stands.
    pub(super) fn cancel(&self, reason: CancelReason) {
        self.cancel.borrow_mut().get_or_insert(reason);
        self.tell();
    }

    pub(super) fn cancelled(&self) -> Option<CancelReason> {
        self.cancel.borrow().clone()
    }

    /// The engine has confirmed results.
    pub(super) fn taken(&self, results: usize) {
        let mut unconfirmed = self.unconfirmed.borrow_mut();
        for _ in 0..results {
            if let Some(bytes) = unconfirmed.pop_front() {
                self.held.set(self.held.get() - bytes);
            }
        }
        self.changes.wake();
    }

    /// So many of its results are safe.
    pub(super) fn set_safe(&self, results: u64) {
        self.safe.set(self.safe.get().max(results));
        self.changes.wake();
    }

    /// None of its results has to outlive this daemon.
    pub(super) fn nothing_to_keep(&self) {
        self.safe.set(u64::MAX);
    }

    /// How many results are safe.
    pub(super) fn safe(&self) -> u64 {
        self.safe.get()
    }

    /// Its end is safe.
    pub(super) fn set_end_safe(&self) {
        self.end_safe.set();
    }

    pub(super) fn is_end_safe(&self) -> bool {
        self.end_safe.set.get()
    }

    /// Waits for that.
    pub(super) async fn end_is_safe(&self) {
        self.end_safe.is_set().await;
    }

    /// Leaves it to the next daemon, if it can be left.
    pub(super) fn leave(&self) {
        self.left.set();
        self.changes.wake();
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.left.set.get()
    }

    /// Waits for that.
    pub(super) async fn left(&self) {
        self.left.is_set().await;
    }

    /// Whether one more result may be sent.
    pub(super) fn has_room(&self) -> bool {
        self.unconfirmed.borrow().len() < WINDOW_RESULTS && self.held.get() < WINDOW_BYTES
    }

    /// Whether the host shuts down and the job may run again at the next start. Then it has no end
    /// now: the restart is to do what it would do after a crash, not less.
    pub(super) fn is_left(&self, idempotent: bool) -> bool {
        let shuts_down = *self.cancel.borrow() == Some(CancelReason::Shutdown);
        shuts_down && (idempotent || !self.may_start())
    }

    fn sent(&self, payload: &ReportPayload) {
        let bytes = match payload {
            ReportPayload::Inline(bytes) => bytes.len(),
            ReportPayload::File { .. } => 0,
        };
        self.unconfirmed.borrow_mut().push_back(bytes);
        self.held.set(self.held.get() + bytes);
    }

    /// Waits for any of the above.
    pub(super) async fn changed(&self) {
        self.changes.woken().await;
    }
}

/// Why the host ends a job.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Why {
    /// It was told to.
    Cancel(CancelReason),
    /// It ran for too long.
    Timeout(Duration),
    /// It was silent for too long.
    Idle(Duration),
    /// Its results are more than its plugin may have.
    Results(u64),
    /// Its results were not taken and held up the other jobs of its plugin.
    Stalled,
    /// It broke a rule, or this node cannot go on with it.
    Broken(ErrorBody),
}

impl Why {
    /// The word for the plugin.
    pub(super) fn reason(&self) -> CancelReason {
        match self {
            Self::Cancel(reason) => reason.clone(),
            Self::Timeout(_) | Self::Idle(_) => CancelReason::Timeout,
            Self::Results(_) | Self::Stalled => CancelReason::Quota,
            Self::Broken(_) => CancelReason::Other("protocol-error".to_owned()),
        }
    }

    /// The job's end, when it had to be ended for this.
    pub(super) fn error(&self) -> ErrorBody {
        match self {
            Self::Cancel(CancelReason::Shutdown) => {
                error(ErrorCode::Interrupted, "the node shut down")
            }
            Self::Cancel(CancelReason::Quota) => error(
                ErrorCode::ResultQuota,
                "its results are more than this node keeps",
            ),
            Self::Cancel(CancelReason::SenderGone) => {
                error(ErrorCode::Cancelled, "cancelled: its sender is gone")
            }
            Self::Cancel(_) => error(ErrorCode::Cancelled, "cancelled"),
            Self::Timeout(limit) => {
                let limit = humantime::format_duration(*limit);
                error(ErrorCode::Timeout, format!("it ran longer than {limit}"))
            }
            Self::Idle(limit) => {
                let limit = humantime::format_duration(*limit);
                error(
                    ErrorCode::IdleTimeout,
                    format!("it said nothing for {limit}"),
                )
            }
            Self::Results(limit) => error(
                ErrorCode::ResultQuota,
                format!("its results have more than {limit} bytes"),
            ),
            Self::Stalled => error(
                ErrorCode::ResultQuota,
                "its results were not taken as fast as it made them, and held up the other works of its plugin",
            ),
            Self::Broken(problem) => problem.clone(),
        }
    }

    /// How a job ended that was told to end: a plugin's own answer stands, unless it only says that
    /// it was stopped and the host knows better why, or the job did well but its results are not
    /// complete.
    fn judge(&self, said: Option<Outcome>, complete: bool) -> Outcome {
        match said {
            _ if matches!(self, Self::Broken(_)) || !complete => Outcome::Failed(self.error()),
            Some(done @ Outcome::Done { .. }) => done,
            Some(Outcome::Failed(own)) => {
                let stopped = matches!(
                    own.code,
                    ErrorCode::Cancelled | ErrorCode::Timeout | ErrorCode::IdleTimeout
                );
                let asked = matches!(
                    self,
                    Self::Cancel(CancelReason::User | CancelReason::SenderGone)
                );
                if stopped && !asked {
                    Outcome::Failed(self.error())
                } else {
                    Outcome::Failed(own)
                }
            }
            None => Outcome::Failed(self.error()),
        }
    }
}

/// What of an action's description its jobs run by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    /// What it takes.
    pub payload: PayloadKind,
    /// Whether a job cut short may be run again.
    pub idempotent: bool,
    /// The largest payload it takes, in bytes.
    pub max_payload: Option<u64>,
    timeout_s: Option<u64>,
    idle_timeout_s: Option<u64>,
}

impl Terms {
    /// How long a job may run, and how long it may be silent.
    pub(super) fn limits(&self, config: &PluginConfig) -> (Option<Duration>, Option<Duration>) {
        let seconds = |limit: Option<u64>| limit.map(Duration::from_secs);
        let timeout = config.timeout.or(seconds(self.timeout_s));
        let idle = config.idle_timeout.or(seconds(self.idle_timeout_s));
        (timeout, idle)
    }

    /// The action, as far as it is known here.
    pub(super) fn action(&self) -> ActionDescriptor {
        ActionDescriptor {
            payload: self.payload,
            idempotent: self.idempotent,
            max_payload: self.max_payload,
            timeout_s: self.timeout_s,
            idle_timeout_s: self.idle_timeout_s,
            ..ActionDescriptor::default()
        }
    }

    pub(super) fn of(action: &ActionDescriptor) -> Self {
        Self {
            payload: action.payload,
            idempotent: action.idempotent,
            max_payload: action.max_payload,
            timeout_s: action.timeout_s,
            idle_timeout_s: action.idle_timeout_s,
        }
    }
}

/// Where a job's files are.
#[derive(Debug, Clone)]
pub(super) struct Places {
    /// The directory its process runs in.
    pub dir: PathBuf,
    /// The directory for results.
    pub results: PathBuf,
}

/// A job that a plugin has, or is about to get.
#[derive(Debug)]
pub(super) struct Running {
    /// Whose it is.
    pub work: MessageId,
    /// Its id in the plugin protocol.
    pub id: String,
    /// What the host says.
    pub control: Rc<Control>,
    /// Why it is being ended, if it is.
    pub why: Option<Why>,
    idempotent: bool,
    timeout: Option<Duration>,
    idle: Option<Duration>,
    max_results: Option<u64>,
    began: Instant,
    heard: Instant,
    results: u64,
    files: u32,
    /// Results that were passed on, and responses that an earlier daemon had before.
    reported: u64,
    said_before: u64,
    /// Results to come that the engine has had from an earlier daemon.
    repeats: u64,
    /// Result files stay until they are safe.
    keeps_files: bool,
    complete: bool,
    status: Option<Status>,
    status_sent: Option<Instant>,
}

impl Running {
    pub(super) fn new(
        work: MessageId,
        control: Rc<Control>,
        terms: Terms,
        config: &PluginConfig,
        now: Instant,
    ) -> Self {
        let (timeout, idle) = terms.limits(config);
        Self {
            work,
            id: work.to_string(),
            control,
            why: None,
            idempotent: terms.idempotent,
            timeout,
            idle,
            max_results: config.max_results,
            began: now,
            heard: now,
            results: 0,
            files: 0,
            reported: 0,
            said_before: 0,
            repeats: 0,
            keeps_files: false,
            complete: true,
            status: None,
            status_sent: None,
        }
    }

    /// A result of it was not passed on.
    pub(super) fn lose_result(&mut self) {
        self.complete = false;
    }

    /// Whether its next result can be passed on. None can behind one that was lost: should the next daemon have to
    /// hear them again, it would give them other numbers.
    pub(super) fn takes_result(&self) -> bool {
        self.complete && self.control.has_room()
    }

    /// How it ended, from what the plugin said and what the host knows. `None` when the plugin said
    /// nothing and the host did not end it.
    pub(super) fn judge(&self, said: Option<Outcome>) -> Option<Outcome> {
        match &self.why {
            Some(why) => Some(why.judge(said, self.complete)),
            None => said,
        }
    }

    /// Its time begins now.
    pub(super) fn begin(&mut self, now: Instant) {
        self.began = now;
        self.heard = now;
    }

    /// It goes on from where an earlier daemon was.
    pub(super) fn go_on(&mut self, began: Instant, mark: Mark, repeats: u64) {
        self.began = began;
        self.said_before = mark.said;
        self.results = mark.results;
        self.files = mark.files;
        self.repeats = repeats;
    }

    /// The next daemon may have to hear of its results again.
    pub(super) fn keep_files(&mut self) {
        self.keeps_files = true;
    }

    /// How many results were passed on.
    pub(super) fn reported(&self) -> u64 {
        self.reported
    }

    /// What the next daemon has to know to go on from here.
    pub(super) fn mark(&self) -> Mark {
        Mark {
            said: self.said_before + self.reported,
            results: self.results,
            files: self.files,
        }
    }

    /// For the plugin.
    pub(super) fn timeout_ms(&self) -> Option<u64> {
        u64::try_from(self.timeout?.as_millis()).ok()
    }

    /// It gave a sign of life, or could not because the host did not listen.
    pub(super) fn heard(&mut self, now: Instant) {
        self.heard = now;
    }

    /// When it was heard last.
    pub(super) fn last_heard(&self) -> Instant {
        self.heard
    }

    /// When to look at [`Self::overdue`] or [`Self::take_status`] again.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let limits = [
            self.timeout.and_then(|limit| self.began.checked_add(limit)),
            self.idle.and_then(|limit| self.heard.checked_add(limit)),
        ];
        let limits = limits.into_iter().flatten().filter(|_| self.why.is_none());
        let status = self.status.is_some().then_some(self.status_sent).flatten();
        limits.chain(status.map(|sent| sent + STATUS_PAUSE)).min()
    }

    /// Whether it has run, or been silent, for too long.
    pub(super) fn overdue(&self, now: Instant) -> Option<Why> {
        let passed = |since: Instant, limit: &Duration| now.duration_since(since) >= *limit;
        if self.why.is_some() {
            return None;
        }
        if let Some(limit) = self.timeout.filter(|limit| passed(self.began, limit)) {
            return Some(Why::Timeout(limit));
        }
        let limit = self.idle.filter(|limit| passed(self.heard, limit))?;
        Some(Why::Idle(limit))
    }

    /// Keeps a status until it may be passed on.
    pub(super) fn set_status(&mut self, status: Status) {
        self.status = Some(status);
    }

    /// The latest status, if it is time for one.
    pub(super) fn take_status(&mut self, now: Instant) -> Option<Report> {
        let early = |sent: Instant| now.duration_since(sent) < STATUS_PAUSE;
        if self.status_sent.is_some_and(early) {
            return None;
        }
        let status = self.status.take()?;
        self.status_sent = Some(now);
        Some(Report::Status {
            work: self.work,
            state: status.state.map(|state| cut(state, MAX_STATE)),
            message: status.message.map(|message| cut(message, MAX_STATUS)),
            progress: status.progress,
        })
    }

    /// Brings a result into the form for the engine.
    ///
    /// # Errors
    /// [`Flaw::Quota`] when it is one too many; [`Flaw::Plugin`] when its file cannot be taken.
    pub(super) async fn result(&mut self, body: Payload, at: &Places) -> Result<Report, Flaw> {
        if self.repeats > 0 {
            return self.repeat(&body);
        }
        let (content, name, payload) = match body {
            Payload::Json(json) => {
                let bytes = Bytes::copy_from_slice(json.get().as_bytes());
                (Content::Json, None, self.inline(bytes, at).await?)
            }
            Payload::Text(text) => (Content::Text, None, self.inline(text.into(), at).await?),
            Payload::Bytes(bytes) => (Content::Bytes, None, self.inline(bytes.into(), at).await?),
            Payload::File(file) => {
                let payload = self.file(&file, at).await?;
                let path_name = || file.path.rsplit('/').next().map(str::to_owned);
                let name = file.name.clone().or_else(path_name);
                (Content::Bytes, name, payload)
            }
        };
        self.passed_on(&payload);
        Ok(Report::Data {
            work: self.work,
            content,
            name: name.map(|name| cut(name, RESULT_NAME_MAX)),
            payload,
        })
    }

    /// As [`Self::result`], for a plugin that does not speak in messages.
    pub(super) async fn raw(
        &mut self,
        content: Content,
        bytes: Bytes,
        at: &Places,
    ) -> Result<Report, Flaw> {
        if self.repeats > 0 {
            return self.repeat_bytes(bytes.len());
        }
        let payload = self.inline(bytes, at).await?;
        self.passed_on(&payload);
        Ok(Report::Data {
            work: self.work,
            content,
            name: None,
            payload,
        })
    }

    fn passed_on(&mut self, payload: &ReportPayload) {
        self.control.sent(payload);
        self.reported += 1;
    }

    /// A result that the engine has already. It is counted once more by everybody, and its payload, which may not
    /// be there any more, is nobody's.
    fn repeat(&mut self, body: &Payload) -> Result<Report, Flaw> {
        match body {
            Payload::Json(json) => self.repeat_bytes(json.get().len()),
            Payload::Text(text) => self.repeat_bytes(text.len()),
            Payload::Bytes(bytes) => self.repeat_bytes(bytes.len()),
            Payload::File(file) => {
                self.files += 1;
                self.count(file.size.unwrap_or(0))?;
                Ok(self.repeated())
            }
        }
    }

    fn repeat_bytes(&mut self, size: usize) -> Result<Report, Flaw> {
        if size > SEGMENT_MAX {
            self.files += 1;
        }
        self.count(u64::try_from(size).unwrap_or(u64::MAX))?;
        Ok(self.repeated())
    }

    fn repeated(&mut self) -> Report {
        self.repeats -= 1;
        let payload = ReportPayload::Inline(Bytes::new());
        self.passed_on(&payload);
        Report::Data {
            work: self.work,
            content: Content::None,
            name: None,
            payload,
        }
    }

    /// The last report.
    pub(super) async fn done(&mut self, outcome: Outcome, at: &Places) -> Report {
        // What a plugin says that was told to end says nothing of how its job would have ended.
        let went_well = matches!(outcome, Outcome::Done { code: 0, .. });
        if !went_well && self.control.is_left(self.idempotent) {
            return Report::Left { work: self.work };
        }
        let (mut eof, mut content, bytes) = outcome.into_parts();
        let payload = match self.spill(bytes, at).await {
            Ok(payload) => payload,
            Err(lost) => {
                content = Content::None;
                eof.code = 1;
                eof.error = Some(lost);
                ReportPayload::Inline(Bytes::new())
            }
        };
        Report::Done {
            work: self.work,
            eof,
            content,
            payload,
        }
    }

    async fn inline(&mut self, bytes: Bytes, at: &Places) -> Result<ReportPayload, Flaw> {
        self.count(u64::try_from(bytes.len()).unwrap_or(u64::MAX))?;
        self.spill(bytes, at).await.map_err(Flaw::Host)
    }

    /// The engine wants what is larger than a segment as a file.
    async fn spill(&mut self, bytes: Bytes, at: &Places) -> Result<ReportPayload, ErrorBody> {
        if bytes.len() <= SEGMENT_MAX {
            return Ok(ReportPayload::Inline(bytes));
        }
        // What the plugin said is said again; this file need not be kept for it.
        let path = given(&self.next_file(at));
        let _ = std::fs::remove_file(&path);
        match job_dir::write_result(path.clone(), bytes).await {
            Ok((size, sums)) => Ok(ReportPayload::File { path, size, sums }),
            Err(problem) => Err(error(
                ErrorCode::Internal,
                format!("a result cannot be stored: {problem}"),
            )),
        }
    }

    async fn file(&mut self, file: &FileRef, at: &Places) -> Result<ReportPayload, Flaw> {
        let mut path = self.next_file(at);
        let wrong = |problem: FileProblem| Flaw::Plugin(problem.to_string());
        let size = match path.symlink_metadata() {
            // An earlier daemon has taken it, and it was not safe yet.
            Ok(taken) if self.keeps_files => taken.len(),
            Ok(_) | Err(_) => take_result(&at.dir, file, &path).map_err(wrong)?,
        };
        if self.keeps_files {
            let given = given(&path);
            let _ = std::fs::remove_file(&given);
            std::fs::hard_link(&path, &given).map_err(|problem| {
                let text = format!("a result cannot be kept: {problem}");
                Flaw::Host(error(ErrorCode::Internal, text))
            })?;
            path = given;
        }
        check_sum(path.clone(), file).await.map_err(wrong)?;
        if let Err(quota) = self.count(size) {
            let _ = std::fs::remove_file(&path);
            return Err(quota);
        }
        if size > SEGMENT_MAX as u64 {
            return match job_dir::sync_result(path.clone()).await {
                Ok(sums) => Ok(ReportPayload::File { path, size, sums }),
                Err(problem) => {
                    let _ = std::fs::remove_file(&path);
                    let text = format!("a result cannot be stored: {problem}");
                    Err(Flaw::Host(error(ErrorCode::Internal, text)))
                }
            };
        }
        let bytes = std::fs::read(&path);
        let _ = std::fs::remove_file(&path);
        match bytes {
            Ok(bytes) if bytes.len() <= SEGMENT_MAX => Ok(ReportPayload::Inline(bytes.into())),
            // Somebody still writes to it.
            Ok(_) => Err(Flaw::Plugin(format!(
                "the file {:?} has changed after it was given away",
                file.path
            ))),
            Err(problem) => Err(Flaw::Host(error(
                ErrorCode::Internal,
                format!("a result cannot be read: {problem}"),
            ))),
        }
    }

    fn count(&mut self, size: u64) -> Result<(), Flaw> {
        self.results = self.results.saturating_add(size);
        match self.max_results {
            Some(max) if self.results > max => {
                self.lose_result();
                Err(Flaw::Quota(max))
            }
            Some(_) | None => Ok(()),
        }
    }

    fn next_file(&mut self, at: &Places) -> PathBuf {
        self.files += 1;
        result_file(&self.id, self.files, at)
    }
}

/// Where a result file of a job is.
pub(super) fn result_file(job: &str, number: u32, at: &Places) -> PathBuf {
    at.results.join(format!("{job}.{number}"))
}

/// The name under which the engine gets a file.
fn given(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(GIVEN);
    name.into()
}

/// Why a result cannot be passed on.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Flaw {
    /// Its results are more than so many bytes.
    Quota(u64),
    /// The plugin's mistake.
    Plugin(String),
    /// This node's.
    Host(ErrorBody),
}

/// What to say of a plugin whose result cannot be passed on.
pub(super) fn flaw_error(plugin: &str, flaw: Flaw) -> ErrorBody {
    match flaw {
        Flaw::Quota(max) => Why::Results(max).error(),
        Flaw::Plugin(what) => outcome::protocol_error(plugin, &what, None),
        Flaw::Host(error) => error,
    }
}
