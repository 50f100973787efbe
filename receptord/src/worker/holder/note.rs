//! What a daemon leaves with a holder for the next one.
//!
//! Owns the note about the plugin, written once; the entry of each of its works, written before the work is
//! handed over; and the mark, which an entry gets with an offset that was put away. All are JSON, which the next
//! daemon may know more or less of; none holds a payload.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use receptor_proto::plugin::{ActionDescriptor, PluginHello, feature};
use serde::{Deserialize, Serialize};

use crate::worker::describe::Executable;
use crate::worker::outcome::cut;

/// Longest text in a note, in bytes.
const MAX_TEXT: usize = 1024;
/// What of a plugin's features its host acts on.
const FEATURES: [&str; 3] = [feature::CANCEL, feature::STATUS, feature::FILE];

/// What has to be known of a plugin's process to go on with it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(in crate::worker) struct Note {
    /// The file's name.
    pub file_name: String,
    /// Where the plugin was.
    pub path: PathBuf,
    /// Its hello, as far as it is needed: without the actions.
    pub hello: PluginHello,
}

/// What has to be known of a work to go on with it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(in crate::worker) struct Entry {
    /// The action that was asked for.
    pub action: ActionDescriptor,
    /// When the work began, in milliseconds of the machine's monotonic clock.
    pub began_ms: u64,
    /// Bytes of stdin that the plugin must have got to have the work.
    #[serde(default)]
    pub input: u64,
}

/// How far a work is before an offset.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::worker) struct Mark {
    /// The serial of its last response there.
    #[serde(default)]
    pub said: u64,
    /// Bytes of its results.
    #[serde(default)]
    pub results: u64,
    /// Files that were used for them.
    #[serde(default)]
    pub files: u32,
}

impl Note {
    pub(in crate::worker) fn new(plugin: &Executable, hello: &PluginHello) -> Self {
        let has = |name: &&&str| hello.has(name);
        let reason = hello.reason.clone();
        Self {
            file_name: plugin.file_name.clone(),
            path: plugin.path.clone(),
            hello: PluginHello {
                protocol: hello.protocol,
                name: hello.name.clone(),
                version: cut(hello.version.clone(), MAX_TEXT),
                about: None,
                mode: hello.mode,
                max_jobs: hello.max_jobs,
                features: FEATURES
                    .iter()
                    .filter(has)
                    .map(|f| (*f).to_owned())
                    .collect(),
                ready: hello.ready,
                reason: reason.map(|reason| cut(reason, MAX_TEXT)),
                actions: [].into(),
            },
        }
    }

    pub(in crate::worker) fn plugin(&self) -> Executable {
        Executable {
            name: self.hello.name.clone(),
            file_name: self.file_name.clone(),
            path: self.path.clone(),
        }
    }
}

impl Entry {
    /// Of a work that begins now.
    pub(in crate::worker) fn new(action: &ActionDescriptor) -> Self {
        Self {
            action: ActionDescriptor {
                payload: action.payload,
                output: action.output,
                timeout_s: action.timeout_s,
                idle_timeout_s: action.idle_timeout_s,
                max_payload: action.max_payload,
                schema: None,
                example: None,
                about: None,
                idempotent: action.idempotent,
            },
            began_ms: monotonic_ms(),
            input: 0,
        }
    }

    /// When the work began.
    pub(in crate::worker) fn began(&self) -> Instant {
        let age = Duration::from_millis(monotonic_ms().saturating_sub(self.began_ms));
        let now = Instant::now();
        now.checked_sub(age).unwrap_or(now)
    }
}

/// The clock that all processes of one start of the machine share.
fn monotonic_ms() -> u64 {
    let Ok(now) = clock_gettime(ClockId::CLOCK_MONOTONIC) else {
        return 0;
    };
    u64::try_from(Duration::from(now).as_millis()).unwrap_or(0)
}
