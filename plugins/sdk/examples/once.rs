//! The smallest plugin with one process a work: answers with its payload. Benchmarks measure
//! what a process a work costs with it.

use receptor_plugin::{Action, Outcome, Plugin};

fn main() -> std::process::ExitCode {
    Plugin::new("once", env!("CARGO_PKG_VERSION"))
        .action(
            "echo",
            Action::text().about("Answers with the payload"),
            |job| {
                job.data_text(job.text()?)?;
                Ok(Outcome::ok())
            },
        )
        .run()
}
