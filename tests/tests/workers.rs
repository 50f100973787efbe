//! Works that go on while their daemon is killed, stopped and started again.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use receptor_tests::manager::Manager;
use receptor_tests::{Control, Daemon, Mesh, wait_for};
use serde_json::{Value, json};

/// The plugin `count`, which says its process id and a number in each of its results. While there is a file `gate`
/// beside its directory a process for a work says nothing, and adds a line to it when it is there.
const COUNT: &str = r#"#!/usr/bin/env python3
import json, os, sys, time
def say(**message):
    print(json.dumps(message), flush=True)
gate = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "gate")
if "RECEPTOR_JOB_ID" in os.environ and os.path.exists(gate):
    with open(gate, "a") as file:
        file.write("here\n")
    while os.path.exists(gate):
        time.sleep(0.005)
json_out = {"payload": "json"}
say(type="hello", protocol=1, name="count", version="1", features=["file"],
    actions={"lines": json_out, "files": json_out, "text": {"payload": "json", "output": "text"}})
hello = sys.stdin.readline()
job = json.loads(sys.stdin.readline())
action, payload = job["action"], job["payload"]
for number in range(1, payload["count"] + 1):
    result = {"number": number, "pid": os.getpid(), "pad": "x" * payload.get("pad", 0)}
    if action == "text":
        print(json.dumps(result), flush=True)
    elif action == "files":
        name = f"out-{number}"
        with open(name, "w") as file:
            json.dump(result, file)
        say(type="data", id=job["id"], file=name)
    else:
        say(type="data", id=job["id"], data=result)
    if action != "text" and number % 7 == 0:
        say(type="status", id=job["id"], state="running", progress=[number, payload["count"]])
    while payload.get("wait") == number and not os.path.exists(payload["go"]):
        time.sleep(0.005)
    time.sleep(payload.get("pause", 0))
if action != "text":
    say(type="done", id=job["id"], code=0, result={"pid": os.getpid()})
"#;

/// The plugin `many`, which does in one process what `count` does in many.
const MANY: &str = r#"#!/usr/bin/env python3
import json, os, sys, threading, time
lock = threading.Lock()
def say(**message):
    with lock:
        print(json.dumps(message), flush=True)
json_out = {"payload": "json"}
say(type="hello", protocol=1, name="many", version="1", mode="serve", max_jobs=16,
    features=["file", "cancel"], actions={"lines": json_out, "files": json_out, "again": dict(json_out, idempotent=True)})
cancelled = set()
def run(job):
    id, payload = job["id"], job["payload"]
    for number in range(1, payload["count"] + 1):
        result = {"number": number, "pid": os.getpid(), "pad": "x" * payload.get("pad", 0)}
        if job["action"] == "files":
            name = f"{id}-{number}"
            with open(name, "w") as file:
                json.dump(result, file)
            say(type="data", id=id, file=name)
        else:
            say(type="data", id=id, data=result)
        if number % 7 == 0:
            say(type="status", id=id, state="running", progress=[number, payload["count"]])
        while payload.get("wait") == number and not os.path.exists(payload["go"]) and id not in cancelled:
            time.sleep(0.005)
        if id in cancelled:
            return say(type="error", id=id, error={"code": "cancelled", "message": "cancelled"})
        time.sleep(payload.get("pause", 0))
    say(type="done", id=id, code=0, result={"pid": os.getpid()})
for line in sys.stdin:
    message = json.loads(line)
    if message["type"] == "execute":
        threading.Thread(target=run, args=[message], daemon=True).start()
    elif message["type"] == "cancel":
        cancelled.add(message["id"])
    elif message["type"] == "shutdown":
        break
"#;

struct Scene {
    mesh: Mesh,
    manager: Manager,
    a: Daemon,
    b: Daemon,
}

impl Scene {
    fn new() -> Self {
        let mesh = Mesh::new();
        let manager = Manager::start(&mesh.dir().join("manager"));
        let plugins = mesh.dir().join("plugins");
        fs::create_dir_all(&plugins).unwrap();
        for (name, text) in [("count", COUNT), ("many", MANY)] {
            let plugin = plugins.join(name);
            fs::write(&plugin, text).unwrap();
            fs::set_permissions(&plugin, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let hold = "[link]\nhold-time = \"1s\"\n";
        let a = mesh.node("a").config(hold).start();
        let b = mesh
            .node("b")
            .config(hold)
            // Longer than any stop is waited for: none of them drains.
            .config("[shutdown]\ndrain-timeout = \"10m\"")
            .config(&manager.config())
            .arg("--plugins-dir")
            .arg(plugins.to_str().unwrap())
            .peer(&a)
            .managed(&manager)
            .start();
        a.wait_reachable(["b"]);
        Self {
            mesh,
            manager,
            a,
            b,
        }
    }

    fn go(&self) -> PathBuf {
        self.mesh.dir().join("go")
    }

    /// Sends a job to b; its responses come over what is returned.
    fn send(&self, directive: &str, payload: &Value) -> Answer {
        let payload = payload.to_string();
        let command = json!({
            "command": "send", "directive": directive, "recipient": "b",
            "size": payload.len(),
        });
        let mut control = self.a.control();
        control.write(format!("{command}\n{payload}"));
        Answer {
            control,
            id: String::new(),
            numbers: Vec::new(),
            pids: Vec::new(),
        }
    }

    fn cancel(&self, id: &str) {
        let command = json!({"command": "cancel", "id": id});
        self.a.control().json(&command.to_string());
    }

    fn wait_nothing_left(&self) {
        for dir in ["jobs", "results"] {
            let dir = self.b.data_dir().join(dir);
            wait_for("nothing to be left of the work", || {
                fs::read_dir(&dir).unwrap().next().is_none().then_some(())
            });
        }
    }

    fn wait_nothing_kept(&self) {
        wait_for("the store to be empty", || {
            self.manager.kept().is_empty().then_some(())
        });
    }
}

/// What came of a job.
struct Answer {
    control: Control,
    id: String,
    numbers: Vec<u64>,
    pids: Vec<u64>,
}

impl Answer {
    /// Takes the next line, and whether it was the last.
    fn next(&mut self) -> Option<Value> {
        let reply = self.control.reply();
        if reply["type"] == "accepted" {
            reply["id"].as_str().unwrap().clone_into(&mut self.id);
        }
        if reply["eof"] == true {
            return Some(reply);
        }
        if reply["serial"].is_u64() {
            let result: Value = if let Some(size) = reply["size"].as_u64() {
                let bytes = self.control.raw(usize::try_from(size).unwrap());
                serde_json::from_slice(&bytes).unwrap()
            } else if let Some(text) = reply["text"].as_str() {
                serde_json::from_str(text).unwrap()
            } else {
                reply["data"].clone()
            };
            self.numbers.push(result["number"].as_u64().unwrap());
            self.pids.push(result["pid"].as_u64().unwrap());
        }
        None
    }

    fn until(&mut self, number: u64) {
        while self.numbers.last().is_none_or(|last| *last < number) {
            assert_eq!(self.next(), None);
        }
    }

    /// Takes the rest, and returns the last of it.
    fn end(&mut self) -> Value {
        loop {
            if let Some(end) = self.next() {
                return end;
            }
        }
    }

    /// Takes the rest, which must be complete: every number once and in order, and one process.
    fn finish(&mut self, count: u64) {
        let end = self.end();
        assert_eq!(end["code"], 0, "{end}");
        assert_eq!(self.numbers, (1..=count).collect::<Vec<_>>());
        self.pids.dedup();
        assert_eq!(self.pids.len(), 1, "{:?}", self.pids);
    }
}

#[test]
fn no_response_is_lost_or_doubled_however_often_the_daemon_is_killed() {
    let mut scene = Scene::new();
    for (action, count, pause) in [
        ("lines", 4000, 0.001),
        ("text", 4000, 0.001),
        ("files", 400, 0.01),
    ] {
        let payload = json!({"count": count, "pause": pause, "pad": 300});
        let mut answer = scene.send(&format!("count:{action}"), &payload);
        for number in [1, count / 5, count / 3, count / 3 + 1, count / 2, count - 1] {
            answer.until(number);
            scene.b.kill();
            scene.b.restart();
        }
        answer.finish(count);
        scene.wait_nothing_kept();
    }
}

#[test]
fn works_that_share_a_process_lose_nothing_either() {
    let mut scene = Scene::new();
    for (action, count, pause) in [("lines", 1000, 0.004), ("files", 200, 0.02)] {
        let directive = format!("many:{action}");
        let payload = json!({"count": count, "pause": pause, "pad": 300});
        // One after the other, so that each crash finds all of them somewhere else.
        let mut answers: Vec<Answer> = Vec::new();
        for _ in 0..4 {
            answers.push(scene.send(&directive, &payload));
            answers.last_mut().unwrap().until(20);
        }
        for number in [
            21,
            count / 5,
            count / 3,
            count / 3 + 1,
            count / 2,
            count - 1,
        ] {
            for answer in &mut answers {
                answer.until(number);
            }
            scene.b.kill();
            scene.b.restart();
        }
        for answer in &mut answers {
            answer.finish(count);
        }
        let pids: BTreeSet<u64> = answers.iter().map(|answer| answer.pids[0]).collect();
        assert_eq!(pids.len(), 1, "one process has them all: {pids:?}");
        scene.wait_nothing_kept();
    }
    scene.wait_nothing_left();
}

#[test]
fn a_stop_in_order_leaves_a_serving_process_once_nothing_in_it_would_be_lost() {
    let mut scene = Scene::new();
    let go = scene.go();
    let payload = json!({"count": 50, "wait": 25, "go": go});
    let mut answers: Vec<Answer> = (0..3).map(|_| scene.send("many:lines", &payload)).collect();
    for answer in &mut answers {
        answer.until(25);
    }
    for _ in 0..3 {
        scene.b.stop();
        assert_eq!(scene.manager.kept().len(), 1);
        scene.b.restart();
    }
    // New works are for a new process.
    let mut later = scene.send("many:lines", &json!({"count": 3}));
    later.finish(3);
    assert_ne!(later.pids, answers[0].pids);
    fs::write(go, "").unwrap();
    for answer in &mut answers {
        answer.finish(50);
    }
    let pid = answers[0].pids[0];
    wait_for("the process to end with its works", || {
        (!is_alive(pid)).then_some(())
    });
}

#[test]
fn a_work_of_a_serving_process_is_cancelled_by_a_daemon_that_did_not_start_it() {
    let mut scene = Scene::new();
    let go = scene.go();
    let payload = json!({"count": 20, "wait": 10, "go": go});
    let mut first = scene.send("many:lines", &payload);
    first.until(10);
    let mut second = scene.send("many:lines", &payload);
    second.until(10);
    scene.b.kill();
    scene.b.restart();
    scene.cancel(&first.id);
    let end = first.end();
    assert_eq!(end["error"]["code"], "cancelled", "{end}");
    fs::write(go, "").unwrap();
    second.finish(20);
    assert_eq!(first.pids[0], second.pids[0]);
    scene.wait_nothing_kept();
}

#[test]
fn what_a_serving_process_says_while_there_is_no_daemon_is_heard_by_the_next() {
    let mut scene = Scene::new();
    let go = scene.go();
    let payload = json!({"count": 500, "wait": 10, "go": go});
    let mut answers: Vec<Answer> = (0..3).map(|_| scene.send("many:lines", &payload)).collect();
    for answer in &mut answers {
        answer.until(10);
    }
    scene.b.kill();
    fs::write(go, "").unwrap();
    // A process that dies meanwhile has said all the same what it has said.
    let pid = Pid::from_raw(i32::try_from(answers[0].pids[0]).unwrap());
    wait_for("the plugin to have nothing to do", || {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        (tasks.count() == 1).then_some(())
    });
    kill(pid, Signal::SIGKILL).unwrap();
    scene.b.restart();
    for answer in &mut answers {
        answer.finish(500);
    }
    scene.wait_nothing_kept();
}

#[test]
fn a_work_that_runs_again_is_not_left_and_does_not_disturb_the_others() {
    let mut scene = Scene::new();
    let go = scene.go();
    let payload = json!({"count": 20, "wait": 10, "go": go});
    let mut again = scene.send("many:again", &payload);
    again.until(10);
    let mut once = scene.send("many:lines", &payload);
    once.until(10);
    scene.b.kill();
    // Nothing was kept, so that one ends and the other begins again.
    scene.manager.forget();
    scene.b.restart();
    let end = once.end();
    assert_eq!(end["error"]["code"], "interrupted", "{end}");
    while again.numbers.len() < 20 {
        assert_eq!(again.next(), None);
    }
    let mut other = scene.send("many:lines", &payload);
    other.until(10);
    assert_eq!(again.pids.last(), other.pids.last());
    // Of one process a work goes on, and the second attempt is not heard any more.
    scene.b.kill();
    scene.b.restart();
    while again.numbers.len() < 30 {
        assert_eq!(again.next(), None);
    }
    fs::write(go, "").unwrap();
    other.finish(20);
    let end = again.end();
    assert_eq!(end["code"], 0, "{end}");
    let begun = || 1..=10;
    let all: Vec<u64> = begun().chain(begun()).chain(1..=20).collect();
    assert_eq!(again.numbers, all);
    again.pids.dedup();
    assert_eq!(again.pids.len(), 3);
    // What the second attempt had is let go with the work that went on; the third one's process serves on.
    wait_for("the earlier process to go", || {
        (scene.manager.kept().len() == 1).then_some(())
    });
}

#[test]
fn a_stop_in_order_leaves_works_running() {
    let mut scene = Scene::new();
    let go = scene.go();
    let mut answer = scene.send("count:lines", &json!({"count": 50, "wait": 25, "go": go}));
    answer.until(25);
    for _ in 0..3 {
        // Without the time for works to end.
        scene.b.stop();
        assert_eq!(scene.manager.kept().len(), 1);
        scene.b.restart();
    }
    fs::write(go, "").unwrap();
    answer.finish(50);
    scene.wait_nothing_kept();
    scene.wait_nothing_left();
}

#[test]
fn a_work_whose_plugin_says_its_hello_to_a_daemon_that_stops_goes_on() {
    let mut scene = Scene::new();
    let gate = scene.mesh.dir().join("gate");
    for (stops, action) in [(1, "text"), (2, "lines")] {
        fs::write(&gate, "").unwrap();
        let mut answer = scene.send(&format!("count:{action}"), &json!({"count": 10}));
        wait_for("the plugin's process", || {
            (fs::read_to_string(&gate).unwrap() == "here\n").then_some(())
        });
        scene.b.signal(Signal::SIGTERM);
        wait_for("the stop to begin", || {
            (scene.b.log().matches(" stopping").count() == stops).then_some(())
        });
        fs::remove_file(&gate).unwrap();
        assert_eq!(scene.b.wait().code(), Some(0));
        scene.b.restart();
        answer.finish(10);
        scene.wait_nothing_kept();
    }
}

#[test]
fn what_a_plugin_says_while_there_is_no_daemon_is_heard_by_the_next() {
    let mut scene = Scene::new();
    let go = scene.go();
    let mut answer = scene.send("count:lines", &json!({"count": 500, "wait": 10, "go": go}));
    answer.until(10);
    scene.b.kill();
    fs::write(go, "").unwrap();
    let pid = answer.pids[0];
    wait_for("the plugin to end", || (!is_alive(pid)).then_some(()));
    scene.b.restart();
    answer.finish(500);
    scene.wait_nothing_kept();
}

#[test]
fn a_work_is_cancelled_by_a_daemon_that_did_not_start_it() {
    let mut scene = Scene::new();
    let go = scene.go();
    let mut answer = scene.send("count:lines", &json!({"count": 20, "wait": 10, "go": go}));
    answer.until(10);
    scene.b.kill();
    scene.b.restart();
    scene.cancel(&answer.id);
    let end = answer.end();
    assert_eq!(end["error"]["code"], "cancelled", "{end}");
    scene.wait_nothing_kept();
    assert!(!is_alive(answer.pids[0]));
}

#[test]
fn a_plugin_that_nobody_can_go_on_with_is_ended_and_its_work_was_cut_short() {
    let mut scene = Scene::new();
    let go = scene.go();
    let mut answer = scene.send("count:lines", &json!({"count": 20, "wait": 10, "go": go}));
    answer.until(10);
    scene.b.stop();
    // As a service manager does with a service that stays down.
    scene.manager.forget();
    scene.wait_nothing_kept();
    wait_for("the plugin to end", || {
        (!is_alive(answer.pids[0])).then_some(())
    });
    scene.b.restart();
    let end = answer.end();
    assert_eq!(end["error"]["code"], "interrupted", "{end}");
}

#[test]
fn a_unit_that_is_killed_is_a_plugin_that_died() {
    let scene = Scene::new();
    let go = scene.go();
    let mut answer = scene.send("count:lines", &json!({"count": 20, "wait": 10, "go": go}));
    answer.until(10);
    let pid = Pid::from_raw(i32::try_from(answer.pids[0]).unwrap());
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let holder = stat.rsplit(") ").next().unwrap().split(' ').nth(1).unwrap();
    kill(Pid::from_raw(holder.parse().unwrap()), Signal::SIGKILL).unwrap();
    let end = answer.end();
    assert_eq!(end["error"]["code"], "plugin-exit", "{end}");
    assert_eq!(end["error"]["detail"]["signal"], "SIGKILL", "{end}");
    scene.wait_nothing_kept();
}

fn is_alive(pid: u64) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}
