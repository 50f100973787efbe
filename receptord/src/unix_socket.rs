//! Listening Unix sockets: for the control socket and for links.
//!
//! Owns making one at a path: what another process answers on is never taken away; what was
//! left behind by one that is gone is replaced.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};

/// How often it is tried whether somebody answers on a socket that is there.
const ATTEMPTS: u32 = 4;
/// Between two of these: far longer than a process takes from its start to its program.
const ATTEMPT_PAUSE: Duration = Duration::from_millis(100);

/// The file of a listening socket; dropping it removes the file, unless it is no longer ours.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    identity: Identity,
}

/// Device, inode and time of the last change of the content, which is that of its making: an
/// inode number is used again soon.
type Identity = (u64, u64, i64, i64);

fn identity(found: &Metadata) -> Identity {
    (found.dev(), found.ino(), found.mtime(), found.mtime_nsec())
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let found = self.path.symlink_metadata();
        if found.is_ok_and(|found| identity(&found) == self.identity) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Listens at `path`, whose directory must exist.
///
/// # Errors
///
/// `AddrInUse` when somebody answers there or something else than a socket is there; whatever
/// the system says otherwise.
pub(crate) async fn bind(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    match path.symlink_metadata() {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                format!("{} is there and is no socket", path.display()),
            ));
        }
        Ok(_) => remove_if_left_behind(path).await?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(path)?;
    let file = SocketFile {
        path: path.to_owned(),
        identity: identity(&path.symlink_metadata()?),
    };
    Ok((listener, file))
}

/// Removes a socket on which nobody answers.
async fn remove_if_left_behind(path: &Path) -> io::Result<()> {
    for attempt in 1..=ATTEMPTS {
        match UnixStream::connect(path).await {
            // Nobody listens: it was left behind.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                return std::fs::remove_file(path);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
            // Killed while it started a process, a daemon leaves that one with its listeners
            // until it has become another program.
            Ok(_) | Err(_) if attempt < ATTEMPTS => tokio::time::sleep(ATTEMPT_PAUSE).await,
            Ok(_) | Err(_) => {}
        }
    }
    Err(io::Error::new(
        io::ErrorKind::AddrInUse,
        format!("another process answers at {}", path.display()),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn a_socket_is_replaced_only_when_nobody_answers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let (listener, file) = bind(&path).await.unwrap();
        let error = bind(&path).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        drop(listener);
        let (_listener, newer) = bind(&path).await.unwrap();
        drop(file);
        assert!(path.exists());
        drop(newer);
        assert!(!path.exists());
    }

    #[tokio::test(flavor = "current_thread")]
    async fn one_that_is_given_up_while_it_is_looked_at_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let (listener, _file) = bind(&path).await.unwrap();
        let give_up = async {
            tokio::time::sleep(ATTEMPT_PAUSE / 2).await;
            drop(listener);
        };
        let (bound, ()) = tokio::join!(bind(&path), give_up);
        bound.unwrap();
    }

    #[tokio::test(flavor = "current_thread")]
    async fn what_is_no_socket_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        std::fs::write(&path, "precious").unwrap();
        let error = bind(&path).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }
}
