//! Which nodes there are and which links are configured between them. A pure function of the
//! options.

use crate::options::{Options, Topology};
use crate::random::{Draw, Stream, stream};

/// A configured link: `ends[0]` makes the connection.
#[derive(Debug, Clone)]
pub(crate) struct Wire {
    pub(crate) ends: [usize; 2],
    pub(crate) cost: [u32; 2],
    pub(crate) latency_us: u64,
}

/// All of it.
#[derive(Debug)]
pub(crate) struct Plan {
    /// For each node, whether it is a router. Routers come first.
    pub(crate) routers: Vec<bool>,
    pub(crate) wires: Vec<Wire>,
}

/// Draws the mesh of these options.
pub(crate) fn plan(options: &Options) -> Plan {
    let mut rng = stream(options.seed, Stream::Topology);
    let count = options.nodes.max(1);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "counts of nodes are small"
    )]
    let leaves = ((count as f64 * options.leaves.clamp(0.0, 1.0)) as usize).min(count - 1);
    let routers = count - leaves;
    let mut pairs: Vec<(usize, usize)> = Vec::new();
    match options.topology {
        Topology::Random => {
            for node in 1..routers {
                pairs.push((node, rng.usize(0..node)));
            }
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                clippy::cast_precision_loss,
                reason = "counts of links are small"
            )]
            let wanted = (routers as f64 * options.degree / 2.0) as usize;
            let possible = routers * routers.saturating_sub(1) / 2;
            let mut there: std::collections::BTreeSet<(usize, usize)> =
                pairs.iter().map(|(a, b)| (*b.min(a), *a.max(b))).collect();
            while pairs.len() < wanted.min(possible) {
                let (a, b) = (rng.usize(0..routers), rng.usize(0..routers));
                if a != b && there.insert((a.min(b), a.max(b))) {
                    pairs.push((a, b));
                }
            }
        }
        Topology::Chain | Topology::Ring => {
            pairs.extend((1..routers).map(|node| (node, node - 1)));
            if options.topology == Topology::Ring && routers > 2 {
                pairs.push((0, routers - 1));
            }
        }
        Topology::Star => pairs.extend((1..routers).map(|node| (node, 0))),
        Topology::Grid => {
            let columns = routers.isqrt().max(1);
            for node in 0..routers {
                if node % columns != 0 {
                    pairs.push((node, node - 1));
                }
                if node >= columns {
                    pairs.push((node, node - columns));
                }
            }
        }
    }
    for leaf in routers..count {
        let first = rng.usize(0..routers);
        pairs.push((leaf, first));
        if routers > 1 && rng.bool() {
            let second = (first + rng.usize(1..routers)) % routers;
            pairs.push((leaf, second));
        }
    }
    let mut wires = Vec::new();
    for (a, b) in pairs {
        let copies = 1 + usize::from(rng.chance(options.double_links));
        for _ in 0..copies {
            // Either side may be the one that dials, double links also from both.
            let ends = if rng.bool() { [a, b] } else { [b, a] };
            let mut cost = || u32::try_from(rng.within(options.cost)).unwrap_or(u32::MAX);
            let cost = [cost(), cost()];
            let latency_us = rng.micros(options.latency_ms).max(1);
            wires.push(Wire {
                ends,
                cost,
                latency_us,
            });
        }
    }
    Plan {
        routers: (0..count).map(|node| node < routers).collect(),
        wires,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_topology_is_connected() {
        for topology in [
            Topology::Random,
            Topology::Ring,
            Topology::Chain,
            Topology::Star,
            Topology::Grid,
        ] {
            for nodes in [1, 2, 3, 17] {
                let options = Options {
                    nodes,
                    topology,
                    leaves: 0.3,
                    double_links: 0.3,
                    ..Options::default()
                };
                let plan = plan(&options);
                assert_eq!(plan.routers.len(), nodes);
                let mut reached = vec![false; nodes];
                reached[0] = true;
                for _ in 0..nodes {
                    for wire in &plan.wires {
                        let [a, b] = wire.ends;
                        assert!(plan.routers[a] || plan.routers[b]);
                        if reached[a] || reached[b] {
                            (reached[a], reached[b]) = (true, true);
                        }
                    }
                }
                assert!(reached.iter().all(|yes| *yes), "{topology} {nodes}");
            }
        }
    }
}
