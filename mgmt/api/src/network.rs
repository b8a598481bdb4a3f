//! The host's network.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// The host's network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Physical NICs.
    pub nics: Vec<Nic>,
    /// Virtual switches.
    pub vswitches: Vec<VSwitch>,
    /// Port groups.
    pub port_groups: Vec<PortGroup>,
    /// VMkernel adapters.
    pub vmkernel_adapters: Vec<VmkAdapter>,
    /// Name resolution as configured.
    pub dns: Dns,
    /// The name servers in use (configured, or from DHCP).
    pub dns_in_use: Vec<Ipv4Addr>,
    /// Whether a running VM can be moved here or away.
    pub vmotion_ready: bool,
    /// Why not: names the adapters that the service `vmotion` could be switched on for.
    pub vmotion_reason: Option<String>,
    /// What a person should know.
    pub conditions: Vec<crate::Condition>,
}

/// A physical NIC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// `vmnicN`.
    pub name: String,
    /// Its MAC address.
    pub mac: String,
    /// Its driver.
    pub driver: String,
    /// Its PCI address.
    pub pci: Option<String>,
    /// Whether it has a link.
    pub link: bool,
    /// Its speed, in Mb/s.
    pub speed_mbps: Option<u32>,
    /// The virtual switch it is an uplink of.
    pub vswitch: Option<String>,
}

/// A virtual switch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VSwitch {
    /// `vSwitchN`.
    pub name: String,
    /// The uplinks in use.
    pub uplinks: Vec<String>,
    /// Its MTU, in bytes.
    pub mtu: u32,
    /// Whether an uplink has a link.
    pub link: bool,
}

/// A port group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortGroup {
    /// Its name.
    pub name: String,
    /// The virtual switch it is on.
    pub vswitch: String,
    /// 0 (untagged) or 1 to 4094.
    pub vlan: u16,
}

/// A VMkernel adapter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmkAdapter {
    /// `vmkN`.
    pub name: String,
    /// The port group it is on.
    pub port_group: String,
    /// Its MAC address.
    pub mac: Option<String>,
    /// How it is to get its address.
    pub ipv4: Ipv4Setting,
    /// The address it has.
    pub address: Option<Address>,
    /// What it is used for.
    pub services: BTreeSet<Service>,
    /// How DHCP stands, in a few words, where it is used.
    pub dhcp: Option<String>,
}

/// The address that an adapter has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// The address with its prefix length.
    pub address: Ipv4Net,
    /// The default router.
    pub gateway: Option<Ipv4Addr>,
    /// How it came about.
    pub origin: Origin,
}

/// How an address came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// From DHCP.
    Dhcp,
    /// From the configuration.
    Static,
    /// Chosen by the host itself, since DHCP goes unanswered.
    LinkLocal,
}

/// How an adapter is to get its address: `{"mode": "dhcp"}`, `{"mode": "disabled"}` or
/// `{"mode": "static", "address": "192.0.2.10/24", "gateway": "192.0.2.1"}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "mode", rename_all = "snake_case", deny_unknown_fields)]
pub enum Ipv4Setting {
    /// It has none.
    Disabled,
    /// By DHCP.
    Dhcp,
    /// This one.
    Static {
        /// The address with its prefix length.
        address: Ipv4Net,
        /// The default router.
        #[serde(default)]
        gateway: Option<Ipv4Addr>,
    },
}

/// What a VMkernel adapter is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Service {
    /// The HTTP API.
    Management,
    /// Live migration (vMotion).
    Vmotion,
}

/// Name resolution.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dns {
    /// At most three servers; those of DHCP are used when there are none.
    #[serde(default)]
    pub servers: Vec<Ipv4Addr>,
    /// At most six search domains.
    #[serde(default)]
    pub search: Vec<String>,
}

/// A change of the host's network; what is missing stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkUpdate {
    /// Name resolution.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<Dns>,
}

/// A change of a VMkernel adapter; what is missing stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterUpdate {
    /// What it is used for (the whole set).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub services: Option<BTreeSet<Service>>,
    /// How it is to get its address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv4: Option<Ipv4Setting>,
    /// Name resolution, changed in the same step: a new network often has new name servers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<Dns>,
}
