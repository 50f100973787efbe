//! Job mode: one process for one work.
//!
//! Owns the whole life of such a process, in one task:
//!
//! ```text
//! payload checked ─▶ Started ─▶ spawn ─▶ hello ─▶ (start is on the disk) ─▶ execute
//!                                                                             │
//!          data, status, log ◀──────────── conversation ◀────────────────────┘
//!                                              │ done, error, exit, or a broken rule;
//!                                              │ cancel: message, SIGTERM, SIGKILL to the tree
//!                                              ▼
//!                          Done ─▶ stdin closed, exit ─▶ the sweeper takes the rest
//! ```
//!
//! Never has more results under way than the engine has room for: while there is none the plugin's pipe
//! is not read, which holds up this plugin and nobody else.

use std::collections::VecDeque;
use std::os::unix::process::ExitStatusExt as _;
use std::rc::Rc;
use std::time::Instant;

use bytes::BytesMut;
use receptor_proto::packet::{Content, SEGMENT_MAX};
use receptor_proto::plugin::{
    ActionDescriptor, Cancel, Execute, HostMessage, MAX_LINE, OutputKind, Payload, PluginHello,
    PluginMessage, env, feature,
};
use receptor_proto::{ErrorBody, ErrorCode};
use tokio::sync::mpsc;

use super::alarm::Alarm;
use super::api::{Job, Report};
use super::config::HostConfig;
use super::describe::{
    Executable, Parting, Purpose, closed_error, exit_error, host_hello, let_go, make_dir,
    own_config, put_down, read_hello, start,
};
use super::job_dir::Handover;
use super::outcome::{Outcome, cut, describe, error, protocol_error};
use super::process::{Event, Process};
use super::running::{Control, Flaw, Places, Running, Why, flaw_error};
use super::shared::Shared;
use super::sweep;

/// The payload's file in the job directory.
const PAYLOAD_FILE: &str = "payload";
/// Longest log message of a plugin that is logged, in bytes.
pub(super) const MAX_LOG: usize = 2048;

/// All that a job's task needs.
#[derive(Debug)]
pub(super) struct Task {
    /// For every task.
    pub shared: Rc<Shared>,
    /// As of the start of the job.
    pub config: Rc<HostConfig>,
    /// What to run.
    pub plugin: Executable,
    /// What it said when it was described.
    pub hello: Rc<PluginHello>,
    /// The action, out of that.
    pub action: ActionDescriptor,
    /// The work.
    pub job: Job,
    /// What the host says meanwhile.
    pub control: Rc<Control>,
}

/// What a job's task leaves.
#[derive(Debug)]
pub(super) struct Ended {
    /// What the plugin said of itself this time, if it did.
    pub hello: Option<PluginHello>,
}

/// Runs a job to its end, including the last report.
pub(super) async fn run(task: Task) -> Ended {
    let now = Instant::now();
    let own = own_config(&task.config, &task.plugin.name);
    let control = Rc::clone(&task.control);
    let mut running = Running::new(task.job.work, control, &task.action, &own, now);
    let places = Places {
        dir: task.config.jobs().join(&running.id),
        results: task.config.results(),
    };
    let mut ended = Ended { hello: None };
    let prepared = prepare(&task, &running).await;
    let (payload, mut process) = match prepared {
        Ok(prepared) => prepared,
        Err(problem) => {
            sweep::remove(&places.dir);
            let report = running.done(Outcome::Failed(problem), &places).await;
            let _ = task.shared.reports.send(report).await;
            return ended;
        }
    };
    let begun = begin(&task, &mut running, &mut process, payload).await;
    let mut outbox = VecDeque::new();
    let outcome = match begun {
        Ok(mut hello) => {
            let mut conversation = Conversation {
                task: &task,
                running: &mut running,
                process: &mut process,
                places: &places,
                outbox: &mut outbox,
                hello: &mut hello,
                stop: Stop::No,
                drained_at: None,
                alarm: Alarm::default(),
            };
            let outcome = conversation.run().await;
            ended.hello = Some(hello);
            outcome
        }
        Err(problem) => Outcome::Failed(problem),
    };
    outbox.push_back(running.done(outcome, &places).await);
    // The sender need not wait for the plugin's exit, nor the plugin for the sender.
    tokio::join!(
        flush(&task.shared.reports, outbox),
        clean_up(&task, &mut process, &running.id)
    );
    task.shared.sweeper.ended(process.root());
    ended
}

/// Everything before the first byte to the plugin.
async fn prepare(task: &Task, running: &Running) -> Result<(Option<Payload>, Process), ErrorBody> {
    let Task {
        shared,
        config,
        plugin,
        job,
        ..
    } = task;
    let dir = make_dir(config, plugin, &running.id)?;
    let handover = Handover {
        dir,
        file_name: PAYLOAD_FILE.to_owned(),
        reads_files: task.hello.has(feature::FILE),
    };
    let payload = job.payload.clone();
    let payload = handover.prepare(payload, job.content, &task.action).await?;
    if !job.admitted {
        let started = Report::Started {
            work: job.work,
            idempotent: task.action.idempotent,
        };
        let _ = shared.reports.send(started).await;
    }
    let mut variables = vec![
        (env::JOB_ID, running.id.clone().into()),
        (env::ACTION, job.directive.action().into()),
        (env::SENDER, job.sender.as_str().into()),
    ];
    if let Some(Payload::File(_)) = payload {
        variables.push((env::PAYLOAD_FILE, PAYLOAD_FILE.into()));
    }
    let purpose = Purpose {
        job: &running.id,
        variables,
    };
    let process = start(shared, config, plugin, purpose).await?;
    // The plugin takes a while to come up, in which the next one can be made ready.
    shared.spawner.park();
    Ok((payload, process))
}

/// Hello, permission to start, and the job itself.
async fn begin(
    task: &Task,
    running: &mut Running,
    process: &mut Process,
    payload: Option<Payload>,
) -> Result<PluginHello, ErrorBody> {
    let control = Rc::clone(&running.control);
    // Gone before the next wait: of two that wait, a change would wake only this one.
    let hello = {
        let cancelled = async {
            loop {
                if let Some(reason) = control.cancelled() {
                    return reason;
                }
                control.changed().await;
            }
        };
        tokio::select! {
            hello = read_hello(process, &task.plugin, &task.config.times) => hello,
            reason = cancelled => Err(Why::Cancel(reason).error()),
        }
    };
    let hello = match hello {
        Ok(hello) => hello,
        Err(problem) => {
            process.kill_if_alive().await;
            return Err(problem);
        }
    };
    if !hello.actions.contains_key(task.job.directive.action()) {
        process.kill_if_alive().await;
        let message = format!(
            "{} was replaced and has no such action any more",
            task.plugin.name
        );
        return Err(error(ErrorCode::NoSuchAction, message));
    }
    let mut ended = false;
    while !control.may_start() || control.cancelled().is_some() {
        if let Some(reason) = control.cancelled() {
            process.kill_if_alive().await;
            return Err(Why::Cancel(reason).error());
        }
        tokio::select! {
            () = control.changed() => {}
            event = process.next(false), if !ended => ended = event == Event::Exited,
        }
    }
    let execute = HostMessage::Execute(Execute {
        id: running.id.clone(),
        action: task.job.directive.action().to_owned(),
        sender: task.job.sender.to_string(),
        payload,
        timeout_ms: running.timeout_ms(),
        attempt: task.job.attempt,
    });
    let lines = host_hello(&task.config, &task.plugin.name)
        .to_line()
        .and_then(|mut hello| {
            hello.extend(execute.to_line()?);
            Ok(hello)
        });
    match lines {
        Ok(lines) => process.send(&lines),
        Err(problem) => {
            process.kill_if_alive().await;
            let message = format!("the payload does not fit a line: {problem}");
            return Err(error(ErrorCode::PayloadTooLarge, message));
        }
    }
    running.begin(Instant::now());
    Ok(hello)
}

async fn flush(reports: &mpsc::Sender<Report>, outbox: VecDeque<Report>) {
    for report in outbox {
        // Without an engine nobody is left to tell.
        if reports.send(report).await.is_err() {
            return;
        }
    }
}

/// Lets the process go whose job is over.
async fn clean_up(task: &Task, process: &mut Process, job: &str) {
    let times = &task.config.times;
    let plugin = &task.plugin.name;
    if process.status().is_none() && let_go(process, times.exit).await == Parting::Lingered {
        tracing::warn!(
            %plugin,
            %job,
            after = ?times.exit,
            "the plugin did not exit after its job: it is ended"
        );
        put_down(process, times.term_grace).await;
    }
    process.finish_stderr();
}

/// How far the host has gone in ending a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// It runs.
    No,
    /// It was told to end by a message, and is to be done by then.
    Asked(Instant),
    /// It was sent SIGTERM, and is to be dead by then.
    Terminated(Instant),
    /// It was killed, and nothing more can be done: what hangs in the kernel dies when it can.
    Killed,
}

/// A job from its `execute` to its end.
struct Conversation<'a> {
    task: &'a Task,
    running: &'a mut Running,
    process: &'a mut Process,
    places: &'a Places,
    /// Reports that did not fit the channel at once; while there are any, nothing more is read.
    outbox: &'a mut VecDeque<Report>,
    hello: &'a mut PluginHello,
    stop: Stop,
    /// When to give up on the end of stdout.
    drained_at: Option<Instant>,
    alarm: Alarm,
}

/// What one look at what was read has brought.
enum Step {
    /// Something; look again.
    More,
    /// Nothing complete.
    Nothing,
    /// The end.
    End(Outcome),
    /// The plugin broke a rule: it gets no more time.
    Broken(ErrorBody),
}

impl Conversation<'_> {
    async fn run(&mut self) -> Outcome {
        loop {
            if let Some(reason) = self.running.control.cancelled() {
                self.end(Why::Cancel(reason));
            }
            while self.may_read() {
                match self.step().await {
                    Step::More => {}
                    Step::Nothing => break,
                    Step::End(outcome) => return self.judge(Some(outcome)),
                    Step::Broken(problem) => {
                        self.process.kill_if_alive().await;
                        return Outcome::Failed(problem);
                    }
                }
            }
            let now = Instant::now();
            if let Some(report) = self.running.take_status(now) {
                // The latest wins, so that one that finds no room may be lost.
                let _ = self.task.shared.reports.try_send(report);
            }
            if let Some(why) = self.running.overdue(now) {
                self.end(why);
            }
            if self.is_over(now) {
                return self.ended().await;
            }
            if self.escalate(now).await {
                continue;
            }
            self.wait().await;
        }
    }

    /// Whether what the plugin says can be passed on, or is not to be.
    fn may_read(&self) -> bool {
        self.outbox.is_empty() && (self.running.why.is_some() || self.running.control.has_room())
    }

    /// Waits until there is a reason to look again.
    async fn wait(&mut self) {
        let read = self.may_read();
        if !read {
            // It cannot be heard, so it cannot be too silent; nor can it be done with its words.
            self.running.heard(Instant::now());
            self.drained_at = None;
        } else if self.drained_at.is_none() {
            let times = &self.task.config.times;
            if self.process.status().is_some() {
                self.drained_at = Some(Instant::now() + times.drain);
            } else if !self.process.is_open() && self.task.action.output == OutputKind::Json {
                // No final message can come any more, only the exit.
                self.drained_at = Some(Instant::now() + times.exit);
            }
        }
        let stop = match self.stop {
            Stop::No | Stop::Killed => None,
            Stop::Asked(until) | Stop::Terminated(until) => Some(until),
        };
        let deadline = [self.running.deadline(), self.drained_at, stop];
        let deadline = deadline.into_iter().flatten().min();
        let reports = &self.task.shared.reports;
        tokio::select! {
            () = self.running.control.changed() => {}
            permit = reports.reserve(), if !self.outbox.is_empty() => match permit {
                Ok(permit) => {
                    if let Some(report) = self.outbox.pop_front() {
                        permit.send(report);
                    }
                }
                Err(_) => self.outbox.clear(),
            },
            event = self.process.next(read) => {
                if event == Event::Output {
                    self.running.heard(Instant::now());
                }
            }
            () = self.alarm.wait(deadline) => {}
        }
    }

    /// Takes one line, or piece, of what was read.
    async fn step(&mut self) -> Step {
        match self.task.action.output {
            OutputKind::Json => match self.process.line(MAX_LINE) {
                Ok(Some(line)) => self.message(&line).await,
                Ok(None) => Step::Nothing,
                Err(long) => self.too_long(&long.start),
            },
            OutputKind::Text => match self.process.line(MAX_LINE) {
                Ok(Some(mut line)) => {
                    line.truncate(line.len() - 1);
                    self.text(line).await
                }
                Ok(None) => Step::Nothing,
                Err(long) => self.too_long(&long.start),
            },
            OutputKind::Bytes => {
                let bytes = self.process.bytes(SEGMENT_MAX);
                if bytes.is_empty() {
                    return Step::Nothing;
                }
                self.raw(Content::Bytes, bytes).await
            }
        }
    }

    fn too_long(&self, start: &[u8]) -> Step {
        let what = format!("a line is longer than {MAX_LINE} bytes");
        self.broken(&what, Some(start))
    }

    fn broken(&self, what: &str, line: Option<&[u8]>) -> Step {
        Step::Broken(protocol_error(&self.task.plugin.name, what, line))
    }

    async fn message(&mut self, line: &[u8]) -> Step {
        let message = match PluginMessage::decode(line) {
            Ok(message) => message,
            Err(problem) => {
                return self.broken(&format!("a line is no message: {problem}"), Some(line));
            }
        };
        if let Some(id) = message.id()
            && id != self.running.id
        {
            return self.broken(&format!("there is no job {id:?}"), Some(line));
        }
        match message {
            PluginMessage::Data(data) => {
                if !self.running.control.has_room() {
                    // Only when it is being ended: nobody could take it.
                    self.running.lose_result();
                    return Step::More;
                }
                let result = self.running.result(data.body, self.places).await;
                self.pass_on(result)
            }
            PluginMessage::Status(status) => {
                self.running.set_status(status);
                Step::More
            }
            PluginMessage::Log(log) => {
                let text = cut(log.message, MAX_LOG);
                self.process.stderr.log(log.level, &text, Instant::now());
                Step::More
            }
            PluginMessage::Done(done) => Step::End(Outcome::Done {
                code: done.code,
                result: done.result,
            }),
            PluginMessage::Error(failed) => Step::End(Outcome::of_plugin(failed.error)),
            PluginMessage::Hello(_) => self.broken("a second hello", Some(line)),
            PluginMessage::Ready(ready) => {
                self.hello.ready = ready.ready;
                self.hello.reason = ready.reason;
                Step::More
            }
            // Newer plugins may say more than is known here.
            PluginMessage::Pong(_) | PluginMessage::Unknown { .. } => Step::More,
        }
    }

    async fn text(&mut self, line: BytesMut) -> Step {
        let line = match str::from_utf8(&line) {
            Ok(_) => line.freeze(),
            // Killing a job half-way over an odd file name would help nobody.
            Err(_) => String::from_utf8_lossy(&line).into_owned().into(),
        };
        if !self.running.control.has_room() {
            self.running.lose_result();
            return Step::More;
        }
        let result = self.running.raw(Content::Text, line, self.places).await;
        self.pass_on(result)
    }

    async fn raw(&mut self, content: Content, bytes: BytesMut) -> Step {
        if !self.running.control.has_room() {
            self.running.lose_result();
            return Step::More;
        }
        let result = self.running.raw(content, bytes.freeze(), self.places).await;
        self.pass_on(result)
    }

    fn pass_on(&mut self, result: Result<Report, Flaw>) -> Step {
        match result {
            Ok(report) => {
                match self.task.shared.reports.try_send(report) {
                    Ok(()) => {}
                    Err(mpsc::error::TrySendError::Full(report)) => self.outbox.push_back(report),
                    Err(mpsc::error::TrySendError::Closed(_)) => {
                        self.end(Why::Cancel(receptor_proto::plugin::CancelReason::Shutdown));
                    }
                }
                Step::More
            }
            Err(Flaw::Quota(max)) => {
                self.end(Why::Results(max));
                Step::More
            }
            Err(flaw) => Step::Broken(flaw_error(&self.task.plugin.name, flaw)),
        }
    }

    /// Begins to end the job, unless that has begun.
    fn end(&mut self, why: Why) {
        if self.running.why.is_some() {
            return;
        }
        let times = &self.task.config.times;
        let now = Instant::now();
        // A plugin that has not read its job yet will not read this either.
        let listens = self.hello.has(feature::CANCEL) && !self.process.has_unsent();
        let cancel = HostMessage::Cancel(Cancel {
            id: self.running.id.clone(),
            reason: why.reason(),
            grace_ms: u64::try_from(times.cancel_grace.as_millis()).unwrap_or(u64::MAX),
        });
        self.stop = match cancel.to_line() {
            Ok(line) if listens => {
                self.process.send(&line);
                Stop::Asked(now + times.cancel_grace)
            }
            Ok(_) | Err(_) => self.terminate(now),
        };
        tracing::debug!(
            plugin = self.task.plugin.name,
            job = self.running.id,
            ?why,
            "ending"
        );
        self.running.why = Some(why);
    }

    fn terminate(&self, now: Instant) -> Stop {
        self.process.terminate();
        Stop::Terminated(now + self.task.config.times.term_grace)
    }

    /// Takes the next step against a job that would not end. Whether anything has changed.
    async fn escalate(&mut self, now: Instant) -> bool {
        match self.stop {
            Stop::Asked(until) if now >= until => {
                self.stop = self.terminate(now);
                true
            }
            Stop::Terminated(until) if now >= until && self.process.status().is_none() => {
                tracing::warn!(
                    plugin = self.task.plugin.name,
                    job = self.running.id,
                    "the plugin ignores SIGTERM: it and its children are killed"
                );
                self.process.kill().await;
                self.stop = Stop::Killed;
                true
            }
            Stop::No | Stop::Asked(_) | Stop::Terminated(_) | Stop::Killed => false,
        }
    }

    /// Whether nothing more can come.
    fn is_over(&self, now: Instant) -> bool {
        let waited = self.drained_at.is_some_and(|at| now >= at);
        if self.process.status().is_none() {
            return self.stop == Stop::Killed || !self.process.is_open() && waited;
        }
        self.may_read() && (!self.process.is_open() || waited)
    }

    /// The end of a process that had no final message.
    async fn ended(&mut self) -> Outcome {
        let rest = self.process.bytes(MAX_LINE);
        let last = match self.task.action.output {
            // A last message without its newline is still one; half of one is not.
            OutputKind::Json => match PluginMessage::decode(&rest) {
                Ok(_) if !rest.is_empty() => self.message(&rest).await,
                Ok(_) | Err(_) => Step::Nothing,
            },
            OutputKind::Text if !rest.is_empty() => self.text(rest).await,
            OutputKind::Text | OutputKind::Bytes => Step::Nothing,
        };
        match last {
            Step::End(outcome) => return self.judge(Some(outcome)),
            Step::Broken(problem) => return Outcome::Failed(problem),
            Step::More | Step::Nothing => {}
        }
        if self.running.why.is_some() {
            return self.judge(None);
        }
        if self.process.status().is_none() {
            self.process.kill().await;
            let problem = closed_error(self.process, &self.task.plugin.name);
            return Outcome::Failed(problem);
        }
        let status = self.process.status();
        if self.task.action.output != OutputKind::Json
            && let Some(code) = status.and_then(|status| status.code())
        {
            return Outcome::Done {
                code: code.into(),
                result: None,
            };
        }
        let name = &self.task.plugin.name;
        if !self.hello.ready && status.is_some_and(|status| status.signal().is_none()) {
            let reason = self
                .hello
                .reason
                .as_deref()
                .unwrap_or("it does not say why");
            let how = describe(status);
            let message = format!("{name} is not ready ({reason}) and {how}");
            return Outcome::Failed(error(ErrorCode::NotReady, message));
        }
        Outcome::Failed(exit_error(self.process, name))
    }

    fn judge(&mut self, said: Option<Outcome>) -> Outcome {
        self.running
            .judge(said)
            .unwrap_or_else(|| Outcome::Failed(exit_error(self.process, &self.task.plugin.name)))
    }
}
