//! The data directory: whose it is, who uses it now, and the name that was made up for it.
//!
//! Owns the directory itself, `lock` and `node-id` in it; what lies beside them belongs to
//! the spool and the worker. Two daemons never share one: the lock is the kernel's and goes
//! with the process, so nothing has to be cleaned up after a crash.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::unistd::{AccessFlags, Uid, access};
use receptor_proto::NodeId;
use receptor_proto::id::NodeIdError;
use uuid::Uuid;

use crate::exit::Exit;

/// Largest `node-id` file read: an id, a newline and some room, so that the message can
/// quote what is there instead.
const MAX_NODE_ID_FILE: u64 = 1024;

/// How often the lock is tried.
const LOCK_ATTEMPTS: u32 = 4;
/// Between two of these: far longer than a process takes from its start to its program.
const LOCK_PAUSE: Duration = Duration::from_millis(100);

/// A data directory that this process alone uses.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: Flock<File>,
}

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// It is a file, or something else.
    #[error("data directory {path} is not a directory")]
    NotADirectory {
        /// The directory.
        path: PathBuf,
    },
    /// Another user owns it.
    #[error(
        "data directory {path} belongs to user {owner}, and this daemon runs as user {user}: give it to the right user with chown, or choose another with --data-dir"
    )]
    NotOwned {
        /// The directory.
        path: PathBuf,
        /// Who owns it.
        owner: u32,
        /// Who runs.
        user: u32,
    },
    /// Other users can write to it.
    #[error(
        "data directory {path} can be changed by other users (mode {mode:04o}): run chmod go-w {path}"
    )]
    WritableByOthers {
        /// The directory.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// Another process holds its lock.
    #[error("data directory {path} is in use by another receptord{}", pid.as_deref().map(|pid| format!(", process {pid}")).unwrap_or_default())]
    InUse {
        /// The directory.
        path: PathBuf,
        /// The process that holds it, when it could be told.
        pid: Option<String>,
    },
    /// The stored node id is none.
    #[error(
        "{path} holds {found:?}, which is no node id ({error}): write the right one into it, or set node-id in the configuration; remove it only if this node may take a new name"
    )]
    BadNodeId {
        /// The file.
        path: PathBuf,
        /// The beginning of what it holds.
        found: String,
        /// What is wrong with it.
        error: NodeIdError,
    },
    /// The operating system refused something.
    #[error("cannot {what} {path}")]
    Io {
        /// What was to be done.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        #[source]
        error: io::Error,
    },
}

impl DataDirError {
    /// The exit code of a daemon that cannot use its data directory.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::NotADirectory { .. } | Self::BadNodeId { .. } => Exit::Configuration,
            Self::NotOwned { .. } | Self::WritableByOthers { .. } => Exit::NotPermitted,
            Self::InUse { .. } => Exit::TryAgain,
            Self::Io { error, .. } => {
                let denied = matches!(
                    error.kind(),
                    io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
                );
                if denied {
                    Exit::NotPermitted
                } else {
                    Exit::Unavailable
                }
            }
        }
    }
}

impl DataDir {
    /// Makes the directory if it is missing, with mode 0700, checks it, and takes its lock.
    ///
    /// # Errors
    ///
    /// When it cannot be made or written to, belongs to somebody else, can be changed by
    /// others, or is in use.
    pub fn open(path: &Path) -> Result<Self, DataDirError> {
        let io = |what| {
            move |error| DataDirError::Io {
                what,
                path: path.to_owned(),
                error,
            }
        };
        let metadata = match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                create(path, &sync_dir).map_err(io("create data directory"))?;
                fs::metadata(path)
            }
            other => other,
        };
        let metadata = metadata.map_err(io("use data directory"))?;
        if !metadata.is_dir() {
            return Err(DataDirError::NotADirectory {
                path: path.to_owned(),
            });
        }
        let user = Uid::effective().as_raw();
        if metadata.uid() != user {
            let owner = metadata.uid();
            return Err(DataDirError::NotOwned {
                path: path.to_owned(),
                owner,
                user,
            });
        }
        let mode = metadata.mode() & 0o7777;
        if mode & 0o022 != 0 {
            return Err(DataDirError::WritableByOthers {
                path: path.to_owned(),
                mode,
            });
        }
        access(
            path,
            AccessFlags::R_OK | AccessFlags::W_OK | AccessFlags::X_OK,
        )
        .map_err(|errno| io("write to data directory")(errno.into()))?;
        Ok(Self {
            path: path.to_owned(),
            _lock: lock(path)?,
        })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The name of this node: the configured one, or else the one kept here, which is made
    /// up and written at the first start.
    ///
    /// # Errors
    ///
    /// When the file cannot be read or written, or holds no node id. It is never replaced:
    /// under a new name the node would not get what is on its way to the old one.
    pub fn node_id(&self, configured: Option<&NodeId>) -> Result<NodeId, DataDirError> {
        if let Some(node_id) = configured {
            return Ok(node_id.clone());
        }
        let path = self.path.join("node-id");
        let io = |what, path: &Path| {
            let path = path.to_owned();
            move |error| DataDirError::Io { what, path, error }
        };
        match File::open(&path) {
            Ok(file) => {
                let mut bytes = Vec::new();
                file.take(MAX_NODE_ID_FILE)
                    .read_to_end(&mut bytes)
                    .map_err(io("read", &path))?;
                let found = String::from_utf8_lossy(&bytes).into_owned();
                let id = found.strip_suffix('\n').unwrap_or(&found).parse();
                id.map_err(|error| DataDirError::BadNodeId { path, found, error })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let id: NodeId = Uuid::new_v4()
                    .to_string()
                    .parse()
                    .map_err(|error| io("make up", &path)(io::Error::other(error)))?;
                write_new(&self.path, &path, &format!("{id}\n")).map_err(io("write", &path))?;
                Ok(id)
            }
            Err(error) => Err(io("read", &path)(error)),
        }
    }
}

/// Makes a directory and those above it that are missing, and lets `sync` make each of them durable
/// in the one that it is in: what is kept in the last is there after a power loss if all are.
fn create(path: &Path, sync: &dyn Fn(&Path) -> io::Result<()>) -> io::Result<()> {
    let parent = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return Ok(()),
    };
    let make = || DirBuilder::new().mode(0o700).create(path);
    let made = match make() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            create(parent, sync)?;
            make()
        }
        made => made,
    };
    match made {
        // With dots in its path it can be one of those that were just made.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(error),
        Ok(()) => sync(parent),
    }
}

/// Makes durable which files a directory has.
pub(crate) fn sync_dir(path: &Path) -> io::Result<()> {
    match File::open(path) {
        Ok(dir) => dir.sync_all(),
        // It may be written to and not be read; nothing can be done.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        Err(error) => Err(error),
    }
}

/// Takes the lock of a directory and writes into it who has it.
fn lock(directory: &Path) -> Result<Flock<File>, DataDirError> {
    let path = directory.join("lock");
    let io = |what| {
        let path = path.clone();
        move |error| DataDirError::Io { what, path, error }
    };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(OFlag::O_NOFOLLOW.bits())
        .open(&path)
        .map_err(io("open"))?;
    let mut locked = Flock::lock(file, FlockArg::LockExclusiveNonblock);
    for _ in 1..LOCK_ATTEMPTS {
        // Killed while it started a process, a daemon leaves that one with its lock until it
        // has become another program.
        let Err((file, Errno::EWOULDBLOCK)) = locked else {
            break;
        };
        std::thread::sleep(LOCK_PAUSE);
        locked = Flock::lock(file, FlockArg::LockExclusiveNonblock);
    }
    let mut lock = match locked {
        Ok(lock) => lock,
        Err((file, Errno::EWOULDBLOCK)) => {
            let mut pid = String::new();
            let read = file.take(20).read_to_string(&mut pid);
            let pid = Some(pid.trim().to_owned());
            let is_pid = |pid: &String| !pid.is_empty() && pid.bytes().all(|b| b.is_ascii_digit());
            return Err(DataDirError::InUse {
                path: directory.to_owned(),
                pid: pid.filter(|pid| read.is_ok() && is_pid(pid)),
            });
        }
        Err((_, errno)) => return Err(io("lock")(errno.into())),
    };
    // Over what is there: on a full disk no new room could be had for it.
    let pid = format!("{}\n", std::process::id());
    lock.write_all(pid.as_bytes())
        .and_then(|()| lock.set_len(pid.len() as u64))
        .map_err(io("write"))?;
    Ok(lock)
}

/// Writes a file that is there whole or not at all, whenever the power fails.
pub(crate) fn write_new(directory: &Path, path: &Path, text: &str) -> io::Result<()> {
    let tmp = path.with_extension("tmp");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&tmp)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&tmp, path)?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn fresh() -> (tempfile::TempDir, PathBuf) {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("a/b");
        (parent, path)
    }

    #[test]
    fn a_missing_directory_is_made_for_us_alone() {
        let (_parent, path) = fresh();
        let data_dir = DataDir::open(&path).unwrap();
        assert_eq!(
            fs::metadata(data_dir.path()).unwrap().permissions().mode() & 0o777,
            0o700
        );
    }

    #[test]
    fn every_directory_that_is_made_is_made_durable() {
        let parent = tempfile::tempdir().unwrap();
        let root = parent.path();
        let synced = std::cell::RefCell::new(Vec::new());
        let sync = |path: &Path| {
            synced.borrow_mut().push(path.to_owned());
            Ok(())
        };
        create(&root.join("x/y/z"), &sync).unwrap();
        let expected = [root.to_owned(), root.join("x"), root.join("x/y")];
        assert_eq!(synced.take(), expected);
        let mode = fs::metadata(root.join("x")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        create(&root.join("x/y/new/../other"), &sync).unwrap();
        assert!(root.join("x/y/other").is_dir());
        assert!(synced.borrow().contains(&root.join("x/y/new/..")));
        fs::write(root.join("file"), "").unwrap();
        assert!(create(&root.join("file/x"), &sync).is_err());
    }

    #[test]
    fn two_cannot_use_one_directory_and_the_next_can_after_the_first() {
        let (_parent, path) = fresh();
        let first = DataDir::open(&path).unwrap();
        let error = DataDir::open(&path).unwrap_err();
        assert_eq!(error.exit(), Exit::TryAgain);
        let me = format!("process {}", std::process::id());
        assert!(error.to_string().ends_with(&me), "{error}");
        drop(first);
        DataDir::open(&path).unwrap();
    }

    #[test]
    fn one_that_is_given_up_meanwhile_can_be_used() {
        let (_parent, path) = fresh();
        let first = DataDir::open(&path).unwrap();
        let give_up = std::thread::spawn(move || {
            std::thread::sleep(LOCK_PAUSE / 2);
            drop(first);
        });
        DataDir::open(&path).unwrap();
        give_up.join().unwrap();
    }

    #[test]
    fn a_made_up_name_is_kept() {
        let (_parent, path) = fresh();
        let made_up = {
            let data_dir = DataDir::open(&path).unwrap();
            data_dir.node_id(None).unwrap()
        };
        let data_dir = DataDir::open(&path).unwrap();
        assert_eq!(data_dir.node_id(None).unwrap(), made_up);
        assert!(!path.join("node-id.tmp").exists());
        let configured: NodeId = "node-b".parse().unwrap();
        assert_eq!(data_dir.node_id(Some(&configured)).unwrap(), configured);
        assert_eq!(data_dir.node_id(None).unwrap(), made_up);
    }

    #[test]
    fn a_damaged_name_is_told_and_left_alone() {
        let (_parent, path) = fresh();
        let data_dir = DataDir::open(&path).unwrap();
        for damaged in [
            &b""[..],
            b"two\nlines\n",
            b"\xff\xfe",
            b".hidden\n",
            b"a b\n",
        ] {
            fs::write(path.join("node-id"), damaged).unwrap();
            let error = data_dir.node_id(None).unwrap_err();
            assert_eq!(error.exit(), Exit::Configuration, "{error}");
            assert_eq!(fs::read(path.join("node-id")).unwrap(), damaged);
        }
    }

    #[test]
    fn what_is_not_ours_alone_is_refused() {
        let (parent, path) = fresh();
        drop(DataDir::open(&path).unwrap());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o770)).unwrap();
        let error = DataDir::open(&path).unwrap_err();
        assert_eq!(error.exit(), Exit::NotPermitted);
        assert!(error.to_string().contains("chmod go-w"), "{error}");

        let file = parent.path().join("file");
        fs::write(&file, "").unwrap();
        let error = DataDir::open(&file).unwrap_err();
        assert_eq!(error.exit(), Exit::Configuration);

        // Somebody else's: any directory when we are not root, else one given away.
        let other = parent.path().join("other");
        fs::create_dir(&other).unwrap();
        let other = if Uid::effective().is_root() {
            nix::unistd::chown(&other, Some(Uid::from_raw(1)), None).unwrap();
            other
        } else {
            PathBuf::from("/")
        };
        let error = DataDir::open(&other).unwrap_err();
        assert!(matches!(error, DataDirError::NotOwned { .. }), "{error}");
    }
}
