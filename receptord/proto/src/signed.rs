//! The signature of an LSA, behind what it states.
//!
//! Owns its place and what it covers: everything of the LSA but what shrinks on its way. A node that
//! asks for no signatures reads the body and ignores what follows. Never signs or checks.
//!
//! ```text
//! body of a signed LSA:  statement · lifetime as stated (4) · signature · its length (2)
//! ```

use alloc::vec::Vec;

use bytes::Bytes;

use crate::lsa::{LSA_BODY_MAX, Lsa, LsaKey};
use crate::wire::Writer;

/// The longest signature, in bytes: that of an RSA key of 8192 bits.
pub const SIGNATURE_MAX: usize = 1024;
/// What a signature adds to a statement at most, in bytes.
pub const SIGNED_MORE: usize = 4 + SIGNATURE_MAX + 2;
/// The largest statement that can be signed.
pub const STATEMENT_MAX: usize = LSA_BODY_MAX - SIGNED_MORE;

/// A signed body, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedBody {
    /// What is stated.
    pub statement: Bytes,
    /// The lifetime that its originator gave it, in seconds; 0: it takes back.
    pub lifetime_s: u32,
    /// Over [`SignedBody::covered`].
    pub signature: Bytes,
}

impl SignedBody {
    /// Takes a body apart. `None`: it is not signed.
    #[must_use]
    pub fn split(body: &Bytes) -> Option<Self> {
        let (rest, length) = body.split_last_chunk::<2>()?;
        let length = usize::from(u16::from_be_bytes(*length));
        let rest = rest.len().checked_sub(length)?;
        let (statement, lifetime) = body[..rest].split_last_chunk::<4>()?;
        if length == 0 || length > SIGNATURE_MAX {
            return None;
        }
        Some(Self {
            statement: body.slice(..statement.len()),
            lifetime_s: u32::from_be_bytes(*lifetime),
            signature: body.slice(rest..rest + length),
        })
    }

    /// What is stated in a body, signed or not.
    #[must_use]
    pub fn statement_of(body: &Bytes) -> Bytes {
        Self::split(body).map_or_else(|| body.clone(), |signed| signed.statement)
    }

    /// The body.
    #[must_use]
    pub fn join(&self) -> Bytes {
        let mut out = Vec::with_capacity(self.statement.len() + self.signature.len() + 6);
        let mut w = Writer(&mut out);
        w.0.extend_from_slice(&self.statement);
        w.fixed_u32(self.lifetime_s);
        w.0.extend_from_slice(&self.signature);
        let length = u16::try_from(self.signature.len()).unwrap_or_default();
        w.0.extend_from_slice(&length.to_be_bytes());
        out.into()
    }

    /// The bytes that are signed.
    #[must_use]
    pub fn covered(key: &LsaKey, seq: u64, instance: u64, lifetime_s: u32, body: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(body.len() + 64);
        let mut w = Writer(&mut out);
        w.node(&key.node);
        w.u8(key.kind.0);
        w.fixed_u64(seq);
        w.fixed_u64(instance);
        w.fixed_u32(lifetime_s);
        w.0.extend_from_slice(body);
        out
    }

    /// Whether an LSA with this body may be in the state that it came in: it lives no longer than was
    /// stated, and takes nothing back that was not.
    #[must_use]
    pub fn allows(&self, lsa: &Lsa) -> bool {
        lsa.remaining_s <= self.lifetime_s && (lsa.remaining_s == 0) == (self.lifetime_s == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bodies_survive(
            statement: Vec<u8>,
            lifetime_s: u32,
            signature in proptest::collection::vec(0u8.., 1..=SIGNATURE_MAX),
        ) {
            let body = SignedBody {
                statement: statement.into(),
                lifetime_s,
                signature: signature.into(),
            };
            prop_assert_eq!(SignedBody::split(&body.join()), Some(body));
        }

        #[test]
        fn random_bodies_never_panic(body: Vec<u8>) {
            let body = Bytes::from(body);
            if let Some(signed) = SignedBody::split(&body) {
                prop_assert_eq!(signed.join(), body);
            }
        }
    }
}
