//! TCP connections to a name or an address.
//!
//! Owns resolving, which address is tried when, and the options of a socket. Enforces that a link that can be read
//! on a network is one that the configuration allows, on the address that is really used.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::transport::ConnectError;
use crate::config::Host;

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

/// Connects to a host: all addresses of its name, in both families, the first that answers. Only to this host unless
/// `anywhere`.
pub(super) async fn connect(
    host: &Host,
    port: u16,
    anywhere: bool,
) -> Result<TcpStream, ConnectError> {
    let addresses = resolve(host, port).await?;
    let stream = first(addresses, anywhere, &format!("{host}:{port}")).await?;
    prepare(&stream);
    Ok(stream)
}

/// Sets the options of a connection; none of them is needed for a link to work.
pub(super) fn prepare(stream: &TcpStream) {
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL);
    let _ = stream.set_nodelay(true);
    let _ = socket.set_tcp_keepalive(&keepalive);
    let _ = socket.set_tcp_notsent_lowat(NOTSENT_MAX);
}

/// Whether an address is on this host.
pub(super) fn is_local(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
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
    anywhere: bool,
    asked: &str,
) -> Result<TcpStream, ConnectError> {
    let mut waiting = addresses.into_iter();
    let mut attempts = JoinSet::new();
    let mut failed = None;
    loop {
        if let Some(address) = waiting.next() {
            if anywhere || is_local(address.ip()) {
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
                    address: asked.to_owned(),
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
