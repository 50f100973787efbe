//! What must not be left of a mesh's work when all of it has had its end.
//!
//! Owns the looks at data directories, processes and their memory. Changes nothing but
//! that it wants nothing any more of what is kept for clients.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::{Value, json};

use crate::traffic::peak_kib;
use crate::{DEADLINE, Daemon, LOOK_EVERY};

/// What a daemon under test may take at most, without optimisation.
const MEMORY_KIB: u64 = 256 * 1024;
/// Descriptors of a daemon that has no clients and a few links.
const DESCRIPTORS: usize = 100;
/// Where nothing is kept that belongs to no message or work.
const EMPTY: [&str; 6] = [
    "jobs",
    "kept",
    "results",
    "dead-letters",
    "spool/payloads",
    "spool/corrupt",
];
/// The directory of the serving plugin's process, without its number.
const SERVING: &str = "serve.serve";
/// What the log of a quiet spool may take, with what it has set aside.
const SEGMENTS: u64 = 80 << 20;

/// Releases everything that is kept for the clients of a node, and drops what was given up.
fn release_all(node: &Daemon) {
    let mut control = node.control();
    let end = Instant::now() + DEADLINE;
    loop {
        let works = control.json(r#"{"command":"works"}"#);
        let all = works["works"].as_array().cloned().unwrap_or_default();
        let kept = |work: &&Value| work["role"] == "sent" && work["kept_bytes"] != 0;
        let kept: Vec<&Value> = all.iter().filter(kept).collect();
        for work in &kept {
            let reply = control.json(&json!({"command": "release", "id": work["id"]}).to_string());
            let known = reply["error"].is_null() || reply["error"]["code"] == "not-found";
            assert!(known, "{reply} to the release of {work}");
        }
        let letters = control.json(r#"{"command":"dead-letters"}"#);
        let all = letters["letters"].as_array().cloned().unwrap_or_default();
        for letter in &all {
            let drop = json!({"command": "dead-letter-drop", "id": letter["id"]});
            let reply = control.json(&drop.to_string());
            assert!(reply["error"].is_null(), "{reply} to the drop of {letter}");
        }
        if kept.is_empty() && all.is_empty() {
            return;
        }
        assert!(
            Instant::now() < end,
            "{} keeps: {kept:?} {all:?}",
            node.name()
        );
    }
}

/// Demands that these daemons, of whose clients nobody is left, come to rest: nothing on its way,
/// no file that nobody needs, no work, no descriptor, memory within its bound.
///
/// # Panics
///
/// When one does not.
pub fn assert_quiet(nodes: &[Daemon]) {
    for node in nodes {
        let end = Instant::now() + DEADLINE;
        // Work of which no client knows that it was accepted may end only now.
        release_all(node);
        while let Some(why) = unrest(node) {
            release_all(node);
            assert!(Instant::now() < end, "{} does not rest: {why}", node.name());
            std::thread::sleep(LOOK_EVERY);
        }
        let peak = peak_kib(node.pid());
        assert!(peak < MEMORY_KIB, "{} took {peak} KiB", node.name());
    }
}

/// Why a daemon is not at rest.
fn unrest(node: &Daemon) -> Option<String> {
    let status = node.control().json("status");
    let receptor = &status["receptor"];
    let spool = &receptor["spool"];
    if spool["entries"] != 0 || spool["bytes"] != 0 || spool["in_custody"] != 0 {
        let entries = node.control().json("spool");
        return Some(format!("{spool}: {entries}"));
    }
    if receptor["works_active"] != 0 {
        return Some(node.control().json("works").to_string());
    }
    let data = node.data_dir();
    for dir in EMPTY {
        let mut files = files(&data.join(dir));
        // Where the processes are that stay.
        files.retain(|(path, _)| path.file_stem().is_none_or(|stem| stem != SERVING));
        if !files.is_empty() {
            return Some(format!("{files:?} is left"));
        }
    }
    let segments = files(&data.join("spool/segments"));
    let bytes: u64 = segments.iter().map(|(_, length)| length).sum();
    if bytes > SEGMENTS {
        return Some(format!("{bytes} bytes in {segments:?}"));
    }
    let open = fs::read_dir(format!("/proc/{}/fd", node.pid())).map_or(0, Iterator::count);
    (open > DESCRIPTORS).then(|| format!("{open} descriptors"))
}

/// What lies below a directory, with its size.
fn files(dir: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let length = entry.metadata().map_or(0, |metadata| metadata.len());
        if path.is_dir() {
            found.append(&mut files(&path));
        }
        found.push((path, length));
    }
    found
}

/// Ends these daemons as an administrator does, and demands that no process is left that they,
/// or those before them, have started.
///
/// # Panics
///
/// When one is left.
pub fn assert_none_left(dir: &Path, mut nodes: Vec<Daemon>) {
    for node in &mut nodes {
        node.stop();
    }
    let end = Instant::now() + DEADLINE;
    loop {
        let left = processes(dir);
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < end, "left: {left:?}");
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Processes that name this directory in their words or their environment.
fn processes(dir: &Path) -> Vec<String> {
    let name = dir.to_str().expect("a path of letters").as_bytes();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let is_process = entry.file_name().to_string_lossy().parse::<u32>().is_ok();
        if !is_process || entry.path() == Path::new("/proc/self") {
            continue;
        }
        let read = |file: &str| fs::read(entry.path().join(file)).unwrap_or_default();
        let named = |text: Vec<u8>| text.windows(name.len()).any(|part| part == name);
        if named(read("cmdline")) || named(read("environ")) {
            let words = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
            let state = String::from_utf8_lossy(&read("stat")).into_owned();
            found.push(format!("{words}: {state}"));
        }
    }
    found
}
