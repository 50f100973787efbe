//! Link-state advertisements: a node's own statements, flooded through the mesh.
//!
//! A node makes two kinds, or three where it has a certificate, versioned apart: [`LsaKind::LINKS`] (whom it is adjacent to) and
//! [`LsaKind::CAPABILITIES`] (what it can do), so that a change of one does not resend the
//! other. A leaf makes only the second; the routers it hangs on name it among their links.
//! The body stays as the bytes its originator made, whatever this version understands of it:
//! a router passes on what it does not know, and signatures stay valid.
//!
//! The lifetime travels as remaining seconds, never as a date.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::id::NodeId;
use crate::wire::{DecodeError, Reader, Writer, bytes_len, varint_len};

/// The largest LSA body, in bytes: room for a router with 500 leaves of long names. Fits a
/// frame of the smallest [`crate::frame::MAX_FRAME_FLOOR`].
pub const LSA_BODY_MAX: usize = 60 * 1024;
/// The fewest bytes of an LSA in a frame: a name of one letter, a kind, three small numbers and
/// an empty body.
pub(crate) const LSA_MIN: usize = 7;
/// The most links in one LSA.
pub const LINKS_MAX: usize = 4096;
/// The most plugins that one node advertises.
pub const PLUGINS_MAX: usize = 256;
/// The most actions of one advertised plugin.
pub const ACTIONS_MAX: usize = 64;
/// The most metadata pairs of one node.
pub const METADATA_MAX: usize = 64;
/// The longest metadata key, value or version text, in bytes.
pub const TEXT_MAX: usize = 256;
/// The highest link cost; a path's cost is a sum of at most 255 of them and fits 32 bits.
pub const COST_MAX: u32 = 65_535;

/// What an LSA states.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LsaKind(pub u8);

impl LsaKind {
    /// The node's adjacencies: [`LinksBody`].
    pub const LINKS: Self = Self(1);
    /// The node's plugins and metadata: [`CapabilitiesBody`].
    pub const CAPABILITIES: Self = Self(2);
    /// Who the node is: its certificates and keys, signed by themselves. In meshes with certificates only,
    /// where every LSA is signed, see [`crate::signed`].
    pub const IDENTITY: Self = Self(3);
}

/// What an LSA is about: newer ones with the same key replace older ones.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LsaKey {
    /// The originator.
    pub node: NodeId,
    /// What it states.
    pub kind: LsaKind,
}

/// Which of two LSAs with one key is newer: the one with the higher sequence number; with the
/// same number, which only two nodes with one id or a forger make, the one with the higher
/// fingerprint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// The sequence number.
    pub seq: u64,
    /// [`Lsa::fingerprint`].
    pub fingerprint: u64,
}

/// What there is of an LSA, without what it states.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LsaSummary {
    /// What it is about.
    pub key: LsaKey,
    /// Which version.
    pub version: Version,
}

/// One node's statement, with its envelope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lsa {
    /// What it is about.
    pub key: LsaKey,
    /// Grows with every statement of the node, over restarts too.
    pub seq: u64,
    /// Which start of the originator made it; two at once means two nodes with one id.
    pub instance: u64,
    /// Seconds it stays valid; shrinks on its way and while stored. 0: the originator takes
    /// it back.
    pub remaining_s: u32,
    /// What it states, as its originator encoded it.
    pub body: Bytes,
}

/// One adjacency in a [`LinksBody`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkEntry {
    /// The node at the other end.
    pub neighbor: NodeId,
    /// 1 to [`COST_MAX`].
    pub cost: u32,
    /// The neighbor is a leaf: it makes no [`LinksBody`] of its own, so this entry alone
    /// makes the link usable in both directions.
    pub leaf: bool,
}

/// Body of [`LsaKind::LINKS`]: the router's adjacencies, at most one entry a neighbor.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LinksBody {
    /// In order of neighbor id.
    pub links: Vec<LinkEntry>,
}

/// One advertised plugin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capability {
    /// The plugin's name.
    pub plugin: String,
    /// The plugin's version.
    pub version: String,
    /// Whether it says that it can work now.
    pub ready: bool,
    /// Its actions' names, in order.
    pub actions: Vec<String>,
}

/// Body of [`LsaKind::CAPABILITIES`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CapabilitiesBody {
    /// Version of the daemon, for people.
    pub software: String,
    /// Whether the node forwards for others.
    pub router: bool,
    /// Whether the node takes requests in bundles, see [`crate::bundle`].
    pub bundles: bool,
    /// Free metadata, for `--where`.
    pub metadata: BTreeMap<String, String>,
    /// In order of name.
    pub plugins: Vec<Capability>,
}

impl LsaSummary {
    /// Bytes that this summary takes in a frame.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        bytes_len(self.key.node.as_str().len()) + 1 + varint_len(self.version.seq) + 8
    }

    pub(crate) fn encode(&self, w: &mut Writer<'_>) {
        w.node(&self.key.node);
        w.u8(self.key.kind.0);
        w.varint(self.version.seq);
        w.fixed_u64(self.version.fingerprint);
    }

    pub(crate) fn decode(r: &mut Reader) -> Result<Self, DecodeError> {
        let key = LsaKey {
            node: r.node("LSA node")?,
            kind: LsaKind(r.u8("LSA kind")?),
        };
        let version = Version {
            seq: r.varint("LSA sequence")?,
            fingerprint: r.fixed_u64("LSA fingerprint")?,
        };
        Ok(Self { key, version })
    }
}

impl Lsa {
    /// The summary of this LSA.
    #[must_use]
    pub fn summary(&self) -> LsaSummary {
        LsaSummary {
            key: self.key.clone(),
            version: self.version(),
        }
    }

    /// Which version of its key this is.
    #[must_use]
    pub fn version(&self) -> Version {
        Version {
            seq: self.seq,
            fingerprint: self.fingerprint(),
        }
    }

    /// Tells statements with one key and one number apart: 0 when this LSA takes back what was
    /// stated, and otherwise a hash of the instance and the body, which is never 0. Part of the
    /// protocol: FNV-1a over the instance's eight big-endian bytes and the body, finished as
    /// `MurmurHash3` does. Not meant against forgers.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        if self.remaining_s == 0 {
            return 0;
        }
        let instance = self.instance.to_be_bytes();
        let bytes = instance.iter().chain(self.body.iter());
        let state = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |state, byte| {
            (state ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        let spread = |value: u64, factor: u64| (value ^ value >> 33).wrapping_mul(factor);
        let value = spread(state, 0xff51_afd7_ed55_8ccd);
        let value = spread(value, 0xc4ce_b9fe_1a85_ec53);
        (value ^ value >> 33).max(1)
    }

    pub(crate) fn encode(&self, w: &mut Writer<'_>) {
        w.node(&self.key.node);
        w.u8(self.key.kind.0);
        w.varint(self.seq);
        w.varint(self.instance);
        w.varint(u64::from(self.remaining_s));
        w.bytes(&self.body);
    }

    pub(crate) fn decode(r: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self {
            key: LsaKey {
                node: r.node("LSA node")?,
                kind: LsaKind(r.u8("LSA kind")?),
            },
            seq: r.varint("LSA sequence")?,
            instance: r.varint("LSA instance")?,
            remaining_s: r.varint_u32("LSA lifetime")?,
            body: r.bytes(LSA_BODY_MAX, "LSA body")?,
        })
    }

    /// Bytes that this LSA takes in a frame.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        bytes_len(self.key.node.as_str().len())
            + 1
            + varint_len(self.seq)
            + varint_len(self.instance)
            + varint_len(u64::from(self.remaining_s))
            + bytes_len(self.body.len())
    }
}

impl LinksBody {
    /// The bytes of this statement.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::new();
        let mut w = Writer(&mut out);
        w.varint(self.links.len() as u64);
        for link in &self.links {
            w.node(&link.neighbor);
            w.varint(u64::from(link.cost));
            w.u8(u8::from(link.leaf));
        }
        out.into()
    }

    /// What the bytes state. Costs outside 1 to [`COST_MAX`], more than [`LINKS_MAX`]
    /// entries and entries out of order or double are refused.
    pub fn decode(body: &Bytes) -> Result<Self, DecodeError> {
        let mut r = Reader::new(body.clone());
        let count = r.count(4, "links")?;
        if count > LINKS_MAX {
            let (size, limit) = (count as u64, LINKS_MAX as u64);
            return Err(DecodeError::TooLarge {
                what: "links",
                size,
                limit,
            });
        }
        let mut links: Vec<LinkEntry> = Vec::with_capacity(count);
        for _ in 0..count {
            let neighbor = r.node("neighbor")?;
            let cost = r.varint_u32("cost")?;
            let leaf = r.u8("leaf")? & 1 == 1;
            if !(1..=COST_MAX).contains(&cost) {
                return Err(DecodeError::Bad { what: "cost" });
            }
            if links.last().is_some_and(|last| last.neighbor >= neighbor) {
                return Err(DecodeError::Bad {
                    what: "order of links",
                });
            }
            links.push(LinkEntry {
                neighbor,
                cost,
                leaf,
            });
        }
        Ok(Self { links })
    }
}

impl CapabilitiesBody {
    /// The bytes of this statement. The caller keeps within the limits of this module.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::new();
        let mut w = Writer(&mut out);
        w.str(&self.software);
        w.u8(u8::from(self.router) | u8::from(self.bundles) << 1);
        w.varint(self.metadata.len() as u64);
        for (key, value) in &self.metadata {
            w.str(key);
            w.str(value);
        }
        w.varint(self.plugins.len() as u64);
        for plugin in &self.plugins {
            w.str(&plugin.plugin);
            w.str(&plugin.version);
            w.u8(u8::from(plugin.ready));
            w.varint(plugin.actions.len() as u64);
            for action in &plugin.actions {
                w.str(action);
            }
        }
        out.into()
    }

    /// What the bytes state, within the limits of this module.
    pub fn decode(body: &Bytes) -> Result<Self, DecodeError> {
        let limited = |what, count: usize, limit: usize| {
            if count > limit {
                let (size, limit) = (count as u64, limit as u64);
                return Err(DecodeError::TooLarge { what, size, limit });
            }
            Ok(count)
        };
        let mut r = Reader::new(body.clone());
        let software = r.str(TEXT_MAX, "software")?;
        let flags = r.u8("router")?;
        let (router, bundles) = (flags & 1 == 1, flags & 2 == 2);
        let mut metadata = BTreeMap::new();
        for _ in 0..limited("metadata", r.count(2, "metadata")?, METADATA_MAX)? {
            let key = r.str(TEXT_MAX, "metadata key")?;
            metadata.insert(key, r.str(TEXT_MAX, "metadata value")?);
        }
        let mut plugins = Vec::new();
        for _ in 0..limited("plugins", r.count(4, "plugins")?, PLUGINS_MAX)? {
            let plugin = r.str(crate::directive::NAME_MAX, "plugin name")?;
            let version = r.str(TEXT_MAX, "plugin version")?;
            let ready = r.u8("plugin readiness")? & 1 == 1;
            let mut actions = Vec::new();
            for _ in 0..limited("actions", r.count(1, "actions")?, ACTIONS_MAX)? {
                actions.push(r.str(crate::directive::NAME_MAX, "action name")?);
            }
            plugins.push(Capability {
                plugin,
                version,
                ready,
                actions,
            });
        }
        Ok(Self {
            software,
            router,
            bundles,
            metadata,
            plugins,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use alloc::vec;
    use proptest::prelude::*;

    #[test]
    fn bodies_survive() {
        let links = LinksBody {
            links: vec![
                LinkEntry {
                    neighbor: NodeId::new("a").unwrap(),
                    cost: 1,
                    leaf: false,
                },
                LinkEntry {
                    neighbor: NodeId::new("b").unwrap(),
                    cost: COST_MAX,
                    leaf: true,
                },
            ],
        };
        assert_eq!(LinksBody::decode(&links.encode()), Ok(links));
        let capabilities = CapabilitiesBody {
            software: "receptord 0.1.0".to_string(),
            router: true,
            bundles: true,
            metadata: [("site".to_string(), "berlin".to_string())].into(),
            plugins: vec![Capability {
                plugin: "runner".to_string(),
                version: "0.1.0".to_string(),
                ready: true,
                actions: vec!["execute".to_string()],
            }],
        };
        assert_eq!(
            CapabilitiesBody::decode(&capabilities.encode()),
            Ok(capabilities)
        );
    }

    #[test]
    fn double_links_and_bad_costs_are_refused() {
        let entry = |cost| LinkEntry {
            neighbor: NodeId::new("a").unwrap(),
            cost,
            leaf: false,
        };
        for links in [
            vec![entry(1), entry(1)],
            vec![entry(0)],
            vec![entry(COST_MAX + 1)],
        ] {
            assert!(LinksBody::decode(&LinksBody { links }.encode()).is_err());
        }
    }

    /// Written down once: a change of these numbers splits old and new versions of the mesh.
    #[test]
    fn fingerprints_never_change() {
        let lsa = |instance, remaining_s, body: &'static [u8]| Lsa {
            key: LsaKey {
                node: NodeId::new("a").unwrap(),
                kind: LsaKind::LINKS,
            },
            seq: 1,
            instance,
            remaining_s,
            body: Bytes::from_static(body),
        };
        assert_eq!(lsa(1, 60, b"body").fingerprint(), FINGERPRINT);
        assert_eq!(lsa(1, 9, b"body").fingerprint(), FINGERPRINT);
        assert_ne!(lsa(2, 60, b"body").fingerprint(), FINGERPRINT);
        assert_ne!(lsa(1, 60, b"bodz").fingerprint(), FINGERPRINT);
        assert_eq!(lsa(1, 0, b"").fingerprint(), 0);
    }

    const FINGERPRINT: u64 = 0xd8d1_73b7_c5cf_13f5;

    proptest! {
        #[test]
        fn random_bodies_never_panic(input: Vec<u8>) {
            let input = Bytes::from(input);
            let _ = LinksBody::decode(&input);
            let _ = CapabilitiesBody::decode(&input);
        }
    }
}
