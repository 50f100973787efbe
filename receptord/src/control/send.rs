//! The payload of `send`: from the client's input to where the core wants it.
//!
//! Owns taking a payload in, whatever its size, without ever holding more of it in memory than
//! a few reads, and keeping the input in step with the commands when a message is refused.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use receptor_mesh::{EntryId, Payload, Recipient, Submission};
use receptor_proto::control::{SendCommand, keyed_id};
use receptor_proto::packet::{Content, SEGMENT_MAX};
use receptor_proto::{ErrorBody, ErrorCode, MessageId};
use sha2::{Digest as _, Sha256};

use super::command::invalid;
use super::session::{Failure, Session};
use crate::engine::{Input, Submit};
use crate::spooler::{Store, Writing};

/// Bytes of a payload taken from the input at once.
const PIECE: usize = 256 * 1024;
/// Bytes of a payload that are worth a write of their own.
const PART_MIN: usize = 64 * 1024;
/// Parts that are written while the next one is read: client, session and disk wake each other for
/// every one, and with a single one each of them waits for the two others.
const WRITING_MAX: usize = 4;
/// A refused payload of up to this size is read and dropped, so that the next command can be
/// understood; beyond it the connection is closed, which is cheaper for both sides.
const DISCARD_MAX: u64 = 16 << 20;

/// Reads the payload and makes the message.
pub(super) async fn prepare(
    session: &mut Session,
    command: SendCommand,
) -> Result<Submit, Failure> {
    let checked = match command.check().and_then(|checked| {
        if command.volatile && command.size.is_some_and(|size| size > SEGMENT_MAX as u64) {
            return Err(too_large_for_volatile());
        }
        Ok(checked)
    }) {
        Ok(checked) => checked,
        Err(error) => {
            discard(session, &command).await?;
            return Err(error.into());
        }
    };
    // What cannot be taken is refused before its first byte.
    if let Some(size) = command.size.filter(|size| *size > SEGMENT_MAX as u64) {
        let room = if command.volatile {
            Err(too_large_for_volatile())
        } else {
            let store = &session.context.store;
            store.room_for(checked.recipient.clone(), size).await
        };
        if let Err(error) = room {
            return Err(refuse_rest(session, Some(size), error).await);
        }
    }
    let mut hash = command.key.as_ref().map(|_| Sha256::new());
    let (content, payload) = payload(session, &command, hash.as_mut()).await?;
    if command.volatile && matches!(payload, Payload::Stored { .. }) {
        if let Payload::Stored { entry, .. } = payload {
            session.context.store.remove(entry);
        }
        return Err(too_large_for_volatile().into());
    }
    let digest = hash.map(|payload| digest(&command, content, payload));
    let id = match &command.key {
        Some(key) => keyed_id(&session.context.node, key),
        None => new_id(),
    };
    let expiry = expiry(session, &command);
    let submission = Submission {
        id,
        recipient: match checked.recipient {
            Some(node) => Recipient::Node(node),
            None => Recipient::Any {
                metadata: command.metadata,
            },
        },
        directive: checked.directive,
        content,
        payload,
        volatile: command.volatile,
        respond: command.respond,
        expiry,
        repeatable: command.key.is_some(),
    };
    Ok(Submit {
        submission,
        wait: command.wait,
        detach: command.detach,
        digest,
        quiet: None,
        mailbox: Rc::clone(&session.outlet.mailbox),
    })
}

/// How long the message is worth delivering.
pub(super) fn expiry(session: &Session, command: &SendCommand) -> Duration {
    let default = session.context.settings.borrow().spool.default_expiry;
    command.expires_ms.map_or(default, Duration::from_millis)
}

/// What a send with a key asks for, in short: it must be the same each time.
fn digest(command: &SendCommand, content: Content, payload: Sha256) -> String {
    let mut all = Sha256::new();
    let mut add = |part: &[u8]| {
        all.update((part.len() as u64).to_le_bytes());
        all.update(part);
    };
    add(command.directive.as_bytes());
    add(command.recipient.as_deref().unwrap_or_default().as_bytes());
    for (key, value) in &command.metadata {
        add(key.as_bytes());
        add(value.as_bytes());
    }
    add(&[content as u8]);
    add(&payload.finalize());
    all.finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// The message is not taken: its payload is nobody's.
pub(super) fn forget_payload(session: &Session, payload: &Payload) {
    if let Payload::Stored { entry, .. } = payload {
        session.context.store.remove(*entry);
    }
}

/// A UUID of version 7: its time sorts, the rest is chance. The generator of this thread is
/// seeded by the system once; asking the system for every message would cost a call each.
pub(crate) fn new_id() -> MessageId {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let millis = since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0));
    let chance: [u8; 10] = std::array::from_fn(|_| fastrand::u8(..));
    let uuid = uuid::Builder::from_unix_timestamp_millis(millis, &chance).into_uuid();
    MessageId::from_u128(uuid.as_u128())
}

/// Reads and drops the raw payload of a message that is refused.
pub(super) async fn discard(session: &mut Session, command: &SendCommand) -> Result<(), Failure> {
    let mut rest = match (command.size, command.stream) {
        (Some(size), _) => size,
        (None, true) => u64::MAX,
        (None, false) => return Ok(()),
    };
    let mut dropped = 0;
    while rest > 0 {
        if dropped > DISCARD_MAX || rest != u64::MAX && rest > DISCARD_MAX {
            let text = "the message was refused, and its payload is too large to be read only to be dropped";
            return Err(Failure::Fatal(ErrorBody::new(
                ErrorCode::PayloadTooLarge,
                text,
            )));
        }
        let want = usize::try_from(rest).unwrap_or(usize::MAX).min(PIECE);
        let Some(piece) = session.input.raw(want).await.unwrap_or(None) else {
            return Ok(());
        };
        let length = piece.len() as u64;
        dropped += length;
        if rest != u64::MAX {
            rest -= length;
        }
    }
    Ok(())
}

fn too_large_for_volatile() -> ErrorBody {
    let text = format!("a volatile message carries at most {SEGMENT_MAX} bytes");
    ErrorBody::new(ErrorCode::PayloadTooLarge, text)
}

pub(super) async fn payload(
    session: &mut Session,
    command: &SendCommand,
    hash: Option<&mut Sha256>,
) -> Result<(Content, Payload), Failure> {
    let mut hash = hash;
    let said = command.content;
    if let Some(json) = &command.payload {
        let bytes = Bytes::copy_from_slice(json.get().as_bytes());
        add(&mut hash, &bytes);
        return Ok((said.unwrap_or(Content::Json), keep(session, bytes).await?));
    }
    if let Some(text) = &command.text {
        let bytes = Bytes::copy_from_slice(text.as_bytes());
        add(&mut hash, &bytes);
        return Ok((said.unwrap_or(Content::Text), keep(session, bytes).await?));
    }
    if command.size.is_none() && !command.stream {
        let empty = Payload::Inline(Bytes::new());
        return Ok((said.unwrap_or(Content::None), empty));
    }
    let payload = take(session, command.size, hash).await?;
    Ok((said.unwrap_or(Content::Bytes), payload))
}

fn add(hash: &mut Option<&mut Sha256>, bytes: &[u8]) {
    if let Some(hash) = hash {
        hash.update(bytes);
    }
}

/// A payload that is in memory already.
async fn keep(session: &mut Session, bytes: Bytes) -> Result<Payload, Failure> {
    if bytes.len() <= SEGMENT_MAX {
        return Ok(Payload::Inline(bytes));
    }
    let growing = write(session, None, bytes).await?;
    growing.finish().await
}

/// Raw bytes: `size` of them, or all until the client's half-close.
async fn take(
    session: &mut Session,
    size: Option<u64>,
    mut hash: Option<&mut Sha256>,
) -> Result<Payload, Failure> {
    let mut head = BytesMut::new();
    let mut stored: Option<Growing> = None;
    let mut taken = 0u64;
    loop {
        let rest = size.map_or(u64::MAX, |size| size - taken);
        if rest == 0 {
            break;
        }
        let want = usize::try_from(rest).unwrap_or(usize::MAX).min(PIECE);
        let piece = match session.input.raw(want).await {
            Ok(Some(piece)) => piece,
            Ok(None) if size.is_none() => break,
            Ok(None) => {
                let text = format!(
                    "the payload ended after {taken} of {} bytes",
                    size.unwrap_or_default()
                );
                return Err(Failure::Fatal(invalid(text)));
            }
            Err(_) => {
                return Err(Failure::Fatal(invalid("the payload could not be read")));
            }
        };
        taken += piece.len() as u64;
        add(&mut hash, &piece);
        let part = if stored.is_some() && head.is_empty() && piece.len() >= PART_MIN {
            piece
        } else {
            head.extend_from_slice(&piece);
            let whole = size.is_some_and(|size| size <= SEGMENT_MAX as u64);
            if whole || stored.is_none() && head.len() <= SEGMENT_MAX {
                continue;
            }
            // Pieces as small as the client sent them would make as many small writes.
            if head.len() < PART_MIN && size != Some(taken) && stored.is_some() {
                continue;
            }
            head.split().freeze()
        };
        stored = match write(session, stored.take(), part).await {
            Ok(growing) => Some(growing),
            Err(Failure::Error(error)) => {
                return Err(refuse_rest(session, size.map(|size| size - taken), error).await);
            }
            Err(failure) => return Err(failure),
        };
    }
    let Some(mut growing) = stored else {
        return Ok(Payload::Inline(head.freeze()));
    };
    if !head.is_empty() {
        growing = write(session, Some(growing), head.freeze()).await?;
    }
    growing.finish().await
}

/// A payload on its way into the store, which forgets it if this ends before it is complete.
struct Growing {
    store: Store,
    entry: EntryId,
    /// Bytes that the store was given.
    size: u64,
    /// Parts of them that are being written while more is read.
    writing: VecDeque<Writing>,
    complete: bool,
}

impl Growing {
    /// Waits until all of it is durable.
    async fn finish(mut self) -> Result<Payload, Failure> {
        for part in &mut self.writing {
            part.done().await?;
        }
        self.store.finish(self.entry).await?;
        self.complete = true;
        Ok(Payload::Stored {
            entry: self.entry,
            size: self.size,
        })
    }
}

impl Drop for Growing {
    fn drop(&mut self) {
        if !self.complete {
            self.store.remove(self.entry);
        }
    }
}

/// Writes a part behind what is there.
async fn write(
    session: &Session,
    stored: Option<Growing>,
    part: Bytes,
) -> Result<Growing, Failure> {
    let store = &session.context.store;
    let length = part.len() as u64;
    if let Some(mut growing) = stored {
        if growing.writing.len() >= WRITING_MAX
            && let Some(mut oldest) = growing.writing.pop_front()
        {
            oldest.done().await?;
        }
        let writing = store.write(growing.entry, growing.size, part);
        growing.writing.push_back(writing);
        growing.size += length;
        return Ok(growing);
    }
    let entry = session.context.engine.ask(Input::NewEntry).await?;
    Ok(Growing {
        store: store.clone(),
        entry,
        size: length,
        writing: VecDeque::from([store.write(entry, 0, part)]),
        complete: false,
    })
}

/// The payload cannot be kept; what is left of it must not be taken for commands.
async fn refuse_rest(session: &mut Session, rest: Option<u64>, error: ErrorBody) -> Failure {
    let command = SendCommand {
        size: rest,
        stream: rest.is_none(),
        ..SendCommand::default()
    };
    match discard(session, &command).await {
        Ok(()) => Failure::Error(error),
        Err(Failure::Fatal(_)) => Failure::Fatal(error),
        Err(failure) => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_differ_and_are_uuids() {
        let ids: Vec<_> = (0..1000).map(|_| new_id()).collect();
        let distinct: std::collections::BTreeSet<_> = ids.iter().collect();
        assert_eq!(distinct.len(), ids.len());
        let uuid = uuid::Uuid::from_u128(ids[0].as_u128());
        assert_eq!(uuid.get_version_num(), 7);
        let (seconds, nanos) = uuid.get_timestamp().unwrap().to_unix();
        let made = seconds * 1000 + u64::from(nanos) / 1_000_000;
        assert_eq!(ids[0].made_ms(), Some(made));
        let keyed = uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, b"key");
        assert_eq!(MessageId::from_u128(keyed.as_u128()).made_ms(), None);
    }
}
