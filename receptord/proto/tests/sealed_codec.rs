//! Sealed packets survive their own encoding, say no more in clear than they should, and no bytes of a peer do harm.

use bytes::Bytes;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use receptor_proto::packet::sealed::{
    Form, Identity, Keepsake, Place, Sealed, SealedEntrusted, SealedKept, Split, join,
};
use receptor_proto::packet::{
    Body, CancelReason, Content, Eof, Message, MessageKind, Piece, Receipt, Segment, kind,
};
use receptor_proto::{Directive, ErrorBody, ErrorCode, MessageId, NodeId};

fn node() -> impl Strategy<Value = NodeId> {
    "[a-z]{1,40}".prop_map(|name| NodeId::new(&name).expect("the pattern is the rule"))
}

fn eof() -> impl Strategy<Value = Eof> {
    let error = "[a-z ]{0,40}".prop_map(|text| ErrorBody::new(ErrorCode::Refused, text));
    (any::<u32>(), option::of(error)).prop_map(|(code, error)| Eof { code, error })
}

fn message() -> impl Strategy<Value = Message> {
    let directive = "[a-z]{1,20}:[a-z]{1,20}".prop_map(|text| Directive::new(&text).expect("one"));
    let kind = prop_oneof![
        (directive, any::<bool>())
            .prop_map(|(directive, respond)| MessageKind::Request { directive, respond }),
        (any::<u64>(), option::of(eof()), any::<bool>()).prop_map(|(serial, eof, in_doubt)| {
            MessageKind::Response {
                serial,
                in_doubt: in_doubt && eof.is_some(),
                eof,
            }
        }),
        Just(MessageKind::Cancel {
            reason: CancelReason::SenderGone
        }),
    ];
    (
        (any::<u64>(), 1..=u64::MAX, any::<u64>(), any::<u128>()),
        (kind, any::<bool>(), option::of("[a-z.]{0,30}")),
        (any::<u64>(), vec(any::<u8>(), 0..300)),
    )
        .prop_map(
            |((epoch, seq, floor, work), (kind, volatile, name), (remaining_ms, body))| Message {
                epoch,
                seq,
                floor: floor % seq,
                work: MessageId::from_u128(work),
                kind,
                volatile,
                remaining_ms,
                content: Content::Json,
                name,
                size: body.len() as u64,
                body: body.into(),
            },
        )
}

fn sealed() -> impl Strategy<Value = Sealed> {
    let bytes = || vec(any::<u8>(), 0..200).prop_map(Bytes::from);
    (any::<bool>(), bytes(), bytes(), bytes()).prop_map(|(hidden, clear, shown, seal)| Sealed {
        form: if hidden { Form::Hidden } else { Form::Shown },
        clear,
        shown: if hidden { Bytes::new() } else { shown },
        seal,
    })
}

fn encoded(sealed: &Sealed) -> Bytes {
    let mut out = Vec::new();
    sealed.encode(&mut out);
    out.into()
}

fn hidden(split: &Split) -> Bytes {
    [&split.hidden[..], &split.rest[..]].concat().into()
}

proptest! {
    #[test]
    fn messages_are_put_together_again(message in message(), instance: u64) {
        let split = Split::message(&message, instance);
        prop_assert_eq!(split.kind, kind::MESSAGE);
        let volatile = message.volatile;
        let hidden = hidden(&split);
        let joined = join(split.kind, &split.clear.into(), hidden);
        let instance = if volatile { instance } else { 0 };
        prop_assert_eq!(joined, Ok((Body::Message(message), instance)));
    }

    #[test]
    fn other_bodies_are_put_together_again(
        epoch: u64, seq: u64, offset: u64, sum: u32, bytes in vec(any::<u8>(), 0..300)
    ) {
        let piece = Piece { sum, bytes: bytes.into() };
        let receipt = Receipt { epoch, received: vec![(seq.min(offset), seq.max(offset))], ..Receipt::default() };
        for body in [
            Body::Segment(Segment { epoch, seq, offset, piece }),
            Body::Receipt(receipt),
        ] {
            let split = Split::body(&body).expect("it travels sealed");
            let hidden = hidden(&split);
            let joined = join(split.kind, &split.clear.into(), hidden);
            prop_assert_eq!(joined, Ok((body, 0)));
        }
    }

    #[test]
    fn what_is_around_a_seal_survives(
        message in sealed(), custodian in node(), remaining_ms: u64, ask: bool, identity: Vec<u8>
    ) {
        prop_assert_eq!(Sealed::decode(encoded(&message)), Ok(message.clone()));
        let keepsake = Keepsake { identity: identity.clone().into(), message: message.clone() };
        prop_assert_eq!(Keepsake::decode(keepsake.encode()), Ok(keepsake.clone()));
        let keepsake = keepsake.encode();
        let kept = SealedKept { custodian: custodian.clone(), remaining_ms, keepsake };
        prop_assert_eq!(SealedKept::decode(kept.encode()), Ok(kept));
        let entrusted = SealedEntrusted { recipient: custodian, message };
        prop_assert_eq!(SealedEntrusted::decode(entrusted.encode()), Ok(entrusted));
        let told = Identity { ask, instance: remaining_ms, statement: identity.into() };
        prop_assert_eq!(Identity::decode(told.encode()), Ok(told));
    }

    /// Whatever is changed before the seal, the seal is bound to something else.
    #[test]
    fn everything_before_a_seal_is_bound_to_it(message in sealed(), kind: u8) {
        let bound = Sealed::bound(kind, message.form, &message.clear, &message.shown);
        let mut body = encoded(&message).to_vec();
        body.truncate(body.len() - message.seal.len());
        prop_assert_eq!(bound[0], kind);
        prop_assert_eq!(&bound[1..], &body[..]);
    }

    #[test]
    fn random_bodies_never_panic(bytes: Vec<u8>, kind: u8) {
        let bytes = Bytes::from(bytes);
        if let Ok(sealed) = Sealed::decode(bytes.clone()) {
            let _ = sealed.place(kind);
            let _ = sealed.envelope();
            let keepsake = Keepsake { identity: Bytes::new(), message: sealed };
            let _ = keepsake.message();
        }
        let _ = Keepsake::decode(bytes.clone());
        let _ = SealedKept::decode(bytes.clone());
        let _ = SealedEntrusted::decode(bytes.clone());
        let _ = Identity::decode(bytes.clone());
        let half = bytes.len() / 2;
        let _ = join(kind & 15, &bytes.slice(..half), bytes.slice(half..));
    }
}

fn response() -> Message {
    Message {
        epoch: 7,
        seq: 9,
        floor: 8,
        work: MessageId::from_u128(1),
        kind: MessageKind::Response {
            serial: 3,
            eof: Some(Eof {
                code: 5,
                error: Some(ErrorBody::new(ErrorCode::Refused, "canary-error")),
            }),
            in_doubt: true,
        },
        volatile: false,
        remaining_ms: 1000,
        content: Content::Text,
        name: Some("canary-name".to_owned()),
        size: 14,
        body: Bytes::from_static(b"canary-payload"),
    }
}

#[test]
fn the_clear_part_says_nothing_of_payload_name_and_error() {
    let split = Split::message(&response(), 0);
    let clear = String::from_utf8_lossy(&split.clear).into_owned();
    assert!(!clear.contains("canary"), "{clear}");
    let hidden = String::from_utf8_lossy(&hidden(&split)).into_owned();
    for word in ["canary-error", "canary-name", "canary-payload"] {
        assert!(hidden.contains(word), "{word}");
    }
}

#[test]
fn a_custodian_reads_what_it_needs() {
    let split = Split::message(&response(), 0);
    let message = Sealed {
        form: Form::Hidden,
        clear: split.clear.into(),
        shown: Bytes::new(),
        seal: Bytes::from_static(b"seal"),
    };
    assert_eq!(
        message.place(kind::MESSAGE),
        Some(Place { epoch: 7, seq: 9 })
    );
    let identity = Bytes::from_static(b"who");
    let keepsake = Keepsake { identity, message };
    let kept = keepsake.message().unwrap();
    assert_eq!(kept.content, Content::Sealed);
    assert_eq!((kept.epoch, kept.seq, kept.remaining_ms), (7, 9, 1000));
    assert_eq!(kept.size, kept.body.len() as u64);
    assert_eq!(Keepsake::decode(kept.body), Ok(keepsake));
}

#[test]
fn nobody_can_send_what_only_a_custodian_stores() {
    let mut message = response();
    message.content = Content::Sealed;
    let (kind, bytes) = Body::Message(message.clone()).encode();
    assert!(Body::decode(kind, bytes).is_err());
    let split = Split::message(&message, 0);
    assert!(join(kind, &split.clear.into(), split.hidden.into()).is_err());
}
