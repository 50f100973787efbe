//! How jobs in a serving process are brought to an end, and the process itself.
//!
//! Owns the limits of time, the pings, and the answers for all jobs of a process that is gone. Never ends
//! one job at the cost of others before it was asked to end by itself and given time.

use std::collections::BTreeMap;
use std::time::Instant;

use receptor_proto::plugin::{Cancel, HostMessage, Ping, Shutdown, feature};
use receptor_proto::{ErrorBody, ErrorCode, MessageId};

use super::{Serving, Stage, Stop, millis};
use crate::worker::describe::{Parting, closed_error, exit_error, let_go, put_down};
use crate::worker::outcome::{Outcome, describe, error};
use crate::worker::running::Why;

impl Serving<'_> {
    /// The time to look at the jobs comes at this moment at the latest.
    pub(super) fn plan(&mut self, at: Instant) {
        self.look_at = Some(self.look_at.map_or(at, |planned| planned.min(at)));
    }

    /// Begins to end one job.
    pub(super) fn end(&mut self, work: MessageId, why: Why) {
        self.process.flush();
        let alone = self.jobs.len() == 1 && self.bundles.is_empty();
        let hears = self.hello.has(feature::CANCEL) && self.hears();
        let Some(job) = self.jobs.get_mut(&work) else {
            return;
        };
        if job.running.why.is_some() {
            return;
        }
        let grace = self.task.config.times.cancel_grace;
        let mut stop_at = Instant::now() + grace;
        if hears {
            let cancel = HostMessage::Cancel(Cancel {
                id: job.running.id.clone(),
                reason: why.reason(),
                grace_ms: millis(grace),
            });
            if let Ok(line) = cancel.to_line() {
                self.process.send(&line);
            }
        } else if alone {
            // It cannot be told, and there is nobody to spare.
            stop_at = Instant::now();
        }
        tracing::debug!(plugin = self.name, job = job.running.id, ?why, "ending");
        job.stop_at = Some(stop_at);
        job.running.why = Some(why);
        self.plan(stop_at);
        if self.held.as_ref().is_some_and(|(held, ..)| *held == work) {
            // The next turn lets its result go and reads on, which no event will tell.
            self.task.server.changes.wake();
        }
    }

    /// Statuses, limits of time and pings.
    pub(super) fn look_at_jobs(&mut self, now: Instant) {
        self.look_at = None;
        let mut overdue = Vec::new();
        for (work, job) in &mut self.jobs {
            if !matches!(job.stage, Stage::Executing) {
                continue;
            }
            if let Some(report) = job.running.take_status(now) {
                // The latest wins, so that one that finds no room may be lost.
                let _ = self.task.shared.reports.try_send(report);
            }
            if let Some(why) = job.running.overdue(now) {
                overdue.push((*work, why));
            }
        }
        for (work, why) in overdue {
            self.end(work, why);
        }
        self.look_at_parts(now);
        self.keep_pinging(now);
        let jobs = self.jobs.values();
        let jobs = jobs.filter(|job| matches!(job.stage, Stage::Executing));
        let jobs = jobs.flat_map(|job| [job.running.deadline(), job.stop_at]);
        let bundles = self.bundles.deadline();
        self.look_at = jobs
            .chain([self.ping_at(), bundles, self.look_at])
            .flatten()
            .min();
    }

    pub(super) fn ping_at(&self) -> Option<Instant> {
        let executing = self
            .jobs
            .values()
            .filter(|j| matches!(j.stage, Stage::Executing));
        let silent = executing.map(|job| job.running.last_heard());
        let silent = silent.chain(self.bundles.silent_since()).min()?;
        let since = self.ping.sent.map_or(silent, |sent| sent.max(silent));
        Some(since + self.task.config.times.ping_after)
    }

    pub(super) fn keep_pinging(&mut self, now: Instant) {
        if self.ping_at().is_none_or(|at| now < at) {
            return;
        }
        if self.ping.sent.is_some() && !self.ping.answered && !self.ping.warned {
            self.ping.warned = true;
            tracing::warn!(
                plugin = self.name,
                pid = self.process.pid(),
                "a job is silent and the plugin does not answer a ping: perhaps it hangs"
            );
        }
        self.ping.nonce += 1;
        self.ping.sent = Some(now);
        self.ping.answered = false;
        let ping = HostMessage::Ping(Ping {
            nonce: self.ping.nonce,
        });
        if let Ok(line) = ping.to_line()
            && self.hears()
        {
            self.process.send(&line);
        }
    }

    pub(super) fn deadline(&self, idle_at: Option<Instant>) -> Option<Instant> {
        let deadlines = [self.look_at, self.stalled_at(), idle_at];
        deadlines.into_iter().flatten().min()
    }

    /// When the job whose result waits for room has waited for too long.
    fn stalled_at(&self) -> Option<Instant> {
        let stall = self.task.config.times.serve_stall;
        self.held.as_ref().map(|(_, _, since)| *since + stall)
    }

    /// The process has ended, or closed its stdout for good.
    pub(super) async fn exited(&mut self) -> Stop {
        // What it said before it died may still be in the pipe, and wait for room.
        let drain = self.task.config.times.drain;
        let mut drained = self.now + drain;
        loop {
            self.now = Instant::now();
            if self.read().await.is_err() {
                break;
            }
            self.tell_holder();
            self.look_at_held(self.now);
            if !self.may_read() {
                drained = self.now + drain;
            } else if !self.process.is_open() || self.now >= drained {
                break;
            }
            let stall = self.stalled_at();
            self.wait(Some(stall.unwrap_or(drained)), &mut None).await;
        }
        let lingers = self.process.status().is_none();
        self.process.kill_if_alive().await;
        let was_clean = self.process.status().is_some_and(|status| status.success());
        if self.jobs.is_empty() && self.bundles.is_empty() && was_clean {
            return Stop::Ended;
        }
        let problem = if lingers {
            closed_error(self.process, self.name)
        } else {
            exit_error(self.process, self.name)
        };
        self.fail_all(&problem).await;
        Stop::Crashed(problem.message)
    }

    /// A job was told to end and did not.
    pub(super) async fn give_up(&mut self) -> Stop {
        if self.unseen.is_leaving() {
            return Stop::Left;
        }
        tracing::warn!(
            plugin = self.name,
            pid = self.process.pid(),
            "a job ignores its cancel: the process is ended, with all of its jobs"
        );
        self.task.server.close();
        put_down(self.process, self.task.config.times.term_grace).await;
        let how = describe(self.process.status());
        let name = self.name;
        let problem = error(
            ErrorCode::PluginExit,
            format!("{name} {how}: it was ended because another of its works ignored its cancel"),
        );
        self.fail_all(&problem).await;
        Stop::Ended
    }

    pub(super) async fn fail_all(&mut self, problem: &ErrorBody) {
        let works: BTreeMap<MessageId, Option<Why>> = self
            .jobs
            .iter()
            .map(|(work, job)| (*work, job.running.why.clone()))
            .collect();
        for (work, why) in works {
            let problem = why.map_or_else(|| problem.clone(), |why| why.error());
            self.finish(work, Outcome::Failed(problem)).await;
        }
        self.fail_bundles(problem);
    }

    /// Lets an idle process go.
    pub(super) async fn part(&mut self) {
        self.task.server.close();
        let times = &self.task.config.times;
        let shutdown = HostMessage::Shutdown(Shutdown {
            grace_ms: millis(times.shutdown_grace),
        });
        if let Ok(line) = shutdown.to_line() {
            self.process.send(&line);
        }
        if let_go(self.process, times.shutdown_grace).await == Parting::Lingered {
            put_down(self.process, times.term_grace).await;
        }
    }
}
