//! What the daemon and its service manager say to each other.
//!
//! Owns the descriptors that were passed in, by name, and the messages of `sd_notify`. All
//! of it does nothing when there is no service manager. Never decides when to say what:
//! readiness belongs to `run`, the watchdog to the loop that owns the core.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use sd_notify::NotifyState;
use socket2::Socket;

use crate::exit::Exit;
use crate::raw;

/// Clients of one socket that are told of a failed start: more than can wait at it.
const WAITING_MAX: usize = 8192;

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

    /// The descriptors with such a name, and their names.
    pub fn take_those(&mut self, is_one: impl Fn(&str) -> bool) -> Vec<(String, OwnedFd)> {
        let all = std::mem::take(&mut self.by_name);
        let (taken, left): (BTreeMap<_, _>, _) =
            all.into_iter().partition(|(name, _)| is_one(name));
        self.by_name = left;
        let each =
            |(name, fds): (String, Vec<OwnedFd>)| fds.into_iter().map(move |fd| (name.clone(), fd));
        taken.into_iter().flat_map(each).collect()
    }

    /// The same sockets once more, for whoever waits at them when the start fails.
    ///
    /// # Errors
    ///
    /// When there are no descriptors left.
    pub fn waiting(&self) -> io::Result<Waiting> {
        let mut sockets = Vec::new();
        for (name, fds) in &self.by_name {
            for fd in fds {
                let socket: Socket = fd.try_clone()?.into();
                // At a connection nobody waits, and a second name of it would keep it open.
                if socket.is_listener().unwrap_or(false) {
                    sockets.push((name == CONTROL, socket));
                }
            }
        }
        Ok(Waiting { sockets })
    }

    /// The names of what was not taken yet.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.by_name.keys().map(String::as_str)
    }
}

/// Name of the control socket.
pub const CONTROL: &str = "control";
/// Name of sockets for links.
pub const MESH: &str = "mesh";

/// Those who wait at the passed sockets until somebody accepts them.
///
/// A service that fails while somebody waits is started again at once, whatever its unit says
/// of restarts, and again, until its socket is given up. So nobody is left waiting.
#[derive(Debug)]
pub struct Waiting {
    /// Whether it is the control socket, where there are words for it.
    sockets: Vec<(bool, Socket)>,
}

impl Waiting {
    /// Sends everybody away who waits now.
    pub fn send_away(&self, exit: Exit) {
        let text = format!(
            "ERROR: receptord does not start (exit code {}); its journal says why\n",
            exit.code()
        );
        for (is_control, socket) in &self.sockets {
            if socket.set_nonblocking(true).is_err() {
                continue;
            }
            for _ in 0..WAITING_MAX {
                let Ok((client, _)) = socket.accept() else {
                    break;
                };
                if *is_control {
                    // There is room for a line at a new client.
                    let _ = client.send(text.as_bytes());
                }
            }
        }
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

    /// The start or stop under way takes up to `time` more from now on.
    pub fn extend(self, time: Duration) {
        let time = u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
        send(&[NotifyState::ExtendTimeoutUsec(time)]);
    }

    /// Whether there is a service manager that listens.
    #[must_use]
    pub fn is_heard(self) -> bool {
        std::env::var_os("NOTIFY_SOCKET").is_some()
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

/// A descriptor that the service manager keeps for the next start, as long as this lives.
#[derive(Debug)]
pub struct Kept {
    name: String,
}

impl Kept {
    /// Has the service manager keep this descriptor under this name, of which there is no other. `None` when there
    /// is no service manager, or one that keeps nothing for this service.
    #[must_use]
    pub fn new(name: String, fd: BorrowedFd<'_>) -> Option<Self> {
        std::env::var_os("NOTIFY_SOCKET")?;
        // systemd 254 and later tell how many it keeps.
        if std::env::var_os("FDSTORE").is_some_and(|room| room == "0") {
            return None;
        }
        let state = [NotifyState::FdStore, NotifyState::FdName(&name)];
        match sd_notify::notify_with_fds(&state, &[fd]) {
            Ok(()) => Some(Self { name }),
            Err(error) => {
                tracing::debug!(%error, "the service manager does not keep a descriptor");
                None
            }
        }
    }

    /// One that was kept, and was passed at this start.
    #[must_use]
    pub fn passed(name: String) -> Self {
        Self { name }
    }

    /// Whether this is its name.
    #[must_use]
    pub fn is(&self, name: &str) -> bool {
        self.name == name
    }

    /// Leaves it to the next start.
    pub fn leave(mut self) {
        self.name.clear();
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if !self.name.is_empty() {
            send(&[NotifyState::FdStoreRemove, NotifyState::FdName(&self.name)]);
        }
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

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    #[test]
    fn nobody_is_left_waiting_when_the_start_fails() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control");
        let control = UnixListener::bind(&path).unwrap();
        let mesh = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = mesh.local_addr().unwrap();
        let mut passed = Passed::default();
        let sockets = [(CONTROL, OwnedFd::from(control)), (MESH, mesh.into())];
        for (name, fd) in sockets {
            passed.by_name.insert(name.to_owned(), vec![fd]);
        }
        let waiting = passed.waiting().unwrap();
        drop(passed);

        let mut clients = [(); 3].map(|()| UnixStream::connect(&path).unwrap());
        let mut peer = TcpStream::connect(address).unwrap();
        waiting.send_away(Exit::Configuration);
        for client in &mut clients {
            let mut text = String::new();
            client.read_to_string(&mut text).unwrap();
            assert!(text.starts_with("ERROR: ") && text.contains("78"), "{text}");
        }
        assert_eq!(peer.read(&mut [0; 8]).unwrap(), 0);
    }
}
