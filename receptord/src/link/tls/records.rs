//! Records: the bytes of a link, encrypted, once the handshake is over.
//!
//! Owns what is the same for every record of TLS 1.3 (RFC 8446, 5 and 4.6): where one begins and ends, its number, and what
//! is in it beside data: alerts and new keys. The ciphers are those of rustls, which also derives the keys. rustls' own
//! connections do the same, with a copy of everything that is read between its buffers and ours, and another to them: here
//! a record is decrypted where it was read, and copied once, to whoever reads.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustls::crypto::cipher::{
    AeadKey, InboundOpaqueMessage, Iv, MessageDecrypter, MessageEncrypter, OutboundChunks,
    OutboundPlainMessage, Tls13AeadAlgorithm,
};
use rustls::kernel::KernelConnection;
use rustls::{
    AlertDescription, ConnectionTrafficSecrets, ContentType, Error, ExtractedSecrets,
    InvalidMessage, PeerMisbehaved, ProtocolVersion, Tls13CipherSuite,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use self::messages::Messages;
use super::incoming::Incoming;

pub(crate) mod fuzz;
mod messages;

/// Type, version and length, in front of every record.
pub(super) const HEADER: usize = 5;
/// The most data in a record.
const DATA_MAX: usize = 16 * 1024;
/// The most that may follow a header: data, their type, padding and the cipher's tag.
const SEALED_MAX: usize = DATA_MAX + 256;
/// Records that are encrypted for one call to the system: two of the largest frames.
const BURST: usize = 8;
/// Pieces of what is to be written that are looked at for one burst.
const PIECES: usize = 64;
/// Records in a row that bring no data: empty ones, new keys, tickets, of which the largest there may be takes nine. A peer that
/// sends more keeps this end busy with nothing.
const EMPTY_MAX: u32 = 32;
/// A handshake message that says: from here on I use the next key. The last byte asks for the same.
const KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 0];

/// Where new keys come from.
pub(super) trait Rekey {
    /// For what is sent from now on.
    fn outgoing(&mut self) -> Result<ConnectionTrafficSecrets, Error>;
    /// For what comes from now on.
    fn incoming(&mut self) -> Result<ConnectionTrafficSecrets, Error>;
}

impl<D> Rekey for KernelConnection<D> {
    fn outgoing(&mut self) -> Result<ConnectionTrafficSecrets, Error> {
        Ok(self.update_tx_secret()?.1)
    }

    fn incoming(&mut self) -> Result<ConnectionTrafficSecrets, Error> {
        Ok(self.update_rx_secret()?.1)
    }
}

/// A connection that both ends have agreed on.
pub(in super::super) struct Records<S> {
    stream: S,
    rekey: Box<dyn Rekey>,
    aead: &'static dyn Tls13AeadAlgorithm,

    incoming: Incoming,
    decrypter: Box<dyn MessageDecrypter>,
    /// The number of the next record.
    next_in: u64,
    /// Decrypted, and not taken yet from there on.
    rest: (Vec<u8>, usize),
    /// Records without data since the last one with some.
    empty: u32,
    /// The peer has said that nothing more comes.
    ended: bool,
    /// What is wrong with the record behind the data that were read last: nothing more is read.
    failure: Option<Error>,
    messages: Messages,

    encrypter: Box<dyn MessageEncrypter>,
    next_out: u64,
    /// Records under one key.
    key_lasts: u64,
    /// The peer wants this end's next key to be used.
    asked: bool,
    /// Encrypted records that are not written, at most a burst, new keys and an alert, and how much of the first is.
    outgoing: VecDeque<Vec<u8>>,
    written: usize,
    /// Nothing more is sent.
    closed: bool,
}

impl<S> fmt::Debug for Records<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Records").finish_non_exhaustive()
    }
}

/// What a record had in it.
enum Opened {
    Data,
    Other,
    End,
}

impl<S> Records<S> {
    /// Goes on where a handshake ended; `tickets` says whether the peer may send some.
    pub(super) fn new(
        stream: S,
        incoming: Incoming,
        suite: &'static Tls13CipherSuite,
        secrets: ExtractedSecrets,
        rekey: Box<dyn Rekey>,
        tickets: bool,
    ) -> Result<Self, Error> {
        let aead = suite.aead_alg;
        let (next_in, rx) = secrets.rx;
        let (next_out, tx) = secrets.tx;
        let (in_key, in_iv) = key(rx)?;
        let (out_key, out_iv) = key(tx)?;
        Ok(Self {
            stream,
            rekey,
            aead,
            incoming,
            decrypter: aead.decrypter(in_key, in_iv),
            next_in,
            rest: (Vec::new(), 0),
            empty: 0,
            ended: false,
            failure: None,
            messages: Messages::new(tickets),
            encrypter: aead.encrypter(out_key, out_iv),
            next_out,
            // Well before the cipher is worn out.
            key_lasts: suite.common.confidentiality_limit / 2,
            asked: false,
            outgoing: VecDeque::new(),
            written: 0,
            closed: false,
        })
    }

    /// Decrypts the next record if all of it is there, and puts its data into `to`, or what does not fit into `rest`.
    fn open(&mut self, to: &mut ReadBuf<'_>) -> Result<Option<Opened>, Error> {
        let bytes = self.incoming.bytes();
        let Some((header, behind)) = bytes.split_first_chunk_mut::<HEADER>() else {
            return Ok(None);
        };
        let [kind, major, minor, high, low] = *header;
        let length = usize::from(u16::from_be_bytes([high, low]));
        if ContentType::from(kind) != ContentType::ApplicationData {
            return Err(unexpected(kind.into()));
        }
        // Authenticated like the rest of the header, but rustls takes this part of it for granted.
        if [major, minor] != [3, 3] {
            return Err(Error::DecryptError);
        }
        if length > SEALED_MAX {
            return Err(InvalidMessage::MessageTooLarge.into());
        }
        let Some(sealed) = behind.get_mut(..length) else {
            return Ok(None);
        };
        let record = InboundOpaqueMessage::new(
            ContentType::ApplicationData,
            ProtocolVersion::TLSv1_2,
            sealed,
        );
        let record = self.decrypter.decrypt(record, self.next_in)?;
        let next = self.next_in.checked_add(1);
        self.next_in = next.ok_or_else(|| Error::General("a key without an end".to_owned()))?;
        self.empty += 1;
        if self.messages.is_in_one() && record.typ != ContentType::Handshake {
            return Err(PeerMisbehaved::MessageInterleavedWithHandshakeMessage.into());
        }
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "a foreign enum that grows; none of the others may come any more"
        )]
        let opened = match record.typ {
            ContentType::ApplicationData => {
                let data = record.payload;
                let (now, later) = data.split_at(data.len().min(to.remaining()));
                to.put_slice(now);
                if !later.is_empty() {
                    self.rest = (later.to_vec(), 0);
                }
                if !data.is_empty() {
                    self.empty = 0;
                }
                Opened::Data
            }
            ContentType::Alert => alert(record.payload)?,
            ContentType::Handshake => {
                if let Some(asks) = self.messages.read(record.payload)? {
                    let (key, iv) = key(self.rekey.incoming()?)?;
                    self.decrypter = self.aead.decrypter(key, iv);
                    self.next_in = 0;
                    self.asked |= asks;
                }
                Opened::Other
            }
            other => return Err(unexpected(other)),
        };
        if self.empty > EMPTY_MAX {
            return Err(PeerMisbehaved::TooManyEmptyFragments.into());
        }
        self.incoming.take(HEADER + length);
        Ok(Some(opened))
    }

    /// Encrypts one record.
    fn seal(&mut self, typ: ContentType, payload: OutboundChunks<'_>) -> io::Result<()> {
        let message = OutboundPlainMessage {
            typ,
            version: ProtocolVersion::TLSv1_2,
            payload,
        };
        let record = self.encrypter.encrypt(message, self.next_out);
        self.outgoing.push_back(record.map_err(broken)?.encode());
        self.next_out += 1;
        Ok(())
    }

    /// Encrypts data, as much of it as one burst takes, and says how much that is.
    fn seal_data(&mut self, pieces: &[&[u8]]) -> io::Result<usize> {
        let mut rest = OutboundChunks::new(pieces);
        let all = rest.len();
        while !rest.is_empty() && self.outgoing.len() < BURST {
            if self.asked || self.next_out >= self.key_lasts {
                self.seal(ContentType::Handshake, OutboundChunks::Single(&KEY_UPDATE))?;
                let secrets = self.rekey.outgoing().map_err(broken)?;
                let (key, iv) = key(secrets).map_err(broken)?;
                self.encrypter = self.aead.encrypter(key, iv);
                self.next_out = 0;
                self.asked = false;
            }
            let (now, later) = rest.split_at(DATA_MAX);
            self.seal(ContentType::ApplicationData, now)?;
            rest = later;
        }
        Ok(all - rest.len())
    }

    /// The last record of this end.
    fn seal_alert(&mut self, alert: AlertDescription) -> io::Result<()> {
        if self.closed {
            return Ok(());
        }
        self.closed = true;
        let level = if alert == AlertDescription::CloseNotify {
            1
        } else {
            2
        };
        let alert = [level, u8::from(alert)];
        self.seal(ContentType::Alert, OutboundChunks::Single(&alert))
    }
}

impl<S: AsyncWrite + Unpin> Records<S> {
    /// Writes what is encrypted.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.outgoing.is_empty() {
            let mut slices = [IoSlice::new(&[]); BURST + 2];
            for (slice, record) in slices.iter_mut().zip(&self.outgoing) {
                *slice = IoSlice::new(record);
            }
            slices[0].advance(self.written);
            let count = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, &slices))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += count;
            while let Some(first) = self.outgoing.front()
                && self.written >= first.len()
            {
                self.written -= first.len();
                self.outgoing.pop_front();
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Says goodbye to a peer that has sent nonsense, if that can be done at once. Nothing is sent behind it, nor to a peer
    /// that has said so itself.
    fn refuse(&mut self, error: Error, cx: &mut Context<'_>) -> io::Error {
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "a foreign enum that grows; all others are told alike"
        )]
        let alert = match &error {
            Error::AlertReceived(_) => {
                self.closed = true;
                return broken(error);
            }
            Error::DecryptError => AlertDescription::BadRecordMac,
            Error::PeerSentOversizedRecord
            | Error::InvalidMessage(InvalidMessage::MessageTooLarge) => {
                AlertDescription::RecordOverflow
            }
            Error::InvalidMessage(InvalidMessage::InvalidKeyUpdate) => {
                AlertDescription::IllegalParameter
            }
            Error::InvalidMessage(InvalidMessage::MessageTooShort) => AlertDescription::DecodeError,
            _ => AlertDescription::UnexpectedMessage,
        };
        if self.seal_alert(alert).is_ok() {
            let _ = self.poll_drain(cx);
        }
        broken(error)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Records<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let start = to.filled().len();
        let (rest, at) = &mut this.rest;
        if *at < rest.len() {
            let count = to.remaining().min(rest.len() - *at);
            to.put_slice(&rest[*at..*at + count]);
            *at += count;
            if *at < rest.len() {
                return Poll::Ready(Ok(()));
            }
            this.rest = (Vec::new(), 0);
        }
        while !this.ended {
            let has_some = to.filled().len() > start;
            if has_some && to.remaining() < DATA_MAX || to.remaining() == 0 {
                break;
            }
            let opened = match &this.failure {
                Some(failure) => Err(failure.clone()),
                None => this.open(to),
            };
            match opened {
                Ok(Some(Opened::Data | Opened::Other)) => {}
                Ok(Some(Opened::End)) => this.ended = true,
                Ok(None) if has_some => break,
                Ok(None) => {
                    if ready!(this.incoming.poll_fill(&mut this.stream, cx))? == 0 {
                        return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                    }
                }
                Err(error) => {
                    this.failure = Some(error.clone());
                    if has_some {
                        break;
                    }
                    return Poll::Ready(Err(this.refuse(error, cx)));
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Records<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        ready!(this.poll_drain(cx))?;
        if this.closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let mut pieces: [&[u8]; PIECES] = [&[]; PIECES];
        let mut filled = 0;
        let some = bytes.iter().filter(|bytes| !bytes.is_empty());
        for (piece, bytes) in pieces.iter_mut().zip(some) {
            *piece = bytes;
            filled += 1;
        }
        let count = match this.seal_data(&pieces[..filled]) {
            Ok(count) => count,
            Err(error) => {
                // How much of it is sealed nobody is told any more, so nothing may follow.
                this.closed = true;
                return Poll::Ready(Err(error));
            }
        };
        // Most often the system takes it at once; otherwise it goes first the next time.
        match this.poll_drain(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(count)),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.seal_alert(AlertDescription::CloseNotify)?;
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

fn broken(error: Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

fn key(secrets: ConnectionTrafficSecrets) -> Result<(AeadKey, Iv), Error> {
    match secrets {
        ConnectionTrafficSecrets::Aes128Gcm { key, iv }
        | ConnectionTrafficSecrets::Aes256Gcm { key, iv }
        | ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => Ok((key, iv)),
        _ => Err(Error::General(
            "a cipher without keys of its own".to_owned(),
        )),
    }
}

fn unexpected(got_type: ContentType) -> Error {
    Error::InappropriateMessage {
        expect_types: vec![ContentType::ApplicationData],
        got_type,
    }
}

/// What an alert says: only two of them are no error.
fn alert(payload: &[u8]) -> Result<Opened, Error> {
    let [_, description] = *payload else {
        return Err(match payload {
            [] => InvalidMessage::InvalidEmptyPayload.into(),
            _ => InvalidMessage::MessageTooShort.into(),
        });
    };
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "a foreign enum that grows; all others end the connection"
    )]
    match AlertDescription::from(description) {
        AlertDescription::CloseNotify => Ok(Opened::End),
        AlertDescription::UserCanceled => Ok(Opened::Other),
        other => Err(Error::AlertReceived(other)),
    }
}

#[cfg(test)]
mod tests;
