//! The hash behind [`receptor_proto::frame::Frame::Digest`]. It is part of the protocol: two
//! nodes of any version must come to the same numbers.
//!
//! FNV-1a over the node id's bytes gives the node's state; its finished value's upper six bits
//! are the node's bucket. An LSA continues that state with its kind byte, the eight big-endian
//! bytes of its sequence number and those of its fingerprint, and is finished likewise. A bucket's digest is the
//! wrapping sum of its LSAs. Not meant against forgers: whoever can make LSAs needs no collision.

use receptor_proto::NodeId;
use receptor_proto::frame::DIGEST_BUCKETS;
use receptor_proto::lsa::{LsaKind, Version};

const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0000_0100_0000_01b3;

/// The state of a node's hash, before it is finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NodeHash(u64);

impl NodeHash {
    pub(super) fn new(node: &NodeId) -> Self {
        Self(continued(OFFSET, node.as_str().as_bytes()))
    }

    /// Which bucket the node's LSAs are in.
    pub(super) fn bucket(self) -> usize {
        const SHIFT: u32 = u64::BITS - DIGEST_BUCKETS.trailing_zeros();
        usize::try_from(finished(self.0) >> SHIFT).unwrap_or_default()
    }

    /// What an LSA of this node adds to the digest of its bucket.
    pub(super) fn lsa(self, kind: LsaKind, version: Version) -> u64 {
        let state = continued(self.0, &[kind.0]);
        let state = continued(state, &version.seq.to_be_bytes());
        finished(continued(state, &version.fingerprint.to_be_bytes()))
    }
}

/// Mixes a value into a running hash of anything else that never leaves this node.
pub(super) fn mixed(state: u64, value: u64) -> u64 {
    finished(state ^ value.wrapping_mul(PRIME))
}

fn continued(state: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(state, |state, byte| {
        (state ^ u64::from(*byte)).wrapping_mul(PRIME)
    })
}

/// The finisher of `MurmurHash3`: spreads every bit over the whole word.
fn finished(mut value: u64) -> u64 {
    value ^= value >> 33;
    value = value.wrapping_mul(0xff51_afd7_ed55_8ccd);
    value ^= value >> 33;
    value = value.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    value ^ (value >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written down once: a change of these numbers splits old and new versions of the mesh.
    #[test]
    fn the_numbers_never_change() {
        let hash = NodeHash::new(&NodeId::new("node-a").unwrap());
        assert_eq!(hash.0, 0xe697_1cc2_2078_cb53);
        assert_eq!(hash.bucket(), 18);
        let version = Version {
            seq: 1 << 20,
            fingerprint: 7,
        };
        assert_eq!(hash.lsa(LsaKind::LINKS, version), 0xc765_79f9_27b6_2b4a);
    }
}
