//! What a client sends: lines, and raw bytes between them.
//!
//! Owns the read side of one client's connection. What is kept is bounded: one line of at most
//! [`LINE_MAX`] bytes and one read more. Never looks at what a line says.

use std::io;
use std::rc::Rc;

use bytes::{Buf as _, Bytes, BytesMut};
use receptor_proto::control::LINE_MAX;

use super::socket::Socket;

/// The buffer of a client that sends little.
const READ_MIN: usize = 4 * 1024;
/// The most that one read takes.
const READ_MAX: usize = 256 * 1024;
/// A buffer with less room than this is not worth a call to the system.
const READ_TAIL: usize = 1024;

/// See the module.
#[derive(Debug)]
pub(super) struct ClientInput {
    stream: Rc<Socket>,
    buffer: BytesMut,
    /// Bytes at the front of the buffer that hold no newline.
    scanned: usize,
    size: usize,
    eof: bool,
}

/// Why there is no further line.
#[derive(Debug, thiserror::Error)]
pub(super) enum LineError {
    /// A line without end.
    #[error(
        "a line is longer than {LINE_MAX} bytes; send large payloads as raw bytes with size or stream"
    )]
    TooLong,
    /// The connection broke.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl ClientInput {
    pub(super) fn new(stream: Rc<Socket>) -> Self {
        Self {
            stream,
            buffer: BytesMut::new(),
            scanned: 0,
            size: READ_MIN,
            eof: false,
        }
    }

    /// The next line, without its end; `None` after the last one. What stands before the end
    /// of the input without a newline is a line too.
    pub(super) async fn line(&mut self) -> Result<Option<Bytes>, LineError> {
        loop {
            if let Some(line) = self.ready_line() {
                return Ok(Some(line));
            }
            if self.buffer.len() >= LINE_MAX {
                return Err(LineError::TooLong);
            }
            if self.eof {
                self.scanned = 0;
                let rest = self.buffer.split().freeze();
                return Ok((!rest.is_empty()).then_some(rest));
            }
            if self.buffer.is_empty() {
                // A client that says nothing holds no buffer.
                self.buffer = BytesMut::new();
                self.stream.readable().await?;
            }
            self.fill().await?;
        }
    }

    /// The next line if it is here already.
    pub(super) fn ready_line(&mut self) -> Option<Bytes> {
        let found = self.buffer[self.scanned..]
            .iter()
            .position(|byte| *byte == b'\n');
        let Some(found) = found else {
            self.scanned = self.buffer.len();
            return None;
        };
        let line = self.buffer.split_to(self.scanned + found).freeze();
        self.buffer.advance(1);
        self.scanned = 0;
        Some(line)
    }

    /// What was read and not taken; a line begins where it begins.
    pub(super) fn ahead(&self) -> &[u8] {
        &self.buffer
    }

    /// Takes whole lines, and raw bytes behind them, that were understood where they lie.
    pub(super) fn skip(&mut self, count: usize) {
        self.buffer.advance(count);
        self.scanned = self.scanned.saturating_sub(count);
    }

    /// Raw bytes, at least one and at most `max`; `None` at the end of the input.
    pub(super) async fn raw(&mut self, max: usize) -> io::Result<Option<Bytes>> {
        self.scanned = 0;
        if self.buffer.is_empty() {
            if self.eof {
                return Ok(None);
            }
            self.fill().await?;
            if self.buffer.is_empty() {
                return Ok(None);
            }
        }
        let count = self.buffer.len().min(max);
        Ok(Some(self.buffer.split_to(count).freeze()))
    }

    /// Reads once. Afterwards there is more, or `eof` is set.
    async fn fill(&mut self) -> io::Result<()> {
        if self.buffer.capacity() - self.buffer.len() < READ_TAIL {
            self.buffer.reserve(self.size);
        }
        let room = self.buffer.capacity() - self.buffer.len();
        loop {
            match self.stream.try_read(&mut self.buffer) {
                Ok(0) => {
                    self.eof = true;
                    return Ok(());
                }
                Ok(count) => {
                    if count == room && room >= self.size {
                        self.size = (self.size * 4).min(READ_MAX);
                    } else if count < self.size / 8 {
                        self.size = (self.size / 2).max(READ_MIN);
                    }
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.stream.readable().await?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::UnixStream;

    fn pair() -> (UnixStream, ClientInput) {
        let (client, server) = UnixStream::pair().unwrap();
        let server = Socket::new(server).unwrap();
        (client, ClientInput::new(Rc::new(server)))
    }

    #[tokio::test(flavor = "current_thread")]
    async fn lines_and_raw_bytes_share_a_connection() {
        let (mut client, mut input) = pair();
        client.write_all(b"one\nabctwo\n\nlast").await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(&input.line().await.unwrap().unwrap()[..], b"one");
        assert_eq!(&input.raw(3).await.unwrap().unwrap()[..], b"abc");
        assert_eq!(&input.line().await.unwrap().unwrap()[..], b"two");
        assert_eq!(&input.line().await.unwrap().unwrap()[..], b"");
        assert_eq!(&input.line().await.unwrap().unwrap()[..], b"last");
        assert!(input.line().await.unwrap().is_none());
        assert!(input.raw(9).await.unwrap().is_none());
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_line_without_end_is_refused() {
        let (mut client, mut input) = pair();
        let send = async {
            // Ends with an error when the other side is gone.
            let _ = client.write_all(&vec![b'x'; 2 * LINE_MAX]).await;
        };
        let receive = async {
            let result = input.line().await;
            drop(input);
            result
        };
        let ((), result) = tokio::join!(send, receive);
        assert!(matches!(result, Err(LineError::TooLong)));
    }
}
