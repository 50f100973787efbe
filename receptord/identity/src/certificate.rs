//! Certificates as files hold them, and what stands in one.
//!
//! Owns reading PEM and DER, and the facts shown to people. Nothing here says that a certificate is to be
//! believed: that is [`crate::Trust`].

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use receptor_proto::NodeId;
use ring::digest::{SHA256, digest};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::OID_X509_EXT_SUBJECT_ALT_NAME;
use x509_parser::prelude::FromDer as _;
use x509_parser::time::ASN1Time;

use crate::credentials::VerifyingKey;
use crate::error::{LoadError, Refusal};
use crate::san::{self, NodeIdsError};
use crate::trust::ANCHORS_MAX;

/// What stands before every item of a PEM file.
const PEM_MARK: &[u8] = b"-----BEGIN ";

/// The certificates in a PEM file, in their order, or the one that DER bytes are.
///
/// # Errors
///
/// When there is none, when there are more than [`ANCHORS_MAX`], or when one is damaged.
pub fn read_certificates(file: &[u8]) -> Result<Vec<CertificateDer<'static>>, LoadError> {
    let certificates: Vec<CertificateDer<'static>> = read_items(file, "certificate", ANCHORS_MAX)?;
    for (index, der) in certificates.iter().enumerate() {
        parse(der).map_err(|e| LoadError::Bad {
            what: "certificate",
            number: index + 1,
            reason: e.to_string(),
        })?;
    }
    Ok(certificates)
}

/// The items of one kind in a PEM file, or the one that DER bytes are.
pub(crate) fn read_items<T>(
    file: &[u8],
    what: &'static str,
    limit: usize,
) -> Result<Vec<T>, LoadError>
where
    T: PemObject + From<Vec<u8>>,
{
    if file.is_empty() {
        return Err(LoadError::Nothing { what });
    }
    if !is_pem(file) {
        return Ok(vec![T::from(file.to_vec())]);
    }
    let mut items = Vec::new();
    for item in T::pem_slice_iter(file) {
        let item = item.map_err(|e| LoadError::Bad {
            what,
            number: items.len() + 1,
            reason: e.to_string(),
        })?;
        if items.len() == limit {
            return Err(LoadError::TooMany { what, limit });
        }
        items.push(item);
    }
    if items.is_empty() {
        return Err(LoadError::Nothing { what });
    }
    Ok(items)
}

/// Whether a file is text with marks rather than DER.
pub(crate) fn is_pem(file: &[u8]) -> bool {
    file.windows(PEM_MARK.len()).any(|part| part == PEM_MARK)
}

/// The parsed certificate; nothing may follow it.
pub(crate) fn parse(der: &[u8]) -> Result<X509Certificate<'_>, Refusal> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err(Refusal::Certificate("bytes follow it".to_owned())),
        Err(error) => Err(Refusal::Certificate(error.to_string())),
    }
}

/// The node ids of a parsed certificate.
pub(crate) fn node_ids(certificate: &X509Certificate<'_>) -> Result<Vec<NodeId>, NodeIdsError> {
    let mut lists = certificate
        .extensions()
        .iter()
        .filter(|extension| extension.oid == OID_X509_EXT_SUBJECT_ALT_NAME);
    let Some(list) = lists.next() else {
        return Ok(Vec::new());
    };
    if lists.next().is_some() {
        return Err(NodeIdsError::Repeated);
    }
    san::node_ids(list.value)
}

/// Seconds since 1970; what lies before it is 0.
pub(crate) fn seconds(time: ASN1Time) -> u64 {
    u64::try_from(time.timestamp()).unwrap_or(0)
}

/// What stands in a certificate, for people. Texts are those of the certificate: whoever prints them must mind
/// control characters.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Certificate {
    /// Whom it is for.
    pub subject: String,
    /// Who made it.
    pub issuer: String,
    /// Its number at the issuer, in hexadecimal.
    pub serial: String,
    /// SHA-256 of its DER bytes.
    pub fingerprint: Fingerprint,
    /// Seconds since 1970.
    pub not_before: u64,
    /// Seconds since 1970.
    pub not_after: u64,
    /// The nodes it is for, or why they cannot be read.
    pub node_ids: Result<Vec<NodeId>, NodeIdsError>,
    /// Host names.
    pub dns_names: Vec<String>,
    /// Addresses.
    pub ip_addresses: Vec<IpAddr>,
    /// Alternative names of other kinds.
    pub other_names: Vec<String>,
    /// It may issue others.
    pub is_authority: bool,
    /// What it may be used for: `server`, `client`, or an OID; empty when it does not say.
    pub uses: Vec<String>,
    /// The kind of its key, such as `ECDSA P-256`.
    pub key: String,
}

impl Certificate {
    /// What stands in the certificate.
    ///
    /// # Errors
    ///
    /// When the bytes are none.
    pub fn from_der(der: &[u8]) -> Result<Self, Refusal> {
        let certificate = parse(der)?;
        let mut facts = Self {
            subject: certificate.subject().to_string(),
            issuer: certificate.issuer().to_string(),
            serial: hex(certificate.raw_serial()),
            fingerprint: Fingerprint::of(der),
            not_before: seconds(certificate.validity().not_before),
            not_after: seconds(certificate.validity().not_after),
            node_ids: node_ids(&certificate),
            dns_names: Vec::new(),
            ip_addresses: Vec::new(),
            other_names: Vec::new(),
            is_authority: certificate.is_ca(),
            uses: Vec::new(),
            key: VerifyingKey::of(&certificate).map_or_else(
                |_| certificate.public_key().algorithm.algorithm.to_string(),
                |key| key.kind().to_owned(),
            ),
        };
        for extension in certificate.extensions() {
            #[expect(
                clippy::wildcard_enum_match_arm,
                reason = "a foreign enum that grows; of all others nothing is shown"
            )]
            match extension.parsed_extension() {
                ParsedExtension::SubjectAlternativeName(names) => {
                    names
                        .general_names
                        .iter()
                        .for_each(|name| facts.add_name(name));
                }
                ParsedExtension::ExtendedKeyUsage(uses) => {
                    let known = [
                        (uses.server_auth, "server"),
                        (uses.client_auth, "client"),
                        (uses.any, "any"),
                        (uses.code_signing, "code-signing"),
                        (uses.email_protection, "email"),
                        (uses.time_stamping, "time-stamping"),
                        (uses.ocsp_signing, "ocsp-signing"),
                    ];
                    let known = known.into_iter().filter(|(has, _)| *has);
                    facts.uses.extend(known.map(|(_, name)| name.to_owned()));
                    facts
                        .uses
                        .extend(uses.other.iter().map(ToString::to_string));
                }
                _ => {}
            }
        }
        Ok(facts)
    }

    fn add_name(&mut self, name: &GeneralName<'_>) {
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "a foreign enum; all others are shown in one way"
        )]
        match name {
            GeneralName::DNSName(name) => self.dns_names.push((*name).to_owned()),
            GeneralName::IPAddress(bytes) => {
                let four = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
                let sixteen = <[u8; 16]>::try_from(*bytes).map(IpAddr::from);
                match four.or(sixteen) {
                    Ok(address) => self.ip_addresses.push(address),
                    Err(_) => self.other_names.push(format!("IP {}", hex(bytes))),
                }
            }
            // Those are the node ids, one way or the other.
            GeneralName::URI(text) if text.starts_with("receptor:") => {}
            GeneralName::OtherName(kind, _) if kind.to_id_string() == "1.3.6.1.4.1.2312.19.1" => {}
            other => self.other_names.push(other.to_string()),
        }
    }
}

/// The SHA-256 of a certificate's DER bytes: 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint(pub [u8; 32]);

/// A text that is no fingerprint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a fingerprint is a SHA-256: 64 hexadecimal digits, with or without colons between the bytes"
)]
pub struct FingerprintError;

impl Fingerprint {
    /// That of a certificate.
    #[must_use]
    pub fn of(der: &[u8]) -> Self {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest(&SHA256, der).as_ref());
        Self(bytes)
    }
}

impl FromStr for Fingerprint {
    type Err = FingerprintError;

    /// Takes what `cert show` and `openssl x509 -fingerprint -sha256` print.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.strip_prefix("sha256:").unwrap_or(text);
        let digits: Vec<u8> = if text.len() == 64 {
            text.bytes().collect()
        } else {
            let parts: Vec<&str> = text.split(':').collect();
            if parts.iter().any(|part| part.len() != 2) {
                return Err(FingerprintError);
            }
            parts.concat().into_bytes()
        };
        unhex(&digits).map(Self).ok_or(FingerprintError)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&hex(&self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Bytes as hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// As many bytes from hexadecimal digits as are wanted, no more and no less.
pub(crate) fn unhex<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    let value = |digit: u8| char::from(digit).to_digit(16);
    let mut bytes = [0; N];
    if digits.len() != 2 * N {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let [high, low] = pair else { return None };
        *byte = u8::try_from(value(*high)? * 16 + value(*low)?).ok()?;
    }
    Some(bytes)
}
