//! Accepted means kept: daemons that are killed, frozen and cut off at random points while
//! clients send, disks that are full, and spools of other versions.
//!
//! `RECEPTOR_DURABILITY=messages,faults,seed` makes the long run as long as wanted; the seed of
//! each run is printed.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Uid;
use receptor_tests::relay::Relay;
use receptor_tests::traffic::{Counter, post, wait_counter};
use receptor_tests::{Control, DEADLINE, Daemon, Mesh, Node, wait_for};
use serde_json::{Value, json};

/// Messages that a sender has under way unaccepted.
const WINDOW: usize = 16;

fn node(mesh: &Mesh, name: &str) -> Node {
    mesh.node(name).config("[link]\nhold-time = \"1s\"")
}

/// Numbers from a seed, for places and times of faults.
struct Dice(u64);

impl Dice {
    fn throw(&mut self, below: u64) -> u64 {
        // Marsaglia's xorshift: any will do.
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

/// What came of the messages of [`send_all`].
#[derive(Debug, Default)]
struct Book {
    /// Accepted, with the id.
    accepted: BTreeMap<u64, String>,
    /// Never answered: they may have been accepted or not.
    unknown: Vec<u64>,
}

/// Sends so many messages through a socket whose daemon comes and goes.
fn send_all(socket: &Path, recipient: &str, count: usize, progress: &AtomicUsize) -> Book {
    let mut book = Book::default();
    while book.accepted.len() < count {
        let Ok(mut control) = Control::connect(socket) else {
            std::thread::sleep(Duration::from_millis(2));
            continue;
        };
        send_some(&mut control, recipient, count, progress, &mut book);
    }
    book
}

/// Sends until enough is accepted or the daemon is gone.
fn send_some(
    control: &mut Control,
    recipient: &str,
    count: usize,
    progress: &AtomicUsize,
    book: &mut Book,
) {
    let mut open: Vec<u64> = Vec::new();
    while book.accepted.len() < count {
        let mut gone = false;
        while open.len() < WINDOW && !gone {
            let number = receptor_tests::traffic::number();
            let command = json!({
                "command": "send", "directive": "counter:add", "recipient": recipient,
                "payload": {"n": number}, "detach": true, "wait": true, "tag": number,
            });
            open.push(number);
            gone = control
                .stream()
                .write_all(format!("{command}\n").as_bytes())
                .is_err();
        }
        let line = control.try_line().unwrap_or_default();
        let Ok(reply) = serde_json::from_str::<Value>(&line) else {
            // The daemon was killed. What it wrote last may have been cut short.
            book.unknown.append(&mut open);
            return;
        };
        assert_eq!(reply["type"], "accepted", "{reply}");
        let number = reply["tag"].as_u64().unwrap();
        open.retain(|other| *other != number);
        let id = reply["id"].as_str().unwrap().to_owned();
        book.accepted.insert(number, id);
        progress.store(book.accepted.len(), Ordering::Relaxed);
    }
    book.unknown.append(&mut open);
}

/// The whole response of a message that was sent before, however often its daemon was
/// restarted since.
fn results(control: &mut Control, id: &str) -> Value {
    let end = Instant::now() + DEADLINE;
    loop {
        let mut last = 0;
        let mut reply = control.json(&json!({"command": "results", "id": id}).to_string());
        while reply["type"] == "response" {
            let serial = reply["serial"].as_u64().unwrap();
            assert_eq!(serial, last + 1, "{reply}");
            last = serial;
            if let Some(size) = reply["size"].as_u64() {
                control.raw(usize::try_from(size).unwrap());
            }
            if reply["eof"] == true {
                return reply;
            }
            reply = control.reply();
        }
        // Nothing has come for it yet since the restart.
        assert_eq!(reply["error"]["code"], "not-found", "{reply}");
        assert!(Instant::now() < end, "no response to {id}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Demands that everything that was accepted ran once, or was cut short and its sender told so.
/// How many were cut short.
fn account(control: &mut Control, book: &Book, counter: &Counter) -> usize {
    let mut interrupted = Vec::new();
    for (number, id) in &book.accepted {
        let end = results(control, id);
        match end["error"]["code"].as_str() {
            None => assert_eq!(end["code"], 0, "{end}"),
            Some("interrupted") => interrupted.push(*number),
            Some(_) => panic!("{number}: {end}"),
        }
    }
    let runs = counter.runs();
    for number in book.accepted.keys() {
        let times = runs.get(number).copied().unwrap_or_default();
        let cut_short = interrupted.contains(number);
        assert!(times == 1 || times == 0 && cut_short, "{number}: {times}");
    }
    for number in &book.unknown {
        assert!(runs.get(number).copied().unwrap_or_default() <= 1);
    }
    let known = |n: &u64| book.accepted.contains_key(n) || book.unknown.contains(n);
    assert!(runs.keys().all(known), "a message that nobody sent");
    interrupted.len()
}

#[test]
fn every_accepted_message_is_run_once_while_nodes_are_killed() {
    let asked = std::env::var("RECEPTOR_DURABILITY").unwrap_or_default();
    let mut asked = asked.split(',').map(|word| word.parse::<u64>().ok());
    let mut next = || asked.next().flatten();
    let messages = usize::try_from(next().unwrap_or(1000)).unwrap();
    let faults = usize::try_from(next().unwrap_or(10)).unwrap();
    let seed = next().unwrap_or_else(|| u64::from(std::process::id()) * 0x9e37_79b9 + 1);
    println!("RECEPTOR_DURABILITY={messages},{faults},{seed}");
    let mut dice = Dice(seed);

    let mesh = Mesh::new();
    let c = node(&mesh, "c").start();
    let to_c = Relay::to(&c.address());
    let a = node(&mesh, "a").peer_url(&to_c.url()).start();
    let to_a = Relay::to(&a.address());
    let (counter, b) = Counter::install(&mesh, node(&mesh, "b").peer_url(&to_a.url()), "b");
    let b = b.start();
    wait_counter(&c, "b");
    let socket = c.socket_path().to_owned();
    let mut nodes = [c, a, b];

    let progress = Arc::new(AtomicUsize::new(0));
    let done = Arc::clone(&progress);
    let sender = std::thread::spawn(move || send_all(&socket, "b", messages, &done));
    for fault in 0..faults {
        // Somewhere in its own part of the run.
        let part = messages / faults;
        let at = fault * part + usize::try_from(dice.throw(part as u64)).unwrap();
        wait_for("progress", || {
            (progress.load(Ordering::Relaxed) >= at || sender.is_finished()).then_some(())
        });
        let victim = usize::try_from(dice.throw(3)).unwrap();
        let victim = &mut nodes[victim];
        let pause = Duration::from_millis(dice.throw(100));
        match dice.throw(8) {
            0 => {
                victim.signal(Signal::SIGSTOP);
                std::thread::sleep(pause * 15);
                victim.signal(Signal::SIGCONT);
            }
            1 => {
                to_c.cut();
                to_a.cut();
            }
            _ => {
                victim.kill();
                std::thread::sleep(pause);
                victim.restart();
            }
        }
    }
    let book = sender.join().unwrap();
    let interrupted = account(&mut nodes[0].control(), &book, &counter);
    println!(
        "{} accepted, {interrupted} cut short, {} not answered",
        book.accepted.len(),
        book.unknown.len()
    );
    // A work runs for a few milliseconds, a few at a time.
    assert!(interrupted <= faults * 16, "{interrupted}");
}

#[test]
fn what_was_accepted_survives_the_death_of_its_node_at_once() {
    let mesh = Mesh::new();
    let mut c = node(&mesh, "c").start();
    let mut sent = Vec::new();
    for _ in 0..5 {
        let mut control = c.control();
        let number = receptor_tests::traffic::number();
        let command = json!({
            "command": "send", "directive": "counter:add", "recipient": "not-yet-there",
            "payload": {"n": number}, "detach": true, "wait": true,
        });
        let accepted = control.json(&command.to_string());
        c.kill();
        assert_eq!(accepted["type"], "accepted", "{accepted}");
        sent.push((number, accepted["id"].as_str().unwrap().to_owned()));
        c.restart();
    }
    let status = c.control().json("status");
    assert_eq!(status["receptor"]["spool"]["entries"], 5, "{status}");
    // The recipient is made only now, and everything starts again before it is reached.
    let name = "not-yet-there";
    let (counter, b) = Counter::install(&mesh, node(&mesh, name).peer(&c), name);
    c.kill();
    let mut b = b.start();
    b.kill();
    c.restart();
    b.restart();
    let mut control = c.control();
    for (_, id) in &sent {
        let end = results(&mut control, id);
        assert_eq!((&end["code"], &end["error"]), (&json!(0), &Value::Null));
    }
    let runs = counter.runs();
    assert_eq!(runs.len(), 5);
    assert!(sent.iter().all(|(number, _)| runs[number] == 1), "{runs:?}");
    // Nothing is left of it anywhere.
    for daemon in [&c, &b] {
        wait_for("empty spools", || {
            let status = daemon.control().json("status");
            (status["receptor"]["spool"]["entries"] == 0).then_some(())
        });
    }
}

/// The plugin `step`: its actions note a run and then wait for a file, `again` is idempotent.
fn install_step(mesh: &Mesh, node: Node) -> (PathBuf, Node) {
    let dir = mesh.dir().join("step");
    let plugins = dir.join("plugins");
    fs::create_dir_all(&plugins).unwrap();
    let script = format!(
        "#!/bin/sh\n\
         echo '{{\"type\":\"hello\",\"protocol\":1,\"name\":\"step\",\"version\":\"1\",\"actions\":{{\
         \"once\":{{\"payload\":\"text\",\"output\":\"text\"}},\
         \"again\":{{\"payload\":\"text\",\"output\":\"text\",\"idempotent\":true}}}}}}'\n\
         read -r hello || exit 0\n\
         read -r job || exit 0\n\
         printf '%s\\n' \"$job\" >>'{dir}/runs'\n\
         while ! [ -e '{dir}/go' ]; do sleep 0.01; done\n\
         echo went\n",
        dir = dir.display()
    );
    let plugin = plugins.join("step");
    fs::write(&plugin, script).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&plugin, mode).unwrap();
    let node = node
        .config("[plugins]\nallow-unsafe = true")
        .arg("--plugins-dir")
        .arg(plugins.to_str().unwrap());
    (dir, node)
}

#[test]
fn a_work_cut_short_is_run_again_only_when_it_may_be() {
    let mesh = Mesh::new();
    let c = node(&mesh, "c").start();
    let (dir, b) = install_step(&mesh, node(&mesh, "b").peer(&c));
    let mut b = b.start();
    c.wait_ping("b");
    let mut control = c.control();
    let mut ids = Vec::new();
    for action in ["once", "again"] {
        let command = json!({
            "command": "send", "directive": format!("step:{action}"), "recipient": "b",
            "payload": "x", "detach": true,
        });
        let accepted = control.json(&command.to_string());
        ids.push(accepted["id"].as_str().unwrap().to_owned());
    }
    let runs = || {
        let text = fs::read_to_string(dir.join("runs")).unwrap_or_default();
        let jobs = text.lines().map(|line| serde_json::from_str(line).unwrap());
        jobs.collect::<Vec<Value>>()
    };
    wait_for("both to run", || (runs().len() == 2).then_some(()));
    b.kill();
    b.restart();
    let end = results(&mut control, &ids[0]);
    assert_eq!(end["error"]["code"], "interrupted", "{end}");
    wait_for("one to run again", || (runs().len() == 3).then_some(()));
    fs::write(dir.join("go"), "").unwrap();
    let end = results(&mut control, &ids[1]);
    assert_eq!(end["code"], 0, "{end}");
    let runs = runs();
    assert_eq!(
        (&runs[2]["action"], &runs[2]["attempt"]),
        (&json!("again"), &json!(2))
    );
    assert_eq!(runs.len(), 3);
}

#[test]
fn a_client_that_leaves_during_the_last_response_leaves_nothing_in_the_spool() {
    let mesh = Mesh::new();
    let c = node(&mesh, "c").start();
    let (_counter, b) = Counter::install(&mesh, node(&mesh, "b").peer(&c), "b");
    let b = b.start();
    wait_counter(&c, "b");
    for _ in 0..40 {
        let mut control = c.control();
        post(&mut control, "b", false);
        assert_eq!(control.reply()["type"], "accepted");
    }
    for daemon in [&c, &b] {
        wait_for("empty spools", || {
            let status = daemon.control().json("status");
            (status["receptor"]["spool"]["entries"] == 0).then_some(())
        });
    }
}

/// A small file system of its own; unmounted when dropped.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(at: &Path, size: &str) -> Option<Self> {
        fs::create_dir_all(at).unwrap();
        let options = format!("size={size},mode=0700");
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", &options, "receptor-test"])
            .arg(at);
        if Uid::effective().is_root() && mount.status().is_ok_and(|status| status.success()) {
            return Some(Self(at.to_owned()));
        }
        // Past what the test runner swallows.
        let text = "SKIPPED, nothing was tested: no tmpfs can be mounted here";
        let _ = writeln!(std::io::stderr(), "{text}");
        None
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_refuses_what_is_durable_and_nothing_else() {
    let mesh = Mesh::new();
    // Room for a segment to write to and for those that are set aside before new work is kept.
    let Some(disk) = Tmpfs::mount(&mesh.dir().join("c/data"), "64m") else {
        return;
    };
    let c = node(&mesh, "c").start();
    let (counter, b) = Counter::install(&mesh, node(&mesh, "b").peer(&c), "b");
    let b = b.start();
    wait_counter(&c, "b");
    // Somebody else fills the disk.
    let filler = disk.0.join("filler");
    let mut file = fs::File::create(&filler).unwrap();
    while file.write_all(&[0; 4096]).is_ok() {}
    let mut control = c.control();
    let body = "x".repeat(60_000);
    let mut kept = Vec::new();
    let refused = loop {
        let command = json!({
            "command": "send", "directive": "counter:add", "recipient": "away",
            "payload": {"n": 0, "body": body}, "detach": true, "wait": true,
        });
        let reply = control.json(&command.to_string());
        if reply["type"] != "accepted" {
            break reply;
        }
        kept.push(reply["id"].as_str().unwrap().to_owned());
        assert!(kept.len() < 1000, "the disk is never full");
    };
    assert_eq!(refused["error"]["code"], "busy", "{refused}");
    let message = refused["error"]["message"].as_str().unwrap();
    assert!(message.contains("disk is full"), "{refused}");
    c.wait_log("nothing new is kept until the spool can be written");
    // What needs no disk goes on.
    let volatile = json!({
        "command": "send", "directive": "counter:add", "recipient": "b",
        "payload": {"n": receptor_tests::traffic::number()}, "volatile": true,
    });
    let mut reply = control.json(&volatile.to_string());
    while reply["eof"] != true {
        reply = control.reply();
    }
    assert_eq!(reply["code"], 0, "{reply}");
    drop(file);
    fs::remove_file(&filler).unwrap();
    let number = wait_for("room again", || {
        let number = post(&mut control, "b", false);
        loop {
            let reply = control.reply();
            if reply["eof"] == true {
                return (reply["code"] == 0 && reply["error"].is_null()).then_some(number);
            }
        }
    });
    assert_eq!(counter.runs()[&number], 1);
    c.wait_log("the spool can be written again");
    let status = c.control().json("status");
    let entries = status["receptor"]["spool"]["entries"].as_u64().unwrap();
    assert!(
        entries >= kept.len() as u64,
        "{entries}, {} kept",
        kept.len()
    );
    drop(b);
    drop(c);
}

#[test]
fn limits_of_the_spool_are_told_by_name() {
    let mesh = Mesh::new();
    let c = node(&mesh, "c")
        .config("[spool]\nmax-entries-per-recipient = 8")
        .start();
    let mut control = c.control();
    let mut send = |recipient: &str| {
        let command = json!({
            "command": "send", "directive": "counter:add", "recipient": recipient,
            "payload": {"n": 0}, "detach": true, "wait": true,
        });
        control.json(&command.to_string())
    };
    for _ in 0..7 {
        assert_eq!(send("away")["type"], "accepted");
    }
    let refused = send("away");
    assert_eq!(refused["error"]["code"], "busy", "{refused}");
    let message = refused["error"]["message"].as_str().unwrap();
    assert!(message.contains("max-entries-per-recipient"), "{message}");
    assert_eq!(send("elsewhere")["type"], "accepted");
    let spool = c.control().json("status")["receptor"]["spool"].clone();
    assert_eq!(spool["entries"], 8, "{spool}");
    assert!(spool["bytes"].as_u64().unwrap() > 8 * 64, "{spool}");
}

#[test]
fn a_volatile_message_never_touches_the_disk() {
    let mesh = Mesh::new();
    let c = node(&mesh, "c").start();
    let (_counter, b) = Counter::install(&mesh, node(&mesh, "b").peer(&c), "b");
    let b = b.start();
    wait_counter(&c, "b");
    let size = |daemon: &Daemon| segments(&daemon.data_dir());
    let before = (size(&c), size(&b));
    let mut control = c.control();
    for _ in 0..10 {
        let command = json!({
            "command": "send", "directive": "counter:add", "recipient": "b",
            "payload": {"n": receptor_tests::traffic::number()}, "volatile": true,
        });
        let mut reply = control.json(&command.to_string());
        while reply["eof"] != true {
            reply = control.reply();
        }
        assert_eq!(reply["code"], 0, "{reply}");
    }
    assert_eq!((size(&c), size(&b)), before);
}

#[test]
fn a_spool_of_version_1_is_read() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../receptord/spool/tests/golden/v1");
    let mesh = Mesh::new();
    let spool = mesh.dir().join("c/data/spool");
    for dir in ["", "segments", "payloads"] {
        fs::create_dir_all(spool.join(dir)).unwrap();
        for file in fs::read_dir(golden.join(dir)).unwrap() {
            let file = file.unwrap();
            if file.file_type().unwrap().is_file() {
                let to = spool.join(dir).join(file.file_name());
                fs::copy(file.path(), to).unwrap();
            }
        }
    }
    let data = mesh.dir().join("c/data");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    fs::set_permissions(&data, mode).unwrap();
    let c = node(&mesh, "c").start();
    let log = c.log();
    assert!(log.contains("messages of an earlier run are kept"), "{log}");
    assert!(!log.contains("damaged"), "{log}");
    assert!(!log.contains("cannot be used"), "{log}");
}

/// Bytes of the segments of a spool, and what they hold.
fn segments(data_dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    if let Ok(files) = fs::read_dir(data_dir.join("spool/segments")) {
        for file in files {
            let path = file.unwrap().path();
            let bytes = fs::read(&path).unwrap();
            all.push((path, bytes));
        }
    }
    all.sort();
    all
}
