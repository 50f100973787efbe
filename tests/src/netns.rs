//! Hosts of their own for daemons: network namespaces around one in the middle that forwards, so
//! that packets can be dropped without anybody being told.
//!
//! Owns the namespaces and removes them at the end. Needs root and `ip`; [`Lab::new`] says so when
//! they are not there. Touches nothing of the host's own network.

use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::unistd::Uid;

/// Tells the labs of one process apart.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// A host in the middle, and others with a wire to it each.
#[derive(Debug)]
pub struct Lab {
    prefix: String,
    hosts: usize,
}

impl Lab {
    /// `hosts` hosts, each in a subnet of its own with the one in the middle.
    ///
    /// # Errors
    ///
    /// Why there can be none here, in words for people.
    ///
    /// # Panics
    ///
    /// When root cannot make them although `ip` is there.
    pub fn new(hosts: usize) -> Result<Self, String> {
        if !Uid::effective().is_root() {
            return Err("network namespaces need root".to_owned());
        }
        let tried = Command::new("ip").args(["netns", "list"]).output();
        if !tried.is_ok_and(|output| output.status.success()) {
            return Err("ip netns (iproute2) is not there".to_owned());
        }
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("receptor-{}-{number}", std::process::id());
        let lab = Self { prefix, hosts };
        if let Err(error) = try_ip(&format!("netns add {}", lab.middle())) {
            return Err(format!("no network namespaces here: {error}"));
        }
        ip(&format!("-n {} link set lo up", lab.middle()));
        for host in 0..hosts {
            let (inner, middle) = (lab.host(host), lab.middle());
            ip(&format!("netns add {inner}"));
            ip(&format!(
                "link add wire netns {inner} type veth peer name to{host} netns {middle}"
            ));
            ip(&format!(
                "-n {inner} addr add {}/24 dev wire",
                Self::address(host)
            ));
            ip(&format!(
                "-n {middle} addr add {}/24 dev to{host}",
                Self::gateway(host)
            ));
            ip(&format!("-n {inner} link set lo up"));
            ip(&format!("-n {inner} link set wire up"));
            ip(&format!("-n {middle} link set to{host} up"));
            ip(&format!(
                "-n {inner} route add default via {}",
                Self::gateway(host)
            ));
        }
        lab.forward(true);
        Ok(lab)
    }

    /// The name of the host in the middle.
    #[must_use]
    pub fn middle(&self) -> String {
        format!("{}-m", self.prefix)
    }

    /// The name of a host.
    #[must_use]
    pub fn host(&self, host: usize) -> String {
        format!("{}-{host}", self.prefix)
    }

    /// The address of a host.
    #[must_use]
    pub fn address(host: usize) -> String {
        format!("10.213.{host}.1")
    }

    /// The address of the host in the middle, on the wire of a host.
    #[must_use]
    pub fn gateway(host: usize) -> String {
        format!("10.213.{host}.2")
    }

    /// Whether packets between the outer hosts pass, or vanish.
    ///
    /// # Panics
    ///
    /// When the middle is gone.
    pub fn forward(&self, on: bool) {
        let value = if on { "1" } else { "0" };
        let script = format!("echo {value} >/proc/sys/net/ipv4/ip_forward");
        let middle = self.middle();
        ip(&format!("netns exec {middle} sh -c {script:?}"));
    }

    /// Pulls the wire of a host out, or plugs it in again.
    ///
    /// # Panics
    ///
    /// When the host is gone.
    pub fn unplug(&self, host: usize, on: bool) {
        let inner = self.host(host);
        let state = if on { "down" } else { "up" };
        ip(&format!("-n {inner} link set wire {state}"));
        if !on {
            // It went with the wire.
            let gateway = Self::gateway(host);
            ip(&format!("-n {inner} route replace default via {gateway}"));
        }
    }

    /// Makes every packet to a host vanish, whether it comes from the middle or passes it. What
    /// the host itself sends still passes.
    ///
    /// # Panics
    ///
    /// When the middle is gone.
    pub fn deafen(&self, host: usize, on: bool) {
        let verb = if on { "add" } else { "del" };
        let (middle, address) = (self.middle(), Self::address(host));
        ip(&format!("-n {middle} route {verb} blackhole {address}/32"));
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for host in 0..self.hosts {
            let _ = try_ip(&format!("netns del {}", self.host(host)));
        }
        let _ = try_ip(&format!("netns del {}", self.middle()));
    }
}

fn ip(arguments: &str) {
    if let Err(error) = try_ip(arguments) {
        panic!("ip {arguments}: {error}");
    }
}

fn try_ip(arguments: &str) -> Result<(), String> {
    let script = format!("ip {arguments}");
    let done = Command::new("sh").args(["-c", &script]).output();
    match done {
        Ok(Output { status, .. }) if status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Err(error.to_string()),
    }
}
