//! The kernel's announcements of devices (kobject uevents over netlink).

use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvfrom, setsockopt, socket, sockopt,
};

/// What of an announcement matters here.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Uevent {
    pub(crate) action: String,
    pub(crate) subsystem: String,
    pub(crate) modalias: Option<String>,
}

/// Reads `ACTION@DEVPATH\0KEY=value\0…`.
pub(crate) fn parse(message: &[u8]) -> Option<Uevent> {
    let mut parts = message.split(|b| *b == 0);
    // udev's own messages start with `libudev`; there is no udev here, but any program may send.
    parts.next().filter(|head| head.contains(&b'@'))?;
    let mut event = Uevent::default();
    for part in parts {
        let text = String::from_utf8_lossy(part);
        match text.split_once('=') {
            Some(("ACTION", value)) => event.action = value.into(),
            Some(("SUBSYSTEM", value)) => event.subsystem = value.into(),
            Some(("MODALIAS", value)) => event.modalias = Some(value.into()),
            _ => {}
        }
    }
    Some(event)
}

/// The socket, with room for the storm of a server's start.
pub(crate) fn open() -> Result<OwnedFd, Errno> {
    let protocol = SockProtocol::NetlinkKObjectUEvent;
    let fd = socket(AddressFamily::Netlink, SockType::Datagram, SockFlag::SOCK_CLOEXEC, protocol)?;
    let _ = setsockopt(&fd, sockopt::RcvBufForce, &(16 << 20));
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 1))?;
    Ok(fd)
}

/// Waits for the next one of the kernel's. ENOBUFS means that some were lost.
pub(crate) fn next(fd: &OwnedFd) -> Result<Option<Uevent>, Errno> {
    let mut buffer = [0u8; 16 << 10];
    let (length, from) = recvfrom::<NetlinkAddr>(fd.as_raw_fd(), &mut buffer)?;
    // Only the kernel has port 0.
    if from.is_none_or(|from| from.pid() != 0) {
        return Ok(None);
    }
    Ok(parse(buffer.get(..length).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_announcement_is_read() {
        let event =
            parse(b"add@/devices/x\0ACTION=add\0SUBSYSTEM=block\0MODALIAS=scsi:t-0x00\0SEQNUM=7\0").unwrap();
        let modalias = Some("scsi:t-0x00".to_owned());
        assert_eq!(event, Uevent { action: "add".into(), subsystem: "block".into(), modalias });
        assert_eq!(parse(b"libudev\0ACTION=add\0"), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            parse(&bytes);
        }
    }
}
