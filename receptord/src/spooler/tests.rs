//! The store with its thread, on a real directory.

use std::collections::VecDeque;
use std::fs;

use receptor_proto::Directive;
use receptor_proto::packet::{Content, Message, MessageKind, SEGMENT_MAX};
use sha2::{Digest as _, Sha256};

use super::*;

fn config(max_bytes: u64) -> config::Spool {
    config::Spool {
        max_bytes,
        ..config::Settings::builtin().spool
    }
}

/// A store whose thread runs, and what it says.
struct Running {
    store: Store,
    reports: Reports,
    told: VecDeque<Done>,
}

impl Running {
    fn open(dir: &Path, config: &config::Spool) -> (Self, Vec<Record>) {
        let (store, recovered) = Store::open(dir, config).unwrap();
        let records = recovered.records().collect();
        let reports = store.start(recovered).unwrap();
        let running = Self {
            store,
            reports,
            told: VecDeque::new(),
        };
        (running, records)
    }

    async fn done(&mut self) -> Done {
        while self.told.is_empty() {
            self.told.extend(self.reports.recv().await.unwrap());
        }
        self.told.pop_front().unwrap()
    }

    async fn persist(&mut self, token: u64, records: Vec<Record>) -> Result<(), ErrorBody> {
        assert!(
            self.store
                .persist(PersistToken(token), records, true)
                .is_none()
        );
        let Done::Persisted(PersistToken(told), result) = self.done().await else {
            panic!("another report");
        };
        assert_eq!(told, token);
        result
    }
}

fn piece(bytes: &[u8]) -> Piece {
    Piece {
        sum: crc32c::crc32c(bytes),
        bytes: Bytes::copy_from_slice(bytes),
    }
}

fn outgoing(entry: u64, recipient: &str, body: &[u8]) -> Record {
    Record::Outgoing {
        entry: EntryId(entry),
        recipient: recipient.parse().unwrap(),
        message: Message {
            epoch: 1,
            seq: entry,
            floor: 0,
            work: MessageId::from_u128(u128::from(entry)),
            kind: MessageKind::Request {
                directive: Directive::new("echo:echo").unwrap(),
                respond: true,
            },
            volatile: false,
            remaining_ms: 60_000,
            content: Content::Bytes,
            name: None,
            size: body.len() as u64,
            body: Bytes::copy_from_slice(body),
        },
    }
}

fn large(entry: u64, size: u64) -> Record {
    let mut record = outgoing(entry, "b", b"");
    if let Record::Outgoing { message, .. } = &mut record {
        message.size = size;
    }
    record
}

#[tokio::test]
async fn what_was_persisted_is_there_after_an_end_of_any_kind() {
    let dir = tempfile::tempdir().unwrap();
    let (mut running, records) = Running::open(dir.path(), &config(1 << 30));
    assert!(records.is_empty());
    let first = outgoing(1, "b", b"one");
    running.persist(1, vec![first.clone()]).await.unwrap();
    running
        .persist(2, vec![outgoing(2, "b", b"two")])
        .await
        .unwrap();
    running.store.remove(EntryId(2));
    running.store.close().await;
    let (mut running, records) = Running::open(dir.path(), &config(1 << 30));
    let [Record::Outgoing { entry, message, .. }] = &records[..] else {
        panic!("{records:?}");
    };
    assert_eq!((entry.0, &message.body[..]), (1, &b"one"[..]));
    assert_eq!(running.store.usage().entries, 1);
    // Without an end in order.
    running
        .persist(1, vec![outgoing(3, "b", b"three")])
        .await
        .unwrap();
    drop(running);
    // The thread lets go of the lock when it notices.
    let (_, recovered) = Store::open(dir.path(), &config(1 << 30)).unwrap();
    assert_eq!(recovered.records().count(), 2);
}

#[tokio::test]
async fn the_start_waits_for_one_who_reads_the_spool() {
    let dir = tempfile::tempdir().unwrap();
    let (running, _) = Running::open(dir.path(), &config(1 << 30));
    running.store.close().await;
    let (reader, _) = Spool::open_read_only(FsDisk::new(dir.path().join(DIR))).unwrap();
    let (opened, when) = std::sync::mpsc::sync_channel(1);
    let path = dir.path().to_owned();
    let starter = std::thread::spawn(move || {
        let result = Store::open(&path, &config(1 << 30)).map(|_| ());
        opened.send(result).unwrap();
    });
    let early = when.recv_timeout(Duration::from_millis(200));
    assert!(early.is_err(), "{early:?}");
    drop(reader);
    assert_eq!(when.recv().unwrap(), Ok(()));
    starter.join().unwrap();
}

#[test]
fn segments_are_as_large_as_the_disk_allows() {
    let mebibyte = 1 << 20;
    assert_eq!(segment_bytes(u64::MAX), 16 * mebibyte);
    assert_eq!(segment_bytes(512 * mebibyte), 16 * mebibyte);
    assert_eq!(segment_bytes(100 * mebibyte), 2 * mebibyte);
    assert_eq!(segment_bytes(32 * mebibyte), mebibyte);
    assert_eq!(segment_bytes(0), 256 << 10);
}

#[tokio::test]
async fn payloads_are_written_read_and_removed_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let (mut running, _) = Running::open(dir.path(), &config(1 << 30));
    let store = running.store.clone();
    let entry = EntryId(7);
    let piece = Bytes::from(vec![b'x'; SEGMENT_MAX]);
    store.write(entry, 0, piece.clone()).done().await.unwrap();
    let size = SEGMENT_MAX as u64;
    store
        .write(entry, size, Bytes::from_static(b"end"))
        .done()
        .await
        .unwrap();
    assert_eq!(fs::metadata(store.path(entry)).unwrap().len(), size + 3);
    running.persist(1, vec![large(7, size + 3)]).await.unwrap();
    assert_eq!(&store.read(entry, size + 1, 100).await.unwrap()[..], b"nd");
    store.fetch(entry, 0, 2);
    let Done::Fetched(EntryId(7), 0, Ok(bytes)) = running.done().await else {
        panic!("another report");
    };
    assert_eq!(&bytes.bytes[..], b"xx");
    store.remove(entry);
    assert!(store.read(entry, 0, 1).await.is_err());
    store.close().await;
    assert!(!store.path(entry).exists());
    // Who asks later is told so.
    assert!(store.read(entry, 0, 1).await.is_err());
}

#[tokio::test]
async fn payloads_that_grow_side_by_side_do_not_keep_all_their_files_open() {
    let dir = tempfile::tempdir().unwrap();
    let (running, _) = Running::open(dir.path(), &config(1 << 30));
    let payloads = 300;
    for entry in 1..=payloads {
        let part = Bytes::from_static(b"a part");
        running
            .store
            .write(EntryId(entry), 0, part)
            .done()
            .await
            .unwrap();
    }
    let open = || {
        let files = fs::read_dir("/proc/self/fd").unwrap();
        let payloads = dir.path().join("spool/payloads");
        let targets = files.filter_map(|file| fs::read_link(file.ok()?.path()).ok());
        let own = targets.filter(|to| to.starts_with(&payloads) && to.extension().is_none());
        own.count()
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    while open() > 256 {
        assert!(Instant::now() < deadline, "{} files are open", open());
        // Comes back when the thread has done what was before it.
        running.store.read(EntryId(1), 0, 1).await.unwrap();
    }
    let part = Bytes::from_static(b" and one more");
    running
        .store
        .write(EntryId(1), 6, part)
        .done()
        .await
        .unwrap();
    let whole = running.store.read(EntryId(1), 0, 100).await.unwrap();
    assert_eq!(&whole[..], b"a part and one more");
}

#[tokio::test]
async fn a_part_behind_one_that_failed_fails_too() {
    let dir = tempfile::tempdir().unwrap();
    let (mut running, _) = Running::open(dir.path(), &config(100));
    let entry = EntryId(1);
    running.store.append(entry, 0, piece(&[0; 80]));
    running.store.append(entry, 80, piece(&[0; 80]));
    running.store.append(entry, 160, piece(&[0; 1]));
    let mut ends = Vec::new();
    for _ in 0..3 {
        let Done::Appended(_, end, result) = running.done().await else {
            panic!("another report");
        };
        ends.push((end, result.map_err(|error| error.code)));
    }
    assert_eq!(ends[0], (80, Ok(())));
    assert_eq!(ends[1], (160, Err(ErrorCode::Busy)));
    assert!(ends[2].1.is_err());
}

#[tokio::test]
async fn what_nobody_waits_for_goes_along_with_the_next_that_somebody_waits_for() {
    let dir = tempfile::tempdir().unwrap();
    let (mut running, _) = Running::open(dir.path(), &config(1 << 30));
    let store = running.store.clone();
    let ask = |entry: u64, urgent: bool| {
        store.hold();
        let records = vec![outgoing(entry, "b", b"")];
        store.persist(PersistToken(entry), records, urgent);
        store.release();
    };
    let is_written = |done: &Done, entry: u64| matches!(done, Done::Persisted(token, Ok(())) if token.0 == entry);
    let mut entry = 1;
    loop {
        ask(entry, false);
        if store.due().is_some() {
            break;
        }
        // This test was held up for longer than that waits.
        assert!(is_written(&running.done().await, entry));
        entry += 1;
    }
    ask(entry + 1, true);
    assert_eq!(store.due(), None);
    let together = running.reports.recv().await.unwrap();
    assert_eq!(together.len(), 2, "one batch");
    assert!(is_written(&together[0], entry) && is_written(&together[1], entry + 1));
    // Alone it is written when it has waited long enough.
    ask(entry + 2, false);
    if let Some(due) = store.due() {
        tokio::time::sleep_until(due.into()).await;
        store.release();
    }
    assert!(is_written(&running.done().await, entry + 2));
    // Much of it is company enough.
    store.hold();
    let first = entry + 3;
    for entry in first..first + LINGER_MAX / RECORD + 1 {
        let records = vec![outgoing(entry, "b", b"")];
        store.persist(PersistToken(entry), records, false);
    }
    store.release();
    assert!(is_written(&running.done().await, first));
}

#[tokio::test]
async fn one_recipient_that_is_full_is_no_other_message_s_affair() {
    let dir = tempfile::tempdir().unwrap();
    let limits = config::Spool {
        max_entries_per_recipient: 8,
        ..config(1 << 30)
    };
    let (running, _) = Running::open(dir.path(), &limits);
    let mut running = running;
    let store = running.store.clone();
    // One batch: they are written together and told apart.
    store.hold();
    for entry in 1..=9 {
        store.persist(
            PersistToken(entry),
            vec![outgoing(entry, "away", b"")],
            true,
        );
    }
    store.persist(PersistToken(10), vec![outgoing(10, "here", b"")], true);
    store.release();
    let mut refused = Vec::new();
    for _ in 0..10 {
        if let Done::Persisted(token, Err(error)) = running.done().await {
            assert_eq!(error.code, ErrorCode::Busy);
            assert!(
                error.message.contains("max-entries-per-recipient"),
                "{error}"
            );
            refused.push(token.0);
        }
    }
    // An eighth is left for what ends works.
    assert_eq!(refused, [8, 9]);
    store.remove(EntryId(1));
    while store.usage().entries > 7 {
        tokio::task::yield_now().await;
    }
    running
        .persist(11, vec![outgoing(11, "away", b"")])
        .await
        .unwrap();
}

#[tokio::test]
async fn files_of_works_become_payloads_or_go() {
    let dir = tempfile::tempdir().unwrap();
    let (mut running, _) = Running::open(dir.path(), &config(1 << 20));
    let store = running.store.clone();
    let small = dir.path().join("small");
    fs::write(&small, "a small result").unwrap();
    store.load(MessageId::from_u128(5), small.clone());
    let Done::Loaded(work, Ok(bytes)) = running.done().await else {
        panic!("another report");
    };
    assert_eq!((work.as_u128(), &bytes[..]), (5, &b"a small result"[..]));
    assert!(!small.exists());
    let result = dir.path().join("result");
    fs::write(&result, vec![b'r'; 100_000]).unwrap();
    store
        .adopt(EntryId(3), result.clone(), 100_000, Sums::default())
        .unwrap();
    let read = store.read(EntryId(3), 99_999, 10).await.unwrap();
    assert_eq!((&read[..], result.exists()), (&b"r"[..], false));
    fs::write(&result, "claims to be large").unwrap();
    let error = store.adopt(EntryId(4), result.clone(), 1 << 20, Sums::default());
    assert_eq!(error.unwrap_err().code, ErrorCode::Busy);
    assert!(!result.exists());
}

#[tokio::test]
async fn damage_is_set_aside_and_the_rest_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let (mut running, _) = Running::open(dir.path(), &config(1 << 30));
    for entry in 1..=3 {
        let body = format!("body number {entry}");
        let record = outgoing(entry, "b", body.as_bytes());
        running.persist(entry, vec![record]).await.unwrap();
    }
    running.store.close().await;
    let segments = dir.path().join("spool/segments");
    let mut damaged = 0;
    for segment in fs::read_dir(&segments).unwrap() {
        let path = segment.unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        if let Some(at) = bytes.windows(13).position(|w| w == b"body number 2") {
            bytes[at] ^= 1;
            damaged += 1;
            fs::write(&path, bytes).unwrap();
        }
    }
    assert_eq!(damaged, 1);
    let (running, records) = Running::open(dir.path(), &config(1 << 30));
    let entries: Vec<_> = records
        .iter()
        .filter_map(|record| match record {
            Record::Outgoing { entry, .. } => Some(entry.0),
            Record::Incoming { .. }
            | Record::Transit { .. }
            | Record::Started { .. }
            | Record::Received { .. } => None,
        })
        .collect();
    assert_eq!(entries, [1, 3]);
    drop(running);
    let corrupt = fs::read_dir(dir.path().join("spool/corrupt")).unwrap();
    assert_eq!(corrupt.count(), 1);
}

/// A plugin named a large result; taking it over is one renaming, and must not refuse what others
/// ask for at the same moment.
#[tokio::test]
async fn a_large_result_refuses_nobody_elses_message() {
    let dir = tempfile::tempdir().unwrap();
    let (mut running, _) = Running::open(dir.path(), &config(10 << 30));
    let store = running.store.clone();
    // One turn of the engine: the thread does not run in between.
    store.hold();
    let result = dir.path().join("result");
    let size = QUEUE_MAX + 1;
    fs::File::create(&result).unwrap().set_len(size).unwrap();
    store
        .adopt(EntryId(1000), result.clone(), size, Sums::default())
        .unwrap();
    let record = outgoing(1, "b", b"a small message of somebody else");
    let refused = store.persist(PersistToken(1), vec![record], true);
    assert!(refused.is_none(), "{refused:?}");
    store.release();
    let Done::Persisted(_, Ok(())) = running.done().await else {
        panic!("another report");
    };
    assert!(!result.exists(), "it was taken over");
}

/// What is to be taken over counts before it is.
#[tokio::test]
async fn results_on_their_way_take_room() {
    let dir = tempfile::tempdir().unwrap();
    let (running, _) = Running::open(dir.path(), &config(1 << 30));
    let store = running.store.clone();
    store.hold();
    let size = 600 << 20;
    let [first, second] = ["first", "second"].map(|name| dir.path().join(name));
    for path in [&first, &second] {
        fs::File::create(path).unwrap().set_len(size).unwrap();
    }
    let adopt = |entry, path: &Path| {
        let entry = EntryId(entry);
        store.adopt(entry, path.to_owned(), size, Sums::default())
    };
    adopt(1, &first).unwrap();
    assert!(adopt(2, &second).is_err());
    assert!(!second.exists(), "nobody else would remove it");
    store.release();
}

#[tokio::test]
async fn the_sum_of_what_came_whole_is_known_until_it_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let begin = |running: &Running, entry: u64| {
        let Record::Outgoing { message, .. } = large(entry, 6) else {
            panic!("another record");
        };
        let origin = NodeId::new("a").unwrap();
        running.store.begin(EntryId(entry), origin, message);
    };
    let (mut running, _) = Running::open(dir.path(), &config(1 << 30));
    for entry in [1, 2] {
        begin(&running, entry);
        running.store.append(EntryId(entry), 0, piece(b"one"));
        running.done().await;
        assert_eq!(running.store.digest(EntryId(entry)), None, "half of it");
    }
    running.store.append(EntryId(1), 3, piece(b"two"));
    running.done().await;
    let sum: Digest = Sha256::digest(b"onetwo").into();
    assert_eq!(running.store.digest(EntryId(1)), Some(sum));
    running.store.remove(EntryId(1));
    running
        .persist(1, vec![outgoing(3, "b", b"")])
        .await
        .unwrap();
    assert_eq!(running.store.digest(EntryId(1)), None);
}
