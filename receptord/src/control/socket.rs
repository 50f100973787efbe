//! One client's connection: reads and writes that wait for the other side.
//!
//! Owns what the system is asked to tell. A Unix socket tells whoever waits for room of every byte that
//! the other side takes, also when nobody lacks room: each line that a client reads would wake the daemon.
//! So room is waited for only where a write found none. Never looks at a byte.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use bytes::BytesMut;
use nix::sys::socket::{MsgFlags, send};
use tokio::net::UnixStream;
use tokio::net::unix::pipe::Receiver;

/// See the module.
#[derive(Debug)]
pub(super) struct Socket {
    /// Tokio's reader of a descriptor that waits for nothing else; that it is made for pipes makes no
    /// difference to a read.
    reader: Receiver,
}

impl Socket {
    /// Takes a connection over.
    ///
    /// # Errors
    ///
    /// When the system has no room to watch it.
    pub(super) fn new(stream: UnixStream) -> io::Result<Self> {
        let stream = OwnedFd::from(stream.into_std()?);
        let reader = Receiver::from_owned_fd_unchecked(stream)?;
        Ok(Self { reader })
    }

    /// Waits until there is something to read, or the other side is gone.
    pub(super) async fn readable(&self) -> io::Result<()> {
        self.reader.readable().await
    }

    /// Reads what is there; 0: nothing more will come.
    pub(super) fn try_read(&self, buffer: &mut BytesMut) -> io::Result<usize> {
        self.reader.try_read_buf(buffer)
    }

    /// Writes all of it, and waits for room as often as there is none.
    pub(super) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        while !bytes.is_empty() {
            match send(self.reader.as_fd().as_raw_fd(), bytes, flags).map_err(io::Error::from) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.room().await?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Waits until something can be written.
    async fn room(&self) -> io::Result<()> {
        // A descriptor is watched once; its copy can be watched for something else.
        let copy = self.reader.as_fd().try_clone_to_owned()?;
        UnixStream::from_std(copy.into())?.writable().await
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::epoll::EpollFlags;
    use tokio::io::AsyncReadExt as _;

    /// More than a socket holds.
    const LARGE: usize = 4 << 20;

    #[tokio::test(flavor = "current_thread")]
    async fn a_write_waits_for_a_slow_reader_and_fails_when_it_is_gone() {
        let (mut client, server) = UnixStream::pair().unwrap();
        let socket = Socket::new(server).unwrap();
        let bytes = vec![7; LARGE];
        let read = async {
            let mut got = vec![0; LARGE];
            client.read_exact(&mut got).await.unwrap();
            got
        };
        let (written, got) = tokio::join!(socket.write_all(&bytes), read);
        written.unwrap();
        assert!(got == bytes);
        drop(client);
        let error = socket.write_all(b"x").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        socket.readable().await.unwrap();
        assert_eq!(socket.try_read(&mut BytesMut::with_capacity(1)).unwrap(), 0);
    }

    /// What the system is to tell of this descriptor, as it says itself.
    fn watched(socket: &Socket) -> u32 {
        let own = socket.as_fd().as_raw_fd().to_string();
        let files = std::fs::read_dir("/proc/self/fdinfo").unwrap();
        // Those of other tests come and go.
        let files = files.filter_map(|file| std::fs::read_to_string(file.ok()?.path()).ok());
        let events = |info: String| {
            let words = info.lines().map(|line| line.split_whitespace());
            let mut words = words.map(Iterator::collect::<Vec<_>>);
            let line = words.find(|line| line.starts_with(&["tfd:", own.as_str()]))?;
            u32::from_str_radix(line.get(3)?, 16).ok()
        };
        files.filter_map(events).next().unwrap()
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_client_that_reads_its_lines_wakes_nobody() {
        let (_client, server) = UnixStream::pair().unwrap();
        let socket = Socket::new(server).unwrap();
        let events = EpollFlags::from_bits_truncate(watched(&socket).cast_signed());
        assert!(events.contains(EpollFlags::EPOLLIN), "{events:?}");
        assert!(!events.contains(EpollFlags::EPOLLOUT), "{events:?}");
    }
}
