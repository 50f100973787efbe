//! Ends that are in doubt: those of works that an earlier start of their node had started, and the word
//! that stands for responses that were given up.
//!
//! The end of a work leaves before it is on its worker's disk. A worker's node that is killed then finds
//! a work without an end, and gives it another: `interrupted`, or that of a second run. So does one that
//! gives up responses without a receipt, of which any may have arrived. Their sender may have the first
//! one, and has told its client. So such an end says that it is in doubt, and a sender
//! that has one answers with it: the first that the sender has is the end of the work at both ends. The
//! worker notes it in place of its own.
//!
//! Nothing is remembered for it. The number of an end that came too late is not taken: as long as its
//! node sends it, it is answered like this, and the answer is its receipt, after which it is not sent
//! again. What a sender does not remember any more it does not answer for. Never takes an end from
//! anybody but who asked for the work, nor for an end that is not in doubt.

use alloc::boxed::Box;

use receptor_proto::NodeId;
use receptor_proto::packet::{EarlierEnd, Eof, Message, MessageKind, Receipt};

use super::answers::is_in_doubt;
use super::flow::Key;
use super::inbox::Verdict;
use super::journal::Done;
use super::received;
use super::{Cx, DISK_BUSY, Delivery, RemoteId};
use crate::Output;

impl Delivery {
    /// Whether this is an end in doubt of a work that has one here. It is answered, or comes again.
    pub(super) fn is_too_late(
        &mut self,
        cx: &mut Cx<'_>,
        from: RemoteId,
        message: &Message,
        verdict: Option<Verdict>,
    ) -> bool {
        let key = (message.epoch, message.seq);
        let MessageKind::Response { in_doubt: true, .. } = message.kind else {
            return false;
        };
        if message.volatile {
            return false;
        }
        match verdict {
            // The client has not taken the end, or it is not on the disk: it may yet have to be this one.
            Some(Verdict::Repeat | Verdict::WriteOnly(_)) => {
                self.acks(from).busy(key, DISK_BUSY);
                true
            }
            Some(Verdict::Take | Verdict::Refuse | Verdict::Mistake) => false,
            None => {
                cx.out.push_back(Output::AskEnd {
                    work: message.work,
                    recipient: self.remotes[from.0].node.clone(),
                    place: key,
                });
                true
            }
        }
    }

    /// What is remembered of the end of a work.
    pub(crate) fn handle_end(
        &mut self,
        recipient: &NodeId,
        (epoch, seq): Key,
        end: Option<(u64, Eof)>,
    ) {
        let Some(remote) = self.find(recipient) else {
            return;
        };
        if !self.is_new(remote, (epoch, seq)) {
            return;
        }
        let Some((responses, eof)) = end else {
            self.orphans += 1;
            self.let_go(remote, (epoch, seq), false);
            return;
        };
        // Its node forgets its own end for this one, which must not be forgotten then.
        self.journal.also(Done::Earlier {
            remote,
            epoch,
            end: Box::new(EarlierEnd {
                seq,
                responses,
                eof,
            }),
        });
    }

    /// Nothing can undo the end that this node has.
    pub(super) fn tell_earlier_end(&mut self, remote: RemoteId, epoch: u64, end: EarlierEnd) {
        if self.is_new(remote, (epoch, end.seq)) {
            self.acks(remote).earlier(epoch, end);
        }
    }

    fn is_new(&self, remote: RemoteId, (epoch, seq): Key) -> bool {
        let received = self.remotes[remote.0].received.get(&epoch);
        received.is_some_and(|received| received.check(seq) == received::Verdict::New)
    }

    /// The sender of a work had an end before the one that this receipt is for.
    pub(super) fn take_earlier_end(&self, cx: &mut Cx<'_>, from: RemoteId, receipt: &Receipt) {
        let Some(earlier) = &receipt.earlier else {
            return;
        };
        let is_received = |(first, last): &(u64, u64)| (*first..=*last).contains(&earlier.seq);
        let outgoing = self.remotes[from.0].flow.get((receipt.epoch, earlier.seq));
        if let Some(outgoing) = outgoing
            && is_in_doubt(outgoing)
            && receipt.received.iter().any(is_received)
        {
            let work = outgoing.message.work;
            self.tell_end(cx, from, work, earlier.responses, &earlier.eof);
        }
    }
}
