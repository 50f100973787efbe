//! The plugin as a daemon meets it: a process, two pipes and lines.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::fs::symlink,
    process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use receptor_proto::plugin::{
    Cancel, CancelReason, ErrorCode, Execute, FileRef, HostHello, HostMessage, Json, Limits,
    MAX_INLINE, Mode, Payload, Ping, PluginMessage, Shutdown, env, feature,
};
use tempfile::TempDir;

struct Plugin {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    dir: TempDir,
}

impl Plugin {
    fn start() -> Self {
        Self::start_as("echo")
    }

    /// Starts the plugin installed under another name.
    fn start_as(name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(name);
        symlink(env!("CARGO_BIN_EXE_echo"), &file).unwrap();
        let mut child = Command::new(file)
            .current_dir(dir.path())
            .env_clear()
            .env(env::PROTOCOL, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut plugin = Self {
            child,
            input,
            output,
            dir,
        };
        let PluginMessage::Hello(hello) = plugin.receive() else {
            panic!("no hello")
        };
        assert_eq!(hello.validate(name), Ok(()));
        assert_eq!(hello.mode == Mode::Job, name.ends_with("-once"));
        plugin.send(&HostMessage::Hello(HostHello {
            protocol: 1,
            host: "test".into(),
            version: "0".into(),
            node: "a".into(),
            features: vec![feature::FILE.into(), feature::CANCEL.into()],
            limits: Limits::default(),
            config: None,
        }));
        plugin
    }

    fn send(&mut self, message: &HostMessage) {
        self.send_raw(&message.to_line().unwrap());
    }

    fn send_raw(&mut self, line: &[u8]) {
        self.input.as_mut().unwrap().write_all(line).unwrap();
    }

    fn execute(&mut self, id: &str, action: &str, payload: Payload) {
        self.send(&HostMessage::Execute(Execute {
            id: id.into(),
            action: action.into(),
            sender: "test".into(),
            payload: Some(payload),
            timeout_ms: None,
            attempt: 1,
        }));
    }

    fn receive(&mut self) -> PluginMessage {
        let mut line = Vec::new();
        self.output.read_until(b'\n', &mut line).unwrap();
        PluginMessage::decode(&line).unwrap()
    }

    /// The next message that is no status.
    fn answer(&mut self) -> PluginMessage {
        loop {
            let message = self.receive();
            if !matches!(message, PluginMessage::Status(_)) {
                return message;
            }
        }
    }

    fn data(&mut self, id: &str) -> Payload {
        let PluginMessage::Data(data) = self.answer() else {
            panic!("no data")
        };
        assert_eq!(data.id, id);
        data.body
    }

    fn done(&mut self, id: &str) -> i64 {
        let PluginMessage::Done(done) = self.answer() else {
            panic!("not done")
        };
        assert_eq!(done.id, id);
        done.code
    }

    fn error(&mut self, id: &str) -> ErrorCode {
        let PluginMessage::Error(error) = self.answer() else {
            panic!("no error")
        };
        assert_eq!(error.id, id);
        error.error.code
    }

    fn close(&mut self) {
        self.input = None;
    }

    fn wait(&mut self) -> ExitStatus {
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < until, "still running");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn json(text: &str) -> Payload {
    Payload::Json(Json::parse(text.as_bytes()).unwrap())
}

#[test]
fn gives_back_what_it_is_given() {
    let mut plugin = Plugin::start();
    for payload in [
        json(r#"{"n": 12345678901234567890.5, "s": "\ud83d\ude00"}"#),
        json("null"),
        Payload::Text("ä\n".into()),
        Payload::Bytes(vec![0, 255, 10]),
    ] {
        plugin.execute("1", "echo", payload.clone());
        assert_eq!(plugin.data("1"), payload);
        assert_eq!(plugin.done("1"), 0);
    }
    plugin.close();
    assert!(plugin.wait().success());
}

#[test]
fn with_one_process_a_job_it_ends_after_the_job() {
    let mut plugin = Plugin::start_as("echo-once");
    plugin.execute("1", "echo", json("1"));
    assert_eq!(plugin.data("1"), json("1"));
    assert_eq!(plugin.done("1"), 0);
    assert!(plugin.wait().success());

    let mut plugin = Plugin::start_as("other-once");
    plugin.execute("1", "sleep", json(r#"{"ms":600000}"#));
    plugin.execute("2", "sleep", json(r#"{"ms":1}"#));
    assert_eq!(plugin.error("2"), ErrorCode::Busy);
    plugin.send(&HostMessage::Cancel(Cancel {
        id: "1".into(),
        reason: CancelReason::User,
        grace_ms: 10_000,
    }));
    assert_eq!(plugin.error("1"), ErrorCode::Canceled);
    assert!(plugin.wait().success());
}

#[test]
fn files_come_back_as_files() {
    let mut plugin = Plugin::start();
    let contents = vec![7; 3_000_000];
    fs::write(plugin.dir.path().join("payload"), &contents).unwrap();
    for action in ["bytes", "echo"] {
        let file = FileRef::new("payload");
        plugin.execute("2", action, Payload::File(file));
        let Payload::File(file) = plugin.data("2") else {
            panic!("no file")
        };
        assert_eq!(file.size, Some(3_000_000));
        assert!(fs::read(plugin.dir.path().join(file.path)).unwrap() == contents);
        assert_eq!(plugin.done("2"), 0);
    }
}

#[test]
fn large_results_go_by_file() {
    let mut plugin = Plugin::start();
    let payload = format!(r#"{{"count":2,"size":{MAX_INLINE}}}"#);
    plugin.execute("big", "flood", json(&payload));
    let mut paths = Vec::new();
    for _ in 0..2 {
        let Payload::File(file) = plugin.data("big") else {
            panic!("no file")
        };
        let text = fs::read(plugin.dir.path().join(&file.path)).unwrap();
        let text: String = serde_json::from_slice(&text).unwrap();
        assert_eq!(text.len(), MAX_INLINE);
        paths.push(file.path);
    }
    assert_ne!(paths[0], paths[1]);
    assert_eq!(plugin.done("big"), 0);
}

#[test]
fn many_small_jobs_in_flight_are_answered_in_order() {
    let mut plugin = Plugin::start();
    for n in 0..500 {
        plugin.execute(&format!("j{n}"), "echo", json(&n.to_string()));
    }
    for n in 0..500 {
        let id = format!("j{n}");
        assert_eq!(plugin.data(&id), json(&n.to_string()));
        assert_eq!(plugin.done(&id), 0);
    }
}

#[test]
fn jobs_run_beside_each_other_and_one_can_be_cancelled() {
    let mut plugin = Plugin::start();
    plugin.execute("long", "sleep", json(r#"{"ms":600000}"#));
    plugin.execute("longer", "sleep", json(r#"{"ms":600000}"#));
    plugin.execute("short", "sleep", json(r#"{"ms":1}"#));
    assert_eq!(plugin.done("short"), 0);
    let cancel = |id: &str, reason| {
        HostMessage::Cancel(Cancel {
            id: id.into(),
            reason,
            grace_ms: 10_000,
        })
    };
    plugin.send(&cancel("no-such-job", CancelReason::User));
    plugin.send(&cancel("long", CancelReason::User));
    assert_eq!(plugin.error("long"), ErrorCode::Canceled);
    plugin.execute("after", "discard", json("1"));
    assert_eq!(plugin.done("after"), 0);
    plugin.send(&cancel("longer", CancelReason::Timeout));
    assert_eq!(plugin.error("longer"), ErrorCode::Timeout);
}

#[test]
fn codes_and_errors_are_kept_apart() {
    let mut plugin = Plugin::start();
    plugin.execute("1", "fail", json(r#"{"code":7}"#));
    assert_eq!(plugin.done("1"), 7);
    plugin.execute("2", "error", json(r#"{"code":"x-mine"}"#));
    assert_eq!(plugin.error("2"), ErrorCode::Other("x-mine".into()));
    plugin.execute("3", "fail", json(r#"{"kode":7}"#));
    assert_eq!(plugin.error("3"), ErrorCode::InvalidPayload);
    plugin.execute("4", "fail", Payload::Text("{broken".into()));
    assert_eq!(plugin.error("4"), ErrorCode::InvalidPayload);
    plugin.execute("5", "nonsense", json("1"));
    assert_eq!(plugin.error("5"), ErrorCode::UnknownAction);
}

#[test]
fn strange_messages_are_ignored_and_pings_answered() {
    let mut plugin = Plugin::start();
    plugin
        .send_raw(b"{\"type\":\"ack\",\"window\":3}\n{\"type\":\"ping\",\"nonce\":9,\"new\":1}\n");
    assert_eq!(plugin.receive(), PluginMessage::Pong(Ping { nonce: 9 }));
}

#[test]
fn shutdown_waits_for_the_running_job() {
    let mut plugin = Plugin::start();
    plugin.execute("1", "sleep", json(r#"{"ms":200}"#));
    plugin.send(&HostMessage::Shutdown(Shutdown { grace_ms: 10_000 }));
    plugin.execute("2", "sleep", json(r#"{"ms":1}"#));
    assert_eq!(plugin.error("2"), ErrorCode::NotReady);
    assert_eq!(plugin.done("1"), 0);
    assert!(plugin.wait().success());
}

#[test]
fn ends_when_the_daemon_is_gone() {
    let mut plugin = Plugin::start();
    plugin.execute("1", "sleep", json(r#"{"ms":600000}"#));
    assert!(matches!(plugin.receive(), PluginMessage::Status(_)));
    plugin.close();
    assert_eq!(plugin.error("1"), ErrorCode::Canceled);
    assert!(plugin.wait().success());
}

#[test]
fn ends_without_an_answer_when_asked_to() {
    let mut plugin = Plugin::start();
    plugin.execute("1", "exit", json(r#"{"status":3}"#));
    assert_eq!(plugin.wait().code(), Some(3));
}

#[test]
fn a_line_that_is_no_message_ends_it_without_repeating_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_echo"))
        .current_dir(dir.path())
        .env(env::PROTOCOL, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    input
        .write_all(b"{\"type\":\"execute\",\"hunter2\n")
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(70));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        text.contains("not understood") && !text.contains("hunter2"),
        "{text}"
    );
}

#[test]
fn started_by_hand_it_says_what_it_is() {
    let output = Command::new(env!("CARGO_BIN_EXE_echo"))
        .env_remove(env::PROTOCOL)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(64));
    assert!(output.stdout.is_empty());
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("receptorctl plugin check"), "{text}");
    assert_eq!(text.lines().count(), 1);
}
