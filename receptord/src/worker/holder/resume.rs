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
use super::note::{Mark, Note};
use super::packet::{MAX_PACKET, News, Order};
use super::remote::Remote;
use super::units;
use crate::systemd::Kept;

/// How long all holders together may take to answer: one that just kills what its plugin has left looks
/// away for so long.
const PATIENCE: Duration = Duration::from_secs(5);

/// Responses and bytes that no work can have had, so that what is counted on from there cannot overflow.
const COUNT_MAX: u64 = 1 << 53;
/// The same for files.
const FILES_MAX: u32 = 1 << 30;

/// A plugin that still runs.
#[derive(Debug)]
pub struct Resumed {
    place: Place,
    work: MessageId,
    socket: OwnedFd,
    kept: Kept,
}

/// What a holder says of where things are.
#[derive(Debug)]
struct Place {
    note: Note,
    mark: Mark,
    whole: u64,
    fed: u64,
    offset: u64,
}

/// Whether a descriptor of this name, passed by the service manager, is for [`resume`].
#[must_use]
pub fn is_name(name: &str) -> bool {
    units::is_kept(name)
}

/// Asks the holders at the other ends of these where things are. Those that have nothing to go on with are let go.
#[must_use]
pub fn resume(left: Vec<(String, OwnedFd)>) -> Vec<Resumed> {
    let deadline = Instant::now() + PATIENCE;
    let left: Vec<_> = left
        .into_iter()
        .map(|(name, socket)| (Kept::passed(name), socket))
        .collect();
    let number = fastrand::u64(..);
    let mut resumed = Vec::new();
    for (_, socket) in &left {
        // The answers come while the first of them is waited for.
        let _ = ask(socket, number, deadline);
    }
    for (kept, socket) in left {
        match answer(&socket, number, deadline) {
            Ok(Some(place)) => {
                // A plugin's user could forge a note, and the name with the service manager not.
                let work = place.note.work();
                if let Some(work) = work.filter(|work| kept.is(&units::keep_name(*work))) {
                    resumed.push(Resumed {
                        place,
                        work,
                        socket,
                        kept,
                    });
                }
            }
            Ok(None) => tracing::info!("a plugin had not got its work when the daemon ended"),
            Err(error) => tracing::warn!(%error, "a plugin that still runs cannot be gone on with"),
        }
    }
    resumed
}

impl Resumed {
    /// Its work.
    #[must_use]
    pub fn work(&self) -> MessageId {
        self.work
    }

    /// The serial of the last response before what it says next.
    #[must_use]
    pub fn said(&self) -> u64 {
        self.place.mark.said
    }

    /// Whether its action may be run again.
    #[must_use]
    pub fn is_idempotent(&self) -> bool {
        let note = &self.place.note;
        let action = note.hello.actions.get(&note.action);
        action.is_some_and(|action| action.idempotent)
    }

    /// Leaves it to the next daemon.
    pub(in crate::worker) fn leave(self) {
        self.kept.leave();
    }

    /// The process, and what is known of it.
    ///
    /// # Errors
    /// When the runtime cannot watch the connection.
    pub(in crate::worker) fn into_parts(self) -> io::Result<(Remote, Note, Mark)> {
        let Place {
            note,
            mark,
            whole,
            fed,
            offset,
        } = self.place;
        let connection = Connection::new(self.socket, Some(self.kept))?;
        Ok((Remote::at(connection, (whole, fed), offset), note, mark))
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
/// the job.
fn answer(socket: &OwnedFd, number: u64, deadline: Instant) -> io::Result<Option<Place>> {
    let mut buffer = vec![0; MAX_PACKET];
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
        if let News::Resumed(resumed) = news
            && resumed.number == number
        {
            if resumed.note.is_empty() {
                return Ok(None);
            }
            let note: Note = serde_json::from_slice(resumed.note)?;
            if resumed.whole < note.input {
                return Ok(None);
            }
            let mark = match resumed.mark {
                [] => Mark::default(),
                mark => serde_json::from_slice(mark)?,
            };
            let counts = [
                mark.said,
                mark.results,
                resumed.offset,
                resumed.whole,
                resumed.fed,
            ];
            if counts.iter().any(|count| *count > COUNT_MAX) || mark.files > FILES_MAX {
                return Err(io::Error::other("it has counted more than can be"));
            }
            return Ok(Some(Place {
                note,
                mark,
                whole: resumed.whole,
                fed: resumed.fed,
                offset: resumed.offset,
            }));
        }
    }
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
