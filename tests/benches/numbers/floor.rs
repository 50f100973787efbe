//! What this machine can do at all: the floors that the numbers are held against, measured in the
//! same run by this same program (`numbers floor …`), so that a bench needs nothing else.
//!
//! - *Chain*: a client, three relays and a server in five processes, Unix sockets at the ends and TCP
//!   between the relays, as three nodes with a client and a plugin have them. A relay reads a header, looks
//!   the destination up, lowers the hop count and passes on everything that one read brought in one
//!   write. No acknowledgements, no routing, no fairness, no payload parsed. With the word `tls` at the end, the
//!   relays speak TLS 1.3 with each other.
//! - *Disk*: records of 1 KiB appended to one file, one `fdatasync` for all that are waiting.
//! - *Pipe*, *one-shot*: a line of JSON to a child and one back; the same with a child for each.
//!
//! Knows nothing of Receptor, and must not become slower than it has to be: that would flatter it.

use std::collections::HashMap;
use std::fs::File;
use std::future::Future;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes, BytesMut};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use serde_json::{Value, json};
use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _,
};
use tokio::sync::mpsc::{Receiver, Sender};
use tokio::task::JoinSet;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use super::percentile;

/// Length, kind, hops left, two bytes of nothing, destination, source.
const HEADER: usize = 24;
const HOPS: u8 = 30;
const SERVER: u64 = 1;
const CLIENT: u64 = 0;
const RELAYS: usize = 3;
const BUFFER: usize = 256 << 10;
/// What a client that sends and sends writes at once.
const BURST: usize = 128 << 10;
/// Room for a read of a relay.
const READ: usize = 64 << 10;
/// Frames that wait for a relay's writer.
const QUEUE: usize = 512;
/// Frames above this are written as they are, others are gathered up to there.
const LARGE: usize = 16 << 10;
const GATHERED: usize = 96 << 10;
const RECORD: usize = 1024;

/// Runs what the words after `floor` name and prints its figures as JSON, or is one of its processes.
pub(super) fn main(words: &[String]) {
    let mut words: Vec<&str> = words.iter().map(String::as_str).collect();
    let tls = words.last() == Some(&"tls");
    if tls {
        words.pop();
    }
    let number = |at: usize| words[at].parse::<usize>().expect("a number");
    let figures = match words[0] {
        "rtt" => run(round_trips(number(1), number(2), tls)),
        "in-flight" => run(in_flight(number(1), number(2), number(3), tls)),
        "bulk" => run(bulk(number(1), number(2), tls)),
        "disk" => disk(number(1), Path::new(words[2])),
        "pipe" => run(pipe(number(1))),
        "one-shot" => run(one_shot(number(1))),
        "relay" => return run(relay(words[1], words[2])),
        "server" => return run(server(words[1], number(2))),
        "child" => return child(),
        other => panic!("there is no floor {other}"),
    };
    let mut out = io::stdout();
    writeln!(out, "{figures}").expect("whoever asked reads");
}

/// Processes with more than one thing to wait for are written plainly: tasks on tokio's threads.
fn run<T>(what: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(what)
}

fn latencies(mut micros: Vec<f64>) -> Value {
    json!({ "p50_us": percentile(&mut micros, 0.5), "p99_us": percentile(&mut micros, 0.99) })
}

fn per_second(count: usize, since: Instant) -> f64 {
    count as f64 / since.elapsed().as_secs_f64()
}

fn this_program() -> Command {
    let mut command = Command::new(std::env::current_exe().expect("its own name"));
    command.arg("floor");
    command
}

/// A connection of either sort.
enum Wire {
    Tcp(TcpStream),
    Unix(UnixStream),
    /// With the directory of its certificate, and whether this end accepted it.
    Tls(TcpStream, PathBuf, bool),
}

/// `tls:DIRECTORY:ADDRESS` taken apart.
fn tls_address(address: &str) -> Option<(PathBuf, &str)> {
    let (dir, address) = address.strip_prefix("tls:")?.split_once(':')?;
    Some((dir.into(), address))
}

/// One certificate for all relays, in `dir`.
fn make_certificate(dir: &Path) {
    let params = rcgen::CertificateParams::new(vec!["relay".to_owned()]).expect("a name");
    let key = rcgen::KeyPair::generate().expect("a key");
    let certificate = params.self_signed(&key).expect("a certificate");
    std::fs::write(dir.join("certificate"), certificate.der()).expect("a file");
    std::fs::write(dir.join("key"), key.serialize_der()).expect("a file");
}

fn certificate(dir: &Path) -> CertificateDer<'static> {
    std::fs::read(dir.join("certificate"))
        .expect("it was made")
        .into()
}

fn server_config(dir: &Path) -> Arc<ServerConfig> {
    let key = std::fs::read(dir.join("key")).expect("it was made");
    let key = PrivateKeyDer::Pkcs8(key.into());
    let config = ServerConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
        .with_no_client_auth()
        .with_single_cert(vec![certificate(dir)], key);
    Arc::new(config.expect("a certificate and its key"))
}

fn client_config(dir: &Path) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(certificate(dir)).expect("a certificate");
    let config = ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config)
}

impl Wire {
    fn dial(address: &str) -> Self {
        if let Some((dir, address)) = tls_address(address) {
            let stream = TcpStream::connect(address).expect("it listens");
            return Self::Tls(stream, dir, false).quick();
        }
        match address.strip_prefix("unix:") {
            Some(path) => Self::Unix(UnixStream::connect(path).expect("it listens")),
            None => Self::Tcp(TcpStream::connect(address).expect("it listens")).quick(),
        }
    }

    /// Listens, says where on stdout, and takes one connection.
    fn accept(address: &str) -> Self {
        let say = |address: &str| {
            let mut out = io::stdout();
            writeln!(out, "{address}").expect("the parent reads");
        };
        if let Some(path) = address.strip_prefix("unix:") {
            let listener = UnixListener::bind(path).expect("a free name");
            say(address);
            return Self::Unix(listener.accept().expect("a client").0);
        }
        if let Some((dir, address)) = tls_address(address) {
            let listener = TcpListener::bind(address).expect("a free port");
            let address = listener.local_addr().expect("bound");
            say(&format!("tls:{}:{address}", dir.display()));
            let stream = listener.accept().expect("a client").0;
            return Self::Tls(stream, dir, true).quick();
        }
        let listener = TcpListener::bind(address).expect("a free port");
        say(&listener.local_addr().expect("bound").to_string());
        Self::Tcp(listener.accept().expect("a client").0).quick()
    }

    fn quick(self) -> Self {
        if let Self::Tcp(stream) | Self::Tls(stream, ..) = &self {
            stream.set_nodelay(true).expect("a socket");
        }
        self
    }

    fn set_nonblocking(&self) {
        let set = match self {
            Self::Tcp(stream) | Self::Tls(stream, ..) => stream.set_nonblocking(true),
            Self::Unix(stream) => stream.set_nonblocking(true),
        };
        set.expect("a socket");
    }
}

fn put_frame(out: &mut Vec<u8>, to: u64, from: u64, body: &[u8]) {
    let length = u32::try_from(HEADER + body.len()).expect("small");
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(&[1, HOPS, 0, 0]);
    out.extend_from_slice(&to.to_le_bytes());
    out.extend_from_slice(&from.to_le_bytes());
    out.extend_from_slice(body);
}

/// The length of the frame that the buffer begins with, if all of it is there.
fn whole_frame(buffer: &[u8]) -> Option<usize> {
    let length = u32::from_le_bytes(*buffer.first_chunk()?) as usize;
    (buffer.len() >= length).then_some(length)
}

type ReadHalf = Pin<Box<dyn AsyncRead + Send>>;
type WriteHalf = Pin<Box<dyn AsyncWrite + Send>>;

/// Both directions of a connection, for tasks.
async fn halves(wire: Wire) -> (ReadHalf, WriteHalf) {
    wire.set_nonblocking();
    match wire {
        Wire::Tcp(stream) => {
            let stream = tokio::net::TcpStream::from_std(stream).expect("a socket");
            let (read, write) = stream.into_split();
            (Box::pin(read), Box::pin(write))
        }
        Wire::Tls(stream, dir, accepted) => {
            let stream = tokio::net::TcpStream::from_std(stream).expect("a socket");
            // rustls alone would ask the system for 4 KiB at a time.
            let stream = tokio::io::BufReader::with_capacity(READ, stream);
            let stream = if accepted {
                let acceptor = TlsAcceptor::from(server_config(&dir));
                TlsStream::from(acceptor.accept(stream).await.expect("a handshake"))
            } else {
                let connector = TlsConnector::from(client_config(&dir));
                let name = "relay".try_into().expect("a name");
                TlsStream::from(connector.connect(name, stream).await.expect("a handshake"))
            };
            let (read, write) = tokio::io::split(stream);
            (Box::pin(read), Box::pin(write))
        }
        Wire::Unix(stream) => {
            let stream = tokio::net::UnixStream::from_std(stream).expect("a socket");
            let (read, write) = stream.into_split();
            (Box::pin(read), Box::pin(write))
        }
    }
}

/// Reads once. False: there is nothing more.
async fn read_more(from: &mut ReadHalf, buffer: &mut BytesMut) -> bool {
    if buffer.capacity() - buffer.len() < READ {
        buffer.reserve(BUFFER);
    }
    matches!(from.read_buf(buffer).await, Ok(count) if count > 0)
}

/// Takes frames apart and gives each to the writer of its destination.
async fn take_in(mut from: ReadHalf, table: Arc<HashMap<u64, Sender<Bytes>>>) {
    let mut buffer = BytesMut::with_capacity(BUFFER);
    loop {
        while let Some(length) = whole_frame(&buffer) {
            let mut frame = buffer.split_to(length);
            if frame[5] == 0 {
                continue;
            }
            frame[5] -= 1;
            let destination = u64::from_le_bytes(*frame[8..].first_chunk().expect("a header"));
            if let Some(writer) = table.get(&destination)
                && writer.send(frame.freeze()).await.is_err()
            {
                return;
            }
        }
        if !read_more(&mut from, &mut buffer).await {
            return;
        }
    }
}

/// Writes what has come up since the last write as one, but large frames as they are.
async fn give_out(mut to: WriteHalf, mut frames: Receiver<Bytes>) {
    let mut taken = Vec::with_capacity(QUEUE);
    let mut bytes = BytesMut::with_capacity(BURST);
    while frames.recv_many(&mut taken, QUEUE).await > 0 {
        for frame in taken.drain(..) {
            let is_large = frame.len() > LARGE;
            if !is_large {
                bytes.extend_from_slice(&frame);
            }
            if (is_large || bytes.len() > GATHERED) && to.write_all(&bytes).await.is_err() {
                return;
            }
            if is_large || bytes.len() > GATHERED {
                bytes.clear();
            }
            if is_large && to.write_all(&frame).await.is_err() {
                return;
            }
        }
        // What is encrypted may not be written yet.
        if to.write_all(&bytes).await.is_err() || to.flush().await.is_err() {
            return;
        }
        bytes.clear();
    }
}

async fn relay(listen: &str, next: &str) {
    let (before_in, before_out) = halves(Wire::accept(listen)).await;
    let (behind_in, behind_out) = halves(Wire::dial(next)).await;
    let (to_client, for_client) = tokio::sync::mpsc::channel(QUEUE);
    let (to_server, for_server) = tokio::sync::mpsc::channel(QUEUE);
    let table = Arc::new(HashMap::from([(CLIENT, to_client), (SERVER, to_server)]));
    let mut tasks = JoinSet::new();
    tasks.spawn(give_out(before_out, for_client));
    tasks.spawn(give_out(behind_out, for_server));
    tasks.spawn(take_in(before_in, Arc::clone(&table)));
    tasks.spawn(take_in(behind_in, table));
    // Whoever ends first ends the chain.
    tasks.join_next().await;
}

/// Sends every frame back; or, when it is told how many come, counts them and says so at the end.
async fn server(listen: &str, count: usize) {
    let (mut from, mut to) = halves(Wire::accept(listen)).await;
    let mut buffer = BytesMut::with_capacity(BUFFER);
    let mut out = Vec::new();
    let mut got = 0;
    while read_more(&mut from, &mut buffer).await {
        while let Some(length) = whole_frame(&buffer) {
            let frame = buffer.split_to(length);
            got += 1;
            if count == 0 {
                put_frame(&mut out, CLIENT, SERVER, &frame[HEADER..]);
            } else if got == count {
                put_frame(&mut out, CLIENT, SERVER, &[]);
            }
        }
        if to.write_all(&out).await.is_err() {
            return;
        }
        out.clear();
    }
}

/// A running chain; ends with it.
struct Chain {
    children: Vec<Child>,
    from: ReadHalf,
    to: WriteHalf,
    _dir: tempfile::TempDir,
}

impl Drop for Chain {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Chain {
    async fn start(count: usize, tls: bool) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let unix = |name: &str| format!("unix:{}", dir.path().join(name).display());
        if tls {
            make_certificate(dir.path());
        }
        let mut children = Vec::new();
        let mut start = |words: &[&str]| {
            let mut child = this_program()
                .args(words)
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .spawn()
                .expect("it starts");
            let mut address = String::new();
            let out = child.stdout.take().expect("a pipe");
            BufReader::new(out)
                .read_line(&mut address)
                .expect("an address");
            children.push(child);
            address.trim().to_owned()
        };
        let mut next = start(&["server", &unix("server"), &count.to_string()]);
        for at in (0..RELAYS).rev() {
            let listen = match (at, tls) {
                (0, _) => unix("client"),
                (_, false) => "127.0.0.1:0".to_owned(),
                (_, true) => format!("tls:{}:127.0.0.1:0", dir.path().display()),
            };
            next = start(&["relay", &listen, &next]);
        }
        let (from, to) = halves(Wire::dial(&next)).await;
        Self {
            children,
            from,
            to,
            _dir: dir,
        }
    }
}

impl Chain {
    async fn send(&mut self, bytes: &[u8]) {
        self.to.write_all(bytes).await.expect("the relay reads");
    }
}

fn frame_of(size: usize) -> Vec<u8> {
    let mut frame = Vec::new();
    put_frame(&mut frame, SERVER, CLIENT, &vec![b'x'; size]);
    frame
}

async fn round_trips(size: usize, count: usize, tls: bool) -> Value {
    let mut chain = Chain::start(0, tls).await;
    let frame = frame_of(size);
    let mut answer = vec![0; frame.len()];
    let warm = count / 10;
    let mut times = Vec::with_capacity(count);
    for at in 0..count + warm {
        let start = Instant::now();
        chain.send(&frame).await;
        let read = chain.from.read_exact(&mut answer).await;
        read.expect("an answer");
        if at >= warm {
            times.push(start.elapsed().as_secs_f64() * 1e6);
        }
    }
    latencies(times)
}

async fn in_flight(size: usize, most: usize, count: usize, tls: bool) -> Value {
    let mut chain = Chain::start(0, tls).await;
    let frame = frame_of(size);
    let mut buffer = BytesMut::with_capacity(BUFFER);
    let mut out = Vec::new();
    let (mut sent, mut got) = (0, 0);
    let start = Instant::now();
    while got < count {
        while sent < count && sent - got < most {
            out.extend_from_slice(&frame);
            sent += 1;
        }
        chain.send(&out).await;
        out.clear();
        let more = read_more(&mut chain.from, &mut buffer).await;
        assert!(more, "the chain ended");
        while let Some(length) = whole_frame(&buffer) {
            buffer.advance(length);
            got += 1;
        }
    }
    json!({ "per_s": per_second(count, start) })
}

async fn bulk(size: usize, count: usize, tls: bool) -> Value {
    let mut chain = Chain::start(count, tls).await;
    let frame = frame_of(size);
    let burst = (BURST / frame.len()).max(1);
    let bytes = frame.repeat(burst);
    let start = Instant::now();
    let mut sent = 0;
    while sent < count {
        let now = burst.min(count - sent);
        chain.send(&bytes[..now * frame.len()]).await;
        sent += now;
    }
    let mut word = [0; HEADER];
    let read = chain.from.read_exact(&mut word).await;
    read.expect("a word that all are there");
    json!({ "per_s": per_second(count, start) })
}

/// So many writers, each of which waits for its record before it writes the next.
fn disk(writers: usize, dir: &Path) -> Value {
    const SPAN: Duration = Duration::from_secs(2);
    let path: PathBuf = dir.join("floor.log");
    let mut file = File::create(&path).expect("a file");
    let (send, receive) = mpsc::sync_channel::<(Vec<u8>, Instant)>(writers);
    let (done, written) = mpsc::sync_channel::<Vec<Instant>>(writers);
    let committer = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        while let Ok(first) = receive.recv() {
            let mut since = Vec::new();
            let mut next = Some(first);
            while let Some((record, began)) = next {
                bytes.extend_from_slice(&record);
                since.push(began);
                next = receive.try_recv().ok();
            }
            file.write_all(&bytes).expect("room on the disk");
            file.sync_data().expect("a disk that works");
            bytes.clear();
            if done.send(since).is_err() {
                return;
            }
        }
    });
    let start = Instant::now();
    let (mut records, mut times) = (0, Vec::new());
    let write = |count: usize| {
        for _ in 0..count {
            let record = (vec![b'x'; RECORD], Instant::now());
            send.send(record).expect("the committer takes it");
        }
    };
    write(writers);
    while start.elapsed() < SPAN {
        let since = written.recv().expect("the committer works");
        records += since.len();
        times.extend(since.iter().map(|at| at.elapsed().as_secs_f64() * 1e6));
        write(since.len());
    }
    let rate = per_second(records, start);
    drop(written);
    drop(send);
    committer.join().expect("it ends");
    std::fs::remove_file(path).expect("its own file");
    let mut figures = latencies(times);
    figures["per_s"] = rate.into();
    figures
}

/// Answers each line with one.
fn child() {
    let (mut input, mut out) = (io::stdin().lock(), io::stdout().lock());
    let mut line = String::new();
    while input.read_line(&mut line).is_ok_and(|count| count > 0) {
        let value: Value = serde_json::from_str(&line).expect("JSON");
        let answer = json!({ "id": value["id"], "ok": true, "body": value["body"] });
        writeln!(out, "{answer}").expect("the parent reads");
        out.flush().expect("the parent reads");
        line.clear();
    }
}

/// A child, and its pipes.
struct Talk {
    child: tokio::process::Child,
    input: tokio::process::ChildStdin,
    out: tokio::io::BufReader<tokio::process::ChildStdout>,
    answer: String,
}

impl Talk {
    fn start() -> Self {
        let mut child = tokio::process::Command::from(this_program())
            .arg("child")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let input = child.stdin.take().expect("a pipe");
        let out = child.stdout.take().expect("a pipe");
        Self {
            child,
            input,
            out: tokio::io::BufReader::new(out),
            answer: String::new(),
        }
    }

    async fn ask(&mut self, id: usize) {
        let line = format!("{}\n", json!({ "id": id, "body": "x".repeat(100) }));
        let written = self.input.write_all(line.as_bytes()).await;
        written.expect("it reads");
        self.answer.clear();
        let read = self.out.read_line(&mut self.answer).await;
        read.expect("an answer");
        let value: Value = serde_json::from_str(&self.answer).expect("JSON");
        assert_eq!(value["id"], id);
    }

    async fn end(mut self) {
        drop(self.input);
        self.child.wait().await.expect("it ends");
    }
}

async fn pipe(count: usize) -> Value {
    let mut talk = Talk::start();
    let mut times = Vec::with_capacity(count);
    for id in 0..count + 100 {
        let start = Instant::now();
        talk.ask(id).await;
        if id >= 100 {
            times.push(start.elapsed().as_secs_f64() * 1e6);
        }
    }
    talk.end().await;
    latencies(times)
}

async fn one_shot(count: usize) -> Value {
    let mut times = Vec::with_capacity(count);
    for id in 0..count {
        let start = Instant::now();
        let mut talk = Talk::start();
        talk.ask(id).await;
        talk.end().await;
        times.push(start.elapsed().as_secs_f64() * 1e6);
    }
    latencies(times)
}
