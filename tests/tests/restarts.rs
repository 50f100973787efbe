//! What becomes of works whose node is restarted: in order or not, they are accounted for.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use nix::sys::prctl;
use receptor_tests::{Daemon, Mesh, wait_for};
use serde_json::{Value, json};

/// The plugin `step`: it notes the job, uses its payload's file as its own when there is one, and
/// waits for a file. `again` may be repeated.
struct Step {
    dir: PathBuf,
}

impl Step {
    fn install(mesh: &Mesh) -> Self {
        let dir = mesh.dir().join("step");
        fs::create_dir_all(dir.join("plugins")).unwrap();
        let script = format!(
            "#!/bin/sh\n\
             echo '{{\"type\":\"hello\",\"protocol\":1,\"name\":\"step\",\"version\":\"1\",\
             \"features\":[\"file\"],\"actions\":{{\
             \"once\":{{\"payload\":\"bytes\",\"output\":\"text\"}},\
             \"again\":{{\"payload\":\"bytes\",\"output\":\"text\",\"idempotent\":true}}}}}}'\n\
             read -r hello || exit 0\n\
             read -r job || exit 0\n\
             if [ -e payload ]; then wc -c <payload >>'{dir}/sizes'; echo more >>payload; fi\n\
             printf '%s\\n' \"$job\" >>'{dir}/runs'\n\
             while ! [ -e '{dir}/go' ]; do sleep 0.01; done\n\
             echo went\n",
            dir = dir.display()
        );
        let plugin = dir.join("plugins/step");
        fs::write(&plugin, script).unwrap();
        fs::set_permissions(&plugin, fs::Permissions::from_mode(0o755)).unwrap();
        Self { dir }
    }

    /// A node that has it and gives works no time to end when it stops.
    fn start_at(&self, mesh: &Mesh, name: &str, peer: &Daemon) -> Daemon {
        mesh.node(name)
            .config("[link]\nhold-time = \"1s\"\n")
            .config("[shutdown]\ndrain-timeout = \"10ms\"\n")
            .config("[plugins]\nallow-unsafe = true\nmax-works = 2\n")
            .arg("--plugins-dir")
            .arg(self.dir.join("plugins").to_str().unwrap())
            .peer(peer)
            .start()
    }

    /// The jobs that it got, in order.
    fn runs(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.dir.join("runs")).unwrap_or_default();
        let jobs = text.lines().map(|line| serde_json::from_str(line).unwrap());
        jobs.collect()
    }

    fn wait_runs(&self, count: usize) -> Vec<Value> {
        wait_for("the plugin to have its jobs", || {
            Some(self.runs()).filter(|runs| runs.len() >= count)
        })
    }

    fn go(&self) {
        fs::write(self.dir.join("go"), "").unwrap();
    }
}

fn send(at: &Daemon, action: &str, payload: &[u8]) -> String {
    let command = json!({
        "command": "send", "directive": format!("step:{action}"), "recipient": "b",
        "size": payload.len(), "detach": true,
    });
    let mut control = at.control();
    control.write(format!("{command}\n"));
    control.write(payload);
    let reply = control.reply();
    assert_eq!(reply["type"], "accepted", "{reply}");
    reply["id"].as_str().unwrap().to_owned()
}

/// How a work ended: its code and its error's.
fn end(at: &Daemon, id: &str) -> (Value, Value) {
    let work = wait_for("the work has ended", || {
        let command = json!({"command": "works", "id": id});
        let mut reply = at.control().json(&command.to_string());
        let work = reply["works"][0].take();
        work["ended_ms"].is_u64().then_some(work)
    });
    (work["code"].clone(), work["error"]["code"].clone())
}

/// The way in which a daemon is restarted.
type Restart = fn(&mut Daemon);

const CRASH: Restart = |daemon| {
    daemon.kill();
    daemon.restart();
};
const IN_ORDER: Restart = |daemon| {
    daemon.stop();
    daemon.restart();
};

/// Two works run and a third waits for its place when their node is restarted.
fn works_after(restart: Restart) {
    let mesh = Mesh::new();
    let a = mesh.node("a").start();
    let step = Step::install(&mesh);
    let mut b = step.start_at(&mesh, "b", &a);
    a.wait_ping("b");
    let once = send(&a, "once", b"x");
    step.wait_runs(1);
    let again = send(&a, "again", b"x");
    step.wait_runs(2);
    let waits = send(&a, "once", b"x");
    wait_for("it waits at b", || {
        let command = json!({"command": "works", "id": waits});
        let reply = b.control().json(&command.to_string());
        (reply["works"][0]["state"] == "queued").then_some(())
    });
    restart(&mut b);
    let runs = step.wait_runs(4);
    step.go();
    assert_eq!(end(&a, &once), (json!(1), json!("interrupted")));
    assert_eq!(end(&a, &again), (json!(0), Value::Null));
    assert_eq!(end(&a, &waits), (json!(0), Value::Null));
    let mut attempts: Vec<_> = runs[2..].iter().map(|run| run["attempt"].clone()).collect();
    attempts.sort_by_key(Value::as_u64);
    assert_eq!(attempts, [json!(1), json!(2)]);
    assert_eq!(step.runs().len(), 4);
}

#[test]
fn works_go_on_after_a_crash() {
    works_after(CRASH);
}

#[test]
fn a_restart_in_order_is_no_worse_than_a_crash() {
    works_after(IN_ORDER);
}

#[test]
fn a_volatile_work_is_answered_when_its_node_stops() {
    let mesh = Mesh::new();
    let a = mesh.node("a").start();
    let step = Step::install(&mesh);
    let mut b = step.start_at(&mesh, "b", &a);
    a.wait_ping("b");
    let mut control = a.control();
    let command = json!({
        "command": "send", "directive": "step:again", "recipient": "b", "payload": "x",
        "volatile": true,
    });
    let reply = control.json(&command.to_string());
    assert_eq!(reply["type"], "accepted", "{reply}");
    step.wait_runs(1);
    b.stop();
    let reply = control.reply();
    assert_eq!(reply["error"]["code"], "interrupted", "{reply}");
}

/// What the node has stored must be there as it came, whatever a plugin does with its file.
#[test]
fn a_plugin_that_changes_its_payload_loses_no_work() {
    let mesh = Mesh::new();
    let a = mesh.node("a").start();
    let step = Step::install(&mesh);
    let mut b = step.start_at(&mesh, "b", &a);
    a.wait_ping("b");
    let payload = vec![b'x'; 300_000];
    let once = send(&a, "once", &payload);
    step.wait_runs(1);
    let again = send(&a, "again", &payload);
    step.wait_runs(2);
    CRASH(&mut b);
    step.wait_runs(3);
    step.go();
    assert_eq!(end(&a, &once), (json!(1), json!("interrupted")));
    assert_eq!(end(&a, &again), (json!(0), Value::Null));
    let sizes = fs::read_to_string(step.dir.join("sizes")).unwrap();
    assert_eq!(sizes, "300000\n300000\n300000\n", "all got what was sent");
    let corrupt = fs::read_dir(b.data_dir().join("spool/corrupt")).unwrap();
    assert_eq!(corrupt.count(), 0);
}

/// What is left of a request is enough to tell its sender.
#[test]
fn a_request_that_is_damaged_at_its_recipient_is_answered() {
    let mesh = Mesh::new();
    let a = mesh.node("a").start();
    let step = Step::install(&mesh);
    let mut b = step.start_at(&mesh, "b", &a);
    a.wait_ping("b");
    let once = send(&a, "once", b"x");
    step.wait_runs(1);
    let again = send(&a, "again", b"x");
    step.wait_runs(2);
    b.kill();
    let mut damaged = 0;
    for file in fs::read_dir(b.data_dir().join("spool/segments")).unwrap() {
        let path = file.unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        while let Some(at) = bytes.windows(9).position(|word| word == b"step:once") {
            bytes[at] ^= 1;
            damaged += 1;
        }
        fs::write(&path, bytes).unwrap();
    }
    assert!(damaged > 0);
    b.restart();
    b.wait_log("a part of the spool is damaged");
    assert_eq!(end(&a, &once), (json!(1), json!("damaged")));
    step.go();
    assert_eq!(end(&a, &again), (json!(0), Value::Null));
}

/// Whoever has given its receipt owes an answer; with its disk a node loses what it owes.
#[test]
fn works_of_a_node_that_is_set_up_anew_are_lost() {
    let mesh = Mesh::new();
    let a = mesh.node("a").start();
    let step = Step::install(&mesh);
    let mut b = step.start_at(&mesh, "b", &a);
    a.wait_ping("b");
    let runs = send(&a, "again", b"x");
    step.wait_runs(1);
    let waits = send(&a, "once", b"x");
    for id in [&runs, &waits] {
        wait_for("a has its receipt", || {
            let command = json!({"command": "works", "id": id});
            let reply = a.control().json(&command.to_string());
            (reply["works"][0]["state"] == "sent").then_some(())
        });
    }
    b.kill();
    fs::remove_dir_all(b.data_dir()).unwrap();
    b.restart();
    for id in [runs, waits] {
        assert_eq!(end(&a, &id), (json!(1), json!("lost")));
    }
    step.go();
    let later = send(&a, "once", b"x");
    assert_eq!(end(&a, &later), (json!(0), Value::Null));
}

/// Processes of this one that have not become a plugin; those of daemons that are gone come here.
fn helpers() -> Vec<String> {
    let children = fs::read_dir("/proc/self/task").unwrap().flatten();
    let children = children.map(|task| fs::read_to_string(task.path().join("children")));
    let children: String = children.map(Result::unwrap_or_default).collect();
    let words = |pid: &str| fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let is_helper = |pid: &&str| words(pid) == b"receptord\0exec-plugin\0";
    let pids = children.split_whitespace().filter(is_helper);
    pids.map(str::to_owned).collect()
}

/// Asks a daemon that may be killed meanwhile.
fn ask_mortal(at: &Daemon, command: &Value) -> Option<Value> {
    let mut stream = UnixStream::connect(at.socket_path()).ok()?;
    writeln!(stream, "{command}").ok()?;
    let mut replies = BufReader::new(stream).lines().skip(1);
    serde_json::from_str(&replies.next()?.ok()?).ok()
}

/// A work is cancelled before its process has become the plugin, whose file is still being written,
/// and the daemon is killed while it sees to that.
#[test]
fn a_daemon_that_is_killed_while_it_kills_leaves_nothing_stopped() {
    prctl::set_child_subreaper(true).unwrap();
    let mesh = Mesh::new();
    let step = Step::install(&mesh);
    let library = receptor_tests::program("libreceptor_power.so");
    let mut b = mesh
        .node("b")
        .config("[plugins]\nallow-unsafe = true\n")
        .arg("--plugins-dir")
        .arg(step.dir.join("plugins").to_str().unwrap())
        .env("LD_PRELOAD", library.to_str().unwrap())
        .env("POWER_LOSS_AT_KILL", "1")
        .start();
    let first = send(&b, "once", b"x");
    step.wait_runs(1);
    step.go();
    assert_eq!(end(&b, &first), (json!(0), Value::Null));
    let file = step.dir.join("plugins/step");
    let _written = fs::OpenOptions::new().write(true).open(file).unwrap();
    let is_dead = |b: &Daemon| {
        let stat = fs::read_to_string(format!("/proc/{}/stat", b.pid())).unwrap();
        stat.contains(") Z ")
    };
    wait_for("the daemon has killed and was killed", || {
        let send = json!({
            "command": "send", "directive": "step:once", "recipient": "b", "payload": "x",
            "detach": true,
        });
        let id = |_| Some(ask_mortal(&b, &send)?["id"].clone());
        let ids: Vec<Value> = (0..4).filter_map(id).collect();
        wait_for("the last one runs or has ended", || {
            let works = ask_mortal(&b, &json!({"command": "works", "id": ids.last()}));
            let begun = |work: &Value| work["state"] == "running" || !work["ended_ms"].is_null();
            let works = works.as_ref().and_then(|reply| reply["works"].as_array());
            works
                .is_none_or(|works| works.iter().any(begun))
                .then_some(())
        });
        // There was a process for the first one ahead of time, and the last one has just begun.
        for id in ids.iter().rev() {
            ask_mortal(&b, &json!({"command": "cancel", "id": id}));
        }
        is_dead(&b).then_some(())
    });
    b.wait();
    wait_for("its processes have ended", || {
        helpers().is_empty().then_some(())
    });
}
