//! `receptorctl`, the operator's and the script's hand on the daemon.
//!
//! ```text
//! args ──▶ commands::* ──▶ client ──▶ control socket
//!              │
//!              ├──▶ output   stdout: the answer     stderr: for people
//!              └──▶ exit     what went wrong, and the number the shell sees
//! ```
//!
//! Blocking, one thread (and one that waits for Ctrl-C), no async runtime: a whole `ping` takes a few
//! milliseconds, most of them the mesh's. It knows the daemon only by its control protocol
//! ([`receptor_proto::control`]) and must never link it or the mesh's core.

#![forbid(unsafe_code)]

mod args;
mod check;
mod client;
mod commands;
mod exit;
mod interrupt;
mod output;
mod progress;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser as _;

pub use exit::Exit;

/// Runs the program with these arguments, the first of which is its own name.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut args = args.into_iter().peekable();
    let name = args.next();
    if args.next_if(|word| word == check::exec::WORD).is_some() {
        return ExitCode::from(check::exec::run(args));
    }
    end(name.into_iter().chain(args)).into()
}

fn end(args: impl Iterator<Item = OsString>) -> Exit {
    let cli = match args::Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(answer) => {
            // Help for a reader who left is no failure.
            let _ = answer.print();
            return if answer.use_stderr() {
                Exit::Usage
            } else {
                Exit::Done
            };
        }
    };
    match commands::run(cli) {
        Ok(exit) => exit,
        Err(failure) => {
            failure.print();
            failure.exit
        }
    }
}

/// The command line as clap knows it, for man pages.
#[must_use]
pub fn command() -> clap::Command {
    <args::Cli as clap::CommandFactory>::command()
}
