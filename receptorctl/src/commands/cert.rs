//! `cert`: a working TLS mesh in three commands, and a look at what there is.
//!
//! Owns what the certificates made here say. Never overwrites a file unless told to, never leaves one half written, never
//! prints a key, and writes no certificate that a node would refuse. No daemon is needed.

use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, OtherNameValue, SanType, SerialNumber,
};
use receptor_identity::{
    Certificate, CertificateDer, Credentials, Role, Trust, UnixTime, date, read_certificates,
};
use receptor_proto::NodeId;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{AlgorithmIdentifier, PrivateKeyDer, alg_id};
use tempfile::NamedTempFile;
use time::{Duration, OffsetDateTime};
use zeroize::{Zeroize as _, Zeroizing};

use crate::args::{CertInitCa, CertIssue};
use crate::exit::{Exit, Failure};
use crate::output::{Out, duration, note, printable};

/// Where an authority keeps what every node needs, and what none needs.
const CA_CERTIFICATE: &str = "ca.pem";
const CA_KEY: &str = "ca.key";

/// Keys are their owner's alone; certificates are no secret.
const SECRET: u32 = 0o600;
const PUBLIC: u32 = 0o644;
/// Of directories that are made, since keys lie in them.
const DIRECTORY: u32 = 0o700;

/// A certificate is valid from this long ago, for nodes whose clock is behind.
const BACKDATED: Duration = Duration::hours(1);

/// The largest file that is read: a bundle of a thousand authorities takes 2 MiB.
const FILE_MAX: u64 = 16 << 20;

/// Bytes of a serial number: random, so that no two certificates of an authority have the same.
const SERIAL_LEN: usize = 16;

/// The otherName that existing Receptor installations look at.
const RECEPTOR_NAME: [u64; 9] = [1, 3, 6, 1, 4, 1, 2312, 19, 1];

/// `cert init-ca`
pub(super) fn init_ca(args: &CertInitCa) -> Result<Exit, Failure> {
    let key = new_key()?;
    let mut params = lasting(args.days, None)?;
    params
        .distinguished_name
        .push(DnType::CommonName, args.name.clone());
    // It issues nodes' certificates and nothing that issues further ones.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
    ];
    let certificate = params.self_signed(&key).map_err(|e| defect(&e))?.pem();
    let files = Files::new(&args.out, CA_CERTIFICATE, CA_KEY, args.force)?;
    files.write(&certificate, &key)?;
    note(&format!(
        "give {} to every node; keep {} where only you can read it",
        files.certificate.display(),
        files.key.display()
    ));
    Ok(Exit::Done)
}

/// `cert issue`
pub(super) fn issue(args: &CertIssue) -> Result<Exit, Failure> {
    let node = &args.node;
    let files = Files::new(
        &args.out,
        &format!("{node}.pem"),
        &format!("{node}.key"),
        args.force,
    )?;
    let authority = Authority::read(&args.ca)?;
    if files.certificate.file_name() == Some(CA_CERTIFICATE.as_ref()) && same(&args.out, &args.ca) {
        let text =
            "a node of this name has its files where the authority's are: choose another --out";
        return Err(Failure::new(Exit::Usage, text));
    }
    let key = new_key()?;
    let mut params = lasting(args.days, Some(&authority))?;
    params
        .distinguished_name
        .push(DnType::CommonName, common_name(node));
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.use_authority_key_identifier_extension = true;
    params.subject_alt_names = names(args).map_err(|e| defect(&e))?;
    let certificate = params
        .signed_by(&key, &authority.issuer)
        .map_err(|e| defect(&e))?;
    // An authority of several certificates is one between a root and the nodes: theirs have to tell the way.
    let mut text = certificate.pem();
    if let [_, _, ..] = authority.chain.as_slice() {
        text.push_str(&authority.text);
    }
    authority.check(&text, &key, node)?;
    files.write(&text, &key)?;
    note(&format!(
        "{node} needs both, and {} of the authority",
        args.ca.join(CA_CERTIFICATE).display()
    ));
    Ok(Exit::Done)
}

/// `cert show`
pub(super) fn show(file: &Path, json: bool) -> Result<Exit, Failure> {
    let bytes = read(file)?;
    let bad = |error: &dyn std::fmt::Display| {
        Failure::new(Exit::Failed, format!("{}: {error}", file.display()))
    };
    let certificates = read_certificates(&bytes).map_err(|e| bad(&e))?;
    let now = now()?;
    let mut out = Out::new();
    for (index, der) in certificates.iter().enumerate() {
        let facts = Certificate::from_der(der).map_err(|e| bad(&e))?;
        if json {
            out.line(as_json(&facts, now).to_string())?;
            continue;
        }
        if index > 0 {
            out.line("")?;
        }
        for (name, value) in as_text(&facts, now) {
            out.line(format!("{name:<12}  {}", printable(&value)))?;
        }
    }
    out.flush()?;
    Ok(Exit::Done)
}

/// Whether both name one directory.
fn same(one: &Path, other: &Path) -> bool {
    let real = |path: &Path| fs::canonicalize(path).ok();
    real(one).is_some_and(|one| real(other) == Some(one))
}

fn as_json(facts: &Certificate, now: u64) -> serde_json::Value {
    let (node_ids, error) = match &facts.node_ids {
        Ok(ids) => (ids.as_slice(), None),
        Err(error) => (&[][..], Some(error.to_string())),
    };
    let mut value = serde_json::json!({
        "subject": facts.subject,
        "node-ids": node_ids,
        "dns-names": facts.dns_names,
        "ip-addresses": facts.ip_addresses,
        "other-names": facts.other_names,
        "issuer": facts.issuer,
        "serial": facts.serial,
        "not-before": date(facts.not_before),
        "not-after": date(facts.not_after),
        "not-before-unix": facts.not_before,
        "not-after-unix": facts.not_after,
        "expired": now > facts.not_after,
        "authority": facts.is_authority,
        "uses": facts.uses,
        "key": facts.key,
        "fingerprint": facts.fingerprint.to_string(),
    });
    if let (Some(error), Some(fields)) = (error, value.as_object_mut()) {
        fields.insert("node-ids-error".to_owned(), error.into());
    }
    value
}

fn as_text(facts: &Certificate, now: u64) -> Vec<(&'static str, String)> {
    let mut lines = vec![("subject", facts.subject.clone())];
    match &facts.node_ids {
        Ok(ids) if ids.is_empty() && facts.is_authority => {}
        Ok(ids) if ids.is_empty() => {
            lines.push(("node ids", "none: no node can use it".to_owned()));
        }
        Ok(ids) => lines.push(("node ids", joined(ids))),
        Err(error) => lines.push(("node ids", format!("none that can be used: {error}"))),
    }
    for (name, values) in [
        ("host names", joined(&facts.dns_names)),
        ("addresses", joined(&facts.ip_addresses)),
        ("other names", joined(&facts.other_names)),
    ] {
        if !values.is_empty() {
            lines.push((name, values));
        }
    }
    let uses = match (facts.is_authority, facts.uses.is_empty()) {
        (true, _) => "authority".to_owned(),
        (false, true) => "any".to_owned(),
        (false, false) => joined(&facts.uses),
    };
    lines.extend([
        ("issuer", facts.issuer.clone()),
        ("serial", facts.serial.clone()),
        ("use", uses),
        ("key", facts.key.clone()),
        ("valid from", since(facts.not_before, now)),
        ("valid until", until(facts.not_after, now)),
        ("fingerprint", facts.fingerprint.to_string()),
    ]);
    lines
}

fn since(time: u64, now: u64) -> String {
    match time.checked_sub(now) {
        Some(ahead @ 1..) => format!(
            "{}, in {}",
            date(time),
            duration(ahead.saturating_mul(1000))
        ),
        _ => date(time),
    }
}

fn until(time: u64, now: u64) -> String {
    let text = |ms: u64| duration(ms.saturating_mul(1000));
    match time.checked_sub(now) {
        Some(left) => format!("{}, for {}", date(time), text(left)),
        None => format!("{}, EXPIRED {} ago", date(time), text(now - time)),
    }
}

fn joined<T: ToString>(values: &[T]) -> String {
    let texts: Vec<String> = values.iter().map(ToString::to_string).collect();
    texts.join(", ")
}

/// The names of a node in both forms, and what else was asked for.
fn names(args: &CertIssue) -> Result<Vec<SanType>, rcgen::Error> {
    let id = args.node.as_str();
    let mut names = vec![
        SanType::URI(format!("receptor:{id}").try_into()?),
        SanType::OtherName((
            RECEPTOR_NAME.to_vec(),
            OtherNameValue::Utf8String(id.to_owned()),
        )),
    ];
    for name in &args.dns {
        names.push(SanType::DnsName(name.clone().try_into()?));
    }
    names.extend(args.ip.iter().copied().map(SanType::IpAddress));
    Ok(names)
}

/// A common name has at most 64 characters, and a node id up to 128, all ASCII. It is for people: nodes look at the
/// alternative names only.
fn common_name(node: &NodeId) -> &str {
    let id = node.as_str();
    id.get(..64).unwrap_or(id)
}

/// A certificate that is valid for so many days, and not after its authority.
fn lasting(days: u32, authority: Option<&Authority>) -> Result<CertificateParams, Failure> {
    let unix = |seconds: u64| {
        i64::try_from(seconds)
            .ok()
            .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
            .ok_or_else(|| Failure::new(Exit::Internal, "the clock of this host is out of range"))
    };
    let now = unix(now()?)?;
    let mut params = CertificateParams::default();
    params.not_before = now - BACKDATED;
    params.not_after = now + Duration::days(i64::from(days));
    if let Some(authority) = authority {
        let (first, last) = (
            unix(authority.facts.not_before)?,
            unix(authority.facts.not_after)?,
        );
        params.not_before = params.not_before.max(first);
        if last < params.not_after {
            params.not_after = last;
            note(&format!(
                "valid until {} only, when the authority expires",
                date(authority.facts.not_after)
            ));
        }
    }
    let mut serial = random()?;
    // Positive, and of full length.
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from(serial.to_vec()));
    Ok(params)
}

fn random() -> Result<[u8; SERIAL_LEN], Failure> {
    let mut bytes = [0; SERIAL_LEN];
    fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|e| Failure::system("cannot read /dev/urandom", &e))?;
    Ok(bytes)
}

/// P-256: every implementation of TLS knows it.
fn new_key() -> Result<KeyPair, Failure> {
    KeyPair::generate().map_err(|e| defect(&e))
}

fn defect(error: &rcgen::Error) -> Failure {
    Failure::new(
        Exit::Internal,
        format!("cannot make a certificate: {error}"),
    )
}

fn now() -> Result<u64, Failure> {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map(|now| now.as_secs())
        .map_err(|_| Failure::new(Exit::Internal, "the clock of this host is before 1970"))
}

/// Who issues.
struct Authority {
    /// The file, and what is in it: the authority first, then those it rests on.
    text: String,
    chain: Vec<CertificateDer<'static>>,
    facts: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn read(directory: &Path) -> Result<Self, Failure> {
        let certificate = directory.join(CA_CERTIFICATE);
        let bad = |path: &Path, text: &str| {
            Failure::new(Exit::Failed, format!("{}: {text}", path.display()))
        };
        let bytes = read(&certificate)?;
        let chain = read_certificates(&bytes).map_err(|e| bad(&certificate, &e.to_string()))?;
        let Some(first) = chain.first() else {
            return Err(bad(&certificate, "there is no certificate in it"));
        };
        let facts = Certificate::from_der(first).map_err(|e| bad(&certificate, &e.to_string()))?;
        if !facts.is_authority {
            return Err(bad(
                &certificate,
                "it is not the certificate of an authority",
            ));
        }
        if now()? > facts.not_after {
            let text = format!("the authority expired at {}", date(facts.not_after));
            return Err(bad(&certificate, &text));
        }
        let text =
            String::from_utf8(bytes.to_vec()).map_err(|_| bad(&certificate, "it is not in PEM"))?;
        let path = directory.join(CA_KEY);
        let key = read(&path)?;
        // Without what the reader says, which may quote the file.
        let key = PrivateKeyDer::from_pem_slice(&key)
            .ok()
            .and_then(signer)
            .ok_or_else(|| bad(&path, "there is no private key in it that can be used"))?;
        let issuer =
            Issuer::from_ca_cert_der(first, key).map_err(|e| bad(&certificate, &e.to_string()))?;
        Ok(Self {
            text,
            facts,
            issuer,
            chain,
        })
    }

    /// Looks at a new certificate as a node will.
    fn check(&self, certificate: &str, key: &KeyPair, node: &NodeId) -> Result<(), Failure> {
        let bad = |error: &dyn std::fmt::Display| {
            let text = format!(
                "nodes would refuse what this authority issues: {error}; \
                 do {CA_CERTIFICATE} and {CA_KEY} belong together?"
            );
            Failure::new(Exit::Failed, text)
        };
        let key = Zeroizing::new(key.serialize_pem());
        let own =
            Credentials::from_pem(certificate.as_bytes(), key.as_bytes()).map_err(|e| bad(&e))?;
        let trust = Trust::new(self.text.as_bytes()).map_err(|e| bad(&e))?;
        let now = UnixTime::now();
        for role in [Role::Client, Role::Server] {
            let verified = trust.verify(own.chain(), role, now).map_err(|e| bad(&e))?;
            verified.is_for(node).map_err(|e| bad(&e))?;
        }
        Ok(())
    }
}

/// The key of an authority. Those of existing installations are RSA in PKCS#1, which rcgen does not read.
fn signer(key: PrivateKeyDer<'static>) -> Option<KeyPair> {
    let mut key = key;
    let read = |der: &[u8]| KeyPair::try_from(der).ok();
    let wrapped = |kind| read(&pkcs8(kind, key.secret_der()));
    let signer = if matches!(key, PrivateKeyDer::Pkcs1(_)) {
        wrapped(&alg_id::RSA_ENCRYPTION)
    } else if matches!(key, PrivateKeyDer::Sec1(_)) {
        wrapped(&alg_id::ECDSA_P256).or_else(|| wrapped(&alg_id::ECDSA_P384))
    } else {
        read(key.secret_der())
    };
    key.zeroize();
    signer
}

/// `PrivateKeyInfo ::= SEQUENCE { version 0, algorithm, key OCTET STRING }`
fn pkcs8(kind: &AlgorithmIdentifier, key: &[u8]) -> Zeroizing<Vec<u8>> {
    let version = [2, 1, 0];
    let content = [&version[..], &der(0x30, kind.as_ref()), &der(0x04, key)];
    let content = Zeroizing::new(content.concat());
    der(0x30, &content)
}

/// A value with its tag and length.
fn der(tag: u8, content: &[u8]) -> Zeroizing<Vec<u8>> {
    let length = content.len().to_be_bytes();
    let zeros = length.iter().take_while(|byte| **byte == 0).count();
    let digits = length.get(zeros..).unwrap_or_default();
    let mut bytes = Zeroizing::new(Vec::with_capacity(2 + digits.len() + content.len()));
    bytes.push(tag);
    match digits {
        [] => bytes.push(0),
        [short @ 0..128] => bytes.push(*short),
        long => {
            // At most eight digits.
            bytes.push(0x80 | long.len().to_le_bytes()[0]);
            bytes.extend_from_slice(long);
        }
    }
    bytes.extend_from_slice(content);
    bytes
}

/// The pair of files that a command makes.
struct Files {
    directory: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
    force: bool,
}

impl Files {
    /// Refuses before anything is made.
    fn new(directory: &Path, certificate: &str, key: &str, force: bool) -> Result<Self, Failure> {
        let files = Self {
            directory: directory.to_owned(),
            certificate: directory.join(certificate),
            key: directory.join(key),
            force,
        };
        for path in [&files.certificate, &files.key] {
            if !force && path.symlink_metadata().is_ok() {
                return Err(there_already(path));
            }
        }
        Ok(files)
    }

    /// Both are on the disk before either gets its name. The key first: a key without certificate is of no use to
    /// anybody, the other way round it would look complete.
    fn write(&self, certificate: &str, key: &KeyPair) -> Result<(), Failure> {
        DirBuilder::new()
            .recursive(true)
            .mode(DIRECTORY)
            .create(&self.directory)
            .map_err(|e| cannot(&self.directory, &e))?;
        let key = Zeroizing::new(key.serialize_pem());
        let new_key = self.stage(&self.key, key.as_bytes(), SECRET)?;
        let new_certificate = self.stage(&self.certificate, certificate.as_bytes(), PUBLIC)?;
        self.place(&self.key, new_key)?;
        let placed = self.place(&self.certificate, new_certificate);
        if placed.is_err() && !self.force {
            // It was made just now, and is of no use alone.
            let _ = fs::remove_file(&self.key);
        }
        placed?;
        fs::File::open(&self.directory)
            .and_then(|directory| directory.sync_all())
            .map_err(|e| cannot(&self.directory, &e))?;
        let mut out = Out::new();
        for path in [&self.certificate, &self.key] {
            out.line(path.display().to_string())?;
        }
        out.flush()
    }

    fn stage(&self, path: &Path, content: &[u8], mode: u32) -> Result<NamedTempFile, Failure> {
        let make = || {
            let mut file = tempfile::Builder::new()
                .permissions(Permissions::from_mode(SECRET))
                .tempfile_in(&self.directory)?;
            file.write_all(content)?;
            file.as_file()
                .set_permissions(Permissions::from_mode(mode))?;
            file.as_file().sync_all()?;
            Ok(file)
        };
        make().map_err(|e| cannot(path, &e))
    }

    fn place(&self, path: &Path, file: NamedTempFile) -> Result<(), Failure> {
        let placed = if self.force {
            file.persist(path)
        } else {
            file.persist_noclobber(path)
        };
        match placed {
            Ok(_) => Ok(()),
            Err(e) if e.error.kind() == ErrorKind::AlreadyExists => Err(there_already(path)),
            Err(e) => Err(cannot(path, &e.error)),
        }
    }
}

fn there_already(path: &Path) -> Failure {
    Failure::new(
        Exit::Usage,
        format!("{} is there already; --force overwrites it", path.display()),
    )
}

fn cannot(path: &Path, error: &io::Error) -> Failure {
    Failure::new(
        exit_of(error),
        format!("cannot write {}: {error}", path.display()),
    )
}

/// The whole file; wiped when it is dropped, since it may be a key.
fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let read = || {
        let file = fs::File::open(path)?;
        let size = file.metadata()?.len().min(FILE_MAX);
        // Not grown while it is read, which would leave copies behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(size).unwrap_or(0) + 1));
        file.take(FILE_MAX + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > FILE_MAX {
            return Err(ErrorKind::FileTooLarge.into());
        }
        Ok(bytes)
    };
    read().map_err(|e| Failure::new(exit_of(&e), format!("cannot read {}: {e}", path.display())))
}

/// A path that is not there or of another kind is a wrong command line.
fn exit_of(error: &io::Error) -> Exit {
    let usage = [
        ErrorKind::NotFound,
        ErrorKind::NotADirectory,
        ErrorKind::IsADirectory,
        ErrorKind::AlreadyExists,
        ErrorKind::FileTooLarge,
    ];
    if error.kind() == ErrorKind::PermissionDenied {
        Exit::NotPermitted
    } else if usage.contains(&error.kind()) {
        Exit::Usage
    } else {
        Exit::Internal
    }
}
