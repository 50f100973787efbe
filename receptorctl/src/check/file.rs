//! The plugin as a file: what the daemon looks at before it starts anything.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;
use receptor_proto::plugin::plugin_name;

use super::report::{Finding, Report};
use crate::exit::Failure;

/// The longest first line that Linux looks at for an interpreter.
const SHEBANG: u64 = 255;

/// Checks the file; false when it cannot even be started.
pub(super) fn check(path: &Path, report: &mut Report) -> Result<bool, Failure> {
    let file_name = path.file_name().unwrap_or_default().to_string_lossy();
    match plugin_name(&file_name) {
        Some(name) => report.add(Finding::ok(
            "file",
            "name",
            format!("the plugin is called {name}"),
        ))?,
        None => report.add(
            Finding::fail("file", "name", format!("{file_name:?} is no plugin's name")).mend(
                "call it a-z, then up to 63 of a-z 0-9 _ -, perhaps with one extension such as .py",
            ),
        )?,
    }
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(e) => {
            report.add(Finding::fail(
                "file",
                "executable",
                format!("it cannot be looked at: {e}"),
            ))?;
            return Ok(false);
        }
    };
    if !metadata.is_file() {
        report.add(Finding::fail("file", "executable", "it is no regular file"))?;
        return Ok(false);
    }
    let mode = metadata.mode() & 0o7777;
    if mode & 0o111 == 0 {
        report.add(
            Finding::fail(
                "file",
                "executable",
                format!("mode {mode:04o} is not executable"),
            )
            .mend(format!("chmod 0755 {}", path.display())),
        )?;
        return Ok(false);
    }
    report.add(Finding::ok(
        "file",
        "executable",
        format!("a regular file of mode {mode:04o}"),
    ))?;
    let found = owners(path);
    report.add(if found.is_empty() {
        Finding::ok(
            "file",
            "owner",
            "it and its directories are safe from others",
        )
    } else {
        let (what, mend): (Vec<_>, Vec<_>) = found.into_iter().unzip();
        Finding::unless_strict(
            "file",
            "owner",
            format!("receptord would not start it here: {}", what.join("; ")),
        )
        .mend(mend.join("; "))
    })?;
    match interpreter(path) {
        Ok(what) => {
            report.add(Finding::ok("file", "interpreter", what))?;
            Ok(true)
        }
        Err((what, mend)) => {
            report.add(Finding::fail("file", "interpreter", what).mend(mend))?;
            Ok(false)
        }
    }
}

/// What others could write or replace on the way to the plugin, and how to mend it: as the daemon judges it.
fn owners(path: &Path) -> Vec<(String, String)> {
    let own = geteuid().as_raw();
    let named = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let real = fs::canonicalize(path).unwrap_or_default();
    let mut places: Vec<&Path> = Vec::new();
    for place in named.ancestors().chain(real.ancestors()) {
        if !places.contains(&place) {
            places.push(place);
        }
    }
    let mut found = Vec::new();
    for place in places {
        let Ok(metadata) = fs::symlink_metadata(place) else {
            continue;
        };
        let shown = place.display();
        if ![0, own].contains(&metadata.uid()) {
            let what = format!("{shown} belongs to user {}", metadata.uid());
            found.push((what, format!("chown -h root {shown}")));
        }
        let mode = metadata.mode() & 0o7777;
        // In a sticky directory others cannot replace what is not theirs; a link's mode means nothing.
        let harmless = metadata.is_symlink() || (metadata.is_dir() && mode & 0o1000 != 0);
        if mode & 0o022 != 0 && !harmless {
            let what = format!("{shown} of mode {mode:04o} can be written by others");
            found.push((what, format!("chmod go-w {shown}")));
        }
    }
    found
}

/// Whether the kernel can start it: what it is, or what is wrong and how to mend it.
fn interpreter(path: &Path) -> Result<String, (String, String)> {
    let mut start = Vec::new();
    let read = File::open(path).and_then(|file| file.take(SHEBANG).read_to_end(&mut start));
    if let Err(e) = read {
        // A program that may be executed and not read is fine.
        return Ok(format!("not looked at: {e}"));
    }
    if start.starts_with(b"\x7fELF") {
        return Ok("a binary".to_owned());
    }
    let Some(line) = start.strip_prefix(b"#!") else {
        let what = "it is neither a binary nor a script with #! in its first line";
        return Err((
            what.to_owned(),
            "begin it with a line such as #!/usr/bin/env python3".to_owned(),
        ));
    };
    let line = line.split(|b| *b == b'\n').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    if line.ends_with('\r') {
        let what = "its first line ends with a carriage return";
        return Err((
            what.to_owned(),
            format!("sed -i 's/\\r$//' {}", path.display()),
        ));
    }
    let mut words = line.split_whitespace();
    let Some(program) = words.next() else {
        return Err((
            "its first line names no interpreter".to_owned(),
            "name one, such as #!/bin/sh".to_owned(),
        ));
    };
    if !Path::new(program).is_file() {
        let what = format!("its interpreter {program} does not exist");
        return Err((
            what,
            "install it, or name another in the first line".to_owned(),
        ));
    }
    if program.ends_with("/env") {
        let wanted = words.find(|word| !word.starts_with('-') && !word.contains('='));
        if let Some(wanted) = wanted
            && in_path(wanted).is_none()
        {
            let what = format!("its interpreter {wanted} is not in PATH");
            return Err((
                what,
                "install it, or name it with its whole path in the first line".to_owned(),
            ));
        }
    }
    Ok(format!("a script for {}", line.trim()))
}

fn in_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}
