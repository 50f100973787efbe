//! Neighbors of another version: links that an earlier one has spoken, and a mesh of two versions.
//!
//! `tests/golden-links/NAME` is one link as the programs of an earlier version spoke it: what the node `x`
//! that dialled wrote, and what the node `a` that listened wrote. Over it went a ping, requests in both directions, small ones
//! and one in segments, and their responses. When the protocol of links changes, the programs before the change leave one by
//!
//! ```text
//! RECEPTOR_PREVIOUS=DIRECTORY RECEPTOR_GOLDEN=NAME cargo test -p receptor-tests --test skew
//! ```
//!
//! A mesh of two versions takes the programs themselves: `make test-skew PREVIOUS=DIRECTORY`. Where no `RECEPTOR_PREVIOUS` says where
//! they are, this version takes their place.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use bytes::{Bytes, BytesMut};
use receptor_proto::frame::{Frame, MAX_FRAME_FLOOR};
use receptor_proto::packet::{Body, Message, MessageKind, Packet};
use receptor_tests::authority::Authority;
use receptor_tests::relay::Relay;
use receptor_tests::{DEADLINE, Daemon, Mesh, Node, program, wait_for};
use serde_json::{Value, json};

/// A payload in segments.
const SIZE: usize = 70_001;
/// No link ends because a busy machine was silent.
const PATIENT: &str = "[link]\nhold-time = \"1m\"\n";

fn previous(name: &str) -> PathBuf {
    match std::env::var_os("RECEPTOR_PREVIOUS") {
        Some(dir) => {
            let program = Path::new(&dir).join(name);
            assert!(program.is_absolute(), "{} is relative", program.display());
            program
        }
        None => program(name),
    }
}

/// A node of that version, with that version's plugin.
fn earlier(mesh: &Mesh, node: Node) -> Node {
    let plugins = mesh.dir().join("earlier");
    if !plugins.exists() {
        fs::create_dir(&plugins).unwrap();
        fs::copy(previous("echo"), plugins.join("echo")).unwrap();
    }
    node.program(&previous("receptord"))
        .config("[plugins]\nallow-unsafe = true\n")
        .arg("--plugins-dir")
        .arg(plugins.to_str().unwrap())
}

fn payload() -> Vec<u8> {
    let bytes = (0..SIZE).map(|at| u8::try_from(at % 251).unwrap());
    bytes.collect()
}

/// Sends one small and one large message, and takes their answers.
fn exchange(from: &Daemon, to: &str) {
    let mut control = from.control();
    for id in [begin(from, to, false), begin(from, to, true)] {
        let results = json!({"command": "results", "id": id, "follow": true});
        let mut reply = control.json(&results.to_string());
        loop {
            if let Some(size) = reply["size"].as_u64() {
                assert!(control.raw(usize::try_from(size).unwrap()) == payload());
            } else if !reply["data"].is_null() {
                assert_eq!(reply["data"], json!({"from": from.name()}));
            }
            if reply["eof"] == true {
                assert_eq!(reply["code"], 0, "{reply}");
                break;
            }
            reply = control.reply();
        }
    }
}

/// Sends one message, and gives its id when it is accepted.
fn begin(from: &Daemon, to: &str, large: bool) -> Value {
    let mut command = json!({
        "command": "send", "recipient": to, "detach": true, "wait": true, "directive": "echo:echo",
        "payload": {"from": from.name()},
    });
    if large {
        command = json!({
            "command": "send", "recipient": to, "detach": true, "wait": true, "directive": "echo:bytes", "size": SIZE,
        });
    }
    let mut control = from.control();
    control.write(format!("{command}\n"));
    if large {
        control.write(payload());
    }
    let reply = control.reply();
    assert_eq!(reply["type"], "accepted", "{reply}");
    reply["id"].clone()
}

// A link that was recorded.

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden-links")
}

/// Records one.
fn record(name: &str) {
    let mesh = Mesh::new();
    let node = |name| earlier(&mesh, mesh.node(name).config(PATIENT));
    let a = node("a").start();
    let relay = Relay::to(&a.address());
    relay.listen_in();
    let mut x = node("x").quiet().peer_url(&relay.url()).start();
    x.wait_ping("a");
    exchange(&x, "a");
    exchange(&a, "x");
    wait_for("nothing to be under way", || {
        let quiet = |node: &Daemon| {
            let status = node.control().json("status");
            status["receptor"]["spool"]["entries"] == 0
        };
        (quiet(&a) && quiet(&x)).then_some(())
    });
    x.stop();
    let dir = golden().join(name);
    fs::create_dir_all(&dir).unwrap();
    for (file, heard) in ["x", "a"].into_iter().zip(relay.heard()) {
        fs::write(dir.join(file), heard).unwrap();
    }
}

/// The frames in these bytes, each as it was written and as it is understood.
fn frames(bytes: &[u8]) -> Vec<(Vec<u8>, Frame)> {
    let mut input = BytesMut::from(bytes);
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(frame) = Frame::split(&mut input, MAX_FRAME_FLOOR).unwrap() {
        let end = bytes.len() - input.len();
        found.push((bytes[at..end].to_vec(), Frame::decode(frame).unwrap()));
        at = end;
    }
    assert!(input.is_empty(), "half a frame");
    found
}

/// What a frame is, and of a packet what it carries.
fn kind(frame: &Frame) -> String {
    let word = |shown: String| {
        let end = shown.find(|c: char| !c.is_alphanumeric());
        shown[..end.unwrap_or(shown.len())].to_owned()
    };
    let Frame::Packet(packet) = frame else {
        return word(format!("{frame:?}"));
    };
    let body = body(packet);
    if let Body::Message(Message { kind, .. }) = &body {
        return word(format!("{kind:?}"));
    }
    word(format!("{body:?}"))
}

fn body(packet: &Packet) -> Body {
    Body::decode(packet.kind, packet.body.clone()).unwrap()
}

/// The other end of a link of a real daemon: says what was recorded, and hears what is answered.
struct Ghost {
    stream: TcpStream,
    input: BytesMut,
    heard: Vec<Frame>,
}

impl Ghost {
    fn new(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        Self {
            stream,
            input: BytesMut::new(),
            heard: Vec::new(),
        }
    }

    /// Takes frames until what was heard is enough.
    fn hear(&mut self, enough: impl Fn(&[Frame]) -> bool) {
        let mut buffer = vec![0; 1 << 16];
        while !enough(&self.heard) {
            let count = self.stream.read(&mut buffer).unwrap();
            let heard = || self.heard.iter().map(kind).collect::<Vec<_>>();
            assert!(count > 0, "the link ended after {:?}", heard());
            self.input.extend_from_slice(&buffer[..count]);
            while let Some(frame) = Frame::split(&mut self.input, MAX_FRAME_FLOOR).unwrap() {
                self.heard.push(Frame::decode(frame).unwrap());
            }
        }
    }

    /// The hellos, then all that was said of routes, and when this node is reachable the requests, one after the other: with the
    /// next one, or with a response, its origin could say that it waits for none before it.
    fn say(&mut self, recorded: &[(Vec<u8>, Frame)], wait_reachable: impl FnOnce()) {
        self.stream.write_all(&recorded[0].0).unwrap();
        self.hear(|heard| matches!(heard, [Frame::Hello(_), ..]));
        let mut packets = Vec::new();
        for (bytes, frame) in &recorded[1..] {
            if let Frame::Packet(packet) = frame {
                packets.push((bytes, body(packet)));
            } else if !matches!(frame, Frame::Goodbye(_)) {
                self.stream.write_all(bytes).unwrap();
            }
        }
        wait_reachable();
        let mut request = None;
        for (bytes, body) in packets {
            if let Body::Message(message) = &body {
                let is_request = matches!(message.kind, MessageKind::Request { .. });
                request = is_request.then_some((message.epoch, message.seq));
            }
            let Some((epoch, seq, left)) = place(&body) else {
                self.stream.write_all(bytes).unwrap();
                continue;
            };
            if request == Some((epoch, seq)) {
                self.stream.write_all(bytes).unwrap();
                if left == 0 {
                    self.hear(|heard| heard.iter().any(|frame| has(frame, epoch, seq)));
                }
            }
        }
    }
}

/// The epoch and sequence of the message that this belongs to, and how many of its bytes follow.
fn place(body: &Body) -> Option<(u64, u64, u64)> {
    if let Body::Message(message) = body {
        let left = if message.is_segmented() {
            message.size
        } else {
            0
        };
        return Some((message.epoch, message.seq, left));
    }
    let Body::Segment(segment) = body else {
        return None;
    };
    let end = segment.offset + segment.piece.bytes.len() as u64;
    Some((segment.epoch, segment.seq, SIZE as u64 - end))
}

/// Whether this is a receipt for that message.
fn has(frame: &Frame, epoch: u64, seq: u64) -> bool {
    let Frame::Packet(packet) = frame else {
        return false;
    };
    let Body::Receipt(receipt) = body(packet) else {
        return false;
    };
    let mut runs = receipt.received.iter();
    receipt.epoch == epoch && runs.any(|(first, last)| (*first..=*last).contains(&seq))
}

/// All bytes of responses that came: small ones, and segments in order.
fn answered(heard: &[Frame]) -> (Vec<Bytes>, usize) {
    let (mut small, mut large) = (Vec::new(), 0);
    for frame in heard {
        let Frame::Packet(packet) = frame else {
            continue;
        };
        let body = body(packet);
        if let Body::Segment(segment) = &body {
            large += segment.piece.bytes.len();
        } else if let Body::Message(message) = body
            && matches!(message.kind, MessageKind::Response { .. })
        {
            small.push(message.body);
        }
    }
    (small, large)
}

#[test]
fn a_link_that_an_earlier_version_spoke_is_understood_and_answered() {
    if let Ok(name) = std::env::var("RECEPTOR_GOLDEN") {
        record(&name);
    }
    let mut links = 0;
    for link in fs::read_dir(golden()).unwrap() {
        links += 1;
        let link = link.unwrap().path();
        let [x, a] = ["x", "a"].map(|name| frames(&fs::read(link.join(name)).unwrap()));
        let kinds = |recorded: &[(Vec<u8>, Frame)]| -> BTreeSet<String> {
            recorded.iter().map(|(_, frame)| kind(frame)).collect()
        };
        assert!(!kinds(&x).contains("Unknown") && !kinds(&a).contains("Unknown"));

        // The earlier version dials.
        let mesh = Mesh::new();
        let listener = mesh.node("a").config(PATIENT).start();
        let mut ghost = Ghost::new(TcpStream::connect(listener.address()).unwrap());
        ghost.say(&x, || listener.wait_reachable("x"));
        ghost.hear(|heard| {
            let kinds: BTreeSet<_> = heard.iter().map(kind).collect();
            let expected = [
                "Digest",
                "Lsas",
                "LsaAck",
                "EchoReply",
                "Receipt",
                "Response",
            ];
            let (small, large) = answered(heard);
            expected.iter().all(|kind| kinds.contains(*kind))
                && small.iter().any(|body| body == r#"{"from":"x"}"#)
                && large >= SIZE
        });
        let works = listener.control().json(r#"{"command":"works"}"#);
        let works = works["works"].as_array().unwrap().clone();
        let ran = |directive: &str| {
            let here = works
                .iter()
                .filter(|work| work["role"] == "here" && work["directive"] == directive);
            here.count()
        };
        assert_eq!((ran("echo:echo"), ran("echo:bytes")), (1, 1), "{works:?}");
        let goodbye = x.last().unwrap();
        assert!(matches!(goodbye.1, Frame::Goodbye(_)), "{goodbye:?}");
        ghost.stream.write_all(&goodbye.0).unwrap();
        listener.wait_unreachable("x");

        // It listens.
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("rnp://{}", socket.local_addr().unwrap());
        let dialler = mesh
            .node("x")
            .config(PATIENT)
            .quiet()
            .peer_url(&url)
            .start();
        let mut ghost = Ghost::new(socket.accept().unwrap().0);
        ghost.say(&a, || dialler.wait_reachable("a"));
        begin(&dialler, "a", false);
        begin(&dialler, "a", true);
        ghost.hear(|heard| {
            let kinds: BTreeSet<_> = heard.iter().map(kind).collect();
            let expected = ["Digest", "Lsas", "LsaAck", "Request", "Segment", "Receipt"];
            expected.iter().all(|kind| kinds.contains(*kind))
        });
        wait_for("both requests to be run", || {
            let works = dialler.control().json(r#"{"command":"works"}"#);
            let works = works["works"].as_array().unwrap();
            let here = works.iter().filter(|work| work["role"] == "here");
            (here.count() == 2).then_some(())
        });
    }
    assert!(links > 0);
}

// Programs of both.

/// Which nodes of a chain have the earlier version.
fn mixtures() -> Vec<[bool; 3]> {
    if std::env::var_os("RECEPTOR_PREVIOUS").is_none() {
        return vec![[false, true, false]];
    }
    let all = (1..7).map(|bits| [1, 2, 4].map(|bit| bits & bit != 0));
    all.collect()
}

#[test]
fn a_chain_of_two_versions_carries_everything() {
    for mixture in mixtures() {
        for with_tls in [false, true] {
            let mesh = Mesh::new();
            let authority = with_tls.then(|| Authority::new(&mesh.dir().join("ca")));
            let node = |name: &str, is_earlier| {
                let node = mesh.node(name).config(PATIENT);
                let node = match &authority {
                    Some(authority) => authority.equip(node, name),
                    None => node,
                };
                if is_earlier {
                    earlier(&mesh, node)
                } else {
                    node
                }
            };
            let [a, b, c] = mixture;
            let a = node("a", a).start();
            let b = node("b", b).peer(&a).start();
            let c = node("c", c).peer(&b).start();
            a.wait_ping("c");
            c.wait_ping("a");
            for (from, to) in [(&a, "c"), (&c, "a"), (&b, "a"), (&a, "b")] {
                exchange(from, to);
            }
            for daemon in [&a, &b, &c] {
                for receptorctl in [program("receptorctl"), previous("receptorctl")] {
                    let mut command = Command::new(receptorctl);
                    command.arg("--socket-path").arg(daemon.socket_path());
                    let status = command.args(["--json", "status"]).output().unwrap();
                    assert!(status.status.success(), "{mixture:?} {status:?}");
                }
            }
        }
    }
}

#[test]
fn a_node_goes_on_with_the_messages_of_the_version_before_and_after() {
    let mesh = Mesh::new();
    let mut a = earlier(&mesh, mesh.node("a").config(PATIENT)).start();
    let mut b = mesh.node("b").config(PATIENT).peer(&a).start();
    b.wait_ping("a");
    a.wait_ping("b");
    b.stop();
    let mut waiting = Vec::new();
    // An upgrade, and a downgrade.
    for program in [program("receptord"), previous("receptord")] {
        for large in [false, true] {
            waiting.push((begin(&a, "b", large), large));
        }
        a.stop();
        a.becomes(&program);
        a.restart();
    }
    b.restart();
    for (id, large) in waiting {
        let mut control = a.control();
        let results = json!({"command": "results", "id": id, "follow": true});
        let reply = control.json(&results.to_string());
        if large {
            assert_eq!(reply["size"], SIZE, "{reply}");
            assert!(control.raw(SIZE) == payload());
        } else {
            assert_eq!(reply["data"], json!({"from": "a"}), "{reply}");
        }
    }
}
