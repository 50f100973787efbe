//! The five commands of the original documentation, as they stand, with their fixed paths and
//! ports: they run in namespaces of their own, where `/tmp` is empty and the loopback unused.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Runs the commands literally. What is around them only makes room and waits.
const SCRIPT: &str = r#"
set -eu
# An empty /tmp; what this test needs of the old one is put back in its place.
mount -t tmpfs none /mnt
for kept in "$@"; do
    case $kept in /tmp/*) mkdir -p "/mnt$kept"; mount --rbind "$kept" "/mnt$kept" ;; esac
done
mount -t tmpfs none /tmp
for kept in "$@"; do
    case $kept in /tmp/*) mkdir -p "$kept"; mount --rbind "/mnt$kept" "$kept" ;; esac
done
python3 - <<'PY'
import fcntl, socket, struct
# SIOCSIFFLAGS: bring the namespace's own loopback up.
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    fcntl.ioctl(s, 0x8914, struct.pack("16sh22x", b"lo", 1))
PY
receptord --node-id=controller -d /tmp/controller controller --socket-path=/tmp/receptor.sock --listen-port=8888 &
receptord --node-id=node-a -d /tmp/node-a node --listen-port=8889 --peer=localhost:8888 &
receptord --node-id=node-b -d /tmp/node-b node --listen-port=8890 --peer=localhost:8889 &
tries=0
until receptorctl ping --socket-path=/tmp/receptor.sock node-b >/tmp/ping 2>/tmp/ping-error; do
    tries=$((tries + 1))
    [ "$tries" -lt 200 ] || { cat /tmp/ping /tmp/ping-error >&2; exit 100; }
    sleep 0.1
done
echo '--- ping'
receptorctl ping --socket-path=/tmp/receptor.sock node-b
echo '--- send'
receptorctl send --socket-path=/tmp/receptor.sock --directive=runner:execute --recipient=node-b '{"module": "ping", "inventory": "localhost", "extravars": {"ansible_connection": "local"}, "host_pattern": "localhost"}'
"#;

/// The directory with the workspace's programs, beside this test's own.
fn programs() -> PathBuf {
    let test = std::env::current_exe().expect("a path");
    let dir = test
        .ancestors()
        .nth(2)
        .expect("target/PROFILE/deps/TEST")
        .to_owned();
    for program in ["receptord", "receptorctl", "runner"] {
        let path = dir.join(program);
        assert!(
            path.exists(),
            "no {}: run `cargo build --workspace` first",
            path.display()
        );
    }
    dir
}

fn in_own_namespaces(script: &str) -> Output {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests/ is in the root");
    let venv = std::env::var_os("RECEPTOR_TEST_VENV").map_or(root.join(".venv"), PathBuf::from);
    let runner = venv.join("bin/ansible-runner");
    assert!(
        runner.exists(),
        "no {}: run `make venv` first",
        runner.display()
    );
    let programs = programs();
    let path = format!(
        "{}:{}:{}",
        programs.display(),
        venv.join("bin").display(),
        std::env::var("PATH").unwrap_or_default()
    );
    // With --kill-child nothing of it outlives unshare, and unshare is waited for.
    Command::new("unshare")
        .args([
            "--user",
            "--map-root-user",
            "--mount",
            "--net",
            "--pid",
            "--fork",
            "--kill-child",
        ])
        .args(["--mount-proc", "sh", "-c", script, "sh"])
        .args([root, &venv, &programs])
        .env("PATH", path)
        .env_remove("RECEPTOR_SOCKET")
        .output()
        .expect("unshare runs (package util-linux)")
}

#[test]
fn the_ancestors_commands_run_as_they_stand() {
    let output = in_own_namespaces(SCRIPT);
    let out = String::from_utf8_lossy(&output.stdout);
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{out}\n{err}", output.status);
    let (ping, send) = out
        .split_once("--- send\n")
        .unwrap_or_else(|| panic!("no answer to send:\n{out}\n{err}"));
    assert!(ping.contains("node-b") && ping.contains("ms"), "{ping}");
    let events: Vec<serde_json::Value> = send
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
        .collect();
    let pong = events
        .iter()
        .any(|event| event["event_data"]["res"]["ping"] == "pong");
    assert!(pong, "no \"ping\": \"pong\" in:\n{send}");
}
