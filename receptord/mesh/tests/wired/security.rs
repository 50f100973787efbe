//! A mesh with certificates: what its members cannot do to each other, and that all that was promised without them
//! still holds.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use receptor_mesh::{Recipient, Record, Submission};
use receptor_proto::frame::Frame;
use receptor_proto::lsa::{LinkEntry, LinksBody, Lsa, LsaKey, LsaKind};
use receptor_proto::packet::sealed::{Identity, Sealed};
use receptor_proto::packet::{Body, Content, Inquiry, Packet, Receipt, kind};
use receptor_proto::signed::SignedBody;
use receptor_proto::{ErrorCode, NodeId};

use crate::fake::opens_with;
use crate::mesh::{Disk, Wired, id, node};

const CANARY: &[u8] = b"canary-canary-canary";

fn request(work: u128, to: &str) -> Submission {
    let recipient = Recipient::Node(node(to));
    Wired::submission(work, recipient, Bytes::from_static(CANARY))
}

fn volatile(work: u128, to: &str) -> Submission {
    Submission {
        volatile: true,
        ..request(work, to)
    }
}

fn holds(bytes: &[u8]) -> bool {
    bytes.windows(CANARY.len()).any(|window| window == CANARY)
}

/// Whether the id of work 1 can be read there.
fn holds_id(bytes: &[u8]) -> bool {
    let id = 1u128.to_be_bytes();
    bytes.windows(id.len()).any(|window| window == id)
}

fn runs(wired: &mut Wired, name: &str, work: u128) -> usize {
    let runs = &wired.host(name).runs;
    runs.iter().filter(|run| **run == id(work)).count()
}

fn ended_well(wired: &mut Wired, name: &str, work: u128) -> bool {
    let end = wired.host(name).ends.get(&id(work));
    end.is_some_and(|eof| eof.error.is_none())
}

/// The work that `a` sent to `b` is not over, whatever `a` has heard, and ends when it is done.
fn goes_on_to_its_end(wired: &mut Wired) {
    assert!(wired.host("a").ends.is_empty());
    wired.finish("b", id(1));
    wired.run(1000);
    assert!(ended_well(wired, "a", 1));
}

/// Packets of this kind that a node passed on or sent.
fn sealed(wired: &mut Wired, name: &str, kind: u8) -> Vec<Packet> {
    let sent = &wired.host(name).sent;
    let of_kind = |packet: &&Packet| packet.kind == kind | kind::SEALED;
    sent.iter().filter(of_kind).cloned().collect()
}

/// What `name` said last of `whom`.
fn stated(wired: &mut Wired, name: &str, whom: &str, kind: LsaKind) -> Lsa {
    let mut lsas = wired.host(name).stated.iter();
    let of_node = |lsa: &&Lsa| lsa.key.node == node(whom) && lsa.key.kind == kind;
    lsas.rfind(of_node).unwrap().clone()
}

fn unproved(wired: &mut Wired, name: &str) -> u64 {
    wired.mesh(name).counters().unproved
}

fn knows(wired: &mut Wired, name: &str, whom: &str) -> bool {
    let nodes = wired.mesh(name).nodes();
    nodes.iter().any(|view| view.node == node(whom))
}

/// Nothing of it may be used or passed on by `b`, to which it comes from `a`.
fn is_refused(wired: &mut Wired, lsa: Lsa) {
    let (before, digest) = (unproved(wired, "b"), wired.mesh("b").lsdb_digest());
    let nodes = wired.mesh("b").nodes().len();
    let passed_on = wired.host("b").stated.len();
    let wire = wired.wire_between("a", "b");
    let shown = format!("{lsa:?}");
    wired.inject_frame(wire, "b", Frame::Lsas(vec![lsa]));
    wired.run(100);
    assert!(unproved(wired, "b") > before, "{shown}");
    assert_eq!(wired.mesh("b").lsdb_digest(), digest, "{shown}");
    assert_eq!(wired.mesh("b").nodes().len(), nodes, "{shown}");
    // Nothing but what it has itself.
    let later: Vec<Lsa> = wired.host("b").stated[passed_on..].to_vec();
    assert!(later.iter().all(|lsa| lsa.key.node != node("ghost")));
}

#[test]
fn messages_and_answers_go_sealed_through_routers() {
    let mut wired = Wired::secured_chain(&["a", "r", "b"]);
    for (work, from, to) in [(1, "a", "b"), (2, "b", "a"), (3, "a", "r")] {
        wired.submit(from, request(work, to));
        wired.run(1000);
        assert!(ended_well(&mut wired, from, work), "{work}");
        assert_eq!(runs(&mut wired, to, work), 1);
    }
    let packets = wired.host("r").sent.clone();
    assert!(packets.len() >= 8, "{}", packets.len());
    for packet in packets {
        assert!(!holds(&packet.body), "{packet:?}");
        assert!(packet.kind & kind::SEALED != 0, "{packet:?}");
    }
    // They do say something to those with the keys.
    let request = sealed(&mut wired, "r", kind::MESSAGE).remove(0);
    let Some(Body::Message(message)) = wired.authority().reveal(&request) else {
        panic!("no message");
    };
    assert!(holds(&message.body));
}

#[test]
fn large_payloads_go_sealed_too() {
    let mut wired = Wired::secured_chain(&["a", "r", "b"]);
    let payload: Vec<u8> = CANARY.iter().copied().cycle().take(60_000).collect();
    let recipient = Recipient::Node(node("b"));
    wired.submit("a", Wired::submission(1, recipient, payload.into()));
    wired.run(1000);
    assert!(ended_well(&mut wired, "a", 1));
    assert!(
        !wired
            .host("r")
            .sent
            .iter()
            .any(|packet| holds(&packet.body))
    );
}

#[test]
fn what_is_not_hidden_is_proved_all_the_same() {
    let mut wired = Wired::secured(&["a", "r", "b"]);
    for name in ["a", "r", "b"] {
        wired.host(name).shows = true;
    }
    wired.wire(0, 1);
    let last = wired.wire(1, 2);
    wired.run(2000);
    wired.submit("a", request(1, "b"));
    wired.run(1000);
    assert!(ended_well(&mut wired, "a", 1));
    let packet = sealed(&mut wired, "r", kind::MESSAGE).remove(0);
    assert!(holds(&packet.body));
    let mut body = packet.body.to_vec();
    let at = body.windows(6).position(|window| window == b"canary");
    body[at.unwrap()] ^= 1;
    let (before, body) = (unproved(&mut wired, "b"), Bytes::from(body));
    wired.inject_frame(last, "b", Frame::Packet(Packet { body, ..packet }));
    assert_eq!(unproved(&mut wired, "b"), before + 1);
}

#[test]
fn nobody_states_anything_for_another() {
    let mut wired = Wired::secured_chain(&["a", "b", "c"]);
    let links = stated(&mut wired, "a", "a", LsaKind::LINKS);
    let identity = stated(&mut wired, "a", "a", LsaKind::IDENTITY);
    let body = |neighbor: &str| {
        let entry = LinkEntry {
            neighbor: node(neighbor),
            cost: 1,
            leaf: true,
        };
        let links = vec![entry];
        LinksBody { links }.encode()
    };
    let named = |name: &str, lsa: &Lsa| Lsa {
        key: LsaKey {
            node: node(name),
            ..lsa.key.clone()
        },
        ..lsa.clone()
    };
    let higher = Lsa {
        seq: links.seq + 7,
        ..links.clone()
    };
    // Its own words under another's name, with another number, start, lifetime or text, and none at all.
    let signed = SignedBody::split(&links.body).unwrap();
    let changed = SignedBody {
        statement: body("ghost"),
        ..signed.clone()
    };
    let forever = SignedBody {
        lifetime_s: u32::MAX,
        ..signed.clone()
    };
    let nothing = SignedBody {
        lifetime_s: 0,
        statement: Bytes::new(),
        ..signed
    };
    let forged = [
        named("c", &higher),
        higher.clone(),
        Lsa {
            instance: links.instance + 1,
            ..higher.clone()
        },
        Lsa {
            body: changed.join(),
            ..higher.clone()
        },
        Lsa {
            body: body("ghost"),
            ..higher.clone()
        },
        Lsa {
            remaining_s: u32::MAX,
            body: forever.join(),
            ..higher.clone()
        },
        Lsa {
            remaining_s: 0,
            body: nothing.join(),
            ..higher.clone()
        },
        Lsa {
            remaining_s: 0,
            body: Bytes::new(),
            ..higher.clone()
        },
        Lsa {
            remaining_s: 0,
            ..higher
        },
        Lsa {
            seq: identity.seq + 1,
            ..identity.clone()
        },
        named("ghost", &identity),
    ];
    for lsa in forged {
        is_refused(&mut wired, lsa);
    }
    // A node that hears such a thing of itself does not answer it with a new statement.
    let of_b = stated(&mut wired, "b", "b", LsaKind::LINKS);
    let seq = of_b.seq + 1000;
    is_refused(&mut wired, Lsa { seq, ..of_b });
    let after = stated(&mut wired, "b", "b", LsaKind::LINKS);
    assert!(after.seq < seq);
    assert_eq!(wired.mesh("c").nodes().len(), 3);
}

#[test]
fn what_was_taken_back_or_has_expired_cannot_be_said_again_by_others() {
    let mut wired = Wired::secured_chain(&["a", "b", "c"]);
    let old: Vec<Lsa> = [LsaKind::IDENTITY, LsaKind::LINKS, LsaKind::CAPABILITIES]
        .map(|kind| stated(&mut wired, "b", "c", kind))
        .to_vec();
    let now = wired.now();
    wired.mesh("c").shutdown(now);
    wired.run(10);
    wired.kill("c");
    // The statements that took everything back are forgotten too.
    wired.run(900_000);
    assert!(!knows(&mut wired, "b", "c"));
    let wire = wired.wire_between("a", "b");
    for lsa in old {
        wired.inject_frame(wire, "b", Frame::Lsas(vec![lsa]));
        wired.run(1000);
        assert!(!knows(&mut wired, "b", "c"));
    }
    // It itself can.
    wired.start("c");
    wired.run(3000);
    assert!(knows(&mut wired, "a", "c"));
}

#[test]
fn nobody_takes_back_what_has_not_been_heard_of_yet() {
    let mut wired = Wired::secured(&["a", "b", "c"]);
    let wire = wired.wire(0, 1);
    wired.run(2000);
    let garbage = SignedBody {
        statement: Bytes::new(),
        lifetime_s: 0,
        signature: Bytes::from_static(&[7; 8]),
    };
    for kind in [LsaKind::IDENTITY, LsaKind::LINKS, LsaKind::CAPABILITIES] {
        let forged = Lsa {
            key: LsaKey {
                node: node("c"),
                kind,
            },
            seq: 1 << 50,
            instance: 1,
            remaining_s: 0,
            body: garbage.join(),
        };
        wired.inject_frame(wire, "b", Frame::Lsas(vec![forged]));
    }
    wired.run(1000);
    // Whoever has it of a node that is gone for good need not send it for ever.
    let acknowledged = &wired.host("b").acknowledged;
    let of_c = acknowledged
        .iter()
        .filter(|said| said.key.node == node("c"));
    assert_eq!(of_c.count(), 3);
    wired.wire(1, 2);
    wired.run(3000);
    assert!(knows(&mut wired, "a", "c"));
    wired.submit("a", request(1, "c"));
    wired.run(1000);
    assert!(ended_well(&mut wired, "a", 1));
}

#[test]
fn statements_that_overtake_their_originators_identity_wait_for_it() {
    let mut wired = Wired::secured_chain(&["a", "b"]);
    let mut other = Wired::secured_chain(&["x", "y"]);
    let links = stated(&mut other, "x", "x", LsaKind::LINKS);
    let identity = stated(&mut other, "x", "x", LsaKind::IDENTITY);
    let wire = wired.wire_between("a", "b");
    wired.inject_frame(wire, "b", Frame::Lsas(vec![links]));
    assert!(!knows(&mut wired, "b", "x"));
    wired.inject_frame(wire, "b", Frame::Lsas(vec![identity]));
    assert!(knows(&mut wired, "b", "x"));
    let view = wired.mesh("b").nodes();
    let x = view.iter().find(|view| view.node == node("x")).unwrap();
    assert_eq!(x.links.len(), 1);
}

#[test]
fn a_sealed_packet_is_for_its_destination_from_its_source_once() {
    let mut wired = Wired::secured_chain(&["a", "r", "b"]);
    wired.submit("a", request(1, "b"));
    wired.run(1000);
    let packet = sealed(&mut wired, "r", kind::MESSAGE).remove(0);
    let (to_b, to_r) = (wired.wire_between("r", "b"), wired.wire_between("a", "r"));
    // Again, after a while, and after restarts.
    for _ in 0..3 {
        wired.inject_frame(to_b, "b", Frame::Packet(packet.clone()));
        wired.run(1000);
        wired.kill("b");
        wired.start("b");
        wired.run(3000);
    }
    assert_eq!(runs(&mut wired, "b", 1), 1);
    // To somebody else, and in another's name.
    let before = unproved(&mut wired, "r") + unproved(&mut wired, "b");
    let to_router = Packet {
        destination: node("r"),
        ..packet.clone()
    };
    wired.inject_frame(to_r, "r", Frame::Packet(to_router));
    let of_router = Packet {
        source: node("r"),
        ..packet.clone()
    };
    wired.inject_frame(to_b, "b", Frame::Packet(of_router));
    // With every byte changed.
    for at in 0..packet.body.len() {
        let mut body = packet.body.to_vec();
        body[at] ^= 0x10;
        let changed = Packet {
            body: body.into(),
            ..packet.clone()
        };
        wired.inject_frame(to_b, "b", Frame::Packet(changed));
    }
    // As another kind of packet.
    for other in [kind::SEGMENT, kind::RECEIPT, kind::CUSTODY] {
        let kind = other | kind::SEALED;
        let changed = Packet {
            kind,
            ..packet.clone()
        };
        wired.inject_frame(to_b, "b", Frame::Packet(changed));
    }
    wired.run(5000);
    assert_eq!(runs(&mut wired, "b", 1), 1);
    assert!(wired.host("r").runs.is_empty());
    assert!(unproved(&mut wired, "r") + unproved(&mut wired, "b") > before + 50);
}

#[test]
fn nothing_is_believed_that_is_not_sealed() {
    let mut wired = Wired::secured_chain(&["a", "r", "b"]);
    let wire = wired.wire_between("r", "b");
    wired.submit("a", request(1, "b"));
    wired.run(1000);
    let forged = {
        let mut plain = Wired::chain(&["a", "r", "b"]);
        plain.submit("a", request(2, "b"));
        plain.run(1000);
        plain.host("a").sent.clone()
    };
    assert!(!forged.is_empty());
    for packet in forged {
        wired.inject_frame(wire, "b", Frame::Packet(packet.clone()));
        let first = wired.wire_between("a", "r");
        wired.inject_frame(first, "r", Frame::Packet(packet));
    }
    wired.run(1000);
    assert_eq!(runs(&mut wired, "b", 2), 0);
    // A receipt for what has not arrived.
    wired.cut(wire);
    wired.run(3000);
    wired.submit("a", request(3, "b"));
    wired.run(100);
    let receipt = Body::Receipt(Receipt {
        epoch: 2,
        received: vec![(1, 1000)],
        instance: 99,
        ..Receipt::default()
    });
    let first = wired.wire_between("a", "r");
    wired.inject(first, "a", "b", &receipt);
    wired.run(1000);
    wired.join(wire);
    wired.run(20_000);
    assert_eq!(runs(&mut wired, "b", 3), 1);
    assert!(ended_well(&mut wired, "a", 3));
}

/// A work that runs at `b` for `a`, and the question about it, which `r` does not pass on.
fn asked_about(shows: bool) -> (Wired, Packet) {
    let mut wired = Wired::secured(&["a", "r", "b", "m"]);
    for name in ["a", "r", "b", "m"] {
        wired.host(name).shows = shows;
    }
    wired.wire(0, 1);
    let last = wired.wire(1, 2);
    wired.wire(1, 3);
    wired.run(2000);
    wired.host("b").busy = true;
    wired.submit("a", request(1, "b"));
    wired.run(1000);
    wired.cut(last);
    wired.run(1000);
    wired.join(last);
    wired.lose_packets(last, "r", true);
    wired.run(10_000);
    let question = sealed(&mut wired, "a", kind::INQUIRY).pop().unwrap();
    (wired, question)
}

fn reveal(wired: &Wired, question: &Packet) -> Inquiry {
    match wired.authority().reveal(question) {
        Some(Body::Inquiry(inquiry)) => inquiry,
        other => panic!("{other:?}"),
    }
}

/// Who could say that a work is unknown where it runs would end it for its sender.
#[test]
fn nobody_answers_an_inquiry_for_another() {
    for shows in [false, true] {
        let (mut wired, question) = asked_about(shows);
        let asked = reveal(&wired, &question);
        assert_eq!(asked.works, [id(1)]);
        // Seals hide even the number that an answer needs.
        assert_eq!(holds_id(&question.body), shows);
        let answer = Body::Inquiry(Inquiry {
            is_reply: true,
            ..asked
        });
        let (first, side) = (wired.wire_between("a", "r"), wired.wire_between("r", "m"));
        // In the recipient's name without its seal, also as if it had one; in nobody's but its own.
        let plain = Packet::new(node("b"), node("a"), 30, &answer);
        let as_sealed = Packet {
            kind: kind::SEALED | plain.kind,
            ..plain.clone()
        };
        let question_back = Packet {
            source: node("b"),
            destination: node("a"),
            ..question.clone()
        };
        for forged in [plain, as_sealed, question_back] {
            wired.inject_frame(first, "a", Frame::Packet(forged.clone()));
            wired.inject_frame(side, "r", Frame::Packet(forged));
        }
        let of_member = wired.sealed_by("m", "a", &answer);
        let renamed = Packet {
            source: node("b"),
            ..of_member.clone()
        };
        for said in [of_member, renamed] {
            wired.inject_frame(first, "a", Frame::Packet(said));
        }
        wired.run(1000);
        assert!(wired.host("a").ends.is_empty(), "{shows}");
        // Only the recipient is believed, and the work goes on.
        let last = wired.wire_between("r", "b");
        wired.lose_packets(last, "r", false);
        wired.run(60_000);
        goes_on_to_its_end(&mut wired);
    }
}

/// What was true of one question may be wrong for the next.
#[test]
fn an_answer_to_an_inquiry_is_for_that_one() {
    let (mut wired, _) = asked_about(false);
    let (first, last) = (wired.wire_between("a", "r"), wired.wire_between("r", "b"));
    // The recipient has lost its disk, and says so; the router keeps the answer.
    wired.kill("b");
    wired.host("b").disk = Disk::default();
    wired.start("b");
    wired.lose_packets(last, "r", false);
    wired.run(60_000);
    let answer = sealed(&mut wired, "r", kind::INQUIRY);
    let answer = answer.into_iter().rfind(|said| said.source == node("b"));
    let answer = answer.unwrap();
    let end = wired.host("a").ends[&id(1)].error.clone();
    assert_eq!(end.map(|error| error.code), Some(ErrorCode::Lost));
    // The same work again, under the key that it was sent with.
    wired.host("a").ends.clear();
    wired.host("a").accepted.clear();
    wired.submit("a", request(1, "b"));
    wired.run(1000);
    wired.cut(last);
    wired.run(1000);
    wired.join(last);
    wired.lose_packets(last, "r", true);
    wired.run(10_000);
    wired.inject_frame(first, "a", Frame::Packet(answer));
    wired.run(1000);
    assert!(wired.host("a").ends.is_empty());
}

/// A key can be used again when its work is forgotten, and then names a work by the same id.
#[test]
fn an_answer_of_an_earlier_start_is_not_the_answer_to_a_later_message_of_its_id() {
    let mut wired = Wired::secured_chain(&["a", "r", "b"]);
    wired.submit("a", request(1, "b"));
    wired.run(1000);
    let answers = sealed(&mut wired, "r", kind::MESSAGE);
    let answer = answers.into_iter().find(|said| said.source == node("b"));
    wired.kill("b");
    wired.start("b");
    wired.run(3000);
    wired.submit("a", request(2, "b"));
    wired.run(1000);
    wired.host("b").busy = true;
    wired.host("a").ends.clear();
    wired.host("a").accepted.clear();
    wired.submit("a", request(1, "b"));
    wired.run(1000);
    let first = wired.wire_between("a", "r");
    wired.inject_frame(first, "a", Frame::Packet(answer.unwrap()));
    wired.run(10_000);
    goes_on_to_its_end(&mut wired);
}

#[test]
fn a_node_that_lost_its_disk_and_whose_clock_is_behind_answers() {
    let mut wired = Wired::secured_chain(&["a", "r", "b"]);
    for work in 1..=2 {
        wired.kill("b");
        wired.start("b");
        wired.run(3000);
        wired.submit("a", request(work, "b"));
        wired.run(1000);
    }
    wired.kill("b");
    wired.host("b").disk = Disk::default();
    wired.configure("b", |config| config.instance = 1);
    wired.start("b");
    wired.run(3000);
    wired.submit("a", request(3, "b"));
    wired.run(3000);
    assert!(ended_well(&mut wired, "a", 3));
}

/// Of three starts the first is forgotten before the second.
#[test]
fn what_is_forgotten_of_some_starts_of_a_node_is_not_taken_again() {
    let mut wired = Wired::secured_chain(&["a", "r", "b"]);
    let living = |work, seconds| Submission {
        expiry: Duration::from_secs(seconds),
        ..request(work, "b")
    };
    // Nothing is over for `a`, which hears of no receipts.
    let back = wired.wire_between("a", "r");
    wired.lose_packets(back, "r", true);
    wired.submit("a", living(1, 60));
    wired.run(1000);
    let packet = sealed(&mut wired, "r", kind::MESSAGE).remove(0);
    for work in 2..=3 {
        wired.kill("a");
        wired.start("a");
        wired.run(1000);
        wired.submit("a", living(work, 20 * 24 * 3600));
        wired.run(1000);
    }
    wired.kill("a");
    let last = wired.wire_between("r", "b");
    for hours in [3, 40 * 24, 1] {
        wired.kill("r");
        wired.run(hours * 3_600_000);
        wired.start("r");
        wired.run(3000);
        wired.inject_frame(last, "b", Frame::Packet(packet.clone()));
        wired.run(1000);
        assert_eq!(runs(&mut wired, "b", 1), 1, "{hours}");
    }
}

#[test]
fn a_volatile_message_is_not_taken_again_by_a_later_start() {
    let mut wired = Wired::secured_chain(&["a", "r", "b"]);
    wired.submit("a", volatile(1, "b"));
    wired.run(1000);
    assert!(ended_well(&mut wired, "a", 1));
    let packet = sealed(&mut wired, "r", kind::MESSAGE).remove(0);
    wired.kill("b");
    wired.start("b");
    wired.run(3000);
    let wire = wired.wire_between("r", "b");
    wired.inject_frame(wire, "b", Frame::Packet(packet));
    wired.run(3000);
    assert_eq!(runs(&mut wired, "b", 1), 1);
    // What is meant for this start is.
    wired.submit("a", volatile(2, "b"));
    wired.run(3000);
    assert!(ended_well(&mut wired, "a", 2));
}

#[test]
fn a_message_is_not_taken_again_a_year_later() {
    let mut wired = Wired::secured_chain(&["a", "r", "b"]);
    wired.submit("a", request(1, "b"));
    wired.run(1000);
    let packet = sealed(&mut wired, "r", kind::MESSAGE).remove(0);
    // Of an earlier start of its sender, too.
    wired.kill("a");
    wired.start("a");
    wired.run(3000);
    wired.submit("a", request(2, "b"));
    wired.run(1000);
    let later = sealed(&mut wired, "r", kind::MESSAGE).pop().unwrap();
    for name in ["a", "r"] {
        wired.kill(name);
    }
    wired.run(40 * 24 * 3_600_000);
    wired.kill("b");
    for name in ["a", "r", "b"] {
        wired.start(name);
    }
    wired.run(3000);
    let wire = wired.wire_between("r", "b");
    for packet in [packet, later] {
        wired.inject_frame(wire, "b", Frame::Packet(packet));
        wired.run(1000);
    }
    assert_eq!((runs(&mut wired, "b", 1), runs(&mut wired, "b", 2)), (1, 1));
}

#[test]
fn what_a_router_keeps_is_sealed_and_opens_after_restarts_of_everybody() {
    let mut wired = Wired::secured_chain(&["a", "r", "b"]);
    let last = wired.wire_between("r", "b");
    wired.cut(last);
    wired.run(100);
    wired.submit("a", request(1, "b"));
    wired.run(1000);
    assert_eq!(wired.custody("r"), 1);
    for record in wired.host("r").disk.messages.values() {
        let Record::Transit { message, .. } = record else {
            panic!("{record:?}");
        };
        assert_eq!(message.content, Content::Sealed);
        assert!(!holds(&message.body));
    }
    // Its origin never comes back, and nobody who keeps or gets it has heard of it in this life.
    wired.kill("a");
    wired.kill("r");
    wired.kill("b");
    wired.run(8 * 3_600_000 / 10);
    wired.start("r");
    wired.start("b");
    wired.run(5000);
    assert_eq!(runs(&mut wired, "b", 1), 1);
    assert_eq!(wired.custody("r"), 0);
    wired.start("a");
    wired.run(30_000);
    assert!(ended_well(&mut wired, "a", 1));
    assert_eq!(runs(&mut wired, "b", 1), 1);
}

#[test]
fn a_message_is_entrusted_sealed_to_its_recipient() {
    let mut wired = Wired::secured(&["a", "r", "s", "b"]);
    wired.wire(0, 1);
    wired.wire(1, 2);
    let last = wired.wire(2, 3);
    wired.run(2000);
    wired.submit("a", request(1, "b"));
    wired.run(1000);
    wired.cut(last);
    wired.run(3000);
    wired.submit("a", request(2, "b"));
    wired.run(3000);
    assert_eq!(wired.custody("s"), 1);
    assert!(
        !wired
            .host("r")
            .sent
            .iter()
            .any(|packet| holds(&packet.body))
    );
    wired.kill("a");
    wired.join(last);
    wired.run(5000);
    assert_eq!(runs(&mut wired, "b", 2), 1);
}

#[test]
fn leaves_ask_each_other_who_they_are() {
    let mut wired = Wired::secured(&["x", "r", "s", "y"]);
    for leaf in ["x", "y"] {
        wired.configure(leaf, |config| config.router = false);
    }
    wired.wire(0, 1);
    wired.wire(1, 2);
    wired.wire(2, 3);
    wired.run(3000);
    wired.submit("x", volatile(1, "y"));
    wired.submit("x", request(2, "y"));
    wired.run(3000);
    for work in [1, 2] {
        assert!(ended_well(&mut wired, "x", work), "{work}");
        assert_eq!(runs(&mut wired, "y", work), 1);
    }
    assert!(
        !wired
            .host("r")
            .sent
            .iter()
            .any(|packet| holds(&packet.body))
    );
    // One that was started again knows nobody.
    wired.kill("y");
    wired.start("y");
    wired.run(3000);
    wired.submit("x", request(3, "y"));
    wired.run(5000);
    assert!(ended_well(&mut wired, "x", 3));
}

#[test]
fn a_leaf_whose_router_does_not_reach_a_node_asks_it_through_another() {
    let mut wired = Wired::secured(&["a", "b", "leaf", "x"]);
    wired.configure("leaf", |config| config.router = false);
    // Of two routers at the same cost the leaf takes `a`, which knows nobody else.
    wired.wire(0, 2);
    wired.wire(1, 2);
    wired.wire(1, 3);
    wired.run(3000);
    wired.submit("x", request(1, "leaf"));
    wired.run(10_000);
    assert!(ended_well(&mut wired, "x", 1));
    let asked = |packet: &Packet| packet.kind == kind::IDENTITY && packet.source == node("leaf");
    assert!(wired.host("b").sent.iter().any(asked));
}

#[test]
fn a_node_that_has_lost_its_keys_is_sealed_to_anew() {
    let mut wired = Wired::secured_chain(&["a", "r", "b"]);
    wired.submit("a", request(1, "b"));
    wired.run(1000);
    let old = sealed(&mut wired, "r", kind::MESSAGE).remove(0);
    wired.kill("b");
    wired.host("b").key = 2;
    wired.start("b");
    wired.run(3000);
    wired.submit("a", request(2, "b"));
    wired.run(3000);
    assert!(ended_well(&mut wired, "a", 2));
    let wire = wired.wire_between("r", "b");
    wired.inject_frame(wire, "b", Frame::Packet(old));
    wired.run(1000);
    assert_eq!(runs(&mut wired, "b", 1), 1);
}

#[test]
fn what_nobody_can_open_any_more_is_not_kept() {
    let mut wired = Wired::secured_chain(&["a", "r", "b"]);
    let last = wired.wire_between("r", "b");
    wired.cut(last);
    wired.run(100);
    wired.submit("a", request(1, "b"));
    wired.run(1000);
    assert_eq!(wired.custody("r"), 1);
    for record in wired.host("r").disk.messages.values() {
        let Record::Transit { message, .. } = record else {
            panic!("{record:?}");
        };
        assert_eq!(opens_with(message), Some(1));
    }
    wired.kill("a");
    wired.kill("b");
    wired.host("b").key = 2;
    wired.start("b");
    wired.run(60_000);
    assert_eq!(wired.custody("r"), 0);
    assert_eq!(runs(&mut wired, "b", 1), 0);
    // Its origin has it, and seals it anew.
    wired.start("a");
    wired.run(30_000);
    assert_eq!(runs(&mut wired, "b", 1), 1);
    assert!(ended_well(&mut wired, "a", 1));
}

#[test]
fn who_is_revoked_is_forgotten() {
    let mut wired = Wired::secured_chain(&["a", "b", "c"]);
    assert!(knows(&mut wired, "a", "c"));
    wired.authority().revoke(&node("c"));
    wired.run(30_000);
    assert!(!knows(&mut wired, "a", "c"));
    let now = wired.now();
    assert!(wired.mesh("a").submit(now, volatile(1, "c")).is_err());
    // Not even its neighbor talks to it.
    wired.submit(
        "b",
        Submission {
            expiry: Duration::from_secs(5),
            ..request(2, "c")
        },
    );
    wired.submit("c", request(3, "b"));
    wired.run(10_000);
    assert_eq!(runs(&mut wired, "c", 2) + runs(&mut wired, "b", 3), 0);
}

#[test]
fn neighbors_cause_no_more_work_than_they_may() {
    let mut wired = Wired::secured_chain(&["a", "b", "c"]);
    let wire = wired.wire_between("a", "b");
    let links = stated(&mut wired, "b", "c", LsaKind::LINKS);
    let before = wired.authority().work.get();
    for n in 1..20_000 {
        let seq = links.seq + n;
        let lsa = Lsa {
            seq,
            ..links.clone()
        };
        wired.inject_frame(wire, "b", Frame::Lsas(vec![lsa]));
    }
    let checks = wired.authority().work.get() - before;
    assert!((1000..=4100).contains(&checks), "{checks}");
    // Packets of contexts and identities that nobody has.
    wired.submit("c", request(1, "b"));
    wired.run(1000);
    let packet = sealed(&mut wired, "c", kind::MESSAGE).remove(0);
    let before = wired.authority().work.get();
    for n in 0..10_000u64 {
        let sealed = Sealed::decode(packet.body.clone()).unwrap();
        let mut seal = sealed.seal.to_vec();
        seal[8..16].copy_from_slice(&(1000 + n).to_be_bytes());
        let seal = seal.into();
        let mut body = Vec::new();
        Sealed { seal, ..sealed }.encode(&mut body);
        let body = body.into();
        let forged = Packet {
            body,
            ..packet.clone()
        };
        wired.inject_frame(wire, "b", Frame::Packet(forged));
        let identity = Identity {
            ask: true,
            instance: 1,
            statement: Bytes::copy_from_slice(&n.to_be_bytes()),
        };
        let asks = Packet {
            kind: kind::IDENTITY,
            source: node(&format!("x{n}")),
            body: identity.encode(),
            priority: identity.priority(),
            ..packet.clone()
        };
        wired.inject_frame(wire, "b", Frame::Packet(asks));
    }
    let work = wired.authority().work.get() - before;
    assert!((300..=1100).contains(&work), "{work}");
    // What is honest goes on meanwhile.
    wired.submit("c", request(2, "b"));
    wired.run(1000);
    assert!(ended_well(&mut wired, "c", 2));
}

#[test]
fn who_is_forgotten_among_many_is_known_again_by_what_it_states() {
    let mut wired = Wired::secured_chain(&["a", "r", "b"]);
    wired.authority().forgets.set(true);
    for work in 1..=3 {
        wired.run(11_000);
        wired.offer("b", &format!("p{work}"));
        wired.submit("a", request(work, "b"));
        wired.run(1000);
        assert!(ended_well(&mut wired, "a", work), "{work}");
        let nodes = wired.mesh("a").nodes();
        let b = nodes.iter().find(|view| view.node == node("b")).unwrap();
        assert_eq!(b.plugins[0].plugin, format!("p{work}"));
    }
    let asked = |packet: &Packet| packet.kind == kind::IDENTITY;
    assert!(!wired.host("a").sent.iter().any(asked));
}

#[test]
fn a_node_says_who_it_is_as_often_as_is_useful() {
    let mut wired = Wired::secured_chain(&["a", "b"]);
    let wire = wired.wire_between("a", "b");
    let statement = SignedBody::split(&stated(&mut wired, "a", "a", LsaKind::IDENTITY).body);
    let identity = Identity {
        ask: true,
        instance: 1,
        statement: statement.unwrap().statement,
    };
    let packet = Packet {
        hop_limit: 9,
        hops: 0,
        priority: identity.priority(),
        source: node("a"),
        destination: node("b"),
        kind: kind::IDENTITY,
        body: identity.encode(),
    };
    for _ in 0..10_000 {
        wired.inject_frame(wire, "b", Frame::Packet(packet.clone()));
    }
    let said = wired.host("b").sent.iter();
    let said = said.filter(|packet| packet.kind == kind::IDENTITY).count();
    assert_eq!(said, 1);
}

#[test]
fn without_certificates_nothing_is_signed_or_sealed() {
    let mut wired = Wired::chain(&["a", "r", "b"]);
    wired.submit("a", request(1, "b"));
    wired.run(1000);
    assert!(ended_well(&mut wired, "a", 1));
    let kinds: BTreeSet<u8> = wired.host("r").sent.iter().map(|p| p.kind).collect();
    assert!(kinds.iter().all(|kind| kind & kind::SEALED == 0));
    for name in ["a", "r", "b"] {
        let stated = &wired.host(name).stated;
        assert!(!stated.is_empty());
        let is_plain = |lsa: &Lsa| match lsa.key.kind {
            LsaKind::LINKS => LinksBody::decode(&lsa.body).unwrap().encode() == lsa.body,
            LsaKind::CAPABILITIES => true,
            _ => false,
        };
        assert!(stated.iter().all(is_plain), "{stated:?}");
    }
}

#[test]
fn a_node_without_a_certificate_is_no_member() {
    let mut wired = Wired::secured(&["a", "b"]);
    wired.wire(0, 1);
    wired.run(2000);
    let mut plain = Wired::chain(&["m", "n"]);
    let wire = wired.wire_between("a", "b");
    for kind in [LsaKind::LINKS, LsaKind::CAPABILITIES] {
        let lsa = stated(&mut plain, "m", "m", kind);
        wired.inject_frame(wire, "b", Frame::Lsas(vec![lsa]));
    }
    wired.run(1000);
    assert!(!knows(&mut wired, "b", "m"));
    wired.submit(
        "a",
        Submission {
            expiry: Duration::from_secs(5),
            ..request(1, "m")
        },
    );
    wired.run(10_000);
    let end = wired.host("a").ends.get(&id(1)).unwrap();
    let code = end.error.as_ref().map(|error| error.code.clone());
    assert_eq!(code, Some(ErrorCode::Expired));
    let _: NodeId = node("m");
}
