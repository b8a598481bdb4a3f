//! The lab's network: a network namespace of the calling thread's own with a bridge `lab0` that servers and light hosts plug into.
//! Nothing in it leads off the machine.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, unshare};

use crate::process::run;

/// The lab's side of the network: `lab0` has this address.
pub const LAB_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The lab network's prefix length (TEST-NET-1, RFC 5737).
pub const LAB_PREFIX: u8 = 24;

/// A private network. It lasts as long as a thread or process is in it.
#[derive(Debug)]
pub struct LabNet {
    ports: std::sync::atomic::AtomicU32,
}

impl LabNet {
    /// Moves the calling thread, and what it starts from now on, into a new network namespace with the bridge `lab0`.
    pub fn enter() -> Result<Self> {
        unshare(CloneFlags::CLONE_NEWNET)
            .context("a network namespace of our own (needs root, or `unshare -Urnm`)")?;
        let address = format!("{LAB_ADDRESS}/{LAB_PREFIX}");
        for args in [
            &["link", "set", "lo", "up"][..],
            &["link", "add", "lab0", "type", "bridge", "stp_state", "0", "forward_delay", "0"],
            &["addr", "add", &address, "dev", "lab0"],
            &["link", "set", "lab0", "up"],
        ] {
            run("ip", args)?;
        }
        Ok(Self { ports: std::sync::atomic::AtomicU32::new(0) })
    }

    /// A tap that is plugged into `lab0`; its name.
    pub fn tap(&self) -> Result<String> {
        let name = self.next("tap");
        run("ip", &["tuntap", "add", "dev", &name, "mode", "tap", "vnet_hdr"])?;
        self.plug(&name)?;
        Ok(name)
    }

    /// A cable from `lab0` into the network namespace of process `pid`, where its end is called `name`; the lab end's name.
    pub fn cable(&self, pid: i32, name: &str) -> Result<String> {
        let port = self.next("port");
        run("ip", &["link", "add", &port, "type", "veth", "peer", "name", name, "netns", &pid.to_string()])?;
        self.plug(&port)?;
        Ok(port)
    }

    fn next(&self, prefix: &str) -> String {
        format!("{prefix}{}", self.ports.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
    }

    fn plug(&self, port: &str) -> Result<()> {
        run("ip", &["link", "set", port, "master", "lab0", "up"]).map(|_| ())
    }

    /// Pulls a cable at the lab's end, or puts it back.
    pub fn set_link(&self, port: &str, up: bool) -> Result<()> {
        run("ip", &["link", "set", port, if up { "up" } else { "down" }]).map(|_| ())
    }
}
