//! What a daemon leaves with a holder for the next one.
//!
//! Owns the note, written once before the job is handed over, and the mark, written with each offset that was
//! put away. Both are JSON, which the next daemon may know more or less of; neither holds a payload.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use receptor_proto::MessageId;
use receptor_proto::plugin::{ActionDescriptor, PluginHello, feature};
use serde::{Deserialize, Serialize};

use crate::worker::describe::Executable;
use crate::worker::outcome::cut;

/// Longest text in a note, in bytes.
const MAX_TEXT: usize = 1024;
/// What of a plugin's features its host acts on.
const FEATURES: [&str; 3] = [feature::CANCEL, feature::STATUS, feature::FILE];

/// What has to be known of a job's process to go on with it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(in crate::worker) struct Note {
    /// The work, as its id in the plugin protocol.
    pub job: String,
    /// The file's name.
    pub file_name: String,
    /// Where the plugin was.
    pub path: PathBuf,
    /// Its hello, as far as it is needed.
    pub hello: PluginHello,
    /// The action that was asked for.
    pub action: String,
    /// When the job began, in milliseconds of the machine's monotonic clock.
    pub began_ms: u64,
    /// Bytes of stdin that the plugin must have got to have the job.
    pub input: u64,
}

/// What goes with an offset.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::worker) struct Mark {
    /// The serial of the last response before it.
    #[serde(default)]
    pub said: u64,
    /// Bytes of results before it.
    #[serde(default)]
    pub results: u64,
    /// Files that were used for them.
    #[serde(default)]
    pub files: u32,
}

impl Note {
    pub(in crate::worker) fn new(
        work: MessageId,
        plugin: &Executable,
        hello: &PluginHello,
        action: &str,
    ) -> Option<Self> {
        let descriptor = hello.actions.get(action)?;
        let descriptor = ActionDescriptor {
            schema: None,
            example: None,
            about: None,
            ..descriptor.clone()
        };
        let has = |name: &&&str| hello.has(name);
        let reason = hello.reason.clone();
        Some(Self {
            job: work.to_string(),
            file_name: plugin.file_name.clone(),
            path: plugin.path.clone(),
            hello: PluginHello {
                about: None,
                version: cut(hello.version.clone(), MAX_TEXT),
                features: FEATURES
                    .iter()
                    .filter(has)
                    .map(|f| (*f).to_owned())
                    .collect(),
                reason: reason.map(|reason| cut(reason, MAX_TEXT)),
                actions: [(action.to_owned(), descriptor)].into(),
                ..hello.clone()
            },
            action: action.to_owned(),
            began_ms: monotonic_ms(),
            input: 0,
        })
    }

    pub(in crate::worker) fn work(&self) -> Option<MessageId> {
        self.job.parse().ok()
    }

    pub(in crate::worker) fn plugin(&self) -> Executable {
        Executable {
            name: self.hello.name.clone(),
            file_name: self.file_name.clone(),
            path: self.path.clone(),
        }
    }

    /// When the job began.
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
