//! Receipts: what is to be said about what came, and when.
//!
//! A receipt of its own costs every node on its way a wake, which is most of what a small message
//! costs. Nobody waits for one but the origin's memory and its window, so the receipt of a small
//! message waits for company: for a message that goes to the same node, for a few more of its kind,
//! or for [`LINGER`]. What an origin may wait for is said at once. Never says anything that is not
//! on the disk yet.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::time::Duration;

use receptor_proto::ErrorCode;
use receptor_proto::packet::{Body, EarlierEnd, RANGES_MAX, Receipt};

use super::flow::Key;
use super::ranges::Ranges;
use super::received::Received;
use super::{Cx, Delivery, OWN, RemoteId};
use crate::Instant;

/// How long a receipt waits for company: longer than a plugin takes to answer, or a client to ask
/// again; nothing beside the shortest time after which an origin sends again.
const LINGER: Duration = Duration::from_millis(2);
/// Messages whose receipts are company enough.
const COMPANY: usize = 4;
/// Bytes of a message that is not small. [`COMPANY`] small ones fit the least window, so that none
/// is ever closed for want of a receipt that waits.
const SMALL: u64 = 4 * 1024;

/// The nodes whose receipts wait, in the order in which these are due. Those that were given
/// earlier stay in it until their time.
#[derive(Debug, Default)]
pub(super) struct Lingering(VecDeque<(Instant, RemoteId)>);

impl Delivery {
    /// What the next receipt to this node says.
    pub(super) fn acks(&mut self, id: RemoteId) -> &mut Acks {
        self.owe(id);
        &mut self.remotes[id.0].acks
    }

    fn owe(&mut self, id: RemoteId) {
        let remote = &mut self.remotes[id.0];
        if !remote.is_owed {
            remote.is_owed = true;
            self.owed.push(id);
        }
    }

    /// A message came that is as large as this.
    pub(super) fn note_size(&mut self, from: RemoteId, bytes: u64) {
        self.remotes[from.0].sends_large = bytes > SMALL;
    }

    /// A message was sent to this node.
    pub(super) fn was_sent_to(&mut self, id: RemoteId) {
        if !self.remotes[id.0].acks.is_empty() {
            self.remotes[id.0].was_sent_to = true;
            self.owe(id);
        }
    }

    /// One receipt, or few, to every node that is owed one, unless it may wait.
    pub(super) fn give_receipts(&mut self, cx: &mut Cx<'_>) {
        let owed = self.owed.len();
        for at in 0..owed {
            let id = self.owed[at];
            let remote = &mut self.remotes[id.0];
            remote.is_owed = false;
            let along = core::mem::take(&mut remote.was_sent_to);
            if remote.acks.is_empty() {
                continue;
            }
            if id != OWN && !along && !remote.sends_large && remote.acks.may_wait() {
                if !core::mem::replace(&mut remote.is_lingering, true) {
                    self.lingering.0.push_back((cx.now + LINGER, id));
                }
                continue;
            }
            self.give(cx, id);
        }
        self.owed.drain(..owed);
    }

    fn give(&mut self, cx: &mut Cx<'_>, id: RemoteId) {
        let remote = &mut self.remotes[id.0];
        let received = &remote.received;
        for mut receipt in remote.acks.take(|epoch| received.get(&epoch)) {
            receipt.instance = self.instance;
            if receipt.epoch < remote.first_epoch {
                receipt.later = remote.first_epoch;
            }
            self.keeper.release(id, &remote.node, &self.node, &receipt);
            let body = Body::Receipt(receipt);
            if id == OWN {
                self.loopback.push_back(body);
                continue;
            }
            // For lack of room: it is asked for again by a repeat.
            if let Err(code) = cx.net.send(cx.now, &remote.node, &body) {
                remote.is_unreceipted |= matches!(code, ErrorCode::NoRoute | ErrorCode::NoSuchNode);
                break;
            }
        }
    }

    /// Owes those whose receipts have waited long enough.
    pub(super) fn end_linger(&mut self, now: Instant) {
        while let Some((due, id)) = self.lingering.0.front().copied()
            && due <= now
        {
            self.lingering.0.pop_front();
            let remote = &mut self.remotes[id.0];
            remote.is_lingering = false;
            if !remote.acks.is_empty() {
                remote.acks.hurry();
                self.owe(id);
            }
        }
    }

    /// When the next receipts have waited long enough.
    pub(super) fn receipts_due(&mut self) -> Option<Instant> {
        while let Some((due, id)) = self.lingering.0.front().copied() {
            if !self.remotes[id.0].acks.is_empty() {
                return Some(due);
            }
            self.lingering.0.pop_front();
            self.remotes[id.0].is_lingering = false;
        }
        None
    }

    /// Says once more what was received of a node that could not be told: it may have been told that
    /// others keep its messages, and then repeats none for long.
    pub(super) fn receipt_again(&mut self, id: RemoteId) {
        let mut lasts: Vec<Key> = Vec::new();
        for (epoch, received) in &self.remotes[id.0].received {
            lasts.extend(received.lasts().map(|last| (*epoch, last)));
        }
        for key in lasts {
            self.acks(id).received(key);
        }
    }
}

/// What the next receipts to one node say, by epoch.
#[derive(Debug, Default)]
pub(crate) struct Acks {
    said: Vec<Receipt>,
    /// Messages that it says were received.
    received: usize,
    /// Somebody may wait for it.
    urgent: bool,
    /// Receipts of their own, for ends that came too late.
    earlier: Vec<Receipt>,
}

impl Acks {
    fn of(&mut self, epoch: u64) -> &mut Receipt {
        let at = match self.said.iter().position(|receipt| receipt.epoch == epoch) {
            Some(at) => at,
            None => {
                self.said.push(Receipt {
                    epoch,
                    ..Receipt::default()
                });
                self.said.len() - 1
            }
        };
        &mut self.said[at]
    }

    pub(crate) fn received(&mut self, (epoch, seq): (u64, u64)) {
        self.received += 1;
        let list = &mut self.of(epoch).received;
        match list.last_mut() {
            Some(run) if run.1.checked_add(1) == Some(seq) => run.1 = seq,
            Some(run) if run.0 <= seq && seq <= run.1 => {}
            _ => list.push((seq, seq)),
        }
    }

    pub(crate) fn progress(&mut self, (epoch, seq): (u64, u64), bytes: u64) {
        self.urgent = true;
        let list = &mut self.of(epoch).progress;
        match list.iter_mut().find(|(other, _)| *other == seq) {
            Some(entry) => entry.1 = entry.1.max(bytes),
            None => list.push((seq, bytes)),
        }
    }

    pub(crate) fn busy(&mut self, (epoch, seq): (u64, u64), wait: Duration) {
        self.urgent = true;
        let ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        self.of(epoch).busy.push((seq, ms));
    }

    /// An end came too late: there was an earlier one.
    pub(crate) fn earlier(&mut self, epoch: u64, end: EarlierEnd) {
        self.earlier.push(Receipt {
            epoch,
            received: Vec::from([(end.seq, end.seq)]),
            earlier: Some(end),
            ..Receipt::default()
        });
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.said.is_empty() && self.earlier.is_empty()
    }

    /// Whether the origin does not notice if this is said a little later.
    fn may_wait(&self) -> bool {
        !self.urgent && self.received < COMPANY
    }

    fn hurry(&mut self) {
        self.urgent = true;
    }

    /// Takes everything said as receipts of a size that can be sent, instance left out. Of what was received whole
    /// runs are named, so that a lost receipt is made good by the next.
    pub(crate) fn take<'a>(
        &mut self,
        received: impl Fn(u64) -> Option<&'a Received>,
    ) -> Vec<Receipt> {
        let Self {
            said,
            earlier: mut receipts,
            ..
        } = core::mem::take(self);
        for mut whole in said {
            if let Some(received) = received(whole.epoch) {
                for run in &mut whole.received {
                    *run = (received.run(run.0).0, received.run(run.1).1);
                }
            }
            let runs = Ranges::from_runs(core::mem::take(&mut whole.received));
            let mut runs = runs.runs().chunks(RANGES_MAX);
            let mut progress = whole.progress.chunks(RANGES_MAX);
            let mut busy = whole.busy.chunks(RANGES_MAX);
            loop {
                let receipt = Receipt {
                    epoch: whole.epoch,
                    received: runs.next().unwrap_or_default().to_vec(),
                    progress: progress.next().unwrap_or_default().to_vec(),
                    busy: busy.next().unwrap_or_default().to_vec(),
                    ..Receipt::default()
                };
                if receipt.received.is_empty()
                    && receipt.progress.is_empty()
                    && receipt.busy.is_empty()
                {
                    break;
                }
                receipts.push(receipt);
            }
        }
        receipts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn receipts_name_whole_runs_and_fit_a_packet() {
        let mut received = Received::default();
        for n in 1..=10 {
            received.ack(n);
        }
        for n in 1..=600u64 {
            received.ack(100 + 2 * n);
        }
        let mut acks = Acks::default();
        acks.received((1, 9));
        acks.received((1, 10));
        acks.busy((1, 11), Duration::from_millis(5));
        acks.progress((1, 12), 7);
        acks.progress((1, 12), 9);
        let receipts = acks.take(|_| Some(&received));
        assert_eq!(
            receipts,
            [Receipt {
                epoch: 1,
                received: vec![(1, 10)],
                progress: vec![(12, 9)],
                busy: vec![(11, 5)],
                ..Receipt::default()
            }]
        );
        assert!(acks.is_empty());
        for n in 1..=600u64 {
            acks.received((1, 100 + 2 * n));
        }
        let receipts = acks.take(|_| Some(&received));
        assert_eq!(receipts.len(), 3);
        assert!(receipts.iter().all(|r| r.received.len() <= RANGES_MAX));
    }
}
