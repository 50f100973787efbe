//! Directives: what a message asks for. Owns their grammar.

use alloc::string::{String, ToString};
use alloc::sync::Arc;
use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The longest plugin or action name, in bytes.
pub const NAME_MAX: usize = 64;

/// `plugin:action`. The plugin is `^[a-z][a-z0-9_-]{0,63}$`, the action
/// `^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$`. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Directive {
    text: Arc<str>,
    colon: usize,
}

/// Why a text is no directive.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DirectiveError {
    /// There is no colon, or more than one.
    #[error("a directive is PLUGIN:ACTION, for example runner:execute")]
    NotTwoParts,
    /// The part before the colon is no plugin name.
    #[error("{name:?} is no plugin name: a lower-case letter, then up to 63 of a-z 0-9 _ -")]
    BadPlugin {
        /// What was given.
        name: String,
    },
    /// The part after the colon is no action name.
    #[error(
        "{name:?} is no action name: up to 64 of A-Z a-z 0-9 _ . -, starting with a letter or digit"
    )]
    BadAction {
        /// What was given.
        name: String,
    },
}

/// Whether `name` may name a plugin.
#[must_use]
pub fn is_plugin_name(name: &str) -> bool {
    name.len() <= NAME_MAX
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name
            .bytes()
            .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'))
}

/// Whether `name` may name an action.
#[must_use]
pub fn is_action_name(name: &str) -> bool {
    name.len() <= NAME_MAX
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
}

impl Directive {
    /// Checks `text` and makes it a directive.
    pub fn new(text: &str) -> Result<Self, DirectiveError> {
        let Some((plugin, action)) = text.split_once(':') else {
            return Err(DirectiveError::NotTwoParts);
        };
        if action.contains(':') {
            return Err(DirectiveError::NotTwoParts);
        }
        // An error repeats at most a name's length of what was given.
        let shown = |name: &str| name.chars().take(NAME_MAX).collect();
        if !is_plugin_name(plugin) {
            return Err(DirectiveError::BadPlugin {
                name: shown(plugin),
            });
        }
        if !is_action_name(action) {
            return Err(DirectiveError::BadAction {
                name: shown(action),
            });
        }
        Ok(Self {
            text: text.into(),
            colon: plugin.len(),
        })
    }

    /// The plugin's name.
    #[must_use]
    pub fn plugin(&self) -> &str {
        &self.text[..self.colon]
    }

    /// The action's name.
    #[must_use]
    pub fn action(&self) -> &str {
        &self.text[self.colon + 1..]
    }

    /// `plugin:action`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl FromStr for Directive {
    type Err = DirectiveError;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Self::new(s)
    }
}

impl fmt::Display for Directive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

impl fmt::Debug for Directive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.text, f)
    }
}

impl Serialize for Directive {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Directive {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        Self::new(&text).map_err(|e| serde::de::Error::custom(e.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directives_have_two_parts() {
        let d = Directive::new("runner:execute").unwrap();
        assert_eq!(
            (d.plugin(), d.action(), d.as_str()),
            ("runner", "execute", "runner:execute")
        );
        for bad in ["", "runner", "a:b:c"] {
            assert_eq!(
                Directive::new(bad),
                Err(DirectiveError::NotTwoParts),
                "{bad}"
            );
        }
        for bad in [":x", "A:x", "../x:y", "1a:x"] {
            assert!(
                matches!(Directive::new(bad), Err(DirectiveError::BadPlugin { .. })),
                "{bad}"
            );
        }
        for bad in ["a:", "a:-x", "a:x y"] {
            assert!(
                matches!(Directive::new(bad), Err(DirectiveError::BadAction { .. })),
                "{bad}"
            );
        }
    }
}
