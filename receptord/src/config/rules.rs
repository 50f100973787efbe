//! The rules of the configuration, `[[allow]]` and its like.
//!
//! Owns their keys and what makes one wrong. Looks up the numbers of users and groups, once, so that
//! nobody has to wait for the system's directory when somebody connects.

use nix::unistd::{Group, User};

use super::error::Problem;
use super::fragment::Source;
use super::pattern::Pattern;
use super::read::MAX_BLOCKS;
use super::section::{Report, Section};
use crate::policy::{KINDS, Link, People, Principal, Right, Rule, Rules, Transit, Use};

/// Patterns, users or groups in one list of a rule.
const MAX_LIST: usize = 1000;

/// Reads the rules of all kinds.
pub(super) fn read(root: &mut Section, r: &mut Report) -> Rules {
    let [allow, link, transit, control] = KINDS;
    Rules {
        allow: blocks(root, r, allow)
            .into_iter()
            .filter_map(|mut block| {
                let from = patterns(&mut block, r, "from", "controller*", node);
                let directive = patterns(&mut block, r, "directive", "runner:*", directive);
                let rule = permits(block, r);
                let whom = Use {
                    from: from?,
                    directive: directive?,
                };
                Some(rule(whom))
            })
            .collect(),
        link: blocks(root, r, link)
            .into_iter()
            .filter_map(|mut block| {
                let node = patterns(&mut block, r, "node", "edge-*", node);
                let rule = permits(block, r);
                Some(rule(Link { node: node? }))
            })
            .collect(),
        transit: blocks(root, r, transit)
            .into_iter()
            .filter_map(|mut block| {
                let from = patterns(&mut block, r, "from", "controller*", node);
                let to = patterns(&mut block, r, "to", "edge-*", node);
                let rule = permits(block, r);
                let whom = Transit {
                    from: from?,
                    to: to?,
                };
                Some(rule(whom))
            })
            .collect(),
        control: blocks(root, r, control)
            .into_iter()
            .filter_map(|block| people(block, r))
            .collect(),
    }
}

fn blocks(root: &mut Section, r: &mut Report, kind: &'static str) -> Vec<Section> {
    let blocks = root.blocks(r, kind, MAX_BLOCKS);
    if blocks.is_empty() && r.origins.contains_key(kind) {
        let text = format!(
            "is empty: leave it out to permit everything, or write a [[{kind}]] block that denies"
        );
        r.refuse(kind, text);
    }
    blocks
}

/// The rest of a block that permits or denies.
fn permits<W>(mut block: Section, r: &mut Report) -> impl FnOnce(W) -> Rule<W, bool> {
    let deny = block.boolean(r, "deny", false);
    let place = block.source().clone();
    block.finish(r);
    move |whom| Rule {
        whom,
        says: !deny,
        place,
    }
}

fn people(mut block: Section, r: &mut Report) -> Option<Rule<People, Right>> {
    let user = principals(&mut block, r, "user", |name| {
        Ok(User::from_name(name)?.map(|user| user.uid.as_raw()))
    });
    let group = principals(&mut block, r, "group", |name| {
        Ok(Group::from_name(name)?.map(|group| group.gid.as_raw()))
    });
    const EXPECTED: &str = "expected \"nothing\", \"look\", \"send\" or \"administer\"";
    let may = block.required(r, "may", EXPECTED, |text| {
        let right = Right::ALL.into_iter().find(|right| right.as_str() == text);
        right.ok_or_else(|| EXPECTED.to_owned())
    });
    if user.is_none() && group.is_none() {
        let (source, key) = (block.source().clone(), block.key("user"));
        let message = "is missing, and group too: expected user = [\"alice\"] or group = [\"ops\"], names, numbers or \"*\"";
        r.problems.push(Problem::new(source, key, message));
    }
    let place = block.source().clone();
    block.finish(r);
    let whom = People {
        user: user.unwrap_or_default(),
        group: group.unwrap_or_default(),
    };
    Some(Rule {
        whom,
        says: may?,
        place,
    })
}

/// A list that has to be there, with something in it.
fn patterns(
    block: &mut Section,
    r: &mut Report,
    key: &'static str,
    example: &str,
    parse: fn(&str) -> Result<Pattern, String>,
) -> Option<Vec<Pattern>> {
    let before = r.problems.len();
    let list = block.texts(r, key, MAX_LIST, parse);
    if r.problems.len() > before {
        return None;
    }
    let full = block.key(key);
    match list {
        None => {
            let message = format!("is missing: expected {key} = [\"{example}\"] or the like");
            let source: Source = block.source().clone();
            r.problems.push(Problem::new(source, full, message));
            None
        }
        Some(list) if list.is_empty() => {
            r.refuse(&full, format!("is empty, and fits nothing: expected {key} = [\"{example}\"] or the like; with deny = true the block denies what it fits"));
            None
        }
        Some(list) => Some(list),
    }
}

/// A list of users or groups, if it is there.
fn principals(
    block: &mut Section,
    r: &mut Report,
    key: &'static str,
    look_up: fn(&str) -> nix::Result<Option<u32>>,
) -> Option<Vec<Principal>> {
    let full = block.key(key);
    let list = block.texts(r, key, MAX_LIST, |text| {
        if text.is_empty() || text.contains(['\0', ':', '\n']) {
            return Err(format!("expected the name or number of a {key}, or \"*\""));
        }
        if text == "*" {
            return Ok(Principal::Any);
        }
        let id = text.parse().ok().or_else(|| look_up(text).ok().flatten());
        Ok(Principal::One {
            written: text.to_owned(),
            id,
        })
    })?;
    if list.is_empty() {
        let text = format!(
            "is empty, and fits nobody: expected names or numbers, or \"*\"; leave {key} out if it shall not matter"
        );
        r.refuse(&full, text);
    }
    for principal in &list {
        if let Principal::One { written, id: None } = principal {
            let text = format!(
                "\"{written}\": this host has no such {key}, so that it fits nobody until a reload finds one"
            );
            r.warnings
                .push(Problem::new(r.origin(&full), full.clone(), text));
        }
    }
    Some(list)
}

fn node(text: &str) -> Result<Pattern, String> {
    text.parse()
}

fn directive(text: &str) -> Result<Pattern, String> {
    // Without a colon it could never match, which is not what its author meant.
    if text != "*" && text.matches(':').count() != 1 {
        return Err("expected plugin:action, such as \"runner:*\", or \"*\"".to_owned());
    }
    text.parse()
}
