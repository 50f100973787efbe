//! What came of works, and of messages that were given up: `results`, `works`, `dead-letters`.
//!
//! Owns streaming what is kept at the pace of its reader, and that a reply fits into its line.

use std::rc::Rc;
use std::time::Duration;

use receptor_mesh::{Payload, Recipient, Submission};
use receptor_proto::control::{
    DeadLetterCommand, DeadLettersReply, LINE_MAX, RetryReply, SendReply, WorkStatus, WorksReply,
    keyed_id,
};
use receptor_proto::{ErrorBody, ErrorCode, IdPrefix};
use receptor_spool::{Sums, verify_payload};
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::sync::Notify;

use super::Context;
use super::outlet::{Outlet, error_line, tagged};
use super::session::Failure;
use crate::engine::{EngineGone, Input, Mailbox, News, Query, Submit};
use crate::results::{Stop, resolve};

/// Bytes of a list in a reply: the line has room for the rest.
const LIST_MAX: usize = LINE_MAX - 4096;

/// Streams the responses of a work, from the first to the last, or without `follow` to the last
/// that is here.
pub(super) async fn stream(
    context: &Context,
    outlet: &Rc<Outlet>,
    tag: Option<&RawValue>,
    prefix: &IdPrefix,
    follow: bool,
) -> Result<(), EngineGone> {
    let found = resolve(prefix, context.keeper.ids().into_iter());
    let reader = found.and_then(|id| Ok((id, context.keeper.reader(id)?)));
    let (id, mut reader) = match reader {
        Ok(found) => found,
        Err(error) => {
            outlet.line(error_line(tag, error)).await;
            return Ok(());
        }
    };
    loop {
        match reader.next(follow).await {
            Ok(items) => {
                for item in items {
                    let last = item.eof.is_some();
                    outlet.kept(tag, id, item).await;
                    if last {
                        return Ok(());
                    }
                }
            }
            Err(Stop::Pending(state)) => {
                // The core knows more of a work without responses.
                let only = Some(id.into());
                let works = |reply| Input::Query(Query::Works(only, reply));
                let works = context.engine.ask(works).await?;
                let now = works
                    .ok()
                    .and_then(|works| works.first().map(|work| work.state));
                let state = now.filter(|now| !now.is_final()).unwrap_or(state);
                let reply = SendReply::Pending {
                    id,
                    state,
                    eof: true,
                };
                outlet.line(tagged(tag, &reply)).await;
                return Ok(());
            }
            Err(Stop::Failed(error)) => {
                outlet.line(error_line(tag, error)).await;
                return Ok(());
            }
        }
    }
}

/// The works, without what would make a list long: that is for who asks for one.
pub(super) fn works_reply(mut works: Vec<WorkStatus>, brief: bool) -> WorksReply {
    let total = works.len() as u64;
    if brief {
        for work in &mut works {
            if let Some(error) = &mut work.error {
                error.detail.clear();
            }
        }
    }
    keep_last(&mut works);
    WorksReply { works, total }
}

pub(super) fn letters_reply(context: &Context) -> DeadLettersReply {
    let mut letters = context.keeper.letters().statuses();
    let total = letters.len() as u64;
    keep_last(&mut letters);
    DeadLettersReply { letters, total }
}

/// Keeps as many of the first as fit into a line.
pub(super) fn keep_first<T: Serialize>(list: &mut Vec<T>) {
    let fit = fitting(list.iter());
    list.truncate(fit);
}

/// Keeps as many of the last as fit into a line.
fn keep_last<T: Serialize>(list: &mut Vec<T>) {
    let fit = fitting(list.iter().rev());
    list.drain(..list.len() - fit);
}

fn fitting<'a, T: Serialize + 'a>(list: impl Iterator<Item = &'a T>) -> usize {
    let mut bytes = 0;
    list.take_while(|item| {
        bytes += serde_json::to_vec(item).map_or(0, |json| json.len() + 1);
        bytes <= LIST_MAX
    })
    .count()
}

/// Sends a message that was given up once more, as a new one, and forgets it when that is
/// accepted. The new one's id comes from the old one's, as from a key: should the letter be there
/// still, because this node went down in between, another try sends nothing twice.
pub(super) async fn retry(
    context: &Context,
    command: &DeadLetterCommand,
) -> Result<RetryReply, Failure> {
    if context.draining.get() {
        let text = "this node is about to stop and takes no message any more";
        return Err(ErrorBody::new(ErrorCode::Draining, text).into());
    }
    let letters = context.keeper.letters();
    let letter = letters.find(&command.id)?;
    if let Some(origin) = &letter.origin {
        let id = letter.id;
        let text =
            format!("{id} was in custody here for {origin}: only there can it be sent again");
        return Err(ErrorBody::new(ErrorCode::Refused, text).into());
    }
    let lost = |error: std::io::Error| {
        let text = format!("the payload of {} cannot be read: {error}", letter.id);
        Failure::from(ErrorBody::new(ErrorCode::Internal, text))
    };
    let payload = if letter.is_apart() {
        let entry = context.engine.ask(Input::NewEntry).await?;
        // The store takes a name away; the letter must keep its own until the end.
        let from = letters.payload_path(letter.id);
        let spare = from.with_extension("again");
        let _ = std::fs::remove_file(&spare);
        std::fs::hard_link(&from, &spare).map_err(lost)?;
        let read = spare.clone();
        let sums = tokio::task::spawn_blocking(move || {
            verify_payload(&from)?;
            Sums::of_file(&read)
        });
        let sums = sums.await.map_err(std::io::Error::other).map_err(lost)?;
        let sums = sums.map_err(lost)?;
        context.store.adopt(entry, spare, letter.size, sums)?;
        Payload::Stored {
            entry,
            size: letter.size,
        }
    } else {
        Payload::Inline(letters.body(&letter).await.map_err(lost)?)
    };
    let default_expiry = context.settings.borrow().spool.default_expiry;
    let again = format!("dead-letter {}", letter.id);
    let submission = Submission {
        id: keyed_id(&context.node, &again),
        recipient: Recipient::Node(letter.recipient.clone()),
        directive: letter.directive.clone(),
        content: letter.content,
        payload,
        volatile: false,
        respond: letter.respond,
        expiry: command
            .expires_ms
            .map_or(default_expiry, Duration::from_millis),
        repeatable: true,
    };
    let id = submission.id;
    let arrived = Rc::new(Notify::new());
    let mailbox = Mailbox::new(Rc::clone(&arrived));
    let submit = Submit {
        quiet: None,
        submission,
        wait: true,
        detach: true,
        digest: Some(again),
        mailbox: Rc::clone(&mailbox),
    };
    context.engine.send(Input::Submit(vec![submit])).await?;
    loop {
        let Some(letter_back) = mailbox.pop() else {
            arrived.notified().await;
            continue;
        };
        let recipient = match letter_back.news {
            News::Accepted { recipient } => recipient,
            News::Known { recipient } => recipient.unwrap_or_else(|| letter.recipient.clone()),
            News::Refused(error) | News::RefusedQuiet(_, error) => return Err(error.into()),
            // None comes before the word whether it is accepted.
            News::Response(_) => continue,
        };
        letters.forget(letter.id);
        return Ok(RetryReply {
            retried: letter.id,
            id,
            recipient,
        });
    }
}
