//! A plugin host with a place for its plugins, and an engine that does as it is told.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::future::Future;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use receptor_proto::lsa::Capability;
use receptor_proto::packet::{Content, Eof};
use receptor_proto::plugin::CancelReason;
use receptor_proto::{ErrorBody, MessageId};
use receptord::worker::{
    Admission, Command, Host, HostConfig, Job, JobPayload, PluginDir, PluginInfo, Report,
    ReportPayload,
};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, LocalSet};
use tokio::time::{Instant, timeout, timeout_at};

use crate::manager::Manager;

/// No wait in any test takes longer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
const ROGUE: &str = include_str!("rogue.py");

/// Runs a test on one thread, as the daemon does.
pub(crate) fn run<F: Future<Output = ()>>(test: F) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // No plugin may depend on a thread that the runtime ends when it is idle.
        .thread_keep_alive(Duration::from_millis(1))
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, async {
        timeout(2 * PATIENCE, test).await.expect("the test hangs");
    });
}

/// See the module.
pub(crate) struct Rig {
    temp: tempfile::TempDir,
    pub(crate) dirs: Vec<PathBuf>,
    pub(crate) config: HostConfig,
    pub(crate) commands: mpsc::Sender<Command>,
    reports: mpsc::Receiver<Report>,
    pub(crate) admission: Admission,
    host: JoinHandle<()>,
    works: HashMap<MessageId, Work>,
    pub(crate) capabilities: Option<Vec<Capability>>,
    /// Whether results are confirmed as they come.
    pub(crate) takes: Cell<bool>,
    /// Bundles that came back.
    pub(crate) returned: Vec<MessageId>,
    /// How often the host said that there are places.
    pub(crate) rooms: usize,
    number: u128,
    /// Starts the holders of plugins in units.
    pub(crate) manager: Option<Manager>,
}

/// What is known of a work.
#[derive(Debug, Default)]
pub(crate) struct Work {
    pub(crate) started: Option<bool>,
    pub(crate) data: Vec<Datum>,
    pub(crate) statuses: VecDeque<Report>,
    pub(crate) done: Option<Done>,
    /// It may run again at the next start.
    pub(crate) left: bool,
    /// The next daemon can go on with it.
    pub(crate) kept: bool,
}

pub(crate) struct Datum {
    pub(crate) content: Content,
    pub(crate) name: Option<String>,
    pub(crate) bytes: Bytes,
    pub(crate) by_file: bool,
}

#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) eof: Eof,
    pub(crate) content: Content,
    pub(crate) bytes: Bytes,
}

impl std::fmt::Debug for Datum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let start = &self.bytes[..self.bytes.len().min(60)];
        write!(f, "{:?} {}", self.content, String::from_utf8_lossy(start))
    }
}

impl Work {
    pub(crate) fn error(&self) -> &ErrorBody {
        let done = self.done.as_ref().expect("is not done");
        assert_ne!(done.eof.code, 0, "{self:?}");
        done.eof.error.as_ref().expect("has no error")
    }

    pub(crate) fn code(&self) -> String {
        self.error().code.to_string()
    }

    /// What a work that went well gave back.
    pub(crate) fn result(&self) -> serde_json::Value {
        let done = self.done.as_ref().expect("is not done");
        assert_eq!((done.eof.code, &done.eof.error), (0, &None), "{self:?}");
        if done.content == Content::None {
            return serde_json::Value::Null;
        }
        serde_json::from_slice(&done.bytes).unwrap()
    }

    pub(crate) fn json(&self, at: usize) -> serde_json::Value {
        assert_eq!(self.data[at].content, Content::Json);
        serde_json::from_slice(&self.data[at].bytes).unwrap()
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.json(0)["pid"].as_i64().expect("a pid")).unwrap()
    }
}

impl Rig {
    /// Starts a host with copies of the rogue under these names.
    pub(crate) async fn new(plugins: &[&str], change: impl FnOnce(&mut HostConfig)) -> Self {
        let mut rig = Self::prepared(plugins, change);
        rig.until(|rig| rig.capabilities.is_some()).await;
        rig
    }

    /// The same, not waiting for anything.
    pub(crate) fn prepared(plugins: &[&str], change: impl FnOnce(&mut HostConfig)) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().canonicalize().unwrap();
        let dirs: Vec<PathBuf> = ["first", "second"].map(|name| root.join(name)).into();
        for dir in &dirs {
            std::fs::create_dir(dir).unwrap();
            chmod(dir, 0o755);
        }
        for name in plugins {
            install(&dirs[0], name);
        }
        let mut config = HostConfig::new("node-b".parse().unwrap(), &root.join("data"));
        config.dirs = dirs.iter().map(PluginDir::new).collect();
        config.helper = PathBuf::from(env!("CARGO_BIN_EXE_receptord"));
        config.times.cancel_grace = Duration::from_millis(300);
        config.times.term_grace = Duration::from_millis(300);
        config.times.exit = Duration::from_millis(500);
        config.times.drain = Duration::from_millis(500);
        let manager = crate::IN_UNITS.then(|| Manager::start(&root));
        config.holders = manager.as_ref().map(|manager| manager.dir().to_owned());
        change(&mut config);
        let (commands, receiver) = mpsc::channel(64);
        let (sender, reports) = mpsc::channel(64);
        let host = Host::new(config.clone(), receiver, sender).unwrap();
        Self {
            temp,
            dirs,
            config,
            commands,
            reports,
            admission: host.admission(),
            host: receptord::task::spawn("plugin host", host.run()),
            works: HashMap::new(),
            capabilities: None,
            takes: Cell::new(true),
            returned: Vec::new(),
            rooms: 0,
            number: 0,
            manager,
        }
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.temp.path().canonicalize().unwrap()
    }

    pub(crate) async fn command(&mut self, command: Command) {
        self.commands.send(command).await.unwrap();
    }

    /// A job that is not sent yet.
    pub(crate) fn job(&mut self, directive: &str, content: Content, payload: JobPayload) -> Job {
        self.number += 1;
        Job {
            work: MessageId::from_u128(self.number),
            sender: "controller".parse().unwrap(),
            directive: directive.parse().unwrap(),
            content,
            payload,
            attempt: 1,
            admitted: false,
            start: false,
            outlives: false,
        }
    }

    /// Sends a job with a JSON payload.
    pub(crate) async fn send(&mut self, directive: &str, payload: &str) -> MessageId {
        let bytes = Bytes::copy_from_slice(payload.as_bytes());
        self.submit(directive, Content::Json, JobPayload::Inline(bytes))
            .await
    }

    pub(crate) async fn submit(
        &mut self,
        directive: &str,
        content: Content,
        payload: JobPayload,
    ) -> MessageId {
        let job = self.job(directive, content, payload);
        let work = job.work;
        self.command(Command::Run(Box::new(job))).await;
        work
    }

    /// Sends a job and waits for its end.
    pub(crate) async fn run(&mut self, directive: &str, payload: &str) -> Work {
        let work = self.send(directive, payload).await;
        self.finish(work).await
    }

    pub(crate) async fn finish(&mut self, work: MessageId) -> Work {
        self.until(|rig| rig.work(work).is_some_and(|work| work.done.is_some()))
            .await;
        let work = self.works.remove(&work).unwrap();
        if let Some(manager) = &self.manager {
            assert!(work.data.is_empty() || manager.started() > 0, "no holder");
        }
        work
    }

    /// Waits until the host has let go of a work that may run again.
    pub(crate) async fn until_left(&mut self, work: MessageId) {
        self.until(|rig| rig.work(work).is_some_and(|work| work.left))
            .await;
    }

    pub(crate) fn work(&self, work: MessageId) -> Option<&Work> {
        self.works.get(&work)
    }

    pub(crate) async fn until_data(&mut self, work: MessageId, count: usize) {
        self.until(|rig| rig.work(work).is_some_and(|work| work.data.len() >= count))
            .await;
    }

    pub(crate) async fn cancel(&mut self, work: MessageId) {
        let reason = CancelReason::User;
        self.command(Command::Cancel { work, reason }).await;
    }

    /// Takes reports until this is true.
    pub(crate) async fn until(&mut self, is_true: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_true(self) {
            match timeout_at(deadline, self.reports.recv()).await {
                Ok(Some(report)) => self.take(report).await,
                Ok(None) => panic!("the host is gone"),
                Err(_) => panic!("it did not happen: {:?}", self.works),
            }
        }
    }

    /// Takes reports until this is true, which no report tells.
    pub(crate) async fn until_seen(&mut self, what: &str, is_true: impl Fn() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_true() {
            assert!(Instant::now() < deadline, "it did not happen: {what}");
            if let Ok(Some(report)) = timeout(Duration::from_millis(20), self.reports.recv()).await
            {
                self.take(report).await;
            }
        }
    }

    /// Takes one report more, if one comes soon.
    pub(crate) async fn soon(&mut self) -> bool {
        match timeout(Duration::from_millis(200), self.reports.recv()).await {
            Ok(Some(report)) => {
                self.take(report).await;
                true
            }
            Ok(None) | Err(_) => false,
        }
    }

    async fn take(&mut self, report: Report) {
        match report {
            Report::Started { work, idempotent } => {
                let entry = self.works.entry(work).or_default();
                assert_eq!(entry.started, None, "started twice");
                entry.started = Some(idempotent);
                self.command(Command::Start { work }).await;
            }
            Report::Data {
                work,
                content,
                name,
                payload,
            } => {
                let entry = self.works.entry(work).or_default();
                assert!(entry.done.is_none(), "data after the end");
                let by_file = matches!(payload, ReportPayload::File { .. });
                entry.data.push(Datum {
                    content,
                    name,
                    bytes: read(payload),
                    by_file,
                });
                if self.takes.get() {
                    self.command(Command::Taken { work, results: 1 }).await;
                }
            }
            Report::Status { work, .. } => {
                let entry = self.works.entry(work).or_default();
                entry.statuses.push_back(report);
            }
            Report::Done {
                work,
                eof,
                content,
                payload,
            } => {
                let entry = self.works.entry(work).or_default();
                assert!(entry.done.is_none() && !entry.left, "ended twice");
                entry.done = Some(Done {
                    eof,
                    content,
                    bytes: read(payload),
                });
            }
            Report::Left { work } => {
                let entry = self.works.entry(work).or_default();
                assert!(entry.done.is_none() && !entry.left, "ended twice");
                entry.left = true;
            }
            Report::Kept { work } => {
                let entry = self.works.entry(work).or_default();
                assert!(!entry.kept, "kept twice");
                entry.kept = true;
            }
            Report::Room => self.rooms += 1,
            Report::Returned(job) => self.returned.push(job.work),
            Report::Capabilities(capabilities) => self.capabilities = Some(capabilities),
        }
    }

    pub(crate) async fn list(&mut self) -> BTreeMap<String, PluginInfo> {
        let (reply, answer) = oneshot::channel();
        self.command(Command::List { reply }).await;
        let list = timeout(PATIENCE, answer).await.unwrap().unwrap();
        list.into_iter()
            .map(|info| (info.name.clone(), info))
            .collect()
    }

    /// Waits until the plugin is known to be unusable, and returns why.
    pub(crate) async fn why_not(&mut self, name: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(info) = self.list().await.get(name)
                && let Some(reason) = &info.reason
                && !reason.contains("not said its hello yet")
            {
                assert!(!info.ready);
                return reason.clone();
            }
            assert!(Instant::now() < deadline, "{name} has no problem");
            self.soon().await;
        }
    }

    /// Waits until the node advertises this.
    pub(crate) async fn until_advertised(&mut self, what: impl Fn(&[Capability]) -> bool) {
        self.until(|rig| rig.capabilities.as_ref().is_some_and(|c| what(c)))
            .await;
    }

    /// Names of what is advertised.
    pub(crate) fn advertised(&self) -> Vec<&str> {
        let capabilities = self.capabilities.iter().flatten();
        capabilities.map(|c| c.plugin.as_str()).collect()
    }

    /// Stops the host and makes sure that nothing is left.
    pub(crate) async fn stop(mut self) {
        self.command(Command::Shutdown {
            grace: Duration::ZERO,
        })
        .await;
        self.ended().await;
    }

    /// Waits for the end of a host that was told to stop, and makes sure that nothing is left.
    pub(crate) async fn ended(mut self) {
        let deadline = Instant::now() + PATIENCE;
        while let Some(report) = timeout_at(deadline, self.reports.recv()).await.unwrap() {
            if let Report::Started { .. } | Report::Data { .. } = report {
                continue;
            }
            self.take(report).await;
        }
        timeout(PATIENCE, &mut self.host).await.unwrap().unwrap();
        if let Some(manager) = &self.manager {
            manager.wait(PATIENCE);
        }
        let data = self.root().join("data");
        assert_eq!(entries(&data.join("jobs")), Vec::<String>::new());
        assert_eq!(processes_of(&data), Vec::<i32>::new());
    }
}

/// The bytes of a payload; the file, which is the receiver's, is removed.
fn read(payload: ReportPayload) -> Bytes {
    match payload {
        ReportPayload::Inline(bytes) => {
            assert!(bytes.len() <= receptor_proto::packet::SEGMENT_MAX);
            bytes
        }
        ReportPayload::File { path, size, .. } => {
            let bytes = std::fs::read(&path).unwrap();
            assert_eq!(u64::try_from(bytes.len()).unwrap(), size);
            std::fs::remove_file(path).unwrap();
            bytes.into()
        }
    }
}

/// Puts a copy of the rogue into a directory, as a package manager does.
pub(crate) fn install(dir: &Path, name: &str) {
    // The system's own starts many times faster than what often stands before it in the PATH.
    let system = "/usr/bin/python3";
    if Path::new(system).exists() {
        let rest = ROGUE.strip_prefix("#!/usr/bin/env python3").unwrap();
        put(dir, name, &format!("#!{system} -SE{rest}"));
    } else {
        put(dir, name, ROGUE);
    }
}

pub(crate) fn put(dir: &Path, name: &str, text: &str) {
    let new = dir.join(format!(".{name}.new"));
    std::fs::write(&new, text).unwrap();
    chmod(&new, 0o755);
    std::fs::rename(new, dir.join(name)).unwrap();
}

pub(crate) fn chmod(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

pub(crate) fn entries(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.collect()
}

/// Whether a process is there and has not ended.
pub(crate) fn is_alive(pid: i32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return false;
    };
    !stat[stat.rfind(')').unwrap()..].starts_with(") Z")
}

/// Processes that were started for jobs below this directory.
fn processes_of(data: &Path) -> Vec<i32> {
    let mark = format!("RECEPTOR_JOB_DIR={}", data.display());
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else {
            continue;
        };
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let mut variables = environment.split(|byte| *byte == 0);
        if variables.any(|variable| variable.starts_with(mark.as_bytes())) {
            found.push(pid);
        }
    }
    found
}
