//! What a new or changed VM may be, as far as that can be said without looking at files: a pure check that names the field.

use std::collections::BTreeSet;

use keelson_api::{DiskSpec, Fault, NicSpec, Problem, VmSpec};
use keelson_netcfg_control::MacAddr;
use keelson_vmm_control::{MAX_CMDLINE, MAX_DISKS, MAX_NICS, MIN_MEMORY_MIB};

use crate::problems::argument;

/// The longest name of a VM, in characters (all of them ASCII).
const MAX_NAME: usize = 64;
/// The largest new disk, in MiB: 62 TiB.
const MAX_DISK_MIB: u64 = 62 << 20;

/// What this host can give a VM at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// vCPUs.
    pub vcpus: u32,
    /// Memory, in MiB.
    pub memory_mib: u64,
}

/// Checks a new VM.
pub(super) fn check(spec: &VmSpec, limits: Limits) -> Result<(), Problem> {
    check_name(&spec.name)?;
    check_vcpus(spec.vcpus, limits)?;
    check_memory(spec.memory_mib, limits)?;
    check_cmdline(&spec.cmdline)?;
    check_disks(&spec.disks)?;
    check_nics(&spec.nics)
}

fn check_name(name: &str) -> Result<(), Problem> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | ' ');
    let why = match name {
        "" => "the name is empty",
        _ if name.chars().count() > MAX_NAME => "the name is too long",
        _ if name.starts_with('.') => "the name begins with a dot",
        _ if name.trim() != name => "the name begins or ends with a space",
        _ if !name.chars().all(allowed) => "the name has a character that it cannot have",
        _ => return Ok(()),
    };
    Err(argument(
        "name",
        why,
        "give 1 to 64 letters (a to z), digits, `.`, `_`, `-` or inner spaces, not beginning with `.`",
    ))
}

/// Checks a number of vCPUs.
pub(super) fn check_vcpus(vcpus: u32, limits: Limits) -> Result<(), Problem> {
    if (1..=limits.vcpus).contains(&vcpus) {
        return Ok(());
    }
    let detail = if vcpus == 0 {
        "a VM has at least one vCPU".into()
    } else {
        format!("{vcpus} vCPUs are more than this host gives one VM")
    };
    Err(argument("vcpus", detail, &format!("give 1 to {}", limits.vcpus)))
}

/// Checks an amount of memory.
pub(super) fn check_memory(memory_mib: u64, limits: Limits) -> Result<(), Problem> {
    let remedy = format!("give {MIN_MEMORY_MIB} to {} MiB", limits.memory_mib);
    if memory_mib < MIN_MEMORY_MIB {
        return Err(argument("memory_mib", format!("{memory_mib} MiB are too little for a VM"), &remedy));
    }
    if memory_mib > limits.memory_mib {
        let detail = format!("{memory_mib} MiB are more than this host can give ({} MiB)", limits.memory_mib);
        return Err(Problem::new(Fault::InsufficientResourcesFault, detail)
            .field("memory_mib")
            .remedy(remedy));
    }
    Ok(())
}

/// Checks a kernel command line.
pub(super) fn check_cmdline(cmdline: &str) -> Result<(), Problem> {
    if cmdline.len() > MAX_CMDLINE || cmdline.chars().any(char::is_control) {
        return Err(argument(
            "cmdline",
            "the command line is too long or has a control character",
            &format!("give at most {MAX_CMDLINE} bytes of text on one line"),
        ));
    }
    Ok(())
}

fn check_disks(disks: &[DiskSpec]) -> Result<(), Problem> {
    if disks.len() > MAX_DISKS {
        return Err(argument(
            "disks",
            format!("{} disks are too many", disks.len()),
            &format!("give at most {MAX_DISKS}"),
        ));
    }
    let mut paths = BTreeSet::new();
    for (i, disk) in disks.iter().enumerate() {
        match (&disk.path, disk.size_mib) {
            (Some(path), None) => {
                // `[a]b` and `[a] b` are one file.
                let canonical = crate::datastores::DatastorePath::parse(path)
                    .map_or_else(|_| path.clone(), |p| p.to_string());
                if !paths.insert(canonical) {
                    return Err(argument(
                        format!("disks[{i}].path"),
                        format!("`{path}` is there twice"),
                        "give each disk once",
                    ));
                }
            }
            (None, Some(size)) => {
                if !(1..=MAX_DISK_MIB).contains(&size) {
                    return Err(argument(
                        format!("disks[{i}].size_mib"),
                        format!("a disk of {size} MiB is not possible"),
                        &format!("give 1 to {MAX_DISK_MIB}"),
                    ));
                }
            }
            (Some(_), Some(_)) | (None, None) => {
                return Err(argument(
                    format!("disks[{i}]"),
                    "a disk is either an existing image or a new one",
                    "give one of `path` and `size_mib`",
                ));
            }
        }
    }
    Ok(())
}

/// Checks network adapters by themselves.
pub(super) fn check_nics(nics: &[NicSpec]) -> Result<(), Problem> {
    if nics.len() > MAX_NICS {
        return Err(argument(
            "nics",
            format!("{} network adapters are too many", nics.len()),
            &format!("give at most {MAX_NICS}"),
        ));
    }
    let mut macs = BTreeSet::new();
    for (i, nic) in nics.iter().enumerate() {
        let Some(mac) = &nic.mac else { continue };
        let field = || format!("nics[{i}].mac");
        let parsed: MacAddr = mac.parse().map_err(|_| {
            argument(
                field(),
                format!("`{mac}` is no MAC address"),
                "write it as 02:00:00:00:00:01, or leave it out: one is made",
            )
        })?;
        if parsed.0[0] & 1 == 1 || parsed.0 == [0; 6] {
            return Err(argument(
                field(),
                format!("`{mac}` is no address of one adapter (unicast)"),
                "its first byte must be even, and it must not be all zeros",
            ));
        }
        if !macs.insert(parsed) {
            return Err(argument(
                field(),
                format!("`{mac}` is there twice"),
                "give each adapter its own, or leave it out: one is made",
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits { vcpus: 4, memory_mib: 4096 };

    fn spec() -> VmSpec {
        VmSpec {
            name: "web 1".into(),
            datastore: None,
            vcpus: 1,
            memory_mib: 64,
            cpu: keelson_api::VmCpu::default(),
            kernel: "[datastore1] vmlinuz".into(),
            initramfs: None,
            cmdline: "console=ttyS0".into(),
            disks: vec![],
            nics: vec![],
        }
    }

    #[test]
    fn each_wrong_field_is_named() {
        assert_eq!(check(&spec(), LIMITS), Ok(()));
        type Change = fn(&mut VmSpec);
        let nic = |mac: &str| NicSpec { port_group: "VM Network".into(), mac: Some(mac.into()) };
        let _ = nic;
        let wrong: [(&str, u16, Change); 16] = [
            ("name", 400, |s| s.name = String::new()),
            ("name", 400, |s| s.name = ".hidden".into()),
            ("name", 400, |s| s.name = "../up".into()),
            ("name", 400, |s| s.name = "x".repeat(65)),
            ("name", 400, |s| s.name = "end ".into()),
            ("vcpus", 400, |s| s.vcpus = 0),
            ("vcpus", 400, |s| s.vcpus = 5),
            ("memory_mib", 400, |s| s.memory_mib = 1),
            ("memory_mib", 422, |s| s.memory_mib = 4097),
            ("cmdline", 400, |s| s.cmdline = "x".repeat(MAX_CMDLINE + 1)),
            ("cmdline", 400, |s| s.cmdline = "a\nb".into()),
            ("disks[0]", 400, |s| s.disks = vec![DiskSpec::default()]),
            ("disks[0].size_mib", 400, |s| {
                s.disks = vec![DiskSpec { size_mib: Some(0), ..DiskSpec::default() }]
            }),
            ("disks", 400, |s| {
                s.disks = vec![DiskSpec { size_mib: Some(1), ..DiskSpec::default() }; MAX_DISKS + 1]
            }),
            ("nics[0].mac", 400, |s| {
                s.nics =
                    vec![NicSpec { port_group: "VM Network".into(), mac: Some("03:00:00:00:00:01".into()) }]
            }),
            ("nics[1].mac", 400, |s| {
                s.nics =
                    vec![
                        NicSpec { port_group: "VM Network".into(), mac: Some("02:00:00:00:00:01".into()) };
                        2
                    ]
            }),
        ];
        for (field, status, change) in wrong {
            let mut changed = spec();
            change(&mut changed);
            let told = check(&changed, LIMITS).unwrap_err();
            assert_eq!((told.field.as_deref(), told.status), (Some(field), status), "{told}");
            assert!(told.remedy.is_some(), "{told}");
        }
    }

    proptest! {
        #[test]
        fn an_accepted_name_is_a_plain_file_name(name in "\\PC{0,70}") {
            if check_name(&name).is_ok() {
                prop_assert!(crate::datastores::check_name(&name).is_ok());
            }
        }
    }
}
