//! This node's certificate and key, and whom it believes.
//!
//! Owns what the files of `[tls]` held when they were last right. When they change (on demand, or because a look
//! finds that they have) they are read again as a whole; files that are not right are told once, and what was in
//! force stays. Never prints, logs or dumps a key.

mod files;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use receptor_identity::tls::Configs;
use receptor_identity::{Certificate, Credentials, Refusal, Role, Trust, UnixTime, date};
use receptor_proto::NodeId;
use rustls::time_provider::DefaultTimeProvider;
use tokio::sync::watch;

use self::files::{Stamp, stamps};
use crate::config::Tls;

pub use self::files::KeyProblem;

/// Between two looks whether the files have changed: soon enough for somebody who waits, and nothing to notice in
/// an idle daemon's CPU time.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(2);
/// From this long before the end of a certificate it is told that it ends.
const WARN_BEFORE: u64 = 30 * DAY;
/// Between two log lines about that.
const REMIND_EVERY: u64 = DAY;
const DAY: u64 = 24 * 60 * 60;

/// What the files of `[tls]` held, all of one reading.
#[derive(Debug)]
pub struct Keys {
    /// Who this node is.
    pub credentials: Credentials,
    /// Whom it believes.
    pub trust: Trust,
    /// Both as TLS wants them.
    pub configs: Configs,
    /// The files as they were just before they were read.
    stamps: Vec<Option<Stamp>>,
}

impl Keys {
    /// Reads the files and checks that they can be used together. From here on this process leaves no core dump, and
    /// no other process of its user can look into it.
    ///
    /// # Errors
    ///
    /// The first file that cannot be used.
    pub fn read(tls: &Tls) -> Result<Self, KeyProblem> {
        if let Err(error) = nix::sys::prctl::set_dumpable(false) {
            tracing::warn!(%error, "a core dump of this process would hold its private key");
        }
        let stamps = stamps(Some(tls));
        let certificate = files::read("tls.certificate", &tls.certificate)?;
        let key = files::read_key("tls.key", &tls.key)?;
        let credentials = Credentials::from_pem(&certificate, &key).map_err(|error| {
            use receptor_identity::LoadError;
            let (name, file) = match error {
                LoadError::EncryptedKey | LoadError::KeyKind | LoadError::KeyMismatch => {
                    ("tls.key", &tls.key)
                }
                LoadError::Nothing { what } | LoadError::Bad { what, .. }
                    if what == "private key" =>
                {
                    ("tls.key", &tls.key)
                }
                LoadError::Nothing { .. }
                | LoadError::Bad { .. }
                | LoadError::TooMany { .. }
                | LoadError::Certificate(_) => ("tls.certificate", &tls.certificate),
                // A kind of a later version of the crate.
                _ => ("tls", &tls.certificate),
            };
            KeyProblem::new(name, file, error.to_string())
        })?;
        let ca = files::read("tls.ca", &tls.ca)?;
        let mut trust = Trust::new(&ca)
            .map_err(|error| KeyProblem::new("tls.ca", &tls.ca, error.to_string()))?;
        if let Some(file) = &tls.crl {
            let lists = files::read("tls.crl", file)?;
            trust = trust
                .with_revocation_lists(&lists)
                .map_err(|error| KeyProblem::new("tls.crl", file, error.to_string()))?;
        }
        let trust = trust.with_pins(&tls.pinned);
        let clock = Arc::new(DefaultTimeProvider);
        let configs = Configs::new(&credentials, trust.clone(), clock)
            .map_err(|error| KeyProblem::new("tls", &tls.certificate, error.to_string()))?;
        Ok(Self {
            credentials,
            trust,
            configs,
            stamps,
        })
    }

    /// Checks that the certificate is this node's.
    ///
    /// # Errors
    ///
    /// With whose it is, and what to do.
    pub fn check_node(&self, tls: &Tls, node: &NodeId) -> Result<(), KeyProblem> {
        let ids = self.credentials.node_ids();
        if ids.contains(node) {
            return Ok(());
        }
        let ids: Vec<&str> = ids.iter().map(NodeId::as_str).collect();
        let ids = ids.join(", ");
        let reason = format!(
            "the certificate is for node {ids}, and this node is {node}: set node-id, or have one issued with receptorctl cert issue {node}"
        );
        Err(KeyProblem::new("tls.certificate", &tls.certificate, reason))
    }

    /// What stands in this node's certificate.
    pub(crate) fn certificate(&self) -> &Certificate {
        self.credentials.certificate()
    }

    /// When this node's certificate, or the first of those that it rests on, is over, in seconds since 1970.
    pub(crate) fn not_after(&self) -> u64 {
        // At a time when it holds: whether it holds now is another question.
        let at = UnixTime::since_unix_epoch(Duration::from_secs(self.certificate().not_after));
        let own = self
            .trust
            .verify(self.credentials.chain(), Role::Member, at);
        own.map_or(self.certificate().not_after, |own| own.not_after)
    }

    /// What an administrator should look at.
    pub(crate) fn warnings(&self, now: u64) -> Vec<String> {
        let mut warnings = Vec::new();
        let time = UnixTime::since_unix_epoch(Duration::from_secs(now));
        match self
            .trust
            .verify(self.credentials.chain(), Role::Member, time)
        {
            Ok(own) if own.not_after.saturating_sub(now) <= WARN_BEFORE => {
                let days = own.not_after.saturating_sub(now) / DAY;
                let ends = date(own.not_after);
                warnings.push(format!(
                    "The certificate of this node, or one that it rests on, expires in {days} days, at {ends}."
                ));
            }
            Ok(_) | Err(Refusal::NotPinned) => {}
            Err(refusal) => warnings.push(format!(
                "Other nodes will refuse the certificate of this node: {refusal}."
            )),
        }
        if let Some(due) = self.trust.lists_due().filter(|due| *due < now) {
            warnings.push(format!(
                "A revocation list should have been replaced by {}.",
                date(due)
            ));
        }
        warnings
    }
}

/// What a look at the files found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    /// Nothing to do.
    Same,
    /// Other keys are in force.
    Changed,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Keyring {
    node: NodeId,
    tls: RefCell<Option<Tls>>,
    keys: watch::Sender<Option<Rc<Keys>>>,
    /// The files as of the last reading, and as of the last look.
    read: RefCell<Vec<Option<Stamp>>>,
    seen: RefCell<Vec<Option<Stamp>>>,
    /// Why the files of now are not in force.
    problem: RefCell<Option<KeyProblem>>,
    reminded: Cell<u64>,
}

impl Keyring {
    /// With what `tls` held when it was read just now.
    pub(crate) fn new(node: NodeId, tls: Option<Tls>, keys: Option<Keys>) -> Self {
        let stamps = keys.as_ref().map(|keys| keys.stamps.clone());
        let stamps = stamps.unwrap_or_default();
        Self {
            node,
            tls: RefCell::new(tls),
            keys: watch::Sender::new(keys.map(Rc::new)),
            read: RefCell::new(stamps.clone()),
            seen: RefCell::new(stamps),
            problem: RefCell::new(None),
            reminded: Cell::new(0),
        }
    }

    /// What is in force; nothing without `[tls]`.
    pub(crate) fn keys(&self) -> Option<Rc<Keys>> {
        self.keys.borrow().clone()
    }

    /// Tells of every change of what is in force.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Option<Rc<Keys>>> {
        self.keys.subscribe()
    }

    /// Why the files of now are not in force, when they are not.
    pub(crate) fn problem(&self) -> Option<String> {
        self.problem.borrow().as_ref().map(ToString::to_string)
    }

    /// Reads these files and puts them in force.
    ///
    /// # Errors
    ///
    /// When they are not right; what was in force stays, and the files are tried again when they change.
    pub(crate) fn set(&self, tls: Option<&Tls>) -> Result<(), KeyProblem> {
        *self.tls.borrow_mut() = tls.cloned();
        let now = stamps(tls);
        self.read.borrow_mut().clone_from(&now);
        *self.seen.borrow_mut() = now;
        let Some(tls) = tls else {
            self.problem.take();
            self.keys.send_replace(None);
            return Ok(());
        };
        let keys = Keys::read(tls).and_then(|keys| {
            keys.check_node(tls, &self.node)?;
            Ok(keys)
        });
        match keys {
            Ok(keys) => {
                self.problem.take();
                self.reminded.set(0);
                tracing::info!(
                    fingerprint = %keys.certificate().fingerprint,
                    expires = date(keys.not_after()),
                    "certificates and keys read"
                );
                self.keys.send_replace(Some(Rc::new(keys)));
                Ok(())
            }
            Err(problem) => {
                tracing::error!("{problem}; what was in force before stays so");
                *self.problem.borrow_mut() = Some(problem.clone());
                Err(problem)
            }
        }
    }

    /// Reads the files again if they have changed, and not within the last [`LOOK_EVERY`]: a certificate and its key are
    /// seldom replaced in one moment.
    pub(crate) fn look(&self) -> Look {
        let tls = self.tls.borrow().clone();
        let now = stamps(tls.as_ref());
        let settled = *self.seen.borrow() == now;
        let changed = *self.read.borrow() != now;
        *self.seen.borrow_mut() = now;
        if !(settled && changed) || self.set(tls.as_ref()).is_err() {
            return Look::Same;
        }
        Look::Changed
    }

    /// Logs, once a day, what an administrator should look at.
    pub(crate) fn remind(&self) {
        let now = seconds_since_1970();
        if now.saturating_sub(self.reminded.get()) < REMIND_EVERY {
            return;
        }
        self.reminded.set(now);
        for warning in self.keys().iter().flat_map(|keys| keys.warnings(now)) {
            tracing::warn!("{warning}");
        }
    }
}

/// The time of the system's clock; 0 when that is set before 1970.
pub(crate) fn seconds_since_1970() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
