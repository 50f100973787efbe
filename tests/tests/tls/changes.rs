//! Certificates, keys and lists that change while links stand on them.

use nix::sys::signal::Signal;
use receptor_tests::traffic::{Counter, Traffic, assert_once, wait_counter};
use receptor_tests::{Daemon, Mesh, wait_for};
use time::Duration;

use crate::mesh::link_to;
use receptor_tests::authority::{Authority, VALID, Valid, replace};

fn fingerprint(daemon: &Daemon) -> String {
    let status = daemon.control().json("status");
    let text = status["receptor"]["certificate"]["fingerprint"].as_str();
    text.unwrap().to_owned()
}

fn warnings(daemon: &Daemon) -> String {
    daemon.control().json("status")["receptor"]["warnings"].to_string()
}

#[test]
fn who_is_revoked_while_connected_is_cut() {
    let mesh = Mesh::new();
    let authority = Authority::new(&mesh.dir().join("ca"));
    authority.revoke(&[]);
    let crl = format!("crl = \"{}\"", authority.file("crl.pem").display());
    let a = authority.equip(mesh.node("a"), "a").config(&crl).start();
    authority.give("b", 2, VALID);
    authority.give("c", 3, VALID);
    let b = authority.equip(mesh.node("b"), "b").peer(&a).start();
    let c = authority.equip(mesh.node("c"), "c").peer(&a).start();
    b.wait_ping("a");
    c.wait_ping("a");
    // Nobody asks for a reload.
    authority.revoke(&[2]);
    a.wait_unreachable("b");
    a.wait_log("the other end's certificate is refused: the certificate is revoked");
    wait_for("the reason at b", || {
        let links = b.control().json("links");
        (links["links"][0]["error"]["code"] == "untrusted").then_some(())
    });
    assert!(link_to(&c, "a").is_some());
    assert_eq!(c.log().matches("neighbor down").count(), 0, "{}", c.log());
    // A new certificate is all that it needs.
    authority.give("b", 4, VALID);
    b.wait_ping("a");
}

#[test]
fn who_expires_while_connected_is_cut() {
    let mesh = Mesh::new();
    let authority = Authority::new(&mesh.dir().join("ca"));
    let a = authority.equip(mesh.node("a"), "a").start();
    // Long enough for a busy machine to make the link.
    authority.give("b", 2, Valid(-Duration::hours(1), Duration::seconds(15)));
    let b = authority.equip(mesh.node("b"), "b").peer(&a).start();
    b.wait_ping("a");
    let soon = "expires in 0 days";
    wait_for("a warning", || warnings(&b).contains(soon).then_some(()));
    b.wait_log(soon);
    a.wait_unreachable("b");
    a.wait_log("the other end's certificate is refused: the certificate expired at");
    let late = "Other nodes will refuse the certificate of this node: the certificate expired at";
    wait_for("a warning", || warnings(&b).contains(late).then_some(()));
}

#[test]
fn certificates_change_under_traffic_and_nothing_is_lost() {
    let mesh = Mesh::new();
    let authority = Authority::new(&mesh.dir().join("ca"));
    let a = authority.equip(mesh.node("a"), "a").start();
    let b = authority.equip(mesh.node("b"), "b").peer(&a).start();
    let node = authority.equip(mesh.node("c"), "c").peer(&b);
    let (counter, node) = Counter::install(&mesh, node, "c");
    let c = node.start();
    a.wait_ping("c");
    wait_counter(&a, "c");
    let mut traffic = Traffic::new();
    traffic.clients(3, &a, "c");
    traffic.wait_more(20);
    let links = [(&a, "b"), (&b, "a"), (&b, "c"), (&c, "b")];
    let before = fingerprint(&b);
    for round in 0..3 {
        let old = fingerprint(&b);
        authority.give("b", 10 + round, VALID);
        match round {
            0 => {}
            1 => b.signal(Signal::SIGHUP),
            _ => {
                let reply = b.control().json("reload");
                assert_eq!(reply["Success"], true, "{reply}");
                assert_ne!(
                    fingerprint(&b),
                    old,
                    "a reload that is answered has been done"
                );
            }
        }
        wait_for("the new certificate", || {
            (fingerprint(&b) != old).then_some(())
        });
        traffic.wait_more(20);
    }
    assert_ne!(fingerprint(&b), before);
    let sent = traffic.stop();
    assert!(sent.len() > 80);
    assert_once(&sent, &counter);
    for (daemon, node) in links {
        assert!(link_to(daemon, node).is_some());
        let log = daemon.log();
        assert_eq!(log.matches("neighbor down").count(), 0, "{log}");
    }
}

#[test]
fn another_authority_takes_over_without_a_pause() {
    let mesh = Mesh::new();
    let old = Authority::new(&mesh.dir().join("ca"));
    let new = Authority::new(&mesh.dir().join("new-ca"));
    let a = old.equip(mesh.node("a"), "a").start();
    let b = old.equip(mesh.node("b"), "b").peer(&a).start();
    b.wait_ping("a");
    // Both are believed, then both nodes get certificates of the new one, then the old one goes.
    let pem = |authority: &Authority| std::fs::read_to_string(authority.file("ca.pem")).unwrap();
    let new_pem = pem(&new);
    replace(&old.file("ca.pem"), &(pem(&old) + &new_pem), 0o644);
    for daemon in [&a, &b] {
        let reply = daemon.control().json("reload");
        assert_eq!(reply["Success"], true, "{reply}");
        let (certificate, key) = new.issue(daemon.name(), 5, VALID);
        replace(&old.file(&format!("{}.key", daemon.name())), &key, 0o600);
        replace(
            &old.file(&format!("{}.pem", daemon.name())),
            &certificate,
            0o644,
        );
        let reply = daemon.control().json("reload");
        assert_eq!(reply["Success"], true, "{reply}");
    }
    let down = |daemon: &Daemon| daemon.log().matches("neighbor down").count();
    assert_eq!((down(&a), down(&b)), (0, 0));
    // The link still stands on a certificate of the old one: without that it is made anew, with the new.
    replace(&old.file("ca.pem"), &new_pem, 0o644);
    wait_for("the end of the old link", || (down(&a) > 0).then_some(()));
    b.wait_ping("a");
    assert_eq!(warnings(&a), "[]");
}

#[test]
fn files_that_are_not_right_change_nothing_and_are_told() {
    let mesh = Mesh::new();
    let authority = Authority::new(&mesh.dir().join("ca"));
    let a = authority.equip(mesh.node("a"), "a").start();
    let b = authority.equip(mesh.node("b"), "b").peer(&a).start();
    b.wait_ping("a");
    let before = fingerprint(&a);
    let (certificate, key) = authority.issue("a", 7, VALID);
    let (other, _) = authority.issue("z", 8, VALID);
    // Only the key was replaced; then the certificate is none; then it is another node's.
    replace(&authority.file("a.key"), &key, 0o600);
    for (text, why) in [
        (None, "the private key does not belong to the certificate"),
        (
            Some("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
            "cannot be used",
        ),
        (
            Some(&*other),
            "the private key does not belong to the certificate",
        ),
    ] {
        if let Some(text) = text {
            replace(&authority.file("a.pem"), text, 0o644);
        }
        let reply = a.control().json("reload");
        assert_eq!(reply["Success"], false, "{reply}");
        assert!(reply.to_string().contains(why), "{reply}");
        assert!(warnings(&a).contains(why), "{}", warnings(&a));
        assert_eq!(fingerprint(&a), before);
    }
    // Found without being asked as well, and told once for each change.
    let told = |text: &str| a.log().matches(text).count();
    replace(&authority.file("a.key"), "nothing", 0o600);
    a.wait_log("there is no private key in it");
    assert_eq!(told("there is no private key in it"), 1, "{}", a.log());
    assert!(!a.log().contains("PRIVATE KEY"), "{}", a.log());
    // What was in force is: others are let in with it.
    let c = authority.equip(mesh.node("c"), "c").peer(&a).start();
    c.wait_ping("a");
    replace(&authority.file("a.key"), &key, 0o600);
    replace(&authority.file("a.pem"), &certificate, 0o644);
    wait_for("the right files", || {
        (fingerprint(&a) != before).then_some(())
    });
    assert_eq!(warnings(&a), "[]");
    assert!(link_to(&b, "a").is_some());
    assert_eq!(a.log().matches("neighbor down").count(), 0, "{}", a.log());
}
