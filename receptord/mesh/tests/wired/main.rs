//! Several real cores on wires that the tests cut and join: what becomes of messages between them.

#![expect(clippy::unwrap_used, reason = "tests, also in their helpers")]

#[path = "../fake/mod.rs"]
mod fake;

mod away;
mod choice;
mod custody;
mod damage;
mod doubt;
mod ends;
mod inquiries;
mod matrix;
mod mesh;
mod room;
mod security;
