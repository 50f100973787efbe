//! The directory of one job, what goes into it and what comes out.
//!
//! Owns the private directory that a plugin runs in, the way of a payload to the plugin (in a line, or
//! as a file there), and the way of a result file out of it. Never follows a link that a plugin made,
//! and never reads a payload into memory that is larger than a line.
//!
//! Every payload's file goes with its SHA-256, and a result's is checked when the plugin names it: a
//! file that was not complete yet, or is another than was meant, is then noticed at once.

use std::borrow::Cow;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufReader, Read, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat, renameat};
use nix::sys::stat::{Mode, SFlag, fchmod, fstat, fstatat};
use nix::unistd::geteuid;
use receptor_proto::packet::Content;
use receptor_proto::plugin::{
    FileRef, Json, MAX_INLINE, MAX_LINE, PayloadKind, PayloadRef, is_relative_path,
};
use receptor_proto::{ErrorBody, ErrorCode};
use receptor_spool::{Sums, Verifier};
use sha2::{Digest as _, Sha256};
use tokio::task::spawn_blocking;

use super::api::JobPayload;
use super::outcome::error;

/// Largest payload of arbitrary bytes that goes into a line, in base64, in bytes: what comes in one
/// piece. A file is cheaper for both sides only above it, because it has to be made and removed
/// (on ext4 the slower the more files were removed in the last seconds).
const MAX_BASE64: u64 = receptor_proto::packet::SEGMENT_MAX as u64;
/// Room that the rest of an `execute` line may take, in bytes.
const LINE_ROOM: usize = 8 * 1024;
/// Bytes read at once when a file is checked or copied.
const CHUNK: usize = 64 * 1024;

/// Creates a job's directory. One of this name that is left from before is removed.
///
/// # Errors
/// When the data directory cannot take it.
pub(super) fn create(path: &Path) -> io::Result<()> {
    let make = || DirBuilder::new().mode(0o700).create(path);
    match make() {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::remove_dir_all(path)?;
            make()
        }
        other => other,
    }
}

/// How a payload is to reach its plugin.
#[derive(Debug, Clone)]
pub(super) struct Handover {
    /// The plugin's process runs here.
    pub dir: PathBuf,
    /// The payload's file in it, when there must be one.
    pub file_name: String,
    /// The plugin says that it reads payloads by file. To one that does not, a payload goes in the
    /// line for as long as it fits one, and by file beyond that.
    pub reads_files: bool,
    /// The work may be run again, with the payload as it was sent.
    pub may_run_again: bool,
}

impl Handover {
    /// Checks the payload against the action and brings it into the form for the plugin.
    ///
    /// # Errors
    /// `invalid-payload`, `payload-too-large`, or `internal` when the disk fails.
    pub(super) async fn prepare(
        self,
        payload: JobPayload,
        content: Content,
        kind: PayloadKind,
    ) -> Result<Option<Given>, ErrorBody> {
        if let Some(prepared) = at_once(&payload, content, kind, self.reads_files) {
            return prepared;
        }
        match payload {
            JobPayload::Inline(bytes) => self.inline(bytes, kind),
            JobPayload::File { path, size, sha256 } => {
                let prepared = spawn_blocking(move || self.file(&path, size, sha256, kind));
                prepared.await.unwrap_or_else(|e| Err(failed(&e)))
            }
        }
        .map(Some)
    }

    fn inline(&self, bytes: Bytes, kind: PayloadKind) -> Result<Given, ErrorBody> {
        if let Some(given) = in_line(&bytes, kind, self.reads_files) {
            return given;
        }
        let path = self.dir.join(&self.file_name);
        let written = new_file(&path).and_then(|mut file| file.write_all(&bytes));
        written.map_err(|e| failed(&e))?;
        Ok(self.by_file(len(&bytes), hexadecimal(&Sha256::digest(&bytes))))
    }

    fn file(
        &self,
        source: &Path,
        size: u64,
        sha256: Option<[u8; 32]>,
        kind: PayloadKind,
    ) -> Result<Given, ErrorBody> {
        let limit = if self.reads_files {
            match kind {
                PayloadKind::None | PayloadKind::File => 0,
                PayloadKind::Json | PayloadKind::Text => MAX_INLINE,
                PayloadKind::Bytes => usize::try_from(MAX_BASE64).unwrap_or(0),
            }
        } else {
            match kind {
                PayloadKind::None | PayloadKind::File => 0,
                PayloadKind::Json => MAX_LINE - LINE_ROOM,
                // Each byte can take up to six in a JSON string; base64 takes a third more.
                PayloadKind::Text => MAX_INLINE,
                PayloadKind::Bytes => (MAX_LINE - LINE_ROOM) / 4 * 3,
            }
        };
        if usize::try_from(size).is_ok_and(|size| size <= limit) {
            let bytes = fs::read(source).map_err(|e| unreadable(&e))?;
            verify(source, &mut &bytes[..], |_| ()).map_err(|e| unreadable(&e))?;
            return self.inline(bytes.into(), kind);
        }
        let sum = verified_sha256(source, sha256).map_err(|e| unreadable(&e))?;
        let open = || File::open(source).map_err(|e| failed(&e));
        match kind {
            PayloadKind::Json => check_json(open()?)?,
            PayloadKind::Text => check_text(open()?)?,
            PayloadKind::Bytes | PayloadKind::File | PayloadKind::None => {}
        }
        let path = self.dir.join(&self.file_name);
        // The file is the plugin's to change. What is stored is wanted again only by a work that may
        // be run again; to any other a second name of it can be given, which costs nothing.
        if self.may_run_again || fs::hard_link(source, &path).is_err() {
            copy(source, &path).map_err(|e| failed(&e))?;
        }
        Ok(self.by_file(size, sum))
    }

    fn by_file(&self, size: u64, sha256: String) -> Given {
        Given::File(FileRef {
            size: Some(size),
            sha256: Some(sha256),
            ..FileRef::new(&self.file_name)
        })
    }
}

/// A checked payload in the form for the plugin.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Given {
    /// JSON on one line.
    Json(Bytes),
    /// Text.
    Text(Bytes),
    /// Bytes.
    Bytes(Bytes),
    /// A file in the job's directory.
    File(FileRef),
}

impl Given {
    /// For the plugin's line.
    pub(super) fn as_payload(&self) -> PayloadRef<'_> {
        match self {
            Self::Json(bytes) => PayloadRef::Json(bytes),
            Self::Text(bytes) => PayloadRef::Text(str::from_utf8(bytes).unwrap_or_default()),
            Self::Bytes(bytes) => PayloadRef::Bytes(bytes),
            Self::File(file) => PayloadRef::File(file),
        }
    }
}

/// What became of a payload.
pub(super) type Prepared = Result<Option<Given>, ErrorBody>;

/// As [`Handover::prepare`], for what needs no file. `None` when there must be one.
pub(super) fn at_once(
    payload: &JobPayload,
    content: Content,
    kind: PayloadKind,
    reads_files: bool,
) -> Option<Prepared> {
    if kind == PayloadKind::None {
        return Some(Ok(None));
    }
    if content == Content::None && matches!(kind, PayloadKind::Json | PayloadKind::Text) {
        return Some(Err(invalid(kind, "there is none")));
    }
    match payload {
        JobPayload::Inline(bytes) => in_line(bytes, kind, reads_files).map(|given| given.map(Some)),
        JobPayload::File { .. } => None,
    }
}

/// The payload for a line; `None` when it has to go by file.
fn in_line(
    bytes: &Bytes,
    kind: PayloadKind,
    reads_files: bool,
) -> Option<Result<Given, ErrorBody>> {
    match kind {
        PayloadKind::None | PayloadKind::File => None,
        PayloadKind::Json => Some(json(bytes)),
        PayloadKind::Text => Some(text(bytes)),
        PayloadKind::Bytes => {
            (!reads_files || len(bytes) <= MAX_BASE64).then(|| Ok(Given::Bytes(bytes.clone())))
        }
    }
}

fn len(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

fn new_file(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

/// Gives a plugin a payload of its own. Where the file system can, both share their blocks until
/// one of them is changed.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let mut from = File::open(from)?;
    let copied = io::copy(&mut from, &mut new_file(to)?);
    if copied.is_err() {
        // On a full disk the others need the room at once.
        let _ = fs::remove_file(to);
    }
    copied.map(drop)
}

fn invalid(kind: PayloadKind, why: &str) -> ErrorBody {
    let what = match kind {
        PayloadKind::Json => "JSON",
        PayloadKind::Text => "UTF-8 text",
        PayloadKind::Bytes | PayloadKind::File => "bytes",
        PayloadKind::None => "no payload",
    };
    error(
        ErrorCode::InvalidPayload,
        format!("the action takes {what} as payload: {why}"),
    )
}

/// A payload that is gone was set aside, because somebody found it damaged before.
fn unreadable(error: &io::Error) -> ErrorBody {
    let kind = error.kind();
    if kind != io::ErrorKind::InvalidData && kind != io::ErrorKind::NotFound {
        return failed(error);
    }
    let text =
        "the payload was damaged on this node's disk after it had arrived, and nothing was run";
    super::outcome::error(ErrorCode::Damaged, text.to_owned())
}

fn failed(error: &dyn std::error::Error) -> ErrorBody {
    super::outcome::error(
        ErrorCode::Internal,
        format!("the payload cannot be handed over: {error}"),
    )
}

fn json(bytes: &Bytes) -> Result<Given, ErrorBody> {
    let line = Json::line(bytes).map_err(|e| invalid(PayloadKind::Json, &e.to_string()))?;
    Ok(Given::Json(match line {
        Cow::Borrowed(text) => bytes.slice_ref(text.as_bytes()),
        Cow::Owned(text) => Bytes::from(text),
    }))
}

fn text(bytes: &Bytes) -> Result<Given, ErrorBody> {
    str::from_utf8(bytes).map_err(|e| invalid(PayloadKind::Text, &e.to_string()))?;
    Ok(Given::Text(bytes.clone()))
}

/// Checks a file of any size in constant memory.
fn check_json(file: File) -> Result<(), ErrorBody> {
    let reader = BufReader::with_capacity(CHUNK, file);
    let checked: Result<serde::de::IgnoredAny, _> = serde_json::from_reader(reader);
    checked
        .map(drop)
        .map_err(|e| invalid(PayloadKind::Json, &e.to_string()))
}

/// Checks a file of any size in constant memory.
fn check_text(mut file: File) -> Result<(), ErrorBody> {
    let mut buffer = vec![0; CHUNK];
    let mut kept = 0;
    loop {
        let free = buffer.get_mut(kept..).unwrap_or_default();
        let count = file.read(free).map_err(|e| failed(&e))?;
        let read = buffer.get(..kept + count).unwrap_or_default();
        let valid = match str::from_utf8(read) {
            Ok(_) => read.len(),
            // A character may be cut by the end of the chunk, not by the end of the file.
            Err(e) if e.error_len().is_none() && count > 0 => e.valid_up_to(),
            Err(e) => return Err(invalid(PayloadKind::Text, &e.to_string())),
        };
        if count == 0 {
            return Ok(());
        }
        kept = read.len() - valid;
        buffer.copy_within(valid..valid + kept, 0);
    }
}

/// The SHA-256 of a stored payload that is what it was when it was stored, in constant memory.
fn verified_sha256(path: &Path, known: Option<[u8; 32]>) -> io::Result<String> {
    let mut file = File::open(path)?;
    if let Some(known) = known {
        verify(path, &mut file, |_| ())?;
        return Ok(hexadecimal(&known));
    }
    let mut sum = Sha256::new();
    verify(path, &mut file, |bytes| sum.update(bytes))?;
    Ok(hexadecimal(&sum.finalize()))
}

/// Compares what is read of a stored payload with the checksums beside it, and shows it.
fn verify(path: &Path, read: &mut impl Read, mut show: impl FnMut(&[u8])) -> io::Result<()> {
    let mut verifier = Verifier::beside(path)?;
    let mut buffer = vec![0; CHUNK];
    loop {
        let count = read.read(&mut buffer)?;
        let bytes = buffer.get(..count).unwrap_or_default();
        if bytes.is_empty() {
            return verifier.end();
        }
        verifier.add(bytes)?;
        show(bytes);
    }
}

/// The SHA-256 of a file, in constant memory.
fn sha256(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut sum = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hexadecimal(&sum.finalize())),
            count => sum.update(buffer.get(..count).unwrap_or_default()),
        }
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Checks a result that was moved out, when the plugin said what its sum is. One that is not right
/// is removed.
///
/// # Errors
/// When its sum is another, or it cannot be read.
pub(super) async fn check_sum(at: PathBuf, file: &FileRef) -> Result<(), FileProblem> {
    let Some(said) = file.sha256.clone() else {
        return Ok(());
    };
    let read = at.clone();
    let sum = spawn_blocking(move || sha256(&read)).await;
    let sum = sum.unwrap_or_else(|e| Err(io::Error::other(e)));
    let sum = sum.unwrap_or_else(|e| format!("unknown ({e})"));
    if sum.eq_ignore_ascii_case(&said) {
        return Ok(());
    }
    let _ = fs::remove_file(&at);
    let path = file.path.clone();
    Err(FileProblem::Sum { path, sum, said })
}

/// Makes a large result durable before the spool takes it over, whose other messages would have
/// to wait for that, and gives its checksums.
///
/// # Errors
/// When the disk fails.
pub(super) async fn sync_result(at: PathBuf) -> io::Result<Sums> {
    let synced = spawn_blocking(move || {
        let sums = Sums::of_file(&at)?;
        File::open(at)?.sync_data()?;
        Ok(sums)
    });
    let synced = synced.await;
    synced.unwrap_or_else(|e| Err(io::Error::other(e)))
}

/// Why a result file was not taken, for the plugin's author.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum FileProblem {
    /// The path is absolute or leads up.
    #[error("the file {0:?} is not a relative path below the job directory")]
    Path(String),
    /// A part of the path is a link.
    #[error("the file {0:?} is, or is reached through, a symbolic link")]
    Link(String),
    /// It is not there.
    #[error("the file {path:?} cannot be taken: {error}")]
    Io {
        /// Its path.
        path: String,
        /// Why.
        error: Errno,
    },
    /// It is a directory, a pipe, or the like.
    #[error("{0:?} is not a regular file")]
    Kind(String),
    /// Its SHA-256 is not what was said.
    #[error("the SHA-256 of the file {path:?} is {sum} and not {said}")]
    Sum {
        /// Its path.
        path: String,
        /// What it is.
        sum: String,
        /// What the plugin said.
        said: String,
    },
    /// Its size is not what was said.
    #[error("the file {path:?} has {size} bytes and not {said}")]
    Size {
        /// Its path.
        path: String,
        /// What it has.
        size: u64,
        /// What the plugin said.
        said: u64,
    },
}

/// Moves a result out of the job's directory, and returns its size. The plugin may still run and
/// change what it likes meanwhile: parts of the path are opened one by one and never through a link,
/// and what was moved is looked at again in its new place, which the plugin cannot reach.
///
/// # Errors
/// When there is no such regular file in the directory, or its size is another.
pub(super) fn take_result(dir: &Path, file: &FileRef, to: &Path) -> Result<u64, FileProblem> {
    if !is_relative_path(&file.path) {
        return Err(FileProblem::Path(file.path.clone()));
    }
    let problem = |error: Errno| {
        if error == Errno::ELOOP || error == Errno::ENOTDIR {
            return FileProblem::Link(file.path.clone());
        }
        FileProblem::Io {
            path: file.path.clone(),
            error,
        }
    };
    let (parent, name) = open_parent(dir, &file.path).map_err(problem)?;
    let before = fstatat(&parent, name, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(problem)?;
    check_kind(before.st_mode, file)?;
    renameat(&parent, name, nix::fcntl::AT_FDCWD, to).map_err(problem)?;
    match look_at(to, file) {
        Ok(size) => Ok(size),
        Err(error) => {
            // It is not wanted here, whatever it has become.
            let _ = fs::remove_file(to).or_else(|_| fs::remove_dir_all(to));
            Err(error)
        }
    }
}

/// The directory that holds the last part of the path, and that part.
fn open_parent<'a>(dir: &Path, path: &'a str) -> Result<(OwnedFd, &'a str), Errno> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut parent = open(dir, flags, Mode::empty())?;
    let mut parts = path.split('/');
    let name = parts.next_back().unwrap_or(path);
    for part in parts {
        parent = openat(&parent, part, flags, Mode::empty())?;
    }
    Ok((parent, name))
}

fn check_kind(mode: nix::libc::mode_t, file: &FileRef) -> Result<(), FileProblem> {
    match SFlag::from_bits_truncate(mode & SFlag::S_IFMT.bits()) {
        SFlag::S_IFREG => Ok(()),
        SFlag::S_IFLNK => Err(FileProblem::Link(file.path.clone())),
        _ => Err(FileProblem::Kind(file.path.clone())),
    }
}

fn look_at(to: &Path, file: &FileRef) -> Result<u64, FileProblem> {
    let problem = |error: Errno| FileProblem::Io {
        path: file.path.clone(),
        error,
    };
    // Non-blocking, because it may have become a pipe.
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let opened = open(to, flags, Mode::empty()).map_err(problem)?;
    let stat = fstat(&opened).map_err(problem)?;
    check_kind(stat.st_mode, file)?;
    if stat.st_uid == geteuid().as_raw() {
        fchmod(&opened, Mode::S_IRUSR | Mode::S_IWUSR).map_err(problem)?;
    }
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    if let Some(said) = file.size
        && said != size
    {
        return Err(FileProblem::Size {
            path: file.path.clone(),
            size,
            said,
        });
    }
    Ok(size)
}

/// Writes a result that is too large to be passed on inline.
///
/// # Errors
/// When the disk fails or is full.
pub(super) async fn write_result(to: PathBuf, bytes: Bytes) -> io::Result<(u64, Sums)> {
    let written = spawn_blocking(move || {
        new_file(&to)?.write_all(&bytes)?;
        let mut sums = Sums::default();
        sums.add(&bytes);
        Ok((len(&bytes), sums))
    });
    written.await.unwrap_or_else(|e| Err(io::Error::other(e)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt as _, symlink};

    struct Place {
        _temp: tempfile::TempDir,
        dir: PathBuf,
        to: PathBuf,
    }

    fn place() -> Place {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("job");
        create(&dir).unwrap();
        let to = temp.path().join("result");
        Place {
            dir,
            to,
            _temp: temp,
        }
    }

    fn take(place: &Place, path: &str, size: Option<u64>) -> Result<u64, FileProblem> {
        let file = FileRef {
            size,
            ..FileRef::new(path)
        };
        take_result(&place.dir, &file, &place.to)
    }

    #[test]
    fn a_result_is_moved_out() {
        let place = place();
        fs::create_dir_all(place.dir.join("out/deep")).unwrap();
        fs::write(place.dir.join("out/deep/a.zip"), b"12345").unwrap();
        assert_eq!(take(&place, "out/deep/a.zip", Some(5)), Ok(5));
        assert_eq!(fs::read(&place.to).unwrap(), b"12345");
        assert!(!place.dir.join("out/deep/a.zip").exists());
        assert_eq!(fs::metadata(&place.to).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn nothing_leads_out_of_the_directory() {
        let place = place();
        let secret = place.dir.parent().unwrap().join("secret");
        fs::write(&secret, b"secret").unwrap();
        symlink(&secret, place.dir.join("link")).unwrap();
        symlink(secret.parent().unwrap(), place.dir.join("up")).unwrap();
        symlink("elsewhere", place.dir.join("dangling")).unwrap();
        fs::create_dir(place.dir.join("dir")).unwrap();
        nix::unistd::mkfifo(&place.dir.join("pipe"), Mode::S_IRWXU).unwrap();
        for path in ["link", "up/secret", "dangling"] {
            assert_eq!(
                take(&place, path, None),
                Err(FileProblem::Link(path.to_owned()))
            );
        }
        for path in ["../secret", "/etc/passwd", "dir/../../secret", "", "."] {
            assert_eq!(
                take(&place, path, None),
                Err(FileProblem::Path(path.to_owned()))
            );
        }
        for path in ["dir", "pipe"] {
            assert_eq!(
                take(&place, path, None),
                Err(FileProblem::Kind(path.to_owned()))
            );
        }
        assert!(matches!(
            take(&place, "absent", None),
            Err(FileProblem::Io { .. })
        ));
        assert!(!place.to.exists());
        assert_eq!(fs::read(&secret).unwrap(), b"secret");
    }

    #[test]
    fn a_wrong_size_is_noticed_and_nothing_kept() {
        let place = place();
        fs::write(place.dir.join("a"), b"123").unwrap();
        let error = take(&place, "a", Some(4)).unwrap_err();
        assert!(matches!(
            error,
            FileProblem::Size {
                size: 3,
                said: 4,
                ..
            }
        ));
        assert!(!place.to.exists());
    }

    #[test]
    fn text_is_checked_across_chunks() {
        let mut file = tempfile::tempfile().unwrap();
        let mut bytes = vec![b'a'; CHUNK - 1];
        bytes.extend("éé".as_bytes());
        let check = |file: &mut File, bytes: &[u8]| {
            use std::io::Seek as _;
            file.rewind().unwrap();
            file.set_len(0).unwrap();
            file.write_all(bytes).unwrap();
            file.rewind().unwrap();
            check_text(file.try_clone().unwrap()).is_ok()
        };
        assert!(check(&mut file, &bytes));
        bytes.pop();
        assert!(!check(&mut file, &bytes));
        bytes.push(b'x');
        assert!(!check(&mut file, &bytes));
        assert!(check(&mut file, b""));
    }
}
