//! The system calls for which no safe wrapper exists: packet sockets with a filter, and taps.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::libc;
use tokio::io::unix::AsyncFd;

/// One instruction of a classic BPF program (Linux `struct sock_filter`).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bpf(pub(crate) u16, pub(crate) u8, pub(crate) u8, pub(crate) u32);

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Opens a non-blocking packet socket on one interface: whole Ethernet frames of one EtherType, those that `filter` lets pass.
pub(crate) fn packet_socket(ifindex: u32, ethertype: u16, filter: &[Bpf]) -> io::Result<OwnedFd> {
    let flags = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // Protocol 0: nothing arrives before the filter is in place and the socket is bound.
    // SAFETY: socket(2) takes no pointers.
    let raw = check(unsafe { libc::socket(libc::AF_PACKET, flags, 0) })?;
    // SAFETY: `raw` was returned by socket(2) just now, is open, and has no other owner.
    let fd = unsafe { OwnedFd::from_raw_fd(raw) };
    if !filter.is_empty() {
        let mut program: Vec<libc::sock_filter> =
            filter.iter().map(|i| libc::sock_filter { code: i.0, jt: i.1, jf: i.2, k: i.3 }).collect();
        let len = u16::try_from(program.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        let attached = libc::sock_fprog { len, filter: program.as_mut_ptr() };
        let size = size_of::<libc::sock_fprog>() as libc::socklen_t;
        // SAFETY: `attached` and the `len` instructions that it points to live until the call returns; the kernel copies them.
        check(unsafe {
            libc::setsockopt(
                fd.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_ATTACH_FILTER,
                (&raw const attached).cast(),
                size,
            )
        })?;
    }
    // SAFETY: sockaddr_ll is plain integers, for which all zeroes is a value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = ethertype.to_be();
    address.sll_ifindex = i32::try_from(ifindex).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let size = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: `address` is a whole sockaddr_ll of `size` bytes that lives until the call returns.
    check(unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), size) })?;
    Ok(fd)
}

/// Hands a descriptor to the runtime, to wait for frames.
pub(crate) fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open, owns its file description for as long as the `AsyncFd` that it moves into holds it, and
    // always gives the same number.
    unsafe { AsyncFd::register(fd) }.map_err(io::Error::from)
}

/// Makes the tap `name` on an open `/dev/net/tun`: whole frames, each with a virtio-net header before it.
pub(crate) fn make_tap(tun: &OwnedFd, name: &str) -> io::Result<()> {
    // SAFETY: ifreq is integers and unions of integers, for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.is_empty() || name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq; `request` is one, zero-terminated by the length check above, and outlives the call.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    Ok(())
}
