//! What happens after a job: nothing of it may be left.
//!
//! Owns the list of plugins that have exited and whose processes and directories are still to be
//! cleared away, and the one task that does it. One look at `/proc` costs about a millisecond on a
//! quiet machine, as much as a short job, so that many jobs share one look. Never touches a
//! job whose plugin still runs.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use receptor_proto::MessageId;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use super::tree::{self, Root};

/// Ended jobs that wait to be cleared away; with more no new job is started.
pub(super) const MAX_PENDING: usize = 1024;
/// Ended jobs gather for this long, so that they share one look at `/proc`.
const GATHER: Duration = Duration::from_millis(50);
/// After a look it is idle for so many times as long as the look took.
const REST: u32 = 5;
/// How soon after a child's death orphans that died unnoticed are reaped: they cost a number in
/// the process table each, nothing more.
const ORPHANS: Duration = Duration::from_secs(1);

/// Clears away what jobs leave behind.
#[derive(Debug, Default)]
pub(super) struct Sweeper {
    ended: RefCell<Vec<Root>>,
    in_hand: Cell<usize>,
    /// The names of the directories of all of these.
    names: RefCell<BTreeSet<OsString>>,
    more: Notify,
    done: Notify,
}

impl Sweeper {
    /// The plugin of this job has exited and was waited for.
    pub(super) fn ended(&self, root: Root) {
        self.names.borrow_mut().extend(name(&root));
        self.ended.borrow_mut().push(root);
        self.more.notify_one();
    }

    /// Whether new jobs should wait for the old ones' remains.
    pub(super) fn is_full(&self) -> bool {
        self.pending() >= MAX_PENDING
    }

    /// Whether the directory of this work is still to be cleared away, and with it whatever is in it.
    pub(super) fn has(&self, work: MessageId) -> bool {
        let names = self.names.borrow();
        !names.is_empty() && names.contains(OsStr::new(&work.to_string()))
    }

    fn pending(&self) -> usize {
        self.ended.borrow().len() + self.in_hand.get()
    }

    /// Waits until something was cleared away.
    pub(super) async fn progress(&self) {
        self.done.notified().await;
    }

    /// Waits until nothing is left.
    pub(super) async fn finish(&self) {
        while self.pending() > 0 {
            self.more.notify_one();
            self.done.notified().await;
        }
    }

    /// Does the work, for ever.
    pub(super) async fn run(self: Rc<Self>) {
        let mut deaths = match signal(SignalKind::child()) {
            Ok(deaths) => Some(deaths),
            Err(error) => {
                tracing::warn!(%error, "orphans are reaped only after jobs: SIGCHLD cannot be received");
                None
            }
        };
        loop {
            tokio::select! {
                () = self.more.notified() => sleep(GATHER).await,
                () = death(&mut deaths) => sleep(ORPHANS).await,
            }
            let ended = self.ended.take();
            self.in_hand.set(ended.len());
            let names: Vec<OsString> = ended.iter().filter_map(name).collect();
            let begin = Instant::now();
            let swept = spawn_blocking(move || {
                tree::sweep(&ended);
                for root in &ended {
                    remove(&root.dir);
                }
            });
            if let Err(error) = swept.await {
                tracing::error!(%error, "clearing away ended jobs");
            }
            self.in_hand.set(0);
            for name in names {
                self.names.borrow_mut().remove(&name);
            }
            self.done.notify_waiters();
            sleep(begin.elapsed() * REST).await;
        }
    }
}

fn name(root: &Root) -> Option<OsString> {
    root.dir.file_name().map(OsStr::to_owned)
}

async fn death(deaths: &mut Option<Signal>) {
    if let Some(deaths) = deaths
        && deaths.recv().await.is_some()
    {
        return;
    }
    std::future::pending::<()>().await;
}

/// Removes a job directory with all that is in it.
pub(super) fn remove(dir: &Path) {
    let result = match fs::remove_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => remove_all(dir),
        other => other,
    };
    if let Err(error) = result
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(dir = %dir.display(), %error, "a job directory cannot be removed");
    }
}

/// Empties a job directory that is another user's to remove.
pub(super) fn empty(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        // Never follows a link, as above.
        let removed = match entry.file_type() {
            Ok(kind) if kind.is_dir() => remove_all(&path),
            Ok(_) | Err(_) => fs::remove_file(&path),
        };
        // Whoever removes the directory meets what is left, and says so.
        let _ = removed;
    }
}

/// Removes a directory, also when its owner has made parts of it read-only.
fn remove_all(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            make_writable(dir);
            fs::remove_dir_all(dir)
        }
        other => other,
    }
}

fn make_writable(dir: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    let mut next: Vec<PathBuf> = vec![dir.to_owned()];
    while let Some(dir) = next.pop() {
        let _ = fs::set_permissions(&dir, fs::Permissions::from_mode(0o700));
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            // Never follows a link: the job's processes are gone, but its links are not.
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                next.push(entry.path());
            }
        }
    }
}
