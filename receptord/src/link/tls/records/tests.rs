//! What goes over a connection, with rustls' own at the other end and with one of ours that misbehaves.

use std::future::poll_fn;
use std::sync::Arc;

use bytes::BytesMut;
use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
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
        (sealed(20_000), AlertDescription::RecordOverflow),
        (vec![22, 3, 3, 0, 1, 0], AlertDescription::UnexpectedMessage),
        (
            vec![21, 3, 3, 0, 2, 2, 0],
            AlertDescription::UnexpectedMessage,
        ),
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

#[tokio::test(flavor = "current_thread")]
async fn who_sends_nothing_in_many_records_is_refused() {
    for (typ, payload) in [
        (ContentType::ApplicationData, &b""[..]),
        (ContentType::Alert, &[1, 90]),
        (ContentType::Handshake, &[4, 0, 0, 0]),
    ] {
        let (mut near, mut far) = two().await;
        for _ in 0..EMPTY_MAX {
            send(&mut near, typ, payload).await;
        }
        exchange(&mut near, &mut far, b"x").await;
        for _ in 0..=EMPTY_MAX {
            send(&mut near, typ, payload).await;
        }
        let error = far.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{typ:?}");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn only_alerts_and_new_keys_come_beside_data() {
    for (typ, payload) in [
        (ContentType::Heartbeat, &[1][..]),
        (ContentType::Alert, &[1]),
        (ContentType::Alert, &[2, 40]),
        (ContentType::Handshake, &[24, 0, 0, 1]),
        (ContentType::Handshake, &[24, 0, 0, 1, 2]),
        (ContentType::Handshake, &[24, 0, 0, 1, 0, 24, 0, 0, 1, 0]),
        (ContentType::Handshake, &[1, 0, 0, 0]),
        (ContentType::Handshake, &[4, 0, 0]),
    ] {
        let (mut near, mut far) = two().await;
        send(&mut near, typ, payload).await;
        let error = far.read_u8().await.unwrap_err();
        assert_eq!(
            error.kind(),
            io::ErrorKind::InvalidData,
            "{typ:?} {payload:?}"
        );
    }
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
        let mut records: Vec<Vec<u8>> = near.outgoing.drain(..).collect();
        let at = random.usize(..records.len());
        let other = random.usize(..records.len());
        match random.u8(..4) {
            0 => {
                let byte = random.choice(&mut records[at]).unwrap();
                *byte ^= 1 << random.u8(..8);
            }
            1 => drop(records.remove(at)),
            2 => records.insert(at, records[other].clone()),
            _ => records.swap(at, other),
        }
        near.stream.write_all(&records.concat()).await.unwrap();
        drop(near);
        let mut came = Vec::new();
        let end = far.read_to_end(&mut came).await;
        assert!(data.starts_with(&came), "seed {seed}");
        assert!(
            end.is_err(),
            "seed {seed}: nobody has said that this is all"
        );
    }
}
