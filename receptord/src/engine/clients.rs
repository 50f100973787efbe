//! The messages that clients of this node have sent, and who gets what comes back.
//!
//! Owns, for each message under way, the mailbox of its client, or the responses that wait for
//! one when it was detached. Those are bounded in bytes and in works; what is dropped to make
//! room is logged. Decides one thing for the core: a message to a node that was never heard of
//! is refused unless its client wants it to wait.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound;
use std::rc::Rc;

use receptor_mesh::{EntryId, Payload, Reachability, Recipient};
use receptor_proto::{ErrorBody, ErrorCode, MessageId, NodeId};

use super::mailbox::{Letter, Mailbox, News, Response};
use super::{Engine, Submit};

/// Bytes of responses kept for clients that detached and have not asked yet. Beyond that the
/// oldest work's responses are dropped.
const PARKED_MAX: usize = 64 << 20;
/// Works that are known to have been detached, at most.
const PARKED_WORKS_MAX: usize = 10_000;

/// Bytes of volatile messages to one recipient, about, that may be without its receipt before
/// further ones wait here unaccepted, and with them their clients: a few times what may be in
/// flight ([`receptor_mesh::Limits::flow_window`]).
const VOLATILE_BYTES: usize = 8 << 20;
/// The same in messages, for small ones.
const VOLATILE_MESSAGES: usize = 8192;
/// What a message takes beside its payload, about.
const ENVELOPE: usize = 512;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Clients {
    sends: HashMap<MessageId, Sent>,
    /// Volatile messages that wait for room, by recipient; bounded by what sessions let their
    /// clients send unaccepted.
    held: BTreeMap<NodeId, VecDeque<Submit>>,
    parked: Parked,
}

/// A message of a client of this node.
#[derive(Debug)]
struct Sent {
    listener: Listener,
    /// The highest serial that came.
    delivered: u64,
    ended: bool,
}

/// Who gets the responses of a message.
#[derive(Debug)]
enum Listener {
    /// This client.
    Client(Rc<Mailbox>),
    /// This client gets the acceptance; the responses wait.
    Detaching(Rc<Mailbox>),
    /// Nobody now; they wait.
    Nobody(VecDeque<Letter>),
    /// Nobody ever; they are dropped.
    Gone,
}

/// Bytes and works that wait for a client to ask, oldest first.
#[derive(Debug, Default)]
struct Parked {
    weight: usize,
    order: VecDeque<MessageId>,
}

impl Engine {
    /// Takes a message, or holds it while its recipient has too much to take already.
    pub(super) fn submit(&mut self, submit: Submit) {
        let submission = &submit.submission;
        let (true, Recipient::Node(node)) = (submission.volatile, &submission.recipient) else {
            return self.submit_now(submit);
        };
        if let Some(held) = self.clients.held.get_mut(node) {
            held.push_back(submit);
        } else if self.has_room(&submit, node) {
            self.submit_now(submit);
        } else {
            let node = node.clone();
            self.clients.held.insert(node, VecDeque::from([submit]));
        }
    }

    fn has_room(&self, submit: &Submit, node: &NodeId) -> bool {
        let size = match &submit.submission.payload {
            Payload::Inline(bytes) => bytes.len() + ENVELOPE,
            Payload::Stored { .. } => ENVELOPE,
        };
        self.mesh.outstanding(node) < (VOLATILE_BYTES / size).min(VOLATILE_MESSAGES)
    }

    /// Takes held messages whose recipients have room again. Whether there were any.
    pub(super) fn submit_held(&mut self) -> bool {
        let mut any = false;
        let mut next = self.clients.held.keys().next().cloned();
        while let Some(node) = next {
            while let Some(held) = self.clients.held.get_mut(&node) {
                let Some(submit) = held.pop_front() else {
                    self.clients.held.remove(&node);
                    break;
                };
                if !self.has_room(&submit, &node) {
                    if let Some(held) = self.clients.held.get_mut(&node) {
                        held.push_front(submit);
                    }
                    break;
                }
                self.submit_now(submit);
                any = true;
            }
            let after = (Bound::Excluded(node), Bound::Unbounded);
            let mut rest = self.clients.held.range(after);
            next = rest.next().map(|(node, _)| node.clone());
        }
        any
    }

    fn submit_now(&mut self, submit: Submit) {
        let Submit {
            submission,
            wait,
            detach,
            mailbox,
        } = submit;
        let work = submission.id;
        let stored = match &submission.payload {
            Payload::Stored { entry, .. } => Some(*entry),
            Payload::Inline(_) => None,
        };
        if !wait
            && let Recipient::Node(node) = &submission.recipient
            && self.mesh.reachability(node) == Reachability::Unknown
        {
            let text = format!("no node {node} was ever heard of here");
            return self.refuse(
                work,
                &mailbox,
                stored,
                ErrorBody::new(ErrorCode::NoSuchNode, text),
            );
        }
        if self.clients.sends.contains_key(&work) {
            let text = format!("a message {work} is under way already");
            let error = ErrorBody::new(ErrorCode::InvalidRequest, text);
            return self.refuse(work, &mailbox, stored, error);
        }
        let listener = if detach {
            Listener::Detaching(Rc::clone(&mailbox))
        } else {
            Listener::Client(Rc::clone(&mailbox))
        };
        let respond = submission.respond;
        let send = Sent {
            listener,
            delivered: 0,
            ended: !respond,
        };
        self.clients.sends.insert(work, send);
        if let Err(error) = self.mesh.submit(self.now, submission) {
            self.clients.sends.remove(&work);
            // The core has seen to the payload.
            self.refuse(work, &mailbox, None, error.0);
        }
    }

    fn refuse(
        &mut self,
        work: MessageId,
        mailbox: &Mailbox,
        stored: Option<EntryId>,
        error: ErrorBody,
    ) {
        if let Some(entry) = stored {
            self.store.remove(entry);
        }
        mailbox.push(Letter {
            work,
            news: News::Refused(error),
        });
    }

    pub(super) fn accepted(&mut self, work: MessageId, recipient: NodeId) {
        let Some(send) = self.clients.sends.get_mut(&work) else {
            return;
        };
        let news = News::Accepted { recipient };
        match &send.listener {
            Listener::Client(mailbox) => mailbox.push(Letter { work, news }),
            Listener::Detaching(mailbox) => {
                mailbox.push(Letter { work, news });
                send.listener = Listener::Nobody(VecDeque::new());
                if !send.ended {
                    self.clients.parked.order.push_back(work);
                }
            }
            Listener::Nobody(_) | Listener::Gone => {}
        }
        if send.ended {
            self.clients.sends.remove(&work);
        }
        if self.clients.parked.order.len() > PARKED_WORKS_MAX {
            self.drop_oldest_parked();
        }
    }

    pub(super) fn deliver(&mut self, work: MessageId, response: Response) {
        let serial = response.serial;
        let ended = response.eof.is_some();
        let letter = Letter {
            work,
            news: News::Response(response),
        };
        let send = self.clients.sends.entry(work).or_insert_with(|| {
            // A message of an earlier run of the daemon.
            self.clients.parked.order.push_back(work);
            Sent {
                listener: Listener::Nobody(VecDeque::new()),
                delivered: 0,
                ended: false,
            }
        });
        send.delivered = serial;
        send.ended = ended;
        match &mut send.listener {
            Listener::Client(mailbox) | Listener::Detaching(mailbox) => mailbox.push(letter),
            Listener::Nobody(letters) => {
                self.clients.parked.weight += letter.weight();
                letters.push_back(letter);
                while self.clients.parked.weight > PARKED_MAX {
                    self.drop_oldest_parked();
                }
            }
            Listener::Gone => self.consumed(work, serial),
        }
    }

    /// Gives up the responses of the work that nobody asked for the longest.
    fn drop_oldest_parked(&mut self) {
        let Some(work) = self.clients.parked.order.pop_front() else {
            self.clients.parked.weight = 0;
            return;
        };
        let Some(send) = self.clients.sends.get_mut(&work) else {
            return;
        };
        if let Listener::Nobody(letters) = &send.listener {
            let weight: usize = letters.iter().map(Letter::weight).sum();
            self.clients.parked.weight = self.clients.parked.weight.saturating_sub(weight);
            if weight > 0 {
                tracing::warn!(%work, "responses that nobody asked for were dropped to make room");
            }
            send.listener = Listener::Gone;
            let delivered = send.delivered;
            self.consumed(work, delivered);
        }
    }

    pub(super) fn consumed(&mut self, work: MessageId, serial: u64) {
        if serial > 0 {
            self.mesh.consumed(self.now, work, serial);
        }
        if self
            .clients
            .sends
            .get(&work)
            .is_some_and(|send| send.ended && serial >= send.delivered)
        {
            self.clients.sends.remove(&work);
        }
    }

    pub(super) fn client_gone(&mut self, work: MessageId) {
        let Some(send) = self.clients.sends.get_mut(&work) else {
            // It was never accepted, so nothing was promised.
            for held in self.clients.held.values_mut() {
                held.retain(|submit| submit.submission.id != work);
            }
            return;
        };
        match &send.listener {
            Listener::Client(_) => {
                send.listener = Listener::Gone;
                let delivered = send.delivered;
                self.consumed(work, delivered);
            }
            // The acceptance was not read; what the message does is not its client's business.
            Listener::Detaching(_) | Listener::Nobody(_) | Listener::Gone => {}
        }
    }

    pub(super) fn attach(&mut self, work: MessageId, mailbox: Rc<Mailbox>) -> bool {
        let Some(send) = self.clients.sends.get_mut(&work) else {
            return false;
        };
        let Listener::Nobody(letters) = &mut send.listener else {
            return false;
        };
        self.clients.parked.order.retain(|other| *other != work);
        for letter in std::mem::take(letters) {
            self.clients.parked.weight = self.clients.parked.weight.saturating_sub(letter.weight());
            mailbox.push(letter);
        }
        send.listener = Listener::Client(mailbox);
        true
    }
}
