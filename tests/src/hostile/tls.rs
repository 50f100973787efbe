//! A link of a member over TLS.
//!
//! Owns one TLS connection whose two directions are used by two threads. Never holds the connection's
//! lock while it waits for the other end.

use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex};

use rustls::ClientConnection;

use super::{Wire, lock};

/// Bytes taken from the system at once.
const READ: usize = 64 << 10;

/// See the module.
pub(super) struct Tls {
    connection: Arc<Mutex<ClientConnection>>,
    stream: BufReader<TcpStream>,
}

impl Tls {
    /// Waits for the end of the handshake.
    pub(super) fn new(mut connection: ClientConnection, mut stream: TcpStream) -> io::Result<Self> {
        while connection.is_handshaking() {
            connection.complete_io(&mut stream)?;
        }
        Ok(Self {
            connection: Arc::new(Mutex::new(connection)),
            stream: BufReader::with_capacity(READ, stream),
        })
    }
}

impl Read for Tls {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match lock(&self.connection).reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return read,
            }
            let bytes = self.stream.fill_buf()?;
            let mut connection = lock(&self.connection);
            // It takes no more than it has room for until that was read.
            let count = connection.read_tls(&mut &*bytes)?;
            self.stream.consume(count);
            connection.process_new_packets().map_err(io::Error::other)?;
        }
    }
}

impl Write for Tls {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut records = Vec::new();
        let count = {
            let mut connection = lock(&self.connection);
            let count = connection.writer().write(bytes)?;
            while connection.wants_write() {
                connection.write_tls(&mut records)?;
            }
            count
        };
        self.stream.get_mut().write_all(&records)?;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Wire for Tls {
    fn again(&self) -> io::Result<Box<dyn Wire>> {
        Ok(Box::new(Self {
            connection: Arc::clone(&self.connection),
            stream: BufReader::with_capacity(READ, self.stream.get_ref().try_clone()?),
        }))
    }

    fn end(&self) {
        // It may be closed already.
        let _ = self.stream.get_ref().shutdown(Shutdown::Both);
    }
}
