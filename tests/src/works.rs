//! Whether the node that sent a work and the one that ran it say the same of it.
//!
//! Owns the comparison and what excuses a difference; knows nothing of what was done to the nodes.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::{Daemon, wait_for};

/// What both ends must say alike.
const SAME: [&str; 6] = ["state", "code", "error", "directive", "sender", "recipient"];

/// What one node says of works: by id, those sent and those run there.
struct List {
    sent: BTreeMap<String, Value>,
    here: BTreeMap<String, Value>,
    /// It fitted into one line.
    whole: bool,
}

impl List {
    fn of(node: &Daemon) -> Self {
        let reply = node.control().json("works");
        let works = reply["works"].as_array().expect("a list of works");
        let with_role = |role: &str| {
            let works = works.iter().filter(|work| work["role"] == role);
            let by_id = works.map(|work| {
                let id = work["id"].as_str().expect("an id");
                (id.to_owned(), work.clone())
            });
            by_id.collect()
        };
        Self {
            sent: with_role("sent"),
            here: with_role("here"),
            whole: reply["total"] == works.len(),
        }
    }
}

/// Waits until nothing runs or waits at these nodes, and what they say of works that one of them sent
/// and another ran is the same. Of works that the sender says are `lost` it does not know; of those
/// that never came to their node that node says nothing.
///
/// # Panics
///
/// When they do not agree in time, with the first difference.
pub fn wait_agreement<'a>(nodes: impl IntoIterator<Item = &'a Daemon>) {
    let nodes: Vec<_> = nodes.into_iter().collect();
    let mut last = String::new();
    let agreed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        wait_for("work lists that agree", || {
            match difference(&nodes) {
                None => return Some(()),
                Some(difference) => last = difference,
            }
            None
        });
    }));
    assert!(agreed.is_ok(), "{last}");
}

fn difference(nodes: &[&Daemon]) -> Option<String> {
    let lists: BTreeMap<&str, List> = nodes
        .iter()
        .map(|node| (node.name(), List::of(node)))
        .collect();
    for (name, list) in &lists {
        for (id, sent) in &list.sent {
            if sent["ended_ms"].is_null() {
                return Some(format!("{name} waits for {sent}"));
            }
            let recipient = sent["recipient"].as_str().unwrap_or_default();
            let Some(there) = lists.get(recipient) else {
                continue;
            };
            let Some(here) = there.here.get(id) else {
                let state = sent["state"].as_str().unwrap_or_default();
                let never_came = ["cancelled", "expired", "lost"].contains(&state);
                if there.whole && !never_came {
                    return Some(format!("{recipient} knows nothing of {sent}"));
                }
                continue;
            };
            // Of what was refused before it was a work there, that node does not know the directive.
            let unknown = |key: &str| key == "directive" && here[key].is_null();
            let alike = |key: &&str| sent[*key] == here[*key] || unknown(key);
            if sent["state"] != "lost" && !SAME.iter().all(alike) {
                return Some(format!("{name} says {sent}\n{recipient} says {here}"));
            }
        }
        // What was released is not known to its sender any more.
        if let Some(here) = list.here.values().find(|here| here["ended_ms"].is_null()) {
            return Some(format!("{name} runs {here}"));
        }
    }
    None
}
