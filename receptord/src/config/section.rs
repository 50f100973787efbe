//! One table of the merged configuration while it is being read.
//!
//! Owns taking values out by key with a check, remembering where each came from, and
//! reporting what is left over: the keys that `read` asks for are the keys that exist,
//! so the list of known keys cannot fall behind. Never stops at a problem: a bad value is
//! reported and its default taken, so that everything else is judged too.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::time::Duration;

use super::error::{Problem, did_you_mean};
use super::fragment::{Item, Source, Table, Value};
use super::units;
use crate::policy::KINDS;

const EXPECTED_TEXT: &str = "expected text in quotes";

/// Where each value came from, by its full key.
pub(super) type Origins = BTreeMap<String, Source>;

/// What reading the sections adds up to.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) problems: Vec<Problem>,
    pub(super) warnings: Vec<Problem>,
    pub(super) origins: Origins,
    /// Every key that was asked for, in full.
    known: BTreeSet<String>,
    /// Keys that nobody asked for.
    unknown: Vec<Unknown>,
}

/// A key that nobody asked for.
#[derive(Debug)]
struct Unknown {
    /// In full.
    key: String,
    source: Source,
    /// The beginning of its value, for the message.
    value: String,
    /// The known key that was most likely meant.
    meant: Option<String>,
    /// What the table may hold; empty when its keys are the user's choice.
    expected: Vec<&'static str>,
}

impl Report {
    /// Where the value of a key came from.
    pub(super) fn origin(&self, key: &str) -> Source {
        self.origins
            .get(key)
            .cloned()
            .unwrap_or(Source::Default(None))
    }

    /// Reports the keys that nobody asked for, once all that exist are known.
    pub(super) fn tell_unknown(&mut self) {
        for unknown in std::mem::take(&mut self.unknown) {
            let Unknown {
                key,
                source,
                value,
                meant,
                expected,
            } = unknown;
            let name = key.rsplit('.').next().unwrap_or_default();
            let elsewhere = || {
                let same = |known: &&String| known.rsplit('.').next() == Some(name);
                // A block's own keys cannot be meant from outside of it.
                self.known
                    .iter()
                    .filter(|known| !known.contains('['))
                    .find(same)
                    .cloned()
            };
            let hint = match meant.or_else(elsewhere) {
                Some(known) => format!("; did you mean {known}?"),
                None if expected.is_empty() => String::new(),
                None => format!("; expected one of {}", expected.join(", ")),
            };
            let message = format!("{value}: is not a key that receptord knows{hint}");
            self.problems.push(Problem::new(source, key, message));
        }
    }

    /// Reports a problem with a value that was taken before.
    pub(super) fn refuse(&mut self, key: &str, message: impl Into<String>) {
        self.problems
            .push(Problem::new(self.origin(key), key, message));
    }
}

/// A table and its place in the document.
#[derive(Debug)]
pub(super) struct Section {
    name: String,
    /// Where the table itself was begun, for keys that are missing in it.
    source: Source,
    table: Table,
    asked: Vec<&'static str>,
}

impl Section {
    pub(super) fn root(table: Table) -> Self {
        Self {
            name: String::new(),
            source: Source::Default(None),
            table,
            asked: Vec::new(),
        }
    }

    /// The full key of one of this table's keys.
    pub(super) fn key(&self, key: &str) -> String {
        if self.name.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.name)
        }
    }

    pub(super) fn source(&self) -> &Source {
        &self.source
    }

    fn take(&mut self, key: &'static str) -> Option<Item> {
        self.asked.push(key);
        self.table.remove(key)
    }

    /// Takes a value and checks it; the error of `check` says what was expected.
    pub(super) fn get<T>(
        &mut self,
        report: &mut Report,
        key: &'static str,
        check: impl FnOnce(&Value) -> Result<T, String>,
    ) -> Option<T> {
        let item = self.take(key)?;
        let key = self.key(key);
        match check(&item.value) {
            Ok(value) => {
                report.origins.insert(key, item.source);
                Some(value)
            }
            Err(expected) => {
                let message = format!("{}: {expected}", item.value.quoted());
                report
                    .problems
                    .push(Problem::new(item.source, key, message));
                None
            }
        }
    }

    /// A value that is parsed from text.
    pub(super) fn text<T>(
        &mut self,
        report: &mut Report,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        self.get(report, key, |value| {
            parse(value.as_text().ok_or(EXPECTED_TEXT)?)
        })
    }

    /// A value that must be there.
    pub(super) fn required<T>(
        &mut self,
        report: &mut Report,
        key: &'static str,
        expected: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        if !self.table.contains_key(key) {
            let message = format!("is missing: {expected}");
            report
                .problems
                .push(Problem::new(self.source.clone(), self.key(key), message));
        }
        self.text(report, key, parse)
    }

    pub(super) fn boolean(
        &mut self,
        report: &mut Report,
        key: &'static str,
        default: bool,
    ) -> bool {
        const EXPECTED: &str = "expected true or false, without quotes";
        let read = self.get(report, key, |value| {
            value.as_boolean().ok_or_else(|| EXPECTED.to_owned())
        });
        read.unwrap_or(default)
    }

    pub(super) fn integer<T>(
        &mut self,
        report: &mut Report,
        key: &'static str,
        default: T,
        range: RangeInclusive<T>,
    ) -> T
    where
        T: TryFrom<i64> + PartialOrd + std::fmt::Display + Copy,
    {
        self.optional_integer(report, key, range).unwrap_or(default)
    }

    pub(super) fn optional_integer<T>(
        &mut self,
        report: &mut Report,
        key: &'static str,
        range: RangeInclusive<T>,
    ) -> Option<T>
    where
        T: TryFrom<i64> + PartialOrd + std::fmt::Display + Copy,
    {
        self.get(report, key, |value| {
            let number = value
                .as_integer()
                .and_then(|number| T::try_from(number).ok());
            number
                .filter(|number| range.contains(number))
                .ok_or_else(|| {
                    format!(
                        "expected a whole number from {} to {}",
                        range.start(),
                        range.end()
                    )
                })
        })
    }

    pub(super) fn duration(
        &mut self,
        report: &mut Report,
        key: &'static str,
        default: Duration,
        range: &RangeInclusive<Duration>,
    ) -> Duration {
        self.optional_duration(report, key, range)
            .unwrap_or(default)
    }

    pub(super) fn optional_duration(
        &mut self,
        report: &mut Report,
        key: &'static str,
        range: &RangeInclusive<Duration>,
    ) -> Option<Duration> {
        self.get(report, key, |value| {
            // A bare number has no unit, and is refused as any other text without one.
            units::parse_duration(value.as_text().unwrap_or_default(), range)
        })
    }

    pub(super) fn bytes(
        &mut self,
        report: &mut Report,
        key: &'static str,
        default: u64,
        range: &RangeInclusive<u64>,
    ) -> u64 {
        self.optional_bytes(report, key, range).unwrap_or(default)
    }

    pub(super) fn optional_bytes(
        &mut self,
        report: &mut Report,
        key: &'static str,
        range: &RangeInclusive<u64>,
    ) -> Option<u64> {
        self.get(report, key, |value| match value.as_integer() {
            Some(number) => units::parse_bytes(&number.to_string(), range),
            None => units::parse_bytes(value.as_text().unwrap_or_default(), range),
        })
    }

    /// A list of texts, each parsed; `None` when the key is not there.
    pub(super) fn texts<T>(
        &mut self,
        report: &mut Report,
        key: &'static str,
        max: usize,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Vec<T>> {
        let item = self.take(key)?;
        let full = self.key(key);
        let Value::Array(items) = item.value else {
            let message = format!(
                "{}: expected a list, such as [\"…\", \"…\"]",
                item.value.quoted()
            );
            report
                .problems
                .push(Problem::new(item.source, full, message));
            return None;
        };
        if items.len() > max {
            let message = format!("has {} values: expected at most {max}", items.len());
            report
                .problems
                .push(Problem::new(item.source, full, message));
            return None;
        }
        let mut values = Vec::with_capacity(items.len());
        for item in items {
            let parsed = match item.value.as_text() {
                Some(text) => parse(text),
                None => Err(EXPECTED_TEXT.to_owned()),
            };
            match parsed {
                Ok(value) => values.push(value),
                Err(expected) => {
                    let message = format!("{}: {expected}", item.value.quoted());
                    report
                        .problems
                        .push(Problem::new(item.source, full.clone(), message));
                }
            }
        }
        report.origins.insert(full, item.source);
        Some(values)
    }

    /// An inner table, `None` when it is not there.
    pub(super) fn optional_section(
        &mut self,
        report: &mut Report,
        key: &'static str,
    ) -> Option<Self> {
        let item = self.take(key)?;
        self.inner(report, self.key(key), item)
    }

    /// An inner table, empty when it is not there.
    pub(super) fn section(&mut self, report: &mut Report, key: &'static str) -> Self {
        self.optional_section(report, key).unwrap_or_else(|| Self {
            name: self.key(key),
            ..Self::root(Table::new())
        })
    }

    /// The blocks of an array of tables.
    pub(super) fn blocks(
        &mut self,
        report: &mut Report,
        key: &'static str,
        max: usize,
    ) -> Vec<Self> {
        let Some(item) = self.take(key) else {
            return Vec::new();
        };
        let full = self.key(key);
        let Value::Array(items) = item.value else {
            let message = format!(
                "{}: expected blocks that begin with [[{full}]]",
                item.value.quoted()
            );
            report
                .problems
                .push(Problem::new(item.source, full, message));
            return Vec::new();
        };
        if items.len() > max {
            let message = format!("has {} blocks: expected at most {max}", items.len());
            report
                .problems
                .push(Problem::new(item.source, full, message));
            return Vec::new();
        }
        report.origins.insert(full.clone(), item.source);
        let named = |(index, item)| self.inner(report, format!("{full}[{index}]"), item);
        items.into_iter().enumerate().filter_map(named).collect()
    }

    /// What nobody asked for, as sections: the tables that have a name of the user's choice.
    pub(super) fn remaining_sections(&mut self, report: &mut Report) -> Vec<(String, Self)> {
        let (tables, rest) = std::mem::take(&mut self.table)
            .into_iter()
            .partition(|(_, item)| matches!(item.value, Value::Table(_)));
        self.table = rest;
        let tables: Table = tables;
        tables
            .into_iter()
            .filter_map(|(key, item)| {
                let section = self.inner(report, self.key(&key), item)?;
                Some((key, section))
            })
            .collect()
    }

    /// Everything that is left, unjudged.
    pub(super) fn remaining(&mut self) -> Table {
        std::mem::take(&mut self.table)
    }

    /// A copy of everything that is in the table now, unjudged.
    pub(super) fn snapshot(&self) -> Table {
        self.table.clone()
    }

    fn inner(&self, report: &mut Report, name: String, item: Item) -> Option<Self> {
        let Value::Table(table) = item.value else {
            let rules = format!("allow-{name}");
            let hint = if KINDS.contains(&rules.as_str()) {
                format!("; rules are [[{rules}]] blocks")
            } else {
                String::new()
            };
            let message = format!("{}: expected a table, [{name}]{hint}", item.value.quoted());
            report
                .problems
                .push(Problem::new(item.source, name, message));
            return None;
        };
        Some(Self {
            name,
            source: item.source,
            table,
            asked: Vec::new(),
        })
    }

    /// Notes the keys that are left over as unknown.
    pub(super) fn finish(self, report: &mut Report) {
        report
            .known
            .extend(self.asked.iter().map(|key| self.key(key)));
        for (key, item) in &self.table {
            let meant = did_you_mean(key, self.asked.iter().copied()).map(ToOwned::to_owned);
            let mut expected = self.asked.clone();
            expected.sort_unstable();
            report.unknown.push(Unknown {
                key: self.key(key),
                source: item.source.clone(),
                value: item.value.quoted(),
                meant,
                expected,
            });
        }
    }
}
