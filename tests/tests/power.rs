//! Power that fails under real daemons: what was said to be kept is there when the power is back,
//! whatever the file system made of all that no sync had returned for.
//!
//! `RECEPTOR_POWER=messages,failures,seed,runs` makes the long run as long as wanted; the seed of
//! each run is printed. `RECEPTOR_POWER_FORGET=path,path` leaves out every sync below these paths
//! of each data directory, to see that it is noticed.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use receptor_tests::chaos::{Campaign, Excused, Runs, Summary, wait_plugins};
use receptor_tests::power::{Dice, Power};
use receptor_tests::relay::Relay;
use receptor_tests::{Daemon, Mesh, Node, wait_for};
use serde_json::json;

fn node(mesh: &Mesh, name: &str) -> Node {
    mesh.node(name).config("[link]\nhold-time = \"1s\"")
}

/// Accepts so many messages that nobody takes yet. Their ids.
fn accept(c: &Daemon, count: usize, size: usize) -> Vec<String> {
    let mut control = c.control();
    let mut ids = Vec::new();
    for _ in 0..count {
        let command = json!({
            "command": "send", "directive": "once:add", "recipient": "away", "wait": true,
            "detach": true, "text": "x".repeat(size),
        });
        let reply = control.json(&command.to_string());
        assert_eq!(reply["type"], "accepted", "{reply}");
        ids.push(reply["id"].as_str().unwrap().to_owned());
    }
    ids
}

/// Which of these a node does not know any more.
fn missing(c: &Daemon, ids: &[String]) -> usize {
    let reply = c.control().json("spool");
    let entries = reply["messages"].as_array().unwrap();
    let kept = |id: &&String| !entries.iter().any(|entry| entry["id"] == **id);
    ids.iter().filter(kept).count()
}

#[test]
fn a_sync_that_is_left_out_is_noticed() {
    // All of them, those of the log, those of the names of its files, those of large payloads.
    for (place, size) in [
        ("", 10),
        ("spool/segments/0", 10),
        ("spool/payloads/", 100_000),
    ] {
        let found = (1..=8).any(|seed| {
            let mesh = Mesh::new();
            let (mut power, c) = Power::of(node(&mesh, "c"));
            power.forget_syncs(&[place]);
            let mut c = c.start();
            let ids = accept(&c, 3, size);
            power.fail(&mut c, &mut Dice::new(seed));
            c.restart();
            missing(&c, &ids) > 0
        });
        assert!(found, "nothing lost without the syncs of {place:?}");
    }
}

#[test]
fn what_was_accepted_outlives_the_power() {
    for seed in 1..=8 {
        let mesh = Mesh::new();
        let (mut power, c) = Power::of(node(&mesh, "c"));
        let mut c = c.start();
        let mut dice = Dice::new(seed);
        let mut ids = Vec::new();
        for size in [10, 100_000, 1000] {
            ids.extend(accept(&c, 2, size));
            power.fail(&mut c, &mut dice);
            c.restart();
            assert_eq!(missing(&c, &ids), 0, "seed {seed}");
        }
    }
}

#[test]
fn the_directory_of_kept_responses_outlives_the_power() {
    for seed in 1..=4 {
        let mesh = Mesh::new();
        let (mut power, c) = Power::of(node(&mesh, "c"));
        let (_runs, c) = Runs::install(&mesh, c, "c");
        let mut c = c.start();
        wait_plugins(&c, &["c"]);
        let command = json!({
            "command": "send", "directive": "once:add", "recipient": "c", "detach": true,
            "text": "1;0;;",
        });
        let mut control = c.control();
        let accepted = control.json(&command.to_string());
        let ask = json!({"command": "results", "id": accepted["id"]}).to_string();
        let read = |c: &Daemon| {
            let mut control = c.control();
            let mut reply = control.json(&ask);
            while reply["eof"] != true {
                reply = control.reply();
            }
            reply
        };
        assert_eq!(read(&c)["code"], 0);
        quiet(&[&c]);
        power.fail(&mut c, &mut Dice::new(seed));
        c.restart();
        let end = read(&c);
        assert_eq!(end["code"], 0, "seed {seed}: {end}");
    }
}

#[test]
fn everything_that_daemons_write_is_seen() {
    let mesh = Mesh::new();
    let (mut power_c, c) = Power::of(node(&mesh, "c"));
    let mut c = c.start();
    let (mut power_b, b) = Power::of(node(&mesh, "b").peer(&c));
    let (runs, b) = Runs::install(&mesh, b, "b");
    let mut b = b.start();
    wait_plugins(&c, &["b"]);
    let mut dice = Dice::new(1);
    let campaign = Campaign::start(&[c.socket_path()], &["b"], 4, 200, &mut dice);
    let summary = campaign.account(&[runs], Excused::default());
    assert!(summary.accepted >= 200, "{summary:?}");
    quiet(&[&c, &b]);
    assert_eq!(power_b.differences(&mut b), Vec::<String>::new());
    assert_eq!(power_c.differences(&mut c), Vec::<String>::new());
}

/// Waits until nothing is on its way.
fn quiet(nodes: &[&Daemon]) {
    for node in nodes {
        wait_for(&format!("an empty spool of {}", node.name()), || {
            let status = node.control().json("status");
            (status["receptor"]["spool"]["entries"] == 0).then_some(())
        });
    }
}

#[test]
fn every_accepted_message_is_run_once_while_the_power_fails() {
    let asked = std::env::var("RECEPTOR_POWER").unwrap_or_default();
    let mut asked = asked.split(',').map(|word| word.parse::<u64>().ok());
    let mut next = || asked.next().flatten();
    let messages = usize::try_from(next().unwrap_or(200)).unwrap();
    let failures = usize::try_from(next().unwrap_or(8)).unwrap();
    let seed = next().unwrap_or_else(|| u64::from(std::process::id()));
    for seed in seed..seed + next().unwrap_or(1) {
        println!("RECEPTOR_POWER={messages},{failures},{seed}");
        let summary = fail_at_random(messages, failures, seed);
        println!("{summary:?}");
    }
}

fn fail_at_random(messages: usize, failures: usize, seed: u64) -> Summary {
    let mut dice = Dice::new(seed);
    let mesh = Mesh::new();
    let (power_c, c) = Power::of(node(&mesh, "c"));
    let c = c.start();
    let to_c = Relay::to(&c.address());
    let (power_a, a) = Power::of(node(&mesh, "a").peer_url(&to_c.url()));
    let a = a.start();
    let to_a = Relay::to(&a.address());
    let (power_b, b) = Power::of(node(&mesh, "b").peer_url(&to_a.url()));
    let (runs, b) = Runs::install(&mesh, b, "b");
    let b = b.start();
    wait_plugins(&c, &["b"]);
    let mut nodes = [(c, power_c), (a, power_a), (b, power_b)];
    let forget = std::env::var("RECEPTOR_POWER_FORGET").unwrap_or_default();
    if !forget.is_empty() {
        let forget: Vec<&str> = forget.split(',').collect();
        nodes
            .iter_mut()
            .for_each(|(_, power)| power.forget_syncs(&forget));
    }
    let campaign = Campaign::start(&[nodes[0].0.socket_path()], &["b"], 8, messages, &mut dice);
    for failure in 0..failures {
        let part = messages / failures;
        let at = failure * part + dice.index(part);
        wait_for("progress", || {
            (campaign.accepted() >= at || campaign.is_done()).then_some(())
        });
        let (daemon, power) = &mut nodes[dice.index(3)];
        power.fail(daemon, &mut dice);
        daemon.restart();
    }
    let excused = Excused {
        interrupted: true,
        ..Excused::default()
    };
    let summary = campaign.account(&[runs], excused);
    quiet(&[&nodes[0].0, &nodes[1].0, &nodes[2].0]);
    summary
}
