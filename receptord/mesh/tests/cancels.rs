//! A cancel that may have come before its request is remembered only as long as that request can
//! still come.

#![expect(clippy::unwrap_used, reason = "tests, also in their helpers")]

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use receptor_mesh::{
    Config, EntryId, Instant, LinkId, LinkInfo, Mesh, Output, Payload, PersistToken, Recipient,
    Record, Submission,
};
use receptor_proto::frame::Frame;
use receptor_proto::packet::{
    Body, CancelReason, Content, Eof, Message, MessageKind, Packet, Receipt,
};
use receptor_proto::{Directive, ErrorBody, ErrorCode, MessageId, NodeId};

const LINK: LinkId = LinkId(1);
const DAY: Duration = Duration::from_secs(24 * 3600);
const DAY_MS: u64 = 24 * 3_600_000;
/// When a cancel that nothing more is to be remembered for is gone at the latest.
const SOON_MS: u64 = 1000;
const INSTANCE: u64 = 5;

fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn at(ms: u64) -> Instant {
    Instant::from_micros(ms * 1000)
}

fn id(n: u128) -> MessageId {
    MessageId::from_u128(n)
}

/// A node, the clock, what it keeps and the packets it wants to send.
struct Host {
    mesh: Mesh,
    now: u64,
    kept: BTreeMap<EntryId, Record>,
    /// How many were left when it wrote last.
    left: usize,
    /// Writes that it has not done, while its disk rests.
    resting: Option<Vec<PersistToken>>,
    frames: Vec<Frame>,
}

impl Host {
    fn new(name: &str, records: impl IntoIterator<Item = Record>) -> Self {
        Self::start(name, INSTANCE, 0, records)
    }

    fn start(
        name: &str,
        instance: u64,
        now: u64,
        records: impl IntoIterator<Item = Record>,
    ) -> Self {
        let mut host = Self {
            mesh: Mesh::new(Config::new(node(name), instance, 1), at(now), records),
            now,
            kept: BTreeMap::new(),
            left: 0,
            resting: None,
            frames: Vec::new(),
        };
        let info = LinkInfo {
            cost: 1,
            proven: Vec::new(),
            address: "wire".to_owned(),
            dialled: name == "here",
        };
        host.mesh.handle_link_up(at(now), LINK, info);
        host.mesh.handle_room(at(now), LINK, 1 << 20);
        host.drain();
        host
    }

    fn drain(&mut self) {
        while let Some(output) = self.mesh.poll_output() {
            if let Output::Transmit { frame, .. } = output {
                let size = frame.encoded_len();
                self.mesh.handle_room(at(self.now), LINK, size);
                self.frames.push(frame);
            } else if let Output::Persist { token, records, .. } = output {
                if let Some(resting) = &mut self.resting {
                    resting.push(token);
                    continue;
                }
                for record in records {
                    if let Record::Incoming { entry, .. } | Record::Outgoing { entry, .. } = &record
                    {
                        self.kept.insert(*entry, record);
                    }
                }
                self.left = self.kept.len();
                self.mesh.handle_persisted(at(self.now), token);
            } else if let Output::Remove { entry } = output {
                self.kept.remove(&entry);
            } else if let Output::Deliver { work, serial, .. } = output {
                self.mesh.consumed(at(self.now), work, serial);
            }
        }
    }

    /// A disk that rested cannot write what it was asked for.
    fn fail(&mut self) {
        for token in self.resting.take().unwrap() {
            let error = ErrorBody::new(ErrorCode::Internal, "the disk is broken");
            self.mesh.handle_persist_failed(at(self.now), token, error);
        }
        self.drain();
    }

    fn hear(&mut self, frame: Frame) {
        self.mesh.handle_frame(at(self.now), LINK, frame);
        self.drain();
    }

    fn run_until(&mut self, end: u64) {
        while let Some(next) = self.mesh.poll_timeout().filter(|next| *next <= at(end)) {
            self.mesh.handle_timeout(next);
            self.drain();
        }
        self.now = end;
    }
}

fn message(seq: u64, floor: u64, work: u128, kind: MessageKind, remaining_ms: u64) -> Message {
    Message {
        epoch: INSTANCE,
        seq,
        floor,
        work: id(work),
        kind,
        volatile: remaining_ms == 0,
        remaining_ms,
        content: Content::None,
        name: None,
        size: 0,
        body: Bytes::new(),
    }
}

fn cancel(seq: u64, floor: u64, work: u128, remaining_ms: u64) -> Message {
    let reason = CancelReason::User;
    let kind = MessageKind::Cancel { reason };
    message(seq, floor, work, kind, remaining_ms)
}

/// A cancel that says that its request has come.
fn closing(seq: u64, work: u128) -> Message {
    Message {
        volatile: false,
        ..cancel(seq, 0, work, 0)
    }
}

fn request(seq: u64, work: u128) -> Message {
    let kind = MessageKind::Request {
        directive: Directive::new("a:b").unwrap(),
        respond: false,
    };
    message(seq, 0, work, kind, DAY_MS)
}

fn packet(message: &Message) -> Frame {
    Frame::Packet(Packet::with_message(
        node("here"),
        node("there"),
        30,
        message,
    ))
}

fn submission(respond: bool) -> Submission {
    Submission {
        id: id(1),
        recipient: Recipient::Node(node("there")),
        directive: Directive::new("a:b").unwrap(),
        content: Content::Bytes,
        payload: Payload::Inline(Bytes::new()),
        volatile: false,
        respond,
        expiry: DAY,
        repeatable: false,
    }
}

/// Two neighbors that know of each other.
fn pair() -> (Host, Host) {
    let mut pair = (Host::new("here", []), Host::new("there", []));
    for ms in 1..200 {
        exchange(&mut pair, ms);
    }
    pair
}

fn exchange((here, there): &mut (Host, Host), ms: u64) {
    here.run_until(ms);
    there.run_until(ms);
    for frame in std::mem::take(&mut here.frames) {
        there.hear(frame);
    }
    for frame in std::mem::take(&mut there.frames) {
        here.hear(frame);
    }
}

/// What is in the packets among frames.
fn bodies(frames: &[Frame]) -> impl Iterator<Item = Body> {
    frames.iter().filter_map(|frame| {
        let Frame::Packet(packet) = frame else {
            return None;
        };
        Body::decode(packet.kind, packet.body.clone()).ok()
    })
}

/// Cancels among frames, with what is left of their lifetimes.
fn cancels(frames: &[Frame]) -> Vec<u64> {
    let cancels = bodies(frames).filter_map(|body| {
        let Body::Message(message) = body else {
            return None;
        };
        let is_cancel = matches!(message.kind, MessageKind::Cancel { .. });
        is_cancel.then_some(message.remaining_ms)
    });
    cancels.collect()
}

/// Whether the origin is told that this message has come.
fn has_receipt(frames: &[Frame], seq: u64) -> bool {
    bodies(frames).any(|body| {
        let Body::Receipt(receipt) = body else {
            return false;
        };
        let mut runs = receipt.received.iter();
        runs.any(|(first, last)| (*first..=*last).contains(&seq))
    })
}

#[test]
fn a_cancel_is_forgotten_soon_after_the_last_that_was_missing_before_it() {
    let (_, mut there) = pair();
    let start = there.now;
    there.hear(packet(&cancel(2, 1, 7, DAY_MS)));
    there.run_until(start + SOON_MS);
    assert_eq!(there.kept.len(), 1, "its request may still come");
    there.hear(packet(&cancel(1, 1, 8, 0)));
    there.run_until(start + 2 * SOON_MS);
    assert_eq!(there.kept.len(), 0);
}

#[test]
fn a_restart_does_not_remember_a_cancel_that_has_lost_its_purpose() {
    let received = Record::Received {
        origin: node("here"),
        epoch: INSTANCE,
        floor: 1,
        ranges: vec![(1, 1)],
    };
    let stored = Record::Incoming {
        entry: EntryId(1),
        origin: node("here"),
        message: cancel(2, 1, 7, DAY_MS),
    };
    let mut there = Host::new("there", [received, stored.clone()]);
    there.kept.insert(EntryId(1), stored);
    there.run_until(SOON_MS);
    assert_eq!(there.kept.len(), 0);
}

#[test]
fn a_cancel_is_forgotten_when_its_origin_says_that_the_request_came() {
    let (_, mut there) = pair();
    let start = there.now;
    // Floor 0: there are messages of an earlier start, of which the request may be one.
    there.hear(packet(&cancel(1, 0, 7, DAY_MS)));
    there.hear(packet(&cancel(2, 0, 8, 0)));
    there.run_until(start + SOON_MS);
    assert_eq!(there.kept.len(), 1, "its request may still come");
    there.hear(packet(&cancel(3, 0, 7, 0)));
    there.run_until(start + 2 * SOON_MS);
    assert_eq!(there.kept.len(), 0);
}

/// Whoever says that has nothing more to say: the receipt must not come before a restart of the
/// recipient has forgotten the cancel as well.
#[test]
fn that_a_cancel_is_done_with_has_its_receipt_when_the_cancel_has_left_the_disk() {
    // The request may come, and have its answer, while the cancel is still being forgotten.
    for comes in [false, true] {
        let (_, mut there) = pair();
        let start = there.now;
        there.hear(packet(&cancel(1, 0, 7, DAY_MS)));
        assert_eq!(there.kept.len(), 1);
        if comes {
            there.hear(packet(&request(2, 7)));
        }
        there.frames.clear();
        there.hear(packet(&closing(3, 7)));
        // It comes again meanwhile.
        there.hear(packet(&closing(3, 7)));
        let mut told = None;
        for ms in start..start + SOON_MS {
            there.run_until(ms);
            if has_receipt(&there.frames, 3) {
                told = Some(there.left);
                break;
            }
        }
        assert_eq!(
            told,
            Some(0),
            "left on the disk by the write that its origin is told of"
        );
    }
}

/// It comes again, and says by then that its request has come.
#[test]
fn a_cancel_that_could_not_be_written_does_not_wait_for_itself() {
    // Another one may say so too.
    for other in [false, true] {
        let (_, mut there) = pair();
        let start = there.now;
        there.resting = Some(Vec::new());
        there.hear(packet(&cancel(1, 0, 7, DAY_MS)));
        there.hear(packet(&request(2, 7)));
        if other {
            there.hear(packet(&closing(3, 7)));
        }
        there.fail();
        there.frames.clear();
        let last = if other { 3 } else { 1 };
        there.hear(packet(&closing(1, 7)));
        there.run_until(start + SOON_MS);
        assert!(has_receipt(&there.frames, last));
        assert_eq!(there.kept.len(), 0);
    }
}

#[test]
fn who_cancels_before_the_receipt_of_the_request_says_when_it_has_come() {
    for late in [false, true] {
        let mut pair = pair();
        let submission = submission(true);
        let start = pair.0.now;
        pair.0.mesh.submit(at(start), submission).unwrap();
        pair.0.drain();
        let mut next = start + 1;
        if late {
            // A receipt may wait for company.
            for ms in next..start + 5 {
                exchange(&mut pair, ms);
            }
            next = start + 5;
        }
        (pair.0.mesh)
            .cancel(at(pair.0.now), id(1), CancelReason::User)
            .unwrap();
        pair.0.drain();
        let mut said = Vec::new();
        for ms in next..start + SOON_MS {
            said.extend(cancels(&pair.0.frames));
            exchange(&mut pair, ms);
        }
        if late {
            assert_eq!(said, [0], "known to have come when it was cancelled");
        } else {
            assert_eq!(said.len(), 2, "{said:?}");
            assert!(said[0] > 0 && said[1] == 0, "{said:?}");
        }
    }
}

/// A request and its cancel leave, and the recipient has the cancel.
fn only_its_cancel_arrives(here: &mut Host, respond: bool) {
    let now = at(here.now);
    here.mesh.submit(now, submission(respond)).unwrap();
    here.drain();
    here.mesh.cancel(now, id(1), CancelReason::User).unwrap();
    here.drain();
    here.frames.clear();
    let receipt = Body::Receipt(Receipt {
        epoch: INSTANCE,
        received: vec![(2, 2)],
        instance: INSTANCE,
        ..Receipt::default()
    });
    let receipt = Packet::new(node("there"), node("here"), 30, &receipt);
    here.hear(Frame::Packet(receipt));
}

/// The end of the work comes ahead of the receipt of its request, whose cancel the recipient has.
#[test]
fn an_end_that_comes_ahead_of_the_receipt_says_that_the_request_has_come() {
    let (mut here, _) = pair();
    only_its_cancel_arrives(&mut here, true);
    let end = MessageKind::Response {
        serial: 1,
        eof: Some(Eof {
            code: 1,
            error: None,
        }),
        in_doubt: false,
    };
    let end = message(1, 0, 1, end, DAY_MS);
    let end = Packet::with_message(node("there"), node("here"), 30, &end);
    here.hear(Frame::Packet(end));
    here.run_until(here.now + SOON_MS);
    assert_eq!(cancels(&here.frames).last(), Some(&0), "it has come");
}

/// The recipient has the cancel, and says nothing of the request, whose receipt was lost: the
/// origin must still say that it had come, also when it was restarted in between.
#[test]
fn a_restart_does_not_forget_that_a_cancel_may_be_remembered() {
    let (mut here, _) = pair();
    only_its_cancel_arrives(&mut here, false);
    let disk: Vec<Record> = here.kept.values().cloned().collect();
    assert_eq!(
        disk.len(),
        2,
        "the request, and the cancel that it may meet"
    );

    let mut pair = (
        Host::start("here", INSTANCE + 1, 0, disk.clone()),
        Host::new("there", []),
    );
    for record in disk {
        if let Record::Outgoing { entry, .. } = record {
            pair.0.kept.insert(entry, record);
        }
    }
    let mut said = Vec::new();
    for ms in 1..SOON_MS {
        said.extend(cancels(&pair.0.frames));
        exchange(&mut pair, ms);
    }
    assert_eq!(said.last(), Some(&0), "{said:?}: that the request has come");
    assert!(pair.0.kept.is_empty(), "{:?}", pair.0.kept);
    assert!(pair.1.kept.is_empty(), "{:?}", pair.1.kept);
}
