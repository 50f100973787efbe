//! What came from the system and is not decrypted yet.
//!
//! Owns the one buffer between a socket and TLS. It takes several records in one call to the system, because a call for each
//! costs more than the record. It grows with what comes and shrinks again, so that thousands of quiet links hold little.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

/// The buffer of a quiet link.
const SIZE_MIN: usize = 4 * 1024;
/// The largest: more than seven full records, and more than twice what any handshake message may have.
const SIZE_MAX: usize = 128 * 1024;

/// See the module.
#[derive(Debug)]
pub(super) struct Incoming {
    /// As long as a read may be.
    buffer: Vec<u8>,
    /// What of it was read and not taken yet.
    from: usize,
    to: usize,
    /// What the last read brought, and what it could have.
    last: (usize, usize),
}

impl Incoming {
    pub(super) fn new() -> Self {
        Self {
            buffer: vec![0; SIZE_MIN],
            from: 0,
            to: 0,
            last: (SIZE_MIN, SIZE_MIN + 1),
        }
    }

    /// What is there.
    pub(super) fn bytes(&mut self) -> &mut [u8] {
        &mut self.buffer[self.from..self.to]
    }

    /// Forgets so many bytes from the front.
    pub(super) fn take(&mut self, count: usize) {
        self.from = (self.from + count).min(self.to);
    }

    /// Reads once and says how much that brought; 0 is the end. What is there stays in front of it.
    ///
    /// # Errors
    ///
    /// Those of the stream, and `InvalidData` when there is no room for more.
    pub(super) fn poll_fill<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        self.buffer.copy_within(self.from..self.to, 0);
        (self.from, self.to) = (0, self.to - self.from);
        self.adapt();
        let mut room = ReadBuf::new(&mut self.buffer[self.to..]);
        if room.remaining() == 0 {
            let text = "a message that is larger than any that TLS has";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, text)));
        }
        let most = room.remaining();
        ready!(Pin::new(stream).poll_read(cx, &mut room))?;
        let count = room.filled().len();
        self.to += count;
        self.last = (count, most);
        Poll::Ready(Ok(count))
    }

    /// Makes the buffer as large as is worth it after the last read.
    fn adapt(&mut self) {
        let size = self.buffer.len();
        let (count, most) = self.last;
        if size < SIZE_MAX && (count == most || self.to == size) {
            self.buffer.resize((size * 4).min(SIZE_MAX), 0);
        } else if size > SIZE_MIN && count < size / 8 && self.to == 0 {
            self.buffer = vec![0; (size / 2).max(SIZE_MIN)];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    /// Gives `piece` bytes at a time, until `left` are gone; notes how much was asked for.
    struct Source {
        left: usize,
        piece: usize,
        asked: Vec<usize>,
    }

    impl AsyncRead for Source {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            wanted: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            let asked = wanted.remaining();
            self.asked.push(asked);
            for _ in 0..asked.min(self.piece).min(self.left) {
                wanted.put_slice(&[u8::try_from(self.left % 251).unwrap()]);
                self.left -= 1;
            }
            Poll::Ready(Ok(()))
        }
    }

    async fn fill(incoming: &mut Incoming, source: &mut Source) -> io::Result<usize> {
        poll_fn(|cx| incoming.poll_fill(source, cx)).await
    }

    #[tokio::test(flavor = "current_thread")]
    async fn every_byte_comes_once_and_the_buffer_follows_the_stream() {
        const ALL: usize = 600_000;
        let mut incoming = Incoming::new();
        let mut source = Source {
            left: ALL,
            piece: usize::MAX,
            asked: Vec::new(),
        };
        let mut seen = 0;
        while fill(&mut incoming, &mut source).await.unwrap() > 0 {
            // As with records, the last bytes are not whole yet.
            let count = incoming.bytes().len();
            let taken = if source.left > 0 {
                count - count.min(100)
            } else {
                count
            };
            for byte in &incoming.bytes()[..taken] {
                assert_eq!(usize::from(*byte), (ALL - seen) % 251);
                seen += 1;
            }
            incoming.take(taken);
        }
        assert_eq!(seen, ALL);
        assert_eq!(source.asked[0], SIZE_MIN);
        assert!(
            source.asked[..4].contains(&(SIZE_MAX - 100)),
            "{:?}",
            source.asked
        );

        // Many small reads later it is small again.
        source = Source {
            left: 100,
            piece: 1,
            asked: Vec::new(),
        };
        while fill(&mut incoming, &mut source).await.unwrap() > 0 {
            incoming.take(1);
        }
        assert_eq!(source.asked.last(), Some(&SIZE_MIN));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn what_nobody_takes_ends_at_the_limit() {
        let mut incoming = Incoming::new();
        let mut source = Source {
            left: usize::MAX,
            piece: usize::MAX,
            asked: Vec::new(),
        };
        let error = loop {
            if let Err(error) = fill(&mut incoming, &mut source).await {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert_eq!(incoming.bytes().len(), SIZE_MAX);
    }
}
