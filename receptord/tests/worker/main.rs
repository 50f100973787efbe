//! The plugin host against plugins that keep the rules and one that breaks each of them.

mod bundles;
mod discovery;
mod jobs;
#[expect(
    clippy::unwrap_used,
    reason = "a helper of tests, where a panic is a failed test"
)]
mod manager;
#[expect(
    clippy::unwrap_used,
    reason = "a helper of tests, where a panic is a failed test"
)]
mod rig;
mod rogues;
mod serving;

/// Whether plugins run behind holders.
const IN_UNITS: bool = false;
