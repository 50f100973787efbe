//! A message that was given up is a dead letter on the disk before anybody hears of its end.

#![expect(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "tests, also in their helpers"
)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use receptor_mesh::{
    Config, EntryId, Event, Instant, Loaded, Mesh, Output, Payload, Recipient, Record, Submission,
};
use receptor_proto::packet::{CancelReason, Content, Message};
use receptor_proto::{Directive, ErrorBody, ErrorCode, MessageId, NodeId};

const LIFETIME_MS: u64 = 1000;

fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn at(ms: u64) -> Instant {
    Instant::from_micros(ms * 1000)
}

fn id(n: u64) -> MessageId {
    MessageId::from_u128((u128::from(n) << 64) | 77)
}

fn no_space() -> ErrorBody {
    ErrorBody::new(ErrorCode::Internal, "no space left on device")
}

fn submission(n: u64, respond: bool) -> Submission {
    Submission {
        id: id(n),
        recipient: Recipient::Node(node("away")),
        directive: Directive::new("a:b").unwrap(),
        content: Content::Bytes,
        payload: Payload::Inline(Bytes::from(vec![7; 60_000])),
        volatile: false,
        respond,
        expiry: Duration::from_millis(LIFETIME_MS),
        repeatable: false,
    }
}

/// A node, and a store that does at once what it is asked for.
struct Here {
    mesh: Mesh,
    now: Instant,
    outgoing: BTreeMap<EntryId, Message>,
    /// Entries of letters that were asked for and not answered.
    letters: VecDeque<EntryId>,
    /// Bytes of payloads that came with the letters that are not answered, or have to be fetched.
    bytes: u64,
    /// How they ended.
    told: BTreeMap<MessageId, ErrorCode>,
    lost: BTreeSet<MessageId>,
    written: Vec<Record>,
}

impl Here {
    fn start(records: impl IntoIterator<Item = Record>) -> Self {
        let records: Vec<_> = records.into_iter().collect();
        let outgoing = records.iter().filter_map(|record| match record {
            Record::Outgoing { entry, message, .. } => Some((*entry, message.clone())),
            _ => None,
        });
        Self {
            outgoing: outgoing.collect(),
            mesh: Mesh::new(Config::new(node("here"), 5, 1), at(0), records),
            now: at(0),
            letters: VecDeque::new(),
            bytes: 0,
            told: BTreeMap::new(),
            lost: BTreeSet::new(),
            written: Vec::new(),
        }
    }

    /// What a start finds in the store, when all lifetimes are over.
    fn crash(self) -> Self {
        let records = self.outgoing.into_iter().map(|(entry, message)| {
            let remaining_ms = 0;
            Record::Outgoing {
                entry,
                recipient: node("away"),
                message: Message {
                    remaining_ms,
                    ..message
                },
            }
        });
        Self::start(records)
    }

    fn act(&mut self) {
        while let Some(output) = self.mesh.poll_output() {
            match output {
                Output::Persist { token, records, .. } => {
                    for record in records {
                        if let Record::Outgoing { entry, message, .. } = &record {
                            self.outgoing.insert(*entry, message.clone());
                        }
                        self.written.push(record);
                    }
                    self.mesh.handle_persisted(self.now, token);
                }
                Output::Remove { entry } => {
                    self.outgoing.remove(&entry);
                }
                Output::Load {
                    token,
                    first,
                    last,
                    records,
                    ..
                } => {
                    let mut range = self.outgoing.range(first..=last);
                    let found = range.by_ref().take(records).map(|(entry, message)| {
                        let age = self.now.as_micros() / 1000;
                        Record::Outgoing {
                            entry: *entry,
                            recipient: node("away"),
                            message: Message {
                                remaining_ms: message.remaining_ms.saturating_sub(age),
                                ..message.clone()
                            },
                        }
                    });
                    let records = found.collect();
                    let next = range.next().map(|(entry, _)| *entry);
                    let damaged = Vec::new();
                    let loaded = Loaded {
                        records,
                        damaged,
                        next,
                    };
                    self.mesh.handle_loaded(self.now, token, Ok(loaded));
                }
                Output::DeadLetter { entry, message, .. } => {
                    assert!(self.outgoing.contains_key(&entry), "its payload is gone");
                    self.bytes += message.size;
                    self.letters.push_back(entry);
                }
                Output::Deliver {
                    work,
                    serial,
                    eof: Some(eof),
                    ..
                } => {
                    let code = eof.error.unwrap().code;
                    assert!(self.told.insert(work, code).is_none(), "told twice");
                    self.mesh.consumed(self.now, work, serial);
                }
                Output::Event(Event::NoDeadLetter { work, .. }) => {
                    self.lost.insert(work);
                }
                Output::Event(Event::GivenUp { .. }) | Output::Accepted { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Lets time pass up to the next thing that is due.
    fn wait(&mut self) {
        self.now = self.now.max(self.mesh.poll_timeout().unwrap());
        self.mesh.handle_timeout(self.now);
        self.act();
    }

    fn wait_until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        for _ in 0..10_000 {
            self.act();
            if done(self) {
                return;
            }
            self.wait();
        }
        panic!("never: {what}");
    }

    fn answer(&mut self, result: &Result<(), ErrorBody>) {
        for entry in std::mem::take(&mut self.letters) {
            self.mesh
                .handle_dead_letter(self.now, entry, result.clone());
        }
        self.bytes = 0;
        self.act();
    }
}

#[test]
fn nobody_hears_of_an_end_before_its_letter_is_on_the_disk() {
    for respond in [true, false] {
        let mut here = Here::start([]);
        here.mesh.submit(at(0), submission(1, respond)).unwrap();
        here.wait_until("a letter", |here| !here.letters.is_empty());
        assert!(here.told.is_empty());
        // The letter was not answered: it is as if there was none.
        let mut here = here.crash();
        assert_eq!(
            here.outgoing.len(),
            1,
            "the message is gone with its letter"
        );
        here.wait_until("a letter again", |here| !here.letters.is_empty());
        assert!(here.told.is_empty());
        here.answer(&Ok(()));
        assert_eq!(here.told.contains_key(&id(1)), respond);
        here.wait_until("removed", |here| here.outgoing.is_empty());
        assert!(here.letters.is_empty());
    }
}

#[test]
fn a_backlog_that_expires_does_not_go_into_memory() {
    const COUNT: u64 = 5000;
    let mut here = Here::start([]);
    for n in 0..COUNT {
        here.mesh.submit(at(0), submission(n, n % 2 == 0)).unwrap();
        here.act();
    }
    here.wait_until("a letter", |here| !here.letters.is_empty());
    for _ in 0..100 {
        here.wait();
    }
    // No more comes while none of these is answered.
    assert!(here.letters.len() <= 256, "{}", here.letters.len());
    assert!(here.bytes <= 4 << 20, "{} B", here.bytes);
    let mut kept = 0;
    while kept < COUNT {
        here.wait_until("another letter", |here| !here.letters.is_empty());
        assert!(here.bytes <= 4 << 20, "{} B", here.bytes);
        kept += here.letters.len() as u64;
        here.answer(&Ok(()));
    }
    here.wait_until("all removed", |here| here.outgoing.is_empty());
    assert_eq!(here.told.len() as u64, COUNT / 2);
    assert_eq!(here.mesh.outstanding(&node("away")), 0);
}

#[test]
fn pages_are_not_read_while_letters_wait() {
    const COUNT: u64 = 40_000;
    let record = |n: u64| Record::Outgoing {
        entry: EntryId(n),
        recipient: node("away"),
        message: Message {
            epoch: 4,
            seq: n,
            floor: 0,
            work: id(n),
            kind: receptor_proto::packet::MessageKind::Request {
                directive: Directive::new("a:b").unwrap(),
                respond: true,
            },
            volatile: false,
            remaining_ms: LIFETIME_MS,
            content: Content::Bytes,
            name: None,
            size: 1,
            body: Bytes::from_static(b"1"),
        },
    };
    let mut here = Here::start((1..=COUNT).map(record));
    here.wait_until("letters", |here| here.letters.len() == 256);
    for _ in 0..200 {
        here.wait();
    }
    assert_eq!(here.letters.len(), 256);
    let paged = here.mesh.paged().0;
    assert!(paged > 20_000, "all but {paged} were read");
    while (here.told.len() as u64) < COUNT {
        here.wait_until("another letter", |here| !here.letters.is_empty());
        here.answer(&Ok(()));
    }
    here.wait_until("all removed", |here| here.outgoing.is_empty());
}

#[test]
fn a_letter_that_cannot_be_written_is_tried_again() {
    let mut here = Here::start([]);
    here.mesh.submit(at(0), submission(1, true)).unwrap();
    for _ in 0..3 {
        here.wait_until("a letter", |here| !here.letters.is_empty());
        here.answer(&Err(no_space()));
        assert!(here.letters.is_empty(), "at once is too soon");
        assert_eq!(here.outgoing.len(), 1);
    }
    here.wait_until("a letter", |here| !here.letters.is_empty());
    here.answer(&Ok(()));
    assert_eq!(here.told.get(&id(1)), Some(&ErrorCode::Expired));
    assert!(here.lost.is_empty());
}

#[test]
fn a_disk_that_stays_full_does_not_keep_the_end_from_its_sender() {
    let mut here = Here::start([]);
    for n in 0..300 {
        here.mesh.submit(at(0), submission(n, n % 2 == 0)).unwrap();
        here.act();
    }
    while !here.outgoing.is_empty() {
        let idle = |here: &Here| !here.letters.is_empty() || here.outgoing.is_empty();
        here.wait_until("a letter, or the end", idle);
        here.answer(&Err(no_space()));
    }
    assert_eq!((here.told.len(), here.lost.len()), (150, 300));
    // Each letter was tried for some seconds, and not one after the other.
    assert!(here.now < at(300_000), "{:?}", here.now);
}

#[test]
fn a_cancel_of_what_was_given_up_goes_nowhere() {
    let mut here = Here::start([]);
    here.mesh.submit(at(0), submission(1, true)).unwrap();
    here.wait_until("a letter", |here| !here.letters.is_empty());
    here.written.clear();
    here.mesh
        .cancel(here.now, id(1), CancelReason::User)
        .unwrap();
    here.act();
    assert!(here.written.is_empty(), "{:?}", here.written);
    here.answer(&Ok(()));
    assert_eq!(here.told.get(&id(1)), Some(&ErrorCode::Expired));
}
