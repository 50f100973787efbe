//! Two members that sign, seal and open, and those who would like to.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use receptor_identity::{
    Credentials, INCOMING_MAX, KEYS_MAX, Learned, Member, OVERHEAD, PEERS_MAX, Purpose,
    ROTATE_AFTER, Recheck, Refusal, SealKeys, Statement, TEXT_AT, Trust,
};
use receptor_proto::wire::Writer;

use crate::common::{Authority, DAY, NOW, THEN, Wish, at, golden, node, wish};

const T0: Duration = Duration::from_secs(1000);

fn member(authority: &Authority, id: &'static str) -> Member {
    let own = Arc::new(authority.credentials(&wish(id)));
    Member::new(node(id), own, authority.trust(), SealKeys::generate(NOW)).unwrap()
}

fn introduce(to: &mut Member, who: &Member, id: &str, sequence: u64) -> Result<Learned, Refusal> {
    to.learn(&node(id), &who.statement(sequence).unwrap(), at(NOW))
}

/// Two members that know each other.
fn pair() -> (Authority, Member, Member) {
    let authority = Authority::new("ca");
    let (mut a, mut b) = (member(&authority, "a"), member(&authority, "b"));
    assert_eq!(introduce(&mut a, &b, "b", 1), Ok(Learned::New));
    assert_eq!(introduce(&mut b, &a, "a", 1), Ok(Learned::New));
    (authority, a, b)
}

fn seal(from: &mut Member, to: &str, aad: &[u8], plain: &[u8], now: Duration) -> Vec<u8> {
    let mut out = Vec::new();
    from.seal(&node(to), aad, &[plain], &mut out, now).unwrap();
    out
}

fn open(by: &mut Member, from: &str, aad: &[u8], sealed: &[u8]) -> Result<Vec<u8>, Refusal> {
    let mut copy = sealed.to_vec();
    by.open(&node(from), aad, &mut copy, T0)
        .map(|plain| plain.to_vec())
}

#[test]
fn what_is_sealed_is_opened_in_any_order_and_again() {
    let (_, mut a, mut b) = pair();
    let sizes = [0, 1, 128, 65_536];
    let packets: Vec<_> = sizes
        .iter()
        .map(|size| seal(&mut a, "b", b"clear", &vec![7; *size], T0))
        .collect();
    for _ in 0..2 {
        for (packet, size) in packets.iter().zip(sizes).rev() {
            assert_eq!(packet.len(), size + OVERHEAD);
            assert_eq!(open(&mut b, "a", b"clear", packet).unwrap(), vec![7; size]);
        }
    }
    // What is there already stays.
    let mut out = b"before".to_vec();
    a.seal(&node("b"), b"", &[b"text"], &mut out, T0).unwrap();
    assert_eq!(&out[..6], b"before");
    assert_eq!(open(&mut b, "a", b"", &out[6..]).unwrap(), b"text");
}

#[test]
fn nothing_of_the_text_shows() {
    let (_, mut a, _) = pair();
    let packet = seal(&mut a, "b", b"", b"canary-canary-canary", T0);
    assert!(!packet.windows(6).any(|part| part == b"canary"));
}

#[test]
fn any_change_is_noticed() {
    let (_, mut a, mut b) = pair();
    let packet = seal(&mut a, "b", b"clear", b"text", T0);
    for at_byte in 0..packet.len() {
        for bit in [1, 0x80] {
            let mut changed = packet.clone();
            changed[at_byte] ^= bit;
            assert!(open(&mut b, "a", b"clear", &changed).is_err(), "{at_byte}");
        }
    }
    for end in 0..packet.len() {
        assert!(open(&mut b, "a", b"clear", &packet[..end]).is_err());
    }
    let more = [&packet[..], &[0]].concat();
    assert!(open(&mut b, "a", b"clear", &more).is_err());
    assert!(open(&mut b, "a", b"clean", &packet).is_err());
    assert!(open(&mut b, "a", b"", &packet).is_err());
    assert!(open(&mut b, "a", b"clear", &packet).is_ok());
}

#[test]
fn nobody_else_opens_it_or_passes_for_its_sender() {
    let (authority, mut a, mut b) = pair();
    let mut c = member(&authority, "c");
    for (id, who) in [("a", &a), ("b", &b)] {
        introduce(&mut c, who, id, 1).unwrap();
    }
    introduce(&mut a, &c, "c", 1).unwrap();
    introduce(&mut b, &c, "c", 1).unwrap();
    let packet = seal(&mut a, "b", b"", b"text", T0);
    assert_eq!(open(&mut c, "a", b"", &packet), Err(Refusal::NotOurs));
    assert_eq!(open(&mut b, "c", b"", &packet), Err(Refusal::UnknownKey));
    // Sent back to where it came from.
    assert_eq!(open(&mut a, "b", b"", &packet), Err(Refusal::NotOurs));
    // With the number of its own key in place of the sender's, C opens nothing as its own.
    let mut claimed = packet.clone();
    claimed[4..8].copy_from_slice(&seal(&mut c, "b", b"", b"", T0)[4..8]);
    assert_eq!(open(&mut b, "c", b"", &claimed), Err(Refusal::NotAuthentic));
    // And what C sealed is not A's, whatever number stands in it.
    let mut claimed = seal(&mut c, "b", b"", b"text", T0);
    claimed[4..8].copy_from_slice(&packet[4..8]);
    assert_eq!(open(&mut b, "a", b"", &claimed), Err(Refusal::NotAuthentic));
}

#[test]
fn no_counter_is_used_twice_and_contexts_are_rotated() {
    let (authority, mut a, mut b) = pair();
    let mut seen = HashSet::new();
    let mut contexts = HashSet::new();
    let mut now = T0;
    for round in 0..2000 {
        let packet = seal(&mut a, "b", b"", b"", now);
        contexts.insert(packet[8..40].to_vec());
        assert!(seen.insert(packet[8..48].to_vec()), "{round}");
        now += Duration::from_secs(5);
    }
    // 10,000 s are two and a half hours.
    assert_eq!(contexts.len(), 3);
    // After a restart it is another context, too.
    let before = seal(&mut a, "b", b"", b"", now);
    let keys = SealKeys::from_text(&a.with_seal_keys(|keys| keys.to_text())).unwrap();
    let own = Arc::new(authority.credentials(&wish("a")));
    let mut again = Member::new(node("a"), own, authority.trust(), keys).unwrap();
    introduce(&mut again, &b, "b", 1).unwrap();
    let after = seal(&mut again, "b", b"", b"", T0);
    assert_eq!(before[..8], after[..8]);
    assert_ne!(before[8..40], after[8..40]);
    assert!(open(&mut b, "a", b"", &before).is_ok());
    assert!(open(&mut b, "a", b"", &after).is_ok());
}

#[test]
fn a_message_opens_after_restarts_of_both_and_new_keys() {
    let (authority, mut a, mut b) = pair();
    let packet = seal(&mut a, "b", b"clear", b"text", T0);
    let restart = |old: &mut Member, id: &'static str| {
        let mut keys = SealKeys::from_text(&old.with_seal_keys(|keys| keys.to_text())).unwrap();
        assert!(keys.rotate(NOW + 8 * DAY, 7 * DAY, 30 * DAY));
        let own = Arc::new(authority.credentials(&wish(id)));
        Member::new(node(id), own, authority.trust(), keys).unwrap()
    };
    let (a, mut b) = (restart(&mut a, "a"), restart(&mut b, "b"));
    assert_eq!(
        open(&mut b, "a", b"clear", &packet),
        Err(Refusal::UnknownNode)
    );
    introduce(&mut b, &a, "a", 2).unwrap();
    assert_eq!(open(&mut b, "a", b"clear", &packet).unwrap(), b"text");
    // Until the key is given up.
    assert!(b.with_seal_keys(|keys| keys.rotate(NOW + 40 * DAY, 7 * DAY, 30 * DAY)));
    assert_eq!(open(&mut b, "a", b"clear", &packet), Err(Refusal::NotOurs));
}

#[test]
fn new_keys_are_used_as_soon_as_they_are_known() {
    let (_, mut a, mut b) = pair();
    let first = seal(&mut a, "b", b"", b"", T0);
    assert!(b.with_seal_keys(|keys| keys.rotate(NOW + DAY, DAY, 30 * DAY)));
    assert_eq!(introduce(&mut a, &b, "b", 2), Ok(Learned::Newer));
    let second = seal(&mut a, "b", b"", b"", T0);
    assert_ne!(first[..4], second[..4]);
    // Own ones as well.
    assert!(a.with_seal_keys(|keys| keys.rotate(NOW + DAY, DAY, 30 * DAY)));
    let third = seal(&mut a, "b", b"", b"", T0);
    assert_ne!(second[4..8], third[4..8]);
    assert_eq!(open(&mut b, "a", b"", &third), Err(Refusal::UnknownKey));
    assert_eq!(introduce(&mut b, &a, "a", 2), Ok(Learned::Newer));
    for packet in [first, second, third] {
        assert!(open(&mut b, "a", b"", &packet).is_ok());
    }
}

#[test]
fn contexts_of_a_sender_are_bounded_and_forgeries_take_no_room() {
    let (_, mut a, mut b) = pair();
    let packets: Vec<_> = (0..3 * INCOMING_MAX)
        .map(|n| {
            let now = T0 + ROTATE_AFTER * u32::try_from(n).unwrap();
            seal(&mut a, "b", b"", b"text", now)
        })
        .collect();
    for packet in packets.iter().chain(&packets) {
        assert!(open(&mut b, "a", b"", packet).is_ok());
        assert!(format!("{b:?}").matches("Incoming").count() <= INCOMING_MAX);
    }
    let mut forged = packets[0].clone();
    forged[8..40].fill(9);
    assert_eq!(open(&mut b, "a", b"", &forged), Err(Refusal::NotAuthentic));
    b.tidy(T0 + 2 * ROTATE_AFTER);
    assert_eq!(format!("{b:?}").matches("Incoming").count(), 0);
    // A point that makes every secret the same is no key.
    forged[8..40].fill(0);
    assert_eq!(open(&mut b, "a", b"", &forged), Err(Refusal::NotAuthentic));
}

#[test]
fn a_member_signs_for_itself_alone() {
    let (authority, a, mut b) = pair();
    let signature = a.sign(b"links of a").unwrap();
    assert_eq!(b.verify(&node("a"), b"links of a", &signature), Ok(()));
    assert_eq!(
        b.verify(&node("a"), b"links of b", &signature),
        Err(Refusal::Signature)
    );
    let c = member(&authority, "c");
    introduce(&mut b, &c, "c", 1).unwrap();
    assert_eq!(
        b.verify(&node("c"), b"links of a", &signature),
        Err(Refusal::Signature)
    );
    assert_eq!(
        b.verify(&node("d"), b"links of a", &signature),
        Err(Refusal::UnknownNode)
    );
    // A statement's signature is none of an LSA, and C's certificate none of A's.
    let statement = a.statement(1).unwrap();
    let cut = statement.len() - 72;
    assert!((cut - 4..statement.len()).all(|at| {
        let (message, signature) = statement.split_at(at);
        b.verify(&node("a"), message, signature).is_err()
    }));
    assert!(matches!(
        introduce(&mut b, &c, "a", 1),
        Err(Refusal::OtherNode { .. })
    ));
    let own = Arc::new(authority.credentials(&wish("c")));
    let wrong = Member::new(node("a"), own, authority.trust(), SealKeys::generate(0));
    assert_eq!(
        wrong.unwrap_err().to_string(),
        "the certificate is not for a, but for c"
    );
}

#[test]
fn a_statement_for_another_node_is_refused_though_it_is_well_signed() {
    let (authority, _, mut b) = pair();
    let own = authority.credentials(&wish("c"));
    let keys = SealKeys::generate(NOW).public();
    let claimed = Statement::make(&node("a"), 9, &own, &keys).unwrap();
    assert_eq!(
        b.learn(&node("a"), &claimed, at(NOW)),
        Err(Refusal::OtherNode {
            node: node("a"),
            certified: vec![node("c")]
        })
    );
}

#[test]
fn any_change_to_a_statement_is_noticed() {
    let (authority, a, _) = pair();
    let statement = a.statement(5).unwrap();
    let mut fresh = member(&authority, "b");
    for at_byte in 0..statement.len() {
        let mut changed = statement.to_vec();
        changed[at_byte] ^= 1;
        let learned = fresh.learn(&node("a"), &Bytes::from(changed), at(NOW));
        assert!(learned.is_err(), "{at_byte}");
    }
    assert_eq!(fresh.known(), 0);
    assert_eq!(
        fresh.learn(&node("a"), &statement, at(NOW)),
        Ok(Learned::New)
    );
    let large = Bytes::from(vec![1; 100_000]);
    assert_eq!(
        fresh.learn(&node("a"), &large, at(NOW)),
        Err(Refusal::TooLarge)
    );
}

#[test]
fn what_later_versions_add_to_a_statement_is_passed_over() {
    let (authority, _, mut b) = pair();
    let own = authority.credentials(&wish("c"));
    let make = |version: u8, keys: &[(u64, &[u8])], more: &[u8]| {
        let mut signed = Vec::new();
        let mut writer = Writer(&mut signed);
        writer.u8(version);
        writer.node(&node("c"));
        writer.fixed_u64(1);
        writer.varint(1);
        writer.bytes(&own.chain()[0]);
        writer.varint(keys.len() as u64);
        for (suite, key) in keys {
            writer.varint(*suite);
            writer.bytes(key);
        }
        signed.extend_from_slice(more);
        let signature = own.key().sign(Purpose::Statement, &signed).unwrap();
        let mut statement = Vec::new();
        Writer(&mut statement).bytes(&signed);
        Writer(&mut statement).bytes(&signature);
        Bytes::from(statement)
    };
    let mut learn = |statement: Bytes| b.learn(&node("c"), &statement, at(NOW));
    let keys: [(u64, &[u8]); 2] = [(7, &[1; 1184]), (1, &[9; 32])];
    let later = make(1, &keys, b"more");
    assert_eq!(Statement::read(&later).unwrap().keys().len(), 1);
    assert_eq!(learn(later), Ok(Learned::New));
    assert!(matches!(
        learn(make(2, &keys, b"")),
        Err(Refusal::Statement(_))
    ));
    assert!(matches!(
        learn(make(1, &[(1, &[9; 31])], b"")),
        Err(Refusal::Statement(_))
    ));
    let many = [(1, &[9; 32][..]); KEYS_MAX + 1];
    assert_eq!(learn(make(1, &many, b"")), Err(Refusal::TooLarge));
    // A point that makes every secret the same is no key to seal to.
    b.forget(&node("c"));
    let zero = make(1, &[(1, &[0; 32])], b"");
    assert_eq!(b.learn(&node("c"), &zero, at(NOW)), Ok(Learned::New));
    let mut out = Vec::new();
    let sealed = b.seal(&node("c"), b"", &[b"text"], &mut out, T0);
    assert_eq!((sealed, out.len()), (Err(Refusal::NoKey), 0));
}

/// Kept as the first version wrote it: what waits in a spool must open after any upgrade.
#[test]
fn what_was_sealed_once_still_opens() {
    let sender = node("awx-1.example.com");
    let read = |name| Bytes::from(golden(name));
    let trust = [golden("existing-ca.pem"), golden("ours-ca.pem")].concat();
    let own = Credentials::from_pem(&golden("ours-node.pem"), &golden("ours-node.key")).unwrap();
    let keys = SealKeys::from_text(&read("node-b.keys")).unwrap();
    let trust = Trust::new(&trust).unwrap();
    let mut member = Member::new(node("node-b"), Arc::new(own), trust, keys).unwrap();
    let learned = member.learn(&sender, &read("sender.statement"), at(THEN));
    assert_eq!(learned, Ok(Learned::New));
    let mut packet = golden("packet.sealed");
    let plain = member.open(&sender, b"clear part", &mut packet, T0);
    assert_eq!(plain.unwrap(), b"kept in a spool");
}

#[test]
fn the_newest_statement_counts() {
    let (_, a, mut b) = pair();
    let same = a.statement(4).unwrap();
    assert_eq!(b.learn(&node("a"), &same, at(NOW)), Ok(Learned::Newer));
    assert_eq!(b.learn(&node("a"), &same, at(NOW)), Ok(Learned::Known));
    assert_eq!(introduce(&mut b, &a, "a", 3), Ok(Learned::Older));
    assert_eq!(introduce(&mut b, &a, "a", u64::MAX), Ok(Learned::Newer));
    b.forget(&node("a"));
    assert!(!b.knows(&node("a")));
}

#[test]
fn who_is_revoked_or_over_is_forgotten() {
    let (authority, _, mut b) = pair();
    let mut add = |id: &'static str, serial, not_after| {
        let wish = Wish {
            serial,
            not_after,
            ..wish(id)
        };
        let own = Arc::new(authority.credentials(&wish));
        let who = Member::new(node(id), own, authority.trust(), SealKeys::generate(0)).unwrap();
        introduce(&mut b, &who, id, 1).unwrap();
    };
    add("revoked", 9, NOW + DAY);
    add("soon", 10, NOW + 100);
    assert_eq!(b.recheck(at(NOW + 100), 100), Recheck::default());
    let over = b.recheck(at(NOW + 101), 0);
    assert_eq!(over.refused.len(), 1);
    assert_eq!(over.refused[0].0, node("soon"));
    let lists = authority.revoke(&[9]);
    let trust = authority.trust();
    b.set_trust(trust.with_revocation_lists(lists.as_bytes()).unwrap());
    let (mut refused, mut calls) = (Vec::new(), 0);
    loop {
        let step = b.recheck(at(NOW), 1);
        calls += 1;
        refused.extend(step.refused);
        if !step.more {
            break;
        }
    }
    assert_eq!(refused, [(node("revoked"), Refusal::Revoked)]);
    assert_eq!(calls, 2);
    assert!(b.knows(&node("a")) && !b.knows(&node("revoked")));
    // Nobody is left under another authority.
    b.set_trust(Authority::new("other").trust());
    let all = b.recheck(at(NOW), 100);
    assert_eq!(all.refused, [(node("a"), Refusal::UnknownIssuer)]);
    assert_eq!(b.known(), 0);
}

#[test]
fn a_renewed_certificate_takes_over() {
    let (authority, mut a, mut b) = pair();
    let packet = seal(&mut a, "b", b"", b"text", T0);
    let old = a.sign(b"links").unwrap();
    let own = Arc::new(authority.credentials(&wish("a")));
    a.set_credentials(own).unwrap();
    assert_eq!(introduce(&mut b, &a, "a", 2), Ok(Learned::Newer));
    assert_eq!(
        b.verify(&node("a"), b"links", &old),
        Err(Refusal::Signature)
    );
    assert_eq!(
        b.verify(&node("a"), b"links", &a.sign(b"links").unwrap()),
        Ok(())
    );
    assert_eq!(open(&mut b, "a", b"", &packet).unwrap(), b"text");
    let other = Arc::new(authority.credentials(&wish("b")));
    assert!(a.set_credentials(other).is_err());
}

#[test]
fn the_table_is_bounded() {
    // Statements are the costly part, so one certificate of many ids stands for many nodes.
    const IDS: [&str; 16] = [
        "n0", "n1", "n2", "n3", "n4", "n5", "n6", "n7", "n8", "n9", "n10", "n11", "n12", "n13",
        "n14", "n15",
    ];
    let (authority, _, mut b) = pair();
    let own = authority.credentials(&Wish {
        ids: IDS.to_vec(),
        ..wish("")
    });
    for id in IDS {
        let statement = Statement::make(&node(id), 1, &own, &[]).unwrap();
        b.learn(&node(id), &statement, at(NOW)).unwrap();
        let mut out = Vec::new();
        assert_eq!(
            b.seal(&node(id), b"", &[b"text"], &mut out, T0),
            Err(Refusal::NoKey)
        );
        assert!(out.is_empty());
    }
    assert_eq!(b.known(), 17);
    const { assert!(PEERS_MAX <= 16_384) };
}

proptest::proptest! {
    #[test]
    fn no_bytes_are_too_much(
        bytes in proptest::collection::vec(0u8.., 0..400),
        at_byte in 0usize..1000,
        to in 0u8..,
    ) {
        thread_local! {
            static MADE: std::cell::RefCell<(Bytes, Vec<u8>, Member)> = {
                let (_, mut a, b) = pair();
                let packet = seal(&mut a, "b", b"", b"text", T0);
                (a.statement(7).unwrap(), packet, b).into()
            };
        }
        MADE.with_borrow_mut(|(statement, packet, b)| {
            let _ = b.learn(&node("a"), &Bytes::from(bytes.clone()), at(NOW));
            let _ = open(b, "a", b"", &bytes);
            let names = [&packet[..8], &bytes].concat();
            let _ = open(b, "a", b"", &names);
            let mut damaged = statement.to_vec();
            if let Some(byte) = damaged.get_mut(at_byte) {
                *byte = to;
            }
            let _ = Statement::read(&damaged.clone().into());
            damaged.truncate(at_byte);
            let _ = b.learn(&node("a"), &damaged.into(), at(NOW));
            let _ = b.verify(&node("a"), b"", &bytes);
        });
    }
}

#[test]
fn what_is_cheap_to_open_is_known_beforehand() {
    let (_, mut a, mut b) = pair();
    let packet = seal(&mut a, "b", b"", b"text", T0);
    assert!(!b.opens_cheaply(&node("a"), &packet));
    let mut copy = packet.clone();
    b.open(&node("a"), b"", &mut copy, T0).unwrap();
    assert!(b.opens_cheaply(&node("a"), &packet));
    assert_eq!(&copy[TEXT_AT..TEXT_AT + 4], b"text");
    // Of another context; of nobody that is known; too short to be one.
    let mut other = packet.clone();
    other[9] ^= 1;
    assert!(!b.opens_cheaply(&node("a"), &other));
    assert!(b.opens_cheaply(&node("c"), &packet));
    assert!(b.opens_cheaply(&node("a"), &packet[..OVERHEAD - 1]));
}

#[test]
fn the_statement_that_is_known_can_be_handed_on() {
    let (authority, _, b) = pair();
    let statement = b.statement_of(&node("a")).unwrap().clone();
    let mut other = member(&authority, "c");
    let learned = other.learn(&node("a"), &statement, at(NOW));
    assert_eq!(learned, Ok(Learned::New));
    assert_eq!(b.statement_of(&node("c")), None);
}
