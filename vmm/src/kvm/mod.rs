//! The hypervisor of the host: what it must be able to do, and a fresh virtual machine on it.

mod cpuid;
mod msi;
pub mod vcpu_saved;
mod vcpu_state;
pub mod vm_saved;

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use keelson_vmm_control::Cpu;
use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
use kvm_ioctls::{Cap, Kvm, VmFd};
use vm_memory::GuestMemoryBackend;

pub use cpuid::{Processor, host_cpu};
pub use msi::KvmMsi;
use vcpu_saved::VcpuAbilities;
pub use vcpu_state::{Entry, set_up};

use crate::memory::{GuestRam, KVM_IDENTITY_MAP, KVM_TSS};

/// Where the kernel offers its hypervisor.
pub const DEVICE: &str = "/dev/kvm";

/// Why this host cannot run a machine, and what can be done about it.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// There is no device node.
    #[error(
        "{DEVICE} does not exist: the kernel offers no hardware virtualisation. Switch on AMD SVM or Intel VT-x in the firmware's \
         set-up, and load the module kvm_amd or kvm_intel"
    )]
    Missing,
    /// The device node is there, but nothing behind it.
    #[error("{DEVICE} exists but no hypervisor answers behind it: load the module kvm_amd or kvm_intel")]
    NoDevice(#[source] io::Error),
    /// This user may not open it.
    #[error(
        "{DEVICE} may not be opened by uid {uid}: add the user to the group that owns the device (often `kvm`), or run as root"
    )]
    NotPermitted {
        /// Who tried.
        uid: u32,
    },
    /// Anything else.
    #[error("{DEVICE} could not be opened")]
    Open(#[source] io::Error),
    /// The descriptor is something else.
    #[error(
        "the descriptor that was handed in as KVM does not answer as KVM (API version 12 is wanted, it says {0})"
    )]
    NotKvm(i32),
    /// A capability without which a machine cannot run.
    #[error("this host's KVM lacks {name} ({what}): a Linux kernel of version 4.14 or later has it")]
    Lacks {
        /// The capability, as the kernel's documentation names it.
        name: &'static str,
        /// What it is needed for.
        what: &'static str,
    },
    /// More vCPUs than the host's KVM can give one machine.
    #[error("{wanted} vCPUs are more than this host's KVM can give one machine: it allows {allowed}")]
    TooManyVcpus {
        /// What was asked for.
        wanted: u32,
        /// What is possible.
        allowed: usize,
    },
    /// The host's processor is not what the machine's must be.
    #[error(
        "this host cannot show a guest the processor `{definition}`: it lacks {missing}. Choose a definition that this host can run, or \
         mask what is missing"
    )]
    Processor {
        /// The definition.
        definition: String,
        /// What the host lacks.
        missing: String,
    },
    /// A call failed that should not.
    #[error("KVM could not {what}")]
    Call {
        /// What was being done.
        what: &'static str,
        /// The cause.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// Another system call failed.
    #[error("could not {what}")]
    System {
        /// What was being done.
        what: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// Says what was being done when a KVM call failed.
pub(crate) fn doing(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> KvmError {
    move |source| KvmError::Call { what, source }
}

/// Opens [`DEVICE`].
pub fn open() -> Result<OwnedFd, KvmError> {
    let opened = std::fs::OpenOptions::new().read(true).write(true).open(DEVICE);
    opened.map(OwnedFd::from).map_err(|e| match e.raw_os_error() {
        Some(libc::ENOENT) if !Path::new(DEVICE).exists() => KvmError::Missing,
        Some(libc::ENXIO | libc::ENODEV) => KvmError::NoDevice(e),
        Some(libc::EACCES | libc::EPERM) => KvmError::NotPermitted { uid: nix::unistd::geteuid().as_raw() },
        _ => KvmError::Open(e),
    })
}

/// The host's KVM, checked.
pub struct Host {
    kvm: Kvm,
    processor: Processor,
    abilities: VcpuAbilities,
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Host")
    }
}

/// What a machine cannot do without. Everything else (nested state, TSC scaling, SMM, a PMU) is optional.
const NEEDED: [(Cap, &str, &str); 7] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY", "guest memory"),
    (Cap::Irqchip, "KVM_CAP_IRQCHIP", "interrupt controllers in the kernel"),
    (Cap::IrqRouting, "KVM_CAP_IRQ_ROUTING", "message-signalled interrupts"),
    (Cap::Irqfd, "KVM_CAP_IRQFD", "device interrupts"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD", "device doorbells"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR", "real mode on Intel"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT", "stopping a vCPU"),
];

impl Host {
    /// Takes KVM over and checks that it can run a machine with `vcpus` vCPUs of this processor.
    pub fn new(fd: OwnedFd, vcpus: u32, cpu: &Cpu) -> Result<Self, KvmError> {
        let kvm = crate::sys::kvm(fd);
        let version = kvm.get_api_version();
        if version != 12 {
            return Err(KvmError::NotKvm(version));
        }
        for (cap, name, what) in NEEDED {
            if !kvm.check_extension(cap) {
                return Err(KvmError::Lacks { name, what });
            }
        }
        let allowed = kvm.get_max_vcpus();
        if usize::try_from(vcpus).unwrap_or(usize::MAX) > allowed {
            return Err(KvmError::TooManyVcpus { wanted: vcpus, allowed });
        }
        let processor = Processor::new(&kvm, vcpus, cpu)?;
        let abilities = VcpuAbilities::new(&kvm)?;
        Ok(Self { kvm, processor, abilities })
    }

    /// What each vCPU sees of its processor.
    pub fn processor(&self) -> &Processor {
        &self.processor
    }

    /// What KVM can tell about the state of vCPUs.
    pub fn abilities(&self) -> &VcpuAbilities {
        &self.abilities
    }

    /// A fresh virtual machine with the memory, the interrupt controllers (PIC, I/O APIC, local APICs) and the timer.
    pub fn create_vm(&self, ram: &GuestRam) -> Result<VmFd, KvmError> {
        let vm = loop {
            // KVM_CREATE_VM comes back with EINTR when a signal arrives while it waits for its locks.
            match self.kvm.create_vm() {
                Err(e) if e.errno() == libc::EINTR => {}
                other => {
                    break other.map_err(doing(
                        "create a virtual machine (is another hypervisor using the processor?)",
                    ))?;
                }
            }
        };
        if self.kvm.check_extension(Cap::SetIdentityMapAddr) {
            vm.set_identity_map_address(KVM_IDENTITY_MAP).map_err(doing("place its identity map"))?;
        }
        let tss = usize::try_from(KVM_TSS).unwrap_or_default();
        vm.set_tss_address(tss).map_err(doing("place its task state segment"))?;
        for (slot, region) in (0..).zip(ram.iter()) {
            crate::sys::set_memory_slot(&vm, slot, region).map_err(doing("give the guest its memory"))?;
        }
        vm.create_irq_chip().map_err(doing("create the interrupt controllers"))?;
        if self.kvm.check_extension(Cap::Pit2) {
            let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
            vm.create_pit2(pit).map_err(doing("create the interval timer"))?;
        }
        Ok(vm)
    }
}
