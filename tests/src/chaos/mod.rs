//! A mesh under fire: clients that send every sort of message, and the account of what came of
//! each when all is quiet again.
//!
//! Owns the clients and the account; `plugins` what they ask for, `message` what each answer must
//! be, [`scene`] meshes and what is done to them, [`leftovers`] what must not be left of it all.
//! Knows nothing of what is done to the mesh meanwhile; whoever does it says which outcomes that
//! excuses.

pub mod leftovers;
mod message;
mod plugins;
pub mod scene;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::Shutdown;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use self::message::{Manner, Message, stream};
pub use self::plugins::{Runs, wait_plugins};
use crate::power::Dice;
use crate::{Control, DEADLINE};

/// Between two tries to reach a daemon that is not there.
const RETRY: Duration = Duration::from_millis(2);

/// Clients at work; see [`Campaign::account`].
#[derive(Debug)]
pub struct Campaign {
    sockets: Vec<PathBuf>,
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

/// What the clients of a run send more of than others.
#[derive(Debug, Clone, Copy, Default)]
pub struct Taste {
    /// Nothing but messages to any node that has the plugin.
    pub any: bool,
    /// Payloads that travel in segments.
    pub large: bool,
    /// Cancels.
    pub cancels: bool,
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
    /// Those that expired when nobody could be asked who may have run them.
    pub lost: usize,
    /// Those that no client knows to have been accepted.
    pub unknown: usize,
    /// Those of them that were.
    pub orphans: usize,
}

impl Campaign {
    /// So many clients of each of `sockets`, whose daemons may come and go, that send to the
    /// plugins of `workers` until `messages` were accepted in all.
    #[must_use]
    pub fn start(
        sockets: &[&Path],
        workers: &[&str],
        (clients, messages): (usize, usize),
        taste: Taste,
        dice: &mut Dice,
    ) -> Self {
        let accepted = Arc::new(AtomicUsize::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let sockets: Vec<PathBuf> = sockets.iter().map(|&path| path.to_owned()).collect();
        let clients = (0..clients * sockets.len()).map(|client| {
            let number = client % sockets.len();
            let mut client = Client {
                socket: sockets[number].clone(),
                number,
                taste,
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
            sockets,
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

    /// Lets the clients finish, demands that every message came to one end that its sender can
    /// read and was run as often as that end says.
    ///
    /// # Panics
    ///
    /// When one did not, with the message.
    #[must_use]
    pub fn account(self, runs: &[Runs], excused: Excused) -> Summary {
        let mut summary = Summary::default();
        let mut all = Vec::new();
        for client in self.clients {
            all.extend(client.join().expect("a client that went on"));
        }
        self.stop.store(true, Ordering::Relaxed);
        let connect = |path| Control::connect(path).expect("every daemon runs again");
        let mut controls: Vec<Control> = self.sockets.iter().map(|path| connect(path)).collect();
        for message in &mut all {
            let Some(id) = &message.id else {
                summary.unknown += 1;
                continue;
            };
            summary.accepted += 1;
            let control = &mut controls[message.socket];
            if message.manner == Manner::Key {
                message.end = repeat(&self.sockets[message.socket], id, message);
            } else if message.is_kept() && message.end.is_none() {
                message.end = results(control, id, message);
            }
        }
        // Only now has everything run that will, but for what nobody waits for.
        let check =
            |message: &Message, runs: &mut BTreeMap<String, Vec<PathBuf>>, sum: &mut Summary| {
                let runs = message.run_name().and_then(|name| runs.remove(&name));
                message.check(&runs.unwrap_or_default(), excused, sum);
            };
        let mut noted = BTreeMap::new();
        runs.iter().for_each(|runs| runs.add_to(&mut noted));
        for message in &all {
            check(message, &mut noted, &mut summary);
        }
        // The rest are those that no client knows to have been accepted.
        for (name, runs) in noted {
            let again = name.starts_with("again ");
            assert!(runs.len() <= 1 || again, "{runs:?} of {name}");
            summary.orphans += 1;
        }
        assert!(summary.orphans <= summary.unknown, "{summary:?}");
        summary
    }
}

#[derive(Debug)]
struct Client {
    socket: PathBuf,
    /// Of the socket.
    number: usize,
    taste: Taste,
    workers: Vec<String>,
    dice: Dice,
    control: Option<Control>,
    all: Vec<Message>,
}

impl Client {
    /// Sends one message. Whether it was accepted.
    fn one(&mut self) -> bool {
        let mut message = Message::any(&mut self.dice, &self.workers, self.number, self.taste);
        let payload = message.payload();
        let accepted = if message.manner == Manner::Half {
            self.send_half(&message, &payload);
            false
        } else {
            self.send(&mut message, &payload)
        };
        self.all.push(message);
        accepted
    }

    /// What was not sent whole is not accepted.
    fn send_half(&self, message: &Message, payload: &[u8]) {
        let control = connect(&self.socket, Instant::now() + DEADLINE);
        let line = format!("{}\n", message.command(&[payload, b"more"].concat()));
        let _ = (control.stream().write_all(line.as_bytes()))
            .and_then(|()| control.stream().write_all(payload));
    }

    fn send(&mut self, message: &mut Message, payload: &[u8]) -> bool {
        let end = Instant::now() + DEADLINE;
        loop {
            let control = self.control.take();
            let mut control = control.unwrap_or_else(|| connect(&self.socket, end));
            let reply = submit(&mut control, message, payload);
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
                    let now = ["no-match", "busy", "no-route", "no-such-node", "draining"];
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
        let id = message.id.clone().expect("accepted");
        let mut say = |word: &str| {
            let command = json!({"command": word, "id": id});
            let sent = control
                .stream()
                .write_all(format!("{command}\n").as_bytes());
            sent.and_then(|()| control.try_line())
        };
        let heard = match message.manner {
            Manner::Detach | Manner::Key | Manner::Stay | Manner::Expire | Manner::Volatile => true,
            Manner::Follow => {
                // Not an answer yet, and perhaps never one on this connection.
                let command = json!({"command": "results", "id": id});
                (control
                    .stream()
                    .write_all(format!("{command}\n").as_bytes()))
                .is_ok()
            }
            Manner::Vanish | Manner::Half => {
                let upto = self.dice.throw(4);
                let end = (upto > 0).then(|| stream(&mut control, message, upto));
                message.end = end.flatten();
                return;
            }
            Manner::Cancel => say("cancel").is_ok_and(|line| !line.is_empty()),
            Manner::Release => say("release").is_ok_and(|line| !line.is_empty()),
        };
        if !heard {
            return;
        }
        if message.reads() {
            message.end = stream(&mut control, message, u64::MAX);
            if message.end.is_none() {
                return;
            }
        }
        if !message.is_last() {
            self.control = Some(control);
        }
    }
}

fn connect(socket: &Path, end: Instant) -> Control {
    loop {
        if let Ok(control) = Control::connect(socket) {
            return control;
        }
        assert!(Instant::now() < end, "no daemon at {}", socket.display());
        std::thread::sleep(RETRY);
    }
}

/// Writes a message and reads the first line of the answer; null when the daemon went away.
fn submit(control: &mut Control, message: &Message, payload: &[u8]) -> Value {
    let line = format!("{}\n", message.command(payload));
    let sent = (control.stream().write_all(line.as_bytes()))
        .and_then(|()| control.stream().write_all(payload));
    if sent.is_ok() && message.is_last() {
        let _ = control.stream().shutdown(Shutdown::Write);
    }
    match sent.and_then(|()| control.try_line()) {
        Ok(line) => serde_json::from_str(&line).unwrap_or(Value::Null),
        Err(_) => Value::Null,
    }
}

/// Sends a message with a key once more, now that it has had its end, and reads all of it.
fn repeat(socket: &Path, id: &str, message: &Message) -> Option<Value> {
    let mut control = connect(socket, Instant::now() + DEADLINE);
    let reply = submit(&mut control, message, &message.payload());
    if reply["type"] != "accepted" {
        let ask = |command: &str| {
            let mut control = connect(socket, Instant::now() + DEADLINE);
            control.json(&json!({"command": command, "id": id}).to_string())
        };
        let (works, spool) = (ask("works"), ask("spool"));
        panic!("{reply} to {message:?}: {works} {spool}");
    }
    assert_eq!(reply["id"], id, "{reply} to {message:?}");
    results(&mut connect(socket, Instant::now() + DEADLINE), id, message)
}

/// The responses of a message that was sent before. Nothing when they are not kept.
fn results(control: &mut Control, id: &str, message: &Message) -> Option<Value> {
    control.write(format!("{}\n", json!({"command": "results", "id": id})));
    let reply = stream(control, message, u64::MAX)
        .unwrap_or_else(|| panic!("the daemon is silent about {message:?}"));
    if reply["error"]["code"] == "not-found" && reply["type"] != "response" {
        return None;
    }
    Some(reply)
}
