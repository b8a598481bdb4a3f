//! Processors: what a VM is to see of one, where it runs, and what a host has.

use serde::{Deserialize, Serialize};

/// A VM's processor, and its share of the host's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmCpu {
    /// What the guest sees: the name of a CPU definition, or `host`. A new VM that names none gets the host's baseline, or else the best
    /// that the host can run; it stays that until it is changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub definition: Option<String>,
    /// Features that the guest does not see, nor what needs them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub masks: Vec<String>,
    /// Cores of a socket; all in one when missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cores_per_socket: Option<u32>,
    /// Threads of a core; 1 when missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads_per_core: Option<u32>,
    /// The host processors that vCPUs run on, such as `0-3,8`: none is anywhere, one list is for all vCPUs, else there is one each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub affinity: Vec<String>,
    /// Its share where processors are short, 10 to 100000; 1000 is usual.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shares: Option<u32>,
    /// The most that it may use, in percent of one host processor, from 10; without a limit when missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_percent: Option<u32>,
    /// What it is to have in any case, in percent of one host processor. It is powered on only where so much is not reserved yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reservation_percent: Option<u32>,
}

impl VmCpu {
    /// Whether nothing is said.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// What a host's processor can show to guests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuIdentity {
    /// The vendor's 12 letters, such as `AuthenticAMD`.
    pub vendor: String,
    /// The family, extended family included.
    pub family: u32,
    /// The model, extended model included.
    pub model: u32,
    /// The stepping.
    pub stepping: u32,
    /// The width of physical addresses, in bits.
    pub address_width: u8,
    /// Features that KVM can show to guests.
    pub features: Vec<String>,
    /// The CPU definitions that the host can run.
    pub definitions: Vec<String>,
    /// The best of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best_definition: Option<String>,
}
