//! A chain, a ring and a star of real daemons whose nodes are killed, frozen and restarted while
//! clients send: traffic takes the other way or waits, and everything that was accepted is run
//! once and answered.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use receptor_tests::traffic::{Counter, Pings, Traffic, assert_once, post, wait_counter};
use receptor_tests::{Daemon, Mesh, Node, wait_for};

/// The silence after which a neighbor is given up in these tests.
const HOLD: Duration = Duration::from_secs(1);
/// What a busy machine may add to any time that is promised: three daemons on the way, each of which had no processor for a second.
const SLACK: Duration = Duration::from_secs(3);

/// What is done to a node.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    Kill,
    Freeze,
    Stop,
}

const FAULTS: [Fault; 3] = [Fault::Kill, Fault::Freeze, Fault::Stop];

impl Fault {
    fn hit(self, daemon: &mut Daemon) {
        match self {
            Self::Kill => daemon.kill(),
            Self::Freeze => daemon.signal(Signal::SIGSTOP),
            Self::Stop => daemon.stop(),
        }
    }

    fn mend(self, daemon: &mut Daemon) {
        match self {
            Self::Kill | Self::Stop => daemon.restart(),
            Self::Freeze => daemon.signal(Signal::SIGCONT),
        }
    }
}

fn node(mesh: &Mesh, name: &str) -> Node {
    mesh.node(name)
        .config("[link]\nhold-time = \"1s\"\n[shutdown]\ndrain-timeout = \"1s\"")
}

/// A row n0 – n1 – … in which each dials the one before; the last one counts.
fn row(mesh: &Mesh, count: usize) -> (Vec<Daemon>, Counter) {
    let mut daemons: Vec<Daemon> = Vec::new();
    let mut counter = None;
    for i in 0..count {
        let name = format!("n{i}");
        let mut new = node(mesh, &name);
        if let Some(before) = daemons.last() {
            new = new.peer(before);
        }
        if i == count - 1 {
            let (installed, with) = Counter::install(mesh, new, &name);
            counter = Some(installed);
            new = with;
        }
        daemons.push(new.start());
    }
    (daemons, counter.unwrap())
}

/// The same, closed to a ring by a link from the last to the first; the one in the middle counts.
fn ring(mesh: &Mesh, count: usize) -> (Vec<Daemon>, Counter) {
    let mut daemons: Vec<Daemon> = Vec::new();
    let mut counter = None;
    for i in 0..count {
        let name = format!("n{i}");
        let mut new = node(mesh, &name);
        if let Some(before) = daemons.last() {
            new = new.peer(before);
        }
        if i == count - 1 {
            new = new.peer(&daemons[0]);
        }
        if i == count / 2 {
            let (installed, with) = Counter::install(mesh, new, &name);
            counter = Some(installed);
            new = with;
        }
        daemons.push(new.start());
    }
    (daemons, counter.unwrap())
}

fn wait_all(daemons: &[Daemon]) {
    for from in daemons {
        for to in daemons {
            from.wait_reachable(to.name());
        }
    }
}

#[test]
fn a_chain_keeps_what_was_accepted_while_its_middle_is_away() {
    let mesh = Mesh::new();
    let (mut nodes, counter) = row(&mesh, 5);
    wait_all(&nodes);
    wait_counter(&nodes[0], "n4");
    wait_counter(&nodes[1], "n4");
    let mut traffic = Traffic::new();
    traffic.clients(3, &nodes[0], "n4");
    traffic.clients(1, &nodes[1], "n4");
    traffic.wait_more(20);
    let mut waiting = Vec::new();
    for fault in FAULTS {
        for victim in [2, 1, 3] {
            // Clients of the one that dies are gone with it; those of the others are not.
            if victim == 1 && fault != Fault::Freeze {
                continue;
            }
            fault.hit(&mut nodes[victim]);
            nodes[0].wait_unreachable("n4");
            let mut control = nodes[0].control();
            for _ in 0..10 {
                waiting.push(post(&mut control, "n4", true));
                let accepted = control.reply();
                assert_eq!(accepted["type"], "accepted", "{fault:?}: {accepted}");
            }
            fault.mend(&mut nodes[victim]);
            let began = Instant::now();
            nodes[0].wait_ping("n4");
            nodes[4].wait_ping("n0");
            assert!(began.elapsed() < HOLD + 2 * SLACK, "{:?}", began.elapsed());
            traffic.wait_more(20);
        }
    }
    let sent = traffic.stop();
    assert_once(&sent, &counter);
    wait_for("everything that waited for a way", || {
        let runs = counter.runs();
        waiting.iter().all(|n| runs.contains_key(n)).then_some(())
    });
    let runs = counter.runs();
    assert!(waiting.iter().all(|n| runs[n] == 1), "{runs:?}");
}

#[test]
fn the_ends_of_a_way_may_freeze_too() {
    let mesh = Mesh::new();
    let (nodes, counter) = row(&mesh, 3);
    wait_all(&nodes);
    wait_counter(&nodes[0], "n2");
    let mut traffic = Traffic::new();
    traffic.clients(3, &nodes[0], "n2");
    for end in [2, 0, 2] {
        traffic.wait_more(20);
        nodes[end].signal(Signal::SIGSTOP);
        let (other, frozen) = (2 - end, nodes[end].name());
        nodes[other].wait_unreachable(frozen);
        nodes[1].wait_unreachable(frozen);
        nodes[end].signal(Signal::SIGCONT);
        let began = Instant::now();
        nodes[0].wait_ping("n2");
        nodes[2].wait_ping("n0");
        assert!(began.elapsed() < HOLD + 2 * SLACK, "{:?}", began.elapsed());
        traffic.wait_more(20);
    }
    assert_once(&traffic.stop(), &counter);
}

#[test]
fn a_frozen_mesh_goes_on_where_it_was() {
    let mesh = Mesh::new();
    let (nodes, counter) = ring(&mesh, 4);
    wait_all(&nodes);
    wait_counter(&nodes[0], "n2");
    let mut traffic = Traffic::new();
    traffic.clients(3, &nodes[0], "n2");
    traffic.wait_more(20);
    // As when all hosts are one that sleeps: when it wakes up, everybody was silent for long.
    for daemon in &nodes {
        daemon.signal(Signal::SIGSTOP);
    }
    let frozen = Instant::now();
    wait_for("more than the hold time", || {
        (frozen.elapsed() > HOLD + HOLD / 2).then_some(())
    });
    for daemon in &nodes {
        daemon.signal(Signal::SIGCONT);
    }
    let began = Instant::now();
    traffic.wait_more(20);
    wait_all(&nodes);
    assert!(began.elapsed() < HOLD + 2 * SLACK, "{:?}", began.elapsed());
    assert_once(&traffic.stop(), &counter);
}

#[test]
fn a_ring_takes_the_other_way() {
    let mesh = Mesh::new();
    let (mut nodes, counter) = ring(&mesh, 5);
    wait_all(&nodes);
    wait_counter(&nodes[0], "n2");
    let mut traffic = Traffic::new();
    traffic.clients(3, &nodes[0], "n2");
    traffic.clients(1, &nodes[4], "n2");
    for fault in FAULTS {
        let hop = || nodes[0].control().json("status")["RoutingTable"]["n2"].clone();
        wait_for("the short way", || (hop() == "n1").then_some(()));
        traffic.wait_more(20);
        let pings = Pings::start(&nodes[0], "n2");
        let began = Instant::now();
        fault.hit(&mut nodes[1]);
        let hop = || nodes[0].control().json("status")["RoutingTable"]["n2"].clone();
        wait_for("the long way", || (hop() == "n4").then_some(()));
        traffic.wait_more(40);
        let gap = pings.longest_gap(began);
        let allowed = if fault == Fault::Freeze {
            HOLD + SLACK
        } else {
            SLACK
        };
        assert!(gap < allowed, "{fault:?}: no answer for {gap:?}");
        fault.mend(&mut nodes[1]);
        nodes[0].wait_reachable("n1");
    }
    assert_once(&traffic.stop(), &counter);
}

#[test]
fn a_ring_that_is_cut_in_two_places_heals() {
    let mesh = Mesh::new();
    let (mut nodes, counter) = ring(&mesh, 6);
    wait_all(&nodes);
    wait_counter(&nodes[0], "n3");
    let mut traffic = Traffic::new();
    traffic.clients(2, &nodes[0], "n3");
    traffic.wait_more(10);
    for fault in FAULTS {
        // n2, n3, n4 here and n0 there: nothing passes n1 and n5.
        fault.hit(&mut nodes[1]);
        fault.hit(&mut nodes[5]);
        nodes[0].wait_unreachable("n3");
        nodes[3].wait_unreachable("n0");
        nodes[3].wait_ping("n2");
        nodes[2].wait_ping("n4");
        fault.mend(&mut nodes[5]);
        nodes[0].wait_ping("n3");
        traffic.wait_more(10);
        fault.mend(&mut nodes[1]);
        wait_all(&nodes);
    }
    assert_once(&traffic.stop(), &counter);
}

#[test]
fn a_star_survives_its_hub() {
    let mesh = Mesh::new();
    let mut hub = node(&mesh, "hub").start();
    let leaf = |name: &str| node(&mesh, name).peer(&hub).quiet();
    // `router` stands before every table.
    let as_leaf = |name: &str| leaf(name).env("RECEPTOR_ROUTER", "false");
    let (counter, l1) = Counter::install(&mesh, as_leaf("l1"), "l1");
    let l1 = l1.start();
    let l2 = as_leaf("l2").start();
    let l3 = as_leaf("l3").start();
    let (counted, r1) = Counter::install(&mesh, leaf("r1"), "r1");
    let r1 = r1.start();
    let r2 = leaf("r2").start();
    for from in [&l2, &l3, &r2] {
        wait_for("the leaf", || {
            let pong = from.control().json("ping l1");
            (pong["Success"] == true).then_some(())
        });
        from.wait_ping("r1");
    }
    let status = l2.control().json("status");
    assert_eq!(status["receptor"]["router"], false);
    let (mut to_leaf, mut to_router) = (Traffic::new(), Traffic::new());
    to_leaf.clients(1, &l2, "l1");
    to_leaf.clients(1, &r2, "l1");
    to_router.clients(1, &l3, "r1");
    to_router.clients(1, &r2, "r1");
    for fault in FAULTS {
        to_leaf.wait_more(10);
        to_router.wait_more(10);
        fault.hit(&mut hub);
        r2.wait_unreachable("r1");
        fault.mend(&mut hub);
        for from in [&l2, &l3, &r2] {
            from.wait_ping("l1");
            from.wait_ping("r1");
        }
    }
    to_leaf.wait_more(10);
    to_router.wait_more(10);
    assert_once(&to_leaf.stop(), &counter);
    assert_once(&to_router.stop(), &counted);
    drop((l1, r1));
}

#[test]
fn a_leaf_behind_two_routers_loses_one() {
    let mesh = Mesh::new();
    let a = node(&mesh, "a").start();
    let mut r1 = node(&mesh, "r1").peer(&a).start();
    let mut r2 = node(&mesh, "r2").peer(&a).start();
    let leaf = node(&mesh, "leaf")
        .env("RECEPTOR_ROUTER", "false")
        .peer(&r1)
        .peer(&r2);
    let (counter, leaf) = Counter::install(&mesh, leaf, "leaf");
    let leaf = leaf.start();
    a.wait_ping("leaf");
    wait_counter(&a, "leaf");
    let mut traffic = Traffic::new();
    traffic.clients(2, &a, "leaf");
    for fault in FAULTS {
        for router in [&mut r1, &mut r2] {
            traffic.wait_more(10);
            let pings = Pings::start(&a, "leaf");
            let began = Instant::now();
            fault.hit(router);
            a.wait_unreachable(router.name());
            traffic.wait_more(10);
            leaf.wait_ping("a");
            let gap = pings.longest_gap(began);
            assert!(gap < HOLD + SLACK, "{fault:?} {}: {gap:?}", router.name());
            fault.mend(router);
            a.wait_ping(router.name());
            leaf.wait_ping(router.name());
            let links = || leaf.control().json("links")["links"].clone();
            wait_for("both links of the leaf", || {
                let links = links();
                let up = |link: &serde_json::Value| link["state"] == "up";
                links.as_array()?.iter().all(up).then_some(())
            });
        }
    }
    assert_once(&traffic.stop(), &counter);
}

#[test]
fn of_two_links_the_better_one_is_used_and_the_other_stands_by() {
    let mesh = Mesh::new();
    let second = mesh.dir().join("second");
    let a = node(&mesh, "a")
        .arg("--listen")
        .arg(&format!("unix://{}", second.display()))
        .start();
    let peers = |both: bool| {
        let base = "[link]\nhold-time = \"1s\"\n";
        let worse = format!("[[peer]]\nurl = \"{}\"\ncost = 50\n", a.url());
        let better = format!(
            "[[peer]]\nurl = \"unix://{}\"\ncost = 5\n",
            second.display()
        );
        format!("{base}{worse}{}", if both { better.as_str() } else { "" })
    };
    let (counter, b) = Counter::install(&mesh, mesh.node("b"), "b");
    let b = b.config(&peers(true)).start();
    let own = "[plugins]\nallow-unsafe = true\n";
    let cost = || {
        let routes = a.control().json("routes")["routes"].clone();
        let routes = routes.as_array().cloned().unwrap_or_default();
        let to_b = routes.into_iter().find(|route| route["destination"] == "b");
        to_b.map_or(0, |route| route["cost"].as_u64().unwrap_or_default())
    };
    // The listener's own cost is 10, and the higher of both counts.
    wait_for("the better link", || (cost() == 10).then_some(()));
    wait_counter(&a, "b");
    let mut traffic = Traffic::new();
    traffic.clients(2, &a, "b");
    for _ in 0..3 {
        traffic.wait_more(10);
        let pings = Pings::start(&a, "b");
        let began = Instant::now();
        fs::write(b.config_path(), format!("{own}{}", peers(false))).unwrap();
        assert_eq!(b.control().json("reload")["Success"], true);
        wait_for("the worse link", || (cost() == 50).then_some(()));
        traffic.wait_more(10);
        let gap = pings.longest_gap(began);
        assert!(gap < SLACK, "{gap:?}");
        fs::write(b.config_path(), format!("{own}{}", peers(true))).unwrap();
        assert_eq!(b.control().json("reload")["Success"], true);
        wait_for("the better link again", || (cost() == 10).then_some(()));
    }
    assert_once(&traffic.stop(), &counter);
}

#[test]
fn a_node_that_leaves_for_ever_is_forgotten() {
    let mesh = Mesh::new();
    let soon = "[routing]\ndead-node-retention = \"10s\"";
    let a = mesh.node("a").config(soon).start();
    let b = mesh.node("b").config(soon).peer(&a).start();
    let mut c = mesh.node("c").peer(&b).start();
    a.wait_reachable(["b", "c"]);
    let knows = |daemon: &Daemon| {
        let nodes = daemon.control().json("nodes")["nodes"].clone();
        let nodes = nodes.as_array().cloned().unwrap_or_default();
        nodes.iter().any(|node| node["node"] == "c")
    };
    c.kill();
    a.wait_unreachable("c");
    for daemon in [&a, &b] {
        wait_for("the end of what is known of c", || {
            (!knows(daemon)).then_some(())
        });
    }
    let pong = a.control().json("ping c");
    assert_eq!(pong["error"]["code"], "no-such-node", "{pong}");
    a.wait_log("node forgotten");
    // It is nobody's fault that it was away so long.
    c.restart();
    a.wait_ping("c");
}

#[test]
fn a_node_with_an_empty_data_directory_is_itself() {
    let mesh = Mesh::new();
    let (mut nodes, _counter) = row(&mesh, 3);
    wait_all(&nodes);
    for victim in [1, 2, 0] {
        nodes[victim].kill();
        fs::remove_dir_all(nodes[victim].data_dir()).unwrap();
        nodes[victim].restart();
        for from in [0, 1, 2] {
            for to in ["n0", "n1", "n2"] {
                nodes[from].wait_ping(to);
            }
        }
    }
    for daemon in &nodes {
        assert!(!daemon.log().contains("same id"), "{}", daemon.log());
    }
}
