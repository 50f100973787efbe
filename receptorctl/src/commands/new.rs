//! `plugin new`: a small plugin to start from.
//!
//! Owns the templates, each a whole plugin that passes `plugin check`. Never overwrites anything.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use receptor_proto::plugin::is_name;

use crate::args::{Language, PluginNew};
use crate::exit::{Exit, Failure};
use crate::output::{Out, note};

/// What stands for the plugin's name in the templates.
const NAME: &str = "@NAME@";
const SHELL: &str = include_str!("../templates/plugin.sh");
const PYTHON: &str = include_str!("../templates/plugin.py");
const CARGO: &str = include_str!("../templates/Cargo.toml.in");
/// Compiled as an example of this package, so that it is known to compile.
const RUST: &str = include_str!("../../examples/new_plugin.rs");

/// A plugin is run by others, and changed by its owner alone.
const PROGRAM: u32 = 0o755;
const SOURCE: u32 = 0o644;

pub(super) fn run(args: &PluginNew) -> Result<Exit, Failure> {
    let name = &args.name;
    if !is_name(name) {
        let text = format!("{name:?} is no plugin's name: a-z, then up to 63 of a-z 0-9 _ - are");
        return Err(Failure::new(Exit::Usage, text));
    }
    let made = match args.lang {
        Language::Sh => file(Path::new(name), SHELL, name, PROGRAM)?,
        Language::Python => file(Path::new(&format!("{name}.py")), PYTHON, name, PROGRAM)?,
        Language::Rust => package(name)?,
    };
    let mut out = Out::new();
    out.line(made.display().to_string())?;
    out.flush()?;
    match args.lang {
        Language::Sh | Language::Python => {
            note(&format!(
                "try: receptorctl plugin check ./{}",
                made.display()
            ));
        }
        Language::Rust => note(&format!(
            "try: cd {name} && cargo build && receptorctl plugin check target/debug/{name}"
        )),
    }
    Ok(Exit::Done)
}

fn file(path: &Path, template: &str, name: &str, mode: u32) -> Result<PathBuf, Failure> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| file.write_all(template.replace(NAME, name).as_bytes()))
        .map_err(|e| cannot(path, &e))?;
    Ok(path.to_owned())
}

fn package(name: &str) -> Result<PathBuf, Failure> {
    let directory = PathBuf::from(name);
    DirBuilder::new()
        .mode(PROGRAM)
        .create(&directory)
        .map_err(|e| cannot(&directory, &e))?;
    fs::create_dir(directory.join("src")).map_err(|e| cannot(&directory, &e))?;
    file(&directory.join("Cargo.toml"), CARGO, name, SOURCE)?;
    file(&directory.join("src/main.rs"), RUST, name, SOURCE)?;
    Ok(directory)
}

fn cannot(path: &Path, error: &io::Error) -> Failure {
    let exit = if error.kind() == io::ErrorKind::PermissionDenied {
        Exit::NotPermitted
    } else {
        Exit::Usage
    };
    Failure::new(exit, format!("cannot make {}: {error}", path.display()))
}
