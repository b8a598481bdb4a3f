//! What netd, the network daemon, can be told, and a client for it.
//!
//! [`NetworkConfig`] is what is wanted and what `network.toml` holds; [`NetworkStatus`] is what is. A change is a whole new
//! configuration: netd validates it, plans, applies and saves it, or refuses it with the field that is wrong and changes nothing.

mod client;
mod config;
mod status;

pub use client::{Client, Error};
pub use config::{
    ConfigError, Dns, Ipv4, MacAddr, MacError, NetworkConfig, NicName, PortGroup, SCHEMA, Service, Uplinks,
    VSwitch, VmkAdapter,
};
pub use status::{
    AdapterStatus, AddressOrigin, DhcpPhase, DhcpStatus, NetworkStatus, NicStatus, Problem, SwitchStatus,
    TapStatus,
};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Where netd listens. Only root and the host agent's user are admitted.
pub const SOCKET: &str = "/run/keelson/netd.sock";

/// What netd is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// What is wanted and what is: answered by [`Answer::Network`].
    Get,
    /// Make the network so: validated, applied, saved.
    Set {
        /// The whole wanted configuration.
        config: Box<NetworkConfig>,
        /// The revision this change is based on ([`NetworkStatus::revision`]); another one is refused as [`Refusal::Stale`].
        /// `None` does not check.
        revision: Option<u64>,
    },
    /// Restart the management network: drop vmk0's address and lease, apply the configuration anew and, with DHCP, discover.
    Restart,
    /// Make a tap for a VM's adapter on a port group: answered by [`Answer::Tap`] with the descriptor, a tap opened with
    /// IFF_TAP | IFF_NO_PI | IFF_VNET_HDR, as virtio-net needs it. A tap that this VM's adapter of this
    /// number has already is replaced.
    OpenTap {
        /// Whose.
        vm: Uuid,
        /// Which of its adapters, from 0.
        index: u32,
        /// The port group.
        port_group: String,
    },
    /// Remove all taps of a VM. Those whose last descriptor is closed vanish by themselves as well.
    CloseTaps {
        /// Whose.
        vm: Uuid,
    },
    /// Turn this connection into a stream of [`Event`]s, the present state first.
    Watch,
}

/// What netd answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It is done.
    Done,
    /// What is wanted and what is.
    Network {
        /// What is wanted.
        config: Box<NetworkConfig>,
        /// What is.
        status: Box<NetworkStatus>,
    },
    /// The tap's interface name.
    Tap {
        /// Such as `vmtap0`.
        name: String,
    },
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The configuration or the status changed; this is the new one.
    Changed {
        /// What is wanted.
        config: Box<NetworkConfig>,
        /// What is.
        status: Box<NetworkStatus>,
    },
}

/// Why netd did not do what it was asked; nothing changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// The configuration is wrong.
    #[error("{0}")]
    BadConfig(ConfigError),
    /// Somebody else changed the network meanwhile.
    #[error(
        "the network was changed meanwhile (revision {now}, not {based_on}); read it again and repeat the change"
    )]
    Stale {
        /// The revision the change was based on.
        based_on: u64,
        /// The present one.
        now: u64,
    },
    /// There is no such port group.
    #[error("there is no port group `{name}`; there are: {}", .existing.join(", "))]
    NoSuchPortGroup {
        /// The name asked for.
        name: String,
        /// Those that exist.
        existing: Vec<String>,
    },
    /// The kernel lacks what the change needs.
    #[error("this host's kernel cannot do that: {0}")]
    NotSupported(String),
    /// It was tried and failed; the previous configuration is in force again.
    #[error("{what} failed: {why}")]
    Failed {
        /// Which operation.
        what: String,
        /// Why.
        why: String,
    },
    /// It is in force, but could not be saved and will be gone after a restart.
    #[error("the change is in force, but could not be saved: {0}")]
    NotSaved(String),
    /// This caller may not ask that.
    #[error("uid {0} may not ask netd for that")]
    NotPermitted(u32),
}
