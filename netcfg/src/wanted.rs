//! From a configuration to what the kernel must have: names, uplinks and MAC addresses picked, port groups turned into VLANs.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use keelson_netcfg_control::{Ipv4, MacAddr, NetworkConfig, NicName, Uplinks};

use crate::model::{Kind, Observed};
use crate::names;

/// What the kernel must have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Whether switches filter VLANs.
    pub(crate) vlan_filtering: bool,
    pub(crate) nics: Vec<NicName>,
    pub(crate) switches: Vec<WantedSwitch>,
    pub(crate) adapters: Vec<WantedAdapter>,
    pub(crate) taps: Vec<WantedTap>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WantedSwitch {
    pub(crate) name: String,
    pub(crate) mac: MacAddr,
    pub(crate) mtu: u32,
    pub(crate) uplinks: Vec<String>,
    /// The VLAN number by which the bridge knows untagged traffic.
    pub(crate) native: u16,
    /// The VLANs that leave by the uplinks with a tag.
    pub(crate) tagged: BTreeSet<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WantedAdapter {
    pub(crate) name: String,
    pub(crate) mac: MacAddr,
    pub(crate) mtu: u32,
    pub(crate) switch: String,
    pub(crate) vid: u16,
    pub(crate) address: Option<Ipv4Net>,
    pub(crate) gateway: Option<Ipv4Addr>,
    /// Of its default route: the lower wins.
    pub(crate) metric: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WantedTap {
    pub(crate) name: String,
    pub(crate) mtu: u32,
    pub(crate) switch: String,
    pub(crate) vid: u16,
}

/// An address that DHCP or RFC 3927 gave an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Dynamic {
    pub(crate) address: Ipv4Net,
    pub(crate) gateway: Option<Ipv4Addr>,
}

/// Names the NICs, picks the uplink of each switch that takes the first linked one, and gives adapters their MAC addresses.
/// `settled` says that links have had time to come up: before, only a link that no earlier-named NIC could still overtake counts.
/// Returns whether the configuration changed. `fallback` is the address to derive from while the host has no NIC.
pub(crate) fn settle(config: &mut NetworkConfig, observed: &Observed, settled: bool) -> bool {
    let before = config.clone();
    let nics = observed.nics();
    config.nics = names::name_nics(&config.nics, &nics);
    let name_of = |mac: MacAddr| config.nics.iter().find(|n| n.mac == mac).map(|n| n.name.clone());
    let mut used: BTreeSet<String> = BTreeSet::new();
    for switch in &config.vswitches {
        if let Uplinks::Nics(names) = &switch.uplinks {
            used.extend(names.iter().cloned());
        }
    }
    let mut candidates: Vec<(String, bool, Option<&str>)> = nics
        .iter()
        .filter_map(|l| Some((name_of(l.permanent_mac)?, l.linked(), l.master.as_deref())))
        .collect();
    candidates.sort_by_key(|(name, ..)| names::number(name, "vmnic"));
    for switch in config.vswitches.iter_mut().filter(|s| s.uplinks == Uplinks::FirstLinked) {
        let mut free = candidates.iter().filter(|(name, ..)| !used.contains(name));
        // What a previous netd picked stays, linked or not.
        let kept = free.clone().find(|(_, _, master)| *master == Some(switch.name.as_str()));
        let picked = kept.or_else(|| match settled {
            true => free.find(|(_, linked, _)| *linked),
            false => free.next().filter(|(_, linked, _)| *linked),
        });
        if let Some((name, ..)) = picked {
            switch.uplinks = Uplinks::Nics(vec![name.clone()]);
            used.insert(name.clone());
        }
    }
    if let Some(base) = base_mac(config, observed) {
        for adapter in config.vmkernel_adapters.iter_mut().filter(|a| a.mac.is_none()) {
            adapter.mac = Some(names::derived_mac(base, names::number(&adapter.name, "vmk").unwrap_or(0)));
        }
    }
    *config != before
}

/// The NIC's MAC address that others are derived from: that of the first uplink, else of the first NIC; only a present one.
fn base_mac(config: &NetworkConfig, observed: &Observed) -> Option<MacAddr> {
    let uplinks = config.vswitches.iter().filter_map(|s| match &s.uplinks {
        Uplinks::Nics(nics) => nics.first(),
        Uplinks::FirstLinked => None,
    });
    let present = |mac: &MacAddr| observed.nic_by_mac(*mac).is_some();
    let mac = |name: &String| config.nics.iter().find(|n| n.name == *name).map(|n| n.mac).filter(present);
    uplinks.filter_map(mac).next().or_else(|| config.nics.iter().map(|n| n.mac).find(present))
}

/// The VLAN number for untagged traffic within a switch's bridge: one that none of its port groups uses on the wire.
fn native_vid(tagged: &BTreeSet<u16>) -> u16 {
    std::iter::once(1).chain((2..=4094).rev()).find(|vid| !tagged.contains(vid)).unwrap_or(1)
}

/// The whole of what the kernel must have. `fallback` stands for a NIC's MAC address while the host has none.
pub(crate) fn wanted(
    config: &NetworkConfig,
    dynamic: &BTreeMap<String, Dynamic>,
    observed: &Observed,
    vlan_filtering: bool,
    fallback: MacAddr,
) -> Wanted {
    let base = base_mac(config, observed).unwrap_or(fallback);
    let switches: Vec<WantedSwitch> = config
        .vswitches
        .iter()
        .map(|switch| {
            let on_wire = config.port_groups.iter().filter(|g| g.vswitch == switch.name && g.vlan != 0);
            let tagged: BTreeSet<u16> = on_wire.map(|g| g.vlan).collect();
            let number = names::number(&switch.name, "vSwitch").unwrap_or(0);
            // A switch's own address never changes while it lives: guests' neighbours would see it flap.
            let mac =
                observed.link(&switch.name).filter(|l| matches!(l.kind, Kind::Bridge(_))).map(|l| l.mac);
            WantedSwitch {
                name: switch.name.clone(),
                mac: mac.unwrap_or_else(|| names::derived_mac(base, names::SWITCH_MACS + number)),
                mtu: switch.mtu,
                uplinks: match &switch.uplinks {
                    Uplinks::Nics(nics) => nics.clone(),
                    Uplinks::FirstLinked => Vec::new(),
                },
                native: native_vid(&tagged),
                tagged,
            }
        })
        .collect();
    let place = |port_group: &str| {
        let group = config.port_groups.iter().find(|g| g.name == port_group)?;
        let switch = switches.iter().find(|s| s.name == group.vswitch)?;
        Some((switch, if group.vlan == 0 { switch.native } else { group.vlan }))
    };
    let adapters = config.vmkernel_adapters.iter().filter_map(|adapter| {
        let (switch, vid) = place(&adapter.port_group)?;
        let number = names::number(&adapter.name, "vmk").unwrap_or(0);
        let (address, gateway) = match &adapter.ipv4 {
            Ipv4::Disabled => (None, None),
            Ipv4::Static { address, gateway } => (Some(*address), *gateway),
            Ipv4::Dhcp => dynamic.get(&adapter.name).map_or((None, None), |d| (Some(d.address), d.gateway)),
        };
        // Without a configured address the one that the adapter has stays: a restart of netd must not change it.
        let existing =
            observed.link(&adapter.name).filter(|l| matches!(l.kind, Kind::Veth(_))).map(|l| l.mac);
        Some(WantedAdapter {
            name: adapter.name.clone(),
            mac: adapter.mac.or(existing).unwrap_or_else(|| names::derived_mac(base, number)),
            mtu: switch.mtu,
            switch: switch.name.clone(),
            vid,
            address,
            gateway,
            metric: 100 + number,
        })
    });
    let taps = observed.links.iter().filter_map(|link| {
        let alias = link.tap()?;
        let (switch, vid) = place(&alias.port_group)?;
        Some(WantedTap { name: link.name.clone(), mtu: switch.mtu, switch: switch.name.clone(), vid })
    });
    Wanted {
        vlan_filtering,
        nics: config.nics.clone(),
        adapters: adapters.collect(),
        taps: taps.collect(),
        switches,
    }
}
