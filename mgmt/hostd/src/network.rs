//! The host's network as the API shows it, and its changes: netd holds it, the host agent translates.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::PoisonError;

use keelson_api as api;
use keelson_api::{Condition, Fault, Problem};
use keelson_netcfg_control::{
    AddressOrigin, Client, DhcpPhase, DhcpStatus, Dns, Error, Ipv4, NetworkConfig, NetworkStatus, Service,
};

use crate::problems;

/// netd, as the host agent knows it.
#[derive(Debug)]
pub struct Netd {
    socket: PathBuf,
    /// A read-modify-write of this host agent is not crossed by another of its own.
    changing: Mutex<()>,
}

impl Netd {
    /// The netd that listens at `socket`.
    pub fn at(socket: PathBuf) -> Self {
        Self { socket, changing: Mutex::default() }
    }

    /// Asks netd for something; `doing` begins the error's sentence.
    pub fn ask<T>(
        &self,
        doing: &str,
        ask: impl FnOnce(&mut Client) -> Result<T, Error>,
    ) -> Result<T, Problem> {
        Client::connect_to(&self.socket)
            .and_then(|mut client| ask(&mut client))
            .map_err(|e| problems::netd(doing, &e))
    }

    fn get(&self) -> Result<(NetworkConfig, NetworkStatus), Problem> {
        self.ask("the network could not be read", Client::get)
    }

    /// The network.
    pub fn network(&self) -> Result<api::Network, Problem> {
        self.get().map(|(config, status)| shown(&config, &status))
    }

    /// The names of the port groups.
    pub fn port_groups(&self) -> Result<Vec<String>, Problem> {
        self.get().map(|(config, _)| config.port_groups.into_iter().map(|g| g.name).collect())
    }

    /// Changes the network's own settings.
    pub fn change(&self, update: &api::NetworkUpdate) -> Result<api::Network, Problem> {
        self.changed("", |config| {
            if let Some(dns) = &update.dns {
                config.dns = wanted_dns(dns);
            }
            Ok(())
        })
    }

    /// Changes a VMkernel adapter.
    pub fn change_adapter(&self, name: &str, update: &api::AdapterUpdate) -> Result<api::Network, Problem> {
        self.changed(name, |config| {
            let names: Vec<String> = config.vmkernel_adapters.iter().map(|a| a.name.clone()).collect();
            let Some(adapter) = config.vmkernel_adapters.iter_mut().find(|a| a.name == name) else {
                let problem = Problem::new(Fault::NotFound, format!("there is no VMkernel adapter `{name}`"));
                return Err(problem.remedy(format!("this host has: {}", names.join(", "))));
            };
            if let Some(services) = &update.services {
                adapter.services = services.iter().map(|s| wanted_service(*s)).collect();
            }
            if let Some(ipv4) = &update.ipv4 {
                adapter.ipv4 = wanted_ipv4(ipv4);
            }
            if let Some(dns) = &update.dns {
                config.dns = wanted_dns(dns);
            }
            Ok(())
        })
    }

    /// Reads, changes and sets the configuration; somebody else's change in between is found out by the revision and told.
    fn changed(
        &self,
        adapter: &str,
        change: impl FnOnce(&mut NetworkConfig) -> Result<(), Problem>,
    ) -> Result<api::Network, Problem> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let (before, status) = self.get()?;
        let mut config = before.clone();
        change(&mut config)?;
        // netd checks as well; checked here, the field has the name that it has in the request.
        config.validate().map_err(|e| {
            let problem =
                Problem::new(Fault::InvalidArgument, e.problem).remedy("correct the field and try again");
            problem.field(request_field(&config, adapter, &e.field))
        })?;
        if config == before {
            return Ok(shown(&before, &status));
        }
        self.ask("the network could not be changed", |c| c.set(config, Some(status.revision)))?;
        self.network()
    }
}

/// A field of the whole configuration, as it is called in the request that changed it.
fn request_field(config: &NetworkConfig, adapter: &str, field: &str) -> String {
    if field == "vmkernel_adapters" {
        return "services".into();
    }
    let index = config.vmkernel_adapters.iter().position(|a| a.name == adapter);
    let own = index.and_then(|i| field.strip_prefix(&format!("vmkernel_adapters[{i}].")));
    own.unwrap_or(field).replace("ipv4.static.", "ipv4.")
}

fn wanted_service(service: api::Service) -> Service {
    match service {
        api::Service::Management => Service::Management,
        api::Service::Vmotion => Service::Vmotion,
    }
}

fn wanted_ipv4(ipv4: &api::Ipv4Setting) -> Ipv4 {
    match ipv4 {
        api::Ipv4Setting::Disabled => Ipv4::Disabled,
        api::Ipv4Setting::Dhcp => Ipv4::Dhcp,
        api::Ipv4Setting::Static { address, gateway } => {
            Ipv4::Static { address: *address, gateway: *gateway }
        }
    }
}

fn wanted_dns(dns: &api::Dns) -> Dns {
    Dns { servers: dns.servers.clone(), search: dns.search.clone() }
}

/// The network as the API shows it.
pub fn shown(config: &NetworkConfig, status: &NetworkStatus) -> api::Network {
    let (vmotion_ready, vmotion_reason) = match vmotion(config, status) {
        Ok(()) => (true, None),
        Err(reason) => (false, Some(reason)),
    };
    api::Network {
        nics: status.nics.iter().map(nic).collect(),
        vswitches: config.vswitches.iter().map(|s| vswitch(s, status)).collect(),
        port_groups: config
            .port_groups
            .iter()
            .map(|g| api::PortGroup { name: g.name.clone(), vswitch: g.vswitch.clone(), vlan: g.vlan })
            .collect(),
        vmkernel_adapters: config.vmkernel_adapters.iter().map(|a| adapter(a, status)).collect(),
        dns: api::Dns { servers: config.dns.servers.clone(), search: config.dns.search.clone() },
        dns_in_use: status.dns_servers.clone(),
        vmotion_ready,
        vmotion_reason,
        conditions: conditions(status),
    }
}

/// What netd thinks a person should know.
pub fn conditions(status: &NetworkStatus) -> Vec<Condition> {
    status
        .problems
        .iter()
        .map(|p| Condition { code: p.code.clone(), message: p.message.clone(), remedy: p.remedy.clone() })
        .collect()
}

fn nic(nic: &keelson_netcfg_control::NicStatus) -> api::Nic {
    api::Nic {
        name: nic.name.clone(),
        mac: nic.mac.to_string(),
        driver: nic.driver.clone(),
        pci: nic.pci.clone(),
        link: nic.link,
        speed_mbps: nic.speed_mbps,
        vswitch: nic.vswitch.clone(),
    }
}

fn vswitch(switch: &keelson_netcfg_control::VSwitch, status: &NetworkStatus) -> api::VSwitch {
    let now = status.vswitches.iter().find(|s| s.name == switch.name);
    api::VSwitch {
        name: switch.name.clone(),
        uplinks: now.map(|s| s.uplinks.clone()).unwrap_or_default(),
        mtu: now.map_or(switch.mtu, |s| s.mtu),
        link: now.is_some_and(|s| s.link),
    }
}

fn adapter(adapter: &keelson_netcfg_control::VmkAdapter, status: &NetworkStatus) -> api::VmkAdapter {
    let now = status.vmkernel_adapters.iter().find(|a| a.name == adapter.name);
    let address = now.and_then(|now| {
        let origin = match now.origin {
            AddressOrigin::None => return None,
            AddressOrigin::Dhcp => api::Origin::Dhcp,
            AddressOrigin::Static => api::Origin::Static,
            AddressOrigin::LinkLocal => api::Origin::LinkLocal,
        };
        Some(api::Address { address: *now.addresses.first()?, gateway: now.gateway, origin })
    });
    api::VmkAdapter {
        name: adapter.name.clone(),
        port_group: adapter.port_group.clone(),
        mac: now.and_then(|a| a.mac).or(adapter.mac).map(|m| m.to_string()),
        ipv4: match &adapter.ipv4 {
            Ipv4::Disabled => api::Ipv4Setting::Disabled,
            Ipv4::Dhcp => api::Ipv4Setting::Dhcp,
            Ipv4::Static { address, gateway } => {
                api::Ipv4Setting::Static { address: *address, gateway: *gateway }
            }
        },
        address,
        services: adapter
            .services
            .iter()
            .map(|s| match s {
                Service::Management => api::Service::Management,
                Service::Vmotion => api::Service::Vmotion,
            })
            .collect(),
        dhcp: now.and_then(|a| a.dhcp.as_ref()).map(dhcp),
    }
}

fn dhcp(status: &DhcpStatus) -> String {
    let server = status.server.map_or(String::new(), |s| format!(" from {s}"));
    let mut text = match status.phase {
        DhcpPhase::Init => "waiting for a link".to_owned(),
        DhcpPhase::Selecting => "looking for a server".to_owned(),
        DhcpPhase::Requesting => format!("asking for the offered address{server}"),
        DhcpPhase::Bound => format!("has a lease{server}"),
        DhcpPhase::Renewing => format!("renewing the lease{server}"),
        DhcpPhase::Rebinding => "asking any server for more time".to_owned(),
    };
    if let Some(left) = status.lease_left_s {
        text.push_str(&format!(", {left} s left"));
    }
    if status.unanswered > 0 {
        text.push_str(&format!(", {} requests unanswered", status.unanswered));
    }
    if let Some(error) = &status.last_error {
        text.push_str(&format!("; {error}"));
    }
    text
}

/// Whether a running VM can be moved here or away; else why not, naming the adapters that could be ticked.
fn vmotion(config: &NetworkConfig, status: &NetworkStatus) -> Result<(), String> {
    // An address of last resort reaches only its own link: a move over it would work by chance.
    let addresses: BTreeMap<&str, AddressOrigin> = status
        .vmkernel_adapters
        .iter()
        .filter(|a| !a.addresses.is_empty())
        .map(|a| (a.name.as_str(), a.origin))
        .collect();
    let usable =
        |name: &str| matches!(addresses.get(name), Some(AddressOrigin::Dhcp | AddressOrigin::Static));
    let ticked: Vec<&str> = config.with_service(Service::Vmotion).map(|a| a.name.as_str()).collect();
    if ticked.iter().any(|name| usable(name)) {
        return Ok(());
    }
    if !ticked.is_empty() {
        return Err(format!(
            "{} carries the service vmotion but has no address; give it one, by DHCP or a static one",
            ticked.join(", ")
        ));
    }
    let could: Vec<&str> =
        config.vmkernel_adapters.iter().map(|a| a.name.as_str()).filter(|name| usable(name)).collect();
    let which = if could.is_empty() {
        config.vmkernel_adapters.iter().map(|a| a.name.as_str()).collect()
    } else {
        could
    };
    Err(format!("no VMkernel adapter carries the service vmotion; switch it on for {}", which.join(" or ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_netcfg_control::AdapterStatus;

    fn status(origin: AddressOrigin) -> NetworkStatus {
        let addresses =
            if origin == AddressOrigin::None { vec![] } else { vec!["192.0.2.10/24".parse().unwrap()] };
        let adapter = AdapterStatus {
            name: "vmk0".into(),
            ifindex: Some(3),
            mac: None,
            addresses,
            origin,
            gateway: None,
            dhcp: None,
        };
        NetworkStatus { vmkernel_adapters: vec![adapter], ..NetworkStatus::default() }
    }

    #[test]
    fn vmotion_is_not_ready_until_an_adapter_with_an_address_carries_it() {
        let mut config = NetworkConfig::default();
        let told = shown(&config, &status(AddressOrigin::Dhcp));
        assert!(!told.vmotion_ready);
        assert!(told.vmotion_reason.unwrap().contains("vmk0"));
        config.vmkernel_adapters[0].services.insert(Service::Vmotion);
        assert!(shown(&config, &status(AddressOrigin::Dhcp)).vmotion_ready);
        for without in [AddressOrigin::None, AddressOrigin::LinkLocal] {
            let told = shown(&config, &status(without));
            assert!(told.vmotion_reason.unwrap().contains("no address"));
        }
    }

    #[test]
    fn a_wrong_field_has_the_name_that_it_has_in_the_request() {
        let config = NetworkConfig::default();
        assert_eq!(
            request_field(&config, "vmk0", "vmkernel_adapters[0].ipv4.static.gateway"),
            "ipv4.gateway"
        );
        assert_eq!(request_field(&config, "vmk0", "vmkernel_adapters"), "services");
        assert_eq!(request_field(&config, "", "dns.servers"), "dns.servers");
    }
}
