//! What the plugin says: its lines, understood and passed on.
//!
//! Owns the reading. Never reads on while there is something that the engine or a job has no room for.

use std::time::Instant;

use receptor_proto::plugin::{Data, MAX_LINE, Payload, PluginMessage};
use receptor_proto::{ErrorBody, MessageId};

use super::bundle::{done_at_once, is_part};
use super::{Serving, Stage, work_of};
use crate::worker::job::MAX_LOG;
use crate::worker::lines::Lines;
use crate::worker::outcome::{Outcome, cut, protocol_error};
use crate::worker::running::{Flaw, Why, flaw_error};
use crate::worker::shared::TaskEnd;

impl Serving<'_> {
    /// Understands what was read, as far as there is room for what it says.
    pub(super) async fn read(&mut self) -> Result<(), ErrorBody> {
        if let Some((work, data, since)) = self.held.take() {
            self.data(work, data, since).await;
            self.heard(self.process.offset());
        }
        // Out of the process, so that a line can be understood where it lies.
        let mut lines = self.process.take_lines();
        let result = self.read_lines(&mut lines).await;
        self.process.put_lines(lines);
        if self.bundles.is_behind() {
            // Places that were given back are for those who wait.
            self.hand_over_parts().await;
            self.process.flush();
        }
        self.tell_room();
        result
    }

    pub(super) async fn read_lines(&mut self, lines: &mut Lines) -> Result<(), ErrorBody> {
        let result = loop {
            if !self.may_read() {
                break Ok(());
            }
            match lines.next_in_place(MAX_LINE) {
                Ok(Some(line)) => {
                    if let Some(id) = done_at_once(line)
                        && is_part(id)
                        && self.part_is_done(id)
                    {
                        continue;
                    }
                    if let Err(problem) = self.message(line).await {
                        break Err(problem);
                    }
                    self.heard(self.offset(lines));
                }
                Ok(None) => break Ok(()),
                Err(long) => {
                    let what = format!("a line is longer than {MAX_LINE} bytes");
                    break Err(protocol_error(self.name, &what, Some(&long.start)));
                }
            }
        };
        if result.is_ok() {
            self.heard(self.offset(lines));
        }
        result
    }

    /// Where these lines begin, which are not the process's at the moment.
    fn offset(&self, lines: &Lines) -> u64 {
        let left = u64::try_from(lines.len()).unwrap_or(u64::MAX);
        self.process.offset().saturating_sub(left)
    }

    /// What comes before this offset was understood, and passed on unless it has to wait.
    fn heard(&mut self, offset: u64) {
        if self.process.is_remote() && self.held.is_none() {
            self.at = offset;
            self.unseen.heard(offset);
        }
    }

    pub(super) async fn message(&mut self, line: &[u8]) -> Result<(), ErrorBody> {
        let broken = |what: &str| protocol_error(self.name, what, Some(line));
        let message = match PluginMessage::decode(line) {
            Ok(message) => message,
            Err(problem) => return Err(broken(&format!("a line is no message: {problem}"))),
        };
        let now = self.now;
        // Only what is about a job has one.
        let mut about = MessageId::from_u128(0);
        if let Some(id) = message.id() {
            if is_part(id) {
                if self.is_resumed {
                    return Ok(());
                }
                let id = id.to_owned();
                self.part_message(&id, message);
                return Ok(());
            }
            let work = work_of(id);
            match work.and_then(|work| self.jobs.get_mut(&work)) {
                Some(job) if matches!(job.stage, Stage::Executing) => {
                    job.running.heard(now);
                    about = job.running.work;
                }
                Some(_) | None if work.is_some_and(|work| self.ended.contains(&work)) => {
                    tracing::warn!(plugin = self.name, job = id, "a message about an ended job");
                    return Ok(());
                }
                // It may be of a job that only the earlier daemon knew.
                Some(_) | None if self.is_resumed => return Ok(()),
                Some(_) | None => return Err(broken(&format!("there is no job {id:?}"))),
            }
        }
        match message {
            PluginMessage::Data(data) => self.data(about, data, now).await,
            PluginMessage::Status(status) => {
                if let Some(job) = self.jobs.get_mut(&about) {
                    job.running.set_status(status);
                    self.plan(now);
                }
            }
            PluginMessage::Log(log) => {
                let text = cut(log.message, MAX_LOG);
                self.process.stderr().log(log.level, &text, now);
            }
            PluginMessage::Done(done) => {
                let outcome = Outcome::Done {
                    code: done.code,
                    result: done.result,
                };
                self.said(about, outcome).await;
            }
            PluginMessage::Error(failed) => {
                self.said(about, Outcome::of_plugin(failed.error)).await;
            }
            PluginMessage::Pong(pong) => self.ping.answered |= pong.nonce == self.ping.nonce,
            PluginMessage::Hello(_) => return Err(broken("a second hello")),
            PluginMessage::Ready(ready) => {
                let plugin = self.name.to_owned();
                self.task.shared.ends.push(TaskEnd::Ready { plugin, ready });
            }
            // Newer plugins may say more than is known here.
            PluginMessage::Unknown { .. } => {}
        }
        Ok(())
    }

    pub(super) async fn data(&mut self, work: MessageId, data: Data, since: Instant) {
        let Some(job) = self.jobs.get_mut(&work) else {
            // It ended while its result waited for room.
            return;
        };
        if !job.running.takes_result() {
            if job.running.why.is_none() {
                job.running.heard(self.now);
                self.held = Some((work, data, since));
            } else {
                job.running.lose_result();
            }
            return;
        }
        if let Payload::File(file) = &data.body {
            self.process.share(&file.path).await;
        }
        match job.running.result(data.body, &self.places).await {
            Ok(report) => {
                if self.unseen.has(work) {
                    self.unseen.said(self.at, &job.running);
                }
                self.emit(report);
            }
            Err(Flaw::Quota(max)) => self.end(work, Why::Results(max)),
            Err(flaw) => {
                let problem = flaw_error(self.name, flaw);
                self.end(work, Why::Broken(problem));
            }
        }
    }

    pub(super) async fn said(&mut self, work: MessageId, outcome: Outcome) {
        let judged = self
            .jobs
            .get(&work)
            .map(|job| job.running.judge(Some(outcome)));
        if let Some(outcome) = judged.flatten() {
            self.finish(work, outcome).await;
        }
    }

    /// The job whose results nobody takes.
    pub(super) fn look_at_held(&mut self, now: Instant) {
        if let Some((work, _, since)) = &self.held
            && now >= *since + self.task.config.times.serve_stall
        {
            let work = *work;
            self.held = None;
            if let Some(job) = self.jobs.get_mut(&work) {
                job.running.lose_result();
            }
            self.end(work, Why::Stalled);
            // There may be more to read in the buffer, which no event will tell.
            self.task.server.changes.wake();
        }
    }
}
