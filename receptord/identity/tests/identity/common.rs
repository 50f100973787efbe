//! An authority that issues what a test wants, right or wrong.

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, OtherNameValue,
    RevokedCertParams, SanType, SerialNumber,
};
use receptor_identity::{CertificateDer, Credentials, Trust, UnixTime, read_certificates};
use receptor_proto::NodeId;
use time::OffsetDateTime;

/// The time of all tests, in seconds since 1970.
pub(crate) const NOW: u64 = 1_800_000_000;
pub(crate) const DAY: u64 = 86_400;

/// When the committed certificates were valid.
pub(crate) const THEN: u64 = 1_796_000_000;

/// A committed file.
pub(crate) fn golden(name: &str) -> Vec<u8> {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");
    std::fs::read(std::path::Path::new(directory).join(name)).unwrap()
}

pub(crate) fn at(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

pub(crate) fn node(id: &str) -> NodeId {
    NodeId::new(id).unwrap()
}

fn date(seconds: u64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(i64::try_from(seconds).unwrap()).unwrap()
}

pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// What a certificate of a test is to be.
pub(crate) struct Wish {
    pub(crate) ids: Vec<&'static str>,
    pub(crate) uses: Vec<ExtendedKeyUsagePurpose>,
    pub(crate) not_before: u64,
    pub(crate) not_after: u64,
    pub(crate) serial: u8,
    pub(crate) algorithm: &'static rcgen::SignatureAlgorithm,
}

pub(crate) fn wish(id: &'static str) -> Wish {
    Wish {
        ids: vec![id],
        uses: vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ],
        not_before: NOW - DAY,
        not_after: NOW + 30 * DAY,
        serial: 7,
        algorithm: &rcgen::PKCS_ECDSA_P256_SHA256,
    }
}

fn authority(name: &str, not_after: u64) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = date(NOW - 400 * DAY);
    params.not_after = date(not_after);
    params
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        Self::until(name, NOW + 400 * DAY)
    }

    pub(crate) fn until(name: &str, not_after: u64) -> Self {
        let key = KeyPair::generate().unwrap();
        Self {
            issuer: CertifiedIssuer::self_signed(authority(name, not_after), key).unwrap(),
        }
    }

    /// One between this and certificates.
    pub(crate) fn between(&self, name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let params = authority(name, NOW + 10 * DAY);
        Self {
            issuer: CertifiedIssuer::signed_by(params, key, &self.issuer).unwrap(),
        }
    }

    pub(crate) fn pem(&self) -> String {
        self.issuer.pem()
    }

    pub(crate) fn trust(&self) -> Trust {
        Trust::new(self.pem().as_bytes()).unwrap()
    }

    /// Certificate and key.
    pub(crate) fn issue(&self, wish: &Wish) -> (String, String) {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "x");
        for id in &wish.ids {
            let uri = format!("receptor:{id}").try_into().unwrap();
            params.subject_alt_names.push(SanType::URI(uri));
            let name = OtherNameValue::Utf8String((*id).to_owned());
            let oid = vec![1, 3, 6, 1, 4, 1, 2312, 19, 1];
            params
                .subject_alt_names
                .push(SanType::OtherName((oid, name)));
        }
        params.extended_key_usages.clone_from(&wish.uses);
        params.not_before = date(wish.not_before);
        params.not_after = date(wish.not_after);
        params.serial_number = Some(SerialNumber::from(vec![wish.serial]));
        let key = KeyPair::generate_for(wish.algorithm).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    pub(crate) fn credentials(&self, wish: &Wish) -> Credentials {
        let (certificate, key) = self.issue(wish);
        Credentials::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap()
    }

    pub(crate) fn chain(&self, wish: &Wish) -> Vec<CertificateDer<'static>> {
        read_certificates(self.issue(wish).0.as_bytes()).unwrap()
    }

    /// A revocation list in PEM.
    pub(crate) fn revoke(&self, serials: &[u8]) -> String {
        CertificateRevocationListParams {
            this_update: date(NOW - DAY),
            next_update: date(NOW + DAY),
            crl_number: SerialNumber::from(vec![1]),
            issuing_distribution_point: None,
            revoked_certs: serials
                .iter()
                .map(|serial| RevokedCertParams {
                    serial_number: SerialNumber::from(vec![*serial]),
                    revocation_time: date(NOW - DAY),
                    reason_code: None,
                    invalidity_date: None,
                })
                .collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        }
        .signed_by(&self.issuer)
        .unwrap()
        .pem()
        .unwrap()
    }
}
