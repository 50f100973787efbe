//! One configuration file as it was written: values with the line each came from.
//!
//! Owns reading a file within limits and turning TOML into [`Table`]s that know their
//! [`Source`]. Everything in a fragment is optional and nothing is judged here but the
//! syntax: which keys exist and what they may hold is known only to `read`, which also
//! reports keys that nobody asked for.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{MAX_QUOTED, Problem};

/// Largest configuration file read. A thousand peers take about 100 KiB; what is larger is
/// some other file given by mistake.
const MAX_FILE: u64 = 1 << 20;

/// What every private key in PEM begins with. Text with it is never quoted.
const PRIVATE_KEY: &str = "PRIVATE KEY-----";

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A line of a file, counted from 1; 0 means the file as a whole.
    File {
        /// The file, as it was looked for.
        path: Arc<Path>,
        /// The line.
        line: usize,
    },
    /// A variable of the environment.
    Environment(String),
    /// A flag or word of the command line, as the user writes it.
    Flag(&'static str),
    /// Built in, perhaps with the reason for this value.
    Default(Option<&'static str>),
}

impl Source {
    pub(super) fn file(path: &Path) -> Self {
        Self::File {
            path: path.into(),
            line: 0,
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line: 0 } => write!(f, "{}", path.display()),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Flag(flag) => write!(f, "flag {flag}"),
            Self::Default(None) => f.write_str("default"),
            Self::Default(Some(reason)) => write!(f, "default, {reason}"),
        }
    }
}

/// A value and where it came from.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Item {
    pub(super) value: Value,
    pub(super) source: Source,
}

/// The keys of a table, without their order.
pub(super) type Table = BTreeMap<String, Item>;

/// A TOML value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    String(String),
    Integer(i64),
    Float(f64),
    Boolean(bool),
    /// As written; only plugins may want one.
    Datetime(String),
    Array(Vec<Item>),
    Table(Table),
}

impl Value {
    pub(super) fn as_text(&self) -> Option<&str> {
        if let Self::String(text) = self {
            Some(text)
        } else {
            None
        }
    }

    pub(super) fn as_integer(&self) -> Option<i64> {
        if let Self::Integer(number) = self {
            Some(*number)
        } else {
            None
        }
    }

    pub(super) fn as_boolean(&self) -> Option<bool> {
        if let Self::Boolean(value) = self {
            Some(*value)
        } else {
            None
        }
    }

    pub(super) fn as_table(&self) -> Option<&Table> {
        if let Self::Table(table) = self {
            Some(table)
        } else {
            None
        }
    }

    /// The beginning of the value as one would write it, for messages.
    pub(super) fn quoted(&self) -> String {
        let text = match self {
            // Written in place of the name of its file, it must not end up in a log.
            Self::String(text) if text.contains(PRIVATE_KEY) => {
                return "a private key, which is not shown".to_owned();
            }
            Self::String(text) => quote(text),
            Self::Integer(number) => number.to_string(),
            Self::Float(number) => number.to_string(),
            Self::Boolean(value) => value.to_string(),
            Self::Datetime(text) => text.clone(),
            Self::Array(items) => format!("a list of {}", items.len()),
            Self::Table(_) => "a table".to_owned(),
        };
        match text.char_indices().nth(MAX_QUOTED) {
            Some((end, _)) => format!("{}…", &text[..end]),
            None => text,
        }
    }
}

/// Text in double quotes on one line, as TOML reads it back.
pub(super) fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            c if c.is_control() => quoted.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// Reads and parses a file. Syntax errors go to `problems`, as many as can be told apart.
pub(super) fn read(path: &Path, shown: &Path, problems: &mut Vec<Problem>) -> Table {
    match read_text(path) {
        Ok(text) => parse(&text, shown, problems),
        Err((line, reason)) => {
            let source = match line {
                Some(line) => Source::File {
                    path: shown.into(),
                    line,
                },
                None => Source::file(shown),
            };
            problems.push(Problem::new(source, "", reason));
            Table::new()
        }
    }
}

/// The text of a file, or why not, with the line if it is about one.
fn read_text(path: &Path) -> Result<String, (Option<usize>, String)> {
    let cannot = |error: std::io::Error| (None, format!("cannot be read: {error}"));
    let metadata = std::fs::metadata(path).map_err(cannot)?;
    // Opening a pipe or a device could wait for ever; /dev/null stands for an empty file.
    if !metadata.is_file() && std::fs::canonicalize(path).ok() != Some(PathBuf::from("/dev/null")) {
        return Err((None, "is not a file".to_owned()));
    }
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes))
        .map_err(cannot)?;
    if bytes.len() as u64 > MAX_FILE {
        let reason = "is larger than 1 MiB, which no configuration is";
        return Err((None, reason.to_owned()));
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = valid.iter().filter(|byte| **byte == b'\n').count() + 1;
        (Some(line), "is not UTF-8 text".to_owned())
    })
}

/// Parses the text of a file; see [`read`].
pub(super) fn parse(text: &str, path: &Path, problems: &mut Vec<Problem>) -> Table {
    let lines = Lines::new(text, path);
    let (document, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        let line = error.span().map_or(0, |span| lines.number(&span));
        let mut message = error.message().replace('\n', ", ");
        let seen = text.lines().nth(line.saturating_sub(1)).unwrap_or_default();
        if line > 0 && !seen.trim().is_empty() && !text.contains(PRIVATE_KEY) {
            let seen = Value::String(seen.trim().to_owned()).quoted();
            message.push_str(&format!(", in the line {seen}"));
        }
        problems.push(Problem::new(lines.at(line), "", message));
    }
    table(document.get_ref(), "", &lines, problems)
}

/// Line numbers of one text.
struct Lines {
    starts: Vec<usize>,
    path: Arc<Path>,
}

impl Lines {
    fn new(text: &str, path: &Path) -> Self {
        let starts = text.match_indices('\n').map(|(at, _)| at + 1).collect();
        Self {
            starts,
            path: path.into(),
        }
    }

    fn number(&self, span: &Range<usize>) -> usize {
        self.starts.partition_point(|start| *start <= span.start) + 1
    }

    fn at(&self, line: usize) -> Source {
        Source::File {
            path: Arc::clone(&self.path),
            line,
        }
    }
}

fn table(table: &DeTable<'_>, path: &str, lines: &Lines, problems: &mut Vec<Problem>) -> Table {
    let mut result = Table::new();
    for (key, value) in table {
        // The line of the key, not of the value: a list may begin further down.
        let source = lines.at(lines.number(&key.span()));
        let dot = if path.is_empty() { "" } else { "." };
        let path = format!("{path}{dot}{}", key.get_ref());
        if let Some(value) = self::value(value, &path, &source, lines, problems) {
            result.insert(key.get_ref().to_string(), Item { value, source });
        }
    }
    result
}

fn value(
    spanned: &Spanned<DeValue<'_>>,
    path: &str,
    source: &Source,
    lines: &Lines,
    problems: &mut Vec<Problem>,
) -> Option<Value> {
    Some(match spanned.get_ref() {
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Value::Integer(number),
            Err(_) => {
                let message = format!("{number}: expected a number of at most 64 bits");
                problems.push(Problem::new(source.clone(), path, message));
                return None;
            }
        },
        DeValue::Float(number) => match number.as_str().parse() {
            Ok(number) => Value::Float(number),
            Err(_) => {
                problems.push(Problem::new(
                    source.clone(),
                    path,
                    format!("{number}: expected a number"),
                ));
                return None;
            }
        },
        DeValue::Boolean(value) => Value::Boolean(*value),
        DeValue::Datetime(datetime) => Value::Datetime(datetime.to_string()),
        DeValue::Array(items) => {
            let mut result = Vec::new();
            for item in items.iter() {
                let source = lines.at(lines.number(&item.span()));
                if let Some(value) = value(item, path, &source, lines, problems) {
                    result.push(Item { value, source });
                }
            }
            Value::Array(result)
        }
        DeValue::Table(inner) => Value::Table(table(inner, path, lines, problems)),
    })
}
