//! Whatever bytes a daemon sends, the program ends by itself, with one of its exit codes and without a panic.

use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use crate::fake::{Daemon, ID};

/// Answers that are understood, to be damaged.
fn good() -> Vec<String> {
    let text = include_str!("../../../receptord/proto/PROTOCOL-control.md");
    let mut lines: Vec<String> = text
        .lines()
        .filter(|line| line.starts_with('{'))
        .map(|line| format!("{line}\n"))
        .collect();
    lines.push(format!(
        "{{\"type\":\"response\",\"id\":\"{ID}\",\"from\":\"b\",\"serial\":1,\"size\":18446744073709551615}}\nxyz"
    ));
    lines.push("ERROR: no\n".into());
    lines
}

fn answer() -> impl Strategy<Value = Vec<u8>> {
    let damaged = (
        vec(select(good()), 1..4),
        vec((any::<Index>(), any::<u8>()), 0..4),
        prop::option::of(any::<Index>()),
    )
        .prop_map(|(lines, flips, cut)| {
            let mut bytes = lines.concat().into_bytes();
            for (at, byte) in flips {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            bytes
        });
    prop_oneof![1 => vec(any::<u8>(), 0..2000), 4 => damaged]
}

fn command() -> impl Strategy<Value = Vec<&'static str>> {
    let send = ["send", "--directive", "a:b", "--recipient", "c"];
    let commands: Vec<Vec<&str>> = vec![
        vec!["ping", "c"],
        vec!["ping", "c", "--count", "2", "--interval", "0"],
        send.to_vec(),
        send.to_vec(),
        vec!["status"],
        vec!["nodes"],
        vec!["routes"],
        vec!["links"],
        vec!["capabilities"],
        vec!["traceroute", "c"],
        vec!["plugin", "list"],
        vec!["plugin", "restart", "x"],
        vec!["reload"],
        vec!["log-level"],
        vec!["work", "cancel", ID],
    ];
    (select(commands), any::<bool>()).prop_map(|(mut command, json)| {
        if json {
            command.push("--json");
        }
        command
    })
}

proptest! {
    // Each case is a process of its own.
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_of_a_daemon_do_harm(command in command(), answer in answer(), greet in prop::bool::weighted(0.9)) {
        let answer: Arc<[u8]> = answer.into();
        let sent = Arc::clone(&answer);
        let daemon = Daemon::new(move |clients| {
            let mut client = if greet { clients.next() } else { clients.ungreeted() };
            if client.offer(&sent) {
                client.end();
            }
        });
        let got = daemon.run(&command);
        let codes = [0, 1, 2, 69, 70, 75, 77, 78];
        prop_assert!(got.code.is_some_and(|code| codes.contains(&code)), "{got:?}");
        prop_assert!(!got.stderr.contains("panicked"), "{}", got.stderr);
        let control = |c: char| c.is_control() && c != '\n';
        prop_assert!(!got.stderr.contains(control), "{:?}", got.stderr);
    }
}
