//! One process of a plugin, and its three pipes.
//!
//! Owns the spawn (always through `exec-plugin`, often through one that is parked already), what
//! waits to be written, what was read and not yet understood, and the end: signals to the group, the
//! whole tree, the exit status. Never knows what a line means, and never holds more than one line
//! and one read of it. A process behind a holder has the same face, and what it said and nobody has put away.

use std::cell::{Cell, OnceCell, RefCell};
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::ExitStatus;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::Signal;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::exec::{Instruction, WORD};
use super::holder::{Connection, Entry, Mark, Note, Remote};
use super::lines::{Lines, TooLong};
use super::stderr::{Source, Stderr};
use super::sweep::{self, Sweeper};
use super::tree::{self, Awaited, DEATH, Root};
use crate::task;
use receptor_proto::MessageId;

/// Bytes asked for in one read at first. A plugin that fills it gets [`LARGE_READ`].
const SMALL_READ: usize = 8 * 1024;
/// Bytes asked for in one read of a plugin that says much: what a pipe holds.
const LARGE_READ: usize = 64 * 1024;
/// Unsent bytes beyond which a plugin is not told anything small any more.
const UNSENT_MAX: usize = 256 * 1024;
/// Bytes of the buffer for unsent lines that stay allocated once all are written.
const UNSENT_KEPT: usize = 256 * 1024;
/// A parked helper that nobody needed for this long is let go: an idle node holds no process.
const PARKED: Duration = Duration::from_secs(60);
/// Starts that may wait for the starting thread; whoever wants one more waits for it.
const STARTS: usize = 16;

/// Where the starting thread puts a process that it was asked for.
type Started = oneshot::Sender<io::Result<Raw>>;

/// Starts processes.
///
/// The helper takes as long to start as a small plugin. So while a plugin starts, the next helper is
/// started as well and parked until there is a job for it: a job then costs one `exec` and is begun
/// faster than by an ordinary spawn. A spawn stands still until the new program runs; it does so on
/// another thread, or everybody else's results would stand still with it. That is one thread for as
/// long as the daemon lives, because the system ends a plugin when the thread that started it ends
/// (`PR_SET_PDEATHSIG`).
#[derive(Debug)]
pub(super) struct Spawner {
    helper: PathBuf,
    /// To the starting thread, which comes with the first start and goes with the last clone.
    starts: OnceCell<mpsc::Sender<Started>>,
    parked: Rc<RefCell<Parked>>,
}

/// The place for one helper.
#[derive(Debug, Default)]
enum Parked {
    #[default]
    None,
    /// It will be here soon.
    Starting,
    /// Since when.
    Here(Box<Raw>, Instant),
}

/// A helper without an instruction.
#[derive(Debug)]
struct Raw {
    pid: i32,
    child: Child,
    stdin: pipe::Sender,
    stdout: pipe::Receiver,
    stderr: pipe::Receiver,
    awaited: Awaited,
}

impl Spawner {
    pub(super) fn new(helper: PathBuf) -> Self {
        Self {
            helper,
            starts: OnceCell::new(),
            parked: Rc::default(),
        }
    }

    /// Starts a plugin.
    ///
    /// # Errors
    /// When there is no room for a process or for pipes. What goes wrong later is told by an exit
    /// before the hello.
    pub(super) async fn spawn(
        &self,
        instruction: &Instruction,
        source: Source,
    ) -> io::Result<Process> {
        let raw = match self.take() {
            Some(raw) => raw,
            None => self.start().await?,
        };
        raw.awaited.runs_plugin();
        let pipes = Pipes {
            pid: raw.pid,
            child: raw.child,
            stdin: Some(raw.stdin),
            stdout: Some(raw.stdout),
            stderr: Some(raw.stderr),
            _awaited: raw.awaited,
        };
        let mut process = Process::new(
            Body::Child(Box::new(pipes)),
            instruction.dir.clone(),
            source,
        );
        process.send(&instruction.encode());
        Ok(process)
    }

    /// The parked helper, if there is one that lives.
    fn take(&self) -> Option<Raw> {
        let mut place = self.parked.borrow_mut();
        if !matches!(*place, Parked::Here(..)) {
            return None;
        }
        let Parked::Here(mut raw, _) = std::mem::take(&mut *place) else {
            return None;
        };
        // It may have been killed by somebody while it was parked.
        matches!(raw.child.try_wait(), Ok(None)).then_some(*raw)
    }

    /// Makes the next start a fast one.
    pub(super) fn park(&self) {
        if !matches!(*self.parked.borrow(), Parked::None) {
            return;
        }
        self.parked.replace(Parked::Starting);
        let place = Rc::clone(&self.parked);
        let start = self.start();
        task::spawn("parked helper", async move {
            let parked = match start.await {
                Ok(raw) => Parked::Here(Box::new(raw), Instant::now()),
                Err(error) => {
                    tracing::debug!(%error, "no helper can be parked");
                    Parked::None
                }
            };
            // Otherwise it was told meanwhile that none is needed.
            if matches!(*place.borrow(), Parked::Starting) {
                place.replace(parked);
            }
        });
    }

    /// Lets a helper go that has not been needed for a while. Returns when to ask again.
    pub(super) fn expire(&self, now: Instant) -> Option<Instant> {
        let until = match &*self.parked.borrow() {
            Parked::None => return None,
            Parked::Starting => now + PARKED,
            Parked::Here(_, since) => *since + PARKED,
        };
        if now < until {
            return Some(until);
        }
        self.unpark();
        None
    }

    /// Lets a parked helper go.
    pub(super) fn unpark(&self) {
        // Its stdin closes and it ends; the runtime reaps it.
        drop(self.parked.take());
    }

    /// Starts a helper on the starting thread.
    fn start(&self) -> impl Future<Output = io::Result<Raw>> + 'static {
        let starts = self.starting_thread();
        async move {
            let ended = || io::Error::other("the thread that starts processes has ended");
            let (started, raw) = oneshot::channel();
            starts?.send(started).await.map_err(|_| ended())?;
            raw.await.map_err(|_| ended())?
        }
    }

    fn starting_thread(&self) -> io::Result<mpsc::Sender<Started>> {
        if let Some(starts) = self.starts.get() {
            return Ok(starts.clone());
        }
        let (starts, mut asked) = mpsc::channel::<Started>(STARTS);
        let (helper, runtime) = (self.helper.clone(), Handle::current());
        std::thread::Builder::new()
            .name("start".to_owned())
            .spawn(move || {
                let _reaper = runtime.enter();
                while let Some(started) = asked.blocking_recv() {
                    // Whoever asked may be gone; then so is the process.
                    let _ = started.send(start(&helper));
                }
            })?;
        Ok(self.starts.get_or_init(|| starts).clone())
    }
}

fn start(helper: &Path) -> io::Result<Raw> {
    let (its_stdin, stdin) = io::pipe()?;
    let (stdout, its_stdout) = io::pipe()?;
    let (stderr, its_stderr) = io::pipe()?;
    let mut command = std::process::Command::new(helper);
    command
        .arg0("receptord")
        .arg(WORD)
        .env_clear()
        .stdin(its_stdin)
        .stdout(its_stdout)
        .stderr(its_stderr);
    let mut command = Command::from(command);
    command.kill_on_drop(true);
    let gone = || io::Error::other("it has ended at once");
    let (child, awaited) = Awaited::start(|| {
        let child = command.spawn()?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
        Ok((child, pid.ok_or_else(gone)?))
    })?;
    // Its ends are held by the command too.
    drop(command);
    Ok(Raw {
        pid: awaited.pid(),
        child,
        stdin: pipe::Sender::from_owned_fd(stdin.into())?,
        stdout: pipe::Receiver::from_owned_fd(stdout.into())?,
        stderr: pipe::Receiver::from_owned_fd(stderr.into())?,
        awaited,
    })
}

/// Bytes in the pipe to a plugin that serves; usually it is a quarter of that.
const STDIN_WIDE: i32 = 256 * 1024;

/// What has happened to a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// There are new bytes for [`Process::line`] or [`Process::bytes`].
    Output,
    /// What [`Process::tell_sent`] asked for.
    Sent,
    /// Stdout was closed.
    Closed,
    /// The process has ended. What it wrote may still be in the pipe.
    Exited,
}

/// What came of a process, whoever its parent is.
#[derive(Debug)]
pub(super) struct Heard {
    /// What was read and not taken.
    pub lines: Lines,
    /// Its log lines.
    pub stderr: Stderr,
    /// How it ended.
    pub status: Option<ExitStatus>,
}

/// A running plugin. Dropped while it runs, it is killed.
#[derive(Debug)]
pub(super) struct Process {
    body: Body,
    dir: PathBuf,
    /// Whole lines, of which the plugin's end has taken the first `sent` bytes.
    outgoing: Vec<u8>,
    sent: usize,
    close_when_sent: bool,
    tell_sent: Option<usize>,
    read: Cell<usize>,
    heard: Heard,
}

/// Where it runs.
#[derive(Debug)]
enum Body {
    Child(Box<Pipes>),
    Remote(Box<Remote>),
}

/// A child of this daemon.
#[derive(Debug)]
struct Pipes {
    pid: i32,
    child: Child,
    stdin: Option<pipe::Sender>,
    stdout: Option<pipe::Receiver>,
    stderr: Option<pipe::Receiver>,
    _awaited: Awaited,
}

impl Process {
    fn new(body: Body, dir: PathBuf, source: Source) -> Self {
        Self {
            body,
            dir,
            outgoing: Vec::new(),
            sent: 0,
            close_when_sent: false,
            tell_sent: None,
            read: Cell::new(SMALL_READ),
            heard: Heard {
                lines: Lines::default(),
                stderr: Stderr::new(source, Instant::now()),
                status: None,
            },
        }
    }

    /// Has a holder start it.
    pub(super) fn behind(
        connection: Connection,
        instruction: &Instruction,
        source: Source,
    ) -> Self {
        let remote = Remote::start(connection, &instruction.encode_fields());
        let body = Body::Remote(Box::new(remote));
        Self::new(body, instruction.dir.clone(), source)
    }

    /// One that an earlier daemon has left behind a holder.
    pub(super) fn resumed(remote: Remote, dir: PathBuf, source: Source) -> Self {
        Self::new(Body::Remote(Box::new(remote)), dir, source)
    }

    fn root(pid: i32, dir: &Path) -> Root {
        Root {
            pid,
            dir: dir.to_owned(),
        }
    }

    /// The process id, when it is a child.
    pub(super) fn pid(&self) -> Option<i32> {
        match &self.body {
            Body::Child(pipes) => Some(pipes.pid),
            Body::Remote(_) => None,
        }
    }

    /// Whether the next daemon can go on with it.
    pub(super) fn is_kept(&self) -> bool {
        match &self.body {
            Body::Child(_) => false,
            Body::Remote(remote) => remote.is_kept(),
        }
    }

    /// Whether a holder is between.
    pub(super) fn is_remote(&self) -> bool {
        matches!(self.body, Body::Remote(_))
    }

    /// Leaves it for the next daemon. One that is not kept is killed.
    pub(super) fn leave(self) {
        match self.body {
            Body::Child(_) => {}
            Body::Remote(remote) => remote.leave(),
        }
    }

    /// Leaves word of it for the next daemon.
    pub(super) fn note(&mut self, note: &Note) {
        // Its hello is in the note: to the next daemon it would be a line of a work.
        self.seen(self.offset(), &mut std::iter::empty());
        if let Body::Remote(remote) = &mut self.body {
            remote.note(note);
        }
    }

    /// Leaves word of a work, whose line is the last that is queued.
    pub(super) fn enter(&mut self, work: MessageId, entry: Entry) {
        let queued = self.queued();
        if let Body::Remote(remote) = &mut self.body {
            remote.enter(work, entry, queued);
        }
    }

    /// The offset of what was not taken yet in all that the plugin has said. Counted behind a holder only.
    pub(super) fn offset(&self) -> u64 {
        match &self.body {
            Body::Child(_) => 0,
            Body::Remote(remote) => remote.offset(self.heard.lines.len()),
        }
    }

    /// Nobody wants what came before this offset any more. With it go the marks of works; those without one are
    /// over.
    pub(super) fn seen(
        &mut self,
        offset: u64,
        marks: &mut dyn Iterator<Item = (MessageId, Option<Mark>)>,
    ) {
        if let Body::Remote(remote) = &mut self.body {
            remote.seen(offset, marks);
        }
    }

    /// Has a file in its directory made readable for this daemon, if that is another user's.
    pub(super) async fn share(&mut self, path: &str) {
        if let Body::Remote(remote) = &mut self.body {
            remote.share(path, &mut self.heard).await;
        }
    }

    /// Clears away what is left of it and its directory, once it has ended.
    pub(super) async fn clear_away(mut self, sweeper: &Sweeper) {
        match &mut self.body {
            Body::Child(pipes) => sweeper.ended(Self::root(pipes.pid, &self.dir)),
            Body::Remote(remote) => {
                remote.finish(&mut self.heard).await;
                let dir = self.dir.clone();
                let _ = spawn_blocking(move || sweep::remove(&dir)).await;
            }
        }
    }

    /// Its log lines.
    pub(super) fn stderr(&mut self) -> &mut Stderr {
        &mut self.heard.stderr
    }

    /// How it ended, if it has.
    pub(super) fn status(&self) -> Option<ExitStatus> {
        self.heard.status
    }

    /// Whether stdout may still bring something.
    pub(super) fn is_open(&self) -> bool {
        match &self.body {
            Body::Child(pipes) => pipes.stdout.is_some(),
            Body::Remote(remote) => remote.is_open(),
        }
    }

    /// Queues bytes for stdin and writes what the pipe takes at once. Nothing happens when the
    /// plugin has closed its end: its exit will tell.
    pub(super) fn send(&mut self, bytes: &[u8]) {
        self.outgoing.extend_from_slice(bytes);
        self.flush();
    }

    /// The queue for stdin: for whole lines to be added to. [`Self::flush`] writes them.
    pub(super) fn outgoing(&mut self) -> &mut Vec<u8> {
        &mut self.outgoing
    }

    /// Lets a plugin that serves have more to read while this node does other things: fewer of its lines then cost a wake.
    pub(super) fn widen(&self) {
        if let Body::Child(pipes) = &self.body
            && let Some(stdin) = &pipes.stdin
        {
            // The system may refuse it to a user with many pipes, to whom the usual size has to do.
            let _ = fcntl(stdin, FcntlArg::F_SETPIPE_SZ(STDIN_WIDE));
        }
    }

    /// Writes what the pipe takes at once of what is queued.
    pub(super) fn flush(&mut self) {
        if self.queued() > 0 {
            self.write();
        }
        if let Body::Child(pipes) = &self.body
            && pipes.stdin.is_none()
        {
            self.outgoing.clear();
            self.sent = 0;
        }
    }

    /// Whether the plugin has not taken all that was sent to it.
    pub(super) fn has_unsent(&self) -> bool {
        self.unsent() > 0
    }

    /// Whether the plugin has so much to read that a further message would be of no use.
    pub(super) fn is_choked(&self) -> bool {
        self.unsent() > UNSENT_MAX
    }

    /// Bytes that the pipe has not taken.
    pub(super) fn unsent(&self) -> usize {
        match &self.body {
            Body::Child(_) => self.queued(),
            Body::Remote(remote) => self.queued() + remote.unfed(),
        }
    }

    /// Bytes that have not left.
    pub(super) fn queued(&self) -> usize {
        self.outgoing.len() - self.sent
    }

    /// Lets [`Self::next`] tell once when fewer bytes than this are unsent.
    pub(super) fn tell_sent(&mut self, below: usize) {
        self.tell_sent = Some(below);
    }

    /// Closes stdin when everything is written.
    pub(super) fn close_stdin(&mut self) {
        self.close_when_sent = true;
        if self.queued() == 0 {
            self.close_now();
        }
    }

    fn close_now(&mut self) {
        match &mut self.body {
            Body::Child(pipes) => pipes.stdin = None,
            Body::Remote(remote) => remote.close_stdin(),
        }
    }

    /// A complete line with its newline.
    ///
    /// # Errors
    /// When it is longer than `limit`.
    pub(super) fn line(&mut self, limit: usize) -> Result<Option<BytesMut>, TooLong> {
        self.heard.lines.next(limit)
    }

    /// What was read and not taken, lent to whoever understands many lines at once.
    pub(super) fn take_lines(&mut self) -> Lines {
        std::mem::take(&mut self.heard.lines)
    }

    /// Gives it back.
    pub(super) fn put_lines(&mut self, mut lines: Lines) {
        // While a file was shared more may have come.
        let more = self.heard.lines.rest(usize::MAX);
        lines.buffer().extend_from_slice(&more);
        self.heard.lines = lines;
    }

    /// What was read and not taken, at most `limit` bytes of it.
    pub(super) fn bytes(&mut self, limit: usize) -> BytesMut {
        self.heard.lines.rest(limit)
    }

    /// As [`Self::bytes`], cut where it will be cut again should another daemon have to go on from here.
    pub(super) fn piece(&mut self, limit: usize) -> BytesMut {
        let piece = match &mut self.body {
            Body::Child(_) => limit,
            Body::Remote(remote) => remote.piece(self.heard.lines.len()).min(limit),
        };
        self.heard.lines.rest(piece)
    }

    /// Waits for the next event, and meanwhile writes what is queued and logs what comes on stderr.
    /// Reads stdout only if `read`. Can be dropped at any await without a loss.
    pub(super) async fn next(&mut self, read: bool) -> Event {
        loop {
            // Also what was written between two calls counts.
            if self.tell_sent.is_some_and(|below| self.unsent() < below) {
                self.tell_sent = None;
                return Event::Sent;
            }
            let writes = self.queued() > 0;
            let pipes = match &mut self.body {
                Body::Child(pipes) => pipes,
                Body::Remote(remote) => {
                    if let Some(event) = remote.event(read) {
                        return event;
                    }
                    remote.progress(&mut self.heard).await;
                    if writes {
                        self.flush();
                    }
                    continue;
                }
            };
            // Not biased: a flood on one pipe must not keep the others from their turn.
            tokio::select! {
                count = read_some(&mut pipes.stdout, self.heard.lines.buffer(), &self.read), if read => {
                    if count == 0 {
                        pipes.stdout = None;
                        return Event::Closed;
                    }
                    return Event::Output;
                }
                ready = writable(pipes.stdin.as_ref()), if writes => {
                    if ready.is_err() {
                        pipes.stdin = None;
                    }
                    self.flush();
                }
                count = read_some(&mut pipes.stderr, &mut self.heard.stderr.buffer, &self.read) => {
                    let now = Instant::now();
                    if count == 0 {
                        pipes.stderr = None;
                        self.heard.stderr.finish(now);
                    } else {
                        self.heard.stderr.take(now);
                    }
                }
                status = pipes.child.wait(), if self.heard.status.is_none() => {
                    self.heard.status = Some(status.unwrap_or_else(|error| {
                        tracing::error!(%error, pid = pipes.pid, "waiting for a plugin");
                        ExitStatus::default()
                    }));
                    return Event::Exited;
                }
            }
        }
    }

    fn write(&mut self) {
        let unsent = self.outgoing.get(self.sent..).unwrap_or_default();
        match &mut self.body {
            Body::Child(pipes) => {
                let Some(stdin) = &pipes.stdin else {
                    return;
                };
                match stdin.try_write(unsent) {
                    Ok(written) => self.sent += written,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                    Err(_) => {
                        pipes.stdin = None;
                        return;
                    }
                }
            }
            Body::Remote(remote) => self.sent += remote.write(unsent),
        }
        if self.queued() == 0 {
            self.outgoing.clear();
            self.sent = 0;
            // A large payload must not leave its buffer behind for the rest of a job.
            self.outgoing.shrink_to(UNSENT_KEPT);
            if self.close_when_sent {
                self.close_now();
            }
        } else if self.sent > self.queued() {
            // What is moved is less than what was written since the last time.
            self.outgoing.drain(..self.sent);
            self.sent = 0;
        }
    }

    /// Asks the plugin's process group to end.
    pub(super) fn terminate(&mut self) {
        match &mut self.body {
            Body::Child(pipes) if self.heard.status.is_none() => {
                tree::signal(pipes.pid, Signal::SIGTERM);
            }
            Body::Child(_) => {}
            Body::Remote(remote) => remote.terminate(),
        }
    }

    /// Kills the plugin and all of its descendants, and waits until they are dead, or until it is
    /// clear that they hang in the kernel.
    pub(super) async fn kill(&mut self) {
        let pipes = match &mut self.body {
            Body::Child(pipes) => pipes,
            Body::Remote(remote) => {
                return remote.kill(&mut self.heard).await;
            }
        };
        let (root, lives) = (
            Self::root(pipes.pid, &self.dir),
            self.heard.status.is_none(),
        );
        let killed = spawn_blocking(move || {
            if lives {
                tree::halt(&root);
            }
            tree::kill_all(&root);
        });
        if let Err(error) = killed.await {
            tracing::error!(%error, "killing a plugin");
        }
        if self.heard.status.is_none() {
            tree::signal(pipes.pid, Signal::SIGKILL);
            if let Ok(status) = timeout(DEATH, pipes.child.wait()).await {
                self.heard.status = Some(status.unwrap_or_default());
            }
        }
    }

    /// As [`Self::kill`], for one that may have ended by itself.
    pub(super) async fn kill_if_alive(&mut self) {
        if self.heard.status.is_none() {
            self.kill().await;
        }
    }

    /// Takes what is left on stderr without waiting for more.
    pub(super) fn finish_stderr(&mut self) {
        let now = Instant::now();
        match &mut self.body {
            Body::Child(pipes) => {
                if let Some(pipe) = pipes.stderr.take() {
                    while let Ok(1..) = pipe.try_read_buf(&mut self.heard.stderr.buffer) {
                        self.heard.stderr.take(now);
                    }
                }
            }
            Body::Remote(remote) => remote.take(&mut self.heard),
        }
        self.heard.stderr.finish(now);
    }
}

async fn writable(stdin: Option<&pipe::Sender>) -> io::Result<()> {
    match stdin {
        Some(stdin) => stdin.writable().await,
        None => std::future::pending().await,
    }
}

/// Reads into the buffer; 0 at the end, and for ever pending after it.
async fn read_some(
    pipe: &mut Option<pipe::Receiver>,
    buffer: &mut BytesMut,
    size: &Cell<usize>,
) -> usize {
    let Some(pipe) = pipe else {
        return std::future::pending().await;
    };
    buffer.reserve(size.get());
    // An error on a pipe is as good as its end.
    let count = read_once(Pin::new(pipe), buffer, size.get()).await;
    if count == size.get() {
        size.set(LARGE_READ);
    }
    count
}

async fn read_once<R: AsyncRead>(
    mut pipe: Pin<&mut R>,
    buffer: &mut BytesMut,
    most: usize,
) -> usize {
    use bytes::BufMut as _;
    let mut limited = buffer.limit(most);
    pipe.read_buf(&mut limited).await.unwrap_or(0)
}
