//! The spool's directory, as a disk may give it back.
//!
//! An input is a list of files: which (a byte), length (two bytes), content. What is in a segment
//! would never pass its checksums by chance, so one kind of file is a list of records around which a
//! good segment is put; the others are what they are.

use std::collections::BTreeSet;

use bytes::Bytes;
use crc32c::{crc32c, crc32c_append};
use receptor_proto::packet::{Content, Message, MessageKind};
use receptor_proto::record::{EntryId, Record};
use receptor_proto::{Directive, MessageId, NodeId};
use receptor_spool::sim::SimDisk;
use receptor_spool::{MEMO_FIRST, Op, Options, Report, Spool, SpoolError};

/// The files of an input, by their byte.
const FILES: [&str; 10] = [
    "segments/0000000000000001.seg",
    "segments/0000000000000002.seg",
    "segments/0000000000000003.seg",
    "segments/0000000000000004.spare",
    "payloads/0000000000000001",
    "payloads/0000000000000001.sums",
    "payloads/0000000000000001.part",
    "payloads/0000000000000002.part",
    "segments/0000000000000009.seg",
    "format",
];
/// So many of them are segments that are made whole.
const WHOLE: usize = 2;
/// Of both.
const SALT: u64 = 0x1234_5678_9abc_def0;
/// A moment after everything that an input can say, in milliseconds since 1970.
const NOW_MS: u64 = 1_800_000_000_000;

/// Whatever is there, a spool opens, what can be read of it is what can be read after the next start,
/// and what is written to it is there too.
///
/// # Panics
///
/// When that does not hold.
pub fn spool_directory(input: &[u8]) {
    let disk = SimDisk::new(1);
    let mut rest = input;
    while let [which, high, low, content @ ..] = rest {
        let length = usize::from(u16::from_be_bytes([*high, *low])).min(content.len());
        let (content, behind) = content.split_at(length);
        rest = behind;
        let which = usize::from(*which) % FILES.len();
        if which < WHOLE {
            disk.put(FILES[which], &segment(which, content));
        } else {
            disk.put(FILES[which], content);
        }
    }
    let _ = Spool::open_read_only(disk.clone()).map(|(spool, _)| everything(&spool));
    let Some((mut spool, report)) = open(&disk, 7) else {
        return;
    };
    assert!(report.damage.len() <= input.len() + FILES.len());
    let mut before = everything(&spool);
    let entry = free_entry(&before);
    let record = Record::Outgoing {
        entry,
        recipient: NodeId::new("new").expect("a node id"),
        message: message(),
    };
    let written = spool.commit(
        NOW_MS,
        &[Op::Write {
            token: 1,
            records: vec![record.clone()],
        }],
    );
    assert_eq!(written.len(), 1);
    let is_written = written[0].result.is_ok();
    drop(spool);
    disk.kill();
    let (spool, report) = open(&disk, 8).expect("a spool that was opened opens again");
    assert_eq!(report.usage, spool.usage());
    if is_written {
        before.push(record);
        before.sort_by_key(|record| format!("{record:?}"));
    }
    assert_eq!(everything(&spool), before);
}

fn open(disk: &SimDisk, salt: u64) -> Option<(Spool<SimDisk>, Report)> {
    let mut options = Options::new(salt);
    options.segment_bytes = 16 << 10;
    match Spool::open(disk.clone(), &options) {
        Ok(opened) => Some(opened),
        Err(SpoolError::Newer { .. }) => None,
        Err(error) => panic!("damage must not keep a spool closed: {error}"),
    }
}

/// All that can be read, in an order of its own.
fn everything(spool: &Spool<SimDisk>) -> Vec<Record> {
    let mut records: Vec<Record> = spool.records(NOW_MS).flatten().collect();
    for record in &records {
        if let Some((entry, size)) = stored(record) {
            let _ = spool.read(entry, 0, 64);
            let _ = spool.read(entry, size / 2, 1 << 16);
        }
    }
    let memos = spool.memos().count();
    assert!(memos <= 1 << 16);
    let recipients: Vec<NodeId> = spool.recipients().map(|(node, _)| node.clone()).collect();
    for recipient in recipients {
        let all = (EntryId(0), EntryId(u64::MAX));
        let page = spool.page(NOW_MS, &recipient, all, 100, 1000);
        assert!(page.is_ok_and(|page| page.records.len() <= 100));
    }
    let _ = spool.unfinished(NOW_MS);
    records.sort_by_key(|record| format!("{record:?}"));
    records
}

fn stored(record: &Record) -> Option<(EntryId, u64)> {
    match record {
        Record::Outgoing { entry, message, .. }
        | Record::Incoming { entry, message, .. }
        | Record::Transit { entry, message, .. } => Some((*entry, message.size)),
        Record::Started { .. } | Record::Received { .. } => None,
    }
}

/// A name that nothing has.
fn free_entry(records: &[Record]) -> EntryId {
    let used: BTreeSet<u64> = records
        .iter()
        .filter_map(|record| {
            if let Record::Started { entry } = record {
                return Some(entry.0);
            }
            stored(record).map(|(entry, _)| entry.0)
        })
        .collect();
    let free = (1 << 40..MEMO_FIRST).find(|entry| !used.contains(entry));
    EntryId(free.expect("an input has less records than there are names"))
}

fn message() -> Message {
    Message {
        epoch: 1,
        seq: 1,
        floor: 1,
        work: MessageId::from_u128(1),
        kind: MessageKind::Request {
            directive: Directive::new("echo:echo").expect("a directive"),
            respond: true,
        },
        volatile: false,
        remaining_ms: 60_000,
        content: Content::Bytes,
        name: None,
        size: 3,
        body: Bytes::from_static(b"new"),
    }
}

/// A segment around records, each a length of two bytes and its bytes; as the text of the spool's
/// crate draws it. Every record is a frame of its own, and every second frame says that it is safe.
fn segment(number: usize, mut records: &[u8]) -> Vec<u8> {
    let number = u32::try_from(number + 1).expect("a few");
    let mut header = b"rcptseg\0".to_vec();
    header.extend_from_slice(&1u32.to_be_bytes());
    header.extend_from_slice(&number.to_be_bytes());
    header.extend_from_slice(&SALT.to_be_bytes());
    header.resize(1056 - 4, 0);
    let crc = crc32c(&header);
    header.splice(8..8, crc.to_be_bytes());
    let mut out = header.clone();
    out.resize(4096, 0);
    out.extend_from_slice(&header);
    out.resize(5152, 0);
    while let [high, low, rest @ ..] = records {
        let length = usize::from(u16::from_be_bytes([*high, *low])).min(rest.len());
        let (record, behind) = rest.split_at(length);
        records = behind;
        frame(record, &mut out);
    }
    out
}

fn frame(record: &[u8], out: &mut Vec<u8>) {
    let field = |value: usize| u32::try_from(value).expect("short").to_be_bytes();
    let length = (24 + 8 + record.len()).next_multiple_of(8);
    let durable = if record.len().is_multiple_of(2) {
        out.len()
    } else {
        0
    };
    let mut fields = Vec::new();
    let tag = u32::try_from(SALT >> 32).expect("the upper half") | 1;
    fields.extend_from_slice(&tag.to_be_bytes());
    fields.extend_from_slice(&field(length));
    fields.extend_from_slice(&field(1));
    fields.extend_from_slice(&field(durable));
    let mut behind = vec![0; 4];
    behind.extend_from_slice(&field(record.len()));
    behind.extend_from_slice(&crc32c(record).to_be_bytes());
    let crc = crc32c_append(crc32c(&SALT.to_be_bytes()), &fields);
    let crc = crc32c_append(crc, &behind);
    let end = out.len() + length;
    out.extend_from_slice(&fields);
    out.extend_from_slice(&crc.to_be_bytes());
    out.extend_from_slice(&behind);
    out.extend_from_slice(record);
    out.resize(end, 0);
}
