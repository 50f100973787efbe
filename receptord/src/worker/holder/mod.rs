//! Plugins in units of their own, which outlive the daemon.
//!
//! Where systemd listens for it, a plugin's process is not a child of the daemon but of a *holder* in a unit of its
//! own, with its own user, limits and cgroup. The connection to the holder can be left with the service manager,
//! so that the next daemon goes on where this one was, after a restart, an upgrade or a crash.
//!
//! ```text
//! daemon: Remote ─ Connection ──packet── program: Input ─▶ plugin
//!            note (what to know to go on)            Kept ◀─
//! next daemon: resume ─▶ Remote
//! ```
//!
//! Owns both ends of that connection. Knows what a work is only in `note`; never decides about one.

mod connection;
mod input;
mod kept;
mod note;
mod packet;
pub mod program;
mod remote;
mod resume;
mod units;

pub(super) use self::connection::Connection;
pub(super) use self::note::{Entry, Mark, Note};
pub(super) use self::packet::fuzz as fuzz_packet;
pub(super) use self::packet::{MAX_ENTRIES, MAX_PACKET};
pub(super) use self::remote::Remote;
pub(super) use self::resume::{LeftWork, Parts};
pub use self::resume::{Resumed, is_name, resume};
pub(super) use self::units::{Unit, Whose, keep_name};
