//! The works of both ends of the mesh: what each says of them over kills and restarts, and that each
//! ends once, whatever is asked of it on its way.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use receptor_tests::works::wait_agreement;
use receptor_tests::{Daemon, Mesh, Node, wait_for};
use serde_json::{Value, json};

fn ask(at: &Daemon, command: &Value) -> Value {
    let mut control = at.control();
    control.write(format!("{command}\n"));
    control.reply()
}

fn detach_with(at: &Daemon, directive: &str, payload: &Value, more: &Value) -> String {
    let mut command = json!({
        "command": "send", "directive": directive, "recipient": "b", "payload": payload,
        "detach": true, "wait": true,
    });
    for (key, value) in more.as_object().unwrap() {
        command[key] = value.clone();
    }
    let accepted = ask(at, &command);
    assert_eq!(accepted["type"], "accepted", "{accepted}");
    accepted["id"].as_str().unwrap().to_owned()
}

fn detach(at: &Daemon, directive: &str, payload: &Value) -> String {
    detach_with(at, directive, payload, &json!({}))
}

/// Sends and reads all responses; the id.
fn attached(at: &Daemon, directive: &str, payload: &Value) -> String {
    let mut control = at.control();
    let command = json!({
        "command": "send", "directive": directive, "recipient": "b", "payload": payload,
    });
    control.write(format!("{command}\n"));
    let id = control.reply()["id"].as_str().unwrap().to_owned();
    while control.reply()["eof"] != true {}
    id
}

fn status(at: &Daemon, id: &str, role: &str) -> Option<Value> {
    let reply = ask(at, &json!({"command": "works", "id": id}));
    let works = reply["works"].as_array()?;
    works.iter().find(|work| work["role"] == role).cloned()
}

fn wait_state(at: &Daemon, id: &str, role: &str, state: &str) -> Value {
    wait_for(&format!("{id} {role} {state}"), || {
        status(at, id, role).filter(|work| work["state"] == state)
    })
}

/// Waits until `a` knows that `b` has this plugin.
fn wait_plugin(a: &Daemon, name: &str) {
    wait_for("the plugin on b", || {
        let reply = a.control().json("capabilities");
        let nodes = reply["nodes"].as_array().unwrap();
        let b = nodes.iter().find(|node| node["node"] == "b")?;
        let plugins = b["plugins"].as_array().unwrap();
        let known = plugins.iter().any(|plugin| plugin["plugin"] == name);
        (b["reachable"] == true && known).then_some(())
    });
}

/// Node b with a plugin in shell, which writes down that it was started and does `script` then; and
/// where it writes, which is `$runs` for the script.
fn with_plugin(mesh: &Mesh, name: &str, script: &str) -> (Node, PathBuf) {
    let dir = mesh.dir().join("plugins-of-b");
    fs::create_dir(&dir).unwrap();
    let runs = mesh.dir().join("runs");
    fs::write(&runs, "").unwrap();
    let text = format!(
        r#"#!/bin/sh
echo '{{"type":"hello","protocol":1,"name":"{name}","version":"1","actions":{{"run":{{"payload":"json","output":"text"}}}}}}'
read -r hello || exit 0
read -r job || exit 0
runs='{}'
echo run >>"$runs"
{script}"#,
        runs.display()
    );
    let file = dir.join(name);
    fs::write(&file, text).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    let node = mesh
        .node("b")
        .config("[plugins]\nallow-unsafe = true")
        .arg("--plugins-dir")
        .arg(dir.to_str().unwrap());
    (node, runs)
}

fn pair(mesh: &Mesh) -> [Daemon; 2] {
    let a = mesh.node("a").start();
    let b = mesh.node("b").peer(&a).start();
    wait_plugin(&a, "echo");
    [a, b]
}

/// The works that a node lists, with their states.
fn listed(at: &Daemon) -> Vec<(String, String)> {
    let reply = at.control().json("works");
    let works = reply["works"].as_array().unwrap().iter();
    let mut listed: Vec<_> = works
        .map(|work| {
            let word = |key: &str| work[key].as_str().unwrap().to_owned();
            (word("id"), word("state"))
        })
        .collect();
    listed.sort();
    listed
}

#[test]
fn both_ends_still_agree_after_either_was_killed() {
    let mesh = Mesh::new();
    let mut nodes = pair(&mesh);
    let expected = {
        let [a, b] = &nodes;
        let mut expected = vec![
            (detach(a, "echo:echo", &json!(1)), "succeeded"),
            (attached(a, "echo:echo", &json!(2)), "succeeded"),
            (attached(a, "echo:fail", &json!({"code": 3})), "failed"),
            (detach(a, "echo:nope", &json!(1)), "refused"),
        ];
        let runs = detach(a, "echo:sleep", &json!({"ms": 600_000}));
        wait_state(b, &runs, "here", "running");
        ask(a, &json!({"command": "cancel", "id": runs}));
        expected.push((runs, "cancelled"));
        let ends_here = detach(a, "echo:sleep", &json!({"ms": 600_000}));
        wait_state(b, &ends_here, "here", "running");
        ask(b, &json!({"command": "cancel", "id": ends_here}));
        expected.push((ends_here, "cancelled"));
        expected.sort();
        let expected: Vec<_> = expected
            .into_iter()
            .map(|(id, state)| (id, state.to_owned()))
            .collect();
        expected
    };
    wait_agreement(&nodes);
    for victim in [1, 0, 1] {
        // An end is told before it is on its worker's disk, which then has to hear of it.
        nodes[victim].kill();
        nodes[victim].restart();
        for node in &nodes {
            wait_for("the ends that were told", || {
                (listed(node) == expected).then_some(())
            });
        }
        wait_agreement(&nodes);
    }
    // One that is cut short is interrupted on both.
    let cut = detach(&nodes[0], "echo:sleep", &json!({"ms": 600_000}));
    wait_state(&nodes[1], &cut, "here", "running");
    nodes[1].kill();
    nodes[1].restart();
    wait_state(&nodes[0], &cut, "sent", "interrupted");
    wait_agreement(&nodes);
    nodes[1].kill();
    nodes[1].restart();
    assert_eq!(
        status(&nodes[1], &cut, "here").unwrap()["state"],
        "interrupted"
    );
    // What is released is forgotten where it was sent from, also after a restart.
    ask(&nodes[0], &json!({"command": "release", "id": cut}));
    nodes[0].stop();
    nodes[0].restart();
    assert_eq!(status(&nodes[0], &cut, "sent"), None);
}

#[test]
fn a_cancel_that_is_cut_short_with_its_work_is_the_end_on_both() {
    let mesh = Mesh::new();
    let a = mesh.node("a").start();
    let script = "trap '' TERM\necho deaf >>\"$runs\"\nsleep 600\n";
    let (b, runs) = with_plugin(&mesh, "stubborn", script);
    let b = b.peer(&a).start();
    let mut nodes = [a, b];
    wait_plugin(&nodes[0], "stubborn");
    let work = detach(&nodes[0], "stubborn:run", &json!(1));
    // A shell that has not come to its trap yet would end at once.
    wait_for("a plugin that ignores SIGTERM", || {
        let written = fs::read_to_string(&runs).unwrap();
        written.contains("deaf").then_some(())
    });
    ask(&nodes[0], &json!({"command": "cancel", "id": work}));
    wait_for("the cancel on b", || {
        let here = status(&nodes[1], &work, "here")?;
        (here["cancelling"] == true).then_some(())
    });
    nodes[1].kill();
    nodes[1].restart();
    wait_for("the end", || {
        let sent = status(&nodes[0], &work, "sent")?;
        (!sent["ended_ms"].is_null()).then_some(())
    });
    wait_agreement(&nodes);
    assert!(status(&nodes[1], &work, "here").is_some());
}

/// Bytes that a process has read.
fn read_bytes(node: &Daemon) -> u64 {
    let io = fs::read_to_string(format!("/proc/{}/io", node.pid())).unwrap();
    let line = io.lines().find_map(|line| line.strip_prefix("rchar: "));
    line.unwrap().parse().unwrap()
}

#[test]
fn a_start_reads_no_kept_results() {
    const WORKS: u64 = 300;
    const SIZE: usize = 40_000;
    const MARGIN: u64 = WORKS * SIZE as u64 / 20;
    let mesh = Mesh::new();
    let [mut a, _b] = pair(&mesh);
    let text = "x".repeat(SIZE);
    let ids: Vec<String> = (0..WORKS)
        .map(|_| detach(&a, "echo:echo", &json!(text)))
        .collect();
    wait_for("all results on the disk", || {
        let reply = a.control().json("works");
        let works = reply["works"].as_array().unwrap();
        let kept = |work: &&Value| work["kept_bytes"].as_u64().unwrap() >= SIZE as u64;
        let entries = &a.control().json("status")["receptor"]["spool"]["entries"];
        (works.iter().filter(kept).count() as u64 == WORKS && *entries == 0).then_some(())
    });
    let start = |a: &mut Daemon| {
        a.kill();
        a.restart();
        read_bytes(a)
    };
    // Without them, until the log has become as small as it gets.
    let (kept, away) = (a.data_dir().join("kept"), mesh.dir().join("away"));
    a.kill();
    fs::rename(&kept, &away).unwrap();
    a.restart();
    let mut without = read_bytes(&a);
    wait_for("the same start twice", || {
        let before = std::mem::replace(&mut without, start(&mut a));
        (before.abs_diff(without) < MARGIN).then_some(())
    });
    a.kill();
    fs::remove_dir_all(&kept).unwrap();
    fs::rename(&away, &kept).unwrap();
    a.restart();
    let with = read_bytes(&a);
    let list = a.control().json("works");
    let works = list["works"].as_array().unwrap();
    assert_eq!(works.len() as u64, WORKS);
    for work in works {
        assert_eq!(work["state"], "succeeded", "{work}");
        assert!(
            work["kept_bytes"].as_u64().unwrap() >= SIZE as u64,
            "{work}"
        );
    }
    let listed = read_bytes(&a);
    assert!(
        with < without + MARGIN && listed < without + 2 * MARGIN,
        "{without} bytes without, {with} with, {listed} with a list"
    );
    // They are there all the same.
    for id in [&ids[0], ids.last().unwrap()] {
        let result = ask(&a, &json!({"command": "results", "id": id}));
        assert_eq!(result["data"].as_str().map(str::len), Some(SIZE), "{id}");
    }
}

#[test]
fn a_release_that_was_told_survives_a_kill() {
    let mesh = Mesh::new();
    let mut a = mesh.node("a").start();
    let _b = mesh.node("b").peer(&a).start();
    a.wait_reachable("b");
    for _ in 0..10 {
        let id = detach(&a, "echo:echo", &json!(1));
        wait_state(&a, &id, "sent", "succeeded");
        let released = ask(&a, &json!({"command": "release", "id": id}));
        a.kill();
        assert_eq!(released["released"], id, "{released}");
        a.restart();
        assert_eq!(status(&a, &id, "sent"), None);
        a.wait_reachable("b");
    }
}

#[test]
fn what_was_released_is_not_kept_by_a_restart_of_its_sender() {
    /// What a response takes where it is kept, and more.
    const LINE_LEAST: u64 = 50;
    let mesh = Mesh::new();
    let mut a = mesh.node("a").start();
    let script = "seq 1 200\nwhile ! [ -e \"$runs-go\" ]; do sleep 0.05; done\nseq 1 200\n";
    let (b, runs) = with_plugin(&mesh, "talk", script);
    let b = b.peer(&a).start();
    wait_plugin(&a, "talk");
    let id = detach(&a, "talk:run", &json!({}));
    wait_for("what it has said is kept", || {
        let status = status(&a, &id, "sent")?;
        let is_kept = status["kept_bytes"].as_u64().unwrap() > 200 * LINE_LEAST;
        (status["responses"] == 200 && is_kept).then_some(())
    });
    let released = ask(&a, &json!({"command": "release", "id": id}));
    assert_eq!(released["released"], id, "{released}");
    let entries = |a: &Daemon| {
        let status = a.control().json("status");
        status["receptor"]["spool"]["entries"].as_u64().unwrap()
    };
    let kept = a.data_dir().join("kept");
    // Of both nodes the request, and the response that was taken last.
    wait_for("it is forgotten", || {
        let files = fs::read_dir(&kept).unwrap().count();
        (files == 0 && entries(&a) <= 2 && entries(&b) <= 2).then_some(())
    });
    a.kill();
    a.restart();
    fs::write(format!("{}-go", runs.display()), "").unwrap();
    wait_state(&a, &id, "sent", "succeeded");
    wait_for("nothing is on its way", || (entries(&a) == 0).then_some(()));
    // All of it may have come once more, if the end of it was not noted.
    for file in fs::read_dir(&kept).unwrap() {
        let text = fs::read_to_string(file.unwrap().path()).unwrap();
        assert!(text.contains("\n{\"serial\":1,"), "half of it: {text}");
    }
}
