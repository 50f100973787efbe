//! The plugins of the simulated nodes.
//!
//! Takes a dispatched work when it likes, runs it only when told to, answers in steps, waits
//! when held and ends when cancelled; now and then it is very slow. Writes down every run. What a plugin
//! says is with its [`Held`], from which it comes again when its node was restarted.

use bytes::Bytes;
use receptor_mesh::{Payload, WorkRoom};
use receptor_proto::packet::{Content, Eof};
use receptor_proto::{Directive, ErrorBody, ErrorCode, MessageId};

use crate::client::AGAIN;
use crate::event::{Event, NodeIndex, ProcessEvent};
use crate::holder::{Held, Word};
use crate::ledger::payload;
use crate::random::Draw;
use crate::world::World;

/// Share of works that are taken before the next output is polled.
const AT_ONCE: f64 = 0.5;
/// How much longer a slow work takes.
const SLOW: u64 = 100;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// No plugin has taken it.
    Waiting,
    /// Its plugin outlived an earlier start of the node, which is to take it up.
    Found,
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
    /// Responses that a run of it gives.
    left: u64,
    /// The last response that its node got.
    serial: u64,
    slow: bool,
    cancelled: bool,
    /// A crash cut an earlier run of it short.
    again: bool,
}

impl Job {
    pub(crate) fn is_idempotent(&self) -> bool {
        self.directive.as_str() == AGAIN
    }

    /// An earlier start of its node had started it.
    pub(crate) fn came_back(&self) -> bool {
        self.again
    }

    /// It was taken up where its plugin is, behind this response.
    pub(crate) fn goes_on(&mut self, phase: Phase, serial: u64) {
        self.phase = phase;
        self.serial = serial;
    }
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
        let found = again && self.finds(node, work);
        let cut = again && directive.as_str() != AGAIN;
        // Where a second run goes on.
        let mesh = self.hosts[node].mesh.as_ref().filter(|_| again);
        let view = mesh.and_then(|mesh| mesh.work(work));
        let job = Job {
            sender,
            directive,
            body,
            phase: match (found, cut) {
                (true, _) => Phase::Found,
                (false, true) => Phase::Cut,
                (false, false) => Phase::Waiting,
            },
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
        if found {
            self.found(node, work);
        } else if !cut
            && self.workers.chance(AT_ONCE)
            && self.hosts[node].jobs[&work].directive.plugin() == "sim"
        {
            self.take(node, work);
        } else {
            self.plan_step(node, work);
        }
    }

    fn interrupted(&mut self, node: NodeIndex, work: MessageId) {
        let result = self.ledger.may_be_cut(work, self.hosts[node].life);
        self.check_honest(result);
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
            let idempotent = job.is_idempotent();
            mesh.work_started(clock, work, idempotent);
        }
    }

    pub(crate) fn plan_step(&mut self, node: NodeIndex, work: MessageId) {
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
        let host = &mut self.hosts[node];
        let life = host.life;
        let Some(job) = host.jobs.get_mut(&work) else {
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
        host.held.insert(work, Held::new(job.serial, job.left));
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
            Phase::Found | Phase::Taken | Phase::Running | Phase::Held => false,
        };
        if cut {
            self.interrupted(node, work);
            return;
        }
        if job.phase == Phase::Found {
            self.adopt(node, work);
            return;
        }
        let held = self.hosts[node].held.get(&work);
        // It had ended before the cancel came.
        let too_late = held.is_some_and(Held::has_ended);
        if job.cancelled && !too_late {
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
            Phase::Cut | Phase::Found | Phase::Taken | Phase::Held => {}
            Phase::Running => match held.map(|held| held.next(job.serial)) {
                Some(Word::Response(size)) => self.work_data(node, work, size),
                Some(Word::End(Some((eof, size)))) => self.give_end(node, work, eof, size),
                Some(Word::End(None)) => {
                    let code = if job.directive.action() == "fail" {
                        3
                    } else {
                        0
                    };
                    self.work_ends(node, work, code, None);
                }
                None => self.check(Err(format!("{work} runs at {node}, and nobody holds it"))),
            },
        }
    }

    /// The plugin's next response, or one that it has given `before`.
    fn work_data(&mut self, node: NodeIndex, work: MessageId, before: Option<u64>) {
        let size = before.unwrap_or_else(|| self.say(node, work));
        let Some(job) = self.hosts[node].jobs.get_mut(&work) else {
            return;
        };
        job.serial += 1;
        let serial = job.serial;
        let payload = self.stored_payload(node, payload(work, serial, size));
        let clock = self.clock(node);
        let host = &mut self.hosts[node];
        let Some(mesh) = host.mesh.as_mut() else {
            return;
        };
        let result = mesh.work_data(clock, work, Content::Bytes, None, payload);
        let taken = match result {
            Ok(taken) => taken,
            Err(error) => return self.check(Err(format!("{work} at {node}: {error}"))),
        };
        if taken.serial.is_some_and(|its| its != serial) {
            let its = taken.serial;
            self.check(Err(format!("{node} takes {serial} of {work} for {its:?}")));
        }
        match taken.room {
            WorkRoom::Open => self.plan_step(node, work),
            WorkRoom::Wait => {
                self.stats.held += 1;
                if let Some(job) = self.hosts[node].jobs.get_mut(&work) {
                    job.phase = Phase::Held;
                }
            }
        }
    }

    /// The plugin says something new; how much.
    pub(crate) fn say(&mut self, node: NodeIndex, work: MessageId) -> u64 {
        let size = self.draw_size();
        if let Some(letter) = self.ledger.letters.get_mut(&work) {
            letter.said.responses.push(size);
        }
        if let Some(held) = self.hosts[node].held.get_mut(&work) {
            held.say(size);
        }
        size
    }

    fn work_ends(&mut self, node: NodeIndex, work: MessageId, code: u32, error: Option<ErrorBody>) {
        let eof = Eof { code, error };
        let size = if eof.error.is_some() {
            0
        } else {
            self.draw_size()
        };
        if let Some(letter) = self.ledger.letters.get_mut(&work) {
            letter.say_last(eof.clone(), size);
        }
        if let Some(held) = self.hosts[node].held.get_mut(&work) {
            held.say_last(eof.clone(), size);
        }
        self.give_end(node, work, eof, size);
    }

    fn give_end(&mut self, node: NodeIndex, work: MessageId, eof: Eof, size: u64) {
        let Some(job) = self.hosts[node].jobs.remove(&work) else {
            return;
        };
        let payload = self.stored_payload(node, payload(work, job.serial + 1, size));
        let content = if size == 0 {
            Content::None
        } else {
            Content::Bytes
        };
        let clock = self.clock(node);
        let host = &mut self.hosts[node];
        let Some(mesh) = host.mesh.as_mut() else {
            return;
        };
        match mesh.work_done(clock, work, eof, content, payload) {
            Ok(Some(serial)) => {
                if let Some(held) = host.held.get_mut(&work) {
                    held.gave_end(serial);
                }
            }
            // It is forgotten with its node.
            Ok(None) => {
                host.held.remove(&work);
            }
            Err(error) => self.check(Err(format!("{work} ends at {node}: {error}"))),
        }
    }

    pub(crate) fn draw_size(&mut self) -> u64 {
        if self.workers.chance(self.options.large) {
            self.workers.within(self.options.large_payload)
        } else {
            self.workers.within(self.options.payload)
        }
    }
}
