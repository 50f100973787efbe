//! What the engine says to the plugin host, and what it hears from it: plain data.
//!
//! Owns these types and nothing else. Both directions are bounded channels, and neither side may
//! stop reading while it waits for room: whoever writes does so inside of the same `select!` in which
//! it reads.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use receptor_proto::lsa::Capability;
use receptor_proto::packet::{Content, Eof};
use receptor_proto::plugin::{CancelReason, Mode, PluginHello};
use receptor_proto::{Directive, MessageId, NodeId};
use receptor_spool::Sums;
use serde::Serialize;
use tokio::sync::oneshot;

use super::config::HostConfig;

/// Results of one work that the host sends before any of them is [`Command::Taken`].
pub const WINDOW_RESULTS: usize = 64;
/// Bytes of such results that are held in memory; the last one may exceed it.
pub const WINDOW_BYTES: usize = 512 * 1024;
/// Works of one plugin that wait at the host for a place. The engine keeps the others, in order.
pub const MAX_WAITING: usize = 100;

/// From the engine to the host.
#[derive(Debug)]
pub enum Command {
    /// Run this work when there is room for it; at most [`MAX_WAITING`] of a plugin may wait. Ends with
    /// [`Report::Done`], always, unless the host shuts down: then with [`Report::Left`], or, when no
    /// process has it yet, without a word.
    Run(Box<Job>),
    /// The start of the work is safe on the disk: hand it over. Follows [`Report::Started`], or
    /// [`Command::Run`] of a job that was admitted.
    Start {
        /// Which.
        work: MessageId,
    },
    /// End a work, started or not. It still ends with [`Report::Done`].
    Cancel {
        /// Which.
        work: MessageId,
        /// Why.
        reason: CancelReason,
    },
    /// The oldest results of a work that were not confirmed yet have found their place, so that it
    /// may send as many more.
    Taken {
        /// Which.
        work: MessageId,
        /// How many of its results.
        results: usize,
    },
    /// Of a work that was [`Report::Kept`]: what of it has found a place that outlives this daemon.
    Safe {
        /// Which.
        work: MessageId,
        /// So many of its results.
        results: u64,
        /// Its end as well: nothing of its process is wanted any more.
        end: bool,
    },
    /// Go on with a work whose process an earlier daemon has left. Ends as if it had been run here.
    GoOn {
        /// The work, as it was dispatched.
        job: Box<Job>,
        /// So many of the results that come first are the engine's already.
        repeats: u64,
    },
    /// Nobody knows the other works whose processes were left. Those that go on begin now.
    EndOthers,
    /// The configuration has changed. Everything is looked at again.
    SetConfig(Box<HostConfig>),
    /// Look at all plugins again.
    Rescan,
    /// Forget the crashes of a plugin, let its idle process go, and look at it again.
    RestartPlugin {
        /// Its name.
        name: String,
        /// Whether there is such a plugin.
        reply: oneshot::Sender<bool>,
    },
    /// Tell what is installed.
    List {
        /// Where to.
        reply: oneshot::Sender<Vec<PluginInfo>>,
    },
    /// Start nothing more. Running works may go on for `grace` and are then ended, with
    /// [`Report::Left`] when they may run again; what waits is forgotten without a report. The host
    /// ends when nothing is left.
    Shutdown {
        /// For how long.
        grace: Duration,
    },
}

/// A work for a plugin.
#[derive(Debug, Clone)]
pub struct Job {
    /// Its name; also the job's id.
    pub work: MessageId,
    /// Who asks.
    pub sender: NodeId,
    /// What for.
    pub directive: Directive,
    /// What the payload is. With [`Content::Bundle`] the job stands for several, and ends with the last
    /// of them; what they say is nobody's.
    pub content: Content,
    /// The payload.
    pub payload: JobPayload,
    /// 1, or more when an idempotent work is run again.
    pub attempt: u32,
    /// [`super::Admission::try_admit`] has given it a place already, and no [`Report::Started`] is
    /// wanted.
    pub admitted: bool,
    /// With `admitted`: hand it over at once. No [`Command::Start`] follows.
    pub start: bool,
    /// It is dispatched again after a restart, so that the next daemon may go on with it.
    pub outlives: bool,
}

/// The payload of a work.
#[derive(Debug, Clone)]
pub enum JobPayload {
    /// In memory.
    Inline(Bytes),
    /// In a file that stays until the work is done. The plugin gets a copy.
    File {
        /// Where.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// What it was when it came, if that is known.
        sha256: Option<[u8; 32]>,
    },
}

/// From the host to the engine.
#[derive(Debug)]
pub enum Report {
    /// There is a plugin, an action and a place for the work, and its process is being prepared. It
    /// is handed over at [`Command::Start`].
    Started {
        /// Which.
        work: MessageId,
        /// Whether the plugin says that it may be run again after it was cut short.
        idempotent: bool,
    },
    /// A result, in order. To be confirmed with [`Command::Taken`].
    Data {
        /// Of which work.
        work: MessageId,
        /// What it is.
        content: Content,
        /// What a person would call it; at most
        /// [`receptor_proto::packet::RESULT_NAME_MAX`] bytes.
        name: Option<String>,
        /// The result.
        payload: ReportPayload,
    },
    /// The process of this work outlives this daemon, and is held until its end is [`Command::Safe`]. Comes before
    /// all of its results.
    Kept {
        /// Which.
        work: MessageId,
    },
    /// A place has become free although no work has ended.
    Room,
    /// This bundle is for a plugin that has one process for each work: it comes back with its place
    /// given back, to be taken apart.
    Returned(Box<Job>),
    /// What a work is doing. The latest wins; at most
    /// [`receptor_proto::plugin::MAX_STATUS_PER_SECOND`] come in a second.
    Status {
        /// Which.
        work: MessageId,
        /// One word.
        state: Option<String>,
        /// One line for people.
        message: Option<String>,
        /// Steps done, and steps in all.
        progress: Option<(u64, u64)>,
    },
    /// The work has ended. The last of it.
    Done {
        /// Which.
        work: MessageId,
        /// How.
        eof: Eof,
        /// What the payload is.
        content: Content,
        /// The plugin's last word; empty with [`Content::None`].
        payload: ReportPayload,
    },
    /// The host shuts down, and the work may run again at the next start: it was not started, or its
    /// plugin says that it may be repeated. The last of it; it has not ended.
    Left {
        /// Which.
        work: MessageId,
    },
    /// What this node can do now. Comes when it has changed, and once at the start.
    Capabilities(Vec<Capability>),
}

/// The payload of a report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReportPayload {
    /// At most [`receptor_proto::packet::SEGMENT_MAX`] bytes.
    Inline(Bytes),
    /// A file that is larger and belongs to the receiver from here on. What the receiver leaves where
    /// it is goes at the next start.
    File {
        /// Where. On the file system of the data directory.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// Its checksums.
        sums: Sums,
    },
}

/// An installed plugin, or what stands in its place.
#[derive(Debug, Clone, Serialize)]
pub struct PluginInfo {
    /// Its name.
    pub name: String,
    /// The executable, or the link that masks it.
    pub path: PathBuf,
    /// Whether it gets works.
    pub ready: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// It is masked by a link to `/dev/null`.
    pub masked: bool,
    /// What it said when it was last described.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hello: Option<PluginHello>,
    /// How its processes relate to its works, once it has said so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// Works that run.
    pub running: usize,
    /// Works that wait.
    pub waiting: usize,
}
