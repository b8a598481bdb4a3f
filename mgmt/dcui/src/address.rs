//! Reading addresses as a person types them, and saying what is wrong with them.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

/// An address that a host can have.
pub(crate) fn host_address(text: &str) -> Result<Ipv4Addr, String> {
    let address = any_address(text)?;
    if address.is_unspecified()
        || address.is_loopback()
        || address.is_multicast()
        || address.octets()[0] >= 240
        || address.octets()[0] == 0
    {
        return Err(format!("{address} is not an address that a host can have"));
    }
    Ok(address)
}

fn any_address(text: &str) -> Result<Ipv4Addr, String> {
    if text.is_empty() {
        return Err("an address is missing".into());
    }
    text.parse().map_err(|_| format!("`{text}` is no IPv4 address such as 192.0.2.10"))
}

/// A prefix length, written as one (`24`, `/24`) or as a mask (`255.255.255.0`).
pub(crate) fn prefix(text: &str) -> Result<u8, String> {
    if text.is_empty() {
        return Err("a subnet mask is missing, such as 255.255.255.0 or 24".into());
    }
    let plain = text.strip_prefix('/').unwrap_or(text);
    let length = match plain.parse::<u8>() {
        Ok(length) => length,
        Err(_) => {
            let mask: Ipv4Addr = plain
                .parse()
                .map_err(|_| format!("`{text}` is no subnet mask such as 255.255.255.0 or 24"))?;
            ipnet::ipv4_mask_to_prefix(mask)
                .map_err(|_| format!("{mask} is no subnet mask: its one bits are not all in front"))?
        }
    };
    if (1..=31).contains(&length) {
        Ok(length)
    } else {
        Err("a subnet mask has 1 to 31 bits (255.255.255.0 has 24)".into())
    }
}

/// An address with its prefix, neither the network's own nor its broadcast address.
pub(crate) fn with_prefix(address: Ipv4Addr, prefix: u8) -> Result<Ipv4Net, String> {
    let net = Ipv4Net::new(address, prefix).map_err(|e| e.to_string())?;
    if prefix < 31 && (address == net.network() || address == net.broadcast()) {
        return Err(format!("{address} is the network's own or broadcast address in {}", net.trunc()));
    }
    Ok(net)
}

/// A default router for that address; none when nothing was typed.
pub(crate) fn gateway(text: &str, net: Ipv4Net) -> Result<Option<Ipv4Addr>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let gateway = host_address(text)?;
    if gateway == net.addr() {
        return Err(format!("{gateway} is the host's own address"));
    }
    if !net.contains(&gateway) {
        return Err(format!("{gateway} is not within {}", net.trunc()));
    }
    Ok(Some(gateway))
}

/// A host's name by RFC 1123.
pub(crate) fn hostname(text: &str) -> Result<String, String> {
    keelson_init_control::check_hostname(text).map(|()| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn masks_are_read_both_ways() {
        for (text, expected) in [
            ("255.255.255.0", 24),
            ("24", 24),
            ("/24", 24),
            ("255.255.254.0", 23),
            ("/31", 31),
            ("255.0.0.0", 8),
        ] {
            assert_eq!(prefix(text), Ok(expected), "{text}");
        }
        for wrong in
            ["", "0", "32", "33", "255.0.255.0", "255.255.255", "x", "0.0.0.0", "255.255.255.255", "-1"]
        {
            assert!(prefix(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn impossible_addresses_are_named() {
        for wrong in ["", "1.2.3", "0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "0.1.2.3"] {
            assert!(host_address(wrong).is_err(), "{wrong}");
        }
        assert!(with_prefix(Ipv4Addr::new(10, 0, 0, 0), 24).is_err());
        assert!(with_prefix(Ipv4Addr::new(10, 0, 0, 255), 24).is_err());
        let net = with_prefix(Ipv4Addr::new(10, 0, 0, 5), 24).unwrap();
        assert_eq!(gateway("", net), Ok(None));
        assert_eq!(gateway("10.0.0.1", net), Ok(Some(Ipv4Addr::new(10, 0, 0, 1))));
        assert!(gateway("10.0.0.5", net).is_err());
        assert!(gateway("10.0.1.1", net).is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text: String) {
            let _ = prefix(&text);
            let _ = host_address(&text);
            let _ = hostname(&text);
        }

        #[test]
        fn a_mask_is_its_prefix(length in 1u8..=31) {
            let mask = Ipv4Net::new(Ipv4Addr::UNSPECIFIED, length).unwrap().netmask();
            prop_assert_eq!(prefix(&mask.to_string()), Ok(length));
        }
    }
}
