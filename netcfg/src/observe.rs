//! Reading the kernel: links, bridge VLANs, addresses and default routes by rtnetlink; driver, PCI address and speed of NICs by sysfs and ethtool.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use futures::TryStreamExt;
use ipnet::Ipv4Net;
use keelson_netcfg_control::MacAddr;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{
    AfSpecBridge, AfSpecInet6, AfSpecUnspec, BridgePortState, BridgeStpState, BridgeVlanInfoFlags,
    InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, LinkAttribute, LinkExtentMask, LinkFlags,
    LinkInfo, LinkLayerType, LinkMessage,
};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteType};
use rtnetlink::{Handle, RouteMessageBuilder};

use crate::model::{BridgeSettings, DefaultRoute, Hardware, Kind, Link, Observed};

/// Why the kernel could not be read.
#[derive(Debug, thiserror::Error)]
#[error("the kernel's list of {what} could not be read")]
pub(crate) struct ObserveError {
    what: &'static str,
    #[source]
    source: rtnetlink::Error,
}

/// Reads everything. `speeds` are those of the NICs that told theirs, by interface index.
pub(crate) async fn observe(handle: &Handle, speeds: &BTreeMap<u32, u32>) -> Result<Observed, ObserveError> {
    let failed = |what| move |source| ObserveError { what, source };
    let mut links = Vec::new();
    let mut masters = BTreeMap::new();
    let mut messages = handle.link().get().execute();
    while let Some(message) = messages.try_next().await.map_err(failed("links"))? {
        let (link, master) = read_link(&message, speeds);
        if let Some(master) = master {
            masters.insert(link.index, master);
        }
        links.push(link);
    }
    let names: BTreeMap<u32, String> = links.iter().map(|l: &Link| (l.index, l.name.clone())).collect();
    let filtering = links.iter().filter_map(Link::bridge).any(|b| b.default_pvid.is_some());
    let mut vlans =
        if filtering { read_vlans(handle).await.map_err(failed("bridge VLANs"))? } else { BTreeMap::new() };
    let mut addresses: BTreeMap<u32, Vec<Ipv4Net>> = BTreeMap::new();
    let mut messages = handle.address().get().execute();
    while let Some(message) = messages.try_next().await.map_err(failed("addresses"))? {
        let local = message.attributes.iter().find_map(|a| match a {
            AddressAttribute::Local(IpAddr::V4(a)) => Some(*a),
            _ => None,
        });
        if let Some(address) = local.and_then(|a| Ipv4Net::new(a, message.header.prefix_len).ok()) {
            addresses.entry(message.header.index).or_default().push(address);
        }
    }
    for link in &mut links {
        link.master = masters.get(&link.index).and_then(|m| names.get(m)).cloned();
        link.vlans = vlans.remove(&link.index).unwrap_or_default();
        link.addresses = addresses.remove(&link.index).unwrap_or_default();
    }
    let mut default_routes = Vec::new();
    let mut messages = handle.route().get(RouteMessageBuilder::<Ipv4Addr>::new().build()).execute();
    while let Some(message) = messages.try_next().await.map_err(failed("routes"))? {
        let header = &message.header;
        if header.destination_prefix_length != 0
            || header.address_family != AddressFamily::Inet
            || header.table != RouteHeader::RT_TABLE_MAIN
            || header.kind != RouteType::Unicast
        {
            continue;
        }
        let mut route = (None, None, 0);
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Oif(index) => route.0 = names.get(index).cloned(),
                RouteAttribute::Gateway(RouteAddress::Inet(gateway)) => route.1 = Some(*gateway),
                RouteAttribute::Priority(metric) => route.2 = *metric,
                _ => {}
            }
        }
        if let (Some(link), Some(gateway), metric) = route {
            default_routes.push(DefaultRoute { link, gateway, metric });
        }
    }
    links.sort_by_key(|l| l.index);
    Ok(Observed { links, default_routes })
}

fn mac(bytes: &[u8]) -> Option<MacAddr> {
    <[u8; 6]>::try_from(bytes).ok().map(MacAddr).filter(|m| m.0 != [0; 6])
}

fn read_link(message: &LinkMessage, speeds: &BTreeMap<u32, u32>) -> (Link, Option<u32>) {
    let header = &message.header;
    let mut link = Link {
        index: header.index,
        name: String::new(),
        kind: Kind::Other,
        mac: MacAddr([0; 6]),
        permanent_mac: MacAddr([0; 6]),
        up: header.flags.contains(LinkFlags::Up),
        carrier: header.flags.contains(LinkFlags::LowerUp),
        forwarding: true,
        mtu: 0,
        master: None,
        alias: String::new(),
        ipv6_off: true,
        vlans: BTreeMap::new(),
        addresses: Vec::new(),
    };
    let (mut master, mut peer, mut parent, mut bus, mut permanent) = (None, None, None, None, None);
    let (mut kind, mut data, mut elsewhere) = (None, None, false);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(bytes) => link.mac = mac(bytes).unwrap_or(link.mac),
            LinkAttribute::PermAddress(bytes) => permanent = mac(bytes),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Controller(index) => master = Some(*index).filter(|i| *i != 0),
            LinkAttribute::Link(index) => peer = Some(*index),
            // The other end is in another network namespace: its index means nothing here.
            LinkAttribute::LinkNetNsId(_) => elsewhere = true,
            LinkAttribute::IfAlias(alias) => link.alias.clone_from(alias),
            LinkAttribute::ParentDevName(name) => parent = Some(name.clone()),
            LinkAttribute::ParentDevBusName(name) => bus = Some(name.clone()),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(k) => kind = Some(k.clone()),
                        LinkInfo::Data(d) => data = Some(d),
                        LinkInfo::PortData(InfoPortData::BridgePort(port)) => {
                            link.forwarding = forwards(port);
                        }
                        _ => {}
                    }
                }
            }
            LinkAttribute::AfSpecUnspec(families) => {
                let inet6 = families.iter().find_map(|f| match f {
                    AfSpecUnspec::Inet6(attributes) => Some(attributes),
                    _ => None,
                });
                let devconf = inet6.into_iter().flatten().find_map(|a| match a {
                    AfSpecInet6::DevConf(conf) => Some(conf.disable_ipv6),
                    _ => None,
                });
                link.ipv6_off = devconf.is_none_or(|off| off != 0);
            }
            _ => {}
        }
    }
    link.permanent_mac = permanent.unwrap_or(link.mac);
    link.kind = match (kind, data) {
        (Some(InfoKind::Bridge), Some(InfoData::Bridge(infos))) => Kind::Bridge(read_bridge(infos)),
        (Some(InfoKind::Veth), _) => Kind::Veth(peer.filter(|_| !elsewhere)),
        (Some(InfoKind::Tun), _) => Kind::Tap,
        (None, _) if header.link_layer_type == LinkLayerType::Loopback => Kind::Loopback,
        (None, _) if header.link_layer_type == LinkLayerType::Ether => match (parent, bus) {
            (Some(parent), Some(bus)) => {
                let speed_mbps = speeds.get(&link.index).copied();
                Kind::Physical(Hardware { speed_mbps, ..read_hardware(Path::new("/sys"), &bus, &parent) })
            }
            _ => Kind::Other,
        },
        _ => Kind::Other,
    };
    (link, master)
}

fn forwards(port: &[InfoBridgePort]) -> bool {
    let state = port.iter().find_map(|p| match p {
        InfoBridgePort::State(state) => Some(*state),
        _ => None,
    });
    state.is_none_or(|s| s == BridgePortState::Forwarding)
}

fn read_bridge(infos: &[InfoBridge]) -> BridgeSettings {
    let mut settings = BridgeSettings {
        stp: false,
        forward_delay: 0,
        multicast_snooping: false,
        vlan_filtering: false,
        default_pvid: None,
    };
    for info in infos {
        match info {
            InfoBridge::StpState(state) => settings.stp = *state != BridgeStpState::Disabled,
            InfoBridge::ForwardDelay(delay) => settings.forward_delay = *delay,
            InfoBridge::MulticastSnooping(on) => settings.multicast_snooping = *on,
            InfoBridge::VlanFiltering(on) => settings.vlan_filtering = *on,
            InfoBridge::VlanDefaultPvid(vid) => settings.default_pvid = Some(*vid),
            _ => {}
        }
    }
    settings
}

/// The driver and the PCI address of a device. Unlike /sys/class/net these paths do not depend on which network namespace
/// /sys was mounted in. A virtio NIC's PCI device is the virtio device's parent.
fn read_hardware(sys: &Path, bus: &str, device: &str) -> Hardware {
    let path = sys.join("bus").join(bus).join("devices").join(device);
    let last = |path: std::path::PathBuf| path.file_name().map(|n| n.to_string_lossy().into_owned());
    let driver = std::fs::read_link(path.join("driver")).ok().and_then(last);
    let is_pci = |name: &String| name.len() == 12 && name.bytes().filter(|b| *b == b':').count() == 2;
    let ancestors = std::fs::canonicalize(&path).unwrap_or(path);
    let pci = ancestors
        .ancestors()
        .filter_map(|a| Some(a.file_name()?.to_string_lossy().into_owned()))
        .find(is_pci);
    Hardware { driver: driver.unwrap_or_default(), pci, speed_mbps: None }
}

async fn read_vlans(handle: &Handle) -> Result<BTreeMap<u32, BTreeMap<u16, bool>>, rtnetlink::Error> {
    let mut vlans: BTreeMap<u32, BTreeMap<u16, bool>> = BTreeMap::new();
    let mut messages =
        handle.link().get().set_filter_mask(AddressFamily::Bridge, vec![LinkExtentMask::Brvlan]).execute();
    while let Some(message) = messages.try_next().await? {
        let port = vlans.entry(message.header.index).or_default();
        for attribute in &message.attributes {
            let LinkAttribute::AfSpecBridge(specs) = attribute else { continue };
            for spec in specs {
                if let AfSpecBridge::VlanInfo(info) = spec {
                    let own = BridgeVlanInfoFlags::Pvid | BridgeVlanInfoFlags::Untagged;
                    port.insert(info.vid, info.flags.contains(own));
                }
            }
        }
    }
    Ok(vlans)
}

/// The speeds of those links that tell one, in Mb/s, by interface index. A kernel without ethtool netlink tells none.
pub(crate) async fn speeds(handle: &mut ethtool::EthtoolHandle) -> BTreeMap<u32, u32> {
    use ethtool::{EthtoolAttr, EthtoolHeader, EthtoolLinkModeAttr};
    let mut speeds = BTreeMap::new();
    let Ok(messages) = handle.link_mode().get(None).execute().await else { return speeds };
    let mut messages = std::pin::pin!(messages);
    while let Ok(Some(message)) = messages.try_next().await {
        let (mut index, mut speed) = (None, None);
        for attribute in &message.payload.nlas {
            match attribute {
                EthtoolAttr::LinkMode(EthtoolLinkModeAttr::Header(headers)) => {
                    index = headers
                        .iter()
                        .find_map(|h| if let EthtoolHeader::DevIndex(i) = h { Some(*i) } else { None });
                }
                // -1 is the kernel's word for "unknown".
                EthtoolAttr::LinkMode(EthtoolLinkModeAttr::Speed(s)) => {
                    speed = Some(*s).filter(|s| *s != 0 && *s != u32::MAX)
                }
                _ => {}
            }
        }
        if let (Some(index), Some(speed)) = (index, speed) {
            speeds.insert(index, speed);
        }
    }
    speeds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_virtio_nics_pci_address_is_its_parents() {
        let sys = tempfile::tempdir().unwrap();
        let device = sys.path().join("devices/pci0000:00/0000:00:03.0/virtio1");
        std::fs::create_dir_all(&device).unwrap();
        let driver = sys.path().join("bus/virtio/drivers/virtio_net");
        std::fs::create_dir_all(&driver).unwrap();
        std::os::unix::fs::symlink(&driver, device.join("driver")).unwrap();
        let listed = sys.path().join("bus/virtio/devices");
        std::fs::create_dir_all(&listed).unwrap();
        std::os::unix::fs::symlink(&device, listed.join("virtio1")).unwrap();
        let hardware = read_hardware(sys.path(), "virtio", "virtio1");
        assert_eq!((hardware.driver.as_str(), hardware.pci.as_deref()), ("virtio_net", Some("0000:00:03.0")));
        assert_eq!(read_hardware(sys.path(), "usb", "1-1:1.0"), Hardware::default());
    }
}
