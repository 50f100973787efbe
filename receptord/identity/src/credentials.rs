//! A node's own certificate and private key, and what others check its signatures with.
//!
//! Owns which kinds of key there are and what a signature covers. A private key leaves this module only as a
//! signer; it is never printed.

use std::fmt;
use std::sync::Arc;

use receptor_proto::NodeId;
use rustls::SignatureScheme;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, SignatureVerificationAlgorithm};
use x509_parser::asn1_rs::{Any, FromDer as _};
use x509_parser::certificate::X509Certificate;
use zeroize::Zeroize as _;

use crate::certificate::{Certificate, is_pem, node_ids, parse, read_certificates};
use crate::error::{LoadError, Refusal};
use crate::trust::{CHAIN_BYTES_MAX, CHAIN_MAX};

/// The longest signature, in bytes: that of an RSA key of 8192 bits.
pub const SIGNATURE_MAX: usize = 1024;

/// What a signature is for. It covers this, so that none can be passed off as another kind, nor as one of TLS,
/// whose begin with 64 spaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Purpose {
    /// [`crate::Statement`].
    Statement,
    /// A link-state advertisement of any other kind.
    Lsa,
}

impl Purpose {
    /// Ends with the only zero byte in it, so that none is the beginning of another.
    const fn label(self) -> &'static [u8] {
        match self {
            Self::Statement => b"receptor identity statement 1\0",
            Self::Lsa => b"receptor lsa 1\0",
        }
    }

    fn cover(self, message: &[u8]) -> Vec<u8> {
        [self.label(), message].concat()
    }
}

/// A kind of key, with the one way in which it signs.
struct Kind {
    name: &'static str,
    scheme: SignatureScheme,
    algorithm: &'static dyn SignatureVerificationAlgorithm,
}

/// RSA is here for certificates of existing installations; ring takes 2048 to 8192 bits.
static KINDS: [Kind; 4] = [
    Kind {
        name: "Ed25519",
        scheme: SignatureScheme::ED25519,
        algorithm: webpki::ring::ED25519,
    },
    Kind {
        name: "ECDSA P-256",
        scheme: SignatureScheme::ECDSA_NISTP256_SHA256,
        algorithm: webpki::ring::ECDSA_P256_SHA256,
    },
    Kind {
        name: "ECDSA P-384",
        scheme: SignatureScheme::ECDSA_NISTP384_SHA384,
        algorithm: webpki::ring::ECDSA_P384_SHA384,
    },
    Kind {
        name: "RSA",
        scheme: SignatureScheme::RSA_PSS_SHA256,
        algorithm: webpki::ring::RSA_PSS_2048_8192_SHA256_LEGACY_KEY,
    },
];

/// A private key could not sign: the system gave no randomness.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the private key could not sign")]
pub struct SignError;

/// A private key. Cheap to clone.
#[derive(Clone)]
pub struct SigningKey {
    kind: &'static Kind,
    key: Arc<dyn rustls::sign::SigningKey>,
}

impl SigningKey {
    /// Reads the first private key of a PEM file, or DER bytes: PKCS#8, SEC1 or PKCS#1. The caller wipes `file`.
    ///
    /// # Errors
    ///
    /// When there is none, when it is damaged or encrypted, or of an unknown kind.
    pub fn from_pem(file: &[u8]) -> Result<Self, LoadError> {
        let what = "private key";
        let key = if is_pem(file) {
            PrivateKeyDer::from_pem_slice(file).map_err(|e| {
                let encrypted = b"-----BEGIN ENCRYPTED PRIVATE KEY-----";
                let parameters = b"Proc-Type: 4,ENCRYPTED";
                if contains(file, encrypted) || contains(file, parameters) {
                    return LoadError::EncryptedKey;
                }
                if matches!(e, rustls_pki_types::pem::Error::NoItemsFound) {
                    return LoadError::Nothing { what };
                }
                // Without what the reader says, which may quote the file.
                let reason = "it is damaged".to_owned();
                LoadError::Bad {
                    what,
                    number: 1,
                    reason,
                }
            })
        } else {
            PrivateKeyDer::try_from(file.to_vec()).map_err(|_| LoadError::Nothing { what })
        };
        let mut key = key?;
        let read = any_supported_type(&key);
        key.zeroize();
        let key = read.map_err(|_| LoadError::KeyKind)?;
        let kind = KINDS
            .iter()
            .find(|kind| key.choose_scheme(&[kind.scheme]).is_some())
            .ok_or(LoadError::KeyKind)?;
        Ok(Self { kind, key })
    }

    /// Signs, at most [`SIGNATURE_MAX`] bytes. Between 20 µs (Ed25519) and a few milliseconds (RSA).
    ///
    /// # Errors
    ///
    /// When the system gives no randomness.
    pub fn sign(&self, purpose: Purpose, message: &[u8]) -> Result<Vec<u8>, SignError> {
        let signer = self.key.choose_scheme(&[self.kind.scheme]);
        let signer = signer.ok_or(SignError)?;
        signer.sign(&purpose.cover(message)).map_err(|_| SignError)
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.kind.name)
    }
}

fn contains(file: &[u8], text: &[u8]) -> bool {
    file.windows(text.len()).any(|part| part == text)
}

/// The public key of a certificate.
#[derive(Clone)]
pub struct VerifyingKey {
    kind: &'static Kind,
    key: Box<[u8]>,
}

impl VerifyingKey {
    /// The key in a certificate.
    pub(crate) fn of(certificate: &X509Certificate<'_>) -> Result<Self, Refusal> {
        let algorithm = Any::from_der(certificate.public_key().raw)
            .and_then(|(_, info)| Any::from_der(info.data))
            .map_err(|e| Refusal::Certificate(e.to_string()))?
            .1
            .data;
        let kind = KINDS
            .iter()
            .find(|kind| kind.algorithm.public_key_alg_id().as_ref() == algorithm)
            .ok_or(Refusal::KeyKind)?;
        let key = certificate.public_key().subject_public_key.data.as_ref();
        Ok(Self {
            kind,
            key: key.into(),
        })
    }

    /// Whether the owner of the key signed this, for this purpose.
    #[must_use]
    pub fn verifies(&self, purpose: Purpose, message: &[u8], signature: &[u8]) -> bool {
        signature.len() <= SIGNATURE_MAX
            && self
                .kind
                .algorithm
                .verify_signature(&self.key, &purpose.cover(message), signature)
                .is_ok()
    }

    /// Its kind, such as `ECDSA P-256`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        self.kind.name
    }
}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifyingKey({})", self.kind.name)
    }
}

/// This node's certificate, those that it rests on, and its private key.
#[derive(Clone)]
pub struct Credentials {
    chain: Vec<CertificateDer<'static>>,
    node_ids: Vec<NodeId>,
    facts: Certificate,
    key: SigningKey,
}

impl Credentials {
    /// Reads a certificate file (this node's first, then those between it and the authority) and its key file.
    /// Whether it is expired or from a trusted authority is not looked at: see [`crate::Trust::verify`].
    ///
    /// # Errors
    ///
    /// When one of them cannot be read, when they do not belong together, and when no node id is in the certificate.
    pub fn from_pem(certificate: &[u8], key: &[u8]) -> Result<Self, LoadError> {
        let chain = read_certificates(certificate)?;
        let size: usize = chain.iter().map(|der| der.len()).sum();
        if chain.len() > CHAIN_MAX || size > CHAIN_BYTES_MAX {
            return Err(Refusal::TooLarge.into());
        }
        let Some(first) = chain.first() else {
            return Err(Refusal::NoCertificate.into());
        };
        let parsed = parse(first)?;
        let node_ids = node_ids(&parsed).map_err(Refusal::from)?;
        if node_ids.is_empty() {
            return Err(Refusal::NoNodeId.into());
        }
        VerifyingKey::of(&parsed)?;
        let key = SigningKey::from_pem(key)?;
        let own = Self {
            facts: Certificate::from_der(first)?,
            node_ids,
            key,
            chain,
        };
        match own.certified_key().keys_match() {
            Ok(()) => Ok(own),
            Err(_) => Err(LoadError::KeyMismatch),
        }
    }

    /// The certificates, this node's first.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// For which nodes it is; at least one.
    #[must_use]
    pub fn node_ids(&self) -> &[NodeId] {
        &self.node_ids
    }

    /// What stands in this node's certificate.
    #[must_use]
    pub fn certificate(&self) -> &Certificate {
        &self.facts
    }

    /// The private key.
    #[must_use]
    pub fn key(&self) -> &SigningKey {
        &self.key
    }

    pub(crate) fn certified_key(&self) -> CertifiedKey {
        CertifiedKey::new(self.chain.clone(), Arc::clone(&self.key.key))
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("node_ids", &self.node_ids)
            .field("fingerprint", &self.facts.fingerprint)
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}
