//! The handshake: drives rustls from the first byte of a connection to its keys.
//!
//! Owns a connection until both ends have proved who they are. What came behind the handshake is handed on, decrypted
//! or not; what is encrypted from then on is the matter of [`Records`].

use std::future::poll_fn;
use std::io;

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus};
use rustls::{CommonState, Error, ExtractedSecrets};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};

use super::incoming::Incoming;
use super::records::{Records, Rekey};

/// One end of a connection, as rustls has it.
pub(super) trait End: Sized {
    /// What rustls keeps of this end.
    type Data;

    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data>;

    fn state(&self) -> &CommonState;

    fn into_keys(self) -> Result<(ExtractedSecrets, Box<dyn Rekey>), Error>;
}

impl End for UnbufferedClientConnection {
    type Data = ClientConnectionData;

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
    outgoing: Vec<u8>,
    /// What the peer sent right behind the handshake and rustls has decrypted.
    early: Vec<u8>,
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
            outgoing: Vec::new(),
            early: Vec::new(),
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
                    // The alert, if there is one. That it cannot be sent is not what went wrong.
                    while matches!(self.step(), Step::Again) {}
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
            self.early,
            suite,
            secrets,
            rekey,
        )
    }

    /// The bare connection.
    pub(super) fn into_stream(self) -> S {
        self.stream
    }

    fn step(&mut self) -> Step {
        let UnbufferedStatus { mut discard, state } = self.end.process(self.incoming.bytes());
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
            Ok(ConnectionState::ReadTraffic(mut traffic)) => loop {
                match traffic.next_record() {
                    Some(Ok(record)) => {
                        discard += record.discard;
                        self.early.extend_from_slice(record.payload);
                    }
                    Some(Err(error)) => break Step::Failed(error),
                    None => break Step::Again,
                }
            },
            Ok(ConnectionState::BlockedHandshake) => Step::Read,
            Ok(ConnectionState::WriteTraffic(_)) => Step::Done,
            // It goes away before it is there; early data are not allowed.
            Ok(_) => Step::Failed(Error::HandshakeNotComplete),
            Err(error) => Step::Failed(error),
        };
        self.incoming.take(discard);
        step
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
