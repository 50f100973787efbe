//! What the plugin host is told, and how long it waits for what.
//!
//! Owns the host's view of the configuration, and its defaults. Never reads a file; of the
//! environment only what plugins are to inherit.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::{User, geteuid};
use receptor_proto::NodeId;
use receptor_proto::plugin::{
    CANCEL_GRACE, DESCRIBE_EXIT, DRAIN_AFTER_EXIT, HELLO_TIMEOUT, Json, PING_AFTER, SERVE_IDLE,
    SHUTDOWN_GRACE, TERM_GRACE,
};

use super::exec::Limit;
use crate::config::{Plugins, STANDARD_PLUGIN_DIRS};

/// Where plugins run when the daemon's user has no home.
const NO_HOME: &str = "/";
/// Where programs are looked for when the daemon was started without a `PATH`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The workspace's own plugins, which a build puts beside the daemon.
const OWN_PLUGINS: &[&str] = &["echo", "runner"];

/// The configuration of the plugin host.
#[derive(Debug, Clone)]
pub struct HostConfig {
    /// This node.
    pub node: NodeId,
    /// `jobs/` and `results/` in it belong to the host. Absolute.
    pub data_dir: PathBuf,
    /// Where plugins are, in order of precedence.
    pub dirs: Vec<PluginDir>,
    /// The daemon's own program, for `exec-plugin`. `/proc/self/exe` stays true when the file is
    /// replaced by an upgrade.
    pub helper: PathBuf,
    /// Where the service manager listens to start holders; `None`: plugins are children of this process.
    pub holders: Option<PathBuf>,
    /// What of the daemon's environment plugins get.
    pub inherited: Vec<(OsString, OsString)>,
    /// Works that run at once on this node; those of a serving plugin count as one.
    pub max_works: usize,
    /// Take plugins that others could have written.
    pub allow_unsafe: bool,
    /// The part of each plugin.
    pub plugins: BTreeMap<String, PluginConfig>,
    /// How long to wait for what.
    pub times: Times,
}

/// A directory with plugins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PluginDir {
    /// Where.
    pub path: PathBuf,
    /// Only these names count; all when `None`.
    pub only: Option<&'static [&'static str]>,
    /// Whoever can write there could replace the daemon itself, so that nothing is gained by a
    /// look at owners and modes.
    pub trusted: bool,
}

impl PluginDir {
    /// An ordinary plugins directory.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            only: None,
            trusted: false,
        }
    }
}

/// What is configured for one plugin.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PluginConfig {
    /// Longest run of one work; goes before what the action says.
    pub timeout: Option<Duration>,
    /// Longest silence of one work; goes before what the action says.
    pub idle_timeout: Option<Duration>,
    /// Works at once; goes before what the plugin says.
    pub max_works: Option<usize>,
    /// Bytes that one work's results may have in all.
    pub max_results: Option<u64>,
    /// Limits on each process.
    pub limits: Vec<(Limit, u64)>,
    /// Let it gain privileges through set-user-id programs such as sudo.
    pub new_privileges: bool,
    /// What its hello carries. An object.
    pub config: Option<Json>,
}

/// How long the host waits for what.
#[derive(Debug, Clone)]
pub struct Times {
    /// For a plugin's hello.
    pub hello: Duration,
    /// For a plugin's exit when its stdin was closed and it has nothing to do.
    pub exit: Duration,
    /// For a plugin to end a cancelled job by itself.
    pub cancel_grace: Duration,
    /// From SIGTERM to SIGKILL.
    pub term_grace: Duration,
    /// For the end of stdout after the exit.
    pub drain: Duration,
    /// For the end of a serving plugin that was told to stop.
    pub shutdown_grace: Duration,
    /// Until a serving plugin without jobs is stopped.
    pub serve_idle: Duration,
    /// Until a silent job's serving plugin is asked for a sign of life.
    pub ping_after: Duration,
    /// For room for a result of one job, while it holds up the other jobs of a serving plugin.
    pub serve_stall: Duration,
    /// Before a serving plugin is started again after its first crash; doubles with each crash.
    pub backoff: Duration,
    /// The longest of these pauses.
    pub backoff_max: Duration,
    /// After so many crashes within [`Self::crash_window`] it is not started again.
    pub crashes: usize,
    /// See [`Self::crashes`]; also how long it must run to be counted as well again.
    pub crash_window: Duration,
    /// Until a plugin that is not ready, or could not be described, is asked again.
    pub ask_again: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            hello: HELLO_TIMEOUT,
            exit: DESCRIBE_EXIT,
            cancel_grace: CANCEL_GRACE,
            term_grace: TERM_GRACE,
            drain: DRAIN_AFTER_EXIT,
            shutdown_grace: SHUTDOWN_GRACE,
            serve_idle: SERVE_IDLE,
            ping_after: PING_AFTER,
            serve_stall: Duration::from_secs(1),
            backoff: Duration::from_secs(1),
            backoff_max: Duration::from_secs(60),
            crashes: 5,
            crash_window: Duration::from_secs(60),
            ask_again: Duration::from_secs(60),
        }
    }
}

impl HostConfig {
    /// The defaults: the standard directories, and beside a daemon that runs from a cargo build
    /// the workspace's own plugins.
    #[must_use]
    pub fn new(node: NodeId, data_dir: &Path) -> Self {
        let mut dirs: Vec<_> = STANDARD_PLUGIN_DIRS.map(PluginDir::new).into();
        dirs.extend(own_dir());
        Self {
            node,
            data_dir: std::path::absolute(data_dir).unwrap_or_else(|_| data_dir.to_owned()),
            dirs,
            helper: PathBuf::from("/proc/self/exe"),
            holders: None,
            inherited: inherited(),
            max_works: 8,
            allow_unsafe: false,
            plugins: BTreeMap::new(),
            times: Times::default(),
        }
    }

    /// What the settings say.
    #[must_use]
    pub fn from_settings(node: NodeId, data_dir: &Path, settings: &Plugins) -> Self {
        let mut config = Self::new(node, data_dir);
        config.dirs = settings.search_path().map(PluginDir::new).collect();
        config.dirs.extend(own_dir());
        config.max_works = size(settings.max_works);
        config.allow_unsafe = settings.allow_unsafe;
        config.holders = Some(settings.worker_sockets.clone());
        config.times.hello = settings.hello_timeout;
        config.times.cancel_grace = settings.cancel_grace;
        for (name, plugin) in &settings.plugin {
            let limits = [
                (Limit::AddressSpace, plugin.max_memory),
                (Limit::FileSize, plugin.max_file_size),
                (Limit::OpenFiles, plugin.max_open_files),
                (Limit::Processes, plugin.max_processes),
            ];
            let limits = limits.into_iter();
            let plugin = PluginConfig {
                timeout: plugin.timeout,
                idle_timeout: plugin.idle_timeout,
                max_works: plugin.max_works.map(size),
                max_results: plugin.max_results,
                new_privileges: plugin.new_privileges,
                limits: limits
                    .filter_map(|(limit, value)| Some((limit, value?)))
                    .collect(),
                config: Json::from_value(&plugin.config).ok(),
            };
            config.plugins.insert(name.clone(), plugin);
        }
        config
    }

    /// Where job directories are.
    pub(super) fn jobs(&self) -> PathBuf {
        self.data_dir.join("jobs")
    }

    /// Where results wait for the engine.
    pub(super) fn results(&self) -> PathBuf {
        self.data_dir.join("results")
    }
}

fn size(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn inherited() -> Vec<(OsString, OsString)> {
    let own = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let home = own("HOME").or_else(|| {
        let user = User::from_uid(geteuid()).ok()??;
        Some(user.dir.into_os_string())
    });
    let mut inherited = vec![
        (
            "PATH".into(),
            own("PATH").unwrap_or_else(|| DEFAULT_PATH.into()),
        ),
        ("HOME".into(), home.unwrap_or_else(|| NO_HOME.into())),
    ];
    for name in ["LANG", "TZ"] {
        if let Some(value) = own(name) {
            inherited.push((name.into(), value));
        }
    }
    inherited
}

/// See [`build_dir`].
fn own_dir() -> Option<PluginDir> {
    build_dir(&std::env::current_exe().ok()?)
}

/// The directory of a cargo build that this daemon runs from: its own plugins lie beside it, and the
/// documented commands work from there without an installation.
fn build_dir(exe: &Path) -> Option<PluginDir> {
    let path = exe.parent()?;
    let is_build = path.join(".cargo-lock").exists()
        || path.parent()?.join("CACHEDIR.TAG").exists() && path.join("deps").is_dir();
    is_build.then(|| PluginDir {
        path: path.to_owned(),
        only: Some(OWN_PLUGINS),
        trusted: true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_build_directory_offers_our_own_plugins() {
        let temp = tempfile::tempdir().unwrap();
        let debug = temp.path().join("target/debug");
        std::fs::create_dir_all(debug.join("deps")).unwrap();
        let exe = debug.join("receptord");
        assert_eq!(build_dir(&exe), None);
        std::fs::write(temp.path().join("target/CACHEDIR.TAG"), "").unwrap();
        let dir = build_dir(&exe).unwrap();
        assert_eq!(dir.path, debug);
        assert_eq!(dir.only, Some(OWN_PLUGINS));
        assert!(dir.trusted);
        std::fs::remove_dir(debug.join("deps")).unwrap();
        assert_eq!(build_dir(&exe), None);
        std::fs::write(debug.join(".cargo-lock"), "").unwrap();
        assert!(build_dir(&exe).is_some());
        assert_eq!(build_dir(Path::new("/usr/bin/receptord")), None);
    }

    #[test]
    fn the_standard_directories_come_in_order_and_before_a_build_s_own() {
        let node = "a".parse().unwrap();
        let config = HostConfig::new(node, Path::new("/tmp/a"));
        let paths: Vec<_> = config.dirs.iter().map(|dir| dir.path.clone()).collect();
        let standard = STANDARD_PLUGIN_DIRS.map(PathBuf::from);
        assert_eq!(paths.get(..3), Some(&standard[..]));
        assert!(config.dirs.iter().skip(3).all(|dir| dir.only.is_some()));
    }
}
