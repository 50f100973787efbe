//! Data directories of every version of their format: this version delivers from them, and one of
//! a later version is refused and left as it is.
//!
//! `tests/golden/vN` is the data directory of a node `a`. It holds two messages to a node `z` that
//! was never there, and the kept responses of two works. When the format changes, the next one
//! is made by
//!
//! ```text
//! RECEPTOR_GOLDEN=v2 cargo test -p receptor-tests --test golden
//! ```
//!
//! and stays in the tree with those before it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use receptor_tests::{Daemon, Mesh, program, wait_for};
use serde_json::{Value, json};

/// A payload that is a file of its own.
const SIZE: usize = 70_001;
/// Responses are as old as their files, and these are made by the test.
const FOR_EVER: &str = "[spool]\nresults-retention = \"365days\"\n";

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden")
}

fn payload() -> Vec<u8> {
    let bytes = (0..SIZE).map(|at| u8::try_from(at % 251).unwrap());
    bytes.collect()
}

fn ask(at: &Daemon, command: &Value) -> Value {
    let mut control = at.control();
    control.write(format!("{command}\n"));
    control.reply()
}

fn send(at: &Daemon, recipient: &str, large: bool) {
    let mut command = json!({
        "command": "send", "recipient": recipient, "detach": true, "wait": true,
        "expires_ms": 3_000_000_000_000_u64,
    });
    if large {
        command["directive"] = json!("echo:bytes");
        command["size"] = json!(SIZE);
    } else {
        command["directive"] = json!("echo:echo");
        command["payload"] = json!({"golden": recipient});
    }
    let mut control = at.control();
    control.write(format!("{command}\n"));
    if large {
        control.write(payload());
    }
    let reply = control.reply();
    assert_eq!(reply["type"], "accepted", "{reply}");
}

/// What was sent from here: how many ended well, and all of it.
fn works(at: &Daemon) -> (usize, Vec<Value>) {
    let reply = ask(at, &json!({"command": "works"}));
    let works = reply["works"].as_array().unwrap();
    let works = works.iter().filter(|work| work["role"] == "sent");
    let works: Vec<Value> = works.cloned().collect();
    let ended = works.iter().filter(|work| work["state"] == "succeeded");
    (ended.count(), works)
}

/// Every file below a directory that is no lock, with what it holds.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(next) = dirs.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            let data = fs::symlink_metadata(&path).unwrap();
            if data.is_dir() {
                dirs.push(path);
            } else if data.is_file() {
                let name = path.strip_prefix(dir).unwrap().to_owned();
                all.insert(name, fs::read(path).unwrap());
            }
        }
    }
    all
}

fn write(files: BTreeMap<PathBuf, Vec<u8>>, to: &Path) {
    for (name, content) in files {
        let path = to.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
}

/// Makes a directory of this version.
fn make(version: &str) {
    let mesh = Mesh::new();
    let mut a = mesh.node("a").config(FOR_EVER).start();
    for large in [false, true] {
        send(&a, "a", large);
        send(&a, "z", large);
    }
    wait_for("two works", || (works(&a).0 == 2).then_some(()));
    wait_for("their responses", || {
        let (_, works) = works(&a);
        let kept = |work: &&Value| work["kept_bytes"].as_u64() > Some(0);
        (works.iter().filter(kept).count() == 2).then_some(())
    });
    a.stop();
    let mut found = files(&a.data_dir());
    found.retain(|name, _| {
        let is_kept = name.starts_with("spool") || name.starts_with("kept");
        is_kept && !name.ends_with("lock") && name.extension().is_none_or(|kind| kind != "spare")
    });
    for (name, content) in &mut found {
        if name.extension().is_some_and(|kind| kind == "seg") {
            // Zeros are what is not written yet.
            let end = content.iter().rposition(|byte| *byte != 0).unwrap_or(0);
            content.truncate((end + 1).next_multiple_of(8));
        }
    }
    write(found, &golden().join(version));
}

#[test]
fn every_version_is_delivered_from() {
    if let Ok(version) = std::env::var("RECEPTOR_GOLDEN") {
        make(&version);
    }
    let mut versions = 0;
    for version in fs::read_dir(golden()).unwrap() {
        versions += 1;
        let mesh = Mesh::new();
        let node = mesh.node("a").config(FOR_EVER);
        write(files(&version.unwrap().path()), &node.data_dir());
        let a = node.start();
        let (ended, all) = works(&a);
        assert_eq!((ended, all.len()), (2, 4), "{all:?}");
        let _z = mesh.node("z").peer(&a).start();
        wait_for("what was spooled is run", || {
            (works(&a).0 == 4).then_some(())
        });
        for work in works(&a).1 {
            let mut control = a.control();
            let id = &work["id"];
            control.write(format!(
                "{}\n",
                json!({"command": "results", "id": id, "follow": true})
            ));
            let line = control.reply();
            if work["directive"] == "echo:bytes" {
                assert_eq!(line["size"], SIZE, "{line}");
                assert!(control.raw(SIZE) == payload());
            } else {
                assert_eq!(line["data"], json!({"golden": work["recipient"]}), "{line}");
            }
        }
        let damaged = ask(&a, &json!({"command": "spool"}))["damaged"].clone();
        assert_eq!(damaged, Value::Null);
    }
    assert!(versions > 0);
}

#[test]
fn what_a_later_version_wrote_is_refused_and_left_alone() {
    let mesh = Mesh::new();
    let later = "receptor-spool 2\n";
    for (file, content, says) in [
        ("spool/format", later, "the spool has format version 2"),
        (
            "kept/0123456789abcdef0123456789abcdef",
            "{\"version\":2,\"id\":\"0123456789abcdef0123456789abcdef\",\"since_ms\":1}\n",
            "kept responses have version 2",
        ),
    ] {
        let dir = mesh.dir().join(file.replace('/', "-"));
        write(files(&golden().join("v1")), &dir);
        fs::write(dir.join(file), content).unwrap();
        let before = files(&dir.join("spool"));
        let kept = files(&dir.join("kept"));
        let output = Command::new(program("receptord"))
            .args(["--node-id", "a", "--data-dir"])
            .arg(&dir)
            .arg("--socket-path")
            .arg(mesh.dir().join("socket"))
            .output()
            .unwrap();
        // Which is not tried again by a service manager.
        assert_eq!(output.status.code(), Some(78), "{output:?}");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains(says), "{text}");
        assert!(text.contains("knows up to 1"), "{text}");
        assert!(files(&dir.join("kept")) == kept, "{file}");
        if file == "spool/format" {
            assert!(files(&dir.join("spool")) == before);
        }
    }
}
