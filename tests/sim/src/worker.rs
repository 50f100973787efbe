//! The plugins of the simulated nodes.
//!
//! Takes a dispatched work when it likes, runs it only when told to, answers in steps, waits
//! when held and ends when cancelled; now and then it is very slow. Writes down every run.

use bytes::Bytes;
use receptor_mesh::{Payload, Taken, WorkRoom};
use receptor_proto::packet::{Content, Eof};
use receptor_proto::{Directive, ErrorBody, ErrorCode, MessageId};

use crate::client::AGAIN;
use crate::event::{Event, NodeIndex, ProcessEvent};
use crate::ledger::payload;
use crate::random::Draw;
use crate::world::World;

/// Share of works that are taken before the next output is polled.
const AT_ONCE: f64 = 0.5;
/// How much longer a slow work takes.
const SLOW: u64 = 100;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// No plugin has taken it.
    Waiting,
    /// A crash cut it short, and no plugin says that it may be run again.
    Cut,
    /// Taken; its start is not on the disk.
    Taken,
    Running,
    /// Running, and told to wait.
    Held,
}

/// One work at a node.
#[derive(Debug)]
pub(crate) struct Job {
    sender: NodeIndex,
    directive: Directive,
    body: Bytes,
    phase: Phase,
    left: u64,
    serial: u64,
    slow: bool,
    cancelled: bool,
    /// A crash cut an earlier run of it short.
    again: bool,
}

impl World {
    pub(crate) fn dispatch(
        &mut self,
        node: NodeIndex,
        work: MessageId,
        sender: NodeIndex,
        directive: Directive,
        body: Bytes,
        attempt: u32,
    ) {
        let left = self.workers.within(self.options.responses);
        let again = attempt > 1;
        let cut = again && directive.as_str() != AGAIN;
        // Where a second run goes on.
        let mesh = self.hosts[node].mesh.as_ref().filter(|_| again);
        let view = mesh.and_then(|mesh| mesh.work(work));
        let job = Job {
            sender,
            directive,
            body,
            phase: if cut { Phase::Cut } else { Phase::Waiting },
            left,
            serial: view.map_or(0, |view| view.responses),
            slow: self.workers.chance(self.options.slow_works),
            cancelled: false,
            again,
        };
        if self.hosts[node].jobs.insert(work, job).is_some() {
            self.check(Err(format!("{work} dispatched twice at {node}")));
            return;
        }
        if !cut
            && self.workers.chance(AT_ONCE)
            && self.hosts[node].jobs[&work].directive.plugin() == "sim"
        {
            self.take(node, work);
        } else {
            self.plan_step(node, work);
        }
    }

    fn interrupted(&mut self, node: NodeIndex, work: MessageId) {
        let clock = self.clock(node);
        let text = "its node was restarted while the work ran";
        let eof = Eof {
            code: 1,
            error: Some(ErrorBody::new(ErrorCode::Interrupted, text)),
        };
        let empty = Payload::Inline(Bytes::new());
        self.hosts[node].jobs.remove(&work);
        let Some(mesh) = self.hosts[node].mesh.as_mut() else {
            return;
        };
        if let Err(error) = mesh.work_done(clock, work, eof, Content::None, empty) {
            self.check(Err(format!("{work} ends at {node}: {error}")));
        }
    }

    fn take(&mut self, node: NodeIndex, work: MessageId) {
        let clock = self.clock(node);
        let host = &mut self.hosts[node];
        if let (Some(job), Some(mesh)) = (host.jobs.get_mut(&work), host.mesh.as_mut()) {
            job.phase = Phase::Taken;
            let idempotent = job.directive.as_str() == AGAIN;
            mesh.work_started(clock, work, idempotent);
        }
    }

    fn plan_step(&mut self, node: NodeIndex, work: MessageId) {
        let mut pause = self.workers.micros(self.options.work_ms);
        let host = &self.hosts[node];
        let Some(job) = host.jobs.get(&work) else {
            return;
        };
        if job.slow && !job.cancelled {
            pause *= SLOW;
        }
        let process = host.life.process;
        self.queue.after(
            pause,
            Event::Process(node, process, ProcessEvent::Work(work)),
        );
    }

    /// The start of a work is on the disk: now it runs.
    pub(crate) fn start_work(&mut self, node: NodeIndex, work: MessageId) {
        let life = self.hosts[node].life;
        let Some(job) = self.hosts[node].jobs.get_mut(&work) else {
            self.check(Err(format!("{work} starts at {node}, where it is not")));
            return;
        };
        if job.phase != Phase::Taken {
            let phase = job.phase;
            self.check(Err(format!("{work} starts at {node} and is {phase:?}")));
            return;
        }
        job.phase = Phase::Running;
        let body = std::mem::take(&mut job.body);
        let result = self.ledger.run(
            work,
            job.sender,
            node,
            life,
            (&job.directive, &body),
            job.serial,
        );
        self.check_honest(result);
        self.plan_step(node, work);
    }

    pub(crate) fn cancel_work(&mut self, node: NodeIndex, work: MessageId) {
        let Some(job) = self.hosts[node].jobs.get_mut(&work) else {
            self.check(Err(format!("{work} cancelled at {node}, where it is not")));
            return;
        };
        if std::mem::replace(&mut job.cancelled, true) {
            self.check(Err(format!("{work} cancelled twice at {node}")));
        }
        self.plan_step(node, work);
    }

    pub(crate) fn resume_work(&mut self, node: NodeIndex, work: MessageId) {
        let Some(job) = self.hosts[node].jobs.get_mut(&work) else {
            self.check(Err(format!("{work} resumed at {node}, where it is not")));
            return;
        };
        if job.phase != Phase::Held {
            self.check(Err(format!("{work} resumed at {node}, and was not held")));
            return;
        }
        job.phase = Phase::Running;
        self.plan_step(node, work);
    }

    pub(crate) fn work_step(&mut self, node: NodeIndex, work: MessageId) {
        let Some(job) = self.hosts[node].jobs.get(&work) else {
            return;
        };
        let cut = match job.phase {
            Phase::Cut => true,
            Phase::Waiting => job.again && job.cancelled,
            Phase::Taken | Phase::Running | Phase::Held => false,
        };
        if cut {
            self.interrupted(node, work);
            return;
        }
        if job.cancelled {
            let error = ErrorBody::new(ErrorCode::Cancelled, "cancelled");
            self.work_ends(node, work, 1, Some(error));
            return;
        }
        if job.directive.plugin() != "sim" {
            let error = ErrorBody::new(ErrorCode::NoSuchPlugin, "there is no such plugin");
            self.work_ends(node, work, 1, Some(error));
            return;
        }
        match job.phase {
            Phase::Waiting => self.take(node, work),
            // Its time comes with the start on the disk, or with room.
            Phase::Cut | Phase::Taken | Phase::Held => {}
            Phase::Running if job.left > 0 => self.work_data(node, work),
            Phase::Running => {
                let code = if job.directive.action() == "fail" {
                    3
                } else {
                    0
                };
                self.work_ends(node, work, code, None);
            }
        }
    }

    fn work_data(&mut self, node: NodeIndex, work: MessageId) {
        let size = self.draw_size();
        let Some(job) = self.hosts[node].jobs.get_mut(&work) else {
            return;
        };
        job.left -= 1;
        job.serial += 1;
        let serial = job.serial;
        if let Some(letter) = self.ledger.letters.get_mut(&work) {
            letter.said.responses.push(size);
        }
        let payload = self.stored_payload(node, payload(work, serial, size));
        let clock = self.clock(node);
        let host = &mut self.hosts[node];
        let Some(mesh) = host.mesh.as_mut() else {
            return;
        };
        match mesh.work_data(clock, work, Content::Bytes, None, payload) {
            Ok(Taken {
                room: WorkRoom::Open,
                ..
            }) => self.plan_step(node, work),
            Ok(Taken {
                room: WorkRoom::Wait,
                ..
            }) => {
                self.stats.held += 1;
                if let Some(job) = self.hosts[node].jobs.get_mut(&work) {
                    job.phase = Phase::Held;
                }
            }
            Err(error) => self.check(Err(format!("{work} at {node}: {error}"))),
        }
    }

    fn work_ends(&mut self, node: NodeIndex, work: MessageId, code: u32, error: Option<ErrorBody>) {
        let eof = Eof { code, error };
        let size = if eof.error.is_some() {
            0
        } else {
            self.draw_size()
        };
        let Some(job) = self.hosts[node].jobs.remove(&work) else {
            return;
        };
        if let Some(letter) = self.ledger.letters.get_mut(&work) {
            letter.say_last(eof.clone(), size);
        }
        let payload = self.stored_payload(node, payload(work, job.serial + 1, size));
        let content = if size == 0 {
            Content::None
        } else {
            Content::Bytes
        };
        let clock = self.clock(node);
        let Some(mesh) = self.hosts[node].mesh.as_mut() else {
            return;
        };
        if let Err(error) = mesh.work_done(clock, work, eof, content, payload) {
            self.check(Err(format!("{work} ends at {node}: {error}")));
        }
    }

    fn draw_size(&mut self) -> u64 {
        if self.workers.chance(self.options.large) {
            self.workers.within(self.options.large_payload)
        } else {
            self.workers.within(self.options.payload)
        }
    }
}
