//! One large payload through three nodes into a plugin, and a response of the same size back,
//! over links that are cut and through daemons that are killed on the way.
//!
//! `RECEPTOR_LARGE=10GiB` says how large; `TMPDIR` is where, and takes three times that.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use receptor_tests::relay::Relay;
use receptor_tests::traffic::peak_kib;
use receptor_tests::{Control, DEADLINE, Daemon, Mesh, Node, program, wait_for};
use serde_json::{Value, json};

/// What a daemon may take beyond what it takes when idle, in KiB.
const MEMORY_MAX: u64 = 64 << 10;
/// What a cut link or a killed daemon may cost: a window and what the system's sockets hold.
const RESENT: u64 = 8 << 20;
/// What a killed recipient may cost more: what it had not synced.
const RESENT_UNSYNCED: u64 = 40 << 20;
/// What everything but payload takes: acknowledgements, hellos, heads of packets.
const PER_GIB: u64 = 16 << 20;
/// The least that a slow machine carries, in bytes a second.
const SLOWEST: u64 = 2 << 20;

/// Gives back its payload, each byte another one, and the SHA-256 of what it was given.
const MIRROR: &str = r#"#!/bin/sh
echo '{"type":"hello","protocol":1,"name":"mirror","version":"1.0.0","actions":{"turn":{"payload":"file","output":"json"}}}'
read -r hello || exit 0
read -r job || exit 0
sum=$(sha256sum "$RECEPTOR_PAYLOAD_FILE" | cut -c 1-64)
tr '\000-\377' '\200-\377\000-\177' < "$RECEPTOR_PAYLOAD_FILE" > back
back=$(sha256sum back | cut -c 1-64)
echo '{"type":"data","id":"'"$RECEPTOR_JOB_ID"'","file":"back","name":"back","sha256":"'"$back"'"}'
echo '{"type":"data","id":"'"$RECEPTOR_JOB_ID"'","data":{"given":"'"$sum"'","back":"'"$back"'"}}'
echo '{"type":"done","id":"'"$RECEPTOR_JOB_ID"'","code":0}'
"#;

fn size() -> u64 {
    let Ok(text) = std::env::var("RECEPTOR_LARGE") else {
        return 256 << 20;
    };
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match &text[digits.len()..] {
        "GiB" => 30,
        "MiB" => 20,
        other => panic!("RECEPTOR_LARGE is a number of MiB or GiB, not {other:?}"),
    };
    digits.parse::<u64>().unwrap() << unit
}

/// A file of this size, with something else in each MiB, that takes little room on the disk.
fn source(path: &Path, size: u64) {
    let file = File::create(path).unwrap();
    file.set_len(size).unwrap();
    for at in (0..size).step_by(1 << 20) {
        let mark = format!("here begins what lies at {at}").repeat(20);
        let end = usize::try_from(size - at).unwrap_or(usize::MAX);
        file.write_all_at(&mark.as_bytes()[..mark.len().min(end)], at)
            .unwrap();
    }
}

/// So many raw bytes of a control session.
struct Raw<'a>(&'a mut Control, u64);

impl Read for Raw<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = buffer
            .len()
            .min(usize::try_from(self.1).unwrap_or(usize::MAX));
        buffer[..length].copy_from_slice(&self.0.raw(length));
        self.1 -= length as u64;
        Ok(length)
    }
}

/// The SHA-256 of what comes from there, and how much that was.
fn sum(mut from: impl Read) -> (String, u64) {
    let mut tool = Command::new("sha256sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let length = io::copy(&mut from, &mut tool.stdin.take().unwrap()).unwrap();
    let output = tool.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    (text[..64].to_owned(), length)
}

fn node(mesh: &Mesh, name: &str, size: u64) -> Node {
    // Three of them, an eighth of which is kept for responses.
    let most = 4 * size + (64 << 20);
    mesh.node(name).config(&format!(
        "[link]\nhold-time = \"1s\"\n[spool]\nmax-bytes = {most}\n\
         max-bytes-per-recipient = {most}\nresults-max-bytes = {most}\n[plugins]\nallow-unsafe = true"
    ))
}

/// a – b – c over wires, with the plugin on c.
struct Chain {
    a: Daemon,
    b: Daemon,
    c: Daemon,
    wires: [Relay; 2],
    size: u64,
}

impl Chain {
    fn start(mesh: &Mesh, size: u64) -> Self {
        let plugins = mesh.dir().join("plugins");
        fs::create_dir(&plugins).unwrap();
        let mirror = plugins.join("mirror");
        fs::write(&mirror, MIRROR).unwrap();
        fs::set_permissions(&mirror, fs::Permissions::from_mode(0o755)).unwrap();
        let a = node(mesh, "a", size).start();
        let near = Relay::to(&a.address());
        let b = node(mesh, "b", size).peer_url(&near.url()).start();
        let far = Relay::to(&b.address());
        let c = node(mesh, "c", size)
            .peer_url(&far.url())
            .arg("--plugins-dir")
            .arg(plugins.to_str().unwrap())
            .start();
        a.wait_reachable(["b", "c"]);
        wait_for("the plugin on c", || {
            let reply = a.control().json("capabilities");
            let nodes = reply["nodes"].as_array().unwrap();
            let c = nodes.iter().find(|node| node["node"] == "c")?;
            let plugins = c["plugins"].as_array().unwrap();
            let mut names = plugins.iter().map(|plugin| &plugin["plugin"]);
            names.any(|name| name == "mirror").then_some(())
        });
        let wires = [near, far];
        Self {
            a,
            b,
            c,
            wires,
            size,
        }
    }

    fn peaks(&self) -> [u64; 3] {
        [&self.a, &self.b, &self.c].map(|daemon| peak_kib(daemon.pid()))
    }

    /// Bytes that went over each wire towards c, and back.
    fn carried(&self) -> [[u64; 2]; 2] {
        let [near, far] = &self.wires;
        let ([near_up, near_down], [far_up, far_down]) =
            (near.carried().into(), far.carried().into());
        [[near_down, far_down], [near_up, far_up]]
    }

    fn patience(&self) -> Duration {
        DEADLINE + Duration::from_secs(self.size / SLOWEST)
    }

    /// Waits until a node's spool has so much of payloads, those of before left out.
    fn wait_payload(&self, daemon: &Daemon, before: &BTreeMap<OsString, u64>, bytes: u64) {
        let end = Instant::now() + self.patience();
        while payloads(daemon, before) < bytes {
            assert!(Instant::now() < end, "{} has too little", daemon.name());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn assert_memory(&self, idle: [u64; 3]) {
        for (peak, idle) in self.peaks().into_iter().zip(idle) {
            assert!(peak < idle + MEMORY_MAX, "{peak} KiB, idle {idle}");
        }
    }
}

/// The payloads in a node's spool, by name, and their bytes.
fn all_payloads(daemon: &Daemon) -> BTreeMap<OsString, u64> {
    let Ok(files) = fs::read_dir(daemon.data_dir().join("spool/payloads")) else {
        return BTreeMap::new();
    };
    let sizes = files.flatten().filter_map(|file| {
        let name = file.file_name();
        let is_note = name.to_string_lossy().ends_with(".part");
        (!is_note).then_some((name, file.metadata().ok()?.len()))
    });
    sizes.collect()
}

/// Bytes of payloads other than these.
fn payloads(daemon: &Daemon, but: &BTreeMap<OsString, u64>) -> u64 {
    let all = all_payloads(daemon).into_iter();
    all.filter(|(name, _)| !but.contains_key(name))
        .map(|(_, size)| size)
        .sum()
}

fn receptorctl(at: &Daemon, arguments: &[&str]) -> Child {
    Command::new(program("receptorctl"))
        .arg("--socket-path")
        .arg(at.socket_path())
        .args(arguments)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// All that a command prints.
fn output(child: Child) -> String {
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Reads the results of a work from the start: the sum of the raw one, how much it was, and what
/// came with it.
fn results(at: &Daemon, id: &str, patience: Duration) -> (String, u64, Value) {
    let mut control = at.control();
    let stream = control.stream();
    stream.set_read_timeout(Some(patience)).unwrap();
    let command = json!({"command": "results", "id": id, "follow": true});
    control.write(format!("{command}\n"));
    let mut raw = None;
    let mut said = Value::Null;
    loop {
        let reply = next_response(&mut control);
        assert!(reply["error"].is_null(), "{reply}");
        if let Some(length) = reply["size"].as_u64() {
            raw = Some(sum(Raw(&mut control, length)));
        }
        if reply["data"].is_object() {
            said = reply["data"].clone();
        }
        if reply["eof"] == true {
            assert_eq!(reply["code"], 0, "{reply}");
            let (sum, length) = raw.unwrap();
            return (sum, length, said);
        }
    }
}

fn next_response(control: &mut Control) -> Value {
    loop {
        let reply = control.reply();
        if reply["type"] == "response" {
            return reply;
        }
    }
}

#[test]
fn a_large_payload_and_its_response_go_on_where_they_stopped() {
    let size = size();
    let mesh = Mesh::new();
    let path = mesh.dir().join("source");
    source(&path, size);
    let (given, _) = sum(File::open(&path).unwrap());
    let mut chain = Chain::start(&mesh, size);
    let patience = chain.patience();
    let idle = chain.peaks();

    let payload = format!("@{}", path.display());
    let send = ["send", "--detach", "--directive", "mirror:turn"];
    let send = receptorctl(
        &chain.a,
        &[&send[..], &["--recipient", "c", &payload]].concat(),
    );
    let id = output(send).trim().to_owned();

    let none = BTreeMap::new();
    let request = all_payloads(&chain.a);

    // On the way there: links are cut, then each of the daemons is killed.
    chain.wait_payload(&chain.c, &none, size / 10);
    for wire in &chain.wires {
        wire.cut();
    }
    chain.wait_payload(&chain.c, &none, size / 10 * 3);
    chain.assert_memory(idle);
    chain.b.kill();
    chain.b.restart();
    chain.wait_payload(&chain.c, &none, size / 10 * 5);
    chain.c.kill();
    chain.c.restart();
    chain.wait_payload(&chain.c, &none, size / 10 * 7);
    chain.assert_memory(idle);
    chain.a.kill();
    chain.a.restart();

    // On the way back the same; then b still has what it had at its peak.
    chain.wait_payload(&chain.a, &request, size / 10);
    let [there, _] = chain.carried();
    for wire in &chain.wires {
        wire.cut();
    }
    chain.wait_payload(&chain.a, &request, size / 10 * 3);
    chain.b.kill();
    chain.b.restart();
    chain.wait_payload(&chain.a, &request, size / 10 * 5);
    chain.assert_memory(idle);
    chain.a.kill();
    chain.a.restart();

    // A client that leaves in the middle costs nothing: the next one reads from the start.
    let mut hasty = receptorctl(&chain.a, &["work", "results", "--follow", &id]);
    let mut some = vec![0; 1 << 20];
    hasty.stdout.take().unwrap().read_exact(&mut some).unwrap();
    hasty.kill().unwrap();
    hasty.wait().unwrap();
    let (back, length, said) = results(&chain.a, &id, patience);
    assert_eq!((said["given"].as_str(), length), (Some(&*given), size));
    assert_eq!(said["back"], back);
    chain.assert_memory(idle);

    // What went over the wires is the payload, and for each fault a little more.
    let [_, back] = chain.carried();
    let extra = PER_GIB * size.div_ceil(1 << 30) + 3 * RESENT + RESENT_UNSYNCED;
    for carried in there.into_iter().chain(back) {
        assert!(
            carried < size + extra,
            "{carried} bytes for {size}, {there:?} {back:?}"
        );
        // Acknowledgements go the other way.
        assert!(carried >= size, "{carried} bytes for {size}");
    }

    output(receptorctl(&chain.a, &["work", "release", &id]));
    for daemon in [&chain.a, &chain.b, &chain.c] {
        wait_for("the room of the payloads", || {
            (payloads(daemon, &none) == 0).then_some(())
        });
    }
}

/// What a terminal shows.
struct Terminal(Arc<Mutex<String>>);

impl Terminal {
    /// A terminal, and the end of it that a program has.
    fn open() -> (Self, OwnedFd) {
        let pty = nix::pty::openpty(None, None).unwrap();
        let shown = Arc::new(Mutex::new(String::new()));
        let (text, mut master) = (Arc::clone(&shown), File::from(pty.master));
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // Linux says EIO when the last program has closed it.
            while let Ok(length @ 1..) = master.read(&mut buffer) {
                let more = String::from_utf8_lossy(&buffer[..length]);
                text.lock().unwrap().push_str(&more);
            }
        });
        (Self(shown), pty.slave)
    }

    fn shows(&self, text: &str) -> Option<()> {
        self.0.lock().unwrap().contains(text).then_some(())
    }
}

#[test]
fn a_terminal_shows_how_far_a_payload_is() {
    let size = 64 << 20;
    let mesh = Mesh::new();
    let path = mesh.dir().join("source");
    source(&path, size);
    let chain = Chain::start(&mesh, size);
    let (terminal, slave) = Terminal::open();
    let mut send = Command::new(program("receptorctl"))
        .arg("--socket-path")
        .arg(chain.a.socket_path())
        .args([
            "send",
            "--directive",
            "mirror:turn",
            "--recipient",
            "c",
            "-",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(slave)
        .spawn()
        .unwrap();
    // Its pace is ours: nothing goes on before it was shown.
    let mut to = send.stdin.take().unwrap();
    let mut from = File::open(&path).unwrap();
    let mut piece = vec![0; 128 << 10];
    wait_for("the upload", || {
        from.read_exact(&mut piece).unwrap();
        to.write_all(&piece).unwrap();
        terminal.shows("upload ")
    });
    chain.b.signal(Signal::SIGSTOP);
    io::copy(&mut from, &mut to).unwrap();
    drop(to);
    wait_for("the way there", || terminal.shows("to c ["));
    let request = all_payloads(&chain.a);
    chain.b.signal(Signal::SIGCONT);
    chain.wait_payload(&chain.a, &request, 1);
    chain.b.signal(Signal::SIGSTOP);
    wait_for("the way back", || terminal.shows("from c ["));
    chain.b.signal(Signal::SIGCONT);
    let mut stdout = send.stdout.take().unwrap();
    wait_for("the download", || {
        stdout.read_exact(&mut piece).unwrap();
        terminal.shows("download [")
    });
    io::copy(&mut stdout, &mut io::sink()).unwrap();
    assert!(send.wait().unwrap().success());
    let shown = terminal.0.lock().unwrap();
    assert!(shown.contains("% of 64.0 MiB"), "{shown}");
    drop(shown);
    wait_for("the line is taken away", || {
        let shown = terminal.0.lock().unwrap();
        (shown.rsplit('\r').next()? == "\u{1b}[K").then_some(())
    });
}

#[test]
fn others_do_not_wait_for_a_large_payload() {
    let size = size();
    let mesh = Mesh::new();
    let path = mesh.dir().join("source");
    source(&path, size);
    let chain = Chain::start(&mesh, size);
    let payload = format!("@{}", path.display());
    let send = ["send", "--detach", "--directive", "mirror:turn"];
    let large = receptorctl(
        &chain.a,
        &[&send[..], &["--recipient", "c", &payload]].concat(),
    );
    let none = BTreeMap::new();
    let mut control = chain.a.control();
    let mut slowest = Duration::ZERO;
    let mut rounds = 0;
    let start = Instant::now();
    let end = start + chain.patience();
    while payloads(&chain.c, &none) < size {
        assert!(Instant::now() < end, "the payload does not arrive");
        let began = Instant::now();
        let small = json!({"command": "send", "directive": "echo:echo", "recipient": "c", "payload": rounds});
        control.write(format!("{small}\n"));
        while control.reply()["eof"] != true {}
        slowest = slowest.max(began.elapsed());
        rounds += 1;
    }
    // Nor do they wait for a good part of it where disks and processors are busy with other things.
    let whole = start.elapsed();
    let allowed = Duration::from_secs(2).max(whole / 4);
    assert!(slowest < allowed, "{slowest:?} of {rounds} in {whole:?}");
    let id = output(large).trim().to_owned();
    let (_, length, _) = results(&chain.a, &id, chain.patience());
    assert_eq!(length, size);
}
