//! Strangers at a listener with TLS: whatever they send or do not send, those who belong are served.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Instant;

use receptor_tests::traffic::peak_kib;
use receptor_tests::{DEADLINE, Daemon, Mesh, wait_for};

use receptor_tests::authority::Authority;
use receptor_tests::by_hand::hello;

/// Memory that a daemon may have used at most, whatever strangers did.
const PEAK_KIB: u64 = 64 * 1024;
/// Connections of one address that may be without a hello at once.
const OPENING_PER_SOURCE: usize = 64;

fn rig(mesh: &Mesh) -> (Authority, Daemon, Daemon) {
    let authority = Authority::new(&mesh.dir().join("ca"));
    // Of what anybody can cause, only one line in ten seconds is worth a warning.
    let a = authority.equip(mesh.node("a"), "a");
    let a = a.arg("--log-level").arg("debug").start();
    let b = authority.equip(mesh.node("b"), "b").peer(&a).start();
    b.wait_ping("a");
    (authority, a, b)
}

fn check(a: &Daemon, b: &Daemon) {
    assert_eq!(b.control().json("ping a")["Success"], true);
    assert_eq!(a.log().matches("neighbor down").count(), 0, "{}", a.log());
    let peak = peak_kib(a.pid());
    assert!(peak < PEAK_KIB, "{peak} KiB");
}

fn connect(a: &Daemon) -> TcpStream {
    let stream = TcpStream::connect(a.address()).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

#[test]
fn junk_and_silence_end_in_time() {
    let mesh = Mesh::new();
    let (authority, a, b) = rig(&mesh);
    let began = Instant::now();
    // The beginning of a handshake as it is on the wire, and where it may stop.
    let mut client = rustls::ClientConnection::new(
        authority.configs("x").client,
        "any.example".try_into().unwrap(),
    )
    .unwrap();
    let mut start = Vec::new();
    client.write_tls(&mut start).unwrap();
    let cases = [
        Vec::new(),
        vec![0x16],
        start[..start.len() / 2].to_vec(),
        start,
        hello((1, 1), b"b"),
        vec![0; 100_000],
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
    ];
    let mut streams: Vec<TcpStream> = Vec::new();
    for bytes in &cases {
        let mut stream = connect(&a);
        // The daemon may have closed before the end.
        let _ = stream.write_all(bytes);
        streams.push(stream);
    }
    for mut stream in streams {
        let mut heard = Vec::new();
        let _ = stream.read_to_end(&mut heard);
    }
    // All at the same time, each within the one deadline for all that comes before the hello.
    assert!(began.elapsed() < DEADLINE, "{:?}", began.elapsed());
    a.wait_log("the connection was not ready in time");
    // TLS is well, and then a byte a time, or nothing: the same deadline.
    let mut slow = authority.dial("slow", &a.address());
    slow.write_all(&hello((1, 1), b"slow")[..20]).unwrap();
    let mut heard = Vec::new();
    let _ = slow.read_to_end(&mut heard);
    let heard = String::from_utf8_lossy(&heard);
    assert!(heard.contains("hello-timeout"), "{heard:?}");
    check(&a, &b);
}

#[test]
fn a_byte_a_time_does_not_buy_time() {
    let mesh = Mesh::new();
    let (authority, a, b) = rig(&mesh);
    let mut client = rustls::ClientConnection::new(
        authority.configs("x").client,
        "any.example".try_into().unwrap(),
    )
    .unwrap();
    let mut start = Vec::new();
    client.write_tls(&mut start).unwrap();
    let mut stream = connect(&a);
    stream.set_nonblocking(true).unwrap();
    let mut bytes = start.iter().cycle();
    let mut sent = Instant::now();
    // Every byte is new hope, and all the hope is in vain.
    wait_for("the end of the connection", || {
        if sent.elapsed().as_millis() >= 100 {
            sent = Instant::now();
            let byte = [*bytes.next()?];
            if stream.write_all(&byte).is_err() {
                return Some(());
            }
        }
        match stream.read(&mut [0; 1024]) {
            Ok(0) => Some(()),
            Ok(_) => None,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => None,
            Err(_) => Some(()),
        }
    });
    check(&a, &b);
}

#[test]
fn a_flood_from_one_address_leaves_room_for_others() {
    let mesh = Mesh::new();
    let (authority, a, b) = rig(&mesh);
    // Connections that say nothing: more than one address may have are closed at once.
    let mut flood: Vec<TcpStream> = (0..3 * OPENING_PER_SOURCE).map(|_| connect(&a)).collect();
    let closed = |stream: &mut TcpStream| {
        stream.set_nonblocking(true).unwrap();
        match stream.read(&mut [0; 16]) {
            Ok(0) => true,
            Ok(_) => false,
            Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
        }
    };
    wait_for("the end of what is too much", || {
        let ended = flood
            .iter_mut()
            .filter_map(|stream| closed(stream).then_some(()));
        (ended.count() >= 2 * OPENING_PER_SOURCE).then_some(())
    });
    a.wait_log("too many connections without a hello from one address");
    // While the rest of them stands, another address is let in.
    let listener_port = a.address().rsplit_once(':').unwrap().1.to_owned();
    let other = socket_from([127, 0, 0, 2], &listener_port);
    let mut other = authority.dial_over("c", other);
    other.write_all(&hello((1, 1), b"c")).unwrap();
    let mut first = [0; 5];
    other.read_exact(&mut first).unwrap();
    assert_eq!(first[4], 1, "a hello");
    drop(flood);
    // And the address itself, once it has stopped.
    let c = authority.equip(mesh.node("d"), "d").peer(&a).start();
    c.wait_ping("a");
    check(&a, &b);
}

/// A connection from another address of loopback.
fn socket_from(ip: [u8; 4], port: &str) -> TcpStream {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, socket};
    use std::os::fd::AsRawFd as _;

    let socket = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::empty(),
        None,
    )
    .unwrap();
    let [a, b, c, d] = ip;
    bind(socket.as_raw_fd(), &SockaddrIn::new(a, b, c, d, 0)).unwrap();
    let to = SockaddrIn::new(127, 0, 0, 1, port.parse().unwrap());
    connect(socket.as_raw_fd(), &to).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

#[test]
fn handshakes_again_and_again_stop_nobody() {
    let mesh = Mesh::new();
    let (authority, a, b) = rig(&mesh);
    for round in 0..50 {
        let mut stream = authority.dial("x", &a.address());
        // With and without a word, and with another name than the certificate's.
        if round % 2 == 0 {
            let _ = stream.write_all(&hello((1, 1), b"y"));
            let mut heard = Vec::new();
            let _ = stream.read_to_end(&mut heard);
        } else {
            let _ = stream.flush();
        }
    }
    check(&a, &b);
}
