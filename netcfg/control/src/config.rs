//! The wanted network: `network.toml`, and what makes one valid.

use std::collections::BTreeSet;
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// The schema number that this version writes.
pub const SCHEMA: u32 = 1;

/// The whole wanted network of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkConfig {
    /// The document's schema number.
    pub schema: u32,
    /// Name servers and search domains; those of a DHCP lease are used where none are given.
    #[serde(default)]
    pub dns: Dns,
    /// Physical NICs and the names that they keep, by MAC address. netd adds new ones in PCI address order.
    #[serde(default)]
    pub nics: Vec<NicName>,
    /// Virtual switches.
    pub vswitches: Vec<VSwitch>,
    /// Port groups.
    pub port_groups: Vec<PortGroup>,
    /// VMkernel adapters.
    pub vmkernel_adapters: Vec<VmkAdapter>,
}

/// A physical NIC's name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NicName {
    /// `vmnicN`.
    pub name: String,
    /// The permanent MAC address.
    pub mac: MacAddr,
}

/// A virtual switch: a Linux bridge of this name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VSwitch {
    /// `vSwitchN`.
    pub name: String,
    /// Which NICs are its uplinks.
    #[serde(default)]
    pub uplinks: Uplinks,
    /// The largest frame's payload, in bytes: 1280 to 9000.
    #[serde(default = "default_mtu")]
    pub mtu: u32,
}

fn default_mtu() -> u32 {
    1500
}

/// A virtual switch's uplinks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Uplinks {
    /// The first NIC, in name order, that has a link; once found it is written down as [`Uplinks::Nics`].
    #[default]
    FirstLinked,
    /// These. At most one until teaming is there.
    Nics(Vec<String>),
}

/// A port group: a named VLAN on a virtual switch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortGroup {
    /// Its name, 1 to 64 characters.
    pub name: String,
    /// The virtual switch it is on.
    pub vswitch: String,
    /// 0 (untagged) or 1 to 4094.
    #[serde(default)]
    pub vlan: u16,
}

/// A VMkernel adapter: an interface of the host on a port group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmkAdapter {
    /// `vmkN`.
    pub name: String,
    /// The port group it is on.
    pub port_group: String,
    /// Its MAC address; netd fills in one that stays. `None` only in a new configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddr>,
    /// How it gets its IPv4 address.
    #[serde(default)]
    pub ipv4: Ipv4,
    /// What it is used for.
    #[serde(default)]
    pub services: BTreeSet<Service>,
}

/// How a VMkernel adapter gets its IPv4 address.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ipv4 {
    /// It has none.
    Disabled,
    /// By DHCP (RFC 2131).
    #[default]
    Dhcp,
    /// This one.
    Static {
        /// The address with its prefix length.
        address: Ipv4Net,
        /// The default router, within the prefix.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        gateway: Option<Ipv4Addr>,
    },
}

/// What a VMkernel adapter is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Service {
    /// The HTTP API.
    Management,
    /// Live migration.
    Vmotion,
}

/// Name resolution.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dns {
    /// At most three servers.
    #[serde(default)]
    pub servers: Vec<Ipv4Addr>,
    /// At most six search domains.
    #[serde(default)]
    pub search: Vec<String>,
}

/// A MAC address, written `aa:bb:cc:dd:ee:ff`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddr(pub [u8; 6]);

/// A text that is no MAC address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no MAC address such as 02:00:00:00:00:01")]
pub struct MacError(pub String);

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for MacAddr {
    type Err = MacError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || MacError(text.into());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts
                .next()
                .filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()))
                .ok_or_else(wrong)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
        }
        if parts.next().is_some() { Err(wrong()) } else { Ok(Self(bytes)) }
    }
}

impl Serialize for MacAddr {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MacAddr {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct ConfigError {
    /// The field, as a path such as `vmkernel_adapters[0].ipv4.static.gateway`.
    pub field: String,
    /// What is wrong with it and what it may be.
    pub problem: String,
}

impl Default for NetworkConfig {
    /// A new host's network: vSwitch0 on the first linked NIC, the port groups "VM Network" and "Management Network", and vmk0
    /// by DHCP with the service `management`. The service `vmotion` is off until somebody switches it on.
    fn default() -> Self {
        let group = |name: &str| PortGroup { name: name.into(), vswitch: "vSwitch0".into(), vlan: 0 };
        Self {
            schema: SCHEMA,
            dns: Dns::default(),
            nics: Vec::new(),
            vswitches: vec![VSwitch {
                name: "vSwitch0".into(),
                uplinks: Uplinks::FirstLinked,
                mtu: default_mtu(),
            }],
            port_groups: vec![group("VM Network"), group("Management Network")],
            vmkernel_adapters: vec![VmkAdapter {
                name: "vmk0".into(),
                port_group: "Management Network".into(),
                mac: None,
                ipv4: Ipv4::Dhcp,
                services: [Service::Management].into(),
            }],
        }
    }
}

fn numbered(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix).is_some_and(|n| {
        !n.is_empty()
            && n.len() <= 4
            && n.bytes().all(|b| b.is_ascii_digit())
            && (n == "0" || !n.starts_with('0'))
    })
}

impl NetworkConfig {
    /// Checks everything that can be known without the kernel; returns the first thing that is wrong.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let wrong = |field: String, problem: String| Err(ConfigError { field, problem });
        if self.schema != SCHEMA {
            return wrong(
                "schema".into(),
                format!("{} is not the schema {SCHEMA} that this version knows", self.schema),
            );
        }
        if self.dns.servers.len() > 3 {
            return wrong("dns.servers".into(), "at most three name servers are possible".into());
        }
        if self.dns.search.len() > 6 {
            return wrong("dns.search".into(), "at most six search domains are possible".into());
        }
        let mut seen = BTreeSet::new();
        for (i, nic) in self.nics.iter().enumerate() {
            if !numbered(&nic.name, "vmnic") {
                return wrong(format!("nics[{i}].name"), format!("`{}` is no name such as vmnic0", nic.name));
            }
            if !seen.insert(nic.name.clone()) || !seen.insert(nic.mac.to_string()) {
                return wrong(format!("nics[{i}]"), format!("{} ({}) is listed twice", nic.name, nic.mac));
            }
        }
        let mut used = BTreeSet::new();
        let mut switches = BTreeSet::new();
        for (i, switch) in self.vswitches.iter().enumerate() {
            let at = format!("vswitches[{i}]");
            if !numbered(&switch.name, "vSwitch") {
                return wrong(format!("{at}.name"), format!("`{}` is no name such as vSwitch0", switch.name));
            }
            if !switches.insert(switch.name.as_str()) {
                return wrong(
                    format!("{at}.name"),
                    format!("there are two virtual switches `{}`", switch.name),
                );
            }
            if !(1280..=9000).contains(&switch.mtu) {
                return wrong(format!("{at}.mtu"), format!("{} bytes; it must be 1280 to 9000", switch.mtu));
            }
            if let Uplinks::Nics(nics) = &switch.uplinks {
                if nics.len() > 1 {
                    return wrong(
                        format!("{at}.uplinks"),
                        "more than one uplink is not supported yet".into(),
                    );
                }
                for nic in nics {
                    if !numbered(nic, "vmnic") {
                        return wrong(format!("{at}.uplinks"), format!("`{nic}` is no name such as vmnic0"));
                    }
                    if !used.insert(nic.as_str()) {
                        return wrong(format!("{at}.uplinks"), format!("{nic} is an uplink already"));
                    }
                }
            }
        }
        let mut groups = BTreeSet::new();
        for (i, group) in self.port_groups.iter().enumerate() {
            let at = format!("port_groups[{i}]");
            if group.name.is_empty()
                || group.name.chars().count() > 64
                || group.name.chars().any(char::is_control)
            {
                return wrong(
                    format!("{at}.name"),
                    "it must be 1 to 64 characters, none of them a control character".into(),
                );
            }
            if !groups.insert(group.name.as_str()) {
                return wrong(format!("{at}.name"), format!("there are two port groups `{}`", group.name));
            }
            if !switches.contains(group.vswitch.as_str()) {
                return wrong(
                    format!("{at}.vswitch"),
                    format!("there is no virtual switch `{}`", group.vswitch),
                );
            }
            if group.vlan > 4094 {
                return wrong(
                    format!("{at}.vlan"),
                    format!("{}; it must be 0 (untagged) to 4094", group.vlan),
                );
            }
        }
        let mut adapters = BTreeSet::new();
        let mut networks: Vec<(&str, Ipv4Net)> = Vec::new();
        for (i, adapter) in self.vmkernel_adapters.iter().enumerate() {
            let at = format!("vmkernel_adapters[{i}]");
            if !numbered(&adapter.name, "vmk") || !adapters.insert(adapter.name.as_str()) {
                return wrong(
                    format!("{at}.name"),
                    format!("`{}` is no name such as vmk1, or is there twice", adapter.name),
                );
            }
            if !groups.contains(adapter.port_group.as_str()) {
                return wrong(
                    format!("{at}.port_group"),
                    format!("there is no port group `{}`", adapter.port_group),
                );
            }
            if adapter.mac.is_some_and(|mac| mac.0[0] & 1 == 1 || mac.0 == [0; 6]) {
                return wrong(format!("{at}.mac"), "it must be a unicast address".into());
            }
            if let Ipv4::Static { address, gateway } = &adapter.ipv4 {
                let host = address.addr();
                let edge =
                    address.prefix_len() < 31 && (host == address.network() || host == address.broadcast());
                if host.is_unspecified()
                    || host.is_multicast()
                    || host.is_loopback()
                    || host.is_broadcast()
                    || address.prefix_len() == 0
                    || edge
                {
                    return wrong(
                        format!("{at}.ipv4.static.address"),
                        format!("{address} is no address that a host can have"),
                    );
                }
                if let Some(gateway) = gateway
                    && (!address.contains(gateway) || *gateway == host)
                {
                    let problem = format!("{gateway} is not another address within {}", address.trunc());
                    return wrong(format!("{at}.ipv4.static.gateway"), problem);
                }
                if let Some((other, _)) = networks
                    .iter()
                    .find(|(_, n)| n.contains(&address.network()) || address.contains(&n.network()))
                {
                    return wrong(
                        format!("{at}.ipv4.static.address"),
                        format!("{} overlaps the network of {other}", address.trunc()),
                    );
                }
                networks.push((&adapter.name, *address));
            }
        }
        if !self.vmkernel_adapters.iter().any(|a| a.services.contains(&Service::Management)) {
            return wrong(
                "vmkernel_adapters".into(),
                "one adapter must carry the service `management`, or nobody could reach the host".into(),
            );
        }
        Ok(())
    }

    /// The adapters that carry a service.
    pub fn with_service(&self, service: Service) -> impl Iterator<Item = &VmkAdapter> {
        self.vmkernel_adapters.iter().filter(move |a| a.services.contains(&service))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_valid_and_vmotion_is_off() {
        let config = NetworkConfig::default();
        assert_eq!(config.validate(), Ok(()));
        assert_eq!(config.with_service(Service::Vmotion).count(), 0);
        assert_eq!(config.with_service(Service::Management).count(), 1);
    }

    #[test]
    fn each_wrong_field_is_named() {
        type Change = fn(&mut NetworkConfig);
        fn fixed(address: &str, gateway: &str) -> Ipv4 {
            Ipv4::Static { address: address.parse().unwrap(), gateway: Some(gateway.parse().unwrap()) }
        }
        let wrong: [(&str, Change); 7] = [
            ("port_groups[0].vlan", |c| c.port_groups[0].vlan = 4095),
            ("port_groups[1].name", |c| c.port_groups[1].name = "VM Network".into()),
            ("vmkernel_adapters[0].ipv4.static.gateway", |c| {
                c.vmkernel_adapters[0].ipv4 = fixed("192.0.2.10/24", "198.51.100.1")
            }),
            ("vmkernel_adapters[0].ipv4.static.address", |c| {
                c.vmkernel_adapters[0].ipv4 = fixed("192.0.2.0/24", "192.0.2.1")
            }),
            ("vmkernel_adapters", |c| c.vmkernel_adapters[0].services.clear()),
            ("vswitches[0].mtu", |c| c.vswitches[0].mtu = 100),
            ("vswitches[0].uplinks", |c| c.vswitches[0].uplinks = Uplinks::Nics(vec!["eth0".into()])),
        ];
        for (field, change) in wrong {
            let mut config = NetworkConfig::default();
            change(&mut config);
            assert_eq!(config.validate().unwrap_err().field, field);
        }
    }
}
