//! The layers of the configuration, from the weakest to the strongest, as one table.
//!
//! Owns which files are read and how layers combine. Never judges a value: a key that
//! nobody knows passes through to `read`, which reports it with its line.
//!
//! ```text
//! main file         /etc/receptor/receptord.toml, or --config FILE
//! drop-ins          receptord.toml.d/*.toml in /usr/lib/receptor, /run/receptor and
//!                   /etc/receptor, or FILE.d/*.toml: in the order of their names, and of
//!                   one name only the file in /etc, else /run, else /usr/lib
//!                   (another $CONFIGURATION_DIRECTORY takes the place of /etc/receptor, and
//!                   if it is below /etc, those of the same name that of the two others)
//! environment       RECEPTOR_*
//! command line
//! ```
//!
//! A later value replaces an earlier one, also when it is a list. Tables combine key by
//! key. `[[listen]]`, `[[peer]]` and the rules' blocks, `[[allow]]` and its like, add up over the files, those
//! of the main file first; a block with
//! the URL of one in an earlier file changes that one. Listeners or peers from the
//! environment replace all of those from files, and those from the command line replace
//! both: who runs a second daemon by hand does not want the installed one's ports.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::environment::{Environment, VARIABLES, list};
use super::error::{Problem, did_you_mean};
use super::fragment::{self, Item, Source, Table, Value, quote};
use super::url::LinkUrl;
use crate::cli::{Cli, Role};
use crate::policy::KINDS;

/// The main configuration file when `--config` names no other.
pub const DEFAULT_FILE: &str = "/etc/receptor/receptord.toml";

/// Name of the main configuration file, and without `.d` of the directories of its drop-ins.
const FILE_NAME: &str = "receptord.toml";

/// What has a directory for drop-ins of a file below `/etc`; of one name the last wins.
const LAYERS: [&str; 3] = ["/usr/lib", "/run", "/etc"];

/// Drop-ins read at most. Each costs an open at every start and reload.
const MAX_DROP_INS: usize = 1000;

/// Top-level lists of blocks, which add up over files.
const BLOCKS: [&str; 6] = ["listen", "peer", KINDS[0], KINDS[1], KINDS[2], KINDS[3]];

/// All layers as one table.
pub(super) struct Merged {
    pub(super) table: Table,
    /// Files that were read, in the order they were applied.
    pub(super) files: Vec<PathBuf>,
    /// Worth telling, but no reason not to start.
    pub(super) warnings: Vec<Problem>,
}

/// Reads every layer. Files that cannot be read or parsed go to `problems`.
pub(super) fn merge(cli: &Cli, env: &Environment, problems: &mut Vec<Problem>) -> Merged {
    let mut merged = Merged {
        table: Table::new(),
        files: Vec::new(),
        warnings: Vec::new(),
    };
    for file in find_files(cli, env, problems) {
        let fragment = fragment::read(&below(cli.root.as_deref(), &file), &file, problems);
        apply_file(&mut merged.table, fragment);
        merged.files.push(file);
    }
    apply_environment(&mut merged, env, problems);
    apply_flags(&mut merged.table, cli);
    apply_plaintext(&mut merged, cli, env, problems);
    apply_role(&mut merged.table, cli.role);
    merged
}

/// The files to read, the main one first.
fn find_files(cli: &Cli, env: &Environment, problems: &mut Vec<Problem>) -> Vec<PathBuf> {
    let root = cli.root.as_deref();
    let chosen = cli
        .config
        .clone()
        .or_else(|| env.get("RECEPTOR_CONFIG").map(PathBuf::from));
    let (main, directories) = match chosen {
        Some(file) => {
            let mut directory = OsString::from(&file);
            directory.push(".d");
            (Some(file), vec![PathBuf::from(directory)])
        }
        None => {
            let (main, directories) = standard_places(env);
            // Only a file that was asked for has to be there. Any other difficulty with
            // the default one is reported when it is read.
            let absent = fs::symlink_metadata(below(root, &main))
                .is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
            ((!absent).then_some(main), directories)
        }
    };

    let mut drop_ins = BTreeMap::new();
    for directory in directories {
        match drop_in_names(&below(root, &directory)) {
            Ok(names) => drop_ins.extend(
                names
                    .into_iter()
                    .map(|name| (name.clone(), directory.join(name))),
            ),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                let message = format!("cannot be read: {error}");
                problems.push(Problem::new(Source::file(&directory), "", message));
            }
        }
    }
    // A mask takes the place of the files with its name, and is then left out itself.
    let unmasked = drop_ins.into_values().filter(|file| {
        fs::read_link(below(root, file)).map_or(true, |target| target != Path::new("/dev/null"))
    });
    main.into_iter().chain(unmasked).collect()
}

/// The main file and the directories of drop-ins, the weakest first, when none was chosen.
fn standard_places(env: &Environment) -> (PathBuf, Vec<PathBuf>) {
    let main = match env.directory("CONFIGURATION_DIRECTORY") {
        Some(directory) => Path::new(directory).join(FILE_NAME),
        None => PathBuf::from(DEFAULT_FILE),
    };
    let mut drop_ins = OsString::from(&main);
    drop_ins.push(".d");
    let drop_ins = PathBuf::from(drop_ins);
    let directories = match drop_ins.strip_prefix("/etc") {
        Ok(below) => LAYERS.map(|layer| Path::new(layer).join(below)).to_vec(),
        Err(_) => vec![drop_ins],
    };
    (main, directories)
}

fn drop_in_names(directory: &Path) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        // Editors leave hidden files behind; other endings are backups and the like.
        let hidden = name.as_encoded_bytes().starts_with(b".");
        if !hidden
            && Path::new(&name)
                .extension()
                .is_some_and(|extension| extension == "toml")
        {
            names.push(name);
        }
        if names.len() > MAX_DROP_INS {
            return Err(io::Error::other(format!("more than {MAX_DROP_INS} files")));
        }
    }
    Ok(names)
}

/// The place of an absolute path below `--root`.
fn below(root: Option<&Path>, path: &Path) -> PathBuf {
    match (root, path.strip_prefix("/")) {
        (Some(root), Ok(relative)) => root.join(relative),
        (Some(_), Err(_)) | (None, _) => path.to_owned(),
    }
}

fn apply_file(table: &mut Table, fragment: Table) {
    for (key, item) in fragment {
        match (table.get_mut(&key), item) {
            (
                Some(Item {
                    value: Value::Array(blocks),
                    ..
                }),
                Item {
                    value: Value::Array(more),
                    ..
                },
            ) if BLOCKS.contains(&key.as_str()) => add_blocks(blocks, more),
            (_, item) => overlay(table, key, item),
        }
    }
}

/// Adds blocks of a later file to those of the earlier ones.
fn add_blocks(blocks: &mut Vec<Item>, more: Vec<Item>) {
    let earlier = blocks.len();
    for block in more {
        let url = block_url(&block);
        let same = blocks[..earlier]
            .iter_mut()
            .find(|old| url.is_some() && block_url(old) == url);
        match (same, block) {
            (
                Some(Item {
                    value: Value::Table(old),
                    source,
                }),
                Item {
                    value: Value::Table(new),
                    source: new_source,
                },
            ) => {
                *source = new_source;
                old.extend(new);
            }
            (_, block) => blocks.push(block),
        }
    }
}

/// The URL of a `[[listen]]` or `[[peer]]` block, in the form in which two can be compared.
fn block_url(block: &Item) -> Option<LinkUrl> {
    let url = &block.value.as_table()?.get("url")?.value;
    url.as_text()?.parse().ok()
}

/// Puts a value over an earlier one: tables combine, anything else is replaced.
fn overlay(table: &mut Table, key: String, item: Item) {
    match (table.get_mut(&key), item) {
        (
            Some(Item {
                value: Value::Table(old),
                source,
            }),
            Item {
                value: Value::Table(new),
                source: new_source,
            },
        ) => {
            *source = new_source;
            for (key, item) in new {
                overlay(old, key, item);
            }
        }
        (_, item) => drop(table.insert(key, item)),
    }
}

/// Sets `section.key`, or a top-level key when `section` is empty.
fn set(table: &mut Table, section: &str, key: &str, value: Value, source: Source) {
    let item = Item { value, source };
    if section.is_empty() {
        table.insert(key.to_owned(), item);
        return;
    }
    let source = item.source.clone();
    let inner = BTreeMap::from([(key.to_owned(), item)]);
    overlay(
        table,
        section.to_owned(),
        Item {
            value: Value::Table(inner),
            source,
        },
    );
}

fn text(value: &str) -> Value {
    Value::String(value.to_owned())
}

/// A path of the command line or the environment, which may be relative to where the
/// daemon was started; paths in files may not, for they belong to no such place.
fn path(value: &str) -> Value {
    let absolute = std::path::absolute(value)
        .ok()
        .and_then(|path| path.to_str().map(text));
    absolute.unwrap_or_else(|| text(value))
}

/// A block with nothing but a URL.
fn block(url: &str, source: &Source) -> Item {
    let url = Item {
        value: text(url),
        source: source.clone(),
    };
    Item {
        value: Value::Table(BTreeMap::from([("url".to_owned(), url)])),
        source: source.clone(),
    }
}

fn items(values: impl Iterator<Item = Value>, source: &Source) -> Value {
    Value::Array(
        values
            .map(|value| Item {
                value,
                source: source.clone(),
            })
            .collect(),
    )
}

fn apply_environment(merged: &mut Merged, env: &Environment, problems: &mut Vec<Problem>) {
    let table = &mut merged.table;
    let get = |name| {
        env.get(name)
            .map(|value| (value, Source::Environment(name.to_owned())))
    };

    if let Some((value, source)) = get("RECEPTOR_NODE_ID") {
        set(table, "", "node-id", text(value), source);
    }
    if let Some((value, source)) = get("RECEPTOR_DATA_DIR") {
        set(table, "", "data-dir", path(value), source);
    }
    if let Some((value, source)) = switch(env, "RECEPTOR_ROUTER", problems) {
        set(table, "", "router", Value::Boolean(value), source);
    }
    if let Some((value, source)) = get("RECEPTOR_SOCKET_PATH") {
        set(table, "control", "socket-path", path(value), source);
    }
    if let Some((value, source)) = get("RECEPTOR_PLUGINS_DIR") {
        let value = items(list(value).map(path), &source);
        set(table, "plugins", "dirs", value, source);
    }
    if let Some((value, source)) = get("RECEPTOR_LOG_LEVEL") {
        set(table, "log", "level", text(value), source);
    }

    let mut listen = Vec::new();
    if let Some((value, source)) = get("RECEPTOR_LISTEN") {
        listen.extend(list(value).map(|url| block(url, &source)));
    }
    if let Some((value, source)) = get("RECEPTOR_LISTEN_PORT") {
        for port in list(value) {
            match port.parse() {
                Ok(port) => listen.push(block(&LinkUrl::loopback(port).to_string(), &source)),
                Err(_) => {
                    let message = format!("{}: expected ports from 0 to 65535", quote(port));
                    problems.push(Problem::new(source.clone(), "", message));
                }
            }
        }
    }
    replace_blocks(table, "listen", listen);
    if let Some((value, source)) = get("RECEPTOR_PEER") {
        replace_blocks(
            table,
            "peer",
            list(value).map(|url| block(url, &source)).collect(),
        );
    }

    let known = VARIABLES.iter().map(|variable| variable.name);
    for name in env.unknown() {
        let hint = did_you_mean(name, known.clone())
            .map_or_else(String::new, |known| format!("; did you mean {known}?"));
        merged.warnings.push(Problem::new(
            Source::Environment(name.to_owned()),
            "",
            format!("is not a variable that receptord reads{hint}"),
        ));
    }
    for variable in VARIABLES {
        if env.not_text().any(|name| name == variable.name) {
            let source = Source::Environment(variable.name.to_owned());
            problems.push(Problem::new(source, "", "expected UTF-8 text"));
        }
    }
}

/// A variable that is true or false; anything else goes to `problems`.
fn switch(env: &Environment, name: &str, problems: &mut Vec<Problem>) -> Option<(bool, Source)> {
    let value = env.get(name)?;
    let source = Source::Environment(name.to_owned());
    match value.parse() {
        Ok(value) => Some((value, source)),
        Err(_) => {
            let message = format!("{}: expected true or false", quote(value));
            problems.push(Problem::new(source, "", message));
            None
        }
    }
}

/// Lets listeners or peers take the place of all that weaker layers gave.
fn replace_blocks(table: &mut Table, key: &str, blocks: Vec<Item>) {
    if let Some(first) = blocks.first() {
        let source = first.source.clone();
        set(table, "", key, Value::Array(blocks), source);
    }
}

fn apply_flags(table: &mut Table, cli: &Cli) {
    if let Some(node_id) = &cli.node_id {
        set(
            table,
            "",
            "node-id",
            text(node_id.as_str()),
            Source::Flag("--node-id"),
        );
    }
    if let Some(data_dir) = &cli.data_dir {
        set(
            table,
            "",
            "data-dir",
            path(data_dir),
            Source::Flag("--data-dir"),
        );
    }
    if let Some(socket_path) = &cli.socket_path {
        set(
            table,
            "control",
            "socket-path",
            path(socket_path),
            Source::Flag("--socket-path"),
        );
    }
    if !cli.plugins_dir.is_empty() {
        let source = Source::Flag("--plugins-dir");
        let value = items(cli.plugins_dir.iter().map(|dir| path(dir)), &source);
        set(table, "plugins", "dirs", value, source);
    }
    if let Some(level) = &cli.log_level {
        set(
            table,
            "log",
            "level",
            text(level.as_str()),
            Source::Flag("--log-level"),
        );
    }
    let by_url = Source::Flag("--listen");
    let by_port = Source::Flag("--listen-port");
    let listen = cli
        .listen
        .iter()
        .map(|url| block(&url.to_string(), &by_url));
    let ports = cli
        .listen_port
        .iter()
        .map(|port| LinkUrl::loopback(*port).to_string());
    let ports = ports.map(|url| block(&url, &by_port));
    replace_blocks(table, "listen", listen.chain(ports).collect());
    let by_url = Source::Flag("--peer");
    let peers = cli.peer.iter().map(|url| block(&url.to_string(), &by_url));
    replace_blocks(table, "peer", peers.collect());
}

/// Hands `--allow-plaintext` to the listeners and peers that come from no file.
fn apply_plaintext(merged: &mut Merged, cli: &Cli, env: &Environment, problems: &mut Vec<Problem>) {
    let source = if cli.allow_plaintext {
        Source::Flag("--allow-plaintext")
    } else {
        match switch(env, "RECEPTOR_ALLOW_PLAINTEXT", problems) {
            Some((true, source)) => source,
            Some((false, _)) | None => return,
        }
    };
    let mut applied = false;
    for key in ["listen", "peer"] {
        let Some(Item {
            value: Value::Array(blocks),
            ..
        }) = merged.table.get_mut(key)
        else {
            continue;
        };
        for block in blocks {
            if let (Source::Flag(_) | Source::Environment(_), Value::Table(table)) =
                (&block.source, &mut block.value)
            {
                let item = Item {
                    value: Value::Boolean(true),
                    source: source.clone(),
                };
                table.insert("allow-plaintext".to_owned(), item);
                applied = true;
            }
        }
    }
    if !applied {
        merged.warnings.push(Problem::new(
            source,
            "",
            "has no effect: it is for listeners and peers given by flag or environment; in a file, write allow-plaintext = true in the block",
        ));
    }
}

/// What the word `controller` or `node` says about the control socket.
fn apply_role(table: &mut Table, role: Option<Role>) {
    match role {
        Some(Role::Controller) => {
            set(
                table,
                "control",
                "enabled",
                Value::Boolean(true),
                Source::Flag("controller"),
            );
        }
        Some(Role::Node) => {
            let control = table.get("control").and_then(|item| item.value.as_table());
            let asked_for = control.is_some_and(|control| {
                control.contains_key("socket-path") || control.contains_key("enabled")
            });
            if !asked_for {
                set(
                    table,
                    "control",
                    "enabled",
                    Value::Boolean(false),
                    Source::Flag("node"),
                );
            }
        }
        None => {}
    }
}
