//! A machine's description, and what makes one valid.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::cpu::Cpu;

/// The most vCPUs that a configuration may ask for; the host's KVM may allow fewer.
pub const MAX_VCPUS: u32 = 254;
/// The least memory a machine can have, in MiB.
pub const MIN_MEMORY_MIB: u64 = 16;
/// The longest kernel command line, in bytes (COMMAND_LINE_SIZE of x86 Linux is 2048 with its NUL).
pub const MAX_CMDLINE: usize = 2047;
/// The most disks of one machine: PCI slots 1 to 30 are shared with [`MAX_NICS`] and the fixed devices.
pub const MAX_DISKS: usize = 16;
/// The most network adapters of one machine.
pub const MAX_NICS: usize = 8;

/// The names under which a monitor expects the descriptors that every machine has. Disks and NICs name their own in the
/// configuration.
pub mod fd_names {
    /// `/dev/kvm`, opened read-write.
    pub const KVM: &str = "kvm";
    /// The configuration as JSON, in a file that can be read from its start (a memfd).
    pub const CONFIG: &str = "config";
    /// Guest memory: a memfd of exactly the configured size. Optional: without it the monitor makes its own.
    pub const MEMORY: &str = "memory";
    /// The kernel file.
    pub const KERNEL: &str = "kernel";
    /// The initramfs file. Optional.
    pub const INITRAMFS: &str = "initramfs";
    /// A listening Unix socket for the control words.
    pub const CONTROL: &str = "control";
    /// A listening Unix socket for the serial console. Optional.
    pub const CONSOLE: &str = "console";
    /// The state file of a suspended machine, opened read-write; it comes with [`SAVED_MEMORY`]. The machine is then brought back rather
    /// than booted. Optional.
    pub const SAVED_STATE: &str = "saved-state";
    /// The memory file of a suspended machine.
    pub const SAVED_MEMORY: &str = "saved-memory";
    /// `/dev/userfaultfd`, opened read-write: memory then comes as it is needed, and else before the machine runs. Optional.
    pub const USERFAULTFD: &str = "userfaultfd";
    /// A regular file, opened read-write, that the monitor keeps the serial port's output in (bounded). Optional.
    pub const CONSOLE_LOG: &str = "console-log";
}

/// The whole description of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineConfig {
    /// The machine's name, for people.
    pub name: String,
    /// The machine's UUID; the guest sees it as its SMBIOS/ACPI identity where it has one.
    pub uuid: Uuid,
    /// vCPUs, 1 to [`MAX_VCPUS`].
    pub vcpus: u32,
    /// Memory in MiB, at least [`MIN_MEMORY_MIB`].
    pub memory_mib: u64,
    /// The processor.
    #[serde(default)]
    pub cpu: Cpu,
    /// What is booted.
    pub boot: Boot,
    /// Disks, in PCI order.
    #[serde(default)]
    pub disks: Vec<Disk>,
    /// Network adapters, in PCI order.
    #[serde(default)]
    pub nics: Vec<Nic>,
}

/// What a machine boots: a kernel directly (bzImage by the Linux x86 boot protocol, or an ELF with a PVH note).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Boot {
    /// The kernel command line.
    #[serde(default)]
    pub cmdline: String,
}

/// A virtio-blk disk on a raw file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// The name of its descriptor (a raw image whose size is a multiple of 512 bytes).
    pub fd: String,
    /// The guest may not write; the descriptor may then be opened read-only.
    #[serde(default)]
    pub read_only: bool,
    /// What VIRTIO_BLK_T_GET_ID answers, at most 20 bytes of ASCII.
    #[serde(default)]
    pub serial: String,
}

/// A virtio-net adapter on a tap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nic {
    /// The name of its descriptor: a tap opened with IFF_TAP | IFF_NO_PI | IFF_VNET_HDR.
    pub fd: String,
    /// Its MAC address, `aa:bb:cc:dd:ee:ff`, unicast.
    pub mac: String,
}

/// What is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct ConfigError {
    /// The field, as a path such as `disks[1].serial`.
    pub field: String,
    /// What is wrong with it and what it may be.
    pub problem: String,
}

impl MachineConfig {
    /// Checks everything that can be known without the host; returns the first thing that is wrong.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let wrong = |field: &str, problem: String| Err(ConfigError { field: field.into(), problem });
        if self.vcpus == 0 || self.vcpus > MAX_VCPUS {
            return wrong("vcpus", format!("{} vCPUs; it must be 1 to {MAX_VCPUS}", self.vcpus));
        }
        if self.memory_mib < MIN_MEMORY_MIB {
            return wrong(
                "memory_mib",
                format!("{} MiB; it must be at least {MIN_MEMORY_MIB}", self.memory_mib),
            );
        }
        self.cpu.validate(self.vcpus, self.memory_mib)?;
        if self.boot.cmdline.len() > MAX_CMDLINE || self.boot.cmdline.contains('\0') {
            return wrong("boot.cmdline", format!("it must be at most {MAX_CMDLINE} bytes without a NUL"));
        }
        if self.disks.len() > MAX_DISKS {
            return wrong("disks", format!("{} disks; at most {MAX_DISKS} are possible", self.disks.len()));
        }
        if self.nics.len() > MAX_NICS {
            return wrong("nics", format!("{} adapters; at most {MAX_NICS} are possible", self.nics.len()));
        }
        for (i, disk) in self.disks.iter().enumerate() {
            if disk.serial.len() > 20 || !disk.serial.is_ascii() {
                return wrong(&format!("disks[{i}].serial"), "it must be at most 20 bytes of ASCII".into());
            }
        }
        for (i, nic) in self.nics.iter().enumerate() {
            match nic.mac_bytes() {
                Some(mac) if mac[0] & 1 == 0 && mac != [0; 6] => {}
                _ => {
                    return wrong(
                        &format!("nics[{i}].mac"),
                        format!("`{}` is no unicast MAC address such as 02:00:00:00:00:01", nic.mac),
                    );
                }
            }
        }
        Ok(())
    }
}

impl Nic {
    /// The MAC address as bytes; `None` when it is not written as six hexadecimal pairs.
    pub fn mac_bytes(&self) -> Option<[u8; 6]> {
        let mut bytes = [0; 6];
        let mut parts = self.mac.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|p| p.len() == 2)?;
            *byte = u8::from_str_radix(part, 16).ok()?;
        }
        parts.next().is_none().then_some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> MachineConfig {
        MachineConfig {
            name: "test".into(),
            uuid: Uuid::nil(),
            vcpus: 1,
            memory_mib: 64,
            cpu: Cpu::default(),
            boot: Boot { cmdline: String::new() },
            disks: vec![],
            nics: vec![Nic { fd: "nic0".into(), mac: "02:00:00:00:00:01".into() }],
        }
    }

    #[test]
    fn each_wrong_field_is_named() {
        assert_eq!(config().validate(), Ok(()));
        type Change = fn(&mut MachineConfig);
        let wrong: [(&str, Change); 7] = [
            ("vcpus", |c| c.vcpus = 0),
            ("vcpus", |c| c.vcpus = MAX_VCPUS + 1),
            ("memory_mib", |c| c.memory_mib = 1),
            ("cpu.affinity[0]", |c| c.cpu.affinity = vec![vec![]]),
            ("boot.cmdline", |c| c.boot.cmdline = "x".repeat(MAX_CMDLINE + 1)),
            ("nics[0].mac", |c| c.nics[0].mac = "03:00:00:00:00:01".into()),
            ("nics[0].mac", |c| c.nics[0].mac = "02:00:00:00:00".into()),
        ];
        for (field, change) in wrong {
            let mut c = config();
            change(&mut c);
            assert_eq!(c.validate().unwrap_err().field, field);
        }
    }
}
