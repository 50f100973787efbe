//! `plugin check` against good plugins, and against one bad plugin for each check.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Instant;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::fake::{Answer, PATIENCE, Running, program, running};

/// A plugin in a directory of its own.
struct Plugin {
    dir: tempfile::TempDir,
    path: PathBuf,
}

impl Plugin {
    fn new(name: &str, text: &str) -> Self {
        // Some hosts put a program that looks for the right Python in front of it, which takes its time.
        let text = text.replace("/usr/bin/env python3", python());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        Self { dir, path }
    }

    /// A shell plugin that says this hello and then does this.
    fn shell(hello: &str, body: &str) -> Self {
        Self::new(
            "bad",
            &format!("#!/bin/sh\nset -u\necho '{hello}'\n{body}\n"),
        )
    }

    /// A shell plugin in job mode that does this once it has a job, whose line is in `$job`.
    fn job(body: &str) -> Self {
        Self::with_hello("", body)
    }

    /// The same with more keys in its hello.
    fn with_hello(keys: &str, body: &str) -> Self {
        let hello = format!(
            r#"{{"type":"hello","protocol":1,"name":"bad","version":"1"{keys},"actions":{{"go":{{"example":{{"a":1}}}}}}}}"#
        );
        Self::shell(&hello, &format!("{READ}{body}"))
    }

    fn start(&self, args: &[&str]) -> Running {
        let mut program = program();
        program
            .args(["plugin", "check"])
            .arg(&self.path)
            .args(args)
            .stdin(Stdio::null());
        running(program.spawn().unwrap(), self.dir.path())
    }

    fn check(&self, args: &[&str]) -> Answer {
        self.start(args).end()
    }

    /// Runs the checks and returns what this one found; the text of the whole is checked for sense.
    #[track_caller]
    fn finding(&self, group: &str, check: &str, args: &[&str]) -> Value {
        let answer = self.check(&[&["--json"], args].concat());
        assert_eq!(answer.stderr, "");
        let lines: Vec<Value> = answer
            .stdout()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let (summary, findings) = lines.split_last().unwrap();
        let failed = findings.iter().filter(|f| f["result"] == "fail").count();
        assert_eq!(summary["failed"], failed, "{answer:?}");
        assert_eq!(answer.code, Some(i32::from(failed > 0)), "{answer:?}");
        // The last one stands: a check of several actions is told several times.
        let found = findings
            .iter()
            .rev()
            .find(|f| f["group"] == group && f["check"] == check);
        found
            .unwrap_or_else(|| panic!("no {group} {check} in {}", answer.stdout()))
            .clone()
    }

    #[track_caller]
    fn fails(&self, group: &str, check: &str, args: &[&str], seen: &str) {
        let found = self.finding(group, check, args);
        assert_eq!(found["result"], "fail", "{found}");
        let text = found["seen"].as_str().unwrap();
        assert!(text.contains(seen), "{text:?} does not say {seen:?}");
        assert!(
            !found["mend"].as_str().unwrap_or("").is_empty(),
            "how to mend it: {found}"
        );
    }
}

fn python() -> &'static str {
    static PYTHON: OnceLock<String> = OnceLock::new();
    PYTHON.get_or_init(|| {
        let script = "import sys; print(sys.executable, end='')";
        let output = Command::new("python3")
            .args(["-c", script])
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    })
}

/// Reads the host's hello and lines until a job comes; exits at end of file.
const READ: &str = r#"
read -r hello || exit 0
while read -r job; do
    case $job in *'"type":"execute"'*) break ;; esac
    job=
done
[ -n "${job:-}" ] || exit 0
done_with() { echo "{\"type\":\"done\",\"id\":\"$RECEPTOR_JOB_ID\",\"code\":$1}"; }
"#;

/// Ends well.
const GOOD: &str = "done_with 0; cat >/dev/null";

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../plugins/examples")
        .join(name)
}

fn check_example(name: &str, args: &[&str]) -> Answer {
    let mut program = program();
    program
        .args(["plugin", "check"])
        .arg(example(name))
        .args(args)
        .stdin(Stdio::null());
    running(program.spawn().unwrap(), Path::new("/nonexistent")).end()
}

#[test]
fn the_shell_example_passes() {
    let answer = check_example("uptime", &["--action", "execute"]);
    assert_eq!(answer.code, Some(0), "{}", answer.stdout());
    let text = answer.stdout();
    assert!(text.ends_with(" passed, 0 skipped\n"), "{text}");
    assert!(
        text.contains("messages  example: action execute: 2 results, done"),
        "{text}"
    );
}

#[test]
fn the_plugin_in_the_readme_passes() {
    let readme = include_str!("../../../README.md");
    let (_, section) = readme.split_once("A whole one in shell:").unwrap();
    let (section, _) = section.split_once("`plugins/examples`").unwrap();
    let lines = section.lines().filter_map(|line| line.strip_prefix("    "));
    let plugin = Plugin::new("uptime", &lines.collect::<Vec<_>>().join("\n"));
    let answer = plugin.check(&["--action", "execute"]);
    assert_eq!(answer.code, Some(0), "{}", answer.stdout());
}

#[test]
fn the_python_example_passes() {
    let answer = check_example("wordcount.py", &[]);
    assert_eq!(answer.code, Some(0), "{}", answer.stdout());
    let text = answer.stdout();
    assert!(text.ends_with(" passed, 0 skipped\n"), "{text}");
    for group in [
        "file", "hello", "messages", "payload", "stopping", "pressure",
    ] {
        assert!(text.contains(&format!("ok    {group}")), "{group}: {text}");
    }
}

/// A Python plugin that serves several jobs, in threads.
const SERVING: &str = r#"#!/usr/bin/env python3
import json, sys, threading, time
lock = threading.Lock()
def say(**m):
    with lock: print(json.dumps(m), flush=True)
say(type="hello", protocol=1, name="bad", version="1", mode="serve", max_jobs=4, features=["cancel", "file"],
    actions={"go": {"example": {"ms": 300}, "schema": {"type": "object", "required": ["ms"]}}})
stop = {}
def run(m):
    try:
        ms = m["payload"]["ms"] if "payload" in m else json.load(open(m["payload_file"]))["ms"]
        say(type="data", id=m["id"], data=ms)
        if stop[m["id"]].wait(ms / 1000): say(type="error", id=m["id"], error={"code": "canceled", "message": "as told"})
        else: say(type="done", id=m["id"], code=0)
    except (KeyError, TypeError) as e:
        say(type="error", id=m["id"], error={"code": "invalid-payload", "message": repr(e)})
jobs = []
for line in sys.stdin:
    m = json.loads(line)
    if m["type"] == "execute":
        stop[m["id"]] = threading.Event()
        jobs.append(threading.Thread(target=run, args=[m])); jobs[-1].start()
    elif m["type"] == "cancel": CANCEL
    elif m["type"] == "ping": PING
    elif m["type"] == "shutdown": break
for s in stop.values(): s.set()
for j in jobs: j.join()
"#;

fn serving(cancel: &str, ping: &str) -> Plugin {
    Plugin::new(
        "bad",
        &SERVING.replace("CANCEL", cancel).replace("PING", ping),
    )
}

#[test]
fn a_serving_plugin_passes() {
    let plugin = serving(
        "stop[m[\"id\"]].set()",
        "say(type=\"pong\", nonce=m[\"nonce\"])",
    );
    let answer = plugin.check(&["--only", "stopping", "--only", "serve"]);
    assert_eq!(answer.code, Some(0), "{}", answer.stdout());
    for check in [
        "cancel: error canceled",
        "two jobs:",
        "cancel one:",
        "ping:",
        "shutdown:",
    ] {
        assert!(
            answer.stdout().contains(check),
            "{check}: {}",
            answer.stdout()
        );
    }
}

#[test]
fn what_could_not_be_run_is_2() {
    let dir = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| {
        program()
            .args(["plugin", "check"])
            .args(args)
            .output()
            .unwrap()
    };
    let missing = dir.path().join("missing").display().to_string();
    assert_eq!(run(&[&missing]).status.code(), Some(2));
    let wordcount = example("wordcount.py").display().to_string();
    assert_eq!(run(&[&wordcount, "--action", "fly"]).status.code(), Some(2));
    assert_eq!(
        run(&[&wordcount, "--payload", "/dev/null"]).status.code(),
        Some(2)
    );
    let args = [&*wordcount, "--action", "execute", "--payload", &missing];
    assert_eq!(run(&args).status.code(), Some(2));
}

#[test]
fn the_text_for_people() {
    let plugin = Plugin::job("echo nonsense; exit 3");
    let answer = plugin.check(&["--only", "messages"]);
    let text = answer.stdout();
    assert_eq!(answer.code, Some(1), "{text}");
    let failed = "FAIL  messages  example: action go: a line that is no message: expected ident at line 1 column 2: \"nonsense\"\n                mend: ";
    assert!(text.contains(failed), "{text}");
    assert!(text.ends_with("2 failed, 8 passed, 0 skipped\n"), "{text}");
}

// ---- file

#[test]
fn file_name() {
    let plugin = Plugin::new("Bad Name", "#!/bin/sh\n");
    plugin.fails("file", "name", &[], "is no plugin's name");
}

#[test]
fn file_executable() {
    let plugin = Plugin::new("bad", "#!/bin/sh\n");
    fs::set_permissions(&plugin.path, Permissions::from_mode(0o644)).unwrap();
    plugin.fails("file", "executable", &[], "mode 0644 is not executable");
    let dir = Plugin::new("bad", "");
    fs::remove_file(&dir.path).unwrap();
    fs::create_dir(&dir.path).unwrap();
    let found = dir.finding("file", "executable", &[]);
    assert_eq!(found["seen"], "it is no regular file");
}

#[test]
fn file_owner() {
    let plugin = Plugin::new("bad", "#!/bin/sh\n");
    fs::set_permissions(&plugin.path, Permissions::from_mode(0o775)).unwrap();
    plugin.fails(
        "file",
        "owner",
        &["--strict"],
        "of mode 0775 can be written by others",
    );
    // A directory on the way counts like the file, however the path is written.
    fs::set_permissions(&plugin.path, Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(plugin.dir.path(), Permissions::from_mode(0o777)).unwrap();
    let output = program()
        .args(["plugin", "check", "./bad", "--strict"])
        .current_dir(plugin.dir.path())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let dir = plugin.dir.path().display();
    assert!(
        text.contains(&format!("{dir} of mode 0777 can be written by others")),
        "{text}"
    );
    // Where a plugin is written, and not installed, it is only told.
    assert_eq!(plugin.finding("file", "owner", &[])["result"], "skip");
}

#[test]
fn file_interpreter() {
    for (text, seen) in [
        (
            "#!/nonexistent/python3\n",
            "/nonexistent/python3 does not exist",
        ),
        (
            "#!/usr/bin/env no-such-program-here\n",
            "no-such-program-here is not in PATH",
        ),
        ("echo no first line\n", "neither a binary nor a script"),
        ("#!/bin/sh\r\n", "carriage return"),
        ("#!\n", "names no interpreter"),
        ("", "neither a binary nor a script"),
    ] {
        Plugin::new("bad", text).fails("file", "interpreter", &[], seen);
    }
}

// ---- hello

#[test]
fn hello_said() {
    for (body, seen) in [
        ("echo Starting up; cat", "its first line is no hello"),
        (
            "echo '{\"type\":\"done\",\"id\":\"x\",\"code\":0}'",
            "its first line is no hello",
        ),
        (
            "echo '{\"type\":\"hello\",\"protocol\":1}'",
            "missing field `name`",
        ),
        ("printf '\\377\\n'", "not UTF-8"),
        (
            "echo oh no >&2; exit 7",
            "it exited with status 7 without a hello; on stderr: oh no",
        ),
        ("kill -9 $$", "it was ended by SIGKILL without a hello"),
        (
            "head -c 70000 /dev/zero | tr '\\0' x; cat",
            "more than 65536 bytes",
        ),
    ] {
        let plugin = Plugin::new("bad", &format!("#!/bin/sh\n{body}\n"));
        plugin.fails("hello", "said", &[], seen);
    }
    // A hello that waits for the host, as when it is not flushed.
    let plugin = Plugin::new("bad", "#!/bin/sh\nread -r line\n");
    let args = ["--timeout", "0.3"];
    plugin.fails("hello", "said", &args, "it said no hello within 300ms");
}

#[test]
fn hello_valid() {
    for (hello, seen) in [
        (
            r#"{"type":"hello","protocol":9,"name":"bad","version":"1","actions":{"go":{}}}"#,
            "protocol 9",
        ),
        (
            r#"{"type":"hello","protocol":1,"name":"other","version":"1","actions":{"go":{}}}"#,
            "the file stands for",
        ),
        (
            r#"{"type":"hello","protocol":1,"name":"bad","version":"1","actions":{}}"#,
            "\"actions\" has 0 entries",
        ),
        (
            r#"{"type":"hello","protocol":1,"name":"bad","version":"1","ready":false,"actions":{"go":{}}}"#,
            "without a \"reason\"",
        ),
    ] {
        Plugin::shell(hello, "cat >/dev/null").fails("hello", "valid", &[], seen);
    }
}

#[test]
fn hello_example_fits_the_schema() {
    let hello = r#"{"type":"hello","protocol":1,"name":"bad","version":"1","actions":{"go":{"example":{"a":1},"schema":{"required":["b"]}}}}"#;
    let plugin = Plugin::shell(hello, &format!("{READ}{GOOD}"));
    plugin.fails(
        "hello",
        "example",
        &["--only", "messages"],
        "the example has no \"b\"",
    );
}

#[test]
fn hello_quiet() {
    let hello = r#"{"type":"hello","protocol":1,"name":"bad","version":"1","actions":{"go":{}}}"#;
    let plugin = Plugin::shell(hello, "echo waiting for work; cat >/dev/null");
    plugin.fails("hello", "quiet", &[], "waiting for work");
}

#[test]
fn hello_exit() {
    let hello = r#"{"type":"hello","protocol":1,"name":"bad","version":"1","actions":{"go":{}}}"#;
    let plugin = Plugin::shell(hello, "cat >/dev/null; exit 4");
    plugin.fails("hello", "exit", &[], "it exited with status 4");
    let plugin = Plugin::shell(hello, "exec sleep 1000");
    plugin.fails(
        "hello",
        "exit",
        &[],
        "still running 2 s after its stdin was closed",
    );
}

#[test]
fn a_plugin_that_is_not_ready_is_given_no_jobs() {
    let hello = r#"{"type":"hello","protocol":1,"name":"bad","version":"1","actions":{"go":{"example":1}}}"#;
    let plugin = Plugin::shell(
        hello,
        "read -r hello; echo '{\"type\":\"ready\",\"ready\":false,\"reason\":\"no ansible here\"}'; cat >/dev/null",
    );
    let found = plugin.finding("messages", "ready", &[]);
    assert_eq!(found["result"], "skip");
    assert!(
        found["seen"].as_str().unwrap().ends_with("no ansible here"),
        "{found}"
    );
    assert_eq!(
        plugin.finding("messages", "ready", &["--strict"])["result"],
        "fail"
    );
}

// ---- messages

#[test]
fn messages_example() {
    for (body, seen) in [
        ("exit 0", "it exited with status 0 without a final message"),
        (
            "echo out of luck >&2; exit 9",
            "it exited with status 9 without a final message; on stderr: out of luck",
        ),
        (
            "done_with 0; done_with 0; cat >/dev/null",
            "after the job's final one",
        ),
        (
            "echo '{\"type\":\"done\",\"id\":\"other\",\"code\":0}'; cat >/dev/null",
            "a job that it was not given",
        ),
        (
            "echo 'TASK [install]'; done_with 0; cat >/dev/null",
            "a line that is no message",
        ),
        (
            "printf '\\377\\n'; done_with 0; cat >/dev/null",
            "not UTF-8",
        ),
        (
            "head -c 1100000 /dev/zero | tr '\\0' x; echo; done_with 0; cat >/dev/null",
            "a line of more than 1048576 bytes",
        ),
        (
            "done_with 0; cat >/dev/null; exit 5",
            "it exited with status 5 after the job's final message",
        ),
        (
            "done_with 0; exec sleep 1000",
            "still running 2 s after its stdin was closed",
        ),
        (
            "echo \"{\\\"type\\\":\\\"data\\\",\\\"id\\\":\\\"$RECEPTOR_JOB_ID\\\",\\\"file\\\":\\\"missing\\\"}\"; done_with 0; cat >/dev/null",
            "the result's file \"missing\" cannot be taken",
        ),
        (
            "echo \"{\\\"type\\\":\\\"data\\\",\\\"id\\\":\\\"$RECEPTOR_JOB_ID\\\",\\\"file\\\":\\\"/etc/passwd\\\"}\"; done_with 0; cat >/dev/null",
            "is not a relative path",
        ),
        (
            "echo x > out; echo \"{\\\"type\\\":\\\"data\\\",\\\"id\\\":\\\"$RECEPTOR_JOB_ID\\\",\\\"file\\\":\\\"out\\\",\\\"size\\\":9}\"; done_with 0; cat >/dev/null",
            "has 2 bytes and not 9",
        ),
        ("printf '{\"type\":'; exit 0", "its last line has no end"),
    ] {
        let plugin = Plugin::job(body);
        plugin.fails("messages", "example", &["--only", "messages"], seen);
    }
    let plugin = Plugin::job("cat >/dev/null");
    let args = ["--only", "messages", "--timeout", "1"];
    plugin.fails(
        "messages",
        "example",
        &args,
        "no final message within 1s; killed",
    );
}

#[test]
fn messages_of_a_newer_host() {
    let hello = r#"{"type":"hello","protocol":1,"name":"bad","version":"1","actions":{"go":{"example":1}}}"#;
    // Takes the second line for its job, whatever it is.
    let body = "read -r hello || exit 0; read -r job || exit 0; case $job in *execute*) ;; *) exit 1 ;; esac";
    let plugin = Plugin::shell(hello, body);
    plugin.fails(
        "messages",
        "example",
        &["--only", "messages"],
        "it exited with status 1 without a final message",
    );
}

#[test]
fn messages_broken_payload() {
    let args = ["--only", "messages"];
    // What it was not given as an object it does not understand.
    let shape = |answer: &str| {
        Plugin::job(&format!(
            "case $job in *'\"a\":1'*) done_with 0 ;; *) {answer} ;; esac; cat >/dev/null"
        ))
    };
    shape("exit 1").fails(
        "messages",
        "broken payload",
        &args,
        "it exited with status 1 without a final message",
    );
    let error = |code: &str| {
        format!(
            "echo \"{{\\\"type\\\":\\\"error\\\",\\\"id\\\":\\\"$RECEPTOR_JOB_ID\\\",\\\"error\\\":{{\\\"code\\\":\\\"{code}\\\",\\\"message\\\":\\\"m\\\"}}}}\""
        )
    };
    shape(&error("internal")).fails("messages", "broken payload", &args, "error internal: m");
    let good = shape(&error("invalid-payload")).finding("messages", "broken payload", &args);
    assert_eq!(good["result"], "ok", "{good}");
}

#[test]
fn actions_without_an_example_are_not_run() {
    let dir = tempfile::tempdir().unwrap();
    let mark = dir.path().join("ran");
    let hello = r#"{"type":"hello","protocol":1,"name":"bad","version":"1","actions":{"erase":{"payload":"none"},"go":{}}}"#;
    let plugin = Plugin::shell(hello, &format!("{READ}touch {}; {GOOD}", mark.display()));
    let found = plugin.finding("messages", "example", &[]);
    assert_eq!(found["result"], "skip");
    assert!(!mark.exists());
    plugin.finding(
        "messages",
        "example",
        &["--action", "erase", "--only", "messages"],
    );
    assert!(mark.exists());
}

#[test]
fn the_users_payload_is_given() {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), "{\"from\": \"file\"}").unwrap();
    let hello = r#"{"type":"hello","protocol":1,"name":"bad","version":"1","actions":{"go":{}}}"#;
    let body = format!(
        "{READ}case $job in *'\"from\": \"file\"'*) done_with 0 ;; *) done_with 9 ;; esac; cat >/dev/null"
    );
    let plugin = Plugin::shell(hello, &body);
    let path = file.path().display().to_string();
    let found = plugin.finding(
        "messages",
        "example",
        &["--action", "go", "--payload", &path, "--only", "messages"],
    );
    assert!(
        found["seen"].as_str().unwrap().contains(", done, "),
        "{found}"
    );
}

// ---- payload

#[test]
fn payload_by_file() {
    let file = ",\"features\":[\"file\"]";
    // Says that it reads files, and does not.
    let body = "case $job in *'\"payload\":'*) done_with 0 ;; *) exit 1 ;; esac; cat >/dev/null";
    let plugin = Plugin::with_hello(file, body);
    let args = ["--only", "payload"];
    plugin.fails("payload", "by file", &args, "without a final message");
    plugin.fails("payload", "5 MiB", &args, "without a final message");
    let body = "[ \"$RECEPTOR_PAYLOAD_FILE\" = payload ] && [ $(wc -c < payload) -gt 6 ]; done_with $?; cat >/dev/null";
    let plugin = Plugin::with_hello(file, body);
    let found = plugin.finding("payload", "5 MiB", &args);
    assert!(
        found["seen"]
            .as_str()
            .unwrap()
            .ends_with("5 MiB by file: done"),
        "{found}"
    );
    // Without the feature the host refuses what is too large, which is worth knowing.
    assert_eq!(
        Plugin::job(GOOD).finding("payload", "5 MiB", &args)["result"],
        "skip"
    );
}

#[test]
fn payload_of_bytes() {
    let hello = r#"{"type":"hello","protocol":1,"name":"bad","version":"1","features":["file"],"actions":{"go":{"payload":"bytes","example":"text"}}}"#;
    let args = ["--only", "payload"];
    // Cannot bear bytes that are not ASCII, nor none at all.
    let body = "case $job in *'\"payload_base64\":\"\"'*|*'//4A'*) exit 1 ;; esac; done_with 0; cat >/dev/null";
    let plugin = Plugin::shell(hello, &format!("{READ}{body}"));
    plugin.fails(
        "payload",
        "empty",
        &args,
        "given an empty payload: it exited with status 1",
    );
    plugin.fails(
        "payload",
        "not UTF-8",
        &args,
        "given bytes that are not UTF-8: it exited with status 1",
    );
    assert_eq!(plugin.finding("payload", "5 MiB", &args)["result"], "ok");
}

// ---- stopping

#[test]
fn stopping_cancel() {
    let plugin = Plugin::with_hello(",\"features\":[\"cancel\"]", "exec sleep 1000");
    let args = ["--only", "stopping", "--timeout", "1"];
    plugin.fails(
        "stopping",
        "cancel",
        &args,
        "no final message within 1s; killed",
    );
}

#[test]
fn stopping_stdin_closed() {
    let plugin = Plugin::job("exec sleep 1000");
    let args = ["--only", "stopping", "--timeout", "1"];
    plugin.fails(
        "stopping",
        "stdin closed",
        &args,
        "still running after 1s; killed",
    );
}

#[test]
fn stopping_sigterm() {
    let plugin = Plugin::job("trap '' TERM; while :; do sleep 0.05; done");
    let args = ["--only", "stopping", "--timeout", "1"];
    plugin.fails(
        "stopping",
        "SIGTERM",
        &args,
        "still running after 1s; killed",
    );
}

#[test]
fn stopping_processes() {
    let mark = format!("{}", std::process::id());
    // A child in a session of its own, with nothing of ours in its environment.
    let body = format!(
        "setsid env -i sleep 98765.{mark} </dev/null >/dev/null 2>&1 & done_with 0; cat >/dev/null"
    );
    let plugin = Plugin::job(&body);
    plugin.fails(
        "stopping",
        "processes",
        &["--only", "stopping"],
        "sleep (pid ",
    );
    assert!(!is_running(&format!("98765.{mark}")));
}

#[test]
fn stopping_stdout_held_open() {
    let plugin = Plugin::job("sleep 98766 & done_with 0; cat >/dev/null");
    plugin.fails(
        "messages",
        "example",
        &["--only", "messages"],
        "something holds its stdout open",
    );
}

#[test]
fn stopping_files() {
    for (body, seen) in [
        ("touch \"$HOME/.cache-of-bad\"", "$HOME/.cache-of-bad"),
        ("touch ../stray", "/stray"),
        ("touch \"$(dirname \"$0\")/bad.log\"", "/bad.log"),
    ] {
        // Only in a home that is the check's own: not a file is left in the user's.
        let guarded = format!("case $HOME in */home-*|/nonexistent) {body} ;; esac; {GOOD}");
        let plugin = Plugin::job(&guarded);
        plugin.fails("stopping", "files", &["--only", "stopping"], seen);
    }
}

/// Whether any process has this word in its command line.
fn is_running(word: &str) -> bool {
    fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        line.split(|b| *b == 0).any(|arg| arg == word.as_bytes())
    })
}

#[test]
fn nothing_is_left_when_it_is_interrupted() {
    let word = format!("98767.{}", std::process::id());
    let body = format!("setsid sleep {word} </dev/null >/dev/null 2>&1 & sleep {word}");
    let plugin = Plugin::job(&body);
    let mut running = plugin.start(&["--only", "messages"]);
    let start = Instant::now();
    while !is_running(&word) {
        assert!(start.elapsed() < PATIENCE, "the job never began");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    running.signal(Signal::SIGINT);
    assert_eq!(running.status().code(), Some(130));
    assert!(!is_running(&word));
}

#[test]
fn nothing_is_left_in_the_temporary_directory() {
    let tmp = tempfile::tempdir().unwrap();
    let plugin = Plugin::job(&format!("mkdir -p a/b; echo x > a/b/c; {GOOD}"));
    let output = program()
        .args(["plugin", "check", "--only", "messages"])
        .arg(&plugin.path)
        .env("TMPDIR", tmp.path())
        .output()
        .unwrap();
    assert!(output.status.success());
    assert_eq!(fs::read_dir(tmp.path()).unwrap().count(), 0);
}

#[test]
fn the_environment_is_the_daemons() {
    let out = tempfile::NamedTempFile::new().unwrap();
    let plugin = Plugin::job(&format!(
        "env > {}; umask >> {0}; ls /proc/self/fd >> {0}; {GOOD}",
        out.path().display()
    ));
    let status = program()
        .args(["plugin", "check", "--only", "messages"])
        .arg(&plugin.path)
        .env("SECRET_OF_THE_USER", "1")
        .env("LANG", "de_DE.UTF-8")
        .status()
        .unwrap();
    assert!(status.success());
    let text = fs::read_to_string(out.path()).unwrap();
    let names: Vec<&str> = text
        .lines()
        .filter_map(|line| Some(line.split_once('=')?.0))
        .collect();
    for name in [
        "PATH",
        "HOME",
        "LANG",
        "LC_ALL",
        "TMPDIR",
        "PYTHONUNBUFFERED",
        "RECEPTOR_PLUGIN_PROTOCOL",
        "RECEPTOR_NODE",
        "RECEPTOR_JOB_DIR",
        "RECEPTOR_JOB_ID",
        "RECEPTOR_ACTION",
        "RECEPTOR_SENDER",
    ] {
        assert!(names.contains(&name), "{name} is missing in {text}");
    }
    assert!(!text.contains("SECRET_OF_THE_USER"), "{text}");
    assert!(text.contains("\n0077\n"), "{text}");
    // stdin, stdout, stderr and what ls opens itself.
    assert_eq!(
        text.lines()
            .filter(|line| line.parse::<u32>().is_ok_and(|fd| fd < 20))
            .count(),
        4,
        "{text}"
    );
}

// ---- pressure

#[test]
fn pressure_slow_host() {
    // Throws away what the pipe does not take at once.
    let text = r#"#!/usr/bin/env python3
import json, os, sys, time
print(json.dumps(dict(type="hello", protocol=1, name="bad", version="1", actions={"go": {"example": 1}})), flush=True)
sys.stdin.readline()
while True:
    line = sys.stdin.readline()
    if not line: sys.exit(0)
    m = json.loads(line)
    if m["type"] == "execute": break
os.set_blocking(1, False)
for n in range(300):
    time.sleep(0.002)
    try: os.write(1, json.dumps(dict(type="data", id=m["id"], data="x" * 1000)).encode() + b"\n")
    except BlockingIOError: pass
try: os.write(1, json.dumps(dict(type="done", id=m["id"], code=0)).encode() + b"\n")
except BlockingIOError: pass
sys.stdin.read()
"#;
    let plugin = Plugin::new("bad", text);
    let found = plugin.finding("pressure", "slow host", &["--only", "pressure"]);
    assert_eq!(found["result"], "fail", "{found}");
}

// ---- serve

#[test]
fn serve_ping_and_cancel() {
    let args = ["--only", "serve", "--timeout", "4"];
    let plugin = serving("[s.set() for s in stop.values()]", "pass");
    let answer = plugin.check(&args);
    let text = answer.stdout();
    assert!(
        text.contains("FAIL  serve     cancel one: one of two jobs was cancelled, and both ended"),
        "{text}"
    );
    assert!(
        text.contains("FAIL  serve     ping: a ping was not answered"),
        "{text}"
    );
    let plugin = serving("pass", "say(type=\"pong\", nonce=1)");
    plugin.fails("serve", "ping", &args, "was not answered");
}

#[test]
fn serve_two_jobs() {
    // Says everything about the job that came last.
    let mixed = SERVING
        .replace("id=m[\"id\"], code=0", "id=list(stop)[-1], code=0")
        .replace("CANCEL", "pass")
        .replace("PING", "pass");
    let plugin = Plugin::new("bad", &mixed);
    plugin.fails(
        "serve",
        "two jobs",
        &["--only", "serve", "--timeout", "4"],
        "job",
    );
}

#[test]
fn serve_shutdown() {
    let deaf = SERVING
        .replace("== \"shutdown\": break", "== \"shutdown\": pass")
        .replace("CANCEL", "stop[m[\"id\"]].set()")
        .replace("PING", "say(type=\"pong\", nonce=m[\"nonce\"])");
    let plugin = Plugin::new("bad", &deaf);
    plugin.fails(
        "serve",
        "shutdown",
        &["--only", "serve", "--timeout", "4"],
        "still running after 4s",
    );
}
