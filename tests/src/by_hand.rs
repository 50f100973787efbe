//! Bytes of links as the protocol's text has them, without the code that the daemon has for it.
//!
//! Owns nothing. What is wrong in the daemon's own code must not be right here.

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(u8::try_from(value & 0x7f).expect("seven bits") | 0x80);
        value >>= 7;
    }
    bytes.push(u8::try_from(value).expect("seven bits"));
    bytes
}

/// A frame of this kind.
///
/// # Panics
///
/// When the body is longer than a length can say.
#[must_use]
pub fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 1).expect("a short body");
    [&length.to_be_bytes()[..], &[kind], body].concat()
}

/// A hello with any name and versions.
#[must_use]
pub fn hello(versions: (u64, u64), node: &[u8]) -> Vec<u8> {
    let mut body = b"receptor".to_vec();
    for value in [versions.0, versions.1, node.len() as u64] {
        body.extend(varint(value));
    }
    body.extend(node);
    // Instance, features, largest frame, credit, hold time in ms.
    for value in [42, 0, 73_728, 4 << 20, 4000] {
        body.extend(varint(value));
    }
    body.push(1);
    body.extend(varint(10));
    body.extend(varint(4));
    body.extend(b"test");
    frame(1, &body)
}
