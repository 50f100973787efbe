//! The command line of `receptord`.
//!
//! Owns the flags, their help and the check of a single value. Never decides what a flag
//! means together with the environment and the files: that is `config`, which treats a
//! flag as the strongest of its layers.
//!
//! The role is a word and not a sub-command, so that options may stand on either side of
//! it and repeated ones add up, as in the commands of the first Receptor:
//! `receptord --node-id=a -d /tmp/a node --listen-port=8889 --peer=localhost:8888`.

use std::path::PathBuf;

use clap::{Args, Parser, ValueEnum};

use crate::config::{DEFAULT_FILE, LinkUrl, LogLevel, NodeId, VARIABLES, Variable};

/// Join this host to a Receptor mesh.
///
/// Flags win over RECEPTOR_* variables, these over the drop-in files beside the main
/// configuration file, these over the file itself, and the file over what is built in.
#[derive(Clone, Debug, Default, Parser)]
#[command(name = "receptord", version, max_term_width = 100, after_long_help = after_help())]
pub struct Cli {
    /// What this node is for; without a word, whatever its configuration says
    #[arg(value_enum)]
    pub role: Option<Role>,

    /// Main configuration file; drop-ins are read from FILE.d/*.toml
    #[arg(long, value_name = "FILE", help = format!("Main configuration file [default: {DEFAULT_FILE}]; drop-ins are read from FILE.d/*.toml"))]
    pub config: Option<PathBuf>,

    /// Name of this node in the mesh [default: one is made up and kept in the data directory]
    #[arg(long, value_name = "ID")]
    pub node_id: Option<NodeId>,

    /// Where messages and state are kept [default: $STATE_DIRECTORY or /var/lib/receptor]
    #[arg(short, long, value_name = "DIR")]
    pub data_dir: Option<String>,

    /// Socket for receptorctl and controllers [default: receptord.sock in $RUNTIME_DIRECTORY or /run/receptor]
    #[arg(long, value_name = "PATH")]
    pub socket_path: Option<String>,

    /// Listen for links at this URL, such as rnp://10.0.0.5:8888 or unix:///PATH, in place of the
    /// configured ones; may be repeated
    #[arg(long, value_name = "URL", value_parser = LinkUrl::parse_listen)]
    pub listen: Vec<LinkUrl>,

    /// Listen for links at this port on loopback, IPv4 and IPv6; may be repeated
    #[arg(long, value_name = "PORT")]
    pub listen_port: Vec<u16>,

    /// Keep a link to this URL, such as rnp://HOST:8888, HOST:8888 or unix:///PATH, in place of
    /// the configured ones; may be repeated
    #[arg(long, value_name = "URL", value_parser = LinkUrl::parse_peer)]
    pub peer: Vec<LinkUrl>,

    /// Allow links without TLS beyond this host, for --listen and --peer
    #[arg(long)]
    pub allow_plaintext: bool,

    /// Look for plugins here before the standard places, in place of the configured ones; may be repeated
    #[arg(long, value_name = "DIR")]
    pub plugins_dir: Vec<String>,

    /// How much to log: error, warn, info, debug, trace, or directives such as info,receptord::link=debug
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<LogLevel>,

    /// Encrypt links, and sign and seal nothing: what that costs is measured against this. No
    /// node of a mesh with certificates believes such a one.
    #[arg(long, hide = true)]
    pub tls_alone: bool,

    /// What to do instead of running.
    #[command(flatten)]
    pub inspect: Inspect,

    /// Write the manual page and the completions to files below DIR, and exit; for packaging.
    #[arg(long, value_name = "DIR", hide = true)]
    pub pages: Option<PathBuf>,

    /// With --check-config, --print-config or --test-policy: look for configuration files below DIR, not /
    #[arg(long, value_name = "DIR", requires = "Inspect")]
    pub root: Option<PathBuf>,
}

/// What the long help says of the environment and of exit codes.
fn after_help() -> String {
    let width = VARIABLES
        .iter()
        .map(|variable| variable.name.len())
        .max()
        .unwrap_or_default();
    let mut help = "Examples:\n  \
         receptord --node-id=controller -d /tmp/controller controller --listen-port=8888\n  \
         receptord --node-id=node-a -d /tmp/node-a node --peer=localhost:8888\n  \
         receptord --print-config\n\n\
         Environment:\n"
        .to_owned();
    for Variable { name, about } in VARIABLES {
        help.push_str(&format!("  {name:width$}  {about}\n"));
    }
    help.push_str(
        "Lists are separated by commas or spaces.\n\n\
         Exit codes:\n  \
         0   stopped as asked\n  \
         2   the command line is wrong\n  \
         69  something needed is not there\n  \
         70  a defect\n  \
         75  the data directory is in use\n  \
         77  not permitted\n  \
         78  the configuration is wrong",
    );
    help
}

/// Ways to look at the configuration without starting.
#[derive(Args, Clone, Debug, Default)]
#[group(multiple = false)]
pub struct Inspect {
    /// Check the configuration and exit: 0 when it is right, 78 when it is not
    #[arg(long)]
    pub check_config: bool,

    /// Print the configuration in force, with the origin of each value, and exit
    #[arg(long)]
    pub print_config: bool,

    /// Answer a question to the rules, as the control socket's command policy takes it, by this configuration, and exit
    #[arg(long, value_name = "JSON")]
    pub test_policy: Option<String>,
}

/// What a node is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// Serve the control socket
    Controller,
    /// Serve no control socket, unless its path is given
    Node,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_help_is_as_reviewed() {
        let help = Cli::command().term_width(100).render_long_help();
        insta::assert_snapshot!("help", help);
    }

    #[test]
    fn the_ancestors_commands() {
        let cli = parse("receptord --node-id=controller -d /tmp/controller controller --socket-path=/tmp/receptor.sock --listen-port=8888").unwrap();
        assert_eq!(cli.role, Some(Role::Controller));
        assert_eq!(cli.node_id, Some("controller".parse().unwrap()));
        assert_eq!(cli.data_dir.as_deref(), Some("/tmp/controller"));
        assert_eq!(cli.socket_path.as_deref(), Some("/tmp/receptor.sock"));
        assert_eq!(cli.listen_port, [8888]);

        let cli = parse("receptord --node-id=node-a -d /tmp/node-a node --listen-port=8889 --peer=localhost:8888").unwrap();
        assert_eq!(cli.role, Some(Role::Node));
        assert_eq!(cli.listen_port, [8889]);
        assert_eq!(cli.peer, ["rnp://localhost:8888".parse().unwrap()]);
    }

    #[test]
    fn repeated_options_on_both_sides_of_the_word_add_up() {
        let cli =
            parse("receptord --peer a:1 --listen-port 1 node --peer b:2 --listen-port 2").unwrap();
        assert_eq!(cli.peer.len(), 2);
        assert_eq!(cli.listen_port, [1, 2]);
    }

    #[test]
    fn wrong_usage_is_exit_2() {
        for line in [
            "receptord --no-such-flag",
            "receptord gateway",
            "receptord node controller",
            "receptord --node-id=.hidden",
            "receptord --peer http://host:1",
            "receptord --listen relay.example.com:8888",
            "receptord --listen-port 65536",
            "receptord --check-config --print-config",
            "receptord --root /tmp",
            "receptord --log-level loud",
        ] {
            let error = parse(line).unwrap_err();
            assert_eq!(
                error.exit_code(),
                i32::from(crate::exit::Exit::Usage.code()),
                "{line}"
            );
        }
    }
}
