//! The operator's commands against real daemons, whose names hold every kind of character that a name may have.

#![expect(clippy::unwrap_used, reason = "the helpers of tests fail like tests")]

use receptor_tests::{Daemon, Mesh, wait_for};
use serde_json::Value;

const FIRST: &str = "Abc.xyz_0-9@site:1";
const MIDDLE: &str = "0:_.-@Z";
const LAST: &str = "@last:.";

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Three nodes in a row, and the last one's echo plugin known at the first.
fn row(mesh: &Mesh) -> [Daemon; 3] {
    let first = mesh.node(FIRST).listen("rnp://127.0.0.1:0").start();
    let middle = mesh
        .node(MIDDLE)
        .listen("rnp://127.0.0.1:0")
        .peer(&first)
        .start();
    let last = mesh.node(LAST).peer(&middle).start();
    first.wait_reachable([MIDDLE, LAST]);
    wait_for("echo of the last node", || {
        let known = first.ctl(&["capabilities", "--json"]);
        let known: Value = serde_json::from_slice(&known.stdout).unwrap();
        let nodes = known["nodes"].as_array().unwrap().clone();
        let node = nodes.into_iter().find(|node| node["node"] == LAST)?;
        let ready = |plugin: &Value| plugin["plugin"] == "echo" && plugin["ready"] == true;
        node["plugins"].as_array()?.iter().any(ready).then_some(())
    });
    [first, middle, last]
}

#[test]
fn every_command_answers_people_and_programs() {
    let mesh = Mesh::new();
    let [first, _middle, _last] = row(&mesh);
    let commands: [(&[&str], &str); 10] = [
        (&["status"], "1 of 1 up"),
        (&["nodes"], LAST),
        (&["routes"], LAST),
        (&["links"], MIDDLE),
        (&["capabilities"], LAST),
        (&["ping", LAST], "hops=2"),
        (&["traceroute", LAST], MIDDLE),
        (&["plugin", "list"], "echo"),
        (&["plugin", "describe", "echo"], "takes bytes"),
        (&["plugin", "restart", "echo"], "serve"),
    ];
    for (args, expected) in commands {
        let people = first.ctl(args);
        assert_eq!(people.status.code(), Some(0), "{args:?}: {people:?}");
        assert!(people.stderr.is_empty(), "{args:?}: {people:?}");
        let shown = text(&people.stdout);
        assert!(shown.contains(expected), "{args:?}: {shown}");
        let programs = first.ctl(&[args, &["--json"]].concat());
        assert_eq!(programs.status.code(), Some(0), "{args:?}: {programs:?}");
        for line in text(&programs.stdout).lines() {
            let value: Value = serde_json::from_str(line).unwrap();
            assert!(value.is_object(), "{args:?}: {line}");
        }
    }
    let restarted = first.ctl(&["plugin", "restart", "echo", "--json"]);
    let restarted: Value = serde_json::from_slice(&restarted.stdout).unwrap();
    assert_eq!(
        (&restarted["name"], &restarted["mode"]),
        (&"echo".into(), &"serve".into())
    );
}

#[test]
fn what_is_not_there_is_told_each_in_its_own_words() {
    let mesh = Mesh::new();
    let [first, _middle, _last] = row(&mesh);
    let send = |recipient: &str, directive: &str| {
        let args = [
            "send",
            "--recipient",
            recipient,
            "--directive",
            directive,
            "{}",
        ];
        let output = first.ctl(&args);
        assert!(output.stdout.is_empty(), "{output:?}");
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        text(&output.stderr)
    };
    for (recipient, directive, code, words) in [
        ("nobody", "echo:echo", "no-such-node", "nobody"),
        (LAST, "nothing:go", "no-such-plugin", "installed: echo"),
        (LAST, "echo:nothing", "no-such-action", "it has "),
        (LAST, "echo:sleep", "invalid-payload", "ms"),
    ] {
        let told = send(recipient, directive);
        assert!(told.contains(&format!("({code})")), "{told}");
        assert!(told.contains(words), "{told}");
        assert_eq!(told.lines().count(), 1, "{told}");
    }
    let ping = first.ctl(&["ping", "nobody"]);
    assert_eq!(ping.status.code(), Some(1));
    assert!(text(&ping.stderr).contains("no-such-node"), "{ping:?}");
}

#[test]
fn a_reload_says_what_is_in_force_and_what_waits_for_a_restart() {
    let mesh = Mesh::new();
    let node = mesh.node("node-a").start();
    let config = std::fs::read_to_string(node.config_path()).unwrap_or_default();
    let more = "[link]\nhold-time = \"9s\"\nmax-links = 9\n[spool]\ndefault-expiry = \"1h\"\nmax-entries = 9\n[routing]\nhop-limit = 9\n";
    std::fs::write(node.config_path(), format!("{config}\n{more}")).unwrap();
    let output = node.ctl(&["reload", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let reply: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        reply["applied"],
        // What one address may have is a share of all.
        serde_json::json!([
            "link.max-links",
            "link.max-links-per-source",
            "spool.default-expiry"
        ])
    );
    assert_eq!(
        reply["needs_restart"],
        serde_json::json!(["link.hold-time", "routing.hop-limit", "spool.max-entries"])
    );
}
