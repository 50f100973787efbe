//! The transports that links run over: making a connection and taking one.
//!
//! Owns addresses, sockets and their options up to the moment when a [`Transport`] is handed
//! over: a pair of byte streams with an address and, once there is TLS, a proven identity.
//! Whoever runs a link knows nothing of what is below. Enforces that a link that can be read
//! on a network is one that the configuration allows, on the address that is really used.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use receptor_proto::NodeId;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinSet;

use crate::config::{Host, LinkUrl};

/// A dead peer is found by the core's hold time; with this the system finds one also while this
/// daemon itself is stopped.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
/// Between two keepalive probes.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
/// Bytes that the system takes from us before it has sent the ones before. What it has is out
/// of reach of priorities: on a slow link a probe would wait behind megabytes.
const NOTSENT_MAX: u32 = 128 * 1024;
/// The head start that an address of a peer gets before the next one is tried beside it
/// (RFC 8305 calls it the connection attempt delay).
const HEAD_START: Duration = Duration::from_millis(250);
/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 8;

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
    pub(crate) proven: Option<NodeId>,
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
    /// This build does not know the transport.
    #[error("this build has no {missing}")]
    Unsupported {
        /// What it lacks.
        missing: &'static str,
    },
}

/// What this build would need for links of this URL and does not have. To use a plain connection
/// in place of what was asked for would give away what the link carries.
pub(crate) fn missing(url: &LinkUrl) -> Option<&'static str> {
    match url {
        LinkUrl::Tcp { tls: false, .. } | LinkUrl::Unix(_) => None,
        LinkUrl::Tcp { tls: true, .. } => Some("TLS"),
        LinkUrl::WebSocket { tls: false, .. } => Some("WebSocket"),
        LinkUrl::WebSocket { tls: true, .. } => Some("TLS and no WebSocket"),
    }
}

/// Connects to a peer: all addresses of its name, in both families, the first that answers.
pub(crate) async fn connect(
    url: &LinkUrl,
    allow_plaintext: bool,
) -> Result<Connected, ConnectError> {
    if let Some(missing) = missing(url) {
        return Err(ConnectError::Unsupported { missing });
    }
    let (host, port) = match url {
        LinkUrl::Tcp { host, port, .. } | LinkUrl::WebSocket { host, port, .. } => (host, *port),
        LinkUrl::Unix(path) => {
            let address = url.to_string();
            return match UnixStream::connect(path).await {
                Ok(stream) => Ok(unix(stream, address)),
                Err(source) => Err(ConnectError::Connect { address, source }),
            };
        }
    };
    let addresses = resolve(host, port).await?;
    let stream = first(addresses, allow_plaintext, &url.to_string()).await?;
    let address = peer_address(&stream);
    Ok(tcp(stream, address))
}

/// Takes an accepted TCP connection, unless it comes from a place that must not be served
/// without encryption.
pub(crate) fn accept_tcp(
    stream: TcpStream,
    peer: SocketAddr,
    allow_plaintext: bool,
) -> Result<Connected, ConnectError> {
    if !allow_plaintext && !is_local(peer.ip()) {
        return Err(ConnectError::Exposed { address: peer });
    }
    Ok(tcp(stream, peer.to_string()))
}

/// Takes an accepted connection of a Unix listener.
pub(crate) fn accept_unix(stream: UnixStream, url: &LinkUrl) -> Connected {
    unix(stream, url.to_string())
}

fn is_local(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

fn tcp(stream: TcpStream, address: String) -> Connected {
    let socket = SockRef::from(&stream);
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL);
    // None of them is needed for the link to work.
    let _ = stream.set_nodelay(true);
    let _ = socket.set_tcp_keepalive(&keepalive);
    let _ = socket.set_tcp_notsent_lowat(NOTSENT_MAX);
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

fn unix(stream: UnixStream, address: String) -> Connected {
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

async fn resolve(host: &Host, port: u16) -> Result<Vec<SocketAddr>, ConnectError> {
    let name = match host {
        Host::Ip(ip) => return Ok(vec![SocketAddr::new(*ip, port)]),
        // RFC 6761: always loopback, without asking anybody.
        Host::Name(name) if name == "localhost" => {
            let both = [IpAddr::V4(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()];
            return Ok(both.map(|ip| SocketAddr::new(ip, port)).to_vec());
        }
        Host::Name(name) => name,
    };
    match tokio::net::lookup_host((name.as_str(), port)).await {
        Ok(found) => Ok(interleave(found)),
        Err(source) => Err(ConnectError::Resolve {
            name: name.clone(),
            source,
        }),
    }
}

/// The families in turn, beginning with the resolver's first choice.
fn interleave(found: impl Iterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let found: Vec<_> = found.collect();
    let Some(first) = found.first() else {
        return found;
    };
    let v6_first = first.is_ipv6();
    let (mut a, mut b): (Vec<_>, Vec<_>) = found
        .into_iter()
        .partition(|address| address.is_ipv6() == v6_first);
    a.reverse();
    b.reverse();
    let mut turns = Vec::new();
    while turns.len() < ADDRESSES_MAX {
        let before = turns.len();
        turns.extend(a.pop());
        turns.extend(b.pop());
        if turns.len() == before {
            break;
        }
    }
    turns
}

/// The first address that answers; each has a head start before the next.
async fn first(
    addresses: Vec<SocketAddr>,
    allow_plaintext: bool,
    url: &str,
) -> Result<TcpStream, ConnectError> {
    let mut waiting = addresses.into_iter();
    let mut attempts = JoinSet::new();
    let mut failed = None;
    loop {
        if let Some(address) = waiting.next() {
            if allow_plaintext || is_local(address.ip()) {
                attempts.spawn_local(async move { (address, TcpStream::connect(address).await) });
            } else {
                failed = failed.or(Some(ConnectError::Exposed { address }));
            }
        }
        let more = waiting.len() > 0;
        let ended = tokio::select! {
            ended = attempts.join_next() => ended,
            () = tokio::time::sleep(HEAD_START), if more => continue,
        };
        match ended {
            Some(Ok((_, Ok(stream)))) => return Ok(stream),
            Some(Ok((address, Err(source)))) => {
                failed = failed.or(Some(ConnectError::Connect {
                    address: address.to_string(),
                    source,
                }));
            }
            Some(Err(_)) => {}
            None if more => {}
            None => {
                return Err(failed.unwrap_or_else(|| ConnectError::Connect {
                    address: url.to_owned(),
                    source: io::Error::new(io::ErrorKind::NotFound, "the name has no address"),
                }));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_take_turns() {
        let found = ["[::1]:1", "[::2]:1", "127.0.0.1:1", "[::3]:1"];
        let found = found.map(|text| text.parse().unwrap());
        let turns = interleave(found.into_iter());
        let turns: Vec<_> = turns.iter().map(ToString::to_string).collect();
        assert_eq!(turns, ["[::1]:1", "127.0.0.1:1", "[::2]:1", "[::3]:1"]);
    }

    #[test]
    fn only_loopback_is_local() {
        for (text, local) in [
            ("127.0.0.1", true),
            ("127.9.9.9", true),
            ("::1", true),
            ("::ffff:127.0.0.1", true),
            ("192.0.2.1", false),
            ("::ffff:192.0.2.1", false),
            ("0.0.0.0", false),
            ("fe80::1", false),
        ] {
            assert_eq!(is_local(text.parse().unwrap()), local, "{text}");
        }
    }
}
