//! What a host's KVM says that it supports: the one place that asks.

use kvm_bindings::{
    KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_cpuid_entry2, kvm_msr_entry,
};
use kvm_ioctls::{Cap, Kvm};

use crate::ARCH_CAPABILITIES;
use crate::host::HostCpu;
use crate::leaf::Leaf;

/// What KVM supports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Supported {
    /// KVM_GET_SUPPORTED_CPUID.
    pub table: Vec<Leaf>,
    /// IA32_ARCH_CAPABILITIES as guests can have it; 0 where KVM has none, or cannot tell (kernels before 4.16).
    pub arch_capabilities: u64,
    /// KVM_CAP_TSC_DEADLINE_TIMER: local APICs have the TSC deadline, which older kernels do not say in the table.
    pub tsc_deadline: bool,
}

impl Supported {
    /// Asks KVM. Fails only where KVM does not answer at all.
    pub fn read(kvm: &Kvm) -> Result<Self, kvm_ioctls::Error> {
        let table = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
        Ok(Self {
            table: table.as_slice().iter().map(leaf).collect(),
            arch_capabilities: arch_capabilities(kvm),
            tsc_deadline: kvm.check_extension(Cap::TscDeadlineTimer),
        })
    }

    /// What the host can show its guests.
    pub fn host(&self) -> HostCpu {
        HostCpu::of(&self.table, self.arch_capabilities, self.tsc_deadline)
    }
}

fn arch_capabilities(kvm: &Kvm) -> u64 {
    let asked = kvm_msr_entry { index: ARCH_CAPABILITIES, ..Default::default() };
    let Ok(mut msrs) = Msrs::from_entries(&[asked]) else { return 0 };
    match kvm.get_msrs(&mut msrs) {
        Ok(1) => msrs.as_slice().first().map_or(0, |m| m.data),
        _ => 0,
    }
}

fn leaf(e: &kvm_cpuid_entry2) -> Leaf {
    let indexed = e.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0;
    Leaf { indexed, ..Leaf::indexed(e.function, e.index, [e.eax, e.ebx, e.ecx, e.edx]) }
}
