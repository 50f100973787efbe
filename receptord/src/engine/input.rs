//! What reaches the engine, and the handle through which it does.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use receptor_mesh::{
    Counters, EchoAnswer, EntryId, LinkId, LinkInfo, LinkView, NodeView, Submission,
};
use receptor_proto::control::{SpoolReply, WorkStatus};
use receptor_proto::frame::Frame;
use receptor_proto::packet::CancelReason;
use receptor_proto::wire::DecodeError;
use receptor_proto::{ErrorBody, IdPrefix, MessageId, NodeId};
use tokio::sync::{mpsc, oneshot};

use super::mailbox::Mailbox;
use super::quiet::Quiet;
use crate::link::Outbox;
use crate::policy::Rules;
use crate::task;

/// Inputs that may wait for the engine. A reader that finds no room waits, and with it its
/// peer; a batch of frames is at most one read large, so this bounds memory too.
const INBOX: usize = 128;

/// One input.
pub(crate) enum Input {
    /// A connection stands.
    LinkUp {
        /// Its name, from [`EngineHandle::new_link`].
        link: LinkId,
        /// What is known of it.
        info: LinkInfo,
        /// The URL of the listener or peer that it belongs to.
        origin: Rc<str>,
        /// Where its bytes go.
        outbox: Rc<Outbox>,
    },
    /// What one read brought.
    Frames {
        /// From which link.
        link: LinkId,
        /// In order.
        frames: Vec<Frame>,
    },
    /// The peer sent nonsense; nothing more is read.
    BadFrame {
        /// On which link.
        link: LinkId,
        /// What was wrong.
        error: DecodeError,
    },
    /// The transport ended or broke.
    LinkDown {
        /// Which.
        link: LinkId,
        /// Why.
        error: ErrorBody,
    },
    /// A writer that had no room has some again.
    LinkRoom {
        /// Which.
        link: LinkId,
    },
    /// The operator wants the link closed.
    CloseLink {
        /// Which.
        link: LinkId,
        /// Why.
        reason: ErrorBody,
    },
    /// The operator wants all links of a listener or peer closed.
    CloseOrigin {
        /// Its URL.
        origin: String,
        /// Why.
        reason: ErrorBody,
    },
    /// The configured cost of a listener's or peer's links changed.
    SetCost {
        /// Its URL.
        origin: String,
        /// The new cost.
        cost: u32,
    },
    /// Other certificates are in force, here or of those who are believed.
    OtherKeys,
    /// This node's metadata changed.
    SetMetadata(BTreeMap<String, String>),
    /// Who may do what here, from now on.
    SetRules(Arc<Rules>),
    /// Messages of one client, in order.
    Submit(Vec<Submit>),
    /// A client wants a work ended.
    Cancel {
        /// Which.
        work: IdPrefix,
        /// Why.
        reason: CancelReason,
        /// Which it is, or why not.
        reply: oneshot::Sender<Result<MessageId, ErrorBody>>,
    },
    /// Nobody wants the responses of a work any more.
    Release {
        /// Which.
        work: IdPrefix,
        /// Which it is, or why not.
        reply: oneshot::Sender<Result<MessageId, ErrorBody>>,
    },
    /// What waits here of a work is to be given up.
    SpoolDrop {
        /// Which.
        work: IdPrefix,
        /// Which it is, or why not.
        reply: oneshot::Sender<Result<MessageId, ErrorBody>>,
    },
    /// Something changed about what the keeper has of this work, or it could not be written.
    Kept(MessageId, Result<(), ErrorBody>),
    /// The dead letter of this entry is on the disk, or could not be put there.
    LetterKept(EntryId, Result<(), ErrorBody>),
    /// A client has these responses, and those before them.
    Consumed(Vec<(MessageId, u64)>),
    /// A client is gone; what comes for these works is kept for whoever asks.
    ClientGone(Rc<Mailbox>, Vec<MessageId>),
    /// A client needs a name for a payload.
    NewEntry(oneshot::Sender<EntryId>),
    /// A client asks a node for a sign of life.
    Echo {
        /// Whom.
        node: NodeId,
        /// How far; `None`: all the way.
        hop_limit: Option<u8>,
        /// How long to wait.
        timeout: Duration,
        /// What came of it.
        reply: oneshot::Sender<Result<EchoAnswer, ErrorBody>>,
    },
    /// A client wants to know what this node knows.
    Query(Query),
    /// Say goodbye on all links; the reply comes when the goodbyes are with the writers.
    Shutdown(oneshot::Sender<()>),
}

/// A message to send, and who wants to hear of it.
#[derive(Debug)]
pub(crate) struct Submit {
    /// The message.
    pub(crate) submission: Submission,
    /// Take it also when its recipient was never heard of.
    pub(crate) wait: bool,
    /// The responses are not for this client; they wait.
    pub(crate) detach: bool,
    /// Of a send with a key: what it asks for.
    pub(crate) digest: Option<String>,
    /// It is to be answered only when it is refused.
    pub(crate) quiet: Option<Quiet>,
    /// Where the acceptance and, unless detached, the responses go.
    pub(crate) mailbox: Rc<Mailbox>,
}

/// A question about the state of this node.
pub(crate) enum Query {
    /// [`receptor_mesh::Mesh::nodes`], each with how long ago it changed.
    Nodes(oneshot::Sender<Vec<(NodeView, Duration)>>),
    /// [`receptor_mesh::Mesh::links`].
    Links(oneshot::Sender<Vec<LinkReport>>),
    /// Works that were dispatched here and have not ended.
    WorksActive(oneshot::Sender<u64>),
    /// Works that were sent from here or run here, or one of them.
    Works(
        Option<IdPrefix>,
        oneshot::Sender<Result<Vec<WorkStatus>, ErrorBody>>,
    ),
    /// Messages that wait here, or those of one work, and how many there are.
    Spool(
        Option<IdPrefix>,
        oneshot::Sender<Result<SpoolReply, ErrorBody>>,
    ),
    /// What the core has counted and seen.
    Health(oneshot::Sender<Health>),
}

/// What the core has counted and seen.
#[derive(Debug)]
pub(crate) struct Health {
    /// Totals since the start.
    pub(crate) counters: Counters,
    /// LSAs in the database.
    pub(crate) lsas: usize,
    /// Messages of other nodes that are kept here.
    pub(crate) in_custody: usize,
    /// Ids that more than one running node has: whether it is this node's, and how long ago
    /// that was seen.
    pub(crate) twins: Vec<(NodeId, bool, Duration)>,
}

/// A link as the core and the transport see it.
#[derive(Debug)]
pub(crate) struct LinkReport {
    /// The core's view.
    pub(crate) view: LinkView,
    /// How long it is in this state.
    pub(crate) age: Duration,
    /// How long ago something was heard.
    pub(crate) heard: Duration,
    /// Bytes received.
    pub(crate) bytes_in: u64,
    /// Bytes sent.
    pub(crate) bytes_out: u64,
    /// Bytes with the writer.
    pub(crate) waiting: usize,
}

/// The engine has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the engine has ended")]
pub(crate) struct EngineGone;

/// Reaches the engine. Cheap to clone.
#[derive(Clone)]
pub(crate) struct EngineHandle {
    inbox: mpsc::Sender<Input>,
    next_link: Rc<Cell<u64>>,
}

impl fmt::Debug for EngineHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EngineHandle")
    }
}

impl EngineHandle {
    pub(super) fn new() -> (Self, mpsc::Receiver<Input>) {
        let (inbox, receiver) = mpsc::channel(INBOX);
        let handle = Self {
            inbox,
            next_link: Rc::new(Cell::new(1)),
        };
        (handle, receiver)
    }

    /// A name for a link that is about to be reported.
    pub(crate) fn new_link(&self) -> LinkId {
        let id = self.next_link.get();
        self.next_link.set(id + 1);
        LinkId(id)
    }

    /// Hands an input over; waits while the engine has enough to do.
    pub(crate) async fn send(&self, input: Input) -> Result<(), EngineGone> {
        self.inbox.send(input).await.map_err(|_| EngineGone)
    }

    /// For the keeper, which must not wait: its results are few and bounded by what
    /// the core asked for, so a full inbox is waited for in a task of its own.
    pub(super) fn send_stored(&self, input: Input) {
        match self.inbox.try_send(input) {
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => {}
            Err(mpsc::error::TrySendError::Full(input)) => {
                let handle = self.clone();
                task::spawn("kept-results", async move {
                    let _ = handle.send(input).await;
                });
            }
        }
    }

    /// Hands over an input that carries the way to its answer, and waits for that.
    pub(crate) async fn ask<T>(
        &self,
        input: impl FnOnce(oneshot::Sender<T>) -> Input,
    ) -> Result<T, EngineGone> {
        let (reply, answer) = oneshot::channel();
        self.send(input(reply)).await?;
        answer.await.map_err(|_| EngineGone)
    }
}
