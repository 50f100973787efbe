//! `ping` against a scripted daemon.

use nix::sys::signal::Signal;
use serde_json::json;

use crate::fake::{Daemon, ID};

const GOOD: &str = r#"{"Success":true,"From":"node-b","Time":1239999,"TimeStr":"1.24ms","hops":2,"active":0,"works":[],"later":1}"#;

fn good(ns: u64) -> String {
    format!(r#"{{"Success":true,"From":"node-b","Time":{ns},"hops":2,"active":0}}"#) + "\n"
}

#[test]
fn one_echo_by_default() {
    let daemon = Daemon::new(|clients| {
        let mut client = clients.next();
        let command = client.command();
        assert_eq!(
            command,
            json!({"command": "ping", "target": "node-b", "timeout_ms": 10_000})
        );
        client.say(&format!("{GOOD}\n"));
        client.gone();
    });
    daemon.run(["ping", "node-b"]).expect(
        0,
        "PING node-b from controller\n\
         reply from node-b: seq=1 hops=2 time=1.23 ms active=0\n\
         --- node-b ping statistics ---\n\
         1 sent, 1 received, 0% loss; min/avg/max = 1.23/1.23/1.23 ms\n",
        "",
    );
}

#[test]
fn the_ancestors_command_runs_as_it_stands() {
    let daemon = Daemon::answering(
        "{\"Success\":true,\"From\":\"node-b\",\"Time\":1239999,\"TimeStr\":\"1.24ms\"}\n",
    );
    let socket = format!("--socket-path={}", daemon.socket().display());
    let answer = daemon.run(["ping", &socket, "node-b"]);
    assert_eq!(answer.code, Some(0), "{answer:?}");
}

#[test]
fn several_echoes_in_json() {
    let daemon = Daemon::new(|clients| {
        let mut client = clients.next();
        client.command();
        client.say(&good(1_000_000));
        client.command();
        client.say("{\"Success\":false,\"Error\":\"nobody answered within 10s\",\"error\":{\"code\":\"timeout\",\"message\":\"nobody answered within 10s\"}}\n");
        client.command();
        client.say(&good(3_000_000));
        client.gone();
    });
    let answer = daemon.run([
        "ping",
        "node-b",
        "--json",
        "--count",
        "3",
        "--interval",
        "0.001",
    ]);
    insta::assert_snapshot!("ping_json", answer.shown());
}

#[test]
fn a_lost_echo_among_good_ones_is_told_and_is_no_failure() {
    let daemon = Daemon::new(|clients| {
        let mut client = clients.next();
        client.command();
        client.say("{\"Success\":false,\"Error\":\"nobody answered within 10s\",\"error\":{\"code\":\"timeout\",\"message\":\"nobody answered within 10s\"}}\n");
        client.command();
        client.say(&good(3_000_000));
        client.gone();
    });
    let answer = daemon.run(["ping", "node-b", "--count", "2", "--interval", "0"]);
    insta::assert_snapshot!("ping_lost", answer.shown());
}

#[test]
fn no_route_is_a_failure_with_its_reason() {
    let daemon = Daemon::answering(
        "{\"Success\":false,\"Error\":\"there is no way to node-b now\",\"error\":{\"code\":\"no-route\",\"message\":\"there is no way to node-b now\"}}\n",
    );
    let answer = daemon.run(["ping", "node-b"]);
    insta::assert_snapshot!("ping_no_route", answer.shown());
}

#[test]
fn a_node_at_work_shows_it() {
    let daemon = Daemon::new(|clients| {
        let mut client = clients.next();
        client.command();
        client.say(&format!(
            "{{\"Success\":true,\"From\":\"node-b\",\"Time\":500000,\"hops\":1,\"active\":2,\"works\":[{{\"id\":\"{ID}\",\"directive\":\"runner:execute\",\"age_ms\":61000,\"running\":true}},{{\"id\":\"{}\",\"directive\":\"echo:echo\",\"age_ms\":5,\"running\":false}}]}}\n",
            "f".repeat(32)
        ));
        client.gone();
    });
    let answer = daemon.run(["ping", "node-b"]);
    insta::assert_snapshot!("ping_works", answer.shown());
}

#[test]
fn the_users_timeout_is_the_echos() {
    let daemon = Daemon::new(|clients| {
        let mut client = clients.next();
        let command = client.command();
        let ms = command["timeout_ms"].as_u64().unwrap();
        assert!((1..=2000).contains(&ms), "{ms}");
        client.say(&good(1));
        client.gone();
    });
    let answer = daemon.run(["ping", "node-b", "--timeout", "2"]);
    assert_eq!(answer.code, Some(0), "{answer:?}");
}

#[test]
fn ctrl_c_ends_a_series_with_its_summary() {
    let (told, wait) = std::sync::mpsc::sync_channel(1);
    let daemon = Daemon::new(move |clients| {
        let mut client = clients.next();
        client.command();
        client.say(&good(1_000_000));
        // The second echo never comes back.
        client.command();
        told.send(()).unwrap();
        client.gone();
    });
    let running = daemon.start(
        ["ping", "node-b", "--count", "1000", "--interval", "0"],
        b"",
    );
    wait.recv_timeout(crate::fake::PATIENCE).unwrap();
    running.signal(Signal::SIGINT);
    running.end().expect(
        0,
        "PING node-b from controller\n\
         reply from node-b: seq=1 hops=2 time=1.00 ms active=0\n\
         --- node-b ping statistics ---\n\
         2 sent, 1 received, 50% loss; min/avg/max = 1.00/1.00/1.00 ms\n",
        "",
    );
}
