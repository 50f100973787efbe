//! Messages between real daemons with certificates: nodes on their way have nothing of them but what they need to
//! pass them on, in no file, on no link, and not in their memory; and what waited opens after restarts of everybody.
//!
//! The links here are plain, so that what is heard on them is what a node on the way has.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use receptor_tests::relay::Relay;
use receptor_tests::{Daemon, Mesh, Node, program, wait_for};
use serde_json::{Value, json};

/// In payloads, and in responses.
const REQUEST: &str = "canary-that-was-asked";
const RESPONSE: &str = "canary-that-was-answered";

/// Makes an authority and certificates with the commands that an administrator uses.
fn certificates(mesh: &Mesh, nodes: &[&str]) {
    let receptorctl = |line: &str| {
        let output = Command::new(program("receptorctl"))
            .args(line.split(' '))
            .current_dir(mesh.dir())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{line}\n{said}");
    };
    receptorctl("cert init-ca --out tls");
    for node in nodes {
        receptorctl(&format!("cert issue {node} --ca tls --out tls"));
    }
}

fn node(mesh: &Mesh, name: &str) -> Node {
    let tls = mesh.dir().join("tls").display().to_string();
    mesh.node(name).config(&format!(
        "[tls]\ncertificate = \"{tls}/{name}.pem\"\nkey = \"{tls}/{name}.key\"\nca = \"{tls}/ca.pem\"\n\
         [link]\nhold-time = \"1s\"\n[shutdown]\ndrain-timeout = \"1s\""
    ))
}

/// A plugin that puts its answer together from parts, so that it is nowhere before it is given.
fn with_plugin(mesh: &Mesh, node: Node) -> Node {
    let dir = mesh.dir().join("plugins");
    fs::create_dir(&dir).unwrap();
    let path = dir.join("secret");
    let script = "#!/bin/sh\n\
        echo '{\"type\":\"hello\",\"protocol\":1,\"name\":\"secret\",\"version\":\"1\",\"actions\":{\"tell\":{\"payload\":\"json\",\"output\":\"text\"}}}'\n\
        read -r hello || exit 0\n\
        read -r job || exit 0\n\
        for n in 1 2 3; do printf 'canary-that-%s-answered\\n' was; done\n";
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    node.arg("--plugins-dir").arg(&dir.display().to_string())
}

fn wait_plugin(daemon: &Daemon, node: &str) {
    let mut control = daemon.control();
    wait_for("the plugin", || {
        let nodes = control.json("capabilities");
        let shown = nodes.to_string();
        (shown.contains(node) && shown.contains("secret")).then_some(())
    });
}

/// controller – router – worker, over plain wires that can be heard.
struct Line {
    controller: Daemon,
    router: Daemon,
    worker: Daemon,
    wires: [Relay; 2],
}

fn line(mesh: &Mesh, security: &str) -> Line {
    certificates(mesh, &["controller", "router", "worker"]);
    let router = node(mesh, "router").config(security).start();
    let wires = [(); 2].map(|()| Relay::to(&router.address()));
    for wire in &wires {
        wire.listen_in();
    }
    let controller = node(mesh, "controller").config(security);
    let controller = controller.peer_url(&wires[0].url()).start();
    let worker = node(mesh, "worker").config(security);
    let worker = with_plugin(mesh, worker).peer_url(&wires[1].url()).start();
    controller.wait_reachable(["router", "worker"]);
    worker.wait_reachable(["controller"]);
    wait_plugin(&controller, "worker");
    Line {
        controller,
        router,
        worker,
        wires,
    }
}

fn send(daemon: &Daemon, more: &Value) -> Vec<Value> {
    let mut control = daemon.control();
    let mut command = json!({
        "command": "send", "directive": "secret:tell", "recipient": "worker",
        "payload": {"text": REQUEST},
    });
    for (key, value) in more.as_object().unwrap() {
        command[key] = value.clone();
    }
    control.write(format!("{command}\n"));
    let mut replies = Vec::new();
    loop {
        let reply = control.reply();
        let last = reply["eof"] == true || command["detach"] == true;
        replies.push(reply);
        if last {
            return replies;
        }
    }
}

fn told(replies: &[Value]) -> usize {
    let has = |reply: &&Value| reply.to_string().contains(RESPONSE);
    replies.iter().filter(has).count()
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes
        .windows(text.len())
        .any(|window| window == text.as_bytes())
}

/// Files below a directory that hold a canary.
fn found_in(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(found_in(&path));
        } else if let Ok(bytes) = fs::read(&path)
            && (holds(&bytes, REQUEST) || holds(&bytes, RESPONSE))
        {
            found.push(path.display().to_string());
        }
    }
    found
}

/// Whether a canary is in what a process can write to; `None`: it cannot be looked at.
fn is_in_memory(daemon: &Daemon) -> Option<bool> {
    let maps = fs::read_to_string(format!("/proc/{}/maps", daemon.pid())).ok()?;
    let mut memory = fs::File::open(format!("/proc/{}/mem", daemon.pid())).ok()?;
    let mut looked_at = 0;
    let mut found = false;
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let (range, access) = (words.next()?, words.next()?);
        let (from, to) = range.split_once('-')?;
        let [from, to] = [from, to].map(|text| u64::from_str_radix(text, 16).unwrap_or(0));
        if !access.starts_with("rw") || to - from > 1 << 28 {
            continue;
        }
        let mut bytes = vec![0; usize::try_from(to - from).ok()?];
        if memory.seek(SeekFrom::Start(from)).is_ok() && memory.read_exact(&mut bytes).is_ok() {
            looked_at += 1;
            found |= holds(&bytes, REQUEST) || holds(&bytes, RESPONSE);
        }
    }
    (looked_at > 0).then_some(found)
}

#[test]
fn nodes_on_the_way_have_nothing_of_a_message() {
    let mesh = Mesh::new();
    let line = line(&mesh, "");
    let status = line.controller.control().json("status");
    assert_eq!(status["receptor"]["sealed"], true);
    for volatile in [false, true] {
        let replies = send(&line.controller, &json!({"volatile": volatile}));
        assert_eq!(told(&replies), 3, "{replies:?}");
    }
    for wire in &line.wires {
        let heard = wire.heard();
        assert!(heard.iter().all(|way| way.len() > 2000));
        for text in [REQUEST, RESPONSE] {
            assert!(!heard.iter().any(|way| holds(way, text)), "{text}");
        }
    }
    assert_eq!(found_in(&line.router.data_dir()), Vec::<String>::new());
    assert_ne!(is_in_memory(&line.router), Some(true));
    // They are where they belong, and can be found.
    assert_ne!(is_in_memory(&line.worker), Some(false));
    let counters = &line.router.control().json("status")["receptor"]["counters"];
    assert_eq!(counters["unproved"], 0, "{counters}");
}

#[test]
fn what_is_not_sealed_by_choice_can_be_read_and_is_proved() {
    let mesh = Mesh::new();
    let line = line(&mesh, "[security]\nseal = false");
    let status = line.controller.control().json("status");
    assert_eq!(status["receptor"]["sealed"], false);
    let replies = send(&line.controller, &json!({}));
    assert_eq!(told(&replies), 3, "{replies:?}");
    let heard = line.wires[0].heard();
    assert!(holds(&heard[0], REQUEST) && holds(&heard[1], RESPONSE));
}

#[test]
fn what_waited_opens_after_restarts_of_everybody() {
    let mesh = Mesh::new();
    let mut line = line(&mesh, "");
    line.worker.kill();
    line.controller.wait_unreachable("worker");
    let replies = send(&line.controller, &json!({"detach": true}));
    let id = replies[0]["id"].as_str().unwrap().to_owned();
    wait_for("custody at the router", || {
        let spool = &line.router.control().json("status")["receptor"]["spool"];
        (spool["in_custody"] == 1).then_some(())
    });
    assert_eq!(found_in(&line.router.data_dir()), Vec::<String>::new());
    // Its sender is away when it is delivered, and nobody has heard of it in this life.
    line.controller.kill();
    line.router.kill();
    line.router.restart();
    for wire in &line.wires {
        wire.leads_to(&line.router.address());
    }
    line.worker.restart();
    wait_for("the end of the custody", || {
        let spool = &line.router.control().json("status")["receptor"]["spool"];
        let requests = line.router.control().json(r#"{"command":"spool"}"#);
        let waits = requests["messages"].as_array()?.iter();
        let request = |message: &&Value| message["kind"] == "request";
        (waits.filter(request).count() == 0 && spool["in_custody"].is_u64()).then_some(())
    });
    line.controller.restart();
    let mut control = line.controller.control();
    let work = wait_for("the end of the work", || {
        let work = control.json(&format!(r#"{{"command":"works","id":"{id}"}}"#));
        let shown = work.to_string();
        shown.contains("succeeded").then_some(work)
    });
    assert!(!work.to_string().contains("interrupted"), "{work}");
    assert_eq!(found_in(&line.router.data_dir()), Vec::<String>::new());
}

#[test]
fn a_message_waits_at_its_sender_until_its_recipient_is_known() {
    let mesh = Mesh::new();
    certificates(&mesh, &["controller", "worker"]);
    let mut controller = node(&mesh, "controller").start();
    let worker = with_plugin(&mesh, node(&mesh, "worker")).peer(&controller);
    let mut worker = worker.start();
    // What it states of itself: a neighbor can be reached before, and is nobody when it goes again.
    wait_plugin(&controller, "worker");
    worker.kill();
    controller.wait_unreachable("worker");
    let replies = send(&controller, &json!({"detach": true}));
    assert_eq!(replies[0]["type"], "accepted", "{replies:?}");
    let id = replies[0]["id"].as_str().unwrap().to_owned();
    // After a restart it knows nobody.
    controller.kill();
    controller.restart();
    worker.restart();
    let mut control = controller.control();
    wait_for("the end of the work", || {
        let work = control.json(&format!(r#"{{"command":"works","id":"{id}"}}"#));
        work.to_string().contains("succeeded").then_some(())
    });
}

#[test]
fn keys_that_cannot_be_read_are_told_and_not_replaced() {
    let mesh = Mesh::new();
    certificates(&mesh, &["controller"]);
    let mut controller = node(&mesh, "controller").start();
    let path = controller.data_dir().join("seal-keys");
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let keys = fs::read(&path).unwrap();
    controller.stop();
    controller.restart();
    assert_eq!(fs::read(&path).unwrap(), keys);
    controller.stop();
    fs::write(&path, "nonsense").unwrap();
    let output = Command::new(program("receptord"))
        .args(["--node-id", "controller", "--config"])
        .arg(controller.config_path())
        .arg("-d")
        .arg(controller.data_dir())
        .arg("--socket-path")
        .arg(mesh.dir().join("socket"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{said}");
    assert!(said.contains("seal-keys"), "{said}");
    assert_eq!(fs::read(&path).unwrap(), b"nonsense");
}
