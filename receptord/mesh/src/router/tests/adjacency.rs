//! Hello, hold time, doubles, several links.

use super::*;

#[test]
fn two_nodes_become_neighbors() {
    let (mut net, links) = chain(&["a", "b"]);
    net.settle();
    for (host, other) in [(0, "b"), (1, "a")] {
        let route = net.mesh(host).route(&id(other)).unwrap();
        assert_eq!((route.cost, route.hops, route.link), (1, 1, Some(links[0])));
        assert_eq!(route.next_hop, id(other));
        assert!(net.had(host, |event| matches!(event, Event::NeighborUp { .. })));
        assert!(net.had(host, |event| matches!(event, Event::NodeReachable { .. })));
        assert_eq!(net.mesh(host).nodes().len(), 2);
    }
    assert_eq!(net.mesh(0).lsdb_digest(), net.mesh(1).lsdb_digest());
    assert_eq!(net.mesh(0).lsdb_len(), 4);
}

#[test]
fn the_higher_cost_holds_for_both() {
    let mut net = Net::new();
    let (a, b) = (net.add("a"), net.add("b"));
    let link = LinkId(1);
    net.wires.insert((a, link), (b, link));
    net.wires.insert((b, link), (a, link));
    net.up(a, link, 3, true, Vec::new());
    net.up(b, link, 8, false, Vec::new());
    net.settle();
    assert_eq!(net.mesh(a).route(&id("b")).unwrap().cost, 8);
    assert_eq!(net.mesh(b).route(&id("a")).unwrap().cost, 8);
    let now = net.now;
    net.mesh(a).set_cost(now, link, 20);
    net.drain(a);
    net.settle();
    assert_eq!(net.mesh(a).route(&id("b")).unwrap().cost, 20);
    assert_eq!(net.mesh(b).route(&id("a")).unwrap().cost, 20);
    // What was raised can be lowered again, as far as the other side wants it.
    let now = net.now;
    net.mesh(a).set_cost(now, link, 2);
    net.drain(a);
    net.settle();
    assert_eq!(net.mesh(a).route(&id("b")).unwrap().cost, 8);
    assert_eq!(net.mesh(b).route(&id("a")).unwrap().cost, 8);
}

#[test]
fn only_a_hello_opens_a_link() {
    let mut net = Net::new();
    let a = net.add("a");
    let link = net.wire_to_test(a);
    net.say(a, link, Frame::Probe { nonce: 1 });
    assert_eq!(net.closed_code(a, link), Some(&ErrorCode::BadFrame));
    assert_eq!(net.mesh(a).counters().peer_mistakes, 1);
    assert!(net.mesh(a).links().is_empty());

    let link = net.wire_to_test(a);
    net.run(Duration::from_secs(6));
    assert_eq!(net.closed_code(a, link), Some(&ErrorCode::HelloTimeout));

    let link = net.wire_to_test(a);
    net.say(a, link, Frame::Hello(Net::hello("b", 1)));
    assert_eq!(net.mesh(a).links()[0].state, LinkState::Up);
    net.say(a, link, Frame::Hello(Net::hello("b", 1)));
    assert_eq!(net.closed_code(a, link), Some(&ErrorCode::BadFrame));
}

#[test]
fn who_does_not_fit_is_told_why() {
    let mut net = Net::new();
    let a = net.add("a");
    let good = Net::hello("b", 1);
    let cases = [
        (
            Hello {
                versions: (2, 9),
                ..good.clone()
            },
            ErrorCode::UnsupportedVersion,
        ),
        (
            Hello {
                node: id("a"),
                instance: 100,
                ..good.clone()
            },
            ErrorCode::SelfConnection,
        ),
        (
            Hello {
                node: id("a"),
                instance: 7,
                ..good.clone()
            },
            ErrorCode::DuplicateNodeId,
        ),
        (
            Hello {
                max_frame: 100,
                ..good.clone()
            },
            ErrorCode::BadFrame,
        ),
        (
            Hello {
                credit: 100,
                ..good.clone()
            },
            ErrorCode::BadFrame,
        ),
        (
            Hello {
                credit: u64::MAX,
                ..good.clone()
            },
            ErrorCode::BadFrame,
        ),
    ];
    net.record = true;
    for (hello, code) in cases {
        let link = net.wire_to_test(a);
        net.say(a, link, Frame::Hello(hello));
        assert_eq!(net.closed_code(a, link), Some(&code));
        let last = net.sent((a, link)).last();
        assert!(matches!(last, Some(Frame::Goodbye(goodbye)) if goodbye.code == code));
        assert!(
            net.had(a, |event| matches!(event, Event::LinkRefused { reason, .. }
            if reason.code == code))
        );
    }
    // A later version that still speaks this one is welcome.
    let link = net.wire_to_test(a);
    net.say(
        a,
        link,
        Frame::Hello(Hello {
            versions: (1, 9),
            ..good
        }),
    );
    assert_eq!(net.mesh(a).links()[0].state, LinkState::Up);
}

#[test]
fn the_certificate_must_fit_the_hello() {
    let mut net = Net::new();
    let a = net.add("a");
    for (link, proven, state) in [
        (1, vec![id("b")], Some(LinkState::Up)),
        (2, vec![id("c")], None),
        (3, vec![id("c"), id("b")], Some(LinkState::Up)),
    ] {
        let link = LinkId(link);
        net.up(a, link, 1, false, proven);
        net.say(a, link, Frame::Hello(Net::hello("b", 1)));
        let view = net
            .mesh(a)
            .links()
            .into_iter()
            .find(|view| view.link == link);
        assert_eq!(view.map(|view| view.state), state);
    }
    assert_eq!(
        net.closed_code(a, LinkId(2)),
        Some(&ErrorCode::IdentityMismatch)
    );
}

#[test]
fn a_bad_frame_is_answered_with_goodbye() {
    let (mut net, links) = chain(&["a", "b"]);
    net.settle();
    let now = net.now;
    let error = receptor_proto::wire::DecodeError::Bad { what: "anything" };
    net.mesh(0).handle_bad_frame(now, links[0], error);
    net.drain(0);
    net.run(10 * MS);
    assert_eq!(net.closed_code(0, links[0]), Some(&ErrorCode::BadFrame));
    assert_eq!(net.closed_code(1, links[0]), Some(&ErrorCode::BadFrame));
    assert!(!net.reaches(1, "a"));
}

#[test]
fn idle_links_are_kept_alive_by_one_side() {
    let (mut net, links) = chain(&["a", "b"]);
    net.settle();
    net.run(Duration::from_secs(5));
    net.record = true;
    net.run(Duration::from_secs(60));
    let frames = net.seen.len();
    assert!((100..=140).contains(&frames), "{frames} frames in a minute");
    let view = &net.mesh(0).links()[0];
    assert_eq!(view.link, links[0]);
    assert_eq!(view.rtt, Some(2 * LATENCY));
    assert_eq!(view.state, LinkState::Up);
}

#[test]
fn silence_ends_an_adjacency_after_the_hold_time() {
    let (mut net, links) = chain(&["a", "b", "c"]);
    net.settle();
    net.forget_events();
    let start = net.now;
    net.swallow(links[1]);
    let end = start + Duration::from_secs(10);
    assert!(net.run_until(end, |net| !net.reaches(0, "c")));
    let took = net.now.since(start);
    let hold = Duration::from_secs(4);
    assert!(
        took > hold - Duration::from_millis(1100) && took < hold + 50 * MS,
        "{took:?}"
    );
    net.run(Duration::from_millis(1100));
    for host in [1, 2] {
        assert_eq!(net.closed_code(host, links[1]), Some(&ErrorCode::HoldTime));
    }
    assert!(net.had(0, |event| matches!(event, Event::NodeUnreachable { .. })));
    assert!(net.reaches(0, "b"));
}

#[test]
fn a_node_that_was_stopped_does_not_blame_its_neighbors() {
    let (mut net, links) = chain(&["a", "b"]);
    net.settle();
    // Stopped for longer than its hold time, while its neighbor's frames wait to be read.
    net.now = net.now + Duration::from_secs(20);
    let now = net.now;
    net.mesh(0).handle_timeout(now);
    net.drain(0);
    assert_eq!(net.mesh(0).links()[0].state, LinkState::Up);
    // But if really nothing comes it is no neighbor any more.
    net.swallow(links[0]);
    net.hosts[1].running = false;
    net.run(Duration::from_secs(2));
    assert!(net.mesh(0).links().is_empty());
}

#[test]
fn the_better_of_two_links_is_used_and_the_other_stands_by() {
    let mut net = Net::new();
    let (a, b) = (net.add("a"), net.add("b"));
    let worse = net.connect_at(a, b, 5);
    net.settle();
    assert_eq!(net.mesh(a).next_link(&id("b")), Some(worse));
    let better = net.connect_at(a, b, 2);
    net.settle();
    assert_eq!(net.mesh(a).next_link(&id("b")), Some(better));
    let in_use: Vec<_> = net.mesh(a).links().iter().map(|view| view.in_use).collect();
    assert_eq!(in_use, [false, true]);
    assert_eq!(net.mesh(b).nodes()[0].links, [(id("b"), 2)]);
    net.run(20 * MS);
    net.forget_events();
    // Fail-over takes no time at all.
    net.cut(better);
    assert_eq!(net.mesh(a).next_link(&id("b")), Some(worse));
    assert_eq!(net.mesh(a).route(&id("b")).unwrap().cost, 5);
    net.settle();
    assert!(!net.had(a, |event| matches!(event, Event::NodeUnreachable { .. })));
    assert!(net.echo(a, "b").unwrap().arrived);
}

#[test]
fn another_way_is_taken_at_once_when_a_neighbor_dies() {
    let mut net = Net::new();
    for name in ["a", "b", "c", "d"] {
        net.add(name);
    }
    for (a, b, cost) in [(0, 1, 1), (1, 3, 1), (0, 2, 2), (2, 3, 2)] {
        net.connect_at(a, b, cost);
    }
    net.settle();
    assert_eq!(net.mesh(0).route(&id("d")).unwrap().next_hop, id("b"));
    net.run(Duration::from_secs(5));
    net.kill(1);
    // In the very call that said so.
    assert_eq!(net.mesh(0).route(&id("d")).unwrap().next_hop, id("c"));
    assert_eq!(net.mesh(3).route(&id("a")).unwrap().next_hop, id("c"));
    assert!(net.echo(0, "d").unwrap().arrived);
}

#[test]
fn a_newcomer_with_a_living_neighbors_id_is_refused_on_both_sides() {
    let (mut net, links) = chain(&["a", "b"]);
    net.settle();
    let double = net.add_with(Net::config("b", 200));
    let link = net.connect(0, double);
    net.run(100 * MS);
    assert_eq!(net.closed_code(0, link), Some(&ErrorCode::DuplicateNodeId));
    let loud =
        |event: &Event| matches!(event, Event::DuplicateNodeId { node, .. } if *node == id("b"));
    assert!(net.had(0, loud));
    assert!(net.had(double, |event| {
        *event
            == Event::DuplicateNodeId {
                node: id("b"),
                ours: true,
            }
    }));
    assert_eq!(net.mesh(0).next_link(&id("b")), Some(links[0]));
    net.settle();
    assert!(net.echo(0, "b").unwrap().arrived);
}

#[test]
fn a_newcomer_with_a_living_far_nodes_id_is_refused() {
    let (mut net, _) = chain(&["a", "b", "c", "d"]);
    net.settle();
    let double = net.add_with(Net::config("d", 200));
    let link = net.connect(0, double);
    net.run(Duration::from_millis(1500));
    assert_eq!(net.closed_code(0, link), Some(&ErrorCode::DuplicateNodeId));
    assert!(net.had(double, |event| matches!(
        event,
        Event::DuplicateNodeId { ours: true, .. }
    )));
    assert_eq!(net.echo(0, "d").unwrap().hops, 3);
}

#[test]
fn a_killed_node_that_starts_again_is_let_in_at_once() {
    let (mut net, _) = chain(&["a", "b", "c"]);
    net.settle();
    for instance in [200, 300] {
        net.kill(1);
        net.run(500 * MS);
        net.restart(1, instance);
        let start = net.now;
        net.connect(0, 1);
        net.connect(1, 2);
        let end = start + Duration::from_secs(5);
        assert!(net.run_until(end, |net| net.reaches(0, "c") && net.reaches(2, "a")));
        let took = net.now.since(start);
        assert!(took < 60 * MS, "instance {instance} took {took:?}");
        net.settle();
    }
}

#[test]
fn a_node_that_lost_power_and_starts_again_replaces_its_silent_self() {
    let (mut net, links) = chain(&["a", "b"]);
    net.settle();
    net.swallow(links[0]);
    net.restart(1, 200);
    let start = net.now;
    let link = net.connect(0, 1);
    assert_eq!(net.mesh(0).links()[1].state, LinkState::Opening);
    let up = |net: &mut Net| net.mesh(0).next_link(&id("b")) == Some(link);
    assert!(net.run_until(start + Duration::from_secs(5), up));
    let took = net.now.since(start);
    assert!(took < Duration::from_millis(1100), "{took:?}");
    assert_eq!(
        net.closed_code(0, links[0]),
        Some(&ErrorCode::DuplicateNodeId)
    );
}

#[test]
fn a_restarted_node_is_let_in_elsewhere_while_its_old_links_are_still_stated() {
    // b hangs on c alone and comes back at a; c has noticed, and says so.
    let (mut net, _) = chain(&["a", "x", "c", "b"]);
    net.settle();
    net.run(Duration::from_secs(1));
    net.kill(3);
    net.restart(3, 200);
    let start = net.now;
    let link = net.connect(0, 3);
    let up = |net: &mut Net| net.mesh(0).next_link(&id("b")) == Some(link);
    assert!(net.run_until(start + Duration::from_secs(5), up));
    assert!(net.now.since(start) < 50 * MS);
    net.settle();
    assert_eq!(net.echo(2, "b").unwrap().hops, 3);
}

#[test]
fn two_meshes_with_one_id_merge_without_the_later_one() {
    let mut net = Net::new();
    let (a, x) = (net.add("a"), net.add_with(Net::config("x", 100)));
    let (b, y) = (net.add("b"), net.add_with(Net::config("x", 200)));
    net.connect(a, x);
    net.connect(b, y);
    net.settle();
    net.forget_events();
    net.connect(a, b);
    let end = net.now + Duration::from_secs(10);
    assert!(net.run_until(end, |net| net.mesh(y).links().is_empty()));
    net.settle();
    assert!(net.had(y, |event| matches!(
        event,
        Event::DuplicateNodeId { ours: true, .. }
    )));
    assert_eq!(net.mesh(x).links().len(), 1);
    assert_eq!(net.echo(b, "x").unwrap().hops, 2);
    // It cannot come back as long as the other lives.
    let link = net.connect(b, y);
    net.run(Duration::from_secs(2));
    assert_eq!(net.closed_code(b, link), Some(&ErrorCode::DuplicateNodeId));
    net.settle();
    let before = net.mesh(a).counters().lsas_new;
    net.run(Duration::from_secs(60));
    assert_eq!(
        net.mesh(a).counters().lsas_new,
        before,
        "the argument goes on"
    );
}

#[test]
fn the_limit_on_links_holds() {
    let mut net = Net::new();
    let mut config = Net::config("a", 1);
    config.limits.links = 2;
    let a = net.add_with(config);
    let links: Vec<LinkId> = (0..3).map(|_| net.wire_to_test(a)).collect();
    assert_eq!(net.mesh(a).links().len(), 2);
    assert_eq!(net.closed_code(a, links[2]), Some(&ErrorCode::Busy));
}

#[test]
fn shutdown_says_goodbye_and_is_final() {
    let (mut net, links) = chain(&["a", "b", "c"]);
    net.settle();
    let now = net.now;
    net.mesh(1).shutdown(now);
    net.drain(1);
    net.run(20 * MS);
    for host in [0, 2] {
        assert!(net.mesh(host).links().is_empty());
        assert!(net.had(
            host,
            |event| matches!(event, Event::NeighborDown { reason, .. }
            if reason.code == ErrorCode::Shutdown)
        ));
    }
    assert_eq!(net.closed_code(1, links[0]), Some(&ErrorCode::Shutdown));
    let late = net.wire_to_test(1);
    assert_eq!(net.closed_code(1, late), Some(&ErrorCode::Shutdown));
}

#[test]
fn a_peers_goodbye_closes_the_link() {
    let mut net = Net::new();
    let a = net.add("a");
    let link = net.wire_to_test(a);
    let goodbye = Goodbye {
        code: ErrorCode::PermissionDenied,
        message: "not you".to_string(),
    };
    net.say(a, link, Frame::Goodbye(goodbye));
    assert_eq!(net.closed_code(a, link), Some(&ErrorCode::PermissionDenied));
    assert!(net.had(a, |event| matches!(
        event,
        Event::LinkRefused { by_peer: true, .. }
    )));
    // Frames that were under way meet nothing.
    net.say(a, link, Frame::Hello(Net::hello("b", 1)));
    assert!(net.mesh(a).links().is_empty());
}
