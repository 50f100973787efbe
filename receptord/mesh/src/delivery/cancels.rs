//! Cancels: those that clients ask for here, and those that come for works of this node, also
//! before their requests.
//!
//! Owns what is remembered of the latter: until the request comes, until it is certain that it cannot
//! come any more, or as long as it may live; at most [`EARLY_MAX`] of them, those that live
//! longest. Who sent a cancel that may be remembered says, over restarts too, when its request has come.
//! Never ends a work itself.

use alloc::vec::Vec;
use core::time::Duration;

use bytes::Bytes;
use receptor_proto::packet::{CancelReason, Content, Message, MessageKind};
use receptor_proto::{ErrorBody, ErrorCode, MessageId};

use super::flow::{GivenUp, Key, Outgoing};
use super::inbox::OpenCancel;
use super::incoming::is_request;
use super::journal::{Arrival, Done, Retired, With};
use super::{CANCEL_LIFETIME, Cx, Delivery, Out, RemoteId};
use crate::wiring::Net;
use crate::{EntryId, Instant, NoSuchWork, Output, Record};

/// Cancels of requests that are not here yet.
const EARLY_MAX: usize = 1024;
/// How long such a cancel is remembered at most.
pub(super) const EARLY_KEPT: Duration = Duration::from_secs(24 * 3600);
/// How soon early cancels are looked at when something comes from another node: it may have been
/// the last that was missing before one. Messages come in bursts, and one look is enough for each.
pub(super) const EARLY_LOOK: Duration = Duration::from_millis(100);
/// How often it is looked for early cancels whose lifetime is over.
const EARLY_SWEEP: Duration = Duration::from_secs(30);

/// A cancel that came before its request.
#[derive(Debug)]
pub(super) struct Early {
    pub(super) remote: RemoteId,
    pub(super) key: Key,
    pub(super) entry: Option<EntryId>,
    pub(super) until: Instant,
}

/// Why a request does not run whose cancel overtook it. The same whether some of it had come: it may
/// be asked again after a restart, and both nodes tell of one end.
pub(super) const BEFORE_ARRIVAL: &str = "cancelled before it arrived";

impl Delivery {
    // Of requests of this node.

    pub(crate) fn cancel(
        &mut self,
        now: Instant,
        net: &mut dyn Net,
        work: MessageId,
        reason: CancelReason,
        out: &mut Out,
    ) -> Result<(), NoSuchWork> {
        let cx = &mut Cx { now, net, out };
        self.cancel_with(cx, work, reason)
    }

    pub(super) fn cancel_with(
        &mut self,
        cx: &mut Cx<'_>,
        work: MessageId,
        reason: CancelReason,
    ) -> Result<(), NoSuchWork> {
        let Some(request) = self.requests.get_mut(work) else {
            // It comes back from its page first.
            let found = self.recall(cx.now, work, Some(reason));
            return if found { Ok(()) } else { Err(NoSuchWork) };
        };
        if request.is_ended() || request.over || request.given_up || request.cancelled {
            return Ok(());
        }
        request.cancelled = true;
        let (to, key, durable, arrived) = (
            request.remote,
            request.key,
            request.entry.is_some(),
            request.arrived,
        );
        let flow = &mut self.remotes[to.0].flow;
        let unsent = |outgoing: &Outgoing| outgoing.is_here_alone(self.instance);
        if flow.get(key).is_some_and(unsent) {
            if let Some(outgoing) = flow.remove(key) {
                let code = ErrorCode::Cancelled;
                self.given_up(cx, to, GivenUp { outgoing, code });
            }
            return Ok(());
        }
        let expires = match flow.get(key) {
            Some(outgoing) if !arrived => outgoing.expires,
            _ => cx.now + CANCEL_LIFETIME,
        };
        flow.withdraw_payload(key);
        let cancel = self.send_cancel(cx, to, work, reason, durable, expires);
        if let Some(outgoing) = self.remotes[to.0].flow.get_mut(cancel) {
            outgoing.moot = arrived;
        }
        if durable
            && !arrived
            && let Some(request) = self.requests.get_mut(work)
        {
            request.open_cancel = OpenCancel::new(cancel);
        }
        Ok(())
    }

    pub(super) fn send_cancel(
        &mut self,
        cx: &mut Cx<'_>,
        to: RemoteId,
        work: MessageId,
        reason: CancelReason,
        durable: bool,
        expires: Instant,
    ) -> Key {
        let key = (self.instance, self.remotes[to.0].flow.next_seq());
        let message = Self::cancel_message(cx, key, work, reason, durable, expires);
        let entry = durable.then(|| self.new_entry());
        if let Some(entry) = entry {
            let record = Record::Outgoing {
                entry,
                recipient: self.remotes[to.0].node.clone(),
                message: message.clone(),
            };
            self.journal.write(record, Done::Cancel { remote: to, key });
        }
        self.send(cx, to, Outgoing::new(message, entry, expires));
        key
    }

    fn cancel_message(
        cx: &Cx<'_>,
        (epoch, seq): Key,
        work: MessageId,
        reason: CancelReason,
        durable: bool,
        expires: Instant,
    ) -> Message {
        Message {
            epoch,
            seq,
            floor: 0,
            work,
            kind: MessageKind::Cancel { reason },
            volatile: !durable,
            remaining_ms: Self::remaining(cx, expires),
            content: Content::None,
            name: None,
            size: 0,
            body: Bytes::new(),
        }
    }

    /// A request has arrived, or never will for certain: its cancel is not to wait for it.
    pub(super) fn settle_cancel(&mut self, cx: &mut Cx<'_>, to: RemoteId, work: MessageId) {
        let request = self.requests.get_mut(work);
        let Some(open) = request.and_then(|request| request.open_cancel.take()) else {
            return;
        };
        match self.remotes[to.0].flow.get_mut(open.key) {
            Some(outgoing) => outgoing.moot = true,
            None => self.close_cancel(cx, to, work, CancelReason::User, open.entry),
        }
    }

    /// A recipient that has a cancel may keep it for a request that it had long before, and only
    /// this node knows it had: says so. The cancel's own entry stays until that is heard, so that a
    /// restart comes to say it too.
    pub(super) fn close_cancel(
        &mut self,
        cx: &mut Cx<'_>,
        to: RemoteId,
        work: MessageId,
        reason: CancelReason,
        entry: Option<EntryId>,
    ) {
        let expires = cx.now + CANCEL_LIFETIME;
        let key = (self.instance, self.remotes[to.0].flow.next_seq());
        let message = Self::cancel_message(cx, key, work, reason, entry.is_some(), expires);
        let mut outgoing = Outgoing::new(message, entry, expires);
        outgoing.stored = entry.is_some();
        outgoing.moot = true;
        self.send(cx, to, outgoing);
    }

    // Of works of this node.

    pub(super) fn take_cancel(
        &mut self,
        cx: &mut Cx<'_>,
        from: RemoteId,
        message: Message,
        reason: CancelReason,
    ) {
        let key = (message.epoch, message.seq);
        let id = message.work;
        if let Some(work) = self.works.get(id) {
            if work.remote == from && work.withdrawn {
                self.remember_cancel(cx, from, message);
                return;
            }
            let wanted = work.remote == from && !work.cancelled && work.is_in_progress();
            if !wanted {
                self.let_go(from, key, message.volatile);
                return;
            }
            let entry = self.store_cancel(from, message);
            if let Some(work) = self.works.get_mut(id) {
                work.cancelled = true;
                work.cancel = entry.map(|entry| (key, entry));
                cx.out.push_back(Output::CancelWork { work: id, reason });
            }
            return;
        }
        if let Some(other) = self.partials.find(from, |_, partial| {
            partial.message.work == id && is_request(&partial.message)
        }) {
            self.cancel_partial(cx, from, other, key, message.volatile);
            return;
        }
        if message.remaining_ms == 0 && self.close_early(cx.now, from, &message) {
            return;
        }
        let remote = &self.remotes[from.0];
        let complete = remote
            .received
            .get(&key.0)
            .is_some_and(|received| received.complete_below(key.1));
        if complete && remote.first_epoch >= key.0
            || message.remaining_ms == 0
            || self.works.was_here(id)
        {
            // Its request was here before it, and is not any more.
            self.let_go(from, key, message.volatile);
            return;
        }
        self.remember_cancel(cx, from, message);
    }

    /// Remembers a cancel until its request comes.
    fn remember_cancel(&mut self, cx: &mut Cx<'_>, from: RemoteId, message: Message) {
        let id = message.work;
        let key = (message.epoch, message.seq);
        if self.early.contains_key(&id) {
            self.let_go(from, key, message.volatile);
            return;
        }
        let lifetime = Duration::from_millis(message.remaining_ms).min(EARLY_KEPT);
        let entry = self.store_cancel(from, message);
        let early = Early {
            remote: from,
            key,
            entry,
            until: cx.now + lifetime,
        };
        self.keep_early(cx, id, early);
    }

    pub(super) fn keep_early(&mut self, cx: &Cx<'_>, id: MessageId, early: Early) {
        if self.early.len() >= EARLY_MAX {
            let next = self.early.iter().min_by_key(|(_, early)| early.until);
            if let Some(next) = next.map(|(id, _)| *id) {
                self.forget_early(cx.now, next);
            }
        }
        self.early.insert(id, early);
        self.plan_early(cx.now + EARLY_LOOK);
    }

    pub(super) fn forget_early(&mut self, now: Instant, id: MessageId) {
        let Some(early) = self.early.remove(&id) else {
            return;
        };
        let Some(entry) = early.entry else {
            return;
        };
        self.journal.retire(
            now,
            Retired {
                remote: early.remote,
                key: early.key,
                entry,
                after: None,
                with: With::Early(id, None),
            },
        );
    }

    /// The request was here, as its origin knows now, who has no more to say of it. So it hears that this
    /// arrived when no restart comes to wait for that request. True: there is something to wait for.
    fn close_early(&mut self, now: Instant, from: RemoteId, message: &Message) -> bool {
        let id = message.work;
        if self
            .early
            .get(&id)
            .is_some_and(|early| early.remote == from)
        {
            self.forget_early(now, id);
        }
        if message.volatile {
            return false;
        }
        let Some(owed) = self.journal.forgets_early(from, id) else {
            return false;
        };
        // A second one comes again, when the first has its receipt.
        if owed.is_none() {
            *owed = Some((message.epoch, message.seq));
            if let Some(received) = self.remotes[from.0].received.get_mut(&message.epoch) {
                received.take(message.seq);
            }
        }
        true
    }

    /// Writes a cancel, unless it is volatile.
    fn store_cancel(&mut self, from: RemoteId, message: Message) -> Option<EntryId> {
        let key = (message.epoch, message.seq);
        if message.volatile {
            self.ack(from, key);
            return None;
        }
        let entry = self.new_entry();
        let work = message.work;
        self.write_arrival(from, entry, message, Arrival::Cancel { work, entry });
        Some(entry)
    }

    /// A cancel of a request whose payload is still on its way: both are over.
    fn cancel_partial(
        &mut self,
        cx: &mut Cx<'_>,
        from: RemoteId,
        request: Key,
        cancel: Key,
        volatile: bool,
    ) {
        let Some(partial) = self.partials.remove(from, request) else {
            return;
        };
        let entry = partial.entry;
        self.journal.remove(entry);
        let MessageKind::Request { respond, .. } = partial.message.kind else {
            return;
        };
        let error = ErrorBody::new(ErrorCode::Cancelled, BEFORE_ARRIVAL);
        self.refuse(cx, from, &partial.message, respond, error);
        self.let_go(from, cancel, volatile);
    }

    /// Forgets cancels whose requests cannot come any more: everything before them has come, or
    /// their lifetime is over.
    pub(super) fn sweep_early(&mut self, now: Instant) {
        self.early_at = None;
        let remotes = &self.remotes;
        let is_over = |early: &Early| {
            let (epoch, seq) = early.key;
            let remote = &remotes[early.remote.0];
            let received = remote.received.get(&epoch);
            let complete = remote.first_epoch >= epoch
                && received.is_some_and(|received| received.complete_below(seq));
            early.until <= now || complete
        };
        let over: Vec<MessageId> = self
            .early
            .iter()
            .filter(|(_, early)| is_over(early))
            .map(|(id, _)| *id)
            .collect();
        for id in over {
            self.forget_early(now, id);
        }
        if !self.early.is_empty() {
            self.plan_early(now + EARLY_SWEEP);
        }
    }

    pub(super) fn plan_early(&mut self, at: Instant) {
        self.early_at = Some(self.early_at.map_or(at, |planned| planned.min(at)));
    }
}
