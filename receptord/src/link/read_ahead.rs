//! Reading more from the system than is asked for at once.
//!
//! Owns the bytes between a socket and rustls, which asks for 4 KiB at a time, a quarter of a record: a call to the
//! system for each costs more than the record. The buffer grows with what comes and shrinks again, so that thousands of
//! quiet links hold little. What is written passes through.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The buffer of a quiet link.
const SIZE_MIN: usize = 4 * 1024;
/// The largest: four records. More was not measurably faster.
const SIZE_MAX: usize = 64 * 1024;

/// See the module.
#[derive(Debug)]
pub(super) struct ReadAhead<S> {
    inner: S,
    /// As long as the next read may be.
    buffer: Vec<u8>,
    /// What of it is read and not yet taken.
    from: usize,
    to: usize,
}

impl<S> ReadAhead<S> {
    pub(super) fn new(inner: S) -> Self {
        Self {
            inner,
            buffer: vec![0; SIZE_MIN],
            from: 0,
            to: 0,
        }
    }

    /// Adapts the size of the next read to what the last one brought; nothing is left in the buffer.
    fn adapt(&mut self) {
        let size = self.buffer.len();
        if self.to == size && size < SIZE_MAX {
            self.buffer = vec![0; (size * 4).min(SIZE_MAX)];
        } else if self.to < size / 8 && size > SIZE_MIN {
            self.buffer = vec![0; (size / 2).max(SIZE_MIN)];
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ReadAhead<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        wanted: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.from == this.to {
            if this.to > 0 {
                this.adapt();
                (this.from, this.to) = (0, 0);
            }
            let mut read = ReadBuf::new(&mut this.buffer);
            ready!(Pin::new(&mut this.inner).poll_read(cx, &mut read))?;
            this.to = read.filled().len();
        }
        let count = (this.to - this.from).min(wanted.remaining());
        wanted.put_slice(&this.buffer[this.from..this.from + count]);
        this.from += count;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ReadAhead<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt as _;

    /// Gives as much as is asked for, and notes how much that was.
    struct Source<'a> {
        left: usize,
        asked: &'a mut Vec<usize>,
    }

    impl AsyncRead for Source<'_> {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            wanted: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            let count = wanted.remaining().min(self.left);
            let asked = wanted.remaining();
            self.asked.push(asked);
            for _ in 0..count {
                let byte = u8::try_from(self.left % 251).unwrap();
                wanted.put_slice(&[byte]);
                self.left -= 1;
            }
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn every_byte_comes_once_and_the_buffer_follows_the_stream() {
        const ALL: usize = 300_000;
        let mut asked = Vec::new();
        let mut reader = ReadAhead::new(Source {
            left: ALL,
            asked: &mut asked,
        });
        let mut seen = 0;
        let mut piece = [0; 4096];
        loop {
            let count = reader.read(&mut piece).await.unwrap();
            if count == 0 {
                break;
            }
            for byte in &piece[..count] {
                assert_eq!(usize::from(*byte), (ALL - seen) % 251);
                seen += 1;
            }
        }
        assert_eq!(seen, ALL);
        assert_eq!(asked[..3], [4096, 16_384, 65_536]);
        assert!(asked.iter().all(|size| *size <= SIZE_MAX));
        // A thousand small reads later it is small again.
        let mut asked = Vec::new();
        let mut trickle = ReadAhead::new(Trickle(&mut asked));
        trickle.buffer = vec![0; SIZE_MAX];
        for _ in 0..100 {
            trickle.read_u8().await.unwrap();
        }
        assert_eq!(asked.last(), Some(&SIZE_MIN));
    }

    /// A byte at a time.
    struct Trickle<'a>(&'a mut Vec<usize>);

    impl AsyncRead for Trickle<'_> {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            wanted: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            let asked = wanted.remaining();
            self.0.push(asked);
            wanted.put_slice(&[1]);
            Poll::Ready(Ok(()))
        }
    }
}
