//! Listeners: sockets on which links are accepted.
//!
//! Owns the listening sockets of one URL and the task that accepts from them. A connection
//! over a limit, or from a place that must not be served without encryption, is closed before
//! a byte of it is read. A host without free descriptors makes this pause, never spin.

use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use receptor_mesh::{LinkId, LinkInfo};
use receptor_proto::{ErrorBody, ErrorCode};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinHandle;
use tokio::time::timeout_at;
use tracing::Instrument as _;

use super::Shared;
use super::admission::Permit;
use super::io::{self as link_io, OPEN_TIME, Opening};
use super::proven::node_ids;
use super::transport::{self, Accepted, Connected};
use crate::config::{Bind, Host, LinkUrl, Listen};
use crate::unix_socket::{self, SocketFile};
use crate::{log, task};

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

/// Binds all addresses of a URL.
pub(crate) async fn bind(url: &LinkUrl) -> Result<Bound, ListenError> {
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
                    .map_or_else(|_| url.to_string(), |address| url.at(address).to_string()),
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
                    refused: Rc::default(),
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
    refused: Rc<RefCell<Complaints>>,
}

impl Serve {
    async fn run(self, socket: Socketed) {
        let mut complaints = Complaints::default();
        loop {
            let accepted = match &socket {
                Socketed::Tcp(listener) => {
                    let accepted = listener.accept().await;
                    accepted.map(|(stream, peer)| (Accepted::Tcp(stream, peer), Some(peer.ip())))
                }
                Socketed::Unix { listener, .. } => {
                    let accepted = listener.accept().await;
                    accepted.map(|(stream, _)| (Accepted::Unix(stream), None))
                }
            };
            match accepted {
                Ok((accepted, source)) => {
                    if let Some(permit) = self.shared.admission.admit_accepted(source) {
                        self.start(accepted, permit);
                    }
                }
                Err(error) => {
                    if complaints.may() {
                        tracing::error!(url = %self.origin, %error, "links cannot be accepted now");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn start(&self, accepted: Accepted, permit: Permit) {
        let link = self.shared.engine.new_link();
        let hello_by = Instant::now() + OPEN_TIME;
        let from = match &accepted {
            Accepted::Tcp(_, peer) => peer.to_string(),
            Accepted::Unix(_) => self.origin.to_string(),
        };
        let span = tracing::info_span!("link", id = link.0, address = from);
        let listen = self.listen.clone();
        let origin = Rc::clone(&self.origin);
        let shared = Rc::clone(&self.shared);
        let refused = Rc::clone(&self.refused);
        let run = async move {
            let accept = transport::accept(
                accepted,
                &listen.url,
                listen.allow_plaintext,
                &shared.keyring,
            );
            let error = match timeout_at(hello_by.into(), accept).await {
                Ok(Ok(connected)) => {
                    return serve(connected, permit, link, &listen, origin, hello_by, &shared)
                        .await;
                }
                Ok(Err(error)) => error.body(),
                Err(_) => {
                    let text = "the connection was not ready in time: no TLS, or no web socket";
                    ErrorBody::new(ErrorCode::HelloTimeout, text)
                }
            };
            // Anybody can cause these lines.
            let mut refused = refused.borrow_mut();
            if refused.may() {
                let (message_id, before) = (log::id::LINK_REFUSED, refused.take_silenced());
                tracing::warn!(message_id, url = %origin, code = %error.code, before, "connection refused: {}", error.message);
            } else {
                tracing::debug!(code = %error.code, "connection refused: {}", error.message);
            }
        };
        task::spawn("link", run.instrument(span));
    }
}

/// Runs an accepted link to its end.
async fn serve(
    connected: Connected,
    permit: Permit,
    link: LinkId,
    listen: &Listen,
    origin: Rc<str>,
    hello_by: Instant,
    shared: &Shared,
) {
    let info = LinkInfo {
        cost: shared.cost(&origin, listen.cost),
        proven: node_ids(connected.proven.as_ref()),
        address: connected.address,
        dialled: false,
    };
    let _standing = connected
        .proven
        .map(|proven| shared.proven.keep(link, proven));
    let opening = Opening {
        link,
        info,
        origin,
        hello_by,
        permit: &permit,
    };
    if let Ok(reason) = link_io::run(connected.transport, opening, &shared.engine).await {
        tracing::debug!(%reason, "closed");
    }
}

/// Log lines of one kind that others can cause: one in [`COMPLAIN_EVERY`].
#[derive(Debug, Default)]
struct Complaints {
    last: Option<Instant>,
    silenced: u64,
}

impl Complaints {
    fn may(&mut self) -> bool {
        let now = Instant::now();
        let may = self.last.is_none_or(|then| now - then >= COMPLAIN_EVERY);
        if may {
            self.last = Some(now);
        } else {
            self.silenced += 1;
        }
        may
    }

    /// How many lines there would have been since the last one.
    fn take_silenced(&mut self) -> u64 {
        std::mem::take(&mut self.silenced)
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
