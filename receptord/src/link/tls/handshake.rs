//! The handshake: drives rustls from the first byte of a connection to its keys.
//!
//! Owns a connection until both ends have proved who they are. rustls sees one record after the other and none behind the
//! handshake, whose keys would be of no use to it: what came there is handed on as it is, and is the matter of [`Records`].

use std::future::poll_fn;
use std::io;

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus};
use rustls::{CommonState, Error, ExtractedSecrets};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};

use super::incoming::Incoming;
use super::records::{HEADER, Records, Rekey};

/// One end of a connection, as rustls has it.
pub(super) trait End: Sized {
    /// What rustls keeps of this end.
    type Data;
    /// Whether the peer may send tickets, which servers do.
    const TICKETS: bool;

    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data>;

    fn state(&self) -> &CommonState;

    fn into_keys(self) -> Result<(ExtractedSecrets, Box<dyn Rekey>), Error>;
}

impl End for UnbufferedClientConnection {
    type Data = ClientConnectionData;
    const TICKETS: bool = true;

    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }

    fn state(&self) -> &CommonState {
        self
    }

    fn into_keys(self) -> Result<(ExtractedSecrets, Box<dyn Rekey>), Error> {
        let (secrets, connection) = self.dangerous_into_kernel_connection()?;
        Ok((secrets, Box::new(connection)))
    }
}

impl End for UnbufferedServerConnection {
    type Data = ServerConnectionData;
    const TICKETS: bool = false;

    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }

    fn state(&self) -> &CommonState {
        self
    }

    fn into_keys(self) -> Result<(ExtractedSecrets, Box<dyn Rekey>), Error> {
        let (secrets, connection) = self.dangerous_into_kernel_connection()?;
        Ok((secrets, Box::new(connection)))
    }
}

/// A connection in its handshake.
pub(super) struct Handshake<S, E> {
    stream: S,
    end: E,
    incoming: Incoming,
    /// Where the last record ends that rustls sees, whether all of it has come or not.
    seen: usize,
    outgoing: Vec<u8>,
}

/// What is to be done next.
enum Step {
    Again,
    Read,
    Write,
    Done,
    Failed(Error),
}

impl<S: AsyncRead + AsyncWrite + Unpin, E: End> Handshake<S, E> {
    pub(super) fn new(stream: S, end: E) -> Self {
        Self {
            stream,
            end,
            incoming: Incoming::new(),
            seen: 0,
            outgoing: Vec::new(),
        }
    }

    /// Goes on until both ends are done.
    ///
    /// # Errors
    ///
    /// Those of the stream, and those of rustls inside of `InvalidData`. The peer has been told of the latter.
    pub(super) async fn complete(&mut self) -> io::Result<()> {
        loop {
            match self.step() {
                Step::Again => {}
                Step::Read => {
                    let (incoming, stream) = (&mut self.incoming, &mut self.stream);
                    if poll_fn(|cx| incoming.poll_fill(stream, cx)).await? == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Step::Write => self.write().await?,
                Step::Done => return self.write().await,
                Step::Failed(error) => {
                    // The alert, if there is one; rustls must not see what was wrong again. That it cannot be sent is not what
                    // went wrong.
                    while self.state().wants_write() && matches!(self.step(), Step::Again) {}
                    let _ = self.write().await;
                    return Err(io::Error::new(io::ErrorKind::InvalidData, error));
                }
            }
        }
    }

    /// Who the other end is, as rustls has it.
    pub(super) fn state(&self) -> &CommonState {
        self.end.state()
    }

    /// The connection from now on; after [`Self::complete`].
    pub(super) fn into_records(self) -> Result<Records<S>, Error> {
        let suite = self.end.state().negotiated_cipher_suite();
        let suite = suite
            .and_then(|suite| suite.tls13())
            .ok_or(Error::HandshakeNotComplete)?;
        let (secrets, rekey) = self.end.into_keys()?;
        Records::new(
            self.stream,
            self.incoming,
            suite,
            secrets,
            rekey,
            E::TICKETS,
        )
    }

    /// Whether anything has come behind it.
    #[cfg(test)]
    pub(super) fn has_more(&mut self) -> bool {
        !self.incoming.bytes().is_empty()
    }

    /// The bare connection.
    pub(super) fn into_stream(self) -> S {
        self.stream
    }

    fn step(&mut self) -> Step {
        let bytes = self.incoming.bytes();
        let seen = self.seen.min(bytes.len());
        let UnbufferedStatus { discard, state } = self.end.process(&mut bytes[..seen]);
        let step = match state {
            Ok(ConnectionState::EncodeTlsData(mut data)) => {
                match encode(&mut data, &mut self.outgoing) {
                    Ok(()) => Step::Again,
                    Err(error) => Step::Failed(Error::General(error.to_string())),
                }
            }
            Ok(ConnectionState::TransmitTlsData(data)) => {
                data.done();
                Step::Write
            }
            Ok(ConnectionState::BlockedHandshake) => Step::Read,
            Ok(ConnectionState::WriteTraffic(_)) => Step::Done,
            // It goes away before it is there; early data are not allowed.
            Ok(_) => Step::Failed(Error::HandshakeNotComplete),
            Err(error) => Step::Failed(error),
        };
        self.incoming.take(discard);
        self.seen = self.seen.saturating_sub(discard);
        if matches!(step, Step::Read) && self.see_next() {
            Step::Again
        } else {
            step
        }
    }

    /// Lets rustls see one record more, if the header of one has come.
    fn see_next(&mut self) -> bool {
        let behind = self.incoming.bytes().get(self.seen..);
        let Some([_, _, _, high, low]) = behind.and_then(|bytes| bytes.first_chunk::<HEADER>())
        else {
            return false;
        };
        self.seen += HEADER + usize::from(u16::from_be_bytes([*high, *low]));
        true
    }

    async fn write(&mut self) -> io::Result<()> {
        self.stream.write_all(&self.outgoing).await?;
        self.outgoing.clear();
        self.stream.flush().await
    }
}

fn encode<D>(data: &mut EncodeTlsData<'_, D>, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    let start = out.len();
    let size = match data.encode(&mut []) {
        Err(EncodeError::InsufficientSize(size)) => size.required_size,
        Ok(_) => return Ok(()),
        Err(error) => return Err(error),
    };
    out.resize(start + size, 0);
    data.encode(&mut out[start..]).map(|_| ())
}
