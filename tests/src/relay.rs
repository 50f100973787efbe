//! A wire between two daemons that can be cut.
//!
//! Owns one listener on loopback and carries bytes between whoever connects and one address.
//! Knows nothing of what it carries.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// See the module. Ends when dropped.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    ends: AtomicBool,
    /// Bytes carried so far, there and back.
    carried: [AtomicU64; 2],
    /// What was carried, of each direction, when somebody listens in.
    heard: [Mutex<Vec<u8>>; 2],
    listens: AtomicBool,
    streams: Mutex<Vec<TcpStream>>,
    target: Mutex<String>,
    blocked: AtomicBool,
    frozen: Mutex<bool>,
    thawed: Condvar,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Default for Relay {
    fn default() -> Self {
        Self::new()
    }
}

impl Relay {
    /// Leads to this address of loopback, once somebody listens there.
    ///
    /// # Panics
    ///
    /// When there is no port.
    #[must_use]
    pub fn to(target: &str) -> Self {
        let relay = Self::new();
        relay.leads_to(target);
        relay
    }

    /// Leads nowhere yet.
    ///
    /// # Panics
    ///
    /// When there is no port.
    #[must_use]
    pub fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("a bound socket");
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let accepting = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if theirs.ends.load(Ordering::Relaxed) {
                    return;
                }
                if theirs.blocked.load(Ordering::Relaxed) {
                    continue;
                }
                let target = lock(&theirs.target).clone();
                if let (Ok(near), Ok(far)) = (stream, TcpStream::connect(&target)) {
                    theirs.carry(&near, &far);
                }
            }
        });
        Self {
            address,
            shared,
            accepting: Some(accepting),
        }
    }

    /// Where to dial, as a URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("rnp://{}", self.address)
    }

    /// Bytes carried so far: from those who dialled, and to them.
    #[must_use]
    pub fn carried(&self) -> (u64, u64) {
        let [there, back] = &self.shared.carried;
        (there.load(Ordering::Relaxed), back.load(Ordering::Relaxed))
    }

    /// From now on everything that is carried is remembered.
    pub fn listen_in(&self) {
        self.shared.listens.store(true, Ordering::Relaxed);
    }

    /// What was carried since then: from those who dialled, and to them.
    #[must_use]
    pub fn heard(&self) -> [Vec<u8>; 2] {
        self.shared
            .heard
            .each_ref()
            .map(|heard| lock(heard).clone())
    }

    /// Leads to this address of loopback from now on.
    pub fn leads_to(&self, target: &str) {
        target.clone_into(&mut lock(&self.shared.target));
    }

    /// Whether every new connection ends at once.
    pub fn block(&self, on: bool) {
        self.shared.blocked.store(on, Ordering::Relaxed);
    }

    /// Whether nothing arrives, and nobody is told so.
    pub fn freeze(&self, on: bool) {
        *lock(&self.shared.frozen) = on;
        self.shared.thawed.notify_all();
    }

    /// Ends every connection. New ones are carried again.
    pub fn cut(&self) {
        for stream in self.shared.take() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::Relaxed);
        self.freeze(false);
        self.cut();
        // Whoever accepts looks up.
        let _ = TcpStream::connect(self.address);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
        self.cut();
    }
}

impl Shared {
    fn take(&self) -> Vec<TcpStream> {
        std::mem::take(&mut *lock(&self.streams))
    }

    fn wait_thawed(&self) {
        let frozen = lock(&self.frozen);
        drop(self.thawed.wait_while(frozen, |frozen| *frozen));
    }

    /// Copies in both directions until either end closes.
    fn carry(self: &Arc<Self>, near: &TcpStream, far: &TcpStream) {
        let mut streams = lock(&self.streams);
        for (way, from, to) in [(0, near, far), (1, far, near)] {
            let (Ok(mut from), Ok(mut to), Ok(kept)) =
                (from.try_clone(), to.try_clone(), from.try_clone())
            else {
                return;
            };
            streams.push(kept);
            let shared = Arc::clone(self);
            std::thread::spawn(move || {
                let mut buffer = [0; 65536];
                while let Ok(length @ 1..) = from.read(&mut buffer) {
                    shared.wait_thawed();
                    shared.carried[way].fetch_add(length as u64, Ordering::Relaxed);
                    if shared.listens.load(Ordering::Relaxed) {
                        lock(&shared.heard[way]).extend_from_slice(&buffer[..length]);
                    }
                    if to.write_all(&buffer[..length]).is_err() {
                        break;
                    }
                }
                let _ = to.shutdown(Shutdown::Both);
                let _ = from.shutdown(Shutdown::Both);
            });
        }
    }
}
