//! What holds for every text of a configuration file, and for every value in one.

use std::path::Path;
use std::time::Duration;

use receptor_proto::{Directive, IdPrefix, MessageId, NodeId};

use super::environment::Environment;
use super::fragment::{self, Table};
use super::pattern::Pattern;
use super::section::Report;
use super::url::LinkUrl;
use super::{Loaded, LogLevel, read, units};

/// Longer than any time that a key takes: a thousand years.
const LONGEST: Duration = Duration::from_secs(1000 * 366 * 24 * 3600);

/// What is understood is printed as the text of the same settings; what is not has a problem that
/// says where.
///
/// # Panics
///
/// When that does not hold.
pub fn config_text(text: &[u8]) {
    let Ok(text) = std::str::from_utf8(text) else {
        return;
    };
    if let Some(loaded) = load(text) {
        let printed = loaded.print();
        let again = load(&printed);
        let again = again.unwrap_or_else(|| panic!("what is printed is refused: {printed}"));
        assert_eq!(again.settings, loaded.settings, "{printed}");
    }
}

fn load(text: &str) -> Option<Loaded> {
    let mut report = Report::default();
    let table: Table = fragment::parse(text, Path::new("/fuzz.toml"), &mut report.problems);
    if report.problems.is_empty() {
        let environment = Environment::from_vars::<&str, &str>([]);
        let settings = read::read(table, &environment, &mut report);
        if report.problems.is_empty() {
            return Some(Loaded {
                settings,
                warnings: report.warnings,
                files: Vec::new(),
                origins: report.origins,
            });
        }
    }
    for problem in &report.problems {
        let shown = problem.to_string();
        assert!(!shown.is_empty() && !shown.contains('\n'), "{shown:?}");
    }
    None
}

/// Every value with a form of its own: what is understood is shown as a text of the same value.
///
/// # Panics
///
/// When that does not hold.
pub fn words(text: &[u8]) {
    let Ok(text) = std::str::from_utf8(text) else {
        return;
    };
    same::<NodeId>(text);
    same::<Directive>(text);
    same::<MessageId>(text);
    same::<IdPrefix>(text);
    same::<LogLevel>(text);
    same::<LinkUrl>(text);
    same::<Pattern>(text);
    for parse in [LinkUrl::parse_listen, LinkUrl::parse_peer] {
        if let Ok(url) = parse(text) {
            assert_eq!(parse(&url.to_string()), Ok(url));
        }
    }
    let ever = Duration::ZERO..=LONGEST;
    if let Ok(time) = units::parse_duration(text, &ever) {
        let shown = units::format_duration(time);
        assert_eq!(units::parse_duration(&shown, &ever), Ok(time));
    }
    let any = 0..=u64::MAX;
    if let Ok(bytes) = units::parse_bytes(text, &any) {
        let shown = units::format_bytes(bytes);
        assert_eq!(units::parse_bytes(&shown, &any), Ok(bytes), "{shown}");
    }
    if let Ok(mode) = units::parse_mode(text) {
        assert_eq!(units::parse_mode(&units::format_mode(mode)), Ok(mode));
    }
    if let Some((pattern, name)) = text.split_once(' ')
        && let Ok(parsed) = pattern.parse::<Pattern>()
    {
        assert_eq!(
            parsed.matches(name),
            matches(pattern.as_bytes(), name.as_bytes()),
            "{pattern} {name}"
        );
    }
}

/// What a pattern means, as simply as it can be said: good for short ones only.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    // One row for each character of the pattern: of which beginnings of the name it is so far true.
    let mut row: Vec<bool> = (0..=name.len()).map(|end| end == 0).collect();
    for character in pattern {
        let mut next = vec![false; row.len()];
        for end in 0..row.len() {
            next[end] = match character {
                b'*' => row[end] || end > 0 && next[end - 1],
                b'?' => end > 0 && row[end - 1],
                other => end > 0 && row[end - 1] && name[end - 1] == *other,
            };
        }
        row = next;
    }
    row.last() == Some(&true)
}

fn same<T>(text: &str)
where
    T: std::str::FromStr<Err: std::fmt::Debug> + ToString + PartialEq + std::fmt::Debug,
{
    if let Ok(value) = text.parse::<T>() {
        let again: T = value.to_string().parse().expect("what is shown reads in");
        assert_eq!(again, value);
    }
}
