//! What the author of a plugin uses without a daemon: `plugin new`, `plugin run`, `plugin describe`.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::fake::{Answer, Daemon, program, running};

/// Runs `receptorctl plugin …` in a directory.
fn plugin(dir: &Path, args: &[&str]) -> Answer {
    let mut program = program();
    program
        .arg("plugin")
        .args(args)
        .current_dir(dir)
        .stdin(Stdio::null());
    running(program.spawn().unwrap(), dir).end()
}

/// A plugin in shell that does `body` with the line of its job in `$job`.
fn shell(dir: &Path, hello: &str, body: &str) -> PathBuf {
    let hello = format!(
        r#"{{"type":"hello","protocol":1,"name":"probe","version":"1","actions":{hello}}}"#
    );
    let text =
        format!("#!/bin/sh\necho '{hello}'\nread -r h || exit 0\nread -r job || exit 0\n{body}\n");
    let path = dir.join("probe");
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn new_plugins_pass_their_check() {
    let dir = tempfile::tempdir().unwrap();
    for (lang, file) in [("sh", "first"), ("python", "first.py")] {
        let made = plugin(dir.path(), &["new", "first", "--lang", lang]);
        assert_eq!(made.code, Some(0), "{made:?}");
        assert_eq!(made.stdout(), format!("{file}\n"));
        let checked = plugin(dir.path(), &["check", &format!("./{file}")]);
        assert_eq!(checked.code, Some(0), "{}", checked.stdout());
        fs::remove_file(dir.path().join(file)).unwrap();
    }

    let made = plugin(dir.path(), &["new", "first", "--lang", "rust"]);
    assert_eq!(made.code, Some(0), "{made:?}");
    // Its source is an example of this package, which has been compiled for this test.
    let source = fs::read_to_string(dir.path().join("first/src/main.rs")).unwrap();
    assert_eq!(source, include_str!("../../examples/new_plugin.rs"));
    let compiled = Path::new(env!("CARGO_BIN_EXE_receptorctl"))
        .with_file_name("examples")
        .join("new_plugin");
    let copy = dir.path().join("receptorctl");
    fs::copy(compiled, &copy).unwrap();
    let checked = plugin(dir.path(), &["check", "./receptorctl"]);
    assert_eq!(checked.code, Some(0), "{}", checked.stdout());
    let cargo = Command::new(env!("CARGO"))
        .args(["metadata", "--offline", "--no-deps", "--format-version=1"])
        .current_dir(dir.path().join("first"))
        .output()
        .unwrap();
    assert!(cargo.status.success(), "{cargo:?}");
    let metadata: Value = serde_json::from_slice(&cargo.stdout).unwrap();
    assert_eq!(metadata["packages"][0]["name"], "first");
}

#[test]
fn new_touches_nothing_that_is_there() {
    let dir = tempfile::tempdir().unwrap();
    for (lang, file) in [("sh", "a"), ("python", "a.py"), ("rust", "a")] {
        let path = dir.path().join(file);
        fs::write(&path, "precious").unwrap();
        let answer = plugin(dir.path(), &["new", "a", "--lang", lang]);
        assert_eq!(answer.code, Some(2), "{answer:?}");
        assert!(answer.stderr.contains("File exists"), "{answer:?}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }
    for name in ["", "A", "1st", "a/b", "a.py", "../a", "-a"] {
        let answer = plugin(dir.path(), &["new", "--lang=sh", "--", name]);
        assert_eq!(answer.code, Some(2), "{name}: {answer:?}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}

#[test]
fn a_run_shows_results_on_stdout_and_the_rest_on_stderr() {
    let dir = tempfile::tempdir().unwrap();
    let say = |message: Value| format!("echo '{message}'\n");
    let body = [
        say(json!({"type": "data", "id": "run-1", "data": {"a": 1}})),
        say(json!({"type": "status", "id": "run-1", "state": "running", "progress": [1, 2]})),
        say(json!({"type": "log", "id": "run-1", "level": "warn", "message": "careful"})),
        "printf 'by file' > out\necho to the journal >&2\n".to_owned(),
        say(json!({"type": "data", "id": "run-1", "file": "out"})),
        say(json!({"type": "done", "id": "run-1", "code": 3, "result": {"message": "disk is full"}})),
    ]
    .concat();
    shell(dir.path(), r#"{"go":{}}"#, &body);
    let args = ["run", "./probe", "go", "[1]"];
    plugin(dir.path(), &args).expect(
        1,
        "{\"a\":1}\nby file{\"code\":3,\"result\":{\"message\":\"disk is full\"}}\n",
        "status: running 1 of 2\nlog: warn: careful\nstderr: to the journal\n\
         receptorctl: the job ended with code 3\nreceptorctl:   disk is full\n",
    );
    let answer = plugin(dir.path(), &[&args[..], &["--json"]].concat());
    let lines: Vec<Value> = answer
        .stdout()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let kinds: Vec<&str> = lines
        .iter()
        .map(|line| line["type"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["data", "status", "log", "data", "done"]);
}

#[test]
fn a_run_of_text_and_of_bytes() {
    let dir = tempfile::tempdir().unwrap();
    shell(
        dir.path(),
        r#"{"lines":{"payload":"text","output":"text"},"raw":{"payload":"bytes","output":"bytes"},"all":{"payload":"none","output":"text"}}"#,
        "case $RECEPTOR_ACTION in raw) printf 'a\\n\\377\\nb'; exit 0;; all) exit 4;; esac; echo \"$job\"; echo end",
    );
    let text = plugin(dir.path(), &["run", "./probe", "lines", "some text"]);
    assert_eq!(text.code, Some(0), "{text:?}");
    let (job, end) = text.stdout().trim_end().split_once('\n').unwrap();
    let job: Value = serde_json::from_str(job).unwrap();
    assert_eq!(job["payload_text"], "some text");
    assert_eq!(end, "end");
    let raw = plugin(dir.path(), &["run", "./probe", "raw"]);
    assert_eq!((raw.code, &raw.stdout[..]), (Some(0), &b"a\n\xff\nb"[..]));
    let code = plugin(dir.path(), &["run", "./probe", "all"]);
    code.expect(1, "", "receptorctl: the job ended with code 4\n");
    let json = plugin(dir.path(), &["run", "./probe", "all", "--json"]);
    assert_eq!(
        json.stdout(),
        "{\"code\":4,\"id\":\"run-1\",\"type\":\"done\"}\n"
    );
}

#[test]
fn a_run_that_cannot_be_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let break_off = "echo oops >&2; exit 7";
    shell(dir.path(), r#"{"go":{}}"#, break_off);
    let cases: [(&[&str], i32, &str); 8] = [
        (&["./none", "go"], 2, "./none is not there, or no file"),
        (&["/bin/true", "go"], 2, "/bin/true is no plugin"),
        (&["./probe", "stop"], 1, "no action \"stop\"; it has go"),
        (
            &["./probe", "go"],
            1,
            "takes JSON as payload: there is none",
        ),
        (
            &["./probe", "go", "text"],
            1,
            "takes JSON as payload: expected",
        ),
        (&["./probe", "go", "@none"], 2, "cannot read none"),
        (
            &["./probe", "go", "1"],
            1,
            "exited with status 7 without a final message",
        ),
        (&["./probe", "go", "1"], 1, "stderr: oops"),
    ];
    for (args, code, expected) in cases {
        let answer = plugin(dir.path(), &[&["run"], args].concat());
        assert_eq!(answer.code, Some(code), "{args:?}: {answer:?}");
        assert!(answer.stderr.contains(expected), "{args:?}: {answer:?}");
        assert_eq!(answer.stdout(), "", "{args:?}");
    }
}

#[test]
fn a_run_ends_what_the_plugin_started() {
    let dir = tempfile::tempdir().unwrap();
    let pid = dir.path().join("pid");
    let body = format!(
        "setsid sleep 300 & echo $! > {0}.tmp; mv {0}.tmp {0}; wait",
        pid.display()
    );
    shell(
        dir.path(),
        r#"{"go":{"output":"text","payload":"none"}}"#,
        &body,
    );
    let is_gone = || {
        let pid = fs::read_to_string(&pid).unwrap();
        fs::remove_file(dir.path().join("pid")).unwrap();
        !Path::new("/proc").join(pid.trim()).exists()
    };
    let answer = plugin(dir.path(), &["run", "./probe", "go", "--timeout", "0.5"]);
    assert_eq!(answer.code, Some(1), "{answer:?}");
    assert!(
        answer.stderr.contains("took longer than 500ms"),
        "{answer:?}"
    );
    assert!(is_gone());

    let mut command = program();
    command
        .args(["plugin", "run", "./probe", "go"])
        .current_dir(dir.path())
        .stdin(Stdio::null());
    let running = running(command.spawn().unwrap(), dir.path());
    let deadline = std::time::Instant::now() + crate::fake::PATIENCE;
    while !pid.exists() {
        assert!(
            std::time::Instant::now() < deadline,
            "the job does not start"
        );
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    running.signal(Signal::SIGINT);
    assert_eq!(running.end().code, Some(130));
    assert!(is_gone());
}

#[test]
fn a_description_has_what_the_hello_says() {
    let dir = tempfile::tempdir().unwrap();
    let actions = r#"{"go":{"about":"Goes","timeout_s":90,"max_payload":1024,"example":{"a":1},"idempotent":true},"raw":{"payload":"bytes","output":"bytes"}}"#;
    let path = shell(dir.path(), actions, "exit 0");
    let shown = "probe 1\n      Mode: job, one process for each\n    Action: go  Goes\n            takes JSON; gives messages; payload up to 1.0 KiB; ends after 1m 30s; may be run again\n            example: {\"a\":1}\n    Action: raw\n            takes bytes; gives bytes\n";
    plugin(dir.path(), &["describe", "./probe"]).expect(0, shown, "");
    let json = plugin(dir.path(), &["describe", "./probe", "--json"]);
    let json: Value = serde_json::from_str(json.stdout()).unwrap();
    assert_eq!(json["hello"]["actions"]["go"]["timeout_s"], 90);

    let status = json!({"plugins": [{
        "name": "probe", "version": "1", "mode": "job", "ready": false, "reason": "no ansible",
        "path": path, "actions": ["go"], "about": "", "running": 1, "waiting": 2,
    }]});
    let answer: &'static str = format!("{status}\n").leak();
    let known = Daemon::answering(answer).run(["plugin", "describe", "probe"]);
    let expected = format!(
        "probe 1\n      Path: {}\n     State: not ready: no ansible\n     Works: 1 running, 2 waiting\n",
        path.display()
    );
    assert!(known.stdout().starts_with(&expected), "{known:?}");
    assert!(known.stdout().contains("Action: go  Goes"), "{known:?}");
    let unknown = Daemon::answering(answer).run(["plugin", "describe", "other"]);
    assert_eq!(unknown.code, Some(1));
    assert!(unknown.stderr.contains("installed: probe"), "{unknown:?}");
}
