//! What becomes of what was sent: receipts and refusals, ways that fail or change, and time that
//! runs out.
//!
//! Never sends anything: what is to go again joins the queue.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::time::Duration;

use receptor_proto::packet::Receipt;
use receptor_proto::{ErrorCode, NodeId};

use super::{
    CONGESTED, DOUBT, Due, ENTRUST, ENTRUST_AGAIN, FOREVER, Flow, GivenUp, HELD_MOST, IN_CUSTODY,
    IN_CUSTODY_MOST, Key, NO_WAY_MOST, Outgoing, REFUSED_MOST, State, VOLATILE_GRACE,
    VOLATILE_PATIENCE, VOLATILE_ROUNDS, Why,
};
use crate::Instant;

impl Flow {
    /// Something came from the recipient. True: the timer may have to ring earlier.
    pub(crate) fn heard(&mut self) -> bool {
        self.patience.calm()
    }

    /// What the recipient says it has. Appends to `done` what is no longer outstanding; gives
    /// back how many of its statements make no sense.
    pub(crate) fn receipt(
        &mut self,
        now: Instant,
        receipt: &Receipt,
        current: u64,
        done: &mut Vec<Outgoing>,
    ) -> u64 {
        let epoch = receipt.epoch;
        let before = done.len();
        let mut mistakes = 0;
        let mut sample = None;
        for &(first, last) in &receipt.received {
            let mut from = first;
            while let Some((&key, outgoing)) =
                self.outstanding.range((epoch, from)..=(epoch, last)).next()
            {
                if !outgoing.was_sent() && epoch == current {
                    mistakes += 1;
                    break;
                }
                let held = matches!(outgoing.state, State::Delayed(_, Why::Held));
                if held {
                    self.progressed = now;
                }
                if outgoing.attempts == 1 && outgoing.transfer.is_none() && !held {
                    sample = sample.max(Some(outgoing.sent_at));
                }
                let request = outgoing.is_request();
                let bytes = match outgoing.state {
                    State::InFlight => outgoing.cost(),
                    State::Active
                    | State::Queued
                    | State::Behind
                    | State::Fetching
                    | State::Delayed(..) => 0,
                };
                self.window.grow(bytes);
                self.patience.reset();
                if request {
                    self.request_allowance = self.request_allowance.saturating_mul(2);
                    self.requests_refused = 0;
                }
                done.extend(self.remove(key).map(|outgoing| *outgoing));
                let Some(next) = key.1.checked_add(1) else {
                    break;
                };
                from = next;
                if from > last {
                    break;
                }
            }
        }
        if let Some(sent_at) = sample {
            self.patience.measure(now.since(sent_at));
        } else if done.len() > before {
            // The way carries again: what else was lost on it need not wait as long as it did.
            self.patience.reset();
        }
        for &(seq, bytes) in &receipt.progress {
            mistakes += self.progress(now, (epoch, seq), bytes);
        }
        // Backwards, so that what goes back to its queue is in order there.
        for &(seq, ms) in receipt.busy.iter().rev() {
            self.refused(now, (epoch, seq), ms);
        }
        mistakes
    }

    fn progress(&mut self, now: Instant, key: Key, bytes: u64) -> u64 {
        let Some(outgoing) = self.outstanding.get_mut(&key) else {
            return 0;
        };
        let Some(transfer) = &mut outgoing.transfer else {
            return 1;
        };
        let before = transfer.reserved();
        let Some(acked) = transfer.progress(now, bytes) else {
            return 1;
        };
        if outgoing.state == State::Active {
            self.bulk_bytes = self.bulk_bytes + transfer.reserved() - before;
        }
        if acked > 0 {
            outgoing.refusals = 0;
            self.patience.reset();
            self.window.grow(acked);
        }
        0
    }

    fn refused(&mut self, now: Instant, key: Key, ms: u64) {
        if ms == 0 {
            self.wanted_again(key);
            return;
        }
        let Some(outgoing) = self.outstanding.get_mut(&key) else {
            return;
        };
        match outgoing.state {
            State::InFlight
            | State::Active
            | State::Delayed(_, Why::Lost | Why::Held | Why::Doomed) => {}
            State::Queued | State::Behind | State::Fetching | State::Delayed(_, Why::Refused) => {
                return;
            }
        }
        let asked = Duration::from_millis(ms).min(REFUSED_MOST);
        if outgoing.is_request() && !outgoing.is_large() {
            // The recipient is full, and others would be refused as well. Try one at a time
            // after the pause, and double while they are taken.
            if self.requests_held.is_none() {
                let wait = asked.saturating_mul(1 << self.requests_refused.min(8));
                self.requests_held = Some(now + wait.min(HELD_MOST));
                self.requests_refused += 1;
            }
            self.request_allowance = 1;
            self.take_out(key);
            self.queue(key, true);
            return;
        }
        outgoing.refusals += 1;
        let most = if outgoing.is_request() {
            HELD_MOST
        } else {
            REFUSED_MOST
        };
        let wait = asked
            .saturating_mul(1 << (outgoing.refusals - 1).min(8))
            .min(most);
        self.delay(key, now + wait, Why::Refused);
        if let Some(transfer) = self
            .outstanding
            .get_mut(&key)
            .and_then(|outgoing| outgoing.transfer.as_mut())
        {
            transfer.begin_anew();
        }
    }

    /// The recipient has room for what it refused, or knows nothing of a payload that is being
    /// sent.
    fn wanted_again(&mut self, key: Key) {
        let Some(outgoing) = self.outstanding.get_mut(&key) else {
            // The request that was refused last is not there any more; others may be.
            self.requests_held = None;
            return;
        };
        match (outgoing.state, &mut outgoing.transfer) {
            (State::Delayed(_, Why::Refused), _) => {
                outgoing.refusals = 0;
                self.take_out(key);
                self.queue(key, true);
            }
            (State::Active, Some(transfer)) if transfer.is_flowing() => {
                self.bulk_bytes -= transfer.reserved();
                transfer.restart();
            }
            (State::Queued, None) => self.requests_held = None,
            (
                State::Queued
                | State::Behind
                | State::Fetching
                | State::InFlight
                | State::Active
                | State::Delayed(..),
                _,
            ) => {}
        }
    }

    /// A node on the way could not pass a message on. `Some` when it is given up.
    pub(crate) fn undeliverable(
        &mut self,
        now: Instant,
        key: Key,
        code: ErrorCode,
    ) -> Option<GivenUp> {
        let round_trip = self.patience.round_trip();
        let outgoing = self.outstanding.get_mut(&key)?;
        match outgoing.state {
            State::InFlight | State::Active | State::Delayed(_, Why::Doomed) => {}
            State::Queued
            | State::Behind
            | State::Fetching
            | State::Delayed(_, Why::Refused | Why::Lost | Why::Held) => {
                return None;
            }
        }
        if code == ErrorCode::Busy {
            self.window.shrink(now, round_trip);
            self.delay(key, now + CONGESTED.max(round_trip), Why::Lost);
            return None;
        }
        if outgoing.once() {
            let outgoing = self.remove(key)?;
            return Some(GivenUp { outgoing, code });
        }
        // All that was under way comes back at once: that is one failure, not many.
        if self.turned_back.is_none_or(|at| now.since(at) > round_trip) {
            self.turned_back = Some(now);
            self.patience.ran_out();
        }
        let wait = self.patience.length().min(NO_WAY_MOST);
        self.delay(key, now + wait, Why::Lost);
        None
    }

    /// A node on the way does not pass this on. What is taken out then, and whether that node had the
    /// only copy.
    pub(crate) fn denied(&mut self, key: Key, current: u64) -> Option<(Box<Outgoing>, bool)> {
        let outgoing = self.outstanding.get(&key)?;
        if !matches!(
            outgoing.state,
            State::InFlight | State::Active | State::Delayed(_, Why::Doomed)
        ) {
            return None;
        }
        let alone = outgoing.handed <= 1 && !outgoing.restored && key.0 == current;
        Some((self.remove(key)?, alone))
    }

    /// A node on the way keeps these: with a way they are sent again after long, without one when
    /// there is one.
    pub(crate) fn in_custody(&mut self, now: Instant, by: &NodeId, first: Key, last: Key) {
        for key in self.sent_between(first, last) {
            let Some(outgoing) = self.outstanding.get_mut(&key) else {
                continue;
            };
            match outgoing.state {
                State::InFlight => self.window.grow(outgoing.cost()),
                State::Queued => {}
                State::Behind | State::Fetching | State::Active | State::Delayed(..) => continue,
            }
            let until = if self.path == 0 {
                FOREVER
            } else {
                let wait = IN_CUSTODY * (1 << outgoing.keeps.min(4));
                outgoing.keeps += 1;
                now + wait.min(IN_CUSTODY_MOST)
            };
            self.delay(key, until, Why::Held);
            if self.custodian.as_ref() != Some(by) {
                self.custodian = Some(by.clone());
            }
        }
    }

    /// A node on the way does not keep these, for lack of room or because it cannot any more.
    pub(crate) fn out_of_custody(&mut self, now: Instant, refused: bool, first: Key, last: Key) {
        if refused && self.path == 0 {
            self.entrusting = false;
            self.entrust_at = Some(now + ENTRUST_AGAIN);
        }
        for key in self.sent_between(first, last) {
            let state = self.outstanding.get(&key).map(|outgoing| outgoing.state);
            match state {
                Some(State::InFlight) if self.path != 0 => {
                    // As when it came back: it is not given up, being durable.
                    let wait = self.patience.length().min(NO_WAY_MOST);
                    self.delay(key, now + wait, Why::Lost);
                }
                Some(State::InFlight | State::Delayed(_, Why::Held)) => {
                    self.take_out(key);
                    self.queue(key, true);
                }
                Some(
                    State::Queued
                    | State::Behind
                    | State::Fetching
                    | State::Active
                    | State::Delayed(..),
                )
                | None => {}
            }
        }
    }

    /// Whoever had these has not kept them and sent them to nobody. Of those that left this node
    /// once that was the only copy: it is as if they had never been sent. With `once` that is believed
    /// once of each: a second word may be the first one, sent again by somebody who means harm.
    pub(crate) fn came_back(&mut self, current: u64, once: bool, first: Key, last: Key) {
        for key in self.sent_between(first, last) {
            let Some(outgoing) = self.outstanding.get_mut(&key) else {
                continue;
            };
            let is_news = !(once && outgoing.returned);
            if outgoing.handed == 1 && !outgoing.restored && key.0 == current && is_news {
                outgoing.returned = true;
                (outgoing.handed, outgoing.attempts) = (0, 0);
                self.look_for_others(key);
            }
        }
    }

    /// Messages of this range that may have left this node, in this start or one before.
    pub(crate) fn handed_between(&self, first: Key, last: Key) -> Vec<Key> {
        let known = self.outstanding.range(first..=last);
        let handed = known.filter(|(_, outgoing)| outgoing.was_sent() || outgoing.restored);
        handed.map(|(key, _)| *key).collect()
    }

    pub(crate) fn was_entrusted_to(&self, node: &NodeId) -> bool {
        self.entrusted.as_ref() == Some(node)
    }

    /// Messages of this range that another node may have.
    fn sent_between(&self, first: Key, last: Key) -> Vec<Key> {
        let known = self.outstanding.range(first..=last);
        let sent = known.filter(|(_, outgoing)| {
            outgoing.was_sent() && outgoing.entry.is_some() && !outgoing.is_large()
        });
        sent.map(|(key, _)| *key).collect()
    }

    /// Who said last that it keeps messages of this flow.
    pub(crate) fn custodian(&self) -> Option<&NodeId> {
        self.custodian.as_ref()
    }

    /// The node that keeps messages of this flow cannot be reached: they are sent again when
    /// there is a way.
    pub(crate) fn custodian_lost(&mut self) {
        self.custodian = None;
        for key in self.held() {
            self.take_out(key);
            self.queue(key, true);
        }
    }

    /// What other nodes keep, last first.
    fn held(&self) -> Vec<Key> {
        let held = self.delayed.iter().filter(|(_, key)| {
            let outgoing = self.outstanding.get(key);
            outgoing.is_some_and(|o| matches!(o.state, State::Delayed(_, Why::Held)))
        });
        let mut keys: Vec<Key> = held.map(|(_, key)| *key).collect();
        keys.sort_unstable_by_key(|key| core::cmp::Reverse(*key));
        keys
    }

    /// There is a way, or another one: whoever keeps messages sends them first.
    pub(super) fn unpark(&mut self, now: Instant) {
        self.parked = false;
        self.grace = None;
        self.entrusting = false;
        self.entrust_at = None;
        self.trustee = None;
        self.trusted.clear();
        self.hold_all(now + IN_CUSTODY);
    }

    /// What other nodes keep is sent again then.
    fn hold_all(&mut self, until: Instant) {
        for key in self.held() {
            if let Some(outgoing) = self.outstanding.get_mut(&key) {
                outgoing.keeps = 0;
            }
            self.delay(key, until, Why::Held);
        }
    }

    /// The way to the recipient may be another one, or none. True: there is something to send.
    pub(crate) fn route_changed(
        &mut self,
        now: Instant,
        path: u64,
        code: &ErrorCode,
        given_up: &mut Vec<GivenUp>,
    ) -> bool {
        // Another node may be the nearest now.
        self.trustee = None;
        if self.path == path && (path != 0 || self.parked) {
            return path == 0 && self.entrusting;
        }
        self.path = path;
        self.patience.reset();
        if path == 0 {
            self.park(now, code, given_up);
            return false;
        }
        self.unpark(now);
        self.send_again(|outgoing| !outgoing.once());
        true
    }

    /// There is no way: requests that may be lost are, everything else waits.
    pub(crate) fn park(&mut self, now: Instant, code: &ErrorCode, given_up: &mut Vec<GivenUp>) {
        self.path = 0;
        if !self.parked {
            self.parked = true;
            self.grace = Some(now + VOLATILE_GRACE);
            self.entrust_at = Some(now + ENTRUST);
            self.send_again(|outgoing| !outgoing.once());
            self.hold_all(FOREVER);
            self.look_for_others((0, 0));
            let all = self.outstanding.iter();
            let trusted = all.filter(|(_, outgoing)| outgoing.may_be_entrusted());
            self.trusted = trusted.map(|(key, _)| *key).collect();
        }
        for key in core::mem::take(&mut self.once) {
            if let Some(outgoing) = self.remove(key) {
                let code = if outgoing.was_sent() {
                    ErrorCode::Lost
                } else {
                    code.clone()
                };
                given_up.push(GivenUp { outgoing, code });
            }
        }
    }

    /// Notes the way of a flow that had nothing to send, so that a later change is noticed.
    pub(crate) fn look(&mut self, path: u64) {
        self.path = path;
        self.parked = false;
        self.grace = None;
        self.entrusting = false;
        self.entrust_at = None;
        self.trustee = None;
        self.trusted.clear();
    }

    /// Puts everything that is under way, in order, before what was not sent yet.
    fn send_again(&mut self, which: impl Fn(&Outgoing) -> bool) {
        let mut keys: Vec<Key> = Vec::new();
        for (at, key) in &self.sent {
            if let Some(outgoing) = self.outstanding.get(key)
                && outgoing.state == State::InFlight
                && outgoing.sent_at == *at
                && which(outgoing)
            {
                keys.push(*key);
            }
        }
        for (_, key) in &self.delayed {
            if let Some(outgoing) = self.outstanding.get(key)
                && matches!(outgoing.state, State::Delayed(_, Why::Lost))
                && which(outgoing)
            {
                keys.push(*key);
            }
        }
        keys.sort_unstable();
        keys.dedup();
        for key in keys.into_iter().rev() {
            self.take_out(key);
            self.queue(key, true);
        }
        for key in &self.active {
            if let Some(transfer) = self
                .outstanding
                .get_mut(key)
                .and_then(|outgoing| outgoing.transfer.as_mut())
            {
                self.bulk_bytes -= transfer.reserved();
                transfer.restart();
            }
        }
    }

    /// What is due: expired messages and those lost for good are given up, others put back into
    /// their queues.
    pub(crate) fn timeout(&mut self, now: Instant, given_up: &mut Vec<GivenUp>) -> Due {
        while let Some(key) = self.expiry.pop_due(now) {
            let Some(outgoing) = self.outstanding.get_mut(&key) else {
                continue;
            };
            if outgoing.expires > now {
                continue;
            }
            if outgoing.is_doubtful() && !outgoing.doubted {
                // That it came too late would be a lie if only its receipt did.
                outgoing.doubted = true;
                outgoing.expires = now + DOUBT;
                self.expiry.push(outgoing.expires, key);
                continue;
            }
            let code = if outgoing.doubted && (outgoing.was_sent() || outgoing.restored) {
                ErrorCode::Lost
            } else {
                ErrorCode::Expired
            };
            if let Some(outgoing) = self.remove(key) {
                given_up.push(GivenUp { outgoing, code });
            }
        }
        let mut due = Due {
            ready: self.delayed_due(now, given_up),
            lost_touch: false,
        };
        if self.grace.is_some_and(|grace| grace <= now) {
            self.grace = None;
            self.give_up_volatile(given_up);
            due.lost_touch = true;
        }
        if self.requests_held.is_some_and(|held| held <= now) {
            self.requests_held = None;
            due.ready = true;
        }
        if self.entrust_at.is_some_and(|at| at <= now) {
            self.entrust_at = None;
            self.entrusting = true;
            due.ready = true;
        }
        due.ready |= self.overdue(now);
        due
    }

    fn delayed_due(&mut self, now: Instant, given_up: &mut Vec<GivenUp>) -> bool {
        let mut ready = false;
        while let Some(&(until, key)) = self.delayed.first() {
            if until > now {
                break;
            }
            let why = self.outstanding.get(&key).map(|outgoing| outgoing.state);
            let held = why == Some(State::Delayed(until, Why::Held));
            if held && now < self.progressed + IN_CUSTODY {
                // Whoever keeps them is at it.
                self.delay(key, self.progressed + IN_CUSTODY, Why::Held);
                continue;
            }
            if why == Some(State::Delayed(until, Why::Doomed)) {
                if let Some(outgoing) = self.remove(key) {
                    given_up.push(GivenUp {
                        outgoing,
                        code: ErrorCode::Lost,
                    });
                }
                continue;
            }
            self.take_out(key);
            self.delayed.remove(&(until, key));
            self.queue(key, true);
            ready = true;
        }
        ready
    }

    fn give_up_volatile(&mut self, given_up: &mut Vec<GivenUp>) {
        let keys: Vec<Key> = self
            .outstanding
            .iter()
            .filter(|(_, outgoing)| outgoing.message.volatile)
            .map(|(key, _)| *key)
            .collect();
        for key in keys {
            if let Some(outgoing) = self.remove(key) {
                given_up.push(GivenUp {
                    outgoing,
                    code: ErrorCode::Lost,
                });
            }
        }
    }

    /// Messages whose receipt did not come in time.
    fn overdue(&mut self, now: Instant) -> bool {
        let patience = self.patience.length();
        let mut late: Vec<Key> = Vec::new();
        while let Some((at, key)) = self.first_sent() {
            if at + patience > now {
                break;
            }
            self.sent.pop_front();
            late.push(key);
        }
        let mut transfers: Vec<Key> = Vec::new();
        for key in &self.active {
            if let Some(outgoing) = self.outstanding.get(key)
                && let Some(transfer) = &outgoing.transfer
                && transfer
                    .waiting_since()
                    .is_some_and(|since| since + patience <= now)
            {
                transfers.push(*key);
            }
        }
        if late.is_empty() && transfers.is_empty() {
            return false;
        }
        let mut lost = false;
        late.sort_unstable();
        late.dedup();
        for key in late.into_iter().rev() {
            let Some(outgoing) = self.outstanding.get(&key) else {
                continue;
            };
            lost = true;
            if outgoing.once() {
                let whole = VOLATILE_PATIENCE.max(patience * VOLATILE_ROUNDS);
                let until = outgoing.sent_at + whole;
                self.delay(key, until, Why::Doomed);
                continue;
            }
            self.take_out(key);
            self.queue(key, true);
        }
        for key in transfers {
            if let Some(transfer) = self
                .outstanding
                .get_mut(&key)
                .and_then(|outgoing| outgoing.transfer.as_mut())
            {
                lost |= !transfer.arrived();
                self.bulk_bytes -= transfer.reserved();
                transfer.restart();
            }
        }
        if lost {
            self.window.shrink(now, self.patience.round_trip());
        }
        self.patience.ran_out();
        true
    }

    /// The message that was sent longest ago and has no receipt; forgets stale ones before it.
    fn first_sent(&mut self) -> Option<(Instant, Key)> {
        let outstanding = &self.outstanding;
        let waits = |(at, key): &(Instant, Key)| {
            outstanding.get(key).is_some_and(|outgoing| {
                outgoing.state == State::InFlight && outgoing.sent_at == *at
            })
        };
        if self.sent.len() > 2 * self.messages + 64 {
            self.sent.retain(waits);
        }
        while let Some(first) = self.sent.front() {
            if waits(first) {
                return Some(*first);
            }
            self.sent.pop_front();
        }
        None
    }

    /// When [`Flow::timeout`] wants to be called.
    pub(crate) fn deadline(&mut self) -> Option<Instant> {
        let backlog = self.backlog.due();
        if self.outstanding.is_empty() {
            let all = [self.grace, self.entrust_at, backlog];
            return all.into_iter().flatten().min();
        }
        let patience = self.patience.length();
        let outstanding = &self.outstanding;
        let expiry = self
            .expiry
            .next(|key, at| outstanding.get(&key).is_some_and(|o| o.expires == at));
        let transfers = self
            .active
            .iter()
            .filter_map(|key| outstanding.get(key)?.transfer.as_ref()?.waiting_since())
            .min()
            .map(|since| since + patience);
        let delayed = self.delayed.first().map(|(until, _)| *until);
        let delayed = delayed.filter(|until| *until != FOREVER);
        let sent = self.first_sent().map(|(at, _)| at + patience);
        [
            backlog,
            expiry,
            transfers,
            delayed,
            sent,
            self.grace,
            self.entrust_at,
            self.requests_held,
        ]
        .into_iter()
        .flatten()
        .min()
    }
}
