//! What a client gets: reply lines and the letters of its [`Mailbox`], written as fast as it
//! reads and no faster.
//!
//! Owns the write side of one client's connection and the way a response is put into lines and
//! raw bytes. Tells the engine that a response is consumed only when its last byte is written,
//! so that a client that does not read holds back its own works and nobody else.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read as _};
use std::rc::Rc;

use bytes::Bytes;
use receptor_mesh::{EntryId, Payload};
use receptor_proto::control::{ErrorReply, SendReply};
use receptor_proto::packet::{Content, SEGMENT_MAX};
use receptor_proto::plugin::Json;
use receptor_proto::{ErrorBody, MessageId, NodeId};
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::sync::{Notify, oneshot, watch};

use super::object::Object;
use super::socket::Socket;
use crate::by_id::ById;
use crate::engine::{EngineHandle, Input, Letter, Mailbox, News, Response};
use crate::results::{Item, Source};
use crate::spooler::Store;

/// Bytes of reply lines that may wait for one client before its commands wait too.
const LINES_MAX: usize = 1 << 20;
/// Bytes put together for one write.
const WRITE_TARGET: usize = 128 * 1024;
/// Bytes of a stored payload read at once.
const READ_PIECE: usize = 256 * 1024;
/// Responses with an open file each that may wait for one client.
const FILES_MAX: usize = 8;
/// A tag as it came.
pub(super) type Tag = Option<Box<RawValue>>;

/// A send whose reply has not ended.
#[derive(Debug)]
pub(super) struct Sending {
    /// Comes back in every line.
    pub(super) tag: Tag,
    /// The reply ends with the acceptance.
    pub(super) until_accepted: bool,
    /// Told at the end, when somebody waits for it.
    pub(super) ended: Option<oneshot::Sender<Ended>>,
    /// It was accepted.
    pub(super) accepted: bool,
}

/// How the reply to a send ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// With its last line.
    Whole,
    /// It was sent before with the same key: the responses are to be read from the keeper.
    ReadOn,
}

/// Counts a tagged command while it runs.
#[derive(Debug)]
pub(super) struct Running(Rc<Outlet>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.set(self.0.running.get() - 1);
        self.0.arrived.notify_one();
    }
}

/// A line, with raw bytes that follow it.
#[derive(Debug)]
struct Line {
    bytes: Vec<u8>,
    file: Option<(File, u64)>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Outlet {
    /// From the engine.
    pub(super) mailbox: Rc<Mailbox>,
    lines: RefCell<VecDeque<Line>>,
    lines_bytes: Cell<usize>,
    sends: RefCell<ById<Sending>>,
    /// Works whose last response was put together and not reported as consumed yet.
    ending: RefCell<Vec<MessageId>>,
    /// Sends that are not accepted yet.
    unaccepted: Cell<usize>,
    arrived: Rc<Notify>,
    room: Notify,
    finished: Cell<bool>,
    /// Commands that run beside the others.
    running: Cell<usize>,
    gone: watch::Sender<bool>,
}

impl Outlet {
    pub(super) fn new() -> Rc<Self> {
        let arrived = Rc::new(Notify::new());
        Rc::new(Self {
            mailbox: Mailbox::new(Rc::clone(&arrived)),
            lines: RefCell::default(),
            lines_bytes: Cell::new(0),
            sends: RefCell::default(),
            ending: RefCell::default(),
            unaccepted: Cell::new(0),
            arrived,
            room: Notify::new(),
            finished: Cell::new(false),
            running: Cell::new(0),
            gone: watch::Sender::new(false),
        })
    }

    /// Adds a reply line; waits while too many wait. Of a client that has left nobody does.
    pub(super) async fn line(&self, line: Vec<u8>) {
        while self.lines_bytes.get() >= LINES_MAX {
            tokio::select! {
                () = self.room.notified() => {}
                () = self.left() => return,
            }
        }
        self.push(line);
    }

    fn push(&self, line: Vec<u8>) {
        self.push_with(line, None);
    }

    fn push_with(&self, bytes: Vec<u8>, file: Option<(File, u64)>) {
        self.lines_bytes.set(self.lines_bytes.get() + bytes.len());
        self.lines.borrow_mut().push_back(Line { bytes, file });
        self.arrived.notify_one();
    }

    /// Adds a response that was kept, with its payload; waits while too much waits.
    pub(super) async fn kept(&self, tag: Option<&RawValue>, work: MessageId, item: Item) {
        while self.lines_bytes.get() >= LINES_MAX {
            self.room.notified().await;
        }
        let Item {
            sender,
            serial,
            content,
            name,
            payload,
            eof,
        } = item;
        let (payload, file) = match payload {
            Source::Inline(bytes) => (Payload::Inline(bytes), None),
            Source::File(file, size) => {
                // Which entry it was does not matter any more.
                let entry = EntryId(0);
                (Payload::Stored { entry, size }, Some((file, size)))
            }
        };
        let response = Response {
            sender,
            serial,
            content,
            name,
            payload,
            eof,
        };
        let mut line = Vec::new();
        put_response(&mut line, tag, work, &response);
        self.push_with(line, file);
        if self.lines.borrow().len() >= FILES_MAX {
            self.drained().await;
        }
    }

    /// Waits until no line waits.
    async fn drained(&self) {
        while !self.lines.borrow().is_empty() {
            self.room.notified().await;
        }
    }

    /// The client is gone: nobody will read what is added.
    pub(super) fn leave(&self) {
        self.gone.send_replace(true);
    }

    /// Waits until the client is gone.
    pub(super) async fn left(&self) {
        // The sender lives as long as this.
        let _ = self.gone.subscribe().wait_for(|gone| *gone).await;
    }

    /// How many commands run beside the others.
    pub(super) fn running(&self) -> usize {
        self.running.get()
    }

    /// Another one, for as long as what comes back lives.
    pub(super) fn run(self: &Rc<Self>) -> Running {
        self.running.set(self.running.get() + 1);
        Running(Rc::clone(self))
    }

    /// Whether a reply to a send of this message is under way.
    pub(super) fn is_sending(&self, work: MessageId) -> bool {
        self.sends.borrow().contains_key(&work)
    }

    /// A send is on its way to the engine.
    pub(super) fn begin(&self, work: MessageId, sending: Sending) {
        if !sending.accepted {
            self.unaccepted.set(self.unaccepted.get() + 1);
        }
        self.sends.borrow_mut().insert(work, sending);
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

    /// The works whose replies have not ended, or may not have been written to the end: what the
    /// engine is told when the client is gone.
    pub(super) fn unfinished(&self) -> Vec<MessageId> {
        let open = self.sends.borrow();
        let ending = self.ending.borrow();
        open.keys().chain(ending.iter()).copied().collect()
    }

    /// Writes until finished or the client is gone.
    pub(super) async fn write(
        &self,
        stream: &Socket,
        store: &Store,
        engine: &EngineHandle,
    ) -> io::Result<()> {
        let mut buffer = Vec::new();
        let mut consumed = Vec::new();
        loop {
            let mut file = None;
            while buffer.len() < WRITE_TARGET {
                if let Some(Line { bytes, file: kept }) = self.lines.borrow_mut().pop_front() {
                    self.lines_bytes.set(self.lines_bytes.get() - bytes.len());
                    buffer.extend_from_slice(&bytes);
                    if let Some((kept, size)) = kept {
                        file = Some(Tail::Kept(kept, size));
                        break;
                    }
                    continue;
                }
                let Some(letter) = self.mailbox.pop() else {
                    break;
                };
                let work = letter.work;
                let serial = match &letter.news {
                    News::Response(response) => Some(response.serial),
                    News::Accepted { .. }
                    | News::Known { .. }
                    | News::Refused(_)
                    | News::RefusedQuiet(..) => None,
                };
                let written = self.put(letter, &mut buffer);
                if let Some(serial) = serial {
                    if let Some((entry, size)) = written {
                        file = Some(Tail::Entry(entry, size, work, serial));
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
                    self.ending.borrow_mut().clear();
                    continue;
                }
                if self.finished.get() && self.sends.borrow().is_empty() && self.running.get() == 0
                {
                    return Ok(());
                }
                self.arrived.notified().await;
                continue;
            }
            stream.write_all(&buffer).await?;
            buffer.clear();
            if buffer.capacity() > WRITE_TARGET {
                buffer = Vec::new();
            }
            self.room.notify_waiters();
            match file {
                Some(Tail::Entry(entry, size, work, serial)) => {
                    copy(stream, store, entry, size).await?;
                    consumed.push((work, serial));
                }
                Some(Tail::Kept(file, size)) => copy_file(stream, file, size).await?,
                None => {}
            }
            if !consumed.is_empty() {
                let consumed = std::mem::take(&mut consumed);
                gone(engine.send(Input::Consumed(consumed)).await)?;
                self.ending.borrow_mut().clear();
            }
        }
    }

    /// Puts a letter into lines. `Some`: this stored payload must follow.
    fn put(&self, letter: Letter, buffer: &mut Vec<u8>) -> Option<(EntryId, u64)> {
        let Letter { work, news } = letter;
        if let News::RefusedQuiet(quiet, error) = news {
            for tag in quiet.tags() {
                let error = error.clone();
                put_line(buffer, tag, &SendReply::Error { error, eof: true });
            }
            return None;
        }
        let mut sends = self.sends.borrow_mut();
        // The reply to this send has ended: a response nobody asked for.
        let sending = sends.get_mut(&work)?;
        let mut file = None;
        let mut ended = Ended::Whole;
        let eof = match news {
            News::Accepted { recipient } => {
                if !std::mem::replace(&mut sending.accepted, true) {
                    self.unaccepted.set(self.unaccepted.get().saturating_sub(1));
                }
                let eof = sending.until_accepted;
                put_accepted(buffer, sending.tag.as_deref(), work, &recipient, eof);
                eof
            }
            News::Known { recipient } => {
                if !std::mem::replace(&mut sending.accepted, true) {
                    self.unaccepted.set(self.unaccepted.get().saturating_sub(1));
                }
                let eof = sending.until_accepted;
                if let Some(recipient) = recipient {
                    put_accepted(buffer, sending.tag.as_deref(), work, &recipient, eof);
                }
                if !eof {
                    ended = Ended::ReadOn;
                }
                true
            }
            News::Refused(error) | News::RefusedQuiet(_, error) => {
                let reply = SendReply::Error { error, eof: true };
                put_line(buffer, sending.tag.as_deref(), &reply);
                true
            }
            News::Response(response) => {
                let eof = response.eof.is_some();
                if eof {
                    self.ending.borrow_mut().push(work);
                }
                file = put_response(buffer, sending.tag.as_deref(), work, &response);
                eof
            }
        };
        if eof && let Some(sending) = sends.remove(&work) {
            if !sending.accepted {
                // Refused, or given up before it was accepted.
                self.unaccepted.set(self.unaccepted.get().saturating_sub(1));
            }
            if let Some(waiting) = sending.ended {
                let _ = waiting.send(ended);
            }
        }
        file
    }
}

/// What follows the lines that were put together.
enum Tail {
    /// A payload of this work's response with this serial.
    Entry(EntryId, u64, MessageId, u64),
    /// A payload that was kept.
    Kept(File, u64),
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

/// [`SendReply::Accepted`].
fn put_accepted(
    buffer: &mut Vec<u8>,
    tag: Option<&RawValue>,
    work: MessageId,
    recipient: &NodeId,
    eof: bool,
) {
    let mut line = Object::new(buffer, tag);
    line.word("type", "accepted");
    line.id("id", work);
    line.word("recipient", recipient.as_str());
    if eof {
        line.json("eof", "true");
    }
    line.end();
}

/// [`SendReply::Response`], and its raw bytes. `Some`: this stored payload must follow.
fn put_response(
    buffer: &mut Vec<u8>,
    tag: Option<&RawValue>,
    work: MessageId,
    response: &Response,
) -> Option<(EntryId, u64)> {
    let mut line = Object::new(buffer, tag);
    line.word("type", "response");
    line.id("id", work);
    line.word("from", response.sender.as_str());
    line.value("serial", &response.serial);
    let (mut raw, mut stored) = (None, None);
    match &response.payload {
        Payload::Stored { entry, size } => {
            stored = Some((*entry, *size));
            line.value("size", size);
            line.value("content", &response.content);
        }
        // An empty text is a line like any other, for instance an empty one of a plugin's output.
        Payload::Inline(bytes) if bytes.is_empty() && response.content != Content::Text => {}
        Payload::Inline(bytes) => match shown(response.content, bytes) {
            Shown::Json(data) => line.json("data", &data),
            Shown::Text(text) => line.value("text", text),
            Shown::Raw => {
                raw = Some(bytes);
                line.value("size", &bytes.len());
                line.value("content", &response.content);
            }
        },
    }
    if let Some(name) = &response.name {
        line.value("name", name);
    }
    if let Some(eof) = &response.eof {
        line.json("eof", "true");
        line.value("code", &eof.code);
        if let Some(error) = &eof.error {
            line.value("error", error);
        }
    }
    line.end();
    if let Some(raw) = raw {
        buffer.extend_from_slice(raw);
    }
    stored
}

enum Shown<'a> {
    Json(Cow<'a, str>),
    Text(&'a str),
    Raw,
}

/// How a payload is shown: as what it says it is when that is true, else as raw bytes.
fn shown(content: Content, bytes: &Bytes) -> Shown<'_> {
    const _: () = assert!(SEGMENT_MAX * 6 < receptor_proto::control::LINE_MAX);
    match content {
        Content::Text => std::str::from_utf8(bytes).map_or(Shown::Raw, Shown::Text),
        Content::Json => Json::line(bytes).map_or(Shown::Raw, Shown::Json),
        Content::None | Content::Bytes | Content::Bundle | Content::Sealed => Shown::Raw,
    }
}

/// Writes a stored payload, exactly `size` bytes. An error ends the connection: what was
/// announced cannot be sent.
async fn copy(stream: &Socket, store: &Store, entry: EntryId, size: u64) -> io::Result<()> {
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
        stream.write_all(&piece).await?;
        offset += piece.len() as u64;
    }
    Ok(())
}

/// Writes a payload that was kept, exactly `size` bytes.
async fn copy_file(stream: &Socket, mut file: File, size: u64) -> io::Result<()> {
    let mut left = size;
    while left > 0 {
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(READ_PIECE);
        let read = tokio::task::spawn_blocking(move || {
            let mut piece = vec![0; length];
            file.read_exact(&mut piece)?;
            Ok::<_, io::Error>((file, piece))
        });
        let (back, piece) = read.await.map_err(io::Error::other)??;
        file = back;
        stream.write_all(&piece).await?;
        left -= piece.len() as u64;
    }
    Ok(())
}

fn gone<E>(result: Result<(), E>) -> io::Result<()> {
    result.map_err(|_| io::Error::other("the engine has ended"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use receptor_proto::ErrorCode;
    use receptor_proto::control::SendResponse;
    use receptor_proto::packet::Eof;
    use std::time::Duration;

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
        put_response(&mut buffer, None, id, &response(content, payload));
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
    fn lines_are_what_the_protocol_says() {
        let node: NodeId = "b.c-d_e@f:1".parse().unwrap();
        let tag = RawValue::from_string("-7".to_owned()).unwrap();
        let id = MessageId::from_u128(0x0123_4567_89ab_cdef << 60);
        for (tag, eof) in [(None, false), (Some(&*tag), true)] {
            let mut line = Vec::new();
            put_accepted(&mut line, tag, id, &node, eof);
            let recipient = node.clone();
            let reply = SendReply::Accepted { id, recipient, eof };
            assert_eq!(line, tagged(tag, &reply));
        }
        let json = RawValue::from_string("{\"a\":\"\\u00e4\"}".to_owned()).unwrap();
        let ends = [
            None,
            Some((0, None)),
            Some((1, Some(ErrorBody::new(ErrorCode::Lost, "it \"is\"")))),
        ];
        let names = [None, Some("a \"name\"\n".to_owned())];
        let cases = names
            .iter()
            .flat_map(|name| ends.iter().map(move |end| (name, end)));
        for (name, end) in cases {
            for content in [Content::Json, Content::Text, Content::Bytes, Content::None] {
                let mut reply = SendResponse {
                    id,
                    from: node.clone(),
                    serial: u64::MAX,
                    data: None,
                    text: None,
                    size: None,
                    content: None,
                    name: name.clone(),
                    eof: end.is_some(),
                    code: end.as_ref().map(|(code, _)| *code),
                    error: end.as_ref().and_then(|(_, error)| error.clone()),
                };
                let payload = match content {
                    Content::Json => {
                        reply.data = Some(json.clone());
                        json.get()
                    }
                    Content::Text => reply.text.insert("\"\u{0}ä\n".to_owned()),
                    Content::Bytes => {
                        (reply.size, reply.content) = (Some(3), Some(content));
                        "abc"
                    }
                    Content::None | Content::Bundle | Content::Sealed => "",
                };
                let response = Response {
                    sender: node.clone(),
                    serial: u64::MAX,
                    content,
                    name: name.clone(),
                    payload: Payload::Inline(Bytes::copy_from_slice(payload.as_bytes())),
                    eof: end.clone().map(|(code, error)| Eof { code, error }),
                };
                let mut line = Vec::new();
                assert_eq!(put_response(&mut line, Some(&tag), id, &response), None);
                let mut expected = tagged(Some(&tag), &SendReply::Response(reply.clone()));
                if reply.size.is_some() {
                    expected.extend_from_slice(b"abc");
                }
                assert_eq!(
                    String::from_utf8(line).unwrap(),
                    String::from_utf8(expected).unwrap()
                );
            }
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

    #[tokio::test(flavor = "current_thread")]
    async fn a_command_of_a_client_that_has_left_ends() {
        let outlet = Outlet::new();
        outlet.line(vec![b'x'; LINES_MAX]).await;
        let late = outlet.line(vec![b'x'; LINES_MAX]);
        let leaves = async { outlet.leave() };
        let both = async { tokio::join!(late, leaves) };
        let ended = tokio::time::timeout(Duration::from_secs(10), both).await;
        assert!(ended.is_ok(), "it waits for room that nobody makes");
    }
}
