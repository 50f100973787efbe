//! Messages of others that could not be passed on, kept on this node's disk until they can.
//!
//! Owns the promise that a message in custody is on the disk before anybody hears of it, and
//! stays there until its recipient has it, another node keeps it, its time is over, or an operator
//! drops it. What is kept is bounded in bytes, messages, and messages for one recipient; beyond
//! that a message stays its origin's alone, who is told so. Never opens a payload, and keeps none
//! in memory: it is fetched when there is a way. While ways are clear nothing is written here.
//!
//! ```text
//!   no way, or entrusted ─▶ Writing ─▶ Waiting ──(a way)──▶ Reading ─▶ Sent ─▶ done: removed
//!                              │          ▲                              │
//!                       refused, told     └──── other way, or no word ───┘
//! ```
//!
//! What is said of it, and which of that is believed, is in [`words`].

mod notices;
mod words;

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::time::Duration;

use bytes::Bytes;
use receptor_proto::packet::{Content, Holding, Message, MessageKind, Packet, Receipt};
use receptor_proto::{ErrorBody, ErrorCode, MessageId, NodeId};

use self::notices::Notices;
use super::flow::{ENVELOPE, Key};
use super::journal::Done;
use super::{Cx, Delivery, LIFETIME_MOST, RemoteId, millis};
use crate::{EntryId, Instant, Output, Record, WaitingKind, WaitingView};

/// Messages for one recipient under way at once.
const IN_FLIGHT: usize = 64;
/// How long the recipient's word is waited for before a message is sent again, at first.
const AGAIN: Duration = Duration::from_secs(1);
/// The same at most.
const AGAIN_MOST: Duration = Duration::from_secs(30);
/// How long a payload that could not be read is left alone.
const READ_AGAIN: Duration = Duration::from_secs(5);
/// How often a read may fail in a row before the message is left to its origin.
const READS: u32 = 5;
/// Custodians that wait for a message to be safe here; others ask again.
const CUSTODIANS_MAX: usize = 4096;
/// No time to look at it but the end of its own.
const NEVER: Instant = Instant::from_micros(u64::MAX);

/// Whose message: origin, recipient, epoch, sequence.
type Name = (NodeId, NodeId, u64, u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Not on the disk yet.
    Writing,
    /// Until there is a way and room.
    Waiting,
    /// The store is asked for its payload.
    Reading,
    /// The recipient's word is waited for.
    Sent,
}

/// A message in custody.
#[derive(Debug)]
struct Kept {
    name: Name,
    /// Without its payload.
    message: Message,
    /// Who kept it before.
    before: Option<NodeId>,
    expires: Instant,
    state: State,
    /// It may have been sent on, by this start of the node or one before.
    was_sent: bool,
    /// Since the way last changed.
    tries: u32,
    /// Of a sealed one that was sent, so that its recipient can say that it cannot be opened; 0 otherwise.
    fingerprint: u64,
    /// Reads that failed since one did not.
    failed_reads: u32,
    /// When it is to be looked at: it expired, or is to be sent again.
    timer: Instant,
}

/// What is kept for one recipient.
#[derive(Debug, Default)]
struct Queue {
    /// In order of arrival.
    all: BTreeSet<EntryId>,
    /// How many of them are under way.
    under_way: usize,
    /// [`crate::wiring::Net::path`] as it was last seen.
    path: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Keeper {
    kept: BTreeMap<EntryId, Box<Kept>>,
    names: BTreeMap<Name, EntryId>,
    queues: BTreeMap<NodeId, Queue>,
    timers: BTreeSet<(Instant, EntryId)>,
    bytes: u64,
    /// Who is to be told when a message that was kept on its way is safe here.
    custodians: BTreeMap<(RemoteId, Key), NodeId>,
    notices: Notices,
}

impl State {
    fn is_under_way(self) -> bool {
        matches!(self, Self::Reading | Self::Sent)
    }
}

impl Keeper {
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Messages and bytes.
    pub(super) fn size(&self) -> (usize, u64) {
        (self.kept.len(), self.bytes)
    }

    fn has_room(&self, limits: &crate::Limits, recipient: &NodeId, size: u64) -> bool {
        let own = self
            .queues
            .get(recipient)
            .map_or(0, |queue| queue.all.len());
        self.kept.len() < limits.custody_entries
            && own < limits.custody_entries_each
            && self.bytes + size <= limits.custody_bytes
    }

    fn insert(&mut self, entry: EntryId, kept: Kept) {
        self.bytes += kept.message.size + ENVELOPE as u64;
        self.names.insert(kept.name.clone(), entry);
        let queue = self.queues.entry(kept.name.1.clone()).or_default();
        queue.all.insert(entry);
        self.timers.insert((kept.timer, entry));
        self.kept.insert(entry, Box::new(kept));
    }

    fn remove(&mut self, entry: EntryId) -> Option<Box<Kept>> {
        let kept = self.kept.remove(&entry)?;
        self.bytes -= kept.message.size + ENVELOPE as u64;
        self.names.remove(&kept.name);
        self.timers.remove(&(kept.timer, entry));
        if let Some(queue) = self.queues.get_mut(&kept.name.1) {
            queue.all.remove(&entry);
            queue.under_way -= usize::from(kept.state.is_under_way());
            if queue.all.is_empty() {
                self.queues.remove(&kept.name.1);
            }
        }
        Some(kept)
    }

    /// Changes what a message is doing, and when it is looked at next.
    fn set(&mut self, entry: EntryId, state: State, timer: Instant) {
        let Some(kept) = self.kept.get_mut(&entry) else {
            return;
        };
        if let Some(queue) = self.queues.get_mut(&kept.name.1) {
            queue.under_way += usize::from(state.is_under_way());
            queue.under_way -= usize::from(kept.state.is_under_way());
        }
        kept.state = state;
        self.timers.remove(&(kept.timer, entry));
        kept.timer = timer.min(kept.expires);
        self.timers.insert((kept.timer, entry));
    }

    /// Says something of one message that is here, or is not kept; `never_sent` if it was not sent on.
    fn say(&mut self, to: NodeId, holding: Holding, name: &Name, never_sent: bool) {
        let (origin, recipient, epoch, seq) = name.clone();
        self.notices
            .add((to, holding, never_sent, origin, recipient, epoch), seq);
    }

    /// Tells custodians of messages that a receipt names that they are safe here.
    pub(super) fn release(
        &mut self,
        id: RemoteId,
        origin: &NodeId,
        recipient: &NodeId,
        receipt: &Receipt,
    ) {
        if self.custodians.is_empty() {
            return;
        }
        for &(first, last) in &receipt.received {
            let range = (id, (receipt.epoch, first))..=(id, (receipt.epoch, last));
            while let Some((&key, _)) = self.custodians.range(range.clone()).next() {
                let Some(custodian) = self.custodians.remove(&key) else {
                    break;
                };
                let (_, (epoch, seq)) = key;
                let name = (origin.clone(), recipient.clone(), epoch, seq);
                // One that does not hear of it sends the message again, and is told then.
                self.say(custodian, Holding::Done, &name, false);
            }
        }
    }
}

impl Delivery {
    /// A message for this node that was kept on its way.
    pub(super) fn on_kept(
        &mut self,
        cx: &mut Cx<'_>,
        from: RemoteId,
        custodian: NodeId,
        message: Message,
    ) {
        let custodians = &mut self.keeper.custodians;
        let key = (from, (message.epoch, message.seq));
        if custodians.len() >= CUSTODIANS_MAX && !custodians.contains_key(&key) {
            // Its message may never be taken. If it is, its custodian asks again.
            custodians.pop_first();
        }
        custodians.insert(key, custodian);
        self.on_message(cx, from, message);
    }

    /// Messages of others that are kept here, and their bytes.
    pub(crate) fn in_custody(&self) -> (usize, u64) {
        self.keeper.size()
    }

    /// What an operator may see of those that are on the disk, in order of arrival.
    pub(super) fn view_kept(&self, now: Instant) -> impl Iterator<Item = WaitingView> {
        let kept = self.keeper.kept.values();
        let written = kept.filter(|kept| kept.state != State::Writing);
        written.map(move |kept| WaitingView {
            work: kept.message.work,
            recipient: kept.name.1.clone(),
            origin: Some(kept.name.0.clone()),
            kind: match &kept.message.kind {
                MessageKind::Request { directive, .. } => WaitingKind::Request {
                    directive: directive.clone(),
                },
                MessageKind::Response { serial, .. } => WaitingKind::Response { serial: *serial },
                MessageKind::Cancel { .. } => WaitingKind::Cancel,
            },
            size: kept.message.size,
            volatile: false,
            sent: kept.was_sent,
            remaining: kept.expires.since(now),
        })
    }

    /// A message of another node, which `before` kept, cannot be passed on. Whether it is kept.
    pub(crate) fn keep(
        &mut self,
        now: Instant,
        packet: &Packet,
        message: Message,
        before: Option<NodeId>,
    ) -> bool {
        let (origin, recipient) = (packet.source.clone(), packet.destination.clone());
        let name = (origin, recipient, message.epoch, message.seq);
        self.take_custody(now, name, message, before)
    }

    /// A node without a way to the recipient of its message asks this one to see to it.
    pub(super) fn on_entrusted(
        &mut self,
        cx: &mut Cx<'_>,
        origin: NodeId,
        recipient: NodeId,
        message: Message,
    ) {
        // A sealed one may be larger than can be kept.
        let is_too_large = message.is_segmented() && message.content != Content::Sealed;
        if message.volatile || is_too_large || recipient == origin {
            self.mistakes += 1;
            return;
        }
        if recipient == self.node {
            if let Some(remote) = self.remote(&origin) {
                self.on_message(cx, remote, message);
            }
            return;
        }
        if !self.gate.may_pass(&origin, &recipient) {
            let name = (origin, recipient, message.epoch, message.seq);
            let to = name.0.clone();
            self.keeper.say(to, Holding::Refused, &name, true);
            return;
        }
        if cx.net.path(&recipient) != 0 {
            let packet = self.onward(&origin, &recipient, &message);
            match packet.map(|packet| cx.net.pass_on(packet)) {
                Some(Err(ErrorCode::NoRoute | ErrorCode::NoSuchNode)) => {}
                // Its origin asks again.
                Some(Ok(()) | Err(_)) | None => return,
            }
        }
        let name = (origin, recipient, message.epoch, message.seq);
        let refused = name.clone();
        if !self.takes_custody || !self.take_custody(cx.now, name, message, None) {
            let to = refused.0.clone();
            self.keeper.say(to, Holding::Refused, &refused, true);
        }
    }

    /// Whether a message is kept now.
    fn take_custody(
        &mut self,
        now: Instant,
        name: Name,
        message: Message,
        before: Option<NodeId>,
    ) -> bool {
        if let Some(&entry) = self.keeper.names.get(&name) {
            self.came_again(entry, before);
            return true;
        }
        let size = message.size + ENVELOPE as u64;
        let takes = !message.volatile
            && !message.is_segmented()
            && message.remaining_ms > 0
            && name.0 != self.node
            && self.keeper.has_room(&self.limits, &name.1, size);
        if !takes {
            return false;
        }
        if matches!(message.kind, MessageKind::Cancel { .. }) {
            self.cancel_kept(&name, message.work);
        }
        let entry = self.new_entry();
        let record = Record::Transit {
            entry,
            origin: name.0.clone(),
            recipient: name.1.clone(),
            message: message.clone(),
        };
        self.journal.write_alone(record, Done::Kept(entry));
        self.hold(now, entry, name, message, before, State::Writing);
        true
    }

    /// A message came that is in custody already.
    fn came_again(&mut self, entry: EntryId, before: Option<NodeId>) {
        let Some(kept) = self.keeper.kept.get_mut(&entry) else {
            return;
        };
        match kept.state {
            State::Writing | State::Reading => {}
            State::Waiting | State::Sent => {
                if before.as_ref() == Some(&self.node) {
                    // It is this node's own that found no way.
                    self.keeper.set(entry, State::Waiting, NEVER);
                } else {
                    // Somebody has not heard of it.
                    kept.before = before;
                    self.tell_kept(entry);
                }
            }
        }
    }

    fn hold(
        &mut self,
        now: Instant,
        entry: EntryId,
        name: Name,
        mut message: Message,
        before: Option<NodeId>,
        state: State,
    ) {
        let lifetime = Duration::from_millis(message.remaining_ms).min(LIFETIME_MOST);
        message.body = Bytes::new();
        let kept = Kept {
            name,
            message,
            before,
            expires: now + lifetime,
            state,
            was_sent: state == State::Waiting,
            tries: 0,
            fingerprint: 0,
            failed_reads: 0,
            timer: now + lifetime,
        };
        self.keeper.insert(entry, kept);
    }

    /// What the store has of an earlier start.
    pub(super) fn restore_kept(
        &mut self,
        now: Instant,
        entry: EntryId,
        origin: NodeId,
        recipient: NodeId,
        message: Message,
    ) {
        let name = (origin, recipient, message.epoch, message.seq);
        if self.keeper.names.contains_key(&name) {
            self.journal.remove(entry);
        } else {
            self.hold(now, entry, name, message, None, State::Waiting);
        }
    }

    /// It is on the disk: now it can be told.
    pub(super) fn kept_written(&mut self, cx: &mut Cx<'_>, entry: EntryId) {
        let Some(kept) = self.keeper.kept.get(&entry) else {
            return;
        };
        let recipient = kept.name.1.clone();
        self.keeper.set(entry, State::Waiting, NEVER);
        self.tell_kept(entry);
        self.send_kept(cx, &recipient);
    }

    /// It is not, so that its origin alone has it.
    pub(super) fn kept_not_written(&mut self, entry: EntryId) {
        if let Some(kept) = self.keeper.remove(entry) {
            let origin = kept.name.0.clone();
            self.keeper.say(origin, Holding::Refused, &kept.name, true);
        }
    }

    /// Sends what waits for this node, if there is a way and room.
    fn send_kept(&mut self, cx: &mut Cx<'_>, recipient: &NodeId) {
        let path = cx.net.path(recipient);
        let Some(queue) = self.keeper.queues.get_mut(recipient) else {
            return;
        };
        if core::mem::replace(&mut queue.path, path) != path {
            // What was on the old way may be lost.
            let sent: Vec<EntryId> = queue.all.iter().copied().collect();
            for entry in sent {
                if let Some(kept) = self.keeper.kept.get_mut(&entry)
                    && kept.state == State::Sent
                {
                    kept.tries = 0;
                    self.keeper.set(entry, State::Waiting, NEVER);
                }
            }
        }
        let Some(queue) = self.keeper.queues.get(recipient).filter(|_| path != 0) else {
            return;
        };
        let waiting = |entry: &&EntryId| {
            let kept = self.keeper.kept.get(entry);
            kept.is_some_and(|kept| kept.state == State::Waiting)
        };
        let count = IN_FLIGHT.saturating_sub(queue.under_way);
        let next: Vec<EntryId> = queue
            .all
            .iter()
            .filter(waiting)
            .take(count)
            .copied()
            .collect();
        let mut left = None;
        for entry in next {
            let Some(kept) = self.keeper.kept.get(&entry) else {
                continue;
            };
            let priority = kept.message.priority();
            let left = left.get_or_insert_with(|| cx.net.room(recipient, priority));
            let size = usize::try_from(kept.message.size).unwrap_or(usize::MAX);
            // A link with room again lets this be tried again.
            let Some(rest) = left.checked_sub(size.saturating_add(ENVELOPE)) else {
                return;
            };
            *left = rest;
            self.keeper.set(entry, State::Reading, NEVER);
            if size == 0 {
                self.kept_read(cx, entry, Some(Bytes::new()));
                continue;
            }
            cx.out.push_back(Output::Fetch {
                entry,
                offset: 0,
                length: size,
            });
        }
    }

    /// The store's answer about an entry, if it is in custody.
    pub(super) fn kept_read(&mut self, cx: &mut Cx<'_>, entry: EntryId, body: Option<Bytes>) {
        let Some(kept) = self.keeper.kept.get_mut(&entry) else {
            return;
        };
        if kept.state != State::Reading {
            return;
        }
        let body = body.filter(|body| body.len() as u64 == kept.message.size);
        let Some(body) = body else {
            kept.failed_reads += 1;
            if kept.failed_reads >= READS {
                let recipient = kept.name.1.clone();
                self.drop_kept(entry, Holding::Dropped);
                self.send_kept(cx, &recipient);
            } else {
                // It counts as under way meanwhile.
                self.keeper.set(entry, State::Sent, cx.now + READ_AGAIN);
            }
            return;
        };
        kept.failed_reads = 0;
        let mut message = kept.message.clone();
        message.body = body;
        kept.fingerprint = cx.net.fingerprint(&message);
        message.remaining_ms = millis(kept.expires.since(cx.now));
        kept.tries += 1;
        kept.was_sent = true;
        let wait = (AGAIN * (1 << (kept.tries - 1).min(5))).min(AGAIN_MOST);
        let (origin, recipient, ..) = kept.name.clone();
        let packet = self.kept_packet(origin, recipient, message);
        let (state, timer) = match cx.net.pass_on(packet) {
            Err(ErrorCode::NoRoute | ErrorCode::NoSuchNode) => (State::Waiting, NEVER),
            Ok(()) | Err(_) => (State::Sent, cx.now + wait),
        };
        self.keeper.set(entry, state, timer);
    }

    /// It is kept no longer: its origin is told.
    fn drop_kept(&mut self, entry: EntryId, holding: Holding) {
        if self.forget_kept(entry, holding) {
            self.journal.remove(entry);
        }
    }

    /// The same, but for its entry. Whether it was kept.
    fn forget_kept(&mut self, entry: EntryId, holding: Holding) -> bool {
        let kept = self.keeper.remove(entry);
        let was_kept = kept.is_some();
        if let Some(kept) = kept {
            let origin = kept.name.0.clone();
            let never_sent = !kept.was_sent;
            self.keeper.say(origin, holding, &kept.name, never_sent);
        }
        was_kept
    }

    /// Its time is over. Its origin has the same time, tells its sender and keeps the dead letter;
    /// where there is no way to it that may be for ever, and this node keeps one too.
    fn kept_expired(&mut self, cx: &mut Cx<'_>, entry: EntryId) {
        if let Some(kept) = self.keeper.kept.get(&entry)
            && matches!(kept.message.kind, MessageKind::Request { .. })
            // A letter that nobody can read helps nobody.
            && kept.message.content != Content::Sealed
            && kept.state != State::Writing
            && cx.net.path(&kept.name.0) == 0
        {
            let reason = "its lifetime ended here, in custody, before its recipient had it";
            let reason = ErrorBody::new(ErrorCode::Expired, reason);
            let ends = (kept.name.0.clone(), kept.name.1.clone());
            let message = kept.message.clone();
            self.forget_kept(entry, Holding::Dropped);
            return self.send_letter_of(cx, entry, ends, message, reason);
        }
        self.drop_kept(entry, Holding::Dropped);
    }

    /// An operator gives up what is kept here of this work; the origins are told to do the same.
    /// False: nothing is.
    pub(super) fn give_up_kept(&mut self, cx: &mut Cx<'_>, work: MessageId) -> bool {
        let written = |kept: &Kept| kept.message.work == work && kept.state != State::Writing;
        let kept = self.keeper.kept.iter();
        let entries: Vec<EntryId> = kept
            .filter(|(_, kept)| written(kept))
            .map(|(entry, _)| *entry)
            .collect();
        for entry in &entries {
            self.drop_kept(*entry, Holding::GivenUp);
        }
        self.send_all_kept(cx);
        !entries.is_empty()
    }

    /// Gives up the request that this cancel is of, if it was not sent on: its recipient would begin
    /// with it before it reads the cancel.
    fn cancel_kept(&mut self, (origin, recipient, ..): &Name, work: MessageId) {
        let Some(queue) = self.keeper.queues.get(recipient) else {
            return;
        };
        let request = queue.all.iter().copied().find(|entry| {
            let kept = self.keeper.kept.get(entry);
            kept.is_some_and(|kept| {
                kept.message.work == work
                    && kept.name.0 == *origin
                    && matches!(kept.message.kind, MessageKind::Request { .. })
                    && kept.state == State::Waiting
                    && !kept.was_sent
            })
        });
        if let Some(request) = request {
            self.drop_kept(request, Holding::GivenUp);
        }
    }

    /// Ways are other ones, or a link has room again: whatever is kept may go now.
    pub(super) fn send_all_kept(&mut self, cx: &mut Cx<'_>) {
        let recipients: Vec<NodeId> = self.keeper.queues.keys().cloned().collect();
        for recipient in recipients {
            self.send_kept(cx, &recipient);
        }
    }

    /// What is due: expired messages are dropped, others sent again.
    pub(super) fn look_at_kept(&mut self, cx: &mut Cx<'_>) {
        while let Some(&(at, entry)) = self.keeper.timers.first() {
            if at > cx.now {
                break;
            }
            let Some(kept) = self.keeper.kept.get(&entry) else {
                self.keeper.timers.pop_first();
                continue;
            };
            let recipient = kept.name.1.clone();
            if kept.expires <= cx.now {
                self.kept_expired(cx, entry);
            } else {
                self.keeper.set(entry, State::Waiting, NEVER);
            }
            // It may have been under way in the place of another.
            self.send_kept(cx, &recipient);
        }
    }
}
