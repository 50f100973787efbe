//! The numbers that Receptor is judged by, each beside its floor of the same run.
//!
//! `make bench` builds the release programs and runs this. A floor is what a bare chain of five processes,
//! a bare file, a bare pipe or a bare spawn does on this machine in the same minute ([`floor`]). Ours and the
//! floor alternate; medians are shown with minimum and maximum.
//!
//! `cargo bench -p receptor-tests -- N1 N4` runs only some. `RECEPTOR_BENCH_ROUNDS` (5) says how often.
//! `RECEPTOR_BENCH_PIN=1` puts both sides on one core (number 1) in the real-time class, which repeats best on a busy
//! machine and starves everybody else meanwhile; figures of disks and processes want two (`RECEPTOR_BENCH_PIN=0,1`).
//!
//! Nothing here passes or fails: a machine with neighbors is no judge.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a table for people"
)]

mod durable;
mod floor;
mod kills;
mod large;
mod secure;

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// The cores that everything is put on, in the real-time class.
const PIN: &str = "RECEPTOR_BENCH_PIN";
/// How long anything may take before the run is given up.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.first().is_some_and(|word| word == "floor") {
        return floor::main(&words[1..]);
    }
    if let Some(cores) = std::env::var_os(PIN) {
        let error = Command::new("chrt")
            .args(["-r", "1", "taskset", "-c"])
            .arg(cores)
            .arg(std::env::current_exe().expect("its own name"))
            .args(words)
            .env_remove(PIN)
            .exec();
        panic!("chrt, which needs root: {error}");
    }
    let mut wanted = words;
    wanted.retain(|word| !word.starts_with('-'));
    let bench = Bench::new();
    let all: [(&str, Measure); 36] = [
        ("N1", n1_request_reply),
        ("N1-p99", n1_tail),
        ("N1-seal", |b| {
            secure::sealed_over_tls(b, "<= 1.25x", n1_request_reply)
        }),
        ("N2", secure::n2_request_reply),
        ("N3", n3_requests_in_flight),
        ("N4-128", |b| n4_one_way(b, 128)),
        ("N4-1024", |b| n4_one_way(b, 1024)),
        ("N4-128-seal", |b| {
            secure::sealed_over_tls(b, ">= 0.80x", |b| n4_one_way(b, 128))
        }),
        ("N4-1024-seal", |b| {
            secure::sealed_over_tls(b, ">= 0.80x", |b| n4_one_way(b, 1024))
        }),
        ("N5-64k", large::n5_messages),
        ("N5-1G", large::n5_payload),
        ("N6-128", |b| secure::n6(b, |b| n4_one_way(b, 128))),
        ("N6-1024", |b| secure::n6(b, |b| n4_one_way(b, 1024))),
        ("N6-64k", |b| secure::n6(b, large::n5_messages)),
        ("N6-1G", |b| secure::n6(b, large::n5_payload)),
        ("N7", durable::n7_accept),
        ("N8", durable::n8_end_to_end),
        ("N8-seal", |b| {
            secure::sealed_over_tls(b, ">= 0.80x", durable::n8_end_to_end)
        }),
        ("N9", durable::n9_request_reply),
        ("N9-sum", durable::n9_over_all_floors),
        ("N10", kills::n10_kills),
        ("N11", durable::n11_outage),
        ("N12-killed", |b| durable::n12_second_path(b, false)),
        ("N12-frozen", |b| durable::n12_second_path(b, true)),
        ("N13-socket", n13_exec_to_socket),
        ("N13-mesh", n13_three_nodes_to_first_answer),
        ("N14-10k", |b| durable::n14_restart(b, 10_000)),
        ("N14-1M", |b| durable::n14_restart(b, 1_000_000)),
        ("N15-idle", n15_idle_memory),
        ("N15-1k", |b| durable::n15_backlog(b, 1 << 10)),
        ("N15-16k", |b| durable::n15_backlog(b, 16 << 10)),
        ("N15-1M", |b| durable::n15_backlog(b, 1 << 20)),
        ("N16", n16_local_dispatch),
        ("N17", n17_process_per_work),
        ("N18", n18_idle_cpu),
        ("N20", n20_ping_command),
    ];
    println!(
        "{:<12} {:<46} {:>24} {:>24} {:>8}  {:<11} {:<11}",
        "", "", "ours", "floor", "ratio", "must", "aim"
    );
    for (name, measure) in all {
        let number = name.split('-').next().unwrap_or(name);
        if !wanted.is_empty() && !wanted.iter().any(|w| w == name || w == number) {
            continue;
        }
        println!("{name:<12} {}", measure(&bench).line());
    }
}

/// Measures one number.
type Measure = fn(&Bench) -> Row;

/// One line of the table.
struct Row {
    what: &'static str,
    unit: &'static str,
    ours: Vec<f64>,
    floor: Vec<f64>,
    must: &'static str,
    aim: &'static str,
}

impl Row {
    fn line(mut self) -> String {
        let show = |values: &mut Vec<f64>| match median(values) {
            None => "-".to_owned(),
            Some(m) => {
                let (low, high) = (values[0], values[values.len() - 1]);
                format!(
                    "{} ({}-{}) {}",
                    short(m),
                    short(low),
                    short(high),
                    self.unit
                )
            }
        };
        let (ours, floor) = (show(&mut self.ours), show(&mut self.floor));
        let ratio = match (median(&mut self.ours), median(&mut self.floor)) {
            (Some(ours), Some(floor)) => format!("{:.2}x", ours / floor),
            _ => "-".to_owned(),
        };
        format!(
            "{:<46} {ours:>24} {floor:>24} {ratio:>8}  {:<11} {:<11}",
            self.what, self.must, self.aim
        )
    }
}

fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

fn percentile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let last = values.len() - 1;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an index"
    )]
    let index = (last as f64 * share).round() as usize;
    values[index]
}

fn short(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{:.2}M", v / 1e6),
        v if v >= 10_000.0 => format!("{:.0}k", v / 1e3),
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 1.0 => format!("{v:.1}"),
        v => format!("{v:.3}"),
    }
}

/// Where the programs are, and how often to measure.
#[derive(Clone)]
struct Bench {
    bin: PathBuf,
    rounds: usize,
    /// Links, and those of the floor, are encrypted.
    tls: bool,
    /// With that, nothing is signed or sealed.
    tls_alone: bool,
    /// Floors are measured too.
    floors: bool,
}

impl Bench {
    fn new() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .expect("tests/ is in the root");
        let target =
            std::env::var_os("CARGO_TARGET_DIR").map_or(root.join("target"), PathBuf::from);
        let bin = target.join("release");
        assert!(
            bin.join("receptord").exists(),
            "run `make bench`: no {}/receptord",
            bin.display()
        );
        let rounds = std::env::var("RECEPTOR_BENCH_ROUNDS")
            .ok()
            .and_then(|r| r.parse().ok());
        Self {
            bin,
            rounds: rounds.unwrap_or(5),
            tls: false,
            tls_alone: false,
            floors: true,
        }
    }

    /// Measures a floor in a process of its own, as ours is, and takes one of its figures.
    fn floor(&self, words: &[&str], figure: &str) -> Option<f64> {
        if !self.floors {
            return None;
        }
        let program = std::env::current_exe().expect("its own name");
        let output = Command::new(&program)
            .arg("floor")
            .args(words)
            .args(self.tls.then_some("tls"))
            .stderr(Stdio::inherit())
            .output()
            .expect("the floor's program runs");
        let result: Value = serde_json::from_slice(&output.stdout).expect("figures");
        result[figure].as_f64()
    }

    /// Alternates between ours and the floor.
    fn rounds(
        &self,
        mut ours: impl FnMut() -> f64,
        mut floor: impl FnMut() -> Option<f64>,
    ) -> (Vec<f64>, Vec<f64>) {
        let mut both = (Vec::new(), Vec::new());
        for _ in 0..self.rounds {
            both.0.push(ours());
            both.1.extend(floor());
        }
        both
    }
}

/// Some nodes in a row: the first serves clients, each next one dials the one before.
struct Chain {
    nodes: Vec<Child>,
    commands: Vec<Command>,
    ports: Vec<u16>,
    scheme: &'static str,
    dir: tempfile::TempDir,
}

impl Chain {
    /// Starts `count` nodes named n0, n1, … and waits until the last one answers.
    fn start(bench: &Bench, count: usize) -> Self {
        let mut chain = Self::exec(bench, count, &[]);
        chain.await_answer(count - 1);
        chain
    }

    fn exec(bench: &Bench, count: usize, plugins: &[&Path]) -> Self {
        let row: Vec<Vec<usize>> = (0..count)
            .map(|i| (0..i).last().into_iter().collect())
            .collect();
        let mut chain = Self::plan(bench, &row, plugins);
        for node in 0..count {
            chain.launch(node);
        }
        chain
    }

    /// Nodes that are not started yet, each with those that it dials.
    fn plan(bench: &Bench, peers: &[Vec<usize>], plugins: &[&Path]) -> Self {
        let count = peers.len();
        let dir = tempfile::tempdir().expect("a temporary directory");
        // Links over TCP, as hosts have them; ports as the system gives them.
        let ports: Vec<u16> = (0..count)
            .map(|_| {
                let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
                listener.local_addr().expect("bound").port()
            })
            .collect();
        let scheme = if bench.tls { "rnps" } else { "rnp" };
        if bench.tls {
            secure::certificates(bench, count, dir.path());
        }
        let commands: Vec<Command> = (0..count)
            .map(|i| {
                let mut command = Command::new(bench.bin.join("receptord"));
                command.arg(format!("--node-id=n{i}"));
                command
                    .arg("--data-dir")
                    .arg(dir.path().join(format!("n{i}")));
                command.arg(format!("--listen={scheme}://localhost:{}", ports[i]));
                if bench.tls {
                    let config = dir.path().join(format!("n{i}.toml"));
                    command.arg("--config").arg(config);
                    command.args(bench.tls_alone.then_some("--tls-alone"));
                }
                command.arg("--log-level=error");
                // What is meant for this program is none of the daemon's variables.
                command.env_remove("RECEPTOR_BENCH_ROUNDS");
                command
                    .arg("--socket-path")
                    .arg(dir.path().join(format!("n{i}.sock")));
                for plugin in plugins {
                    command.arg("--plugins-dir").arg(plugin);
                }
                for &peer in &peers[i] {
                    command.arg(format!("--peer={scheme}://localhost:{}", ports[peer]));
                }
                command
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .stderr(Stdio::inherit());
                command
            })
            .collect();
        Self {
            nodes: Vec::new(),
            commands,
            ports,
            scheme,
            dir,
        }
    }

    /// Lets a node that is not started yet dial another.
    fn peer(&mut self, from: usize, to: usize) {
        let peer = format!("--peer={}://localhost:{}", self.scheme, self.ports[to]);
        self.commands[from].arg(peer);
    }

    /// Starts a node, again if it was started before and killed. In order of their numbers at
    /// first.
    fn launch(&mut self, node: usize) {
        let child = self.commands[node].spawn().expect("receptord starts");
        if node < self.nodes.len() {
            self.nodes[node] = child;
        } else {
            self.nodes.push(child);
        }
    }

    fn kill(&mut self, node: usize) {
        self.nodes[node].kill().expect("it runs");
        self.nodes[node].wait().expect("it runs");
    }

    fn socket(&self, node: usize) -> PathBuf {
        self.dir.path().join(format!("n{node}.sock"))
    }

    fn client(&self, node: usize) -> Client {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Ok(stream) = UnixStream::connect(self.socket(node)) {
                return Client::new(stream);
            }
            assert!(Instant::now() < deadline, "n{node} opens no socket");
            std::thread::yield_now();
        }
    }

    /// Until the first node's client gets an answer from the plugin on node `to`.
    fn await_answer(&mut self, to: usize) {
        let mut client = self.client(0);
        let deadline = Instant::now() + PATIENCE;
        while client.request(to, "echo:echo", b"\"x\"").is_err() {
            assert!(Instant::now() < deadline, "n{to} does not answer");
            std::thread::yield_now();
        }
    }
}

impl Drop for Chain {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            let _ = node.kill();
            let _ = node.wait();
        }
    }
}

/// A client of a control socket.
struct Client {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
    line: String,
    out: Vec<u8>,
}

impl Client {
    fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        let writer = stream.try_clone().expect("a socket");
        let reader = BufReader::with_capacity(1 << 17, stream);
        let mut client = Self {
            reader,
            writer,
            line: String::new(),
            out: Vec::new(),
        };
        client.read().expect("a greeting");
        client
    }

    fn read(&mut self) -> Result<&str, String> {
        self.line.clear();
        match self.reader.read_line(&mut self.line) {
            Ok(0) => Err("the daemon closed the connection".to_owned()),
            Ok(_) => Ok(&self.line),
            Err(error) => Err(error.to_string()),
        }
    }

    fn push(&mut self, to: usize, directive: &str, payload: &[u8], more: &str) {
        self.push_durable(to, directive, payload, &format!(",\"volatile\":true{more}"));
    }

    fn push_durable(&mut self, to: usize, directive: &str, payload: &[u8], more: &str) {
        let mut head = String::new();
        let size = payload.len();
        write!(
            head,
            r#"{{"command":"send","directive":"{directive}","recipient":"n{to}","size":{size}{more}}}"#
        )
        .expect("writing to a string");
        self.out.extend_from_slice(head.as_bytes());
        self.out.push(b'\n');
        self.out.extend_from_slice(payload);
    }

    fn flush(&mut self) {
        self.writer.write_all(&self.out).expect("the daemon reads");
        self.out.clear();
    }

    /// Reads one reply line and skips the raw bytes it announces; whether it was the last one.
    fn reply(&mut self) -> Result<bool, String> {
        let line = self.read()?;
        let eof = line.contains("\"eof\":true");
        if eof && !line.contains("\"code\":0") && !line.contains("accepted") {
            return Err(line.to_owned());
        }
        if let Some(at) = line.find("\"size\":") {
            let digits: String = line[at + 7..]
                .chars()
                .take_while(char::is_ascii_digit)
                .collect();
            let size: u64 = digits.parse().map_err(|_| "a bad size".to_owned())?;
            std::io::copy(&mut (&mut self.reader).take(size), &mut std::io::sink())
                .map_err(|e| e.to_string())?;
        }
        Ok(eof)
    }

    /// One request, and all of its reply.
    fn request(&mut self, to: usize, directive: &str, payload: &[u8]) -> Result<(), String> {
        self.push(to, directive, payload, "");
        self.flush();
        while !self.reply()? {}
        Ok(())
    }
}

/// A JSON text of this many bytes.
fn payload(size: usize) -> Vec<u8> {
    let mut text = vec![b'x'; size];
    text[0] = b'"';
    text[size - 1] = b'"';
    text
}

const RTT_FLOOR: &[&str] = &["rtt", "128", "4000"];
const PIPE_FLOOR: &[&str] = &["pipe", "3000"];

/// Latencies of requests one after the other, in microseconds.
fn latencies(
    client: &mut Client,
    to: usize,
    directive: &str,
    size: usize,
    count: usize,
) -> Vec<f64> {
    latencies_of(client, size, count, |client, body| {
        client.request(to, directive, body).expect("an answer");
    })
}

fn latencies_of(
    client: &mut Client,
    size: usize,
    count: usize,
    mut request: impl FnMut(&mut Client, &[u8]),
) -> Vec<f64> {
    let body = payload(size);
    let mut times = Vec::with_capacity(count);
    for index in 0..count + count / 10 {
        let start = Instant::now();
        request(client, &body);
        if index >= count / 10 {
            times.push(start.elapsed().as_secs_f64() * 1e6);
        }
    }
    times
}

fn request_reply(bench: &Bench, share: f64, figure: &'static str) -> (Vec<f64>, Vec<f64>) {
    let chain = Chain::start(bench, 3);
    let mut client = chain.client(0);
    bench.rounds(
        || {
            percentile(
                &mut latencies(&mut client, 2, "echo:echo", 128, 3000),
                share,
            )
        },
        || Some(bench.floor(RTT_FLOOR, figure)? + bench.floor(PIPE_FLOOR, figure)?),
    )
}

fn n1_request_reply(bench: &Bench) -> Row {
    let (ours, floor) = request_reply(bench, 0.5, "p50_us");
    let what = "request/reply 128 B, three nodes, p50";
    Row {
        what,
        unit: "us",
        ours,
        floor,
        must: "<= 2.0x",
        aim: "<= 1.5x",
    }
}

fn n1_tail(bench: &Bench) -> Row {
    let (ours, floor) = request_reply(bench, 0.99, "p99_us");
    let what = "request/reply 128 B, three nodes, p99";
    Row {
        what,
        unit: "us",
        ours,
        floor,
        must: "<= 2.0x",
        aim: "<= 1.5x",
    }
}

fn n3_requests_in_flight(bench: &Bench) -> Row {
    const COUNT: usize = 20_000;
    const IN_FLIGHT: usize = 64;
    let chain = Chain::start(bench, 3);
    let mut client = chain.client(0);
    let body = payload(128);
    let ours = || {
        let start = Instant::now();
        let (mut sent, mut done) = (0, 0);
        while done < COUNT {
            while sent < COUNT && sent - done < IN_FLIGHT {
                client.push(2, "echo:echo", &body, &format!(",\"tag\":{sent}"));
                sent += 1;
            }
            client.flush();
            // Whatever came in one read is answered by as many new requests in one write.
            done += usize::from(client.reply().expect("an answer"));
            while !client.reader.buffer().is_empty() {
                done += usize::from(client.reply().expect("an answer"));
            }
        }
        COUNT as f64 / start.elapsed().as_secs_f64()
    };
    let words = ["in-flight", "128", "64", "100000"];
    let (ours, floor) = bench.rounds(ours, || bench.floor(&words, "per_s"));
    let what = "the same, 64 in flight";
    Row {
        what,
        unit: "req/s",
        ours,
        floor,
        must: ">= 0.20x",
        aim: ">= 0.35x",
    }
}

fn n4_one_way(bench: &Bench, size: usize) -> Row {
    const COUNT: u64 = 400_000;
    const BATCH: u64 = 256;
    let chain = Chain::start(bench, 3);
    let mut client = chain.client(0);
    let mut watcher = chain.client(0);
    let body = payload(size);
    let mut before = 0;
    let ours = || {
        let start = Instant::now();
        let mut sent = 0;
        while sent < COUNT {
            for _ in 0..BATCH.min(COUNT - sent) {
                // What a client in a hurry sends: it is told what is refused, and nothing else.
                client.push(2, "echo:discard", &body, r#","respond":false,"quiet":true"#);
                sent += 1;
            }
            client.flush();
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            let there = discarded(&mut watcher);
            if there >= before + COUNT {
                break;
            }
            assert!(
                Instant::now() < deadline,
                "lost {} of {COUNT}",
                before + COUNT - there
            );
        }
        before += COUNT;
        COUNT as f64 / start.elapsed().as_secs_f64()
    };
    let text = size.to_string();
    let words = ["bulk", &text, "200000"];
    let (ours, floor) = bench.rounds(ours, || bench.floor(&words, "per_s"));
    let what = if size == 128 {
        "one way 128 B, nothing lost"
    } else {
        "one way 1 KiB, nothing lost"
    };
    Row {
        what,
        unit: "msg/s",
        ours,
        floor,
        must: ">= 0.30x",
        aim: ">= 0.45x",
    }
}

/// How many messages the echo plugin on n2 has discarded.
fn discarded(client: &mut Client) -> u64 {
    discarded_at(client, 2)
}

fn discarded_at(client: &mut Client, node: usize) -> u64 {
    client.push(node, "echo:discarded", b"", "");
    client.flush();
    let mut count = 0;
    loop {
        let line = client.read().expect("an answer");
        let value: Value = serde_json::from_str(line).expect("a JSON line");
        if let Some(data) = value["data"].as_u64() {
            count = data;
        }
        if value["eof"] == true {
            return count;
        }
    }
}

fn n13_exec_to_socket(bench: &Bench) -> Row {
    let ours = || {
        let start = Instant::now();
        let chain = Chain::exec(bench, 1, &[]);
        let _ = chain.client(0);
        start.elapsed().as_secs_f64() * 1e3
    };
    let (ours, floor) = bench.rounds(ours, || None);
    let what = "exec to control socket open";
    Row {
        what,
        unit: "ms",
        ours,
        floor,
        must: "<= 15 ms",
        aim: "<= 8 ms",
    }
}

fn n13_three_nodes_to_first_answer(bench: &Bench) -> Row {
    let ours = || {
        let start = Instant::now();
        let mut chain = Chain::exec(bench, 3, &[]);
        chain.await_answer(2);
        start.elapsed().as_secs_f64() * 1e3
    };
    let (ours, floor) = bench.rounds(ours, || None);
    let what = "exec of three nodes to first plugin answer";
    Row {
        what,
        unit: "ms",
        ours,
        floor,
        must: "<= 100 ms",
        aim: "<= 50 ms",
    }
}

fn n15_idle_memory(bench: &Bench) -> Row {
    let chain = Chain::start(bench, 3);
    let ours = chain.nodes.iter().map(|node| rss_mib(node.id())).collect();
    let what = "RSS of each of three idle nodes";
    Row {
        what,
        unit: "MiB",
        ours,
        floor: Vec::new(),
        must: "<= 16 MiB",
        aim: "<= 10 MiB",
    }
}

fn rss_mib(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status
        .lines()
        .find(|l| l.starts_with("VmRSS:"))
        .expect("VmRSS");
    let kib: f64 = line
        .split_whitespace()
        .nth(1)
        .and_then(|n| n.parse().ok())
        .expect("a number");
    kib / 1024.0
}

fn n16_local_dispatch(bench: &Bench) -> Row {
    let chain = Chain::start(bench, 1);
    let mut client = chain.client(0);
    let (ours, floor) = bench.rounds(
        || percentile(&mut latencies(&mut client, 0, "echo:echo", 128, 3000), 0.5),
        || bench.floor(PIPE_FLOOR, "p50_us"),
    );
    let what = "resident plugin inside one node, p50";
    Row {
        what,
        unit: "us",
        ours,
        floor,
        must: "<= 3x",
        aim: "<= 2x",
    }
}

fn n17_process_per_work(bench: &Bench) -> Row {
    let dir = tempfile::tempdir().expect("a temporary directory");
    std::fs::copy(bench.bin.join("examples/once"), dir.path().join("once"))
        .expect("`make bench` builds the example plugin");
    let mut chain = Chain::exec(bench, 1, &[dir.path()]);
    chain.await_answer(0);
    let mut client = chain.client(0);
    let (ours, floor) = bench.rounds(
        || percentile(&mut latencies(&mut client, 0, "once:echo", 100, 300), 0.5),
        || bench.floor(&["one-shot", "300"], "p50_us"),
    );
    let what = "one process a work, p50";
    Row {
        what,
        unit: "us",
        ours,
        floor,
        must: "<= 1.3x",
        aim: "<= 1.15x",
    }
}

fn n18_idle_cpu(bench: &Bench) -> Row {
    const SPAN: Duration = Duration::from_secs(20);
    let chain = Chain::start(bench, 3);
    // The start's own work must be over: the plugin's idle stop and the like are part of idling.
    std::thread::sleep(Duration::from_secs(2));
    let cpu = |pid: u32| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/schedstat")).expect("it runs");
        let ns = text
            .split_whitespace()
            .next()
            .and_then(|n| n.parse::<f64>().ok());
        ns.expect("a number") / 1e9
    };
    let before: Vec<f64> = chain.nodes.iter().map(|n| cpu(n.id())).collect();
    std::thread::sleep(SPAN);
    let ours = chain.nodes.iter().zip(before);
    let ours = ours
        .map(|(n, b)| (cpu(n.id()) - b) / SPAN.as_secs_f64() * 100.0)
        .collect();
    let what = "idle CPU of each of three nodes over 20 s";
    Row {
        what,
        unit: "%",
        ours,
        floor: Vec::new(),
        must: "<= 0.10 %",
        aim: "<= 0.03 %",
    }
}

fn n20_ping_command(bench: &Bench) -> Row {
    let chain = Chain::start(bench, 3);
    let ours = || {
        let mut times: Vec<f64> = (0..20)
            .map(|_| {
                let start = Instant::now();
                let output = Command::new(bench.bin.join("receptorctl"))
                    .args(["ping", "n2", "--socket-path"])
                    .arg(chain.socket(0))
                    .output()
                    .expect("receptorctl runs");
                assert!(
                    output.status.success(),
                    "{}",
                    String::from_utf8_lossy(&output.stderr)
                );
                start.elapsed().as_secs_f64() * 1e3
            })
            .collect();
        percentile(&mut times, 0.5)
    };
    let (ours, floor) = bench.rounds(ours, || None);
    let what = "receptorctl ping, the whole command";
    Row {
        what,
        unit: "ms",
        ours,
        floor,
        must: "<= 10 ms",
        aim: "<= 5 ms",
    }
}
