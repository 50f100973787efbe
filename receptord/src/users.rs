//! Which users and groups of the host this process can tell apart.
//!
//! Owns reading its user namespace. In one of its own, as `PrivateUsers=` of systemd gives it, a client who is not
//! mapped is "nobody", like all others who are not. Decides nothing.

use std::fs;
use std::ops::RangeInclusive;

use crate::policy::{People, Principal, Rules};

/// The ids that are mapped.
#[derive(Debug)]
struct Map(Vec<RangeInclusive<u32>>);

impl Map {
    /// That of this process; what cannot be read hides nobody.
    fn read(path: &str) -> Self {
        fs::read_to_string(path).map_or_else(|_| Self::everybody(), |text| Self::parse(&text))
    }

    fn everybody() -> Self {
        Self(vec![0..=u32::MAX])
    }

    /// Lines of the first id inside, the first outside, and how many.
    fn parse(text: &str) -> Self {
        let range = |line: &str| {
            let mut numbers = line.split_whitespace().map(str::parse);
            let (first, count): (u32, u32) = (numbers.next()?.ok()?, numbers.nth(1)?.ok()?);
            Some(first..=first.saturating_add(count.checked_sub(1)?))
        };
        Self(text.lines().filter_map(range).collect())
    }

    /// Who of these is there and cannot be told from others.
    fn hidden<'a>(&self, principals: &'a [Principal]) -> impl Iterator<Item = &'a str> {
        principals.iter().filter_map(|principal| match principal {
            Principal::Any | Principal::One { id: None, .. } => None,
            Principal::One {
                written,
                id: Some(id),
            } => {
                let is_seen = self.0.iter().any(|range| range.contains(id));
                (!is_seen).then_some(written.as_str())
            }
        })
    }
}

/// Logs which rules are about users or groups that this process cannot tell from others, so that they fit nobody.
pub(crate) fn warn_of_hidden(rules: &Rules) {
    if rules.control.is_empty() {
        return;
    }
    let (uids, gids) = (
        Map::read("/proc/self/uid_map"),
        Map::read("/proc/self/gid_map"),
    );
    for rule in &rules.control {
        let People { user, group } = &rule.whom;
        let users = uids.hidden(user).map(|name| ("user", name));
        let groups = gids.hidden(group).map(|name| ("group", name));
        for (kind, name) in users.chain(groups) {
            tracing::warn!(
                "{}: allow-control.{kind}: \"{name}\" cannot be told from others in the user namespace of this daemon, so that the rule \
                 does not fit: PrivateUsers= of its unit hides that {kind} (docs/systemd.md, examples/users.conf)",
                rule.place
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(written: &str, id: Option<u32>) -> Principal {
        Principal::One {
            written: written.to_owned(),
            id,
        }
    }

    #[test]
    fn who_is_not_mapped_is_hidden() {
        let people = [
            Principal::Any,
            one("root", Some(0)),
            one("receptor", Some(996)),
            one("alice", Some(1000)),
            one("nobody-here", None),
            one("4294967294", Some(u32::MAX - 1)),
        ];
        let hidden = |map: &Map| map.hidden(&people).collect::<Vec<_>>().join(" ");
        // As PrivateUsers= has it: yes, identity, no.
        let own =
            Map::parse("         0          0          1\n       996        996          1\n");
        assert_eq!(hidden(&own), "alice 4294967294");
        let identity = Map::parse("         0          0      65536\n");
        assert_eq!(hidden(&identity), "4294967294");
        let host = Map::parse("         0          0 4294967295\n");
        assert_eq!(hidden(&host), "");
        assert_eq!(hidden(&Map::everybody()), "");
        assert_eq!(hidden(&Map::read("/proc/self/no-such-file")), "");
    }
}
