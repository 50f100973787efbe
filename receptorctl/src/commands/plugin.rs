//! `plugin list`, `plugin describe` and `plugin restart`.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Duration;

use receptor_proto::control::{PluginRestartCommand, PluginStatus, PluginsReply};
use receptor_proto::plugin::{ActionDescriptor, Mode, OutputKind, PayloadKind, PluginHello};

use super::{Context, With, plain};
use crate::client::{Answer, PATIENCE};
use crate::exit::{Exit, Failure};
use crate::output::{Cell, Out, Table, Tone, note, printable, size};

pub(super) fn list(context: &Context) -> Result<Exit, Failure> {
    context.query(&plain("plugins"), |out, reply: &PluginsReply| {
        if reply.plugins.is_empty() {
            note("no plugins are installed on this node");
            return Ok(());
        }
        out.table(&table(&reply.plugins))
    })
}

/// Shows what the daemon knows of a plugin and what its hello says, or for a path the latter alone.
pub(super) fn describe(context: &Context, name: &OsStr) -> Result<Exit, Failure> {
    let mut out = Out::new();
    if name.as_bytes().contains(&b'/') {
        let hello = crate::check::hello(Path::new(name))?;
        show(context, &mut out, None, Some(&hello))?;
        return Ok(Exit::Done);
    }
    let name = name.to_string_lossy();
    let mut connection = context.connect()?;
    connection.set_deadline(context.deadline.or(PATIENCE));
    let answer: Answer<PluginsReply> = connection.ask(&plain("plugins"))?;
    let plugins = &answer.value.plugins;
    let Some(plugin) = plugins.iter().find(|plugin| plugin.name == name) else {
        let names: Vec<&str> = plugins.iter().map(|plugin| plugin.name.as_str()).collect();
        let mut text = format!(
            "there is no plugin {name:?} on {}; installed: {} (no-such-plugin)",
            connection.node(),
            if names.is_empty() {
                "none".to_owned()
            } else {
                names.join(", ")
            }
        );
        if Path::new(&*name).is_file() {
            text.push_str(&format!(
                "\nfor the file of this name: plugin describe ./{name}"
            ));
        }
        return Err(Failure::new(Exit::Failed, text));
    };
    // The daemon may run as another user, to whom more is readable.
    let hello = match crate::check::hello(Path::new(&plugin.path)) {
        Ok(hello) => Some(hello),
        Err(failure) if failure.exit == Exit::Usage => {
            note(&format!(
                "its hello cannot be had here: {}",
                failure.message
            ));
            None
        }
        Err(failure) => return Err(failure),
    };
    show(context, &mut out, Some(plugin), hello.as_ref())?;
    Ok(Exit::Done)
}

fn show(
    context: &Context,
    out: &mut Out,
    plugin: Option<&PluginStatus>,
    hello: Option<&PluginHello>,
) -> Result<(), Failure> {
    if context.global.json {
        let value = serde_json::json!({"plugin": plugin, "hello": hello});
        out.line(value.to_string())?;
        return out.flush();
    }
    let of_hello = hello.map(|hello| (&hello.name, &hello.version, hello.about.as_deref()));
    let of_daemon = plugin.map(|plugin| (&plugin.name, &plugin.version, Some(&*plugin.about)));
    if let Some((name, version, about)) = of_hello.or(of_daemon) {
        let mut line = format!("{name} {version}");
        if let Some(about) = about.filter(|about| !about.is_empty()) {
            line.push_str(&format!(" - {about}"));
        }
        out.line(&*printable(&line))?;
    }
    if let Some(plugin) = plugin {
        field(out, "Path", &plugin.path)?;
        let reason = plugin.reason.as_deref().unwrap_or_default();
        let state = if plugin.ready {
            "ready".to_owned()
        } else {
            format!("not ready: {reason}")
        };
        field(out, "State", &state)?;
        field(
            out,
            "Works",
            &format!("{} running, {} waiting", plugin.running, plugin.waiting),
        )?;
    }
    let Some(hello) = hello else {
        if let Some(plugin) = plugin {
            field(out, "Mode", &plugin.mode)?;
            field(out, "Actions", &plugin.actions.join(", "))?;
        }
        return out.flush();
    };
    let mode = match hello.mode {
        Mode::Job => "job, one process for each",
        Mode::Serve => "serve, one process for many jobs",
    };
    let at_once = hello
        .max_jobs
        .map_or_else(String::new, |jobs| format!("; at most {jobs} at once"));
    field(out, "Mode", &format!("{mode}{at_once}"))?;
    if !hello.features.is_empty() {
        field(out, "Features", &hello.features.join(", "))?;
    }
    for (name, action) in &hello.actions {
        let about = action.about.as_deref().unwrap_or_default();
        field(out, "Action", format!("{name}  {about}").trim_end())?;
        out.line(format!("            {}", forms(action)))?;
        if let Some(example) = &action.example {
            let example = printable(example.get());
            out.line(format!("            example: {example}"))?;
        }
    }
    out.flush()
}

fn field(out: &mut Out, name: &str, value: &str) -> Result<(), Failure> {
    out.line(format!("  {name:>8}: {}", printable(value)))
}

/// What an action takes and gives, and its limits.
fn forms(action: &ActionDescriptor) -> String {
    let payload = match action.payload {
        PayloadKind::Json => "JSON",
        PayloadKind::Text => "text",
        PayloadKind::Bytes => "bytes",
        PayloadKind::File => "bytes, by file",
        PayloadKind::None => "nothing",
    };
    let output = match action.output {
        OutputKind::Json => "messages",
        OutputKind::Text => "lines of text",
        OutputKind::Bytes => "bytes",
    };
    let mut text = format!("takes {payload}; gives {output}");
    let time = |seconds| humantime::format_duration(Duration::from_secs(seconds));
    if let Some(bytes) = action.max_payload {
        text.push_str(&format!("; payload up to {}", size(bytes)));
    }
    if let Some(seconds) = action.timeout_s {
        text.push_str(&format!("; ends after {}", time(seconds)));
    }
    if let Some(seconds) = action.idle_timeout_s {
        text.push_str(&format!("; or {} of silence", time(seconds)));
    }
    if action.idempotent {
        text.push_str("; may be run again");
    }
    text
}

pub(super) fn restart(context: &Context, name: String) -> Result<Exit, Failure> {
    let command = With {
        command: "plugin-restart",
        fields: PluginRestartCommand { name },
    };
    context.query(&command, |out: &mut Out, plugin: &PluginStatus| {
        out.table(&table(std::slice::from_ref(plugin)))
    })
}

fn table(plugins: &[PluginStatus]) -> Table {
    let mut table = Table::new([
        "NAME", "VERSION", "MODE", "STATE", "RUNNING", "WAITING", "ACTIONS", "PATH", "REASON",
    ]);
    for plugin in plugins {
        table.row([
            (&plugin.name).into(),
            (&plugin.version).into(),
            (&plugin.mode).into(),
            readiness(plugin),
            plugin.running.to_string().into(),
            plugin.waiting.to_string().into(),
            plugin.actions.join(",").into(),
            (&plugin.path).into(),
            plugin.reason.as_deref().unwrap_or_default().into(),
        ]);
    }
    table
}

/// Whether a plugin can be used, in its colour.
pub(super) fn readiness(plugin: &PluginStatus) -> Cell {
    if plugin.ready {
        Cell::tone("ready", Tone::Good)
    } else {
        Cell::tone("not ready", Tone::Bad)
    }
}
