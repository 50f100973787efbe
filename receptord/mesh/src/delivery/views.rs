//! What an operator may see of the messages that wait here, and the one thing that he may do
//! about them. Changes nothing by looking.

use alloc::vec::Vec;

use receptor_proto::packet::{CancelReason, MessageKind};
use receptor_proto::{ErrorCode, MessageId};

use super::answers::is_last_word;
use super::flow::{GivenUp, Key, Outgoing};
use super::works::State;
use super::{Cx, Delivery, Out, RemoteId};
use crate::wiring::Net;
use crate::{Instant, NoSuchWork, WaitingKind, WaitingView, WorkView};

impl Delivery {
    pub(crate) fn waiting(&self, now: Instant, limit: usize) -> (Vec<WaitingView>, u64) {
        let all = self.remotes.iter().flat_map(|remote| {
            remote.flow.iter().map(move |outgoing| WaitingView {
                work: outgoing.message.work,
                recipient: remote.node.clone(),
                origin: None,
                kind: match &outgoing.message.kind {
                    MessageKind::Request { directive, .. } => WaitingKind::Request {
                        directive: directive.clone(),
                    },
                    MessageKind::Response { serial, .. } => {
                        WaitingKind::Response { serial: *serial }
                    }
                    MessageKind::Cancel { .. } => WaitingKind::Cancel,
                },
                size: outgoing.message.size,
                volatile: outgoing.message.volatile,
                sent: outgoing.was_sent(),
                remaining: outgoing.expires.since(now),
            })
        });
        let all = all.chain(self.view_kept(now)).take(limit).collect();
        (all, (self.kept + self.in_custody().0) as u64)
    }

    pub(crate) fn works(&self, limit: usize) -> (Vec<WorkView>, u64) {
        let ids = self.works.open().take(limit);
        let works = ids.filter_map(|id| self.work(id)).collect();
        (works, self.works.active() as u64)
    }

    pub(crate) fn work(&self, id: MessageId) -> Option<WorkView> {
        let work = self.works.get(id)?;
        Some(WorkView {
            work: id,
            sender: self.remotes[work.remote.0].node.clone(),
            directive: work.directive.clone(),
            since: work.since,
            running: match work.state {
                State::Waiting | State::Starting => false,
                State::Running | State::Ending | State::Closing => true,
            },
            ended: match work.state {
                State::Waiting | State::Starting | State::Running => false,
                State::Ending | State::Closing => true,
            },
            cancelled: work.cancelled,
            volatile: work.volatile,
            responses: work.serial,
        })
    }

    pub(crate) fn sent(&self, work: MessageId) -> Option<(u64, u64)> {
        let request = self.requests.get(work)?;
        let flow = &self.remotes[request.remote.0].flow;
        flow.get(request.key).and_then(Outgoing::transferred)
    }

    pub(crate) fn coming(&self, work: MessageId) -> Option<(u64, u64)> {
        let request = self.requests.get(work)?;
        self.partials.progress(request.remote, |message| {
            message.work == work && matches!(message.kind, MessageKind::Response { .. })
        })
    }

    pub(crate) fn has_arrived(&self, work: MessageId) -> Option<bool> {
        match self.requests.get(work) {
            Some(request) => Some(request.arrived),
            // What waits in a page was never sent.
            None => self.is_pending(work).then_some(false),
        }
    }

    pub(crate) fn drop_waiting(
        &mut self,
        now: Instant,
        net: &mut dyn Net,
        work: MessageId,
        out: &mut Out,
    ) -> Result<(), NoSuchWork> {
        if self.is_pending(work) {
            return self.cancel(now, net, work, CancelReason::User, out);
        }
        let cx = &mut Cx { now, net, out };
        let was_kept = self.give_up_kept(cx, work);
        let mut found: Vec<(RemoteId, Key)> = Vec::new();
        for (at, remote) in self.remotes.iter().enumerate() {
            let responses = remote.flow.iter().filter(|outgoing| {
                // That word itself is not dropped: it is all that tells the sender.
                outgoing.message.work == work
                    && !is_last_word(outgoing)
                    && matches!(outgoing.message.kind, MessageKind::Response { .. })
            });
            found.extend(responses.map(|outgoing| (RemoteId(at), outgoing.key())));
        }
        if found.is_empty() && !was_kept {
            return Err(NoSuchWork);
        }
        for (to, key) in found {
            // Giving up the first may have taken the others along.
            if let Some(outgoing) = self.remotes[to.0].flow.remove(key) {
                self.touch(to);
                let code = ErrorCode::Cancelled;
                self.given_up(cx, to, GivenUp { outgoing, code });
            }
        }
        Ok(())
    }
}
