//! The works that ran here and have ended, so that this node and the one that sent them say the same
//! of them, also after either was restarted.
//!
//! Owns how many are remembered and for how long. Each is a memo in the spool that is as safe as
//! the work's last response; the oldest of too many go, and those that ended longer ago than
//! `spool.results-retention`. Of works that nobody waits for only those that failed are here.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use receptor_mesh::EntryId;
use receptor_proto::control::WorkStatus;
use receptor_proto::{Directive, MessageId, NodeId};

use super::ending::Ending;
use crate::by_id::ById;
use crate::spooler::Store;

/// See the module. Clones are the same history.
#[derive(Debug, Clone)]
pub(crate) struct History {
    store: Store,
    max: usize,
    state: Rc<RefCell<State>>,
}

#[derive(Debug, Default)]
struct State {
    by_id: ById<(EntryId, Ending)>,
    by_end: BTreeSet<(u64, MessageId)>,
}

impl State {
    /// The memo of what was known of this work.
    fn take(&mut self, id: MessageId) -> Option<EntryId> {
        let (memo, ending) = self.by_id.remove(&id)?;
        self.by_end.remove(&(ending.at_ms, id));
        Some(memo)
    }

    fn put(&mut self, memo: EntryId, ending: Ending) {
        self.by_end.insert((ending.at_ms, ending.id));
        self.by_id.insert(ending.id, (memo, ending));
    }
}

impl History {
    pub(super) fn new(store: Store, max: usize) -> Self {
        Self {
            store,
            max,
            state: Rc::default(),
        }
    }

    /// A work that ended in an earlier run.
    pub(super) fn restore(&self, memo: EntryId, ending: Ending) {
        let mut state = self.state.borrow_mut();
        // One that ran again has two when the first was not removed in time.
        let known = state.by_id.get(&ending.id);
        if known.is_some_and(|(other, _)| *other > memo) {
            self.store.remove(memo);
            return;
        }
        if let Some(older) = state.take(ending.id) {
            self.store.remove(older);
        }
        state.put(memo, ending);
    }

    /// A work has ended. Comes before its last response is given to the store, which is then
    /// never there without this.
    pub(crate) fn add(&self, ending: Ending) {
        let mut state = self.state.borrow_mut();
        let older = state.take(ending.id);
        let memo = self.store.keep_memo(ending.to_memo());
        state.put(memo, ending);
        if let Some(older) = older {
            self.store.remove(older);
        }
        drop(state);
        self.bound();
    }

    /// Forgets the oldest of too many.
    pub(super) fn bound(&self) {
        self.forget_while(|count, _| count > self.max);
    }

    /// Forgets what ended at or before this time.
    pub(super) fn sweep(&self, before_ms: u64) {
        self.forget_while(|_, at_ms| at_ms <= before_ms);
    }

    /// Forgets the oldest while `over` says so of how many there are and when that one ended.
    fn forget_while(&self, over: impl Fn(usize, u64) -> bool) {
        let mut state = self.state.borrow_mut();
        while let Some(&(at_ms, id)) = state.by_end.first()
            && over(state.by_end.len(), at_ms)
        {
            if let Some(memo) = state.take(id) {
                self.store.remove(memo);
            }
        }
    }

    /// Whether this work is remembered.
    pub(crate) fn knows(&self, id: MessageId) -> bool {
        self.state.borrow().by_id.contains_key(&id)
    }

    /// What ran, and since when, as it is remembered.
    pub(crate) fn begun(&self, id: MessageId) -> Option<(Option<Directive>, u64)> {
        let state = self.state.borrow();
        let (_, ending) = state.by_id.get(&id)?;
        Some((ending.directive.clone(), ending.since_ms))
    }

    /// All works that are remembered.
    pub(crate) fn ids(&self) -> Vec<MessageId> {
        self.state.borrow().by_id.keys().copied().collect()
    }

    /// How these works ended.
    pub(crate) fn statuses(&self, node: &NodeId, only: Option<MessageId>) -> Vec<WorkStatus> {
        let state = self.state.borrow();
        let endings: Vec<_> = match only {
            Some(id) => state.by_id.get(&id).into_iter().collect(),
            None => state.by_id.values().collect(),
        };
        let endings = endings.into_iter();
        endings.map(|(_, ending)| ending.status(node)).collect()
    }
}
