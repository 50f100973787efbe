//! What goes to stdout, and how values are written for people.
//!
//! Owns stdout. A reader of it who leaves ends the program quietly, as with any filter. Text that came
//! over the network is never printed with its control characters, except payloads, which are the user's own data.

use std::borrow::Cow;
use std::io::{self, BufWriter, IsTerminal as _, StdoutLock, Write};

use crate::exit::{Exit, Failure};

/// Lines that are shown of what a plugin says about a bad result; all of it is on stdout.
const MESSAGE_LINES: usize = 20;

/// Stdout, buffered until [`Out::flush`].
#[derive(Debug)]
pub(crate) struct Out {
    stdout: BufWriter<StdoutLock<'static>>,
    is_terminal: bool,
    colour: bool,
}

impl Out {
    pub(crate) fn new() -> Self {
        let stdout = io::stdout().lock();
        // no-color.org: any value but the empty one counts.
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let is_terminal = stdout.is_terminal();
        Self {
            stdout: BufWriter::new(stdout),
            is_terminal,
            colour: is_terminal && !plain,
        }
    }

    /// Whether a person sees what is written.
    pub(crate) fn is_terminal(&self) -> bool {
        self.is_terminal
    }

    /// Writes bytes as they are.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.stdout.write_all(bytes).map_err(|e| broken(&e))
    }

    /// Writes a line.
    pub(crate) fn line(&mut self, line: impl AsRef<[u8]>) -> Result<(), Failure> {
        self.bytes(line.as_ref())?;
        self.bytes(b"\n")
    }

    /// Hands everything to the reader; done before waiting for anything.
    pub(crate) fn flush(&mut self) -> Result<(), Failure> {
        self.stdout.flush().map_err(|e| broken(&e))
    }

    /// The text in a colour, where there is one.
    pub(crate) fn paint(&self, tone: Tone, text: &str) -> String {
        if !self.colour {
            return text.to_owned();
        }
        let code = match tone {
            Tone::Good => "32",
            Tone::Bad => "31",
            Tone::Strange => "33",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }

    /// Writes a table; the caller says on stderr what an empty one means.
    pub(crate) fn table(&mut self, table: &Table) -> Result<(), Failure> {
        let text = table.render("", self)?;
        self.bytes(text.as_bytes())
    }

    /// Writes a table with every line behind an indent.
    pub(crate) fn indented(&mut self, indent: &str, table: &Table) -> Result<(), Failure> {
        let text = table.render(indent, self)?;
        self.bytes(text.as_bytes())
    }
}

/// What a colour means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    Good,
    Bad,
    Strange,
}

fn broken(error: &io::Error) -> Failure {
    if error.kind() == io::ErrorKind::BrokenPipe {
        return Failure::silent(Exit::BrokenPipe);
    }
    Failure::system("cannot write the answer", error)
}

/// What a bad result says to a person in its `message`, as further lines of a failure.
pub(crate) fn in_words(result: &serde_json::Value) -> String {
    let message = result.get("message").and_then(serde_json::Value::as_str);
    let mut lines = message.unwrap_or_default().lines();
    let mut text = String::new();
    for line in lines.by_ref().take(MESSAGE_LINES) {
        text.push_str("\n  ");
        text.push_str(line);
    }
    if lines.next().is_some() {
        text.push_str("\n  …");
    }
    text
}

/// Says something to the person on stderr.
pub(crate) fn note(text: &str) {
    // Nobody to tell is no failure.
    let _ = writeln!(io::stderr().lock(), "{}", printable(text));
}

/// A table with its header.
#[derive(Debug)]
pub(crate) struct Table {
    header: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

/// One field of a table.
#[derive(Debug)]
pub(crate) struct Cell {
    text: String,
    tone: Option<Tone>,
}

impl Cell {
    /// An empty field would look like a missing one.
    fn shown(&self) -> &str {
        if self.text.is_empty() {
            "-"
        } else {
            &self.text
        }
    }

    pub(crate) fn tone(text: impl AsRef<str>, tone: Tone) -> Self {
        Self {
            text: printable(text.as_ref()).into_owned(),
            tone: Some(tone),
        }
    }
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self {
            text: printable(text.as_ref()).into_owned(),
            tone: None,
        }
    }
}

impl Table {
    pub(crate) fn new<const N: usize>(header: [&'static str; N]) -> Self {
        Self {
            header: header.to_vec(),
            rows: Vec::new(),
        }
    }

    pub(crate) fn row<const N: usize>(&mut self, row: [Cell; N]) {
        self.rows.push(row.into());
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    fn render(&self, indent: &str, out: &Out) -> Result<String, Failure> {
        let mut text = indent.to_owned() + &self.header.join("\t");
        for row in &self.rows {
            text.push('\n');
            text.push_str(indent);
            let cells: Vec<&str> = row.iter().map(Cell::shown).collect();
            text.push_str(&cells.join("\t"));
        }
        text.push('\n');
        let aligned = tabwriter::TabWriter::new(Vec::new()).padding(2).minwidth(1);
        let aligned =
            align(aligned, &text).map_err(|e| Failure::system("cannot align a table", &e))?;
        let mut result = String::with_capacity(aligned.len());
        // Colours come last, because their bytes have no width.
        for (number, line) in aligned.lines().enumerate() {
            let mut line = line.trim_end().to_owned();
            let row = number.checked_sub(1).and_then(|n| self.rows.get(n));
            let mut from = 0;
            for cell in row.into_iter().flatten() {
                let Some(at) = line.get(from..).and_then(|rest| rest.find(cell.shown())) else {
                    continue;
                };
                let at = from + at;
                from = at + cell.shown().len();
                if let Some(tone) = cell.tone {
                    let painted = out.paint(tone, cell.shown());
                    line.replace_range(at..from, &painted);
                    from = at + painted.len();
                }
            }
            result.push_str(&line);
            result.push('\n');
        }
        Ok(result)
    }
}

fn align(mut writer: tabwriter::TabWriter<Vec<u8>>, text: &str) -> io::Result<String> {
    writer.write_all(text.as_bytes())?;
    writer.flush()?;
    let bytes = writer
        .into_inner()
        .map_err(|e| io::Error::other(e.to_string()))?;
    String::from_utf8(bytes).map_err(io::Error::other)
}

/// The text with everything that could move a cursor, break a line or turn the reading direction
/// written out.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    let unsafe_char = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(unsafe_char) {
        return Cow::Borrowed(text);
    }
    let mut result = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if unsafe_char(c) {
            result.extend(c.escape_default());
        } else {
            result.push(c);
        }
    }
    Cow::Owned(result)
}

/// A duration in its two largest units: `2h 3m`, `364d 23h`, `12s`, `0s`.
pub(crate) fn duration(ms: u64) -> String {
    const UNITS: [(u64, char); 4] = [(86_400, 'd'), (3_600, 'h'), (60, 'm'), (1, 's')];
    let mut left = ms / 1000;
    let mut words = Vec::new();
    for (seconds, unit) in UNITS {
        if left >= seconds {
            words.push(format!("{}{unit}", left / seconds));
            left %= seconds;
        }
    }
    words.truncate(2);
    if words.is_empty() {
        words.push("0s".to_owned());
    }
    words.join(" ")
}

/// Milliseconds with the digits that say something: `0.42 ms`, `12.3 ms`, `1234 ms`.
pub(crate) fn milliseconds(ns: u64) -> String {
    let us = ns / 1000;
    let (whole, part) = (us / 1000, us % 1000);
    match whole {
        0..10 => format!("{whole}.{:02} ms", part / 10),
        10..100 => format!("{whole}.{} ms", part / 100),
        _ => format!("{whole} ms"),
    }
}

/// Bytes: `17 B`, `1.2 KiB`.
pub(crate) fn size(bytes: u64) -> String {
    bytesize::ByteSize(bytes).display().iec().to_string()
}

/// `1 message`, `2 messages`.
pub(crate) fn count(number: u64, noun: &str) -> String {
    let s = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{s}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_moves_the_cursor() {
        assert_eq!(printable("node-b"), "node-b");
        assert_eq!(printable("ä 名"), "ä 名");
        assert_eq!(printable("a\x1b[2Jb"), "a\\u{1b}[2Jb");
        assert_eq!(printable("a\nb\tc"), "a\\nb\\tc");
        assert_eq!(printable("a\u{9b}1m"), "a\\u{9b}1m");
        assert_eq!(printable("a\u{202e}b"), "a\\u{202e}b");
    }

    #[test]
    fn values_for_people() {
        assert_eq!(duration(0), "0s");
        assert_eq!(duration(12_345), "12s");
        assert_eq!(duration(7_384_000), "2h 3m");
        assert_eq!(duration(100_000_000), "1d 3h");
        assert_eq!(duration(31_535_999_000), "364d 23h");
        assert_eq!(milliseconds(423_456), "0.42 ms");
        assert_eq!(milliseconds(1_239_999), "1.23 ms");
        assert_eq!(milliseconds(12_345_678), "12.3 ms");
        assert_eq!(milliseconds(1_234_567_890), "1234 ms");
        assert_eq!(size(17), "17 B");
        assert_eq!(size(1 << 20), "1.0 MiB");
    }
}
