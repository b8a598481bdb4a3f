//! System calls that move bytes between descriptors and guest memory without a Rust slice, and those of a tap.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

/// The most buffers that one system call takes (UIO_MAXIOV of Linux).
pub(super) const MAX_BUFFERS: usize = 1024;

/// Calls `call` with the buffers as iovecs, at most [`MAX_BUFFERS`] of them.
fn with_iovecs<B: BitmapSlice>(
    buffers: &[VolatileSlice<'_, B>],
    call: impl FnOnce(*const libc::iovec, libc::c_int) -> libc::ssize_t,
) -> io::Result<usize> {
    let buffers = &buffers[..buffers.len().min(MAX_BUFFERS)];
    let guards: Vec<_> = buffers.iter().map(|b| (b.ptr_guard_mut(), b.len())).collect();
    let iovecs: Vec<_> = guards
        .iter()
        .map(|(g, length)| libc::iovec { iov_base: g.as_ptr().cast(), iov_len: *length })
        .collect();
    // MAX_BUFFERS fits a c_int.
    let result = call(iovecs.as_ptr(), iovecs.len() as libc::c_int);
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Tells the dirty bitmap, if there is one, that the first `length` bytes of the buffers were written.
fn mark_dirty<B: BitmapSlice>(buffers: &[VolatileSlice<'_, B>], mut length: usize) {
    for buffer in buffers {
        let part = buffer.len().min(length);
        buffer.bitmap().mark_dirty(0, part);
        length -= part;
    }
}

fn file_offset(offset: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// Reads from a file into guest memory; may read less than there is room for.
pub(super) fn read_at<B: BitmapSlice>(
    file: &File,
    buffers: &[VolatileSlice<'_, B>],
    offset: u64,
) -> io::Result<usize> {
    let offset = file_offset(offset)?;
    let read = with_iovecs(buffers, |iovecs, count| {
        // SAFETY: each iovec is a volatile slice that `buffers` keeps alive, so the kernel writes only to guest memory, which is
        // never borrowed as a Rust slice. The descriptor is open, since `file` is.
        unsafe { libc::preadv(file.as_raw_fd(), iovecs, count, offset) }
    })?;
    mark_dirty(buffers, read);
    Ok(read)
}

/// Writes guest memory to a file; may write less than there is.
pub(super) fn write_at<B: BitmapSlice>(
    file: &File,
    buffers: &[VolatileSlice<'_, B>],
    offset: u64,
) -> io::Result<usize> {
    let offset = file_offset(offset)?;
    with_iovecs(buffers, |iovecs, count| {
        // SAFETY: each iovec is a volatile slice that `buffers` keeps alive; the kernel only reads it. The descriptor is open.
        unsafe { libc::pwritev(file.as_raw_fd(), iovecs, count, offset) }
    })
}

/// Writes guest memory to a descriptor in one call (a frame to a tap).
pub(super) fn write<B: BitmapSlice>(
    fd: BorrowedFd<'_>,
    buffers: &[VolatileSlice<'_, B>],
) -> io::Result<usize> {
    with_iovecs(buffers, |iovecs, count| {
        // SAFETY: as for `write_at`.
        unsafe { libc::writev(fd.as_raw_fd(), iovecs, count) }
    })
}

mod request {
    //! The tap requests that we make; each type below is what the kernel reads (linux/if_tun.h).
    #![allow(missing_docs)]
    nix::ioctl_write_ptr!(set_vnet_header_size, b'T', 216, libc::c_int);
    nix::ioctl_write_int!(set_offload, b'T', 208);
    // Its number says that it writes an int, but it writes a whole ifreq.
    nix::ioctl_read_bad!(get_iff, nix::request_code_read!(b'T', 210, size_of::<libc::c_uint>()), libc::ifreq);
    #[cfg(test)]
    nix::ioctl_write_ptr_bad!(
        set_iff,
        nix::request_code_write!(b'T', 202, size_of::<libc::c_int>()),
        libc::ifreq
    );
}

/// TUNSETVNETHDRSZ: the length of the virtio-net header before each frame.
pub(super) fn set_vnet_header_size(tap: BorrowedFd<'_>, size: u16) -> io::Result<()> {
    let size = libc::c_int::from(size);
    // SAFETY: the request reads one int, which lives through the call.
    unsafe { request::set_vnet_header_size(tap.as_raw_fd(), &size) }?;
    Ok(())
}

/// TUNSETOFFLOAD: what the far side of the tap may leave to us (TUN_F_* bits).
pub(super) fn set_offload(tap: BorrowedFd<'_>, flags: u32) -> io::Result<()> {
    // SAFETY: the request takes its flags by value and touches no memory of ours.
    unsafe { request::set_offload(tap.as_raw_fd(), flags.into()) }?;
    Ok(())
}

/// TUNGETIFF: the flags (IFF_TAP and so on) that a tun descriptor was attached with; an error when it is none, or not attached.
pub(super) fn tun_flags(fd: BorrowedFd<'_>) -> io::Result<libc::c_int> {
    // SAFETY: an ifreq is plain data, for which zeroes are valid.
    let mut interface: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: the request writes one ifreq, which lives through the call.
    unsafe { request::get_iff(fd.as_raw_fd(), &mut interface) }?;
    // SAFETY: the kernel has filled in the flags, and every member of the union is plain data.
    let flags = unsafe { interface.ifr_ifru.ifru_flags };
    Ok(flags.into())
}

/// TUNSETIFF, for tests of real taps; the kernel chooses the name.
#[cfg(test)]
pub(super) fn attach_tun(fd: BorrowedFd<'_>, flags: libc::c_int) -> io::Result<()> {
    // SAFETY: an ifreq is plain data, for which zeroes are valid.
    let mut interface: libc::ifreq = unsafe { std::mem::zeroed() };
    interface.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).map_err(io::Error::other)?;
    // SAFETY: the request reads and writes one ifreq, which lives through the call.
    unsafe { request::set_iff(fd.as_raw_fd(), std::ptr::from_mut(&mut interface)) }?;
    Ok(())
}

/// An event's descriptor, borrowed: `EventFd` itself lends only its number.
#[cfg(test)]
pub(super) fn descriptor(event: &vmm_sys_util::eventfd::EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is `event`'s, which the result borrows and so does not outlive.
    unsafe { BorrowedFd::borrow_raw(std::os::fd::AsRawFd::as_raw_fd(event)) }
}
