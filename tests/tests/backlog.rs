//! More messages for one node than are kept in memory, and more than it can take.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use receptor_tests::Control;
use receptor_tests::{Daemon, Mesh};
use serde_json::{Value, json};

/// More than wait in memory for one node (`flow_waiting` of the core's limits).
const MANY: usize = 8_300;
/// Messages that a client has under way at once.
const WINDOW: usize = 500;
/// What a daemon and the sockets on the way may take of a client whose messages nobody takes, in
/// bytes; nothing of it is on a disk.
const TAKEN_MOST: usize = 160 << 20;
/// How long a write blocks before it is said that the daemon does not read.
const UNREAD: Duration = Duration::from_secs(5);

fn ask(at: &Daemon, command: &Value) -> Value {
    let mut control = at.control();
    control.write(format!("{command}\n"));
    control.reply()
}

/// Durable messages to a node that is not there; their ids, in order.
fn send_many(control: &mut Control, count: usize) -> Vec<String> {
    let mut ids = Vec::new();
    while ids.len() < count {
        let burst = WINDOW.min(count - ids.len());
        for tag in 0..burst {
            let command = json!({
                "command": "send", "directive": "echo:discard", "recipient": "away", "text": "x",
                "detach": true, "wait": true, "tag": tag,
            });
            control.write(format!("{command}\n"));
        }
        let mut accepted = vec![String::new(); burst];
        for _ in 0..burst {
            let reply = control.reply();
            assert_eq!(reply["type"], "accepted", "{reply}");
            let tag = usize::try_from(reply["tag"].as_u64().unwrap()).unwrap();
            accepted[tag] = reply["id"].as_str().unwrap().to_owned();
        }
        ids.append(&mut accepted);
    }
    ids
}

#[test]
fn what_waits_on_the_disk_alone_is_shown_and_dropped() {
    let mesh = Mesh::new();
    let node = mesh.node("node-a").start();
    let ids = send_many(&mut node.control(), MANY);
    let last = ids.last().unwrap();
    let show = ask(&node, &json!({"command": "spool", "id": last}));
    assert_eq!(show["error"]["code"], "busy", "{show}");
    assert_eq!(show["error"]["detail"]["id"], json!(last), "{show}");
    let total = |node: &Daemon| ask(node, &json!({"command": "spool"}))["total"].as_u64();
    assert_eq!(total(&node), Some(MANY as u64));
    for id in [last, &ids[0]] {
        let dropped = ask(&node, &json!({"command": "spool-drop", "id": id}));
        assert!(dropped["error"].is_null(), "{dropped}");
    }
    assert_eq!(total(&node), Some(MANY as u64 - 2));
    let again = ask(&node, &json!({"command": "spool-drop", "id": last}));
    assert_eq!(again["error"]["code"], "not-found", "{again}");
}

#[test]
fn a_cancel_of_what_waits_on_the_disk_alone_is_told_of_after_a_restart() {
    let mesh = Mesh::new();
    let mut node = mesh.node("node-a").start();
    let ids = send_many(&mut node.control(), MANY);
    let last = ids.last().unwrap();
    // What an earlier start may have sent has its end when its recipient was heard.
    node.kill();
    node.restart();
    let cancelled = ask(&node, &json!({"command": "cancel", "id": last}));
    assert_eq!(cancelled["cancelling"], json!(last), "{cancelled}");
    let work = |node: &Daemon| {
        let reply = ask(node, &json!({"command": "works", "id": last}));
        let work = &reply["works"][0];
        (work["state"].clone(), work["cancelling"].clone())
    };
    let before = work(&node);
    assert_eq!(before, (json!("accepted"), json!(true)));
    for _ in 0..2 {
        node.kill();
        node.restart();
        assert_eq!(work(&node), before);
    }
}

/// A payload that the recipient's limit does not leave room for is refused while nothing of it was
/// sent, and so costs neither the link to the client nor the disk anything.
#[test]
fn what_there_is_no_room_for_is_refused_before_its_first_byte() {
    const SIZE: u64 = 32 << 20;
    let mesh = Mesh::new();
    let limit = "[spool]\nmax-bytes-per-recipient = \"16MiB\"";
    let node = mesh.node("node-a").config(limit).start();
    let mut control = node.control();
    let command = json!({
        "command": "send", "directive": "echo:discard", "recipient": "away", "size": SIZE,
        "detach": true,
    });
    control.write(format!("{command}\n"));
    let reply = control.reply();
    assert_eq!(reply["error"]["code"], "busy", "{reply}");
    let text = reply["error"]["message"].as_str().unwrap();
    assert!(text.contains("max-bytes-per-recipient"), "{text}");
    let written = fs::read_dir(node.data_dir().join("spool/payloads")).unwrap();
    assert_eq!(written.count(), 0);
}

/// A client sends messages that may be lost to any node that can do the work, and none is done
/// with the first one.
#[test]
fn messages_to_any_node_wait_for_room_like_those_to_one() {
    let mesh = Mesh::new();
    let plugins = mesh.dir().join("plugins");
    fs::create_dir(&plugins).unwrap();
    let plugin = plugins.join("slow");
    let script = "#!/bin/sh\n\
         echo '{\"type\":\"hello\",\"protocol\":1,\"name\":\"slow\",\"version\":\"1\",\"actions\":{\"do\":{\"payload\":\"text\",\"output\":\"text\"}}}'\n\
         read -r hello || exit 0\n\
         exec sleep 1000\n";
    fs::write(&plugin, script).unwrap();
    fs::set_permissions(&plugin, fs::Permissions::from_mode(0o755)).unwrap();
    let node = mesh
        .node("node-a")
        .config("[plugins]\nallow-unsafe = true\nmax-works = 1")
        .arg("--plugins-dir")
        .arg(plugins.to_str().unwrap())
        .start();
    receptor_tests::wait_for("the plugin to be known", || {
        let reply = ask(&node, &json!({"command": "capabilities"}));
        reply.to_string().contains("slow").then_some(())
    });
    let control = node.control();
    let mut stream = control.stream();
    stream.set_write_timeout(Some(UNREAD)).unwrap();
    let text = "x".repeat(32 << 10);
    let mut taken = 0;
    for tag in 0.. {
        let command = json!({
            "command": "send", "directive": "slow:do", "any": true, "text": text,
            "volatile": true, "tag": tag,
        });
        match stream.write_all(format!("{command}\n").as_bytes()) {
            Ok(()) => taken += text.len(),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}");
                break;
            }
        }
        assert!(taken < TAKEN_MOST, "the daemon takes whatever comes");
    }
}
