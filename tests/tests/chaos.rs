//! Meshes of several forms whose nodes are killed, frozen and cut off while clients send every
//! sort of message to every sort of plugin: each comes to one end, and was run as that end says.
//!
//! `RECEPTOR_CHAOS=messages,faults,seed,runs` makes the long run as long as wanted; the seed of
//! each run is printed.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::time::Duration;

use nix::sys::signal::Signal;
use receptor_tests::chaos::{Campaign, Excused, Runs, Summary, wait_plugins};
use receptor_tests::power::Dice;
use receptor_tests::relay::Relay;
use receptor_tests::traffic::peak_kib;
use receptor_tests::{Daemon, Mesh, wait_for};

/// What a daemon under test may take at most, without optimisation.
const MEMORY_KIB: u64 = 256 * 1024;

/// Nodes by number, of which 0 is the controller, and links from the later to the earlier.
struct Form {
    name: &'static str,
    links: &'static [(usize, usize)],
    workers: &'static [usize],
}

const FORMS: [Form; 4] = [
    Form {
        name: "chain",
        links: &[(1, 0), (2, 1)],
        workers: &[2],
    },
    Form {
        name: "ring",
        links: &[(1, 0), (2, 1), (3, 2), (3, 0)],
        workers: &[1, 2],
    },
    Form {
        name: "star",
        links: &[(1, 0), (2, 1), (3, 1), (4, 1)],
        workers: &[2, 3, 4],
    },
    Form {
        name: "diamond",
        links: &[(1, 0), (2, 0), (3, 1), (3, 2)],
        workers: &[3],
    },
];

#[test]
fn every_message_comes_to_one_end_in_meshes_of_every_form() {
    let asked = std::env::var("RECEPTOR_CHAOS").unwrap_or_default();
    let mut asked = asked.split(',').map(|word| word.parse::<u64>().ok());
    let mut next = || asked.next().flatten();
    let messages = usize::try_from(next().unwrap_or(100)).unwrap();
    let faults = usize::try_from(next().unwrap_or(4)).unwrap();
    let seed = next().unwrap_or_else(|| u64::from(std::process::id()));
    for seed in seed..seed + next().unwrap_or(1) {
        for form in &FORMS {
            println!("{}: RECEPTOR_CHAOS={messages},{faults},{seed}", form.name);
            let summary = run(form, messages, faults, seed);
            println!("{summary:?}");
        }
    }
}

fn run(form: &Form, messages: usize, faults: usize, seed: u64) -> Summary {
    let mut dice = Dice::new(seed);
    let mesh = Mesh::new();
    let mut nodes: Vec<Daemon> = Vec::new();
    let mut relays = Vec::new();
    let mut runs = Vec::new();
    let last = form.links.iter().map(|(from, _)| *from).max().unwrap();
    for number in 0..=last {
        let name = format!("n{number}");
        let mut node = mesh.node(&name).config("[link]\nhold-time = \"1s\"");
        for (_, to) in form.links.iter().filter(|(from, _)| *from == number) {
            let relay = Relay::to(&nodes[*to].address());
            node = node.peer_url(&relay.url());
            relays.push(relay);
        }
        if form.workers.contains(&number) {
            let (written, with) = Runs::install(&mesh, node, &name);
            runs.push(written);
            node = with;
        }
        nodes.push(node.start());
    }
    let workers: Vec<String> = form.workers.iter().map(|n| format!("n{n}")).collect();
    let workers: Vec<&str> = workers.iter().map(String::as_str).collect();
    wait_plugins(&nodes[0], &workers);
    let campaign = Campaign::start(nodes[0].socket_path(), &workers, 8, messages, &mut dice);
    for fault in 0..faults {
        // Somewhere in its own part of the run.
        let part = messages / faults;
        let at = fault * part + dice.index(part);
        wait_for("progress", || {
            (campaign.accepted() >= at || campaign.is_done()).then_some(())
        });
        let victim = dice.index(nodes.len());
        let pause = Duration::from_millis(dice.throw(100));
        match dice.throw(8) {
            0 => {
                nodes[victim].signal(Signal::SIGSTOP);
                std::thread::sleep(pause * 15);
                nodes[victim].signal(Signal::SIGCONT);
            }
            1 => relays.iter().for_each(Relay::cut),
            _ => {
                nodes[victim].kill();
                std::thread::sleep(pause);
                nodes[victim].restart();
            }
        }
    }
    let excused = Excused { interrupted: true };
    let summary = campaign.account(&mut nodes[0].control(), &runs, excused);
    for node in &nodes {
        wait_for(&format!("an empty spool of {}", node.name()), || {
            let status = node.control().json("status");
            (status["receptor"]["spool"]["entries"] == 0).then_some(())
        });
        let peak = peak_kib(node.pid());
        assert!(peak < MEMORY_KIB, "{} took {peak} KiB", node.name());
    }
    summary
}
