//! The keys that messages are sealed to: X25519 pairs of this node, and public keys of others.
//!
//! Owns their numbers, their text form for a file, and how long each is kept. The private halves are wiped when
//! they are dropped and never printed.

use std::fmt;

use hpke::{Deserializable as _, Kem as _, Serializable as _};
use zeroize::{Zeroize as _, Zeroizing};

use crate::certificate::{hex, unhex};

/// The key agreement of all that is sealed.
pub(crate) type Kem = hpke::kem::X25519HkdfSha256;
type PrivateKey = <Kem as hpke::Kem>::PrivateKey;
type PublicKey = <Kem as hpke::Kem>::PublicKey;

/// The most key pairs that are kept: one for every two days of a month.
pub const KEYS_MAX: usize = 16;

/// Bytes of a key, private or public.
pub(crate) const KEY_LEN: usize = 32;

/// The first line of the text form.
const HEADER: &str = "receptor seal keys 1";

/// Names a key: the beginning of the SHA-256 of its public half.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyId(pub(crate) [u8; 4]);

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

/// A key that others seal to.
#[derive(Clone, PartialEq, Eq)]
pub struct SealPublicKey {
    id: KeyId,
    key: PublicKey,
}

impl SealPublicKey {
    /// The key that these bytes are.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let key = PublicKey::from_bytes(bytes).ok()?;
        Some(Self::new(key))
    }

    pub(crate) fn new(key: PublicKey) -> Self {
        let print = ring::digest::digest(&ring::digest::SHA256, &key.to_bytes());
        let mut id = [0; 4];
        id.copy_from_slice(&print.as_ref()[..4]);
        Self { id: KeyId(id), key }
    }

    /// Its number.
    #[must_use]
    pub fn id(&self) -> KeyId {
        self.id
    }

    pub(crate) fn to_bytes(&self) -> [u8; KEY_LEN] {
        self.key.to_bytes().into()
    }

    pub(crate) fn key(&self) -> &PublicKey {
        &self.key
    }
}

impl fmt::Debug for SealPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealPublicKey({:?})", self.id)
    }
}

/// A key pair of this node. The private half wipes itself.
pub(crate) struct SealKey {
    public: SealPublicKey,
    private: PrivateKey,
    /// Seconds since 1970.
    made: u64,
}

impl SealKey {
    fn generate(made: u64) -> Self {
        let (private, public) = Kem::gen_keypair();
        Self {
            public: SealPublicKey::new(public),
            private,
            made,
        }
    }

    fn from_private(private: PrivateKey, made: u64) -> Self {
        Self {
            public: SealPublicKey::new(Kem::sk_to_pk(&private)),
            private,
            made,
        }
    }

    pub(crate) fn public(&self) -> &SealPublicKey {
        &self.public
    }

    pub(crate) fn private(&self) -> &PrivateKey {
        &self.private
    }
}

/// A text that is no key file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the key file is not as this program writes it")]
pub struct KeysError {
    /// From 1.
    pub line: usize,
}

/// This node's key pairs, the newest first; at least one, at most [`KEYS_MAX`].
pub struct SealKeys {
    keys: Vec<SealKey>,
}

impl fmt::Debug for SealKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.keys.iter().map(SealKey::public))
            .finish()
    }
}

impl SealKeys {
    /// One new pair.
    ///
    /// # Panics
    ///
    /// When the system gives no randomness.
    #[must_use]
    pub fn generate(now: u64) -> Self {
        Self {
            keys: vec![SealKey::generate(now)],
        }
    }

    /// Reads what [`SealKeys::to_text`] wrote. The caller wipes `text`.
    ///
    /// # Errors
    ///
    /// When the file is another, damaged, or empty.
    pub fn from_text(text: &[u8]) -> Result<Self, KeysError> {
        let bad = |line: usize| KeysError { line };
        let text = str::from_utf8(text).map_err(|_| bad(1))?;
        let mut lines = text.lines().zip(1..);
        if lines.next().is_none_or(|(line, _)| line != HEADER) {
            return Err(bad(1));
        }
        let mut keys: Vec<SealKey> = Vec::with_capacity(KEYS_MAX);
        for (line, number) in lines {
            if keys.len() == KEYS_MAX {
                return Err(bad(number));
            }
            let (made, digits) = line.split_once(' ').ok_or(bad(number))?;
            let made = made.parse().map_err(|_| bad(number))?;
            let bytes = unhex::<KEY_LEN>(digits.as_bytes()).map(Zeroizing::new);
            let bytes = bytes.ok_or(bad(number))?;
            let private = PrivateKey::from_bytes(&*bytes).map_err(|_| bad(number))?;
            keys.push(SealKey::from_private(private, made));
        }
        if keys.is_empty() {
            return Err(bad(2));
        }
        Ok(Self { keys })
    }

    /// The text for a file that only the daemon may read; wiped when it is dropped.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<Vec<u8>> {
        // Never grown, since that would leave a copy behind.
        let line = 20 + 1 + 2 * KEY_LEN + 1;
        let mut text = Zeroizing::new(Vec::with_capacity(
            HEADER.len() + 1 + self.keys.len() * line,
        ));
        text.extend_from_slice(HEADER.as_bytes());
        text.push(b'\n');
        for key in &self.keys {
            text.extend_from_slice(key.made.to_string().as_bytes());
            text.push(b' ');
            let mut bytes: [u8; KEY_LEN] = key.private.to_bytes().into();
            for byte in bytes {
                for digit in [byte >> 4, byte & 15] {
                    text.push(b"0123456789abcdef"[usize::from(digit)]);
                }
            }
            bytes.zeroize();
            text.push(b'\n');
        }
        text
    }

    /// Adds a new pair when the newest is `every` seconds old, and drops those that have been superseded for longer
    /// than `keep` seconds, which is as long as a message may live. True when anything changed: then the file is
    /// to be written, and after that a new statement made.
    ///
    /// A clock that was set back does not drop a key early.
    ///
    /// # Panics
    ///
    /// When the system gives no randomness.
    pub fn rotate(&mut self, now: u64, every: u64, keep: u64) -> bool {
        let newest = self.keys.first().map_or(0, |key| key.made);
        let before = self.keys.len();
        let mut changed = false;
        if now.saturating_sub(newest) >= every {
            self.keys.insert(0, SealKey::generate(now));
            changed = true;
        }
        let mut superseded = None;
        self.keys.retain(|key| {
            let keeps = superseded.is_none_or(|at| now.saturating_sub(at) <= keep);
            superseded = Some(key.made);
            keeps
        });
        self.keys.truncate(KEYS_MAX);
        changed || self.keys.len() != before
    }

    /// The public halves, the newest first.
    #[must_use]
    pub fn public(&self) -> Vec<SealPublicKey> {
        self.keys.iter().map(|key| key.public.clone()).collect()
    }

    /// The one to seal with.
    pub(crate) fn newest(&self) -> Option<&SealKey> {
        self.keys.first()
    }

    pub(crate) fn find(&self, id: KeyId) -> Option<&SealKey> {
        self.keys.iter().find(|key| key.public.id == id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 86_400;

    #[test]
    fn keys_survive_their_file() {
        let mut keys = SealKeys::generate(7);
        assert!(keys.rotate(DAY + 7, DAY, 30 * DAY));
        let text = keys.to_text();
        let again = SealKeys::from_text(&text).unwrap();
        assert_eq!(again.public(), keys.public());
        assert_eq!(*again.to_text(), *text);
    }

    #[test]
    fn a_key_is_kept_as_long_as_messages_to_it_may_live() {
        let mut keys = SealKeys::generate(0);
        let first = keys.public()[0].id();
        assert!(!keys.rotate(7 * DAY - 1, 7 * DAY, 30 * DAY));
        for day in (7..).step_by(7).take_while(|day| *day <= 35) {
            assert!(keys.rotate(day * DAY, 7 * DAY, 30 * DAY), "{day}");
            assert_eq!(keys.public().len() as u64, day / 7 + 1);
        }
        assert!(keys.find(first).is_some());
        assert!(!keys.rotate(37 * DAY, 7 * DAY, 30 * DAY));
        assert!(keys.rotate(37 * DAY + 1, 7 * DAY, 30 * DAY));
        assert!(keys.find(first).is_none());
        // A clock set back drops nothing.
        let all = keys.public();
        assert!(!keys.rotate(0, 7 * DAY, 30 * DAY));
        assert_eq!(keys.public(), all);
    }

    #[test]
    fn only_so_many_keys_are_kept() {
        let mut keys = SealKeys::generate(0);
        for day in 1..40 {
            keys.rotate(day * DAY, DAY, 1000 * DAY);
        }
        assert_eq!(keys.public().len(), KEYS_MAX);
        let text = String::from_utf8(keys.to_text().to_vec()).unwrap();
        let more = format!("{text}{}\n", text.lines().last().unwrap());
        assert!(SealKeys::from_text(more.as_bytes()).is_err());
    }

    #[test]
    fn other_files_are_refused_with_the_line() {
        let digits = "11".repeat(32);
        for (text, line) in [
            (String::new(), 1),
            ("receptor seal keys 2\n".to_owned(), 1),
            (format!("{HEADER}\n"), 2),
            (format!("{HEADER}\n1 {digits}0\n"), 2),
            (format!("{HEADER}\n1 {digits}\n-1 {digits}\n"), 3),
            (format!("{HEADER}\n1 {digits}\n\n"), 3),
            (format!("{HEADER}\n1 {}\n", "zz".repeat(32)), 2),
        ] {
            assert_eq!(
                SealKeys::from_text(text.as_bytes()).unwrap_err(),
                KeysError { line },
                "{text}"
            );
        }
    }

    #[test]
    fn private_keys_are_not_printed() {
        let keys = SealKeys::generate(0);
        let text = String::from_utf8(keys.to_text().to_vec()).unwrap();
        let secret = text.lines().nth(1).unwrap().split_once(' ').unwrap().1;
        let shown = format!("{keys:?}");
        assert!(!shown.contains(&secret[..8]), "{shown}");
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_are_too_much(bytes in proptest::collection::vec(0u8.., 0..200)) {
            let _ = SealKeys::from_text(&bytes);
            let _ = SealKeys::from_text(&[HEADER.as_bytes(), b"\n", &bytes].concat());
        }
    }
}
