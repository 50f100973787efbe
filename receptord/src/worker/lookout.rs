//! The task that always knows what is installed.
//!
//! Owns the watch on the plugins directories and repeats the look at them after each change. The
//! host's own task hears only of finished looks. Never runs a plugin.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use super::config::PluginDir;
use super::discover::{Installed, scan};
use super::watch::Watch;

/// Before a look that failed is repeated.
const AGAIN: Duration = Duration::from_secs(1);

/// The link between the task and the host's own.
#[derive(Debug)]
pub(super) struct Lookout {
    dirs: RefCell<Vec<PluginDir>>,
    allow_unsafe: Cell<bool>,
    wanted: Notify,
    latest: RefCell<Option<Installed>>,
    found: Notify,
}

impl Lookout {
    pub(super) fn new(dirs: Vec<PluginDir>, allow_unsafe: bool) -> Self {
        Self {
            dirs: RefCell::new(dirs),
            allow_unsafe: Cell::new(allow_unsafe),
            wanted: Notify::new(),
            latest: RefCell::new(None),
            found: Notify::new(),
        }
    }

    /// Looks in other directories from now on, and looks at once.
    pub(super) fn set(&self, dirs: Vec<PluginDir>, allow_unsafe: bool) {
        self.dirs.replace(dirs);
        self.allow_unsafe.set(allow_unsafe);
        self.look();
    }

    /// Looks at once.
    pub(super) fn look(&self) {
        self.wanted.notify_one();
    }

    /// What the next finished look has found.
    pub(super) async fn found(&self) -> Installed {
        loop {
            if let Some(installed) = self.latest.take() {
                return installed;
            }
            self.found.notified().await;
        }
    }

    /// Does the work, for ever.
    pub(super) async fn run(self: Rc<Self>) {
        let mut watch = Watch::new();
        let mut linked = Vec::new();
        loop {
            let dirs = self.dirs.borrow().clone();
            let allow_unsafe = self.allow_unsafe.get();
            watch.set(&dirs, &linked);
            let looked = spawn_blocking(move || scan(&dirs, allow_unsafe)).await;
            let installed = match looked {
                Ok(installed) => installed,
                Err(error) => {
                    tracing::error!(%error, "looking at the plugins directories");
                    sleep(AGAIN).await;
                    continue;
                }
            };
            if installed.linked != linked {
                // What links lead to is to be watched too, before the look that counts.
                linked.clone_from(&installed.linked);
                continue;
            }
            self.latest.replace(Some(installed));
            self.found.notify_one();
            tokio::select! {
                () = watch.changed() => {}
                () = self.wanted.notified() => {}
            }
        }
    }
}
