//! The one place where a number that the kernel handed over becomes an owned descriptor.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Owns a descriptor that recvmsg(2) has just installed.
pub(crate) fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: `Conn::recv_first` is the only caller and passes each number of an SCM_RIGHTS message once; the kernel has
    // installed it in this process for that message alone, so nothing else owns or closes it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
