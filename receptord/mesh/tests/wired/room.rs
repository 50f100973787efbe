//! Responses that their sender's disk refuses: they come again when it has room, and not only when
//! their own pause is over.

use bytes::Bytes;
use receptor_mesh::Recipient;

use crate::mesh::{Wired, id, node};

/// After which what was refused is tried as seldom as it ever is.
const LONG_MS: u64 = 120_000;
/// Far less than the pause between two tries then.
const SOON_MS: u64 = 3000;
const RESPONSES: usize = 20;
/// So that their pauses end one by one.
const APART_MS: u64 = 1500;

#[test]
fn responses_that_a_full_disk_refused_come_when_it_has_room_again() {
    let mut wired = Wired::chain(&["a", "b"]);
    wired.host("b").busy = true;
    for work in [1, 2] {
        wired.host("a").unread.insert(id(work));
        let submission = Wired::submission(work, Recipient::Node(node("b")), Bytes::new());
        wired.submit("a", submission);
    }
    wired.respond("b", id(1), Bytes::from_static(b"stored"));
    wired.run(100);
    wired.host("a").disk.broken = true;
    for part in 0..RESPONSES {
        wired.respond("b", id(1 + part as u128 % 2), Bytes::from_static(b"part"));
    }
    wired.run(LONG_MS);
    wired.host("a").disk.broken = false;
    let now = wired.now();
    let (_, waiting) = wired.mesh("b").waiting(now, 0);
    assert!(waiting >= RESPONSES as u64, "only {waiting} wait");
    // The client of one of them goes on; that makes room for both.
    wired.read("a");
    wired.finish_all("b");
    wired.run_until(SOON_MS, |wired| {
        let now = wired.now();
        let (_, waiting) = wired.mesh("b").waiting(now, 0);
        waiting == 0
    });
    for work in [1, 2] {
        let serials = &wired.host("a").serials[&id(work)];
        assert!(
            serials.windows(2).all(|pair| pair[0] + 1 == pair[1]),
            "{serials:?}"
        );
        assert_eq!(wired.host("a").ends[&id(work)].code, 0);
    }
}

/// Nobody removes anything, so that each is tried when its own pause is over; the first that finds
/// room is a sign for all.
#[test]
fn a_response_that_finds_room_brings_the_others_that_a_full_disk_refused() {
    let mut wired = Wired::chain(&["a", "b"]);
    wired.host("b").busy = true;
    wired.host("a").unread.insert(id(1));
    let submission = Wired::submission(1, Recipient::Node(node("b")), Bytes::new());
    wired.submit("a", submission);
    wired.respond("b", id(1), Bytes::from_static(b"stored"));
    wired.run(100);
    wired.host("a").disk.broken = true;
    for _ in 0..RESPONSES {
        wired.respond("b", id(1), Bytes::from_static(b"part"));
        wired.run(APART_MS);
    }
    wired.run(LONG_MS);
    wired.host("a").disk.broken = false;
    let waiting = |wired: &mut Wired| {
        let now = wired.now();
        wired.mesh("b").waiting(now, 0).1
    };
    let all = waiting(&mut wired);
    assert!(all >= RESPONSES as u64, "only {all} wait");
    wired.run_until(LONG_MS, |wired| waiting(wired) < all);
    wired.run_until(SOON_MS, |wired| waiting(wired) == 0);
}

/// What was refused at once is tried again at once, and is more than there is room for.
#[test]
fn of_responses_that_come_together_those_are_taken_that_a_disk_has_room_for() {
    let mut wired = Wired::chain(&["a", "b"]);
    wired.host("b").busy = true;
    let submission = Wired::submission(1, Recipient::Node(node("b")), Bytes::new());
    wired.submit("a", submission);
    wired.respond("b", id(1), Bytes::from_static(b"stored"));
    wired.run(1000);
    let disk = &mut wired.host("a").disk;
    disk.most = Some(disk.messages.len() + RESPONSES / 4);
    disk.broken = true;
    for _ in 0..RESPONSES {
        wired.respond("b", id(1), Bytes::from_static(b"part"));
    }
    wired.run(1000);
    wired.host("a").disk.broken = false;
    wired.run_until(LONG_MS, |wired| {
        let now = wired.now();
        wired.mesh("b").waiting(now, 0).1 == 0
    });
}
