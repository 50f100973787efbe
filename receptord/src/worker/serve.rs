//! Serve mode: one process for many works.
//!
//! Owns the process of one serving plugin and all jobs in it, in one task. A job costs no task and no
//! process of its own: the host puts it into [`Server`], this task writes it to the pipe, several in one
//! write when several have come.
//!
//! ```text
//! host ── Server.inbox ──▶ this task ── stdin ──▶ plugin
//!   ▲                          │  ◀──── stdout ───
//!   └── Ends ◀─────────────────┴──▶ reports to the engine
//! ```
//!
//! All jobs share one pipe, so that a job whose results nobody takes would stop the others: it is
//! waited for as long as `Times::serve_stall` says and then cancelled with `quota`. A job that ignores its
//! cancel costs the process, and with it the other jobs.
//!
//! Where there is a unit for it the process runs behind a holder, and can be left to the next daemon with those of its
//! jobs that outlive a restart. There it gets no new ones: it ends with the last that it had, because what it was told of
//! its configuration, and what it still does for jobs that nobody knows any more, is the earlier daemon's.

mod bundle;
mod ends;
mod leave;
mod said;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use receptor_proto::packet::Content;
use receptor_proto::plugin::{CancelReason, Data, ExecuteRef, PluginHello, feature};
use receptor_proto::{ErrorBody, ErrorCode, MessageId};
use tokio::sync::mpsc::error::TrySendError;

use self::bundle::Bundles;
use super::alarm::Alarm;
use super::api::{Job, JobPayload, Report};
use super::config::{HostConfig, PluginConfig};
use super::describe::{
    Executable, Purpose, host_hello, make_dir, own_config, read_hello, start_in_unit,
};
use super::holder::{self, LeftWork, Note, Remote, Unit};
use super::job_dir::{Given, Handover, Prepared, at_once};
use super::outcome::{Outcome, error};
use super::process::{Event, Process};
use super::running::{Changes, Control, Places, Running, Terms, Why};
use super::shared::{Shared, TaskEnd};
use super::stderr::Source;
use super::sweep;
use super::unseen::Unseen;
use crate::by_id::ById;
use crate::task;

/// Bytes on their way to the plugin beyond which nothing further is handed over: twice what a pipe
/// holds, so that the plugin always has something to read, and what it does not read yet does not lie
/// in memory twice.
const AHEAD_MAX: usize = 128 * 1024;
/// Ids of ended jobs that are remembered, so that a word too many about one is not taken for a word
/// about a job that never was.
const REMEMBERED: usize = 64;

/// A serving process, as the host's own task sees it.
#[derive(Debug)]
pub(super) struct Server {
    /// Tells it from its predecessors and successors.
    pub number: u64,
    /// The name of its directory, which no other process has had.
    pub name: String,
    inbox: RefCell<VecDeque<NewJob>>,
    prepared: RefCell<Vec<(MessageId, Prepared)>>,
    closing: Cell<bool>,
    changes: Rc<Changes>,
}

/// A job for it.
#[derive(Debug)]
pub(super) struct NewJob {
    /// The work.
    pub job: Box<Job>,
    /// What its action says of it.
    pub terms: Terms,
    /// What the host says meanwhile.
    pub control: Rc<Control>,
}

impl Server {
    pub(super) fn new(number: u64, plugin: &str) -> Self {
        let name = format!("serve.{plugin}.{:016x}", fastrand::u64(..));
        Self::named(number, name)
    }

    /// One that an earlier daemon has left, and that takes no new jobs.
    pub(super) fn left(number: u64, name: String) -> Self {
        let server = Self::named(number, name);
        server.close();
        server
    }

    fn named(number: u64, name: String) -> Self {
        Self {
            number,
            name,
            inbox: RefCell::new(VecDeque::new()),
            prepared: RefCell::new(Vec::new()),
            closing: Cell::new(false),
            changes: Rc::default(),
        }
    }

    /// Wakes the process's task; for [`Control::new`].
    pub(super) fn changes(&self) -> Rc<Changes> {
        Rc::clone(&self.changes)
    }

    /// Gives it a job. Not to be called when it is closing.
    pub(super) fn push(&self, job: NewJob) {
        self.inbox.borrow_mut().push_back(job);
        self.changes.wake();
    }

    /// It takes no new jobs.
    pub(super) fn is_closing(&self) -> bool {
        self.closing.get()
    }

    /// Lets it finish what it has, and then go.
    pub(super) fn close(&self) {
        self.closing.set(true);
        self.changes.wake();
    }
}

/// How a serving process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ServerEnd {
    /// By itself or by the host; of a crash the host was told before.
    Over,
    /// It was left to the next daemon.
    Left,
    /// Its task failed.
    Failed,
}

/// Why there is nothing more to say to the process.
#[derive(Debug)]
enum Stop {
    /// It was let go, or ended by the host because of one of its jobs.
    Ended,
    /// It could not be started, died, or broke the protocol.
    Crashed(String),
    /// The next daemon goes on with it.
    Left,
}

/// A process that was left to this daemon.
#[derive(Debug)]
pub(super) struct GoingOn {
    /// The process.
    pub remote: Remote,
    /// What was known of it.
    pub note: Note,
    /// Its jobs, what was known of them, and how many of the results that come first are the engine's already.
    pub jobs: Vec<(NewJob, LeftWork, u64)>,
}

/// All that the process's task needs.
#[derive(Debug)]
pub(super) struct Task {
    /// For every task.
    pub shared: Rc<Shared>,
    /// As of its start.
    pub config: Rc<HostConfig>,
    /// What to run.
    pub plugin: Executable,
    /// The link to the host.
    pub server: Rc<Server>,
    /// The process that an earlier daemon has left.
    pub resumed: Option<GoingOn>,
}

/// Runs the process until it ends, is not needed any more, or is left to the next daemon.
pub(super) async fn run(mut task: Task) -> ServerEnd {
    let dir = task.config.jobs().join(&task.server.name);
    let (mut process, hello, left) = match task.resumed.take() {
        Some(GoingOn { remote, note, jobs }) => {
            let source = Source {
                plugin: task.plugin.name.clone(),
                job: task.server.name.clone(),
            };
            let process = Process::resumed(remote, dir.clone(), source);
            (process, note.hello, jobs)
        }
        None => match open(&task).await {
            Ok((process, hello)) => (process, hello, Vec::new()),
            Err(problem) => {
                refuse_all(&task, &problem).await;
                tell_crash(&task, problem.message);
                return ServerEnd::Over;
            }
        },
    };
    tracing::debug!(plugin = task.plugin.name, pid = process.pid(), "serving");
    process.widen();
    let own = own_config(&task.config, &task.plugin.name);
    let at = process.offset();
    let mut serving = Serving {
        places: Places {
            dir,
            results: task.config.results(),
        },
        name: &task.plugin.name,
        task: &task,
        process: &mut process,
        hello,
        own,
        is_resumed: !left.is_empty(),
        jobs: ById::default(),
        bundles: Bundles::default(),
        part_id: String::new(),
        look_at: None,
        ended: VecDeque::new(),
        outbox: VecDeque::new(),
        held: None,
        unseen: Unseen::new(at),
        at,
        now: Instant::now(),
        idle_since: Instant::now(),
        ping: PingState::default(),
        alarm: Alarm::default(),
    };
    for (job, known, repeats) in left {
        serving.go_on(job, &known, repeats);
    }
    let mut stop = serving.run().await;
    // From here on the host starts another process for new jobs.
    task.server.close();
    let late = error(
        ErrorCode::PluginExit,
        format!("{} ended before it got the work", task.plugin.name),
    );
    refuse_all(&task, &late).await;
    if let Stop::Crashed(why) = &stop {
        tell_crash(&task, why.clone());
    }
    if !matches!(stop, Stop::Left) {
        stop = serving.until_safe(stop).await;
    }
    if matches!(stop, Stop::Left) {
        serving.leave().await;
    }
    let Serving {
        outbox, mut jobs, ..
    } = serving;
    let flush = async {
        for report in outbox {
            if task.shared.reports.send(report).await.is_err() {
                return;
            }
        }
    };
    jobs.clear();
    if matches!(stop, Stop::Left) {
        flush.await;
        process.leave();
        return ServerEnd::Left;
    }
    let finish = async {
        process.kill_if_alive().await;
        process.finish_stderr();
    };
    tokio::join!(flush, finish);
    process.clear_away(&task.shared.sweeper).await;
    ServerEnd::Over
}

fn tell_crash(task: &Task, why: String) {
    let plugin = task.plugin.name.clone();
    task.shared.ends.push(TaskEnd::Crashed { plugin, why });
}

/// Starts the process and reads its hello.
async fn open(task: &Task) -> Result<(Process, PluginHello), ErrorBody> {
    let Task {
        shared,
        config,
        plugin,
        ..
    } = task;
    let name = &task.server.name;
    let dir = make_dir(config, plugin, name)?;
    let purpose = Purpose {
        job: name,
        variables: Vec::new(),
    };
    let mut process = match start_in_unit(shared, config, plugin, purpose, None, true).await {
        Ok(process) => process,
        Err(problem) => {
            sweep::remove(&dir);
            return Err(problem);
        }
    };
    match read_hello(&mut process, plugin, &config.times).await {
        Ok(hello) => {
            if process.is_kept() {
                process.note(&Note::new(plugin, &hello));
            }
            if let Ok(line) = host_hello(config, &plugin.name).to_line() {
                process.send(&line);
            }
            Ok((process, hello))
        }
        Err(problem) => {
            task.server.close();
            process.kill_if_alive().await;
            process.clear_away(&shared.sweeper).await;
            Err(problem)
        }
    }
}

/// Answers for jobs that the process never got.
async fn refuse_all(task: &Task, problem: &ErrorBody) {
    task.server.close();
    loop {
        let Some(new) = task.server.inbox.borrow_mut().pop_front() else {
            return;
        };
        let work = new.job.work;
        let report = if new.control.is_left(new.terms.idempotent) {
            Report::Left { work }
        } else {
            let problem = match new.control.cancelled() {
                Some(reason) => Why::Cancel(reason).error(),
                None => problem.clone(),
            };
            let (eof, content, payload) = Outcome::Failed(problem).into_parts();
            Report::Done {
                work,
                eof,
                content,
                payload: super::api::ReportPayload::Inline(payload),
            }
        };
        if new.job.content == Content::Bundle {
            task.shared.admission.end_bundle(&task.plugin.name);
        }
        task.shared.admission.give_back(new.job.directive.plugin());
        let _ = task.shared.reports.send(report).await;
        task.shared.ends.push(TaskEnd::Served(work));
    }
}

/// A job in the process.
#[derive(Debug)]
struct Entry {
    running: Running,
    stage: Stage,
    job: Box<Job>,
    terms: Terms,
    /// Its payload is a file in the process's directory.
    has_file: bool,
    /// The process is ended when the job has not ended by then.
    stop_at: Option<Instant>,
}

/// How far a job is.
#[derive(Debug)]
enum Stage {
    /// Its payload is being looked at.
    Preparing,
    /// Its start is not on the disk yet.
    Ready(Option<Given>),
    /// The plugin has it.
    Executing,
}

#[derive(Debug, Default)]
struct PingState {
    nonce: u64,
    sent: Option<Instant>,
    answered: bool,
    warned: bool,
}

struct Serving<'a> {
    task: &'a Task,
    name: &'a str,
    process: &'a mut Process,
    hello: PluginHello,
    /// The plugin's part of the configuration.
    own: PluginConfig,
    places: Places,
    /// An earlier daemon has started it.
    is_resumed: bool,
    jobs: ById<Box<Entry>>,
    bundles: Bundles,
    /// Room to write the id of a part.
    part_id: String,
    /// No job has to be looked at for the time's sake before this. Deadlines that moved away or
    /// are gone with their job are found out then; looking at all jobs for every message
    /// would cost more than everything else.
    look_at: Option<Instant>,
    ended: VecDeque<MessageId>,
    /// Reports that did not fit the channel at once; while there are any, nothing more is read.
    outbox: VecDeque<Report>,
    /// A result for which its job has no room, and since when; it holds up everything else.
    held: Option<(MessageId, Data, Instant)>,
    /// What the holder still keeps, if there is one.
    unseen: Unseen,
    /// Everything before this offset was understood and passed on.
    at: u64,
    /// When this turn began: one look at the clock serves all that it handles.
    now: Instant,
    idle_since: Instant,
    ping: PingState,
    alarm: Alarm,
}

impl Serving<'_> {
    async fn run(&mut self) -> Stop {
        let mut closed_at = None;
        loop {
            self.now = Instant::now();
            self.take_new().await;
            self.obey().await;
            self.hand_over_parts().await;
            self.process.flush();
            self.tell_room();
            if let Err(problem) = self.read().await {
                let what = problem.message.clone();
                self.process.kill_if_alive().await;
                self.fail_all(&problem).await;
                return Stop::Crashed(what);
            }
            self.tell_holder();
            if self.may_leave() {
                return Stop::Left;
            }
            let now = self.now;
            if self.process.status().is_some() || closed_at.is_some_and(|at| now >= at) {
                return self.exited().await;
            }
            if self.look_at.is_some_and(|at| now >= at) {
                let stuck = |job: &Entry| job.stop_at.is_some_and(|at| now >= at);
                if self.jobs.values().any(|job| stuck(job)) || self.bundles.is_stuck(now) {
                    return self.give_up().await;
                }
                self.look_at_jobs(now);
            }
            self.look_at_held(now);
            let idle = self.jobs.is_empty()
                && self.bundles.is_empty()
                && self.task.server.inbox.borrow().is_empty();
            let idle_at = self.idle_since + self.task.config.times.serve_idle;
            if idle && (now >= idle_at || self.task.server.is_closing()) {
                self.part().await;
                return Stop::Ended;
            }
            let deadline = self
                .deadline(idle.then_some(idle_at))
                .into_iter()
                .chain(closed_at);
            self.wait(deadline.min(), &mut closed_at).await;
        }
    }

    async fn wait(&mut self, deadline: Option<Instant>, closed_at: &mut Option<Instant>) {
        let read = self.may_read();
        let reports = &self.task.shared.reports;
        tokio::select! {
            () = self.task.server.changes.woken() => {}
            permit = reports.reserve(), if !self.outbox.is_empty() => match permit {
                Ok(permit) => {
                    if let Some(report) = self.outbox.pop_front() {
                        permit.send(report);
                    }
                    while let Some(report) = self.outbox.pop_front() {
                        if let Err(TrySendError::Full(report)) = reports.try_send(report) {
                            self.outbox.push_front(report);
                            break;
                        }
                    }
                }
                Err(_) => {
                    self.outbox.clear();
                    self.task.server.close();
                }
            },
            event = self.process.next(read) => {
                if event == Event::Closed {
                    *closed_at = Some(Instant::now() + self.task.config.times.exit);
                }
            }
            () = self.alarm.wait(deadline) => {}
        }
    }

    /// Whether a message of the host has a chance to be read soon. That something of a bundle is on its
    /// way says nothing.
    fn hears(&self) -> bool {
        if self.bundles.is_empty() {
            !self.process.has_unsent()
        } else {
            !self.process.is_choked()
        }
    }

    fn may_read(&self) -> bool {
        self.outbox.is_empty() && self.held.is_none()
    }

    /// Takes jobs from the host, and payloads that have become ready.
    async fn take_new(&mut self) {
        loop {
            let Some(new) = self.task.server.inbox.borrow_mut().pop_front() else {
                break;
            };
            self.take(new).await;
        }
        loop {
            let Some((work, prepared)) = self.task.server.prepared.borrow_mut().pop() else {
                break;
            };
            self.prepared(work, prepared).await;
        }
    }

    async fn take(&mut self, new: NewJob) {
        if new.job.content == Content::Bundle {
            return self.take_bundle(new);
        }
        let NewJob {
            mut job,
            terms,
            control,
        } = new;
        let work = job.work;
        let running = Running::new(work, control, terms, &self.own, self.now);
        let content = job.content;
        let nothing = JobPayload::Inline(Bytes::new());
        let payload = std::mem::replace(&mut job.payload, nothing);
        let reads_files = self.hello.has(feature::FILE);
        let entry = Box::new(Entry {
            running,
            stage: Stage::Preparing,
            terms,
            has_file: false,
            stop_at: None,
            job,
        });
        self.jobs.insert(work, entry);
        if let Some(prepared) = at_once(&payload, content, terms.payload, reads_files) {
            return self.prepared(work, prepared).await;
        }
        let handover = Handover {
            dir: self.places.dir.clone(),
            file_name: payload_file(work),
            reads_files,
            may_run_again: terms.idempotent,
        };
        if matches!(payload, JobPayload::Inline(_)) {
            let prepared = handover.prepare(payload, content, terms.payload).await;
            return self.prepared(work, prepared).await;
        }
        // A look at a large file takes long; the other jobs go on meanwhile.
        let server = Rc::clone(&self.task.server);
        task::spawn("payload of a serving plugin", async move {
            let prepared = handover.prepare(payload, content, terms.payload).await;
            server.prepared.borrow_mut().push((work, prepared));
            server.changes.wake();
        });
    }

    async fn prepared(&mut self, work: MessageId, prepared: Prepared) {
        let Some(entry) = self.jobs.get_mut(&work) else {
            // Cancelled meanwhile.
            let _ = std::fs::remove_file(self.places.dir.join(payload_file(work)));
            return;
        };
        match prepared {
            Ok(payload) => {
                entry.has_file = matches!(payload, Some(Given::File(_)));
                if entry.has_file
                    && let Err(problem) = self.share_file(&payload_file(work))
                {
                    return self.finish(work, Outcome::Failed(problem)).await;
                }
                let Some(entry) = self.jobs.get_mut(&work) else {
                    return;
                };
                entry.stage = Stage::Ready(payload);
                if !entry.job.admitted {
                    let started = Report::Started {
                        work,
                        idempotent: entry.terms.idempotent,
                    };
                    self.emit(started);
                }
                self.obey_for(work).await;
            }
            Err(problem) => self.finish(work, Outcome::Failed(problem)).await,
        }
    }

    /// Does what the host has asked for since the last time: starts and cancels.
    async fn obey(&mut self) {
        for work in self.task.server.changes.take() {
            self.obey_for(work).await;
        }
    }

    async fn obey_for(&mut self, work: MessageId) {
        if !self.bundles.is_empty() && self.obey_bundle(work) {
            return;
        }
        let Some(entry) = self.jobs.get_mut(&work) else {
            return;
        };
        let control = &entry.running.control;
        control.look();
        match (control.cancelled(), &entry.stage) {
            (Some(reason), Stage::Preparing | Stage::Ready(_)) => {
                let problem = Why::Cancel(reason).error();
                self.finish(work, Outcome::Failed(problem)).await;
            }
            // It is left, as soon as the other jobs of the process have ended.
            (Some(CancelReason::Shutdown), Stage::Executing) if self.unseen.has(work) => {}
            (Some(reason), Stage::Executing) => self.end(work, Why::Cancel(reason)),
            (None, Stage::Ready(_)) if control.may_start() => {
                if self.bundles.is_behind() || self.is_ahead() {
                    self.bundles.wait(work);
                } else {
                    self.begin_job(work).await;
                }
            }
            (None, Stage::Executing | Stage::Preparing | Stage::Ready(_)) => {}
        }
    }

    /// Hands a job over that is ready and may start.
    async fn begin_job(&mut self, work: MessageId) {
        // One that had to wait may have been told to start more than once.
        let is_ready = |entry: &&mut Box<Entry>| matches!(entry.stage, Stage::Ready(_));
        let Some(entry) = self.jobs.get_mut(&work).filter(is_ready) else {
            return;
        };
        let now = self.now;
        match execute(entry, self.process.outgoing(), now) {
            Ok(()) => {
                let silent_at = now + self.task.config.times.ping_after;
                let deadline = entry.running.deadline();
                // What may be run again is, after a restart.
                if self.process.is_kept() && entry.job.outlives && entry.job.attempt == 1 {
                    entry.running.keep_files();
                    let word = holder::Entry::new(&entry.terms.action());
                    self.unseen.begin(&entry.running, word, self.process);
                    self.emit(Report::Kept { work });
                }
                self.plan(deadline.map_or(silent_at, |at| at.min(silent_at)));
            }
            Err(problem) => self.finish(work, Outcome::Failed(problem)).await,
        }
    }

    /// Goes on with a job of an earlier daemon.
    fn go_on(&mut self, new: NewJob, known: &LeftWork, repeats: u64) {
        let NewJob {
            job,
            terms,
            control,
        } = new;
        let work = job.work;
        let mut running = Running::new(work, control, terms, &self.own, self.now);
        running.go_on(known.entry.began(), known.mark, repeats);
        running.keep_files();
        self.unseen.go_on(&running);
        self.emit(Report::Kept { work });
        let entry = Entry {
            running,
            stage: Stage::Executing,
            terms,
            // If it has none there is none to remove.
            has_file: true,
            stop_at: None,
            job,
        };
        self.jobs.insert(work, Box::new(entry));
        self.plan(self.now);
    }

    /// Lets the plugin read a file that is given to it.
    fn share_file(&self, name: &str) -> Result<(), ErrorBody> {
        if !self.process.is_remote() {
            return Ok(());
        }
        Unit::share_file(&self.places.dir.join(name)).map_err(|problem| {
            let text = format!("the payload cannot be handed over: {problem}");
            error(ErrorCode::Internal, text)
        })
    }

    /// Whether so much is on its way to the plugin that what is next has to wait. There will then
    /// be an event when there is room.
    fn is_ahead(&mut self) -> bool {
        if self.unseen.is_full() {
            return true;
        }
        if self.process.unsent() < AHEAD_MAX {
            return false;
        }
        self.process.flush();
        if self.process.unsent() < AHEAD_MAX {
            return false;
        }
        self.process.tell_sent(AHEAD_MAX / 2);
        true
    }

    /// A job has reached its end.
    async fn finish(&mut self, work: MessageId, outcome: Outcome) {
        let Some(mut job) = self.jobs.remove(&work) else {
            return;
        };
        if self.held.as_ref().is_some_and(|(held, ..)| *held == work) {
            self.held = None;
        }
        let report = job.running.done(outcome, &self.places).await;
        if job.has_file {
            let _ = std::fs::remove_file(self.places.dir.join(payload_file(work)));
        }
        self.ended.push_back(work);
        if self.ended.len() > REMEMBERED {
            self.ended.pop_front();
        }
        self.idle_since = self.now;
        // Before the report, after which the engine may ask for the place.
        let plugin = job.job.directive.plugin();
        self.task.shared.admission.give_back(plugin);
        self.emit(report);
        if self.unseen.has(work) {
            // The host has to know it until its end is safe, but its place is free.
            self.unseen.ended(self.at, &job.running);
            self.task.shared.ends.push(TaskEnd::Room);
        } else {
            self.task.shared.ends.push(TaskEnd::Served(work));
        }
    }

    /// To the engine, behind what waits for it already.
    fn emit(&mut self, report: Report) {
        if !self.outbox.is_empty() {
            self.outbox.push_back(report);
            return;
        }
        match self.task.shared.reports.try_send(report) {
            Ok(()) => {}
            Err(TrySendError::Full(report)) => self.outbox.push_back(report),
            Err(TrySendError::Closed(_)) => self.task.server.close(),
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn payload_file(work: MessageId) -> String {
    format!("{work}.payload")
}

/// The work that the plugin means: it says our ids as it got them.
fn work_of(id: &str) -> Option<MessageId> {
    const DIGITS: usize = 32;
    (id.len() == DIGITS).then(|| id.parse().ok()).flatten()
}

/// Adds the line that hands a job over.
fn execute(entry: &mut Entry, lines: &mut Vec<u8>, now: Instant) -> Result<(), ErrorBody> {
    let Stage::Ready(payload) = std::mem::replace(&mut entry.stage, Stage::Executing) else {
        return Ok(());
    };
    entry.running.begin(now);
    let execute = ExecuteRef {
        id: &entry.running.id,
        action: entry.job.directive.action(),
        sender: entry.job.sender.as_str(),
        payload: payload.as_ref().map(Given::as_payload),
        timeout_ms: entry.running.timeout_ms(),
        attempt: entry.job.attempt,
    };
    execute.put_line(lines).map_err(|problem| {
        let message = format!("the payload does not fit a line: {problem}");
        error(ErrorCode::PayloadTooLarge, message)
    })
}
