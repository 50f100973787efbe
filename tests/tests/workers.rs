//! Works that go on while their daemon is killed, stopped and started again.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use receptor_tests::manager::Manager;
use receptor_tests::{Control, Daemon, Mesh, wait_for};
use serde_json::{Value, json};

/// The plugin `count`, which says its process id and a number in each of its results.
const COUNT: &str = r#"#!/usr/bin/env python3
import json, os, sys, time
def say(**message):
    print(json.dumps(message), flush=True)
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
        let plugin = plugins.join("count");
        fs::write(&plugin, COUNT).unwrap();
        fs::set_permissions(&plugin, fs::Permissions::from_mode(0o755)).unwrap();
        let hold = "[link]\nhold-time = \"1s\"\n";
        let a = mesh.node("a").config(hold).start();
        let b = mesh
            .node("b")
            .config(hold)
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
    fn send(&self, action: &str, payload: &Value) -> Answer {
        let payload = payload.to_string();
        let command = json!({
            "command": "send", "directive": format!("count:{action}"), "recipient": "b",
            "size": payload.len(),
        });
        let mut control = self.a.control();
        control.write(format!("{command}\n{payload}"));
        Answer {
            control,
            numbers: Vec::new(),
            pids: Vec::new(),
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
    numbers: Vec<u64>,
    pids: Vec<u64>,
}

impl Answer {
    /// Takes the next line, and whether it was the last.
    fn next(&mut self) -> Option<Value> {
        let reply = self.control.reply();
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
        let mut answer = scene.send(action, &payload);
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
fn a_stop_in_order_leaves_works_running() {
    let mut scene = Scene::new();
    let go = scene.go();
    let mut answer = scene.send("lines", &json!({"count": 50, "wait": 25, "go": go}));
    answer.until(25);
    for _ in 0..3 {
        let begin = Instant::now();
        scene.b.stop();
        // Not the time for works to end.
        assert!(begin.elapsed() < Duration::from_secs(8), "it waited");
        assert_eq!(scene.manager.kept().len(), 1);
        scene.b.restart();
    }
    fs::write(go, "").unwrap();
    answer.finish(50);
    scene.wait_nothing_kept();
    for dir in ["jobs", "results"] {
        let dir = scene.b.data_dir().join(dir);
        wait_for("nothing to be left of the work", || {
            fs::read_dir(&dir).unwrap().next().is_none().then_some(())
        });
    }
}

#[test]
fn what_a_plugin_says_while_there_is_no_daemon_is_heard_by_the_next() {
    let mut scene = Scene::new();
    let go = scene.go();
    let mut answer = scene.send("lines", &json!({"count": 500, "wait": 10, "go": go}));
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
    let mut answer = scene.send("lines", &json!({"count": 20, "wait": 10, "go": go}));
    answer.until(10);
    scene.b.kill();
    scene.b.restart();
    let works = scene.a.control().json("{\"command\":\"works\"}");
    let id = works["works"][0]["id"].as_str().unwrap().to_owned();
    let command = json!({"command": "cancel", "id": id});
    scene.a.control().json(&command.to_string());
    let end = answer.end();
    assert_eq!(end["error"]["code"], "cancelled", "{end}");
    scene.wait_nothing_kept();
    assert!(!is_alive(answer.pids[0]));
}

#[test]
fn a_plugin_that_nobody_can_go_on_with_is_ended_and_its_work_was_cut_short() {
    let mut scene = Scene::new();
    let go = scene.go();
    let mut answer = scene.send("lines", &json!({"count": 20, "wait": 10, "go": go}));
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
    let mut answer = scene.send("lines", &json!({"count": 20, "wait": 10, "go": go}));
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
