//! Clients that keep a mesh busy while something is done to it, and the account of what came of
//! every message.
//!
//! Owns the plugin `counter`, which writes down every run, and threads that send to it and ping.
//! Each message has a number of its own, so that one that is lost and one that is run twice are
//! both told by it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{Control, Daemon, Mesh, Node, wait_for};

/// Between two messages of one client, so that a mesh of many daemons on few processors is
/// tested and not its patience.
const PACE: Duration = Duration::from_millis(10);
/// What a ping of [`Pings`] waits for its answer: less than any hold time under test.
const PING_TIMEOUT_MS: u64 = 150;

/// Numbers of messages, each used once in a process.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// The plugin `counter` of one node: `counter:add` writes its request's number down and answers.
#[derive(Debug, Clone)]
pub struct Counter {
    runs: PathBuf,
}

impl Counter {
    /// Gives a node that is to be started the plugin.
    ///
    /// # Panics
    ///
    /// When it cannot be written.
    #[must_use]
    pub fn install(mesh: &Mesh, node: Node, name: &str) -> (Self, Node) {
        let dir = mesh.dir().join(format!("counter-of-{name}"));
        fs::create_dir(&dir).expect("a directory for the plugin");
        let runs = dir.join("runs");
        fs::write(&runs, "").expect("a file for its runs");
        let script = format!(
            "#!/bin/sh\n\
             echo '{{\"type\":\"hello\",\"protocol\":1,\"name\":\"counter\",\"version\":\"1\",\"actions\":{{\"add\":{{\"payload\":\"json\",\"output\":\"text\"}}}}}}'\n\
             read -r hello || exit 0\n\
             read -r job || exit 0\n\
             n=${{job#*'\"n\":'}}\n\
             echo \"${{n%%[!0-9]*}}\" >>'{}'\n\
             echo counted\n",
            runs.display()
        );
        let plugins = dir.join("plugins");
        fs::create_dir(&plugins).expect("a directory for the plugin");
        let plugin = plugins.join("counter");
        fs::write(&plugin, script).expect("the plugin");
        fs::set_permissions(&plugin, fs::Permissions::from_mode(0o755)).expect("the plugin");
        // The temporary directory belongs to everybody, which is not what plugins are trusted in.
        let node = node
            .config("[plugins]\nallow-unsafe = true")
            .arg("--plugins-dir")
            .arg(plugins.to_str().expect("a temporary directory of letters"));
        (Self { runs }, node)
    }

    /// How often each message was run.
    ///
    /// # Panics
    ///
    /// When the plugin's file is gone or is not what the plugin writes.
    #[must_use]
    pub fn runs(&self) -> BTreeMap<u64, u32> {
        let text = fs::read_to_string(&self.runs).expect("the file of runs");
        let mut runs = BTreeMap::new();
        for line in text.lines() {
            let number = line.parse().expect("the number of a request");
            *runs.entry(number).or_default() += 1;
        }
        runs
    }
}

/// What came of one message.
#[derive(Debug, Clone)]
pub struct Sent {
    /// Its number.
    pub number: u64,
    /// The last line of the reply.
    pub end: Value,
    /// From the command to the last line.
    pub took: Duration,
}

impl Sent {
    /// Sends one message to `counter:add` and waits for its end.
    pub fn one(control: &mut Control, recipient: &str) -> Self {
        let number = post(control, recipient, false);
        let began = Instant::now();
        loop {
            let reply = control.reply();
            if reply["eof"] == true {
                return Self {
                    number,
                    end: reply,
                    took: began.elapsed(),
                };
            }
        }
    }

    /// Whether it ran and its sender was told so.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.end["code"] == 0 && self.end["error"].is_null()
    }
}

/// The number of a message that was never used before.
#[must_use]
pub fn number() -> u64 {
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Writes one `send` to `counter:add` and gives its number; reads nothing.
pub fn post(control: &mut Control, recipient: &str, detach: bool) -> u64 {
    let number = number();
    let command = json!({
        "command": "send", "directive": "counter:add", "recipient": recipient,
        "payload": {"n": number}, "detach": detach,
    });
    control.write(format!("{command}\n"));
    number
}

/// Clients that send one message after the other until they are stopped.
#[derive(Debug)]
pub struct Traffic {
    clients: Vec<(SyncSender<()>, JoinHandle<Vec<Sent>>)>,
    sent: Arc<Mutex<Vec<u64>>>,
}

impl Default for Traffic {
    fn default() -> Self {
        Self::new()
    }
}

impl Traffic {
    /// No client yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            clients: Vec::new(),
            sent: Arc::default(),
        }
    }

    /// So many clients of `from` that send to `counter:add` at `to`.
    pub fn clients(&mut self, count: usize, from: &Daemon, to: &str) {
        for _ in 0..count {
            let (stop, stopped) = mpsc::sync_channel(0);
            let mut control = from.control();
            let to = to.to_owned();
            let done = Arc::clone(&self.sent);
            let client = std::thread::spawn(move || {
                let mut all = Vec::new();
                while stopped.recv_timeout(PACE) == Err(RecvTimeoutError::Timeout) {
                    let sent = Sent::one(&mut control, &to);
                    if let Ok(mut done) = done.lock() {
                        done.push(sent.number);
                    }
                    all.push(sent);
                }
                all
            });
            self.clients.push((stop, client));
        }
    }

    /// Waits until `count` more messages have come to their end.
    ///
    /// # Panics
    ///
    /// When they do not, or a client has failed.
    pub fn wait_more(&self, count: usize) {
        let done = || self.sent.lock().expect("no client has failed").len();
        let before = done();
        wait_for(&format!("{count} more messages"), || {
            (done() >= before + count).then_some(())
        });
    }

    /// Lets every client finish what it has begun.
    ///
    /// # Panics
    ///
    /// When one has failed.
    #[must_use]
    pub fn stop(self) -> Vec<Sent> {
        let (stops, clients): (Vec<_>, Vec<_>) = self.clients.into_iter().unzip();
        drop(stops);
        clients
            .into_iter()
            .flat_map(|client| client.join().expect("a client that got every answer"))
            .collect()
    }
}

/// Demands that every message was run once, and that its sender knows.
///
/// # Panics
///
/// When one was lost, run twice, or ended with an error.
pub fn assert_once(sent: &[Sent], counter: &Counter) {
    assert!(!sent.is_empty(), "nothing was sent");
    let runs = counter.runs();
    for sent in sent {
        assert!(sent.is_done(), "{sent:?}");
        let times = runs.get(&sent.number).copied().unwrap_or_default();
        assert_eq!(times, 1, "{sent:?}");
    }
    let twice: Vec<_> = runs.iter().filter(|(_, times)| **times > 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
}

/// A client that pings without pause and remembers when it was answered.
#[derive(Debug)]
pub struct Pings {
    stop: SyncSender<()>,
    client: JoinHandle<()>,
    answered: Arc<Mutex<Vec<Instant>>>,
}

impl Pings {
    /// Starts to ping `to` from `from`.
    #[must_use]
    pub fn start(from: &Daemon, to: &str) -> Self {
        let (stop, stopped) = mpsc::sync_channel(0);
        let mut control = from.control();
        let command =
            json!({"command": "ping", "target": to, "timeout_ms": PING_TIMEOUT_MS}).to_string();
        let answered: Arc<Mutex<Vec<Instant>>> = Arc::default();
        let answers = Arc::clone(&answered);
        let client = std::thread::spawn(move || {
            while stopped.recv_timeout(PACE) == Err(RecvTimeoutError::Timeout) {
                if control.json(&command)["Success"] == true
                    && let Ok(mut answers) = answers.lock()
                {
                    answers.push(Instant::now());
                }
            }
        });
        Self {
            stop,
            client,
            answered,
        }
    }

    /// Waits for one more answer, ends, and gives the longest time after `from` without one.
    ///
    /// # Panics
    ///
    /// When none comes.
    #[must_use]
    pub fn longest_gap(self, from: Instant) -> Duration {
        let asked = Instant::now();
        let answers = || self.answered.lock().expect("the client answers");
        wait_for("the answer to a ping", || {
            answers().last().is_some_and(|at| *at > asked).then_some(())
        });
        let all = answers().clone();
        drop(self.stop);
        self.client.join().expect("a client that got every answer");
        let mut last = from;
        let mut longest = Duration::ZERO;
        for at in all.into_iter().filter(|at| *at > from) {
            longest = longest.max(at - last);
            last = at;
        }
        longest
    }
}

/// Where the plugin `counter` of a node is known.
pub fn wait_counter(at: &Daemon, node: &str) {
    wait_for(&format!("the counter of {node} at {}", at.name()), || {
        let reply = at.control().json("capabilities");
        let nodes = reply["nodes"].as_array()?;
        let entry = nodes.iter().find(|entry| entry["node"] == node)?;
        let plugins = entry["plugins"].as_array()?;
        let found = plugins.iter().any(|plugin| plugin["plugin"] == "counter");
        (found && entry["reachable"] == true).then_some(())
    });
}

/// The highest resident memory of a process so far, in KiB.
///
/// # Panics
///
/// When it does not run.
#[must_use]
pub fn peak_kib(pid: u32) -> u64 {
    let path = Path::new("/proc").join(pid.to_string()).join("status");
    let status = fs::read_to_string(path).expect("it runs");
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let words = line.map(str::split_whitespace);
    let kib = words.and_then(|mut words| words.nth(1)?.parse().ok());
    kib.expect("a figure")
}
