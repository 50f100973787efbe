//! Changes to an input, from a seed: what finds most mistakes in a parser without a fuzzer.

use fastrand::Rng;

/// The longest input that is made, in bytes.
const INPUT_MAX: usize = 8 << 10;
/// Numbers at the edge of something.
const EDGES: [u64; 10] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0xffff,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    0xffff_ffff_ffff_fff0,
    u64::MAX,
];

/// Makes another input of one, and of parts of a second.
pub fn mutate(rng: &mut Rng, input: &[u8], other: &[u8]) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..rng.usize(1..=4) {
        let at = rng.usize(0..=bytes.len());
        let end = rng.usize(at..=bytes.len().min(at + 64));
        match rng.u8(0..7) {
            0 if at < bytes.len() => bytes[at] ^= 1 << rng.u8(0..8),
            1 if at < bytes.len() => bytes[at] = rng.u8(..),
            2 => drop(bytes.drain(at..end)),
            3 => {
                let copy = bytes[at..end].to_vec();
                bytes.splice(at..at, copy);
            }
            4 => {
                let from = rng.usize(0..=other.len());
                let to = rng.usize(from..=other.len());
                bytes.splice(at..end, other[from..to].iter().copied());
            }
            5 => drop(bytes.splice(at..end, edge(rng))),
            _ => bytes.truncate(at),
        }
    }
    bytes.truncate(INPUT_MAX);
    bytes
}

/// A number as one of the protocols would write it.
fn edge(rng: &mut Rng) -> Vec<u8> {
    let mut value = EDGES[rng.usize(0..EDGES.len())];
    match rng.u8(0..4) {
        0 => value.to_string().into_bytes(),
        1 => value.to_be_bytes()[rng.usize(0..8)..].to_vec(),
        _ => {
            let mut varint = Vec::new();
            while value >= 0x80 {
                varint.push(value.to_le_bytes()[0] | 0x80);
                value >>= 7;
            }
            varint.push(value.to_le_bytes()[0]);
            varint
        }
    }
}
