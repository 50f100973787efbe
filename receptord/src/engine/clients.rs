//! The messages that clients of this node have sent, and who gets what comes back.
//!
//! Owns, for each message of a client that is there, its mailbox; what comes of a message that is
//! not volatile the [`crate::results::Keeper`] has as well, for whoever asks. Decides one thing for
//! the core: a message to a node that was never heard of is refused unless its client wants it to
//! wait.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::rc::Rc;

use receptor_mesh::{Payload, Reachability, Recipient};
use receptor_proto::{ErrorBody, ErrorCode, MessageId, NodeId};

use super::mailbox::{Letter, Mailbox, News, Response};
use super::{Engine, Submit};
use crate::by_id::ById;
use crate::results::Begin;

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
    sends: ById<Sent>,
    /// Volatile messages that wait for room, by recipient; bounded by what sessions let their
    /// clients send unaccepted.
    held: BTreeMap<NodeId, VecDeque<Submit>>,
    /// Messages with a key, until the keeper has written what they ask for.
    unwritten: ById<Submit>,
    /// Clients that sent a message with the key of one that is not accepted yet; bounded as
    /// `held`.
    latecomers: ById<Vec<Rc<Mailbox>>>,
}

/// A message of a client of this node.
#[derive(Debug)]
struct Sent {
    listener: Listener,
    volatile: bool,
    /// The highest serial that came.
    delivered: u64,
    ended: bool,
}

/// Who gets the responses of a message.
#[derive(Debug)]
enum Listener {
    /// This client.
    Client(Rc<Mailbox>),
    /// This client gets the acceptance; the keeper has the responses.
    Detaching(Rc<Mailbox>),
    /// Nobody ever: the message is volatile and its client is gone.
    Gone,
}

impl Engine {
    /// Takes a message, or holds it while its recipient has too much to take already.
    pub(super) fn submit(&mut self, mut submit: Submit) {
        let submission = &mut submit.submission;
        if submission.volatile
            && let Recipient::Any { metadata } = &submission.recipient
            && let Some(nearest) = self.mesh.resolve(&submission.directive, metadata)
        {
            // Chosen once: it is the room at that node that counts.
            submission.recipient = Recipient::Node(nearest);
        }
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
        if self.mesh.reachability(node) != Reachability::Reachable {
            // It is refused, whatever waits there for a way.
            return true;
        }
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
        if submit.quiet.is_some() {
            return self.submit_quiet(submit);
        }
        let submission = &submit.submission;
        let work = submission.id;
        if !submit.wait
            && let Recipient::Node(node) = &submission.recipient
            && self.mesh.reachability(node) == Reachability::Unknown
            && !self.keeper.knows(work)
        {
            let text = format!("no node {node} was ever heard of here");
            let error = ErrorBody::new(ErrorCode::NoSuchNode, text);
            return self.refuse(submit, error);
        }
        if submission.volatile || !submission.respond {
            return self.hand_over(submit);
        }
        let begin = Begin {
            directive: submission.directive.clone(),
            recipient: match &submission.recipient {
                Recipient::Node(node) => Some(node.clone()),
                Recipient::Any { .. } => None,
            },
            digest: submit.digest.clone(),
            client: !submit.detach,
        };
        if submit.digest.is_none() {
            self.keeper.begin(work, begin);
            return self.hand_over(submit);
        }
        let keyed = self.keeper.keyed(work);
        // After a restart a released work is known without what it was asked.
        let is_known = matches!(&keyed, Some((Some(_), ..))) && !self.keeper.is_released(work);
        let is_pending = self.mesh.is_pending(work);
        if !is_known && !is_pending && keyed.is_some() {
            self.keeper.release(work);
            self.forget(work);
        }
        if !is_known && (is_pending || self.keeper.knows(work)) {
            let text = "the work of an earlier message with this key was released and has not ended; the key can be used again when it has";
            let error = ErrorBody::new(ErrorCode::Busy, text);
            return self.refuse(submit, error.with("id", work.to_string()));
        }
        let Some((digest, accepted, recipient)) = keyed.filter(|_| is_known) else {
            self.keeper.begin(work, begin);
            self.clients.unwritten.insert(work, submit);
            return;
        };
        if digest != submit.digest {
            let text = "another message was sent with this key: its directive, recipient or payload differ";
            let error = ErrorBody::new(ErrorCode::InvalidRequest, text);
            return self.refuse(submit, error.with("id", work.to_string()));
        }
        self.drop_payload(&submit);
        if accepted {
            let news = News::Known { recipient };
            submit.mailbox.push(Letter { work, news });
        } else {
            let latecomers = self.clients.latecomers.entry(work).or_default();
            latecomers.push(submit.mailbox);
        }
    }

    fn hand_over(&mut self, submit: Submit) {
        let work = submit.submission.id;
        if self.clients.sends.contains_key(&work) {
            let text = format!("a message {work} is under way already");
            let error = ErrorBody::new(ErrorCode::InvalidRequest, text);
            return self.refuse(submit, error);
        }
        let Submit {
            submission,
            detach,
            mailbox,
            ..
        } = submit;
        let listener = if detach {
            Listener::Detaching(Rc::clone(&mailbox))
        } else {
            Listener::Client(Rc::clone(&mailbox))
        };
        let send = Sent {
            listener,
            volatile: submission.volatile,
            delivered: 0,
            ended: !submission.respond,
        };
        self.clients.sends.insert(work, send);
        if let Err(error) = self.mesh.submit(self.now, submission) {
            // The core has seen to the payload.
            self.clients.sends.remove(&work);
            self.not_taken(work, Some(&mailbox), &error.0);
        }
    }

    /// A message that is not the core's yet is not taken.
    fn refuse(&mut self, submit: Submit, error: ErrorBody) {
        self.drop_payload(&submit);
        let work = submit.submission.id;
        let news = News::Refused(error);
        submit.mailbox.push(Letter { work, news });
    }

    fn drop_payload(&mut self, submit: &Submit) {
        if let Payload::Stored { entry, .. } = &submit.submission.payload {
            self.store.remove(*entry);
        }
    }

    /// `first`: who sent it, unless that client is gone.
    fn not_taken(&mut self, work: MessageId, first: Option<&Rc<Mailbox>>, error: &ErrorBody) {
        self.keeper.abandon(work);
        let latecomers = self.clients.latecomers.remove(&work).unwrap_or_default();
        for mailbox in latecomers.iter().chain(first) {
            let news = News::Refused(error.clone());
            mailbox.push(Letter { work, news });
        }
    }

    /// Something changed about what the keeper has of a work.
    pub(super) fn kept(&mut self, work: MessageId, result: Result<(), ErrorBody>) {
        match result {
            Ok(()) if self.keeper.has_head(work) => {
                if let Some(submit) = self.clients.unwritten.remove(&work) {
                    self.hand_over(submit);
                }
            }
            Ok(()) => {}
            Err(error) => {
                if let Some(submit) = self.clients.unwritten.remove(&work) {
                    self.drop_payload(&submit);
                    self.not_taken(work, Some(&submit.mailbox), &error);
                }
            }
        }
        self.forget(work);
    }

    /// Lets the core forget the responses that are safe with the keeper or their client.
    pub(super) fn forget(&mut self, work: MessageId) {
        if let Some(serial) = self.keeper.to_forget(work, &self.store) {
            self.mesh.consumed(self.now, work, serial);
        }
        self.keeper.tidy(work);
    }

    pub(super) fn accepted(&mut self, work: MessageId, recipient: NodeId) {
        self.keeper.accepted(work, &recipient);
        for mailbox in self.clients.latecomers.remove(&work).unwrap_or_default() {
            let recipient = Some(recipient.clone());
            let news = News::Known { recipient };
            mailbox.push(Letter { work, news });
        }
        let Some(send) = self.clients.sends.get_mut(&work) else {
            return;
        };
        let news = News::Accepted { recipient };
        let mut over = send.ended;
        match &send.listener {
            Listener::Client(mailbox) => mailbox.push(Letter { work, news }),
            Listener::Detaching(mailbox) => {
                mailbox.push(Letter { work, news });
                over = true;
            }
            Listener::Gone => {}
        }
        if over {
            self.clients.sends.remove(&work);
        }
    }

    /// A message is not on the disk. Nothing of it is remembered, so that it can be sent again with
    /// the same key.
    pub(super) fn not_accepted(&mut self, work: MessageId, reason: ErrorBody) {
        let first = match self.clients.sends.remove(&work).map(|send| send.listener) {
            Some(Listener::Client(mailbox) | Listener::Detaching(mailbox)) => Some(mailbox),
            Some(Listener::Gone) | None => None,
        };
        self.not_taken(work, first.as_ref(), &reason);
    }

    pub(super) fn deliver(&mut self, work: MessageId, response: Response) {
        let (serial, ended) = (response.serial, response.eof.is_some());
        if let Some(error) = response.eof.as_ref().and_then(|eof| eof.error.clone())
            && self.keeper.is_unaccepted(work)
        {
            // Its last response takes the place of its acceptance, also when its client is gone.
            self.not_accepted(work, error);
            return self.mesh.consumed(self.now, work, serial);
        }
        let send = self.clients.sends.get_mut(&work);
        let volatile = send.as_ref().is_some_and(|send| send.volatile);
        if !volatile {
            self.keeper.take(work, &response);
        }
        if let Some(send) = send {
            send.delivered = serial;
            send.ended = ended;
            match &send.listener {
                Listener::Client(mailbox) | Listener::Detaching(mailbox) => {
                    let news = News::Response(response);
                    mailbox.push(Letter { work, news });
                }
                Listener::Gone => self.consumed(work, serial),
            }
        }
        if !volatile {
            self.forget(work);
        }
    }

    /// A client has a response, and those before it.
    pub(super) fn consumed(&mut self, work: MessageId, serial: u64) {
        let send = self.clients.sends.get(&work);
        let volatile = send.is_some_and(|send| send.volatile);
        if send.is_some_and(|send| send.ended && serial >= send.delivered) {
            self.clients.sends.remove(&work);
        }
        if !volatile {
            self.keeper.client_has(work, serial);
            self.forget(work);
        } else if serial > 0 {
            self.mesh.consumed(self.now, work, serial);
        }
    }

    /// The client with this mailbox is gone before the end of this message.
    pub(super) fn client_gone(&mut self, work: MessageId, client: &Rc<Mailbox>) {
        if let Some(latecomers) = self.clients.latecomers.get_mut(&work) {
            latecomers.retain(|mailbox| !Rc::ptr_eq(mailbox, client));
        }
        if let Some(submit) = self.clients.unwritten.get_mut(&work)
            && Rc::ptr_eq(&submit.mailbox, client)
        {
            // It may come again with the same key.
            submit.detach = true;
            self.keeper.client_gone(work);
            return;
        }
        let Some(send) = self.clients.sends.get_mut(&work) else {
            // It was never accepted, so nothing was promised.
            for held in self.clients.held.values_mut() {
                held.retain(|submit| submit.submission.id != work);
            }
            return;
        };
        let (Listener::Client(mailbox), delivered) = (&send.listener, send.delivered) else {
            // The acceptance was not read; what the message does is not its client's business.
            return;
        };
        if !Rc::ptr_eq(mailbox, client) {
            return;
        }
        if send.volatile {
            send.listener = Listener::Gone;
            self.consumed(work, delivered);
        } else {
            self.clients.sends.remove(&work);
            self.keeper.client_gone(work);
            self.forget(work);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::path::Path;
    use std::time::Duration;

    use bytes::Bytes;
    use receptor_mesh::{Output, Submission};
    use receptor_proto::Directive;
    use receptor_proto::packet::Content;
    use tokio::sync::{Notify, mpsc};

    use super::super::{HostLink, Input};
    use super::*;
    use crate::config::Settings;
    use crate::results::Keeper;
    use crate::spooler::Store;
    use crate::systemd::Notifier;
    use crate::worker::Admission;

    const WORK: MessageId = MessageId::from_u128(7);
    const LIFETIME: Duration = Duration::from_secs(60);

    /// When the first client leaves.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Leaves {
        Never,
        BeforeTheKeyIsWritten,
        BeforeTheMessageIsWritten,
    }

    /// What becomes of the message.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Outcome {
        Accepted,
        KeyNotWritten,
        MessageNotWritten,
        NotWrittenAfterItsEnd,
    }

    fn failure() -> ErrorBody {
        ErrorBody::new(ErrorCode::Internal, "the disk fails")
    }

    /// An engine whose turns are the test's.
    fn engine(dir: &Path) -> Engine {
        let settings = Settings::builtin();
        let config = receptor_mesh::Config::new("here".parse().unwrap(), 1, 1);
        let (store, recovered) = Store::open(dir, &settings.spool).unwrap();
        let settings = Rc::new(RefCell::new(settings));
        let keeper = Keeper::open(dir, Rc::clone(&settings), store.clone()).unwrap();
        let host = HostLink {
            commands: mpsc::channel(1).0,
            reports: mpsc::channel(1).1,
            admission: Admission::default(),
            left: Vec::new(),
        };
        let config = (config, None);
        let made = Engine::new(config, store, recovered, keeper, Notifier, settings, host);
        made.unwrap().0
    }

    fn mailbox() -> Rc<Mailbox> {
        Mailbox::new(Rc::new(Notify::new()))
    }

    fn send(mailbox: &Rc<Mailbox>, detach: bool) -> Submit {
        Submit {
            submission: Submission {
                id: WORK,
                recipient: Recipient::Node("away".parse().unwrap()),
                directive: Directive::new("a:b").unwrap(),
                content: Content::Bytes,
                payload: Payload::Inline(Bytes::new()),
                volatile: false,
                respond: true,
                expiry: LIFETIME,
                repeatable: true,
            },
            wait: true,
            detach,
            digest: Some("the same".to_owned()),
            quiet: None,
            mailbox: Rc::clone(mailbox),
        }
    }

    /// Waits until the keeper has written the key.
    async fn key_written(engine: &mut Engine) {
        let input = engine.inbox.recv().await.unwrap();
        assert!(matches!(input, Input::Kept(WORK, Ok(()))));
        engine.handle(input);
    }

    /// Does what the core wants, with a store of which every write ends so.
    fn write(engine: &mut Engine, result: &Result<(), ErrorBody>) {
        while let Some(output) = engine.mesh.poll_output() {
            match (output, result) {
                (Output::Persist { token, .. }, Ok(())) => {
                    engine.mesh.handle_persisted(engine.now, token);
                }
                (Output::Persist { token, .. }, Err(error)) => {
                    let error = error.clone();
                    engine.mesh.handle_persist_failed(engine.now, token, error);
                }
                (output, _) => engine.act(output),
            }
        }
    }

    fn told(mailbox: &Mailbox) -> Vec<News> {
        std::iter::from_fn(|| mailbox.pop().map(|letter| letter.news)).collect()
    }

    async fn check_latecomers(leaves: Leaves, outcome: Outcome, detach: bool) {
        let case = format!("{leaves:?} {outcome:?} {detach}");
        let dir = tempfile::tempdir().unwrap();
        let mut engine = engine(dir.path());
        let [first, early, late] = [(); 3].map(|()| mailbox());
        engine.submit(send(&first, detach));
        engine.submit(send(&early, false));
        if leaves == Leaves::BeforeTheKeyIsWritten {
            engine.client_gone(WORK, &first);
        }
        if outcome == Outcome::KeyNotWritten {
            engine.submit(send(&late, true));
            engine.kept(WORK, Err(failure()));
        } else {
            key_written(&mut engine).await;
            if leaves == Leaves::BeforeTheMessageIsWritten {
                engine.client_gone(WORK, &first);
            }
            engine.submit(send(&late, true));
            if outcome == Outcome::NotWrittenAfterItsEnd {
                engine.now = engine.now + LIFETIME;
                engine.mesh.handle_timeout(engine.now);
            }
            let is_written = outcome == Outcome::Accepted;
            let result = if is_written { Ok(()) } else { Err(failure()) };
            write(&mut engine, &result);
        }
        for mailbox in [&early, &late] {
            let told = told(mailbox);
            let is_it = match &told[..] {
                [News::Known { .. }] => outcome == Outcome::Accepted,
                [News::Refused(_)] => outcome != Outcome::Accepted,
                _ => false,
            };
            assert!(is_it, "{case}: {told:?}");
        }
        if leaves == Leaves::Never {
            let told = told(&first);
            let is_it = match &told[..] {
                [News::Accepted { .. }] => outcome == Outcome::Accepted,
                [News::Refused(_)] => outcome != Outcome::Accepted,
                _ => false,
            };
            assert!(is_it, "{case}: {told:?}");
        }
        if outcome != Outcome::Accepted {
            // With the same key it can be sent again.
            let again = mailbox();
            engine.submit(send(&again, false));
            key_written(&mut engine).await;
            write(&mut engine, &Ok(()));
            let told = told(&again);
            let is_accepted = matches!(told[..], [News::Accepted { .. }]);
            assert!(is_accepted, "{case}: {told:?}");
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn who_came_late_with_a_key_is_told_once_also_when_the_first_client_has_left() {
        let all = async {
            for leaves in [
                Leaves::Never,
                Leaves::BeforeTheKeyIsWritten,
                Leaves::BeforeTheMessageIsWritten,
            ] {
                for outcome in [
                    Outcome::Accepted,
                    Outcome::KeyNotWritten,
                    Outcome::MessageNotWritten,
                    Outcome::NotWrittenAfterItsEnd,
                ] {
                    for detach in [false, true] {
                        check_latecomers(leaves, outcome, detach).await;
                    }
                }
            }
        };
        tokio::task::LocalSet::new().run_until(all).await;
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_message_with_a_key_that_is_released_before_it_is_written_is_sent_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let test = async {
            let mut engine = engine(dir.path());
            let [first, late] = [(); 2].map(|()| mailbox());
            engine.submit(send(&first, false));
            engine.submit(send(&late, false));
            engine.release(&WORK.into()).unwrap();
            key_written(&mut engine).await;
            write(&mut engine, &Ok(()));
            let [first, late] = [told(&first), told(&late)];
            assert!(matches!(first[..], [News::Accepted { .. }]), "{first:?}");
            assert!(matches!(late[..], [News::Known { .. }]), "{late:?}");
        };
        tokio::task::LocalSet::new().run_until(test).await;
    }
}
