//! What a client gets: reply lines and the letters of its [`Mailbox`], written as fast as it
//! reads and no faster.
//!
//! Owns the write side of one client's connection and the way a response is put into lines and
//! raw bytes. Tells the engine that a response is consumed only when its last byte is written,
//! so that a client that does not read holds back its own works and nobody else.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::rc::Rc;

use bytes::Bytes;
use receptor_mesh::{EntryId, Payload};
use receptor_proto::control::{ErrorReply, SendReply, SendResponse};
use receptor_proto::packet::{Content, SEGMENT_MAX};
use receptor_proto::{ErrorBody, MessageId};
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::net::UnixStream;
use tokio::sync::{Notify, oneshot};

use crate::engine::{EngineHandle, Input, Letter, Mailbox, News, Response};
use crate::store::Store;

/// Bytes of reply lines that may wait for one client before its commands wait too.
const LINES_MAX: usize = 1 << 20;
/// Bytes put together for one write.
const WRITE_TARGET: usize = 128 * 1024;
/// Bytes of a stored payload read at once.
const READ_PIECE: usize = 256 * 1024;
/// A tag as it came.
pub(super) type Tag = Option<Box<RawValue>>;

/// A send whose reply has not ended.
#[derive(Debug)]
pub(super) struct Sending {
    /// Comes back in every line.
    pub(super) tag: Tag,
    /// The reply ends with the acceptance.
    pub(super) until_accepted: bool,
    /// Told at the end, when the next command waits for it.
    pub(super) ended: Option<oneshot::Sender<()>>,
    /// It was accepted.
    pub(super) accepted: bool,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Outlet {
    /// From the engine.
    pub(super) mailbox: Rc<Mailbox>,
    lines: RefCell<VecDeque<Vec<u8>>>,
    lines_bytes: Cell<usize>,
    sends: RefCell<HashMap<MessageId, Sending>>,
    /// Sends that are not accepted yet.
    unaccepted: Cell<usize>,
    arrived: Rc<Notify>,
    room: Notify,
    finished: Cell<bool>,
}

impl Outlet {
    pub(super) fn new() -> Rc<Self> {
        let arrived = Rc::new(Notify::new());
        Rc::new(Self {
            mailbox: Mailbox::new(Rc::clone(&arrived)),
            lines: RefCell::default(),
            lines_bytes: Cell::new(0),
            sends: RefCell::default(),
            unaccepted: Cell::new(0),
            arrived,
            room: Notify::new(),
            finished: Cell::new(false),
        })
    }

    /// Adds a reply line; waits while too many wait.
    pub(super) async fn line(&self, line: Vec<u8>) {
        while self.lines_bytes.get() >= LINES_MAX {
            self.room.notified().await;
        }
        self.push(line);
    }

    fn push(&self, line: Vec<u8>) {
        self.lines_bytes.set(self.lines_bytes.get() + line.len());
        self.lines.borrow_mut().push_back(line);
        self.arrived.notify_one();
    }

    /// A send is on its way to the engine.
    pub(super) fn begin(&self, work: MessageId, sending: Sending) {
        if !sending.accepted {
            self.unaccepted.set(self.unaccepted.get() + 1);
        }
        self.sends.borrow_mut().insert(work, sending);
    }

    /// The engine does not know of a send after all.
    pub(super) fn forget(&self, work: MessageId) {
        self.sends.borrow_mut().remove(&work);
    }

    /// Sends whose reply has not ended.
    pub(super) fn in_flight(&self) -> usize {
        self.sends.borrow().len()
    }

    /// Waits until at most `max` sends are not accepted.
    pub(super) async fn wait_accepted(&self, max: usize) {
        while self.unaccepted.get() > max {
            self.room.notified().await;
        }
    }

    /// No more lines and sends will come; the writer ends when all is written.
    pub(super) fn finish(&self) {
        self.finished.set(true);
        self.arrived.notify_one();
    }

    /// The works whose replies have not ended: what the engine is told when the client is gone.
    pub(super) fn unfinished(&self) -> Vec<MessageId> {
        self.sends.borrow().keys().copied().collect()
    }

    /// Writes until finished or the client is gone.
    pub(super) async fn write(
        &self,
        stream: &UnixStream,
        store: &Store,
        engine: &EngineHandle,
    ) -> io::Result<()> {
        let mut buffer = Vec::new();
        let mut consumed = Vec::new();
        loop {
            let mut file = None;
            while buffer.len() < WRITE_TARGET {
                if let Some(line) = self.lines.borrow_mut().pop_front() {
                    self.lines_bytes.set(self.lines_bytes.get() - line.len());
                    buffer.extend_from_slice(&line);
                    continue;
                }
                let Some(letter) = self.mailbox.pop() else {
                    break;
                };
                let work = letter.work;
                let serial = match &letter.news {
                    News::Response(response) => Some(response.serial),
                    News::Accepted { .. } | News::Refused(_) => None,
                };
                let written = self.put(letter, &mut buffer);
                if let Some(serial) = serial {
                    if let Some((entry, size)) = written {
                        file = Some((entry, size, work, serial));
                        break;
                    }
                    consumed.push((work, serial));
                }
            }
            if buffer.is_empty() {
                if !consumed.is_empty() {
                    // Responses of sends that ended here already.
                    let consumed = std::mem::take(&mut consumed);
                    gone(engine.send(Input::Consumed(consumed)).await)?;
                    continue;
                }
                if self.finished.get() && self.sends.borrow().is_empty() {
                    return Ok(());
                }
                self.arrived.notified().await;
                continue;
            }
            write_all(stream, &buffer).await?;
            buffer.clear();
            if buffer.capacity() > WRITE_TARGET {
                buffer = Vec::new();
            }
            self.room.notify_one();
            if let Some((entry, size, work, serial)) = file {
                copy(stream, store, entry, size).await?;
                consumed.push((work, serial));
            }
            if !consumed.is_empty() {
                let consumed = std::mem::take(&mut consumed);
                gone(engine.send(Input::Consumed(consumed)).await)?;
            }
        }
    }

    /// Puts a letter into lines. `Some`: this stored payload must follow.
    fn put(&self, letter: Letter, buffer: &mut Vec<u8>) -> Option<(EntryId, u64)> {
        let Letter { work, news } = letter;
        let mut sends = self.sends.borrow_mut();
        // The reply to this send has ended: a response nobody asked for.
        let sending = sends.get_mut(&work)?;
        let mut file = None;
        let eof = match news {
            News::Accepted { recipient } => {
                if !std::mem::replace(&mut sending.accepted, true) {
                    self.unaccepted.set(self.unaccepted.get().saturating_sub(1));
                }
                let eof = sending.until_accepted;
                let reply = SendReply::Accepted {
                    id: work,
                    recipient,
                    eof,
                };
                put_line(buffer, sending.tag.as_deref(), &reply);
                eof
            }
            News::Refused(error) => {
                let reply = SendReply::Error { error, eof: true };
                put_line(buffer, sending.tag.as_deref(), &reply);
                true
            }
            News::Response(response) => {
                let eof = response.eof.is_some();
                file = put_response(buffer, sending.tag.as_deref(), work, response);
                eof
            }
        };
        if eof && let Some(sending) = sends.remove(&work) {
            if !sending.accepted {
                // Refused, or given up before it was accepted.
                self.unaccepted.set(self.unaccepted.get().saturating_sub(1));
            }
            if let Some(ended) = sending.ended {
                let _ = ended.send(());
            }
        }
        file
    }
}

/// One reply line, with the tag in front.
pub(super) fn tagged(tag: Option<&RawValue>, reply: &impl Serialize) -> Vec<u8> {
    let mut line = Vec::new();
    put_line(&mut line, tag, reply);
    line
}

/// The one-line error of a command that is not Go Receptor's.
pub(super) fn error_line(tag: Option<&RawValue>, error: ErrorBody) -> Vec<u8> {
    tagged(tag, &ErrorReply { error, eof: true })
}

fn put_line(buffer: &mut Vec<u8>, tag: Option<&RawValue>, reply: &impl Serialize) {
    let start = buffer.len();
    if let Some(tag) = tag {
        buffer.extend_from_slice(b"{\"tag\":");
        buffer.extend_from_slice(tag.get().as_bytes());
    }
    let object = buffer.len();
    if serde_json::to_writer(&mut *buffer, reply).is_err() {
        // Replies are plain structures with text keys; there is nothing in them that has no JSON.
        buffer.truncate(start);
        buffer.extend_from_slice(b"{\"eof\":true}\n");
        return;
    }
    if tag.is_some() {
        // `{"tag":1` and `{"a":2}` are one object with a comma in place of the second brace.
        if buffer.get(object + 1) == Some(&b'}') {
            buffer.remove(object);
        } else if let Some(brace) = buffer.get_mut(object) {
            *brace = b',';
        }
    }
    buffer.push(b'\n');
}

fn put_response(
    buffer: &mut Vec<u8>,
    tag: Option<&RawValue>,
    work: MessageId,
    response: Response,
) -> Option<(EntryId, u64)> {
    let Response {
        sender,
        serial,
        content,
        name,
        payload,
        eof,
    } = response;
    let (code, error) = match eof {
        Some(eof) => (Some(eof.code), eof.error),
        None => (None, None),
    };
    let mut reply = SendResponse {
        id: work,
        from: sender,
        serial,
        data: None,
        text: None,
        size: None,
        content: None,
        name,
        eof: code.is_some(),
        code,
        error,
    };
    let raw = match payload {
        Payload::Stored { entry, size } => {
            reply.size = Some(size);
            reply.content = Some(content);
            put_line(buffer, tag, &SendReply::Response(reply));
            return Some((entry, size));
        }
        // An empty text is a line like any other, for instance an empty one of a plugin's output.
        Payload::Inline(bytes) if bytes.is_empty() && content != Content::Text => None,
        Payload::Inline(bytes) => match shown(content, &bytes) {
            Shown::Json(data) => {
                reply.data = Some(data);
                None
            }
            Shown::Text(text) => {
                reply.text = Some(text);
                None
            }
            Shown::Raw => {
                reply.size = Some(bytes.len() as u64);
                reply.content = Some(content);
                Some(bytes)
            }
        },
    };
    put_line(buffer, tag, &SendReply::Response(reply));
    if let Some(raw) = raw {
        buffer.extend_from_slice(&raw);
    }
    None
}

enum Shown {
    Json(Box<RawValue>),
    Text(String),
    Raw,
}

/// How a payload is shown: as what it says it is when that is true, else as raw bytes.
fn shown(content: Content, bytes: &Bytes) -> Shown {
    const _: () = assert!(SEGMENT_MAX * 6 < receptor_proto::control::LINE_MAX);
    let Ok(text) = std::str::from_utf8(bytes) else {
        return Shown::Raw;
    };
    match content {
        Content::Text => Shown::Text(text.to_owned()),
        Content::Json => {
            // Newlines stand only between the tokens of JSON, where a blank does as well.
            let one_line = if text.contains(['\n', '\r']) {
                text.replace(['\n', '\r'], " ")
            } else {
                text.to_owned()
            };
            match RawValue::from_string(one_line) {
                Ok(data) => Shown::Json(data),
                Err(_) => Shown::Raw,
            }
        }
        Content::None | Content::Bytes => Shown::Raw,
    }
}

async fn write_all(stream: &UnixStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match stream.try_write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                stream.writable().await?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Writes a stored payload, exactly `size` bytes. An error ends the connection: what was
/// announced cannot be sent.
async fn copy(stream: &UnixStream, store: &Store, entry: EntryId, size: u64) -> io::Result<()> {
    let mut offset = 0;
    while offset < size {
        let rest = usize::try_from(size - offset).unwrap_or(usize::MAX);
        let piece = store
            .read(entry, offset, rest.min(READ_PIECE))
            .await
            .map_err(|error| io::Error::other(error.to_string()))?;
        if piece.is_empty() {
            return Err(io::Error::other("a stored payload is shorter than it was"));
        }
        write_all(stream, &piece).await?;
        offset += piece.len() as u64;
    }
    Ok(())
}

fn gone<E>(result: Result<(), E>) -> io::Result<()> {
    result.map_err(|_| io::Error::other("the engine has ended"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use receptor_proto::packet::Eof;

    fn response(content: Content, payload: &[u8]) -> Response {
        Response {
            sender: "b".parse().unwrap(),
            serial: 1,
            content,
            name: None,
            payload: Payload::Inline(Bytes::copy_from_slice(payload)),
            eof: None,
        }
    }

    fn put(content: Content, payload: &[u8]) -> String {
        let mut buffer = Vec::new();
        let id = MessageId::from_u128(1);
        put_response(&mut buffer, None, id, response(content, payload));
        String::from_utf8_lossy(&buffer).into_owned()
    }

    #[test]
    fn payloads_are_shown_as_what_they_are() {
        assert!(put(Content::Json, b"{\"a\":\n1}").contains(r#""data":{"a": 1}"#));
        assert!(put(Content::Json, b"{").contains(r#""size":1,"content":"json"}"#));
        assert!(put(Content::Text, "ä\n".as_bytes()).contains(r#""text":"ä\n""#));
        assert!(put(Content::Text, b"\xff").ends_with("\"content\":\"text\"}\n\u{fffd}"));
        assert!(put(Content::Bytes, b"abc").ends_with("\"content\":\"bytes\"}\nabc"));
        assert!(put(Content::Text, b"").contains(r#""text":"""#));
        let nothing = put(Content::None, b"");
        assert!(!nothing.contains("size") && !nothing.contains("data"));
    }

    #[test]
    fn every_line_is_one_line() {
        for payload in ["[1,\n2]", "\"a\\nb\"", "{\r\n}"] {
            assert_eq!(put(Content::Json, payload.as_bytes()).lines().count(), 1);
        }
    }

    #[test]
    fn tags_come_back() {
        let tag = RawValue::from_string("\"x\"".to_owned()).unwrap();
        let line = tagged(Some(&tag), &serde_json::json!({"a": 1}));
        assert_eq!(line, b"{\"tag\":\"x\",\"a\":1}\n");
        let line = tagged(Some(&tag), &serde_json::json!({}));
        assert_eq!(line, b"{\"tag\":\"x\"}\n");
    }

    #[test]
    fn the_last_response_ends_the_send() {
        let outlet = Outlet::new();
        let work = MessageId::from_u128(9);
        outlet.begin(
            work,
            Sending {
                tag: None,
                until_accepted: false,
                ended: None,
                accepted: false,
            },
        );
        let mut buffer = Vec::new();
        let news = News::Accepted {
            recipient: "b".parse().unwrap(),
        };
        outlet.put(Letter { work, news }, &mut buffer);
        assert_eq!((outlet.in_flight(), outlet.unaccepted.get()), (1, 0));
        let mut last = response(Content::None, b"");
        last.eof = Some(Eof {
            code: 3,
            error: None,
        });
        outlet.put(
            Letter {
                work,
                news: News::Response(last),
            },
            &mut buffer,
        );
        assert_eq!(outlet.in_flight(), 0);
        let text = String::from_utf8(buffer).unwrap();
        assert!(
            text.lines()
                .nth(1)
                .unwrap()
                .contains(r#""eof":true,"code":3"#)
        );
    }
}
