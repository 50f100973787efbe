//! Whom this node believes: certificate authorities, revocation lists, pinned certificates.
//!
//! Owns the one decision that TLS and identity statements share. Host names play no part in it. The time is an
//! argument.

use std::sync::{Arc, Mutex, PoisonError};

use receptor_proto::NodeId;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, TrustAnchor, UnixTime};
use webpki::{
    CertRevocationList, EndEntityCert, KeyUsage, OwnedCertRevocationList, RevocationCheckDepth,
    RevocationOptionsBuilder, UnknownStatusPolicy, VerifiedPath,
};
use x509_parser::prelude::FromDer as _;
use x509_parser::revocation_list::CertificateRevocationList;

use crate::certificate::{Fingerprint, node_ids, parse, read_certificates, read_items, seconds};
use crate::credentials::VerifyingKey;
use crate::error::{LoadError, Refusal};

/// The most certificates that a peer may present, its own and those between it and the authority.
pub const CHAIN_MAX: usize = 8;
/// The most bytes of them. A certificate has 1 to 2 KiB.
pub const CHAIN_BYTES_MAX: usize = 32 * 1024;
/// The most authorities, or certificates of one file: several times what operating systems ship.
pub const ANCHORS_MAX: usize = 1024;
/// The most revocation lists.
const REVOCATION_LISTS_MAX: usize = 1024;

/// As what a certificate is presented.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// By the end that opened a TLS connection.
    Client,
    /// By the end that accepted one.
    Server,
    /// Not in TLS: either use will do.
    Member,
}

/// What a verified certificate says.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Verified {
    /// The nodes it is for; at least one.
    pub node_ids: Vec<NodeId>,
    /// Of the peer's own certificate.
    pub fingerprint: Fingerprint,
    /// When it, or the first of those that it rests on, expires, in seconds since 1970.
    pub not_after: u64,
    /// What its owner signs with.
    pub key: VerifyingKey,
}

impl Verified {
    /// Checks that it is for `node`.
    ///
    /// # Errors
    ///
    /// [`Refusal::OtherNode`].
    pub fn is_for(&self, node: &NodeId) -> Result<(), Refusal> {
        if self.node_ids.contains(node) {
            return Ok(());
        }
        Err(Refusal::OtherNode {
            node: node.clone(),
            certified: self.node_ids.clone(),
        })
    }
}

/// From when to when something is valid, in seconds since 1970.
#[derive(Debug, Clone, Copy)]
struct Validity {
    not_before: u64,
    not_after: u64,
}

/// Certificate authorities, revocation lists and pins. Cheap to clone.
#[derive(Clone)]
pub struct Trust {
    anchors: Arc<[TrustAnchor<'static>]>,
    /// Of each anchor: an authority that is over has no say, which webpki leaves to its caller.
    validities: Arc<[Validity]>,
    lists: Arc<[CertRevocationList<'static>]>,
    lists_due: Option<u64>,
    pins: Arc<[Fingerprint]>,
}

impl std::fmt::Debug for Trust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trust")
            .field("authorities", &self.anchors.len())
            .field("revocation_lists", &self.lists.len())
            .field("pins", &self.pins)
            .finish_non_exhaustive()
    }
}

impl Trust {
    /// Trusts the authorities in a PEM file, or the one that DER bytes are.
    ///
    /// # Errors
    ///
    /// When there is none, or when one cannot be used.
    pub fn new(authorities: &[u8]) -> Result<Self, LoadError> {
        let mut anchors = Vec::new();
        let mut validities = Vec::new();
        for (index, der) in read_certificates(authorities)?.iter().enumerate() {
            let bad = |reason: String| LoadError::Bad {
                what: "certificate",
                number: index + 1,
                reason,
            };
            let anchor = webpki::anchor_from_trusted_cert(der).map_err(|e| bad(e.to_string()))?;
            anchors.push(anchor.to_owned());
            let parsed = parse(der).map_err(|e| bad(e.to_string()))?;
            validities.push(Validity {
                not_before: seconds(parsed.validity().not_before),
                not_after: seconds(parsed.validity().not_after),
            });
        }
        Ok(Self {
            anchors: anchors.into(),
            validities: validities.into(),
            lists: Arc::new([]),
            lists_due: None,
            pins: Arc::new([]),
        })
    }

    /// Refuses what the revocation lists in a PEM file, or the one that DER bytes are, name.
    ///
    /// With any list there must be one for every authority that a presented certificate rests on, or else it is
    /// refused: a list that is missing must not look like one that is empty. A list that is past its next update is
    /// still used, because it is a local file that nobody can hold back; see [`Trust::lists_due`].
    ///
    /// # Errors
    ///
    /// When there is none, or when one cannot be used.
    pub fn with_revocation_lists(mut self, file: &[u8]) -> Result<Self, LoadError> {
        let what = "revocation list";
        let items: Vec<CertificateRevocationListDer<'static>> =
            read_items(file, what, REVOCATION_LISTS_MAX)?;
        let mut lists = Vec::new();
        let mut due: Option<u64> = None;
        for (index, der) in items.iter().enumerate() {
            let bad = |reason: String| LoadError::Bad {
                what,
                number: index + 1,
                reason,
            };
            let list = OwnedCertRevocationList::from_der(der).map_err(|e| bad(e.to_string()))?;
            lists.push(list.into());
            let (_, parsed) =
                CertificateRevocationList::from_der(der).map_err(|e| bad(e.to_string()))?;
            if let Some(next) = parsed.next_update() {
                let next = seconds(next);
                due = Some(due.map_or(next, |due| due.min(next)));
            }
        }
        self.lists = lists.into();
        self.lists_due = due;
        Ok(self)
    }

    /// Believes only these of the certificates that it would; none means all.
    #[must_use]
    pub fn with_pins(mut self, pins: &[Fingerprint]) -> Self {
        self.pins = pins.into();
        self
    }

    /// When the first of the revocation lists should have been replaced, in seconds since 1970.
    #[must_use]
    pub fn lists_due(&self) -> Option<u64> {
        self.lists_due
    }

    /// Decides whether a chain, the presenter's own certificate first, is believed at this time.
    ///
    /// 0.1 to 0.5 ms for each signature in it.
    ///
    /// # Errors
    ///
    /// The first reason why not.
    pub fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        role: Role,
        now: UnixTime,
    ) -> Result<Verified, Refusal> {
        let [first, between @ ..] = chain else {
            return Err(Refusal::NoCertificate);
        };
        let size: usize = chain.iter().map(|der| der.len()).sum();
        if chain.len() > CHAIN_MAX || size > CHAIN_BYTES_MAX {
            return Err(Refusal::TooLarge);
        }
        let not_after = match role {
            Role::Client => self.path(first, between, KeyUsage::client_auth(), now)?,
            Role::Server => self.path(first, between, KeyUsage::server_auth(), now)?,
            Role::Member => match self.path(first, between, KeyUsage::client_auth(), now) {
                Err(Refusal::WrongUse) => {
                    self.path(first, between, KeyUsage::server_auth(), now)?
                }
                other => other?,
            },
        };
        let fingerprint = Fingerprint::of(first);
        if !self.pins.is_empty() && !self.pins.contains(&fingerprint) {
            return Err(Refusal::NotPinned);
        }
        let parsed = parse(first)?;
        let node_ids = node_ids(&parsed)?;
        if node_ids.is_empty() {
            return Err(Refusal::NoNodeId);
        }
        Ok(Verified {
            node_ids,
            fingerprint,
            not_after,
            key: VerifyingKey::of(&parsed)?,
        })
    }

    /// Finds a way to an authority; until when it holds.
    fn path(
        &self,
        first: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        usage: KeyUsage,
        now: UnixTime,
    ) -> Result<u64, Refusal> {
        let lists: Vec<&CertRevocationList<'_>> = self.lists.iter().collect();
        let revocation = match RevocationOptionsBuilder::new(&lists) {
            Ok(options) => Some(
                options
                    .with_depth(RevocationCheckDepth::Chain)
                    .with_status_policy(UnknownStatusPolicy::Deny)
                    .build(),
            ),
            // No list at all is no revocation.
            Err(_) => None,
        };
        // webpki says of several bad ways only one error; an authority that is over is better told than that.
        let over = Mutex::new(None);
        let holds = |path: &VerifiedPath<'_>| match self.authority(path, now) {
            Ok(()) => Ok(()),
            Err(error) => {
                *over.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.clone());
                Err(error)
            }
        };
        let certificate = EndEntityCert::try_from(first)?;
        let found = certificate.verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &self.anchors,
            between,
            now,
            usage,
            revocation,
            Some(&holds),
        );
        let path = match found {
            Ok(path) => path,
            Err(webpki::Error::UnknownIssuer) => {
                let over = over.lock().unwrap_or_else(PoisonError::into_inner).take();
                return Err(over.unwrap_or(webpki::Error::UnknownIssuer).into());
            }
            Err(error) => return Err(error.into()),
        };
        let mut until = seconds(parse(first)?.validity().not_after);
        for certificate in path.intermediate_certificates() {
            until = until.min(seconds(parse(&certificate.der())?.validity().not_after));
        }
        if let Some(authority) = self.validity(path.anchor()) {
            until = until.min(authority.not_after);
        }
        Ok(until)
    }

    fn validity(&self, anchor: &TrustAnchor<'_>) -> Option<Validity> {
        let at = self
            .anchors
            .iter()
            .position(|own| std::ptr::eq(own, anchor))?;
        self.validities.get(at).copied()
    }

    /// Whether the authority at the end of a way has a say now.
    fn authority(&self, path: &VerifiedPath<'_>, now: UnixTime) -> Result<(), webpki::Error> {
        let Some(validity) = self.validity(path.anchor()) else {
            return Err(webpki::Error::UnknownIssuer);
        };
        if now.as_secs() < validity.not_before {
            let not_before =
                UnixTime::since_unix_epoch(std::time::Duration::from_secs(validity.not_before));
            return Err(webpki::Error::CertNotValidYet {
                time: now,
                not_before,
            });
        }
        if now.as_secs() > validity.not_after {
            let not_after =
                UnixTime::since_unix_epoch(std::time::Duration::from_secs(validity.not_after));
            return Err(webpki::Error::CertExpired {
                time: now,
                not_after,
            });
        }
        Ok(())
    }

    /// The names of the authorities, for a TLS server to tell its clients.
    pub(crate) fn subjects(&self) -> Vec<rustls::DistinguishedName> {
        self.anchors
            .iter()
            .map(|anchor| rustls::DistinguishedName::in_sequence(&anchor.subject))
            .collect()
    }
}
