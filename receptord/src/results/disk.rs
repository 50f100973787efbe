//! The files of results and dead letters, written off the engine's thread.
//!
//! Owns the order of the writes and their syncs: one batch runs at a time, and what comes up
//! meanwhile becomes the next one, so that many works share the sync of the directory. A write is
//! reported when it, and the name of its file, are on the disk; a removal when the name is gone from
//! there, so that no loss of power brings it back. Knows nothing of what is written.

use std::cell::RefCell;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use tokio::sync::oneshot;

use crate::task;

/// Jobs of one batch, so that its results come soon.
const BATCH_MAX: usize = 256;

/// What is to be done in the directory.
#[derive(Debug)]
pub(super) enum Op {
    /// Write behind what is there, and take files of the same file system along as further names.
    Append {
        name: String,
        /// Where the last write that is known to have succeeded ended; what lies behind is torn.
        offset: u64,
        bytes: Vec<u8>,
        /// From where, and the name here.
        links: Vec<(PathBuf, String)>,
    },
    /// Remove files; those that are not there do no harm.
    Remove { names: Vec<String> },
}

type Told = Box<dyn FnOnce(io::Result<()>)>;

/// See the module. Clones are the same directory.
#[derive(Clone)]
pub(super) struct Disk(Rc<Inner>);

struct Inner {
    dir: PathBuf,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    pending: Vec<(Op, Told)>,
    running: bool,
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Disk({})", self.0.dir.display())
    }
}

impl Disk {
    /// The directory, which exists.
    pub(super) fn new(dir: PathBuf) -> Self {
        Self(Rc::new(Inner {
            dir,
            state: RefCell::default(),
        }))
    }

    pub(super) fn dir(&self) -> &Path {
        &self.0.dir
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.dir.join(name)
    }

    /// Does it behind everything that was asked before.
    pub(super) fn push(&self, op: Op, told: impl FnOnce(io::Result<()>) + 'static) {
        let mut state = self.0.state.borrow_mut();
        state.pending.push((op, Box::new(told)));
        if !state.running {
            state.running = true;
            drop(state);
            task::spawn("results", self.clone().run());
        }
    }

    /// Waits until everything that was asked before is done.
    pub(super) async fn flushed(&self) {
        let (told, done) = oneshot::channel();
        let nothing = Op::Remove { names: Vec::new() };
        self.push(nothing, |_| {
            let _ = told.send(());
        });
        // Else the runtime ends.
        let _ = done.await;
    }

    async fn run(self) {
        loop {
            let (ops, tolds): (Vec<_>, Vec<_>) = {
                let mut state = self.0.state.borrow_mut();
                if state.pending.is_empty() {
                    state.running = false;
                    return;
                }
                let count = state.pending.len().min(BATCH_MAX);
                state.pending.drain(..count).unzip()
            };
            let dir = self.0.dir.clone();
            let Ok(results) = tokio::task::spawn_blocking(move || batch(&dir, ops)).await else {
                // Only when the runtime ends.
                return;
            };
            for (told, result) in tolds.into_iter().zip(results) {
                told(result);
            }
        }
    }
}

fn batch(dir: &Path, ops: Vec<Op>) -> Vec<io::Result<()>> {
    let mut names_changed = false;
    let mut results: Vec<_> = ops
        .into_iter()
        .map(|op| work(dir, op, &mut names_changed))
        .collect();
    if names_changed && let Err(error) = File::open(dir).and_then(|dir| dir.sync_all()) {
        for result in &mut results {
            if result.is_ok() {
                *result = Err(io::Error::new(error.kind(), error.to_string()));
            }
        }
    }
    results
}

fn work(dir: &Path, op: Op, names_changed: &mut bool) -> io::Result<()> {
    match op {
        Op::Append {
            name,
            offset,
            bytes,
            links,
        } => {
            for (from, name) in links {
                // A name that is there was left by a write of which another part failed, or that
                // was not believed.
                match receptor_spool::link_payload(&from, &dir.join(name)) {
                    // It was found damaged and set aside: who reads it here will find that too.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    linked => linked?,
                }
                *names_changed = true;
            }
            let file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(dir.join(name))?;
            *names_changed |= offset == 0;
            file.set_len(offset)?;
            file.write_all_at(&bytes, offset)?;
            file.sync_data()
        }
        Op::Remove { names } => {
            for name in names {
                match fs::remove_file(dir.join(name)) {
                    Ok(()) => *names_changed = true,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        }
    }
}
