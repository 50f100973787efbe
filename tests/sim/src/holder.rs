//! Who stands between a plugin and its node, and keeps what the plugin says until the node knows it safe.
//!
//! Where nothing but the process of a node dies, its plugins may go on: they say more meanwhile, and
//! the next start takes their works up where they are. Now and then one of them is not found again. Owns no promise; the
//! ledger says what a plugin said, and this only says it again.

use std::collections::VecDeque;

use receptor_mesh::{Adopted, WorkRoom};
use receptor_proto::MessageId;
use receptor_proto::packet::Eof;

use crate::event::NodeIndex;
use crate::random::Draw;
use crate::worker::Phase;
use crate::world::World;

/// Share of works that a start finds where they are.
const FOUND: f64 = 0.9;
/// Share of those that are taken up before the next output is polled.
const AT_ONCE: f64 = 0.5;

/// What a plugin has said that its node may not know after a restart, and what it will say.
#[derive(Debug)]
pub(crate) struct Held {
    /// The last response that a restart knows.
    after: u64,
    /// Sizes of those behind it.
    results: VecDeque<u64>,
    /// The last word and the size of its payload.
    end: Option<(Eof, u64)>,
    /// The serial that its node has given it.
    end_serial: Option<u64>,
    /// Responses that are still to come.
    left: u64,
}

/// What comes next of a plugin.
#[derive(Debug)]
pub(crate) enum Word {
    /// A response; of this size, if it was given before.
    Response(Option<u64>),
    /// The last word, as it was said before.
    End(Option<(Eof, u64)>),
}

impl Held {
    /// Of a plugin that begins behind a response of an earlier run.
    pub(crate) fn new(after: u64, left: u64) -> Self {
        Self {
            after,
            results: VecDeque::new(),
            end: None,
            end_serial: None,
            left,
        }
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.end.is_some()
    }

    /// What follows on this response.
    pub(crate) fn next(&self, serial: u64) -> Word {
        let at = serial.checked_sub(self.after);
        let said = at.and_then(|at| self.results.get(usize::try_from(at).ok()?));
        match (said, &self.end) {
            (Some(size), _) => Word::Response(Some(*size)),
            (None, Some(end)) => Word::End(Some(end.clone())),
            (None, None) if self.left > 0 => Word::Response(None),
            (None, None) => Word::End(None),
        }
    }

    pub(crate) fn say(&mut self, size: u64) {
        self.left -= 1;
        self.results.push_back(size);
    }

    pub(crate) fn say_last(&mut self, eof: Eof, size: u64) {
        self.end = Some((eof, size));
    }

    /// The node has the last word, and calls it so.
    pub(crate) fn gave_end(&mut self, serial: u64) {
        self.end_serial = Some(serial);
    }
}

impl World {
    /// A start of this node has a work whose plugin an earlier one had started: whether it still runs and
    /// is found.
    pub(crate) fn finds(&mut self, node: NodeIndex, work: MessageId) -> bool {
        let held = self.hosts[node].held.contains_key(&work);
        if held && !self.workers.chance(FOUND) {
            self.hosts[node].held.remove(&work);
            return false;
        }
        held
    }

    /// Takes the work up, or plans to.
    pub(crate) fn found(&mut self, node: NodeIndex, work: MessageId) {
        if self.workers.chance(AT_ONCE) {
            self.adopt(node, work);
        } else {
            self.plan_step(node, work);
        }
    }

    /// A work goes on whose plugin outlived its node.
    pub(crate) fn adopt(&mut self, node: NodeIndex, work: MessageId) {
        self.say_meanwhile(node, work);
        let clock = self.clock(node);
        let host = &mut self.hosts[node];
        let (Some(job), Some(held), Some(mesh)) = (
            host.jobs.get_mut(&work),
            host.held.get(&work),
            host.mesh.as_mut(),
        ) else {
            return;
        };
        let (after, said) = (held.after, held.results.len() as u64);
        let idempotent = job.is_idempotent();
        let result = mesh.work_adopted(clock, work, idempotent, after);
        let result = result.map_err(|error| format!("{work} goes on at {node}: {error}"));
        let result = result.and_then(|Adopted { repeats, room }| {
            let phase = match room {
                WorkRoom::Open => Phase::Running,
                WorkRoom::Wait => Phase::Held,
            };
            job.goes_on(phase, after);
            if repeats > said {
                return Err(format!(
                    "{node} has {repeats} responses of {work} behind {after}, of which {said} were given"
                ));
            }
            Ok(())
        });
        self.stats.adopted += 1;
        self.ledger.goes_on(work, self.hosts[node].life);
        self.check_honest(result);
        self.plan_step(node, work);
    }

    /// What a plugin says while nobody listens.
    fn say_meanwhile(&mut self, node: NodeIndex, work: MessageId) {
        let Some(held) = self.hosts[node].held.get(&work) else {
            return;
        };
        if held.end.is_some() {
            return;
        }
        for _ in 0..self.workers.u64(0..=held.left) {
            self.say(node, work);
        }
    }

    /// A restart of this node knows the responses of a work up to here.
    pub(crate) fn responses_safe(&mut self, node: NodeIndex, work: MessageId, serial: u64) {
        let Some(held) = self.hosts[node].held.get_mut(&work) else {
            return;
        };
        while held.after < serial && held.results.pop_front().is_some() {
            held.after += 1;
        }
        if held.end_serial.is_some_and(|end| end <= serial) {
            self.hosts[node].held.remove(&work);
            self.ledger.end_is_safe(work, self.hosts[node].life);
        }
    }

    /// What this start has taken nothing up of is over.
    pub(crate) fn end_the_lost(&mut self, node: NodeIndex) {
        let host = &mut self.hosts[node];
        host.held.retain(|work, _| host.jobs.contains_key(work));
    }
}
