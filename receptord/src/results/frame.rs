//! How the responses of a work lie in its file.
//!
//! Owns the form and nothing else: one line of JSON that says whose responses these are, then for
//! each response a line of JSON and the so many bytes of its payload. It is made like the control
//! protocol so that it can be read with a pager. A payload too large to be in memory is a file of
//! its own beside it.
//!
//! ```text
//!   {"version":1,"id":"0123…","directive":"runner:execute","since_ms":1793347200000}
//!   {"serial":1,"from":"node-b","content":"json","size":13,"sum":2893471}
//!   {"ok":[1,2]}…
//!   {"serial":2,"from":"node-b","content":"none","size":0,"sum":0,"eof":{"code":0}}
//! ```

use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};

use bytes::Bytes;
use receptor_mesh::Payload;
use receptor_proto::packet::{Content, Eof, SEGMENT_MAX};
use receptor_proto::{Directive, ErrorBody, MessageId, NodeId};
use serde::{Deserialize, Serialize};

use crate::engine::Response;

/// The version of this form.
pub(super) const VERSION: u32 = 1;
/// The longest line: an error of a last response, and a name, are far below.
const LINE_MAX: u64 = 1 << 20;

/// The first line of a file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Head {
    /// [`VERSION`].
    pub(super) version: u32,
    /// The work.
    pub(super) id: MessageId,
    /// What runs, when that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) directive: Option<Directive>,
    /// Where, when that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) recipient: Option<NodeId>,
    /// Since when, in milliseconds since 1970.
    pub(super) since_ms: u64,
    /// Of a send with a key: what it asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) digest: Option<String>,
}

/// The line of one response.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Frame {
    /// 1, 2, 3 …
    pub(super) serial: u64,
    /// Who answers.
    pub(super) from: NodeId,
    /// What the payload is.
    pub(super) content: Content,
    /// The payload's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<String>,
    /// Bytes of the payload.
    pub(super) size: u64,
    /// The payload is a file of its own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) apart: bool,
    /// CRC-32C of a payload that follows.
    pub(super) sum: u32,
    /// On the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) eof: Option<End>,
}

/// How a work ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct End {
    /// 0 when it went well.
    pub(crate) code: u32,
    /// Why it could not be run or was stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<ErrorBody>,
}

impl From<&Eof> for End {
    fn from(eof: &Eof) -> Self {
        Self {
            code: eof.code,
            error: eof.error.clone(),
        }
    }
}

impl From<End> for Eof {
    fn from(end: End) -> Self {
        Self {
            code: end.code,
            error: end.error,
        }
    }
}

impl Frame {
    fn of(response: &Response) -> Self {
        let (size, apart, sum) = match &response.payload {
            Payload::Inline(bytes) => (bytes.len() as u64, false, crc32c::crc32c(bytes)),
            Payload::Stored { size, .. } => (*size, true, 0),
        };
        Self {
            serial: response.serial,
            from: response.sender.clone(),
            content: response.content,
            name: response.name.clone(),
            size,
            apart,
            sum,
            eof: response.eof.as_ref().map(End::from),
        }
    }

    /// Bytes of payload that follow the line.
    pub(super) fn follows(&self) -> u64 {
        if self.apart { 0 } else { self.size }
    }
}

/// Puts the first line into a buffer.
pub(super) fn put_head(head: &Head, buffer: &mut Vec<u8>) {
    put(head, buffer);
}

/// Puts a response into a buffer.
pub(super) fn put_response(response: &Response, buffer: &mut Vec<u8>) {
    put(&Frame::of(response), buffer);
    if let Payload::Inline(bytes) = &response.payload {
        buffer.extend_from_slice(bytes);
    }
}

fn put(line: &impl Serialize, buffer: &mut Vec<u8>) {
    let start = buffer.len();
    if serde_json::to_writer(&mut *buffer, line).is_err() {
        // These are plain structures with text keys; there is nothing in them that has no JSON.
        buffer.truncate(start);
    }
    buffer.push(b'\n');
}

/// What a file holds, without the payloads.
#[derive(Debug)]
pub(super) struct Summary {
    pub(super) head: Head,
    /// Where the last whole response ends.
    pub(super) length: u64,
    /// The last serial; 0: none.
    pub(super) last: u64,
    /// Payloads in files of their own: serial and size.
    pub(super) apart: Vec<(u64, u64)>,
    pub(super) end: Option<End>,
    /// What follows is no write that was cut off: a disk has damaged it.
    pub(super) is_damaged: bool,
}

/// Reads the first line of a file, and says how long it is.
///
/// # Errors
///
/// When it cannot be read, has no first line, or is of a later version
/// ([`io::ErrorKind::Unsupported`]).
pub(super) fn head(file: &mut impl BufRead) -> io::Result<(Head, u64)> {
    let Some((head, length)) = line::<Head>(file)? else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "no first line"));
    };
    if head.version > VERSION {
        let text = format!(
            "kept responses have version {}, this program knows up to {VERSION}",
            head.version
        );
        return Err(io::Error::new(io::ErrorKind::Unsupported, text));
    }
    Ok((head, length))
}

/// Reads a whole file, up to the first thing that is torn or damaged. Payloads of responses before
/// `check_from` are passed over and believed.
///
/// # Errors
///
/// When it cannot be read, has no first line, or is of a later version
/// ([`io::ErrorKind::Unsupported`]).
pub(super) fn scan<F: Read + Seek>(mut file: BufReader<F>, check_from: u64) -> io::Result<Summary> {
    let size = file.seek(SeekFrom::End(0))?;
    file.rewind()?;
    let (head, length) = head(&mut file)?;
    let mut summary = Summary {
        head,
        length,
        last: 0,
        apart: Vec::new(),
        end: None,
        is_damaged: false,
    };
    while summary.end.is_none()
        && let Some((frame, length)) = line::<Frame>(&mut file)?
    {
        let length = length.saturating_add(frame.follows());
        if frame.serial != summary.last + 1 || summary.length.saturating_add(length) > size {
            break;
        }
        if frame.serial < check_from {
            file.seek_relative(i64::try_from(frame.follows()).unwrap_or(i64::MAX))?;
        } else if payload(&mut file, &frame)?.is_none() {
            break;
        }
        // Where a message went that any node could have had is not known when its file is begun.
        let recipient = &mut summary.head.recipient;
        recipient.get_or_insert_with(|| frame.from.clone());
        summary.last += 1;
        summary.length += length;
        if frame.apart {
            summary.apart.push((summary.last, frame.size));
        }
        summary.end = frame.eof;
    }
    if summary.end.is_none() {
        file.seek(SeekFrom::Start(summary.length))?;
        let rest = size - summary.length;
        summary.is_damaged = match line::<Frame>(&mut file)? {
            Some((frame, length)) => length.saturating_add(frame.follows()) <= rest,
            None => {
                file.seek(SeekFrom::Start(summary.length))?;
                has_line(&mut file)?
            }
        };
    }
    Ok(summary)
}

/// Whether a whole line comes next: a write that was cut off before its first line has none.
pub(super) fn has_line(file: &mut impl BufRead) -> io::Result<bool> {
    let mut line = Vec::new();
    file.take(LINE_MAX).read_until(b'\n', &mut line)?;
    Ok(line.last() == Some(&b'\n') || line.len() as u64 == LINE_MAX)
}

/// A response as it was read.
#[derive(Debug)]
pub(super) struct Read1 {
    pub(super) frame: Frame,
    /// Empty when it is in a file of its own.
    pub(super) bytes: Bytes,
}

/// The next response and the bytes that it takes; `None` at the end, and where something is torn or
/// damaged.
pub(super) fn next(file: &mut impl BufRead) -> io::Result<Option<(Read1, u64)>> {
    let Some((frame, length)) = line::<Frame>(file)? else {
        return Ok(None);
    };
    let length = length.saturating_add(frame.follows());
    let bytes = payload(file, &frame)?;
    Ok(bytes.map(|bytes| (Read1 { frame, bytes }, length)))
}

/// The payload that follows a line; `None` when it is torn or damaged.
fn payload(file: &mut impl BufRead, frame: &Frame) -> io::Result<Option<Bytes>> {
    let follows = frame.follows();
    if follows > SEGMENT_MAX as u64 {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    file.take(follows).read_to_end(&mut bytes)?;
    if bytes.len() as u64 != follows || !frame.apart && crc32c::crc32c(&bytes) != frame.sum {
        return Ok(None);
    }
    Ok(Some(bytes.into()))
}

fn line<T: for<'a> Deserialize<'a>>(file: &mut impl BufRead) -> io::Result<Option<(T, u64)>> {
    let mut line = Vec::new();
    file.take(LINE_MAX).read_until(b'\n', &mut line)?;
    if line.last() != Some(&b'\n') {
        return Ok(None);
    }
    let length = line.len() as u64;
    Ok(serde_json::from_slice(&line)
        .ok()
        .map(|value| (value, length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(serial: u64, payload: &[u8], eof: Option<Eof>) -> Response {
        Response {
            sender: "b".parse().unwrap(),
            serial,
            content: Content::Bytes,
            name: None,
            payload: Payload::Inline(Bytes::copy_from_slice(payload)),
            eof,
        }
    }

    fn read(bytes: &[u8], check_from: u64) -> io::Result<Summary> {
        scan(BufReader::new(io::Cursor::new(bytes)), check_from)
    }

    fn file() -> (Vec<u8>, Vec<usize>) {
        let mut bytes = Vec::new();
        let head = Head {
            version: VERSION,
            id: MessageId::from_u128(7),
            directive: None,
            recipient: None,
            since_ms: 1,
            digest: None,
        };
        put_head(&head, &mut bytes);
        let mut ends = vec![bytes.len()];
        let eof = Eof {
            code: 0,
            error: None,
        };
        for (serial, eof) in [(1, None), (2, None), (3, Some(eof))] {
            put_response(
                &response(serial, b"{\"not\": \"a line\"}\n\0", eof),
                &mut bytes,
            );
            ends.push(bytes.len());
        }
        (bytes, ends)
    }

    #[test]
    fn every_prefix_is_a_true_story() {
        let (bytes, ends) = file();
        for cut in ends[0]..=bytes.len() {
            let whole = ends.iter().rposition(|end| *end <= cut).unwrap();
            for check_from in [1, 2, u64::MAX] {
                let summary = read(&bytes[..cut], check_from).unwrap();
                assert_eq!(summary.last, whole as u64, "cut at {cut}");
                assert_eq!(summary.length, ends[whole] as u64);
                assert_eq!(summary.end.is_some(), whole == 3);
            }
        }
        assert!(read(&bytes[..ends[0] - 1], 1).is_err());
    }

    #[test]
    fn a_size_that_no_file_has_is_damage() {
        let (bytes, ends) = file();
        let sizes = [u64::MAX, u64::MAX - 100, 1 << 63];
        for size in sizes.map(|size| format!("\"size\":{size},")) {
            let mut damaged = bytes[..ends[1]].to_vec();
            let line =
                String::from_utf8_lossy(&bytes[ends[1]..ends[2]]).replace("\"size\":19,", &size);
            assert!(line.contains(&size), "{line}");
            damaged.extend_from_slice(line.as_bytes());
            for check_from in [1, u64::MAX] {
                let summary = read(&damaged, check_from).unwrap();
                assert_eq!((summary.last, summary.length), (1, ends[1] as u64));
            }
            assert!(next(&mut &damaged[ends[1]..]).unwrap().is_none());
        }
    }

    #[test]
    fn damage_ends_what_is_believed() {
        let (bytes, ends) = file();
        for at in ends[1]..ends[2] {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0xff;
            for check_from in [1, 2] {
                let summary = read(&damaged, check_from).unwrap();
                assert_eq!(summary.last, 1, "damaged at {at}");
            }
        }
    }
}
