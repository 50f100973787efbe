//! The last steps before a plugin under test: `receptorctl exec-plugin PATH`.
//!
//! Owns what must happen between the spawn and the plugin's first instruction, as the daemon does it: a
//! session of its own, closed descriptors, umask, unblocked signals, no new privileges, and death with
//! receptorctl. A fresh copy of our own program does it, because a closure after a fork would be unsafe code.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{close, setsid};

/// The word on the command line that makes this program the helper.
pub(crate) const WORD: &str = "exec-plugin";
/// Exit status when the plugin could not be executed, as shells have it.
const CANNOT_EXECUTE: u8 = 126;

/// Becomes the plugin; returns only to end with an exit status.
pub(crate) fn run(mut args: impl Iterator<Item = OsString>) -> u8 {
    let Some(program) = args.next() else {
        return CANNOT_EXECUTE;
    };
    let why = match prepare() {
        Ok(()) => Command::new(&program).exec(),
        Err(e) => e,
    };
    // Whoever tests the plugin shows its stderr.
    let _ = writeln!(
        io::stderr(),
        "cannot execute {}: {why}",
        program.to_string_lossy()
    );
    CANNOT_EXECUTE
}

fn prepare() -> io::Result<()> {
    // Fails only for the leader of a process group, which a spawned process never is.
    let _ = setsid();
    umask(Mode::from_bits_truncate(0o077));
    let mut open = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        open.extend(entry?.file_name().to_string_lossy().parse::<i32>());
    }
    for fd in open {
        // One of them was the listing itself and is closed already.
        if fd > 2 && !matches!(close(fd), Ok(()) | Err(Errno::EBADF)) {
            return Err(io::Error::last_os_error());
        }
    }
    prctl::set_no_new_privs()?;
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    SigSet::empty().thread_set_mask()?;
    Ok(())
}
