//! On which adapters HTTPS is served: those that carry `management`, as netd says. While netd cannot be reached, what is there stays.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use keelson_init_control::logging::chain;
use keelson_netcfg_control::{Client, Event, NetworkConfig, NetworkStatus, Service};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, listen, setsockopt, socket, sockopt,
};

use super::open::Open;
use super::{Front, Listening, PORT};

/// The condition that says where HTTPS is not served.
const CONDITION: &str = "management-not-listening";
/// How long until netd, or an address that could not be taken, is tried again. Nothing tells when that would work.
const AGAIN: Duration = Duration::from_secs(1);

/// One place to listen at: an adapter, as it exists now.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    adapter: String,
    /// An adapter that was made anew has another index, and a socket on the old one hears nothing.
    ifindex: u32,
    addresses: Vec<Ipv4Addr>,
}

/// The places that the network calls for. An adapter without an address is one too: its address may come any time.
fn wanted(config: &NetworkConfig, status: &NetworkStatus) -> Vec<Place> {
    let carries = |name: &str| config.with_service(Service::Management).any(|a| a.name == name);
    let place = |a: &keelson_netcfg_control::AdapterStatus| {
        Some(Place {
            adapter: a.name.clone(),
            ifindex: a.ifindex?,
            addresses: a.addresses.iter().map(|n| n.addr()).collect(),
        })
    };
    status.vmkernel_adapters.iter().filter(|a| carries(&a.name)).filter_map(place).collect()
}

/// Watches netd in a thread, listens in another.
pub(crate) fn follow(front: Arc<Front>) -> io::Result<()> {
    let (say, heard) = mpsc::channel();
    let socket = front.shared.agent.paths.netd_socket();
    std::thread::Builder::new().name("netd watch".into()).spawn(move || {
        let mut reached = true;
        loop {
            match watch(&socket, &say) {
                Ok(()) => return,
                Err(e) if reached => {
                    log::warn!("netd cannot be watched; HTTPS stays where it is: {}", chain(&e))
                }
                Err(_) => {}
            }
            reached = false;
            std::thread::sleep(AGAIN);
        }
    })?;
    std::thread::Builder::new().name("https places".into()).spawn(move || keep(&front, &heard)).map(drop)
}

/// Passes netd's words on until it goes (an error), or nobody listens any more (none).
fn watch(
    socket: &std::path::Path,
    say: &mpsc::Sender<Vec<Place>>,
) -> Result<(), keelson_netcfg_control::Error> {
    for event in Client::connect_to(socket)?.watch()? {
        let Event::Changed { config, status } =
            event.map_err(|source| keelson_wire::CallError::Wire { daemon: "netd".into(), source })?;
        if say.send(wanted(&config, &status)).is_err() {
            return Ok(());
        }
    }
    Err(keelson_wire::CallError::Wire { daemon: "netd".into(), source: keelson_wire::WireError::Cut })
}

fn keep(front: &Arc<Front>, heard: &mpsc::Receiver<Vec<Place>>) {
    let mut open: BTreeMap<(String, u32, Option<Ipv4Addr>), Listening> = BTreeMap::new();
    let mut places: Vec<Place> = Vec::new();
    let mut failed = false;
    let accepted = Open::default();
    // When connections to addresses that are no longer served are closed: who took an address away gets the answer to that first.
    let mut closing: Option<Instant> = None;
    loop {
        let again = failed.then(|| Instant::now() + AGAIN);
        let news = match [again, closing].into_iter().flatten().min() {
            Some(at) => heard.recv_timeout(at.saturating_duration_since(Instant::now())),
            None => heard.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match news {
            Ok(news) => places = news,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        let listened = open.len();
        open.retain(|(adapter, ifindex, address), _| {
            let stays = places.iter().any(|p| {
                p.adapter == *adapter
                    && p.ifindex == *ifindex
                    && address.is_none_or(|a| p.addresses.contains(&a))
            });
            if !stays {
                log::info!(
                    "HTTPS is no longer served on {adapter}{}",
                    address.map(|a| format!(" ({a})")).unwrap_or_default()
                );
            }
            stays
        });
        let served: Vec<Ipv4Addr> = places.iter().flat_map(|p| p.addresses.iter().copied()).collect();
        if closing.is_some_and(|at| at <= Instant::now()) {
            accepted.close_beside(&served);
            closing = None;
        } else if closing.is_none() && (open.len() < listened || accepted.any_beside(&served)) {
            // A listener that has just gone may have accepted one that is not in the list yet.
            closing = Some(Instant::now() + AGAIN);
        }
        let mut problems = Vec::new();
        for place in &places {
            if let Err(e) = open_place(front, place, &accepted, &mut open) {
                problems.push(format!("{}: {e}", place.adapter));
            }
        }
        failed = !problems.is_empty();
        if failed {
            front.shared.agent.conditions.set(
                CONDITION,
                format!("HTTPS is not served on {}", problems.join(", ")),
                "it is tried again every second; restart the management network if it stays so",
            );
        } else {
            front.shared.agent.conditions.clear(CONDITION);
        }
    }
}

/// Listens on the adapter itself, whatever its addresses are; where the kernel does not let us, on each of its addresses.
fn open_place(
    front: &Arc<Front>,
    place: &Place,
    accepted: &Open,
    open: &mut BTreeMap<(String, u32, Option<Ipv4Addr>), Listening>,
) -> io::Result<()> {
    let key = |address| (place.adapter.clone(), place.ifindex, address);
    if open.contains_key(&key(None)) {
        return Ok(());
    }
    match on(Ipv4Addr::UNSPECIFIED, Some(&place.adapter)) {
        Ok(listener) => {
            open.insert(key(None), super::listen::tls(front.clone(), listener, Some(accepted.clone()))?);
            log::info!("HTTPS is served on {}, port {PORT}", place.adapter);
            Ok(())
        }
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            for address in &place.addresses {
                if let Entry::Vacant(vacant) = open.entry(key(Some(*address))) {
                    vacant.insert(super::listen::tls(
                        front.clone(),
                        on(*address, None)?,
                        Some(accepted.clone()),
                    )?);
                    log::info!("HTTPS is served on {} ({address}), port {PORT}", place.adapter);
                }
            }
            Ok(())
        }
        Err(e) => Err(e),
    }
}

fn on(address: Ipv4Addr, adapter: Option<&str>) -> io::Result<TcpListener> {
    let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    if let Some(adapter) = adapter {
        setsockopt(&fd, sockopt::BindToDevice, &adapter.into())?;
    }
    let SocketAddr::V4(at) = SocketAddr::new(IpAddr::V4(address), PORT) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    bind(fd.as_raw_fd(), &SockaddrIn::from(at))?;
    listen(&fd, Backlog::new(128)?)?;
    Ok(fd.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_netcfg_control::AdapterStatus;

    fn adapter(name: &str, ifindex: Option<u32>, addresses: &[&str]) -> AdapterStatus {
        AdapterStatus {
            name: name.into(),
            ifindex,
            mac: None,
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            origin: Default::default(),
            gateway: None,
            dhcp: None,
        }
    }

    #[test]
    fn only_adapters_with_management_that_exist_are_places() {
        let config = NetworkConfig::default();
        let mut status = NetworkStatus {
            vmkernel_adapters: vec![
                adapter("vmk0", Some(5), &["192.0.2.7/24"]),
                adapter("vmk1", Some(6), &[]),
            ],
            ..Default::default()
        };
        let place =
            Place { adapter: "vmk0".into(), ifindex: 5, addresses: vec!["192.0.2.7".parse().unwrap()] };
        assert_eq!(wanted(&config, &status), [place]);
        status.vmkernel_adapters[0].ifindex = None;
        assert_eq!(wanted(&config, &status), []);
    }
}
