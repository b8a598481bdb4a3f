//! What a vCPU sees of its processor: the host's features as KVM offers them, with the machine's own topology.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};

use super::{KvmError, doing};

/// Leaf 1, ECX: the local APIC's timer can be armed by a TSC value.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1, ECX: x2APIC.
const X2APIC: u32 = 1 << 21;
/// Leaf 1, ECX: this is a virtual machine.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, EDX: more than one logical processor in the package.
const HTT: u32 = 1 << 28;

/// The processor of a machine: one package of as many single-threaded cores as it has vCPUs; APIC ids count from 0.
pub struct CpuTopology {
    base: Vec<kvm_cpuid_entry2>,
    vcpus: u32,
    deadline: bool,
}

impl CpuTopology {
    /// What KVM offers on this host.
    pub fn new(kvm: &Kvm, vcpus: u32) -> Result<Self, KvmError> {
        let supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(doing("say which processor features it supports"))?;
        let deadline = kvm.check_extension(Cap::TscDeadlineTimer);
        Ok(Self { base: supported.as_slice().to_vec(), vcpus, deadline })
    }

    /// The CPUID leaves of the vCPU with this APIC id.
    pub fn leaves(&self, apic_id: u32) -> Result<CpuId, KvmError> {
        let entries = adjusted(&self.base, self.vcpus, apic_id, self.deadline);
        CpuId::from_entries(&entries).map_err(|_| KvmError::Call {
            what: "take the processor's features",
            source: kvm_ioctls::Error::new(libc::E2BIG),
        })
    }
}

/// How many bits an APIC id needs for `vcpus` cores.
fn id_bits(vcpus: u32) -> u32 {
    vcpus.max(1).next_power_of_two().trailing_zeros()
}

fn adjusted(base: &[kvm_cpuid_entry2], vcpus: u32, apic_id: u32, deadline: bool) -> Vec<kvm_cpuid_entry2> {
    let bits = id_bits(vcpus);
    // Leaf 0xb is written anew, 0x1f and 0x8000_0026 (the vendors' extensions of it) would contradict it.
    let ours = [0xb, 0x1f, 0x8000_0026];
    let mut entries: Vec<kvm_cpuid_entry2> =
        base.iter().filter(|e| !ours.contains(&e.function)).copied().collect();
    for entry in &mut entries {
        match entry.function {
            1 => {
                // Brand and CLFLUSH size stay; the count of ids and the initial APIC id are 8-bit fields.
                entry.ebx = (entry.ebx & 0xffff) | ((1 << bits).min(255) << 16) | (apic_id << 24);
                entry.ecx |= HYPERVISOR | X2APIC;
                entry.ecx = if deadline { entry.ecx | TSC_DEADLINE } else { entry.ecx & !TSC_DEADLINE };
                entry.edx = if vcpus > 1 { entry.edx | HTT } else { entry.edx & !HTT };
            }
            // Intel's caches: ids that share it less one (bits 25:14), cores in the package less one (bits 31:26).
            4 if entry.eax & 0x1f != 0 => {
                let shared = if (entry.eax >> 5) & 7 >= 3 { (1u32 << bits) - 1 } else { 0 };
                let cores = ((1u32 << bits) - 1).min(63);
                entry.eax = (entry.eax & 0x3fff) | (shared.min(0xfff) << 14) | (cores << 26);
            }
            // AMD: cores less one (7:0), bits of the APIC id that count them (15:12).
            0x8000_0008 => entry.ecx = (entry.ecx & !0xf0ff) | (vcpus - 1).min(255) | (bits << 12),
            // AMD's caches: ids that share it less one (25:14).
            0x8000_001d if entry.eax & 0x1f != 0 => {
                let shared = if (entry.eax >> 5) & 7 >= 3 { (1u32 << bits) - 1 } else { 0 };
                entry.eax = (entry.eax & !(0xfff << 14)) | (shared.min(0xfff) << 14);
            }
            // AMD: extended APIC id, core id with one thread each, node 0 of 1.
            0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (apic_id, apic_id & 0xff, 0),
            _ => {}
        }
    }
    // Level 0: one thread a core; level 1: all cores in one package; then the end.
    let level = |index, eax, ebx, ecx| kvm_cpuid_entry2 {
        function: 0xb,
        index,
        flags: 1, // KVM_CPUID_FLAG_SIGNIFCANT_INDEX
        eax,
        ebx,
        ecx,
        edx: apic_id,
        ..Default::default()
    };
    if base.iter().any(|e| e.function == 0 && e.eax >= 0xb) {
        entries.push(level(0, 0, 1, 1 << 8));
        entries.push(level(1, bits, vcpus, (2 << 8) | 1));
        entries.push(level(2, 0, 0, 2));
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
        *entries.iter().find(|e| e.function == function && e.index == index).unwrap()
    }

    #[test]
    fn apic_ids_have_room_for_every_core() {
        assert_eq!([1, 2, 3, 4, 5, 254].map(id_bits), [0, 1, 2, 2, 3, 8]);
    }

    #[test]
    fn the_topology_is_the_machines_not_the_hosts() {
        let host = |function, index, eax, ebx, ecx, edx| kvm_cpuid_entry2 {
            function,
            index,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        };
        let base = [
            host(0, 0, 0x1f, 0, 0, 0),
            host(1, 0, 0, 0x4010_0800, TSC_DEADLINE, HTT),
            host(4, 3, 0xfc00_0063, 0, 0, 0),
            host(0xb, 0, 1, 2, 0x100, 77),
            host(0x1f, 0, 1, 2, 0x100, 77),
            host(0x8000_0008, 0, 0x3030, 0, 0x703f, 0),
        ];
        let one = adjusted(&base, 1, 0, false);
        assert_eq!(leaf(&one, 1, 0).ebx, 0x0001_0800);
        assert_eq!((leaf(&one, 1, 0).ecx, leaf(&one, 1, 0).edx), (HYPERVISOR | X2APIC, 0));
        let many = adjusted(&base, 5, 3, true);
        assert_eq!(leaf(&many, 1, 0).ebx, 0x0308_0800);
        assert_eq!(leaf(&many, 1, 0).ecx & TSC_DEADLINE, TSC_DEADLINE);
        assert_eq!((leaf(&many, 0xb, 1).eax, leaf(&many, 0xb, 1).ebx, leaf(&many, 0xb, 0).edx), (3, 5, 3));
        assert_eq!(leaf(&many, 4, 3).eax, (7 << 26) | (7 << 14) | 0x63);
        assert_eq!(leaf(&many, 0x8000_0008, 0).ecx, (3 << 12) | 4);
        assert!(many.iter().all(|e| e.function != 0x1f), "the host's own topology must not show through");
    }
}
