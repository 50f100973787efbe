//! How the program ends: the exit codes, and the failure that a person reads.
//!
//! Owns the numbers, which are part of the interface, and the one table that says
//! which of them each error code of the protocol becomes.

use std::io::Write as _;
use std::process::{ExitCode, Termination};

use receptor_proto::{ErrorBody, ErrorCode};

use crate::output::printable;

/// How the program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// The work failed, or a node answered no.
    Failed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// The daemon cannot be reached or does not answer.
    Unavailable = 69,
    /// A defect of receptorctl or the daemon, or something the system refused for no fault of the user.
    Internal = 70,
    /// Given up waiting; the message is still accepted.
    TimedOut = 75,
    /// Not permitted, by the operating system or by policy.
    NotPermitted = 77,
    /// The configuration is wrong.
    Configuration = 78,
    /// Ended from the keyboard.
    Interrupted = 130,
    /// Nobody reads stdout any more; the number the shell gives a program that SIGPIPE ended.
    BrokenPipe = 141,
}

/// The error codes that are more than a node's no, which all others are, those of a newer daemon too.
const NOT_JUST_NO: &[(ErrorCode, Exit)] = &[
    (ErrorCode::InvalidRequest, Exit::Usage),
    (ErrorCode::PermissionDenied, Exit::NotPermitted),
    (ErrorCode::Internal, Exit::Internal),
    (ErrorCode::Configuration, Exit::Configuration),
];

impl Exit {
    /// What an error code means for a shell, whether the daemon or another node said it.
    pub(crate) fn of(code: &ErrorCode) -> Self {
        NOT_JUST_NO
            .iter()
            .find(|(known, _)| known == code)
            .map_or(Self::Failed, |(_, exit)| *exit)
    }

    /// What the error that a work ended with means for a shell. A plugin may call its own troubles
    /// internal or its payload invalid: that is a failed work and not a defect or misuse of this program.
    pub(crate) fn of_work(code: &ErrorCode) -> Self {
        if Self::of(code) == Self::NotPermitted {
            return Self::NotPermitted;
        }
        Self::Failed
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

impl Termination for Exit {
    fn report(self) -> ExitCode {
        self.into()
    }
}

/// Why the program ends without having done what was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// The exit code.
    pub(crate) exit: Exit,
    /// For stderr, one line a cause; nothing is printed when it is empty.
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { exit, message }
    }

    /// Ends with `exit` when everything worth saying is already said.
    pub(crate) fn silent(exit: Exit) -> Self {
        Self::new(exit, "")
    }

    /// What the daemon or a node answered in place of what was asked for.
    pub(crate) fn answered(error: &ErrorBody) -> Self {
        Self::new(Exit::of(&error.code), error.to_string())
    }

    /// A step on this host that the system refused.
    pub(crate) fn system(doing: &str, error: &std::io::Error) -> Self {
        Self::new(Exit::Internal, format!("{doing}: {error}"))
    }

    /// Says it on stderr, every line with the program's name before it.
    pub(crate) fn print(&self) {
        let mut stderr = std::io::stderr().lock();
        for line in self.message.lines() {
            // Nobody to tell is no reason to end otherwise.
            let _ = writeln!(stderr, "receptorctl: {}", printable(line));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every code, so that a new one makes this fail until somebody decides.
    #[test]
    fn every_error_code_has_its_exit_code() {
        let decided = [
            ("no-such-node", 1),
            ("no-route", 1),
            ("hop-limit", 1),
            ("timeout", 1),
            ("expired", 1),
            ("lost", 1),
            ("busy", 1),
            ("draining", 1),
            ("payload-too-large", 1),
            ("no-match", 1),
            ("refused", 1),
            ("no-such-plugin", 1),
            ("no-such-action", 1),
            ("invalid-payload", 1),
            ("not-ready", 1),
            ("missing-dependency", 1),
            ("cancelled", 1),
            ("idle-timeout", 1),
            ("plugin-start", 1),
            ("plugin-exit", 1),
            ("protocol-error", 1),
            ("result-quota", 1),
            ("interrupted", 1),
            ("invalid-request", 2),
            ("unknown-command", 1),
            ("permission-denied", 77),
            ("not-found", 1),
            ("damaged", 1),
            ("internal", 70),
            ("configuration", 78),
            ("unsupported-version", 1),
            ("bad-frame", 1),
            ("duplicate-node-id", 1),
            ("identity-mismatch", 1),
            ("untrusted", 1),
            ("hold-time", 1),
            ("shutdown", 1),
            ("self-connection", 1),
            ("deconfigured", 1),
            ("hello-timeout", 1),
            ("transport", 1),
        ];
        let seen: Vec<_> = ErrorCode::ALL
            .iter()
            .map(|code| (code.as_str(), Exit::of(code) as u8))
            .collect();
        assert_eq!(seen, decided);
        assert_eq!(Exit::of(&ErrorCode::Unknown("x-mine".into())), Exit::Failed);
        for code in ErrorCode::ALL {
            let expected = if *code == ErrorCode::PermissionDenied {
                77
            } else {
                1
            };
            assert_eq!(Exit::of_work(code) as u8, expected, "{code}");
        }
    }
}
