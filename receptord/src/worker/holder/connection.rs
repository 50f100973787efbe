//! The daemon's end of the connection to a holder.
//!
//! Owns the socket, what it has not taken yet, and its place with the service manager: what is kept there
//! outlives this process. Dropped, it is taken back from there, so that the holder finds itself
//! alone and ends its plugin; only [`Connection::leave`] leaves it for the next daemon.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::Path;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use tokio::net::UnixDatagram;

use super::packet::{MAX_CHUNK, MAX_PACKET, Order};
use crate::systemd::Kept;

/// Packets that may wait for the socket before input does: a few words to the holder.
const MAX_WAITING: usize = 64;

/// See the module.
#[derive(Debug)]
pub(in crate::worker) struct Connection {
    /// In truth of `SOCK_SEQPACKET`, for which the runtime has no name: sent and received like datagrams, and
    /// with an end.
    socket: UnixDatagram,
    waiting: VecDeque<Vec<u8>>,
    kept: Option<Kept>,
    buffer: Vec<u8>,
}

impl Connection {
    /// Has the service manager start a holder.
    ///
    /// # Errors
    /// Whatever the system says.
    pub(in crate::worker) fn open(at: &Path) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
        let address = UnixAddr::new(at)?;
        connect(socket.as_raw_fd(), &address)?;
        Self::new(socket, None)
    }

    /// One that the service manager has kept, or that is not kept.
    ///
    /// # Errors
    /// When the runtime cannot watch it.
    pub(super) fn new(socket: OwnedFd, kept: Option<Kept>) -> io::Result<Self> {
        let socket = std::os::unix::net::UnixDatagram::from(socket);
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket: UnixDatagram::from_std(socket)?,
            waiting: VecDeque::new(),
            kept,
            buffer: vec![0; MAX_PACKET],
        })
    }

    /// Has the service manager keep it under this name.
    pub(in crate::worker) fn keep(&mut self, name: String) {
        self.kept = Kept::new(name, self.socket.as_fd());
    }

    /// Whether it outlives this process.
    pub(super) fn is_kept(&self) -> bool {
        self.kept.is_some()
    }

    /// Leaves it for the next daemon, if it is kept.
    pub(super) fn leave(mut self) {
        if let Some(kept) = self.kept.take() {
            kept.leave();
        }
    }

    /// Sends an order, at once or when the socket takes it. Of a holder that is gone the next
    /// [`Self::receive`] tells.
    pub(super) fn send(&mut self, order: &Order<'_>) {
        let packet = order.encode();
        self.flush();
        if !self.waiting.is_empty() || !self.try_send(&packet) {
            self.waiting.push_back(packet);
        }
    }

    /// Sends what the socket takes of these bytes for the plugin, and says how many that are.
    pub(super) fn send_input(&mut self, bytes: &[u8]) -> usize {
        self.flush();
        let mut sent = 0;
        for piece in bytes.chunks(MAX_CHUNK) {
            if self.waiting.len() >= MAX_WAITING {
                break;
            }
            let packet = Order::Input(piece).encode();
            sent += piece.len();
            if !self.waiting.is_empty() || !self.try_send(&packet) {
                self.waiting.push_back(packet);
                break;
            }
        }
        sent
    }

    /// Whether orders wait for the socket.
    pub(super) fn is_full(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Sends what waits, as far as the socket takes it.
    pub(super) fn flush(&mut self) {
        while let Some(packet) = self.waiting.pop_front() {
            if !self.try_send(&packet) {
                self.waiting.push_front(packet);
                return;
            }
        }
    }

    /// False: it has to wait. What cannot be sent at all counts as sent: the holder is gone.
    fn try_send(&self, packet: &[u8]) -> bool {
        let sent = self.socket.try_send(packet);
        !matches!(sent, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Waits until it may be worth to [`Self::flush`].
    pub(super) async fn writable(&self) {
        // A socket in trouble is readable as well, and that is where it is noticed.
        let _ = self.socket.writable().await;
    }

    /// Waits until it may be worth to [`Self::receive`].
    pub(super) async fn readable(&self) {
        let _ = self.socket.readable().await;
    }

    /// The next packet that is there; `None`: not now.
    ///
    /// # Errors
    /// `UnexpectedEof` when the holder is gone.
    pub(super) fn receive(&mut self) -> io::Result<Option<&[u8]>> {
        match self.socket.try_recv(&mut self.buffer) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => Ok(self.buffer.get(..count)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }
}
