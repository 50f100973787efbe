//! Questions to the recipients of requests whether they still know of them.
//!
//! A recipient that has given its receipt owes an answer, and its origin keeps nothing but that it waits
//! for one. Should that node lose its disk, nobody would ever say so. So whenever the way to a node has
//! changed, which it does when that node was started anew, its origin asks it about every durable work
//! that had arrived and has no end. A node knows a work as long as it has it, or a response of it without a
//! receipt; and the last response's receipt means that the origin knows the end. So a work that the
//! recipient knows nothing of, and that has no end here, will never have one: it ends as `lost`.
//!
//! Asks one question of each node at a time and repeats it until it is answered, seldom in the end: a
//! node of an earlier version never answers. Never asks while ways are as they were.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::time::Duration;

use receptor_proto::packet::{Body, INQUIRY_MAX, Inquiry, MessageKind};
use receptor_proto::{ErrorBody, ErrorCode, MessageId};

use super::inbox::Request;
use super::{Cx, Delivery, OWN, RemoteId};
use crate::Instant;

/// How long after a way has changed its node is asked: several change together, and what was sent
/// again on the new way may bring the answer that is waited for.
const SETTLE: Duration = Duration::from_secs(2);
/// How soon a question without an answer is asked again, at first; twice as long each time.
const AGAIN: Duration = Duration::from_secs(2);
/// The longest time between two of these.
const AGAIN_MOST: Duration = Duration::from_secs(3600);

/// What is being asked.
#[derive(Debug, Default)]
pub(super) struct Inquiries {
    /// When it is looked for nodes to ask, since ways have changed.
    look_at: Option<Instant>,
    /// By which way each node with works was asked last.
    asked: BTreeMap<RemoteId, u64>,
    /// One question each.
    open: BTreeMap<RemoteId, Open>,
    /// When the first of these is to be asked again.
    again_at: Option<Instant>,
    nonce: u64,
}

/// A question without an answer.
#[derive(Debug)]
struct Open {
    nonce: u64,
    /// The last ones of these, up to [`INQUIRY_MAX`], are being asked about.
    works: Vec<MessageId>,
    again: Duration,
    again_at: Instant,
}

impl Open {
    fn asked(&self) -> &[MessageId] {
        let first = self.works.len().saturating_sub(INQUIRY_MAX);
        self.works.get(first..).unwrap_or_default()
    }
}

impl Inquiries {
    /// `seed` keeps those who do not see a question from guessing its number.
    pub(super) fn new(seed: u64) -> Self {
        Self {
            nonce: seed,
            ..Self::default()
        }
    }

    /// There are other ways than before.
    pub(super) fn ways_changed(&mut self, now: Instant) {
        self.look_at.get_or_insert(now + SETTLE);
    }

    /// What a node said of a work was not heard.
    pub(super) fn ask_again(&mut self, now: Instant, id: RemoteId) {
        self.asked.remove(&id);
        self.ways_changed(now);
    }

    /// When [`Delivery::inquire`] wants to be called.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.look_at.into_iter().chain(self.again_at).min()
    }

    fn begin(&mut self, now: Instant, id: RemoteId, works: Vec<MessageId>) {
        self.nonce = self.nonce.wrapping_add(1);
        let open = Open {
            nonce: self.nonce,
            works,
            again: AGAIN,
            again_at: now,
        };
        self.open.insert(id, open);
        self.again_at = Some(now);
    }
}

impl Delivery {
    /// Asks what is to be asked by now.
    pub(super) fn inquire(&mut self, cx: &mut Cx<'_>) {
        let now = cx.now;
        if self.inquiries.look_at.is_some_and(|at| at <= now) {
            self.inquiries.look_at = None;
            self.look_for_inquiries(cx);
        }
        if self.inquiries.again_at.is_none_or(|at| at > now) {
            return;
        }
        let open = self.inquiries.open.iter();
        let due = open.filter(|(_, open)| open.again_at <= now);
        let due: Vec<RemoteId> = due.map(|(id, _)| *id).collect();
        for id in due {
            self.send_open_inquiry(cx, id);
        }
        let open = self.inquiries.open.values();
        self.inquiries.again_at = open.map(|open| open.again_at).min();
    }

    /// One walk over all requests, whichever nodes are to be asked.
    fn look_for_inquiries(&mut self, cx: &Cx<'_>) {
        let mut paths: BTreeMap<RemoteId, u64> = BTreeMap::new();
        let mut works: BTreeMap<RemoteId, Vec<MessageId>> = BTreeMap::new();
        for (id, request) in self.requests.iter() {
            let remote = request.remote;
            if remote == OWN || !request.waits_for_its_end() {
                continue;
            }
            let node = &self.remotes[remote.0].node;
            let path = *paths.entry(remote).or_insert_with(|| cx.net.path(node));
            if path != 0 && self.inquiries.asked.get(&remote) != Some(&path) {
                works.entry(remote).or_default().push(id);
            }
        }
        self.inquiries.asked.retain(|id, _| paths.contains_key(id));
        paths.retain(|_, path| *path != 0);
        self.inquiries.asked.extend(paths);
        for (id, works) in works {
            self.inquiries.begin(cx.now, id, works);
        }
    }

    fn send_open_inquiry(&mut self, cx: &mut Cx<'_>, id: RemoteId) {
        let Some(open) = self.inquiries.open.get_mut(&id) else {
            return;
        };
        if open.again > AGAIN {
            // Since it was asked first most may have had their answers.
            let waits = |id| {
                self.requests
                    .get(id)
                    .is_some_and(Request::waits_for_its_end)
            };
            open.works.retain(|id| waits(*id));
            if open.works.is_empty() {
                self.inquiries.open.remove(&id);
                return;
            }
        }
        open.again_at = cx.now + open.again;
        open.again = (open.again * 2).min(AGAIN_MOST);
        let inquiry = Inquiry {
            nonce: open.nonce,
            is_reply: false,
            works: open.asked().to_vec(),
        };
        self.send_inquiry(cx, id, inquiry);
    }

    /// What finds no way or no room now is asked again.
    fn send_inquiry(&self, cx: &mut Cx<'_>, to: RemoteId, inquiry: Inquiry) {
        let body = Body::Inquiry(inquiry);
        let _ = cx.net.send(cx.now, &self.remotes[to.0].node, &body);
    }

    pub(super) fn on_inquiry(&mut self, cx: &mut Cx<'_>, from: RemoteId, inquiry: Inquiry) {
        if inquiry.is_reply {
            return self.take_reply(cx, from, &inquiry);
        }
        if self.remotes[from.0].flow.backlog.responses_wait() {
            // Which works these are of is on the disk alone. They go now that there is a way, and
            // the question comes again.
            return;
        }
        let mut unknown: BTreeSet<MessageId> = inquiry.works.into_iter().collect();
        unknown.retain(|id| self.works.get(*id).is_none_or(|work| work.remote != from));
        for outgoing in self.remotes[from.0].flow.iter() {
            if matches!(outgoing.message.kind, MessageKind::Response { .. }) {
                unknown.remove(&outgoing.message.work);
            }
        }
        let reply = Inquiry {
            nonce: inquiry.nonce,
            is_reply: true,
            works: unknown.into_iter().collect(),
        };
        self.send_inquiry(cx, from, reply);
    }

    fn take_reply(&mut self, cx: &mut Cx<'_>, from: RemoteId, reply: &Inquiry) {
        let open = self.inquiries.open.get(&from);
        if open.is_none_or(|open| open.nonce != reply.nonce) {
            return;
        }
        let Some(mut open) = self.inquiries.open.remove(&from) else {
            return;
        };
        let asked = open.works.split_off(open.works.len() - open.asked().len());
        if !open.works.is_empty() {
            self.inquiries.begin(cx.now, from, open.works);
        }
        let unknown = asked.into_iter().filter(|id| reply.works.contains(id));
        for id in unknown {
            let request = self.requests.get(id);
            if request.is_some_and(|r| r.remote == from && r.waits_for_its_end()) {
                let text = "the work had arrived, but its node has no record of it any more, as if \
                            its data directory was lost; it is not known whether it ran";
                self.end_request(cx, id, ErrorBody::new(ErrorCode::Lost, text));
            }
        }
    }
}
