//! What no daemon may be hurt by: bytes of strangers on every socket, in every amount.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use receptor_tests::by_hand::{frame, hello};
use receptor_tests::traffic::peak_kib;
use receptor_tests::{Control, DEADLINE, Daemon, Mesh, wait_for};

/// Memory that a daemon may have used at most, whatever strangers did.
const PEAK_KIB: u64 = 64 * 1024;

/// A sequence that looks like noise and is the same every time.
struct Noise(u64);

impl Noise {
    fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut next = || {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0.to_le_bytes()
        };
        let mut bytes: Vec<u8> = std::iter::repeat_with(&mut next)
            .take(count.div_ceil(8))
            .flatten()
            .collect();
        bytes.truncate(count);
        bytes
    }
}

/// Says something to a listener and gives what it answers until it closes; cut off after the
/// deadline.
fn say(mut stream: impl Read + Write, bytes: &[u8]) -> String {
    // The daemon may have closed before the end.
    let _ = stream.write_all(bytes);
    let mut heard = Vec::new();
    let _ = stream.read_to_end(&mut heard);
    String::from_utf8_lossy(&heard).into_owned()
}

/// A node with both kinds of listener, and a neighbor that must never notice anything.
struct Rig {
    a: Daemon,
    b: Daemon,
    unix: std::path::PathBuf,
    _mesh: Mesh,
}

impl Rig {
    fn new() -> Self {
        let mesh = Mesh::new();
        let unix = mesh.dir().join("links");
        let a = mesh
            .node("a")
            .config("[link]\nhold-time = \"1s\"")
            .arg("--listen")
            .arg(&format!("unix://{}", unix.display()))
            .start();
        let b = mesh.node("b").peer(&a).start();
        b.wait_ping("a");
        Self {
            a,
            b,
            unix,
            _mesh: mesh,
        }
    }

    fn tcp(&self) -> TcpStream {
        let stream = TcpStream::connect(self.a.address()).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream
    }

    fn unix(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.unix).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream
    }

    fn control(&self) -> UnixStream {
        let stream = UnixStream::connect(self.a.socket_path()).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream
    }

    /// Everything works as before, and the link to the neighbor is still the first one.
    fn check(&self) {
        let pong = self.b.control().json("ping a");
        assert_eq!(pong["Success"], true, "{pong}");
        let up = self.a.log().matches("neighbor up").count();
        assert_eq!(up, 1, "{}", self.a.log());
        let one = || {
            let links = self.a.control().json("links");
            (links["links"].as_array()?.len() == 1).then_some(())
        };
        wait_for("the end of every other link", one);
        let peak = peak_kib(self.a.pid());
        assert!(peak < PEAK_KIB, "{peak} KiB");
    }
}

#[test]
fn nonsense_is_answered_with_a_goodbye_on_every_listener() {
    let rig = Rig::new();
    let good = hello((1, 1), b"stranger");
    let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
    let cases: [(&str, Vec<u8>); 12] = [
        ("bad-frame", noise.bytes(100_000)),
        ("bad-frame", [&good[..], &noise.bytes(100_000)].concat()),
        ("bad-frame", [&good[..], &[0xff; 16]].concat()),
        ("bad-frame", [&good[..], &[0; 16]].concat()),
        ("bad-frame", [&good[..], &good[..]].concat()),
        ("bad-frame", frame(3, &[7])),
        ("bad-frame", frame(1, &vec![b'r'; 5000])),
        ("unsupported-version", hello((2, 9), b"stranger")),
        ("unsupported-version", hello((0, 0), b"stranger")),
        ("hello-timeout", good[..good.len() / 2].to_vec()),
        ("hello-timeout", vec![0]),
        // A whole hello and half a frame: the silence after it is that of a dead neighbor.
        ("hold-time", [&good[..], &[0, 0, 1, 0, 10]].concat()),
    ];
    for (expected, bytes) in cases {
        for heard in [say(rig.tcp(), &bytes), say(rig.unix(), &bytes)] {
            let head = &bytes[..bytes.len().min(60)];
            assert!(heard.contains(expected), "{expected}: {head:x?}: {heard:?}");
        }
        rig.a.wait_reachable("b");
    }
    let up = rig.a.log().matches("neighbor up").count();
    // Those that said a whole hello were neighbors for a moment, no others.
    assert!((1..=11).contains(&up), "{up}");
    assert_eq!(rig.b.control().json("ping a")["Success"], true);
    let peak = peak_kib(rig.a.pid());
    assert!(peak < PEAK_KIB, "{peak} KiB");
}

#[test]
fn names_that_are_none_are_refused_everywhere() {
    let rig = Rig::new();
    let long = vec![b'x'; 10_000];
    let long_but_short_enough = vec![b'x'; 3000];
    let names: [&[u8]; 12] = [
        b"../../../etc/passwd",
        b"..",
        b".hidden",
        b"-d",
        b"",
        b"a/b",
        b"a\0b",
        b"a\nb",
        b"a b",
        b"\xff\xfe",
        &long,
        &long_but_short_enough,
    ];
    for name in names {
        let heard = say(rig.tcp(), &hello((1, 1), name));
        assert!(heard.contains("bad-frame"), "{name:?}: {heard:?}");
        let heard = say(rig.unix(), &hello((1, 1), name));
        assert!(heard.contains("bad-frame"), "{name:?}: {heard:?}");

        let Ok(name) = std::str::from_utf8(name) else {
            continue;
        };
        let name = serde_json::to_string(name).unwrap();
        let mut control = rig.a.control();
        for command in [
            format!("{{\"command\":\"ping\",\"target\":{name}}}"),
            format!("{{\"command\":\"traceroute\",\"target\":{name}}}"),
        ] {
            let answer = control.text(&command);
            assert!(answer.contains("rror"), "{command}: {answer}");
        }
        let send = format!(
            "{{\"command\":\"send\",\"directive\":\"echo:echo\",\"recipient\":{name},\"payload\":1}}"
        );
        let refused = control.json(&send);
        assert_eq!(refused["error"]["code"], "invalid-request", "{refused}");
        let send = format!(
            "{{\"command\":\"send\",\"directive\":{name},\"recipient\":\"b\",\"payload\":1}}"
        );
        let refused = control.json(&send);
        assert!(refused["error"]["code"].is_string(), "{refused}");
        for command in ["results", "cancel"] {
            let refused = control.text(&format!("{{\"command\":\"{command}\",\"id\":{name}}}"));
            assert!(refused.contains("rror"), "{command}: {refused}");
        }
    }
    rig.check();
    // Nothing of it has become a file.
    let data = rig.a.data_dir();
    for entry in std::fs::read_dir(data.parent().unwrap()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let known = ["control", "data", "log", "receptord.toml", "notify"];
        assert!(known.contains(&&*name), "{name}");
    }
}

#[test]
fn noise_on_every_socket_is_nobodys_trouble() {
    let rig = Rig::new();
    let mut noise = Noise(7);
    for round in 0..60 {
        let bytes = noise.bytes(1 + round * 997 % 40_000);
        // Nobody waits for an answer: most are gone in the middle of it.
        let _ = rig.tcp().write_all(&bytes);
        let _ = rig.unix().write_all(&bytes);
        let _ = rig.control().write_all(&bytes);
        let good = hello((1, 1), format!("noise-{round}").as_bytes());
        let cut = good.len() * round / 60;
        let _ = rig.tcp().write_all(&good[..cut]);
        let line = b"{\"command\":\"status\",\"tag\":1}\n";
        let _ = rig.control().write_all(&line[..line.len() * round / 60]);
    }
    rig.check();
    let clients = || rig.a.control().json("status")["receptor"]["clients"].as_u64();
    wait_for("the clients to be gone", || {
        (clients() == Some(1)).then_some(())
    });
}

#[test]
fn thousands_that_say_nothing_are_sent_away_and_keep_nobody_out_for_long() {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let files = hard.min(8192).max(soft);
    setrlimit(Resource::RLIMIT_NOFILE, files, hard).unwrap();
    let count = usize::try_from(files)
        .unwrap()
        .saturating_sub(500)
        .min(2000);
    let rig = Rig::new();
    let began = Instant::now();
    let mut silent: Vec<_> = (0..count)
        .map(|i| {
            // What the daemon does not take yet, the system holds.
            let socket: Box<dyn Read> = if i % 2 == 0 {
                Box::new(rig.tcp())
            } else {
                Box::new(rig.unix())
            };
            socket
        })
        .collect();
    // While they are there, what stands goes on.
    let pong = rig.b.control().json("ping a");
    assert_eq!(pong["Success"], true, "{pong}");
    assert_eq!(rig.a.control().json("status")["NodeID"], "a");
    for socket in &mut silent {
        let mut rest = Vec::new();
        match socket.read_to_end(&mut rest) {
            Ok(_) => {}
            Err(error) => assert_ne!(error.kind(), ErrorKind::WouldBlock, "it was kept"),
        }
    }
    // The time for a hello, and a moment for so many goodbyes.
    assert!(began.elapsed() < 2 * DEADLINE, "{:?}", began.elapsed());
    rig.check();
    let heard = say(rig.tcp(), &hello((9, 9), b"late"));
    assert!(heard.contains("unsupported-version"), "{heard:?}");
}

#[test]
fn a_control_client_may_send_any_line_and_any_amount() {
    let rig = Rig::new();
    let deep = format!("{{\"command\":{}", "[".repeat(200_000));
    let wide = format!(
        "{{\"command\":\"send\",\"directive\":\"echo:echo\",\"recipient\":\"a\",\"payload\":{}}}",
        "[1,".repeat(300_000)
    );
    let huge = "{\"command\":\"send\",\"directive\":\"echo:echo\",\"recipient\":\"a\",\"size\":18446744073709551615}\n";
    let negative =
        "{\"command\":\"send\",\"directive\":\"echo:echo\",\"recipient\":\"a\",\"size\":-1}\n";
    for line in [
        &deep[..],
        &wide,
        "\0\0\0",
        "{\"command\":\"\\u0000\"}",
        "work submit",
        "connect",
        "{\"command\":null}",
    ] {
        let mut control = rig.a.control();
        control.write(line);
        control.write("\n");
        let answer = control.line();
        assert!(
            answer.to_lowercase().contains("error"),
            "{:.80}: {answer}",
            line
        );
    }
    let mut control = rig.a.control();
    control.write(negative);
    let answer = control.line();
    assert!(answer.to_lowercase().contains("error"), "{answer}");
    // More than any disk has, and then only a little of it: refused, or cut off when it goes.
    let mut control = rig.a.control();
    control.write(huge);
    control.write([b'x'; 1000]);
    control.half_close();
    let answer = control.line();
    assert!(answer.contains("error"), "{answer}");
    let payloads = rig.a.data_dir().join("spool/payloads");
    wait_for("no payload left", || {
        (std::fs::read_dir(&payloads).ok()?.count() == 0).then_some(())
    });
    rig.check();
    assert!(Control::connect(rig.a.socket_path()).is_ok());
}
