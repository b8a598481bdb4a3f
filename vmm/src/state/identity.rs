//! For which machine a state is. A state is never fitted into a machine that differs: it is refused, and what differs is named.

use keelson_vmm_control::MachineConfig;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::StateError;
use super::sections::Sections;
use crate::devices::saved::versioned;
use crate::memory;

/// The virtual hardware that this monitor has: PCI slots, addresses, ACPI tables and device set.
pub const HARDWARE_VERSION: u32 = 1;
/// The kind of the section, of which there is one: instance 0.
pub const KIND: &str = "machine";

/// What must be the same at both ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityV1 {
    hardware_version: u32,
    uuid: Uuid,
    vcpus: u32,
    memory_mib: u64,
    /// RAM: guest-physical start and length, in the order of the memory file.
    ram: Vec<(u64, u64)>,
}

versioned!(IdentityV1 = 1, for tests IdentityV0 = 0 {
    hardware_version: u32,
    uuid: Uuid,
    vcpus: u32,
    memory_mib: u64,
    ram: Vec<(u64, u64)>,
} without { });

impl IdentityV1 {
    /// Of a machine with this description.
    pub fn of(config: &MachineConfig) -> Self {
        Self {
            hardware_version: HARDWARE_VERSION,
            uuid: config.uuid,
            vcpus: config.vcpus,
            memory_mib: config.memory_mib,
            ram: memory::layout(config.memory_mib << 20),
        }
    }

    /// The identity in a state, which stays there.
    pub fn peek(sections: &Sections) -> Result<Self, StateError> {
        sections.clone().take(KIND, 0)
    }

    /// The machine's UUID.
    pub fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// Refuses a machine with another description.
    pub fn check(&self, config: &MachineConfig) -> Result<(), StateError> {
        let here = Self::of(config);
        let same = |what, saved: String, here: String| {
            if saved == here { Ok(()) } else { Err(StateError::Differs { what, saved, here }) }
        };
        same("hardware version", self.hardware_version.to_string(), here.hardware_version.to_string())?;
        same("number of vCPUs", self.vcpus.to_string(), here.vcpus.to_string())?;
        same("memory", format!("{} MiB", self.memory_mib), format!("{} MiB", here.memory_mib))?;
        same("RAM layout", format!("{:x?}", self.ram), format!("{:x?}", here.ram))?;
        same("UUID", self.uuid.to_string(), here.uuid.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_vmm_control::Boot;

    #[test]
    fn the_layout_is_the_golden_one() {
        let saved = IdentityV1 {
            hardware_version: 1,
            uuid: Uuid::from_u128(0x1234),
            vcpus: 2,
            memory_mib: 5120,
            ram: memory::layout(5 << 30),
        };
        crate::state::golden::check(KIND, &saved);
    }

    #[test]
    fn each_difference_is_named() {
        let config = MachineConfig {
            name: "one".into(),
            uuid: Uuid::from_u128(1),
            vcpus: 2,
            memory_mib: 64,
            cpu: Default::default(),
            boot: Boot { cmdline: String::new() },
            disks: vec![],
            nics: vec![],
        };
        let saved = IdentityV1::of(&config);
        saved.check(&MachineConfig { name: "another name".into(), ..config.clone() }).unwrap();
        for (what, other) in [
            ("number of vCPUs", MachineConfig { vcpus: 3, ..config.clone() }),
            ("memory", MachineConfig { memory_mib: 65, ..config.clone() }),
            ("UUID", MachineConfig { uuid: Uuid::from_u128(2), ..config.clone() }),
        ] {
            assert!(saved.check(&other).unwrap_err().to_string().contains(what), "{what}");
        }
        let newer = IdentityV1 { hardware_version: 2, ..saved };
        assert!(newer.check(&config).unwrap_err().to_string().contains("hardware version"));
    }
}
