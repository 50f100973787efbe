//! What the daemon and a holder say to each other.
//!
//! Owns the packets and their bytes. A packet is one message of a `SOCK_SEQPACKET` socket: a daemon that
//! is killed in the middle of a sentence leaves no half of one behind, so that the next daemon can go on.
//! Never looks into what a plugin says.

use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

/// The version that a holder speaks. A daemon ends one that speaks another: it was left by a version of
/// the daemon that it cannot go on from.
pub(super) const VERSION: u8 = 2;
/// Longest packet in bytes; what a socket takes in one piece on any system.
pub(in crate::worker) const MAX_PACKET: usize = 64 * 1024;
/// Longest piece of a stream in a packet, in bytes: a round number that leaves room for the rest of it, and is
/// no more than what a response may have inline.
pub(super) const MAX_CHUNK: usize = 60 * 1024;

/// Entries that a holder keeps at once.
pub(in crate::worker) const MAX_ENTRIES: usize = 4096;

/// From the daemon.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Order<'a> {
    /// Start this: an encoded [`crate::worker::exec::Instruction`]. The first order, given once.
    Run(&'a [u8]),
    /// Bytes for the plugin's stdin, which gets them once their line is complete.
    Input(&'a [u8]),
    /// Close the plugin's stdin behind what it was sent.
    CloseInput,
    /// Keep this for whoever comes next. It takes the place of the one before.
    Note(&'a [u8]),
    /// Keep this beside the note, under a key of its own.
    Entry {
        /// Which.
        key: u128,
        /// For whoever comes next.
        entry: &'a [u8],
    },
    /// What the plugin has said before this offset is wanted by nobody any more.
    Seen {
        /// Bytes of stdout.
        offset: u64,
        /// What changes in the entries with that: see [`Marks`].
        marks: Marks<'a>,
    },
    /// Ask the plugin's process group to end.
    Terminate,
    /// End the plugin and all that it has started.
    Kill,
    /// Let the daemon's user read this file in the plugin's directory. Answered when it is so, or cannot be.
    Share(&'a [u8]),
    /// End what is left of it, and empty its directory.
    Finish,
    /// Another daemon: drop the line that is not complete, tell where things are, and say everything
    /// again that was not [`Order::Seen`]. The answer has the same number: one to a daemon that went before it
    /// could read it may come first.
    Resume(u64),
}

/// Marks that entries have, each in place of the one before. An empty one ends its entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Marks<'a>(&'a [u8]);

/// The bytes of [`Marks`].
#[derive(Debug, Default)]
pub(super) struct MarkList(Vec<u8>);

/// From the holder.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum News<'a> {
    /// A piece of the plugin's stdout.
    Output {
        /// How many bytes came before it.
        offset: u64,
        /// The piece.
        bytes: &'a [u8],
    },
    /// Its stdout was closed.
    OutputEnd,
    /// A piece of its stderr. Not said again.
    Stderr(&'a [u8]),
    /// So many bytes of its stdin were written.
    Fed(u64),
    /// It has ended.
    Exited(ExitStatus),
    /// An entry, as part of the answer to [`Order::Resume`].
    Entry {
        /// That of the order.
        number: u64,
        /// Which.
        key: u128,
        /// Its last mark; empty: it has none.
        mark: &'a [u8],
        /// The entry.
        entry: &'a [u8],
    },
    /// The end of the answer to [`Order::Resume`].
    Resumed(Resumed<'a>),
    /// [`Order::Finish`] is done.
    Finished,
    /// [`Order::Share`] is.
    Shared,
}

/// Where things are.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Resumed<'a> {
    /// That of the order.
    pub number: u64,
    /// What the next [`News::Output`] begins with.
    pub offset: u64,
    /// Bytes for stdin that came in whole lines.
    pub whole: u64,
    /// Those of them that were written.
    pub fed: u64,
    /// The last [`Order::Note`].
    pub note: &'a [u8],
}

/// No packet, or one that this version does not know.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unknown;

const RUN: u8 = 1;
const INPUT: u8 = 2;
const CLOSE_INPUT: u8 = 3;
const NOTE: u8 = 4;
const SEEN: u8 = 5;
const TERMINATE: u8 = 6;
const KILL: u8 = 7;
const FINISH: u8 = 8;
const RESUME: u8 = 9;
const SHARE: u8 = 10;
const ENTRY: u8 = 11;

const OUTPUT: u8 = 65;
const OUTPUT_END: u8 = 66;
const STDERR: u8 = 67;
const FED: u8 = 68;
const EXITED: u8 = 69;
const RESUMED: u8 = 70;
const FINISHED: u8 = 71;
const SHARED: u8 = 72;
const ENTRY_WAS: u8 = 73;

impl<'a> Order<'a> {
    pub(super) fn encode(&self) -> Vec<u8> {
        match self {
            Self::Run(bytes) => with(RUN, bytes),
            Self::Input(bytes) => with(INPUT, bytes),
            Self::CloseInput => vec![CLOSE_INPUT],
            Self::Note(bytes) => with(NOTE, bytes),
            Self::Entry { key, entry } => {
                let mut out = with(ENTRY, &key.to_le_bytes());
                out.extend_from_slice(entry);
                out
            }
            Self::Seen { offset, marks } => {
                let mut out = with(SEEN, &offset.to_le_bytes());
                out.extend_from_slice(marks.0);
                out
            }
            Self::Terminate => vec![TERMINATE],
            Self::Kill => vec![KILL],
            Self::Share(path) => with(SHARE, path),
            Self::Finish => vec![FINISH],
            Self::Resume(number) => with(RESUME, &number.to_le_bytes()),
        }
    }

    pub(super) fn decode(packet: &'a [u8]) -> Result<Self, Unknown> {
        let (kind, rest) = packet.split_first().ok_or(Unknown)?;
        Ok(match *kind {
            RUN => Self::Run(rest),
            INPUT => Self::Input(rest),
            CLOSE_INPUT => Self::CloseInput,
            NOTE => Self::Note(rest),
            SEEN => {
                let (offset, rest) = number(rest)?;
                let marks = Marks::decode(rest)?;
                Self::Seen { offset, marks }
            }
            ENTRY => {
                let (key, entry) = key(rest)?;
                Self::Entry { key, entry }
            }
            TERMINATE => Self::Terminate,
            KILL => Self::Kill,
            SHARE => Self::Share(rest),
            FINISH => Self::Finish,
            RESUME => Self::Resume(number(rest)?.0),
            _ => return Err(Unknown),
        })
    }
}

impl<'a> News<'a> {
    pub(super) fn encode(&self) -> Vec<u8> {
        match self {
            Self::Output { offset, bytes } => {
                let mut out = with(OUTPUT, &offset.to_le_bytes());
                out.extend_from_slice(bytes);
                out
            }
            Self::OutputEnd => vec![OUTPUT_END],
            Self::Stderr(bytes) => with(STDERR, bytes),
            Self::Fed(count) => with(FED, &count.to_le_bytes()),
            Self::Exited(status) => with(EXITED, &status.into_raw().to_le_bytes()),
            Self::Resumed(resumed) => {
                let mut out = vec![RESUMED, VERSION];
                out.extend_from_slice(&resumed.number.to_le_bytes());
                out.extend_from_slice(&resumed.offset.to_le_bytes());
                out.extend_from_slice(&resumed.whole.to_le_bytes());
                out.extend_from_slice(&resumed.fed.to_le_bytes());
                out.extend_from_slice(resumed.note);
                out
            }
            Self::Entry {
                number,
                key,
                mark,
                entry,
            } => {
                let mut out = with(ENTRY_WAS, &number.to_le_bytes());
                put_mark(&mut out, *key, mark);
                out.extend_from_slice(entry);
                out
            }
            Self::Finished => vec![FINISHED],
            Self::Shared => vec![SHARED],
        }
    }

    pub(super) fn decode(packet: &'a [u8]) -> Result<Self, Unknown> {
        let (kind, rest) = packet.split_first().ok_or(Unknown)?;
        Ok(match *kind {
            OUTPUT => {
                let (offset, bytes) = number(rest)?;
                Self::Output { offset, bytes }
            }
            OUTPUT_END => Self::OutputEnd,
            STDERR => Self::Stderr(rest),
            FED => Self::Fed(number(rest)?.0),
            EXITED => {
                let status = rest.first_chunk().ok_or(Unknown)?;
                Self::Exited(ExitStatus::from_raw(i32::from_le_bytes(*status)))
            }
            RESUMED => {
                let (&VERSION, rest) = rest.split_first().ok_or(Unknown)? else {
                    return Err(Unknown);
                };
                let (own, rest) = number(rest)?;
                let (offset, rest) = number(rest)?;
                let (whole, rest) = number(rest)?;
                let (fed, note) = number(rest)?;
                Self::Resumed(Resumed {
                    number: own,
                    offset,
                    whole,
                    fed,
                    note,
                })
            }
            ENTRY_WAS => {
                let (number, rest) = number(rest)?;
                let (key, mark, entry) = mark(rest)?;
                Self::Entry {
                    number,
                    key,
                    mark,
                    entry,
                }
            }
            FINISHED => Self::Finished,
            SHARED => Self::Shared,
            _ => return Err(Unknown),
        })
    }
}

impl<'a> Marks<'a> {
    fn decode(bytes: &'a [u8]) -> Result<Self, Unknown> {
        let mut rest = bytes;
        while !rest.is_empty() {
            (_, _, rest) = mark(rest)?;
        }
        Ok(Self(bytes))
    }

    /// One after the other.
    pub(super) fn iter(self) -> impl Iterator<Item = (u128, &'a [u8])> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let (key, mark, others) = mark(rest).ok()?;
            rest = others;
            Some((key, mark))
        })
    }
}

impl MarkList {
    /// Adds one, of fewer than 64 KiB.
    pub(super) fn push(&mut self, key: u128, mark: &[u8]) {
        put_mark(&mut self.0, key, mark);
    }

    pub(super) fn as_marks(&self) -> Marks<'_> {
        Marks(&self.0)
    }
}

/// What holds for every packet.
pub(in crate::worker) fn fuzz(packet: &[u8]) {
    if let Ok(order) = Order::decode(packet) {
        assert_eq!(Order::decode(&order.encode()), Ok(order));
    }
    if let Ok(news) = News::decode(packet) {
        assert_eq!(News::decode(&news.encode()), Ok(news));
    }
}

fn with(kind: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 + bytes.len());
    out.push(kind);
    out.extend_from_slice(bytes);
    out
}

fn number(bytes: &[u8]) -> Result<(u64, &[u8]), Unknown> {
    let (number, rest) = bytes.split_first_chunk().ok_or(Unknown)?;
    Ok((u64::from_le_bytes(*number), rest))
}

fn key(bytes: &[u8]) -> Result<(u128, &[u8]), Unknown> {
    let (key, rest) = bytes.split_first_chunk().ok_or(Unknown)?;
    Ok((u128::from_le_bytes(*key), rest))
}

/// Key, length and bytes of a mark.
fn put_mark(out: &mut Vec<u8>, key: u128, mark: &[u8]) {
    let len = u16::try_from(mark.len()).unwrap_or(u16::MAX);
    out.extend_from_slice(&key.to_le_bytes());
    out.extend_from_slice(&len.to_le_bytes());
    out.extend(mark.iter().take(len.into()));
}

/// The first mark, and what is behind it.
fn mark(bytes: &[u8]) -> Result<(u128, &[u8], &[u8]), Unknown> {
    let (key, rest) = key(bytes)?;
    let (len, rest) = rest.split_first_chunk().ok_or(Unknown)?;
    let len = u16::from_le_bytes(*len);
    let (mark, rest) = rest.split_at_checked(len.into()).ok_or(Unknown)?;
    Ok((key, mark, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_and_news_survive_the_socket() {
        let mut marks = MarkList::default();
        marks.push(u128::MAX, b"mark");
        marks.push(1, b"");
        let marks = marks.as_marks();
        let pairs: Vec<_> = marks.iter().collect();
        assert_eq!(pairs, [(u128::MAX, &b"mark"[..]), (1, &b""[..])]);
        let orders = [
            Order::Run(b"program"),
            Order::Input(b"half a li"),
            Order::CloseInput,
            Order::Note(b""),
            Order::Entry {
                key: 7,
                entry: b"entry",
            },
            Order::Seen {
                offset: u64::MAX,
                marks,
            },
            Order::Terminate,
            Order::Kill,
            Order::Share(b"out/a"),
            Order::Finish,
            Order::Resume(4),
        ];
        for order in orders {
            assert_eq!(Order::decode(&order.encode()), Ok(order));
        }
        let news = [
            News::Output {
                offset: 7,
                bytes: b"x\n",
            },
            News::OutputEnd,
            News::Stderr(b"oops"),
            News::Fed(3),
            News::Exited(ExitStatus::from_raw(0x0300)),
            News::Resumed(Resumed {
                number: 9,
                offset: 1,
                whole: 2,
                fed: 1,
                note: b"note",
            }),
            News::Entry {
                number: 9,
                key: 7,
                mark: b"mark",
                entry: b"entry",
            },
            News::Finished,
            News::Shared,
        ];
        for news in news {
            assert_eq!(News::decode(&news.encode()), Ok(news));
        }
    }

    #[test]
    fn what_is_no_packet_is_told_apart() {
        let mut short_mark = vec![SEEN];
        short_mark.extend_from_slice(&[0; 8 + 16]);
        let mut mark_too_long = vec![ENTRY_WAS];
        mark_too_long.extend_from_slice(&[0; 8 + 16]);
        mark_too_long.extend_from_slice(&u16::MAX.to_le_bytes());
        let bad: [&[u8]; 10] = [
            b"",
            b"\0",
            &[SEEN, 1],
            &short_mark,
            &[ENTRY, 1],
            &mark_too_long,
            &[OUTPUT],
            &[EXITED, 0],
            &[RESUMED, VERSION + 1, 0],
            &[RESUMED, VERSION],
        ];
        for packet in bad {
            assert!(Order::decode(packet).is_err());
            assert_eq!(News::decode(packet), Err(Unknown));
        }
    }
}
