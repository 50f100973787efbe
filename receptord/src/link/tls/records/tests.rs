//! What goes over a connection, with rustls' own at the other end and with one of ours that misbehaves.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Waker;

use bytes::BytesMut;
use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::{CipherSuite, ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::PrivateKeyDer;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use super::super::handshake::Handshake;
use super::*;

const ALL: usize = 1 << 20;

fn configs() -> (Arc<ClientConfig>, Arc<ServerConfig>) {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["node".to_owned()]).unwrap();
    let certificate = certificate.self_signed(&key).unwrap().der().clone();
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let tls13 = &[&rustls::version::TLS13];
    let mut client = ClientConfig::builder_with_protocol_versions(tls13)
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.enable_secret_extraction = true;
    let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let mut server = ServerConfig::builder_with_protocol_versions(tls13)
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    server.enable_secret_extraction = true;
    (Arc::new(client), Arc::new(server))
}

fn client(config: Arc<ClientConfig>) -> UnbufferedClientConnection {
    UnbufferedClientConnection::new(config, "node".try_into().unwrap()).unwrap()
}

/// One of ours, and one of rustls at the other end of a pipe that holds `room` bytes.
async fn pair(ours_dials: bool, room: usize) -> (Records<DuplexStream>, TlsStream<DuplexStream>) {
    let (near, far) = duplex(room);
    let (client_config, server_config) = configs();
    if ours_dials {
        let mut ours = Handshake::new(near, client(client_config));
        let theirs = TlsAcceptor::from(server_config).accept(far);
        let (done, theirs) = tokio::join!(ours.complete(), theirs);
        done.unwrap();
        (ours.into_records().unwrap(), theirs.unwrap().into())
    } else {
        let end = UnbufferedServerConnection::new(server_config).unwrap();
        let mut ours = Handshake::new(near, end);
        let theirs = TlsConnector::from(client_config).connect("node".try_into().unwrap(), far);
        let (done, theirs) = tokio::join!(ours.complete(), theirs);
        done.unwrap();
        (ours.into_records().unwrap(), theirs.unwrap().into())
    }
}

/// Writes and reads at once, so that nobody waits for the other.
async fn exchange(
    from: &mut (impl AsyncWrite + Unpin),
    to: &mut (impl AsyncRead + Unpin),
    data: &[u8],
) {
    let write = async {
        from.write_all(data).await.unwrap();
        from.flush().await.unwrap();
    };
    let mut came = vec![0; data.len()];
    let read = async { to.read_exact(&mut came).await.map(|_| ()) };
    let ((), read) = tokio::join!(write, read);
    read.unwrap();
    assert!(came == data);
}

fn data() -> Vec<u8> {
    (0..ALL).map(|at| u8::try_from(at % 251).unwrap()).collect()
}

#[tokio::test(flavor = "current_thread")]
async fn rustls_understands_all_of_it_at_either_end() {
    let data = data();
    for ours_dials in [true, false] {
        for room in [2_000, 70_000, 4 << 20] {
            let (mut ours, mut theirs) = pair(ours_dials, room).await;
            exchange(&mut ours, &mut theirs, &data).await;
            exchange(&mut theirs, &mut ours, &data).await;
            exchange(&mut ours, &mut theirs, &data[..1]).await;
            let end = async { theirs.read(&mut [0]).await.unwrap() };
            let (closed, end) = tokio::join!(ours.shutdown(), end);
            closed.unwrap();
            assert_eq!(end, 0);
            let close = async { theirs.shutdown().await };
            let (closed, end) = tokio::join!(close, ours.read_u8());
            closed.unwrap();
            assert_eq!(end.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
            assert!(ours.ended, "the end was said and not only made");
        }
    }
}

#[tokio::test(flavor = "current_thread")]
async fn what_comes_right_behind_the_handshake_is_not_lost() {
    let (near, far) = duplex(1 << 20);
    let (client_config, server_config) = configs();
    let data = data();
    let dial = async {
        let mut end = Handshake::new(near, client(client_config));
        end.complete().await.unwrap();
        let mut records = end.into_records().unwrap();
        records.write_all(&data[..100_000]).await.unwrap();
        records.flush().await.unwrap();
        records
    };
    // The other end looks when all of it is there.
    let mut end = Handshake::new(far, UnbufferedServerConnection::new(server_config).unwrap());
    let accept = async {
        end.complete().await.unwrap();
        end.into_records().unwrap()
    };
    let (_near, mut records) = tokio::join!(dial, accept);
    let mut came = vec![0; 100_000];
    // Through a small window, too.
    let (small, rest) = came.split_at_mut(7_000);
    for piece in small.chunks_mut(100) {
        records.read_exact(piece).await.unwrap();
    }
    records.read_exact(rest).await.unwrap();
    assert!(came == data[..100_000]);
}

#[tokio::test(flavor = "current_thread")]
async fn keys_are_changed_when_they_are_due_and_when_the_peer_does() {
    let data = data();
    for ours_dials in [true, false] {
        let (mut ours, mut theirs) = pair(ours_dials, 1 << 16).await;
        ours.key_lasts = 3;
        exchange(&mut ours, &mut theirs, &data).await;
        assert!(ours.next_out <= 3);
        ours.key_lasts = u64::MAX;
        match &mut theirs {
            TlsStream::Client(stream) => stream.get_mut().1.refresh_traffic_keys(),
            TlsStream::Server(stream) => stream.get_mut().1.refresh_traffic_keys(),
        }
        .unwrap();
        exchange(&mut theirs, &mut ours, &data).await;
        assert!(ours.asked, "rustls asks for the other end's as well");
        exchange(&mut ours, &mut theirs, &data).await;
        assert!(!ours.asked);
        exchange(&mut theirs, &mut ours, &data).await;
    }
}

#[tokio::test(flavor = "current_thread")]
async fn nonsense_ends_the_connection_and_the_peer_is_told_why() {
    let sealed = |length: u16| {
        let mut record = vec![23, 3, 3];
        record.extend_from_slice(&length.to_be_bytes());
        record.resize(HEADER + usize::from(length), 7);
        record
    };
    for (bytes, alert) in [
        (sealed(40), AlertDescription::BadRecordMac),
        (sealed(0), AlertDescription::BadRecordMac),
        (sealed(16_640), AlertDescription::BadRecordMac),
        // Before any of it comes.
        (vec![23, 3, 3, 0x41, 0x01], AlertDescription::RecordOverflow),
        (vec![20, 3, 3, 0, 1, 1], AlertDescription::UnexpectedMessage),
        (vec![22, 3, 3, 0, 1, 0], AlertDescription::UnexpectedMessage),
        (
            vec![21, 3, 3, 0, 2, 2, 0],
            AlertDescription::UnexpectedMessage,
        ),
        (vec![0, 3, 3, 0, 0], AlertDescription::UnexpectedMessage),
        (vec![23, 3, 1, 0, 40], AlertDescription::BadRecordMac),
        (vec![23, 3, 4, 0, 40], AlertDescription::BadRecordMac),
        (vec![23, 2, 3, 0, 40], AlertDescription::BadRecordMac),
    ] {
        let (mut ours, mut theirs) = pair(false, 1 << 16).await;
        // What came in order before it is still read.
        theirs.write_all(b"before").await.unwrap();
        theirs.flush().await.unwrap();
        let TlsStream::Client(stream) = &mut theirs else {
            panic!("it dialled");
        };
        stream.get_mut().0.write_all(&bytes).await.unwrap();
        let mut came = BytesMut::with_capacity(1 << 17);
        ours.read_buf(&mut came).await.unwrap();
        assert_eq!(&came[..], b"before");
        let error = ours.read_buf(&mut came).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{bytes:?}");
        assert_eq!(told(&theirs.read(&mut [0]).await.unwrap_err()), alert);
        // It stays so, and nothing follows the alert.
        let again = ours.read_buf(&mut came).await.unwrap_err();
        assert_eq!(again.to_string(), error.to_string());
        let write = ours.write_all(b"more").await.unwrap_err();
        assert_eq!(write.kind(), io::ErrorKind::BrokenPipe);
    }
}

fn told(error: &io::Error) -> AlertDescription {
    let inner = error.get_ref().unwrap().downcast_ref().unwrap();
    let Error::AlertReceived(alert) = inner else {
        panic!("{inner}");
    };
    *alert
}

/// Lets one of ours send records that it would not.
async fn send(ours: &mut Records<DuplexStream>, typ: ContentType, payload: &[u8]) {
    ours.seal(typ, OutboundChunks::Single(payload)).unwrap();
    poll_fn(|cx| ours.poll_drain(cx)).await.unwrap();
}

async fn two() -> (Records<DuplexStream>, Records<DuplexStream>) {
    let (near, far) = duplex(1 << 16);
    let (client_config, server_config) = configs();
    let mut dials = Handshake::new(near, client(client_config));
    let end = UnbufferedServerConnection::new(server_config).unwrap();
    let mut accepts = Handshake::new(far, end);
    let (dialled, accepted) = tokio::join!(dials.complete(), accepts.complete());
    dialled.unwrap();
    accepted.unwrap();
    (
        dials.into_records().unwrap(),
        accepts.into_records().unwrap(),
    )
}

/// The next record of a peer that sends more than is good: with padding, as long as that makes it.
async fn send_padded(ours: &mut Records<DuplexStream>, data: usize, typ: u8, inner: usize) {
    let mut content = vec![7; data];
    content.push(typ);
    content.resize(inner, 0);
    // What is sealed as the type is the last byte of it.
    let last = content.pop().unwrap();
    send(ours, last.into(), &content).await;
}

#[tokio::test(flavor = "current_thread")]
async fn who_sends_nothing_in_many_records_is_refused() {
    let ask = [24, 0, 0, 1, 1];
    for (typ, payload) in [
        (ContentType::ApplicationData, &b""[..]),
        (ContentType::Alert, &[1, 90]),
        (ContentType::Handshake, &[4, 0, 0, 0]),
        (ContentType::Handshake, &ask),
    ] {
        let (mut dials, mut accepts) = two().await;
        // Behind the tickets that rustls makes here.
        exchange(&mut accepts, &mut dials, b"x").await;
        let nothing = async |from: &mut Records<DuplexStream>| {
            send(from, typ, payload).await;
            if payload == ask {
                next_key(from);
            }
        };
        for _ in 0..EMPTY_MAX {
            nothing(&mut accepts).await;
        }
        exchange(&mut accepts, &mut dials, b"x").await;
        assert!(dials.outgoing.is_empty(), "nothing is answered at once");
        for _ in 0..=EMPTY_MAX {
            nothing(&mut accepts).await;
        }
        let error = dials.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{typ:?}");
    }
}

/// Lets one of ours seal with its next key.
fn next_key(ours: &mut Records<DuplexStream>) {
    let (next, iv) = key(ours.rekey.outgoing().unwrap()).unwrap();
    ours.encrypter = ours.aead.encrypter(next, iv);
    ours.next_out = 0;
}

#[tokio::test(flavor = "current_thread")]
async fn only_alerts_and_new_keys_come_beside_data() {
    let (alert, handshake) = (ContentType::Alert, ContentType::Handshake);
    let unexpected = Some(AlertDescription::UnexpectedMessage);
    let decode = Some(AlertDescription::DecodeError);
    let illegal = Some(AlertDescription::IllegalParameter);
    for (typ, payload, told_back) in [
        (ContentType::Heartbeat, &[1][..], unexpected),
        (ContentType::ChangeCipherSpec, &[1], unexpected),
        (ContentType::Unknown(0), &[], unexpected),
        (ContentType::Unknown(0), &[0; 100], unexpected),
        (alert, &[], unexpected),
        (alert, &[1], decode),
        (alert, &[1, 0, 0], decode),
        (alert, &[1, 0, 1, 0], decode),
        // Whatever level it says; and one that nobody knows.
        (alert, &[2, 40], None),
        (alert, &[1, 40], None),
        (alert, &[1, 250], None),
        (handshake, &[], unexpected),
        (handshake, &[24, 0, 0, 0], decode),
        (handshake, &[24, 0, 0, 2, 0, 0], decode),
        (handshake, &[24, 1, 0, 1, 0], decode),
        (handshake, &[24, 0, 0, 1, 2], illegal),
        (handshake, &[24, 0, 0, 1, 0, 24, 0, 0, 1, 0], unexpected),
        (handshake, &[24, 0, 0, 1, 0, 4], unexpected),
        (handshake, &[1, 0, 0, 0], unexpected),
        (handshake, &[13, 0, 0, 3, 0, 0, 0], unexpected),
        (handshake, &[20], unexpected),
        // From whoever dialled.
        (handshake, &[4, 0, 0, 0], unexpected),
    ] {
        let (mut near, mut far) = two().await;
        send(&mut near, typ, payload).await;
        let error = far.read_u8().await.unwrap_err();
        let what = format!("{typ:?} {payload:?}");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{what}");
        let write = far.write_all(b"more").await.unwrap_err();
        assert_eq!(write.kind(), io::ErrorKind::BrokenPipe, "{what}");
        far.shutdown().await.unwrap();
        let error = near.read_u8().await.unwrap_err();
        match told_back {
            Some(alert) => assert_eq!(told(&error), alert, "{what}"),
            None => assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{what}"),
        }
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_record_is_as_long_as_it_may_be_and_no_longer() {
    for (data, inner) in [
        (DATA_MAX, DATA_MAX + 1),
        (1, DATA_MAX + 1),
        (1, 2),
        (1, 300),
    ] {
        let (mut near, mut far) = two().await;
        send_padded(&mut near, 0, 23, inner).await;
        send_padded(&mut near, data, 23, inner).await;
        let mut came = vec![0; data];
        far.read_exact(&mut came).await.unwrap();
        assert!(came.iter().all(|byte| *byte == 7));
    }
    for data in [1, DATA_MAX + 1] {
        let (mut near, mut far) = two().await;
        send_padded(&mut near, data, 23, DATA_MAX + 2).await;
        assert!(far.read_u8().await.is_err());
        let error = near.read_u8().await.unwrap_err();
        assert_eq!(told(&error), AlertDescription::RecordOverflow);
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_message_goes_on_in_the_next_record_and_nothing_is_between() {
    let mut ticket = vec![4, 1, 0, 0];
    ticket.resize(4 + (1 << 16), 9);
    let messages = [&ticket[..], &[4, 0, 0, 1, 0], &[24, 0, 0, 1, 0]].concat();
    for piece in [DATA_MAX, 5_000] {
        let (mut dials, mut accepts) = two().await;
        for piece in messages.chunks(piece) {
            send(&mut accepts, ContentType::Handshake, piece).await;
            assert!(poll_read(&mut dials).is_pending());
        }
        next_key(&mut accepts);
        exchange(&mut accepts, &mut dials, b"with the next key").await;
    }
    for cut in 1..5 {
        let (mut near, mut far) = two().await;
        let (first, second) = messages[messages.len() - 5..].split_at(cut);
        send(&mut near, ContentType::Handshake, first).await;
        send(&mut near, ContentType::Handshake, second).await;
        next_key(&mut near);
        exchange(&mut near, &mut far, b"with the next key").await;

        for (typ, payload) in [
            (ContentType::ApplicationData, &b"x"[..]),
            (ContentType::Alert, &[1, 0]),
        ] {
            let (mut near, mut far) = two().await;
            send(&mut near, ContentType::Handshake, first).await;
            send(&mut near, typ, payload).await;
            assert!(far.read_u8().await.is_err());
            let error = near.read_u8().await.unwrap_err();
            assert_eq!(told(&error), AlertDescription::UnexpectedMessage);
        }
    }
}

fn poll_read(records: &mut Records<DuplexStream>) -> Poll<io::Result<()>> {
    let mut bytes = [0; 100];
    let mut cx = Context::from_waker(Waker::noop());
    Pin::new(records).poll_read(&mut cx, &mut ReadBuf::new(&mut bytes))
}

#[tokio::test(flavor = "current_thread")]
async fn the_old_key_is_refused_behind_a_new_one() {
    let (mut near, mut far) = two().await;
    send(&mut near, ContentType::Handshake, &KEY_UPDATE).await;
    send(&mut near, ContentType::ApplicationData, b"x").await;
    assert!(far.read_u8().await.is_err());
    let error = near.read_u8().await.unwrap_err();
    assert_eq!(told(&error), AlertDescription::BadRecordMac);
}

#[tokio::test(flavor = "current_thread")]
async fn new_keys_right_behind_the_handshake_are_used() {
    let (near, far) = duplex(1 << 16);
    let (client_config, server_config) = configs();
    let end = UnbufferedServerConnection::new(server_config).unwrap();
    let mut ours = Handshake::new(near, end);
    let dial = async {
        let connector = TlsConnector::from(client_config);
        let mut theirs = connector
            .connect("node".try_into().unwrap(), far)
            .await
            .unwrap();
        theirs.get_mut().1.refresh_traffic_keys().unwrap();
        theirs.write_all(b"with the next key").await.unwrap();
        theirs.flush().await.unwrap();
        theirs
    };
    let (done, mut theirs) = tokio::join!(ours.complete(), dial);
    done.unwrap();
    assert!(
        ours.has_more(),
        "all of it came with the end of the handshake"
    );
    let mut ours = ours.into_records().unwrap();
    let mut came = [0; 17];
    ours.read_exact(&mut came).await.unwrap();
    assert_eq!(&came, b"with the next key");
    exchange(&mut ours, &mut theirs, b"and so is the answer").await;
}

#[tokio::test(flavor = "current_thread")]
async fn what_is_wrong_with_a_handshake_is_told_once() {
    for bytes in [
        &b"\x16\x07\x01\x00\x04\x01\x00\x00\x00"[..],
        b"\x16\x03\x01\x00\x04\x02\x00\x00\x00",
        b"\x17\x03\x03\xff\xff",
    ] {
        let (near, mut far) = duplex(1 << 16);
        let end = UnbufferedServerConnection::new(configs().1).unwrap();
        let mut handshake = Handshake::new(near, end);
        far.write_all(bytes).await.unwrap();
        let error = handshake.complete().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        drop(handshake);
        let mut told = Vec::new();
        far.read_to_end(&mut told).await.unwrap();
        assert_eq!(told[..6], [21, 3, 3, 0, 2, 2]);
        assert_eq!(told.len(), 7);
    }
}

#[tokio::test(flavor = "current_thread")]
async fn many_requests_for_a_new_key_have_one_answer() {
    let (mut near, mut far) = two().await;
    for _ in 0..100 {
        send(&mut near, ContentType::Handshake, &[24, 0, 0, 1, 1]).await;
        next_key(&mut near);
        exchange(&mut near, &mut far, b"x").await;
    }
    assert!(far.outgoing.is_empty());
    far.seal_data(&[b"x"]).unwrap();
    assert_eq!(far.outgoing.len(), 2, "the new key, and what is behind it");
    poll_fn(|cx| far.poll_drain(cx)).await.unwrap();
    assert_eq!(near.read_u8().await.unwrap(), b'x');
}

#[tokio::test(flavor = "current_thread")]
async fn what_a_peer_does_not_read_is_bounded() {
    let (mut near, mut far) = two().await;
    let data = data();
    let mut written = 0;
    let mut cx = Context::from_waker(Waker::noop());
    for at in 0..200 {
        far.key_lasts = at % 5;
        send(&mut near, ContentType::Handshake, &[24, 0, 0, 1, 1]).await;
        next_key(&mut near);
        exchange(&mut near, &mut far, b"x").await;
        if let Poll::Ready(count) = Pin::new(&mut far).poll_write(&mut cx, &data) {
            written += count.unwrap();
        }
        assert!(far.outgoing.len() <= BURST + 1);
    }
    // What was taken of it arrives.
    far.key_lasts = u64::MAX;
    let mut came = vec![0; written];
    let (flushed, read) = tokio::join!(far.flush(), near.read_exact(&mut came));
    flushed.unwrap();
    read.unwrap();
    assert!(far.outgoing.is_empty());
}

#[tokio::test(flavor = "current_thread")]
async fn what_comes_behind_a_goodbye_is_not_read() {
    let (mut near, mut far) = two().await;
    send(&mut near, ContentType::ApplicationData, b"before").await;
    send(&mut near, ContentType::Alert, &[1, 90]).await;
    send(&mut near, ContentType::Alert, &[1, 0]).await;
    send(&mut near, ContentType::ApplicationData, b"behind").await;
    let mut came = Vec::new();
    far.read_to_end(&mut came).await.unwrap();
    assert_eq!(came, b"before");
    assert_eq!(far.read(&mut [0]).await.unwrap(), 0);
    // The other direction goes on until this end says so, too.
    exchange(&mut far, &mut near, b"answer").await;
    far.shutdown().await.unwrap();
    far.shutdown().await.unwrap();
    assert_eq!(near.read(&mut [0]).await.unwrap(), 0);
    let error = far.write_all(b"x").await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
}

#[tokio::test(flavor = "current_thread")]
async fn what_is_cut_off_is_no_end() {
    for cut in [0, 3, 5, 20] {
        let (mut near, mut far) = two().await;
        send(&mut near, ContentType::ApplicationData, b"before").await;
        near.seal(ContentType::Alert, OutboundChunks::Single(&[1, 0]))
            .unwrap();
        let record = near.outgoing.pop_front().unwrap();
        near.stream.write_all(&record[..cut]).await.unwrap();
        drop(near);
        let mut came = Vec::new();
        let error = far.read_to_end(&mut came).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(came, b"before");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn no_number_comes_twice_under_a_key() {
    let (mut near, mut far) = two().await;
    far.next_in = u64::MAX;
    let message = OutboundPlainMessage {
        typ: ContentType::ApplicationData,
        version: ProtocolVersion::TLSv1_2,
        payload: OutboundChunks::Single(b"x"),
    };
    let record = near.encrypter.encrypt(message, u64::MAX).unwrap().encode();
    near.stream.write_all(&record).await.unwrap();
    assert!(far.read_u8().await.is_err());

    // Every key is changed well before the cipher's limit, and that of the shortest is 2^24.5 records (RFC 8446, 5.5).
    assert!(near.key_lasts <= u64::MAX / 2);
    for suite in rustls::crypto::ring::ALL_CIPHER_SUITES {
        if let Some(suite) = suite.tls13() {
            let gcm = suite.common.suite != CipherSuite::TLS13_CHACHA20_POLY1305_SHA256;
            assert!(!gcm || suite.common.confidentiality_limit <= 1 << 24);
        }
    }
}

#[tokio::test(flavor = "current_thread")]
async fn empty_pieces_are_not_an_end() {
    let (mut near, mut far) = two().await;
    let mut pieces = vec![IoSlice::new(&[]); 2 * PIECES];
    pieces.push(IoSlice::new(b"x"));
    assert_eq!(near.write_vectored(&pieces).await.unwrap(), 1);
    assert_eq!(near.write(b"").await.unwrap(), 0);
    assert_eq!(far.read_u8().await.unwrap(), b'x');
}

/// Somebody between the two ends can cut a connection off, and no more.
#[tokio::test(flavor = "current_thread")]
async fn what_was_changed_on_the_way_is_not_read() {
    let data = data();
    for seed in 0..300 {
        let mut random = fastrand::Rng::with_seed(seed);
        let (mut near, mut far) = two().await;
        let data = &data[..random.usize(1..30_000)];
        let mut rest = data;
        while !rest.is_empty() && near.outgoing.len() < BURST {
            let (now, later) = rest.split_at(random.usize(1..=rest.len()));
            near.seal_data(&[now]).unwrap();
            rest = later;
        }
        near.seal_alert(AlertDescription::CloseNotify).unwrap();
        let mut records: Vec<Vec<u8>> = near.outgoing.drain(..).collect();
        let whole = records.concat();
        let at = random.usize(..records.len());
        let other = random.usize(..records.len());
        match random.u8(..5) {
            0 => {
                let byte = random.choice(&mut records[at]).unwrap();
                *byte ^= 1 << random.u8(..8);
            }
            1 => {
                let byte = random.choice(&mut records[at][..HEADER]).unwrap();
                *byte ^= 1 << random.u8(..8);
            }
            2 => drop(records.remove(at)),
            3 => records.insert(at, records[other].clone()),
            _ => records.swap(at, other),
        }
        let sent = records.concat();
        near.stream.write_all(&sent).await.unwrap();
        drop(near);
        let mut came = Vec::new();
        let end = far.read_to_end(&mut came).await;
        assert!(data.starts_with(&came), "seed {seed}");
        // What is repeated behind the end is not looked at.
        let same = sent.starts_with(&whole);
        assert_eq!(end.is_ok(), same, "seed {seed}");
    }
}
