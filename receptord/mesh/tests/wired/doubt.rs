//! Ends that were told and never written: the worker's node is killed, makes another, and takes back the
//! first when its sender has that.

use bytes::Bytes;
use receptor_proto::packet::{
    Body, Content, EarlierEnd, Eof, Message, MessageKind, Packet, Receipt,
};
use receptor_proto::{ErrorBody, ErrorCode, MessageId};

use super::mesh::{Wired, messages};

/// The only one.
const WORK: MessageId = MessageId::from_u128(1);
/// Longer than a receipt and a second try take.
const SOON_MS: u64 = 20_000;
const DAY_MS: u64 = 24 * 3600 * 1000;

/// The nodes, `a` and `b` the ends.
const NODES: [&str; 3] = ["a", "r", "b"];

/// The client of `a` has the end of its work at `b`, and nothing of that is on the disk of `b`, which is
/// killed.
fn told(wired: &mut Wired) {
    wired.host("b").busy = true;
    wired.send("a", "b", 1);
    wired.run(1000);
    wired.host("b").disk.rests = true;
    for part in [&b"one"[..], b"two"] {
        wired.respond("b", WORK, Bytes::from_static(part));
    }
    wired.finish("b", WORK);
    assert_eq!(sent(wired), Some(None), "it went well");
    wired.kill("b");
    wired.host("b").disk.rests = false;
}

fn code(eof: &Eof) -> Option<ErrorCode> {
    eof.error.as_ref().map(|error| error.code.clone())
}

/// How the work ended for its client; `Some(None)`: well.
fn sent(wired: &mut Wired) -> Option<Option<ErrorCode>> {
    wired.host("a").ends.get(&WORK).map(code)
}

/// How it ended for its node.
fn here(wired: &mut Wired) -> Option<Option<ErrorCode>> {
    wired.host("b").disk.endings.get(&WORK).map(code)
}

fn check_over(wired: &mut Wired) {
    for name in NODES {
        let host = wired.host(name);
        assert!(host.disk.messages.is_empty(), "{name}: {:?}", host.disk);
        assert_eq!(wired.custody(name), 0, "{name}");
    }
    let works = wired.mesh("b").works(1).1;
    assert_eq!((works, wired.mesh("a").is_pending(WORK)), (0, false));
}

/// Both have the first end, of which the client heard once.
fn check_first(wired: &mut Wired, what: &str) {
    assert_eq!(sent(wired), Some(None), "{what}");
    assert_eq!(here(wired), Some(None), "{what}");
    assert_eq!(wired.host("a").serials[&WORK], [1, 2, 3], "{what}");
    check_over(wired);
}

/// Receipts that `a` gave with an end.
fn answers(wired: &mut Wired) -> Vec<Receipt> {
    let receipt = |packet: &Packet| match Body::decode(packet.kind, packet.body.clone()) {
        Ok(Body::Receipt(receipt)) if packet.source.as_str() == "a" => Some(receipt),
        _ => None,
    };
    let sent = wired.host("a").sent.iter();
    let receipts = sent.filter_map(receipt);
    receipts
        .filter(|receipt| receipt.earlier.is_some())
        .collect()
}

/// The last response that `b` sent.
fn last_response(wired: &mut Wired) -> Message {
    let sent = messages(&wired.host("b").sent);
    let (_, message) = sent.into_iter().next_back().unwrap();
    message
}

#[test]
fn an_end_that_its_worker_had_not_written_is_its_end_all_the_same() {
    for secured in [false, true] {
        let mut wired = match secured {
            false => Wired::chain(&NODES),
            true => Wired::secured_chain(&NODES),
        };
        told(&mut wired);
        wired.start("b");
        wired.run(SOON_MS);
        check_first(&mut wired, "after its restart");
        assert_eq!(wired.host("b").runs, [WORK]);
        for name in NODES {
            wired.kill(name);
            wired.start(name);
            wired.run(SOON_MS);
            check_first(&mut wired, name);
        }
    }
}

#[test]
fn a_second_run_that_ends_otherwise_changes_neither_end_nor_responses() {
    let mut wired = Wired::chain(&NODES);
    wired.host("b").idempotent = true;
    wired.host("b").busy = true;
    wired.send("a", "b", 1);
    wired.run(1000);
    for part in [&b"one"[..], b"two"] {
        wired.respond("b", WORK, Bytes::from_static(part));
    }
    wired.run(1000);
    wired.host("b").disk.rests = true;
    wired.finish("b", WORK);
    assert_eq!(sent(&mut wired), Some(None));
    wired.kill("b");
    wired.host("b").disk.rests = false;
    wired.start("b");
    wired.run(1000);
    assert_eq!(wired.host("b").runs, [WORK, WORK]);
    for part in [&b"three"[..], b"four", b"five"] {
        wired.respond("b", WORK, Bytes::from_static(part));
    }
    wired.run(1000);
    wired.cancel_there("b", WORK);
    wired.run(SOON_MS);
    check_first(&mut wired, "after its second run");
}

#[test]
fn both_ends_are_restarted_in_any_order() {
    let orders: [&[&str]; 8] = [
        &["kill a", "start b", "start a"],
        &["kill a", "start b", "kill b", "start a", "start b"],
        &["kill a", "start b", "kill b", "start b", "start a"],
        &["kill a", "start a", "start b"],
        &["start b", "kill a", "start a"],
        &["start b", "kill b", "kill a", "start b", "start a"],
        &["start b", "kill a", "kill r", "start a", "start r"],
        &["kill r", "start b", "kill b", "start b", "start r"],
    ];
    for order in orders {
        for pause_ms in [0, 1, 5000] {
            let mut wired = Wired::chain(&NODES);
            told(&mut wired);
            for step in order {
                match step.split_once(' ').unwrap() {
                    ("kill", name) => wired.kill(name),
                    (_, name) => wired.start(name),
                }
                wired.run(pause_ms);
            }
            wired.run(10 * SOON_MS);
            check_first(&mut wired, &format!("{order:?}, {pause_ms} ms"));
        }
    }
}

/// Then the client may have heard what the mesh forgets.
#[test]
fn an_end_that_neither_had_written_is_forgotten_by_both() {
    let mut wired = Wired::chain(&NODES);
    wired.host("b").busy = true;
    wired.send("a", "b", 1);
    wired.run(1000);
    for name in ["a", "b"] {
        wired.host(name).disk.rests = true;
    }
    wired.finish("b", WORK);
    assert_eq!(sent(&mut wired), Some(None));
    for name in ["a", "b"] {
        wired.kill(name);
        wired.host(name).disk.rests = false;
    }
    wired.host("a").ends.clear();
    wired.start("b");
    wired.start("a");
    wired.run(SOON_MS);
    assert_eq!(sent(&mut wired), Some(Some(ErrorCode::Interrupted)));
    assert_eq!(here(&mut wired), Some(Some(ErrorCode::Interrupted)));
    check_over(&mut wired);
}

/// Its own end holds until the sender is heard, and so does the word that stands for it after a week.
#[test]
fn a_sender_that_is_away_for_long_is_heard_when_it_is_back() {
    for days in [1, 8] {
        let mut wired = Wired::chain(&NODES);
        told(&mut wired);
        wired.kill("a");
        wired.kill("r");
        wired.start("b");
        wired.run(days * DAY_MS);
        assert!(here(&mut wired).flatten().is_some());
        assert_eq!(wired.mesh("b").works(1).1, 0, "it is over there");
        wired.start("r");
        wired.start("a");
        wired.run(5 * SOON_MS);
        check_first(&mut wired, &format!("{days} days"));
    }
}

#[test]
fn a_sender_that_does_not_remember_the_work_leaves_the_end_as_it_is() {
    let mut wired = Wired::chain(&NODES);
    told(&mut wired);
    wired.host("a").disk.remembered.clear();
    wired.start("b");
    wired.run(SOON_MS);
    assert_eq!(here(&mut wired), Some(Some(ErrorCode::Interrupted)));
    assert_eq!(sent(&mut wired), Some(None));
    check_over(&mut wired);
}

#[test]
fn an_answer_that_is_lost_is_given_again() {
    let mut wired = Wired::chain(&NODES);
    told(&mut wired);
    let wire = wired.wire_between("a", "r");
    wired.lose_packets(wire, "a", true);
    wired.start("b");
    wired.run(SOON_MS);
    assert!(answers(&mut wired).len() > 1);
    assert_eq!(here(&mut wired), Some(Some(ErrorCode::Interrupted)));
    wired.lose_packets(wire, "a", false);
    wired.run(5 * SOON_MS);
    check_first(&mut wired, "when answers come through");
}

/// Until then a restart of the sender could bring it back to where the other end counts.
#[test]
fn an_end_counts_when_it_is_on_the_senders_disk_and_taken() {
    let mut wired = Wired::chain(&NODES);
    wired.host("a").unread.insert(WORK);
    told(&mut wired);
    wired.host("a").disk.rests = true;
    wired.start("b");
    wired.run(SOON_MS);
    wired.read("a");
    wired.run(SOON_MS);
    assert!(answers(&mut wired).is_empty());
    assert_eq!(here(&mut wired), Some(Some(ErrorCode::Interrupted)));
    wired.wake_disk("a");
    wired.run(SOON_MS);
    check_first(&mut wired, "when it is written");
}

/// It says nothing of doubt, and an answer to that would say nothing to it.
#[test]
fn a_worker_of_an_earlier_version_gets_a_receipt_and_nothing_else() {
    let mut wired = Wired::chain(&NODES);
    told(&mut wired);
    let wire = wired.wire_between("a", "r");
    let response = Message {
        epoch: 9,
        seq: 1,
        floor: 0,
        work: WORK,
        kind: MessageKind::Response {
            serial: 1,
            eof: Some(interrupted()),
            in_doubt: false,
        },
        volatile: false,
        remaining_ms: DAY_MS,
        content: Content::None,
        name: None,
        size: 0,
        body: Bytes::new(),
    };
    wired.inject(wire, "a", "b", &Body::Message(response));
    wired.run(1000);
    assert!(answers(&mut wired).is_empty());
    let receipts = wired.host("a").sent.iter();
    let receipts = receipts.filter_map(|p| Body::decode(p.kind, p.body.clone()).ok());
    let is_its = |body: &Body| matches!(body, Body::Receipt(receipt) if receipt.epoch == 9 && receipt.received == [(1, 1)]);
    assert!(receipts.into_iter().any(|body| is_its(&body)));
}

fn interrupted() -> Eof {
    Eof {
        code: 1,
        error: Some(ErrorBody::new(ErrorCode::Interrupted, "interrupted")),
    }
}

/// What somebody says of an end that `b` sent, and what becomes of it there.
fn said(wired: &mut Wired, source: &str, earlier: bool) -> Option<Option<ErrorCode>> {
    let response = last_response(wired);
    let receipt = Body::Receipt(Receipt {
        epoch: response.epoch,
        received: vec![(response.seq, response.seq)],
        instance: 9,
        earlier: earlier.then(|| EarlierEnd {
            seq: response.seq,
            responses: 1,
            eof: Eof {
                code: 1,
                error: Some(ErrorBody::new(ErrorCode::Cancelled, "so they say")),
            },
        }),
        ..Receipt::default()
    });
    let wire = wired.wire_between("r", "b");
    wired.inject(wire, "b", source, &receipt);
    wired.run(1000);
    here(wired)
}

/// An end in doubt that `b` has sent, and that nobody answers.
fn unanswered(mut wired: Wired) -> Wired {
    told(&mut wired);
    let wire = wired.wire_between("a", "r");
    wired.lose_packets(wire, "a", true);
    wired.start("b");
    wired.run(5000);
    assert_eq!(here(&mut wired), Some(Some(ErrorCode::Interrupted)));
    wired
}

#[test]
fn a_sender_of_an_earlier_version_gives_a_receipt_and_leaves_the_end_as_it_is() {
    let mut wired = unanswered(Wired::chain(&NODES));
    assert_eq!(
        said(&mut wired, "a", false),
        Some(Some(ErrorCode::Interrupted))
    );
    check_over(&mut wired);
}

#[test]
fn nobody_but_who_asked_changes_an_end() {
    let mut wired = unanswered(Wired::chain(&NODES));
    assert_eq!(
        said(&mut wired, "r", true),
        Some(Some(ErrorCode::Interrupted))
    );
    assert_eq!(
        said(&mut wired, "a", true),
        Some(Some(ErrorCode::Cancelled))
    );
}

#[test]
fn nobody_changes_an_end_in_another_name_where_nodes_have_certificates() {
    let wired = Wired::secured_chain(&NODES);
    let mut wired = unanswered(wired);
    let entry = wired.host("b").disk.messages.len();
    let wire = wired.wire_between("r", "b");
    for seq in 1..10 {
        for epoch in 1..5 {
            let receipt = Body::Receipt(Receipt {
                epoch,
                received: vec![(seq, seq)],
                earlier: Some(EarlierEnd {
                    seq,
                    responses: 1,
                    eof: Eof {
                        code: 0,
                        error: None,
                    },
                }),
                ..Receipt::default()
            });
            wired.inject(wire, "b", "a", &receipt);
        }
    }
    wired.run(1000);
    assert_eq!(here(&mut wired), Some(Some(ErrorCode::Interrupted)));
    assert_eq!(wired.host("b").disk.messages.len(), entry);
}

#[test]
fn an_end_that_is_not_in_doubt_is_not_changed_by_its_sender_either() {
    let mut wired = Wired::chain(&NODES);
    let wire = wired.wire_between("a", "r");
    wired.send("a", "b", 1);
    wired.run(1000);
    assert_eq!(said(&mut wired, "a", true), Some(None), "gone");
    let mut wired = Wired::chain(&NODES);
    wired.host("b").busy = true;
    wired.send("a", "b", 1);
    wired.run(1000);
    wired.lose_packets(wire, "a", true);
    wired.finish("b", WORK);
    wired.run(1000);
    assert_eq!(
        said(&mut wired, "a", true),
        Some(None),
        "waits for its receipt"
    );
}
