//! A service manager that starts a holder for whoever connects, as the socket unit for workers has it.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

/// See the module.
pub(crate) struct Manager {
    listener: Arc<Socket>,
    dir: PathBuf,
    holders: Arc<Mutex<Vec<Child>>>,
}

impl Manager {
    /// Listens in this directory.
    pub(crate) fn start(dir: &Path) -> Self {
        let listener = Socket::new(Domain::UNIX, Type::SEQPACKET, None).unwrap();
        let address = SockAddr::unix(dir.join("receptor-worker.sock")).unwrap();
        listener.bind(&address).unwrap();
        listener.listen(64).unwrap();
        let listener = Arc::new(listener);
        let holders: Arc<Mutex<Vec<Child>>> = Arc::default();
        let (accepts, started) = (Arc::clone(&listener), Arc::clone(&holders));
        std::thread::spawn(move || {
            while let Ok((connection, _)) = accepts.accept() {
                let holder = Command::new(env!("CARGO_BIN_EXE_receptord"))
                    .arg("hold-plugin")
                    .env_clear()
                    .envs(std::env::vars_os().filter(|(name, _)| name == "PATH"))
                    .stdin(OwnedFd::from(connection))
                    .stdout(Stdio::null())
                    .spawn()
                    .unwrap();
                started.lock().unwrap().push(holder);
            }
        });
        Self {
            listener,
            dir: dir.to_owned(),
            holders,
        }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// How many holders were started.
    pub(crate) fn started(&self) -> usize {
        self.holders.lock().unwrap().len()
    }

    /// Waits until all holders have ended, which they do by themselves.
    pub(crate) fn wait(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        for holder in self.holders.lock().unwrap().iter_mut() {
            let status = loop {
                if let Some(status) = holder.try_wait().unwrap() {
                    break status;
                }
                assert!(Instant::now() < deadline, "a holder does not end");
                std::thread::sleep(Duration::from_millis(5));
            };
            assert!(status.success(), "a holder failed: {status}");
        }
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = self.listener.shutdown(std::net::Shutdown::Both);
        for holder in self.holders.lock().unwrap().iter_mut() {
            let _ = holder.kill();
            let _ = holder.wait();
        }
    }
}
