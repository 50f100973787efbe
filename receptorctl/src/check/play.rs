//! `plugin run` and the hello for `plugin describe`: one plugin without a daemon.
//!
//! Owns the shortest way from a payload to results on stdout. Runs the plugin as the checks do, and like them leaves
//! nothing alive and nothing behind. Judges only what makes the job fail.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use receptor_proto::plugin::{
    DESCRIBE_EXIT, DRAIN_AFTER_EXIT, Done, HELLO_TIMEOUT, Level, MAX_LINE, OutputKind, Payload,
    PayloadKind, PluginHello, PluginMessage, excerpt,
};
use serde_json::{Value, json};

use super::groups::{Probe, order};
use super::job::{
    Bench, Disturb, NoHello, Order, Plan, ended, execute, file_problem, greet, host_hello,
    variables,
};
use super::process::{Event, Process, Setting};
use super::{JOB_PATIENCE, MAX_PAYLOAD};
use crate::args::PluginRun;
use crate::client::Deadline;
use crate::exit::{Exit, Failure};
use crate::output::{Out, in_words, note};

/// The id of the only job.
const ID: &str = "run-1";

/// Asks an executable for its hello.
pub(crate) fn hello(path: &Path) -> Result<PluginHello, Failure> {
    let mut bench = bench(path, HELLO_TIMEOUT)?;
    bench.describe()?.map_or_else(
        |no| Err(no_hello(path, no)),
        |(greeted, _)| Ok(greeted.hello),
    )
}

/// Runs one job.
pub(crate) fn run(
    args: &PluginRun,
    json: bool,
    timeout: Option<Duration>,
) -> Result<Exit, Failure> {
    let path = &args.path;
    let mut bench = bench(path, timeout.unwrap_or(JOB_PATIENCE))?;
    let bytes = args.payload.as_deref().map(read).transpose()?;
    let (greeted, _) = bench.describe()?.map_err(|no| no_hello(path, no))?;
    let hello = greeted.hello;
    let Some(action) = hello.actions.get(&args.action) else {
        let actions: Vec<&str> = hello.actions.keys().map(String::as_str).collect();
        let text = format!(
            "{} has no action {:?}; it has {} (no-such-action)",
            hello.name,
            args.action,
            actions.join(", ")
        );
        return Err(Failure::new(Exit::Failed, text));
    };
    if action.payload == PayloadKind::Json {
        let parsed: Result<&serde_json::value::RawValue, _> =
            serde_json::from_slice(bytes.as_deref().unwrap_or_default());
        if let Err(e) = parsed {
            let why = match bytes {
                Some(_) => e.to_string(),
                None => "there is none".to_owned(),
            };
            let text = format!("the action takes JSON as payload: {why} (invalid-payload)");
            return Err(Failure::new(Exit::Failed, text));
        }
    }
    let probe = Probe {
        name: args.action.clone(),
        action: action.clone(),
        payload: bytes.unwrap_or_default(),
    };
    let plan = Plan {
        hello: &hello,
        orders: vec![order(&hello, ID, &probe, &probe.payload)],
        disturb: Disturb::Nothing,
        newer: false,
        patience: bench.patience,
        home: None,
    };
    let dir = bench.new_dir("job")?;
    let mut job = Job {
        out: Out::new(),
        json,
        output: action.output,
        dir: &dir,
        end: None,
    };
    let result = job.play(&bench, &plan, timeout);
    // What came before a failure is worth having.
    job.out.flush()?;
    result
}

fn bench(path: &Path, patience: Duration) -> Result<Bench, Failure> {
    if !path.is_file() {
        let text = format!("{} is not there, or no file", path.display());
        return Err(Failure::new(Exit::Usage, text));
    }
    Bench::new(path, patience)
}

fn no_hello(path: &Path, (what, mend): NoHello) -> Failure {
    let text = format!("{} is no plugin: {what}\nmend: {mend}", path.display());
    Failure::new(Exit::Usage, text)
}

/// The bytes that a payload on the command line stands for.
fn read(payload: &OsStr) -> Result<Vec<u8>, Failure> {
    let (name, source): (_, Box<dyn io::Read>) = match payload.as_bytes() {
        b"-" => ("stdin".to_owned(), Box::new(io::stdin())),
        [b'@', path @ ..] => {
            let path = Path::new(OsStr::from_bytes(path));
            let name = path.display().to_string();
            let file = File::open(path)
                .map_err(|e| Failure::new(Exit::Usage, format!("cannot read {name}: {e}")))?;
            (name, Box::new(file))
        }
        text => return Ok(text.to_vec()),
    };
    let mut bytes = Vec::new();
    source
        .take(MAX_PAYLOAD + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| Failure::new(Exit::Usage, format!("cannot read {name}: {e}")))?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MAX_PAYLOAD {
        let text = format!("cannot read {name}: it has more than {MAX_PAYLOAD} bytes");
        return Err(Failure::new(Exit::Usage, text));
    }
    Ok(bytes)
}

/// The job while it runs.
struct Job<'a> {
    out: Out,
    json: bool,
    output: OutputKind,
    dir: &'a Path,
    end: Option<Result<Exit, Failure>>,
}

impl Job<'_> {
    fn play(
        &mut self,
        bench: &Bench,
        plan: &Plan<'_>,
        timeout: Option<Duration>,
    ) -> Result<Exit, Failure> {
        for Order { file, payload, .. } in &plan.orders {
            if let (Some(bytes), Some(Payload::File(file))) = (file, payload) {
                let path = self.dir.join(&file.path);
                fs::write(&path, bytes)
                    .map_err(|e| Failure::system("cannot write the payload", &e))?;
            }
        }
        let mut process = Process::start(
            &bench.signals,
            &Setting {
                program: &bench.program,
                dir: self.dir,
                home: None,
                job: &variables(plan),
            },
        )?;
        let result = match greet(&mut process, bench.patience)? {
            Err(no) => Err(no_hello(&bench.program, no)),
            Ok(_) => {
                process.write(&host_hello(false));
                for order in &plan.orders {
                    process.write(&execute(order, timeout));
                }
                self.watch(&mut process, Deadline::after(timeout))
            }
        };
        self.out.flush()?;
        for line in process.stderr().lines() {
            note(&format!("stderr: {line}"));
        }
        result
    }

    /// Takes what the plugin says until the job has ended, and the process, for which it has not long.
    fn watch(
        &mut self,
        process: &mut Process<'_>,
        mut deadline: Deadline,
    ) -> Result<Exit, Failure> {
        let mut closed = false;
        let mut closing = false;
        loop {
            self.out.flush()?;
            let Some(event) = process.next(deadline, true, MAX_LINE)? else {
                // The job is over; what the process did not end by itself is ended for it.
                return self.end.take().unwrap_or_else(|| {
                    let text = format!("the job took longer than {}; ended", deadline.limit());
                    Err(Failure::new(Exit::Failed, text))
                });
            };
            match event {
                Event::Line(line) => self.line(&line, true)?,
                Event::TooLong(start) if self.output == OutputKind::Json => {
                    let text = format!(
                        "the plugin said a line of more than {MAX_LINE} bytes that begins with {:?}",
                        excerpt(&start)
                    );
                    return Err(Failure::new(Exit::Failed, text));
                }
                Event::TooLong(part) => self.line(&part, false)?,
                Event::Closed(rest) => {
                    closed = true;
                    if !rest.is_empty() {
                        self.line(&rest, false)?;
                    }
                }
                Event::Exited(status) => {
                    deadline = Deadline::after(Some(DRAIN_AFTER_EXIT));
                    if self.end.is_none() {
                        self.end = Some(match (self.output, status.code()) {
                            (OutputKind::Text | OutputKind::Bytes, Some(code)) => {
                                self.done(code.into(), None)?
                            }
                            _ => {
                                let how = ended(Some(status));
                                let text = format!("the plugin {how} without a final message");
                                Err(Failure::new(Exit::Failed, text))
                            }
                        });
                    }
                }
            }
            if self.end.is_some() && !closing {
                closing = true;
                process.close();
                if process.status().is_none() {
                    deadline = Deadline::after(Some(DESCRIBE_EXIT));
                }
            }
            if closed
                && process.status().is_some()
                && let Some(end) = self.end.take()
            {
                return end;
            }
        }
    }

    /// Takes a line, or in `bytes` a part of one.
    fn line(&mut self, line: &[u8], whole: bool) -> Result<(), Failure> {
        match self.output {
            OutputKind::Json => self.message(line),
            OutputKind::Text if self.json => {
                let text = String::from_utf8_lossy(line);
                self.say(&json!({"type": "data", "id": ID, "text": text}))
            }
            OutputKind::Text => self.out.line(line),
            OutputKind::Bytes => {
                let mut bytes = line.to_vec();
                if whole {
                    bytes.push(b'\n');
                }
                if self.json {
                    let text = BASE64.encode(&bytes);
                    return self.say(&json!({"type": "data", "id": ID, "base64": text}));
                }
                self.out.bytes(&bytes)
            }
        }
    }

    fn message(&mut self, line: &[u8]) -> Result<(), Failure> {
        let message = PluginMessage::decode(line).map_err(|e| {
            let text = format!(
                "the plugin said something that is no message: {e}: {:?}",
                excerpt(line)
            );
            Failure::new(Exit::Failed, text)
        })?;
        if self.json {
            self.out.line(line)?;
        }
        match message {
            PluginMessage::Data(data) => self.data(&data.body),
            PluginMessage::Done(Done { code, result, .. }) => {
                let result = result.map(|result| result.get().to_owned());
                self.end = Some(self.done(code, result)?);
                Ok(())
            }
            PluginMessage::Error(end) => {
                let error = end.error;
                let mut text = format!("{} ({})", error.message, error.code);
                for cause in &error.caused_by {
                    text.push_str("\n  caused by: ");
                    text.push_str(cause);
                }
                self.end = Some(Err(Failure::new(Exit::Failed, text)));
                Ok(())
            }
            PluginMessage::Status(status) if !self.json => {
                let mut text = "status:".to_owned();
                let steps = status
                    .progress
                    .map(|(done, all)| format!("{done} of {all}"));
                for part in [status.state, status.message, steps].into_iter().flatten() {
                    text.push(' ');
                    text.push_str(&part);
                }
                note(&text);
                Ok(())
            }
            PluginMessage::Log(log) if !self.json => {
                let level = match log.level {
                    Level::Error => "error",
                    Level::Warn => "warn",
                    Level::Info => "info",
                    Level::Debug => "debug",
                    Level::Trace => "trace",
                };
                note(&format!("log: {level}: {}", log.message));
                Ok(())
            }
            PluginMessage::Status(_)
            | PluginMessage::Log(_)
            | PluginMessage::Hello(_)
            | PluginMessage::Pong(_)
            | PluginMessage::Ready(_)
            | PluginMessage::Unknown { .. } => Ok(()),
        }
    }

    fn data(&mut self, body: &Payload) -> Result<(), Failure> {
        if let Payload::File(file) = body
            && let Some(problem) = file_problem(file, self.dir)
        {
            return Err(Failure::new(Exit::Failed, problem));
        }
        if self.json {
            return Ok(());
        }
        match body {
            Payload::Json(json) => self.out.line(json.get()),
            Payload::Text(text) => self.out.line(text.strip_suffix('\n').unwrap_or(text)),
            Payload::Bytes(bytes) => self.out.bytes(bytes),
            Payload::File(file) => {
                let cannot = |e: io::Error| Failure::system("cannot read a result's file", &e);
                let mut source = File::open(self.dir.join(&file.path)).map_err(cannot)?;
                let mut chunk = vec![0; 64 * 1024];
                loop {
                    let length = source.read(&mut chunk).map_err(cannot)?;
                    if length == 0 {
                        return Ok(());
                    }
                    self.out.bytes(chunk.get(..length).unwrap_or_default())?;
                }
            }
        }
    }

    /// Shows the last word as `send` does, and says what it means for a shell.
    fn done(
        &mut self,
        code: i64,
        result: Option<String>,
    ) -> Result<Result<Exit, Failure>, Failure> {
        if self.json {
            if self.output != OutputKind::Json {
                self.say(&json!({"type": "done", "id": ID, "code": code}))?;
            }
        } else if code == 0 {
            if let Some(result) = &result {
                self.out.line(result)?;
            }
        } else if let Some(result) = &result {
            self.out
                .line(format!("{{\"code\":{code},\"result\":{result}}}"))?;
        }
        if code == 0 {
            return Ok(Ok(Exit::Done));
        }
        let mut text = format!("the job ended with code {code}");
        if let Some(result) = result
            && let Ok(result) = serde_json::from_str::<Value>(&result)
        {
            text.push_str(&in_words(&result));
        }
        Ok(Err(Failure::new(Exit::Failed, text)))
    }

    fn say(&mut self, value: &Value) -> Result<(), Failure> {
        self.out.line(value.to_string())
    }
}
