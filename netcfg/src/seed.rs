//! The configuration of a host that has never been configured: the default, changed by the words it got at power-on.

use keelson_init_control::{AddressWord, HostWords};
use keelson_netcfg_control::{Ipv4, MacAddr, NetworkConfig, Problem, Uplinks};

/// The uplink that a host word asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum WantedNic {
    Name(String),
    Mac(MacAddr),
}

/// The first configuration, the NIC that was asked for (its name may not be known yet), and words that cannot be followed.
pub(crate) fn seed(words: &HostWords) -> (NetworkConfig, Option<WantedNic>, Vec<Problem>) {
    let mut config = NetworkConfig::default();
    let mut problems = Vec::new();
    if let Some(AddressWord::Static(address)) = words.address {
        if let Some(adapter) = config.vmkernel_adapters.first_mut() {
            adapter.ipv4 = Ipv4::Static { address, gateway: words.gateway };
        }
        if config.validate().is_err() && words.gateway.is_some() {
            // The address alone may still reach the host from its own network.
            if let Some(adapter) = config.vmkernel_adapters.first_mut() {
                adapter.ipv4 = Ipv4::Static { address, gateway: None };
            }
            problems.push(ignored("gateway", "it is not another address within the network of `address`"));
        }
        if let Err(e) = config.validate() {
            config.vmkernel_adapters = NetworkConfig::default().vmkernel_adapters;
            problems.push(ignored("address", &e.problem));
        }
    } else if words.gateway.is_some() {
        problems.push(ignored("gateway", "it counts only with a static `address`"));
    }
    config.dns.servers = words.dns.iter().copied().take(3).collect();
    if let (Some(vlan), Some(group)) =
        (words.vlan, config.port_groups.iter_mut().find(|g| g.name == "Management Network"))
    {
        group.vlan = vlan;
    }
    let nic = words
        .nic
        .as_ref()
        .map(|text| text.parse().map_or_else(|_| WantedNic::Name(text.clone()), WantedNic::Mac));
    (config, nic, problems)
}

fn ignored(word: &str, why: &str) -> Problem {
    Problem {
        code: "word-ignored".into(),
        message: format!("the host word `{word}` is ignored: {why}"),
        remedy:
            "Correct it on the kernel command line or in keelson.conf, or configure the management network."
                .into(),
    }
}

/// Makes the NIC that a word asked for vSwitch0's uplink, once it is there; returns whether it is.
pub(crate) fn use_nic(config: &mut NetworkConfig, nic: &WantedNic) -> bool {
    let name = match nic {
        WantedNic::Name(name) => config.nics.iter().find(|n| n.name == *name),
        WantedNic::Mac(mac) => config.nics.iter().find(|n| n.mac == *mac),
    };
    let Some(name) = name.map(|n| n.name.clone()) else { return false };
    if let Some(switch) = config.vswitches.first_mut() {
        switch.uplinks = Uplinks::Nics(vec![name]);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_init_control::parse_cmdline;

    fn seeded(line: &str) -> (NetworkConfig, Option<WantedNic>, Vec<Problem>) {
        let (words, errors) = parse_cmdline(line);
        assert!(errors.is_empty(), "{errors:?}");
        let seeded = seed(&words);
        assert_eq!(seeded.0.validate(), Ok(()));
        seeded
    }

    #[test]
    fn words_become_the_first_configuration() {
        let (config, nic, problems) = seeded(
            "keelson.address=192.0.2.10/24 keelson.gateway=192.0.2.1 keelson.dns=192.0.2.2 keelson.vlan=20 keelson.nic=vmnic1",
        );
        assert_eq!(problems, []);
        assert_eq!(
            config.vmkernel_adapters[0].ipv4,
            Ipv4::Static {
                address: "192.0.2.10/24".parse().unwrap(),
                gateway: Some("192.0.2.1".parse().unwrap())
            }
        );
        assert_eq!(config.port_groups.iter().map(|g| g.vlan).collect::<Vec<_>>(), [0, 20]);
        assert_eq!(nic, Some(WantedNic::Name("vmnic1".into())));
        assert_eq!(seeded(""), (NetworkConfig::default(), None, vec![]));
    }

    #[test]
    fn words_that_do_not_fit_together_are_named_and_the_rest_counts() {
        let (config, _, problems) = seeded("keelson.address=192.0.2.10/24 keelson.gateway=198.51.100.1");
        assert!(matches!(config.vmkernel_adapters[0].ipv4, Ipv4::Static { gateway: None, .. }));
        assert_eq!(problems.len(), 1);
        let (config, _, problems) = seeded("keelson.address=192.0.2.0/24");
        assert_eq!(config.vmkernel_adapters[0].ipv4, Ipv4::Dhcp);
        assert_eq!(problems.len(), 1);
    }
}
