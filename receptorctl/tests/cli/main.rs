//! The program as a user meets it, against a daemon that says exactly what the test wants.

#![expect(clippy::unwrap_used, reason = "the helpers of tests fail like tests")]

mod answers;
mod cert;
mod controller;
mod failures;
mod fake;
mod garbage;
mod help;
mod ping;
mod plugin_author;
mod plugin_check;
mod send;
