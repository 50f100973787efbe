//! Cuts long strings out of JSON while it streams by, so that a line of any length can be read
//! within bounded memory and is still JSON afterwards.
//!
//! One event can carry all that a command has printed, twenty megabytes and more, in a string or
//! two; the rest of it is small.

/// Put where something was cut.
const MARK: &[u8] = b" ...[cut]";

/// What is being read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// Not in a string.
    Outside,
    /// In a string, between two characters.
    Inside,
    /// Behind a backslash.
    Escape,
    /// In the four digits behind `\u`; how many are missing.
    Digits(u8),
}

/// Shortens the strings of one JSON text after the other.
#[derive(Debug)]
pub(crate) struct Shortener {
    limit: usize,
    at: At,
    /// Bytes of the current string that were kept.
    kept: usize,
    /// The rest of the current string is dropped.
    dropping: bool,
    /// An escape that is not whole yet; it is kept or dropped as one.
    escape: Vec<u8>,
    cut: bool,
}

impl Shortener {
    /// `limit` is the most bytes of a string that are kept.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            limit,
            at: At::Outside,
            kept: 0,
            dropping: false,
            escape: Vec::new(),
            cut: false,
        }
    }

    /// Begins a new text. Returns whether something of the last was cut.
    pub(crate) fn reset(&mut self) -> bool {
        self.at = At::Outside;
        self.escape.clear();
        std::mem::take(&mut self.cut)
    }

    /// Takes the next part of the text and adds what is kept of it.
    pub(crate) fn feed(&mut self, part: &[u8], kept: &mut Vec<u8>) {
        for &byte in part {
            match self.at {
                At::Outside => {
                    kept.push(byte);
                    if byte == b'"' {
                        self.at = At::Inside;
                        self.kept = 0;
                        self.dropping = false;
                    }
                }
                At::Inside => match byte {
                    b'"' => {
                        self.at = At::Outside;
                        self.keep_escape(kept);
                        if self.dropping {
                            kept.extend_from_slice(MARK);
                        }
                        kept.push(b'"');
                    }
                    b'\\' => {
                        if !self.half_of_pair() {
                            self.keep_escape(kept);
                        }
                        self.escape.push(byte);
                        self.at = At::Escape;
                    }
                    byte => {
                        self.keep_escape(kept);
                        // A character of several bytes is kept or dropped as one.
                        let continues = byte & 0xc0 == 0x80;
                        if !continues {
                            self.check(1);
                        }
                        if !self.dropping {
                            kept.push(byte);
                            self.kept += 1;
                        }
                    }
                },
                At::Escape => {
                    self.escape.push(byte);
                    self.at = match byte {
                        b'u' => At::Digits(4),
                        _ => At::Inside,
                    };
                }
                At::Digits(missing) => {
                    self.escape.push(byte);
                    self.at = match missing {
                        0 | 1 => At::Inside,
                        more => At::Digits(more - 1),
                    };
                }
            }
        }
    }

    /// Whether the escape that waits is the first half of a pair (`\ud83d\ude00`).
    fn half_of_pair(&self) -> bool {
        matches!(
            self.escape.as_slice(),
            [
                b'\\',
                b'u',
                b'd' | b'D',
                b'8'..=b'9' | b'a'..=b'b' | b'A'..=b'B',
                _,
                _,
            ]
        )
    }

    fn keep_escape(&mut self, kept: &mut Vec<u8>) {
        if self.escape.is_empty() {
            return;
        }
        self.check(self.escape.len());
        if !self.dropping {
            kept.extend_from_slice(&self.escape);
            self.kept += self.escape.len();
        }
        self.escape.clear();
    }

    /// Begins to drop when there is no room for this much.
    fn check(&mut self, len: usize) {
        if self.kept + len > self.limit {
            self.dropping = true;
            self.cut = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection, prelude::*};
    use serde_json::Value;

    use super::*;

    fn shorten(text: &[u8], limit: usize, step: usize) -> (Vec<u8>, bool) {
        let mut shortener = Shortener::new(limit);
        let mut kept = Vec::new();
        for part in text.chunks(step) {
            shortener.feed(part, &mut kept);
        }
        (kept, shortener.reset())
    }

    /// Whether `short` is what may be left of `long`.
    fn is_cut_of(short: &str, long: &str) -> bool {
        let mark = std::str::from_utf8(MARK).unwrap();
        short == long
            || short
                .strip_suffix(mark)
                .is_some_and(|start| long.starts_with(start))
    }

    #[test]
    fn long_strings_are_cut_and_the_rest_stays() {
        let text = br#"{"a":"0123456789","b":["x",1.5e3,null],"c":{"d":"01234567"}}"#;
        let (kept, cut) = shorten(text, 8, 1);
        let expected = r#"{"a":"01234567 ...[cut]","b":["x",1.5e3,null],"c":{"d":"01234567"}}"#;
        assert_eq!(String::from_utf8(kept).unwrap(), expected);
        assert!(cut);
    }

    #[test]
    fn characters_are_not_split() {
        for (text, expected) in [
            (r#""ab\n""#, r#""ab ...[cut]""#),
            (r#""abc\"d""#, r#""abc ...[cut]""#),
            (r#""\u00e4b""#, r#"" ...[cut]""#),
            (r#""ä€""#, "\"ä€\""),
            ("\"abc€\"", "\"abc€\""),
            ("\"abcd€\"", "\"abcd ...[cut]\""),
        ] {
            let limit = if text.contains('€') { 4 } else { 3 };
            let (kept, _) = shorten(text.as_bytes(), limit, 1);
            assert_eq!(String::from_utf8(kept).unwrap(), expected, "{text}");
        }
        let pair = r#""\ud83d\ude00x""#;
        for limit in 0..15 {
            let (kept, _) = shorten(pair.as_bytes(), limit, 1);
            let value: String = serde_json::from_slice(&kept).unwrap();
            assert!(is_cut_of(&value, "\u{1f600}x"), "{limit} {value:?}");
        }
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<i64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
            "[a\"\\\\\u{1f600}]{0,40}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 5, |inner| {
            prop_oneof![
                collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                collection::btree_map("[a-z]{1,3}", inner, 0..5)
                    .prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    fn same_but_cut(short: &Value, long: &Value) -> bool {
        match (short, long) {
            (Value::String(short), Value::String(long)) => is_cut_of(short, long),
            (Value::Array(short), Value::Array(long)) => {
                short.len() == long.len() && short.iter().zip(long).all(|(s, l)| same_but_cut(s, l))
            }
            (Value::Object(short), Value::Object(long)) => {
                short.len() == long.len()
                    && short
                        .iter()
                        .all(|(k, s)| long.get(k).is_some_and(|l| same_but_cut(s, l)))
            }
            (short, long) => short == long,
        }
    }

    /// As Python writes it: everything that is not ASCII as an escape.
    fn ascii(value: &Value) -> String {
        let mut text = String::new();
        for c in value.to_string().chars() {
            if c.is_ascii() {
                text.push(c);
            } else {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    text.push_str(&format!("\\u{unit:04x}"));
                }
            }
        }
        text
    }

    proptest! {
        #[test]
        fn it_stays_json_and_no_string_is_too_long(value in json(), limit in 3usize..30, step in 1usize..9) {
            for text in [value.to_string(), ascii(&value)] {
                let (kept, cut) = shorten(text.as_bytes(), limit, step);
                let short: Value = serde_json::from_slice(&kept).unwrap();
                prop_assert!(same_but_cut(&short, &value), "{short} {value}");
                prop_assert_eq!(cut, kept != text.as_bytes());
            }
        }
    }
}
