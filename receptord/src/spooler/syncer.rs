//! The thread that makes payloads durable while they are still being written, and frees them.
//!
//! A large payload takes the disk for as long as many small messages together; done by the thread
//! that commits, they would all wait for it. Knows nothing of messages: it syncs one file after
//! the other and says so in the queue of the thread that owns the spool.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use receptor_spool::Growing;

use super::queue::{Job, Queue};

/// Files that may wait. Of each payload there is one at most, and payloads are bounded by those
/// who write them.
const WAITING_MAX: usize = 4096;

/// One thing to do.
enum Task {
    Sync(Growing<File>),
    /// Its name is gone; the last to close it frees it.
    Close(File),
}

/// See the module. Ends when it is dropped.
#[derive(Debug)]
pub(super) struct Syncer {
    files: Option<SyncSender<Task>>,
    thread: Option<JoinHandle<()>>,
}

impl Syncer {
    pub(super) fn start(queue: Arc<Queue>) -> io::Result<Self> {
        let (files, waiting) = sync_channel(WAITING_MAX);
        let thread = std::thread::Builder::new().name("spool-sync".to_owned());
        let thread = thread.spawn(move || run(&waiting, &queue))?;
        Ok(Self {
            files: Some(files),
            thread: Some(thread),
        })
    }

    pub(super) fn sync(&self, file: Growing<File>) {
        self.push(Task::Sync(file));
    }

    pub(super) fn close(&self, file: File) {
        self.push(Task::Close(file));
    }

    fn push(&self, task: Task) {
        if let Some(files) = &self.files {
            // It only ends when this is dropped.
            let _ = files.send(task);
        }
    }
}

impl Drop for Syncer {
    fn drop(&mut self) {
        self.files = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(waiting: &Receiver<Task>, queue: &Queue) {
    while let Ok(task) = waiting.recv() {
        match task {
            Task::Sync(file) => {
                queue.push(Job::Synced(file.run()));
                queue.wake();
            }
            Task::Close(file) => drop(file),
        }
    }
}
