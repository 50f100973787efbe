//! Works that had arrived and whose node may have lost them with its disk: their senders hear of it,
//! and of no others.

use receptor_proto::packet::{Body, INQUIRY_MAX, Inquiry, Packet};
use receptor_proto::{ErrorCode, MessageId};

use crate::mesh::{Disk, Wired, id};

const HOUR_MS: u64 = 3_600_000;
/// More than one question can name.
const WORKS: u128 = INQUIRY_MAX as u128 + 44;

/// The worker has works that do not end.
fn running(works: u128) -> Wired {
    let mut wired = Wired::chain(&["origin", "router", "worker"]);
    wired.run(5000);
    wired.host("worker").busy = true;
    for work in 1..=works {
        wired.send("origin", "worker", work);
    }
    wired.run(5000);
    assert_eq!(wired.host("worker").runs.len() as u128, works);
    wired
}

fn lose_disk(wired: &mut Wired) {
    wired.kill("worker");
    wired.host("worker").disk = Disk::default();
}

/// The codes of the ends that clients got.
fn codes(wired: &mut Wired) -> Vec<Option<ErrorCode>> {
    let ends = wired.host("origin").ends.values();
    ends.map(|eof| eof.error.as_ref().map(|error| error.code.clone()))
        .collect()
}

fn inquiries(wired: &mut Wired, from: &str) -> Vec<Inquiry> {
    let inquiry = |packet: &Packet| match Body::decode(packet.kind, packet.body.clone()) {
        Ok(Body::Inquiry(inquiry)) if packet.source.as_str() == from => Some(inquiry),
        _ => None,
    };
    wired.host(from).sent.iter().filter_map(inquiry).collect()
}

#[test]
fn works_of_a_node_that_lost_its_disk_are_lost() {
    let mut wired = running(WORKS);
    lose_disk(&mut wired);
    wired.start("worker");
    wired.run(60_000);
    let all = vec![Some(ErrorCode::Lost); usize::try_from(WORKS).unwrap()];
    assert_eq!(codes(&mut wired), all);
    // What comes after that is a work like any other.
    wired.host("worker").busy = false;
    wired.send("origin", "worker", 1000);
    wired.run(5000);
    assert_eq!(wired.host("origin").ends[&id(1000)].code, 0);
}

#[test]
fn a_sender_that_was_down_meanwhile_hears_of_it_too() {
    let mut wired = running(3);
    wired.kill("origin");
    lose_disk(&mut wired);
    wired.start("worker");
    wired.run(60_000);
    wired.start("origin");
    wired.run(60_000);
    assert_eq!(codes(&mut wired), vec![Some(ErrorCode::Lost); 3]);
}

#[test]
fn works_that_run_are_asked_about_once_for_each_way_and_go_on() {
    let mut wired = running(WORKS);
    let wire = wired.wire_between("router", "worker");
    wired.cut(wire);
    wired.run(1000);
    wired.join(wire);
    wired.run(HOUR_MS);
    assert_eq!(codes(&mut wired), []);
    let asked = inquiries(&mut wired, "origin");
    let works: Vec<usize> = asked.iter().map(|inquiry| inquiry.works.len()).collect();
    assert_eq!(works, [INQUIRY_MAX, 44]);
}

#[test]
fn works_of_a_node_that_was_restarted_end_as_it_says() {
    let mut wired = running(WORKS);
    wired.kill("worker");
    wired.start("worker");
    wired.run(60_000);
    let all = vec![Some(ErrorCode::Interrupted); usize::try_from(WORKS).unwrap()];
    assert_eq!(codes(&mut wired), all);
}

/// The work is over there, and its response is all that tells of it.
#[test]
fn a_response_without_a_receipt_is_known() {
    let mut wired = Wired::chain(&["origin", "router", "worker"]);
    wired.run(5000);
    let wire = wired.wire_between("router", "worker");
    wired.lose_packets(wire, "worker", true);
    wired.send("origin", "worker", 1);
    wired.run(5000);
    assert_eq!(wired.host("worker").runs, [id(1)]);
    assert_eq!(unknown(&mut wired), [id(2)]);
    wired.lose_packets(wire, "worker", false);
    wired.run(60_000);
    assert_eq!(codes(&mut wired), [None]);
    assert_eq!(unknown(&mut wired), [id(1), id(2)]);
}

/// Of a response that left memory nothing tells whose it is.
#[test]
fn a_node_with_responses_on_its_disk_alone_answers_later() {
    let mut wired = Wired::new(&["origin", "worker"]);
    wired.configure("worker", |config| config.limits.flow_waiting = 1);
    let wire = wired.wire(0, 1);
    wired.run(5000);
    wired.host("worker").busy = true;
    for work in 1..=10 {
        wired.send("origin", "worker", work);
    }
    wired.run(1000);
    wired.cut(wire);
    for work in 1..=10 {
        wired.finish("worker", id(work));
    }
    wired.run(1000);
    assert!(wired.mesh("worker").paged().0 > 0);
    wired.lose_packets(wire, "worker", true);
    wired.join(wire);
    wired.run(60_000);
    let asked = inquiries(&mut wired, "origin").len();
    assert!(asked > 1, "asked {asked} times");
    assert_eq!(inquiries(&mut wired, "worker"), []);
    wired.lose_packets(wire, "worker", false);
    wired.run(120_000);
    assert_eq!(codes(&mut wired), vec![None; 10]);
}

/// What the worker says when it is asked about a work that it had and one that it had not.
fn unknown(wired: &mut Wired) -> Vec<MessageId> {
    let wire = wired.wire_between("router", "worker");
    let question = Body::Inquiry(Inquiry {
        nonce: 7,
        is_reply: false,
        works: vec![id(1), id(2)],
    });
    wired.inject(wire, "worker", "origin", &question);
    wired.run(100);
    inquiries(wired, "worker").pop().unwrap().works
}
