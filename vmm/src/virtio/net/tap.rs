//! The tap behind an adapter: frames with a virtio-net header, and which work on them the kernel leaves to the guest.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::{HEADER, feature};
use crate::virtio::chain::Slice;
use crate::virtio::sys;

/// TUN_F_* of linux/if_tun.h.
mod offload {
    pub(super) const CSUM: u32 = 1;
    pub(super) const TSO4: u32 = 2;
    pub(super) const TSO6: u32 = 4;
    pub(super) const TSO_ECN: u32 = 8;
}

/// Why a descriptor cannot be an adapter's tap.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// It is no tap.
    #[error(
        "the adapter's descriptor is no tap; it must be /dev/net/tun after TUNSETIFF with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR"
    )]
    NoTap(#[source] io::Error),
    /// It was attached otherwise than we need: frames would be misread.
    #[error(
        "the tap was attached with the flags {0:#x}; it must be with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR"
    )]
    Flags(libc::c_int),
    /// It does not take headers of virtio 1.x.
    #[error("the tap does not take {HEADER}-byte virtio headers; it must be opened with IFF_VNET_HDR")]
    Header(#[source] io::Error),
    /// It cannot be made non-blocking.
    #[error("the tap cannot be made non-blocking")]
    NonBlocking(#[source] io::Error),
}

/// A tap.
#[derive(Debug)]
pub struct Tap {
    file: File,
    offloads: bool,
}

impl Tap {
    /// Takes over a tap that was opened with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR.
    pub fn new(fd: OwnedFd) -> Result<Self, TapError> {
        // IFF_NO_PI cannot be asked for: TUNGETIFF says IFF_NOFILTER in the same bit.
        let wanted = libc::IFF_TAP | libc::IFF_VNET_HDR;
        let flags = sys::tun_flags(fd.as_fd()).map_err(TapError::NoTap)?;
        if flags & (wanted | libc::IFF_TUN) != wanted {
            return Err(TapError::Flags(flags));
        }
        sys::set_vnet_header_size(fd.as_fd(), HEADER as u16).map_err(TapError::Header)?;
        set_nonblocking(fd.as_fd()).map_err(|e| TapError::NonBlocking(e.into()))?;
        let all = offload::CSUM | offload::TSO4 | offload::TSO6 | offload::TSO_ECN;
        let offloads =
            sys::set_offload(fd.as_fd(), all).and_then(|()| sys::set_offload(fd.as_fd(), 0)).is_ok();
        Ok(Self { file: fd.into(), offloads })
    }

    /// A datagram socket in a tap's place: its datagrams are header and frame.
    #[cfg(test)]
    pub(crate) fn stand_in(fd: OwnedFd) -> Self {
        set_nonblocking(fd.as_fd()).unwrap();
        Self { file: fd.into(), offloads: false }
    }

    /// Whether it can leave checksums and segmentation to the guest.
    pub fn has_offloads(&self) -> bool {
        self.offloads
    }

    /// Tells the kernel what a driver with these features can take (5.1.6.4.1).
    pub fn set_offloads(&self, features: u64) -> io::Result<()> {
        if !self.offloads {
            return Ok(());
        }
        let pairs = [
            (feature::GUEST_CSUM, offload::CSUM),
            (feature::GUEST_TSO4, offload::TSO4),
            (feature::GUEST_TSO6, offload::TSO6),
            (feature::GUEST_ECN, offload::TSO_ECN),
        ];
        let flags = pairs
            .iter()
            .filter(|(feature, _)| features & feature != 0)
            .fold(0, |flags, (_, flag)| flags | flag);
        sys::set_offload(self.file.as_fd(), flags)
    }

    /// The next frame behind its header, or `WouldBlock`. A frame that is longer than `buffer` is cut.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.file).read(buffer)
    }

    /// Sends a frame behind its header.
    pub fn send(&self, frame: &[Slice<'_>]) -> io::Result<usize> {
        sys::write(self.file.as_fd(), frame)
    }
}

fn set_nonblocking(fd: BorrowedFd<'_>) -> nix::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map(|_| ())
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
