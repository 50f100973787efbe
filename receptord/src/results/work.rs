//! One work that was sent from here, as the keeper knows it.
//!
//! Owns the decision how far the core may forget a work's responses: never before its client has
//! them, and never before they are on the disk when somebody may yet ask for them.

use std::collections::VecDeque;
use std::rc::Rc;

use receptor_mesh::{EntryId, Payload};
use receptor_proto::control::{WorkRole, WorkState};
use receptor_proto::{Directive, MessageId, NodeId};
use tokio::sync::Notify;

use super::ending::Ending;
use super::frame::{End, Head, VERSION};
use crate::engine::Response;

/// Responses of a work with a client that are not written, because most works end with fewer and
/// their client has them all.
const HELD_MAX: usize = 64;
/// The same in bytes, far below what the core lets wait.
const HELD_BYTES: u64 = 256 * 1024;

/// Why a file may not have been looked at, and how it is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unread {
    /// The core knows the work, and may have responses that are torn here.
    Open,
    /// The core does not, and it has ended: everything in its file is whole.
    Ended,
    /// The core does not, and nothing is known of an end.
    Orphan,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) directive: Option<Directive>,
    pub(super) recipient: Option<NodeId>,
    /// Milliseconds since 1970.
    pub(super) since_ms: u64,
    /// Of a send with a key: what it asked for.
    pub(super) digest: Option<String>,
    /// Its client was told that it is accepted.
    pub(super) accepted: bool,
    /// Its client is there and takes the responses as they come.
    pub(super) client: bool,
    /// The highest serial that the client has.
    pub(super) taken: u64,
    /// The highest serial that came.
    pub(super) last: u64,
    /// Came, and is not on the disk.
    pub(super) pending: VecDeque<Response>,
    pub(super) pending_bytes: u64,
    /// What is being written: the highest serial in it.
    pub(super) writing: Option<u64>,
    /// The highest serial on the disk.
    pub(super) written: u64,
    /// There is a file.
    pub(super) has_file: bool,
    /// Where the last response in it ends.
    pub(super) length: u64,
    /// Bytes on the disk, with payloads in files of their own.
    pub(super) bytes: u64,
    /// The serials of those.
    pub(super) apart: Vec<u64>,
    /// Readers of the file.
    pub(super) readers: usize,
    /// Nobody wants the responses any more.
    pub(super) released: bool,
    /// They were dropped to make room.
    pub(super) dropped: bool,
    /// Up to where the core was told to forget.
    pub(super) told: u64,
    /// What its file holds was not looked at since the start: of all about the file only
    /// `has_file` and, perhaps with some too many, `apart` are known.
    pub(super) unread: Option<Unread>,
    /// The memo that it ended.
    pub(super) memo: Option<EntryId>,
    /// How many responses that says there were.
    pub(super) said: u64,
    /// The last one came: how it ended, and when.
    pub(super) end: Option<(End, u64)>,
    /// Wakes readers.
    pub(super) changed: Rc<Notify>,
}

impl Work {
    pub(super) fn new(since_ms: u64) -> Self {
        Self {
            directive: None,
            recipient: None,
            since_ms,
            digest: None,
            accepted: false,
            client: false,
            taken: 0,
            last: 0,
            pending: VecDeque::new(),
            pending_bytes: 0,
            writing: None,
            written: 0,
            has_file: false,
            length: 0,
            bytes: 0,
            apart: Vec::new(),
            readers: 0,
            released: false,
            dropped: false,
            told: 0,
            unread: None,
            memo: None,
            said: 0,
            end: None,
            changed: Rc::new(Notify::new()),
        }
    }

    pub(super) fn head(&self, id: MessageId) -> Head {
        Head {
            version: VERSION,
            id,
            directive: self.directive.clone(),
            recipient: self.recipient.clone(),
            since_ms: self.since_ms,
            digest: self.digest.clone(),
        }
    }

    /// As it is to be remembered when it has ended.
    pub(super) fn ending(&self, id: MessageId) -> Option<Ending> {
        let (end, at_ms) = self.end.clone()?;
        Some(Ending {
            id,
            role: WorkRole::Sent,
            directive: self.directive.clone(),
            peer: self.recipient.clone(),
            since_ms: self.since_ms,
            at_ms,
            responses: self.responses(),
            digest: self.digest.clone(),
            end,
        })
    }

    /// How many responses came.
    pub(super) fn responses(&self) -> u64 {
        self.last.max(self.said)
    }

    /// Its responses are of no use to anybody but its client.
    pub(super) fn is_let_go(&self) -> bool {
        self.released || self.dropped
    }

    /// The client has everything, and nobody else was promised anything.
    pub(super) fn is_served(&self) -> bool {
        self.client
            && self.end.is_some()
            && self.taken >= self.last
            && self.digest.is_none()
            && self.readers == 0
    }

    /// Whether what came is to be written now.
    pub(super) fn wants_disk(&self) -> bool {
        if self.is_let_go() || self.is_served() || self.pending.is_empty() {
            return false;
        }
        !self.client
            || self.has_file
            || self.digest.is_some()
            || self.readers > 0
            || self.pending.len() > HELD_MAX
            || self.pending_bytes > HELD_BYTES
    }

    /// Up to where the core may forget the responses.
    pub(super) fn done(&self) -> u64 {
        if self.is_served() {
            return self.last;
        }
        let safe = if self.is_let_go() {
            self.last
        } else {
            self.written
        };
        if self.client {
            safe.min(self.taken)
        } else {
            safe
        }
    }

    /// Everything that will come is on the disk, or will never be.
    pub(super) fn is_whole(&self) -> bool {
        self.end.is_some() && self.pending.is_empty()
    }

    /// The serial that a response is kept under; `None`: it is kept already. A work that its node's
    /// crash cut short may end before what came of it, and was not safe there: its end comes last.
    pub(super) fn place(&self, serial: u64, is_end: bool) -> Option<u64> {
        if serial > self.last {
            Some(serial)
        } else if is_end && self.end.is_none() {
            Some(self.last + 1)
        } else {
            None
        }
    }

    pub(super) fn push(&mut self, response: Response) {
        self.pending_bytes += size(&response);
        self.pending.push_back(response);
    }

    /// Forgets what waits to be written, up to a serial.
    pub(super) fn drop_pending(&mut self, to: u64) {
        while let Some(first) = self.pending.front() {
            if first.serial > to {
                break;
            }
            self.pending_bytes -= size(first);
            self.pending.pop_front();
        }
    }

    /// `arrived`: what the core knows of its request.
    pub(super) fn state(&self, arrived: Option<bool>) -> WorkState {
        if let Some((end, _)) = &self.end {
            return WorkState::of_end(end.code, end.error.as_ref());
        }
        if self.responses() > 0 || self.unread.is_some() {
            WorkState::Running
        } else if arrived == Some(true) {
            WorkState::Sent
        } else {
            WorkState::Accepted
        }
    }
}

pub(super) fn size(response: &Response) -> u64 {
    match &response.payload {
        Payload::Inline(bytes) => bytes.len() as u64,
        Payload::Stored { size, .. } => *size,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_work_that_a_crash_cut_short_comes_after_all_that_is_kept() {
        let mut work = Work::new(0);
        work.last = 3100;
        assert_eq!(work.place(2901, false), None);
        assert_eq!(work.place(2901, true), Some(3101));
        assert_eq!(work.place(3101, true), Some(3101));
        let (code, error) = (1, None);
        work.end = Some((End { code, error }, 0));
        assert_eq!(work.place(2901, true), None, "a second one");
    }
}
