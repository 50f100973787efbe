//! How large the spool may be, and whether something more fits.
//!
//! Owns the limits and the arithmetic of one batch: what it has written so far and what it has
//! removed count before the index knows of them. Writes nothing and forgets nothing.

use std::collections::{BTreeMap, BTreeSet};

use receptor_proto::NodeId;
use receptor_proto::packet::MessageKind;
use receptor_proto::record::EntryId;

use crate::disk::Disk;
use crate::error::SpoolError;
use crate::index::{Index, Usage};
use crate::spool::Spool;

/// The part of each limit that requests leave to others. A store full of them could not take what
/// empties it.
const NOT_FOR_WORK: u64 = 8;
/// The part of each limit that responses before the last leave to what ends works. A work that says
/// more than is read of it would else keep out the answers of all others.
const NOT_FOR_PARTS: u64 = 16;

/// How much of the limits a message may make use of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Share {
    /// A request brings new work: it may take least.
    Work,
    /// A response that others follow.
    Part,
    /// What ends a work, or tells a restart that it is not to be done again.
    End,
}

impl Share {
    /// That of a message; a request that has arrived only waits for its answer.
    pub(crate) fn of(kind: &MessageKind, has_arrived: bool) -> Self {
        match kind {
            MessageKind::Request { .. } if !has_arrived => Self::Work,
            MessageKind::Response { eof: None, .. } => Self::Part,
            MessageKind::Request { .. }
            | MessageKind::Response { eof: Some(_), .. }
            | MessageKind::Cancel { .. } => Self::End,
        }
    }

    fn usable(self, max: u64) -> u64 {
        match self {
            Self::Work => max - max / NOT_FOR_WORK,
            Self::Part => max - max / NOT_FOR_PARTS,
            Self::End => max,
        }
    }
}

/// How large the spool may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// `max-bytes`: of messages and payloads.
    pub max_bytes: u64,
    /// `max-entries`: messages.
    pub max_entries: u64,
    /// `max-bytes-per-recipient`: of messages to one node, and their payloads.
    pub max_bytes_per_recipient: u64,
    /// `max-entries-per-recipient`: messages to one node.
    pub max_entries_per_recipient: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_bytes: 10 << 30,
            max_entries: 2_000_000,
            max_bytes_per_recipient: 5 << 30,
            max_entries_per_recipient: 1_000_000,
        }
    }
}

/// What a batch has taken of the limits so far, and the index does not know of.
#[derive(Default)]
pub(crate) struct Taken {
    freed: Freed,
    total: Usage,
    nodes: BTreeMap<NodeId, Usage>,
    pub(crate) flows: BTreeSet<(NodeId, u64)>,
}

impl Taken {
    /// An entry is to be removed: what it takes is free again.
    pub(crate) fn free(&mut self, index: &Index, entry: EntryId) {
        self.freed.count(index, entry);
    }

    /// A group of the batch is taken as well.
    pub(crate) fn add(&mut self, group: Self) {
        self.total.entries += group.total.entries;
        self.total.bytes += group.total.bytes;
        for (node, usage) in group.nodes {
            let sum = self.nodes.entry(node).or_default();
            sum.entries += usage.entries;
            sum.bytes += usage.bytes;
        }
        self.flows.extend(group.flows);
    }

    /// Everything so far became the index's, or was given up.
    pub(crate) fn settle(&mut self, index: &Index) {
        let mut freed = std::mem::take(self).freed;
        freed.settle(index);
        self.freed = freed;
    }
}

/// What the removals of a batch give back, of what is in the index.
#[derive(Default)]
struct Freed {
    entries: BTreeSet<u64>,
    total: Usage,
    nodes: BTreeMap<NodeId, Usage>,
}

impl Freed {
    fn count(&mut self, index: &Index, entry: EntryId) {
        let Some((usage, node)) = index.usage_of(entry) else {
            return;
        };
        if !self.entries.insert(entry.0) {
            return;
        }
        self.total.entries += usage.entries;
        self.total.bytes += usage.bytes;
        if let Some(node) = node {
            let sum = self.nodes.entry(node.clone()).or_default();
            sum.entries += usage.entries;
            sum.bytes += usage.bytes;
        }
    }

    /// Counts anew: the index may have forgotten some of them meanwhile.
    fn settle(&mut self, index: &Index) {
        for entry in std::mem::take(self).entries {
            self.count(index, EntryId(entry));
        }
    }
}

impl<D: Disk> Spool<D> {
    /// Whether a request to this recipient would be taken now, with a payload of this size in a
    /// file of its own.
    ///
    /// # Errors
    ///
    /// [`SpoolError::Full`] and [`SpoolError::FullFor`].
    pub fn room_for(&self, recipient: Option<&NodeId>, size: u64) -> Result<(), SpoolError> {
        self.has_room(size, Share::Work)?;
        let group = &mut Taken::default();
        self.admit(0, size, Share::Work, recipient, &Taken::default(), group)
    }

    /// Whether so many more bytes of a payload may be written.
    pub(crate) fn has_room(&self, more: u64, share: Share) -> Result<(), SpoolError> {
        let max = self.limits.max_bytes;
        if self.index.total().bytes.saturating_add(more) > share.usable(max) {
            return Err(SpoolError::Full {
                limit: "max-bytes",
                max,
            });
        }
        Ok(())
    }

    /// Counts one message of a group, if the limits allow it.
    pub(crate) fn admit(
        &self,
        length: u64,
        payload: u64,
        share: Share,
        node: Option<&NodeId>,
        taken: &Taken,
        group: &mut Taken,
    ) -> Result<(), SpoolError> {
        let usable = |max| share.usable(max);
        group.total.add(length);
        let total = self.index.total().without(taken.freed.total);
        let Limits {
            max_bytes,
            max_entries,
            max_bytes_per_recipient,
            max_entries_per_recipient,
        } = self.limits;
        let full = |limit, max| Err(SpoolError::Full { limit, max });
        // Payloads are counted while they are written.
        if total.bytes + taken.total.bytes + group.total.bytes > usable(max_bytes) {
            return full("max-bytes", max_bytes);
        }
        if total.entries + taken.total.entries + group.total.entries > usable(max_entries) {
            return full("max-entries", max_entries);
        }
        let Some(node) = node else {
            return Ok(());
        };
        let freed = taken.freed.nodes.get(node).copied().unwrap_or_default();
        let mut sum = self.index.of(node).without(freed);
        let own = group.nodes.entry(node.clone()).or_default();
        own.add(length + payload);
        let before = taken.nodes.get(node).copied().unwrap_or_default();
        sum.bytes += own.bytes + before.bytes;
        sum.entries += own.entries + before.entries;
        let full = |limit, max| {
            let recipient = node.clone();
            Err(SpoolError::FullFor {
                recipient,
                limit,
                max,
            })
        };
        if sum.bytes > usable(max_bytes_per_recipient) {
            return full("max-bytes-per-recipient", max_bytes_per_recipient);
        }
        if sum.entries > usable(max_entries_per_recipient) {
            return full("max-entries-per-recipient", max_entries_per_recipient);
        }
        Ok(())
    }
}
