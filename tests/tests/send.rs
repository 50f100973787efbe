//! Messages from a client through the mesh to a plugin and back.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::time::Duration;

use nix::sys::signal::Signal;
use receptor_tests::{Control, Daemon, Mesh, Node, program, wait_for};
use serde_json::{Value, json};

/// A chain a – b – c whose nodes have the plugin `echo` of this build.
fn chain(mesh: &Mesh) -> [Daemon; 3] {
    // The daemon finds it beside itself when it runs from a build.
    assert!(program("echo").exists());
    let a = mesh.node("a").start();
    let b = mesh.node("b").peer(&a).start();
    let c = mesh.node("c").peer(&b).start();
    a.wait_reachable(["b", "c"]);
    c.wait_reachable("a");
    wait_for("the plugin on c", || has_echo(&a, "c").then_some(()));
    [a, b, c]
}

/// Starts a node that has the same plugin under a name by which it runs one process a job, so
/// that a job that is held up holds up no other.
fn with_one_process_a_job(mesh: &Mesh, node: Node) -> Daemon {
    let plugins = mesh.dir().join("plugins");
    fs::create_dir(&plugins).unwrap();
    fs::copy(program("echo"), plugins.join("flood-once")).unwrap();
    // The temporary directory belongs to everybody, which is not what plugins are trusted in.
    node.config("[plugins]\nallow-unsafe = true")
        .arg("--plugins-dir")
        .arg(plugins.to_str().unwrap())
        .start()
}

fn has_echo(at: &Daemon, node: &str) -> bool {
    has_plugin(at, node, "echo")
}

fn has_plugin(at: &Daemon, node: &str, name: &str) -> bool {
    let reply = at.control().json("capabilities");
    let nodes = reply["nodes"].as_array().unwrap();
    let found = nodes.iter().find(|entry| entry["node"] == node);
    found.is_some_and(|entry| {
        let plugins = entry["plugins"].as_array().unwrap();
        plugins.iter().any(|plugin| plugin["plugin"] == name)
    })
}

fn send(control: &mut Control, command: &Value) -> Vec<Value> {
    control.write(format!("{command}\n"));
    replies(control)
}

/// A command that is answered with one line.
fn send_one(control: &mut Control, command: &Value) -> Value {
    control.write(format!("{command}\n"));
    control.reply()
}

/// Everything up to the last line of a reply.
fn replies(control: &mut Control) -> Vec<Value> {
    let mut all = Vec::new();
    loop {
        let reply = control.reply();
        let last = reply["eof"] == true;
        if let Some(size) = reply["size"].as_u64() {
            let bytes = control.raw(size.try_into().unwrap());
            all.push(json!({"raw": bytes.len(), "of": reply, "sum": sum(&bytes)}));
        } else {
            all.push(reply);
        }
        if last {
            return all;
        }
    }
}

/// Tells payloads apart; FNV-1a.
fn sum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}

#[test]
fn a_message_does_not_wait_for_the_payload_of_the_next() {
    let mesh = Mesh::new();
    let a = mesh.node("a").start();
    let mut control = a.control();
    let first = json!({
        "command": "send", "tag": 1, "directive": "echo:echo", "recipient": "away", "wait": true, "detach": true,
        "payload": 1,
    });
    let mut second = first.clone();
    second["tag"] = json!(2);
    second.as_object_mut().unwrap().remove("payload");
    second["size"] = json!(5);
    control.write(format!("{first}\n{second}\n"));
    let accepted = control.reply();
    assert_eq!(
        (&accepted["tag"], &accepted["type"]),
        (&json!(1), &json!("accepted"))
    );
    control.write("bytes");
    let accepted = control.reply();
    assert_eq!(
        (&accepted["tag"], &accepted["type"]),
        (&json!(2), &json!("accepted"))
    );
}

/// They wait for a way, and count as under way to whoever sends faster than a node takes.
#[test]
fn a_volatile_message_to_a_node_that_is_away_is_refused_also_behind_many_that_wait() {
    let mesh = Mesh::new();
    let a = mesh.node("a").start();
    let mut control = a.control();
    let payload = "x".repeat(60_000);
    for _ in 0..140 {
        let waits = json!({
            "command": "send", "directive": "echo:echo", "recipient": "away", "wait": true, "detach": true,
            "payload": 1,
        });
        assert_eq!(send_one(&mut control, &waits)["type"], "accepted");
    }
    for wait in [false, true] {
        let volatile = json!({
            "command": "send", "directive": "echo:echo", "recipient": "away", "wait": wait, "volatile": true,
            "payload": payload,
        });
        let refused = send_one(&mut control, &volatile);
        assert_eq!(refused["error"]["code"], "no-such-node", "{refused}");
    }
}

#[test]
fn a_message_is_answered_from_the_far_end() {
    let mesh = Mesh::new();
    let [a, _b, _c] = chain(&mesh);
    let mut control = a.control();
    let all = send(
        &mut control,
        &json!({"command": "send", "directive": "echo:echo", "recipient": "c", "payload": {"x": [1]}}),
    );
    assert_eq!(all[0]["type"], "accepted", "{all:?}");
    assert_eq!(all[0]["recipient"], "c");
    assert_eq!(
        (&all[1]["data"], &all[1]["from"]),
        (&json!({"x": [1]}), &json!("c"))
    );
    assert_eq!(all[1]["serial"], 1);
    let last = all.last().unwrap();
    assert_eq!((&last["eof"], &last["code"]), (&json!(true), &json!(0)));

    for (command, code) in [
        (
            json!({"directive": "nope:nope", "recipient": "c"}),
            "no-such-plugin",
        ),
        (
            json!({"directive": "echo:nope", "recipient": "c"}),
            "no-such-action",
        ),
        (
            json!({"directive": "echo:echo", "recipient": "nobody"}),
            "no-such-node",
        ),
        (
            json!({"directive": "echo:echo", "any": true, "where": {"no": "where"}}),
            "no-match",
        ),
    ] {
        let mut command = command;
        command["command"] = "send".into();
        command["payload"] = 1.into();
        let all = send(&mut control, &command);
        assert_eq!(all.last().unwrap()["error"]["code"], code, "{all:?}");
    }
    let fails = json!({"command": "send", "directive": "echo:fail", "recipient": "c", "payload": {"code": 3}});
    let all = send(&mut control, &fails);
    assert_ne!(all.last().unwrap()["code"], 0, "{all:?}");
    assert_eq!(all.last().unwrap()["error"], Value::Null, "{all:?}");
}

#[test]
fn many_are_under_way_at_once_on_one_connection() {
    let mesh = Mesh::new();
    let [a, _b, _c] = chain(&mesh);
    let mut control = a.control();
    // More than a plugin runs and than may wait for it: the rest waits further back.
    let count = 500;
    for tag in 0..count {
        control.write(format!(
            "{{\"command\":\"send\",\"tag\":{tag},\"directive\":\"echo:echo\",\"recipient\":\"c\",\"payload\":{{\"n\":{tag}}},\"volatile\":{}}}\n",
            tag % 2 == 0
        ));
    }
    let mut answered = vec![0; count];
    let mut ended = 0;
    while ended < count {
        let reply = control.reply();
        let tag = usize::try_from(reply["tag"].as_u64().unwrap()).unwrap();
        if !reply["data"].is_null() {
            assert_eq!(reply["data"]["n"], tag, "{reply}");
            answered[tag] += 1;
        }
        if reply["eof"] == true {
            assert_eq!(reply["code"], 0, "{reply}");
            ended += 1;
        }
    }
    assert!(answered.iter().all(|times| *times == 1), "{answered:?}");
}

#[test]
fn what_a_plugin_cannot_take_yet_waits_and_is_not_lost() {
    const COUNT: u64 = 5000;
    let mesh = Mesh::new();
    let [a, _b, c] = chain(&mesh);
    let mut control = a.control();
    let one = "{\"command\":\"send\",\"directive\":\"echo:discard\",\"recipient\":\"c\",\"text\":\"x\",\"volatile\":true,\"respond\":false}\n";
    let writer = {
        let mut stream = control.stream().try_clone().unwrap();
        std::thread::spawn(move || {
            for _ in 0..COUNT {
                stream.write_all(one.as_bytes()).unwrap();
            }
        })
    };
    for _ in 0..COUNT {
        let reply = control.reply();
        assert_eq!(
            (&reply["type"], &reply["eof"]),
            (&json!("accepted"), &json!(true))
        );
    }
    writer.join().unwrap();
    let ask = json!({"command": "send", "directive": "echo:discarded", "recipient": "c"});
    wait_for("all of them", || {
        let all = send(&mut control, &ask);
        (all[1]["data"] == COUNT).then_some(())
    });
    assert!(resident_kib(a.pid()).max(resident_kib(c.pid())) < 80 * 1024);
}

#[test]
fn a_flood_that_nobody_takes_is_held_back_at_its_client() {
    let mesh = Mesh::new();
    let [a, _b, c] = chain(&mesh);
    let flood = a.control();
    let mut stream = flood.stream().try_clone().unwrap();
    let pad = "x".repeat(2000);
    let one = format!(
        "{{\"command\":\"send\",\"tag\":1,\"directive\":\"echo:sleep\",\"recipient\":\"c\",\"payload\":{{\"ms\":600000,\"pad\":\"{pad}\"}},\"volatile\":true,\"respond\":false}}\n"
    );
    let mut reader = flood.stream().try_clone().unwrap();
    std::thread::spawn(move || {
        // A client that takes its answers, but never asks less for it.
        let mut sink = [0; 1 << 16];
        while reader.read(&mut sink).is_ok_and(|count| count > 0) {}
    });
    stream
        .set_write_timeout(Some(Duration::from_secs(2)))
        .unwrap();
    let mut sent = 0_u64;
    while stream.write_all(one.as_bytes()).is_ok() {
        sent += 1;
        assert!(sent < 100_000, "nothing holds the client back");
    }
    for daemon in [&a, &c] {
        let resident = resident_kib(daemon.pid());
        assert!(resident < 120 * 1024, "{}: {resident} KiB", daemon.name());
    }
    assert_eq!(a.control().json("ping c")["Success"], true);
    let elsewhere = json!({"command": "send", "directive": "echo:echo", "recipient": "b", "payload": 1, "volatile": true});
    wait_for("the plugin on b", || has_echo(&a, "b").then_some(()));
    let all = send(&mut a.control(), &elsewhere);
    assert_eq!(all[1]["data"], 1, "{all:?}");
    flood.stream().shutdown(std::net::Shutdown::Both).unwrap();
}

#[test]
fn large_payloads_pass_by_file_and_come_back_whole() {
    let mesh = Mesh::new();
    let [a, b, c] = chain(&mesh);
    let mut bytes = Vec::new();
    let noise = fs::File::open("/dev/urandom").unwrap();
    noise.take(20_000_003).read_to_end(&mut bytes).unwrap();
    let mut control = a.control();
    control.write(format!(
        "{{\"command\":\"send\",\"directive\":\"echo:bytes\",\"recipient\":\"c\",\"size\":{}}}\n",
        bytes.len()
    ));
    control.write(&bytes);
    let all = replies(&mut control);
    assert_eq!(all[1]["raw"], bytes.len(), "{all:?}");
    assert_eq!(all[1]["sum"], sum(&bytes));
    assert_eq!(all.last().unwrap()["code"], 0, "{all:?}");

    // The same, ended by half-close.
    let mut control = a.control();
    control.write(
        "{\"command\":\"send\",\"directive\":\"echo:bytes\",\"recipient\":\"c\",\"stream\":true}\n",
    );
    control.write(&bytes);
    control.half_close();
    let all = replies(&mut control);
    assert_eq!(all[1]["sum"], sum(&bytes), "{all:?}");

    // Nothing of it stays anywhere.
    for daemon in [&a, &b, &c] {
        let payloads = daemon.data_dir().join("spool/payloads");
        let count = || fs::read_dir(&payloads).unwrap().count();
        let what = format!("an empty store at {}", daemon.name());
        wait_for(&what, || (count() == 0).then_some(()));
    }
}

#[test]
fn memory_does_not_grow_with_a_payload_and_small_things_go_first() {
    const SIZE: usize = 200 << 20;
    let mesh = Mesh::new();
    let [a, b, c] = chain(&mesh);
    let socket = a.socket_path().to_owned();
    let sender = std::thread::spawn(move || {
        let mut control = Control::connect(&socket).unwrap();
        control.write(format!(
            "{{\"command\":\"send\",\"directive\":\"echo:discard\",\"recipient\":\"c\",\"size\":{SIZE}}}\n"
        ));
        let piece = vec![7; 1 << 20];
        for _ in 0..SIZE >> 20 {
            control.write(&piece);
        }
        // As long as it takes; the other side is asked whether it is alive meanwhile.
        control.stream().set_read_timeout(None).unwrap();
        replies(&mut control)
    });
    let mut control = a.control();
    let mut resident = 0;
    let mut pings = 0;
    while !sender.is_finished() {
        let pong = control.json("ping c");
        assert_eq!(pong["Success"], true, "{pong}");
        pings += 1;
        for daemon in [&a, &b, &c] {
            resident = resident.max(resident_kib(daemon.pid()));
        }
    }
    let all = sender.join().unwrap();
    assert_eq!(all.last().unwrap()["code"], 0, "{all:?}");
    assert!(pings > 10, "{pings}");
    assert!(resident < 80 * 1024, "{resident} KiB");
}

#[test]
fn a_client_that_stalls_holds_up_its_own_works_alone() {
    let mesh = Mesh::new();
    let a = mesh.node("a").start();
    let b = mesh.node("b").peer(&a).start();
    let c = with_one_process_a_job(&mesh, mesh.node("c").peer(&b));
    a.wait_reachable("c");
    wait_for("the plugins on c", || {
        has_plugin(&a, "c", "flood-once").then_some(())
    });
    wait_for("the plugins on c", || {
        has_plugin(&a, "c", "echo").then_some(())
    });
    // It asks for far more than all buffers hold and reads none of it.
    let mut stalled = a.control();
    stalled.write(
        "{\"command\":\"send\",\"directive\":\"flood-once:flood\",\"recipient\":\"c\",\"payload\":{\"count\":500,\"size\":50000}}\n",
    );
    let accepted = stalled.reply();
    assert_eq!(accepted["type"], "accepted", "{accepted}");
    let works =
        |daemon: &Daemon| daemon.control().json("status")["receptor"]["works_active"].clone();
    wait_for("the flood", || (works(&c) == 1).then_some(()));

    let mut control = a.control();
    for n in 0..20 {
        let all = send(
            &mut control,
            &json!({"command": "send", "directive": "echo:echo", "recipient": "c", "payload": n}),
        );
        assert_eq!(all[1]["data"], n, "{all:?}");
        assert_eq!(control.json("ping c")["Success"], true);
    }
    assert_eq!(works(&c), 1, "the flood was not held");
    let resident = resident_kib(a.pid()).max(resident_kib(c.pid()));
    assert!(resident < 100 * 1024, "{resident} KiB");

    // When it reads on, everything is there, in order.
    let mut serial = 0;
    loop {
        let reply = stalled.reply();
        serial += 1;
        assert_eq!(reply["serial"], serial);
        if reply["eof"] == true {
            assert_eq!(reply["code"], 0, "{reply}");
            break;
        }
    }
    assert_eq!(serial, 501);
}

fn resident_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_client_that_leaves_stops_nothing() {
    let mesh = Mesh::new();
    let [a, _b, c] = chain(&mesh);
    let mut control = a.control();
    control.write(
        "{\"command\":\"send\",\"directive\":\"echo:flood\",\"recipient\":\"c\",\"payload\":{\"count\":300,\"size\":20000}}\n",
    );
    control.reply();
    control.reply();
    drop(control);
    // It runs to its end, though nobody reads what it says.
    let works =
        |daemon: &Daemon| daemon.control().json("status")["receptor"]["works_active"].clone();
    wait_for("the end of the work", || (works(&c) == 0).then_some(()));
    assert!(!c.log().contains("cancel"), "{}", c.log());
}

#[test]
fn a_work_is_cancelled_from_another_connection() {
    let mesh = Mesh::new();
    let [a, _b, _c] = chain(&mesh);
    let mut control = a.control();
    control.write(
        "{\"command\":\"send\",\"directive\":\"echo:sleep\",\"recipient\":\"c\",\"payload\":{\"ms\":600000}}\n",
    );
    let id = control.reply()["id"].as_str().unwrap().to_owned();
    let cancel = a.control().json(&format!("cancel {id}"));
    assert_eq!(cancel["cancelling"], id, "{cancel}");
    let all = replies(&mut control);
    assert_eq!(all.last().unwrap()["error"]["code"], "cancelled", "{all:?}");
}

#[test]
fn detached_responses_wait_for_a_client() {
    let mesh = Mesh::new();
    let [a, _b, _c] = chain(&mesh);
    let mut control = a.control();
    let all = send(
        &mut control,
        &json!({"command": "send", "directive": "echo:echo", "recipient": "c", "payload": 7, "detach": true}),
    );
    assert_eq!(all.len(), 1, "{all:?}");
    let id = all[0]["id"].as_str().unwrap();
    drop(control);
    let mut control = a.control();
    let all = send(&mut control, &json!({"command": "results", "id": id}));
    assert_eq!(all[0]["data"], 7, "{all:?}");
    assert_eq!(all.last().unwrap()["code"], 0);
    // As often as asked, until they are released.
    assert_eq!(
        send(&mut control, &json!({"command": "results", "id": id})),
        all
    );
    let released = send_one(&mut control, &json!({"command": "release", "id": id}));
    assert_eq!(released["released"], id);
    let all = send(&mut control, &json!({"command": "results", "id": id}));
    assert_eq!(all[0]["error"]["code"], "not-found", "{all:?}");
}

#[test]
fn a_message_waits_until_there_is_a_way() {
    let mesh = Mesh::new();
    let [a, mut b, _c] = chain(&mesh);
    b.kill();
    a.wait_unreachable("c");
    let mut control = a.control();
    let volatile = json!({"command": "send", "directive": "echo:echo", "recipient": "c", "payload": 1, "volatile": true});
    let all = send(&mut control, &volatile);
    assert_eq!(all[0]["error"]["code"], "no-route", "{all:?}");
    control.write(
        "{\"command\":\"send\",\"directive\":\"echo:echo\",\"recipient\":\"c\",\"payload\":2}\n",
    );
    assert_eq!(control.reply()["type"], "accepted");
    b.restart();
    let all = replies(&mut control);
    assert_eq!(all[0]["data"], 2, "{all:?}");
}

#[test]
fn a_daemon_that_stops_lets_works_finish_and_takes_nothing_new() {
    let mesh = Mesh::new();
    let a = mesh.node("a").start();
    let mut b = mesh.node("b").peer(&a).start();
    a.wait_ping("b");
    wait_for("the plugin on b", || has_echo(&a, "b").then_some(()));
    let mut control = a.control();
    control.write("{\"command\":\"send\",\"directive\":\"echo:sleep\",\"recipient\":\"b\",\"payload\":{\"ms\":1000}}\n");
    assert_eq!(control.reply()["type"], "accepted");
    let works = || b.control().json("status")["receptor"]["works_active"].clone();
    wait_for("the work", || (works() == 1).then_some(()));
    let mut here = b.control();
    b.signal(Signal::SIGTERM);
    b.wait_log("stopping");
    let command =
        json!({"command": "send", "directive": "echo:echo", "recipient": "b", "payload": 1});
    let all = send(&mut here, &command);
    assert_eq!(all[0]["error"]["code"], "draining", "{all:?}");
    let all = replies(&mut control);
    assert_eq!(all.last().unwrap()["code"], 0, "{all:?}");
    assert_eq!(b.wait().code(), Some(0));
}

#[test]
fn policy_is_the_recipients() {
    let mesh = Mesh::new();
    let a = mesh.node("a").start();
    let b = mesh
        .node("b")
        .peer(&a)
        .config("[[allow]]\nfrom = [\"controller*\"]\ndirective = [\"echo:*\"]")
        .start();
    a.wait_reachable("b");
    b.wait_reachable("a");
    wait_for("the plugin on b", || has_echo(&a, "b").then_some(()));
    let all = send(
        &mut a.control(),
        &json!({"command": "send", "directive": "echo:echo", "recipient": "b", "payload": 1}),
    );
    assert_eq!(
        all.last().unwrap()["error"]["code"],
        "permission-denied",
        "{all:?}"
    );
    b.wait_log("no [[allow]] rule permits it");
}
