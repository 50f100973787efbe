//! How many connections may be open at once: in all, from one place, and without having said who they are.
//!
//! Owns the counts of connections, from the moment a transport accepts or dials one until it
//! is closed. The first connection over a limit is refused with a line in the log; those after
//! it only once a while, so that a flood does not flood the log too.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::config::Link;

/// Accepted connections on which the peer has not said hello yet, in all. Each takes up to 150 KiB, and a hub whose
/// thousands of nodes come back at once has answered so many in less time than they need to try again.
const OPENING_MAX: u32 = 512;
/// And from one place.
const OPENING_PER_SOURCE: u32 = 64;
/// Bits of an IPv6 address that tell places apart: whoever has one address of a network of this size has them all.
const IPV6_PLACE_BITS: u32 = 64;
/// Between two log lines about refused connections.
const COMPLAIN_EVERY: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Debug)]
pub(crate) struct Admission {
    max: Cell<u32>,
    max_per_source: Cell<u32>,
    open: Cell<u32>,
    opening: Cell<u32>,
    by_source: RefCell<BTreeMap<IpAddr, Source>>,
    refused: Cell<u64>,
    complained: Cell<Option<Instant>>,
    left: Notify,
}

/// What one place has.
#[derive(Debug, Default)]
struct Source {
    open: u32,
    opening: u32,
}

/// One admitted connection; dropping it frees its place.
#[derive(Debug)]
pub(crate) struct Permit {
    admission: Rc<Admission>,
    source: Option<IpAddr>,
    /// It was accepted, and no hello came yet.
    opening: Cell<bool>,
}

impl Permit {
    /// The peer has said hello.
    pub(super) fn opened(&self) {
        if !self.opening.replace(false) {
            return;
        }
        let admission = &self.admission;
        admission.opening.set(admission.opening.get() - 1);
        if let Some(source) = self.source
            && let Some(source) = admission.by_source.borrow_mut().get_mut(&source)
        {
            source.opening -= 1;
        }
    }
}

/// What stands for an address: itself, or the network that it is of.
fn place(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.into(),
        IpAddr::V6(ip) if ip.is_loopback() => ip.into(),
        IpAddr::V6(ip) => {
            let network = u128::MAX << (u128::BITS - IPV6_PLACE_BITS);
            Ipv6Addr::from_bits(ip.to_bits() & network).into()
        }
    }
}

impl Admission {
    /// As many connections as this says.
    pub(crate) fn new(limits: &Link) -> Rc<Self> {
        Rc::new(Self {
            max: Cell::new(limits.max_links),
            max_per_source: Cell::new(limits.max_links_per_source),
            open: Cell::new(0),
            opening: Cell::new(0),
            by_source: RefCell::default(),
            refused: Cell::new(0),
            complained: Cell::new(None),
            left: Notify::new(),
        })
    }

    /// Other limits from now on; connections that are open stay.
    pub(crate) fn set_limits(&self, limits: &Link) {
        self.max.set(limits.max_links);
        self.max_per_source.set(limits.max_links_per_source);
    }

    /// Waits until no connection is open. For one waiter.
    pub(crate) async fn idle(&self) {
        while self.open.get() > 0 {
            self.left.notified().await;
        }
    }

    /// Counts one connection that is made, unless that is one too many.
    pub(crate) fn admit_dialled(self: &Rc<Self>) -> Option<Permit> {
        self.admit(None, false)
    }

    /// Counts one connection that is accepted from `source` (`None`: not told apart), unless that is one too many.
    pub(crate) fn admit_accepted(self: &Rc<Self>, source: Option<IpAddr>) -> Option<Permit> {
        self.admit(source.map(place), true)
    }

    fn admit(self: &Rc<Self>, source: Option<IpAddr>, opening: bool) -> Option<Permit> {
        let max = self.max.get();
        if self.open.get() >= max {
            self.refuse(source, "links in all (link.max-links)", max);
            return None;
        }
        if opening && self.opening.get() >= OPENING_MAX {
            self.refuse(source, "connections without a hello", OPENING_MAX);
            return None;
        }
        if let Some(place) = source {
            let limit = self.max_per_source.get();
            let mut by_source = self.by_source.borrow_mut();
            let count = by_source.entry(place).or_default();
            if count.open >= limit {
                drop(by_source);
                let what = "links from one address (link.max-links-per-source)";
                self.refuse(source, what, limit);
                return None;
            }
            if count.opening >= OPENING_PER_SOURCE {
                drop(by_source);
                let what = "connections without a hello from one address";
                self.refuse(source, what, OPENING_PER_SOURCE);
                return None;
            }
            count.open += 1;
            count.opening += u32::from(opening);
        }
        self.open.set(self.open.get() + 1);
        self.opening.set(self.opening.get() + u32::from(opening));
        Some(Permit {
            admission: Rc::clone(self),
            source,
            opening: Cell::new(opening),
        })
    }

    fn refuse(&self, source: Option<IpAddr>, what: &str, limit: u32) {
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
            "too many {what}; more are refused"
        );
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.opened();
        let admission = &self.admission;
        admission.open.set(admission.open.get().saturating_sub(1));
        admission.left.notify_one();
        if let Some(ip) = self.source {
            let mut by_source = admission.by_source.borrow_mut();
            if let Some(count) = by_source.get_mut(&ip) {
                count.open -= 1;
                if count.open == 0 {
                    by_source.remove(&ip);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;

    fn limits(max_links: u32, max_links_per_source: u32) -> Link {
        Link {
            max_links,
            max_links_per_source,
            ..Settings::builtin().link
        }
    }

    fn accept(admission: &Rc<Admission>, ip: &str) -> Option<Permit> {
        admission.admit_accepted(Some(ip.parse().unwrap()))
    }

    #[test]
    fn places_are_limited_and_freed() {
        let admission = Admission::new(&limits(2, 2));
        let first = admission.admit_dialled().unwrap();
        let _second = accept(&admission, "127.0.0.1").unwrap();
        assert!(admission.admit_dialled().is_none());
        drop(first);
        assert!(admission.admit_dialled().is_some());
        assert_eq!(admission.open.get(), 1);
    }

    #[test]
    fn one_address_cannot_take_all() {
        let admission = Admission::new(&limits(1000, 250));
        let another = || {
            let permit = accept(&admission, "192.0.2.1")?;
            permit.opened();
            Some(permit)
        };
        let held: Vec<_> = std::iter::from_fn(another).collect();
        assert_eq!(held.len(), 250);
        assert!(accept(&admission, "192.0.2.2").is_some());
        drop(held);
        assert!(admission.by_source.borrow().is_empty());
        assert_eq!(admission.opening.get(), 0);
    }

    #[test]
    fn those_who_say_nothing_leave_room_for_others() {
        let admission = Admission::new(&limits(65_536, 65_536));
        let silent = |last: u8| {
            let ip = format!("192.0.2.{last}");
            std::iter::from_fn(|| accept(&admission, &ip)).collect::<Vec<_>>()
        };
        let mut all = silent(1);
        assert_eq!(all.len(), OPENING_PER_SOURCE as usize);
        for other in 2..=8 {
            all.extend(silent(other));
        }
        assert_eq!(all.len(), OPENING_MAX as usize);
        assert!(accept(&admission, "192.0.2.9").is_none());
        // What this node dials is its own choice.
        assert!(admission.admit_dialled().is_some());
        all[0].opened();
        assert!(accept(&admission, "192.0.2.9").is_some());
    }

    #[test]
    fn a_network_is_one_place() {
        let admission = Admission::new(&limits(1000, 2));
        let _held = ["2001:db8::1", "2001:db8::2"].map(|ip| accept(&admission, ip).unwrap());
        assert!(accept(&admission, "2001:db8::ffff:1").is_none());
        assert!(accept(&admission, "2001:db8:0:1::1").is_some());
        // The same place, written as IPv6.
        let _held = ["192.0.2.1", "::ffff:192.0.2.1"].map(|ip| accept(&admission, ip).unwrap());
        assert!(accept(&admission, "192.0.2.1").is_none());
    }
}
