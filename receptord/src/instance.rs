//! Which start of this node this is.
//!
//! Owns the file `instance` in the data directory: a number that grows with every start, also
//! when the clock was set back, by which the mesh tells a restarted node from a second one of
//! the same name and its new statements from its old ones.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;
use std::time::SystemTime;

/// The number of this start: milliseconds of the wall clock, or one more than the last.
///
/// # Errors
///
/// When the file cannot be read or written. One with nonsense in it is replaced.
pub(crate) fn next(data_dir: &Path) -> io::Result<u64> {
    let path = data_dir.join("instance");
    let last = match fs::read_to_string(&path) {
        Ok(text) => text.trim().parse().unwrap_or(0),
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) if error.kind() == io::ErrorKind::InvalidData => 0,
        Err(error) => return Err(error),
    };
    let clock = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0));
    let next = clock.max(last + 1);
    let temporary = data_dir.join("instance.new");
    let mut file = File::create(&temporary)?;
    writeln!(file, "{next}")?;
    // Not synced: after a power loss the clock alone must do, and a clock that was also set
    // back only delays this node until its old statements have aged.
    drop(file);
    fs::rename(&temporary, &path)?;
    Ok(next)
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
        fs::write(dir.path().join("instance"), "\u{0}nonsense").unwrap();
        assert!(next(dir.path()).unwrap() >= first);
    }
}
