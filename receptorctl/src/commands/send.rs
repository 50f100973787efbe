//! `send`: hands a message to the daemon and streams what comes back.
//!
//! Upload and download run side by side in one `poll` loop, so that a daemon that refuses early, or answers while
//! the payload is still coming, is heard at once. Neither payload nor response is ever held whole.
//!
//! ```text
//! file, stdin ──▶ Upload ──▶ socket ──▶ Download ──▶ stdout
//! ```

use std::fs::File;
use std::io::{self, ErrorKind, IsTerminal as _, Read as _};
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use nix::poll::PollFlags;
use receptor_proto::control::{
    CancelCommand, CancelReply, ResultsCommand, SendCommand, SendReply, SendResponse, WorkRole,
    WorksCommand, WorksReply,
};
use receptor_proto::packet::Content;
use receptor_proto::{ErrorBody, IdPrefix, MessageId, NodeId};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::{Context, With};
use crate::args::Send;
use crate::client::{Answer, Connection, Deadline, error_in, parse, wait};
use crate::exit::{Exit, Failure};
use crate::interrupt::Interrupts;
use crate::output::{Out, in_words, note};
use crate::progress::{self, Progress};

/// How long Ctrl-C waits for the work's end: a plugin's grace time and a little for the way.
const CANCEL_WAIT: Duration = Duration::from_secs(12);
/// How much of a payload is held at once.
const CHUNK: usize = 64 * 1024;
/// Base64 turns three bytes into four characters; a multiple of three needs no padding in between.
const BASE64_CHUNK: usize = CHUNK / 3 * 3;
/// Lines of a plugin's stderr that are shown; all of them are in the daemon's journal there.
const STDERR_LINES: usize = 10;
/// The daemon is asked this often how far a payload is.
const WATCH_EVERY: Duration = Duration::from_millis(250);
/// A daemon that does not say so within this time has other things to do.
const WATCH_PATIENCE: Duration = Duration::from_secs(5);

pub(super) fn run(context: &Context, args: Send) -> Result<Exit, Failure> {
    let detach = args.detach;
    let (command, upload) = prepare(args)?;
    let mut connection = context.connect()?;
    // Until here Ctrl-C may do what it always does.
    let interrupts =
        Interrupts::watch().map_err(|e| Failure::system("cannot watch for Ctrl-C", &e))?;
    connection.send(&With {
        command: "send",
        fields: command,
    })?;
    let mut exchange = Exchange {
        context,
        connection,
        interrupts,
        upload,
        out: Out::new(),
        detach,
        reads_only: false,
        accepted: None,
        interrupted: None,
        body: None,
        watch: None,
        chunk: Vec::new(),
    };
    exchange.run()
}

/// `work results`: the same stream, from the start, of a message that was sent before.
pub(super) fn results(context: &Context, id: IdPrefix, follow: bool) -> Result<Exit, Failure> {
    let mut connection = context.connect()?;
    let interrupts =
        Interrupts::watch().map_err(|e| Failure::system("cannot watch for Ctrl-C", &e))?;
    connection.send(&With {
        command: "results",
        fields: ResultsCommand { id, follow },
    })?;
    let mut exchange = Exchange {
        context,
        connection,
        interrupts,
        upload: None,
        out: Out::new(),
        detach: false,
        reads_only: true,
        accepted: None,
        interrupted: None,
        body: None,
        watch: None,
        chunk: Vec::new(),
    };
    exchange.run()
}

/// The command, and what is to be sent after its line.
fn prepare(args: Send) -> Result<(SendCommand, Option<Upload>), Failure> {
    if !args.metadata.is_empty() && !args.any {
        return Err(Failure::new(Exit::Usage, "--where needs --any"));
    }
    let mut command = SendCommand {
        directive: args.directive.to_string(),
        recipient: args.recipient.map(|node| node.to_string()),
        any: args.any,
        metadata: args.metadata.into_iter().collect(),
        volatile: args.volatile,
        respond: true,
        detach: args.detach,
        key: args.id,
        wait: args.wait,
        expires_ms: args
            .expires
            .map(|d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX)),
        ..SendCommand::default()
    };
    let Some(payload) = args.payload else {
        return Ok((command, None));
    };
    if payload == "-" {
        command.stream = true;
        let upload = Upload::new(Box::new(io::stdin()), "stdin".into(), None);
        return Ok((command, Some(upload)));
    }
    if let Some(path) = payload.as_bytes().strip_prefix(b"@") {
        let path = PathBuf::from(std::ffi::OsStr::from_bytes(path));
        let name = path.display().to_string();
        let cannot = |e: io::Error| Failure::new(Exit::Usage, format!("cannot read {name}: {e}"));
        let file = File::open(&path).map_err(cannot)?;
        let metadata = file.metadata().map_err(cannot)?;
        if metadata.is_dir() {
            return Err(cannot(io::Error::from(ErrorKind::IsADirectory)));
        }
        // Only a regular file knows its size.
        let length = metadata.is_file().then_some(metadata.len());
        command.size = length;
        command.stream = length.is_none();
        return Ok((command, Some(Upload::new(Box::new(file), name, length))));
    }
    let Some(text) = payload.to_str() else {
        let text = "PAYLOAD is not UTF-8; hand bytes over with @FILE or -";
        return Err(Failure::new(Exit::Usage, text));
    };
    match serde_json::from_str::<&RawValue>(text) {
        // Between the parts of JSON a line break is the same as a space, and the command is one line.
        Ok(json) => {
            let line = json.get().replace(['\n', '\r'], " ");
            command.payload = RawValue::from_string(line).ok();
        }
        Err(_) => command.text = Some(text.to_owned()),
    }
    Ok((command, None))
}

/// What of a payload is still to be sent.
struct Upload {
    source: Box<dyn Source>,
    name: String,
    /// What is left to read; `None`: until its end.
    left: Option<u64>,
    buffer: Vec<u8>,
    sent: u64,
    done: bool,
    progress: Progress,
}

trait Source: io::Read + std::os::fd::AsFd {}
impl<T: io::Read + std::os::fd::AsFd> Source for T {}

impl Upload {
    fn new(source: Box<dyn Source>, name: String, left: Option<u64>) -> Self {
        Self {
            source,
            name,
            left,
            buffer: Vec::new(),
            sent: 0,
            done: left == Some(0),
            progress: Progress::new("upload", left),
        }
    }

    /// Reads the next part once the last one is gone.
    fn fill(&mut self, connection: &mut Connection) -> Result<(), Failure> {
        let wanted = self.left.map_or(CHUNK, |left| {
            usize::try_from(left).unwrap_or(CHUNK).min(CHUNK)
        });
        self.buffer.resize(wanted, 0);
        let result = loop {
            match self.source.read(&mut self.buffer) {
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                result => break result,
            }
        };
        let length = result
            .map_err(|e| Failure::new(Exit::Failed, format!("cannot read {}: {e}", self.name)))?;
        self.buffer.truncate(length);
        match &mut self.left {
            None => {
                if length == 0 {
                    self.done = true;
                    connection.finish_writing();
                }
            }
            Some(left) => {
                if length == 0 {
                    let text = format!("{} became shorter while it was read", self.name);
                    return Err(Failure::new(Exit::Failed, text));
                }
                *left = left.saturating_sub(u64::try_from(length).unwrap_or(0));
            }
        }
        Ok(())
    }

    /// Sends what the socket takes now.
    fn write(&mut self, connection: &mut Connection) -> Result<(), Failure> {
        let Some(written) = connection.try_write(&self.buffer)? else {
            // The daemon takes no more; what it has to say about that is read next.
            self.buffer.clear();
            self.done = true;
            return Ok(());
        };
        self.buffer.drain(..written);
        self.sent += u64::try_from(written).unwrap_or(0);
        if self.buffer.is_empty() && self.left == Some(0) {
            self.done = true;
        }
        Ok(())
    }
}

/// How far large payloads are beyond the daemon, asked on a connection of its own.
struct Watch {
    work: MessageId,
    recipient: NodeId,
    connection: Connection,
    /// When to ask next.
    due: Instant,
    shown: Option<(Leg, Progress)>,
}

/// A part of the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leg {
    There,
    Back,
}

impl Watch {
    /// `None`: there is nobody to show it to, or the daemon takes no more clients.
    fn open(context: &Context, work: MessageId, recipient: &NodeId) -> Option<Self> {
        if !progress::is_wanted() {
            return None;
        }
        let patience = Deadline::after(Some(WATCH_PATIENCE));
        let connection = Connection::open(&context.global.socket_path, patience).ok()?;
        Some(Self {
            work,
            recipient: recipient.clone(),
            connection,
            due: Instant::now() + progress::AFTER,
            shown: None,
        })
    }

    /// Asks, and draws. False: there is no more to know.
    fn look(&mut self) -> bool {
        self.due = Instant::now() + WATCH_EVERY;
        self.connection
            .set_deadline(Deadline::after(Some(WATCH_PATIENCE)));
        let answer: Result<Answer<WorksReply>, Failure> = self.connection.ask(&With {
            command: "works",
            fields: WorksCommand {
                id: Some(self.work.into()),
            },
        });
        let Ok(Answer { value, .. }) = answer else {
            return false;
        };
        let mut works = value.works.into_iter();
        let work = works.find(|work| work.role == WorkRole::Sent);
        let leg = work
            .as_ref()
            .and_then(|work| match (work.sent, work.coming) {
                (Some((done, all)), _) if done < all => Some((Leg::There, done, all)),
                (_, Some((done, all))) => Some((Leg::Back, done, all)),
                (_, None) => None,
            });
        let Some((leg, done, all)) = leg else {
            self.shown = None;
            return true;
        };
        if self.shown.as_ref().is_none_or(|(shown, _)| *shown != leg) {
            let label = match leg {
                Leg::There => format!("to {}", self.recipient),
                Leg::Back => format!("from {}", self.recipient),
            };
            self.shown = Some((leg, Progress::new(label, Some(all))));
        }
        if let Some((_, progress)) = &mut self.shown {
            progress.draw(done);
        }
        true
    }
}

/// The raw payload of a response, as far as it is still to come.
struct Body {
    left: u64,
    size: u64,
    progress: Progress,
    form: Form,
    last_byte: Option<u8>,
    /// What to do once it is complete: set on the last response.
    end: Option<SendResponse>,
}

/// How a raw payload is written to stdout.
enum Form {
    /// As it is; a newline after it when it is a text that has none.
    Plain { text: bool },
    /// In base64 inside of the JSON object that was begun.
    Base64 { carry: Vec<u8> },
}

/// One `send` from its line to its end.
struct Exchange<'a> {
    context: &'a Context,
    connection: Connection,
    interrupts: Interrupts,
    upload: Option<Upload>,
    out: Out,
    detach: bool,
    /// The work is not this exchange's: Ctrl-C ends the reading alone.
    reads_only: bool,
    accepted: Option<(MessageId, NodeId)>,
    /// Ctrl-C came; wait for the end of the work until then.
    interrupted: Option<Deadline>,
    body: Option<Body>,
    watch: Option<Watch>,
    chunk: Vec<u8>,
}

impl Exchange<'_> {
    fn run(&mut self) -> Result<Exit, Failure> {
        let result = loop {
            match self.process() {
                Ok(None) => {}
                Ok(Some(exit)) => break Ok(exit),
                Err(failure) => break Err(failure),
            }
            if let Err(failure) = self.out.flush().and_then(|()| self.step()) {
                break Err(failure);
            }
        };
        self.clear_progress();
        // What came before a failure is worth having.
        self.out.flush()?;
        result
            .map(|exit| self.unless_interrupted(exit))
            .map_err(|failure| self.explain(failure))
    }

    /// Waits until something can be done, and does it.
    fn step(&mut self) -> Result<(), Failure> {
        let deadline = self.interrupted.unwrap_or(self.context.deadline);
        let sending = self.upload.as_ref().filter(|upload| !upload.done);
        let socket = match sending {
            Some(upload) if !upload.buffer.is_empty() => PollFlags::POLLIN | PollFlags::POLLOUT,
            _ => PollFlags::POLLIN,
        };
        // A place in the list that has nothing to watch asks for nothing of the socket.
        let (source, source_flags) = match sending {
            Some(upload) if upload.buffer.is_empty() => (upload.source.as_fd(), PollFlags::POLLIN),
            _ => (self.connection.as_fd(), PollFlags::empty()),
        };
        let (keyboard, keyboard_flags) = match self.interrupted {
            None => (self.interrupts.as_fd(), PollFlags::POLLIN),
            Some(_) => (self.connection.as_fd(), PollFlags::empty()),
        };
        let fds = [
            (self.connection.as_fd(), socket),
            (source, source_flags),
            (keyboard, keyboard_flags),
        ];
        let due = self.watch.as_ref().map(|watch| watch.due);
        let patience = match due {
            Some(due) if self.body.is_none() => {
                let left = due.saturating_duration_since(Instant::now());
                Deadline::after(Some(deadline.left_up_to(left)))
            }
            Some(_) | None => deadline,
        };
        let [socket, source, keyboard] =
            wait(fds, patience).map_err(|e| Failure::system("cannot wait", &e))?;
        if deadline.is_over() {
            return Err(self.timed_out(deadline));
        }
        if self.body.is_none()
            && due.is_some_and(|due| due <= Instant::now())
            && !self.watch.as_mut().is_some_and(Watch::look)
        {
            self.watch = None;
        }
        if self.interrupted.is_none() && !keyboard.is_empty() {
            self.cancel()?;
        }
        if let Some(upload) = self.upload.as_mut().filter(|upload| !upload.done) {
            if !source_flags.is_empty() && !source.is_empty() {
                upload.fill(&mut self.connection)?;
            }
            if !upload.buffer.is_empty() {
                upload.write(&mut self.connection)?;
            }
            upload.progress.draw(upload.sent);
            if upload.done {
                upload.progress.clear();
            }
        }
        if socket.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR) {
            self.connection.read_some()?;
        }
        Ok(())
    }

    /// Works off what has been read; `Some` when the answer is complete.
    fn process(&mut self) -> Result<Option<Exit>, Failure> {
        loop {
            if self.body.is_some() {
                if !self.continue_body()? {
                    return Ok(None);
                }
                if let Some(last) = self.body.take().and_then(|body| body.end) {
                    return self.finish(last).map(Some);
                }
                continue;
            }
            let Some(line) = self.connection.buffered_line()? else {
                return Ok(None);
            };
            if let Some(exit) = self.line(&line)? {
                return Ok(Some(exit));
            }
        }
    }

    fn line(&mut self, line: &[u8]) -> Result<Option<Exit>, Failure> {
        #[derive(Deserialize)]
        struct Kind<'a> {
            #[serde(rename = "type")]
            kind: Option<std::borrow::Cow<'a, str>>,
        }
        let json = self.context.global.json;
        let kind = serde_json::from_slice::<Kind<'_>>(line)
            .ok()
            .and_then(|k| k.kind);
        let reply = match kind.as_deref() {
            Some("accepted" | "response" | "pending" | "error") => parse(line)?,
            // A line of a newer daemon.
            Some(_) => {
                if json {
                    self.out.line(line)?;
                }
                return Ok(None);
            }
            None => match error_in(line) {
                Some(error) => SendReply::Error { error, eof: true },
                None => parse(line)?,
            },
        };
        match reply {
            SendReply::Accepted { id, recipient, eof } => {
                if json {
                    self.out.line(line)?;
                } else if self.detach {
                    self.out.line(id.to_string())?;
                } else if io::stderr().is_terminal() {
                    self.clear_progress();
                    note(&format!("accepted {id}"));
                }
                if !eof {
                    self.watch = Watch::open(self.context, id, &recipient);
                }
                self.accepted = Some((id, recipient));
                Ok(eof.then_some(Exit::Done))
            }
            SendReply::Response(response) => self.response(response, line),
            SendReply::Pending { id, state, .. } => {
                if json {
                    self.out.line(line)?;
                }
                self.out.flush()?;
                let state = state.as_str();
                let text = format!("{id} has not ended; it is {state}");
                Err(Failure::new(Exit::TimedOut, text))
            }
            SendReply::Error { error, .. } => {
                if json {
                    self.out.line(line)?;
                }
                Err(Failure::answered(&error))
            }
        }
    }

    fn response(&mut self, response: SendResponse, line: &[u8]) -> Result<Option<Exit>, Failure> {
        let json = self.context.global.json;
        if let Some(left) = response.size {
            let form = if json {
                // The object goes on with its payload where it would have ended.
                let open = line.trim_ascii_end().strip_suffix(b"}").unwrap_or(line);
                self.out.bytes(open)?;
                self.out.bytes(b",\"base64\":\"")?;
                Form::Base64 { carry: Vec::new() }
            } else {
                let text = matches!(response.content, Some(Content::Json | Content::Text));
                Form::Plain { text }
            };
            self.clear_progress();
            self.body = Some(Body {
                left,
                size: left,
                progress: Progress::new("download", Some(left)),
                form,
                last_byte: None,
                end: response.eof.then_some(response),
            });
            return Ok(None);
        }
        self.clear_progress();
        if json {
            self.out.line(line)?;
        } else if let Some(data) = &response.data {
            self.out.line(data.get())?;
        } else if let Some(text) = &response.text {
            self.out.line(text.strip_suffix('\n').unwrap_or(text))?;
        }
        if response.eof {
            return self.finish(response).map(Some);
        }
        Ok(None)
    }

    /// Writes what is here of a raw payload; true when it is complete.
    fn continue_body(&mut self) -> Result<bool, Failure> {
        let Some(body) = &mut self.body else {
            return Ok(true);
        };
        self.connection.buffered_raw(body.left, &mut self.chunk)?;
        body.left -= u64::try_from(self.chunk.len()).unwrap_or(0);
        body.last_byte = self.chunk.last().copied().or(body.last_byte);
        let complete = body.left == 0;
        // A terminal that shows the payload itself needs nothing else.
        if !self.out.is_terminal() {
            body.progress.draw(body.size - body.left);
        }
        match &mut body.form {
            Form::Plain { text } => {
                self.out.bytes(&self.chunk)?;
                if complete && *text && body.last_byte.is_some_and(|b| b != b'\n') {
                    self.out.bytes(b"\n")?;
                }
            }
            Form::Base64 { carry } => {
                carry.append(&mut self.chunk);
                while carry.len() >= BASE64_CHUNK || (complete && !carry.is_empty()) {
                    let length = carry.len().min(BASE64_CHUNK);
                    let part: Vec<u8> = carry.drain(..length).collect();
                    self.out.bytes(BASE64.encode(part).as_bytes())?;
                }
                if complete {
                    self.out.line("\"}")?;
                }
            }
        }
        Ok(complete)
    }

    /// The exit code of a work by its last response.
    fn finish(&mut self, last: SendResponse) -> Result<Exit, Failure> {
        self.out.flush()?;
        if let Some(error) = &last.error {
            let text = format!("{}: {}", last.from, told(error));
            return Err(Failure::new(Exit::of_work(&error.code), text));
        }
        match last.code {
            None | Some(0) => Ok(Exit::Done),
            Some(code) => {
                let word = last_word(&last);
                let own = word.as_ref().map_or(i64::from(code), |word| word.code);
                let mut text = format!("{}: the work ended with code {own}", last.from);
                if let Some(word) = word {
                    text.push_str(&in_words(&word.result));
                }
                Err(Failure::new(Exit::Failed, text))
            }
        }
    }

    /// Asks for the end of the work, on a connection of its own: this one may be in the middle of a payload.
    fn cancel(&mut self) -> Result<(), Failure> {
        self.clear_progress();
        if self.reads_only {
            return Err(Failure::silent(Exit::Interrupted));
        }
        let Some((id, _)) = &self.accepted else {
            return Err(Failure::new(
                Exit::Interrupted,
                "interrupted before the message was accepted",
            ));
        };
        let id = *id;
        let deadline = Deadline::after(Some(CANCEL_WAIT));
        self.interrupted = Some(deadline);
        let asked = Connection::open(&self.context.global.socket_path, deadline).and_then(
            |mut connection| {
                let answer: Answer<CancelReply> = connection.ask(&With {
                    command: "cancel",
                    fields: CancelCommand { id: id.into() },
                })?;
                Ok(answer)
            },
        );
        match asked {
            Ok(_) => {
                note(&format!(
                    "cancelling {id}; Ctrl-C again leaves it to itself"
                ));
                Ok(())
            }
            Err(failure) => Err(Failure::new(
                Exit::Interrupted,
                format!("cannot cancel {id}: {}", failure.message),
            )),
        }
    }

    /// After Ctrl-C every end is that of Ctrl-C, for a shell to see.
    fn unless_interrupted(&self, exit: Exit) -> Exit {
        match self.interrupted {
            Some(_) => Exit::Interrupted,
            None => exit,
        }
    }

    /// A failure in the words for what it means here.
    fn explain(&self, failure: Failure) -> Failure {
        if failure.exit == Exit::BrokenPipe {
            return failure;
        }
        if self.interrupted.is_some() {
            return Failure::new(Exit::Interrupted, failure.message);
        }
        match &self.accepted {
            Some((id, _)) if failure.exit == Exit::Unavailable => Failure::new(
                Exit::TimedOut,
                format!("{}\nthe message is still accepted: {id}", failure.message),
            ),
            _ => failure,
        }
    }

    fn timed_out(&self, deadline: Deadline) -> Failure {
        let limit = deadline.limit();
        match (&self.accepted, self.interrupted) {
            (Some((id, _)), Some(_)) => Failure::new(
                Exit::Interrupted,
                format!("{id} did not end within {limit} after it was asked to"),
            ),
            (Some((id, _)), None) => Failure::new(
                Exit::TimedOut,
                format!("timed out after {limit}; the message is still accepted: {id}"),
            ),
            (None, _) if self.reads_only => Failure::new(
                Exit::TimedOut,
                format!("timed out after {limit}; the work has not ended"),
            ),
            (None, _) => Failure::new(
                Exit::Unavailable,
                format!("timed out after {limit}; the message was not accepted yet"),
            ),
        }
    }

    fn clear_progress(&mut self) {
        if let Some(upload) = &mut self.upload {
            upload.progress.clear();
        }
        if let Some(body) = &mut self.body {
            body.progress.clear();
        }
        if let Some(watch) = &mut self.watch {
            watch.shown = None;
        }
    }
}

/// An error with those of its details that help a person: the causes, and the end of the plugin's stderr.
pub(super) fn told(error: &ErrorBody) -> String {
    let mut text = error.to_string();
    let causes = error.detail.get("caused_by").and_then(Value::as_array);
    for cause in causes.into_iter().flatten().filter_map(Value::as_str) {
        text.push_str("\n  caused by: ");
        text.push_str(cause);
    }
    let stderr = error.detail.get("stderr").and_then(Value::as_str);
    let lines: Vec<&str> = stderr.unwrap_or_default().lines().collect();
    let surplus = lines.len().saturating_sub(STDERR_LINES);
    for line in lines.iter().skip(surplus) {
        text.push_str("\n  stderr: ");
        text.push_str(line);
    }
    text
}

/// A plugin's last word: its own code, and a result of its own.
#[derive(Deserialize)]
struct Word {
    code: i64,
    #[serde(default)]
    result: Value,
}

fn last_word(last: &SendResponse) -> Option<Word> {
    serde_json::from_str(last.data.as_ref()?.get()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_that_help_are_told() {
        let stderr: Vec<String> = (1..=12).map(|n| format!("line {n}")).collect();
        let error = ErrorBody::new(receptor_proto::ErrorCode::PluginExit, "it ended")
            .with("caused_by", vec!["this", "that"])
            .with("stderr", stderr.join("\n"));
        let text = told(&error);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[..3],
            [
                "it ended (plugin-exit)",
                "  caused by: this",
                "  caused by: that"
            ]
        );
        assert_eq!(lines[3..].len(), STDERR_LINES);
        assert_eq!(lines.last(), Some(&"  stderr: line 12"));
    }
}
