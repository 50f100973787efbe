//! Who may start: the places on this node and at each plugin.
//!
//! Owns the counts of works that have a place, shared by the host, which gives places back and
//! hands them to works that wait, and the engine, which may take one for a message in the moment in
//! which it arrives: arrival and start of such a work are then written to the disk in one step. Never starts
//! anything.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use receptor_proto::Directive;

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
    used: usize,
    waiting: usize,
    plugins: BTreeMap<String, Place>,
}

#[derive(Debug, Default)]
struct Place {
    open: bool,
    max: usize,
    used: usize,
    waiting: usize,
    /// With whether they are idempotent.
    actions: BTreeMap<String, bool>,
}

impl Admission {
    /// Gives the work a place if one is free and nobody waits for it. The caller must then send
    /// [`super::Command::Run`] with `admitted` set, and nothing else of this directive before it.
    #[must_use]
    pub fn try_admit(&self, directive: &Directive) -> Option<Admitted> {
        let mut book = self.0.borrow_mut();
        if book.closed || book.used >= book.max || book.waiting > 0 {
            return None;
        }
        let place = book.plugins.get_mut(directive.plugin())?;
        if !place.open || place.used >= place.max {
            return None;
        }
        let idempotent = *place.actions.get(directive.action())?;
        place.used += 1;
        book.used += 1;
        Some(Admitted { idempotent })
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
        self.0.borrow().used
    }

    pub(super) fn set_max(&self, max: usize) {
        self.0.borrow_mut().max = max;
    }

    pub(super) fn close(&self) {
        self.0.borrow_mut().closed = true;
    }

    /// What is known of a plugin. It gets no work while it is not open.
    pub(super) fn set_plugin(
        &self,
        name: &str,
        open: bool,
        max: usize,
        actions: BTreeMap<String, bool>,
    ) {
        let mut book = self.0.borrow_mut();
        let place = book.plugins.entry(name.to_owned()).or_default();
        place.open = open;
        place.max = max;
        place.actions = actions;
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
        book.used < book.max
            && book
                .plugins
                .get(name)
                .is_some_and(|place| place.open && place.used < place.max)
    }

    pub(super) fn take(&self, name: &str) {
        let mut book = self.0.borrow_mut();
        book.used += 1;
        if let Some(place) = book.plugins.get_mut(name) {
            place.used += 1;
        }
    }

    pub(super) fn give_back(&self, name: &str) {
        let mut book = self.0.borrow_mut();
        book.used = book.used.saturating_sub(1);
        if let Some(place) = book.plugins.get_mut(name) {
            place.used = place.used.saturating_sub(1);
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

    #[test]
    fn a_place_is_given_only_when_nobody_waits_for_it() {
        let admission = Admission::default();
        let echo = directive("echo:echo");
        assert_eq!(admission.try_admit(&echo), None);
        admission.set_max(2);
        let actions = BTreeMap::from([("echo".to_owned(), true), ("fail".to_owned(), false)]);
        admission.set_plugin("echo", true, 8, actions);
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
