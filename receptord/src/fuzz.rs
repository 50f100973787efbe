//! The parsers of bytes from outside that are private to the daemon, as fuzzing drives them.
//!
//! Owns nothing: each function lies beside the parser it drives, takes any bytes, and panics when
//! something does not hold that must hold for all of them. The daemon itself calls none of them.

pub use crate::config::fuzz::{config_text, words};
pub use crate::control::fuzz::command_line;
pub use crate::link::fuzz::tls_records;
pub use crate::results::fuzz::kept_work;
pub use crate::worker::fuzz::{holder_packet, instruction, plugin_output};
