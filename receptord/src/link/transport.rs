//! The transports that links run over: making a connection and taking one.
//!
//! Owns the layers from the socket up to the moment when a [`Transport`] is handed over: a pair of byte streams with
//! an address and, with TLS, a proven identity. Whoever runs a link knows nothing of what is below.
//!
//! ```text
//!   rnp     rnps    ws           wss          unix
//!                   web socket   web socket
//!           TLS                  TLS
//!   TCP     TCP     TCP, or a tunnel through a proxy     Unix socket
//! ```

use std::fmt;
use std::io;
use std::net::SocketAddr;

use receptor_identity::Refusal;
use receptor_proto::{ErrorBody, ErrorCode};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use super::proven::Proven;
use super::proxy::{self, Proxies, ProxyError};
use super::{reach, tls, websocket};
use crate::config::{LinkUrl, Peer};
use crate::keyring::Keyring;

/// The two directions of a connection.
pub(crate) struct Transport {
    /// From the peer.
    pub(crate) reader: Box<dyn AsyncRead + Unpin>,
    /// To the peer.
    pub(crate) writer: Box<dyn AsyncWrite + Unpin>,
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Transport")
    }
}

/// A connection that is ready for the link protocol.
#[derive(Debug)]
pub(crate) struct Connected {
    /// Its bytes.
    pub(crate) transport: Transport,
    /// The other end, for people.
    pub(crate) address: String,
    /// Who the other end is proven to be.
    pub(crate) proven: Option<Proven>,
}

/// A connection that was accepted, and of which nothing was read.
#[derive(Debug)]
pub(super) enum Accepted {
    /// Over TCP, from there.
    Tcp(TcpStream, SocketAddr),
    /// From a process of this host.
    Unix(UnixStream),
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    /// The name has no address.
    #[error("{name} cannot be resolved: {source}")]
    Resolve {
        /// The name.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// Nobody answers there.
    #[error("{address}: {source}")]
    Connect {
        /// Where.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// The address is not on this host and the link is not encrypted.
    #[error(
        "{address} is not on this host, and links without TLS are not allowed there: use rnps:// or wss://, or set allow-plaintext = true"
    )]
    Exposed {
        /// Where.
        address: SocketAddr,
    },
    /// This node has no certificate, because `[tls]` is not in force.
    #[error("there is no certificate for TLS: [tls] is not in force")]
    NoKeys,
    /// The TLS handshake failed.
    #[error(transparent)]
    Tls(io::Error),
    /// The other end's certificate is not believed.
    #[error("the other end's certificate is refused: {0}")]
    Refused(#[from] Refusal),
    /// The proxy does not help.
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    /// The other end does not speak web socket, or not here.
    #[error("{0}")]
    WebSocket(String),
}

impl ConnectError {
    /// For `links` and the log.
    pub(super) fn body(&self) -> ErrorBody {
        match self {
            Self::Tls(error) => tls::fault(error),
            Self::Refused(_) => ErrorBody::new(ErrorCode::Untrusted, self.to_string()),
            Self::Resolve { .. }
            | Self::Connect { .. }
            | Self::Exposed { .. }
            | Self::NoKeys
            | Self::Proxy(_)
            | Self::WebSocket(_) => ErrorBody::new(ErrorCode::Transport, self.to_string()),
        }
    }
}

/// Connects to a peer.
pub(super) async fn connect(
    peer: &Peer,
    keyring: &Keyring,
    proxies: &Proxies,
) -> Result<Connected, ConnectError> {
    match &peer.url {
        LinkUrl::Unix(path) => match UnixStream::connect(path).await {
            Ok(stream) => Ok(unix(stream, &peer.url)),
            Err(source) => Err(ConnectError::Connect {
                address: peer.url.to_string(),
                source,
            }),
        },
        LinkUrl::Tcp { tls, host, port } => {
            let stream = reach::connect(host, *port, *tls || peer.allow_plaintext).await?;
            let address = peer_address(&stream);
            if !tls {
                return Ok(plain(stream, address));
            }
            let (stream, proven) = tls::connect(stream, host, keyring).await?;
            Ok(layered(stream, address, Some(proven)))
        }
        LinkUrl::WebSocket {
            tls, host, port, ..
        } => {
            let anywhere = *tls || peer.allow_plaintext;
            let stream = match proxies.of(*tls, host)? {
                Some(proxy) => proxy::tunnel(&proxy, host, *port, anywhere).await?,
                None => reach::connect(host, *port, anywhere).await?,
            };
            let address = peer_address(&stream);
            if *tls {
                let (stream, proven) = tls::connect(stream, host, keyring).await?;
                let stream = websocket::connect(stream, peer).await?;
                Ok(layered(stream, address, Some(proven)))
            } else {
                let stream = websocket::connect(stream, peer).await?;
                Ok(layered(stream, address, None))
            }
        }
    }
}

/// Makes a link of a connection that was accepted at `url`, unless it comes from a place that must not be served
/// without encryption.
pub(super) async fn accept(
    accepted: Accepted,
    url: &LinkUrl,
    allow_plaintext: bool,
    keyring: &Keyring,
) -> Result<Connected, ConnectError> {
    let (stream, from) = match accepted {
        Accepted::Unix(stream) => return Ok(unix(stream, url)),
        Accepted::Tcp(stream, from) => (stream, from),
    };
    if !url.is_tls() && !allow_plaintext && !reach::is_local(from.ip()) {
        return Err(ConnectError::Exposed { address: from });
    }
    reach::prepare(&stream);
    let address = from.to_string();
    match url {
        LinkUrl::Tcp { tls: false, .. } | LinkUrl::Unix(_) => Ok(plain(stream, address)),
        LinkUrl::Tcp { tls: true, .. } => {
            let (stream, proven) = tls::accept(stream, keyring).await?;
            Ok(layered(stream, address, Some(proven)))
        }
        LinkUrl::WebSocket {
            tls: false, path, ..
        } => {
            let stream = websocket::accept(stream, path).await?;
            Ok(layered(stream, address, None))
        }
        LinkUrl::WebSocket {
            tls: true, path, ..
        } => {
            let (stream, proven) = tls::accept(stream, keyring).await?;
            let stream = websocket::accept(stream, path).await?;
            Ok(layered(stream, address, Some(proven)))
        }
    }
}

fn plain(stream: TcpStream, address: String) -> Connected {
    let (reader, writer) = stream.into_split();
    Connected {
        transport: Transport {
            reader: Box::new(reader),
            writer: Box::new(writer),
        },
        address,
        proven: None,
    }
}

fn layered<S>(stream: S, address: String, proven: Option<Proven>) -> Connected
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let (reader, writer) = tokio::io::split(stream);
    Connected {
        transport: Transport {
            reader: Box::new(reader),
            writer: Box::new(writer),
        },
        address,
        proven,
    }
}

/// Who may connect is the matter of the socket's file mode; who did is told.
fn unix(stream: UnixStream, url: &LinkUrl) -> Connected {
    let address = match stream.peer_cred() {
        Ok(peer) => {
            let pid = peer
                .pid()
                .map_or_else(String::new, |pid| format!(", pid {pid}"));
            format!("{url} (uid {}, gid {}{pid})", peer.uid(), peer.gid())
        }
        Err(_) => url.to_string(),
    };
    let (reader, writer) = stream.into_split();
    Connected {
        transport: Transport {
            reader: Box::new(reader),
            writer: Box::new(writer),
        },
        address,
        proven: None,
    }
}

fn peer_address(stream: &TcpStream) -> String {
    stream
        .peer_addr()
        .map_or_else(|_| "?".to_owned(), |address| address.to_string())
}
