//! Operators who look for the responses of a work among those that wait in the store alone, or drop
//! them: they get an answer whatever the store does, and it reads no more for them than it has to.

use bytes::Bytes;
use receptor_mesh::{Found, SearchId, TooManySearches, WaitingKind};
use receptor_proto::packet::Eof;
use receptor_proto::{ErrorBody, ErrorCode};

use super::away::{busy, have_ended, paged, serials};
use super::mesh::{Wired, id, node};

const WORKS: u128 = 6;
/// Responses of each work, four pages of them.
const EACH: u64 = 20;
const SOON_MS: u64 = 60_000;

/// Works that have ended one after the other while their controller was away.
fn talked() -> Wired {
    let mut wired = busy(WORKS);
    wired.kill("controller");
    wired.run(2000);
    for work in 1..=WORKS {
        for _ in 1..EACH {
            wired.respond("worker", id(work), Bytes::from_static(&[1; 10]));
        }
        wired.finish("worker", id(work));
    }
    wired
}

fn search(wired: &mut Wired, work: u128, drop: bool) -> Option<SearchId> {
    let now = wired.now();
    let search = wired.mesh("worker").search(now, id(work), drop).unwrap();
    wired.settle();
    search
}

/// What is told of it, for once.
fn answer(wired: &mut Wired, search: SearchId) -> Option<Result<Found, ErrorBody>> {
    wired.host("worker").found.remove(&search)
}

fn found(wired: &mut Wired, search: SearchId) -> Found {
    wired.run_until(1000, |wired| {
        wired.host("worker").found.contains_key(&search)
    });
    answer(wired, search).unwrap().unwrap()
}

fn error(wired: &mut Wired, search: SearchId) -> ErrorBody {
    answer(wired, search).unwrap().unwrap_err()
}

fn found_serials(found: &Found) -> Vec<u64> {
    let serials = found.waiting.iter().map(|view| match view.kind {
        WaitingKind::Response { serial } => serial,
        WaitingKind::Request { .. } | WaitingKind::Cancel => panic!("{view:?}"),
    });
    serials.collect()
}

/// Lets the store read what it was asked for; how many pages.
fn read(wired: &mut Wired) -> usize {
    let count = wired.host("worker").disk.unread_pages();
    wired.wake_reads("worker");
    wired.host("worker").disk.reads_rest = true;
    count
}

#[test]
fn pages_that_have_nothing_of_a_work_are_not_read_for_it() {
    let mut wired = talked();
    assert_eq!(search(&mut wired, 99, false), None);
    assert_eq!(search(&mut wired, 99, true), None);
    wired.host("worker").disk.reads_rest = true;
    let before = paged(&mut wired);
    let search = search(&mut wired, 4, false).unwrap();
    let mut pages = 0;
    while !wired.host("worker").found.contains_key(&search) {
        let count = read(&mut wired);
        assert!(count <= 1, "one at a time");
        pages += count;
        wired.run(10);
        assert!(pages < 10, "it does not end");
    }
    // Where one work ends and the next begins a page has both.
    assert!((4..=5).contains(&pages), "{pages}");
    let found = found(&mut wired, search);
    assert_eq!(found.total, EACH);
    assert_eq!(found_serials(&found), (1..=EACH).collect::<Vec<_>>());
    let of = |view: &receptor_mesh::WaitingView| {
        view.work == id(4) && view.recipient == node("controller") && view.size <= 10
    };
    assert!(found.waiting.iter().all(of));
    assert_eq!(paged(&mut wired), before, "looking changes nothing");
}

#[test]
fn what_is_found_is_known_after_a_restart_too() {
    let mut wired = talked();
    wired.kill("worker");
    wired.start("worker");
    assert_eq!(search(&mut wired, 99, false), None);
    let search = search(&mut wired, 5, false).unwrap();
    assert_eq!(found(&mut wired, search).total, EACH);
}

fn assert_dropped(wired: &mut Wired, dropped: u128) {
    wired.start_if_down("controller");
    wired.run_until(SOON_MS, |wired| have_ended(wired, 1..=WORKS));
    for work in 1..=WORKS {
        let Eof { error, .. } = &wired.host("controller").ends[&id(work)];
        let code = error.as_ref().map(|error| error.code.clone());
        let expected = (work == dropped).then_some(ErrorCode::Cancelled);
        assert_eq!(code, expected, "{work}");
        if work != dropped {
            let all: Vec<u64> = (1..=EACH).collect();
            assert_eq!(serials(wired, work), all, "{work}");
        }
    }
    wired.run(SOON_MS);
    assert_eq!(paged(wired), 0);
    assert!(wired.host("worker").disk.messages.is_empty());
}

#[test]
fn what_is_dropped_from_pages_stays_dropped_and_takes_nothing_else_along() {
    for restarts in [false, true] {
        let mut wired = talked();
        // Of a work that has just ended the end stays until its request is forgotten.
        wired.run(1000);
        let before = paged(&mut wired);
        let dropping = search(&mut wired, 4, true).unwrap();
        assert_eq!(found(&mut wired, dropping).total, EACH);
        assert!(paged(&mut wired) + usize::try_from(EACH).unwrap() <= before + 1);
        if restarts {
            wired.kill("worker");
            wired.start("worker");
        }
        // What is left of it is the word that it was dropped, which stays.
        if let Some(again) = search(&mut wired, 4, true) {
            assert_eq!(found(&mut wired, again).total, 0);
        }
        assert_dropped(&mut wired, 4);
    }
}

#[test]
fn what_leaves_its_page_while_it_is_dropped_is_dropped_as_well() {
    let mut wired = talked();
    // Its pages are being read, to be sent, when the operator comes.
    wired.host("worker").disk.reads_rest = true;
    wired.start("controller");
    wired.run_until(SOON_MS, |wired| {
        wired.host("worker").disk.unread_pages() > 0
    });
    let dropping = search(&mut wired, 1, true).unwrap();
    let wire = wired.wire_between("controller", "worker");
    wired.cut(wire);
    wired.run(100);
    assert_eq!(read(&mut wired), 1);
    wired.wake_reads("worker");
    wired.host("worker").disk.reads_rest = false;
    let total = found(&mut wired, dropping).total;
    assert!(total > 0 && total <= EACH, "{total}");
    wired.join(wire);
    wired.run_until(SOON_MS, |wired| have_ended(wired, 1..=WORKS));
    let error = wired.host("controller").ends[&id(1)].error.clone();
    assert_eq!(error.unwrap().code, ErrorCode::Cancelled);
    wired.run(SOON_MS);
    assert!(wired.host("worker").disk.messages.is_empty());
}

#[test]
fn a_page_that_cannot_be_read_fails_a_search_at_once() {
    let mut wired = talked();
    wired.host("worker").disk.unreadable = true;
    // Also when it has failed so often that nobody else asks for it for a while.
    for drop in [false, true, false, true, false] {
        let search = search(&mut wired, 4, drop).unwrap();
        wired.run(10);
        let error = error(&mut wired, search);
        assert_eq!(error.code, ErrorCode::Internal);
        assert!(error.message.contains("cannot be read"), "{error:?}");
    }
    wired.host("worker").disk.unreadable = false;
    let shown = search(&mut wired, 4, false).unwrap();
    assert_eq!(found(&mut wired, shown).total, EACH);
    // A drop that ends half-way can be asked for again.
    wired.host("worker").disk.reads_rest = true;
    let dropping = search(&mut wired, 4, true).unwrap();
    wired.run(10);
    assert_eq!(read(&mut wired), 1);
    wired.host("worker").disk.unreadable = true;
    wired.run(10);
    read(&mut wired);
    wired.run(10);
    error(&mut wired, dropping);
    wired.host("worker").disk.unreadable = false;
    wired.host("worker").disk.reads_rest = false;
    if let Some(again) = search(&mut wired, 4, true) {
        found(&mut wired, again);
    }
    assert_dropped(&mut wired, 4);
}

#[test]
fn a_store_that_does_not_answer_keeps_nobody_waiting_for_ever() {
    let mut wired = talked();
    wired.host("worker").disk.reads_rest = true;
    let search = search(&mut wired, 4, false).unwrap();
    wired.run(55_000);
    assert_eq!(answer(&mut wired, search), None);
    wired.run(6000);
    assert_eq!(error(&mut wired, search).code, ErrorCode::Busy);
    // The page comes nevertheless.
    read(&mut wired);
    wired.run(100);
    assert_eq!(answer(&mut wired, search), None);
}

/// The work is over meanwhile, and is forgotten before the disk takes anything again.
#[test]
fn a_drop_that_the_disk_refuses_is_told_to_the_sender_nevertheless() {
    for restarts in [false, true] {
        let mut wired = talked();
        wired.host("worker").disk.broken = true;
        let now = wired.now();
        let dropping = search(&mut wired, WORKS, true);
        wired
            .mesh("worker")
            .drop_waiting(now, id(WORKS))
            .unwrap_err();
        found(&mut wired, dropping.unwrap());
        wired.host("worker").disk.broken = false;
        wired.run(5000);
        if restarts {
            wired.kill("worker");
            wired.start("worker");
        }
        assert_dropped(&mut wired, WORKS);
    }
}

#[test]
fn there_are_only_so_many_searches_at_once() {
    let mut wired = talked();
    wired.host("worker").disk.reads_rest = true;
    let searches: Vec<_> = (0..8)
        .map(|n| search(&mut wired, 1 + n % 2, false).unwrap())
        .collect();
    let now = wired.now();
    let refused = wired.mesh("worker").search(now, id(3), false);
    assert_eq!(refused, Err(TooManySearches));
    // Of what is not there they need none.
    assert_eq!(search(&mut wired, 99, false), None);
    wired.mesh("worker").end_search(searches[0]);
    assert!(search(&mut wired, 3, true).is_some());
    wired.host("worker").disk.reads_rest = false;
    wired.wake_reads("worker");
    for search in &searches[1..] {
        let total = found(&mut wired, *search).total;
        assert_eq!(total, EACH);
    }
    assert_eq!(answer(&mut wired, searches[0]), None, "nobody waits for it");
    assert_dropped(&mut wired, 3);
}
