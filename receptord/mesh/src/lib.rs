//! The sans-io core of Receptor: every decision about adjacencies, link state, routes,
//! delivery, retry and expiry, and nothing else.
//!
//! A [`Mesh`] is one node. It has no clock, socket, file, thread or unseeded randomness: time,
//! seed and identity are arguments. What happens outside comes in through `handle_*`; what an
//! operator or client asks comes in through plain methods; what is to be done outside leaves
//! through one ordered queue, [`Mesh::poll_output`]. The order is a promise: nothing is
//! acknowledged or called accepted before the core was told that it is on the disk.
//!
//! ```text
//!                    handle_frame            ┌──────────────── Mesh ────────────────┐
//!   links ─────────────────────────────────▶ │ router                               │
//!        ◀──────── Output::Transmit ──────── │   adjacency · lsdb · spf · queues    │
//!                                            │      ▲ packets        │ routes       │
//!   store ◀─────── Output::Persist ───────── │      │                ▼              │
//!        ──────── handle_persisted ────────▶ │ delivery                             │
//!   workers ◀───── Output::Dispatch ──────── │   flows · receipts · works · inbox   │
//!   clients ◀───── Output::Deliver ───────── │                                      │
//!                                            └──────────────────────────────────────┘
//! ```
//!
//! This crate is `no_std`: a clock, a file, a socket or a randomly seeded hash map cannot be
//! named here.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod api;
mod delivery;
mod mesh;
mod policy;
mod router;
mod security;
mod time;
mod wiring;

pub use api::*;
pub use mesh::Mesh;
pub use policy::{Denied, Policy, use_denied};
pub use security::{Changes, Disbelief, Learned, NotOpened, Security, Stranger};

/// The largest frame that a node takes, in bytes including its length; what its hello says.
pub const MAX_FRAME: usize = receptor_proto::frame::MAX_FRAME_FLOOR;

pub use time::Instant;
