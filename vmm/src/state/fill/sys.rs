//! userfaultfd(2): hearing of the first access to a page of guest memory, and putting its contents there.

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use vm_memory::{GuestMemoryRegion, GuestRegionMmap};

/// What the kernel is told and tells (linux/userfaultfd.h).
mod request {
    pub(super) const KIND: u8 = 0xaa;
    pub(super) const API: u64 = 0xaa;
    pub(super) const MISSING_SHMEM: u64 = 1 << 5;
    pub(super) const REGISTER_MISSING: u64 = 1;
    pub(super) const PAGE_FAULT: u8 = 0x12;

    #[repr(C)]
    pub(super) struct Api {
        pub(super) api: u64,
        pub(super) features: u64,
        pub(super) ioctls: u64,
    }
    #[repr(C)]
    #[derive(Clone, Copy)]
    pub(super) struct Range {
        pub(super) start: u64,
        pub(super) length: u64,
    }
    #[repr(C)]
    pub(super) struct Register {
        pub(super) range: Range,
        pub(super) mode: u64,
        pub(super) ioctls: u64,
    }
    #[repr(C)]
    pub(super) struct Copy {
        pub(super) to: u64,
        pub(super) from: u64,
        pub(super) length: u64,
        pub(super) mode: u64,
        pub(super) copied: i64,
    }
    /// One message; of a page fault the flags and the address.
    #[repr(C)]
    #[derive(Clone, Copy)]
    pub(super) struct Message {
        pub(super) event: u8,
        pub(super) reserved: [u8; 7],
        pub(super) flags: u64,
        pub(super) address: u64,
        pub(super) more: u64,
    }

    nix::ioctl_write_int_bad!(open, nix::request_code_none!(KIND, 0x00));
    nix::ioctl_readwrite!(api, KIND, 0x3f, Api);
    nix::ioctl_readwrite!(register, KIND, 0x00, Register);
    nix::ioctl_read!(unregister, KIND, 0x01, Range);
    nix::ioctl_read!(wake, KIND, 0x02, Range);
    nix::ioctl_readwrite!(copy, KIND, 0x03, Copy);
}

/// The faults of regions of guest memory.
#[derive(Debug)]
pub(super) struct Faults(OwnedFd);

/// The host addresses of a region.
fn range(region: &GuestRegionMmap<()>) -> request::Range {
    request::Range { start: region.get_mmap().as_ptr() as u64, length: region.len() }
}

impl Faults {
    /// From `/dev/userfaultfd`, for this process's memory.
    pub(super) fn open(device: BorrowedFd<'_>) -> io::Result<Self> {
        // SAFETY: the request takes flags by value and returns a new descriptor, or an error.
        let fd = unsafe { request::open(device.as_raw_fd(), libc::O_CLOEXEC | libc::O_NONBLOCK) }?;
        // SAFETY: the kernel has just made this descriptor for us.
        let faults = Self(unsafe { OwnedFd::from_raw_fd(fd) });
        let mut api = request::Api { api: request::API, features: request::MISSING_SHMEM, ioctls: 0 };
        // SAFETY: the request reads and writes one `Api`, which lives through the call.
        unsafe { request::api(faults.0.as_raw_fd(), &mut api) }?;
        Ok(faults)
    }

    /// From now on whoever touches a page of the region that is not there waits for [`Faults::put`].
    pub(super) fn register(&self, region: &GuestRegionMmap<()>) -> io::Result<()> {
        let mut register =
            request::Register { range: range(region), mode: request::REGISTER_MISSING, ioctls: 0 };
        // SAFETY: the request reads and writes one `Register`. The range is one live mapping of guest memory: accesses to it wait, and no
        // Rust object lies in it.
        unsafe { request::register(self.0.as_raw_fd(), &mut register) }?;
        Ok(())
    }

    /// Pages of the region that are not there are zero again.
    pub(super) fn unregister(&self, region: &GuestRegionMmap<()>) -> io::Result<()> {
        // SAFETY: the request reads one `Range`, that of a live mapping.
        unsafe { request::unregister(self.0.as_raw_fd(), &mut range(region)) }?;
        Ok(())
    }

    /// The host address of the next access that waits; `None` when none does.
    pub(super) fn next(&self) -> io::Result<Option<u64>> {
        // SAFETY: all-zero is a valid message.
        let mut message: request::Message = unsafe { zeroed() };
        loop {
            // SAFETY: the kernel writes at most one message's length to a live message, all of whose bit patterns are valid.
            let read = unsafe {
                libc::read(self.0.as_raw_fd(), (&raw mut message).cast(), size_of::<request::Message>())
            };
            if usize::try_from(read) != Ok(size_of::<request::Message>()) {
                let error = io::Error::last_os_error();
                match error.kind() {
                    io::ErrorKind::Interrupted => continue,
                    io::ErrorKind::WouldBlock => return Ok(None),
                    _ => return Err(error),
                }
            }
            if message.event == request::PAGE_FAULT {
                return Ok(Some(message.address));
            }
        }
    }

    /// Puts whole pages at `offset` of the region, and wakes whoever waits for them. A page that is there already is left alone.
    pub(super) fn put(&self, region: &GuestRegionMmap<()>, offset: u64, pages: &[u8]) -> io::Result<()> {
        let (all, page) = (range(region), super::PAGE);
        let mut done = 0;
        let length = u64::try_from(pages.len()).unwrap_or(u64::MAX);
        if offset.checked_add(length).is_none_or(|end| end > all.length) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        while done < length {
            let mut copy = request::Copy {
                to: all.start + offset + done,
                from: pages.as_ptr() as u64 + done,
                length: length - done,
                mode: 0,
                copied: 0,
            };
            // SAFETY: the kernel reads `length - done` bytes of `pages` behind `done`, and writes as many to guest memory, within the
            // region (checked above), where no Rust object lies.
            let result = unsafe { request::copy(self.0.as_raw_fd(), &mut copy) };
            done += u64::try_from(copy.copied).unwrap_or(0);
            match result {
                Ok(_) => {}
                // Part of it was done, or the process's mappings just changed.
                Err(nix::errno::Errno::EAGAIN) => {}
                Err(nix::errno::Errno::EEXIST) => {
                    let mut there = request::Range { start: all.start + offset + done, length: page };
                    // SAFETY: the request reads one `Range`.
                    unsafe { request::wake(self.0.as_raw_fd(), &mut there) }?;
                    done += page;
                }
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// Where in the region a host address lies.
    pub(super) fn offset_in(region: &GuestRegionMmap<()>, address: u64) -> Option<u64> {
        let all = range(region);
        address.checked_sub(all.start).filter(|offset| *offset < all.length)
    }
}

impl AsFd for Faults {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
