//! Web sockets: with and without TLS, through proxies, and for those who only look like nodes.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;

use receptor_tests::{DEADLINE, Daemon, Mesh, wait_for};

use crate::mesh::link_to;
use receptor_tests::authority::Authority;
use receptor_tests::by_hand::hello;

#[test]
fn a_mesh_over_web_sockets_carries_everything() {
    let mesh = Mesh::new();
    let authority = Authority::new(&mesh.dir().join("ca"));
    let a = authority.equip(mesh.node("a"), "a");
    let a = a.listen("wss://127.0.0.1:0/mesh/one").start();
    assert!(a.url().ends_with("/mesh/one"), "{}", a.url());
    let b = mesh.node("b").listen("ws://[::1]:0");
    authority.give("b", 2, receptor_tests::authority::VALID);
    let b = b.config(&authority.table("b")).peer(&a).start();
    authority.give("c", 3, receptor_tests::authority::VALID);
    let c = mesh.node("c").quiet().config(&authority.table("c"));
    let c = c.peer(&b).start();
    c.wait_ping("a");
    a.wait_ping("c");
    assert!(link_to(&b, "a").unwrap()["certificate_expires"].is_u64());
    assert!(link_to(&b, "c").unwrap()["certificate_expires"].is_null());
    // More than one message holds, through both kinds.
    let payload = vec![b'x'; 3_000_000];
    let mut control = c.control();
    control.write(format!(
        "{{\"command\":\"send\",\"recipient\":\"a\",\"directive\":\"nobody:there\",\"size\":{}}}\n",
        payload.len()
    ));
    control.write(&payload);
    wait_for("an answer from a", || {
        let reply = control.reply();
        reply.to_string().contains("no-such-plugin").then_some(())
    });
}

/// One request to a listener, and what comes back.
fn ask(daemon: &Daemon, path: &str, headers: &str) -> (String, BufReader<TcpStream>) {
    let mut stream = TcpStream::connect(daemon.address()).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{headers}\r\n"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut stream = BufReader::new(stream);
    let mut status = String::new();
    let _ = stream.read_line(&mut status);
    (status, stream)
}

/// A frame of a client.
fn frame(kind: u8, bytes: &[u8]) -> Vec<u8> {
    let length = u8::try_from(bytes.len()).unwrap();
    assert!(length < 126);
    // With a mask of zeros.
    [&[0x80 | kind, 0x80 | length, 0, 0, 0, 0], bytes].concat()
}

#[test]
fn who_only_looks_like_a_node_is_sent_away() {
    let mesh = Mesh::new();
    let a = mesh.node("a").listen("ws://127.0.0.1:0/mesh").start();
    let b = mesh.node("b").quiet().peer(&a).start();
    b.wait_ping("a");
    assert!(ask(&a, "/other", "").0.contains("404"));
    let page = "Origin: http://localhost:3000\r\n";
    assert!(ask(&a, "/mesh", page).0.contains("403"));
    let rest = |mut stream: BufReader<TcpStream>| {
        let mut heard = Vec::new();
        let _ = stream.read_to_end(&mut heard);
        String::from_utf8_lossy(&heard).into_owned()
    };
    // A hello by hand, in messages of any size, with pings between them.
    let (status, mut stream) = ask(&a, "/mesh", "");
    assert!(status.contains("101"), "{status}");
    for byte in hello((1, 1), b"by-hand") {
        stream.get_mut().write_all(&frame(2, &[byte])).unwrap();
        stream.get_mut().write_all(&frame(9, b"ping")).unwrap();
        stream.get_mut().write_all(&frame(2, &[])).unwrap();
    }
    a.wait_log("peer=by-hand");
    drop(stream);
    // Text, a frame without a mask, one that is too large, and a request without end.
    for bytes in [
        frame(1, b"hello"),
        vec![0x82, 2, 1, 2],
        vec![0x82, 0xff, 0, 0, 0, 0, 0xff, 0, 0, 0, 0, 0, 0, 0],
    ] {
        let (_, mut stream) = ask(&a, "/mesh", "");
        stream.get_mut().write_all(&bytes).unwrap();
        let _ = rest(stream);
    }
    let mut endless = TcpStream::connect(a.address()).unwrap();
    endless.set_read_timeout(Some(DEADLINE)).unwrap();
    let line = b"X-Filler: xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\r\n";
    let _ = endless.write_all(b"GET /mesh HTTP/1.1\r\n");
    while endless.write_all(line).is_ok() {}
    assert_eq!(b.control().json("ping a")["Success"], true);
    assert!(receptor_tests::traffic::peak_kib(a.pid()) < 64 * 1024);
}

/// A proxy: what it is asked for is told, and everything is carried to `target`, if it likes.
fn proxy(target: String, likes: bool) -> (String, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (told, asked) = sync_channel(16);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut near = stream.unwrap();
            let mut request = Vec::new();
            let mut byte = [0];
            while !request.ends_with(b"\r\n\r\n") && near.read(&mut byte).is_ok_and(|n| n == 1) {
                request.push(byte[0]);
            }
            if told.send(String::from_utf8(request).unwrap()).is_err() {
                return;
            }
            if !likes {
                let _ = near.write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n");
                continue;
            }
            let Ok(far) = TcpStream::connect(&target) else {
                continue;
            };
            let _ = near.write_all(b"HTTP/1.0 200 Connection established\r\nVia: test\r\n\r\n");
            let pairs = [
                (near.try_clone().unwrap(), far.try_clone().unwrap()),
                (far, near),
            ];
            for (mut from, mut to) in pairs {
                thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(std::net::Shutdown::Both);
                });
            }
        }
    });
    (address, asked)
}

#[test]
fn a_proxy_of_the_environment_is_the_way_out() {
    let mesh = Mesh::new();
    let authority = Authority::new(&mesh.dir().join("ca"));
    let a = authority.equip(mesh.node("a"), "a");
    let a = a.listen("wss://127.0.0.1:0/mesh").start();
    // A name that only the proxy knows.
    let url = "wss://relay.invalid/mesh";
    let (address, asked) = proxy(a.address(), true);
    let b = authority.equip(mesh.node("b"), "b").peer_url(url);
    let b = b.env("https_proxy", &format!("http://me:p%40ss@{address}"));
    let b = b.start();
    b.wait_ping("a");
    let request = asked.recv_timeout(DEADLINE).unwrap();
    assert!(
        request.starts_with("CONNECT relay.invalid:443 HTTP/1.1\r\nHost: relay.invalid:443\r\n"),
        "{request}"
    );
    // me:p@ss
    assert!(
        request.contains("Proxy-Authorization: Basic bWU6cEBzcw==\r\n"),
        "{request}"
    );
    // One that does not like it, and one that is not meant.
    let (address, _asked) = proxy(a.address(), false);
    let c = authority.equip(mesh.node("c"), "c").peer_url(url);
    let c = c.env("HTTPS_PROXY", &address).start();
    let error = |daemon: &Daemon| {
        let links = daemon.control().json("links");
        links["links"][0]["error"]["message"]
            .as_str()
            .map(str::to_owned)
    };
    let why = wait_for("the reason", || error(&c));
    assert!(
        why.ends_with(
            "makes no connection to relay.invalid:443: HTTP/1.1 407 Proxy Authentication Required"
        ),
        "{why}"
    );
    let d = authority.equip(mesh.node("d"), "d").peer(&a);
    let d = d
        .env("https_proxy", &address)
        .env("no_proxy", "10.0.0.0/8, 127.0.0.0/8");
    d.start().wait_ping("a");
    for daemon in [&b, &c] {
        assert!(!daemon.log().contains("p@ss") && !daemon.log().contains("p%40ss"));
    }
}

#[test]
fn headers_and_path_are_sent_as_they_are_configured() {
    let mesh = Mesh::new();
    let (address, asked) = proxy("127.0.0.1:1".to_owned(), false);
    let b = mesh.node("b").quiet().config(&format!(
        "[[peer]]\nurl = \"ws://{address}/mesh?tenant=7\"\nheaders = {{ X-Tenant = \"seven\", Authorization = \"Bearer canary\" }}\n"
    ));
    let b = b.arg("--log-level").arg("debug").start();
    let request = asked.recv_timeout(DEADLINE).unwrap();
    let (line, rest) = request.split_once("\r\n").unwrap();
    assert_eq!(line, "GET /mesh?tenant=7 HTTP/1.1");
    let rest = rest.to_ascii_lowercase();
    for header in [
        format!("host: {address}\r\n"),
        "x-tenant: seven\r\n".to_owned(),
        "authorization: bearer canary\r\n".to_owned(),
        "upgrade: websocket\r\n".to_owned(),
    ] {
        assert!(rest.contains(&header), "{header} in {rest}");
    }
    let message = wait_for("the reason", || {
        let links = b.control().json("links");
        links["links"][0]["error"]["message"]
            .as_str()
            .map(str::to_owned)
    });
    assert!(
        message.contains("no web socket: the answer is 407"),
        "{message}"
    );
    assert!(!b.log().contains("canary"), "{}", b.log());
}
