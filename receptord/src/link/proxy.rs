//! HTTP proxies, so that a mesh can leave a network through the only way that there is.
//!
//! Owns reading the variables that name them, in the way of curl, and making a tunnel through one. Used for web
//! sockets alone. Never prints a password.

use std::fmt;
use std::io;
use std::net::IpAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::reach;
use super::transport::ConnectError;
use crate::config::{Environment, Host, LinkUrl};

/// The port of a proxy that does not name one, as for curl.
const PORT: u16 = 1080;
/// Bytes that a proxy's answer may have.
const ANSWER_MAX: usize = 16 * 1024;
/// Of its first line, those that are told.
const TOLD_MAX: usize = 200;

/// What the environment says of proxies.
#[derive(Clone, Default)]
pub(crate) struct Proxies {
    /// For `ws://`.
    plain: Option<Named>,
    /// For `wss://`.
    tls: Option<Named>,
    /// Where to do without.
    none: Vec<String>,
}

impl fmt::Debug for Proxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxies").finish_non_exhaustive()
    }
}

/// A variable and what it holds.
#[derive(Clone)]
struct Named {
    variable: &'static str,
    value: String,
}

/// A proxy.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Proxy {
    host: Host,
    port: u16,
    /// `user:password`.
    credentials: Option<String>,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({self})")
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// Why there is no way through a proxy.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProxyError {
    /// The variable names none that can be used. What it holds is not told: there may be a password in it.
    #[error("{variable} in the environment: expected http://[USER:PASSWORD@]HOST[:PORT]")]
    Variable {
        /// Which.
        variable: &'static str,
    },
    /// The connection to it broke.
    #[error("proxy {proxy}: {source}")]
    Broken {
        /// Which.
        proxy: String,
        /// Why.
        source: io::Error,
    },
    /// It does not want to.
    #[error("proxy {proxy} makes no connection to {target}: {answer}")]
    Refused {
        /// Which.
        proxy: String,
        /// Where to.
        target: String,
        /// Its words.
        answer: String,
    },
}

impl Proxies {
    /// Reads what concerns proxies. `http_proxy` has no form in capitals: a web server that starts a program would
    /// let whoever asks it for a page set that.
    pub(crate) fn new(environment: &Environment) -> Self {
        let first = |names: &[&'static str]| {
            names.iter().find_map(|name| {
                let value = environment.get(name)?.to_owned();
                Some(Named {
                    variable: name,
                    value,
                })
            })
        };
        let none = first(&["no_proxy", "NO_PROXY"]);
        let none = none.map_or_else(Vec::new, |none| {
            let items = none.value.split([',', ' ']).filter(|item| !item.is_empty());
            items.map(str::to_ascii_lowercase).collect()
        });
        Self {
            plain: first(&["http_proxy", "all_proxy", "ALL_PROXY"]),
            tls: first(&["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"]),
            none,
        }
    }

    /// Through which proxy to go to a host; none when it is to be reached directly.
    pub(super) fn of(&self, tls: bool, host: &Host) -> Result<Option<Proxy>, ProxyError> {
        let named = if tls { &self.tls } else { &self.plain };
        let Some(named) = named.as_ref().filter(|_| !self.is_direct(host)) else {
            return Ok(None);
        };
        match parse(&named.value) {
            Some(proxy) => Ok(Some(proxy)),
            None => Err(ProxyError::Variable {
                variable: named.variable,
            }),
        }
    }

    fn is_direct(&self, host: &Host) -> bool {
        self.none.iter().any(|item| {
            if item == "*" {
                return true;
            }
            match host {
                Host::Ip(ip) => is_within(*ip, item),
                Host::Name(name) => {
                    let name = name.trim_end_matches('.');
                    let item = item.trim_start_matches('.').trim_end_matches('.');
                    let rest = name.strip_suffix(item);
                    !item.is_empty()
                        && rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
                }
            }
        })
    }
}

/// Whether an address is the one in `text`, or in its range (`10.0.0.0/8`).
fn is_within(ip: IpAddr, text: &str) -> bool {
    let (address, bits) = match text.split_once('/') {
        Some((address, bits)) => (address, Some(bits)),
        None => (text, None),
    };
    let address = address.trim_start_matches('[').trim_end_matches(']');
    let Ok(address) = address.parse::<IpAddr>() else {
        return false;
    };
    let (ip, address, width) = match (ip, address) {
        (IpAddr::V4(ip), IpAddr::V4(address)) => {
            (u128::from(ip.to_bits()), u128::from(address.to_bits()), 32)
        }
        (IpAddr::V6(ip), IpAddr::V6(address)) => (ip.to_bits(), address.to_bits(), 128),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return false,
    };
    let bits = match bits {
        None => width,
        Some(bits) => match bits.parse::<u32>() {
            Ok(bits) if bits <= width => bits,
            Ok(_) | Err(_) => return false,
        },
    };
    // A shift by the whole width is none in Rust: nothing is left to compare.
    let differ = (ip ^ address).checked_shr(width - bits).unwrap_or(0);
    differ == 0
}

/// Reads `[http://][USER[:PASSWORD]@]HOST[:PORT][/]`.
fn parse(text: &str) -> Option<Proxy> {
    let rest = match text.split_once("://") {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => rest,
        Some(_) => return None,
        None => text,
    };
    let rest = rest.split('/').next()?;
    let (credentials, rest) = match rest.rsplit_once('@') {
        Some((credentials, rest)) => (Some(percent_decoded(credentials)?), rest),
        None => (None, rest),
    };
    // The same rules as for a web socket's host and port.
    let url: LinkUrl = format!("ws://{rest}").parse().ok()?;
    let LinkUrl::WebSocket { host, .. } = url else {
        return None;
    };
    let after = rest.rsplit(']').next()?;
    let port = match after.rsplit_once(':') {
        Some((_, port)) => port.parse().ok().filter(|port| *port != 0)?,
        None => PORT,
    };
    Some(Proxy {
        host,
        port,
        credentials,
    })
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, more)) = rest.split_first() {
        if *first != b'%' {
            bytes.push(*first);
            rest = more;
            continue;
        }
        let (digits, more) = more.split_at_checked(2)?;
        let digits = std::str::from_utf8(digits).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = more;
    }
    String::from_utf8(bytes).ok()
}

/// Connects to a host through a proxy.
pub(super) async fn tunnel(
    proxy: &Proxy,
    host: &Host,
    port: u16,
    anywhere: bool,
) -> Result<TcpStream, ConnectError> {
    let mut stream = reach::connect(&proxy.host, proxy.port, anywhere).await?;
    let target = format!("{host}:{port}");
    let broken = |source| ProxyError::Broken {
        proxy: proxy.to_string(),
        source,
    };
    let refused = |answer: &str| ProxyError::Refused {
        proxy: proxy.to_string(),
        target: target.clone(),
        answer: answer.to_owned(),
    };
    let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n");
    if let Some(credentials) = &proxy.credentials {
        let encoded = base64_simd::STANDARD.encode_to_string(credentials.as_bytes());
        request.push_str(&format!("Proxy-Authorization: Basic {encoded}\r\n"));
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes()).await.map_err(broken)?;
    let mut answer = Vec::new();
    let head = loop {
        if let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") {
            break end;
        }
        if answer.len() > ANSWER_MAX {
            return Err(refused("its answer has no end").into());
        }
        match stream.read_buf(&mut answer).await.map_err(broken)? {
            0 => return Err(refused("it closed the connection").into()),
            _ => continue,
        }
    };
    let first = answer.split(|byte| *byte == b'\r').next();
    let first = String::from_utf8_lossy(first.unwrap_or_default());
    let first: String = first
        .chars()
        .take(TOLD_MAX)
        .map(|c| if c.is_control() { '?' } else { c })
        .collect();
    let mut words = first.split(' ');
    let is_http = words.next().is_some_and(|word| word.starts_with("HTTP/1."));
    let is_yes = words
        .next()
        .is_some_and(|code| code.len() == 3 && code.starts_with('2'));
    if !(is_http && is_yes) {
        return Err(refused(&first).into());
    }
    // Whom we talk to then speaks only when spoken to.
    if answer.len() > head + 4 {
        return Err(refused("it says more than it should").into());
    }
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(variables: &[(&str, &str)]) -> Proxies {
        Proxies::new(&Environment::from_vars(variables.iter().copied()))
    }

    fn host(text: &str) -> Host {
        let url: LinkUrl = format!("ws://{text}").parse().unwrap();
        let LinkUrl::WebSocket { host, .. } = url else {
            panic!("a web socket's URL is one")
        };
        host
    }

    #[test]
    fn variables_are_read_as_by_curl() {
        let relay = host("relay.example.com");
        let through = |variables: &[(&str, &str)], tls| {
            let proxy = proxies(variables).of(tls, &relay);
            proxy.unwrap().map(|proxy| proxy.to_string())
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(through(&[], true), None);
        assert_eq!(
            through(&[("https_proxy", "http://p:3128/")], true),
            some("p:3128")
        );
        assert_eq!(
            through(&[("HTTPS_PROXY", "http://p:3128")], true),
            some("p:3128")
        );
        assert_eq!(through(&[("https_proxy", "p")], true), some("p:1080"));
        assert_eq!(
            through(&[("https_proxy", "[::1]:3128")], true),
            some("[::1]:3128")
        );
        assert_eq!(through(&[("https_proxy", "p:1")], false), None);
        assert_eq!(through(&[("http_proxy", "p:1")], false), some("p:1"));
        assert_eq!(through(&[("HTTP_PROXY", "p:1")], false), None);
        assert_eq!(through(&[("ALL_PROXY", "p:1")], true), some("p:1"));
        assert_eq!(through(&[("https_proxy", "")], true), None);
        let both = [("https_proxy", "lower:1"), ("HTTPS_PROXY", "upper:1")];
        assert_eq!(through(&both, true), some("lower:1"));
    }

    #[test]
    fn what_no_proxy_names_is_reached_directly() {
        for (none, target, direct) in [
            ("*", "relay.example.com", true),
            ("example.com", "relay.example.com", true),
            (".example.com", "relay.example.com", true),
            ("example.com", "example.com", true),
            ("ample.com", "relay.example.com", false),
            ("other.org, EXAMPLE.com", "relay.example.com", true),
            ("relay", "relay.example.com", false),
            ("10.0.0.1", "10.0.0.1", true),
            ("10.0.0.0/8", "10.1.2.3", true),
            ("10.0.0.0/8", "11.1.2.3", false),
            ("0.0.0.0/0", "11.1.2.3", true),
            ("10.0.0.0/33", "10.0.0.1", false),
            ("fd00::/8", "[fd12::1]", true),
            ("[fd12::1]", "[fd12::1]", true),
            ("fd00::/8", "[fe80::1]", false),
            ("::/0", "10.0.0.1", false),
            ("10", "10.0.0.1", false),
        ] {
            let proxies = proxies(&[("https_proxy", "p:1"), ("no_proxy", none)]);
            let proxy = proxies.of(true, &host(target)).unwrap();
            assert_eq!(proxy.is_none(), direct, "{target} with no_proxy={none}");
        }
    }

    #[test]
    fn a_password_is_sent_and_never_told() {
        let proxies = proxies(&[("https_proxy", "http://me:p%40ss@p:1")]);
        let proxy = proxies.of(true, &host("a")).unwrap().unwrap();
        assert_eq!(proxy.credentials.as_deref(), Some("me:p@ss"));
        assert!(!format!("{proxy:?} {proxy} {proxies:?}").contains("ss"));
        for bad in [
            "socks5://me:pass@p:1",
            "http://me:pass@p:0",
            "http://me:pa%xss@p:1",
        ] {
            let proxies = self::proxies(&[("https_proxy", bad)]);
            let error = proxies.of(true, &host("a")).unwrap_err().to_string();
            assert!(
                error.starts_with("https_proxy in the environment"),
                "{error}"
            );
            assert!(!error.contains("pass"), "{error}");
        }
    }
}
