//! A disk that fails below a real daemon: what cannot be kept is refused with its reason, nothing
//! that was accepted is lost, and the daemon goes on when the disk does.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;

use receptor_tests::power::{Dice, Power};
use receptor_tests::{Daemon, Mesh, program, wait_for};
use serde_json::{Value, json};

fn ask(at: &Daemon, command: &Value) -> Value {
    let mut control = at.control();
    control.write(format!("{command}\n"));
    control.reply()
}

fn send(at: &Daemon) -> Result<String, Value> {
    let reply = ask(
        at,
        &json!({
            "command": "send", "directive": "echo:discard", "recipient": "z", "text": "x",
            "detach": true, "wait": true,
        }),
    );
    match reply["id"].as_str() {
        Some(id) if reply["type"] == "accepted" => Ok(id.to_owned()),
        _ => Err(reply),
    }
}

fn spool_status(at: &Daemon) -> Value {
    at.control().json("status")["receptor"]["spool"].clone()
}

#[test]
fn what_a_failing_disk_cannot_keep_is_refused_and_the_rest_is_there() {
    for (seed, sort) in ["write", "sync"].into_iter().enumerate() {
        let mesh = Mesh::new();
        let (mut power, node) = Power::of(mesh.node("a"));
        let mut a = node.start();
        let mut ids: Vec<_> = (0..5).map(|_| send(&a).unwrap()).collect();
        for _ in 0..3 {
            power.break_down(Some(sort));
            for _ in 0..5 {
                let refusal = send(&a).unwrap_err();
                let text = refusal["error"]["message"].as_str().unwrap();
                assert!(text.contains("of the spool"), "{text}");
                assert!(text.contains("Input/output error"), "{text}");
            }
            let status = spool_status(&a);
            let error = status["error"].as_str().unwrap();
            assert!(error.contains("nothing new is kept"), "{error}");
            assert!(error.contains("mend or replace the disk"), "{error}");
            a.wait_ping("a");
            power.break_down(None);
            ids.push(wait_for("it is written again", || send(&a).ok()));
            assert_eq!(spool_status(&a)["error"], Value::Null);
        }
        // Nothing that a failed sync left behind was relied on.
        power.fail(&mut a, &mut Dice::new(seed as u64));
        a.restart();
        let kept = ask(&a, &json!({"command": "spool"}));
        let messages = kept["messages"].as_array().unwrap();
        for id in &ids {
            let is_there = messages.iter().any(|message| message["id"] == **id);
            assert!(is_there, "{id} is lost after {sort} failed: {kept}");
        }
        assert_eq!(
            kept["total"],
            ids.len(),
            "what was refused came back: {kept}"
        );
    }
}

fn letters(at: &Daemon) -> Value {
    ask(at, &json!({"command": "dead-letters"}))["total"].clone()
}

fn assert_fails(at: &Daemon, command: &Value) {
    let failed = ask(at, command);
    let text = failed["error"]["message"].as_str().unwrap();
    assert!(text.contains("Input/output error"), "{text}");
}

#[test]
fn a_dead_letter_that_was_said_to_be_dropped_does_not_come_back() {
    for (seed, sort) in [(1, "remove"), (2, "sync")] {
        let mesh = Mesh::new();
        let (mut power, node) = Power::of(mesh.node("a"));
        let mut a = node.start();
        let command = json!({
            "command": "send", "directive": "echo:discard", "recipient": "z", "text": "x",
            "detach": true, "wait": true, "expires_ms": 1,
        });
        let id = ask(&a, &command)["id"].clone();
        wait_for("the dead letter", || (letters(&a) == 1).then_some(()));
        let drop = json!({"command": "dead-letter-drop", "id": id});
        power.break_down(Some(sort));
        for _ in 0..2 {
            assert_fails(&a, &drop);
            assert_eq!(letters(&a), 1, "it is one still");
        }
        power.break_down(None);
        let dropped = ask(&a, &drop);
        assert_eq!(dropped["dropped"], id, "{dropped}");
        power.fail(&mut a, &mut Dice::new(seed));
        a.restart();
        assert_eq!(letters(&a), 0, "after {sort} failed");
    }
}

#[test]
fn a_work_that_was_said_to_be_released_does_not_come_back() {
    assert!(program("echo").exists());
    for (seed, sort) in [(1, "remove"), (2, "sync")] {
        let mesh = Mesh::new();
        let (mut power, node) = Power::of(mesh.node("a"));
        let mut a = node.start();
        let command = json!({
            "command": "send", "directive": "echo:echo", "recipient": "a", "text": "x",
            "detach": true, "wait": true,
        });
        let id = ask(&a, &command)["id"].as_str().unwrap().to_owned();
        let kept = a.data_dir().join("kept").join(&id);
        let show = json!({"command": "works", "id": id});
        wait_for("its end on the disk", || {
            let work = &ask(&a, &show)["works"][0];
            (!work["ended_ms"].is_null() && work["kept_bytes"] != 0).then_some(())
        });
        let release = json!({"command": "release", "id": id});
        power.break_down(Some(sort));
        for _ in 0..2 {
            assert_fails(&a, &release);
        }
        power.break_down(None);
        let released = ask(&a, &release);
        assert_eq!(released["released"], *id, "{released}");
        power.fail(&mut a, &mut Dice::new(seed));
        a.restart();
        assert!(!kept.exists(), "after {sort} failed");
    }
}

#[test]
fn what_came_of_a_payload_that_cannot_be_written_is_forgotten() {
    const SIZE: usize = 2 << 20;
    let mesh = Mesh::new();
    let (power, node) = Power::of(mesh.node("a"));
    let a = node.start();
    let payloads = a.data_dir().join("spool/payloads");
    let files = || fs::read_dir(&payloads).unwrap().count();
    let mut control = a.control();
    let command = json!({
        "command": "send", "directive": "echo:discard", "recipient": "z", "size": SIZE,
    });
    control.write(format!("{command}\n"));
    control.write(vec![7; SIZE / 2]);
    wait_for("some of the payload", || (files() > 0).then_some(()));
    power.break_down(Some("write"));
    control.write(vec![7; SIZE / 2]);
    let failed = control.reply();
    let text = failed["error"]["message"].as_str().unwrap();
    assert!(text.contains("Input/output error"), "{text}");
    power.break_down(None);
    wait_for("its end", || (files() == 0).then_some(()));
    assert_eq!(spool_status(&a)["bytes"], 0);
    // What was left of it was not taken for a command.
    assert_eq!(control.json("ping a")["Success"], true);
}
