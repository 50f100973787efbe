//! LSAs of nodes that are not known yet. They are not acknowledged, so that whatever finds no room here
//! comes again.
//!
//! A neighbor sends statements of identity first, so little ever waits: what overtook one over another
//! link, and what an attacker makes up.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use receptor_proto::NodeId;
use receptor_proto::lsa::{Lsa, LsaKey, LsaKind};

use crate::LinkId;

/// The most LSAs that wait of what one link brought.
const EACH_MAX: usize = 64;
/// Their bytes.
const EACH_BYTES: usize = 256 * 1024;
/// Bytes of all.
const BYTES: usize = 4 << 20;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    by_node: BTreeMap<LsaKey, BTreeMap<LinkId, Lsa>>,
    by_link: BTreeMap<LinkId, (usize, usize)>,
    bytes: usize,
}

impl Waiting {
    /// Keeps an LSA, in place of an older one over the same link, if there is room.
    pub(super) fn keep(&mut self, link: LinkId, lsa: Lsa) {
        let size = lsa.encoded_len();
        if let Some(before) = self.by_node.get(&lsa.key).and_then(|all| all.get(&link)) {
            if before.version() >= lsa.version() {
                return;
            }
            let key = before.key.clone();
            self.remove(&key, link);
        }
        let (count, bytes) = self.by_link.get(&link).copied().unwrap_or_default();
        if count >= EACH_MAX || bytes + size > EACH_BYTES || self.bytes + size > BYTES {
            return;
        }
        self.by_link.insert(link, (count + 1, bytes + size));
        self.bytes += size;
        let all = self.by_node.entry(lsa.key.clone()).or_default();
        all.insert(link, lsa);
    }

    fn remove(&mut self, key: &LsaKey, link: LinkId) -> Option<Lsa> {
        let all = self.by_node.get_mut(key)?;
        let lsa = all.remove(&link)?;
        if all.is_empty() {
            self.by_node.remove(key);
        }
        let size = lsa.encoded_len();
        self.bytes -= size;
        if let Some((count, bytes)) = self.by_link.get_mut(&link) {
            *count -= 1;
            *bytes -= size;
            if *count == 0 {
                self.by_link.remove(&link);
            }
        }
        Some(lsa)
    }

    /// Takes all that waits for this node to be known, with the links that it came over.
    pub(super) fn take(&mut self, node: &NodeId) -> Vec<(LinkId, Lsa)> {
        let key = |kind| LsaKey {
            node: node.clone(),
            kind: LsaKind(kind),
        };
        let range = key(0)..=key(u8::MAX);
        let keys: Vec<LsaKey> = self.by_node.range(range).map(|(k, _)| k.clone()).collect();
        let mut taken = Vec::new();
        for key in keys {
            let links: Vec<LinkId> = self
                .by_node
                .get(&key)
                .into_iter()
                .flat_map(BTreeMap::keys)
                .copied()
                .collect();
            for link in links {
                taken.extend(self.remove(&key, link).map(|lsa| (link, lsa)));
            }
        }
        taken
    }

    pub(super) fn forget_link(&mut self, link: LinkId) {
        if !self.by_link.contains_key(&link) {
            return;
        }
        let keys: Vec<LsaKey> = self
            .by_node
            .iter()
            .filter(|(_, all)| all.contains_key(&link))
            .map(|(key, _)| key.clone())
            .collect();
        for key in keys {
            self.remove(&key, link);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn lsa(name: &str, seq: u64, size: usize) -> Lsa {
        Lsa {
            key: LsaKey {
                node: NodeId::new(name).unwrap(),
                kind: LsaKind::LINKS,
            },
            seq,
            instance: 1,
            remaining_s: 60,
            body: Bytes::from(alloc::vec![0; size]),
        }
    }

    #[test]
    fn a_neighbor_fills_its_own_room_and_no_more() {
        let mut waiting = Waiting::default();
        for n in 0..10_000 {
            waiting.keep(LinkId(1), lsa(&alloc::format!("n{n}"), 1, 1000));
        }
        assert_eq!(waiting.by_node.len(), EACH_MAX);
        for link in 2..1000 {
            for n in 0..100 {
                waiting.keep(LinkId(link), lsa(&alloc::format!("m{n}"), 1, 50_000));
            }
        }
        assert!(waiting.bytes <= BYTES, "{}", waiting.bytes);
        for link in 1..1000 {
            waiting.forget_link(LinkId(link));
        }
        assert_eq!((waiting.bytes, waiting.by_node.len()), (0, 0));
        assert!(waiting.by_link.is_empty());
    }

    #[test]
    fn the_newest_of_each_link_waits() {
        let mut waiting = Waiting::default();
        waiting.keep(LinkId(1), lsa("a", 2, 10));
        waiting.keep(LinkId(1), lsa("a", 1, 10));
        waiting.keep(LinkId(1), lsa("a", 3, 10));
        waiting.keep(LinkId(2), lsa("a", 1, 10));
        waiting.keep(LinkId(2), lsa("b", 1, 10));
        let taken = waiting.take(&NodeId::new("a").unwrap());
        let seen: Vec<_> = taken.iter().map(|(link, lsa)| (link.0, lsa.seq)).collect();
        assert_eq!(seen, [(1, 3), (2, 1)]);
        assert_eq!(waiting.take(&NodeId::new("b").unwrap()).len(), 1);
        assert_eq!(waiting.bytes, 0);
    }
}
