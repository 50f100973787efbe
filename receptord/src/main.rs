//! The daemon `receptord`.
//!
//! Owns the order of the steps from start to stop, which is the order of the lines in
//! `main`, and how each failure is told: one line a cause on stderr, and an exit code.

use std::process::ExitCode;

use clap::Parser as _;
use receptord::cli::Cli;
use receptord::config::{self, Environment};
use receptord::exit::Exit;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let environment = Environment::of_process();
    let loaded = match config::load(&cli, &environment) {
        Ok(loaded) => loaded,
        Err(error) => {
            eprint(&error.to_string());
            return Exit::Configuration.into();
        }
    };
    for warning in &loaded.warnings {
        eprint(&warning.to_string());
    }
    if cli.inspect.print_config {
        print(&loaded.print());
    }
    Exit::Ok.into()
}

#[expect(
    clippy::print_stderr,
    reason = "there is no log before the configuration is known"
)]
fn eprint(text: &str) {
    for line in text.lines() {
        eprintln!("receptord: {line}");
    }
}

#[expect(clippy::print_stdout, reason = "the answer to --print-config")]
fn print(text: &str) {
    print!("{text}");
}
