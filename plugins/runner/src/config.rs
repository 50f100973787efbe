//! The node's word on how Ansible runs here: the `[plugins.runner]` section, as the daemon hands
//! it over. Keys that this plugin does not know are the daemon's own and are passed over.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::PathBuf,
    time::Duration,
};

use serde::{Deserialize, Deserializer, de};

/// How long a job may take when nobody says otherwise.
const TIMEOUT: Duration = Duration::from_secs(3600);
/// How long Ansible may say nothing when nobody says otherwise; a password prompt without an
/// answer would otherwise hang until the timeout.
const IDLE_TIMEOUT: Duration = Duration::from_secs(600);
/// How long ansible-runner may take until its first word.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// Arguments of ansible-runner that only the node can permit, because they decide about isolation
/// or name files of the node.
pub(crate) const PERMISSIBLE: &[&str] = &[
    "cmdline",
    "process_isolation",
    "process_isolation_executable",
    "container_image",
    "container_options",
    "container_volume_mounts",
    "roles_path",
];

/// The node's configuration of this plugin.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub(crate) struct Config {
    /// The ansible-runner to start: a name to be found in the path, or an absolute path.
    pub(crate) command: String,
    /// Where programs are looked for, in place of the daemon's `PATH`.
    pub(crate) path: Option<String>,
    /// The longest time of a job. A payload can only ask for less. Without it the daemon's word
    /// for the job holds, and without that one hour.
    #[serde(deserialize_with = "duration")]
    pub(crate) timeout: Option<Duration>,
    /// The longest silence of a job. A payload can ask for another.
    #[serde(deserialize_with = "duration")]
    pub(crate) idle_timeout: Option<Duration>,
    /// The longest time until ansible-runner says its first word.
    #[serde(deserialize_with = "duration")]
    pub(crate) start_timeout: Option<Duration>,
    /// More environment variables for ansible-runner.
    pub(crate) env: BTreeMap<String, String>,
    /// Directories with playbooks and roles on this node, by the name a payload uses.
    pub(crate) projects: BTreeMap<String, PathBuf>,
    /// Arguments that payloads may use although they decide about isolation or name files.
    pub(crate) allow: BTreeSet<String>,
}

impl Config {
    pub(crate) fn timeout(&self, of_job: Option<Duration>) -> Duration {
        self.timeout.or(of_job).unwrap_or(TIMEOUT)
    }

    pub(crate) fn idle_timeout(&self) -> Duration {
        self.idle_timeout.unwrap_or(IDLE_TIMEOUT)
    }

    pub(crate) fn start_timeout(&self) -> Duration {
        self.start_timeout.unwrap_or(START_TIMEOUT)
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            command: "ansible-runner".to_owned(),
            path: None,
            timeout: None,
            idle_timeout: None,
            start_timeout: None,
            env: BTreeMap::new(),
            projects: BTreeMap::new(),
            allow: BTreeSet::new(),
        }
    }
}

/// Seconds as a number, or a text such as `1h 30min`.
fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    struct Visitor;
    impl de::Visitor<'_> for Visitor {
        type Value = Duration;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("seconds, or a duration such as \"1h 30min\"")
        }

        fn visit_u64<E: de::Error>(self, seconds: u64) -> Result<Duration, E> {
            Ok(Duration::from_secs(seconds))
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Duration, E> {
            humantime::parse_duration(text).map_err(|e| E::custom(format!("{text:?}: {e}")))
        }
    }
    deserializer.deserialize_any(Visitor).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_text_or_seconds_and_unknown_keys_are_the_daemons() {
        let config: Config = serde_json::from_str(
            r#"{"timeout":"1h","idle-timeout":90,"max-works":2,"env":{"A":"b"}}"#,
        )
        .unwrap();
        assert_eq!(
            config.timeout(Some(Duration::from_secs(9))),
            Duration::from_secs(3600)
        );
        assert_eq!(config.idle_timeout(), Duration::from_secs(90));
        assert_eq!(config.start_timeout(), START_TIMEOUT);
        assert_eq!(config.command, "ansible-runner");
        assert_eq!(config.env["A"], "b");
        assert!(serde_json::from_str::<Config>(r#"{"timeout":"soon"}"#).is_err());
        assert!(serde_json::from_str::<Config>(r#"{"timeout":-1}"#).is_err());
        let config = Config::default();
        assert_eq!(
            config.timeout(Some(Duration::from_secs(9))),
            Duration::from_secs(9)
        );
        assert_eq!(config.timeout(None), TIMEOUT);
    }
}
