//! What is to be said of messages in custody: one word for many messages.
//!
//! Gathers what one turn has to say, by whom it is for and what it says. What one turn can say is
//! bounded by what it can hear and by what is kept. Never sends anything.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use receptor_proto::NodeId;
use receptor_proto::packet::{Custody, Holding, RANGES_MAX};

/// To whom, what, whether they were never sent on, and of which flow: its origin, recipient and epoch.
type Topic = (NodeId, Holding, bool, NodeId, NodeId, u64);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Notices(BTreeMap<Topic, BTreeSet<u64>>);

impl Notices {
    pub(super) fn add(&mut self, topic: Topic, seq: u64) {
        self.0.entry(topic).or_default().insert(seq);
    }

    /// All of it, each with whom it is for.
    pub(super) fn take(&mut self) -> Vec<(NodeId, Custody)> {
        let mut all = Vec::new();
        for (topic, messages) in core::mem::take(&mut self.0) {
            let (to, holding, never_sent, origin, recipient, epoch) = topic;
            let mut runs: Vec<(u64, u64)> = Vec::new();
            for seq in messages {
                match runs.last_mut() {
                    Some((_, last)) if *last + 1 == seq => *last = seq,
                    Some(_) | None => runs.push((seq, seq)),
                }
            }
            for runs in runs.chunks(RANGES_MAX) {
                let custody = Custody {
                    holding,
                    origin: origin.clone(),
                    recipient: recipient.clone(),
                    epoch,
                    messages: runs.to_vec(),
                    never_sent,
                };
                all.push((to.clone(), custody));
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_messages_make_few_words() {
        let node = |name: &str| NodeId::new(name).unwrap();
        let topic = |holding| (node("o"), holding, false, node("o"), node("r"), 7);
        let mut notices = Notices::default();
        for seq in (1..=500).chain([502]) {
            notices.add(topic(Holding::Kept), seq);
        }
        notices.add(topic(Holding::Refused), 501);
        for seq in 0..=RANGES_MAX as u64 {
            let topic = (node("x"), Holding::Done, false, node("o"), node("r"), 7);
            notices.add(topic, 2 * seq);
        }
        let all = notices.take();
        let said: Vec<_> = all
            .iter()
            .map(|(to, custody)| (to.as_str(), custody.holding, custody.messages.len()))
            .collect();
        assert_eq!(
            said,
            [
                ("o", Holding::Kept, 2),
                ("o", Holding::Refused, 1),
                ("x", Holding::Done, RANGES_MAX),
                ("x", Holding::Done, 1),
            ]
        );
        assert_eq!(all[0].1.messages, [(1, 500), (502, 502)]);
        assert!(notices.take().is_empty());
    }
}
