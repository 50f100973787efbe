//! Whether an executable can be trusted to be what an administrator put there.
//!
//! Owns one rule: the file, every directory on the way to it and every link on that way belong to root
//! or to the daemon's user, and nobody else can write to them. A directory that everybody may write to is
//! harmless when it is *sticky* (such as `/tmp`): nobody can replace what belongs to somebody else.
//! Refusals say which command makes it right. Never changes anything itself.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

/// Links that are followed on one way, as the kernel has it.
const MAX_LINKS: usize = 40;
/// Permission for group and others to write.
const OTHERS_WRITE: u32 = 0o022;
/// Only owners may remove and rename what is in the directory.
const STICKY: u32 = 0o1000;

/// Checks the way to an executable from the root on.
///
/// # Errors
/// What is wrong, and what to do about it.
pub(super) fn check(path: &Path, user: u32) -> Result<(), String> {
    let mut links = 0;
    let mut seen = PathBuf::new();
    // What is still to be walked, the next part last.
    let mut rest: Vec<PathBuf> = parts(path);
    while let Some(part) = rest.pop() {
        if part == Path::new("..") {
            seen.pop();
            continue;
        }
        seen.push(&part);
        let meta = fs::symlink_metadata(&seen).map_err(|e| format!("{}: {e}", seen.display()))?;
        check_one(&seen, &meta, user)?;
        if meta.is_symlink() {
            links += 1;
            if links > MAX_LINKS {
                let error = io::Error::from_raw_os_error(nix::errno::Errno::ELOOP as i32);
                return Err(format!("{}: {error}", path.display()));
            }
            let target = fs::read_link(&seen).map_err(|e| format!("{}: {e}", seen.display()))?;
            seen.pop();
            rest.extend(parts(&target));
        }
    }
    Ok(())
}

/// The parts of a path, the first last; `/` is one.
fn parts(path: &Path) -> Vec<PathBuf> {
    let parts = path.components().rev();
    let parts = parts.filter(|part| !matches!(part, Component::CurDir));
    parts.map(|part| PathBuf::from(part.as_os_str())).collect()
}

fn check_one(path: &Path, meta: &Metadata, user: u32) -> Result<(), String> {
    let shown = path.display();
    let (owner, mode) = (meta.uid(), meta.mode());
    if owner != 0 && owner != user {
        let whom = if user == 0 {
            "root".to_owned()
        } else {
            format!("root or user {user}")
        };
        let no_follow = if meta.is_symlink() { "-h " } else { "" };
        return Err(format!(
            "{shown} belongs to user {owner}, who could replace the plugin; it must belong to {whom}: run chown {no_follow}root {shown}"
        ));
    }
    // The mode of a link means nothing.
    if meta.is_symlink() || mode & OTHERS_WRITE == 0 || (meta.is_dir() && mode & STICKY != 0) {
        return Ok(());
    }
    let whose = match mode & OTHERS_WRITE {
        0o020 => "its group",
        0o002 => "everybody",
        _ => "its group and everybody",
    };
    Err(format!(
        "{shown} can be changed by {whose} (mode {:04o}): run chmod go-w {shown}",
        mode & 0o7777
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn the_whole_way_counts() {
        let user = nix::unistd::geteuid().as_raw();
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().canonicalize().unwrap().join("plugins");
        fs::create_dir(&dir).unwrap();
        chmod(&dir, 0o755);
        let file = dir.join("echo");
        fs::write(&file, b"#!/bin/sh\n").unwrap();
        chmod(&file, 0o755);
        // The temporary directory itself lies in a sticky one as a rule.
        assert_eq!(check(&file, user), Ok(()));

        chmod(&file, 0o775);
        let error = check(&file, user).unwrap_err();
        assert!(error.contains("its group (mode 0775)"), "{error}");
        assert!(error.ends_with(&format!("run chmod go-w {}", file.display())));
        chmod(&file, 0o755);

        chmod(&dir, 0o777);
        let error = check(&file, user).unwrap_err();
        assert!(error.ends_with(&format!("run chmod go-w {}", dir.display())));
        chmod(&dir, 0o1777);
        assert_eq!(check(&file, user), Ok(()));
        chmod(&dir, 0o755);

        let other = temp.path().join("other");
        fs::create_dir(&other).unwrap();
        let link = other.join("echo");
        symlink("../plugins/echo", &link).unwrap();
        assert_eq!(check(&link, user), Ok(()));
        chmod(&dir, 0o757);
        let error = check(&link, user).unwrap_err();
        assert!(error.contains("everybody (mode 0757)"), "{error}");
        let circle = other.join("circle");
        symlink("circle", &circle).unwrap();
        assert!(check(&circle, user).is_err());
    }

    #[test]
    fn strangers_own_nothing() {
        let temp = tempfile::tempdir().unwrap();
        let file = temp.path().join("echo");
        fs::write(&file, b"").unwrap();
        let owner = fs::metadata(&file).unwrap().uid();
        // For a daemon of another user than the one who made it, unless that is root.
        let error = check(&file, owner + 1);
        assert_eq!(error.is_err(), owner != 0, "{error:?}");
    }
}
