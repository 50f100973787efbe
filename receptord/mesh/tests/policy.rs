//! Two nodes, of which one lets the other run little.

#![expect(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "tests, also in their helpers"
)]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use receptor_mesh::{
    Config, Denied, Event, Instant, LinkId, LinkInfo, Mesh, Output, Payload, Policy, Recipient,
    Record, Submission,
};
use receptor_proto::frame::Frame;
use receptor_proto::lsa::Capability;
use receptor_proto::packet::{About, Body, Content, Packet, Undeliverable};
use receptor_proto::{Directive, ErrorBody, ErrorCode, MessageId, NodeId};

const LINK: LinkId = LinkId(1);

fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn at(ms: u64) -> Instant {
    Instant::from_micros(ms * 1000)
}

/// Only `echo:*` may be used.
#[derive(Debug)]
struct OnlyEcho;

impl Policy for OnlyEcho {
    fn may_use(&self, _: &NodeId, directive: &Directive) -> bool {
        directive.plugin() == "echo"
    }

    fn may_link(&self, _: &NodeId) -> bool {
        true
    }

    fn may_pass(&self, _: &NodeId, _: &NodeId) -> bool {
        true
    }
}

struct Pair {
    meshes: [Mesh; 2],
    now: u64,
    /// What the second node, which has the rules, was told to do, writes included.
    there: Vec<Output>,
    /// How works ended, as the first node's clients hear it.
    ends: Vec<(MessageId, Option<ErrorBody>)>,
}

impl Pair {
    fn new() -> Self {
        let mut meshes = ["here", "there"].map(|name| {
            let seed = name.len() as u64;
            Mesh::new(Config::new(node(name), seed, seed), at(0), [])
        });
        for (dialled, mesh) in [true, false].into_iter().zip(&mut meshes) {
            let info = LinkInfo {
                cost: 1,
                proven: Vec::new(),
                address: "wire".to_owned(),
                dialled,
            };
            mesh.handle_link_up(at(0), LINK, info);
            mesh.handle_room(at(0), LINK, 1 << 20);
        }
        let plugins = ["echo", "shell"].map(|plugin| Capability {
            plugin: plugin.to_owned(),
            version: "1".to_owned(),
            actions: vec!["run".to_owned()],
            ready: true,
        });
        meshes[1].set_capabilities(at(0), plugins.into());
        meshes[1].set_policy(at(0), Arc::new(OnlyEcho));
        let mut pair = Self {
            meshes,
            now: 0,
            there: Vec::new(),
            ends: Vec::new(),
        };
        pair.run(5_000);
        pair.there.clear();
        pair
    }

    fn step(&mut self) {
        let now = at(self.now);
        loop {
            let mut moved = false;
            for from in 0..2 {
                while let Some(output) = self.meshes[from].poll_output() {
                    moved = true;
                    match output {
                        Output::Transmit { frame, .. } => {
                            self.meshes[from].handle_room(now, LINK, frame.encoded_len());
                            self.meshes[1 - from].handle_frame(now, LINK, frame);
                        }
                        Output::Persist {
                            token,
                            records,
                            urgent,
                        } => {
                            self.meshes[from].handle_persisted(now, token);
                            if from == 1 {
                                self.there.push(Output::Persist {
                                    token,
                                    records,
                                    urgent,
                                });
                            }
                        }
                        Output::Deliver {
                            work,
                            serial,
                            eof: Some(eof),
                            ..
                        } if from == 0 => {
                            self.ends.push((work, eof.error));
                            self.meshes[0].consumed(now, work, serial);
                        }
                        output if from == 1 => self.there.push(output),
                        _ => {}
                    }
                }
            }
            if !moved {
                return;
            }
        }
    }

    fn run(&mut self, for_ms: u64) {
        let end = self.now + for_ms;
        self.step();
        while let Some(due) = self.meshes.iter().filter_map(Mesh::poll_timeout).min() {
            let due = due.as_micros().div_ceil(1000).max(self.now + 1);
            if due > end {
                break;
            }
            self.now = due;
            for mesh in &mut self.meshes {
                mesh.handle_timeout(at(due));
            }
            self.step();
        }
        self.now = end;
    }

    /// Sends from the first node. How it ended.
    fn send(&mut self, change: impl FnOnce(&mut Submission)) -> Option<ErrorBody> {
        let id = MessageId::from_u128(u128::from(self.now));
        let mut submission = Submission {
            id,
            recipient: Recipient::Node(node("there")),
            directive: Directive::new("shell:run").unwrap(),
            content: Content::Bytes,
            payload: Payload::Inline(Bytes::from_static(b"x")),
            volatile: false,
            respond: true,
            expiry: Duration::from_secs(3600),
            repeatable: false,
        };
        change(&mut submission);
        self.meshes[0].submit(at(self.now), submission).unwrap();
        self.run(3_000);
        let ended = self.ends.iter().find(|(work, _)| *work == id);
        ended.and_then(|(_, error)| error.clone())
    }

    /// The second node kept nothing of a request, and gave none to a plugin.
    fn assert_untouched(&self) {
        for output in &self.there {
            let bad = match output {
                Output::Dispatch { .. } | Output::Begin { .. } | Output::Append { .. } => true,
                Output::Persist { records, .. } => records.iter().any(|record| {
                    matches!(record, Record::Incoming { .. } | Record::Started { .. })
                }),
                _ => false,
            };
            assert!(!bad, "{output:?}");
        }
    }

    fn denials(&self) -> usize {
        let denied = |output: &&Output| {
            matches!(output, Output::Event(Event::Denied(Denied::Work { sender, directive }))
                if *sender == node("here") && directive.as_str() == "shell:run")
        };
        self.there.iter().filter(denied).count()
    }
}

#[test]
fn what_may_not_be_used_is_answered_and_neither_kept_nor_run() {
    let ways: [fn(&mut Submission); 4] = [
        |_| {},
        |submission| submission.volatile = true,
        |submission| {
            submission.recipient = Recipient::Any {
                metadata: Default::default(),
            };
        },
        // Its payload is announced, and never asked for.
        |submission| {
            submission.payload = Payload::Stored {
                entry: receptor_mesh::EntryId(7),
                size: 1 << 30,
            };
        },
    ];
    for (number, way) in ways.into_iter().enumerate() {
        let mut pair = Pair::new();
        let error = pair.send(way).unwrap_or_else(|| panic!("{number}: no end"));
        assert_eq!(error.code, ErrorCode::PermissionDenied, "{number}");
        assert_eq!(error.message, "there does not permit shell:run to here");
        assert_eq!(error.detail["directive"], "shell:run");
        assert_eq!(error.detail["node"], "there");
        pair.assert_untouched();
        assert_eq!(pair.denials(), 1, "{number}");
        assert_eq!(pair.meshes[0].outstanding(&node("there")), 0, "{number}");
    }
}

#[test]
fn one_way_messages_are_dropped_and_noted() {
    let mut pair = Pair::new();
    let end = pair.send(|submission| submission.respond = false);
    assert_eq!(end, None);
    pair.assert_untouched();
    assert_eq!(pair.denials(), 1);
    assert_eq!(pair.meshes[0].outstanding(&node("there")), 0);
}

#[test]
fn what_may_be_used_is_taken() {
    let mut pair = Pair::new();
    pair.send(|submission| submission.directive = Directive::new("echo:run").unwrap());
    let dispatched = |output: &Output| matches!(output, Output::Dispatch { .. });
    assert!(pair.there.iter().any(dispatched));
    assert_eq!(pair.denials(), 0);
}

#[test]
fn a_node_that_is_not_on_the_way_cannot_end_a_message() {
    let mut pair = Pair::new();
    let now = at(pair.now);
    let work = MessageId::from_u128(1);
    let submission = Submission {
        id: work,
        recipient: Recipient::Node(node("there")),
        directive: Directive::new("echo:run").unwrap(),
        content: Content::None,
        payload: Payload::Inline(Bytes::new()),
        volatile: false,
        respond: true,
        expiry: Duration::from_secs(3600),
        repeatable: false,
    };
    pair.meshes[0].submit(now, submission).unwrap();
    let mut place = None;
    while let Some(output) = pair.meshes[0].poll_output() {
        match output {
            Output::Persist { token, .. } => pair.meshes[0].handle_persisted(now, token),
            // Lost on its way.
            Output::Transmit {
                frame: Frame::Packet(packet),
                ..
            } => {
                if let Ok(Body::Message(message)) = Body::decode(packet.kind, packet.body) {
                    place = Some((message.epoch, message.seq));
                }
            }
            _ => {}
        }
    }
    let (epoch, seq) = place.unwrap();
    let lie = Body::Undeliverable(Undeliverable {
        code: ErrorCode::PermissionDenied,
        destination: node("there"),
        about: About::Message { epoch, seq },
    });
    let packet = Packet::new(node("liar"), node("here"), 9, &lie);
    pair.meshes[0].handle_frame(now, LINK, Frame::Packet(packet));
    pair.run(60_000);
    assert!(pair.ends.is_empty(), "{:?}", pair.ends);
    let dispatched = |output: &&Output| matches!(output, Output::Dispatch { .. });
    assert_eq!(pair.there.iter().filter(dispatched).count(), 1);
}
