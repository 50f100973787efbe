//! The plugin with a stand-in for ansible-runner that repeats recorded streams or misbehaves.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a test looks for the one it wants"
)]

mod common;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use common::{End, Host, processes_of, refused};
use receptor_proto::plugin::{CancelReason, ErrorCode, Payload, PluginMessage};
use serde_json::{Value, json};

fn fake() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake")
}

fn path() -> String {
    format!("{}:/usr/bin:/bin", fake().display())
}

fn start(module: &str) -> Host {
    start_with(module, &json!({}), &json!({}))
}

fn start_with(module: &str, config: &Value, more: &Value) -> Host {
    let mut host = Host::start(path(), config);
    let mut payload = json!({"module": module, "host_pattern": "all"});
    for (key, value) in more.as_object().unwrap() {
        payload[key] = value.clone();
    }
    host.execute_json(&payload);
    host
}

#[test]
fn a_recorded_job() {
    let mut host = start("ping");
    let (code, result) = host.done();
    assert_eq!(code, 0, "{result}");
    assert_eq!(result["status"], "successful");
    assert_eq!(result["events"], 4);
    assert_eq!(result["stats"]["ok"], json!({"localhost": 1}));
    assert_eq!(
        host.events(),
        [
            "playbook_on_start",
            "runner_on_start",
            "runner_on_ok",
            "playbook_on_stats"
        ]
    );
    let data = host.data();
    let statuses: Vec<&Value> = data.iter().filter_map(|d| d.get("status")).collect();
    assert_eq!(statuses, ["starting", "running", "successful"]);
    assert_eq!(data.last().unwrap(), &json!({"eof": true}));
    assert!(data.iter().all(|d| d.get("env").is_none()));
    assert_eq!(host.wait().code(), Some(0));
}

#[test]
fn however_the_bytes_arrive() {
    let mut host = start("half-lines");
    assert_eq!(host.done().0, 0);
    assert_eq!(host.events().len(), 4);
    host.wait();
}

#[test]
fn a_failed_task_is_a_result_and_not_an_error() {
    let mut host = start("failed");
    let (code, result) = host.done();
    assert_eq!(code, 2);
    assert_eq!(result["status"], "failed");
    assert_eq!(result["stats"]["failures"], json!({"localhost": 1}));
    host.wait();

    let mut host = start("unreachable");
    let (code, result) = host.done();
    assert_eq!(code, 4);
    assert_eq!(result["stats"]["dark"], json!({"nohost.invalid": 1}));
    host.wait();
}

#[test]
fn no_host_is_no_success_unless_that_is_wanted() {
    for module in ["nohosts-adhoc", "nohosts-play"] {
        let mut host = start(module);
        let (code, result) = host.done();
        assert_eq!(
            (code, &result["no_hosts_matched"]),
            (3, &json!(true)),
            "{module}"
        );
        host.wait();
    }
    let more = json!({"receptor": {"fail_on_no_hosts": false}});
    let mut host = start_with("nohosts-play", &json!({}), &more);
    let (code, result) = host.done();
    assert_eq!((code, &result["no_hosts_matched"]), (0, &json!(true)));
    host.wait();
}

#[test]
fn an_event_of_twenty_megabytes_is_cut_and_marked() {
    let mut host = start("twenty-megabytes");
    let (code, result) = host.done();
    assert_eq!((code, &result["events_cut"]), (0, &json!(1)));
    let data = host.data();
    let event = data
        .iter()
        .find(|d| d.get("receptor_cut").is_some())
        .unwrap();
    assert_eq!(event["event"], "runner_on_ok");
    let stdout = event["stdout"].as_str().unwrap();
    assert!(stdout.starts_with("ää") && stdout.ends_with("[cut]"));
    assert!(event.to_string().len() <= 262_144);
    let peak = peak_memory(&mut host);
    assert!(peak < 64 * 1024, "the plugin took {peak} KiB");
}

/// The most memory in KiB that the plugin, which has ended its job, ever took.
fn peak_memory(host: &mut Host) -> u64 {
    // It may be gone already, and then took less than what is asked for below.
    let status = fs::read_to_string(format!("/proc/{}/status", host.pid())).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak = line.and_then(|l| l.trim().trim_end_matches("kB").trim().parse().ok());
    host.wait();
    peak.unwrap_or(0)
}

#[test]
fn a_stream_that_breaks_off_is_an_error() {
    for module in ["no-eof", "no-end", "killed"] {
        let mut host = start(module);
        refused(
            host.finish(),
            &ErrorCode::Internal,
            "in the middle of the job",
        );
    }
    let mut host = start("traceback");
    refused(
        host.finish(),
        &ErrorCode::Internal,
        "TypeError: unexpected keyword",
    );
    let mut host = start("status-error");
    refused(host.finish(), &ErrorCode::Internal, "Failed to JSON parse");
    let mut host = start("not-found");
    refused(
        host.finish(),
        &ErrorCode::MissingDependency,
        "not executable: ansible",
    );
    let mut host = start("locale");
    refused(host.finish(), &ErrorCode::Internal, "locale");
}

#[test]
fn lines_that_are_no_messages_are_counted_and_never_passed_on() {
    let mut host = start("garbage");
    assert_eq!(host.done().0, 0);
    assert_eq!(host.events().len(), 4);
    assert_eq!(host.logs(), ["2 lines of ansible-runner were no messages"]);
    host.wait();
}

#[test]
fn a_cancel_ends_the_job_at_once() {
    let mut host = start("ends-when-told");
    host.wait_until_running();
    // All the time that a job is ever given to end by itself, which this one has no need of.
    host.cancel_within(CancelReason::User, 60_000);
    let End::Error(error) = host.finish() else {
        panic!("it was cancelled")
    };
    assert_eq!(error.code, ErrorCode::Canceled, "{error:?}");
    assert!(error.message.contains("(user)"), "{error:?}");
    let details: Value = error.details.unwrap().to().unwrap();
    assert_eq!(details["killed"], 0, "{details}");
    let data = host.data();
    assert!(data.iter().any(|d| d["status"] == "canceled"), "{data:?}");
}

#[test]
fn a_cancel_ends_a_job_that_does_not_listen() {
    for module in ["ignores-term", "ignores-term-with-children"] {
        let mut host = start(module);
        host.wait_until_running();
        assert!(!processes_of(&host.id).is_empty());
        host.cancel(CancelReason::Timeout);
        let error = host.error();
        assert_eq!(error.code, ErrorCode::Timeout, "{error:?}");
        let details: Value = error.details.unwrap().to().unwrap();
        assert!(details["killed"].as_u64().unwrap() >= 1, "{details}");
        host.wait();
    }
}

#[test]
fn the_end_of_the_daemon_ends_the_job() {
    let mut host = start("ends-when-told");
    host.wait_until_running();
    host.close();
    refused(host.finish(), &ErrorCode::Canceled, "(shutdown)");
}

#[test]
fn a_signal_ends_the_job() {
    let mut host = start("ignores-term-with-children");
    host.wait_until_running();
    let pid = host.pid().to_string();
    assert!(
        Command::new("kill")
            .args(["-TERM", &pid])
            .status()
            .unwrap()
            .success()
    );
    refused(host.finish(), &ErrorCode::Canceled, "(shutdown)");
}

#[test]
fn a_process_left_behind_is_ended_and_does_not_hold_up_the_end() {
    let mut host = start("leaves-a-process");
    assert_eq!(host.done().0, 0);
    assert_eq!(
        host.logs(),
        ["ended 1 processes that the job had left running"]
    );
    host.wait();
}

#[test]
fn every_silence_has_an_end() {
    let config = json!({"start-timeout": "1s"});
    let mut host = start_with("silent", &config, &json!({}));
    refused(
        host.finish(),
        &ErrorCode::Timeout,
        "did not begin within 1 s",
    );

    let config = json!({"idle-timeout": "1s"});
    let mut host = start_with("quiet", &config, &json!({}));
    refused(
        host.finish(),
        &ErrorCode::IdleTimeout,
        "said nothing for 1 s",
    );
    let more = json!({"receptor": {"idle_timeout_s": 1}});
    let mut host = start_with("quiet", &json!({}), &more);
    refused(
        host.finish(),
        &ErrorCode::IdleTimeout,
        "said nothing for 1 s",
    );

    let config = json!({"timeout": "1s"});
    let mut host = start_with("quiet", &config, &json!({"timeout": 3600}));
    refused(host.finish(), &ErrorCode::Timeout, "longer than 1 s");

    let mut host = start("closes-and-stays");
    refused(host.finish(), &ErrorCode::Internal, "did not end");
}

#[test]
fn results_wait_while_nobody_takes_them() {
    let mut host = start("flood");
    host.wait_until_running();
    host.pause(true);
    // The pipes fill up and everything stands still; then all of it arrives, in order.
    let before = cpu_time(&host);
    let until = Instant::now() + Duration::from_secs(20);
    let mut last = before;
    loop {
        std::thread::sleep(Duration::from_millis(200));
        let now = cpu_time(&host);
        if now == last {
            break;
        }
        last = now;
        assert!(Instant::now() < until, "still busy");
    }
    host.pause(false);
    assert_eq!(host.done().0, 0);
    let counters: Vec<u64> = host
        .data()
        .iter()
        .filter_map(|d| d["counter"].as_u64())
        .collect();
    assert_eq!(counters, (1..=20_000).collect::<Vec<_>>());
    host.wait();
}

#[test]
fn a_daemon_that_is_killed_leaves_no_job() {
    let mut host = start("flood");
    host.wait_until_running();
    host.pause(true);
    host.abandon();
    host.wait();
}

/// Ticks that the plugin has used the processor.
fn cpu_time(host: &Host) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", host.pid())).unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn the_surroundings_of_a_job() {
    let config = json!({"env": {"ANSIBLE_FORKS": "3"}});
    let more = json!({
        "inventory": "a", "extravars": {"x": "canary"}, "envvars": {"E": "canary"},
        "passwords": {"p": "canary"}, "ssh_key": "canary",
    });
    let mut host = start_with("surroundings", &config, &more);
    assert_eq!(host.done().0, 0);
    let data = host.data();
    let event = data.iter().find(|d| d["event"] == "surroundings").unwrap();
    let environ = event["environ"].as_object().unwrap();
    let mut names: Vec<&str> = environ.keys().map(String::as_str).collect();
    // Python adds this one itself.
    names.retain(|name| *name != "LC_CTYPE");
    assert_eq!(
        names,
        [
            "ANSIBLE_FORKS",
            "ANSIBLE_HOME",
            "ANSIBLE_LOCAL_TEMP",
            "ANSIBLE_PERSISTENT_CONTROL_PATH_DIR",
            "ANSIBLE_SSH_CONTROL_PATH_DIR",
            "HOME",
            "LC_ALL",
            "PATH",
            "RECEPTOR_JOB_ID",
            "TMPDIR"
        ]
    );
    assert_eq!(environ["HOME"], host.home().to_str().unwrap());
    assert_eq!(event["blocked"], json!([]), "signals must reach the job");
    let job = host.dir.path().canonicalize().unwrap();
    assert_eq!(event["cwd"], job.to_str().unwrap());
    assert_eq!(
        event["kwargs"],
        json!({"module": "surroundings", "host_pattern": "all", "ident": "job"})
    );
    let files = event["files"].as_object().unwrap();
    assert_eq!(files.len(), 6, "{files:?}");
    assert!(files.values().all(|mode| mode == "0o600"), "{files:?}");
    assert!(!host.raw().contains("canary"));
    host.wait();
}

#[test]
fn a_payload_that_is_refused_starts_nothing() {
    for (payload, text) in [
        (
            b"PK\x03\x04".as_slice(),
            "a zip archive as payload is not supported",
        ),
        (b"\x1f\x8b", "a tar archive"),
        (
            b"{\"kwargs\": {}}\n{\"eof\": true}\n",
            "ansible-runner transmit",
        ),
        (b"{broken", "no JSON"),
        (b"", "empty"),
        (b"\xff", "no JSON"),
        (
            br#"{"module":"ping","host_pattern":"all","binary":"/bin/sh"}"#,
            "\"binary\" is not taken",
        ),
    ] {
        let mut host = Host::start(path(), &json!({}));
        host.execute_bytes(payload);
        refused(host.finish(), &ErrorCode::InvalidPayload, text);
        assert_eq!(fs::read_dir(host.dir.path()).unwrap().count(), 0);
    }
    let mut host = Host::start(path(), &json!({}));
    host.execute("execute", None);
    refused(host.finish(), &ErrorCode::InvalidPayload, "empty");
}

#[test]
fn a_large_payload_comes_by_file() {
    let more = json!({"extravars": {"x": "y".repeat(1_000_000)}});
    let mut host = start_with("ping", &json!({}), &more);
    assert_eq!(host.done().0, 0);
    let written = fs::read_to_string(host.dir.path().join("pdd/env/extravars")).unwrap();
    assert!(written.len() > 1_000_000);
    host.wait();
}

#[test]
fn what_is_missing_is_named() {
    let payload = json!({"module": "ping", "host_pattern": "all"});
    let mut host = Host::start("/nonexistent:/bin/shims", &json!({}));
    let hello = host.hello();
    assert!(!hello.ready);
    assert_eq!(
        hello.reason.as_deref(),
        Some("ansible-runner not found in PATH")
    );
    host.execute_json(&payload);
    refused(
        host.finish(),
        &ErrorCode::MissingDependency,
        "pip install ansible-runner ansible-core",
    );

    let alone = tempfile::tempdir().unwrap();
    fs::copy(
        fake().join("ansible-runner"),
        alone.path().join("ansible-runner"),
    )
    .unwrap();
    let mut host = Host::start(alone.path(), &json!({}));
    let reason = host.hello().reason;
    assert_eq!(
        reason.as_deref(),
        Some("ansible-playbook not found in PATH")
    );
    host.execute_json(&payload);
    refused(
        host.finish(),
        &ErrorCode::MissingDependency,
        "not installed beside it",
    );

    let config = json!({"allow": ["process_isolation", "process_isolation_executable"]});
    let more = json!({"process_isolation": true, "process_isolation_executable": "no-podman"});
    let mut host = start_with("ping", &config, &more);
    refused(host.finish(), &ErrorCode::MissingDependency, "no-podman");
}

/// Containers are nobody's children, so that they have to be ended by name.
#[test]
fn a_cancel_ends_the_container() {
    let dir = tempfile::tempdir().unwrap();
    let podman = dir.path().join("podman");
    fs::write(&podman, "#!/bin/sh\necho \"$@\" >> \"$0.log\"\n").unwrap();
    fs::set_permissions(&podman, fs::Permissions::from_mode(0o755)).unwrap();
    let config = json!({
        "allow": ["process_isolation"],
        "path": format!("{}:{}", dir.path().display(), path()),
    });
    let more = json!({"process_isolation": true});
    let mut host = start_with("ends-when-told", &config, &more);
    host.wait_until_running();
    host.cancel(CancelReason::User);
    refused(host.finish(), &ErrorCode::Canceled, "(user)");
    let log = fs::read_to_string(dir.path().join("podman.log")).unwrap();
    assert_eq!(log, format!("kill ansible_runner_job-{}\n", host.id));
}

#[test]
fn the_configuration_can_make_it_ready() {
    let command = fake().join("ansible-runner");
    let mut host = Host::start("/nonexistent", &json!({"command": command}));
    assert!(!host.hello().ready);
    host.wait_for(
        "ready",
        |m| matches!(m, PluginMessage::Ready(ready) if ready.ready),
    );
    host.execute("health", None);
    let (code, _) = host.done();
    assert_eq!(code, 0);
    let health = host.data().remove(0);
    assert_eq!(health["ready"], true);
    assert_eq!(health["ansible_runner"]["path"], command.to_str().unwrap());
    assert_eq!(health["ansible_core"]["python"], "/bin/sh");
    assert!(health["disk_free"].as_u64().unwrap() > 0);
    host.wait();

    let mut host = Host::start(path(), &json!({"timeout": "soon"}));
    host.wait_for(
        "not ready",
        |m| matches!(m, PluginMessage::Ready(ready) if !ready.ready),
    );
    host.execute("execute", Some(Payload::Text("{}".into())));
    refused(host.finish(), &ErrorCode::Internal, "configuration");
}

#[test]
fn a_description_ends_by_itself() {
    let mut host = Host::start(path(), &json!({}));
    let hello = host.hello();
    assert_eq!(hello.validate("runner"), Ok(()));
    assert!(hello.ready);
    host.close();
    assert_eq!(host.wait().code(), Some(0));
}
