//! One client: its commands, one after the other or, with tags, beside each other.
//!
//! Owns what of a client's commands may run at once, and the form of errors: one line, in the
//! words of Go Receptor for the commands that it knows and without a tag, as an [`ErrorBody`]
//! otherwise. Whatever a client sends, this ends at worst its own session.

use std::rc::Rc;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout};
use receptor_mesh::Payload;
use receptor_proto::control::{
    self, CancelReply, DescribeReply, DropReply, LogLevelReply, PluginsReply, ReleaseReply,
    ResultsCommand, SendCommand, greeting,
};
use receptor_proto::packet::CancelReason;
use receptor_proto::{ErrorBody, ErrorCode};
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::net::UnixStream;
use tokio::sync::oneshot;

use super::client::{ClientInput, LineError};
use super::command::{Command, Form, Request, from_json, id_word, invalid, is_go, parse, request};
use super::outlet::{Ended, Outlet, Running, Sending, Tag, error_line, tagged};
use super::quiet::{Gathering, Kind, gathers};
use super::rights::Visitor;
use super::socket::Socket;
use super::{Context, echo, results, send, views};
use crate::engine::{EngineGone, Input, Query, Quiet};
use crate::policy::{Right, explain};
use crate::task;

/// Tagged commands other than sends that one client may have running at once.
const TAGGED_MAX: usize = 64;
/// Sends of one client whose reply has not ended.
const SENDS_MAX: usize = 4096;
/// Sends of one client that are not accepted yet before its further commands wait.
const UNACCEPTED_MAX: usize = 1024;
/// Sends handed to the engine at once.
const SUBMIT_MAX: usize = 64;
/// How often it is looked whether a client that has said its last word is still there.
const HANG_UP_CHECK: Duration = Duration::from_secs(10);
/// Time for the last words to a client that is sent away.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Serves one client until it is gone.
pub(super) async fn run(stream: UnixStream, visitor: Visitor, context: Rc<Context>) {
    let stream = match Socket::new(stream) {
        Ok(stream) => Rc::new(stream),
        Err(error) => {
            tracing::warn!(%error, "a client cannot be served");
            return;
        }
    };
    let outlet = Outlet::new();
    let mut session = Session {
        context: Rc::clone(&context),
        outlet: Rc::clone(&outlet),
        input: ClientInput::new(Rc::clone(&stream)),
        submits: Vec::new(),
        gathering: Gathering::default(),
        visitor,
    };
    outlet.line(greeting(&context.node).into_bytes()).await;
    let mut write = std::pin::pin!(outlet.write(&stream, &context.store, &context.engine));
    let mut watch = std::pin::pin!(hang_up(&stream));
    let ended = tokio::select! {
        biased;
        end = session.commands() => Some(end),
        result = &mut write => {
            log_lost(result);
            None
        }
        () = outlet.mailbox.overflown() => {
            tracing::warn!("a client does not read its responses and was sent away");
            None
        }
        () = &mut watch => None,
    };
    match ended {
        Some(Ok(End::Input)) => {
            // The client may still read: half a close is not a hang-up.
            tokio::select! {
                biased;
                result = &mut write => log_lost(result),
                () = outlet.mailbox.overflown() => {}
                () = &mut watch => {}
            }
        }
        Some(Ok(End::SentAway)) => {
            let _ = tokio::time::timeout(LAST_WORDS, &mut write).await;
        }
        Some(Err(EngineGone)) | None => {}
    }
    outlet.leave();
    let unfinished = outlet.unfinished();
    if !unfinished.is_empty() {
        let gone = Input::ClientGone(Rc::clone(&outlet.mailbox), unfinished);
        let _ = context.engine.send(gone).await;
    }
}

fn log_lost(result: std::io::Result<()>) {
    if let Err(error) = result {
        tracing::debug!(%error, "client lost");
    }
}

/// Waits until the other end is closed both ways. The system tells of that only together with
/// what can be read, so it is asked once in a while.
async fn hang_up(stream: &Socket) {
    loop {
        tokio::time::sleep(HANG_UP_CHECK).await;
        let mut fds = [PollFd::new(
            std::os::fd::AsFd::as_fd(stream),
            PollFlags::empty(),
        )];
        let polled = nix::poll::poll(&mut fds, PollTimeout::ZERO);
        let gone = PollFlags::POLLHUP | PollFlags::POLLERR;
        if polled.is_ok_and(|count| count > 0)
            && fds[0]
                .revents()
                .is_some_and(|events| events.intersects(gone))
        {
            return;
        }
    }
}

/// Why a session reads no more commands.
enum End {
    /// The client has said everything.
    Input,
    /// The client broke the rules; it was told.
    SentAway,
}

/// One client's commands.
pub(super) struct Session {
    pub(super) context: Rc<Context>,
    pub(super) outlet: Rc<Outlet>,
    pub(super) input: ClientInput,
    pub(super) submits: Vec<crate::engine::Submit>,
    gathering: Gathering,
    visitor: Visitor,
}

/// How a command failed.
pub(super) enum Failure {
    /// Told in one line; the session goes on.
    Error(ErrorBody),
    /// Told in one line; the session cannot go on, because what follows in the input is not
    /// known to be a command.
    Fatal(ErrorBody),
    /// There is no daemon any more.
    Gone,
}

impl From<EngineGone> for Failure {
    fn from(_: EngineGone) -> Self {
        Self::Gone
    }
}

impl From<ErrorBody> for Failure {
    fn from(error: ErrorBody) -> Self {
        Self::Error(error)
    }
}

impl Session {
    async fn commands(&mut self) -> Result<End, EngineGone> {
        loop {
            let known = self.gathering.repeats(self.input.ahead());
            if known > 0 {
                self.input.skip(known);
            }
            let line = match self.input.ready_line() {
                Some(line) => line,
                None => {
                    self.flush().await?;
                    self.outlet.wait_accepted(UNACCEPTED_MAX).await;
                    match self.input.line().await {
                        Ok(Some(line)) => line,
                        Ok(None) => {
                            // Some of the last words may be refused.
                            self.gathering.taking.settled().await;
                            self.outlet.finish();
                            return Ok(End::Input);
                        }
                        Err(LineError::Io(error)) => {
                            tracing::debug!(%error, "client lost");
                            self.outlet.finish();
                            return Ok(End::SentAway);
                        }
                        Err(error @ LineError::TooLong) => {
                            return Ok(self.send_away(&error.to_string()).await);
                        }
                    }
                }
            };
            let line = line.trim_ascii();
            if line.is_empty() {
                continue;
            }
            let command = match parse(line) {
                Ok(command) => command,
                Err(text) => {
                    self.flush().await?;
                    self.outlet.line(go_error(&text)).await;
                    continue;
                }
            };
            let (tag, go) = (command.tag.clone(), is_go(&command.name));
            match self.command(command).await {
                Ok(()) => {}
                Err(Failure::Gone) => return Err(EngineGone),
                Err(Failure::Error(error)) => {
                    self.outlet
                        .line(failure_line(tag.as_deref(), go, error))
                        .await;
                }
                Err(Failure::Fatal(error)) => {
                    self.outlet
                        .line(failure_line(tag.as_deref(), go, error))
                        .await;
                    self.outlet.finish();
                    return Ok(End::SentAway);
                }
            }
        }
    }

    async fn send_away(&self, text: &str) -> End {
        self.outlet.line(go_error(text)).await;
        self.outlet.finish();
        End::SentAway
    }

    /// Lets the quiet messages that were gathered go behind what was collected before them.
    async fn part(&mut self) -> Result<(), EngineGone> {
        if self.gathering.is_empty() {
            return Ok(());
        }
        self.gathering.taking.room().await;
        self.submits
            .extend(self.gathering.part(&self.outlet.mailbox));
        let submits = std::mem::take(&mut self.submits);
        self.context.engine.send(Input::Submit(submits)).await
    }

    /// Hands the sends that were collected to the engine.
    pub(super) async fn flush(&mut self) -> Result<(), EngineGone> {
        self.part().await?;
        if !self.submits.is_empty() {
            let submits = std::mem::take(&mut self.submits);
            self.context.engine.send(Input::Submit(submits)).await?;
        }
        Ok(())
    }

    async fn command(&mut self, command: Command<'_>) -> Result<(), Failure> {
        if command.name == "send" {
            return self.send(command).await;
        }
        self.flush().await?;
        if command.name == "results" {
            return self.results(command).await;
        }
        let Command { name, tag, form } = command;
        let mut request = request(&name, form)?;
        self.visitor
            .check_request(&self.context, &name, &mut request)?;
        let (context, outlet) = (Rc::clone(&self.context), Rc::clone(&self.outlet));
        let go = is_go(&name);
        if tag.is_none() {
            let line = answer(&context, &outlet, None, request).await?;
            outlet.line(line).await;
            return Ok(());
        }
        let running = self.may_run()?;
        let work = async move {
            let line = match answer(&context, &outlet, tag.as_deref(), request).await {
                Ok(line) => line,
                Err(Failure::Error(error) | Failure::Fatal(error)) => {
                    failure_line(tag.as_deref(), go, error)
                }
                Err(Failure::Gone) => return,
            };
            outlet.line(line).await;
            drop(running);
        };
        task::spawn("control-command", work);
        Ok(())
    }

    async fn send(&mut self, command: Command<'_>) -> Result<(), Failure> {
        let Command { tag, form, .. } = command;
        let Form::Json(line) = form else {
            let text = "send needs JSON: {\"command\":\"send\",\"directive\":…,\"recipient\":…}";
            return Err(invalid(text).into());
        };
        let command: SendCommand = from_json(line)?;
        let ahead = self.input.ahead().len();
        let is_ahead = |size| usize::try_from(size).is_ok_and(|size| size <= ahead);
        if command.stream || command.size.is_some_and(|size| !is_ahead(size)) {
            // What was collected does not wait for the rest of this one.
            self.flush().await?;
        } else if !command.quiet {
            self.part().await?;
        }
        let refusal = if let Err(denied) = self.visitor.check(&self.context, "send", Right::Send) {
            Some(denied)
        } else if self.context.draining.get() {
            let text = "this node is about to stop and takes no message any more";
            Some(ErrorBody::new(ErrorCode::Draining, text))
        } else if !command.quiet && self.outlet.in_flight() >= SENDS_MAX {
            let text = format!("at most {SENDS_MAX} messages of one client may be under way");
            Some(ErrorBody::new(ErrorCode::Busy, text))
        } else {
            None
        };
        if let Some(error) = refusal {
            send::discard(self, &command).await?;
            return Err(error.into());
        }
        if command.quiet {
            return self.send_quiet(command, tag, line).await;
        }
        let detach = command.detach;
        let submit = send::prepare(self, command).await?;
        let work = submit.submission.id;
        self.visitor.sends(&self.context, work);
        let keyed = submit.digest.is_some();
        if keyed && self.outlet.is_sending(work) {
            let text = "a message with this key is under way on this connection";
            send::forget_payload(self, &submit.submission.payload);
            return Err(invalid(text).into());
        }
        // Somebody has to read on from the keeper when the key is known.
        let running = match &tag {
            Some(_) if keyed && !detach => match self.may_run() {
                Ok(running) => Some(running),
                Err(failure) => {
                    send::forget_payload(self, &submit.submission.payload);
                    return Err(failure);
                }
            },
            Some(_) | None => None,
        };
        let (ended, wait) = if tag.is_none() || running.is_some() {
            let (ended, wait) = oneshot::channel();
            (Some(ended), Some(wait))
        } else {
            (None, None)
        };
        let sending = Sending {
            tag: tag.clone(),
            until_accepted: submit.detach || !submit.submission.respond,
            ended,
            accepted: false,
        };
        self.outlet.begin(work, sending);
        self.submits.push(submit);
        let Some(wait) = wait else {
            if self.submits.len() >= SUBMIT_MAX {
                self.flush().await?;
                self.outlet.wait_accepted(UNACCEPTED_MAX).await;
            }
            return Ok(());
        };
        self.flush().await?;
        let (context, outlet) = (Rc::clone(&self.context), Rc::clone(&self.outlet));
        let rest = async move {
            if wait.await == Ok(Ended::ReadOn) {
                results::stream(&context, &outlet, tag.as_deref(), &work.into(), true).await
            } else {
                Ok(())
            }
        };
        self.beside(running, rest).await
    }

    /// Takes a message that is answered only when it is refused.
    async fn send_quiet(
        &mut self,
        command: SendCommand,
        tag: Tag,
        line: &str,
    ) -> Result<(), Failure> {
        if !gathers(&command) {
            self.flush().await?;
            self.gathering.taking.room().await;
            let mut submit = send::prepare(self, command).await?;
            submit.quiet = Some(Quiet::new(vec![(tag, 1)], &self.gathering.taking));
            self.submits.push(submit);
            return Ok(self.flush().await?);
        }
        let checked = match command.check() {
            Ok(checked) => checked,
            Err(error) => {
                send::discard(self, &command).await?;
                return Err(error.into());
            }
        };
        let raw = command.size.and_then(|size| usize::try_from(size).ok());
        let (content, payload) = send::payload(self, &command, None).await?;
        let (Some(recipient), Payload::Inline(payload)) = (checked.recipient, payload) else {
            return Err(invalid("quiet messages are small and have one recipient").into());
        };
        let kind = Kind {
            recipient,
            directive: checked.directive,
            content,
            expiry: send::expiry(self, &command),
            wait: command.wait,
        };
        if !self.gathering.add(&kind, &payload, tag.as_deref()) {
            self.part().await?;
            self.gathering.add(&kind, &payload, tag.as_deref());
        }
        if let Some(raw) = raw {
            self.gathering.remember(line.as_bytes(), raw);
        }
        Ok(())
    }

    async fn results(&mut self, command: Command<'_>) -> Result<(), Failure> {
        let Command { tag, form, .. } = command;
        let command = match form {
            Form::Json(line) => from_json::<ResultsCommand>(line)?,
            Form::Words(words) => ResultsCommand {
                id: id_word("results", &words)?,
                follow: true,
            },
        };
        self.visitor.check(&self.context, "results", Right::Send)?;
        let running = match &tag {
            Some(_) => Some(self.may_run()?),
            None => None,
        };
        let (context, outlet) = (Rc::clone(&self.context), Rc::clone(&self.outlet));
        let rest = async move {
            let ResultsCommand { id, follow } = command;
            results::stream(&context, &outlet, tag.as_deref(), &id, follow).await
        };
        self.beside(running, rest).await
    }

    /// A place for a command beside the others.
    fn may_run(&self) -> Result<Running, Failure> {
        if self.outlet.running() >= TAGGED_MAX {
            let text = format!("at most {TAGGED_MAX} tagged commands run at once");
            return Err(ErrorBody::new(ErrorCode::Busy, text).into());
        }
        Ok(self.outlet.run())
    }

    /// Does the rest of a command: beside the others when it has a place there, or else now.
    async fn beside(
        &self,
        running: Option<Running>,
        rest: impl Future<Output = Result<(), EngineGone>> + 'static,
    ) -> Result<(), Failure> {
        let Some(running) = running else {
            return Ok(rest.await?);
        };
        let outlet = Rc::clone(&self.outlet);
        task::spawn("control-command", async move {
            tokio::select! {
                _ = rest => {}
                () = outlet.left() => {}
            }
            drop(running);
        });
        Ok(())
    }
}

/// Runs a request; its last line.
async fn answer(
    context: &Context,
    outlet: &Outlet,
    tag: Option<&RawValue>,
    request: Request,
) -> Result<Vec<u8>, Failure> {
    Ok(match request {
        Request::Ping(command) => tagged(tag, &echo::ping(context, &command).await?),
        Request::Traceroute(command) => echo::traceroute(context, outlet, tag, &command).await?,
        Request::Status(command) => {
            let reply = views::status_reply(context).await?;
            match command.requested_fields {
                None => tagged(tag, &reply),
                Some(fields) => tagged(tag, &only(&reply, &fields)),
            }
        }
        Request::Reload => tagged(tag, &context.reload().await?),
        Request::Nodes => tagged(tag, &views::nodes_reply(context).await?),
        Request::Routes => tagged(tag, &views::routes_reply(context).await?),
        Request::Links => tagged(tag, &views::links_reply(context).await?),
        Request::Capabilities => tagged(tag, &views::capabilities_reply(context).await?),
        Request::Plugins => {
            let plugins = context.plugins().await;
            tagged(tag, &PluginsReply { plugins })
        }
        Request::PluginRestart(command) => {
            let name = command.name.clone();
            if !context.restart_plugin(name).await? {
                let text = format!("there is no plugin {} here", command.name);
                return Err(ErrorBody::new(ErrorCode::NoSuchPlugin, text).into());
            }
            let plugins = context.plugins().await;
            match plugins.iter().find(|plugin| plugin.name == command.name) {
                Some(plugin) => tagged(tag, plugin),
                // Its file has gone since.
                None => tagged(tag, &command),
            }
        }
        Request::Describe => tagged(
            tag,
            &DescribeReply {
                protocol: control::VERSION,
                commands: control::commands().map(str::to_owned).collect(),
                text: control::TEXT.to_owned(),
            },
        ),
        Request::LogLevel(command) => {
            let level = context.log_level(command.level.as_deref())?;
            tagged(tag, &LogLevelReply { level })
        }
        Request::Policy(question) => {
            let own = nix::unistd::geteuid().as_raw();
            let rules = &context.settings.borrow().rules;
            tagged(tag, &explain(rules, Some(&context.node), own, &question)?)
        }
        Request::Cancel(work) => {
            let reason = CancelReason::User;
            let cancel = |reply| Input::Cancel {
                work,
                reason,
                reply,
            };
            let cancelling = context.engine.ask(cancel).await??;
            tagged(tag, &CancelReply { cancelling })
        }
        Request::Release(work) => {
            let release = |reply| Input::Release { work, reply };
            let released = context.engine.ask(release).await??;
            // What a client was told must not be undone by a crash.
            context.keeper.flushed().await;
            tagged(tag, &ReleaseReply { released })
        }
        Request::Works(only) => {
            let brief = only.is_none();
            let works = |reply| Input::Query(Query::Works(only, reply));
            let works = context.engine.ask(works).await??;
            tagged(tag, &results::works_reply(works, brief))
        }
        Request::Spool(only) => {
            let spool = |reply| Input::Query(Query::Spool(only, reply));
            let mut spool = context.engine.ask(spool).await??;
            results::keep_first(&mut spool.messages);
            tagged(tag, &spool)
        }
        Request::SpoolDrop(work) => {
            let drop = |reply| Input::SpoolDrop { work, reply };
            let dropped = context.engine.ask(drop).await??;
            tagged(tag, &DropReply { dropped })
        }
        Request::DeadLetters => tagged(tag, &results::letters_reply(context)),
        Request::DeadLetterRetry(command) => tagged(tag, &results::retry(context, &command).await?),
        Request::DeadLetterDrop(letter) => {
            let letters = context.keeper.letters();
            let dropped = letters.find(&letter)?.id;
            letters.forget(dropped);
            context.keeper.flushed().await;
            tagged(tag, &DropReply { dropped })
        }
    })
}

/// The wanted keys of a reply.
fn only(reply: &impl Serialize, fields: &[String]) -> serde_json::Value {
    let mut value = serde_json::to_value(reply).unwrap_or_default();
    if let Some(object) = value.as_object_mut() {
        object.retain(|key, _| fields.iter().any(|field| field == key));
    }
    value
}

fn failure_line(tag: Option<&RawValue>, go: bool, error: ErrorBody) -> Vec<u8> {
    if go && tag.is_none() {
        if error.code == ErrorCode::PermissionDenied {
            // The one that programs have to tell from others.
            return go_error(&format!("{}: {}", error.code, error.message));
        }
        go_error(&error.message)
    } else {
        error_line(tag, error)
    }
}

/// `ERROR: …`, on one line whatever the text.
fn go_error(text: &str) -> Vec<u8> {
    let text: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    format!("ERROR: {text}\n").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_one_line() {
        assert_eq!(go_error("a\nb"), b"ERROR: a b\n");
    }
}
