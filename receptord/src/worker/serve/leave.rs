//! How a serving process is left to the next daemon.
//!
//! Owns when that may be, and what becomes of the jobs that cannot go on there: they get the time that they would have
//! had with a process that ends. Never lets the process go before everything that it has said is safe somewhere.

use receptor_proto::plugin::CancelReason;

use super::{Serving, Stop};
use crate::worker::outcome::Outcome;
use crate::worker::running::Why;
use crate::worker::shared::TaskEnd;

impl Serving<'_> {
    /// Tells the holder what nobody wants to hear again.
    pub(super) fn tell_holder(&mut self) {
        if !self.process.is_remote() {
            return;
        }
        let over = self.unseen.tell(self.process, &self.places);
        if !over.is_empty() && self.bundles.is_behind() {
            // There is room for what waits, which no event will tell.
            self.task.server.changes.wake();
        }
        for work in over {
            self.task.shared.ends.push(TaskEnd::Served(work));
        }
    }

    /// Whether nothing keeps the process from being left.
    pub(super) fn may_leave(&self) -> bool {
        self.unseen.is_leaving()
            && self.task.server.inbox.borrow().is_empty()
            && self.process.queued() == 0
            && self.bundles.is_empty()
            && self.jobs.keys().all(|work| self.unseen.has(*work))
    }

    /// After the end of the process: waits until nobody has to hear again what it has said.
    pub(super) async fn until_safe(&mut self, stop: Stop) -> Stop {
        loop {
            self.tell_holder();
            if self.unseen.is_empty() {
                return stop;
            }
            if self.unseen.is_leaving() {
                return Stop::Left;
            }
            self.wait(None, &mut None).await;
        }
    }

    /// Ends the jobs that the next daemon cannot go on with, and lets go of the others.
    pub(super) async fn leave(&mut self) {
        let shutdown = Why::Cancel(CancelReason::Shutdown);
        let all: Vec<_> = self.jobs.keys().copied().collect();
        for work in all {
            if self.unseen.has(work) {
                self.jobs.remove(&work);
                self.task.shared.admission.give_back(self.name);
            } else {
                self.finish(work, Outcome::Failed(shutdown.error())).await;
            }
        }
        self.fail_bundles(&shutdown.error());
        for work in self.unseen.works() {
            self.task.shared.ends.push(TaskEnd::Served(work));
        }
    }
}
