//! `cargo sim -- --seed N …`: one run, or many seeds, or the cost of a mesh.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use clap::parser::ValueSource;
use clap::{CommandFactory, FromArgMatches, Parser};
use receptor_sim::{
    Cost, Lines, Options, Outcome, Report, Span, Stats, TYPES, report, run, run_with,
};

/// How much is told of what was the last to come right.
const LAST_MAX: usize = 500;

/// Drives a whole mesh of real cores in one process, from one seed. A failure prints the
/// command that shows it again.
#[derive(Parser)]
#[command(name = "sim", max_term_width = 100)]
struct Arguments {
    #[command(flatten)]
    options: Options,
    /// Runs these seeds, one after the other, instead of one: `1..=20`. Each draws the options
    /// that are not given.
    #[arg(long, value_name = "LOW..HIGH")]
    seeds: Option<Span>,
    /// Seeds at once.
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    /// Prints frames and bytes by type, and what was the last to come right.
    #[arg(long)]
    costs: bool,
    /// Prints every line of the run.
    #[arg(long)]
    trace: bool,
    /// Measures a cold start and the flap of some links instead: frames and bytes by type, SPF
    /// runs, simulated, real and processor time. `--nodes 1000 --degree 4 --report` takes minutes.
    #[arg(long)]
    report: bool,
    /// How many links the report flaps.
    #[arg(long, default_value_t = 5)]
    report_flaps: usize,
}

fn main() -> ExitCode {
    // `cargo sim -- --seed 1` and `cargo sim --seed 1` are the same.
    let mut words: Vec<_> = std::env::args_os().collect();
    if words.get(1).is_some_and(|word| word == "--") {
        words.remove(1);
    }
    let matches = Arguments::command().get_matches_from(words);
    let arguments = Arguments::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let given = |name: &str| matches.value_source(name) == Some(ValueSource::CommandLine);
    if arguments.report {
        return reported(&arguments);
    }
    let seeds = arguments
        .seeds
        .unwrap_or_else(|| Span::new(arguments.options.seed, arguments.options.seed));
    let next = AtomicU64::new(seeds.low);
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..arguments.jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed > seeds.high {
                        return;
                    }
                    let mut options = arguments.options.clone();
                    if arguments.seeds.is_some() {
                        options = Options::drawn(seed, options.nodes);
                        options.take(&arguments.options, given);
                    }
                    options.seed = seed;
                    if !one(&options, &arguments)
                        && let Ok(mut failed) = failed.lock()
                    {
                        failed.push(seed);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap_or_default();
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    say(&format!("failed: {failed:?}\n"));
    ExitCode::FAILURE
}

/// One run; whether it kept all promises.
fn one(options: &Options, arguments: &Arguments) -> bool {
    let start = Instant::now();
    let outcome = if arguments.trace {
        run_with(options, Lines::All)
    } else {
        run(options)
    };
    let took = start.elapsed().as_secs_f64();
    let mut text = String::new();
    for line in &outcome.lines {
        let _ = writeln!(text, "{line}");
    }
    let word = if outcome.failure.is_some() {
        "FAILED"
    } else {
        "ok"
    };
    let _ = writeln!(
        text,
        "seed {} {word}: {}, {took:.1} s",
        options.seed,
        summary(&outcome)
    );
    if arguments.costs {
        let last: String = outcome.last.chars().take(LAST_MAX).collect();
        let _ = writeln!(text, "  the last to come right: {last}");
        types(&mut text, &outcome.stats);
    }
    if let Some(failure) = &outcome.failure {
        let _ = writeln!(text, "  {}\n  {}", failure.why, failure.command);
    }
    say(&text);
    outcome.failure.is_none()
}

fn summary(outcome: &Outcome) -> String {
    let stats = &outcome.stats;
    format!(
        "settled {:.1} s, {} messages ({} ended, {} with an error, {} refused), {} frames, {} SPF, {} again, {} kept, {} held, {} went on, {} loads, hash {:016x}",
        outcome.settled_s,
        outcome.messages,
        outcome.ended,
        outcome.errors,
        stats.refused,
        stats.frames.iter().sum::<u64>(),
        stats.spf_runs,
        stats.retransmitted,
        stats.kept,
        stats.held,
        stats.adopted,
        stats.loads,
        outcome.hash
    )
}

fn reported(arguments: &Arguments) -> ExitCode {
    match report(&arguments.options, arguments.report_flaps) {
        Ok(report) => {
            say(&table(&arguments.options, &report));
            ExitCode::SUCCESS
        }
        Err(why) => {
            say(&format!("{why}\n"));
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn table(options: &Options, report: &Report) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "{} nodes, {} links", options.nodes, report.links);
    cost(&mut text, "cold start", &report.cold);
    for (number, flap) in report.flaps.iter().enumerate() {
        cost(&mut text, &format!("flap {}", number + 1), flap);
        let (frames, bytes) = flap.stats.routing();
        let links = report.links as f64;
        let _ = writeln!(
            text,
            "  per link: {:.2} routing frames, {:.0} bytes",
            frames as f64 / links,
            bytes as f64 / links
        );
    }
    let runs = report.spf.runs.max(1) as f64;
    let _ = writeln!(
        text,
        "SPF: {} runs, {:.1} us on average, {:.1} us at most",
        report.spf.runs,
        report.spf.total.as_secs_f64() * 1e6 / runs,
        report.spf.longest.as_secs_f64() * 1e6
    );
    for line in std::fs::read_to_string("/proc/self/status")
        .unwrap_or_default()
        .lines()
        .filter(|line| line.starts_with("VmRSS") || line.starts_with("VmHWM"))
    {
        let _ = writeln!(text, "{line}");
    }
    text
}

fn cost(text: &mut String, name: &str, cost: &Cost) {
    let stats = &cost.stats;
    let _ = writeln!(
        text,
        "{name}: right after {:.1} s, quiet after {:.1} s simulated, {:.1} s real, {:.1} s processor; {} frames, {} bytes, {} SPF runs, {} LSAs sent, {} received, {} news",
        cost.converged_s,
        cost.quiet_s,
        cost.wall.as_secs_f64(),
        cost.cpu.as_secs_f64(),
        stats.frames.iter().sum::<u64>(),
        stats.bytes.iter().sum::<u64>(),
        stats.spf_runs,
        stats.lsas_sent,
        stats.lsas_received,
        stats.lsas_new
    );
    types(text, stats);
}

fn types(text: &mut String, stats: &Stats) {
    for (index, name) in TYPES.iter().enumerate() {
        if stats.frames[index] > 0 {
            let _ = writeln!(
                text,
                "  {name:<12} {:>10} frames {:>12} bytes",
                stats.frames[index], stats.bytes[index]
            );
        }
    }
}

fn say(text: &str) {
    // A reader that has gone away has seen enough.
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}
