//! One process of the plugin under test, and its three pipes.
//!
//! Owns the spawn with the environment that the daemon gives, what waits to be written, what was read and is no line
//! yet, and the kept end of stderr. Never holds more than one line and one read of stdout, never blocks on one pipe
//! while another could go on, and never knows what a line means.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::PollFlags;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{Pid, User, geteuid};
use receptor_proto::plugin::{MAX_LINE, PROTOCOL_VERSION, STDERR_SHOWN, env};

use super::exec::WORD;
use crate::client::{Deadline, wait};
use crate::exit::{Exit, Failure};

/// The node that plugins are told.
pub(super) const NODE: &str = "receptorctl";
/// Where programs are looked for when this program was started without a `PATH`, as the daemon has it.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Bytes of one read.
const CHUNK: usize = 64 * 1024;

/// The signals that this process waits for.
#[derive(Debug)]
pub(super) struct Signals {
    source: SignalFd,
}

impl Signals {
    /// Takes over the signals that end a check, and those that tell of the end of children.
    pub(super) fn watch() -> io::Result<Self> {
        let mut signals = SigSet::empty();
        for signal in [
            Signal::SIGCHLD,
            Signal::SIGINT,
            Signal::SIGTERM,
            Signal::SIGHUP,
        ] {
            signals.add(signal);
        }
        signals.thread_block()?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let source = SignalFd::with_flags(&signals, flags)?;
        Ok(Self { source })
    }

    /// Takes what has come; a failure when it was to end the check.
    fn take(&self) -> Result<(), Failure> {
        while let Ok(Some(signal)) = self.source.read_signal() {
            if Signal::try_from(i32::try_from(signal.ssi_signo).unwrap_or(0)) != Ok(Signal::SIGCHLD)
            {
                return Err(Failure::silent(Exit::Interrupted));
            }
        }
        Ok(())
    }
}

/// What a process did.
#[derive(Debug)]
pub(super) enum Event {
    /// It said a line, without its newline.
    Line(Vec<u8>),
    /// It said something of more bytes than a line may have, or than were asked for; this is the start.
    TooLong(Vec<u8>),
    /// Its stdout has ended; what was not a whole line is here.
    Closed(Vec<u8>),
    /// It has ended.
    Exited(ExitStatus),
}

/// What a process is started with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Setting<'a> {
    pub(super) program: &'a Path,
    pub(super) dir: &'a Path,
    /// Another home than ours.
    pub(super) home: Option<&'a Path>,
    /// The variables of a job.
    pub(super) job: &'a [(&'static str, String)],
}

/// See the module.
#[derive(Debug)]
pub(super) struct Process<'a> {
    signals: &'a Signals,
    child: Child,
    pid: Pid,
    started: Instant,
    stdin: Option<File>,
    stdout: Option<File>,
    stderr: Option<File>,
    /// To be written.
    outbox: Vec<u8>,
    close_when_written: bool,
    /// Read and not yet taken.
    inbox: Vec<u8>,
    searched: usize,
    stderr_tail: Vec<u8>,
    status: Option<ExitStatus>,
    told_status: bool,
    told_closed: bool,
}

impl<'a> Process<'a> {
    pub(super) fn start(signals: &'a Signals, setting: &Setting<'_>) -> Result<Self, Failure> {
        let cannot =
            |e: &io::Error| Failure::new(Exit::Usage, format!("cannot start the plugin: {e}"));
        let mut child = Command::new("/proc/self/exe")
            .arg(WORD)
            .arg(setting.program)
            .env_clear()
            .envs(environment(setting))
            .current_dir(setting.dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| cannot(&e))?;
        let stdin = child.stdin.take().map(OwnedFd::from);
        let stdout = child.stdout.take().map(OwnedFd::from);
        let stderr = child.stderr.take().map(OwnedFd::from);
        let pid = i32::try_from(child.id()).map_err(|e| cannot(&io::Error::other(e)))?;
        Ok(Self {
            signals,
            child,
            pid: Pid::from_raw(pid),
            started: Instant::now(),
            stdin: stdin
                .map(without_blocking)
                .transpose()
                .map_err(|e| cannot(&e))?,
            stdout: stdout
                .map(without_blocking)
                .transpose()
                .map_err(|e| cannot(&e))?,
            stderr: stderr
                .map(without_blocking)
                .transpose()
                .map_err(|e| cannot(&e))?,
            outbox: Vec::new(),
            close_when_written: false,
            inbox: Vec::new(),
            searched: 0,
            stderr_tail: Vec::new(),
            status: None,
            told_status: false,
            told_closed: false,
        })
    }

    /// How long ago it was started.
    pub(super) fn age(&self) -> Duration {
        self.started.elapsed()
    }

    pub(super) fn status(&self) -> Option<ExitStatus> {
        self.status
    }

    /// Puts bytes into the queue for its stdin.
    pub(super) fn write(&mut self, bytes: &[u8]) {
        self.outbox.extend_from_slice(bytes);
    }

    /// Closes its stdin once everything is written.
    pub(super) fn close(&mut self) {
        self.close_when_written = true;
        if self.outbox.is_empty() {
            self.stdin = None;
        }
    }

    /// Whether everything has been handed over.
    pub(super) fn is_written(&self) -> bool {
        self.outbox.is_empty()
    }

    /// Sends a signal to its session.
    pub(super) fn signal(&self, signal: Signal) {
        if self.status.is_none() && kill(Pid::from_raw(-self.pid.as_raw()), signal).is_err() {
            // It may not have its session yet.
            let _ = kill(self.pid, signal);
        }
    }

    /// The last that it said on stderr, for a person.
    pub(super) fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr_tail).trim().to_owned()
    }

    /// Waits for the next event; `None` when time is over. Without `listen` stdout is not read. `longest` is the longest line in bytes with its newline.
    pub(super) fn next(
        &mut self,
        deadline: Deadline,
        listen: bool,
        longest: usize,
    ) -> Result<Option<Event>, Failure> {
        loop {
            if listen && let Some(event) = self.buffered(longest) {
                return Ok(Some(event));
            }
            if let Some(status) = self.status
                && !self.told_status
            {
                self.told_status = true;
                return Ok(Some(Event::Exited(status)));
            }
            if listen && self.stdout.is_none() && !self.told_closed {
                self.told_closed = true;
                let rest = std::mem::take(&mut self.inbox);
                return Ok(Some(Event::Closed(rest)));
            }
            if deadline.is_over() {
                return Ok(None);
            }
            self.step(deadline, listen)?;
        }
    }

    fn buffered(&mut self, longest: usize) -> Option<Event> {
        let fresh = self.inbox.get(self.searched..).unwrap_or_default();
        let end = fresh
            .iter()
            .position(|b| *b == b'\n')
            .map(|at| self.searched + at);
        self.searched = self.inbox.len();
        if end.unwrap_or(self.inbox.len()) >= longest {
            self.searched = 0;
            return Some(Event::TooLong(std::mem::take(&mut self.inbox)));
        }
        let end = end?;
        let mut line: Vec<u8> = self.inbox.drain(..=end).collect();
        line.pop();
        self.searched = 0;
        Some(Event::Line(line))
    }

    /// Waits until a pipe can go on or a signal comes, and goes on.
    fn step(&mut self, deadline: Deadline, listen: bool) -> Result<(), Failure> {
        let failed = |e: io::Error| Failure::system("cannot wait", &e);
        let nothing = (self.signals.source.as_fd(), PollFlags::empty());
        let out = |pipe: Option<&'_ File>| pipe.is_some() && !self.outbox.is_empty();
        let fds = [
            (self.signals.source.as_fd(), PollFlags::POLLIN),
            match &self.stdin {
                Some(pipe) if out(Some(pipe)) => (pipe.as_fd(), PollFlags::POLLOUT),
                _ => nothing,
            },
            match &self.stdout {
                Some(pipe) if listen => (pipe.as_fd(), PollFlags::POLLIN),
                _ => nothing,
            },
            match &self.stderr {
                Some(pipe) => (pipe.as_fd(), PollFlags::POLLIN),
                None => nothing,
            },
        ];
        wait(fds, deadline).map_err(failed)?;
        self.signals.take()?;
        if self.status.is_none() {
            self.status = self.child.try_wait().map_err(failed)?;
        }
        self.flush();
        if listen {
            let room = MAX_LINE
                .saturating_add(CHUNK)
                .saturating_sub(self.inbox.len());
            read(&mut self.stdout, &mut self.inbox, room.min(CHUNK));
        }
        read(&mut self.stderr, &mut self.stderr_tail, CHUNK);
        let surplus = self.stderr_tail.len().saturating_sub(STDERR_SHOWN);
        self.stderr_tail.drain(..surplus);
        Ok(())
    }

    fn flush(&mut self) {
        while let Some(pipe) = &mut self.stdin
            && !self.outbox.is_empty()
        {
            match pipe.write(&self.outbox) {
                Ok(written) => {
                    self.outbox.drain(..written);
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                // It reads no more: whether it may is for others to say.
                Err(_) => {
                    self.stdin = None;
                    self.outbox.clear();
                }
            }
        }
        if self.close_when_written {
            self.stdin = None;
        }
    }
}

/// Reads what is there.
fn read(pipe: &mut Option<File>, into: &mut Vec<u8>, most: usize) {
    let Some(file) = pipe else { return };
    let length = into.len();
    into.resize(length + most, 0);
    let result = file.read(into.get_mut(length..).unwrap_or_default());
    into.truncate(length + *result.as_ref().unwrap_or(&0));
    match result {
        Ok(0) => *pipe = None,
        Ok(_) => {}
        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
        Err(_) => *pipe = None,
    }
}

fn without_blocking(fd: OwnedFd) -> io::Result<File> {
    fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(|e: Errno| io::Error::from(e))?;
    Ok(File::from(fd))
}

/// The whole environment, as the daemon gives it.
fn environment(setting: &Setting<'_>) -> Vec<(OsString, OsString)> {
    let own = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let home = setting.home.map(|home| home.as_os_str().to_owned());
    let home = home.or_else(|| own("HOME")).or_else(|| {
        let user = User::from_uid(geteuid()).ok()??;
        Some(user.dir.into_os_string())
    });
    let dir = setting.dir.as_os_str();
    let mut all: Vec<(OsString, OsString)> = vec![
        (
            "PATH".into(),
            own("PATH").unwrap_or_else(|| DEFAULT_PATH.into()),
        ),
        ("HOME".into(), home.unwrap_or_else(|| "/".into())),
        ("LC_ALL".into(), "C.UTF-8".into()),
        ("PYTHONUNBUFFERED".into(), "1".into()),
        ("TMPDIR".into(), dir.into()),
        (env::PROTOCOL.into(), PROTOCOL_VERSION.to_string().into()),
        (env::NODE.into(), NODE.into()),
        (env::JOB_DIR.into(), dir.into()),
    ];
    for name in ["LANG", "TZ"] {
        all.extend(own(name).map(|value| (name.into(), value)));
    }
    let job = setting.job.iter();
    all.extend(job.map(|(name, value)| ((*name).into(), value.into())));
    all
}
