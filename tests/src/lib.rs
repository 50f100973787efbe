//! What whole-system tests share: real daemons on loopback, and clients of them.
//!
//! Owns the start, the readiness and the end of daemons in a directory of their own, and a
//! control client that says every step it waits for. Nothing here sleeps for a fixed time:
//! whatever takes time is waited for, with a deadline. Nothing outlives the test that started
//! it, also when that fails.
//!
//! ```no_run
//! use receptor_tests::Mesh;
//!
//! let mesh = Mesh::new();
//! let a = mesh.node("a").start();
//! let b = mesh.node("b").peer(&a).start();
//! b.wait_ping("a");
//! ```

pub mod authority;
pub mod by_hand;
pub mod chaos;
mod control;
pub mod hostile;
pub mod manager;
pub mod netns;
pub mod power;
pub mod relay;
pub mod traffic;
pub mod volume;
pub mod works;

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use tempfile::TempDir;

pub use self::control::Control;

/// Far longer than any step takes, so that a busy machine does not fail a test.
pub const DEADLINE: Duration = Duration::from_secs(30);
/// What one ping waits for its answer before the next is sent.
const PING_TIMEOUT_MS: u64 = 500;
/// Between two looks at a condition that nobody announces.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// A program of this workspace, built with the same profile as the running test.
///
/// # Panics
///
/// When it is not there, saying what to build.
#[must_use]
pub fn program(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("a test knows where it is");
    // target/PROFILE/deps/test-0123456789abcdef
    let profile = own
        .ancestors()
        .nth(2)
        .expect("a test lies in target/PROFILE/deps");
    let program = profile.join(name);
    let package = match name {
        "receptord" | "receptorctl" => name.to_owned(),
        "libreceptor_power.so" => "receptor-power".to_owned(),
        other => format!("receptor-plugin-{other}"),
    };
    assert!(
        program.exists(),
        "{} is not there: run cargo build -p {package} first, with the profile of the test",
        program.display()
    );
    program
}

/// Waits until `condition` gives something.
///
/// # Panics
///
/// When that takes longer than [`DEADLINE`]; `what` says what was waited for.
pub fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(Instant::now() < end, "waited in vain for {what}");
        std::thread::sleep(LOOK_EVERY);
    }
}

/// A directory for the daemons of one test; removed at its end.
#[derive(Debug)]
pub struct Mesh {
    dir: TempDir,
}

impl Default for Mesh {
    fn default() -> Self {
        Self::new()
    }
}

impl Mesh {
    /// An empty one.
    ///
    /// # Panics
    ///
    /// When there is no room for temporary files.
    #[must_use]
    pub fn new() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("receptor-test-")
            .tempdir()
            .expect("a temporary directory");
        Self { dir }
    }

    /// Where everything of this test lies.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A node that can be started. It serves a control socket and listens on a free port of
    /// loopback.
    #[must_use]
    pub fn node(&self, name: &str) -> Node {
        Node {
            name: name.to_owned(),
            home: self.dir.path().join(name),
            listen: Some("rnp://127.0.0.1:0".to_owned()),
            peers: Vec::new(),
            arguments: Vec::new(),
            environment: Vec::new(),
            config: String::new(),
            wrapper: Vec::new(),
            program: None,
        }
    }
}

/// A node that is to be started.
#[derive(Debug, Clone)]
pub struct Node {
    name: String,
    home: PathBuf,
    listen: Option<String>,
    peers: Vec<String>,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    config: String,
    wrapper: Vec<String>,
    program: Option<PathBuf>,
}

impl Node {
    /// Runs this program in place of the workspace's receptord.
    #[must_use]
    pub fn program(mut self, program: &Path) -> Self {
        self.program = Some(program.to_owned());
        self
    }

    /// Runs in this network namespace.
    #[must_use]
    pub fn netns(mut self, name: &str) -> Self {
        self.wrapper = ["ip", "netns", "exec", name].map(str::to_owned).to_vec();
        self
    }

    /// Has its data directory on this volume.
    #[must_use]
    pub fn volume(mut self, volume: &volume::Volume) -> Self {
        self.wrapper = volume.enter();
        self
    }

    /// Is started by this service manager, which keeps descriptors for it and has units for its plugins.
    #[must_use]
    pub fn managed(mut self, manager: &manager::Manager) -> Self {
        self.wrapper = manager.launch();
        self
    }

    /// Where its data are.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.home.join("data")
    }

    /// Dials this daemon.
    #[must_use]
    pub fn peer(self, daemon: &Daemon) -> Self {
        let url = daemon.url();
        self.peer_url(&url)
    }

    /// Dials this URL.
    #[must_use]
    pub fn peer_url(mut self, url: &str) -> Self {
        self.peers.push(url.to_owned());
        self
    }

    /// Listens at this URL in place of a free port.
    #[must_use]
    pub fn listen(mut self, url: &str) -> Self {
        self.listen = Some(url.to_owned());
        self
    }

    /// Listens nowhere.
    #[must_use]
    pub fn quiet(mut self) -> Self {
        self.listen = None;
        self
    }

    /// One more argument.
    #[must_use]
    pub fn arg(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// One more environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// More lines of TOML for its configuration.
    #[must_use]
    pub fn config(mut self, toml: &str) -> Self {
        self.config.push_str(toml);
        self.config.push('\n');
        self
    }

    /// The configuration file, for tests that change it and reload.
    #[must_use]
    pub fn config_path(&self) -> PathBuf {
        self.home.join("receptord.toml")
    }

    /// Starts it and waits until it says that it is ready.
    ///
    /// # Panics
    ///
    /// When it ends or is not ready in time; with its log.
    #[must_use]
    pub fn start(self) -> Daemon {
        fs::create_dir_all(&self.home).expect("a directory for the node");
        fs::write(self.config_path(), &self.config).expect("a configuration file");
        let mut daemon = Daemon {
            control: self.home.join("control"),
            log: self.home.join("log"),
            child: None,
            node: self,
        };
        daemon.launch();
        daemon
    }
}

/// A running daemon; killed when dropped.
#[derive(Debug)]
pub struct Daemon {
    node: Node,
    control: PathBuf,
    log: PathBuf,
    child: Option<Child>,
}

impl Daemon {
    /// Starts again what has ended, with the same directory and the same address.
    pub fn restart(&mut self) {
        assert!(self.child.is_none(), "{} still runs", self.node.name);
        self.launch();
    }

    /// Runs this program from its next start on.
    pub fn becomes(&mut self, program: &Path) {
        self.node.program = Some(program.to_owned());
    }

    fn launch(&mut self) {
        let notify_path = self.node.home.join("notify");
        let _ = fs::remove_file(&notify_path);
        let notify = UnixDatagram::bind(&notify_path).expect("a notify socket");
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .expect("a log file");
        let own = || program("receptord");
        let program = self.node.program.clone().unwrap_or_else(own);
        let mut command = match self.node.wrapper.split_first() {
            None => Command::new(program),
            Some((wrapper, arguments)) => {
                // It becomes the daemon: the process id stays.
                let mut command = Command::new(wrapper);
                command.args(arguments).arg(program);
                command
            }
        };
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("NOTIFY_SOCKET", &notify_path)
            .args(["--node-id", &self.node.name, "--config"])
            .arg(self.node.config_path())
            .arg("-d")
            .arg(self.node.home.join("data"))
            .arg("--socket-path")
            .arg(&self.control)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        for (name, value) in &self.node.environment {
            command.env(name, value);
        }
        if let Some(url) = &self.node.listen {
            command.args(["--listen", url]);
        }
        for url in &self.node.peers {
            command.args(["--peer", url]);
        }
        command.args(&self.node.arguments);
        self.child = Some(command.spawn().expect("the daemon starts"));

        notify
            .set_nonblocking(true)
            .expect("a socket of this process");
        wait_for("READY=1", || {
            let ended = self.child.as_mut().and_then(|child| child.try_wait().ok()?);
            assert!(
                ended.is_none(),
                "{} ended: {ended:?}\n{}",
                self.node.name,
                self.log()
            );
            let mut buffer = [0; 4096];
            let length = notify.recv(&mut buffer).ok()?;
            buffer[..length].starts_with(b"READY=1").then_some(())
        });
        let chosen = self
            .node
            .listen
            .as_ref()
            .is_some_and(|url| url.ends_with(":0") || url.contains(":0/"));
        if chosen {
            let status = self.control().json("status");
            let url = status["receptor"]["listeners"][0].as_str();
            self.node.listen = Some(url.expect("it listens").to_owned());
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.node.name
    }

    /// Its process.
    ///
    /// # Panics
    ///
    /// When it does not run.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// Where it listens.
    ///
    /// # Panics
    ///
    /// When it listens nowhere.
    #[must_use]
    pub fn url(&self) -> String {
        self.node.listen.clone().expect("it listens")
    }

    /// The address behind [`Self::url`].
    #[must_use]
    pub fn address(&self) -> String {
        let url = self.url();
        let address = url.split_once("://").map_or(&*url, |(_, address)| address);
        let address = address
            .split_once('/')
            .map_or(address, |(address, _)| address);
        address.to_owned()
    }

    /// The path of its control socket.
    #[must_use]
    pub fn socket_path(&self) -> &Path {
        &self.control
    }

    /// Its data directory.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.node.home.join("data")
    }

    /// Its configuration file.
    #[must_use]
    pub fn config_path(&self) -> PathBuf {
        self.node.config_path()
    }

    /// What it has logged so far, over all its starts.
    #[must_use]
    pub fn log(&self) -> String {
        let mut text = String::new();
        if let Ok(mut file) = File::open(&self.log) {
            // Half a line at the end is no reason to fail.
            let mut bytes = Vec::new();
            let _ = file.read_to_end(&mut bytes);
            let _ = write!(text, "{}", String::from_utf8_lossy(&bytes));
        }
        text
    }

    /// Waits until its log holds `text`.
    pub fn wait_log(&self, text: &str) {
        wait_for(&format!("{text:?} in the log of {}", self.name()), || {
            self.log().contains(text).then_some(())
        });
    }

    /// A new client.
    ///
    /// # Panics
    ///
    /// When it is not served.
    #[must_use]
    pub fn control(&self) -> Control {
        Control::connect(&self.control)
            .unwrap_or_else(|error| panic!("{}: {error}\n{}", self.name(), self.log()))
    }

    /// What `receptorctl` says at this node.
    ///
    /// # Panics
    ///
    /// When there is no such program.
    #[must_use]
    pub fn ctl(&self, arguments: &[&str]) -> Output {
        Command::new(program("receptorctl"))
            .arg("--socket-path")
            .arg(self.socket_path())
            .args(arguments)
            .env_remove("RECEPTOR_SOCKET")
            .output()
            .expect("receptorctl runs")
    }

    /// Waits until it has a route to each of `nodes`.
    pub fn wait_reachable<'a>(&self, nodes: impl IntoNodes<'a>) {
        for node in nodes.into_nodes() {
            let what = format!("a route from {} to {node}", self.name());
            wait_for(&what, || self.is_reachable(node).then_some(()));
        }
    }

    /// Waits until `node` answers its ping: until the nodes on the way, there and back, know
    /// what the ends know already.
    pub fn wait_ping(&self, node: &str) {
        let mut control = self.control();
        wait_for(&format!("a ping from {} to {node}", self.name()), || {
            // An answer that is lost while routes settle must not cost the patience for it.
            let ping = json!({"command": "ping", "target": node, "timeout_ms": PING_TIMEOUT_MS});
            let pong = control.json(&ping.to_string());
            (pong["Success"] == true).then_some(())
        });
    }

    /// Waits until it has no route to `node`.
    pub fn wait_unreachable(&self, node: &str) {
        let what = format!("the end of the route from {} to {node}", self.name());
        wait_for(&what, || (!self.is_reachable(node)).then_some(()));
    }

    fn is_reachable(&self, node: &str) -> bool {
        let routes = self.control().json("routes");
        let routes = routes["routes"].as_array().cloned().unwrap_or_default();
        routes.iter().any(|route| route["destination"] == node)
    }

    /// Sends it a signal.
    ///
    /// # Panics
    ///
    /// When it does not run.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid()).expect("a process id");
        kill(Pid::from_raw(pid), signal).expect("it runs");
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        let _ = self.wait();
    }

    /// SIGTERM, and the end.
    ///
    /// # Panics
    ///
    /// When it does not end, or not with 0.
    pub fn stop(&mut self) {
        self.signal(Signal::SIGTERM);
        let status = self.wait();
        assert_eq!(status.code(), Some(0), "{}: {}", self.name(), self.log());
    }

    /// Waits for its end.
    ///
    /// # Panics
    ///
    /// When it does not end in time.
    pub fn wait(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("it runs");
        let ended = wait_for("the end of the daemon", || child.try_wait().ok()?);
        let _ = fs::remove_file(self.node.home.join("notify"));
        ended
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            let text = format!("--- log of {} ---\n{}\n", self.node.name, self.log());
            let _ = io::stderr().write_all(text.as_bytes());
        }
    }
}

/// One node or several, for [`Daemon::wait_reachable`].
pub trait IntoNodes<'a> {
    /// Their ids.
    fn into_nodes(self) -> Vec<&'a str>;
}

impl<'a> IntoNodes<'a> for &'a str {
    fn into_nodes(self) -> Vec<&'a str> {
        vec![self]
    }
}

impl<'a, const N: usize> IntoNodes<'a> for [&'a str; N] {
    fn into_nodes(self) -> Vec<&'a str> {
        self.to_vec()
    }
}
