//! `vm.toml`, the file that describes a VM, and `last-run.toml`, the file that says how it ran last. docs/vm-toml.md lists the fields.

use keelson_api::{Fault, Problem, VmCpu};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::datastores::Directory;
use crate::problems;

/// The schema number of `vm.toml` and `last-run.toml` that this version writes.
pub const SCHEMA: u32 = 1;
/// The hardware version that new VMs get.
pub const HARDWARE_VERSION: u32 = 1;
/// The file that describes a VM, in its directory.
pub const FILE: &str = "vm.toml";
/// The file that says how a VM ran last, in its directory.
pub const LAST_RUN: &str = "last-run.toml";
/// What the serial port printed since power-on, in its directory.
pub(super) const CONSOLE_LOG: &str = "console.log";
/// The longest document that is read, in bytes.
const MAX_DOCUMENT: u64 = 1 << 20;

/// A VM, as it is written down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmDocument {
    /// The document's schema number.
    pub schema: u32,
    /// The VM's id.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// The hardware version.
    pub hardware_version: u32,
    /// vCPUs.
    pub vcpus: u32,
    /// Memory, in MiB.
    pub memory_mib: u64,
    /// The kernel, `[datastore] path`.
    pub kernel: String,
    /// The initramfs, `[datastore] path`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initramfs: Option<String>,
    /// The kernel's command line.
    #[serde(default)]
    pub cmdline: String,
    /// The processor. One that says nothing, as VMs of before had it, is the host's.
    #[serde(default, skip_serializing_if = "VmCpu::is_default")]
    pub cpu: VmCpu,
    /// Disks, in PCI order.
    #[serde(default, rename = "disk", skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<Disk>,
    /// Network adapters, in PCI order.
    #[serde(default, rename = "nic", skip_serializing_if = "Vec::is_empty")]
    pub nics: Vec<Nic>,
}

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// The raw image, `[datastore] path`.
    pub path: String,
    /// Whether the guest may only read it.
    #[serde(default)]
    pub read_only: bool,
    /// Whether it was made with the VM, and is removed with it.
    #[serde(default)]
    pub own: bool,
}

/// A network adapter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nic {
    /// The port group.
    pub port_group: String,
    /// The MAC address.
    pub mac: String,
}

/// How a VM ran last. Who ran it (host, boot) is there for hosts that share the datastore; ownership itself is the register's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LastRun {
    /// The document's schema number.
    pub schema: u32,
    /// The host that ran it.
    pub host_id: Uuid,
    /// That host's boot.
    pub boot_id: String,
    /// When it was powered on.
    pub started: jiff::Timestamp,
    /// When it ended; missing while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<jiff::Timestamp>,
    /// How it ended, in one sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<String>,
}

#[derive(Deserialize)]
struct SchemaOnly {
    schema: u32,
}

/// Why a document cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// It is no TOML, or not of this form.
    #[error("it is not understood: {0}")]
    Form(String),
    /// It was written by a newer version.
    #[error("it has the schema {found}; this version knows {SCHEMA}")]
    Newer {
        /// Its schema number.
        found: u32,
    },
}

fn read<T: serde::de::DeserializeOwned>(text: &[u8]) -> Result<T, DocumentError> {
    let form = |e: toml::de::Error| DocumentError::Form(e.to_string().trim().replace('\n', " "));
    let text = std::str::from_utf8(text).map_err(|e| DocumentError::Form(e.to_string()))?;
    // The number first: a newer document's new fields must not look like mistakes.
    let found = toml::from_str::<SchemaOnly>(text).map_err(form)?.schema;
    if found != SCHEMA {
        return Err(DocumentError::Newer { found });
    }
    toml::from_str(text).map_err(form)
}

impl VmDocument {
    /// Reads a `vm.toml`.
    pub fn parse(text: &[u8]) -> Result<Self, DocumentError> {
        read(text)
    }

    /// Reads it from a VM's directory.
    pub fn load(directory: &Directory, shown: &str) -> Result<Self, Problem> {
        let text = directory
            .read(FILE, MAX_DOCUMENT)
            .map_err(|e| problems::file(format!("`{shown}/{FILE}` could not be read"), &e))?;
        Self::parse(&text).map_err(|e| {
            let remedy = if matches!(e, DocumentError::Newer { .. }) {
                "use a host of the version that wrote it, or a newer one"
            } else {
                "restore the file"
            };
            Problem::new(Fault::SystemError, format!("`{shown}/{FILE}` cannot be used: {e}")).remedy(remedy)
        })
    }

    /// Writes it into a VM's directory.
    pub fn store(&self, directory: &Directory, shown: &str) -> Result<(), Problem> {
        save(directory, FILE, self, shown)
    }
}

impl LastRun {
    /// Reads it from a VM's directory; `None` when the VM never ran. One that is not understood is as good as none, and logged.
    pub fn load(directory: &Directory) -> Option<Self> {
        let text = directory.read(LAST_RUN, MAX_DOCUMENT).ok()?;
        read(&text).inspect_err(|e| log::warn!("a {LAST_RUN} is ignored: {e}")).ok()
    }

    /// Writes it into a VM's directory.
    pub fn store(&self, directory: &Directory, shown: &str) -> Result<(), Problem> {
        save(directory, LAST_RUN, self, shown)
    }
}

fn save(directory: &Directory, name: &str, document: &impl Serialize, shown: &str) -> Result<(), Problem> {
    let text = toml::to_string(document).map_err(|e| {
        Problem::new(Fault::SystemError, format!("`{shown}/{name}` could not be written: {e}"))
    })?;
    directory
        .write(name, text.as_bytes())
        .map_err(|e| problems::file(format!("`{shown}/{name}` could not be written"), &e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn document(
        name: String,
        vcpus: u32,
        memory_mib: u64,
        cmdline: String,
        disks: Vec<(String, bool, bool)>,
        nics: Vec<(String, String)>,
    ) -> VmDocument {
        VmDocument {
            schema: SCHEMA,
            id: Uuid::from_u128(u128::from(memory_mib) << 64 | u128::from(vcpus)),
            name,
            hardware_version: HARDWARE_VERSION,
            vcpus,
            memory_mib,
            kernel: "[datastore1] vmlinuz".into(),
            initramfs: vcpus.is_multiple_of(2).then(|| "[datastore1] initrd".into()),
            cmdline,
            cpu: VmCpu {
                definition: vcpus.is_multiple_of(3).then(|| "amd-zen2".into()),
                masks: vec!["avx2".into(); usize::try_from(vcpus % 2).unwrap()],
                affinity: vec!["0-3".into(); usize::try_from(vcpus % 5).unwrap()],
                shares: vcpus.is_multiple_of(7).then_some(vcpus),
                ..VmCpu::default()
            },
            disks: disks.into_iter().map(|(path, read_only, own)| Disk { path, read_only, own }).collect(),
            nics: nics.into_iter().map(|(port_group, mac)| Nic { port_group, mac }).collect(),
        }
    }

    #[test]
    fn a_newer_schema_is_named() {
        let told = VmDocument::parse(b"schema = 2\nsomething_new = true\n").unwrap_err();
        assert!(matches!(told, DocumentError::Newer { found: 2 }));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            name in "\\PC{1,64}", vcpus in 1u32..255, memory in 16u64..1 << 40, cmdline in "\\PC{0,200}",
            disks in proptest::collection::vec(("\\PC{0,40}", any::<bool>(), any::<bool>()), 0..4),
            nics in proptest::collection::vec(("\\PC{0,40}", "\\PC{0,20}"), 0..4),
        ) {
            let written = document(name, vcpus, memory, cmdline, disks, nics);
            let text = toml::to_string(&written).unwrap();
            prop_assert_eq!(VmDocument::parse(text.as_bytes()).unwrap(), written);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            drop(VmDocument::parse(&bytes));
        }
    }
}
