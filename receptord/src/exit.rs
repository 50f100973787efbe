//! The daemon's exit codes.
//!
//! Owns the numbers and nothing else. They follow `sysexits(3)` where it has a word, and
//! are shared with `receptorctl`, so that a script can act on them. They are
//! part of the interface: a code may be added, never given another meaning.

use std::process::{ExitCode, Termination};

/// How the daemon ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done: stopped because it was asked to.
    Ok = 0,
    /// The command line is wrong.
    Usage = 2,
    /// Something the daemon needs is not there: an address in use, a store that cannot be read.
    Unavailable = 69,
    /// A defect of the daemon itself.
    Internal = 70,
    /// Not now: another daemon holds the data directory. Starting again later may help.
    TryAgain = 75,
    /// The operating system did not permit it.
    NotPermitted = 77,
    /// The configuration is wrong. Starting again without a change does not help.
    Configuration = 78,
}

impl Exit {
    /// The number that the parent process sees.
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

impl Termination for Exit {
    fn report(self) -> ExitCode {
        self.into()
    }
}
