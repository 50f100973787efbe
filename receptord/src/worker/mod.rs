//! The plugin host: installed plugins, and the works they run.
//!
//! Owns every child process of the daemon, `jobs/` and `results/` in the data directory, and the plugin
//! protocol (`PROTOCOL-plugin.md`) on the daemon's side. It runs what it is told and reports what comes of
//! it; it never looks at the mesh, never decides what a sender may ask for, and never keeps anything over a
//! restart: what was promised is in the engine's store.
//!
//! ```text
//! api        what the engine says and hears          admission  places for works
//! host       the host's own task
//! lookout    ─▶ watch, discover ─▶ trust             what is installed
//! describe   ─▶ process                              what it can do
//! job, serve ─▶ running, job_dir, process, outcome   one work
//! process    ─▶ exec (in the child), lines, stderr   one process
//!            ─▶ holder                               one in a unit of its own
//! job, serve ─▶ unseen                               what the next daemon has to hear of it
//! alarm                                             one timer
//! sweep      ─▶ tree                                 nothing is left behind
//! ```
//!
//! A plugin that says it is not ready still gets the works that ask for it: only the plugin itself
//! knows whether that is still true, and its answer (`missing-dependency`, with what to install) is
//! better than a guess. `not-ready` is the host's own answer for a plugin that it has stopped.

mod admission;
mod alarm;
mod api;
mod config;
mod describe;
mod discover;
pub mod exec;
pub(crate) mod fuzz;
pub mod holder;
mod host;
mod job;
mod job_dir;
mod lines;
mod lookout;
mod outcome;
mod process;
mod running;
mod serve;
mod shared;
mod stderr;
mod sweep;
mod tree;
mod trust;
mod unseen;
mod watch;

pub use self::admission::{Admission, Admitted};
pub use self::api::{
    Command, Job, JobPayload, MAX_WAITING, PluginInfo, Report, ReportPayload, WINDOW_BYTES,
    WINDOW_RESULTS,
};
pub use self::config::{HostConfig, PluginConfig, PluginDir, Times};
pub use self::host::{Host, HostError};
