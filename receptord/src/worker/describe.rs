//! Asking a plugin who it is.
//!
//! Owns the start of every process of a plugin up to its hello, which is the whole of a description,
//! and the environment it is started with. Never keeps a plugin that breaks a rule of the hello.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use receptor_proto::ErrorBody;
use receptor_proto::plugin::{
    HostHello, HostMessage, Json, Limits, MAX_HELLO, MAX_LINE, PROTOCOL_VERSION, PluginHello,
    PluginMessage, env, excerpt, feature,
};
use tokio::time::timeout_at;

use super::config::{HostConfig, PluginConfig, Times};
use super::exec::Instruction;
use super::holder::{Connection, MAX_PACKET, Unit, keep_name};
use super::job_dir;
use super::outcome::{self, describe as describe_exit, plugin_start};
use super::process::{Event, Process};
use super::shared::Shared;
use super::stderr::Source;

/// An executable that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Executable {
    /// The plugin's name.
    pub name: String,
    /// The file's name.
    pub file_name: String,
    /// Where it is.
    pub path: PathBuf,
}

/// What a process is started for.
#[derive(Debug)]
pub(super) struct Purpose<'a> {
    /// The name of its directory, and what it is called in the log.
    pub job: &'a str,
    /// More of its environment.
    pub variables: Vec<(&'static str, OsString)>,
}

/// Starts a plugin in a directory of its own.
///
/// # Errors
/// `plugin-start` when there is no room for it.
pub(super) async fn start(
    shared: &Shared,
    config: &HostConfig,
    plugin: &Executable,
    purpose: Purpose<'_>,
) -> Result<Process, ErrorBody> {
    let (instruction, source) = instruction(config, plugin, &purpose);
    shared
        .spawner
        .spawn(&instruction, source)
        .await
        .map_err(|e| plugin_start(&plugin.name, &e.to_string(), None, ""))
}

/// As [`start`], behind a holder where there is a unit for it, with whose user the plugin's directory is shared, and
/// what of the work lies there already. With `keep` the process outlives this daemon if it can.
///
/// # Errors
/// `plugin-start` when there is no room for it.
pub(super) async fn start_in_unit(
    shared: &Shared,
    config: &HostConfig,
    plugin: &Executable,
    purpose: Purpose<'_>,
    given: Option<&Path>,
    keep: bool,
) -> Result<Process, ErrorBody> {
    let unit = config.holders.as_deref();
    if let Some(unit) = unit.and_then(|dir| Unit::find(dir, &plugin.name)) {
        match behind(&unit, config, plugin, &purpose, given, keep) {
            Ok(process) => return Ok(process),
            Err(error) if shared.tell_unitless() => {
                tracing::info!(%error, "plugins run without units of their own");
            }
            Err(error) => tracing::debug!(%error, "without a unit of its own"),
        }
    }
    start(shared, config, plugin, purpose).await
}

fn behind(
    unit: &Unit,
    config: &HostConfig,
    plugin: &Executable,
    purpose: &Purpose<'_>,
    given: Option<&Path>,
    keep: bool,
) -> io::Result<Process> {
    let jobs = config.jobs();
    unit.share_way(&jobs)?;
    unit.share_dir(&jobs.join(purpose.job))?;
    if let Some(given) = given {
        Unit::share_file(given)?;
    }
    let (instruction, source) = instruction(config, plugin, purpose);
    if instruction.encode_fields().len() >= MAX_PACKET {
        return Err(io::Error::other("its environment is too large"));
    }
    let opened = Connection::open(&unit.socket).inspect_err(|error| {
        let socket = unit.socket.display();
        tracing::warn!(%error, %socket, "no unit for a plugin");
    });
    let mut connection = opened?;
    if keep {
        connection.keep(keep_name(purpose.job));
    }
    Ok(Process::behind(connection, &instruction, source))
}

/// How a plugin is to be started, and who says what it logs.
fn instruction(
    config: &HostConfig,
    plugin: &Executable,
    purpose: &Purpose<'_>,
) -> (Instruction, Source) {
    let own = config.plugins.get(&plugin.name);
    let default = PluginConfig::default();
    let own = own.unwrap_or(&default);
    let dir = config.jobs().join(purpose.job);
    let mut environment = config.inherited.clone();
    let fixed: [(&str, OsString); 6] = [
        ("LC_ALL", "C.UTF-8".into()),
        ("PYTHONUNBUFFERED", "1".into()),
        ("TMPDIR", dir.clone().into()),
        (env::PROTOCOL, PROTOCOL_VERSION.to_string().into()),
        (env::NODE, config.node.as_str().into()),
        (env::JOB_DIR, dir.clone().into()),
    ];
    let variables = fixed.into_iter().chain(purpose.variables.iter().cloned());
    environment.extend(variables.map(|(name, value)| (name.into(), value)));
    let instruction = Instruction {
        program: plugin.path.clone(),
        dir,
        parent: std::process::id(),
        new_privileges: own.new_privileges,
        shares_files: false,
        limits: own.limits.clone(),
        environment,
    };
    let source = Source {
        plugin: plugin.name.clone(),
        job: purpose.job.to_owned(),
    };
    (instruction, source)
}

/// Creates the directory that a process is to run in.
///
/// # Errors
/// `plugin-start` when that fails.
pub(super) fn make_dir(
    config: &HostConfig,
    plugin: &Executable,
    job: &str,
) -> Result<PathBuf, ErrorBody> {
    let dir = config.jobs().join(job);
    match job_dir::create(&dir) {
        Ok(()) => Ok(dir),
        Err(e) => Err(plugin_start(
            &plugin.name,
            &format!("the directory {} cannot be made: {e}", dir.display()),
            None,
            "",
        )),
    }
}

/// Reads the hello of a process that was just started. The process is the caller's to end.
///
/// # Errors
/// `plugin-start`, with what is wrong.
pub(super) async fn read_hello(
    process: &mut Process,
    plugin: &Executable,
    times: &Times,
) -> Result<PluginHello, ErrorBody> {
    let mut deadline = tokio::time::Instant::now() + times.hello;
    let failed = |process: &mut Process, what: &str| {
        process.finish_stderr();
        plugin_start(
            &plugin.name,
            what,
            process.status(),
            &process.stderr().tail(),
        )
    };
    let ended = |process: &mut Process| {
        let how = describe_exit(process.status());
        failed(process, &format!("it {how} before its hello"))
    };
    loop {
        match process.line(MAX_HELLO) {
            Ok(Some(line)) => return read(&line, plugin).map_err(|what| failed(process, &what)),
            Ok(None) => {}
            Err(long) => {
                let what = format!(
                    "its hello is longer than {MAX_HELLO} bytes and begins with {:?}",
                    excerpt(&long.start)
                );
                return Err(failed(process, &what));
            }
        }
        match timeout_at(deadline, process.next(true)).await {
            Ok(Event::Output | Event::Sent) => {}
            // What it said before may still be in the pipe, which a child can hold open.
            Ok(Event::Exited) => {
                deadline = deadline.min(tokio::time::Instant::now() + times.drain);
            }
            Ok(Event::Closed) => {
                let _ = timeout_at(deadline, exited(process)).await;
                return Err(ended(process));
            }
            Err(_) if process.status().is_some() => return Err(ended(process)),
            Err(_) => {
                let within = humantime::format_duration(times.hello);
                let what = format!("it said no hello within {within}");
                return Err(failed(process, &what));
            }
        }
    }
}

async fn exited(process: &mut Process) {
    while process.status().is_none() {
        process.next(false).await;
    }
}

pub(super) fn read(line: &[u8], plugin: &Executable) -> Result<PluginHello, String> {
    let hello = match PluginMessage::decode(line) {
        Ok(PluginMessage::Hello(hello)) => hello,
        Ok(_) => {
            let line = excerpt(line);
            return Err(format!("its first line is no hello: {line:?}"));
        }
        Err(e) => {
            let line = excerpt(line);
            return Err(format!("its first line is no hello ({e}): {line:?}"));
        }
    };
    hello
        .validate(&plugin.file_name)
        .map_err(|problem| format!("its hello is wrong: {problem}"))?;
    Ok(hello)
}

/// The daemon's hello.
pub(super) fn host_hello(config: &HostConfig, plugin: &str) -> HostMessage {
    HostMessage::Hello(HostHello {
        protocol: PROTOCOL_VERSION,
        host: "receptord".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        node: config.node.to_string(),
        features: [feature::CANCEL, feature::STATUS, feature::FILE]
            .map(str::to_owned)
            .into(),
        limits: Limits::default(),
        config: config
            .plugins
            .get(plugin)
            .and_then(|own| own.config.clone())
            .or_else(|| Json::from_value(&serde_json::Map::new()).ok()),
    })
}

/// Starts the plugin, reads its hello, and lets it go.
///
/// # Errors
/// `plugin-start`, with what is wrong.
pub(super) async fn describe(
    shared: Rc<Shared>,
    config: Rc<HostConfig>,
    plugin: Executable,
) -> Result<PluginHello, ErrorBody> {
    let job = format!("describe.{}.{}", plugin.name, shared.next_number());
    let dir = make_dir(&config, &plugin, &job)?;
    let purpose = Purpose {
        job: &job,
        variables: Vec::new(),
    };
    let begin = Instant::now();
    let mut process = match start(&shared, &config, &plugin, purpose).await {
        Ok(process) => process,
        Err(error) => {
            super::sweep::remove(&dir);
            return Err(error);
        }
    };
    let hello = read_hello(&mut process, &plugin, &config.times).await;
    let took = begin.elapsed();
    let hello = match hello {
        Ok(hello) => Ok(second_thoughts(&mut process, &config, hello).await),
        Err(problem) => Err(problem),
    };
    process.kill_if_alive().await;
    process.finish_stderr();
    process.clear_away(&shared.sweeper).await;
    tracing::debug!(plugin = plugin.name, ?took, ok = hello.is_ok(), "described");
    hello
}

/// Shows the plugin its configuration and lets it go; meanwhile it may say whether it is ready with
/// that.
async fn second_thoughts(
    process: &mut Process,
    config: &HostConfig,
    mut hello: PluginHello,
) -> PluginHello {
    if let Ok(line) = host_hello(config, &hello.name).to_line() {
        process.send(&line);
    }
    process.close_stdin();
    let end = tokio::time::Instant::now() + config.times.exit;
    while process.status().is_none() || process.is_open() {
        match process.line(MAX_LINE) {
            Ok(Some(line)) => {
                if let Ok(PluginMessage::Ready(ready)) = PluginMessage::decode(&line) {
                    hello.ready = ready.ready;
                    hello.reason = ready.reason;
                }
            }
            Ok(None) if timeout_at(end, process.next(true)).await.is_err() => break,
            Ok(None) => {}
            Err(_) => break,
        }
    }
    if process.status().is_none() {
        tracing::warn!(
            plugin = hello.name,
            after = ?config.times.exit,
            "the plugin does not exit when its stdin is closed: it was killed"
        );
    }
    hello
}

/// How a process ended that was let go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Parting {
    /// By itself.
    Exited,
    /// Not in time.
    Lingered,
}

/// Closes stdin and waits for the exit. What it still says is not listened to.
pub(super) async fn let_go(process: &mut Process, patience: Duration) -> Parting {
    process.close_stdin();
    let end = tokio::time::Instant::now() + patience;
    while process.status().is_none() {
        match timeout_at(end, process.next(true)).await {
            Ok(Event::Output) => drop(process.bytes(usize::MAX)),
            Ok(Event::Sent | Event::Closed | Event::Exited) => {}
            Err(_) => return Parting::Lingered,
        }
    }
    Parting::Exited
}

/// Ends a process that did not end by itself: SIGTERM, some time, the whole tree.
pub(super) async fn put_down(process: &mut Process, patience: Duration) {
    process.terminate();
    if let_go(process, patience).await == Parting::Lingered {
        process.kill().await;
    }
}

/// The plugin's own part of the configuration.
pub(super) fn own_config(config: &HostConfig, plugin: &str) -> PluginConfig {
    config.plugins.get(plugin).cloned().unwrap_or_default()
}

/// `plugin-exit` for a process that closed its stdout and was ended because it stayed.
pub(super) fn closed_error(process: &mut Process, plugin: &str) -> ErrorBody {
    let mut problem = exit_error(process, plugin);
    problem.message = format!(
        "{plugin} closed its stdout without a final message and did not exit: it was killed"
    );
    problem
}

/// `plugin-exit` for a process that has ended.
pub(super) fn exit_error(process: &mut Process, plugin: &str) -> ErrorBody {
    process.finish_stderr();
    outcome::plugin_exit(plugin, process.status(), &process.stderr().tail())
}
