//! What goes out: clients' requests and cancels, works' responses, and what becomes of them.
//!
//! Owns the promise that a request which wants responses gets exactly one last one: from its
//! work, or from [`Delivery::end_request`] when that can never come.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;

use bytes::Bytes;
use receptor_proto::packet::{
    CancelReason, Content, Eof, Message, MessageKind, RESULT_NAME_MAX, SEGMENT_MAX,
};
use receptor_proto::{ErrorBody, ErrorCode, MessageId, NodeId};

use super::flow::{ENVELOPE, GivenUp, Key, Outgoing};
use super::inbox::{Request, Response, Stored};
use super::journal::{Done, Retired};
use super::works::{State, Unwritten};
use super::{CANCEL_LIFETIME, Cx, Delivery, OWN, Out, RESPONSE_LIFETIME, RemoteId};
use super::{VOLATILE_RESPONSE_LIFETIME, millis};
use crate::wiring::Net;
use crate::{
    EntryId, Event, Instant, NoSuchWork, Output, Payload, Recipient, Record, Submission,
    SubmitError, WorkRoom,
};

/// A result as a work gives it: what it is, its name, its bytes.
pub(super) type Parcel = (Content, Option<String>, Payload);

impl Delivery {
    pub(crate) fn submit(
        &mut self,
        now: Instant,
        net: &mut dyn Net,
        submission: Submission,
        out: &mut Out,
    ) -> Result<(), SubmitError> {
        let cx = &mut Cx { now, net, out };
        let stored = match submission.payload {
            Payload::Stored { entry, .. } => Some(entry),
            Payload::Inline(_) => None,
        };
        let result = self.try_submit(cx, submission);
        if let (Err(_), Some(entry)) = (&result, stored) {
            self.journal.remove(entry);
        }
        result.map_err(SubmitError)
    }

    fn try_submit(&mut self, cx: &mut Cx<'_>, submission: Submission) -> Result<(), ErrorBody> {
        let id = submission.id;
        if self.requests.get(id).is_some() {
            let error = ErrorBody::new(
                ErrorCode::InvalidRequest,
                "a message with this id was sent and has not ended",
            );
            return Err(error.with("id", alloc::format!("{id}")));
        }
        let (size, body, entry) = self.checked_payload(&submission)?;
        self.check_room(size)?;
        let node = match &submission.recipient {
            Recipient::Node(node) => node.clone(),
            Recipient::Any { metadata } => cx
                .net
                .resolve(&submission.directive, metadata)
                .ok_or_else(|| {
                    ErrorBody::new(
                        ErrorCode::NoMatch,
                        "no node that can be reached offers this directive with this metadata",
                    )
                })?,
        };
        if submission.volatile && node != self.node {
            check_route(cx, &node)?;
        }
        let Some(to) = self.remote(&node) else {
            let text = "this node deals with too many nodes already";
            return Err(ErrorBody::new(ErrorCode::Busy, text));
        };
        let expires = cx.now + submission.expiry;
        let key = (self.instance, self.remotes[to.0].flow.next_seq());
        let message = Message {
            epoch: key.0,
            seq: key.1,
            floor: 0,
            work: id,
            kind: MessageKind::Request {
                directive: submission.directive,
                respond: submission.respond,
            },
            volatile: submission.volatile,
            remaining_ms: millis(submission.expiry),
            content: submission.content,
            name: None,
            size,
            body,
        };
        let entry = if submission.volatile {
            None
        } else {
            Some(entry.unwrap_or_else(|| self.new_entry()))
        };
        if let Some(entry) = entry {
            let record = Record::Outgoing {
                entry,
                recipient: node.clone(),
                message: message.clone(),
            };
            self.journal.write(record, Done::Request(id));
        } else {
            cx.out.push_back(Output::Accepted {
                work: id,
                recipient: node.clone(),
            });
        }
        // Of a message that is neither stored nor answered nothing needs to be known but its flow.
        if entry.is_some() || submission.respond {
            let mut request = Request::new(to, node, key, submission.respond);
            request.entry = entry;
            request.accepted = submission.volatile;
            request.ends = submission.volatile.then_some(expires);
            self.requests.insert(id, request);
        }
        self.send(cx, to, Outgoing::new(message, entry, expires));
        Ok(())
    }

    /// Size, body and entry of a payload that may be sent.
    fn checked_payload(
        &self,
        submission: &Submission,
    ) -> Result<(u64, Bytes, Option<EntryId>), ErrorBody> {
        match &submission.payload {
            Payload::Inline(bytes) if bytes.len() > SEGMENT_MAX => Err(ErrorBody::new(
                ErrorCode::InvalidRequest,
                "a payload of this size has to be stored first",
            )),
            Payload::Inline(bytes) => Ok((bytes.len() as u64, bytes.clone(), None)),
            Payload::Stored { size, .. } if *size <= SEGMENT_MAX as u64 => Err(ErrorBody::new(
                ErrorCode::InvalidRequest,
                "a payload of this size must not be stored first",
            )),
            Payload::Stored { .. } if submission.volatile => Err(ErrorBody::new(
                ErrorCode::PayloadTooLarge,
                alloc::format!("a volatile message carries at most {SEGMENT_MAX} bytes"),
            )),
            Payload::Stored { entry, size } => Ok((*size, Bytes::new(), Some(*entry))),
        }
    }

    fn check_room(&self, size: u64) -> Result<(), ErrorBody> {
        let full = |what: &str, limit: u64| {
            Err(ErrorBody::new(
                ErrorCode::Busy,
                alloc::format!("this node keeps {what} for others to take already"),
            )
            .with("limit", limit))
        };
        if self.kept >= self.limits.outgoing_entries {
            let limit = self.limits.outgoing_entries as u64;
            return full("as many messages as it may", limit);
        }
        if self.kept_bytes.saturating_add(size) > self.limits.outgoing_bytes {
            return full("as many bytes as it may", self.limits.outgoing_bytes);
        }
        Ok(())
    }

    /// Hands a message to its flow.
    pub(super) fn send(&mut self, cx: &Cx<'_>, to: RemoteId, outgoing: Outgoing) {
        self.kept += 1;
        self.kept_bytes += outgoing.message.size;
        let remote = &mut self.remotes[to.0];
        if to != OWN && remote.flow.is_empty() && remote.waiting == 0 {
            remote.flow.look(cx.net.path(&remote.node));
        }
        remote.flow.push(outgoing, cx.now, &self.limits);
        self.touch(to);
        self.set_ready(to);
    }

    /// Counts a message that left its flow.
    pub(super) fn left(&mut self, to: RemoteId, outgoing: &Outgoing) {
        // Its room in the window is another's.
        if !self.remotes[to.0].flow.is_empty() {
            self.set_ready(to);
        }
        self.kept -= 1;
        self.kept_bytes -= outgoing.message.size;
        if outgoing.was_fetched()
            && let Some(entry) = outgoing.entry
        {
            self.sources.remove(&entry);
        }
    }

    pub(crate) fn cancel(
        &mut self,
        now: Instant,
        net: &mut dyn Net,
        work: MessageId,
        reason: CancelReason,
        out: &mut Out,
    ) -> Result<(), NoSuchWork> {
        let cx = &mut Cx { now, net, out };
        let request = self.requests.get_mut(work).ok_or(NoSuchWork)?;
        if request.is_ended() || request.over || request.cancelled {
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
        let unsent = |outgoing: &Outgoing| !outgoing.was_sent() && key.0 == self.instance;
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
        let message = Message {
            epoch: key.0,
            seq: key.1,
            floor: 0,
            work,
            kind: MessageKind::Cancel { reason },
            volatile: !durable,
            remaining_ms: Self::remaining(cx, expires),
            content: Content::None,
            name: None,
            size: 0,
            body: Bytes::new(),
        };
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

    /// Sends a response of a work to the node that asked.
    #[expect(clippy::too_many_arguments, reason = "one for each part of a response")]
    pub(super) fn respond(
        &mut self,
        cx: &mut Cx<'_>,
        to: RemoteId,
        work: MessageId,
        serial: u64,
        (content, name, payload): Parcel,
        eof: Option<Eof>,
        volatile: bool,
    ) -> Key {
        let is_eof = eof.is_some();
        let key = (self.instance, self.remotes[to.0].flow.next_seq());
        let (size, body, entry) = match payload {
            Payload::Inline(bytes) => (bytes.len() as u64, bytes, None),
            Payload::Stored { entry, size } => (size, Bytes::new(), Some(entry)),
        };
        // What is on the disk anyway is sent from there.
        let volatile = volatile && entry.is_none();
        let lifetime = if volatile {
            VOLATILE_RESPONSE_LIFETIME
        } else {
            RESPONSE_LIFETIME
        };
        let message = Message {
            epoch: key.0,
            seq: key.1,
            floor: 0,
            work,
            kind: MessageKind::Response { serial, eof },
            volatile,
            remaining_ms: millis(lifetime),
            content,
            name,
            size,
            body,
        };
        let entry = if volatile {
            None
        } else {
            Some(entry.unwrap_or_else(|| self.new_entry()))
        };
        self.send(cx, to, Outgoing::new(message, entry, cx.now + lifetime));
        if entry.is_some() {
            self.write_response(
                to,
                work,
                Unwritten {
                    key,
                    serial,
                    eof: is_eof,
                },
            );
        }
        key
    }

    /// Writes a response when those before it are on the disk or in the same write, so that a
    /// restart never finds one without those before it.
    fn write_response(&mut self, to: RemoteId, id: MessageId, response: Unwritten) {
        let Unwritten { key, serial, eof } = response;
        let batch = self.journal.batch();
        if let Some(work) = self.works.get_mut(id)
            && work.remote == to
        {
            let busy = work.writing.0 > 0 && work.writing.1 != batch;
            if busy || work.write_failed || !work.unwritten.is_empty() {
                work.unwritten.push_back(Unwritten { key, serial, eof });
                return;
            }
        }
        self.write_response_now(to, id, response);
    }

    /// False: its flow has it no longer.
    fn write_response_now(&mut self, to: RemoteId, id: MessageId, response: Unwritten) -> bool {
        let Unwritten { key, serial, eof } = response;
        let Some(outgoing) = self.remotes[to.0].flow.get(key) else {
            return false;
        };
        if let Some(entry) = outgoing.entry {
            let record = Record::Outgoing {
                entry,
                recipient: self.remotes[to.0].node.clone(),
                message: outgoing.message.clone(),
            };
            let done = Done::Response {
                remote: to,
                key,
                work: id,
                serial,
                eof,
            };
            if let Some(work) = self.works.get_mut(id)
                && work.remote == to
            {
                work.writing = (work.writing.0 + 1, self.journal.batch());
            }
            self.journal.write(record, done);
        }
        true
    }

    /// Writes the responses of a work whose turn has come.
    pub(super) fn write_next(&mut self, cx: &mut Cx<'_>, id: MessageId) {
        let Some(work) = self.works.get_mut(id) else {
            return;
        };
        if work.writing.0 > 0 || work.write_failed {
            return;
        }
        let to = work.remote;
        let mut waiting = core::mem::take(&mut work.unwritten);
        while let Some(response) = waiting.pop_front() {
            if self.write_response_now(to, id, response) {
                continue;
            }
            // Its reader has it: that is as good as a disk, once those before it are safe too.
            let Some(work) = self.works.get_mut(id) else {
                return;
            };
            if work.writing.0 > 0 {
                waiting.push_front(response);
                work.unwritten = waiting;
                return;
            }
            self.response_safe(cx, id, response.serial, response.eof);
        }
    }

    /// The recipient has this message.
    pub(super) fn receipted(
        &mut self,
        cx: &mut Cx<'_>,
        to: RemoteId,
        outgoing: Outgoing,
        instance: u64,
    ) {
        self.left(to, &outgoing);
        match outgoing.message.kind {
            MessageKind::Request { .. } => {
                self.request_arrived(cx, to, outgoing.message, instance);
            }
            MessageKind::Response { serial, ref eof } => {
                let eof = eof.is_some();
                self.response_arrived(cx, &outgoing, serial, eof);
            }
            MessageKind::Cancel { .. } => {
                if let Some(entry) = outgoing.entry {
                    self.journal.remove(entry);
                }
            }
        }
    }

    fn request_arrived(&mut self, cx: &mut Cx<'_>, to: RemoteId, message: Message, instance: u64) {
        let work = message.work;
        let Some(request) = self.requests.get_mut(work) else {
            return;
        };
        request.arrived = true;
        request.instance = instance;
        if !request.accepted {
            request.unwritten = Some(Box::new(message));
            return;
        }
        if let Some(entry) = request.entry
            && request.respond
            && message.is_segmented()
        {
            self.let_payload_go(work, entry, &message);
            return;
        }
        if !request.respond {
            self.settle_silent(work);
            return;
        }
        match request.entry {
            Some(entry) => self.journal.mark(cx.now, work, entry),
            None => {
                let remote = &mut self.remotes[to.0];
                remote.waiting += 1;
                // Its receipt may have been under way while its node was restarted.
                if instance != 0 && instance < remote.instance {
                    let newer = remote.instance;
                    self.end_waiting(cx, to, newer, "its node was restarted");
                }
            }
        }
    }

    /// A large payload has arrived: only that the request waits for responses is kept on.
    fn let_payload_go(&mut self, work: MessageId, old: EntryId, message: &Message) {
        let Some(request) = self.requests.get(work) else {
            return;
        };
        let recipient = request.recipient.clone();
        let entry = self.new_entry();
        let message = Message {
            content: Content::None,
            size: 0,
            ..message.clone()
        };
        self.journal.note(Record::Outgoing {
            entry,
            recipient,
            message,
        });
        let done = Done::Slimmed { work, old, entry };
        self.journal.write(Record::Started { entry }, done);
    }

    /// A response is safe here, or never will be, before its request's receipt came.
    pub(super) fn response_implies_arrival(
        &mut self,
        cx: &mut Cx<'_>,
        from: RemoteId,
        work: MessageId,
        instance: u64,
    ) {
        let Some(request) = self.requests.get(work) else {
            return;
        };
        if request.remote != from || request.arrived {
            return;
        }
        let key = request.key;
        if let Some(outgoing) = self.remotes[from.0].flow.remove(key) {
            self.receipted(cx, from, *outgoing, instance);
        }
    }

    /// A request that wants no responses is over when it is both accepted and arrived, or given up.
    pub(super) fn settle_silent(&mut self, work: MessageId) {
        let Some(request) = self.requests.get(work) else {
            return;
        };
        if request.respond || !request.accepted || !(request.arrived || request.over) {
            return;
        }
        if let Some(entry) = request.entry {
            self.journal.remove(entry);
        }
        self.requests.remove(work);
    }

    fn response_arrived(&mut self, cx: &mut Cx<'_>, outgoing: &Outgoing, serial: u64, eof: bool) {
        let id = outgoing.message.work;
        let size = outgoing.message.size + ENVELOPE as u64;
        let limit = self.limits.work_backlog;
        if eof && self.works.get(id).is_some_and(|work| work.lingers) {
            self.forget_work(cx, id);
        }
        let Some(work) = self.works.get_mut(id) else {
            if let Some(entry) = outgoing.entry {
                self.journal.remove(entry);
            }
            return;
        };
        work.backlog = work.backlog.saturating_sub(size);
        if work.held && work.backlog <= limit / 2 {
            work.held = false;
            if matches!(
                work.state,
                State::Waiting | State::Starting | State::Running
            ) {
                cx.out.push_back(Output::ResumeWork { work: id });
            }
        }
        let Some(entry) = outgoing.entry else {
            return;
        };
        // The last one known to a restart stays, and the end stays until the request is gone.
        let older = match work.retained {
            Some((kept, older)) if kept < serial || eof => {
                work.retained = Some((serial, entry));
                Some(older)
            }
            Some(_) => Some(entry),
            None if serial < work.stored_serial && !eof => Some(entry),
            None => {
                work.retained = Some((serial, entry));
                None
            }
        };
        if let Some(entry) = older {
            self.journal.remove(entry);
        }
    }

    /// A message will not be sent again.
    pub(super) fn given_up(&mut self, cx: &mut Cx<'_>, to: RemoteId, given_up: GivenUp) {
        let GivenUp { outgoing, code } = given_up;
        self.left(to, &outgoing);
        let work = outgoing.message.work;
        let reason = reason(&code);
        match outgoing.message.kind {
            MessageKind::Request { .. } => {
                cx.out.push_back(Output::Event(Event::GivenUp {
                    work,
                    recipient: self.remotes[to.0].node.clone(),
                    reason: reason.clone(),
                }));
                self.end_request(cx, work, reason);
            }
            MessageKind::Response { .. } => self.break_off(cx, to, &outgoing, reason),
            MessageKind::Cancel { .. } => {
                if let Some(entry) = outgoing.entry {
                    self.journal.remove(entry);
                }
                let error = ErrorBody::new(
                    ErrorCode::Cancelled,
                    "cancelled, but the work's node could not be told",
                );
                self.end_request(cx, work, error);
            }
        }
    }

    /// A response was given up, so those after it are worth nothing: one word takes the place of
    /// them all.
    fn break_off(&mut self, cx: &mut Cx<'_>, to: RemoteId, first: &Outgoing, reason: ErrorBody) {
        let id = first.message.work;
        let mut serial = serial_of(first);
        let mut entries: Vec<EntryId> = first.entry.into_iter().collect();
        let mut gone = Vec::from([first.key()]);
        let flow = &mut self.remotes[to.0].flow;
        let keys: Vec<Key> = flow
            .iter()
            .filter(|other| other.message.work == id && is_response(other))
            .map(Outgoing::key)
            .collect();
        for key in keys {
            if let Some(other) = self.remotes[to.0].flow.remove(key) {
                self.left(to, &other);
                serial = serial.min(serial_of(&other));
                gone.push(other.key());
                entries.extend(other.entry);
            }
        }
        cx.out.push_back(Output::Event(Event::GivenUp {
            work: id,
            recipient: self.remotes[to.0].node.clone(),
            reason: reason.clone(),
        }));
        if let Some(work) = self.works.get_mut(id) {
            work.broken = true;
            work.backlog = 0;
            let running = matches!(
                work.state,
                State::Waiting | State::Starting | State::Running
            );
            if running && !work.cancelled {
                work.cancelled = true;
                cx.out.push_back(Output::CancelWork {
                    work: id,
                    reason: CancelReason::SenderGone,
                });
            }
            if core::mem::take(&mut work.held) && running {
                cx.out.push_back(Output::ResumeWork { work: id });
            }
        }
        if first.last_word && self.works.get(id).is_some_and(|work| work.lingers) {
            self.forget_work(cx, id);
        }
        if !first.last_word {
            let eof = Eof {
                code: 1,
                error: Some(reason),
            };
            let parcel = (Content::None, None, Payload::Inline(Bytes::new()));
            let volatile = first.message.volatile;
            let key = self.respond(cx, to, id, serial, parcel, Some(eof), volatile);
            if let Some(outgoing) = self.remotes[to.0].flow.get_mut(key) {
                outgoing.last_word = true;
            }
            if !volatile {
                for key in gone {
                    self.remotes[to.0].flow.hold(key);
                    self.journal.also(Done::GivenUp { remote: to, key });
                }
            }
        }
        for entry in entries {
            self.journal.remove(entry);
        }
    }

    /// Gives a request the end that will never come from its work. Does nothing when it has one.
    pub(super) fn end_request(&mut self, cx: &mut Cx<'_>, id: MessageId, error: ErrorBody) {
        let Some(request) = self.requests.get_mut(id) else {
            return;
        };
        if request.is_ended() {
            return;
        }
        if !request.respond {
            request.over = true;
            self.settle_silent(id);
            return;
        }
        let from = request.remote;
        let durable = request.entry.is_some();
        let serial = request.next_serial();
        let eof = Eof {
            code: 1,
            error: Some(error),
        };
        let key = request.key;
        let stored = durable.then(|| self.write_own_end(id, serial, eof.clone()));
        if durable {
            self.remotes[from.0].flow.hold(key);
            self.journal.also(Done::GivenUp { remote: from, key });
        }
        let Some(request) = self.requests.get_mut(id) else {
            return;
        };
        let response = Response {
            content: Content::None,
            name: None,
            payload: Payload::Inline(Bytes::new()),
            eof: Some(eof),
            stored,
        };
        let mut freed = Vec::new();
        request.take(serial, response, &mut freed);
        request.deliver(id, cx.out);
        for stored in freed {
            self.retire(cx.now, from, stored, None);
        }
    }

    /// Writes an end of this node's own making as if it had come from the recipient, so that it
    /// is the end also after a restart.
    fn write_own_end(&mut self, id: MessageId, serial: u64, eof: Eof) -> Stored {
        let entry = self.new_entry();
        let origin = self
            .requests
            .get(id)
            .map_or_else(|| self.node.clone(), |request| request.recipient.clone());
        let record = Record::Incoming {
            entry,
            origin,
            message: own_end(id, serial, eof.clone()),
        };
        let done = Done::OwnEnd {
            work: id,
            serial,
            entry,
            eof,
        };
        self.journal.write(record, done);
        Stored { key: (0, 0), entry }
    }

    /// Ends the volatile requests that this node had in an earlier start than `instance`.
    pub(super) fn end_waiting(
        &mut self,
        cx: &mut Cx<'_>,
        remote: RemoteId,
        instance: u64,
        why: &str,
    ) {
        if self.remotes[remote.0].waiting == 0 {
            return;
        }
        let lost: Vec<MessageId> = self
            .requests
            .iter()
            .filter(|(_, request)| {
                request.remote == remote
                    && request.arrived
                    && request.entry.is_none()
                    && !request.is_ended()
                    && (instance == u64::MAX
                        || request.instance != 0 && request.instance < instance)
            })
            .map(|(id, _)| id)
            .collect();
        for id in lost {
            self.end_request(cx, id, ErrorBody::new(ErrorCode::Lost, why));
        }
    }

    pub(crate) fn consumed(
        &mut self,
        now: Instant,
        net: &mut dyn Net,
        work: MessageId,
        serial: u64,
        out: &mut Out,
    ) {
        let cx = &mut Cx { now, net, out };
        let limit = self.limits.inbox_bytes;
        let Some(request) = self.requests.get_mut(work) else {
            return;
        };
        let mut freed = Vec::new();
        let over = request.consumed(serial, &mut freed);
        let refused = request.take_refused(limit);
        let (from, entry, key) = (request.remote, request.entry, request.key);
        let arrived = request.arrived;
        let waited = request.arrived && entry.is_none();
        for key in refused {
            self.acks(from).busy(key, core::time::Duration::ZERO);
        }
        if over {
            // First the request: without it, what is left of its responses is nobody's.
            if let Some(entry) = entry {
                self.journal.unmark(entry);
                self.journal.remove(entry);
            }
            if waited {
                self.remotes[from.0].waiting -= 1;
            }
            if !arrived && let Some(outgoing) = self.remotes[from.0].flow.remove(key) {
                self.left(from, &outgoing);
            }
            self.requests.remove(work);
        }
        for (stored, after) in freed {
            let after = after.map(|after| (work, after));
            self.retire(cx.now, from, stored, after);
        }
    }

    // Works.

    pub(crate) fn work_started(
        &mut self,
        _now: Instant,
        _net: &mut dyn Net,
        id: MessageId,
        out: &mut Out,
    ) {
        let Some(work) = self.works.get_mut(id) else {
            return;
        };
        if work.state != State::Waiting || work.withdrawn {
            return;
        }
        match work.entry {
            Some(entry) => {
                work.state = State::Starting;
                // Together with the request or after it, never while it may still fail.
                if work.stored || work.batch == self.journal.batch() {
                    work.start_written = true;
                    self.journal
                        .write(Record::Started { entry }, Done::Started(id));
                }
            }
            None => {
                work.state = State::Running;
                self.works.release_payload(id);
                out.push_back(Output::Start { work: id });
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "mirrors the public method")]
    pub(crate) fn work_data(
        &mut self,
        now: Instant,
        net: &mut dyn Net,
        id: MessageId,
        content: Content,
        name: Option<String>,
        payload: Payload,
        out: &mut Out,
    ) -> Result<WorkRoom, NoSuchWork> {
        let cx = &mut Cx { now, net, out };
        let name = name.map(short_name);
        check_payload(&payload);
        let stored = match payload {
            Payload::Stored { entry, .. } => Some(entry),
            Payload::Inline(_) => None,
        };
        let unwanted = match self.in_progress(id) {
            Some(work) => {
                (!work.respond || work.broken || work.withdrawn).then_some(Ok(WorkRoom::Open))
            }
            None => Some(Err(NoSuchWork)),
        };
        if let Some(result) = unwanted {
            if let Some(entry) = stored {
                self.journal.remove(entry);
            }
            return result;
        }
        let Some(work) = self.works.get_mut(id) else {
            return Err(NoSuchWork);
        };
        work.serial += 1;
        work.backlog += payload_size(&payload) + ENVELOPE as u64;
        let (to, serial, volatile) = (work.remote, work.serial, work.volatile);
        let room = if work.backlog > self.limits.work_backlog {
            work.held = true;
            WorkRoom::Wait
        } else {
            WorkRoom::Open
        };
        self.respond(cx, to, id, serial, (content, name, payload), None, volatile);
        Ok(room)
    }

    #[expect(clippy::too_many_arguments, reason = "mirrors the public method")]
    pub(crate) fn work_done(
        &mut self,
        now: Instant,
        net: &mut dyn Net,
        id: MessageId,
        eof: Eof,
        content: Content,
        payload: Payload,
        out: &mut Out,
    ) -> Result<(), NoSuchWork> {
        let cx = &mut Cx { now, net, out };
        check_payload(&payload);
        let silent = match self.in_progress(id) {
            Some(work) => !work.respond || work.broken || work.withdrawn,
            None => {
                self.drop_payload(&payload);
                return Err(NoSuchWork);
            }
        };
        self.works.release_payload(id);
        let Some(work) = self.works.get_mut(id) else {
            return Err(NoSuchWork);
        };
        if work.withdrawn {
            self.forget_work(cx, id);
            self.work_left();
            self.drop_payload(&payload);
            return Ok(());
        }
        if silent {
            self.drop_payload(&payload);
            self.close_work(cx, id);
            return Ok(());
        }
        work.state = State::Ending;
        work.serial += 1;
        work.backlog += payload_size(&payload) + ENVELOPE as u64;
        let (to, serial, volatile) = (work.remote, work.serial, work.volatile);
        let stored = matches!(payload, Payload::Stored { .. });
        self.respond(
            cx,
            to,
            id,
            serial,
            (content, None, payload),
            Some(eof),
            volatile,
        );
        if volatile && !stored {
            self.close_work(cx, id);
        }
        Ok(())
    }

    fn drop_payload(&mut self, payload: &Payload) {
        if let Payload::Stored { entry, .. } = *payload {
            self.journal.remove(entry);
        }
    }

    /// A work that may still say something.
    fn in_progress(&self, id: MessageId) -> Option<&super::works::Work> {
        self.works.get(id).filter(|work| {
            matches!(
                work.state,
                State::Waiting | State::Starting | State::Running
            )
        })
    }

    /// The work's last word is safe, or there is none: its request can be forgotten.
    pub(super) fn close_work(&mut self, cx: &mut Cx<'_>, id: MessageId) {
        let Some(work) = self.works.get_mut(id) else {
            return;
        };
        let (remote, key, entry, cancel) = (work.remote, work.key, work.entry, work.cancel);
        if work.lingers {
            self.works.close(id);
            self.work_left();
            return;
        }
        let Some(entry) = entry else {
            self.forget_work(cx, id);
            self.work_left();
            return;
        };
        work.cancel = None;
        self.works.close(id);
        self.work_left();
        self.journal.retire(
            cx.now,
            Retired {
                remote,
                key,
                entry,
                after: None,
                work: Some(id),
            },
        );
        if let Some((key, entry)) = cancel {
            self.journal.retire(
                cx.now,
                Retired {
                    remote,
                    key,
                    entry,
                    after: None,
                    work: None,
                },
            );
        }
    }

    /// Nothing is left to be said about a work, nor can its request come again.
    pub(super) fn forget_work(&mut self, cx: &mut Cx<'_>, id: MessageId) {
        let Some(work) = self.works.remove(id) else {
            return;
        };
        if let Some((_, entry)) = work.retained {
            self.journal.remove(entry);
        }
        if let Some((key, entry)) = work.cancel {
            self.retire(cx.now, work.remote, Stored { key, entry }, None);
        }
    }

    /// The store's answer to a fetch.
    pub(crate) fn handle_fetched(
        &mut self,
        now: Instant,
        net: &mut dyn Net,
        entry: EntryId,
        offset: u64,
        result: Result<Bytes, ErrorBody>,
        out: &mut Out,
    ) {
        let cx = &mut Cx { now, net, out };
        let Some(&(to, key)) = self.sources.get(&entry) else {
            return;
        };
        let flow = &mut self.remotes[to.0].flow;
        let error = match result {
            Ok(bytes) => match flow.fetched(key, offset, bytes) {
                Ok(()) => {
                    self.set_ready(to);
                    return;
                }
                Err(()) => ErrorBody::new(
                    ErrorCode::Internal,
                    "the store has less of the message than there should be",
                ),
            },
            Err(error) => {
                let hopeless = flow.fetch_failed(now, key, offset);
                self.set_ready(to);
                if !hopeless {
                    return;
                }
                error
            }
        };
        let flow = &mut self.remotes[to.0].flow;
        let Some(outgoing) = flow.remove(key) else {
            return;
        };
        self.touch(to);
        self.left(to, &outgoing);
        self.unreadable(cx, to, *outgoing, error);
    }

    /// A message cannot be read from the store any more.
    fn unreadable(&mut self, cx: &mut Cx<'_>, to: RemoteId, outgoing: Outgoing, error: ErrorBody) {
        let work = outgoing.message.work;
        match outgoing.message.kind {
            MessageKind::Request { .. } => {
                cx.out.push_back(Output::Event(Event::GivenUp {
                    work,
                    recipient: self.remotes[to.0].node.clone(),
                    reason: error.clone(),
                }));
                self.end_request(cx, work, error);
            }
            MessageKind::Response { .. } => self.break_off(cx, to, &outgoing, error),
            MessageKind::Cancel { .. } => {}
        }
    }
}

/// A last response of this node's own making. Its place is 0, which no flow has.
pub(super) fn own_end(work: MessageId, serial: u64, eof: Eof) -> Message {
    Message {
        epoch: 0,
        seq: 0,
        floor: 0,
        work,
        kind: MessageKind::Response {
            serial,
            eof: Some(eof),
        },
        volatile: false,
        remaining_ms: 0,
        content: Content::None,
        name: None,
        size: 0,
        body: Bytes::new(),
    }
}

/// Whether a message that may be lost can be sent at all.
fn check_route(cx: &Cx<'_>, node: &NodeId) -> Result<(), ErrorBody> {
    let Some(code) = cx.net.reachability(node).code() else {
        return Ok(());
    };
    let text = if code == ErrorCode::NoSuchNode {
        alloc::format!("no node {node} is known; a message that is not volatile would wait for it")
    } else {
        alloc::format!("there is no way to {node} now; a message that is not volatile would wait")
    };
    Err(ErrorBody::new(code, text))
}

fn reason(code: &ErrorCode) -> ErrorBody {
    let text = if *code == ErrorCode::Expired {
        "the message's lifetime ended before its recipient had it"
    } else if *code == ErrorCode::Cancelled {
        "cancelled before it was sent"
    } else if *code == ErrorCode::Lost {
        "no receipt came, and the message may arrive at most once"
    } else if *code == ErrorCode::NoSuchNode {
        "the recipient is not known in the mesh any more"
    } else {
        "the message could not be passed on to its recipient"
    };
    ErrorBody::new(code.clone(), text)
}

fn serial_of(outgoing: &Outgoing) -> u64 {
    match outgoing.message.kind {
        MessageKind::Response { serial, .. } => serial,
        MessageKind::Request { .. } | MessageKind::Cancel { .. } => u64::MAX,
    }
}

fn is_response(outgoing: &Outgoing) -> bool {
    matches!(outgoing.message.kind, MessageKind::Response { .. })
}

/// The driver's part of the contract in [`Payload`].
fn check_payload(payload: &Payload) {
    let fits = match payload {
        Payload::Inline(bytes) => bytes.len() <= SEGMENT_MAX,
        Payload::Stored { size, .. } => *size > SEGMENT_MAX as u64,
    };
    assert!(
        fits,
        "payloads are stored when they are large, and only then"
    );
}

fn payload_size(payload: &Payload) -> u64 {
    match payload {
        Payload::Inline(bytes) => bytes.len() as u64,
        Payload::Stored { size, .. } => *size,
    }
}

/// A name that fits its packet.
fn short_name(mut name: String) -> String {
    let mut end = name.len().min(RESULT_NAME_MAX);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    name.truncate(end);
    name
}
