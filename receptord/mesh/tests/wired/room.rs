//! Responses that their sender's disk refuses: they come again when it has room, and not only when
//! their own pause is over.

use bytes::Bytes;
use receptor_mesh::Recipient;

use crate::mesh::{Wired, id, node};

/// After which what was refused is tried as seldom as it ever is.
const LONG_MS: u64 = 120_000;
/// Far less than the pause between two tries then.
const SOON_MS: u64 = 3000;
const RESPONSES: usize = 20;

#[test]
fn responses_that_a_full_disk_refused_come_when_it_has_room_again() {
    let mut wired = Wired::chain(&["a", "b"]);
    wired.host("b").busy = true;
    for work in [1, 2] {
        wired.host("a").unread.insert(id(work));
        let submission = Wired::submission(work, Recipient::Node(node("b")), Bytes::new());
        wired.submit("a", submission);
    }
    wired.respond("b", id(1), Bytes::from_static(b"stored"));
    wired.run(100);
    wired.host("a").disk.broken = true;
    for part in 0..RESPONSES {
        wired.respond("b", id(1 + part as u128 % 2), Bytes::from_static(b"part"));
    }
    wired.run(LONG_MS);
    wired.host("a").disk.broken = false;
    let now = wired.now();
    let (_, waiting) = wired.mesh("b").waiting(now, 0);
    assert!(waiting >= RESPONSES as u64, "only {waiting} wait");
    // The client of one of them goes on; that makes room for both.
    wired.read("a");
    wired.finish_all("b");
    wired.run_until(SOON_MS, |wired| {
        let now = wired.now();
        let (_, waiting) = wired.mesh("b").waiting(now, 0);
        waiting == 0
    });
    for work in [1, 2] {
        let serials = &wired.host("a").serials[&id(work)];
        assert!(
            serials.windows(2).all(|pair| pair[0] + 1 == pair[1]),
            "{serials:?}"
        );
        assert_eq!(wired.host("a").ends[&id(work)].code, 0);
    }
}
