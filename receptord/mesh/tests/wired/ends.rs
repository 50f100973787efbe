//! Ends that a node gives its own requests: a client that heard one never sees the work run.

use bytes::Bytes;
use receptor_mesh::Recipient;
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
