//! Shell-like patterns for node ids and directives.
//!
//! Owns matching of `*` (any text, also none) and `?` (one character) against a whole
//! name, byte for byte. Never backtracks more than one star deep: matching takes at most
//! the product of both lengths, whatever an administrator writes.

use std::fmt;
use std::str::FromStr;

/// Longest pattern accepted: two node ids and a bit, far beyond any real name.
const MAX_LEN: usize = 256;

/// A pattern for names, such as `controller*`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pattern(String);

impl Pattern {
    /// Whether the whole of `name` fits.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        let (pattern, name) = (self.0.as_bytes(), name.as_bytes());
        let (mut p, mut n) = (0, 0);
        // Where to go on when a literal after the last star does not fit.
        let mut retry: Option<(usize, usize)> = None;
        while n < name.len() {
            match pattern.get(p) {
                Some(b'*') => {
                    p += 1;
                    retry = Some((p, n));
                }
                Some(&byte) if byte == b'?' || byte == name[n] => {
                    p += 1;
                    n += 1;
                }
                Some(_) | None => {
                    let Some((after_star, taken)) = retry else {
                        return false;
                    };
                    p = after_star;
                    n = taken + 1;
                    retry = Some((after_star, n));
                }
            }
        }
        pattern[p..].iter().all(|byte| *byte == b'*')
    }

    /// The pattern as written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fits = |c: char| c.is_ascii_alphanumeric() || "._-@:*?".contains(c);
        if text.is_empty() || text.len() > MAX_LEN || !text.chars().all(fits) {
            return Err(format!(
                "expected 1 to {MAX_LEN} of the characters A-Z a-z 0-9 . _ - @ :, * for any text and ? for one character"
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::Pattern;
    use proptest::prelude::*;

    #[test]
    fn stars_and_question_marks() {
        let table = [
            ("controller*", "controller", true),
            ("controller*", "controller-1", true),
            ("controller*", "my-controller", false),
            ("*", "", true),
            ("?", "", false),
            ("node-?", "node-a", true),
            ("node-?", "node-ab", false),
            ("runner:*", "runner:execute", true),
            ("runner:*", "runner2:execute", false),
            ("*:status", "runner:status", true),
            ("a*b*c", "axxbyyc", true),
            ("a*b*c", "axxbyy", false),
            ("Node", "node", false),
        ];
        for (pattern, name, expected) in table {
            let pattern: Pattern = pattern.parse().unwrap();
            assert_eq!(pattern.matches(name), expected, "{pattern} against {name}");
        }
    }

    fn naive(pattern: &[u8], name: &[u8]) -> bool {
        match (pattern.split_first(), name.split_first()) {
            (None, None) => true,
            (Some((b'*', rest)), None) => naive(rest, name),
            (Some((b'*', rest)), Some((_, shorter))) => {
                naive(rest, name) || naive(pattern, shorter)
            }
            (Some((p, rest)), Some((n, shorter))) => (*p == b'?' || p == n) && naive(rest, shorter),
            (None, Some(_)) | (Some(_), None) => false,
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_naive_matcher(pattern in "[ab*?]{1,8}", name in "[ab]{0,8}") {
            let parsed: Pattern = pattern.parse().unwrap();
            prop_assert_eq!(parsed.matches(&name), naive(pattern.as_bytes(), name.as_bytes()));
        }
    }
}
