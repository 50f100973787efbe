//! What a process does to one directory, written down as it happens: preloaded (`LD_PRELOAD`) into
//! a daemon, it lets a test say what a power loss would have left of the directory.
//!
//! Owns the functions of the C library that change files. Each does what it always does and, when
//! the file lies in `POWER_LOSS_ROOT`, appends a [`record::Record`] to `POWER_LOSS_LOG`,
//! both under one lock, so that the log has the true order. Only syncs differ: they reach no disk,
//! take `POWER_LOSS_SYNC_US` microseconds, and what was written before their beginning counts
//! as durable from their end on. While a file beside the log, with the extension `eio`, holds
//! `write` or `sync`, these calls fail as on a disk that breaks. Files on other paths are left alone. What is written past the C
//! library, or through a mapping, is not seen: the test compares the directory with the log and
//! would tell.
//!
//! With `POWER_LOSS_AT_KILL` set, followed or not, a process is killed right after the first signal
//! by which it stops or kills another one.
//!
//! This is the one place of the tests with `unsafe` code: it takes the place of functions of C.

#![expect(unsafe_code, reason = "functions of the C library are replaced")]
#![expect(
    missing_docs,
    clippy::missing_safety_doc,
    reason = "they are the functions of C whose names they have"
)]

pub mod record;

use std::ffi::{CStr, OsStr};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use nix::libc::{
    self, AT_FDCWD, c_char, c_int, c_long, c_uint, c_void, iovec, loff_t, mode_t, off_t, size_t,
    ssize_t,
};

use self::record::Record;

/// Descriptors that can be followed; a daemon has far fewer.
const FDS: usize = 1 << 16;

/// The file behind each descriptor, or 0 for one that is none of ours.
static FILES: [AtomicU64; FDS] = [const { AtomicU64::new(0) }; FDS];
/// Numbers of syncs.
static CALLS: AtomicU64 = AtomicU64::new(0);
/// Held while something is done and written down.
static ORDER: Mutex<()> = Mutex::new(());
static LOG: OnceLock<Option<Log>> = OnceLock::new();

struct Log {
    root: PathBuf,
    fd: c_int,
    sync_us: u64,
    /// See [`Self::fails`].
    faults: PathBuf,
}

impl Log {
    /// Where to write, or nothing when this process is not followed.
    fn get() -> Option<&'static Self> {
        LOG.get_or_init(|| {
            let root = variable(c"POWER_LOSS_ROOT")?;
            let path = variable(c"POWER_LOSS_LOG")?;
            let sync_us = variable(c"POWER_LOSS_SYNC_US")?;
            let sync_us = std::str::from_utf8(sync_us.to_bytes()).ok()?.parse().ok()?;
            let flags = libc::O_WRONLY | libc::O_APPEND | libc::O_CREAT | libc::O_CLOEXEC;
            // SAFETY: the path ends with a zero byte. Not `open`, which is ours.
            let fd =
                unsafe { libc::syscall(libc::SYS_openat, AT_FDCWD, path.as_ptr(), flags, 0o600) };
            let fd = c_int::try_from(fd).ok().filter(|fd| *fd >= 0)?;
            Some(Self {
                root: PathBuf::from(OsStr::from_bytes(root.to_bytes())),
                fd,
                sync_us,
                faults: PathBuf::from(OsStr::from_bytes(path.to_bytes())).with_extension("eio"),
            })
        })
        .as_ref()
    }

    fn write(&self, record: &Record) {
        let bytes = record.encode();
        // SAFETY: the buffer is as long as it says.
        let wrote = unsafe { libc::syscall(libc::SYS_write, self.fd, bytes.as_ptr(), bytes.len()) };
        // Without it the log says nothing any more.
        if usize::try_from(wrote) != Ok(bytes.len()) {
            std::process::abort();
        }
    }

    /// Whether a call of this sort fails now: what a file beside the log names fails with EIO for
    /// as long as it is there.
    fn fails(&self, sort: &[u8]) -> bool {
        let fails = std::fs::read(&self.faults).is_ok_and(|named| named == sort);
        if fails {
            nix::errno::Errno::set_raw(libc::EIO);
        }
        fails
    }

    /// The path below the directory, when it is there.
    fn below(&self, path: &Path) -> Option<Vec<u8>> {
        let mut clean = PathBuf::new();
        for part in path.components() {
            match part {
                Component::CurDir => {}
                Component::ParentDir => {
                    clean.pop();
                }
                part @ (Component::Prefix(_) | Component::RootDir | Component::Normal(_)) => {
                    clean.push(part);
                }
            }
        }
        let below = clean.strip_prefix(&self.root).ok()?;
        Some(below.as_os_str().as_bytes().to_vec())
    }

    /// What a path and the descriptor of its directory mean.
    unsafe fn resolve(&self, dir: c_int, path: *const c_char) -> Option<Vec<u8>> {
        // SAFETY: the caller was given a path of C.
        let path = Path::new(OsStr::from_bytes(
            unsafe { CStr::from_ptr(path) }.to_bytes(),
        ));
        if path.is_absolute() {
            return self.below(path);
        }
        let base = if dir == AT_FDCWD {
            std::env::current_dir().ok()?
        } else {
            std::fs::read_link(format!("/proc/self/fd/{dir}")).ok()?
        };
        self.below(&base.join(path))
    }
}

fn variable(name: &CStr) -> Option<&'static CStr> {
    // SAFETY: read once, before the process changes its environment, which ours never do.
    let value = unsafe { libc::getenv(name.as_ptr()) };
    // SAFETY: it ends with a zero byte and stays where it is.
    (!value.is_null()).then(|| unsafe { CStr::from_ptr(value) })
}

fn order() -> MutexGuard<'static, ()> {
    ORDER.lock().unwrap_or_else(PoisonError::into_inner)
}

fn slot(fd: c_int) -> Option<&'static AtomicU64> {
    FILES.get(usize::try_from(fd).ok()?)
}

/// The number of the file behind a descriptor, when it is one of ours.
fn followed(fd: c_int) -> Option<u64> {
    let ino = slot(fd)?.load(Ordering::Relaxed);
    (ino != 0).then_some(ino)
}

fn follow(fd: c_int, ino: u64) {
    if let Some(slot) = slot(fd) {
        slot.store(ino, Ordering::Relaxed);
    } else if ino != 0 {
        std::process::abort();
    }
}

fn fd_ino(fd: c_int) -> Option<u64> {
    // SAFETY: all zeros are a `stat`, and the call fills it.
    let (done, stat) = unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        (libc::fstat(fd, &raw mut stat), stat)
    };
    (done == 0).then_some(stat.st_ino)
}

unsafe fn path_ino(dir: c_int, path: *const c_char) -> Option<u64> {
    // SAFETY: as above; the path is the caller's.
    let (done, stat) = unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        let flags = libc::AT_SYMLINK_NOFOLLOW;
        (libc::fstatat(dir, path, &raw mut stat, flags), stat)
    };
    (done == 0).then_some(stat.st_ino)
}

/// Does a call of the kernel: -1 and `errno` when it fails.
macro_rules! kernel {
    ($number:ident $(, $argument:expr)*) => {
        // SAFETY: the arguments are those that the caller gave for the function of this name.
        unsafe { libc::syscall(libc::$number $(, $argument)*) }
    };
}

/// As small as the function says that it returns.
macro_rules! int {
    ($value:expr) => {{
        let value: c_long = $value;
        c_int::try_from(value).unwrap_or(-1)
    }};
}

unsafe fn open_at(dir: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    let log = Log::get();
    // SAFETY: the caller's path.
    let below = log.and_then(|log| Some((log, unsafe { log.resolve(dir, path) }?)));
    let Some((log, below)) = below else {
        let fd = int!(kernel!(SYS_openat, dir, path, flags, mode));
        if fd >= 0 {
            follow(fd, 0);
        }
        return fd;
    };
    let _order = order();
    // SAFETY: the caller's path.
    let before = unsafe { path_ino(dir, path) };
    let fd = int!(kernel!(SYS_openat, dir, path, flags, mode));
    if fd < 0 {
        return fd;
    }
    let ino = fd_ino(fd).unwrap_or_default();
    follow(fd, ino);
    if flags & libc::O_TMPFILE == libc::O_TMPFILE {
        log.write(&Record::Lost {
            what: [b"O_TMPFILE ", &*below].concat(),
        });
    }
    log.write(&Record::Open {
        ino,
        created: before.is_none(),
        truncated: flags & libc::O_TRUNC != 0,
        path: below,
    });
    fd
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kill(pid: libc::pid_t, signal: c_int) -> c_int {
    // SAFETY: the call takes two numbers.
    let sent = unsafe { libc::syscall(libc::SYS_kill, pid, signal) };
    let ends = matches!(signal, libc::SIGSTOP | libc::SIGKILL);
    if sent == 0 && ends && variable(c"POWER_LOSS_AT_KILL").is_some() {
        // SAFETY: the same.
        unsafe { libc::syscall(libc::SYS_kill, libc::getpid(), libc::SIGKILL) };
    }
    c_int::try_from(sent).unwrap_or(-1)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn open(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: as the caller promised for `open`; so in all others. The mode is garbage when there
    // is none, and then nobody looks at it.
    unsafe { open_at(AT_FDCWD, path, flags, mode) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn open64(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: see `open`.
    unsafe { open_at(AT_FDCWD, path, flags | libc::O_LARGEFILE, mode) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn openat(
    dir: c_int,
    path: *const c_char,
    flags: c_int,
    mode: mode_t,
) -> c_int {
    // SAFETY: see `open`.
    unsafe { open_at(dir, path, flags, mode) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn openat64(
    dir: c_int,
    path: *const c_char,
    flags: c_int,
    mode: mode_t,
) -> c_int {
    // SAFETY: see `open`.
    unsafe { open_at(dir, path, flags | libc::O_LARGEFILE, mode) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn creat(path: *const c_char, mode: mode_t) -> c_int {
    let flags = libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC;
    // SAFETY: see `open`.
    unsafe { open_at(AT_FDCWD, path, flags, mode) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn creat64(path: *const c_char, mode: mode_t) -> c_int {
    // SAFETY: see `open`.
    unsafe { creat(path, mode) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn close(fd: c_int) -> c_int {
    // Before it can be another's.
    follow(fd, 0);
    int!(kernel!(SYS_close, fd))
}

fn copied(from: c_int, to: c_int) -> c_int {
    if to >= 0 {
        follow(to, followed(from).unwrap_or_default());
    }
    to
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dup(fd: c_int) -> c_int {
    copied(fd, int!(kernel!(SYS_dup, fd)))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dup2(from: c_int, to: c_int) -> c_int {
    if from == to {
        let open = kernel!(SYS_fcntl, from, libc::F_GETFD) >= 0;
        return if open { from } else { -1 };
    }
    copied(from, int!(kernel!(SYS_dup3, from, to, 0)))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dup3(from: c_int, to: c_int, flags: c_int) -> c_int {
    copied(from, int!(kernel!(SYS_dup3, from, to, flags)))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn fcntl(fd: c_int, command: c_int, argument: *mut c_void) -> c_int {
    let done = int!(kernel!(SYS_fcntl, fd, command, argument));
    if matches!(command, libc::F_DUPFD | libc::F_DUPFD_CLOEXEC) {
        copied(fd, done);
    }
    done
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn fcntl64(fd: c_int, command: c_int, argument: *mut c_void) -> c_int {
    // SAFETY: see `open`.
    unsafe { fcntl(fd, command, argument) }
}

/// What was just written, as it stands in the file.
fn written(log: &Log, fd: c_int, ino: u64, offset: off_t, length: c_long) {
    let (Ok(mut at), Ok(end)) = (u64::try_from(offset), u64::try_from(length)) else {
        return;
    };
    let end = at + end;
    // The descriptor itself may be for writing only.
    let file = std::fs::File::open(format!("/proc/self/fd/{fd}"));
    let Ok(file) = file else {
        let what = b"a write that cannot be read back".to_vec();
        log.write(&Record::Lost { what });
        return;
    };
    let mut buffer = vec![0; 1 << 16];
    while at < end {
        let part = usize::try_from(end - at).map_or(buffer.len(), |left| left.min(buffer.len()));
        let read = std::os::unix::fs::FileExt::read_at(&file, &mut buffer[..part], at);
        let Ok(read @ 1..) = read else {
            return;
        };
        log.write(&Record::Write {
            ino,
            offset: at,
            bytes: buffer[..read].to_vec(),
        });
        at += read as u64;
    }
}

/// Where the next `write` to a descriptor goes.
fn position(fd: c_int) -> off_t {
    let flags = kernel!(SYS_fcntl, fd, libc::F_GETFL);
    let append = flags & c_long::from(libc::O_APPEND) != 0;
    let whence = if append {
        libc::SEEK_END
    } else {
        libc::SEEK_CUR
    };
    kernel!(SYS_lseek, fd, 0_i64, whence)
}

/// Does a write at the position of the descriptor.
fn streamed(fd: c_int, call: impl FnOnce() -> c_long) -> ssize_t {
    let Some((log, ino)) = Log::get().zip(followed(fd)) else {
        return ssize_t::try_from(call()).unwrap_or(-1);
    };
    let _order = order();
    let offset = position(fd);
    let done = call();
    let errno = nix::errno::Errno::last_raw();
    written(log, fd, ino, offset, done);
    nix::errno::Errno::set_raw(errno);
    ssize_t::try_from(done).unwrap_or(-1)
}

/// Does a write at an offset.
fn placed(fd: c_int, offset: off_t, call: impl FnOnce() -> c_long) -> ssize_t {
    let Some((log, ino)) = Log::get().zip(followed(fd)) else {
        return ssize_t::try_from(call()).unwrap_or(-1);
    };
    if log.fails(b"write") {
        return -1;
    }
    let _order = order();
    let done = call();
    let errno = nix::errno::Errno::last_raw();
    written(log, fd, ino, offset, done);
    nix::errno::Errno::set_raw(errno);
    ssize_t::try_from(done).unwrap_or(-1)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn write(fd: c_int, bytes: *const c_void, length: size_t) -> ssize_t {
    streamed(fd, || kernel!(SYS_write, fd, bytes, length))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn writev(fd: c_int, parts: *const iovec, count: c_int) -> ssize_t {
    streamed(fd, || kernel!(SYS_writev, fd, parts, count))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwrite(
    fd: c_int,
    bytes: *const c_void,
    length: size_t,
    offset: off_t,
) -> ssize_t {
    placed(fd, offset, || {
        kernel!(SYS_pwrite64, fd, bytes, length, offset)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwrite64(
    fd: c_int,
    bytes: *const c_void,
    length: size_t,
    offset: off_t,
) -> ssize_t {
    // SAFETY: see `open`.
    unsafe { pwrite(fd, bytes, length, offset) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwritev(
    fd: c_int,
    parts: *const iovec,
    count: c_int,
    offset: off_t,
) -> ssize_t {
    placed(fd, offset, || {
        kernel!(SYS_pwritev, fd, parts, count, offset, 0_i64)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwritev64(
    fd: c_int,
    parts: *const iovec,
    count: c_int,
    offset: off_t,
) -> ssize_t {
    // SAFETY: see `open`.
    unsafe { pwritev(fd, parts, count, offset) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendfile(
    to: c_int,
    from: c_int,
    offset: *mut off_t,
    count: size_t,
) -> ssize_t {
    streamed(to, || kernel!(SYS_sendfile, to, from, offset, count))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendfile64(
    to: c_int,
    from: c_int,
    offset: *mut off_t,
    count: size_t,
) -> ssize_t {
    // SAFETY: see `open`.
    unsafe { sendfile(to, from, offset, count) }
}

/// Does a copy into a file, at its position or at an offset of the caller's.
unsafe fn moved(to: c_int, at: *mut loff_t, call: impl FnOnce() -> c_long) -> ssize_t {
    if at.is_null() {
        streamed(to, call)
    } else {
        // SAFETY: not null, so it is a number of the caller's.
        placed(to, unsafe { *at }, call)
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn copy_file_range(
    from: c_int,
    from_at: *mut loff_t,
    to: c_int,
    to_at: *mut loff_t,
    length: size_t,
    flags: c_uint,
) -> ssize_t {
    let call = || kernel!(SYS_copy_file_range, from, from_at, to, to_at, length, flags);
    // SAFETY: the caller's offset.
    unsafe { moved(to, to_at, call) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn splice(
    from: c_int,
    from_at: *mut loff_t,
    to: c_int,
    to_at: *mut loff_t,
    length: size_t,
    flags: c_uint,
) -> ssize_t {
    let call = || kernel!(SYS_splice, from, from_at, to, to_at, length, flags);
    // SAFETY: the caller's offset.
    unsafe { moved(to, to_at, call) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ftruncate(fd: c_int, length: off_t) -> c_int {
    let Some((log, ino)) = Log::get().zip(followed(fd)) else {
        return int!(kernel!(SYS_ftruncate, fd, length));
    };
    let _order = order();
    let done = int!(kernel!(SYS_ftruncate, fd, length));
    if let (0, Ok(length)) = (done, u64::try_from(length)) {
        log.write(&Record::Truncate { ino, length });
    }
    done
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ftruncate64(fd: c_int, length: off_t) -> c_int {
    // SAFETY: see `open`.
    unsafe { ftruncate(fd, length) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn fallocate(fd: c_int, mode: c_int, from: off_t, length: off_t) -> c_int {
    let Some((log, ino)) = Log::get().zip(followed(fd)) else {
        return int!(kernel!(SYS_fallocate, fd, mode, from, length));
    };
    let _order = order();
    let done = int!(kernel!(SYS_fallocate, fd, mode, from, length));
    if done == 0 {
        let length = u64::try_from(from + length).unwrap_or_default();
        log.write(&if mode == 0 {
            Record::Allocate { ino, length }
        } else {
            let what = format!("fallocate with mode {mode}").into_bytes();
            Record::Lost { what }
        });
    }
    done
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn fallocate64(fd: c_int, mode: c_int, from: off_t, length: off_t) -> c_int {
    // SAFETY: see `open`.
    unsafe { fallocate(fd, mode, from, length) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn posix_fallocate(fd: c_int, from: off_t, length: off_t) -> c_int {
    // SAFETY: see `open`.
    match unsafe { fallocate(fd, 0, from, length) } {
        0 => 0,
        _ => nix::errno::Errno::last_raw(),
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn posix_fallocate64(fd: c_int, from: off_t, length: off_t) -> c_int {
    // SAFETY: see `open`.
    unsafe { posix_fallocate(fd, from, length) }
}

fn synced(fd: c_int, call: impl FnOnce() -> c_long) -> c_int {
    let Some((log, ino)) = Log::get().zip(followed(fd)) else {
        return int!(call());
    };
    if log.fails(b"sync") {
        return -1;
    }
    let number = CALLS.fetch_add(1, Ordering::Relaxed);
    let call = number << 32 | u64::from(std::process::id());
    let begin = order();
    log.write(&Record::SyncBegin { ino, call });
    drop(begin);
    std::thread::sleep(std::time::Duration::from_micros(log.sync_us));
    let _end = order();
    log.write(&Record::SyncEnd { ino, call });
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn fsync(fd: c_int) -> c_int {
    synced(fd, || kernel!(SYS_fsync, fd))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn fdatasync(fd: c_int) -> c_int {
    synced(fd, || kernel!(SYS_fdatasync, fd))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn renameat2(
    from_dir: c_int,
    from: *const c_char,
    to_dir: c_int,
    to: *const c_char,
    flags: c_uint,
) -> c_int {
    let call = || int!(kernel!(SYS_renameat2, from_dir, from, to_dir, to, flags));
    let Some(log) = Log::get() else {
        return call();
    };
    // SAFETY: the caller's paths.
    let (old, new) = unsafe { (log.resolve(from_dir, from), log.resolve(to_dir, to)) };
    let _order = order();
    let done = call();
    match (done, old, new) {
        (0, Some(from), to) if flags & libc::RENAME_EXCHANGE == 0 => {
            log.write(&Record::Rename {
                from,
                to: to.unwrap_or_default(),
            });
        }
        (0, None, Some(to)) => {
            let what = [b"a rename from elsewhere to ", &*to].concat();
            log.write(&Record::Lost { what });
        }
        (0, Some(from), _) => {
            let what = [b"an exchange of ", &*from].concat();
            log.write(&Record::Lost { what });
        }
        _ => {}
    }
    done
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn renameat(
    from_dir: c_int,
    from: *const c_char,
    to_dir: c_int,
    to: *const c_char,
) -> c_int {
    // SAFETY: see `open`.
    unsafe { renameat2(from_dir, from, to_dir, to, 0) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn rename(from: *const c_char, to: *const c_char) -> c_int {
    // SAFETY: see `open`.
    unsafe { renameat2(AT_FDCWD, from, AT_FDCWD, to, 0) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn linkat(
    from_dir: c_int,
    from: *const c_char,
    to_dir: c_int,
    to: *const c_char,
    flags: c_int,
) -> c_int {
    let call = || int!(kernel!(SYS_linkat, from_dir, from, to_dir, to, flags));
    // SAFETY: the caller's path.
    let below = Log::get().and_then(|log| Some((log, unsafe { log.resolve(to_dir, to) }?)));
    let Some((log, below)) = below else {
        return call();
    };
    let _order = order();
    let done = call();
    if done == 0 {
        // SAFETY: the caller's path.
        let ino = unsafe { path_ino(to_dir, to) }.unwrap_or_default();
        log.write(&Record::Link { ino, to: below });
    }
    done
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn link(from: *const c_char, to: *const c_char) -> c_int {
    // SAFETY: see `open`.
    unsafe { linkat(AT_FDCWD, from, AT_FDCWD, to, 0) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn unlinkat(dir: c_int, path: *const c_char, flags: c_int) -> c_int {
    let call = || int!(kernel!(SYS_unlinkat, dir, path, flags));
    // SAFETY: the caller's path.
    let below = Log::get().and_then(|log| Some((log, unsafe { log.resolve(dir, path) }?)));
    let Some((log, path)) = below else {
        return call();
    };
    let _order = order();
    let done = call();
    if done == 0 {
        log.write(&Record::Remove { path });
    }
    done
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn unlink(path: *const c_char) -> c_int {
    // SAFETY: see `open`.
    unsafe { unlinkat(AT_FDCWD, path, 0) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn rmdir(path: *const c_char) -> c_int {
    // SAFETY: see `open`.
    unsafe { unlinkat(AT_FDCWD, path, libc::AT_REMOVEDIR) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn mkdirat(dir: c_int, path: *const c_char, mode: mode_t) -> c_int {
    let call = || int!(kernel!(SYS_mkdirat, dir, path, mode));
    // SAFETY: the caller's path.
    let below = Log::get().and_then(|log| Some((log, unsafe { log.resolve(dir, path) }?)));
    let Some((log, below)) = below else {
        return call();
    };
    let _order = order();
    let done = call();
    if done == 0 {
        // SAFETY: the caller's path.
        let ino = unsafe { path_ino(dir, path) }.unwrap_or_default();
        log.write(&Record::MakeDir { ino, path: below });
    }
    done
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn mkdir(path: *const c_char, mode: mode_t) -> c_int {
    // SAFETY: see `open`.
    unsafe { mkdirat(AT_FDCWD, path, mode) }
}
