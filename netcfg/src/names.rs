//! Names and addresses that stay: which NIC is vmnicN, and which MAC address an adapter or a switch has.

use keelson_netcfg_control::{MacAddr, NicName};

use crate::model::Link;

/// The number in a name such as `vmnic3`; `None` when it is no such name.
pub(crate) fn number(name: &str, prefix: &str) -> Option<u32> {
    let digits = name.strip_prefix(prefix)?;
    let canonical = digits == "0" || !digits.starts_with('0');
    if !canonical || digits.len() > 4 || digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

/// The lowest `prefixN` that `taken` does not hold.
pub(crate) fn first_free<'a>(prefix: &str, taken: impl Iterator<Item = &'a str> + Clone) -> String {
    let used: std::collections::BTreeSet<u32> = taken.filter_map(|n| number(n, prefix)).collect();
    let free = (0..).find(|n| !used.contains(n)).unwrap_or(0);
    format!("{prefix}{free}")
}

/// The name of a VMkernel adapter's other end, the bridge port.
pub(crate) fn peer_of(adapter: &str) -> String {
    format!("{adapter}p")
}

/// Names all NICs: one that is remembered by its MAC address keeps its name; new ones are named in PCI address order.
///
/// A new NIC that the kernel already calls vmnicN keeps that (netd named it before, or the light host's lab did), unless another
/// NIC is known by it. Without a PCI address (a light host) it also takes over the name of a NIC that is gone, as the lab makes new
/// MAC addresses for the same place. NICs that are gone keep their names reserved.
pub(crate) fn name_nics(remembered: &[NicName], nics: &[&Link]) -> Vec<NicName> {
    let mut names: Vec<NicName> = remembered.to_vec();
    let present = |mac: MacAddr| nics.iter().any(|l| l.permanent_mac == mac);
    let mut new: Vec<&&Link> =
        nics.iter().filter(|l| !remembered.iter().any(|n| n.mac == l.permanent_mac)).collect();
    new.sort_by_key(|l| {
        (l.pci().is_none(), l.pci().map(str::to_owned), number(&l.name, "vmnic").unwrap_or(u32::MAX), l.index)
    });
    let mut unnamed = Vec::new();
    for link in new {
        if names.iter().any(|n| n.mac == link.permanent_mac) {
            continue; // Two NICs of one MAC address cannot be told apart: the first has the name.
        }
        let holder = names.iter().position(|n| n.name == link.name);
        match holder {
            _ if number(&link.name, "vmnic").is_none() => unnamed.push(link),
            None => names.push(NicName { name: link.name.clone(), mac: link.permanent_mac }),
            Some(i) if link.pci().is_none() && !names.get(i).is_some_and(|n| present(n.mac)) => {
                names.remove(i);
                names.push(NicName { name: link.name.clone(), mac: link.permanent_mac });
            }
            Some(_) => unnamed.push(link),
        }
    }
    for link in unnamed {
        if names.iter().any(|n| n.mac == link.permanent_mac) {
            continue;
        }
        let name = first_free("vmnic", names.iter().map(|n| n.name.as_str()));
        names.push(NicName { name, mac: link.permanent_mac });
    }
    names.sort_by_key(|n| number(&n.name, "vmnic"));
    names
}

/// A MAC address derived from a NIC's: locally administered, never the NIC's own, a different one for each `n` below 4095.
///
/// The NIC's own address cannot be used: it is a local address of the bridge port, so the bridge would keep frames to it.
pub(crate) fn derived_mac(nic: MacAddr, n: u32) -> MacAddr {
    let [a, b, c, d, e, f] = nic.0;
    // A virtual NIC's address often has the local bit already; then number 0 must differ in another bit.
    let k = if a & 2 == 0 { n } else { n + 1 };
    let low = u8::try_from(k & 0x3f).unwrap_or(0) << 2;
    let high = u8::try_from((k >> 6) & 0xff).unwrap_or(0);
    MacAddr([((a | 2) & !1) ^ low, b ^ high, c, d, e, f])
}

/// The number by which a switch's own MAC address is derived: apart from those of adapters.
pub(crate) const SWITCH_MACS: u32 = 0x800;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Hardware, Kind};
    use std::collections::BTreeSet;

    fn nic(index: u32, name: &str, mac: u8, pci: Option<&str>) -> Link {
        let kind = match pci {
            Some(pci) => Kind::Physical(Hardware { pci: Some(pci.into()), ..Hardware::default() }),
            None => Kind::Veth(None),
        };
        let mac = MacAddr([0x52, 0x54, 0, 0, 0, mac]);
        Link {
            index,
            name: name.into(),
            kind,
            mac,
            permanent_mac: mac,
            up: false,
            carrier: false,
            forwarding: true,
            mtu: 1500,
            master: None,
            alias: String::new(),
            ipv6_off: true,
            vlans: std::collections::BTreeMap::new(),
            addresses: vec![],
        }
    }

    fn named(links: &[Link], remembered: &[NicName]) -> Vec<(String, u8)> {
        let links: Vec<&Link> = links.iter().collect();
        name_nics(remembered, &links).into_iter().map(|n| (n.name, n.mac.0[5])).collect()
    }

    #[test]
    fn new_nics_are_named_in_pci_order_and_kept_by_mac() {
        let first = [nic(2, "eth0", 9, Some("0000:03:00.0")), nic(3, "eth1", 7, Some("0000:01:00.0"))];
        assert_eq!(named(&first, &[]), [("vmnic0".into(), 7), ("vmnic1".into(), 9)]);
        let links: Vec<&Link> = first.iter().collect();
        let remembered = name_nics(&[], &links);
        // A NIC that is added before the others later does not renumber them.
        let later = [nic(2, "eth0", 1, Some("0000:00:03.0")), nic(4, "eth2", 9, Some("0000:03:00.0"))];
        assert_eq!(
            named(&later, &remembered),
            [("vmnic0".into(), 7), ("vmnic1".into(), 9), ("vmnic2".into(), 1)]
        );
    }

    #[test]
    fn a_light_hosts_nic_takes_over_the_name_of_one_that_is_gone() {
        let remembered = [NicName { name: "vmnic0".into(), mac: MacAddr([2, 0, 0, 0, 0, 1]) }];
        assert_eq!(named(&[nic(2, "vmnic0", 5, None)], &remembered), [("vmnic0".into(), 5)]);
        assert_eq!(named(&[nic(2, "vmnic0", 5, Some("0000:00:03.0"))], &remembered).len(), 2);
    }

    proptest::proptest! {
        #[test]
        fn derived_addresses_are_unicast_local_and_distinct(mac: [u8; 6]) {
            let nic = MacAddr([mac[0] & !1, mac[1], mac[2], mac[3], mac[4], mac[5]]);
            let mut seen = BTreeSet::from([nic]);
            for n in (0..80).chain(SWITCH_MACS..SWITCH_MACS + 80) {
                let derived = derived_mac(nic, n);
                proptest::prop_assert_eq!(derived.0[0] & 3, 2);
                proptest::prop_assert!(seen.insert(derived), "{} of {}", n, nic);
            }
        }

        #[test]
        fn no_name_is_given_twice(count in 0usize..8, remembered in 0usize..8, light: bool) {
            let remembered: Vec<NicName> = (0..remembered)
                .map(|i| NicName { name: format!("vmnic{}", i * 2), mac: MacAddr([0x52, 0x54, 0, 0, 0, i as u8 * 3]) })
                .collect();
            let links: Vec<Link> = (0..count)
                .map(|i| nic(i as u32 + 2, &format!("vmnic{i}"), i as u8, (!light).then_some("0000:00:01.0")))
                .collect();
            let names = named(&links, &remembered);
            let unique: BTreeSet<_> = names.iter().map(|n| &n.0).collect();
            proptest::prop_assert_eq!(unique.len(), names.len());
            for link in &links {
                proptest::prop_assert!(names.iter().any(|n| n.1 == link.permanent_mac.0[5]));
            }
        }
    }
}
