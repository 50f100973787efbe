//! Bundles: payloads of many small one-way requests in one message.
//!
//! Owns the form of a body with [`Content::Bundle`] and its limits: one byte that says what all
//! of the payloads are, then each payload as a length and that many bytes. A bundle is one message to
//! everything between the node that makes it and the worker's node; nobody else looks into it.

use alloc::vec::Vec;

use bytes::{Buf as _, Bytes};

use crate::packet::{Content, SEGMENT_MAX};
use crate::wire::{DecodeError, Writer, bytes_len};

/// The longest body of a bundle, in bytes.
pub const BUNDLE_MAX: usize = SEGMENT_MAX;
/// The largest payload that travels in a bundle, in bytes: with larger ones a bundle would not save
/// anything.
pub const PART_MAX: usize = 16 * 1024;

/// Puts a bundle together.
#[derive(Debug)]
pub struct BundleWriter {
    body: Vec<u8>,
    count: usize,
}

impl BundleWriter {
    /// One without payloads; these are going to be `content`, which is not a bundle itself.
    #[must_use]
    pub fn new(content: Content) -> Self {
        Self::with_room(content, 0)
    }

    /// As [`Self::new`], when a body of so many bytes is to be expected.
    #[must_use]
    pub fn with_room(content: Content, bytes: usize) -> Self {
        let mut body = Vec::with_capacity(bytes.clamp(1, BUNDLE_MAX));
        body.push(content.code());
        Self { body, count: 0 }
    }

    /// Adds a payload. False: it does not fit any more, and nothing was added.
    #[must_use]
    pub fn push(&mut self, payload: &[u8]) -> bool {
        if payload.len() > PART_MAX || self.body.len() + bytes_len(payload.len()) > BUNDLE_MAX {
            return false;
        }
        Writer(&mut self.body).bytes(payload);
        self.count += 1;
        true
    }

    /// How many payloads it has.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Bytes of the body so far.
    #[must_use]
    pub fn size(&self) -> usize {
        self.body.len()
    }

    /// The body.
    #[must_use]
    pub fn finish(self) -> Bytes {
        self.body.into()
    }
}

/// A bundle that came; gives its payloads in order.
#[derive(Debug, Clone)]
pub struct Bundle {
    content: Content,
    rest: Bytes,
    left: usize,
}

impl Bundle {
    /// Looks through a body. Afterwards every payload is known to be there.
    ///
    /// # Errors
    ///
    /// When it is no bundle, or has no payload.
    pub fn decode(mut body: Bytes) -> Result<Self, DecodeError> {
        if body.is_empty() {
            return Err(DecodeError::Truncated { what: "bundle" });
        }
        let content = match Content::from_code(body.get_u8()) {
            Content::Bundle | Content::Sealed => return Err(DecodeError::Bad { what: "bundle" }),
            content @ (Content::None | Content::Json | Content::Text | Content::Bytes) => content,
        };
        let (mut at, mut left) = (0, 0);
        while at < body.len() {
            let (start, size) = length(&body, at)?;
            if size > PART_MAX {
                return Err(DecodeError::TooLarge {
                    what: "payload of a bundle",
                    size: size as u64,
                    limit: PART_MAX as u64,
                });
            }
            at = start + size;
            left += 1;
        }
        if at != body.len() || left == 0 {
            return Err(DecodeError::Truncated { what: "bundle" });
        }
        Ok(Self {
            content,
            rest: body,
            left,
        })
    }

    /// What all of its payloads are.
    #[must_use]
    pub fn content(&self) -> Content {
        self.content
    }

    /// Payloads that were not taken yet.
    #[must_use]
    pub fn left(&self) -> usize {
        self.left
    }

    /// Of those, the size of the next, in bytes.
    #[must_use]
    pub fn next_size(&self) -> Option<usize> {
        let (_, size) = length(&self.rest, 0).ok()?;
        (self.left > 0).then_some(size)
    }
}

impl Iterator for Bundle {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if self.left == 0 {
            return None;
        }
        let (start, size) = length(&self.rest, 0).ok()?;
        self.rest.advance(start);
        self.left -= 1;
        Some(self.rest.split_to(size))
    }
}

/// Where the payload begins whose length stands at `at`, and that length.
fn length(body: &[u8], at: usize) -> Result<(usize, usize), DecodeError> {
    let what = "length in a bundle";
    let mut size = 0;
    // Three bytes of seven bits each are more than a payload may have.
    for (index, byte) in body.iter().skip(at).take(3).enumerate() {
        size |= usize::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Ok((at + index + 1, size));
        }
    }
    Err(DecodeError::Bad { what })
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use proptest::prelude::*;

    #[test]
    fn payloads_come_out_as_they_went_in() {
        let mut writer = BundleWriter::new(Content::Json);
        let payloads = [vec![], vec![b'1'], vec![b'x'; 127], vec![b'y'; PART_MAX]];
        for payload in &payloads {
            assert!(writer.push(payload));
        }
        assert_eq!(writer.count(), 4);
        let mut bundle = Bundle::decode(writer.finish()).unwrap();
        assert_eq!((bundle.content(), bundle.left()), (Content::Json, 4));
        for payload in &payloads {
            assert_eq!(bundle.next_size(), Some(payload.len()));
            assert_eq!(bundle.next().unwrap(), payload);
        }
        assert_eq!((bundle.next_size(), bundle.next()), (None, None));
    }

    #[test]
    fn what_does_not_fit_is_not_taken() {
        let mut writer = BundleWriter::new(Content::Bytes);
        assert!(!writer.push(&vec![0; PART_MAX + 1]));
        let mut pushed = 0;
        while writer.push(&[0; 1000]) {
            pushed += 1;
        }
        assert_eq!((writer.count(), pushed), (pushed, 65));
        let body = writer.finish();
        assert!(body.len() <= BUNDLE_MAX);
        assert_eq!(Bundle::decode(body).unwrap().count(), pushed);
    }

    #[test]
    fn what_is_no_bundle_is_refused() {
        for body in [
            &b""[..],
            b"\x01",
            b"\x04\x01a",
            b"\x01\x02a",
            b"\x01\x01a\x80",
            b"\x01\xff\xff\x7fa",
        ] {
            assert!(
                Bundle::decode(Bytes::copy_from_slice(body)).is_err(),
                "{body:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_bundle_or_refused(input: Vec<u8>) {
            if let Ok(bundle) = Bundle::decode(Bytes::from(input)) {
                let left = bundle.left();
                prop_assert_eq!(bundle.count(), left);
            }
        }
    }
}
