//! `config check`: has the daemon's program look at its configuration, so that both always agree.

use std::io::ErrorKind;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use crate::exit::{Exit, Failure};

pub(super) fn check(file: Option<&Path>) -> Result<Exit, Failure> {
    let beside = std::env::current_exe()
        .ok()
        .map(|program| program.with_file_name("receptord"))
        .filter(|program| program.is_file());
    let program = beside.unwrap_or_else(|| "receptord".into());
    let mut command = Command::new(&program);
    command.arg("--check-config");
    if let Some(file) = file {
        command.arg("--config").arg(file);
    }
    // Comes back only when there is nothing to run.
    let error = command.exec();
    let text = if error.kind() == ErrorKind::NotFound {
        "there is no receptord beside this program or in PATH; is the package installed?".to_owned()
    } else {
        format!("cannot run {}: {error}", program.display())
    };
    Err(Failure::new(Exit::Unavailable, text))
}
