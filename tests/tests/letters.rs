//! Messages that were given up: none is lost on the way to becoming a dead letter, and sending one
//! again does what it says.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;

use nix::sys::signal::Signal;
use receptor_tests::{Daemon, Mesh, program, wait_for};
use serde_json::{Value, json};

const COUNT: usize = 600;

fn ask(at: &Daemon, command: &Value) -> Value {
    let mut control = at.control();
    control.write(format!("{command}\n"));
    control.reply()
}

fn send(recipient: &str, text: &str, more: &Value) -> Value {
    let mut command = json!({
        "command": "send", "directive": "echo:echo", "recipient": recipient, "text": text,
        "detach": true, "wait": true,
    });
    for (key, value) in more.as_object().unwrap() {
        command[key] = value.clone();
    }
    command
}

fn letters(at: &Daemon) -> u64 {
    let letters = ask(at, &json!({"command": "dead-letters"}));
    letters["total"].as_u64().unwrap()
}

fn files(at: &Daemon) -> usize {
    fs::read_dir(at.data_dir().join("dead-letters"))
        .unwrap()
        .count()
}

/// A message that expires at once; its id, when it is a dead letter.
fn dead_letter(at: &Daemon, recipient: &str, text: &str) -> String {
    let before = letters(at);
    let sent = ask(at, &send(recipient, text, &json!({"expires_ms": 1})));
    let id = sent["id"].as_str().unwrap().to_owned();
    wait_for("a dead letter", || (letters(at) > before).then_some(()));
    id
}

fn a_backlog_expires_while_the_daemon_ends(how: Signal) {
    let mesh = Mesh::new();
    let mut a = mesh.node("a").start();
    let text = "x".repeat(4000);
    let mut control = a.control();
    for n in 0..COUNT {
        // Half of them are nobody's but the operator's.
        let more = json!({"tag": n, "expires_ms": 3000, "respond": n % 2 == 0});
        control.write(format!("{}\n", send("away", &text, &more)));
        let reply = control.reply();
        assert_eq!(reply["type"], "accepted", "{reply}");
    }
    wait_for("the first letters", || (files(&a) >= 20).then_some(()));
    a.signal(how);
    let _ = a.wait();
    a.restart();
    wait_for("a letter of each message", || {
        (letters(&a) == COUNT as u64).then_some(())
    });
    wait_for("the spool is empty", || {
        let status = a.control().json("status");
        (status["receptor"]["spool"]["entries"] == 0).then_some(())
    });
    assert_eq!(files(&a), COUNT);
}

#[test]
fn no_letter_is_lost_when_the_daemon_is_killed() {
    a_backlog_expires_while_the_daemon_ends(Signal::SIGKILL);
}

#[test]
fn no_letter_is_lost_when_the_daemon_is_stopped() {
    a_backlog_expires_while_the_daemon_ends(Signal::SIGTERM);
}

#[test]
fn a_retry_that_finds_no_room_is_refused_and_keeps_the_letter() {
    let mesh = Mesh::new();
    let a = mesh.node("a");
    let a = a.config("[spool]\nmax-bytes-per-recipient = \"1MiB\"");
    let a = a.start();
    let text = "x".repeat(60_000);
    let id = dead_letter(&a, "away", &text);
    let mut sent = Vec::new();
    let refused = loop {
        let reply = ask(&a, &send("away", &text, &json!({})));
        match reply["id"].as_str() {
            Some(id) if reply["type"] == "accepted" => sent.push(id.to_owned()),
            _ => break reply,
        }
        assert!(sent.len() < 100);
    };
    assert_eq!(refused["error"]["code"], "busy", "{refused}");
    let retry = json!({"command": "dead-letter-retry", "id": id});
    for _ in 0..2 {
        let refused = ask(&a, &retry);
        assert_eq!(refused["error"]["code"], "busy", "{refused}");
        assert_eq!(letters(&a), 1);
    }
    // With a key as well: what was refused is not remembered as sent.
    let keyed = send("away", &text, &json!({"key": "one"}));
    assert_eq!(ask(&a, &keyed)["error"]["code"], "busy");
    for id in &sent {
        ask(&a, &json!({"command": "cancel", "id": id}));
    }
    wait_for("room for both", || {
        let again = ask(&a, &keyed);
        (again["type"] == "accepted").then_some(())
    });
    wait_for("room for the letter", || {
        let retried = ask(&a, &retry);
        (retried["retried"] == id.as_str()).then_some(())
    });
    assert_eq!(letters(&a), 0);
}

#[test]
fn a_letter_that_comes_back_is_not_sent_twice() {
    assert!(program("echo").exists());
    let mesh = Mesh::new();
    let mut a = mesh.node("a").start();
    let id = dead_letter(&a, "b", "once");
    let letter = a.data_dir().join("dead-letters").join(&id);
    let held = fs::read(&letter).unwrap();
    let retry = json!({"command": "dead-letter-retry", "id": id});
    let first = ask(&a, &retry);
    assert_eq!(first["retried"], id.as_str(), "{first}");
    wait_for("the letter goes", || (files(&a) == 0).then_some(()));
    // As if power had failed before its removal was on the disk.
    a.kill();
    fs::write(&letter, held).unwrap();
    a.restart();
    assert_eq!(letters(&a), 1);
    let second = ask(&a, &retry);
    assert_eq!(second["id"], first["id"], "{second}");
    assert_eq!(letters(&a), 0);
    let waiting = ask(&a, &json!({"command": "spool"}));
    assert_eq!(waiting["total"], 1, "{waiting}");
}
