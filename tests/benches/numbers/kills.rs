//! What is lost and what is run twice when nodes are killed at any moment.
//!
//! Owns no plugin: [`receptor_tests::traffic`] has one that writes down every run. The same under more
//! sorts of faults, and with every loss explained, is `tests/tests/durability.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use receptor_tests::traffic::{Counter, number, wait_counter};
use receptor_tests::{Control, Daemon, Mesh};
use serde_json::{Value, json};

use super::{Bench, Row};

const MESSAGES: usize = 10_000;
const KILLS: usize = 50;
/// Unaccepted messages of the sender.
const IN_FLIGHT: usize = 16;
/// When nothing is accepted, or nothing ends, for so long, what has not is lost.
const PATIENCE: Duration = Duration::from_secs(120);
/// So many of the lost or doubled are named.
const TOLD: usize = 10;
/// A killed node is away for at most so long.
const AWAY_MS: u64 = 100;

pub(super) fn n10_kills(_: &Bench) -> Row {
    let mesh = Mesh::new();
    // Nobody takes what comes before the end: all of it is kept, and somewhat more, as a message may be
    // accepted whose sender did not hear of it.
    let first = mesh.node("n0");
    let first = first
        .config("[spool]\nresults-max-entries = 100000")
        .start();
    let middle = mesh.node("n1").peer(&first).start();
    let (counter, last) = Counter::install(&mesh, mesh.node("n2").peer(&middle), "n2");
    let last = last.start();
    wait_counter(&first, "n2");
    let socket = first.socket_path().to_owned();
    let mut nodes = [first, middle, last];
    let progress = Arc::new(AtomicUsize::new(0));
    let accepted = {
        let progress = Arc::clone(&progress);
        std::thread::spawn(move || send(&socket, &progress))
    };
    kill_some(&mut nodes, &progress);
    let accepted = accepted.join().expect("all are accepted");
    let bad = lost_or_doubled(&nodes[0], &accepted, &counter);
    Row {
        what: "10,000 accepted, 50 nodes killed: lost or doubled",
        unit: "",
        ours: vec![bad as f64],
        floor: Vec::new(),
        must: "0",
        aim: "0",
    }
}

/// Sends until enough are accepted, through a socket whose daemon comes and goes; their ids.
fn send(socket: &Path, progress: &AtomicUsize) -> BTreeMap<u64, String> {
    let mut accepted = BTreeMap::new();
    while accepted.len() < MESSAGES {
        let Ok(mut control) = Control::connect(socket) else {
            std::thread::sleep(Duration::from_millis(2));
            continue;
        };
        let mut open = 0;
        while accepted.len() < MESSAGES {
            while open < IN_FLIGHT {
                let number = number();
                let line = json!({
                    "command": "send", "directive": "counter:add", "recipient": "n2",
                    "payload": {"n": number}, "detach": true, "wait": true, "tag": number,
                });
                open += 1;
                if writeln!(control.stream(), "{line}").is_err() {
                    break;
                }
            }
            let line = control.try_line().unwrap_or_default();
            let Ok(reply) = serde_json::from_str::<Value>(&line) else {
                // Its daemon was killed. What was not accepted then is nobody's.
                break;
            };
            let (Some(number), Some(id)) = (reply["tag"].as_u64(), reply["id"].as_str()) else {
                panic!("{reply}");
            };
            accepted.insert(number, id.to_owned());
            open -= 1;
            progress.store(accepted.len(), Ordering::Relaxed);
        }
    }
    accepted
}

/// Kills and starts again one node after the other, each somewhere in its own part of the run.
fn kill_some(nodes: &mut [Daemon; 3], progress: &AtomicUsize) {
    let part = MESSAGES / KILLS;
    let mut dice = 0x9e37_79b9_u64 + u64::from(std::process::id());
    let mut throw = |below: u64| {
        // Marsaglia's xorshift.
        dice ^= dice << 13;
        dice ^= dice >> 7;
        dice ^= dice << 17;
        dice % below
    };
    for kill in 0..KILLS {
        let at = kill * part + usize::try_from(throw(part as u64)).expect("small");
        let deadline = Instant::now() + PATIENCE;
        while progress.load(Ordering::Relaxed) < at {
            assert!(Instant::now() < deadline, "nothing is accepted any more");
            std::thread::sleep(Duration::from_millis(1));
        }
        let victim = &mut nodes[usize::try_from(throw(3)).expect("small")];
        victim.kill();
        std::thread::sleep(Duration::from_millis(throw(AWAY_MS)));
        victim.restart();
    }
}

/// How many of these never ended or ended well without having run, and how many of all that were sent
/// ran more than once.
fn lost_or_doubled(node: &Daemon, accepted: &BTreeMap<u64, String>, counter: &Counter) -> usize {
    let ends = ends(&mut node.control(), accepted);
    let runs = counter.runs();
    let is_bad = |number: &&u64| {
        let ran = runs.get(*number).copied().unwrap_or_default();
        let (Some(end), 0..=1) = (ends.get(*number), ran) else {
            // Of one that was not accepted nobody is told.
            return ran > 1 || accepted.contains_key(*number);
        };
        // Cut short by the death of its node, which its sender is told.
        let cut = end["error"]["code"] == "interrupted";
        !cut && (end["code"] != 0 || ran == 0)
    };
    let all: BTreeSet<u64> = accepted.keys().chain(runs.keys()).copied().collect();
    let bad: Vec<_> = all.iter().filter(is_bad).collect();
    for number in bad.iter().take(TOLD) {
        let ran = runs.get(*number).copied().unwrap_or_default();
        let end = ends
            .get(*number)
            .map_or("none".to_owned(), Value::to_string);
        eprintln!("{number} ran {ran} times, its end: {end}");
    }
    bad.len()
}

/// The last lines about these messages, of those that have one: waits as long as more of them end.
fn ends(control: &mut Control, accepted: &BTreeMap<u64, String>) -> BTreeMap<u64, Value> {
    let mut ends = BTreeMap::new();
    let mut moved = Instant::now();
    loop {
        let before = ends.len();
        for (number, id) in accepted {
            if !ends.contains_key(number)
                && let Some(end) = end(control, id)
            {
                ends.insert(*number, end);
            }
        }
        if ends.len() > before {
            moved = Instant::now();
        }
        if ends.len() == accepted.len() || moved.elapsed() > PATIENCE {
            return ends;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The last line about a message, if it has come.
fn end(control: &mut Control, id: &str) -> Option<Value> {
    let mut reply = control.json(&json!({"command": "results", "id": id}).to_string());
    while reply["type"] == "response" {
        if let Some(size) = reply["size"].as_u64() {
            control.raw(usize::try_from(size).expect("small"));
        }
        if reply["eof"] == true {
            return Some(reply);
        }
        reply = control.reply();
    }
    None
}
