//! One run of the plugin under test: from its start to the end of everything it started.
//!
//! Owns the order of the protocol (hello, hello, execute, …, final message, end of stdin, exit) and what is kept of
//! a run: counts and complaints, never results. Says nothing about whether what it saw is good.

use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use nix::sys::signal::Signal;
use receptor_proto::plugin::{
    Cancel, CancelReason, DESCRIBE_EXIT, DRAIN_AFTER_EXIT, ErrorCode, Execute, FileRef,
    HELLO_TIMEOUT, HostHello, HostMessage, Json, Limits, MAX_HELLO, MAX_LINE, Mode, OutputKind,
    PROTOCOL_VERSION, Payload, Ping, PluginHello, PluginMessage, Shutdown, env, excerpt, feature,
    is_relative_path,
};
use tempfile::TempDir;

use super::process::{Event, NODE, Process, Setting, Signals};
use super::tree;
use crate::client::Deadline;
use crate::exit::{Exit, Failure};

/// How long a job may run before it is disturbed, when it says nothing.
const SETTLE: Duration = Duration::from_millis(200);
/// The pause between two looks at what outlives its job.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// Complaints about one run that are kept; one is enough to fail.
const MAX_COMPLAINTS: usize = 4;

/// Where and with what plugins are run.
#[derive(Debug)]
pub(super) struct Bench {
    pub(super) program: PathBuf,
    pub(super) signals: Signals,
    root: TempDir,
    runs: u32,
    /// How long a job, and any step of it, may take at most.
    pub(super) patience: Duration,
    /// What outlived its job, over all runs.
    pub(super) leftovers: Vec<String>,
}

impl Bench {
    pub(super) fn new(program: &Path, patience: Duration) -> Result<Self, Failure> {
        let cannot =
            |e: std::io::Error| Failure::new(Exit::Usage, format!("cannot prepare a check: {e}"));
        tree::adopt_orphans().map_err(cannot)?;
        Ok(Self {
            // A relative path would mean something else in the job directory.
            program: std::path::absolute(program).map_err(cannot)?,
            signals: Signals::watch().map_err(cannot)?,
            root: tempfile::Builder::new()
                .prefix("receptor-check-")
                .tempdir()
                .map_err(cannot)?,
            runs: 0,
            patience,
            leftovers: Vec::new(),
        })
    }

    /// An empty directory beside those of the jobs.
    pub(super) fn new_dir(&mut self, kind: &str) -> Result<PathBuf, Failure> {
        self.runs += 1;
        let dir = self.root.path().join(format!("{kind}-{}", self.runs));
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&dir)
            .map_err(|e| {
                Failure::new(Exit::Usage, format!("cannot make {}: {e}", dir.display()))
            })?;
        Ok(dir)
    }

    /// What lies beside the directories that were made here.
    pub(super) fn strays(&self) -> Vec<PathBuf> {
        let known = |name: &str| name.starts_with("job-") || name.starts_with("home-");
        fs::read_dir(self.root.path())
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| !known(&entry.file_name().to_string_lossy()))
            .map(|entry| entry.path())
            .collect()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // Nothing outlives a check; what cannot be ended was told when it was seen.
        let _ = tree::end_all();
    }
}

/// A job that a plugin is given.
#[derive(Debug, Clone)]
pub(super) struct Order {
    pub(super) id: String,
    pub(super) action: String,
    pub(super) payload: Option<Payload>,
    /// Bytes for the payload's file in the job directory.
    pub(super) file: Option<Vec<u8>>,
}

/// The name of a payload's file, as it is in most jobs.
pub(super) const PAYLOAD_FILE: &str = "payload";

impl Order {
    pub(super) fn new(id: &str, action: &str, payload: Option<Payload>) -> Self {
        Self {
            id: id.to_owned(),
            action: action.to_owned(),
            payload,
            file: None,
        }
    }

    /// The payload goes by file.
    pub(super) fn by_file(id: &str, action: &str, bytes: Vec<u8>) -> Self {
        let mut file = FileRef::new(PAYLOAD_FILE);
        file.size = u64::try_from(bytes.len()).ok();
        Self {
            file: Some(bytes),
            ..Self::new(id, action, Some(Payload::File(file)))
        }
    }
}

/// What is done to a running job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Disturb {
    Nothing,
    /// Tells the first job to stop.
    Cancel,
    CloseStdin,
    Terminate,
    /// Does not read stdout for this long.
    Deaf(Duration),
    /// Asks for a sign of life.
    Ping,
    /// Tells it to finish and exit.
    Shutdown,
}

/// A whole run.
#[derive(Debug, Clone)]
pub(super) struct Plan<'a> {
    pub(super) hello: &'a PluginHello,
    pub(super) orders: Vec<Order>,
    pub(super) disturb: Disturb,
    /// Says what a host of a newer protocol might say.
    pub(super) newer: bool,
    /// How long it may take after the disturbance.
    pub(super) patience: Duration,
    pub(super) home: Option<PathBuf>,
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Final {
    Done(i64),
    Error(ErrorCode, String),
}

/// What did not come in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Late {
    /// The job's end.
    Job,
    /// The exit of a process that has nothing to do any more.
    Exit,
    /// The end of stdout after the exit: something else holds it.
    Stdout,
}

/// What a run was like.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// From the start to the hello.
    pub(super) hello_ms: u128,
    /// `data` messages, lines of text or reads of bytes.
    pub(super) data: u64,
    /// The first message that ended each job, by id.
    pub(super) finals: Vec<(String, Final)>,
    /// What broke the protocol.
    pub(super) complaints: Vec<String>,
    pub(super) pong: bool,
    pub(super) ready: Option<Result<(), String>>,
    pub(super) status: Option<ExitStatus>,
    /// Everything was over before the disturbance.
    pub(super) undisturbed: bool,
    /// Time was over before the job, or the process, was.
    pub(super) late: Option<Late>,
    /// From the disturbance to the end.
    pub(super) took: Duration,
    pub(super) stderr: String,
}

impl Seen {
    fn complain(&mut self, text: impl Into<String>) {
        if self.complaints.len() < MAX_COMPLAINTS {
            self.complaints.push(text.into());
        }
    }

    pub(super) fn final_of(&self, id: &str) -> Option<&Final> {
        self.finals
            .iter()
            .find(|(of, _)| of == id)
            .map(|(_, end)| end)
    }
}

/// How the process ended, for a person.
pub(super) fn ended(status: Option<ExitStatus>) -> String {
    match status {
        None => "still runs".to_owned(),
        Some(status) => match (status.code(), status.signal()) {
            (Some(code), _) => format!("exited with status {code}"),
            (None, Some(signal)) => {
                let name = Signal::try_from(signal).map_or("a signal", Signal::as_str);
                format!("was ended by {name}")
            }
            (None, None) => status.to_string(),
        },
    }
}

/// A plugin that has said its hello.
#[derive(Debug)]
pub(super) struct Greeted {
    pub(super) hello: PluginHello,
    pub(super) ms: u128,
}

/// Why there is no hello: what was seen, and how to mend it.
pub(super) type NoHello = (String, &'static str);

/// Reads a process's hello.
pub(super) fn greet(
    process: &mut Process<'_>,
    patience: Duration,
) -> Result<Result<Greeted, NoHello>, Failure> {
    const FLUSH: &str = "print the hello first of all, and flush stdout after it";
    let deadline = Deadline::after(Some(patience.min(HELLO_TIMEOUT)));
    let mut closed = false;
    loop {
        let no = |process: &Process<'_>, what: String, mend| {
            let stderr = process.stderr();
            let said = if stderr.is_empty() {
                String::new()
            } else {
                format!("; on stderr: {stderr}")
            };
            Ok(Err((what + &said, mend)))
        };
        match process.next(deadline, true, MAX_HELLO)? {
            Some(Event::Line(line)) => {
                let ms = process.age().as_millis();
                return match PluginMessage::decode(&line) {
                    Ok(PluginMessage::Hello(hello)) => Ok(Ok(Greeted { hello, ms })),
                    Ok(_) => no(
                        process,
                        format!("its first line is no hello: {:?}", excerpt(&line)),
                        FLUSH,
                    ),
                    Err(e) => no(
                        process,
                        format!("its first line is no hello: {e}: {:?}", excerpt(&line)),
                        "print nothing else on stdout, and the hello as one line of JSON",
                    ),
                };
            }
            Some(Event::TooLong(start)) => {
                let what = format!(
                    "its hello has more than {MAX_HELLO} bytes and begins with {:?}",
                    excerpt(&start)
                );
                return no(process, what, "move long descriptions into documentation");
            }
            Some(Event::Closed(_)) if process.status().is_some() => {
                return no(
                    process,
                    format!("it {} without a hello", ended(process.status())),
                    FLUSH,
                );
            }
            Some(Event::Closed(_)) => closed = true,
            Some(Event::Exited(status)) => {
                if closed {
                    return no(
                        process,
                        format!("it {} without a hello", ended(Some(status))),
                        FLUSH,
                    );
                }
            }
            None => {
                let what = format!("it said no hello within {}", deadline.limit());
                return no(process, what, FLUSH);
            }
        }
    }
}

impl Bench {
    /// Starts the plugin without a job, and ends it as the daemon does to describe it.
    pub(super) fn describe(&mut self) -> Result<Result<(Greeted, Seen), NoHello>, Failure> {
        let dir = self.new_dir("job")?;
        let mut seen = Seen::default();
        let result = {
            let mut process = Process::start(
                &self.signals,
                &Setting {
                    program: &self.program,
                    dir: &dir,
                    home: None,
                    job: &[],
                },
            )?;
            match greet(&mut process, self.patience)? {
                Err(no) => Err(no),
                Ok(greeted) => {
                    seen.hello_ms = greeted.ms;
                    process.write(&host_hello(false));
                    process.close();
                    let start = process.age();
                    finish(&mut process, &mut seen, &[], &dir, DESCRIBE_EXIT, false)?;
                    seen.took = process.age() - start;
                    Ok(greeted)
                }
            }
        };
        self.sweep()?;
        Ok(result.map(|greeted| (greeted, seen)))
    }

    /// Runs a plan to its end.
    pub(super) fn run(&mut self, plan: &Plan<'_>) -> Result<Seen, Failure> {
        let dir = self.new_dir("job")?;
        for order in &plan.orders {
            if let (Some(bytes), Some(Payload::File(file))) = (&order.file, &order.payload) {
                let path = dir.join(&file.path);
                fs::write(&path, bytes).map_err(|e| {
                    Failure::new(Exit::Usage, format!("cannot write {}: {e}", path.display()))
                })?;
            }
        }
        let variables = variables(plan);
        let mut seen = Seen::default();
        {
            let mut process = Process::start(
                &self.signals,
                &Setting {
                    program: &self.program,
                    dir: &dir,
                    home: plan.home.as_deref(),
                    job: &variables,
                },
            )?;
            match greet(&mut process, self.patience)? {
                Err((what, _)) => seen.complain(what),
                Ok(greeted) => {
                    seen.hello_ms = greeted.ms;
                    converse(&mut process, &mut seen, plan, &dir)?;
                }
            }
            seen.status = process.status();
            seen.stderr = process.stderr();
        }
        if seen.status.is_some() {
            self.note_leftovers();
        }
        self.sweep()?;
        Ok(seen)
    }

    /// Remembers what outlives a process that has ended, and does not end by itself.
    fn note_leftovers(&mut self) {
        let deadline = Deadline::after(Some(DRAIN_AFTER_EXIT));
        let mut left = tree::descendants();
        while !left.is_empty() && !deadline.is_over() {
            std::thread::sleep(LOOK_AGAIN);
            left = tree::descendants();
        }
        for one in left {
            let text = format!("{} (pid {})", one.name, one.pid);
            if self.leftovers.len() < MAX_COMPLAINTS {
                self.leftovers.push(text);
            }
        }
    }

    /// Ends what is left of a run.
    fn sweep(&mut self) -> Result<(), Failure> {
        tree::end_all().map_err(|e| Failure::system("a process of the plugin cannot be ended", &e))
    }
}

/// What the environment says of a job.
pub(super) fn variables(plan: &Plan<'_>) -> Vec<(&'static str, String)> {
    let [order] = &plan.orders[..] else {
        return Vec::new();
    };
    if plan.hello.mode == Mode::Serve {
        return Vec::new();
    }
    let mut all = vec![
        (env::JOB_ID, order.id.clone()),
        (env::ACTION, order.action.clone()),
        (env::SENDER, NODE.to_owned()),
    ];
    if let Some(Payload::File(file)) = &order.payload {
        all.push((env::PAYLOAD_FILE, file.path.clone()));
    }
    all
}

/// The host's answer to a hello.
pub(super) fn host_hello(newer: bool) -> Vec<u8> {
    let hello = HostMessage::Hello(HostHello {
        protocol: PROTOCOL_VERSION,
        host: "receptorctl".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        node: NODE.to_owned(),
        features: [feature::CANCEL, feature::STATUS, feature::FILE]
            .map(str::to_owned)
            .to_vec(),
        limits: Limits::default(),
        config: Json::parse(b"{}").ok(),
    });
    let mut line = line_of(&hello);
    if newer {
        // Before the closing brace and the newline.
        line.truncate(line.len().saturating_sub(2));
        line.extend_from_slice(b",\"x-receptor-check\":{\"a\":[1,null]}}\n");
        line.extend_from_slice(b"{\"type\":\"x-receptor-check\",\"id\":\"x\",\"more\":[]}\n");
    }
    line
}

/// A message that is known to fit a line.
fn line_of(message: &HostMessage) -> Vec<u8> {
    message.to_line().unwrap_or_default()
}

/// The message that gives a job.
pub(super) fn execute(order: &Order, timeout: Option<Duration>) -> Vec<u8> {
    line_of(&HostMessage::Execute(Execute {
        id: order.id.clone(),
        action: order.action.clone(),
        sender: NODE.to_owned(),
        payload: order.payload.clone(),
        timeout_ms: timeout.and_then(|time| u64::try_from(time.as_millis()).ok()),
        attempt: 1,
    }))
}

/// Everything from the host's hello to the exit.
fn converse(
    process: &mut Process<'_>,
    seen: &mut Seen,
    plan: &Plan<'_>,
    dir: &Path,
) -> Result<(), Failure> {
    process.write(&host_hello(plan.newer));
    for order in &plan.orders {
        process.write(&execute(order, Some(plan.patience)));
    }
    let output = plan
        .orders
        .first()
        .and_then(|order| plan.hello.actions.get(&order.action))
        .map_or(OutputKind::Json, |action| action.output);
    let mut run = Run {
        seen,
        plan,
        dir,
        output,
        closed: false,
    };
    if plan.disturb != Disturb::Nothing {
        // In the middle of the job: once it has said something, or had time to begin.
        let all = Deadline::after(Some(plan.patience));
        let mut settle = Deadline::after(Some(SETTLE));
        while !run.is_over(process) {
            match process.next(settle, true, MAX_LINE)? {
                None if process.is_written() || all.is_over() => break,
                None => settle = Deadline::after(Some(SETTLE)),
                Some(event) => {
                    if run.take(event) {
                        break;
                    }
                }
            }
        }
        run.seen.undisturbed = run.is_over(process);
        disturb(process, &mut run)?;
    }
    let start = process.age();
    let mut deadline = Deadline::after(Some(plan.patience));
    while !run.is_over(process) || run.awaits_pong(process) {
        match process.next(deadline, true, MAX_LINE)? {
            None => {
                let exited = process.status().is_some();
                run.seen.late = Some(if exited { Late::Stdout } else { Late::Job });
                break;
            }
            Some(event) => {
                if matches!(event, Event::Exited(_)) {
                    deadline = Deadline::after(Some(DRAIN_AFTER_EXIT));
                }
                run.take(event);
            }
        }
    }
    let is_open = run.seen.late.is_none() && !(run.closed && process.status().is_some());
    if is_open {
        // Only messages can be over before the process is.
        let by_itself = matches!(plan.disturb, Disturb::Terminate | Disturb::Shutdown);
        if !by_itself {
            process.close();
        }
        let grace = if by_itself {
            plan.patience
        } else {
            DESCRIBE_EXIT
        };
        let closed = run.closed;
        finish(process, seen, &ids(plan), dir, grace, closed)?;
    }
    seen.took = process.age().saturating_sub(start);
    Ok(())
}

fn disturb(process: &mut Process<'_>, run: &mut Run<'_, '_>) -> Result<(), Failure> {
    let grace_ms = u64::try_from(run.plan.patience.as_millis()).unwrap_or(u64::MAX);
    match run.plan.disturb {
        Disturb::Nothing => {}
        Disturb::Cancel => {
            let id = run.plan.orders.first().map(|order| order.id.clone());
            process.write(&line_of(&HostMessage::Cancel(Cancel {
                id: id.unwrap_or_default(),
                reason: CancelReason::User,
                grace_ms,
            })));
        }
        Disturb::CloseStdin => process.close(),
        Disturb::Terminate => process.signal(Signal::SIGTERM),
        Disturb::Ping => process.write(&line_of(&HostMessage::Ping(Ping { nonce: NONCE }))),
        Disturb::Shutdown => process.write(&line_of(&HostMessage::Shutdown(Shutdown { grace_ms }))),
        Disturb::Deaf(time) => {
            let deadline = Deadline::after(Some(time));
            while let Some(event) = process.next(deadline, false, MAX_LINE)? {
                run.take(event);
            }
        }
    }
    Ok(())
}

/// What a ping carries.
const NONCE: u64 = 0x7265_6365;

/// What is kept while a run lasts.
struct Run<'a, 'b> {
    seen: &'a mut Seen,
    plan: &'a Plan<'b>,
    dir: &'a Path,
    output: OutputKind,
    closed: bool,
}

impl Run<'_, '_> {
    /// Whether nothing more is to be waited for.
    fn is_over(&self, process: &Process<'_>) -> bool {
        // The daemon ends a job that breaks the protocol, too.
        if self.closed && process.status().is_some() || !self.seen.complaints.is_empty() {
            return true;
        }
        let all = |order: &Order| self.seen.final_of(&order.id).is_some();
        self.output == OutputKind::Json && self.plan.orders.iter().all(all)
    }

    /// Whether the answer to a ping is still to come.
    fn awaits_pong(&self, process: &Process<'_>) -> bool {
        self.plan.disturb == Disturb::Ping && !self.seen.pong && process.status().is_none()
    }

    /// Takes an event; true when the job has shown that it runs.
    fn take(&mut self, event: Event) -> bool {
        match (event, self.output) {
            (Event::Line(line), OutputKind::Json) => {
                message(&line, self.seen, &ids(self.plan), self.dir);
                true
            }
            (Event::TooLong(start), OutputKind::Json) => {
                self.seen.complain(format!(
                    "a line of more than {MAX_LINE} bytes that begins with {:?}",
                    excerpt(&start)
                ));
                true
            }
            (Event::Line(_) | Event::TooLong(_), OutputKind::Text | OutputKind::Bytes) => {
                self.seen.data += 1;
                true
            }
            (Event::Closed(rest), output) => {
                self.closed = true;
                if !rest.is_empty() {
                    if output == OutputKind::Json {
                        self.seen
                            .complain(format!("its last line has no end: {:?}", excerpt(&rest)));
                    } else {
                        self.seen.data += 1;
                    }
                }
                false
            }
            (Event::Exited(status), output) => {
                if output != OutputKind::Json
                    && let Some(order) = self.plan.orders.first()
                    && let Some(code) = status.code()
                {
                    self.seen
                        .finals
                        .push((order.id.clone(), Final::Done(code.into())));
                }
                false
            }
        }
    }
}

fn ids<'a>(plan: &'a Plan<'_>) -> Vec<&'a str> {
    plan.orders.iter().map(|order| order.id.as_str()).collect()
}

/// Takes one line of a plugin that speaks JSON.
fn message(line: &[u8], seen: &mut Seen, ids: &[&str], dir: &Path) {
    let message = match PluginMessage::decode(line) {
        Ok(message) => message,
        Err(e) => {
            seen.complain(format!(
                "a line that is no message: {e}: {:?}",
                excerpt(line)
            ));
            return;
        }
    };
    if let Some(id) = message.id() {
        if !ids.contains(&id) {
            seen.complain(format!(
                "a message about a job that it was not given: {:?}",
                excerpt(line)
            ));
            return;
        }
        if seen.final_of(id).is_some() {
            seen.complain(format!(
                "a message after the job's final one: {:?}",
                excerpt(line)
            ));
            return;
        }
    }
    match message {
        PluginMessage::Hello(_) => seen.complain("a second hello"),
        PluginMessage::Data(data) => {
            seen.data += 1;
            if let Payload::File(file) = &data.body
                && let Some(problem) = file_problem(file, dir)
            {
                seen.complain(problem);
            }
        }
        PluginMessage::Done(done) => seen.finals.push((done.id, Final::Done(done.code))),
        PluginMessage::Error(end) => {
            let end_of = Final::Error(end.error.code, end.error.message);
            seen.finals.push((end.id, end_of));
        }
        PluginMessage::Pong(ping) => {
            if ping.nonce == NONCE {
                seen.pong = true;
            } else {
                seen.complain(format!("a pong with the nonce {}, not {NONCE}", ping.nonce));
            }
        }
        PluginMessage::Ready(ready) => {
            seen.ready = Some(if ready.ready {
                Ok(())
            } else {
                Err(ready
                    .reason
                    .unwrap_or_else(|| "it does not say why".to_owned()))
            });
        }
        PluginMessage::Status(_) | PluginMessage::Log(_) | PluginMessage::Unknown { .. } => {}
    }
}

/// Why the daemon would not take a result's file.
pub(super) fn file_problem(file: &FileRef, dir: &Path) -> Option<String> {
    let path = &file.path;
    if !is_relative_path(path) {
        return Some(format!(
            "the result's file {path:?} is not a relative path below the job directory"
        ));
    }
    let metadata = match fs::symlink_metadata(dir.join(path)) {
        Ok(metadata) => metadata,
        Err(e) => return Some(format!("the result's file {path:?} cannot be taken: {e}")),
    };
    if !metadata.is_file() {
        return Some(format!("the result's file {path:?} is not a regular file"));
    }
    match file.size {
        Some(size) if size != metadata.len() => Some(format!(
            "the result's file {path:?} has {} bytes and not {size}",
            metadata.len()
        )),
        _ => None,
    }
}

/// Waits for the exit of a plugin that has nothing to do any more.
fn finish(
    process: &mut Process<'_>,
    seen: &mut Seen,
    ids: &[&str],
    dir: &Path,
    grace: Duration,
    mut closed: bool,
) -> Result<(), Failure> {
    let mut deadline = Deadline::after(Some(grace));
    loop {
        match process.next(deadline, true, MAX_LINE)? {
            Some(Event::Line(line)) => message(&line, seen, ids, dir),
            Some(Event::TooLong(start)) => {
                seen.complain(format!(
                    "a line of more than {MAX_LINE} bytes: {:?}",
                    excerpt(&start)
                ));
            }
            Some(Event::Closed(rest)) => {
                closed = true;
                if !rest.is_empty() {
                    seen.complain(format!("its last line has no end: {:?}", excerpt(&rest)));
                }
            }
            Some(Event::Exited(_)) => deadline = Deadline::after(Some(DRAIN_AFTER_EXIT)),
            None => {
                let exited = process.status().is_some();
                seen.late = Some(if exited { Late::Stdout } else { Late::Exit });
                break;
            }
        }
        if closed && process.status().is_some() {
            break;
        }
    }
    seen.status = process.status();
    Ok(())
}
