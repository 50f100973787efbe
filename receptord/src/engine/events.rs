//! The core's events as log lines.
//!
//! Owns their levels and wording, and sees to it that a peer cannot fill the log. A link that
//! comes or goes is INFO; what an operator has to do something about is WARN or ERROR.

use std::time::{Duration, Instant};

use receptor_mesh::{Event, LinkId};
use receptor_proto::ErrorCode;

use crate::log::id;

/// Log lines about peers' mistakes in one [`WINDOW`].
const MISTAKES_MAX: u32 = 10;
/// See [`MISTAKES_MAX`].
const WINDOW: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Debug)]
pub(super) struct EventLog {
    window: Instant,
    mistakes: u32,
}

impl Default for EventLog {
    fn default() -> Self {
        Self {
            window: Instant::now(),
            mistakes: 0,
        }
    }
}

impl EventLog {
    pub(super) fn tell<'a>(&mut self, event: &Event, address: impl Fn(LinkId) -> &'a str) {
        match event {
            Event::NeighborUp {
                link,
                node,
                cost,
                leaf,
                software,
            } => {
                let address = address(*link);
                tracing::info!(message_id = id::LINK_UP, link = link.0, %node, address, cost, leaf, software, "neighbor up");
            }
            Event::NeighborDown { link, node, reason } => {
                let address = address(*link);
                let code = &reason.code;
                if matches!(code, ErrorCode::HoldTime) {
                    tracing::warn!(message_id = id::LINK_DOWN, link = link.0, %node, address, %code, "neighbor silent: {}", reason.message);
                } else {
                    tracing::info!(message_id = id::LINK_DOWN, link = link.0, %node, address, %code, "neighbor down: {}", reason.message);
                }
            }
            Event::LinkRefused {
                link,
                node,
                reason,
                by_peer,
            } => {
                if !self.may_tell() {
                    return;
                }
                let address = address(*link);
                let node = node.as_ref().map(tracing::field::display);
                let code = &reason.code;
                tracing::warn!(message_id = id::LINK_REFUSED, link = link.0, node, address, by_peer, %code, "link refused: {}", reason.message);
            }
            Event::DuplicateNodeId { node, ours } => {
                if *ours {
                    tracing::error!(message_id = id::DUPLICATE_NODE, %node, "another running node has this node's id; give one of them another with --node-id");
                } else {
                    tracing::error!(message_id = id::DUPLICATE_NODE, %node, "two running nodes have the same id; the newcomer was refused");
                }
            }
            Event::NodeReachable { node } => tracing::info!(%node, "node reachable"),
            Event::NodeUnreachable { node } => tracing::info!(%node, "node unreachable"),
            Event::NodeForgotten { node } => tracing::info!(%node, "node forgotten"),
            Event::GivenUp {
                work,
                recipient,
                reason,
            } => {
                let code = &reason.code;
                tracing::warn!(%work, %recipient, %code, "message given up: {}", reason.message);
            }
            Event::PeerMistake { link, reason } => {
                if !self.may_tell() {
                    return;
                }
                let address = address(*link);
                let code = &reason.code;
                tracing::warn!(link = link.0, address, %code, "the peer made a mistake: {}", reason.message);
            }
        }
    }

    /// At most [`MISTAKES_MAX`] lines a [`WINDOW`], and one that says how many were left out.
    fn may_tell(&mut self) -> bool {
        let now = Instant::now();
        if now - self.window >= WINDOW {
            if let Some(hidden @ 1..) = self.mistakes.checked_sub(MISTAKES_MAX) {
                tracing::warn!(hidden, "more trouble with peers was not logged");
            }
            self.window = now;
            self.mistakes = 0;
        }
        self.mistakes = self.mistakes.saturating_add(1);
        self.mistakes <= MISTAKES_MAX
    }
}
