//! How plugin and daemon introduce themselves, and what is wrong with a hello.

use alloc::{borrow::ToOwned, collections::BTreeMap, string::String, vec::Vec};

use serde::{Deserialize, Serialize};

use super::{
    Json, MAX_ACTIONS, MAX_INLINE, MAX_JOBS, MAX_LINE, MAX_TEXT, PROTOCOL_VERSION, is_name,
    plugin_name,
};

/// Names of features that a hello may list.
pub mod feature {
    /// The plugin ends a job by itself when told to; without it the host goes straight to signals.
    pub const CANCEL: &str = "cancel";
    /// Status messages are sent, or listened to.
    pub const STATUS: &str = "status";
    /// Payloads and results may go by file.
    pub const FILE: &str = "file";
    /// Reserved for acknowledged results.
    pub const WINDOW: &str = "window";
}

/// Who a plugin is and what it can do: its first line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PluginHello {
    /// The protocol version the plugin speaks.
    pub protocol: u32,
    /// Its name, which must be that of its file.
    pub name: String,
    /// Its own version.
    pub version: String,
    /// One line for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub about: Option<String>,
    /// One process a job, or one for many.
    #[serde(default)]
    pub mode: Mode,
    /// How many jobs at once it can bear; without it the node's own limit alone holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_jobs: Option<u32>,
    /// What it understands beyond the minimum, see [`feature`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub features: Vec<String>,
    /// Whether jobs sent now have a chance.
    #[serde(default = "yes")]
    pub ready: bool,
    /// Why not, when it is not ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What it can do, by name.
    pub actions: BTreeMap<String, ActionDescriptor>,
}

/// One thing a plugin can do.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ActionDescriptor {
    /// What it takes.
    #[serde(default)]
    pub payload: PayloadKind,
    /// What it gives.
    #[serde(default)]
    pub output: OutputKind,
    /// Seconds after which the host ends a job; the node's configuration goes first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_s: Option<u64>,
    /// Seconds of silence after which the host ends a job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout_s: Option<u64>,
    /// Largest payload in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_payload: Option<u64>,
    /// A JSON schema of the payload, for help.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<Json>,
    /// A payload that works, for help and checks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub example: Option<Json>,
    /// One line for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub about: Option<String>,
    /// Whether a job cut short may be run again without harm.
    #[serde(default, skip_serializing_if = "is_false")]
    pub idempotent: bool,
}

/// How a plugin's processes relate to its jobs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// One process a job.
    #[default]
    Job,
    /// One process for many jobs.
    Serve,
}

/// What an action takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PayloadKind {
    /// A JSON value; the host refuses anything else itself.
    #[default]
    Json,
    /// UTF-8 text.
    Text,
    /// Any bytes.
    Bytes,
    /// Any bytes, always by file.
    File,
    /// Nothing: a payload is dropped.
    None,
}

/// What an action gives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OutputKind {
    /// Messages of this protocol.
    #[default]
    Json,
    /// After the hello every line is a result, and the exit status is the code.
    Text,
    /// After the hello everything until the exit is result bytes, and the exit status is the code.
    Bytes,
}

/// Who the daemon is: the answer to a plugin's hello.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostHello {
    /// The protocol version that both will speak.
    pub protocol: u32,
    /// The daemon's program name.
    #[serde(default)]
    pub host: String,
    /// The daemon's version.
    #[serde(default)]
    pub version: String,
    /// Its node id.
    #[serde(default)]
    pub node: String,
    /// What it understands beyond the minimum, see [`feature`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub features: Vec<String>,
    /// The limits it holds the plugin to.
    #[serde(default)]
    pub limits: Limits,
    /// The plugin's part of the node's configuration (`[plugins.NAME]`), an object. It may hold
    /// secrets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<Json>,
}

/// Limits on what a plugin sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Longest line in bytes, its newline included.
    #[serde(default = "max_line")]
    pub max_line: usize,
    /// Largest result in bytes that should go inline.
    #[serde(default = "inline")]
    pub inline: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_line: MAX_LINE,
            inline: MAX_INLINE,
        }
    }
}

/// What is wrong with a plugin's hello, in the words for the plugin's author.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HelloProblem {
    /// The protocol version is not one that is spoken here.
    #[error("protocol {0} is not spoken here, only {PROTOCOL_VERSION}")]
    Protocol(u32),
    /// The file's name cannot be a plugin's.
    #[error(
        "the file name {0:?} is no plugin's: a-z, then up to 63 of a-z 0-9 _ -, then perhaps one extension"
    )]
    FileName(String),
    /// The name in the hello is another than that of the file.
    #[error("\"name\" is {hello:?} but the file stands for {file:?}")]
    Name {
        /// What the hello says.
        hello: String,
        /// What the file's name says.
        file: String,
    },
    /// The version is empty.
    #[error("\"version\" is empty")]
    Version,
    /// A text is too long.
    #[error("{field:?} is longer than {MAX_TEXT} bytes")]
    TooLong {
        /// Which.
        field: &'static str,
    },
    /// The plugin can do nothing, or too much.
    #[error("\"actions\" has {0} entries, not 1 to {MAX_ACTIONS}")]
    Actions(usize),
    /// An action's name is not allowed.
    #[error("the action name {0:?} is not a-z, then up to 63 of a-z 0-9 _ -")]
    ActionName(String),
    /// `max_jobs` is zero or too large.
    #[error("\"max_jobs\" is {0}, not 1 to {MAX_JOBS}")]
    MaxJobs(u32),
    /// Output that ends with the process needs a process of its own.
    #[error("action {0:?} has text or bytes as output, which needs \"mode\":\"job\"")]
    OutputNeedsJobMode(String),
    /// The plugin is not ready and does not say why.
    #[error("\"ready\" is false without a \"reason\"")]
    NoReason,
}

impl PluginHello {
    /// Whether the plugin lists a feature.
    pub fn has(&self, feature: &str) -> bool {
        self.features.iter().any(|f| f == feature)
    }

    /// Checks what the types alone cannot: versions, names, sizes.
    ///
    /// # Errors
    /// The first [`HelloProblem`] found.
    pub fn validate(&self, file_name: &str) -> Result<(), HelloProblem> {
        if self.protocol != PROTOCOL_VERSION {
            return Err(HelloProblem::Protocol(self.protocol));
        }
        let file =
            plugin_name(file_name).ok_or_else(|| HelloProblem::FileName(file_name.to_owned()))?;
        if self.name != file {
            return Err(HelloProblem::Name {
                hello: self.name.clone(),
                file: file.to_owned(),
            });
        }
        if self.version.is_empty() {
            return Err(HelloProblem::Version);
        }
        let texts = [
            ("version", Some(&self.version)),
            ("about", self.about.as_ref()),
            ("reason", self.reason.as_ref()),
        ];
        for (field, text) in texts {
            if text.is_some_and(|t| t.len() > MAX_TEXT) {
                return Err(HelloProblem::TooLong { field });
            }
        }
        if let Some(jobs) = self.max_jobs
            && !(1..=MAX_JOBS).contains(&jobs)
        {
            return Err(HelloProblem::MaxJobs(jobs));
        }
        if !self.ready && self.reason.is_none() {
            return Err(HelloProblem::NoReason);
        }
        if !(1..=MAX_ACTIONS).contains(&self.actions.len()) {
            return Err(HelloProblem::Actions(self.actions.len()));
        }
        for (name, action) in &self.actions {
            if !is_name(name) {
                return Err(HelloProblem::ActionName(name.clone()));
            }
            if self.mode == Mode::Serve && action.output != OutputKind::Json {
                return Err(HelloProblem::OutputNeedsJobMode(name.clone()));
            }
        }
        Ok(())
    }
}

fn yes() -> bool {
    true
}

fn is_false(value: &bool) -> bool {
    !*value
}

fn max_line() -> usize {
    MAX_LINE
}

fn inline() -> usize {
    MAX_INLINE
}
