//! Meshes with certificates: everything that holds without them, and that members who mean harm can delay and lose what
//! goes through them and nothing else.

mod faults;

use faults::{all_faults, hold};
use receptor_sim::{Certificates, Options, Stats, StoreKind, Topology, Transport};

/// Traffic of every kind and all faults.
fn secured(seed: u64) -> Options {
    Options {
        certificates: if seed.is_multiple_of(3) {
            Certificates::Shown
        } else {
            Certificates::Hidden
        },
        ..all_faults(seed)
    }
}

#[test]
fn all_promises_hold_with_certificates() {
    for seed in 1..=6 {
        let Stats { unproved, .. } = hold(&Options {
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
        (tampered, unproved) = (tampered + found.tampered, unproved + found.unproved);
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
        let Stats { unproved, .. } = hold(&Options {
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
