//! One connection to the daemon's control socket.
//!
//! Owns framing: the greeting, lines, and raw bytes between them, with one deadline for all of it.
//! What it holds is bounded by [`LINE_MAX`]. It never interprets a command or prints.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::socket::{
    self, AddressFamily, SockFlag, SockType, UnixAddr, setsockopt, sockopt::SendTimeout,
};
use nix::sys::time::{TimeVal, TimeValLike as _};
use receptor_proto::control::{self, LINE_MAX};
use receptor_proto::{ErrorBody, ErrorCode, NodeId};
use serde::{Deserialize, Serialize};

use crate::exit::{Exit, Failure};
use crate::interrupt::Interrupts;
use crate::output::printable;

/// How long a daemon may take for its greeting, and for an answer that needs nobody else, when the
/// user gave no `--timeout`: one that takes longer is stuck.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// How much is read at once.
const CHUNK: usize = 64 * 1024;

/// When to stop waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Deadline {
    start: Instant,
    limit: Option<Duration>,
}

impl Deadline {
    /// This long from now; `None`: never.
    pub(crate) fn after(limit: Option<Duration>) -> Self {
        let start = Instant::now();
        Self { start, limit }
    }

    /// What is left; zero when it is over.
    pub(crate) fn left(self) -> Option<Duration> {
        self.limit
            .map(|limit| limit.saturating_sub(self.start.elapsed()))
    }

    pub(crate) fn is_over(self) -> bool {
        self.left().is_some_and(|left| left.is_zero())
    }

    /// The time that was given, for a message.
    pub(crate) fn limit(self) -> String {
        let limit = self.limit.unwrap_or_default();
        humantime::format_duration(limit).to_string()
    }

    /// This deadline, or one this long from now if the user set none.
    pub(crate) fn or(self, patience: Duration) -> Self {
        if self.limit.is_some() {
            return self;
        }
        Self::after(Some(patience))
    }

    /// What is left, but at most this long.
    pub(crate) fn left_up_to(self, limit: Duration) -> Duration {
        self.left().map_or(limit, |left| left.min(limit))
    }
}

/// Waits until one of the descriptors is ready or the time is over; says which are ready.
/// A descriptor that was hung up counts as ready.
pub(crate) fn wait<const N: usize>(
    fds: [(BorrowedFd<'_>, PollFlags); N],
    deadline: Deadline,
) -> io::Result<[PollFlags; N]> {
    let mut fds = fds.map(|(fd, flags)| PollFd::new(fd, flags));
    loop {
        let timeout = match deadline.left() {
            None => PollTimeout::NONE,
            // Rounded up, so that nobody spins through the last millisecond.
            Some(left) => {
                PollTimeout::try_from(left + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX)
            }
        };
        match nix::poll::poll(&mut fds, timeout) {
            Ok(0) if !deadline.is_over() => {}
            Ok(_) => return Ok(fds.map(|fd| fd.revents().unwrap_or(PollFlags::empty()))),
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: UnixStream,
    path: PathBuf,
    node: NodeId,
    deadline: Deadline,
    inbox: Vec<u8>,
    /// What of the inbox is consumed.
    start: usize,
    /// Where the search for a newline goes on.
    searched: usize,
    ended: bool,
}

impl Connection {
    /// Connects and reads the greeting.
    pub(crate) fn open(path: &Path, deadline: Deadline) -> Result<Self, Failure> {
        let patience = deadline.or(PATIENCE);
        let stream = connect(path, patience).map_err(|e| unreachable(path, &e))?;
        let mut connection = Self {
            stream,
            path: path.to_owned(),
            node: NodeId::new("unknown")
                .map_err(|e| Failure::new(Exit::Internal, e.to_string()))?,
            deadline: patience,
            inbox: Vec::new(),
            start: 0,
            searched: 0,
            ended: false,
        };
        let greeting = connection.line()?;
        let node = std::str::from_utf8(&greeting)
            .ok()
            .and_then(control::parse_greeting);
        let Some(node) = node else {
            return Err(Failure::new(
                Exit::Unavailable,
                format!(
                    "{} is no Receptor control socket: it greets with {:?}",
                    path.display(),
                    excerpt(&greeting)
                ),
            ));
        };
        connection.node = node;
        connection.deadline = deadline;
        Ok(connection)
    }

    /// The daemon's node.
    pub(crate) fn node(&self) -> &NodeId {
        &self.node
    }

    /// Sets how long everything that follows may take.
    pub(crate) fn set_deadline(&mut self, deadline: Deadline) {
        self.deadline = deadline;
    }

    /// Sends a command's line whole.
    pub(crate) fn send(&mut self, command: &impl Serialize) -> Result<(), Failure> {
        let line = to_line(command)?;
        let mut rest = &line[..];
        while !rest.is_empty() {
            match self.stream.write(rest) {
                Ok(n) => rest = &rest[n..],
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    let fds = [(self.stream.as_fd(), PollFlags::POLLOUT)];
                    self.wait(fds)?;
                }
                // It may have said why before it hung up.
                Err(e) if is_hang_up(&e) => break,
                Err(e) => return Err(self.lost(&e)),
            }
        }
        Ok(())
    }

    /// Writes what fits without waiting; `None` when the daemon reads no more.
    pub(crate) fn try_write(&mut self, bytes: &[u8]) -> Result<Option<usize>, Failure> {
        loop {
            match self.stream.write(bytes) {
                Ok(n) => return Ok(Some(n)),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(Some(0)),
                Err(e) if is_hang_up(&e) => return Ok(None),
                Err(e) => return Err(self.lost(&e)),
            }
        }
    }

    /// Tells the daemon that nothing more follows.
    pub(crate) fn finish_writing(&mut self) {
        // It fails only when the daemon has hung up, and then reading tells.
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// The next line, without its newline.
    pub(crate) fn line(&mut self) -> Result<Vec<u8>, Failure> {
        loop {
            if let Some(line) = self.buffered_line()? {
                return Ok(line);
            }
            self.wait([(self.stream.as_fd(), PollFlags::POLLIN)])?;
            self.read_some()?;
        }
    }

    /// The next line, without its newline; `None` when Ctrl-C came first.
    pub(crate) fn line_or_interrupt(
        &mut self,
        interrupts: &Interrupts,
    ) -> Result<Option<Vec<u8>>, Failure> {
        loop {
            if let Some(line) = self.buffered_line()? {
                return Ok(Some(line));
            }
            self.wait([
                (self.stream.as_fd(), PollFlags::POLLIN),
                (interrupts.as_fd(), PollFlags::POLLIN),
            ])?;
            if interrupts.came() {
                return Ok(None);
            }
            self.read_some()?;
        }
    }

    /// The next line if it is here already.
    pub(crate) fn buffered_line(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        let fresh = self.inbox.get(self.searched..).unwrap_or_default();
        if let Some(at) = fresh.iter().position(|b| *b == b'\n') {
            let end = self.searched + at;
            let line = self.inbox.get(self.start..end).unwrap_or_default();
            let line = line.strip_suffix(b"\r").unwrap_or(line).to_vec();
            self.consume_to(end + 1);
            return Ok(Some(line));
        }
        self.searched = self.inbox.len();
        if self.inbox.len() - self.start >= LINE_MAX {
            let text = format!("the daemon sent a line of more than {LINE_MAX} bytes");
            return Err(Failure::new(Exit::Internal, text));
        }
        if self.ended {
            return Err(Failure::new(
                Exit::Unavailable,
                format!("the daemon closed the connection ({})", self.path.display()),
            ));
        }
        Ok(None)
    }

    /// Up to `max` raw bytes that are here already.
    pub(crate) fn buffered_raw(&mut self, max: u64, into: &mut Vec<u8>) -> Result<(), Failure> {
        into.clear();
        let here = self.inbox.get(self.start..).unwrap_or_default();
        let length = usize::try_from(max).unwrap_or(usize::MAX).min(here.len());
        into.extend_from_slice(here.get(..length).unwrap_or_default());
        self.consume_to(self.start + length);
        if length == 0 && max > 0 && self.ended {
            return Err(Failure::new(
                Exit::Unavailable,
                format!(
                    "the daemon closed the connection in the middle of a payload ({})",
                    self.path.display()
                ),
            ));
        }
        Ok(())
    }

    /// Reads what is there without waiting.
    pub(crate) fn read_some(&mut self) -> Result<(), Failure> {
        if self.start > 0 {
            self.inbox.drain(..self.start);
            self.searched -= self.start;
            self.start = 0;
        }
        let length = self.inbox.len();
        self.inbox.resize(length + CHUNK, 0);
        let result = self
            .stream
            .read(self.inbox.get_mut(length..).unwrap_or_default());
        self.inbox.truncate(length + *result.as_ref().unwrap_or(&0));
        match result {
            Ok(0) => self.ended = true,
            Ok(_) => {}
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(e) if is_hang_up(&e) => self.ended = true,
            Err(e) => return Err(self.lost(&e)),
        }
        Ok(())
    }

    /// Sends a command and reads the one line of its answer.
    pub(crate) fn ask<T: for<'a> Deserialize<'a>>(
        &mut self,
        command: &impl Serialize,
    ) -> Result<Answer<T>, Failure> {
        self.send(command)?;
        let line = self.line()?;
        Answer::read(line)
    }

    fn wait<const N: usize>(&self, fds: [(BorrowedFd<'_>, PollFlags); N]) -> Result<(), Failure> {
        let ready = wait(fds, self.deadline).map_err(|e| Failure::system("cannot wait", &e))?;
        if ready.iter().all(|flags| flags.is_empty()) {
            return Err(Failure::new(
                Exit::Unavailable,
                format!(
                    "the daemon did not answer within {} ({})",
                    self.deadline.limit(),
                    self.path.display()
                ),
            ));
        }
        Ok(())
    }

    fn consume_to(&mut self, start: usize) {
        self.start = start;
        self.searched = start;
    }

    fn lost(&self, error: &io::Error) -> Failure {
        Failure::new(
            Exit::Unavailable,
            format!("lost the daemon at {}: {error}", self.path.display()),
        )
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// An answer of one line, as it came and understood.
#[derive(Debug)]
pub(crate) struct Answer<T> {
    /// As it came, for `--json`.
    pub(crate) line: Vec<u8>,
    /// Understood.
    pub(crate) value: T,
}

impl<T: for<'a> Deserialize<'a>> Answer<T> {
    /// Reads a line; an error in it is a failure.
    pub(crate) fn read(line: Vec<u8>) -> Result<Self, Failure> {
        if let Some(error) = error_in(&line) {
            return Err(Failure::answered(&error));
        }
        let value = parse(&line)?;
        Ok(Self { line, value })
    }
}

/// Understands a line.
pub(crate) fn parse<T: for<'a> Deserialize<'a>>(line: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(line).map_err(|e| {
        let version = env!("CARGO_PKG_VERSION");
        Failure::new(
            Exit::Internal,
            format!(
                "the daemon's answer is not understood by receptorctl {version}: {e}\nit was {:?}",
                excerpt(line)
            ),
        )
    })
}

/// The error that a line is, in our form or in that of Go Receptor.
pub(crate) fn error_in(line: &[u8]) -> Option<ErrorBody> {
    #[derive(Deserialize)]
    struct Failed {
        error: ErrorBody,
    }
    if let Some(text) = line.strip_prefix(b"ERROR: ") {
        let text = String::from_utf8_lossy(text);
        let denied = ErrorCode::PermissionDenied;
        if let Some(text) = text.strip_prefix(&format!("{denied}: ")) {
            return Some(ErrorBody::new(denied, text));
        }
        let code = if text.contains("nknown command") {
            ErrorCode::UnknownCommand
        } else {
            ErrorCode::Refused
        };
        return Some(ErrorBody::new(code, text));
    }
    let failed: Failed = serde_json::from_slice(line).ok()?;
    Some(failed.error)
}

/// A command as one line.
pub(crate) fn to_line(command: &impl Serialize) -> Result<Vec<u8>, Failure> {
    let mut line = serde_json::to_vec(command)
        .map_err(|e| Failure::new(Exit::Internal, format!("cannot write the command: {e}")))?;
    line.push(b'\n');
    Ok(line)
}

/// The start of a line that was not understood, fit for a terminal.
fn excerpt(line: &[u8]) -> String {
    const SHOWN: usize = 120;
    let start = line.get(..SHOWN).unwrap_or(line);
    let dots = if start.len() < line.len() { "…" } else { "" };
    format!("{}{dots}", String::from_utf8_lossy(start))
}

fn is_hang_up(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted
    )
}

fn connect(path: &Path, deadline: Deadline) -> io::Result<UnixStream> {
    let address = UnixAddr::new(path)?;
    let fd = socket::socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    // A Unix socket whose backlog is full makes connect wait for as long as a send may.
    if let Some(left) = deadline.left() {
        let micros = i64::try_from(left.as_micros()).unwrap_or(i64::MAX).max(1);
        setsockopt(&fd, SendTimeout, &TimeVal::microseconds(micros))?;
    }
    loop {
        match socket::connect(fd.as_raw_fd(), &address) {
            Ok(()) => break,
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    let stream = UnixStream::from(fd);
    stream.set_nonblocking(true)?;
    Ok(stream)
}

/// Whether no daemon listens here: there is no socket, or a daemon that was killed left it.
pub(crate) fn is_deserted(path: &Path) -> bool {
    let error = connect(path, Deadline::after(Some(PATIENCE))).err();
    let code = error.and_then(|error| error.raw_os_error());
    code.is_some_and(|code| matches!(Errno::from_raw(code), Errno::ENOENT | Errno::ECONNREFUSED))
}

/// What to tell somebody whose daemon cannot be reached, by what the system said.
fn unreachable(path: &Path, error: &io::Error) -> Failure {
    let path = path.display().to_string();
    let path = printable(&path);
    let (exit, why, todo) = match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOENT) => (
            Exit::Unavailable,
            "there is no such socket".to_owned(),
            "is receptord running? try: systemctl start receptord; or name another socket with --socket-path or RECEPTOR_SOCKET",
        ),
        Some(Errno::ECONNREFUSED) => (
            Exit::Unavailable,
            "nobody listens there".to_owned(),
            "receptord has ended or was killed; try: systemctl start receptord",
        ),
        Some(Errno::EACCES | Errno::EPERM) => (
            Exit::NotPermitted,
            "permission denied".to_owned(),
            "is this user in the group of the socket? try: usermod -aG receptor USER, then log in again",
        ),
        Some(Errno::EAGAIN | Errno::ETIMEDOUT) => (
            Exit::Unavailable,
            "it does not take the connection".to_owned(),
            "receptord is stuck or overloaded; see: journalctl -u receptord",
        ),
        Some(Errno::ENOTSOCK | Errno::EPROTOTYPE) => (
            Exit::Unavailable,
            "that is no stream socket".to_owned(),
            "name the control socket of receptord with --socket-path or RECEPTOR_SOCKET",
        ),
        _ => (
            Exit::Unavailable,
            error.to_string(),
            "name the control socket of receptord with --socket-path or RECEPTOR_SOCKET",
        ),
    };
    Failure::new(
        exit,
        format!("cannot reach receptord at {path}: {why}; {todo}"),
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_socket_that_a_killed_daemon_left_is_deserted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        assert!(is_deserted(&path), "there is none");
        let listener = UnixListener::bind(&path).unwrap();
        assert!(!is_deserted(&path), "somebody listens");
        drop(listener);
        assert!(path.exists() && is_deserted(&path), "nobody does any more");
    }
}
