//! Messages that are answered only when they are refused: many of them travel as one.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use receptor_tests::{Control, Daemon, Mesh, wait_for};
use serde_json::{Value, json};

/// Writes down what it gets, one payload a line, behind its process id.
const NOTE: &str = r#"#!/usr/bin/python3
import json, os, sys
mode = "serve" if "serve" in sys.argv[0] else "job"
print(json.dumps({"type": "hello", "protocol": 1, "name": os.path.basename(sys.argv[0]), "version": "1", "mode": mode,
    "max_jobs": JOBS, "actions": {"down": {"payload": "json"}}}), flush=True)
file = open("FILE", "a", buffering=1)
for line in sys.stdin:
    message = json.loads(line)
    if message["type"] != "execute":
        continue
    file.write(f"{os.getpid()} {message['payload']}\n")
    print(json.dumps({"type": "data", "id": message["id"], "text": "noted"}))
    print(json.dumps({"type": "done", "id": message["id"], "code": 0}), flush=True)
    if mode == "job":
        break
"#;

struct Chain {
    _mesh: Mesh,
    nodes: [Daemon; 3],
    file: PathBuf,
}

/// A chain a – b – c whose last node has a plugin of this name that writes down what it gets.
fn chain(name: &str, jobs: u32) -> Chain {
    let mesh = Mesh::new();
    let plugins = mesh.dir().join("plugins");
    let file = mesh.dir().join("notes");
    fs::create_dir(&plugins).unwrap();
    let text = NOTE
        .replace("FILE", file.to_str().unwrap())
        .replace("JOBS", &jobs.to_string());
    let path = plugins.join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(&file, "").unwrap();
    let a = mesh.node("a").start();
    let b = mesh.node("b").peer(&a).start();
    let c = mesh
        .node("c")
        .peer(&b)
        .config("[plugins]\nallow-unsafe = true")
        .arg("--plugins-dir")
        .arg(plugins.to_str().unwrap())
        .start();
    a.wait_reachable(["b", "c"]);
    c.wait_reachable("a");
    wait_for("the plugins on c", || {
        let reply = a.control().json("capabilities");
        let nodes = reply["nodes"].as_array().unwrap();
        let c = nodes.iter().find(|entry| entry["node"] == "c")?;
        let has = |name: &str| {
            let plugins = c["plugins"].as_array().unwrap();
            plugins.iter().any(|plugin| plugin["plugin"] == name)
        };
        (has(name) && has("echo")).then_some(())
    });
    Chain {
        _mesh: mesh,
        nodes: [a, b, c],
        file,
    }
}

impl Chain {
    /// What was written down: by whom, and what.
    fn notes(&self) -> Vec<(i32, u64)> {
        let text = fs::read_to_string(&self.file).unwrap();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let note = |line: &str| {
            let (pid, number) = line.split_once(' ').unwrap();
            (pid.parse().unwrap(), number.parse().unwrap())
        };
        whole.lines().map(note).collect()
    }

    fn numbers(&self) -> Vec<u64> {
        self.notes().into_iter().map(|(_, number)| number).collect()
    }

    fn wait_notes(&self, count: usize) -> Vec<u64> {
        wait_for("all notes", || {
            let numbers = self.numbers();
            (numbers.len() >= count).then_some(numbers)
        })
    }
}

/// Quiet messages with these numbers, in one form or the other.
fn lines(directive: &str, numbers: impl Iterator<Item = u64>) -> String {
    let mut lines = String::new();
    for number in numbers {
        let payload = number.to_string();
        let mut command = json!({
            "command": "send", "directive": directive, "recipient": "c",
            "volatile": true, "respond": false, "quiet": true,
        });
        if number % 7 == 0 {
            command["payload"] = json!(number);
            writeln!(lines, "{command}").unwrap();
        } else {
            command["size"] = json!(payload.len());
            command["content"] = json!("json");
            write!(lines, "{command}\n{payload}").unwrap();
        }
    }
    lines
}

fn send(control: &mut Control, command: &Value) -> Vec<Value> {
    control.write(format!("{command}\n"));
    let mut replies = vec![control.reply()];
    while replies.last().unwrap()["eof"] != true {
        replies.push(control.reply());
    }
    replies
}

#[test]
fn of_a_quiet_message_its_client_hears_only_when_it_is_refused() {
    const COUNT: u64 = 3000;
    let chain = chain("note-serve", 8);
    let [a, ..] = &chain.nodes;
    let mut control = a.control();
    let discard = json!({
        "command": "send", "directive": "echo:discard", "recipient": "c", "size": 3,
        "volatile": true, "respond": false, "quiet": true,
    });
    let mut lines = Vec::new();
    for number in 0..COUNT {
        let mut command = discard.clone();
        if number % 20 == 0 {
            command["tag"] = json!(number);
        }
        if number % 1000 == 999 {
            command["recipient"] = json!("nobody");
            command["tag"] = json!(format!("refused {number}"));
        }
        lines.extend(format!("{command}\nabc").into_bytes());
    }
    control.write(&lines);
    for number in [999, 1999, 2999] {
        let refused = control.reply();
        assert_eq!(refused["tag"], json!(format!("refused {number}")));
        assert_eq!(refused["type"], "error", "{refused}");
        assert_eq!(refused["error"]["code"], "no-such-node", "{refused}");
        assert_eq!(refused["eof"], true);
    }
    let discarded = json!({
        "command": "send", "directive": "echo:discarded", "recipient": "c", "volatile": true,
    });
    wait_for("all of the others", || {
        let all = send(&mut control, &discarded);
        assert_eq!(all[0]["type"], "accepted", "{all:?}");
        (all[1]["data"] == COUNT - 3).then_some(())
    });
    for wrong in ["volatile", "respond"] {
        let mut command = discard.clone();
        command["tag"] = json!(1);
        command.as_object_mut().unwrap().remove(wrong);
        control.write(format!("{command}\nabc"));
        let refused = control.reply();
        assert_eq!(
            (&refused["tag"], &refused["eof"]),
            (&json!(1), &json!(true))
        );
        assert_eq!(refused["error"]["code"], "invalid-request", "{refused}");
    }
    // Last words are told after a half-close, and what was said before a hang-up is sent.
    let mut last = a.control();
    last.write(&lines);
    last.half_close();
    for _ in 0..3 {
        assert_eq!(last.reply()["type"], "error");
    }
    last.expect_closed();
    let mut gone = a.control();
    gone.write(&lines[..lines.len() / 2]);
    drop(gone);
    wait_for("those too", || {
        let all = send(&mut control, &discarded);
        let count = all[1]["data"].as_u64().unwrap();
        (count >= 2 * (COUNT - 3) + COUNT / 2 - 2).then_some(())
    });
}

#[test]
fn quiet_messages_come_once_and_in_order() {
    const COUNT: u64 = 2000;
    let chain = chain("note-serve", 3);
    let mut control = chain.nodes[0].control();
    // In pieces that end anywhere.
    let lines = lines("note-serve:down", 0..COUNT);
    for piece in lines.as_bytes().chunks(7001) {
        control.write(piece);
    }
    let numbers = chain.wait_notes(usize::try_from(COUNT).unwrap());
    assert_eq!(numbers, (0..COUNT).collect::<Vec<_>>());
    // Others of the same client are not held up by them, and come too.
    let mut more = Vec::new();
    for round in 0..20 {
        let start = COUNT + round * 50;
        more.extend(self::lines("note-serve:down", start..start + 49).into_bytes());
        let loud = json!({
            "command": "send", "directive": "note-serve:down", "recipient": "c",
            "payload": start + 49, "volatile": round % 2 == 0, "respond": round % 4 < 2,
        });
        more.extend(format!("{loud}\n").into_bytes());
    }
    control.write(&more);
    let mut numbers = chain.wait_notes(3000);
    let quiet: Vec<_> = numbers.iter().copied().filter(|n| n % 50 != 49).collect();
    assert!(quiet.is_sorted(), "{quiet:?}");
    numbers.sort_unstable();
    assert_eq!(numbers, (0..3000).collect::<Vec<_>>());
}

#[test]
fn plugins_with_a_process_a_job_get_quiet_messages_too() {
    let chain = chain("note", 1);
    let mut control = chain.nodes[0].control();
    control.write(lines("note:down", 0..20));
    let status = json!({
        "command": "send", "directive": "note:down", "recipient": "c", "payload": 20,
    });
    let replies = send(&mut control, &status);
    assert_eq!(replies.last().unwrap()["code"], 0, "{replies:?}");
    let mut numbers = chain.wait_notes(21);
    assert!(numbers.iter().filter(|n| **n < 20).is_sorted());
    numbers.sort_unstable();
    assert_eq!(numbers, (0..=20).collect::<Vec<_>>());
}

#[test]
fn a_slow_plugin_holds_back_the_client_and_a_killed_one_costs_what_it_had() {
    let chain = chain("note-serve", 4);
    let [a, _, c] = &chain.nodes;
    let mut control = a.control();
    control.write(lines("note-serve:down", 0..10));
    chain.wait_notes(10);
    let (pid, _) = chain.notes()[0];
    kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
    // More than all queues on the way hold: the client's socket is full in the end.
    let stream = control.stream().try_clone().unwrap();
    stream.set_nonblocking(true).unwrap();
    let padding = " ".repeat(15_000);
    let text = format!("1{padding}");
    let command = json!({
        "command": "send", "directive": "note-serve:down", "recipient": "c", "size": text.len(),
        "content": "json", "volatile": true, "respond": false, "quiet": true,
    });
    let message = format!("{command}\n{text}").into_bytes();
    let mut sent = 0;
    let mut at = 0;
    let mut unchanged = 0;
    wait_for("the client to be held back", || {
        let before = sent;
        while let Ok(count) = std::io::Write::write(&mut &stream, &message[at..]) {
            at += count;
            if at == message.len() {
                at = 0;
                sent += 1;
            }
        }
        let bytes = sent * message.len();
        assert!(bytes < 300 << 20, "it is not held back");
        unchanged = if before == sent { unchanged + 1 } else { 0 };
        (unchanged >= 20).then_some(())
    });
    // Others are not.
    let mut other = a.control();
    assert_eq!(other.json("ping c")["Success"], true);
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    c.wait_log("one-way works have failed");
    stream.set_nonblocking(false).unwrap();
    control.write(&message[at..]);
    control.write(lines("note-serve:down", 10..20));
    wait_for("the last of them", || {
        let numbers = chain.numbers();
        (numbers.last() == Some(&19)).then_some(())
    });
    let numbers = chain.numbers();
    let lost = sent + 1 + 20 - numbers.len();
    // At most the bundles that the process had, or was about to get.
    assert!(lost > 0 && lost <= 3 * 5, "{lost} of {sent} are lost");
}
