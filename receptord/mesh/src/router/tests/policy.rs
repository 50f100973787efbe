//! What the rules forbid: neighbors, and packets on their way.

use alloc::sync::Arc;

use receptor_proto::Directive;

use super::*;
use crate::{Denied, Policy};

/// Names of nodes that may not be neighbors, and pairs that nothing is forwarded between.
#[derive(Debug, Default)]
struct Without {
    links: Vec<&'static str>,
    ways: Vec<(&'static str, &'static str)>,
}

impl Policy for Without {
    fn may_use(&self, _: &NodeId, _: &Directive) -> bool {
        true
    }

    fn may_link(&self, node: &NodeId) -> bool {
        !self.links.contains(&node.as_str())
    }

    fn may_pass(&self, from: &NodeId, to: &NodeId) -> bool {
        !self.ways.contains(&(from.as_str(), to.as_str()))
    }
}

impl Net {
    fn forbid(&mut self, host: usize, policy: Without) {
        let now = self.now;
        self.hosts[host].mesh.set_policy(now, Arc::new(policy));
        self.drain(host);
    }
}

#[test]
fn who_may_not_be_a_neighbor_is_told_at_its_hello() {
    let mut net = Net::new();
    let (a, b) = (net.add("a"), net.add("b"));
    let links = vec!["b"];
    let ways = Vec::new();
    net.forbid(a, Without { links, ways });
    let link = net.connect(a, b);
    net.run(Duration::from_secs(1));
    for (host, by_peer) in [(a, false), (b, true)] {
        assert_eq!(
            net.closed_code(host, link),
            Some(&ErrorCode::PermissionDenied)
        );
        // The other side may have called the link up in between.
        assert!(net.had(host, |event| match event {
            Event::LinkRefused {
                reason,
                by_peer: by,
                ..
            } => *by == by_peer && reason.message == "a does not permit links with b",
            Event::NeighborDown { reason, .. } =>
                by_peer && reason.message == "a does not permit links with b",
            _ => false,
        }));
        assert!(net.mesh(host).links().is_empty());
    }
    assert!(!net.reaches(a, "b"));
    // The same link is fine once the rules have changed.
    net.forbid(a, Without::default());
    net.connect(a, b);
    net.settle();
    assert!(net.reaches(a, "b"));
}

#[test]
fn new_rules_cut_the_links_they_forbid_and_no_other() {
    let (mut net, links) = chain(&["a", "b", "c"]);
    net.settle();
    let forbidden = vec!["a"];
    let ways = Vec::new();
    net.forbid(
        1,
        Without {
            links: forbidden,
            ways,
        },
    );
    net.settle();
    assert_eq!(
        net.closed_code(0, links[0]),
        Some(&ErrorCode::PermissionDenied)
    );
    assert_eq!(net.closed_code(1, links[1]), None);
    assert!(net.reaches(1, "c") && !net.reaches(1, "a"));
}

#[test]
fn what_is_not_forwarded_is_said_by_whom() {
    let (mut net, _) = chain(&["a", "b", "c"]);
    net.settle();
    let ways = vec![("a", "c")];
    let links = Vec::new();
    net.forbid(1, Without { links, ways });
    let error = net.echo(0, "c").unwrap_err();
    assert_eq!(error.code, ErrorCode::PermissionDenied);
    assert_eq!(
        error.message,
        "b on the way does not forward to c for this node"
    );
    assert_eq!(error.detail["reported-by"], "b");
    assert!(net.had(1, |event| matches!(
        event,
        Event::Denied(Denied::Transit { from, to }) if *from == id("a") && *to == id("c")
    )));
    // It is still there for others, and for itself.
    assert!(net.echo(0, "b").is_ok());
    assert!(net.echo(1, "c").is_ok());
    net.forbid(1, Without::default());
    assert!(net.echo(0, "c").is_ok());
}
