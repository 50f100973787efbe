//! Takes the output of `ansible-runner worker` apart: JSON lines, and in between an archive in
//! base64 that has no line of its own.
//!
//! Holds at most one line, and of that at most a bounded part; what an archive holds is dropped.

use serde::Deserialize;

use crate::shorten::Shortener;

/// Most bytes of a line that are held, after its long strings were cut. An event can have 700,000
/// bytes of results beside them.
const MAX_LINE: usize = 4 * 1024 * 1024;

/// A piece of the stream.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece<'a> {
    /// A line without its newline. `cut`: long strings in it are no longer whole.
    Line { text: &'a [u8], cut: bool },
    /// A line that was too long even so.
    Overlong,
}

/// The stream and where in it we are.
#[derive(Debug)]
pub(crate) struct Stream {
    shortener: Shortener,
    line: Vec<u8>,
    overlong: bool,
    /// Bytes of an archive that are still to come.
    archive: u64,
}

impl Stream {
    /// `string_limit` is the most bytes of a JSON string that are kept.
    pub(crate) fn new(string_limit: usize) -> Self {
        Self {
            shortener: Shortener::new(string_limit),
            line: Vec::new(),
            overlong: false,
            archive: 0,
        }
    }

    /// Takes the next bytes and gives each piece that they complete to `take`.
    pub(crate) fn feed<E>(
        &mut self,
        mut bytes: &[u8],
        mut take: impl FnMut(Piece<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        while !bytes.is_empty() {
            if self.archive > 0 {
                let here = usize::try_from(self.archive)
                    .unwrap_or(usize::MAX)
                    .min(bytes.len());
                self.archive -= u64::try_from(here).unwrap_or(self.archive);
                bytes = bytes.get(here..).unwrap_or_default();
                continue;
            }
            let end = bytes.iter().position(|byte| *byte == b'\n');
            let (part, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
            if !self.overlong {
                self.shortener.feed(part, &mut self.line);
                self.overlong = self.line.len() > MAX_LINE;
            }
            bytes = rest;
            if end.is_some() {
                bytes = bytes.get(1..).unwrap_or_default();
                self.end_line(&mut take)?;
            }
        }
        Ok(())
    }

    /// The stream has ended: a line that was begun is a line.
    pub(crate) fn end<E>(
        &mut self,
        mut take: impl FnMut(Piece<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.line.is_empty() {
            return Ok(());
        }
        self.end_line(&mut take)
    }

    fn end_line<E>(&mut self, take: &mut impl FnMut(Piece<'_>) -> Result<(), E>) -> Result<(), E> {
        let cut = self.shortener.reset();
        let text = self.line.trim_ascii();
        let taken = if std::mem::take(&mut self.overlong) {
            take(Piece::Overlong)
        } else if let Some(size) = archive_size(text) {
            self.archive = size;
            Ok(())
        } else if text.is_empty() {
            Ok(())
        } else {
            take(Piece::Line { text, cut })
        };
        self.line.clear();
        self.line.shrink_to(MAX_LINE / 16);
        taken
    }
}

/// Bytes of base64 that follow a line that announces an archive.
fn archive_size(line: &[u8]) -> Option<u64> {
    #[derive(Deserialize)]
    struct Archive {
        zipfile: u64,
    }
    if !line.starts_with(b"{\"zipfile\"") {
        return None;
    }
    let archive: Archive = serde_json::from_slice(line).ok()?;
    Some(archive.zipfile.div_ceil(3).saturating_mul(4))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(bytes: &[u8], step: usize) -> Vec<String> {
        let mut stream = Stream::new(100);
        let mut found = Vec::new();
        let mut take = |piece: Piece<'_>| {
            found.push(match piece {
                Piece::Line { text, cut } => {
                    format!(
                        "{}{}",
                        String::from_utf8_lossy(text),
                        if cut { " cut" } else { "" }
                    )
                }
                Piece::Overlong => "overlong".to_owned(),
            });
            Ok::<(), ()>(())
        };
        for part in bytes.chunks(step) {
            stream.feed(part, &mut take).unwrap();
        }
        stream.end(&mut take).unwrap();
        found
    }

    #[test]
    fn an_archive_between_lines_is_passed_over() {
        // Five bytes are eight of base64, and the next line follows at once.
        let bytes =
            b"{\"a\":1}\n\n{\"zipfile\": 5}\nAAAA\nAA={\"eof\": true}\n{\"b\":2}\nno newline";
        for step in 1..bytes.len() {
            let expected = ["{\"a\":1}", "{\"eof\": true}", "{\"b\":2}", "no newline"];
            assert_eq!(pieces(bytes, step), expected, "step {step}");
        }
    }

    #[test]
    fn an_archive_that_never_ends_is_no_line() {
        assert_eq!(
            pieces(b"{\"zipfile\": 18446744073709551615}\nAAAA\n{}\n", 7),
            [""; 0]
        );
        assert_eq!(
            pieces(b"{\"zipfile\": -1}\n{}\n", 7),
            ["{\"zipfile\": -1}", "{}"]
        );
    }

    #[test]
    fn a_line_of_twenty_megabytes_is_cut_and_one_without_strings_dropped() {
        let mut long = b"{\"stdout\":\"".to_vec();
        long.resize(20_000_000, b'x');
        long.extend_from_slice(b"\"}\n");
        long.resize(40_000_000, b'[');
        long.extend_from_slice(b"\n{}\n");
        let found = pieces(&long, 65_536);
        assert_eq!(found.len(), 3);
        assert!(
            found[0].len() < 200 && found[0].ends_with("cut"),
            "{}",
            found[0]
        );
        assert_eq!(found[1..], ["overlong", "{}"]);
    }
}
