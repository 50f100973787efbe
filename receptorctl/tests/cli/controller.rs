//! `plugins/examples/controller.py`: the socket needs nothing but a socket and a JSON parser.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::json;

use crate::fake::{Daemon, ID, Running};

fn controller(daemon: &Daemon, payload: &str) -> Running {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugins/examples/controller.py");
    let child = Command::new("python3")
        .arg(script)
        .arg(daemon.socket())
        .args(["runner:execute", "node-b", payload])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    daemon.running(child)
}

#[test]
fn it_streams_responses_of_every_kind() {
    let daemon = Daemon::new(|clients| {
        let mut client = clients.next();
        assert_eq!(
            client.command(),
            json!({"command": "send", "directive": "runner:execute", "recipient": "node-b", "payload": {"module": "ping"}})
        );
        client.say(&format!(
            "{{\"type\":\"accepted\",\"id\":\"{ID}\",\"recipient\":\"node-b\"}}\n\
             {{\"type\":\"response\",\"id\":\"{ID}\",\"from\":\"node-b\",\"serial\":1,\"data\":{{\"ping\":\"pong\"}}}}\n\
             {{\"type\":\"response\",\"id\":\"{ID}\",\"from\":\"node-b\",\"serial\":2,\"size\":4}}\n"
        ));
        client.raw(b"\n{\xff\n");
        client.say(&format!(
            "{{\"type\":\"response\",\"id\":\"{ID}\",\"from\":\"node-b\",\"serial\":3,\"text\":\"done\",\"eof\":true,\"code\":0}}\n"
        ));
    });
    controller(&daemon, "{\"module\": \"ping\"}").end().expect(
        0,
        "accepted None\nresponse {'ping': 'pong'}\nresponse b'\\n{\\xff\\n'\nresponse done\n",
        "",
    );
}

#[test]
fn it_tells_a_failure() {
    let daemon = Daemon::answering(
        "{\"type\":\"error\",\"error\":{\"code\":\"no-such-node\",\"message\":\"no\"},\"eof\":true}\n",
    );
    controller(&daemon, "1").end().expect(
        1,
        "error {'code': 'no-such-node', 'message': 'no'}\n",
        "",
    );
}

#[test]
fn it_is_twenty_lines() {
    let script = include_str!("../../../plugins/examples/controller.py");
    assert!(
        script.lines().count() <= 24,
        "the text says 20 lines of code"
    );
}
