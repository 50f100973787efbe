//! What a node can do because it has a certificate: prove who it is, believe others, seal and open.
//!
//! Owns the seam alone. What is behind it has the keys; the core decides what is signed, what is believed
//! without asking, and how much of this work a neighbor may cause. A node without it signs, checks and
//! seals nothing.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Debug;

use bytes::{Bytes, BytesMut};
use receptor_proto::NodeId;

use crate::Instant;

/// A node's keys and whom it believes. Does no I/O. Costs are those of public-key work, 0.1 to 1 ms, where
/// it is said, and of symmetric work otherwise.
pub trait Security: Debug {
    /// This node's own statement of who it is. Another one from time to time.
    fn identity(&self) -> Bytes;

    /// Whether payloads are hidden from nodes on their way; what they come from is proved in any case.
    fn hides(&self) -> bool;

    /// Signs a statement of this node. Public-key work. Empty: it could not be done, and nothing is stated.
    fn sign(&mut self, statement: &[u8]) -> Vec<u8>;

    /// The statement of who `node` is that is believed now.
    fn known(&self, node: &NodeId) -> Option<Bytes>;

    /// Believes a statement of who `node` is, if it proves itself. Public-key work unless it is the one that
    /// [`Self::known`] has.
    ///
    /// # Errors
    ///
    /// Why it is not believed. What was known of the node stays.
    fn learn(
        &mut self,
        now: Instant,
        node: &NodeId,
        identity: &Bytes,
    ) -> Result<Learned, Disbelief>;

    /// Whether `node`, which is known, or is this node, signed this. Public-key work.
    fn verify(&mut self, node: &NodeId, statement: &[u8], signature: &[u8]) -> bool;

    /// Appends these parts as what only `to` can open, only as coming from this node, and only with the same `bound`.
    /// Public-key work once for many packets.
    ///
    /// # Errors
    ///
    /// `to` is not known, or not with a key that can be used. Then nothing is appended.
    fn seal(
        &mut self,
        now: Instant,
        to: &NodeId,
        bound: &[u8],
        plain: &[&[u8]],
        out: &mut Vec<u8>,
    ) -> Result<(), Stranger>;

    /// A hash that nobody can find other bytes for.
    fn fingerprint(&self, bytes: &[u8]) -> u64;

    /// Whether opening this takes no public-key work.
    fn opens_cheaply(&self, from: &NodeId, sealed: &[u8]) -> bool;

    /// Opens what `from` sealed to this node with the same `bound`. Replays are for the caller to recognise.
    ///
    /// # Errors
    ///
    /// Why it cannot be opened.
    fn open(
        &mut self,
        now: Instant,
        from: &NodeId,
        bound: &[u8],
        sealed: BytesMut,
    ) -> Result<Bytes, NotOpened>;

    /// Looks again at what changes with time: called every few seconds, and when the driver says that
    /// something is different.
    fn recheck(&mut self, now: Instant) -> Changes;
}

/// What a statement of who a node is was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Learned {
    /// News.
    New,
    /// The one that is known, or one that it has replaced.
    Known,
}

/// Why a statement is not believed, for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Disbelief(pub String);

/// Nothing can be sealed to this node before its statement is learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the node's identity is not known")]
pub struct Stranger;

/// Why something cannot be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotOpened {
    /// A statement of its source must be learned first.
    #[error("its source's identity is not known")]
    Stranger,
    /// It is sealed to a key that this node does not have, or does not have any more.
    #[error("it is sealed to a key that this node does not have")]
    NotOurs,
    /// It is not what its source sealed to this node.
    #[error("it is not authentic")]
    Forged,
}

/// What [`Security::recheck`] found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// [`Security::identity`] is another one, or signs with another key.
    pub own: bool,
    /// Others are believed, or not believed, for other reasons than before.
    pub trust: bool,
    /// Who is believed no longer, and why.
    pub refused: Vec<(NodeId, Disbelief)>,
    /// There is more to look at, soon.
    pub more: bool,
}
