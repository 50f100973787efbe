//! Certificates made by openssl, now and once: those of others must be read as they are.

use std::path::Path;
use std::process::Command;

use receptor_identity::{
    Certificate, Credentials, Purpose, Refusal, Role, Trust, read_certificates,
};

use crate::common::{THEN, at, golden, node};

/// In the style of an existing installation: RSA, the node id as otherName only, key in PKCS#1.
#[test]
fn a_certificate_of_an_existing_installation_is_believed() {
    let trust = Trust::new(&golden("existing-ca.pem")).unwrap();
    let own = Credentials::from_pem(&golden("existing-node.pem"), &golden("existing-node.key"));
    let own = own.unwrap();
    assert_eq!(own.node_ids(), [node("awx-1.example.com")]);
    let facts = own.certificate();
    assert_eq!(facts.subject, "CN=awx-1.example.com");
    assert_eq!(facts.key, "RSA");
    assert_eq!(facts.dns_names, ["awx-1.example.com"]);
    assert_eq!(facts.ip_addresses[0].to_string(), "10.0.0.7");
    assert_eq!(facts.uses, ["server", "client"]);
    for role in [Role::Client, Role::Server, Role::Member] {
        let verified = trust.verify(own.chain(), role, at(THEN)).unwrap();
        assert_eq!(verified.node_ids, [node("awx-1.example.com")]);
        let signature = own.key().sign(Purpose::Lsa, b"text").unwrap();
        assert!(verified.key.verifies(Purpose::Lsa, b"text", &signature));
    }
}

/// Made by `cert init-ca` and `cert issue` once; what they make today must not be the only thing that is read.
#[test]
fn a_certificate_of_ours_is_believed_for_ever() {
    let trust = Trust::new(&golden("ours-ca.pem")).unwrap();
    let chain = read_certificates(&golden("ours-node.pem")).unwrap();
    let verified = trust.verify(&chain, Role::Server, at(THEN)).unwrap();
    assert_eq!(verified.node_ids, [node("node-b")]);
}

fn openssl(dir: &Path, line: &str) {
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().unwrap())
        .args(words)
        .current_dir(dir)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}\n{said}");
}

#[test]
fn certificates_that_openssl_makes_are_read() {
    if Command::new("openssl").arg("version").output().is_err() {
        eprintln!("there is no openssl here; the committed certificates stand for it");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    let now = std::time::SystemTime::now();
    // What is made below is not older than its making.
    let now = now.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() + 3600;
    openssl(
        path,
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-384 -nodes -keyout ca.key -out ca.pem -subj /CN=ca -days 30",
    );
    std::fs::write(
        path.join("san"),
        "subjectAltName=URI:receptor:node-b,otherName:1.3.6.1.4.1.2312.19.1;UTF8:node-c,DNS:b.example\n",
    )
    .unwrap();
    std::fs::write(
        path.join("bad"),
        "subjectAltName=otherName:1.3.6.1.4.1.2312.19.1;IA5:node-b\n",
    )
    .unwrap();
    for (kind, name) in [
        ("genpkey -algorithm ed25519", "Ed25519"),
        ("ecparam -name prime256v1 -genkey -noout", "ECDSA P-256"),
        (
            "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-384",
            "ECDSA P-384",
        ),
        ("genrsa 2048", "RSA"),
        ("genrsa -traditional 2048", "RSA"),
    ] {
        let (command, options) = kind.split_once(' ').unwrap();
        let line = format!("openssl {command} -out node.key {options}");
        openssl(path, &line);
        openssl(
            path,
            "openssl req -new -key node.key -out node.csr -subj /CN=node-b",
        );
        for extensions in ["san", "bad"] {
            openssl(
                path,
                &format!(
                    "openssl x509 -req -in node.csr -CA ca.pem -CAkey ca.key -CAcreateserial -extfile {extensions} -days 20 -out {extensions}.pem"
                ),
            );
        }
        openssl(path, "openssl x509 -in san.pem -outform DER -out san.der");
        let read = |name: &str| std::fs::read(path.join(name)).unwrap();
        let own = Credentials::from_pem(&read("san.pem"), &read("node.key")).unwrap();
        assert_eq!(own.node_ids(), [node("node-b"), node("node-c")]);
        assert_eq!(own.certificate().key, name);
        assert_eq!(read_certificates(&read("san.der")).unwrap(), own.chain());
        let trust = Trust::new(&read("ca.pem")).unwrap();
        let verified = trust.verify(own.chain(), Role::Client, at(now)).unwrap();
        let signature = own.key().sign(Purpose::Lsa, b"text").unwrap();
        assert!(verified.key.verifies(Purpose::Lsa, b"text", &signature));
        let bad = read_certificates(&read("bad.pem")).unwrap();
        assert!(matches!(
            trust.verify(&bad, Role::Client, at(now)).unwrap_err(),
            Refusal::NodeIds(_)
        ));
        assert!(Certificate::from_der(&bad[0]).unwrap().node_ids.is_err());
        // The fingerprint as openssl prints it.
        let output = Command::new("openssl")
            .args([
                "x509",
                "-in",
                "san.pem",
                "-noout",
                "-fingerprint",
                "-sha256",
            ])
            .current_dir(path)
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let print = text.trim().split_once('=').unwrap().1;
        assert_eq!(print.parse(), Ok(own.certificate().fingerprint));
    }
}
