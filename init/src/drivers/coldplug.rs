//! What the hardware that is there asks for: the modalias files below /sys/devices.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Deep enough for a USB device behind hubs behind a bridge.
const DEEPEST: u32 = 32;

/// All that devices ask for, once each.
pub(crate) fn wanted(root: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    walk(root, DEEPEST, &mut found);
    found
}

fn walk(dir: &Path, deeper: u32, found: &mut BTreeSet<String>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        // Links lead to other places of the same tree.
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() && deeper > 0 {
            walk(&entry.path(), deeper - 1, found);
        } else if kind.is_file()
            && entry.file_name() == "modalias"
            && let Ok(text) = fs::read_to_string(entry.path())
        {
            found.extend(text.lines().filter(|line| !line.is_empty()).map(str::to_owned));
        }
    }
}

/// Whether a PCI function has this class, as its modalias says (`…bc01sc06i01`).
fn pci_class(modalias: &str) -> Option<(u8, u8)> {
    let class = modalias.strip_prefix("pci:").and_then(|rest| rest.split_once("bc"))?.1;
    let byte = |at: usize| class.get(at..at + 2).and_then(|hex| u8::from_str_radix(hex, 16).ok());
    Some((byte(0)?, byte(4)?))
}

/// A disk controller or what disks hang on.
pub(crate) fn is_storage(modalias: &str) -> bool {
    match pci_class(modalias) {
        Some((class, _)) => class == 0x01,
        None => {
            modalias == "virtio:d00000002v00001AF4"
                || modalias == "virtio:d00000008v00001AF4"
                || modalias.starts_with("scsi:")
        }
    }
}

/// A network controller.
pub(crate) fn is_network(modalias: &str) -> bool {
    match pci_class(modalias) {
        Some((class, _)) => class == 0x02,
        None => modalias == "virtio:d00000001v00001AF4",
    }
}

/// A controller whose disks show up some time after its driver is loaded: NVMe, SAS, RAID, Fibre Channel, USB. What AHCI and virtio
/// have is there when loading returns.
pub(crate) fn is_slow_storage(modalias: &str) -> bool {
    // A virtual controller calls itself SCSI, and has nothing to spin up.
    !modalias.starts_with("pci:v00001AF4")
        && matches!(pci_class(modalias), Some((0x01, 0x00 | 0x04 | 0x07 | 0x08) | (0x0c, 0x03 | 0x04)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn classes_are_read_from_names() {
        let ahci = "pci:v00008086d00002922sv00001AF4sd00001100bc01sc06i01";
        let nvme = "pci:v00001B36d00000010sv00001AF4sd00001100bc01sc08i02";
        let nic = "pci:v00008086d000010D3sv00008086sd00000000bc02sc00i00";
        let xhci = "pci:v00001B36d0000000Dsv00001AF4sd00001100bc0Csc03i30";
        assert!(is_storage(ahci) && !is_slow_storage(ahci) && !is_network(ahci));
        assert!(is_storage(nvme) && is_slow_storage(nvme));
        assert!(is_network(nic) && !is_storage(nic));
        assert!(is_slow_storage(xhci) && !is_storage(xhci));
        let virtio = "pci:v00001AF4d00001042sv00001AF4sd00001100bc01sc00i00";
        assert!(is_storage(virtio) && !is_slow_storage(virtio));
    }

    #[test]
    fn a_tree_is_walked_without_its_links() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("pci0000:00/0000:00:01.0/virtio0");
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("modalias"), "virtio:d00000001v00001AF4\n").unwrap();
        std::os::unix::fs::symlink(dir.path(), deep.join("subsystem")).unwrap();
        assert_eq!(wanted(dir.path()).into_iter().collect::<Vec<_>>(), ["virtio:d00000001v00001AF4"]);
    }

    proptest! {
        #[test]
        fn no_name_makes_it_panic(text in "\\PC{0,80}") {
            is_storage(&text);
            is_slow_storage(&format!("pci:{text}bc{text}"));
        }
    }
}
