//! The CPUID table of a vCPU that sees the host's processor: what KVM offers, with the machine's own topology, less what is masked.

use crate::feature::{FeatureSet, Kind};
use crate::leaf::{Leaf, Register};
use crate::model::component_feature;
use crate::present::levels;
use crate::supported::Supported;
use crate::topology::Topology;

/// Leaf 1, EDX: more than one logical processor in the package.
const HTT: u32 = 1 << 28;
/// Bits of leaf 1 EDX that 0x8000_0001 EDX repeats on AMD's processors.
const AMD_REPEATED: u32 = 0x0183_f3ff;

/// The table of the vCPU with this index, without the masked features and what needs them.
pub fn passthrough(supported: &Supported, topology: &Topology, index: u32, masks: &FeatureSet) -> Vec<Leaf> {
    let Supported { table: supported, tsc_deadline, .. } = supported;
    let id = topology.apic_id(index);
    let (shift, threads) = (topology.socket_shift(), topology.thread_bits());
    // Leaf 0xb is written anew, 0x1f and 0x8000_0026 (the vendors' extensions of it) would contradict it.
    let ours = [0xb, 0x1f, 0x8000_0026];
    let mut table: Vec<Leaf> = supported.iter().filter(|l| !ours.contains(&l.function)).copied().collect();
    let sharing = |eax: u32| {
        let bits = if (eax >> 5) & 7 >= 3 { shift } else { threads };
        (1u32.wrapping_shl(bits) - 1).min(0xfff) << 14
    };
    for leaf in &mut table {
        match leaf.function {
            1 => {
                // Brand and CLFLUSH size stay; the count of ids and the initial APIC id are 8-bit fields.
                leaf.ebx = leaf.ebx & 0xffff | 1u32.wrapping_shl(shift).min(255) << 16 | (id & 0xff) << 24;
                leaf.ecx |= 1 << 31 | 1 << 21; // a hypervisor, x2APIC
                leaf.ecx = leaf.ecx & !(1 << 24) | u32::from(*tsc_deadline) << 24;
                leaf.edx = if topology.in_socket() > 1 { leaf.edx | HTT } else { leaf.edx & !HTT };
            }
            // Intel's caches: ids that share it less one (bits 25:14), cores in the package less one (bits 31:26).
            4 if leaf.eax & 0x1f != 0 => {
                let cores = (1u32.wrapping_shl(shift - threads.min(shift)) - 1).min(63);
                leaf.eax = leaf.eax & 0x3fff | sharing(leaf.eax) | cores << 26;
            }
            // AMD: logical processors less one (7:0), bits of the APIC id that count them (15:12).
            0x8000_0008 => {
                leaf.ecx = leaf.ecx & !0xf0ff | (topology.in_socket().max(1) - 1).min(255) | shift << 12;
            }
            // AMD's caches: ids that share it less one (25:14).
            0x8000_001d if leaf.eax & 0x1f != 0 => {
                leaf.eax = leaf.eax & !(0xfff << 14) | sharing(leaf.eax);
            }
            // AMD: extended APIC id; core id and threads less one; the socket as its node.
            0x8000_001e => {
                let core = id >> threads & 0xff;
                (leaf.eax, leaf.ebx) = (id, core | (topology.threads.max(1) - 1) << 8);
                leaf.ecx = id >> shift & 0xff;
            }
            _ => {}
        }
    }
    if supported.iter().any(|l| l.function == 0 && l.eax >= 0xb) {
        levels(&mut table, 0xb, topology, id);
    }
    if !masks.is_empty() {
        mask(&mut table, masks);
    }
    table
}

/// Takes features away, and the XSAVE components that go with them.
fn mask(table: &mut Vec<Leaf>, masks: &FeatureSet) {
    let had = FeatureSet::of(table, u64::MAX);
    let left = had.masked(masks);
    let gone = had.without(&left);
    let amd = table.iter().any(|l| l.function == 0 && l.ebx == u32::from_le_bytes(*b"Auth"));
    for feature in gone.iter() {
        let Kind::Cpuid(function, index, register) = feature.kind() else { continue };
        for leaf in table.iter_mut().filter(|l| l.function == function && (l.index == index || !l.indexed)) {
            *leaf.get_mut(register) &= !(1 << feature.bit());
        }
        let repeated = (function, register) == (1, Register::Edx) && AMD_REPEATED >> feature.bit() & 1 == 1;
        if amd && repeated {
            for leaf in table.iter_mut().filter(|l| l.function == 0x8000_0001) {
                leaf.edx &= !(1 << feature.bit());
            }
        }
    }
    let lost = |bit: u32| {
        let feature = u8::try_from(bit).ok().and_then(component_feature);
        feature.is_some_and(|f| gone.has(f))
    };
    if gone.has("xsave") {
        table.retain(|l| l.function != 0xd);
    }
    table.retain(|l| l.function != 0xd || l.index < 2 || !lost(l.index));
    let ends = table.iter().filter(|l| l.function == 0xd && l.index >= 2 && l.ecx & 1 == 0);
    let size = ends.map(|l| l.eax.saturating_add(l.ebx)).max().unwrap_or(0).max(576);
    let keep =
        |low: u32| (0..32).filter(|bit| low >> bit & 1 == 1 && !lost(*bit)).fold(0, |m, bit| m | 1 << bit);
    for leaf in table.iter_mut().filter(|l| l.function == 0xd) {
        match leaf.index {
            0 => (leaf.eax, leaf.ecx) = (keep(leaf.eax), leaf.ecx.min(size)),
            1 => leaf.ecx = keep(leaf.ecx),
            _ => {}
        }
    }
}
