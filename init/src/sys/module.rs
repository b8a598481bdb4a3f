//! Loading a kernel module from a file.

use std::fs::File;
use std::os::fd::AsRawFd;

use nix::errno::Errno;

/// MODULE_INIT_COMPRESSED_FILE of linux/module.h: the kernel unpacks the file.
const COMPRESSED: libc::c_int = 4;

/// finit_module(2). `parameters` is the text that follows a module's name on modprobe's command line.
pub(crate) fn load(file: &File, compressed: bool, parameters: &std::ffi::CStr) -> Result<(), Errno> {
    let flags = if compressed { COMPRESSED } else { 0 };
    // SAFETY: the descriptor is open for the length of the call (borrowed from `file`) and `parameters` is a NUL-terminated string
    // that the kernel copies; the call writes nothing to this process.
    let done = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), parameters.as_ptr(), flags) };
    Errno::result(done).map(drop)
}
