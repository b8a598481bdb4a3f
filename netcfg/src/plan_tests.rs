//! Plans against the model of the kernel: carried out they leave nothing to do, and they touch only what is ours.

use std::collections::BTreeMap;

use keelson_netcfg_control::{
    Ipv4, NetworkConfig, NicName, PortGroup, Service, Uplinks, VSwitch, VmkAdapter,
};
use proptest::prelude::*;

use super::*;
use crate::model::Hardware;
use crate::status::switch_passes;
use crate::taps::TapAlias;
use crate::wanted::{Dynamic, settle, wanted};

const FALLBACK: MacAddr = MacAddr([0x50, 0, 0, 0, 0, 1]);

fn link(index: u32, name: &str, kind: Kind) -> Link {
    let mac = MacAddr([0x52, 0x54, 0, 0, (index >> 8) as u8, index as u8]);
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
        ipv6_off: false,
        vlans: BTreeMap::new(),
        addresses: vec![],
    }
}

fn physical(pci: u32) -> Kind {
    Kind::Physical(Hardware { pci: Some(format!("0000:00:{pci:02x}.0")), ..Hardware::default() })
}

fn run(kernel: &mut Observed, ops: &[Op]) {
    ops.iter().for_each(|op| kernel.simulate(op));
}

fn converge(
    config: &mut NetworkConfig,
    kernel: &mut Observed,
    dynamic: &BTreeMap<String, Dynamic>,
    vlans: bool,
) -> Vec<Op> {
    settle(config, kernel, true);
    carry_out(config, kernel, dynamic, vlans)
}

/// Plans and carries out, with the uplinks as they are picked: a link that comes up by the plan itself is the next event's matter.
fn carry_out(
    config: &NetworkConfig,
    kernel: &mut Observed,
    dynamic: &BTreeMap<String, Dynamic>,
    vlans: bool,
) -> Vec<Op> {
    let ops = plan(&wanted(config, dynamic, kernel, vlans, FALLBACK), kernel);
    run(kernel, &ops);
    ops
}

fn dhcp(address: &str) -> BTreeMap<String, Dynamic> {
    let dynamic = Dynamic { address: address.parse().unwrap(), gateway: Some("192.0.2.1".parse().unwrap()) };
    BTreeMap::from([("vmk0".into(), dynamic)])
}

fn fresh() -> Observed {
    let mut nic = link(2, "eth0", physical(3));
    nic.up = true;
    nic.carrier = true;
    Observed { links: vec![link(1, "lo", Kind::Loopback), nic], default_routes: vec![] }
}

#[test]
fn a_new_host_gets_its_switch_and_adapter() {
    let (mut config, mut kernel) = (NetworkConfig::default(), fresh());
    let ops = converge(&mut config, &mut kernel, &BTreeMap::new(), true);
    let told: Vec<String> = ops.iter().map(Op::to_string).collect();
    assert!(told.contains(&"bring lo up".into()), "{told:#?}");
    assert_eq!(told.first().map(String::as_str), Some("rename eth0 to vmnic0"));
    let nic = kernel.link("vmnic0").unwrap();
    assert_eq!((nic.master.as_deref(), &nic.vlans), (Some("vSwitch0"), &BTreeMap::from([(1, true)])));
    assert_ne!(kernel.link("vmk0").unwrap().mac, nic.mac);
    assert_eq!(config.vswitches[0].uplinks, Uplinks::Nics(vec!["vmnic0".into()]));
    // A lease, and then another one in the same network: the old address goes first.
    assert_eq!(converge(&mut config, &mut kernel, &dhcp("192.0.2.50/24"), true).len(), 2);
    let told: Vec<String> =
        converge(&mut config, &mut kernel, &dhcp("192.0.2.51/24"), true).iter().map(Op::to_string).collect();
    assert_eq!(told, ["remove 192.0.2.50/24 from vmk0", "add 192.0.2.51/24 to vmk0"]);
    assert_eq!(converge(&mut config, &mut kernel, &dhcp("192.0.2.51/24"), true), []);
}

#[test]
fn nics_come_up_before_anything_is_built_on_them() {
    let (mut config, mut kernel) = (NetworkConfig::default(), fresh());
    kernel.links.iter_mut().for_each(|l| (l.up, l.carrier) = (false, false));
    let ops = converge(&mut config, &mut kernel, &BTreeMap::new(), true);
    let at = |op: &Op| ops.iter().position(|o| o == op);
    let up = at(&Op::Up { link: "vmnic0".into() });
    assert!(up.is_some() && up < ops.iter().position(|o| matches!(o, Op::CreateBridge { .. })), "{ops:#?}");
}

#[test]
fn an_uplink_passes_frames_once_its_port_forwards() {
    let (mut config, mut kernel) = (NetworkConfig::default(), fresh());
    converge(&mut config, &mut kernel, &BTreeMap::new(), true);
    assert!(switch_passes(&config, &kernel, "vSwitch0"));
    kernel.links.iter_mut().filter(|l| l.name == "vmnic0").for_each(|l| l.forwarding = false);
    assert!(!switch_passes(&config, &kernel, "vSwitch0"));
    assert!(crate::status::switch_linked(&config, &kernel, "vSwitch0"));
}

#[test]
fn nothing_that_matches_is_touched_after_a_restart_that_has_forgotten_everything() {
    let (mut config, mut kernel) = (NetworkConfig::default(), fresh());
    converge(&mut config, &mut kernel, &dhcp("192.0.2.50/24"), true);
    let mut tap = link(40, "vmtap0", Kind::Tap);
    tap.alias =
        TapAlias { vm: uuid::Uuid::from_u128(7), index: 0, port_group: "VM Network".into() }.to_string();
    kernel.links.push(tap);
    converge(&mut config, &mut kernel, &dhcp("192.0.2.50/24"), true);
    assert_eq!(kernel.link("vmtap0").unwrap().master.as_deref(), Some("vSwitch0"));
    // A cable is out, and the configuration was never saved.
    kernel.links.iter_mut().for_each(|l| l.carrier = false);
    let mut forgotten = NetworkConfig::default();
    assert_eq!(converge(&mut forgotten, &mut kernel, &dhcp("192.0.2.50/24"), true), []);
    assert_eq!(forgotten, config);
}

#[test]
fn nics_that_swapped_their_names_are_swapped_back() {
    let mut kernel = fresh();
    kernel.links.push(link(3, "vmnic0", physical(4)));
    kernel.links[1].name = "vmnic1".into();
    let names = |k: &Observed| k.nics().iter().map(|l| (l.name.clone(), l.index)).collect::<Vec<_>>();
    let nic = |name: &str, i: usize, k: &Observed| NicName { name: name.into(), mac: k.links[i].mac };
    let mut config = NetworkConfig {
        nics: vec![nic("vmnic0", 1, &kernel), nic("vmnic1", 2, &kernel)],
        ..NetworkConfig::default()
    };
    let ops = converge(&mut config, &mut kernel, &BTreeMap::new(), false);
    assert_eq!(names(&kernel), [("vmnic0".into(), 2), ("vmnic1".into(), 3)], "{ops:#?}");
}

#[test]
fn a_port_group_with_vlan_1_moves_the_untagged_network_to_another_number() {
    let (mut config, mut kernel) = (NetworkConfig::default(), fresh());
    config.port_groups[1].vlan = 1;
    config.port_groups.push(PortGroup { name: "twenty".into(), vswitch: "vSwitch0".into(), vlan: 20 });
    converge(&mut config, &mut kernel, &BTreeMap::new(), true);
    assert_eq!(kernel.link("vmnic0").unwrap().vlans, BTreeMap::from([(1, false), (20, false), (4094, true)]));
    assert_eq!(kernel.link("vmk0p").unwrap().vlans, BTreeMap::from([(1, true)]));
    // And back.
    config.port_groups[1].vlan = 0;
    converge(&mut config, &mut kernel, &BTreeMap::new(), true);
    assert_eq!(kernel.link("vmnic0").unwrap().vlans, BTreeMap::from([(1, true), (20, false)]));
    assert_eq!(kernel.link("vmk0p").unwrap().vlans, BTreeMap::from([(1, true)]));
}

/// A host's interfaces in any state, ours and others'.
fn any_kernel() -> impl Strategy<Value = Observed> {
    let name = prop_oneof![
        (0u32..4).prop_map(|n| format!("vmnic{n}")),
        (0u32..3).prop_map(|n| format!("vSwitch{n}")),
        (0u32..3).prop_map(|n| format!("vmk{n}")),
        (0u32..3).prop_map(|n| format!("vmk{n}p")),
        (0u32..3).prop_map(|n| format!("vmtap{n}")),
        (0u32..3).prop_map(|n| format!("eth{n}")),
        Just("docker0".to_owned()),
        Just("nicswap0".to_owned()),
    ];
    let kind = prop_oneof![
        (0u32..8).prop_map(physical),
        (any::<bool>(), any::<bool>(), 0u32..3).prop_map(|(stp, filter, pvid)| Kind::Bridge(
            BridgeSettings {
                stp,
                forward_delay: pvid * 100,
                multicast_snooping: stp,
                vlan_filtering: filter,
                default_pvid: Some(pvid as u16),
            }
        )),
        proptest::option::of(2u32..12).prop_map(Kind::Veth),
        Just(Kind::Tap),
        Just(Kind::Other),
    ];
    let state = (any::<[bool; 3]>(), 1400u32..1600, proptest::option::of(0u32..3), 0u8..4, any::<bool>());
    proptest::collection::btree_map(name, (kind, state), 0..10).prop_map(|links| {
        let mut kernel = Observed { links: vec![link(1, "lo", Kind::Loopback)], default_routes: vec![] };
        for (n, (name, (kind, ([up, carrier, off], mtu, master, address, alias)))) in
            links.into_iter().enumerate()
        {
            let mut l = link(n as u32 + 2, &name, kind);
            (l.up, l.carrier, l.ipv6_off, l.mtu) = (up, carrier, off, mtu);
            l.master = master.map(|m| format!("vSwitch{m}"));
            if l.master.is_some() {
                l.vlans.insert(u16::from(address) + 1, up);
            }
            if address > 0 {
                l.addresses.push(format!("192.0.2.{address}/24").parse().unwrap());
                kernel.default_routes.push(DefaultRoute {
                    link: name,
                    gateway: [192, 0, 2, 254].into(),
                    metric: u32::from(address),
                });
            }
            if alias && l.kind == Kind::Tap {
                l.alias =
                    TapAlias { vm: uuid::Uuid::from_u128(1), index: 0, port_group: "VM Network".into() }
                        .to_string();
            }
            kernel.links.push(l);
        }
        // A port of a bridge that is not there cannot be.
        let bridges: Vec<String> =
            kernel.links.iter().filter(|l| l.bridge().is_some()).map(|l| l.name.clone()).collect();
        for l in &mut kernel.links {
            if l.master.as_ref().is_some_and(|m| !bridges.contains(m) || l.bridge().is_some()) {
                l.master = None;
                l.vlans.clear();
            }
        }
        kernel
    })
}

fn any_config() -> impl Strategy<Value = NetworkConfig> {
    let group = (0usize..2, 0u16..4);
    let adapter = (0usize..3, proptest::option::of(1u8..200), any::<bool>());
    (
        proptest::collection::vec(group, 1..4),
        proptest::collection::vec(adapter, 1..4),
        1400u32..1600,
        any::<bool>(),
    )
        .prop_map(|(groups, adapters, mtu, first)| {
            let uplinks = if first { Uplinks::FirstLinked } else { Uplinks::Nics(vec!["vmnic1".into()]) };
            let switch = |n: u32, uplinks| VSwitch { name: format!("vSwitch{n}"), uplinks, mtu };
            let mut port_groups: Vec<PortGroup> = groups
                .iter()
                .enumerate()
                .map(|(i, (s, vlan))| PortGroup {
                    name: format!("group {i}"),
                    vswitch: format!("vSwitch{s}"),
                    vlan: *vlan,
                })
                .collect();
            port_groups.push(PortGroup { name: "VM Network".into(), vswitch: "vSwitch0".into(), vlan: 0 });
            let vmkernel_adapters = adapters
                .iter()
                .enumerate()
                .map(|(i, (g, address, dhcp))| VmkAdapter {
                    name: format!("vmk{i}"),
                    port_group: port_groups[g % port_groups.len()].name.clone(),
                    mac: None,
                    ipv4: match (dhcp, address) {
                        (true, _) => Ipv4::Dhcp,
                        (false, None) => Ipv4::Disabled,
                        (false, Some(a)) => {
                            let network = 10 + i;
                            let gateway = format!("10.{network}.0.254").parse().unwrap();
                            Ipv4::Static {
                                address: format!("10.{network}.0.{a}/24").parse().unwrap(),
                                gateway: Some(gateway),
                            }
                        }
                    },
                    services: [Service::Management].into(),
                })
                .collect();
            NetworkConfig {
                vswitches: vec![switch(0, uplinks), switch(1, Uplinks::Nics(vec![]))],
                port_groups,
                vmkernel_adapters,
                ..NetworkConfig::default()
            }
        })
}

/// Whether a link is named as netd names what is its own.
fn ours(name: &str) -> bool {
    ["vSwitch", "vmk"].iter().any(|p| names::number(name.strip_suffix('p').unwrap_or(name), p).is_some())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn a_plan_carried_out_leaves_nothing_to_do(kernel in any_kernel(), config in any_config(), lease: bool, vlans: bool) {
        prop_assert_eq!(config.validate(), Ok(()));
        let dynamic = if lease { dhcp("192.0.2.77/24") } else { BTreeMap::new() };
        let (mut kernel, mut config) = (kernel, config);
        let before = kernel.clone();
        let ops = converge(&mut config, &mut kernel, &dynamic, vlans);
        let again = carry_out(&config, &mut kernel, &dynamic, vlans);
        prop_assert!(again.is_empty(), "left over: {:?}\nafter {:?}", again, ops);
        // Every name is there once, and names are what Linux takes.
        for l in &kernel.links {
            prop_assert!(l.name.len() <= 15);
            prop_assert_eq!(kernel.links.iter().filter(|o| o.name == l.name).count(), 1, "{}", &l.name);
        }
        // What is not ours is still there, by its index; only the occupier of a NIC's name may have been renamed.
        for l in before.links.iter().filter(|l| !ours(&l.name)) {
            // A veth end goes with its other end, when that one is ours.
            let peer = if let Kind::Veth(Some(peer)) = l.kind { before.links.iter().find(|p| p.index == peer) } else { None };
            let pulled = peer.is_some_and(|p| ours(&p.name)) || before.links.iter().any(|o| ours(&o.name) && o.kind == Kind::Veth(Some(l.index)));
            let now = kernel.links.iter().find(|n| n.index == l.index && n.mac == l.mac);
            prop_assert!(pulled || now.is_some(), "{} is gone: {:?}", &l.name, ops);
            if let Some(now) = now.filter(|n| n.name != l.name) {
                prop_assert!(l.is_nic() || names::number(&l.name, "vmnic").is_some(), "{} became {}", &l.name, &now.name);
            }
        }
    }

    #[test]
    fn a_cut_off_plan_is_taken_up_again(kernel in any_kernel(), config in any_config(), done in 0usize..30, vlans: bool) {
        let (mut kernel, mut config) = (kernel, config);
        settle(&mut config, &kernel, true);
        let ops = plan(&wanted(&config, &BTreeMap::new(), &kernel, vlans, FALLBACK), &kernel);
        run(&mut kernel, ops.get(..done.min(ops.len())).unwrap());
        carry_out(&config, &mut kernel, &BTreeMap::new(), vlans);
        let left = carry_out(&config, &mut kernel, &BTreeMap::new(), vlans);
        prop_assert!(left.is_empty(), "left over: {:?}", left);
    }
}
