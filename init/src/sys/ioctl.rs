//! The few ioctls of init: partition and file system size, the hardware clock, serial lines.

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

mod raw {
    //! Numbers and layouts as in linux/fs.h, linux/blkpg.h, linux/rtc.h and fs/ext4/ext4.h.
    nix::ioctl_read!(blkgetsize64, 0x12, 114, usize);
    nix::ioctl_write_ptr_bad!(blkpg, 0x1269, BlkpgArg);
    nix::ioctl_write_ptr!(ext4_resize, b'f', 16, u64);
    nix::ioctl_read!(rtc_rd_time, b'p', 0x09, RtcTime);

    #[repr(C)]
    pub(super) struct BlkpgArg {
        pub(super) op: libc::c_int,
        pub(super) flags: libc::c_int,
        pub(super) datalen: libc::c_int,
        pub(super) data: *mut BlkpgPartition,
    }

    #[repr(C)]
    pub(super) struct BlkpgPartition {
        pub(super) start: libc::c_longlong,
        pub(super) length: libc::c_longlong,
        pub(super) pno: libc::c_int,
        pub(super) devname: [libc::c_char; 64],
        pub(super) volname: [libc::c_char; 64],
    }

    #[repr(C)]
    #[derive(Default)]
    pub(super) struct RtcTime {
        pub(super) fields: [libc::c_int; 9],
    }
}

/// The size of a block device, in bytes.
pub(crate) fn device_size(device: BorrowedFd<'_>) -> Result<u64, Errno> {
    let mut bytes = 0usize;
    // SAFETY: BLKGETSIZE64 writes one u64 to the pointer, which is a live usize (64 bits on the one target of this crate).
    unsafe { raw::blkgetsize64(device.as_raw_fd(), &mut bytes) }?;
    Ok(bytes as u64)
}

/// Tells the kernel a partition's new length; the start must be the old one. In bytes.
pub(crate) fn resize_partition(
    disk: BorrowedFd<'_>,
    number: i32,
    start: u64,
    length: u64,
) -> Result<(), Errno> {
    let signed = |v: u64| i64::try_from(v).map_err(|_| Errno::EOVERFLOW);
    let mut partition = raw::BlkpgPartition {
        start: signed(start)?,
        length: signed(length)?,
        pno: number,
        devname: [0; 64],
        volname: [0; 64],
    };
    const RESIZE: libc::c_int = 3;
    let size = size_of::<raw::BlkpgPartition>();
    let datalen = libc::c_int::try_from(size).map_err(|_| Errno::EOVERFLOW)?;
    let arg = raw::BlkpgArg { op: RESIZE, flags: 0, datalen, data: &mut partition };
    // SAFETY: `arg` and the `partition` that it points to outlive the call, and have the layout of linux/blkpg.h.
    unsafe { raw::blkpg(disk.as_raw_fd(), &arg) }.map(drop)
}

/// Grows a mounted ext4 to `blocks` file-system blocks. `root` is any open file of it.
pub(crate) fn resize_ext4(root: BorrowedFd<'_>, blocks: u64) -> Result<(), Errno> {
    // SAFETY: EXT4_IOC_RESIZE_FS reads one u64 from the pointer, which is live for the call.
    unsafe { raw::ext4_resize(root.as_raw_fd(), &blocks) }.map(drop)
}

/// The hardware clock's fields: seconds, minutes, hours, day, month from 0, years since 1900.
pub(crate) fn hardware_clock(rtc: BorrowedFd<'_>) -> Result<[i32; 6], Errno> {
    let mut time = raw::RtcTime::default();
    // SAFETY: RTC_RD_TIME writes one `struct rtc_time` (nine ints) to the pointer, which is a live RtcTime of that layout.
    unsafe { raw::rtc_rd_time(rtc.as_raw_fd(), &mut time) }?;
    let [s, mi, h, d, mo, y, ..] = time.fields;
    Ok([s, mi, h, d, mo, y])
}
