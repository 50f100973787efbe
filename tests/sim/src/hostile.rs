//! Neighbors that mean harm: they speak enough of the protocol to be let in, and then send what
//! others said with bits flipped, well-formed frames that make no sense, and plain noise.
//!
//! What is asked of the mesh: no panic, no bound overstepped while it lasts, and everything as
//! promised soon after they are gone.

use std::collections::VecDeque;

use bytes::Bytes;
use fastrand::Rng;
use receptor_proto::frame::{Frame, Goodbye, Hello, MAX_FRAME_FLOOR, SUMMARY_MAX};
use receptor_proto::lsa::{LinkEntry, LinksBody, Lsa, LsaKey, LsaKind, LsaSummary, Version};
use receptor_proto::packet::{
    About, Body, EarlierEnd, Eof, Packet, Piece, Receipt, Segment, Undeliverable,
};
use receptor_proto::{ErrorCode, NodeId};

use crate::event::{Carried, ConnIndex, Event, LinkEvent};
use crate::options::Options;
use crate::topology::Wire;
use crate::world::{World, node_id};

/// How many frames of others a hostile neighbor mutates.
const OVERHEARD_MAX: usize = 64;
/// Frames a hostile neighbor sends a second, on average.
const RATE: f64 = 40.0;
/// How many victims one hostile neighbor has at most.
const VICTIMS_MAX: usize = 2;

/// One hostile neighbor.
#[derive(Debug)]
pub(crate) struct Hostile {
    id: NodeId,
    instance: u64,
    links: Vec<(ConnIndex, usize)>,
    overheard: VecDeque<Bytes>,
}

/// Adds the hostile neighbors' wires and names them.
pub(crate) fn plan(
    options: &Options,
    rng: &mut Rng,
    nodes: usize,
    wires: &mut Vec<Wire>,
) -> Vec<Hostile> {
    (0..options.hostile)
        .map(|number| {
            for _ in 0..=rng.usize(0..VICTIMS_MAX) {
                let victim = rng.usize(0..nodes);
                wires.push(Wire {
                    ends: [nodes + number, victim],
                    cost: [1, 1],
                    latency_us: 1000,
                });
            }
            Hostile {
                id: node_id(nodes + number),
                instance: 1,
                links: Vec::new(),
                overheard: VecDeque::new(),
            }
        })
        .collect()
}

impl World {
    pub(crate) fn start_hostile(&mut self) {
        for wire in 0..self.net.wires.len() {
            if self.net.wires[wire].ends[0] >= self.hosts.len() {
                self.net.plan_dial(&mut self.queue, wire, true);
            }
        }
        for number in 0..self.hostile.len() {
            self.plan_hostile(number);
        }
    }

    fn plan_hostile(&mut self, number: usize) {
        let pause = crate::random::Draw::pause(&mut self.hostiles, RATE);
        self.queue.after(pause, Event::Hostile(number));
    }

    /// Something crosses a link somewhere; the hostile have good ears.
    pub(crate) fn overhear(&mut self, carried: &Carried) {
        let Carried::Bytes(bytes) = carried else {
            return;
        };
        for hostile in &mut self.hostile {
            if hostile.overheard.len() < OVERHEARD_MAX {
                hostile.overheard.push_back(bytes.clone());
            } else if self.hostiles.u8(0..8) == 0 {
                let place = self.hostiles.usize(0..OVERHEARD_MAX);
                hostile.overheard[place] = bytes.clone();
            }
        }
    }

    /// A hostile neighbor's end of a connection.
    pub(crate) fn hostile_link(
        &mut self,
        number: usize,
        conn: ConnIndex,
        side: usize,
        event: LinkEvent,
    ) {
        match event {
            LinkEvent::Up => {
                if self.net.open(conn, side).is_none() {
                    return;
                }
                self.hostile[number].links.push((conn, side));
                self.hostile[number].instance += 1;
                let hello = self.hostile_hello(number);
                self.hostile_sends(conn, side, &hello);
            }
            LinkEvent::Arrive(carried) => {
                if !self
                    .net
                    .arrived(&mut self.queue, conn, side, carried.size())
                {
                    return;
                }
                let frame = match carried {
                    Carried::Bytes(bytes) => Frame::decode(bytes.slice(4..)).ok(),
                    Carried::Frame(frame, _) => Some(*frame),
                };
                // Stays alive, most of the time.
                if let Some(Frame::Probe { nonce }) = frame
                    && self.hostiles.u8(0..10) > 0
                {
                    self.hostile_sends(conn, side, &Frame::ProbeReply { nonce });
                }
            }
            LinkEvent::Room => {
                self.net.take_room(conn, side);
            }
            LinkEvent::Down(_) => {
                self.net.close(&mut self.queue, conn, side);
                self.hostile[number]
                    .links
                    .retain(|link| *link != (conn, side));
            }
        }
    }

    fn hostile_hello(&mut self, number: usize) -> Frame {
        let rng = &mut self.hostiles;
        let odd = rng.u8(0..4) == 0;
        Frame::Hello(Hello {
            versions: (1, 1),
            node: self.hostile[number].id.clone(),
            instance: self.hostile[number].instance,
            features: if odd { rng.u64(..) } else { 0 },
            max_frame: u32::try_from(MAX_FRAME_FLOOR).unwrap_or(u32::MAX) - u32::from(odd),
            credit: if odd { rng.u64(..) } else { 1 << 20 },
            hold_time_ms: if odd { rng.u32(..) } else { 4000 },
            router: rng.u8(0..4) > 0,
            cost: if odd { rng.u32(..) } else { 1 },
            software: "harm".to_string(),
        })
    }

    fn hostile_sends(&mut self, conn: ConnIndex, side: usize, frame: &Frame) {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        self.hostile_sends_bytes(conn, side, bytes.into());
    }

    fn hostile_sends_bytes(&mut self, conn: ConnIndex, side: usize, bytes: Bytes) {
        let carried = Carried::Bytes(bytes);
        // A frame on a link that was closed meanwhile is nobody's mistake here.
        let _ = self
            .net
            .send(&mut self.queue, (conn, side), carried, (true, false), true);
    }

    /// A hostile neighbor does something on one of its links.
    pub(crate) fn hostile_acts(&mut self, number: usize) {
        if self.net.healed {
            return;
        }
        self.plan_hostile(number);
        let links = self.hostile[number].links.len();
        if links == 0 {
            return;
        }
        let (conn, side) = self.hostile[number].links[self.hostiles.usize(0..links)];
        let overheard = self.hostile[number].overheard.len();
        let bytes = match self.hostiles.u8(0..8) {
            0..4 if overheard > 0 => {
                let place = self.hostiles.usize(0..overheard);
                mutated(&mut self.hostiles, &self.hostile[number].overheard[place])
            }
            4 => noise(&mut self.hostiles),
            _ => {
                let nodes = self.hosts.len();
                let mut bytes = Vec::new();
                nonsense(&mut self.hostiles, nodes).encode(&mut bytes);
                bytes.into()
            }
        };
        self.hostile_sends_bytes(conn, side, bytes);
    }
}

/// A frame with a few bytes changed, taken out or put in, its length put right most of the time.
fn mutated(rng: &mut Rng, frame: &Bytes) -> Bytes {
    let mut bytes = frame.to_vec();
    for _ in 0..rng.usize(1..4) {
        let place = rng.usize(0..bytes.len().max(1));
        match rng.u8(0..4) {
            0 => bytes.insert(place.min(bytes.len()), rng.u8(..)),
            1 if bytes.len() > 6 => {
                bytes.remove(place);
            }
            2 => {
                if let Some(byte) = bytes.get_mut(place) {
                    *byte = rng.u8(..);
                }
            }
            _ => {
                if let Some(byte) = bytes.get_mut(place) {
                    *byte ^= 1 << rng.u8(0..8);
                }
            }
        }
    }
    if rng.u8(0..8) > 0 && bytes.len() > 4 {
        let length = u32::try_from(bytes.len() - 4).unwrap_or(u32::MAX);
        bytes[..4].copy_from_slice(&length.to_be_bytes());
    }
    bytes.into()
}

fn noise(rng: &mut Rng) -> Bytes {
    let length = rng.usize(1..300);
    let mut bytes = vec![0; length + 4];
    rng.fill(&mut bytes);
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    bytes[..4].copy_from_slice(&length.to_be_bytes());
    bytes[4] %= 12;
    bytes.into()
}

/// Numbers where mistakes live.
fn edge(rng: &mut Rng) -> u64 {
    match rng.u8(0..6) {
        0 => 0,
        1 => 1,
        2 => u64::MAX,
        3 => u64::MAX - 1,
        4 => 1 << rng.u8(0..64),
        _ => rng.u64(..),
    }
}

fn version(rng: &mut Rng) -> Version {
    Version {
        seq: edge(rng),
        fingerprint: edge(rng),
    }
}

/// A well-formed frame that makes no sense.
fn nonsense(rng: &mut Rng, nodes: usize) -> Frame {
    let [who, other] = [0; 2].map(|_| node_id(rng.usize(0..nodes + 3)));
    let kind = LsaKind(rng.u8(0..5));
    match rng.u8(0..12) {
        0 => Frame::Digest {
            reply: rng.bool(),
            buckets: (0..64).map(|_| rng.u64(..)).collect(),
        },
        1 => Frame::Digest {
            reply: rng.bool(),
            buckets: Vec::new(),
        },
        2 => Frame::Summary {
            bucket: rng.u8(0..64),
            more: rng.bool(),
            entries: (0..rng.usize(0..SUMMARY_MAX))
                .map(|_| LsaSummary {
                    key: LsaKey {
                        node: node_id(rng.usize(0..nodes * 2)),
                        kind,
                    },
                    version: version(rng),
                })
                .collect(),
        },
        3 | 4 => {
            let body = LinksBody {
                links: vec![LinkEntry {
                    neighbor: other,
                    cost: rng.u32(1..100),
                    leaf: rng.bool(),
                }],
            };
            Frame::Lsas(vec![Lsa {
                key: LsaKey { node: who, kind },
                seq: edge(rng),
                instance: edge(rng),
                remaining_s: rng.u32(0..20_000),
                body: body.encode(),
            }])
        }
        5 => Frame::LsaAck(vec![LsaSummary {
            key: LsaKey { node: who, kind },
            version: version(rng),
        }]),
        6 => Frame::Credit { total: edge(rng) },
        7 => Frame::Goodbye(Goodbye {
            code: ErrorCode::Internal,
            message: "harm".repeat(rng.usize(0..200)),
        }),
        8 => Frame::Unknown {
            kind: rng.u8(12..255),
        },
        _ => {
            let body = match rng.u8(0..5) {
                0 => Body::Receipt(Receipt {
                    epoch: edge(rng),
                    received: {
                        let (a, b) = (edge(rng), edge(rng));
                        vec![(a.min(b), a.max(b))]
                    },
                    progress: vec![(edge(rng), edge(rng))],
                    busy: vec![(edge(rng), edge(rng))],
                    instance: edge(rng),
                    later: edge(rng),
                    earlier: rng.bool().then(|| EarlierEnd {
                        seq: edge(rng),
                        responses: edge(rng),
                        eof: Eof {
                            code: 0,
                            error: None,
                        },
                    }),
                }),
                1 => Body::Segment(Segment {
                    epoch: edge(rng),
                    seq: edge(rng),
                    offset: edge(rng),
                    piece: Piece {
                        sum: 1,
                        bytes: Bytes::from_static(b"harm"),
                    },
                }),
                2 => Body::Undeliverable(Undeliverable {
                    code: ErrorCode::NoRoute,
                    destination: other.clone(),
                    about: About::Message {
                        epoch: edge(rng),
                        seq: edge(rng),
                    },
                }),
                3 => Body::Echo { nonce: edge(rng) },
                _ => Body::Unknown { kind: rng.u8(..) },
            };
            Frame::Packet(Packet::new(who, other, rng.u8(..), &body))
        }
    }
}
