//! What rules forbid, with real daemons: who is told, what is logged, and what a reload changes.

#![expect(clippy::unwrap_used, reason = "the helpers of tests fail like tests")]

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Command, Output, Stdio};

use nix::unistd::Uid;
use receptor_tests::{Daemon, Mesh, program, wait_for};
use serde_json::{Value, json};

const DENIED: Option<i32> = Some(77);
const DONE: Option<i32> = Some(0);

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn stderr(output: &Output) -> String {
    text(&output.stderr)
}

fn send(at: &Daemon, to: &[&str], directive: &str, payload: &str) -> Output {
    let begin = ["send", "--directive", directive];
    at.ctl(&[&begin[..], to, &[payload]].concat())
}

/// Has a daemon go on with other rules.
fn reload(daemon: &Daemon, config: &str) {
    fs::write(daemon.config_path(), config).unwrap();
    let output = daemon.ctl(&["reload"]);
    assert_eq!(output.status.code(), DONE, "{output:?}");
}

fn wait_echo(at: &Daemon, node: &str) {
    wait_for("the echo plugin", || {
        let reply = at.control().json("capabilities");
        let nodes = reply["nodes"].as_array()?.clone();
        let node = nodes.into_iter().find(|entry| entry["node"] == node)?;
        let echo = |plugin: &Value| plugin["plugin"] == "echo" && plugin["ready"] == true;
        node["plugins"].as_array()?.iter().any(echo).then_some(())
    });
}

/// How often a text stands in the log of a daemon.
fn logged(daemon: &Daemon, text: &str) -> usize {
    daemon.log().matches(text).count()
}

#[test]
fn directives_are_for_those_whom_a_rule_permits_them() {
    let mesh = Mesh::new();
    let a = mesh.node("a").start();
    let rules = "[[allow]]
from = [\"?\"]
directive = [\"echo:sleep\"]
deny = true

[[allow]]
from = [\"controller*\"]
directive = [\"echo:*\"]

[capabilities]
site = \"b\"
";
    let b = mesh.node("b").peer(&a).config(rules).start();
    a.wait_ping("b");
    wait_echo(&a, "b");

    // What no rule names, and what a rule denies.
    for (directive, why) in [
        ("echo:echo", "no [[allow]] rule permits it"),
        ("echo:sleep", "the [[allow]] rule at "),
    ] {
        for _ in 0..3 {
            let output = send(&a, &["--recipient", "b"], directive, "1");
            assert_eq!(output.status.code(), DENIED, "{output:?}");
            assert!(output.stdout.is_empty(), "{output:?}");
            let expected = format!("b does not permit {directive} to a (permission-denied)");
            assert!(stderr(&output).contains(&expected), "{output:?}");
        }
        b.wait_log(why);
        assert_eq!(logged(&b, why), 1, "once, not for each message");
    }
    let place = format!("{}:1 says so", b.config_path().display());
    assert!(b.log().contains(&place), "{}", b.log());
    let who = b.log();
    let line = who.lines().find(|line| line.contains(&place)).unwrap();
    assert!(
        line.contains("sender=a") && line.contains("directive=echo:sleep"),
        "{line}"
    );

    // Chosen by the mesh; and too large for one packet: its payload does not come.
    let output = send(&a, &["--any", "--where", "site=b"], "echo:echo", "1");
    assert_eq!(output.status.code(), DENIED, "{output:?}");
    let large = mesh.dir().join("large");
    fs::write(&large, vec![7; 4 << 20]).unwrap();
    let at_file = format!("@{}", large.display());
    let output = send(&a, &["--recipient", "b"], "echo:echo", &at_file);
    assert_eq!(output.status.code(), DENIED, "{output:?}");
    let payloads = b.data_dir().join("spool/payloads");
    let kept = fs::read_dir(&payloads).map_or(0, Iterator::count);
    assert_eq!(kept, 0, "{}", payloads.display());
    // How it ended is known where it was sent, also to who asks later.
    let list = text(&a.ctl(&["work", "list", "--json"]).stdout);
    assert!(list.contains("permission-denied"), "{list}");
    assert_eq!(logged(&b, "message refused"), 2, "{}", b.log());

    // A reload permits it, denies it again, and drops no link.
    let permits = "[[allow]]\nfrom = [\"a\"]\ndirective = [\"echo:e*\"]\n";
    reload(&b, permits);
    let output = send(&a, &["--recipient", "b"], "echo:echo", "1");
    assert_eq!(output.status.code(), DONE, "{output:?}");
    reload(&b, rules);
    let output = send(&a, &["--recipient", "b"], "echo:echo", "1");
    assert_eq!(output.status.code(), DENIED, "{output:?}");
    // Without any rule everything is as it was before there were any.
    reload(&b, "");
    let output = send(&a, &["--recipient", "b"], "echo:sleep", "{\"ms\":1}");
    assert_eq!(output.status.code(), DONE, "{output:?}");
    assert_eq!(logged(&a, "neighbor up"), 1);
    assert_eq!(logged(&b, "neighbor up"), 1);
}

#[test]
fn what_was_accepted_is_not_run_once_a_rule_forbids_it() {
    let mesh = Mesh::new();
    let a = mesh.node("a").start();
    let mut b = mesh.node("b").peer(&a).start();
    a.wait_ping("b");
    wait_echo(&a, "b");
    let send = json!({"command": "send", "directive": "echo:sleep", "recipient": "b", "payload": {"ms": 600_000}});
    let mut client = a.control();
    client.write(format!("{send}\n"));
    wait_for("the work on b", || {
        let works = b.control().json("works");
        let works = works["works"].as_array()?.clone();
        works
            .iter()
            .any(|work| work["state"] == "running")
            .then_some(())
    });
    b.kill();
    fs::write(
        b.config_path(),
        "[[allow]]\nfrom = [\"x\"]\ndirective = [\"*\"]\n",
    )
    .unwrap();
    b.restart();
    let code = loop {
        let reply = client.reply();
        if reply["eof"] == true {
            break reply["error"]["code"].clone();
        }
    };
    // It had begun, or it had not: it is not run now.
    assert!(
        code == "permission-denied" || code == "interrupted",
        "{code}"
    );
}

#[test]
fn links_are_for_those_whom_a_rule_permits_them() {
    let mesh = Mesh::new();
    let rules = "[[allow-link]]\nnode = [\"b*\"]\n";
    let a = mesh.node("a").config(rules).start();
    let b = mesh.node("b1").peer(&a).start();
    let c = mesh.node("c").peer(&a).start();
    a.wait_reachable("b1");
    c.wait_log("the link is refused: a does not permit links with c");
    a.wait_log("no [[allow-link]] rule permits it");
    // A refused node does not hammer: one attempt, then 5 seconds or more.
    assert_eq!(logged(&c, "the link is refused"), 1);

    // The other side has a say, too.
    let d = mesh
        .node("b2")
        .peer(&a)
        .config("[[allow-link]]\nnode = [\"x\"]\n")
        .start();
    d.wait_log("no [[allow-link]] rule permits it");
    wait_for("the refusal at a", || {
        a.log()
            .contains("b2 does not permit links with a")
            .then_some(())
    });

    // New rules take effect at once: c may come, and b1 has to go.
    reload(
        &a,
        "[[allow-link]]\nnode = [\"b1\"]\ndeny = true\n\n[[allow-link]]\nnode = [\"*\"]\n",
    );
    b.wait_log("the link is refused: a does not permit links with b1");
    a.wait_unreachable("b1");
    a.wait_reachable("c");
    reload(&a, "[[allow-link]]\nnode = [\"c\", \"e\"]\n");
    let e = mesh.node("e").peer(&a).start();
    e.wait_reachable("c");
    let log = a.log();
    let up = log
        .lines()
        .filter(|line| line.contains("neighbor up") && line.contains("peer=c "));
    assert_eq!(
        up.count(),
        1,
        "a reload drops no link that it permits: {log}"
    );
}

#[test]
fn what_is_not_forwarded_ends_and_says_so() {
    let mesh = Mesh::new();
    let rules = "[[allow-transit]]\nfrom = [\"controller\"]\nto = [\"edge-*\"]\n";
    let relay = mesh.node("relay").config(rules).start();
    let a = mesh.node("a").peer(&relay).start();
    let controller = mesh.node("controller").peer(&relay).start();
    let edge = mesh.node("edge-1").peer(&relay).start();
    a.wait_reachable(["edge-1", "relay"]);
    controller.wait_ping("edge-1");
    edge.wait_ping("controller");
    wait_echo(&controller, "edge-1");
    wait_echo(&a, "edge-1");

    // For whom it forwards it does so both ways.
    let to_edge = ["--recipient", "edge-1"];
    let output = send(&controller, &to_edge, "echo:echo", "{\"n\":7}");
    assert_eq!(output.status.code(), DONE, "{output:?}");
    assert!(text(&output.stdout).contains('7'), "{output:?}");

    // For others not, and they hear from whom, at once and each time.
    for _ in 0..3 {
        let output = send(&a, &to_edge, "echo:echo", "1");
        assert_eq!(output.status.code(), DENIED, "{output:?}");
        let expected = "relay does not forward from a to edge-1 (permission-denied)";
        assert!(stderr(&output).contains(expected), "{output:?}");
    }
    let volatile = ["--recipient", "edge-1", "--volatile"];
    let output = send(&a, &volatile, "echo:echo", "1");
    assert_eq!(output.status.code(), DENIED, "{output:?}");
    let large = mesh.dir().join("large");
    fs::write(&large, vec![7; 4 << 20]).unwrap();
    let at_file = format!("@{}", large.display());
    let output = send(&a, &to_edge, "echo:echo", &at_file);
    assert_eq!(output.status.code(), DENIED, "{output:?}");
    let ping = a.ctl(&["ping", "edge-1"]);
    assert_eq!(ping.status.code(), DENIED, "{ping:?}");
    assert!(
        stderr(&ping).contains("relay on the way does not forward to edge-1"),
        "{ping:?}"
    );
    // The relay itself is there for everybody.
    assert_eq!(a.ctl(&["ping", "relay"]).status.code(), DONE);
    assert_eq!(
        logged(
            &relay,
            "packet not forwarded: no [[allow-transit]] rule permits it"
        ),
        1
    );
    // Nothing is lost silently: what was accepted is a dead letter, and can be sent again.
    let letters = text(&a.ctl(&["dead-letter", "list", "--json"]).stdout);
    assert!(letters.contains("permission-denied"), "{letters}");

    // A reload forwards for all, and drops no link.
    reload(&relay, "");
    let output = send(&a, &to_edge, "echo:echo", "1");
    assert_eq!(output.status.code(), DONE, "{output:?}");
    assert_eq!(logged(&relay, "neighbor up"), 3);
}

#[test]
fn policy_test_names_the_rule_of_the_daemon_and_of_a_file() {
    const RULES: &str = "node-id = \"a\"

[[allow]]
from = [\"controller*\"]
directive = [\"echo:*\"]

[[allow-link]]
node = [\"x\"]
deny = true

[[allow-transit]]
from = [\"controller\"]
to = [\"edge-*\"]

[[allow-control]]
user = [\"61003\"]
may = \"look\"

[[allow-control]]
user = [\"61004\"]
may = \"nothing\"
";
    let mesh = Mesh::new();
    let node = mesh.node("a").config(RULES).start();
    let file = node.config_path().display().to_string();
    let at = |line: u32| Some(format!("{file}:{line}"));
    let ask = |args: &[&str], permitted: bool, kind: &str, rule: &Option<String>| {
        let args = [&["policy", "test"][..], args].concat();
        for more in [&[][..], &["--config", &file]] {
            let output = node.ctl(&[&args[..], more, &["--json"]].concat());
            let code = if permitted { 0 } else { 1 };
            assert_eq!(output.status.code(), Some(code), "{args:?}: {output:?}");
            let reply: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(reply["permitted"], permitted, "{reply}");
            assert_eq!(reply["kind"], kind, "{reply}");
            assert_eq!(reply["rule"].as_str(), rule.as_deref(), "{reply}");
            // For people the same on one line.
            let output = node.ctl(&[&args[..], more].concat());
            assert_eq!(output.status.code(), Some(code), "{args:?}: {output:?}");
            let shown = text(&output.stdout);
            assert_eq!(shown.lines().count(), 1, "{shown}");
            assert!(shown.contains(rule.as_deref().unwrap_or(kind)), "{shown}");
        }
    };
    let echo = ["--directive", "echo:echo"];
    ask(
        &[&["--from", "controller-1"], &echo[..]].concat(),
        true,
        "allow",
        &at(3),
    );
    ask(
        &[&["--from", "controller-1", "--to", "a"], &echo[..]].concat(),
        true,
        "allow",
        &at(3),
    );
    ask(
        &[&["--from", "edge-1"], &echo[..]].concat(),
        false,
        "allow",
        &None,
    );
    ask(&["--link", "x"], false, "allow-link", &at(7));
    ask(&["--link", "y"], false, "allow-link", &None);
    ask(
        &["--from", "edge-1", "--to", "controller"],
        true,
        "allow-transit",
        &at(11),
    );
    ask(
        &["--from", "edge-1", "--to", "edge-2"],
        false,
        "allow-transit",
        &None,
    );
    ask(&["--user", "61003"], true, "allow-control", &at(15));
    ask(&["--user", "61004"], false, "allow-control", &at(19));
    let root = node.ctl(&["policy", "test", "--user", "root"]);
    let always = "may administer: root and the daemon's own user always may\n";
    assert_eq!(text(&root.stdout), always);

    // What it says is what is in force, also after a reload; the file can be ahead of that.
    fs::write(node.config_path(), "node-id = \"a\"\n").unwrap();
    let question = ["policy", "test", "--link", "y"];
    assert_eq!(node.ctl(&question).status.code(), Some(1));
    let of_file = [&question[..], &["--config", &file]].concat();
    assert_eq!(node.ctl(&of_file).status.code(), DONE);
    assert_eq!(node.ctl(&["reload"]).status.code(), DONE);
    let output = node.ctl(&question);
    assert_eq!(
        text(&output.stdout),
        "permitted: there is no [[allow-link]] rule\n"
    );

    // Without a daemon; and what is wrong.
    fs::write(node.config_path(), "[[allow-link]]\nnode = [\"a b\"]\n").unwrap();
    let output = node.ctl(&of_file);
    assert_eq!(output.status.code(), Some(78), "{output:?}");
    assert!(
        stderr(&output).contains(&format!("{file}:2: allow-link[0].node")),
        "{output:?}"
    );
    for wrong in [
        &["policy", "test"][..],
        &["policy", "test", "--from", "x"],
        &["policy", "test", "--link", "x", "--directive", "a:b"],
        &["policy", "test", "--link", "x", "--user", "0"],
        &["policy", "test", "--from", "x", "--to", "a"],
        &["policy", "test", "--user", "no such user"],
    ] {
        let output = node.ctl(wrong);
        assert_ne!(output.status.code(), DONE, "{output:?}");
        assert!(
            output.stdout.is_empty() && !output.stderr.is_empty(),
            "{output:?}"
        );
    }
}

/// Sends the same one-way message some times, and once more when it is told to; says what the daemon answers.
const REPEATS: &str = "
import os, socket, sys
daemon = socket.socket(socket.AF_UNIX)
daemon.settimeout(30)
daemon.connect(os.environ['RECEPTOR_SOCKET'])
lines = daemon.makefile('r')
lines.readline()
one = b'{\"command\":\"send\",\"directive\":\"echo:discard\",\"recipient\":\"a\",\"volatile\":true,\"respond\":false,\"quiet\":true,\"payload\":1}\\n'
daemon.sendall(one * 3)
# What comes behind is answered behind.
daemon.sendall(b'{\"command\":\"nodes\"}\\n')
lines.readline()
print('sent', flush=True)
sys.stdin.readline()
daemon.sendall(one)
print(lines.readline(), flush=True)
";

/// A user without rights of its own, who has a copy of receptorctl.
struct Stranger<'a> {
    at: &'a Daemon,
    program: std::path::PathBuf,
    uid: u32,
    groups: &'static str,
}

impl Stranger<'_> {
    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let uid = self.uid.to_string();
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid", &uid, "--regid", "65534", "--groups", self.groups])
            .arg(program)
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("RECEPTOR_SOCKET", self.at.socket_path());
        command
    }

    fn ctl(&self, args: &[&str]) -> Output {
        self.command(&self.program).args(args).output().unwrap()
    }

    fn run(&self, program: &str, args: &[&str]) -> Child {
        let mut command = self.command(program);
        command
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        command.spawn().unwrap()
    }

    fn code(&self, args: &[&str]) -> Option<i32> {
        self.ctl(args).status.code()
    }
}

#[test]
fn the_control_socket_is_for_those_whom_a_rule_permits_it() {
    if !Uid::effective().is_root() {
        // The daemon's own user always may, and only root can be somebody else.
        let text = "SKIPPED, nothing was tested: only root can be somebody else\n";
        let _ = std::io::stderr().write_all(text.as_bytes());
        return;
    }
    const RULES: &str = "[control]
mode = \"0666\"

[[allow-control]]
user = [\"61001\"]
may = \"nothing\"

[[allow-control]]
group = [\"61050\"]
may = \"send\"

[[allow-control]]
user = [\"61002\"]
may = \"administer\"

[[allow-control]]
user = [\"61003\"]
may = \"look\"
";
    let mesh = Mesh::new();
    fs::set_permissions(mesh.dir(), fs::Permissions::from_mode(0o755)).unwrap();
    let copy = mesh.dir().join("receptorctl");
    fs::copy(program("receptorctl"), &copy).unwrap();
    let node = mesh.node("a").config(RULES).start();
    wait_echo(&node, "a");
    let person = |uid, groups| Stranger {
        at: &node,
        program: copy.clone(),
        uid,
        groups,
    };
    let send = ["send", "--recipient", "a", "--directive", "echo:echo", "1"];
    let nobody = person(61_001, "61050");
    let sender = person(61_009, "61049,61050");
    let other_sender = person(61_008, "61050");
    let administrator = person(61_002, "61049");
    let looker = person(61_003, "61049");
    let unknown = person(61_009, "61049");

    // Who may what.
    let look = [
        &["status"][..],
        &["nodes"],
        &["work", "list"],
        &["spool", "list"],
        &["log-level"],
        &["ping", "a"],
    ];
    let administer = [
        &["reload"][..],
        &["log-level", "info"],
        &["plugin", "restart", "echo"],
    ];
    let code = |may: bool| if may { DONE } else { DENIED };
    for (who, right) in [
        (&nobody, 0),
        (&unknown, 0),
        (&looker, 1),
        (&sender, 2),
        (&administrator, 3),
    ] {
        for args in look {
            let output = who.ctl(args);
            let expected = code(right >= 1);
            assert_eq!(
                output.status.code(),
                expected,
                "{} {args:?}: {output:?}",
                who.uid
            );
        }
        let output = who.ctl(&send);
        let expected = code(right >= 2);
        assert_eq!(output.status.code(), expected, "{}: {output:?}", who.uid);
        for args in administer {
            let output = who.ctl(args);
            let expected = code(right >= 3);
            assert_eq!(
                output.status.code(),
                expected,
                "{} {args:?}: {output:?}",
                who.uid
            );
        }
    }
    let told = stderr(&looker.ctl(&send));
    assert!(told.contains("user 61003 has the right to look at a and not to send, which send takes (permission-denied)"), "{told}");
    // A payload behind a command that is refused is not taken for commands.
    let large = mesh.dir().join("large");
    fs::write(&large, b"reload\n".repeat(100_000)).unwrap();
    let at_file = format!("@{}", large.display());
    let args = [
        "send",
        "--recipient",
        "a",
        "--directive",
        "echo:echo",
        &at_file,
    ];
    assert_eq!(looker.code(&args), DENIED);

    // Logged with who, what and why; once.
    let log = node.log();
    let line = log
        .lines()
        .find(|line| line.contains("uid=61003") && line.contains("command denied"))
        .unwrap();
    for part in [
        "command=\"send\"",
        "pid=",
        "has=look",
        "needs=send",
        "receptord.toml:",
    ] {
        assert!(line.contains(part), "{part}: {line}");
    }
    let again = |line: &&str| line.contains("uid=61003") && line.contains("command=\"send\"");
    assert_eq!(log.lines().filter(again).count(), 1, "{log}");

    // One's own works, and those of others.
    let start = [
        "send",
        "--detach",
        "--recipient",
        "a",
        "--directive",
        "echo:sleep",
        "{\"ms\":600000}",
    ];
    let id = |who: &Stranger<'_>| text(&who.ctl(&start).stdout).trim().to_owned();
    let (own, others) = (id(&sender), id(&other_sender));
    assert_eq!(sender.code(&["work", "cancel", &others]), DENIED);
    assert_eq!(sender.code(&["work", "release", &others]), DENIED);
    assert_eq!(sender.code(&["spool", "drop", &others]), DENIED);
    // What was said can be read by all who may send, and by no other.
    assert_eq!(looker.code(&["work", "results", &own]), DENIED);
    assert_eq!(other_sender.code(&["work", "results", &own]), Some(75));
    assert_eq!(sender.code(&["work", "cancel", &own]), DONE);
    assert_eq!(administrator.code(&["work", "cancel", &others]), DONE);

    // Lines that repeat are not looked at one by one, and yet a reload ends them.
    let mut repeating = sender.run("python3", &["-c", REPEATS]);
    let mut answers = BufReader::new(repeating.stdout.take().unwrap()).lines();
    assert_eq!(answers.next().unwrap().unwrap(), "sent");
    reload(
        &node,
        "[control]\nmode = \"0666\"\n\n[[allow-control]]\nuser = [\"61001\"]\nmay = \"send\"\n",
    );
    repeating.stdin.take().unwrap().write_all(b"go\n").unwrap();
    let answer = answers.next().unwrap().unwrap();
    assert!(answer.contains("permission-denied"), "{answer}");
    assert!(repeating.wait().unwrap().success());
    reload(&node, RULES);

    // Root may, whatever the rules say; and a reload changes them for those who are connected.
    assert_eq!(node.ctl(&["status"]).status.code(), DONE);
    reload(
        &node,
        "[control]\nmode = \"0666\"\n\n[[allow-control]]\nuser = [\"61001\"]\nmay = \"send\"\n",
    );
    assert_eq!(nobody.code(&send), DONE);
    assert_eq!(administrator.code(&["status"]), DENIED);
    reload(&node, "[control]\nmode = \"0666\"\n");
    assert_eq!(administrator.code(&["reload"]), DONE);
}
