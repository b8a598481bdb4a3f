//! The host: identity, health, hardware, conditions, logs, power.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Whether the host agent works. Served to anyone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// `ok`.
    pub status: String,
}

/// Which host this is. Served to anyone, so that a new host can be found and trusted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// `Keelson`.
    pub product: String,
    /// The product's version.
    pub version: String,
    /// The host's id; it stays over reboots when the host has a state partition.
    pub host_id: Uuid,
    /// The host's name.
    pub hostname: String,
    /// The SHA-256 fingerprint of the TLS certificate, as hexadecimal pairs with colons.
    pub certificate_sha256: String,
    /// Whether root has a password. Until then nothing else is served over the network.
    pub password_set: bool,
}

/// The host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Host {
    /// Which host this is.
    #[serde(flatten)]
    pub identity: Identity,
    /// This boot's id.
    pub boot_id: String,
    /// Time since power-on (kernel start), in seconds.
    pub uptime_s: u64,
    /// The running kernel's release.
    pub kernel: String,
    /// The server's maker and model, where its firmware says so.
    pub hardware: Option<String>,
    /// Its processors.
    pub cpu: Cpu,
    /// What its processors can show to guests; missing where there is no KVM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_identity: Option<crate::CpuIdentity>,
    /// The CPU definition beyond which no new VM goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_baseline: Option<String>,
    /// Its memory.
    pub memory: Memory,
    /// Whether it can run VMs.
    pub kvm: KvmStatus,
    /// Its physical NICs.
    pub nics: Vec<crate::Nic>,
    /// Whether the configuration is kept over a reboot (there is a state partition).
    pub persistent: bool,
    /// Whether a running VM can be moved here or away.
    pub vmotion_ready: bool,
    /// Why not, and what to do.
    pub vmotion_reason: Option<String>,
    /// What a person should know.
    pub conditions: Vec<Condition>,
    /// The steps of the boot.
    pub boot_timeline: Vec<Step>,
}

/// The host's processors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpu {
    /// The model, as the processor names itself.
    pub model: String,
    /// Sockets.
    pub sockets: u32,
    /// Cores, over all sockets.
    pub cores: u32,
    /// Logical processors: the most vCPUs that one VM can have here, if KVM allows as many.
    pub threads: u32,
}

/// The host's memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// What the kernel manages, in bytes.
    pub total_bytes: u64,
    /// What could be given to VMs now, in bytes (`MemAvailable`).
    pub available_bytes: u64,
    /// What powered-on VMs are configured with, in bytes.
    pub reserved_for_vms_bytes: u64,
}

/// Whether the host can run VMs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvmStatus {
    /// Whether it can.
    pub available: bool,
    /// Why not, and what to do.
    pub reason: Option<String>,
    /// The most vCPUs that KVM gives one VM.
    pub max_vcpus: u32,
}

/// Something that a person should know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// A stable name, such as `no-link`, `dhcp-unanswered`, `state-missing`, `kvm-missing`, `word-ignored`.
    pub code: String,
    /// What is wrong, on what, why.
    pub message: String,
    /// What to do.
    pub remedy: String,
}

/// One step of the boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Its name.
    pub name: String,
    /// When it was done, in milliseconds since the kernel started.
    pub at_ms: u64,
}

/// A change of the host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostUpdate {
    /// The host's name (RFC 1123).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// The CPU definition beyond which no new VM goes; an empty text removes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_baseline: Option<String>,
}

/// Shut down or restart the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostPower {
    /// Which.
    pub action: HostPowerAction,
    /// How long guests may take after their power button, in seconds: 0 to 3600.
    #[serde(default = "guest_deadline")]
    pub guest_deadline_s: u32,
}

fn guest_deadline() -> u32 {
    60
}

/// How the host goes down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostPowerAction {
    /// Restart.
    Reboot,
    /// Power off.
    PowerOff,
}

/// A line of the host's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// Its number, without gaps.
    pub seq: u64,
    /// When.
    pub time: jiff::Timestamp,
    /// `kernel`, `init` or a unit's name.
    pub source: String,
    /// `error`, `warning`, `info` or `debug`.
    pub level: String,
    /// The text.
    pub text: String,
}
