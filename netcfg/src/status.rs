//! The network as it is, told: from what is observed and what the DHCP clients say to [`NetworkStatus`]. Pure.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use keelson_netcfg_control::{
    AdapterStatus, AddressOrigin, Ipv4, NetworkConfig, NetworkStatus, NicStatus, Problem, Service,
    SwitchStatus, TapStatus, Uplinks,
};

use crate::dhcp::run::Update;
use crate::model::{Kind, Link, Observed};

/// All that a status is made of.
pub(crate) struct Facts<'a> {
    pub(crate) config: &'a NetworkConfig,
    pub(crate) observed: &'a Observed,
    /// What the DHCP client of each adapter said last.
    pub(crate) clients: &'a BTreeMap<String, Update>,
    pub(crate) revision: u64,
    /// Links have had time to come up: one that is down is down.
    pub(crate) settled: bool,
    /// What else is wrong.
    pub(crate) problems: Vec<Problem>,
    /// Since boot.
    pub(crate) now: Duration,
}

/// The name servers and search domains in use: the configured ones, else those of the management adapter's lease.
pub(crate) fn resolver(
    config: &NetworkConfig,
    clients: &BTreeMap<String, Update>,
) -> (Vec<Ipv4Addr>, Vec<String>) {
    let leases = config.with_service(Service::Management).chain(&config.vmkernel_adapters);
    let lease = leases.filter_map(|a| clients.get(&a.name)?.lease.as_ref()).next();
    let pick = |own: &Vec<String>, leased: Option<&Vec<String>>| {
        if own.is_empty() { leased.cloned().unwrap_or_default() } else { own.clone() }
    };
    let servers = match (config.dns.servers.is_empty(), lease) {
        (true, Some(lease)) => lease.dns.clone(),
        _ => config.dns.servers.clone(),
    };
    (servers, pick(&config.dns.search, lease.map(|l| &l.search)))
}

/// Whether one of a switch's uplinks has a link.
pub(crate) fn switch_linked(config: &NetworkConfig, observed: &Observed, switch: &str) -> bool {
    uplinks(config, observed, switch).any(Link::linked)
}

/// Whether frames pass one of a switch's uplinks: the bridge lets them through a moment after the link is there, and what is sent
/// before is lost.
pub(crate) fn switch_passes(config: &NetworkConfig, observed: &Observed, switch: &str) -> bool {
    uplinks(config, observed, switch)
        .any(|l| l.linked() && l.forwarding && l.master.as_deref() == Some(switch))
}

fn uplinks<'a>(
    config: &'a NetworkConfig,
    observed: &'a Observed,
    switch: &str,
) -> impl Iterator<Item = &'a Link> {
    let nics = config.vswitches.iter().find(|s| s.name == switch).and_then(|s| match &s.uplinks {
        Uplinks::Nics(nics) => Some(nics),
        Uplinks::FirstLinked => None,
    });
    nics.into_iter().flatten().filter_map(|n| observed.link(n)).filter(|l| l.is_nic())
}

/// The status.
pub(crate) fn status(facts: Facts<'_>) -> NetworkStatus {
    let Facts { config, observed, clients, .. } = &facts;
    let (dns_servers, dns_search) = resolver(config, clients);
    let nics = observed.nics().into_iter().map(|link| {
        let hardware = match &link.kind {
            Kind::Physical(hardware) => hardware.clone(),
            _ => crate::model::Hardware { driver: "veth".into(), ..Default::default() },
        };
        NicStatus {
            name: link.name.clone(),
            mac: link.permanent_mac,
            driver: hardware.driver,
            pci: hardware.pci,
            link: link.linked(),
            speed_mbps: hardware.speed_mbps.filter(|_| link.linked()),
            vswitch: link.master.clone().filter(|m| config.vswitches.iter().any(|s| s.name == *m)),
        }
    });
    let vswitches = config.vswitches.iter().map(|switch| SwitchStatus {
        name: switch.name.clone(),
        uplinks: observed
            .nics()
            .into_iter()
            .filter(|l| l.master.as_ref() == Some(&switch.name))
            .map(|l| l.name.clone())
            .collect(),
        mtu: observed.link(&switch.name).map_or(switch.mtu, |l| l.mtu),
        link: switch_linked(config, observed, &switch.name),
    });
    let adapters = config.vmkernel_adapters.iter().map(|adapter| {
        let link = observed.link(&adapter.name);
        let addresses = link.map(|l| l.addresses.clone()).unwrap_or_default();
        let update = clients.get(&adapter.name).filter(|_| adapter.ipv4 == Ipv4::Dhcp);
        let origin = match (&adapter.ipv4, addresses.first()) {
            (_, None) => AddressOrigin::None,
            (Ipv4::Static { .. }, Some(_)) => AddressOrigin::Static,
            (_, Some(_)) if update.is_some_and(|u| u.lease.is_some()) => AddressOrigin::Dhcp,
            (_, Some(address)) if address.addr().is_link_local() => AddressOrigin::LinkLocal,
            _ => AddressOrigin::None,
        };
        let left = |u: &Update| u.lease.as_ref()?.ends_at.map(|end| end.saturating_sub(facts.now).as_secs());
        AdapterStatus {
            name: adapter.name.clone(),
            ifindex: link.map(|l| l.index),
            mac: link.map(|l| l.mac),
            addresses,
            origin,
            gateway: observed.default_routes.iter().find(|r| r.link == adapter.name).map(|r| r.gateway),
            dhcp: update
                .map(|u| keelson_netcfg_control::DhcpStatus { lease_left_s: left(u), ..u.status.clone() }),
        }
    });
    let taps = observed.links.iter().filter_map(|link| {
        let alias = link.tap()?;
        Some(TapStatus {
            name: link.name.clone(),
            vm: alias.vm,
            index: alias.index,
            port_group: alias.port_group,
        })
    });
    NetworkStatus {
        revision: facts.revision,
        nics: nics.collect(),
        vswitches: vswitches.collect(),
        vmkernel_adapters: adapters.collect(),
        taps: taps.collect(),
        dns_servers,
        dns_search,
        offered_hostname: clients.values().find_map(|u| u.lease.as_ref()?.hostname.clone()),
        problems: problems(&facts),
    }
}

fn problems(facts: &Facts<'_>) -> Vec<Problem> {
    let Facts { config, observed, clients, .. } = facts;
    let problem = |code: &str, message: String, remedy: &str| Problem {
        code: code.into(),
        message,
        remedy: remedy.into(),
    };
    let mut problems = Vec::new();
    let names: Vec<String> = observed.nics().iter().map(|l| l.name.clone()).collect();
    if names.is_empty() {
        problems.push(problem(
            "no-nic",
            "This host has no network adapter that Keelson has a driver for: it cannot be reached by network.".into(),
            "Check the adapter and its slot, and the firmware's settings; the host goes on as soon as one appears.",
        ));
    }
    for switch in config.vswitches.iter().filter(|_| !names.is_empty()) {
        match &switch.uplinks {
            Uplinks::FirstLinked if facts.settled => problems.push(problem(
                "no-link",
                format!("{} has no uplink: none of {} has a link.", switch.name, names.join(", ")),
                "Plug in a network cable, or check the physical switch's port.",
            )),
            Uplinks::FirstLinked => {}
            Uplinks::Nics(uplinks) => {
                let missing: Vec<&str> =
                    uplinks.iter().filter(|u| !names.contains(u)).map(String::as_str).collect();
                if !missing.is_empty() {
                    problems.push(problem(
                        "uplink-missing",
                        format!("{} has {} as its uplink, which this host does not have; it has {}.", switch.name, missing.join(", "), names.join(", ")),
                        "Choose another network adapter under Configure Management Network, or put the missing one back.",
                    ));
                } else if facts.settled
                    && !uplinks.is_empty()
                    && !switch_linked(config, observed, &switch.name)
                {
                    problems.push(problem(
                        "no-link",
                        format!("{} has no link on {}.", switch.name, uplinks.join(", ")),
                        "Plug in the network cable, or check the physical switch's port.",
                    ));
                }
            }
        }
    }
    for adapter in config.vmkernel_adapters.iter().filter(|a| a.ipv4 == Ipv4::Dhcp) {
        let Some(update) = clients.get(&adapter.name).filter(|u| u.unanswered) else { continue };
        let cause = update.status.last_error.clone().unwrap_or_else(|| "no DHCP server answers".into());
        let stopgap = match update.address {
            Some(dynamic) => format!("until one does, it uses {}", dynamic.address.addr()),
            None => "it has no address".into(),
        };
        problems.push(problem(
            "dhcp-unanswered",
            format!("{} got no address by DHCP ({cause}); {stopgap}.", adapter.name),
            "Check the VLAN and the DHCP server of this network, or set a static address; Keelson keeps asking.",
        ));
    }
    problems.extend(facts.problems.iter().cloned());
    problems
}
