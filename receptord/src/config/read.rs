//! From the merged table to [`Settings`].
//!
//! Owns which keys exist, the built-in defaults with their reasons, the limits of each
//! value, and what has to fit together. Problems are reported and reading goes on with the
//! default, so that one run tells all of them.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use receptor_identity::Fingerprint;
use receptor_proto::directive::is_plugin_name;
use receptor_proto::lsa::{COST_MAX, METADATA_MAX, TEXT_MAX};
use receptor_proto::plugin;
use serde_json::{Map, Value as Json};

use super::environment::Environment;
use super::error::Problem;
use super::fragment::{Item, Source, Table, Value};
use super::rules;
use super::section::{Report, Section};
use super::settings::{
    Control, Link, Listen, Log, Peer, Plugin, Plugins, Routing, Security, Settings, Shutdown,
    Spool, TLS_DIR, Tls, TlsFile, WORKER_SOCKETS,
};
use super::units;
use super::url::{LinkUrl, MAX_UNIX_PATH};

const DATA_DIR: &str = "/var/lib/receptor";
const RUNTIME_DIR: &str = "/run/receptor";
const SOCKET_NAME: &str = "receptord.sock";

/// Links that can be configured at most; each holds a descriptor.
pub const MAX_LINKS: u32 = 65_536;

/// Listeners, peers and rules of each kind. A hub is *listened to* by thousands of nodes;
/// thousands of outgoing links from one node are a mistake.
pub(super) const MAX_BLOCKS: usize = 1000;
/// Configured plugin directories; each is watched and searched.
const MAX_PLUGIN_DIRS: usize = 32;
/// Bytes of JSON of one plugin's table: half of the hello that carries it.
const MAX_PLUGIN_CONFIG: usize = plugin::MAX_HELLO / 2;
/// Pinned certificates: one for each node of a large mesh.
const MAX_PINNED: usize = 10_000;
/// Headers sent with a web socket's request, which servers limit to about a hundred in all.
const MAX_HEADERS: usize = 32;
/// Bytes of the name and the value of one, which servers limit to 8 KiB in all.
const MAX_HEADER: usize = 4096;
/// A single address may have so many links whatever the limit in all: many nodes behind one address translation
/// are common.
const PER_SOURCE_MIN: u32 = 64;
/// Otherwise one address may have this part of all links.
const PER_SOURCE_PART: u32 = 4;

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Reads the merged configuration. Problems go to `report`; then what is returned is not
/// to be used.
pub(super) fn read(table: Table, env: &Environment, report: &mut Report) -> Settings {
    let mut root = Section::root(table);
    let r = report;

    let node_id = root.text(r, "node-id", |text| text.parse().map_err(describe));
    let data_dir = root.text(r, "data-dir", absolute).unwrap_or_else(|| {
        moved_default(
            r,
            "data-dir",
            env,
            "STATE_DIRECTORY",
            "$STATE_DIRECTORY",
            DATA_DIR,
        )
    });
    let router = root.boolean(r, "router", true);
    let listen = read_listen(&mut root, r);
    let peer = read_peer(&mut root, r);
    let tls = read_tls(&mut root, env, r);
    check_tls(&listen, &peer, tls.as_ref(), r);
    let settings = Settings {
        node_id,
        data_dir,
        router,
        listen,
        peer,
        tls,
        security: read_security(&mut root, r),
        link: read_link(&mut root, r),
        routing: read_routing(&mut root, r),
        control: read_control(&mut root, env, r),
        capabilities: read_capabilities(&mut root, r),
        plugins: read_plugins(&mut root, r),
        rules: Arc::new(rules::read(&mut root, r)),
        spool: read_spool(&mut root, r),
        log: read_log(&mut root, r),
        shutdown: read_shutdown(&mut root, r),
    };
    check_mode(&settings, r);
    root.finish(r);
    r.tell_unknown();
    settings
}

fn describe(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn absolute(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if !path.is_absolute() || text.contains('\0') {
        return Err("expected an absolute path".to_owned());
    }
    Ok(path)
}

/// A default that the service manager can move.
fn moved_default(
    report: &mut Report,
    key: &str,
    env: &Environment,
    variable: &str,
    reason: &'static str,
    builtin: &str,
) -> PathBuf {
    match env.directory(variable) {
        Some(directory) => {
            report
                .origins
                .insert(key.to_owned(), Source::Default(Some(reason)));
            directory.into()
        }
        None => builtin.into(),
    }
}

fn read_listen(root: &mut Section, r: &mut Report) -> Vec<Listen> {
    const EXPECTED: &str = "expected url = \"rnps://[::]:8899\" or the like";
    let mut listeners: Vec<Listen> = Vec::new();
    for mut block in root.blocks(r, "listen", MAX_BLOCKS) {
        let url = block.required(r, "url", EXPECTED, LinkUrl::parse_listen);
        let cost = block.integer(r, "cost", DEFAULT_COST, 1..=COST_MAX);
        let allow_plaintext = block.boolean(r, "allow-plaintext", false);
        if let Some(url) = url {
            let key = block.key("url");
            check_exposed(&url, allow_plaintext, &key, r);
            if listeners.iter().any(|other| other.url == url) {
                r.refuse(
                    &key,
                    format!("\"{url}\": is already listened at by another block"),
                );
            }
            listeners.push(Listen {
                url,
                cost,
                allow_plaintext,
            });
        }
        block.finish(r);
    }
    listeners
}

fn read_peer(root: &mut Section, r: &mut Report) -> Vec<Peer> {
    const EXPECTED: &str = "expected url = \"rnps://relay.example.com:8899\" or the like";
    let mut peers: Vec<Peer> = Vec::new();
    for mut block in root.blocks(r, "peer", MAX_BLOCKS) {
        let url = block.required(r, "url", EXPECTED, LinkUrl::parse_peer);
        let cost = block.integer(r, "cost", DEFAULT_COST, 1..=COST_MAX);
        let allow_plaintext = block.boolean(r, "allow-plaintext", false);
        if let Some(url) = url {
            let key = block.key("url");
            check_exposed(&url, allow_plaintext, &key, r);
            if peers.iter().any(|other| other.url == url) {
                r.refuse(
                    &key,
                    format!("\"{url}\": is already the peer of another block"),
                );
            }
            let headers = read_headers(&mut block, &url, r);
            peers.push(Peer {
                url,
                cost,
                allow_plaintext,
                headers,
            });
        }
        block.finish(r);
    }
    peers
}

fn read_headers(block: &mut Section, url: &LinkUrl, r: &mut Report) -> BTreeMap<String, String> {
    let mut headers = BTreeMap::new();
    let Some(mut section) = block.optional_section(r, "headers") else {
        return headers;
    };
    let key = block.key("headers");
    let mut refuse = |key: &str, source: Source, message: String| {
        r.problems.push(Problem::new(source, key, message));
    };
    if !matches!(url, LinkUrl::WebSocket { .. }) {
        let message =
            format!("\"{url}\" has no request to send them with: expected ws:// or wss://");
        refuse(&key, section.source().clone(), message);
    }
    let items = section.remaining();
    if items.len() > MAX_HEADERS {
        let message = format!(
            "has {} headers: expected at most {MAX_HEADERS}",
            items.len()
        );
        refuse(&key, section.source().clone(), message);
        return headers;
    }
    for (name, item) in items {
        let full = section.key(&name);
        // Values may be confidential: no message says one.
        let Some(value) = item.value.as_text() else {
            refuse(&full, item.source, "expected text in quotes".to_owned());
            continue;
        };
        match check_header(&name, value) {
            Ok(()) => drop(headers.insert(name, value.to_owned())),
            Err(expected) => refuse(&full, item.source, expected),
        }
    }
    r.origins.insert(key, section.source().clone());
    headers
}

fn check_header(name: &str, value: &str) -> Result<(), String> {
    /// What makes the request one for a web socket.
    const OWN: [&str; 4] = ["connection", "host", "upgrade", "origin"];
    let token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    if name.is_empty() || !name.chars().all(token) {
        return Err("expected the name of an HTTP header, such as X-Tenant".to_owned());
    }
    let lower = name.to_ascii_lowercase();
    if OWN.contains(&lower.as_str()) || lower.starts_with("sec-websocket-") {
        return Err("is a header that receptord itself sends, or must not send".to_owned());
    }
    let printable = |c: char| c == ' ' || c.is_ascii_graphic();
    if value.len() + name.len() > MAX_HEADER || !value.chars().all(printable) {
        return Err(format!(
            "expected at most {MAX_HEADER} bytes of printable ASCII"
        ));
    }
    Ok(())
}

/// The cost of a link that is not configured: leaves room for better links and for worse ones.
pub const DEFAULT_COST: u32 = 10;

fn check_exposed(url: &LinkUrl, allow_plaintext: bool, key: &str, r: &mut Report) {
    if !url.is_exposed() || allow_plaintext {
        return;
    }
    let encrypted = match url {
        LinkUrl::Tcp { .. } => "rnps",
        LinkUrl::WebSocket { .. } | LinkUrl::Unix(_) => "wss",
    };
    let permit = match r.origin(key) {
        Source::File { .. } => "write allow-plaintext = true in this block",
        Source::Flag(_) | Source::Default(_) => "add --allow-plaintext",
        Source::Environment(_) => "set RECEPTOR_ALLOW_PLAINTEXT=true",
    };
    r.refuse(
        key,
        format!(
            "\"{url}\": could be read and forged by others on the network: use {encrypted}:// with [tls], or, when the network itself is trusted, {permit}"
        ),
    );
}

fn read_tls(root: &mut Section, env: &Environment, r: &mut Report) -> Option<Tls> {
    let mut section = root.optional_section(r, "tls")?;
    let parse = |name: &str| tls_file(name, env);
    let expected = "expected the name of a PEM file";
    let certificate = section.required(r, "certificate", expected, parse);
    let key = section.required(r, "key", expected, parse);
    let ca = section.required(r, "ca", expected, parse);
    let crl = section.text(r, "crl", parse);
    let fingerprint = |text: &str| text.parse::<Fingerprint>().map_err(describe);
    let pinned = section.texts(r, "pinned", MAX_PINNED, fingerprint);
    let is_wrong = r.problems.iter().any(|problem| problem.key == "tls.pinned");
    if !is_wrong && pinned.as_ref().is_some_and(Vec::is_empty) {
        r.refuse("tls.pinned", "is empty: expected the fingerprints of all nodes that links are made to or from; leave it out to believe every certificate from the authorities in ca");
    }
    section.finish(r);
    Some(Tls {
        certificate: certificate?,
        key: key?,
        ca: ca?,
        crl,
        pinned: pinned.unwrap_or_default(),
    })
}

fn tls_file(name: &str, env: &Environment) -> Result<TlsFile, String> {
    let path = Path::new(name);
    let bare = !name.is_empty() && !name.contains(['/', '\0']) && name != "." && name != "..";
    let path = if path.is_absolute() && !name.contains('\0') {
        path.to_owned()
    } else if bare {
        env.directory("CREDENTIALS_DIRECTORY")
            .map(|directory| Path::new(directory).join(name))
            .filter(|path| path.exists())
            .unwrap_or_else(|| match env.directory("CONFIGURATION_DIRECTORY") {
                Some(directory) => Path::new(directory).join("tls").join(name),
                None => Path::new(TLS_DIR).join(name),
            })
    } else {
        return Err(format!(
            "expected an absolute path, or a bare name that is looked up in $CREDENTIALS_DIRECTORY and {TLS_DIR}"
        ));
    };
    Ok(TlsFile {
        name: name.to_owned(),
        path,
    })
}

fn check_tls(listen: &[Listen], peer: &[Peer], tls: Option<&Tls>, r: &mut Report) {
    // A `[tls]` with a problem of its own was reported already.
    if tls.is_some()
        || r.problems
            .iter()
            .any(|problem| problem.key.starts_with("tls"))
    {
        return;
    }
    let listen = listen.iter().map(|listen| &listen.url).enumerate();
    let peer = peer.iter().map(|peer| &peer.url).enumerate();
    let named = listen
        .map(|(index, url)| (format!("listen[{index}].url"), url))
        .chain(peer.map(|(index, url)| (format!("peer[{index}].url"), url)));
    if let Some((key, url)) = named.into_iter().find(|(_, url)| url.is_tls()) {
        r.refuse(
            &key,
            format!("\"{url}\": TLS needs a [tls] table with certificate, key and ca"),
        );
    }
}

fn read_link(root: &mut Section, r: &mut Report) -> Link {
    const PAUSE: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(3600);
    let mut section = root.section(r, "link");
    let max_links = section.integer(r, "max-links", 4096, 1..=MAX_LINKS);
    let per_source = PER_SOURCE_MIN.max(max_links / PER_SOURCE_PART);
    let link = Link {
        // Four lost hellos. Shorter finds dead links sooner and is fooled by short stalls.
        hold_time: section.duration(
            r,
            "hold-time",
            4 * SECOND,
            &(Duration::from_millis(400)..=300 * SECOND),
        ),
        // A peer that restarts is back within half a second, and found soon after.
        reconnect_min: section.duration(r, "reconnect-min", SECOND / 40, &PAUSE),
        reconnect_max: section.duration(r, "reconnect-max", 30 * SECOND, &PAUSE),
        connect_timeout: section.duration(
            r,
            "connect-timeout",
            10 * SECOND,
            &(SECOND / 10..=300 * SECOND),
        ),
        max_links,
        max_links_per_source: section
            .optional_integer(r, "max-links-per-source", 1..=MAX_LINKS)
            .unwrap_or_else(|| per_source.min(max_links)),
    };
    if link.max_links_per_source > link.max_links {
        r.refuse(
            "link.max-links-per-source",
            format!(
                "{}: expected no more than link.max-links, which is {}",
                link.max_links_per_source, link.max_links
            ),
        );
    }
    if link.reconnect_min > link.reconnect_max {
        r.refuse(
            "link.reconnect-min",
            format!(
                "\"{}\": expected no more than link.reconnect-max, which is \"{}\"",
                units::format_duration(link.reconnect_min),
                units::format_duration(link.reconnect_max)
            ),
        );
    }
    section.finish(r);
    link
}

fn read_routing(root: &mut Section, r: &mut Report) -> Routing {
    let mut section = root.section(r, "routing");
    let routing = Routing {
        hop_limit: section.integer(r, "hop-limit", 30, 1..=255),
        // Long enough for a reboot, short enough that hosts that are gone for good go.
        dead_node_retention: section.duration(
            r,
            "dead-node-retention",
            600 * SECOND,
            &(10 * SECOND..=30 * DAY),
        ),
    };
    section.finish(r);
    routing
}

/// A socket for everybody is for those whom the rules name, if there are any.
fn check_mode(settings: &Settings, r: &mut Report) {
    let mode = settings.control.mode;
    if mode & 0o002 != 0 && settings.rules.control.is_empty() {
        let mode = units::format_mode(mode);
        let message = format!("\"{mode}\": lets every user of this host command the node");
        let key = "control.mode";
        r.warnings.push(Problem::new(r.origin(key), key, message));
    }
}

fn read_control(root: &mut Section, env: &Environment, r: &mut Report) -> Control {
    let mut section = root.section(r, "control");
    let socket_path = section
        .text(r, "socket-path", socket_path)
        .unwrap_or_else(|| {
            let key = "control.socket-path";
            moved_default(
                r,
                key,
                env,
                "RUNTIME_DIRECTORY",
                "$RUNTIME_DIRECTORY",
                RUNTIME_DIR,
            )
            .join(SOCKET_NAME)
        });
    if socket_path.as_os_str().len() > MAX_UNIX_PATH {
        // The service manager's directory alone can be too long.
        r.refuse(
            "control.socket-path",
            format!(
                "\"{}\": expected at most {MAX_UNIX_PATH} bytes, all that a socket can have",
                socket_path.display()
            ),
        );
    }
    let max_clients = section.integer(r, "max-clients", 1024, 1..=65_536);
    let control = Control {
        enabled: section.boolean(r, "enabled", true),
        socket_path,
        group: section.text(r, "group", group),
        mode: section
            .get(r, "mode", |value| {
                units::parse_mode(value.as_text().unwrap_or_default())
            })
            .unwrap_or(0o660),
        max_clients,
        // One program that leaks connections must not lock the administrator out.
        max_clients_per_user: section
            .optional_integer(r, "max-clients-per-user", 1..=65_536)
            .unwrap_or_else(|| max_clients.div_ceil(2)),
    };
    if control.max_clients_per_user > control.max_clients {
        r.refuse(
            "control.max-clients-per-user",
            format!(
                "{}: expected no more than control.max-clients, which is {}",
                control.max_clients_per_user, control.max_clients
            ),
        );
    }
    section.finish(r);
    control
}

fn socket_path(text: &str) -> Result<PathBuf, String> {
    if text.len() > MAX_UNIX_PATH {
        return Err(format!(
            "expected at most {MAX_UNIX_PATH} bytes, all that a socket can have"
        ));
    }
    absolute(text)
}

fn group(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_graphic() && !":,/".contains(c);
    if text.is_empty() || text.len() > 256 || !text.chars().all(fits) {
        return Err("expected the name or number of a group".to_owned());
    }
    Ok(text.to_owned())
}

fn read_capabilities(root: &mut Section, r: &mut Report) -> BTreeMap<String, String> {
    let mut section = root.section(r, "capabilities");
    let mut capabilities = BTreeMap::new();
    let items = section.remaining();
    if items.len() > METADATA_MAX {
        let source = section.source().clone();
        let message = format!("has {} keys: expected at most {METADATA_MAX}", items.len());
        r.problems
            .push(Problem::new(source, "capabilities", message));
        return capabilities;
    }
    for (key, item) in items {
        let full = section.key(&key);
        let value = match &item.value {
            Value::String(text) => Some(text.clone()),
            Value::Integer(number) => Some(number.to_string()),
            Value::Float(number) => Some(number.to_string()),
            Value::Boolean(value) => Some(value.to_string()),
            Value::Datetime(text) => Some(text.clone()),
            Value::Array(_) | Value::Table(_) => None,
        };
        let fits = |text: &str| text.len() <= TEXT_MAX && !text.contains(char::is_control);
        // `--where KEY=VALUE` is split at the first `=`.
        match value {
            Some(value) if fits(&value) && fits(&key) && !key.is_empty() && !key.contains('=') => {
                r.origins.insert(full, item.source);
                capabilities.insert(key, value);
            }
            Some(_) | None => {
                let message = format!(
                    "{}: expected one line of text or a number, key and value of at most {TEXT_MAX} bytes, no = in the key",
                    item.value.quoted()
                );
                r.problems.push(Problem::new(item.source, full, message));
            }
        }
    }
    capabilities
}

fn read_plugins(root: &mut Section, r: &mut Report) -> Plugins {
    let grace = SECOND / 10..=3600 * SECOND;
    let mut section = root.section(r, "plugins");
    let mut plugins = Plugins {
        dirs: section
            .texts(r, "dirs", MAX_PLUGIN_DIRS, absolute)
            .unwrap_or_default(),
        max_works: section.integer(r, "max-works", 8, 1..=plugin::MAX_JOBS),
        hello_timeout: section.duration(r, "hello-timeout", plugin::HELLO_TIMEOUT, &grace),
        cancel_grace: section.duration(r, "cancel-grace", plugin::CANCEL_GRACE, &grace),
        allow_unsafe: section.boolean(r, "allow-unsafe", false),
        worker_sockets: section
            .text(r, "worker-sockets", absolute)
            .unwrap_or_else(|| PathBuf::from(WORKER_SOCKETS)),
        plugin: BTreeMap::new(),
    };
    for (name, table) in section.remaining_sections(r) {
        if !is_plugin_name(&name) {
            let message =
                "is no plugin name: expected a lower-case letter, then up to 63 of a-z 0-9 _ -";
            r.problems.push(Problem::new(
                table.source().clone(),
                section.key(&name),
                message,
            ));
            continue;
        }
        if let Some(plugin) = read_plugin(table, r) {
            plugins.plugin.insert(name, plugin);
        }
    }
    section.finish(r);
    plugins
}

fn read_plugin(mut section: Section, r: &mut Report) -> Option<Plugin> {
    let whole = Value::Table(section.snapshot());
    let name = section.key("");
    let name = name.trim_end_matches('.');
    let time = SECOND / 10..=365 * DAY;
    let size = 1..=1024 * 1024 * GIB;
    let plugin = Plugin {
        timeout: section.optional_duration(r, "timeout", &time),
        idle_timeout: section.optional_duration(r, "idle-timeout", &time),
        max_works: section.optional_integer(r, "max-works", 1..=plugin::MAX_JOBS),
        max_results: section.optional_bytes(r, "max-results", &size),
        max_memory: section.optional_bytes(r, "max-memory", &(MIB..=*size.end())),
        max_file_size: section.optional_bytes(r, "max-file-size", &size),
        max_open_files: section.optional_integer(r, "max-open-files", 16..=1 << 30),
        max_processes: section.optional_integer(r, "max-processes", 1..=1 << 22),
        new_privileges: section.boolean(r, "new-privileges", false),
        config: Map::new(),
    };
    let mut refuse = |message: String| {
        r.problems
            .push(Problem::new(section.source().clone(), name, message));
    };
    let Some(Json::Object(config)) = json(&whole) else {
        refuse("holds nan or inf, which plugins cannot be told in JSON".to_owned());
        return None;
    };
    let length = serde_json::to_vec(&config).map_or(usize::MAX, |text| text.len());
    if length > MAX_PLUGIN_CONFIG {
        refuse(format!(
            "is {length} bytes of JSON: expected at most {MAX_PLUGIN_CONFIG}"
        ));
        return None;
    }
    // The plugin's own keys have their origin, too.
    for (key, item) in section.remaining() {
        r.origins.insert(section.key(&key), item.source);
    }
    Some(Plugin { config, ..plugin })
}

/// A value as JSON; `None` when it holds a number that JSON cannot say.
fn json(value: &Value) -> Option<Json> {
    Some(match value {
        Value::String(text) | Value::Datetime(text) => Json::String(text.clone()),
        Value::Integer(number) => Json::from(*number),
        Value::Float(number) => Json::Number(serde_json::Number::from_f64(*number)?),
        Value::Boolean(value) => Json::Bool(*value),
        Value::Array(items) => Json::Array(
            items
                .iter()
                .map(|item| json(&item.value))
                .collect::<Option<_>>()?,
        ),
        Value::Table(table) => {
            let pair = |(key, item): (&String, &Item)| Some((key.clone(), json(&item.value)?));
            Json::Object(table.iter().map(pair).collect::<Option<_>>()?)
        }
    })
}

fn read_spool(root: &mut Section, r: &mut Report) -> Spool {
    let mut section = root.section(r, "spool");
    let spool = Spool {
        max_bytes: section.bytes(r, "max-bytes", 10 * GIB, &(MIB..=1 << 50)),
        max_entries: section.integer(r, "max-entries", 2_000_000, 1..=1_000_000_000),
        max_bytes_per_recipient: section.bytes(
            r,
            "max-bytes-per-recipient",
            5 * GIB,
            &(MIB..=1 << 50),
        ),
        max_entries_per_recipient: section.integer(
            r,
            "max-entries-per-recipient",
            1_200_000,
            1..=1_000_000_000,
        ),
        default_expiry: section.duration(r, "default-expiry", DAY, &(SECOND..=365 * DAY)),
        results_retention: section.duration(r, "results-retention", DAY, &(SECOND..=365 * DAY)),
        results_max_bytes: section.bytes(r, "results-max-bytes", GIB, &(MIB..=1 << 50)),
        results_max_entries: section.integer(r, "results-max-entries", 10_000, 1..=1_000_000),
        dead_letter_retention: section.duration(
            r,
            "dead-letter-retention",
            7 * DAY,
            &(SECOND..=365 * DAY),
        ),
    };
    section.finish(r);
    spool
}

fn read_log(root: &mut Section, r: &mut Report) -> Log {
    let mut section = root.section(r, "log");
    let level = section.text(r, "level", str::parse).unwrap_or_default();
    section.finish(r);
    Log { level }
}

fn read_security(root: &mut Section, r: &mut Report) -> Security {
    let mut section = root.section(r, "security");
    let seal = section.boolean(r, "seal", true);
    section.finish(r);
    Security { seal }
}

fn read_shutdown(root: &mut Section, r: &mut Report) -> Shutdown {
    let mut section = root.section(r, "shutdown");
    // Well below the 90 s after which systemd kills.
    let drain_timeout = section.duration(
        r,
        "drain-timeout",
        30 * SECOND,
        &(Duration::ZERO..=3600 * SECOND),
    );
    section.finish(r);
    Shutdown { drain_timeout }
}
