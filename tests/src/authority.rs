//! An authority that issues what a test wants, right or wrong, and peers that speak TLS with it.

#![expect(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "a test that cannot go on has failed"
)]

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::net::TcpStream;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::{DEADLINE, Node};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams,
    SanType, SerialNumber,
};
use receptor_identity::tls::Configs;
use receptor_identity::{Credentials, Trust};
use rustls::time_provider::DefaultTimeProvider;
use rustls::{ClientConnection, ServerConnection, StreamOwned};
use time::{Duration, OffsetDateTime};

/// A certificate authority with a directory of its own.
#[derive(Debug)]
pub struct Authority {
    dir: PathBuf,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// From when to when a certificate is valid, counted from now.
#[derive(Debug, Clone, Copy)]
pub struct Valid(pub Duration, pub Duration);

/// As those that `cert issue` makes.
pub const VALID: Valid = Valid(Duration::hours(-1), Duration::days(365));

fn from_now(span: Duration) -> OffsetDateTime {
    OffsetDateTime::now_utc() + span
}

/// Puts a file in the place of another in one step, as an administrator's tools do.
pub fn replace(path: &Path, text: &str, mode: u32) {
    let next = path.with_extension("next");
    let _ = fs::remove_file(&next);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&next)
        .unwrap();
    file.write_all(text.as_bytes()).unwrap();
    drop(file);
    fs::rename(next, path).unwrap();
}

impl Authority {
    /// Keeps its files in `dir`.
    pub fn new(dir: &Path) -> Self {
        fs::create_dir_all(dir).unwrap();
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, dir.display().to_string());
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = from_now(Duration::days(-2));
        params.not_after = from_now(Duration::days(1000));
        let key = KeyPair::generate().unwrap();
        let authority = Self {
            dir: dir.to_owned(),
            issuer: CertifiedIssuer::self_signed(params, key).unwrap(),
        };
        replace(&authority.file("ca.pem"), &authority.issuer.pem(), 0o644);
        authority
    }

    /// One of its files.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// A certificate for a node, with the serial number that a revocation names it by.
    pub fn issue(&self, node: &str, serial: u8, valid: Valid) -> (String, String) {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, node);
        let uri = format!("receptor:{node}").try_into().unwrap();
        params.subject_alt_names.push(SanType::URI(uri));
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.not_before = from_now(valid.0);
        params.not_after = from_now(valid.1);
        params.serial_number = Some(SerialNumber::from(vec![serial]));
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    /// The same, as files `NODE.pem` and `NODE.key`; the key first, as a careful administrator does not.
    pub fn give(&self, node: &str, serial: u8, valid: Valid) {
        let (certificate, key) = self.issue(node, serial, valid);
        replace(&self.file(&format!("{node}.key")), &key, 0o600);
        replace(&self.file(&format!("{node}.pem")), &certificate, 0o644);
    }

    /// Revokes these, in the file `crl.pem`.
    pub fn revoke(&self, serials: &[u8]) {
        let revoked = |serial: &u8| RevokedCertParams {
            serial_number: SerialNumber::from(vec![*serial]),
            revocation_time: from_now(Duration::hours(-1)),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: from_now(Duration::hours(-1)),
            next_update: from_now(Duration::days(7)),
            crl_number: SerialNumber::from(vec![1]),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let pem = list.signed_by(&self.issuer).unwrap().pem().unwrap();
        replace(&self.file("crl.pem"), &pem, 0o644);
    }

    /// The `[tls]` table with which a node finds its files here.
    pub fn table(&self, node: &str) -> String {
        let file = |name: &str| self.file(name).display().to_string();
        format!(
            "[tls]\ncertificate = \"{}\"\nkey = \"{}\"\nca = \"{}\"\n",
            file(&format!("{node}.pem")),
            file(&format!("{node}.key")),
            file("ca.pem")
        )
    }

    /// Gives a node its certificate; it listens with TLS.
    pub fn equip(&self, node: Node, name: &str) -> Node {
        if !self.file(&format!("{name}.pem")).exists() {
            self.give(name, 1, VALID);
        }
        node.listen("rnps://127.0.0.1:0").config(&self.table(name))
    }

    /// A certificate for `node` with its key, and whom to believe.
    #[must_use]
    pub fn credentials(&self, node: &str) -> (Credentials, Trust) {
        let (certificate, key) = self.issue(node, 99, VALID);
        let own = Credentials::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap();
        let trust = Trust::new(self.issuer.pem().as_bytes()).unwrap();
        (own, trust)
    }

    /// What rustls needs to be `node`, or whoever the certificate is for.
    #[must_use]
    pub fn configs(&self, node: &str) -> Configs {
        let (own, trust) = self.credentials(node);
        Configs::new(&own, trust, Arc::new(DefaultTimeProvider)).unwrap()
    }

    /// Connects with the certificate of `node`.
    pub fn dial(&self, node: &str, address: &str) -> StreamOwned<ClientConnection, TcpStream> {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        self.dial_over(node, stream)
    }

    /// The same, over a connection that there is.
    pub fn dial_over(
        &self,
        node: &str,
        stream: TcpStream,
    ) -> StreamOwned<ClientConnection, TcpStream> {
        StreamOwned::new(self.client(node), stream)
    }

    /// A connection of TLS with the certificate of `node`, before its first byte.
    #[must_use]
    pub fn client(&self, node: &str) -> ClientConnection {
        let name = "any.example".try_into().unwrap();
        ClientConnection::new(self.configs(node).client, name).unwrap()
    }

    /// Takes a connection with the certificate of `node`.
    pub fn take(&self, node: &str, stream: TcpStream) -> StreamOwned<ServerConnection, TcpStream> {
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let connection = ServerConnection::new(self.configs(node).server).unwrap();
        StreamOwned::new(connection, stream)
    }
}
