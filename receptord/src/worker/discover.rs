//! Which plugins are installed.
//!
//! Owns the look into the plugins directories: which files count, which of a name wins, which is
//! masked, which is refused and why. Never runs anything.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;
use receptor_proto::lsa::PLUGINS_MAX;
use receptor_proto::plugin::plugin_name;

use super::config::PluginDir;
use super::describe::Executable;
use super::trust;

/// Entries of one directory that are looked at. More are a mistake, not plugins.
const MAX_ENTRIES: usize = 4096;

/// What stands for a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    /// An executable.
    Plugin {
        /// Which.
        executable: Executable,
        /// Changes whenever the file does.
        identity: Identity,
    },
    /// A link to `/dev/null`: there is to be no such plugin.
    Masked {
        /// The link.
        path: PathBuf,
    },
    /// A file that must not be run.
    Refused {
        /// Which.
        path: PathBuf,
        /// Why, and what to do about it.
        why: String,
    },
}

/// What tells one version of a file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Identity {
    fn of(meta: &Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

/// Everything that is installed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Installed {
    /// By name.
    pub by_name: BTreeMap<String, Found>,
    /// Files that links in the directories lead to, somewhere else.
    pub linked: Vec<PathBuf>,
}

/// Looks into the directories, the first first. Blocks.
pub(super) fn scan(dirs: &[PluginDir], allow_unsafe: bool) -> Installed {
    let mut installed = Installed::default();
    for dir in dirs {
        for file_name in entries(&dir.path) {
            look(dir, &file_name, allow_unsafe, &mut installed);
        }
    }
    installed
}

/// The names in a directory, in order. One that is not there is empty.
fn entries(dir: &Path) -> Vec<String> {
    let read = match fs::read_dir(dir) {
        Ok(read) => read,
        Err(error) => {
            if error.kind() != std::io::ErrorKind::NotFound {
                tracing::warn!(dir = %dir.display(), %error, "a plugins directory cannot be read");
            }
            return Vec::new();
        }
    };
    let mut names = Vec::new();
    for entry in read.flatten().take(MAX_ENTRIES) {
        match entry.file_name().into_string() {
            Ok(name) => names.push(name),
            Err(name) => {
                tracing::debug!(dir = %dir.display(), ?name, "passed over: no plugin name");
            }
        }
    }
    names.sort();
    names
}

fn look(dir: &PluginDir, file_name: &str, allow_unsafe: bool, installed: &mut Installed) {
    let path = dir.path.join(file_name);
    let Some(name) = plugin_name(file_name) else {
        tracing::debug!(path = %path.display(), "passed over: no plugin name");
        return;
    };
    if dir.only.is_some_and(|only| !only.contains(&name)) {
        return;
    }
    if let Some(winner) = installed.by_name.get(name) {
        tracing::debug!(path = %path.display(), winner = %winner.path().display(), "passed over: the name is taken");
        return;
    }
    if installed.by_name.len() >= PLUGINS_MAX {
        tracing::warn!(path = %path.display(), "passed over: a node has at most {PLUGINS_MAX} plugins");
        return;
    }
    if let Some(found) = judge(dir, &path, name, file_name, allow_unsafe) {
        if let Found::Plugin { .. } = found
            && let Ok(target) = path.canonicalize()
            && target != path
        {
            installed.linked.push(target);
        }
        installed.by_name.insert(name.to_owned(), found);
    }
}

/// What the file is; `None` when it has nothing to do with plugins.
fn judge(
    dir: &PluginDir,
    path: &Path,
    name: &str,
    file_name: &str,
    allow_unsafe: bool,
) -> Option<Found> {
    let refused = |why: String| {
        Some(Found::Refused {
            path: path.to_owned(),
            why,
        })
    };
    let meta = match fs::metadata(path) {
        Ok(meta) => meta,
        Err(error) if fs::symlink_metadata(path).is_ok() => {
            return refused(format!("{}: {error}", path.display()));
        }
        // Gone since the directory was read.
        Err(_) => return None,
    };
    if is_null(&meta) {
        return Some(Found::Masked {
            path: path.to_owned(),
        });
    }
    if !meta.is_file() {
        tracing::debug!(path = %path.display(), "passed over: no regular file");
        return None;
    }
    if meta.mode() & 0o111 == 0 {
        let shown = path.display();
        return refused(format!("{shown} is not executable: run chmod +x {shown}"));
    }
    if !dir.trusted
        && !allow_unsafe
        && let Err(why) = trust::check(path, geteuid().as_raw())
    {
        return refused(why);
    }
    Some(Found::Plugin {
        executable: Executable {
            name: name.to_owned(),
            file_name: file_name.to_owned(),
            path: path.to_owned(),
        },
        identity: Identity::of(&meta),
    })
}

/// Whether this is `/dev/null`, by whatever name.
fn is_null(meta: &Metadata) -> bool {
    let null = fs::metadata("/dev/null");
    meta.file_type().is_char_device() && null.is_ok_and(|null| null.rdev() == meta.rdev())
}

impl Found {
    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Plugin { executable, .. } => &executable.path,
            Self::Masked { path } | Self::Refused { path, .. } => path,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    struct Dirs {
        _temp: tempfile::TempDir,
        dirs: Vec<PluginDir>,
    }

    fn dirs() -> Dirs {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().canonicalize().unwrap();
        let dirs = ["first", "second"].map(|name| {
            fs::create_dir(root.join(name)).unwrap();
            fs::set_permissions(root.join(name), fs::Permissions::from_mode(0o755)).unwrap();
            PluginDir::new(root.join(name))
        });
        Dirs {
            dirs: dirs.into(),
            _temp: temp,
        }
    }

    fn put(dir: &PluginDir, name: &str, mode: u32) -> PathBuf {
        let path = dir.path.join(name);
        fs::write(&path, b"#!/bin/sh\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    fn path_of(installed: &Installed, name: &str) -> Option<PathBuf> {
        match installed.by_name.get(name)? {
            Found::Plugin { executable, .. } => Some(executable.path.clone()),
            Found::Masked { .. } | Found::Refused { .. } => None,
        }
    }

    #[test]
    fn the_first_of_a_name_wins_and_others_are_passed_over() {
        let Dirs { dirs, _temp } = dirs();
        let winner = put(&dirs[0], "echo.sh", 0o755);
        put(&dirs[1], "echo", 0o755);
        let other = put(&dirs[1], "runner", 0o755);
        for name in [".hidden", "README.md.bak", "Upper", "echo~", "x.dpkg-new"] {
            put(&dirs[0], name, 0o755);
        }
        fs::create_dir(dirs[0].path.join("lib")).unwrap();
        let installed = scan(&dirs, false);
        let names: Vec<_> = installed.by_name.keys().collect();
        assert_eq!(names, ["echo", "runner"]);
        assert_eq!(path_of(&installed, "echo"), Some(winner));
        assert_eq!(path_of(&installed, "runner"), Some(other));
    }

    #[test]
    fn a_mask_masks_and_a_refused_file_does_not_let_the_next_one_in() {
        let Dirs { dirs, _temp } = dirs();
        symlink("/dev/null", dirs[0].path.join("runner")).unwrap();
        put(&dirs[0], "loose", 0o777);
        put(&dirs[0], "text", 0o644);
        symlink("nowhere", dirs[0].path.join("dangling")).unwrap();
        for name in ["runner", "loose", "text", "dangling"] {
            put(&dirs[1], name, 0o755);
        }
        let installed = scan(&dirs, false);
        assert!(matches!(installed.by_name["runner"], Found::Masked { .. }));
        for (name, what) in [
            ("loose", "chmod go-w"),
            ("text", "chmod +x"),
            ("dangling", "No such file"),
        ] {
            let Found::Refused { why, .. } = &installed.by_name[name] else {
                panic!("{name} is not refused");
            };
            assert!(why.contains(what), "{why}");
        }
        assert!(path_of(&scan(&dirs, true), "loose").is_some());
    }

    #[test]
    fn a_build_directory_offers_only_our_own() {
        let Dirs { mut dirs, _temp } = dirs();
        dirs.truncate(1);
        dirs[0].only = Some(&["echo"]);
        dirs[0].trusted = true;
        put(&dirs[0], "echo", 0o775);
        put(&dirs[0], "receptorctl", 0o775);
        let installed = scan(&dirs, false);
        let names: Vec<_> = installed.by_name.keys().collect();
        assert_eq!(names, ["echo"]);
        assert!(path_of(&installed, "echo").is_some());
    }

    #[test]
    fn a_changed_file_has_another_identity_and_links_are_told() {
        let Dirs { dirs, _temp } = dirs();
        let elsewhere = put(&dirs[1], "real.bak", 0o755);
        symlink(&elsewhere, dirs[0].path.join("echo")).unwrap();
        let before = scan(&dirs, false);
        assert_eq!(before.linked, std::slice::from_ref(&elsewhere));
        assert_eq!(before, scan(&dirs, false));
        fs::write(&elsewhere, b"#!/bin/sh\n# changed\n").unwrap();
        assert_ne!(before, scan(&dirs, false));
    }
}
