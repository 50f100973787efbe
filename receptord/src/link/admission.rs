//! How many connections may be open at once: in all, and from one place.
//!
//! Owns the counts of connections, from the moment a transport accepts or dials one until it
//! is closed. The first connection over a limit is refused with a line in the log; those after
//! it only once a while, so that a flood does not flood the log too.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// A single place may have this many links whatever the limit in all: many nodes behind one
/// address translation are common.
const PER_SOURCE_MIN: u32 = 64;
/// Otherwise one place may have this part of all links.
const PER_SOURCE_PART: u32 = 4;
/// Between two log lines about refused connections.
const COMPLAIN_EVERY: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Debug)]
pub(crate) struct Admission {
    max: Cell<u32>,
    open: Cell<u32>,
    by_source: RefCell<BTreeMap<IpAddr, u32>>,
    refused: Cell<u64>,
    complained: Cell<Option<Instant>>,
    left: Notify,
}

/// One admitted connection; dropping it frees its place.
#[derive(Debug)]
pub(crate) struct Permit {
    admission: Rc<Admission>,
    source: Option<IpAddr>,
}

impl Admission {
    /// At most `max` connections at once.
    pub(crate) fn new(max: u32) -> Rc<Self> {
        Rc::new(Self {
            max: Cell::new(max),
            open: Cell::new(0),
            by_source: RefCell::default(),
            refused: Cell::new(0),
            complained: Cell::new(None),
            left: Notify::new(),
        })
    }

    /// Another limit from now on; connections that are open stay.
    pub(crate) fn set_max(&self, max: u32) {
        self.max.set(max);
    }

    /// Waits until no connection is open. For one waiter.
    pub(crate) async fn idle(&self) {
        while self.open.get() > 0 {
            self.left.notified().await;
        }
    }

    /// Counts one connection from `source` (`None`: not told apart), unless that is one too many.
    pub(crate) fn admit(self: &Rc<Self>, source: Option<IpAddr>) -> Option<Permit> {
        let max = self.max.get();
        if self.open.get() >= max {
            self.refuse(source, "in all", max);
            return None;
        }
        if let Some(ip) = source {
            let limit = PER_SOURCE_MIN.max(max / PER_SOURCE_PART);
            let mut by_source = self.by_source.borrow_mut();
            let count = by_source.entry(ip).or_default();
            if *count >= limit {
                drop(by_source);
                self.refuse(source, "from one address", limit);
                return None;
            }
            *count += 1;
        }
        self.open.set(self.open.get() + 1);
        Some(Permit {
            admission: Rc::clone(self),
            source,
        })
    }

    fn refuse(&self, source: Option<IpAddr>, which: &str, limit: u32) {
        self.refused.set(self.refused.get() + 1);
        let now = Instant::now();
        let recent = |then: Instant| now.duration_since(then) < COMPLAIN_EVERY;
        if self.complained.get().is_some_and(recent) {
            return;
        }
        self.complained.set(Some(now));
        let address = source.map_or_else(|| "local".to_owned(), |ip| ip.to_string());
        tracing::warn!(
            address,
            limit,
            refused = self.refused.replace(0),
            "too many links {which}; connections are refused (link.max-links)"
        );
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let admission = &self.admission;
        admission.open.set(admission.open.get().saturating_sub(1));
        admission.left.notify_one();
        if let Some(ip) = self.source {
            let mut by_source = admission.by_source.borrow_mut();
            if let Some(count) = by_source.get_mut(&ip) {
                *count -= 1;
                if *count == 0 {
                    by_source.remove(&ip);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_limited_and_freed() {
        let admission = Admission::new(2);
        let first = admission.admit(None).unwrap();
        let _second = admission.admit(Some([127, 0, 0, 1].into())).unwrap();
        assert!(admission.admit(None).is_none());
        drop(first);
        assert!(admission.admit(None).is_some());
        assert_eq!(admission.open.get(), 1);
    }

    #[test]
    fn one_address_cannot_take_all() {
        let admission = Admission::new(1000);
        let ip = Some(IpAddr::from([192, 0, 2, 1]));
        let held: Vec<_> = std::iter::from_fn(|| admission.admit(ip)).collect();
        assert_eq!(held.len(), 250);
        assert!(admission.admit(Some([192, 0, 2, 2].into())).is_some());
        drop(held);
        assert!(admission.by_source.borrow().is_empty());
    }
}
