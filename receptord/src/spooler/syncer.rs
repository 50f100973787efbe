//! The thread that makes payloads durable while they are still being written.
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

/// Files that may wait for their sync. Of each payload there is one at most, and payloads are
/// bounded by those who write them.
const WAITING_MAX: usize = 4096;

/// See the module. Ends when it is dropped.
#[derive(Debug)]
pub(super) struct Syncer {
    files: Option<SyncSender<Growing<File>>>,
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

    pub(super) fn push(&self, file: Growing<File>) {
        if let Some(files) = &self.files {
            // It only ends when this is dropped.
            let _ = files.send(file);
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

fn run(waiting: &Receiver<Growing<File>>, queue: &Queue) {
    while let Ok(file) = waiting.recv() {
        queue.push(Job::Synced(file.run()));
        queue.wake();
    }
}
