//! What holds for every file of kept responses, every dead letter and every memo.

use std::io::{BufReader, Cursor};

use super::ending::Ending;
use super::frame::{self, Summary};
use super::letters::DeadLetter;

/// Reading a file believes no more than there is, and what a reader gets one by one is what was
/// counted; a memo that is one fits its place again.
///
/// # Panics
///
/// When that does not hold.
pub fn kept_work(file: &[u8]) {
    if let Some(ending) = Ending::from_memo(file) {
        assert!(ending.to_memo().len() <= receptor_spool::MEMO_MAX);
    }
    let _ = serde_json::from_slice::<DeadLetter>(file);
    let open = || BufReader::new(Cursor::new(file));
    let Ok(summary) = frame::scan(open(), 0) else {
        return;
    };
    check(file, &summary);
    // Payloads that are passed over are those of a file that was read before.
    if let Ok(believed) = frame::scan(open(), u64::MAX) {
        check(file, &believed);
        assert!(believed.last >= summary.last);
    }
    let mut reader = open();
    let (_, mut length) = frame::head(&mut reader).expect("it was read a moment ago");
    for serial in 1..=summary.last {
        let next = frame::next(&mut reader).expect("nothing fails in memory");
        let (read, bytes) = next.expect("it was counted");
        assert_eq!(read.frame.serial, serial);
        length += bytes;
    }
    assert_eq!(length, summary.length);
}

fn check(file: &[u8], summary: &Summary) {
    assert!(summary.length <= file.len() as u64);
    assert!(summary.apart.len() as u64 <= summary.last);
}
