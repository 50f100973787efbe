//! `plugin list` and `plugin restart`.

use receptor_proto::control::{PluginRestartCommand, PluginStatus, PluginsReply};

use super::{Context, With, plain};
use crate::exit::{Exit, Failure};
use crate::output::{Cell, Out, Table, Tone, note};

pub(super) fn list(context: &Context) -> Result<Exit, Failure> {
    context.query(&plain("plugins"), |out, reply: &PluginsReply| {
        if reply.plugins.is_empty() {
            note("no plugins are installed on this node");
            return Ok(());
        }
        out.table(&table(&reply.plugins))
    })
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
