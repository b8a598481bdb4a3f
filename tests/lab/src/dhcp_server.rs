//! A small DHCP server for the lab, whose every habit a test can set: lease times, silence, refusals, another identity.

use std::collections::BTreeMap;
use std::io::IoSliceMut;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use dhcproto::v4::{DhcpOption, Message, MessageType, Opcode, OptionCode};
use dhcproto::{Decodable, Encodable};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, SockaddrIn, bind, recvmsg, setsockopt,
    socket, sockopt,
};

use crate::net::LAB_ADDRESS;

/// What the server does with what it hears.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mood {
    /// It answers.
    #[default]
    Answers,
    /// It says nothing.
    Silent,
    /// It answers broadcasts and ignores what is sent to it alone, so that a client must rebind.
    DeafToUnicast,
    /// It refuses every request.
    Refuses,
}

/// The server's habits; they can be changed while it runs.
#[derive(Debug, Clone)]
pub struct Habits {
    /// What it does with requests.
    pub mood: Mood,
    /// Its identity, and the address it listens at.
    pub server: Ipv4Addr,
    /// The first address that it gives out; each new client gets the next one.
    pub first: Ipv4Addr,
    /// The network mask.
    pub mask: Ipv4Addr,
    /// The default router.
    pub gateway: Option<Ipv4Addr>,
    /// Name servers.
    pub dns: Vec<Ipv4Addr>,
    /// The lease, in seconds.
    pub lease_s: u32,
    /// When to renew and to rebind, in seconds, where the server says so.
    pub renew_rebind_s: Option<(u32, u32)>,
}

impl Default for Habits {
    fn default() -> Self {
        Self {
            mood: Mood::Answers,
            server: LAB_ADDRESS,
            first: Ipv4Addr::new(192, 0, 2, 100),
            mask: Ipv4Addr::new(255, 255, 255, 0),
            gateway: Some(LAB_ADDRESS),
            dns: vec![LAB_ADDRESS],
            lease_s: 3600,
            renew_rebind_s: None,
        }
    }
}

/// A message that the server heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    /// Its kind.
    pub kind: MessageType,
    /// The client's hardware address.
    pub mac: [u8; 6],
    /// The address that the client says it has.
    pub ciaddr: Ipv4Addr,
    /// The address that the client asks for.
    pub requested: Option<Ipv4Addr>,
    /// Whether it was sent to the server alone.
    pub unicast: bool,
}

#[derive(Debug, Default)]
struct Shared {
    habits: Habits,
    heard: Vec<Heard>,
    leases: BTreeMap<[u8; 6], Ipv4Addr>,
    declined: Vec<Ipv4Addr>,
}

/// A running server; it ends when dropped.
#[derive(Debug)]
pub struct DhcpServer {
    shared: Arc<(Mutex<Shared>, Condvar)>,
    stop: Option<UnixStream>,
    thread: Option<std::thread::JoinHandle<()>>,
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl DhcpServer {
    /// Serves the clients on `interface`, in the calling thread's network namespace.
    pub fn start(interface: &str, habits: Habits) -> Result<Self> {
        let fd = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
        setsockopt(&fd, sockopt::Broadcast, &true)?;
        setsockopt(&fd, sockopt::Ipv4PacketInfo, &true)?;
        setsockopt(&fd, sockopt::BindToDevice, &interface.into())
            .with_context(|| format!("no interface {interface}"))?;
        bind(fd.as_raw_fd(), &SockaddrIn::new(0, 0, 0, 0, 67)).context("the DHCP server's port")?;
        let socket = UdpSocket::from(fd);
        let (stop, stopped) = UnixStream::pair()?;
        let shared = Arc::new((Mutex::new(Shared { habits, ..Shared::default() }), Condvar::new()));
        let served = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("dhcp-server".into())
            .spawn(move || serve(&socket, &stopped, &served))?;
        Ok(Self { shared, stop: Some(stop), thread: Some(thread) })
    }

    /// Changes its habits.
    pub fn set(&self, change: impl FnOnce(&mut Habits)) {
        change(&mut lock(&self.shared.0).habits);
    }

    /// Forgets which address each client had, so that the next ones are given out.
    pub fn forget_leases(&self) {
        lock(&self.shared.0).leases.clear();
    }

    /// The address that a client has.
    pub fn lease_of(&self, mac: [u8; 6]) -> Option<Ipv4Addr> {
        lock(&self.shared.0).leases.get(&mac).copied()
    }

    /// How many messages it has heard so far.
    pub fn count(&self) -> usize {
        lock(&self.shared.0).heard.len()
    }

    /// Addresses that clients declined.
    pub fn declined(&self) -> Vec<Ipv4Addr> {
        lock(&self.shared.0).declined.clone()
    }

    /// Waits for a message that `matches`, among those after the first `since`.
    pub fn wait_heard(
        &self,
        since: usize,
        within: Duration,
        matches: impl Fn(&Heard) -> bool,
    ) -> Result<Heard> {
        let find = |shared: &Shared| shared.heard.iter().skip(since).find(|h| matches(h)).cloned();
        let (guard, _) = self
            .shared
            .1
            .wait_timeout_while(lock(&self.shared.0), within, |s| find(s).is_none())
            .unwrap_or_else(PoisonError::into_inner);
        find(&guard).with_context(|| {
            format!("the DHCP server did not hear that within {within:?}; it heard {:?}", guard.heard)
        })
    }
}

impl Drop for DhcpServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(socket: &UdpSocket, stopped: &UnixStream, shared: &(Mutex<Shared>, Condvar)) {
    let mut buffer = vec![0u8; 2048];
    loop {
        let mut fds =
            [PollFd::new(socket.as_fd(), PollFlags::POLLIN), PollFd::new(stopped.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => continue,
            Err(_) => return,
            Ok(_) => {}
        }
        let [_, stop] = &fds;
        if stop.any().unwrap_or(true) {
            return;
        }
        let Some((length, unicast)) = receive(socket, &mut buffer) else { continue };
        let Ok(message) = Message::from_bytes(buffer.get(..length).unwrap_or_default()) else { continue };
        let answer = {
            let mut guard = lock(&shared.0);
            answer(&mut guard, &message, unicast)
        };
        shared.1.notify_all();
        let framed = answer.and_then(|(reply, to)| Some((reply.to_vec().ok()?, to)));
        if let Some((bytes, to)) = framed {
            let _ = socket.send_to(&bytes, SocketAddrV4::new(to, 68));
        }
    }
}

/// A datagram's length, and whether it was sent to one address alone.
fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> Option<(usize, bool)> {
    let mut space = nix::cmsg_space!(nix::libc::in_pktinfo);
    let mut parts = [IoSliceMut::new(buffer)];
    let message =
        recvmsg::<SockaddrIn>(socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::empty()).ok()?;
    let unicast = message.cmsgs().ok()?.any(|c| match c {
        ControlMessageOwned::Ipv4PacketInfo(info) => u32::from_be(info.ipi_addr.s_addr) != u32::MAX,
        _ => false,
    });
    Some((message.bytes, unicast))
}

fn answer(shared: &mut Shared, message: &Message, unicast: bool) -> Option<(Message, Ipv4Addr)> {
    if message.hlen() != 6 {
        return None;
    }
    let mac = <[u8; 6]>::try_from(message.chaddr()).ok()?;
    let kind = message.opts().msg_type()?;
    let requested = match message.opts().get(OptionCode::RequestedIpAddress) {
        Some(DhcpOption::RequestedIpAddress(address)) => Some(*address),
        _ => None,
    };
    shared.heard.push(Heard { kind, mac, ciaddr: message.ciaddr(), requested, unicast });
    let habits = shared.habits.clone();
    if habits.mood == Mood::Silent || (habits.mood == Mood::DeafToUnicast && unicast) {
        return None;
    }
    if kind == MessageType::Decline {
        shared.declined.extend(requested);
        shared.leases.remove(&mac);
        return None;
    }
    let chosen = match message.opts().get(OptionCode::ServerIdentifier) {
        Some(DhcpOption::ServerIdentifier(server)) => *server == habits.server,
        _ => true,
    };
    let known = shared.leases.get(&mac).copied();
    let asked = requested.or(Some(message.ciaddr()).filter(|a| !a.is_unspecified()));
    let (answer, address) = match kind {
        MessageType::Discover => (MessageType::Offer, known.unwrap_or_else(|| free(shared, habits.first))),
        MessageType::Request if !chosen => return None,
        MessageType::Request if habits.mood == Mood::Refuses => (MessageType::Nak, Ipv4Addr::UNSPECIFIED),
        MessageType::Request => match (asked, known) {
            // A server that knows nothing of a client in its own network lets it keep its address.
            (Some(asked), None) => (MessageType::Ack, asked),
            (Some(asked), Some(known)) if asked == known => (MessageType::Ack, asked),
            _ => (MessageType::Nak, Ipv4Addr::UNSPECIFIED),
        },
        _ => return None,
    };
    let none = Ipv4Addr::UNSPECIFIED;
    let mut reply = Message::new_with_id(message.xid(), none, address, none, none, &mac);
    reply.set_opcode(Opcode::BootReply);
    let options = reply.opts_mut();
    options.insert(DhcpOption::MessageType(answer));
    options.insert(DhcpOption::ServerIdentifier(habits.server));
    if answer == MessageType::Nak {
        options.insert(DhcpOption::Message("not from here".into()));
        return Some((reply, Ipv4Addr::BROADCAST));
    }
    shared.leases.insert(mac, address);
    options.insert(DhcpOption::SubnetMask(habits.mask));
    options.insert(DhcpOption::AddressLeaseTime(habits.lease_s));
    if let Some((renew, rebind)) = habits.renew_rebind_s {
        options.insert(DhcpOption::Renewal(renew));
        options.insert(DhcpOption::Rebinding(rebind));
    }
    if let Some(gateway) = habits.gateway {
        options.insert(DhcpOption::Router(vec![gateway]));
    }
    if !habits.dns.is_empty() {
        options.insert(DhcpOption::DomainNameServer(habits.dns));
    }
    let to =
        if unicast && !message.ciaddr().is_unspecified() { message.ciaddr() } else { Ipv4Addr::BROADCAST };
    Some((reply, to))
}

fn free(shared: &Shared, first: Ipv4Addr) -> Ipv4Addr {
    let taken = |a: &Ipv4Addr| shared.leases.values().any(|l| l == a) || shared.declined.contains(a);
    (u32::from(first)..).map(Ipv4Addr::from).find(|a| !taken(a)).unwrap_or(first)
}
