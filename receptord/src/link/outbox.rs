//! The bytes on their way from the engine to one link's writer: a byte channel with a budget.
//!
//! Owns the encoded frames that are not yet written to the transport. The engine appends
//! without ever waiting; it knows how much is there and tells the core, which stops giving
//! while the budget is used up. The writer takes everything at once, so that what came up
//! while it was busy leaves with one call to the system. Never touches a transport.

use std::cell::{Cell, RefCell};

use receptor_proto::ErrorBody;
use receptor_proto::frame::Frame;
use tokio::sync::Notify;

/// Bytes that may wait for one link's transport before the core is asked to hold back: enough
/// for a fast link to be busy during one turn of the engine, little enough that a probe behind
/// them is not late on a slow one.
pub(crate) const WRITE_BUDGET: usize = 256 * 1024;

/// The engine is told of written bytes at the latest when they are so many, so that the core
/// always has at least the rest of the budget.
const REPORT: usize = WRITE_BUDGET / 4;

/// A spare buffer larger than this is given back once it is empty, so that a thousand quiet
/// links do not hold a thousand large buffers.
const KEEP_CAPACITY: usize = 16 * 1024;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    /// Encoded and not yet taken by the writer.
    queued: RefCell<Vec<u8>>,
    /// Taken by the writer and not yet written.
    writing: Cell<usize>,
    /// Written, and the engine was not told yet.
    written: Cell<usize>,
    closed: RefCell<Option<ErrorBody>>,
    changed: Notify,
    closing: Notify,
    bytes_in: Cell<u64>,
    bytes_out: Cell<u64>,
}

impl Outbox {
    /// Engine: adds one frame. The writer is told by [`Outbox::flush`].
    pub(crate) fn push(&self, frame: &Frame) {
        frame.encode(&mut self.queued.borrow_mut());
    }

    /// Engine: lets the writer have what was pushed.
    pub(crate) fn flush(&self) {
        if !self.queued.borrow().is_empty() {
            self.changed.notify_one();
        }
    }

    /// Engine: the bytes that were written since the last call: new room for the core. While
    /// much waits, the writer reports by itself (see [`Outbox::written`]); otherwise there is
    /// room enough, and it is in time when the link is used again.
    pub(crate) fn take_written(&self) -> usize {
        self.written.take()
    }

    /// Bytes that wait for the transport.
    pub(crate) fn waiting(&self) -> usize {
        self.queued.borrow().len() + self.writing.get()
    }

    /// Engine: nothing more will be pushed; the link ends when everything is written. The first
    /// reason stays.
    pub(crate) fn close(&self, reason: ErrorBody) {
        self.closed.borrow_mut().get_or_insert(reason);
        self.changed.notify_one();
        self.closing.notify_one();
    }

    /// Link: waits until the engine closed it. For one waiter.
    pub(crate) async fn closed(&self) -> ErrorBody {
        loop {
            let reason = self.closed.borrow().clone();
            match reason {
                Some(reason) => return reason,
                None => self.closing.notified().await,
            }
        }
    }

    /// Writer: swaps the queued bytes into `buffer`, which must be empty; waits until there are
    /// some. False: closed, and nothing is left.
    pub(crate) async fn take(&self, buffer: &mut Vec<u8>) -> bool {
        debug_assert!(buffer.is_empty() && self.writing.get() == 0);
        if buffer.capacity() > KEEP_CAPACITY && self.queued.borrow().is_empty() {
            *buffer = Vec::new();
        }
        loop {
            {
                let mut queued = self.queued.borrow_mut();
                if !queued.is_empty() {
                    std::mem::swap(&mut *queued, buffer);
                    self.writing.set(buffer.len());
                    return true;
                }
            }
            if self.closed.borrow().is_some() {
                return false;
            }
            self.changed.notified().await;
        }
    }

    /// Writer: `bytes` of the buffer are written. True: the engine may be waiting for this;
    /// tell it.
    pub(crate) fn written(&self, bytes: usize) -> bool {
        self.writing.set(self.writing.get().saturating_sub(bytes));
        self.written.set(self.written.get() + bytes);
        self.bytes_out.set(self.bytes_out.get() + bytes as u64);
        self.written.get() >= REPORT
    }

    /// Reader: so many bytes came in.
    pub(crate) fn count_in(&self, bytes: usize) {
        self.bytes_in.set(self.bytes_in.get() + bytes as u64);
    }

    /// Bytes received and sent since the link came up.
    pub(crate) fn totals(&self) -> (u64, u64) {
        (self.bytes_in.get(), self.bytes_out.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use receptor_proto::ErrorCode;

    const FRAME: Frame = Frame::Credit { total: 1 };

    #[tokio::test(flavor = "current_thread")]
    async fn what_came_up_meanwhile_leaves_at_once() {
        let outbox = Outbox::default();
        outbox.push(&FRAME);
        outbox.push(&FRAME);
        outbox.flush();
        let mut buffer = Vec::new();
        assert!(outbox.take(&mut buffer).await);
        assert_eq!(buffer.len(), 12);
        assert_eq!(outbox.waiting(), 12);
        assert!(!outbox.written(12));
        assert_eq!((outbox.waiting(), outbox.totals()), (0, (0, 12)));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn written_bytes_are_reported_in_large_pieces() {
        let outbox = Outbox::default();
        while outbox.waiting() < WRITE_BUDGET {
            outbox.push(&FRAME);
        }
        let mut buffer = Vec::new();
        assert!(outbox.take(&mut buffer).await);
        assert!(!outbox.written(REPORT - 1));
        assert!(outbox.written(1));
        assert_eq!(outbox.take_written(), REPORT);
        assert!(!outbox.written(1));
        assert_eq!(outbox.take_written(), 1);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_closed_outbox_is_emptied_first() {
        let outbox = Outbox::default();
        outbox.push(&FRAME);
        outbox.close(ErrorBody::new(ErrorCode::Shutdown, "first"));
        outbox.close(ErrorBody::new(ErrorCode::Transport, "second"));
        let mut buffer = Vec::new();
        assert!(outbox.take(&mut buffer).await);
        let _ = outbox.written(buffer.len());
        buffer.clear();
        assert!(!outbox.take(&mut buffer).await);
        assert_eq!(outbox.closed().await.message, "first");
    }
}
