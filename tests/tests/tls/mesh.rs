//! Meshes that work.

use std::path::Path;
use std::process::{Command, Output};

use receptor_tests::{Daemon, Mesh, program, wait_for};
use serde_json::Value;

use receptor_tests::authority::Authority;
use receptor_tests::by_hand::hello;

fn receptorctl(dir: &Path, line: &str) -> Output {
    let output = Command::new(program("receptorctl"))
        .args(line.split_whitespace())
        .current_dir(dir)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}\n{said}");
    output
}

/// The link to a node, as `links` shows it.
pub(crate) fn link_to(daemon: &Daemon, node: &str) -> Option<Value> {
    let links = daemon.control().json("links");
    let links = links["links"].as_array()?;
    let up = |link: &&Value| link["node"] == node && link["state"] == "up";
    links.iter().find(up).cloned()
}

#[test]
fn three_commands_make_a_mesh() {
    let mesh = Mesh::new();
    receptorctl(mesh.dir(), "cert init-ca --out tls");
    receptorctl(mesh.dir(), "cert issue node-a --ca tls --out tls");
    receptorctl(mesh.dir(), "cert issue node-b --ca tls --out tls");
    let table = |node: &str| {
        let dir = mesh.dir().join("tls").display().to_string();
        format!(
            "[tls]\ncertificate = \"{dir}/{node}.pem\"\nkey = \"{dir}/{node}.key\"\nca = \"{dir}/ca.pem\"\n"
        )
    };
    let a = mesh
        .node("node-a")
        .listen("rnps://127.0.0.1:0")
        .config(&table("node-a"));
    let a = a.start();
    assert!(a.url().starts_with("rnps://127.0.0.1:"), "{}", a.url());
    // Bare names are credentials first.
    let credentials = mesh.dir().join("tls").display().to_string();
    let bare = table("node-b").replace(&format!("{credentials}/"), "");
    let b = mesh.node("node-b").quiet().config(&bare);
    let b = b.env("CREDENTIALS_DIRECTORY", &credentials);
    let b = b.peer(&a).start();
    b.wait_ping("node-a");
    let expires = |daemon: &Daemon| {
        daemon.control().json("status")["receptor"]["certificate"]["expires"].clone()
    };
    for (daemon, other) in [(&a, &b), (&b, &a)] {
        let status = &daemon.control().json("status")["receptor"];
        assert_eq!(status["security"], "tls");
        assert_eq!(status["warnings"].as_array().unwrap().len(), 0, "{status}");
        let certificate = &status["certificate"];
        assert_eq!(certificate["node_ids"], serde_json::json!([daemon.name()]));
        assert_eq!(certificate["issuer"], "CN=Receptor CA");
        let link = link_to(daemon, other.name()).unwrap();
        assert_eq!(link["certificate_expires"], expires(other));
    }
    let socket = b.socket_path().display().to_string();
    let shown = receptorctl(mesh.dir(), &format!("--socket-path {socket} status"));
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("TLS: expires 2"), "{shown}");
    // A kill is told as on any other link.
    let mut b = b;
    b.kill();
    a.wait_log("neighbor down");
    assert!(!a.log().contains("close_notify"), "{}", a.log());
}

#[test]
fn one_certificate_may_be_for_several_nodes() {
    if Command::new("openssl").arg("version").output().is_err() {
        eprintln!("there is no openssl here to make such a certificate");
        return;
    }
    let mesh = Mesh::new();
    let dir = mesh.dir();
    let openssl = |line: &str| {
        let mut words = line.split_whitespace();
        let output = Command::new(words.next().unwrap())
            .args(words)
            .current_dir(dir)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{line}\n{said}");
    };
    openssl(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.pem -subj /CN=ca -days 30",
    );
    let sans = [
        ("a", "URI:receptor:a"),
        // As existing installations have it, and for two nodes.
        (
            "b",
            "DNS:b.example,otherName:1.3.6.1.4.1.2312.19.1;UTF8:other,otherName:1.3.6.1.4.1.2312.19.1;UTF8:b",
        ),
    ];
    let mut daemons: Vec<Daemon> = Vec::new();
    for (node, san) in sans {
        std::fs::write(dir.join("san"), format!("subjectAltName={san}\n")).unwrap();
        openssl(&format!(
            "openssl req -newkey rsa:2048 -nodes -keyout {node}.key -out {node}.csr -subj /CN={node}"
        ));
        openssl(&format!(
            "openssl x509 -req -in {node}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -extfile san -days 20 -out {node}.pem"
        ));
        let file = |name: &str| dir.join(name).display().to_string();
        let daemon = mesh
            .node(node)
            .listen("rnps://127.0.0.1:0")
            .config(&format!(
                "[tls]\ncertificate = \"{}\"\nkey = \"{}\"\nca = \"{}\"\n",
                file(&format!("{node}.pem")),
                file(&format!("{node}.key")),
                file("ca.pem")
            ));
        let daemon = match daemons.first() {
            Some(first) => daemon.peer(first).start(),
            None => daemon.start(),
        };
        daemons.push(daemon);
    }
    daemons[1].wait_ping("a");
    // A hello with the other name of the certificate is a hello of another node, and as good.
    assert!(link_to(&daemons[0], "b").is_some());
}

#[test]
fn what_a_certificate_is_for_is_all_that_a_node_may_be() {
    use std::io::{Read as _, Write as _};

    let mesh = Mesh::new();
    let authority = Authority::new(&mesh.dir().join("ca"));
    let a = authority.equip(mesh.node("a"), "a").start();
    let mut stream = authority.dial("mallory", &a.address());
    stream.write_all(&hello((1, 1), b"b")).unwrap();
    let mut heard = Vec::new();
    let _ = stream.read_to_end(&mut heard);
    let heard = String::from_utf8_lossy(&heard);
    assert!(heard.contains("identity-mismatch"), "{heard:?}");
    let told = "the certificate is for node mallory, the hello says b";
    assert!(heard.contains(told), "{heard:?}");
    a.wait_log(told);

    // The same on the side that dials.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("rnps://{}", listener.local_addr().unwrap());
    let b = authority.equip(mesh.node("b"), "b").peer_url(&url).start();
    let (stream, _) = listener.accept().unwrap();
    let mut stream = authority.take("mallory", stream);
    stream.write_all(&hello((1, 1), b"c")).unwrap();
    let mut heard = Vec::new();
    let _ = stream.read_to_end(&mut heard);
    let heard = String::from_utf8_lossy(&heard);
    let told = "the certificate is for node mallory, the hello says c";
    assert!(heard.contains(told), "{heard:?}");
    wait_for("the reason", || {
        let links = b.control().json("links");
        (links["links"][0]["error"]["code"] == "identity-mismatch").then_some(())
    });

    // Whoever says what its certificate says is let in.
    let mut stream = authority.dial("c", &a.address());
    stream.write_all(&hello((1, 1), b"c")).unwrap();
    let mut first = [0; 5];
    stream.read_exact(&mut first).unwrap();
    assert_eq!(first[4], 1, "a hello");
}

#[test]
fn a_process_on_the_same_host_is_told_by_its_credentials() {
    let mesh = Mesh::new();
    let url = format!("unix://{}", mesh.dir().join("links").display());
    let a = mesh.node("a").listen(&url).start();
    let b = mesh.node("b").quiet().peer_url(&url).start();
    b.wait_ping("a");
    let (uid, gid) = (nix::unistd::getuid(), nix::unistd::getgid());
    let address = format!("{url} (uid {uid}, gid {gid}, pid {})", b.pid());
    assert_eq!(link_to(&a, "b").unwrap()["address"], address);
}
