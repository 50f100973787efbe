//! The spool beside two embedded stores and a bare file, on one disk and in one run.
//!
//! `make bench-spool`, or `cargo run --release -- [DIR] [ENTRIES] [ROUNDS]` here. Writers are threads that each
//! wait for their own entry; one thread commits whatever is queued when the last commit has ended, as the
//! daemon does, and removes all but the last few of each writer. Each round measures every store in turn, so
//! that a disk that is shared is as slow for all of them. Prints one line for each figure; judges nothing.
//! A restart is a process of its own, whose memory is that of the store alone.

mod stores;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use receptor_proto::packet::{Content, Message, MessageKind};
use receptor_proto::record::{EntryId, Record};
use receptor_proto::{Directive, MessageId, NodeId};

use stores::{Fjall, Floor, Own, Redb, Store};

/// Bytes of one message's payload.
const PAYLOAD: usize = 1024;
/// How long writers write.
const RUN: Duration = Duration::from_secs(2);
/// How many entries of one writer stay before the oldest is removed.
const KEPT: u64 = 16;
/// Entries in one commit while there is no writer to wait for.
const BULK: u64 = 1000;

/// An entry, and who waits for it.
type Job = (u64, SyncSender<()>);

pub(crate) fn record(entry: u64) -> Record {
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

/// Takes everything that is queued, commits it, answers; removes what is older than `keep`.
fn commits<S: Store>(dir: &Path, jobs: &Receiver<Job>, keep: u64) -> u64 {
    let mut store = S::open(dir);
    let (mut commits, mut written, mut removed) = (0, 0, 0);
    while let Ok(first) = jobs.recv() {
        let mut batch = vec![first];
        batch.extend(jobs.try_iter());
        written += batch.len() as u64;
        let before = removed;
        removed = removed.max(written.saturating_sub(keep));
        let entries: Vec<u64> = batch.iter().map(|(entry, _)| *entry).collect();
        store.commit(&entries, before + 1..removed + 1);
        for (_, answer) in batch {
            // A writer whose time is over does not wait.
            let _ = answer.send(());
        }
        commits += 1;
    }
    store.close();
    commits
}

/// So many writers, each waiting for its own entry.
fn group_commit<S: Store>(root: &Path, round: u32, writers: u64) {
    let dir = root.join(format!("{}-{round}-{writers}", S::NAME));
    std::fs::create_dir_all(&dir).expect("the directory can be made");
    let (queue, jobs) = sync_channel::<Job>(1024);
    let committer = {
        let dir = dir.clone();
        std::thread::spawn(move || commits::<S>(&dir, &jobs, KEPT * writers))
    };
    let next = Arc::new(AtomicU64::new(1));
    let start = Instant::now();
    let threads: Vec<_> = (0..writers)
        .map(|_| {
            let (queue, next) = (queue.clone(), Arc::clone(&next));
            std::thread::spawn(move || {
                let mut times = Vec::new();
                while start.elapsed() < RUN {
                    let begun = Instant::now();
                    let entry = next.fetch_add(1, Ordering::Relaxed);
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
    let syncs = committer.join().expect("the committer ends");
    times.sort_unstable();
    let part = |n: usize| times[(times.len() * n / 1000).min(times.len() - 1)].as_micros();
    println!(
        "commit store={} writers={writers} entries_s={:.0} syncs={syncs} p50_us={} p99_us={} disk_kib={}",
        S::NAME,
        times.len() as f64 / took.as_secs_f64(),
        part(500),
        part(990),
        disk_kib(&dir),
    );
    std::fs::remove_dir_all(&dir).expect("the directory can be removed");
}

/// Writes so many, and opens them in processes of their own.
fn restart<S: Store>(root: &Path, entries: u64, rounds: u32) {
    let dir = root.join(format!("{}-restart", S::NAME));
    std::fs::create_dir_all(&dir).expect("the directory can be made");
    let start = Instant::now();
    let mut store = S::open(&dir);
    for first in (1..=entries).step_by(BULK as usize) {
        let batch: Vec<u64> = (first..(first + BULK).min(entries + 1)).collect();
        store.commit(&batch, 0..0);
    }
    store.close();
    println!(
        "written store={} entries={entries} s={:.1} disk_kib={} disk_over_payload={:.2}",
        S::NAME,
        start.elapsed().as_secs_f64(),
        disk_kib(&dir),
        (disk_kib(&dir) << 10) as f64 / (entries * PAYLOAD as u64) as f64,
    );
    let own = std::env::current_exe().expect("this program has a path");
    for _ in 0..rounds {
        let mut child = std::process::Command::new(&own);
        let status = child.arg("reopen").arg(S::NAME).arg(&dir).status();
        assert!(status.is_ok_and(|status| status.success()));
    }
    std::fs::remove_dir_all(&dir).expect("the directory can be removed");
}

/// Opens what is there and reads everything.
fn reopen<S: Store>(dir: &Path) {
    let before = resident_kib();
    let start = Instant::now();
    let mut store = S::open(dir);
    let opened = start.elapsed();
    let after = resident_kib();
    let start = Instant::now();
    let entries = store.read_all();
    println!(
        "restart store={} entries={entries} open_ms={} read_ms={} memory_each={:.1}",
        S::NAME,
        opened.as_millis(),
        start.elapsed().as_millis(),
        (after.saturating_sub(before) << 10) as f64 / entries as f64,
    );
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("RssAnon:"));
    let word = line.and_then(|line| line.split_whitespace().nth(1));
    word.and_then(|word| word.parse().ok()).unwrap_or(0)
}

/// What the files of a directory take of the disk.
fn disk_kib(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let names = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let sizes = names.map(|name| match name.metadata() {
        Ok(data) if data.is_dir() => disk_kib(&name.path()),
        Ok(data) => data.blocks() / 2,
        Err(_) => 0,
    });
    sizes.sum()
}

/// Removes at random until a tenth is left, with new ones in between: what the spool's segments
/// take of the disk then.
fn spread(root: &Path) {
    let dir = root.join("spread");
    let mut store = Own::open(&dir);
    let mut rng = fastrand::Rng::with_seed(1);
    let mut live: Vec<u64> = Vec::new();
    let (mut next, mut worst) = (0, 0.0f64);
    for round in 0..400 {
        let fresh = next + 1..next + 1 + if round < 200 { 500 } else { 50 };
        next = fresh.end - 1;
        live.extend(fresh.clone());
        let mut removed = Vec::new();
        while live.len() > 10_000 || round >= 200 && live.len() > 1000 && removed.len() < 450 {
            removed.push(live.swap_remove(rng.usize(0..live.len())));
        }
        store.commit_any(&fresh.collect::<Vec<_>>(), &removed);
        if round > 100 {
            worst = worst.max(store.disk_over_live());
        }
    }
    store.tidy();
    println!(
        "spread store=own worst_disk_over_live={worst:.1} when_tidied={:.1}",
        store.disk_over_live()
    );
    store.close();
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [how, store, dir] = &args[..]
        && how == "reopen"
    {
        let dir = Path::new(dir);
        return match &store[..] {
            Own::NAME => reopen::<Own>(dir),
            Fjall::NAME => reopen::<Fjall>(dir),
            _ => reopen::<Redb>(dir),
        };
    }
    let root = args.first().map_or_else(std::env::temp_dir, PathBuf::from);
    let number = |nth: usize| args.get(nth).and_then(|text| text.parse().ok());
    let entries = number(1).unwrap_or(1_000_000);
    let rounds = number(2).and_then(|rounds| u32::try_from(rounds).ok());
    let rounds = rounds.unwrap_or(3);
    let dir = root.join(format!("receptor-spool-compare-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("the directory can be made");
    for round in 0..rounds {
        for writers in [1, 64, 256] {
            group_commit::<Floor>(&dir, round, writers);
            group_commit::<Own>(&dir, round, writers);
            group_commit::<Fjall>(&dir, round, writers);
            group_commit::<Redb>(&dir, round, writers);
        }
    }
    spread(&dir);
    restart::<Own>(&dir, entries, rounds);
    restart::<Fjall>(&dir, entries, rounds);
    restart::<Redb>(&dir, entries, rounds);
    std::fs::remove_dir_all(&dir).expect("the directory can be removed");
}
