//! How many connections there may be, from all and from one peer, and how long each step may take.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// From the first byte of a head to its end.
pub(crate) const HEAD_TIME: Duration = Duration::from_secs(10);
/// The TLS handshake.
pub(crate) const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// Between requests of one connection.
pub(crate) const IDLE_TIME: Duration = Duration::from_secs(75);
/// Between two bytes of a body, and for a client to take what it is sent.
pub(crate) const STALL_TIME: Duration = Duration::from_secs(30);
/// All of a small body.
pub(crate) const SMALL_BODY_TIME: Duration = Duration::from_secs(60);
/// How long a closing connection goes on reading, so that the client sees the answer before the reset.
pub(crate) const LINGER_TIME: Duration = Duration::from_secs(2);
/// The largest body where anyone may send it, in bytes: credentials are small.
pub(crate) const ANYONE_BODY: u64 = 16 * 1024;

/// Connections over the network in all.
const TOTAL: usize = 256;
/// Connections of one network peer.
const PER_PEER: usize = 48;
/// Connections over the local socket: the network cannot use them up, nor they the network's.
const LOCAL: usize = 64;

/// Counts the connections.
#[derive(Debug, Clone, Default)]
pub(crate) struct Connections(Arc<Mutex<Counts>>);

#[derive(Debug, Default)]
struct Counts {
    network: usize,
    local: usize,
    peers: HashMap<IpAddr, usize>,
}

/// One connection's place; dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Place {
    connections: Connections,
    peer: Option<IpAddr>,
}

/// There is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Full {
    #[error("there are {TOTAL} connections already")]
    Total,
    #[error("there are {PER_PEER} connections from there already")]
    Peer,
    #[error("there are {LOCAL} connections over the local socket already")]
    Local,
}

impl Connections {
    fn counts(&self) -> std::sync::MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place for a connection from `peer`, `None` being the local socket.
    pub(crate) fn enter(&self, peer: Option<IpAddr>) -> Result<Place, Full> {
        let mut counts = self.counts();
        match peer {
            None if counts.local >= LOCAL => return Err(Full::Local),
            None => counts.local += 1,
            Some(_) if counts.network >= TOTAL => return Err(Full::Total),
            Some(peer) => {
                let of_peer = counts.peers.entry(peer).or_default();
                if *of_peer >= PER_PEER {
                    return Err(Full::Peer);
                }
                *of_peer += 1;
                counts.network += 1;
            }
        }
        drop(counts);
        Ok(Place { connections: self.clone(), peer })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.connections.counts();
        match self.peer {
            None => counts.local = counts.local.saturating_sub(1),
            Some(peer) => {
                counts.network = counts.network.saturating_sub(1);
                if let Some(of_peer) = counts.peers.get_mut(&peer) {
                    *of_peer = of_peer.saturating_sub(1);
                    if *of_peer == 0 {
                        counts.peers.remove(&peer);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(n: u8) -> Option<IpAddr> {
        Some(IpAddr::from([192, 0, 2, n]))
    }

    #[test]
    fn one_peer_cannot_take_all_places_and_places_come_back() {
        let connections = Connections::default();
        let of_one: Vec<_> = (0..PER_PEER).map(|_| connections.enter(peer(1)).unwrap()).collect();
        assert_eq!(connections.enter(peer(1)).unwrap_err(), Full::Peer);
        let others: Vec<_> = (2..).map_while(|n| connections.enter(peer(n % 100 + 2)).ok()).collect();
        assert_eq!(others.len(), TOTAL - PER_PEER);
        assert_eq!(connections.enter(peer(200)).unwrap_err(), Full::Total);
        assert!(connections.enter(None).is_ok(), "the local socket counts apart");
        drop((of_one, others));
        assert!(connections.enter(peer(1)).is_ok());
        assert!(connections.counts().peers.is_empty());
    }
}
