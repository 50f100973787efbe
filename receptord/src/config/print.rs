//! The configuration written out again.
//!
//! Owns the list of all keys with what a change of each one takes, the text of
//! `--print-config`, and the comparison of two configurations. What is printed reads in as
//! the same settings, also with `--config`. Never prints the content of a key or
//! certificate: settings hold only their names.

use std::fmt::Write as _;

use receptor_identity::Fingerprint;
use serde_json::Value as Json;

use super::fragment::quote as text;
use super::settings::{Listen, Peer, Plugin, Settings, TlsFile};
use super::units::{format_bytes, format_duration, format_mode};
use super::{Loaded, Pattern};
use crate::policy::{Principal, Rule, Rules};

/// What it takes for a changed value to be in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Apply {
    /// A reload puts it in force.
    AtOnce,
    /// Only a restart does.
    Restart,
}

/// A value that differs between two configurations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The full key, such as `link.hold-time`, or the whole list, such as `listen`.
    pub key: String,
    /// As it was, in TOML; empty when it was not set.
    pub old: String,
    /// As it is now, in TOML; empty when it is not set.
    pub new: String,
    /// What it takes.
    pub apply: Apply,
}

/// One line of a table.
struct Line {
    key: String,
    /// In TOML; `None` when it is not set and has no default.
    value: Option<String>,
    apply: Apply,
    /// May hold what only this node and a server of its choice should know.
    confidential: bool,
}

/// A table with its header.
struct Block {
    /// Without brackets; empty for the top of the document.
    name: String,
    /// One of several with the same name, counted from 0.
    index: Option<usize>,
    lines: Vec<Line>,
}

impl Block {
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            index: None,
            lines: Vec::new(),
        }
    }

    fn set(mut self, apply: Apply, key: &str, value: impl Into<Option<String>>) -> Self {
        self.lines.push(Line {
            key: key.to_owned(),
            value: value.into(),
            apply,
            confidential: false,
        });
        self
    }

    /// The last value is not to be shown.
    fn confidential(mut self) -> Self {
        if let Some(line) = self.lines.last_mut() {
            line.confidential = true;
        }
        self
    }

    /// Where the origins know this table.
    fn path(&self) -> String {
        match self.index {
            Some(index) => format!("{}[{index}]", self.name),
            None => self.name.clone(),
        }
    }
}

use Apply::{AtOnce, Restart};

/// Every table in the order in which it is printed.
fn blocks(settings: &Settings) -> Vec<Block> {
    let Settings {
        node_id,
        data_dir,
        router,
        listen,
        peer,
        tls,
        security,
        link,
        routing,
        control,
        capabilities,
        plugins,
        rules,
        spool,
        log,
        shutdown,
    } = settings;
    let mut blocks = vec![
        Block::new("")
            .set(
                Restart,
                "node-id",
                node_id.as_ref().map(|id| text(id.as_str())),
            )
            .set(Restart, "data-dir", path(data_dir))
            .set(Restart, "router", router.to_string()),
    ];
    for (
        index,
        Listen {
            url,
            cost,
            allow_plaintext,
        },
    ) in listen.iter().enumerate()
    {
        blocks.push(link_block(
            "listen",
            index,
            &url.to_string(),
            *cost,
            *allow_plaintext,
        ));
    }
    for (
        index,
        Peer {
            url,
            cost,
            allow_plaintext,
            headers,
        },
    ) in peer.iter().enumerate()
    {
        let mut block = link_block("peer", index, &url.to_string(), *cost, *allow_plaintext);
        if !headers.is_empty() {
            let pair =
                |(name, value): (&String, &String)| format!("{} = {}", key(name), text(value));
            let pairs: Vec<String> = headers.iter().map(pair).collect();
            let value = format!("{{ {} }}", pairs.join(", "));
            block = block.set(AtOnce, "headers", value).confidential();
        }
        blocks.push(block);
    }
    if let Some(tls) = tls {
        let name = |file: &TlsFile| text(&file.name);
        blocks.push(
            Block::new("tls")
                .set(AtOnce, "certificate", name(&tls.certificate))
                .set(AtOnce, "key", name(&tls.key))
                .set(AtOnce, "ca", name(&tls.ca))
                .set(AtOnce, "crl", tls.crl.as_ref().map(name))
                .set(AtOnce, "pinned", fingerprints(&tls.pinned)),
        );
    }
    blocks.extend([
        Block::new("security").set(Restart, "seal", security.seal.to_string()),
        Block::new("link")
            .set(Restart, "hold-time", time(link.hold_time))
            .set(AtOnce, "reconnect-min", time(link.reconnect_min))
            .set(AtOnce, "reconnect-max", time(link.reconnect_max))
            .set(AtOnce, "connect-timeout", time(link.connect_timeout))
            .set(AtOnce, "max-links", link.max_links.to_string())
            .set(
                AtOnce,
                "max-links-per-source",
                link.max_links_per_source.to_string(),
            ),
        Block::new("routing")
            .set(Restart, "hop-limit", routing.hop_limit.to_string())
            .set(
                Restart,
                "dead-node-retention",
                time(routing.dead_node_retention),
            ),
        Block::new("control")
            .set(Restart, "enabled", control.enabled.to_string())
            .set(Restart, "socket-path", path(&control.socket_path))
            .set(Restart, "group", control.group.as_deref().map(text))
            .set(Restart, "mode", text(&format_mode(control.mode)))
            .set(AtOnce, "max-clients", control.max_clients.to_string())
            .set(
                AtOnce,
                "max-clients-per-user",
                control.max_clients_per_user.to_string(),
            ),
    ]);
    let mut metadata = Block::new("capabilities");
    for (key, value) in capabilities {
        metadata = metadata.set(AtOnce, key, text(value));
    }
    blocks.push(metadata);
    let dirs: Vec<String> = plugins.dirs.iter().map(|dir| path(dir)).collect();
    blocks.push(
        Block::new("plugins")
            .set(AtOnce, "dirs", format!("[{}]", dirs.join(", ")))
            .set(AtOnce, "max-works", plugins.max_works.to_string())
            .set(AtOnce, "hello-timeout", time(plugins.hello_timeout))
            .set(AtOnce, "cancel-grace", time(plugins.cancel_grace))
            .set(AtOnce, "allow-unsafe", plugins.allow_unsafe.to_string())
            .set(AtOnce, "worker-sockets", path(&plugins.worker_sockets)),
    );
    for (name, Plugin { config, .. }) in &plugins.plugin {
        let mut block = Block::new(&format!("plugins.{name}"));
        for (key, value) in config {
            block = block.set(AtOnce, key, json(value));
        }
        blocks.push(block);
    }
    blocks.extend(rule_blocks(rules));
    blocks.extend([
        Block::new("spool")
            .set(Restart, "max-bytes", text(&format_bytes(spool.max_bytes)))
            .set(Restart, "max-entries", spool.max_entries.to_string())
            .set(
                Restart,
                "max-bytes-per-recipient",
                text(&format_bytes(spool.max_bytes_per_recipient)),
            )
            .set(
                Restart,
                "max-entries-per-recipient",
                spool.max_entries_per_recipient.to_string(),
            )
            .set(AtOnce, "default-expiry", time(spool.default_expiry))
            .set(AtOnce, "results-retention", time(spool.results_retention))
            .set(
                AtOnce,
                "results-max-bytes",
                text(&format_bytes(spool.results_max_bytes)),
            )
            .set(
                AtOnce,
                "results-max-entries",
                spool.results_max_entries.to_string(),
            )
            .set(
                AtOnce,
                "dead-letter-retention",
                time(spool.dead_letter_retention),
            ),
        Block::new("log").set(AtOnce, "level", text(log.level.as_str())),
        Block::new("shutdown").set(AtOnce, "drain-timeout", time(shutdown.drain_timeout)),
    ]);
    blocks
}

/// One block for each rule.
fn rule_blocks(rules: &Rules) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut push = |kind: &str, index: usize, mut block: Block| {
        block.name = kind.to_owned();
        block.index = Some(index);
        blocks.push(block);
    };
    let patterns = |list: &[Pattern]| texts(list.iter().map(Pattern::as_str));
    let people =
        |list: &[Principal]| (!list.is_empty()).then(|| texts(list.iter().map(Principal::written)));
    for (index, Rule { whom, says, .. }) in rules.allow.iter().enumerate() {
        let block = Block::new("")
            .set(AtOnce, "from", patterns(&whom.from))
            .set(AtOnce, "directive", patterns(&whom.directive))
            .set(AtOnce, "deny", (!says).to_string());
        push("allow", index, block);
    }
    for (index, Rule { whom, says, .. }) in rules.link.iter().enumerate() {
        let block = Block::new("")
            .set(AtOnce, "node", patterns(&whom.node))
            .set(AtOnce, "deny", (!says).to_string());
        push("allow-link", index, block);
    }
    for (index, Rule { whom, says, .. }) in rules.transit.iter().enumerate() {
        let block = Block::new("")
            .set(AtOnce, "from", patterns(&whom.from))
            .set(AtOnce, "to", patterns(&whom.to))
            .set(AtOnce, "deny", (!says).to_string());
        push("allow-transit", index, block);
    }
    for (index, Rule { whom, says, .. }) in rules.control.iter().enumerate() {
        let block = Block::new("")
            .set(AtOnce, "user", people(&whom.user))
            .set(AtOnce, "group", people(&whom.group))
            .set(AtOnce, "may", text(says.as_str()));
        push("allow-control", index, block);
    }
    blocks
}

fn texts<'a>(list: impl Iterator<Item = &'a str>) -> String {
    let quoted: Vec<String> = list.map(text).collect();
    format!("[{}]", quoted.join(", "))
}

fn link_block(name: &str, index: usize, url: &str, cost: u32, allow_plaintext: bool) -> Block {
    let mut block = Block::new(name)
        .set(AtOnce, "url", text(url))
        .set(AtOnce, "cost", cost.to_string())
        .set(AtOnce, "allow-plaintext", allow_plaintext.to_string());
    block.index = Some(index);
    block
}

fn fingerprints(pinned: &[Fingerprint]) -> Option<String> {
    let texts: Vec<String> = pinned.iter().map(|pin| text(&pin.to_string())).collect();
    (!texts.is_empty()).then(|| format!("[{}]", texts.join(", ")))
}

fn path(value: &std::path::Path) -> String {
    // Paths come from UTF-8 text, so nothing is lost.
    text(&value.to_string_lossy())
}

fn time(value: std::time::Duration) -> String {
    text(&format_duration(value))
}

/// A key as TOML wants it: bare when it may be.
fn key(key: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
    if !key.is_empty() && key.chars().all(bare) {
        key.to_owned()
    } else {
        text(key)
    }
}

/// JSON in TOML, on one line.
fn json(value: &Json) -> String {
    match value {
        // Cannot be: it came from TOML, which has no null.
        Json::Null => text(""),
        Json::Bool(value) => value.to_string(),
        Json::Number(number) => number.to_string(),
        Json::String(value) => text(value),
        Json::Array(items) => {
            format!(
                "[{}]",
                items.iter().map(json).collect::<Vec<_>>().join(", ")
            )
        }
        Json::Object(table) => {
            let pair = |(name, value): (&String, _)| format!("{} = {}", key(name), json(value));
            format!(
                "{{ {} }}",
                table.iter().map(pair).collect::<Vec<_>>().join(", ")
            )
        }
    }
}

/// What happens without a value that has no default.
fn unset(key: &str) -> &'static str {
    match key {
        "tls.crl" => "no certificate is revoked",
        "tls.pinned" => "every certificate from the authorities in ca is believed",
        "node-id" => "a name is made up at the first start and kept in the data directory",
        "control.group" => {
            "the socket belongs to the group receptor where there is one, else to that of the daemon"
        }
        _ => "nothing",
    }
}

impl Loaded {
    /// The configuration in force as TOML, each value with its origin in a comment.
    #[must_use]
    pub fn print(&self) -> String {
        let mut out = String::new();
        for block in blocks(&self.settings) {
            self.print_block(&block, &mut out);
        }
        out
    }

    fn print_block(&self, block: &Block, out: &mut String) {
        if !block.name.is_empty() {
            let brackets = if block.index.is_some() {
                ("[[", "]]")
            } else {
                ("[", "]")
            };
            out.push_str(&format!("\n{}{}{}\n", brackets.0, block.name, brackets.1));
        }
        let place = block.path();
        for Line {
            key: name,
            value,
            confidential,
            ..
        } in &block.lines
        {
            let full = if place.is_empty() {
                name.clone()
            } else {
                format!("{place}.{name}")
            };
            let source = self
                .origins
                .get(&full)
                .map_or_else(|| "default".to_owned(), ToString::to_string);
            let line = match value {
                Some(_) if *confidential => {
                    format!("# {} is set and not shown  # {source}\n", key(name))
                }
                Some(value) => format!("{} = {value}  # {source}\n", key(name)),
                None => format!("# {} is not set: {}\n", key(name), unset(&full)),
            };
            out.push_str(&line);
        }
    }
}

impl Settings {
    /// What differs, key by key, and what it takes for each change to be in force. The
    /// blocks of `listen`, `peer` and each kind of rule are compared as one list each.
    #[must_use]
    pub fn diff(old: &Self, new: &Self) -> Vec<Change> {
        let (old, new) = (flat(old), flat(new));
        let mut changes = Vec::new();
        for (key, before, apply) in &old {
            let after = new.iter().find(|(other, ..)| other == key);
            let after = after.map_or("", |(_, value, _)| value.as_str());
            if before != after {
                changes.push(Change {
                    key: key.clone(),
                    old: before.clone(),
                    new: after.to_owned(),
                    apply: *apply,
                });
            }
        }
        for (key, after, apply) in new {
            if !after.is_empty() && !old.iter().any(|(other, ..)| *other == key) {
                changes.push(Change {
                    key,
                    old: String::new(),
                    new: after,
                    apply,
                });
            }
        }
        changes
    }
}

/// Every key with its value; lists of blocks as one value each.
fn flat(settings: &Settings) -> Vec<(String, String, Apply)> {
    let mut flat: Vec<(String, String, Apply)> = Vec::new();
    for block in blocks(settings) {
        if block.index.is_none() {
            for Line {
                key, value, apply, ..
            } in block.lines
            {
                let key = if block.name.is_empty() {
                    key
                } else {
                    format!("{}.{key}", block.name)
                };
                flat.push((key, value.unwrap_or_default(), apply));
            }
            continue;
        }
        let mut value = String::new();
        for (index, line) in block.lines.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            // Writing to a string cannot fail.
            let _ = write!(
                value,
                "{comma}{} = {}",
                line.key,
                line.value.as_deref().unwrap_or("")
            );
        }
        match flat.iter_mut().find(|(key, ..)| *key == block.name) {
            Some((_, list, _)) => list.push_str(&format!(", {{ {value} }}")),
            None => flat.push((block.name, format!("{{ {value} }}"), AtOnce)),
        }
    }
    flat
}
