//! Inputs to begin with: what the documents and the golden directories of earlier versions show.
//!
//! Owns no bytes of its own where a text that a test holds true has them: a seed changes with the
//! protocol.

use std::fs;
use std::path::{Path, PathBuf};

const LINK: &str = include_str!("../../../receptord/proto/PROTOCOL-link.md");
const PLUGIN: &str = include_str!("../../../receptord/proto/PROTOCOL-plugin.md");
const CONTROL: &str = include_str!("../../../receptord/proto/PROTOCOL-control.md");
const SHIPPED: &[u8] = include_bytes!("../../../packaging/receptord.toml");
/// Files of the golden directories that are longer begin a corpus with nothing new.
const FILE_MAX: usize = 8 << 10;
/// Values with a form of their own, good and nearly good.
const WORDS: [&str; 24] = [
    "rnp://[::1]:8888",
    "rnps://host.example.com",
    "wss://host:443/path",
    "unix:///run/links",
    "host:1",
    "[fe80::1%eth0]:8888",
    ":8888",
    "controller*",
    "a*b?c aXXbYc",
    "runner:execute",
    "node-a",
    "0123456789abcdef0123456789abcdef",
    "01234567",
    "info,receptord::link=debug",
    "1h 30m",
    "200ms",
    "584554531years",
    "10GiB",
    "1.5KiB",
    "18446744073709551615",
    "0660",
    "*",
    "?* a",
    "http://user:secret@host/",
];
/// An instruction to the helper that starts plugins, without its length.
const INSTRUCTION: &[u8] =
    b"program=/p/echo\0dir=/d\0parent=7\0new-privileges=1\0limit=nofile=64\0env=PATH=/bin\0";

/// An order and two pieces of news between the daemon and the process that holds a plugin.
const HOLDER_PACKETS: [&[u8]; 3] = [
    b"\x05\x01\0\0\0\0\0\0\0{}",
    b"\x41\x02\0\0\0\0\0\0\0{\"type\":\"done\"}\n",
    b"\x46\x01\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0{}{}",
];

/// What a peer does behind the handshake: see `tls_records`.
const TLS_RECORDS: [&[u8]; 8] = [
    // Data, new keys, a large record, padding, a goodbye.
    b"\0\x01\0\x05\x02\x01\0\x06\x03\x03\x04\x03\x02\0\0\x01\x09\0",
    b"\x05\x02\x02\x01\0\xff\x02\x01\0\xff\x02\x01\0\xff\x09\0",
    // A ticket and a new key in pieces.
    b"\x02\x03\0\x05\x0a\x0d\x04\0\0\x04good\x18\0\0\x01\x01\0\x05",
    b"\x03\x04\x0a\x08\x04\0\0\x04good\0\x05\x09\0",
    // Records that are changed, repeated, or left out.
    b"\0\x05\0\x05\0\x06\x06\x88\0\x07\x08\0\0\x08\x07\0\0\x01",
    // One of a type that there is not, and one without any keys.
    b"\x01\x06\0\x05\x01\x05\x18hello\x05\x07\x15\x03\x03\0\x02\x02\x28",
    // Too much of nothing.
    b"\0\x07\x0b\x20\0\x01\x0b\x21",
    // Somebody with no keys at all.
    b"\x80\x08\x16\x03\x01\0\x04\x01\0\0\x05\x16\x03\x03\0\x05\x03\x03\0\0\0",
];

/// What a target begins with.
#[must_use]
pub fn seeds(target: &str) -> Vec<Vec<u8>> {
    let texts = |found: Vec<String>| found.into_iter().map(String::into_bytes).collect();
    match target {
        "link_frames" => {
            let frames = frames();
            let all = frames.concat();
            frames.into_iter().chain([all]).collect()
        }
        "packet_body" => packets(),
        "bundle" => vec![
            b"\x01\x011\x02{}".to_vec(),
            b"\x02\x00\x05hello".to_vec(),
            b"\x03\x01\xff".to_vec(),
        ],
        "link_statement" => vec![
            b"\x01\x02\x01b\x01\x00\x05edge1\x0a\x01".to_vec(),
            b"\x02\x06a 0.1\x03\x01\x04site\x06berlin\x01\x04echo\x031.0\x01\x01\x04echo".to_vec(),
        ],
        "neighbor" => neighbor(),
        "disk_record" => records(),
        "spool_directory" => directories(),
        "kept_work" => golden("kept"),
        "command_line" => texts(lines(CONTROL)),
        "plugin_output" => {
            let mut found: Vec<Vec<u8>> = texts(lines(PLUGIN));
            for line in &mut found {
                line.insert(0, 7);
            }
            found.push(b"\x03one\ntwo and more\n\nlast".to_vec());
            found
        }
        "holder_packet" => HOLDER_PACKETS.map(<[u8]>::to_vec).to_vec(),
        "instruction" => vec![INSTRUCTION.to_vec()],
        "config_text" => vec![SHIPPED.to_vec(), values(SHIPPED)],
        "tls_records" => TLS_RECORDS.map(<[u8]>::to_vec).to_vec(),
        "words" => WORDS.map(|word| word.as_bytes().to_vec()).to_vec(),
        other => panic!("{other} has no seeds"),
    }
}

/// The fenced examples of a text with their first words.
fn examples<'a>(text: &'a str, kind: &str) -> Vec<&'a str> {
    let blocks = text.split("\n```").skip(1).step_by(2);
    blocks
        .filter_map(|block| {
            let (head, body) = block.split_once('\n')?;
            head.starts_with(kind).then_some(body)
        })
        .collect()
}

fn frames() -> Vec<Vec<u8>> {
    let hex = |body: &str| {
        let digits: Vec<u8> = body.bytes().filter(u8::is_ascii_hexdigit).collect();
        let pair = |pair: &[u8]| {
            let text = std::str::from_utf8(pair).expect("digits are ASCII");
            u8::from_str_radix(text, 16).expect("two digits")
        };
        digits.chunks(2).map(pair).collect()
    };
    examples(LINK, "hex").into_iter().map(hex).collect()
}

/// Kind and body of every packet among the frames.
fn packets() -> Vec<Vec<u8>> {
    use receptor_proto::frame::Frame;
    let packet = |frame: Vec<u8>| {
        let frame = Frame::decode(bytes::Bytes::from(frame).slice(4..)).expect("an example");
        let Frame::Packet(packet) = frame else {
            return None;
        };
        Some([&[packet.kind], &packet.body[..]].concat())
    };
    frames().into_iter().filter_map(packet).collect()
}

/// Steps: every frame, and every packet as if it were for the node, with some time between.
fn neighbor() -> Vec<Vec<u8>> {
    let sized = |head: &[u8], bytes: &[u8]| {
        let length = u16::try_from(bytes.len()).expect("examples are short");
        [head, &length.to_be_bytes(), bytes].concat()
    };
    let frames = frames().into_iter().map(|frame| sized(&[9], &frame[4..]));
    let packets = packets()
        .into_iter()
        .map(|packet| sized(&[2, packet[0]], &packet[1..]));
    let statements = seeds("link_statement");
    let statements = statements
        .iter()
        .zip(1..)
        .map(|(body, kind)| sized(&[3, kind, 8], &body[1..]));
    let steps: Vec<Vec<u8>> = frames.chain(packets).chain(statements).collect();
    let all = steps.join(&[0, 20][..]);
    steps.into_iter().chain([all]).collect()
}

/// Some records of every kind.
fn records() -> Vec<Vec<u8>> {
    use receptor_proto::NodeId;
    use receptor_proto::packet::Body;
    use receptor_proto::record::{EntryId, Record};
    let node = || NodeId::new("node-b").expect("a node id");
    let mut records = vec![
        Record::Started { entry: EntryId(1) },
        Record::Received {
            origin: node(),
            epoch: 7,
            floor: 3,
            ranges: vec![(4, 5), (9, 9)],
        },
    ];
    for packet in packets() {
        let body = bytes::Bytes::from(packet).slice(1..);
        if let Ok(Body::Message(message)) = Body::decode(4, body) {
            let (entry, origin) = (EntryId(1), node());
            records.push(Record::Outgoing {
                entry,
                recipient: node(),
                message: message.clone(),
            });
            records.push(Record::Incoming {
                entry: EntryId(2),
                origin,
                message: message.clone(),
            });
            let mut large = message.clone();
            large.size = 100_000;
            large.body = bytes::Bytes::new();
            records.push(Record::Incoming {
                entry: EntryId(1),
                origin: node(),
                message: large,
            });
            records.push(Record::Transit {
                entry: EntryId(3),
                origin: node(),
                recipient: node(),
                message,
            });
        }
    }
    let encoded = |record: &Record| {
        let mut out = Vec::new();
        record.encode(1_700_000_000_000, &mut out);
        out
    };
    let mut found: Vec<Vec<u8>> = records.iter().map(encoded).collect();
    // The spool's own: something removed, and a memo.
    found.push(vec![64, 1, 1, 1]);
    found.push(b"\x41\x81\x80\x80\x80\x80\x80\x80\x80\x80\x01\x02{}".to_vec());
    found
}

fn directories() -> Vec<Vec<u8>> {
    let sized = |bytes: &[u8]| {
        let length = u16::try_from(bytes.len()).expect("short");
        [&length.to_be_bytes(), bytes].concat()
    };
    let file = |which: u8, content: &[u8]| [&[which], &sized(content)[..]].concat();
    let records = records();
    let half = records.len() / 2;
    let segment = |records: &[Vec<u8>]| -> Vec<u8> {
        records.iter().flat_map(|record| sized(record)).collect()
    };
    let two = [
        file(0, &segment(&records[..half])),
        file(1, &segment(&records[half..])),
        file(4, &[b'x'; 300]),
        file(9, b"receptor-spool 1\n"),
    ];
    let damaged = [
        file(1, &segment(&records)),
        file(2, &[0xff; 100]),
        file(5, &[1; 8]),
        file(6, &records[2]),
        file(3, &[0; 10]),
    ];
    vec![
        two.concat(),
        damaged.concat(),
        file(9, b"receptor-spool 2\n"),
    ]
}

/// Files that earlier versions wrote, up to a length.
fn golden(directory: &str) -> Vec<Vec<u8>> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../golden/v1");
    let mut found = Vec::new();
    for path in below(&golden.join(directory)) {
        let content = fs::read(&path).expect("a golden file can be read");
        if content.len() <= FILE_MAX {
            found.push(content);
        }
    }
    assert!(!found.is_empty(), "{directory} has no short files");
    found
}

fn below(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).expect("golden directories are there");
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| entry.expect("it can be listed").path())
        .filter(|path| path.is_file())
        .collect();
    paths.sort();
    paths
}

/// A configuration that is all comments, with its values in force.
fn values(shipped: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(shipped);
    let lines = text.lines().map(|line| {
        let value = line.strip_prefix('#').unwrap_or(line);
        let is_value = value.starts_with(|c: char| c.is_ascii_lowercase() || c == '[');
        if is_value { value } else { line }
    });
    lines.collect::<Vec<_>>().join("\n").into_bytes()
}

/// Every line of the examples that a program reads or writes.
fn lines(text: &str) -> Vec<String> {
    let mut found: Vec<String> = examples(text, "json")
        .into_iter()
        .chain(examples(text, "text"))
        .flat_map(str::lines)
        .filter(|line| !line.trim().is_empty())
        .map(str::to_owned)
        .collect();
    found.sort();
    found.dedup();
    assert!(found.len() >= 8, "the text has lost its examples");
    found
}
