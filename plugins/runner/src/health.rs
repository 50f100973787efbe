//! What this node has to run Ansible with. Read from directories, so that it costs nothing; no
//! program is started.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    path::Path,
};

use nix::sys::statvfs::statvfs;
use receptor_plugin::{Job, Outcome, Result};
use serde_json::{Value, json};

use crate::{
    config::Config,
    tools::{Tools, version_of},
};

/// Programs that can isolate a job.
const ISOLATION: &[&str] = &["podman", "docker", "bwrap"];
/// Longest first line of a script that is looked at.
const MAX_SHEBANG: u64 = 512;

/// Answers with one result; the code is 1 when jobs have no chance.
pub(crate) fn health(job: &Job) -> Result<Outcome> {
    let config: Config = job.config()?;
    let disk_free = statvfs(job.dir())
        .map(|fs| fs.blocks_available().saturating_mul(fs.fragment_size()))
        .ok();
    let (mut health, code) = match Tools::find(&config) {
        Ok(tools) => (found(&tools), 0),
        Err(missing) => {
            let reason = missing.to_string();
            (json!({"ready": false, "reason": reason}), 1)
        }
    };
    health["disk_free"] = disk_free.into();
    job.data(&health)?;
    Ok(Outcome::code(code))
}

fn found(tools: &Tools) -> Value {
    let isolation: Vec<&str> = ISOLATION
        .iter()
        .copied()
        .filter(|program| tools.program(program).is_ok())
        .collect();
    json!({
        "ready": true,
        "ansible_runner": {
            "path": tools.runner,
            "version": version_of("ansible_runner", &tools.runner),
        },
        "ansible_core": {
            "path": tools.playbook,
            "version": version_of("ansible_core", &tools.playbook),
            "python": interpreter(&tools.playbook),
        },
        "isolation": isolation,
    })
}

/// The program that a script names in its first line.
fn interpreter(script: &Path) -> Option<String> {
    let mut line = String::new();
    let script = File::open(script).ok()?.take(MAX_SHEBANG);
    BufReader::new(script).read_line(&mut line).ok()?;
    Some(line.strip_prefix("#!")?.trim().to_owned())
}
