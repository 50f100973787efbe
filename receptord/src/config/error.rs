//! What is wrong with a configuration, in words for the person who wrote it.
//!
//! Owns [`Problem`], one line that says where, which key, what was seen and what was
//! expected, and [`ConfigError`], all problems of one load together. Never stops at the
//! first problem where the rest can still be judged, and never holds key material: only
//! configuration text is quoted, and only its beginning.

use std::fmt;

use super::fragment::Source;

/// Problems reported in full; beyond it only their number is told, so that a binary file
/// given by mistake does not fill the journal.
const MAX_PROBLEMS: usize = 50;

/// Characters of a value that are quoted in a message.
pub(super) const MAX_QUOTED: usize = 80;

/// One thing that is wrong, on one line when displayed.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// Where it was written.
    pub source: Source,
    /// The dotted key, empty when the problem is not about a key.
    pub key: String,
    /// What is wrong and what was expected instead.
    pub message: String,
}

impl Problem {
    pub(super) fn new(source: Source, key: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            source,
            key: key.into(),
            message: message.into(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.source)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

/// Why a configuration was refused: at least one problem.
#[derive(Clone, Debug, PartialEq)]
pub struct ConfigError {
    /// Every problem found.
    pub problems: Vec<Problem>,
}

impl fmt::Display for ConfigError {
    /// One problem a line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().take(MAX_PROBLEMS).enumerate() {
            let newline = if index == 0 { "" } else { "\n" };
            write!(f, "{newline}{problem}")?;
        }
        match self.problems.len().checked_sub(MAX_PROBLEMS) {
            Some(more) if more > 0 => write!(f, "\nand {more} more problems"),
            _ => Ok(()),
        }
    }
}

impl std::error::Error for ConfigError {}

/// The known word nearest to `word`, when it is near enough to be what was meant.
pub(super) fn did_you_mean<'a>(
    word: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    // One mistake for short words, up to three for long ones: `dirs` is not meant by `tls`.
    let allowed = (word.chars().count() / 3).clamp(1, 3);
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min()
        .map(|(_, candidate)| candidate)
}
