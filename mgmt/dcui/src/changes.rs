//! Changes of the management network that were entered and not yet applied.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use keelson_api::{AdapterUpdate, Dns, HostUpdate, Ipv4Setting, Service};
use keelson_netcfg_control::Ipv4;

use crate::address;
use crate::facts::Facts;
use crate::form::{Field, Form};

/// What was entered; `None` is unchanged.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    pub(crate) ipv4: Option<Ipv4Setting>,
    pub(crate) servers: Option<Vec<Ipv4Addr>>,
    pub(crate) hostname: Option<String>,
    pub(crate) vmotion: Option<bool>,
}

/// The updates that make changes real.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Updates {
    pub(crate) adapter: String,
    pub(crate) network: AdapterUpdate,
    pub(crate) host: Option<HostUpdate>,
}

/// What is wrong with a form: in which field, and why.
pub(crate) type Wrong = (usize, String);

impl Changes {
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// How the adapter is to get its address.
    pub(crate) fn ipv4(&self, facts: &Facts) -> Ipv4Setting {
        self.ipv4.clone().unwrap_or_else(|| configured_ipv4(facts))
    }

    /// The name servers.
    pub(crate) fn servers(&self, facts: &Facts) -> Vec<Ipv4Addr> {
        self.servers.clone().unwrap_or_else(|| configured_servers(facts))
    }

    /// The host's name.
    pub(crate) fn hostname(&self, facts: &Facts) -> String {
        self.hostname.clone().unwrap_or_else(|| facts.hostname().to_owned())
    }

    /// Whether the adapter carries vMotion.
    pub(crate) fn vmotion(&self, facts: &Facts) -> bool {
        self.vmotion.unwrap_or_else(|| configured_vmotion(facts))
    }

    /// The API's updates, based on what is configured now.
    pub(crate) fn updates(&self, facts: &Facts) -> Option<Updates> {
        let adapter = facts.management()?;
        let services = self.vmotion.map(|on| {
            let mut services: BTreeSet<Service> = adapter.services.iter().map(|s| service(*s)).collect();
            if on {
                services.insert(Service::Vmotion)
            } else {
                services.remove(&Service::Vmotion)
            };
            services
        });
        let search = facts.network.as_ref().map(|n| n.0.dns.search.clone()).unwrap_or_default();
        let dns = self.servers.clone().map(|servers| Dns { servers, search });
        Some(Updates {
            adapter: adapter.name.clone(),
            network: AdapterUpdate { services, ipv4: self.ipv4.clone(), dns },
            host: self
                .hostname
                .clone()
                .map(|name| HostUpdate { hostname: Some(name), ..HostUpdate::default() }),
        })
    }

    /// The form "IPv4 Configuration", filled in.
    pub(crate) fn ipv4_form(&self, facts: &Facts) -> Form {
        let setting = self.ipv4(facts);
        // Whoever goes over from DHCP to a static address most often keeps what DHCP gave.
        let present = facts.network.as_ref().and_then(|n| {
            let name = &facts.management()?.name;
            let status = n.1.vmkernel_adapters.iter().find(|a| a.name == *name)?;
            let address = status.addresses.iter().find(|a| !a.addr().is_link_local())?;
            Some((*address, status.gateway))
        });
        let (address, gateway) = match &setting {
            Ipv4Setting::Static { address, gateway } => (Some(*address), *gateway),
            _ => present.map_or((None, None), |(address, gateway)| (Some(address), gateway)),
        };
        let fixed = matches!(setting, Ipv4Setting::Static { .. });
        let text = |value: Option<String>| value.unwrap_or_default();
        Form::new(
            "IPv4 Configuration",
            "How this host gets its management address.",
            vec![
                Field::Choice { label: "Use DHCP to obtain the address", on: !fixed },
                Field::Choice { label: "Set a static address:", on: fixed },
                Field::text("IPv4 Address", text(address.map(|a| a.addr().to_string()))).under(1),
                Field::text("Subnet Mask", text(address.map(|a| a.netmask().to_string()))).under(1),
                Field::text("Default Gateway", text(gateway.map(|g| g.to_string()))).under(1),
            ],
        )
    }

    /// Takes that form in.
    pub(crate) fn take_ipv4(&mut self, form: &Form, facts: &Facts) -> Result<(), Wrong> {
        let setting = if form.is_on(0) {
            Ipv4Setting::Dhcp
        } else {
            let address = address::host_address(form.value(2)).map_err(|e| (2, e))?;
            let prefix = address::prefix(form.value(3)).map_err(|e| (3, e))?;
            let address = address::with_prefix(address, prefix).map_err(|e| (2, e))?;
            let gateway = address::gateway(form.value(4), address).map_err(|e| (4, e))?;
            Ipv4Setting::Static { address, gateway }
        };
        self.ipv4 = (setting != configured_ipv4(facts)).then_some(setting);
        Ok(())
    }

    /// The form "DNS Configuration", filled in.
    pub(crate) fn dns_form(&self, facts: &Facts) -> Form {
        let servers = self.servers(facts);
        let server = |n: usize| servers.get(n).map(ToString::to_string).unwrap_or_default();
        Form::new(
            "DNS Configuration",
            "Without servers here, those that DHCP gives are used.",
            vec![
                Field::text("Primary DNS Server", server(0)),
                Field::text("Alternate DNS Server", server(1)),
                Field::text("Third DNS Server", server(2)),
                Field::text("Hostname", self.hostname(facts)),
            ],
        )
    }

    /// Takes that form in.
    pub(crate) fn take_dns(&mut self, form: &Form, facts: &Facts) -> Result<(), Wrong> {
        let mut servers = Vec::new();
        for field in 0..3 {
            if !form.value(field).is_empty() {
                servers.push(address::host_address(form.value(field)).map_err(|e| (field, e))?);
            }
        }
        let hostname = address::hostname(form.value(3)).map_err(|e| (3, e))?;
        self.servers = (servers != configured_servers(facts)).then_some(servers);
        self.hostname = (hostname != facts.hostname()).then_some(hostname);
        Ok(())
    }

    /// The form "VMkernel Services", filled in.
    pub(crate) fn services_form(&self, facts: &Facts) -> Form {
        Form::new(
            "VMkernel Services",
            "What the management adapter is used for besides management.",
            vec![Field::Check { label: "vMotion (live migration)", on: self.vmotion(facts) }],
        )
    }

    /// Takes that form in.
    pub(crate) fn take_services(&mut self, form: &Form, facts: &Facts) {
        let on = form.is_on(0);
        self.vmotion = (on != configured_vmotion(facts)).then_some(on);
    }
}

fn configured_ipv4(facts: &Facts) -> Ipv4Setting {
    match facts.management().map(|a| a.ipv4.clone()) {
        Some(Ipv4::Static { address, gateway }) => Ipv4Setting::Static { address, gateway },
        Some(Ipv4::Disabled) => Ipv4Setting::Disabled,
        Some(Ipv4::Dhcp) | None => Ipv4Setting::Dhcp,
    }
}

fn configured_servers(facts: &Facts) -> Vec<Ipv4Addr> {
    facts.network.as_ref().map(|n| n.0.dns.servers.clone()).unwrap_or_default()
}

fn configured_vmotion(facts: &Facts) -> bool {
    facts.management().is_some_and(|a| a.services.contains(&keelson_netcfg_control::Service::Vmotion))
}

fn service(service: keelson_netcfg_control::Service) -> Service {
    match service {
        keelson_netcfg_control::Service::Management => Service::Management,
        keelson_netcfg_control::Service::Vmotion => Service::Vmotion,
    }
}
