//! Every frame and packet survives its own encoding, and no bytes of a peer do harm.

use bytes::{Bytes, BytesMut};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use receptor_proto::error::CODE_MAX;
use receptor_proto::frame::{
    DIGEST_BUCKETS, Frame, Goodbye, HELLO_MAX, Hello, MAX_FRAME_FLOOR, TEXT_MAX,
};
use receptor_proto::lsa::{Lsa, LsaKey, LsaKind, LsaSummary, Version};
use receptor_proto::packet::{
    About, ActiveWork, Body, CONTROL_MAX, CancelReason, Content, Custody, EarlierEnd, EchoReply,
    Eof, Holding, INQUIRY_MAX, Inquiry, Message, MessageKind, PAYLOAD_MAX, Packet, Piece,
    RANGES_MAX, Receipt, SEGMENT_MAX, Segment, Undeliverable,
};
use receptor_proto::wire::DecodeError;
use receptor_proto::{Directive, ErrorBody, ErrorCode, MessageId, NodeId};

fn node() -> impl Strategy<Value = NodeId> {
    "[A-Za-z0-9_@:][A-Za-z0-9._@:-]{0,40}"
        .prop_map(|s| NodeId::new(&s).expect("the pattern is the rule"))
}

fn directive() -> impl Strategy<Value = Directive> {
    "[a-z][a-z0-9_-]{0,10}:[A-Za-z0-9][A-Za-z0-9_.-]{0,10}"
        .prop_map(|s| Directive::new(&s).expect("the pattern is the rule"))
}

fn code() -> impl Strategy<Value = ErrorCode> {
    prop_oneof![
        (0..ErrorCode::ALL.len()).prop_map(|i| ErrorCode::ALL[i].clone()),
        "x-[a-z]{1,20}".prop_map(ErrorCode::Unknown),
    ]
}

fn id() -> impl Strategy<Value = MessageId> {
    any::<u128>().prop_map(MessageId::from_u128)
}

fn summary() -> impl Strategy<Value = LsaSummary> {
    let version = (any::<u64>(), any::<u64>());
    (node(), any::<u8>(), version).prop_map(|(node, kind, (seq, fingerprint))| LsaSummary {
        key: LsaKey {
            node,
            kind: LsaKind(kind),
        },
        version: Version { seq, fingerprint },
    })
}

fn lsa() -> impl Strategy<Value = Lsa> {
    (
        summary(),
        any::<u64>(),
        any::<u32>(),
        vec(any::<u8>(), 0..200),
    )
        .prop_map(
            |(LsaSummary { key, version }, instance, remaining_s, body)| Lsa {
                key,
                seq: version.seq,
                instance,
                remaining_s,
                body: body.into(),
            },
        )
}

fn eof() -> impl Strategy<Value = Eof> {
    let error =
        (code(), ".{0,40}").prop_map(|(code, text)| ErrorBody::new(code, text).with("n", 1));
    (any::<u32>(), option::of(error)).prop_map(|(code, error)| Eof { code, error })
}

fn earlier_end() -> impl Strategy<Value = EarlierEnd> {
    (1u64.., any::<u64>(), eof()).prop_map(|(seq, responses, eof)| EarlierEnd {
        seq,
        responses,
        eof,
    })
}

fn message() -> impl Strategy<Value = Message> {
    let kind = prop_oneof![
        (directive(), any::<bool>())
            .prop_map(|(directive, respond)| MessageKind::Request { directive, respond }),
        (any::<u64>(), option::of(eof()), any::<bool>()).prop_map(|(serial, eof, in_doubt)| {
            MessageKind::Response {
                serial,
                in_doubt: in_doubt && eof.is_some(),
                eof,
            }
        }),
        Just(MessageKind::Cancel {
            reason: CancelReason::User
        }),
        Just(MessageKind::Cancel {
            reason: CancelReason::SenderGone
        }),
    ];
    let payload = prop_oneof![
        vec(any::<u8>(), 0..300).prop_map(|body| (body.len() as u64, Bytes::from(body))),
        (SEGMENT_MAX as u64 + 1..=PAYLOAD_MAX).prop_map(|size| (size, Bytes::new())),
    ];
    let content = prop_oneof![
        Just(Content::None),
        Just(Content::Json),
        Just(Content::Text),
        Just(Content::Bytes)
    ];
    (
        (any::<u64>(), 1..=u64::MAX, any::<u64>(), id(), any::<u64>()),
        (
            kind,
            any::<bool>(),
            content,
            option::of("[a-z.]{0,30}"),
            payload,
        ),
    )
        .prop_map(
            |(
                (epoch, seq, floor, work, remaining_ms),
                (kind, volatile, content, name, (size, body)),
            )| Message {
                epoch,
                seq,
                floor: floor % seq,
                work,
                kind,
                volatile,
                remaining_ms,
                content,
                name,
                size,
                body,
            },
        )
}

fn holding() -> impl Strategy<Value = Holding> {
    prop_oneof![
        Just(Holding::Kept),
        Just(Holding::Done),
        Just(Holding::Refused),
        Just(Holding::Dropped),
        Just(Holding::GivenUp),
        any::<u64>().prop_map(Holding::Unopened),
        (6..=u8::MAX).prop_map(Holding::Unknown),
    ]
}

fn body() -> impl Strategy<Value = Body> {
    let work = (id(), directive(), any::<u64>(), any::<bool>()).prop_map(
        |(id, directive, age_ms, running)| ActiveWork {
            id,
            directive,
            age_ms,
            running,
        },
    );
    let ranges = || {
        vec(
            (any::<u64>(), any::<u64>()).prop_map(|(a, b)| (a.min(b), a.max(b))),
            0..5,
        )
    };
    prop_oneof![
        any::<u64>().prop_map(|nonce| Body::Echo { nonce }),
        (
            any::<u64>(),
            any::<u8>(),
            any::<bool>(),
            any::<u64>(),
            vec(work, 0..4)
        )
            .prop_map(
                |(nonce, hops, arrived, active, works)| Body::EchoReply(EchoReply {
                    nonce,
                    hops,
                    arrived,
                    active,
                    works
                })
            ),
        (code(), node(), any::<u64>(), option::of(any::<u64>())).prop_map(
            |(code, destination, a, b)| {
                let about = match b {
                    Some(seq) => About::Message { epoch: a, seq },
                    None => About::Echo(a),
                };
                Body::Undeliverable(Undeliverable {
                    code,
                    destination,
                    about,
                })
            }
        ),
        message().prop_map(Body::Message),
        (node(), message()).prop_map(|(custodian, message)| Body::Kept { custodian, message }),
        (node(), message()).prop_map(|(recipient, message)| Body::Entrusted { recipient, message }),
        (
            holding(),
            node(),
            node(),
            any::<u64>(),
            ranges(),
            any::<bool>()
        )
            .prop_map(
                |(holding, origin, recipient, epoch, messages, never_sent)| {
                    let messages = messages.into_iter().map(|(a, b)| (a.min(b), a.max(b)));
                    Body::Custody(Custody {
                        holding,
                        origin,
                        recipient,
                        epoch,
                        messages: messages.collect(),
                        never_sent,
                    })
                }
            ),
        (
            any::<u64>(),
            any::<u64>(),
            any::<u64>(),
            any::<u32>(),
            vec(any::<u8>(), 0..300)
        )
            .prop_map(|(epoch, seq, offset, sum, bytes)| Body::Segment(Segment {
                epoch,
                seq,
                offset,
                piece: Piece {
                    sum,
                    bytes: bytes.into()
                }
            })),
        (any::<u64>(), any::<bool>(), vec(any::<u128>(), 0..20)).prop_map(
            |(nonce, is_reply, works)| Body::Inquiry(Inquiry {
                nonce,
                is_reply,
                works: works.into_iter().map(MessageId::from_u128).collect(),
            })
        ),
        (
            any::<u64>(),
            ranges(),
            ranges(),
            ranges(),
            any::<u64>(),
            any::<u64>(),
            option::of(earlier_end())
        )
            .prop_map(
                |(epoch, received, progress, busy, instance, later, earlier)| {
                    Body::Receipt(Receipt {
                        epoch,
                        received,
                        progress,
                        busy,
                        instance,
                        later,
                        earlier,
                    })
                }
            ),
    ]
}

fn frame() -> impl Strategy<Value = Frame> {
    let hello = (
        (1u32..5, 0u32..5, node(), any::<u64>(), any::<u64>()),
        (
            any::<u32>(),
            any::<u64>(),
            any::<u32>(),
            any::<bool>(),
            any::<u32>(),
            "[ -~]{0,30}",
        ),
    )
        .prop_map(
            |((low, more, node, instance, features), (frame, credit, hold, router, cost, text))| {
                Frame::Hello(Hello {
                    versions: (low, low + more),
                    node,
                    instance,
                    features,
                    max_frame: frame,
                    credit,
                    hold_time_ms: hold,
                    router,
                    cost,
                    software: text,
                })
            },
        );
    let packet = (any::<u8>(), any::<u8>(), node(), node(), body()).prop_map(
        |(hop_limit, hops, source, destination, body)| {
            let mut packet = Packet::new(source, destination, hop_limit, &body);
            packet.hops = hops;
            Frame::Packet(packet)
        },
    );
    prop_oneof![
        hello,
        (code(), "[ -~]{0,100}")
            .prop_map(|(code, message)| Frame::Goodbye(Goodbye { code, message })),
        any::<u64>().prop_map(|nonce| Frame::Probe { nonce }),
        any::<u64>().prop_map(|nonce| Frame::ProbeReply { nonce }),
        Just(Frame::Digest {
            reply: false,
            buckets: Vec::new()
        }),
        (any::<bool>(), vec(any::<u64>(), DIGEST_BUCKETS))
            .prop_map(|(reply, buckets)| Frame::Digest { reply, buckets }),
        (0..64u8, any::<bool>(), vec(summary(), 0..5)).prop_map(|(bucket, more, entries)| {
            Frame::Summary {
                bucket,
                more,
                entries,
            }
        }),
        vec(lsa(), 0..4).prop_map(Frame::Lsas),
        vec(summary(), 0..5).prop_map(Frame::LsaAck),
        any::<u64>().prop_map(|total| Frame::Credit { total }),
        any::<u32>().prop_map(|cost| Frame::Cost { cost }),
        packet,
    ]
}

fn encoded(frame: &Frame) -> Vec<u8> {
    let mut out = Vec::new();
    frame.encode(&mut out);
    out
}

proptest! {
    #[test]
    fn frames_survive_and_know_their_length(frame in frame()) {
        let bytes = encoded(&frame);
        prop_assert_eq!(bytes.len(), frame.encoded_len());
        let mut input = BytesMut::from(&bytes[..]);
        let taken = Frame::split(&mut input, MAX_FRAME_FLOOR).unwrap().unwrap();
        prop_assert!(input.is_empty());
        prop_assert_eq!(Frame::decode(taken).unwrap(), frame);
    }

    #[test]
    fn bodies_survive(body in body()) {
        let (kind, bytes) = body.encode();
        prop_assert_eq!(Body::decode(kind, bytes).unwrap(), body);
    }

    #[test]
    fn packets_announce_their_size(frame in frame()) {
        if let Frame::Packet(packet) = &frame {
            prop_assert_eq!(packet.wire_size(), encoded(&frame).len());
        }
    }

    #[test]
    fn half_frames_wait_for_the_rest(frame in frame(), cut in any::<prop::sample::Index>()) {
        let bytes = encoded(&frame);
        let mut input = BytesMut::from(&bytes[..cut.index(bytes.len())]);
        prop_assert_eq!(Frame::split(&mut input, MAX_FRAME_FLOOR), Ok(None));
    }

    #[test]
    fn appended_fields_of_newer_versions_are_ignored(frame in frame(), more in vec(any::<u8>(), 1..9)) {
        // A packet's body is the one place where every byte has a meaning already.
        prop_assume!(!matches!(frame, Frame::Packet(_)));
        let mut bytes = encoded(&frame);
        bytes.extend_from_slice(&more);
        prop_assert_eq!(Frame::decode(Bytes::from(bytes.split_off(4))).unwrap(), frame);
    }

    #[test]
    fn random_frames_never_panic(bytes in vec(any::<u8>(), 1..400)) {
        if let Ok(Frame::Packet(packet)) = Frame::decode(bytes.into()) {
            let _ = Body::decode(packet.kind, packet.body);
        }
    }

    #[test]
    fn damaged_frames_never_panic(
        frame in frame(), at in any::<prop::sample::Index>(), with in any::<u8>(), cut in any::<bool>()
    ) {
        let mut bytes = encoded(&frame).split_off(4);
        let at = at.index(bytes.len());
        bytes[at] = with;
        if cut {
            bytes.truncate(at + 1);
        }
        if let Ok(Frame::Packet(packet)) = Frame::decode(bytes.into()) {
            let _ = Body::decode(packet.kind, packet.body);
        }
    }
}

#[test]
fn oversized_frames_are_refused_at_their_length() {
    let mut input = BytesMut::from(&u32::MAX.to_be_bytes()[..]);
    let refused = Frame::split(&mut input, HELLO_MAX);
    assert!(
        matches!(refused, Err(DecodeError::TooLarge { what: "frame", .. })),
        "{refused:?}"
    );
    let mut input = BytesMut::from(&[0u8, 0, 0, 0, 1][..]);
    assert_eq!(
        Frame::split(&mut input, HELLO_MAX),
        Err(DecodeError::Bad {
            what: "frame length"
        })
    );
}

#[test]
fn a_stranger_is_told_apart_by_the_magic() {
    let frame = Bytes::from_static(b"\x01GET / HTTP/1.1\r\n\r\n");
    assert_eq!(
        Frame::decode(frame),
        Err(DecodeError::Bad { what: "magic" })
    );
}

#[test]
fn a_long_goodbye_is_cut_and_a_long_code_refused() {
    let goodbye = |code: &str, message: String| {
        let code = code.parse().unwrap();
        let bytes = encoded(&Frame::Goodbye(Goodbye { code, message }));
        Frame::decode(Bytes::from(bytes).slice(4..))
    };
    let Ok(Frame::Goodbye(cut)) = goodbye("bad-frame", "ä".repeat(TEXT_MAX)) else {
        panic!("a goodbye");
    };
    assert_eq!(cut.message, "ä".repeat(TEXT_MAX / 2));
    assert!(goodbye(&"x".repeat(CODE_MAX), String::new()).is_ok());
    let (size, limit) = (CODE_MAX as u64 + 1, CODE_MAX as u64);
    let what = "goodbye code";
    assert_eq!(
        goodbye(&"x".repeat(CODE_MAX + 1), String::new()),
        Err(DecodeError::TooLarge { what, size, limit })
    );
}

#[test]
fn unknown_frames_and_bodies_are_kept_apart_from_bad_ones() {
    assert_eq!(
        Frame::decode(Bytes::from_static(&[200, 1, 2])),
        Ok(Frame::Unknown { kind: 200 })
    );
    assert_eq!(
        Body::decode(99, Bytes::from_static(b"x")),
        Ok(Body::Unknown { kind: 99 })
    );
}

#[test]
fn a_full_segment_fits_the_smallest_frame_limit() {
    let long = NodeId::new(&"x".repeat(128)).unwrap();
    let body = Body::Segment(Segment {
        epoch: u64::MAX,
        seq: u64::MAX,
        offset: u64::MAX,
        piece: Piece {
            sum: u32::MAX,
            bytes: vec![0; SEGMENT_MAX].into(),
        },
    });
    let frame = Frame::Packet(Packet::new(long.clone(), long, 30, &body));
    assert!(encoded(&frame).len() <= MAX_FRAME_FLOOR);
}

#[test]
fn the_fullest_request_in_custody_fits_the_smallest_frame_limit() {
    let long = NodeId::new(&"x".repeat(128)).unwrap();
    let directive = format!("{}:{}", "x".repeat(64), "y".repeat(64));
    let message = Message {
        epoch: u64::MAX,
        seq: u64::MAX,
        floor: u64::MAX,
        work: MessageId::from_u128(1),
        kind: MessageKind::Request {
            directive: Directive::new(&directive).unwrap(),
            respond: true,
        },
        volatile: false,
        remaining_ms: u64::MAX,
        content: Content::Bytes,
        name: Some("n".repeat(255)),
        size: SEGMENT_MAX as u64,
        body: vec![0; SEGMENT_MAX].into(),
    };
    let (custodian, recipient) = (long.clone(), long.clone());
    for body in [
        Body::Kept {
            custodian,
            message: message.clone(),
        },
        Body::Entrusted { recipient, message },
    ] {
        let packet = Packet::new(long.clone(), long.clone(), 30, &body);
        assert!(encoded(&Frame::Packet(packet)).len() <= MAX_FRAME_FLOOR);
    }
}

#[test]
fn the_fullest_inquiry_is_a_control_packet_and_a_fuller_one_is_a_mistake() {
    let long = NodeId::new(&"x".repeat(128)).unwrap();
    let inquiry = |works| {
        Body::Inquiry(Inquiry {
            nonce: u64::MAX,
            is_reply: true,
            works: vec![MessageId::from_u128(u128::MAX); works],
        })
    };
    let full = Packet::new(long.clone(), long, 30, &inquiry(INQUIRY_MAX));
    assert!(full.wire_size() <= CONTROL_MAX);
    assert!(Body::decode(full.kind, full.body).is_ok());
    let (kind, bytes) = inquiry(INQUIRY_MAX + 1).encode();
    assert!(Body::decode(kind, bytes).is_err());
}

#[test]
fn the_fullest_word_about_custody_is_a_control_packet() {
    let long = NodeId::new(&"x".repeat(128)).unwrap();
    let body = Body::Custody(Custody {
        holding: Holding::Kept,
        origin: long.clone(),
        recipient: long.clone(),
        epoch: u64::MAX,
        messages: vec![(u64::MAX, u64::MAX); RANGES_MAX],
        never_sent: true,
    });
    let packet = Packet::new(long.clone(), long, 30, &body);
    assert!(packet.wire_size() <= CONTROL_MAX);
}

#[test]
fn the_fullest_receipt_is_a_control_packet() {
    let long = NodeId::new(&"x".repeat(128)).unwrap();
    let full = vec![(u64::MAX, u64::MAX); RANGES_MAX];
    let body = Body::Receipt(Receipt {
        epoch: u64::MAX,
        received: full.clone(),
        progress: full.clone(),
        busy: full,
        instance: u64::MAX,
        later: u64::MAX,
        earlier: None,
    });
    let packet = Packet::new(long.clone(), long.clone(), 30, &body);
    assert!(packet.wire_size() <= CONTROL_MAX);
    // One that tells of an end says nothing else.
    let text = "\u{1}".repeat(100_000);
    let error = ErrorBody::new(ErrorCode::PluginExit, text).with("stderr", "y".repeat(100_000));
    let body = Body::Receipt(Receipt {
        epoch: u64::MAX,
        received: vec![(u64::MAX, u64::MAX)],
        instance: u64::MAX,
        later: u64::MAX,
        earlier: Some(EarlierEnd {
            seq: u64::MAX,
            responses: u64::MAX,
            eof: Eof {
                code: u32::MAX,
                error: Some(error),
            },
        }),
        ..Receipt::default()
    });
    let packet = Packet::new(long.clone(), long, 30, &body);
    assert!(2 * packet.wire_size() <= CONTROL_MAX + 2048);
    let Ok(Body::Receipt(receipt)) = Body::decode(packet.kind, packet.body) else {
        panic!("no receipt");
    };
    let error = receipt.earlier.unwrap().eof.error.unwrap();
    assert_eq!(error.code, ErrorCode::PluginExit);
}

#[test]
fn long_errors_are_cut_to_fit() {
    let message = Message {
        epoch: 1,
        seq: 1,
        floor: 0,
        work: MessageId::from_u128(1),
        kind: MessageKind::Response {
            serial: 1,
            eof: Some(Eof {
                code: 1,
                error: Some(
                    ErrorBody::new(ErrorCode::PluginExit, "\u{1}".repeat(100_000))
                        .with("stderr", "y".repeat(100_000)),
                ),
            }),
            in_doubt: true,
        },
        volatile: false,
        remaining_ms: 1,
        content: Content::None,
        name: None,
        size: 0,
        body: Bytes::new(),
    };
    let (kind, bytes) = Body::Message(message).encode();
    let Ok(Body::Message(Message {
        kind: MessageKind::Response { eof: Some(eof), .. },
        ..
    })) = Body::decode(kind, bytes)
    else {
        panic!("not a response any more");
    };
    let error = eof.error.unwrap();
    assert_eq!(error.code, ErrorCode::PluginExit);
    assert!(error.detail.is_empty() && error.message.len() < 100_000);
}

#[test]
fn a_size_that_no_payload_has_is_refused() {
    let message = |size| Message {
        epoch: 1,
        seq: 1,
        floor: 0,
        work: MessageId::from_u128(1),
        kind: MessageKind::Response {
            serial: 1,
            eof: None,
            in_doubt: false,
        },
        volatile: false,
        remaining_ms: 1,
        content: Content::Bytes,
        name: None,
        size,
        body: Bytes::new(),
    };
    let decode = |size| {
        let node = |name| NodeId::new(name).unwrap();
        let packet = Packet::new(node("a"), node("b"), 1, &Body::Message(message(size)));
        Body::decode(packet.kind, packet.body)
    };
    assert_eq!(decode(PAYLOAD_MAX), Ok(Body::Message(message(PAYLOAD_MAX))));
    let (size, limit) = (PAYLOAD_MAX + 1, PAYLOAD_MAX);
    let what = "payload";
    assert_eq!(
        decode(size),
        Err(DecodeError::TooLarge { what, size, limit })
    );
}

#[test]
fn the_shortest_statement_is_read() {
    let lsa = Lsa {
        key: LsaKey {
            node: NodeId::new("a").unwrap(),
            kind: LsaKind::LINKS,
        },
        seq: 1,
        instance: 1,
        remaining_s: 0,
        body: Bytes::new(),
    };
    for count in [1, 3] {
        let frame = Frame::Lsas(vec![lsa.clone(); count]);
        assert_eq!(
            Frame::decode(encoded(&frame).split_off(4).into()),
            Ok(frame)
        );
    }
}
