//! A deterministic simulator of whole meshes: thousands of the real cores in one process, with
//! everything that can go wrong between and under them, from one seed.
//!
//! [`run`] has two phases: faults and traffic, then everything heals and the mesh must come
//! right within a stated time. Promises are checked after every step; what only a quiet mesh
//! owes is checked at the end. There is no clock, no socket, no thread and no order that depends
//! on an address or a random hash: the same options give the same run, bit for bit.

#![forbid(unsafe_code)]

mod check;
mod client;
mod event;
#[path = "../../../receptord/mesh/tests/fake/mod.rs"]
#[expect(dead_code, reason = "tests of the core do more with it")]
mod fake;
mod faults;
mod holder;
mod hostile;
mod ledger;
mod net;
mod options;
mod process;
mod random;
mod receipts;
mod report;
mod stats;
mod store;
mod tamper;
mod topology;
mod trace;
mod worker;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

pub use options::{Bounds, Certificates, Codec, Options, Span, StoreKind, Topology, Transport};
pub use report::{Cost, Report, report};
pub use stats::{SpfClock, Stats, TYPES};
pub use trace::Lines;

use world::World;

/// How often the mesh is looked at.
const LOOK_US: u64 = 500_000;
/// How long the mesh must stay as it should be once it is.
const CALM_US: u64 = 5_000_000;

/// What came of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// One number for everything that happened.
    pub hash: u64,
    /// What it cost.
    pub stats: Stats,
    /// Messages that clients sent.
    pub messages: usize,
    /// Of these, how many had an end.
    pub ended: usize,
    /// Of these, how many ended with an error.
    pub errors: usize,
    /// Simulated seconds from the end of all trouble until everything was right.
    pub settled_s: f64,
    /// What was the last to come right.
    pub last: String,
    /// What was broken, if anything.
    pub failure: Option<Failure>,
    /// What happened, as far as lines were asked for.
    pub lines: Vec<String>,
}

/// A broken promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Which.
    pub why: String,
    /// The command that shows it again.
    pub command: String,
}

/// One run of these options. A failed one is repeated to tell its last lines.
#[must_use]
pub fn run(options: &Options) -> Outcome {
    let outcome = run_with(options, Lines::None);
    if outcome.failure.is_none() {
        return outcome;
    }
    run_with(options, Lines::Tail)
}

/// One run of these options, keeping these lines.
#[must_use]
pub fn run_with(options: &Options, lines: Lines) -> Outcome {
    let mut world = World::new(options, lines);
    let result = catch_unwind(AssertUnwindSafe(|| drive(&mut world)));
    let (settled_s, failure) = match result {
        Ok(Ok(settled_s)) => (settled_s, None),
        Ok(Err(why)) => (f64::NAN, Some(why)),
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied());
            let why = format!("a panic: {}", text.unwrap_or("of an unknown kind"));
            (f64::NAN, Some(why))
        }
    };
    let letters = world.ledger.letters.values();
    Outcome {
        hash: world.trace.hash(),
        stats: world.stats,
        messages: letters.clone().count(),
        ended: letters
            .clone()
            .filter(|letter| letter.end.is_some())
            .count(),
        errors: letters
            .filter(|letter| letter.end.as_ref().is_some_and(|end| end.error.is_some()))
            .count(),
        settled_s,
        last: std::mem::take(&mut world.last),
        failure: failure.map(|why| Failure {
            why,
            command: format!("cargo sim -- {}", options.arguments()),
        }),
        lines: world.trace.take_lines(),
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "seconds on a command line are few and positive"
)]
fn micros(seconds: f64) -> u64 {
    (seconds * 1e6) as u64
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}

/// Both phases. Simulated seconds until everything was right, or what was broken.
fn drive(world: &mut World) -> Result<f64, String> {
    let healed_at = micros(world.options.duration_s);
    world.begin_trouble();
    look_until(world, healed_at)?;
    world.heal();
    let deadline = healed_at + micros(world.options.converge_s);
    let settled_at = loop {
        let next = world.queue.now() + LOOK_US;
        look_until(world, next)?;
        let Some(why) = world.unsettled() else {
            break next;
        };
        world.last.clone_from(&why);
        if next >= deadline {
            return Err(format!(
                "{} s after all trouble ended, {why}",
                world.options.converge_s
            ));
        }
    };
    // It must stay so, and everybody must find everybody.
    world.calm_since = world.queue.now();
    let nodes = world.members().len();
    for _ in 0..nodes.min(64) {
        let pair = [0; 2].map(|_| world.clients.usize(0..nodes));

        // Without a node the mesh may fall apart.
        if world.options.cut == 0.0 && world.options.gone == 0 {
            world.echo_to(pair[0], pair[1]);
            world.pump(pair[0]);
        }
    }
    look_until(world, settled_at + CALM_US)?;
    if let Some(why) = world.unsettled() {
        return Err(format!("it was right for a while only: {why}"));
    }
    if let Some(why) = world.echo_failure.take() {
        return Err(format!("in a quiet mesh, {why}"));
    }
    world.collect_counters();
    Ok(seconds(settled_at - healed_at))
}

/// Runs until then, looking at the bounds of all nodes now and then.
fn look_until(world: &mut World, until: u64) -> Result<(), String> {
    while world.queue.now() < until {
        let next = until.min(world.queue.now() + LOOK_US);
        world.run_until(next);
        let broken = world.violation.take().or_else(|| world.over_bounds());
        if let Some(why) = broken {
            return Err(format!("at {} s: {why}", seconds(world.queue.now())));
        }
    }
    Ok(())
}
