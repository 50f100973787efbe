//! Power that fails under real daemons: what was said to be kept is there when the power is back,
//! whatever the file system made of all that no sync had returned for.
//!
//! `RECEPTOR_POWER=messages,failures,seed,runs` makes the long run as long as wanted; the seed of
//! each run is printed. `RECEPTOR_POWER_FORGET=path,path` leaves out every sync below these paths
//! of each data directory, to see that it is noticed.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::time::{Duration, Instant};

use receptor_tests::chaos::scene::{Form, Scene};
use receptor_tests::chaos::{Campaign, Excused, Runs, Taste, wait_plugins};
use receptor_tests::power::{Dice, Power};
use receptor_tests::works::wait_agreement;
use receptor_tests::{Daemon, Mesh, Node, wait_for};
use serde_json::json;

/// What a daemon that has everything takes at most for the works of [`arrived`].
const PATIENCE: Duration = Duration::from_secs(6);

fn node(mesh: &Mesh, name: &str) -> Node {
    mesh.node(name).config("[link]\nhold-time = \"1s\"")
}

/// Whether something was lost that was promised, with the syncs below these places left out.
type Lost = fn(&[&str], u64) -> bool;

/// Every sync of a daemon that something depends on: what is lost without it, and where it is.
/// What the log and the files of payloads do in less common cases is tested with the store's own
/// disk (`receptord/spool/tests`).
const SYNCS: [(Lost, &str); 13] = [
    (accepted_small, ""),
    (accepted_small, "spool/segments/0"),
    (accepted_small, "spool/segments/$"),
    (accepted_large, "spool/payloads/"),
    (accepted_large, "spool/payloads/$"),
    (instance, "instance"),
    (instance, "$"),
    (dead_letter, "dead-letters/"),
    (dead_letter, "dead-letters/$"),
    (kept_responses, "kept/"),
    (kept_responses, "kept/$"),
    (arrived, "spool/segments/0"),
    (cancelled, "spool/segments/0"),
];

#[test]
fn a_sync_that_is_left_out_is_noticed() {
    for (lost, place) in SYNCS {
        let found = (1..=12).any(|seed| lost(&[place], seed));
        assert!(found, "nothing lost without the syncs of {place:?}");
    }
}

#[test]
fn what_was_promised_outlives_the_power() {
    for lost in [
        accepted_small,
        accepted_large,
        instance,
        dead_letter,
        kept_responses,
        arrived,
        cancelled,
    ] {
        for seed in 1..=2 {
            assert!(!lost(&[], seed), "seed {seed}");
        }
    }
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

/// Which of these a node does not know any more, or has not as they came.
fn missing(c: &Daemon, ids: &[String]) -> usize {
    let reply = c.control().json("spool");
    if reply["damaged"].is_array() {
        return ids.len();
    }
    let entries = reply["messages"].as_array().unwrap();
    let kept = |id: &&String| !entries.iter().any(|entry| entry["id"] == **id);
    ids.iter().filter(kept).count()
}

/// A message of which a client heard that it is cancelled does not come back.
fn cancelled(forget: &[&str], seed: u64) -> bool {
    let mesh = Mesh::new();
    let (mut power, c) = Power::of(node(&mesh, "c"));
    let mut c = c.start();
    let ids = accept(&c, 10, 10);
    assert!(fail_and_restart(&mut c, &mut power, seed), "as accepted");
    power.forget_syncs(forget);
    let mut control = c.control();
    for id in &ids {
        let reply = control.json(&json!({"command": "cancel", "id": id}).to_string());
        assert!(reply["error"].is_null(), "{reply}");
    }
    if !fail_and_restart(&mut c, &mut power, seed) {
        return true;
    }
    let reply = c.control().json("spool");
    let waiting = reply["messages"].as_array().unwrap();
    let waits = |id: &str, kind| {
        let mut all = waiting.iter();
        all.any(|entry| entry["id"] == id && entry["kind"] == kind)
    };
    let is_back = |id: &String| waits(id, "request") && !waits(id, "cancel");
    ids.iter().any(is_back)
}

/// Lets the power fail and starts again; whether that is possible.
fn fail_and_restart(daemon: &mut Daemon, power: &mut Power, seed: u64) -> bool {
    power.fail(daemon, &mut Dice::new(seed));
    let start = std::panic::AssertUnwindSafe(|| daemon.restart());
    std::panic::catch_unwind(start).is_ok()
}

fn accepted_small(forget: &[&str], seed: u64) -> bool {
    accepted(10, forget, seed)
}

fn accepted_large(forget: &[&str], seed: u64) -> bool {
    accepted(100_000, forget, seed)
}

/// A message that was accepted is there.
fn accepted(size: usize, forget: &[&str], seed: u64) -> bool {
    let mesh = Mesh::new();
    let (mut power, c) = Power::of(node(&mesh, "c"));
    power.forget_syncs(forget);
    let mut c = c.start();
    let mut ids = Vec::new();
    for failure in 0..2 {
        ids.extend(accept(&c, 2, size));
        if !fail_and_restart(&mut c, &mut power, seed + 100 * failure) || missing(&c, &ids) > 0 {
            return true;
        }
    }
    false
}

/// No two starts have one number, also when the clock was set back in between.
fn instance(forget: &[&str], seed: u64) -> bool {
    let mesh = Mesh::new();
    let (mut power, c) = Power::of(node(&mesh, "c"));
    power.forget_syncs(forget);
    let file = c.data_dir().join("instance");
    // As if the clock had been years ahead.
    std::fs::write(&file, "2900000000000\n").unwrap();
    power.renew();
    let number = || {
        std::fs::read_to_string(&file)
            .ok()?
            .trim()
            .parse::<u64>()
            .ok()
    };
    let mut c = c.start();
    let mut last = number();
    (0..2).any(|failure| {
        let started = fail_and_restart(&mut c, &mut power, seed + 100 * failure);
        let before = std::mem::replace(&mut last, number());
        !started || last <= before
    })
}

/// A message that was given up and is not in the spool any more is a dead letter.
fn dead_letter(forget: &[&str], seed: u64) -> bool {
    let mesh = Mesh::new();
    let (mut power, c) = Power::of(node(&mesh, "c"));
    power.forget_syncs(forget);
    let mut c = c.start();
    let command = json!({
        "command": "send", "directive": "once:add", "recipient": "away", "wait": true,
        "text": "x", "expires_ms": 1,
    });
    let mut control = c.control();
    control.json(&command.to_string());
    assert_eq!(control.reply()["error"]["code"], "expired");
    let letters = |c: &Daemon| c.control().json("dead-letters")["total"].clone();
    wait_for("the letter", || (letters(&c) == 1).then_some(()));
    quiet(&[&c]);
    // That it is not in the spool any more is sure with whatever comes behind it.
    accept(&c, 1, 10);
    if !fail_and_restart(&mut c, &mut power, seed) {
        return true;
    }
    wait_for("what was given up is not in the spool", || {
        let status = c.control().json("status");
        (status["receptor"]["spool"]["entries"] == 1).then_some(())
    });
    letters(&c) != 1
}

/// Responses that the core has forgotten are kept.
fn kept_responses(forget: &[&str], seed: u64) -> bool {
    let mesh = Mesh::new();
    let (mut power, c) = Power::of(node(&mesh, "c"));
    power.forget_syncs(forget);
    let (_runs, c) = Runs::install(&mesh, c, "c");
    let mut c = c.start();
    wait_plugins(&c, &["c"]);
    let command = json!({
        "command": "send", "directive": "once:add", "recipient": "c", "detach": true,
        "text": "1;0;;",
    });
    let accepted = c.control().json(&command.to_string());
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
    accept(&c, 1, 10);
    !fail_and_restart(&mut c, &mut power, seed) || read(&c)["code"] != 0
}

/// A message of which its sender knows that it has arrived comes to an end of its work's.
fn arrived(forget: &[&str], seed: u64) -> bool {
    let mesh = Mesh::new();
    let c = node(&mesh, "c").start();
    let (mut power, b) = Power::of(node(&mesh, "b").peer(&c));
    power.forget_syncs(forget);
    let (_runs, b) = Runs::install(&mesh, b, "b");
    let mut b = b.start();
    wait_plugins(&c, &["b"]);
    // More than run at once, so that the last ones have arrived and not begun.
    let mut control = c.control();
    let ids: Vec<String> = (0..20)
        .map(|_| {
            let command = json!({
                "command": "send", "directive": "slow:add", "recipient": "b", "detach": true,
                "text": "1;0;;",
            });
            let reply = control.json(&command.to_string());
            reply["id"].as_str().unwrap().to_owned()
        })
        .collect();
    wait_for("all to arrive", || {
        let works = c.control().json("works");
        let works = works["works"].as_array()?;
        works
            .iter()
            .all(|work| work["state"] != "accepted")
            .then_some(())
    });
    if !fail_and_restart(&mut b, &mut power, seed) {
        return true;
    }
    // Of what it has forgotten it says so, or nothing, however long it is waited for.
    let end = Instant::now() + PATIENCE;
    let work = |id: &String| {
        let ask = json!({"command": "works", "id": id}).to_string();
        c.control().json(&ask)["works"][0].clone()
    };
    while Instant::now() < end {
        let works: Vec<_> = ids.iter().map(work).collect();
        if works.iter().all(|work| work["code"].is_number()) {
            return works.iter().any(|work| work["state"] == "lost");
        }
        std::thread::yield_now();
    }
    true
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
    let campaign = Campaign::start(
        &[c.socket_path()],
        &["b"],
        (4, 200),
        Taste::default(),
        &mut dice,
    );
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
    wait_agreement(nodes.iter().copied());
}

#[test]
fn every_accepted_message_is_run_once_while_the_power_fails() {
    let asked = std::env::var("RECEPTOR_POWER").unwrap_or_default();
    let mut asked = asked.split(',').map(|word| word.parse::<u64>().ok());
    let mut next = || asked.next().flatten();
    let messages = usize::try_from(next().unwrap_or(60)).unwrap();
    let failures = usize::try_from(next().unwrap_or(6)).unwrap();
    let seed = next().unwrap_or_else(|| u64::from(std::process::id()) * 1000);
    let forget = std::env::var("RECEPTOR_POWER_FORGET").unwrap_or_default();
    let forget: Vec<&str> = forget.split(',').filter(|path| !path.is_empty()).collect();
    for seed in seed..seed + next().unwrap_or(2) {
        let mut dice = Dice::new(seed);
        let form = Form::any(&mut dice);
        println!("RECEPTOR_POWER={messages},{failures},{seed} {form}");
        let mut scene = Scene::start(&form, None, true);
        scene.forget_syncs(&forget);
        let summary = scene.run(messages, failures, &mut dice);
        println!("{summary:?}");
    }
}
