//! What the plugin host costs: a work in each mode, beside what the operating system alone takes.
//!
//! `cargo bench -p receptord --bench worker`, with `-- serve` or `-- job` for one half of it. The plugin is this program itself, under other names. Beside
//! the time on the clock stands the time of the processors, of this program and all its children, which
//! other programs disturb less.

use std::io::{BufRead as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command as Program, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use nix::sys::resource::{UsageWho, getrusage};
use receptor_proto::MessageId;
use receptor_proto::packet::Content;
use receptord::worker::{Command, Host, HostConfig, Job, JobPayload, PluginDir, Report};
use tokio::sync::mpsc;
use tokio::task::LocalSet;

const PAYLOAD: &str = r#"{"module":"ping"}"#;
const ROUNDS: u32 = 10_000;
const JOB_ROUNDS: u32 = 500;

fn main() {
    if std::env::var_os("RECEPTOR_PLUGIN_PROTOCOL").is_some() {
        return plugin();
    }
    let temp = tempfile::tempdir().expect("a temporary directory");
    let dir = temp.path().canonicalize().expect("it is there");
    for name in ["bench-job", "bench-serve"] {
        let path = dir.join("plugins").join(name);
        std::fs::create_dir_all(dir.join("plugins")).expect("a directory");
        std::fs::copy("/proc/self/exe", &path).expect("a copy");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("its mode");
    }
    let word = std::env::args().skip(1).find(|word| !word.starts_with('-'));
    let wants = |half: &str| word.as_ref().is_none_or(|word| word == half);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    if wants("serve") {
        let bare = pipe_round_trip(&dir.join("plugins/bench-serve"));
        let runs = [("bench-serve:run", 1), ("bench-serve:run", 64)];
        let [single, many] = LocalSet::new().block_on(&runtime, with_host(&dir, ROUNDS, runs));
        show("pipe round trip, no host", bare, bare);
        show("work, serve mode, one after the other", single, bare);
        show("work, serve mode, 64 at once", many, bare);
    }
    if wants("job") {
        let bare = bare_spawn(&dir.join("plugins/bench-job"));
        let runs = [("bench-job:run", 1), ("bench-job:run", 4)];
        let [single, many] = LocalSet::new().block_on(&runtime, with_host(&dir, JOB_ROUNDS, runs));
        show("spawn and wait, no host", bare, bare);
        show("work, job mode, one after the other", single, bare);
        show("work, job mode, 4 at once", many, bare);
    }
}

/// What one round took.
#[derive(Clone, Copy)]
struct Cost {
    clock: Duration,
    processors: Duration,
}

/// Measures rounds.
struct Meter {
    begin: Instant,
    used: Duration,
}

impl Meter {
    fn start() -> Self {
        Self {
            begin: Instant::now(),
            used: used(),
        }
    }

    fn stop(self, rounds: u32) -> Cost {
        Cost {
            clock: self.begin.elapsed() / rounds,
            processors: (used() - self.used) / rounds,
        }
    }
}

/// Processor time of this program and of its children that have ended.
fn used() -> Duration {
    let who = [UsageWho::RUSAGE_SELF, UsageWho::RUSAGE_CHILDREN];
    let usage = who.map(|who| getrusage(who).expect("usage"));
    let times = usage.iter().flat_map(|u| [u.user_time(), u.system_time()]);
    let micros: i64 = times.map(|t| t.tv_sec() * 1_000_000 + t.tv_usec()).sum();
    Duration::from_micros(u64::try_from(micros).expect("it passes"))
}

#[expect(clippy::print_stdout, reason = "the answer")]
fn show(what: &str, cost: Cost, beside: Cost) {
    let micros = |time: Duration| time.as_secs_f64() * 1e6;
    println!(
        "{what:40} clock {:8.1} µs {:5.2}   processors {:8.1} µs {:5.2}",
        micros(cost.clock),
        micros(cost.clock) / micros(beside.clock),
        micros(cost.processors),
        micros(cost.processors) / micros(beside.processors),
    );
}

/// Answers each job with one result.
fn plugin() {
    let name = std::env::args().next().unwrap_or_default();
    let name = Path::new(&name).file_name().and_then(|name| name.to_str());
    let name = name.unwrap_or_default();
    let mode = name.strip_prefix("bench-").unwrap_or_default();
    let mut out = std::io::stdout().lock();
    let _ = writeln!(
        out,
        r#"{{"type":"hello","protocol":1,"name":"{name}","version":"1","mode":"{mode}","max_jobs":1000,"actions":{{"run":{{}}}}}}"#
    );
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let Some(id) = line.strip_prefix(r#"{"type":"execute","id":""#) else {
            continue;
        };
        let id = id.split('"').next().unwrap_or_default();
        let answer = format!(
            "{{\"type\":\"data\",\"id\":\"{id}\",\"data\":{PAYLOAD}}}\n{{\"type\":\"done\",\"id\":\"{id}\",\"code\":0}}\n"
        );
        if out.write_all(answer.as_bytes()).is_err() || out.flush().is_err() {
            return;
        }
    }
}

/// A job over the pipes of one process, with nothing in between.
fn pipe_round_trip(program: &Path) -> Cost {
    let mut child = Program::new(program)
        .env("RECEPTOR_PLUGIN_PROTOCOL", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a plugin");
    let mut stdin = child.stdin.take().expect("a pipe");
    let mut stdout = std::io::BufReader::new(child.stdout.take().expect("a pipe"));
    let mut line = String::new();
    stdout.read_line(&mut line).expect("a hello");
    let execute = format!("{{\"type\":\"execute\",\"id\":\"1\",\"payload\":{PAYLOAD}}}\n");
    let meter = Meter::start();
    for _ in 0..ROUNDS {
        stdin.write_all(execute.as_bytes()).expect("it reads");
        for _ in 0..2 {
            line.clear();
            stdout.read_line(&mut line).expect("it answers");
        }
    }
    let time = meter.stop(ROUNDS);
    drop(stdin);
    child.wait().expect("it ends");
    time
}

/// The same program, started and waited for, with the same pipes and nothing to do.
fn bare_spawn(program: &Path) -> Cost {
    let once = || {
        let mut child = Program::new(program)
            .env_clear()
            .env("RECEPTOR_PLUGIN_PROTOCOL", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("a plugin");
        drop(child.stdin.take());
        child.wait().expect("it ends");
    };
    for _ in 0..20 {
        once();
    }
    let meter = Meter::start();
    for _ in 0..JOB_ROUNDS {
        once();
    }
    meter.stop(JOB_ROUNDS)
}

async fn with_host(dir: &Path, rounds: u32, runs: [(&str, u32); 2]) -> [Cost; 2] {
    let node = "bench".parse().expect("a node id");
    let mut config = HostConfig::new(node, &dir.join("data"));
    config.dirs = vec![PluginDir::new(dir.join("plugins"))];
    config.helper = PathBuf::from(env!("CARGO_BIN_EXE_receptord"));
    config.max_works = 64;
    let (commands, receiver) = mpsc::channel(256);
    let (sender, reports) = mpsc::channel(256);
    let host = Host::new(config, receiver, sender).expect("a host");
    let admission = host.admission();
    let host = receptord::task::spawn("plugin host", host.run());
    let mut engine = Engine {
        commands,
        reports,
        number: 0,
    };
    while !matches!(engine.reports.recv().await, Some(Report::Capabilities(c)) if c.len() == 2) {}
    let mut costs = Vec::new();
    for (directive, at_once) in runs {
        engine.run(directive, &admission, 20, at_once).await;
        costs.push(engine.run(directive, &admission, rounds, at_once).await);
    }
    let grace = Duration::ZERO;
    let _ = engine.commands.send(Command::Shutdown { grace }).await;
    while engine.reports.recv().await.is_some() {}
    host.await.expect("it ends");
    costs.try_into().unwrap_or_else(|_| panic!("two of them"))
}

/// As much of an engine as is needed: every work is admitted at once.
struct Engine {
    commands: mpsc::Sender<Command>,
    reports: mpsc::Receiver<Report>,
    number: u128,
}

impl Engine {
    async fn run(
        &mut self,
        directive: &str,
        admission: &receptord::worker::Admission,
        rounds: u32,
        at_once: u32,
    ) -> Cost {
        let meter = Meter::start();
        let (mut sent, mut done) = (0, 0);
        while done < rounds {
            while sent < rounds && sent - done < at_once {
                self.number += 1;
                let work = MessageId::from_u128(self.number);
                let directive = directive.parse().expect("a directive");
                let admitted = admission.try_admit(&directive).is_some();
                let job = Job {
                    work,
                    sender: "bench".parse().expect("a node id"),
                    directive,
                    content: Content::Json,
                    payload: JobPayload::Inline(Bytes::from_static(PAYLOAD.as_bytes())),
                    attempt: 1,
                    admitted,
                    start: false,
                    outlives: false,
                };
                self.say(Command::Run(Box::new(job))).await;
                if admitted {
                    self.say(Command::Start { work }).await;
                }
                sent += 1;
            }
            match self.reports.recv().await.expect("a report") {
                Report::Started { work, .. } => self.say(Command::Start { work }).await,
                Report::Data { work, .. } => self.say(Command::Taken { work, results: 1 }).await,
                Report::Done { eof, .. } => {
                    assert_eq!(eof.code, 0, "{eof:?}");
                    done += 1;
                }
                Report::Status { .. }
                | Report::Left { .. }
                | Report::Kept { .. }
                | Report::Room
                | Report::Returned(_)
                | Report::Capabilities(_) => {}
            }
        }
        meter.stop(rounds)
    }

    async fn say(&self, command: Command) {
        self.commands.send(command).await.expect("a host");
    }
}
