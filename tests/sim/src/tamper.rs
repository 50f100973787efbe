//! Members that mean harm: routers with certificates of their own that change, redirect, repeat and forge what
//! passes through them, and say things in the names of others.
//!
//! What is asked of the mesh: that no statement is used that its node did not make, that no message runs that nobody
//! sent or runs twice, that nothing is confirmed that did not arrive; and that all comes right once they stop. They
//! can delay and lose what goes through them, so nothing is asked of that while it lasts.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use fastrand::Rng;
use receptor_proto::ErrorCode;
use receptor_proto::NodeId;
use receptor_proto::frame::Frame;
use receptor_proto::lsa::{LinkEntry, LinksBody, Lsa, LsaKind};
use receptor_proto::packet::About;
use receptor_proto::packet::sealed::Identity;
use receptor_proto::packet::{
    Body, Custody, Holding, Packet, Priority, Receipt, Undeliverable, kind,
};

use crate::event::NodeIndex;
use crate::options::{Certificates, Options};
use crate::world::{World, node_id};

/// What a traitor remembers, to say it again.
const REMEMBERED: usize = 256;
/// One frame in so many is tampered with.
const ONE_IN: u32 = 8;

/// What a traitor has seen.
#[derive(Debug, Default)]
pub(crate) struct Traitor {
    packets: VecDeque<Packet>,
    lsas: VecDeque<Lsa>,
}

/// Which nodes mean harm.
pub(crate) fn plan(
    options: &Options,
    rng: &mut Rng,
    routers: &[bool],
) -> BTreeMap<NodeIndex, Traitor> {
    if options.certificates == Certificates::Off {
        return BTreeMap::new();
    }
    let routers: Vec<NodeIndex> = (0..routers.len()).filter(|at| routers[*at]).collect();
    let pick = |_| (routers[rng.usize(0..routers.len())], Traitor::default());
    (0..options.traitors.min(routers.len())).map(pick).collect()
}

fn remember<T>(all: &mut VecDeque<T>, one: T, rng: &mut Rng) {
    if all.len() < REMEMBERED {
        all.push_back(one);
    } else {
        let place = rng.usize(0..REMEMBERED);
        all[place] = one;
    }
}

impl World {
    /// What really goes out in place of a frame. Data keeps its size, so that credit stays what it is.
    pub(crate) fn tamper(&mut self, node: NodeIndex, frame: Frame) -> Vec<Frame> {
        let Some(traitor) = self.traitors.get_mut(&node) else {
            return vec![frame];
        };
        let rng = &mut self.hostiles;
        let nodes = self.hosts.len();
        if let Frame::Packet(packet) = &frame {
            remember(&mut traitor.packets, packet.clone(), rng);
        } else if let Frame::Lsas(lsas) = &frame {
            for lsa in lsas {
                remember(&mut traitor.lsas, lsa.clone(), rng);
            }
        } else {
            return vec![frame];
        }
        if !self.troubled || rng.u32(0..ONE_IN) > 0 {
            return vec![frame];
        }
        self.stats.tampered += 1;
        let said = match rng.u8(0..4) {
            0 => again(rng, traitor),
            1 => lie(rng, traitor, nodes),
            _ => None,
        };
        let mut frames = if let Frame::Packet(packet) = frame {
            vec![Frame::Packet(changed(rng, packet, nodes))]
        } else if let Frame::Lsas(lsas) = frame {
            let forge = |lsa| forged(rng, lsa, traitor, nodes);
            vec![Frame::Lsas(lsas.into_iter().map(forge).collect())]
        } else {
            vec![frame]
        };
        frames.extend(said);
        frames
    }
}

/// A name of the same length, so that the packet has the same size.
fn other_name(rng: &mut Rng, name: &NodeId, nodes: usize) -> NodeId {
    let other = node_id(rng.usize(0..nodes));
    if other.as_str().len() == name.as_str().len() {
        other
    } else {
        name.clone()
    }
}

fn changed(rng: &mut Rng, mut packet: Packet, nodes: usize) -> Packet {
    match rng.u8(0..6) {
        0 => packet.hop_limit = 0,
        1 => packet.destination = other_name(rng, &packet.destination, nodes),
        2 => packet.source = other_name(rng, &packet.source, nodes),
        3 => packet.kind = rng.u8(..),
        _ => {
            let mut body = packet.body.to_vec();
            if let Some(at) = (!body.is_empty()).then(|| rng.usize(0..body.len())) {
                body[at] ^= 1 << rng.u8(0..8);
            }
            packet.body = body.into();
        }
    }
    packet
}

fn forged(rng: &mut Rng, mut lsa: Lsa, traitor: &Traitor, nodes: usize) -> Lsa {
    let old = &traitor.lsas[rng.usize(0..traitor.lsas.len())];
    match rng.u8(0..9) {
        0 => lsa.seq += rng.u64(1..1 << 40),
        1 => lsa.seq = lsa.seq.saturating_sub(rng.u64(1..100)),
        2 => lsa.instance += 1,
        3 => lsa.remaining_s = 0,
        4 => lsa.remaining_s = u32::MAX,
        5 => lsa.key.node = node_id(rng.usize(0..nodes)),
        6 => lsa.body = old.body.clone(),
        7 => {
            let links = vec![LinkEntry {
                neighbor: node_id(rng.usize(0..nodes)),
                cost: 1,
                leaf: rng.bool(),
            }];
            lsa.key.kind = LsaKind::LINKS;
            lsa.body = LinksBody { links }.encode();
            lsa.seq += 1;
        }
        _ => lsa = old.clone(),
    }
    lsa
}

/// Something that went through once. Only what takes no credit, and statements.
fn again(rng: &mut Rng, traitor: &Traitor) -> Option<Frame> {
    if rng.bool() && !traitor.lsas.is_empty() {
        let lsa = traitor.lsas[rng.usize(0..traitor.lsas.len())].clone();
        return Some(Frame::Lsas(vec![lsa]));
    }
    let packets = traitor.packets.len();
    let packet = (packets > 0).then(|| traitor.packets[rng.usize(0..packets)].clone())?;
    Some(Frame::Packet(packet))
}

/// Something in another's name.
fn lie(rng: &mut Rng, traitor: &Traitor, nodes: usize) -> Option<Frame> {
    let [who, whom, third] = [0; 3].map(|_| node_id(rng.usize(0..nodes)));
    let epochs: Vec<u64> = traitor.lsas.iter().map(|lsa| lsa.instance).collect();
    let epoch = epochs.get(rng.usize(0..epochs.len().max(1))).copied()?;
    let (first, last) = (1, rng.u64(1..1000));
    let body = match rng.u8(0..4) {
        0 => Body::Receipt(Receipt {
            epoch,
            received: vec![(first, last)],
            instance: epoch,
            ..Receipt::default()
        }),
        1 => Body::Custody(Custody {
            holding: [
                Holding::Kept,
                Holding::Done,
                Holding::Dropped,
                Holding::GivenUp,
            ][rng.usize(0..4)],
            origin: whom.clone(),
            recipient: third,
            epoch,
            messages: vec![(first, last)],
            never_sent: rng.bool(),
        }),
        2 => Body::Undeliverable(Undeliverable {
            code: ErrorCode::NoRoute,
            destination: third,
            about: About::Message { epoch, seq: first },
        }),
        _ => {
            let identity = Identity {
                ask: true,
                instance: epoch,
                statement: Bytes::from(vec![rng.u8(..); rng.usize(0..200)]),
            };
            return Some(Frame::Packet(Packet {
                hop_limit: 30,
                hops: 0,
                priority: Priority::Control,
                source: who,
                destination: whom,
                kind: kind::IDENTITY,
                body: identity.encode(),
            }));
        }
    };
    let mut packet = Packet::new(who, whom, 30, &body);
    if rng.bool() {
        packet.kind |= kind::SEALED;
    }
    Some(Frame::Packet(packet))
}
