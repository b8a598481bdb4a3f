//! `network`.

use keelson_api::client::Client;
use keelson_api::{AdapterUpdate, Dns, Ipv4Setting, Network, NetworkUpdate, Origin, Service};

use crate::cli::NetworkCommand;
use crate::failure::Failure;
use crate::output::{Output, bytes, clean, table};

pub(crate) fn run(client: &Client, command: Option<&NetworkCommand>, output: &Output) -> Result<(), Failure> {
    let network = match command {
        None | Some(NetworkCommand::Show) => client.network()?,
        Some(NetworkCommand::SetServices { adapter, services }) => client.update_adapter(
            adapter,
            &AdapterUpdate { services: Some(services.iter().copied().collect()), ..AdapterUpdate::default() },
        )?,
        Some(NetworkCommand::SetIpv4 { adapter, address, gateway, dns }) => {
            let ipv4 = setting(address, *gateway)?;
            // Search domains are not this command's: they stay.
            let dns = match dns {
                Some(servers) => Some(Dns { servers: servers.clone(), search: client.network()?.dns.search }),
                None => None,
            };
            client.update_adapter(adapter, &AdapterUpdate { services: None, ipv4: Some(ipv4), dns })?
        }
        Some(NetworkCommand::SetDns { servers, search }) => client.update_network(&NetworkUpdate {
            dns: Some(Dns { servers: servers.clone(), search: search.clone() }),
        })?,
        Some(NetworkCommand::Restart) => {
            return crate::task::follow(client, client.restart_network()?, false, output);
        }
    };
    show(&network, output)
}

/// Reads `dhcp`, `disabled` or ADDRESS/PREFIX.
pub(crate) fn setting(address: &str, gateway: Option<std::net::Ipv4Addr>) -> Result<Ipv4Setting, Failure> {
    let setting = match address {
        "dhcp" => Ipv4Setting::Dhcp,
        "disabled" => Ipv4Setting::Disabled,
        _ => {
            let address = address.parse().map_err(|_| {
                Failure::Usage(format!(
                    "`{address}` is neither `dhcp`, nor `disabled`, nor an address such as 192.0.2.10/24"
                ))
            })?;
            return Ok(Ipv4Setting::Static { address, gateway });
        }
    };
    if gateway.is_some() {
        Err(Failure::Usage("--gateway goes with a static address only".into()))
    } else {
        Ok(setting)
    }
}

fn show(network: &Network, output: &Output) -> Result<(), Failure> {
    if output.is_json() {
        return output.one(network, Vec::new);
    }
    let dash = || "-".to_owned();
    let link = |up: bool| if up { "up".to_owned() } else { "down".to_owned() };
    let list = |items: Vec<String>| if items.is_empty() { "-".to_owned() } else { items.join(",") };
    let sections = [
        table(
            &["NIC", "MAC", "driver", "link", "Mb/s", "vSwitch"],
            network.nics.iter().map(|n| {
                vec![
                    n.name.clone(),
                    n.mac.clone(),
                    n.driver.clone(),
                    link(n.link),
                    n.speed_mbps.map_or_else(dash, |s| s.to_string()),
                    n.vswitch.clone().unwrap_or_else(dash),
                ]
            }),
        ),
        table(
            &["vSwitch", "uplinks", "MTU", "link"],
            network
                .vswitches
                .iter()
                .map(|s| vec![s.name.clone(), list(s.uplinks.clone()), s.mtu.to_string(), link(s.link)]),
        ),
        table(
            &["port group", "vSwitch", "VLAN"],
            network.port_groups.iter().map(|p| vec![p.name.clone(), p.vswitch.clone(), p.vlan.to_string()]),
        ),
        table(
            &["adapter", "port group", "address", "origin", "gateway", "services"],
            network.vmkernel_adapters.iter().map(|a| {
                let origin = a.address.as_ref().map_or_else(dash, |x| match x.origin {
                    Origin::Dhcp => "DHCP".into(),
                    Origin::Static => "static".into(),
                    Origin::LinkLocal => "link-local".into(),
                });
                let services = a
                    .services
                    .iter()
                    .map(|s| if *s == Service::Management { "management".into() } else { "vmotion".into() })
                    .collect();
                vec![
                    a.name.clone(),
                    a.port_group.clone(),
                    a.address.as_ref().map_or_else(dash, |x| x.address.to_string()),
                    origin,
                    a.address.as_ref().and_then(|x| x.gateway).map_or_else(dash, |g| g.to_string()),
                    list(services),
                ]
            }),
        ),
    ];
    let mut text = sections.join("\n\n");
    let servers = list(network.dns_in_use.iter().map(ToString::to_string).collect());
    text.push_str(&format!("\n\nName servers: {servers}\n"));
    match (&network.vmotion_reason, network.vmotion_ready) {
        (Some(reason), false) => text.push_str(&format!("vMotion ready: no: {}\n", clean(reason))),
        (_, ready) => text.push_str(&format!("vMotion ready: {}\n", if ready { "yes" } else { "no" })),
    }
    for condition in &network.conditions {
        text.push_str(&format!("! {} {}\n", clean(&condition.message), clean(&condition.remedy)));
    }
    bytes(text.as_bytes())
}
