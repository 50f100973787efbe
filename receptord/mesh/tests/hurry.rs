//! What nobody waits for need not be written at once: a durable request and its answer cost each
//! side one write that somebody waits for, and a crash before the others changes no promise.

#![expect(clippy::unwrap_used, reason = "tests, also in their helpers")]

use std::time::Duration;

use bytes::Bytes;
use receptor_mesh::{
    Config, EntryId, Instant, LinkId, LinkInfo, Mesh, Output, Payload, PersistToken, Recipient,
    Record, Submission, WorkRoom,
};
use receptor_proto::frame::Frame;
use receptor_proto::packet::{Content, Eof, MessageKind};
use receptor_proto::{Directive, ErrorBody, ErrorCode, MessageId, NodeId};

const ANSWER: &[u8] = b"done";
/// Longer than any timer that says something again.
const LONG: u64 = 120_000;

fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn at(ms: u64) -> Instant {
    Instant::from_micros(ms * 1000)
}

enum Change {
    Write(PersistToken, Vec<Record>),
    Remove(EntryId),
}

/// A store that writes what is urgent at once, with everything that was asked for before, and
/// nothing else ever.
#[derive(Default)]
struct Disk {
    log: Vec<Change>,
    durable: usize,
    urgent: usize,
}

impl Disk {
    /// What a restart finds.
    fn records(&self) -> Vec<Record> {
        let mut records: Vec<Record> = Vec::new();
        for change in &self.log[..self.durable] {
            match change {
                Change::Write(_, written) => records.extend(written.iter().cloned()),
                Change::Remove(gone) => records.retain(|record| match record {
                    Record::Outgoing { entry, .. }
                    | Record::Incoming { entry, .. }
                    | Record::Transit { entry, .. }
                    | Record::Started { entry } => entry != gone,
                    Record::Received { .. } => true,
                }),
            }
        }
        records
    }
}

/// What an attempt at an idempotent work says while its node still runs.
#[derive(Clone, Copy)]
enum Says {
    /// One thing, and then another.
    Two,
    /// These, and then that it is done.
    All,
}

/// One node, with a client that takes what comes and a plugin that answers at once.
struct Host {
    name: &'static str,
    starts: u64,
    mesh: Mesh,
    disk: Disk,
    frames: Vec<Frame>,
    accepted: usize,
    runs: usize,
    /// Of each attempt, when its plugin says that its action is idempotent.
    says: Option<Says>,
    texts: Vec<Bytes>,
    ends: Vec<Eof>,
    /// Responses and end of the last work that was sent from here.
    remembered: Option<(u64, Eof)>,
    /// How works ended here, as was noted.
    noted: Vec<Eof>,
}

impl Host {
    fn new(name: &'static str) -> Self {
        let mut host = Self {
            name,
            starts: 0,
            mesh: Mesh::new(Config::new(node(name), 1, 1), at(0), []),
            disk: Disk::default(),
            frames: Vec::new(),
            accepted: 0,
            runs: 0,
            says: None,
            texts: Vec::new(),
            ends: Vec::new(),
            remembered: None,
            noted: Vec::new(),
        };
        host.start(0);
        host
    }

    /// Goes on with what is durable.
    fn start(&mut self, now: u64) {
        self.starts += 1;
        let records = self.disk.records();
        let kept = records.len();
        self.disk.log.clear();
        if kept > 0 {
            let written = Change::Write(PersistToken(0), records.clone());
            self.disk.log.push(written);
        }
        self.disk.durable = self.disk.log.len();
        self.frames.clear();
        let config = Config::new(node(self.name), self.starts, 1);
        self.mesh = Mesh::new(config, at(now), records);
    }

    fn connect(&mut self, now: u64, link: u64) {
        let info = LinkInfo {
            cost: 1,
            proven: Vec::new(),
            address: "wire".to_owned(),
            dialled: self.name == "origin",
        };
        self.mesh.handle_link_up(at(now), LinkId(link), info);
        self.mesh.handle_room(at(now), LinkId(link), 1 << 20);
    }

    fn drain(&mut self, now: u64) {
        while let Some(output) = self.mesh.poll_output() {
            self.act(now, output);
        }
    }

    fn act(&mut self, now: u64, output: Output) {
        if let Output::Transmit { frame, link } = output {
            self.mesh.handle_room(at(now), link, frame.encoded_len());
            self.frames.push(frame);
        } else if let Output::Persist {
            token,
            records,
            urgent,
        } = output
        {
            if self.says.is_some() {
                let waits = |record: &Record| {
                    matches!(
                        record,
                        Record::Outgoing { message, .. }
                            if matches!(message.kind, MessageKind::Response { eof: None, .. })
                    )
                };
                let waits = records.iter().any(waits);
                assert!(urgent || !waits, "a response waits for this: {records:?}");
            }
            self.disk.log.push(Change::Write(token, records));
            if urgent {
                self.disk.urgent += 1;
                self.write(now);
            }
        } else if let Output::Remove { entry } = output {
            self.disk.log.push(Change::Remove(entry));
        } else if let Output::Dispatch { work, attempt, .. } = output {
            if attempt == 1 || self.says.is_some() {
                let idempotent = self.says.is_some();
                self.mesh.work_started(at(now), work, idempotent);
            } else {
                let error = ErrorBody::new(ErrorCode::Interrupted, "its node went down");
                self.end(now, work, Some(error));
            }
        } else if let Output::Start { work } = output {
            self.runs += 1;
            match self.says {
                Some(says) => self.say(now, work, says),
                None => self.end(now, work, None),
            }
        } else if let Output::Ended { eof, .. } = output {
            self.noted.push(eof);
        } else if let Output::AskEnd {
            recipient, place, ..
        } = output
        {
            let end = self.remembered.clone();
            self.mesh.handle_end(at(now), &recipient, place, end);
        } else if let Output::Accepted { .. } = output {
            self.accepted += 1;
        } else if let Output::Deliver {
            work,
            serial,
            payload: Payload::Inline(text),
            eof,
            ..
        } = output
        {
            self.texts.push(text);
            if let Some(eof) = eof {
                self.remembered = Some((serial, eof.clone()));
                self.ends.push(eof);
            }
            self.mesh.consumed(at(now), work, serial);
        }
    }

    fn say(&mut self, now: u64, work: MessageId, says: Says) {
        for text in ["one", "two"] {
            let text = format!("{text} of run {}", self.runs);
            let payload = Payload::Inline(Bytes::from(text));
            let taken = self
                .mesh
                .work_data(at(now), work, Content::Text, None, payload);
            assert_eq!(taken.unwrap().room, WorkRoom::Open);
        }
        match says {
            Says::Two => {}
            Says::All => self.end(now, work, None),
        }
    }

    fn end(&mut self, now: u64, work: MessageId, error: Option<ErrorBody>) {
        let eof = Eof {
            code: u32::from(error.is_some()),
            error,
        };
        let payload = Payload::Inline(Bytes::from_static(ANSWER));
        self.mesh
            .work_done(at(now), work, eof, Content::Bytes, payload)
            .unwrap();
    }

    /// Everything that was asked for is durable.
    fn write(&mut self, now: u64) {
        let from = std::mem::replace(&mut self.disk.durable, self.disk.log.len());
        let tokens: Vec<PersistToken> = self.disk.log[from..]
            .iter()
            .filter_map(|change| match change {
                Change::Write(token, _) => Some(*token),
                Change::Remove(_) => None,
            })
            .collect();
        for token in tokens {
            self.mesh.handle_persisted(at(now), token);
        }
    }

    fn submit(&mut self, now: u64, id: u128) {
        let submission = Submission {
            id: MessageId::from_u128(id),
            recipient: Recipient::Node(node("worker")),
            directive: Directive::new("a:b").unwrap(),
            content: Content::Bytes,
            payload: Payload::Inline(Bytes::from_static(b"do")),
            volatile: false,
            respond: true,
            expiry: Duration::from_secs(3600),
            repeatable: false,
        };
        self.mesh.submit(at(now), submission).unwrap();
    }

    /// Whether anything is kept of messages.
    fn keeps(&self) -> bool {
        let is_message = |record: &Record| {
            matches!(
                record,
                Record::Outgoing { .. } | Record::Incoming { .. } | Record::Transit { .. }
            )
        };
        self.disk.records().iter().any(is_message)
    }
}

/// A sender's node and a worker's, and the wire between them.
struct Pair {
    now: u64,
    origin: Host,
    worker: Host,
    link: u64,
}

impl Pair {
    fn new() -> Self {
        let mut pair = Self {
            now: 0,
            origin: Host::new("origin"),
            worker: Host::new("worker"),
            link: 0,
        };
        pair.connect();
        pair
    }

    fn connect(&mut self) {
        if self.link > 0 {
            let cut = || ErrorBody::new(ErrorCode::Internal, "cut");
            for host in [&mut self.origin, &mut self.worker] {
                host.mesh
                    .handle_link_down(at(self.now), LinkId(self.link), cut());
                host.drain(self.now);
                host.frames.clear();
            }
        }
        self.link += 1;
        self.origin.connect(self.now, self.link);
        self.worker.connect(self.now, self.link);
        self.run_for(5_000);
    }

    /// Carries what there is to carry, without the time going on.
    fn carry(&mut self) {
        loop {
            self.origin.drain(self.now);
            self.worker.drain(self.now);
            let there = std::mem::take(&mut self.origin.frames);
            let back = std::mem::take(&mut self.worker.frames);
            if there.is_empty() && back.is_empty() {
                return;
            }
            for frame in there {
                let link = LinkId(self.link);
                self.worker.mesh.handle_frame(at(self.now), link, frame);
            }
            for frame in back {
                let link = LinkId(self.link);
                self.origin.mesh.handle_frame(at(self.now), link, frame);
            }
        }
    }

    fn run_for(&mut self, ms: u64) {
        let end = self.now + ms;
        loop {
            self.carry();
            let hosts = [&self.origin, &self.worker];
            let next = hosts
                .iter()
                .filter_map(|host| host.mesh.poll_timeout())
                .min();
            let Some(next) = next.filter(|next| *next <= at(end)) else {
                break;
            };
            self.now = self.now.max(next.as_micros().div_ceil(1000));
            self.origin.mesh.handle_timeout(at(self.now));
            self.worker.mesh.handle_timeout(at(self.now));
        }
        self.now = end;
    }

    /// A request whose client has its answer, and nothing written that nobody waits for.
    fn answered() -> Self {
        let mut pair = Self::new();
        let before = (pair.origin.disk.urgent, pair.worker.disk.urgent);
        pair.origin.submit(pair.now, 1);
        pair.carry();
        assert_eq!((pair.origin.accepted, pair.worker.runs), (1, 1));
        assert_eq!(pair.origin.ends.len(), 1, "the client has its answer");
        let after = (pair.origin.disk.urgent, pair.worker.disk.urgent);
        assert_eq!(after, (before.0 + 1, before.1 + 1), "one write each");
        pair
    }

    /// Lets everything be written, and checks that it was run once and nothing is left.
    fn check_quiet(&mut self) {
        for _ in 0..4 {
            self.origin.write(self.now);
            self.worker.write(self.now);
            self.run_for(LONG);
        }
        self.origin.write(self.now);
        self.worker.write(self.now);
        assert_eq!(self.worker.runs, 1, "run once");
        assert!(!self.origin.keeps(), "{:?}", self.origin.disk.records());
        assert!(!self.worker.keeps(), "{:?}", self.worker.disk.records());
    }
}

#[test]
fn an_answer_waits_for_one_write_of_each_side() {
    let mut pair = Pair::answered();
    // The next message takes along what is left of this one.
    let unwritten = |host: &Host| host.disk.log.len() - host.disk.durable;
    assert!(unwritten(&pair.origin) > 0 && unwritten(&pair.worker) > 0);
    let before = (pair.origin.disk.urgent, pair.worker.disk.urgent);
    pair.origin.submit(pair.now, 2);
    pair.carry();
    let after = (pair.origin.disk.urgent, pair.worker.disk.urgent);
    assert_eq!(after, (before.0 + 1, before.1 + 1));
    assert_eq!((pair.worker.runs, pair.origin.ends.len()), (2, 2));
}

#[test]
fn an_answer_that_is_written_late_is_no_receipt_for_the_next_work_with_its_id() {
    let mut pair = Pair::answered();
    // The key of the first is used again. Its write takes along that the answer to the first came.
    pair.origin.submit(pair.now, 1);
    for _ in 0..4 {
        pair.run_for(LONG);
        pair.origin.write(pair.now);
        pair.worker.write(pair.now);
    }
    assert_eq!((pair.worker.runs, pair.origin.ends.len()), (2, 2));
    let ends: Vec<u32> = pair.origin.ends.iter().map(|eof| eof.code).collect();
    assert_eq!(ends, [0, 0], "{:?}", pair.origin.ends);
}

#[test]
fn a_sender_that_crashes_before_it_wrote_the_answer_gets_it_again() {
    let mut pair = Pair::answered();
    pair.origin.start(pair.now);
    pair.connect();
    pair.check_quiet();
    let ends: Vec<u32> = pair.origin.ends.iter().map(|eof| eof.code).collect();
    assert_eq!(ends, [0, 0], "the same end once more");
}

#[test]
fn a_worker_that_crashes_before_it_wrote_the_answer_does_not_change_it() {
    let mut pair = Pair::answered();
    pair.worker.start(pair.now);
    pair.connect();
    pair.check_quiet();
    let ends: Vec<u32> = pair.origin.ends.iter().map(|eof| eof.code).collect();
    assert_eq!(ends, [0], "the end that the client has");
    let noted: Vec<u32> = pair.worker.noted.iter().map(|eof| eof.code).collect();
    assert_eq!(noted, [0, 1, 0], "the end that the client has");
}

#[test]
fn a_power_loss_of_both_before_they_wrote_the_answer_does_not_run_it_again() {
    let mut pair = Pair::answered();
    pair.origin.start(pair.now);
    pair.worker.start(pair.now);
    pair.connect();
    pair.check_quiet();
    let last = pair.origin.ends.last().unwrap();
    assert_eq!(
        last.error.as_ref().map(|error| &error.code),
        Some(&ErrorCode::Interrupted)
    );
    assert_eq!(pair.origin.ends.len(), 2, "one end after the restart");
}

/// A worker's node crashes while an idempotent work says something, of which nothing is written but
/// what `written` asks for; then it is run again.
fn check_second_attempt(first: Says, written: bool) {
    let mut pair = Pair::new();
    pair.worker.says = Some(first);
    pair.origin.submit(pair.now, 1);
    pair.carry();
    if written {
        pair.worker.write(pair.now);
        pair.carry();
    }
    pair.worker.says = Some(Says::All);
    pair.worker.start(pair.now);
    pair.connect();
    for _ in 0..4 {
        pair.worker.write(pair.now);
        pair.origin.write(pair.now);
        pair.run_for(LONG);
    }
    let texts = &pair.origin.texts;
    let run = |run: usize| ["one", "two"].map(|text| Bytes::from(format!("{text} of run {run}")));
    let end = [Bytes::from_static(ANSWER)];
    let mut expected = run(pair.worker.runs).to_vec();
    expected.extend(end);
    assert!(texts.ends_with(&expected), "{texts:?}");
    let before = &texts[..texts.len() - expected.len()];
    assert!(run(1).starts_with(before), "{texts:?}");
    assert_eq!(pair.origin.ends.len(), 1);
    assert_eq!(pair.worker.noted.last(), pair.origin.ends.last());
    assert!(!pair.origin.keeps() && !pair.worker.keeps());
}

#[test]
fn what_a_second_attempt_says_is_whole_and_behind_what_the_first_said() {
    check_second_attempt(Says::Two, false);
    check_second_attempt(Says::Two, true);
    check_second_attempt(Says::All, false);
    check_second_attempt(Says::All, true);
}
