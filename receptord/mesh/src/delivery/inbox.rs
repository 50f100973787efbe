//! The requests of this node's clients and the responses that wait for them.
//!
//! Responses are handed out in serial order, each once, and every request that wants responses
//! gets exactly one last one, from its work or from this node. What a client has not taken is
//! bounded in bytes; beyond, responses are refused, which slows that work alone. Never writes
//! or sends; what its methods give back says what to do.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::string::String;
use alloc::vec::Vec;

use receptor_proto::packet::{Content, Eof, Message};
use receptor_proto::{MessageId, NodeId};

use super::RemoteId;
use super::choice::Wanted;
use super::deadlines::Deadlines;
use super::flow::{ENVELOPE, Key};
use crate::{EntryId, Instant, Output, Payload};

/// Refused responses of one request whose origin is told when there is room again; others find
/// out by trying.
const REFUSED_MAX: usize = 64;

/// A response on its way to a client.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) content: Content,
    pub(crate) name: Option<String>,
    pub(crate) payload: Payload,
    pub(crate) eof: Option<Eof>,
    /// Its place and entry, unless it is volatile.
    pub(crate) stored: Option<Stored>,
}

/// Where an incoming message is on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) key: Key,
    pub(crate) entry: EntryId,
}

impl Response {
    /// What it takes of the inbox.
    fn size(&self) -> u64 {
        let payload = match &self.payload {
            Payload::Inline(bytes) => bytes.len() as u64,
            Payload::Stored { size, .. } => *size,
        };
        payload + ENVELOPE as u64
    }
}

/// A response that a client was given and has not taken.
#[derive(Debug)]
struct Given {
    serial: u64,
    size: u64,
    stored: Option<Stored>,
    /// What was written of it before a write failed: perhaps the payload.
    loose: Option<EntryId>,
}

/// The durable cancel of a request, which its recipient may remember until it is told that the
/// request arrived.
#[derive(Debug)]
pub(crate) struct OpenCancel {
    pub(crate) key: Key,
    /// Where it is stored, once its recipient has it: so that a restart says it again.
    pub(crate) entry: Option<EntryId>,
}

impl OpenCancel {
    pub(crate) fn new(key: Key) -> Option<Box<Self>> {
        Some(Box::new(Self { key, entry: None }))
    }
}

/// A request of a client.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) remote: RemoteId,
    pub(crate) recipient: NodeId,
    pub(crate) key: Key,
    /// Where it is stored, unless it is volatile.
    pub(crate) entry: Option<EntryId>,
    pub(crate) respond: bool,
    /// The client was told that it is accepted.
    pub(crate) accepted: bool,
    /// The recipient has it.
    pub(crate) arrived: bool,
    /// What is to be written again if writing fails, once its flow has forgotten it.
    pub(crate) unwritten: Option<Box<Message>>,
    /// Which start of the recipient has it, when that is known; of interest when it is volatile.
    pub(crate) instance: u64,
    /// It was given up and wants no responses; only its own write is still waited for.
    pub(crate) over: bool,
    /// It was given up; its end waits for its dead letter.
    pub(crate) given_up: bool,
    pub(crate) cancelled: bool,
    /// What its recipient was chosen by, if it was.
    pub(crate) any: Option<Box<Wanted>>,
    pub(crate) open_cancel: Option<Box<OpenCancel>>,
    /// A volatile request's end, whatever happens.
    pub(crate) ends: Option<Instant>,
    next_serial: u64,
    /// Came before their turn.
    held: BTreeMap<u64, Response>,
    held_bytes: u64,
    given: VecDeque<Given>,
    given_bytes: u64,
    /// The last response that the client took; stays on the disk until it is noted that the next
    /// was, so that a restart knows where to go on.
    retained: Option<(u64, Stored)>,
    /// Which one it is noted of that the client took it.
    pub(crate) noted: Option<EntryId>,
    /// Given to the client but not on the disk: wanted once more, for the disk.
    unsafe_serials: BTreeSet<u64>,
    /// The last one's serial.
    end: Option<u64>,
    /// It has an end of this node's own making, which nobody may hear of before it is on the disk:
    /// a restart without it sends the request.
    end_unwritten: bool,
    refused: Vec<Key>,
}

/// What to do with a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Take,
    /// The client has it: nothing but a receipt.
    Repeat,
    /// The client was given it, but a restart would forget it: write it.
    WriteOnly(u64),
    /// Not now.
    Refuse,
    /// There is no such serial.
    Mistake,
}

impl Request {
    pub(crate) fn new(remote: RemoteId, recipient: NodeId, key: Key, respond: bool) -> Self {
        Self {
            remote,
            recipient,
            key,
            entry: None,
            respond,
            accepted: false,
            arrived: false,
            unwritten: None,
            instance: 0,
            over: false,
            given_up: false,
            cancelled: false,
            any: None,
            open_cancel: None,
            ends: None,
            next_serial: 1,
            held: BTreeMap::new(),
            held_bytes: 0,
            given: VecDeque::new(),
            given_bytes: 0,
            retained: None,
            noted: None,
            unsafe_serials: BTreeSet::new(),
            end: None,
            end_unwritten: false,
            refused: Vec::new(),
        }
    }

    /// Whether the client got its last response, or gets it as soon as it may get any.
    pub(crate) fn is_ended(&self) -> bool {
        self.end.is_some_and(|end| {
            end < self.next_serial || (self.next_serial..=end).all(|n| self.held.contains_key(&n))
        })
    }

    /// Whether it is on the disk here, has arrived, and nothing but its recipient can end it.
    pub(crate) fn waits_for_its_end(&self) -> bool {
        self.arrived && self.respond && self.entry.is_some() && !self.is_ended()
    }

    /// It was cancelled before the restart, if there is this.
    pub(crate) fn was_cancelled(&mut self, open: Option<Box<OpenCancel>>) {
        self.cancelled |= open.is_some();
        self.open_cancel = open;
    }

    /// Where its cancel is stored that nothing else knows of.
    pub(crate) fn cancel_entry(&self) -> Option<EntryId> {
        self.open_cancel.as_ref()?.entry
    }

    /// Whether a response with this serial waits for its turn.
    pub(crate) fn has(&self, serial: u64) -> bool {
        self.held.contains_key(&serial)
    }

    /// The serial that a last response of this node's own making gets.
    pub(crate) fn next_serial(&self) -> u64 {
        self.next_serial
    }

    /// Judges a response by its serial and size.
    pub(crate) fn judge(&mut self, serial: u64, size: u64, eof: bool, limit: u64) -> Verdict {
        if serial == 0 {
            return Verdict::Mistake;
        }
        if self.unsafe_serials.contains(&serial) && !eof {
            return Verdict::WriteOnly(serial);
        }
        if self.end_unwritten {
            return Verdict::Repeat;
        }
        if let Some(end) = self.end {
            if eof && self.unsafe_serials.contains(&end) {
                return Verdict::WriteOnly(end);
            }
            if end < self.next_serial || serial >= end {
                return Verdict::Repeat;
            }
        }
        if eof {
            // An end is always wanted, also before its turn or behind it: a worker's node that
            // restarted, or gave a response up, knows only how far it surely was.
            return Verdict::Take;
        }
        if serial < self.next_serial || self.held.contains_key(&serial) {
            return Verdict::Repeat;
        }
        // What comes before its turn must never keep out what is next.
        let waiting = if serial == self.next_serial {
            self.given_bytes
        } else {
            self.given_bytes + self.held_bytes
        };
        if waiting > 0 && waiting.saturating_add(size + ENVELOPE as u64) > limit {
            return Verdict::Refuse;
        }
        Verdict::Take
    }

    /// The serial under which a response counts: an end comes last, whatever its worker knew.
    pub(crate) fn place(&self, serial: u64, eof: bool) -> u64 {
        if eof {
            serial.max(self.next_serial)
        } else {
            serial
        }
    }

    /// Takes a response at its place; entries given back are needed no longer.
    pub(crate) fn take(&mut self, serial: u64, response: Response, freed: &mut Vec<Stored>) {
        if response.eof.is_some() {
            self.end = Some(serial);
            // Whatever a worker sent before it restarted, this is how it ended.
            let beyond = self.held.split_off(&serial);
            for (_, dropped) in beyond {
                self.held_bytes -= dropped.size();
                freed.extend(dropped.stored);
            }
        }
        self.held_bytes += response.size();
        self.held.insert(serial, response);
    }

    /// Takes an end of this node's own making at its place, to be given to the client once it is
    /// [on the disk](Self::end_written) if that is where it goes.
    pub(crate) fn end(&mut self, response: Response, freed: &mut Vec<Stored>) {
        self.end_unwritten = response.stored.is_some();
        self.take(self.next_serial, response, freed);
    }

    /// An end of this node's own making is on the disk, or is wanted there no more.
    pub(crate) fn end_written(&mut self) {
        self.end_unwritten = false;
    }

    /// Goes on, after a restart, behind a response that the client took.
    /// Gives back one that an earlier note was about.
    pub(crate) fn resume(&mut self, serial: u64, stored: Stored) -> Option<Stored> {
        self.next_serial = serial.saturating_add(1);
        self.noted = Some(stored.entry);
        let before = self.retained.replace((serial, stored));
        before.map(|(_, stored)| stored)
    }

    /// Gives the client what is next.
    pub(crate) fn deliver(&mut self, work: MessageId, out: &mut VecDeque<Output>) {
        if !self.accepted || self.end_unwritten {
            return;
        }
        while let Some(response) = self.held.remove(&self.next_serial) {
            let size = response.size();
            let serial = self.next_serial;
            self.next_serial += 1;
            self.held_bytes -= size;
            self.given_bytes += size;
            self.given.push_back(Given {
                serial,
                size,
                stored: response.stored,
                loose: None,
            });
            out.push_back(Output::Deliver {
                work,
                sender: self.recipient.clone(),
                serial,
                content: response.content,
                name: response.name,
                payload: response.payload,
                eof: response.eof,
            });
        }
    }

    /// The client took everything up to `serial`; entries given back are needed no longer once
    /// it is noted that the one beside them was taken. True: that was the last one.
    pub(crate) fn consumed(
        &mut self,
        serial: u64,
        freed: &mut Vec<(Stored, Option<Stored>)>,
    ) -> bool {
        while let Some(given) = self.given.front() {
            if given.serial > serial {
                break;
            }
            self.given_bytes -= given.size;
            let loose = given.loose.map(|entry| Stored { key: (0, 0), entry });
            freed.extend(loose.map(|stored| (stored, None)));
            if given.stored.is_some() {
                let before = self.retained.take();
                freed.extend(before.map(|(_, stored)| (stored, given.stored)));
                self.retained = given.stored.map(|stored| (given.serial, stored));
            }
            self.given.pop_front();
        }
        let over = self.end.is_some_and(|end| end < self.next_serial) && self.given.is_empty();
        if over {
            let last = self.retained.take();
            freed.extend(last.map(|(_, stored)| (stored, None)));
        }
        over
    }

    /// Remembers whom to tell when there is room.
    pub(crate) fn refuse(&mut self, key: Key) {
        if self.refused.len() < REFUSED_MAX && !self.refused.contains(&key) {
            self.refused.push(key);
        }
    }

    /// Whom to tell that there is room, once half of the inbox is free.
    pub(crate) fn take_refused(&mut self, limit: u64) -> Vec<Key> {
        if self.given_bytes > limit / 2 {
            return Vec::new();
        }
        core::mem::take(&mut self.refused)
    }

    /// The response with this serial could not be written: its origin sends it again. True: the
    /// client has no use for what was written of it.
    pub(crate) fn not_written(&mut self, serial: u64) -> bool {
        if let Some(response) = self.held.remove(&serial) {
            self.held_bytes -= response.size();
            if self.end == Some(serial) {
                self.end = None;
            }
            true
        } else if let Some(given) = self.given.iter_mut().find(|given| given.serial == serial) {
            given.loose = given.stored.take().map(|stored| stored.entry);
            self.unsafe_serials.insert(serial);
            false
        } else {
            self.unsafe_serials.insert(serial);
            true
        }
    }

    /// What the client took last was not on the disk after all; this, before it, was.
    pub(crate) fn retain_instead(&mut self, failed: EntryId, older: Option<Stored>) -> bool {
        match self.retained {
            Some((serial, stored)) if stored.entry == failed => {
                self.retained = older.map(|older| (serial.saturating_sub(1), older));
                true
            }
            Some(_) | None => false,
        }
    }

    /// A response that was given before is now on its way to the disk.
    /// Gives back what is needed no longer, and what is to be noted first, when the client has
    /// taken it in the meantime.
    pub(crate) fn written(&mut self, serial: u64, stored: Stored) -> Option<(Stored, Stored)> {
        self.unsafe_serials.remove(&serial);
        if let Some(given) = self.given.iter_mut().find(|given| given.serial == serial) {
            given.stored = Some(stored);
            return None;
        }
        match self.retained {
            Some((kept, last)) if kept > serial => Some((stored, last)),
            Some((_, before)) => {
                self.retained = Some((serial, stored));
                Some((before, stored))
            }
            None => {
                self.retained = Some((serial, stored));
                None
            }
        }
    }
}

/// All requests.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    by_id: BTreeMap<MessageId, Request>,
    ends: Deadlines<MessageId>,
}

impl Requests {
    pub(crate) fn get(&self, id: MessageId) -> Option<&Request> {
        self.by_id.get(&id)
    }

    pub(crate) fn get_mut(&mut self, id: MessageId) -> Option<&mut Request> {
        self.by_id.get_mut(&id)
    }

    pub(crate) fn insert(&mut self, id: MessageId, request: Request) {
        if let Some(ends) = request.ends {
            self.ends.push(ends, id);
        }
        self.by_id.insert(id, request);
    }

    pub(crate) fn remove(&mut self, id: MessageId) -> Option<Request> {
        let request = self.by_id.remove(&id)?;
        let by_id = &self.by_id;
        self.ends.tidy(by_id.len(), |id, at| ends_at(by_id, id, at));
        Some(request)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (MessageId, &Request)> {
        self.by_id.iter().map(|(id, request)| (*id, request))
    }

    /// A volatile request whose time is over without an end.
    pub(crate) fn pop_ended(&mut self, now: Instant) -> Option<MessageId> {
        while let Some(id) = self.ends.pop_due(now) {
            let request = self.by_id.get(&id);
            if request.is_some_and(|r| r.ends.is_some_and(|at| at <= now) && !r.is_ended()) {
                return Some(id);
            }
        }
        None
    }

    pub(crate) fn deadline(&mut self) -> Option<Instant> {
        let by_id = &self.by_id;
        self.ends.next(|id, at| ends_at(by_id, id, at))
    }
}

fn ends_at(by_id: &BTreeMap<MessageId, Request>, id: MessageId, at: Instant) -> bool {
    by_id
        .get(&id)
        .is_some_and(|request| request.ends == Some(at) && !request.is_ended())
}
