//! What is said of messages in custody, and which of it is believed.
//!
//! A word says that a message is somebody's, or nobody's any more. Nothing proves who said it but
//! the links it came over, so no word makes an origin give its copy away: that takes the
//! recipient's receipt. What a word can do is make an origin wait, and a custodian rely on another. So it
//! is heard only from those who can have the message: nodes on the way that it was sent on, as far as
//! this node knows that way, and the router that it was entrusted to. Of all others the message is
//! sent again, at the price of a second copy that its recipient recognises.

use receptor_proto::NodeId;
use receptor_proto::packet::{Body, CancelReason, Custody, Holding, MessageKind};
use receptor_proto::{ErrorBody, ErrorCode};

use super::State;
use crate::EntryId;
use crate::delivery::cancels::BEFORE_ARRIVAL;
use crate::delivery::flow::Key;
use crate::delivery::{Cx, Delivery, RemoteId};
use alloc::borrow::ToOwned as _;
use alloc::vec::Vec;

impl Delivery {
    pub(super) fn tell_kept(&mut self, entry: EntryId) {
        let Some(kept) = self.keeper.kept.get_mut(&entry) else {
            return;
        };
        let name = kept.name.clone();
        let before = kept.before.take();
        for to in before.into_iter().chain([name.0.clone()]) {
            // Without a way back it is told when the message comes again.
            if to != self.node {
                self.keeper.say(to, Holding::Kept, &name, false);
            }
        }
    }

    /// Says what there is to say of messages in custody.
    pub(in crate::delivery) fn send_notices(&mut self, cx: &mut Cx<'_>) {
        for (to, custody) in self.keeper.notices.take() {
            if to == self.node {
                continue;
            }
            let body = Body::Custody(custody);
            // Who does not hear of it asks again.
            let _ = cx.net.send(cx.now, &to, &body);
        }
    }

    /// What others say of messages in custody, and what custodians say of this node's own.
    pub(in crate::delivery) fn on_custody(
        &mut self,
        cx: &mut Cx<'_>,
        from: &NodeId,
        custody: &Custody,
    ) {
        match custody.holding {
            Holding::Kept | Holding::Refused | Holding::Dropped | Holding::GivenUp
                if custody.origin == self.node =>
            {
                self.on_own_in_custody(cx, from, custody);
            }
            Holding::Done if custody.recipient != *from => self.mistakes += 1,
            Holding::Kept if !cx.net.is_on_way(from, &custody.recipient) => {}
            Holding::Kept | Holding::Done => self.let_go_of_kept(cx, custody),
            Holding::Unopened(fingerprint) if custody.recipient == *from => {
                self.give_up_unopened(custody, fingerprint);
                self.send_kept(cx, &custody.recipient);
            }
            Holding::Refused | Holding::Dropped | Holding::GivenUp | Holding::Unopened(_) => {
                self.mistakes += 1;
            }
            Holding::Unknown(_) => {}
        }
    }

    /// What was kept here opens for nobody: its recipient has lost the key, or somebody made it up. Its origin, if it has
    /// one, seals it anew. Of another message than the one that was sent from here nothing is believed.
    fn give_up_unopened(&mut self, custody: &Custody, fingerprint: u64) {
        let Some(&(seq, _)) = custody.messages.first() else {
            return;
        };
        let (origin, recipient) = (custody.origin.clone(), custody.recipient.clone());
        let entry = self
            .keeper
            .names
            .get(&(origin, recipient, custody.epoch, seq));
        let Some(&entry) = entry else {
            return;
        };
        let kept = self.keeper.kept.get(&entry);
        if kept.is_some_and(|kept| {
            kept.was_sent && kept.fingerprint == fingerprint && fingerprint != 0
        }) {
            self.drop_kept(entry, Holding::Dropped);
        }
    }

    fn on_own_in_custody(&mut self, cx: &mut Cx<'_>, from: &NodeId, custody: &Custody) {
        let Some(to) = self.find(&custody.recipient) else {
            return;
        };
        if !self.may_have(cx, to, from) {
            return;
        }
        let (current, once) = (self.instance, self.is_secured);
        for &(first, last) in &custody.messages {
            let (first, last) = ((custody.epoch, first), (custody.epoch, last));
            let flow = &mut self.remotes[to.0].flow;
            // A leaf is told that its message goes no further also where it is kept.
            let came_back = custody.never_sent && self.takes_custody;
            match custody.holding {
                Holding::Kept => flow.in_custody(cx.now, from, first, last),
                Holding::Refused => flow.out_of_custody(cx.now, true, first, last),
                Holding::Dropped => flow.out_of_custody(cx.now, false, first, last),
                Holding::GivenUp => {
                    let given_up = flow.handed_between(first, last);
                    if came_back {
                        flow.came_back(current, once, first, last);
                    }
                    self.give_up_own(cx, to, from, given_up);
                    continue;
                }
                Holding::Done | Holding::Unopened(_) | Holding::Unknown(_) => {}
            }
            if came_back {
                flow.came_back(current, once, first, last);
            }
        }
        self.touch(to);
        self.set_ready(to);
    }

    /// Whether a node can have got messages of this node to this recipient.
    pub(in crate::delivery) fn may_have(&self, cx: &Cx<'_>, to: RemoteId, node: &NodeId) -> bool {
        let remote = &self.remotes[to.0];
        cx.net.is_on_way(node, &remote.node) || remote.flow.was_entrusted_to(node)
    }

    /// The operator of their custodian dropped these, or their cancels came to it.
    fn give_up_own(&mut self, cx: &mut Cx<'_>, to: RemoteId, custodian: &NodeId, keys: Vec<Key>) {
        for key in keys {
            let flow = &mut self.remotes[to.0].flow;
            let Some(outgoing) = flow.get(key) else {
                continue;
            };
            let asks = matches!(outgoing.message.kind, MessageKind::Request { .. });
            if asks && !outgoing.is_here_alone(self.instance) {
                // Others may have it too.
                let work = outgoing.message.work;
                let _ = self.cancel_with(cx, work, CancelReason::User);
            } else if let Some(outgoing) = flow.remove(key) {
                let request = self.requests.get(outgoing.message.work);
                let text = if asks && request.is_some_and(|request| request.cancelled) {
                    BEFORE_ARRIVAL.to_owned()
                } else {
                    alloc::format!(
                        "dropped by the operator of {custodian}, which kept it on its way"
                    )
                };
                let reason = ErrorBody::new(ErrorCode::Cancelled, text);
                self.given_up_because(cx, to, *outgoing, reason);
            }
        }
    }

    /// These are the recipient's or another custodian's now. Of what was not written, or not sent
    /// on to another custodian, nobody can have heard.
    fn let_go_of_kept(&mut self, cx: &mut Cx<'_>, custody: &Custody) {
        let done = custody.holding == Holding::Done;
        let name = |seq| {
            let (origin, recipient) = (custody.origin.clone(), custody.recipient.clone());
            (origin, recipient, custody.epoch, seq)
        };
        let mut over = Vec::new();
        for &(first, last) in &custody.messages {
            let known = self.keeper.names.range(name(first)..=name(last));
            over.extend(known.map(|(_, entry)| *entry));
        }
        for entry in over {
            let kept = self.keeper.kept.get(&entry);
            if kept.is_some_and(|kept| kept.state != State::Writing && (done || kept.was_sent)) {
                self.keeper.remove(entry);
                self.journal.remove(entry);
            }
        }
        self.send_kept(cx, &custody.recipient);
    }
}
