//! Processes as `/proc` shows them, and how the ones of a job are found.
//!
//! Owns the one way in which a process is recognised as a job's, wherever it has gone:
//!
//! | a process is the job's when | which catches |
//! |---|---|
//! | it is a descendant of the plugin | all, while the plugin lives |
//! | its session or process group is the plugin's | children of a plugin that has died |
//! | its first environment names the job directory | those that called `setsid` |
//! | it is an orphan here that works in the job directory | those that cleared their environment as well |
//! | it is a descendant of one of these | helpers of those |
//! | it is an orphan here, and no plugin that runs is old enough to be its parent | those that hid all of the above |
//!
//! The last one works because the daemon is a *child subreaper*: whatever loses its parent below it
//! becomes its own child. Plugins have sessions of their own, so a child in the daemon's session is
//! not theirs and is never touched.
//!
//! Everything here blocks for as long as the machine has processes: run it on a blocking thread.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{Pid, getpid, getsid};
use receptor_proto::plugin::env;

/// How long killed processes may take to be gone. One that waits for a disk can take longer and
/// is given up, with an error in the log.
pub(super) const DEATH: Duration = Duration::from_secs(5);
/// The first pause between two looks at what was killed; it doubles up to [`LAST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(1);
/// The longest pause between two looks.
const LAST_PAUSE: Duration = Duration::from_millis(100);
/// Bytes of `/proc/PID/stat` that are read: 52 numbers and a name of at most 64 bytes.
const MAX_STAT: usize = 1536;
/// Bytes of a process's environment that are searched. Ours stands first, but a program may
/// have been given more by its parent.
const MAX_ENVIRONMENT: u64 = 256 * 1024;

/// A process whose job is over, or is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Root {
    /// The plugin's process, which was its session's leader.
    pub pid: i32,
    /// Its job directory.
    pub dir: PathBuf,
}

/// Processes that the daemon started itself and waits for, and whether a plugin runs in them yet.
/// Belongs to the program and not to a host, as children do.
static CHILDREN: Mutex<BTreeMap<i32, bool>> = Mutex::new(BTreeMap::new());

/// Held for reading from a child's start to its entry in [`CHILDREN`].
static STARTING: RwLock<()> = RwLock::new(());

/// The entry of a child that somebody waits for: nobody else may.
#[derive(Debug)]
pub(super) struct Awaited(i32);

impl Awaited {
    /// Enters a child that `start` starts. Until it is entered nobody looks for orphans.
    ///
    /// # Errors
    /// That of `start`.
    pub(super) fn start<T>(start: impl FnOnce() -> io::Result<(T, i32)>) -> io::Result<(T, Self)> {
        let _starting = STARTING.read().unwrap_or_else(PoisonError::into_inner);
        let (child, pid) = start()?;
        children().insert(pid, false);
        Ok((child, Self(pid)))
    }

    pub(super) fn pid(&self) -> i32 {
        self.0
    }

    /// From now on the child can have children.
    pub(super) fn runs_plugin(&self) {
        children().insert(self.0, true);
    }
}

impl Drop for Awaited {
    fn drop(&mut self) {
        children().remove(&self.0);
    }
}

fn children() -> MutexGuard<'static, BTreeMap<i32, bool>> {
    CHILDREN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The children that were started before this call, after which a snapshot that was taken before
/// shows none that is missing here.
fn entered() -> BTreeMap<i32, bool> {
    drop(STARTING.write().unwrap_or_else(PoisonError::into_inner));
    children().clone()
}

/// One process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Process {
    pid: i32,
    parent: i32,
    group: i32,
    session: i32,
    /// In clock ticks since the machine's start.
    start: u64,
    dead: bool,
}

impl Process {
    fn is_of_session(&self, leader: i32) -> bool {
        self.session == leader || self.group == leader
    }
}

/// All processes at one moment.
struct Snapshot {
    all: BTreeMap<i32, Process>,
    by_parent: BTreeMap<i32, Vec<i32>>,
}

impl Snapshot {
    fn take() -> Self {
        let mut all = BTreeMap::new();
        let mut by_parent: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
        let mut buffer = [0; MAX_STAT];
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else {
                continue;
            };
            // One read: this is done for every process of the machine.
            let read = fs::File::open(format!("/proc/{pid}/stat"))
                .and_then(|mut file| file.read(&mut buffer));
            if let Ok(count) = read
                && let Some(process) = parse(pid, &buffer[..count])
            {
                all.insert(pid, process);
                by_parent.entry(process.parent).or_default().push(pid);
            }
        }
        Self { all, by_parent }
    }

    /// The daemon's children that it did not start: what has lost its parent below it.
    fn orphans(&self) -> Vec<Process> {
        let own = getpid().as_raw();
        let own_session = getsid(None).map_or(0, Pid::as_raw);
        let awaited = entered();
        let pids = self.by_parent.get(&own).into_iter().flatten();
        pids.filter_map(|pid| self.all.get(pid))
            .filter(|p| !awaited.contains_key(&p.pid) && p.session != own_session)
            .copied()
            .collect()
    }

    /// Adds `pid` and its descendants to `set`.
    fn descend(&self, pid: i32, set: &mut BTreeSet<i32>) {
        let mut next = vec![pid];
        while let Some(pid) = next.pop() {
            if set.insert(pid) {
                next.extend(self.by_parent.get(&pid).into_iter().flatten());
            }
        }
    }
}

/// Reads `/proc/PID/stat`. The program's name stands in parentheses and may contain anything.
fn parse(pid: i32, text: &[u8]) -> Option<Process> {
    let end = text.iter().rposition(|byte| *byte == b')')?;
    let text = str::from_utf8(text.get(end + 1..)?).ok()?;
    let mut fields = text.split_ascii_whitespace();
    let state = fields.next()?;
    let mut number = || fields.next()?.parse().ok();
    let (parent, group, session) = (number()?, number()?, number()?);
    // Start time is the 22nd field of all, counted from 1.
    let start = fields.nth(15)?.parse().ok()?;
    Some(Process {
        pid,
        parent,
        group,
        session,
        start,
        dead: matches!(state, "Z" | "X" | "x"),
    })
}

/// The job directory that a process was started with.
fn job_dir(pid: i32) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStrExt as _;
    let mut bytes = Vec::new();
    let file = fs::File::open(format!("/proc/{pid}/environ")).ok()?;
    file.take(MAX_ENVIRONMENT).read_to_end(&mut bytes).ok()?;
    bytes.split(|byte| *byte == 0).find_map(|variable| {
        let value = variable.strip_prefix(env::JOB_DIR.as_bytes())?;
        let value = value.strip_prefix(b"=")?;
        Some(PathBuf::from(std::ffi::OsStr::from_bytes(value)))
    })
}

/// Whether a process works in this directory or below it.
fn works_in(pid: i32, dir: &Path) -> bool {
    fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|place| place.starts_with(dir))
}

/// Sends a signal to a process of this daemon's and its group.
pub(super) fn signal(pid: i32, signal: Signal) {
    // Before its `setsid` it is in no group of its own.
    if kill(Pid::from_raw(-pid), signal) == Err(Errno::ESRCH) {
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

/// Keeps a plugin that lives from making more processes, before all of them are looked for.
///
/// A helper that has not become its plugin has none and is killed at once: should this daemon go
/// before it comes to that, a stopped one would stay for ever, because nothing about it says yet
/// that it is of a job. A stopped plugin is found by the next start.
pub(super) fn halt(root: &Root) {
    let is_plugin = job_dir(root.pid).as_ref() == Some(&root.dir);
    let with = if is_plugin {
        Signal::SIGSTOP
    } else {
        Signal::SIGKILL
    };
    signal(root.pid, with);
}

/// Kills the plugin and everything that is of its job, and returns when all of it is dead or
/// [`DEATH`] has passed. The plugin itself remains for whoever waits for it.
pub(super) fn kill_all(root: &Root) {
    let own = getpid().as_raw();
    let end = until_gone(|| {
        let snapshot = Snapshot::take();
        let mut set = BTreeSet::new();
        if snapshot.all.get(&root.pid).is_some_and(|p| p.parent == own) {
            snapshot.descend(root.pid, &mut set);
        }
        for orphan in snapshot.orphans() {
            if orphan.is_of_session(root.pid)
                || job_dir(orphan.pid).as_ref() == Some(&root.dir)
                || works_in(orphan.pid, &root.dir)
            {
                snapshot.descend(orphan.pid, &mut set);
            }
        }
        living(&snapshot, &set)
    });
    report(&end, &root.dir);
}

/// Ends what is left of jobs whose plugins have exited, and reaps orphans that have ended by
/// themselves. Returns when nothing is left or [`DEATH`] has passed.
pub(super) fn sweep(ended: &[Root]) {
    // The first process of a container also gets the orphans of whoever looks into the container.
    let hunts = getpid().as_raw() != 1;
    let end = until_gone(|| {
        let snapshot = Snapshot::take();
        let children = entered();
        let oldest_plugin = children
            .iter()
            .filter(|(_, runs_plugin)| **runs_plugin)
            .filter_map(|(pid, _)| snapshot.all.get(pid))
            .map(|process| process.start)
            .min();
        let mut set = BTreeSet::new();
        for orphan in snapshot.orphans() {
            let is_left = if orphan.dead {
                true
            } else if let Some(pid) = children.keys().find(|pid| orphan.is_of_session(**pid)) {
                // Asked first: the number of an ended plugin may have been given to a new one.
                tracing::trace!(orphan.pid, plugin = pid, "still has its plugin");
                false
            } else if ended.iter().any(|root| orphan.is_of_session(root.pid)) {
                true
            } else if let Some(dir) = job_dir(orphan.pid) {
                // A directory outlives its job only until everything of the job is gone.
                ended.iter().any(|root| root.dir == dir) || !dir.exists()
            } else if ended.iter().any(|root| works_in(orphan.pid, &root.dir)) {
                true
            } else {
                hunts && oldest_plugin.is_none_or(|start| start > orphan.start)
            };
            if is_left {
                snapshot.descend(orphan.pid, &mut set);
            }
        }
        living(&snapshot, &set)
    });
    if let Some(root) = ended.first() {
        report(&end, &root.dir);
    }
}

/// Ends everything that was started with a job directory below `jobs`: what a daemon that is
/// gone has left behind, but for the jobs that it has left to others.
pub(super) fn sweep_below(jobs: &Path, spared: &BTreeSet<String>) {
    let own = getpid().as_raw();
    let end = until_gone(|| {
        let snapshot = Snapshot::take();
        let mut set = BTreeSet::new();
        for pid in snapshot.all.keys() {
            let is_left = |dir: PathBuf| {
                let job = dir.strip_prefix(jobs).ok()?.components().next()?;
                let job = job.as_os_str().to_str();
                Some(job.is_none_or(|job| !spared.contains(job)))
            };
            if *pid != own && job_dir(*pid).and_then(is_left) == Some(true) {
                snapshot.descend(*pid, &mut set);
            }
        }
        set.remove(&own);
        living(&snapshot, &set)
    });
    report(&end, jobs);
}

/// Those of a set that have not ended. The ended ones that nobody waits for are reaped.
fn living(snapshot: &Snapshot, set: &BTreeSet<i32>) -> Vec<i32> {
    let own = getpid().as_raw();
    let mut living = Vec::new();
    for process in set.iter().filter_map(|pid| snapshot.all.get(pid)) {
        if !process.dead {
            living.push(process.pid);
        } else if process.parent == own && !children().contains_key(&process.pid) {
            reap(process.pid);
        }
    }
    living
}

fn reap(pid: i32) {
    // Whoever it was, it has ended; its status is of no use to anybody.
    let _ = waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG));
}

/// Kills what `find` finds until it finds nothing more. Returns what would not die.
fn until_gone(mut find: impl FnMut() -> Vec<i32>) -> Vec<i32> {
    let deadline = Instant::now() + DEATH;
    let mut pause = FIRST_PAUSE;
    loop {
        let found = find();
        if found.is_empty() || Instant::now() > deadline {
            return found;
        }
        for pid in &found {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        sleep(pause);
        pause = (pause * 2).min(LAST_PAUSE);
    }
}

fn report(left: &[i32], dir: &Path) {
    if !left.is_empty() {
        tracing::error!(?left, dir = %dir.display(), "processes of a job would not die");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_s_name_cannot_forge_the_other_fields() {
        let text = b"42 (\xff) S 1 1 1) S 7 8 9 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 4711 1 2\n";
        let process = parse(42, text).unwrap();
        assert_eq!((process.parent, process.group, process.session), (7, 8, 9));
        assert_eq!((process.start, process.dead), (4711, false));
        assert_eq!(parse(42, b"42 (sh"), None);
    }

    #[test]
    fn this_process_is_in_the_snapshot() {
        let own = getpid().as_raw();
        let snapshot = Snapshot::take();
        let process = snapshot.all.get(&own).unwrap();
        assert!(!process.dead);
        assert_eq!(process.parent, nix::unistd::getppid().as_raw());
    }
}
