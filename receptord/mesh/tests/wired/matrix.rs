//! Every stage of a work's life, met by everything that can happen to it. Afterwards everything is
//! mended: all nodes run, all wires are joined, all disks write, the plugin does what it has and
//! clients read. Then the work has one end that both of its nodes and the client agree on, it ran no
//! more often than it may, and nothing is left anywhere.

use std::fmt::Write as _;
use std::time::Duration;

use bytes::Bytes;
use receptor_mesh::Recipient;
use receptor_proto::packet::{CancelReason, Eof};
use receptor_proto::{ErrorCode, MessageId};

use super::mesh::{Wired, node};

/// The only one.
const WORK: MessageId = MessageId::from_u128(1);
/// How long the message is worth delivering.
const EXPIRY_MS: u64 = 20_000;
/// Longer than anybody waits before saying something again or giving it up.
const AFTER_MS: u64 = 400_000;

/// How far a work has come when something happens. `a` sends it through `r` to `b`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It is being written where it was submitted.
    Submitted,
    /// It is on the disk, and there is no way.
    NoRoute,
    /// A router keeps it, because it has no way on.
    InCustody,
    /// It left, and did not arrive.
    Sent,
    /// It arrived, and is being written.
    Received,
    /// It is on the worker's disk, and its plugin has no place.
    Queued,
    /// Its start is being written.
    Starting,
    /// Its plugin has it.
    Started,
    /// Its plugin has given two results, which the client has.
    Responding,
    /// Its last response left, and did not arrive.
    Ended,
    /// Its last response is where it was sent from, and the client has not taken it.
    Kept,
    /// The client has taken it.
    Released,
}

const STAGES: [Stage; 12] = [
    Stage::Submitted,
    Stage::NoRoute,
    Stage::InCustody,
    Stage::Sent,
    Stage::Received,
    Stage::Queued,
    Stage::Starting,
    Stage::Started,
    Stage::Responding,
    Stage::Ended,
    Stage::Kept,
    Stage::Released,
];

/// What happens then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    Nothing,
    /// Its sender cancels it.
    Cancel,
    /// Somebody at the worker does.
    CancelThere,
    /// Time passes, more than it is worth delivering.
    Expire,
    /// What waits of it at `a`, `r` or `b` is dropped.
    Drop(&'static str),
    /// It is sent again.
    Again,
    /// `a`, `r` or `b` is killed.
    Kill(&'static str),
    /// All three are.
    KillAll,
    /// `b` is killed, and its plugins go on.
    Outlive,
    /// The wire between `r` and this node is cut, and joined when both have noticed.
    Cut(&'static str),
    /// What `a` or `b` is writing cannot be written.
    Fail(&'static str),
}

const EVENTS: [Event; 17] = [
    Event::Nothing,
    Event::Cancel,
    Event::CancelThere,
    Event::Expire,
    Event::Drop("a"),
    Event::Drop("r"),
    Event::Drop("b"),
    Event::Again,
    Event::Kill("a"),
    Event::Kill("r"),
    Event::Kill("b"),
    Event::KillAll,
    Event::Outlive,
    Event::Cut("a"),
    Event::Cut("b"),
    Event::Fail("a"),
    Event::Fail("b"),
];

/// What kind of message it is, for what kind of action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Kind {
    volatile: bool,
    /// Has a key.
    keyed: bool,
    idempotent: bool,
}

const PLAIN: Kind = Kind {
    volatile: false,
    keyed: false,
    idempotent: false,
};
const KEYED: Kind = Kind {
    keyed: true,
    ..PLAIN
};
const IDEMPOTENT: Kind = Kind {
    idempotent: true,
    ..PLAIN
};
const KEYED_IDEMPOTENT: Kind = Kind {
    idempotent: true,
    ..KEYED
};
const VOLATILE: Kind = Kind {
    volatile: true,
    ..PLAIN
};
const VOLATILE_IDEMPOTENT: Kind = Kind {
    idempotent: true,
    ..VOLATILE
};

/// A mesh in which the work is at this stage; `None`: such a message never is.
fn at_stage(stage: Stage, kind: Kind) -> Option<Wired> {
    let durable_only = matches!(
        stage,
        Stage::Submitted | Stage::NoRoute | Stage::InCustody | Stage::Received | Stage::Starting
    );
    if kind.volatile && durable_only {
        return None;
    }
    let mut wired = Wired::chain(&["a", "r", "b"]);
    wired.host("b").idempotent = kind.idempotent;
    let (near, far) = (wired.wire_between("a", "r"), wired.wire_between("r", "b"));
    match stage {
        Stage::Submitted => wired.host("a").disk.rests = true,
        Stage::NoRoute => wired.cut(near),
        Stage::InCustody => wired.cut(far),
        Stage::Sent => wired.lose_packets(far, "r", true),
        Stage::Received => wired.host("b").disk.rests = true,
        Stage::Queued | Stage::Starting => wired.host("b").full = true,
        Stage::Started | Stage::Responding => {}
        Stage::Ended => wired.lose_packets(far, "b", true),
        Stage::Kept => {
            wired.host("a").unread.insert(WORK);
        }
        Stage::Released => {}
    }
    wired.host("b").busy = matches!(
        stage,
        Stage::Submitted | Stage::Starting | Stage::Started | Stage::Responding
    );
    if matches!(stage, Stage::NoRoute | Stage::InCustody) {
        wired.run(3000);
    }
    send(&mut wired, kind).unwrap();
    match stage {
        Stage::InCustody => {
            wired.run_until(5000, |wired| wired.custody("r") == 1);
        }
        Stage::Starting => {
            wired.host("b").disk.rests = true;
            wired.take_queued("b");
        }
        Stage::Responding => {
            for part in [&b"one"[..], b"two"] {
                wired.respond("b", WORK, Bytes::from_static(part));
            }
        }
        Stage::Submitted
        | Stage::NoRoute
        | Stage::Sent
        | Stage::Received
        | Stage::Queued
        | Stage::Started
        | Stage::Ended
        | Stage::Kept
        | Stage::Released => {}
    }
    Some(wired)
}

fn send(wired: &mut Wired, kind: Kind) -> Result<(), ErrorCode> {
    let recipient = Recipient::Node(node("b"));
    let mut submission = Wired::submission(1, recipient, Bytes::from_static(b"payload"));
    submission.volatile = kind.volatile;
    submission.repeatable = kind.keyed;
    submission.expiry = Duration::from_millis(EXPIRY_MS);
    let now = wired.now();
    let result = wired.mesh("a").submit(now, submission);
    wired.settle();
    result.map_err(|error| error.0.code)
}

fn happen(wired: &mut Wired, event: Event, kind: Kind) {
    let now = wired.now();
    let runs = |wired: &mut Wired, name: &str| wired.host(name).mesh.is_some();
    match event {
        Event::Nothing => {}
        Event::Cancel => {
            if runs(wired, "a") {
                let _ = wired.mesh("a").cancel(now, WORK, CancelReason::User);
            }
        }
        Event::CancelThere => {
            if runs(wired, "b") && wired.mesh("b").work(WORK).is_some() {
                wired.cancel_there("b", WORK);
            }
        }
        Event::Expire => wired.run(EXPIRY_MS + 1000),
        Event::Drop(name) => {
            if runs(wired, name) {
                let _ = wired.mesh(name).drop_waiting(now, WORK);
            }
        }
        Event::Again => {
            // After its end only who keeps the key knows that it was sent: that is not the core.
            if runs(wired, "a") && wired.mesh("a").is_pending(WORK) {
                assert_eq!(send(wired, kind), Err(ErrorCode::InvalidRequest));
            }
        }
        Event::Kill(name) => wired.kill(name),
        Event::KillAll => ["a", "r", "b"]
            .into_iter()
            .for_each(|name| wired.kill(name)),
        Event::Outlive => {
            wired.host("b").outlived = true;
            wired.kill("b");
            wired.host("b").outlived = false;
        }
        Event::Cut(name) => {
            let wire = wired.wire_between(name, "r");
            wired.cut(wire);
            wired.run(3000);
        }
        Event::Fail(name) => {
            if runs(wired, name) {
                wired.fail_waiting(name);
            }
        }
    }
    wired.settle();
}

/// Everything is well again, for long enough.
fn mend(wired: &mut Wired) {
    for name in ["a", "r", "b"] {
        wired.host(name).disk.rests = false;
        wired.start_if_down(name);
        wired.wake_disk(name);
    }
    for (one, other) in [("a", "r"), ("r", "b")] {
        let wire = wired.wire_between(one, other);
        wired.lose_packets(wire, one, false);
        wired.lose_packets(wire, other, false);
        wired.join(wire);
    }
    wired.take_queued("b");
    wired.finish_all("b");
    wired.read("a");
    let begin = wired.now();
    while !is_over(wired) && wired.now().since(begin).as_millis() < u128::from(AFTER_MS) {
        wired.run(1000);
    }
    wired.run(1000);
}

/// Nothing is left of the work but what became of it.
fn is_over(wired: &mut Wired) -> bool {
    let now = wired.now();
    ["a", "r", "b"].into_iter().all(|name| {
        let custody = wired.custody(name);
        let host = wired.host(name);
        let mesh = host.mesh.as_ref().unwrap();
        let left = mesh.waiting(now, 1).1 + mesh.works(1).1;
        left == 0 && custody == 0 && !mesh.is_pending(WORK) && host.disk.messages.is_empty()
    })
}

/// How a work ended, in one letter.
fn letter(eof: &Eof) -> char {
    match eof.error.as_ref().map(|error| &error.code) {
        None if eof.code == 0 => 'k',
        Some(ErrorCode::Cancelled) => 'c',
        Some(ErrorCode::Expired) => 'x',
        Some(ErrorCode::Interrupted) => 'i',
        Some(ErrorCode::Lost) => 'l',
        Some(ErrorCode::Internal) => 'f',
        other => panic!("an end that no stage has: {other:?}"),
    }
}

/// By then a receipt has come that waited for company.
const RECEIPT_MS: u64 = 3;

/// What became of a work, as in the tables; checks what holds in every case.
fn outcome(wired: &mut Wired, events: &[Event], kind: Kind, what: &str) -> String {
    let runs = wired.host("b").runs.len();
    let end = wired.host("a").ends.get(&WORK).cloned();
    let accepted = wired.host("a").accepted.contains_key(&WORK);
    let lost_client = kind.volatile
        && (events.iter()).any(|event| matches!(event, Event::Kill("a") | Event::KillAll));
    assert!(
        end.is_some() || !accepted || lost_client,
        "{what}: accepted, and nobody is told its end"
    );
    let worker_died = |event: &&Event| matches!(event, Event::Kill("b") | Event::KillAll);
    let again = kind.idempotent && !kind.volatile;
    let most = 1 + if again {
        events.iter().filter(worker_died).count()
    } else {
        0
    };
    assert!(runs <= most, "{what}: ran {runs} times");
    let told = end.as_ref().map_or('-', letter);
    assert!(told != 'k' || runs > 0, "{what}: done, but never run");
    let remembered = wired.host("b").disk.endings.get(&WORK).cloned();
    // Who could not ask the worker says so.
    let unsure = |eof: &Eof| {
        let error = eof.error.as_ref();
        error.is_some_and(|error| {
            error.code == ErrorCode::Lost || error.message.contains("could not be told")
        })
    };
    if let (Some(end), Some(there)) = (&end, &remembered)
        && !unsure(end)
    {
        let same = (end.code, letter(end)) == (there.code, letter(there));
        assert!(same, "{what}: {end:?} here, {there:?} there");
    }
    let letters = &wired.host("a").letters;
    let given_up = !kind.volatile && end.as_ref().is_some_and(|end| told == 'x' || unsure(end));
    assert!(
        letters.is_empty() || (given_up || !accepted) && letters.len() == 1,
        "{what}: {letters:?}, and the client has {end:?}"
    );
    let now = wired.now();
    for name in ["a", "r", "b"] {
        let (waiting, _) = wired.mesh(name).waiting(now, usize::MAX);
        assert!(waiting.is_empty(), "{what}: {name} keeps {waiting:?}");
        let (works, _) = wired.mesh(name).works(usize::MAX);
        assert!(works.is_empty(), "{what}: {name} has {works:?}");
        assert_eq!(wired.custody(name), 0, "{what}: {name}");
        assert!(!wired.mesh(name).is_pending(WORK), "{what}: {name}");
        let disk = &wired.host(name).disk;
        assert!(disk.is_idle(), "{what}: {name} waits for its disk");
        let left = &disk.messages;
        assert!(left.is_empty(), "{what}: {name} has on its disk {left:?}");
    }
    format!("{told}{runs}")
}

fn play(stage: Stage, events: &[Event], pause_ms: u64, kind: Kind) -> Option<String> {
    let what = format!("{stage:?} {events:?} {pause_ms} ms {kind:?}");
    let mut wired = at_stage(stage, kind)?;
    if stage != Stage::Sent {
        wired.run(RECEIPT_MS);
    }
    for event in events {
        happen(&mut wired, *event, kind);
        wired.run(pause_ms);
    }
    mend(&mut wired);
    Some(outcome(&mut wired, events, kind, &what))
}

/// What comes of one event: a line for each stage, a column for each event.
fn table(pause_ms: u64, kind: Kind) -> String {
    let mut table = String::new();
    for stage in STAGES {
        let cells: Vec<String> = EVENTS
            .iter()
            .filter_map(|event| play(stage, &[*event], pause_ms, kind))
            .collect();
        if !cells.is_empty() {
            writeln!(table, "{:10} {}", format!("{stage:?}"), cells.join(" ")).unwrap();
        }
    }
    table
}

// The columns are those of [`EVENTS`]. A letter says what the client is told (k: done, c: cancelled, x: expired, i:
// interrupted, l: lost, f: not written; -: nothing, because it is gone and was told nothing before),
// a digit how often the work ran.

const DURABLE: &str = "
    Submitted  k1 c1 c1 k1 c1 k1 k1 k1 -1 k1 i1 -1 k1 k1 k1 k1 k1
    NoRoute    k1 c0 k1 x0 c0 k1 k1 k1 k1 k1 k1 k1 k1 k1 k1 k1 k1
    InCustody  k1 c0 k1 x0 c0 c0 k1 k1 k1 k1 k1 k1 k1 k1 k1 k1 k1
    Sent       k1 c0 k1 x0 c0 k1 k1 k1 k1 k1 k1 k1 k1 k1 k1 k1 k1
    Received   k1 c0 c0 k1 c0 k1 k1 k1 k1 k1 k1 k1 k1 k1 k1 k1 k1
    Queued     k1 c0 c0 k1 c0 k1 k1 k1 k1 k1 k1 k1 k1 k1 k1 k1 k1
    Starting   k1 c0 c0 k1 c0 k1 k1 k1 k1 k1 k1 k1 k1 k1 k1 k1 k1
    Started    k1 c1 c1 k1 c1 k1 k1 k1 k1 k1 i1 i1 k1 k1 k1 k1 k1
    Responding k1 c1 c1 k1 c1 k1 k1 k1 k1 k1 i1 i1 k1 k1 k1 k1 k1
    Ended      k1 k1 k1 k1 k1 k1 c1 k1 k1 k1 k1 k1 k1 k1 k1 k1 k1
    Kept       k1 k1 k1 k1 k1 k1 k1 k1 k1 k1 k1 k1 k1 k1 k1 k1 k1
    Released   k1 k1 k1 k1 k1 k1 k1 k1 k1 k1 k1 k1 k1 k1 k1 k1 k1
";

/// Before it is on the disk nobody else has it.
const KEYED_SUBMITTED: &str = "Submitted  k1 c0 k1 x0 c0 k1 k1 k1 -0 k1 k1 -0 k1 k1 k1 f0 k1";

/// Time passes before the wires carry packets again, so that the worker cannot be asked whether it
/// had the message in time.
const UNASKED: [&str; 2] = [
    "Sent       k1 c0 k1 l0 c0 k1 k1 k1 k1 k1 k1 k1 k1 k1 k1 k1 k1",
    "Ended      k1 k1 k1 l1 k1 k1 c1 k1 k1 k1 k1 k1 k1 k1 k1 k1 k1",
];

/// What was cut short runs again.
const IDEMPOTENT_ROWS: [&str; 3] = [
    "Submitted  k1 c1 c1 k1 c1 k1 k1 k1 -1 k1 k2 -2 k1 k1 k1 k1 k1",
    "Started    k1 c1 c1 k1 c1 k1 k1 k1 k1 k1 k2 k2 k1 k1 k1 k1 k1",
    "Responding k1 c1 c1 k1 c1 k1 k1 k1 k1 k1 k2 k2 k1 k1 k1 k1 k1",
];

const VOLATILE_ROWS: &str = "
    Sent       l0 l0 l0 l0 l0 l0 l0 l0 -0 l0 l0 -0 l0 l0 l0 l0 l0
    Queued     k1 c0 c0 l1 c0 k1 k1 k1 -1 k1 l0 -0 l0 k1 k1 k1 k1
    Started    k1 c1 c1 l1 c1 k1 k1 k1 -1 k1 l1 -1 l1 k1 k1 k1 k1
    Responding k1 c1 c1 l1 c1 k1 k1 k1 -1 k1 l1 -1 l1 k1 k1 k1 k1
    Ended      k1 k1 k1 l1 k1 k1 c1 k1 -1 l1 l1 -1 l1 l1 l1 k1 k1
    Kept       k1 k1 k1 k1 k1 k1 k1 k1 k1 k1 k1 k1 k1 k1 k1 k1 k1
    Released   k1 k1 k1 k1 k1 k1 k1 k1 k1 k1 k1 k1 k1 k1 k1 k1 k1
";

fn check(expected: &str, pause_ms: u64, kind: Kind) {
    let table = table(pause_ms, kind);
    let expected = expected.trim().lines().map(str::trim);
    let same = table.lines().eq(expected);
    assert!(same, "{kind:?}, mended after {pause_ms} ms:\n{table}");
}

/// A table in which these lines stand in place of those of the same stages.
fn with(table: &str, rows: &[&str]) -> String {
    let stage = |row: &str| row.split_whitespace().next().map(str::to_owned);
    let line = |line: &str| {
        let other = rows.iter().find(|row| stage(row) == stage(line));
        format!("{}\n", other.copied().unwrap_or(line.trim()))
    };
    table.trim().lines().map(line).collect()
}

#[test]
fn one_event_while_a_durable_work_is_under_way() {
    check(DURABLE, 0, PLAIN);
    check(&with(DURABLE, &UNASKED), 2000, PLAIN);
}

#[test]
fn one_event_while_a_work_with_a_key_is_under_way() {
    let keyed = with(DURABLE, &[KEYED_SUBMITTED]);
    check(&keyed, 0, KEYED);
    check(&with(&keyed, &UNASKED), 2000, KEYED);
}

#[test]
fn one_event_while_an_idempotent_work_is_under_way() {
    let idempotent = with(DURABLE, &IDEMPOTENT_ROWS);
    check(&idempotent, 0, IDEMPOTENT);
    let idempotent = with(&idempotent, &UNASKED);
    check(
        &with(&idempotent, &[KEYED_SUBMITTED]),
        2000,
        KEYED_IDEMPOTENT,
    );
}

#[test]
fn one_event_while_a_volatile_work_is_under_way() {
    check(VOLATILE_ROWS, 0, VOLATILE);
    check(VOLATILE_ROWS, 2000, VOLATILE_IDEMPOTENT);
}

/// Any two things that happen one after the other. `RECEPTOR_MATRIX=all` tries every kind of message.
fn two_events(stages: &[Stage]) {
    let mut kinds = vec![(0, PLAIN)];
    if std::env::var_os("RECEPTOR_MATRIX").is_some() {
        let all = [PLAIN, KEYED, IDEMPOTENT, VOLATILE];
        kinds.extend(all.map(|kind| (0, kind)));
        kinds.extend(all.map(|kind| (2000, kind)));
    }
    let events = || EVENTS.into_iter().filter(|event| *event != Event::Nothing);
    for (pause_ms, kind) in kinds {
        for stage in stages {
            for first in events() {
                for second in events() {
                    play(*stage, &[first, second], pause_ms, kind);
                }
            }
        }
    }
}

#[test]
fn two_events_before_a_work_has_left() {
    two_events(&STAGES[..3]);
}

#[test]
fn two_events_before_a_work_waits_for_its_plugin() {
    two_events(&STAGES[3..6]);
}

#[test]
fn two_events_while_a_work_runs() {
    two_events(&STAGES[6..9]);
}

#[test]
fn two_events_when_a_work_has_ended() {
    two_events(&STAGES[9..]);
}
