//! Write a Receptor plugin in Rust.
//!
//! A plugin is an executable in a plugins directory that speaks the plugin protocol with its
//! daemon, one JSON object a line, on stdin and stdout. This crate speaks it for you: you name
//! your actions and write one function for each.
//!
//! ```no_run
//! use receptor_plugin::{Action, Outcome, Plugin};
//!
//! #[derive(serde::Deserialize)]
//! struct Request {
//!     texts: Vec<String>,
//! }
//!
//! fn main() -> std::process::ExitCode {
//!     Plugin::new("wordcount", env!("CARGO_PKG_VERSION"))
//!         .action("execute", Action::json().about("Counts the words of each text"), |job| {
//!             let request: Request = job.json()?;
//!             for (done, text) in request.texts.iter().enumerate() {
//!                 job.data(&text.split_whitespace().count())?;
//!                 job.progress(done as u64 + 1, request.texts.len() as u64)?;
//!             }
//!             Ok(Outcome::ok())
//!         })
//!         .run()
//! }
//! ```
//!
//! Everything blocks, nothing needs a runtime. It never starts a process, opens a socket or
//! writes outside of the job directory. stdout belongs to the protocol: use [`Job::data`] for
//! results, [`Job::log`] or stderr for words to the operator.

#![forbid(unsafe_code)]

mod error;
mod job;
mod lines;
mod output;
mod plugin;
mod serve;

pub use error::{Error, Result};
pub use job::{Job, Outcome, Stopper};
pub use plugin::{Action, Plugin};
pub use receptor_proto::plugin::{
    Cancel, CancelReason, ErrorCode, FileRef, HostHello, Json, Level, MAX_INLINE, MAX_LINE,
    OutputKind, Payload, PayloadKind, PluginError, Status,
};
