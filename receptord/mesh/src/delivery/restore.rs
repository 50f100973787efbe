//! A node's start: what its store still holds, put back where it was.
//!
//! Outgoing messages wait in their flows again, under their old numbers, so that a recipient who
//! has them recognises them. Works are dispatched again, those that had started as a second attempt,
//! which the driver may refuse. Responses are given to their clients again from the last one that was
//! taken. Emits nothing by itself; the first flush does.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::time::Duration;

use bytes::Bytes;
use receptor_proto::packet::{Content, Eof, Message, MessageKind};
use receptor_proto::{ErrorBody, ErrorCode, MessageId, NodeId};

use super::backlog::{self, Paged};
use super::cancels::{EARLY_KEPT, EARLY_LOOK, Early};
use super::flow::{ENVELOPE, Key, Outgoing};
use super::inbox::{OpenCancel, Request, Response, Stored};
use super::partial::Room;
use super::received::{Received, Verdict};
use super::works::{NewWork, State};
use super::{Delivery, LIFETIME_MOST, Out, RemoteId, SWEEP};
use crate::{EntryId, Instant, LinkId, Output, Payload, Reachability, Record};

/// What a store gave back beside outgoing messages, sorted.
#[derive(Default)]
struct Stock {
    incoming: Vec<(EntryId, RemoteId, Message)>,
    /// The requests among them.
    works: BTreeSet<(RemoteId, MessageId)>,
    started: BTreeSet<EntryId>,
    /// Requests with a response here.
    answered: BTreeSet<MessageId>,
}

/// What is known of a work's responses: the last serial, and whether the end is among them.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Said {
    serial: u64,
    eof: bool,
    /// Of all that are stored.
    bytes: u64,
}

/// The end of a work that this node has cut short.
pub(super) fn interrupted() -> Eof {
    let text = "its node was restarted while the work ran";
    Eof {
        code: 1,
        error: Some(ErrorBody::new(ErrorCode::Interrupted, text)),
    }
}

impl Delivery {
    pub(super) fn restore(&mut self, now: Instant, records: impl IntoIterator<Item = Record>) {
        let mut stock = Stock::default();
        let mut last = None;
        for record in records {
            let Record::Outgoing {
                entry,
                recipient,
                message,
            } = record
            else {
                assert!(last.is_none(), "outgoing records come last");
                self.sort(now, record, &mut stock);
                continue;
            };
            let before = last.replace(entry);
            assert!(before < last, "outgoing records come in order of entry");
            self.next_entry = self.next_entry.max(entry.0);
            if let Some(to) = self.remote(&recipient) {
                self.restore_outgoing(now, entry, to, message, &stock);
            }
        }
        stock.incoming.sort_unstable_by_key(|(entry, ..)| *entry);
        let mut responses = Vec::new();
        let mut requests = Vec::new();
        let mut cancels = BTreeMap::new();
        for (entry, from, message) in stock.incoming {
            match message.kind {
                MessageKind::Request { .. } => requests.push((entry, from, message)),
                MessageKind::Response { .. } => responses.push((entry, from, message)),
                MessageKind::Cancel { .. } => {
                    cancels.insert((from, message.work), (entry, message));
                }
            }
        }
        for (entry, from, message) in requests {
            let said = self.said.get(&(from, message.work)).copied();
            let cancel = cancels.remove(&(from, message.work));
            let started = stock.started.contains(&entry);
            self.restore_work(now, entry, from, message, started, cancel, said);
        }
        for ((remote, work), (entry, message)) in cancels {
            let early = Early {
                remote,
                key: (message.epoch, message.seq),
                entry: Some(entry),
                until: now + Duration::from_millis(message.remaining_ms).min(EARLY_KEPT),
            };
            self.early.insert(work, early);
        }
        self.restore_responses(now, responses, &stock.started);
        if !self.early.is_empty() {
            self.plan_early(now + EARLY_LOOK);
        }
        if self.remotes.iter().any(|remote| remote.is_known) {
            self.plan_sweep(now + SWEEP);
        }
    }

    /// Takes a payload up again that was on its way in, unless its message is here or its origin
    /// is done with it. Whether it is still wanted is asked when it is complete.
    pub(crate) fn restore_partial(
        &mut self,
        now: Instant,
        entry: EntryId,
        origin: &NodeId,
        message: Message,
        written: u64,
    ) {
        self.next_entry = self.next_entry.max(entry.0);
        let key = (message.epoch, message.seq);
        let wanted = message.is_segmented()
            && written < message.size
            && !matches!(message.kind, MessageKind::Cancel { .. });
        let from = if wanted { self.remote(origin) } else { None };
        let from = from.filter(|from| {
            key.0 >= self.remotes[from.0].first_epoch
                && self.restored_flow(now, *from, key.0).check(key.1) == Verdict::New
                && self.partials.get_mut(*from, key).is_none()
                && self.partials.room(now, *from) == Room::Free
        });
        match from {
            Some(from) => self.partials.insert(now, from, message, entry, written),
            None => self.journal.remove(entry),
        }
    }

    /// Answers for a request that is damaged, and does not run it should it come again. Nothing else
    /// is done with what is known of it: that may be wrong.
    pub(crate) fn restore_damaged(&mut self, now: Instant, origin: &NodeId, id: MessageId) {
        if self.works.get(id).is_some() {
            return;
        }
        let Some(to) = self.remote(origin) else {
            return;
        };
        self.damaged.insert(id, to);
        let said = self.said.get(&(to, id)).copied().unwrap_or_default();
        if said.eof {
            return;
        }
        let text = "the request was damaged on this node's disk after it had arrived; \
                    it is not known whether it has run";
        let eof = Eof {
            code: 1,
            error: Some(ErrorBody::new(ErrorCode::Damaged, text)),
        };
        let parcel = (Content::None, None, Payload::Inline(Bytes::new()));
        self.at_start(now, |this, cx| {
            this.respond(cx, to, id, said.serial + 1, parcel, Some(eof), true, false);
        });
    }

    /// Ends a request of this node that is damaged. Nothing else is done with what is known of it.
    pub(crate) fn restore_damaged_own(
        &mut self,
        now: Instant,
        entry: EntryId,
        recipient: &NodeId,
        id: MessageId,
        key: Key,
    ) {
        // No new message gets the name that the store still has for this one.
        self.next_entry = self.next_entry.max(entry.0);
        if self.is_pending(id) {
            return;
        }
        let Some(to) = self.remote(recipient) else {
            return;
        };
        let mut request = Request::new(to, recipient.clone(), key, true);
        request.entry = Some(entry);
        request.accepted = true;
        self.requests.insert(id, request);
        let text = "the request was damaged on this node's disk; \
                    it is not known whether it had been sent before";
        let error = ErrorBody::new(ErrorCode::Damaged, text);
        self.at_start(now, |this, cx| this.end_request(cx, id, error));
    }

    /// Does something while nothing can be sent; what comes of it is told when the restoring is over.
    fn at_start(&mut self, now: Instant, act: impl FnOnce(&mut Self, &mut super::Cx<'_>)) {
        let mut out = Out::new();
        let mut cx = super::Cx {
            now,
            net: &mut NoNet,
            out: &mut out,
        };
        act(self, &mut cx);
        self.restored.append(&mut out);
    }

    /// Sorts a record and takes over what it says of flows and names.
    fn sort(&mut self, now: Instant, record: Record, stock: &mut Stock) {
        match record {
            Record::Incoming {
                entry,
                origin,
                message,
            } => {
                self.next_entry = self.next_entry.max(entry.0);
                let Some(from) = self.remote(&origin) else {
                    return;
                };
                if message.seq != 0 {
                    let received = self.restored_flow(now, from, message.epoch);
                    if message.seq >= received.floor() {
                        received.ack(message.seq);
                    }
                }
                match message.kind {
                    MessageKind::Request { .. } => {
                        stock.works.insert((from, message.work));
                    }
                    MessageKind::Response { .. } => {
                        stock.answered.insert(message.work);
                    }
                    MessageKind::Cancel { .. } => {}
                }
                stock.incoming.push((entry, from, message));
            }
            Record::Started { entry } => {
                stock.started.insert(entry);
            }
            Record::Received {
                origin,
                epoch,
                floor,
                ranges,
            } => {
                if floor != u64::MAX
                    && let Some(from) = self.remote(&origin)
                {
                    if floor > 0 {
                        let first = &mut self.remotes[from.0].first_epoch;
                        *first = epoch.max(*first);
                    }
                    self.restored_flow(now, from, epoch).merge(floor, &ranges);
                }
            }
            Record::Transit {
                entry,
                origin,
                recipient,
                message,
            } => {
                self.next_entry = self.next_entry.max(entry.0);
                self.restore_kept(now, entry, origin, recipient, message);
            }
            Record::Outgoing { .. } => {}
        }
    }

    fn restored_flow(&mut self, now: Instant, from: RemoteId, epoch: u64) -> &mut Received {
        let remote = &mut self.remotes[from.0];
        remote.is_known = true;
        let received = remote.received.entry(epoch).or_default();
        // How long its messages lived is not stored.
        received.keep(now + LIFETIME_MOST);
        received
    }

    fn restore_outgoing(
        &mut self,
        now: Instant,
        entry: EntryId,
        to: RemoteId,
        message: Message,
        stock: &Stock,
    ) {
        let key = (message.epoch, message.seq);
        let expires = now + Duration::from_millis(message.remaining_ms);
        let started = &stock.started;
        self.remotes[to.0].is_known = true;
        if key.0 == self.instance {
            self.remotes[to.0].flow.skip(key.1);
        }
        let mut moot = false;
        match &message.kind {
            MessageKind::Request { respond, .. } => {
                let arrived = started.contains(&entry);
                let known = self.requests.get(message.work);
                let readdressed = known.is_some_and(|request| request.remote != to)
                    || known.is_none() && self.paging.ids.contains(message.work);
                if readdressed {
                    // Its place was changed before the restart, and the older one is still there.
                    self.forget_older(now, message.work);
                    if !arrived {
                        self.restored.push_back(Output::Readdressed {
                            work: message.work,
                            recipient: self.remotes[to.0].node.clone(),
                        });
                    }
                } else if let Some(request) = self.requests.get_mut(message.work) {
                    // Written again without its payload; the newer one counts.
                    request.arrived |= started.contains(&entry);
                    if let Some(old) = request.entry.replace(entry) {
                        self.journal.remove(old);
                    }
                    if let Some(outgoing) = self.remotes[to.0].flow.remove(key) {
                        self.left(to, &outgoing);
                    }
                    return;
                }
                let waits = !(arrived || readdressed || stock.answered.contains(&message.work));
                if waits && self.restore_to_page(to, entry, &message, expires) {
                    return;
                }
                if arrived {
                    // Should it have been written before, with its payload, that one is over.
                    self.recall(now, message.work, None);
                }
                let recipient = self.remotes[to.0].node.clone();
                let mut request = Request::new(to, recipient, key, *respond);
                request.entry = Some(entry);
                request.accepted = true;
                request.arrived = arrived;
                let open = self.paging.open_cancel(message.work);
                request.was_cancelled(open.and_then(Option::take));
                self.requests.insert(message.work, request);
                if arrived {
                    return;
                }
            }
            MessageKind::Response { serial, eof, .. } => {
                let work = (to, message.work);
                let said = self.said.entry(work).or_default();
                said.serial = said.serial.max(*serial);
                said.eof |= eof.is_some();
                said.bytes += message.size + ENVELOPE as u64;
                let ended = said.eof;
                // What an earlier start was told, this one is not.
                let error = eof.as_ref().and_then(|eof| eof.error.as_ref());
                if error.is_some_and(|error| error.code == ErrorCode::Damaged) {
                    self.damaged.insert(message.work, to);
                }
                if self.restore_to_page(to, entry, &message, expires) {
                    // A backlog is to take no memory, and nothing more is asked about a work that
                    // is done with.
                    if ended && !stock.works.contains(&work) {
                        self.said.remove(&work);
                    }
                    return;
                }
            }
            MessageKind::Cancel { .. } => {
                moot = match self.requests.get_mut(message.work) {
                    Some(request) => {
                        request.was_cancelled(OpenCancel::new(key));
                        request.arrived
                    }
                    // A cancel is only sent of what was sent: it is too late to let that wait.
                    None => !self.recall_cancelled(now, message.work, key),
                };
            }
        }
        let mut outgoing = Outgoing::new(message, Some(entry), expires);
        outgoing.stored = true;
        outgoing.note_absent();
        outgoing.restored = true;
        outgoing.moot = moot;
        outgoing.open = matches!(outgoing.message.kind, MessageKind::Cancel { .. });
        self.at_start(now, |this, cx| this.send(cx, to, outgoing));
    }

    /// Of a request that is stored twice the one that was written first is over. It may be in a page,
    /// and goes from there when that is read, before it could be sent.
    fn forget_older(&mut self, now: Instant, work: MessageId) {
        let Some(older) = self.requests.remove(work) else {
            self.recall(now, work, None);
            return;
        };
        if let Some(entry) = older.entry {
            self.journal.remove(entry);
        }
        if let Some(outgoing) = self.remotes[older.remote.0].flow.remove(older.key) {
            self.left(older.remote, &outgoing);
        }
    }

    /// A message stays in the store alone when enough others are in memory before it.
    fn restore_to_page(
        &mut self,
        to: RemoteId,
        entry: EntryId,
        message: &Message,
        expires: Instant,
    ) -> bool {
        let lane = backlog::lane(message);
        let paged = Paged {
            key: (message.epoch, message.seq),
            entry,
            size: message.size,
            expires,
        };
        let full = self.remotes[to.0].flow.is_full(lane, self.allowance());
        if !(full && self.add_to_page(to, lane, backlog::name(message, entry), paged)) {
            return false;
        }
        self.kept += 1;
        self.kept_bytes += paged.size;
        self.touch(to);
        self.set_ready(to);
        true
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "one for each thing known of a work"
    )]
    fn restore_work(
        &mut self,
        now: Instant,
        entry: EntryId,
        from: RemoteId,
        message: Message,
        started: bool,
        cancel: Option<(EntryId, Message)>,
        said: Option<Said>,
    ) {
        let MessageKind::Request { directive, respond } = &message.kind else {
            return;
        };
        let (directive, respond) = (directive.clone(), *respond);
        let id = message.work;
        if self.works.get(id).is_some() {
            return;
        }
        let new = NewWork {
            remote: from,
            key: (message.epoch, message.seq),
            entry: Some(entry),
            stored: true,
            batch: 0,
            directive: directive.clone(),
            respond,
            volatile: false,
            inline: message.body.len(),
        };
        let work = self.works.insert(now, id, new);
        work.cut = started;
        work.in_doubt = started;
        if let Some((entry, cancel)) = &cancel {
            work.cancelled = true;
            work.cancel = Some(((cancel.epoch, cancel.seq), *entry));
        }
        if let Some(said) = said {
            work.serial = said.serial;
            work.stored_serial = said.serial;
            work.backlog = said.bytes;
        }
        let ended = said.is_some_and(|said| said.eof);
        if ended || cancel.is_some() && !respond {
            self.at_start(now, |this, cx| this.close_work(cx, id));
        } else if cancel.is_some() && !started {
            work.state = State::Ending;
            work.serial += 1;
            let serial = work.serial;
            let parcel = (Content::None, None, Payload::Inline(Bytes::new()));
            let error = ErrorBody::new(ErrorCode::Cancelled, "cancelled before it ran");
            let eof = Eof {
                code: 1,
                error: Some(error),
            };
            self.works.release_payload(id);
            self.at_start(now, |this, cx| {
                this.respond(cx, from, id, serial, parcel, Some(eof), false, false);
            });
        } else {
            let payload = stored_payload(entry, &message);
            self.restored.push_back(Output::Dispatch {
                work: id,
                sender: self.remotes[from.0].node.clone(),
                directive,
                content: message.content,
                payload,
                attempt: 1 + u32::from(started),
            });
            if let Some((_, cancel)) = cancel
                && let MessageKind::Cancel { reason } = cancel.kind
            {
                self.restored
                    .push_back(Output::CancelWork { work: id, reason });
            }
        }
    }

    /// Gives every request the responses that are stored for it, from the first that its client
    /// has not taken.
    fn restore_responses(
        &mut self,
        now: Instant,
        responses: Vec<(EntryId, RemoteId, Message)>,
        started: &BTreeSet<EntryId>,
    ) {
        let mut freed = Vec::new();
        let mut works: BTreeSet<MessageId> = BTreeSet::new();
        // First those that were taken: they say where to go on. Then ends after all others, the
        // earliest end last: it is the one that counts.
        let mut responses: Vec<_> = responses
            .into_iter()
            .filter_map(|(entry, from, message)| {
                let MessageKind::Response { serial, eof, .. } = &message.kind else {
                    return None;
                };
                let (serial, eof) = (*serial, eof.clone());
                Some((entry, from, message, serial, eof))
            })
            .collect();
        responses.sort_unstable_by_key(|(entry, _, _, serial, eof)| {
            let taken = started.contains(entry);
            let order = if eof.is_some() {
                u64::MAX - serial
            } else {
                *serial
            };
            (!taken, eof.is_some(), order)
        });
        for (entry, from, message, serial, eof) in responses {
            let key = (message.epoch, message.seq);
            let id = message.work;
            let stored = Stored { key, entry };
            let request = self.requests.get_mut(id);
            let Some(request) = request.filter(|request| request.remote == from) else {
                freed.push((from, stored));
                continue;
            };
            works.insert(id);
            if started.contains(&entry) {
                freed.extend(request.resume(serial, stored).map(|old| (from, old)));
                continue;
            }
            if serial < request.next_serial() || eof.is_none() && request.has(serial) {
                freed.push((from, stored));
                continue;
            }
            let response = Response {
                content: message.content,
                name: message.name.clone(),
                payload: stored_payload(entry, &message),
                eof,
                stored: Some(stored),
            };
            let mut dropped = Vec::new();
            request.take(serial, response, &mut dropped);
            freed.extend(dropped.into_iter().map(|stored| (from, stored)));
        }
        for id in works {
            let Some(request) = self.requests.get_mut(id) else {
                continue;
            };
            request.deliver(id, &mut self.restored);
            if request.arrived {
                continue;
            }
            // A response, or this node's own word, says more than a receipt.
            request.arrived = true;
            let (to, key) = (request.remote, request.key);
            let cancel = request.open_cancel.take();
            let flow = &mut self.remotes[to.0].flow;
            if let Some(cancel) = cancel.and_then(|open| flow.get_mut(open.key)) {
                cancel.moot = true;
            }
            if let Some(outgoing) = flow.remove(key) {
                self.left(to, &outgoing);
            }
        }
        for (from, stored) in freed {
            self.retire(now, from, stored, None);
        }
    }
}

fn stored_payload(entry: EntryId, message: &Message) -> Payload {
    if message.is_segmented() {
        let size = message.size;
        Payload::Stored { entry, size }
    } else {
        Payload::Inline(message.body.clone())
    }
}

/// At its start a node knows no way to anybody.
struct NoNet;

impl crate::wiring::Net for NoNet {
    fn reachability(&self, _node: &NodeId) -> Reachability {
        Reachability::NoRoute
    }

    fn next_link(&self, _node: &NodeId) -> Option<LinkId> {
        None
    }

    fn custodian(&self, _node: &NodeId) -> Option<NodeId> {
        None
    }

    fn is_on_way(&self, _node: &NodeId, _destination: &NodeId) -> bool {
        false
    }

    fn fingerprint(&self, _message: &Message) -> u64 {
        0
    }

    fn stated_start(&self, _node: &NodeId) -> u64 {
        0
    }

    fn room(&self, _node: &NodeId, _priority: receptor_proto::packet::Priority) -> usize {
        0
    }

    fn pass_on(&mut self, _packet: receptor_proto::packet::Packet) -> Result<(), ErrorCode> {
        Err(ErrorCode::NoRoute)
    }

    fn send(
        &mut self,
        _now: Instant,
        _to: &NodeId,
        _body: &receptor_proto::packet::Body,
    ) -> Result<(), ErrorCode> {
        Err(ErrorCode::NoRoute)
    }

    fn send_message(
        &mut self,
        _now: Instant,
        _to: &NodeId,
        _message: &Message,
        _instance: u64,
    ) -> Result<(), ErrorCode> {
        Err(ErrorCode::NoRoute)
    }

    fn resolve(
        &mut self,
        _directive: &receptor_proto::Directive,
        _metadata: &BTreeMap<alloc::string::String, alloc::string::String>,
    ) -> Option<NodeId> {
        None
    }
}
