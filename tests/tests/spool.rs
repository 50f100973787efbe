//! The spool of a real daemon: read when the daemon does not run, and when the disk gives no more.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output};

use receptor_tests::volume::Volume;
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
            "command": "send", "directive": "echo:discard", "recipient": recipient, "text": payload,
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
    let running = wait_for("what was dropped is gone", || {
        let status = a.control().json("status");
        let running = ask(&a, &json!({"command": "spool"}));
        let kept = &status["receptor"]["spool"]["entries"];
        (running["total"] == 4 && *kept == 4).then_some(running)
    });
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

/// A volume for a node, or `None` where there can be none: then the test says so and ends.
fn volume(mesh: &Mesh, node: &str, mebibytes: u32) -> Option<Volume> {
    let dir = mesh.node(node).data_dir();
    match Volume::new(&dir, mebibytes) {
        Ok(volume) => Some(volume),
        Err(why) => {
            let _ = writeln!(std::io::stderr(), "not tested: {why}");
            None
        }
    }
}

fn total(at: &Daemon) -> u64 {
    ask(at, &json!({"command": "spool"}))["total"]
        .as_u64()
        .unwrap()
}

fn state(at: &Daemon, id: &str) -> Option<String> {
    let reply = ask(at, &json!({"command": "works", "id": id}));
    Some(reply["works"][0]["state"].as_str()?.to_owned())
}

#[test]
fn a_full_disk_refuses_with_its_reason_and_loses_nothing() {
    let mesh = Mesh::new();
    let Some(volume) = volume(&mesh, "a", 64) else {
        return;
    };
    let mut a = mesh.node("a").volume(&volume).start();
    let payload = format!("\"{}\"", "x".repeat(60_000));
    let mut ids = Vec::new();
    let refusal = loop {
        match send(&a, "z", &payload) {
            Ok(id) => ids.push(id),
            Err(refusal) => break refusal,
        }
        assert!(ids.len() < 2000, "64 MiB hold no more");
    };
    assert!(ids.len() > 300, "only {} were taken", ids.len());
    assert_eq!(refusal["error"]["code"], "busy", "{refusal}");
    let text = refusal["error"]["message"].as_str().unwrap();
    assert!(text.contains("the spool's disk is full"), "{text}");
    assert_eq!(total(&a), ids.len() as u64);
    a.wait_log("nothing new is kept until the spool can be written");
    // What needs no disk goes on.
    a.wait_ping("a");
    a.kill();
    a.restart();
    assert_eq!(total(&a), ids.len() as u64, "what was accepted is there");
    // The new segment may have found some room left, but not for long.
    while let Ok(id) = send(&a, "z", &payload) {
        ids.push(id);
        assert!(ids.len() < 2000, "64 MiB hold no more");
    }

    // The recipient comes: everything is run, and there is room again by itself.
    let _z = mesh.node("z").peer(&a).start();
    wait_for("everything is delivered", || {
        let status = a.control().json("status");
        let kept = status["receptor"]["spool"]["entries"].as_u64().unwrap();
        (kept == 0).then_some(())
    });
    wait_for("everything has its result", || {
        let works = ask(&a, &json!({"command": "works"}));
        let works = works["works"].as_array()?;
        let done = works
            .iter()
            .filter(|work| work["state"] == "succeeded" && work["role"] == "sent");
        (done.count() == ids.len()).then_some(())
    });
    let last = wait_for("there is room again", || send(&a, "z", "\"again\"").ok());
    wait_for("the last", || {
        (state(&a, &last)? == "succeeded").then_some(())
    });
}

#[test]
fn a_node_starts_on_a_full_disk() {
    let mesh = Mesh::new();
    let Some(volume) = volume(&mesh, "a", 64) else {
        return;
    };
    let mut a = mesh.node("a").volume(&volume).start();
    let id = send(&a, "z", "\"kept\"").unwrap();
    // Every start leaves the room that the next one takes.
    for _ in 0..3 {
        a.kill();
        volume.fill(0);
        a.restart();
        a.wait_ping("a");
        assert_eq!(total(&a), 1, "what was accepted is there");
        volume.relieve();
    }
    let _z = mesh.node("z").peer(&a).start();
    wait_for("what was kept", || {
        (state(&a, &id)? == "succeeded").then_some(())
    });
}

#[test]
fn a_small_disk_keeps_messages() {
    let mesh = Mesh::new();
    let Some(volume) = volume(&mesh, "a", 16) else {
        return;
    };
    let a = mesh.node("a").volume(&volume).start();
    let payload = format!("\"{}\"", "x".repeat(60_000));
    let mut ids = Vec::new();
    while let Ok(id) = send(&a, "z", &payload) {
        ids.push(id);
        assert!(ids.len() < 500, "16 MiB hold no more");
    }
    assert!(ids.len() > 120, "only {} were taken", ids.len());
    let _z = mesh.node("z").peer(&a).start();
    wait_for("everything is delivered", || {
        let works = ask(&a, &json!({"command": "works"}));
        let works = works["works"].as_array()?;
        let done = works
            .iter()
            .filter(|work| work["state"] == "succeeded" && work["role"] == "sent");
        (done.count() == ids.len()).then_some(())
    });
    wait_for("there is room again", || send(&a, "z", &payload).ok());
}

#[test]
fn a_full_disk_keeps_responses_waiting_and_loses_none() {
    let mesh = Mesh::new();
    let Some(volume) = volume(&mesh, "a", 64) else {
        return;
    };
    let a = mesh.node("a").volume(&volume).start();
    let _z = mesh.node("z").peer(&a).start();
    a.wait_reachable("z");
    wait_for("the plugin on z", || send(&a, "z", "\"first\"").ok());
    // All that is left is in the spool's own files; what is kept of results is in others.
    volume.fill(100_000);
    let command = json!({
        "command": "send", "directive": "echo:flood", "recipient": "z", "detach": true,
        "payload": {"count": 100, "size": 30_000},
    });
    let flood = ask(&a, &command);
    let flood = flood["id"].as_str().unwrap().to_owned();
    a.wait_log("it is tried again");
    a.wait_ping("z");
    assert_ne!(state(&a, &flood).unwrap(), "succeeded");
    volume.relieve();
    wait_for("all responses", || {
        (state(&a, &flood)? == "succeeded").then_some(())
    });
    let mut control = a.control();
    control.write(format!(
        "{}\n",
        json!({"command": "results", "id": flood, "follow": true})
    ));
    let mut serial = 0;
    loop {
        let line = control.reply();
        if let Some(size) = line["size"].as_u64() {
            control.raw(size.try_into().unwrap());
        }
        serial += 1;
        assert_eq!(line["serial"], serial, "{line}");
        if line["eof"] == true {
            assert_eq!(line["code"], 0, "{line}");
            break;
        }
    }
    assert_eq!(serial, 101);
}

#[test]
fn a_spool_that_cannot_be_written_refuses_clearly_and_goes_on_when_it_can() {
    let mesh = Mesh::new();
    let mut a = mesh.node("a").start();
    let payload = "x".repeat(60_000);
    let mut ids = vec![send(&a, "z", &payload).unwrap()];
    // The directory is gone for whoever makes a new file there.
    let spool = a.data_dir().join("spool");
    let (segments, aside) = (spool.join("segments"), spool.join("aside"));
    fs::rename(&segments, &aside).unwrap();
    fs::write(&segments, "").unwrap();
    let refusal = loop {
        match send(&a, "z", &payload) {
            Ok(id) => ids.push(id),
            Err(refusal) => break refusal,
        }
        assert!(ids.len() < 1000, "a segment does not hold that");
    };
    let text = refusal["error"]["message"].as_str().unwrap();
    assert!(
        text.contains("of the spool") && text.contains("segments/"),
        "{text}"
    );
    a.wait_log("nothing new is kept until the spool can be written");
    a.wait_ping("a");
    assert_eq!(total(&a), ids.len() as u64);
    fs::remove_file(&segments).unwrap();
    fs::rename(&aside, &segments).unwrap();
    ids.push(wait_for("it is written again", || {
        send(&a, "z", &payload).ok()
    }));
    a.wait_log("the spool can be written again");
    a.kill();
    a.restart();
    assert_eq!(total(&a), ids.len() as u64);

    // It cannot even be opened.
    a.stop();
    fs::rename(&segments, &aside).unwrap();
    fs::write(&segments, "").unwrap();
    let output = Command::new(program("receptord"))
        .args(["--node-id", "a", "--data-dir"])
        .arg(a.data_dir())
        .arg("--socket-path")
        .arg(mesh.dir().join("other"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(69), "{output:?}");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("segments of the spool"), "{text}");
    fs::remove_file(&segments).unwrap();
    fs::rename(&aside, &segments).unwrap();
    a.restart();
    assert_eq!(total(&a), ids.len() as u64);
}
