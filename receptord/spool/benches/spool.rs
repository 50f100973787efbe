//! Figures of the spool on a real disk: `cargo bench -p receptor-spool -- [DIR] [ENTRIES]`.
//!
//! Writers are threads that each wait for their own record; one thread commits whatever is
//! queued when the last commit has ended, as the daemon does. Prints one line per workload.

#![expect(clippy::print_stdout, reason = "the answer")]

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use receptor_proto::packet::{Content, Message, MessageKind};
use receptor_proto::record::{EntryId, Record};
use receptor_proto::{Directive, MessageId, NodeId};
use receptor_spool::{FsDisk, Limits, Op, Options, Spool};

/// Bytes of one message's payload.
const PAYLOAD: usize = 1024;
/// How long a workload runs.
const RUN: Duration = Duration::from_secs(2);
/// How many entries of one writer stay before the oldest is removed.
const KEPT: u64 = 16;

type Job = (u64, SyncSender<()>);

fn record(entry: u64) -> Record {
    let mut body = vec![0; PAYLOAD];
    fastrand::Rng::with_seed(entry).fill(&mut body);
    Record::Outgoing {
        entry: EntryId(entry),
        recipient: NodeId::new("node-b.example.com").expect("a node id"),
        message: Message {
            epoch: 1_700_000_000_000,
            seq: entry,
            floor: 0,
            work: MessageId::from_u128(u128::from(entry) << 64 | 77),
            kind: MessageKind::Request {
                directive: Directive::new("runner:execute").expect("a directive"),
                respond: true,
            },
            volatile: false,
            remaining_ms: 86_400_000,
            content: Content::Bytes,
            name: None,
            size: PAYLOAD as u64,
            body: body.into(),
        },
    }
}

fn open(dir: &Path) -> Spool<FsDisk> {
    let mut options = Options::new(fastrand::u64(..));
    options.limits = Limits {
        max_bytes: u64::MAX / 2,
        max_entries: u64::MAX / 2,
        max_bytes_per_recipient: u64::MAX / 2,
        max_entries_per_recipient: u64::MAX / 2,
    };
    let (spool, report) = Spool::open(FsDisk::new(dir), &options).expect("it opens");
    assert!(report.damage.is_empty());
    spool
}

/// Takes everything that is queued, commits it, answers; removes what is older than [`KEPT`].
fn commits(dir: &Path, jobs: &Receiver<Job>, keep: u64) -> (u64, u64, u64) {
    let mut spool = open(dir);
    let (mut commits, mut written, mut removed) = (0, 0, 0);
    while let Ok(first) = jobs.recv() {
        let mut answers = vec![first.1];
        let mut batch = vec![write(first.0)];
        while let Ok((entry, answer)) = jobs.try_recv() {
            batch.push(write(entry));
            answers.push(answer);
        }
        written += answers.len() as u64;
        while written > removed + keep {
            removed += 1;
            batch.push(Op::Remove(EntryId(removed)));
        }
        for outcome in spool.commit(0, &batch) {
            outcome.result.expect("it is written");
        }
        for answer in answers {
            let _ = answer.send(());
        }
        commits += 1;
    }
    let live = spool.usage().bytes;
    let disk = spool.segment_bytes();
    spool.close().expect("it closes");
    (commits, live, disk)
}

fn write(entry: u64) -> Op {
    Op::Write {
        token: entry,
        records: vec![record(entry)],
    }
}

fn group_commit(dir: &Path, writers: u64) {
    let dir = dir.join(format!("group-{writers}"));
    let (queue, jobs) = sync_channel::<Job>(1024);
    let committer = {
        let dir = dir.clone();
        std::thread::spawn(move || commits(&dir, &jobs, KEPT * writers))
    };
    let next = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(1));
    let start = Instant::now();
    let threads: Vec<_> = (0..writers)
        .map(|_| {
            let (queue, next) = (queue.clone(), std::sync::Arc::clone(&next));
            std::thread::spawn(move || {
                let mut times = Vec::new();
                while start.elapsed() < RUN {
                    let begun = Instant::now();
                    let entry = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    let (answer, done) = sync_channel(1);
                    queue.send((entry, answer)).expect("the committer runs");
                    done.recv().expect("the committer runs");
                    times.push(begun.elapsed());
                }
                times
            })
        })
        .collect();
    drop(queue);
    let mut times: Vec<Duration> = threads
        .into_iter()
        .flat_map(|thread| thread.join().expect("a writer ends"))
        .collect();
    let took = start.elapsed();
    let (commits, live, disk) = committer.join().expect("the committer ends");
    times.sort_unstable();
    let part = |n: usize| times[(times.len() * n / 1000).min(times.len() - 1)].as_micros();
    println!(
        "group writers={writers} rec_s={:.0} syncs={commits} p50_us={} p99_us={} \
         live_kib={} segments_kib={}",
        times.len() as f64 / took.as_secs_f64(),
        part(500),
        part(990),
        live >> 10,
        disk >> 10,
    );
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let word = line.and_then(|line| line.split_whitespace().nth(1));
    word.and_then(|word| word.parse().ok()).unwrap_or(0)
}

fn recovery(dir: &Path, entries: u64) {
    let dir = dir.join("recovery");
    let mut spool = open(&dir);
    let start = Instant::now();
    for first in (1..=entries).step_by(1000) {
        let batch: Vec<Op> = (first..(first + 1000).min(entries + 1))
            .map(write)
            .collect();
        for outcome in spool.commit(0, &batch) {
            outcome.result.expect("it is written");
        }
    }
    let wrote = start.elapsed();
    let (live, disk) = (spool.usage().bytes, spool.segment_bytes());
    spool.close().expect("it closes");
    println!(
        "written entries={entries} s={:.1} live_kib={} segments_kib={}",
        wrote.as_secs_f64(),
        live >> 10,
        disk >> 10,
    );
    // A process of its own, whose memory is that of the spool alone.
    let own = std::env::current_exe().expect("this program has a path");
    for _ in 0..3 {
        let mut child = std::process::Command::new(&own);
        let status = child.arg("open").arg(&dir).status().expect("it starts");
        assert!(status.success());
    }
}

/// Opens what is there and reads everything.
fn reopen(dir: &Path) {
    let before = resident_kib();
    let start = Instant::now();
    let spool = open(dir);
    let opened = start.elapsed();
    let after = resident_kib();
    let start = Instant::now();
    let mut entries = 0;
    for record in spool.records(0) {
        record.expect("it can be read");
        entries += 1;
    }
    let read = start.elapsed();
    println!(
        "recovery entries={entries} open_ms={} records_ms={} bytes_per_entry={}",
        opened.as_millis(),
        read.as_millis(),
        (after.saturating_sub(before) << 10) / entries,
    );
}

/// Removes at random until a tenth is left, with new ones in between.
fn spread(dir: &Path) {
    let dir = dir.join("spread");
    let mut spool = open(&dir);
    let mut rng = fastrand::Rng::with_seed(1);
    let mut live: Vec<u64> = Vec::new();
    let (mut next, mut worst) = (0, 0.0f64);
    let mut written = 0;
    for round in 0..400 {
        let mut batch = Vec::new();
        for _ in 0..if round < 200 { 500 } else { 50 } {
            next += 1;
            live.push(next);
            batch.push(write(next));
            written += PAYLOAD as u64;
        }
        while live.len() > 10_000 || round >= 200 && live.len() > 1000 && batch.len() < 500 {
            let entry = live.swap_remove(rng.usize(0..live.len()));
            batch.push(Op::Remove(EntryId(entry)));
        }
        for outcome in spool.commit(0, &batch) {
            outcome.result.expect("it is written");
        }
        if round > 100 {
            let part = spool.segment_bytes() as f64 / spool.usage().bytes as f64;
            worst = worst.max(part);
        }
    }
    while spool.maintain().expect("the disk works") {}
    println!(
        "spread written_kib={} worst_disk_over_live={worst:.1} live_kib={} segments_kib={}",
        written >> 10,
        spool.usage().bytes >> 10,
        spool.segment_bytes() >> 10,
    );
}

fn main() {
    let args: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| !a.starts_with('-'))
        .collect();
    if let [how, dir] = &args[..]
        && how == "open"
    {
        return reopen(Path::new(dir));
    }
    let root = args.first().map_or_else(std::env::temp_dir, PathBuf::from);
    let entries = args.get(1).and_then(|text| text.parse().ok());
    let dir = root.join(format!("receptor-spool-bench-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("the directory can be made");
    group_commit(&dir, 64);
    group_commit(&dir, 1);
    spread(&dir);
    recovery(&dir, entries.unwrap_or(100_000));
    std::fs::remove_dir_all(&dir).expect("the directory can be removed");
}
