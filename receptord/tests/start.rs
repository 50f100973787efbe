//! The program from its start to its end, as a service manager sees it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use receptor_proto::packet::{Content, Message, MessageKind};
use receptor_proto::record::{EntryId, Record};
use receptor_proto::{Directive, MessageId};
use receptor_spool::{FsDisk, Op, Options, Spool};

/// Far longer than any step takes, so that a slow machine does not fail a test.
const DEADLINE: Duration = Duration::from_secs(20);

/// The program without anything of the environment that could change what it does, and without
/// a control socket, whose place is the same for all.
fn receptord() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_receptord"));
    command.env_clear().args(["--config", "/dev/null", "node"]);
    command
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// A daemon that is ready, and the line on which it says so.
struct Daemon {
    child: Child,
    notify: UnixDatagram,
    said: String,
}

impl Daemon {
    fn start(dir: &Path, mut command: Command) -> Self {
        let path = dir.join("notify");
        let notify = UnixDatagram::bind(&path).unwrap();
        notify.set_read_timeout(Some(DEADLINE)).unwrap();
        let child = command.env("NOTIFY_SOCKET", &path).spawn().unwrap();
        let mut daemon = Self {
            child,
            notify,
            said: String::new(),
        };
        daemon.said = daemon.next();
        daemon
    }

    /// What the daemon tells its service manager next.
    fn next(&self) -> String {
        let mut buffer = [0; 4096];
        let length = self
            .notify
            .recv(&mut buffer)
            .expect("the daemon says something");
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    fn wait(&mut self) -> ExitStatus {
        let end = Instant::now() + DEADLINE;
        loop {
            match self.child.try_wait().unwrap() {
                Some(status) => return status,
                None if Instant::now() > end => panic!("the daemon does not end"),
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Nothing is left running, also when a test fails; an ended child is no error.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn it_says_when_it_is_ready_reloading_and_stopping() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("receptord.toml");
    fs::write(&config, "[log]\nlevel = \"info\"\n").unwrap();
    let log = dir.path().join("log");
    let mut command = Command::new(env!("CARGO_BIN_EXE_receptord"));
    command
        .env_clear()
        .args(["--node-id=node-a", "node", "--config"])
        .arg(&config)
        .arg("-d")
        .arg(dir.path().join("data"))
        .stderr(File::create(&log).unwrap());
    let mut daemon = Daemon::start(dir.path(), command);
    let ready = "READY=1\nSTATUS=node node-a: 0 neighbors, 0 works running, 0 messages in the spool (0.0 MiB)\n";
    assert_eq!(daemon.said, ready);

    let reload = |text: &str| {
        fs::write(&config, text).unwrap();
        daemon.signal(Signal::SIGHUP);
        let said = daemon.next();
        let time = said
            .strip_prefix("RELOADING=1\nMONOTONIC_USEC=")
            .unwrap_or_else(|| panic!("{said}"));
        assert!(time.trim().parse::<u64>().unwrap() > 0);
        assert_eq!(daemon.next(), ready);
    };
    reload("router = false\n[log]\nlevel = \"debug\"\n[link]\nhold-time = \"3s\"\n");
    reload("rooter = false\n");

    daemon.signal(Signal::SIGTERM);
    assert!(daemon.next().starts_with("STOPPING=1\n"));
    assert_eq!(daemon.wait().code(), Some(0));

    let log = fs::read_to_string(log).unwrap();
    for expected in [
        "WARN changes at the next restart key=\"router\"",
        "WARN changes at the next restart key=\"link.hold-time\"",
        "INFO changed key=\"log.level\"",
        "receptord.toml:1: rooter: false: is not a key that receptord knows; did you mean router?",
        "ERROR the configuration is wrong; the one before stays in force",
    ] {
        assert!(log.contains(expected), "{expected:?} is missing in {log}");
    }
}

#[test]
fn it_says_what_it_reads_before_it_is_ready() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    fs::create_dir(&data).unwrap();
    fs::set_permissions(&data, fs::Permissions::from_mode(0o700)).unwrap();
    let disk = FsDisk::new(data.join("spool"));
    let (mut spool, _) = Spool::open(disk, &Options::new(1)).unwrap();
    let message = |entry: u64| Record::Outgoing {
        entry: EntryId(entry),
        recipient: "b".parse().unwrap(),
        message: Message {
            epoch: 1,
            seq: entry,
            floor: 1,
            work: MessageId::from_u128(u128::from(entry)),
            kind: MessageKind::Request {
                directive: Directive::new("echo:echo").unwrap(),
                respond: false,
            },
            volatile: false,
            remaining_ms: 3_600_000,
            content: Content::None,
            name: None,
            size: 0,
            body: bytes::Bytes::new(),
        },
    };
    let records = vec![message(1), message(2)];
    // The clock of the messages' lifetime.
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = since.unwrap().as_millis().try_into().unwrap();
    let outcomes = spool.commit(now, &[Op::Write { token: 1, records }]);
    assert_eq!(outcomes[0].result, Ok(()));
    spool.close().unwrap();

    let mut command = receptord();
    command.arg("--node-id=node-a").arg("-d").arg(&data);
    let mut daemon = Daemon::start(dir.path(), command);
    assert_eq!(daemon.said, "STATUS=reading the spool\n");
    assert_eq!(daemon.next(), "STATUS=reading the spool, 2 entries\n");
    let ready = daemon.next();
    let expected = "READY=1\nSTATUS=node node-a: 0 neighbors, 0 works running, 2 messages in the spool (0.0 MiB)\n";
    assert_eq!(ready, expected);
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn exit_codes_say_what_kind_of_failure_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let open = dir.path().join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    let (open, data) = (open.to_str().unwrap(), dir.path().join("data"));
    let data = data.to_str().unwrap();
    let table: [(&[&str], i32, &str); 12] = [
        (&["--version"], 0, ""),
        (&["--check-config"], 0, ""),
        (&["--no-such-flag"], 2, "unexpected argument"),
        (
            &["-d", "/proc/no-such"],
            69,
            "cannot create data directory /proc/no-such",
        ),
        (&["-d", open], 77, "chmod go-w"),
        (&["-d", "/dev/null"], 78, "is not a directory"),
        (
            &["-d", data, "--peer", "192.0.2.1:1"],
            78,
            "flag --peer: peer[0].url",
        ),
        (
            &["-d", data, "--listen", "wss://127.0.0.1:0"],
            78,
            "flag --listen: listen[0].url: \"wss://127.0.0.1:0/\": TLS needs a [tls] table",
        ),
        (
            &["--check-config", "--peer", "rnps://localhost:1"],
            78,
            "flag --peer: peer[0].url: \"rnps://localhost:1\": TLS needs a [tls] table",
        ),
        (
            &["-d", data, "--socket-path", "/dev/null"],
            69,
            "/dev/null is there and is no socket",
        ),
        (
            &["--check-config", "--listen", "0.0.0.0:1"],
            78,
            "--allow-plaintext",
        ),
        (
            &[
                "--check-config",
                "--listen",
                "0.0.0.0:1",
                "--allow-plaintext",
            ],
            0,
            "",
        ),
    ];
    for (args, code, expected) in table {
        let output = receptord().args(args).output().unwrap();
        let stderr = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
        assert!(stderr.contains(expected), "{args:?}: {stderr}");
        assert_eq!(stderr.is_empty(), code == 0, "{args:?}: {stderr}");
    }
    let untouched = dir.path().join("untouched");
    let args = ["--log-level", "info", "--peer", "192.0.2.1:1", "-d"];
    let output = receptord().args(args).arg(&untouched).output().unwrap();
    assert_eq!(output.status.code(), Some(78));
    assert!(!untouched.exists(), "a wrong configuration touches nothing");
}

#[test]
fn a_daemon_has_the_descriptors_that_its_limits_need() {
    let dir = tempfile::tempdir().unwrap();
    // What a login or a service manager gives at first, and what may be asked for.
    let mut command = Command::new("sh");
    command
        .env_clear()
        .args([
            "-c",
            "ulimit -S -n 256 && ulimit -H -n 8192 && exec \"$@\"",
            "sh",
        ])
        .arg(env!("CARGO_BIN_EXE_receptord"))
        .args(["--config", "/dev/null", "node", "-d"])
        .arg(dir.path().join("data"))
        .stderr(Stdio::null());
    let daemon = Daemon::start(dir.path(), command);
    let limits = fs::read_to_string(format!("/proc/{}/limits", daemon.child.id())).unwrap();
    let files = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let soft = files.unwrap().split_whitespace().nth(3).unwrap();
    // 4,096 links, 1,024 clients and the rest.
    assert_eq!(soft, "7168", "{limits}");
}

#[test]
fn a_second_daemon_is_told_who_has_the_data_directory() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let start = || {
        let mut command = receptord();
        command.arg("-d").arg(&data).stderr(Stdio::null());
        command
    };
    let first = Daemon::start(dir.path(), start());
    let output = start().stderr(Stdio::piped()).output().unwrap();
    assert_eq!(output.status.code(), Some(75));
    let expected = format!("in use by another receptord, process {}", first.child.id());
    assert!(stderr(&output).contains(&expected), "{}", stderr(&output));
}

#[test]
fn a_made_up_node_id_survives_kill() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let mut said = Vec::new();
    for round in ["a", "b"] {
        let dir = dir.path().join(round);
        fs::create_dir(&dir).unwrap();
        let mut command = receptord();
        command.arg("-d").arg(&data).stderr(Stdio::null());
        let mut daemon = Daemon::start(&dir, command);
        said.push(daemon.said.clone());
        daemon.signal(Signal::SIGKILL);
        daemon.wait();
    }
    assert_eq!(said[0], said[1]);
    let id = fs::read_to_string(data.join("node-id")).unwrap();
    let expected = format!("READY=1\nSTATUS=node {}: ", id.trim());
    assert!(said[0].starts_with(&expected), "{said:?}");
    let mode = |name| fs::metadata(data.join(name)).unwrap().mode() & 0o777;
    assert_eq!((mode("node-id"), mode("lock")), (0o600, 0o600));
}

#[test]
fn a_journal_stream_gets_priorities_and_no_times() {
    // Where journald runs, events go to it natively and the stream stays empty.
    let native = Path::new("/run/systemd/journal/socket").exists();
    let dir = tempfile::tempdir().unwrap();
    let log = File::create_new(dir.path().join("log")).unwrap();
    let meta = log.metadata().unwrap();
    let mut command = receptord();
    command
        .arg("-d")
        .arg(dir.path().join("data"))
        .env("JOURNAL_STREAM", format!("{}:{}", meta.dev(), meta.ino()))
        .stderr(log);
    let mut daemon = Daemon::start(dir.path(), command);
    daemon.signal(Signal::SIGINT);
    assert_eq!(daemon.wait().code(), Some(0));
    let log = fs::read_to_string(dir.path().join("log")).unwrap();
    assert_eq!(log.is_empty(), native, "{log}");
    assert!(log.lines().all(|line| line.starts_with("<6>")), "{log}");
    assert!(!log.contains("message_id"), "{log}");
}

/// Runs the program in namespaces of its own, as root there, after `script` has changed what it
/// sees of the file system.
fn in_own_namespaces(script: &str) -> Command {
    let script = format!("set -e; {script}; exec \"$@\"");
    let mut command = Command::new("unshare");
    command
        .env_clear()
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", &script])
        .args(["sh", env!("CARGO_BIN_EXE_receptord"), "--config=/dev/null"]);
    command
}

/// One entry of the journal's native protocol: lines `NAME=value`, or for values with line
/// breaks `NAME`, their length in 64 bits little endian, and the value.
fn journal_entry(mut bytes: &[u8]) -> Vec<(String, String)> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let end = bytes.iter().position(|byte| *byte == b'\n').unwrap();
        let (line, rest) = (&bytes[..end], &bytes[end + 1..]);
        if let Some(equals) = line.iter().position(|byte| *byte == b'=') {
            fields.push((text(&line[..equals]), text(&line[equals + 1..])));
            bytes = rest;
        } else {
            let (length, rest) = rest.split_first_chunk::<8>().unwrap();
            let length = usize::try_from(u64::from_le_bytes(*length)).unwrap();
            fields.push((text(line), text(&rest[..length])));
            assert_eq!(rest[length], b'\n');
            bytes = &rest[length + 1..];
        }
    }
    fields
}

#[test]
fn where_a_journal_is_its_native_protocol_is_spoken() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    fs::create_dir_all(run.join("systemd/journal")).unwrap();
    let journal = UnixDatagram::bind(run.join("systemd/journal/socket")).unwrap();
    // Whoever logs waits until there is room, so that it must be read all the time.
    let (send, entries) = mpsc::sync_channel(1024);
    std::thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(length) = journal.recv(&mut buffer) {
            if send.send(journal_entry(&buffer[..length])).is_err() {
                return;
            }
        }
    });
    let log = File::create_new(dir.path().join("log")).unwrap();
    let meta = log.metadata().unwrap();
    let mut command = in_own_namespaces(&format!("mount --bind '{}' /run", run.display()));
    command
        .args(["node", "--node-id=node-a", "--log-level=debug", "-d"])
        .arg(dir.path().join("data"))
        .env("JOURNAL_STREAM", format!("{}:{}", meta.dev(), meta.ino()))
        .stderr(log);
    let mut daemon = Daemon::start(dir.path(), command);

    let mut priorities = Vec::new();
    let started = loop {
        let entry = entries.recv_timeout(DEADLINE).unwrap();
        // What finds out whether there is a journal is empty, and the journal leaves it out.
        if entry.is_empty() {
            continue;
        }
        let get = |name: &str| {
            let mut values = entry.iter().filter(|(key, _)| key == name);
            let value = values.next().map(|(_, value)| value.clone());
            assert!(values.next().is_none(), "{name} twice in {entry:?}");
            value
        };
        assert_eq!(get("SYSLOG_IDENTIFIER").as_deref(), Some("receptord"));
        priorities.push(get("PRIORITY").unwrap());
        if let Some(id) = get("MESSAGE_ID") {
            break (id, get("MESSAGE"), get("RECEPTOR_NODE"));
        }
    };
    let expected = (
        receptord::log::id::STARTED.to_owned(),
        Some("serving".to_owned()),
        Some("node-a".to_owned()),
    );
    assert_eq!(started, expected);
    assert_eq!(priorities.first().map(String::as_str), Some("7"), "DEBUG");
    assert_eq!(priorities.last().map(String::as_str), Some("6"), "INFO");
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait().code(), Some(0));
    let log = fs::read_to_string(dir.path().join("log")).unwrap();
    assert_eq!(log, "", "nothing is said twice");
}

#[test]
fn the_control_socket_is_the_group_receptors_where_that_can_be() {
    // In its namespace the daemon can give files to group 0 alone.
    for (groups, expected) in [
        ("receptor:x:0:", "group=\"receptor\""),
        ("wheel:x:0:\nreceptor:x:7:", "group=\"wheel\""),
        ("wheel:x:0:", "group=\"wheel\""),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let group = dir.path().join("group");
        fs::write(&group, format!("{groups}\n")).unwrap();
        let log = dir.path().join("log");
        let mut command =
            in_own_namespaces(&format!("mount --bind '{}' /etc/group", group.display()));
        command
            .args(["--node-id=node-a", "--socket-path"])
            .arg(dir.path().join("control"))
            .arg("-d")
            .arg(dir.path().join("data"))
            .stderr(File::create_new(&log).unwrap());
        let mut daemon = Daemon::start(dir.path(), command);
        daemon.signal(Signal::SIGTERM);
        assert_eq!(daemon.wait().code(), Some(0));
        let log = fs::read_to_string(log).unwrap();
        assert!(log.contains(expected), "{groups}: {log}");
        let stays = log.contains("stays with the group of the daemon");
        assert_eq!(stays, groups.contains('7'), "{groups}: {log}");
    }
}

#[test]
fn a_group_that_was_asked_for_has_to_be_there() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("receptord.toml");
    fs::write(&config, "[control]\ngroup = \"no-such-group\"\n").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_receptord"))
        .env_clear()
        .arg("--config")
        .arg(&config)
        .arg("--socket-path")
        .arg(dir.path().join("control"))
        .arg("-d")
        .arg(dir.path().join("data"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(78), "{}", stderr(&output));
    assert!(stderr(&output).contains("there is no group no-such-group"));
    assert!(!dir.path().join("control").exists());
}

/// Runs the program with these listening sockets passed under these names.
fn with_sockets(sockets: &[(&str, BorrowedFd<'_>)]) -> Command {
    let mut script = String::from("LISTEN_PID=$$ exec \"$@\"");
    for (index, (_, fd)) in sockets.iter().enumerate() {
        fcntl(*fd, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
        script += &format!(" {}<&{}", index + 3, fd.as_raw_fd());
    }
    let names: Vec<_> = sockets.iter().map(|(name, _)| *name).collect();
    let mut command = Command::new("sh");
    command
        .env_clear()
        .env("LISTEN_FDS", sockets.len().to_string())
        .env("LISTEN_FDNAMES", names.join(":"))
        .args(["-c", &script, "sh"])
        .arg(env!("CARGO_BIN_EXE_receptord"))
        .args(["--config", "/dev/null", "node", "-d"]);
    command
}

#[test]
fn passed_sockets_are_served() {
    let dir = tempfile::tempdir().unwrap();
    let mesh = TcpListener::bind("127.0.0.1:0").unwrap();
    let control = UnixListener::bind(dir.path().join("control")).unwrap();
    let mut command = with_sockets(&[("mesh", mesh.as_fd()), ("control", control.as_fd())]);
    command.arg(dir.path().join("data")).stderr(Stdio::null());
    let mut daemon = Daemon::start(dir.path(), command);
    assert!(
        daemon.said.contains(": 0 neighbors, 0 works running, "),
        "{}",
        daemon.said
    );
    let address = mesh.local_addr().unwrap();
    drop((mesh, control));

    let client = UnixStream::connect(dir.path().join("control")).unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut greeting = String::new();
    BufReader::new(client).read_line(&mut greeting).unwrap();
    assert!(
        greeting.starts_with("Receptor Control, node "),
        "{greeting}"
    );
    TcpStream::connect(address).unwrap();

    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait().code(), Some(0));
    // The socket belongs to the service manager, and so does its file.
    assert!(dir.path().join("control").exists());
}

#[test]
fn a_socket_of_an_unknown_name_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut command = with_sockets(&[("receptor", socket.as_fd())]);
    // Nothing is served in its place, and nothing is in the way of that message.
    let output = command
        .arg(dir.path().join("data"))
        .arg("--socket-path=/proc/no-such-place")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(78), "{}", stderr(&output));
    assert!(stderr(&output).contains("FileDescriptorName=mesh"));
}

#[test]
fn a_passed_socket_is_no_way_around_encryption() {
    let dir = tempfile::tempdir().unwrap();
    let mesh = TcpListener::bind("0.0.0.0:0").unwrap();
    let control = UnixListener::bind(dir.path().join("control")).unwrap();
    let port = mesh.local_addr().unwrap().port();
    let mut client = UnixStream::connect(dir.path().join("control")).unwrap();
    let mut command = with_sockets(&[("mesh", mesh.as_fd()), ("control", control.as_fd())]);
    let output = command.arg(dir.path().join("data")).output().unwrap();
    assert_eq!(output.status.code(), Some(78), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("expected a [[listen]] block"),
        "{}",
        stderr(&output)
    );
    // Who waited has been told that it waits for nothing.
    let mut told = String::new();
    client.read_to_string(&mut told).unwrap();
    assert!(told.contains("exit code 78"), "{told}");

    let mut command = with_sockets(&[("mesh", mesh.as_fd())]);
    command
        .arg(dir.path().join("data"))
        .args(["--allow-plaintext", "--listen"])
        .arg(format!("rnp://0.0.0.0:{port}"))
        .stderr(Stdio::null());
    let mut daemon = Daemon::start(dir.path(), command);
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn a_control_socket_that_another_daemon_answers_on_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("control");
    let start = |name: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_receptord"));
        command
            .env_clear()
            .args(["--config", "/dev/null", "--socket-path"])
            .arg(&socket)
            .arg("-d")
            .arg(dir.path().join(name));
        command
    };
    let mut first = start("a");
    first.stderr(Stdio::null());
    let mut daemon = Daemon::start(dir.path(), first);
    let mode = fs::metadata(&socket).unwrap().mode() & 0o777;
    assert_eq!(mode, 0o660);
    let output = start("b").output().unwrap();
    assert_eq!(output.status.code(), Some(69), "{}", stderr(&output));
    assert!(stderr(&output).contains("another process answers"));
    // What a killed daemon leaves behind is in nobody's way.
    daemon.signal(Signal::SIGKILL);
    daemon.wait();
    assert!(socket.exists());
    let other = dir.path().join("other");
    fs::create_dir(&other).unwrap();
    let mut third = start("b");
    third.stderr(Stdio::null());
    let mut daemon = Daemon::start(&other, third);
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait().code(), Some(0));
    assert!(!socket.exists());
}

#[test]
fn variables_that_promise_descriptors_that_are_not_there_end_the_start() {
    let output = Command::new("sh")
        .env_clear()
        .args(["-c", "LISTEN_PID=$$ LISTEN_FDS=5 exec \"$@\"", "sh"])
        .arg(env!("CARGO_BIN_EXE_receptord"))
        .arg("--check-config")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(69), "{}", stderr(&output));
}

#[test]
fn the_watchdog_is_fed_while_the_daemon_works() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = receptord();
    command
        .arg("-d")
        .arg(dir.path().join("data"))
        .env("WATCHDOG_USEC", "30000")
        .stderr(Stdio::null());
    let daemon = Daemon::start(dir.path(), command);
    for _ in 0..3 {
        assert_eq!(daemon.next(), "WATCHDOG=1\n");
    }
}
