//! The files of `[tls]`: reading them within limits, and noticing that they have changed.

use std::fmt;
use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::config::{Tls, TlsFile};

/// The largest file that is read: a bundle of a thousand authorities takes 2 MiB.
const FILE_MAX: u64 = 16 << 20;
/// What others may do with a private key: nothing. Its group may read it, as that of `ssl-cert` does on Debian.
const FORBIDDEN: u32 = 0o027;

/// Why a file of `[tls]` cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyProblem {
    /// The key of the configuration that names it.
    pub key: &'static str,
    /// Where it is.
    pub path: PathBuf,
    /// Why.
    pub reason: String,
    /// It is not there and has a bare name: it may be a credential, which systemd shows to the service alone.
    pub may_be_credential: bool,
}

impl KeyProblem {
    pub(super) fn new(key: &'static str, file: &TlsFile, reason: impl Into<String>) -> Self {
        Self {
            key,
            path: file.path.clone(),
            reason: reason.into(),
            may_be_credential: false,
        }
    }

    /// Without the key of the configuration.
    #[must_use]
    pub fn message(&self) -> String {
        format!("{}: {}", self.path.display(), self.reason)
    }
}

impl std::error::Error for KeyProblem {}

impl fmt::Display for KeyProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.message())
    }
}

/// Reads a file of certificates.
pub(super) fn read(key: &'static str, file: &TlsFile) -> Result<Zeroizing<Vec<u8>>, KeyProblem> {
    read_if(key, file, |_| Ok(()))
}

/// Reads a private key, which must be nobody else's to read or to replace.
pub(super) fn read_key(
    key: &'static str,
    file: &TlsFile,
) -> Result<Zeroizing<Vec<u8>>, KeyProblem> {
    read_if(key, file, |found| {
        let mode = found.mode() & 0o777;
        if mode & FORBIDDEN == 0 {
            return Ok(());
        }
        let path = file.path.display();
        Err(format!(
            "others can read or replace it (mode {mode:04o}): expected a private key with chmod 600 {path}"
        ))
    })
}

fn read_if(
    key: &'static str,
    file: &TlsFile,
    check: impl FnOnce(&Metadata) -> Result<(), String>,
) -> Result<Zeroizing<Vec<u8>>, KeyProblem> {
    let problem = |reason: String| KeyProblem::new(key, file, reason);
    let cannot = |error: io::Error| problem(format!("cannot be read: {error}"));
    let found = std::fs::metadata(&file.path).map_err(|error| {
        let is_bare = !Path::new(&file.name).is_absolute();
        KeyProblem {
            may_be_credential: is_bare && error.kind() == io::ErrorKind::NotFound,
            ..cannot(error)
        }
    });
    // Opening a pipe or a device could wait for ever.
    if !found?.is_file() {
        return Err(problem("is not a file".to_owned()));
    }
    let opened = File::open(&file.path).map_err(cannot)?;
    let found = opened.metadata().map_err(cannot)?;
    check(&found).map_err(problem)?;
    if found.len() > FILE_MAX {
        return Err(problem("is larger than 16 MiB".to_owned()));
    }
    // Room for all of it at once: a buffer that grows leaves copies behind that nobody wipes.
    let size = usize::try_from(found.len()).unwrap_or(0) + 1;
    let mut bytes = Zeroizing::new(Vec::with_capacity(size));
    opened
        .take(FILE_MAX)
        .read_to_end(&mut bytes)
        .map_err(cannot)?;
    Ok(bytes)
}

/// What tells that a file is another one than before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

/// Those of all files; nothing for one that is not there.
pub(super) fn stamps(tls: Option<&Tls>) -> Vec<Option<Stamp>> {
    let files = tls.into_iter().flat_map(|tls| {
        let others = [&tls.certificate, &tls.key, &tls.ca];
        others.into_iter().chain(&tls.crl)
    });
    files.map(|file| stamp(&file.path)).collect()
}

fn stamp(path: &Path) -> Option<Stamp> {
    let found = std::fs::metadata(path).ok()?;
    Some(Stamp {
        device: found.dev(),
        inode: found.ino(),
        size: found.size(),
        changed: (found.ctime(), found.ctime_nsec()),
    })
}
