//! A client of a control socket that says every step it waits for.
//!
//! Owns one connection. Knows lines and raw bytes, and nothing of what the commands mean.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::Value;

use crate::DEADLINE;

/// A client of a control socket. Every read has a deadline.
#[derive(Debug)]
pub struct Control {
    stream: BufReader<UnixStream>,
    /// The node in the greeting.
    pub node: String,
}

impl Control {
    /// Connects and reads the greeting.
    ///
    /// # Errors
    ///
    /// When nobody answers, or what answers is no control socket.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        let mut control = Self {
            stream: BufReader::new(stream),
            node: String::new(),
        };
        let greeting = control.try_line()?;
        let node = greeting.strip_prefix("Receptor Control, node ");
        control.node = node
            .ok_or_else(|| io::Error::other(format!("no greeting: {greeting:?}")))?
            .to_owned();
        Ok(control)
    }

    /// Sends bytes as they are.
    ///
    /// # Panics
    ///
    /// When they are not taken.
    pub fn write(&mut self, bytes: impl AsRef<[u8]>) {
        let stream = self.stream.get_mut();
        stream.write_all(bytes.as_ref()).expect("the daemon reads");
    }

    /// The next line; empty at the end.
    ///
    /// # Errors
    ///
    /// When none comes in time.
    pub fn try_line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        self.stream.read_until(b'\n', &mut line)?;
        let line = String::from_utf8_lossy(&line);
        Ok(line.trim_end_matches('\n').to_owned())
    }

    /// The next line; empty at the end.
    ///
    /// # Panics
    ///
    /// When none comes in time.
    pub fn line(&mut self) -> String {
        self.try_line().expect("the daemon answers in time")
    }

    /// The next line, which is JSON.
    ///
    /// # Panics
    ///
    /// When it is not.
    pub fn reply(&mut self) -> Value {
        let line = self.line();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    /// So many raw bytes.
    ///
    /// # Errors
    ///
    /// When they do not come in time.
    pub fn try_raw(&mut self, size: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; size];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// So many raw bytes.
    ///
    /// # Panics
    ///
    /// When they do not come in time.
    pub fn raw(&mut self, size: usize) -> Vec<u8> {
        self.try_raw(size).expect("raw bytes")
    }

    /// Sends one command and gives the line that answers.
    pub fn text(&mut self, command: &str) -> String {
        self.write(format!("{command}\n"));
        self.line()
    }

    /// Sends one command and gives the JSON line that answers.
    pub fn json(&mut self, command: &str) -> Value {
        self.write(format!("{command}\n"));
        self.reply()
    }

    /// Says that nothing more will be sent.
    ///
    /// # Panics
    ///
    /// When the connection is gone.
    pub fn half_close(&mut self) {
        let stream = self.stream.get_mut();
        stream.shutdown(Shutdown::Write).expect("a connection");
    }

    /// Whether the daemon has closed the connection, and nothing is left to read.
    ///
    /// # Panics
    ///
    /// When it stays open, or more comes.
    pub fn expect_closed(&mut self) {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => assert!(rest.is_empty(), "{}", String::from_utf8_lossy(&rest)),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
        }
    }

    /// The connection itself.
    #[must_use]
    pub fn stream(&self) -> &UnixStream {
        self.stream.get_ref()
    }
}
