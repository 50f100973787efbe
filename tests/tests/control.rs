//! The control socket of one daemon: what every client may rely on, and what none can do.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::Write as _;

use receptor_tests::{Control, Mesh, wait_for};
use serde_json::json;

#[test]
fn commands_in_words_and_json_share_a_connection() {
    let mesh = Mesh::new();
    let a = mesh.node("a").start();
    let mut control = a.control();
    assert_eq!(control.node, "a");
    control.write("\r\n\n  \nSTATUS\r\n");
    let status = control.reply();
    assert_eq!(status["NodeID"], "a");
    for key in [
        "Version",
        "SystemCPUCount",
        "SystemMemoryMiB",
        "Connections",
        "RoutingTable",
        "Advertisements",
        "KnownConnectionCosts",
    ] {
        assert!(!status[key].is_null(), "{key}");
    }
    let some = r#"{"command":"status","requested_fields":["Version","Nonsense"]}"#;
    let some = control.json(some);
    assert_eq!(some.as_object().unwrap().len(), 1, "{some}");
    let links = control.json(r#"{"command":"links","tag":"x"}"#);
    assert_eq!(links, json!({"tag": "x", "links": []}));
    assert_eq!(control.json("log-level")["level"], "info");
    assert_eq!(control.json("log-level debug")["level"], "debug");
    let nothing = control.json("log-level loud");
    assert_eq!(nothing["error"]["code"], "invalid-request");
    // What stands at the end without a newline counts, and half a close is no hang-up.
    control.write("nodes");
    control.half_close();
    assert!(control.reply()["nodes"].is_array());
    control.expect_closed();
}

#[test]
fn every_bad_line_gets_exactly_one_error() {
    let mesh = Mesh::new();
    let a = mesh.node("a").start();
    let mut control = a.control();
    for line in [
        &b"{"[..],
        b"{}",
        b"{\"command\":7}",
        b"{\"command\":\"status\",\"requested_fields\":\"Version\"}",
        b"{\"command\":\"status\",\"requested_fields\":[1]}",
        b"{\"command\":\"ping\",\"target\":[]}",
        b"{\"command\":\"no\xff\"}",
        b"\xff\xfe\xfd",
        b"nonsense",
        b"status now",
        b"ping",
        b"ping a b",
        b"work list",
        b"connect a control",
    ] {
        control.write(line);
        control.write("\n");
        let answer = control.line();
        assert!(answer.starts_with("ERROR: "), "{line:?}: {answer}");
    }
    for line in [
        r#"{"command":"nonsense","tag":1}"#,
        r#"{"command":"cancel","id":"x"}"#,
        r#"{"command":"send","directive":"a","recipient":"b"}"#,
        r#"{"command":"send","directive":"a:b"}"#,
        r#"{"command":"send","directive":"a:b","recipient":"../x"}"#,
        "send a:b c",
        "results x",
        "cancel 0123456789abcdef0123456789abcdef",
        "plugin-restart nonsense",
    ] {
        let answer = control.json(line);
        assert!(answer["error"]["code"].is_string(), "{line}: {answer}");
    }
    assert_eq!(control.json("status")["NodeID"], "a");
}

#[test]
fn a_line_without_end_closes_its_client_and_nobody_else() {
    let mesh = Mesh::new();
    let a = mesh.node("a").start();
    let mut control = a.control();
    let mut sender = control.stream().try_clone().unwrap();
    let flood = std::thread::spawn(move || {
        let line = vec![b'x'; 64 * 1024];
        // Until the daemon closes the connection.
        while sender.write_all(&line).is_ok() {}
    });
    let answer = control.line();
    assert!(answer.starts_with("ERROR: a line is longer"), "{answer}");
    flood.join().unwrap();
    assert_eq!(a.control().json("status")["NodeID"], "a");
}

#[test]
fn random_bytes_do_no_harm() {
    let mesh = Mesh::new();
    let a = mesh.node("a").start();
    // A fixed sequence that looks like noise: what fails once fails again.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut noise = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    for _ in 0..50 {
        let mut bytes = Vec::new();
        for _ in 0..200 {
            bytes.extend(noise());
        }
        let control = a.control();
        let mut stream = control.stream();
        // The daemon may close first.
        let _ = stream.write_all(&bytes);
        let mut link = std::net::TcpStream::connect(a.address()).unwrap();
        let _ = link.write_all(&bytes);
    }
    assert_eq!(a.control().json("status")["NodeID"], "a");
    let count = || a.control().json("status")["receptor"]["clients"].as_u64();
    wait_for("the clients to be gone", || {
        (count() == Some(1)).then_some(())
    });
}

#[test]
fn a_refused_payload_is_not_taken_for_commands() {
    let mesh = Mesh::new();
    let a = mesh.node("a").start();
    let mut control = a.control();
    control.write(
        "{\"command\":\"send\",\"directive\":\"a:b\",\"recipient\":\"nobody\",\"size\":14}\nstatus\nstatus\nnodes\n",
    );
    let refused = control.reply();
    assert_eq!(refused["error"]["code"], "no-such-node", "{refused}");
    assert!(control.reply()["nodes"].is_array());
    control.write(
        "{\"command\":\"send\",\"directive\":\"no\",\"recipient\":\"b\",\"size\":7}\nstatus\nnodes\n",
    );
    let refused = control.reply();
    assert_eq!(refused["error"]["code"], "invalid-request", "{refused}");
    assert!(control.reply()["nodes"].is_array());
    // A payload that ends early is an error, and the end of the session.
    control
        .write("{\"command\":\"send\",\"directive\":\"a:b\",\"recipient\":\"a\",\"size\":9}\nabc");
    control.half_close();
    let refused = control.reply();
    assert_eq!(refused["error"]["code"], "invalid-request", "{refused}");
    control.expect_closed();
    assert_eq!(fs_count(&a.data_dir().join("spool/payloads")), 0);
}

fn fs_count(dir: &std::path::Path) -> usize {
    std::fs::read_dir(dir).unwrap().count()
}

#[test]
fn clients_are_limited_and_a_silent_one_is_in_nobodys_way() {
    let mesh = Mesh::new();
    let a = mesh
        .node("a")
        .config("[control]\nmax-clients = 20\nmax-clients-per-user = 20")
        .start();
    // One that asks much and reads nothing.
    let silent = a.control();
    silent.stream().set_nonblocking(true).unwrap();
    let mut stream = silent.stream();
    let commands = b"status\n".repeat(1000);
    let mut asked = 0;
    while let Ok(count @ 1..) = stream.write(&commands) {
        asked += count;
        // It may take all of it: then it holds it back in bounded memory.
        if asked > 64 << 20 {
            panic!("the daemon reads without end for a client that does not");
        }
        std::thread::yield_now();
    }
    let mut held: Vec<_> = (0..19).map(|_| a.control()).collect();
    for control in &mut held {
        assert_eq!(control.json("status")["NodeID"], "a");
    }
    let error = Control::connect(a.socket_path()).unwrap_err().to_string();
    assert!(
        error.contains("too many clients (control.max-clients"),
        "{error}"
    );
    a.wait_log("too many clients");
    drop(held);
    wait_for("a free place", || Control::connect(a.socket_path()).ok());
}

#[test]
fn a_reload_changes_what_can_change() {
    let mesh = Mesh::new();
    let a = mesh
        .node("a")
        .config("[capabilities]\nsite = \"berlin\"")
        .start();
    let mut control = a.control();
    assert_eq!(control.json("reload")["Success"], true);
    std::fs::write(a.config_path(), "[capability]\nsite = \"bonn\"\n").unwrap();
    let refused = control.json("reload");
    assert_eq!(refused["Success"], false);
    assert!(
        refused["Error"].as_str().unwrap().contains("capability"),
        "{refused}"
    );
    std::fs::write(
        a.config_path(),
        "router = false\n[capabilities]\nsite = \"bonn\"\n[[listen]]\nurl = \"rnp://127.0.0.1:0\"\n",
    )
    .unwrap();
    let done = control.json("reload");
    assert_eq!(done["Success"], true, "{done}");
    assert!(
        done["needs_restart"]
            .as_array()
            .unwrap()
            .contains(&json!("router")),
        "{done}"
    );
    let status = control.json("status");
    assert_eq!(status["receptor"]["router"], true);
}
