//! The holder: `receptord hold-plugin`, the process between a daemon and one plugin.
//!
//! Owns the plugin's process, its pipes and its end, and what it has said that no daemon has put away yet.
//! A daemon that goes leaves the connection with the service manager, and the next one goes on
//! with `Order::Resume`. When nobody has the connection any more the plugin is ended, and with it all
//! that it has started. Knows nothing of works: what a daemon must know to go on is in a note to it, with an
//! entry for each thing that the plugin does.
//!
//! ```text
//! daemon ── connection: stdin of this process ──▶ Input ── pipe ──▶ plugin
//!        ◀──────────────────────────────────────  Kept  ◀─ pipe ───
//! ```
//!
//! One thread, which waits in `poll` and nowhere else while the plugin runs.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::{OsStr, OsString};
use std::fs::{File, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio, exit};
use std::time::{Duration, Instant};

use bytes::Bytes;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{MsgFlags, recv, send};
use receptor_proto::plugin::TERM_GRACE;

use super::input::Input;
use super::kept::Kept;
use super::packet::{MAX_CHUNK, MAX_ENTRIES, MAX_PACKET, News, Order, Resumed};
use crate::worker::exec::{self, Instruction};
use crate::worker::sweep;
use crate::worker::tree::{self, Awaited, Root};

/// The word on the command line that makes the daemon's program a holder.
pub const WORD: &str = "hold-plugin";

/// Bytes of stderr that wait for a daemon; beyond, the oldest are dropped.
const MAX_STDERR: usize = 64 * 1024;
/// Packets of a stream sent in one go, so that orders are not kept waiting.
const BURST: usize = 16;
/// How long what the plugin said is kept for a daemon after this process was told to end.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// Between two looks for children that have lost their parent and ended.
const REAP_PAUSE: Duration = Duration::from_secs(1);
/// Variables of this service that mean nothing to a plugin.
const OWN_VARIABLES: [&str; 14] = [
    "CREDENTIALS_DIRECTORY",
    "INVOCATION_ID",
    "JOURNAL_STREAM",
    "LISTEN_FDNAMES",
    "LISTEN_FDS",
    "LISTEN_PID",
    "MANAGERPID",
    "MEMORY_PRESSURE_WATCH",
    "MEMORY_PRESSURE_WRITE",
    "NOTIFY_SOCKET",
    "REMOTE_ADDR",
    "REMOTE_PORT",
    "SYSTEMD_EXEC_PID",
    "WATCHDOG_USEC",
];
/// Variables that this service knows better than the daemon, which may run as another user.
const BETTER_KNOWN: [&str; 4] = ["HOME", "LANG", "PATH", "TZ"];

/// Becomes a holder, and never returns, when the command line says so. To be called before any thread is
/// started.
pub fn intercept() {
    if std::env::args_os().nth(1).is_none_or(|word| word != WORD) {
        return;
    }
    let code = match Holder::new().and_then(Holder::run) {
        Ok(()) => 0,
        Err(error) => {
            complain(&error);
            1
        }
    };
    exit(code);
}

/// Standard error is the unit's journal.
fn complain(error: &io::Error) {
    let _ = writeln!(io::stderr(), "<3>receptord {WORD}: {error}");
}

struct Holder {
    connection: OwnedFd,
    signals: SignalFd,
    plugin: Option<Plugin>,
    input: Input,
    /// Stdin is to be closed behind what waits for it.
    close_input: bool,
    kept: Kept,
    stderr: VecDeque<u8>,
    note: Vec<u8>,
    entries: BTreeMap<u128, Entry>,
    /// What was told of this, as of the last [`Order::Resume`].
    told: Told,
    /// Answers that the socket has not taken yet: as many as a daemon waits for, and as there are entries.
    answers: VecDeque<Vec<u8>>,
    /// The socket takes no more at the moment.
    full: bool,
    /// Nobody has the other end.
    alone: bool,
    /// When to kill a plugin that was asked to end.
    kill_at: Option<Instant>,
    /// When to go, whether somebody wants the plugin's last words or not.
    go_at: Option<Instant>,
    reap_at: Option<Instant>,
}

/// What is kept beside the note.
struct Entry {
    entry: Vec<u8>,
    mark: Vec<u8>,
}

#[derive(Debug, Default)]
struct Told {
    fed: u64,
    output_end: bool,
    exit: bool,
}

/// The process.
struct Plugin {
    root: Root,
    child: Child,
    stdin: Option<File>,
    stdout: Option<File>,
    stderr: Option<File>,
    status: Option<ExitStatus>,
    /// Until it has ended.
    awaited: Option<Awaited>,
}

impl Holder {
    fn new() -> io::Result<Self> {
        let connection = io::stdin().as_fd().try_clone_to_owned()?;
        set_nonblocking(connection.as_fd())?;
        // Blocked here and taken from a descriptor; the helper that becomes the plugin unblocks them.
        let mut mask = SigSet::empty();
        for signal in [
            Signal::SIGCHLD,
            Signal::SIGTERM,
            Signal::SIGINT,
            Signal::SIGHUP,
        ] {
            mask.add(signal);
        }
        mask.thread_block()?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let signals = SignalFd::with_flags(&mask, flags)?;
        prctl::set_child_subreaper(true)?;
        // The plugin is of the same user: it must not look in here for the connection.
        prctl::set_dumpable(false)?;
        Ok(Self {
            connection,
            signals,
            plugin: None,
            input: Input::default(),
            close_input: false,
            kept: Kept::default(),
            stderr: VecDeque::new(),
            note: Vec::new(),
            entries: BTreeMap::new(),
            told: Told::default(),
            answers: VecDeque::new(),
            full: false,
            alone: false,
            kill_at: None,
            go_at: None,
            reap_at: None,
        })
    }

    fn run(mut self) -> io::Result<()> {
        let mut buffer = vec![0; MAX_PACKET];
        while !self.is_over() {
            self.feed();
            self.say();
            self.wait()?;
            self.take_signals()?;
            self.receive(&mut buffer);
            self.read(&mut buffer);
            self.keep_time(Instant::now());
        }
        self.clear_away();
        Ok(())
    }

    /// Whether there is nothing left to hold, or nobody to hold it for.
    fn is_over(&self) -> bool {
        let ended = self.plugin.as_ref().is_none_or(|p| p.status.is_some());
        ended && (self.alone || self.go_at.is_some_and(|at| Instant::now() >= at))
    }

    fn wait(&self) -> io::Result<()> {
        let mut polled = Vec::with_capacity(5);
        let mut on_connection = PollFlags::empty();
        if !self.alone {
            on_connection |= PollFlags::POLLIN;
            on_connection.set(PollFlags::POLLOUT, self.full);
            polled.push(PollFd::new(self.connection.as_fd(), on_connection));
        }
        polled.push(PollFd::new(self.signals.as_fd(), PollFlags::POLLIN));
        if let Some(plugin) = &self.plugin {
            let reads = self.alone || self.kept.has_room();
            let pipes = [
                (
                    &plugin.stdin,
                    PollFlags::POLLOUT,
                    !self.input.unwritten().is_empty(),
                ),
                (&plugin.stdout, PollFlags::POLLIN, reads),
                (&plugin.stderr, PollFlags::POLLIN, true),
            ];
            for (pipe, flags, wanted) in pipes {
                if let Some(pipe) = pipe.as_ref().filter(|_| wanted) {
                    polled.push(PollFd::new(pipe.as_fd(), flags));
                }
            }
        }
        let now = Instant::now();
        let deadline = [self.kill_at, self.go_at, self.reap_at];
        let deadline = deadline.into_iter().flatten().min();
        let timeout = deadline.map_or(PollTimeout::NONE, |at| {
            // Rounded up: a deadline must have passed when it is looked at.
            let left = at.saturating_duration_since(now) + Duration::from_millis(1);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut polled, timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    // The daemon.

    /// Takes the orders that have come.
    fn receive(&mut self, buffer: &mut [u8]) {
        while !self.alone {
            match recv(self.connection.as_raw_fd(), buffer, MsgFlags::empty()) {
                Ok(0) => self.be_alone(),
                Ok(count) => {
                    let packet = buffer.get(..count).unwrap_or_default();
                    if let Err(problem) = self.obey(packet) {
                        complain(&problem);
                        self.be_alone();
                    }
                }
                Err(Errno::EAGAIN) => return,
                Err(Errno::EINTR) => {}
                Err(_) => self.be_alone(),
            }
        }
    }

    fn obey(&mut self, packet: &[u8]) -> io::Result<()> {
        let wrong = |what: &str| Err(io::Error::other(what.to_owned()));
        let Ok(order) = Order::decode(packet) else {
            return wrong("an order that is unknown to this version");
        };
        match order {
            Order::Run(_) if self.plugin.is_some() => return wrong("a second plugin"),
            Order::Run(instruction) => {
                let instruction = Instruction::decode(instruction).map_err(io::Error::other)?;
                self.plugin = Some(Plugin::start(instruction)?);
            }
            Order::Input(bytes) => {
                if self.input.push(bytes).is_err() {
                    return wrong("more input than a plugin can be sent");
                }
            }
            Order::CloseInput => self.close_input = true,
            Order::Note(note) => note.clone_into(&mut self.note),
            Order::Entry { key, entry } => {
                if self.entries.len() >= MAX_ENTRIES {
                    return wrong("more entries than are kept");
                }
                let (entry, mark) = (entry.to_owned(), Vec::new());
                self.entries.insert(key, Entry { entry, mark });
            }
            Order::Seen { offset, marks } => {
                self.kept.seen(offset);
                for (key, mark) in marks.iter() {
                    if mark.is_empty() {
                        self.entries.remove(&key);
                    } else if let Some(entry) = self.entries.get_mut(&key) {
                        mark.clone_into(&mut entry.mark);
                    }
                }
            }
            Order::Terminate => self.signal(Signal::SIGTERM),
            Order::Kill => self.kill(),
            Order::Share(path) => {
                if let Some(plugin) = &self.plugin {
                    share(&plugin.root.dir.join(OsStr::from_bytes(path)));
                }
                self.answers.push_back(News::Shared.encode());
            }
            Order::Finish => {
                self.clear_away();
                self.answers.push_back(News::Finished.encode());
            }
            Order::Resume(number) => {
                self.input.drop_partial();
                self.kept.again();
                self.told = Told {
                    fed: self.input.fed(),
                    ..Told::default()
                };
                let resumed = Resumed {
                    number,
                    offset: self.kept.offset(),
                    whole: self.input.whole(),
                    fed: self.input.fed(),
                    note: &self.note,
                };
                self.answers.clear();
                for (key, Entry { entry, mark }) in &self.entries {
                    let entry = News::Entry {
                        number,
                        key: *key,
                        mark,
                        entry,
                    };
                    self.answers.push_back(entry.encode());
                }
                self.answers.push_back(News::Resumed(resumed).encode());
            }
        }
        Ok(())
    }

    /// Tells the daemon what is new, as far as the socket takes it.
    fn say(&mut self) {
        self.full = false;
        while let Some(answer) = self.answers.pop_front() {
            if !self.send(&answer) {
                self.answers.push_front(answer);
                return;
            }
        }
        let mut left = BURST;
        while left > 0 && !self.full && !self.alone {
            left -= 1;
            if !self.say_one() {
                return;
            }
        }
        // There may be more, but orders go first.
        self.full = true;
    }

    /// Whether there was anything to say.
    fn say_one(&mut self) -> bool {
        if let Some((offset, bytes)) = self.kept.next() {
            let packet = News::Output { offset, bytes }.encode();
            if self.send(&packet) {
                self.kept.sent();
            }
            return true;
        }
        if !self.stderr.is_empty() {
            let count = self.stderr.len().min(MAX_CHUNK);
            let bytes: Vec<u8> = self.stderr.iter().take(count).copied().collect();
            if self.send(&News::Stderr(&bytes).encode()) {
                self.stderr.drain(..count);
            }
            return true;
        }
        let fed = self.input.fed();
        if fed != self.told.fed {
            if self.send(&News::Fed(fed).encode()) {
                self.told.fed = fed;
            }
            return true;
        }
        let Some(plugin) = &self.plugin else {
            return false;
        };
        let (open, status) = (plugin.stdout.is_some(), plugin.status);
        if !open && !self.told.output_end {
            self.told.output_end = self.send(&News::OutputEnd.encode());
            return true;
        }
        if let Some(status) = status
            && !self.told.exit
        {
            self.told.exit = self.send(&News::Exited(status).encode());
            return true;
        }
        false
    }

    /// False: the socket has no room, or nobody has its other end.
    fn send(&mut self, packet: &[u8]) -> bool {
        if self.alone {
            return false;
        }
        match send(self.connection.as_raw_fd(), packet, MsgFlags::MSG_NOSIGNAL) {
            Ok(_) => true,
            Err(Errno::EAGAIN | Errno::ENOBUFS) => {
                self.full = true;
                false
            }
            Err(Errno::EINTR) => false,
            // What is still to be read is read first; its end tells that nobody is there.
            Err(_) => false,
        }
    }

    /// Nobody wants the plugin any more.
    fn be_alone(&mut self) {
        self.alone = true;
        self.kept.clear();
        self.end();
    }

    // The plugin.

    /// Asks the plugin to end, and kills it when it does not.
    fn end(&mut self) {
        if self.kill_at.is_none() {
            self.signal(Signal::SIGTERM);
            self.kill_at = Some(Instant::now() + TERM_GRACE);
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(plugin) = self.plugin.as_ref().filter(|p| p.status.is_none()) {
            tree::signal(plugin.root.pid, signal);
        }
    }

    fn kill(&mut self) {
        let Some(plugin) = &mut self.plugin else {
            return;
        };
        if plugin.status.is_none() {
            tree::halt(&plugin.root);
        }
        tree::kill_all(&plugin.root);
        if plugin.status.is_none() {
            let _ = plugin.child.kill();
            plugin.status = plugin.child.wait().ok();
        }
    }

    /// Ends what is left, and empties the directory, as only the user can who runs the plugin.
    fn clear_away(&mut self) {
        if self.plugin.as_ref().is_some_and(|p| p.status.is_none()) {
            self.kill();
        }
        if let Some(plugin) = &mut self.plugin {
            // Otherwise what it has left behind would count as a living plugin's.
            plugin.awaited = None;
            tree::sweep(std::slice::from_ref(&plugin.root));
            sweep::empty(&plugin.root.dir);
        }
    }

    /// Writes what waits for stdin, as far as the pipe takes it.
    fn feed(&mut self) {
        let Some(plugin) = &mut self.plugin else {
            return;
        };
        while let Some(stdin) = &mut plugin.stdin
            && !self.input.unwritten().is_empty()
        {
            match stdin.write(self.input.unwritten()) {
                Ok(count) => self.input.wrote(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => plugin.stdin = None,
            }
        }
        if plugin.stdin.is_none() {
            self.input.clear();
        } else if self.close_input {
            plugin.stdin = None;
        }
    }

    /// Reads what the plugin says, once from each pipe.
    fn read(&mut self, buffer: &mut [u8]) {
        let Some(plugin) = &mut self.plugin else {
            return;
        };
        let piece = buffer.get_mut(..MAX_CHUNK).unwrap_or_default();
        if self.alone || self.kept.has_room() {
            let read = read_some(&mut plugin.stdout, piece);
            if !self.alone && !read.is_empty() {
                self.kept.push(Bytes::copy_from_slice(read));
            }
        }
        let read = read_some(&mut plugin.stderr, piece);
        if !self.alone {
            self.stderr.extend(read);
            let excess = self.stderr.len().saturating_sub(MAX_STDERR);
            self.stderr.drain(..excess);
        }
    }

    // Signals and time.

    fn take_signals(&mut self) -> io::Result<()> {
        while let Some(signal) = self.signals.read_signal()? {
            let number = i32::try_from(signal.ssi_signo).unwrap_or(0);
            if Signal::try_from(number) == Ok(Signal::SIGCHLD) {
                if let Some(plugin) = &mut self.plugin
                    && plugin.status.is_none()
                {
                    plugin.status = plugin.child.try_wait()?;
                }
                self.reap_at.get_or_insert(Instant::now() + REAP_PAUSE);
            } else {
                // The unit is being stopped. Whoever waits for the plugin is to hear how it ended.
                self.end();
            }
        }
        Ok(())
    }

    fn keep_time(&mut self, now: Instant) {
        let ended = self.plugin.as_ref().is_none_or(|p| p.status.is_some());
        if self.kill_at.is_some_and(|at| now >= at) && !ended {
            self.kill();
        }
        if self.kill_at.is_some() && ended {
            self.go_at.get_or_insert(now + LAST_WORDS);
        }
        if self.reap_at.is_some_and(|at| now >= at) {
            self.reap_at = None;
            tree::sweep(&[]);
        }
    }
}

impl Plugin {
    fn start(instruction: Instruction) -> io::Result<Self> {
        let root_dir = instruction.dir.clone();
        let instruction = Instruction {
            parent: std::process::id(),
            shares_files: true,
            environment: environment(instruction.environment, std::env::vars_os()),
            ..instruction
        };
        let mut command = Command::new(own_program());
        command
            .arg0("receptord")
            .arg(exec::WORD)
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let (mut child, awaited) = Awaited::start(|| {
            let child = command.spawn()?;
            let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
            Ok((child, pid))
        })?;
        awaited.runs_plugin();
        let pid = awaited.pid();
        let (stdin, stdout, stderr) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let mut stdin = stdin.map(|pipe| File::from(OwnedFd::from(pipe)));
        let stdout = stdout.map(|pipe| File::from(OwnedFd::from(pipe)));
        let stderr = stderr.map(|pipe| File::from(OwnedFd::from(pipe)));
        // The helper reads it at once; one that cannot has ended, and its exit tells.
        if let Some(stdin) = &mut stdin {
            let _ = stdin.write_all(&instruction.encode());
        }
        for pipe in [&stdin, &stdout, &stderr].into_iter().flatten() {
            set_nonblocking(pipe.as_fd())?;
        }
        Ok(Self {
            root: Root { pid, dir: root_dir },
            child,
            stdin,
            stdout,
            stderr,
            status: None,
            awaited: Some(awaited),
        })
    }
}

/// Lets the group, which is the daemon's as well, read and write a file. Of what cannot be so, or is none of its
/// user's, the daemon tells the plugin.
fn share(path: &Path) {
    if let Ok(found) = path.symlink_metadata()
        && found.is_file()
    {
        let mode = found.permissions().mode() | 0o660;
        let _ = std::fs::set_permissions(path, Permissions::from_mode(mode));
    }
}

/// Stays true when the file is replaced by an upgrade.
fn own_program() -> &'static Path {
    Path::new("/proc/self/exe")
}

/// A plugin's environment: what the daemon says, in that of this service, whose user, paths and further
/// variables an administrator may have chosen.
fn environment(
    said: Vec<(OsString, OsString)>,
    own: impl Iterator<Item = (OsString, OsString)>,
) -> Vec<(OsString, OsString)> {
    let is_in = |names: &[&str], name: &OsStr| names.iter().any(|known| name == *known);
    let own: Vec<_> = own
        .filter(|(name, _)| !is_in(&OWN_VARIABLES, name))
        .collect();
    let has_own = |name: &OsStr| own.iter().any(|(known, _)| known == name);
    let said: Vec<_> = said
        .into_iter()
        .filter(|(name, _)| !(is_in(&BETTER_KNOWN, name) && has_own(name)))
        .collect();
    let mut all: Vec<_> = own
        .iter()
        .filter(|(name, _)| !said.iter().any(|(other, _)| other == name))
        .cloned()
        .collect();
    all.extend(said);
    all
}

fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// What one read brings; the pipe is closed at its end.
fn read_some<'a>(pipe: &mut Option<File>, buffer: &'a mut [u8]) -> &'a [u8] {
    let Some(open) = pipe else {
        return &[];
    };
    match open.read(buffer) {
        Ok(count) if count > 0 => buffer.get(..count).unwrap_or_default(),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
            ) =>
        {
            &[]
        }
        // An error on a pipe is as good as its end.
        Ok(_) | Err(_) => {
            *pipe = None;
            &[]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(list: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
        let pairs = list.iter();
        pairs
            .map(|(name, value)| (name.into(), value.into()))
            .collect()
    }

    #[test]
    fn the_unit_s_environment_is_the_plugin_s_where_it_knows_better() {
        let said = variables(&[("HOME", "/root"), ("TZ", "UTC"), ("RECEPTOR_JOB_ID", "1")]);
        let own = variables(&[
            ("HOME", "/var/lib/w"),
            ("INVOCATION_ID", "x"),
            ("ANSIBLE_CONFIG", "/etc/a"),
            ("RECEPTOR_JOB_ID", "forged"),
        ]);
        let mut all = environment(said, own.into_iter());
        all.sort();
        let expected = variables(&[
            ("ANSIBLE_CONFIG", "/etc/a"),
            ("HOME", "/var/lib/w"),
            ("RECEPTOR_JOB_ID", "1"),
            ("TZ", "UTC"),
        ]);
        assert_eq!(all, expected);
    }
}
