//! Every type that crosses a boundary of Receptor, and nothing that does I/O.
//!
//! Three protocols live here: what two daemons say to each other on a link ([`frame`],
//! [`packet`], [`lsa`]), what a client says to its daemon on the control socket ([`control`]),
//! and what a daemon and a plugin say over pipes ([`plugin`]). What a daemon says to its own
//! later self, on a disk, is [`record`]. `PROTOCOL.md` beside this crate
//! is the text of the three protocols; a test holds its examples against these types.
//!
//! This crate never opens a file or socket, never reads a clock, and knows no other crate
//! of the workspace.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod bundle;
pub mod control;
pub mod directive;
pub mod error;
pub mod frame;
pub mod id;
pub mod lsa;
pub mod packet;
pub mod plugin;
pub mod record;
pub mod signed;
pub mod wire;

pub use directive::Directive;
pub use error::{ErrorBody, ErrorCode};
pub use id::{IdPrefix, MessageId, NodeId};
