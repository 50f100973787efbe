//! Meshes of every form to which everything happens while clients send every sort of message to
//! every sort of plugin: each comes to one end, was run as that end says, and nothing is left.
//!
//! `RECEPTOR_CHAOS=messages,faults,seed,runs` makes the long run as long as wanted, for instance
//! `RECEPTOR_CHAOS=1000,40,1,100`; the seed of each run is printed, and the form, the faults and
//! the messages follow from it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::Write as _;

use receptor_tests::chaos::scene::{Form, Mix, Scene};
use receptor_tests::netns::Lab;
use receptor_tests::power::Dice;
use receptor_tests::volume::Volume;

/// Messages, faults, first seed and runs.
fn asked(runs: u64) -> (usize, usize, std::ops::Range<u64>) {
    let asked = std::env::var("RECEPTOR_CHAOS").unwrap_or_default();
    let mut asked = asked.split(',').map(|word| word.parse::<u64>().ok());
    let mut next = || asked.next().flatten();
    let messages = usize::try_from(next().unwrap_or(60)).unwrap();
    let faults = usize::try_from(next().unwrap_or(6)).unwrap();
    let seed = next().unwrap_or_else(|| u64::from(std::process::id()) * 1000);
    (messages, faults, seed..seed + next().unwrap_or(runs))
}

/// Nothing when there can be no namespaces here.
fn lab(form: &Form) -> Option<Lab> {
    match Lab::new(form.nodes()) {
        Ok(lab) => Some(lab),
        Err(why) => {
            skip(&why);
            None
        }
    }
}

fn skip(why: &str) {
    // Past what the test runner swallows.
    let _ = writeln!(std::io::stderr(), "SKIPPED, nothing was tested: {why}");
}

#[test]
fn every_message_comes_to_one_end_in_meshes_of_every_form() {
    let (messages, faults, seeds) = asked(4);
    for seed in seeds {
        let mut dice = Dice::new(seed);
        let form = Form::any(&mut dice);
        println!("RECEPTOR_CHAOS={messages},{faults},{seed} {form}");
        let summary = Scene::start(&form, None, false).run(messages, faults, &mut dice);
        println!("{summary:?}");
    }
}

#[test]
fn every_message_comes_to_one_end_where_packets_vanish() {
    let (messages, faults, seeds) = asked(2);
    for seed in seeds {
        let mut dice = Dice::new(seed);
        let form = Form::any(&mut dice);
        let Some(lab) = lab(&form) else { return };
        println!("RECEPTOR_CHAOS={messages},{faults},{seed} {form}");
        let summary = Scene::start(&form, Some(lab), false).run(messages, faults, &mut dice);
        println!("{summary:?}");
    }
}

#[expect(
    clippy::print_stdout,
    reason = "what repeats a run is seen when it fails"
)]
fn run_mix(mix: Mix) {
    let (messages, faults, seeds) = asked(1);
    for seed in seeds {
        let mut dice = Dice::new(seed);
        let form = mix.form(&mut dice);
        println!("RECEPTOR_CHAOS={messages},{faults},{seed} {form}");
        let summary = Scene::start(&form, None, false).run(messages, faults, &mut dice);
        println!("{summary:?}");
    }
}

#[test]
fn every_message_to_any_worker_comes_to_one_end_while_workers_are_killed() {
    run_mix(Mix::KilledWorkers);
}

#[test]
fn every_large_payload_comes_to_one_end_while_the_links_of_a_ring_are_cut_in_turn() {
    run_mix(Mix::CutRing);
}

#[test]
fn every_message_comes_to_one_end_while_a_router_with_a_full_disk_is_frozen() {
    let probe = tempfile::tempdir().unwrap();
    if let Err(why) = Volume::new(probe.path(), 1) {
        return skip(&why);
    }
    run_mix(Mix::FullRouter);
}
