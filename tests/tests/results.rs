//! What a sender sees of work that outlives its client: responses that are kept, keys, the list of
//! works, what waits, and what was given up.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use receptor_tests::traffic::{Counter, wait_counter};
use receptor_tests::{Control, Daemon, Mesh, Node, program, wait_for};
use serde_json::{Value, json};

/// Two nodes of which the second has the plugin `echo` of this build.
fn pair(mesh: &Mesh) -> [Daemon; 2] {
    pair_with(mesh.node("a"), mesh)
}

fn pair_with(a: Node, mesh: &Mesh) -> [Daemon; 2] {
    assert!(program("echo").exists());
    let a = a.start();
    let b = mesh.node("b").peer(&a).start();
    ready(&a);
    [a, b]
}

/// Waits until `a` knows what `b` can do.
fn ready(a: &Daemon) {
    wait_for("the plugin on b", || {
        let reply = a.control().json("capabilities");
        let nodes = reply["nodes"].as_array().unwrap();
        let b = nodes.iter().find(|node| node["node"] == "b")?;
        let plugins = b["plugins"].as_array().unwrap();
        (b["reachable"] == true && plugins.iter().any(|plugin| plugin["plugin"] == "echo"))
            .then_some(())
    });
}

fn ask(at: &Daemon, command: &Value) -> Value {
    let mut control = at.control();
    control.write(format!("{command}\n"));
    control.reply()
}

/// All lines of a reply; raw payloads as their sizes and sums.
fn all(control: &mut Control) -> Vec<Value> {
    let mut lines = Vec::new();
    loop {
        let mut line = control.reply();
        if let Some(size) = line["size"].as_u64() {
            let bytes = control.raw(size.try_into().unwrap());
            line["sum"] = json!(sum(&bytes));
        }
        let last = line["eof"] == true;
        lines.push(line);
        if last {
            return lines;
        }
    }
}

fn sum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}

fn results(at: &Daemon, id: &str, follow: bool) -> Vec<Value> {
    let mut control = at.control();
    let command = json!({"command": "results", "id": id, "follow": follow});
    control.write(format!("{command}\n"));
    all(&mut control)
}

fn send(directive: &str, payload: &Value, more: &Value) -> Value {
    let mut command = json!({
        "command": "send", "directive": directive, "recipient": "b", "payload": payload,
    });
    for (key, value) in more.as_object().unwrap() {
        command[key] = value.clone();
    }
    command
}

/// Sends and reads the acceptance alone; the id.
fn detach(at: &Daemon, directive: &str, payload: &Value) -> String {
    let accepted = ask(at, &send(directive, payload, &json!({"detach": true})));
    assert_eq!(accepted["type"], "accepted", "{accepted}");
    accepted["id"].as_str().unwrap().to_owned()
}

fn status(at: &Daemon, id: &str, role: &str) -> Option<Value> {
    let reply = ask(at, &json!({"command": "works", "id": id}));
    let works = reply["works"].as_array()?;
    works.iter().find(|work| work["role"] == role).cloned()
}

fn wait_state(at: &Daemon, id: &str, role: &str, state: &str) -> Value {
    wait_for(&format!("{id} {role} {state}"), || {
        status(at, id, role).filter(|work| work["state"] == state)
    })
}

fn serials(lines: &[Value]) -> Vec<u64> {
    lines
        .iter()
        .filter_map(|line| line["serial"].as_u64())
        .collect()
}

fn files(at: &Daemon, dir: &str) -> usize {
    fs::read_dir(at.data_dir().join(dir)).unwrap().count()
}

#[test]
fn kept_responses_survive_a_kill_and_are_read_from_the_start() {
    let mesh = Mesh::new();
    let [mut a, _b] = pair(&mesh);
    let flood = detach(&a, "echo:flood", &json!({"count": 300, "size": 1000}));
    let mut control = a.control();
    let size = 3_000_000;
    let payload: Vec<u8> = (0..size).map(|n: u32| (n / 7 % 251) as u8).collect();
    control.write(format!(
        "{{\"command\":\"send\",\"directive\":\"echo:bytes\",\"recipient\":\"b\",\"size\":{size},\"detach\":true}}\n"
    ));
    control.write(&payload);
    let large = control.reply()["id"].as_str().unwrap().to_owned();
    wait_state(&a, &flood, "sent", "succeeded");
    let before = results(&a, &flood, true);
    assert_eq!(serials(&before), (1..=301).collect::<Vec<_>>());
    let large_before = results(&a, &large, true);
    assert_eq!(large_before[0]["sum"], sum(&payload));
    wait_for("both are on the disk", || {
        let kept = |id| {
            status(&a, id, "sent").unwrap()["kept_bytes"]
                .as_u64()
                .unwrap()
        };
        (kept(&flood) > 300_000 && kept(&large) > 3_000_000).then_some(())
    });

    a.kill();
    a.restart();
    let work = status(&a, &flood, "sent").unwrap();
    assert_eq!(
        (&work["state"], &work["responses"]),
        (&json!("succeeded"), &json!(301))
    );
    assert_eq!(work["directive"], "echo:flood");
    for _ in 0..2 {
        assert_eq!(results(&a, &flood, false), before);
        assert_eq!(results(&a, &large, true), large_before);
    }
    // The beginning of an id is enough; nothing is left once they are released.
    for id in [&flood[..20], &large[..20]] {
        let released = ask(&a, &json!({"command": "release", "id": id}));
        assert!(released["released"].as_str().unwrap().starts_with(id));
    }
    wait_for("the files go", || (files(&a, "kept") == 0).then_some(()));
    assert_eq!(results(&a, &flood, true)[0]["error"]["code"], "not-found");
}

#[test]
fn a_second_reader_reads_while_the_first_one_does() {
    let mesh = Mesh::new();
    let [a, _b] = pair(&mesh);
    let mut first = a.control();
    first.write(format!(
        "{}\n",
        send(
            "echo:flood",
            &json!({"count": 500, "size": 10_000}),
            &json!({})
        )
    ));
    let id = first.reply()["id"].as_str().unwrap().to_owned();
    let some = first.reply();
    assert_eq!(some["serial"], 1);
    let second = {
        let mut control = a.control();
        control.write(format!(
            "{}\n",
            json!({"command": "results", "id": id, "tag": 7})
        ));
        control
    };
    // The first goes on while the second has read nothing yet.
    let rest = all(&mut first);
    assert_eq!(rest.last().unwrap()["error"], Value::Null);
    assert_eq!(serials(&rest), (2..=501).collect::<Vec<_>>());
    let mut second = second;
    let lines = all(&mut second);
    assert_eq!(serials(&lines), (1..=501).collect::<Vec<_>>());
    assert!(lines.iter().all(|line| line["tag"] == 7));
    drop(second);
    // Both have everything, so nothing is kept.
    wait_for("the files go", || (files(&a, "kept") == 0).then_some(()));
    let error = &results(&a, &id, true)[0]["error"];
    assert_eq!(error["code"], "not-found", "{error}");
    assert_eq!(status(&a, &id, "sent").unwrap()["state"], "succeeded");
}

#[test]
fn a_client_that_leaves_finds_everything_later() {
    let mesh = Mesh::new();
    let [a, _b] = pair(&mesh);
    let mut client = a.control();
    client.write(format!(
        "{}\n",
        send(
            "echo:flood",
            &json!({"count": 200, "size": 20_000}),
            &json!({})
        )
    ));
    let id = client.reply()["id"].as_str().unwrap().to_owned();
    for serial in 1..=20 {
        assert_eq!(client.reply()["serial"], serial);
    }
    drop(client);
    let lines = results(&a, &id, true);
    assert_eq!(serials(&lines), (1..=201).collect::<Vec<_>>());
    assert_eq!(lines.last().unwrap()["code"], 0);
}

#[test]
fn without_follow_the_answer_is_what_is_here() {
    let mesh = Mesh::new();
    let [a, b] = pair(&mesh);
    let id = detach(&a, "echo:sleep", &json!({"ms": 600_000}));
    let here = wait_for("the plugin says how it goes", || {
        status(&b, &id, "here").filter(|work| work["message"].is_string())
    });
    assert_eq!(
        (&here["state"], &here["message"], &here["sender"]),
        (&json!("running"), &json!("600000 ms"), &json!("a"))
    );
    wait_state(&a, &id, "sent", "sent");
    let lines = results(&a, &id[..12], false);
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!(
        (&lines[0]["type"], &lines[0]["state"]),
        (&json!("pending"), &json!("sent"))
    );
    // It can be cancelled where it runs as well.
    assert_eq!(
        ask(&b, &json!({"command": "cancel", "id": id}))["cancelling"],
        id
    );
    let lines = results(&a, &id, true);
    assert_eq!(lines[0]["error"]["code"], "cancelled", "{lines:?}");
    wait_state(&a, &id, "sent", "cancelled");
    wait_state(&b, &id, "here", "cancelled");
    let again = ask(&a, &json!({"command": "cancel", "id": id}));
    assert_eq!(again["error"]["code"], "not-found", "{again}");
}

#[test]
fn a_key_sends_once_however_often_it_is_sent() {
    let mesh = Mesh::new();
    let a = mesh.node("a").start();
    let (counter, node) = Counter::install(&mesh, mesh.node("b").peer(&a), "counter");
    let _b = node.start();
    wait_counter(&a, "b");
    let keyed = |payload: Value, more: &Value| {
        let mut command = send("counter:add", &payload, more);
        command["key"] = json!("nightly");
        command
    };
    let mut control = a.control();
    // Both at once, before the first is accepted, and again afterwards.
    let mut other = a.control();
    control.write(format!("{}\n", keyed(json!({"n": 1}), &json!({}))));
    other.write(format!("{}\n", keyed(json!({"n": 1}), &json!({}))));
    let first = all(&mut control);
    let second = all(&mut other);
    assert_eq!(first[0]["type"], "accepted", "{first:?}");
    assert_eq!(first.last().unwrap()["code"], 0);
    assert_eq!(second, first);
    let id = first[0]["id"].clone();
    for more in [json!({}), json!({"tag": "x"})] {
        control.write(format!("{}\n", keyed(json!({"n": 1}), &more)));
        let mut again = all(&mut control);
        for line in &mut again {
            line.as_object_mut().unwrap().remove("tag");
        }
        assert_eq!(again, first);
    }
    let detached = ask(&a, &keyed(json!({"n": 1}), &json!({"detach": true})));
    assert_eq!((&detached["id"], &detached["eof"]), (&id, &json!(true)));
    for different in [
        keyed(json!({"n": 2}), &json!({})),
        keyed(json!({"n": 1}), &json!({"directive": "counter:other"})),
        keyed(json!({"n": 1}), &json!({"recipient": "a"})),
    ] {
        let refused = ask(&a, &different);
        assert_eq!(refused["error"]["code"], "invalid-request", "{refused}");
    }
    assert_eq!(counter.runs().into_iter().collect::<Vec<_>>(), [(1, 1)]);
}

#[test]
fn a_key_is_known_after_a_kill() {
    let mesh = Mesh::new();
    let [mut a, _b] = pair(&mesh);
    let command = send("echo:echo", &json!("x"), &json!({"key": "k"}));
    let mut control = a.control();
    control.write(format!("{command}\n"));
    let first = all(&mut control);
    let id = first[0]["id"].as_str().unwrap();
    wait_for("it is on the disk", || {
        (status(&a, id, "sent").unwrap()["kept_bytes"].as_u64() > Some(300)).then_some(())
    });
    a.kill();
    a.restart();
    let mut control = a.control();
    control.write(format!("{command}\n"));
    assert_eq!(all(&mut control), first);
    let other = ask(&a, &send("echo:echo", &json!("y"), &json!({"key": "k"})));
    assert_eq!(other["error"]["code"], "invalid-request", "{other}");
}

#[test]
fn a_key_for_any_node_is_known_after_a_kill() {
    let mesh = Mesh::new();
    let [mut a, _b] = pair(&mesh);
    let command = json!({
        "command": "send", "directive": "echo:echo", "any": true, "payload": "x", "key": "k",
        "detach": true,
    });
    let first = ask(&a, &command);
    let id = first["id"].as_str().unwrap();
    results(&a, id, true);
    wait_for("the end is on the disk", || {
        (status(&a, id, "sent").unwrap()["kept_bytes"].as_u64() > Some(200)).then_some(())
    });
    a.kill();
    a.restart();
    // A client that sends it once more is not left without an answer.
    assert_eq!(ask(&a, &command), first);
}

#[test]
fn what_is_kept_is_bounded_in_bytes_and_time() {
    let mesh = Mesh::new();
    let node = mesh
        .node("a")
        .config("[spool]\nresults-max-bytes = \"1MiB\"\nresults-retention = \"3s\"");
    let [a, _b] = pair_with(node, &mesh);
    let flood = json!({"count": 10, "size": 60_000});
    let old = detach(&a, "echo:flood", &flood);
    wait_state(&a, &old, "sent", "succeeded");
    let new = detach(&a, "echo:flood", &flood);
    wait_state(&a, &new, "sent", "succeeded");
    assert_eq!(
        serials(&results(&a, &new, true)),
        (1..=11).collect::<Vec<_>>()
    );
    let lines = results(&a, &old, true);
    assert_eq!(lines[0]["error"]["code"], "result-quota", "{lines:?}");
    assert_eq!(status(&a, &old, "sent").unwrap()["dropped"], true);
    a.wait_log("dropped to make room");
    // A work that fills it alone ends all the same.
    let large = detach(&a, "echo:flood", &json!({"count": 40, "size": 60_000}));
    let large = wait_state(&a, &large, "sent", "succeeded");
    assert_eq!(
        (&large["responses"], &large["dropped"]),
        (&json!(41), &json!(true))
    );
    wait_for("what is old goes", || {
        let works = ask(&a, &json!({"command": "works"}));
        (works["works"] == json!([]) && files(&a, "kept") == 0).then_some(())
    });
}

#[test]
fn both_ends_agree_on_how_a_work_ended() {
    let mesh = Mesh::new();
    let [a, b] = pair(&mesh);
    let fails = detach(&a, "echo:fail", &json!({"code": 3}));
    let errs = detach(
        &a,
        "echo:error",
        &json!({"code": "x-mine", "message": "no"}),
    );
    let unknown = detach(&a, "echo:nope", &json!(1));
    let well = detach(&a, "echo:echo", &json!(1));
    for (id, state) in [
        (&fails, "failed"),
        (&errs, "failed"),
        (&unknown, "refused"),
        (&well, "succeeded"),
    ] {
        let sent = wait_state(&a, id, "sent", state);
        let here = wait_state(&b, id, "here", state);
        for key in [
            "code",
            "error",
            "responses",
            "directive",
            "sender",
            "recipient",
        ] {
            assert_eq!(sent[key], here[key], "{key}: {sent} {here}");
        }
    }
    // In the list as well, oldest first, and a prefix that fits several says so.
    let list = ask(&a, &json!({"command": "works"}));
    let listed: Vec<&Value> = list["works"].as_array().unwrap().iter().collect();
    let ids: Vec<&str> = listed
        .iter()
        .map(|work| work["id"].as_str().unwrap())
        .collect();
    assert_eq!(ids, [&*fails, &errs, &unknown, &well]);
    let several = ask(&a, &json!({"command": "works", "id": &fails[..4]}));
    assert_eq!(several["error"]["code"], "invalid-request", "{several}");
    let none = ask(&a, &json!({"command": "works", "id": "ffff"}));
    assert_eq!(none["error"]["code"], "not-found");
}

#[test]
fn work_of_a_node_that_is_away_is_seen_waiting_and_is_cancelled() {
    let mesh = Mesh::new();
    let [a, mut b] = pair(&mesh);
    b.kill();
    a.wait_unreachable("b");
    let [drop, cancel] = [1, 2].map(|n| detach(&a, "echo:echo", &json!(n)));
    let spool = ask(&a, &json!({"command": "spool"}));
    assert_eq!(spool["total"], 2, "{spool}");
    let entry = &spool["messages"][0];
    assert_eq!(
        (
            &entry["id"],
            &entry["kind"],
            &entry["recipient"],
            &entry["reason"],
            &entry["directive"]
        ),
        (
            &json!(drop),
            &json!("request"),
            &json!("b"),
            &json!("no-route"),
            &json!("echo:echo")
        )
    );
    assert!(entry["expires_ms"].as_u64() > Some(80_000_000), "{entry}");
    assert!(entry["age_ms"].as_u64() < Some(60_000), "{entry}");
    assert_eq!(status(&a, &drop, "sent").unwrap()["state"], "accepted");
    assert_eq!(
        ask(&a, &json!({"command": "spool-drop", "id": drop}))["dropped"],
        drop
    );
    assert_eq!(
        ask(&a, &json!({"command": "cancel", "id": cancel}))["cancelling"],
        cancel
    );
    for id in [&drop, &cancel] {
        wait_state(&a, id, "sent", "cancelled");
        let lines = results(&a, id, true);
        assert_eq!(lines[0]["error"]["code"], "cancelled", "{lines:?}");
    }
    let spool = ask(&a, &json!({"command": "spool"}));
    assert_eq!(
        (&spool["total"], &spool["messages"]),
        (&json!(0), &json!([]))
    );
    let gone = ask(&a, &json!({"command": "spool", "id": drop}));
    assert_eq!(gone["error"]["code"], "not-found");
}

#[test]
fn what_was_given_up_is_kept_and_can_be_sent_again() {
    let mesh = Mesh::new();
    let [mut a, mut b] = pair(&mesh);
    b.kill();
    a.wait_unreachable("b");
    let soon = json!({"detach": true, "expires_ms": 1});
    let small = ask(&a, &send("echo:echo", &json!("again"), &soon));
    let small = small["id"].as_str().unwrap();
    let size = 200_000;
    let payload: Vec<u8> = (0..size).map(|n: u32| (n / 3 % 241) as u8).collect();
    let mut control = a.control();
    control.write(format!(
        "{{\"command\":\"send\",\"directive\":\"echo:bytes\",\"recipient\":\"b\",\"size\":{size},\"detach\":true,\"expires_ms\":1}}\n"
    ));
    control.write(&payload);
    let large = control.reply()["id"].as_str().unwrap().to_owned();
    for id in [small, &large] {
        wait_state(&a, id, "sent", "expired");
    }
    wait_for("both are on the disk", || {
        (files(&a, "dead-letters") == 4).then_some(())
    });
    a.kill();
    a.restart();
    let letters = ask(&a, &json!({"command": "dead-letters"}));
    assert_eq!(letters["total"], 2, "{letters}");
    let letters = letters["letters"].as_array().unwrap();
    let letter = letters.iter().find(|letter| letter["id"] == small).unwrap();
    assert_eq!(
        (
            &letter["reason"]["code"],
            &letter["directive"],
            &letter["recipient"],
            &letter["size"]
        ),
        (
            &json!("expired"),
            &json!("echo:echo"),
            &json!("b"),
            &json!(7)
        )
    );

    let [small, large] = [small, &large].map(|id| {
        let retried = ask(&a, &json!({"command": "dead-letter-retry", "id": id}));
        assert_eq!(retried["retried"], id, "{retried}");
        retried["id"].as_str().unwrap().to_owned()
    });
    b.restart();
    assert_eq!(results(&a, &small, true)[0]["data"], "again");
    assert_eq!(results(&a, &large, true)[0]["sum"], sum(&payload));
    wait_for("the letters go", || {
        (files(&a, "dead-letters") == 0).then_some(())
    });
    let none = ask(&a, &json!({"command": "dead-letter-drop", "id": small}));
    assert_eq!(none["error"]["code"], "not-found");
}

#[test]
fn the_command_line_does_it_all() {
    let mesh = Mesh::new();
    let [a, _b] = pair(&mesh);
    let run = |args: &[&str]| {
        let output = Command::new(program("receptorctl"))
            .env("RECEPTOR_SOCKET", a.socket_path())
            .args(args)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let stdout = String::from_utf8(output.stdout).unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        (output.status.code().unwrap(), stdout, stderr)
    };
    let to = ["--recipient", "b", "--directive"];
    let started = Instant::now();
    let (code, id, _) = run(&[
        &["send", "--detach"],
        &to[..],
        &["echo:sleep", "{\"ms\":600000}"],
    ]
    .concat());
    assert!(started.elapsed() < Duration::from_secs(60));
    assert_eq!((code, id.len()), (0, 33), "{id}");
    let id = id.trim();
    let (code, out, err) = run(&["work", "results", &id[..20]]);
    assert_eq!((code, &*out), (75, ""), "{err}");
    let (_, list, _) = run(&["work", "list"]);
    assert!(
        list.contains(&id[..16]) && list.contains("echo:sleep"),
        "{list}"
    );
    assert_eq!(run(&["work", "cancel", id]).0, 0);
    let (code, _, err) = run(&["work", "results", "--follow", id]);
    assert!(code == 1 && err.contains("cancelled"), "{code} {err}");
    let (_, show, _) = run(&["work", "show", id]);
    assert!(show.contains("state      cancelled"), "{show}");
    assert_eq!(run(&["work", "release", id]).0, 0);
    assert_eq!(run(&["work", "show", id]).0, 1);

    let keyed = [&["send", "--id", "k"], &to[..], &["echo:echo", "[1]"]].concat();
    for _ in 0..2 {
        assert_eq!(run(&keyed), (0, "[1]\n".to_owned(), String::new()));
    }
    let other = [&["send", "--id", "k"], &to[..], &["echo:echo", "[2]"]].concat();
    assert_eq!(run(&other).0, 2);
    assert_eq!(
        run(&["spool", "list"]),
        (0, String::new(), "nothing waits here\n".to_owned())
    );
    assert_eq!(
        run(&["dead-letter", "list"]),
        (0, String::new(), "no dead letters\n".to_owned())
    );
}
