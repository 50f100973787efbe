//! Watches, from outside, that nothing is acknowledged before it is on a disk.
//!
//! Learns from the packets that origins send which message has which place in which flow, and
//! from the stores what is durable; then reads every receipt as it leaves its node. Never looks
//! into a core.

use std::collections::BTreeMap;

use receptor_mesh::Record;
use receptor_proto::packet::{Body, Holding, Message, MessageKind, Packet, kind};
use receptor_proto::{MessageId, NodeId};

use crate::event::NodeIndex;
use crate::ledger::Life;
use crate::store::Store;

/// One flow: origin, recipient, epoch.
type Flow = (NodeIndex, NodeIndex, u64);

/// What has one place in a flow.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Place {
    work: MessageId,
    kind: MessageKind,
    volatile: bool,
}

/// All flows of a run.
#[derive(Debug, Default)]
pub(crate) struct Receipts {
    flows: BTreeMap<Flow, BTreeMap<u64, Place>>,
    /// What each life of a recipient's data holds or held of a flow, as runs.
    durable: BTreeMap<(Flow, u32), Runs>,
    /// What each life of another node's data holds or held of a flow.
    in_custody: BTreeMap<(Flow, (NodeIndex, u32)), Runs>,
    /// Below which number each origin has said that it is done with all of a flow.
    floors: BTreeMap<Flow, u64>,
}

/// Numbers, as first and last of runs that do not touch.
#[derive(Debug, Default)]
struct Runs(BTreeMap<u64, u64>);

impl Runs {
    fn insert(&mut self, mut first: u64, mut last: u64) {
        while let Some((&start, &end)) = self.0.range(..=last.saturating_add(1)).next_back() {
            if end.saturating_add(1) < first {
                break;
            }
            self.0.remove(&start);
            (first, last) = (first.min(start), last.max(end));
        }
        self.0.insert(first, last);
    }

    fn contains(&self, number: u64) -> bool {
        self.0
            .range(..=number)
            .next_back()
            .is_some_and(|(_, end)| *end >= number)
    }
}

impl Receipts {
    /// A node puts a packet on a link. Gives back the messages that it confirms although neither
    /// they nor their numbers are on its disk and their origins still count on it; nor is it over there
    /// with their work, if it says so.
    pub(crate) fn sent(
        &mut self,
        nodes: &BTreeMap<NodeId, NodeIndex>,
        node: NodeIndex,
        life: Life,
        packet: &Packet,
        revealed: Option<Body>,
        store: &Store,
    ) -> Result<Vec<Place>, String> {
        let mut loose = Vec::new();
        // What was kept on its way is passed on by its origin as by any other node.
        if nodes.get(&packet.source) != Some(&node) || kind::plain(packet.kind) == kind::KEPT {
            return Ok(loose);
        }
        let Some(&to) = nodes.get(&packet.destination) else {
            return Ok(loose);
        };
        let body = match revealed {
            Some(body) => body,
            None => Body::decode(packet.kind, packet.body.clone())
                .map_err(|error| format!("node {node} sends a bad body: {error}"))?,
        };
        match body {
            Body::Message(message) => self.places(node, to, message)?,
            Body::Entrusted { recipient, message } => {
                if let Some(&to) = nodes.get(&recipient) {
                    self.places(node, to, message)?;
                }
            }
            Body::Custody(custody) if custody.holding == Holding::Kept => {
                let ends = (nodes.get(&custody.origin), nodes.get(&custody.recipient));
                let (Some(&origin), Some(&recipient)) = ends else {
                    return Ok(loose);
                };
                let kept = ((origin, recipient, custody.epoch), (node, life.data));
                let runs = self.in_custody.get(&kept);
                for (first, last) in custody.messages {
                    let durable = |seq| runs.is_some_and(|runs| runs.contains(seq));
                    if let Some(seq) = (first..=last).find(|seq| !durable(*seq)) {
                        return Err(format!(
                            "node {node} says that it keeps {seq} of {kept:?}, which is not on its disk"
                        ));
                    }
                }
            }
            Body::Receipt(receipt) => {
                let flow = (to, node, receipt.epoch);
                let Some(places) = self.flows.get(&flow) else {
                    return Ok(loose);
                };
                let durable = self.durable.get(&(flow, life.data));
                let ended = receipt.earlier.map(|earlier| earlier.seq);
                for (first, last) in receipt.received {
                    for (seq, place) in places.range(first..=last) {
                        let kept = durable.is_some_and(|runs| runs.contains(*seq));
                        let over = ended == Some(*seq) && store.is_over(place.work);
                        if !(place.volatile || kept || over || self.is_done(flow, *seq)) {
                            loose.push(place.clone());
                        }
                    }
                }
            }
            Body::Echo { .. }
            | Body::EchoReply(_)
            | Body::Undeliverable(_)
            | Body::Kept { .. }
            | Body::Custody(_)
            | Body::Inquiry(_)
            | Body::Segment(_)
            | Body::Unknown { .. } => {}
        }
        Ok(loose)
    }

    /// An origin sends a message.
    fn places(&mut self, node: NodeIndex, to: NodeIndex, message: Message) -> Result<(), String> {
        let place = Place {
            work: message.work,
            kind: message.kind,
            volatile: message.volatile,
        };
        let key = (node, to, message.epoch);
        if message.floor > 0 {
            let floor = self.floors.entry(key).or_default();
            *floor = message.floor.max(*floor);
        }
        let flow = self.flows.entry(key).or_default();
        let known = flow.entry(message.seq).or_insert_with(|| place.clone());
        if *known != place {
            return Err(format!(
                "node {node} sends {place:?} to {to} as {} of epoch {}, which is {known:?}",
                message.seq, message.epoch
            ));
        }
        Ok(())
    }

    /// Whether the origin has said that nothing is owed to this message any more: it is in other
    /// hands already, or its sender was told that it was given up. A floor stands for all earlier
    /// epochs, too.
    fn is_done(&self, (from, to, epoch): Flow, seq: u64) -> bool {
        let later = (from, to, epoch + 1)..=(from, to, u64::MAX);
        let floor = self.floors.get(&(from, to, epoch));
        floor.is_some_and(|floor| seq < *floor) || self.floors.range(later).next().is_some()
    }

    /// These records of a node are durable.
    pub(crate) fn stored(
        &mut self,
        nodes: &BTreeMap<NodeId, NodeIndex>,
        node: NodeIndex,
        life: Life,
        records: &[Record],
    ) {
        for record in records {
            match record {
                Record::Incoming {
                    origin, message, ..
                } => {
                    if let Some(&from) = nodes.get(origin) {
                        let flow = (from, node, message.epoch);
                        let runs = self.durable.entry((flow, life.data)).or_default();
                        runs.insert(message.seq, message.seq);
                    }
                }
                Record::Received {
                    origin,
                    epoch,
                    floor,
                    ranges,
                } => {
                    if let Some(&from) = nodes.get(origin) {
                        let flow = (from, node, *epoch);
                        let runs = self.durable.entry((flow, life.data)).or_default();
                        if *floor > 0 {
                            runs.insert(0, *floor - 1);
                        }
                        for (first, last) in ranges {
                            runs.insert(*first, *last);
                        }
                    }
                }
                Record::Transit {
                    origin,
                    recipient,
                    message,
                    ..
                } => {
                    if let (Some(&from), Some(&to)) = (nodes.get(origin), nodes.get(recipient)) {
                        let flow = (from, to, message.epoch);
                        let runs = self
                            .in_custody
                            .entry((flow, (node, life.data)))
                            .or_default();
                        runs.insert(message.seq, message.seq);
                    }
                }
                Record::Outgoing { .. } | Record::Started { .. } => {}
            }
        }
    }
}

/// A packet in a few words.
pub(crate) fn brief(packet: &Packet) -> String {
    let body = match Body::decode(packet.kind, packet.body.clone()) {
        Ok(Body::Message(message)) => {
            let kind = match &message.kind {
                MessageKind::Request { directive, .. } => format!("request {directive}"),
                MessageKind::Response { serial, eof, .. } => match eof {
                    None => format!("response {serial}"),
                    Some(eof) => format!("response {serial}, the last: {eof:?}"),
                },
                MessageKind::Cancel { .. } => "cancel".to_string(),
            };
            format!(
                "{kind} of {} ({}/{} floor {}, {} bytes{})",
                message.work,
                message.epoch % 100_000,
                message.seq,
                message.floor,
                message.size,
                if message.volatile { ", volatile" } else { "" }
            )
        }
        Ok(Body::Segment(segment)) => format!(
            "segment {}/{} at {}",
            segment.epoch % 100_000,
            segment.seq,
            segment.offset
        ),
        Ok(body) => format!("{body:?}"),
        Err(error) => format!("a bad body: {error}"),
    };
    format!(
        "packet {}->{} {} {body}",
        packet.source, packet.destination, packet.hop_limit
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_join() {
        let mut runs = Runs::default();
        for number in [5, 1, 3, 4, 9] {
            runs.insert(number, number);
        }
        assert_eq!(
            runs.0.into_iter().collect::<Vec<_>>(),
            [(1, 1), (3, 5), (9, 9)]
        );
        let mut runs = Runs::default();
        runs.insert(1, 1);
        runs.insert(9, 12);
        runs.insert(0, 10);
        assert_eq!(runs.0.iter().next(), Some((&0, &12)));
        assert!(runs.contains(12) && !runs.contains(13));
    }
}
