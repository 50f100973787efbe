//! What clients ask for: their requests, and what becomes of them; with what every
//! message that goes out has in common.
//!
//! Owns the promise that a request which wants responses gets exactly one last one: from its
//! work, or from [`Delivery::end_request`] when that can never come.

use alloc::boxed::Box;
use alloc::vec::Vec;

use bytes::Bytes;
use receptor_proto::packet::{Content, Eof, Message, MessageKind, Piece, SEGMENT_MAX};
use receptor_proto::{ErrorBody, ErrorCode, MessageId, NodeId};

use super::flow::{GivenUp, Key, Outgoing};
use super::inbox::{Request, Response, Stored};
use super::journal::Done;
use super::{Cx, Delivery, OWN, Out, RemoteId, millis};
use crate::wiring::Net;
use crate::{EntryId, Event, Instant, Output, Payload, Recipient, Record, Submission, SubmitError};

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
        if self.is_pending(id) {
            let error = ErrorBody::new(
                ErrorCode::InvalidRequest,
                "a message with this id was sent and has not ended",
            );
            return Err(error.with("id", alloc::format!("{id}")));
        }
        let (size, body, entry) = self.checked_payload(&submission)?;
        self.check_room(size)?;
        let any = match &submission.recipient {
            Recipient::Any { metadata } if !submission.volatile => Some(Box::new(metadata.clone())),
            Recipient::Any { .. } | Recipient::Node(_) => None,
        };
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
            self.journal.write_alone(record, Done::Request(id));
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
            request.any = any.clone();
            self.requests.insert(id, request);
        }
        let mut outgoing = Outgoing::new(message, entry, expires);
        outgoing.any = any.is_some();
        let behind = submission.repeatable && outgoing.is_pageable();
        self.send_after(cx, to, outgoing, behind);
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
        self.send_after(cx, to, outgoing, false);
    }

    /// The same, perhaps not before it is written. What is on the disk already waits for nothing.
    pub(super) fn send_after(
        &mut self,
        cx: &Cx<'_>,
        to: RemoteId,
        outgoing: Outgoing,
        written: bool,
    ) {
        let behind = !outgoing.stored && (written || self.goes_behind(to, &outgoing));
        self.kept += 1;
        self.kept_bytes += outgoing.message.size;
        let remote = &mut self.remotes[to.0];
        if to != OWN && remote.flow.is_empty() && remote.waiting == 0 {
            remote.flow.look(cx.net.path(&remote.node));
        }
        remote.flow.push(outgoing, cx.now, &self.limits, behind);
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
            MessageKind::Response {
                serial, ref eof, ..
            } => {
                let eof = eof.is_some();
                self.response_arrived(cx, &outgoing, serial, eof);
            }
            MessageKind::Cancel { reason } => {
                let (work, entry) = (outgoing.message.work, outgoing.entry);
                if outgoing.open && outgoing.moot {
                    self.close_cancel(cx, to, work, reason, entry);
                    return;
                }
                let open = match self.requests.get_mut(work) {
                    Some(request) => request.open_cancel.as_mut(),
                    None => self.paging.open_cancel(work).and_then(Option::as_mut),
                };
                match open.filter(|open| open.key == outgoing.key()) {
                    Some(open) => open.entry = entry,
                    None => self.journal.remove_any(entry),
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
        self.settle_cancel(cx, to, work);
        let Some(request) = self.requests.get_mut(work) else {
            return;
        };
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

    /// A response is safe here, or never will be, before its request's receipt came: that of this place, if that is known.
    pub(super) fn response_implies_arrival(
        &mut self,
        cx: &mut Cx<'_>,
        from: RemoteId,
        work: MessageId,
        place: Option<Key>,
        instance: u64,
    ) {
        let Some(request) = self.requests.get(work) else {
            return;
        };
        if request.remote != from || request.arrived {
            return;
        }
        let key = request.key;
        if place.is_some_and(|place| place != key) {
            return;
        }
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
        let entries = [request.entry, request.cancel_entry()];
        for entry in entries {
            self.journal.remove_any(entry);
        }
        self.requests.remove(work);
    }

    /// A message will not be sent again.
    pub(super) fn given_up(&mut self, cx: &mut Cx<'_>, to: RemoteId, given_up: GivenUp) {
        let GivenUp { outgoing, code } = given_up;
        self.given_up_because(cx, to, *outgoing, reason(&code));
    }

    /// The same, for this reason.
    pub(super) fn given_up_because(
        &mut self,
        cx: &mut Cx<'_>,
        to: RemoteId,
        outgoing: Outgoing,
        reason: ErrorBody,
    ) {
        self.left(to, &outgoing);
        let work = outgoing.message.work;
        match outgoing.message.kind {
            MessageKind::Request { .. } => {
                cx.out.push_back(Output::Event(Event::GivenUp {
                    work,
                    recipient: self.remotes[to.0].node.clone(),
                    reason: reason.clone(),
                }));
                if outgoing.is_here_alone(self.instance) {
                    self.settle_cancel(cx, to, work);
                }
                if let Some(entry) = outgoing.entry
                    && reason.code != ErrorCode::Cancelled
                {
                    self.send_letter(cx, to, entry, outgoing, reason);
                } else {
                    self.end_request(cx, work, reason);
                }
            }
            MessageKind::Response { .. } if self.is_broken_off(to, &outgoing) => {
                self.drop_broken_off(to, &outgoing);
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
        request.end(response, &mut freed);
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
                // Its end came ahead of its receipt.
                self.left(from, &outgoing);
                self.settle_cancel(cx, from, work);
            }
            if let Some(request) = self.requests.remove(work) {
                self.journal.remove_any(request.cancel_entry());
            }
        }
        for (stored, after) in freed {
            let after = after.map(|after| (work, after));
            self.retire(cx.now, from, stored, after);
        }
    }

    /// The store's answer to a fetch.
    pub(crate) fn handle_fetched(
        &mut self,
        now: Instant,
        net: &mut dyn Net,
        entry: EntryId,
        offset: u64,
        result: Result<Piece, ErrorBody>,
        out: &mut Out,
    ) {
        let cx = &mut Cx { now, net, out };
        let Some(&(to, key)) = self.sources.get(&entry) else {
            self.kept_read(cx, entry, result.ok().map(|piece| piece.bytes));
            return;
        };
        let flow = &mut self.remotes[to.0].flow;
        let error = match result {
            Ok(piece) => match flow.fetched(key, offset, piece) {
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
                // What is damaged stays so; other failures may pass.
                let hopeless = flow.fetch_failed(now, key, offset);
                self.set_ready(to);
                if !hopeless && error.code != ErrorCode::Damaged {
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
    pub(super) fn unreadable(
        &mut self,
        cx: &mut Cx<'_>,
        to: RemoteId,
        outgoing: Outgoing,
        error: ErrorBody,
    ) {
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
            in_doubt: false,
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
        "no receipt came, so that it is not known whether the recipient had the message"
    } else if *code == ErrorCode::NoSuchNode {
        "the recipient is not known in the mesh any more"
    } else {
        "the message could not be passed on to its recipient"
    };
    ErrorBody::new(code.clone(), text)
}

/// The driver's part of the contract in [`Payload`].
pub(super) fn check_payload(payload: &Payload) {
    let fits = match payload {
        Payload::Inline(bytes) => bytes.len() <= SEGMENT_MAX,
        Payload::Stored { size, .. } => *size > SEGMENT_MAX as u64,
    };
    assert!(
        fits,
        "payloads are stored when they are large, and only then"
    );
}

pub(super) fn payload_size(payload: &Payload) -> u64 {
    match payload {
        Payload::Inline(bytes) => bytes.len() as u64,
        Payload::Stored { size, .. } => *size,
    }
}
