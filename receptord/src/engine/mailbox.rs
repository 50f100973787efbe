//! What the engine has for one client: acceptances and responses, in order.
//!
//! Owns the letters that the client's session has not taken yet. The engine adds without ever
//! waiting. What may be here is bounded by the core, which holds back each work's responses
//! ([`receptor_mesh::Limits::inbox_bytes`]) until they are reported as consumed, and by the
//! number of sends that a session allows itself.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use receptor_mesh::Payload;
use receptor_proto::packet::{Content, Eof};
use receptor_proto::{ErrorBody, MessageId, NodeId};
use tokio::sync::Notify;

use super::quiet::Quiet;

/// Bytes of letters that may wait for one client, over all of its works. Each work alone is
/// held back far below; a client that lets this many pile up loses its connection.
const WEIGHT_MAX: usize = 64 << 20;

/// Something for a client.
#[derive(Debug)]
pub(crate) struct Letter {
    /// The message that it is about.
    pub(crate) work: MessageId,
    /// What it is.
    pub(crate) news: News,
}

/// What a [`Letter`] says.
#[derive(Debug)]
pub(crate) enum News {
    /// The message is kept.
    Accepted {
        /// To whom it goes.
        recipient: NodeId,
    },
    /// The message was accepted before, when it was sent with the same key: what came of it is with
    /// the keeper.
    Known {
        /// To whom it goes.
        recipient: Option<NodeId>,
    },
    /// The message was not taken; nothing follows.
    Refused(ErrorBody),
    /// Quiet messages were not taken.
    RefusedQuiet(Box<Quiet>, ErrorBody),
    /// A response.
    Response(Response),
}

/// One response.
#[derive(Debug, Clone)]
pub(crate) struct Response {
    /// Who answers.
    pub(crate) sender: NodeId,
    /// 1, 2, 3 …
    pub(crate) serial: u64,
    /// What the payload is.
    pub(crate) content: Content,
    /// The payload's name.
    pub(crate) name: Option<String>,
    /// The payload; a stored one stays until this is consumed.
    pub(crate) payload: Payload,
    /// On the last one.
    pub(crate) eof: Option<Eof>,
}

impl Letter {
    /// Bytes that it takes in memory, about.
    pub(crate) fn weight(&self) -> usize {
        const ENVELOPE: usize = 256;
        match &self.news {
            News::Response(Response {
                payload: Payload::Inline(bytes),
                ..
            }) => ENVELOPE + bytes.len(),
            News::Accepted { .. }
            | News::Known { .. }
            | News::Refused(_)
            | News::RefusedQuiet(..)
            | News::Response(_) => ENVELOPE,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Mailbox {
    letters: RefCell<VecDeque<Letter>>,
    weight: Cell<usize>,
    arrived: Rc<Notify>,
    overflown: Notify,
}

impl Mailbox {
    /// An empty one that wakes `arrived` for every letter.
    pub(crate) fn new(arrived: Rc<Notify>) -> Rc<Self> {
        Rc::new(Self {
            letters: RefCell::default(),
            weight: Cell::new(0),
            arrived,
            overflown: Notify::new(),
        })
    }

    /// Engine: adds a letter.
    pub(crate) fn push(&self, letter: Letter) {
        self.weight.set(self.weight.get() + letter.weight());
        self.letters.borrow_mut().push_back(letter);
        self.arrived.notify_one();
        if self.weight.get() > WEIGHT_MAX {
            self.overflown.notify_one();
        }
    }

    /// Session: waits until there is more than a client may leave unread.
    pub(crate) async fn overflown(&self) {
        self.overflown.notified().await;
    }

    /// Session: takes the next one.
    pub(crate) fn pop(&self) -> Option<Letter> {
        let letter = self.letters.borrow_mut().pop_front()?;
        self.weight
            .set(self.weight.get().saturating_sub(letter.weight()));
        Some(letter)
    }
}
