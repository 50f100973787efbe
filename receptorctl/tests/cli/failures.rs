//! A daemon that is not there, says nonsense or nothing, and what the user is told.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;

use crate::fake::{Daemon, program};

fn run(socket: &std::path::Path) -> (Option<i32>, String) {
    let output = program()
        .arg("--socket-path")
        .arg(socket)
        .arg("status")
        .output()
        .unwrap();
    assert!(output.stdout.is_empty());
    let stderr = String::from_utf8(output.stderr).unwrap();
    (
        output.status.code(),
        stderr.replace(&socket.display().to_string(), "SOCKET"),
    )
}

#[test]
fn no_socket() {
    let dir = tempfile::tempdir().unwrap();
    let (code, stderr) = run(&dir.path().join("s"));
    assert_eq!(code, Some(69));
    assert_eq!(
        stderr,
        "receptorctl: cannot reach receptord at SOCKET: there is no such socket; is receptord running? try: systemctl start receptord; \
         or name another socket with --socket-path or RECEPTOR_SOCKET\n"
    );
}

#[test]
fn a_socket_left_behind() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    drop(UnixListener::bind(&path).unwrap());
    let (code, stderr) = run(&path);
    assert_eq!(code, Some(69));
    assert_eq!(
        stderr,
        "receptorctl: cannot reach receptord at SOCKET: nobody listens there; receptord has ended or was killed; try: systemctl start receptord\n"
    );
}

#[test]
fn a_file_that_is_no_socket() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let (code, _) = run(file.path());
    assert_eq!(code, Some(69));
}

#[test]
fn a_socket_of_others() {
    if nix::unistd::geteuid().is_root() {
        // Root may do everything; a socket of others is then shown by a user without rights.
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let path = dir.path().join("s");
        let _listener = UnixListener::bind(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let program = dir.path().join("receptorctl");
        std::fs::copy(env!("CARGO_BIN_EXE_receptorctl"), &program).unwrap();
        let output = std::os::unix::process::CommandExt::uid(
            &mut std::process::Command::new(program),
            65_534,
        )
        .arg("--socket-path")
        .arg(&path)
        .arg("status")
        .output()
        .unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(77), "{stderr}");
        assert!(stderr.contains("usermod -aG receptor"), "{stderr}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let _listener = UnixListener::bind(&path).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o000)).unwrap();
    let (code, stderr) = run(&path);
    assert_eq!(code, Some(77), "{stderr}");
}

#[test]
fn a_path_too_long_for_a_socket() {
    let (code, stderr) = run(std::path::Path::new(&format!("/tmp/{}", "x".repeat(200))));
    assert_eq!(code, Some(69), "{stderr}");
}

#[test]
fn somebody_elses_socket() {
    let daemon = Daemon::new(|clients| {
        clients
            .ungreeted()
            .say("220 mail.example.com \x1b[2J ESMTP\n");
    });
    daemon.run(["status"]).expect(
        69,
        "",
        "receptorctl: SOCKET is no Receptor control socket: it greets with \"220 mail.example.com \\u{1b}[2J ESMTP\"\n",
    );
}

#[test]
fn a_daemon_that_never_greets() {
    let daemon = Daemon::new(|clients| clients.ungreeted().gone());
    daemon.run(["status", "--timeout", "100ms"]).expect(
        69,
        "",
        "receptorctl: the daemon did not answer within 100ms (SOCKET)\n",
    );
}

#[test]
fn a_daemon_that_never_answers() {
    for command in [
        &["status"][..],
        &["nodes"],
        &["reload"],
        &["log-level"],
        &["plugin", "list"],
    ] {
        let daemon = Daemon::answering("");
        let args = [command, &["--timeout", "100ms"]].concat();
        daemon.run(args).expect(
            69,
            "",
            "receptorctl: the daemon did not answer within 100ms (SOCKET)\n",
        );
    }
}

#[test]
fn a_daemon_that_hangs_up() {
    let daemon = Daemon::new(|clients| {
        clients.next().command();
    });
    daemon.run(["routes"]).expect(
        69,
        "",
        "receptorctl: the daemon closed the connection (SOCKET)\n",
    );
}

#[test]
fn nonsense_is_shown_safely() {
    let daemon = Daemon::answering("{\"routes\":\"\x1b[31m\"}\n");
    let answer = daemon.run(["routes"]);
    assert_eq!(answer.code, Some(70), "{answer:?}");
    assert!(!answer.stderr.contains('\x1b'), "{answer:?}");
    assert!(answer.stderr.contains("is not understood"), "{answer:?}");
}

#[test]
fn a_line_without_end_is_given_up_on() {
    let daemon = Daemon::new(|clients| {
        let mut client = clients.next();
        client.command();
        while client.offer(&[b'x'; 65_536]) {}
    });
    daemon.run(["routes"]).expect(
        70,
        "",
        "receptorctl: the daemon sent a line of more than 1048576 bytes\n",
    );
}

#[test]
fn the_daemons_no_is_the_exit_code() {
    for (line, code, text) in [
        (
            "{\"error\":{\"code\":\"unknown-command\",\"message\":\"there is no command links\"},\"eof\":true}\n",
            1,
            "receptorctl: there is no command links (unknown-command)\n",
        ),
        (
            "{\"error\":{\"code\":\"permission-denied\",\"message\":\"not for you\"},\"eof\":true}\n",
            77,
            "receptorctl: not for you (permission-denied)\n",
        ),
        (
            "ERROR: Unknown command\n",
            1,
            "receptorctl: Unknown command (unknown-command)\n",
        ),
        (
            "ERROR: out of order\n",
            1,
            "receptorctl: out of order (refused)\n",
        ),
    ] {
        let daemon = Daemon::answering(line);
        daemon.run(["links"]).expect(code, "", text);
    }
}

#[test]
fn a_refused_ping_is_told_once() {
    let daemon = Daemon::answering(
        "{\"error\":{\"code\":\"invalid-request\",\"message\":\"bad target\"},\"eof\":true}\n",
    );
    let answer = daemon.run(["ping", "node-b"]);
    assert_eq!(answer.code, Some(2), "{answer:?}");
    assert_eq!(answer.stderr, "receptorctl: bad target (invalid-request)\n");
}

#[test]
fn config_check_runs_the_daemons_own_check() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("receptorctl");
    std::fs::copy(env!("CARGO_BIN_EXE_receptorctl"), &program).unwrap();
    // In PATH first, then beside the program, which goes before.
    let path = dir.path().join("path");
    std::fs::create_dir(&path).unwrap();
    let install = |dir: &std::path::Path, name: &str| {
        let file = dir.join("receptord");
        std::fs::write(&file, format!("#!/bin/sh\necho {name} \"$@\"\nexit 78\n")).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    let check = |args: &[&str]| {
        let output = std::process::Command::new(&program)
            .args(["config", "check"])
            .args(args)
            .env("PATH", format!("{}:/usr/bin:/bin", path.display()))
            .output()
            .unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stdout).unwrap(),
        )
    };
    assert_eq!(check(&[]).0, Some(69));
    install(&path, "in-path");
    assert_eq!(
        check(&[]),
        (Some(78), "in-path --check-config\n".to_owned())
    );
    install(dir.path(), "beside");
    assert_eq!(
        check(&["x.toml"]),
        (
            Some(78),
            "beside --check-config --config x.toml\n".to_owned()
        )
    );
}

#[test]
fn an_empty_variable_is_none() {
    let run = |args: &[&str], value: &str| {
        let output = program()
            .args(args)
            .env("RECEPTOR_SOCKET", value)
            .output()
            .unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let (code, said) = run(&["work", "cancel", "nonsense"], "");
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("32 hexadecimal digits"), "{said}");
    // A plugin's check needs no socket, so that the default one is left alone.
    let (code, said) = run(&["plugin", "check", "/dev/null/none"], "");
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("/dev/null/none"), "{said}");
    let (code, said) = run(&["status", "--socket-path="], "/tmp/some.sock");
    assert_eq!(
        (code, &*said),
        (Some(2), "receptorctl: --socket-path is empty\n")
    );
}
