//! Links between real daemons: they come up, come back, and give way to better ones, and
//! nothing that arrives on one can hurt the daemon.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use nix::sys::signal::Signal;
use receptor_tests::{DEADLINE, Daemon, Mesh, wait_for};
use serde_json::Value;

/// A chain a – b – c, with a route from end to end.
fn chain(mesh: &Mesh, config: &str) -> [Daemon; 3] {
    let a = mesh.node("a").config(config).start();
    let b = mesh.node("b").config(config).peer(&a).start();
    let c = mesh.node("c").config(config).peer(&b).start();
    a.wait_reachable(["b", "c"]);
    c.wait_reachable(["a", "b"]);
    a.wait_ping("c");
    [a, b, c]
}

#[test]
fn three_nodes_in_a_row_see_each_other() {
    let mesh = Mesh::new();
    let [a, _b, c] = chain(&mesh, "");
    let mut control = a.control();
    let pong = control.json("ping c");
    assert_eq!(pong["Success"], true, "{pong}");
    assert_eq!((&pong["From"], &pong["hops"]), (&"c".into(), &2.into()));
    assert!(pong["Time"].as_u64().unwrap() > 0);

    let way = control.json("traceroute c");
    let hops: Vec<_> = (0..3)
        .map(|hop| way[hop.to_string()]["From"].clone())
        .collect();
    assert_eq!(hops, ["a", "b", "c"], "{way}");
    control.write("{\"command\":\"traceroute\",\"target\":\"c\",\"stream\":true}\n");
    let (first, last) = (control.reply(), control.reply());
    assert_eq!(
        (&first["From"], &first["eof"]),
        (&"b".into(), &false.into())
    );
    assert_eq!((&last["hop"], &last["eof"]), (&2.into(), &true.into()));

    let status = control.json("status");
    assert_eq!(status["RoutingTable"]["c"], "b");
    assert_eq!(status["Connections"][0]["NodeID"], "b");
    assert_eq!(status["KnownConnectionCosts"]["b"]["c"], 10.0);
    assert_eq!(status["receptor"]["nodes_reachable"], 3);

    // Tagged commands run beside each other and come back with their tags.
    let ping = |tag| format!("{{\"command\":\"ping\",\"target\":\"c\",\"tag\":{tag}}}\n");
    let commands: String = (0..50).map(ping).collect();
    control.write(commands);
    let mut tags: Vec<_> = (0..50)
        .map(|_| control.reply()["tag"].as_u64().unwrap())
        .collect();
    tags.sort_unstable();
    assert_eq!(tags, (0..50).collect::<Vec<_>>());

    let nobody = control.json("ping nobody");
    assert_eq!(nobody["Success"], false);
    assert_eq!(nobody["error"]["code"], "no-such-node");
    let back = c.control().json("ping a");
    assert_eq!(back["Success"], true);
}

#[test]
fn a_killed_node_comes_back_by_itself() {
    let mesh = Mesh::new();
    let [a, mut b, c] = chain(&mesh, "");
    b.kill();
    a.wait_unreachable("c");
    let pong = a.control().json("ping c");
    assert_eq!(pong["error"]["code"], "no-route", "{pong}");
    b.restart();
    let began = Instant::now();
    a.wait_reachable(["b", "c"]);
    c.wait_reachable(["a", "b"]);
    a.wait_ping("c");
    // Dense retries: far below the ceiling that applies after a minute.
    assert!(began.elapsed() < DEADLINE / 3, "{:?}", began.elapsed());
}

#[test]
fn a_stopped_daemon_says_goodbye() {
    let mesh = Mesh::new();
    // Longer than anything is waited for: the goodbye is read, and not the silence noticed.
    let [a, mut b, c] = chain(&mesh, "[link]\nhold-time = \"5m\"");
    b.stop();
    a.wait_unreachable("b");
    c.wait_unreachable("a");
    a.wait_log("code=shutdown");
}

#[test]
fn a_frozen_node_is_gone_after_the_hold_time_and_the_other_way_is_used() {
    let mesh = Mesh::new();
    let hold = "[link]\nhold-time = \"1s\"";
    // A ring: a – b – d and a – c – d; the way over b is the better one.
    let a = mesh.node("a").config(hold).start();
    let b = mesh.node("b").config(hold).peer(&a).start();
    let cost = |daemon: &Daemon| format!("[[peer]]\nurl = \"{}\"\ncost = 50", daemon.url());
    let c = mesh.node("c").config(hold).config(&cost(&a)).start();
    let d = mesh
        .node("d")
        .config(hold)
        .config(&cost(&c))
        .config(&format!("[[peer]]\nurl = \"{}\"", b.url()))
        .start();
    for daemon in [&a, &b, &c, &d] {
        daemon.wait_reachable(["a", "b", "c", "d"]);
    }
    let next_hop = || a.control().json("status")["RoutingTable"]["d"].clone();
    wait_for("the better way", || (next_hop() == "b").then_some(()));
    b.signal(Signal::SIGSTOP);
    wait_for("the other way", || (next_hop() == "c").then_some(()));
    a.wait_ping("d");
    a.wait_log("code=hold-time");
    b.signal(Signal::SIGCONT);
    wait_for("the better way again", || (next_hop() == "b").then_some(()));
}

#[test]
fn what_is_no_link_is_told_so_and_dropped() {
    let mesh = Mesh::new();
    let a = mesh.node("a").config("[link]\nhold-time = \"1s\"").start();
    let b = mesh.node("b").peer(&a).start();
    b.wait_reachable("a");
    let goodbye = |bytes: &[u8]| {
        let mut stream = TcpStream::connect(a.address()).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        // The daemon may have closed before the end.
        let _ = stream.write_all(bytes);
        let mut heard = Vec::new();
        let _ = stream.read_to_end(&mut heard);
        String::from_utf8_lossy(&heard).into_owned()
    };
    // A browser, a frame longer than a hello may be, and one without a length.
    assert!(goodbye(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").contains("bad-frame"));
    assert!(goodbye(&[0x7f; 9000]).contains("bad-frame"));
    assert!(goodbye(&[0; 16]).contains("bad-frame"));
    // Half a frame and nothing more; nothing at all.
    assert!(goodbye(&[0, 0, 0, 40, 1, b'r']).contains("hello-timeout"));
    assert!(goodbye(&[]).contains("hello-timeout"));
    assert_eq!(b.control().json("ping a")["Success"], true);
    let links = a.control().json("links");
    assert_eq!(links["links"].as_array().unwrap().len(), 1, "{links}");
}

#[test]
fn a_second_node_of_the_same_name_is_refused_loudly() {
    let mesh = Mesh::new();
    let a = mesh.node("a").start();
    let b = mesh.node("b").peer(&a).start();
    a.wait_reachable("b");
    let other = Mesh::new();
    let impostor = other.node("b").peer(&a).start();
    impostor.wait_log("ERROR");
    impostor.wait_log("duplicate-node-id");
    a.wait_log("ERROR");
    a.wait_ping("b");
    b.wait_ping("a");
    assert_eq!(impostor.control().json("ping a")["Success"], false);
    let warns = |daemon: &Daemon| {
        let status = daemon.control().json("status");
        status["receptor"]["warnings"].to_string()
    };
    let (told, itself) = (warns(&a), warns(&impostor));
    assert!(told.contains("Two running nodes have the id b"), "{told}");
    assert!(itself.contains("has this node's id, b"), "{itself}");
    let links = impostor.control().json("links");
    assert_eq!(
        links["links"][0]["error"]["code"], "duplicate-node-id",
        "{links}"
    );
}

#[test]
fn links_run_over_unix_sockets_too() {
    let mesh = Mesh::new();
    let path = mesh.dir().join("link");
    let url = format!("unix://{}", path.display());
    let mut a = mesh.node("a").listen(&url).start();
    let b = mesh.node("b").quiet().peer_url(&url).start();
    b.wait_ping("a");
    // A killed daemon leaves its socket behind, which is in nobody's way.
    a.kill();
    assert!(UnixStream::connect(&path).is_err() && path.exists());
    a.restart();
    a.wait_reachable("b");
    a.stop();
    assert!(!path.exists());
}

#[test]
fn a_reload_leaves_links_that_stay_alone() {
    let mesh = Mesh::new();
    let a = mesh.node("a").start();
    let c = mesh.node("c").start();
    let peer = |daemon: &Daemon, cost: u32| {
        format!("[[peer]]\nurl = \"{}\"\ncost = {cost}\n", daemon.url())
    };
    let b = mesh.node("b").config(&peer(&a, 10)).start();
    b.wait_reachable("a");
    let age = || {
        let links = b.control().json("links");
        let links = links["links"].as_array().unwrap().clone();
        let to_a = links.iter().find(|link| link["node"] == "a").unwrap();
        (to_a["cost"].clone(), to_a["frames_in"].as_u64().unwrap())
    };
    let frames = age().1;
    std::fs::write(b.config_path(), peer(&a, 25) + &peer(&c, 10)).unwrap();
    assert_eq!(b.control().json("reload")["Success"], true);
    b.wait_reachable("c");
    let (cost, after) = age();
    assert_eq!(cost, 25);
    assert!(after >= frames, "the link to a was made anew");
    let costs = || a.control().json("status")["KnownConnectionCosts"]["b"]["a"].clone();
    wait_for("the new cost", || (costs() == 25.0).then_some(()));
    // The other side was told: its way back costs the same.
    let way = |from: &Daemon, to: &str| {
        let routes = from.control().json("routes")["routes"].clone();
        let route = |route: &&Value| route["destination"] == to;
        let found = routes.as_array().unwrap().iter().find(route);
        found.map_or(Value::Null, |route| route["cost"].clone())
    };
    wait_for("both ways", || {
        (way(&a, "b") == 25 && way(&b, "a") == 25).then_some(())
    });
    std::fs::write(b.config_path(), peer(&a, 15) + &peer(&c, 10)).unwrap();
    assert_eq!(b.control().json("reload")["Success"], true);
    wait_for("both ways, lowered", || {
        (way(&a, "b") == 15 && way(&b, "a") == 15).then_some(())
    });

    std::fs::write(b.config_path(), peer(&c, 10)).unwrap();
    assert_eq!(b.control().json("reload")["Success"], true);
    b.wait_unreachable("a");
    a.wait_log("code=deconfigured");
    let status = b.control().json("status");
    assert_eq!(
        status["Connections"].as_array().unwrap().len(),
        1,
        "{status}"
    );
}

#[test]
fn links_are_limited() {
    let mesh = Mesh::new();
    let a = mesh.node("a").config("[link]\nmax-links = 2").start();
    let _held: Vec<_> = (0..2)
        .map(|_| {
            let mut stream = TcpStream::connect(a.address()).unwrap();
            // The hello says that it was admitted.
            stream.set_read_timeout(Some(DEADLINE)).unwrap();
            stream.read_exact(&mut [0; 8]).unwrap();
            stream
        })
        .collect();
    let mut refused = TcpStream::connect(a.address()).unwrap();
    refused.set_read_timeout(Some(DEADLINE)).unwrap();
    // Closed before a byte is said.
    assert!(matches!(refused.read(&mut [0; 8]), Ok(0) | Err(_)));
    a.wait_log("link.max-links");
}
