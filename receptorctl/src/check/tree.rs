//! Everything that descends from this process, as `/proc` shows it.
//!
//! Owns the promise that nothing is left alive after a check. This process is a child subreaper
//! ([`adopt_orphans`]): whatever loses its parent below it becomes its child, so that its descendants are all there is.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{Pid, getpid};

/// How long killed processes may take to be gone; one that waits for a disk can take longer.
const DEATH: Duration = Duration::from_secs(5);
/// The pause between two looks at what was killed.
const PAUSE: Duration = Duration::from_millis(2);

/// One process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Descendant {
    pub(super) pid: Pid,
    pub(super) name: String,
}

/// From now on orphans below this process become its children.
pub(super) fn adopt_orphans() -> io::Result<()> {
    prctl::set_child_subreaper(true).map_err(io::Error::from)
}

/// Every living descendant.
pub(super) fn descendants() -> Vec<Descendant> {
    let mut parents = BTreeMap::new();
    let mut names = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else {
            continue;
        };
        let Ok(stat) = fs::read(entry.path().join("stat")) else {
            continue;
        };
        if let Some((name, parent)) = parse(&String::from_utf8_lossy(&stat)) {
            parents.insert(pid, parent);
            names.insert(pid, name);
        }
    }
    let own = getpid().as_raw();
    let is_below = |pid: i32| {
        let mut at = pid;
        while let Some(parent) = parents.get(&at) {
            if *parent == own {
                return true;
            }
            at = *parent;
        }
        false
    };
    let pids: Vec<i32> = parents
        .keys()
        .copied()
        .filter(|pid| is_below(*pid))
        .collect();
    pids.into_iter()
        .map(|pid| Descendant {
            pid: Pid::from_raw(pid),
            name: names.remove(&pid).unwrap_or_default(),
        })
        .collect()
}

/// Ends every descendant, and waits until they are gone. Children of which somebody wants the exit status
/// must have been waited for before.
pub(super) fn end_all() -> io::Result<()> {
    let start = Instant::now();
    loop {
        let left = descendants();
        for one in &left {
            // It may have gone by itself.
            let _ = kill(one.pid, Signal::SIGKILL);
        }
        reap();
        if left.is_empty() {
            return Ok(());
        }
        if start.elapsed() > DEATH {
            let pids: Vec<_> = left.iter().map(|one| one.pid.to_string()).collect();
            return Err(io::Error::other(format!("cannot end {}", pids.join(", "))));
        }
        sleep(PAUSE);
    }
}

/// Waits for what has already ended.
fn reap() {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(status) if status.pid().is_some() => {}
            Err(Errno::EINTR) => {}
            Ok(_) | Err(_) => return,
        }
    }
}

/// Name and parent of a living process, from `/proc/PID/stat`.
fn parse(stat: &str) -> Option<(String, i32)> {
    // The name may contain anything, parentheses too.
    let (before, after) = stat.rsplit_once(") ")?;
    let (_, name) = before.split_once('(')?;
    let mut fields = after.split(' ');
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    let parent = fields.next()?.parse().ok()?;
    Some((name.to_owned(), parent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_lines() {
        assert_eq!(
            parse("17 (a) b (c) S 4 17 17 0"),
            Some(("a) b (c".into(), 4))
        );
        assert_eq!(parse("17 (a) Z 4 17"), None);
        assert_eq!(parse("nonsense"), None);
    }
}
