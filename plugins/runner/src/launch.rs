//! The files and processes that a job consists of.
//!
//! Owns what ansible-runner finds when it starts: its directory, its input and its environment; and
//! the end of a container by name. Never decides when a job ends.

use std::{
    ffi::OsStr,
    fs::{self, DirBuilder, File},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use receptor_plugin::{Error, ErrorCode, Job, Result};
use serde_json::json;

use crate::{
    config::Config,
    payload::{Plan, tmp_dir},
    tools::Tools,
};

/// Programs whose containers have names.
const CONTAINER_PROGRAMS: &[&str] = &["podman", "docker"];
/// How long the container program may take to end a container.
const CONTAINER_WAIT: Duration = Duration::from_secs(5);

/// Writes all files of the job and returns what ansible-runner will read.
pub(crate) fn prepare(dir: &Path, plan: &Plan, ident: &str) -> io::Result<File> {
    let pdd = dir.join("pdd");
    let make = |path: &Path| match DirBuilder::new().mode(0o700).create(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    };
    make(&tmp_dir(dir))?;
    make(&pdd)?;
    make(&pdd.join("env"))?;
    for (path, contents) in &plan.files {
        let path = pdd.join(path);
        if let Some(parent) = path.parent() {
            make(parent)?;
        }
        private(&path)?.write_all(contents)?;
    }
    if let Some(project) = &plan.project {
        // Says which directory is missing; the link alone would say only that a playbook is.
        fs::metadata(project)
            .map_err(|e| io::Error::new(e.kind(), format!("project {}: {e}", project.display())))?;
        symlink(project, pdd.join("project"))?;
    }
    let mut kwargs = plan.kwargs.clone();
    kwargs.insert("ident".to_owned(), ident.into());
    // A file rather than a pipe: ansible-runner reads it when it pleases, and nobody waits.
    let path = dir.join("kwargs");
    let mut file = private(&path)?;
    writeln!(file, "{}", json!({ "kwargs": kwargs }))?;
    writeln!(file, "{}", json!({"eof": true}))?;
    let input = File::open(&path)?;
    fs::remove_file(&path)?;
    Ok(input)
}

/// A new file that nobody else can read.
pub(crate) fn private(path: &Path) -> io::Result<File> {
    File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

/// Starts ansible-runner. Its environment is what we name here and nothing else: all of it would
/// reach every task.
pub(crate) fn start(job: &Job, config: &Config, tools: &Tools, input: File) -> Result<Child> {
    let tmp = tmp_dir(job.dir());
    let mut command = Command::new(&tools.runner);
    command
        .arg("worker")
        .arg("--private-data-dir")
        .arg(job.dir().join("pdd"))
        .current_dir(job.dir())
        .env_clear()
        .env("PATH", &tools.path)
        .env("LC_ALL", "C.UTF-8")
        .env("TMPDIR", &tmp)
        .env("ANSIBLE_LOCAL_TEMP", &tmp)
        // By this the daemon finds what a job has left behind, should we be killed.
        .env("RECEPTOR_JOB_ID", job.id());
    for name in ["HOME", "TZ"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    if let Some(home) = std::env::var_os("HOME") {
        let usual = Path::new(&home).join(".ansible");
        // Ansible makes this directory even when it has nothing to put there. Sockets stay below
        // it, because their paths have to be short.
        if !usual.exists() {
            command
                .env("ANSIBLE_HOME", tmp.join("ansible"))
                .env("ANSIBLE_SSH_CONTROL_PATH_DIR", usual.join("cp"))
                .env("ANSIBLE_PERSISTENT_CONTROL_PATH_DIR", usual.join("pc"));
        }
    }
    command
        .envs(&config.env)
        .stdin(input)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.spawn().map_err(|e| {
        let path = tools.runner.display();
        Error::new(
            ErrorCode::MissingDependency,
            format!("{path} could not be started: {e}"),
        )
    })
}

/// A container is no child of ours and has to be ended by name.
pub(crate) fn kill_container(program: &Path, ident: &str) {
    if !CONTAINER_PROGRAMS.contains(
        &program
            .file_name()
            .and_then(OsStr::to_str)
            .unwrap_or_default(),
    ) {
        return;
    }
    let name: String = ident
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || c == '-' {
                c
            } else {
                '_'
            }
        })
        .collect();
    let child = Command::new(program)
        .args(["kill", &format!("ansible_runner_{name}")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    // What it fails with is what the sweep will find.
    let Ok(mut child) = child else { return };
    let until = Instant::now() + CONTAINER_WAIT;
    while matches!(child.try_wait(), Ok(None)) && Instant::now() < until {
        thread::sleep(Duration::from_millis(10));
    }
}
