//! A daemon for one job: starts the plugin as the real one does, and keeps every line it says.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use receptor_proto::plugin::{
    Cancel, CancelReason, ErrorCode, Execute, FileRef, HostHello, HostMessage, Json, Limits,
    Payload, PluginError, PluginHello, PluginMessage, env, feature,
};
use serde_json::Value;
use tempfile::TempDir;

/// Far beyond what anything here takes, also on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(120);

static JOBS: AtomicU32 = AtomicU32::new(0);

pub(crate) struct Host {
    pub(crate) id: String,
    /// The job's directory.
    pub(crate) dir: TempDir,
    /// Where the home of whom it runs as is.
    home: TempDir,
    child: Child,
    input: Option<ChildStdin>,
    output: Arc<Output>,
}

/// What the plugin has said so far.
#[derive(Default)]
struct Output {
    said: Mutex<Said>,
    changed: Condvar,
}

#[derive(Default)]
struct Said {
    lines: Vec<String>,
    messages: Vec<PluginMessage>,
    closed: bool,
    /// The reader takes no more for now.
    paused: bool,
    /// The reader shall be gone.
    abandoned: bool,
}

/// How a job has ended.
#[derive(Debug, PartialEq)]
pub(crate) enum End {
    Done(i64, Value),
    Error(PluginError),
}

impl Host {
    /// Starts the plugin with this `PATH` and this configuration, up to its word on readiness.
    pub(crate) fn start(path: impl AsRef<OsStr>, config: &Value) -> Self {
        let n = JOBS.fetch_add(1, Ordering::Relaxed);
        let id = format!("test-{}-{n}", std::process::id());
        let dir = tempfile::tempdir().unwrap();
        let home = tempfile::tempdir().unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_runner"))
            .current_dir(dir.path())
            .env_clear()
            .env("PATH", path.as_ref())
            .env("HOME", home.path())
            .env("SECRET_OF_THE_DAEMON", "canary")
            .env(env::PROTOCOL, "1")
            .env(env::JOB_ID, &id)
            .env(env::JOB_DIR, dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let output = Arc::new(Output::default());
        let sink = Arc::clone(&output);
        thread::spawn(move || {
            loop {
                let said = sink.said.lock().unwrap();
                let mut said = sink.changed.wait_while(said, |s| s.paused).unwrap();
                if said.abandoned {
                    said.closed = true;
                    drop(stdout);
                    sink.changed.notify_all();
                    return;
                }
                drop(said);
                let mut line = String::new();
                let n = stdout.read_line(&mut line).unwrap_or(0);
                let mut said = sink.said.lock().unwrap();
                said.closed = n == 0;
                if n > 0 {
                    said.messages.push(decode(&line));
                    said.lines.push(line);
                }
                sink.changed.notify_all();
                if n == 0 {
                    return;
                }
            }
        });
        let mut host = Self {
            id,
            dir,
            home,
            input: child.stdin.take(),
            child,
            output,
        };
        host.send(&HostMessage::Hello(HostHello {
            protocol: 1,
            host: "test".into(),
            version: "0".into(),
            node: "a".into(),
            features: vec![feature::FILE.into(), feature::CANCEL.into()],
            limits: Limits::default(),
            config: Some(Json::from_value(config).unwrap()),
        }));
        host
    }

    pub(crate) fn send(&mut self, message: &HostMessage) {
        let line = message.to_line().unwrap();
        self.input.as_mut().unwrap().write_all(&line).unwrap();
    }

    pub(crate) fn execute(&mut self, action: &str, payload: Option<Payload>) {
        let id = self.id.clone();
        self.send(&HostMessage::Execute(Execute {
            id,
            action: action.into(),
            sender: "test".into(),
            payload,
            timeout_ms: None,
            attempt: 1,
        }));
    }

    /// Sends a payload as a daemon does: large ones by file.
    pub(crate) fn execute_bytes(&mut self, payload: &[u8]) {
        let payload = if payload.len() > receptor_proto::plugin::MAX_INLINE {
            fs::write(self.dir.path().join("payload"), payload).unwrap();
            Payload::File(FileRef::new("payload"))
        } else {
            Payload::Bytes(payload.to_vec())
        };
        self.execute("execute", Some(payload));
    }

    pub(crate) fn execute_json(&mut self, payload: &Value) {
        self.execute_bytes(payload.to_string().as_bytes());
    }

    pub(crate) fn cancel(&mut self, reason: CancelReason) {
        self.cancel_within(reason, 4_000);
    }

    pub(crate) fn cancel_within(&mut self, reason: CancelReason, grace_ms: u64) {
        let id = self.id.clone();
        self.send(&HostMessage::Cancel(Cancel {
            id,
            reason,
            grace_ms,
        }));
    }

    pub(crate) fn close(&mut self) {
        self.input = None;
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Stops or goes on taking what the plugin says.
    pub(crate) fn pause(&self, paused: bool) {
        self.output.said.lock().unwrap().paused = paused;
        self.output.changed.notify_all();
    }

    /// Is gone, as after a kill: both pipes break.
    pub(crate) fn abandon(&mut self) {
        self.output.said.lock().unwrap().abandoned = true;
        self.pause(false);
        self.close();
    }

    pub(crate) fn hello(&self) -> PluginHello {
        match self.wait_for("hello", |m| matches!(m, PluginMessage::Hello(_))) {
            PluginMessage::Hello(hello) => hello,
            other => panic!("{other:?}"),
        }
    }

    /// Waits until some message is as it should be.
    pub(crate) fn wait_for(
        &self,
        what: &str,
        is: impl Fn(&PluginMessage) -> bool,
    ) -> PluginMessage {
        let until = Instant::now() + DEADLINE;
        let mut said = self.output.said.lock().unwrap();
        let mut seen = 0;
        loop {
            if let Some(found) = said.messages[seen..].iter().find(|m| is(m)) {
                return found.clone();
            }
            seen = said.messages.len();
            assert!(!said.closed, "ended without {what}: {:#?}", said.lines);
            let left = until.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no {what} in time: {:#?}", said.lines);
            said = self.output.changed.wait_timeout(said, left).unwrap().0;
        }
    }

    /// Waits until ansible-runner says that the job runs.
    pub(crate) fn wait_until_running(&self) {
        self.wait_for(
            "status running",
            |m| matches!(m, PluginMessage::Status(s) if s.state.as_deref() == Some("running")),
        );
    }

    /// Waits for the final message.
    pub(crate) fn end(&self) -> End {
        match self.wait_for("final message", PluginMessage::is_final) {
            PluginMessage::Done(done) => {
                let result = done.result.map_or(Value::Null, |json| json.to().unwrap());
                End::Done(done.code, result)
            }
            PluginMessage::Error(error) => End::Error(error.error),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn done(&self) -> (i64, Value) {
        match self.end() {
            End::Done(code, result) => (code, result),
            End::Error(error) => panic!("{error:?}: {}", self.raw()),
        }
    }

    pub(crate) fn error(&self) -> PluginError {
        match self.end() {
            End::Error(error) => error,
            End::Done(code, result) => panic!("done {code} {result}"),
        }
    }

    /// The plugin has exited, nothing was said after the final message, and no process is left.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let until = Instant::now() + DEADLINE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(
                Instant::now() < until,
                "the plugin does not exit: {}",
                self.raw()
            );
            thread::sleep(Duration::from_millis(2));
        };
        let mut said = self.output.said.lock().unwrap();
        while !said.closed {
            said = self.output.changed.wait(said).unwrap();
        }
        let finals = said.messages.iter().filter(|m| m.is_final()).count();
        assert!(finals <= 1, "{:#?}", said.lines);
        let last_is_final = said.messages.last().is_some_and(PluginMessage::is_final);
        assert!(finals == 0 || last_is_final, "{:#?}", said.lines);
        drop(said);
        assert_eq!(processes_of(&self.id), [""; 0], "left behind");
        status
    }

    /// Waits for the end and the exit, which must be 0.
    pub(crate) fn finish(&mut self) -> End {
        let end = self.end();
        assert_eq!(self.wait().code(), Some(0));
        end
    }

    /// All results so far that are JSON.
    pub(crate) fn data(&self) -> Vec<Value> {
        let said = self.output.said.lock().unwrap();
        let mut data = Vec::new();
        for message in &said.messages {
            if let PluginMessage::Data(message) = message {
                match &message.body {
                    Payload::Json(json) => data.push(json.to().unwrap()),
                    Payload::File(file) if file.name.is_some() => {}
                    Payload::File(file) => {
                        let bytes = fs::read(self.dir().join(&file.path)).unwrap();
                        data.push(serde_json::from_slice(&bytes).unwrap());
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
        data
    }

    /// The job's directory.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Names of all events so far.
    pub(crate) fn events(&self) -> Vec<String> {
        let data = self.data().into_iter();
        data.filter_map(|d| Some(d.get("event")?.as_str()?.to_owned()))
            .collect()
    }

    pub(crate) fn logs(&self) -> Vec<String> {
        let said = self.output.said.lock().unwrap();
        said.messages
            .iter()
            .filter_map(|m| match m {
                PluginMessage::Log(log) => Some(log.message.clone()),
                _ => None,
            })
            .collect()
    }

    /// The home of whom the job runs as.
    pub(crate) fn home(&self) -> &Path {
        self.home.path()
    }

    /// Everything the plugin has said.
    pub(crate) fn raw(&self) -> String {
        self.output.said.lock().unwrap().lines.concat()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            // A test that failed must not leave a job behind either.
            for (pid, _) in environments(&self.id) {
                let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
            }
        }
    }
}

pub(crate) fn refused(end: End, code: &ErrorCode, text: &str) {
    let End::Error(error) = end else {
        panic!("{end:?}")
    };
    assert_eq!(&error.code, code, "{error:?}");
    assert!(error.message.contains(text), "{error:?}");
}

/// The command lines of all processes whose environment names the job.
pub(crate) fn processes_of(id: &str) -> Vec<String> {
    environments(id).into_values().collect()
}

fn environments(id: &str) -> BTreeMap<u32, String> {
    let wanted = format!("{}={id}", env::JOB_ID);
    let mut found = BTreeMap::new();
    for entry in fs::read_dir("/proc").unwrap().filter_map(Result::ok) {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else {
            continue;
        };
        let environ = fs::read(entry.path().join("environ")).unwrap_or_default();
        if environ.split(|b| *b == 0).any(|v| v == wanted.as_bytes()) {
            found.insert(pid, command_line(&entry.path()));
        }
    }
    found
}

fn command_line(dir: &Path) -> String {
    let line = fs::read(dir.join("cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line).replace('\0', " ")
}

fn decode(line: &str) -> PluginMessage {
    PluginMessage::decode(line.as_bytes()).unwrap_or_else(|e| panic!("{e}: {line}"))
}
