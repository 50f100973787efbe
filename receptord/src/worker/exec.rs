//! The last steps before a plugin: `receptord exec-plugin`.
//!
//! Owns what must happen inside the child between the daemon's spawn and the plugin's first
//! instruction: a session of its own, closed descriptors, umask, resource limits, no new
//! privileges, death with the daemon. It runs in a fresh copy of the daemon's program and not in
//! a `pre_exec` closure, because a closure makes the spawn a fork, which takes as long as the daemon
//! is large.
//!
//! ```text
//! daemon                               exec-plugin
//!  spawn, three pipes ───────────────▶ setsid, umask, close descriptors
//!    (may happen before there is a     reads stdin ……… parked: nothing else is open
//!     job: see process::Spawner)
//!  Instruction on stdin ─────────────▶ limits, chdir, exec
//!  first message on the same pipe ───▶ the plugin reads on where the instruction ended
//! ```
//!
//! Never starts a thread and never reads a byte behind its instruction.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, exit};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{close, getppid, setsid};

/// The word on the command line that makes the daemon's program this helper.
pub const WORD: &str = "exec-plugin";

/// Exit status when the plugin could not be executed, as shells have it.
const CANNOT_EXECUTE: i32 = 126;
/// Longest instruction in bytes: paths and an environment of a dozen short values.
const MAX_INSTRUCTION: usize = 256 * 1024;
/// How often an executable that is still open for writing is tried again. Installing by copying
/// leaves such a moment, and so does any other thread that forks while it writes the file.
const BUSY_TRIES: u32 = 20;
/// Pause between these tries.
const BUSY_PAUSE: Duration = Duration::from_millis(10);

/// A limit on what a process may take, as `ulimit` has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Limit {
    /// Bytes of address space.
    AddressSpace,
    /// Bytes of a core file.
    Core,
    /// Seconds of processor time.
    Cpu,
    /// Bytes of one file.
    FileSize,
    /// Open descriptors.
    OpenFiles,
    /// Processes of the user.
    Processes,
}

impl Limit {
    /// Every limit with its name in an instruction.
    const ALL: [(Self, &'static str); 6] = [
        (Self::AddressSpace, "as"),
        (Self::Core, "core"),
        (Self::Cpu, "cpu"),
        (Self::FileSize, "fsize"),
        (Self::OpenFiles, "nofile"),
        (Self::Processes, "nproc"),
    ];

    fn name(self) -> &'static str {
        Self::ALL
            .iter()
            .find(|(limit, _)| *limit == self)
            .map_or("", |(_, name)| name)
    }

    fn resource(self) -> Resource {
        match self {
            Self::AddressSpace => Resource::RLIMIT_AS,
            Self::Core => Resource::RLIMIT_CORE,
            Self::Cpu => Resource::RLIMIT_CPU,
            Self::FileSize => Resource::RLIMIT_FSIZE,
            Self::OpenFiles => Resource::RLIMIT_NOFILE,
            Self::Processes => Resource::RLIMIT_NPROC,
        }
    }
}

/// What the helper is to do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Instruction {
    /// The plugin, absolute.
    pub program: PathBuf,
    /// The working directory.
    pub dir: PathBuf,
    /// The daemon; when somebody else has become the parent, it is gone.
    pub parent: u32,
    /// Let the plugin gain privileges through set-user-id programs such as sudo.
    pub new_privileges: bool,
    /// What the plugin makes is for its group as well: the daemon runs as another user.
    pub shares_files: bool,
    /// Limits.
    pub limits: Vec<(Limit, u64)>,
    /// The whole environment.
    pub environment: Vec<(OsString, OsString)>,
}

impl Instruction {
    /// The bytes for the helper's stdin: a length, then fields that end with NUL, which no path
    /// and no variable can contain.
    pub(super) fn encode(&self) -> Vec<u8> {
        let fields = self.encode_fields();
        let len = u32::try_from(fields.len()).unwrap_or(u32::MAX);
        [&len.to_le_bytes()[..], &fields].concat()
    }

    /// The fields alone, for [`Self::decode`].
    pub(super) fn encode_fields(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut field = |key: &str, value: &OsStr| {
            out.extend_from_slice(key.as_bytes());
            out.push(b'=');
            out.extend_from_slice(value.as_bytes());
            out.push(0);
        };
        field("program", self.program.as_os_str());
        field("dir", self.dir.as_os_str());
        field("parent", self.parent.to_string().as_ref());
        if self.new_privileges {
            field("new-privileges", "1".as_ref());
        }
        if self.shares_files {
            field("shares-files", "1".as_ref());
        }
        for (limit, value) in &self.limits {
            field("limit", format!("{}={value}", limit.name()).as_ref());
        }
        for (name, value) in &self.environment {
            let mut variable = name.clone();
            variable.push("=");
            variable.push(value);
            field("env", &variable);
        }
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let mut instruction = Self::default();
        for field in bytes.split(|byte| *byte == 0).filter(|f| !f.is_empty()) {
            let (key, value) = split(field).ok_or("a field without a value")?;
            let text = || str::from_utf8(value).map_err(|_| "a field that is not text");
            match key {
                b"program" => instruction.program = os(value).into(),
                b"dir" => instruction.dir = os(value).into(),
                b"parent" => {
                    instruction.parent = text()?.parse().map_err(|_| "a bad parent")?;
                }
                b"new-privileges" => instruction.new_privileges = true,
                b"shares-files" => instruction.shares_files = true,
                b"limit" => {
                    let (name, amount) = text()?.split_once('=').ok_or("a bad limit")?;
                    let limit = Limit::ALL.iter().find(|(_, known)| *known == name);
                    let (limit, _) = limit.ok_or("an unknown limit")?;
                    let amount = amount.parse().map_err(|_| "a bad limit")?;
                    instruction.limits.push((*limit, amount));
                }
                b"env" => {
                    let (name, value) = split(value).ok_or("a variable without a value")?;
                    instruction.environment.push((os(name), os(value)));
                }
                _ => return Err("an unknown field".to_owned()),
            }
        }
        Ok(instruction)
    }
}

/// Becomes the helper, and never returns, when the command line says so. To be called first of all
/// in `main`: a helper must cost little.
pub fn intercept() {
    let mut args = std::env::args_os();
    if args.nth(1).is_none_or(|word| word != WORD) {
        return;
    }
    if let Err(error) = run() {
        // The daemon shows the plugin's stderr when there was no hello.
        let _ = writeln!(io::stderr(), "<3>receptord {WORD}: {error}");
    }
    exit(CANNOT_EXECUTE);
}

fn run() -> Result<(), String> {
    // Fails only for the leader of a process group, which a spawned process never is.
    let _ = setsid();
    // A holder takes its signals from a descriptor and has them blocked.
    let _ = SigSet::empty().thread_set_mask();
    umask(Mode::from_bits_truncate(0o077));
    close_descriptors().map_err(|e| format!("descriptors cannot be closed: {e}"))?;
    let Some(instruction) = read().map_err(|e| format!("no instruction: {e}"))? else {
        // A helper that was never needed, or whose daemon is gone.
        exit(0);
    };
    let instruction = Instruction::decode(&instruction)?;
    apply(&instruction)?;
    Err(execute(&instruction))
}

fn close_descriptors() -> io::Result<()> {
    let mut open = Vec::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        if let Ok(fd) = entry?.file_name().to_string_lossy().parse::<i32>() {
            open.push(fd);
        }
    }
    for fd in open {
        // One of them was the listing itself and is closed already.
        if fd > 2 && !matches!(close(fd), Ok(()) | Err(Errno::EBADF)) {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// The instruction; `None` when stdin ends instead. Unbuffered: what follows is the plugin's.
fn read() -> io::Result<Option<Vec<u8>>> {
    let mut stdin = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut head = [0; 4];
    if stdin.read(&mut head[..1])? == 0 {
        return Ok(None);
    }
    stdin.read_exact(&mut head[1..])?;
    let len = usize::try_from(u32::from_le_bytes(head)).unwrap_or(usize::MAX);
    if len > MAX_INSTRUCTION {
        return Err(io::Error::other("it is too long"));
    }
    let mut body = vec![0; len];
    stdin.read_exact(&mut body)?;
    Ok(Some(body))
}

fn apply(instruction: &Instruction) -> Result<(), String> {
    for (limit, amount) in &instruction.limits {
        let resource = limit.resource();
        // A limit can be lowered by everybody and raised by few: what is above the hard limit
        // becomes the hard limit.
        let set = getrlimit(resource).and_then(|(_, hard)| {
            let amount = (*amount).min(hard);
            setrlimit(resource, amount, amount)
        });
        set.map_err(|e| format!("the limit {} cannot be set: {e}", limit.name()))?;
    }
    if !instruction.new_privileges {
        prctl::set_no_new_privs().map_err(|e| format!("no_new_privs: {e}"))?;
    }
    if instruction.shares_files {
        umask(Mode::from_bits_truncate(0o007));
    }
    std::env::set_current_dir(&instruction.dir)
        .map_err(|e| format!("{}: {e}", instruction.dir.display()))?;
    // A plugin must not go on working for a daemon that is gone; if it went before this line, its
    // place has been taken.
    prctl::set_pdeathsig(Signal::SIGTERM).map_err(|e| format!("pdeathsig: {e}"))?;
    if u32::try_from(getppid().as_raw()) != Ok(instruction.parent) {
        return Err("the daemon is gone".to_owned());
    }
    Ok(())
}

/// Returns only with the reason why the plugin cannot be executed.
fn execute(instruction: &Instruction) -> String {
    let program = &instruction.program;
    let mut error = io::Error::other("was not tried");
    for _ in 0..BUSY_TRIES {
        let variables = instruction.environment.iter();
        error = Command::new(program)
            .env_clear()
            .envs(variables.map(|(name, value)| (name, value)))
            .exec();
        if error.raw_os_error() != Some(Errno::ETXTBSY as i32) {
            break;
        }
        std::thread::sleep(BUSY_PAUSE);
    }
    let hint = if error.kind() == io::ErrorKind::NotFound {
        // The file was there a moment ago, or the daemon would not have started it.
        " (or the interpreter in its first line)"
    } else if error.kind() == io::ErrorKind::PermissionDenied {
        " (is it on a file system mounted noexec?)"
    } else {
        ""
    };
    format!("cannot execute {}: {error}{hint}", program.display())
}

fn split(field: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = field.iter().position(|byte| *byte == b'=')?;
    Some((field.get(..at)?, field.get(at + 1..)?))
}

fn os(bytes: &[u8]) -> OsString {
    OsString::from_vec(bytes.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instruction_survives_the_pipe() {
        let instruction = Instruction {
            program: "/opt/a b/runner".into(),
            dir: OsString::from_vec(b"/tmp/\xff".to_vec()).into(),
            parent: 4711,
            new_privileges: true,
            shares_files: true,
            limits: vec![(Limit::OpenFiles, 1024), (Limit::Core, 0)],
            environment: vec![
                ("A".into(), "x=y".into()),
                ("EMPTY".into(), "".into()),
                ("NL".into(), "a\nb".into()),
            ],
        };
        let bytes = instruction.encode();
        assert_eq!(
            usize::try_from(u32::from_le_bytes(*bytes.first_chunk().unwrap())),
            Ok(bytes.len() - 4)
        );
        assert_eq!(Instruction::decode(&bytes[4..]), Ok(instruction));
        assert!(Instruction::decode(b"what=this\0").is_err());
        assert!(Instruction::decode(b"limit=beer=3\0").is_err());
    }
}
