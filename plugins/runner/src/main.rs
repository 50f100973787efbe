//! The plugin `runner`: runs Ansible through `ansible-runner worker`, one process of its own for
//! each job.
//!
//! It owns the job's processes and files from the first to the last, and never trusts Ansible or
//! ansible-runner to clean up. It is the daemon's business who may send jobs here; it is this
//! plugin's that a job cannot undo what the node has decided (`payload.rs`).

#![forbid(unsafe_code)]

mod artifacts;
mod config;
mod health;
mod launch;
mod payload;
mod report;
mod run;
mod shorten;
mod stream;
mod tail;
mod tools;
mod tree;

use std::{
    io,
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use receptor_plugin::{Action, CancelReason, HostHello, Plugin, Stopper};
use serde_json::json;
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

use crate::{config::Config, tools::Tools};

/// Between the SIGTERM of the daemon and its SIGKILL there are five seconds.
const SIGNAL_GRACE: Duration = Duration::from_secs(4);
/// What a process that ended by a signal has as its status.
const EXIT_SIGNAL: i32 = 128;

/// The job that signals stop; there is one at most.
type Current = Arc<Mutex<Option<Stopper>>>;

#[expect(
    clippy::print_stderr,
    reason = "stderr is where a plugin speaks to people"
)]
fn main() -> ExitCode {
    let current = Current::default();
    if let Err(e) = tree::become_subreaper().and_then(|()| take_signals(&current)) {
        eprintln!("<3>runner: {e}");
        return ExitCode::FAILURE;
    }
    // Every job keeps about one core and 100 MB busy; more at once would only take memory.
    let cores = thread::available_parallelism().map_or(1, usize::from);
    Plugin::new("runner", env!("CARGO_PKG_VERSION"))
        .about("Runs Ansible through ansible-runner")
        .max_jobs(u32::try_from(cores).unwrap_or(u32::MAX))
        .cancelable()
        .ready_if(ready)
        .action(
            "execute",
            Action::bytes()
                .about(
                    "Runs a module, a playbook or a role: the arguments of ansible-runner in JSON",
                )
                .example(&json!({
                    "module": "ping",
                    "host_pattern": "localhost",
                    "inventory": "localhost",
                    "extravars": {"ansible_connection": "local"},
                })),
            move |job| {
                *current.lock().unwrap_or_else(PoisonError::into_inner) = Some(job.stopper());
                run::execute(job)
            },
        )
        .action(
            "health",
            Action::no_payload()
                .about("Says which Ansible would be used")
                .idempotent(),
            health::health,
        )
        .run()
}

/// Whether there is an Ansible to run jobs with.
fn ready(host: Option<&HostHello>) -> Result<(), String> {
    let config = match host.and_then(|host| host.config.as_ref()) {
        None => Config::default(),
        Some(config) => config.to().map_err(|e| format!("[plugins.runner]: {e}"))?,
    };
    Tools::find(&config).map(drop).map_err(|e| e.to_string())
}

/// Lets a thread of its own take the signals that ask for an end, so that a job gets an orderly
/// one. Handlers rather than a blocked mask: what we start would inherit the mask.
fn take_signals(current: &Current) -> io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    let current = Arc::clone(current);
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            for signal in signals.forever() {
                let stopper = current
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .clone();
                match stopper {
                    Some(stopper) => stopper.stop(CancelReason::Shutdown, SIGNAL_GRACE),
                    None => std::process::exit(EXIT_SIGNAL + signal),
                }
            }
        })?;
    Ok(())
}
