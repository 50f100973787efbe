//! Where a link listens or connects to.
//!
//! Owns [`LinkUrl`]: reading it, writing it back, and what can be told from the text
//! alone: is it encrypted, does it stay on this host, which addresses to bind. Never
//! resolves a name and never opens anything.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

/// Ports of HTTP, for `ws://` and `wss://` without one.
const HTTP_PORT: u16 = 80;
const HTTPS_PORT: u16 = 443;

/// Longest path of a Unix socket: `sun_path` less its final NUL.
pub(super) const MAX_UNIX_PATH: usize = 107;

/// Longest host name of DNS.
const MAX_NAME: usize = 253;

/// The form of a URL, for messages.
const FORMS: &str = "rnp://HOST:PORT, rnps://HOST:PORT, ws://HOST[:PORT][/PATH], wss://HOST[:PORT][/PATH], unix:///PATH or HOST:PORT";

/// Where a link listens or connects to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LinkUrl {
    /// The link protocol over TCP: `rnp://`, with TLS `rnps://`.
    Tcp {
        /// `rnps`.
        tls: bool,
        /// The host.
        host: Host,
        /// The port; 0 only in a listener: any free one.
        port: u16,
    },
    /// The link protocol over a web socket: `ws://`, with TLS `wss://`.
    WebSocket {
        /// `wss`.
        tls: bool,
        /// The host.
        host: Host,
        /// The port; 0 only in a listener: any free one.
        port: u16,
        /// The path of the request, beginning with `/`.
        path: String,
    },
    /// The link protocol over a Unix stream socket: `unix://`.
    Unix(PathBuf),
}

/// The host of a [`LinkUrl`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Host {
    /// A literal address.
    Ip(IpAddr),
    /// A name to be resolved at every attempt, in lower case. `localhost` in a listener
    /// means loopback in both address families.
    Name(String),
}

impl Host {
    /// Whether traffic to it stays on this host.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        match self {
            Self::Ip(ip) => ip.to_canonical().is_loopback(),
            Self::Name(name) => name == LOCALHOST,
        }
    }
}

const LOCALHOST: &str = "localhost";

/// What a listener binds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bind {
    /// TCP addresses. More than one stand for the same thing in different address
    /// families: with port 0 they share the first one's port, and a family that the host
    /// does not have may fail as long as one of them works.
    Tcp(Vec<SocketAddr>),
    /// A Unix stream socket.
    Unix(PathBuf),
}

impl LinkUrl {
    /// A listener on loopback in both address families, as `--listen-port` asks for.
    #[must_use]
    pub fn loopback(port: u16) -> Self {
        Self::Tcp {
            tls: false,
            host: Host::Name(LOCALHOST.to_owned()),
            port,
        }
    }

    /// The same, at this address.
    #[must_use]
    pub fn at(&self, address: SocketAddr) -> Self {
        let (at, at_port) = (Host::Ip(address.ip()), address.port());
        let mut url = self.clone();
        match &mut url {
            Self::Tcp { host, port, .. } | Self::WebSocket { host, port, .. } => {
                (*host, *port) = (at, at_port);
            }
            Self::Unix(_) => {}
        }
        url
    }

    /// Whether the link is encrypted with TLS.
    #[must_use]
    pub const fn is_tls(&self) -> bool {
        match self {
            Self::Tcp { tls, .. } | Self::WebSocket { tls, .. } => *tls,
            Self::Unix(_) => false,
        }
    }

    /// Whether the link can be read on a network: it is neither encrypted nor local.
    #[must_use]
    pub fn is_exposed(&self) -> bool {
        match self {
            Self::Tcp { tls, host, .. } | Self::WebSocket { tls, host, .. } => {
                !tls && !host.is_loopback()
            }
            Self::Unix(_) => false,
        }
    }

    /// What a listener binds; `None` when the host is a name other than `localhost`.
    #[must_use]
    pub fn bind(&self) -> Option<Bind> {
        let (host, port) = match self {
            Self::Tcp { host, port, .. } | Self::WebSocket { host, port, .. } => (host, *port),
            Self::Unix(path) => return Some(Bind::Unix(path.clone())),
        };
        let both = [
            IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(Ipv6Addr::LOCALHOST),
        ];
        match host {
            Host::Ip(ip) => Some(Bind::Tcp(vec![SocketAddr::new(*ip, port)])),
            Host::Name(name) if name == LOCALHOST => {
                Some(Bind::Tcp(both.map(|ip| SocketAddr::new(ip, port)).to_vec()))
            }
            Host::Name(_) => None,
        }
    }

    /// Reads the URL of a listener.
    ///
    /// # Errors
    ///
    /// In words for the operator: not a URL, or one that cannot be bound.
    pub fn parse_listen(text: &str) -> Result<Self, String> {
        let url: Self = text.parse()?;
        if url.bind().is_none() {
            return Err(
                "expected an address to listen on: an IP address such as 192.0.2.1, 0.0.0.0 or [::], or localhost"
                    .to_owned(),
            );
        }
        Ok(url)
    }

    /// Reads the URL of a peer.
    ///
    /// # Errors
    ///
    /// In words for the operator: not a URL, or one that cannot be connected to.
    pub fn parse_peer(text: &str) -> Result<Self, String> {
        let url: Self = text.parse()?;
        let (host, port) = match &url {
            Self::Tcp { host, port, .. } | Self::WebSocket { host, port, .. } => (host, *port),
            Self::Unix(_) => return Ok(url),
        };
        if port == 0 {
            return Err("expected a port from 1 to 65535".to_owned());
        }
        if matches!(host, Host::Ip(ip) if ip.is_unspecified()) {
            return Err("expected the address of another node; this one means any".to_owned());
        }
        Ok(url)
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(IpAddr::V4(ip)) => write!(f, "{ip}"),
            Self::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl fmt::Display for LinkUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { tls, host, port } => {
                write!(f, "{}://{host}:{port}", if *tls { "rnps" } else { "rnp" })
            }
            Self::WebSocket {
                tls,
                host,
                port,
                path,
            } => {
                write!(
                    f,
                    "{}://{host}:{port}{path}",
                    if *tls { "wss" } else { "ws" }
                )
            }
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

impl FromStr for LinkUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (scheme, rest) = text.split_once("://").unwrap_or(("rnp", text));
        match scheme {
            "rnp" | "rnps" => {
                // A final slash is what browsers and URL builders add.
                let (host, port) = authority(rest.strip_suffix('/').unwrap_or(rest))?;
                let port = port.ok_or("expected a port, as in rnps://relay.example.com:8899")?;
                Ok(Self::Tcp {
                    tls: scheme == "rnps",
                    host,
                    port,
                })
            }
            "ws" | "wss" => {
                let tls = scheme == "wss";
                let (rest, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
                if path.contains(|c: char| !c.is_ascii_graphic() || c == '#') {
                    return Err(
                        "expected a path without spaces, # or non-ASCII characters".to_owned()
                    );
                }
                let (host, port) = authority(rest)?;
                Ok(Self::WebSocket {
                    tls,
                    host,
                    port: port.unwrap_or(if tls { HTTPS_PORT } else { HTTP_PORT }),
                    path: if path.is_empty() {
                        "/".to_owned()
                    } else {
                        path.to_owned()
                    },
                })
            }
            "unix" => {
                if !rest.starts_with('/') || rest.len() > MAX_UNIX_PATH || rest.contains('\0') {
                    return Err(format!(
                        "expected unix:// and an absolute path of at most {MAX_UNIX_PATH} bytes"
                    ));
                }
                Ok(Self::Unix(PathBuf::from(rest)))
            }
            _ => Err(format!("expected {FORMS}")),
        }
    }
}

/// Splits `HOST[:PORT]`, where an IPv6 address stands in brackets.
fn authority(text: &str) -> Result<(Host, Option<u16>), String> {
    if text.contains('@') {
        return Err(
            "expected no user name or password: nodes prove who they are with TLS certificates"
                .to_owned(),
        );
    }
    if let Some(rest) = text.strip_prefix('[') {
        let (ip, after) = rest
            .split_once(']')
            .ok_or("expected ] after the IPv6 address")?;
        let ip: Ipv6Addr = ip
            .parse()
            .map_err(|_| "expected an IPv6 address in the brackets")?;
        let port = match after.strip_prefix(':') {
            Some(port) => Some(self::port(port)?),
            None if after.is_empty() => None,
            None => return Err("expected : and a port after ]".to_owned()),
        };
        return Ok((Host::Ip(IpAddr::V6(ip)), port));
    }
    if text.parse::<Ipv6Addr>().is_ok() || text.matches(':').count() > 1 {
        return Err("expected an IPv6 address in brackets, as in [::1]:8888".to_owned());
    }
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, Some(self::port(port)?)),
        None => (text, None),
    };
    if let Ok(ip) = host.parse::<Ipv4Addr>() {
        return Ok((Host::Ip(IpAddr::V4(ip)), port));
    }
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    // A last label of digits is a mistyped IPv4 address, never a name.
    let last = host
        .trim_end_matches('.')
        .rsplit('.')
        .next()
        .unwrap_or_default();
    let numeric = !last.is_empty() && last.chars().all(|c| c.is_ascii_digit());
    if host.is_empty() || host.len() > MAX_NAME || !host.chars().all(fits) || numeric {
        return Err(format!("expected a host name or an IP address in {FORMS}"));
    }
    Ok((Host::Name(host.to_ascii_lowercase()), port))
}

fn port(text: &str) -> Result<u16, String> {
    // `parse` alone would take `+8888`.
    Some(text)
        .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| "expected a port from 0 to 65535 after the host".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn urls_as_people_write_them() {
        let table = [
            ("localhost:8888", "rnp://localhost:8888", false),
            ("LocalHost:8888", "rnp://localhost:8888", false),
            ("rnp://127.0.0.1:8888", "rnp://127.0.0.1:8888", false),
            ("rnp://127.8.0.1:8888/", "rnp://127.8.0.1:8888", false),
            ("[::1]:8888", "rnp://[::1]:8888", false),
            (
                "rnp://[::ffff:127.0.0.1]:1",
                "rnp://[::ffff:127.0.0.1]:1",
                false,
            ),
            (
                "relay.example.com:8888",
                "rnp://relay.example.com:8888",
                true,
            ),
            ("rnp://10.0.0.1:8888", "rnp://10.0.0.1:8888", true),
            ("rnps://[::]:8899", "rnps://[::]:8899", false),
            ("ws://relay/", "ws://relay:80/", true),
            (
                "wss://relay.example.com/receptor",
                "wss://relay.example.com:443/receptor",
                false,
            ),
            ("wss://relay:8443", "wss://relay:8443/", false),
            (
                "unix:///run/receptor/mesh.sock",
                "unix:///run/receptor/mesh.sock",
                false,
            ),
        ];
        for (text, canonical, exposed) in table {
            let url: LinkUrl = text
                .parse()
                .unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(url.to_string(), canonical, "{text}");
            assert_eq!(url.is_exposed(), exposed, "{text}");
        }
    }

    #[test]
    fn what_is_no_url() {
        for text in [
            "",
            "8888",
            "localhost",
            "rnp://",
            "rnp://:8888",
            "rnp://host",
            "rnp://host:",
            "host:+1",
            "host:65536",
            "host:-1",
            "::1",
            "::1:8888",
            "[::1",
            "[::1]8888",
            "[host]:1",
            "http://host:1",
            "rnp://host:1/path",
            "user@host:1",
            "10.0.0:8888",
            "10.0.0.256:8888",
            "ho st:1",
            "unix://relative",
            "unix:///a\0b",
            "ws://host/a b",
            "rnp://*:8888",
        ] {
            assert!(text.parse::<LinkUrl>().is_err(), "{text} was taken");
        }
        let long = format!("unix:///{}", "x".repeat(MAX_UNIX_PATH));
        assert!(long.parse::<LinkUrl>().is_err());
    }

    #[test]
    fn listeners_need_an_address_and_peers_a_destination() {
        assert!(LinkUrl::parse_listen("relay.example.com:8888").is_err());
        assert!(LinkUrl::parse_listen("0.0.0.0:0").is_ok());
        assert!(LinkUrl::parse_peer("0.0.0.0:8888").is_err());
        assert!(LinkUrl::parse_peer("[::]:8888").is_err());
        assert!(LinkUrl::parse_peer("localhost:0").is_err());
        let Some(Bind::Tcp(addresses)) = LinkUrl::loopback(8888).bind() else {
            panic!("loopback is TCP")
        };
        assert_eq!(addresses.len(), 2);
        assert!(addresses.iter().all(|address| address.ip().is_loopback()));
    }

    proptest! {
        #[test]
        fn what_is_written_reads_in_the_same(text in "((rnps?|wss?)://)?([a-z]{1,5}|1\\.2\\.3\\.4|\\[::1\\]):[0-9]{1,5}(/[a-z]{0,3})?") {
            if let Ok(url) = text.parse::<LinkUrl>() {
                prop_assert_eq!(url.to_string().parse(), Ok(url));
            }
        }

        #[test]
        fn no_text_is_a_panic(text in ".{0,40}") {
            let _ = text.parse::<LinkUrl>();
        }
    }
}
