//! Who may start: the places on this node and at each plugin.
//!
//! Owns the counts of works that have a place, shared by the host, which gives places back and
//! hands them to works that wait, and the engine, which may take one for a message in the moment in
//! which it arrives: arrival and start of such a work are then written to the disk in one step. Never starts
//! anything.
//!
//! A place on the node is one process: a work in a process of its own takes one, and all works of a
//! serving plugin take one together. How many of these run is only for the plugin to say.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use receptor_proto::Directive;

use super::api::MAX_WAITING;
use super::running::Changes;

/// Bundles that a serving process has and has not handed over: with one more than that which is its turn,
/// it need not wait for the engine.
const BUNDLES_MAX: usize = 2;

/// A shared view of the places. Cheap to clone; for one thread.
#[derive(Debug, Clone, Default)]
pub struct Admission(Rc<RefCell<Book>>);

/// A place was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Admitted {
    /// Whether the plugin says that the action may be run again after it was cut short.
    pub idempotent: bool,
}

#[derive(Debug, Default)]
struct Book {
    closed: bool,
    max: usize,
    waiting: usize,
    plugins: BTreeMap<String, Place>,
}

#[derive(Debug, Default)]
struct Place {
    open: bool,
    /// Its works share one process.
    serves: bool,
    max: usize,
    used: usize,
    waiting: usize,
    /// Bundles at its process of which it has not got all.
    bundles: usize,
    /// Tasks of its processes with a bundle that there was no place for.
    joining: Vec<Rc<Changes>>,
    /// With whether they are idempotent.
    actions: BTreeMap<String, bool>,
}

impl Place {
    fn has_room(&self) -> bool {
        self.open && self.used < self.max
    }

    fn wake_joining(&mut self) {
        if self.used < self.max {
            for task in self.joining.drain(..) {
                task.wake();
            }
        }
    }

    /// Places on the node that its works take.
    fn processes(&self) -> usize {
        if self.serves {
            self.used.min(1)
        } else {
            self.used
        }
    }

    /// Whether one more work needs no place on the node.
    fn joins(&self) -> bool {
        self.serves && self.used > 0
    }
}

impl Book {
    fn has_place(&self) -> bool {
        // A node has a handful of plugins.
        let used: usize = self.plugins.values().map(Place::processes).sum();
        used < self.max
    }
}

/// What is known of a plugin.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// It may get works.
    pub open: bool,
    /// Its works share one process.
    pub serves: bool,
    /// How many of them may run at once.
    pub max: usize,
    /// Its actions, and whether they are idempotent.
    pub actions: BTreeMap<String, bool>,
}

impl Admission {
    /// Gives the work a place if one is free and nobody waits for it. The caller must then send
    /// [`super::Command::Run`] with `admitted` set, and nothing else of this directive before it.
    #[must_use]
    pub fn try_admit(&self, directive: &Directive) -> Option<Admitted> {
        let book = &mut *self.0.borrow_mut();
        let place = book.plugins.get_mut(directive.plugin())?;
        if book.closed || !place.has_room() || place.waiting > 0 {
            return None;
        }
        let idempotent = *place.actions.get(directive.action())?;
        if place.joins() {
            place.used += 1;
            return Some(Admitted { idempotent });
        }
        if book.waiting > 0 || !book.has_place() {
            return None;
        }
        book.plugins.get_mut(directive.plugin())?.used += 1;
        Some(Admitted { idempotent })
    }

    /// As [`Self::try_admit`], for a bundle: the place is that of its first part.
    #[must_use]
    pub fn try_admit_bundle(&self, directive: &Directive) -> bool {
        if self.bundles_wait(directive.plugin()) || self.try_admit(directive).is_none() {
            return false;
        }
        if let Some(place) = self.0.borrow_mut().plugins.get_mut(directive.plugin()) {
            place.bundles += 1;
        }
        true
    }

    /// Whether the plugin's process has as many bundles as it may.
    #[must_use]
    pub fn bundles_wait(&self, plugin: &str) -> bool {
        let book = self.0.borrow();
        let place = book.plugins.get(plugin);
        place.is_some_and(|place| place.bundles >= BUNDLES_MAX)
    }

    /// Whether the works of a plugin have a process each; false also of what is not known.
    #[must_use]
    pub fn is_one_each(&self, plugin: &str) -> bool {
        let book = self.0.borrow();
        let place = book.plugins.get(plugin);
        place.is_some_and(|place| !place.actions.is_empty() && !place.serves)
    }

    /// A bundle was given to the plugin's process without having been admitted.
    pub(super) fn take_bundle(&self, plugin: &str) {
        if let Some(place) = self.0.borrow_mut().plugins.get_mut(plugin) {
            place.bundles += 1;
        }
    }

    /// The plugin has all of a bundle, or gets no more of it.
    pub(super) fn end_bundle(&self, plugin: &str) {
        if let Some(place) = self.0.borrow_mut().plugins.get_mut(plugin) {
            place.bundles = place.bundles.saturating_sub(1);
        }
    }

    /// Takes places at a plugin that runs for the parts of a bundle, which are ahead of whoever waits: how
    /// many of those wanted. When it is none, the task is woken once there may be some: they may be another process's.
    pub(super) fn join(&self, plugin: &str, wanted: usize, task: &Rc<Changes>) -> usize {
        let mut book = self.0.borrow_mut();
        let Some(place) = book.plugins.get_mut(plugin) else {
            return 0;
        };
        let got = wanted.min(place.max.saturating_sub(place.used));
        place.used += got;
        if got == 0 && !place.joining.iter().any(|known| Rc::ptr_eq(known, task)) {
            place.joining.push(Rc::clone(task));
        }
        got
    }

    /// How many works of a plugin may wait at the host. None when all of its places are taken by works
    /// of one process: as each of them ends, the place is given back first and the end reported then, so
    /// that the engine has a place for the next in the moment in which it hears of one.
    #[must_use]
    pub fn may_wait(&self, plugin: &str) -> usize {
        let book = self.0.borrow();
        let is_full = |place: &Place| place.open && place.joins() && place.used >= place.max;
        if !book.closed && book.plugins.get(plugin).is_some_and(is_full) {
            return 0;
        }
        MAX_WAITING
    }

    /// Whether the plugin says that this may be run again after it was cut short; `None` when it is
    /// not installed or not described yet.
    #[must_use]
    pub fn is_idempotent(&self, directive: &Directive) -> Option<bool> {
        let book = self.0.borrow();
        let place = book.plugins.get(directive.plugin())?;
        place.actions.get(directive.action()).copied()
    }

    /// Works that have a place.
    #[must_use]
    pub fn used(&self) -> usize {
        self.0
            .borrow()
            .plugins
            .values()
            .map(|place| place.used)
            .sum()
    }

    pub(super) fn set_max(&self, max: usize) {
        self.0.borrow_mut().max = max;
    }

    pub(super) fn close(&self) {
        self.0.borrow_mut().closed = true;
    }

    /// What is known of a plugin now. Whether it may get works that it could not get before.
    pub(super) fn set_plugin(&self, name: &str, known: Known) -> bool {
        let mut book = self.0.borrow_mut();
        let place = book.plugins.entry(name.to_owned()).or_default();
        let gets_more = known.open && (!place.open || known.max > place.max);
        place.open = known.open;
        place.serves = known.serves;
        place.max = known.max;
        place.actions = known.actions;
        place.wake_joining();
        gets_more
    }

    /// The plugin gets no work until it is open again.
    pub(super) fn set_open(&self, name: &str, open: bool) {
        if let Some(place) = self.0.borrow_mut().plugins.get_mut(name) {
            place.open = open;
        }
    }

    /// The plugin is not installed any more.
    pub(super) fn remove_plugin(&self, name: &str) {
        let mut book = self.0.borrow_mut();
        if let Some(place) = book.plugins.get_mut(name) {
            place.open = false;
            place.actions.clear();
            if place.used == 0 && place.waiting == 0 {
                book.plugins.remove(name);
            }
        }
    }

    /// Whether a work that waits for this plugin could start.
    pub(super) fn has_room(&self, name: &str) -> bool {
        let book = self.0.borrow();
        book.plugins
            .get(name)
            .is_some_and(|place| place.has_room() && (place.joins() || book.has_place()))
    }

    pub(super) fn take(&self, name: &str) {
        if let Some(place) = self.0.borrow_mut().plugins.get_mut(name) {
            place.used += 1;
        }
    }

    /// A work runs that was running before, whatever is known of its plugin by now.
    pub(super) fn take_anyway(&self, name: &str) {
        let mut book = self.0.borrow_mut();
        book.plugins.entry(name.to_owned()).or_default().used += 1;
    }

    pub(super) fn give_back(&self, name: &str) {
        self.give_back_many(name, 1);
    }

    pub(super) fn give_back_many(&self, name: &str, count: usize) {
        if let Some(place) = self.0.borrow_mut().plugins.get_mut(name) {
            place.used = place.used.saturating_sub(count);
            place.wake_joining();
        }
    }

    /// One work more, or fewer, waits for this plugin.
    pub(super) fn set_waiting(&self, name: &str, waiting: usize) {
        let mut book = self.0.borrow_mut();
        let place = book.plugins.entry(name.to_owned()).or_default();
        let before = std::mem::replace(&mut place.waiting, waiting);
        book.waiting = book.waiting + waiting - before;
    }

    pub(super) fn used_by(&self, name: &str) -> usize {
        let book = self.0.borrow();
        book.plugins.get(name).map_or(0, |place| place.used)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directive(text: &str) -> Directive {
        text.parse().unwrap()
    }

    /// A plugin that bears three works at once.
    fn known(serves: bool) -> Known {
        Known {
            open: true,
            serves,
            max: 3,
            actions: BTreeMap::from([("echo".to_owned(), true), ("fail".to_owned(), false)]),
        }
    }

    #[test]
    fn works_that_share_a_process_share_a_place() {
        let admission = Admission::default();
        admission.set_max(2);
        admission.set_plugin("serve", known(true));
        admission.set_plugin("echo", known(false));
        let (serve, echo) = (directive("serve:echo"), directive("echo:echo"));
        assert!(admission.try_admit(&serve).is_some());
        assert!(admission.try_admit(&echo).is_some());
        assert_eq!(admission.try_admit(&echo), None);
        admission.set_waiting("echo", 1);
        for _ in 1..3 {
            assert!(admission.has_room("serve"));
            assert!(admission.try_admit(&serve).is_some());
        }
        assert!(!admission.has_room("serve"));
        assert_eq!(admission.try_admit(&serve), None);
        assert_eq!(admission.may_wait("serve"), 0);
        assert_eq!(admission.may_wait("echo"), MAX_WAITING);
        admission.set_open("serve", false);
        assert_eq!(admission.may_wait("serve"), MAX_WAITING);
        admission.set_open("serve", true);
        assert_eq!((admission.used(), admission.used_by("serve")), (4, 3));
        // The last of them gives the place back.
        for has_room in [false, false, true] {
            admission.give_back("serve");
            assert_eq!(admission.has_room("echo"), has_room);
        }
        admission.take("echo");
        assert!(!admission.has_room("serve"), "a new process needs a place");
    }

    #[test]
    fn a_place_is_given_only_when_nobody_waits_for_it() {
        let admission = Admission::default();
        let echo = directive("echo:echo");
        assert_eq!(admission.try_admit(&echo), None);
        admission.set_max(2);
        admission.set_plugin("echo", known(false));
        assert_eq!(
            admission.try_admit(&echo),
            Some(Admitted { idempotent: true })
        );
        assert_eq!(admission.try_admit(&directive("echo:other")), None);
        admission.set_waiting("echo", 1);
        assert_eq!(admission.try_admit(&echo), None);
        assert!(admission.has_room("echo"));
        admission.set_waiting("echo", 0);
        let fail = directive("echo:fail");
        assert_eq!(
            admission.try_admit(&fail),
            Some(Admitted { idempotent: false })
        );
        assert_eq!(admission.try_admit(&echo), None);
        assert!(!admission.has_room("echo"));
        admission.give_back("echo");
        admission.set_open("echo", false);
        assert_eq!(admission.try_admit(&echo), None);
        admission.set_open("echo", true);
        admission.close();
        assert_eq!(admission.try_admit(&echo), None);
        assert_eq!((admission.used(), admission.used_by("echo")), (1, 1));
    }
}
