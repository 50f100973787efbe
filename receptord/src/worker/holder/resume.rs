//! Taking up what an earlier daemon has left with the service manager.
//!
//! Owns the first words to each holder. Done before anything else of the daemon runs, and in no more time
//! than [`PATIENCE`]: whoever does not answer is let go, and its work ends as one that was cut short.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv, send};
use receptor_proto::MessageId;

use super::connection::Connection;
use super::note::{Entry, Mark, Note};
use super::packet::{self, MAX_ENTRIES, MAX_PACKET, News, Order};
use super::remote::Remote;
use super::units::{self, Whose};
use crate::systemd::Kept;

/// How long all holders together may take to answer: one that just kills what its plugin has left looks
/// away for so long.
const PATIENCE: Duration = Duration::from_secs(5);

/// Bytes of an entry, which has no text of the plugin's.
const ENTRY_MAX: usize = 4096;
/// Responses and bytes that no work can have had, so that what is counted on from there cannot overflow.
const COUNT_MAX: u64 = 1 << 53;
/// The same for files.
const FILES_MAX: u32 = 1 << 30;

/// A plugin that still runs.
#[derive(Debug)]
pub struct Resumed {
    name: String,
    whose: Whose,
    place: Place,
    socket: OwnedFd,
    kept: Kept,
}

/// What a holder says of where things are.
#[derive(Debug)]
struct Place {
    note: Note,
    works: Vec<LeftWork>,
    whole: u64,
    fed: u64,
    offset: u64,
}

/// A work that a plugin has.
#[derive(Debug)]
pub(in crate::worker) struct LeftWork {
    /// Which.
    pub work: MessageId,
    /// What was known of it.
    pub entry: Entry,
    /// What was put away.
    pub mark: Mark,
}

/// What a [`Resumed`] consists of.
#[derive(Debug)]
pub(in crate::worker) struct Parts {
    /// The process.
    pub remote: Remote,
    /// What is known of it.
    pub note: Note,
    /// Its works.
    pub works: Vec<LeftWork>,
}

/// Whether a descriptor of this name, passed by the service manager, is for [`resume`].
#[must_use]
pub fn is_name(name: &str) -> bool {
    units::name_of(name).is_some()
}

/// Asks the holders at the other ends of these where things are. Those that have nothing to go on with are let go.
#[must_use]
pub fn resume(left: Vec<(String, OwnedFd)>) -> Vec<Resumed> {
    let deadline = Instant::now() + PATIENCE;
    let left: Vec<_> = left
        .into_iter()
        .map(|(name, socket)| (Kept::passed(name.clone()), name, socket))
        .collect();
    let number = fastrand::u64(..);
    let mut resumed = Vec::new();
    for (_, _, socket) in &left {
        // The answers come while the first of them is waited for.
        let _ = ask(socket, number, deadline);
    }
    for (kept, kept_name, socket) in left {
        let Some(name) = units::name_of(&kept_name) else {
            continue;
        };
        let Some(whose) = Whose::of(name) else {
            continue;
        };
        match answer(&socket, number, deadline).map(|place| place.and_then(|p| p.of(&whose))) {
            Ok(Some(place)) => resumed.push(Resumed {
                name: name.to_owned(),
                whose,
                place,
                socket,
                kept,
            }),
            Ok(None) => tracing::info!(name, "a plugin had no work when the daemon ended"),
            Err(error) => tracing::warn!(%error, "a plugin that still runs cannot be gone on with"),
        }
    }
    resumed
}

impl Place {
    /// What of it can be true of this process. A plugin's user could forge what a holder says, and the name with
    /// the service manager not. `None`: there is no work.
    fn of(mut self, whose: &Whose) -> Option<Self> {
        match whose {
            Whose::Work(own) => self.works.retain(|left| left.work == *own),
            Whose::Plugin(plugin) => {
                if self.note.hello.name != *plugin {
                    return None;
                }
            }
        }
        (!self.works.is_empty()).then_some(self)
    }
}

impl Resumed {
    /// Its works: which, whether their actions may be run again, and the serials of the last responses before what it
    /// says next.
    pub fn works(&self) -> impl Iterator<Item = (MessageId, bool, u64)> {
        let works = self.place.works.iter();
        works.map(|left| (left.work, left.entry.action.idempotent, left.mark.said))
    }

    /// The name of its directory.
    pub(in crate::worker) fn name(&self) -> &str {
        &self.name
    }

    /// What it is for.
    pub(in crate::worker) fn whose(&self) -> &Whose {
        &self.whose
    }

    /// The plugin.
    pub(in crate::worker) fn plugin(&self) -> &str {
        &self.place.note.hello.name
    }

    /// Leaves it to the next daemon.
    pub(in crate::worker) fn leave(self) {
        self.kept.leave();
    }

    /// The process, and what is known of it.
    ///
    /// # Errors
    /// When the runtime cannot watch the connection.
    pub(in crate::worker) fn into_parts(self) -> io::Result<Parts> {
        let Place {
            note,
            works,
            whole,
            fed,
            offset,
        } = self.place;
        let connection = Connection::new(self.socket, Some(self.kept))?;
        Ok(Parts {
            remote: Remote::at(connection, (whole, fed), offset),
            note,
            works,
        })
    }
}

fn ask(socket: &OwnedFd, number: u64, deadline: Instant) -> io::Result<()> {
    let packet = Order::Resume(number).encode();
    loop {
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        match send(socket.as_raw_fd(), &packet, flags) {
            Ok(_) => return Ok(()),
            Err(Errno::EAGAIN) => wait(socket, PollFlags::POLLOUT, deadline)?,
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// What the holder says to it; what it said to the daemon before is passed over. `None`: its plugin never got
/// a job.
fn answer(socket: &OwnedFd, number: u64, deadline: Instant) -> io::Result<Option<Place>> {
    let mut buffer = vec![0; MAX_PACKET];
    let mut works = Vec::new();
    loop {
        let count = match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => count,
            Err(Errno::EAGAIN) => {
                wait(socket, PollFlags::POLLIN, deadline)?;
                continue;
            }
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
        };
        let packet = buffer.get(..count).unwrap_or_default();
        let news =
            News::decode(packet).map_err(|_| io::Error::other("it is of another version"))?;
        match news {
            News::Entry {
                number: of,
                key,
                mark,
                entry,
            } if of == number => {
                if works.len() >= MAX_ENTRIES || entry.len() > ENTRY_MAX {
                    return Err(io::Error::other("it has more works than can be"));
                }
                works.push(left_work(key, mark, entry)?);
            }
            News::Resumed(resumed) if resumed.number == number => {
                return place(&resumed, works);
            }
            News::Entry { .. }
            | News::Resumed(_)
            | News::Output { .. }
            | News::OutputEnd
            | News::Stderr(_)
            | News::Fed(_)
            | News::Exited(_)
            | News::Finished
            | News::Shared => {}
        }
    }
}

fn left_work(key: u128, mark: &[u8], entry: &[u8]) -> io::Result<LeftWork> {
    let entry: Entry = serde_json::from_slice(entry)?;
    let mark = match mark {
        [] => Mark::default(),
        mark => serde_json::from_slice(mark)?,
    };
    check(&[mark.said, mark.results, entry.input])?;
    if mark.files > FILES_MAX {
        return Err(impossible());
    }
    let work = MessageId::from_u128(key);
    Ok(LeftWork { work, entry, mark })
}

fn place(resumed: &packet::Resumed<'_>, mut works: Vec<LeftWork>) -> io::Result<Option<Place>> {
    check(&[resumed.offset, resumed.whole, resumed.fed])?;
    // Of the others the plugin has not got the line, and never will.
    works.retain(|left| resumed.whole >= left.entry.input);
    if resumed.note.is_empty() {
        return Ok(None);
    }
    Ok(Some(Place {
        note: serde_json::from_slice(resumed.note)?,
        works,
        whole: resumed.whole,
        fed: resumed.fed,
        offset: resumed.offset,
    }))
}

fn check(counts: &[u64]) -> io::Result<()> {
    if counts.iter().any(|count| *count > COUNT_MAX) {
        return Err(impossible());
    }
    Ok(())
}

fn impossible() -> io::Error {
    io::Error::other("it has counted more than can be")
}

fn wait(socket: &OwnedFd, flags: PollFlags, deadline: Instant) -> io::Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
    match poll(&mut [PollFd::new(socket.as_fd(), flags)], left) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    use receptor_proto::plugin::ActionDescriptor;
    use serde_json::{Value, json};

    use super::*;

    const NUMBER: u64 = 11;

    /// What a holder says that runs `plugin` and has counted this.
    fn said(counts: &BTreeMap<&str, u64>, plugin: &str) -> io::Result<Option<Place>> {
        let of = |what: &str| counts.get(what).copied().unwrap_or(0);
        let flags = SockFlag::SOCK_CLOEXEC;
        let (own, its) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
        let say = |news: &News<'_>| send(its.as_raw_fd(), &news.encode(), MsgFlags::empty());
        let action = serde_json::to_value(ActionDescriptor::default()).unwrap();
        let entry = json!({"action": action, "began_ms": u64::MAX, "input": of("input")});
        let mark = json!({
            "said": of("said"), "results": of("results"), "files": of("files"),
        });
        let hello = json!({"protocol": 1, "name": plugin, "version": "1", "actions": {}});
        let note = json!({"file_name": plugin, "path": "/p", "hello": hello});
        let text = |value: &Value| value.to_string().into_bytes();
        for number in [NUMBER - 1, NUMBER] {
            let (mark, entry) = (text(&mark), text(&entry));
            say(&News::Entry {
                number,
                key: 7,
                mark: &mark,
                entry: &entry,
            })
            .unwrap();
        }
        say(&News::Resumed(packet::Resumed {
            number: NUMBER,
            offset: of("offset"),
            whole: of("whole"),
            fed: of("fed"),
            note: &text(&note),
        }))
        .unwrap();
        answer(&own, NUMBER, Instant::now() + PATIENCE)
    }

    #[test]
    fn what_a_holder_cannot_have_counted_is_refused() {
        let largest = [
            ("input", COUNT_MAX),
            ("said", COUNT_MAX),
            ("results", COUNT_MAX),
            ("files", u64::from(FILES_MAX)),
            ("offset", COUNT_MAX),
            ("whole", COUNT_MAX),
            ("fed", COUNT_MAX),
        ];
        let counts: BTreeMap<_, _> = largest.into();
        let place = said(&counts, "count").unwrap().unwrap();
        assert_eq!(place.works.len(), 1, "an answer to another question counts");
        for (what, most) in largest {
            let mut counts = counts.clone();
            counts.insert(what, most + 1);
            let error = said(&counts, "count").unwrap_err();
            assert!(error.to_string().contains("counted"), "{what}: {error}");
        }
    }

    #[test]
    fn a_work_whose_line_did_not_get_whole_to_the_plugin_is_not_gone_on_with() {
        let whose = Whose::Plugin("count".to_owned());
        let counts: BTreeMap<_, _> = [("input", 5), ("whole", 5)].into();
        let place = said(&counts, "count").unwrap().unwrap();
        assert_eq!(place.of(&whose).unwrap().works.len(), 1);
        let counts: BTreeMap<_, _> = [("input", 6), ("whole", 5)].into();
        let place = said(&counts, "count").unwrap().unwrap();
        assert!(place.of(&whose).is_none());
    }

    #[test]
    fn what_a_holder_says_of_the_works_of_others_is_passed_over() {
        for (whose, is_believed) in [
            (Whose::Plugin("count".to_owned()), true),
            (Whose::Plugin("other".to_owned()), false),
            (Whose::Work(MessageId::from_u128(7)), true),
            (Whose::Work(MessageId::from_u128(8)), false),
        ] {
            let place = said(&BTreeMap::new(), "count").unwrap().unwrap();
            assert_eq!(place.of(&whose).is_some(), is_believed, "{whose:?}");
        }
    }
}
