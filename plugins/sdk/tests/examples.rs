//! The examples in other languages, run as a daemon would run them.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    io::{BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
};

use receptor_proto::plugin::{ErrorCode, Payload, PluginHello, PluginMessage};

const HELLO: &str = r#"{"type":"hello","protocol":1,"host":"test","new":{}}"#;

fn example(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../examples")
        .join(file)
        .canonicalize()
        .unwrap()
}

/// Starts an example in a directory, with the minimal environment.
fn start(file: &str, dir: &Path) -> (Child, BufReader<ChildStdout>, PluginHello) {
    let mut child = Command::new(example(file))
        .current_dir(dir)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("PYTHONUNBUFFERED", "1")
        .env("RECEPTOR_PLUGIN_PROTOCOL", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let PluginMessage::Hello(hello) = receive(&mut output) else {
        panic!("no hello")
    };
    assert_eq!(hello.validate(file), Ok(()));
    (child, output, hello)
}

fn receive(output: &mut impl BufRead) -> PluginMessage {
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    PluginMessage::decode(line.as_bytes()).unwrap()
}

#[test]
fn describe_ends_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    for file in ["uptime", "wordcount.py"] {
        let (mut child, mut output, _) = start(file, dir.path());
        drop(child.stdin.take());
        let mut rest = String::new();
        output.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "");
        assert!(child.wait().unwrap().success(), "{file}");
    }
}

#[test]
fn shell_gives_lines_of_text() {
    let dir = tempfile::tempdir().unwrap();
    let (mut child, mut output, _) = start("uptime", dir.path());
    let mut input = child.stdin.take().unwrap();
    writeln!(input, "{HELLO}").unwrap();
    writeln!(input, r#"{{"type":"execute","id":"1","action":"execute"}}"#).unwrap();
    let mut text = String::new();
    output.read_to_string(&mut text).unwrap();
    assert_eq!(text.lines().count(), 2, "{text}");
    assert!(child.wait().unwrap().success());
}

#[test]
fn python_gives_results_progress_and_errors() {
    let dir = tempfile::tempdir().unwrap();
    let (mut child, mut output, hello) = start("wordcount.py", dir.path());
    let example = hello.actions["execute"].example.clone().unwrap();
    std::fs::write(dir.path().join("payload"), r#"{"texts":["a b c"]}"#).unwrap();
    let mut input = child.stdin.take().unwrap();
    writeln!(input, "{HELLO}").unwrap();
    for (payload, words) in [
        (
            format!(r#""payload":{}"#, example.get()),
            r#"{"index": 0, "words": 2}"#,
        ),
        (
            r#""payload_file":"payload""#.to_owned(),
            r#"{"index": 0, "words": 3}"#,
        ),
    ] {
        writeln!(
            input,
            r#"{{"type":"execute","id":"1","action":"execute",{payload}}}"#
        )
        .unwrap();
        let PluginMessage::Data(data) = receive(&mut output) else {
            panic!("no data")
        };
        let Payload::Json(json) = data.body else {
            panic!("no JSON")
        };
        assert_eq!(json.get(), words);
        assert!(
            matches!(receive(&mut output), PluginMessage::Status(s) if s.progress == Some((1, 1)))
        );
        assert!(matches!(receive(&mut output), PluginMessage::Done(done) if done.code == 0));
    }
    for bad in ["[]", r#"{"texts":1}"#, r#"{"texts":[1]}"#, "null"] {
        writeln!(
            input,
            r#"{{"type":"execute","id":"2","action":"execute","payload":{bad}}}"#
        )
        .unwrap();
        let PluginMessage::Error(error) = receive(&mut output) else {
            panic!("no error")
        };
        assert_eq!(error.error.code, ErrorCode::InvalidPayload, "{bad}");
    }
    drop(input);
    assert!(child.wait().unwrap().success());
}
