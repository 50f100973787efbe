//! Certificates that are not believed: both ends say so, and why.

use std::process::{Command, Stdio};

use receptor_tests::{Daemon, Mesh, wait_for};
use time::Duration;

use crate::mesh::link_to;
use receptor_tests::authority::{Authority, VALID, Valid};

/// Waits until a daemon says why it has no link to its only peer.
fn wait_refused(daemon: &Daemon, why: &str) {
    wait_for(&format!("{why:?} at {}", daemon.name()), || {
        let links = daemon.control().json("links");
        let error = &links["links"][0]["error"];
        let message = error["message"].as_str()?;
        (error["code"] == "untrusted" && message.contains(why)).then_some(())
    });
}

#[test]
fn a_certificate_that_is_not_believed_is_refused_and_both_ends_say_why() {
    let hour = Duration::hours(1);
    let cases = [
        (
            "old",
            Valid(-3 * hour, -hour),
            "the certificate expired at",
            "it has expired, or is not valid yet",
        ),
        (
            "early",
            Valid(hour, 3 * hour),
            "the certificate is not valid before",
            "it has expired, or is not valid yet",
        ),
        (
            "revoked",
            VALID,
            "the certificate is revoked",
            "it is revoked",
        ),
        (
            "stranger",
            VALID,
            "the certificate is not from a trusted authority",
            "it is not from an authority that is trusted there",
        ),
    ];
    let mesh = Mesh::new();
    let authority = Authority::new(&mesh.dir().join("ca"));
    let other = Authority::new(&mesh.dir().join("other-ca"));
    authority.revoke(&[66]);
    let crl = format!("crl = \"{}\"", authority.file("crl.pem").display());
    let a = authority.equip(mesh.node("a"), "a").config(&crl).start();
    let b = authority.equip(mesh.node("b"), "b").peer(&a).start();
    b.wait_ping("a");
    for (name, valid, here, there) in cases {
        let issuer = if name == "stranger" {
            &other
        } else {
            &authority
        };
        issuer.give(name, 66, valid);
        // It believes the others, so that it is they who refuse.
        let table = issuer.table(name).replace(
            &other.file("ca.pem").display().to_string(),
            &authority.file("ca.pem").display().to_string(),
        );
        let node = mesh.node(name).listen("rnps://127.0.0.1:0").config(&table);
        let dials = node.peer(&a).start();
        wait_refused(&dials, there);
        a.wait_log("connection refused");
        let status = &dials.control().json("status")["receptor"];
        if name == "old" || name == "early" {
            let warnings = status["warnings"].to_string();
            assert!(warnings.contains(here), "{warnings}");
        }
        let dialler = format!("to-{name}");
        authority.give(&dialler, 2, VALID);
        let table = format!("{}{crl}\n", authority.table(&dialler));
        let node = mesh.node(&dialler).quiet().config(&table);
        let refuses = node.peer(&dials).start();
        wait_refused(&refuses, here);
        dials.wait_log("the other end refuses this node's certificate");
    }
    assert!(link_to(&b, "a").is_some());
    let up = a.log().matches("neighbor up").count();
    assert_eq!(up, 1, "only b was let in");
}

#[test]
fn only_pinned_certificates_are_believed_where_there_are_pins() {
    let mesh = Mesh::new();
    let authority = Authority::new(&mesh.dir().join("ca"));
    authority.give("b", 2, VALID);
    let pem = std::fs::read(authority.file("b.pem")).unwrap();
    let der = receptor_identity::read_certificates(&pem).unwrap();
    let pin = receptor_identity::Fingerprint::of(&der[0]);
    let pinned = format!("pinned = [\"{pin}\"]");
    let a = authority.equip(mesh.node("a"), "a").config(&pinned).start();
    let b = authority.equip(mesh.node("b"), "b").peer(&a).start();
    b.wait_ping("a");
    let c = authority.equip(mesh.node("c"), "c").peer(&a).start();
    wait_refused(&c, "the log there says why");
    a.wait_log("fingerprint is not one of those that are pinned");
}

/// What openssl as a client makes of a listener.
fn s_client(address: &str, options: &str) -> Option<String> {
    let mut child = Command::new("openssl")
        .args(["s_client", "-connect", address])
        .args(options.split_whitespace())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .ok()?;
    // It goes on until the other end closes; its input stays open.
    let input = child.stdin.take();
    let output = child.wait_with_output().unwrap();
    drop(input);
    let said = [output.stdout, output.stderr].concat();
    Some(String::from_utf8_lossy(&said).into_owned())
}

#[test]
fn openssl_is_let_in_by_no_other_way() {
    let mesh = Mesh::new();
    let authority = Authority::new(&mesh.dir().join("ca"));
    let a = authority.equip(mesh.node("a"), "a").start();
    let address = a.address();
    let Some(said) = s_client(&address, "-tls1_3 -ign_eof") else {
        eprintln!("there is no openssl here");
        return;
    };
    assert!(said.contains("certificate required"), "{said}");
    a.wait_log("no certificate was presented");
    let said = s_client(&address, "-tls1_2").unwrap();
    assert!(said.contains("alert protocol version"), "{said}");
    // With a certificate of another authority.
    let other = Authority::new(&mesh.dir().join("other"));
    other.give("x", 3, VALID);
    let file = |name: &str| other.file(name).display().to_string();
    let options = format!(
        "-tls1_3 -ign_eof -cert {} -key {}",
        file("x.pem"),
        file("x.key")
    );
    let said = s_client(&address, &options).unwrap();
    assert!(said.contains("unknown ca"), "{said}");
    // With the right one, it is a peer that says nothing.
    authority.give("x", 3, VALID);
    let file = |name: &str| authority.file(name).display().to_string();
    let options = format!(
        "-tls1_3 -ign_eof -cert {} -key {} -CAfile {}",
        file("x.pem"),
        file("x.key"),
        file("ca.pem")
    );
    let said = s_client(&address, &options).unwrap();
    assert!(said.contains("Verify return code: 0 (ok)"), "{said}");
    assert!(said.contains("hello-timeout"), "{said}");
}
