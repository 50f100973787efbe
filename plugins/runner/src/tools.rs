//! Finds ansible-runner and what must be beside it. Looks at directories only; starts nothing.

use std::{
    collections::BTreeSet,
    ffi::{OsStr, OsString},
    fs, io,
    path::{Path, PathBuf},
};

use nix::unistd::{AccessFlags, access};
use receptor_plugin::{Error, ErrorCode};

use crate::config::Config;

/// What a job needs from the node.
#[derive(Debug, Clone)]
pub(crate) struct Tools {
    /// ansible-runner, absolute.
    pub(crate) runner: PathBuf,
    /// ansible-playbook, absolute.
    pub(crate) playbook: PathBuf,
    /// The `PATH` of all that runs for the job.
    pub(crate) path: OsString,
}

/// What is not there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Missing {
    #[error("{command} not found in PATH")]
    Runner { command: String, path: String },
    #[error("ansible-playbook not found in PATH")]
    Core { runner: PathBuf, path: String },
    #[error("{command} not found in PATH")]
    Isolation { command: String, path: String },
}

impl Missing {
    /// What the sender is told.
    pub(crate) fn into_error(self) -> Error {
        let text = match self {
            Self::Runner { command, path } => format!(
                "{command} was not found in {path}. Install it with: pip install ansible-runner \
                 ansible-core, or set command in the section [plugins.runner] of the node's \
                 configuration."
            ),
            Self::Core { runner, path } => format!(
                "{} is there, but ansible-core is not installed beside it: ansible-playbook was \
                 not found in {path}. Install it with: pip install ansible-core",
                runner.display()
            ),
            Self::Isolation { command, path } => {
                format!("the job asks for isolation, but {command} was not found in {path}")
            }
        };
        Error::new(ErrorCode::MissingDependency, text)
    }
}

impl Tools {
    /// Looks for everything that every job needs.
    pub(crate) fn find(config: &Config) -> Result<Self, Missing> {
        let dirs = search_path(config);
        let shown = || show(&dirs);
        let runner = find(&config.command, &dirs).ok_or_else(|| Missing::Runner {
            command: config.command.clone(),
            path: shown(),
        })?;
        // The programs of the same installation first; a link (as pipx makes them) has them where
        // it points to.
        let mut near: Vec<PathBuf> = Vec::new();
        let real = runner.canonicalize().unwrap_or_else(|_| runner.clone());
        for file in [&runner, &real] {
            near.extend(file.parent().map(Path::to_owned));
        }
        near.extend(dirs);
        let mut seen = BTreeSet::new();
        near.retain(|dir| seen.insert(dir.clone()));

        let playbook = find("ansible-playbook", &near).ok_or_else(|| Missing::Core {
            runner: runner.clone(),
            path: show(&near),
        })?;
        let path = std::env::join_paths(&near).unwrap_or_default();
        Ok(Self {
            runner,
            playbook,
            path,
        })
    }

    /// A program that a job asks for.
    pub(crate) fn program(&self, command: &str) -> Result<PathBuf, Missing> {
        let dirs: Vec<PathBuf> = std::env::split_paths(&self.path).collect();
        find(command, &dirs).ok_or_else(|| Missing::Isolation {
            command: command.to_owned(),
            path: show(&dirs),
        })
    }
}

/// The version of an installed Python package, read from the directories beside one of its
/// programs.
pub(crate) fn version_of(package: &str, program: &Path) -> Option<String> {
    let program = program.canonicalize().ok()?;
    let prefix = program.parent()?.parent()?;
    let start = format!("{package}-");
    for lib in entries(&prefix.join("lib"), "python3") {
        for packages in ["site-packages", "dist-packages"] {
            for info in entries(&lib.join(packages), &start) {
                let name = info.file_name().and_then(OsStr::to_str).unwrap_or_default();
                let version = name
                    .strip_suffix(".dist-info")
                    .or_else(|| name.strip_suffix(".egg-info"));
                if let Some(version) = version.and_then(|v| v.strip_prefix(&start)) {
                    return Some(version.to_owned());
                }
            }
        }
    }
    None
}

fn entries(dir: &Path, start: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    entries
        .filter_map(io::Result::ok)
        .filter(|e| e.file_name().to_str().is_some_and(|n| n.starts_with(start)))
        .map(|e| e.path())
        .collect()
}

/// The directories to look into. Relative ones depend on where we are; directories called `shims`
/// (pyenv, rbenv, asdf) hold programs for one person's shell that fail elsewhere.
fn search_path(config: &Config) -> Vec<PathBuf> {
    let path = match &config.path {
        Some(path) => OsString::from(path),
        None => std::env::var_os("PATH").unwrap_or_default(),
    };
    std::env::split_paths(&path)
        .filter(|dir| dir.is_absolute() && dir.file_name() != Some(OsStr::new("shims")))
        .collect()
}

fn find(command: &str, dirs: &[PathBuf]) -> Option<PathBuf> {
    if command.contains('/') {
        let path = PathBuf::from(command);
        return (path.is_absolute() && is_program(&path)).then_some(path);
    }
    dirs.iter()
        .map(|dir| dir.join(command))
        .find(|path| is_program(path))
}

fn is_program(path: &Path) -> bool {
    path.is_file() && access(path, AccessFlags::X_OK).is_ok()
}

fn show(dirs: &[PathBuf]) -> String {
    let path = std::env::join_paths(dirs).unwrap_or_default();
    if path.is_empty() {
        return "an empty PATH".to_owned();
    }
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{OpenOptionsExt, symlink};

    use super::*;

    fn program(path: &Path) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::File::options()
            .write(true)
            .create_new(true)
            .mode(0o755)
            .open(path)
            .unwrap();
    }

    fn config(dirs: &[PathBuf]) -> Config {
        Config {
            path: Some(std::env::join_paths(dirs).unwrap().into_string().unwrap()),
            ..Config::default()
        }
    }

    #[test]
    fn shims_and_relative_directories_are_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let (shims, bin) = (dir.path().join("shims"), dir.path().join("bin"));
        program(&shims.join("ansible-runner"));
        let only_shims = config(&[shims.clone(), PathBuf::from("bin"), PathBuf::new()]);
        let missing = Tools::find(&only_shims).unwrap_err();
        assert_eq!(missing.to_string(), "ansible-runner not found in PATH");

        program(&bin.join("ansible-runner"));
        let both = config(&[shims, bin.clone()]);
        let missing = Tools::find(&both).unwrap_err();
        assert_eq!(missing.to_string(), "ansible-playbook not found in PATH");
        program(&bin.join("ansible-playbook"));
        let tools = Tools::find(&both).unwrap();
        assert_eq!(tools.runner, bin.join("ansible-runner"));
        assert_eq!(tools.path, bin.as_os_str());
    }

    #[test]
    fn a_linked_program_brings_its_neighbours() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        let (bin, venv) = (real.join("bin"), real.join("venv/bin"));
        program(&venv.join("ansible-runner"));
        program(&venv.join("ansible-playbook"));
        fs::create_dir_all(&bin).unwrap();
        symlink(venv.join("ansible-runner"), bin.join("ansible-runner")).unwrap();
        let tools = Tools::find(&config(std::slice::from_ref(&bin))).unwrap();
        assert_eq!(tools.playbook, venv.join("ansible-playbook"));
        assert_eq!(tools.path, std::env::join_paths([&bin, &venv]).unwrap());

        let info = real.join("venv/lib/python3.11/site-packages/ansible_runner-2.4.3.dist-info");
        fs::create_dir_all(info).unwrap();
        let version = version_of("ansible_runner", &tools.runner);
        assert_eq!(version.as_deref(), Some("2.4.3"));
        assert_eq!(version_of("ansible_core", &tools.runner), None);
    }
}
