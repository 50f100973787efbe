//! What follows when something is on the disk, or could not be put there.
//!
//! This is the only place where a message is called accepted, a durable one receipted, and a
//! durable work started.

use alloc::vec::Vec;
use core::time::Duration;

use receptor_proto::packet::CancelReason;
use receptor_proto::{ErrorBody, MessageId};

use super::cancels::{EARLY_KEPT, Early};
use super::flow::Key;
use super::journal::{Arrival, Done, Retired, With};
use super::works::{State, Unwritten};
use super::{Cx, DISK_BUSY, Delivery, NO_ROOM_MAX, Out, RemoteId};
use crate::wiring::Net;
use crate::{EntryId, Event, Instant, Output, PersistToken, Record};

impl Delivery {
    pub(crate) fn handle_persisted(
        &mut self,
        now: Instant,
        net: &mut dyn Net,
        token: PersistToken,
        out: &mut Out,
    ) {
        let cx = &mut Cx { now, net, out };
        for done in self.journal.take_written(token) {
            self.written(cx, done);
        }
    }

    fn written(&mut self, cx: &mut Cx<'_>, done: Done) {
        match done {
            Done::Request(id) => self.request_written(cx, id),
            Done::Response {
                remote,
                key,
                work,
                serial,
                eof,
                ..
            } => {
                self.outgoing_stored(remote, key);
                self.touch(remote);
                self.page_out(remote, key);
                let response = Unwritten { key, serial, eof };
                self.response_written(cx, remote, work, &response);
            }
            Done::Cancel { remote, key } => self.outgoing_stored(remote, key),
            Done::Arrived { remote, key, what } => {
                let (epoch, seq) = key;
                if let Some(received) = self.remotes[remote.0].received.get_mut(&epoch) {
                    if what == Arrival::Number && !received.number_written(seq) {
                        self.numbered.insert((remote, epoch));
                        self.journal.also(Done::Arrived { remote, key, what });
                        return;
                    }
                    received.ack(seq);
                }
                self.acks(remote).received(key);
                match what {
                    Arrival::Work(id) => self.work_written(id),
                    Arrival::Response { work, request, .. } => {
                        self.response_implies_arrival(cx, remote, work, Some(request), 0);
                        if !self.no_room.is_empty() {
                            // There is room again, perhaps for more than what was removed says:
                            // who came by itself had been waited for in vain.
                            self.no_room.retain(|waiting| *waiting != (remote, key));
                            self.ask_for_refused();
                        }
                    }
                    Arrival::Number | Arrival::Cancel { .. } => {}
                }
            }
            Done::Started(id) => {
                let Some(work) = self.works.get_mut(id) else {
                    return;
                };
                work.start_stored = true;
                if work.state == State::Starting {
                    work.state = State::Running;
                    self.works.release_payload(id);
                    cx.out.push_back(Output::Start { work: id });
                }
            }
            Done::Slimmed { work, old, entry } => match self.requests.get_mut(work) {
                Some(request) => {
                    request.entry = Some(entry);
                    self.journal.remove(old);
                }
                None => self.journal.remove(entry),
            },
            Done::OwnEnd { work, .. } => {
                if let Some(request) = self.requests.get_mut(work) {
                    request.end_written();
                    request.deliver(work, cx.out);
                }
            }
            Done::Gone { work, serial } => {
                cx.out.push_back(Output::ResponsesSafe { work, serial });
            }
            Done::Mark(..) | Done::Responses(_) => {}
            Done::Moved(moved) => self.moved_written(cx, moved),
            Done::Kept(entry) => self.kept_written(cx, entry),
            Done::Earlier { remote, epoch, end } => self.tell_earlier_end(remote, epoch, *end),
            Done::GivenUp { remote, key } => self.remotes[remote.0].flow.release(key),
            Done::Retired(retired) => {
                self.journal.retired(cx.now, Vec::new());
                for Retired {
                    remote,
                    entry,
                    after,
                    with,
                    ..
                } in retired
                {
                    if let Some((request, after)) = after
                        && let Some(request) = self.requests.get_mut(request)
                    {
                        request.noted = Some(after.entry);
                    }
                    match with {
                        With::Nothing => self.journal.remove(entry),
                        With::Work(work) => self.request_retired(cx, work, entry),
                        With::Early(_, owed) => {
                            // Ahead of the number in whose write its removal is to be.
                            cx.out.push_back(Output::Remove { entry });
                            if let Some(key) = owed {
                                self.let_go(remote, key, false);
                            }
                        }
                    }
                    // Its room is another's.
                    self.ask_for_refused();
                }
            }
        }
    }

    /// One of the responses that the disk refused is to come again.
    fn ask_for_refused(&mut self) {
        if let Some((remote, key)) = self.no_room.pop_front() {
            self.acks(remote).busy(key, Duration::ZERO);
        }
    }

    /// Nothing is left to be said about a work, and its request can go.
    fn request_retired(&mut self, cx: &mut Cx<'_>, id: MessageId, entry: EntryId) {
        match self.works.get(id) {
            Some(work) if !work.end_safe => {
                // Only that tells a restart that there was an end.
                let serial = work.serial;
                cx.out.push_back(Output::Remove { entry });
                self.journal.also(Done::Gone { work: id, serial });
            }
            Some(_) | None => self.journal.remove(entry),
        }
        self.forget_work(cx, id);
    }

    /// A message of this node is on its disk; without a way only such a one is entrusted to another node.
    fn outgoing_stored(&mut self, to: RemoteId, key: Key) {
        let flow = &mut self.remotes[to.0].flow;
        flow.stored(key, &self.limits);
        if flow.is_entrusting() {
            self.set_ready(to);
        }
    }

    fn request_written(&mut self, cx: &mut Cx<'_>, id: MessageId) {
        let Some(request) = self.requests.get_mut(id) else {
            return;
        };
        let (remote, key) = (request.remote, request.key);
        self.outgoing_stored(remote, key);
        let Some(request) = self
            .requests
            .get_mut(id)
            .filter(|request| !request.accepted)
        else {
            return;
        };
        request.accepted = true;
        request.unwritten = None;
        cx.out.push_back(Output::Accepted {
            work: id,
            recipient: request.recipient.clone(),
        });
        if request.arrived
            && request.respond
            && let Some(entry) = request.entry
        {
            self.journal.mark(cx.now, id, entry);
        }
        request.deliver(id, cx.out);
        self.settle_silent(id);
        self.page_request_out(id);
        if let Some(request) = self.requests.get(id)
            && request.any.is_some()
        {
            // Its recipient may be away by now, and another be there.
            let remote = request.remote;
            self.set_ready(remote);
        }
    }

    fn response_written(
        &mut self,
        cx: &mut Cx<'_>,
        remote: RemoteId,
        id: MessageId,
        response: &Unwritten,
    ) {
        let Some(work) = self.works.get_mut(id).filter(|work| work.remote == remote) else {
            return;
        };
        work.writing.0 = work.writing.0.saturating_sub(1);
        self.response_safe(cx, id, response, true);
        self.write_next(cx, id);
    }

    /// A response is on the disk here, or only at its reader.
    pub(super) fn response_safe(
        &mut self,
        cx: &mut Cx<'_>,
        id: MessageId,
        response: &Unwritten,
        is_here: bool,
    ) {
        let Some(work) = self.works.get_mut(id) else {
            return;
        };
        // One that was given up while it was being written: an end of the plugin's must not close
        // the work before the word that takes its place is written.
        if work.word.is_some_and(|word| response.key < word) {
            return;
        }
        work.stored_serial = work.stored_serial.max(response.serial);
        // A restart that does not find the end here takes the work up again.
        work.end_safe |= response.eof && is_here;
        if !work.volatile && (work.end_safe || !response.eof) {
            cx.out.push_back(Output::ResponsesSafe {
                work: id,
                serial: work.stored_serial,
            });
        }
        if let Some((kept, entry)) = work.retained
            && kept < work.stored_serial
        {
            work.retained = None;
            self.journal.remove(entry);
        }
        if response.eof && work.state == State::Ending {
            self.close_work(cx, id);
        }
    }

    /// A response is not safe; neither may any after it be.
    fn response_not_written(
        &mut self,
        cx: &mut Cx<'_>,
        remote: RemoteId,
        id: MessageId,
        response: Unwritten,
        done: Done,
    ) {
        let Some(work) = self.works.get_mut(id).filter(|work| work.remote == remote) else {
            self.journal.again(cx.now, done);
            return;
        };
        work.writing.0 = work.writing.0.saturating_sub(1);
        let at = work
            .unwritten
            .partition_point(|waits| waits.key < response.key);
        work.unwritten.insert(at, response);
        if !core::mem::replace(&mut work.write_failed, true) {
            self.journal.again(cx.now, Done::Responses(id));
        }
    }

    fn work_written(&mut self, id: MessageId) {
        let Some(work) = self.works.get_mut(id) else {
            return;
        };
        let waited = !core::mem::replace(&mut work.stored, true);
        if let (true, State::Starting, Some(entry)) = (waited, work.state, work.entry)
            && !core::mem::replace(&mut work.start_written, true)
        {
            self.journal
                .write(Record::Started { entry }, Done::Started(id));
        }
    }

    pub(crate) fn handle_persist_failed(
        &mut self,
        now: Instant,
        net: &mut dyn Net,
        token: PersistToken,
        error: ErrorBody,
        out: &mut Out,
    ) {
        let cx = &mut Cx { now, net, out };
        for done in self.journal.take_written(token) {
            self.not_written(cx, done, &error);
        }
    }

    fn not_written(&mut self, cx: &mut Cx<'_>, done: Done, error: &ErrorBody) {
        match done {
            Done::Request(id) => self.request_not_written(cx, id, error),
            Done::Arrived { remote, key, what } => self.arrival_not_written(cx, remote, key, what),
            Done::Slimmed {
                work, old: entry, ..
            }
            | Done::Mark(work, entry) => {
                let request = self.requests.get(work);
                if request.is_some_and(|request| request.entry == Some(entry)) {
                    self.journal.mark(cx.now, work, entry);
                }
            }
            Done::Retired(retired) => self.journal.retired(cx.now, retired),
            Done::Kept(entry) => self.kept_not_written(entry),
            Done::Response {
                remote,
                key,
                work,
                serial,
                eof,
                ..
            } => {
                let response = Unwritten { key, serial, eof };
                self.response_not_written(cx, remote, work, response, done);
            }
            Done::Started(id) => {
                // Of one that could not be written itself nothing is to be written again.
                if self.works.get(id).is_some_and(|work| work.stored) {
                    self.journal.again(cx.now, done);
                }
            }
            // The end that came too late comes again.
            Done::Earlier { .. } => {}
            Done::Responses(_)
            | Done::Cancel { .. }
            | Done::Moved(_)
            | Done::OwnEnd { .. }
            | Done::Gone { .. }
            | Done::GivenUp { .. } => {
                self.journal.again(cx.now, done);
            }
        }
    }

    /// A client's message is not safe, so it is not accepted.
    fn request_not_written(&mut self, cx: &mut Cx<'_>, id: MessageId, error: &ErrorBody) {
        let Some(request) = self.requests.get_mut(id) else {
            return;
        };
        if request.arrived {
            // It is safe elsewhere; the client hears of it when that an answer is waited for is
            // safe here too.
            if request.respond {
                self.journal.again(cx.now, Done::Request(id));
            } else {
                self.request_written(cx, id);
            }
            return;
        }
        let (to, key) = (request.remote, request.key);
        let ended = request.is_ended() || request.over || request.given_up;
        let respond = request.respond;
        request.accepted = true;
        if let Some(entry) = request.entry.take() {
            self.journal.remove(entry);
        }
        let recipient = request.recipient.clone();
        if let Some(outgoing) = self.remotes[to.0].flow.remove(key) {
            self.left(to, &outgoing);
            if outgoing.was_sent() {
                // It may be there all the same; nobody waits for it.
                let expires = outgoing.expires;
                self.send_cancel(cx, to, id, CancelReason::SenderGone, false, expires);
            }
        }
        if !respond {
            cx.out.push_back(Output::NotAccepted {
                work: id,
                reason: error.clone(),
            });
        }
        if ended {
            // Its end was waiting for the message to be accepted; it never will be.
            if let Some(request) = self.requests.get_mut(id) {
                request.end_written();
                request.deliver(id, cx.out);
            }
            self.settle_silent(id);
            return;
        }
        cx.out.push_back(Output::Event(Event::GivenUp {
            work: id,
            recipient,
            reason: error.clone(),
        }));
        self.end_request(cx, id, error.clone());
    }

    /// A message for this node is not safe: its origin keeps it and sends it again.
    fn arrival_not_written(&mut self, cx: &mut Cx<'_>, remote: RemoteId, key: Key, what: Arrival) {
        if let Some(received) = self.remotes[remote.0].received.get_mut(&key.0) {
            received.untake(key.1);
        }
        self.acks(remote).busy(key, DISK_BUSY);
        match what {
            Arrival::Number => {}
            Arrival::Work(id) => {
                let Some(work) = self.works.get_mut(id) else {
                    return;
                };
                if let Some(entry) = work.entry {
                    self.journal.remove(entry);
                }
                work.entry = None;
                if matches!(work.state, State::Waiting | State::Starting) {
                    work.withdrawn = true;
                    // The request comes again, its cancel does not.
                    let cancel = work.cancel.take();
                    if !work.cancelled {
                        work.cancelled = true;
                        cx.out.push_back(Output::CancelWork {
                            work: id,
                            reason: CancelReason::SenderGone,
                        });
                    }
                    if let Some((key, entry)) = cancel {
                        let early = Early {
                            remote,
                            key,
                            entry: Some(entry),
                            until: cx.now + EARLY_KEPT,
                        };
                        self.keep_early(cx, id, early);
                    }
                } else if work.retained.is_some_and(|(last, _)| last == work.serial) {
                    self.forget_work(cx, id);
                } else {
                    // It ended without ever being safe here; should it come again before its
                    // end is with its sender, it must not be taken for a new one.
                    work.lingers = true;
                }
            }
            Arrival::Response {
                work,
                request: place,
                serial,
                entry,
            } => {
                let older = self.journal.never_stored(entry);
                let request = self.requests.get_mut(work);
                let Some(request) = request.filter(|request| request.key == place) else {
                    self.journal.remove(entry);
                    return;
                };
                if request.not_written(serial) {
                    self.journal.remove(entry);
                }
                if self.no_room.len() < NO_ROOM_MAX && !self.no_room.contains(&(remote, key)) {
                    self.no_room.push_back((remote, key));
                }
                if !request.retain_instead(entry, older)
                    && let Some(older) = older
                {
                    self.retire(cx.now, remote, older, None);
                }
            }
            Arrival::Cancel { work, entry } => {
                self.journal.remove(entry);
                let retired = self.journal.not_retired(entry);
                if let Some(With::Early(_, Some(owed))) = retired.map(|retired| retired.with) {
                    self.let_go(remote, owed, false);
                }
                if self
                    .early
                    .get(&work)
                    .is_some_and(|early| early.entry == Some(entry))
                {
                    self.early.remove(&work);
                }
                if let Some(work) = self.works.get_mut(work)
                    && work.cancel.is_some_and(|(_, stored)| stored == entry)
                {
                    work.cancel = None;
                }
            }
        }
    }

    /// Writes again what could not be written, as far as it still matters.
    pub(super) fn write_again(&mut self, cx: &mut Cx<'_>, done: Done) {
        match done {
            Done::Responses(id) => {
                if let Some(work) = self.works.get_mut(id) {
                    work.write_failed = false;
                    self.write_next(cx, id);
                }
            }
            Done::Moved(moved) => self.write_moved_again(cx, moved),
            Done::Response { remote, key, .. } | Done::Cancel { remote, key } => {
                let recipient = self.remotes[remote.0].node.clone();
                let outgoing = self.remotes[remote.0].flow.get(key);
                match outgoing.and_then(|outgoing| Some((outgoing.entry?, &outgoing.message))) {
                    Some((entry, message)) => {
                        let message = message.clone();
                        let record = Record::Outgoing {
                            entry,
                            recipient,
                            message,
                        };
                        self.journal.write(record, done);
                    }
                    // Its reader has it: that is as good as a disk.
                    None => self.written(cx, done),
                }
            }
            Done::Started(id) => {
                if let Some(work) = self.works.get(id)
                    && work.state == State::Starting
                    && work.stored
                    && !work.withdrawn
                    && let Some(entry) = work.entry
                {
                    self.journal.write(Record::Started { entry }, done);
                }
            }
            Done::Request(id) => {
                if let Some(request) = self.requests.get(id)
                    && let (Some(entry), Some(message)) = (request.entry, &request.unwritten)
                {
                    let record = Record::Outgoing {
                        entry,
                        recipient: request.recipient.clone(),
                        message: (**message).clone(),
                    };
                    self.journal.note(record);
                    // It has arrived. Said in the same step, because a store that is full has
                    // room for what ends work when it has none for what is still to be done.
                    self.journal.write(Record::Started { entry }, done);
                }
            }
            Done::OwnEnd {
                work,
                serial,
                entry,
                ref eof,
            } => {
                if let Some(request) = self.requests.get(work) {
                    let record = Record::Incoming {
                        entry,
                        origin: request.recipient.clone(),
                        message: super::outgoing::own_end(work, serial, eof.clone()),
                    };
                    self.journal.write(record, done);
                }
            }
            Done::GivenUp { .. } | Done::Gone { .. } => self.journal.also(done),
            Done::Arrived { .. }
            | Done::Slimmed { .. }
            | Done::Mark(..)
            | Done::Kept(_)
            | Done::Earlier { .. }
            | Done::Retired(_) => {}
        }
    }
}
