//! Holds the examples of the link protocol's text against the types.

use bytes::{Bytes, BytesMut};
use receptor_proto::frame::{Frame, MAX_FRAME_FLOOR};
use receptor_proto::packet::sealed::{Identity, Sealed};
use receptor_proto::packet::{Body, kind};
use receptor_proto::signed::SignedBody;

const TEXT: &str = include_str!("../PROTOCOL-link.md");

fn examples() -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    let mut lines = TEXT.lines();
    while let Some(line) = lines.next() {
        let Some(name) = line.strip_prefix("```hex ") else {
            continue;
        };
        let digits: String = lines.by_ref().take_while(|l| *l != "```").collect();
        let digits: Vec<u8> = digits.bytes().filter(u8::is_ascii_hexdigit).collect();
        let bytes = digits
            .chunks(2)
            .map(|pair| {
                let pair = std::str::from_utf8(pair).expect("digits are ASCII");
                u8::from_str_radix(pair, 16).expect("two digits")
            })
            .collect();
        found.push((name.to_owned(), bytes));
    }
    found
}

/// The body can be read, and is written as it stands there.
fn check_body(name: &str, kind: u8, body: Bytes) {
    match kind {
        kind::IDENTITY => {
            let identity = Identity::decode(body.clone()).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!(identity.encode(), body, "{name}");
        }
        kind if kind & kind::SEALED != 0 => {
            let sealed = Sealed::decode(body.clone()).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert!(
                sealed.place(kind::plain(kind)).is_some(),
                "{name}: {sealed:?}"
            );
            let mut again = Vec::new();
            sealed.encode(&mut again);
            assert_eq!(again, body, "{name}");
        }
        kind => {
            let body = Body::decode(kind, body);
            assert!(
                !matches!(body, Err(_) | Ok(Body::Unknown { .. })),
                "{name}: {body:?}"
            );
        }
    }
}

#[test]
fn the_text_has_a_signed_statement() {
    let signed = examples().into_iter().any(|(_, bytes)| {
        let frame = Frame::decode(Bytes::from(bytes).slice(4..));
        matches!(&frame, Ok(Frame::Lsas(lsas)) if lsas.iter().any(|lsa| {
            let body = SignedBody::split(&lsa.body);
            body.is_some_and(|body| body.allows(lsa) && body.join() == lsa.body)
        }))
    });
    assert!(signed);
}

#[test]
fn every_example_is_what_it_says() {
    let examples = examples();
    assert!(examples.len() >= 8, "the text has lost its examples");
    for (name, bytes) in examples {
        let mut input = BytesMut::from(&bytes[..]);
        let taken = Frame::split(&mut input, MAX_FRAME_FLOOR)
            .unwrap_or_else(|e| panic!("{name}: {e}"))
            .unwrap_or_else(|| panic!("{name}: shorter than it says: {} bytes", bytes.len()));
        assert!(input.is_empty(), "{name}: {} bytes too many", input.len());
        let frame = Frame::decode(taken).unwrap_or_else(|e| panic!("{name}: {e}"));
        let shown = format!("{frame:?}");
        assert!(shown.starts_with(&name), "{name} is {shown}");
        if let Frame::Packet(packet) = &frame {
            check_body(&name, packet.kind, packet.body.clone());
        }
        let mut again = Vec::new();
        frame.encode(&mut again);
        assert_eq!(again, bytes, "{name} encodes to {again:02x?}");
    }
}
