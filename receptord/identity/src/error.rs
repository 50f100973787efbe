//! Why something is not believed ([`Refusal`]: a peer's doing) or cannot be used ([`LoadError`]: the operator's).
//! Owns the texts that logs and `status` show; they never hold key material.

use receptor_proto::NodeId;
use receptor_proto::wire::DecodeError;

use crate::date::date;
use crate::san::NodeIdsError;

/// Why a certificate, statement, signature or sealed packet of a peer is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// Nothing was presented.
    #[error("no certificate was presented")]
    NoCertificate,
    /// Longer than any chain or statement needs to be.
    #[error("the certificate chain is too large")]
    TooLarge,
    /// No certificate at all, or one that breaks the rules of its format.
    #[error("the certificate cannot be used: {0}")]
    Certificate(String),
    /// A certificate for other purposes: it has no node id.
    #[error("the certificate has no node id")]
    NoNodeId,
    /// The node ids cannot be read without doubt.
    #[error("the node ids of the certificate cannot be used: {0}")]
    NodeIds(#[from] NodeIdsError),
    /// A certificate of somebody else.
    #[error("the certificate is not for {node}, but for {}", list(.certified))]
    OtherNode {
        /// Who was claimed or expected.
        node: NodeId,
        /// For whom it is.
        certified: Vec<NodeId>,
    },
    /// From a time to come.
    #[error("the certificate is not valid before {}", date(*.not_before))]
    NotYetValid {
        /// Seconds since 1970.
        not_before: u64,
    },
    /// The certificate, or one that it rests on, is over.
    #[error("the certificate expired at {}", date(*.not_after))]
    Expired {
        /// Seconds since 1970.
        not_after: u64,
    },
    /// A revocation list names it, or one that it rests on.
    #[error("the certificate is revoked")]
    Revoked,
    /// There are revocation lists, but none of the one who issued it.
    #[error("there is no revocation list of the certificate's issuer")]
    NoRevocationList,
    /// The issuer may not sign revocation lists, or its list is not its own.
    #[error("the revocation list of the certificate's issuer cannot be used: {0}")]
    RevocationList(String),
    /// No trusted authority has signed it.
    #[error("the certificate is not from a trusted authority")]
    UnknownIssuer,
    /// It says itself that it is for other uses.
    #[error("the certificate is not for this use")]
    WrongUse,
    /// From a trusted authority, but not one of those that are pinned.
    #[error("the certificate's fingerprint is not one of those that are pinned")]
    NotPinned,
    /// Its key is of a kind that is not supported.
    #[error(
        "the certificate's key is neither Ed25519, ECDSA P-256 or P-384, nor RSA of 2048 to 8192 bits"
    )]
    KeyKind,
    /// Not made by the owner of the key.
    #[error("the signature is not that of the certificate's key")]
    Signature,
    /// No statement, or one that breaks the rules of its format.
    #[error("the identity statement cannot be read: {0}")]
    Statement(#[from] DecodeError),
    /// Nothing is known of the node: its statement must be learned first.
    #[error("the node's identity is not known")]
    UnknownNode,
    /// The node's statement that is known has no key with this number: a newer one must be learned first.
    #[error("the node has no such key")]
    UnknownKey,
    /// The node's statement has no key of a kind that can be used here.
    #[error("the node has no key to seal with")]
    NoKey,
    /// Sealed with a key that this node does not have, or does not have any more.
    #[error("the packet is sealed to a key that is not kept here")]
    NotOurs,
    /// Too short, or not made by this sender for this recipient with these clear parts.
    #[error("the sealed packet is not authentic")]
    NotAuthentic,
}

fn list(nodes: &[NodeId]) -> String {
    let names: Vec<&str> = nodes.iter().map(NodeId::as_str).collect();
    names.join(", ")
}

impl From<webpki::Error> for Refusal {
    fn from(error: webpki::Error) -> Self {
        use webpki::Error;
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "a foreign enum that grows; all others are told as they are"
        )]
        match error {
            Error::CertExpired { not_after, .. } => Self::Expired {
                not_after: not_after.as_secs(),
            },
            Error::CertNotValidYet { not_before, .. } => Self::NotYetValid {
                not_before: not_before.as_secs(),
            },
            Error::CertRevoked => Self::Revoked,
            Error::UnknownRevocationStatus => Self::NoRevocationList,
            Error::IssuerNotCrlSigner
            | Error::InvalidCrlSignatureForPublicKey
            | Error::UnsupportedCrlSignatureAlgorithmContext(_)
            | Error::UnsupportedCrlSignatureAlgorithmForPublicKeyContext(_) => {
                Self::RevocationList(error.to_string())
            }
            Error::UnknownIssuer => Self::UnknownIssuer,
            Error::RequiredEkuNotFoundContext(_) => Self::WrongUse,
            // An authority of this name is trusted, but with another key.
            Error::InvalidSignatureForPublicKey => Self::UnknownIssuer,
            other => Self::Certificate(other.to_string()),
        }
    }
}

/// Why certificates, keys or revocation lists of the operator cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// Text or bytes in which there is none.
    #[error("there is no {what} in it")]
    Nothing {
        /// `certificate`, `private key` or `revocation list`.
        what: &'static str,
    },
    /// More than can be meant.
    #[error("there are more than {limit} {what}s in it")]
    TooMany {
        /// As above.
        what: &'static str,
        /// How many there may be.
        limit: usize,
    },
    /// One of them is damaged or of an unknown format.
    #[error("{what} {number} in it cannot be used: {reason}")]
    Bad {
        /// As above.
        what: &'static str,
        /// Which, from 1.
        number: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// A private key that only its password opens.
    #[error(
        "the private key is encrypted; store it without a password, readable by receptord alone"
    )]
    EncryptedKey,
    /// A kind of key that cannot be used.
    #[error(
        "the private key is neither Ed25519, ECDSA P-256 or P-384, nor RSA of 2048 to 8192 bits"
    )]
    KeyKind,
    /// The key of another certificate.
    #[error("the private key does not belong to the certificate")]
    KeyMismatch,
    /// The certificate cannot be used by a node.
    #[error(transparent)]
    Certificate(#[from] Refusal),
}
