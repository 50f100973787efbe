//! The fuzz targets: for every parser that takes bytes from outside, what must hold for all bytes.
//!
//! Owns the table of targets. Each is a plain function that takes any bytes and panics when
//! something does not hold. Two things call them: `tests/replay.rs`, in every test run, with the
//! inputs in `corpus` and a bounded number of mutations of them; and libFuzzer, through the programs in
//! `targets`, for longer (`make fuzz`).

#![forbid(unsafe_code)]

mod link;
mod memory;
pub mod mutate;
mod neighbor;
pub mod seeds;
mod spool;

use std::path::{Path, PathBuf};

pub use link::{bundle, disk_record, link_frames, link_statement, packet_body};
pub use memory::bounded;
pub use neighbor::{Node, neighbor};
pub use receptord::fuzz::{
    command_line, config_text, holder_packet, instruction, kept_work, plugin_output, tls_records,
    words,
};
pub use spool::spool_directory;

/// What a target is.
pub type Target = fn(&[u8]);

/// Every target with the name of its corpus and of its program.
pub const TARGETS: [(&str, Target); 15] = [
    ("bundle", bundle),
    ("command_line", command_line),
    ("config_text", config_text),
    ("disk_record", disk_record),
    ("holder_packet", holder_packet),
    ("instruction", instruction),
    ("kept_work", kept_work),
    ("link_frames", link_frames),
    ("link_statement", link_statement),
    ("neighbor", neighbor),
    ("packet_body", packet_body),
    ("plugin_output", plugin_output),
    ("spool_directory", spool_directory),
    ("tls_records", tls_records),
    ("words", words),
];

/// The directory with the inputs of all targets.
#[must_use]
pub fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}
