//! The numbers of what is kept: messages that are on a disk before anybody hears of them, and what
//! outages and restarts cost.
//!
//! Owns no table and no floor: [`super::Row`] and [`super::Bench`] do.

use std::time::{Duration, Instant};

use super::{
    Bench, Chain, Client, PATIENCE, PIPE_FLOOR, Row, discarded, discarded_at, latencies_of,
    payload, percentile, rss_mib,
};

/// A node that is not there.
const AWAY: usize = 9;
/// How long the middle of a way is away.
const OUTAGE: Duration = Duration::from_millis(500);

/// Sends durable one-way messages, so many of them unaccepted at most, until `enough`; how many.
fn accept(
    client: &mut Client,
    (to, directive, body): (usize, &str, &[u8]),
    in_flight: usize,
    more: &str,
    enough: impl Fn(usize) -> bool,
) -> usize {
    let (mut sent, mut done) = (0, 0);
    while !enough(sent) || done < sent {
        while !enough(sent) && sent - done < in_flight {
            client.push_durable(to, directive, body, more);
            sent += 1;
        }
        client.flush();
        // Whatever came in one read is answered by as many new messages in one write.
        loop {
            let line = client.read().expect("accepted");
            assert!(line.contains("\"accepted\""), "{line}");
            done += 1;
            if done == sent || client.reader.buffer().is_empty() {
                break;
            }
        }
    }
    done
}

/// A send whose acceptance is its only line, with a tag so that many can be on their way.
const DETACHED: &str = r#","detach":true,"wait":true,"tag":0"#;
/// A send whose plugin answers nothing, with a tag too.
const ONE_WAY: &str = r#","respond":false,"tag":0"#;

pub(super) fn n7_accept(bench: &Bench) -> Row {
    const SPAN: Duration = Duration::from_secs(2);
    let ours = || {
        let chain = Chain::start(bench, 1);
        let mut client = chain.client(0);
        let body = payload(1024);
        let start = Instant::now();
        let enough = |_| start.elapsed() >= SPAN;
        let done = accept(
            &mut client,
            (AWAY, "echo:discard", &body),
            64,
            DETACHED,
            enough,
        );
        done as f64 / start.elapsed().as_secs_f64()
    };
    let (ours, floor) = bench.rounds(ours, || disk(bench, 64, "per_s"));
    let what = "durable accept, 1 KiB, 64 in flight";
    Row {
        what,
        unit: "msg/s",
        ours,
        floor,
        must: ">= 0.35x",
        aim: ">= 0.60x",
    }
}

/// What groups of records with one sync each do, in a directory where the nodes' would be too.
fn disk(bench: &Bench, writers: usize, figure: &str) -> Option<f64> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let dir = dir.path().display().to_string();
    bench.floor(&["disk", &writers.to_string(), &dir], figure)
}

pub(super) fn n8_end_to_end(bench: &Bench) -> Row {
    const COUNT: usize = 20_000;
    let chain = Chain::start(bench, 3);
    let mut client = chain.client(0);
    let mut watcher = chain.client(0);
    let body = payload(1024);
    let mut before = 0;
    let ours = || {
        let start = Instant::now();
        accept(
            &mut client,
            (2, "echo:discard", &body),
            256,
            ONE_WAY,
            |sent| sent >= COUNT,
        );
        before += COUNT as u64;
        let deadline = Instant::now() + PATIENCE;
        while discarded(&mut watcher) < before {
            assert!(Instant::now() < deadline, "some of {COUNT} are lost");
        }
        COUNT as f64 / start.elapsed().as_secs_f64()
    };
    let (ours, floor) = bench.rounds(ours, || disk(bench, 256, "per_s"));
    let what = "durable one way, 1 KiB, 256 in flight, run";
    Row {
        what,
        unit: "msg/s",
        ours,
        floor,
        must: "15k | 0.15x",
        aim: ">= 43k",
    }
}

pub(super) fn n9_request_reply(bench: &Bench) -> Row {
    Row {
        what: "durable request/reply, three nodes, p50",
        unit: "us",
        must: "<= 2.5x",
        aim: "<= 1.5x",
        ..n9_over(bench, || disk(bench, 1, "p50_us"))
    }
}

/// The same over all that a durable exchange has to do on this machine: the way there and back
/// through bare processes, a line to a plugin and one back, a record on one disk.
pub(super) fn n9_over_all_floors(bench: &Bench) -> Row {
    let size = N9_SIZE.to_string();
    let way = ["rtt", &size, "4000"];
    Row {
        what: "the same over chain, pipe and disk together",
        ..n9_over(bench, || {
            let way = bench.floor(&way, "p50_us")? + bench.floor(PIPE_FLOOR, "p50_us")?;
            Some(way + disk(bench, 1, "p50_us")?)
        })
    }
}

/// The payload of a durable request, in bytes.
const N9_SIZE: usize = 1024;

fn n9_over(bench: &Bench, floor: impl FnMut() -> Option<f64>) -> Row {
    let chain = Chain::start(bench, 3);
    let mut client = chain.client(0);
    let ours = || {
        let send = |client: &mut Client, body: &[u8]| {
            client.push_durable(2, "echo:echo", body, "");
            client.flush();
            while !client.reply().expect("an answer") {}
        };
        percentile(&mut latencies_of(&mut client, N9_SIZE, 300, send), 0.5)
    };
    let (ours, floor) = bench.rounds(ours, floor);
    Row {
        what: "",
        unit: "us",
        ours,
        floor,
        must: "-",
        aim: "-",
    }
}

/// The longest time between two answers to volatile requests while `trouble` happens, in
/// milliseconds.
fn silence(chain: &mut Chain, to: usize, trouble: impl FnOnce(&mut Chain)) -> f64 {
    let mut client = chain.client(0);
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = std::sync::Arc::clone(&stop);
    let asker = std::thread::spawn(move || {
        let body = payload(128);
        let (mut sent, mut open) = (0u64, 0);
        let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
        while !stopped.load(std::sync::atomic::Ordering::Relaxed) || open > 0 {
            while open < 16 && !stopped.load(std::sync::atomic::Ordering::Relaxed) {
                sent += 1;
                client.push_durable(to, "echo:echo", &body, &format!(",\"tag\":{sent}"));
                open += 1;
            }
            client.flush();
            if client.reply().expect("an answer") {
                open -= 1;
                longest = longest.max(last.elapsed());
                last = Instant::now();
            }
        }
        longest
    });
    // Some answers before and after.
    std::thread::sleep(Duration::from_millis(300));
    trouble(chain);
    std::thread::sleep(Duration::from_secs(2));
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    asker.join().expect("the answers").as_secs_f64() * 1e3
}

pub(super) fn n11_outage(bench: &Bench) -> Row {
    let mut chain = Chain::start(bench, 3);
    let ours = || {
        let all = silence(&mut chain, 2, |chain| {
            chain.kill(1);
            std::thread::sleep(OUTAGE);
            chain.launch(1);
        });
        all - OUTAGE.as_secs_f64() * 1e3
    };
    let (ours, floor) = bench.rounds(ours, || None);
    let what = "middle killed, back after 0.5 s: silence beyond";
    Row {
        what,
        unit: "ms",
        ours,
        floor,
        must: "<= 250 ms",
        aim: "<= 100 ms",
    }
}

pub(super) fn n12_second_path(bench: &Bench, frozen: bool) -> Row {
    // Twice two links from 0 to 3; the way over 1 is taken, as the one over 2 comes later.
    let mut chain = Chain::plan(bench, &[vec![], vec![0], vec![0], vec![1, 2]], &[]);
    for node in 0..4 {
        chain.launch(node);
    }
    chain.await_answer(3);
    for node in 1..3 {
        let mut client = chain.client(node);
        let deadline = Instant::now() + PATIENCE;
        while client.request(3, "echo:echo", b"\"x\"").is_err() {
            assert!(Instant::now() < deadline, "n3 does not answer n{node}");
            std::thread::yield_now();
        }
    }
    let ours = || {
        let used = next_hop(&mut chain.client(0), 3);
        let all = silence(&mut chain, 3, |chain| {
            if frozen {
                signal(chain.nodes[used].id(), "STOP");
            } else {
                chain.kill(used);
            }
            // Longer than any hold time.
            std::thread::sleep(Duration::from_secs(6));
            if frozen {
                signal(chain.nodes[used].id(), "CONT");
            } else {
                chain.launch(used);
            }
        });
        let mut client = chain.client(used);
        let deadline = Instant::now() + PATIENCE;
        while client.request(3, "echo:echo", b"\"x\"").is_err() {
            assert!(Instant::now() < deadline, "n{used} is not back");
            std::thread::yield_now();
        }
        all
    };
    let (ours, floor) = bench.rounds(ours, || None);
    let (what, must, aim) = if frozen {
        ("frozen, with a second path: silence", "4050 ms", "4015 ms")
    } else {
        (
            "killed, with a second path: silence",
            "<= 50 ms",
            "<= 15 ms",
        )
    };
    Row {
        what,
        unit: "ms",
        ours,
        floor,
        must,
        aim,
    }
}

/// The number of the node that comes next on the way.
fn next_hop(client: &mut Client, to: usize) -> usize {
    let deadline = Instant::now() + PATIENCE;
    loop {
        client.out.extend_from_slice(b"{\"command\":\"routes\"}\n");
        client.flush();
        let line = client.read().expect("routes");
        let value: serde_json::Value = serde_json::from_str(line).expect("a JSON line");
        let routes = value["routes"].as_array().cloned().unwrap_or_default();
        let name = format!("n{to}");
        let route = routes
            .iter()
            .find(|route| route["destination"] == name.as_str());
        if let Some(next) = route.and_then(|route| route["next_hop"].as_str()) {
            return next.trim_start_matches('n').parse().expect("a number");
        }
        assert!(Instant::now() < deadline, "no route to {name}");
    }
}

fn signal(pid: u32, name: &str) {
    let status = std::process::Command::new("kill")
        .args(["-s", name, &pid.to_string()])
        .status();
    assert!(
        status.is_ok_and(|status| status.success()),
        "kill -s {name}"
    );
}

pub(super) fn n14_restart(bench: &Bench, count: usize) -> Row {
    let mut chain = Chain::plan(bench, &[vec![], vec![]], &[]);
    // 0 dials 1, which is there when 0 comes back.
    chain.peer(0, 1);
    chain.launch(0);
    let body = payload(128);
    let mut client = chain.client(0);
    accept(
        &mut client,
        (1, "echo:discard", &body),
        1024,
        ONE_WAY_WAIT,
        |sent| sent >= count,
    );
    drop(client);
    let mut before = 0;
    let ours = || {
        chain.kill(0);
        if chain.nodes.len() < 2 {
            chain.launch(1);
        }
        let mut watcher = chain.client(1);
        let deadline = Instant::now() + PATIENCE;
        while watcher.request(1, "echo:echo", b"\"x\"").is_err() {
            assert!(Instant::now() < deadline, "n1 does not answer");
        }
        before = discarded_at(&mut watcher, 1);
        let start = Instant::now();
        chain.launch(0);
        while discarded_at(&mut watcher, 1) == before {
            assert!(start.elapsed() < PATIENCE, "nothing is delivered");
        }
        start.elapsed().as_secs_f64() * 1e3
    };
    // Of each round some are gone; there must be about as many in each.
    let once = Bench {
        rounds: if count > 100_000 { 3 } else { 1 },
        ..bench.clone()
    };
    let (ours, floor) = once.rounds(ours, || None);
    let (what, must, aim) = if count > 100_000 {
        (
            "restart with 1,000,000 kept, to first delivery",
            "<= 3 s",
            "<= 1 s",
        )
    } else {
        (
            "restart with 10,000 kept, to first delivery",
            "<= 150 ms",
            "<= 50 ms",
        )
    };
    Row {
        what,
        unit: "ms",
        ours,
        floor,
        must,
        aim,
    }
}

const ONE_WAY_WAIT: &str = r#","respond":false,"wait":true,"tag":0"#;

pub(super) fn n15_backlog(bench: &Bench, size: usize) -> Row {
    let mut chain = Chain::exec(bench, 1, &[]);
    let mut client = chain.client(0);
    let body = payload(size);
    let count = (1 << 30) / size;
    let enough = |sent| sent >= count;
    accept(
        &mut client,
        (AWAY, "echo:discard", &body),
        16,
        ONE_WAY_WAIT,
        enough,
    );
    let full = rss_mib(chain.nodes[0].id());
    chain.kill(0);
    chain.launch(0);
    let _ = chain.client(0);
    let restarted = rss_mib(chain.nodes[0].id());
    let what = match size {
        0..=1024 => "RSS with 1 GiB for a node away, 1 KiB each",
        1025..=65536 => "RSS with 1 GiB for a node away, 16 KiB each",
        _ => "RSS with 1 GiB for a node away, 1 MiB each",
    };
    Row {
        what,
        unit: "MiB",
        ours: vec![full, restarted],
        floor: Vec::new(),
        must: "idle + 64",
        aim: "idle + 16",
    }
}
