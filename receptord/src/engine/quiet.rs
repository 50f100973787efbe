//! Messages that are answered only when they are refused, many at once.
//!
//! Owns what is told of them and how many of one client may wait here: their session stops reading
//! while there are [`TAKEN_MAX`], and with it the client. Such a message leaves nothing behind at this
//! node but its place in the core's flow, together with those that came with it.

use std::cell::Cell;
use std::rc::Rc;

use receptor_mesh::{Payload, Reachability, Recipient, Submission};
use receptor_proto::bundle::Bundle;
use receptor_proto::packet::Content;
use receptor_proto::{ErrorBody, ErrorCode, NodeId};
use serde_json::value::RawValue;
use tokio::sync::Notify;

use super::mailbox::{Letter, Mailbox, News};
use super::{Engine, Submit};
use crate::control::new_id;

/// Bundles of one client that are with the engine and not with the core: half a megabyte, so that the
/// client and its daemon need not wait for each other.
const TAKEN_MAX: usize = 8;

/// Tags of quiet messages: each with how many came one after the other.
type Tags = Vec<(Option<Box<RawValue>>, usize)>;

/// How many bundles of one client are on their way into the core.
#[derive(Debug, Default)]
pub(crate) struct Taking {
    count: Cell<usize>,
    fewer: Notify,
}

impl Taking {
    /// Session: waits until there is none.
    pub(crate) async fn settled(&self) {
        while self.count.get() > 0 {
            self.fewer.notified().await;
        }
    }

    /// Session: waits until there may be one more.
    pub(crate) async fn room(&self) {
        while self.count.get() >= TAKEN_MAX {
            self.fewer.notified().await;
        }
    }
}

/// Quiet messages that were sent as one.
#[derive(Debug)]
pub(crate) struct Quiet {
    tags: Tags,
    taking: Rc<Taking>,
}

impl Quiet {
    /// Counts until it is dropped: when its messages are the core's, or it was told that they are not.
    pub(crate) fn new(tags: Tags, taking: &Rc<Taking>) -> Self {
        taking.count.set(taking.count.get() + 1);
        Self {
            tags,
            taking: Rc::clone(taking),
        }
    }

    /// The tag of each message.
    pub(crate) fn tags(&self) -> impl Iterator<Item = Option<&RawValue>> {
        let tags = self.tags.iter();
        tags.flat_map(|(tag, count)| std::iter::repeat_n(tag.as_deref(), *count))
    }

    /// Those of a few of the messages, by their place.
    fn only(&self, places: &[usize]) -> Self {
        let all: Vec<_> = self.tags().collect();
        let tags = places.iter().filter_map(|place| all.get(*place));
        let tags = tags.map(|tag| (tag.map(ToOwned::to_owned), 1)).collect();
        Self::new(tags, &self.taking)
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        self.taking.count.set(self.taking.count.get() - 1);
        self.taking.fewer.notify_one();
    }
}

impl Engine {
    /// Gives quiet messages to the core.
    pub(super) fn submit_quiet(&mut self, submit: Submit) {
        let Submit {
            submission,
            wait,
            quiet: Some(quiet),
            mailbox,
            ..
        } = submit
        else {
            return;
        };
        if !wait
            && let Recipient::Node(node) = &submission.recipient
            && self.mesh.reachability(node) == Reachability::Unknown
        {
            let text = format!("no node {node} was ever heard of here");
            let error = ErrorBody::new(ErrorCode::NoSuchNode, text);
            return refuse(&mailbox, quiet, error);
        }
        if submission.content == Content::Bundle
            && let Recipient::Node(node) = &submission.recipient
            && !self.mesh.takes_bundles(node)
        {
            let node = node.clone();
            return self.submit_parts(&node, submission, &quiet, &mailbox);
        }
        if let Err(error) = self.mesh.submit(self.now, submission) {
            refuse(&mailbox, quiet, error.0);
        }
    }

    /// The same for a recipient that does not know bundles.
    fn submit_parts(
        &mut self,
        node: &NodeId,
        bundle: Submission,
        quiet: &Quiet,
        mailbox: &Mailbox,
    ) {
        let Payload::Inline(body) = bundle.payload else {
            return;
        };
        let Ok(parts) = Bundle::decode(body) else {
            return;
        };
        let content = parts.content();
        let mut refused = Vec::new();
        let mut why = None;
        for (place, part) in parts.enumerate() {
            let submission = Submission {
                id: new_id(),
                recipient: Recipient::Node(node.clone()),
                directive: bundle.directive.clone(),
                content,
                payload: Payload::Inline(part),
                volatile: true,
                respond: false,
                expiry: bundle.expiry,
                repeatable: false,
            };
            if let Err(error) = self.mesh.submit(self.now, submission) {
                refused.push(place);
                why = Some(error.0);
            }
        }
        if let Some(why) = why {
            refuse(mailbox, quiet.only(&refused), why);
        }
    }
}

fn refuse(mailbox: &Mailbox, quiet: Quiet, error: ErrorBody) {
    mailbox.push(Letter {
        // Quiet messages are told apart by their tags alone.
        work: receptor_proto::MessageId::from_u128(0),
        news: News::RefusedQuiet(Box::new(quiet), error),
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(text: &str) -> Option<Box<RawValue>> {
        Some(RawValue::from_string(text.to_owned()).unwrap())
    }

    #[test]
    fn every_message_has_its_tag() {
        let taking = Rc::default();
        let quiet = Quiet::new(vec![(tag("1"), 2), (None, 1), (tag("\"x\""), 1)], &taking);
        let text = |quiet: &Quiet| {
            let tags = quiet.tags().map(|tag| tag.map(|tag| tag.get().to_owned()));
            tags.map(Option::unwrap_or_default).collect::<Vec<_>>()
        };
        assert_eq!(text(&quiet), ["1", "1", "", "\"x\""]);
        assert_eq!(text(&quiet.only(&[1, 3])), ["1", "\"x\""]);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_client_waits_for_its_bundles() {
        let taking = Rc::default();
        let mut all: Vec<_> = (0..TAKEN_MAX)
            .map(|_| Quiet::new(Vec::new(), &taking))
            .collect();
        let wait = taking.room();
        tokio::pin!(wait);
        assert!(futures_now(wait.as_mut()).await.is_none());
        all.pop();
        assert!(futures_now(wait).await.is_some());
    }

    /// What a future has come to when it is asked once.
    async fn futures_now<F: Future>(future: F) -> Option<F::Output> {
        tokio::select! {
            biased;
            output = future => Some(output),
            () = std::future::ready(()) => None,
        }
    }
}
