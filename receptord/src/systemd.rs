//! What the daemon and its service manager say to each other.
//!
//! Owns the descriptors that were passed in, by name, and the messages of `sd_notify`. All
//! of it does nothing when there is no service manager. Never decides when to say what:
//! readiness belongs to `run`, the watchdog to the loop that owns the core.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use sd_notify::NotifyState;

use crate::raw;

/// Descriptors that the service manager passed: sockets of `.socket` units.
#[derive(Debug, Default)]
pub struct Passed {
    by_name: BTreeMap<String, Vec<OwnedFd>>,
}

impl Passed {
    /// Takes what was passed to this process, sets close-on-exec, and removes the
    /// variables, so that no child takes them for its own. A second call gets nothing.
    ///
    /// # Errors
    ///
    /// When a second thread runs already, or what was passed does not fit the variables about it.
    pub fn take_all() -> io::Result<Self> {
        let mut by_name: BTreeMap<String, Vec<OwnedFd>> = BTreeMap::new();
        for (fd, name) in raw::passed_descriptors()? {
            by_name.entry(name).or_default().push(fd);
        }
        Ok(Self { by_name })
    }

    /// The descriptors of one name, in the order in which they were passed.
    pub fn take(&mut self, name: &str) -> Vec<OwnedFd> {
        self.by_name.remove(name).unwrap_or_default()
    }

    /// The names of what was not taken yet.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.by_name.keys().map(String::as_str)
    }
}

/// Tells the service manager how the daemon is.
///
/// Sending never fails for the caller: a service manager that cannot be reached is no
/// reason to stop serving the mesh. It is logged at DEBUG.
#[derive(Clone, Copy, Debug, Default)]
pub struct Notifier;

impl Notifier {
    /// Ready to serve; also ends a reload.
    pub fn ready(self, status: &str) {
        send(&[NotifyState::Ready, NotifyState::Status(status)]);
    }

    /// One line for `systemctl status`.
    pub fn status(self, status: &str) {
        send(&[NotifyState::Status(status)]);
    }

    /// A reload has begun. [`Self::ready`] must follow, also when the reload fails.
    pub fn reloading(self) {
        match NotifyState::monotonic_usec_now() {
            // In one message: from systemd 253 on, one without the time fails the unit.
            Ok(now) => send(&[NotifyState::Reloading, now]),
            Err(error) => tracing::debug!(%error, "no monotonic clock"),
        }
    }

    /// Stopping has begun.
    pub fn stopping(self, status: &str) {
        send(&[NotifyState::Stopping, NotifyState::Status(status)]);
    }

    /// How often to call [`Self::watchdog`]: a third of what is allowed; `None` when nobody
    /// watches this process.
    #[must_use]
    pub fn watchdog_interval(self) -> Option<Duration> {
        sd_notify::watchdog_enabled()
            .map(|timeout| timeout / 3)
            .filter(|time| !time.is_zero())
    }

    /// Still working.
    pub fn watchdog(self) {
        send(&[NotifyState::Watchdog]);
    }
}

fn send(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "the service manager was not told");
    }
}

/// Whether standard error goes to the journal, as `JOURNAL_STREAM` says: it holds the
/// device and inode that the service manager connected, which another program may have
/// redirected since.
#[must_use]
pub fn stderr_is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else {
        return false;
    };
    let Ok(stat) = nix::sys::stat::fstat(io::stderr()) else {
        return false;
    };
    stream == format!("{}:{}", stat.st_dev, stat.st_ino)
}
