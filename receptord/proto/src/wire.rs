//! The primitives of the link protocol's binary encoding: varints, strings, byte strings.
//!
//! Integers are LEB128 varints unless a fixed width is named; strings and byte strings are
//! a varint length and that many bytes. Decoding is zero-copy where the type allows: byte
//! strings are slices of the frame they came in. Whatever a peer sends, decoding returns a
//! [`DecodeError`]; it never panics and never allocates more than the input's own size.

use alloc::string::String;
use alloc::vec::Vec;

use bytes::{Buf as _, Bytes};

use crate::id::NodeId;

/// Why bytes of a peer could not be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The input ended inside a value.
    #[error("ends early in {what}")]
    Truncated {
        /// What was being read.
        what: &'static str,
    },
    /// A value outside its allowed range or set.
    #[error("bad {what}")]
    Bad {
        /// What was being read.
        what: &'static str,
    },
    /// More items or bytes than the named limit allows.
    #[error("{what} is {size}, the limit is {limit}")]
    TooLarge {
        /// What was being read.
        what: &'static str,
        /// What the peer announced.
        size: u64,
        /// The limit.
        limit: u64,
    },
}

/// Bytes that [`Writer::varint`] takes for this value.
#[must_use]
pub const fn varint_len(value: u64) -> usize {
    // Seven bits a byte, and at least one byte.
    (64 - (value | 1).leading_zeros()).div_ceil(7) as usize
}

/// Bytes that [`Writer::bytes`] takes for this many bytes.
#[must_use]
pub const fn bytes_len(size: usize) -> usize {
    varint_len(size as u64) + size
}

/// Appends values to a byte vector.
#[derive(Debug)]
pub struct Writer<'a>(pub &'a mut Vec<u8>);

impl Writer<'_> {
    /// One byte.
    pub fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    /// Four bytes, big-endian.
    pub fn fixed_u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_be_bytes());
    }

    /// Eight bytes, big-endian.
    pub fn fixed_u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_be_bytes());
    }

    /// A varint of 1 to 10 bytes.
    pub fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        #[expect(clippy::cast_possible_truncation, reason = "below 0x80")]
        self.0.push(value as u8);
    }

    /// A length and that many bytes.
    pub fn bytes(&mut self, value: &[u8]) {
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
    }

    /// A string as its UTF-8 bytes.
    pub fn str(&mut self, value: &str) {
        self.bytes(value.as_bytes());
    }

    /// A node id as a string.
    pub fn node(&mut self, value: &NodeId) {
        self.str(value.as_str());
    }
}

/// Takes values from the front of a byte string.
#[derive(Debug, Clone)]
pub struct Reader {
    rest: Bytes,
}

impl Reader {
    /// Reads from the start of `input`.
    #[must_use]
    pub fn new(input: Bytes) -> Self {
        Self { rest: input }
    }

    /// Whether nothing is left: later versions append fields, so absence means the default.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Bytes left.
    #[must_use]
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// Everything that is left.
    #[must_use]
    pub fn into_rest(self) -> Bytes {
        self.rest
    }

    /// One byte.
    pub fn u8(&mut self, what: &'static str) -> Result<u8, DecodeError> {
        let Some(&first) = self.rest.first() else {
            return Err(DecodeError::Truncated { what });
        };
        self.rest.advance(1);
        Ok(first)
    }

    /// A byte that must be 0 or 1.
    pub fn bool(&mut self, what: &'static str) -> Result<bool, DecodeError> {
        match self.u8(what)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(DecodeError::Bad { what }),
        }
    }

    /// Four bytes, big-endian.
    pub fn fixed_u32(&mut self, what: &'static str) -> Result<u32, DecodeError> {
        let Some((head, _)) = self.rest.split_first_chunk::<4>() else {
            return Err(DecodeError::Truncated { what });
        };
        let value = u32::from_be_bytes(*head);
        self.rest.advance(4);
        Ok(value)
    }

    /// Eight bytes, big-endian.
    pub fn fixed_u64(&mut self, what: &'static str) -> Result<u64, DecodeError> {
        let Some((head, _)) = self.rest.split_first_chunk::<8>() else {
            return Err(DecodeError::Truncated { what });
        };
        let value = u64::from_be_bytes(*head);
        self.rest.advance(8);
        Ok(value)
    }

    /// A varint; an overlong or overflowing one is refused.
    pub fn varint(&mut self, what: &'static str) -> Result<u64, DecodeError> {
        let mut value = 0u64;
        for (index, &byte) in self.rest.iter().enumerate() {
            let bits = u64::from(byte & 0x7f);
            let shift = 7 * index;
            if index == 9 && byte > 1 || index > 0 && byte == 0 {
                return Err(DecodeError::Bad { what });
            }
            value |= bits << shift;
            if byte < 0x80 {
                self.rest.advance(index + 1);
                return Ok(value);
            }
        }
        Err(DecodeError::Truncated { what })
    }

    /// A varint that must fit 32 bits.
    pub fn varint_u32(&mut self, what: &'static str) -> Result<u32, DecodeError> {
        u32::try_from(self.varint(what)?).map_err(|_| DecodeError::Bad { what })
    }

    /// The number of items of a list, each at least `min_size` bytes long, so that a peer
    /// cannot announce more than it sent.
    pub fn count(&mut self, min_size: usize, what: &'static str) -> Result<usize, DecodeError> {
        let size = self.varint(what)?;
        let limit = (self.rest.len() / min_size.max(1)) as u64;
        if size > limit {
            return Err(DecodeError::TooLarge { what, size, limit });
        }
        usize::try_from(size).map_err(|_| DecodeError::Bad { what })
    }

    /// A byte string of at most `limit` bytes: a slice of the input.
    pub fn bytes(&mut self, limit: usize, what: &'static str) -> Result<Bytes, DecodeError> {
        let size = self.size(limit, what)?;
        Ok(self.rest.split_to(size))
    }

    /// The size of a byte string of at most `limit` bytes, which is there.
    fn size(&mut self, limit: usize, what: &'static str) -> Result<usize, DecodeError> {
        let size = self.varint(what)?;
        if size > limit as u64 {
            return Err(DecodeError::TooLarge {
                what,
                size,
                limit: limit as u64,
            });
        }
        match usize::try_from(size) {
            Ok(size) if size <= self.rest.len() => Ok(size),
            _ => Err(DecodeError::Truncated { what }),
        }
    }

    /// A UTF-8 string of at most `limit` bytes.
    pub fn str(&mut self, limit: usize, what: &'static str) -> Result<String, DecodeError> {
        self.text(limit, what, |text| Some(text.into()))
    }

    /// A valid node id.
    pub fn node(&mut self, what: &'static str) -> Result<NodeId, DecodeError> {
        let limit = crate::id::NODE_ID_MAX;
        self.text(limit, what, |text| NodeId::new(text).ok())
    }

    /// What is made of a UTF-8 string of at most `limit` bytes, where it lies.
    pub(crate) fn text<T>(
        &mut self,
        limit: usize,
        what: &'static str,
        make: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, DecodeError> {
        let size = self.size(limit, what)?;
        let text = core::str::from_utf8(&self.rest[..size]).ok();
        let made = text.and_then(make).ok_or(DecodeError::Bad { what })?;
        self.rest.advance(size);
        Ok(made)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn varints_survive(value: u64) {
            let mut out = Vec::new();
            Writer(&mut out).varint(value);
            prop_assert_eq!(out.len(), varint_len(value));
            let mut reader = Reader::new(out.into());
            prop_assert_eq!(reader.varint("x"), Ok(value));
            prop_assert!(reader.is_empty());
        }

        #[test]
        fn random_bytes_never_panic(input: Vec<u8>) {
            let mut reader = Reader::new(input.into());
            let _ = reader.clone().varint("x");
            let _ = reader.clone().str(10, "x");
            let _ = reader.clone().node("x");
            let _ = reader.clone().count(3, "x");
            let _ = reader.fixed_u64("x");
        }
    }

    #[test]
    fn overlong_varints_are_refused() {
        let mut reader = Reader::new(Bytes::from_static(&[0x80, 0x00]));
        assert_eq!(reader.varint("x"), Err(DecodeError::Bad { what: "x" }));
        let mut reader = Reader::new(Bytes::from_static(&[0xff; 11]));
        assert_eq!(reader.varint("x"), Err(DecodeError::Bad { what: "x" }));
    }
}
