//! The daemon's life between start and stop.
//!
//! Owns what happens after everything that can fail quickly has succeeded: it says when
//! the daemon is ready, reacts to signals, and decides when it is over. The work itself is
//! done by the modules that it starts.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Interval;

use crate::cli::Cli;
use crate::config::{self, Apply, Change, ConfigError, Environment, NodeId, Settings};
use crate::data_dir::DataDir;
use crate::exit::Exit;
use crate::log::{self, LogHandle};
use crate::systemd::{Notifier, Passed};

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
}

/// Runs the daemon until it is told to stop.
pub async fn run(mut settings: Settings, handles: Handles) -> Exit {
    let mut signals = match Signals::new() {
        Ok(signals) => signals,
        Err(error) => {
            tracing::error!(%error, "signals cannot be received");
            return Exit::Internal;
        }
    };
    let (node_id, notifier) = (&handles.node_id, handles.notifier);
    tracing::info!(
        message_id = log::id::STARTED,
        node = %node_id,
        version = env!("CARGO_PKG_VERSION"),
        data_dir = %handles.data_dir.path().display(),
        "serving"
    );
    notifier.ready(&format!("node {node_id}"));
    let mut watchdog = notifier.watchdog_interval().map(tokio::time::interval);
    loop {
        let request = tokio::select! {
            request = signals.next() => request,
            () = tick(watchdog.as_mut()) => {
                notifier.watchdog();
                continue;
            }
        };
        match request {
            Request::Stop(signal) => {
                tracing::info!(message_id = log::id::STOPPING, signal, "stopping");
                notifier.stopping("stopping");
                return Exit::Ok;
            }
            Request::Reload => {
                notifier.reloading();
                // What is wrong was logged; the unit goes on with what it had.
                let _ = reload(&mut settings, &handles);
                notifier.ready(&format!("node {node_id}"));
            }
        }
    }
}

/// The next beat of an interval; never, when there is none.
async fn tick(interval: Option<&mut Interval>) {
    match interval {
        Some(interval) => drop(interval.tick().await),
        None => std::future::pending().await,
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
    handles.log.set(&settings.log.level);
    let count = changes.len();
    tracing::info!(message_id = log::id::RELOADED, changes = count, "reloaded");
    Ok(changes)
}

/// What a signal asks for.
enum Request {
    Stop(&'static str),
    Reload,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Request {
        tokio::select! {
            _ = self.terminate.recv() => Request::Stop("SIGTERM"),
            _ = self.interrupt.recv() => Request::Stop("SIGINT"),
            _ = self.hangup.recv() => Request::Reload,
        }
    }
}
