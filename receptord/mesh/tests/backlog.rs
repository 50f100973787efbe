//! A backlog for a node that is away takes no memory to speak of, neither while it grows nor
//! after a restart, and is still found by id, told of its expiry and ended in its order.
//!
//! The store is one that makes up what was written, from the number of the entry, so that what
//! is measured is the core alone.

#![expect(unsafe_code, reason = "an allocator that counts is one")]
#![expect(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "tests, also in their helpers"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use receptor_mesh::{
    Config, EntryId, Event, Instant, Loaded, Mesh, Output, Payload, Recipient, Record, Submission,
};
use receptor_proto::packet::{CancelReason, Content, Message, MessageKind};
use receptor_proto::{Directive, ErrorCode, MessageId, NodeId};

thread_local! {
    static IN_USE: Cell<usize> = const { Cell::new(0) };
    static MOST: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

fn count(more: usize, less: usize) {
    // A thread that ends frees what it can no longer count.
    let _ = IN_USE.try_with(|in_use| {
        in_use.set((in_use.get() + more).saturating_sub(less));
        let _ = MOST.try_with(|most| most.set(most.get().max(in_use.get())));
    });
}

// SAFETY: hands everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(0, layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn in_use() -> usize {
    IN_USE.with(Cell::get)
}

/// The most in use since the last time.
fn peak() -> usize {
    MOST.with(|most| most.replace(in_use()))
}

const DAY: Duration = Duration::from_secs(24 * 3600);
const SIZE: usize = 100;

fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn id(n: u64) -> MessageId {
    MessageId::from_u128((u128::from(n) << 64) | 77)
}

fn at(micros: u64) -> Instant {
    Instant::from_micros(micros)
}

fn mesh(records: impl IntoIterator<Item = Record>) -> Mesh {
    Mesh::new(Config::new(node("here"), 5, 1), at(0), records)
}

fn submission(n: u64) -> Submission {
    Submission {
        id: id(n),
        recipient: Recipient::Node(node("away")),
        directive: Directive::new("a:b").unwrap(),
        content: Content::Bytes,
        payload: Payload::Inline(Bytes::from_static(&[7; SIZE])),
        volatile: false,
        respond: true,
        expiry: DAY,
        repeatable: false,
    }
}

/// What the store has of the nth message of an earlier start.
fn record(n: u64, remaining_ms: u64) -> Record {
    Record::Outgoing {
        entry: EntryId(n),
        recipient: node("away"),
        message: Message {
            epoch: 4,
            seq: n,
            floor: 0,
            work: id(n),
            kind: MessageKind::Request {
                directive: Directive::new("a:b").unwrap(),
                respond: true,
            },
            volatile: false,
            remaining_ms,
            content: Content::Bytes,
            name: None,
            size: SIZE as u64,
            body: Bytes::new(),
        },
    }
}

/// Confirms writes; gives back the rest.
fn drain(mesh: &mut Mesh, now: Instant) -> Vec<Output> {
    let mut rest = Vec::new();
    while let Some(output) = mesh.poll_output() {
        match output {
            Output::Persist { token, .. } => mesh.handle_persisted(now, token),
            Output::Remove { .. } | Output::Accepted { .. } | Output::ResponsesSafe { .. } => {}
            other => rest.push(other),
        }
    }
    rest
}

fn submit(mesh: &mut Mesh, numbers: std::ops::Range<u64>) {
    for n in numbers {
        mesh.submit(at(n), submission(n)).unwrap();
        if n % 64 == 0 {
            assert!(drain(mesh, at(n)).is_empty());
        }
    }
    assert!(drain(mesh, at(0)).is_empty());
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn per_message(bytes: usize, messages: u64) -> f64 {
    bytes as f64 / messages as f64
}

#[test]
fn a_backlog_takes_less_than_eight_bytes_a_message() {
    let mut mesh = mesh([]);
    submit(&mut mesh, 1..30_001);
    let before = in_use();
    submit(&mut mesh, 30_001..130_001);
    let each = per_message(in_use() - before, 100_000);
    assert!(each < 8.0, "{each} bytes");
    assert_eq!(mesh.outstanding(&node("away")), 130_000);
    let (paged, bytes) = mesh.paged();
    assert!(paged >= 121_000 && per_message(bytes, paged as u64) < 8.0);
    // What is in a page is known by its id all the same.
    let again = mesh.submit(at(0), submission(100_000)).unwrap_err();
    assert_eq!(again.0.code, ErrorCode::InvalidRequest);
    assert!(mesh.is_pending(id(129_999)) && !mesh.is_pending(id(130_001)));
}

#[test]
fn a_restart_with_a_backlog_keeps_no_more_of_it_at_any_time() {
    let before = in_use();
    peak();
    let count = 150_000;
    let mut mesh = mesh((1..=count).map(|n| record(n, 86_400_000)));
    let most = peak() - before;
    assert!(per_message(most, count) < 8.0 + 2048.0 * 1024.0 / 150_000.0);
    assert!(drain(&mut mesh, at(0)).is_empty());
    assert!(mesh.paged().0 >= 141_000);
}

/// What the store has of the nth response of a work of an earlier start.
fn response(work: u64, serial: u64, seq: u64) -> Record {
    let Record::Outgoing {
        recipient,
        mut message,
        ..
    } = record(seq, 86_400_000)
    else {
        panic!("it makes these");
    };
    message.work = id(work);
    message.kind = MessageKind::Response {
        serial,
        eof: None,
        in_doubt: false,
    };
    Record::Outgoing {
        entry: EntryId(seq),
        recipient,
        message,
    }
}

/// A node with this many works that run, whose sender is away.
fn working(works: u64) -> Mesh {
    let request = |work| match record(work, 86_400_000) {
        Record::Outgoing { entry, message, .. } => Record::Incoming {
            entry,
            origin: node("away"),
            message,
        },
        other => other,
    };
    let mut config = Config::new(node("here"), 5, 1);
    config.limits.work_backlog = u64::MAX;
    let mut mesh = Mesh::new(config, at(0), (1..=works).map(request));
    for output in drain(&mut mesh, at(0)) {
        let Output::Dispatch { work, .. } = output else {
            panic!("{output:?}");
        };
        mesh.work_started(at(0), work, false);
    }
    let started = drain(&mut mesh, at(0)).len() as u64;
    assert_eq!(started, works);
    mesh
}

#[test]
fn responses_for_a_sender_that_is_away_take_less_than_eight_bytes_each() {
    let works = 50;
    let mut mesh = working(works);
    let respond = |mesh: &mut Mesh, numbers: std::ops::Range<u64>| {
        for n in numbers {
            let payload = Payload::Inline(Bytes::from_static(&[7; SIZE]));
            let work = id(1 + n % works);
            mesh.work_data(at(n), work, Content::Bytes, None, payload)
                .unwrap();
            if n % 64 == 0 {
                assert!(drain(mesh, at(n)).is_empty());
            }
        }
        assert!(drain(mesh, at(0)).is_empty());
    };
    respond(&mut mesh, 1..30_001);
    let before = in_use();
    respond(&mut mesh, 30_001..130_001);
    let each = per_message(in_use() - before, 100_000);
    assert!(each < 8.0, "{each} bytes");
    assert_eq!(mesh.outstanding(&node("away")), 130_000);
    assert!(mesh.paged().0 >= 121_000);
}

#[test]
fn a_restart_with_responses_that_wait_keeps_no_more_of_them_at_any_time() {
    let before = in_use();
    peak();
    let count = 150_000;
    let mut mesh = mesh((1..=count).map(|n| response(1 + n % 50, 1 + n / 50, n)));
    let most = peak() - before;
    assert!(per_message(most, count) < 8.0 + 8192.0 * 1024.0 / 150_000.0);
    assert!(drain(&mut mesh, at(0)).is_empty());
    assert!(mesh.paged().0 >= 141_000);
}

#[test]
fn a_cancel_finds_its_request_in_a_page() {
    let mut mesh = mesh([]);
    submit(&mut mesh, 1..20_001);
    mesh.cancel(at(0), id(15_000), CancelReason::User).unwrap();
    assert!(mesh.cancel(at(0), id(30_000), CancelReason::User).is_err());
    assert!(drain(&mut mesh, at(0)).is_empty());
    mesh.handle_timeout(at(20_000));
    let (paged, _) = mesh.paged();
    let outputs = drain(&mut mesh, at(20_000));
    let [
        Output::Load {
            token, first, last, ..
        },
    ] = &outputs[..]
    else {
        panic!("{outputs:?}");
    };
    // Entries follow each other as messages do.
    let number = |entry: u64| entry - (5 << 22);
    assert!((number(first.0)..=number(last.0)).contains(&15_000));
    let records = (first.0..=last.0)
        .map(|entry| {
            let Record::Outgoing {
                recipient,
                mut message,
                ..
            } = record(number(entry), 1000)
            else {
                panic!("it makes these");
            };
            message.epoch = 5;
            Record::Outgoing {
                entry: EntryId(entry),
                recipient,
                message,
            }
        })
        .collect();
    mesh.handle_loaded(
        at(20_000),
        *token,
        Ok(Loaded {
            records,
            damaged: Vec::new(),
            next: None,
        }),
    );
    let outputs = drain(&mut mesh, at(20_000));
    assert!(
        matches!(
            &outputs[..],
            [Output::Event(Event::GivenUp { work, .. }), Output::Deliver { eof: Some(eof), .. }]
                if *work == id(15_000) && eof.error.as_ref().is_some_and(|e| e.code == ErrorCode::Cancelled)
        ),
        "{outputs:?}"
    );
    assert_eq!(mesh.paged().0, paged - 1);
    assert!(mesh.is_pending(id(15_001)));
}

#[test]
fn a_damaged_request_in_a_page_ends_and_takes_no_other_with_it() {
    let count = 20_000;
    let mut mesh = mesh((1..=count).map(|n| record(n, 86_400_000)));
    let (paged, _) = mesh.paged();
    mesh.cancel(at(0), id(15_000), CancelReason::User).unwrap();
    assert!(drain(&mut mesh, at(0)).is_empty());
    mesh.handle_timeout(at(20_000));
    let outputs = drain(&mut mesh, at(20_000));
    let [
        Output::Load {
            token, first, last, ..
        },
    ] = &outputs[..]
    else {
        panic!("{outputs:?}");
    };
    let bad = if first.0 == 15_000 { last.0 } else { first.0 };
    let good = (first.0..=last.0).filter(|n| *n != bad);
    let mut wrong = record(bad, 0);
    if let Record::Outgoing { message, .. } = &mut wrong {
        // Nothing of it may be believed but that it is the one with this id.
        (message.epoch, message.seq, message.size) = (u64::MAX, 0, u64::MAX);
    }
    let loaded = Loaded {
        records: good.map(|n| record(n, 86_400_000)).collect(),
        damaged: vec![wrong, record(30_000, 0), record(1, 0)],
        next: None,
    };
    mesh.handle_loaded(at(20_000), *token, Ok(loaded));
    let ends: Vec<_> = drain(&mut mesh, at(20_000))
        .into_iter()
        .filter_map(|output| match output {
            Output::Deliver { work, eof, .. } => Some((work, eof?.error?.code)),
            _ => None,
        })
        .collect();
    assert_eq!(ends, [(id(bad), ErrorCode::Damaged)]);
    assert_eq!(mesh.paged().0, paged - 2);
    assert!(mesh.is_pending(id(15_001)) && mesh.is_pending(id(1)));
}

#[test]
fn every_sender_is_told_when_a_page_expires() {
    let count = 20_000;
    let mut mesh = mesh((1..=count).map(|n| record(n, 1000 + n / 10)));
    let mut told = BTreeSet::new();
    let mut now = at(0);
    let mut turns = 0;
    while told.len() < 20_000 {
        turns += 1;
        assert!(turns < 5000, "{} were told", told.len());
        let mut loads = Vec::new();
        let mut letters = Vec::new();
        for output in drain(&mut mesh, now) {
            match output {
                Output::Load {
                    token,
                    first,
                    last,
                    records,
                    ..
                } => {
                    let age = now.as_micros() / 1000;
                    let until = last.0.min(first.0 + records as u64 - 1);
                    let records = (first.0..=until)
                        .map(|n| record(n, (1000 + n / 10).saturating_sub(age)))
                        .collect();
                    let next = (until < last.0).then(|| EntryId(until + 1));
                    let damaged = Vec::new();
                    let loaded = Loaded {
                        records,
                        damaged,
                        next,
                    };
                    loads.push((token, loaded));
                }
                Output::Deliver {
                    work,
                    serial,
                    eof: Some(_),
                    ..
                } => {
                    assert!(told.insert(work));
                    mesh.consumed(now, work, serial);
                }
                Output::DeadLetter { entry, reason, .. } => {
                    // An earlier start may have sent any of them.
                    assert_eq!(reason.code, ErrorCode::Lost);
                    letters.push(entry);
                }
                Output::Event(Event::GivenUp { .. }) => {}
                other => panic!("{other:?}"),
            }
        }
        if loads.is_empty() && letters.is_empty() {
            now = now.max(mesh.poll_timeout().unwrap());
            mesh.handle_timeout(now);
        }
        for entry in letters {
            mesh.handle_dead_letter(now, entry, Ok(()));
        }
        for (token, loaded) in loads {
            mesh.handle_loaded(now, token, Ok(loaded));
        }
    }
    // Those that an earlier run may have sent are given some time for a receipt.
    assert!(now < at(9_000_000), "{now:?}");
    assert_eq!((mesh.paged().0, mesh.outstanding(&node("away"))), (0, 0));
}
