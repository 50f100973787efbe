//! What the spool asks of a file system, and the real one.
//!
//! Owns every call to the operating system. Decides nothing: whoever calls says what is written
//! where and when it must be durable. Paths are relative to the spool's directory, with `/`.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg, PosixFadviseAdvice, posix_fadvise, posix_fallocate};

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// One that is there, to be read.
    Read,
    /// One that is there, to be read and written.
    Write,
    /// An empty one, to be read and written; what was there is gone.
    Create,
}

/// A directory on a disk. Nothing but what [`DiskFile::sync`] and [`Self::sync_dir`] returned
/// for is durable, and what is not may be there in part and in any order after a crash.
pub trait Disk {
    /// An open file.
    type File: DiskFile;
    /// Held while the spool is open.
    type Lock;

    /// Makes the spool's directory and these below it, durably, where they are missing.
    ///
    /// # Errors
    ///
    /// Those of the file system, as in all others.
    fn prepare(&self, dirs: &[&str]) -> io::Result<()>;
    /// Keeps other processes out: all of them, or those that write.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::WouldBlock`] while another holds it.
    fn lock(&self, exclusive: bool) -> io::Result<Self::Lock>;
    /// The names in a directory, in any order; none when it is not there.
    ///
    /// # Errors
    ///
    /// As above.
    fn list(&self, dir: &str) -> io::Result<Vec<String>>;
    /// Opens a file.
    ///
    /// # Errors
    ///
    /// As above.
    fn open(&self, path: &str, access: Access) -> io::Result<Self::File>;
    /// Renames a file, over one that may be there.
    ///
    /// # Errors
    ///
    /// As above.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Takes a file from elsewhere on the same file system.
    ///
    /// # Errors
    ///
    /// As above.
    fn adopt(&self, from: &Path, to: &str) -> io::Result<()>;
    /// Removes a file.
    ///
    /// # Errors
    ///
    /// As above.
    fn remove(&self, path: &str) -> io::Result<()>;
    /// Makes durable which names a directory has.
    ///
    /// # Errors
    ///
    /// As above.
    fn sync_dir(&self, dir: &str) -> io::Result<()>;
}

/// An open file.
pub trait DiskFile {
    /// Reads at most as much as fits; 0 at the end.
    ///
    /// # Errors
    ///
    /// Those of the file system, as in all others.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes some of it, at least one byte, and says how much.
    ///
    /// # Errors
    ///
    /// As above; a part may be written.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize>;
    /// Makes what was written durable, and the length. After an error nothing is known of what
    /// was written since the last success, and a later success says nothing about it.
    ///
    /// # Errors
    ///
    /// As above.
    fn sync(&self) -> io::Result<()>;
    /// Cuts, or adds zeros.
    ///
    /// # Errors
    ///
    /// As above.
    fn set_len(&self, length: u64) -> io::Result<()>;
    /// Adds zeros up to this length that have their place on the disk.
    ///
    /// # Errors
    ///
    /// As above.
    fn allocate(&self, length: u64) -> io::Result<()>;
    /// Its length.
    ///
    /// # Errors
    ///
    /// As above.
    fn size(&self) -> io::Result<u64>;
    /// Says that nobody will soon read these bytes again: a hint, which changes nothing but what
    /// the system keeps in memory of what is durable.
    fn forget(&self, offset: u64, length: u64);
    /// The same open file once more, for another thread.
    ///
    /// # Errors
    ///
    /// As above.
    fn again(&self) -> io::Result<Self>
    where
        Self: Sized;
}

/// Fills the buffer as far as the file goes and says how far.
pub(crate) fn read_full(file: &impl DiskFile, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Writes everything.
pub(crate) fn write_full(file: &impl DiskFile, mut bytes: &[u8], mut at: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write_at(bytes, at) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => {
                bytes = &bytes[count..];
                at += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// A directory of the operating system.
#[derive(Debug, Clone)]
pub struct FsDisk {
    root: PathBuf,
}

impl FsDisk {
    /// This directory; it need not exist yet, its parent must.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }
}

impl Disk for FsDisk {
    type File = File;
    type Lock = Flock<File>;

    fn prepare(&self, dirs: &[&str]) -> io::Result<()> {
        make_dir(&self.root)?;
        for dir in dirs {
            make_dir(&self.root.join(dir))?;
        }
        // Also when all was there: whoever made it may have been killed before this.
        if let Some(parent) = self.root.parent() {
            sync_dir(parent)?;
        }
        sync_dir(&self.root)
    }

    fn lock(&self, exclusive: bool) -> io::Result<Self::Lock> {
        let path = self.root.join("lock");
        let (file, how) = if exclusive {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false);
            let file = options.mode(0o600).open(path)?;
            (file, FlockArg::LockExclusiveNonblock)
        } else {
            (File::open(path)?, FlockArg::LockSharedNonblock)
        };
        Flock::lock(file, how).map_err(|(_, errno)| errno.into())
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(self.root.join(dir)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        entries
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect()
    }

    fn open(&self, path: &str, access: Access) -> io::Result<File> {
        OpenOptions::new()
            .read(true)
            .write(access != Access::Read)
            .create(access == Access::Create)
            .truncate(access == Access::Create)
            .mode(0o600)
            .open(self.root.join(path))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.root.join(from), self.root.join(to))
    }

    fn adopt(&self, from: &Path, to: &str) -> io::Result<()> {
        fs::rename(from, self.root.join(to))
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        fs::remove_file(self.root.join(path))
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        sync_dir(&self.root.join(dir))
    }
}

impl DiskFile for File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        std::os::unix::fs::FileExt::read_at(self, buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        std::os::unix::fs::FileExt::write_at(self, bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        Self::set_len(self, length)
    }

    fn allocate(&self, length: u64) -> io::Result<()> {
        let length = i64::try_from(length).map_err(|_| io::ErrorKind::FileTooLarge)?;
        Ok(posix_fallocate(self, 0, length)?)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn forget(&self, offset: u64, length: u64) {
        if let (Ok(offset), Ok(length)) = (offset.try_into(), length.try_into()) {
            // A file system that knows no hints is as good.
            let _ = posix_fadvise(
                self,
                offset,
                length,
                PosixFadviseAdvice::POSIX_FADV_DONTNEED,
            );
        }
    }

    fn again(&self) -> io::Result<Self> {
        self.try_clone()
    }
}

fn make_dir(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

fn sync_dir(path: &Path) -> io::Result<()> {
    // An empty parent is the working directory.
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    File::open(path)?.sync_all()
}
