//! Networks that drop packets and tell nobody: daemons on hosts of their own, in network
//! namespaces. Without root these tests say so and do nothing; CI has root.

use std::io::Write as _;
use std::time::{Duration, Instant};

use receptor_tests::netns::Lab;
use receptor_tests::traffic::{Counter, Pings, Traffic, assert_once, post, wait_counter};
use receptor_tests::{Daemon, Mesh, Node, wait_for};

/// What a busy machine may add to any time that is promised: three daemons on the way, each of which had no processor for a second.
const SLACK: Duration = Duration::from_secs(3);
/// The silence after which a neighbor is given up here.
const HOLD: Duration = Duration::from_secs(1);
const PORT: u16 = 8888;

/// A lab, or a line that says why not.
fn lab(hosts: usize) -> Option<Lab> {
    match Lab::new(hosts) {
        Ok(lab) => Some(lab),
        Err(why) => {
            // Past what the test runner swallows.
            let _ = writeln!(std::io::stderr(), "SKIPPED, nothing was tested: {why}");
            None
        }
    }
}

/// A node on an outer host.
fn outer(mesh: &Mesh, lab: &Lab, host: usize, name: &str) -> Node {
    mesh.node(name)
        .netns(&lab.host(host))
        .listen(&format!("rnp://{}:{PORT}", Lab::address(host)))
        .arg("--allow-plaintext")
        .config("[link]\nhold-time = \"1s\"\nconnect-timeout = \"1s\"")
}

fn url(address: &str) -> String {
    format!("rnp://{address}:{PORT}")
}

fn next_hop(from: &Daemon, to: &str) -> String {
    let status = from.control().json("status");
    status["RoutingTable"][to]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

/// a and b with a link through the middle, and c in the middle with a link to both.
fn triangle(mesh: &Mesh, lab: &Lab) -> ([Daemon; 3], Counter) {
    let a = outer(mesh, lab, 0, "a").start();
    let c = mesh
        .node("c")
        .netns(&lab.middle())
        .listen(&format!("rnp://0.0.0.0:{PORT}"))
        .arg("--allow-plaintext")
        .config("[link]\nhold-time = \"1s\"\nconnect-timeout = \"1s\"")
        .peer_url(&url(&Lab::address(0)))
        .start();
    let b = outer(mesh, lab, 1, "b")
        .peer_url(&url(&Lab::address(0)))
        .peer_url(&url(&Lab::gateway(1)));
    let (counter, b) = Counter::install(mesh, b, "b");
    let b = b.start();
    for from in [&a, &b, &c] {
        from.wait_reachable(["a", "b", "c"]);
    }
    wait_counter(&a, "b");
    ([a, b, c], counter)
}

#[test]
fn a_link_whose_packets_vanish_is_given_up_and_comes_back() {
    let Some(lab) = lab(2) else { return };
    let mesh = Mesh::new();
    let ([a, b, _c], counter) = triangle(&mesh, &lab);
    let mut traffic = Traffic::new();
    traffic.clients(3, &a, "b");
    for _ in 0..3 {
        wait_for("the direct way", || {
            (next_hop(&a, "b") == "b").then_some(())
        });
        wait_for("the direct way back", || {
            (next_hop(&b, "a") == "a").then_some(())
        });
        traffic.wait_more(10);
        let pings = Pings::start(&a, "b");
        let began = Instant::now();
        lab.forward(false);
        wait_for("the way round", || (next_hop(&a, "b") == "c").then_some(()));
        wait_for("the way back round", || {
            (next_hop(&b, "a") == "c").then_some(())
        });
        traffic.wait_more(10);
        let gap = pings.longest_gap(began);
        assert!(gap < HOLD + SLACK, "no answer for {gap:?}");
        lab.forward(true);
    }
    assert_once(&traffic.stop(), &counter);
}

#[test]
fn a_node_that_hears_nothing_is_not_believed_to_be_there() {
    let Some(lab) = lab(2) else { return };
    let mesh = Mesh::new();
    let ([a, b, c], counter) = triangle(&mesh, &lab);
    let mut traffic = Traffic::new();
    traffic.clients(2, &a, "b");
    for _ in 0..2 {
        traffic.wait_more(10);
        // What b says arrives everywhere, and nothing arrives at b.
        let began = Instant::now();
        lab.deafen(1, true);
        for (from, to) in [(&a, "b"), (&c, "b"), (&b, "a"), (&b, "c")] {
            from.wait_unreachable(to);
        }
        // Either side finds out for itself: no half of a link is left standing.
        assert!(
            began.elapsed() < 2 * HOLD + 2 * SLACK,
            "{:?}",
            began.elapsed()
        );
        let mut control = a.control();
        let waiting: Vec<u64> = (0..10)
            .map(|_| {
                let number = post(&mut control, "b", true);
                let accepted = control.reply();
                assert_eq!(accepted["type"], "accepted", "{accepted}");
                number
            })
            .collect();
        lab.deafen(1, false);
        a.wait_ping("b");
        wait_for("what waited for a way", || {
            let runs = counter.runs();
            waiting.iter().all(|n| runs.contains_key(n)).then_some(())
        });
    }
    assert_once(&traffic.stop(), &counter);
}
