//! The daemon's life between start and stop.
//!
//! Owns what happens after everything that can fail quickly has succeeded: it says when
//! the daemon is ready, reacts to signals, and decides when it is over. The work itself is
//! done by the modules that it starts.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::error::Error;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use receptor_mesh::LinkState;
use receptor_proto::control::ReloadReply;
use receptor_spool::SpoolError;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, timeout};

use crate::cli::Cli;
use crate::config::{
    self, Apply, Change, ConfigError, DEFAULT_COST, Environment, LinkUrl, Listen, MAX_LINKS,
    NodeId, Settings,
};
use crate::control::{Context, ControlError, ControlSocket, ReloadRequest, Rights};
use crate::data_dir::DataDir;
use crate::engine::{Engine, EngineHandle, HostLink, Input, Left, Query};
use crate::exit::Exit;
use crate::instance;
use crate::keyring::{Keyring, Keys};
use crate::link::{self, Bound, Links, ListenError, Proxies};
use crate::log::{self, LogHandle};
use crate::member::Membership;
use crate::raw;
use crate::results::Keeper;
use crate::spooler::Store;
use crate::systemd::{self, Notifier, Passed};
use crate::task;
use crate::users;
use crate::worker::{Command, Host, HostConfig, holder};

/// Time for the goodbyes to leave when the daemon stops; a peer that does not read must not
/// hold it up.
const GOODBYE_TIME: Duration = Duration::from_secs(2);

/// Time for clients to get the answers to what they have asked when the daemon stops and another one
/// takes over their socket.
const ANSWER_TIME: Duration = Duration::from_millis(500);

/// How often the service manager is told how the daemon is, when that has changed.
const STATUS_EVERY: Duration = Duration::from_secs(5);
/// While works are given time at a stop: how often the service manager is asked for more, and how much is.
const EXTEND_EVERY: Duration = Duration::from_secs(5);
const EXTEND_BY: Duration = Duration::from_secs(30);

/// Which part of the spool may be filled with messages in custody for other nodes: one in this many.
const CUSTODY_SHARE: usize = 10;

/// Commands that may wait for the plugin host; more wait at the engine.
const HOST_COMMANDS: usize = 256;
/// Reports that may wait for the engine; a plugin host that finds no room waits, and with it
/// its plugins.
const HOST_REPORTS: usize = 256;

/// Descriptors that may be open beside those of links and clients: pipes of plugins, payloads,
/// and what the process itself needs.
const OTHER_FILES: u64 = 2048;

/// What `main` took and opened for the daemon.
#[derive(Debug)]
pub struct Handles {
    /// The name of this node.
    pub node_id: NodeId,
    /// The locked data directory.
    pub data_dir: DataDir,
    /// Descriptors from the service manager.
    pub passed: Passed,
    /// The line to the service manager.
    pub notifier: Notifier,
    /// Changes the log level.
    pub log: LogHandle,
    /// The command line, for reloads.
    pub cli: Cli,
    /// The environment of the start, for reloads.
    pub environment: Environment,
    /// This node's certificate and key, when there are.
    pub keys: Option<Keys>,
}

/// Runs the daemon until it is told to stop.
pub async fn run(settings: Settings, handles: Handles) -> Exit {
    raw::keep_buffers();
    users::warn_of_hidden(&settings.rules);
    match start(settings, handles).await {
        Ok(mut daemon) => daemon.serve().await,
        Err((exit, error)) => {
            tracing::error!("{error}");
            exit
        }
    }
}

/// Everything that runs.
struct Daemon {
    settings: Rc<RefCell<Settings>>,
    handles: Handles,
    signals: Signals,
    engine: EngineHandle,
    engine_task: JoinHandle<()>,
    host: mpsc::Sender<Command>,
    host_task: JoinHandle<()>,
    links: Rc<Links>,
    keyring: Rc<Keyring>,
    context: Rc<Context>,
    control: Option<JoinHandle<()>>,
    /// The control socket stays when this daemon stops, and the next one serves whoever comes meanwhile.
    is_socket_passed: bool,
    reloads: mpsc::Receiver<ReloadRequest>,
}

type Failed = (Exit, Box<dyn Error>);

async fn start(settings: Settings, mut handles: Handles) -> Result<Daemon, Failed> {
    let left = handles.passed.take_those(holder::is_name);
    let known = [systemd::CONTROL, systemd::MESH];
    if let Some(name) = handles.passed.names().find(|name| !known.contains(name)) {
        let text = format!(
            "a socket named {name} was passed: expected FileDescriptorName=mesh or =control"
        );
        return Err(failed(Exit::Configuration, text));
    }
    let signals = Signals::new().map_err(|error| failed(Exit::Internal, error))?;
    allow_open_files(&settings);
    let data_dir = handles.data_dir.path().to_owned();
    if Store::is_used(&data_dir) {
        handles.notifier.status("reading the spool");
    }
    let (store, recovered) =
        Store::open(&data_dir, &settings.spool).map_err(|error| spool_failed(&data_dir, error))?;
    let kept = store.usage().entries;
    if kept > 0 {
        let entries = if kept == 1 { "entry" } else { "entries" };
        let text = format!("reading the spool, {kept} {entries}");
        handles.notifier.status(&text);
    }
    let instance = instance::next(&data_dir).map_err(|error| failed(error.exit(), error))?;
    let mesh = mesh_config(&settings, &handles.node_id, instance);

    let passed = handles.passed.take(systemd::CONTROL).pop();
    let is_socket_passed = passed.is_some();
    let control = match passed {
        Some(fd) => Some(ControlSocket::adopt(fd, &settings.control).map_err(control_failed)?),
        None if settings.control.enabled => Some(
            ControlSocket::bind(&settings.control)
                .await
                .map_err(control_failed)?,
        ),
        None => None,
    };
    let bound = listeners(&settings, handles.passed.take(systemd::MESH)).await?;

    let settings = Rc::new(RefCell::new(settings));
    let keeper = Keeper::open(&data_dir, Rc::clone(&settings), store.clone()).map_err(|error| {
        // A later version's: trying again does not help.
        let exit = if error.kind() == io::ErrorKind::Unsupported {
            Exit::Configuration
        } else {
            Exit::Unavailable
        };
        failed(exit, error)
    })?;
    let host_config = HostConfig::from_settings(
        handles.node_id.clone(),
        &data_dir,
        &settings.borrow().plugins,
    );
    let (host_commands, commands) = mpsc::channel(HOST_COMMANDS);
    let (report, reports) = mpsc::channel(HOST_REPORTS);
    let mut host = Host::new(host_config, commands, report)
        .map_err(|error| failed(Exit::Unavailable, error))?;
    let left = holder::resume(left);
    let host_link = HostLink {
        commands: host_commands.clone(),
        reports,
        admission: host.admission(),
        left: left.iter().flat_map(Left::of).collect(),
    };
    host.hold(left);
    let host_task = task::spawn("plugin-host", host.run());

    let keyring = Keyring::new(
        handles.node_id.clone(),
        settings.borrow().tls.clone(),
        handles.keys.take(),
    );
    let keyring = Rc::new(keyring);
    let membership = if handles.cli.tls_alone {
        tracing::warn!(
            "nothing is signed or sealed, for a measurement: any member can speak for any other"
        );
        None
    } else {
        Membership::new(
            handles.node_id.clone(),
            instance,
            &data_dir,
            keyring.subscribe(),
            settings.borrow().security.seal,
        )
        .map_err(|error| failed(Exit::Configuration, error))?
    };
    let is_member = membership.is_some();
    let (engine, engine_handle) = Engine::new(
        (mesh, membership),
        store.clone(),
        recovered,
        keeper.clone(),
        handles.notifier,
        Rc::clone(&settings),
        host_link,
    )
    .map_err(|error| failed(Exit::Unavailable, error))?;
    let engine_task = task::spawn("engine", engine.run());
    let metadata = Input::SetMetadata(settings.borrow().capabilities.clone());
    let _ = engine_handle.send(metadata).await;
    let links = Links::start(
        &settings.borrow(),
        bound,
        engine_handle.clone(),
        Rc::clone(&keyring),
        Proxies::new(&handles.environment),
    );
    let links = Rc::new(links);
    task::spawn("certificates", Rc::clone(&links).look_after_certificates());
    let (reload, reloads) = mpsc::channel(1);
    let context = Context {
        node: handles.node_id.clone(),
        started: Instant::now(),
        settings: Rc::clone(&settings),
        engine: engine_handle.clone(),
        store,
        keeper,
        links: Rc::clone(&links),
        keyring: Rc::clone(&keyring),
        is_member,
        log: handles.log.clone(),
        host: host_commands.clone(),
        reload,
        draining: Cell::new(false),
        clients: Cell::new(0),
        client_left: Notify::new(),
        level: RefCell::new(None),
        rights: Rights::default(),
    };
    let context = Rc::new(context);
    let control = control.map(|socket| socket.serve(Rc::clone(&context)));
    Ok(Daemon {
        settings,
        handles,
        signals,
        engine: engine_handle,
        engine_task,
        host: host_commands,
        host_task,
        links,
        keyring,
        context,
        control,
        is_socket_passed,
        reloads,
    })
}

/// Lets this process have as many descriptors as its links and clients may need. What a process
/// is given at first is often 1,024, whatever it may ask for.
fn allow_open_files(settings: &Settings) {
    let clients = settings.control.max_clients;
    let wanted = u64::from(settings.link.max_links) + u64::from(clients) + OTHER_FILES;
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return;
    };
    let given = soft.max(wanted.min(hard));
    if given > soft
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, given, hard)
    {
        tracing::warn!(%error, "no more than {soft} files can be open at once");
    } else if given < wanted {
        tracing::warn!(
            wanted,
            "no more than {given} files can be open at once, fewer than link.max-links and control.max-clients may need (LimitNOFILE=)"
        );
    }
}

/// The exit code of a daemon whose spool cannot be opened.
fn spool_failed(data_dir: &Path, error: SpoolError) -> Failed {
    let exit = match &error {
        SpoolError::InUse => Exit::TryAgain,
        SpoolError::Newer { .. } => Exit::Configuration,
        SpoolError::Disk {
            kind: io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem,
            ..
        } => Exit::NotPermitted,
        SpoolError::Disk { .. }
        | SpoolError::DiskFull
        | SpoolError::Full { .. }
        | SpoolError::FullFor { .. }
        | SpoolError::TooLarge { .. }
        | SpoolError::NoEntry(_)
        | SpoolError::EntryExists(_)
        | SpoolError::Damaged(_)
        | SpoolError::Changed(_)
        | SpoolError::OutOfOrder { .. }
        | SpoolError::Incomplete(_)
        | SpoolError::ReadOnly => Exit::Unavailable,
    };
    failed(exit, format!("{}: {error}", data_dir.display()))
}

fn failed(exit: Exit, error: impl Into<Box<dyn Error>>) -> Failed {
    (exit, error.into())
}

/// The exit code for a socket that cannot be had.
fn socket_exit(error: &io::Error) -> Exit {
    let kind = error.kind();
    if kind == io::ErrorKind::PermissionDenied {
        Exit::NotPermitted
    } else if matches!(kind, io::ErrorKind::NotFound | io::ErrorKind::Unsupported) {
        // A group or directory or transport that is not there: waiting does not make it.
        Exit::Configuration
    } else {
        Exit::Unavailable
    }
}

fn control_failed(error: ControlError) -> Failed {
    let exit = socket_exit(&error.source);
    if exit == Exit::NotPermitted {
        let text = format!(
            "{error}; name another place with --socket-path, or serve none with the word node"
        );
        return failed(exit, text);
    }
    (exit, error.into())
}

fn listen_failed(error: ListenError) -> Failed {
    (socket_exit(&error.source), error.into())
}

/// Binds what the settings say, and takes what the service manager listens on: a passed socket
/// whose address is that of a listener is that listener.
async fn listeners(
    settings: &Settings,
    passed: Vec<OwnedFd>,
) -> Result<Vec<(Listen, Bound)>, Failed> {
    let mut adopted = Vec::new();
    for fd in passed {
        let url = link::url_of(&fd).map_err(|error| failed(Exit::Unavailable, error))?;
        adopted.push((url, fd));
    }
    let mut bound = Vec::new();
    for listen in &settings.listen {
        let is_it = |(url, _): &(LinkUrl, OwnedFd)| url.bind() == listen.url.bind();
        let found = match adopted.iter().position(is_it) {
            Some(index) => {
                let (_, fd) = adopted.swap_remove(index);
                link::adopt(&listen.url, fd)
            }
            None => link::bind(&listen.url).await,
        };
        bound.push((listen.clone(), found.map_err(listen_failed)?));
    }
    for (url, fd) in adopted {
        if url.is_exposed() {
            let text = format!(
                "a socket for links at {url} was passed, where links could be read and forged by others on the network: \
                 expected a [[listen]] block with this address, as rnps:// or with allow-plaintext = true"
            );
            return Err(failed(Exit::Configuration, text));
        }
        let listen = Listen {
            url,
            cost: DEFAULT_COST,
            allow_plaintext: false,
        };
        let found = link::adopt(&listen.url, fd).map_err(listen_failed)?;
        bound.push((listen, found));
    }
    Ok(bound)
}

fn mesh_config(settings: &Settings, node: &NodeId, instance: u64) -> receptor_mesh::Config {
    let mut config = receptor_mesh::Config::new(node.clone(), instance, fastrand::u64(..));
    config.router = settings.router;
    config.software = concat!("receptord ", env!("CARGO_PKG_VERSION")).to_owned();
    config.hold_time = settings.link.hold_time;
    config.hop_limit = settings.routing.hop_limit;
    config.dead_node_retention = settings.routing.dead_node_retention;
    let limits = &mut config.limits;
    // The links themselves hold the configured number, which a reload can change.
    limits.links = usize::try_from(MAX_LINKS).unwrap_or(usize::MAX);
    limits.outgoing_bytes = settings.spool.max_bytes;
    limits.outgoing_entries = usize::try_from(settings.spool.max_entries).unwrap_or(usize::MAX);
    // What is kept for others never fills a small spool.
    let share = settings.spool.max_bytes / CUSTODY_SHARE as u64;
    limits.custody_bytes = limits.custody_bytes.min(share);
    let share = limits.outgoing_entries / CUSTODY_SHARE;
    limits.custody_entries = limits.custody_entries.min(share.max(1));
    config
}

impl Daemon {
    /// Says that everything is there and reacts to what is asked until the end.
    async fn serve(&mut self) -> Exit {
        let notifier = self.handles.notifier;
        tracing::info!(
            message_id = log::id::STARTED,
            node = %self.handles.node_id,
            version = env!("CARGO_PKG_VERSION"),
            data_dir = %self.handles.data_dir.path().display(),
            "serving"
        );
        let mut told = self.status_line().await;
        notifier.ready(&told);
        let mut look = tokio::time::interval(STATUS_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let request = tokio::select! {
                _ = look.tick(), if notifier.is_heard() => {
                    let status = self.status_line().await;
                    if status != told {
                        notifier.status(&status);
                        told = status;
                    }
                    continue;
                }
                request = self.signals.next() => request,
                Some(reply) = self.reloads.recv() => Request::Reload(Some(reply)),
                _ = &mut self.engine_task => {
                    tracing::error!("the engine has ended");
                    return Exit::Internal;
                }
                _ = &mut self.host_task => {
                    tracing::error!("the plugin host has ended");
                    return Exit::Internal;
                }
            };
            match request {
                Request::Stop(signal) => {
                    tracing::info!(message_id = log::id::STOPPING, signal, "stopping");
                    notifier.stopping("stopping");
                    self.stop().await;
                    return Exit::Ok;
                }
                Request::Reload(reply) => {
                    notifier.reloading();
                    let result = self.reload().await;
                    if let Some(reply) = reply {
                        // A client that did not wait is no reason for anything.
                        let _ = reply.send(result);
                    }
                    told = self.status_line().await;
                    notifier.ready(&told);
                }
            }
        }
    }

    /// How this node is, in one line.
    async fn status_line(&self) -> String {
        let links = self
            .engine
            .ask(|reply| Input::Query(Query::Links(reply)))
            .await;
        let neighbors: BTreeSet<_> = links
            .iter()
            .flatten()
            .filter(|link| link.view.state == LinkState::Up)
            .filter_map(|link| link.view.node.clone())
            .collect();
        let works = self.works_running().await;
        let usage = self.context.store.usage();
        #[expect(clippy::cast_precision_loss, reason = "for people, with one digit")]
        let kept = usage.bytes as f64 / f64::from(1 << 20);
        format!(
            "node {}: {} neighbors, {works} works running, {} messages in the spool ({kept:.1} MiB)",
            self.handles.node_id,
            neighbors.len(),
            usage.entries,
        )
    }

    async fn works_running(&self) -> u64 {
        self.engine
            .ask(|reply| Input::Query(Query::WorksActive(reply)))
            .await
            .unwrap_or(0)
    }

    /// Puts a changed configuration in force, as far as that is possible without a restart.
    async fn reload(&mut self) -> ReloadReply {
        let mut settings = self.settings.borrow().clone();
        let changes = match reload(&mut settings, &self.handles) {
            Ok(changes) => changes,
            Err(error) => {
                let problems: Vec<_> = error.problems.iter().map(ToString::to_string).collect();
                return ReloadReply {
                    success: false,
                    error: Some(problems.join("\n")),
                    applied: Vec::new(),
                    needs_restart: Vec::new(),
                };
            }
        };
        *self.settings.borrow_mut() = settings.clone();
        allow_open_files(&settings);
        let rules = Input::SetRules(Arc::clone(&settings.rules));
        let metadata = Input::SetMetadata(settings.capabilities.clone());
        let _ = self.engine.send(rules).await;
        let _ = self.engine.send(metadata).await;
        let config = HostConfig::from_settings(
            self.handles.node_id.clone(),
            self.handles.data_dir.path(),
            &settings.plugins,
        );
        let _ = self.host.send(Command::SetConfig(Box::new(config))).await;
        // Listeners and peers that come now need them.
        let keys = self.keyring.set(settings.tls.as_ref());
        if keys.is_ok() {
            self.links.keys_changed().await;
        }
        let failed = self.links.apply(&settings).await;
        for error in &failed {
            tracing::error!("{error}");
        }
        let changed = |apply| {
            let changes = changes.iter().filter(move |change| change.apply == apply);
            changes.map(|change| change.key.clone()).collect()
        };
        let keys_problem = keys.err().map(|problem| problem.to_string());
        let problems: Vec<_> = failed.iter().map(ToString::to_string).collect();
        let problems: Vec<_> = keys_problem.into_iter().chain(problems).collect();
        ReloadReply {
            success: problems.is_empty(),
            error: (!problems.is_empty()).then(|| problems.join("\n")),
            applied: changed(Apply::AtOnce),
            needs_restart: changed(Apply::Restart),
        }
    }

    /// Waits until works have ended or their time is over, and asks the service manager for that time.
    async fn works_end(&mut self, grace: Duration) {
        let notifier = self.handles.notifier;
        let running = self.works_running().await;
        if running > 0 {
            let seconds = grace.as_secs();
            notifier.status(&format!(
                "stopping: {running} works have up to {seconds} s to end"
            ));
        }
        let mut more_time = tokio::time::interval(EXTEND_EVERY);
        loop {
            tokio::select! {
                _ = &mut self.host_task => return,
                _ = more_time.tick() => notifier.extend(EXTEND_BY),
                request = self.signals.stop_again() => {
                    tracing::warn!(signal = request, "stopping at once; works are cut short");
                    return;
                }
            }
        }
    }

    /// Ends works, says goodbye everywhere and waits, not long, for the last words to leave.
    async fn stop(&mut self) {
        if self.is_socket_passed {
            // Who connects from now on is the next daemon's. What clients that are here already send is
            // safe on the disk, and that daemon's, too.
            if let Some(control) = self.control.take() {
                control.abort();
            }
        } else {
            self.context.draining.set(true);
        }
        let grace = self.settings.borrow().shutdown.drain_timeout;
        let shutdown = Command::Shutdown { grace };
        if self.host.send(shutdown).await.is_ok() {
            self.works_end(grace).await;
        }
        if self.is_socket_passed {
            let gone = self.context.clients_gone();
            let _ = timeout(ANSWER_TIME, gone).await;
        }
        if let Some(control) = self.control.take() {
            control.abort();
            // The socket file is gone when the task is.
            let _ = control.await;
        }
        let goodbye = async {
            if self.engine.ask(Input::Shutdown).await.is_ok() {
                self.links.stop().await;
            }
        };
        if timeout(GOODBYE_TIME, goodbye).await.is_err() {
            tracing::debug!("some links did not end in time");
        }
        // A disk that hangs must not hold it up either: what was promised is safe already.
        let close = async {
            self.context.keeper.flushed().await;
            self.context.store.close().await;
        };
        if timeout(GOODBYE_TIME, close).await.is_err() {
            tracing::warn!("the spool did not end in time; nothing is lost");
        }
    }
}

/// Reads the configuration again, logs what has changed, and puts in force what can change
/// in a running daemon. Values are not logged: a plugin's may be confidential.
///
/// # Errors
///
/// Everything that is wrong with the new configuration; then the old one stays as a whole.
pub fn reload(settings: &mut Settings, handles: &Handles) -> Result<Vec<Change>, ConfigError> {
    let loaded = match config::load(&handles.cli, &handles.environment) {
        Ok(loaded) => loaded,
        Err(error) => {
            for problem in &error.problems {
                tracing::error!("{problem}");
            }
            tracing::error!(
                message_id = log::id::RELOAD_REFUSED,
                problems = error.problems.len(),
                "the configuration is wrong; the one before stays in force"
            );
            return Err(error);
        }
    };
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    let changes = Settings::diff(settings, &loaded.settings);
    for Change { key, apply, .. } in &changes {
        match apply {
            Apply::AtOnce => tracing::info!(key, "changed"),
            Apply::Restart => tracing::warn!(key, "changes at the next restart"),
        }
    }
    *settings = loaded.settings.keeping_what_needs_a_restart(settings);
    users::warn_of_hidden(&settings.rules);
    handles.log.set(&settings.log.level);
    let count = changes.len();
    tracing::info!(message_id = log::id::RELOADED, changes = count, "reloaded");
    Ok(changes)
}

/// What a signal asks for.
enum Request {
    Stop(&'static str),
    /// Who wants to know what came of it.
    Reload(Option<ReloadRequest>),
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for another demand to stop.
    async fn stop_again(&mut self) -> &'static str {
        loop {
            if let Request::Stop(signal) = self.next().await {
                return signal;
            }
        }
    }

    async fn next(&mut self) -> Request {
        tokio::select! {
            _ = self.terminate.recv() => Request::Stop("SIGTERM"),
            _ = self.interrupt.recv() => Request::Stop("SIGINT"),
            _ = self.hangup.recv() => Request::Reload(None),
        }
    }
}
