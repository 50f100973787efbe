//! Two nodes and one link: what must hold when something rare happens at a bad moment.

#![expect(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "tests, also in their helpers"
)]

use std::time::Duration;

use bytes::Bytes;
use receptor_mesh::{
    Config, Event, Instant, LinkId, LinkInfo, Mesh, Output, Payload, Recipient, Submission,
};
use receptor_proto::frame::Frame;
use receptor_proto::packet::{Body, CancelReason, Content, Eof, Message, MessageKind, Packet};
use receptor_proto::{Directive, ErrorBody, ErrorCode, MessageId, NodeId};

const LINK: LinkId = LinkId(1);
const DAY_MS: u64 = 86_400_000;
/// Custodians of messages that are not taken yet, and some more than a node remembers.
const MANY_KEPT: u64 = 5000;
/// Starts of one node with a message under way, and some more than a node remembers.
const MANY_STARTS: u64 = 75;

fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn at(ms: u64) -> Instant {
    Instant::from_micros(ms * 1000)
}

fn id(n: u64) -> MessageId {
    MessageId::from_u128(u128::from(n))
}

fn submission(n: u64, recipient: &str) -> Submission {
    Submission {
        id: id(n),
        recipient: Recipient::Node(node(recipient)),
        directive: Directive::new("a:b").unwrap(),
        content: Content::Bytes,
        payload: Payload::Inline(Bytes::from_static(b"x")),
        volatile: false,
        respond: true,
        expiry: Duration::from_secs(24 * 3600),
        repeatable: false,
    }
}

/// A one-way request without a payload, as it comes from another node.
fn one_way(epoch: u64, seq: u64, work: u64, remaining_ms: u64) -> Message {
    Message {
        epoch,
        seq,
        floor: 0,
        work: id(work),
        kind: MessageKind::Request {
            directive: Directive::new("a:b").unwrap(),
            respond: false,
        },
        volatile: false,
        remaining_ms,
        content: Content::None,
        name: None,
        size: 0,
        body: Bytes::new(),
    }
}

/// How long a receipt may wait for company.
const RECEIPT_MS: u64 = 2;

/// The nodes «here» and «there»; whatever they write is on the disk at once.
struct Pair {
    here: Mesh,
    there: Mesh,
    now: u64,
    /// What their drivers were told, except what goes over the link.
    told_here: Vec<Output>,
    told_there: Vec<Output>,
}

impl Pair {
    /// Linked, and settled.
    fn new(works_there: usize) -> Self {
        let mut there = Config::new(node("there"), 6, 2);
        there.limits.works = works_there;
        let mut pair = Self {
            here: Mesh::new(Config::new(node("here"), 5, 1), at(0), []),
            there: Mesh::new(there, at(0), []),
            now: 0,
            told_here: Vec::new(),
            told_there: Vec::new(),
        };
        for (mesh, dialled) in [(&mut pair.here, true), (&mut pair.there, false)] {
            let info = LinkInfo {
                cost: 1,
                proven: Vec::new(),
                address: "wire".to_owned(),
                dialled,
            };
            mesh.handle_link_up(at(0), LINK, info);
            mesh.handle_room(at(0), LINK, 1 << 20);
        }
        pair.run_until(5_000);
        pair
    }

    /// Gives each what the other sends until both are quiet.
    fn step(&mut self) {
        let now = at(self.now);
        loop {
            let from_here = poll(&mut self.here, now, &mut self.told_here);
            let from_there = poll(&mut self.there, now, &mut self.told_there);
            if from_here.is_empty() && from_there.is_empty() {
                return;
            }
            for frame in from_here {
                self.there.handle_frame(now, LINK, frame);
            }
            for frame in from_there {
                self.here.handle_frame(now, LINK, frame);
            }
        }
    }

    fn run_until(&mut self, end: u64) {
        self.step();
        let due = |mesh: &Mesh| {
            mesh.poll_timeout()
                .map(|due| due.as_micros().div_ceil(1000))
        };
        while let Some(due) = due(&self.here).into_iter().chain(due(&self.there)).min() {
            let due = due.max(self.now + 1);
            if due > end {
                break;
            }
            self.now = due;
            self.here.handle_timeout(at(due));
            self.there.handle_timeout(at(due));
            self.step();
        }
        self.now = end;
        self.step();
    }

    /// What «there» sends at once when this packet comes to it, and whether it has work with it.
    fn hear(&mut self, source: &str, body: &Body) -> (Vec<Body>, bool) {
        let now = at(self.now);
        let packet = Packet::new(node(source), node("there"), 9, body);
        self.there.handle_frame(now, LINK, Frame::Packet(packet));
        let mut told = Vec::new();
        let said = bodies(poll(&mut self.there, now, &mut told));
        let dispatches = |output: &Output| matches!(output, Output::Dispatch { .. });
        (said, told.iter().any(dispatches))
    }

    /// What «there» sends when nothing waits for company any more.
    fn linger(&mut self) -> Vec<Body> {
        self.now += RECEIPT_MS;
        let now = at(self.now);
        self.there.handle_timeout(now);
        bodies(poll(&mut self.there, now, &mut self.told_there))
    }

    /// Everything that «there» says to this packet, and whether it has work with it.
    fn answer(&mut self, source: &str, body: &Body) -> (Vec<Body>, bool) {
        let (mut said, taken) = self.hear(source, body);
        said.append(&mut self.linger());
        (said, taken)
    }

    /// The only work there ends.
    fn end_work(&mut self, work: u64) {
        let (code, error) = (0, None);
        let payload = Payload::Inline(Bytes::new());
        let eof = Eof { code, error };
        self.there
            .work_done(at(self.now), id(work), eof, Content::None, payload)
            .unwrap();
    }
}

/// What is in the packets among these frames.
fn bodies(frames: Vec<Frame>) -> Vec<Body> {
    let body = |frame| {
        let Frame::Packet(packet) = frame else {
            return None;
        };
        Body::decode(packet.kind, packet.body).ok()
    };
    frames.into_iter().filter_map(body).collect()
}

/// The frames that a node sends.
fn poll(mesh: &mut Mesh, now: Instant, told: &mut Vec<Output>) -> Vec<Frame> {
    let mut frames = Vec::new();
    while let Some(output) = mesh.poll_output() {
        if let Output::Persist { token, .. } = output {
            mesh.handle_persisted(now, token);
        } else if let Output::Transmit { frame, .. } = output {
            mesh.handle_room(now, LINK, frame.encoded_len());
            frames.push(frame);
        } else {
            told.push(output);
        }
    }
    frames
}

/// A request that was cancelled before it was sent, and whose client is slow; much later another
/// node gets its first message.
#[test]
fn what_a_client_takes_late_removes_no_message_to_another_node() {
    let mut pair = Pair::new(10);
    // Something comes from there, so that what is old is looked for at all.
    let now = at(pair.now);
    pair.there.submit(now, submission(9, "here")).unwrap();
    pair.here.submit(now, submission(1, "mistyped")).unwrap();
    pair.run_until(7_000);
    let now = at(pair.now);
    pair.here.cancel(now, id(1), CancelReason::User).unwrap();
    pair.run_until(1_300_000);
    let now = at(pair.now);
    pair.here.submit(now, submission(2, "late")).unwrap();
    pair.run_until(1_301_000);
    let ended = |output: &Output| matches!(output, Output::Deliver { work, serial: 1, eof: Some(_), .. } if *work == id(1));
    assert!(pair.told_here.iter().any(ended));
    pair.here.consumed(at(pair.now), id(1), 1);
    pair.run_until(1_302_000);
    assert_eq!(pair.here.outstanding(&node("late")), 1);
}

/// Messages that were kept on their way and for which their recipient had no room until they
/// expired; then it has room for another.
#[test]
fn custodians_of_what_was_never_taken_keep_no_other_from_being_told() {
    let mut pair = Pair::new(1);
    let kept = |message| Body::Kept {
        custodian: node("here"),
        message,
    };
    let (_, taken) = pair.answer("origin", &kept(one_way(9, 1, 1, DAY_MS)));
    assert!(taken);
    for n in 2..MANY_KEPT {
        let (_, taken) = pair.answer("origin", &kept(one_way(9, n, n, 1000)));
        assert!(!taken);
    }
    pair.run_until(20_000);
    pair.end_work(1);
    pair.run_until(21_000);
    let last = kept(one_way(9, MANY_KEPT, MANY_KEPT, DAY_MS));
    let (said, taken) = pair.answer("origin", &last);
    assert!(taken);
    let tells = |body: &Body| matches!(body, Body::Custody(_));
    assert!(
        said.iter().any(tells),
        "its custodian may forget it: {said:?}"
    );
}

/// Messages of more starts of a node than are remembered, all refused at first.
#[test]
fn messages_of_many_starts_all_arrive() {
    let mut pair = Pair::new(1);
    let message = |epoch| Body::Message(one_way(epoch, 1, epoch, DAY_MS));
    let (_, taken) = pair.answer("here", &message(10));
    assert!(taken);
    for epoch in 11..11 + MANY_STARTS {
        let (said, taken) = pair.answer("here", &message(epoch));
        assert!(!taken);
        let refused =
            |body: &Body| matches!(body, Body::Receipt(receipt) if receipt.epoch == epoch);
        assert!(said.iter().any(refused), "it is told to wait: {said:?}");
    }
    pair.end_work(10);
    pair.run_until(8_000);
    let (_, taken) = pair.answer("here", &message(11));
    assert!(taken, "the oldest has its place");
}

/// Requests of a start that is before one whose messages «there» knew to be over: its data were
/// lost, and its clock is behind.
#[test]
fn what_a_node_without_its_memory_sends_is_refused_and_not_called_received() {
    let mut pair = Pair::new(10);
    let mut later = one_way(1000, 2, 1, DAY_MS);
    later.floor = 2;
    let (_, taken) = pair.answer("here", &Body::Message(later));
    assert!(taken);
    let now = at(pair.now);
    pair.here.submit(now, submission(2, "there")).unwrap();
    pair.run_until(6_000);
    let behind = |output: &Output| matches!(output, Output::Event(Event::Behind { node: who, start: 1000 }) if *who == node("there"));
    let told = pair.told_here.iter().filter(|output| behind(output));
    assert_eq!(told.count(), 1);
    let letter = |output: &Output| match output {
        Output::DeadLetter { entry, reason, .. } => Some((*entry, reason.code.clone())),
        _ => None,
    };
    let letter = pair.told_here.iter().find_map(letter);
    let (entry, code) = letter.expect("its sender is told");
    assert_eq!(code, ErrorCode::Refused);
    pair.here.handle_dead_letter(at(pair.now), entry, Ok(()));
    pair.run_until(7_000);
    let ended = |output: &Output| matches!(output, Output::Deliver { work, eof: Some(eof), .. } if *work == id(2) && eof.error.as_ref().is_some_and(|error| error.code == ErrorCode::Refused));
    assert!(pair.told_here.iter().any(ended));
    // The next one is told as well, and the operator once.
    pair.here
        .submit(at(pair.now), submission(3, "there"))
        .unwrap();
    pair.run_until(8_000);
    let told = pair.told_here.iter().filter(|output| behind(output));
    assert_eq!(told.count(), 1);
    assert_eq!(pair.here.outstanding(&node("there")), 0);
}

/// The same node as the recipient of a request: its responses are known by their serials.
#[test]
fn responses_of_a_node_without_its_memory_are_taken() {
    let mut pair = Pair::new(10);
    let mut later = one_way(1000, 2, 1, DAY_MS);
    later.floor = 2;
    pair.answer("here", &Body::Message(later));
    let now = at(pair.now);
    pair.there.submit(now, submission(2, "here")).unwrap();
    pair.run_until(6_000);
    let asked = |output: &Output| matches!(output, Output::Dispatch { work, .. } if *work == id(2));
    assert!(pair.told_here.iter().any(asked));
    let now = at(pair.now);
    pair.here.work_started(now, id(2), false);
    for _ in 0..3 {
        let payload = Payload::Inline(Bytes::from_static(b"x"));
        pair.here
            .work_data(now, id(2), Content::Bytes, None, payload)
            .unwrap();
    }
    let (code, error) = (0, None);
    let payload = Payload::Inline(Bytes::new());
    let eof = Eof { code, error };
    pair.here
        .work_done(now, id(2), eof, Content::None, payload)
        .unwrap();
    pair.run_until(7_000);
    let serial = |output: &Output| match output {
        Output::Deliver { work, serial, .. } if *work == id(2) => Some(*serial),
        _ => None,
    };
    let serials: Vec<u64> = pair.told_there.iter().filter_map(serial).collect();
    assert_eq!(serials, [1, 2, 3, 4]);
    pair.run_until(8_000);
    assert_eq!(pair.here.outstanding(&node("there")), 0);
}

/// A work that is cancelled while it waits for its start; its node may crash at any moment.
#[test]
fn the_end_of_a_work_that_was_not_started_is_on_the_disk_before_it_is_told() {
    let mut pair = Pair::new(10);
    pair.here
        .submit(at(pair.now), submission(1, "there"))
        .unwrap();
    pair.run_until(6_000);
    let waits = |output: &Output| matches!(output, Output::Dispatch { work, .. } if *work == id(1));
    assert!(pair.told_there.iter().any(waits));
    let now = at(pair.now);
    let error = Some(ErrorBody::new(ErrorCode::Cancelled, "cancelled"));
    let eof = Eof { code: 1, error };
    let payload = Payload::Inline(Bytes::new());
    pair.there
        .work_done(now, id(1), eof, Content::None, payload)
        .unwrap();
    let mut written = Vec::new();
    while let Some(output) = pair.there.poll_output() {
        if let Output::Persist { token, .. } = output {
            written.push(token);
        } else if let Output::Transmit { frame, .. } = output
            && let Frame::Packet(packet) = frame
        {
            let body = Body::decode(packet.kind, packet.body);
            let tells = matches!(body, Ok(Body::Message(_)));
            assert!(!tells, "a crash now would run it");
        }
    }
    for token in written {
        pair.there.handle_persisted(now, token);
    }
    pair.run_until(7_000);
    let ended = |output: &Output| matches!(output, Output::Deliver { work, eof: Some(_), .. } if *work == id(1));
    assert!(pair.told_here.iter().any(ended));
}

/// The numbers that these receipts name.
fn received(said: &[Body]) -> Vec<(u64, u64)> {
    let receipts = said.iter().filter_map(|body| {
        let Body::Receipt(receipt) = body else {
            return None;
        };
        Some(receipt.received.clone())
    });
    receipts.flatten().collect()
}

#[test]
fn the_receipt_of_a_small_message_waits_for_company_and_not_for_long() {
    let mut pair = Pair::new(100);
    let message = |seq| Body::Message(one_way(9, seq, seq, DAY_MS));
    for seq in 1..4 {
        let (said, taken) = pair.hear("here", &message(seq));
        assert!(taken);
        assert_eq!(received(&said), []);
    }
    let (said, _) = pair.hear("here", &message(4));
    assert_eq!(received(&said), [(1, 4)], "four are company enough");
    let (said, _) = pair.hear("here", &message(5));
    assert_eq!(received(&said), []);
    let due = pair.there.poll_timeout().unwrap();
    assert!(due <= at(pair.now + RECEIPT_MS), "it is seen to: {due:?}");
    assert_eq!(received(&pair.linger()), [(1, 5)]);
    let mut large = one_way(9, 6, 6, DAY_MS);
    large.size = 5000;
    large.body = vec![0; 5000].into();
    let (said, _) = pair.hear("here", &Body::Message(large));
    assert_eq!(received(&said), [(1, 6)], "its origin may wait for room");
}

#[test]
fn the_receipt_of_a_request_goes_along_with_its_answer() {
    let mut pair = Pair::new(10);
    let mut request = one_way(9, 1, 1, DAY_MS);
    request.kind = MessageKind::Request {
        directive: Directive::new("a:b").unwrap(),
        respond: true,
    };
    let (said, taken) = pair.hear("here", &Body::Message(request));
    assert!(taken);
    assert_eq!(received(&said), []);
    pair.end_work(1);
    let said = bodies(poll(&mut pair.there, at(pair.now), &mut pair.told_there));
    assert!(said.iter().any(|body| matches!(body, Body::Message(_))));
    assert_eq!(received(&said), [(1, 1)]);
    assert_eq!(received(&pair.linger()), [], "once is enough");
}
