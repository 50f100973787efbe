//! What clients ask about works and messages, and what they want done about them.
//!
//! Puts together what the core, the keeper and the table of works know. Owns the last word of the
//! plugins about works that run here, as many as there are of them.

use std::collections::HashSet;

use bytes::Bytes;
use receptor_mesh::{EntryId, Reachability, WaitingKind, WaitingView, WorkView};
use receptor_proto::control::{
    SpoolEntry, SpoolKind, SpoolReason, SpoolReply, WorkRole, WorkState, WorkStatus,
};
use receptor_proto::packet::{self, Eof, Message, MessageKind};
use receptor_proto::{ErrorBody, ErrorCode, IdPrefix, MessageId, NodeId};
use tokio::sync::oneshot;

use super::Engine;
use crate::by_id::ById;
use crate::results::{DeadLetter, Ending, LetterBody, not_found, now_ms, resolve};
use crate::spooler::Answer;

/// Messages that are looked at for one answer; a line holds a few thousand.
const SPOOL_MAX: usize = 10_000;
/// Works that are looked at for one answer.
const WORKS_MAX: usize = 10_000;
/// Bytes of what a plugin says of a work that are remembered.
const MESSAGE_MAX: usize = 256;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Known {
    told: ById<Told>,
}

/// What a plugin said last of a work.
#[derive(Debug)]
struct Told {
    message: Option<String>,
    progress: Option<(u64, u64)>,
}

impl Engine {
    pub(super) fn cancel(
        &mut self,
        prefix: &IdPrefix,
        reason: packet::CancelReason,
    ) -> Result<MessageId, ErrorBody> {
        let work = self.find_work(prefix)?;
        if self.mesh.cancel(self.now, work, reason).is_ok() {
            return Ok(work);
        }
        if self.mesh.work(work).is_some() {
            self.cancel_work(work, reason);
            return Ok(work);
        }
        let known = self.keeper.knows(work) || self.keeper.history().knows(work);
        let text = if known {
            format!("the work {work} has ended already")
        } else {
            format!(
                "no message {work} was sent from here and is under way, and no such work runs here"
            )
        };
        Err(ErrorBody::new(ErrorCode::NotFound, text))
    }

    /// What a client was told must not be undone by a crash.
    pub(super) fn answer_when_durable(
        &mut self,
        result: Result<MessageId, ErrorBody>,
        reply: oneshot::Sender<Result<MessageId, ErrorBody>>,
    ) {
        match result {
            Ok(work) => self.answers.push(Answer { work, reply }),
            // A client that has gone wants no answer.
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    pub(super) fn release(&mut self, prefix: &IdPrefix) -> Result<MessageId, ErrorBody> {
        let work = resolve(prefix, self.keeper.ids().into_iter())?;
        if !self.keeper.release(work) {
            return Err(not_found(prefix));
        }
        self.forget(work);
        Ok(work)
    }

    pub(super) fn spool_drop(&mut self, prefix: &IdPrefix) -> Result<MessageId, ErrorBody> {
        let (waiting, _) = self.mesh.waiting(self.now, usize::MAX);
        let work = self.find_waiting(prefix, &waiting)?;
        let view = waiting.iter().find(|view| view.work == work);
        if view.is_none() && !self.mesh.waits_in_store(work) {
            return Err(nothing_waits(work));
        }
        if self.mesh.drop_waiting(self.now, work).is_err() {
            let text = format!(
                "of the work {work} only a word to the other node waits here: to end it, or that it ended"
            );
            return Err(ErrorBody::new(ErrorCode::Refused, text));
        }
        Ok(work)
    }

    /// The work that waits here and is meant: among those that are in memory, and those that wait
    /// in the store alone.
    fn find_waiting(
        &self,
        prefix: &IdPrefix,
        waiting: &[WaitingView],
    ) -> Result<MessageId, ErrorBody> {
        let here = waiting.iter().map(|view| view.work);
        let ids = self.keeper.ids().into_iter();
        resolve(
            prefix,
            here.chain(ids.filter(|id| self.mesh.waits_in_store(*id))),
        )
    }

    pub(super) fn spool_reply(&self, only: Option<&IdPrefix>) -> Result<SpoolReply, ErrorBody> {
        let limit = if only.is_some() {
            usize::MAX
        } else {
            SPOOL_MAX
        };
        let (mut waiting, mut total) = self.mesh.waiting(self.now, limit);
        if let Some(prefix) = only {
            let work = self.find_waiting(prefix, &waiting)?;
            waiting.retain(|view| view.work == work);
            total = waiting.len() as u64;
            if waiting.is_empty() && self.mesh.waits_in_store(work) {
                let text = format!(
                    "the message {work} waits on the disk behind many others to its recipient, and is read when it is its turn; `receptorctl work show {work}` says what is known of it"
                );
                return Err(ErrorBody::new(ErrorCode::Busy, text).with("id", work.to_string()));
            }
            if waiting.is_empty() {
                return Err(nothing_waits(work));
            }
        }
        let now = now_ms();
        let messages = waiting.into_iter().map(|view| {
            let reason = match self.mesh.reachability(&view.recipient) {
                Reachability::Unknown => SpoolReason::UnknownNode,
                Reachability::NoRoute => SpoolReason::NoRoute,
                Reachability::Reachable if view.sent => SpoolReason::NoReceipt,
                Reachability::Reachable => SpoolReason::NotSent,
            };
            let (kind, directive, serial) = match view.kind {
                WaitingKind::Request { directive } => (SpoolKind::Request, Some(directive), None),
                WaitingKind::Response { serial } => (SpoolKind::Response, None, Some(serial)),
                WaitingKind::Cancel => (SpoolKind::Cancel, None, None),
            };
            let made = (kind == SpoolKind::Request)
                .then(|| view.work.made_ms())
                .flatten();
            SpoolEntry {
                id: view.work,
                kind,
                recipient: view.recipient,
                origin: view.origin,
                directive,
                serial,
                size: view.size,
                age_ms: made.map(|made| now.saturating_sub(made)),
                expires_ms: u64::try_from(view.remaining.as_millis()).unwrap_or(u64::MAX),
                reason,
                volatile: view.volatile,
            }
        });
        Ok(SpoolReply {
            messages: messages.collect(),
            total,
            damaged: self.store.trouble().parts,
        })
    }

    pub(super) fn work_statuses(
        &self,
        only: Option<&IdPrefix>,
    ) -> Result<Vec<WorkStatus>, ErrorBody> {
        let only = only.map(|prefix| self.find_work(prefix)).transpose()?;
        let node = self.mesh.config().node.clone();
        let mut works = self
            .keeper
            .statuses(&node, only, |work| self.mesh.has_arrived(work));
        for work in works.iter_mut().filter(|work| work.ended_ms.is_none()) {
            work.cancelling = self.mesh.is_cancelled(work.id);
            work.sent = self.mesh.sent(work.id);
            work.coming = self.mesh.coming(work.id);
        }
        let retention = self.settings.borrow().spool.results_retention.as_millis();
        let retention = u64::try_from(retention).unwrap_or(u64::MAX);
        let here = match only {
            None => self.mesh.works(WORKS_MAX).0,
            Some(work) => self.mesh.work(work).into_iter().collect(),
        };
        let history = self.keeper.history();
        let recent = |work: &WorkStatus| work.ended_ms.is_none_or(|ended| ended <= retention);
        // One that is remembered may run again.
        let runs = |view: &WorkView| !view.ended || !history.knows(view.work);
        let running: Vec<_> = here.into_iter().filter(runs).collect();
        let again: HashSet<_> = running.iter().map(|view| view.work).collect();
        let ended = history.statuses(&node, only).into_iter();
        works.extend(ended.filter(|work| recent(work) && !again.contains(&work.id)));
        works.extend(
            running
                .into_iter()
                .map(|view| self.status_here(&node, view)),
        );
        if let Some(work) = only
            && works.is_empty()
        {
            return Err(not_found(&work.into()));
        }
        works.sort_by_key(|work| std::cmp::Reverse((work.age_ms, work.id)));
        Ok(works)
    }

    fn status_here(&self, node: &NodeId, view: WorkView) -> WorkStatus {
        let told = self.known.told.get(&view.work);
        WorkStatus {
            id: view.work,
            role: WorkRole::Here,
            state: if view.running {
                WorkState::Running
            } else {
                WorkState::Queued
            },
            cancelling: view.cancelled,
            directive: Some(view.directive),
            sender: Some(view.sender),
            recipient: Some(node.clone()),
            age_ms: u64::try_from(self.now.since(view.since).as_millis()).unwrap_or(u64::MAX),
            ended_ms: None,
            message: told.and_then(|told| told.message.clone()),
            progress: told.and_then(|told| told.progress),
            sent: None,
            coming: None,
            code: None,
            error: None,
            responses: view.responses,
            kept_bytes: 0,
            dropped: false,
        }
    }

    /// Any work that is known here.
    fn find_work(&self, prefix: &IdPrefix) -> Result<MessageId, ErrorBody> {
        if let Some(whole) = prefix.whole() {
            return Ok(whole);
        }
        let (here, _) = self.mesh.works(usize::MAX);
        let ids = self.keeper.ids().into_iter();
        let ids = ids.chain(here.into_iter().map(|view| view.work));
        resolve(prefix, ids.chain(self.keeper.history().ids()))
    }

    /// A plugin says how it goes.
    pub(super) fn told_of_work(
        &mut self,
        work: MessageId,
        message: Option<String>,
        progress: Option<(u64, u64)>,
    ) {
        if self.mesh.work(work).is_none() {
            return;
        }
        let told = self.known.told.entry(work).or_insert(Told {
            message: None,
            progress: None,
        });
        if let Some(mut message) = message {
            let mut end = message.len().min(MESSAGE_MAX);
            while !message.is_char_boundary(end) {
                end -= 1;
            }
            message.truncate(end);
            told.message = Some(message);
        }
        told.progress = progress.or(told.progress);
    }

    /// What a plugin said of a work that is over is of no use.
    pub(super) fn forget_told(&mut self, work: MessageId) {
        self.known.told.remove(&work);
    }

    /// A work here has ended, or its sender says that it had ended otherwise.
    pub(super) fn work_ended(
        &mut self,
        work: MessageId,
        sender: NodeId,
        responses: u64,
        eof: &Eof,
    ) {
        let now = now_ms();
        let (directive, since_ms) = match self.mesh.work(work) {
            Some(view) => {
                let since_ms = self.since_ms(&view);
                (Some(view.directive), since_ms)
            }
            None => self.keeper.history().begun(work).unwrap_or((None, now)),
        };
        self.keeper.history().add(Ending {
            id: work,
            role: WorkRole::Here,
            directive,
            peer: Some(sender),
            since_ms,
            at_ms: now,
            responses,
            digest: None,
            end: eof.into(),
        });
    }

    /// Since when a work is here, by the wall clock.
    fn since_ms(&self, view: &WorkView) -> u64 {
        let age = self.now.since(view.since).as_millis();
        now_ms().saturating_sub(u64::try_from(age).unwrap_or(u64::MAX))
    }

    /// Keeps a message that was given up. The core is told when it is, and gives out no more than
    /// it may have unanswered.
    pub(super) fn dead_letter(
        &mut self,
        entry: EntryId,
        (origin, recipient): (Option<NodeId>, NodeId),
        message: Message,
        reason: ErrorBody,
    ) {
        let MessageKind::Request { directive, respond } = message.kind else {
            return;
        };
        let letter = DeadLetter {
            id: message.work,
            directive,
            recipient,
            origin,
            content: message.content,
            size: message.size,
            respond,
            at_ms: now_ms(),
            reason,
        };
        let letters = self.keeper.letters();
        if letter.is_apart() {
            letters.keep(entry, letter, LetterBody::Apart(self.store.path(entry)));
        } else if message.body.len() as u64 == message.size {
            letters.keep(entry, letter, LetterBody::Inline(message.body));
        } else {
            let length = usize::try_from(letter.size).unwrap_or(usize::MAX);
            self.letters.insert(entry, letter);
            self.store.fetch(entry, 0, length);
        }
    }

    pub(super) fn letter_read(&mut self, entry: EntryId, result: Result<Bytes, ErrorBody>) {
        let Some(letter) = self.letters.remove(&entry) else {
            return;
        };
        match result {
            Ok(body) => self
                .keeper
                .letters()
                .keep(entry, letter, LetterBody::Inline(body)),
            Err(error) => self.mesh.handle_dead_letter(self.now, entry, Err(error)),
        }
    }
}

fn nothing_waits(work: MessageId) -> ErrorBody {
    let text = format!("nothing waits here of a work {work}");
    ErrorBody::new(ErrorCode::NotFound, text)
}
