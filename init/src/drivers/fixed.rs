//! Drivers that no device asks for: the list in `modules.toml`.

use serde::Deserialize;

/// The list, by when it is needed.
#[derive(Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub(crate) struct Fixed {
    pub(crate) file_systems: Vec<String>,
    file_systems_efi: Vec<String>,
    pub(crate) storage: Vec<String>,
    pub(crate) words: Vec<String>,
    pub(crate) network: Vec<String>,
    pub(crate) machines: Vec<String>,
    machines_amd: Vec<String>,
    machines_intel: Vec<String>,
    pub(crate) later: Vec<String>,
}

/// The list for a processor, as /proc/cpuinfo describes it, and a firmware.
pub(crate) fn read(cpuinfo: &str, efi: bool) -> Fixed {
    // A test reads it, so the default is never taken.
    let mut fixed: Fixed = toml::from_str(include_str!("../../modules.toml")).unwrap_or_default();
    let vendor = cpuinfo.lines().find_map(|line| line.strip_prefix("vendor_id")).unwrap_or_default();
    if vendor.contains("AuthenticAMD") || vendor.contains("HygonGenuine") {
        fixed.machines.append(&mut fixed.machines_amd);
    } else if vendor.contains("GenuineIntel") {
        fixed.machines.append(&mut fixed.machines_intel);
    }
    if efi {
        fixed.file_systems.append(&mut fixed.file_systems_efi);
    }
    fixed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_read_and_fits_the_processor() {
        let amd = read("processor\t: 0\nvendor_id\t: AuthenticAMD\n", false);
        assert_eq!(amd.machines.last().map(String::as_str), Some("kvm_amd"));
        let intel = read("vendor_id\t: GenuineIntel\n", true);
        assert_eq!(intel.machines.last().map(String::as_str), Some("kvm_intel"));
        assert!(
            intel.file_systems.contains(&"efivarfs".to_owned())
                && !amd.file_systems.contains(&"efivarfs".to_owned())
        );
        assert!(!read("", false).machines.is_empty() && amd.file_systems.contains(&"ext4".to_owned()));
    }
}
