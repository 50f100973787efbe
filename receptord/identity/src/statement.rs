//! A node's statement of who it is: its certificates and the keys that messages to it are sealed to, signed with
//! the certificate's key. It proves itself, whoever passes it on.
//!
//! Owns the layout, which is the body of the identity LSA. Later versions append fields to what is signed, and keys of
//! other suites; both are passed over here, and signed all the same.
//!
//! ```text
//! length, signed part · length, signature
//!         version 1 · node · sequence · certificates: count, (length, DER)… · keys: count, (suite, length, key)… · …
//! ```

use bytes::Bytes;
use receptor_proto::NodeId;
use receptor_proto::wire::{DecodeError, Reader, Writer};
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::credentials::{Credentials, Purpose, SIGNATURE_MAX, SignError};
use crate::error::Refusal;
use crate::seal_keys::{KEY_LEN, KEYS_MAX, SealPublicKey};
use crate::trust::{CHAIN_BYTES_MAX, CHAIN_MAX, Role, Trust, Verified};

/// The largest statement, in bytes: below what an LSA holds.
pub const STATEMENT_MAX: usize = CHAIN_BYTES_MAX + 4096;

const VERSION: u8 = 1;

/// DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM as [`crate::Member`] uses them. Keys of other suites are
/// passed over.
const SUITE: u64 = 1;

/// The longest key of any suite: room for those against quantum computers.
const ANY_KEY_MAX: usize = 2048;

/// A statement that was read. Nothing in it is to be believed before [`Statement::verify`].
#[derive(Debug, Clone)]
pub struct Statement {
    node: NodeId,
    sequence: u64,
    chain: Vec<Bytes>,
    keys: Vec<SealPublicKey>,
    signed: Bytes,
    signature: Bytes,
}

impl Statement {
    /// Makes the statement of `node`. A higher `sequence` replaces a lower one at whoever knows both, so it must grow,
    /// over restarts too; the sequence number of the LSA does.
    ///
    /// # Errors
    ///
    /// When the system gives no randomness.
    pub fn make(
        node: &NodeId,
        sequence: u64,
        credentials: &Credentials,
        keys: &[SealPublicKey],
    ) -> Result<Bytes, SignError> {
        let mut bytes = Vec::with_capacity(4096);
        let mut writer = Writer(&mut bytes);
        writer.u8(VERSION);
        writer.node(node);
        writer.fixed_u64(sequence);
        writer.varint(credentials.chain().len() as u64);
        for certificate in credentials.chain() {
            writer.bytes(certificate);
        }
        let keys = keys.get(..KEYS_MAX).unwrap_or(keys);
        writer.varint(keys.len() as u64);
        for key in keys {
            writer.varint(SUITE);
            writer.bytes(&key.to_bytes());
        }
        let signature = credentials.key().sign(Purpose::Statement, &bytes)?;
        let mut statement = Vec::with_capacity(bytes.len() + SIGNATURE_MAX);
        let mut writer = Writer(&mut statement);
        writer.bytes(&bytes);
        writer.bytes(&signature);
        Ok(statement.into())
    }

    /// Reads a statement without believing it.
    ///
    /// # Errors
    ///
    /// When it breaks the rules of its format, or is larger than any needs to be.
    pub fn read(bytes: &Bytes) -> Result<Self, Refusal> {
        if bytes.len() > STATEMENT_MAX {
            return Err(Refusal::TooLarge);
        }
        let mut reader = Reader::new(bytes.clone());
        let signed = reader.bytes(STATEMENT_MAX, "statement")?;
        let signature = reader.bytes(SIGNATURE_MAX, "signature")?;
        if !reader.is_empty() {
            return Err(DecodeError::Bad {
                what: "end of the statement",
            }
            .into());
        }
        let mut reader = Reader::new(signed.clone());
        if reader.u8("statement version")? != VERSION {
            return Err(DecodeError::Bad {
                what: "statement version",
            }
            .into());
        }
        let node = reader.node("statement node")?;
        let sequence = reader.fixed_u64("statement sequence")?;
        let count = reader.count(1, "certificates")?;
        if count > CHAIN_MAX {
            return Err(Refusal::TooLarge);
        }
        let mut chain = Vec::with_capacity(count);
        for _ in 0..count {
            chain.push(reader.bytes(CHAIN_BYTES_MAX, "certificate")?);
        }
        let count = reader.count(2, "keys")?;
        if count > KEYS_MAX {
            return Err(Refusal::TooLarge);
        }
        let mut keys = Vec::new();
        for _ in 0..count {
            let suite = reader.varint("suite")?;
            let key = reader.bytes(ANY_KEY_MAX, "key")?;
            if suite == SUITE {
                let key = (key.len() == KEY_LEN).then(|| SealPublicKey::from_bytes(&key));
                keys.push(key.flatten().ok_or(DecodeError::Bad { what: "key" })?);
            }
        }
        Ok(Self {
            node,
            sequence,
            chain,
            keys,
            signed,
            signature,
        })
    }

    /// Decides whether it is believed at this time: its certificate is, is for the node, and has signed it.
    ///
    /// # Errors
    ///
    /// The first reason why not.
    pub fn verify(&self, trust: &Trust, now: UnixTime) -> Result<Verified, Refusal> {
        let chain: Vec<CertificateDer<'_>> = self
            .chain
            .iter()
            .map(|der| CertificateDer::from(&**der))
            .collect();
        let verified = trust.verify(&chain, Role::Member, now)?;
        verified.is_for(&self.node)?;
        let signed = verified
            .key
            .verifies(Purpose::Statement, &self.signed, &self.signature);
        signed.then_some(verified).ok_or(Refusal::Signature)
    }

    /// Whose it claims to be.
    #[must_use]
    pub fn node(&self) -> &NodeId {
        &self.node
    }

    /// Which of the node's statements.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The keys of a suite that is known here, the newest first; possibly none.
    #[must_use]
    pub fn keys(&self) -> &[SealPublicKey] {
        &self.keys
    }

    /// The certificates that it presents, the node's own first.
    #[must_use]
    pub fn chain(&self) -> &[Bytes] {
        &self.chain
    }
}
