//! One message without a receipt: what is known of it, and what it is by its kind, size and place.
//!
//! Never moves anything; the flow does.

use alloc::boxed::Box;

use receptor_proto::ErrorCode;
use receptor_proto::packet::{Content, Message, MessageKind, Priority, SEGMENT_MAX, SMALL_MAX};

use super::ENVELOPE;
use crate::delivery::transfer::Transfer;
use crate::{EntryId, Instant};

/// Epoch and sequence number: names a message of one flow.
pub(crate) type Key = (u64, u64);

/// A message without a receipt.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) message: Message,
    /// Where it is, or is being, stored; `None` when it never is.
    pub(crate) entry: Option<EntryId>,
    /// When it is worth nothing any more.
    pub(crate) expires: Instant,
    /// It is known to be on the disk.
    pub(crate) stored: bool,
    /// A cancel of a request that has arrived: there is nothing to remember it for.
    pub(crate) moot: bool,
    /// A cancel that was sent while it was not known whether its request had arrived.
    pub(crate) open: bool,
    /// An earlier run of this node may have sent it.
    pub(crate) restored: bool,
    /// Whoever had it said once that it went no further.
    pub(super) returned: bool,
    /// Its recipient was chosen among others.
    pub(crate) any: bool,
    /// Its lifetime is over, and its recipient has still to say whether it came in time.
    pub(super) doubted: bool,
    /// The body is in the store only.
    pub(super) absent: bool,
    /// The store was asked for it.
    pub(super) fetched: bool,
    /// Reads that failed since one did not.
    pub(super) failed_reads: u32,
    pub(super) state: State,
    pub(super) attempts: u32,
    /// How often it left this node in this start, less what came back for certain.
    pub(super) handed: u32,
    pub(super) refusals: u32,
    /// Words that another node keeps it, since the way last changed.
    pub(super) keeps: u32,
    pub(super) sent_at: Instant,
    pub(super) transfer: Option<Box<Transfer>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// In a queue.
    Queued,
    /// Waits until it is written, to leave memory then.
    Behind,
    /// The store was asked for its body.
    Fetching,
    /// Sent; fills the window.
    InFlight,
    /// One of the active transfers.
    Active,
    /// In `delayed`.
    Delayed(Instant, Why),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// The recipient has no room: only time helps.
    Refused,
    /// Something on the way failed: another way helps.
    Lost,
    /// Another node keeps it.
    Held,
    /// It must not be sent again, and this is its last chance of a receipt.
    Doomed,
}

impl Outgoing {
    pub(crate) fn new(message: Message, entry: Option<EntryId>, expires: Instant) -> Self {
        Self {
            message,
            entry,
            expires,
            stored: false,
            moot: false,
            open: false,
            restored: false,
            returned: false,
            any: false,
            doubted: false,
            absent: false,
            fetched: false,
            failed_reads: 0,
            state: State::Queued,
            attempts: 0,
            handed: 0,
            refusals: 0,
            keeps: 0,
            sent_at: Instant::default(),
            transfer: None,
        }
    }

    pub(crate) fn key(&self) -> Key {
        (self.message.epoch, self.message.seq)
    }

    /// Whether it may wait in the store alone.
    pub(crate) fn is_pageable(&self) -> bool {
        let kind = match self.message.kind {
            MessageKind::Request { .. } | MessageKind::Response { .. } => true,
            MessageKind::Cancel { .. } => false,
        };
        kind && self.entry.is_some() && !self.message.volatile
    }

    /// Whether another node may keep it while there is no way to its recipient.
    pub(super) fn may_be_entrusted(&self) -> bool {
        self.state == State::Queued
            && self.stored
            && !self.is_large()
            // Whether it came in time only its recipient can say. What has not left this node
            // waits for any node that qualifies.
            && !(self.message.volatile || self.moot || self.doubted)
            && (self.was_sent() || !self.any)
    }

    /// What it takes of the room for responses that are not written yet.
    pub(super) fn unsaved(&self) -> usize {
        match self.message.kind {
            MessageKind::Response { .. } if self.entry.is_some() && !self.stored => self.cost(),
            MessageKind::Response { .. }
            | MessageKind::Request { .. }
            | MessageKind::Cancel { .. } => 0,
        }
    }

    /// Whether it is to leave memory when it is written.
    pub(crate) fn is_behind(&self) -> bool {
        self.state == State::Behind
    }

    /// The store may have kept the payload back.
    pub(crate) fn note_absent(&mut self) {
        let message = &self.message;
        self.absent = !message.is_segmented() && message.body.len() as u64 != message.size;
    }

    /// Whether it left this node, as far as this start of it knows, and did not come back.
    pub(crate) fn was_sent(&self) -> bool {
        self.attempts > 0
    }

    /// Whether it is certain that no other node has it.
    pub(crate) fn is_here_alone(&self, current: u64) -> bool {
        !self.was_sent() && !self.restored && self.message.epoch == current
    }

    /// Whether its recipient may have it, and only the recipient knows. One that nobody answers
    /// is over with its lifetime: a refusal of it would not be heard of.
    pub(super) fn is_doubtful(&self) -> bool {
        let answered = matches!(
            self.message.kind,
            MessageKind::Request { respond: true, .. }
        );
        let kept = self.entry.is_some() && !self.message.volatile;
        answered && kept && (self.restored || self.was_sent())
    }

    /// Whether the store was ever asked for its payload.
    pub(crate) fn was_fetched(&self) -> bool {
        self.fetched || self.transfer.is_some()
    }

    /// Bytes of a large payload that the recipient has, and all.
    pub(crate) fn transferred(&self) -> Option<(u64, u64)> {
        self.transfer.as_ref().map(|transfer| transfer.progressed())
    }

    /// A request that may arrive at most once must not be sent a second time: the recipient
    /// remembers it until it restarts and no longer.
    pub(super) fn once(&self) -> bool {
        self.message.volatile && self.is_request()
    }

    pub(super) fn is_request(&self) -> bool {
        matches!(self.message.kind, MessageKind::Request { .. })
    }

    pub(super) fn is_large(&self) -> bool {
        self.message.is_segmented()
    }

    pub(super) fn class(&self) -> Class {
        let small =
            self.message.size <= SMALL_MAX as u64 && self.message.content != Content::Bundle;
        if small || self.is_large() {
            Class::Small
        } else {
            Class::Bulk
        }
    }

    /// What it takes of the window and of a queue.
    pub(super) fn cost(&self) -> usize {
        if self.is_large() {
            return ENVELOPE;
        }
        ENVELOPE + usize::try_from(self.message.size).unwrap_or(SEGMENT_MAX)
    }
}

/// A message that will not be sent again.
#[derive(Debug)]
pub(crate) struct GivenUp {
    pub(crate) outgoing: Box<Outgoing>,
    pub(crate) code: ErrorCode,
}

/// Which queue a message waits in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    Small,
    Bulk,
}

impl Class {
    pub(super) fn priority(self) -> Priority {
        match self {
            Self::Small => Priority::Small,
            Self::Bulk => Priority::Bulk,
        }
    }
}
