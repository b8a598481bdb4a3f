//! Virtual machines.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::VmCpu;

/// A virtual machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vm {
    /// Its id.
    pub id: Uuid,
    /// Its name, unique on the host.
    pub name: String,
    /// Its directory, such as `[datastore1] web1`.
    pub directory: String,
    /// The hardware version, which freezes its PCI layout, ACPI tables and device set.
    pub hardware_version: u32,
    /// Its vCPUs.
    pub vcpus: u32,
    /// Its memory, in MiB.
    pub memory_mib: u64,
    /// Its processor.
    #[serde(default)]
    pub cpu: VmCpu,
    /// The kernel it boots, `[datastore] path`.
    pub kernel: String,
    /// The initramfs, `[datastore] path`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initramfs: Option<String>,
    /// The kernel's command line.
    pub cmdline: String,
    /// Its disks.
    pub disks: Vec<VmDisk>,
    /// Its network adapters.
    pub nics: Vec<VmNic>,
    /// Whether it runs.
    pub power_state: PowerState,
    /// Its latest owner, as the register in its directory says; missing while it never ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<VmEpoch>,
    /// How its last run ended, in one sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_exit: Option<String>,
    /// Since power-on, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uptime_s: Option<u64>,
    /// Guest memory that it has touched, in MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_touched_mib: Option<u64>,
}

/// A VM's disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmDisk {
    /// The raw image, `[datastore] path`.
    pub path: String,
    /// Its size, in bytes.
    pub size_bytes: u64,
    /// Whether the guest may only read it.
    pub read_only: bool,
}

/// A VM's network adapter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmNic {
    /// The port group it is on.
    pub port_group: String,
    /// Its MAC address.
    pub mac: String,
}

/// Whether a VM runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PowerState {
    /// It is off.
    PoweredOff,
    /// It runs.
    PoweredOn,
    /// Its vCPUs are stopped.
    Paused,
    /// Another host runs it, or may: see [`Vm::owner`].
    Elsewhere,
}

/// One epoch of a VM: who could run it from then on, until the next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmEpoch {
    /// Its number, from 1.
    pub epoch: u64,
    /// What the VM was from then on.
    pub state: OwnerState,
    /// The host that owns it; missing where the record is unreadable, as are all that follow but `note`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_id: Option<Uuid>,
    /// That host's name then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Why the epoch was taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<EpochCause>,
    /// The cause in a sentence; of an unreadable record what is wrong with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// When, by that host's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when: Option<jiff::Timestamp>,
}

/// What a VM is, as an owner's record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OwnerState {
    /// The owner runs it, or may.
    Running,
    /// It is suspended.
    Suspended,
    /// Nobody runs it.
    Off,
    /// The record is damaged, so nobody knows.
    Unreadable,
}

/// Why an epoch was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EpochCause {
    /// Power-on, or resume.
    PowerOn,
    /// Power-off, or the end of its run by itself.
    PowerOff,
    /// Suspend.
    Suspend,
    /// vMotion.
    Move,
    /// vMotion, whose target could not start it.
    GiveBack,
    /// An operator's claim that its owner was off.
    Forced,
}

/// A new VM. It is powered off until told otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmSpec {
    /// Its name: 1 to 64 letters, digits, `.`, `_`, `-` or spaces, not beginning with `.`; unique on the host.
    pub name: String,
    /// The datastore for its directory; the only one when missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub datastore: Option<String>,
    /// vCPUs, from 1.
    #[serde(default = "one")]
    pub vcpus: u32,
    /// Memory, in MiB, from 16.
    pub memory_mib: u64,
    /// Its processor.
    #[serde(default, skip_serializing_if = "VmCpu::is_default")]
    pub cpu: VmCpu,
    /// The kernel (bzImage or PVH ELF), `[datastore] path`.
    pub kernel: String,
    /// The initramfs, `[datastore] path`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initramfs: Option<String>,
    /// The kernel's command line, at most 2047 bytes.
    #[serde(default)]
    pub cmdline: String,
    /// Disks, at most 16.
    #[serde(default)]
    pub disks: Vec<DiskSpec>,
    /// Network adapters, at most 8.
    #[serde(default)]
    pub nics: Vec<NicSpec>,
}

fn one() -> u32 {
    1
}

/// A new VM's disk: an existing image (`path`) or a new empty one (`size_mib`), which is made, sparse, in the VM's directory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskSpec {
    /// An existing raw image, `[datastore] path`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The size of a new one, in MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_mib: Option<u64>,
    /// Whether the guest may only read it.
    #[serde(default)]
    pub read_only: bool,
}

/// A new VM's network adapter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NicSpec {
    /// The port group it is on.
    pub port_group: String,
    /// Its MAC address; one is made when missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
}

/// A change of a VM that is off; what is missing stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmUpdate {
    /// vCPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u32>,
    /// Memory, in MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u64>,
    /// The processor (the whole of it, but that a missing definition leaves the present one).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<VmCpu>,
    /// The kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// The initramfs; an empty text removes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initramfs: Option<String>,
    /// The kernel's command line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
    /// The network adapters (the whole list).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nics: Option<Vec<NicSpec>>,
}

/// Change a VM's power state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmPower {
    /// How.
    pub action: VmPowerAction,
    /// With `on`: the caller states that the VM's owner, as the VM shows it, is off and will not come back running it. The claim is
    /// put down in the VM's history. A wrong one lets two hosts write the same disks.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
}

/// How a VM's power state changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VmPowerAction {
    /// Power on.
    On,
    /// Power off at once, as by pulling the plug.
    Off,
    /// Reset, as by the reset button.
    Reset,
    /// Shut the guest down: its ACPI power button. The task ends when the guest is off, or fails after five minutes.
    Shutdown,
    /// Stop the vCPUs.
    Pause,
    /// Let the vCPUs run again.
    Resume,
}
