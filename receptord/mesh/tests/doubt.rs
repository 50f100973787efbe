//! What a node says of a message when it cannot know what became of it.

#![expect(clippy::unwrap_used, reason = "tests, also in their helpers")]

use std::time::Duration;

use bytes::Bytes;
use receptor_mesh::{
    Config, EntryId, Event, Instant, Mesh, Output, Payload, PersistToken, Recipient, Record,
    Submission,
};
use receptor_proto::packet::{Content, Eof, Message, MessageKind};
use receptor_proto::{Directive, ErrorBody, ErrorCode, MessageId, NodeId};

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

fn submission(recipient: &str, respond: bool) -> Submission {
    Submission {
        id: MessageId::from_u128(1),
        recipient: Recipient::Node(node(recipient)),
        directive: Directive::new("a:b").unwrap(),
        content: Content::Bytes,
        payload: Payload::Inline(Bytes::new()),
        volatile: false,
        respond,
        expiry: Duration::from_millis(LIFETIME_MS),
        repeatable: false,
    }
}

#[test]
fn what_was_never_sent_expires_in_time() {
    let mut mesh = mesh([]);
    mesh.submit(at(0), submission("away", true)).unwrap();
    assert_eq!(given_up(&mut mesh), (at(LIFETIME_MS), ErrorCode::Expired));
}

#[test]
fn what_an_earlier_run_may_have_sent_is_not_called_expired() {
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
    let (when, why) = given_up(&mut mesh([record]));
    assert!(when >= at(LIFETIME_MS), "{when:?}");
    assert_eq!(why, ErrorCode::Lost);
}

#[test]
fn a_one_way_message_that_is_not_written_is_refused() {
    let mut mesh = mesh([]);
    mesh.submit(at(0), submission("away", false)).unwrap();
    let mut refused = Vec::new();
    while let Some(output) = mesh.poll_output() {
        if let Output::Persist { token, .. } = output {
            let full = ErrorBody::new(ErrorCode::Busy, "full");
            mesh.handle_persist_failed(at(0), token, full);
        } else if let Output::NotAccepted { reason, .. } = output {
            refused.push(reason.code);
        }
    }
    assert_eq!(refused, [ErrorCode::Busy]);
    assert!(!mesh.is_pending(MessageId::from_u128(1)));
}

/// What the core wants written, and how often a client was told that it is.
#[derive(Default)]
struct Wanted {
    writes: Vec<(PersistToken, Vec<Record>)>,
    accepted: usize,
}

impl Wanted {
    /// Takes what the core gives; the store does everything but hold the client's own message.
    fn take(&mut self, mesh: &mut Mesh, now: Instant) {
        while let Some(output) = mesh.poll_output() {
            if let Output::Accepted { .. } = output {
                self.accepted += 1;
            }
            if let Output::Persist { token, records, .. } = output {
                let is_own = |record: &Record| matches!(record, Record::Outgoing { .. });
                if records.iter().any(is_own) {
                    self.writes.push((token, records));
                } else {
                    mesh.handle_persisted(now, token);
                }
            }
        }
    }
}

/// A node that sends to itself a message which arrives before the write of it fails.
fn arrived_and_not_written(respond: bool) -> (Mesh, Wanted) {
    let mut mesh = mesh([]);
    let mut wanted = Wanted::default();
    mesh.submit(at(0), submission("here", respond)).unwrap();
    wanted.take(&mut mesh, at(0));
    let (token, records) = wanted.writes.remove(0);
    assert!(matches!(&records[..], [Record::Outgoing { .. }]));
    assert_eq!(wanted.accepted, 0);
    let error = ErrorBody::new(ErrorCode::Busy, "the disk is full");
    mesh.handle_persist_failed(at(1), token, error);
    wanted.take(&mut mesh, at(1));
    (mesh, wanted)
}

#[test]
fn what_arrived_and_could_not_be_written_is_written_as_arrived() {
    let (mut mesh, mut wanted) = arrived_and_not_written(true);
    let mut now = at(1);
    for _ in 0..100 {
        if !wanted.writes.is_empty() {
            break;
        }
        now = mesh.poll_timeout().unwrap().max(now);
        mesh.handle_timeout(now);
        wanted.take(&mut mesh, now);
    }
    let (token, records) = wanted.writes.remove(0);
    let entry = records.iter().find_map(|record| match record {
        Record::Outgoing { entry, .. } => Some(*entry),
        Record::Incoming { .. }
        | Record::Transit { .. }
        | Record::Started { .. }
        | Record::Received { .. } => None,
    });
    let note =
        |record: &Record| matches!(record, Record::Started { entry: of } if Some(*of) == entry);
    assert!(records.iter().any(note), "{records:?}");
    assert_eq!(wanted.accepted, 0);
    mesh.handle_persisted(now, token);
    wanted.take(&mut mesh, now);
    assert_eq!(wanted.accepted, 1);
}

#[test]
fn what_arrived_and_is_not_answered_need_not_be_written() {
    let (_, wanted) = arrived_and_not_written(false);
    assert!(wanted.writes.is_empty());
    assert_eq!(wanted.accepted, 1);
}

/// A response that was kept over a restart.
fn response(serial: u64, eof: Option<Eof>) -> Record {
    Record::Outgoing {
        entry: EntryId(serial),
        recipient: node("there"),
        message: Message {
            epoch: 4,
            seq: serial,
            floor: 0,
            work: MessageId::from_u128(1),
            kind: MessageKind::Response {
                serial,
                eof,
                in_doubt: false,
            },
            volatile: false,
            remaining_ms: LIFETIME_MS,
            content: Content::None,
            name: None,
            size: 0,
            body: Bytes::new(),
        },
    }
}

/// What is written in answer to a request that is damaged: the serial and the error's code.
fn answers(mesh: &mut Mesh) -> Vec<(u64, ErrorCode)> {
    mesh.restore_damaged(at(0), &node("there"), MessageId::from_u128(1));
    mesh.handle_timeout(at(1));
    let mut said = Vec::new();
    while let Some(output) = mesh.poll_output() {
        let Output::Persist { records, .. } = output else {
            continue;
        };
        for record in records {
            if let Record::Outgoing { message, .. } = record
                && let MessageKind::Response { serial, eof, .. } = message.kind
            {
                said.push((serial, eof.unwrap().error.unwrap().code));
            }
        }
    }
    said
}

#[test]
fn a_damaged_request_is_answered_behind_what_was_said_of_it() {
    assert_eq!(answers(&mut mesh([])), [(1, ErrorCode::Damaged)]);
    let some = [response(2, None), response(3, None)];
    assert_eq!(answers(&mut mesh(some)), [(4, ErrorCode::Damaged)]);
}

#[test]
fn a_damaged_request_whose_work_has_ended_is_not_answered_again() {
    let end = Eof {
        code: 0,
        error: None,
    };
    let all = [response(1, None), response(2, Some(end))];
    assert_eq!(answers(&mut mesh(all)), []);
}
