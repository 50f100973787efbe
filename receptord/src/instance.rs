//! Which start of this node this is.
//!
//! Owns the file `instance` in the data directory: a number that grows with every start, also
//! when the clock was set back, by which the mesh tells a restarted node from a second one of
//! the same name and its new statements from its old ones. And the file `instance.spare`, which has the room that
//! the next start takes for the number: a node whose disk is full must start, or it would never be rid of what fills it.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::SystemTime;

use crate::data_dir::{DataDirError, sync_dir};

/// Where the number is, in the data directory.
const FILE: &str = "instance";
/// Where its room is.
const SPARE: &str = "instance.spare";

/// The highest number that is taken from the file: a clock in milliseconds reaches it in the year
/// 2248, and the mesh makes sequence numbers of it that have to fit 64 bits.
const LAST_MAX: u64 = 1 << 43;

/// The number of this start: milliseconds of the wall clock, or one more than the last.
///
/// # Errors
///
/// When the file cannot be read or written. One with nonsense in it, such as a number above
/// [`LAST_MAX`], is replaced.
pub(crate) fn next(data_dir: &Path) -> Result<u64, DataDirError> {
    let path = data_dir.join(FILE);
    let failed = |what| {
        let path = path.clone();
        move |error| DataDirError::Io { what, path, error }
    };
    let last = match fs::read_to_string(&path) {
        Ok(text) => match text.trim().parse() {
            Ok(last) if last <= LAST_MAX => last,
            Ok(_) | Err(_) => 0,
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) if error.kind() == io::ErrorKind::InvalidData => 0,
        Err(error) => return Err(failed("read")(error)),
    };
    let clock = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0));
    let next = clock.max(last + 1);
    // On the disk before anybody hears of it: after a power loss with a clock that was set back
    // a number given twice would pass for what recipients already know.
    write(data_dir, next).map_err(failed("write"))?;
    Ok(next)
}

/// Writes a number that is there whole or not at all, whenever the power fails, without taking room if there is a spare.
fn write(data_dir: &Path, number: u64) -> io::Result<()> {
    let spare = data_dir.join(SPARE);
    write_over(&spare, number)?;
    fs::rename(&spare, data_dir.join(FILE))?;
    sync_dir(data_dir)?;
    // Then the next start needs room for a file, as the first did.
    if let Err(error) = write_over(&spare, number) {
        tracing::debug!(%error, "no room is kept for the number of the next start");
    }
    Ok(())
}

/// Writes over what is in the file: it keeps the block that it has.
fn write_over(path: &Path, number: u64) -> io::Result<()> {
    let text = format!("{number}\n");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)?;
    file.write_all(text.as_bytes())?;
    file.set_len(text.len() as u64)?;
    file.sync_all()
}

/// Lets the next start have a higher number than this: others remember it.
///
/// # Errors
///
/// When the file cannot be written.
pub(crate) fn go_on_above(data_dir: &Path, start: u64) -> io::Result<()> {
    write(data_dir, start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_also_when_the_clock_was_set_back() {
        let dir = tempfile::tempdir().unwrap();
        let first = next(dir.path()).unwrap();
        let second = next(dir.path()).unwrap();
        assert!(second > first);
        let future = first + 1_000_000_000;
        fs::write(dir.path().join("instance"), future.to_string()).unwrap();
        assert_eq!(next(dir.path()).unwrap(), future + 1);
        go_on_above(dir.path(), future + 5).unwrap();
        assert_eq!(next(dir.path()).unwrap(), future + 6);
        for nonsense in ["\u{0}nonsense", "18446744073709551615"] {
            fs::write(dir.path().join("instance"), nonsense).unwrap();
            let next = next(dir.path()).unwrap();
            assert!(next >= first && next < LAST_MAX);
        }
    }
}
