//! Who is who in a mesh: certificates with node ids, trust, signatures, and messages sealed from node to node.
//!
//! ```text
//! files of the operator ──▶ Credentials ─┬─▶ tls::Configs      who may make a link, and which ids it may use
//!                           Trust ───────┤
//! file in the data dir ───▶ SealKeys ────┴─▶ Member            Statement: "this is my certificate, these are my keys"
//!                                             ├ sign, verify   a node's own statements (LSAs)
//!                                             └ seal, open     what goes from node to node, end to end
//! ```
//!
//! Everything is computed from arguments: this crate opens no file, knows no socket, and takes the time as an
//! argument. The one thing that it takes from the system is randomness, for keys. Nothing in it prints a
//! private key, not even by `Debug`.
//!
//! All symmetric and signature algorithms are those of `ring`, also in TLS, so that a program has one
//! implementation of each. Of HPKE (RFC 9180) only the key agreement and the exporter are used; see [`Member`].

#![forbid(unsafe_code)]

mod cache;
mod certificate;
mod context;
mod credentials;
mod date;
mod error;
mod member;
mod san;
mod seal_keys;
mod statement;
pub mod tls;
mod trust;

#[cfg(test)]
mod testing;

pub use certificate::{Certificate, Fingerprint, FingerprintError, read_certificates};
pub use context::{OVERHEAD, ROTATE_AFTER, ROTATE_AFTER_PACKETS, TEXT_AT};
pub use credentials::{Credentials, Purpose, SIGNATURE_MAX, SignError, SigningKey, VerifyingKey};
pub use date::date;
pub use error::{LoadError, Refusal};
pub use member::{INCOMING_MAX, Learned, Member, PEERS_MAX, Recheck, fingerprint};
pub use rustls_pki_types::{CertificateDer, UnixTime};
pub use san::{NODE_IDS_MAX, NodeIdsError};
pub use seal_keys::{KEYS_MAX, KeyId, KeysError, SealKeys, SealPublicKey};
pub use statement::{STATEMENT_MAX, Statement};
pub use trust::{ANCHORS_MAX, CHAIN_BYTES_MAX, CHAIN_MAX, Role, Trust, Verified};
