//! A neighbor that was let in, and sends whatever it likes.
//!
//! Owns a node of the core with its driver: a disk that always writes, a link that is always read, works
//! that end at once. An input is a list of steps; each is what one byte says, see [`Step`]. A step of
//! packets and statements saves the fuzzer from guessing headers, and one of frames reaches the rest.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use receptor_mesh::{
    Config, Instant, LinkId, LinkInfo, Loaded, Mesh, Output, Payload, Recipient, Submission,
};
use receptor_proto::frame::{CREDIT_FLOOR, Frame, Hello, MAX_FRAME_FLOOR};
use receptor_proto::lsa::{Lsa, LsaKey, LsaKind};
use receptor_proto::packet::{Content, Eof, Packet, Piece, Priority};
use receptor_proto::wire::DecodeError;
use receptor_proto::{Directive, ErrorBody, ErrorCode, MessageId, NodeId};

use crate::memory::in_use;

/// What the node may hold at most for each byte that it was sent, in bytes: a statement of a node
/// that was never heard of, of twenty bytes, is an entry in a handful of tables.
const FACTOR: usize = 128;
/// And for none: its own tables, and what it says to a neighbor that never answers.
const BASE: usize = 1 << 20;
/// What a node with these limits may hold at most, however much it was sent.
const TOTAL: usize = 24 << 20;
/// Statements of invented nodes that it keeps.
const LSAS: usize = 256;
/// What the node may want done for one step: a frame full of statements that each ask for something.
const OUTPUTS: usize = 20_000;

/// One step of an input.
enum Step<'a> {
    /// Time passes.
    Wait(Duration),
    /// The link breaks, and is there again.
    Again,
    /// A packet of a kind from this neighbor to the node.
    Packet(u8, &'a [u8]),
    /// A statement of a kind with a number: of the neighbor, or of one of a few others.
    Statement(u8, u8, &'a [u8]),
    /// A frame, without its length.
    Frame(&'a [u8]),
}

/// One input, from the first step on.
///
/// # Panics
///
/// When the node holds more than it may.
pub fn neighbor(input: &[u8]) {
    let before = in_use();
    let mut node = Node::new();
    node.take(input);
    let taken = in_use().saturating_sub(before);
    let limit = BASE + FACTOR * input.len();
    assert!(
        taken <= limit,
        "{} bytes took {taken} bytes of memory, {limit} are allowed",
        input.len()
    );
}

/// A node that has a neighbor.
#[derive(Debug)]
pub struct Node {
    mesh: Mesh,
    link: LinkId,
    now: Instant,
    /// Works that were started and have not ended.
    running: VecDeque<MessageId>,
    start: usize,
}

fn id(name: &str) -> NodeId {
    NodeId::new(name).expect("a node id")
}

impl Default for Node {
    fn default() -> Self {
        Self::new()
    }
}

impl Node {
    /// One that has just met its neighbor, and waits for the answer of a work that it sent there.
    #[must_use]
    pub fn new() -> Self {
        let start = in_use();
        let mut config = Config::new(id("here"), 5, 1);
        config.limits.lsas = LSAS;
        config.limits.works = 64;
        config.limits.custody_entries = 64;
        config.limits.custody_entries_each = 16;
        config.limits.custody_bytes = 1 << 20;
        let mut node = Self {
            mesh: Mesh::new(config, Instant::from_micros(0), []),
            link: LinkId(0),
            now: Instant::from_micros(0),
            running: VecDeque::new(),
            start,
        };
        node.connect();
        let submission = Submission {
            id: MessageId::from_u128(7),
            recipient: Recipient::Node(id("there")),
            directive: Directive::new("echo:echo").expect("a directive"),
            content: Content::Text,
            payload: Payload::Inline(Bytes::from_static(b"hello")),
            volatile: false,
            respond: true,
            expiry: Duration::from_secs(3600),
            repeatable: false,
        };
        let _ = node.mesh.submit(node.now, submission);
        node.drive();
        node
    }

    /// Takes what the neighbor does.
    ///
    /// # Panics
    ///
    /// When a limit does not hold.
    pub fn take(&mut self, input: &[u8]) {
        let mut rest = input;
        while let Some((step, behind)) = next(rest) {
            rest = behind;
            match step {
                Step::Wait(time) => {
                    self.now = self.now + time;
                    self.mesh.handle_timeout(self.now);
                }
                Step::Again => {
                    let reason = ErrorBody::new(ErrorCode::Internal, "cut");
                    self.mesh.handle_link_down(self.now, self.link, reason);
                    self.connect();
                }
                Step::Packet(kind, body) => {
                    let packet = Packet {
                        hop_limit: 30,
                        hops: 0,
                        priority: Priority::Small,
                        source: id("there"),
                        destination: id("here"),
                        kind,
                        body: Bytes::copy_from_slice(body),
                    };
                    self.frame(Frame::Packet(packet));
                }
                Step::Statement(kind, number, body) => {
                    let names = ["there", "x", "y", "here"];
                    let lsa = Lsa {
                        key: LsaKey {
                            node: id(names[usize::from(number) % names.len()]),
                            kind: LsaKind(kind),
                        },
                        seq: 1 << (number / 4),
                        instance: 1,
                        remaining_s: u32::from(number) * 30,
                        body: Bytes::copy_from_slice(body),
                    };
                    self.frame(Frame::Lsas(vec![lsa]));
                }
                Step::Frame(bytes) => match Frame::decode(Bytes::copy_from_slice(bytes)) {
                    Ok(frame) => self.frame(frame),
                    Err(error) => self.bad(error),
                },
            }
            self.drive();
            self.check();
        }
    }

    fn frame(&mut self, frame: Frame) {
        self.mesh.handle_frame(self.now, self.link, frame);
    }

    fn bad(&mut self, error: DecodeError) {
        self.mesh.handle_bad_frame(self.now, self.link, error);
    }

    fn connect(&mut self) {
        self.link = LinkId(self.link.0 + 1);
        let info = LinkInfo {
            cost: 1,
            proven: Vec::new(),
            address: "wire".to_owned(),
            dialled: false,
        };
        self.mesh.handle_link_up(self.now, self.link, info);
        self.mesh.handle_room(self.now, self.link, 1 << 18);
        self.frame(Frame::Hello(Hello {
            versions: (1, 1),
            node: id("there"),
            instance: 1,
            features: 0,
            max_frame: u32::try_from(MAX_FRAME_FLOOR).expect("a small number"),
            credit: CREDIT_FLOOR,
            hold_time_ms: 4000,
            router: true,
            cost: 1,
            software: "fuzz".to_owned(),
        }));
        self.drive();
    }

    /// Does what the node wants done. A closed link is there again at once.
    fn drive(&mut self) {
        let mut closed = false;
        let mut done = 0;
        while let Some(output) = self.mesh.poll_output() {
            done += 1;
            assert!(done < OUTPUTS, "one step has no end: {output:?}");
            closed |= self.output(output);
        }
        if closed {
            self.connect();
        }
        // As many works run as a busy node has; the others end.
        while self.running.len() > 8 {
            self.end_first();
        }
    }

    fn end_first(&mut self) {
        let Some(work) = self.running.pop_front() else {
            return;
        };
        let eof = Eof {
            code: 0,
            error: None,
        };
        let payload = || Payload::Inline(Bytes::from_static(b"{}"));
        let _ = self
            .mesh
            .work_data(self.now, work, Content::Json, None, payload());
        let _ = self
            .mesh
            .work_done(self.now, work, eof, Content::Json, payload());
    }

    /// True: the link is closed.
    fn output(&mut self, output: Output) -> bool {
        let now = self.now;
        match output {
            Output::Transmit { link, frame } => {
                assert!(frame.encoded_len() <= MAX_FRAME_FLOOR);
                self.mesh.handle_room(now, link, frame.encoded_len());
            }
            Output::CloseLink { link, .. } => return link == self.link,
            Output::Persist { token, .. } => self.mesh.handle_persisted(now, token),
            Output::Fetch { entry, offset, .. } => {
                let gone = ErrorBody::new(ErrorCode::Internal, "not kept here");
                self.mesh.handle_fetched(now, entry, offset, Err(gone));
            }
            Output::Load { token, .. } => {
                let nothing = Loaded {
                    records: Vec::new(),
                    damaged: Vec::new(),
                    next: None,
                };
                self.mesh.handle_loaded(now, token, Ok(nothing));
            }
            Output::Append {
                entry,
                offset,
                piece: Piece { bytes, .. },
            } => {
                let end = offset + bytes.len() as u64;
                self.mesh.handle_appended(now, entry, end, Ok(()));
            }
            Output::Dispatch { work, .. } => self.mesh.work_started(now, work, false),
            Output::Start { work } => self.running.push_back(work),
            Output::CancelWork { work, .. } => {
                self.running.retain(|running| *running != work);
                self.running.push_front(work);
                self.end_first();
            }
            Output::Deliver { work, serial, .. } => self.mesh.consumed(now, work, serial),
            Output::AskEnd {
                recipient, place, ..
            } => self.mesh.handle_end(now, &recipient, place, None),
            Output::DeadLetter { entry, .. } => {
                self.mesh.handle_dead_letter(now, entry, Ok(()));
            }
            Output::Remove { .. }
            | Output::Begin { .. }
            | Output::Accepted { .. }
            | Output::Readdressed { .. }
            | Output::NotAccepted { .. }
            | Output::ResumeWork { .. }
            | Output::ResponsesSafe { .. }
            | Output::Ended { .. }
            | Output::EchoResult { .. }
            | Output::Event(_) => {}
        }
        false
    }

    fn check(&self) {
        assert!(self.mesh.lsdb_len() <= LSAS);
        assert!(self.mesh.links().len() <= 1);
        let (entries, bytes) = self.mesh.in_custody();
        assert!(entries <= 64 && bytes <= 1 << 20);
        assert!(self.mesh.works(0).1 <= 64 + 1);
        let queued: usize = self.mesh.queued(self.link).iter().sum();
        assert!(queued <= (4 << 20) + (256 << 10), "{queued}");
        let taken = in_use().saturating_sub(self.start);
        assert!(taken <= TOTAL, "{taken} bytes are held");
    }
}

/// The first step of an input, and what follows it.
fn next(input: &[u8]) -> Option<(Step<'_>, &[u8])> {
    let (&what, rest) = input.split_first()?;
    let sized = |rest: &'_ [u8]| -> usize {
        let [high, low, rest @ ..] = rest else {
            return 0;
        };
        usize::from(u16::from_be_bytes([*high, *low])).min(rest.len())
    };
    Some(match (what, rest) {
        (0, [tenths, rest @ ..]) => {
            let time = Duration::from_millis(100 * u64::from(*tenths));
            (Step::Wait(time), rest)
        }
        (1, rest) => (Step::Again, rest),
        (2, [kind, rest @ ..]) if rest.len() >= 2 => {
            let (body, behind) = rest[2..].split_at(sized(rest));
            (Step::Packet(*kind, body), behind)
        }
        (3, [kind, number, rest @ ..]) if rest.len() >= 2 => {
            let (body, behind) = rest[2..].split_at(sized(rest));
            (Step::Statement(*kind, *number, body), behind)
        }
        (_, rest) if rest.len() >= 2 => {
            let (frame, behind) = rest[2..].split_at(sized(rest));
            (Step::Frame(frame), behind)
        }
        _ => return None,
    })
}
