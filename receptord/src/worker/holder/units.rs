//! Where the service manager listens for those who want a holder.
//!
//! Owns the names of these sockets: `receptor-worker-PLUGIN.sock` is for one plugin, `receptor-worker.sock` for
//! all others. Without any of them plugins are children of the daemon. Also owns what a job's directory must be
//! for a plugin of another user: the group of the socket is the group that daemon and plugin have in common.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use nix::unistd::{getegid, geteuid};
use receptor_proto::MessageId;

/// The socket for all plugins, without its extension.
const SOCKET: &str = "receptor-worker";

/// A socket behind which holders are started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::worker) struct Unit {
    /// Where it is.
    pub socket: PathBuf,
    group: u32,
}

impl Unit {
    /// The socket for a plugin, if there is one in this directory.
    pub(in crate::worker) fn find(dir: &Path, plugin: &str) -> Option<Self> {
        let names = [format!("{SOCKET}-{plugin}.sock"), format!("{SOCKET}.sock")];
        names.iter().find_map(|name| {
            let socket = dir.join(name);
            let found = fs::metadata(&socket).ok()?;
            // That of another user is another daemon's.
            let is_ours = found.file_type().is_socket() && found.uid() == geteuid().as_raw();
            is_ours.then(|| Self {
                socket,
                group: found.gid(),
            })
        })
    }

    /// Lets the plugin's user work in a job's directory.
    ///
    /// # Errors
    /// When the directory is not of the common group, and cannot be given to it.
    pub(in crate::worker) fn share_dir(&self, dir: &Path) -> io::Result<()> {
        self.give(dir)?;
        fs::set_permissions(dir, Permissions::from_mode(0o770))
    }

    /// Lets the plugin's user read and change a file there. Its directory keeps everybody else out, so that its
    /// group, which the daemon may not be able to choose in its sandbox, does not matter.
    ///
    /// # Errors
    /// Whatever the system says.
    pub(in crate::worker) fn share_file(path: &Path) -> io::Result<()> {
        fs::set_permissions(path, Permissions::from_mode(0o666))
    }

    /// Lets the plugin's user pass through the directory of all jobs. A package makes it so that those in it are of
    /// the common group from their beginning.
    ///
    /// # Errors
    /// As [`Self::share_dir`]; and when a directory above is closed to the plugin's user.
    pub(in crate::worker) fn share_way(&self, jobs: &Path) -> io::Result<()> {
        // Whoever is in the daemon's own group is taken for the daemon's user.
        if self.group != getegid().as_raw() {
            for above in jobs.ancestors().skip(1) {
                let found = fs::metadata(above)?;
                let ours = if found.gid() == self.group { 0o010 } else { 0 };
                if found.mode() & (0o001 | ours) == 0 {
                    let text = format!("{} is closed to the users of plugins", above.display());
                    return Err(io::Error::other(text));
                }
            }
        }
        self.give(jobs)?;
        let mode = fs::metadata(jobs)?.mode();
        if mode & 0o010 == 0 {
            fs::set_permissions(jobs, Permissions::from_mode(0o710))?;
        }
        Ok(())
    }

    fn give(&self, path: &Path) -> io::Result<()> {
        if fs::metadata(path)?.gid() != self.group {
            chown(path, None, Some(self.group))?;
        }
        Ok(())
    }
}

/// What a process is for, as the name says that its connection and its directory have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::worker) enum Whose {
    /// One work.
    Work(MessageId),
    /// All works of this plugin.
    Plugin(String),
}

impl Whose {
    /// By the name of its directory.
    pub(super) fn of(name: &str) -> Option<Self> {
        if let Some((plugin, _)) = serving(name) {
            return Some(Self::Plugin(plugin.to_owned()));
        }
        let work: MessageId = name.parse().ok()?;
        (work.to_string() == name).then_some(Self::Work(work))
    }
}

/// The plugin and the number in the name of a serving process's directory.
fn serving(name: &str) -> Option<(&str, &str)> {
    name.strip_prefix("serve.")?.rsplit_once('.')
}

/// The name for a connection in the service manager's store, by that of the process's directory.
pub(in crate::worker) fn keep_name(name: &str) -> String {
    format!("{SOCKET}-{name}")
}

/// The other way round; `None` when a stored descriptor of this name is no such connection.
pub(super) fn name_of(kept: &str) -> Option<&str> {
    kept.strip_prefix(SOCKET)?.strip_prefix('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_whose_a_process_is() {
        let work = MessageId::from_u128(7);
        let kept = keep_name(&work.to_string());
        let whose = name_of(&kept).and_then(Whose::of);
        assert_eq!(whose, Some(Whose::Work(work)));
        let kept = keep_name("serve.my-plugin.0123456789abcdef");
        let whose = name_of(&kept).and_then(Whose::of);
        assert_eq!(whose, Some(Whose::Plugin("my-plugin".to_owned())));
        for other in ["control", "receptor-worker", "receptor-worker-serve.x"] {
            assert_eq!(name_of(other).and_then(Whose::of), None, "{other}");
        }
    }
}
