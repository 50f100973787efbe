//! `config check`: has the daemon's program look at its configuration, so that both always agree. Owns
//! finding that program.

use std::io::{self, ErrorKind};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use crate::exit::{Exit, Failure};

pub(super) fn check(file: Option<&Path>) -> Result<Exit, Failure> {
    let mut command = daemon();
    command.arg("--check-config");
    if let Some(file) = file {
        command.arg("--config").arg(file);
    }
    // Comes back only when there is nothing to run.
    let error = command.exec();
    Err(cannot_run(&command, &error))
}

/// The daemon's program: the one beside this program, or else the one in `PATH`.
pub(super) fn daemon() -> Command {
    let beside = std::env::current_exe()
        .ok()
        .map(|program| program.with_file_name("receptord"))
        .filter(|program| program.is_file());
    Command::new(beside.unwrap_or_else(|| "receptord".into()))
}

/// What to tell of a daemon's program that cannot be run.
pub(super) fn cannot_run(command: &Command, error: &io::Error) -> Failure {
    let text = if error.kind() == ErrorKind::NotFound {
        "there is no receptord beside this program or in PATH; is the package installed?".to_owned()
    } else {
        let program = command.get_program().display();
        format!("cannot run {program}: {error}")
    };
    Failure::new(Exit::Unavailable, text)
}
