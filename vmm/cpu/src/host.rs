//! What a host offers: read from the CPUID table that its KVM supports.

use crate::feature::{Feature, FeatureSet};
use crate::leaf::{self, Leaf};
use crate::model::Component;

/// Intel's name in leaf 0.
pub(crate) const INTEL: &str = "GenuineIntel";

/// What a host can show its guests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostCpu {
    /// The vendor's 12 letters.
    pub vendor: String,
    /// The family, extended family included.
    pub family: u32,
    /// The model, extended model included.
    pub model: u32,
    /// The stepping.
    pub stepping: u32,
    /// Features that KVM supports.
    pub features: FeatureSet,
    /// Extended XSAVE components that KVM supports.
    pub xsave: Vec<Component>,
    /// The width of physical addresses, in bits.
    pub address_width: u8,
}

impl HostCpu {
    /// Reads what KVM_GET_SUPPORTED_CPUID gave and what KVM has for IA32_ARCH_CAPABILITIES (0 when it has none). KVM's interrupt
    /// controller can have the TSC deadline without saying so there (KVM_CAP_TSC_DEADLINE_TIMER).
    pub fn of(table: &[Leaf], arch_capabilities: u64, tsc_deadline: bool) -> Self {
        let first = leaf::of(table, 0, 0);
        let vendor = [first.ebx, first.edx, first.ecx].map(u32::to_le_bytes).concat();
        let signature = leaf::of(table, 1, 0).eax;
        let family = signature >> 8 & 0xf;
        let model = signature >> 4 & 0xf;
        let extended = family == 6 || family == 0xf;
        let mut features = FeatureSet::of(table, arch_capabilities);
        if tsc_deadline && let Ok(deadline) = Feature::named("tsc_deadline_timer") {
            features.insert(deadline);
        }
        let width = leaf::of(table, 0x8000_0008, 0).eax.to_le_bytes();
        Self {
            vendor: vendor.iter().map(|b| if b.is_ascii_graphic() { char::from(*b) } else { '?' }).collect(),
            family: family + if family == 0xf { signature >> 20 & 0xff } else { 0 },
            model: model | if extended { (signature >> 16 & 0xf) << 4 } else { 0 },
            stepping: signature & 0xf,
            xsave: components(table, &features),
            features,
            // Without the leaf: 36 bits (Intel SDM volume 3, 5.1.4).
            address_width: if width[0] == 0 { 36 } else { width[0] },
        }
    }
}

fn components(table: &[Leaf], features: &FeatureSet) -> Vec<Component> {
    if !features.has("xsave") {
        return Vec::new();
    }
    let (user, supervisor) = (leaf::of(table, 0xd, 0), leaf::of(table, 0xd, 1));
    let user = u64::from(user.edx) << 32 | u64::from(user.eax);
    let supervisor = u64::from(supervisor.edx) << 32 | u64::from(supervisor.ecx);
    let there = (2..63u8).filter(|bit| (user | supervisor) >> bit & 1 == 1);
    let component = |bit: u8| {
        let leaf = leaf::of(table, 0xd, bit.into());
        Component {
            bit,
            size: leaf.eax,
            offset: leaf.ebx,
            supervisor: leaf.ecx & 1 == 1,
            aligned: leaf.ecx & 2 == 2,
        }
    };
    there.map(component).filter(|c| c.size != 0).collect()
}
