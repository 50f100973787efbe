//! Quiet messages of one client: gathered as they come, handed over as one.
//!
//! Owns the bundle that is being put together. Nothing ever waits in it: it goes with the last message
//! that was read already, however few there are. Who sends many sends nearly the same line
//! again and again, so that a line which equals the one before is known and not read again.

use std::rc::Rc;
use std::time::Duration;

use receptor_mesh::{Payload, Recipient, Submission};
use receptor_proto::bundle::{BundleWriter, PART_MAX};
use receptor_proto::control::SendCommand;
use receptor_proto::packet::Content;
use receptor_proto::{Directive, NodeId};
use serde_json::value::RawValue;

use super::outlet::Tag;
use super::send::new_id;
use crate::engine::{Mailbox, Quiet, Submit, Taking};

/// Longest line that is remembered, in bytes.
const LINE_KEPT: usize = 1024;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Gathering {
    pub(super) taking: Rc<Taking>,
    open: Option<Open>,
    /// The line of the last message, with its end, and the size of the payload behind it.
    line: Vec<u8>,
    size: usize,
    /// Bytes of the last bundle: the next is about as large.
    last: usize,
}

/// What all messages of a bundle have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kind {
    pub(super) recipient: NodeId,
    pub(super) directive: Directive,
    pub(super) content: Content,
    pub(super) expiry: Duration,
    pub(super) wait: bool,
}

#[derive(Debug)]
struct Open {
    kind: Kind,
    writer: BundleWriter,
    tags: Vec<(Tag, usize)>,
}

impl Gathering {
    /// Whether nothing was gathered.
    pub(super) fn is_empty(&self) -> bool {
        self.open.is_none()
    }

    /// Adds a message. False: it cannot go with the others.
    pub(super) fn add(&mut self, kind: &Kind, payload: &[u8], tag: Option<&RawValue>) -> bool {
        let open = self.open.get_or_insert_with(|| Open {
            writer: BundleWriter::with_room(kind.content, self.last),
            kind: kind.clone(),
            tags: Vec::new(),
        });
        if open.kind != *kind || !open.writer.push(payload) {
            return false;
        }
        let text = |tag: Option<&RawValue>| tag.map(|tag| tag.get().to_owned());
        match open.tags.last_mut() {
            Some((last, count)) if text(last.as_deref()) == text(tag) => *count += 1,
            Some(_) | None => open.tags.push((tag.map(ToOwned::to_owned), 1)),
        }
        true
    }

    /// Remembers the line that [`Self::add`] was called for: messages with the same follow it, each
    /// with so many raw bytes.
    pub(super) fn remember(&mut self, line: &[u8], size: usize) {
        self.line.clear();
        if self.open.is_some() && line.len() < LINE_KEPT && size <= PART_MAX {
            self.line.extend_from_slice(line);
            self.line.push(b'\n');
            self.size = size;
        }
    }

    /// Takes messages like the last one from the front of what was read: so many bytes of it.
    /// It stops where the bundle is full.
    pub(super) fn repeats(&mut self, read: &[u8]) -> usize {
        let Some(open) = &mut self.open else {
            return 0;
        };
        let (head, all) = (self.line.len(), self.line.len() + self.size);
        if head == 0 {
            return 0;
        }
        let before = open.writer.count();
        let mut at = 0;
        while let Some(message) = read.get(at..at + all)
            && let Some(payload) = message.strip_prefix(&self.line[..])
            && open.writer.push(payload)
        {
            at += all;
        }
        if let Some((_, count)) = open.tags.last_mut() {
            *count += open.writer.count() - before;
        }
        at
    }

    /// What was gathered, as one message.
    pub(super) fn part(&mut self, mailbox: &Rc<Mailbox>) -> Option<Submit> {
        let Open { kind, writer, tags } = self.open.take()?;
        self.last = writer.size();
        let quiet = Quiet::new(tags, &self.taking);
        let submission = Submission {
            id: new_id(),
            recipient: Recipient::Node(kind.recipient),
            directive: kind.directive,
            content: Content::Bundle,
            payload: Payload::Inline(writer.finish()),
            volatile: true,
            respond: false,
            expiry: kind.expiry,
            repeatable: false,
        };
        Some(Submit {
            submission,
            wait: kind.wait,
            detach: false,
            digest: None,
            quiet: Some(quiet),
            mailbox: Rc::clone(mailbox),
        })
    }
}

/// Whether a quiet message goes with others: its payload is of a known, small size and stands or
/// follows right here, and it is for one node.
pub(super) fn gathers(command: &SendCommand) -> bool {
    let raw = command.size.unwrap_or(0);
    let json = command.payload.as_ref().map_or(0, |json| json.get().len());
    let text = command.text.as_ref().map_or(0, String::len);
    !command.any
        && !command.stream
        && usize::try_from(raw).is_ok_and(|raw| raw.max(json).max(text) <= PART_MAX)
}
