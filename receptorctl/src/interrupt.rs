//! Ctrl-C, for commands that have something to finish when it comes.
//!
//! Owns the SIGINT of the process from [`Interrupts::watch`] on. The first one makes a descriptor
//! readable, for a `poll` beside sockets; the second ends the program at once, even while it waits
//! for a reader of stdout who does not read.

use std::io::{self, PipeReader, Write as _};
use std::os::fd::{AsFd, BorrowedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::exit::Exit;

/// A watch over SIGINT that lasts as long as the process.
#[derive(Debug)]
pub(crate) struct Interrupts {
    wake: PipeReader,
}

impl Interrupts {
    /// Takes SIGINT over. Called before any other thread is started, so that all inherit it blocked;
    /// a child process inherits it blocked too.
    pub(crate) fn watch() -> io::Result<Self> {
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGINT);
        signals.thread_block()?;
        let source = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC)?;
        let (wake, mut waker) = io::pipe()?;
        std::thread::Builder::new()
            .name("interrupts".into())
            .spawn(move || {
                let mut seen = false;
                while let Ok(Some(_)) = source.read_signal() {
                    if seen {
                        std::process::exit(Exit::Interrupted as i32);
                    }
                    seen = true;
                    // The reader lives as long as this thread's process.
                    let _ = waker.write_all(b"!");
                }
            })?;
        Ok(Self { wake })
    }

    /// Whether the first one came.
    pub(crate) fn came(&self) -> bool {
        let mut fds = [PollFd::new(self.wake.as_fd(), PollFlags::POLLIN)];
        nix::poll::poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }
}

impl AsFd for Interrupts {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}
