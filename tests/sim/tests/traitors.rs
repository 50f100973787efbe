//! Meshes with certificates: everything that holds without them, and that members who mean harm can delay and lose what
//! goes through them and nothing else.

use receptor_sim::{Certificates, Options, StoreKind, Topology, Transport, run};

/// Runs it, and gives back how many frames were tampered with and how much was refused.
fn hold(options: &Options) -> (u64, u64) {
    let outcome = run(options);
    if let Some(failure) = outcome.failure {
        let lines = outcome.lines.join("\n");
        panic!("{lines}\n{}\n{}", failure.why, failure.command);
    }
    (outcome.stats.tampered, outcome.stats.unproved)
}

/// Traffic of every kind and all faults.
fn secured(seed: u64) -> Options {
    Options {
        seed,
        certificates: if seed.is_multiple_of(3) {
            Certificates::Shown
        } else {
            Certificates::Hidden
        },
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

#[test]
fn all_promises_hold_with_certificates() {
    for seed in 1..=6 {
        let (_, unproved) = hold(&Options {
            loss: 0.0,
            ..secured(seed)
        });
        // Honest nodes refuse nothing of each other but what was for a key that was lost, or an earlier start.
        assert!(unproved < 200, "{unproved}");
    }
}

#[test]
fn traitors_forge_and_alter_and_redirect_and_repeat_nothing() {
    let (mut tampered, mut unproved) = (0, 0);
    for seed in 1..=6 {
        let found = hold(&Options {
            traitors: 2,
            ..secured(seed)
        });
        (tampered, unproved) = (tampered + found.0, unproved + found.1);
    }
    assert!(tampered > 200, "{tampered}");
    assert!(unproved > 200, "{unproved}");
}

#[test]
fn traitors_do_no_more_on_bad_links_and_lost_disks() {
    for seed in 1..=4 {
        hold(&Options {
            traitors: 1,
            transport: Transport::Datagram,
            duplication: 0.05,
            reorder: 0.05,
            data_loss: 0.3,
            disk_faults: 0.02,
            store: if seed == 4 {
                StoreKind::Memory
            } else {
                StoreKind::Disk
            },
            ..secured(seed)
        });
    }
}

#[test]
fn strangers_with_links_say_nothing_that_is_believed() {
    for seed in 1..=4 {
        let (_, unproved) = hold(&Options {
            hostile: 2,
            ..secured(seed)
        });
        assert!(unproved > 0);
    }
}

/// Where there is another way, honest traffic arrives while traitors are at it.
#[test]
fn a_traitor_off_the_way_changes_nothing() {
    for topology in [Topology::Grid, Topology::Ring] {
        hold(&Options {
            seed: 3,
            nodes: 9,
            topology,
            certificates: Certificates::Hidden,
            traitors: 1,
            rate: 20.0,
            duration_s: 10.0,
            converge_s: 20.0,
            ..Options::default()
        });
    }
}
