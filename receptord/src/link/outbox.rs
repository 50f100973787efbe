//! The bytes on their way from the engine to one link's writer: a byte channel with a budget.
//!
//! Owns the encoded frames that are not yet written to the transport. The engine appends
//! without ever waiting; it knows how much is there and tells the core, which stops giving
//! while the budget is used up. The writer takes everything at once, so that what came up
//! while it was busy leaves with one call to the system. Large bodies are passed on as they lie. Never touches a transport.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes};
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

/// Bodies of packets from this size on are not copied. Smaller ones could keep a read buffer alive that is many times
/// their size, and would be many pieces.
const APART: usize = 8 * 1024;

/// Encoded frames one behind the other: a stream of bytes in pieces.
#[derive(Debug, Default)]
pub(super) struct Frames {
    /// All of it but the large bodies.
    bytes: Vec<u8>,
    /// How much of that is done with.
    done: usize,
    /// Large bodies, and in front of which of these bytes each belongs.
    bodies: VecDeque<(usize, Bytes)>,
    len: usize,
}

impl Frames {
    fn push(&mut self, frame: &Frame) {
        let before = self.bytes.len();
        let body = frame.encode_apart(&mut self.bytes, APART);
        self.len += self.bytes.len() - before;
        if let Some(body) = body {
            self.len += body.len();
            self.bodies.push_back((self.bytes.len(), body));
        }
    }

    /// Makes room for others. A large buffer is given back.
    fn clear(&mut self, keep: bool) {
        debug_assert_eq!(self.len, 0);
        self.done = 0;
        self.bytes.clear();
        if !keep && self.bytes.capacity() > KEEP_CAPACITY {
            self.bytes = Vec::new();
        }
    }

    /// The pieces that are left, none of them empty.
    fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        let mut from = self.done;
        let bodies = self.bodies.iter().map(Some).chain([None]);
        let pieces = bodies.flat_map(move |body| {
            let to = body.map_or(self.bytes.len(), |(at, _)| *at);
            let between = &self.bytes[from..to];
            from = to;
            [between, body.map_or(&[][..], |(_, body)| body)]
        });
        pieces.filter(|piece| !piece.is_empty())
    }
}

impl Buf for Frames {
    fn remaining(&self) -> usize {
        self.len
    }

    fn chunk(&self) -> &[u8] {
        self.pieces().next().unwrap_or_default()
    }

    fn chunks_vectored<'a>(&'a self, into: &mut [IoSlice<'a>]) -> usize {
        let pieces = into.iter_mut().zip(self.pieces());
        pieces
            .map(|(slice, piece)| *slice = IoSlice::new(piece))
            .count()
    }

    fn advance(&mut self, mut count: usize) {
        self.len -= count;
        while count > 0 {
            let Some((at, body)) = self.bodies.front_mut() else {
                self.done += count;
                return;
            };
            let between = count.min(*at - self.done);
            self.done += between;
            count -= between;
            let of_body = count.min(body.len());
            body.advance(of_body);
            count -= of_body;
            if body.is_empty() {
                self.bodies.pop_front();
            }
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    /// Encoded and not yet taken by the writer.
    queued: RefCell<Frames>,
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
        self.queued.borrow_mut().push(frame);
    }

    /// Engine: lets the writer have what was pushed.
    pub(crate) fn flush(&self) {
        if self.queued.borrow().has_remaining() {
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
        self.queued.borrow().remaining() + self.writing.get()
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

    /// Writer: swaps what is queued into `frames`, of which nothing must be left; waits until there is
    /// something. False: closed, and nothing is left.
    pub(super) async fn take(&self, frames: &mut Frames) -> bool {
        debug_assert_eq!(self.writing.get(), 0);
        frames.clear(self.queued.borrow().has_remaining());
        loop {
            {
                let mut queued = self.queued.borrow_mut();
                if queued.has_remaining() {
                    std::mem::swap(&mut *queued, frames);
                    self.writing.set(frames.remaining());
                    return true;
                }
            }
            if self.closed.borrow().is_some() {
                return false;
            }
            self.changed.notified().await;
        }
    }

    /// Writer: `bytes` of the frames are written. True: the engine may be waiting for this;
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
    use receptor_proto::packet::{Packet, Priority};
    use receptor_proto::{ErrorCode, NodeId};

    const FRAME: Frame = Frame::Credit { total: 1 };

    #[tokio::test(flavor = "current_thread")]
    async fn what_came_up_meanwhile_leaves_at_once() {
        let outbox = Outbox::default();
        outbox.push(&FRAME);
        outbox.push(&FRAME);
        outbox.flush();
        let mut frames = Frames::default();
        assert!(outbox.take(&mut frames).await);
        assert_eq!(frames.remaining(), 12);
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
        let mut frames = Frames::default();
        assert!(outbox.take(&mut frames).await);
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
        let mut frames = Frames::default();
        assert!(outbox.take(&mut frames).await);
        let _ = outbox.written(frames.remaining());
        frames.advance(frames.remaining());
        assert!(!outbox.take(&mut frames).await);
        assert_eq!(outbox.closed().await.message, "first");
    }
    #[test]
    fn large_bodies_are_written_in_their_place_and_not_copied() {
        let packet = |size: usize| {
            let id: NodeId = "a".parse().unwrap();
            Frame::Packet(Packet {
                hop_limit: 3,
                hops: 0,
                priority: Priority::Bulk,
                source: id.clone(),
                destination: id,
                kind: 1,
                body: vec![u8::try_from(size % 256).unwrap(); size].into(),
            })
        };
        let [large, small] = [packet(APART), packet(APART - 1)];
        let frames = [&large, &FRAME, &small, &large, &large, &FRAME];
        let mut plain = Vec::new();
        let mut apart = Frames::default();
        for frame in frames {
            frame.encode(&mut plain);
            apart.push(frame);
        }
        let Frame::Packet(Packet { body, .. }) = &large else {
            unreachable!();
        };
        let mut slices = [IoSlice::new(&[]); 16];
        assert_eq!(apart.chunks_vectored(&mut slices), 7);
        assert_eq!(slices[1].as_ptr(), body.as_ptr());
        for step in [1, 7, 1000, APART, usize::MAX] {
            let mut frames = Frames::default();
            for frame in [&large, &FRAME, &small, &large, &large, &FRAME] {
                frames.push(frame);
            }
            let mut written = Vec::new();
            while frames.has_remaining() {
                let count = frames.chunk().len().min(step);
                written.extend_from_slice(&frames.chunk()[..count]);
                frames.advance(count);
            }
            assert!(written == plain, "in steps of {step}");
        }
        assert_eq!(apart.remaining(), plain.len());
        assert!(apart.copy_to_bytes(plain.len()) == plain);
    }
}
