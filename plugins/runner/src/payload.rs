//! What a payload asks for, turned into what ansible-runner gets: arguments, and files below the
//! private data directory. Decides only; writes and starts nothing.
//!
//! What comes from the mesh must not undo what the node has decided. Arguments are passed on from
//! a list, everything that can hold a secret becomes a file, and the rest is refused by name.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use receptor_plugin::Error;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::config::{Config, PERMISSIBLE};

/// Bytes of one event that are passed on when the payload does not say.
const MAX_EVENT_BYTES: usize = 262_144;
/// What a payload may ask for instead: enough for an event's head, and little enough for a line.
const EVENT_BYTES: std::ops::RangeInclusive<usize> = 1_024..=786_432;
/// Most hosts at once that a payload may ask for.
const MAX_FORKS: u64 = 500;
/// Highest verbosity that Ansible knows.
const MAX_VERBOSITY: u64 = 6;
/// Most parts of an inventory, each a file.
const MAX_INVENTORIES: usize = 1_000;

/// Everything that is to be done for a job.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Arguments for ansible-runner.
    pub(crate) kwargs: Map<String, Value>,
    /// Files below the private data directory. Any of them may hold secrets.
    pub(crate) files: Vec<(String, Vec<u8>)>,
    /// A directory of the node that takes the place of `project`.
    pub(crate) project: Option<PathBuf>,
    /// The program that isolates the job.
    pub(crate) isolation: Option<String>,
    pub(crate) options: Options,
    /// Times the payload asks for.
    pub(crate) timeout: Option<Duration>,
    pub(crate) idle_timeout: Option<Duration>,
}

/// The payload's word to this plugin, under the key `receptor`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Options {
    pub(crate) events: Events,
    timeout_s: Option<u64>,
    idle_timeout_s: Option<u64>,
    pub(crate) max_event_bytes: usize,
    pub(crate) fail_on_no_hosts: bool,
    /// To have what ansible-runner keeps of the job as a result, a zip archive.
    pub(crate) artifacts: bool,
    /// To keep the job's directory, which is the daemon's to remove: only `false` is taken.
    keep: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            events: Events::All,
            timeout_s: None,
            idle_timeout_s: None,
            max_event_bytes: MAX_EVENT_BYTES,
            fail_on_no_hosts: true,
            artifacts: false,
            keep: false,
        }
    }
}

/// Which events go to the sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Events {
    All,
    /// What tasks came to, on each host.
    Results,
    /// Of these, what changed something or failed.
    Changed,
    /// Of these, what failed.
    Failed,
    /// Nothing but the final message.
    None,
}

/// Why a payload is refused, before anything is started.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error(
        "the payload is empty; expected a JSON object such as {{\"module\": \"ping\", \"host_pattern\": \"all\", \"inventory\": \"localhost\"}}"
    )]
    Empty,
    #[error(
        "{0} as payload is not supported; send the arguments of ansible-runner as a JSON object"
    )]
    Form(&'static str),
    #[error("the payload is no JSON ({0})")]
    NoJson(String),
    #[error("the payload is not a JSON object")]
    NoObject,
    #[error("{key:?} must be {expected}")]
    Type { key: String, expected: &'static str },
    #[error("{key:?} must not begin with \"-\"")]
    Dash { key: String },
    #[error("{0:?} is not taken from the mesh")]
    Key(String),
    #[error(
        "{0:?} is taken only when the node's configuration allows it: [plugins.runner] allow = [{0:?}]"
    )]
    NotAllowed(String),
    #[error(
        "nothing to run: exactly one of \"module\", \"playbook\" and \"role\" is needed, not {0}"
    )]
    NotOne(usize),
    #[error("\"module\" needs \"host_pattern\"")]
    NoHosts,
    #[error("the project {name:?} is not one of this node's: {known}")]
    Project { name: String, known: String },
    #[error("\"playbook\" must be the path of a playbook when \"project\" is used")]
    ProjectPlaybook,
    #[error("\"receptor\": {0}")]
    Options(String),
}

impl Refusal {
    /// What the sender is told.
    pub(crate) fn into_error(self) -> Error {
        Error::invalid_payload(self.to_string())
    }
}

/// How the value of an argument must look.
enum Kind {
    /// Text that ends up on a command line, where it must not become an option.
    Word,
    Text,
    /// Text, or a list of it that Ansible wants with commas.
    Words,
    Number(u64),
    Bool,
    Object,
}

/// Arguments that are passed on as they are.
const PASSED: &[(&str, Kind)] = &[
    ("module", Kind::Word),
    ("module_args", Kind::Text),
    ("host_pattern", Kind::Word),
    ("role", Kind::Word),
    ("role_vars", Kind::Object),
    ("role_skip_facts", Kind::Bool),
    ("hosts", Kind::Word),
    ("limit", Kind::Word),
    ("forks", Kind::Number(MAX_FORKS)),
    ("verbosity", Kind::Number(MAX_VERBOSITY)),
    ("tags", Kind::Words),
    ("skip_tags", Kind::Words),
    ("omit_event_data", Kind::Bool),
    ("only_failed_event_data", Kind::Bool),
];

/// Arguments that have no meaning here: directory and name are the job's, output is ours.
const IGNORED: &[&str] = &["ident", "private_data_dir", "quiet", "json_mode"];

/// Settings that are passed on.
const SETTINGS: &[&str] = &[
    "pexpect_timeout",
    "pexpect_use_poll",
    "suppress_output_file",
];

/// Seconds between two looks of ansible-runner at its child; its own default makes it slow to
/// notice an end.
const PEXPECT_TIMEOUT: u64 = 1;

/// Reads a payload.
pub(crate) fn plan(payload: &[u8], config: &Config, job_dir: &Path) -> Result<Plan, Refusal> {
    let mut given = read(payload)?;
    given.retain(|_, value| !value.is_null());
    let mut plan = Plan {
        kwargs: Map::new(),
        files: Vec::new(),
        project: None,
        isolation: None,
        options: Options::default(),
        timeout: None,
        idle_timeout: None,
    };

    if let Some(options) = given.remove("receptor") {
        plan.take_options(options)?;
    }
    for key in IGNORED {
        given.remove(*key);
    }
    if let Some(timeout) = given.remove("timeout") {
        plan.shorten(seconds("timeout", &timeout)?);
    }
    let things = ["module", "playbook", "role"];
    match things
        .iter()
        .filter(|key| given.contains_key(**key))
        .count()
    {
        1 => {}
        other => return Err(Refusal::NotOne(other)),
    }
    if given.contains_key("module") && !given.contains_key("host_pattern") {
        return Err(Refusal::NoHosts);
    }
    if let Some(project) = given.remove("project") {
        plan.take_project(&project, config)?;
    }
    if let Some(playbook) = given.remove("playbook") {
        plan.take_playbook(playbook)?;
    }
    for (key, kind) in PASSED {
        if let Some(value) = given.remove(*key) {
            let value = checked(key, value, kind)?;
            plan.kwargs.insert((*key).to_owned(), value);
        }
    }
    // Whoever names the interpreter of a host knows better than we do.
    let names_interpreter = given
        .values()
        .any(|value| value.to_string().contains("ansible_python_interpreter"));
    if let Some(inventory) = given.remove("inventory") {
        plan.take_inventory(inventory)?;
    }
    let extravars = given.remove("extravars");
    plan.take_extravars(extravars, names_interpreter, job_dir)?;
    plan.take_settings(given.remove("settings"), config)?;
    plan.take_secrets(&mut given)?;
    for key in PERMISSIBLE {
        if let Some(value) = given.remove(*key) {
            plan.take_permissible(key, value, config)?;
        }
    }
    match given.keys().next() {
        None => Ok(plan),
        Some(key) => Err(Refusal::Key(key.clone())),
    }
}

/// Tells the forms of a payload apart by its first bytes.
fn read(payload: &[u8]) -> Result<Map<String, Value>, Refusal> {
    /// Where a tar archive has its mark.
    const TAR_MARK: std::ops::Range<usize> = 257..262;
    if payload.trim_ascii().is_empty() {
        return Err(Refusal::Empty);
    }
    if payload.starts_with(b"PK\x03\x04") {
        return Err(Refusal::Form("a zip archive"));
    }
    if payload.starts_with(b"\x1f\x8b") || payload.get(TAR_MARK) == Some(b"ustar") {
        return Err(Refusal::Form("a tar archive"));
    }
    match serde_json::from_slice(payload) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(Refusal::NoObject),
        Err(_) if is_transmit(payload) => Err(Refusal::Form("a stream of ansible-runner transmit")),
        // Where, not what: the text could hold a secret.
        Err(e) => Err(Refusal::NoJson(format!(
            "line {}, column {}",
            e.line(),
            e.column()
        ))),
    }
}

fn is_transmit(payload: &[u8]) -> bool {
    let first = payload.split(|b| *b == b'\n').next().unwrap_or_default();
    matches!(serde_json::from_slice(first), Ok(Value::Object(o)) if o.contains_key("kwargs"))
}

impl Plan {
    fn take_options(&mut self, options: Value) -> Result<(), Refusal> {
        let options: Options =
            serde_json::from_value(options).map_err(|e| Refusal::Options(e.to_string()))?;
        if !EVENT_BYTES.contains(&options.max_event_bytes) {
            return Err(Refusal::Options(format!(
                "\"max_event_bytes\" must be {} to {}",
                EVENT_BYTES.start(),
                EVENT_BYTES.end()
            )));
        }
        if options.keep {
            return Err(Refusal::Options(
                "\"keep\" is not supported, the daemon removes the directory of a job; have \"artifacts\""
                    .to_owned(),
            ));
        }
        self.timeout = options.timeout_s.map(Duration::from_secs);
        self.idle_timeout = options.idle_timeout_s.map(Duration::from_secs);
        self.options = options;
        Ok(())
    }

    fn shorten(&mut self, timeout: Duration) {
        self.timeout = Some(self.timeout.map_or(timeout, |t| t.min(timeout)));
    }

    fn take_project(&mut self, name: &Value, config: &Config) -> Result<(), Refusal> {
        let name = text("project", name)?;
        let Some(dir) = config.projects.get(name) else {
            let known: Vec<&str> = config.projects.keys().map(String::as_str).collect();
            return Err(Refusal::Project {
                name: name.to_owned(),
                known: if known.is_empty() {
                    "it has none".to_owned()
                } else {
                    known.join(", ")
                },
            });
        };
        self.project = Some(dir.clone());
        Ok(())
    }

    fn take_playbook(&mut self, playbook: Value) -> Result<(), Refusal> {
        let playbook = match playbook {
            Value::String(path) => checked("playbook", Value::String(path), &Kind::Word)?,
            // ansible-runner would write these into the project.
            Value::Array(_) | Value::Object(_) if self.project.is_some() => {
                return Err(Refusal::ProjectPlaybook);
            }
            Value::Object(play) => Value::Array(vec![Value::Object(play)]),
            Value::Array(plays) if !plays.is_empty() && plays.iter().all(Value::is_object) => {
                Value::Array(plays)
            }
            Value::Array(_) | Value::Null | Value::Bool(_) | Value::Number(_) => {
                return Err(Refusal::Type {
                    key: "playbook".to_owned(),
                    expected: "a path, a play or a list of plays",
                });
            }
        };
        self.kwargs.insert("playbook".to_owned(), playbook);
        Ok(())
    }

    /// Always files: given to ansible-runner as they are, most forms break or mean something else.
    fn take_inventory(&mut self, inventory: Value) -> Result<(), Refusal> {
        match inventory {
            Value::String(text) => {
                if let Some(path) = self.in_project(&text) {
                    let path = path.to_string_lossy().into_owned();
                    self.kwargs.insert("inventory".to_owned(), path.into());
                } else {
                    self.file("inventory/hosts", inventory_lines(&text));
                }
            }
            Value::Object(hosts) => {
                self.file("inventory/hosts.json", Value::Object(hosts).to_string());
            }
            Value::Array(parts) if parts.len() <= MAX_INVENTORIES => {
                for (n, part) in parts.into_iter().enumerate() {
                    match part {
                        Value::String(text) => {
                            self.file(format!("inventory/hosts-{n:03}"), inventory_lines(&text));
                        }
                        Value::Object(hosts) => self.file(
                            format!("inventory/hosts-{n:03}.json"),
                            Value::Object(hosts).to_string(),
                        ),
                        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) => {
                            return Err(wrong_inventory());
                        }
                    }
                }
            }
            Value::Array(_) | Value::Null | Value::Bool(_) | Value::Number(_) => {
                return Err(wrong_inventory());
            }
        }
        Ok(())
    }

    /// The inventory of a project of this node, when the text is the path of one.
    fn in_project(&self, text: &str) -> Option<PathBuf> {
        let inside = !text.contains('\n')
            && Path::new(text)
                .components()
                .all(|part| matches!(part, std::path::Component::Normal(_)));
        let path = self.project.as_ref()?.join(text);
        (inside && path.exists()).then_some(path)
    }

    fn take_extravars(
        &mut self,
        extravars: Option<Value>,
        names_interpreter: bool,
        job_dir: &Path,
    ) -> Result<(), Refusal> {
        let mut extravars = match extravars {
            None => return Ok(()),
            Some(Value::Object(extravars)) => extravars,
            Some(_) => return Err(wrong("extravars", "an object")),
        };
        if extravars.get("ansible_connection").and_then(Value::as_str) == Some("local") {
            // A host that is named gets none of what Ansible does for the localhost it knows by
            // itself: without this it searches for a Python and may find a broken one.
            if !names_interpreter {
                extravars.insert(
                    "ansible_python_interpreter".to_owned(),
                    "{{ ansible_playbook_python }}".into(),
                );
            }
            // What a killed module leaves behind goes with the job's directory.
            extravars
                .entry("ansible_remote_tmp")
                .or_insert_with(|| tmp_dir(job_dir).to_string_lossy().into());
        }
        self.file("env/extravars", Value::Object(extravars).to_string());
        Ok(())
    }

    fn take_settings(&mut self, settings: Option<Value>, config: &Config) -> Result<(), Refusal> {
        let mut given = match settings {
            None => Map::new(),
            Some(Value::Object(settings)) => settings,
            Some(_) => return Err(wrong("settings", "an object")),
        };
        if let Some(timeout) = given.remove("job_timeout") {
            self.shorten(seconds("settings.job_timeout", &timeout)?);
        }
        if let Some(timeout) = given.remove("idle_timeout") {
            let timeout = seconds("settings.idle_timeout", &timeout)?;
            self.idle_timeout.get_or_insert(timeout);
        }
        given.remove("suppress_ansible_output");
        for key in PERMISSIBLE {
            if let Some(value) = given.remove(*key) {
                self.take_permissible(key, value, config)?;
            }
        }
        if let Some(key) = given.keys().find(|key| !SETTINGS.contains(&key.as_str())) {
            return Err(Refusal::Key(format!("settings.{key}")));
        }
        given
            .entry("pexpect_timeout")
            .or_insert(PEXPECT_TIMEOUT.into());
        self.file("env/settings", Value::Object(given).to_string());
        Ok(())
    }

    fn take_secrets(&mut self, given: &mut Map<String, Value>) -> Result<(), Refusal> {
        if let Some(envvars) = given.remove("envvars") {
            let Value::Object(envvars) = envvars else {
                return Err(wrong("envvars", "an object"));
            };
            let mut texts = Map::new();
            for (name, value) in envvars {
                // By these the processes of a job are found.
                if name.starts_with("RECEPTOR_") {
                    return Err(Refusal::Key(format!("envvars.{name}")));
                }
                let Some(value) = scalar(&value) else {
                    return Err(wrong(&format!("envvars.{name}"), "a text or a number"));
                };
                texts.insert(name, value.into());
            }
            self.file("env/envvars", Value::Object(texts).to_string());
        }
        if let Some(passwords) = given.remove("passwords") {
            let texts = passwords
                .as_object()
                .filter(|o| o.values().all(Value::is_string));
            if texts.is_none() {
                return Err(wrong("passwords", "an object of texts"));
            }
            self.file("env/passwords", passwords.to_string());
        }
        if let Some(key) = given.remove("ssh_key") {
            let mut key = text("ssh_key", &key)?.to_owned();
            // ssh-add wants the last line ended.
            if !key.ends_with('\n') {
                key.push('\n');
            }
            self.file("env/ssh_key", key);
        }
        Ok(())
    }

    fn take_permissible(
        &mut self,
        key: &str,
        value: Value,
        config: &Config,
    ) -> Result<(), Refusal> {
        if !config.allow.contains(key) {
            return Err(Refusal::NotAllowed(key.to_owned()));
        }
        if key == "cmdline" {
            let cmdline = text(key, &value)?.to_owned();
            self.file("env/cmdline", cmdline);
            return Ok(());
        }
        if key == "process_isolation" && value == json!(true) {
            self.isolation.get_or_insert_with(|| "podman".to_owned());
        }
        if key == "process_isolation_executable" {
            let program = text(key, &value)?.to_owned();
            self.isolation = self.isolation.as_ref().map(|_| program);
        }
        self.kwargs.insert(key.to_owned(), value);
        Ok(())
    }

    fn file(&mut self, path: impl Into<String>, contents: impl Into<Vec<u8>>) {
        self.files.push((path.into(), contents.into()));
    }
}

/// Where everything temporary of a job is.
pub(crate) fn tmp_dir(job_dir: &Path) -> PathBuf {
    job_dir.join("tmp")
}

/// Hosts with commas between them get a line each; anything else is an inventory file as it is.
fn inventory_lines(text: &str) -> String {
    let names = || text.split(',').map(str::trim).filter(|n| !n.is_empty());
    let is_name = |n: &str| !n.contains(|c: char| c.is_whitespace() || "=[]{}:#".contains(c));
    let mut lines = if text.contains(',') && names().all(is_name) {
        names().collect::<Vec<_>>().join("\n")
    } else {
        text.to_owned()
    };
    lines.push('\n');
    lines
}

fn wrong_inventory() -> Refusal {
    wrong("inventory", "a text, an object, or a list of these")
}

fn wrong(key: &str, expected: &'static str) -> Refusal {
    Refusal::Type {
        key: key.to_owned(),
        expected,
    }
}

fn text<'a>(key: &str, value: &'a Value) -> Result<&'a str, Refusal> {
    value.as_str().ok_or_else(|| wrong(key, "a text"))
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

fn seconds(key: &str, value: &Value) -> Result<Duration, Refusal> {
    let seconds = value.as_u64().filter(|seconds| *seconds > 0);
    seconds
        .map(Duration::from_secs)
        .ok_or_else(|| wrong(key, "a number of seconds above 0"))
}

fn checked(key: &str, value: Value, kind: &Kind) -> Result<Value, Refusal> {
    match kind {
        Kind::Word => {
            if text(key, &value)?.starts_with('-') {
                return Err(Refusal::Dash {
                    key: key.to_owned(),
                });
            }
            Ok(value)
        }
        Kind::Text => match value {
            Value::String(_) => Ok(value),
            // Ansible reads JSON here.
            Value::Object(_) => Ok(value.to_string().into()),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) => {
                Err(wrong(key, "a text or an object"))
            }
        },
        Kind::Words => {
            let joined = if let Value::Array(words) = &value {
                let words: Result<Vec<_>, _> = words.iter().map(|word| text(key, word)).collect();
                words?.join(",")
            } else {
                text(key, &value)?.to_owned()
            };
            checked(key, joined.into(), &Kind::Word)
        }
        Kind::Number(max) => match value.as_u64() {
            Some(n) if n <= *max => Ok(value),
            _ => Err(wrong(key, "a number within Ansible's limits")),
        },
        Kind::Bool if value.is_boolean() => Ok(value),
        Kind::Bool => Err(wrong(key, "true or false")),
        Kind::Object if value.is_object() => Ok(value),
        Kind::Object => Err(wrong(key, "an object")),
    }
}

#[cfg(test)]
mod tests;
