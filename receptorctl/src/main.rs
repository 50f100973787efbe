//! The program `receptorctl`. Owns nothing but the way from the process to the library.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    receptorctl::run(std::env::args_os())
}
