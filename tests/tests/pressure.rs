//! Nothing unbounded: what a node keeps has limits that refuse by name, for those alone whom they
//! are for, and many clients at once are each answered while everything else goes on.

use nix::sys::signal::Signal;
use receptor_tests::traffic::peak_kib;
use receptor_tests::{Control, Daemon, Mesh, Node, wait_for};
use serde_json::{Value, json};

/// What a daemon with all of this may have taken at most, without optimisation.
const PEAK_KIB: u64 = 96 * 1024;

fn node(mesh: &Mesh, name: &str) -> Node {
    mesh.node(name).config("[link]\nhold-time = \"1s\"")
}

/// Sends a message that nobody waits for. Its id, or why it is not taken.
fn send(control: &mut Control, recipient: &str, body: usize) -> Result<String, Value> {
    let command = json!({
        "command": "send", "directive": "echo:discard", "recipient": recipient, "detach": true,
        "wait": true, "text": "x".repeat(body),
    });
    let reply = control.json(&command.to_string());
    // A refusal has the id as well.
    let id = (reply["type"] == "accepted").then(|| reply["id"].as_str());
    id.flatten().map(str::to_owned).ok_or(reply)
}

/// Sends until a message is refused: the ids of those before, and the refusal.
fn fill(at: &Daemon, recipient: &str, body: usize) -> (Vec<String>, Value) {
    let mut control = at.control();
    let mut all = Vec::new();
    loop {
        match send(&mut control, recipient, body) {
            Ok(id) => all.push(id),
            Err(refusal) => return (all, refusal),
        }
        assert!(all.len() < 2000, "nothing is refused");
    }
}

/// Waits until each of these has ended well.
fn wait_done(at: &Daemon, ids: &[String]) {
    let mut control = at.control();
    for id in ids {
        let ask = json!({"command": "works", "id": id}).to_string();
        wait_for("the end of a work", || {
            let works = control.json(&ask);
            (works["works"][0]["state"] == "succeeded").then_some(())
        });
    }
}

/// Waits until nothing is on its way.
fn wait_empty(at: &Daemon) {
    wait_for("an empty spool", || {
        let status = at.control().json("status");
        (status["receptor"]["spool"]["entries"] == 0).then_some(())
    });
}

#[test]
fn each_limit_of_the_spool_refuses_by_name_and_only_whom_it_is_for() {
    // The limit, its value, the size of messages, and whether others may go on.
    for (limit, value, body, others) in [
        ("max-bytes", "\"64MiB\"", 700_000, false),
        ("max-entries", "50", 10, false),
        ("max-bytes-per-recipient", "\"1MiB\"", 60_000, true),
        ("max-entries-per-recipient", "50", 10, true),
    ] {
        let mesh = Mesh::new();
        let a = node(&mesh, "a").config(&format!("[spool]\n{limit} = {value}"));
        let mut a = a.start();
        let (sent, refusal) = fill(&a, "b", body);
        assert!(sent.len() > 10, "{limit}: only {}", sent.len());
        assert_eq!(refusal["error"]["code"], "busy", "{limit}: {refusal}");
        let text = refusal["error"]["message"].as_str().unwrap_or_default();
        // Who is told so knows what to change.
        assert!(text.contains(&format!("{limit} ")), "{limit}: {text}");
        let other = send(&mut a.control(), "elsewhere", body);
        assert_eq!(other.is_ok(), others, "{limit}: {other:?}");
        assert_eq!(a.control().json("ping a")["Success"], true);
        // It holds over a restart, and ends with what it was for.
        a.kill();
        a.restart();
        let again =
            send(&mut a.control(), "b", body).map_err(|reply| reply["error"]["code"].clone());
        assert_eq!(again, Err(json!("busy")), "{limit}");
        let b = node(&mesh, "b").peer(&a).start();
        wait_done(&a, &sent);
        wait_for("room again", || send(&mut a.control(), "b", body).ok());
        for daemon in [&a, &b] {
            let peak = peak_kib(daemon.pid());
            assert!(
                peak < PEAK_KIB,
                "{limit}: {} took {peak} KiB",
                daemon.name()
            );
        }
    }
}

#[test]
fn fifty_clients_that_send_too_much_at_once_are_each_answered() {
    const CLIENTS: usize = 50;
    const EACH: usize = 40;
    let mesh = Mesh::new();
    let a = node(&mesh, "a").config("[spool]\nmax-entries-per-recipient = 1000");
    let a = a.start();
    let c = node(&mesh, "c").peer(&a).start();
    a.wait_ping("c");
    let clients = (0..CLIENTS).map(|_| {
        let mut control = a.control();
        std::thread::spawn(move || {
            let answers = (0..EACH).map(|_| send(&mut control, "b", 500));
            answers.collect::<Vec<Result<String, Value>>>()
        })
    });
    let clients: Vec<_> = clients.collect();
    // Who wants something else does not wait for them.
    let mut control = a.control();
    while !clients.iter().all(std::thread::JoinHandle::is_finished) {
        assert_eq!(control.json("ping c")["Success"], true);
    }
    let mut sent = Vec::new();
    let mut refused = 0;
    for client in clients {
        for answer in client.join().expect("a client that was answered") {
            match answer {
                Ok(id) => sent.push(id),
                Err(reply) => {
                    assert_eq!(reply["error"]["code"], "busy", "{reply}");
                    refused += 1;
                }
            }
        }
    }
    assert_eq!(sent.len() + refused, CLIENTS * EACH);
    // A part of the room is kept for answers.
    assert!((500..=1000).contains(&sent.len()), "{}", sent.len());
    let b = node(&mesh, "b").peer(&c).start();
    wait_done(&a, &sent);
    for daemon in [&a, &b, &c] {
        wait_empty(daemon);
        let peak = peak_kib(daemon.pid());
        assert!(peak < PEAK_KIB, "{} took {peak} KiB", daemon.name());
    }
}

#[test]
fn a_recipient_that_is_frozen_holds_up_nobody_else() {
    const SIZE: usize = 300_000;
    let mesh = Mesh::new();
    let a = mesh.node("a").start();
    let b = mesh.node("b").peer(&a).start();
    let c = mesh.node("c").peer(&a).start();
    a.wait_ping("b");
    a.wait_ping("c");
    b.signal(Signal::SIGSTOP);
    let mut control = a.control();
    let mut waiting = Vec::new();
    // Far more than a link or a daemon holds in memory.
    for _ in 0..150 {
        waiting.push(send(&mut control, "b", SIZE).expect("there is room"));
        assert_eq!(control.json("ping c")["Success"], true);
        let quick = send(&mut control, "c", 10).expect("there is room");
        wait_done(&a, &[quick]);
    }
    let peak = peak_kib(a.pid());
    assert!(peak < PEAK_KIB, "{peak} KiB");
    b.signal(Signal::SIGCONT);
    wait_done(&a, &waiting);
    for daemon in [&a, &b, &c] {
        wait_empty(daemon);
        let peak = peak_kib(daemon.pid());
        assert!(peak < PEAK_KIB, "{} took {peak} KiB", daemon.name());
    }
}
