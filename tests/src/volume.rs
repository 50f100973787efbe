//! Small file systems of their own for daemons, to be full at will.
//!
//! Owns a mount namespace with a tmpfs in it, which goes with the process that holds it. Needs
//! root and `unshare`; [`Volume::new`] says so when they are not there. Touches no mount of the host.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::unistd::Uid;

/// A tmpfs that only processes that `enter` see.
#[derive(Debug)]
pub struct Volume {
    holder: Child,
    dir: PathBuf,
}

impl Volume {
    /// So many MiB at this directory, which is made.
    ///
    /// # Errors
    ///
    /// Why there can be none here, in words for people.
    ///
    /// # Panics
    ///
    /// When the directory cannot be made.
    pub fn new(dir: &Path, mebibytes: u32) -> Result<Self, String> {
        if !Uid::effective().is_root() {
            return Err("mount namespaces need root".to_owned());
        }
        std::fs::create_dir_all(dir).expect("a directory to mount at");
        // It lives until its stdin ends.
        let script =
            "mount -t tmpfs -o size=${1}m,mode=0700 tmpfs \"$2\" && echo mounted && read -r _";
        let mut holder = Command::new("unshare")
            .args(["-m", "sh", "-c", script, "sh", &mebibytes.to_string()])
            .arg(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("unshare (util-linux) cannot be run: {error}"))?;
        let mut line = String::new();
        if let Some(stdout) = holder.stdout.take() {
            let _ = BufReader::new(stdout).read_line(&mut line);
        }
        if line != "mounted\n" {
            let output = holder.wait_with_output();
            let text = output.map_or_else(
                |error| error.to_string(),
                |output| String::from_utf8_lossy(&output.stderr).into_owned(),
            );
            return Err(format!("no mount namespaces here: {text}"));
        }
        let dir = dir.to_owned();
        Ok(Self { holder, dir })
    }

    /// What a command begins with that sees the volume.
    pub(crate) fn enter(&self) -> Vec<String> {
        let target = self.holder.id().to_string();
        ["nsenter", "-m", "-t", &target].map(str::to_owned).to_vec()
    }

    /// The volume's root, for everybody.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        let root = format!("/proc/{}/root", self.holder.id());
        let inside = self.dir.strip_prefix("/").unwrap_or(&self.dir);
        Path::new(&root).join(inside)
    }

    /// Takes all room that is left but so many bytes; it is given back with [`Self::relieve`].
    ///
    /// # Panics
    ///
    /// When nothing can be written although there is room.
    pub fn fill(&self, but: usize) {
        let mut file = std::fs::File::create(self.path().join("filler")).expect("a file");
        let zeros = vec![0; 64 << 10];
        while file.write_all(&zeros).is_ok() {}
        let length = file.metadata().expect("a file").len();
        let but = u64::try_from(but).unwrap_or(u64::MAX);
        file.set_len(length.saturating_sub(but))
            .expect("a shorter file");
    }

    /// See [`Self::fill`].
    ///
    /// # Panics
    ///
    /// When it was not filled.
    pub fn relieve(&self) {
        std::fs::remove_file(self.path().join("filler")).expect("it was filled");
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
