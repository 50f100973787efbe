//! Many clients at once, and clients that are gone in the middle of what they began.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs::{self, File};
use std::process::{Command, Stdio};

use receptor_tests::traffic::{Counter, Sent, assert_once, peak_kib, wait_counter};
use receptor_tests::{Control, Daemon, Mesh, program, wait_for};

/// Memory that a daemon may have used at most, whatever its clients did.
const PEAK_KIB: u64 = 64 * 1024;

/// a – b, where b counts.
fn pair(mesh: &Mesh) -> (Daemon, Daemon, Counter) {
    let a = mesh.node("a").start();
    let (counter, b) = Counter::install(mesh, mesh.node("b").peer(&a), "b");
    let b = b.start();
    a.wait_ping("b");
    wait_counter(&a, "b");
    (a, b, counter)
}

fn payloads(daemon: &Daemon) -> usize {
    fs::read_dir(daemon.data_dir().join("spool/payloads"))
        .unwrap()
        .count()
}

#[test]
fn two_hundred_clients_at_once_are_all_served() {
    let mesh = Mesh::new();
    let (a, b, counter) = pair(&mesh);
    // All are connected before the first one says anything.
    let clients: Vec<Control> = (0..200).map(|_| a.control()).collect();
    let clients = clients.into_iter().map(|mut control| {
        std::thread::spawn(move || {
            let sent: Vec<Sent> = (0..3).map(|_| Sent::one(&mut control, "b")).collect();
            sent
        })
    });
    let clients: Vec<_> = clients.collect();
    assert_eq!(a.control().json("ping b")["Success"], true);
    let sent: Vec<Sent> = clients
        .into_iter()
        .flat_map(|client| client.join().unwrap())
        .collect();
    assert_eq!(sent.len(), 600);
    assert_once(&sent, &counter);
    for daemon in [&a, &b] {
        let peak = peak_kib(daemon.pid());
        assert!(peak < PEAK_KIB, "{}: {peak} KiB", daemon.name());
    }
}

#[test]
fn who_leaves_in_the_middle_of_a_payload_leaves_nothing_behind() {
    let mesh = Mesh::new();
    let (a, b, counter) = pair(&mesh);
    let mut staying = a.control();
    for _ in 0..20 {
        let mut control = a.control();
        control.write(
            "{\"command\":\"send\",\"directive\":\"echo:discard\",\"recipient\":\"b\",\"size\":100000000}\n",
        );
        control.write(vec![7; 300_000]);
        drop(control);
    }
    // The command is killed while the daemon takes its payload.
    let large = mesh.dir().join("large");
    File::create(&large).unwrap().set_len(4 << 30).unwrap();
    let mut command = Command::new(program("receptorctl"))
        .arg("--socket-path")
        .arg(a.socket_path())
        .args(["send", "--directive", "echo:discard", "--recipient", "b"])
        .arg(format!("@{}", large.display()))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let dir = a.data_dir().join("spool/payloads");
    wait_for("some of the payload", || {
        let files = fs::read_dir(&dir).ok()?.flatten();
        let mut sizes = files.filter_map(|file| Some(file.metadata().ok()?.len()));
        sizes.any(|size| size > 10 << 20).then_some(())
    });
    command.kill().unwrap();
    command.wait().unwrap();
    wait_for("the end of what was left", || {
        (payloads(&a) == 0).then_some(())
    });
    let clients = || a.control().json("status")["receptor"]["clients"].as_u64();
    wait_for("the end of their sessions", || {
        (clients() == Some(2)).then_some(())
    });
    let spool = || a.control().json("status")["receptor"]["spool"]["entries"].clone();
    wait_for("an empty store", || (spool() == 0).then_some(()));
    assert_once(&[Sent::one(&mut staying, "b")], &counter);
    for daemon in [&a, &b] {
        // A plugin whose program is not installed here is no trouble with a client.
        let log = daemon.log();
        let trouble = |line: &&str| line.contains("WARN") && !line.contains("not ready");
        assert_eq!(log.lines().find(trouble), None);
        let peak = peak_kib(daemon.pid());
        assert!(peak < PEAK_KIB, "{}: {peak} KiB", daemon.name());
    }
}
