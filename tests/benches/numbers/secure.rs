//! The numbers of encrypted links: what TLS costs over our own plain links, and over a bare chain with TLS.

use std::path::Path;
use std::process::{Command, Stdio};

use super::{Bench, Chain, Client, Row, latencies, percentile};

/// An authority in `dir`, and for each node a certificate and a configuration that names it.
pub(super) fn certificates(bench: &Bench, count: usize, dir: &Path) {
    let run = |words: &[&str]| {
        let status = Command::new(bench.bin.join("receptorctl"))
            .args(words)
            .current_dir(dir)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        assert!(status.expect("receptorctl runs").success(), "{words:?}");
    };
    run(&["cert", "init-ca", "--out", "tls"]);
    let tls = dir.join("tls");
    let tls = tls.display();
    for node in 0..count {
        let name = format!("n{node}");
        run(&["cert", "issue", &name, "--ca", "tls", "--out", "tls"]);
        let text = format!(
            "[tls]\ncertificate = \"{tls}/{name}.pem\"\nkey = \"{tls}/{name}.key\"\nca = \"{tls}/ca.pem\"\n"
        );
        std::fs::write(dir.join(format!("{name}.toml")), text).expect("a configuration");
    }
}

fn with_tls(bench: &Bench) -> Bench {
    Bench {
        tls: true,
        ..bench.clone()
    }
}

pub(super) fn n2_request_reply(bench: &Bench) -> Row {
    let [secure, plain] = [with_tls(bench), bench.clone()].map(|bench| Chain::start(&bench, 3));
    let [mut secure, mut plain] = [secure.client(0), plain.client(0)];
    let p50 =
        |client: &mut Client| percentile(&mut latencies(client, 2, "echo:echo", 128, 3000), 0.5);
    let mut ours = Vec::new();
    let mut floor = Vec::new();
    for _ in 0..bench.rounds {
        ours.push(p50(&mut secure));
        floor.push(p50(&mut plain));
    }
    Row {
        what: "request/reply 128 B with TLS, over ours without",
        unit: "us",
        ours,
        floor,
        must: "<= 1.3x",
        aim: "<= 1.2x",
    }
}

/// What signing and sealing cost: another number with TLS, over the same with TLS alone. It tells nothing of the
/// floor that the number has otherwise, so that one is not measured again.
pub(super) fn sealed_over_tls(
    bench: &Bench,
    must: &'static str,
    measure: fn(&Bench) -> Row,
) -> Row {
    let once = |tls_alone| {
        measure(&Bench {
            rounds: 1,
            tls_alone,
            floors: false,
            ..with_tls(bench)
        })
    };
    let mut row = once(false);
    row.floor = once(true).ours;
    for _ in 1..bench.rounds {
        row.ours.extend(once(false).ours);
        row.floor.extend(once(true).ours);
    }
    Row {
        must,
        aim: "",
        ..row
    }
}

/// Another number, with TLS on both sides.
pub(super) fn n6(bench: &Bench, measure: fn(&Bench) -> Row) -> Row {
    Row {
        must: ">= 0.50x",
        aim: ">= 0.65x",
        ..measure(&with_tls(bench))
    }
}
