//! The few calls that the safe crates leave unsafe: KVM from a descriptor, memory slots, exits that are unions, and the kick signal.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::thread::JoinHandleExt;
use std::ptr;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::JoinHandle;

use kvm_bindings::{
    KVM_EXIT_IO_OUT, KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, kvm_device_attr, kvm_sregs2,
    kvm_userspace_memory_region, kvm_xsave,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vm_memory::{GuestMemoryRegion, GuestRegionMmap};

/// KVM behind a descriptor that was opened elsewhere.
pub(crate) fn kvm(fd: OwnedFd) -> Kvm {
    // SAFETY: the descriptor is open and owned by nobody else, as `OwnedFd` promises; `Kvm` owns it from here on.
    unsafe { Kvm::from_raw_fd(fd.into_raw_fd()) }
}

/// Gives the guest a region of memory as slot `slot`.
///
/// The mapping must outlive the VM: [`crate::machine`] keeps the region alive until the last descriptor of the VM is closed.
pub(crate) fn set_memory_slot(
    vm: &VmFd,
    slot: u32,
    region: &GuestRegionMmap<()>,
) -> Result<(), kvm_ioctls::Error> {
    let slot = kvm_userspace_memory_region {
        slot,
        flags: 0,
        guest_phys_addr: vm_memory::Address::raw_value(&region.start_addr()),
        memory_size: region.len(),
        userspace_addr: region.get_mmap().as_ptr() as u64,
    };
    // SAFETY: address and size are those of one live mapping (`region.get_mmap()`), which holds nothing but guest memory: no Rust
    // object lies in it, so the guest can change nothing that Rust relies on. `Board` holds the regions as long as the VM.
    unsafe { vm.set_user_memory_region(slot) }
}

/// One port access that the guest made: `count` accesses of `size` bytes, as string instructions repeat them.
pub(crate) struct PortAccess<'a> {
    pub(crate) port: u16,
    pub(crate) out: bool,
    pub(crate) size: usize,
    pub(crate) data: &'a mut [u8],
}

/// The port access because of which the last `KVM_RUN` returned; called only after an exit of that kind.
pub(crate) fn port_access(vcpu: &mut VcpuFd) -> PortAccess<'_> {
    let run = ptr::from_mut(vcpu.get_kvm_run());
    // SAFETY: the caller saw KVM_EXIT_IO, for which the kernel fills this member of the union; all its bit patterns are valid.
    let io = unsafe { (*run).__bindgen_anon_1.io };
    let (size, count) = (usize::from(io.size), usize::try_from(io.count).unwrap_or(0));
    // SAFETY: the kernel puts the data at `data_offset` within the vCPU's mapping, which is longer than `kvm_run` and lives as
    // long as `vcpu`, whose exclusive borrow the slice inherits. `kvm_ioctls` makes the same slice from the same numbers.
    let data = unsafe {
        let start = run.cast::<u8>().add(usize::try_from(io.data_offset).unwrap_or(0));
        std::slice::from_raw_parts_mut(start, size * count)
    };
    PortAccess { port: io.port, out: u32::from(io.direction) == KVM_EXIT_IO_OUT, size, data }
}

thread_local! {
    /// Where this thread's `kvm_run.immediate_exit` is; null on threads that run no vCPU. Constant and without a destructor, so
    /// that the signal handler may read it at any time.
    static IMMEDIATE_EXIT: Cell<*const AtomicU8> = const { Cell::new(ptr::null()) };
}

extern "C" fn kicked(_: libc::c_int) {
    let flag = IMMEDIATE_EXIT.get();
    if !flag.is_null() {
        // SAFETY: not null means that a `Kickable` lives on this thread. Its `Drop` clears the pointer before its `VcpuFd` unmaps
        // `kvm_run`, and the handler runs on this thread only.
        unsafe { (*flag).store(1, Ordering::Relaxed) };
    }
}

fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN()
}

/// Installs the handler of the kick signal for the process.
pub(crate) fn install_kick() -> io::Result<()> {
    // SAFETY: all-zero is a valid `sigaction`; the handler does nothing but one atomic store, which is async-signal-safe.
    let done = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = kicked as *const () as usize;
        // No SA_RESTART: KVM_RUN must come back.
        libc::sigaction(kick_signal(), &action, ptr::null_mut())
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A vCPU on the thread that runs it: a kick makes the running or the next `KVM_RUN` return with EINTR.
pub(crate) struct Kickable(VcpuFd);

impl Kickable {
    /// Binds the vCPU to the calling thread.
    pub(crate) fn bind(mut vcpu: VcpuFd) -> Self {
        let flag = ptr::from_mut(&mut vcpu.get_kvm_run().immediate_exit);
        // The mapping does not move with `vcpu`: `VcpuFd` holds a pointer to it.
        IMMEDIATE_EXIT.set(flag.cast_const().cast());
        Self(vcpu)
    }

    /// The vCPU.
    pub(crate) fn vcpu(&mut self) -> &mut VcpuFd {
        &mut self.0
    }

    /// Takes back a kick that has been heeded. Whoever kicks again after this is heard by the next `KVM_RUN`.
    pub(crate) fn clear(&mut self) {
        self.0.set_kvm_immediate_exit(0);
    }
}

impl Drop for Kickable {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.set(ptr::null());
    }
}

/// Kicks the vCPU that runs on this thread; does nothing to a thread that has none (any more).
pub(crate) fn kick<T>(thread: &JoinHandle<T>) {
    // SAFETY: a thread's id stays valid until it is joined or detached, and `thread` is neither while it is borrowed here.
    unsafe { libc::pthread_kill(thread.as_pthread_t(), kick_signal()) };
}

mod request {
    //! KVM's requests that `kvm-ioctls` lacks.
    use kvm_bindings::{KVMIO, kvm_sregs2};
    nix::ioctl_read!(get_sregs2, KVMIO, 0xcc, kvm_sregs2);
    nix::ioctl_write_ptr!(set_sregs2, KVMIO, 0xcd, kvm_sregs2);
    nix::ioctl_write_ptr!(set_device_attr, KVMIO, 0xe1, kvm_bindings::kvm_device_attr);
    nix::ioctl_write_ptr!(get_device_attr, KVMIO, 0xe2, kvm_bindings::kvm_device_attr);
}

/// In `kvm_sregs2.flags`: the page-directory pointers count.
const PDPTRS_VALID: u64 = 1;

fn errno(error: nix::errno::Errno) -> kvm_ioctls::Error {
    kvm_ioctls::Error::new(error as i32)
}

fn sregs2(vcpu: &VcpuFd) -> Result<kvm_sregs2, kvm_ioctls::Error> {
    let mut sregs = kvm_sregs2::default();
    // SAFETY: the descriptor is a vCPU's; the kernel writes one `kvm_sregs2`, which lives through the call.
    unsafe { request::get_sregs2(vcpu.as_raw_fd(), &mut sregs) }.map_err(errno)?;
    Ok(sregs)
}

/// The page-directory pointers of a vCPU with PAE paging; `None` while they mean nothing.
pub(crate) fn pdptrs(vcpu: &VcpuFd) -> Result<Option<[u64; 4]>, kvm_ioctls::Error> {
    let sregs = sregs2(vcpu)?;
    Ok((sregs.flags & PDPTRS_VALID != 0).then_some(sregs.pdptrs))
}

/// Sets the page-directory pointers; all other system registers stay.
pub(crate) fn set_pdptrs(vcpu: &VcpuFd, pdptrs: [u64; 4]) -> Result<(), kvm_ioctls::Error> {
    let sregs = kvm_sregs2 { flags: PDPTRS_VALID, pdptrs, ..sregs2(vcpu)? };
    // SAFETY: the descriptor is a vCPU's; the kernel reads one `kvm_sregs2`, which lives through the call.
    unsafe { request::set_sregs2(vcpu.as_raw_fd(), &sregs) }.map_err(errno)?;
    Ok(())
}

/// Sets x87, SSE and AVX state.
pub(crate) fn set_xsave(vcpu: &VcpuFd, xsave: &kvm_xsave) -> Result<(), kvm_ioctls::Error> {
    // SAFETY: KVM reads more than the 4096 bytes of `kvm_xsave` only when the process asked for larger features
    // (ARCH_REQ_XCOMP_GUEST_PERM), which this one never does.
    unsafe { vcpu.set_xsave(xsave) }
}

fn offset_attribute(value: *mut u64) -> kvm_device_attr {
    let (group, attr) = (KVM_VCPU_TSC_CTRL, u64::from(KVM_VCPU_TSC_OFFSET));
    kvm_device_attr { group, attr, addr: value as u64, flags: 0 }
}

/// What KVM adds to the host's time-stamp counter for this vCPU; `None` where it does not tell.
pub(crate) fn tsc_offset(vcpu: &VcpuFd) -> Option<u64> {
    let mut offset = 0u64;
    let attribute = offset_attribute(&raw mut offset);
    // SAFETY: for this attribute the kernel writes one u64 to `addr`, which lives through the call.
    unsafe { request::get_device_attr(vcpu.as_raw_fd(), &attribute) }.ok()?;
    Some(offset)
}

/// Sets what KVM adds to the host's time-stamp counter for this vCPU.
pub(crate) fn set_tsc_offset(vcpu: &VcpuFd, mut offset: u64) -> Result<(), kvm_ioctls::Error> {
    let attribute = offset_attribute(&raw mut offset);
    // SAFETY: for this attribute the kernel reads one u64 from `addr`, which lives through the call.
    unsafe { request::set_device_attr(vcpu.as_raw_fd(), &attribute) }.map_err(errno)?;
    Ok(())
}

/// Keeps the allocator to one arena: a monitor allocates little, and each further arena costs resident memory per thread.
pub(crate) fn one_arena() {
    // SAFETY: mallopt only sets a tunable of the allocator; it is called before other threads exist.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

nix::ioctl_write_ptr_bad!(
    /// TUNSETIFF of linux/if_tun.h, whose number says `int` though it takes a `struct ifreq`.
    tun_set_iff,
    0x4004_54ca,
    libc::ifreq
);

/// Opens the tap device `name` (at most 15 bytes), or makes it: Ethernet frames with a virtio-net header.
pub(crate) fn open_tap(name: &str) -> io::Result<OwnedFd> {
    let tap = OwnedFd::from(std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun")?);
    // SAFETY: all-zero is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero, whatever the length.
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name.iter_mut().take(room).zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).unwrap_or_default();
    // SAFETY: the descriptor is open. The kernel reads one `ifreq` and writes it back (the name that it chose): the pointer is made
    // from an exclusive borrow of a live one, and nothing else refers to it during the call.
    unsafe { tun_set_iff(std::os::fd::AsRawFd::as_raw_fd(&tap), std::ptr::from_mut(&mut request)) }?;
    Ok(tap)
}
