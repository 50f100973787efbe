//! What a plugin and the host say to each other about one job, from `execute` to the end.
//!
//! Owns the steps against a job that is to end: message, SIGTERM, SIGKILL to the tree. Never reads
//! the plugin's pipe while there is no room for what it says.

use std::collections::VecDeque;
use std::os::unix::process::ExitStatusExt as _;
use std::time::Instant;

use bytes::BytesMut;
use receptor_proto::packet::{Content, SEGMENT_MAX};
use receptor_proto::plugin::{
    Cancel, HostMessage, MAX_LINE, OutputKind, Payload, PluginHello, PluginMessage, feature,
};
use receptor_proto::{ErrorBody, ErrorCode};
use tokio::sync::mpsc;

use super::{MAX_LOG, Task};
use crate::worker::alarm::Alarm;
use crate::worker::api::Report;
use crate::worker::describe::{closed_error, exit_error};
use crate::worker::outcome::{Outcome, cut, describe, error, protocol_error};
use crate::worker::process::{Event, Process};
use crate::worker::running::{Flaw, Places, Running, Why, flaw_error};
use crate::worker::unseen::Unseen;

/// How far the host has gone in ending a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
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
pub(super) struct Conversation<'a> {
    pub task: &'a Task,
    pub running: &'a mut Running,
    pub process: &'a mut Process,
    pub places: &'a Places,
    /// Reports that did not fit the channel at once; while there are any, nothing more is read.
    pub outbox: &'a mut VecDeque<Report>,
    pub hello: &'a mut PluginHello,
    pub stop: Stop,
    /// When to give up on the end of stdout.
    pub drained_at: Option<Instant>,
    /// What the holder still keeps, if there is one.
    pub unseen: Unseen,
    pub alarm: Alarm,
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
    /// Until the job has ended.
    pub(super) async fn run(&mut self) -> Outcome {
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
            self.tell_holder();
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

    /// Tells the holder what nobody wants to hear again.
    fn tell_holder(&mut self) {
        if !self.process.is_remote() {
            return;
        }
        self.unseen.said(self.process.offset(), self.running);
        self.unseen.tell(self.process, self.places);
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
                let bytes = self.process.piece(SEGMENT_MAX);
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
                if !self.running.takes_result() {
                    // Only when it is being ended: nobody could take it.
                    self.running.lose_result();
                    return Step::More;
                }
                if let Payload::File(file) = &data.body {
                    self.process.share(&file.path).await;
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
                self.process.stderr().log(log.level, &text, Instant::now());
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
        if !self.running.takes_result() {
            self.running.lose_result();
            return Step::More;
        }
        let result = self.running.raw(Content::Text, line, self.places).await;
        self.pass_on(result)
    }

    async fn raw(&mut self, content: Content, bytes: BytesMut) -> Step {
        if !self.running.takes_result() {
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

    fn terminate(&mut self, now: Instant) -> Stop {
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
