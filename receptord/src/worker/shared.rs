//! What all tasks of the plugin host use together.
//!
//! Owns nothing of a single plugin or job. The host's tasks run on one thread; this is shared by
//! counting references, never by locks.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use receptor_proto::plugin::{PluginHello, Ready};
use receptor_proto::{ErrorBody, MessageId};
use tokio::sync::{Notify, mpsc};

use super::admission::Admission;
use super::api::Report;
use super::process::Spawner;
use super::serve::{Server, ServerEnd};
use super::sweep::Sweeper;

/// See the module.
#[derive(Debug)]
pub(super) struct Shared {
    /// Starts processes.
    pub spawner: Spawner,
    /// Clears up after them.
    pub sweeper: Rc<Sweeper>,
    /// The places for works.
    pub admission: Admission,
    /// To the engine.
    pub reports: mpsc::Sender<Report>,
    /// To the host's own task.
    pub ends: Rc<Ends>,
    number: Cell<u64>,
    unitless: Cell<bool>,
}

impl Shared {
    pub(super) fn new(
        spawner: Spawner,
        admission: Admission,
        reports: mpsc::Sender<Report>,
    ) -> Self {
        Self {
            spawner,
            sweeper: Rc::new(Sweeper::default()),
            admission,
            reports,
            ends: Rc::new(Ends::default()),
            number: Cell::new(0),
            unitless: Cell::new(false),
        }
    }

    /// Whether it is to be told that a plugin could not be run in a unit: once.
    pub(super) fn tell_unitless(&self) -> bool {
        !self.unitless.replace(true)
    }

    /// A number that was not given out before.
    pub(super) fn next_number(&self) -> u64 {
        self.number.set(self.number.get() + 1);
        self.number.get()
    }
}

/// What has ended, for the host's own task.
#[derive(Debug)]
pub(super) enum TaskEnd {
    /// A work in a process of its own, and all that belongs to it.
    Job {
        /// Which.
        work: MessageId,
        /// What the plugin said of itself this time, if it did.
        hello: Option<PluginHello>,
        /// The next daemon goes on with it.
        left: bool,
    },
    /// A work of a serving plugin, which has given its place back, and of which nothing has to be told any more.
    Served(MessageId),
    /// Not an end: places were given back, by a bundle or by a work whose end is not safe yet.
    Room,
    /// A serving process. Its works have ended before it.
    Server {
        /// Whose.
        plugin: String,
        /// Which of its processes.
        server: Rc<Server>,
        /// How.
        end: ServerEnd,
    },
    /// Not yet the end of a serving process, which had better not be started again at once.
    Crashed {
        /// Whose.
        plugin: String,
        /// How.
        why: String,
    },
    /// Not an end: a serving plugin says whether works have a chance.
    Ready {
        /// Which.
        plugin: String,
        /// What it says.
        ready: Ready,
    },
    /// A description.
    Described {
        /// Of which plugin.
        plugin: String,
        /// Which attempt; a later one makes it void.
        number: u64,
        /// What the plugin said, or why it cannot be used.
        result: Result<PluginHello, ErrorBody>,
    },
}

/// A list of them. It is never longer than there are tasks, jobs, and lines in one read of each.
#[derive(Debug, Default)]
pub(super) struct Ends {
    list: RefCell<Vec<TaskEnd>>,
    more: Notify,
}

impl Ends {
    pub(super) fn push(&self, end: TaskEnd) {
        self.list.borrow_mut().push(end);
        self.more.notify_one();
    }

    /// Waits for some.
    pub(super) async fn next(&self) -> Vec<TaskEnd> {
        loop {
            let list = self.list.take();
            if !list.is_empty() {
                return list;
            }
            self.more.notified().await;
        }
    }
}

/// Makes sure that the host's own task learns of a task's end, also when it fails.
#[derive(Debug)]
pub(super) struct Promise {
    ends: Rc<Ends>,
    end: Option<TaskEnd>,
}

impl Promise {
    /// `fallback` is told if nothing else is.
    pub(super) fn new(ends: &Rc<Ends>, fallback: TaskEnd) -> Self {
        Self {
            ends: Rc::clone(ends),
            end: Some(fallback),
        }
    }

    /// Tells how the task ended.
    pub(super) fn keep(mut self, end: TaskEnd) {
        self.end = Some(end);
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        if let Some(end) = self.end.take() {
            self.ends.push(end);
        }
    }
}
