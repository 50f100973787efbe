//! TLS under a link, at both ends.
//!
//! Owns turning a connection into an encrypted one with the keys of now, and the words for what goes wrong there.
//! Whom to believe is decided by `receptor-identity`.

mod handshake;
mod incoming;
mod records;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use receptor_identity::tls::{peer_chain, refusal};
use receptor_identity::{Role, UnixTime};
use receptor_proto::{ErrorBody, ErrorCode};
use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::{AlertDescription, CommonState, InvalidMessage};
use rustls_pki_types::{DnsName, IpAddr, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use self::handshake::Handshake;
pub(super) use self::records::Records;
pub(crate) use self::records::fuzz;
use super::proven::Proven;
use super::transport::ConnectError;
use crate::config::Host;
use crate::keyring::{Keyring, Keys, seconds_since_1970};

/// Bytes that are read and dropped after a refusal, so that the alert that says why is not lost with them: closing
/// a socket with unread bytes resets the connection. A client's certificates and first frames are far smaller.
const DRAIN_MAX: u64 = 128 * 1024;
/// Time for that.
const DRAIN_TIME: Duration = Duration::from_secs(1);

/// The end that opened the connection.
pub(super) async fn connect<S>(
    stream: S,
    host: &Host,
    keyring: &Keyring,
) -> Result<(Records<S>, Proven), ConnectError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let keys = keyring.keys().ok_or(ConnectError::NoKeys)?;
    let config = Arc::clone(&keys.configs.client);
    let end = UnbufferedClientConnection::new(config, server_name(host)).map_err(broken)?;
    let mut handshake = Handshake::new(stream, end);
    handshake.complete().await.map_err(ConnectError::Tls)?;
    let proven = proven(handshake.state(), Role::Server, &keys)?;
    Ok((handshake.into_records().map_err(broken)?, proven))
}

/// The end that accepted it.
pub(super) async fn accept<S>(
    stream: S,
    keyring: &Keyring,
) -> Result<(Records<S>, Proven), ConnectError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let keys = keyring.keys().ok_or(ConnectError::NoKeys)?;
    let config = Arc::clone(&keys.configs.server);
    let end = UnbufferedServerConnection::new(config).map_err(broken)?;
    let mut handshake = Handshake::new(stream, end);
    if let Err(error) = handshake.complete().await {
        let mut stream = handshake.into_stream();
        let drain = async {
            let _ = stream.shutdown().await;
            let mut rest = stream.take(DRAIN_MAX);
            let _ = tokio::io::copy(&mut rest, &mut tokio::io::sink()).await;
        };
        let _ = tokio::time::timeout(DRAIN_TIME, drain).await;
        return Err(ConnectError::Tls(error));
    }
    let proven = proven(handshake.state(), Role::Client, &keys)?;
    Ok((handshake.into_records().map_err(broken)?, proven))
}

fn broken(error: rustls::Error) -> ConnectError {
    ConnectError::Tls(io::Error::new(io::ErrorKind::InvalidData, error))
}

/// What is sent for the other end to choose a certificate by; nobody compares it with anything.
fn server_name(host: &Host) -> ServerName<'static> {
    let unnamed = ServerName::IpAddress(IpAddr::from(std::net::IpAddr::from([0, 0, 0, 0])));
    match host {
        Host::Ip(ip) => ServerName::IpAddress(IpAddr::from(*ip)),
        Host::Name(name) => DnsName::try_from(name.clone()).map_or(unnamed, ServerName::DnsName),
    }
}

/// Who the other end of an established connection is, and until when that holds.
fn proven(connection: &CommonState, role: Role, keys: &Keys) -> Result<Proven, ConnectError> {
    let chain = peer_chain(connection);
    let now = UnixTime::since_unix_epoch(Duration::from_secs(seconds_since_1970()));
    let verified = keys.trust.verify(chain, role, now)?;
    Ok(Proven {
        chain: chain.to_vec(),
        role,
        node_ids: verified.node_ids,
        not_after: verified.not_after,
    })
}

/// What a connection failed with, in words for the operator.
pub(super) fn fault(error: &io::Error) -> ErrorBody {
    let inner = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let Some(inner) = inner else {
        // What rustls says of a peer that was killed is a lesson on truncation; frames have a length of their own.
        let text = if error.kind() == io::ErrorKind::UnexpectedEof {
            "the peer closed the connection".to_owned()
        } else {
            error.to_string()
        };
        return ErrorBody::new(ErrorCode::Transport, text);
    };
    if let Some(refusal) = refusal(inner) {
        let text = format!("the other end's certificate is refused: {refusal}");
        return ErrorBody::new(ErrorCode::Untrusted, text);
    }
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "a foreign enum that grows; all others are told as they are"
    )]
    match inner {
        rustls::Error::AlertReceived(alert) => match why(*alert) {
            Some(why) => {
                let text = format!("the other end refuses this node's certificate: {why}");
                ErrorBody::new(ErrorCode::Untrusted, text)
            }
            None => {
                let text = format!("the other end ends the connection: {inner}");
                ErrorBody::new(ErrorCode::Transport, text)
            }
        },
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            let text = "the other end does not speak TLS";
            ErrorBody::new(ErrorCode::Transport, text)
        }
        other => ErrorBody::new(ErrorCode::Transport, format!("TLS: {other}")),
    }
}

/// The alerts that are about a certificate.
fn why(alert: AlertDescription) -> Option<&'static str> {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "a foreign enum that grows; all others are not about certificates"
    )]
    match alert {
        AlertDescription::CertificateExpired => Some("it has expired, or is not valid yet"),
        AlertDescription::CertificateRevoked => Some("it is revoked"),
        AlertDescription::UnknownCA => Some("it is not from an authority that is trusted there"),
        AlertDescription::CertificateRequired => Some("none was presented"),
        AlertDescription::UnsupportedCertificate => Some("it is not for this use"),
        AlertDescription::BadCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::AccessDenied => Some("the log there says why"),
        _ => None,
    }
}
