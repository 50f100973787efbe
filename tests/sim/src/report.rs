//! What a mesh costs: a cold start and the flap of one link, measured.

use std::time::{Duration, Instant};

use crate::options::Options;
use crate::seconds;
use crate::stats::{SpfClock, Stats, cpu_time};
use crate::trace::Lines;
use crate::world::World;

/// How finely the moment of convergence is looked for.
const STEP_US: u64 = 100_000;
/// How long nothing but probes must cross a link before a mesh counts as quiet.
const QUIET_US: u64 = 5_000_000;
/// How long a flapping link is away.
const AWAY_US: u64 = 3_000_000;
/// The longest that anything may take.
const PATIENCE_US: u64 = 600_000_000;

/// What something cost.
#[derive(Debug)]
pub struct Cost {
    /// Simulated seconds until all databases and routes were right.
    pub converged_s: f64,
    /// Simulated seconds until nothing but probes moved.
    pub quiet_s: f64,
    /// Real time until then.
    pub wall: Duration,
    /// Processor time until then.
    pub cpu: Duration,
    /// Frames, bytes, computations.
    pub stats: Stats,
}

/// All of it.
#[derive(Debug)]
pub struct Report {
    /// Configured links.
    pub links: usize,
    /// From nothing to quiet.
    pub cold: Cost,
    /// One link gone and back again, for each of some links.
    pub flaps: Vec<Cost>,
    /// Time in shortest-path computations.
    pub spf: SpfClock,
}

/// Starts a mesh of these options, without faults and traffic, and flaps `flaps` of its links.
///
/// # Errors
/// What did not come right.
pub fn report(options: &Options, flaps: usize) -> Result<Report, String> {
    let mut world = World::new(options, Lines::None);
    world.spf_clock = Some(SpfClock::default());
    let cold = measure(&mut world, |_| {})?;
    let links = world.net.wires.len();
    let mut costs = Vec::new();
    for number in 0..flaps {
        let wire = number * links / flaps;
        costs.push(measure(&mut world, |world| {
            world.flap(wire, AWAY_US);
            // The way back belongs to the flap.
            let back = world.queue.now() + AWAY_US;
            world.run_until(back);
        })?);
    }
    Ok(Report {
        links,
        cold,
        flaps: costs,
        spf: world.spf_clock.take().unwrap_or_default(),
    })
}

fn measure(world: &mut World, act: impl FnOnce(&mut World)) -> Result<Cost, String> {
    let (wall, cpu) = (Instant::now(), cpu_time());
    world.collect_counters();
    let before = world.stats;
    let start = world.queue.now();
    act(world);
    let mut converged = None;
    let mut quiet_since = world.queue.now();
    let mut frames = 0;
    loop {
        let next = world.queue.now() + STEP_US;
        world.run_until(next);
        if let Some(why) = world.violation.take() {
            return Err(why);
        }
        let now_frames = world.stats.working_frames();
        if now_frames != frames {
            (frames, quiet_since) = (now_frames, next);
        }
        // Looking is costly: only when it may have come right.
        if converged.is_none() && next - quiet_since >= STEP_US && world.unconverged().is_none() {
            converged = Some(quiet_since);
        }
        if let Some(at) = converged
            && next - quiet_since >= QUIET_US
        {
            if let Some(why) = world.unconverged() {
                return Err(format!("it was right for a while only: {why}"));
            }
            world.collect_counters();
            return Ok(Cost {
                converged_s: seconds(at - start),
                quiet_s: seconds(quiet_since - start),
                wall: wall.elapsed(),
                cpu: cpu_time().saturating_sub(cpu),
                stats: world.stats.since(&before),
            });
        }
        if next - start > PATIENCE_US {
            let why = world.unconverged().unwrap_or_default();
            return Err(format!("never quiet: {why}"));
        }
    }
}
