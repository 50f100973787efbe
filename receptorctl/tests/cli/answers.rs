//! What each command makes of a full answer, for people and in JSON.

use crate::fake::Daemon;

const STATUS: &str = concat!(
    r#"{"NodeID":"controller","Version":"0.1.0","SystemCPUCount":2,"SystemMemoryMiB":3900,"Connections":[{"NodeID":"relay","Cost":1.0}],"RoutingTable":{"relay":"relay","node-b":"relay"},"Advertisements":[],"KnownConnectionCosts":{},"#,
    r#""receptor":{"node":"controller","version":"0.1.0","control":1,"pid":4711,"uptime_ms":7384000,"router":true,"data_dir":"/var/lib/receptor","listeners":["rnps://[::]:8899","rnp://127.0.0.1:8888"],"#,
    r#""peers":[{"node":"relay","address":"rnps://relay.example.com:8899","state":"up","cost":10,"rtt_us":420,"error":null},"#,
    r#"{"node":null,"address":"rnps://edge.example.com:8899","state":"waiting","cost":10,"rtt_us":null,"error":{"code":"transport","message":"connection refused"}}],"#,
    r#""nodes_reachable":3,"nodes_known":4,"works_active":2,"spool":{"entries":17,"bytes":123456,"max_bytes":10737418240},"#,
    r#""plugins":[{"name":"echo","version":"0.1.0","mode":"serve","ready":true,"reason":null,"path":"/usr/lib/receptor/plugins/echo","actions":["echo","sink"],"about":"Answers","running":1,"waiting":0},"#,
    r#"{"name":"runner","version":"","mode":"job","ready":false,"reason":"ansible-runner was not found in PATH","path":"/usr/lib/receptor/plugins/runner","actions":[],"about":"","running":0,"waiting":0}],"#,
    r#""clients":1,"security":"tls","warnings":["the spool is 95 % full\nand this is \u001b[31mred"],"more":1}}"#,
    "\n"
);

const NODES: &str = concat!(
    r#"{"nodes":[{"node":"controller","reachable":true,"cost":0,"hops":0,"router":true,"software":"receptord 0.1.0","metadata":{},"plugins":[],"links":{"relay":1},"changed_ms":60000},"#,
    r#"{"node":"edge","reachable":false,"cost":null,"hops":null,"router":false,"software":"\u001b]0;evil\u0007","metadata":{},"plugins":[],"links":{},"changed_ms":90061000},"#,
    r#"{"node":"node-b","reachable":true,"cost":2,"hops":2,"router":true,"software":"receptord 0.1.0","metadata":{"site":"berlin","rack":"4"},"plugins":["echo","runner"],"links":{"relay":1},"changed_ms":5000}]}"#,
    "\n"
);

const ROUTES: &str = concat!(
    r#"{"routes":[{"destination":"node-b","next_hop":"relay","via":"rnps://relay.example.com:8899","cost":2,"hops":2},"#,
    r#"{"destination":"relay","next_hop":"relay","via":"rnps://relay.example.com:8899","cost":1,"hops":1}]}"#,
    "\n"
);

const LINKS: &str = concat!(
    r#"{"links":[{"node":"relay","state":"up","address":"rnps://relay.example.com:8899","dialled":true,"cost":1,"rtt_us":420,"age_ms":3661000,"heard_ms":12,"frames_out":10,"frames_in":11,"bytes_out":123456,"bytes_in":1048576,"queued":0,"dropped":0,"error":null},"#,
    r#"{"node":null,"state":"waiting","address":"rnps://edge.example.com:8899","dialled":true,"cost":10,"rtt_us":null,"age_ms":1500,"heard_ms":null,"frames_out":0,"frames_in":0,"bytes_out":0,"bytes_in":0,"queued":0,"dropped":3,"error":{"code":"transport","message":"connection refused"}}]}"#,
    "\n"
);

const CAPABILITIES: &str = concat!(
    r#"{"nodes":[{"node":"controller","reachable":true,"metadata":{},"plugins":[]},"#,
    r#"{"node":"node-b","reachable":true,"metadata":{"site":"berlin"},"plugins":[{"plugin":"echo","version":"0.1.0","ready":true,"actions":["echo","sink"]},{"plugin":"runner","version":"0.1.0","ready":false,"actions":["execute"]}]}]}"#,
    "\n"
);

const PLUGINS: &str = concat!(
    r#"{"plugins":[{"name":"echo","version":"0.1.0","mode":"serve","ready":true,"reason":null,"path":"/usr/lib/receptor/plugins/echo","actions":["echo","sink"],"about":"Answers","running":1,"waiting":0},"#,
    r#"{"name":"runner","version":"","mode":"job","ready":false,"reason":"ansible-runner was not found in PATH","path":"/usr/lib/receptor/plugins/runner","actions":[],"about":"","running":0,"waiting":0}]}"#,
    "\n"
);

const WORKS: &str = concat!(
    r#"{"works":[{"id":"0123456789abcdef0123456789abcdef","role":"sent","state":"running","cancelling":true,"directive":"runner:execute","sender":"controller","recipient":"node-b","age_ms":61000,"responses":17,"kept_bytes":40960},"#,
    r#"{"id":"1123456789abcdef0123456789abcdef","role":"here","state":"running","directive":"deploy:unpack","sender":"node-b","recipient":"controller","age_ms":5000,"message":"unpacking \u001b[31mred","progress":[3,10],"responses":2,"kept_bytes":0},"#,
    r#"{"id":"2123456789abcdef0123456789abcdef","role":"sent","state":"failed","sender":"controller","age_ms":3000,"ended_ms":1000,"code":3,"responses":1,"kept_bytes":0},"#,
    r#"{"id":"3123456789abcdef0123456789abcdef","role":"sent","state":"refused","directive":"a:b","sender":"controller","recipient":"node-b","age_ms":3000,"ended_ms":1000,"code":1,"error":{"code":"no-such-plugin","message":"node-b has no plugin a","detail":{"stderr":"one\ntwo"}},"responses":1,"kept_bytes":0,"dropped":true}],"total":17}"#,
    "\n"
);

const SPOOL: &str = concat!(
    r#"{"messages":[{"id":"0123456789abcdef0123456789abcdef","kind":"request","recipient":"edge-17","directive":"backup:store","size":1048576,"age_ms":7384000,"expires_ms":79016000,"reason":"no-route"},"#,
    r#"{"id":"1123456789abcdef0123456789abcdef","kind":"response","recipient":"node-b","serial":3,"size":120,"expires_ms":600000000,"reason":"no-receipt","volatile":true},"#,
    r#"{"id":"2123456789abcdef0123456789abcdef","kind":"request","recipient":"later","directive":"a:b","size":0,"expires_ms":1000,"reason":"unknown-node"},"#,
    r#"{"id":"3123456789abcdef0123456789abcdef","kind":"cancel","recipient":"node-b","size":0,"expires_ms":1000,"reason":"not-sent"}],"total":1000}"#,
    "\n"
);

const LETTERS: &str = concat!(
    r#"{"letters":[{"id":"0123456789abcdef0123456789abcdef","directive":"backup:store","recipient":"edge-17","size":1048576,"age_ms":61000,"reason":{"code":"expired","message":"the message's lifetime ended before its recipient had it"}}],"total":1}"#,
    "\n"
);

const TRACE: &str = concat!(
    r#"{"hop":1,"Success":true,"From":"relay","Time":423456,"TimeStr":"0.42ms","hops":1,"active":0,"works":[]}"#,
    "\n",
    r#"{"hop":2,"Success":true,"From":"node-b","Time":1239999,"TimeStr":"1.24ms","hops":2,"active":0,"works":[],"eof":true}"#,
    "\n"
);

const TRACE_BROKEN: &str = concat!(
    r#"{"hop":1,"Success":true,"From":"relay","Time":423456,"hops":1}"#,
    "\n",
    r#"{"hop":2,"Success":false,"Error":"there is no way to node-b now","error":{"code":"no-route","message":"there is no way to node-b now"},"eof":true}"#,
    "\n"
);

/// Runs a command against one answer; in JSON the answer comes out as it went in.
fn shown(args: &[&str], answer: &'static str) -> String {
    let json = Daemon::answering(answer).run(args.iter().chain(&["--json"]));
    assert_eq!(json.stdout(), answer, "{args:?}");
    let people = Daemon::answering(answer).run(args);
    assert_eq!(people.code, json.code, "{args:?}");
    let text = people.shown();
    let control = |c: char| c.is_control() && c != '\n';
    assert!(!text.contains(control), "{text}");
    text
}

#[test]
fn status() {
    insta::assert_snapshot!("status", shown(&["status"], STATUS));
}

#[test]
fn nodes() {
    insta::assert_snapshot!("nodes", shown(&["nodes"], NODES));
}

#[test]
fn routes() {
    insta::assert_snapshot!("routes", shown(&["routes"], ROUTES));
}

#[test]
fn links() {
    insta::assert_snapshot!("links", shown(&["links"], LINKS));
}

#[test]
fn capabilities() {
    insta::assert_snapshot!("capabilities", shown(&["capabilities"], CAPABILITIES));
}

#[test]
fn plugins() {
    insta::assert_snapshot!("plugins", shown(&["plugin", "list"], PLUGINS));
}

#[test]
fn traceroute() {
    insta::assert_snapshot!("traceroute", shown(&["traceroute", "node-b"], TRACE));
    insta::assert_snapshot!(
        "traceroute_broken",
        shown(&["traceroute", "node-b"], TRACE_BROKEN)
    );
}

#[test]
fn works() {
    insta::assert_snapshot!("work_list", shown(&["work", "list"], WORKS));
    insta::assert_snapshot!("work_show", shown(&["work", "show", "0123"], WORKS));
}

#[test]
fn spool() {
    insta::assert_snapshot!("spool_list", shown(&["spool", "list"], SPOOL));
    insta::assert_snapshot!("dead_letter_list", shown(&["dead-letter", "list"], LETTERS));
}

#[test]
fn what_changes_something_says_so_in_a_line() {
    let id = "0123456789abcdef0123456789abcdef";
    for (args, answer, line) in [
        (
            &["work", "cancel", "0123"][..],
            "{\"cancelling\":\"ID\"}\n",
            "cancelling ID\n",
        ),
        (
            &["work", "release", "0123"],
            "{\"released\":\"ID\"}\n",
            "released ID\n",
        ),
        (
            &["spool", "drop", "0123"],
            "{\"dropped\":\"ID\"}\n",
            "dropped ID\n",
        ),
        (
            &["dead-letter", "drop", "0123"],
            "{\"dropped\":\"ID\"}\n",
            "dropped ID\n",
        ),
        (
            &["dead-letter", "retry", "0123"],
            "{\"retried\":\"ffffffffffffffffffffffffffffffff\",\"id\":\"ID\",\"recipient\":\"b\"}\n",
            "ID\n",
        ),
    ] {
        let answer: &'static str = answer.replace("ID", id).leak();
        Daemon::answering(answer)
            .run(args)
            .expect(0, &line.replace("ID", id), "");
    }
}

#[test]
fn empty_lists_say_so_on_stderr() {
    for (args, answer) in [
        (&["nodes"][..], "{\"nodes\":[]}\n"),
        (&["routes"], "{\"routes\":[]}\n"),
        (&["links"], "{\"links\":[]}\n"),
        (&["capabilities"], "{\"nodes\":[]}\n"),
        (&["plugin", "list"], "{\"plugins\":[]}\n"),
        (&["work", "list"], "{\"works\":[],\"total\":0}\n"),
        (&["spool", "list"], "{\"messages\":[],\"total\":0}\n"),
        (&["dead-letter", "list"], "{\"letters\":[],\"total\":0}\n"),
    ] {
        let answer = Daemon::answering(answer).run(args);
        assert_eq!((answer.code, answer.stdout()), (Some(0), ""), "{args:?}");
        assert_eq!(answer.stderr.lines().count(), 1, "{args:?}");
    }
}

#[test]
fn reload() {
    let good = "{\"Success\":true,\"applied\":[\"log-level\"],\"needs_restart\":[\"node-id\"]}\n";
    Daemon::answering(good).run(["reload"]).expect(
        0,
        "applied: log-level\nneeds a restart: node-id\n",
        "",
    );
    Daemon::answering("{\"Success\":true}\n")
        .run(["reload"])
        .expect(0, "", "reloaded; nothing has changed\n");
    let bad = "{\"Success\":false,\"Error\":\"receptord.toml:3: spool.max-bytes: \\\"1 zebra\\\"\\nreceptord.toml:9: x: unknown key\"}\n";
    Daemon::answering(bad).run(["reload"]).expect(
        78,
        "",
        "receptorctl: the configuration was not reloaded; the old one stays in force\n\
         receptorctl: receptord.toml:3: spool.max-bytes: \"1 zebra\"\n\
         receptorctl: receptord.toml:9: x: unknown key\n",
    );
}

#[test]
fn log_level() {
    for (args, command) in [
        (
            &["log-level"][..],
            serde_json::json!({"command": "log-level"}),
        ),
        (
            &["log-level", "debug"],
            serde_json::json!({"command": "log-level", "level": "debug"}),
        ),
    ] {
        let daemon = Daemon::new(move |clients| {
            let mut client = clients.next();
            assert_eq!(client.command(), command);
            client.say("{\"level\":\"debug\"}\n");
            client.gone();
        });
        daemon.run(args).expect(0, "debug\n", "");
    }
}

#[test]
fn cancel() {
    let id = crate::fake::ID;
    let daemon = Daemon::new(move |clients| {
        let mut client = clients.next();
        assert_eq!(
            client.command(),
            serde_json::json!({"command": "cancel", "id": id})
        );
        client.say(&format!("{{\"cancelling\":\"{id}\"}}\n"));
        client.gone();
    });
    daemon
        .run(["work", "cancel", id])
        .expect(0, &format!("cancelling {id}\n"), "");
}

#[test]
fn plugin_restart() {
    let daemon = Daemon::new(|clients| {
        let mut client = clients.next();
        assert_eq!(
            client.command(),
            serde_json::json!({"command": "plugin-restart", "name": "echo"})
        );
        client.say("{\"name\":\"echo\",\"version\":\"0.1.0\",\"mode\":\"serve\",\"ready\":true,\"reason\":null,\"path\":\"/p/echo\",\"actions\":[\"echo\"],\"about\":\"\",\"running\":0,\"waiting\":0}\n");
        client.gone();
    });
    let answer = daemon.run(["plugin", "restart", "echo"]);
    assert_eq!(answer.code, Some(0), "{answer:?}");
    assert!(answer.stdout().contains("ready"), "{answer:?}");
}

/// What a command says on a terminal of its own.
fn on_a_terminal(answer: &'static str, no_color: &str) -> String {
    let daemon = Daemon::answering(answer);
    let output = std::process::Command::new("script")
        .args([
            "-qec",
            &format!("{} nodes", env!("CARGO_BIN_EXE_receptorctl")),
            "/dev/null",
        ])
        .env("RECEPTOR_SOCKET", daemon.socket())
        .env("NO_COLOR", no_color)
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_terminal_is_needed_for_colours() {
    let answer = Daemon::answering(NODES).run(["nodes"]);
    assert!(!answer.stdout.contains(&0x1b));
    let text = on_a_terminal(NODES, "");
    assert!(text.contains("\u{1b}[32mreachable\u{1b}[0m"), "{text:?}");
    assert!(text.contains("\u{1b}[31munreachable\u{1b}[0m"), "{text:?}");
    assert!(!on_a_terminal(NODES, "1").contains('\u{1b}'));
}
