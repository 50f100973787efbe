//! The numbers of bytes rather than messages: messages as large as a packet takes, and one payload
//! that is far larger.
//!
//! Owns no table and no floor: [`super::Row`] and [`super::Bench`] do.

use std::io::Write as _;
use std::time::Instant;

use super::{Bench, Chain, PATIENCE, Row, discarded, payload};

/// The floor's messages, and ours.
const SIZE: usize = 64 << 10;
const MIB: f64 = (1 << 20) as f64;

fn row(bench: &Bench, what: &'static str, ours: impl FnMut() -> f64) -> Row {
    let size = SIZE.to_string();
    let floor = || Some(bench.floor(&["bulk", &size, "10000"], "per_s")? * SIZE as f64 / MIB);
    let (ours, floor) = bench.rounds(ours, floor);
    Row {
        what,
        unit: "MiB/s",
        ours,
        floor,
        must: ">= 0.40x",
        aim: ">= 0.60x",
    }
}

pub(super) fn n5_messages(bench: &Bench) -> Row {
    const COUNT: u64 = 8192;
    let chain = Chain::start(bench, 3);
    let mut client = chain.client(0);
    let mut watcher = chain.client(0);
    let body = payload(SIZE);
    let mut before = 0;
    row(bench, "one way 64 KiB, nothing lost", || {
        let start = Instant::now();
        for _ in 0..COUNT {
            client.push(2, "echo:discard", &body, r#","respond":false,"quiet":true"#);
            client.flush();
        }
        let deadline = Instant::now() + PATIENCE;
        while discarded(&mut watcher) < before + COUNT {
            assert!(Instant::now() < deadline, "some of {COUNT} are lost");
        }
        before += COUNT;
        COUNT as f64 * SIZE as f64 / MIB / start.elapsed().as_secs_f64()
    })
}

pub(super) fn n5_payload(bench: &Bench) -> Row {
    const ALL: usize = 1 << 30;
    let chain = Chain::start(bench, 3);
    let mut client = chain.client(0);
    let body = payload(SIZE);
    row(
        bench,
        "one payload of 1 GiB, durable, into a plugin",
        || {
            let start = Instant::now();
            let line = format!(
                r#"{{"command":"send","directive":"echo:discard","recipient":"n2","size":{ALL}}}"#
            );
            client.out.extend_from_slice(line.as_bytes());
            client.out.push(b'\n');
            client.flush();
            for _ in 0..ALL / SIZE {
                client.writer.write_all(&body).expect("the daemon reads");
            }
            while !client.reply().expect("an answer") {}
            ALL as f64 / MIB / start.elapsed().as_secs_f64()
        },
    )
}
