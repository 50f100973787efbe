//! The routing half's part of a mesh with certificates: what is believed, and how much asking that takes.
//!
//! Owns the [`Security`], the room for what cannot be checked yet, and the allowance of public-key work
//! that a neighbor has, so that no member can make this node compute or remember without end. Without
//! certificates there is no guard, and none of this happens.
//!
//! ```text
//!   LSAs ─▶ signed ─▶ lsdb, flood             packets for this node ─▶ sealed ─▶ delivery
//!              │ originator unknown                                       │ source unknown
//!              ▼                                                          ▼
//!           waiting ◀──────────── acquaint: a statement was learned ───▶ unopened
//! ```

mod acquaint;
mod allowance;
mod sealed;
mod signed;
mod waiting;

use alloc::boxed::Box;
use core::time::Duration;

use self::acquaint::Acquaintances;
use self::allowance::{Allowances, Rate};
pub(super) use self::sealed::Opened;
use self::sealed::Unopened;
pub(super) use self::signed::Vouched;
use self::signed::{Disbelieved, Spent};
use self::waiting::Waiting;
use super::Router;
use super::lsdb::OWN;
use super::timers::Timer;
use crate::{Instant, LinkId, Security};

/// How often the [`Security`] looks at what changes with time.
const RECHECK: Duration = Duration::from_secs(10);
/// The same while it says that there is more to look at.
const RECHECK_MORE: Duration = Duration::from_millis(200);
/// Signatures of LSAs that a neighbor may have checked: a mesh of a thousand nodes at once, and then as
/// many a second as take a tenth of a processor.
const CHECKS: Rate = Rate {
    burst: 4000,
    per_second: 1000,
};
/// Seals of new contexts and statements in packets that a neighbor may have looked at.
const OPENINGS: Rate = Rate {
    burst: 1000,
    per_second: 250,
};

/// See the module.
#[derive(Debug)]
pub(super) struct Guard {
    security: Box<dyn Security>,
    checks: Allowances,
    openings: Allowances,
    waiting: Waiting,
    disbelieved: Disbelieved,
    spent: Spent,
    acquaintances: Acquaintances,
    unopened: Unopened,
    /// Somebody's statement was learned: what waits for it may go on.
    pub(super) eased: bool,
}

impl Guard {
    pub(super) fn new(security: Box<dyn Security>) -> Self {
        Self {
            security,
            checks: Allowances::new(CHECKS),
            openings: Allowances::new(OPENINGS),
            waiting: Waiting::default(),
            disbelieved: Disbelieved::default(),
            spent: Spent::default(),
            acquaintances: Acquaintances::default(),
            unopened: Unopened::default(),
            eased: false,
        }
    }

    /// A link is gone, and with it what it brought that could not be checked yet.
    pub(super) fn forget_link(&mut self, id: LinkId) {
        self.waiting.forget_link(id);
    }
}

impl Router {
    pub(super) fn is_secured(&self) -> bool {
        self.guard.is_some()
    }

    /// Looks at what changed in who is believed.
    pub(crate) fn recheck_security(&mut self, now: Instant) {
        let Some(guard) = &mut self.guard else {
            return;
        };
        let changes = guard.security.recheck(now);
        let next = if changes.more { RECHECK_MORE } else { RECHECK };
        self.timers.set(Timer::Guard, now + next);
        // What others bring of this node's own is judged like everything else.
        let own = guard.security.identity();
        if guard.security.known(&self.config.node).as_ref() != Some(&own) {
            // One that it does not believe itself nobody else will: its driver says why.
            let _ = guard.security.learn(now, &self.config.node, &own);
        }
        if changes.trust {
            guard.disbelieved.clear();
        }
        let mut gone = false;
        for (node, _) in &changes.refused {
            guard.spent.forget(node);
            let index = self.lsdb.find(node).filter(|index| *index != OWN);
            gone |= index.is_some_and(|index| self.lsdb.forget(index));
        }
        if gone {
            self.request_routes(now);
        }
        if changes.own {
            self.refresh(now);
        }
    }

    /// What is due of the guard's timers.
    pub(super) fn guard_timeout(&mut self, now: Instant) {
        self.recheck_security(now);
        self.ask_again(now);
    }
}
