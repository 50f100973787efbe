//! Names of nodes and messages. Owns their validity rules; a value of these types is valid.

use alloc::string::{String, ToString};
use alloc::sync::Arc;
use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

/// The longest node id, in bytes. Long enough for any DNS name's useful part, short enough
/// to be carried in every packet.
pub const NODE_ID_MAX: usize = 128;

/// The name of one running receptord: 1 to 128 of `A-Z a-z 0-9 . _ - @ :`, not starting with
/// `.` or `-`; compared byte for byte. Cheap to clone. Never use it as a file name unescaped.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(Arc<str>);

/// Why a text is no node id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NodeIdError {
    /// Nothing at all.
    #[error("a node id must not be empty")]
    Empty,
    /// Longer than [`NODE_ID_MAX`].
    #[error("a node id has at most {NODE_ID_MAX} characters, this one has {length}")]
    TooLong {
        /// Bytes given.
        length: usize,
    },
    /// A first character that would make it look like an option or a hidden file.
    #[error("a node id must not start with {found:?}")]
    BadStart {
        /// The first character.
        found: char,
    },
    /// A character outside the set.
    #[error("a node id may contain A-Z a-z 0-9 . _ - @ : only, not {found:?}")]
    BadCharacter {
        /// The first offender.
        found: char,
    },
}

impl NodeId {
    /// Checks `text` and makes it a node id.
    pub fn new(text: &str) -> Result<Self, NodeIdError> {
        if text.is_empty() {
            return Err(NodeIdError::Empty);
        }
        if text.len() > NODE_ID_MAX {
            return Err(NodeIdError::TooLong { length: text.len() });
        }
        if let Some(found) = text
            .chars()
            .find(|c| !matches!(c, 'A'..='Z' | 'a'..='z' | '0'..='9' | '.' | '_' | '-' | '@' | ':'))
        {
            return Err(NodeIdError::BadCharacter { found });
        }
        if let Some(found @ ('.' | '-')) = text.chars().next() {
            return Err(NodeIdError::BadStart { found });
        }
        Ok(Self(text.into()))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NodeId {
    type Err = NodeIdError;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Self::new(s)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl core::borrow::Borrow<str> for NodeId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl Serialize for NodeId {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for NodeId {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        Self::new(&text).map_err(serde::de::Error::custom)
    }
}

/// Names one request, the work it becomes, and that work's responses. A UUID, written as
/// 32 hexadecimal digits without hyphens so that it is one word everywhere.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId(Uuid);

/// The beginning of a message id, as a person types it: 4 to 32 hexadecimal digits. Which message
/// it means is up to whoever knows them all.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct IdPrefix(String);

/// A text that cannot be the beginning of a message id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an id is 32 hexadecimal digits, of which the first {ID_PREFIX_MIN} or more will do")]
pub struct IdPrefixError;

/// The fewest digits of an [`IdPrefix`]: fewer are sooner a mistake than an id.
pub const ID_PREFIX_MIN: usize = 4;

impl IdPrefix {
    /// Whether this id begins so.
    #[must_use]
    pub fn matches(&self, id: MessageId) -> bool {
        match self.whole() {
            Some(whole) => whole == id,
            None => id.to_string().starts_with(&self.0),
        }
    }

    /// The id, when all of it is there.
    #[must_use]
    pub fn whole(&self) -> Option<MessageId> {
        (self.0.len() == 32).then(|| self.0.parse().ok()).flatten()
    }
}

impl FromStr for IdPrefix {
    type Err = IdPrefixError;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        if let Ok(id) = s.parse::<MessageId>() {
            return Ok(Self(id.to_string()));
        }
        let good =
            (ID_PREFIX_MIN..32).contains(&s.len()) && s.bytes().all(|b| b.is_ascii_hexdigit());
        if good {
            Ok(Self(s.to_ascii_lowercase()))
        } else {
            Err(IdPrefixError)
        }
    }
}

impl From<MessageId> for IdPrefix {
    fn from(id: MessageId) -> Self {
        Self(id.to_string())
    }
}

impl fmt::Display for IdPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl Serialize for IdPrefix {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for IdPrefix {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A text that is no message id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a message id is 32 hexadecimal digits")]
pub struct MessageIdError;

impl MessageId {
    /// The id with this number.
    #[must_use]
    pub const fn from_u128(value: u128) -> Self {
        Self(Uuid::from_u128(value))
    }

    /// Length of its text.
    pub const TEXT_LEN: usize = 32;

    /// Its text, in this buffer.
    pub fn encode(self, buffer: &mut [u8; Self::TEXT_LEN]) -> &str {
        self.0.as_simple().encode_lower(buffer)
    }

    /// The number of this id.
    #[must_use]
    pub const fn as_u128(self) -> u128 {
        self.0.as_u128()
    }

    /// When its message was made, in milliseconds since 1970: an id that no key gave is a UUID of
    /// version 7, which begins with that. `None` for others.
    #[must_use]
    pub const fn made_ms(self) -> Option<u64> {
        let id = self.0.as_u128();
        if self.0.get_version_num() == 7 {
            Some((id >> 80) as u64)
        } else {
            None
        }
    }
}

impl FromStr for MessageId {
    type Err = MessageIdError;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Uuid::try_parse(s).map(Self).map_err(|_| MessageIdError)
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self.0.as_simple(), f)
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for MessageId {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(self.encode(&mut [0; Self::TEXT_LEN]))
    }
}

impl<'de> Deserialize<'de> for MessageId {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_ids_follow_the_rules() {
        for good in ["a", "node-b", "a.b_c@d:e", "0", &"x".repeat(128)] {
            assert_eq!(NodeId::new(good).unwrap().as_str(), good);
        }
        assert_eq!(NodeId::new(""), Err(NodeIdError::Empty));
        assert_eq!(
            NodeId::new(&"x".repeat(129)),
            Err(NodeIdError::TooLong { length: 129 })
        );
        assert_eq!(NodeId::new(".x"), Err(NodeIdError::BadStart { found: '.' }));
        assert_eq!(NodeId::new("-x"), Err(NodeIdError::BadStart { found: '-' }));
        for bad in ["a b", "../etc", "a/b", "ä", "a\n", "a\0"] {
            assert!(
                matches!(NodeId::new(bad), Err(NodeIdError::BadCharacter { .. })),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn message_ids_are_one_word() {
        let id = MessageId::from_u128(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);
        assert_eq!(id.to_string(), "0123456789abcdef0123456789abcdef");
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!("no".parse::<MessageId>(), Err(MessageIdError));
    }
}
