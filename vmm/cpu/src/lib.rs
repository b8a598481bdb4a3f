//! What processor a guest sees: named definitions, what of them a host can run, and the CPUID table that is made of one.
//!
//! [`Supported`] asks an open KVM; everything else is computed from tables, and nothing is executed. So the monitor, the host agent and
//! whoever compares two hosts come to the same result.

mod choice;
mod definition;
mod feature;
mod host;
mod leaf;
mod model;
mod passthrough;
mod present;
mod supported;
mod topology;

pub use choice::{best_for, common, masks_for};
pub use definition::{Definition, HOST, UnknownDefinition, definitions, find};
pub use feature::{Feature, FeatureSet, Kind, MaskError, UnknownFeature, check_masks};
pub use host::HostCpu;
pub use leaf::{Leaf, Register};
pub use model::{Cache, CacheKind, Component, Missing, Model, list};
pub use passthrough::passthrough;
pub use present::{Platform, materialise};
pub use supported::Supported;
pub use topology::{Topology, TopologyError};

/// IA32_ARCH_CAPABILITIES (Intel SDM volume 4): what the processor says of its own weaknesses.
pub const ARCH_CAPABILITIES: u32 = 0x10a;
