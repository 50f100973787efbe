//! Responses for a controller that is away: they wait on the disk of their worker's node, whose
//! memory does not grow with them, and are whole and in order when it is back.
//!
//! `RECEPTOR_AWAY=500000 cargo test -p receptor-tests --test away` has as many of them.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use receptor_tests::traffic::peak_kib;
use receptor_tests::{Control, Daemon, Mesh, Node, wait_for};
use serde_json::{Value, json};

/// Responses of one work: fewer than hold its plugin (1 MiB with their envelopes).
const EACH: u64 = 3000;
/// Responses in all, if nothing else is asked for.
const RESPONSES: u64 = 100_000;
/// What the worker's node may take beyond what it took before, in KiB: what the core keeps of
/// responses at hand (8192), what is on its way to the disk (4 MiB with their envelopes, 16,000),
/// each about a KiB, and the rest of the daemon.
const MORE_KIB: u64 = 40 << 10;
/// What it may take for each response: its place in the store's index, and in a page.
const EACH_BYTES: u64 = 400;

fn ask(at: &Daemon, command: &Value) -> Value {
    let mut control = at.control();
    control.write(format!("{command}\n"));
    control.reply()
}

/// A node with a plugin that answers a job with many lines as soon as there is this file.
fn talker(mesh: &Mesh, go: &Path) -> Node {
    let dir = mesh.dir().join("plugins-of-b");
    fs::create_dir(&dir).unwrap();
    let script = format!(
        r#"#!/bin/sh
echo '{{"type":"hello","protocol":1,"name":"talker","version":"1","actions":{{"run":{{"payload":"none","output":"text"}}}}}}'
read -r hello || exit 0
read -r job || exit 0
until [ -e '{}' ]; do sleep 0.1; done
seq {EACH}
"#,
        go.display()
    );
    let plugin = dir.join("talker");
    fs::write(&plugin, script).unwrap();
    fs::set_permissions(&plugin, fs::Permissions::from_mode(0o755)).unwrap();
    mesh.node("b")
        .config("[plugins]\nallow-unsafe = true\nmax-works = 4")
        .arg("--plugins-dir")
        .arg(dir.to_str().unwrap())
}

fn detach(control: &mut Control) -> String {
    let command = json!({
        "command": "send", "directive": "talker:run", "recipient": "b", "detach": true, "wait": true,
    });
    control.write(format!("{command}\n"));
    let accepted = control.reply();
    assert_eq!(accepted["type"], "accepted", "{accepted}");
    accepted["id"].as_str().unwrap().to_owned()
}

/// Works that have come to a node and have no end.
fn active(at: &Daemon) -> u64 {
    let status = at.control().json("status");
    status["receptor"]["works_active"].as_u64().unwrap()
}

fn waiting(at: &Daemon) -> u64 {
    let reply = ask(at, &json!({"command": "spool"}));
    reply["total"].as_u64().unwrap()
}

fn assert_small(daemon: &Daemon, before: u64, responses: u64) {
    let peak = peak_kib(daemon.pid());
    let most = before + MORE_KIB + responses * EACH_BYTES / 1024;
    assert!(
        peak <= most,
        "{peak} KiB for {responses} responses, {before} KiB before, {most} KiB allowed"
    );
}

#[test]
fn responses_for_a_controller_that_is_away_take_no_memory_and_arrive_in_order() {
    let responses = std::env::var("RECEPTOR_AWAY").map_or(RESPONSES, |it| it.parse().unwrap());
    let works = responses.div_ceil(EACH);
    let responses = works * EACH;
    let mesh = Mesh::new();
    let go = mesh.dir().join("go");
    let mut b = talker(&mesh, &go).start();
    let mut a = mesh.node("a").peer(&b).start();
    wait_for("the plugin on b", || {
        let reply = ask(&a, &json!({"command": "capabilities"}));
        reply.to_string().contains("talker").then_some(())
    });
    let mut control = a.control();
    let ids: Vec<String> = (0..works).map(|_| detach(&mut control)).collect();
    wait_for("all works on b", || (active(&b) == works).then_some(()));
    let before = peak_kib(b.pid());
    a.kill();
    fs::write(&go, "").unwrap();
    for left in (0..works).rev() {
        wait_for("one work more to end", || {
            (active(&b) <= left).then_some(())
        });
    }
    assert_eq!(waiting(&b), responses + works);
    assert_small(&b, before, responses);
    b.kill();
    b.restart();
    assert_eq!(waiting(&b), responses + works);
    assert_small(&b, before, responses);
    a.restart();
    for id in &ids {
        let mut control = a.control();
        let command = json!({"command": "results", "id": id, "follow": true});
        control.write(format!("{command}\n"));
        for n in 1..=EACH {
            let line = control.reply();
            assert_eq!(line["serial"], n, "{id}: {line}");
            assert_eq!(line["text"], n.to_string(), "{id}: {line}");
        }
        let end = control.reply();
        assert_eq!(end["eof"], true, "{id}: {end}");
        assert_eq!(end["code"], 0, "{id}: {end}");
    }
    wait_for("b to be done", || (waiting(&b) == 0).then_some(()));
    assert_small(&b, before, responses);
}
