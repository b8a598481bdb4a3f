//! From what is wanted and what is observed to the operations that lead from one to the other. Pure: no clock, no kernel.
//!
//! Invariants, which the property tests keep: carrying a plan out makes the next plan empty; what matches already is not
//! touched; of links only those are deleted that are named as ours (`vSwitchN`, `vmkN`, `vmkNp`), or whose name we need; only
//! physical NICs are renamed, or whoever occupies a NIC's name.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use keelson_netcfg_control::MacAddr;

use crate::model::{BridgeSettings, DefaultRoute, Kind, Link, Observed};
use crate::names;
use crate::wanted::Wanted;

/// One change of the kernel's state. It prints as the sentence that a log or an error shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Op {
    Delete {
        link: String,
    },
    Rename {
        from: String,
        to: String,
    },
    CreateBridge {
        name: String,
        mac: MacAddr,
        settings: BridgeSettings,
    },
    SetBridge {
        name: String,
        settings: BridgeSettings,
    },
    CreateVeth {
        name: String,
        peer: String,
        mac: MacAddr,
    },
    SetMac {
        link: String,
        mac: MacAddr,
    },
    SetMtu {
        link: String,
        mtu: u32,
    },
    Ipv6Off {
        link: String,
    },
    Up {
        link: String,
    },
    Attach {
        port: String,
        bridge: String,
    },
    Detach {
        port: String,
    },
    /// `own`: untagged frames that come in belong to it, and its frames leave untagged.
    AddVlan {
        port: String,
        vid: u16,
        own: bool,
    },
    RemoveVlan {
        port: String,
        vid: u16,
    },
    RemoveAddress {
        link: String,
        address: Ipv4Net,
    },
    AddAddress {
        link: String,
        address: Ipv4Net,
    },
    RemoveDefaultRoute {
        route: DefaultRoute,
    },
    AddDefaultRoute {
        route: DefaultRoute,
    },
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Delete { link } => write!(f, "delete {link}"),
            Self::Rename { from, to } => write!(f, "rename {from} to {to}"),
            Self::CreateBridge { name, mac, .. } => write!(f, "create the bridge {name} ({mac})"),
            Self::SetBridge { name, .. } => write!(f, "correct the settings of the bridge {name}"),
            Self::CreateVeth { name, peer, mac } => write!(f, "create the pair {name} ({mac}) and {peer}"),
            Self::SetMac { link, mac } => write!(f, "give {link} the MAC address {mac}"),
            Self::SetMtu { link, mtu } => write!(f, "give {link} an MTU of {mtu} bytes"),
            Self::Ipv6Off { link } => write!(f, "switch IPv6 off on {link}"),
            Self::Up { link } => write!(f, "bring {link} up"),
            Self::Attach { port, bridge } => write!(f, "attach {port} to {bridge}"),
            Self::Detach { port } => write!(f, "detach {port} from its bridge"),
            Self::AddVlan { port, vid, own: true } => write!(f, "put {port} into VLAN {vid}"),
            Self::AddVlan { port, vid, own: false } => write!(f, "let VLAN {vid} pass {port} with its tag"),
            Self::RemoveVlan { port, vid } => write!(f, "take {port} out of VLAN {vid}"),
            Self::RemoveAddress { link, address } => write!(f, "remove {address} from {link}"),
            Self::AddAddress { link, address } => write!(f, "add {address} to {link}"),
            Self::RemoveDefaultRoute { route } => {
                write!(f, "remove the default route by {} on {}", route.gateway, route.link)
            }
            Self::AddDefaultRoute { route } => {
                write!(f, "add a default route by {} on {}", route.gateway, route.link)
            }
        }
    }
}

/// The operations that make `observed` what is wanted, in order.
pub(crate) fn plan(wanted: &Wanted, observed: &Observed) -> Vec<Op> {
    let mut planner = Planner { kernel: observed.clone(), ops: Vec::new() };
    planner.nics_up(wanted);
    planner.up("lo");
    planner.remove_unwanted(wanted);
    for switch in &wanted.switches {
        planner.switch(&switch.name, switch.mac, switch.mtu, wanted.vlan_filtering);
    }
    planner.nics(wanted);
    for adapter in &wanted.adapters {
        let peer = names::peer_of(&adapter.name);
        match planner.kernel.link(&adapter.name).map(|l| l.mac) {
            None => planner.push(Op::CreateVeth {
                name: adapter.name.clone(),
                peer: peer.clone(),
                mac: adapter.mac,
            }),
            Some(mac) if mac != adapter.mac => {
                planner.push(Op::SetMac { link: adapter.name.clone(), mac: adapter.mac })
            }
            Some(_) => {}
        }
        let own = BTreeMap::from([(adapter.vid, true)]);
        planner.port(&peer, &adapter.switch, adapter.mtu, wanted.vlan_filtering.then_some(&own));
        planner.prepare(&adapter.name, Some(adapter.mtu));
    }
    for tap in &wanted.taps {
        let own = BTreeMap::from([(tap.vid, true)]);
        planner.port(&tap.name, &tap.switch, tap.mtu, wanted.vlan_filtering.then_some(&own));
    }
    planner.addresses(wanted);
    planner.ops
}

/// The first of them, which need not wait for anything: a link takes up to seconds to come up, and the kernel tells of it at most
/// once a second unless it is the first to change.
pub(crate) fn nics_up(wanted: &Wanted, observed: &Observed) -> Vec<Op> {
    let mut planner = Planner { kernel: observed.clone(), ops: Vec::new() };
    planner.nics_up(wanted);
    planner.ops
}

/// Plans against a model that each planned operation has already changed.
struct Planner {
    kernel: Observed,
    ops: Vec<Op>,
}

impl Planner {
    fn push(&mut self, op: Op) {
        self.kernel.simulate(&op);
        self.ops.push(op);
    }

    fn up(&mut self, name: &str) {
        if self.kernel.link(name).is_some_and(|l| !l.up) {
            self.push(Op::Up { link: name.into() });
        }
    }

    /// Each NIC has its name and is up, used or not, so that its link can be seen. First of all: one that has a name of ours by
    /// chance is renamed, not in the way.
    fn nics_up(&mut self, wanted: &Wanted) {
        self.name_nics(wanted);
        let names: Vec<String> = self.kernel.nics().iter().map(|l| l.name.clone()).collect();
        for name in names {
            self.prepare(&name, None);
        }
    }

    /// MTU, IPv6 off, up: what every link of ours needs, in the order that leaves no moment with an address of its own making.
    fn prepare(&mut self, name: &str, mtu: Option<u32>) {
        let Some(link) = self.kernel.link(name) else { return };
        let (ipv6_off, other_mtu) = (link.ipv6_off, mtu.filter(|m| *m != link.mtu));
        if !ipv6_off {
            self.push(Op::Ipv6Off { link: name.into() });
        }
        if let Some(mtu) = other_mtu {
            self.push(Op::SetMtu { link: name.into(), mtu });
        }
        self.up(name);
    }

    fn remove_unwanted(&mut self, wanted: &Wanted) {
        let adapter = |name: &str| wanted.adapters.iter().any(|a| a.name == name);
        let switch = |name: &str| wanted.switches.iter().any(|s| s.name == name);
        let paired = |kernel: &Observed, link: &Link| {
            let peer = kernel.link(&names::peer_of(&link.name));
            matches!((&link.kind, peer), (Kind::Veth(Some(i)), Some(peer)) if peer.index == *i)
        };
        let kernel = self.kernel.clone();
        let unwanted = |link: &&Link| {
            if link.is_nic() {
                return false;
            }
            if names::number(&link.name, "vmk").is_some() {
                // A vmkN that is no pair of ours has a name that we need.
                return !adapter(&link.name) || !paired(&kernel, link);
            }
            if names::number(&link.name, "vSwitch").is_some() {
                let is_bridge = matches!(link.kind, Kind::Bridge(_));
                return if switch(&link.name) { !is_bridge } else { is_bridge };
            }
            let end = link.name.strip_suffix('p').filter(|n| names::number(n, "vmk").is_some());
            end.is_some_and(|n| !kernel.link(n).is_some_and(|l| paired(&kernel, l)))
        };
        for link in kernel.links.iter().filter(unwanted) {
            if self.kernel.link(&link.name).is_some() {
                self.push(Op::Delete { link: link.name.clone() });
            }
        }
    }

    fn name_nics(&mut self, wanted: &Wanted) {
        for nic in &wanted.nics {
            let Some(link) = self.kernel.nic_by_mac(nic.mac) else { continue };
            let from = link.name.clone();
            if from == nic.name {
                continue;
            }
            if self.kernel.link(&nic.name).is_some() {
                let taken: Vec<String> = self.kernel.links.iter().map(|l| l.name.clone()).collect();
                let to = names::first_free("nicswap", taken.iter().map(String::as_str));
                self.push(Op::Rename { from: nic.name.clone(), to });
            }
            self.push(Op::Rename { from, to: nic.name.clone() });
        }
    }

    fn switch(&mut self, name: &str, mac: MacAddr, mtu: u32, vlan_filtering: bool) {
        let settings = BridgeSettings {
            stp: false,
            forward_delay: 0,
            multicast_snooping: false,
            vlan_filtering,
            default_pvid: vlan_filtering.then_some(0),
        };
        match self.kernel.link(name).map(|l| l.bridge().copied()) {
            None => self.push(Op::CreateBridge { name: name.into(), mac, settings }),
            Some(Some(present)) => {
                // A kernel that can filter shows a default VLAN even where filtering is off; it only counts where it is on.
                let same = BridgeSettings {
                    default_pvid: present.default_pvid.filter(|_| vlan_filtering),
                    ..present
                };
                if same != settings {
                    self.push(Op::SetBridge { name: name.into(), settings });
                }
            }
            Some(None) => {}
        }
        self.prepare(name, Some(mtu));
    }

    fn nics(&mut self, wanted: &Wanted) {
        let nics: Vec<String> = self.kernel.nics().iter().map(|l| l.name.clone()).collect();
        for name in nics {
            let switch = wanted.switches.iter().find(|s| s.uplinks.contains(&name));
            match switch {
                Some(switch) => {
                    let mut vlans: BTreeMap<u16, bool> =
                        switch.tagged.iter().map(|vid| (*vid, false)).collect();
                    vlans.insert(switch.native, true);
                    self.port(&name, &switch.name, switch.mtu, wanted.vlan_filtering.then_some(&vlans));
                }
                None => {
                    let master = self.kernel.link(&name).and_then(|l| l.master.clone());
                    if master.is_some_and(|m| wanted.switches.iter().any(|s| s.name == m)) {
                        self.push(Op::Detach { port: name.clone() });
                    }
                }
            }
        }
    }

    /// A port of a switch: attached, in its VLANs, up.
    fn port(&mut self, name: &str, bridge: &str, mtu: u32, vlans: Option<&BTreeMap<u16, bool>>) {
        let Some(link) = self.kernel.link(name) else { return };
        let attached = link.master.as_deref() == Some(bridge);
        if !link.ipv6_off {
            self.push(Op::Ipv6Off { link: name.into() });
        }
        if !attached {
            self.push(Op::Attach { port: name.into(), bridge: bridge.into() });
        }
        if let Some(vlans) = vlans {
            self.vlans(name, vlans);
        }
        self.prepare(name, Some(mtu));
    }

    fn vlans(&mut self, port: &str, wanted: &BTreeMap<u16, bool>) {
        let present = self.kernel.link(port).map(|l| l.vlans.clone()).unwrap_or_default();
        for (vid, own) in wanted {
            if present.get(vid) != Some(own) {
                self.push(Op::AddVlan { port: port.into(), vid: *vid, own: *own });
            }
        }
        for vid in present.keys().filter(|vid| !wanted.contains_key(vid)) {
            self.push(Op::RemoveVlan { port: port.into(), vid: *vid });
        }
    }

    fn addresses(&mut self, wanted: &Wanted) {
        let route =
            |link: &str, gateway: Ipv4Addr, metric: u32| DefaultRoute { link: link.into(), gateway, metric };
        for adapter in &wanted.adapters {
            let name = &adapter.name;
            let wanted_route = adapter.gateway.map(|g| route(name, g, adapter.metric));
            let stale = |r: &&DefaultRoute| r.link == *name && Some(*r) != wanted_route.as_ref();
            for route in self.kernel.default_routes.iter().filter(stale).cloned().collect::<Vec<_>>() {
                self.push(Op::RemoveDefaultRoute { route });
            }
            let present = self.kernel.link(name).map(|l| l.addresses.clone()).unwrap_or_default();
            // First out, then in: removing the first address of a network takes the others of that network along.
            for address in present.iter().filter(|a| Some(**a) != adapter.address) {
                self.push(Op::RemoveAddress { link: name.clone(), address: *address });
            }
            if let Some(address) = adapter.address.filter(|a| !present.contains(a)) {
                self.push(Op::AddAddress { link: name.clone(), address });
            }
            if let Some(route) = wanted_route.filter(|r| !self.kernel.default_routes.contains(r)) {
                self.push(Op::AddDefaultRoute { route });
            }
        }
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
