//! Messages for any node that qualifies, whose chosen recipient cannot be reached any more.
//!
//! Another one is chosen only while it is certain that nobody has the message: it was never sent
//! by any start of this node, or what was sent came back. After that the choice stands, however
//! long its recipient is away. Owns the promise that two recipients never both get a message: its
//! new place is on the disk before it is sent there, and of two places that a restart finds the later
//! one counts.

use alloc::collections::BTreeMap;
use alloc::string::String;

use receptor_proto::MessageId;
use receptor_proto::packet::MessageKind;

use super::flow::{Key, Outgoing};
use super::journal::Done;
use super::{Cx, Delivery, RemoteId, millis};
use crate::{EntryId, Output, Record};

/// Choices in one turn; each looks at all nodes.
const CHOICES: usize = 256;

/// A message that is on its way from one place to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Moved {
    work: MessageId,
    /// Where it was, which a restart may still find.
    old: (RemoteId, Key, EntryId),
    new: (RemoteId, Key),
}

impl Delivery {
    /// There is no way to this node: messages that may as well go to others do.
    pub(super) fn choose_again(&mut self, cx: &mut Cx<'_>, from: RemoteId) {
        let current = self.instance;
        let flow = &mut self.remotes[from.0].flow;
        let (movable, more) = flow.take_movable(current, CHOICES);
        if more {
            self.set_ready(from);
        }
        let mut later = None;
        for key in movable {
            let Some(outgoing) = self.remotes[from.0].flow.get(key) else {
                continue;
            };
            let MessageKind::Request { directive, .. } = &outgoing.message.kind else {
                continue;
            };
            let work = outgoing.message.work;
            let request = self.requests.get(work);
            let Some(wanted) = request.and_then(|request| request.any.as_deref()) else {
                continue;
            };
            let Some(node) = cx.net.resolve(directive, wanted) else {
                continue;
            };
            let Some(to) = self.remote(&node).filter(|to| *to != from) else {
                continue;
            };
            let flow = &mut self.remotes[from.0].flow;
            match flow.body_for_moving(key, &self.limits) {
                Body::Here => self.move_to(cx, from, key, to),
                Body::Fetch { entry, length } => {
                    self.sources.insert(entry, (from, key));
                    cx.out.push_back(Output::Fetch {
                        entry,
                        offset: 0,
                        length,
                    });
                }
                Body::Later => {
                    later.get_or_insert(key);
                }
            }
        }
        if let Some(key) = later {
            self.remotes[from.0].flow.look_for_others(key);
        }
    }

    fn move_to(&mut self, cx: &mut Cx<'_>, from: RemoteId, key: Key, to: RemoteId) {
        let flow = &mut self.remotes[from.0].flow;
        let Some(outgoing) = flow.remove(key) else {
            return;
        };
        // Should a restart find it there after all, its number must not pass for one received.
        flow.hold(key);
        self.left(from, &outgoing);
        let work = outgoing.message.work;
        let Some(old) = outgoing.entry else {
            return;
        };
        let new_key = (self.instance, self.remotes[to.0].flow.next_seq());
        let entry = self.new_entry();
        let mut message = outgoing.message;
        (message.epoch, message.seq, message.floor) = (new_key.0, new_key.1, 0);
        message.remaining_ms = millis(outgoing.expires.since(cx.now));
        if let Some(request) = self.requests.get_mut(work) {
            request.remote = to;
            request.recipient = self.remotes[to.0].node.clone();
            request.key = new_key;
            request.entry = Some(entry);
        }
        let mut moved = Outgoing::new(message, Some(entry), outgoing.expires);
        moved.any = true;
        self.send_after(cx, to, moved, true);
        self.write_moved(Moved {
            work,
            old: (from, key, old),
            new: (to, new_key),
        });
    }

    /// False: its flow has it no longer.
    fn write_moved(&mut self, moved: Moved) -> bool {
        let (to, key) = moved.new;
        let recipient = self.remotes[to.0].node.clone();
        let outgoing = self.remotes[to.0].flow.get(key);
        let Some((entry, outgoing)) = outgoing.and_then(|o| Some((o.entry?, o))) else {
            return false;
        };
        let record = Record::Outgoing {
            entry,
            recipient,
            message: outgoing.message.clone(),
        };
        self.journal.write_alone(record, Done::Moved(moved));
        true
    }

    /// The new place is on the disk: the old one is over, and the message may go.
    pub(super) fn moved_written(&mut self, cx: &mut Cx<'_>, moved: Moved) {
        let (from, old_key, old) = moved.old;
        let (to, key) = moved.new;
        self.journal.remove(old);
        self.remotes[from.0].flow.release(old_key);
        self.remotes[to.0].flow.stored(key, &self.limits);
        let request = self.requests.get(moved.work);
        if let Some(request) = request.filter(|request| request.key == key) {
            cx.out.push_back(Output::Readdressed {
                work: moved.work,
                recipient: request.recipient.clone(),
            });
            self.page_request_out(moved.work);
        }
    }

    /// Tries once more to write a new place; until then the message waits.
    pub(super) fn write_moved_again(&mut self, cx: &mut Cx<'_>, moved: Moved) {
        if !self.write_moved(moved) {
            self.moved_written(cx, moved);
        }
    }
}

/// Where the payload of a message is that is to be moved.
pub(super) enum Body {
    Here,
    /// In the store, which is to be asked for it.
    Fetch {
        entry: EntryId,
        length: usize,
    },
    /// The same, but others come first.
    Later,
}

/// What a recipient must say of itself.
pub(super) type Wanted = BTreeMap<String, String>;
