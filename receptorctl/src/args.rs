//! The command line: every command, option and help text.
//!
//! Owns what may be written and how it is checked before anything is done. The texts are an interface
//! for people; the names of commands and options are one for scripts and only ever grow.

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{OsStringValueParser, TypedValueParser as _};
use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use receptor_proto::{Directive, IdPrefix, NodeId};

use crate::exit::{Exit, Failure};

/// Where the packaged daemon listens.
const DEFAULT_SOCKET: &str = "/run/receptor/receptord.sock";

/// The variable that names another socket.
const SOCKET_VARIABLE: &str = "RECEPTOR_SOCKET";

const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    the work failed, or a node answered no
  2    the command line is wrong
  69   the daemon cannot be reached or does not answer
  70   internal error
  75   timed out; the message is still accepted, and its id is printed
  77   not permitted
  78   the configuration is wrong
  130  ended by Ctrl-C";

/// Look at a Receptor mesh and send work through it.
///
/// Talks to the receptord of this host. The answer goes to stdout, everything for people to stderr.
#[derive(Debug, Parser)]
#[command(
    name = "receptorctl",
    version,
    max_term_width = 100,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "Examples:
  receptorctl status
  receptorctl ping node-b
  receptorctl send --directive runner:execute --recipient node-b '{\"module\": \"ping\"}'",
    after_long_help = format!("Examples:
  receptorctl status
  receptorctl ping node-b
  receptorctl send --directive runner:execute --recipient node-b '{{\"module\": \"ping\"}}'

{EXIT_CODES}")
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command, before or after its name.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// Control socket of receptord
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        env = SOCKET_VARIABLE,
        hide_env_values = true,
        default_value = DEFAULT_SOCKET,
        value_parser = OsStringValueParser::new().map(PathBuf::from)
    )]
    pub(crate) socket_path: PathBuf,

    /// Answer in JSON, one value a line; keys are only ever added
    #[arg(long, global = true)]
    pub(crate) json: bool,

    /// Give up after this long: seconds, or 500ms, 2m, 1h30m
    #[arg(long, global = true, value_name = "DUR", value_parser = duration)]
    pub(crate) timeout: Option<Duration>,
}

impl Global {
    /// Takes an empty variable for one that is not set, as the daemon does with its own.
    ///
    /// # Errors
    ///
    /// When it is the option that is empty: most often a variable of a script, and the default may be another daemon.
    pub(crate) fn without_empty(mut self) -> Result<Self, Failure> {
        if self.socket_path.as_os_str().is_empty() {
            if std::env::var_os(SOCKET_VARIABLE).is_none_or(|value| !value.is_empty()) {
                return Err(Failure::new(Exit::Usage, "--socket-path is empty"));
            }
            self.socket_path = DEFAULT_SOCKET.into();
        }
        Ok(self)
    }

    /// The daemon that is meant is the packaged one.
    pub(crate) fn is_default_socket(&self) -> bool {
        self.socket_path.as_os_str() == DEFAULT_SOCKET
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Ping(Ping),
    Send(Box<Send>),
    /// Show this node at one look
    Status,
    /// List all nodes that are known
    ///
    /// A node without a way to it is marked unreachable; a message for it waits until there is one.
    Nodes,
    /// List where messages for each node go next
    Routes,
    /// List the links of this node, with their traffic
    Links,
    /// List what each node can do
    ///
    /// Shows the plugins and actions of all known nodes, and their metadata, for send --any --where.
    Capabilities,
    Traceroute(Traceroute),
    /// Look after work
    #[command(subcommand)]
    Work(Work),
    /// Look after messages that wait here
    #[command(subcommand)]
    Spool(Spool),
    /// Look after messages that were given up
    #[command(subcommand)]
    DeadLetter(DeadLetter),
    /// Look after plugins
    #[command(subcommand)]
    Plugin(Plugin),
    /// Make and read the certificates of a TLS mesh
    #[command(subcommand)]
    Cert(Cert),
    /// Look after the configuration
    #[command(subcommand)]
    Config(Config),
    /// Ask what the rules permit
    #[command(subcommand)]
    Policy(Policy),
    /// Have receptord read its configuration again
    ///
    /// Says what is in force now and what needs a restart. A wrong configuration changes nothing, and is
    /// told line by line with exit code 78.
    Reload,
    LogLevel(LogLevel),
    Completions(Completions),
    /// Write the manual pages and the completions to files below a directory; for packaging
    #[command(hide = true)]
    Pages {
        /// The directory
        #[arg(value_name = "DIR")]
        dir: PathBuf,
    },
}

/// Ask a node for a sign of life.
///
/// Prints the round-trip time, the links on the way and how many works the node has. One echo is sent
/// unless --count says otherwise. Exits 0 when at least one echo came back, or 1 with the reason.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  receptorctl ping node-b
  receptorctl ping node-b --count 5 --interval 0.2
  until receptorctl ping node-b --timeout 2; do sleep 1; done")]
pub(crate) struct Ping {
    /// The node
    #[arg(value_name = "NODE")]
    pub(crate) node: NodeId,

    /// How many echoes to send
    #[arg(long, short = 'c', value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: u64,

    /// Time between two echoes: seconds, or 500ms, 2m
    #[arg(long, short = 'i', value_name = "S", default_value = "1", value_parser = duration)]
    pub(crate) interval: Duration,
}

/// Send work to a node and print its responses as they come.
///
/// Once receptord has accepted the message it keeps it on disk until the recipient has it, and it is run at most once,
/// however often links fail, nodes restart or lose power meanwhile. JSON and text responses take one line each on
/// stdout, bytes are written as they are. The exit code is 0 when the work went well, and 1 when it failed.
///
/// Ctrl-C cancels the work and waits for its end; a second one leaves at once. A reader of stdout who goes away, or a
/// closed terminal, leaves the work running.
///
/// With --json every line of the daemon's answer is printed as it came. A payload of bytes, and any too large for
/// a line, is added to its line in base64.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("destination").required(true), after_help = "Examples:
  receptorctl send --directive runner:execute --recipient node-b '{\"module\": \"ping\"}'
  receptorctl send --directive runner:execute --recipient node-b @playbook.json
  tar c site | receptorctl send --directive deploy:unpack --any --where site=berlin -
  id=$(receptorctl send --detach --expires 7d --directive backup:run --recipient edge-17)
  receptorctl send --id nightly-2026-11-22 --directive backup:run --recipient edge-17")]
pub(crate) struct Send {
    /// What to run: PLUGIN:ACTION
    #[arg(long, value_name = "P:A")]
    pub(crate) directive: Directive,

    /// Run it on this node
    #[arg(long, value_name = "NODE", group = "destination")]
    pub(crate) recipient: Option<NodeId>,

    /// Run it on the nearest node that can
    #[arg(long, group = "destination")]
    pub(crate) any: bool,

    /// With --any: only nodes with this metadata; may be repeated
    #[arg(long = "where", value_name = "KEY=VALUE", value_parser = key_value)]
    pub(crate) metadata: Vec<(String, String)>,

    /// What to hand to the plugin: JSON, or else text; @FILE for a file's contents, - for stdin until its end
    #[arg(value_name = "PAYLOAD", allow_negative_numbers = true)]
    pub(crate) payload: Option<OsString>,

    /// Deliver at most once and never write to a disk: fast, and lost when a node on the way fails
    #[arg(long)]
    pub(crate) volatile: bool,

    /// Take the message also for a node that nobody has heard of yet, and keep it until it comes
    #[arg(long, conflicts_with = "any")]
    pub(crate) wait: bool,

    /// How long the message is worth delivering, such as 90s, 12h, 7d; receptord has a default
    #[arg(long, value_name = "DUR", value_parser = duration)]
    pub(crate) expires: Option<Duration>,

    /// Print the id and return once the message is accepted; the responses wait at receptord, see work results
    #[arg(long, conflicts_with = "volatile")]
    pub(crate) detach: bool,

    /// Send only once however often this is run: the same KEY is the same message, whose responses come again
    /// from the start. With another directive, recipient or payload it is refused
    #[arg(long, value_name = "KEY", conflicts_with = "volatile")]
    pub(crate) id: Option<String>,
}

/// Show each node on the way to a node, with its time.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  receptorctl traceroute node-b")]
pub(crate) struct Traceroute {
    /// The node
    #[arg(value_name = "NODE")]
    pub(crate) node: NodeId,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Work {
    /// List works: those sent from here, and those that run here
    ///
    /// Works that have ended are listed for a time, which [spool] results-retention sets.
    List,
    /// Show all that is known of a work
    Show {
        #[command(flatten)]
        work: WorkId,
    },
    /// Print the responses of a work that was sent from here, from the first
    ///
    /// As send prints them, and as often as asked, also while others read or the work runs. They are kept until the
    /// client that sent the work has had all of them; when it went away or detached, until work release, or as long as
    /// [spool] results-retention says. Exits by the work's code like send; 75 when the work has not ended.
    Results {
        #[command(flatten)]
        work: WorkId,

        /// Wait for what is yet to come, until the work ends
        #[arg(long, short = 'f')]
        follow: bool,
    },
    /// End a work that was sent from here or runs here, wherever it is
    ///
    /// Returns once the request is on its way. The work ends with its own last response, which says that it
    /// was cancelled, or that it was faster.
    Cancel {
        #[command(flatten)]
        work: WorkId,
    },
    /// Forget the responses of a work that was sent from here, and all that may come
    ///
    /// The work itself goes on.
    Release {
        #[command(flatten)]
        work: WorkId,
    },
}

#[derive(Debug, Args)]
pub(crate) struct WorkId {
    /// The id that send printed, or the beginning of it
    #[arg(value_name = "ID")]
    pub(crate) id: IdPrefix,
}

/// Where to look when receptord does not run.
#[derive(Debug, Args)]
pub(crate) struct Stopped {
    /// Read the data directory of a receptord that does not run
    ///
    /// Changes nothing, and is refused while a receptord runs with it. Without this option, and without another
    /// socket, /var/lib/receptor is read when no receptord answers.
    #[arg(long, short = 'd', value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Spool {
    /// List the messages that wait here: for whom, since when, and why
    List {
        #[command(flatten)]
        stopped: Stopped,
    },
    /// Show the messages of one work that wait here
    Show {
        #[command(flatten)]
        work: WorkId,
        #[command(flatten)]
        stopped: Stopped,
    },
    /// Give up what waits here of a work
    ///
    /// A request that was not sent yet is never run, and its work ends as cancelled. Responses of a work that was
    /// done here are dropped, and its sender is told so if it comes back. That takes a receptord that runs.
    Drop {
        #[command(flatten)]
        work: WorkId,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum DeadLetter {
    /// List the messages that were given up, and why
    List {
        #[command(flatten)]
        stopped: Stopped,
    },
    /// Send such a message again, as a new one
    ///
    /// Prints the new id. The responses wait at receptord, as with send --detach.
    Retry {
        #[command(flatten)]
        work: WorkId,

        /// How long the new message is worth delivering, such as 90s, 12h, 7d; receptord has a default
        #[arg(long, value_name = "DUR", value_parser = duration)]
        expires: Option<Duration>,
    },
    /// Forget such a message
    Drop {
        #[command(flatten)]
        work: WorkId,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Plugin {
    /// List the plugins installed on this node, and why one is not ready
    List,
    Describe(PluginDescribe),
    Check(PluginCheck),
    Run(PluginRun),
    New(PluginNew),
    /// Look at a plugin anew and forget its crashes
    Restart {
        /// The plugin's name
        #[arg(value_name = "NAME")]
        name: String,
    },
}

/// Check whether an executable keeps the plugin protocol.
///
/// Runs it as receptord would, in a temporary job directory, and tells for each check what was seen, and how to mend what is
/// wrong. Only actions whose hello has an "example", or that --action names, are run. No receptord is needed; nothing is left running
/// and no files are left behind.
///
/// Here --timeout is how long one job may take, 60 seconds unless given; it also shortens the times that the protocol gives a plugin. Exits 0 when nothing failed, 1 when something did, 2 when the
/// checks could not be run.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  receptorctl plugin check ./wordcount.py
  receptorctl plugin check ./uptime --action execute
  receptorctl plugin check ./deploy --action unpack --payload site.tar --strict")]
pub(crate) struct PluginCheck {
    /// The executable
    #[arg(value_name = "PATH")]
    pub(crate) path: PathBuf,

    /// Run only this action
    #[arg(long, value_name = "A")]
    pub(crate) action: Option<String>,

    /// With --action: its payload, in place of the example
    #[arg(long, value_name = "FILE", requires = "action")]
    pub(crate) payload: Option<PathBuf>,

    /// Run only this group of those that need jobs; may be repeated
    #[arg(long, value_enum, value_name = "GROUP")]
    pub(crate) only: Vec<CheckGroup>,

    /// Fail also for what could not be checked, and for owners and modes that receptord refuses in a plugins directory
    #[arg(long)]
    pub(crate) strict: bool,
}

/// Show what a plugin can do: its actions, what they take and give.
///
/// A name is looked up at receptord, which knows where the plugin is and whether it is ready; a path needs no receptord. The
/// details come from the plugin itself, which is started, says its hello and ends.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  receptorctl plugin describe runner
  receptorctl plugin describe ./wordcount.py")]
pub(crate) struct PluginDescribe {
    /// The plugin's name, or the path of an executable, with a /
    #[arg(value_name = "NAME")]
    pub(crate) name: OsString,
}

/// Run one job of a plugin here, without receptord.
///
/// Starts the executable as receptord would, in a temporary job directory, and hands it the payload. Results go to stdout as with
/// send; status, log and the end of its stderr to stderr. With --json every message of the plugin is printed as it came. Ends
/// everything that the plugin started, also at Ctrl-C.
///
/// Here --timeout is how long the job may take. Exits 0 when the job went well, 1 when it failed, 2 when it could not be started.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  receptorctl plugin run ./wordcount.py execute '{\"texts\": [\"two words\"]}'
  receptorctl plugin run ./deploy unpack @site.tar --timeout 30")]
pub(crate) struct PluginRun {
    /// The executable
    #[arg(value_name = "PATH")]
    pub(crate) path: PathBuf,

    /// The action
    #[arg(value_name = "ACTION")]
    pub(crate) action: String,

    /// What to hand to it: JSON, or else text; @FILE for a file's contents, - for stdin until its end
    #[arg(value_name = "PAYLOAD", allow_negative_numbers = true)]
    pub(crate) payload: Option<OsString>,
}

/// Write a small plugin to start from.
///
/// Makes NAME (sh), NAME.py (python) or the directory NAME with a Cargo package (rust) in the current directory. What is there
/// already is never touched. The plugin works as it is, and passes plugin check.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  receptorctl plugin new inventory --lang python
  receptorctl plugin check ./inventory.py")]
pub(crate) struct PluginNew {
    /// The plugin's name: a-z, then up to 63 of a-z 0-9 _ -
    #[arg(value_name = "NAME")]
    pub(crate) name: String,

    /// The language to write it in
    #[arg(long, value_enum, value_name = "LANG")]
    pub(crate) lang: Language,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Language {
    Sh,
    Python,
    Rust,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CheckGroup {
    Messages,
    Payload,
    Stopping,
    Pressure,
    Serve,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Cert {
    InitCa(CertInitCa),
    Issue(CertIssue),
    /// Show what stands in a certificate file
    ///
    /// For each certificate in it: for which nodes it is, who made it, until when, its fingerprint. Nothing of a
    /// private key is shown.
    #[command(after_help = "Examples:
  receptorctl cert show node-b.pem
  receptorctl cert show /etc/receptor/tls/ca.pem --json")]
    Show {
        /// The file, in PEM or DER
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

/// Make a certificate authority.
///
/// Writes ca.pem, which every node of the mesh needs, and ca.key, which only cert issue needs: whoever has it can be any
/// node. Keep it off the nodes.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  receptorctl cert init-ca --out ca
  receptorctl cert issue node-b --ca ca --out node-b")]
pub(crate) struct CertInitCa {
    /// The directory for ca.pem and ca.key; made when it is not there
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,

    /// What the authority is called in certificates
    #[arg(long, value_name = "NAME", default_value = "Receptor CA", value_parser = common_name)]
    pub(crate) name: String,

    /// Until when it may be used; a mesh needs another one by then
    #[arg(long, value_name = "N", default_value_t = 3650, value_parser = clap::value_parser!(u32).range(1..=36500))]
    pub(crate) days: u32,

    /// Overwrite files that are there: nodes with certificates of the old authority are then strangers
    #[arg(long)]
    pub(crate) force: bool,
}

/// Make the certificate and key of a node.
///
/// Writes NODE.pem and NODE.key, which belong on that node alone, with the ca.pem of the authority, as certificate, key and ca
/// under [tls] in its configuration. The node can then use NODE as its id, and no other.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  receptorctl cert issue node-b --ca ca --out node-b
  receptorctl cert issue relay --ca ca --out relay --days 90 --dns relay.example.com --ip 192.0.2.7
  receptorctl cert issue node-b --ca ca --out node-b --force     (renews it)")]
pub(crate) struct CertIssue {
    /// The node's id
    #[arg(value_name = "NODE")]
    pub(crate) node: NodeId,

    /// The directory with ca.pem and ca.key
    #[arg(long, value_name = "DIR")]
    pub(crate) ca: PathBuf,

    /// The directory for NODE.pem and NODE.key; made when it is not there
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,

    /// Until when it may be used; no longer than the authority
    #[arg(long, value_name = "N", default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=36500))]
    pub(crate) days: u32,

    /// A host name of the node; may be repeated. Nodes do not look at it, other programs may
    #[arg(long, value_name = "NAME", value_parser = host_name)]
    pub(crate) dns: Vec<String>,

    /// An address of the node; may be repeated
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) ip: Vec<IpAddr>,

    /// Overwrite files that are there
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Config {
    /// Check the configuration without touching the running daemon
    ///
    /// Runs receptord --check-config: the receptord beside this program, or else the one in PATH. Its output and exit
    /// code are passed through: 0 good, 78 wrong.
    #[command(after_help = "Examples:
  receptorctl config check
  receptorctl config check ./receptord.toml")]
    Check {
        /// The main configuration file, in place of /etc/receptor/receptord.toml
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Policy {
    Test(PolicyTest),
}

/// Say what the rules of this node permit, and which of them decides.
///
/// Asks the running receptord, or with --config the configuration in a file. With --from and --directive: whether that node
/// may use that directive here. With --from and --to another node: whether this node forwards between the two. Exits 0 when
/// it is permitted, and 1 when it is not, or when the user may do nothing.
#[derive(Debug, Args)]
#[command(
    group = ArgGroup::new("who").required(true),
    group = ArgGroup::new("what").args(["directive", "to"]).multiple(true),
    after_help = "Examples:
  receptorctl policy test --from controller-1 --directive runner:execute
  receptorctl policy test --from controller-1 --to edge-7
  receptorctl policy test --link edge-7
  receptorctl policy test --user alice
  receptorctl policy test --config ./receptord.toml --from edge-7 --directive shell:run"
)]
pub(crate) struct PolicyTest {
    /// The node that asks for something
    #[arg(long, value_name = "NODE", group = "who", requires = "what")]
    pub(crate) from: Option<NodeId>,

    /// What it asks for: PLUGIN:ACTION
    #[arg(long, value_name = "P:A", conflicts_with_all = ["link", "user"])]
    pub(crate) directive: Option<Directive>,

    /// Whom it asks; this node if not given
    #[arg(long, value_name = "NODE", conflicts_with_all = ["link", "user"])]
    pub(crate) to: Option<NodeId>,

    /// The node that would be a neighbor
    #[arg(long, value_name = "NODE", group = "who")]
    pub(crate) link: Option<NodeId>,

    /// The user of the control socket, by name or number
    #[arg(long, value_name = "USER", group = "who")]
    pub(crate) user: Option<String>,

    /// Ask this configuration file, and the drop-ins beside it, in place of the running receptord
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

/// Show or set how much receptord logs.
///
/// A level that is set holds until receptord is started again.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  receptorctl log-level
  receptorctl log-level debug
  receptorctl log-level info,receptord::link=debug")]
pub(crate) struct LogLevel {
    /// error, warn, info, debug, trace, or directives such as info,receptord::link=debug; without one it is only shown
    #[arg(value_name = "LEVEL")]
    pub(crate) level: Option<String>,
}

/// Print completions for a shell.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  receptorctl completions bash > /etc/bash_completion.d/receptorctl
  receptorctl completions zsh > \"${fpath[1]}/_receptorctl\"
  receptorctl completions fish > ~/.config/fish/completions/receptorctl.fish")]
pub(crate) struct Completions {
    /// The shell
    #[arg(value_enum, value_name = "SHELL")]
    pub(crate) shell: Shell,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// A duration: a number of seconds, or with units.
fn duration(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).map_err(|e| e.to_string());
    }
    humantime::parse_duration(text)
        .map_err(|e| format!("{e}; expected seconds, or such as 500ms, 2m, 1h30m"))
}

/// What X.509 takes as a common name, in characters.
const COMMON_NAME_MAX: usize = 64;

fn common_name(text: &str) -> Result<String, String> {
    let length = text.chars().count();
    if (1..=COMMON_NAME_MAX).contains(&length) && !text.contains(char::is_control) {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "expected 1 to {COMMON_NAME_MAX} characters, none of them a control character"
        ))
    }
}

/// What DNS takes as a name, in characters.
const HOST_NAME_MAX: usize = 253;

fn host_name(text: &str) -> Result<String, String> {
    let label = |label: &str| {
        let inner = label
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        (1..=63).contains(&label.len()) && inner && !label.starts_with('-') && !label.ends_with('-')
    };
    let name = text.strip_prefix("*.").unwrap_or(text);
    if text.len() <= HOST_NAME_MAX && name.split('.').all(label) {
        Ok(text.to_owned())
    } else {
        Err("expected a host name such as relay.example.com".to_owned())
    }
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn durations() {
        assert_eq!(duration("2"), Ok(Duration::from_secs(2)));
        assert_eq!(duration("0.25"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert!(duration("-1").is_err());
        assert!(duration("NaN").is_err());
        assert!(duration("soon").is_err());
    }

    #[test]
    fn global_options_stand_on_either_side() {
        for line in [
            "receptorctl --socket-path=/tmp/x.sock ping node-b",
            "receptorctl ping --socket-path=/tmp/x.sock node-b",
            "receptorctl ping node-b --socket-path /tmp/x.sock",
        ] {
            let cli = Cli::try_parse_from(line.split(' ')).unwrap();
            assert_eq!(
                cli.global.socket_path,
                PathBuf::from("/tmp/x.sock"),
                "{line}"
            );
        }
    }
}
