//! The jobs and the rogues once more, each plugin in a unit of its own; and processes that outlive the daemon.

#[path = "../worker/jobs.rs"]
mod jobs;
mod kept;
#[path = "../worker/manager.rs"]
#[expect(
    clippy::unwrap_used,
    reason = "a helper of tests, where a panic is a failed test"
)]
mod manager;
#[path = "../worker/rig.rs"]
#[expect(
    clippy::unwrap_used,
    reason = "a helper of tests, where a panic is a failed test"
)]
mod rig;
#[path = "../worker/rogues.rs"]
mod rogues;

/// Whether plugins run behind holders.
const IN_UNITS: bool = true;
