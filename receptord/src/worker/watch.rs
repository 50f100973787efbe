//! Noticing that something has changed in the plugins directories.
//!
//! Owns the inotify instance: on every directory, on the nearest ancestor of one that is not there
//! yet, on the directory above one that is, and on the directories that links lead to. It says only *that*
//! something changed; what, is for `discover` to see. Where inotify is not to be had, it says so every few
//! seconds instead.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep, timeout_at};

use super::config::PluginDir;

/// After a change it has to be quiet for so long, so that a file is not looked at half-way through
/// its installation.
const QUIET: Duration = Duration::from_millis(100);
/// But a directory that is never quiet is looked at after this time.
const AT_LAST: Duration = Duration::from_secs(2);
/// How often to look without inotify.
const POLL: Duration = Duration::from_secs(10);
/// How often the set of watches is made again because directories have come meanwhile.
const RACES: usize = 10;

/// Watches directories.
#[derive(Debug)]
pub(super) struct Watch {
    inotify: Option<AsyncFd<Fd>>,
    /// The names that matter in each watched directory; all when `None`.
    watched: HashMap<WatchDescriptor, Option<BTreeSet<OsString>>>,
}

#[derive(Debug)]
struct Fd(Inotify);

impl AsRawFd for Fd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Watch {
    /// To be called inside of the runtime.
    pub(super) fn new() -> Self {
        let flags = InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK;
        let inotify = Inotify::init(flags).map_err(io::Error::from);
        #[expect(
            deprecated,
            reason = "sound here: an Inotify owns its descriptor and never replaces it"
        )]
        let inotify = inotify.and_then(|inotify| AsyncFd::new(Fd(inotify)));
        if let Err(error) = &inotify {
            tracing::warn!(
                %error,
                every = ?POLL,
                "plugins directories are polled, because they cannot be watched; see the sysctl fs.inotify.max_user_instances"
            );
        }
        Self {
            inotify: inotify.ok(),
            watched: HashMap::new(),
        }
    }

    /// Watches these directories and files, and nothing else. To be called before a look at them.
    pub(super) fn set(&mut self, dirs: &[PluginDir], files: &[PathBuf]) {
        let mut now = wanted(dirs, files);
        for _ in 0..RACES {
            self.apply(&now);
            // A directory that was made in between is not watched yet.
            let then = std::mem::replace(&mut now, wanted(dirs, files));
            if now == then {
                return;
            }
        }
    }

    fn apply(&mut self, wanted: &BTreeMap<PathBuf, Names>) {
        let Some(inotify) = &self.inotify else { return };
        let mut watched = HashMap::new();
        for (path, names) in wanted {
            let flags = AddWatchFlags::IN_CREATE
                | AddWatchFlags::IN_MOVED_TO
                | AddWatchFlags::IN_MOVED_FROM
                | AddWatchFlags::IN_DELETE
                | AddWatchFlags::IN_CLOSE_WRITE
                | AddWatchFlags::IN_ATTRIB
                | AddWatchFlags::IN_DELETE_SELF
                | AddWatchFlags::IN_MOVE_SELF
                | AddWatchFlags::IN_ONLYDIR;
            match inotify.get_ref().0.add_watch(path, flags) {
                // Two names of one directory have one descriptor.
                Ok(descriptor) => merge(watched.entry(descriptor), names.clone()),
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::EACCES) => {}
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "cannot be watched for plugins");
                }
            }
        }
        for descriptor in self.watched.keys() {
            if !watched.contains_key(descriptor) {
                // It may be gone by itself, with its directory.
                let _ = inotify.get_ref().0.rm_watch(*descriptor);
            }
        }
        self.watched = watched;
    }

    /// Waits for a change, and until it seems to be complete. Whoever drops it before its end must
    /// take that for a change.
    pub(super) async fn changed(&self) {
        let Some(inotify) = &self.inotify else {
            sleep(POLL).await;
            return;
        };
        while !self.read(inotify).await {}
        let at_last = Instant::now() + AT_LAST;
        loop {
            let quiet = (Instant::now() + QUIET).min(at_last);
            match timeout_at(quiet, self.read(inotify)).await {
                Ok(_) => {}
                Err(_) => return,
            }
        }
    }

    /// Reads what has happened. Whether any of it matters.
    async fn read(&self, inotify: &AsyncFd<Fd>) -> bool {
        let Ok(mut guard) = inotify.readable().await else {
            sleep(POLL).await;
            return true;
        };
        let events = guard.try_io(|fd| fd.get_ref().0.read_events().map_err(io::Error::from));
        match events {
            Ok(Ok(events)) => events.iter().any(|event| self.matters(event)),
            Ok(Err(error)) => {
                tracing::warn!(%error, "reading changes of the plugins directories");
                true
            }
            Err(_would_block) => false,
        }
    }

    fn matters(&self, event: &InotifyEvent) -> bool {
        if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
            return true;
        }
        match (self.watched.get(&event.wd), &event.name) {
            (Some(Some(names)), Some(name)) => names.contains(name),
            // About the directory itself, or all names count.
            (Some(_), _) => !event.mask.contains(AddWatchFlags::IN_IGNORED),
            (None, _) => false,
        }
    }
}

type Names = Option<BTreeSet<OsString>>;

/// Which directories to watch, and for which names in each.
fn wanted(dirs: &[PluginDir], files: &[PathBuf]) -> BTreeMap<PathBuf, Names> {
    let mut wanted: BTreeMap<PathBuf, Names> = BTreeMap::new();
    let mut one = |path: &Path, name: &OsStr| {
        let names = wanted
            .entry(path.to_owned())
            .or_insert_with(|| Some(BTreeSet::new()));
        if let Some(names) = names {
            names.insert(name.to_owned());
        }
    };
    for dir in dirs {
        // The directory above tells when this one is removed, made again, or a link that is turned.
        // Of one that is not there, only the nearest that is can tell.
        let mut path = dir.path.as_path();
        while let (Some(parent), Some(name)) = (path.parent(), path.file_name()) {
            one(parent, name);
            if parent.is_dir() {
                break;
            }
            path = parent;
        }
    }
    for file in files {
        if let (Some(parent), Some(name)) = (file.parent(), file.file_name()) {
            one(parent, name);
        }
    }
    for dir in dirs {
        let names = dir
            .only
            .map(|only| only.iter().map(OsString::from).collect());
        let entry = wanted
            .entry(dir.path.clone())
            .or_insert_with(|| Some(BTreeSet::new()));
        match (entry, names) {
            (Some(all), Some(names)) => all.extend::<BTreeSet<_>>(names),
            (entry, None) => *entry = None,
            (None, Some(_)) => {}
        }
    }
    wanted
}

fn merge(entry: std::collections::hash_map::Entry<'_, WatchDescriptor, Names>, names: Names) {
    match entry.or_insert_with(|| Some(BTreeSet::new())) {
        all @ Some(_) if names.is_none() => *all = None,
        Some(all) => all.extend(names.into_iter().flatten()),
        None => {}
    }
}
