//! How a work that has ended is remembered when everything else of it is gone.
//!
//! Owns what the memos in the spool say ([`crate::spooler::Store::keep_memo`]): who asked whom for
//! what, when, and how it ended; on the node that sent it and on the one that ran it. Each is one
//! object of JSON, to which later versions add.

use bytes::Bytes;
use receptor_proto::control::{WorkRole, WorkState, WorkStatus};
use receptor_proto::{Directive, ErrorBody, MessageId, NodeId};
use receptor_spool::MEMO_MAX;
use serde::{Deserialize, Serialize};

use super::frame::End;
use super::now_ms;

/// Works that have ended and are remembered, on each end. With `spool.results-retention` this is
/// what bounds them.
const ENDED_MAX: usize = 10_000;
/// Bytes of the spool's limit for each of them, so that a small disk does not hold little else.
const BYTES_EACH: u64 = 16 << 10;
/// Bytes of a reason that is too long to be remembered whole.
const REASON_CUT: usize = 1024;

/// How many are remembered where the spool may have so many bytes.
pub(super) fn ended_max(spool_bytes: u64) -> usize {
    let fit = usize::try_from(spool_bytes / BYTES_EACH).unwrap_or(usize::MAX);
    fit.clamp(1, ENDED_MAX)
}

/// See the module.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Ending {
    /// The work.
    pub(crate) id: MessageId,
    /// Which end of it this is.
    pub(crate) role: WorkRole,
    /// What ran, when that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) directive: Option<Directive>,
    /// The node at the other end, when that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) peer: Option<NodeId>,
    /// Since when it was known here, in milliseconds since 1970.
    pub(crate) since_ms: u64,
    /// When it ended.
    pub(crate) at_ms: u64,
    /// Responses, the last one too.
    pub(crate) responses: u64,
    /// Of a send with a key: what it asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) digest: Option<String>,
    /// How it ended.
    pub(crate) end: End,
}

impl Ending {
    /// As a memo; `None` when that would be too long, which only a reason can be.
    fn memo(&self) -> Option<Bytes> {
        let memo = serde_json::to_vec(self).ok()?;
        (memo.len() <= MEMO_MAX).then(|| memo.into())
    }

    /// As a memo that fits.
    pub(super) fn to_memo(&self) -> Bytes {
        self.memo()
            .or_else(|| {
                let mut short = self.clone();
                let error = short.end.error.as_mut()?;
                let mut cut = error.message.len().min(REASON_CUT);
                while !error.message.is_char_boundary(cut) {
                    cut -= 1;
                }
                error.message.truncate(cut);
                *error = ErrorBody::new(error.code.clone(), error.message.as_str());
                short.memo()
            })
            .unwrap_or_default()
    }

    /// What a memo says, if it is one of these.
    pub(crate) fn from_memo(memo: &[u8]) -> Option<Self> {
        serde_json::from_slice(memo).ok()
    }

    /// How it stands with it, for `node` whose memory this is.
    pub(super) fn status(&self, node: &NodeId) -> WorkStatus {
        let now = now_ms();
        let own = Some(node.clone());
        let (sender, recipient) = match self.role {
            WorkRole::Sent => (own, self.peer.clone()),
            WorkRole::Here => (self.peer.clone(), own),
        };
        WorkStatus {
            id: self.id,
            role: self.role,
            state: WorkState::of_end(self.end.code, self.end.error.as_ref()),
            cancelling: false,
            directive: self.directive.clone(),
            sender,
            recipient,
            age_ms: now.saturating_sub(self.since_ms),
            ended_ms: Some(now.saturating_sub(self.at_ms)),
            message: None,
            progress: None,
            sent: None,
            coming: None,
            code: Some(self.end.code),
            error: self.end.error.clone(),
            responses: self.responses,
            kept_bytes: 0,
            dropped: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use receptor_proto::ErrorCode;

    #[test]
    fn a_long_reason_is_cut_and_nothing_else() {
        let error = ErrorBody::new(ErrorCode::PluginExit, "ä".repeat(MEMO_MAX))
            .with("stderr", "x".repeat(MEMO_MAX));
        let ending = Ending {
            id: MessageId::from_u128(7),
            role: WorkRole::Here,
            directive: None,
            peer: None,
            since_ms: 1,
            at_ms: 2,
            responses: 3,
            digest: None,
            end: End {
                code: 9,
                error: Some(error),
            },
        };
        let read = Ending::from_memo(&ending.to_memo()).expect("a memo");
        assert_eq!((read.id, read.responses, read.end.code), (ending.id, 3, 9));
        let reason = read.end.error.expect("a reason");
        assert_eq!(reason.code, ErrorCode::PluginExit);
        assert_eq!(reason.message, "ä".repeat(REASON_CUT / 2));
    }
}
