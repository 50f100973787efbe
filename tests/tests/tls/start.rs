//! Starts that cannot be: what is said, and the exit code. And what becomes of the key in one that can.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Command, Output};

use receptor_tests::{Mesh, program, wait_for};

use receptor_tests::authority::{Authority, VALID};

/// Starts a daemon that must not come far.
fn fails(dir: &Path, config: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let file = dir.join("receptord.toml");
    fs::write(&file, config).unwrap();
    let Output {
        status,
        stderr,
        stdout,
    } = Command::new(program("receptord"))
        .env_clear()
        .args(["--node-id", "a", "--config"])
        .arg(&file)
        .arg("-d")
        .arg(dir.join("data"))
        .arg("--socket-path")
        .arg(dir.join("control"))
        .args(arguments)
        .output()
        .unwrap();
    let said = [stdout, stderr].concat();
    (status.code(), String::from_utf8_lossy(&said).into_owned())
}

#[test]
fn what_cannot_be_used_ends_the_start_and_is_told() {
    let mesh = Mesh::new();
    let dir = mesh.dir();
    let authority = Authority::new(&dir.join("ca"));
    authority.give("a", 1, VALID);
    authority.give("b", 2, VALID);
    let table = authority.table("a");
    let listen = "[[listen]]\nurl = \"rnps://127.0.0.1:0\"\n";
    let swap = |from: &str, to: &str| {
        let (from, to) = (authority.file(from), authority.file(to));
        let (from, to) = (from.display().to_string(), to.display().to_string());
        format!("{}{listen}", table.replace(&from, &to))
    };
    let write = |name: &str, text: &str, mode: u32| {
        fs::write(authority.file(name), text).unwrap();
        fs::set_permissions(authority.file(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    let key = fs::read_to_string(authority.file("a.key")).unwrap();
    write("open.key", &key, 0o644);
    write("no.key", "no key\n", 0o600);
    write("damaged.key", &key.replace("MIG", "MIH"), 0o600);
    write("empty.pem", "", 0o600);
    fs::create_dir(authority.file("dir.key")).unwrap();
    let crl = format!("crl = \"{}\"\n", authority.file("empty.pem").display());
    for (config, why) in [
        (
            listen.to_owned(),
            "listen[0].url: \"rnps://127.0.0.1:0\": TLS needs a [tls] table with certificate, key and ca",
        ),
        (
            listen.replace("rnps", "wss"),
            "TLS needs a [tls] table with certificate, key and ca",
        ),
        (
            swap("a.pem", "none.pem"),
            "none.pem: cannot be read: No such file",
        ),
        (swap("a.key", "none.key"), "receptord.toml:3: tls.key: "),
        (swap("a.key", "dir.key"), "dir.key: is not a file"),
        (
            swap("a.key", "open.key"),
            "others can read or replace it (mode 0644): expected a private key with chmod 600",
        ),
        (swap("a.key", "damaged.key"), "tls.key: "),
        (swap("a.key", "no.key"), "there is no private key in it"),
        (
            swap("a.key", "b.key"),
            "the private key does not belong to the certificate",
        ),
        (swap("ca.pem", "empty.pem"), "tls.ca: "),
        (
            format!("{table}{crl}{listen}"),
            "there is no revocation list in it",
        ),
        (
            format!("{}{listen}", authority.table("b")),
            "the certificate is for node b, and this node is a: set node-id, or have one issued",
        ),
    ] {
        let (code, said) = fails(dir, &config, &[]);
        assert_eq!(code, Some(78), "{said}");
        assert!(said.contains(why), "{why} in {said}");
        let secret = key.lines().nth(1).unwrap();
        assert!(!said.contains(&secret[..20]), "{said}");
        // A check tells the same, but for whose certificate it is.
        if !why.contains("this node is a") {
            let (code, said) = fails(dir, &config, &["--check-config"]);
            assert_eq!((code, said.contains(why)), (Some(78), true), "{said}");
        }
    }
}

#[test]
fn what_is_confidential_is_not_printed() {
    let mesh = Mesh::new();
    let dir = mesh.dir();
    let authority = Authority::new(&dir.join("ca"));
    authority.give("a", 1, VALID);
    let config = format!(
        "{}[[peer]]\nurl = \"wss://relay.example.com/\"\nheaders = {{ Authorization = \"Bearer canary\" }}\n",
        authority.table("a")
    );
    let (code, said) = fails(dir, &config, &["--print-config"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("# headers is set and not shown"), "{said}");
    assert!(!said.contains("canary"), "{said}");
    let (code, said) = fails(dir, &config.replace("canary", "canary\\n"), &[]);
    assert_eq!(code, Some(78), "{said}");
    assert!(
        said.contains("peer[0].headers.Authorization: expected"),
        "{said}"
    );
    assert!(!said.contains("canary"), "{said}");
}

#[test]
fn a_process_with_a_key_cannot_be_looked_into_by_its_user() {
    const NOBODY: u32 = 65_534;
    if !nix::unistd::geteuid().is_root() {
        eprintln!("only root can start a daemon as somebody else");
        return;
    }
    let mesh = Mesh::new();
    let dir = mesh.dir();
    let authority = Authority::new(&dir.join("ca"));
    authority.give("a", 1, VALID);
    let owner_of = |config: &str| {
        let home = dir.join("home");
        let _ = fs::remove_dir_all(&home);
        fs::create_dir(&home).unwrap();
        fs::write(home.join("receptord.toml"), config).unwrap();
        // A copy, which nobody can reach: the directory of the build may be closed to others.
        fs::copy(program("receptord"), home.join("receptord")).unwrap();
        fs::copy(program("echo"), home.join("echo")).unwrap();
        for path in [dir, authority.file("").as_path()] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        for path in [home.clone(), authority.file("a.key")] {
            std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let mut daemon = Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(home.join("receptord"))
            .args(["--node-id", "a", "--config"])
            .arg(home.join("receptord.toml"))
            .arg("-d")
            .arg(home.join("data"))
            .arg("--socket-path")
            .arg(home.join("control"))
            .arg("--plugins-dir")
            .arg(&home)
            .stderr(fs::File::create(dir.join("log")).unwrap())
            .spawn()
            .unwrap();
        // It can do all that it must: look at itself, and run a plugin.
        let mut control = wait_for("the daemon", || {
            assert!(daemon.try_wait().unwrap().is_none());
            receptor_tests::Control::connect(&home.join("control")).ok()
        });
        wait_for("the plugin", || {
            let plugins = control.json("status");
            plugins.to_string().contains("\"ready\":true").then_some(())
        });
        let owner = fs::metadata(format!("/proc/{}/maps", daemon.id()))
            .unwrap()
            .uid();
        daemon.kill().unwrap();
        daemon.wait().unwrap();
        owner
    };
    let plugins = "[plugins]\nallow-unsafe = true\n";
    assert_eq!(owner_of(plugins), NOBODY);
    // The system gives it to root: no core dump, no debugger of the same user.
    assert_eq!(owner_of(&format!("{plugins}{}", authority.table("a"))), 0);
}
