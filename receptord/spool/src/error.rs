//! Why something was not done, in words for the operator.

use std::io;

use receptor_proto::NodeId;
use receptor_proto::record::EntryId;

/// Why the spool did not do what it was asked. Nothing of it was done, except where a variant
/// says otherwise.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpoolError {
    /// A limit of the configuration.
    #[error("the spool is full ({limit} = {max})")]
    Full {
        /// Its name, as in the configuration.
        limit: &'static str,
        /// Its value.
        max: u64,
    },
    /// A limit of the configuration, for one recipient.
    #[error("the spool is full for {recipient} ({limit} = {max})")]
    FullFor {
        /// For whom.
        recipient: NodeId,
        /// Its name, as in the configuration.
        limit: &'static str,
        /// Its value.
        max: u64,
    },
    /// The file system has no room.
    #[error("the spool's disk is full")]
    DiskFull,
    /// The file system failed.
    #[error("{doing} of the spool: {text}")]
    Disk {
        /// What was tried, on what.
        doing: String,
        /// What kind of failure it was.
        kind: io::ErrorKind,
        /// What the system said.
        text: String,
    },
    /// One group of records is larger than the spool takes.
    #[error("{size} bytes are more than can be written in one step ({max})")]
    TooLarge {
        /// What it has.
        size: usize,
        /// What it may have.
        max: usize,
    },
    /// The entry is not there.
    #[error("there is no entry {}", .0.0)]
    NoEntry(EntryId),
    /// The entry is there already.
    #[error("there is an entry {} already", .0.0)]
    EntryExists(EntryId),
    /// The entry is there and cannot be read.
    #[error("what was stored as entry {} is damaged: the disk gives back something else", .0.0)]
    Damaged(EntryId),
    /// A part of a payload has another checksum than it was given with.
    #[error("a part of entry {} was changed on its way", .0.0)]
    Changed(EntryId),
    /// A part of a payload does not begin where the last one ended, or the payload is complete.
    #[error("a part of entry {} at {offset}, which ends at {end}", .entry.0)]
    OutOfOrder {
        /// Of which payload.
        entry: EntryId,
        /// Where the part begins.
        offset: u64,
        /// Where it would have to.
        end: u64,
    },
    /// A message says that its payload has another size than what was stored of it, or a sync of
    /// that failed once.
    #[error("the payload of entry {} is incomplete", .0.0)]
    Incomplete(EntryId),
    /// Another process has the spool open.
    #[error("the spool is in use by another process")]
    InUse,
    /// A newer version of this program wrote the spool.
    #[error("the spool has format version {found}, this program knows up to {known}")]
    Newer {
        /// What was found.
        found: u32,
        /// The newest that can be read.
        known: u32,
    },
    /// It was opened to be read.
    #[error("the spool is open for reading only")]
    ReadOnly,
}

impl SpoolError {
    pub(crate) fn io(doing: impl Into<String>, error: &io::Error) -> Self {
        if is_full(error) {
            return Self::DiskFull;
        }
        Self::Disk {
            doing: doing.into(),
            kind: error.kind(),
            text: error.to_string(),
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}
