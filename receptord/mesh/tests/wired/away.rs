//! Responses for a node that is away: they wait on the disk of their worker's node, and not in its
//! memory.

use bytes::Bytes;
use receptor_mesh::{Payload, Recipient, Submission};
use receptor_proto::packet::{Content, Eof};
use receptor_proto::{ErrorCode, MessageId};

use crate::mesh::{Wired, id, node};

/// Long enough for everything to come right.
const SOON_MS: u64 = 20_000;
/// As long as responses are kept.
const WEEK_MS: u64 = 7 * 24 * 3600 * 1000;
/// Messages of each kind that a worker's node has in memory for one other.
const IN_MEMORY: usize = 4;
const WORKS: u128 = 6;
const EACH: u64 = 20;

/// A controller with this many works at a worker's node that are busy.
fn busy(works: u128) -> Wired {
    let mut wired = Wired::new(&["controller", "worker"]);
    wired.configure("worker", |config| {
        config.limits.flow_waiting = IN_MEMORY;
        config.limits.page_messages = 5;
    });
    wired.configure("controller", |config| config.limits.inbox_bytes = 2048);
    wired.host("worker").busy = true;
    wired.wire(0, 1);
    wired.run(2000);
    for work in 1..=works {
        wired.send("controller", "worker", work);
    }
    wired.run_until(SOON_MS, |wired| {
        wired.host("worker").runs.len() as u128 == works
    });
    wired
}

/// Every work says as much, in turns; each third thing is bulk.
fn talk(wired: &mut Wired, works: u128) {
    for n in 0..EACH {
        for work in 1..=works {
            let size = if n % 3 == 2 { 5000 } else { 10 };
            wired.respond("worker", id(work), Bytes::from(vec![1; size]));
        }
    }
}

fn paged(wired: &mut Wired) -> usize {
    wired.mesh("worker").paged().0
}

fn serials(wired: &mut Wired, work: u128) -> Vec<u64> {
    let serials = wired.host("controller").serials.get(&id(work));
    serials.cloned().unwrap_or_default()
}

fn have_ended(wired: &mut Wired, works: impl IntoIterator<Item = u128>) -> bool {
    let ends = &wired.host("controller").ends;
    works.into_iter().all(|work| ends.contains_key(&id(work)))
}

#[test]
fn responses_wait_on_the_disk_and_arrive_in_order_also_after_a_restart() {
    let mut wired = busy(WORKS);
    wired.kill("controller");
    wired.run(2000);
    talk(&mut wired, WORKS);
    for work in 1..=3 {
        wired.finish("worker", id(work));
    }
    let most = 2 * (IN_MEMORY + 1);
    let all = usize::try_from(u64::try_from(WORKS).unwrap() * EACH).unwrap() + 3;
    assert!(paged(&mut wired) >= all - most, "{}", paged(&mut wired));
    wired.kill("worker");
    wired.start("worker");
    // Works that were cut short have an end more.
    assert!(paged(&mut wired) >= all - most, "{}", paged(&mut wired));
    wired.start("controller");
    wired.run_until(SOON_MS, |wired| have_ended(wired, 1..=WORKS));
    for work in 1..=WORKS {
        let expected: Vec<u64> = (1..=EACH + 1).collect();
        assert_eq!(serials(&mut wired, work), expected, "{work}");
        let end = &wired.host("controller").ends[&id(work)];
        let code = end.error.as_ref().map(|error| error.code.clone());
        let cut_short = (work > 3).then_some(ErrorCode::Interrupted);
        assert_eq!(code, cut_short, "{work}");
    }
    wired.run(SOON_MS);
    assert_eq!(paged(&mut wired), 0);
    assert!(wired.host("worker").disk.messages.is_empty());
}

#[test]
fn a_client_that_does_not_read_keeps_back_no_response_to_others() {
    let mut wired = busy(2);
    wired.kill("controller");
    wired.run(2000);
    talk(&mut wired, 2);
    for work in 1..=2 {
        wired.finish("worker", id(work));
    }
    wired.host("controller").unread.insert(id(1));
    wired.start("controller");
    wired.run_until(SOON_MS, |wired| have_ended(wired, [2]));
    assert!(!have_ended(&mut wired, [1]));
    assert_eq!(serials(&mut wired, 2), (1..=EACH + 1).collect::<Vec<_>>());
}

#[test]
fn responses_that_nobody_came_for_end_their_works_with_one_word_each() {
    let mut wired = busy(WORKS);
    wired.kill("controller");
    wired.run(2000);
    talk(&mut wired, WORKS);
    for work in 1..=WORKS {
        wired.finish("worker", id(work));
    }
    wired.run(WEEK_MS + SOON_MS);
    let works: Vec<MessageId> = (1..=WORKS).map(id).collect();
    let kept = wired.host("worker").disk.messages.len();
    assert!(kept <= 2 * works.len(), "{kept} are kept");
    wired.start("controller");
    wired.run_until(SOON_MS, |wired| have_ended(wired, 1..=WORKS));
    for work in works {
        let end = &wired.host("controller").ends[&work];
        assert_eq!(end.error.as_ref().unwrap().code, ErrorCode::Expired);
    }
    wired.run(SOON_MS);
    assert_eq!(paged(&mut wired), 0);
    assert!(wired.host("worker").disk.messages.is_empty());
}

#[test]
fn the_last_words_that_nobody_came_for_are_not_followed_by_others() {
    let mut wired = busy(WORKS);
    wired.kill("controller");
    wired.run(2000);
    for work in 1..=WORKS {
        wired.finish("worker", id(work));
    }
    wired.run(WEEK_MS + SOON_MS);
    wired.kill("worker");
    wired.start("worker");
    wired.run(WEEK_MS + SOON_MS);
    assert_eq!(paged(&mut wired), 0);
    assert!(wired.host("worker").disk.messages.is_empty());
}

/// 4 MiB for one node, as the core has it.
#[test]
fn works_wait_when_what_they_say_comes_faster_than_a_disk_writes() {
    let mut wired = Wired::new(&["controller", "worker"]);
    wired.configure("worker", |config| config.limits.work_backlog = u64::MAX);
    wired.host("worker").busy = true;
    wired.wire(0, 1);
    wired.run(2000);
    for work in 1..=2 {
        wired.send("controller", "worker", work);
    }
    wired.run_until(SOON_MS, |wired| wired.host("worker").runs.len() == 2);
    wired.kill("controller");
    wired.host("worker").disk.rests = true;
    let payload = Bytes::from(vec![1; 60 << 10]);
    let mut taken = 0;
    while !wired.respond("worker", id(1), payload.clone()) {
        taken += payload.len();
        assert!(taken < 5 << 20, "it takes whatever comes");
    }
    assert!(taken > 3 << 20, "{taken}");
    assert!(wired.respond("worker", id(2), payload));
    assert!(wired.host("worker").resumed.is_empty());
    wired.wake_disk("worker");
    wired.host("worker").resumed.sort_unstable();
    assert_eq!(wired.host("worker").resumed, [id(1), id(2)]);
}

#[test]
fn a_work_that_waited_for_the_disk_goes_on_although_its_reader_is_away() {
    let mut wired = Wired::new(&["controller", "worker"]);
    // What waits for the disk is more than half of it, and less than all.
    wired.configure("worker", |config| config.limits.work_backlog = 6 << 20);
    wired.host("worker").busy = true;
    wired.wire(0, 1);
    wired.run(2000);
    wired.send("controller", "worker", 1);
    wired.run_until(SOON_MS, |wired| wired.host("worker").runs.len() == 1);
    wired.kill("controller");
    wired.host("worker").disk.rests = true;
    let payload = Bytes::from(vec![1; 60 << 10]);
    while !wired.respond("worker", id(1), payload.clone()) {}
    wired.wake_disk("worker");
    assert_eq!(wired.host("worker").resumed, [id(1)]);
}

/// Four pages are read at once, and as many nodes that wait for one are gone when they are.
#[test]
fn a_node_whose_turn_it_is_to_have_a_page_read_does_not_wait_for_nodes_that_are_gone() {
    const FAR: [&str; 8] = ["1", "2", "3", "4", "5", "6", "7", "8"];
    const EACH: u128 = 20;
    let names: Vec<&str> = ["controller", "relay", "near"]
        .into_iter()
        .chain(FAR)
        .collect();
    let mut wired = Wired::new(&names);
    wired.configure("controller", |config| {
        config.limits.flow_waiting = IN_MEMORY;
        config.limits.page_messages = 100;
    });
    for (x, y) in [("controller", "relay"), ("controller", "near")] {
        let (x, y) = (wired.at(x), wired.at(y));
        wired.wire(x, y);
    }
    for far in FAR {
        let (x, y) = (wired.at("relay"), wired.at(far));
        wired.wire(x, y);
    }
    wired.run(2000);
    let relay = wired.wire_between("controller", "relay");
    let near = wired.wire_between("controller", "near");
    wired.cut(relay);
    wired.cut(near);
    wired.run(2000);
    for (at, to) in FAR.iter().chain(&["near"]).enumerate() {
        for n in 1..=EACH {
            wired.send("controller", to, 100 * at as u128 + n);
        }
    }
    wired.host("controller").disk.reads_rest = true;
    wired.join(relay);
    wired.run(5000);
    assert_eq!(wired.host("controller").disk.unread_pages(), 4);
    wired.join(near);
    wired.run(5000);
    wired.cut(relay);
    wired.run(100);
    wired.wake_reads("controller");
    wired.run_until(SOON_MS, |wired| {
        wired.host("near").runs.len() as u128 == EACH
    });
}

/// The end is on its way to the disk, because it is large, when what was said before it, which is in memory
/// alone, is given up.
#[test]
fn a_volatile_work_whose_responses_were_given_up_is_over_with_its_end() {
    let mut wired = Wired::chain(&["controller", "worker"]);
    wired.host("worker").busy = true;
    let submission = Wired::submission(1, Recipient::Node(node("worker")), Bytes::new());
    wired.submit(
        "controller",
        Submission {
            volatile: true,
            ..submission
        },
    );
    wired.run_until(1000, |wired| wired.host("worker").runs == [id(1)]);
    wired.cut(wired.wire_between("controller", "worker"));
    wired.run(100);
    wired.respond("worker", id(1), Bytes::from_static(b"part"));
    wired.host("worker").disk.rests = true;
    let now = wired.now();
    let mesh = wired.mesh("worker");
    let entry = mesh.new_entry();
    let eof = Eof {
        code: 0,
        error: None,
    };
    let payload = Payload::Stored {
        entry,
        size: 100_000,
    };
    mesh.work_done(now, id(1), eof, Content::Bytes, payload)
        .unwrap();
    wired.settle();
    wired.run(60_000);
    wired.wake_disk("worker");
    wired.run(100);
    assert_eq!(wired.mesh("worker").works(10).1, 0);
}
