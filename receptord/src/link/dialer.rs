//! Dialers: one task for each configured peer that keeps a link to it.
//!
//! Owns the attempts, the pauses between them and what is known of the last failure. Decides
//! nothing about the link itself: once it is connected, it runs like any other.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use receptor_mesh::{LinkId, LinkInfo};
use receptor_proto::{ErrorBody, ErrorCode};
use tokio::sync::Notify;
use tokio::time::timeout;
use tracing::Instrument as _;

use super::backoff::Backoff;
use super::io::{self as link_io, OPEN_TIME, Opening};
use super::proven::node_ids;
use super::{Shared, transport};
use crate::config::{Link, Peer};
use crate::engine::{EngineGone, Input};
use crate::task;

/// A peer that could not be reached for this long is worth waking someone.
const WORRY_AFTER: Duration = Duration::from_secs(60);
/// Between two log lines about the same lasting trouble with a peer.
const REMIND_EVERY: Duration = Duration::from_secs(600);

/// Where a dialer stands; read by `status` and `links`.
#[derive(Debug, Clone)]
pub(crate) struct DialState {
    /// What it does now.
    pub(crate) phase: Phase,
    /// Since when.
    pub(crate) since: Instant,
    /// Since when there is no link; `None` while there is one.
    pub(crate) away: Option<Instant>,
    /// Why the last attempt or link ended.
    pub(crate) error: Option<ErrorBody>,
}

/// What a dialer does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Making a connection.
    Connecting,
    /// Pausing before the next attempt.
    Waiting,
    /// It has this link.
    Connected(LinkId),
}

/// A running dialer.
#[derive(Debug)]
pub(super) struct Dialer {
    state: Rc<RefCell<DialState>>,
    stop: Rc<Notify>,
    hurry: Rc<Notify>,
}

impl Dialer {
    /// Starts dialling.
    pub(super) fn start(peer: &Peer, link: &Link, shared: &Rc<Shared>) -> Self {
        let state = Rc::new(RefCell::new(DialState {
            phase: Phase::Connecting,
            since: Instant::now(),
            away: Some(Instant::now()),
            error: None,
        }));
        let stop = Rc::new(Notify::new());
        let hurry = Rc::new(Notify::new());
        let task = Task {
            origin: peer.url.to_string().into(),
            peer: peer.clone(),
            connect_timeout: link.connect_timeout,
            backoff: Backoff::new(link.reconnect_min, link.reconnect_max),
            state: Rc::clone(&state),
            stop: Rc::clone(&stop),
            hurry: Rc::clone(&hurry),
            shared: Rc::clone(shared),
            rng: fastrand::Rng::new(),
            trouble: None,
        };
        let span = tracing::info_span!("peer", url = %peer.url);
        task::spawn("link-dialer", task.run().instrument(span));
        Self { state, stop, hurry }
    }

    pub(super) fn state(&self) -> DialState {
        self.state.borrow().clone()
    }

    /// Ends the pause that it makes, if it makes one: what kept it from a link may be over.
    pub(super) fn hurry(&self) {
        self.hurry.notify_waiters();
    }

    /// Ends the dialer and its link.
    pub(super) fn stop(&self) {
        self.stop.notify_one();
    }
}

struct Task {
    origin: Rc<str>,
    peer: Peer,
    connect_timeout: Duration,
    backoff: Backoff,
    state: Rc<RefCell<DialState>>,
    stop: Rc<Notify>,
    hurry: Rc<Notify>,
    shared: Rc<Shared>,
    rng: fastrand::Rng,
    trouble: Option<Trouble>,
}

/// A peer that is not there: since when, and when that was last told.
struct Trouble {
    since: Instant,
    told: Instant,
    worried: bool,
}

/// How one attempt ended.
enum Attempt {
    /// There was a link, for this long.
    Lost(Duration, ErrorBody),
    /// One side refuses the other.
    Refused(ErrorBody),
    /// There was none.
    Failed(Duration, ErrorBody),
}

impl Task {
    async fn run(mut self) {
        let stop = Rc::clone(&self.stop);
        let (state, engine) = (Rc::clone(&self.state), self.shared.engine.clone());
        loop {
            let attempt = {
                let mut attempt = std::pin::pin!(self.attempt());
                tokio::select! {
                    biased;
                    () = stop.notified() => {
                        let phase = state.borrow().phase;
                        if let Phase::Connected(link) = phase {
                            let reason = deconfigured();
                            // The link ends by itself once the goodbye is written.
                            if engine.send(Input::CloseLink { link, reason }).await.is_ok() {
                                let _ = attempt.await;
                            }
                        }
                        return;
                    }
                    attempt = &mut attempt => attempt,
                }
            };
            if self.shared.stopping.get() {
                return;
            }
            let (pause, error) = match attempt {
                Err(EngineGone) => return,
                Ok(Attempt::Lost(up, error)) => {
                    self.trouble = None;
                    (self.backoff.lost(up, &mut self.rng), error)
                }
                Ok(Attempt::Refused(error)) => {
                    self.tell_refused(&error);
                    (self.backoff.refused(&mut self.rng), error)
                }
                Ok(Attempt::Failed(took, error)) => {
                    self.tell_failed(&error);
                    (self.backoff.failed(took, &mut self.rng), error)
                }
            };
            self.enter(Phase::Waiting, Some(error));
            tokio::select! {
                biased;
                () = stop.notified() => return,
                () = self.hurry.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    fn enter(&self, phase: Phase, error: Option<ErrorBody>) {
        let mut state = self.state.borrow_mut();
        state.phase = phase;
        state.since = Instant::now();
        state.away = match phase {
            Phase::Connected(_) => None,
            Phase::Connecting | Phase::Waiting => state.away.or(Some(state.since)),
        };
        if error.is_some() {
            state.error = error;
        }
    }

    /// Makes a connection and runs the link to its end.
    async fn attempt(&mut self) -> Result<Attempt, EngineGone> {
        let began = Instant::now();
        let Some(permit) = self.shared.admission.admit_dialled() else {
            let text = "this node has all the links it may have (link.max-links)";
            return Ok(Attempt::Failed(
                Duration::ZERO,
                ErrorBody::new(ErrorCode::Busy, text),
            ));
        };
        self.enter(Phase::Connecting, None);
        let connect = transport::connect(&self.peer, &self.shared.keyring, &self.shared.proxies);
        let connected = match timeout(self.connect_timeout, connect).await {
            Ok(Ok(connected)) => connected,
            Ok(Err(error)) => {
                let error = error.body();
                return Ok(if is_refusal(&error.code) {
                    Attempt::Refused(error)
                } else {
                    Attempt::Failed(began.elapsed(), error)
                });
            }
            Err(_) => {
                let error = ErrorBody::new(ErrorCode::Timeout, "nobody answers there");
                return Ok(Attempt::Failed(began.elapsed(), error));
            }
        };
        let link = self.shared.engine.new_link();
        let span = tracing::info_span!("link", id = link.0, address = connected.address);
        let info = LinkInfo {
            cost: self.shared.cost(&self.origin, self.peer.cost),
            proven: node_ids(connected.proven.as_ref()),
            address: self.origin.to_string(),
            dialled: true,
        };
        let _standing = connected
            .proven
            .map(|proven| self.shared.proven.keep(link, proven));
        self.enter(Phase::Connected(link), None);
        let up = Instant::now();
        let opening = Opening {
            link,
            info,
            origin: Rc::clone(&self.origin),
            hello_by: began + self.connect_timeout.max(OPEN_TIME),
            permit: &permit,
        };
        let reason = link_io::run(connected.transport, opening, &self.shared.engine)
            .instrument(span)
            .await?;
        drop(permit);
        Ok(if is_refusal(&reason.code) {
            Attempt::Refused(reason)
        } else {
            Attempt::Lost(up.elapsed(), reason)
        })
    }

    fn tell_refused(&mut self, error: &ErrorBody) {
        let now = Instant::now();
        let recent = |trouble: &Trouble| trouble.worried && now - trouble.told < REMIND_EVERY;
        if self.trouble.as_ref().is_some_and(recent) {
            return;
        }
        tracing::error!(code = %error.code, "the link is refused: {}", error.message);
        self.trouble = Some(Trouble {
            since: now,
            told: now,
            worried: true,
        });
    }

    fn tell_failed(&mut self, error: &ErrorBody) {
        let now = Instant::now();
        let Some(trouble) = &mut self.trouble else {
            tracing::info!("the peer cannot be reached, trying on: {}", error.message);
            self.trouble = Some(Trouble {
                since: now,
                told: now,
                worried: false,
            });
            return;
        };
        let due = if trouble.worried {
            now - trouble.told >= REMIND_EVERY
        } else {
            now - trouble.since >= WORRY_AFTER
        };
        if due {
            trouble.worried = true;
            trouble.told = now;
            let seconds = (now - trouble.since).as_secs();
            tracing::warn!(seconds, "the peer cannot be reached: {}", error.message);
        } else {
            tracing::debug!("the peer cannot be reached: {}", error.message);
        }
    }
}

fn deconfigured() -> ErrorBody {
    let text = "the peer was taken out of the configuration";
    ErrorBody::new(ErrorCode::Deconfigured, text)
}

/// Whether asking again soon would get the same answer.
fn is_refusal(code: &ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::DuplicateNodeId
            | ErrorCode::IdentityMismatch
            | ErrorCode::Untrusted
            | ErrorCode::UnsupportedVersion
            | ErrorCode::SelfConnection
            | ErrorCode::PermissionDenied
            | ErrorCode::BadFrame
    )
}
