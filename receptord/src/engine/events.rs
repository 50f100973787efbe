//! The core's events as log lines.
//!
//! Owns their levels and wording, and sees to it that a peer cannot fill the log. A link that
//! comes or goes is INFO; what an operator has to do something about is WARN or ERROR.

use std::time::{Duration, Instant};

use receptor_mesh::{Denied, Event, LinkId};
use receptor_proto::{ErrorCode, NodeId};

use crate::log::id;
use crate::policy::Rules;
use crate::policy::log::Denials;

/// Log lines about peers' mistakes in one [`WINDOW`].
const MISTAKES_MAX: u32 = 10;
/// See [`MISTAKES_MAX`].
const WINDOW: Duration = Duration::from_secs(10);

/// Node ids of which more than one running node was seen, remembered at once; whoever makes up
/// more is held to [`MISTAKES_MAX`].
const TWINS_MAX: usize = 16;
/// How long a node id counts as one that two nodes have after that was last seen; a refused
/// node tries again sooner.
const TWINS_KEPT: Duration = Duration::from_secs(120);
/// Between two log lines about the same id.
const TWINS_REMIND: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Debug)]
pub(super) struct EventLog {
    window: Instant,
    mistakes: u32,
    twins: Vec<Twin>,
    denials: Denials,
}

/// A node id that two running nodes have.
#[derive(Debug)]
struct Twin {
    node: NodeId,
    /// It is this node's.
    ours: bool,
    seen: Instant,
    told: Instant,
}

impl Default for EventLog {
    fn default() -> Self {
        Self {
            window: Instant::now(),
            mistakes: 0,
            twins: Vec::new(),
            denials: Denials::default(),
        }
    }
}

impl EventLog {
    pub(super) fn tell<'a>(
        &mut self,
        event: &Event,
        address: impl Fn(LinkId) -> &'a str,
        rules: &Rules,
    ) {
        match event {
            Event::NeighborUp {
                link,
                node,
                cost,
                leaf,
                software,
            } => {
                let address = address(*link);
                tracing::info!(message_id = id::LINK_UP, link = link.0, peer = %node, address, cost, leaf, software, "neighbor up");
            }
            Event::NeighborDown { link, node, reason } => {
                let address = address(*link);
                let code = &reason.code;
                if matches!(code, ErrorCode::HoldTime) {
                    tracing::warn!(message_id = id::LINK_DOWN, link = link.0, peer = %node, address, %code, "neighbor silent: {}", reason.message);
                } else {
                    tracing::info!(message_id = id::LINK_DOWN, link = link.0, peer = %node, address, %code, "neighbor down: {}", reason.message);
                }
            }
            Event::LinkRefused {
                link,
                node,
                reason,
                by_peer,
            } => {
                if let (ErrorCode::PermissionDenied, Some(node), false) =
                    (&reason.code, node, by_peer)
                {
                    return self.link_denied(node, address(*link), rules);
                }
                if !self.may_tell() {
                    return;
                }
                let address = address(*link);
                let node = node.as_ref().map(tracing::field::display);
                let code = &reason.code;
                tracing::warn!(message_id = id::LINK_REFUSED, link = link.0, peer = node, address, by_peer, %code, "link refused: {}", reason.message);
            }
            Event::DuplicateNodeId { node, ours } => {
                if !self.is_news(node, *ours) {
                    return;
                }
                if *ours {
                    tracing::error!(message_id = id::DUPLICATE_NODE, peer = %node, "another running node has this node's id; give one of them another with --node-id");
                } else {
                    tracing::error!(message_id = id::DUPLICATE_NODE, peer = %node, "two running nodes have the same id; the newcomer was refused");
                }
            }
            Event::NodeReachable { node } => tracing::info!(peer = %node, "node reachable"),
            Event::NodeUnreachable { node } => tracing::info!(peer = %node, "node unreachable"),
            Event::NodeForgotten { node } => tracing::info!(peer = %node, "node forgotten"),
            Event::GivenUp {
                work,
                recipient,
                reason,
            } => {
                let code = &reason.code;
                tracing::warn!(message_id = id::DEAD_LETTER, _message = %work, %work, %recipient, %code, "message given up: {}", reason.message);
            }
            Event::Behind { node, start } => {
                tracing::error!(peer = %node, start, "another node remembers a later start of this one, whose data were lost, and takes no messages of this start; restart this node");
            }
            Event::NoDeadLetter { work, reason } => {
                let code = &reason.code;
                tracing::warn!(%work, %code, "a message that was given up is not kept: {}", reason.message);
            }
            Event::Denied(denied) => self.denied(denied, rules),
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

    /// A node is not let to what it asks for.
    pub(super) fn denied(&mut self, denied: &Denied, rules: &Rules) {
        match denied {
            Denied::Work { sender, directive } => {
                let what = format!("work {sender} {directive}");
                if let Some(more) = self.denials.note(what, Instant::now()) {
                    let because = rules.may_use(sender.as_str(), directive.as_str()).because;
                    tracing::warn!(message_id = id::DENIED, %sender, %directive, more, "message refused: {because}");
                }
            }
            Denied::Transit { from, to } => {
                let what = format!("transit {from} {to}");
                if let Some(more) = self.denials.note(what, Instant::now()) {
                    let because = rules.may_pass(from.as_str(), to.as_str()).because;
                    tracing::warn!(message_id = id::DENIED, %from, %to, more, "packet not forwarded: {because}");
                }
            }
        }
    }

    fn link_denied(&mut self, node: &NodeId, address: &str, rules: &Rules) {
        let what = format!("link {node}");
        if let Some(more) = self.denials.note(what, Instant::now()) {
            let because = rules.may_link(node.as_str()).because;
            tracing::warn!(message_id = id::LINK_REFUSED, peer = %node, address, more, "link refused: {because}");
        }
    }

    /// The ids that more than one running node has, as far as was seen lately: whether it is this
    /// node's, and how long ago.
    pub(super) fn twins(&self) -> Vec<(NodeId, bool, Duration)> {
        let recent = |twin: &&Twin| twin.seen.elapsed() < TWINS_KEPT;
        let recent = self.twins.iter().filter(recent);
        recent
            .map(|twin| (twin.node.clone(), twin.ours, twin.seen.elapsed()))
            .collect()
    }

    /// Remembers an id that two nodes have. Whether it is time to tell of it.
    fn is_news(&mut self, node: &NodeId, ours: bool) -> bool {
        let now = Instant::now();
        self.twins.retain(|twin| now - twin.seen < TWINS_KEPT);
        let known = |twin: &&mut Twin| twin.node == *node && twin.ours == ours;
        if let Some(twin) = self.twins.iter_mut().find(known) {
            twin.seen = now;
            let due = now - twin.told >= TWINS_REMIND;
            if due {
                twin.told = now;
            }
            return due;
        }
        if self.twins.len() >= TWINS_MAX {
            return self.may_tell();
        }
        self.twins.push(Twin {
            node: node.clone(),
            ours,
            seen: now,
            told: now,
        });
        true
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
