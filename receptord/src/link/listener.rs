//! Listeners: sockets on which links are accepted.
//!
//! Owns the listening sockets of one URL and the task that accepts from them. A connection
//! over a limit, or from a place that must not be served without encryption, is closed before
//! a byte of it is read. A host without free descriptors makes this pause, never spin.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use receptor_mesh::LinkInfo;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinHandle;
use tracing::Instrument as _;

use super::admission::{Admission, Permit};
use super::transport::{self, Connected};
use super::{Shared, io as link_io};
use crate::config::{Bind, Host, LinkUrl, Listen};
use crate::task;
use crate::unix_socket::{self, SocketFile};

/// Connections that the system may keep for us.
const BACKLOG: i32 = 1024;
/// The pause after a failed accept (out of descriptors or memory).
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// Between two log lines about failed accepts or refused connections.
const COMPLAIN_EVERY: Duration = Duration::from_secs(10);

/// Why a listener is not there.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {url}: {source}")]
pub(crate) struct ListenError {
    /// Where.
    pub(crate) url: LinkUrl,
    /// Why.
    #[source]
    pub(crate) source: io::Error,
}

/// A bound listener whose connections are not accepted yet.
#[derive(Debug)]
pub(crate) struct Bound {
    sockets: Vec<Socketed>,
    /// What it really listens on; port 0 is replaced by the port it became.
    pub(crate) addresses: Vec<String>,
}

#[derive(Debug)]
enum Socketed {
    Tcp(TcpListener),
    Unix {
        listener: UnixListener,
        /// Removes the file at the end, unless the service manager owns it.
        _file: Option<SocketFile>,
    },
}

/// Refuses a listener that would serve something else than its URL promises.
fn check_transport(url: &LinkUrl) -> io::Result<()> {
    match transport::missing(url) {
        None => Ok(()),
        Some(missing) => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!("this build has no {missing}"),
        )),
    }
}

/// Binds all addresses of a URL.
pub(crate) async fn bind(url: &LinkUrl) -> Result<Bound, ListenError> {
    check_transport(url).map_err(|source| ListenError {
        url: url.clone(),
        source,
    })?;
    let sockets = match url.bind() {
        Some(Bind::Tcp(addresses)) => bind_tcp(&addresses),
        Some(Bind::Unix(path)) => bind_unix(&path).await,
        None => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not an address of this host",
        )),
    };
    let sockets = sockets.map_err(|source| ListenError {
        url: url.clone(),
        source,
    })?;
    Ok(Bound::new(url, sockets))
}

/// Takes a socket that the service manager listens on.
pub(crate) fn adopt(url: &LinkUrl, fd: OwnedFd) -> Result<Bound, ListenError> {
    let adopt = || {
        check_transport(url)?;
        let socket = Socket::from(fd);
        socket.set_nonblocking(true)?;
        Ok(if socket.domain()? == Domain::UNIX {
            let listener = std::os::unix::net::UnixListener::from(OwnedFd::from(socket));
            Socketed::Unix {
                listener: UnixListener::from_std(listener)?,
                _file: None,
            }
        } else {
            Socketed::Tcp(TcpListener::from_std(socket.into())?)
        })
    };
    match adopt() {
        Ok(socket) => Ok(Bound::new(url, vec![socket])),
        Err(source) => Err(ListenError {
            url: url.clone(),
            source,
        }),
    }
}

/// The URL that a listening socket could be configured by.
pub(crate) fn url_of(fd: &OwnedFd) -> io::Result<LinkUrl> {
    let socket = SockRef::from(fd);
    let address = socket.local_addr()?;
    if let Some(address) = address.as_socket() {
        return Ok(LinkUrl::Tcp {
            tls: false,
            host: Host::Ip(address.ip()),
            port: address.port(),
        });
    }
    match address.as_pathname() {
        Some(path) => Ok(LinkUrl::Unix(path.to_owned())),
        None => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "a socket was passed that is neither TCP nor has a path",
        )),
    }
}

impl Bound {
    fn new(url: &LinkUrl, sockets: Vec<Socketed>) -> Self {
        let addresses = sockets
            .iter()
            .map(|socket| match socket {
                Socketed::Tcp(listener) => listener
                    .local_addr()
                    .map_or_else(|_| url.to_string(), |address| format!("rnp://{address}")),
                Socketed::Unix { .. } => url.to_string(),
            })
            .collect();
        Self { sockets, addresses }
    }

    /// Accepts links until the handles are aborted.
    pub(super) fn serve(self, listen: &Listen, shared: &Rc<Shared>) -> Vec<JoinHandle<()>> {
        let origin: Rc<str> = listen.url.to_string().into();
        self.sockets
            .into_iter()
            .map(|socket| {
                let serve = Serve {
                    listen: listen.clone(),
                    origin: Rc::clone(&origin),
                    shared: Rc::clone(shared),
                };
                task::spawn("link-listener", serve.run(socket))
            })
            .collect()
    }
}

fn bind_tcp(addresses: &[SocketAddr]) -> io::Result<Vec<Socketed>> {
    let mut sockets: Vec<Socketed> = Vec::new();
    let mut failed = None;
    let mut port = None;
    for address in addresses {
        let mut address = *address;
        // One listener in two families has one port, also when the system chooses it.
        address.set_port(port.unwrap_or(address.port()));
        match bind_one(address, addresses.len() > 1) {
            Ok(listener) => {
                port = Some(listener.local_addr()?.port());
                sockets.push(Socketed::Tcp(listener));
            }
            // A host without one of the families is no reason not to serve the other.
            Err(error)
                if addresses.len() > 1
                    && matches!(
                        error.kind(),
                        io::ErrorKind::AddrNotAvailable | io::ErrorKind::Unsupported
                    ) =>
            {
                failed = Some(error);
            }
            Err(error) => return Err(at(address, &error)),
        }
    }
    match failed {
        Some(error) if sockets.is_empty() => Err(error),
        _ => Ok(sockets),
    }
}

fn bind_one(address: SocketAddr, one_family: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_nonblocking(true)?;
    // A restart must not wait for connections of the one before to be forgotten.
    socket.set_reuse_address(true)?;
    if let IpAddr::V6(ip) = address.ip() {
        socket.set_only_v6(one_family || !ip.is_unspecified())?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// In words for the operator: a URL may stand for several addresses.
fn at(address: SocketAddr, error: &io::Error) -> io::Error {
    let text = if error.kind() == io::ErrorKind::AddrInUse {
        format!("{address} is taken by another program; ss -tlnp shows which")
    } else {
        format!("{address}: {error}")
    };
    io::Error::new(error.kind(), text)
}

async fn bind_unix(path: &Path) -> io::Result<Vec<Socketed>> {
    let (listener, file) = unix_socket::bind(path).await?;
    Ok(vec![Socketed::Unix {
        listener,
        _file: Some(file),
    }])
}

/// The accepting task of one socket.
struct Serve {
    listen: Listen,
    origin: Rc<str>,
    shared: Rc<Shared>,
}

impl Serve {
    async fn run(self, socket: Socketed) {
        let mut complained: Option<Instant> = None;
        let mut may_complain = move || {
            let now = Instant::now();
            let quiet = complained.is_none_or(|then| now - then >= COMPLAIN_EVERY);
            if quiet {
                complained = Some(now);
            }
            quiet
        };
        loop {
            let accepted = match &socket {
                Socketed::Tcp(listener) => match listener.accept().await {
                    Ok((stream, peer)) => {
                        let Some(permit) = self.admit(Some(peer.ip())) else {
                            continue;
                        };
                        let allowed = self.listen.allow_plaintext;
                        match transport::accept_tcp(stream, peer, allowed) {
                            Ok(connected) => Ok((connected, permit)),
                            Err(error) => {
                                if may_complain() {
                                    tracing::warn!(url = %self.origin, "connection refused: {error}");
                                }
                                continue;
                            }
                        }
                    }
                    Err(error) => Err(error),
                },
                Socketed::Unix { listener, .. } => match listener.accept().await {
                    Ok((stream, _)) => {
                        let Some(permit) = self.admit(None) else {
                            continue;
                        };
                        let connected = transport::accept_unix(stream, &self.listen.url);
                        Ok((connected, permit))
                    }
                    Err(error) => Err(error),
                },
            };
            match accepted {
                Ok((connected, permit)) => self.start(connected, permit),
                Err(error) => {
                    if may_complain() {
                        tracing::error!(url = %self.origin, %error, "links cannot be accepted now");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn admit(&self, source: Option<IpAddr>) -> Option<Permit> {
        Admission::admit(&self.shared.admission, source)
    }

    fn start(&self, connected: Connected, permit: Permit) {
        let link = self.shared.engine.new_link();
        let span = tracing::info_span!("link", id = link.0, address = connected.address);
        let info = LinkInfo {
            cost: self.shared.cost(&self.origin, self.listen.cost),
            proven: connected.proven,
            address: connected.address,
            dialled: false,
        };
        let origin = Rc::clone(&self.origin);
        let shared = Rc::clone(&self.shared);
        let run = async move {
            let _permit = permit;
            let ended = link_io::run(connected.transport, link, info, origin, &shared.engine).await;
            if let Ok(reason) = ended {
                tracing::debug!(%reason, "closed");
            }
        };
        task::spawn("link", run.instrument(span));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn an_address_that_is_taken_is_told_with_what_to_do() {
        let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = other.local_addr().unwrap();
        let url = format!("rnp://{taken}").parse().unwrap();
        let error = bind(&url).await.unwrap_err().to_string();
        let expected = format!(
            "cannot listen on {url}: {taken} is taken by another program; ss -tlnp shows which"
        );
        assert_eq!(error, expected);
    }
}
