//! The promises that a mesh as a whole owes, each under the faults that
//! could break it. Small meshes, so that a debug build takes seconds; `cargo sim` does the rest.

mod faults;

use faults::{all_faults, hold};
use receptor_sim::{
    Bounds, Codec, Lines, Options, Span, StoreKind, Topology, Transport, run, run_with,
};

#[test]
fn every_topology_finds_its_routes() {
    for topology in [
        Topology::Random,
        Topology::Ring,
        Topology::Chain,
        Topology::Star,
        Topology::Grid,
    ] {
        hold(&Options {
            nodes: 12,
            topology,
            leaves: 0.25,
            double_links: 0.3,
            duration_s: 1.0,
            converge_s: 10.0,
            ..Options::default()
        });
    }
}

#[test]
fn routes_come_right_after_faults() {
    for seed in 1..=6 {
        hold(&Options {
            seed,
            nodes: 12,
            leaves: 0.2,
            double_links: 0.2,
            loss: 0.02,
            spikes: 0.01,
            flaps: 1.0,
            black_holes: 0.2,
            one_way: 0.2,
            crashes: 0.3,
            power_cuts: 0.2,
            freezes: 0.2,
            changes: 1.0,
            shutdowns: 0.2,
            data_loss: 0.3,
            echoes: 5.0,
            converge_s: 30.0,
            ..Options::default()
        });
    }
}

#[test]
fn routes_come_right_after_faults_on_links_worse_than_any() {
    for seed in 1..=4 {
        hold(&Options {
            seed,
            transport: Transport::Datagram,
            loss: 0.1,
            duplication: 0.05,
            reorder: 0.1,
            flaps: 0.5,
            one_way: 0.2,
            crashes: 0.2,
            changes: 1.0,
            converge_s: 30.0,
            ..Options::default()
        });
    }
}

#[test]
fn parts_of_a_mesh_agree_among_themselves() {
    for seed in 1..=4 {
        hold(&Options {
            seed,
            nodes: 14,
            degree: 2.0,
            flaps: 1.0,
            cut: 0.3,
            duration_s: 10.0,
            converge_s: 30.0,
            ..Options::default()
        });
    }
}

#[test]
fn messages_run_once_and_answer_in_order_on_good_links() {
    hold(&Options {
        nodes: 6,
        leaves: 0.3,
        rate: 20.0,
        large: 0.1,
        volatile: 0.2,
        cancel: 0.1,
        any: 0.2,
        forget: 0.1,
        nobody: 0.05,
        stalls: 0.1,
        echoes: 5.0,
        converge_s: 30.0,
        ..Options::default()
    });
}

#[test]
fn accepted_means_kept_under_all_faults() {
    for seed in 1..=8 {
        hold(&all_faults(seed));
    }
}

#[test]
fn small_bounds_slow_down_and_lose_nothing() {
    for seed in 1..=4 {
        hold(&Options {
            bounds: Bounds::Tight,
            bandwidth: 400_000,
            socket_buffer: 32_768,
            large: 0.2,
            stalls: 0.3,
            slow_works: 0.0,
            ..all_faults(seed)
        });
    }
}

#[test]
fn what_links_cannot_carry_waits_outside_of_their_queues() {
    hold(&Options {
        seed: 2,
        bounds: Bounds::Tight,
        bandwidth: 100_000,
        rate: 20.0,
        large: 0.1,
        black_holes: 0.3,
        flaps: 1.0,
        converge_s: 900.0,
        ..Options::default()
    });
}

#[test]
fn messages_that_expire_end_once() {
    for seed in 1..=4 {
        hold(&Options {
            expiry_ms: Span::new(500, 8000),
            ..all_faults(seed)
        });
    }
}

#[test]
fn what_waits_in_pages_is_found_told_and_run_once() {
    for seed in 1..=6 {
        hold(&Options {
            nodes: 5,
            window: 1,
            page: 3,
            rate: 30.0,
            any: 0.0,
            cancel: 0.2,
            outage_ms: Span::new(2000, 9000),
            crashes: 0.4,
            power_cuts: 0.4,
            disk_faults: if seed % 2 == 0 { 0.03 } else { 0.0 },
            expiry_ms: if seed % 3 == 0 {
                Span::new(500, 8000)
            } else {
                Span::new(600_000, 600_000)
            },
            ..all_faults(seed)
        });
    }
}

#[test]
fn a_failing_disk_loses_nothing_that_was_accepted() {
    for seed in 1..=4 {
        hold(&Options {
            disk_faults: 0.05,
            ..all_faults(seed)
        });
    }
}

#[test]
fn a_disk_that_fails_for_a_while_loses_nothing_that_was_accepted() {
    for seed in 1..=4 {
        hold(&Options {
            disk_outages: 0.4,
            ..all_faults(seed)
        });
    }
}

#[test]
fn who_sent_what_a_disk_has_damaged_is_told() {
    for seed in 1..=4 {
        hold(&Options {
            damage: 0.1,
            crashes: 0.8,
            large: 0.2,
            ..all_faults(seed)
        });
    }
}

#[test]
fn a_message_with_a_key_is_run_once_however_often_it_is_sent() {
    for seed in 1..=6 {
        hold(&Options {
            keys: 0.8,
            crashes: 0.8,
            power_cuts: 0.4,
            persist_ms: Span::new(0, 40),
            ..all_faults(seed)
        });
    }
}

#[test]
fn what_may_be_run_again_has_an_end_of_its_plugin() {
    for seed in 1..=4 {
        hold(&Options {
            idempotent: 1.0,
            crashes: 0.6,
            responses: Span::new(0, 8),
            ..all_faults(seed)
        });
    }
}

#[test]
fn plugins_that_outlive_their_nodes_are_heard_to_the_end() {
    let mut adopted = 0;
    for seed in 1..=6 {
        let stats = hold(&Options {
            outlive: 1.0,
            crashes: 0.6,
            shutdowns: 0.4,
            idempotent: 0.3,
            cancel: 0.2,
            responses: Span::new(0, 20),
            work_ms: Span::new(0, 400),
            slow_works: 0.0,
            rate: 15.0,
            disk_faults: if seed % 3 == 0 { 0.02 } else { 0.0 },
            bounds: if seed % 2 == 0 {
                Bounds::Tight
            } else {
                Bounds::Default
            },
            ..all_faults(seed)
        });
        adopted += stats.adopted;
    }
    assert!(adopted > 40, "{adopted}");
}

#[test]
fn what_is_cancelled_or_dropped_at_any_moment_ends_once() {
    for (seed, most_ms) in (1..).zip([0, 10, 100, 1000, 10_000]) {
        hold(&Options {
            cancel: 0.5,
            drops: 0.3,
            cancel_ms: Span::new(0, most_ms),
            ..all_faults(seed)
        });
    }
}

#[test]
fn a_node_that_keeps_as_much_as_it_may_refuses_and_loses_nothing() {
    for seed in 1..=4 {
        hold(&Options {
            room: 6,
            custody: 3,
            rate: 15.0,
            ..all_faults(seed)
        });
    }
}

#[test]
fn a_store_in_memory_runs_nothing_twice_in_one_life() {
    for seed in 1..=4 {
        hold(&Options {
            store: StoreKind::Memory,
            ..all_faults(seed)
        });
    }
}

#[test]
fn a_lost_data_directory_harms_its_own_messages_only() {
    for seed in 1..=4 {
        hold(&Options {
            data_loss: 0.5,
            ..all_faults(seed)
        });
    }
}

#[test]
fn hostile_neighbors_harm_nobody_for_long() {
    for seed in 1..=6 {
        hold(&Options {
            seed,
            nodes: 6,
            hostile: 2,
            duration_s: 15.0,
            converge_s: 30.0,
            ..Options::default()
        });
    }
}

#[test]
fn one_seed_is_one_run() {
    let options = Options {
        hostile: 1,
        disk_faults: 0.02,
        ..all_faults(42)
    };
    let (first, second) = (run(&options), run(&options));
    assert_eq!(first.hash, second.hash);
    assert_eq!(first.stats, second.stats);
    // Keeping lines and sharing frames change nothing either.
    let told = run_with(&options, Lines::Tail);
    assert_eq!(first.hash, told.hash);
    assert!(!told.lines.is_empty());
    let other = run(&Options {
        seed: 43,
        ..options
    });
    assert_ne!(first.hash, other.hash);
}

#[test]
fn frames_as_bytes_and_as_values_are_the_same_run() {
    let bytes = all_faults(7);
    let values = Options {
        codec: Codec::Off,
        ..bytes.clone()
    };
    let (bytes, values) = (run(&bytes), run(&values));
    assert_eq!(bytes.stats, values.stats);
    assert_eq!(bytes.ended, values.ended);
}

#[test]
fn a_failure_names_the_command_that_shows_it() {
    let options = Options {
        seed: 5,
        nodes: 4,
        latency_ms: Span::new(800, 900),
        duration_s: 0.1,
        converge_s: 0.5,
        ..Options::default()
    };
    let failure = run(&options).failure.unwrap();
    let (_, arguments) = failure.command.split_once("-- ").unwrap();
    assert_eq!(arguments.parse(), Ok(options));
}

#[test]
fn seeds_that_once_failed() {
    let text = include_str!("../seeds.txt");
    for line in text.lines() {
        let (arguments, why) = line.split_once('#').unwrap_or((line, ""));
        if arguments.trim().is_empty() {
            continue;
        }
        assert!(!why.trim().is_empty(), "{line}: why is it here?");
        hold(&arguments.parse().unwrap());
    }
}
