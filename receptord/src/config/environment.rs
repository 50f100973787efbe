//! The part of the process environment that configures the daemon.
//!
//! Owns the list of variables that are read, and a copy of their values made once at
//! start, so that a reload sees what the start saw and tests need not touch the real
//! environment. Never writes to the environment.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;

/// A variable that sets a configuration key.
#[derive(Clone, Copy, Debug)]
pub struct Variable {
    /// Its name.
    pub name: &'static str,
    /// What it sets, for help and the manual.
    pub about: &'static str,
}

/// Every `RECEPTOR_*` variable that the daemon reads.
pub const VARIABLES: &[Variable] = &[
    Variable {
        name: "RECEPTOR_CONFIG",
        about: "main configuration file, as --config",
    },
    Variable {
        name: "RECEPTOR_NODE_ID",
        about: "node-id",
    },
    Variable {
        name: "RECEPTOR_DATA_DIR",
        about: "data-dir",
    },
    Variable {
        name: "RECEPTOR_ROUTER",
        about: "router: true or false",
    },
    Variable {
        name: "RECEPTOR_SOCKET_PATH",
        about: "control.socket-path",
    },
    Variable {
        name: "RECEPTOR_LISTEN",
        about: "listen URLs, a list",
    },
    Variable {
        name: "RECEPTOR_LISTEN_PORT",
        about: "ports to listen on at loopback, a list",
    },
    Variable {
        name: "RECEPTOR_PEER",
        about: "peer URLs, a list",
    },
    Variable {
        name: "RECEPTOR_ALLOW_PLAINTEXT",
        about: "--allow-plaintext: true or false",
    },
    Variable {
        name: "RECEPTOR_PLUGINS_DIR",
        about: "plugins.dirs, a list",
    },
    Variable {
        name: "RECEPTOR_LOG_LEVEL",
        about: "log.level",
    },
];

/// `RECEPTOR_*` variables that belong to the other programs: `receptorctl`'s socket, and
/// what a worker process finds in its environment.
const FOREIGN: &[&str] = &[
    "RECEPTOR_SOCKET",
    "RECEPTOR_NODE",
    "RECEPTOR_PLUGIN_PROTOCOL",
    "RECEPTOR_JOB_ID",
    "RECEPTOR_JOB_DIR",
    "RECEPTOR_ACTION",
    "RECEPTOR_SENDER",
    "RECEPTOR_PAYLOAD_FILE",
];

/// Variables of the service manager that move built-in defaults.
const SERVICE_MANAGER: &[&str] = &[
    "STATE_DIRECTORY",
    "RUNTIME_DIRECTORY",
    "CONFIGURATION_DIRECTORY",
    "CREDENTIALS_DIRECTORY",
];

/// Variables that name proxies, as other programs read them.
const PROXIES: &[&str] = &[
    "http_proxy",
    "https_proxy",
    "HTTPS_PROXY",
    "all_proxy",
    "ALL_PROXY",
    "no_proxy",
    "NO_PROXY",
];

/// A copy of the variables that matter. Values that are not UTF-8 are kept apart.
#[derive(Clone, Default)]
pub struct Environment {
    values: BTreeMap<String, String>,
    not_text: Vec<String>,
}

impl fmt::Debug for Environment {
    /// Without values: that of a proxy may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.values.keys()).finish()
    }
}

impl Environment {
    /// Copies the environment of this process.
    #[must_use]
    pub fn of_process() -> Self {
        Self::from_vars(std::env::vars_os())
    }

    /// Takes given variables in place of the real ones; those that do not matter are left out.
    pub fn from_vars<K, V>(vars: impl IntoIterator<Item = (K, V)>) -> Self
    where
        K: Into<OsString>,
        V: Into<OsString>,
    {
        let mut environment = Self::default();
        for (name, value) in vars {
            let Ok(name) = name.into().into_string() else {
                continue;
            };
            let known = [SERVICE_MANAGER, PROXIES].concat();
            if !name.starts_with("RECEPTOR_") && !known.contains(&name.as_str()) {
                continue;
            }
            match value.into().into_string() {
                Ok(value) => drop(environment.values.insert(name, value)),
                Err(_) => environment.not_text.push(name),
            }
        }
        environment
    }

    /// The value of a variable; an empty one counts as unset, as it does for systemd.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.values
            .get(name)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }

    /// The first directory of a colon-separated list that the service manager passed.
    pub(super) fn directory(&self, name: &str) -> Option<&str> {
        self.get(name)?
            .split(':')
            .next()
            .filter(|directory| directory.starts_with('/'))
    }

    /// Variables that begin like ours and that nobody reads: most often a typing mistake.
    pub(super) fn unknown(&self) -> impl Iterator<Item = &str> {
        self.values.keys().map(String::as_str).filter(|name| {
            name.starts_with("RECEPTOR_")
                && !FOREIGN.contains(name)
                && !VARIABLES.iter().any(|variable| variable.name == *name)
        })
    }

    /// Variables of ours whose value is not UTF-8.
    pub(super) fn not_text(&self) -> impl Iterator<Item = &str> {
        self.not_text
            .iter()
            .map(String::as_str)
            .filter(|name| VARIABLES.iter().any(|variable| variable.name == *name))
    }
}

/// The items of a list in a variable: separated by commas or white space.
pub(super) fn list(value: &str) -> impl Iterator<Item = &str> {
    value
        .split(|c: char| c == ',' || c.is_whitespace())
        .filter(|item| !item.is_empty())
}
