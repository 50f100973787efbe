//! The runs that tests have in common: traffic of every kind while everything happens that may happen to
//! a mesh, and what is demanded of any run.

use receptor_sim::{Options, Stats, run};

/// Demands that a run keeps every promise; gives back what it counted.
pub(crate) fn hold(options: &Options) -> Stats {
    let outcome = run(options);
    if let Some(failure) = outcome.failure {
        let lines = outcome.lines.join("\n");
        panic!("{lines}\n{}\n{}", failure.why, failure.command);
    }
    outcome.stats
}

/// Everything that a healthy operator's mesh may meet, at once.
pub(crate) fn all_faults(seed: u64) -> Options {
    Options {
        seed,
        nodes: 8,
        leaves: 0.25,
        double_links: 0.2,
        loss: 0.02,
        spikes: 0.005,
        flaps: 0.5,
        black_holes: 0.1,
        one_way: 0.1,
        crashes: 0.2,
        power_cuts: 0.1,
        freezes: 0.1,
        changes: 0.5,
        shutdowns: 0.1,
        rate: 5.0,
        large: 0.05,
        volatile: 0.15,
        cancel: 0.1,
        any: 0.15,
        forget: 0.1,
        nobody: 0.05,
        slow_works: 0.02,
        stalls: 0.1,
        echoes: 2.0,
        duration_s: 15.0,
        ..Options::default()
    }
}
