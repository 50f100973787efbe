//! Statements: how they spread, age, are taken back, and come back.

use super::*;

fn links_of(host: &Host, node: &str) -> Option<Vec<(NodeId, u32)>> {
    let nodes = host.mesh.nodes();
    let view = nodes.into_iter().find(|view| view.node == id(node))?;
    Some(view.links)
}

fn agree(net: &Net) -> bool {
    let mut digests = net
        .hosts
        .iter()
        .filter(|host| host.running)
        .map(|host| host.mesh.lsdb_digest());
    let first = digests.next();
    digests.all(|digest| Some(digest) == first)
}

fn plugin(name: &str, actions: &[&str]) -> Capability {
    Capability {
        plugin: name.to_string(),
        version: "1".to_string(),
        ready: true,
        actions: actions.iter().map(ToString::to_string).collect(),
    }
}

/// A ring with chords.
fn big(nodes: usize) -> Net {
    let mut net = Net::new();
    for node in 0..nodes {
        net.add(&alloc::format!("node-{node}"));
    }
    for node in 0..nodes {
        net.connect(node, (node + 1) % nodes);
        if node % 4 == 0 {
            net.connect(node, (node + nodes / 2) % nodes);
        }
    }
    net
}

#[test]
fn everybody_learns_everything() {
    let mut net = big(20);
    net.settle();
    assert!(agree(&net));
    for host in 0..20 {
        for other in 0..20 {
            assert!(net.reaches(host, &alloc::format!("node-{other}")));
        }
        assert_eq!(net.mesh(host).lsdb_len(), 40);
    }
}

#[test]
fn nothing_is_flooded_at_rest() {
    let mut net = big(8);
    net.settle();
    let count = |net: &Net| -> u64 {
        net.hosts
            .iter()
            .map(|host| host.mesh.counters().lsas_sent)
            .sum()
    };
    net.run(Duration::from_secs(60));
    let before = count(&net);
    net.run(Duration::from_secs(300));
    assert_eq!(count(&net), before);
}

#[test]
fn statements_are_repeated_before_they_expire() {
    let mut net = Net::new();
    for name in ["a", "b", "c"] {
        let mut config = Net::config(name, 100);
        config.lsa_lifetime = Duration::from_secs(60);
        net.add_with(config);
    }
    net.connect(0, 1);
    net.connect(1, 2);
    net.settle();
    let start = net.now;
    let lost = |net: &mut Net| !net.reaches(0, "c") || net.mesh(0).nodes().len() != 3;
    assert!(!net.run_until(start + Duration::from_secs(600), lost));
    assert!(net.mesh(0).counters().lsas_new > 20);
}

#[test]
fn a_change_of_capabilities_resends_no_links() {
    let (mut net, _) = chain(&["a", "b", "c"]);
    net.settle();
    let runs = net.mesh(2).counters().spf_runs;
    net.record = true;
    let now = net.now;
    net.mesh(0)
        .set_capabilities(now, vec![plugin("runner", &[])]);
    net.drain(0);
    net.settle();
    let kinds: BTreeSet<LsaKind> = net
        .seen
        .iter()
        .filter_map(|(_, frame)| match frame {
            Frame::Lsas(lsas) => Some(lsas),
            _ => None,
        })
        .flatten()
        .map(|lsa| lsa.key.kind)
        .collect();
    assert_eq!(kinds, BTreeSet::from([LsaKind::CAPABILITIES]));
    assert_eq!(net.mesh(2).nodes()[0].plugins[0].plugin, "runner");
    assert_eq!(net.mesh(2).counters().spf_runs, runs);
}

#[test]
fn a_flapping_link_does_not_flood_the_mesh() {
    let (mut net, mut links) = chain(&["a", "b", "c", "d"]);
    net.settle();
    let before = net.mesh(3).counters();
    let start = net.now;
    let mut flaps = 0;
    while net.now.since(start) < Duration::from_secs(10) {
        net.cut(links[0]);
        net.run(10 * MS);
        links[0] = net.connect(0, 1);
        net.run(10 * MS);
        flaps += 1;
    }
    assert!(flaps > 400);
    let after = net.mesh(3).counters();
    assert!(
        after.lsas_new - before.lsas_new < 60,
        "{:?}",
        after.lsas_new - before.lsas_new
    );
    assert!(
        after.spf_runs - before.spf_runs < 40,
        "{}",
        after.spf_runs - before.spf_runs
    );
    net.settle();
    assert!(net.reaches(3, "a"));
}

#[test]
fn lost_frames_are_made_up_for() {
    for seed in 0..20 {
        let mut net = big(8);
        let mut rng = fastrand::Rng::with_seed(seed);
        net.loses = Box::new(move |_, frame| {
            let routing = matches!(
                frame,
                Frame::Lsas(_) | Frame::LsaAck(_) | Frame::Digest { .. } | Frame::Summary { .. }
            );
            routing && rng.f64() < 0.3
        });
        let end = net.now + Duration::from_secs(120);
        let done = |net: &mut Net| net.quiet() && agree(net);
        assert!(net.run_until(end, done), "seed {seed}");
    }
}

#[test]
fn two_slow_answers_to_digests_do_not_echo_for_ever() {
    let mut net = Net::new();
    let a = net.add("a");
    let link = net.wire_to_test(a);
    net.say(a, link, Frame::Hello(Net::hello("x", 1)));
    net.record = true;
    for (reply, answers) in [(false, 0), (true, 1), (false, 0), (false, 0), (true, 1)] {
        net.seen.clear();
        let buckets = vec![7; receptor_proto::frame::DIGEST_BUCKETS];
        net.say(a, link, Frame::Digest { reply, buckets });
        let asks_nothing = |(_, frame): &&(End, Frame)| {
            assert!(!matches!(frame, Frame::Digest { reply: true, .. }));
            matches!(frame, Frame::Digest { .. })
        };
        assert_eq!(net.seen.iter().filter(asks_nothing).count(), answers);
    }
}

#[test]
fn what_was_missed_during_a_partition_is_made_up_for() {
    let (mut net, links) = chain(&["a", "b", "c", "d"]);
    net.settle();
    net.cut(links[1]);
    let now = net.now;
    for host in [0, 3] {
        net.mesh(host)
            .set_capabilities(now, vec![plugin("runner", &[])]);
        net.drain(host);
    }
    net.settle();
    assert!(!agree(&net) && !net.reaches(0, "d"));
    net.record = true;
    net.connect(1, 2);
    net.settle();
    assert!(agree(&net));
    assert_eq!(net.mesh(0).nodes()[3].plugins.len(), 1);
    assert_eq!(net.mesh(3).nodes()[0].plugins.len(), 1);
    // Not the whole database: two changed capabilities and two changed ends of the link, each
    // once over each link at most in both directions.
    let sent: usize = net
        .seen
        .iter()
        .map(|(_, frame)| {
            if let Frame::Lsas(lsas) = frame {
                lsas.len()
            } else {
                0
            }
        })
        .sum();
    assert!(sent <= 16, "{sent}");
}

#[test]
fn of_two_statements_with_one_number_the_same_one_counts_everywhere() {
    let (mut net, _) = chain(&["a", "b"]);
    net.settle();
    let body = |software: &str| CapabilitiesBody {
        software: software.to_string(),
        ..CapabilitiesBody::default()
    };
    let lsa = |instance, remaining_s, software| Lsa {
        key: LsaKey {
            node: id("x"),
            kind: LsaKind::CAPABILITIES,
        },
        seq: 9,
        instance,
        remaining_s,
        body: body(software).encode(),
    };
    // Two nodes with the id x go above each other, at either end of the mesh.
    let links = [0, 1].map(|host| {
        let link = net.wire_to_test(host);
        net.say(host, link, Frame::Hello(Net::hello("y", 1)));
        link
    });
    let software = |net: &mut Net, host| {
        let nodes = net.mesh(host).nodes();
        let x = nodes.into_iter().find(|node| node.node == id("x"));
        x.map(|node| node.software)
    };
    for (host, lsa, counts) in [
        (0, lsa(5, 1000, "first"), "first"),
        (1, lsa(6, 0, "taken back"), "first"),
        (1, lsa(6, 1000, "second"), "second"),
        (0, lsa(5, 1000, "first"), "second"),
    ] {
        net.say(host, links[host], Frame::Lsas(vec![lsa]));
        net.run(100 * MS);
        for host in [0, 1] {
            assert_eq!(software(&mut net, host).as_deref(), Some(counts));
        }
    }
}

#[test]
fn what_is_taken_back_is_gone_everywhere() {
    let (mut net, _) = chain(&["a", "b", "c", "d"]);
    net.settle();
    net.forget_events();
    let now = net.now;
    net.mesh(3).shutdown(now);
    net.drain(3);
    net.hosts[3].running = false;
    net.settle();
    for host in 0..3 {
        assert_eq!(net.mesh(host).reachability(&id("d")), Reachability::NoRoute);
        assert_eq!(
            net.mesh(host).lsdb_len(),
            8,
            "tombstones are kept for a while"
        );
    }
    net.run(Duration::from_secs(130));
    for host in 0..3 {
        assert_eq!(net.mesh(host).reachability(&id("d")), Reachability::Unknown);
        assert_eq!(net.mesh(host).lsdb_len(), 6);
        let gone = |event: &&Event| **event == Event::NodeForgotten { node: id("d") };
        assert_eq!(net.hosts[host].events.iter().filter(gone).count(), 1);
    }
    assert!(agree(&net));
}

#[test]
fn what_is_taken_back_before_it_comes_does_not_stay() {
    let (mut net, _) = chain(&["a", "b"]);
    net.settle();
    let link = net.wire_to_test(0);
    net.say(0, link, Frame::Hello(Net::hello("c", 1)));
    let stated = Lsa {
        key: LsaKey {
            node: id("x"),
            kind: LsaKind(99),
        },
        seq: 5,
        instance: 1,
        remaining_s: 1000,
        body: bytes::Bytes::from_static(b"anything"),
    };
    let taken_back = Lsa {
        seq: 6,
        remaining_s: 0,
        body: bytes::Bytes::new(),
        ..stated.clone()
    };
    net.say(0, link, Frame::Lsas(vec![taken_back]));
    net.say(0, link, Frame::Lsas(vec![stated]));
    net.settle();
    assert_eq!(net.mesh(1).lsdb_len(), 4, "nobody else is told");
    net.run(Duration::from_secs(130));
    assert_eq!(net.mesh(0).lsdb_len(), 4);
    assert!(agree(&net));
}

#[test]
fn dead_nodes_are_forgotten_and_do_not_come_back_through_others() {
    let (mut net, links) = chain(&["a", "b", "c", "d"]);
    net.settle();
    net.kill(3);
    net.settle();
    assert_eq!(net.mesh(0).reachability(&id("d")), Reachability::NoRoute);
    let view = net.mesh(0).nodes();
    assert!(view[3].node == id("d") && view[3].route.is_none());
    net.forget_events();
    // A link flaps while some have forgotten and others have not.
    net.run(Duration::from_secs(590));
    net.cut(links[0]);
    net.run(Duration::from_secs(5));
    net.connect(0, 1);
    net.run(Duration::from_secs(70));
    net.cut(links[1]);
    net.connect(1, 2);
    net.settle();
    for host in 0..3 {
        assert_eq!(net.mesh(host).reachability(&id("d")), Reachability::Unknown);
        assert!(net.had(host, |event| *event
            == Event::NodeForgotten { node: id("d") }));
        assert_eq!(net.mesh(host).nodes().len(), 3);
    }
    net.run(Duration::from_secs(70));
    assert!(agree(&net));
}

#[test]
fn a_forgotten_part_of_the_mesh_is_back_when_a_link_to_it_is() {
    let (mut net, links) = chain(&["a", "b", "c", "d"]);
    net.settle();
    net.cut(links[1]);
    net.run(Duration::from_secs(700));
    assert_eq!(net.mesh(0).reachability(&id("d")), Reachability::Unknown);
    net.connect(1, 2);
    net.settle();
    assert!(net.reaches(0, "d") && net.reaches(3, "a"));
    assert_eq!(net.mesh(0).nodes().len(), 4);
    assert!(agree(&net));
}

#[test]
fn a_node_that_lost_its_data_and_whose_clock_went_back_is_heard() {
    let (mut net, _) = chain(&["a", "b", "c"]);
    net.settle();
    net.kill(2);
    net.run(100 * MS);
    net.restart(2, 5);
    let now = net.now;
    net.mesh(2).set_capabilities(now, vec![plugin("new", &[])]);
    net.drain(2);
    net.connect(1, 2);
    net.settle();
    for host in 0..3 {
        assert!(net.reaches(host, "a") && net.reaches(host, "c"));
        assert_eq!(net.mesh(host).nodes()[2].plugins[0].plugin, "new");
        assert!(!net.had(host, |event| matches!(event, Event::DuplicateNodeId { .. })));
    }
    assert!(agree(&net));
}

#[test]
fn statements_of_kinds_of_later_versions_are_passed_on() {
    let (mut net, _) = chain(&["a", "b"]);
    net.settle();
    let link = net.wire_to_test(0);
    net.say(0, link, Frame::Hello(Net::hello("c", 1)));
    let mut lsa = Lsa {
        key: LsaKey {
            node: id("c"),
            kind: LsaKind(99),
        },
        seq: 5,
        instance: 1,
        remaining_s: 1000,
        body: bytes::Bytes::from_static(b"anything"),
    };
    net.say(0, link, Frame::Lsas(vec![lsa.clone()]));
    net.run(100 * MS);
    assert_eq!(net.mesh(1).lsdb_len(), 5);
    assert!(agree(&net));
    // What this version should understand and cannot is not.
    lsa.key.kind = LsaKind::LINKS;
    net.say(0, link, Frame::Lsas(vec![lsa.clone()]));
    lsa.seq = u64::MAX;
    net.say(0, link, Frame::Lsas(vec![lsa]));
    net.run(100 * MS);
    assert_eq!(net.mesh(1).lsdb_len(), 5);
    assert_eq!(net.mesh(0).counters().peer_mistakes, 2);
}

#[test]
fn a_database_has_a_limit() {
    let mut net = Net::new();
    let mut config = Net::config("a", 1);
    config.limits.lsas = 20;
    let a = net.add_with(config);
    let link = net.wire_to_test(a);
    net.say(a, link, Frame::Hello(Net::hello("b", 1)));
    for number in 0..100 {
        let links = (0..50)
            .map(|other| LinkEntry {
                neighbor: id(&alloc::format!("x-{number:03}-{other:03}")),
                cost: 1,
                leaf: true,
            })
            .collect();
        let lsa = Lsa {
            key: LsaKey {
                node: id(&alloc::format!("n-{number}")),
                kind: LsaKind::LINKS,
            },
            seq: 1,
            instance: 1,
            remaining_s: 1000,
            body: LinksBody { links }.encode(),
        };
        net.say(a, link, Frame::Lsas(vec![lsa]));
    }
    assert!(net.mesh(a).lsdb_len() <= 20);
    assert!(net.mesh(a).counters().peer_mistakes >= 80);
    // What this node itself states always has its place.
    let now = net.now;
    net.mesh(a)
        .set_capabilities(now, vec![plugin("runner", &[])]);
    net.run(Duration::from_secs(1));
    assert_eq!(net.mesh(a).nodes()[0].plugins.len(), 1);
}

#[test]
fn leaves_hang_on_their_routers_and_take_no_part_in_flooding() {
    let (mut net, _) = chain(&["a", "b", "c"]);
    let (x, y) = (net.add_leaf("x"), net.add_leaf("y"));
    net.connect(0, x);
    net.connect(2, y);
    let now = net.now;
    net.mesh(x)
        .set_capabilities(now, vec![plugin("runner", &[])]);
    net.drain(x);
    net.settle();
    // Three routers with two statements each, two leaves with one.
    for host in 0..3 {
        assert_eq!(net.mesh(host).lsdb_len(), 8);
        assert_eq!(net.mesh(host).nodes()[3].plugins.len(), 1);
        assert_eq!(links_of(&net.hosts[host], "x"), Some(vec![(id("a"), 1)]));
        assert!(net.had(
            host,
            |event| matches!(event, Event::NodeReachable { node } if *node == id("y"))
        ));
    }
    // A leaf has its own and its router's.
    assert_eq!(net.mesh(x).lsdb_len(), 3);
    assert_eq!(net.mesh(x).nodes().len(), 2);
    assert_eq!(net.echo(x, "y").unwrap().hops, 4);
    assert_eq!(net.echo(1, "x").unwrap().hops, 2);
    let code = |result: Result<EchoAnswer, ErrorBody>| result.unwrap_err().code;
    assert_eq!(code(net.echo(x, "nobody")), ErrorCode::NoSuchNode);
    // What changes elsewhere does not reach a leaf.
    let before = net.mesh(x).counters().lsas_received;
    net.kill(y);
    net.settle();
    assert_eq!(net.mesh(x).counters().lsas_received, before);
    assert_eq!(code(net.echo(x, "y")), ErrorCode::NoRoute);
}

#[test]
fn a_leaf_with_two_routers_uses_the_better_and_forwards_nothing() {
    let mut net = Net::new();
    let (a, b) = (net.add("a"), net.add("b"));
    let leaf = net.add_leaf("x");
    let near = net.connect_at(a, leaf, 1);
    net.connect_at(b, leaf, 5);
    net.settle();
    // The only connection of a and b is the leaf, which is none.
    assert!(!net.reaches(a, "b"));
    assert_eq!(net.mesh(leaf).next_link(&id("elsewhere")), Some(near));
    net.cut(near);
    assert!(net.mesh(leaf).next_link(&id("elsewhere")).is_some());
    net.settle();
    net.kill(b);
    assert_eq!(
        net.mesh(leaf).reachability(&id("elsewhere")),
        Reachability::NoRoute
    );
}

#[test]
fn a_leaf_between_two_meshes_finds_the_nodes_of_both() {
    let mut net = Net::new();
    let (a, b, c, d) = (net.add("a"), net.add("b"), net.add("c"), net.add("d"));
    let leaf = net.add_leaf("x");
    net.connect(a, c);
    net.connect(b, d);
    net.connect_at(a, leaf, 1);
    let far = net.connect_at(b, leaf, 5);
    net.settle();
    assert!(net.echo(leaf, "c").is_ok());
    // The better router says that it has no route; then the other one is asked.
    assert!(net.echo(leaf, "d").is_err());
    assert!(net.echo(leaf, "d").is_ok());
    assert!(net.echo(leaf, "c").is_ok());
    // An answer finds its way back like anything else.
    assert!(net.echo(3, "x").is_ok());
    // What nobody knows is asked of one after the other.
    for _ in 0..4 {
        assert!(net.echo(leaf, "nobody").is_err());
    }
    net.cut(far);
    assert!(net.echo(leaf, "d").is_err());
    assert!(net.echo(leaf, "c").is_ok());
}

#[test]
fn an_answer_of_a_leaf_takes_another_router_when_the_first_has_no_route() {
    let mut net = Net::new();
    let (a, b) = (net.add("a"), net.add("b"));
    let leaf = net.add_leaf("x");
    net.connect_at(a, leaf, 1);
    net.connect_at(b, leaf, 5);
    let c = net.add("c");
    net.connect(b, c);
    net.settle();
    // The first answer is lost; its router says so.
    assert!(net.echo(c, "x").is_err());
    assert!(net.echo(c, "x").is_ok());
}

#[test]
fn a_leaf_speaks_for_itself_alone() {
    let mut net = Net::new();
    let a = net.add("a");
    let link = net.wire_to_test(a);
    let hello = Hello {
        router: false,
        ..Net::hello("x", 1)
    };
    net.say(a, link, Frame::Hello(hello));
    let digest = Frame::Digest {
        reply: false,
        buckets: Vec::new(),
    };
    net.say(a, link, digest);
    let lsa = |node: &str| Lsa {
        key: LsaKey {
            node: id(node),
            kind: LsaKind(77),
        },
        seq: 1,
        instance: 1,
        remaining_s: 1000,
        body: bytes::Bytes::new(),
    };
    net.say(a, link, Frame::Lsas(vec![lsa("other"), lsa("x")]));
    assert_eq!(net.mesh(a).lsdb_len(), 3);
    let echo = Packet::new(id("other"), id("a"), 9, &Body::Echo { nonce: 1 });
    net.say(a, link, Frame::Packet(echo));
    assert_eq!(net.mesh(a).counters().peer_mistakes, 2);
}

#[test]
fn what_another_stated_in_a_leafs_name_does_not_keep_the_leaf_out() {
    let (mut net, _) = chain(&["a", "b"]);
    let leaf = net.add_leaf("x");
    net.connect(0, leaf);
    let link = net.connect(1, leaf);
    net.settle();
    let evil = net.wire_to_test(0);
    net.say(0, evil, Frame::Hello(Net::hello("evil", 1)));
    let lsa = Lsa {
        key: LsaKey {
            node: id("x"),
            kind: LsaKind(77),
        },
        seq: 1,
        instance: 500,
        remaining_s: 1000,
        body: bytes::Bytes::new(),
    };
    net.say(0, evil, Frame::Lsas(vec![lsa]));
    // Its other side is gone after the hold time.
    net.run(Duration::from_secs(6));
    net.settle();
    net.forget_events();
    net.cut(link);
    net.run(Duration::from_secs(1));
    net.connect(1, leaf);
    net.settle();
    assert!(net.reaches(1, "x"));
    for host in 0..3 {
        assert!(!net.had(host, |event| matches!(event, Event::DuplicateNodeId { .. })));
    }
}

#[test]
fn a_leaf_that_lost_its_data_and_was_a_router_once_is_heard() {
    let (mut net, _) = chain(&["a", "b", "x"]);
    net.settle();
    net.kill(2);
    let mut config = Net::config("x", 7);
    config.router = false;
    net.hosts[2].mesh = Mesh::new(config, net.now, []);
    net.hosts[2].running = true;
    let now = net.now;
    net.mesh(2)
        .set_capabilities(now, vec![plugin("runner", &[])]);
    net.connect(1, 2);
    net.settle();
    let nodes = net.mesh(0).nodes();
    assert_eq!(nodes[2].plugins.len(), 1);
    assert!(!nodes[2].router);
    assert_eq!(nodes[2].links, [(id("b"), 1)]);
    assert!(net.echo(0, "x").unwrap().arrived);
}

#[test]
fn any_goes_to_the_nearest_that_can() {
    let (mut net, _) = chain(&["a", "b", "c", "d"]);
    let now = net.now;
    net.mesh(2)
        .set_capabilities(now, vec![plugin("runner", &["execute"])]);
    net.mesh(3)
        .set_capabilities(now, vec![plugin("runner", &[])]);
    let site = |name: &str| BTreeMap::from([("site".to_string(), name.to_string())]);
    net.mesh(3).set_metadata(now, site("berlin"));
    for host in [2, 3] {
        net.drain(host);
    }
    net.settle();
    let none = BTreeMap::new();
    let cases: [(&str, &BTreeMap<String, String>, Option<&str>); 5] = [
        ("runner:execute", &none, Some("c")),
        ("runner:other", &none, Some("d")),
        ("runner:execute", &site("berlin"), Some("d")),
        ("runner:execute", &site("bonn"), None),
        ("echo:execute", &none, None),
    ];
    for (directive, metadata, expected) in cases {
        let directive = directive.parse().unwrap();
        let found = net.mesh(0).resolve(&directive, metadata);
        assert_eq!(found, expected.map(id), "{directive:?} {metadata:?}");
    }
    let own = net
        .mesh(3)
        .resolve(&"runner:execute".parse().unwrap(), &none);
    assert_eq!(own, Some(id("d")));
}

/// Named after the bug: a name that came after the routes were computed ended the search.
#[test]
fn any_is_answered_while_a_new_node_has_no_routes_yet() {
    let mut net = Net::new();
    let a = net.add("a");
    let now = net.now;
    net.mesh(a)
        .set_capabilities(now, vec![plugin("runner", &[])]);
    net.run(Duration::from_secs(2));
    let link = net.wire_to_test(a);
    net.say(a, link, Frame::Hello(Net::hello("newcomer", 1)));
    let directive = "runner:execute".parse().unwrap();
    let found = net.mesh(a).resolve(&directive, &BTreeMap::new());
    assert_eq!(found, Some(id("a")));
}
