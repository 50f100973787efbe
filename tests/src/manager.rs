//! A service manager for one daemon: what of systemd lets works outlive a restart.
//!
//! Owns a process that keeps descriptors from one start of the daemon to the next, and starts a holder for
//! each connection to the workers' socket. The daemon is started, killed and restarted as any other.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{program, wait_for};

const SCRIPT: &str = include_str!("manager.py");

/// See the module. Dropped, it is gone with all that it keeps.
#[derive(Debug)]
pub struct Manager {
    dir: PathBuf,
    child: Child,
}

impl Manager {
    /// Starts it in this directory, which it makes.
    ///
    /// # Panics
    ///
    /// When it does not start.
    #[must_use]
    pub fn start(dir: &Path) -> Self {
        fs::create_dir_all(dir).expect("a directory");
        fs::write(dir.join("manager.py"), SCRIPT).expect("a script");
        let child = Command::new("python3")
            .arg(dir.join("manager.py"))
            .arg("keep")
            .arg(dir)
            .arg(program("receptord"))
            .stdin(Stdio::null())
            .spawn()
            .expect("Python starts");
        let manager = Self {
            dir: dir.to_owned(),
            child,
        };
        wait_for("the service manager", || {
            manager.dir.join("launch").exists().then_some(())
        });
        manager
    }

    /// The configuration of a daemon that has its plugins in units.
    #[must_use]
    pub fn config(&self) -> String {
        format!(
            "[plugins]\nallow-unsafe = true\nworker-sockets = {:?}\n",
            self.dir
        )
    }

    /// What is put before the command of the daemon.
    pub(crate) fn launch(&self) -> Vec<String> {
        let script = self.dir.join("manager.py");
        [
            Path::new("python3"),
            &script,
            Path::new("launch"),
            &self.dir,
        ]
        .map(|part| part.display().to_string())
        .to_vec()
    }

    /// Has it forget what it keeps.
    ///
    /// # Panics
    ///
    /// When it is not there any more.
    pub fn forget(&self) {
        let pid = i32::try_from(self.child.id()).expect("a process id");
        kill(Pid::from_raw(pid), Signal::SIGUSR1).expect("it runs");
    }

    /// The names of what it keeps.
    ///
    /// # Panics
    ///
    /// When it cannot be asked.
    #[must_use]
    pub fn kept(&self) -> Vec<String> {
        let text = fs::read_to_string(self.dir.join("kept")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
