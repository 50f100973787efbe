//! `cert`, as its user meets it, and its certificates as openssl sees them.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::fake::program;

fn run(dir: &Path, line: &str) -> Output {
    program()
        .args(line.split_whitespace())
        .current_dir(dir)
        .output()
        .unwrap()
}

fn good(dir: &Path, line: &str) -> String {
    let output = run(dir, line);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

fn bad(dir: &Path, line: &str) -> (i32, String) {
    let output = run(dir, line);
    assert!(output.stdout.is_empty(), "{line}");
    let said = String::from_utf8(output.stderr).unwrap();
    (output.status.code().unwrap(), said)
}

fn show(dir: &Path, file: &str) -> Value {
    serde_json::from_str(&good(dir, &format!("cert show {file} --json"))).unwrap()
}

fn openssl(dir: &Path, line: &str) -> String {
    let mut command = Command::new("openssl");
    let output = command
        .args(line.split_whitespace())
        .current_dir(dir)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

/// Where there is none, the committed certificates of receptor-identity stand for it.
fn has_openssl() -> bool {
    Command::new("openssl").arg("version").output().is_ok()
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o7777
}

#[test]
fn a_mesh_takes_three_commands() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let made = good(dir, "cert init-ca --out ca --name Our-mesh");
    assert_eq!(made, "ca/ca.pem\nca/ca.key\n");
    let made = good(dir, "cert issue node-b --ca ca --out b");
    assert_eq!(made, "b/node-b.pem\nb/node-b.key\n");
    good(
        dir,
        "cert issue a:1@x --ca ca --out . --days 90 --dns a.example --dns *.a.example --ip 192.0.2.1 --ip ::1",
    );
    for key in ["ca/ca.key", "b/node-b.key", "a:1@x.key"] {
        assert_eq!(mode(&dir.join(key)), 0o600, "{key}");
    }
    for certificate in ["ca/ca.pem", "b/node-b.pem", "a:1@x.pem"] {
        assert_eq!(mode(&dir.join(certificate)), 0o644, "{certificate}");
    }
    assert_eq!(mode(&dir.join("ca")), 0o700);
    // Nothing else is left behind.
    assert_eq!(std::fs::read_dir(dir.join("b")).unwrap().count(), 2);

    let a = show(dir, "a:1@x.pem");
    assert_eq!(a["node-ids"], serde_json::json!(["a:1@x"]));
    assert_eq!(
        a["dns-names"],
        serde_json::json!(["a.example", "*.a.example"])
    );
    assert_eq!(a["ip-addresses"], serde_json::json!(["192.0.2.1", "::1"]));
    assert_eq!(a["uses"], serde_json::json!(["server", "client"]));
    assert_eq!(a["issuer"], "CN=Our-mesh");
    assert_eq!(a["authority"], false);
    assert_eq!(a["expired"], false);
    let lasts = |value: &Value| {
        let at = |name: &str| value[name].as_u64().unwrap();
        (at("not-after-unix") - at("not-before-unix")) / 86_400
    };
    assert_eq!(lasts(&a), 90);
    assert_eq!(lasts(&show(dir, "b/node-b.pem")), 365);
    let ca = show(dir, "ca/ca.pem");
    assert_eq!(lasts(&ca), 3650);
    assert_eq!(ca["authority"], true);
    assert_ne!(a["serial"], show(dir, "b/node-b.pem")["serial"]);

    let text = good(dir, "cert show a:1@x.pem");
    for line in [
        "node ids      a:1@x",
        "host names    a.example, *.a.example",
        "addresses     192.0.2.1, ::1",
        "use           server, client",
        "key           ECDSA P-256",
    ] {
        assert!(text.lines().any(|shown| shown == line), "{line}\n{text}");
    }
}

#[test]
fn openssl_believes_the_certificates() {
    if !has_openssl() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    good(dir, "cert init-ca --out .");
    good(dir, "cert issue node-b --ca . --out .");
    let long = "n".repeat(128);
    good(dir, &format!("cert issue {long} --ca . --out ."));
    for node in ["node-b", &long] {
        for purpose in ["sslserver", "sslclient"] {
            openssl(
                dir,
                &format!("verify -x509_strict -CAfile ca.pem -purpose {purpose} {node}.pem"),
            );
        }
        let names = openssl(
            dir,
            &format!("x509 -in {node}.pem -noout -ext subjectAltName"),
        );
        let both = format!("URI:receptor:{node}, othername: 1.3.6.1.4.1.2312.19.1::{node}");
        assert!(names.contains(&both), "{names}");
        let public = openssl(dir, &format!("x509 -in {node}.pem -noout -pubkey"));
        assert_eq!(
            openssl(dir, &format!("pkey -in {node}.key -pubout")),
            public
        );
    }
}

#[test]
fn an_authority_of_openssl_issues_too() {
    if !has_openssl() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for (key, make) in [
        ("rsa", "genrsa -out ca.key 2048"),
        ("pkcs1", "genrsa -traditional -out ca.key 2048"),
        ("sec1", "ecparam -out ca.key -name secp384r1 -genkey -noout"),
        (
            "p384",
            "genpkey -out ca.key -algorithm EC -pkeyopt ec_paramgen_curve:P-384",
        ),
        ("ed25519", "genpkey -out ca.key -algorithm ed25519"),
    ] {
        openssl(dir, make);
        openssl(
            dir,
            "req -x509 -new -key ca.key -out ca.pem -subj /CN=old/O=us -days 30",
        );
        good(dir, &format!("cert issue node-b --ca . --out {key}"));
        openssl(dir, &format!("verify -CAfile ca.pem {key}/node-b.pem"));
        // No longer than the authority.
        let until = |file: &str| show(dir, file)["not-after-unix"].clone();
        assert_eq!(until(&format!("{key}/node-b.pem")), until("ca.pem"));
    }
}

#[test]
fn nothing_is_overwritten_unless_told_to() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    good(dir, "cert init-ca --out ca");
    good(dir, "cert issue node-b --ca ca --out .");
    let read = |name: &str| std::fs::read(dir.join(name)).unwrap();
    let before = (read("ca/ca.key"), read("node-b.key"));
    let (code, said) = bad(dir, "cert init-ca --out ca");
    assert_eq!(code, 2);
    assert_eq!(
        said,
        "receptorctl: ca/ca.pem is there already; --force overwrites it\n"
    );
    // One of the two is enough, also as a link to nothing.
    std::fs::remove_file(dir.join("node-b.pem")).unwrap();
    assert_eq!(bad(dir, "cert issue node-b --ca ca --out .").0, 2);
    std::fs::remove_file(dir.join("node-b.key")).unwrap();
    std::os::unix::fs::symlink("nowhere", dir.join("node-b.pem")).unwrap();
    assert_eq!(bad(dir, "cert issue node-b --ca ca --out .").0, 2);
    assert!(!dir.join("node-b.key").exists() && !dir.join("nowhere").exists());
    good(dir, "cert issue node-b --ca ca --out . --force");
    assert_ne!(read("node-b.key"), before.1);
    assert_eq!(mode(&dir.join("node-b.key")), 0o600);
    // A node that is called as the authority's files are.
    let (code, said) = bad(dir, "cert issue ca --ca ca --out ./ca/ --force");
    assert_eq!(code, 2);
    assert!(said.contains("choose another --out"), "{said}");
    assert_eq!(read("ca/ca.key"), before.0);
    good(dir, "cert issue ca --ca ca --out other");
}

#[test]
fn errors_say_what_is_wrong_and_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    good(dir, "cert init-ca --out ca");
    good(dir, "cert init-ca --out other");
    good(dir, "cert issue node-b --ca ca --out b");
    let (code, said) = bad(dir, "cert issue node-c --ca nowhere --out c");
    assert_eq!(code, 2);
    assert!(
        said.starts_with("receptorctl: cannot read nowhere/ca.pem: No such file"),
        "{said}"
    );
    // The key of another authority.
    std::fs::copy(dir.join("other/ca.key"), dir.join("ca/ca.key")).unwrap();
    let (code, said) = bad(dir, "cert issue node-c --ca ca --out c");
    assert_eq!(code, 1);
    assert!(
        said.contains("do ca.pem and ca.key belong together?"),
        "{said}"
    );
    // No authority, and no key.
    std::fs::copy(dir.join("b/node-b.pem"), dir.join("other/ca.pem")).unwrap();
    let (code, said) = bad(dir, "cert issue node-c --ca other --out c");
    assert_eq!(code, 1);
    assert!(
        said.contains("not the certificate of an authority"),
        "{said}"
    );
    std::fs::write(dir.join("ca/ca.key"), "hunter2").unwrap();
    let (code, said) = bad(dir, "cert issue node-c --ca ca --out c");
    assert_eq!(code, 1);
    assert!(
        said.contains("ca/ca.key") && !said.contains("hunter2"),
        "{said}"
    );
    assert!(!dir.join("c").exists());
    for (line, code) in [
        ("cert issue ../x --ca ca --out c", 2),
        ("cert issue node-c --ca ca --out c --days 0", 2),
        ("cert issue node-c --ca ca --out c --dns -x", 2),
        ("cert issue node-c --ca ca --out c --ip 1.2.3", 2),
        ("cert issue node-c --out c", 2),
        ("cert init-ca", 2),
        ("cert show nothing.pem", 2),
        ("cert show .", 2),
        ("cert show b/node-b.key", 1),
        ("cert show /dev/null", 1),
        ("cert init-ca --out b/node-b.pem/x", 2),
    ] {
        let (seen, said) = bad(dir, line);
        assert_eq!(seen, code, "{line}: {said}");
        assert!(!said.is_empty(), "{line}");
    }
    let key = std::fs::read_to_string(dir.join("b/node-b.key")).unwrap();
    let secret = key.lines().nth(1).unwrap();
    assert!(!bad(dir, "cert show b/node-b.key").1.contains(&secret[..8]));
}

#[test]
fn what_others_put_into_a_certificate_is_shown_and_harmless() {
    if !has_openssl() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let text = "subjectAltName=otherName:1.3.6.1.4.1.2312.19.1;UTF8:a/b,DNS:x\u{1b}[2J,URI:urn:x,email:a@b\n";
    std::fs::write(
        dir.join("san"),
        format!("[req]\ndistinguished_name=dn\n[dn]\n[x]\n{text}"),
    )
    .unwrap();
    openssl(
        dir,
        "req -x509 -newkey rsa:2048 -nodes -keyout k -out c.pem -subj /CN=x -config san -extensions x -days 1",
    );
    let shown = good(dir, "cert show c.pem");
    assert!(!shown.contains('\u{1b}'), "{shown}");
    assert!(
        shown.contains("node ids      none that can be used: a node id may contain"),
        "{shown}"
    );
    let json = show(dir, "c.pem");
    assert_eq!(json["node-ids"], serde_json::json!([]));
    assert!(json["node-ids-error"].is_string());
    assert_eq!(json["other-names"].as_array().unwrap().len(), 2);
}
