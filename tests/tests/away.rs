//! Responses for a controller that is away: they wait on the disk of their worker's node, whose
//! memory does not grow with them, and are whole and in order when it is back.
//!
//! `RECEPTOR_AWAY=500000 cargo test -p receptor-tests --test away` has as many of them.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use receptor_tests::power::{Dice, Power};
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

/// Works whose responses wait at b because a is away, more than are kept in memory: a, b, the ids.
fn talked(mesh: &Mesh, b: Node, go: &Path) -> (Daemon, Daemon, Vec<String>) {
    let b = b.start();
    let mut a = mesh.node("a").peer(&b).start();
    wait_for("the plugin on b", || {
        let reply = ask(&a, &json!({"command": "capabilities"}));
        reply.to_string().contains("talker").then_some(())
    });
    let mut control = a.control();
    // One more than run at once, so that the responses of the last one come behind all others.
    let ids: Vec<String> = (0..5).map(|_| detach(&mut control)).collect();
    wait_for("all works on b", || (active(&b) == 5).then_some(()));
    a.kill();
    fs::write(go, "").unwrap();
    wait_for("the works to end", || (active(&b) == 0).then_some(()));
    let all = 5 * (EACH + 1);
    assert_eq!(waiting(&b), all);
    wait_for("their requests to be forgotten", || {
        let status = b.control().json("status");
        (status["receptor"]["spool"]["entries"] == all).then_some(())
    });
    (a, b, ids)
}

#[test]
fn responses_that_wait_on_the_disk_alone_are_shown_and_dropped() {
    let mesh = Mesh::new();
    let go = mesh.dir().join("go");
    let (mut a, mut b, ids) = talked(&mesh, talker(&mesh, &go), &go);
    let last = ids.last().unwrap();
    let all = 5 * (EACH + 1);

    for prefix in [&last[..], &last[..20]] {
        let shown = ask(&b, &json!({"command": "spool", "id": prefix}));
        assert_eq!(shown["total"], EACH + 1, "{}", shown["error"]);
        let first = &shown["messages"][0];
        assert_eq!(first["id"], json!(last), "{first}");
        assert_eq!(
            (&first["kind"], &first["serial"]),
            (&json!("response"), &json!(1))
        );
    }
    assert_eq!(waiting(&b), all, "nothing is changed by looking");
    let unknown = "0123456789abcdef0123456789abcdef";
    for command in ["spool", "spool-drop"] {
        let none = ask(&b, &json!({"command": command, "id": unknown}));
        assert_eq!(none["error"]["code"], "not-found", "{none}");
    }

    let dropped = ask(&b, &json!({"command": "spool-drop", "id": last}));
    assert_eq!(dropped["dropped"], json!(last), "{dropped}");
    // In their place is one word.
    assert_eq!(waiting(&b), all - EACH);
    b.kill();
    b.restart();
    assert_eq!(waiting(&b), all - EACH);
    let again = ask(&b, &json!({"command": "spool-drop", "id": last}));
    assert!(again["error"].is_object(), "{again}");
    a.restart();
    wait_for("b to be done", || (waiting(&b) == 0).then_some(()));
    for id in &ids {
        let state = wait_for("the end of a work", || {
            let reply = ask(&a, &json!({"command": "works", "id": id}));
            let work = &reply["works"][0];
            (!work["ended_ms"].is_null()).then(|| work["state"].clone())
        });
        let expected = if id == last { "cancelled" } else { "succeeded" };
        assert_eq!(state, expected, "{id}");
    }
}

#[test]
fn who_asks_for_what_waits_on_a_disk_that_cannot_be_read_is_told_so() {
    let mesh = Mesh::new();
    let go = mesh.dir().join("go");
    let (mut power, node) = Power::of(talker(&mesh, &go));
    let (mut a, mut b, ids) = talked(&mesh, node, &go);
    let last = ids.last().unwrap();
    let show = json!({"command": "spool", "id": last});
    let drop = json!({"command": "spool-drop", "id": last});
    power.break_down(Some("read"));
    for command in [&show, &drop, &show, &drop] {
        let failed = ask(&b, command);
        let text = failed["error"]["message"].as_str().unwrap();
        assert!(text.contains("could be read"), "{text}");
        assert!(text.contains("Input/output error"), "{text}");
    }
    power.break_down(None);
    assert!(ask(&b, &show)["total"].as_u64().unwrap() > 1);
    let dropped = ask(&b, &drop);
    assert_eq!(dropped["dropped"], json!(last), "{dropped}");
    // What was said to be dropped does not come back, and what was not is all there.
    power.fail(&mut b, &mut Dice::new(1));
    b.restart();
    assert_eq!(waiting(&b), 4 * (EACH + 1) + 1);
    a.restart();
    wait_for("b to be done", || (waiting(&b) == 0).then_some(()));
}

/// A search reads many pages, and there are only so many at once.
#[test]
fn of_many_who_look_at_once_each_is_answered() {
    let mesh = Mesh::new();
    let go = mesh.dir().join("go");
    let (_a, b, ids) = talked(&mesh, talker(&mesh, &go), &go);
    let mut control = b.control();
    let looks = 20;
    for tag in 0..looks {
        let command = json!({"command": "spool", "id": ids.last().unwrap(), "tag": tag});
        control.write(format!("{command}\n"));
    }
    let replies: Vec<Value> = (0..looks).map(|_| control.reply()).collect();
    let shown = replies.iter().filter(|reply| reply["total"] == EACH + 1);
    let refused = replies
        .iter()
        .filter(|reply| reply["error"]["code"] == "busy");
    let (shown, refused) = (shown.count(), refused.count());
    assert!(shown >= 8 && shown + refused == looks, "{replies:?}");
}
