//! What a vCPU sees of its processor: the model of the configuration, or the host's features as KVM offers them.

use keelson_vmm_control::{Cpu, CpuIdentity};
use keelson_vmm_cpu::{
    ARCH_CAPABILITIES, HostCpu, Leaf, Model, Platform, Supported, Topology, list, materialise, passthrough,
};
use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use kvm_ioctls::Kvm;

use super::{KvmError, doing};

/// The processor of a machine.
pub struct Processor {
    identity: CpuIdentity,
    topology: Topology,
    supported: Supported,
}

impl Processor {
    /// The processor that a configuration asks for; an error when this host cannot show it.
    pub fn new(kvm: &Kvm, vcpus: u32, cpu: &Cpu) -> Result<Self, KvmError> {
        let supported = supported(kvm)?;
        if let CpuIdentity::Model(model) = &cpu.identity {
            let missing = model.fits(&supported.host());
            if !missing.is_empty() {
                let (definition, missing) = (model.definition.clone(), list(&missing));
                return Err(KvmError::Processor { definition, missing });
            }
        }
        Ok(Self { identity: cpu.identity.clone(), topology: cpu.topology(vcpus), supported })
    }

    /// The APIC id of a vCPU, which is its id within KVM as well.
    pub fn apic_id(&self, index: u32) -> u32 {
        self.topology.apic_id(index)
    }

    /// The CPUID leaves of the vCPU with this index; `tsc_khz` is what KVM knows of its TSC.
    pub fn leaves(&self, index: u32, tsc_khz: Option<u32>) -> Result<CpuId, KvmError> {
        let table = match &self.identity {
            CpuIdentity::Host { masks } => passthrough(&self.supported, &self.topology, index, masks),
            CpuIdentity::Model(model) => materialise(model, &self.topology, index, &Platform { tsc_khz }),
        };
        let entries: Vec<_> = table.iter().map(entry).collect();
        CpuId::from_entries(&entries).map_err(|_| KvmError::Call {
            what: "take the processor's features",
            source: kvm_ioctls::Error::new(libc::E2BIG),
        })
    }

    /// Whether the guest may use only those of KVM's own features that it is shown.
    pub(super) fn is_exact(&self) -> bool {
        matches!(self.identity, CpuIdentity::Model(_))
    }

    /// The feature MSRs that a model says more about than CPUID: number and value.
    pub(super) fn feature_msrs(&self) -> Option<(u32, u64)> {
        let CpuIdentity::Model(model) = &self.identity else { return None };
        let Model { features, .. } = &**model;
        features.has("arch_capabilities").then(|| (ARCH_CAPABILITIES, features.arch_capabilities()))
    }
}

fn supported(kvm: &Kvm) -> Result<Supported, KvmError> {
    Supported::read(kvm).map_err(doing("say which processor features it supports"))
}

/// What the host can show its guests.
pub fn host_cpu(kvm: &Kvm) -> Result<HostCpu, KvmError> {
    Ok(supported(kvm)?.host())
}

fn entry(leaf: &Leaf) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 {
        function: leaf.function,
        index: leaf.index,
        flags: if leaf.indexed { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 },
        eax: leaf.eax,
        ebx: leaf.ebx,
        ecx: leaf.ecx,
        edx: leaf.edx,
        ..Default::default()
    }
}
