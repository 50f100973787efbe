//! What works here say: their start, their responses, their end, and what of it is written and
//! arrives.
//!
//! Owns the promise that the responses of a work reach the disk in their order, and that nothing
//! of a work stays on it once its last word is safe.

use alloc::string::String;
use alloc::vec::Vec;

use bytes::Bytes;
use receptor_proto::packet::{CancelReason, Content, Eof, Message, MessageKind, RESULT_NAME_MAX};
use receptor_proto::{ErrorBody, MessageId};

use super::flow::{ENVELOPE, Key, Outgoing};
use super::inbox::Stored;
use super::journal::{Done, Retired, With};
use super::outgoing::{check_payload, payload_size};
use super::works::{State, Unwritten};
use super::{Cx, Delivery, Out, RESPONSE_LIFETIME, RemoteId};
use super::{VOLATILE_RESPONSE_LIFETIME, millis};
use crate::wiring::Net;
use crate::{
    Adopted, EntryId, Event, Instant, NoSuchWork, Output, Payload, Record, Taken, WorkRoom,
};

/// Bytes of durable responses to one node that are not written yet: beyond, every work that makes
/// some for it is held. Twice what may be under way, and more than one sync of a disk takes along.
pub(super) const UNSAVED_MAX: usize = 4 << 20;
/// Works of which it is remembered that responses were given up: others of theirs, found in a page
/// later, are dropped without a further word.
const BROKEN_OFF_MAX: usize = 10_000;
/// What an end says in its detail that stands for responses that were given up.
const GIVEN_UP: (&str, &str) = ("responses", "given-up");

/// A result as a work gives it: what it is, its name, its bytes.
pub(super) type Parcel = (Content, Option<String>, Payload);

impl Delivery {
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
        in_doubt: bool,
        volatile: bool,
    ) -> Key {
        if let (false, Some(eof)) = (volatile, &eof) {
            self.tell_end(cx, to, work, serial, eof);
        }
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
            kind: MessageKind::Response {
                serial,
                eof,
                in_doubt,
            },
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
        let asked = self.works.get(work).filter(|work| work.remote == to);
        let written =
            entry.is_some() && asked.is_some_and(|work| work.is_told_when_safe(serial, is_eof));
        let outgoing = Outgoing::new(message, entry, cx.now + lifetime);
        self.send_after(cx, to, outgoing, written);
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

    pub(super) fn tell_end(
        &self,
        cx: &mut Cx<'_>,
        to: RemoteId,
        work: MessageId,
        serial: u64,
        eof: &Eof,
    ) {
        cx.out.push_back(Output::Ended {
            work,
            sender: self.remotes[to.0].node.clone(),
            responses: serial,
            eof: eof.clone(),
        });
    }

    /// Writes a response when those before it are on the disk or in the same write, so that a
    /// restart never finds one without those before it.
    pub(super) fn write_response(&mut self, to: RemoteId, id: MessageId, response: Unwritten) {
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
            let asked = self.works.get(id).filter(|work| work.remote == to);
            let done = Done::Response {
                remote: to,
                key,
                work: id,
                serial,
                eof,
                awaited: asked.is_some_and(|work| work.is_told_when_safe(serial, eof)),
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
            self.response_safe(cx, id, &response, false);
        }
    }

    pub(super) fn response_arrived(
        &mut self,
        cx: &mut Cx<'_>,
        outgoing: &Outgoing,
        serial: u64,
        eof: bool,
    ) {
        let id = outgoing.message.work;
        let size = outgoing.message.size + ENVELOPE as u64;
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
        // Not for each response, once there is no room.
        self.let_go_on(cx, id, self.limits.work_backlog / 2);
        let (Some(entry), Some(work)) = (outgoing.entry, self.works.get_mut(id)) else {
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

    /// A response was given up, so those after it are worth nothing: one word takes the place of
    /// them all.
    pub(super) fn break_off(
        &mut self,
        cx: &mut Cx<'_>,
        to: RemoteId,
        first: &Outgoing,
        reason: ErrorBody,
    ) {
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
            let running = work.is_in_progress();
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
        if !is_last_word(first) {
            if self.broken_off.len() >= BROKEN_OFF_MAX {
                self.broken_off.pop_first();
            }
            self.broken_off.insert(id, (to, serial));
            let eof = Eof {
                code: 1,
                error: Some(reason.with(GIVEN_UP.0, GIVEN_UP.1)),
            };
            let parcel = (Content::None, None, Payload::Inline(Bytes::new()));
            let volatile = first.message.volatile;
            // An end that is among them may have arrived all the same.
            let word = self.respond(cx, to, id, serial, parcel, Some(eof), true, volatile);
            let ended = self.works.get_mut(id).is_some_and(|work| {
                work.word = Some(word);
                work.state == State::Ending
            });
            // Of a word in memory nobody says that it is safe.
            if volatile && ended {
                self.close_work(cx, id);
            }
            if !volatile {
                for key in gone {
                    self.remotes[to.0].flow.hold(key);
                    self.journal.also(Done::GivenUp { remote: to, key });
                }
            }
        } else if self.works.get(id).is_some_and(|work| work.lingers) {
            self.forget_work(cx, id);
        }
        for entry in entries {
            self.journal.remove(entry);
        }
    }

    /// Whether a response is worth nothing, because one before it was given up and its reader will
    /// hear of that.
    pub(super) fn is_broken_off(&self, to: RemoteId, outgoing: &Outgoing) -> bool {
        let word = self.broken_off.get(&outgoing.message.work);
        word.is_some_and(|(remote, serial)| *remote == to && serial_of(outgoing) > *serial)
    }

    /// Forgets a response that is worth nothing.
    pub(super) fn drop_broken_off(&mut self, to: RemoteId, outgoing: &Outgoing) {
        let Some(entry) = outgoing.entry else {
            return;
        };
        let key = outgoing.key();
        self.remotes[to.0].flow.hold(key);
        self.journal.also(Done::GivenUp { remote: to, key });
        self.journal.remove(entry);
    }

    /// Lets a work's plugin go on that was held, if its backlog is at most this and there is room for what it has
    /// to say.
    fn let_go_on(&mut self, cx: &mut Cx<'_>, id: MessageId, most: u64) {
        let Some(work) = self.works.get_mut(id) else {
            return;
        };
        if !work.held || work.backlog > most {
            return;
        }
        let remote = &mut self.remotes[work.remote.0];
        if remote.flow.unsaved() > UNSAVED_MAX / 2 {
            remote.held.insert(id);
            return;
        }
        work.held = false;
        if work.is_in_progress() {
            cx.out.push_back(Output::ResumeWork { work: id });
        }
    }

    /// The same for all works that were held because of what others said to the same node.
    pub(super) fn let_all_go_on(&mut self, cx: &mut Cx<'_>, to: RemoteId) {
        let remote = &mut self.remotes[to.0];
        if remote.flow.unsaved() > UNSAVED_MAX / 2 {
            return;
        }
        for id in core::mem::take(&mut remote.held) {
            // While its reader is away a backlog gets no smaller.
            self.let_go_on(cx, id, self.limits.work_backlog);
        }
    }

    // Works.

    pub(crate) fn work_started(
        &mut self,
        _now: Instant,
        _net: &mut dyn Net,
        id: MessageId,
        idempotent: bool,
        out: &mut Out,
    ) {
        let Some(work) = self.works.get_mut(id) else {
            return;
        };
        if work.state != State::Waiting || work.withdrawn {
            return;
        }
        work.idempotent = idempotent;
        work.cut = false;
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

    pub(crate) fn work_adopted(
        &mut self,
        id: MessageId,
        idempotent: bool,
        said: u64,
    ) -> Result<Adopted, NoSuchWork> {
        let limit = self.limits.work_backlog;
        let work = self.works.get_mut(id).filter(|work| work.cut);
        let work = work.filter(|work| work.state == State::Waiting);
        let work = work.ok_or(NoSuchWork)?;
        work.cut = false;
        work.idempotent = idempotent;
        work.start_written = true;
        work.start_stored = true;
        work.state = State::Running;
        // Its reader may have responses that were never on the disk here.
        work.repeats = work.serial.saturating_sub(said);
        work.serial = work.serial.max(said);
        work.held = work.backlog > limit;
        let adopted = Adopted {
            repeats: work.repeats,
            room: work.room(),
        };
        self.works.release_payload(id);
        Ok(adopted)
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
    ) -> Result<Taken, NoSuchWork> {
        let cx = &mut Cx { now, net, out };
        let name = name.map(short_name);
        check_payload(&payload);
        let work = self.works.get_mut(id).filter(|work| work.is_in_progress());
        let Some(work) = work else {
            self.drop_payload(&payload);
            return Err(NoSuchWork);
        };
        if work.is_silent() {
            self.drop_payload(&payload);
            return Ok(Taken {
                room: WorkRoom::Open,
                serial: None,
            });
        }
        if work.repeats > 0 {
            work.repeats -= 1;
            let serial = work.serial - work.repeats;
            let room = work.room();
            cx.out.push_back(Output::ResponsesSafe { work: id, serial });
            self.drop_payload(&payload);
            return Ok(Taken {
                room,
                serial: Some(serial),
            });
        }
        work.serial += 1;
        work.backlog += payload_size(&payload) + ENVELOPE as u64;
        let (to, serial, volatile) = (work.remote, work.serial, work.volatile);
        let remote = &mut self.remotes[to.0];
        let unsaved = remote.flow.unsaved() > UNSAVED_MAX;
        if unsaved && !work.held {
            remote.held.insert(id);
        }
        work.held |= unsaved || work.backlog > self.limits.work_backlog;
        let room = work.room();
        let parcel = (content, name, payload);
        self.respond(cx, to, id, serial, parcel, None, false, volatile);
        Ok(Taken {
            room,
            serial: Some(serial),
        })
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
    ) -> Result<Option<u64>, NoSuchWork> {
        let cx = &mut Cx { now, net, out };
        check_payload(&payload);
        let work = self.works.get_mut(id).filter(|work| work.is_in_progress());
        let Some(work) = work else {
            self.drop_payload(&payload);
            return Err(NoSuchWork);
        };
        let (mut eof, mut content, mut payload) = (eof, content, payload);
        if work.cut && work.cancelled {
            // Whatever is known of it, it did not run to its end.
            let empty = Payload::Inline(Bytes::new());
            let given = core::mem::replace(&mut payload, empty);
            (eof, content) = (super::restore::interrupted(), Content::None);
            self.drop_payload(&given);
        }
        self.works.release_payload(id);
        let Some(work) = self.works.get_mut(id) else {
            return Err(NoSuchWork);
        };
        if work.withdrawn {
            self.forget_work(cx, id);
            self.work_left();
            self.drop_payload(&payload);
            return Ok(None);
        }
        work.serial += 1;
        work.repeats = 0;
        let (to, serial, volatile) = (work.remote, work.serial, work.volatile);
        let in_doubt = work.in_doubt;
        let kept = (!volatile).then_some(serial);
        if work.is_silent() {
            if !work.respond && !volatile && eof.code != 0 {
                self.tell_end(cx, to, id, 1, &eof);
            }
            self.drop_payload(&payload);
            match self.works.get_mut(id) {
                // The word for what was given up is the last of these, and closes it.
                Some(work) if work.writing.0 > 0 || !work.unwritten.is_empty() => {
                    work.state = State::Ending;
                }
                Some(_) | None => self.close_work(cx, id),
            }
            return Ok(kept);
        }
        work.state = State::Ending;
        work.backlog += payload_size(&payload) + ENVELOPE as u64;
        let stored = matches!(payload, Payload::Stored { .. });
        self.respond(
            cx,
            to,
            id,
            serial,
            (content, None, payload),
            Some(eof),
            in_doubt,
            volatile,
        );
        if volatile && !stored {
            self.close_work(cx, id);
        }
        Ok(kept)
    }

    pub(super) fn drop_payload(&mut self, payload: &Payload) {
        if let Payload::Stored { entry, .. } = *payload {
            self.journal.remove(entry);
        }
    }

    pub(crate) fn outlives_a_restart(&self, id: MessageId) -> bool {
        let work = self.works.get(id).filter(|work| work.is_in_progress());
        work.is_some_and(|work| work.entry.is_some() && !work.withdrawn)
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
                with: With::Work(id),
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
                    with: With::Nothing,
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

fn serial_of(outgoing: &Outgoing) -> u64 {
    match outgoing.message.kind {
        MessageKind::Response { serial, .. } => serial,
        MessageKind::Request { .. } | MessageKind::Cancel { .. } => u64::MAX,
    }
}

/// Whether a message stands for responses that were given up. When it is given up itself, nothing
/// takes its place.
pub(super) fn is_last_word(outgoing: &Outgoing) -> bool {
    let error = match &outgoing.message.kind {
        MessageKind::Response { eof, .. } => eof.as_ref().and_then(|eof| eof.error.as_ref()),
        MessageKind::Request { .. } | MessageKind::Cancel { .. } => None,
    };
    error.is_some_and(|error| {
        error
            .detail
            .get(GIVEN_UP.0)
            .is_some_and(|it| it == GIVEN_UP.1)
    })
}

pub(super) fn is_in_doubt(outgoing: &Outgoing) -> bool {
    match outgoing.message.kind {
        MessageKind::Response { in_doubt, .. } => in_doubt,
        MessageKind::Request { .. } | MessageKind::Cancel { .. } => false,
    }
}

fn is_response(outgoing: &Outgoing) -> bool {
    matches!(outgoing.message.kind, MessageKind::Response { .. })
}
