//! Starting a process: clone3(2), then nothing but system calls on memory prepared before, then exec.
//!
//! std's Command is not used: it cannot enter a control group or a PID namespace on the way, and it waits for a child that did
//! not start by itself, against init's own reaper.

use std::ffi::{CStr, CString};
use std::io::Read;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use libc::{c_char, c_int, c_long, c_ulong};
use nix::errno::Errno;

/// What is executed.
pub(crate) enum Program<'a> {
    /// By its path.
    Path(CString),
    /// An open file, which may lie outside the process's view of the file system.
    Open(BorrowedFd<'a>),
}

/// A process to be.
pub(crate) struct Plan<'a> {
    pub(crate) program: Program<'a>,
    pub(crate) arguments: Vec<CString>,
    pub(crate) environment: Vec<CString>,
    pub(crate) stdin: BorrowedFd<'a>,
    pub(crate) stdout: BorrowedFd<'a>,
    pub(crate) stderr: BorrowedFd<'a>,
    /// Whether standard input is a terminal that the process controls.
    pub(crate) terminal: bool,
    /// Stay open across exec, under the same numbers.
    pub(crate) keep_open: Vec<BorrowedFd<'a>>,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    /// The capabilities that are left, bit n for capability n; also for what it executes.
    pub(crate) capabilities: u64,
    /// Resource and limit (soft and hard); no higher than what this process has.
    pub(crate) limits: Vec<(u32, u64)>,
    /// The control group's directory.
    pub(crate) cgroup: Option<BorrowedFd<'a>>,
    /// Whether it is the first of a PID namespace of its own.
    pub(crate) own_pids: bool,
}

/// The number of a capability that no kernel has yet; dropping stops at the first that the kernel does not know.
const CAPABILITIES_END: c_ulong = 64;
/// CLONE_INTO_CGROUP of linux/sched.h; libc has it as an int, in which it does not fit.
const INTO_CGROUP: u64 = 0x2_0000_0000;
/// capget(2)'s header version with 64 bits.
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: c_int,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Everything that the child touches, so that it allocates nothing.
struct Prepared<'a> {
    plan: &'a Plan<'a>,
    argv: Vec<*const c_char>,
    envp: Vec<*const c_char>,
    report: RawFd,
    caps: [CapData; 2],
    limits: Vec<(u32, libc::rlimit)>,
}

/// Starts it; returns once the program runs. The process is the caller's child, and its process id is of the caller's namespace.
pub(crate) fn spawn(plan: &Plan<'_>) -> Result<i32, Errno> {
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    let pointers = |list: &[CString]| -> Vec<*const c_char> {
        list.iter().map(|s| s.as_ptr()).chain(std::iter::once(std::ptr::null())).collect()
    };
    let half = |shift: u32| {
        let bits = ((plan.capabilities >> shift) & 0xffff_ffff) as u32;
        CapData { effective: bits, permitted: bits, inheritable: bits }
    };
    let prepared = Prepared {
        plan,
        argv: pointers(&plan.arguments),
        envp: pointers(&plan.environment),
        report: write.as_raw_fd(),
        caps: [half(0), half(32)],
        limits: plan.limits.iter().map(|(resource, wanted)| (*resource, limit(*resource, *wanted))).collect(),
    };
    let pid = clone(&prepared)?;
    drop(write);
    finish(read, pid)
}

/// The limit to set: a light host may have less than what is wanted, and no right to raise it.
fn limit(resource: u32, wanted: u64) -> libc::rlimit {
    let mut has = libc::rlimit { rlim_cur: wanted, rlim_max: wanted };
    // SAFETY: getrlimit writes one rlimit to the pointer, which is live.
    unsafe { libc::getrlimit(resource, &raw mut has) };
    let limit = wanted.min(has.rlim_max);
    libc::rlimit { rlim_cur: limit, rlim_max: limit }
}

/// Waits until the program runs (the pipe closes with exec) or the child has reported why not.
fn finish(read: OwnedFd, pid: i32) -> Result<i32, Errno> {
    let mut report = Vec::new();
    let _ = std::fs::File::from(read).take(4).read_to_end(&mut report);
    match <[u8; 4]>::try_from(report.as_slice()) {
        Ok(errno) => Err(Errno::from_raw(i32::from_le_bytes(errno))),
        Err(_) => Ok(pid),
    }
}

fn clone(prepared: &Prepared<'_>) -> Result<i32, Errno> {
    // SAFETY: clone_args is plain integers, for which all zeroes is a value.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.exit_signal = libc::SIGCHLD as u64;
    if prepared.plan.own_pids {
        args.flags |= libc::CLONE_NEWPID as u64;
    }
    if let Some(cgroup) = prepared.plan.cgroup {
        args.flags |= INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM and with no stack given this is fork: the child has a copy of this thread's memory and stack, and
    // returns here as the only thread of its process. Locks of other threads may be held for ever in that copy, so the child must
    // not allocate, lock or unwind: `run` calls only system calls on memory that `prepared` owns, and does not return.
    // `args` lives across the call and its size is what is passed.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
    if pid == 0 {
        run(prepared);
    }
    i32::try_from(Errno::result(pid)?).map_err(|_| Errno::EOVERFLOW)
}

/// The child's whole life before exec.
fn run(prepared: &Prepared<'_>) -> ! {
    let errno = match steps(prepared) {
        Err(errno) => errno,
        Ok(()) => Errno::EIO,
    };
    let report = (errno as i32).to_le_bytes();
    // SAFETY: system calls only; `report` is a live buffer of four bytes, and _exit ends the process without running anything of
    // the parent's copied state.
    unsafe {
        libc::write(prepared.report, report.as_ptr().cast(), report.len());
        libc::_exit(127)
    }
}

fn steps(prepared: &Prepared<'_>) -> Result<(), Errno> {
    let plan = prepared.plan;
    let call = |result: c_int| Errno::result(result).map(drop);
    let call_long = |result: c_long| Errno::result(result).map(drop);
    // SAFETY: every call below is a system call (through wrappers of libc that only make it, or by number where glibc's wrapper
    // takes locks to tell other threads: setgroups, setresgid, setresuid) on integers and on memory of `prepared`, which is a
    // copy of the parent's and stays valid until exec. Descriptors are open: `plan` borrows them. The argument vectors end with
    // a null pointer (`spawn` appends it) and point to NUL-terminated strings that `plan` owns.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        call(libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut()))?;
        // Rust programs ignore SIGPIPE, and what is ignored stays so across exec.
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        call(libc::setsid())?;
        if plan.terminal {
            call(libc::ioctl(plan.stdin.as_raw_fd(), libc::TIOCSCTTY, 1))?;
        }
        for (from, to) in [(plan.stdin, 0), (plan.stdout, 1), (plan.stderr, 2)] {
            call(libc::dup2(from.as_raw_fd(), to))?;
        }
        for fd in &plan.keep_open {
            call(libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, 0))?;
        }
        for (resource, limit) in &prepared.limits {
            call(libc::setrlimit(*resource, &raw const *limit))?;
        }
        libc::umask(0o022);
        call(libc::chdir(c"/".as_ptr()))?;
        call_long(libc::syscall(libc::SYS_setgroups, plan.groups.len(), plan.groups.as_ptr()))?;
        call_long(libc::syscall(libc::SYS_setresgid, plan.gid, plan.gid, plan.gid))?;
        for capability in 0..CAPABILITIES_END {
            if plan.capabilities & (1 << capability) == 0
                && libc::prctl(libc::PR_CAPBSET_DROP, capability, 0 as c_ulong, 0 as c_ulong, 0 as c_ulong)
                    != 0
            {
                break;
            }
        }
        if plan.uid != 0 {
            call(libc::prctl(libc::PR_SET_KEEPCAPS, 1 as c_ulong, 0 as c_ulong, 0 as c_ulong, 0 as c_ulong))?;
        }
        call_long(libc::syscall(libc::SYS_setresuid, plan.uid, plan.uid, plan.uid))?;
        let header = CapHeader { version: CAPABILITY_VERSION_3, pid: 0 };
        call_long(libc::syscall(libc::SYS_capset, &raw const header, prepared.caps.as_ptr()))?;
        if plan.uid != 0 {
            for capability in (0..CAPABILITIES_END).filter(|c| plan.capabilities & (1 << c) != 0) {
                let raise = libc::PR_CAP_AMBIENT_RAISE as c_ulong;
                call(libc::prctl(libc::PR_CAP_AMBIENT, raise, capability, 0 as c_ulong, 0 as c_ulong))?;
            }
        }
        call(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1 as c_ulong, 0 as c_ulong, 0 as c_ulong, 0 as c_ulong))?;
        let empty: &CStr = c"";
        match &plan.program {
            Program::Path(path) => {
                call(libc::execve(path.as_ptr(), prepared.argv.as_ptr(), prepared.envp.as_ptr()))
            }
            Program::Open(file) => {
                let (argv, envp) = (prepared.argv.as_ptr().cast(), prepared.envp.as_ptr().cast());
                call(libc::execveat(file.as_raw_fd(), empty.as_ptr(), argv, envp, libc::AT_EMPTY_PATH))
            }
        }
    }
}
