//! What the system does for nobody but `unsafe` code: the only module of the daemon with any.
//!
//! Owns adopting descriptors that the service manager passed, asking for the groups of a socket's
//! peer, and what the allocator keeps. Each function is safe to call whatever it is given.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd};

use nix::libc;

/// Bytes at the end of the heap that are not given back, and above which a piece of memory is mapped by
/// itself: as much as some links read into at a time, 256 KiB each.
#[cfg(target_env = "gnu")]
const KEPT: libc::c_int = 4 << 20;
/// Groups that a process can have: the system's own limit (`NGROUPS_MAX`).
const GROUPS_MAX: usize = 65_536;
/// Groups asked for at first, more than nearly everybody has.
const GROUPS_USUAL: usize = 64;

/// What the service manager passed, with the name of each; the variables are removed.
///
/// # Errors
///
/// When a second thread runs already, because then the environment cannot be changed; when
/// `LISTEN_FDS` names descriptors that are not open or `LISTEN_FDNAMES` does not fit.
#[expect(
    unsafe_code,
    reason = "the environment and raw descriptors of this process"
)]
pub(crate) fn passed_descriptors() -> io::Result<Vec<(OwnedFd, String)>> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other(
            "descriptors must be taken before any thread is started",
        ));
    }
    // SAFETY: this is the only thread, so nobody else reads or writes the environment.
    let passed = unsafe { sd_notify::listen_fds_with_names_and_unset_env() }?;
    let adopt = |(fd, name)| {
        // SAFETY: the descriptor is open, as setting close-on-exec has just shown; it
        // belongs to this process by the contract of LISTEN_PID; and the variables are
        // gone, so it is adopted only once.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        (fd, name)
    };
    Ok(passed.map(adopt).collect())
}

/// Has the allocator keep what the largest buffers leave behind. By itself it gives memory of 128 KiB back at
/// once: every read of a busy link would map, clear and unmap pages, a quarter of a router's time.
pub(crate) fn keep_buffers() {
    #[cfg(target_env = "gnu")]
    #[expect(unsafe_code, reason = "no crate wraps mallopt")]
    // SAFETY: it takes two numbers, and is asked before any other thread runs.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, KEPT);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
    }
}

/// The supplementary groups that the peer of a Unix socket had when it connected. Those it has now, as
/// in `/proc`, could be another process's.
///
/// # Errors
///
/// When this is no connected Unix socket.
#[expect(unsafe_code, reason = "no crate wraps SO_PEERGROUPS")]
pub(crate) fn peer_groups(socket: &impl AsFd) -> io::Result<Vec<u32>> {
    const EACH: usize = size_of::<libc::gid_t>();
    let mut groups: Vec<libc::gid_t> = vec![0; GROUPS_USUAL];
    loop {
        let mut bytes = libc::socklen_t::try_from(groups.len() * EACH).map_err(io::Error::other)?;
        // SAFETY: the descriptor is borrowed, and `groups` has room for as many bytes as `bytes` says.
        let result = unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut bytes,
            )
        };
        let count = usize::try_from(bytes).map_err(io::Error::other)? / EACH;
        if result == 0 {
            groups.truncate(count);
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        let more = error.raw_os_error() == Some(libc::ERANGE);
        if !more || count <= groups.len() || count > GROUPS_MAX {
            return Err(error);
        }
        groups.resize(count, 0);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn the_peer_has_the_groups_of_its_process() {
        let (here, _there) = UnixStream::pair().unwrap();
        let mut groups = peer_groups(&here).unwrap();
        let own = nix::unistd::getgroups().unwrap();
        let mut own: Vec<u32> = own.into_iter().map(nix::unistd::Gid::as_raw).collect();
        groups.sort_unstable();
        own.sort_unstable();
        assert_eq!(groups, own);
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(peer_groups(&file).is_err());
    }
}
