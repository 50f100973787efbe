//! Shortest paths over the database: Dijkstra on dense indices, no string touched on the way.
//!
//! A link between routers counts only when both ends state it; each direction costs what its
//! own end states. A leaf hangs on the routers that state it and is never passed through. The
//! node's own adjacencies come from the adjacencies themselves and count at once.
//!
//! Ties are broken the same way whatever the order of arrival: fewer links, then the first
//! neighbor in order of id.

use alloc::collections::BinaryHeap;
use alloc::vec::Vec;
use core::cmp::Reverse;

use super::digest::mixed;
use super::lsdb::Index;

/// A stated adjacency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Edge {
    pub(super) to: Index,
    pub(super) cost: u32,
    pub(super) leaf: bool,
}

/// What paths are computed on.
pub(super) trait Graph {
    /// One above the highest index.
    fn size(&self) -> usize;
    /// The adjacencies that the node states, in order of index.
    fn edges(&self, node: Index) -> &[Edge];
    /// Which start of the node is known.
    fn instance(&self, node: Index) -> u64;
}

/// One of this node's own adjacencies.
#[derive(Debug, Clone, Copy)]
pub(super) struct Root {
    pub(super) neighbor: Index,
    pub(super) cost: u32,
    pub(super) leaf: bool,
}

/// The way to one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) cost: u32,
    pub(super) hops: u32,
    /// The neighbor to send to.
    pub(super) via: Index,
    /// The node before it on the way.
    pub(super) last: Index,
    /// Changes with the nodes on the way and their starts.
    pub(super) path: u64,
}

impl Route {
    /// No way.
    pub(super) const NONE: Self = Self {
        cost: u32::MAX,
        hops: u32::MAX,
        via: Index::MAX,
        last: Index::MAX,
        path: 0,
    };

    pub(super) fn exists(self) -> bool {
        self.via != Index::MAX
    }
}

/// Memory that is kept from run to run.
#[derive(Debug, Default)]
pub(super) struct Spf {
    heap: BinaryHeap<Reverse<(u32, u32, Index)>>,
    /// By index: the rank of the first neighbor in order of id, and whether the node was
    /// reached as a leaf.
    reached: Vec<(u32, bool)>,
}

impl Spf {
    /// Fills `routes`, one a node. `own` is this node; `roots` are its adjacencies in order of
    /// the neighbors' ids. A leaf (`transit` false) reaches its neighbors alone.
    pub(super) fn run(
        &mut self,
        graph: &impl Graph,
        own: Index,
        roots: &[Root],
        transit: bool,
        routes: &mut Vec<Route>,
    ) {
        routes.clear();
        routes.resize(graph.size(), Route::NONE);
        self.reached.clear();
        self.reached.resize(graph.size(), (u32::MAX, false));
        self.heap.clear();
        for (rank, root) in (0u32..).zip(roots) {
            let instance = graph.instance(root.neighbor);
            let route = Route {
                cost: root.cost,
                hops: 1,
                via: root.neighbor,
                last: own,
                path: mixed(instance, u64::from(root.neighbor)) | 1,
            };
            let to = root.neighbor;
            if self.improves(routes, to, (route.cost, route.hops, rank)) {
                self.reach(routes, to, route, rank, root.leaf || !transit);
            }
        }
        while let Some(Reverse((cost, hops, node))) = self.heap.pop() {
            let from = routes[node as usize];
            let (rank, leaf) = self.reached[node as usize];
            if (from.cost, from.hops) != (cost, hops) || leaf {
                continue;
            }
            for edge in graph.edges(node) {
                let (to, hops) = (edge.to, hops + 1);
                let cost = cost.saturating_add(edge.cost);
                // Most edges end here, so the cheapest question comes first.
                if to == own || !self.improves(routes, to, (cost, hops, rank)) {
                    continue;
                }
                if !edge.leaf && !states(graph, to, node) {
                    continue;
                }
                let path = mixed(mixed(from.path, graph.instance(to)), u64::from(to)) | 1;
                let via = from.via;
                let route = Route {
                    cost,
                    hops,
                    via,
                    last: node,
                    path,
                };
                self.reach(routes, to, route, rank, edge.leaf);
            }
        }
    }

    /// Whether a way with this cost, length and rank of its first neighbor is better than what
    /// is known.
    fn improves(&self, routes: &[Route], to: Index, way: (u32, u32, u32)) -> bool {
        let known = routes[to as usize];
        way < (known.cost, known.hops, self.reached[to as usize].0)
    }

    fn reach(&mut self, routes: &mut [Route], to: Index, route: Route, rank: u32, leaf: bool) {
        routes[to as usize] = route;
        self.reached[to as usize] = (rank, leaf);
        self.heap.push(Reverse((route.cost, route.hops, to)));
    }
}

/// Whether `node` states a router-to-router link to `neighbor`.
fn states(graph: &impl Graph, node: Index, neighbor: Index) -> bool {
    let edges = graph.edges(node);
    edges
        .binary_search_by_key(&neighbor, |edge| edge.to)
        .is_ok_and(|found| !edges[found].leaf)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use proptest::prelude::*;

    #[derive(Debug)]
    struct Plain(Vec<Vec<Edge>>);

    impl Graph for Plain {
        fn size(&self) -> usize {
            self.0.len()
        }
        fn edges(&self, node: Index) -> &[Edge] {
            &self.0[node as usize]
        }
        fn instance(&self, node: Index) -> u64 {
            u64::from(node)
        }
    }

    impl Plain {
        fn roots(&self) -> Vec<Root> {
            let root = |edge: &Edge| Root {
                neighbor: edge.to,
                cost: edge.cost,
                leaf: edge.leaf,
            };
            self.0[0].iter().map(root).collect()
        }

        fn run(&self) -> Vec<Route> {
            let mut routes = Vec::new();
            Spf::default().run(self, 0, &self.roots(), true, &mut routes);
            routes
        }

        /// Bellman-Ford, in the words of the module's first paragraph.
        fn naive(&self) -> Vec<Option<u32>> {
            let mut cost = vec![None; self.0.len()];
            // Reached other than as a leaf, so that it may pass on.
            let mut transit = vec![None; self.0.len()];
            for edge in &self.0[0] {
                cost[edge.to as usize] = Some(edge.cost);
                if !edge.leaf {
                    transit[edge.to as usize] = Some(edge.cost);
                }
            }
            for _ in 0..self.0.len() {
                for from in 1..self.0.len() {
                    let Some(so_far) = transit[from] else {
                        continue;
                    };
                    for edge in &self.0[from] {
                        let to = edge.to as usize;
                        let back = |back: &Edge| back.to as usize == from && !back.leaf;
                        if to == 0 || !edge.leaf && !self.0[to].iter().any(back) {
                            continue;
                        }
                        let sum = so_far + edge.cost;
                        let lower = |old: Option<u32>| Some(old.map_or(sum, |old| old.min(sum)));
                        cost[to] = lower(cost[to]);
                        if !edge.leaf {
                            transit[to] = lower(transit[to]);
                        }
                    }
                }
            }
            cost
        }
    }

    /// Graphs in which every node is a router or a leaf to all its neighbors, some links being
    /// stated at one end only.
    fn graph() -> impl Strategy<Value = Plain> {
        (2..14usize)
            .prop_flat_map(|nodes| {
                let links = prop::collection::vec(
                    (0..nodes, 0..nodes, 1..6u32, 1..6u32, 0..5u8),
                    0..3 * nodes,
                );
                (
                    links,
                    prop::collection::vec(prop::bool::weighted(0.2), nodes),
                )
            })
            .prop_map(|(links, leaves)| {
                let mut edges = vec![Vec::new(); leaves.len()];
                let mut add = |from: usize, to: usize, cost| {
                    let leaf = leaves[to] && to != 0;
                    let to = Index::try_from(to).unwrap();
                    let known = |edge: &Edge| edge.to == to;
                    if (from == 0 || !leaves[from]) && !edges[from].iter().any(known) {
                        edges[from].push(Edge { to, cost, leaf });
                    }
                };
                for (a, b, there, back, ends) in links {
                    if a != b {
                        add(a, b, there);
                        if ends != 0 {
                            add(b, a, back);
                        }
                    }
                }
                for edges in &mut edges {
                    edges.sort_unstable();
                }
                Plain(edges)
            })
    }

    proptest! {
        #[test]
        fn costs_are_those_of_a_naive_solver(graph in graph()) {
            let routes = graph.run();
            let naive = graph.naive();
            for (node, (route, cost)) in routes.iter().zip(naive).enumerate().skip(1) {
                prop_assert_eq!(route.exists().then_some(route.cost), cost, "node {}", node);
            }
        }

        #[test]
        fn ways_lead_over_a_neighbor_and_do_not_depend_on_numbering(graph in graph()) {
            let routes = graph.run();
            // The same graph with all other nodes numbered from the far end. The order of roots
            // stays as it was: it stands for the order of ids.
            let size = Index::try_from(graph.0.len()).unwrap();
            let other = |node: Index| if node == 0 { 0 } else { size - node };
            let mut mirrored = vec![Vec::new(); graph.0.len()];
            for (node, edges) in (0..).zip(&graph.0) {
                let mut edges: Vec<Edge> = edges
                    .iter()
                    .map(|edge| Edge { to: other(edge.to), ..*edge })
                    .collect();
                edges.sort_unstable();
                mirrored[other(node) as usize] = edges;
            }
            let mirrored = Plain(mirrored);
            let mut roots = graph.roots();
            for root in &mut roots {
                root.neighbor = other(root.neighbor);
            }
            let mut again = Vec::new();
            Spf::default().run(&mirrored, 0, &roots, true, &mut again);
            for node in 1..size {
                let (a, b) = (routes[node as usize], again[other(node) as usize]);
                prop_assert_eq!((a.cost, a.hops), (b.cost, b.hops));
                if a.exists() {
                    prop_assert_eq!(other(a.via), b.via);
                    prop_assert!(graph.0[0].iter().any(|edge| edge.to == a.via));
                }
            }
        }
    }
}
