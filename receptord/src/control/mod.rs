//! The control socket: where applications and `receptorctl` reach this daemon.
//!
//! Owns the listening socket, its mode and group, and one session for each client, each with
//! limits of its own: clients in all and of one user, lines, sends and tagged commands in
//! flight, bytes unread. Answers from the engine's views and hands it what clients ask; never
//! touches the core itself.
//!
//! ```text
//!   client ─lines, raw bytes─▶ ClientInput ─▶ Session ─Input─▶ engine
//!          ◀──────────────────── Outlet ◀── lines, Mailbox ───┘
//! ```

mod client;
mod command;
mod echo;
pub(crate) mod fuzz;
mod object;
mod outlet;
mod quiet;
mod results;
mod rights;
mod send;
mod session;
mod socket;
mod views;

pub(crate) use self::rights::Rights;
pub(crate) use self::send::new_id;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::unistd::{Gid, Group, chown};
use receptor_proto::control::{PluginStatus, ReloadReply};
use receptor_proto::plugin::Mode;
use receptor_proto::{ErrorBody, ErrorCode, NodeId};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, mpsc, oneshot};
use tracing::Instrument as _;

use self::rights::Visitor;
use crate::config::{CONTROL_GROUP, Control, Settings};
use crate::engine::{EngineGone, EngineHandle};
use crate::keyring::Keyring;
use crate::link::Links;
use crate::log::LogHandle;
use crate::policy::Person;
use crate::raw;
use crate::results::Keeper;
use crate::spooler::Store;
use crate::task;
use crate::unix_socket::{self, SocketFile};
use crate::worker::{Command, PluginInfo};

/// The pause after a failed accept (out of descriptors or memory).
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// Between two log lines about failed accepts or refused clients.
const COMPLAIN_EVERY: Duration = Duration::from_secs(10);

/// A reload that a client asked for.
pub(crate) type ReloadRequest = oneshot::Sender<ReloadReply>;

/// What sessions share.
#[derive(Debug)]
pub(crate) struct Context {
    /// This node.
    pub(crate) node: NodeId,
    /// When the daemon was started.
    pub(crate) started: Instant,
    /// What is in force.
    pub(crate) settings: Rc<RefCell<Settings>>,
    /// The engine.
    pub(crate) engine: EngineHandle,
    /// The store.
    pub(crate) store: Store,
    /// What is kept for clients.
    pub(crate) keeper: Keeper,
    /// Links.
    pub(crate) links: Rc<Links>,
    /// Certificates.
    pub(crate) keyring: Rc<Keyring>,
    /// What this node says is signed, and what it sends sealed.
    pub(crate) is_member: bool,
    /// The log.
    pub(crate) log: LogHandle,
    /// The plugin host.
    pub(crate) host: mpsc::Sender<Command>,
    /// Reloads are done by whoever has the other end.
    pub(crate) reload: mpsc::Sender<ReloadRequest>,
    /// The daemon stops: it takes no message any more.
    pub(crate) draining: Cell<bool>,
    /// Clients connected now.
    pub(crate) clients: Cell<u32>,
    /// A client has left.
    pub(crate) client_left: Notify,
    /// What was set with `log-level`, when it was.
    pub(crate) level: RefCell<Option<String>>,
    /// What is remembered of clients' rights.
    pub(crate) rights: Rights,
}

impl Context {
    /// Waits until there is no client.
    pub(crate) async fn clients_gone(&self) {
        while self.clients.get() > 0 {
            self.client_left.notified().await;
        }
    }

    /// What is installed here; empty when the host is gone.
    async fn plugins(&self) -> Vec<PluginStatus> {
        let (reply, answer) = oneshot::channel();
        if self.host.send(Command::List { reply }).await.is_err() {
            return Vec::new();
        }
        let plugins = answer.await.unwrap_or_default();
        plugins.into_iter().map(plugin_status).collect()
    }

    /// Looks at a plugin anew. False: there is none of this name.
    async fn restart_plugin(&self, name: String) -> Result<bool, EngineGone> {
        let (reply, answer) = oneshot::channel();
        let restart = Command::RestartPlugin { name, reply };
        self.host.send(restart).await.map_err(|_| EngineGone)?;
        answer.await.map_err(|_| EngineGone)
    }

    fn security(&self) -> &'static str {
        // A [tls] table alone encrypts nothing: what the links do counts.
        let settings = self.settings.borrow();
        let listen = settings.listen.iter().map(|listen| &listen.url);
        let mut urls = listen.chain(settings.peer.iter().map(|peer| &peer.url));
        if settings.tls.is_some() && urls.any(|url| url.is_tls()) {
            "tls"
        } else {
            "none"
        }
    }

    async fn reload(&self) -> Result<ReloadReply, EngineGone> {
        let (reply, answer) = oneshot::channel();
        self.reload.send(reply).await.map_err(|_| EngineGone)?;
        answer.await.map_err(|_| EngineGone)
    }

    /// Sets the level when there is one; what is in force.
    fn log_level(&self, level: Option<&str>) -> Result<String, ErrorBody> {
        if let Some(level) = level {
            self.log
                .set_level(level)
                .map_err(|text| ErrorBody::new(ErrorCode::InvalidRequest, text))?;
            *self.level.borrow_mut() = Some(level.to_owned());
            tracing::info!(level, "log level set by a client");
        }
        Ok(match &*self.level.borrow() {
            Some(level) => level.clone(),
            None => self.settings.borrow().log.level.to_string(),
        })
    }
}

fn plugin_status(info: PluginInfo) -> PluginStatus {
    let hello = info.hello;
    let mode = info.mode.map(|mode| match mode {
        Mode::Job => "job",
        Mode::Serve => "serve",
    });
    PluginStatus {
        name: info.name,
        mode: mode.unwrap_or_default().to_owned(),
        ready: info.ready,
        reason: info.reason,
        path: info.path.display().to_string(),
        running: info.running as u64,
        waiting: info.waiting as u64,
        version: hello
            .as_ref()
            .map(|hello| hello.version.clone())
            .unwrap_or_default(),
        about: hello
            .as_ref()
            .and_then(|hello| hello.about.clone())
            .unwrap_or_default(),
        actions: hello
            .map(|hello| hello.actions.into_keys().collect())
            .unwrap_or_default(),
    }
}

/// Why the control socket is not there.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve the control socket {path}: {source}")]
pub(crate) struct ControlError {
    /// Where.
    pub(crate) path: PathBuf,
    /// Why.
    #[source]
    pub(crate) source: io::Error,
}

/// The socket before anybody is served.
#[derive(Debug)]
pub(crate) struct ControlSocket {
    listener: UnixListener,
    /// Removes the file at the end; `None` when the service manager owns it.
    file: Option<SocketFile>,
}

impl ControlSocket {
    /// Makes the socket, with its mode and group.
    pub(crate) async fn bind(control: &Control) -> Result<Self, ControlError> {
        let path = &control.socket_path;
        let bind = async {
            if let Some(directory) = path.parent()
                && !directory.exists()
            {
                std::fs::create_dir(directory)?;
                // Whoever may use the socket must get to it.
                let mode = std::fs::Permissions::from_mode(0o755);
                std::fs::set_permissions(directory, mode)?;
            }
            let (listener, file) = unix_socket::bind(path).await?;
            give(path, control)?;
            Ok(Self {
                listener,
                file: Some(file),
            })
        };
        bind.await.map_err(|source| ControlError {
            path: path.clone(),
            source,
        })
    }

    /// Takes a socket that the service manager listens on.
    pub(crate) fn adopt(fd: std::os::fd::OwnedFd, control: &Control) -> Result<Self, ControlError> {
        let listener = std::os::unix::net::UnixListener::from(fd);
        let adopt = || {
            listener.set_nonblocking(true)?;
            UnixListener::from_std(listener)
        };
        match adopt() {
            Ok(listener) => Ok(Self {
                listener,
                file: None,
            }),
            Err(source) => Err(ControlError {
                path: control.socket_path.clone(),
                source,
            }),
        }
    }

    /// Serves clients until the returned task is aborted.
    pub(crate) fn serve(self, context: Rc<Context>) -> tokio::task::JoinHandle<()> {
        let server = Server {
            context,
            by_user: Rc::default(),
            complained: None,
        };
        task::spawn("control", server.run(self))
    }
}

/// Sets the mode and the group of the socket file.
fn give(path: &Path, control: &Control) -> io::Result<()> {
    match &control.group {
        Some(name) => give_to(path, name)?,
        // The packages' group is a default, so that a daemon without it, or without the right
        // to give files away, serves its own group.
        None => match give_to(path, CONTROL_GROUP) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::info!(%error, "the control socket stays with the group of the daemon");
            }
        },
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(control.mode))?;
    let gid = Gid::from_raw(path.symlink_metadata()?.gid());
    let group = match Group::from_gid(gid) {
        Ok(Some(group)) => group.name,
        Ok(None) | Err(_) => gid.to_string(),
    };
    tracing::info!(
        path = %path.display(),
        group,
        mode = format_args!("{:04o}", control.mode),
        "control socket"
    );
    Ok(())
}

fn give_to(path: &Path, name: &str) -> io::Result<()> {
    let group = match name.parse::<u32>() {
        Ok(number) => Some(Gid::from_raw(number)),
        Err(_) => Group::from_name(name)?.map(|group| group.gid),
    };
    let Some(group) = group else {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!("there is no group {name} (control.group)"),
        ));
    };
    chown(path, None, Some(group)).map_err(|error| {
        io::Error::new(
            io::Error::from(error).kind(),
            format!("it cannot be given to the group {name}: {error}"),
        )
    })
}

struct Server {
    context: Rc<Context>,
    by_user: Rc<RefCell<HashMap<u32, u32>>>,
    complained: Option<Instant>,
}

impl Server {
    async fn run(mut self, socket: ControlSocket) {
        let ControlSocket { listener, file } = socket;
        let _file = file;
        loop {
            match listener.accept().await {
                Ok((stream, _)) => self.accept(stream),
                Err(error) => {
                    if self.may_complain() {
                        tracing::error!(%error, "clients cannot be accepted now");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn accept(&mut self, stream: UnixStream) {
        let (uid, gid, pid) = match stream.peer_cred() {
            Ok(peer) => (peer.uid(), peer.gid(), peer.pid()),
            Err(error) => {
                tracing::debug!(%error, "a client without credentials");
                return;
            }
        };
        let (max, max_per_user) = {
            let control = &self.context.settings.borrow().control;
            (control.max_clients, control.max_clients_per_user)
        };
        let of_user = self.by_user.borrow().get(&uid).copied().unwrap_or(0);
        let refusal = if self.context.clients.get() >= max {
            Some(("control.max-clients", max))
        } else if of_user >= max_per_user {
            Some(("control.max-clients-per-user", max_per_user))
        } else {
            None
        };
        if let Some((limit, value)) = refusal {
            if self.may_complain() {
                tracing::warn!(
                    message_id = crate::log::id::CLIENT_REFUSED,
                    uid,
                    pid,
                    limit,
                    value,
                    "too many clients; one was refused"
                );
            }
            // One try: it is new, so there is room for a line unless something is very wrong.
            let _ = stream
                .try_write(format!("ERROR: too many clients ({limit} is {value})\n").as_bytes());
            return;
        }
        tracing::debug!(uid, gid, pid, "client");
        let mut gids = raw::peer_groups(&stream).unwrap_or_else(|error| {
            tracing::debug!(uid, pid, %error, "a client's groups are not known, but the first");
            Vec::new()
        });
        gids.push(gid);
        let visitor = Visitor::new(Person { uid, gids });
        let place = Place::take(&self.context, &self.by_user, uid);
        let span = tracing::info_span!("client", uid, pid);
        let context = Rc::clone(&self.context);
        let run = async move {
            let _place = place;
            session::run(stream, visitor, context).await;
        };
        task::spawn("control-client", run.instrument(span));
    }

    fn may_complain(&mut self) -> bool {
        let now = Instant::now();
        let quiet = self
            .complained
            .is_none_or(|then| now - then >= COMPLAIN_EVERY);
        if quiet {
            self.complained = Some(now);
        }
        quiet
    }
}

/// A client's place among the others.
struct Place {
    context: Rc<Context>,
    by_user: Rc<RefCell<HashMap<u32, u32>>>,
    uid: u32,
}

impl Place {
    fn take(context: &Rc<Context>, by_user: &Rc<RefCell<HashMap<u32, u32>>>, uid: u32) -> Self {
        context.clients.set(context.clients.get() + 1);
        *by_user.borrow_mut().entry(uid).or_default() += 1;
        Self {
            context: Rc::clone(context),
            by_user: Rc::clone(by_user),
            uid,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let clients = &self.context.clients;
        clients.set(clients.get() - 1);
        self.context.client_left.notify_one();
        let mut by_user = self.by_user.borrow_mut();
        if let Some(count) = by_user.get_mut(&self.uid) {
            *count -= 1;
            if *count == 0 {
                by_user.remove(&self.uid);
            }
        }
    }
}
