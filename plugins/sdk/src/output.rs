//! stdout, shared by all jobs: whole messages, one write for as many as are ready.

use std::{
    io::{self, Write},
    sync::{Mutex, MutexGuard, PoisonError},
};

use receptor_proto::plugin::{EncodeError, PluginMessage};

/// Bytes that may wait for the next flush.
const PENDING: usize = 65_536;

pub(crate) struct Output(Mutex<Inner>);

struct Inner {
    pending: Vec<u8>,
    stream: Box<dyn Write + Send>,
    /// The first failure; nothing is written after it.
    broken: Option<io::ErrorKind>,
}

/// Why a message was not sent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    #[error(transparent)]
    Encode(#[from] EncodeError),
    #[error("the daemon no longer listens")]
    Io(#[from] io::Error),
}

impl Output {
    pub(crate) fn new(stream: Box<dyn Write + Send>) -> Self {
        Self(Mutex::new(Inner {
            pending: Vec::with_capacity(PENDING),
            stream,
            broken: None,
        }))
    }

    /// Sends a message now.
    pub(crate) fn send(&self, message: &PluginMessage) -> Result<(), SendError> {
        let mut inner = self.lock();
        message.put_line(&mut inner.pending)?;
        Ok(inner.flush()?)
    }

    /// Sends a message with the next flush at the latest.
    pub(crate) fn queue(&self, message: &PluginMessage) -> Result<(), SendError> {
        let mut inner = self.lock();
        message.put_line(&mut inner.pending)?;
        if inner.pending.len() >= PENDING {
            inner.flush()?;
        }
        Ok(())
    }

    /// Writes what waits.
    pub(crate) fn flush(&self) -> io::Result<()> {
        self.lock().flush()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn flush(&mut self) -> io::Result<()> {
        if let Some(kind) = self.broken {
            self.pending.clear();
            return Err(kind.into());
        }
        if self.pending.is_empty() {
            return Ok(());
        }
        let result = self
            .stream
            .write_all(&self.pending)
            .and_then(|()| self.stream.flush());
        self.pending.clear();
        // One long line must not hold its memory for ever.
        self.pending.shrink_to(2 * PENDING);
        if let Err(e) = &result {
            self.broken = Some(e.kind());
        }
        result
    }
}
