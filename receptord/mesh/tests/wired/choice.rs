//! Messages to any node that qualifies: the choice is made again while nobody has the message, and
//! never after.

use std::collections::BTreeMap;

use bytes::Bytes;
use receptor_mesh::{Recipient, Record, Submission};

use crate::mesh::{Wired, id, node};

/// Long enough for everything to come right.
const SOON_MS: u64 = 5000;

/// b is next to the origin, c behind a; both have the plugin.
fn two() -> Wired {
    let mut wired = Wired::new(&["origin", "a", "b", "c"]);
    offered(&mut wired);
    wired
}

fn offered(wired: &mut Wired) {
    for (x, y) in [("origin", "b"), ("origin", "a"), ("a", "c")] {
        let (x, y) = (wired.at(x), wired.at(y));
        wired.wire(x, y);
    }
    wired.offer("b", "p");
    wired.offer("c", "p");
    wired.run(2000);
}

fn any(work: u128) -> Submission {
    let metadata = BTreeMap::new();
    Wired::submission(work, Recipient::Any { metadata }, Bytes::from_static(b"x"))
}

/// Not sent before it is on the disk, which rests.
fn unsent(work: u128) -> Submission {
    Submission {
        repeatable: true,
        ..any(work)
    }
}

fn chosen(wired: &mut Wired, work: u128) -> String {
    wired.host("origin").accepted[&id(work)].to_string()
}

fn outgoing(wired: &mut Wired) -> Vec<String> {
    let kept = wired.host("origin").disk.messages.values();
    let recipient = |record: &Record| match record {
        Record::Outgoing { recipient, .. } => Some(recipient.to_string()),
        Record::Incoming { .. }
        | Record::Transit { .. }
        | Record::Started { .. }
        | Record::Received { .. } => None,
    };
    kept.filter_map(recipient).collect()
}

/// Accepted for b, which is gone before the message left.
fn stranded() -> Wired {
    let mut wired = two();
    wired.host("origin").disk.rests = true;
    wired.submit("origin", unsent(1));
    wired.kill("b");
    wired.run(100);
    wired
}

#[test]
fn a_message_that_never_left_goes_to_another_and_runs_once() {
    let mut wired = stranded();
    wired.wake_disk("origin");
    wired.run_until(SOON_MS, |wired| wired.host("origin").ends.len() == 1);
    assert_eq!(chosen(&mut wired, 1), "c");
    wired.start("b");
    wired.run(SOON_MS);
    assert_eq!(wired.host("c").runs, [id(1)]);
    assert_eq!(wired.host("b").runs, []);
    assert_eq!(outgoing(&mut wired), [""; 0]);
}

#[test]
fn with_nobody_else_it_waits_for_whoever_comes_first() {
    for first in ["b", "c"] {
        let mut wired = two();
        wired.cut(wired.wire_between("a", "c"));
        wired.run(100);
        wired.host("origin").disk.rests = true;
        wired.submit("origin", unsent(1));
        wired.kill("b");
        wired.wake_disk("origin");
        wired.run(60_000);
        assert_eq!(wired.custody("a"), 0, "it stays where it can still choose");
        if first == "b" {
            wired.start("b");
        } else {
            wired.join(wired.wire_between("a", "c"));
        }
        wired.run_until(100, |wired| !wired.host(first).runs.is_empty());
        wired.start_if_down("b");
        wired.join(wired.wire_between("a", "c"));
        wired.run(SOON_MS);
        assert_eq!(wired.host("b").runs.len() + wired.host("c").runs.len(), 1);
    }
}

#[test]
fn with_nobody_else_it_goes_to_a_node_that_gets_the_plugin_later() {
    for late in ["c", "origin"] {
        let mut wired = Wired::new(&["origin", "a", "b", "c"]);
        for (x, y) in [("origin", "b"), ("origin", "a"), ("a", "c")] {
            let (x, y) = (wired.at(x), wired.at(y));
            wired.wire(x, y);
        }
        wired.offer("b", "p");
        wired.run(2000);
        wired.host("origin").disk.rests = true;
        wired.submit("origin", unsent(1));
        wired.kill("b");
        wired.wake_disk("origin");
        wired.run(60_000);
        assert_eq!(chosen(&mut wired, 1), "b");
        // No way is another one than before.
        wired.offer(late, "p");
        wired.run_until(SOON_MS, |wired| wired.host(late).runs == [id(1)]);
        wired.run(SOON_MS);
        assert_eq!(wired.host("origin").ends[&id(1)].code, 0);
    }
}

/// More than are chosen for in one turn, while nobody else is there.
#[test]
fn many_that_nobody_else_can_take_wait_and_go_to_whoever_comes() {
    let count = 600;
    let mut wired = two();
    wired.cut(wired.wire_between("a", "c"));
    wired.run(100);
    wired.host("origin").disk.rests = true;
    for work in 1..=count {
        wired.submit("origin", unsent(work));
    }
    wired.kill("b");
    wired.wake_disk("origin");
    wired.run(SOON_MS);
    wired.join(wired.wire_between("a", "c"));
    wired.run_until(SOON_MS, |wired| {
        wired.host("origin").ends.len() as u128 == count
    });
    assert_eq!(wired.host("c").runs.len() as u128, count);
}

#[test]
fn what_left_stays_with_its_choice_and_what_did_not_goes_elsewhere() {
    let mut wired = two();
    wired.stall(wired.wire_between("origin", "b"), "origin", true);
    wired.host("b").disk.rests = true;
    let count = 120;
    for work in 1..=count {
        let body = Bytes::from(vec![7; 60_000]);
        let payload = receptor_mesh::Payload::Inline(body);
        wired.submit(
            "origin",
            Submission {
                payload,
                ..any(work)
            },
        );
    }
    wired.run(500);
    assert!((1..=count).all(|work| chosen(&mut wired, work) == "b"));
    // What b has got it has not written: it is away with it.
    wired.kill("b");
    wired.run(SOON_MS);
    let moved = wired.host("c").runs.clone();
    assert!(
        !moved.is_empty() && (moved.len() as u128) < count,
        "{}",
        moved.len()
    );
    wired.host("b").disk.rests = false;
    wired.start("b");
    wired.run_until(20_000, |wired| {
        wired.host("origin").ends.len() as u128 == count
    });
    let mut runs = wired.host("b").runs.clone();
    runs.extend(&wired.host("c").runs);
    runs.sort_unstable();
    assert_eq!(runs, (1..=count).map(id).collect::<Vec<_>>());
    assert_eq!(outgoing(&mut wired), [""; 0]);
}

#[test]
fn what_came_back_for_certain_may_go_to_another() {
    let mut wired = Wired::new(&["origin", "a", "b", "c"]);
    wired.configure("a", |config| config.limits.custody_entries = 0);
    for (x, y) in [("origin", "a"), ("a", "b"), ("origin", "c")] {
        let (x, y) = (wired.at(x), wired.at(y));
        wired.wire(x, y);
    }
    wired.offer("b", "p");
    wired.run(2000);
    // The origin does not know yet.
    wired.cut(wired.wire_between("a", "b"));
    wired.submit("origin", any(1));
    wired.offer("c", "p");
    wired.run_until(SOON_MS, |wired| wired.host("origin").ends.len() == 1);
    wired.join(wired.wire_between("a", "b"));
    wired.run(SOON_MS);
    assert_eq!(
        (wired.host("b").runs.len(), wired.host("c").runs.len()),
        (0, 1)
    );
}

#[test]
fn what_is_in_custody_stays_with_its_choice() {
    let mut wired = Wired::new(&["origin", "a", "b", "c"]);
    for (x, y) in [("origin", "a"), ("a", "b"), ("origin", "c")] {
        let (x, y) = (wired.at(x), wired.at(y));
        wired.wire(x, y);
    }
    wired.offer("b", "p");
    wired.run(2000);
    wired.cut(wired.wire_between("a", "b"));
    wired.submit("origin", any(1));
    wired.offer("c", "p");
    wired.run(SOON_MS);
    assert_eq!(wired.custody("a"), 1);
    wired.join(wired.wire_between("a", "b"));
    wired.run(SOON_MS);
    assert_eq!(
        (wired.host("b").runs.len(), wired.host("c").runs.len()),
        (1, 0)
    );
}

#[test]
fn a_crash_before_the_new_place_is_written_leaves_the_old_one() {
    let mut wired = stranded();
    wired.wake_one("origin");
    assert_eq!(outgoing(&mut wired), ["b"]);
    wired.host("origin").disk.rests = true;
    wired.settle();
    wired.kill("origin");
    wired.host("origin").disk.rests = false;
    wired.start("origin");
    wired.run(SOON_MS);
    assert_eq!(
        wired.host("c").runs,
        [],
        "an earlier start may have sent it to b"
    );
    wired.start("b");
    wired.run(SOON_MS);
    assert_eq!(
        (wired.host("b").runs.len(), wired.host("c").runs.len()),
        (1, 0)
    );
}

#[test]
fn a_crash_that_leaves_both_places_runs_it_at_the_new_one_alone() {
    for paged in [false, true] {
        let mut wired = Wired::new(&["origin", "a", "b", "c"]);
        if paged {
            wired.configure("origin", |config| config.limits.flow_waiting = 1);
        }
        offered(&mut wired);
        wired.host("origin").disk.rests = true;
        wired.submit("origin", unsent(1));
        wired.kill("b");
        wired.run(100);
        wired.wake_one("origin");
        // Others for b that come before it in memory after a restart, when that holds but one.
        wired.write_and_kill("origin");
        assert_eq!(outgoing(&mut wired), ["b", "c"]);
        wired.start("b");
        wired.run(100);
        wired.start("origin");
        wired.run(SOON_MS);
        assert_eq!(
            (wired.host("b").runs.len(), wired.host("c").runs.len()),
            (0, 1)
        );
        assert_eq!(outgoing(&mut wired), [""; 0]);
    }
}

#[test]
fn a_new_place_that_cannot_be_written_is_written_later() {
    let mut wired = stranded();
    wired.wake_one("origin");
    wired.host("origin").disk.rests = false;
    wired.host("origin").disk.broken = true;
    wired.fail_waiting("origin");
    wired.run(3000);
    assert_eq!(wired.host("c").runs, [], "not before it is written");
    wired.host("origin").disk.broken = false;
    wired.run_until(SOON_MS, |wired| wired.host("c").runs.len() == 1);
    wired.start("b");
    wired.run(SOON_MS);
    assert_eq!(wired.host("b").runs, []);
}

#[test]
fn a_cancel_finds_a_message_between_two_places() {
    let mut wired = stranded();
    wired.wake_one("origin");
    wired.settle();
    let now = wired.now();
    let user = receptor_proto::packet::CancelReason::User;
    wired.mesh("origin").cancel(now, id(1), user).unwrap();
    wired.wake_disk("origin");
    wired.start("b");
    wired.run(SOON_MS);
    assert_eq!(wired.host("origin").ends.len(), 1);
    assert_eq!(
        (wired.host("b").runs.len(), wired.host("c").runs.len()),
        (0, 0)
    );
    assert_eq!(outgoing(&mut wired), [""; 0]);
    assert_eq!(wired.host("origin").id, node("origin"));
}
