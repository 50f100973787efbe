//! What the daemon is told to do.
//!
//! Owns the types that the rest of the daemon reads. Plain data: every value is checked and
//! every default filled in by `read`, nothing here opens, binds or looks up anything, and
//! nobody below `main` needs to know where a value came from.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use receptor_identity::Fingerprint;
use receptor_proto::NodeId;
use serde_json::{Map, Value as Json};

use super::environment::Environment;
use super::fragment::Table;
use super::level::LogLevel;
use super::read::read;
use super::section::Report;
use super::url::LinkUrl;
use crate::policy::Rules;

/// Where the service manager listens for those who want a plugin in a unit of its own.
pub const WORKER_SOCKETS: &str = "/run";

/// Where plugins are looked for after the configured directories, in this order. The last
/// one is set at build for distributions that use libexec.
pub const STANDARD_PLUGIN_DIRS: [&str; 3] = [
    "/etc/receptor/plugins",
    "/usr/local/lib/receptor/plugins",
    match option_env!("RECEPTOR_PLUGIN_DIR") {
        Some(directory) => directory,
        None => "/usr/lib/receptor/plugins",
    },
];

/// The group that the packages make for those who may command the daemon.
pub const CONTROL_GROUP: &str = "receptor";

/// Where a TLS file with a bare name is looked for after `$CREDENTIALS_DIRECTORY`.
pub const TLS_DIR: &str = "/etc/receptor/tls";

/// The whole configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The name of this node, when one is configured; else one is made up and kept in the
    /// data directory (see [`crate::data_dir::DataDir::node_id`]).
    pub node_id: Option<NodeId>,
    /// Where messages and state are kept, absolute.
    pub data_dir: PathBuf,
    /// Forwards for others; a node that does not is a leaf.
    pub router: bool,
    /// Where links are accepted.
    pub listen: Vec<Listen>,
    /// Where links are made to.
    pub peer: Vec<Peer>,
    /// Certificates; always there when a listener or peer uses TLS.
    pub tls: Option<Tls>,
    /// What certificates are used for beside links.
    pub security: Security,
    /// Links of either direction.
    pub link: Link,
    /// Routing.
    pub routing: Routing,
    /// The control socket.
    pub control: Control,
    /// Free metadata advertised with this node.
    pub capabilities: BTreeMap<String, String>,
    /// Plugins and the work they do.
    pub plugins: Plugins,
    /// Who may do what here.
    pub rules: Arc<Rules>,
    /// The store of messages.
    pub spool: Spool,
    /// Logging.
    pub log: Log,
    /// Stopping.
    pub shutdown: Shutdown,
}

/// A place where links are accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// What to listen at; [`LinkUrl::bind`] is never `None` here.
    pub url: LinkUrl,
    /// Cost of the links accepted, 1 to [`receptor_proto::lsa::COST_MAX`].
    pub cost: u32,
    /// May be without TLS although it can be reached from other hosts.
    pub allow_plaintext: bool,
}

/// A place that a link is kept to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// What to connect to.
    pub url: LinkUrl,
    /// Cost of the link, 1 to [`receptor_proto::lsa::COST_MAX`].
    pub cost: u32,
    /// May be without TLS although it leaves this host.
    pub allow_plaintext: bool,
    /// Sent with the request of a web socket, by name. May be confidential: never printed or logged.
    pub headers: BTreeMap<String, String>,
}

/// The files of this node's identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// This node's certificate chain, PEM.
    pub certificate: TlsFile,
    /// Its private key, PEM.
    pub key: TlsFile,
    /// The certificates that vouch for other nodes, PEM.
    pub ca: TlsFile,
    /// Revocation lists of those who issue certificates, PEM; without it nothing is revoked.
    pub crl: Option<TlsFile>,
    /// The only certificates that are believed; empty means all that `ca` vouches for.
    pub pinned: Vec<Fingerprint>,
}

/// A file of keys or certificates: only its place, never its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFile {
    /// As it was configured: an absolute path or a bare name.
    pub name: String,
    /// Where it is: the name itself when absolute, else below `$CREDENTIALS_DIRECTORY`
    /// when it is there, else below [`TLS_DIR`], or `tls` in `$CONFIGURATION_DIRECTORY`.
    pub path: PathBuf,
}

/// Links of either direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Silence after which a neighbor counts as gone.
    pub hold_time: Duration,
    /// First pause before a failed link is tried again; it doubles up to `reconnect_max`. A lost
    /// link is tried at once.
    pub reconnect_min: Duration,
    /// Longest pause between attempts, but for the first minute, when it is about a second.
    pub reconnect_max: Duration,
    /// Time for an attempt to connect.
    pub connect_timeout: Duration,
    /// Links at once, both directions.
    pub max_links: u32,
    /// Links open at once that come from one address; at most `max_links`.
    pub max_links_per_source: u32,
}

/// Routing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Routing {
    /// Nodes a message may pass through.
    pub hop_limit: u8,
    /// How long the state of an unreachable node is remembered.
    pub dead_node_retention: Duration,
}

/// The control socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Control {
    /// Whether it is served.
    pub enabled: bool,
    /// Its path, absolute, also when it is not served.
    pub socket_path: PathBuf,
    /// The group it belongs to, by name or number; `None` is [`CONTROL_GROUP`] when the system
    /// has it and the daemon may give it, else the daemon's own.
    pub group: Option<String>,
    /// Its file mode.
    pub mode: u32,
    /// Clients connected at once.
    pub max_clients: u32,
    /// Clients connected at once with one user id; at most `max_clients`.
    pub max_clients_per_user: u32,
}

/// Plugins and the work they do.
#[derive(Clone, Debug, PartialEq)]
pub struct Plugins {
    /// Configured directories; see [`Plugins::search_path`].
    pub dirs: Vec<PathBuf>,
    /// Works running at once on this node, those of a serving plugin as one; what exceeds it waits.
    pub max_works: u32,
    /// Time for a plugin to say hello.
    pub hello_timeout: Duration,
    /// Time for a plugin to end a cancelled work by itself.
    pub cancel_grace: Duration,
    /// Run plugins that others may write to. For development only.
    pub allow_unsafe: bool,
    /// Where the service manager listens to run plugins in units of their own.
    pub worker_sockets: PathBuf,
    /// Settings of single plugins, by name.
    pub plugin: BTreeMap<String, Plugin>,
}

impl Plugins {
    /// Where plugins are looked for; the first of a name wins.
    pub fn search_path(&self) -> impl Iterator<Item = &Path> {
        self.dirs
            .iter()
            .map(PathBuf::as_path)
            .chain(STANDARD_PLUGIN_DIRS.map(Path::new))
    }
}

/// The table of one plugin. The daemon acts on the keys that have a field here; the plugin
/// gets the whole table.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plugin {
    /// Longest run of one work, in place of what the plugin says of its action.
    pub timeout: Option<Duration>,
    /// Longest silence of one work, in place of what the plugin says of its action.
    pub idle_timeout: Option<Duration>,
    /// Works of this plugin running at once, in place of what the plugin says.
    pub max_works: Option<u32>,
    /// Bytes that the results of one work may have in all.
    pub max_results: Option<u64>,
    /// Bytes of address space of each process.
    pub max_memory: Option<u64>,
    /// Bytes of each file that a process writes.
    pub max_file_size: Option<u64>,
    /// Open descriptors of each process.
    pub max_open_files: Option<u64>,
    /// Processes that the daemon's user may have in all, when a process of this plugin starts one.
    pub max_processes: Option<u64>,
    /// Let it gain privileges through set-user-id programs such as sudo.
    pub new_privileges: bool,
    /// The table as JSON, for the daemon's hello. At most 32 KiB when written out.
    pub config: Map<String, Json>,
}

/// The store of messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spool {
    /// Bytes kept at most, payloads and bookkeeping.
    pub max_bytes: u64,
    /// Messages kept at most.
    pub max_entries: u64,
    /// Bytes of messages to one node at most.
    pub max_bytes_per_recipient: u64,
    /// Messages to one node at most.
    pub max_entries_per_recipient: u64,
    /// How long a message is kept when its sender does not say.
    pub default_expiry: Duration,
    /// How long the responses of a work that has ended are kept for whoever asks.
    pub results_retention: Duration,
    /// Bytes of them at most.
    pub results_max_bytes: u64,
    /// Works with such responses at most.
    pub results_max_entries: u64,
    /// How long a message that was given up is kept.
    pub dead_letter_retention: Duration,
}

/// Logging.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Log {
    /// What is logged.
    pub level: LogLevel,
}

/// What certificates are used for beside links.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Security {
    /// Payloads and responses can be read by their recipient alone. Otherwise nodes on the way can read them too,
    /// and still not change them.
    pub seal: bool,
}

/// Stopping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shutdown {
    /// Time for what is in flight to finish before the daemon stops anyway.
    pub drain_timeout: Duration,
}

impl Settings {
    /// What is in force without any file, flag or variable.
    #[must_use]
    pub fn builtin() -> Self {
        read(
            Table::new(),
            &Environment::default(),
            &mut Report::default(),
        )
    }

    /// This configuration as far as it can be put in force in a daemon that runs with
    /// another one: what only a restart can change is as it was.
    #[must_use]
    pub fn keeping_what_needs_a_restart(self, running: &Self) -> Self {
        Self {
            node_id: running.node_id.clone(),
            data_dir: running.data_dir.clone(),
            router: running.router,
            link: Link {
                hold_time: running.link.hold_time,
                ..self.link
            },
            routing: running.routing.clone(),
            spool: Spool {
                default_expiry: self.spool.default_expiry,
                results_retention: self.spool.results_retention,
                results_max_bytes: self.spool.results_max_bytes,
                results_max_entries: self.spool.results_max_entries,
                dead_letter_retention: self.spool.dead_letter_retention,
                ..running.spool.clone()
            },
            control: Control {
                max_clients: self.control.max_clients,
                max_clients_per_user: self.control.max_clients_per_user,
                ..running.control.clone()
            },
            ..self
        }
    }
}
