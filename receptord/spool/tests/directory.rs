//! The spool on a real file system, and directories that earlier versions wrote.
//!
//! `SPOOL_GOLDEN=write` writes `tests/golden/v1` anew; only for a new version of the format,
//! with a new name. What is there must be read by every later version.

#![expect(clippy::unwrap_used, reason = "the helpers of tests fail like tests")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use receptor_proto::packet::{CancelReason, Content, Eof, Message, MessageKind, SEGMENT_MAX};
use receptor_proto::record::{EntryId, Record};
use receptor_proto::{Directive, ErrorBody, ErrorCode, MessageId, NodeId};
use receptor_spool::{FsDisk, Limits, Op, Options, Spool, SpoolError, Sums, Verifier};

const LARGE: usize = SEGMENT_MAX + 100;

fn node(name: &str) -> NodeId {
    NodeId::new(name).expect("a node id")
}

fn message(work: u128, kind: MessageKind, body: &[u8]) -> Message {
    Message {
        epoch: 1_700_000_000_000,
        seq: 3,
        floor: 2,
        work: MessageId::from_u128(work),
        kind,
        volatile: false,
        remaining_ms: 60_000,
        content: Content::Bytes,
        name: Some("result.json".to_owned()),
        size: body.len() as u64,
        body: Bytes::copy_from_slice(body),
    }
}

fn end() -> Eof {
    Eof {
        code: 0,
        error: None,
    }
}

fn request() -> MessageKind {
    MessageKind::Request {
        directive: Directive::new("runner:execute").expect("a directive"),
        respond: true,
    }
}

fn outgoing(entry: u64, to: &str, body: &[u8]) -> Record {
    Record::Outgoing {
        entry: EntryId(entry),
        recipient: node(to),
        message: message(u128::from(entry), request(), body),
    }
}

fn payload() -> Vec<u8> {
    (0..LARGE)
        .map(|at| u8::try_from(at / 256 % 251).unwrap())
        .collect()
}

/// What `tests/golden/v1` holds, as of 1,000 ms after it was written.
fn golden() -> Vec<Record> {
    let eof = Some(Eof {
        code: 3,
        error: Some(ErrorBody::new(ErrorCode::Cancelled, "stopped")),
    });
    let response = MessageKind::Response {
        serial: 9,
        eof,
        in_doubt: false,
    };
    let cancel = MessageKind::Cancel {
        reason: CancelReason::SenderGone,
    };
    let mut large = message(5, request(), b"");
    large.size = LARGE as u64;
    let mut records = vec![
        outgoing(2, "node-b", b"two"),
        Record::Incoming {
            entry: EntryId(3),
            origin: node("controller.example.com"),
            message: message(3, response, b"three"),
        },
        Record::Started { entry: EntryId(3) },
        Record::Outgoing {
            entry: EntryId(4),
            recipient: node("node-b"),
            message: message(4, cancel, b""),
        },
        Record::Outgoing {
            entry: EntryId(5),
            recipient: node("node-c"),
            message: large,
        },
        Record::Received {
            origin: node("node-b"),
            epoch: 17,
            floor: 40,
            ranges: vec![(42, 50), (60, u64::MAX)],
        },
    ];
    for entry in 10..60 {
        records.push(outgoing(entry, "node-d", &[0x55; 700]));
    }
    records
}

fn write_golden(dir: &Path) {
    let mut options = Options::new(7);
    options.segment_bytes = 16 << 10;
    let (mut spool, _) = Spool::open(FsDisk::new(dir), &options).unwrap();
    for (at, part) in payload().chunks(30_000).enumerate() {
        let at = at as u64 * 30_000;
        spool.append(EntryId(5), at, part, None).unwrap();
    }
    let mut records = golden();
    let last = records.split_off(6);
    let over = |floor| Record::Received {
        origin: node("node-z"),
        epoch: 1,
        floor,
        ranges: Vec::new(),
    };
    let batch = [
        Op::Write {
            token: 1,
            records: vec![outgoing(1, "node-b", b"one"), over(4)],
        },
        Op::Write { token: 2, records },
        Op::Remove(EntryId(1)),
        Op::Write {
            token: 3,
            records: vec![over(u64::MAX)],
        },
    ];
    for outcome in spool.commit(5_000, &batch) {
        outcome.result.unwrap();
    }
    for record in last {
        let records = vec![record];
        let outcomes = spool.commit(5_000, &[Op::Write { token: 4, records }]);
        outcomes[0].result.clone().unwrap();
    }
    spool.close().unwrap();
}

fn aged(records: &mut Vec<Record>) {
    for record in &mut *records {
        if let Record::Outgoing { message, .. } | Record::Incoming { message, .. } = record {
            message.remaining_ms -= 1_000;
        }
    }
    records.sort_by_key(|record| format!("{record:?}"));
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

#[test]
fn a_directory_of_version_1_can_be_read() {
    let golden_dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1");
    if std::env::var("SPOOL_GOLDEN").is_ok_and(|how| how == "write") {
        let _ = fs::remove_dir_all(&golden_dir);
        fs::create_dir_all(golden_dir.parent().unwrap()).unwrap();
        write_golden(&golden_dir);
        for unneeded in ["corrupt", "lock"] {
            let path = golden_dir.join(unneeded);
            let _ = fs::remove_dir(&path);
            let _ = fs::remove_file(&path);
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("spool");
    copy(&golden_dir, &dir);
    let mut expected = golden();
    aged(&mut expected);
    for round in 0..3 {
        let options = Options::new(round);
        let (mut spool, report) = Spool::open(FsDisk::new(&dir), &options).unwrap();
        assert_eq!(report.damage, []);
        assert_eq!(report.orphans, 0);
        let mut found: Vec<Record> = spool.records(6_000).map(Result::unwrap).collect();
        found.sort_by_key(|record| format!("{record:?}"));
        assert_eq!(found, expected);
        let part = spool.read(EntryId(5), 65_000, SEGMENT_MAX).unwrap().bytes;
        assert_eq!(part, payload()[65_000..]);
        assert_eq!(spool.read(EntryId(2), 1, 9).unwrap().bytes, b"wo"[..]);
        // And go on from there.
        let entry = 1000 + round;
        let records = vec![outgoing(entry, "node-b", b"more")];
        let batch = [Op::Write { token: 1, records }];
        assert_eq!(spool.commit(5_000, &batch)[0].result, Ok(()));
        spool.commit(5_000, &[Op::Remove(EntryId(entry))]);
        spool.close().unwrap();
    }
}

#[test]
fn only_one_process_owns_it_and_others_read_it_when_it_has_ended() {
    let dir = tempfile::tempdir().unwrap();
    let disk = || FsDisk::new(dir.path().join("spool"));
    let (mut spool, _) = Spool::open(disk(), &Options::new(1)).unwrap();
    let second = Spool::open(disk(), &Options::new(2));
    assert_eq!(second.err(), Some(SpoolError::InUse));
    assert_eq!(Spool::open_read_only(disk()).err(), Some(SpoolError::InUse));
    let records = vec![outgoing(1, "a", b"hello")];
    let batch = [Op::Write { token: 5, records }];
    assert_eq!(spool.commit(0, &batch)[0].result, Ok(()));
    spool.close().unwrap();
    let (mut one, _) = Spool::open_read_only(disk()).unwrap();
    let (two, _) = Spool::open_read_only(disk()).unwrap();
    assert_eq!(one.read(EntryId(1), 0, 100).unwrap().bytes, b"hello"[..]);
    assert_eq!(two.records(0).count(), 1);
    let refused = one.commit(0, &batch);
    assert_eq!(refused[0].result, Err(SpoolError::ReadOnly));
    assert_eq!(
        one.append(EntryId(2), 0, b"x", None),
        Err(SpoolError::ReadOnly)
    );
    assert_eq!(
        Spool::open(disk(), &Options::new(3)).err(),
        Some(SpoolError::InUse)
    );
}

#[test]
fn nobody_else_can_read_it() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("spool");
    let (mut spool, _) = Spool::open(FsDisk::new(&root), &Options::new(1)).unwrap();
    spool.append(EntryId(1), 0, b"secret", None).unwrap();
    let records = vec![outgoing(2, "a", b"secret")];
    spool.commit(0, &[Op::Write { token: 1, records }]);
    let mut dirs = vec![root];
    let mut files = 0;
    while let Some(dir) = dirs.pop() {
        assert_eq!(
            fs::metadata(&dir).unwrap().permissions().mode() & 0o777,
            0o700
        );
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
            if path.is_dir() {
                dirs.push(path);
            } else {
                files += 1;
                assert_eq!(mode, 0o600, "{}", path.display());
            }
        }
    }
    assert!(files >= 5);
}

#[test]
fn a_newer_format_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("spool");
    drop(Spool::open(FsDisk::new(&root), &Options::new(1)).unwrap());
    fs::write(root.join("format"), "receptor-spool 2\n").unwrap();
    let newer = SpoolError::Newer { found: 2, known: 1 };
    for _ in 0..2 {
        let error = Spool::open(FsDisk::new(&root), &Options::new(1)).err();
        assert_eq!(error.as_ref(), Some(&newer));
        assert_eq!(
            newer.to_string(),
            "the spool has format version 2, this program knows up to 1"
        );
    }
    let error = Spool::open_read_only(FsDisk::new(&root)).err();
    assert_eq!(error, Some(newer));
}

#[test]
fn a_payload_without_its_file_is_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("spool");
    copy(
        &PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1"),
        &root,
    );
    let file = root.join("payloads/0000000000000005");
    fs::write(&file, b"short").unwrap();
    fs::write(root.join("payloads/0000000000000999"), b"nobody's").unwrap();
    let (mut spool, report) = Spool::open(FsDisk::new(&root), &Options::new(1)).unwrap();
    assert_eq!(report.orphans, 1);
    assert_eq!(report.damage.len(), 1);
    assert_eq!(
        report.damage[0].to_string(),
        "5 bytes of payloads/0000000000000005 at 0, with entry 5 cannot be used; \
         they are kept in corrupt/0000000000000005.payload"
    );
    assert!(!file.exists() && root.join("corrupt/0000000000000005.payload").exists());
    assert_eq!(
        spool.read(EntryId(5), 0, 1),
        Err(SpoolError::Damaged(EntryId(5)))
    );
    // Its message is there, so that its sender can be told.
    let is_there = |record: Result<Record, _>| {
        matches!(
            record,
            Ok(Record::Outgoing {
                entry: EntryId(5),
                ..
            } | Record::Incoming {
                entry: EntryId(5),
                ..
            })
        )
    };
    assert!(spool.records(0).any(is_there));
    assert_eq!(spool.commit(0, &[Op::Remove(EntryId(5))]), []);
    spool.close().unwrap();
    let (_, report) = Spool::open(FsDisk::new(&root), &Options::new(2)).unwrap();
    assert_eq!(report.damage, []);
}

/// A payload that was appended under entry 9, and its message.
fn with_payload(root: &Path, bytes: &[u8]) -> Spool<FsDisk> {
    let (mut spool, _) = Spool::open(FsDisk::new(root), &Options::new(1)).unwrap();
    for (at, part) in bytes.chunks(30_000).enumerate() {
        let sum = Some(crc32c::crc32c(part));
        let at = at as u64 * 30_000;
        spool.append(EntryId(9), at, part, sum).unwrap();
    }
    let mut large = message(9, request(), b"");
    large.size = bytes.len() as u64;
    let records = vec![Record::Outgoing {
        entry: EntryId(9),
        recipient: node("a"),
        message: large,
    }];
    let outcomes = spool.commit(0, &[Op::Write { token: 1, records }]);
    assert_eq!(outcomes[0].result, Ok(()));
    spool
}

fn read_all(spool: &Spool<FsDisk>, step: usize, size: usize) -> Result<Vec<u8>, SpoolError> {
    let mut read = Vec::new();
    while read.len() < size {
        let piece = spool.read(EntryId(9), read.len() as u64, step)?;
        assert_eq!(piece.sum, crc32c::crc32c(&piece.bytes));
        assert!(!piece.bytes.is_empty());
        read.extend_from_slice(&piece.bytes);
    }
    Ok(read)
}

#[test]
fn a_payload_is_read_as_it_was_stored_or_not_at_all() {
    let mut rng = fastrand::Rng::with_seed(3);
    for size in [65_537, 131_072, 300_001] {
        let bytes: Vec<u8> = (0..size).map(|_| rng.u8(..)).collect();
        for step in [1 << 20, SEGMENT_MAX, 50_000] {
            for place in [0, size / 2, size - 1] {
                let dir = tempfile::tempdir().unwrap();
                let root = dir.path().join("spool");
                let spool = with_payload(&root, &bytes);
                assert_eq!(read_all(&spool, step, size).unwrap(), bytes);
                drop(spool);
                let file = root.join("payloads/0000000000000009");
                let mut damaged = bytes.clone();
                damaged[place] ^= 1 << rng.u8(0..8);
                fs::write(&file, &damaged).unwrap();
                // It is as long as it should be, which is all that a start looks at.
                let (mut spool, report) =
                    Spool::open(FsDisk::new(&root), &Options::new(2)).unwrap();
                assert_eq!(report.damage, []);
                let error = SpoolError::Damaged(EntryId(9));
                assert_eq!(read_all(&spool, step, size), Err(error.clone()));
                let mut verifier = Verifier::beside(&file).unwrap();
                let added = damaged
                    .chunks(10_000)
                    .try_for_each(|part| verifier.add(part));
                assert!(added.and_then(|()| verifier.end()).is_err());
                let damage = spool.set_aside(EntryId(9)).unwrap();
                let kept = root.join(damage.kept.unwrap());
                assert_eq!(fs::read(kept).unwrap(), damaged);
                assert_eq!(spool.read(EntryId(9), 0, 1), Err(error));
                spool.commit(0, &[Op::Remove(EntryId(9))]);
                spool.close().unwrap();
                let (spool, report) = Spool::open(FsDisk::new(&root), &Options::new(3)).unwrap();
                assert_eq!((spool.usage().bytes, report.damage), (0, vec![]));
                assert_eq!(fs::read_dir(root.join("payloads")).unwrap().count(), 0);
            }
        }
    }
}

#[test]
fn a_part_that_was_changed_on_its_way_is_not_stored() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("spool");
    let (mut spool, _) = Spool::open(FsDisk::new(&root), &Options::new(1)).unwrap();
    let sum = crc32c::crc32c(b"as it was");
    let changed = spool.append(EntryId(9), 0, b"as it is ", Some(sum));
    assert_eq!(changed, Err(SpoolError::Changed(EntryId(9))));
    assert_eq!(spool.usage().bytes, 0);
    spool
        .append(EntryId(9), 0, b"as it was", Some(sum))
        .unwrap();
}

#[test]
fn checksums_without_a_payload_go_and_a_payload_without_checksums_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("spool");
    let bytes = vec![7; 100_000];
    drop(with_payload(&root, &bytes));
    fs::remove_file(root.join("payloads/0000000000000009.sums")).unwrap();
    fs::write(root.join("payloads/000000000000000a.sums"), b"sums").unwrap();
    let (spool, _) = Spool::open(FsDisk::new(&root), &Options::new(2)).unwrap();
    assert_eq!(read_all(&spool, 50_000, 100_000).unwrap(), bytes);
    assert_eq!(fs::read_dir(root.join("payloads")).unwrap().count(), 1);
}

#[test]
fn a_file_can_be_taken_over_as_a_payload() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("spool");
    let upload = dir.path().join("upload");
    fs::write(&upload, payload()).unwrap();
    let (mut spool, _) = Spool::open(FsDisk::new(&root), &Options::new(1)).unwrap();
    let sums = Sums::of_file(&upload).unwrap();
    spool
        .adopt(EntryId(9), &upload, LARGE as u64, sums)
        .unwrap();
    assert!(!upload.exists());
    let mut large = message(9, request(), b"");
    large.size = LARGE as u64;
    let record = Record::Outgoing {
        entry: EntryId(9),
        recipient: node("a"),
        message: large,
    };
    let records = vec![record];
    let outcomes = spool.commit(0, &[Op::Write { token: 1, records }]);
    assert_eq!(outcomes[0].result, Ok(()));
    drop(spool);
    let (spool, report) = Spool::open(FsDisk::new(&root), &Options::new(1)).unwrap();
    assert_eq!(report.damage, []);
    assert_eq!(
        spool.read(EntryId(9), 100, 200).unwrap().bytes,
        payload()[100..300]
    );
    assert_eq!(
        spool.payload_file(EntryId(9)).as_deref(),
        Some("payloads/0000000000000009")
    );
}

#[test]
fn each_limit_refuses_with_its_name() {
    let none = Limits {
        max_bytes: u64::MAX / 4,
        max_entries: u64::MAX / 4,
        max_bytes_per_recipient: u64::MAX / 4,
        max_entries_per_recipient: u64::MAX / 4,
    };
    let cases = [
        (
            Limits {
                max_bytes: 8_000,
                ..none
            },
            "the spool is full (max-bytes = 8000)",
        ),
        (
            Limits {
                max_entries: 8,
                ..none
            },
            "the spool is full (max-entries = 8)",
        ),
        (
            Limits {
                max_bytes_per_recipient: 8_000,
                ..none
            },
            "the spool is full for a (max-bytes-per-recipient = 8000)",
        ),
        (
            Limits {
                max_entries_per_recipient: 8,
                ..none
            },
            "the spool is full for a (max-entries-per-recipient = 8)",
        ),
    ];
    for (limits, text) in cases {
        let dir = tempfile::tempdir().unwrap();
        let mut options = Options::new(1);
        options.limits = limits;
        let (mut spool, _) = Spool::open(FsDisk::new(dir.path()), &options).unwrap();
        let batch: Vec<Op> = (1..=20)
            .map(|entry| Op::Write {
                token: entry,
                records: vec![outgoing(entry, "a", &[1; 900])],
            })
            .collect();
        let outcomes = spool.commit(0, &batch);
        let taken = outcomes.iter().filter(|outcome| outcome.result.is_ok());
        // An eighth is left for what ends works.
        assert_eq!(taken.count(), 7);
        let error = outcomes[7].result.clone().unwrap_err();
        assert_eq!(error.to_string(), text);
        let kind = MessageKind::Response {
            serial: 1,
            eof: Some(end()),
            in_doubt: false,
        };
        let answer = Record::Outgoing {
            entry: EntryId(50),
            recipient: node("a"),
            message: message(50, kind, &[1; 700]),
        };
        let records = vec![answer];
        let outcomes = spool.commit(0, &[Op::Write { token: 1, records }]);
        assert_eq!(outcomes[0].result, Ok(()));
        spool.commit(0, &[Op::Remove(EntryId(1)), Op::Remove(EntryId(2))]);
        let records = vec![outgoing(60, "a", &[1; 300])];
        let outcomes = spool.commit(0, &[Op::Write { token: 1, records }]);
        assert_eq!(outcomes[0].result, Ok(()));
    }
}

#[test]
fn responses_leave_room_for_what_ends_a_work() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = Options::new(1);
    options.limits.max_entries = 32;
    let (mut spool, _) = Spool::open(FsDisk::new(dir.path()), &options).unwrap();
    let mut next = 0;
    let mut fill = |kind: &MessageKind| {
        let mut taken = 0;
        loop {
            next += 1;
            let record = Record::Incoming {
                entry: EntryId(next),
                origin: node("a"),
                message: message(next.into(), kind.clone(), b"x"),
            };
            let write = Op::Write {
                token: next,
                records: vec![record],
            };
            if spool.commit(0, &[write])[0].result.is_err() {
                return taken;
            }
            taken += 1;
        }
    };
    let response = |eof| MessageKind::Response {
        serial: 1,
        eof,
        in_doubt: false,
    };
    assert_eq!(fill(&request()), 28, "an eighth is left");
    assert_eq!(fill(&response(None)), 2, "a sixteenth is left");
    assert_eq!(fill(&response(Some(end()))), 2);
}

#[test]
fn what_a_batch_removes_makes_room_for_what_it_writes() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = Options::new(1);
    // Small segments, so that batches end in the middle of one.
    options.segment_bytes = 16 << 10;
    options.limits.max_entries = 16;
    options.limits.max_entries_per_recipient = 8;
    let (mut spool, _) = Spool::open(FsDisk::new(dir.path()), &options).unwrap();
    let write = |entry: u64| Op::Write {
        token: entry,
        records: vec![outgoing(entry, "a", &[1; 900])],
    };
    let first: Vec<Op> = (1..=8).map(write).collect();
    assert!(
        spool.commit(0, &first)[7].result.is_err(),
        "an eighth is left"
    );
    for round in 0..10 {
        let first = 1 + round * 7;
        let batch: Vec<Op> = (first..first + 7)
            .flat_map(|entry| [Op::Remove(EntryId(entry)), write(entry + 7)])
            .collect();
        let outcomes = spool.commit(0, &batch);
        assert!(
            outcomes.iter().all(|outcome| outcome.result.is_ok()),
            "{outcomes:?}"
        );
        // Twice removed is one place.
        let twice = [
            Op::Remove(EntryId(first + 7)),
            Op::Remove(EntryId(first + 7)),
            write(1000 + round * 2),
            write(1001 + round * 2),
        ];
        let outcomes = spool.commit(0, &twice);
        assert_eq!(outcomes[0].result, Ok(()));
        assert!(outcomes[1].result.is_err());
        let back = [Op::Remove(EntryId(1000 + round * 2)), write(first + 7)];
        assert_eq!(spool.commit(0, &back)[0].result, Ok(()));
        assert_eq!(spool.usage().entries, 7);
    }
}

#[test]
fn a_page_has_one_recipient_s_messages_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = Options::new(7);
    options.segment_bytes = 16 << 10;
    let (mut spool, _) = Spool::open(FsDisk::new(dir.path()), &options).unwrap();
    for entry in 1..=90 {
        let to = if entry % 3 == 0 { "node-b" } else { "node-c" };
        let records = vec![outgoing(entry, to, &[0x55; 700])];
        let outcomes = spool.commit(0, &[Op::Write { token: 1, records }]);
        assert_eq!(outcomes[0].result, Ok(()));
    }
    spool.commit(0, &[Op::Remove(EntryId(9))]);
    let page = |first, last, records, bytes| {
        let range = (EntryId(first), EntryId(last));
        let page = spool.page(1_000, &node("node-b"), range, records, bytes);
        let page = page.unwrap();
        let entries = page.records.iter().map(|record| match record {
            Record::Outgoing { entry, message, .. } => (entry.0, message.body.len()),
            Record::Incoming { .. }
            | Record::Transit { .. }
            | Record::Started { .. }
            | Record::Received { .. } => (0, 0),
        });
        assert_eq!(page.damaged, []);
        (entries.collect::<Vec<_>>(), page.next.map(|entry| entry.0))
    };
    assert_eq!(page(4, 12, 10, 9999), (vec![(6, 700), (12, 700)], None));
    assert_eq!(page(1, 90, 2, 9999), (vec![(3, 700), (6, 700)], Some(12)));
    assert_eq!(page(12, 90, 2, 1000), (vec![(12, 700), (15, 0)], Some(18)));
    assert_eq!(page(1, 90, 99, 99_999).0.len(), 29);
    assert_eq!(page(91, u64::MAX, 99, 0), (vec![], None));
    let nobody = spool.page(0, &node("x"), (EntryId(0), EntryId(99)), 9, 9);
    assert_eq!(nobody.unwrap().records, []);
}
