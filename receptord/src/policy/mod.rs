//! Who may do what at this node: rules, questions, and answers with the rule that decided.
//!
//! Pure: rules and a question in, an answer out. Of each kind the first rule that fits decides; where
//! there are rules of a kind and none fits, the answer is no; where there are none, everything is
//! permitted. Never acts, logs or looks anything up: `config` reads the rules, the core and the control
//! socket ask, `log` says what is told of a no.
//!
//! | kind | who asks | what about |
//! | --- | --- | --- |
//! | `[[allow]]` | the core, of each request that arrives | may this node use this directive here |
//! | `[[allow-link]]` | the core, at the hello | may this node be a neighbor |
//! | `[[allow-transit]]` | the core, of each packet on its way | is it forwarded |
//! | `[[allow-control]]` | sessions, of each command | may this user give it |

mod explain;
pub(crate) mod log;
#[cfg(test)]
mod tests;

use std::fmt;

use receptor_proto::{Directive, NodeId};

pub use self::explain::explain;
use crate::config::{Pattern, Source};

/// The names of the kinds, as they stand in configuration files.
pub const KINDS: [&str; 4] = ["allow", "allow-link", "allow-transit", "allow-control"];

/// All rules, each kind in the order in which they are asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Who may use which directive here.
    pub allow: Vec<Rule<Use, bool>>,
    /// Who may be a neighbor.
    pub link: Vec<Rule<Link, bool>>,
    /// For whom this node forwards.
    pub transit: Vec<Rule<Transit, bool>>,
    /// What which users may do at the control socket.
    pub control: Vec<Rule<People, Right>>,
}

/// One rule.
#[derive(Clone, Debug)]
pub struct Rule<W, V> {
    /// What it is about.
    pub whom: W,
    /// What it says then.
    pub says: V,
    /// Where it was written.
    pub place: Source,
}

/// Where a rule stands makes no difference to what it says.
impl<W: PartialEq, V: PartialEq> PartialEq for Rule<W, V> {
    fn eq(&self, other: &Self) -> bool {
        self.whom == other.whom && self.says == other.says
    }
}

impl<W: Eq, V: Eq> Eq for Rule<W, V> {}

/// Works that a rule is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Use {
    /// Senders, by node id.
    pub from: Vec<Pattern>,
    /// Directives, `plugin:action`.
    pub directive: Vec<Pattern>,
}

/// Neighbors that a rule is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Node ids.
    pub node: Vec<Pattern>,
}

/// Ways that a rule is about, in both directions: whatever is asked is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transit {
    /// One end, by node id.
    pub from: Vec<Pattern>,
    /// The other.
    pub to: Vec<Pattern>,
}

/// Users that a rule is about: those named, and the members of the groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct People {
    /// Users.
    pub user: Vec<Principal>,
    /// Groups.
    pub group: Vec<Principal>,
}

/// A user or a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Principal {
    /// All of them.
    Any,
    /// One.
    One {
        /// As it was written: its name or number.
        written: String,
        /// Its number; `None` when this host knew nobody of this name as the rules were read.
        id: Option<u32>,
    },
}

impl Principal {
    fn is(&self, other: u32) -> bool {
        match self {
            Self::Any => true,
            Self::One { id, .. } => *id == Some(other),
        }
    }

    /// As it was written.
    #[must_use]
    pub fn written(&self) -> &str {
        match self {
            Self::Any => "*",
            Self::One { written, .. } => written,
        }
    }
}

/// What a user may do at the control socket; each right includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Right {
    /// Nothing at all.
    Nothing,
    /// See what the node knows: status, nodes, works, what waits.
    Look,
    /// Send messages, read responses, end what oneself has sent.
    Send,
    /// Everything, also what others have sent: reload, log level, drop, cancel.
    Administer,
}

impl Right {
    /// All, the least first.
    pub const ALL: [Self; 4] = [Self::Nothing, Self::Look, Self::Send, Self::Administer];

    /// Its name in configuration files and answers.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Look => "look",
            Self::Send => "send",
            Self::Administer => "administer",
        }
    }
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A user of the control socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Person {
    /// User id.
    pub uid: u32,
    /// Group ids, the supplementary ones too.
    pub gids: Vec<u32>,
}

/// An answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer<'a, V> {
    /// What is the case.
    pub says: V,
    /// Why.
    pub because: Because<'a>,
}

/// What decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Because<'a> {
    /// There is no rule of this kind.
    NoRules(&'static str),
    /// There are rules of this kind, and none fits.
    NoneFits(&'static str),
    /// The first that fits, of this kind and from there.
    Rule(&'static str, &'a Source),
    /// No rule can say anything else: root and the daemon's own user could change the rules.
    Always,
}

impl fmt::Display for Because<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRules(kind) => write!(f, "there is no [[{kind}]] rule"),
            Self::NoneFits(kind) => write!(f, "no [[{kind}]] rule permits it"),
            Self::Rule(kind, place) => write!(f, "the [[{kind}]] rule at {place} says so"),
            Self::Always => f.write_str("root and the daemon's own user always may"),
        }
    }
}

impl Rules {
    /// Whether a node may use a directive here.
    #[must_use]
    pub fn may_use(&self, sender: &str, directive: &str) -> Answer<'_, bool> {
        decide(&self.allow, "allow", (true, false), |rule| {
            any(&rule.from, sender) && any(&rule.directive, directive)
        })
    }

    /// Whether a node may be a neighbor.
    #[must_use]
    pub fn may_link(&self, node: &str) -> Answer<'_, bool> {
        decide(&self.link, "allow-link", (true, false), |rule| {
            any(&rule.node, node)
        })
    }

    /// Whether this node forwards between two others.
    #[must_use]
    pub fn may_pass(&self, from: &str, to: &str) -> Answer<'_, bool> {
        decide(&self.transit, "allow-transit", (true, false), |rule| {
            any(&rule.from, from) && any(&rule.to, to) || any(&rule.from, to) && any(&rule.to, from)
        })
    }

    /// What somebody may do at the control socket of a daemon that runs as the user `own`.
    #[must_use]
    pub fn right(&self, person: &Person, own: u32) -> Answer<'_, Right> {
        if person.uid == 0 || person.uid == own {
            return Answer {
                says: Right::Administer,
                because: Because::Always,
            };
        }
        let defaults = (Right::Administer, Right::Nothing);
        decide(&self.control, "allow-control", defaults, |rule| {
            rule.user.iter().any(|user| user.is(person.uid))
                || rule
                    .group
                    .iter()
                    .any(|group| person.gids.iter().any(|gid| group.is(*gid)))
        })
    }
}

/// The first rule that fits, or one of `defaults`: without any rule, and when none fits.
fn decide<'a, W, V: Copy>(
    rules: &'a [Rule<W, V>],
    kind: &'static str,
    defaults: (V, V),
    fits: impl Fn(&W) -> bool,
) -> Answer<'a, V> {
    if rules.is_empty() {
        return Answer {
            says: defaults.0,
            because: Because::NoRules(kind),
        };
    }
    match rules.iter().find(|rule| fits(&rule.whom)) {
        Some(rule) => Answer {
            says: rule.says,
            because: Because::Rule(kind, &rule.place),
        },
        None => Answer {
            says: defaults.1,
            because: Because::NoneFits(kind),
        },
    }
}

fn any(patterns: &[Pattern], name: &str) -> bool {
    patterns.iter().any(|pattern| pattern.matches(name))
}

impl receptor_mesh::Policy for Rules {
    fn may_use(&self, sender: &NodeId, directive: &Directive) -> bool {
        Self::may_use(self, sender.as_str(), directive.as_str()).says
    }

    fn may_link(&self, node: &NodeId) -> bool {
        Self::may_link(self, node.as_str()).says
    }

    fn may_pass(&self, from: &NodeId, to: &NodeId) -> bool {
        Self::may_pass(self, from.as_str(), to.as_str()).says
    }
}
