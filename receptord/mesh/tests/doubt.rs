//! What a node says of a message when it cannot know what became of it.

#![expect(clippy::unwrap_used, reason = "tests, also in their helpers")]

use std::time::Duration;

use bytes::Bytes;
use receptor_mesh::{
    Config, EntryId, Event, Instant, Mesh, Output, Payload, Recipient, Record, Submission,
};
use receptor_proto::packet::{Content, Message, MessageKind};
use receptor_proto::{Directive, ErrorCode, MessageId, NodeId};

const LIFETIME_MS: u64 = 1000;

fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn at(ms: u64) -> Instant {
    Instant::from_micros(ms * 1000)
}

fn mesh(records: impl IntoIterator<Item = Record>) -> Mesh {
    Mesh::new(Config::new(node("here"), 5, 1), at(0), records)
}

/// When the message is given up, and why.
fn given_up(mesh: &mut Mesh) -> (Instant, ErrorCode) {
    let mut now = at(0);
    for _ in 0..100 {
        while let Some(output) = mesh.poll_output() {
            if let Output::Event(Event::GivenUp { reason, .. }) = output {
                return (now, reason.code);
            }
            if let Output::Persist { token, .. } = output {
                mesh.handle_persisted(now, token);
            }
        }
        now = mesh.poll_timeout().unwrap().max(now);
        mesh.handle_timeout(now);
    }
    panic!("never given up");
}

#[test]
fn what_was_never_sent_expires_in_time() {
    let mut mesh = mesh([]);
    let submission = Submission {
        id: MessageId::from_u128(1),
        recipient: Recipient::Node(node("away")),
        directive: Directive::new("a:b").unwrap(),
        content: Content::Bytes,
        payload: Payload::Inline(Bytes::new()),
        volatile: false,
        respond: true,
        expiry: Duration::from_millis(LIFETIME_MS),
        repeatable: false,
    };
    mesh.submit(at(0), submission).unwrap();
    assert_eq!(given_up(&mut mesh), (at(LIFETIME_MS), ErrorCode::Expired));
}

#[test]
fn what_an_earlier_run_may_have_sent_is_not_called_expired_at_once() {
    let record = Record::Outgoing {
        entry: EntryId(1),
        recipient: node("away"),
        message: Message {
            epoch: 4,
            seq: 1,
            floor: 0,
            work: MessageId::from_u128(1),
            kind: MessageKind::Request {
                directive: Directive::new("a:b").unwrap(),
                respond: true,
            },
            volatile: false,
            remaining_ms: 0,
            content: Content::Bytes,
            name: None,
            size: 0,
            body: Bytes::new(),
        },
    };
    let (when, _) = given_up(&mut mesh([record]));
    assert!(when >= at(LIFETIME_MS), "{when:?}");
}
