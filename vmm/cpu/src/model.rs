//! A guest's processor, settled: everything that its CPUID shows and that does not depend on the number of vCPUs.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::feature::{Feature, FeatureSet};
use crate::host::HostCpu;

/// A guest's processor. It travels with the machine, so that a host of another version shows the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// The definition that it was made from.
    pub definition: String,
    /// The vendor's 12 letters (leaf 0).
    pub vendor: String,
    /// The family, extended family included.
    pub family: u32,
    /// The model, extended model included.
    pub model: u32,
    /// The stepping.
    pub stepping: u32,
    /// The brand, at most 47 bytes.
    pub brand: String,
    /// The width of physical addresses, in bits.
    pub address_width: u8,
    /// Features.
    pub features: FeatureSet,
    /// Extended XSAVE components (x87 and SSE are always there with `xsave`).
    #[serde(default)]
    pub xsave: Vec<Component>,
    /// Caches.
    #[serde(default)]
    pub caches: Vec<Cache>,
}

/// An extended XSAVE component (Intel SDM volume 1, 13.1; CPUID leaf 0xd).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Component {
    /// Its bit in XCR0, or in IA32_XSS.
    pub bit: u8,
    /// Its size, in bytes.
    pub size: u32,
    /// Where it lies in the standard form, in bytes; 0 for one of IA32_XSS.
    pub offset: u32,
    /// Whether it is of IA32_XSS.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub supervisor: bool,
    /// Whether it begins at a multiple of 64 bytes in the compacted form.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub aligned: bool,
}

/// A cache, with lines of 64 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cache {
    /// Its level.
    pub level: u8,
    /// What it holds.
    pub kind: CacheKind,
    /// Its size, in KiB.
    pub size_kib: u32,
    /// Its ways of associativity.
    pub ways: u32,
    /// Whether a socket's cores share it; each core has its own otherwise.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shared: bool,
}

/// What a cache holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CacheKind {
    /// Data.
    Data,
    /// Instructions.
    Instructions,
    /// Both.
    Unified,
}

/// The feature without which an XSAVE component is not there; `None` for a component that is not known here.
pub(crate) fn component_feature(bit: u8) -> Option<&'static str> {
    match bit {
        2 => Some("avx"),
        3 | 4 => Some("mpx"),
        5..=7 => Some("avx512f"),
        9 => Some("pku"),
        11 | 12 => Some("shstk"),
        17 => Some("amx_tile"),
        18 => Some("amx_tile"),
        _ => None,
    }
}

/// Something that a host lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Missing {
    /// The host's processor is another vendor's.
    Vendor {
        /// Whose it must be.
        wanted: String,
        /// Whose it is.
        has: String,
    },
    /// A feature.
    Feature(Feature),
    /// The host's physical addresses are too narrow.
    AddressWidth {
        /// Bits that are wanted.
        wanted: u8,
        /// Bits that the host has.
        has: u8,
    },
    /// An XSAVE component has another place or size on the host.
    XsaveLayout {
        /// The component.
        bit: u8,
    },
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vendor { wanted, has } => write!(f, "a processor of {wanted} (it is {has})"),
            Self::Feature(feature) => write!(f, "{feature}"),
            Self::AddressWidth { wanted, has } => {
                write!(f, "{wanted} bits of physical address (it has {has})")
            }
            Self::XsaveLayout { bit } => write!(f, "the XSAVE layout of component {bit}"),
        }
    }
}

/// What is missing, as one text.
pub fn list(missing: &[Missing]) -> String {
    missing.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl Model {
    /// What a host lacks to show this processor; empty when it can.
    pub fn fits(&self, host: &HostCpu) -> Vec<Missing> {
        let mut missing = Vec::new();
        if self.vendor != host.vendor {
            missing.push(Missing::Vendor { wanted: self.vendor.clone(), has: host.vendor.clone() });
        }
        missing.extend(self.features.without(&host.features).iter().map(Missing::Feature));
        if self.address_width > host.address_width {
            missing.push(Missing::AddressWidth { wanted: self.address_width, has: host.address_width });
        }
        for component in &self.xsave {
            // One that is not there at all goes with its feature.
            let other = host.xsave.iter().find(|c| c.bit == component.bit);
            if other.is_some_and(|c| (c.size, c.offset) != (component.size, component.offset)) {
                missing.push(Missing::XsaveLayout { bit: component.bit });
            }
        }
        missing
    }

    /// A host that has exactly this.
    pub(crate) fn as_host(&self) -> HostCpu {
        HostCpu {
            vendor: self.vendor.clone(),
            family: self.family,
            model: self.model,
            stepping: self.stepping,
            features: self.features.clone(),
            xsave: self.xsave.clone(),
            address_width: self.address_width,
        }
    }

    /// The most memory that a machine of this processor can have, in MiB, with the hole of 1 GiB below 4 GiB taken off.
    pub fn most_memory_mib(&self) -> u64 {
        (1u64 << (self.address_width.clamp(32, 52) - 20)) - 1024
    }
}
