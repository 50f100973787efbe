//! Links with TLS between real daemons: who is let in, who is not and is told why, and what changes while they stand.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod changes;
mod mesh;
mod refusals;
mod start;
mod strangers;
mod web;
