//! The Receptor mesh daemon, as a library for its own program and tests.
//!
//! `main` is a list of steps; every step lives in a module here. `engine` alone owns the
//! mesh core; the others bring it what happens outside and do what it decides.

pub mod cli;
pub mod config;
pub mod data_dir;
pub mod exit;
pub mod log;
pub mod run;
pub mod systemd;
pub mod task;
