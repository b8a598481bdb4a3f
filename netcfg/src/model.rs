//! The network as the kernel has it, and what each operation does to it.
//!
//! [`Observed`] is what [`crate::observe`] reads. [`Observed::simulate`] is the model of the kernel that the planner plans
//! against and that the property tests use: what an operation changes, side effects included.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use keelson_netcfg_control::MacAddr;

use crate::names;
use crate::plan::Op;
use crate::taps::TapAlias;

/// All that the planner needs to know of the kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Observed {
    pub(crate) links: Vec<Link>,
    /// IPv4 default routes of the main table.
    pub(crate) default_routes: Vec<DefaultRoute>,
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) mac: MacAddr,
    /// The address burnt into a NIC, or the present one where the kernel knows none.
    pub(crate) permanent_mac: MacAddr,
    /// Administratively up.
    pub(crate) up: bool,
    /// The lower layer has a link.
    pub(crate) carrier: bool,
    /// For the port of a bridge: the bridge lets frames through.
    pub(crate) forwarding: bool,
    pub(crate) mtu: u32,
    /// The bridge that it is a port of, by name.
    pub(crate) master: Option<String>,
    pub(crate) alias: String,
    /// The interface's IPv6 is off (or the kernel has none).
    pub(crate) ipv6_off: bool,
    /// The bridge port's VLANs; the value says whether it is the port's own (untagged both ways).
    pub(crate) vlans: BTreeMap<u16, bool>,
    pub(crate) addresses: Vec<Ipv4Net>,
}

/// What a link is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An Ethernet interface with a device behind it.
    Physical(Hardware),
    Bridge(BridgeSettings),
    /// One end of a pair; the other end's index.
    Veth(Option<u32>),
    Tap,
    Loopback,
    Other,
}

/// What is known of a NIC's hardware.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Hardware {
    pub(crate) driver: String,
    pub(crate) pci: Option<String>,
    pub(crate) speed_mbps: Option<u32>,
}

/// A bridge's settings that matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BridgeSettings {
    pub(crate) stp: bool,
    /// In hundredths of a second.
    pub(crate) forward_delay: u32,
    pub(crate) multicast_snooping: bool,
    pub(crate) vlan_filtering: bool,
    /// The VLAN that a new port gets by itself; `None` when the kernel has no VLAN filtering.
    pub(crate) default_pvid: Option<u16>,
}

/// An IPv4 default route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DefaultRoute {
    pub(crate) link: String,
    pub(crate) gateway: Ipv4Addr,
    pub(crate) metric: u32,
}

impl Link {
    /// Whether this is a physical NIC, or stands for one: in a light host the NICs are ends of veth pairs that lead outside.
    pub(crate) fn is_nic(&self) -> bool {
        match &self.kind {
            Kind::Physical(_) => true,
            Kind::Veth(_) => !self.name.starts_with("vmk") && !self.name.starts_with("vmtap"),
            _ => false,
        }
    }

    pub(crate) fn pci(&self) -> Option<&str> {
        match &self.kind {
            Kind::Physical(hardware) => hardware.pci.as_deref(),
            _ => None,
        }
    }

    /// Whether it can carry frames now.
    pub(crate) fn linked(&self) -> bool {
        self.up && self.carrier
    }

    /// Whose tap it is, when it is one that netd made.
    pub(crate) fn tap(&self) -> Option<TapAlias> {
        let ours = self.kind == Kind::Tap && names::number(&self.name, "vmtap").is_some();
        ours.then(|| TapAlias::parse(&self.alias)).flatten()
    }

    /// The bridge's settings, when it is a bridge.
    pub(crate) fn bridge(&self) -> Option<&BridgeSettings> {
        match &self.kind {
            Kind::Bridge(settings) => Some(settings),
            _ => None,
        }
    }
}

impl Observed {
    pub(crate) fn link(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|l| l.name == name)
    }

    fn link_mut(&mut self, name: &str) -> Option<&mut Link> {
        self.links.iter_mut().find(|l| l.name == name)
    }

    /// Physical NICs, in the order of their names.
    pub(crate) fn nics(&self) -> Vec<&Link> {
        let mut nics: Vec<&Link> = self.links.iter().filter(|l| l.is_nic()).collect();
        nics.sort_by_key(|l| (names::number(&l.name, "vmnic"), l.name.clone()));
        nics
    }

    pub(crate) fn nic_by_mac(&self, mac: MacAddr) -> Option<&Link> {
        self.links.iter().find(|l| l.is_nic() && l.permanent_mac == mac)
    }

    /// Whether a bridge has shown that this kernel filters VLANs; `None` while there is no bridge to look at.
    pub(crate) fn vlan_filtering(&self) -> Option<bool> {
        self.links.iter().find_map(Link::bridge).map(|b| b.default_pvid.is_some())
    }

    fn remove(&mut self, name: &str) {
        let Some(link) = self.link(name).cloned() else { return };
        let peer = match link.kind {
            Kind::Veth(peer) => peer,
            _ => None,
        };
        self.links.retain(|l| l.name != name && Some(l.index) != peer);
        for other in &mut self.links {
            if other.master.as_deref() == Some(name) {
                other.master = None;
                other.vlans.clear();
            }
        }
        let links = &self.links;
        self.default_routes.retain(|r| links.iter().any(|l| l.name == r.link));
    }

    fn add(&mut self, name: &str, kind: Kind, mac: MacAddr, mtu: u32) -> u32 {
        let index = self.links.iter().map(|l| l.index).max().unwrap_or(0) + 1;
        self.links.push(Link {
            index,
            name: name.into(),
            kind,
            mac,
            permanent_mac: mac,
            up: false,
            carrier: false,
            forwarding: true,
            mtu,
            master: None,
            alias: String::new(),
            ipv6_off: false,
            vlans: BTreeMap::new(),
            addresses: Vec::new(),
        });
        index
    }

    /// Changes this model as the kernel changes when `op` is carried out.
    pub(crate) fn simulate(&mut self, op: &Op) {
        match op {
            Op::Delete { link } => self.remove(link),
            Op::Rename { from, to } => {
                for link in &mut self.links {
                    if link.name == *from {
                        link.name.clone_from(to);
                    }
                    if link.master.as_deref() == Some(from) {
                        link.master = Some(to.clone());
                    }
                }
                for route in self.default_routes.iter_mut().filter(|r| r.link == *from) {
                    route.link.clone_from(to);
                }
            }
            Op::CreateBridge { name, mac, settings } => {
                self.add(name, Kind::Bridge(*settings), *mac, 1500);
            }
            Op::SetBridge { name, settings } => {
                if let Some(link) = self.link_mut(name) {
                    link.kind = Kind::Bridge(*settings);
                }
            }
            Op::CreateVeth { name, peer, mac } => {
                let index = self.add(name, Kind::Veth(None), *mac, 1500);
                let other = self.add(peer, Kind::Veth(Some(index)), MacAddr([2, 0, 0, 0, 0, 1]), 1500);
                if let Some(link) = self.link_mut(name) {
                    link.kind = Kind::Veth(Some(other));
                }
            }
            Op::SetMac { link, mac } => self.change(link, |l| l.mac = *mac),
            Op::SetMtu { link, mtu } => self.change(link, |l| l.mtu = *mtu),
            Op::Ipv6Off { link } => self.change(link, |l| l.ipv6_off = true),
            Op::Up { link } => self.change(link, |l| l.up = true),
            Op::Attach { port, bridge } => self.change(port, |l| {
                l.master = Some(bridge.clone());
                l.vlans.clear();
            }),
            Op::Detach { port } => self.change(port, |l| {
                l.master = None;
                l.vlans.clear();
            }),
            Op::AddVlan { port, vid, own } => self.change(port, |l| {
                if *own {
                    // A port has one VLAN of its own: the kernel takes the mark from the previous one.
                    l.vlans.values_mut().for_each(|o| *o = false);
                }
                l.vlans.insert(*vid, *own);
            }),
            Op::RemoveVlan { port, vid } => self.change(port, |l| {
                l.vlans.remove(vid);
            }),
            Op::RemoveAddress { link, address } => {
                self.change(link, |l| l.addresses.retain(|a| a != address))
            }
            Op::AddAddress { link, address } => self.change(link, |l| l.addresses.push(*address)),
            Op::RemoveDefaultRoute { route } => self.default_routes.retain(|r| r != route),
            Op::AddDefaultRoute { route } => self.default_routes.push(route.clone()),
        }
    }

    fn change(&mut self, name: &str, change: impl FnOnce(&mut Link)) {
        if let Some(link) = self.link_mut(name) {
            change(link);
        }
    }
}
