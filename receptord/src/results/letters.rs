//! Dead letters: the messages that were given up here, each with its reason.
//!
//! Owns `dead-letters/` and its limits. A letter is one line of JSON and the payload behind it; a
//! large payload becomes one more name of the file that it is. Kept until it is sent again, dropped,
//! old enough, or the oldest of too many. A letter is one when it is on the disk; until it was said
//! that it is, its message is the core's as before, and the letter may come again.

use std::cell::{Cell, OnceCell, RefCell};
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::path::PathBuf;
use std::rc::Rc;

use bytes::Bytes;
use receptor_mesh::EntryId;
use receptor_proto::control::DeadLetterStatus;
use receptor_proto::packet::{Content, SEGMENT_MAX};
use receptor_proto::{Directive, ErrorBody, ErrorCode, IdPrefix, MessageId, NodeId};
use serde::{Deserialize, Serialize};

use super::disk::{Disk, Op};
use super::{now_ms, resolve};
use crate::by_id::ById;

/// Letters kept at once; of more, the oldest is dropped.
const LETTERS_MAX: usize = 10_000;
/// Bytes of them.
const BYTES_MAX: u64 = 1 << 30;
/// The longest first line.
const LINE_MAX: u64 = 1 << 20;

/// A message that was given up.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct DeadLetter {
    /// The message.
    pub(crate) id: MessageId,
    /// What was to be run.
    pub(crate) directive: Directive,
    /// Where.
    pub(crate) recipient: NodeId,
    /// Whose it is, when it was in custody here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) origin: Option<NodeId>,
    /// What the payload is.
    pub(crate) content: Content,
    /// Its size in bytes.
    pub(crate) size: u64,
    /// Responses were wanted.
    pub(crate) respond: bool,
    /// When it was given up, in milliseconds since 1970.
    pub(crate) at_ms: u64,
    /// Why.
    pub(crate) reason: ErrorBody,
}

impl DeadLetter {
    /// The payload is in a file of its own.
    pub(crate) fn is_apart(&self) -> bool {
        self.size > SEGMENT_MAX as u64
    }
}

/// The payload of a letter that is to be kept.
#[derive(Debug)]
pub(crate) enum LetterBody {
    /// This.
    Inline(Bytes),
    /// In this file, which gets another name.
    Apart(PathBuf),
}

/// Is told that the letter of this entry is on the disk, or could not be put there.
pub(crate) type OnKept = Box<dyn Fn(EntryId, Result<(), ErrorBody>)>;

/// See the module. Clones are the same letters.
#[derive(Clone)]
pub(crate) struct DeadLetters {
    disk: Disk,
    letters: Rc<RefCell<ById<DeadLetter>>>,
    /// Of their payloads.
    bytes: Rc<Cell<u64>>,
    on_kept: Rc<OnceCell<OnKept>>,
}

impl std::fmt::Debug for DeadLetters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let letters = self.letters.borrow().len();
        write!(f, "DeadLetters({letters}, {} B)", self.bytes.get())
    }
}

impl DeadLetters {
    pub(super) fn open(dir: PathBuf) -> io::Result<Self> {
        let mut letters = ById::default();
        let mut apart = Vec::new();
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            if path.extension().is_some() {
                apart.push(path);
                continue;
            }
            let mut line = Vec::new();
            BufReader::new(File::open(&path)?.take(LINE_MAX)).read_until(b'\n', &mut line)?;
            match serde_json::from_slice::<DeadLetter>(&line) {
                Ok(letter) => {
                    letters.insert(letter.id, letter);
                }
                Err(error) => {
                    tracing::warn!(file = %path.display(), %error, "this is no dead letter; it is left alone");
                }
            }
        }
        for path in apart {
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or("");
            let (id, kind) = name.split_once('.').unwrap_or((name, ""));
            let id = id.parse::<MessageId>().ok();
            let kind = kind.strip_suffix(receptor_spool::SUMS).unwrap_or(kind);
            let is_payload = kind == "payload";
            if id.is_some_and(|id| !is_payload || !letters.contains_key(&id)) {
                fs::remove_file(&path)?;
            }
        }
        let sizes = letters.values().map(|letter| letter.size);
        // What a file says of itself can be anything.
        let bytes = sizes.fold(0, u64::saturating_add);
        Ok(Self {
            disk: Disk::new(dir),
            bytes: Rc::new(Cell::new(bytes)),
            letters: Rc::new(RefCell::new(letters)),
            on_kept: Rc::default(),
        })
    }

    /// Who is told what came of [`Self::keep`].
    pub(crate) fn start(&self, on_kept: OnKept) {
        // There is one engine, which does this once.
        let _ = self.on_kept.set(on_kept);
    }

    /// Where the payload of a letter that has it in a file of its own is to be, or is.
    pub(crate) fn payload_path(&self, id: MessageId) -> PathBuf {
        self.disk.path(&payload_name(id))
    }

    /// Keeps the letter of the message with this entry, and then says so.
    pub(crate) fn keep(&self, entry: EntryId, letter: DeadLetter, body: LetterBody) {
        let id = letter.id;
        let written = serde_json::to_vec(&letter).map(|mut bytes| {
            bytes.push(b'\n');
            let mut links = Vec::new();
            match body {
                LetterBody::Inline(body) => bytes.extend_from_slice(&body),
                LetterBody::Apart(path) => links.push((path, payload_name(id))),
            }
            Op::Append {
                name: id.to_string(),
                offset: 0,
                bytes,
                links,
            }
        });
        let letters = self.clone();
        match written {
            Ok(op) => self.disk.push(op, move |result| {
                letters.kept(entry, letter, result);
            }),
            Err(error) => self.kept(entry, letter, Err(error.into())),
        }
    }

    fn kept(&self, entry: EntryId, letter: DeadLetter, result: io::Result<()>) {
        // Whatever was there under this name has been written over.
        self.take_out(letter.id);
        let result = match result {
            Ok(()) => {
                self.bytes.set(self.bytes.get().saturating_add(letter.size));
                self.letters.borrow_mut().insert(letter.id, letter);
                self.bound();
                Ok(())
            }
            Err(error) => {
                self.remove(letter.id);
                Err(ErrorBody::new(ErrorCode::Internal, error.to_string()))
            }
        };
        if let Some(on_kept) = self.on_kept.get() {
            on_kept(entry, result);
        }
    }

    /// Drops the oldest tenth of too many, so that not every letter has to make room.
    fn bound(&self) {
        let letters = self.letters.borrow();
        let bytes = self.bytes.get();
        if letters.len() <= LETTERS_MAX && bytes <= BYTES_MAX {
            return;
        }
        let mut oldest: Vec<_> = letters.values().map(|l| (l.at_ms, l.id)).collect();
        drop(letters);
        oldest.sort_unstable();
        let mut dropped = 0u64;
        for (_, id) in oldest {
            let count = self.letters.borrow().len();
            if count <= LETTERS_MAX - LETTERS_MAX / 10 && self.bytes.get() <= BYTES_MAX / 10 * 9 {
                break;
            }
            self.forget(id);
            dropped += 1;
        }
        tracing::warn!(dropped, "the oldest dead letters were dropped to make room");
    }

    /// Drops those that were given up at or before this time.
    pub(super) fn sweep(&self, before_ms: u64) {
        let letters = self.letters.borrow();
        let old = letters.values().filter(|letter| letter.at_ms <= before_ms);
        let old: Vec<_> = old.map(|letter| letter.id).collect();
        drop(letters);
        for id in old {
            self.forget(id);
        }
    }

    /// Drops a letter.
    pub(crate) fn forget(&self, id: MessageId) {
        if self.take_out(id) {
            self.remove(id);
        }
    }

    /// Whether there was such a letter.
    fn take_out(&self, id: MessageId) -> bool {
        let gone = self.letters.borrow_mut().remove(&id);
        let size = gone.as_ref().map_or(0, |letter| letter.size);
        self.bytes.set(self.bytes.get().saturating_sub(size));
        gone.is_some()
    }

    fn remove(&self, id: MessageId) {
        let sums = format!("{}{}", payload_name(id), receptor_spool::SUMS);
        let names = vec![id.to_string(), payload_name(id), sums];
        self.disk.push(Op::Remove { names }, |result| {
            if let Err(error) = result {
                tracing::warn!(%error, "a dead letter was not removed");
            }
        });
    }

    /// Waits until what was asked before is on the disk.
    pub(super) async fn flushed(&self) {
        self.disk.flushed().await;
    }

    /// The letter whose id begins so.
    ///
    /// # Errors
    ///
    /// When there is none, or more than one.
    pub(crate) fn find(&self, prefix: &IdPrefix) -> Result<DeadLetter, ErrorBody> {
        let letters = self.letters.borrow();
        let id = resolve(prefix, letters.keys().copied());
        let found = id.as_ref().ok().and_then(|id| letters.get(id));
        match (found, id) {
            (Some(letter), _) => Ok(letter.clone()),
            (None, Err(error)) if error.code != ErrorCode::NotFound => Err(error),
            (None, _) => {
                let text = format!("there is no dead letter {prefix}");
                Err(ErrorBody::new(ErrorCode::NotFound, text))
            }
        }
    }

    /// The payload of a letter that has it in its own file.
    pub(crate) async fn body(&self, letter: &DeadLetter) -> io::Result<Bytes> {
        let path = self.disk.path(&letter.id.to_string());
        let size = letter.size;
        let read = tokio::task::spawn_blocking(move || {
            let mut file = BufReader::new(File::open(path)?);
            let mut line = Vec::new();
            file.read_until(b'\n', &mut line)?;
            let mut body = Vec::new();
            file.read_to_end(&mut body)?;
            if body.len() as u64 != size {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "it is damaged"));
            }
            Ok(Bytes::from(body))
        });
        read.await.map_err(io::Error::other)?
    }

    /// All of them, oldest first.
    pub(crate) fn statuses(&self) -> Vec<DeadLetterStatus> {
        let now = now_ms();
        let letters = self.letters.borrow();
        let mut all: Vec<_> = letters.values().collect();
        all.sort_unstable_by_key(|letter| (letter.at_ms, letter.id));
        all.into_iter()
            .map(|letter| DeadLetterStatus {
                id: letter.id,
                directive: letter.directive.clone(),
                recipient: letter.recipient.clone(),
                origin: letter.origin.clone(),
                size: letter.size,
                age_ms: now.saturating_sub(letter.at_ms),
                reason: letter.reason.clone(),
            })
            .collect()
    }
}

fn payload_name(id: MessageId) -> String {
    format!("{id}.payload")
}
