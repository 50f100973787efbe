//! The durable store of Receptor.

#![forbid(unsafe_code)]

mod compact;
mod disk;
mod error;
mod index;
mod log;
mod recover;
mod segment;
pub mod sim;
mod spool;

pub use disk::{Access, Disk, DiskFile, FsDisk};
pub use error::SpoolError;
pub use index::Usage;
pub use recover::{Damage, Report};
pub use spool::{Limits, Op, Options, Outcome, Records, Spool};
