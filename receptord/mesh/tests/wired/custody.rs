//! Messages that routers keep for others: what is bounded, what is believed, and that nothing of it
//! loses or doubles a message, whoever is restarted, gone or lying.

use std::time::Duration;

use bytes::Bytes;
use receptor_mesh::{Limits, Recipient, Record, Submission};
use receptor_proto::packet::{About, Body, CancelReason, Custody, Holding, Undeliverable};
use receptor_proto::{ErrorCode, NodeId};

use crate::mesh::{Wired, id, messages, node};

/// What a way that is known counts as at once: a computation of routes and the hops.
const AT_ONCE_MS: u64 = 100;
/// How long an origin waits before it entrusts messages to others, and a little.
const ENTRUST_MS: u64 = 700;

/// origin – a – b, b cut off, and this many messages of the origin for b.
fn kept(count: u128) -> Wired {
    let mut wired = Wired::chain(&["origin", "a", "b"]);
    cut_off(&mut wired, count);
    wired
}

fn cut_off(wired: &mut Wired, count: u128) {
    wired.cut(wired.wire_between("a", "b"));
    wired.run(100);
    for n in 1..=count {
        wired.send("origin", "b", n);
    }
    wired.run(ENTRUST_MS);
}

fn word(holding: Holding, never_sent: bool, first: u64, last: u64) -> Body {
    Body::Custody(Custody {
        holding,
        origin: node("origin"),
        recipient: node("b"),
        epoch: 2,
        messages: vec![(first, last)],
        never_sent,
    })
}

fn join(wired: &mut Wired) {
    wired.join(wired.wire_between("a", "b"));
}

fn end(wired: &mut Wired, host: &str, work: u128) -> Option<Option<ErrorCode>> {
    let eof = wired.host(host).ends.get(&id(work))?;
    Some(eof.error.as_ref().map(|error| error.code.clone()))
}

#[test]
fn what_is_kept_leaves_as_soon_as_there_is_a_way() {
    let mut wired = kept(3);
    assert_eq!(wired.custody("a"), 3);
    wired.kill("origin");
    wired.run(60_000);
    join(&mut wired);
    wired.run_until(AT_ONCE_MS, |wired| wired.host("b").runs.len() == 3);
    wired.run(ENTRUST_MS);
    assert_eq!(
        wired.custody("a"),
        3,
        "the answers, for a node that is gone"
    );
    assert_eq!(wired.hosts[1].disk.messages.len(), 3);
}

#[test]
fn what_waits_behind_messages_that_expired_leaves_too() {
    /// As many as are under way at once.
    const FIRST: u128 = 64;
    let mut wired = Wired::new(&["origin", "a", "b"]);
    wired.configure("b", |config| config.limits.works = 1);
    wired.wire(0, 1);
    wired.wire(1, 2);
    wired.run(2000);
    // It has no room for more.
    wired.host("b").busy = true;
    wired.send("a", "b", 1000);
    wired.run_until(AT_ONCE_MS, |wired| wired.host("b").runs.len() == 1);
    wired.cut(wired.wire_between("a", "b"));
    wired.run(100);
    for n in 1..=FIRST {
        let recipient = Recipient::Node(node("b"));
        let submission = Submission {
            expiry: Duration::from_secs(20),
            ..Wired::submission(n, recipient, Bytes::new())
        };
        wired.submit("origin", submission);
    }
    wired.run(ENTRUST_MS);
    wired.send("origin", "b", FIRST + 1);
    wired.run(ENTRUST_MS);
    assert_eq!(wired.custody("a") as u128, FIRST + 1);
    wired.kill("origin");
    join(&mut wired);
    wired.run(60_000);
    assert_eq!(wired.custody("a"), 1);
    wired.finish_all("b");
    wired.run_until(60_000, |wired| {
        wired.host("b").runs == [id(1000), id(FIRST + 1)]
    });
}

#[test]
fn what_comes_later_is_kept_on_the_way_too() {
    let mut wired = kept(1);
    wired.run(5000);
    wired.send("origin", "b", 2);
    wired.run(AT_ONCE_MS);
    assert_eq!(wired.custody("a"), 2, "a request");
    // An answer, whose way back is cut before its work ends.
    wired.host("b").busy = true;
    join(&mut wired);
    wired.run_until(AT_ONCE_MS, |wired| wired.host("b").runs.len() == 2);
    wired.cut(wired.wire_between("origin", "a"));
    wired.run(5000);
    wired.respond("b", id(1), Bytes::from_static(b"part"));
    wired.run(AT_ONCE_MS + ENTRUST_MS);
    wired.respond("b", id(1), Bytes::from_static(b"part"));
    wired.run(AT_ONCE_MS);
    assert_eq!(wired.custody("a"), 2, "the answers");
}

#[test]
fn what_is_cancelled_while_it_is_kept_on_the_way_never_runs() {
    let mut wired = kept(2);
    wired.run(5000);
    let now = wired.now();
    wired
        .mesh("origin")
        .cancel(now, id(1), CancelReason::User)
        .unwrap();
    wired.run(AT_ONCE_MS);
    let cancelled = Some(Some(ErrorCode::Cancelled));
    assert_eq!(end(&mut wired, "origin", 1), cancelled, "at once");
    let said = wired.host("origin").ends[&id(1)].error.clone().unwrap();
    assert_eq!(said.message, "cancelled before it arrived");
    join(&mut wired);
    wired.run_until(AT_ONCE_MS, |wired| wired.host("b").runs == [id(2)]);
    wired.run_until(60_000, |wired| wired.custody("a") == 0);
    wired.run(1000);
    for host in &wired.hosts {
        let left = &host.disk.messages;
        assert!(left.is_empty(), "{}: {left:?}", host.id);
    }
}

#[test]
fn what_waits_at_its_origin_leaves_as_soon_as_there_is_a_way_whichever() {
    let mut wired = Wired::chain(&["origin", "a"]);
    wired.hosts.extend(Wired::new(&["b"]).hosts);
    let (origin, b) = (wired.at("origin"), wired.at("b"));
    let direct = wired.wire(origin, b);
    wired.run(1000);
    wired.cut(direct);
    wired.run(1000);
    wired.send("origin", "b", 1);
    wired.run(60_000);
    // A new link, somewhere else than the one that failed.
    let a = wired.at("a");
    wired.wire(a, b);
    wired.run_until(AT_ONCE_MS, |wired| wired.host("b").runs.len() == 1);
}

#[test]
fn a_custodian_that_gets_no_further_does_not_hold_up_a_new_way() {
    // The custodian is on one side, the way comes up on the other.
    let mut wired = kept(3);
    assert_eq!(wired.custody("a"), 3);
    wired.cut(wired.wire_between("origin", "a"));
    wired.run(100);
    let (origin, b) = (wired.at("origin"), wired.at("b"));
    wired.wire(origin, b);
    wired.run_until(AT_ONCE_MS, |wired| wired.host("b").runs.len() == 3);
    for n in 1..=3 {
        assert_eq!(end(&mut wired, "origin", n), Some(None));
    }
}

#[test]
fn a_receipt_that_is_lost_holds_up_its_origin_for_a_second_or_so() {
    let mut wired = Wired::chain(&["origin", "a", "b"]);
    wired.cut(wired.wire_between("a", "b"));
    wired.run(100);
    let to = Recipient::Node(node("b"));
    let mut submission = Wired::submission(1, to, Bytes::new());
    submission.respond = false;
    wired.submit("origin", submission);
    wired.run(ENTRUST_MS);
    assert_eq!(wired.custody("a"), 1);
    let wire = wired.wire_between("origin", "a");
    wired.lose_packets(wire, "a", true);
    join(&mut wired);
    wired.run_until(AT_ONCE_MS, |wired| wired.host("b").runs.len() == 1);
    wired.run(10);
    wired.lose_packets(wire, "a", false);
    assert_eq!(wired.host("origin").disk.messages.len(), 1);
    let took = wired.run_until(5000, |wired| wired.host("origin").disk.messages.is_empty());
    assert!(took < 2500, "{took} ms");
    assert_eq!(wired.host("b").runs.len(), 1);
}

#[test]
fn messages_kept_are_bounded_in_number_for_one_recipient_and_in_bytes() {
    let each = |limits: &mut Limits| limits.custody_entries_each = 2;
    let all = |limits: &mut Limits| limits.custody_entries = 2;
    // Two envelopes and 100 bytes.
    let bytes = |limits: &mut Limits| limits.custody_bytes = 2 * 256 + 100;
    for limit in [each, all, bytes] {
        let mut wired = Wired::new(&["origin", "a", "b"]);
        wired.configure("a", |config| limit(&mut config.limits));
        wired.wire(0, 1);
        wired.wire(1, 2);
        wired.run(1000);
        wired.cut(wired.wire_between("a", "b"));
        wired.run(100);
        for n in 1..=4 {
            let body = Bytes::from_static(&[7; 40]);
            let to = Recipient::Node(node("b"));
            wired.submit("origin", Wired::submission(n, to, body));
        }
        wired.run(5000);
        assert_eq!(wired.custody("a"), 2);
        assert_eq!(
            wired.host("origin").disk.messages.len(),
            4,
            "the origin has all"
        );
        join(&mut wired);
        wired.run_until(3000, |wired| wired.host("origin").ends.len() == 4);
        let mut runs = wired.host("b").runs.clone();
        runs.sort_unstable();
        assert_eq!(runs, [id(1), id(2), id(3), id(4)]);
        assert_eq!(wired.custody("a"), 0);
    }
}

#[test]
fn one_recipient_does_not_take_the_room_of_others() {
    let mut wired = Wired::new(&["origin", "a", "b", "c"]);
    wired.configure("a", |config| config.limits.custody_entries_each = 2);
    wired.wire(0, 1);
    wired.wire(1, 2);
    wired.wire(1, 3);
    wired.run(1000);
    wired.cut(wired.wire_between("a", "b"));
    wired.cut(wired.wire_between("a", "c"));
    wired.run(100);
    for n in 1..=4 {
        wired.send("origin", "b", n);
    }
    wired.run(ENTRUST_MS);
    wired.send("origin", "c", 9);
    wired.run(ENTRUST_MS);
    assert_eq!(wired.custody("a"), 3);
}

#[test]
fn a_disk_that_refuses_leaves_a_message_with_its_origin() {
    let mut wired = Wired::chain(&["origin", "a", "b"]);
    wired.host("a").disk.broken = true;
    cut_off(&mut wired, 2);
    wired.run(5000);
    assert_eq!(wired.custody("a"), 0);
    assert_eq!(wired.host("origin").disk.messages.len(), 2);
    wired.host("a").disk.broken = false;
    join(&mut wired);
    wired.run_until(3000, |wired| wired.host("origin").ends.len() == 2);
    assert_eq!(wired.host("b").runs.len(), 2);
}

#[test]
fn nobody_hears_of_a_message_in_custody_before_it_is_on_the_disk() {
    let mut wired = Wired::chain(&["origin", "a", "b"]);
    wired.host("a").disk.rests = true;
    cut_off(&mut wired, 1);
    let said = |wired: &mut Wired| {
        let sent = &wired.host("a").sent;
        let custody = |kind| kind == receptor_proto::packet::kind::CUSTODY;
        sent.iter().filter(|packet| custody(packet.kind)).count()
    };
    assert_eq!(said(&mut wired), 0);
    wired.wake_disk("a");
    assert_eq!(said(&mut wired), 1);
}

#[test]
fn a_custodian_that_was_restarted_delivers_what_it_has() {
    let mut wired = kept(3);
    wired.kill("origin");
    wired.kill("a");
    wired.run(1000);
    wired.start("a");
    assert_eq!(wired.custody("a"), 3);
    join(&mut wired);
    wired.run_until(3000, |wired| wired.host("b").runs.len() == 3);
}

#[test]
fn a_custodian_that_is_gone_for_ever_costs_nothing_but_a_new_way() {
    let mut wired = kept(3);
    wired.kill("a");
    wired.run(10_000);
    let (origin, b) = (wired.at("origin"), wired.at("b"));
    wired.wire(origin, b);
    wired.run_until(AT_ONCE_MS, |wired| wired.host("b").runs.len() == 3);
    wired.run_until(1000, |wired| wired.host("origin").ends.len() == 3);
}

#[test]
fn two_custodians_of_one_message_deliver_it_once_and_both_forget_it() {
    let mut wired = Wired::chain(&["origin", "a", "c", "b"]);
    let (a_c, c_b) = (wired.wire_between("a", "c"), wired.wire_between("c", "b"));
    wired.cut(c_b);
    wired.run(100);
    for n in 1..=3 {
        wired.send("origin", "b", n);
    }
    wired.run(ENTRUST_MS);
    assert_eq!((wired.custody("a"), wired.custody("c")), (0, 3));
    wired.cut(a_c);
    wired.run(ENTRUST_MS);
    assert_eq!((wired.custody("a"), wired.custody("c")), (3, 3));
    wired.kill("origin");
    wired.join(c_b);
    wired.run_until(3000, |wired| wired.host("b").runs.len() == 3);
    wired.join(a_c);
    let requests = |wired: &mut Wired, custodian: &str| {
        let kept = wired.host(custodian).disk.messages.values();
        let to_b = |record: &&Record| matches!(record, Record::Transit { recipient, .. } if *recipient == node("b"));
        kept.filter(to_b).count()
    };
    wired.run_until(3000, |wired| {
        requests(wired, "a") + requests(wired, "c") == 0
    });
    assert_eq!(wired.host("b").runs.len(), 3);
}

#[test]
fn an_expired_message_is_given_up_at_both_ends_of_its_way() {
    for origin_stays in [true, false] {
        let mut wired = Wired::chain(&["origin", "a", "b"]);
        wired.cut(wired.wire_between("a", "b"));
        wired.run(100);
        let mut submission =
            Wired::submission(1, Recipient::Node(node("b")), Bytes::from_static(b"x"));
        submission.expiry = Duration::from_secs(10);
        wired.submit("origin", submission);
        wired.run(ENTRUST_MS);
        assert_eq!(wired.custody("a"), 1);
        if !origin_stays {
            wired.kill("origin");
        }
        // Its lifetime, and how long its origin waits for a word of the recipient after it.
        wired.run(16_000);
        assert_eq!(wired.custody("a"), 0);
        assert!(wired.host("a").disk.messages.is_empty());
        let letters = wired.host("a").letters.clone();
        if origin_stays {
            // The custodian never sent it on, so that its sender hears more than «lost».
            assert_eq!(end(&mut wired, "origin", 1), Some(Some(ErrorCode::Expired)));
            assert_eq!(wired.host("origin").letters.len(), 1);
            assert_eq!(letters, [], "its origin has it");
        } else {
            let [(work, origin, reason)] = &letters[..] else {
                panic!("{letters:?}");
            };
            assert_eq!((*work, origin), (id(1), &Some(node("origin"))));
            assert_eq!(reason.code, ErrorCode::Expired);
        }
    }
}

#[test]
fn what_an_operator_drops_is_given_up_by_its_origin() {
    let mut wired = kept(2);
    let now = wired.now();
    wired.mesh("a").drop_waiting(now, id(1)).unwrap();
    wired.settle();
    wired.run(10);
    assert_eq!(wired.custody("a"), 1);
    assert_eq!(
        end(&mut wired, "origin", 1),
        Some(Some(ErrorCode::Cancelled))
    );
    let eof = &wired.host("origin").ends[&id(1)];
    let text = eof.error.clone().unwrap().message;
    assert!(text.contains("operator of a"), "{text}");
    assert_eq!(wired.custody("a"), 1);
    join(&mut wired);
    wired.run(5000);
    assert_eq!(wired.host("b").runs, [id(2)]);
    assert_eq!(end(&mut wired, "origin", 2), Some(None));
}

#[test]
fn what_an_operator_drops_without_a_way_to_its_origin_is_gone_here_alone() {
    let mut wired = kept(1);
    wired.kill("origin");
    wired.run(100);
    let now = wired.now();
    wired.mesh("a").drop_waiting(now, id(1)).unwrap();
    wired.settle();
    assert_eq!(wired.custody("a"), 0);
    // The origin has not heard of it, and sends it again.
    wired.start("origin");
    join(&mut wired);
    wired.run_until(5000, |wired| wired.host("b").runs.len() == 1);
}

/// Words of a member that has nothing to do with the messages, and of nobody at all.
#[test]
fn a_stranger_is_not_believed_whatever_it_says() {
    for holding in [
        Holding::Kept,
        Holding::Refused,
        Holding::Dropped,
        Holding::GivenUp,
    ] {
        for never_sent in [false, true] {
            let mut wired = Wired::new(&["origin", "a", "b", "liar"]);
            for (x, y) in [(0, 1), (1, 2), (0, 3)] {
                wired.wire(x, y);
            }
            wired.run(1000);
            // On its way, with the answer not back yet.
            wired.stall(wired.wire_between("a", "b"), "a", true);
            wired.host("b").disk.rests = true;
            wired.send("origin", "b", 1);
            let wire = wired.wire_between("origin", "liar");
            for _ in 0..3 {
                wired.inject(
                    wire,
                    "origin",
                    "liar",
                    &word(holding, never_sent, 1, u64::MAX),
                );
            }
            wired.cut(wired.wire_between("a", "b"));
            wired.run(ENTRUST_MS);
            wired.inject(
                wire,
                "origin",
                "liar",
                &word(holding, never_sent, 1, u64::MAX),
            );
            wired.run(ENTRUST_MS);
            assert_eq!(
                wired.custody("a"),
                1,
                "{holding:?}: it is entrusted all the same"
            );
            assert_eq!(wired.host("origin").disk.messages.len(), 1);
            wired.wake_disk("b");
            join(&mut wired);
            wired.run_until(3000, |wired| wired.host("origin").ends.len() == 1);
            assert_eq!(end(&mut wired, "origin", 1), Some(None), "{holding:?}");
            assert_eq!(wired.host("b").runs.len(), 1);
        }
    }
}

/// A node on the way can say that it has what it has not: that costs time, and no message.
#[test]
fn a_lie_of_a_node_on_the_way_only_delays() {
    for holding in [Holding::Kept, Holding::Refused, Holding::Dropped] {
        let mut wired = kept(2);
        let wire = wired.wire_between("origin", "a");
        for round in 0..20 {
            wired.inject(
                wire,
                "origin",
                "a",
                &word(holding, round % 2 == 0, 1, u64::MAX),
            );
            wired.run(300);
        }
        assert_eq!(wired.host("origin").disk.messages.len(), 2, "{holding:?}");
        join(&mut wired);
        let took = wired.run_until(20_000, |wired| {
            if wired.now().as_micros() % 50_000 == 0 {
                wired.inject(wire, "origin", "a", &word(holding, true, 1, u64::MAX));
            }
            wired.host("origin").ends.len() == 2
        });
        assert!(took < 20_000);
        assert_eq!(wired.host("b").runs.len(), 2);
    }
}

#[test]
fn a_custodian_lets_go_only_for_its_recipient_or_who_may_have_got_it() {
    let mut wired = Wired::new(&["origin", "a", "b", "liar"]);
    for (x, y) in [(0, 1), (1, 2), (1, 3)] {
        wired.wire(x, y);
    }
    wired.run(1000);
    cut_off(&mut wired, 2);
    wired.kill("origin");
    let wire = wired.wire_between("a", "liar");
    for holding in [
        Holding::Kept,
        Holding::Done,
        Holding::Refused,
        Holding::Dropped,
        Holding::GivenUp,
    ] {
        wired.inject(wire, "a", "liar", &word(holding, true, 0, u64::MAX));
    }
    // Nor for a node on the way to which nothing was sent: nobody can have it.
    wired.inject(wire, "a", "b", &word(Holding::Kept, false, 0, u64::MAX));
    assert_eq!(wired.custody("a"), 2);
    // Nor for a stranger when it was sent on.
    wired.host("b").disk.rests = true;
    join(&mut wired);
    wired.run_until(AT_ONCE_MS, |wired| !wired.host("b").disk.is_idle());
    wired.inject(wire, "a", "liar", &word(Holding::Kept, false, 0, u64::MAX));
    assert_eq!(wired.custody("a"), 2);
    wired.wake_disk("b");
    wired.run_until(AT_ONCE_MS, |wired| wired.host("b").runs.len() == 2);
}

#[test]
fn a_notice_of_a_stranger_does_not_make_a_message_count_as_not_sent() {
    let mut wired = Wired::new(&["origin", "a", "b", "liar"]);
    for (x, y) in [(0, 1), (1, 2), (0, 3)] {
        wired.wire(x, y);
    }
    wired.run(1000);
    wired.host("b").disk.rests = true;
    wired.send("origin", "b", 1);
    // b has it, and nobody else knows.
    wired.cut(wired.wire_between("a", "b"));
    let notice = |seq| {
        Body::Undeliverable(Undeliverable {
            code: ErrorCode::NoRoute,
            destination: node("b"),
            about: About::Message { epoch: 2, seq },
        })
    };
    let wire = wired.wire_between("origin", "liar");
    wired.inject(wire, "origin", "liar", &notice(1));
    let now = wired.now();
    let cancelled = CancelReason::User;
    wired.mesh("origin").cancel(now, id(1), cancelled).unwrap();
    wired.settle();
    // A message that may have arrived is not called cancelled before its recipient says so.
    assert_eq!(end(&mut wired, "origin", 1), None);
    wired.wake_disk("b");
    join(&mut wired);
    wired.run_until(5000, |wired| wired.host("origin").ends.len() == 1);
}

/// A next hop that is alive and slow: what it does not take waits at its origin, and the little
/// that waits in between goes on when it can, or into custody when the link fails.
#[test]
fn a_slow_next_hop_bounds_memory_and_loses_nothing() {
    for fails in [false, true] {
        let mut wired = Wired::chain(&["origin", "a", "b"]);
        let wire = wired.wire_between("a", "b");
        wired.stall(wire, "a", true);
        let body = Bytes::from(vec![7; 60_000]);
        let count = 200;
        for n in 1..=count {
            let to = Recipient::Node(node("b"));
            wired.submit("origin", Wired::submission(n, to, body.clone()));
        }
        wired.run(700);
        let limits = Limits::default();
        let most = limits.link_queue.min(limits.flow_window) + 128 * 1024;
        let queued = wired.host("a").queued_most;
        assert!(
            queued > 64 * 1024 && queued < most,
            "{queued} bytes wait in between"
        );
        assert_eq!(wired.custody("a"), 0, "the link is up");
        let durable = u128::try_from(wired.host("origin").disk.messages.len()).unwrap();
        assert!(durable + wired.host("b").runs.len() as u128 >= count);
        if fails {
            wired.cut(wire);
            wired.run(ENTRUST_MS);
            assert!(wired.custody("a") > 0, "what waited in between is kept");
            wired.kill("origin");
            let kept = wired.custody("a") + wired.host("b").runs.len();
            wired.join(wire);
            wired.run_until(5000, |wired| wired.host("b").runs.len() >= kept);
            wired.start("origin");
        } else {
            wired.stall(wire, "a", false);
        }
        wired.run_until(20_000, |wired| {
            wired.host("origin").ends.len() as u128 == count
        });
        assert_eq!(wired.host("b").runs.len() as u128, count);
    }
}

#[test]
fn the_way_to_a_recipient_is_told_from_other_nodes() {
    let mut wired = kept(1);
    let sent = messages(&wired.host("origin").sent);
    let to: Vec<&NodeId> = sent.iter().map(|(to, _)| to).collect();
    assert_eq!(to, [&node("a")], "entrusted to the last node on the way");
}
