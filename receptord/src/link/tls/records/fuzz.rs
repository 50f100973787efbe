//! What holds for every byte that comes over a link with TLS, from a peer that has the keys and from one that has not.
//!
//! Owns a second reading of RFC 8446, 5: it has all bytes at once, keeps them all, and is as plain as that allows. What
//! [`Records`] makes of the same bytes, in whatever pieces they come, must be the same.

use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use rustls::client::UnbufferedClientConnection;
use rustls::crypto::cipher::{
    AeadKey, InboundOpaqueMessage, Iv, OutboundChunks, OutboundPlainMessage,
};
use rustls::crypto::ring::cipher_suite::{
    TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
};
use rustls::server::{ClientHello, ResolvesServerCert, UnbufferedServerConnection};
use rustls::sign::CertifiedKey;
use rustls::{
    AlertDescription, ClientConfig, ConnectionTrafficSecrets, ContentType, Error, ExtractedSecrets,
    ProtocolVersion, RootCertStore, ServerConfig, Tls13CipherSuite,
};
use rustls_pki_types::{IpAddr, ServerName};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::super::handshake::Handshake;
use super::super::incoming::Incoming;
use super::{BURST, DATA_MAX, EMPTY_MAX, HEADER, KEY_UPDATE, Records, Rekey, SEALED_MAX};

/// The most bytes that one input is made into.
const WIRE_MAX: usize = 256 * 1024;
/// The largest buffers of a connection: see `incoming`.
const BUFFER_MAX: usize = 128 * 1024;

/// The first byte says what it is about, the second seeds the sizes of pieces. Then follow the acts of a peer, or the
/// bytes of one that has no keys and is in the middle of a handshake.
///
/// # Panics
///
/// When what is read is not what was sent up to the first mistake, when that is not answered as it must be, or when what is
/// written in between does not come out at the other end.
pub fn tls_records(input: &[u8]) {
    let Some((&[about, seed], rest)) = input.split_first_chunk() else {
        return;
    };
    let mut wire = Wire {
        random: fastrand::Rng::with_seed(seed.into()),
        ..Wire::default()
    };
    if about & 0x80 != 0 {
        wire.bytes = rest.to_vec();
        stranger(wire, about & 1 != 0);
        return;
    }
    let suite = if about & 1 == 0 {
        &TLS13_AES_256_GCM_SHA384
    } else {
        &TLS13_CHACHA20_POLY1305_SHA256
    };
    let suite = suite.tls13().expect("both are of TLS 1.3");
    let tickets = about & 2 != 0;
    wire.bytes = Peer::new(suite).act(rest);
    let expected = Reading::of(&wire.bytes, suite, tickets);
    let key_lasts = (about & 4 != 0).then_some(3);
    Run::new(wire, suite, tickets, key_lasts).goes_as(&expected);
}

/// A handshake with whoever knows nothing: it ends, and well it does not.
fn stranger(wire: Wire, dials: bool) {
    let tls13 = &[&rustls::version::TLS13];
    let ended = if dials {
        let config = ClientConfig::builder_with_protocol_versions(tls13)
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let nobody = ServerName::IpAddress(IpAddr::from(std::net::IpAddr::from([0, 0, 0, 0])));
        let end = UnbufferedClientConnection::new(Arc::new(config), nobody);
        let mut handshake = Handshake::new(wire, end.expect("it can begin"));
        complete(pin!(handshake.complete()))
    } else {
        let config = ServerConfig::builder_with_protocol_versions(tls13)
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(NoCertificate));
        let end = UnbufferedServerConnection::new(Arc::new(config));
        let mut handshake = Handshake::new(wire, end.expect("it can begin"));
        complete(pin!(handshake.complete()))
    };
    assert!(ended.is_err(), "nobody has proved anything");
}

fn complete(mut handshake: Pin<&mut impl Future<Output = io::Result<()>>>) -> io::Result<()> {
    let mut cx = Context::from_waker(Waker::noop());
    for _ in 0..10 * WIRE_MAX {
        if let Poll::Ready(result) = handshake.as_mut().poll(&mut cx) {
            return result;
        }
    }
    panic!("it does not end");
}

#[derive(Debug)]
struct NoCertificate;

impl ResolvesServerCert for NoCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        None
    }
}

/// A key of one direction, the first or one of the later ones.
fn key(suite: &Tls13CipherSuite, from_peer: bool, generation: u8) -> ConnectionTrafficSecrets {
    let key = AeadKey::from([generation ^ if from_peer { 0x80 } else { 0 }; 32]);
    let iv = Iv::from([generation; 12]);
    if suite.common.suite == TLS13_AES_256_GCM_SHA384.suite() {
        ConnectionTrafficSecrets::Aes256Gcm { key, iv }
    } else {
        ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv }
    }
}

struct Keys {
    suite: &'static Tls13CipherSuite,
    outgoing: u8,
    incoming: u8,
}

impl Rekey for Keys {
    fn outgoing(&mut self) -> Result<ConnectionTrafficSecrets, Error> {
        self.outgoing = self.outgoing.wrapping_add(1);
        Ok(key(self.suite, false, self.outgoing))
    }

    fn incoming(&mut self) -> Result<ConnectionTrafficSecrets, Error> {
        self.incoming = self.incoming.wrapping_add(1);
        Ok(key(self.suite, true, self.incoming))
    }
}

/// Somebody who has the keys and seals whatever the input says.
struct Peer {
    suite: &'static Tls13CipherSuite,
    generation: u8,
    number: u64,
    records: Vec<Vec<u8>>,
}

impl Peer {
    fn new(suite: &'static Tls13CipherSuite) -> Self {
        Self {
            suite,
            generation: 0,
            number: 0,
            records: Vec::new(),
        }
    }

    fn seal(&mut self, typ: u8, content: &[u8], padding: usize) {
        let mut inner = content.to_vec();
        inner.push(typ);
        inner.resize(inner.len() + padding, 0);
        let last = inner.pop().expect("it has a type");
        let message = OutboundPlainMessage {
            typ: last.into(),
            version: ProtocolVersion::TLSv1_2,
            payload: OutboundChunks::Single(&inner),
        };
        let (key, iv) = super::key(key(self.suite, true, self.generation)).expect("a known cipher");
        let mut encrypter = self.suite.aead_alg.encrypter(key, iv);
        let record = encrypter.encrypt(message, self.number);
        self.records
            .push(record.expect("it can be sealed").encode());
        self.number += 1;
    }

    fn new_key(&mut self, asks: u8) {
        self.seal(22, &[24, 0, 0, 1, asks], 0);
        self.generation = self.generation.wrapping_add(1);
        self.number = 0;
    }

    /// One act after the other, until the input or the room for what they send ends.
    fn act(mut self, mut input: &[u8]) -> Vec<u8> {
        let mut size = 0;
        while let Some((&[act, a], rest)) = input.split_first_chunk()
            && size < WIRE_MAX
        {
            input = rest;
            let count = self.records.len();
            let number = usize::from(a);
            match act % 12 {
                0 => self.seal(23, &vec![a; number], 0),
                1 => {
                    let (typ, rest) = input.split_at(input.len().min(1));
                    let (content, rest) = rest.split_at(rest.len().min(number % 40));
                    self.seal(typ.first().copied().unwrap_or(0), content, number / 40);
                    input = rest;
                }
                2 => self.new_key(a % 2),
                3 => self.seal(23, &vec![a; DATA_MAX - 3 + number % 6], number / 6 % 5),
                4 => self.seal(23, &[a; 1], DATA_MAX - 3 + number % 6),
                5 => {
                    let (raw, rest) = input.split_at(input.len().min(number % 40));
                    self.records.push(raw.to_vec());
                    input = rest;
                }
                6 => {
                    if let Some(record) = self.records.last_mut()
                        && !record.is_empty()
                    {
                        let at = if a < 128 {
                            number / 8
                        } else {
                            record.len() - 1
                        };
                        let at = at % record.len();
                        record[at] ^= 1 << (a % 8);
                    }
                }
                7 => drop(self.records.pop()),
                8 => self.records.extend(self.records.last().cloned()),
                9 => self.seal(21, &[1, if a < 128 { 0 } else { a }], 0),
                10 => {
                    let (content, rest) = input.split_at(input.len().min(number % 60));
                    for piece in content.chunks(1 + number / 60 * 3) {
                        self.seal(22, piece, 0);
                    }
                    input = rest;
                }
                _ => (0..number % 40).for_each(|_| match a / 40 {
                    0 => self.seal(23, &[], 3),
                    1 => self.seal(21, &[1, 90], 0),
                    2 => self.seal(22, &[4, 0, 0, 0], 0),
                    3 => self.new_key(1),
                    _ => self.new_key(0),
                }),
            }
            size += self.records.iter().skip(count).map(Vec::len).sum::<usize>();
        }
        let mut wire = self.records.concat();
        wire.truncate(WIRE_MAX);
        wire
    }
}

/// What is read of a connection, and what is known at its end.
#[derive(Debug, PartialEq)]
struct Reading {
    data: Vec<u8>,
    end: End,
    /// How often the peer asked for a new key.
    asks: usize,
}

#[derive(Debug, PartialEq)]
enum End {
    Goodbye,
    CutOff,
    /// The peer says what is wrong.
    Told,
    /// The peer is told what is wrong.
    Refused(AlertDescription),
}

impl Reading {
    fn of(mut wire: &[u8], suite: &Tls13CipherSuite, tickets: bool) -> Self {
        let mut reading = Self {
            data: Vec::new(),
            end: End::CutOff,
            asks: 0,
        };
        let (mut generation, mut number, mut empty) = (0, 0, 0);
        let mut messages = Vec::new();
        reading.end = loop {
            let Some((&[typ, major, minor, high, low], rest)) = wire.split_first_chunk() else {
                break End::CutOff;
            };
            let length = usize::from(u16::from_be_bytes([high, low]));
            if typ != 23 {
                break End::Refused(AlertDescription::UnexpectedMessage);
            }
            if (major, minor) != (3, 3) {
                break End::Refused(AlertDescription::BadRecordMac);
            }
            if length > SEALED_MAX {
                break End::Refused(AlertDescription::RecordOverflow);
            }
            let Some((sealed, rest)) = rest.split_at_checked(length) else {
                break End::CutOff;
            };
            wire = rest;
            let mut sealed = sealed.to_vec();
            let (key, iv) = super::key(key(suite, true, generation)).expect("a known cipher");
            let mut decrypter = suite.aead_alg.decrypter(key, iv);
            let record = InboundOpaqueMessage::new(
                ContentType::ApplicationData,
                ProtocolVersion::TLSv1_2,
                &mut sealed,
            );
            let record = match decrypter.decrypt(record, number) {
                Ok(record) => record,
                Err(Error::DecryptError) => break End::Refused(AlertDescription::BadRecordMac),
                Err(Error::PeerSentOversizedRecord) => {
                    break End::Refused(AlertDescription::RecordOverflow);
                }
                Err(_) => break End::Refused(AlertDescription::UnexpectedMessage),
            };
            number += 1;
            let typ = u8::from(record.typ);
            empty = if typ == 23 && !record.payload.is_empty() {
                0
            } else {
                empty + 1
            };
            if !messages.is_empty() && typ != 22 {
                break End::Refused(AlertDescription::UnexpectedMessage);
            }
            match (typ, record.payload) {
                (23, data) => reading.data.extend_from_slice(data),
                (21, [_, 90]) => {}
                (21, [_, 0]) if empty <= EMPTY_MAX => break End::Goodbye,
                (21, [_, 0]) => {}
                (21, [_, _]) => break End::Told,
                (21, [_, ..]) => break End::Refused(AlertDescription::DecodeError),
                (22, [_, ..]) => {
                    messages.extend_from_slice(record.payload);
                    match whole(&mut messages, tickets) {
                        Ok(None) => {}
                        Ok(Some(asks)) => {
                            (generation, number) = (generation.wrapping_add(1), 0);
                            reading.asks += usize::from(asks);
                        }
                        Err(alert) => break End::Refused(alert),
                    }
                }
                _ => break End::Refused(AlertDescription::UnexpectedMessage),
            }
            if empty > EMPTY_MAX {
                break End::Refused(AlertDescription::UnexpectedMessage);
            }
        };
        reading
    }
}

/// Takes the whole messages off the front, and says whether the last is a new key.
fn whole(messages: &mut Vec<u8>, tickets: bool) -> Result<Option<bool>, AlertDescription> {
    loop {
        let length = match messages[..] {
            [] => return Ok(None),
            [4, ..] if !tickets => return Err(AlertDescription::UnexpectedMessage),
            [4, a, b, c, ..] => usize::from(a) * 65_536 + usize::from(b) * 256 + usize::from(c),
            [24, 0, 0, 1, ..] => 1,
            [24, _, _, _, ..] => return Err(AlertDescription::DecodeError),
            [4 | 24, ..] => return Ok(None),
            _ => return Err(AlertDescription::UnexpectedMessage),
        };
        if messages.len() < 4 + length {
            return Ok(None);
        }
        let message: Vec<u8> = messages.drain(..4 + length).collect();
        match (message[0], message[4..].first()) {
            (4, _) => {}
            (_, Some(2..)) => return Err(AlertDescription::IllegalParameter),
            (_, _) if !messages.is_empty() => return Err(AlertDescription::UnexpectedMessage),
            (_, asks) => return Ok(Some(asks == Some(&1))),
        }
    }
}

/// A connection that gives and takes as much as it likes, and sometimes nothing.
#[derive(Debug, Default)]
struct Wire {
    bytes: Vec<u8>,
    read: usize,
    written: Vec<u8>,
    random: fastrand::Rng,
}

impl Wire {
    /// How many of so many bytes go now.
    fn some(&mut self, most: usize) -> Option<usize> {
        match self.random.u8(..8) {
            0 => None,
            1 => Some(most.min(1)),
            2..5 => Some(self.random.usize(..=most).max(most.min(1))),
            _ => Some(most),
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let most = to.remaining().min(self.bytes.len() - self.read);
        let Some(count) = self.some(most) else {
            return Poll::Pending;
        };
        to.put_slice(&self.bytes[self.read..][..count]);
        self.read += count;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let Some(count) = self.some(bytes.len()) else {
            return Poll::Pending;
        };
        self.written.extend_from_slice(&bytes[..count]);
        Poll::Ready(Ok(count))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let bytes: Vec<u8> = bytes.iter().flat_map(|bytes| bytes.to_vec()).collect();
        self.as_mut().poll_write(cx, &bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// A connection of ours, and what it has taken to be written.
struct Run {
    suite: &'static Tls13CipherSuite,
    records: Records<Wire>,
    random: fastrand::Rng,
    taken: Vec<u8>,
    key_lasts: Option<u64>,
}

impl Run {
    fn new(
        wire: Wire,
        suite: &'static Tls13CipherSuite,
        tickets: bool,
        key_lasts: Option<u64>,
    ) -> Self {
        let keys = Keys {
            suite,
            outgoing: 0,
            incoming: 0,
        };
        let secrets = ExtractedSecrets {
            tx: (0, key(suite, false, 0)),
            rx: (0, key(suite, true, 0)),
        };
        let random = wire.random.clone();
        let incoming = Incoming::new();
        let records = Records::new(wire, incoming, suite, secrets, Box::new(keys), tickets);
        let mut records = records.expect("a known cipher");
        if let Some(key_lasts) = key_lasts {
            records.key_lasts = key_lasts;
        }
        Self {
            suite,
            records,
            random,
            taken: Vec::new(),
            key_lasts,
        }
    }

    fn goes_as(mut self, expected: &Reading) {
        let mut data = Vec::new();
        let end = loop {
            match self.read(&mut data) {
                Ok(true) => {}
                Ok(false) => break End::Goodbye,
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break End::CutOff,
                Err(error) => {
                    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
                    let inner = inner.expect("it is about TLS");
                    break if matches!(inner, Error::AlertReceived(_)) {
                        End::Told
                    } else {
                        // Of which the alert says which.
                        End::Refused(AlertDescription::InternalError)
                    };
                }
            }
            if self.random.u8(..4) == 0 {
                self.write();
            }
        };
        assert!(data == expected.data, "what is read is what was sent");
        let failed = matches!(end, End::Told | End::Refused(_));
        let before = self.taken.len();
        for _ in 0..3 {
            self.write();
        }
        let more = self.taken.len() > before;
        assert!(!failed || !more, "nothing is sent to a peer that errs");
        let mut cx = Context::from_waker(Waker::noop());
        while Pin::new(&mut self.records)
            .poll_shutdown(&mut cx)
            .is_pending()
        {}
        let (alert, updates) = self.written();
        match (end, &expected.end) {
            (End::Refused(_), End::Refused(expected)) => assert_eq!(alert, Some(*expected)),
            (End::Told, End::Told) => assert_eq!(alert, None),
            (end @ (End::Goodbye | End::CutOff), expected) => {
                assert_eq!(end, *expected);
                assert_eq!(alert, Some(AlertDescription::CloseNotify));
            }
            (end, expected) => panic!("{end:?} instead of {expected:?}"),
        }
        if self.key_lasts.is_none() {
            assert!(updates <= expected.asks);
        }
        let due = expected.asks > 0 && more;
        assert!(updates > 0 || !due, "whoever asks is answered");
    }

    /// Reads into a window of some size; false is the end.
    fn read(&mut self, data: &mut Vec<u8>) -> io::Result<bool> {
        let window = [1, 100, DATA_MAX, DATA_MAX + 1, 70_000];
        let mut bytes = vec![0; window[self.random.usize(..window.len())]];
        let mut room = ReadBuf::new(&mut bytes);
        let mut cx = Context::from_waker(Waker::noop());
        let result = Pin::new(&mut self.records).poll_read(&mut cx, &mut room);
        assert!(self.records.rest.0.len() <= DATA_MAX);
        assert!(self.records.incoming.bytes().len() <= BUFFER_MAX);
        data.extend_from_slice(room.filled());
        match result {
            Poll::Ready(Ok(())) => Ok(!room.filled().is_empty()),
            Poll::Ready(Err(error)) => {
                assert!(room.filled().is_empty(), "what is read is not an error");
                Err(error)
            }
            Poll::Pending => {
                assert!(room.filled().is_empty(), "what is read is not forgotten");
                Ok(true)
            }
        }
    }

    /// Has something written, in one piece or several.
    fn write(&mut self) {
        let most = [10, 1_000, 20_000, 150_000][self.random.usize(..4)];
        let bytes: Vec<u8> = (self.taken.len()..)
            .take(self.random.usize(..most))
            .map(pattern)
            .collect();
        let cut = self.random.usize(..=bytes.len());
        let pieces = [
            IoSlice::new(&bytes[..cut]),
            IoSlice::new(&[]),
            IoSlice::new(&bytes[cut..]),
        ];
        let mut cx = Context::from_waker(Waker::noop());
        if let Poll::Ready(Ok(count)) =
            Pin::new(&mut self.records).poll_write_vectored(&mut cx, &pieces)
        {
            assert!(count > 0 || bytes.is_empty());
            self.taken.extend_from_slice(&bytes[..count]);
        }
        assert!(self.records.outgoing.len() <= BURST + 2);
    }

    /// Opens what was written: the alert at its end, and how many new keys there are.
    fn written(&self) -> (Option<AlertDescription>, usize) {
        let mut wire = &self.records.stream.written[..];
        let (mut generation, mut number, mut data, mut alert) = (0, 0, Vec::new(), None);
        while let Some((&[23, 3, 3, high, low], rest)) = wire.split_first_chunk::<HEADER>() {
            assert_eq!(alert, None, "nothing is behind an alert");
            let length = usize::from(u16::from_be_bytes([high, low]));
            assert!(length <= SEALED_MAX);
            let (sealed, rest) = rest.split_at(length);
            wire = rest;
            let mut sealed = sealed.to_vec();
            let keys = key(
                self.suite,
                false,
                u8::try_from(generation % 256).expect("less"),
            );
            let (key, iv) = super::key(keys).expect("a known cipher");
            let record = InboundOpaqueMessage::new(
                ContentType::ApplicationData,
                ProtocolVersion::TLSv1_2,
                &mut sealed,
            );
            let mut decrypter = self.suite.aead_alg.decrypter(key, iv);
            let record = decrypter.decrypt(record, number).expect("it opens");
            number += 1;
            match (u8::from(record.typ), record.payload) {
                (23, some @ [_, ..]) => data.extend_from_slice(some),
                (22, update) if update == KEY_UPDATE => (generation, number) = (generation + 1, 0),
                (21, [level, what]) => {
                    alert = Some(AlertDescription::from(*what));
                    assert_eq!(*level == 1, *what == 0);
                }
                (typ, payload) => panic!("{typ} {payload:?}"),
            }
            assert!(number <= self.key_lasts.unwrap_or(u64::MAX - 2) + 2);
        }
        assert!(wire.is_empty());
        assert!(data == self.taken, "what was taken is what was written");
        (alert, generation)
    }
}

/// A byte that says where it is.
fn pattern(at: usize) -> u8 {
    (at % 251).to_le_bytes()[0]
}
