//! The spool of a real daemon: read when the daemon does not run, and when the disk gives no more.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use receptor_tests::{Daemon, Mesh, program, wait_for};
use serde_json::{Value, json};

fn ask(at: &Daemon, command: &Value) -> Value {
    let mut control = at.control();
    control.write(format!("{command}\n"));
    control.reply()
}

/// A durable message to a node that is not there; its id, or the refusal.
fn send(at: &Daemon, recipient: &str, payload: &str) -> Result<String, Value> {
    let reply = ask(
        at,
        &json!({
            "command": "send", "directive": "echo:echo", "recipient": recipient, "text": payload,
            "detach": true, "wait": true,
        }),
    );
    match reply["id"].as_str() {
        Some(id) if reply["type"] == "accepted" => Ok(id.to_owned()),
        _ => Err(reply),
    }
}

fn receptorctl(arguments: &[&str], dir: &Path) -> Output {
    Command::new(program("receptorctl"))
        .args(arguments)
        .arg("--data-dir")
        .arg(dir)
        .env_remove("RECEPTOR_SOCKET")
        .output()
        .unwrap()
}

fn json_of(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What is the same whether the daemon runs or not; which recipient comes first is not.
fn comparable(reply: &Value) -> Vec<Value> {
    let mut messages = reply["messages"].as_array().unwrap().clone();
    messages.sort_by_key(|message| message["recipient"].as_str().map(str::to_owned));
    messages
        .into_iter()
        .map(|mut message| {
            for changing in ["age_ms", "expires_ms", "reason"] {
                assert!(message[changing].is_u64() || message[changing].is_string());
                message.as_object_mut().unwrap().remove(changing);
            }
            message
        })
        .collect()
}

#[test]
fn a_stopped_daemons_spool_is_read_as_a_running_ones() {
    let mesh = Mesh::new();
    let mut a = mesh.node("a").start();
    let large = "x".repeat(100_000);
    for (recipient, payload) in [("z", "1"), ("c", "2"), ("z", "3"), ("c", &large)] {
        send(&a, recipient, payload).unwrap();
    }
    let given_up = send(&a, "c", "too late").unwrap();
    ask(&a, &json!({"command": "spool-drop", "id": given_up}));
    let running = ask(&a, &json!({"command": "spool"}));
    assert_eq!(running["total"], 4, "{running}");
    let dir = a.data_dir();
    for command in [["spool", "list"], ["dead-letter", "list"]] {
        let refused = receptorctl(&command, &dir);
        assert_eq!(refused.status.code(), Some(69), "{refused:?}");
        let text = String::from_utf8_lossy(&refused.stderr);
        assert!(
            text.contains("a receptord runs with the data directory"),
            "{text}"
        );
    }
    let letters = ask(&a, &json!({"command": "dead-letters"}));
    a.kill();

    let stopped = json_of(&receptorctl(&["--json", "spool", "list"], &dir));
    assert_eq!(stopped["total"], 4);
    assert_eq!(comparable(&stopped), comparable(&running));
    assert!(
        stopped["messages"]
            .as_array()
            .unwrap()
            .iter()
            .all(|m| m["reason"] == "stopped")
    );
    let id = stopped["messages"][3]["id"].as_str().unwrap().to_owned();
    let one = json_of(&receptorctl(&["--json", "spool", "show", &id], &dir));
    assert_eq!(one["messages"][0]["id"], id.as_str());
    assert_eq!(one["total"], 1);
    let none = receptorctl(&["spool", "show", "ffffffffffff"], &dir);
    assert_eq!(none.status.code(), Some(1));
    let offline = json_of(&receptorctl(&["--json", "dead-letter", "list"], &dir));
    assert_eq!(offline["total"], letters["total"]);
    let table = receptorctl(&["spool", "list"], &dir);
    let text = String::from_utf8_lossy(&table.stdout).into_owned();
    assert_eq!(text.lines().count(), 5, "{text}");

    // Somebody else's directory, and one where nothing is.
    let nothing = receptorctl(&["spool", "list"], mesh.dir());
    assert_eq!(nothing.status.code(), Some(2));
    let text = String::from_utf8_lossy(&nothing.stderr);
    assert!(text.contains("there is no spool in it"), "{text}");

    // Reading changed nothing: the daemon has everything.
    a.restart();
    let again = ask(&a, &json!({"command": "spool"}));
    assert_eq!(comparable(&again), comparable(&running));
}

#[test]
fn what_is_damaged_in_a_stopped_daemons_spool_is_shown() {
    let mesh = Mesh::new();
    let mut a = mesh.node("a").start();
    for payload in ["first", "a rather unmistakable payload", "last"] {
        send(&a, "z", payload).unwrap();
    }
    a.stop();
    let dir = a.data_dir();
    let segments = fs::read_dir(dir.join("spool/segments")).unwrap();
    let mut hit = false;
    for file in segments.map(|entry| entry.unwrap().path()) {
        let mut bytes = fs::read(&file).unwrap();
        let payload = b"unmistakable";
        if let Some(at) = bytes
            .windows(payload.len())
            .position(|part| part == payload)
        {
            bytes[at] ^= 1;
            fs::write(&file, bytes).unwrap();
            hit = true;
        }
    }
    assert!(hit);
    let listed = json_of(&receptorctl(&["--json", "spool", "list"], &dir));
    assert_eq!(listed["total"], 2, "{listed}");
    let damaged = listed["damaged"].as_array().unwrap();
    assert_eq!(damaged.len(), 1, "{listed}");
    assert!(damaged[0]["file"].as_str().unwrap().ends_with(".seg"));
    assert!(damaged[0]["entry"].is_u64(), "{listed}");
    assert!(
        fs::read_dir(dir.join("spool/corrupt"))
            .unwrap()
            .next()
            .is_none()
    );
    let people = receptorctl(&["spool", "list"], &dir);
    let text = String::from_utf8_lossy(&people.stderr);
    assert!(text.contains("cannot be used"), "{text}");
    a.restart();
    wait_for("the rest is kept", || {
        let reply = ask(&a, &json!({"command": "spool"}));
        (reply["total"] == 2).then_some(())
    });
    assert!(
        fs::read_dir(dir.join("spool/corrupt"))
            .unwrap()
            .next()
            .is_some()
    );
}
