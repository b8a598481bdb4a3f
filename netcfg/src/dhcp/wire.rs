//! DHCPv4 messages in Ethernet frames, both ways. What comes in is outside data: anything unexpected is `None`.

use std::net::Ipv4Addr;

use dhcproto::v4::{CLIENT_PORT, DhcpOption, HType, Message, MessageType, Opcode, OptionCode, SERVER_PORT};
use dhcproto::{Decodable, Encodable};
use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use keelson_netcfg_control::MacAddr;

use crate::dhcp::machine::{Outgoing, OutgoingKind, Reply, ReplyKind};
use crate::sys::Bpf;

/// The EtherType of IPv4.
pub(crate) const ETHERTYPE: u16 = 0x0800;

/// Lets only unfragmented UDP over IPv4 to port 68 pass: a host's other traffic must not wake netd.
pub(crate) const FILTER: [Bpf; 9] = [
    Bpf(0x30, 0, 0, 23),     // load the IP protocol
    Bpf(0x15, 0, 6, 17),     // UDP, or drop
    Bpf(0x28, 0, 0, 20),     // load flags and fragment offset
    Bpf(0x45, 4, 0, 0x3fff), // a fragment: drop
    Bpf(0xb1, 0, 0, 14),     // X = length of the IP header
    Bpf(0x48, 0, 0, 16),     // load the UDP destination port at 14 + X + 2
    Bpf(0x15, 0, 1, CLIENT_PORT as u32),
    Bpf(0x06, 0, 0, 0xffff), // take the frame
    Bpf(0x06, 0, 0, 0),      // drop it
];

/// The message as DHCP has it.
pub(crate) fn encode(message: &Outgoing, mac: MacAddr, hostname: Option<&str>) -> Option<Vec<u8>> {
    let none = Ipv4Addr::UNSPECIFIED;
    let mut dhcp =
        Message::new_with_id(message.xid, message.ciaddr.unwrap_or(none), none, none, none, &mac.0);
    dhcp.set_secs(message.secs);
    let options = dhcp.opts_mut();
    options.insert(DhcpOption::MessageType(match message.kind {
        OutgoingKind::Discover => MessageType::Discover,
        OutgoingKind::Request => MessageType::Request,
        OutgoingKind::Decline => MessageType::Decline,
    }));
    let mut identifier = vec![1];
    identifier.extend_from_slice(&mac.0);
    options.insert(DhcpOption::ClientIdentifier(identifier));
    if let Some(address) = message.requested {
        options.insert(DhcpOption::RequestedIpAddress(address));
    }
    if let Some(server) = message.server {
        options.insert(DhcpOption::ServerIdentifier(server));
    }
    if message.kind != OutgoingKind::Decline {
        if let Some(name) = hostname {
            options.insert(DhcpOption::Hostname(name.into()));
        }
        options.insert(DhcpOption::MaxMessageSize(1472));
        options.insert(DhcpOption::ParameterRequestList(vec![
            OptionCode::SubnetMask,
            OptionCode::Router,
            OptionCode::DomainNameServer,
            OptionCode::Hostname,
            OptionCode::DomainName,
            OptionCode::AddressLeaseTime,
            OptionCode::Renewal,
            OptionCode::Rebinding,
            OptionCode::DomainSearch,
        ]));
    }
    let mut bytes = dhcp.to_vec().ok()?;
    // Some servers and relays drop messages shorter than BOOTP's 300 bytes.
    bytes.resize(bytes.len().max(300), 0);
    Some(bytes)
}

/// A broadcast frame around a message.
pub(crate) fn frame(payload: &[u8], mac: MacAddr, source: Option<Ipv4Addr>) -> Option<Vec<u8>> {
    let source = source.unwrap_or(Ipv4Addr::UNSPECIFIED);
    let builder = PacketBuilder::ethernet2(mac.0, [0xff; 6])
        .ipv4(source.octets(), Ipv4Addr::BROADCAST.octets(), 64)
        .udp(CLIENT_PORT, SERVER_PORT);
    let mut frame = Vec::with_capacity(builder.size(payload.len()));
    builder.write(&mut frame, payload).ok()?;
    Some(frame)
}

/// The reply in a frame, if there is one for this MAC address.
///
/// The UDP checksum is not checked: a frame from a sender on this machine (a light host's neighbour, a guest) carries
/// none yet, as its computation was left to hardware.
pub(crate) fn decode(frame: &[u8], mac: MacAddr) -> Option<Reply> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let (Some(NetSlice::Ipv4(_)), Some(TransportSlice::Udp(udp))) = (&packet.net, &packet.transport) else {
        return None;
    };
    if udp.destination_port() != CLIENT_PORT {
        return None;
    }
    let payload = udp.payload();
    // The decoder believes the hardware address's length (the third byte) when it is asked for the address.
    if payload.get(2) != Some(&6) {
        return None;
    }
    let message = Message::from_bytes(payload).ok()?;
    if message.opcode() != Opcode::BootReply || message.htype() != HType::Eth || message.chaddr() != mac.0 {
        return None;
    }
    let options = message.opts();
    let kind = match options.msg_type()? {
        MessageType::Offer => ReplyKind::Offer,
        MessageType::Ack => ReplyKind::Ack,
        MessageType::Nak => ReplyKind::Nak,
        _ => return None,
    };
    let address = |code| match options.get(code) {
        Some(DhcpOption::ServerIdentifier(a) | DhcpOption::SubnetMask(a)) => Some(*a),
        _ => None,
    };
    let seconds = |code| match options.get(code) {
        Some(DhcpOption::AddressLeaseTime(s) | DhcpOption::Renewal(s) | DhcpOption::Rebinding(s)) => Some(*s),
        _ => None,
    };
    let addresses = |code| match options.get(code) {
        Some(DhcpOption::Router(list) | DhcpOption::DomainNameServer(list)) => list.clone(),
        _ => Vec::new(),
    };
    // Names go into resolv.conf and onto the console: only what is a name passes.
    let name = |text: &str| {
        let text = text.trim_end_matches(['.', '\0']).to_owned();
        keelson_init_control::check_hostname(&text).ok().map(|()| text)
    };
    let mut search: Vec<String> = match options.get(OptionCode::DomainSearch) {
        Some(DhcpOption::DomainSearch(names)) => {
            names.iter().filter_map(|n| name(&n.to_string())).take(6).collect()
        }
        _ => Vec::new(),
    };
    if let (true, Some(DhcpOption::DomainName(domain))) =
        (search.is_empty(), options.get(OptionCode::DomainName))
    {
        search = name(domain).into_iter().collect();
    }
    Some(Reply {
        kind,
        xid: message.xid(),
        address: message.yiaddr(),
        server: address(OptionCode::ServerIdentifier),
        mask: address(OptionCode::SubnetMask),
        gateway: addresses(OptionCode::Router).first().copied(),
        dns: addresses(OptionCode::DomainNameServer)
            .into_iter()
            .filter(|a| !a.is_unspecified())
            .take(3)
            .collect(),
        search,
        hostname: match options.get(OptionCode::Hostname) {
            Some(DhcpOption::Hostname(text)) => name(text),
            _ => None,
        },
        lease_s: seconds(OptionCode::AddressLeaseTime),
        t1_s: seconds(OptionCode::Renewal),
        t2_s: seconds(OptionCode::Rebinding),
        text: match options.get(OptionCode::Message) {
            Some(DhcpOption::Message(text)) => {
                Some(text.chars().filter(|c| !c.is_control()).take(120).collect())
            }
            _ => None,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

    fn ack() -> Message {
        let none = Ipv4Addr::UNSPECIFIED;
        let mut message = Message::new_with_id(7, none, Ipv4Addr::new(192, 0, 2, 50), none, none, &MAC.0);
        message.set_opcode(Opcode::BootReply);
        let options = message.opts_mut();
        options.insert(DhcpOption::MessageType(MessageType::Ack));
        options.insert(DhcpOption::ServerIdentifier(Ipv4Addr::new(192, 0, 2, 1)));
        options.insert(DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 255, 0)));
        options.insert(DhcpOption::AddressLeaseTime(3600));
        options.insert(DhcpOption::Hostname("host-1".into()));
        options.insert(DhcpOption::DomainName("bad name\nnameserver 203.0.113.1".into()));
        message
    }

    fn framed(payload: &[u8]) -> Vec<u8> {
        let builder =
            PacketBuilder::ethernet2([2; 6], MAC.0).ipv4([192, 0, 2, 1], [192, 0, 2, 50], 64).udp(67, 68);
        let mut frame = Vec::new();
        builder.write(&mut frame, payload).unwrap();
        frame
    }

    #[test]
    fn a_reply_is_read_and_a_name_that_is_none_is_dropped() {
        let reply = decode(&framed(&ack().to_vec().unwrap()), MAC).unwrap();
        assert_eq!((reply.kind, reply.xid, reply.lease_s), (ReplyKind::Ack, 7, Some(3600)));
        assert_eq!(reply.hostname.as_deref(), Some("host-1"));
        assert_eq!(reply.search, Vec::<String>::new());
        assert_eq!(decode(&framed(&ack().to_vec().unwrap()), MacAddr([9; 6])), None);
    }

    #[test]
    fn a_request_says_what_table_5_of_the_rfc_says() {
        let message = Outgoing {
            kind: OutgoingKind::Request,
            xid: 9,
            secs: 3,
            ciaddr: None,
            requested: Some(Ipv4Addr::new(192, 0, 2, 50)),
            server: Some(Ipv4Addr::new(192, 0, 2, 1)),
            unicast_to: None,
        };
        let bytes = encode(&message, MAC, Some("host-1")).unwrap();
        assert!(bytes.len() >= 300);
        let sent = Message::from_bytes(&bytes).unwrap();
        assert_eq!(
            (sent.opcode(), sent.xid(), sent.chaddr(), sent.ciaddr()),
            (Opcode::BootRequest, 9, &MAC.0[..], Ipv4Addr::UNSPECIFIED)
        );
        assert_eq!(sent.opts().msg_type(), Some(MessageType::Request));
        assert!(
            sent.opts().contains(OptionCode::RequestedIpAddress)
                && sent.opts().contains(OptionCode::ServerIdentifier)
        );
        let frame = frame(&bytes, MAC, None).unwrap();
        assert_eq!(frame[..6], [0xff; 6]);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = decode(&bytes, MAC);
            let _ = decode(&framed(&bytes), MAC);
        }

        #[test]
        fn no_change_to_a_reply_makes_it_panic(at in 0usize..400, byte: u8, cut in 0usize..400) {
            let mut payload = ack().to_vec().unwrap();
            if let Some(b) = payload.get_mut(at) {
                *b = byte;
            }
            payload.truncate(cut.max(1));
            let _ = decode(&framed(&payload), MAC);
        }
    }
}
