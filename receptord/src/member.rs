//! What this node's certificate does for the core: who it is, whom it believes, what it signs, seals and opens.
//!
//! Owns the file `seal-keys` in the data directory, which what is sealed to this node opens with, and the statement of
//! who this node is. Takes other certificates and authorities over when the [`Keyring`] has them. Everything else is
//! [`Member`]'s; the core asks through [`Security`].

use std::fmt::Display;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use receptor_identity::{Learned as Believed, Member, Refusal, SealKeys, TEXT_AT, UnixTime};
use receptor_mesh::{Changes, Disbelief, Instant, Learned, NotOpened, Security, Stranger};
use receptor_proto::NodeId;
use tokio::sync::watch;

use crate::data_dir::write_new;
use crate::keyring::{Keys, seconds_since_1970};

/// How often a new key takes the place of the one that messages are sealed to.
const ROTATE_EVERY: u64 = 2 * DAY;
/// How long an old one is kept: as long as a message may be on its way.
const KEEP: u64 = 31 * DAY;
const DAY: u64 = 24 * 60 * 60;
/// Statements of others that are looked at in one go after a change of certificates, at 0.2 to 1 ms each.
const RECHECK_AT_ONCE: usize = 50;
/// How often what is not used any more is dropped.
const TIDY_EVERY: Duration = Duration::from_secs(300);

/// The file that holds the keys cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {reason}")]
pub(crate) struct SealKeysError {
    path: PathBuf,
    reason: String,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Membership {
    member: Member,
    keys: watch::Receiver<Option<Rc<Keys>>>,
    data_dir: PathBuf,
    hides: bool,
    statement: Bytes,
    /// Of the next statement.
    sequence: u64,
    tidied: Instant,
}

fn path(data_dir: &Path) -> PathBuf {
    data_dir.join("seal-keys")
}

fn now() -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds_since_1970()))
}

fn uptime(now: Instant) -> Duration {
    Duration::from_micros(now.as_micros())
}

fn write(data_dir: &Path, keys: &SealKeys) -> io::Result<()> {
    let text = keys.to_text();
    let text = std::str::from_utf8(&text).map_err(io::Error::other)?;
    write_new(data_dir, &path(data_dir), text)
}

/// The keys of this data directory; new ones when it has none.
fn open_keys(data_dir: &Path) -> Result<SealKeys, SealKeysError> {
    let path = path(data_dir);
    let failed = |reason: &dyn Display| SealKeysError {
        path: path.clone(),
        reason: reason.to_string(),
    };
    match fs::read(&path).map(zeroize::Zeroizing::new) {
        Ok(text) => SealKeys::from_text(&text).map_err(|error| {
            failed(&format!(
                "{error}: what is under way to this node opens with these keys alone; put the file back from a copy, or remove it and lose that"
            ))
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let keys = SealKeys::generate(seconds_since_1970());
            write(data_dir, &keys).map_err(|error| failed(&error))?;
            Ok(keys)
        }
        Err(error) => Err(failed(&error)),
    }
}

impl Membership {
    /// With the keys of the data directory. `instance` is which start of the node this is. `hides`: payloads are hidden
    /// from nodes on their way.
    ///
    /// # Errors
    ///
    /// When the file of keys cannot be used, or the certificate not for this node.
    pub(crate) fn new(
        node: NodeId,
        instance: u64,
        data_dir: &Path,
        mut keys: watch::Receiver<Option<Rc<Keys>>>,
        hides: bool,
    ) -> Result<Option<Self>, SealKeysError> {
        let Some(read) = keys.borrow_and_update().clone() else {
            return Ok(None);
        };
        let failed = |reason: String| SealKeysError {
            path: path(data_dir),
            reason,
        };
        let credentials = Arc::new(read.credentials.clone());
        let member = Member::new(node, credentials, read.trust.clone(), open_keys(data_dir)?)
            .map_err(|error| failed(error.to_string()))?;
        let mut membership = Self {
            member,
            keys,
            data_dir: data_dir.to_owned(),
            hides,
            statement: Bytes::new(),
            // A start states itself anew less than a million times.
            sequence: instance << 20,
            tidied: Instant::default(),
        };
        membership.rotate();
        membership.state().map_err(failed)?;
        Ok(Some(membership))
    }

    /// Makes the statement of who this node is anew.
    fn state(&mut self) -> Result<(), String> {
        let statement = self.member.statement(self.sequence);
        self.sequence += 1;
        self.statement = statement.map_err(|error| error.to_string())?;
        Ok(())
    }

    /// Takes a new key into use when it is time. Whether it did. A key that is not on the disk is never used.
    fn rotate(&mut self) -> bool {
        let data_dir = self.data_dir.clone();
        self.member.with_seal_keys(|keys| {
            let before = keys.to_text();
            if !keys.rotate(seconds_since_1970(), ROTATE_EVERY, KEEP) {
                return false;
            }
            let Err(error) = write(&data_dir, keys) else {
                return true;
            };
            tracing::warn!(%error, "the new key that messages are sealed to cannot be stored; the old one stays");
            if let Ok(before) = SealKeys::from_text(&before) {
                *keys = before;
            }
            false
        })
    }

    /// Takes over what the keyring has, if that is something else.
    fn take_over(&mut self) -> bool {
        if !self.keys.has_changed().unwrap_or(false) {
            return false;
        }
        // Without [tls] from now on: that takes a restart, until which this node is who it was.
        let Some(keys) = self.keys.borrow_and_update().clone() else {
            return false;
        };
        let credentials = Arc::new(keys.credentials.clone());
        if let Err(error) = self.member.set_credentials(credentials) {
            tracing::error!("the new certificate is not used to sign with: {error}");
        }
        self.member.set_trust(keys.trust.clone());
        true
    }
}

fn disbelief(refusal: &Refusal) -> Disbelief {
    Disbelief(refusal.to_string())
}

impl Security for Membership {
    fn identity(&self) -> Bytes {
        self.statement.clone()
    }

    fn hides(&self) -> bool {
        self.hides
    }

    fn sign(&mut self, statement: &[u8]) -> Vec<u8> {
        self.member.sign(statement).unwrap_or_else(|error| {
            tracing::error!(%error, "a statement of this node cannot be signed");
            Vec::new()
        })
    }

    fn known(&self, node: &NodeId) -> Option<Bytes> {
        self.member.statement_of(node).cloned()
    }

    fn learn(
        &mut self,
        _now: Instant,
        node: &NodeId,
        identity: &Bytes,
    ) -> Result<Learned, Disbelief> {
        match self.member.learn(node, identity, now()) {
            Ok(Believed::New | Believed::Newer) => Ok(Learned::New),
            Ok(Believed::Known | Believed::Older) => Ok(Learned::Known),
            Err(refusal) => Err(disbelief(&refusal)),
        }
    }

    fn verify(&mut self, node: &NodeId, statement: &[u8], signature: &[u8]) -> bool {
        self.member.verify(node, statement, signature).is_ok()
    }

    fn seal(
        &mut self,
        now: Instant,
        to: &NodeId,
        bound: &[u8],
        plain: &[&[u8]],
        out: &mut Vec<u8>,
    ) -> Result<(), Stranger> {
        self.member
            .seal(to, bound, plain, out, uptime(now))
            .map_err(|_| Stranger)
    }

    fn fingerprint(&self, bytes: &[u8]) -> u64 {
        receptor_identity::fingerprint(bytes)
    }

    fn opens_cheaply(&self, from: &NodeId, sealed: &[u8]) -> bool {
        self.member.opens_cheaply(from, sealed)
    }

    fn open(
        &mut self,
        now: Instant,
        from: &NodeId,
        bound: &[u8],
        mut sealed: BytesMut,
    ) -> Result<Bytes, NotOpened> {
        let opened = self.member.open(from, bound, &mut sealed, uptime(now));
        let length = match opened {
            Ok(text) => text.len(),
            Err(Refusal::UnknownNode | Refusal::UnknownKey) => return Err(NotOpened::Stranger),
            Err(Refusal::NotOurs) => return Err(NotOpened::NotOurs),
            Err(_) => return Err(NotOpened::Forged),
        };
        sealed.advance(TEXT_AT);
        sealed.truncate(length);
        Ok(sealed.freeze())
    }

    fn recheck(&mut self, time: Instant) -> Changes {
        let trust = self.take_over();
        let own = self.rotate() || trust;
        if own && let Err(error) = self.state() {
            tracing::error!("this node cannot say who it is: {error}");
        }
        if time.since(self.tidied) >= TIDY_EVERY {
            self.tidied = time;
            self.member.tidy(uptime(time));
        }
        let found = self.member.recheck(now(), RECHECK_AT_ONCE);
        for (node, refusal) in &found.refused {
            tracing::warn!(peer = %node, "a node is believed no longer: {refusal}");
        }
        let refused = found.refused.iter();
        Changes {
            own,
            trust,
            refused: refused
                .map(|(node, refusal)| (node.clone(), disbelief(refusal)))
                .collect(),
            more: found.more,
        }
    }
}
