//! ARP over Ethernet for IPv4 (RFC 826): probes, announcements (RFC 5227) and what is seen of others.

use std::net::Ipv4Addr;

use etherparse::{ArpEthIpv4Packet, ArpOperation, EtherType, Ethernet2Header, NetSlice, SlicedPacket};
use keelson_netcfg_control::MacAddr;

/// The EtherType of ARP.
pub(crate) const ETHERTYPE: u16 = 0x0806;

/// What one ARP packet of somebody says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Arp {
    pub(crate) sender_mac: MacAddr,
    pub(crate) sender: Ipv4Addr,
    pub(crate) target: Ipv4Addr,
    /// A request (a probe has no sender address).
    pub(crate) request: bool,
}

impl Arp {
    /// Reads a frame; `None` when it is no ARP packet for IPv4 over Ethernet.
    pub(crate) fn parse(frame: &[u8]) -> Option<Self> {
        let Some(NetSlice::Arp(arp)) = SlicedPacket::from_ethernet(frame).ok()?.net else { return None };
        let packet = ArpEthIpv4Packet::try_from(arp.to_packet()).ok()?;
        Some(Self {
            sender_mac: MacAddr(packet.sender_mac),
            sender: packet.sender_ipv4_addr(),
            target: packet.target_ipv4_addr(),
            request: packet.operation == ArpOperation::REQUEST,
        })
    }

    /// Whether it shows that somebody but `mac` has `address` or is about to take it (RFC 5227, 2.1.1).
    pub(crate) fn conflicts_with(&self, address: Ipv4Addr, mac: MacAddr) -> bool {
        let probe = self.request && self.sender.is_unspecified() && self.target == address;
        self.sender_mac != mac && (self.sender == address || probe)
    }
}

fn frame(mac: MacAddr, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let header = Ethernet2Header { source: mac.0, destination: [0xff; 6], ether_type: EtherType::ARP };
    let packet = ArpEthIpv4Packet {
        operation: ArpOperation::REQUEST,
        sender_mac: mac.0,
        sender_ipv4: sender.octets(),
        target_mac: [0; 6],
        target_ipv4: target.octets(),
    };
    let mut frame = header.to_bytes().to_vec();
    frame.extend_from_slice(&packet.to_bytes());
    frame
}

/// The question whether somebody has `address`, asked without claiming it.
pub(crate) fn probe(mac: MacAddr, address: Ipv4Addr) -> Vec<u8> {
    frame(mac, Ipv4Addr::UNSPECIFIED, address)
}

/// The statement that `mac` has `address`: neighbours and switches update what they know.
pub(crate) fn announcement(mac: MacAddr, address: Ipv4Addr) -> Vec<u8> {
    frame(mac, address, address)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
    const OTHER: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);

    #[test]
    fn probes_and_announcements_conflict_for_others_only() {
        let address = Ipv4Addr::new(192, 0, 2, 7);
        for bytes in [probe(OTHER, address), announcement(OTHER, address)] {
            let arp = Arp::parse(&bytes).unwrap();
            assert!(arp.conflicts_with(address, MAC));
            assert!(!arp.conflicts_with(address, OTHER));
            assert!(!arp.conflicts_with(Ipv4Addr::new(192, 0, 2, 8), MAC));
        }
        // Somebody who asks for the holder does not claim the address.
        let question =
            Arp { sender_mac: OTHER, sender: Ipv4Addr::new(192, 0, 2, 1), target: address, request: true };
        assert!(!question.conflicts_with(address, MAC));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = Arp::parse(&bytes);
            let mut framed = announcement(MAC, Ipv4Addr::LOCALHOST);
            framed.truncate(14);
            framed.extend(bytes);
            let _ = Arp::parse(&framed);
        }
    }
}
