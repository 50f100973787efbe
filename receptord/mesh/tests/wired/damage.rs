//! What a disk damages, or cannot write, is told once and run once.

use bytes::Bytes;
use receptor_mesh::Record;
use receptor_proto::ErrorCode;
use receptor_proto::packet::MessageKind;

use crate::mesh::{Wired, id, node};

const SOON_MS: u64 = 20_000;

fn is_request(record: &Record) -> bool {
    matches!(record, Record::Incoming { message, .. } if matches!(message.kind, MessageKind::Request { .. }))
}

/// The ends that a node has on its disk for others.
fn stored_ends(wired: &mut Wired, name: &str) -> Vec<ErrorCode> {
    let records = wired.host(name).disk.messages.values();
    let ends = records.filter_map(|record| match record {
        Record::Outgoing { message, .. } => match &message.kind {
            MessageKind::Response { eof: Some(eof), .. } => Some(eof.error.clone()?.code),
            MessageKind::Request { .. }
            | MessageKind::Response { .. }
            | MessageKind::Cancel { .. } => None,
        },
        Record::Incoming { .. }
        | Record::Transit { .. }
        | Record::Started { .. }
        | Record::Received { .. } => None,
    });
    ends.collect()
}

#[test]
fn a_damaged_request_that_comes_again_is_not_run_again() {
    let mut wired = Wired::new(&["sender", "worker"]);
    let wire = wired.wire(0, 1);
    wired.run(2000);
    // Whatever the worker's node says of it, its receipt too, is lost.
    wired.lose_packets(wire, "worker", true);
    wired.send("sender", "worker", 1);
    wired.run_until(SOON_MS, |wired| wired.host("worker").runs.len() == 1);
    for _ in 0..2 {
        wired.kill("worker");
        let disk = &mut wired.host("worker").disk;
        let damaged = disk.messages.values().any(is_request);
        disk.messages.retain(|_, record| !is_request(record));
        wired.start("worker");
        let now = wired.now();
        if damaged {
            // Of the answer only this is left.
            wired
                .mesh("worker")
                .restore_damaged(now, &node("sender"), id(1));
        }
        wired.join(wire);
        wired.run(SOON_MS);
        assert_eq!(wired.host("worker").runs.len(), 1);
    }
    wired.lose_packets(wire, "worker", false);
    wired.run_until(SOON_MS, |wired| {
        wired.host("sender").ends.contains_key(&id(1))
    });
    assert_eq!(wired.host("worker").runs.len(), 1);
}

#[test]
fn the_word_for_an_end_that_is_dropped_while_it_is_written_is_written() {
    let mut wired = Wired::new(&["sender", "worker"]);
    let wire = wired.wire(0, 1);
    wired.host("worker").busy = true;
    wired.run(2000);
    wired.send("sender", "worker", 1);
    wired.run_until(SOON_MS, |wired| wired.host("worker").runs.len() == 1);
    wired.respond("worker", id(1), Bytes::from_static(b"one"));
    wired.cut(wire);
    wired.run(SOON_MS);
    // The end is being written when it is dropped; then the word in its place cannot be.
    wired.host("worker").disk.rests = true;
    wired.finish("worker", id(1));
    let now = wired.now();
    wired.mesh("worker").drop_waiting(now, id(1)).unwrap();
    wired.settle();
    wired.wake_one("worker");
    wired.fail_waiting("worker");
    wired.wake_disk("worker");
    wired.run(SOON_MS);
    assert_eq!(stored_ends(&mut wired, "worker"), [ErrorCode::Cancelled]);
    wired.kill("worker");
    wired.start("worker");
    wired.join(wire);
    wired.run(SOON_MS);
    let end = &wired.host("sender").ends[&id(1)];
    assert_eq!(end.error.as_ref().unwrap().code, ErrorCode::Cancelled);
    assert!(wired.host("worker").disk.messages.is_empty());
}
