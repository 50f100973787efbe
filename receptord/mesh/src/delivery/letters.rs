//! Messages that were given up, on their way to becoming dead letters.
//!
//! Until the driver says that the letter is on the disk nobody hears of the message's end, and its
//! entry stays in the store: a crash before that finds the message again and gives it up again.
//! Owns how many letters the driver has at once, and what is done when it cannot keep one. Never
//! holds a payload that the store has, but for those that the driver has.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use core::time::Duration;

use bytes::Bytes;
use receptor_proto::packet::Message;
use receptor_proto::{ErrorBody, MessageId, NodeId};

use super::flow::{Key, Outgoing};
use super::inbox::Request;
use super::{Cx, Delivery, Out, RemoteId};
use crate::wiring::Net;
use crate::{EntryId, Event, Instant, Output};

/// Letters with the driver at once: enough to share the cost of a sync.
const GIVEN_MAX: usize = 256;
/// Payloads of them that the driver may have in memory, in bytes; one is given in any case.
const GIVEN_BYTES_MAX: u64 = 4 << 20;
/// Letters that wait for their turn from which on no page is read, whose messages may have to be
/// given up as well.
const BEHIND: usize = 1024;
/// How long after a failed write the next letter is given out.
const AGAIN: Duration = Duration::from_secs(1);
/// How often a letter is given out. A disk that is full for longer must not keep the senders from
/// being told, nor the spool from getting room.
const TRIES_MAX: u32 = 10;

/// What follows when a letter is kept.
#[derive(Debug)]
enum Whose {
    /// A request of this node: its end.
    Own { to: RemoteId, key: Key },
    /// In custody for this node: its entry goes.
    Custody(NodeId),
}

/// A message that was given up.
#[derive(Debug)]
struct Letter {
    entry: EntryId,
    whose: Whose,
    recipient: NodeId,
    message: Box<Message>,
    reason: ErrorBody,
    /// It is known to be in the store.
    stored: bool,
    tries: u32,
}

impl Letter {
    /// Bytes of it that the driver has in memory.
    fn weight(&self) -> u64 {
        if self.message.is_segmented() {
            0
        } else {
            self.message.size
        }
    }

    /// Leaves the payload to the store.
    fn slim(&mut self) {
        if self.stored {
            self.message.body = Bytes::new();
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Letters {
    waiting: VecDeque<Letter>,
    /// The driver has them.
    given: BTreeMap<EntryId, Letter>,
    given_bytes: u64,
    /// Writing failed: none is given out before this.
    again_at: Option<Instant>,
}

impl Letters {
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.again_at.filter(|_| !self.waiting.is_empty())
    }

    /// So many wait that no more should be made if that can be helped.
    pub(super) fn is_behind(&self) -> bool {
        self.waiting.len() >= BEHIND
    }

    /// The next letter, when the driver may have it now.
    fn next(&mut self, now: Instant) -> Option<Letter> {
        if self.again_at.is_some_and(|at| at > now) || self.given.len() >= GIVEN_MAX {
            return None;
        }
        let weight = self.waiting.front()?.weight();
        if !self.given.is_empty() && self.given_bytes + weight > GIVEN_BYTES_MAX {
            return None;
        }
        self.again_at = None;
        self.waiting.pop_front()
    }

    /// Gives the driver what it may have.
    pub(super) fn give(&mut self, now: Instant, out: &mut Out) {
        while let Some(mut letter) = self.next(now) {
            out.push_back(Output::DeadLetter {
                entry: letter.entry,
                origin: match &letter.whose {
                    Whose::Own { .. } => None,
                    Whose::Custody(origin) => Some(origin.clone()),
                },
                recipient: letter.recipient.clone(),
                message: letter.message.clone(),
                reason: letter.reason.clone(),
            });
            letter.tries += 1;
            letter.slim();
            self.given_bytes += letter.weight();
            self.given.insert(letter.entry, letter);
        }
    }

    fn add(&mut self, now: Instant, letter: Letter, out: &mut Out) {
        self.waiting.push_back(letter);
        self.give(now, out);
        if let Some(last) = self.waiting.back_mut() {
            last.slim();
        }
    }
}

impl Delivery {
    /// A request of this node was given up: its end follows when its letter is kept.
    pub(super) fn send_letter(
        &mut self,
        cx: &mut Cx<'_>,
        to: RemoteId,
        entry: EntryId,
        outgoing: Outgoing,
        reason: ErrorBody,
    ) {
        let key = outgoing.key();
        if let Some(request) = self.requests.get_mut(outgoing.message.work) {
            request.given_up = true;
        }
        self.remotes[to.0].flow.hold(key);
        // It counts as one that is kept for its recipient, which bounds what waits here.
        self.kept += 1;
        self.kept_bytes += outgoing.message.size;
        let letter = Letter {
            entry,
            whose: Whose::Own { to, key },
            recipient: self.remotes[to.0].node.clone(),
            stored: outgoing.stored,
            message: Box::new(outgoing.message),
            reason,
            tries: 0,
        };
        self.letters.add(cx.now, letter, cx.out);
    }

    /// A request in custody here was given up: its entry goes when its letter is kept.
    pub(super) fn send_letter_of(
        &mut self,
        cx: &mut Cx<'_>,
        entry: EntryId,
        (origin, recipient): (NodeId, NodeId),
        message: Message,
        reason: ErrorBody,
    ) {
        let letter = Letter {
            entry,
            whose: Whose::Custody(origin),
            recipient,
            message: Box::new(message),
            reason,
            stored: true,
            tries: 0,
        };
        self.letters.add(cx.now, letter, cx.out);
    }

    /// The driver's word about a letter.
    pub(crate) fn handle_dead_letter(
        &mut self,
        now: Instant,
        net: &mut dyn Net,
        entry: EntryId,
        result: Result<(), ErrorBody>,
        out: &mut Out,
    ) {
        let cx = &mut Cx { now, net, out };
        let Some(letter) = self.letters.given.remove(&entry) else {
            return;
        };
        self.letters.given_bytes -= letter.weight();
        match result {
            Err(_) if letter.tries < TRIES_MAX && self.is_wanted(&letter) => {
                self.letters.waiting.push_back(letter);
                self.letters.again_at = Some(now + AGAIN);
            }
            Err(reason) => {
                let work = letter.message.work;
                cx.out
                    .push_back(Output::Event(Event::NoDeadLetter { work, reason }));
                self.letter_done(cx, letter);
            }
            Ok(()) => self.letter_done(cx, letter),
        }
        self.letters.give(cx.now, cx.out);
    }

    /// Whether the message has no end yet: a late answer may have come.
    fn is_wanted(&self, letter: &Letter) -> bool {
        match letter.whose {
            Whose::Own { key, .. } => self
                .request_of(letter.message.work, key)
                .is_some_and(|request| !request.is_ended()),
            Whose::Custody(_) => true,
        }
    }

    fn letter_done(&mut self, cx: &mut Cx<'_>, letter: Letter) {
        let (to, key) = match letter.whose {
            Whose::Own { to, key } => (to, key),
            Whose::Custody(_) => return self.journal.remove(letter.entry),
        };
        self.kept -= 1;
        self.kept_bytes -= letter.message.size;
        self.remotes[to.0].flow.release(key);
        if self.request_of(letter.message.work, key).is_some() {
            self.end_request(cx, letter.message.work, letter.reason);
        }
    }

    fn request_of(&self, work: MessageId, key: Key) -> Option<&Request> {
        let request = self.requests.get(work);
        request.filter(|request| request.key == key)
    }
}
