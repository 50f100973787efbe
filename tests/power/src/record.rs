//! The lines of the log between the library in a daemon and the test that cuts its power.
//!
//! Owns the coding of one record. A record is written with one call, so that the death of its
//! writer leaves it whole or torn at the very end.

/// One thing that was done to the directory, in the order in which it was done.
///
/// Paths are below the directory, without a `/` at the front; files are told apart by the number
/// that the file system gave them (`ino`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// A file or directory has been opened.
    Open {
        /// Its number.
        ino: u64,
        /// Whether this call has made it.
        created: bool,
        /// Whether it was cut to nothing.
        truncated: bool,
        /// Where it is.
        path: Vec<u8>,
    },
    /// Bytes have been written.
    Write {
        /// To which file.
        ino: u64,
        /// From where on.
        offset: u64,
        /// What.
        bytes: Vec<u8>,
    },
    /// A file has been given a length.
    Truncate {
        /// Which.
        ino: u64,
        /// The length in bytes.
        length: u64,
    },
    /// A file is at least so long now.
    Allocate {
        /// Which.
        ino: u64,
        /// The length in bytes.
        length: u64,
    },
    /// Somebody asks for a file or directory to be made durable.
    SyncBegin {
        /// Which.
        ino: u64,
        /// Tells this call from others.
        call: u64,
    },
    /// That call is about to return: what was there at its beginning is durable.
    SyncEnd {
        /// Which.
        ino: u64,
        /// The call.
        call: u64,
    },
    /// A name has been moved, over one that may have been there.
    Rename {
        /// The old name.
        from: Vec<u8>,
        /// The new one; empty when it is outside of the directory.
        to: Vec<u8>,
    },
    /// A file has got another name.
    Link {
        /// Its number.
        ino: u64,
        /// The new name.
        to: Vec<u8>,
    },
    /// A name has been removed, of a file or of an empty directory.
    Remove {
        /// Which.
        path: Vec<u8>,
    },
    /// A directory has been made.
    MakeDir {
        /// Its number.
        ino: u64,
        /// Where.
        path: Vec<u8>,
    },
    /// Something was done that cannot be followed.
    Lost {
        /// What, and with what.
        what: Vec<u8>,
    },
}

impl Record {
    /// As it stands in the log.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let (kind, a, b, text, more): (u8, u64, u64, &[u8], &[u8]) = match self {
            Self::Open {
                ino,
                created,
                truncated,
                path,
            } => {
                let flags = u64::from(*created) | u64::from(*truncated) << 1;
                (0, *ino, flags, path, &[])
            }
            Self::Write { ino, offset, bytes } => (1, *ino, *offset, bytes, &[]),
            Self::Truncate { ino, length } => (2, *ino, *length, &[], &[]),
            Self::Allocate { ino, length } => (3, *ino, *length, &[], &[]),
            Self::SyncBegin { ino, call } => (4, *ino, *call, &[], &[]),
            Self::SyncEnd { ino, call } => (5, *ino, *call, &[], &[]),
            Self::Rename { from, to } => (6, 0, 0, from, to),
            Self::Link { ino, to } => (7, *ino, 0, to, &[]),
            Self::Remove { path } => (8, 0, 0, path, &[]),
            Self::MakeDir { ino, path } => (9, *ino, 0, path, &[]),
            Self::Lost { what } => (10, 0, 0, what, &[]),
        };
        let mut bytes = Vec::with_capacity(HEAD + text.len() + more.len());
        bytes.push(kind);
        for number in [a, b, text.len() as u64, more.len() as u64] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(text);
        bytes.extend_from_slice(more);
        bytes
    }

    /// The first record, and what is behind it; nothing when it is not whole.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (head, rest) = bytes.split_at_checked(HEAD)?;
        let number = |at: usize| {
            let bytes = head[1 + at * 8..].first_chunk::<8>()?;
            Some(u64::from_le_bytes(*bytes))
        };
        let (a, b) = (number(0)?, number(1)?);
        let length = |at| usize::try_from(number(at)?).ok();
        let (text, rest) = rest.split_at_checked(length(2)?)?;
        let (more, rest) = rest.split_at_checked(length(3)?)?;
        let text = text.to_vec();
        let record = match head[0] {
            0 => Self::Open {
                ino: a,
                created: b & 1 != 0,
                truncated: b & 2 != 0,
                path: text,
            },
            1 => Self::Write {
                ino: a,
                offset: b,
                bytes: text,
            },
            2 => Self::Truncate { ino: a, length: b },
            3 => Self::Allocate { ino: a, length: b },
            4 => Self::SyncBegin { ino: a, call: b },
            5 => Self::SyncEnd { ino: a, call: b },
            6 => Self::Rename {
                from: text,
                to: more.to_vec(),
            },
            7 => Self::Link { ino: a, to: text },
            8 => Self::Remove { path: text },
            9 => Self::MakeDir { ino: a, path: text },
            _ => Self::Lost { what: text },
        };
        Some((record, rest))
    }
}

/// Kind, two numbers and two lengths.
const HEAD: usize = 1 + 4 * 8;
