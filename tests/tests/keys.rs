//! A key over its whole life, as a script uses it: from the first send to the one after its release.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::process::{Command, Stdio};

use receptor_tests::traffic::{Counter, wait_counter};
use receptor_tests::{Daemon, Mesh, program, wait_for};
use serde_json::Value;

const DONE: i32 = 0;
const FAILED: i32 = 1;
const USAGE: i32 = 2;

fn command(at: &Daemon, args: &[&str]) -> Command {
    let mut command = Command::new(program("receptorctl"));
    command
        .env("RECEPTOR_SOCKET", at.socket_path())
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Exit code, stdout and stderr.
fn run(at: &Daemon, args: &[&str]) -> (i32, String, String) {
    let output = command(at, args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code().unwrap(),
        text(output.stdout),
        text(output.stderr),
    )
}

fn send<'a>(directive: &'a str, payload: &'a str) -> Vec<&'a str> {
    vec![
        "send",
        "--id",
        "nightly",
        "--recipient",
        "b",
        "--directive",
        directive,
        payload,
    ]
}

fn state(at: &Daemon, id: &str) -> Option<Value> {
    let reply = at.control().json(&format!("works {id}"));
    Some(reply["works"].get(0)?["state"].clone())
}

#[test]
fn two_scripts_with_one_key_are_one_message_until_it_is_released() {
    let mesh = Mesh::new();
    let mut a = mesh.node("a").start();
    let (counter, node) = Counter::install(&mesh, mesh.node("b").peer(&a), "counter");
    let _b = node.start();
    wait_counter(&a, "b");
    let add = send("counter:add", r#"{"n":1}"#);
    let both = [add.clone(), add.clone()].map(|args| command(&a, &args).spawn().unwrap());
    let outputs = both.map(|child| child.wait_with_output().unwrap());
    let first = String::from_utf8(outputs[0].stdout.clone()).unwrap();
    for output in &outputs {
        assert_eq!(output.status.code(), Some(DONE), "{output:?}");
        assert_eq!(output.stdout, outputs[0].stdout);
    }
    for killed in [false, true] {
        if killed {
            a.kill();
            a.restart();
            wait_counter(&a, "b");
        }
        assert_eq!(
            run(&a, &add),
            (DONE, first.clone(), String::new()),
            "{killed}"
        );
        let (code, out, err) = run(&a, &send("counter:add", r#"{"n":2}"#));
        assert_eq!((code, &*out), (USAGE, ""), "{err}");
        assert!(
            err.contains("another message was sent with this key"),
            "{err}"
        );
    }
    assert_eq!(counter.runs().into_iter().collect::<Vec<_>>(), [(1, 1)]);
    let (_, list, _) = run(&a, &["--json", "work", "list"]);
    let list: Value = serde_json::from_str(&list).unwrap();
    let id = list["works"][0]["id"].as_str().unwrap();
    assert_eq!(run(&a, &["work", "release", id]).0, DONE);
    // The key is free: what it names now is another message.
    wait_for("the end of the first", || {
        (state(&a, id).is_none()).then_some(())
    });
    assert_eq!(run(&a, &send("counter:add", r#"{"n":2}"#)).0, DONE);
    let runs: Vec<_> = counter.runs().into_iter().collect();
    assert_eq!(runs, [(1, 1), (2, 1)]);
}

#[test]
fn the_key_of_a_released_work_is_free_when_the_work_has_ended() {
    let mesh = Mesh::new();
    let mut a = mesh.node("a").start();
    let (_counter, node) = Counter::install(&mesh, mesh.node("b").peer(&a), "counter");
    let b = node.start();
    wait_counter(&a, "b");
    let mut sleep = send("echo:sleep", r#"{"ms":600000}"#);
    sleep.push("--detach");
    let (code, id, err) = run(&a, &sleep);
    assert_eq!(code, DONE, "{err}");
    let id = id.trim();
    wait_for("it runs", || (state(&b, id)? == "running").then_some(()));
    assert_eq!(run(&a, &["work", "release", id]).0, DONE);
    for killed in [false, true] {
        if killed {
            a.kill();
            a.restart();
            wait_counter(&a, "b");
        }
        for other in [&sleep[..], &send("echo:echo", "1")] {
            let (code, out, err) = run(&a, other);
            assert_eq!((code, &*out), (FAILED, ""), "{killed}: {err}");
            assert!(err.contains("has not ended"), "{err}");
        }
    }
    assert_eq!(run(&a, &["work", "cancel", id]).0, DONE);
    let echo = send("echo:echo", "1");
    wait_for("the key is free", || {
        let (code, out, _) = run(&a, &echo);
        (code == DONE && out == "1\n").then_some(())
    });
}
