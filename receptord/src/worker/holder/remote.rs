//! The process of a plugin behind a holder, as the daemon sees it.
//!
//! Owns the connection, and what came over it that is not lines yet. Reads the connection always: how much can come
//! is bounded by what the holder keeps until it was put away. Never knows what a line means.

use std::collections::VecDeque;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use receptor_proto::MessageId;
use tokio::time::timeout;

use super::connection::Connection;
use super::kept::WINDOW;
use super::note::{Entry, Mark, Note};
use super::packet::{MarkList, News, Order};
use crate::worker::process::{Event, Heard};
use crate::worker::tree::DEATH;

/// Packets taken in one turn, so that the other works of the daemon have theirs.
const BURST: usize = 32;
/// How long a holder may take to clear away what its plugin has left.
const FINISH: Duration = Duration::from_secs(2 * DEATH.as_secs());

/// See the module.
#[derive(Debug)]
pub(in crate::worker) struct Remote {
    connection: Connection,
    /// Bytes of stdin that were sent, and those that the plugin has got.
    sent: u64,
    fed: u64,
    /// Bytes of stdout that came.
    received: u64,
    /// Where the pieces end in which they came.
    ends: VecDeque<u64>,
    open: bool,
    /// What [`Self::event`] has not told yet.
    news: Waiting,
    finished: bool,
    shared: bool,
    lost: bool,
}

#[derive(Debug, Default)]
struct Waiting {
    output: bool,
    closed: bool,
    exited: bool,
}

impl Remote {
    /// A new one: `instruction` is how to start it.
    pub(in crate::worker) fn start(mut connection: Connection, instruction: &[u8]) -> Self {
        connection.send(&Order::Run(instruction));
        Self::at(connection, (0, 0), 0)
    }

    /// One that was started by an earlier daemon and said `received` bytes that were put away; `sent` bytes went to
    /// its stdin, of which it has got `fed`.
    pub(super) fn at(connection: Connection, (sent, fed): (u64, u64), received: u64) -> Self {
        Self {
            connection,
            sent,
            fed,
            received,
            ends: VecDeque::new(),
            open: true,
            news: Waiting::default(),
            finished: false,
            shared: false,
            lost: false,
        }
    }

    /// Whether the next daemon can go on with it.
    pub(in crate::worker) fn is_kept(&self) -> bool {
        self.connection.is_kept()
    }

    /// Leaves it for the next daemon.
    pub(in crate::worker) fn leave(self) {
        self.connection.leave();
    }

    /// Bytes of stdin that the plugin has not got.
    pub(in crate::worker) fn unfed(&self) -> usize {
        usize::try_from(self.sent.saturating_sub(self.fed)).unwrap_or(usize::MAX)
    }

    /// Sends input, as much as goes at once, and says how much that was.
    pub(in crate::worker) fn write(&mut self, bytes: &[u8]) -> usize {
        let count = self.connection.send_input(bytes);
        self.sent += u64::try_from(count).unwrap_or(0);
        count
    }

    pub(in crate::worker) fn close_stdin(&mut self) {
        self.connection.send(&Order::CloseInput);
    }

    pub(in crate::worker) fn terminate(&mut self) {
        self.connection.send(&Order::Terminate);
    }

    /// Leaves word of the plugin for the next daemon.
    pub(in crate::worker) fn note(&mut self, note: &Note) {
        match serde_json::to_vec(note) {
            Ok(note) => self.connection.send(&Order::Note(&note)),
            Err(error) => tracing::warn!(%error, "a plugin will not outlive this daemon"),
        }
    }

    /// Leaves word of a work. Its line ends with the `queued` bytes of input that are sent next.
    pub(in crate::worker) fn enter(&mut self, work: MessageId, mut entry: Entry, queued: usize) {
        entry.input = self.sent + u64::try_from(queued).unwrap_or(0);
        match serde_json::to_vec(&entry) {
            Ok(entry) => self.connection.send(&Order::Entry {
                key: work.as_u128(),
                entry: &entry,
            }),
            Err(error) => tracing::warn!(%error, "a work will not outlive this daemon"),
        }
    }

    /// Nobody wants what came before this offset any more; the works without a mark are over.
    pub(in crate::worker) fn seen(
        &mut self,
        offset: u64,
        marks: &mut dyn Iterator<Item = (MessageId, Option<Mark>)>,
    ) {
        while self.ends.front().is_some_and(|end| *end <= offset) {
            self.ends.pop_front();
        }
        let mut list = MarkList::default();
        for (work, mark) in marks {
            let mark = mark.and_then(|mark| serde_json::to_vec(&mark).ok());
            list.push(work.as_u128(), &mark.unwrap_or_default());
        }
        self.connection.send(&Order::Seen {
            offset,
            marks: list.as_marks(),
        });
    }

    /// The offset behind what was taken, when so many bytes are left.
    pub(in crate::worker) fn offset(&self, left: usize) -> u64 {
        self.received - u64::try_from(left).unwrap_or(0)
    }

    /// How long the piece is that begins after what was taken, when so many bytes are left.
    pub(in crate::worker) fn piece(&mut self, left: usize) -> usize {
        let at = self.offset(left);
        while self.ends.front().is_some_and(|end| *end <= at) {
            self.ends.pop_front();
        }
        let end = self.ends.front().copied().unwrap_or(self.received);
        usize::try_from(end - at).unwrap_or(usize::MAX)
    }

    pub(in crate::worker) fn is_open(&self) -> bool {
        self.open
    }

    /// Waits until something has happened, and takes it. To be followed by [`Self::event`].
    pub(in crate::worker) async fn progress(&mut self, heard: &mut Heard) {
        let full = self.connection.is_full();
        let connection = &self.connection;
        tokio::select! {
            () = connection.readable(), if !self.lost => {}
            () = connection.writable(), if full && !self.lost => {}
            () = std::future::pending(), if self.lost => {}
        }
        self.connection.flush();
        self.take(heard);
    }

    /// What has happened.
    pub(in crate::worker) fn event(&mut self, read: bool) -> Option<Event> {
        let news = &mut self.news;
        if read && std::mem::take(&mut news.output) {
            Some(Event::Output)
        } else if read && std::mem::take(&mut news.closed) {
            Some(Event::Closed)
        } else if std::mem::take(&mut news.exited) {
            Some(Event::Exited)
        } else {
            None
        }
    }

    /// Takes what has come.
    pub(in crate::worker) fn take(&mut self, heard: &mut Heard) {
        let Heard {
            lines,
            stderr,
            status,
        } = heard;
        for _ in 0..BURST {
            let packet = match self.connection.receive() {
                Ok(Some(packet)) => packet,
                Ok(None) => return,
                Err(error) => {
                    if !self.lost {
                        tracing::debug!(%error, "the holder of a plugin is gone");
                        self.lose(status);
                    }
                    return;
                }
            };
            match News::decode(packet) {
                Ok(News::Output { offset, bytes })
                    if offset == self.received && lines.len() <= WINDOW =>
                {
                    lines.buffer().extend_from_slice(bytes);
                    self.received += u64::try_from(bytes.len()).unwrap_or(0);
                    self.ends.push_back(self.received);
                    self.news.output = true;
                }
                Ok(News::OutputEnd) => {
                    self.open = false;
                    self.news.closed = true;
                }
                Ok(News::Stderr(bytes)) => {
                    stderr.buffer.extend_from_slice(bytes);
                    stderr.take(Instant::now());
                }
                Ok(News::Fed(fed)) => self.fed = fed,
                Ok(News::Exited(how)) => {
                    status.get_or_insert(how);
                    self.news.exited = true;
                }
                Ok(News::Finished) => self.finished = true,
                Ok(News::Shared) => self.shared = true,
                Ok(News::Output { .. } | News::Entry { .. } | News::Resumed(_)) | Err(_) => {
                    tracing::error!("the holder of a plugin does not make sense");
                    self.lose(status);
                    return;
                }
            }
        }
    }

    /// Its holder is gone, and so is the plugin: its unit was killed.
    fn lose(&mut self, status: &mut Option<ExitStatus>) {
        self.lost = true;
        status.get_or_insert(ExitStatus::from_raw(Signal::SIGKILL as i32));
        self.open = false;
        self.news.closed = true;
        self.news.exited = true;
    }

    /// Kills the plugin and all of its descendants, and waits until they are dead.
    pub(in crate::worker) async fn kill(&mut self, heard: &mut Heard) {
        self.connection.send(&Order::Kill);
        let dead = async {
            while heard.status.is_none() {
                self.progress(heard).await;
            }
        };
        let _ = timeout(FINISH, dead).await;
    }

    /// Has a file of the plugin's user made readable for this one.
    pub(in crate::worker) async fn share(&mut self, path: &str, heard: &mut Heard) {
        self.shared = false;
        self.connection.send(&Order::Share(path.as_bytes()));
        let done = async {
            while !self.shared && !self.lost {
                self.progress(heard).await;
            }
        };
        // If it is not, that is told of the file.
        let _ = timeout(FINISH, done).await;
    }

    /// Lets the holder end what the plugin has left and empty its directory, and waits for that.
    pub(in crate::worker) async fn finish(&mut self, heard: &mut Heard) {
        self.connection.send(&Order::Finish);
        let done = async {
            while !self.finished && !self.lost {
                self.progress(heard).await;
            }
        };
        if timeout(FINISH, done).await.is_err() {
            tracing::warn!("the holder of a plugin does not come to an end");
        }
    }
}
