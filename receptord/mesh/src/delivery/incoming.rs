//! What comes in packets: messages, parts of payloads, receipts, notices that something could
//! not be passed on.
//!
//! Decides what is new, what is a repeat and what there is no room for. Whatever a peer sends
//! that makes no sense is counted and dropped.

use core::time::Duration;

use receptor_proto::packet::{
    About, Content, Eof, Message, MessageKind, Receipt, SEGMENT_MAX, Segment, Undeliverable,
};
use receptor_proto::{Directive, ErrorBody, ErrorCode, MessageId, NodeId};

use super::cancels::EARLY_LOOK;
use super::flow::Key;
use super::inbox::{self, Stored};
use super::journal::{Arrival, Done, Retired, With};
use super::partial::{Part, Room};
use super::received::{EPOCHS_MAX, Received, Verdict};
use super::works::NewWork;
use super::{BUSY, Cx, DISK_BUSY, Delivery, LIFETIME_MOST, Out, RemoteId, SWEEP, millis};
use crate::wiring::Net;
use crate::{Denied, EntryId, Event, Instant, Output, Payload, Record};
use alloc::boxed::Box;
use alloc::format;
use alloc::vec::Vec;
use bytes::Bytes;

/// After which a message may come again whose flow has too many gaps.
const GAPS_BUSY: Duration = Duration::from_millis(100);
/// The highest start of this node that another is believed to remember: a clock in milliseconds is
/// there in the year 2109, and whoever lies leaves as many numbers above.
const START_MOST: u64 = 1 << 42;

impl Delivery {
    pub(super) fn on_message(&mut self, cx: &mut Cx<'_>, from: RemoteId, message: Message) {
        let key = (message.epoch, message.seq);
        self.heard(from);
        self.heard_instance(cx, from, message.epoch);
        self.note_size(from, message.size);
        if !self.early.is_empty() {
            self.plan_early(cx.now + EARLY_LOOK);
        }
        // Its origin is done with this epoch, or was set up anew with a clock that is behind, and
        // is told of the later one. Responses are known by their serials.
        if message.epoch < self.remotes[from.0].first_epoch && !self.may_answer(cx, from, &message)
        {
            self.duplicates += 1;
            self.acks(from).received(key);
            return;
        }
        if message.floor > 0 {
            self.move_on(cx, from, message.epoch);
        }
        let Some(received) = self.received(cx, from, message.epoch) else {
            // What its earlier starts have outstanding must come in first.
            self.acks(from).busy(key, BUSY);
            return;
        };
        let lifetime = Duration::from_millis(message.remaining_ms).min(LIFETIME_MOST);
        received.keep(cx.now + lifetime);
        let raised = received.raise_floor(message.floor);
        let verdict = received.check(message.seq);
        if raised {
            self.drop_partials_below(from, message.epoch, message.floor);
        }
        match verdict {
            Verdict::New if message.is_segmented() => self.on_head(cx, from, message),
            Verdict::New => {
                let payload = Payload::Inline(message.body.clone());
                self.take(cx, from, message, payload);
            }
            // What an origin has done with it may take up again after a restart; it only moves
            // its floor once that can do no harm.
            Verdict::Received | Verdict::Stale => {
                self.duplicates += 1;
                self.acks(from).received(key);
            }
            Verdict::Pending => {
                self.duplicates += 1;
                if message.is_segmented() {
                    self.acks(from).progress(key, message.size);
                }
            }
            Verdict::Full => self.acks(from).busy(key, GAPS_BUSY),
        }
    }

    /// Whether this is a response that may be news, though its node was in a later epoch. Where somebody may send
    /// again what was heard long ago it is one only if its node says that this is its start: the work may
    /// have been sent before under the same id.
    fn may_answer(&mut self, cx: &Cx<'_>, from: RemoteId, message: &Message) -> bool {
        if !matches!(message.kind, MessageKind::Response { .. }) {
            return false;
        }
        if !self.is_secured || cx.net.stated_start(&self.remotes[from.0].node) == message.epoch {
            return true;
        }
        // If it was one all the same, its node forgets the work now.
        self.inquiries.ask_again(cx.now, from);
        false
    }

    /// A node says that it is done with its epochs before this one.
    fn move_on(&mut self, cx: &mut Cx<'_>, from: RemoteId, epoch: u64) {
        let remote = &mut self.remotes[from.0];
        if epoch <= remote.first_epoch {
            return;
        }
        remote.first_epoch = epoch;
        if remote.received.keys().all(|known| *known >= epoch) {
            return;
        }
        self.moved_on.insert(from);
        while let Some(key) = self.partials.find(from, |(e, _), _| e < epoch) {
            self.drop_partial(from, key);
        }
        let early: Vec<MessageId> = self
            .early
            .iter()
            .filter(|(_, early)| early.remote == from && early.key.0 < epoch)
            .map(|(id, _)| *id)
            .collect();
        for id in early {
            self.forget_early(cx.now, id);
        }
    }

    /// What was received in an epoch of a node, if it may have that many epochs.
    fn received(&mut self, cx: &Cx<'_>, from: RemoteId, epoch: u64) -> Option<&mut Received> {
        let remote = &mut self.remotes[from.0];
        remote.is_known = true;
        if !remote.received.contains_key(&epoch) {
            if remote.received.len() >= EPOCHS_MAX {
                return None;
            }
            self.plan_sweep(cx.now + SWEEP);
        }
        let remote = &mut self.remotes[from.0];
        if self.is_secured && epoch > remote.first_epoch && !remote.received.contains_key(&epoch) {
            // Nothing of an epoch is heard once it is forgotten: so it is remembered as long as any message of it
            // can wait somewhere.
            for (_, earlier) in remote.received.range_mut(..epoch) {
                earlier.keep(cx.now + LIFETIME_MOST);
            }
        }
        Some(remote.received.entry(epoch).or_default())
    }

    /// The head of a large message: its payload may come, unless it is not wanted.
    fn on_head(&mut self, cx: &mut Cx<'_>, from: RemoteId, mut message: Message) {
        let key = (message.epoch, message.seq);
        if let Some(partial) = self.partials.get_mut(from, key) {
            self.duplicates += 1;
            let given = partial.given;
            self.acks(from).progress(key, given);
            return;
        }
        // What goes to the disk in parts may as well stay there.
        message.volatile = false;
        if !self.wants_payload(cx, from, &message) {
            return;
        }
        match self.partials.room(cx.now, from) {
            Room::Free => {}
            Room::Instead(remote, other) => self.drop_partial(remote, other),
            Room::Full => {
                self.acks(from).busy(key, BUSY);
                return;
            }
        }
        let entry = self.new_entry();
        cx.out.push_back(Output::Begin {
            entry,
            origin: self.remotes[from.0].node.clone(),
            message: Box::new(message.clone()),
        });
        self.partials.insert(cx.now, from, message, entry, 0);
        self.acks(from).progress(key, 0);
    }

    /// Answers a large message whose payload is not wanted.
    fn wants_payload(&mut self, cx: &mut Cx<'_>, from: RemoteId, message: &Message) -> bool {
        let key = (message.epoch, message.seq);
        match &message.kind {
            MessageKind::Request { respond, .. } => {
                let Err(no) = self.judge_request(from, message, 0) else {
                    return true;
                };
                match no {
                    No::Later => self.put_off(from, key),
                    No::Never(error) => self.refuse(cx, from, message, *respond, error),
                    No::Answered => self.let_go(from, key, message.volatile),
                }
                false
            }
            MessageKind::Response { serial, eof, .. } => {
                let (serial, eof) = (*serial, eof.is_some());
                let limit = self.limits.inbox_bytes;
                if self.is_paged(cx, from, key, message.work) {
                    return false;
                }
                let verdict = self
                    .requests
                    .get_mut(message.work)
                    .filter(|request| request.remote == from && request.respond)
                    .map(|request| request.judge(serial, message.size, eof, limit));
                if self.is_too_late(cx, from, message, verdict) {
                    return false;
                }
                match verdict {
                    Some(inbox::Verdict::Take | inbox::Verdict::WriteOnly(_)) => return true,
                    Some(inbox::Verdict::Refuse) => self.refuse_response(from, key, message.work),
                    Some(inbox::Verdict::Repeat) => {
                        self.duplicates += 1;
                        self.let_go(from, key, false);
                    }
                    Some(inbox::Verdict::Mistake) => {
                        self.mistakes += 1;
                        self.let_go(from, key, false);
                    }
                    None => {
                        self.orphans += 1;
                        self.let_go(from, key, false);
                    }
                }
                false
            }
            MessageKind::Cancel { .. } => {
                self.mistakes += 1;
                self.let_go(from, key, false);
                false
            }
        }
    }

    pub(super) fn on_segment(&mut self, cx: &mut Cx<'_>, from: RemoteId, segment: Segment) {
        let key = (segment.epoch, segment.seq);
        let length = segment.piece.bytes.len();
        let Some(partial) = self.partials.get_mut(from, key) else {
            let received = self.remotes[from.0].received.get(&segment.epoch);
            match received.map(|received| received.check(segment.seq)) {
                Some(Verdict::Received | Verdict::Stale) => self.acks(from).received(key),
                Some(Verdict::Pending) => {}
                Some(Verdict::New | Verdict::Full) | None => {
                    self.acks(from).busy(key, Duration::ZERO);
                }
            }
            return;
        };
        if length > SEGMENT_MAX {
            self.mistakes += 1;
            return;
        }
        match partial.take(cx.now, segment.offset, length as u64) {
            Part::Write => cx.out.push_back(Output::Append {
                entry: partial.entry,
                offset: segment.offset,
                piece: segment.piece,
            }),
            Part::Drop => {}
            Part::Mistake => self.mistakes += 1,
        }
    }

    /// The store's answer about a part.
    pub(crate) fn handle_appended(
        &mut self,
        now: Instant,
        net: &mut dyn Net,
        entry: EntryId,
        end: u64,
        result: Result<(), ErrorBody>,
        out: &mut Out,
    ) {
        let cx = &mut Cx { now, net, out };
        let Some((remote, key)) = self.partials.owner(entry) else {
            return;
        };
        let Some(partial) = self.partials.get_mut(remote, key) else {
            return;
        };
        match result {
            Ok(()) => {
                partial.written = partial.written.max(end.min(partial.given));
                let (written, size) = (partial.written, partial.message.size);
                if written < size {
                    self.acks(remote).progress(key, written);
                    return;
                }
                if let Some(partial) = self.partials.remove(remote, key) {
                    let payload = Payload::Stored { entry, size };
                    self.take(cx, remote, partial.message, payload);
                }
            }
            Err(error) => {
                let Some(partial) = self.partials.remove(remote, key) else {
                    return;
                };
                self.journal.remove(entry);
                match &partial.message.kind {
                    MessageKind::Request { respond, .. }
                        if error.code == ErrorCode::PayloadTooLarge =>
                    {
                        self.refuse(cx, remote, &partial.message, *respond, error);
                    }
                    MessageKind::Request { .. }
                    | MessageKind::Response { .. }
                    | MessageKind::Cancel { .. } => self.acks(remote).busy(key, DISK_BUSY),
                }
            }
        }
    }

    /// Forgets an unfinished payload.
    pub(super) fn drop_partial(&mut self, remote: RemoteId, key: Key) {
        if let Some(partial) = self.partials.remove(remote, key) {
            let entry = partial.entry;
            self.journal.remove(entry);
        }
    }

    fn drop_partials_below(&mut self, from: RemoteId, epoch: u64, floor: u64) {
        while let Some(key) = self
            .partials
            .find(from, |(e, seq), _| e == epoch && seq < floor)
        {
            self.drop_partial(from, key);
        }
    }

    /// Lets go of a message of which nothing needs to be kept. That it came is still written
    /// before its origin is told, so that a receipt is true after a restart as well.
    pub(super) fn let_go(&mut self, from: RemoteId, key: Key, volatile: bool) {
        if volatile {
            self.ack(from, key);
            return;
        }
        let write = self.journal.batch();
        if let Some(received) = self.remotes[from.0].received.get_mut(&key.0) {
            received.take_number(key.1, write);
        }
        self.numbered.insert((from, key.0));
        self.journal.also(Done::Arrived {
            remote: from,
            key,
            what: Arrival::Number,
        });
    }

    /// Says that a volatile message is here.
    pub(super) fn ack(&mut self, from: RemoteId, key: Key) {
        if let Some(received) = self.remotes[from.0].received.get_mut(&key.0) {
            received.ack(key.1);
        }
        self.acks(from).received(key);
    }

    /// Writes a message that came. Until that is done its number is taken; then its origin is told.
    pub(super) fn write_arrival(
        &mut self,
        from: RemoteId,
        entry: EntryId,
        message: Message,
        what: Arrival,
    ) {
        let key = (message.epoch, message.seq);
        let remote = &mut self.remotes[from.0];
        if let Some(received) = remote.received.get_mut(&key.0) {
            received.take(key.1);
        }
        let record = Record::Incoming {
            entry,
            origin: remote.node.clone(),
            message,
        };
        let done = Done::Arrived {
            remote: from,
            key,
            what,
        };
        if matches!(what, Arrival::Response { .. }) && !self.no_room.is_empty() {
            // Those that were refused together come together, and may be more than there is room for.
            self.journal.write_alone(record, done);
        } else {
            self.journal.write(record, done);
        }
    }

    /// A whole message that is new.
    fn take(&mut self, cx: &mut Cx<'_>, from: RemoteId, message: Message, payload: Payload) {
        match message.kind {
            MessageKind::Request { .. } => self.take_request(cx, from, message, payload),
            MessageKind::Response { .. } => self.take_response(cx, from, message, payload),
            MessageKind::Cancel { reason } => self.take_cancel(cx, from, message, reason),
        }
    }

    fn judge_request(&self, from: RemoteId, message: &Message, inline: usize) -> Result<(), No> {
        if let Some(work) = self.works.get(message.work) {
            if work.remote == from {
                return Err(No::Later);
            }
            let error = ErrorBody::new(ErrorCode::Refused, "another node's work has this id");
            return Err(No::Never(error));
        }
        if self.damaged.get(&message.work) == Some(&from) {
            return Err(No::Answered);
        }
        if self
            .early
            .get(&message.work)
            .is_some_and(|early| early.remote == from)
        {
            let error = ErrorBody::new(ErrorCode::Cancelled, super::cancels::BEFORE_ARRIVAL);
            return Err(No::Never(error));
        }
        if message.remaining_ms == 0 {
            let error = ErrorBody::new(ErrorCode::Expired, "the message arrived too late");
            return Err(No::Never(error));
        }
        if let MessageKind::Request { directive, .. } = &message.kind
            && let Some(no) = self.use_refusal(from, directive)
        {
            return Err(No::Never(no));
        }
        if self.works.active() >= self.limits.works || !self.works.has_room(inline) {
            return Err(No::Later);
        }
        Ok(())
    }

    fn use_refusal(&self, from: RemoteId, directive: &Directive) -> Option<ErrorBody> {
        let sender = &self.remotes[from.0].node;
        self.gate.use_refusal(&self.node, sender, directive)
    }

    fn take_request(
        &mut self,
        cx: &mut Cx<'_>,
        from: RemoteId,
        mut message: Message,
        payload: Payload,
    ) {
        let MessageKind::Request { directive, respond } = &message.kind else {
            return;
        };
        let (directive, respond) = (directive.clone(), *respond);
        let key = (message.epoch, message.seq);
        let (inline, entry) = match &payload {
            Payload::Inline(bytes) => (bytes.len(), None),
            Payload::Stored { entry, .. } => {
                // It came in time; that it took long to come is no reason to refuse it.
                message.remaining_ms = message.remaining_ms.max(1);
                (0, Some(*entry))
            }
        };
        if let Err(no) = self.judge_request(from, &message, inline) {
            if let Some(entry) = entry {
                self.journal.remove(entry);
            }
            match no {
                No::Later => self.put_off(from, key),
                No::Never(error) => self.refuse(cx, from, &message, respond, error),
                No::Answered => self.let_go(from, key, message.volatile),
            }
            return;
        }
        let work = message.work;
        let content = message.content;
        let volatile = message.volatile;
        let entry = if volatile {
            self.ack(from, key);
            None
        } else {
            let entry = entry.unwrap_or_else(|| self.new_entry());
            self.write_arrival(from, entry, message, Arrival::Work(work));
            Some(entry)
        };
        let new = NewWork {
            remote: from,
            key,
            entry,
            stored: volatile,
            batch: self.journal.batch(),
            directive: directive.clone(),
            respond,
            volatile,
            inline,
        };
        self.broken_off.remove(&work);
        self.works.insert(cx.now, work, new);
        cx.out.push_back(Output::Dispatch {
            work,
            sender: self.remotes[from.0].node.clone(),
            directive,
            content,
            payload,
            attempt: 1,
        });
    }

    /// There is no room for a request; its origin is told when there is.
    fn put_off(&mut self, from: RemoteId, key: Key) {
        self.acks(from).busy(key, BUSY);
        let remote = &mut self.remotes[from.0];
        if remote.put_off.replace(key).is_none() {
            self.put_off.push_back(from);
        }
    }

    /// A work is over: one of those who were put off may try again.
    pub(super) fn work_left(&mut self) {
        if self.works.active() >= self.limits.works {
            return;
        }
        if let Some(remote) = self.put_off.pop_front()
            && let Some(key) = self.remotes[remote.0].put_off.take()
        {
            self.acks(remote).busy(key, Duration::ZERO);
        }
    }

    /// Takes a request only to answer that it will not be run.
    pub(super) fn refuse(
        &mut self,
        cx: &mut Cx<'_>,
        from: RemoteId,
        message: &Message,
        respond: bool,
        error: ErrorBody,
    ) {
        let key = (message.epoch, message.seq);
        if error.code == ErrorCode::PermissionDenied
            && let MessageKind::Request { directive, .. } = &message.kind
        {
            let (sender, directive) = (self.remotes[from.0].node.clone(), directive.clone());
            let denied = Denied::Work { sender, directive };
            cx.out.push_back(Output::Event(Event::Denied(denied)));
        }
        if self
            .early
            .get(&message.work)
            .is_some_and(|early| early.remote == from)
        {
            self.forget_early(cx.now, message.work);
        }
        self.let_go(from, key, message.volatile);
        if !respond {
            return;
        }
        let eof = Eof {
            code: 1,
            error: Some(error),
        };
        self.respond(
            cx,
            from,
            message.work,
            1,
            (Content::None, None, Payload::Inline(Bytes::new())),
            Some(eof),
            false,
            message.volatile,
        );
    }

    fn take_response(
        &mut self,
        cx: &mut Cx<'_>,
        from: RemoteId,
        mut message: Message,
        payload: Payload,
    ) {
        let MessageKind::Response { serial, eof, .. } = &message.kind else {
            return;
        };
        let (serial, eof) = (*serial, eof.clone());
        let key = (message.epoch, message.seq);
        let work = message.work;
        let entry = match &payload {
            Payload::Inline(_) => None,
            Payload::Stored { entry, .. } => Some(*entry),
        };
        if self.is_paged(cx, from, key, work) {
            if let Some(entry) = entry {
                self.journal.remove(entry);
            }
            return;
        }
        if message.volatile {
            self.response_implies_arrival(cx, from, work, None, message.epoch);
        }
        let limit = self.limits.inbox_bytes;
        let judged = self
            .requests
            .get_mut(work)
            .filter(|request| request.remote == from && request.respond)
            .map(|request| {
                let verdict = request.judge(serial, message.size, eof.is_some(), limit);
                (request.key, verdict)
            });
        if self.is_too_late(cx, from, &message, judged.map(|(_, verdict)| verdict)) {
            if let Some(entry) = entry {
                self.journal.remove(entry);
            }
            return;
        }
        let (request, verdict) = match judged {
            Some(taken @ (_, inbox::Verdict::Take | inbox::Verdict::WriteOnly(_))) => taken,
            other => {
                if let Some(entry) = entry {
                    self.journal.remove(entry);
                }
                match other.map(|(_, verdict)| verdict) {
                    Some(inbox::Verdict::Refuse) => {
                        self.refuse_response(from, key, work);
                        return;
                    }
                    Some(inbox::Verdict::Mistake) => self.mistakes += 1,
                    Some(
                        inbox::Verdict::Repeat
                        | inbox::Verdict::Take
                        | inbox::Verdict::WriteOnly(_),
                    ) => {
                        self.duplicates += 1;
                    }
                    None => self.orphans += 1,
                }
                self.let_go(from, key, message.volatile);
                return;
            }
        };
        let place = match verdict {
            inbox::Verdict::WriteOnly(serial) => serial,
            inbox::Verdict::Take
            | inbox::Verdict::Repeat
            | inbox::Verdict::Refuse
            | inbox::Verdict::Mistake => self
                .requests
                .get(work)
                .map_or(serial, |request| request.place(serial, eof.is_some())),
        };
        let content = message.content;
        let name = message.name.clone();
        let stored = if message.volatile {
            self.ack(from, key);
            None
        } else {
            let entry = entry.unwrap_or_else(|| self.new_entry());
            message.kind = MessageKind::Response {
                serial: place,
                eof: eof.clone(),
                in_doubt: false,
            };
            let what = Arrival::Response {
                work,
                request,
                serial: place,
                entry,
            };
            self.write_arrival(from, entry, message, what);
            Some(Stored { key, entry })
        };
        let Some(request) = self.requests.get_mut(work) else {
            return;
        };
        if let (inbox::Verdict::WriteOnly(serial), Some(stored)) = (verdict, stored) {
            if let Some((older, after)) = request.written(serial, stored) {
                self.retire(cx.now, from, older, Some((work, after)));
            }
            return;
        }
        let response = inbox::Response {
            content,
            name,
            payload,
            eof,
            stored,
        };
        let mut freed = Vec::new();
        request.take(place, response, &mut freed);
        request.deliver(work, cx.out);
        for stored in freed {
            self.retire(cx.now, from, stored, None);
        }
    }

    /// Whether a response is to a request that is not in memory, but soon will be; the response
    /// is to come again then.
    fn is_paged(&mut self, cx: &Cx<'_>, from: RemoteId, key: Key, work: MessageId) -> bool {
        let paged = self.requests.get(work).is_none() && self.recall(cx.now, work, None);
        if paged {
            self.acks(from).busy(key, BUSY);
        }
        paged
    }

    fn refuse_response(&mut self, from: RemoteId, key: Key, work: MessageId) {
        if let Some(request) = self.requests.get_mut(work) {
            request.refuse(key);
        }
        self.acks(from).busy(key, BUSY);
    }

    /// An incoming entry is needed no longer; of responses, once it is noted that the client
    /// took the one `after` it.
    pub(super) fn retire(
        &mut self,
        now: Instant,
        remote: RemoteId,
        stored: Stored,
        after: Option<(MessageId, Stored)>,
    ) {
        let retired = Retired {
            remote,
            key: stored.key,
            entry: stored.entry,
            after,
            with: With::Nothing,
        };
        self.journal.retire(now, retired);
    }

    pub(super) fn on_receipt(&mut self, cx: &mut Cx<'_>, from: RemoteId, receipt: &Receipt) {
        self.heard(from);
        self.heard_instance(cx, from, receipt.instance);
        self.take_earlier_end(cx, from, receipt);
        let mut done = core::mem::take(&mut self.done);
        let flow = &mut self.remotes[from.0].flow;
        self.mistakes += flow.receipt(cx.now, receipt, self.instance, &mut done);
        let forgot = receipt.later > self.instance && receipt.later <= START_MOST;
        if forgot {
            self.note_behind(cx, from, receipt.later);
        }
        for outgoing in done.drain(..) {
            let responds = matches!(outgoing.message.kind, MessageKind::Response { .. });
            if forgot && !responds {
                let error = ErrorBody::new(
                    ErrorCode::Refused,
                    "not taken: the recipient remembers a later start of this node, whose data \
                     were lost; after a restart of this node it takes its messages again",
                );
                self.given_up_because(cx, from, outgoing, error);
            } else {
                self.receipted(cx, from, outgoing, receipt.instance);
            }
        }
        self.done = done;
        self.touch(from);
        self.set_ready(from);
    }

    pub(super) fn on_undeliverable(
        &mut self,
        cx: &mut Cx<'_>,
        said: &NodeId,
        notice: Undeliverable,
    ) {
        let About::Message { epoch, seq } = notice.about else {
            return;
        };
        let Some(to) = self.find(&notice.destination) else {
            self.mistakes += 1;
            return;
        };
        let on_way = self.may_have(cx, to, said);
        // Of others it is as if they had no way: a lie costs time, and no message that is kept.
        if notice.code == ErrorCode::PermissionDenied && on_way {
            self.on_transit_denied(cx, to, said, (epoch, seq));
            return;
        }
        let certain = self.takes_custody && on_way;
        let flow = &mut self.remotes[to.0].flow;
        let given_up = flow.undeliverable(cx.now, (epoch, seq), notice.code);
        if certain {
            flow.came_back(self.instance, self.is_secured, (epoch, seq), (epoch, seq));
        }
        self.set_ready(to);
        if let Some(given_up) = given_up {
            self.given_up(cx, to, given_up);
        }
    }

    /// A node on the way does not forward for this one. Waiting would not help, and another way would be
    /// taken already if it were better.
    fn on_transit_denied(&mut self, cx: &mut Cx<'_>, to: RemoteId, said: &NodeId, key: Key) {
        let Some((outgoing, alone)) = self.remotes[to.0].flow.denied(key, self.instance) else {
            return;
        };
        let recipient = &self.remotes[to.0].node;
        let text = format!("{said} does not forward from {} to {recipient}", self.node);
        let reason = if alone || !is_request(&outgoing.message) {
            ErrorBody::new(ErrorCode::PermissionDenied, text)
        } else {
            let text = format!("{text} any more; whether an earlier copy arrived is not known");
            ErrorBody::new(ErrorCode::Lost, text)
        };
        let reason = reason.with("node", said.as_str());
        self.touch(to);
        self.set_ready(to);
        self.given_up_because(cx, to, *outgoing, reason);
    }

    /// A node remembers a start of this one that this one does not.
    fn note_behind(&mut self, cx: &mut Cx<'_>, from: RemoteId, start: u64) {
        if start > self.behind {
            self.behind = start;
            cx.out.push_back(Output::Event(Event::Behind {
                node: self.remotes[from.0].node.clone(),
                start,
            }));
        }
    }

    fn heard(&mut self, from: RemoteId) {
        if self.remotes[from.0].flow.heard() {
            self.touch(from);
        }
    }

    /// A node that started again has forgotten the volatile requests it had.
    fn heard_instance(&mut self, cx: &mut Cx<'_>, from: RemoteId, instance: u64) {
        let remote = &mut self.remotes[from.0];
        if instance <= remote.instance {
            return;
        }
        remote.instance = instance;
        if remote.waiting > 0 && from != super::OWN {
            self.end_waiting(cx, from, instance, "its node was restarted");
        }
    }

    /// How much longer a message stored with this expiry lives.
    pub(super) fn remaining(cx: &Cx<'_>, expires: Instant) -> u64 {
        millis(expires.since(cx.now))
    }
}

/// Why a request is not taken.
enum No {
    /// There is no room.
    Later,
    /// It is answered with this.
    Never(ErrorBody),
    /// It was answered before.
    Answered,
}

pub(super) fn is_request(message: &Message) -> bool {
    matches!(message.kind, MessageKind::Request { .. })
}
