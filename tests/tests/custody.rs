//! Messages for a node that is away, whose sender's node then goes for good: they are delivered
//! once, from the node on the way that kept them; also when that was killed in between. What is given
//! up there is given up by its sender's node too, and a message that any node may have goes to one
//! that can be reached.

use std::collections::BTreeMap;

use nix::sys::signal::Signal;
use receptor_tests::traffic::{Counter, number, post, wait_counter};
use receptor_tests::{Control, Daemon, Mesh, Node, wait_for};
use serde_json::{Value, json};

/// Messages that wait.
const MESSAGES: usize = 20;

fn node(mesh: &Mesh, name: &str) -> Node {
    mesh.node(name)
        .config("[link]\nhold-time = \"1s\"\n[shutdown]\ndrain-timeout = \"1s\"")
}

/// controller – a – b; b counts.
fn chain(mesh: &Mesh) -> (Daemon, Daemon, Daemon, Counter) {
    let controller = node(mesh, "controller").start();
    let a = node(mesh, "a").peer(&controller).start();
    let (counter, b) = Counter::install(mesh, node(mesh, "b").peer(&a), "b");
    let b = b.start();
    controller.wait_reachable(["a", "b"]);
    b.wait_reachable(["controller"]);
    wait_counter(&controller, "b");
    (controller, a, b, counter)
}

/// How many messages of the controller this node has in custody for b.
fn in_custody(daemon: &Daemon) -> usize {
    let reply = daemon.control().json(r#"{"command":"spool"}"#);
    let messages = reply["messages"].as_array().expect("a list of messages");
    let held = messages.iter().filter(|message| {
        message["origin"] == "controller"
            && message["recipient"] == "b"
            && message["kind"] == "request"
    });
    held.count()
}

/// Sends while b is away and waits until a has everything in custody.
fn send_and_wait(controller: &Daemon, a: &Daemon) -> Vec<u64> {
    let mut control = controller.control();
    let send = |_| {
        let number = post(&mut control, "b", true);
        let reply = control.reply();
        assert_eq!(reply["type"], "accepted", "{reply}");
        number
    };
    let numbers = (0..MESSAGES).map(send).collect();
    wait_for("everything in custody", || {
        (in_custody(a) == MESSAGES).then_some(())
    });
    numbers
}

/// Everything runs once, and nothing stays in custody.
fn assert_delivered(numbers: &[u64], a: &Daemon, counter: &Counter) {
    let once: BTreeMap<u64, u32> = numbers.iter().map(|number| (*number, 1)).collect();
    wait_for("everything that was in custody", || {
        let runs = counter.runs();
        (runs.len() >= once.len()).then_some(())
    });
    // The responses are for a node that is gone, and stay in custody where they can.
    wait_for("an end of the custody", || {
        (in_custody(a) == 0).then_some(())
    });
    assert_eq!(counter.runs(), once);
}

#[test]
fn a_message_arrives_although_its_sender_never_comes_back() {
    let mesh = Mesh::new();
    let (mut controller, a, mut b, counter) = chain(&mesh);
    b.kill();
    controller.wait_unreachable("b");
    let numbers = send_and_wait(&controller, &a);
    controller.kill();
    b.restart();
    assert_delivered(&numbers, &a, &counter);
}

#[test]
fn the_custodian_may_be_killed_in_between() {
    let mesh = Mesh::new();
    let (mut controller, mut a, mut b, counter) = chain(&mesh);
    b.stop();
    controller.wait_unreachable("b");
    let numbers = send_and_wait(&controller, &a);
    a.kill();
    controller.kill();
    a.restart();
    assert_eq!(in_custody(&a), MESSAGES);
    let status = a.control().json(r#"{"command":"status"}"#);
    assert_eq!(status["receptor"]["spool"]["in_custody"], MESSAGES);
    b.restart();
    assert_delivered(&numbers, &a, &counter);
}

#[test]
fn with_the_sender_back_a_message_still_runs_once() {
    let mesh = Mesh::new();
    let (mut controller, a, mut b, counter) = chain(&mesh);
    b.kill();
    controller.wait_unreachable("b");
    let numbers = send_and_wait(&controller, &a);
    controller.kill();
    controller.restart();
    b.restart();
    assert_delivered(&numbers, &a, &counter);
    let mut control = controller.control();
    wait_for("the ends of all works", || {
        let works = control.json(r#"{"command":"works"}"#);
        let works = works["works"].as_array()?;
        let ended = works.iter().filter(|work| work["state"] == "succeeded");
        (ended.count() >= MESSAGES).then_some(())
    });
    assert_eq!(counter.runs().len(), MESSAGES);
}

/// Sends a number to the counter of b, detached; gives the work.
fn send(control: &mut Control, more: &Value) -> (String, u64) {
    let number = number();
    let mut command = json!({
        "command": "send", "directive": "counter:add", "payload": {"n": number}, "detach": true,
    });
    for (key, value) in more.as_object().expect("further fields") {
        command[key] = value.clone();
    }
    control.write(format!("{command}\n"));
    let reply = control.reply();
    assert_eq!(reply["type"], "accepted", "{reply}");
    (reply["id"].as_str().expect("an id").to_owned(), number)
}

/// What its sender hears of a work that did not end well.
fn wait_ended(daemon: &Daemon, work: &str) -> (String, String) {
    let mut control = daemon.control();
    wait_for("the end of the work", || {
        let works = control.json(&format!(r#"{{"command":"works","id":"{work}"}}"#));
        let work = works["works"].get(0)?.clone();
        let error = &work["error"];
        let text = error["message"].as_str()?.to_owned();
        Some((work["state"].as_str()?.to_owned(), text))
    })
}

#[test]
fn what_an_operator_drops_on_the_way_its_sender_hears_of() {
    let mesh = Mesh::new();
    let (controller, a, mut b, counter) = chain(&mesh);
    b.kill();
    controller.wait_unreachable("b");
    let mut control = controller.control();
    let (dropped, _) = send(&mut control, &json!({"recipient": "b"}));
    let (_, stays) = send(&mut control, &json!({"recipient": "b"}));
    wait_for("both in custody", || (in_custody(&a) == 2).then_some(()));
    let reply = a
        .control()
        .json(&format!(r#"{{"command":"spool-drop","id":"{dropped}"}}"#));
    assert_eq!(reply["dropped"], dropped, "{reply}");
    let (state, why) = wait_ended(&controller, &dropped);
    assert_eq!(state, "cancelled");
    assert!(why.contains("operator of a"), "{why}");
    assert_eq!(in_custody(&a), 1);
    b.restart();
    assert_delivered(&[stays], &a, &counter);
}

#[test]
fn what_expires_on_the_way_is_a_dead_letter_of_one_who_can_tell() {
    let mesh = Mesh::new();
    let (mut controller, a, mut b, _) = chain(&mesh);
    b.kill();
    controller.wait_unreachable("b");
    let mut control = controller.control();
    let soon = json!({"recipient": "b", "expires_ms": 4000});
    let (told, _) = send(&mut control, &soon);
    wait_for("custody", || (in_custody(&a) == 1).then_some(()));
    wait_for("its end", || (in_custody(&a) == 0).then_some(()));
    let (state, why) = wait_ended(&controller, &told);
    assert_eq!(state, "expired", "{why}");
    let letters = |daemon: &Daemon| {
        let reply = daemon.control().json(r#"{"command":"dead-letters"}"#);
        reply["letters"].as_array().expect("letters").clone()
    };
    assert_eq!(letters(&controller)[0]["id"], told);
    assert!(letters(&a).is_empty(), "its sender has it");

    let (untold, _) = send(&mut control, &soon);
    wait_for("custody", || (in_custody(&a) == 1).then_some(()));
    controller.kill();
    let letter = wait_for("a dead letter", || letters(&a).first().cloned());
    assert_eq!(letter["id"], untold);
    assert_eq!(letter["origin"], "controller");
    assert_eq!(letter["reason"]["code"], "expired");
    let retry = format!(r#"{{"command":"dead-letter-retry","id":"{untold}"}}"#);
    let reply = a.control().json(&retry);
    assert_eq!(reply["error"]["code"], "refused", "{reply}");
}

#[test]
fn a_message_for_any_node_goes_to_one_that_can_be_reached_and_runs_once() {
    const COUNT: usize = 60;
    let mesh = Mesh::new();
    let controller = node(&mesh, "controller").start();
    let a = node(&mesh, "a").peer(&controller).start();
    let (counters, workers): (Vec<Counter>, Vec<Daemon>) = [("b", &controller), ("c", &a)]
        .into_iter()
        .map(|(name, peer)| {
            let (counter, node) = Counter::install(&mesh, node(&mesh, name).peer(peer), name);
            (counter, node.start())
        })
        .unzip();
    for worker in ["b", "c"] {
        controller.wait_reachable([worker]);
        wait_counter(&controller, worker);
    }
    // The nearest does not answer, and nobody knows yet. More is sent than is under way at once:
    // what is cannot be given to another.
    let b = &workers[0];
    b.signal(Signal::SIGSTOP);
    let mut control = controller.control();
    let padding = "x".repeat(60_000);
    let numbers: BTreeMap<u64, Value> = (0..COUNT)
        .map(|_| {
            let number = number();
            let command = json!({
                "command": "send", "directive": "counter:add", "any": true, "detach": true,
                "payload": {"n": number, "padding": padding},
            });
            control.write(format!("{command}\n"));
            let reply = control.reply();
            assert_eq!(reply["type"], "accepted", "{reply}");
            (number, reply["recipient"].clone())
        })
        .collect();
    wait_for("runs at the other", || {
        let runs = counters[1].runs();
        let mut moved = runs.keys().filter(|number| numbers[number] == "b");
        moved.next().map(|_| ())
    });
    b.signal(Signal::SIGCONT);
    let all = wait_for("every run", || {
        let mut all = counters[0].runs();
        for (number, times) in counters[1].runs() {
            *all.entry(number).or_default() += times;
        }
        (all.len() == COUNT).then_some(all)
    });
    let once: BTreeMap<u64, u32> = numbers.keys().map(|number| (*number, 1)).collect();
    assert_eq!(all, once);
    assert!(
        !counters[0].runs().is_empty(),
        "what had left stayed with its choice"
    );
    wait_for("every end", || {
        let works = controller.control().json(r#"{"command":"works"}"#);
        let works = works["works"].as_array()?.clone();
        let ended = works.iter().filter(|work| work["state"] == "succeeded");
        (ended.count() == COUNT).then_some(())
    });
}
