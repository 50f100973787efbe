//! What a client may do: who it is, and whose works it may end.
//!
//! Owns the answer to «may this client give this command now», which a reload can change at any
//! time, its log line, and the memory of who sent what. Rules are the [policy](crate::policy)'s.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use receptor_proto::{ErrorBody, ErrorCode, IdPrefix, MessageId};

use super::Context;
use super::command::Request;
use crate::by_id::ById;
use crate::log::id;
use crate::policy::log::Denials;
use crate::policy::{Person, Right, Rules};

/// Works of which it is remembered who sent them: as many ended ones as a node remembers.
const OWNERS_MAX: usize = 10_000;

/// What the sessions together remember.
#[derive(Debug, Default)]
pub(crate) struct Rights {
    denials: RefCell<Denials>,
    owners: RefCell<Owners>,
}

/// Who sent works, of users that may not end those of others. Forgotten with the daemon: afterwards
/// ending them takes the right to administer.
#[derive(Debug, Default)]
struct Owners {
    by_work: ById<u32>,
    order: VecDeque<MessageId>,
}

impl Owners {
    fn note(&mut self, work: MessageId, uid: u32) {
        // A key that was used before names the work of whoever used it first.
        if self.by_work.contains_key(&work) {
            return;
        }
        if self.order.len() >= OWNERS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.by_work.remove(&oldest);
        }
        self.by_work.insert(work, uid);
        self.order.push_back(work);
    }

    /// The work of this user that an id, or its beginning, can only mean among what is remembered.
    fn find(&self, wanted: &IdPrefix, uid: u32) -> Option<MessageId> {
        let found = match wanted.whole() {
            Some(whole) => whole,
            None => {
                let mut known = self.order.iter().filter(|work| wanted.matches(**work));
                let first = *known.next()?;
                known.next().is_none().then_some(first)?
            }
        };
        (self.by_work.get(&found) == Some(&uid)).then_some(found)
    }
}

/// One client.
#[derive(Debug)]
pub(super) struct Visitor {
    person: Person,
    /// The user that the daemon runs as.
    own: u32,
    /// The rules that were asked last, and what they said.
    known: RefCell<Option<Arc<Rules>>>,
    right: Cell<Right>,
}

impl Visitor {
    pub(super) fn new(person: Person) -> Self {
        Self {
            person,
            own: nix::unistd::geteuid().as_raw(),
            known: RefCell::new(None),
            right: Cell::new(Right::Nothing),
        }
    }

    /// What it may do by the rules that are in force now.
    pub(super) fn right(&self, context: &Context) -> Right {
        let settings = context.settings.borrow();
        let mut known = self.known.borrow_mut();
        if known
            .as_ref()
            .is_none_or(|known| !Arc::ptr_eq(known, &settings.rules))
        {
            let answer = settings.rules.right(&self.person, self.own);
            self.right.set(answer.says);
            *known = Some(Arc::clone(&settings.rules));
        }
        self.right.get()
    }

    /// Whether it may give a command that takes this right.
    pub(super) fn check(
        &self,
        context: &Context,
        command: &str,
        needs: Right,
    ) -> Result<(), ErrorBody> {
        let has = self.right(context);
        if has >= needs {
            return Ok(());
        }
        let uid = self.person.uid;
        let what = format!("control {uid} {command}");
        let more = context
            .rights
            .denials
            .borrow_mut()
            .note(what, Instant::now());
        if let Some(more) = more {
            let settings = context.settings.borrow();
            let because = settings.rules.right(&self.person, self.own).because;
            // User and process are the session's, and stand in each of its lines.
            tracing::warn!(message_id = id::CLIENT_REFUSED, command, %has, %needs, more, "command denied: {because}");
        }
        let text = format!(
            "user {uid} has the right to {has} at {} and not to {needs}, which {command} takes",
            context.node
        );
        let error = ErrorBody::new(ErrorCode::PermissionDenied, text);
        Err(error
            .with("has", has.as_str())
            .with("needs", needs.as_str()))
    }

    /// The same for a request, which is made to be about nothing but this client's own work if that is
    /// all that it may end.
    pub(super) fn check_request(
        &self,
        context: &Context,
        command: &str,
        request: &mut Request,
    ) -> Result<(), ErrorBody> {
        if let Request::Cancel(work) | Request::Release(work) = request
            && self.right(context) == Right::Send
        {
            let owners = context.rights.owners.borrow();
            if let Some(own) = owners.find(work, self.person.uid) {
                *work = own.into();
                return Ok(());
            }
        }
        self.check(context, command, request.needs())
    }

    /// This client sends a work.
    pub(super) fn sends(&self, context: &Context, work: MessageId) {
        if self.right(context) < Right::Administer {
            let mut owners = context.rights.owners.borrow_mut();
            owners.note(work, self.person.uid);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u128) -> MessageId {
        MessageId::from_u128(n << 64 | n)
    }

    #[test]
    fn works_are_known_by_who_sent_them_first() {
        let mut owners = Owners::default();
        owners.note(id(1), 1000);
        owners.note(id(1), 1001);
        assert_eq!(owners.find(&id(1).into(), 1000), Some(id(1)));
        assert_eq!(owners.find(&id(1).into(), 1001), None);
        assert_eq!(owners.find(&id(2).into(), 1000), None);
        // Where it begins as another's does, it must be written in full.
        let begin: IdPrefix = id(1).to_string()[..12].parse().unwrap();
        assert_eq!(owners.find(&begin, 1000), Some(id(1)));
        owners.note(id(2), 1001);
        assert_eq!(owners.find(&begin, 1000), None);
    }

    #[test]
    fn no_more_than_so_many_are_remembered() {
        let mut owners = Owners::default();
        let many = OWNERS_MAX as u128 + 5;
        for n in 0..many {
            owners.note(id(n), 1000);
        }
        assert_eq!(owners.by_work.len(), OWNERS_MAX);
        assert_eq!(owners.order.len(), OWNERS_MAX);
        assert_eq!(owners.find(&id(0).into(), 1000), None);
        assert_eq!(owners.find(&id(many - 1).into(), 1000), Some(id(many - 1)));
    }
}
