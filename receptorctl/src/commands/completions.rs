//! `completions`: what a shell needs to complete our command line.

use clap_complete::{generate, shells};

use crate::args::Shell;
use crate::exit::{Exit, Failure};
use crate::output::Out;

pub(super) fn run(shell: Shell) -> Result<Exit, Failure> {
    let mut command = crate::command();
    let mut script = Vec::new();
    match shell {
        Shell::Bash => generate(shells::Bash, &mut command, "receptorctl", &mut script),
        Shell::Zsh => generate(shells::Zsh, &mut command, "receptorctl", &mut script),
        Shell::Fish => generate(shells::Fish, &mut command, "receptorctl", &mut script),
    }
    let mut out = Out::new();
    out.bytes(&script)?;
    out.flush()?;
    Ok(Exit::Done)
}
