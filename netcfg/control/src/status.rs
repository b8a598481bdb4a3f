//! The network as it is.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::MacAddr;

/// The network as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkStatus {
    /// Counts the changes of the wanted configuration, within one life of netd.
    pub revision: u64,
    /// Physical NICs, in name order.
    pub nics: Vec<NicStatus>,
    /// Virtual switches.
    pub vswitches: Vec<SwitchStatus>,
    /// VMkernel adapters.
    pub vmkernel_adapters: Vec<AdapterStatus>,
    /// Taps of VMs.
    pub taps: Vec<TapStatus>,
    /// The name servers in use.
    pub dns_servers: Vec<Ipv4Addr>,
    /// The search domains in use.
    pub dns_search: Vec<String>,
    /// The host name that a DHCP server offered.
    pub offered_hostname: Option<String>,
    /// What a person should know: no NIC, no link, no DHCP answer, …
    pub problems: Vec<Problem>,
}

/// A physical NIC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicStatus {
    /// `vmnicN`.
    pub name: String,
    /// Its permanent MAC address.
    pub mac: MacAddr,
    /// Its driver, such as `e1000e`; empty when the kernel does not say.
    pub driver: String,
    /// Its PCI address, such as `0000:00:03.0`; `None` when it has none.
    pub pci: Option<String>,
    /// Whether it has a link.
    pub link: bool,
    /// Its speed in Mb/s, when it has a link and says so.
    pub speed_mbps: Option<u32>,
    /// The virtual switch it is an uplink of.
    pub vswitch: Option<String>,
}

/// A virtual switch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwitchStatus {
    /// `vSwitchN`.
    pub name: String,
    /// The uplinks in use.
    pub uplinks: Vec<String>,
    /// Its MTU, in bytes.
    pub mtu: u32,
    /// Whether an uplink has a link.
    pub link: bool,
}

/// A VMkernel adapter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdapterStatus {
    /// `vmkN`.
    pub name: String,
    /// Its interface index, once it exists.
    pub ifindex: Option<u32>,
    /// Its MAC address.
    pub mac: Option<MacAddr>,
    /// Its IPv4 addresses, the one to use first. (While DHCP goes unanswered that is a link-local one, RFC 3927.)
    pub addresses: Vec<Ipv4Net>,
    /// How the first came about.
    pub origin: AddressOrigin,
    /// The default router.
    pub gateway: Option<Ipv4Addr>,
    /// How DHCP stands, where it is used.
    pub dhcp: Option<DhcpStatus>,
}

/// How an address came about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AddressOrigin {
    /// There is none.
    #[default]
    None,
    /// From a DHCP lease.
    Dhcp,
    /// From the configuration.
    Static,
    /// Chosen by the host itself (RFC 3927), since DHCP goes unanswered.
    LinkLocal,
}

/// How DHCP stands (states of RFC 2131, 4.4).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DhcpStatus {
    /// The client's state.
    pub phase: DhcpPhase,
    /// The server that gave the lease.
    pub server: Option<Ipv4Addr>,
    /// What is left of the lease, in seconds; `None` without one, or when it never ends.
    pub lease_left_s: Option<u64>,
    /// How many requests in a row went unanswered.
    pub unanswered: u32,
    /// The last thing that went wrong (a NAK, an address in use), in one sentence.
    pub last_error: Option<String>,
}

/// A DHCP client's state (RFC 2131, figure 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DhcpPhase {
    /// Waiting for a link, or about to begin.
    Init,
    /// Asking for offers.
    Selecting,
    /// Asking for the offered address.
    Requesting,
    /// It has a lease.
    Bound,
    /// Asking its server for more time (after T1).
    Renewing,
    /// Asking any server for more time (after T2).
    Rebinding,
}

/// A VM's tap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TapStatus {
    /// `vmtapN`.
    pub name: String,
    /// Whose.
    pub vm: Uuid,
    /// Which of the VM's adapters.
    pub index: u32,
    /// On which port group.
    pub port_group: String,
}

/// Something that a person should know, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// A stable name for programs, such as `no-nic`, `no-link`, `dhcp-unanswered`.
    pub code: String,
    /// What is wrong, on what, why.
    pub message: String,
    /// What to do.
    pub remedy: String,
}
