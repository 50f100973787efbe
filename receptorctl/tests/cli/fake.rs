//! A daemon on a socket in a temporary directory that plays one test's part, and the program run
//! against it. Everything has a deadline, so that a defect fails a test and never hangs it.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::AsFd as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

/// No step of a test takes longer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// The id of the one message of a test.
pub(crate) const ID: &str = "0123456789abcdef0123456789abcdef";

pub(crate) struct Daemon {
    dir: TempDir,
    thread: Option<JoinHandle<()>>,
}

impl Daemon {
    /// A daemon that does what the script says, client by client.
    pub(crate) fn new(script: impl FnOnce(&Clients) + Send + 'static) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("s")).unwrap();
        let thread = std::thread::spawn(move || script(&Clients { listener }));
        Self {
            dir,
            thread: Some(thread),
        }
    }

    /// A daemon that answers the one command of its one client with these lines.
    pub(crate) fn answering(lines: &'static str) -> Self {
        Self::new(move |clients| {
            let mut client = clients.next();
            client.command();
            client.say(lines);
            client.gone();
        })
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    /// Runs the program to its end.
    pub(crate) fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Answer {
        self.start(args, b"").end()
    }

    /// Starts the program with this on its stdin.
    pub(crate) fn start<S: AsRef<OsStr>>(
        &self,
        args: impl IntoIterator<Item = S>,
        stdin: &[u8],
    ) -> Running {
        let mut running = self.start_open(args);
        let mut pipe = running.child.stdin.take().unwrap();
        let stdin = stdin.to_vec();
        std::thread::spawn(move || {
            // A program that needs no more of it is fine.
            let _ = pipe.write_all(&stdin);
        });
        running
    }

    /// Starts the program with its stdin left open.
    pub(crate) fn start_open<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Running {
        let mut program = program();
        program.env("RECEPTOR_SOCKET", self.socket()).args(args);
        self.running(program.spawn().unwrap())
    }

    /// A program that was started to talk with this daemon.
    pub(crate) fn running(&self, child: Child) -> Running {
        running(child, &self.socket())
    }

    /// Waits for the end of the script; its failures are the test's.
    pub(crate) fn finish(mut self) {
        let thread = self.thread.take().unwrap();
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take()
            && !std::thread::panicking()
            && let Err(panic) = thread.join()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

/// The program with nothing of the test's own surroundings.
pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_receptorctl"));
    command
        .env_remove("RECEPTOR_SOCKET")
        .env_remove("NO_COLOR")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// A program that was started; in what it says the path is shown as SOCKET.
pub(crate) fn running(child: Child, path: &Path) -> Running {
    Running {
        child,
        socket: path.to_owned(),
    }
}

/// Who connects to the daemon.
pub(crate) struct Clients {
    listener: UnixListener,
}

impl Clients {
    /// The next client, greeted.
    pub(crate) fn next(&self) -> Client {
        let mut client = self.ungreeted();
        client.say("Receptor Control, node controller\n");
        client
    }

    pub(crate) fn ungreeted(&self) -> Client {
        let mut fds = [PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(PATIENCE).unwrap();
        assert_eq!(
            nix::poll::poll(&mut fds, timeout).unwrap(),
            1,
            "nobody came"
        );
        let (stream, _) = self.listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Client {
            reader: BufReader::new(stream),
        }
    }
}

pub(crate) struct Client {
    reader: BufReader<UnixStream>,
}

impl Client {
    /// The next command.
    pub(crate) fn command(&mut self) -> Value {
        let mut line = String::new();
        self.reader.read_line(&mut line).unwrap();
        assert!(line.ends_with('\n'), "a whole line: {line:?}");
        serde_json::from_str(&line).unwrap()
    }

    pub(crate) fn say(&mut self, text: &str) {
        self.raw(text.as_bytes());
    }

    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.reader.get_mut().write_all(bytes).unwrap();
    }

    /// Writes what the client may not want to read any more.
    pub(crate) fn offer(&mut self, bytes: &[u8]) -> bool {
        self.reader.get_mut().write_all(bytes).is_ok()
    }

    pub(crate) fn read(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.reader.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// Everything until the client's half-close.
    pub(crate) fn read_to_end(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.reader.read_to_end(&mut bytes).unwrap();
        bytes
    }

    /// Says no more, and hears the client out.
    pub(crate) fn end(&mut self) {
        // A client that has gone with something unread resets the connection.
        let _ = self.reader.get_mut().shutdown(Shutdown::Write);
        let _ = self.reader.read_to_end(&mut Vec::new());
    }

    /// Waits until the client has closed.
    pub(crate) fn gone(&mut self) {
        let rest = self.read_to_end();
        assert!(
            rest.is_empty(),
            "unexpected: {:?}",
            String::from_utf8_lossy(&rest)
        );
    }
}

pub(crate) struct Running {
    pub(crate) child: Child,
    socket: PathBuf,
}

impl Running {
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    /// Waits for the end and collects what was said.
    pub(crate) fn end(mut self) -> Answer {
        let stdout = collect(self.child.stdout.take());
        let stderr = collect(self.child.stderr.take());
        let status = self.status();
        let socket = self.socket.display().to_string();
        let text = |thread: JoinHandle<Vec<u8>>| thread.join().unwrap();
        Answer {
            code: status.code(),
            stdout: text(stdout),
            stderr: String::from_utf8(text(stderr))
                .unwrap()
                .replace(&socket, "SOCKET"),
        }
    }

    pub(crate) fn status(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            if start.elapsed() > PATIENCE {
                self.child.kill().unwrap();
                panic!("the program did not end");
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

fn collect(source: Option<impl std::io::Read + Send + 'static>) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut source) = source {
            source.read_to_end(&mut bytes).unwrap();
        }
        bytes
    })
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Answer {
    pub(crate) fn stdout(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }

    /// The answer as a snapshot shows it.
    pub(crate) fn shown(&self) -> String {
        format!(
            "{}---- stderr\n{}---- exit {}\n",
            self.stdout(),
            self.stderr,
            self.code
                .map_or("by signal".to_owned(), |code| code.to_string())
        )
    }

    #[track_caller]
    pub(crate) fn expect(&self, code: i32, stdout: &str, stderr: &str) {
        assert_eq!(self.stderr, stderr);
        assert_eq!(self.stdout(), stdout);
        assert_eq!(self.code, Some(code));
    }
}
