//! The client of one adapter at work: sockets, the clock, and what it tells netd.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use keelson_netcfg_control::{DhcpStatus, MacAddr};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use crate::arp::{self, Arp};
use crate::clock::{self, Jitter};
use crate::dhcp::client::{Client, Event, Send};
use crate::dhcp::machine::{Lease, Outgoing};
use crate::dhcp::{saved, wire};
use crate::sys;
use crate::wanted::Dynamic;

/// What netd tells the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Command {
    /// The adapter's switch has a link, or not.
    Link(bool),
    /// Drop the lease and discover.
    Restart,
}

/// What the client tells netd: everything, each time something of it changed.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Update {
    pub(crate) adapter: String,
    /// Which life of the client, as netd counts them: what an ended one still had to say is ignored.
    pub(crate) generation: u64,
    pub(crate) address: Option<Dynamic>,
    pub(crate) lease: Option<Lease>,
    /// `lease_left_s` is left out: netd computes it when asked.
    pub(crate) status: DhcpStatus,
    /// It has gone without a lease for so long that a person should know.
    pub(crate) unanswered: bool,
}

/// What a client's task sends: news, or that it ended (of which life of which adapter).
pub(crate) type News = Result<Update, (String, u64)>;

/// Which adapter.
#[derive(Debug, Clone)]
pub(crate) struct Adapter {
    pub(crate) name: String,
    pub(crate) index: u32,
    pub(crate) mac: MacAddr,
    pub(crate) generation: u64,
    /// A link-local address that it has already.
    pub(crate) link_local: Option<Ipv4Addr>,
    /// Where the lease is kept.
    pub(crate) run: PathBuf,
}

/// Runs until `commands` closes. An error means that the sockets could not be opened.
pub(crate) async fn run(
    adapter: Adapter,
    mut commands: mpsc::UnboundedReceiver<Command>,
    updates: mpsc::UnboundedSender<News>,
) -> io::Result<()> {
    let frames = sys::watch(sys::packet_socket(adapter.index, wire::ETHERTYPE, &wire::FILTER)?)?;
    let now = clock::boottime();
    let lease = saved::load(&adapter.run, &adapter.name, adapter.mac);
    let mut client = Client::new(adapter.mac, Jitter::seeded(), lease, adapter.link_local, now);
    let mut arps: Option<AsyncFd<OwnedFd>> = None;
    let mut kept = client.machine().lease().cloned();
    let mut told: Option<Update> = None;
    loop {
        if client.wants_arp() != arps.is_some() {
            arps = match client.wants_arp() {
                true => Some(sys::watch(sys::packet_socket(adapter.index, arp::ETHERTYPE, &[])?)?),
                false => None,
            };
        }
        let lease = client.machine().lease();
        if lease != kept.as_ref() {
            saved::save(&adapter.run, &adapter.name, adapter.mac, lease);
            kept = lease.cloned();
        }
        let update = describe(&adapter, &client);
        if told.as_ref() != Some(&update) {
            if updates.send(Ok(update.clone())).is_err() {
                return Ok(());
            }
            told = Some(update);
        }
        let event = tokio::select! {
            command = commands.recv() => match command {
                None => return Ok(()),
                Some(Command::Link(link)) => Some(Event::Link(link)),
                Some(Command::Restart) => Some(Event::Restart),
            },
            frame = receive(&frames) => frame?.and_then(|f| wire::decode(&f, adapter.mac)).map(Event::Reply),
            frame = receive_some(arps.as_ref()) => frame?.and_then(|f| Arp::parse(&f)).map(Event::Arp),
            () = until(client.deadline()) => Some(Event::Timer),
        };
        let Some(event) = event else { continue };
        for send in client.step(clock::boottime(), event) {
            let sent = match &send {
                Send::Dhcp(message) => send_dhcp(&frames, &adapter, message),
                Send::Probe(address) => send_arp(&adapter, &arp::probe(adapter.mac, *address)),
                Send::Announce(address) => send_arp(&adapter, &arp::announcement(adapter.mac, *address)),
            };
            if let Err(e) = sent {
                log::warn!("{}: {send:?} could not be sent: {e}", adapter.name);
            }
        }
    }
}

fn describe(adapter: &Adapter, client: &Client) -> Update {
    let machine = client.machine();
    let lease = machine.lease();
    Update {
        adapter: adapter.name.clone(),
        generation: adapter.generation,
        address: client.address().map(|(address, gateway)| Dynamic { address, gateway }),
        lease: lease.cloned(),
        status: DhcpStatus {
            phase: machine.phase(),
            server: lease.map(|l| l.server),
            lease_left_s: None,
            unanswered: machine.unanswered(),
            last_error: machine.last_error().map(str::to_owned),
        },
        unanswered: client.unanswered(clock::boottime()),
    }
}

async fn until(deadline: Option<Duration>) {
    match deadline {
        Some(at) => tokio::time::sleep(at.saturating_sub(clock::boottime())).await,
        None => std::future::pending().await,
    }
}

/// The next frame; `None` when the interface went down meanwhile, which netd hears of by other ways.
async fn receive(socket: &AsyncFd<OwnedFd>) -> io::Result<Option<Vec<u8>>> {
    loop {
        let mut ready = socket.readable().await?;
        let mut buffer = vec![0u8; 2048];
        match ready.try_io(|fd| nix::unistd::read(fd.get_ref(), &mut buffer).map_err(io::Error::from)) {
            Err(_would_block) => {}
            Ok(Ok(length)) => {
                buffer.truncate(length);
                return Ok(Some(buffer));
            }
            Ok(Err(e)) if e.raw_os_error() == Some(nix::libc::ENETDOWN) => return Ok(None),
            Ok(Err(e)) => return Err(e),
        }
    }
}

async fn receive_some(socket: Option<&AsyncFd<OwnedFd>>) -> io::Result<Option<Vec<u8>>> {
    match socket {
        Some(socket) => receive(socket).await,
        None => std::future::pending().await,
    }
}

fn send_arp(adapter: &Adapter, frame: &[u8]) -> io::Result<()> {
    let socket = sys::packet_socket(adapter.index, arp::ETHERTYPE, &[])?;
    nix::unistd::write(&socket, frame)?;
    Ok(())
}

fn send_dhcp(frames: &AsyncFd<OwnedFd>, adapter: &Adapter, message: &Outgoing) -> io::Result<()> {
    let hostname = nix::unistd::gethostname().ok().and_then(|n| n.into_string().ok());
    let hostname = hostname.filter(|n| keelson_init_control::check_hostname(n).is_ok() && n != "localhost");
    let payload =
        wire::encode(message, adapter.mac, hostname.as_deref()).ok_or(io::ErrorKind::InvalidData)?;
    if let (Some(server), Some(from)) = (message.unicast_to, message.ciaddr) {
        // The kernel finds the way, by the gateway where the server is behind one. The answer is read from the packet socket.
        let socket = UdpSocket::bind((from, dhcproto::v4::CLIENT_PORT))?;
        socket.set_nonblocking(true)?;
        setsockopt(&socket, sockopt::BindToDevice, &adapter.name.clone().into())?;
        socket.send_to(&payload, (server, dhcproto::v4::SERVER_PORT))?;
        return Ok(());
    }
    let frame = wire::frame(&payload, adapter.mac, message.ciaddr).ok_or(io::ErrorKind::InvalidData)?;
    nix::unistd::write(frames.get_ref(), &frame)?;
    Ok(())
}
