//! What another node sends over a link, and what a node wrote to its own disk in the same encoding.

use bytes::{Bytes, BytesMut};
use receptor_proto::bundle::{BUNDLE_MAX, Bundle, BundleWriter, PART_MAX};
use receptor_proto::frame::{Frame, MAX_FRAME_FLOOR};
use receptor_proto::lsa::{CapabilitiesBody, LinksBody, LsaKind};
use receptor_proto::packet::{Body, Content};
use receptor_proto::record::{Label, Record, body};

use crate::memory::bounded;

/// Bytes of memory for each byte of a frame: a summary of 12 bytes becomes one of a hundred, and a
/// list doubles its room as it grows.
const FRAME_FACTOR: usize = 32;
/// The same for statements: an empty text of one byte is 24 bytes in its list, which doubles.
const STATEMENT_FACTOR: usize = 64;

/// A stream of frames: each is one again when it is written out, in as many bytes as it says; none
/// takes more memory than its bytes allow.
///
/// # Panics
///
/// When that does not hold, as all targets.
pub fn link_frames(stream: &[u8]) {
    let mut input = BytesMut::from(stream);
    while let Ok(Some(taken)) = Frame::split(&mut input, MAX_FRAME_FLOOR) {
        assert!(taken.len() + 4 <= MAX_FRAME_FLOOR);
        let size = taken.len();
        let Ok(frame) = bounded(size, FRAME_FACTOR, || Frame::decode(taken)) else {
            // A daemon closes the link.
            return;
        };
        let mut written = Vec::new();
        frame.encode(&mut written);
        assert_eq!(written.len(), frame.encoded_len(), "{frame:?}");
        let mut again = BytesMut::from(&written[..]);
        let again = Frame::split(&mut again, written.len()).expect("it is as long as it says");
        let again = Frame::decode(again.expect("it is whole")).expect("what was written reads in");
        assert_eq!(again, frame);
        if let Frame::Packet(packet) = &frame {
            body_of_kind(packet.kind, &packet.body);
        }
        if let Frame::Lsas(lsas) = &frame {
            for lsa in lsas {
                assert_eq!(lsa.summary().key, lsa.key);
                statement(lsa.key.kind, &lsa.body);
            }
        }
    }
}

/// The body of a packet, behind its kind byte.
pub fn packet_body(input: &[u8]) {
    if let Some((&kind, rest)) = input.split_first() {
        body_of_kind(kind, &Bytes::copy_from_slice(rest));
    }
}

fn body_of_kind(kind: u8, bytes: &Bytes) {
    let decode = |bytes: Bytes| Body::decode(kind, bytes);
    let Ok(body) = bounded(bytes.len(), FRAME_FACTOR, || decode(bytes.clone())) else {
        return;
    };
    if let Body::Unknown { .. } = body {
        return;
    }
    let (written_kind, written) = body.encode();
    assert_eq!(written_kind, kind);
    assert_eq!(decode(written), Ok(body));
}

/// What an LSA states, behind its kind byte.
pub fn link_statement(input: &[u8]) {
    if let Some((&kind, rest)) = input.split_first() {
        statement(LsaKind(kind), &Bytes::copy_from_slice(rest));
    }
}

fn statement(kind: LsaKind, bytes: &Bytes) {
    if kind == LsaKind::LINKS {
        let links = bounded(bytes.len(), STATEMENT_FACTOR, || LinksBody::decode(bytes));
        if let Ok(links) = links {
            assert_eq!(LinksBody::decode(&links.encode()), Ok(links));
        }
    } else if kind == LsaKind::CAPABILITIES {
        let decode = || CapabilitiesBody::decode(bytes);
        if let Ok(capabilities) = bounded(bytes.len(), STATEMENT_FACTOR, decode) {
            let again = CapabilitiesBody::decode(&capabilities.encode());
            assert_eq!(again, Ok(capabilities));
        }
    }
}

/// A bundle gives as many payloads as it says, of the sizes it says, and the same ones when it is
/// put together again.
pub fn bundle(input: &[u8]) {
    let input = Bytes::copy_from_slice(input);
    let Ok(bundle) = bounded(input.len(), 1, || Bundle::decode(input.clone())) else {
        return;
    };
    let fits = input.len() <= BUNDLE_MAX;
    let content = bundle.content();
    assert_ne!(content, Content::Bundle);
    let mut writer = BundleWriter::new(content);
    let mut rest = bundle.clone();
    for left in (0..bundle.left()).rev() {
        let size = rest.next_size();
        let payload = rest.next().expect("it was counted");
        assert_eq!((Some(payload.len()), rest.left()), (size, left));
        assert!(payload.len() <= PART_MAX);
        assert!(writer.push(&payload) || !fits);
    }
    assert_eq!((rest.next_size(), rest.next()), (None, None));
    if fits {
        let again = Bundle::decode(writer.finish()).expect("what was written reads in");
        assert!(again.eq(bundle));
    }
}

/// A record is one again when it is written out, and what a store reads of its front alone is the
/// same.
pub fn disk_record(input: &[u8]) {
    let input = Bytes::copy_from_slice(input);
    let label = Label::decode(input.clone());
    let payload = body(input.clone());
    let decoded = bounded(input.len(), FRAME_FACTOR, || {
        Record::decode(input.clone(), 0)
    });
    let Ok(Some(record)) = decoded else {
        return;
    };
    let label = label.expect("the front of what can be read can be read");
    let mut written = Vec::new();
    record.encode(0, &mut written);
    let written = Bytes::from(written);
    assert_eq!(Label::decode(written.clone()), Ok(label.clone()));
    assert_eq!(Record::decode(written, 0), Ok(Some(record.clone())));
    match (record, label) {
        (
            Record::Outgoing { entry, message, .. }
            | Record::Incoming { entry, message, .. }
            | Record::Transit { entry, message, .. },
            Label::Message {
                entry: named, size, ..
            },
        ) => {
            assert_eq!((entry, message.size), (named, size));
            assert_eq!(payload, Ok(message.body));
        }
        (Record::Started { entry }, Label::Started(named)) => assert_eq!(entry, named),
        (
            Record::Received { epoch, floor, .. },
            Label::Received {
                epoch: named, over, ..
            },
        ) => {
            assert_eq!((epoch, floor == u64::MAX), (named, over));
        }
        (record, label) => panic!("{record:?} has the label {label:?}"),
    }
}
