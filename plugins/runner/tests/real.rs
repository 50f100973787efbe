//! The plugin with the ansible-runner and ansible-core that people install.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a test looks for the one it wants"
)]

#[expect(dead_code, reason = "the other file of tests uses the rest")]
mod common;

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::Read as _,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use common::{DEADLINE, Host, processes_of, refused};
use receptor_proto::plugin::{CancelReason, ErrorCode};
use serde_json::{Value, json};

const NONE: [PathBuf; 0] = [];

/// The directory of the programs to test with.
fn bin() -> PathBuf {
    let venv = std::env::var_os("RECEPTOR_TEST_VENV").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.venv"),
        PathBuf::from,
    );
    let bin = venv.join("bin");
    for program in ["ansible-runner", "ansible-playbook"] {
        assert!(
            bin.join(program).is_file(),
            "{program} is not in {}: run `make venv`, or name another virtual environment with \
             ansible-runner and ansible-core in RECEPTOR_TEST_VENV",
            bin.display()
        );
    }
    bin.canonicalize().unwrap()
}

/// As on a developer's machine: the right programs, but behind a directory of broken ones.
struct Env {
    _dir: tempfile::TempDir,
    path: String,
}

fn env() -> Env {
    let dir = tempfile::tempdir().unwrap();
    let shims = dir.path().join("shims");
    fs::create_dir(&shims).unwrap();
    for name in ["ansible-runner", "ansible", "python3", "python3.13"] {
        script(&shims.join(name), "echo this is a shim >&2; exit 127");
    }
    let path = format!(
        "{}:{}:/usr/local/bin:/usr/bin:/bin",
        shims.display(),
        bin().display()
    );
    Env { _dir: dir, path }
}

fn script(path: &Path, text: &str) {
    fs::write(path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn start(payload: &Value) -> Host {
    start_with(payload, &json!({}))
}

fn start_with(payload: &Value, config: &Value) -> Host {
    let mut host = Host::start(&env().path, config);
    host.execute_json(payload);
    host
}

/// One play on hosts that are this machine.
fn play(tasks: &Value) -> Value {
    json!({
        "playbook": [{"hosts": "all", "gather_facts": false, "tasks": tasks}],
        "inventory": "one",
        "extravars": {"ansible_connection": "local"},
    })
}

fn results(host: &Host) -> Vec<Value> {
    let data = host.data().into_iter();
    data.filter(|d| d["event"] == "runner_on_ok" || d["event"] == "runner_on_failed")
        .map(|d| d["event_data"]["res"].clone())
        .collect()
}

/// Every file below a directory, and every directory that is empty.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap().filter_map(Result::ok) {
        let path = entry.path();
        let inside = if entry.file_type().unwrap().is_dir() {
            files(&path)
        } else {
            Vec::new()
        };
        if inside.is_empty() {
            found.push(path);
        } else {
            found.extend(inside);
        }
    }
    found
}

#[test]
fn the_sample_of_the_documentation() {
    let payload = br#"{"module": "ping", "inventory": "localhost", "extravars": {"ansible_connection": "local"}, "host_pattern": "localhost"}"#;
    let mut host = Host::start(&env().path, &json!({}));
    host.execute_bytes(payload);
    let (code, result) = host.done();
    assert_eq!(code, 0, "{result}");
    assert_eq!(results(&host)[0]["ping"], "pong");
    assert_eq!(result["stats"]["ok"], json!({"localhost": 1}));
    assert!(result["ansible_runner"].is_string(), "{result}");
    assert_eq!(host.wait().code(), Some(0));
    assert_eq!(files(host.home()), NONE);
}

#[test]
fn the_results_are_a_stream_for_ansible_runner_process() {
    let payload = json!({
        "module": "ping", "inventory": "localhost", "host_pattern": "localhost",
        "extravars": {"ansible_connection": "local"},
    });
    let mut host = start(&payload);
    assert_eq!(host.done().0, 0);
    let lines: String = host.data().iter().map(|d| format!("{d}\n")).collect();
    let dir = tempfile::tempdir().unwrap();
    let mut process = Command::new(bin().join("ansible-runner"))
        .arg("process")
        .arg(dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut input = process.stdin.take().unwrap();
    input.write_all(lines.as_bytes()).unwrap();
    drop(input);
    assert!(process.wait().unwrap().success());
    let events = fs::read_dir(dir.path().join("artifacts/job_events")).unwrap();
    assert_eq!(events.count(), 4);
    host.wait();
}

#[test]
fn inventories_of_every_form() {
    for inventory in [
        json!("one,two"),
        json!("[web]\none\ntwo ansible_port=22\n"),
        json!(["one", "two,"]),
        json!({"all": {"children": {"web": {"hosts": {"one": {}, "two": null}}}}}),
    ] {
        let mut host = start(&json!({
            "module": "ping", "host_pattern": "all", "inventory": inventory,
            "extravars": {"ansible_connection": "local"},
        }));
        let (code, result) = host.done();
        assert_eq!(code, 0, "{inventory} {result}");
        assert_eq!(
            result["stats"]["ok"],
            json!({"one": 1, "two": 1}),
            "{inventory}"
        );
        host.wait();
    }
}

#[test]
fn a_playbook_in_the_payload() {
    let mut payload = play(&json!([
        {"name": "say", "debug": {"msg": "{{ greeting }} {{ lookup('env', 'WHO') }}"}},
        {"set_stats": {"data": {"answer": 42}}},
    ]));
    payload["extravars"]["greeting"] = json!("hello");
    payload["envvars"] = json!({"WHO": "mesh"});
    payload["receptor"] = json!({"events": "results"});
    let mut host = start(&payload);
    let (code, result) = host.done();
    assert_eq!(code, 0, "{result}");
    assert_eq!(result["artifact_data"], json!({"answer": 42}));
    assert_eq!(results(&host)[0]["msg"], "hello mesh");
    assert_eq!(
        host.events(),
        ["runner_on_ok", "runner_on_ok", "playbook_on_stats"]
    );
    host.wait();
}

#[test]
fn what_fails_says_so() {
    let mut host = start(&play(&json!([{"name": "no", "command": "false"}])));
    let (code, result) = host.done();
    assert_eq!(code, 2, "{result}");
    assert_eq!(result["stats"]["failures"], json!({"one": 1}));
    assert_eq!(results(&host)[0]["rc"], 1);
    assert_eq!(
        result["message"],
        "one: TASK [no]: non-zero return code (rc 1)"
    );
    host.wait();

    // As ssh ends when it gets no connection.
    let dir = tempfile::tempdir().unwrap();
    let ssh = dir.path().join("ssh");
    script(&ssh, "exit 255");
    let mut host = start(&json!({
        "module": "ping", "host_pattern": "all", "inventory": "far",
        "extravars": {"ansible_connection": "ssh", "ansible_ssh_executable": ssh},
    }));
    let (code, result) = host.done();
    assert_eq!(code, 4, "{result}");
    assert_eq!(result["stats"]["dark"], json!({"far": 1}));
    let message = result["message"].as_str().unwrap();
    assert!(
        message.starts_with("far: TASK [ping] unreachable: "),
        "{message}"
    );
    host.wait();

    let mut host = start(&json!({"playbook": "no-such.yml", "inventory": "one"}));
    let (code, result) = host.done();
    assert_eq!(code, 1, "{result}");
    assert!(
        result["output"].as_str().unwrap().contains("no-such.yml"),
        "{result}"
    );
    host.wait();
}

#[test]
fn no_host_matched() {
    let mut payload = play(&json!([]));
    payload["playbook"][0]["hosts"] = json!("web");
    let mut host = start(&payload);
    let (code, result) = host.done();
    assert_eq!(
        (code, &result["no_hosts_matched"]),
        (3, &json!(true)),
        "{result}"
    );
    host.wait();
    let mut host = start(&json!({"module": "ping", "host_pattern": "web", "inventory": "one"}));
    assert_eq!(host.done().0, 3);
    host.wait();
}

#[test]
fn a_result_that_ansible_runner_drops_is_reported() {
    let mut host = start(&play(&json!([
        {"name": "much", "shell": "head -c 1000000 /dev/zero | tr '\\0' x"},
    ])));
    let (code, result) = host.done();
    assert_eq!(
        (code, &result["results_dropped"]),
        (0, &json!(1)),
        "{result}"
    );
    assert_eq!(host.logs().len(), 1);
    host.wait();
}

#[test]
fn a_role_of_a_project_in_any_language() {
    let dir = tempfile::tempdir().unwrap();
    let tasks = dir.path().join("roles/greet/tasks");
    fs::create_dir_all(&tasks).unwrap();
    let task = r#"[{"name": "brich", "fail": {"msg": "kaputt — {{ who }} 🚀"}}]"#;
    fs::write(tasks.join("main.yml"), task).unwrap();
    let payload = json!({
        "project": "site", "role": "greet", "role_vars": {"who": "wörld"}, "role_skip_facts": true,
        "hosts": "one", "inventory": "one", "extravars": {"ansible_connection": "local"},
    });
    let config = json!({"projects": {"site": dir.path()}});
    let mut host = start_with(&payload, &config);
    let (code, result) = host.done();
    assert_eq!(code, 2, "{result} {}", host.raw());
    assert_eq!(results(&host)[0]["msg"], "kaputt — wörld 🚀");
    let message = result["message"].as_str().unwrap();
    assert!(message.ends_with("]: kaputt — wörld 🚀"), "{message}");
    host.wait();
}

#[test]
fn a_project_of_the_node_with_a_vault() {
    let dir = tempfile::tempdir().unwrap();
    let play = json!([{
        "hosts": "all", "gather_facts": false, "vars_files": ["secret.yml"], "roles": ["greet"],
    }]);
    fs::write(dir.path().join("site.yml"), play.to_string()).unwrap();
    let tasks = dir.path().join("roles/greet/tasks");
    fs::create_dir_all(&tasks).unwrap();
    fs::write(
        tasks.join("main.yml"),
        r#"[{"debug": {"msg": "{{ secret | length }}"}}]"#,
    )
    .unwrap();
    fs::write(dir.path().join("hosts"), "one ansible_connection=local\n").unwrap();
    fs::write(dir.path().join("secret.yml"), "secret: twelve chars\n").unwrap();
    fs::write(dir.path().join("password"), "canary\n").unwrap();
    let encrypted = Command::new(bin().join("ansible-vault"))
        .args(["encrypt", "--vault-password-file", "password", "secret.yml"])
        .current_dir(dir.path())
        .output()
        .unwrap();
    assert!(encrypted.status.success(), "{encrypted:?}");

    let config = json!({"projects": {"site": dir.path()}, "allow": ["cmdline"]});
    let payload = json!({
        "project": "site", "playbook": "site.yml", "inventory": "hosts",
        "cmdline": "--ask-vault-pass", "passwords": {"^Vault password:\\s*?$": "canary"},
    });
    let mut host = start_with(&payload, &config);
    let (code, result) = host.done();
    assert_eq!(code, 0, "{result} {}", host.raw());
    assert_eq!(results(&host)[0]["msg"], 12);
    assert!(!host.raw().contains("canary"));
    host.wait();
}

/// A play that works for ever, in ways that are hard to end.
fn endless() -> Value {
    play(&json!([
        {"name": "stubborn", "shell": "(trap '' TERM HUP; setsid sleep 600 >/dev/null 2>&1 &)"},
        {"name": "endless", "command": "sleep 600"},
    ]))
}

/// Waits until the endless task runs.
fn wait_until_endless(host: &Host) {
    let until = Instant::now() + DEADLINE;
    loop {
        let sleeps = processes_of(&host.id)
            .iter()
            .filter(|p| p.starts_with("sleep 600"))
            .count();
        if sleeps == 2 {
            return;
        }
        assert!(Instant::now() < until, "{:?}", processes_of(&host.id));
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_cancel_leaves_no_process_and_no_file() {
    let mut host = start(&endless());
    wait_until_endless(&host);
    let started = Instant::now();
    host.cancel(CancelReason::User);
    refused(host.finish(), &ErrorCode::Canceled, "endless");
    assert!(
        started.elapsed() < Duration::from_secs(20),
        "{:?}",
        started.elapsed()
    );
    assert_eq!(files(host.home()), NONE);
}

#[test]
fn a_timeout_leaves_no_process_and_no_file() {
    let mut payload = endless();
    payload["settings"] = json!({"job_timeout": 6});
    let mut host = start(&payload);
    refused(host.finish(), &ErrorCode::Timeout, "longer than 6 s");
    assert_eq!(files(host.home()), NONE);
}

#[test]
fn the_end_of_the_daemon_leaves_no_process_and_no_file() {
    let mut host = start(&endless());
    wait_until_endless(&host);
    host.close();
    refused(host.finish(), &ErrorCode::Canceled, "endless");
    assert_eq!(files(host.home()), NONE);
}

#[test]
fn two_jobs_at_once_do_not_meet() {
    let say = |text: &str| play(&json!([{"name": text, "command": format!("echo {text}")}]));
    let mut one = start(&say("first"));
    let mut two = start(&say("second"));
    for (host, text) in [(&mut one, "first"), (&mut two, "second")] {
        assert_eq!(host.done().0, 0);
        assert_eq!(results(host)[0]["stdout"], text);
        host.wait();
    }
}

#[test]
fn secrets_are_in_no_message_and_on_no_command_line() {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key");
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "test", "-f"])
        .arg(&key)
        .status();
    assert!(
        made.is_ok_and(|s| s.success()),
        "ssh-keygen is needed: install openssh-client"
    );
    let key = fs::read_to_string(key).unwrap();
    let inside = key.lines().nth(2).unwrap().to_owned();

    let mut payload = play(&json!([{
        "name": "use them",
        "no_log": true,
        "shell": "test -n \"$ENV_SECRET\" && read -r x && test -n \"$x\" && ssh-add -l && sleep 1",
        "args": {"stdin": "{{ secret }}{{ host_secret }}"},
    }]));
    payload["extravars"]["secret"] = json!("canary-extravar");
    payload["envvars"] = json!({"ENV_SECRET": "canary-envvar"});
    payload["passwords"] = json!({"^Password:\\s*?$": "canary-password"});
    payload["inventory"] = json!("one host_secret=canary-inventory");
    payload["ssh_key"] = json!(key);
    payload["receptor"] = json!({"artifacts": true});
    let mut host = start(&payload);

    let mut seen = BTreeSet::new();
    let until = Instant::now() + DEADLINE;
    while !host.raw().contains("\"type\":\"done\"") && !host.raw().contains("\"type\":\"error\"") {
        seen.extend(processes_of(&host.id));
        assert!(Instant::now() < until, "{}", host.raw());
        std::thread::sleep(Duration::from_millis(10));
    }
    let (code, result) = host.done();
    assert_eq!(code, 0, "{result} {}", host.raw());
    assert!(
        seen.iter().any(|line| line.contains("ssh-add")),
        "{seen:#?}"
    );
    assert!(
        seen.iter().any(|line| line.contains("ansible-playbook")),
        "{seen:#?}"
    );
    for secret in ["canary", &inside] {
        for line in &seen {
            assert!(!line.contains(secret), "{line}");
        }
        assert!(!host.raw().contains(secret), "{secret} in {}", host.raw());
    }
    host.wait();
    assert_eq!(files(host.home()), NONE);

    let archive = File::open(host.dir().join("artifacts.zip")).unwrap();
    let mut archive = zip::ZipArchive::new(archive).unwrap();
    let mut names = BTreeSet::new();
    for index in 0..archive.len() {
        let mut member = archive.by_index(index).unwrap();
        let mut text = String::new();
        member.read_to_string(&mut text).unwrap();
        for secret in ["canary", &inside] {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
        names.insert(member.name().unwrap().into_owned());
    }
    for name in ["rc", "status", "command", "stdout"] {
        assert!(names.contains(name), "{name} is not in {names:?}");
    }
}

#[test]
fn health_knows_the_versions() {
    let mut host = Host::start(&env().path, &json!({}));
    assert!(host.hello().ready);
    host.execute("health", None);
    assert_eq!(host.done().0, 0);
    let health = host.data().remove(0);
    for package in ["ansible_runner", "ansible_core"] {
        let version = health[package]["version"].as_str().unwrap();
        assert!(version.starts_with("2."), "{health}");
    }
    host.wait();
}
