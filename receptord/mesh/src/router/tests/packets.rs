//! Packets: order, credit, bounds, ends of ways.

use super::*;

fn packet(source: &str, destination: &str, body: &Body) -> Packet {
    Packet::new(id(source), id(destination), 30, body)
}

fn segment(offset: u64) -> Body {
    Body::Segment(Segment {
        epoch: 1,
        seq: 1,
        offset,
        piece: Piece {
            sum: 1,
            bytes: vec![7; 60_000].into(),
        },
    })
}

fn small(seq: u64) -> Body {
    Body::Receipt(Receipt {
        epoch: seq,
        ..Receipt::default()
    })
}

/// A router between the test, as `x`, and another one, `b`.
fn between() -> (Net, LinkId, LinkId) {
    let (mut net, links) = chain(&["a", "b"]);
    net.settle();
    let link = net.wire_to_test(0);
    net.say(0, link, Frame::Hello(Net::hello("x", 1)));
    net.run(50 * MS);
    net.record = true;
    (net, link, links[0])
}

fn packets(net: &Net, end: End) -> Vec<&Packet> {
    let packets = net.sent(end).filter_map(|frame| match frame {
        Frame::Packet(packet) => Some(packet),
        _ => None,
    });
    packets.collect()
}

fn notices(net: &Net, end: End) -> Vec<(ErrorCode, NodeId)> {
    packets(net, end)
        .into_iter()
        .filter_map(
            |packet| match Body::decode(packet.kind, packet.body.clone()) {
                Ok(Body::Undeliverable(notice)) => Some((notice.code, packet.destination.clone())),
                _ => None,
            },
        )
        .collect()
}

#[test]
fn echoes_tell_the_way_and_the_time() {
    let (mut net, _) = chain(&["a", "b", "c", "d"]);
    net.settle();
    let answer = net.echo(0, "d").unwrap();
    assert!(answer.arrived);
    assert_eq!((answer.from, answer.hops), (id("d"), 3));
    assert_eq!(answer.rtt, 6 * LATENCY);
    let own = net.echo(0, "a").unwrap();
    assert_eq!((own.from, own.hops, own.rtt), (id("a"), 0, Duration::ZERO));
}

#[test]
fn traceroute_names_every_node_on_the_way() {
    let (mut net, _) = chain(&["a", "b", "c", "d"]);
    net.settle();
    let way: Vec<(NodeId, u8, bool)> = (0..3)
        .map(|limit| {
            let answer = net.echo_at(0, "d", Some(limit)).unwrap();
            (answer.from, answer.hops, answer.arrived)
        })
        .collect();
    assert_eq!(
        way,
        [(id("b"), 1, false), (id("c"), 2, false), (id("d"), 3, true)]
    );
}

#[test]
fn an_echo_that_goes_in_circles_has_not_arrived() {
    let mut net = Net::new();
    let mut config = Net::config("a", 100);
    config.hop_limit = 1;
    net.add_with(config);
    for name in ["b", "c", "d"] {
        net.add(name);
        net.connect(net.hosts.len() - 2, net.hosts.len() - 1);
    }
    net.settle();
    assert_eq!(net.echo(0, "c").unwrap().hops, 2);
    assert_eq!(net.echo(0, "d").unwrap_err().code, ErrorCode::HopLimit);
}

#[test]
fn an_echo_to_nowhere_says_why() {
    let (mut net, links) = chain(&["a", "b", "c"]);
    net.settle();
    let error = net.echo(0, "nobody").unwrap_err();
    assert_eq!(error.code, ErrorCode::NoSuchNode);
    net.cut(links[1]);
    net.settle();
    let error = net.echo(0, "c").unwrap_err();
    assert_eq!(error.code, ErrorCode::NoRoute);
    assert_eq!(error.message, "no route to c; the last one went through b");
    net.connect(1, 2);
    net.settle();
    net.hosts[2].running = false;
    let error = net.echo(0, "c").unwrap_err();
    assert_eq!(error.code, ErrorCode::Timeout);
}

#[test]
fn the_number_of_echoes_is_limited() {
    let (mut net, _) = chain(&["a", "b"]);
    net.settle();
    net.hosts[1].running = false;
    let now = net.now;
    let limit = net.mesh(0).config().limits.echoes;
    for _ in 0..limit + 5 {
        net.mesh(0)
            .echo(now, &id("b"), None, Duration::from_secs(1));
    }
    net.drain(0);
    assert_eq!(net.hosts[0].echoes.len(), 5);
    net.run(Duration::from_secs(2));
    assert_eq!(net.hosts[0].echoes.len(), limit + 5);
}

#[test]
fn a_packet_without_a_way_comes_back_as_a_notice() {
    let (mut net, link, _) = between();
    let mut at_end = packet("x", "b", &segment(0));
    at_end.hop_limit = 0;
    for packet in [
        packet("x", "nobody", &segment(0)),
        packet("x", "nobody", &segment(60_000)),
        packet("x", "b", &segment(0)),
        at_end,
        packet("x", "nobody", &small(1)),
    ] {
        net.say(0, link, Frame::Packet(packet));
    }
    // One notice a destination, none about a receipt.
    let expected = [
        (ErrorCode::NoSuchNode, id("x")),
        (ErrorCode::HopLimit, id("x")),
    ];
    assert_eq!(notices(&net, (0, link)), expected);
    let counters = net.mesh(0).counters();
    assert_eq!(
        (counters.dropped_no_route, counters.dropped_hop_limit),
        (3, 1)
    );
    assert_eq!(counters.forwarded, 1);
}

#[test]
fn a_packet_that_comes_back_to_its_source_is_dropped() {
    let (mut net, link, wire) = between();
    net.say(0, link, Frame::Packet(packet("a", "b", &small(1))));
    assert!(packets(&net, (0, wire)).is_empty());
}

#[test]
fn headers_count_and_bodies_stay_as_they_came() {
    let (mut net, link, wire) = between();
    let mut strange = packet("x", "b", &Body::Unknown { kind: 200 });
    strange.body = bytes::Bytes::from_static(b"of a later version");
    strange.hops = 255;
    net.say(0, link, Frame::Packet(strange.clone()));
    strange.hop_limit -= 1;
    assert_eq!(packets(&net, (0, wire)), [&strange]);
    net.run(10 * MS);
    assert_eq!(net.mesh(1).counters().unknown, 1);
}

#[test]
fn a_full_queue_drops_the_newest_and_says_so_once_in_a_while() {
    let (mut net, link, wire) = between();
    net.stuck.insert((0, wire));
    let limit = net.mesh(0).config().limits.link_queue;
    for round in 0..200 {
        net.say(
            0,
            link,
            Frame::Packet(packet("x", "b", &segment(round * 60_000))),
        );
    }
    let [_, _, bulk] = net.mesh(0).queued(wire);
    assert!(bulk <= limit && bulk > limit / 2, "{bulk}");
    assert_eq!(notices(&net, (0, link)), [(ErrorCode::Busy, id("x"))]);
    assert!(net.mesh(0).counters().dropped_queue_full > 0);
    // A small message and a receipt still find their place, and go first when there is room.
    let mut cancel = packet("x", "b", &Body::Unknown { kind: 201 });
    cancel.priority = Priority::Small;
    net.say(0, link, Frame::Packet(cancel));
    net.say(0, link, Frame::Packet(packet("x", "b", &small(1))));
    let before = packets(&net, (0, wire)).len();
    net.stuck.clear();
    let now = net.now;
    net.mesh(0).handle_room(now, wire, 1 << 20);
    net.drain(0);
    let kinds: Vec<u8> = packets(&net, (0, wire))[before..before + 3]
        .iter()
        .map(|packet| packet.kind)
        .collect();
    assert_eq!(kinds, [kind::RECEIPT, 201, kind::SEGMENT]);
}

#[test]
fn a_stuck_neighbor_does_not_stop_what_goes_elsewhere() {
    let (mut net, link, wire) = between();
    let other = net.add("c");
    let open = net.connect(0, other);
    net.run(200 * MS);
    net.stuck.insert((0, wire));
    let window = net.mesh(0).config().limits.link_credit;
    let mut sent = 0;
    let mut granted = window;
    let size = packet("x", "b", &segment(0)).wire_size() as u64;
    for round in 0..1000 {
        for destination in ["b", "c"] {
            // As a peer that keeps to its credit.
            if sent + size > granted {
                continue;
            }
            sent += size;
            net.say(
                0,
                link,
                Frame::Packet(packet("x", destination, &segment(round))),
            );
        }
        let grant = net.sent((0, link)).filter_map(|frame| match frame {
            Frame::Credit { total } => Some(*total),
            _ => None,
        });
        granted = grant.last().unwrap_or(granted);
        net.run(5 * MS);
    }
    assert_eq!(packets(&net, (0, open)).len(), 1000);
    let [_, _, queued] = net.mesh(0).queued(wire);
    assert!(queued <= net.mesh(0).config().limits.link_queue);
    assert!(
        net.mesh(0)
            .links()
            .iter()
            .all(|view| view.state == LinkState::Up)
    );
}

#[test]
fn a_peer_that_sends_on_without_taking_grants_is_closed() {
    let (mut net, link, _) = between();
    // It does not read at all, so that in the end not even grants go out to it.
    net.stuck.insert((0, link));
    for nonce in 0..200_000 {
        net.say(0, link, Frame::Probe { nonce });
    }
    let one = packet("x", "b", &segment(0));
    let window = usize::try_from(net.mesh(0).config().limits.link_credit).unwrap();
    for _ in 0..window / one.wire_size() {
        net.say(0, link, Frame::Packet(one.clone()));
        net.run(MS);
    }
    assert_eq!(net.closed_code(0, link), None);
    net.say(0, link, Frame::Packet(one));
    assert_eq!(net.closed_code(0, link), Some(&ErrorCode::BadFrame));
}

#[test]
fn no_more_is_sent_than_the_peer_grants() {
    let (mut net, link, _) = between();
    let other = net.wire_to_test(0);
    let credit = receptor_proto::frame::CREDIT_FLOOR;
    let hello = Hello {
        credit,
        ..Net::hello("y", 1)
    };
    net.say(0, other, Frame::Hello(hello));
    net.run(50 * MS);
    let data = |net: &Net| -> u64 {
        let packets = packets(net, (0, other));
        let charged = |packet: &&&Packet| packet.priority != Priority::Control;
        packets
            .iter()
            .filter(charged)
            .map(|packet| packet.wire_size() as u64)
            .sum()
    };
    for round in 0..10 {
        net.say(0, link, Frame::Packet(packet("x", "y", &segment(round))));
    }
    let sent = data(&net);
    assert!(sent > 0 && sent <= credit, "{sent}");
    // Receipts take none, and a small message finds what bulk had to leave.
    net.say(0, link, Frame::Packet(packet("x", "y", &small(1))));
    let mut cancel = packet("x", "y", &Body::Unknown { kind: 201 });
    cancel.priority = Priority::Small;
    cancel.body = vec![0; 4000].into();
    net.say(0, link, Frame::Packet(cancel));
    let last: Vec<u8> = packets(&net, (0, other))
        .iter()
        .map(|packet| packet.kind)
        .collect();
    assert_eq!(last[last.len() - 2..], [kind::RECEIPT, 201]);
    assert!(data(&net) <= credit);
    // A grant that repeats an older one changes nothing.
    net.say(0, other, Frame::Credit { total: credit / 2 });
    assert_eq!(data(&net), sent + 4000 + 5 + 8);
    net.say(0, other, Frame::Credit { total: 10 * credit });
    assert_eq!(packets(&net, (0, other)).len(), 12);
}

#[test]
fn nothing_but_what_is_urgent_goes_to_a_writer_without_room() {
    let mut net = Net::new();
    let a = net.add("a");
    let link = LinkId(50);
    let info = LinkInfo {
        cost: 1,
        proven: Vec::new(),
        address: String::new(),
        dialled: false,
    };
    net.record = true;
    net.stuck.insert((a, link));
    let now = net.now;
    net.mesh(a).handle_link_up(now, link, info);
    net.drain(a);
    net.say(a, link, Frame::Hello(Net::hello("b", 1)));
    net.say(a, link, Frame::Probe { nonce: 5 });
    net.run(Duration::from_secs(2));
    let waits = |frame: &Frame| {
        matches!(
            frame,
            Frame::Packet(_) | Frame::Lsas(_) | Frame::Digest { .. } | Frame::Summary { .. }
        )
    };
    assert!(!net.sent((a, link)).any(waits));
    assert!(
        net.sent((a, link))
            .any(|frame| *frame == Frame::ProbeReply { nonce: 5 })
    );
    let now = net.now;
    net.mesh(a).handle_room(now, link, 1 << 16);
    net.drain(a);
    assert!(net.sent((a, link)).any(waits));
    // A peer that asks and asks and does not read gets no more than a bounded number of answers.
    net.seen.clear();
    for nonce in 0..100_000 {
        net.say(a, link, Frame::Probe { nonce });
    }
    let bytes: usize = net.sent((a, link)).map(Frame::encoded_len).sum();
    assert!(bytes < 200_000, "{bytes}");
}

#[test]
fn what_waits_for_a_failed_link_takes_the_other_way() {
    let mut net = Net::new();
    for name in ["a", "b", "c"] {
        net.add(name);
    }
    let direct = net.connect_at(0, 1, 1);
    net.connect_at(0, 2, 5);
    net.connect_at(2, 1, 5);
    let link = net.wire_to_test(0);
    net.say(0, link, Frame::Hello(Net::hello("x", 1)));
    net.run(50 * MS);
    net.stuck.insert((0, direct));
    for round in 0..30 {
        let mut one = packet("x", "b", &Body::Unknown { kind: 99 });
        one.priority = Priority::Bulk;
        one.body = vec![round; 60_000].into();
        net.say(0, link, Frame::Packet(one));
    }
    let [_, _, waiting] = net.mesh(0).queued(direct);
    assert!(waiting > 0);
    let before = net.mesh(1).counters().unknown;
    net.cut(direct);
    net.run(100 * MS);
    let came = net.mesh(1).counters().unknown - before;
    assert!(
        usize::try_from(came).unwrap() >= waiting / 60_100,
        "{came} of {waiting} bytes"
    );
}

#[test]
fn packets_wait_for_routes_that_are_being_computed() {
    let mut net = Net::new();
    for name in ["a", "b", "c", "e"] {
        net.add(name);
    }
    let direct = net.connect_at(0, 1, 1);
    net.connect_at(0, 2, 5);
    net.connect_at(2, 1, 5);
    let other = net.connect_at(0, 3, 1);
    let link = net.wire_to_test(0);
    net.say(0, link, Frame::Hello(Net::hello("x", 1)));
    net.run(Duration::from_secs(1));
    // The first failure is answered at once, so the second has to wait a moment.
    net.cut(other);
    net.cut(direct);
    let unknown = Body::Unknown { kind: 99 };
    net.say(0, link, Frame::Packet(packet("x", "b", &unknown)));
    net.say(0, link, Frame::Packet(packet("x", "e", &unknown)));
    net.run(50 * MS);
    assert_eq!(net.mesh(1).counters().unknown, 1);
    assert_eq!(net.mesh(0).counters().dropped_no_route, 1);
}

#[test]
fn garbage_is_counted_and_harmless() {
    let (mut net, link, _) = between();
    let mut rng = fastrand::Rng::with_seed(3);
    for _ in 0..2000 {
        let length = rng.usize(..60);
        let body: Vec<u8> = (0..length).map(|_| rng.u8(..)).collect();
        let destination = if rng.bool() { "a" } else { "b" };
        let mut one = packet("x", destination, &small(1));
        one.kind = rng.u8(1..8);
        one.hop_limit = rng.u8(..3);
        // Delivery has tests of its own for what reaches it.
        if destination == "a" && matches!(one.kind, kind::MESSAGE | kind::SEGMENT | kind::RECEIPT) {
            continue;
        }
        one.body = body.into();
        net.say(0, link, Frame::Packet(one));
    }
    net.run(100 * MS);
    assert!(net.mesh(0).counters().peer_mistakes > 0);
    assert!(net.echo(0, "b").unwrap().arrived);
}
