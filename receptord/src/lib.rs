//! The Receptor mesh daemon, as a library for its own program and tests.
//!
//! `main` is a list of steps; every step lives in a module here. `engine` alone owns the
//! mesh core; the others bring it what happens outside and do what it decides.

mod by_id;
pub mod cli;
pub mod config;
mod control;
pub mod data_dir;
mod engine;
pub mod exit;
pub mod fuzz;
mod instance;
pub mod keyring;
mod link;
pub mod log;
mod member;
pub mod policy;
mod raw;
mod results;
pub mod run;
mod spooler;
pub mod systemd;
pub mod task;
mod unix_socket;
mod users;
pub mod worker;
