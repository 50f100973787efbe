//! Where log events go.
//!
//! Owns the choice of destination and form, and the level, which can change while the
//! daemon runs. Events are fields with values, not prose; payloads, keys and whole
//! configuration values never are among them.
//!
//! | standard error | form |
//! |---|---|
//! | is the journal | native: every field is one of the entry, `RECEPTOR_PEER=` and so on, and `RECEPTOR_NODE=` is this node |
//! | is the journal, its socket cannot be reached | a line with the priority in front: `<4>` |
//! | anything else | a line with the time |
//!
//! Names of fields that mean the same everywhere: `peer`, another node; `work`, the id of a work; `_message`,
//! the id of a message (`message` is the text of an event), which the journal has as `RECEPTOR_MESSAGE`.
//!
//! A line is a line: control characters are escaped, so that nothing that a peer sends can
//! look like an event of its own.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, OnceLock};

use receptor_proto::NodeId;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber, span};
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::format::{Compact, Format, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, reload};

use crate::config::LogLevel;
use crate::systemd;

/// Field that names the kind of an event; its value is one of [`id`].
const MESSAGE_ID: &str = "message_id";

/// Field that names this node, in events before which nobody could know it.
const NODE: &str = "node";

/// Kinds of events that administrators look for, as `MESSAGE_ID=` in the journal:
/// `journalctl MESSAGE_ID=…` shows one kind, whatever its wording.
///
/// `tracing::info!(message_id = log::id::STARTED, node = %node, "serving")`
pub mod id {
    /// The daemon serves.
    pub const STARTED: &str = "91661fee146e4bbc9bb8b9520d681672";
    /// The daemon was asked to stop and drains.
    pub const STOPPING: &str = "ce80ea756fd74ec6bf9ba791789f606b";
    /// A changed configuration is in force.
    pub const RELOADED: &str = "54b941d217db4e27a7b14c05ab85afcc";
    /// A changed configuration was refused; the old one stays in force.
    pub const RELOAD_REFUSED: &str = "fa255e65d123484291fb5fc51c4d748f";
    /// A link is up: two nodes have become neighbors.
    pub const LINK_UP: &str = "d8cb695cbaed42bcb75f201dede90c37";
    /// A link is down.
    pub const LINK_DOWN: &str = "c46a872db0364e1db2a2f81de4a90d72";
    /// A link was refused: no proof of identity, or an incompatible version.
    pub const LINK_REFUSED: &str = "fbe4ac2091424d4590a1eac30f2c6abb";
    /// Two nodes with one id.
    pub const DUPLICATE_NODE: &str = "d4382314fb744c2fafe241e8e855f379";
    /// A message was given up on.
    pub const DEAD_LETTER: &str = "26bb8c2ad3944ff0bacde8c3a50aa5bc";
    /// A plugin is not run; the event says why.
    pub const PLUGIN_REFUSED: &str = "59e2f05c57234333b3d8feb573b38cef";
    /// A client of the control socket was refused: a limit, or no permission.
    pub const CLIENT_REFUSED: &str = "100137028ce44ed9a66f04389d8a95f5";

    /// A message or packet of another node was refused: no rule permits it.
    pub const DENIED: &str = "5c0e6f9be1a94f0c8d21b7d2a3f46e17";

    /// Every kind with its name, for the journal and for tests.
    pub const ALL: &[(&str, &str)] = &[
        ("STARTED", STARTED),
        ("STOPPING", STOPPING),
        ("RELOADED", RELOADED),
        ("RELOAD_REFUSED", RELOAD_REFUSED),
        ("LINK_UP", LINK_UP),
        ("LINK_DOWN", LINK_DOWN),
        ("LINK_REFUSED", LINK_REFUSED),
        ("DUPLICATE_NODE", DUPLICATE_NODE),
        ("DEAD_LETTER", DEAD_LETTER),
        ("PLUGIN_REFUSED", PLUGIN_REFUSED),
        ("CLIENT_REFUSED", CLIENT_REFUSED),
        ("DENIED", DENIED),
    ];
}

/// Changes the level of a running daemon.
#[derive(Clone, Debug)]
pub struct LogHandle {
    filter: reload::Handle<EnvFilter, Registry>,
    node: Arc<OnceLock<Kinds>>,
}

impl LogHandle {
    /// From now on every entry of the journal says which node it is of: a host may have several.
    pub fn name_node(&self, node: &NodeId) {
        // Without a journal nothing was lost.
        if let Ok(kinds) = Kinds::new(Some(node)) {
            let _ = self.node.set(kinds);
        }
    }

    /// Puts a level or directives in force at once.
    ///
    /// # Errors
    ///
    /// In words for the operator: the text is neither. The old level stays.
    pub fn set_level(&self, level: &str) -> Result<(), String> {
        self.set(&level.parse()?);
        Ok(())
    }

    /// Puts a checked level in force at once.
    pub fn set(&self, level: &LogLevel) {
        // Fails only when there is no subscriber left, and then nobody logs.
        let _ = self.filter.reload(level.filter());
    }
}

/// Why logging could not begin.
#[derive(Debug, thiserror::Error)]
#[error("another logger is installed already")]
pub struct LogError;

/// Begins to log, once per process, and sends panics the same way.
///
/// # Errors
///
/// When something else installed a logger before.
pub fn init(level: &LogLevel) -> Result<LogHandle, LogError> {
    let (filter, handle) = reload::Layer::new(level.filter());
    let journal = systemd::stderr_is_journal();
    let node = Arc::default();
    let native = if journal {
        Journal::connect(Arc::clone(&node)).ok()
    } else {
        None
    };
    let lines = native.is_none().then(|| {
        tracing_subscriber::fmt::layer()
            .with_writer(std::io::stderr)
            .with_ansi(false)
            .fmt_fields(Fields)
            .event_format(Line::new(journal))
    });
    tracing_subscriber::registry()
        .with(filter)
        .with(native)
        .with(lines)
        .try_init()
        .map_err(|_| LogError)?;
    std::panic::set_hook(Box::new(|panic| {
        let place = panic
            .location()
            .map(ToString::to_string)
            .unwrap_or_default();
        let payload = panic.payload();
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let message = text
            .or_else(|| payload.downcast_ref().copied())
            .unwrap_or("no message");
        tracing::error!(place, "defect: {message}");
    }));
    Ok(LogHandle {
        filter: handle,
        node,
    })
}

/// The journal's native protocol.
struct Journal {
    /// Until the node has a name.
    nameless: Kinds,
    named: Arc<OnceLock<Kinds>>,
}

impl Journal {
    fn connect(named: Arc<OnceLock<Kinds>>) -> std::io::Result<Self> {
        let nameless = Kinds::new(None)?;
        Ok(Self { nameless, named })
    }
}

/// Writers for each kind of event. `MESSAGE_ID=` and what is the same in all entries are not among our prefixed
/// fields, so each kind has a layer that adds its own as fixed fields. They share the fields of spans.
struct Kinds {
    plain: tracing_journald::Layer,
    by_id: BTreeMap<&'static str, tracing_journald::Layer>,
}

impl fmt::Debug for Kinds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kinds").finish_non_exhaustive()
    }
}

impl Kinds {
    fn new(node: Option<&NodeId>) -> std::io::Result<Self> {
        let layer = |id: Option<&str>| {
            let id = id.map(|id| ("MESSAGE_ID", id));
            let node = node.map(|node| ("RECEPTOR_NODE", node.as_str()));
            let layer = tracing_journald::layer()?
                .with_field_prefix(Some("RECEPTOR".to_owned()))
                .with_syslog_identifier("receptord".to_owned())
                .with_custom_fields(id.into_iter().chain(node))
                .with_priority_mappings(PriorityMappings {
                    error: Priority::Error,
                    warn: Priority::Warning,
                    info: Priority::Informational,
                    debug: Priority::Debug,
                    trace: Priority::Debug,
                });
            Ok::<_, std::io::Error>(layer)
        };
        let mut by_id = BTreeMap::new();
        for (_, id) in id::ALL {
            by_id.insert(*id, layer(Some(id))?);
        }
        Ok(Self {
            plain: layer(None)?,
            by_id,
        })
    }
}

impl<S: Subscriber + for<'span> LookupSpan<'span>> Layer<S> for Journal {
    fn on_new_span(&self, attributes: &span::Attributes<'_>, id: &span::Id, ctx: Context<'_, S>) {
        self.nameless.plain.on_new_span(attributes, id, ctx);
    }

    fn on_record(&self, id: &span::Id, values: &span::Record<'_>, ctx: Context<'_, S>) {
        self.nameless.plain.on_record(id, values, ctx);
    }

    fn on_event(&self, event: &Event<'_>, ctx: Context<'_, S>) {
        let mut kind = Kind(None);
        if event.metadata().fields().field(MESSAGE_ID).is_some() {
            event.record(&mut kind);
        }
        // An event that names the node itself is about this one, too.
        let names_it = event.metadata().fields().field(NODE).is_some();
        let kinds = self.named.get().filter(|_| !names_it);
        let kinds = kinds.unwrap_or(&self.nameless);
        let layer = kind.0.and_then(|id| kinds.by_id.get(id.as_str()));
        layer.unwrap_or(&kinds.plain).on_event(event, ctx);
    }
}

/// Finds the kind of an event.
struct Kind(Option<String>);

impl Visit for Kind {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == MESSAGE_ID {
            self.0 = Some(value.to_owned());
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn fmt::Debug) {}
}

/// One event as one line.
struct Line {
    inner: Format<Compact, ()>,
    /// With the priority in front, as the journal reads it from a stream; it knows the time.
    priority: bool,
}

impl Line {
    fn new(priority: bool) -> Self {
        let inner = tracing_subscriber::fmt::format()
            .compact()
            .without_time()
            .with_target(false)
            .with_level(!priority)
            .with_ansi(false);
        Self { inner, priority }
    }
}

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    N: for<'writer> FormatFields<'writer> + 'static,
{
    fn format_event(
        &self,
        ctx: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut line = String::new();
        self.inner
            .format_event(ctx, Writer::new(&mut line), event)?;
        if self.priority {
            write!(writer, "<{}>", priority(*event.metadata().level()))?;
        } else {
            SystemTime.format_time(&mut writer)?;
            writer.write_char(' ')?;
        }
        for c in line.trim_end().chars() {
            if c.is_control() {
                write!(writer, "{}", c.escape_default())?;
            } else {
                writer.write_char(c)?;
            }
        }
        writer.write_char('\n')
    }
}

/// The number of `syslog(3)`, as in the mapping of [`Journal`].
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        // DEBUG and TRACE; levels are no enum.
        _ => 7,
    }
}

/// The fields of an event or span in a line; its kind is for the journal alone.
struct Fields;

impl<'writer> FormatFields<'writer> for Fields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut visitor = FieldWriter {
            writer,
            first: true,
            result: Ok(()),
        };
        fields.record(&mut visitor);
        visitor.result
    }
}

struct FieldWriter<'writer> {
    writer: Writer<'writer>,
    first: bool,
    result: fmt::Result,
}

impl Visit for FieldWriter<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if self.result.is_err() || field.name() == MESSAGE_ID {
            return;
        }
        let space = if self.first { "" } else { " " };
        self.first = false;
        self.result = match field.name() {
            "message" => write!(self.writer, "{space}{value:?}"),
            name => {
                let name = name.trim_start_matches('_');
                write!(self.writer, "{space}{name}={value:?}")
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::io;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn captured(priority: bool, log: impl FnOnce()) -> String {
        let output = Captured::default();
        let writer = output.clone();
        let layer = tracing_subscriber::fmt::layer()
            .with_writer(move || writer.clone())
            .with_ansi(false)
            .fmt_fields(Fields)
            .event_format(Line::new(priority));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), log);
        let bytes = output.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn lines_of_a_journal_stream_begin_with_their_priority() {
        let text = captured(true, || {
            let _span = tracing::info_span!("link", peer = "node-b").entered();
            tracing::warn!(message_id = id::LINK_DOWN, after = 4, "silent");
            tracing::info!("up");
            tracing::error!("bad");
            tracing::debug!("detail");
        });
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "<4>link: silent after=4 peer=\"node-b\"",
                "<6>link: up peer=\"node-b\"",
                "<3>link: bad peer=\"node-b\"",
                "<7>link: detail peer=\"node-b\"",
            ]
        );
    }

    #[test]
    fn what_a_peer_sends_cannot_look_like_an_event() {
        let text = captured(true, || {
            let name = "x\n<2>forged\x1b[2J";
            tracing::info!(%name, "peer says {name}");
        });
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(!text.contains('\x1b'), "{text}");
    }

    #[test]
    fn lines_for_people_begin_with_the_time() {
        let text = captured(false, || tracing::info!(node = "a", "serving"));
        let (time, rest) = text.split_once(' ').unwrap();
        assert!(time.starts_with("20") && time.ends_with('Z'), "{text}");
        assert_eq!(rest.trim(), "INFO serving node=\"a\"");
    }

    #[test]
    fn every_kind_is_one_of_an_event() {
        fn sources(dir: &std::path::Path, found: &mut String) {
            for entry in std::fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    sources(&path, found);
                } else if path.extension().is_some_and(|e| e == "rs") && !path.ends_with("log.rs") {
                    found.push_str(&std::fs::read_to_string(path).unwrap());
                }
            }
        }
        let mut text = String::new();
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        sources(&root, &mut text);
        for (name, _) in id::ALL {
            assert!(text.contains(&format!("id::{name}")), "nothing logs {name}");
        }
    }

    #[test]
    fn kinds_are_unique_and_look_like_the_journal_wants_them() {
        let unique: BTreeSet<_> = id::ALL.iter().map(|(_, id)| id).collect();
        assert_eq!(unique.len(), id::ALL.len());
        assert!(
            unique
                .iter()
                .all(|id| id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()))
        );
    }
}
