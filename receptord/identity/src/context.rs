//! One direction between two nodes: how a packet is sealed, and how it is opened.
//!
//! Owns the layout of a sealed packet, the derivation of its key, and the counter that is never used twice.
//!
//! ```text
//! ┌─────────────────┬──────────────┬──────────────────┬─────────┬────────────┬─────┐
//! │ recipient's key │ sender's key │ encapsulated key │ counter │ ciphertext │ tag │
//! │ 4               │ 4            │ 32               │ 8       │ as plain   │ 16  │
//! └─────────────────┴──────────────┴──────────────────┴─────────┴────────────┴─────┘
//! ```
//!
//! HPKE (RFC 9180) in auth mode, DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, export-only, with both node ids as its
//! info; the exported secret is the key of AES-256-GCM, the counter its nonce. So public-key work is done once a
//! context, a packet can be opened in any order and any number of times with nothing but itself and the keys, and
//! a changed header is another key.

use std::time::Duration;

use hpke::aead::ExportOnlyAead;
use hpke::kdf::HkdfSha256;
use hpke::{Deserializable as _, OpModeR, OpModeS, Serializable as _};
use receptor_proto::NodeId;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use zeroize::Zeroizing;

use crate::error::Refusal;
use crate::seal_keys::{KEY_LEN, Kem, KeyId, SealKey, SealPublicKey};

/// A context seals for this long, so that a stolen one opens little.
pub const ROTATE_AFTER: Duration = Duration::from_secs(3600);

/// A context seals this many packets: far below what AES-GCM allows for packets of 64 KiB.
pub const ROTATE_AFTER_PACKETS: u64 = 1 << 22;

/// Bytes that a sealed packet has more than its plain text.
pub const OVERHEAD: usize = HEADER + TAG;

/// Where in a sealed packet its text begins.
pub const TEXT_AT: usize = HEADER;

/// Before the counter: what names a context.
const NAME: usize = 4 + 4 + KEY_LEN;
const HEADER: usize = NAME + 8;
const TAG: usize = 16;

/// What the exporter is asked for; another use needs another text.
const EXPORT: &[u8] = b"receptor aead 1";

/// Binds a context to this protocol and to both ends, whatever else their keys may be used for.
fn info(sender: &NodeId, recipient: &NodeId) -> Vec<u8> {
    let mut info = b"receptor sealed 1".to_vec();
    for node in [sender, recipient] {
        // A node id has at most 128 bytes.
        info.push(node.as_str().len().to_le_bytes()[0]);
        info.extend_from_slice(node.as_str().as_bytes());
    }
    info
}

fn aead_key(secret: &[u8; 32]) -> Option<LessSafeKey> {
    Some(LessSafeKey::new(
        UnboundKey::new(&AES_256_GCM, secret).ok()?,
    ))
}

fn nonce(counter: u64) -> Nonce {
    let mut nonce = [0; NONCE_LEN];
    nonce[NONCE_LEN - 8..].copy_from_slice(&counter.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}

/// What one node seals to another with.
pub(crate) struct Outgoing {
    name: [u8; NAME],
    key: LessSafeKey,
    next: u64,
    since: Duration,
}

impl std::fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Outgoing(next {})", self.next)
    }
}

impl Outgoing {
    /// Three multiplications on the curve.
    pub(crate) fn new(
        sender: &NodeId,
        own: &SealKey,
        recipient: &NodeId,
        theirs: &SealPublicKey,
        uptime: Duration,
    ) -> Result<Self, Refusal> {
        let pair = (own.private().clone(), own.public().key().clone());
        let (encapsulated, context) = hpke::setup_sender::<ExportOnlyAead, HkdfSha256, Kem>(
            &OpModeS::Auth(pair),
            theirs.key(),
            &info(sender, recipient),
        )
        .map_err(|_| Refusal::NoKey)?;
        let mut secret = Zeroizing::new([0; 32]);
        context
            .export(EXPORT, secret.as_mut())
            .map_err(|_| Refusal::NoKey)?;
        let mut name = [0; NAME];
        name[..4].copy_from_slice(&theirs.id().0);
        name[4..8].copy_from_slice(&own.public().id().0);
        name[8..].copy_from_slice(&encapsulated.to_bytes());
        Ok(Self {
            name,
            key: aead_key(&secret).ok_or(Refusal::NoKey)?,
            next: 0,
            since: uptime,
        })
    }

    /// Whether another is to take its place, for age, use, or because one of the keys is no longer the newest.
    pub(crate) fn is_over(&self, own: KeyId, theirs: KeyId, uptime: Duration) -> bool {
        self.next >= ROTATE_AFTER_PACKETS
            || self.is_old(uptime)
            || self.name[..4] != theirs.0
            || self.name[4..8] != own.0
    }

    pub(crate) fn is_old(&self, uptime: Duration) -> bool {
        uptime.saturating_sub(self.since) >= ROTATE_AFTER
    }

    /// Appends the sealed packet.
    pub(crate) fn seal(
        &mut self,
        aad: &[u8],
        plain: &[&[u8]],
        out: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        // Taken before it is used, so that no way out of here leaves it for another packet.
        let counter = self.next;
        self.next = counter.checked_add(1).ok_or(Refusal::NoKey)?;
        let start = out.len();
        out.reserve(OVERHEAD + plain.iter().map(|part| part.len()).sum::<usize>());
        out.extend_from_slice(&self.name);
        out.extend_from_slice(&counter.to_be_bytes());
        let text = out.len();
        for part in plain {
            out.extend_from_slice(part);
        }
        let sealed = self.key.seal_in_place_separate_tag(
            nonce(counter),
            Aad::from(aad),
            out.get_mut(text..).unwrap_or_default(),
        );
        match sealed {
            Ok(tag) => {
                out.extend_from_slice(tag.as_ref());
                Ok(())
            }
            Err(_) => {
                // Longer than AES-GCM takes, 64 GiB; plain text must not stay.
                out.truncate(start);
                Err(Refusal::NoKey)
            }
        }
    }
}

/// What names the context of a sealed packet; `None`: it is none.
pub(crate) fn context_name(packet: &[u8]) -> Option<&[u8]> {
    (packet.len() >= OVERHEAD).then(|| &packet[..NAME])
}

/// The parts of a sealed packet.
#[derive(Debug)]
pub(crate) struct Sealed<'a> {
    name: [u8; NAME],
    counter: u64,
    body: &'a mut [u8],
}

impl<'a> Sealed<'a> {
    pub(crate) fn parse(packet: &'a mut [u8]) -> Result<Self, Refusal> {
        let (header, body) = packet
            .split_at_mut_checked(HEADER)
            .ok_or(Refusal::NotAuthentic)?;
        if body.len() < TAG {
            return Err(Refusal::NotAuthentic);
        }
        let mut name = [0; NAME];
        name.copy_from_slice(&header[..NAME]);
        let mut counter = [0; 8];
        counter.copy_from_slice(&header[NAME..]);
        Ok(Self {
            name,
            counter: u64::from_be_bytes(counter),
            body,
        })
    }

    /// To which key.
    pub(crate) fn recipient_key(&self) -> KeyId {
        KeyId([self.name[0], self.name[1], self.name[2], self.name[3]])
    }

    /// With which key.
    pub(crate) fn sender_key(&self) -> KeyId {
        KeyId([self.name[4], self.name[5], self.name[6], self.name[7]])
    }
}

/// What packets of one context are opened with.
pub(crate) struct Incoming {
    name: [u8; NAME],
    key: LessSafeKey,
    used: Duration,
}

impl std::fmt::Debug for Incoming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Incoming")
    }
}

impl Incoming {
    /// Two multiplications on the curve.
    pub(crate) fn new(
        packet: &Sealed<'_>,
        sender: &NodeId,
        theirs: &SealPublicKey,
        recipient: &NodeId,
        own: &SealKey,
    ) -> Result<Self, Refusal> {
        let bad = |_| Refusal::NotAuthentic;
        let encapsulated =
            <Kem as hpke::Kem>::EncappedKey::from_bytes(&packet.name[8..]).map_err(bad)?;
        let context = hpke::setup_receiver::<ExportOnlyAead, HkdfSha256, Kem>(
            &OpModeR::Auth(theirs.key().clone()),
            own.private(),
            &encapsulated,
            &info(sender, recipient),
        )
        .map_err(bad)?;
        let mut secret = Zeroizing::new([0; 32]);
        context.export(EXPORT, secret.as_mut()).map_err(bad)?;
        Ok(Self {
            name: packet.name,
            key: aead_key(&secret).ok_or(Refusal::NotAuthentic)?,
            used: Duration::ZERO,
        })
    }

    /// Whether the packet is one of this context.
    pub(crate) fn opens(&self, packet: &Sealed<'_>) -> bool {
        self.name == packet.name
    }

    pub(crate) fn is_named(&self, name: &[u8]) -> bool {
        self.name == name
    }

    pub(crate) fn is_idle(&self, uptime: Duration) -> bool {
        uptime.saturating_sub(self.used) >= ROTATE_AFTER
    }

    /// Of which of the sender's keys.
    pub(crate) fn sender_key(&self) -> KeyId {
        KeyId([self.name[4], self.name[5], self.name[6], self.name[7]])
    }

    pub(crate) fn used(&self) -> Duration {
        self.used
    }

    /// Decrypts in place. A packet that is not authentic is left in no particular state.
    pub(crate) fn open<'a>(
        &mut self,
        packet: Sealed<'a>,
        aad: &[u8],
        uptime: Duration,
    ) -> Result<&'a mut [u8], Refusal> {
        let plain = self
            .key
            .open_in_place(nonce(packet.counter), Aad::from(aad), packet.body)
            .map_err(|_| Refusal::NotAuthentic)?;
        self.used = uptime;
        Ok(plain)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use hpke::Kem as _;
    use hpke::rand_core::{TryCryptoRng, TryRng};

    use super::*;
    use crate::certificate::{hex, unhex};
    use crate::seal_keys::SealKeys;

    /// Gives the bytes it was made with.
    struct Fixed(Vec<u8>);

    impl TryRng for Fixed {
        type Error = Infallible;
        fn try_next_u32(&mut self) -> Result<u32, Infallible> {
            unreachable!("only bytes are asked for")
        }
        fn try_next_u64(&mut self) -> Result<u64, Infallible> {
            unreachable!("only bytes are asked for")
        }
        fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
            bytes.copy_from_slice(&self.0.drain(..bytes.len()).collect::<Vec<_>>());
            Ok(())
        }
    }

    impl TryCryptoRng for Fixed {}

    fn bytes(digits: &str) -> [u8; 32] {
        unhex(digits.as_bytes()).unwrap()
    }

    /// RFC 9180, A.7.3: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, export-only, auth mode.
    #[test]
    fn the_rfc_s_vectors() {
        let info = unhex::<20>(b"4f6465206f6e2061204772656369616e2055726e").unwrap();
        let encapsulated =
            bytes("5ac1671a55c5c3875a8afe74664aa8bc68830be9ded0c5f633cd96400e8b5c05");
        let private = |digits: &str| <Kem as hpke::Kem>::PrivateKey::from_bytes(&bytes(digits));
        let recipient =
            private("ed88cda0e91ca5da64b6ad7fc34a10f096fa92f0b9ceff9d2c55124304ed8b4a").unwrap();
        let sender =
            private("c85f136e06d72d28314f0e34b10aadc8d297e9d71d45a5662c2b7c3b9f9f9405").unwrap();
        let sender_public = Kem::sk_to_pk(&sender);
        assert_eq!(
            hex(&sender_public.to_bytes()),
            "89eb1feae431159a5250c5186f72a15962c8d0debd20a8389d8b6e4996e14306"
        );
        let exported = [
            (
                &b""[..],
                "83c1bac00a45ed4cb6bd8a6007d2ce4ec501f55e485c5642bd01bf6b6d7d6f0a",
            ),
            (
                b"\0",
                "08a1d1ad2af3ef5bc40232a64f920650eb9b1034fac3892f729f7949621bf06e",
            ),
            (
                b"TestContext",
                "ff3b0e37a9954247fea53f251b799e2edd35aac7152c5795751a3da424feca73",
            ),
        ];

        let received = hpke::setup_receiver::<ExportOnlyAead, HkdfSha256, Kem>(
            &OpModeR::Auth(sender_public.clone()),
            &recipient,
            &<Kem as hpke::Kem>::EncappedKey::from_bytes(&encapsulated).unwrap(),
            &info,
        )
        .unwrap();
        let ephemeral = bytes("43b078912a54b591a7b09b16ce89a1955a9dd60b29fb611e044260046e8b061b");
        let (sent_key, sent) = hpke::setup_sender_with_rng::<ExportOnlyAead, HkdfSha256, Kem>(
            &OpModeS::Auth((sender, sender_public)),
            &Kem::sk_to_pk(&recipient),
            &info,
            &mut Fixed(ephemeral.to_vec()),
        )
        .unwrap();
        assert_eq!(hex(&sent_key.to_bytes()), hex(&encapsulated));
        for (context, value) in exported {
            let mut secret = [0; 32];
            received.export(context, &mut secret).unwrap();
            assert_eq!(hex(&secret), value);
            sent.export(context, &mut secret).unwrap();
            assert_eq!(hex(&secret), value);
        }
    }

    #[test]
    fn a_context_ends_by_count_age_and_keys_and_never_wraps() {
        let (own, theirs, other) = (
            SealKeys::generate(0),
            SealKeys::generate(0),
            SealKeys::generate(0),
        );
        let (a, b) = (NodeId::new("a").unwrap(), NodeId::new("b").unwrap());
        let own = own.newest().unwrap();
        let [theirs, other] = [theirs, other].map(|keys| keys.public().remove(0));
        let mut context = Outgoing::new(&a, own, &b, &theirs, Duration::ZERO).unwrap();
        let ids = (own.public().id(), theirs.id());
        let over = |context: &Outgoing, uptime| context.is_over(ids.0, ids.1, uptime);
        assert!(!over(&context, ROTATE_AFTER - Duration::from_nanos(1)));
        assert!(over(&context, ROTATE_AFTER));
        assert!(context.is_over(ids.0, other.id(), Duration::ZERO));
        assert!(context.is_over(other.id(), ids.1, Duration::ZERO));
        context.next = ROTATE_AFTER_PACKETS - 1;
        assert!(!over(&context, Duration::ZERO));
        let mut out = Vec::new();
        context.seal(b"", &[], &mut out).unwrap();
        assert!(over(&context, Duration::ZERO));
        // Also when nobody asked whether it is over.
        context.next = u64::MAX;
        assert_eq!(context.seal(b"", &[], &mut out), Err(Refusal::NoKey));
        assert_eq!(context.next, u64::MAX);
        assert_eq!(out.len(), OVERHEAD);
    }

    /// Test cases 13 and 14 of the GCM specification: the cipher is the one that is named.
    #[test]
    fn the_bulk_cipher_is_aes_256_gcm() {
        let key = aead_key(&[0; 32]).unwrap();
        let tag = key
            .seal_in_place_separate_tag(nonce(0), Aad::empty(), &mut [])
            .unwrap();
        assert_eq!(hex(tag.as_ref()), "530f8afbc74536b9a963b4f1c4cb738b");
        let mut text = [0; 16];
        let tag = key
            .seal_in_place_separate_tag(nonce(0), Aad::empty(), &mut text)
            .unwrap();
        assert_eq!(hex(&text), "cea7403d4d606b6e074ec5d3baf39d18");
        assert_eq!(hex(tag.as_ref()), "d0d1c8a799996bf0265b98b5d48ab919");
    }
}
