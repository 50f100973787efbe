//! The daemon's configuration: from files, environment and flags to [`Settings`].
//!
//! Owns everything between what people wrote and what the daemon acts on, in three steps:
//! a *fragment* is one file as written, the layers are *merged* into one table of values
//! that know their origin, and *settings* are checked and complete. Nothing is bound,
//! created or connected here; the same code serves the start, a reload, `--check-config`
//! and `--print-config`. Keys and certificates are only ever named, never read.

mod environment;
mod error;
mod fragment;
pub(crate) mod fuzz;
mod level;
mod merge;
mod pattern;
mod print;
mod read;
mod rules;
mod section;
mod settings;
mod units;
mod url;

use std::path::PathBuf;

pub use self::environment::{Environment, VARIABLES, Variable};
pub use self::error::{ConfigError, Problem};
pub use self::fragment::Source;
pub use self::level::LogLevel;
pub use self::merge::DEFAULT_FILE;
pub use self::pattern::Pattern;
pub use self::print::{Apply, Change};
pub use self::read::{DEFAULT_COST, MAX_LINKS};
pub use self::settings::{
    CONTROL_GROUP, Control, Link, Listen, Log, Peer, Plugin, Plugins, Routing,
    STANDARD_PLUGIN_DIRS, Settings, Shutdown, Spool, TLS_DIR, Tls, TlsFile, WORKER_SOCKETS,
};
pub use self::url::{Bind, Host, LinkUrl};
pub use receptor_proto::NodeId;

use self::section::{Origins, Report};
use crate::cli::Cli;

/// A configuration that may be put in force.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What to do.
    pub settings: Settings,
    /// Worth telling, but no reason not to start.
    pub warnings: Vec<Problem>,
    /// The files that were read, the strongest last.
    pub files: Vec<PathBuf>,
    origins: Origins,
}

/// Reads every layer and checks the whole.
///
/// # Errors
///
/// All that is wrong, as far as it can be told at once: with a syntax error in some file
/// only what is wrong with the files themselves.
pub fn load(cli: &Cli, env: &Environment) -> Result<Loaded, ConfigError> {
    let mut report = Report::default();
    let merged = merge::merge(cli, env, &mut report.problems);
    if !report.problems.is_empty() {
        return Err(ConfigError {
            problems: report.problems,
        });
    }
    report.warnings = merged.warnings;
    let settings = read::read(merged.table, env, &mut report);
    if !report.problems.is_empty() {
        return Err(ConfigError {
            problems: report.problems,
        });
    }
    let Report {
        warnings, origins, ..
    } = report;
    Ok(Loaded {
        settings,
        warnings,
        files: merged.files,
        origins,
    })
}

impl Loaded {
    /// Something that is wrong with a value for a reason that the configuration itself does not
    /// know, told like its own problems: with the place where the value was written.
    #[must_use]
    pub fn problem(&self, key: &str, message: String) -> Problem {
        let source = self.origins.get(key).cloned();
        Problem::new(source.unwrap_or(Source::Default(None)), key, message)
    }
}
