//! A mesh under fire: clients that send every sort of message, and the account of what came of
//! each when all is quiet again.
//!
//! Owns the plugins of a chaotic worker, the clients and the account. Knows nothing of what is
//! done to the mesh meanwhile; whoever does it says which outcomes that excuses.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::power::Dice;
use crate::{Control, DEADLINE, Daemon, Mesh, Node, traffic, wait_for};

/// Between two tries to reach a daemon that is not there.
const RETRY: Duration = Duration::from_millis(2);
/// What a lifetime is when a message may expire.
const SHORT_LIFE_MS: u64 = 50;
/// Bytes of the large responses of [`PLUGINS`].
const LARGE_RESPONSE: usize = 300_000;
/// The largest payload.
const LARGE: usize = 2 << 20;

/// The plugins and what they do; each writes down what it was asked before it does anything.
const PLUGINS: [&str; 5] = ["once", "slow", "again", "crash", "serve"];

/// The beginning of the plugins in shell. A payload that is too large for a line lies in a file.
const SHELL: &str = r#"#!/bin/sh
echo '{"type":"hello","protocol":1,"name":"NAME","version":"1","max_jobs":JOBS,"features":["file"],"actions":{"add":{"payload":"file","output":"text","idempotent":AGAIN}}}'
read -r hello || exit 0
read -r job || exit 0
head=$(head -c 32 "$RECEPTOR_PAYLOAD_FILE" 2>/dev/null)
printf '%s\n' "NAME ${head%%;*}" >>'RUNS'
"#;

/// One that stays and answers with several responses.
const SERVE: &str = r#"#!/usr/bin/env python3
import base64, json, os, sys
def say(**m): print(json.dumps(m), flush=True)
say(type="hello", protocol=1, name="serve", version="1", mode="serve", max_jobs=4, features=["file"],
    actions={"add": {"payload": "text", "output": "json"}})
for line in sys.stdin:
    m = json.loads(line)
    if m["type"] != "execute": continue
    if "payload_file" in m:
        with open(m["payload_file"]) as f: text = f.read()
    else:
        text = m.get("payload_text", "")
    with open("RUNS", "a") as f: f.write("serve " + text.split(";")[0] + "\n")
    words = text.split(";")
    for i in range(int(words[1])):
        say(type="data", id=m["id"], data={"i": i})
    if words[2] == "large":
        say(type="data", id=m["id"], text="y" * LARGE)
    say(type="done", id=m["id"], code=0, result={"length": len(text)})
"#;

/// Where a chaotic worker writes down its runs.
#[derive(Debug, Clone)]
pub struct Runs(PathBuf);

impl Runs {
    /// Gives a node that is to be started the plugins.
    ///
    /// # Panics
    ///
    /// When they cannot be written.
    #[must_use]
    pub fn install(mesh: &Mesh, node: Node, name: &str) -> (Self, Node) {
        let dir = mesh.dir().join(format!("plugins-of-{name}"));
        fs::create_dir(&dir).expect("a directory for the plugins");
        let runs = mesh.dir().join(format!("runs-of-{name}"));
        fs::write(&runs, "").expect("a file for the runs");
        let path = runs.to_str().expect("a path of letters");
        for plugin in PLUGINS {
            let (jobs, again, end) = match plugin {
                "slow" => ("2", "false", "sleep 0.03\necho done\n"),
                "again" => ("4", "true", "echo one\nsleep 0.01\necho two\n"),
                "crash" => ("4", "false", "echo one\nkill -9 $$\n"),
                _ => ("4", "false", "echo done\n"),
            };
            let text = if plugin == "serve" {
                SERVE.replace("LARGE", &LARGE_RESPONSE.to_string())
            } else {
                let text = SHELL.replace("NAME", plugin).replace("JOBS", jobs);
                text.replace("AGAIN", again) + end
            };
            let file = dir.join(plugin);
            fs::write(&file, text.replace("RUNS", path)).expect("a plugin");
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).expect("a plugin");
        }
        let node = node
            .config("[plugins]\nallow-unsafe = true")
            .arg("--plugins-dir")
            .arg(dir.to_str().expect("a path of letters"));
        (Self(runs), node)
    }

    /// Adds how often each message was run, under its plugin and number.
    fn add_to(&self, all: &mut BTreeMap<String, u32>) {
        for line in fs::read_to_string(&self.0).expect("the runs").lines() {
            *all.entry(line.to_owned()).or_default() += 1;
        }
    }
}

/// Waits until a node knows all plugins of these workers.
pub fn wait_plugins(at: &Daemon, workers: &[&str]) {
    wait_for(&format!("the plugins at {}", at.name()), || {
        let reply = at.control().json("capabilities");
        let nodes = reply["nodes"].as_array()?;
        let known = |worker: &&str| {
            nodes.iter().any(|node| {
                let plugins = node["plugins"].as_array();
                let known = |name: &&str| {
                    plugins.is_some_and(|all| all.iter().any(|plugin| plugin["plugin"] == *name))
                };
                node["node"] == *worker && node["reachable"] == true && PLUGINS.iter().all(known)
            })
        };
        workers.iter().all(known).then_some(())
    });
}

/// How a client sends a message and what it does about the responses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// Reads them to the end.
    Stay,
    /// Leaves them where they are.
    Detach,
    /// Sends it under a key, again and again until it is accepted.
    Key,
    /// Is gone after the first line.
    Vanish,
    /// Sends a cancel behind it.
    Cancel,
    /// With a lifetime that may be too short.
    Expire,
    /// At most once.
    Volatile,
}

/// A message and what is known of it.
#[derive(Debug)]
struct Message {
    plugin: &'static str,
    number: u64,
    manner: Manner,
    /// Lines of data before the end.
    lines: usize,
    large: bool,
    size: usize,
    /// When it was accepted.
    id: Option<String>,
    /// When it was read to the end.
    end: Option<Value>,
}

/// Clients at work; see [`Campaign::account`].
#[derive(Debug)]
pub struct Campaign {
    accepted: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Vec<Message>>>,
}

/// What the faults of a run excuse.
#[derive(Debug, Clone, Copy, Default)]
pub struct Excused {
    /// Nodes with plugins were ended.
    pub interrupted: bool,
}

/// How it ended.
#[derive(Debug, Default)]
pub struct Summary {
    /// Messages that were accepted.
    pub accepted: usize,
    /// Those that were cut short.
    pub interrupted: usize,
    /// Those that were cancelled.
    pub cancelled: usize,
    /// Those that expired.
    pub expired: usize,
    /// Those that nobody knows to have been accepted.
    pub unknown: usize,
}

impl Campaign {
    /// So many clients of `socket`, whose daemon may come and go, that send to the plugins of
    /// `workers` until `messages` were accepted.
    #[must_use]
    pub fn start(
        socket: &Path,
        workers: &[&str],
        clients: usize,
        messages: usize,
        dice: &mut Dice,
    ) -> Self {
        let accepted = Arc::new(AtomicUsize::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let clients = (0..clients).map(|_| {
            let mut client = Client {
                socket: socket.to_owned(),
                workers: workers.iter().map(|&name| name.to_owned()).collect(),
                dice: Dice::new(dice.throw(u64::MAX)),
                control: None,
                all: Vec::new(),
            };
            let (accepted, stop) = (Arc::clone(&accepted), Arc::clone(&stop));
            std::thread::spawn(move || {
                while accepted.load(Ordering::Relaxed) < messages && !stop.load(Ordering::Relaxed) {
                    if client.one() {
                        accepted.fetch_add(1, Ordering::Relaxed);
                    }
                }
                client.all
            })
        });
        let clients = clients.collect();
        Self {
            accepted,
            stop,
            clients,
        }
    }

    /// Messages accepted so far.
    #[must_use]
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Whether enough was sent.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.clients.iter().all(JoinHandle::is_finished)
    }

    /// Lets the clients finish, and demands that every message came to one end that its sender
    /// can read and was run as often as that end says.
    ///
    /// # Panics
    ///
    /// When one did not, with the message.
    #[must_use]
    pub fn account(self, control: &mut Control, runs: &[Runs], excused: Excused) -> Summary {
        let mut summary = Summary::default();
        let mut all = Vec::new();
        for client in self.clients {
            all.extend(client.join().expect("a client that went on"));
        }
        self.stop.store(true, Ordering::Relaxed);
        for message in &mut all {
            let Some(id) = &message.id else {
                summary.unknown += 1;
                continue;
            };
            summary.accepted += 1;
            if message.end.is_none() && message.manner != Manner::Volatile {
                message.end = results(control, id, message);
            }
        }
        // Only now has everything run that will.
        let mut times = BTreeMap::new();
        for runs in runs {
            runs.add_to(&mut times);
        }
        for message in &all {
            let name = format!("{} {}", message.plugin, message.number);
            let times = times.remove(&name).unwrap_or_default();
            message.check(times, excused, &mut summary);
        }
        assert!(times.is_empty(), "messages that nobody sent: {times:?}");
        summary
    }
}

struct Client {
    socket: PathBuf,
    workers: Vec<String>,
    dice: Dice,
    control: Option<Control>,
    all: Vec<Message>,
}

impl Client {
    /// Sends one message. Whether it was accepted.
    fn one(&mut self) -> bool {
        let dice = &mut self.dice;
        let plugin = PLUGINS[dice.index(PLUGINS.len())];
        let manner = match dice.throw(16) {
            0..=3 => Manner::Stay,
            4..=7 => Manner::Detach,
            8..=10 => Manner::Key,
            11 => Manner::Vanish,
            12 | 13 => Manner::Cancel,
            14 => Manner::Expire,
            _ => Manner::Volatile,
        };
        let size = match dice.throw(40) {
            0 => dice.index(LARGE),
            1..=3 => dice.index(200_000),
            4..=12 => dice.index(5_000),
            _ => 0,
        };
        let serve = plugin == "serve";
        let mut message = Message {
            plugin,
            number: traffic::number(),
            manner,
            lines: if serve { dice.index(20) } else { 0 },
            large: serve && dice.throw(20) == 0,
            size,
            id: None,
            end: None,
        };
        let any = dice.throw(4) == 0;
        let recipient = self.workers[dice.index(self.workers.len())].clone();
        let (command, payload) = message.command((!any).then_some(&recipient));
        let accepted = self.send(&mut message, &command, &payload);
        self.all.push(message);
        accepted
    }

    fn send(&mut self, message: &mut Message, command: &Value, payload: &[u8]) -> bool {
        let end = Instant::now() + DEADLINE;
        loop {
            let mut control = self.connect(end);
            let sent = (control
                .stream()
                .write_all(format!("{command}\n").as_bytes()))
            .and_then(|()| control.stream().write_all(payload));
            let reply = match sent.and_then(|()| control.try_line()) {
                Ok(line) => serde_json::from_str(&line).unwrap_or(Value::Null),
                Err(_) => Value::Null,
            };
            match reply["type"].as_str() {
                Some("accepted") => {
                    let id = reply["id"].as_str().expect("an id");
                    message.id = Some(id.to_owned());
                    self.after(message, control);
                    return true;
                }
                None if message.manner != Manner::Key => return false,
                // Nobody can be chosen now, or there is no room now.
                Some(_) if message.manner != Manner::Key => {
                    let code = reply["error"]["code"].as_str().unwrap_or_default();
                    let now = [
                        "no-match",
                        "busy",
                        "no-route",
                        "no-such-node",
                        "shutting-down",
                    ];
                    assert!(now.contains(&code), "{message:?}: {reply}");
                    std::thread::sleep(RETRY);
                    return false;
                }
                Some(_) | None => {
                    assert!(Instant::now() < end, "{message:?}: {reply}");
                    std::thread::sleep(RETRY);
                }
            }
        }
    }

    /// What the client does once it is accepted.
    fn after(&mut self, message: &mut Message, mut control: Control) {
        match message.manner {
            Manner::Stay | Manner::Expire | Manner::Volatile => {
                let Some(end) = stream(&mut control, message) else {
                    return;
                };
                message.end = Some(end);
            }
            Manner::Detach | Manner::Key => {}
            Manner::Vanish => return,
            Manner::Cancel => {
                let id = message.id.as_deref().expect("accepted");
                let cancel = json!({"command": "cancel", "id": id});
                let sent = control.stream().write_all(format!("{cancel}\n").as_bytes());
                if sent.is_err() || control.try_line().is_err() {
                    return;
                }
            }
        }
        self.control = Some(control);
    }

    fn connect(&mut self, end: Instant) -> Control {
        if let Some(control) = self.control.take() {
            return control;
        }
        loop {
            if let Ok(control) = Control::connect(&self.socket) {
                return control;
            }
            assert!(
                Instant::now() < end,
                "no daemon at {}",
                self.socket.display()
            );
            std::thread::sleep(RETRY);
        }
    }
}

impl Message {
    fn command(&self, recipient: Option<&str>) -> (Value, Vec<u8>) {
        let large = if self.large { "large" } else { "" };
        let mut payload = format!("{};{};{large};", self.number, self.lines).into_bytes();
        payload.resize(payload.len() + self.size, b'x');
        let mut command = json!({
            "command": "send", "directive": format!("{}:add", self.plugin), "wait": true,
            "size": payload.len(), "content": "text",
        });
        match recipient {
            Some(name) => command["recipient"] = json!(name),
            None => command["any"] = json!(true),
        }
        match self.manner {
            Manner::Stay | Manner::Vanish => {}
            Manner::Detach | Manner::Cancel => command["detach"] = json!(true),
            Manner::Key => {
                command["detach"] = json!(true);
                command["key"] = json!(format!("key-{}", self.number));
            }
            Manner::Expire => command["expires_ms"] = json!(SHORT_LIFE_MS),
            Manner::Volatile => command["volatile"] = json!(true),
        }
        (command, payload)
    }

    fn check(&self, times: u32, excused: Excused, summary: &mut Summary) {
        let again = self.plugin == "again";
        if !again {
            assert!(times <= 1, "{times} runs of {self:?}");
        }
        let Some(end) = &self.end else {
            let known = self.id.is_some() && self.manner != Manner::Volatile;
            // A client that left may have had everything before it did.
            assert!(
                !known || self.manner == Manner::Vanish && times == 1,
                "{self:?}"
            );
            return;
        };
        if self.manner == Manner::Volatile {
            return;
        }
        let code = end["error"]["code"].as_str();
        match code {
            None => {
                assert!(times >= 1, "never run: {self:?}");
                assert_eq!(end["code"], 0, "{self:?}");
                assert_ne!(self.plugin, "crash", "{self:?}");
            }
            Some("plugin-exit") if self.plugin == "crash" => assert_eq!(times, 1, "{self:?}"),
            Some("interrupted") => {
                // What was cancelled is not run again.
                let never = again && self.manner != Manner::Cancel;
                assert!(excused.interrupted && !never, "{self:?}");
                summary.interrupted += 1;
            }
            // Those of one process go with it.
            Some("cancelled") if self.manner == Manner::Cancel => summary.cancelled += 1,
            Some("expired") if self.manner == Manner::Expire => {
                assert_eq!(times, 0, "{self:?}");
                summary.expired += 1;
            }
            Some(_) => panic!("{times} runs of {self:?}"),
        }
    }
}

/// Reads responses to the end and demands that they are whole and in order. Nothing when the
/// daemon goes away.
fn stream(control: &mut Control, message: &Message) -> Option<Value> {
    let mut last = 0;
    let mut lines = 0;
    let mut large = 0;
    loop {
        let line = control.try_line().ok()?;
        let reply: Value = serde_json::from_str(&line).ok()?;
        if reply["type"].is_null() || reply["type"] == "error" {
            assert!(reply["error"].is_object(), "{reply} of {message:?}");
            return Some(reply);
        }
        assert_eq!(reply["type"], "response", "{reply} of {message:?}");
        let serial = reply["serial"].as_u64().expect("a serial");
        assert_eq!(serial, last + 1, "{reply} of {message:?}");
        last = serial;
        if let Some(i) = reply["data"]["i"].as_u64() {
            assert_eq!(i, lines, "{reply} of {message:?}");
            lines += 1;
        }
        if let Some(size) = reply["size"].as_u64() {
            large += control.try_raw(usize::try_from(size).ok()?).ok()?.len();
        }
        large += reply["text"].as_str().map_or(0, str::len);
        if reply["eof"] != true {
            continue;
        }
        if message.plugin == "serve" && reply["error"].is_null() {
            assert_eq!(lines, message.lines as u64, "{reply} of {message:?}");
            let expected = if message.large { LARGE_RESPONSE } else { 0 };
            assert_eq!(large, expected, "{reply} of {message:?}");
        }
        return Some(reply);
    }
}

/// The responses of a message that was sent before. Nothing when they are not kept.
fn results(control: &mut Control, id: &str, message: &Message) -> Option<Value> {
    control.write(format!("{}\n", json!({"command": "results", "id": id})));
    let reply = stream(control, message)
        .unwrap_or_else(|| panic!("the daemon is silent about {message:?}"));
    if reply["error"]["code"] == "not-found" && reply["type"] != "response" {
        return None;
    }
    Some(reply)
}
