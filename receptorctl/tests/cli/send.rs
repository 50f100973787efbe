//! `send` against a scripted daemon: payloads, responses, exit codes, Ctrl-C, time limits.

use std::io::Read as _;
use std::sync::mpsc::{Receiver, sync_channel};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::fake::{Client, Daemon, ID, PATIENCE};

const SEND: [&str; 5] = [
    "send",
    "--directive",
    "runner:execute",
    "--recipient",
    "node-b",
];

fn accepted() -> String {
    format!("{{\"type\":\"accepted\",\"id\":\"{ID}\",\"recipient\":\"node-b\"}}\n")
}

/// A response with these further keys.
fn response(serial: u64, keys: &str) -> String {
    format!(
        "{{\"type\":\"response\",\"id\":\"{ID}\",\"from\":\"node-b\",\"serial\":{serial}{keys}}}\n"
    )
}

/// A daemon that checks the command and answers with these lines.
fn replying(check: impl FnOnce(Value) + Send + 'static, lines: Vec<String>) -> Daemon {
    Daemon::new(move |clients| {
        let mut client = clients.next();
        check(client.command());
        for line in lines {
            client.say(&line);
        }
        client.gone();
    })
}

fn well(keys: &str) -> Vec<String> {
    vec![
        accepted(),
        response(1, keys),
        response(2, ",\"eof\":true,\"code\":0"),
    ]
}

fn with<'a>(more: &[&'a str]) -> Vec<&'a str> {
    SEND.iter().chain(more).copied().collect()
}

#[test]
fn the_ancestors_command_runs_as_it_stands() {
    let daemon = replying(
        |command| {
            assert_eq!(
                command,
                json!({
                    "command": "send",
                    "directive": "runner:execute",
                    "recipient": "node-b",
                    "payload": {"module": "ping", "inventory": "localhost", "extravars": {"ansible_connection": "local"}, "host_pattern": "localhost"},
                })
            );
        },
        well(",\"data\":{\"ping\":\"pong\"}"),
    );
    let socket = format!("--socket-path={}", daemon.socket().display());
    daemon
        .run([
            "send",
            &socket,
            "--directive=runner:execute",
            "--recipient=node-b",
            r#"{"module": "ping", "inventory": "localhost", "extravars": {"ansible_connection": "local"}, "host_pattern": "localhost"}"#,
        ])
        .expect(0, "{\"ping\":\"pong\"}\n", "");
}

#[test]
fn responses_come_out_as_they_are() {
    let daemon = Daemon::new(|clients| {
        let mut client = clients.next();
        client.command();
        client.say(&accepted());
        client.say(&response(1, ",\"data\":{\"a\": [1, 2.50]}"));
        client.say(&response(2, ",\"text\":\"plain\\ntext\""));
        client.say(&response(3, ",\"text\":\"ended\\n\""));
        client.say(&response(4, ",\"size\":4,\"content\":\"bytes\""));
        client.raw(b"\xff\x00\n{");
        client.say(&response(5, ",\"size\":7,\"content\":\"json\""));
        client.raw(b"[1,2,3]");
        client.say(&response(6, ""));
        client.say("{\"type\":\"of-a-newer-daemon\",\"x\":1}\n");
        client.say(&response(
            7,
            ",\"size\":4,\"content\":\"text\",\"eof\":true,\"code\":0",
        ));
        client.raw(b"last");
        client.gone();
    });
    let answer = daemon.run(SEND);
    assert_eq!(
        String::from_utf8_lossy(&answer.stdout),
        "{\"a\": [1, 2.50]}\nplain\ntext\nended\n\u{fffd}\0\n{[1,2,3]\nlast\n"
    );
    assert_eq!((answer.code, &*answer.stderr), (Some(0), ""));
}

#[test]
fn json_prints_every_line_and_bytes_in_base64() {
    let daemon = Daemon::new(|clients| {
        let mut client = clients.next();
        client.command();
        client.say(&accepted());
        client.say(&response(1, ",\"data\":1.50"));
        client.say(&response(
            2,
            ",\"size\":5,\"content\":\"bytes\",\"name\":\"x\"",
        ));
        client.raw(b"\xff\x00\n{}");
        client.say("{\"type\":\"of-a-newer-daemon\",\"x\":1}\n");
        client.say(&response(3, ",\"size\":0,\"eof\":true,\"code\":0"));
        client.gone();
    });
    let answer = daemon.run(with(&["--json"]));
    insta::assert_snapshot!("send_json", answer.shown());
    for line in answer.stdout().lines() {
        serde_json::from_str::<Value>(line).unwrap();
    }
}

#[test]
fn a_large_response_is_streamed_in_both_forms() {
    let payload: Vec<u8> = (0..3_000_001_u32).map(|n| n.to_le_bytes()[1]).collect();
    for json in [false, true] {
        let sent = payload.clone();
        let daemon = Daemon::new(move |clients| {
            let mut client = clients.next();
            client.command();
            client.say(&accepted());
            client.say(&response(
                1,
                &format!(",\"size\":{},\"eof\":true,\"code\":0", sent.len()),
            ));
            client.raw(&sent);
            client.gone();
        });
        let answer = daemon.run(with(if json { &["--json"] } else { &[] }));
        assert_eq!(answer.code, Some(0));
        if json {
            let last = answer.stdout().lines().last().unwrap();
            let value: Value = serde_json::from_str(last).unwrap();
            use base64::Engine as _;
            let bytes = base64::engine::general_purpose::STANDARD
                .decode(value["base64"].as_str().unwrap())
                .unwrap();
            assert!(bytes == payload);
        } else {
            assert!(answer.stdout == payload);
        }
    }
}

#[test]
fn payloads_by_argument() {
    for (argument, key, value) in [
        ("{\"a\":\n 1}", "payload", json!({"a": 1})),
        ("-5", "payload", json!(-5)),
        ("\"@x\"", "payload", json!("@x")),
        ("plain text", "text", json!("plain text")),
        ("{broken", "text", json!("{broken")),
        ("", "text", json!("")),
    ] {
        let daemon = replying(
            move |command| {
                assert_eq!(command[key], value, "{argument}");
                let all = ["payload", "text", "size", "stream"];
                let given = all.iter().filter(|k| !command[**k].is_null()).count();
                assert_eq!(given, 1, "{command}");
            },
            well(""),
        );
        daemon.run(with(&[argument])).expect(0, "", "");
    }
}

#[test]
fn no_payload_is_no_payload() {
    let daemon = replying(
        |command| {
            let keys: Vec<_> = command.as_object().unwrap().keys().cloned().collect();
            assert_eq!(keys, ["command", "directive", "recipient"]);
        },
        well(""),
    );
    daemon.run(SEND).expect(0, "", "");
}

#[test]
fn options_reach_the_daemon() {
    let daemon = replying(
        |command| {
            assert_eq!(
                command,
                json!({
                    "command": "send", "directive": "a:b", "any": true, "where": {"site": "berlin", "k": "a=b"},
                    "volatile": true, "expires_ms": 90_000,
                })
            );
        },
        well(""),
    );
    daemon
        .run([
            "send",
            "--directive",
            "a:b",
            "--any",
            "--where",
            "site=berlin",
            "--where",
            "k=a=b",
            "--volatile",
            "--expires",
            "90s",
        ])
        .expect(0, "", "");
}

#[test]
fn a_message_may_wait_for_a_node_to_come() {
    let daemon = replying(|command| assert_eq!(command["wait"], true), well(""));
    daemon.run(with(&["--wait"])).expect(0, "", "");
}

#[test]
fn a_file_is_counted_and_streamed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("payload");
    let payload: Vec<u8> = (0..5_000_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    std::fs::write(&path, &payload).unwrap();
    let daemon = Daemon::new(move |clients| {
        let mut client = clients.next();
        assert_eq!(client.command()["size"], 5_000_000);
        assert!(client.read(5_000_000) == payload);
        client.say(&accepted());
        client.say(&response(1, ",\"eof\":true,\"code\":0"));
        client.gone();
    });
    let argument = format!("@{}", path.display());
    daemon.run(with(&[&argument])).expect(0, "", "");
}

#[test]
fn an_empty_file_is_an_empty_payload() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let daemon = replying(|command| assert_eq!(command["size"], 0), well(""));
    let argument = format!("@{}", file.path().display());
    daemon.run(with(&[&argument])).expect(0, "", "");
}

#[test]
fn a_missing_file_is_a_usage_error() {
    let daemon = Daemon::new(|_| {});
    daemon.run(with(&["@/nonexistent/file"])).expect(
        2,
        "",
        "receptorctl: cannot read /nonexistent/file: No such file or directory (os error 2)\n",
    );
}

#[test]
fn stdin_is_streamed_until_its_end() {
    let payload: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    let expected = payload.clone();
    let daemon = Daemon::new(move |clients| {
        let mut client = clients.next();
        let command = client.command();
        assert_eq!(command["stream"], true);
        assert!(command["size"].is_null());
        assert!(client.read_to_end() == expected);
        client.say(&accepted());
        client.say(&response(1, ",\"text\":\"done\",\"eof\":true,\"code\":0"));
    });
    daemon
        .start(with(&["-"]), &payload)
        .end()
        .expect(0, "done\n", "");
}

#[test]
fn responses_are_seen_while_stdin_is_still_open() {
    let daemon = Daemon::new(|clients| {
        let mut client = clients.next();
        client.command();
        client.say(&accepted());
        client.say(&response(1, ",\"text\":\"early\""));
        client.read_to_end();
        client.say(&response(2, ",\"eof\":true,\"code\":0"));
    });
    let mut running = daemon.start_open(with(&["-"]));
    let mut early = [0; 6];
    running
        .child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut early)
        .unwrap();
    assert_eq!(&early, b"early\n");
    drop(running.child.stdin.take());
    running.end().expect(0, "", "");
}

#[test]
fn a_refusal_in_the_middle_of_an_upload_is_heard() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(50_000_000).unwrap();
    let daemon = Daemon::new(|clients| {
        let mut client = clients.next();
        client.command();
        client.read(100_000);
        client.say("{\"type\":\"error\",\"error\":{\"code\":\"payload-too-large\",\"message\":\"at most 1 MiB\"},\"eof\":true}\n");
    });
    let argument = format!("@{}", file.path().display());
    daemon.run(with(&[&argument])).expect(
        1,
        "",
        "receptorctl: at most 1 MiB (payload-too-large)\n",
    );
}

#[test]
fn detach_prints_the_id_alone() {
    let daemon = replying(
        |command| assert_eq!(command["detach"], true),
        vec![accepted().replace('}', ",\"eof\":true}")],
    );
    daemon
        .run(with(&["--detach"]))
        .expect(0, &format!("{ID}\n"), "");
}

#[test]
fn a_key_goes_along() {
    let daemon = replying(|command| assert_eq!(command["key"], "nightly"), well(""));
    daemon.run(with(&["--id", "nightly"])).expect(0, "", "");
}

#[test]
fn results_come_out_as_those_of_send_do() {
    let daemon = replying(
        |command| {
            assert_eq!(command, json!({"command": "results", "id": "01234567"}));
        },
        well(",\"data\":[1]")[1..].to_vec(),
    );
    daemon
        .run(["work", "results", "--follow", "01234567"])
        .expect(0, "[1]\n", "");

    let pending =
        format!("{{\"type\":\"pending\",\"id\":\"{ID}\",\"state\":\"running\",\"eof\":true}}\n");
    let daemon = replying(
        |command| assert_eq!(command["follow"], false),
        vec![response(1, ",\"text\":\"so far\""), pending],
    );
    daemon.run(["work", "results", ID]).expect(
        75,
        "so far\n",
        &format!("receptorctl: {ID} has not ended; it is running\n"),
    );
}

#[test]
fn the_works_end_is_the_exit_code() {
    let cases = [
        (
            ",\"eof\":true,\"code\":0,\"data\":{\"status\":\"successful\"}",
            0,
            "{\"status\":\"successful\"}\n",
            "",
        ),
        (
            ",\"eof\":true,\"code\":1,\"data\":{\"code\":2,\"result\":\"bad\"}",
            1,
            "{\"code\":2,\"result\":\"bad\"}\n",
            "receptorctl: node-b: the work ended with code 2\n",
        ),
        (
            ",\"eof\":true,\"code\":1,\"data\":{\"code\":2,\"result\":{\"message\":\"web1: disk is full\\nweb2: \\u001b[2Jgone\"}}",
            1,
            "{\"code\":2,\"result\":{\"message\":\"web1: disk is full\\nweb2: \\u001b[2Jgone\"}}\n",
            "receptorctl: node-b: the work ended with code 2\nreceptorctl:   web1: disk is full\nreceptorctl:   web2: \\u{1b}[2Jgone\n",
        ),
        (
            ",\"eof\":true,\"code\":1",
            1,
            "",
            "receptorctl: node-b: the work ended with code 1\n",
        ),
        (
            ",\"eof\":true,\"code\":1,\"error\":{\"code\":\"missing-dependency\",\"message\":\"ansible-runner was not found in PATH\"}",
            1,
            "",
            "receptorctl: node-b: ansible-runner was not found in PATH (missing-dependency)\n",
        ),
        (
            ",\"eof\":true,\"code\":1,\"error\":{\"code\":\"permission-denied\",\"message\":\"controller may not use runner:execute\"}",
            77,
            "",
            "receptorctl: node-b: controller may not use runner:execute (permission-denied)\n",
        ),
        (
            ",\"eof\":true,\"code\":1,\"error\":{\"code\":\"internal\",\"message\":\"the plugin lost its head\"}",
            1,
            "",
            "receptorctl: node-b: the plugin lost its head (internal)\n",
        ),
    ];
    for (keys, code, stdout, stderr) in cases {
        let daemon = replying(|_| {}, vec![accepted(), response(1, keys)]);
        daemon.run(SEND).expect(code, stdout, stderr);
    }
}

#[test]
fn a_refused_message_is_the_daemons_no() {
    for (code, exit) in [
        ("no-match", 1),
        ("permission-denied", 77),
        ("invalid-request", 2),
        ("internal", 70),
        ("x-new", 1),
    ] {
        let line = format!(
            "{{\"type\":\"error\",\"error\":{{\"code\":\"{code}\",\"message\":\"no\"}},\"eof\":true}}\n"
        );
        let daemon = replying(|_| {}, vec![line]);
        daemon
            .run(SEND)
            .expect(exit, "", &format!("receptorctl: no ({code})\n"));
    }
}

#[test]
fn a_daemon_that_dies_after_accepted_leaves_the_id() {
    let daemon = Daemon::new(|clients| {
        let mut client = clients.next();
        client.command();
        client.say(&accepted());
        client.say(&response(1, ",\"data\":1"));
    });
    daemon.run(SEND).expect(
        75,
        "1\n",
        &format!("receptorctl: the daemon closed the connection (SOCKET)\nreceptorctl: the message is still accepted: {ID}\n"),
    );
}

#[test]
fn a_daemon_that_dies_in_a_payload_leaves_the_id() {
    let daemon = Daemon::new(|clients| {
        let mut client = clients.next();
        client.command();
        client.say(&accepted());
        client.say(&response(1, ",\"size\":10"));
        client.raw(b"half");
    });
    let answer = daemon.run(SEND);
    assert_eq!(
        (answer.code, answer.stdout()),
        (Some(75), "half"),
        "{answer:?}"
    );
    assert!(answer.stderr.contains(ID));
}

#[test]
fn a_daemon_that_dies_before_accepted_is_not_reachable() {
    let daemon = Daemon::new(|clients| {
        clients.next().command();
    });
    daemon.run(SEND).expect(
        69,
        "",
        "receptorctl: the daemon closed the connection (SOCKET)\n",
    );
}

#[test]
fn a_timeout_leaves_an_accepted_message_and_says_so() {
    let daemon = replying(|_| {}, vec![accepted()]);
    daemon.run(with(&["--timeout", "200ms"])).expect(
        75,
        "",
        &format!("receptorctl: timed out after 200ms; the message is still accepted: {ID}\n"),
    );
}

#[test]
fn a_timeout_before_accepted_is_the_daemons_fault() {
    let daemon = replying(|_| {}, vec![]);
    daemon.run(with(&["--timeout", "200ms"])).expect(
        69,
        "",
        "receptorctl: timed out after 200ms; the message was not accepted yet\n",
    );
}

/// A daemon whose work ends only once it is cancelled, and a sign that it runs.
fn cancellable(end: fn(&mut Client)) -> (Daemon, Receiver<()>) {
    let (told, started) = sync_channel(1);
    let daemon = Daemon::new(move |clients| {
        let mut client = clients.next();
        client.command();
        client.say(&accepted());
        client.say(&response(1, ",\"text\":\"begun\""));
        told.send(()).unwrap();
        let mut second = clients.next();
        assert_eq!(second.command(), json!({"command": "cancel", "id": ID}));
        second.say(&format!("{{\"cancelling\":\"{ID}\"}}\n"));
        second.gone();
        end(&mut client);
        client.gone();
    });
    (daemon, started)
}

#[test]
fn ctrl_c_cancels_and_waits_for_the_end() {
    let (daemon, started) = cancellable(|client| {
        client.say(&response(2, ",\"eof\":true,\"code\":1,\"error\":{\"code\":\"cancelled\",\"message\":\"cancelled by its sender\"}"));
    });
    let mut running = daemon.start(SEND, b"");
    started.recv_timeout(PATIENCE).unwrap();
    // What is on stdout proves that the id has been read.
    let mut begun = [0; 6];
    running
        .child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut begun)
        .unwrap();
    running.signal(Signal::SIGINT);
    running.end().expect(
        130,
        "",
        &format!("cancelling {ID}; Ctrl-C again leaves it to itself\nreceptorctl: node-b: cancelled by its sender (cancelled)\n"),
    );
}

#[test]
fn a_second_ctrl_c_leaves_at_once() {
    let (daemon, started) = cancellable(|_| {});
    let mut running = daemon.start(SEND, b"");
    started.recv_timeout(PATIENCE).unwrap();
    let mut begun = [0; 6];
    running
        .child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut begun)
        .unwrap();
    running.signal(Signal::SIGINT);
    let mut note = String::new();
    let mut stderr = std::io::BufReader::new(running.child.stderr.take().unwrap());
    std::io::BufRead::read_line(&mut stderr, &mut note).unwrap();
    assert!(note.starts_with("cancelling"), "{note}");
    running.signal(Signal::SIGINT);
    assert_eq!(running.status().code(), Some(130));
    daemon.finish();
}

#[test]
fn ctrl_c_before_accepted_sends_nothing_more() {
    let (told, started) = sync_channel(1);
    let daemon = Daemon::new(move |clients| {
        let mut client = clients.next();
        client.command();
        // The payload follows the watch over Ctrl-C.
        client.read(1);
        told.send(()).unwrap();
        client.read_to_end();
    });
    let mut running = daemon.start_open(with(&["-"]));
    std::io::Write::write_all(running.child.stdin.as_mut().unwrap(), b"x").unwrap();
    started.recv_timeout(PATIENCE).unwrap();
    running.signal(Signal::SIGINT);
    running.end().expect(
        130,
        "",
        "receptorctl: interrupted before the message was accepted\n",
    );
}

#[test]
fn a_reader_who_leaves_ends_it_quietly_and_nothing_is_cancelled() {
    let daemon = Daemon::new(|clients| {
        let mut client = clients.next();
        client.command();
        client.say(&accepted());
        let line = response(1, &format!(",\"text\":\"{}\"", "x".repeat(10_000)));
        while client.offer(line.as_bytes()) {}
    });
    let mut running = daemon.start(SEND, b"");
    drop(running.child.stdout.take());
    let answer = running.end();
    assert_eq!((answer.code, &*answer.stderr), (Some(141), ""));
    daemon.finish();
}
