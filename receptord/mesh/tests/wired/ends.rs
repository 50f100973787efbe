//! Ends that a node gives its own requests: a client that heard one never sees the work run.

use bytes::Bytes;
use receptor_mesh::{Recipient, Record};
use receptor_proto::ErrorCode;
use receptor_proto::packet::CancelReason;

use super::mesh::{Wired, id, node};

/// Longer than a receipt and a second try take.
const SOON_MS: u64 = 10_000;
const LIFETIME_MS: u64 = 1000;
/// After which whatever was refused is tried again.
const LONG_MS: u64 = 120_000;

/// Ends a request that is on the disk and has no way, as an operator or time would.
fn end(wired: &mut Wired, how: &str) {
    let now = wired.now();
    match how {
        "cancelled" => {
            let mesh = wired.mesh("origin");
            mesh.cancel(now, id(1), CancelReason::User).unwrap();
        }
        "dropped" => wired.mesh("origin").drop_waiting(now, id(1)).unwrap(),
        _ => wired.run(2 * LIFETIME_MS),
    }
    wired.settle();
}

#[test]
fn an_end_of_its_own_is_on_the_disk_before_the_client_hears_of_it() {
    for how in ["cancelled", "dropped", "expired"] {
        for written in [false, true] {
            let mut wired = Wired::chain(&["origin", "b"]);
            wired.cut(0);
            let mut submission = Wired::submission(1, Recipient::Node(node("b")), "".into());
            if how == "expired" {
                submission.expiry = core::time::Duration::from_millis(LIFETIME_MS);
            }
            wired.submit("origin", submission);
            assert!(wired.host("origin").accepted.contains_key(&id(1)));
            wired.host("origin").disk.rests = true;
            end(&mut wired, how);
            assert!(wired.host("origin").ends.is_empty(), "{how}: on no disk");
            if written {
                wired.wake_disk("origin");
                assert!(wired.host("origin").ends.contains_key(&id(1)), "{how}");
            }
            wired.kill("origin");
            wired.host("origin").disk.rests = false;
            wired.start("origin");
            wired.join(0);
            wired.run(SOON_MS);
            // One that expired is so after a restart too.
            let runs = usize::from(!written && how != "expired");
            assert_eq!(
                wired.host("b").runs.len(),
                runs,
                "{how}, written: {written}"
            );
            assert!(wired.host("origin").disk.messages.is_empty() || runs == 1);
            assert!(wired.host("origin").ends.contains_key(&id(1)), "{how}");
        }
    }
}

/// The word that takes the place of what was dropped could not be written, and then the plugin was done.
#[test]
fn a_work_is_not_over_before_the_word_for_what_was_given_up_is_written() {
    let mut wired = Wired::chain(&["origin", "worker"]);
    let worker = wired.host("worker");
    (worker.busy, worker.idempotent) = (true, true);
    wired.send("origin", "worker", 1);
    wired.run_until(SOON_MS, |wired| wired.host("worker").runs.len() == 1);
    wired.host("origin").unread.insert(id(1));
    wired.kill("origin");
    wired.respond("worker", id(1), Bytes::from_static(b"part"));
    wired.run(SOON_MS);
    wired.host("worker").disk.broken = true;
    let now = wired.now();
    wired.mesh("worker").drop_waiting(now, id(1)).unwrap();
    wired.settle();
    wired.run(SOON_MS);
    wired.host("worker").disk.broken = false;
    wired.start("origin");
    wired.run_until(LONG_MS, |wired| {
        wired.host("origin").ends.contains_key(&id(1))
    });
}

/// The word that takes the place of what was dropped could not be written, and the work was over before.
fn over_without_its_word(is_heard: bool) -> Wired {
    let mut wired = Wired::chain(&["origin", "worker"]);
    let worker = wired.host("worker");
    (worker.busy, worker.idempotent) = (true, true);
    wired.send("origin", "worker", 1);
    wired.run_until(SOON_MS, |wired| wired.host("worker").runs.len() == 1);
    if is_heard {
        wired.lose_packets(0, "origin", true);
    } else {
        wired.kill("origin");
    }
    wired.respond("worker", id(1), Bytes::from_static(b"part"));
    wired.finish("worker", id(1));
    wired.host("worker").disk.broken = true;
    let now = wired.now();
    wired.mesh("worker").drop_waiting(now, id(1)).unwrap();
    wired.settle();
    wired.host("worker").disk.broken = false;
    wired
}

#[test]
fn a_work_that_is_over_is_not_gone_before_the_word_for_what_was_given_up_is_written() {
    let mut wired = over_without_its_word(false);
    wired.run(SOON_MS);
    wired.start("origin");
    wired.run_until(LONG_MS, |wired| {
        wired.host("origin").ends.contains_key(&id(1))
    });
    let end = &wired.host("origin").ends[&id(1)];
    assert_eq!(end.error.as_ref().unwrap().code, ErrorCode::Cancelled);
    wired.run(SOON_MS);
    assert!(wired.host("worker").disk.messages.is_empty());
}

#[test]
fn a_work_that_is_over_is_not_taken_up_again_while_nothing_says_what_was_given_up() {
    let mut wired = over_without_its_word(false);
    wired.kill("worker");
    wired.start("worker");
    wired.run(SOON_MS);
    assert_eq!(wired.host("worker").runs.len(), 1);
    wired.start("origin");
    wired.run_until(LONG_MS, |wired| {
        wired.host("origin").ends.contains_key(&id(1))
    });
    wired.run(SOON_MS);
    assert_eq!(wired.host("worker").runs.len(), 1);
    assert!(wired.host("worker").disk.messages.is_empty());
    // What was dropped stayed until its word would be written: it was there again.
    let told = wired.host("origin").ends[&id(1)].clone();
    assert_eq!(told.error, None);
    assert_eq!(wired.host("worker").disk.endings[&id(1)], told);
}

/// What its node had said of the word is on its disk, and the word is not.
#[test]
fn both_ends_of_a_work_tell_of_the_end_that_a_restart_finds() {
    let mut wired = over_without_its_word(true);
    let told = wired.host("origin").ends[&id(1)].clone();
    assert_eq!(told.error, None);
    wired.kill("worker");
    wired.lose_packets(0, "origin", false);
    wired.start("worker");
    wired.run(SOON_MS);
    assert_eq!(wired.host("worker").disk.endings[&id(1)], told);
    assert!(wired.host("worker").disk.messages.is_empty());
}

/// A store that is full of responses is emptied by dropping them.
#[test]
fn responses_that_are_dropped_make_room_for_the_word_in_their_place() {
    let mut wired = Wired::chain(&["origin", "worker"]);
    wired.host("worker").busy = true;
    wired.send("origin", "worker", 1);
    wired.run_until(SOON_MS, |wired| wired.host("worker").runs.len() == 1);
    wired.kill("origin");
    wired.respond("worker", id(1), Bytes::from_static(b"part"));
    wired.run(SOON_MS);
    let waits = |wired: &mut Wired| {
        let records = wired.host("worker").disk.messages.values();
        let outgoing = |record: &&Record| matches!(record, Record::Outgoing { .. });
        records.filter(outgoing).count()
    };
    assert_eq!(waits(&mut wired), 1);
    wired.host("worker").disk.full = true;
    let now = wired.now();
    wired.mesh("worker").drop_waiting(now, id(1)).unwrap();
    wired.settle();
    wired.run(SOON_MS);
    assert_eq!(waits(&mut wired), 0);
    wired.host("worker").disk.full = false;
    wired.run(SOON_MS);
    assert_eq!(waits(&mut wired), 1);
    wired.start("origin");
    wired.run_until(LONG_MS, |wired| {
        wired.host("origin").ends.contains_key(&id(1))
    });
    let end = &wired.host("origin").ends[&id(1)];
    assert_eq!(end.error.as_ref().unwrap().code, ErrorCode::Cancelled);
}

/// That its cancel was there first could not be written, and nothing of that was heard.
#[test]
fn a_request_that_is_refused_is_not_run_because_the_refusal_could_not_be_written() {
    for crashes in [false, true] {
        let mut wired = Wired::chain(&["origin", "worker"]);
        wired.lose_packets(0, "origin", true);
        wired.send("origin", "worker", 1);
        wired.run(10);
        wired.lose_packets(0, "origin", false);
        let now = wired.now();
        let mesh = wired.mesh("origin");
        mesh.cancel(now, id(1), CancelReason::User).unwrap();
        wired.settle();
        wired.run(10);
        wired.lose_packets(0, "worker", true);
        wired.host("worker").disk.rests = true;
        wired.run_until(SOON_MS, |wired| !wired.host("worker").disk.is_idle());
        wired.fail_waiting("worker");
        wired.host("worker").disk.rests = false;
        if crashes {
            // What has no hurry is on the disk by now, and the refusal is not.
            wired.run(500);
            wired.kill("worker");
            wired.start("worker");
        }
        wired.run(SOON_MS);
        wired.lose_packets(0, "worker", false);
        wired.run_until(LONG_MS, |wired| {
            wired.host("origin").ends.contains_key(&id(1))
        });
        wired.run(SOON_MS);
        assert!(wired.host("worker").runs.is_empty(), "crashes: {crashes}");
        let told = wired.host("origin").ends[&id(1)].clone();
        assert_eq!(told.error.as_ref().unwrap().code, ErrorCode::Cancelled);
        assert_eq!(wired.host("worker").disk.endings[&id(1)], told);
        for host in &wired.hosts {
            let left = &host.disk.messages;
            assert!(left.is_empty(), "{}: {left:?}", host.id);
        }
    }
}

/// Without its request a restart takes it for one that came ahead, and keeps it as long as it may live.
#[test]
fn a_crash_while_a_cancelled_work_is_forgotten_leaves_nothing_of_its_cancel() {
    for steps in 0..=4 {
        let mut wired = Wired::chain(&["origin", "worker"]);
        wired.host("worker").busy = true;
        // The cancel may be ahead, as far as its sender knows.
        wired.lose_packets(0, "worker", true);
        wired.send("origin", "worker", 1);
        wired.run(300);
        let now = wired.now();
        let mesh = wired.mesh("origin");
        mesh.cancel(now, id(1), CancelReason::User).unwrap();
        wired.settle();
        // Nothing of its epoch is remembered any more.
        wired.kill("origin");
        wired.lose_packets(0, "worker", false);
        wired.start("origin");
        wired.run(100);
        assert!(wired.host("origin").ends.contains_key(&id(1)));
        wired.host("worker").disk.rests = true;
        wired.run(300);
        wired.wake_one("worker");
        wired.kill_after_steps("worker", steps);
        wired.start("worker");
        wired.run(10_000);
        let left = &wired.host("worker").disk.messages;
        assert!(left.is_empty(), "after {steps} steps: {left:?}");
    }
}
