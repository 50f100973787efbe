//! TLS between two nodes: 1.3 only, both sides present certificates, host names play no part.
//!
//! Owns the settings of rustls. There is no resumption and no early data: every connection is a full handshake, so
//! that none outlives a revocation and no secret of a session is stored.

use std::sync::Arc;
use std::time::Duration;

use receptor_proto::NodeId;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConfig, Resumption};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ServerConfig};
use rustls::sign::SingleCertAndKey;
use rustls::time_provider::TimeProvider;
use rustls::{
    CertRevocationListError, CertificateError, CommonState, DigitallySignedStruct,
    DistinguishedName, OtherError, PeerIncompatible, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::certificate::{node_ids, parse};
use crate::credentials::Credentials;
use crate::error::Refusal;
use crate::trust::{Role, Trust};

/// The two ends of a link, made anew at every change of certificates, keys or trust; connections that there are
/// keep theirs.
#[derive(Debug, Clone)]
pub struct Configs {
    /// For connections that are accepted. Both give their keys to whoever encrypts records in place of rustls.
    pub server: Arc<ServerConfig>,
    /// For connections that are opened. The server name that rustls asks for is sent, and not compared with anything.
    pub client: Arc<ClientConfig>,
}

impl Configs {
    /// Settings with this node's credentials, for peers that `trust` believes and that have a node id. `clock` says at
    /// what time certificates are looked at: [`rustls::time_provider::DefaultTimeProvider`], or one of a test.
    ///
    /// # Errors
    ///
    /// When rustls has no such protocol, which is a defect of the build.
    pub fn new(
        credentials: &Credentials,
        trust: Trust,
        clock: Arc<dyn TimeProvider>,
    ) -> Result<Self, rustls::Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let resolver = Arc::new(SingleCertAndKey::from(credentials.certified_key()));
        let verifier = Arc::new(Verifier {
            authorities: trust.subjects(),
            trust,
            provider: Arc::clone(&provider),
        });
        let mut server =
            ServerConfig::builder_with_details(Arc::clone(&provider), Arc::clone(&clock))
                .with_protocol_versions(&[&rustls::version::TLS13])?
                .with_client_cert_verifier(Arc::clone(&verifier) as Arc<dyn ClientCertVerifier>)
                .with_cert_resolver(Arc::clone(&resolver) as _);
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        server.max_early_data_size = 0;
        server.enable_secret_extraction = true;
        let mut client = ClientConfig::builder_with_details(provider, clock)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_cert_resolver(resolver);
        client.resumption = Resumption::disabled();
        client.enable_early_data = false;
        client.enable_secret_extraction = true;
        Ok(Self {
            server: Arc::new(server),
            client: Arc::new(client),
        })
    }
}

/// The node ids that the peer of a connection has proved to be allowed; its hello must name one of them.
///
/// # Errors
///
/// When the handshake is not over.
pub fn peer_ids(connection: &CommonState) -> Result<Vec<NodeId>, Refusal> {
    let first = peer_chain(connection).first();
    let ids = node_ids(&parse(first.ok_or(Refusal::NoCertificate)?)?)?;
    if ids.is_empty() {
        return Err(Refusal::NoNodeId);
    }
    Ok(ids)
}

/// The certificates that the peer of a connection presented, its own first; none while the handshake is not over.
/// With [`Trust::verify`] they tell whether a link that exists would still be made.
#[must_use]
pub fn peer_chain(connection: &CommonState) -> &[CertificateDer<'static>] {
    if connection.is_handshaking() {
        return &[];
    }
    connection.peer_certificates().unwrap_or_default()
}

/// Why this end refused the peer, out of what a connection failed with; nothing when it failed otherwise, also when it
/// is the peer that refused.
#[must_use]
pub fn refusal(error: &rustls::Error) -> Option<Refusal> {
    let (rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(other)))
    | rustls::Error::InvalidCertRevocationList(CertRevocationListError::Other(OtherError(
        other,
    )))) = error
    else {
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "foreign enums that grow; all others are no refusals of ours"
        )]
        return match error {
            rustls::Error::NoCertificatesPresented => Some(Refusal::NoCertificate),
            rustls::Error::InvalidCertificate(error) => match error {
                CertificateError::Revoked => Some(Refusal::Revoked),
                CertificateError::UnknownRevocationStatus => Some(Refusal::NoRevocationList),
                CertificateError::UnknownIssuer => Some(Refusal::UnknownIssuer),
                CertificateError::InvalidPurpose => Some(Refusal::WrongUse),
                CertificateError::ExpiredContext { not_after, .. } => Some(Refusal::Expired {
                    not_after: not_after.as_secs(),
                }),
                CertificateError::NotValidYetContext { not_before, .. } => {
                    Some(Refusal::NotYetValid {
                        not_before: not_before.as_secs(),
                    })
                }
                _ => None,
            },
            _ => None,
        };
    };
    other.downcast_ref::<Refusal>().cloned()
}

#[derive(Debug)]
struct Verifier {
    trust: Trust,
    authorities: Vec<DistinguishedName>,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn decide(
        &self,
        first: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        role: Role,
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let mut chain = vec![first.clone()];
        chain.extend_from_slice(between);
        match self.trust.verify(&chain, role, now) {
            Ok(_) => Ok(()),
            Err(refusal) => Err(told(refusal, now)),
        }
    }

    fn signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// The refusal as rustls knows it, so that the peer gets the alert that fits.
fn told(refusal: Refusal, time: UnixTime) -> rustls::Error {
    let unix = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
    match refusal {
        Refusal::NoCertificate => rustls::Error::NoCertificatesPresented,
        Refusal::Revoked => CertificateError::Revoked.into(),
        Refusal::NoRevocationList => CertificateError::UnknownRevocationStatus.into(),
        Refusal::UnknownIssuer => CertificateError::UnknownIssuer.into(),
        Refusal::WrongUse => CertificateError::InvalidPurpose.into(),
        Refusal::Expired { not_after } => CertificateError::ExpiredContext {
            time,
            not_after: unix(not_after),
        }
        .into(),
        Refusal::NotYetValid { not_before } => CertificateError::NotValidYetContext {
            time,
            not_before: unix(not_before),
        }
        .into(),
        Refusal::RevocationList(_) => {
            CertRevocationListError::Other(OtherError(Arc::new(refusal))).into()
        }
        Refusal::TooLarge
        | Refusal::Certificate(_)
        | Refusal::NoNodeId
        | Refusal::NodeIds(_)
        | Refusal::OtherNode { .. }
        | Refusal::NotPinned
        | Refusal::KeyKind
        | Refusal::Signature
        | Refusal::Statement(_)
        | Refusal::UnknownNode
        | Refusal::UnknownKey
        | Refusal::NoKey
        | Refusal::NotOurs
        | Refusal::NotAuthentic => CertificateError::Other(OtherError(Arc::new(refusal))).into(),
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.decide(end_entity, intermediates, Role::Server, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerIncompatible::Tls13RequiredForQuic.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.authorities
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.decide(end_entity, intermediates, Role::Client, now)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerIncompatible::Tls13RequiredForQuic.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}
