//! Announcing an address that an adapter has just got (RFC 5227, 2.3), so that neighbours forget who had it before.

use std::net::Ipv4Addr;
use std::time::Duration;

use keelson_netcfg_control::MacAddr;

use crate::{arp, sys};

/// RFC 5227's ANNOUNCE_NUM and ANNOUNCE_INTERVAL.
const TIMES: u32 = 2;
const EVERY: Duration = Duration::from_secs(2);

/// Announces it now and once more two seconds later.
pub(crate) async fn announce(link: String, index: u32, mac: MacAddr, address: Ipv4Addr) {
    for turn in 0..TIMES {
        if turn > 0 {
            tokio::time::sleep(EVERY).await;
        }
        let frame = arp::announcement(mac, address);
        let sent =
            sys::packet_socket(index, arp::ETHERTYPE, &[]).and_then(|s| Ok(nix::unistd::write(&s, &frame)?));
        if let Err(e) = sent {
            log::debug!("{address} was not announced on {link}: {e}");
            return;
        }
    }
}
