//! Messages for a node that is away, whose sender's node then goes for good: they are delivered
//! once, from the node on the way that kept them; also when that was killed in between.

use std::collections::BTreeMap;

use receptor_tests::traffic::{Counter, post, wait_counter};
use receptor_tests::{Daemon, Mesh, Node, wait_for};

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
