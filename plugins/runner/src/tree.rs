//! The processes of a job. This process is the child subreaper: what a job starts stays below
//! it, however often it forks or calls `setsid`, until it has ended.
//!
//! Signals nothing that is not a descendant of this process.

use std::{
    fs, io,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::{
        prctl,
        signal::{Signal, kill},
        wait::{WaitPidFlag, waitpid},
    },
    unistd::Pid,
};

/// Time between two looks at what is left.
const PAUSE: Duration = Duration::from_millis(5);
/// Longest wait for processes that were killed: one that waits for a broken disk or network file
/// system does not end at all.
const KILL_WAIT: Duration = Duration::from_secs(5);

/// Makes this process the one that orphans below it fall to.
pub(crate) fn become_subreaper() -> io::Result<()> {
    Ok(prctl::set_child_subreaper(true)?)
}

/// A process below this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Process {
    pid: Pid,
    parent: Pid,
    ended: bool,
}

/// Asks everything below this process to end: first the given one, which then knows that the rest
/// was meant as well.
pub(crate) fn terminate(first: Pid) {
    let mut processes = descendants();
    processes.retain(|process| !process.ended);
    processes.sort_by_key(|process| process.pid != first);
    for process in processes {
        signal(process.pid, Signal::SIGTERM);
    }
}

/// Ends everything below this process: asks, waits for the grace, kills until nothing is left.
/// Returns how many were still there at the start, and how many were left in spite of all.
pub(crate) fn sweep(grace: Duration) -> (usize, usize) {
    reap();
    let start = alive();
    for pid in &start {
        signal(*pid, Signal::SIGTERM);
    }
    let until = Instant::now() + grace;
    while !alive().is_empty() && Instant::now() < until {
        thread::sleep(PAUSE);
        reap();
    }
    let until = Instant::now() + KILL_WAIT;
    loop {
        reap();
        let left = alive();
        if left.is_empty() || Instant::now() >= until {
            return (start.len(), left.len());
        }
        for pid in left {
            signal(pid, Signal::SIGKILL);
        }
        thread::sleep(PAUSE);
    }
}

/// Takes note of the ends of orphans, so that they do not stay as zombies while a long job runs.
/// The child that somebody waits for is left to them.
pub(crate) fn reap_orphans(child: Pid) {
    let me = Pid::this();
    for process in descendants() {
        if process.ended && process.parent == me && process.pid != child {
            // Somebody else having done it is as good.
            let _ = waitpid(process.pid, Some(WaitPidFlag::WNOHANG));
        }
    }
}

/// Takes note of all ends. Nobody may be waiting for a particular child any more.
fn reap() {
    while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        if status.pid().is_none() {
            return;
        }
    }
}

fn alive() -> Vec<Pid> {
    let processes = descendants().into_iter();
    processes.filter(|p| !p.ended).map(|p| p.pid).collect()
}

fn signal(pid: Pid, signal: Signal) {
    // It may have ended by itself, or have changed its user; the second is seen by what is left.
    let _ = kill(pid, signal);
}

/// All processes below this one.
fn descendants() -> Vec<Process> {
    let all = processes();
    let mut found: Vec<Process> = Vec::new();
    let mut parents = vec![Pid::this()];
    while let Some(parent) = parents.pop() {
        for process in all.iter().filter(|p| p.parent == parent) {
            parents.push(process.pid);
            found.push(*process);
        }
    }
    found
}

fn processes() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(Result::ok)
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            process(Pid::from_raw(pid), &entry.path())
        })
        .collect()
}

/// Reads `PID (NAME) STATE PARENT …`; the name may have blanks and brackets.
fn process(pid: Pid, dir: &Path) -> Option<Process> {
    let stat = fs::read(dir.join("stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    Some(Process {
        pid,
        parent: Pid::from_raw(parent),
        ended: matches!(state, "Z" | "X"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_found_below_its_parent() {
        let me = processes()
            .into_iter()
            .find(|p| p.pid == Pid::this())
            .unwrap();
        assert_eq!(me.parent, Pid::parent());
        assert!(!me.ended);
    }
}
