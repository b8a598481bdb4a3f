//! What is in the initramfs and where: programs, drivers with their tables, firmware, licences, manifest; microcode in front.

use std::collections::BTreeMap;

use crate::cpio::Writer;
use crate::drivers::Selection;
use crate::firmware::Firmware;
use crate::microcode;
use crate::tree::{Node, Tree};

/// The programs of this product and where they lie in the image.
pub const PROGRAMS: &[(&str, &str)] = &[
    ("init", "init"),
    ("netd", "bin/netd"),
    ("hostd", "bin/hostd"),
    ("dcui", "bin/dcui"),
    ("keelson-vmm", "bin/keelson-vmm"),
];
/// Where the file-system check lies.
pub const FSCK: &str = "sbin/e2fsck";
/// Where the manifest lies.
pub const MANIFEST: &str = "usr/share/keelson/manifest.json";
/// Where the licence texts lie.
pub const LICENCES: &str = "usr/share/keelson/licences/";

/// Directories that are there from the start, for mounts and files of the running host, with their permission bits.
const DIRECTORIES: &[(&str, u32)] = &[
    ("dev", 0o755),
    ("etc", 0o755),
    ("mnt", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("state", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("var", 0o755),
];

/// What goes in.
pub struct Contents<'a> {
    /// Our programs by name.
    pub programs: &'a BTreeMap<&'static str, Vec<u8>>,
    /// e2fsck.
    pub fsck: &'a [u8],
    /// The drivers.
    pub drivers: &'a Selection,
    /// Their firmware.
    pub firmware: &'a Firmware,
    /// Licence texts by package.
    pub licences: &'a BTreeMap<String, Vec<u8>>,
    /// The manifest as text.
    pub manifest: &'a str,
    /// Further files by path, for tests.
    pub added: &'a BTreeMap<String, Vec<u8>>,
}

/// Puts everything in its place.
pub fn tree(contents: &Contents<'_>) -> Tree {
    let mut tree = Tree::default();
    for (path, mode) in DIRECTORIES {
        tree.put(path, Node::Directory(*mode));
    }
    // The kernel opens it for PID 1 before anything is mounted.
    tree.put("dev/console", Node::Character(0o600, 5, 1));
    // The language's runtime opens it for a program that comes without descriptors, before PID 1 could mount anything.
    tree.put("dev/null", Node::Character(0o666, 1, 3));
    for (name, path) in PROGRAMS {
        if let Some(bytes) = contents.programs.get(name) {
            tree.program(path, bytes.as_slice());
        }
    }
    tree.program(FSCK, contents.fsck);
    let modules = format!("lib/modules/{}/", contents.drivers.release);
    for module in contents.drivers.modules.values() {
        tree.file(&format!("{modules}{}", module.path), module.bytes.as_slice());
    }
    for (name, text) in contents.drivers.tables() {
        tree.file(&format!("{modules}{name}"), text);
    }
    for (path, bytes) in &contents.firmware.files {
        tree.file(&format!("lib/firmware/{path}"), bytes.as_slice());
    }
    for (package, text) in contents.licences {
        tree.file(&format!("{LICENCES}{package}"), text.as_slice());
    }
    tree.file(MANIFEST, contents.manifest);
    for (path, bytes) in contents.added {
        tree.program(path, bytes.as_slice());
    }
    tree
}

/// The archive that the kernel unpacks. It is not compressed: most of it is, file by file, and stays so in memory.
pub fn pack(tree: &Tree, intel: &[u8], amd: &[u8]) -> Vec<u8> {
    let mut early = Writer::default();
    early.early_file(microcode::AMD, amd);
    early.early_file(microcode::INTEL, intel);
    let mut out = early.finish();
    let mut main = Writer::default();
    main.tree(tree);
    out.extend_from_slice(&main.finish());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_and_mount_point_is_there() {
        let programs = PROGRAMS.iter().map(|(name, _)| (*name, name.as_bytes().to_vec())).collect();
        let drivers = Selection { release: "6".into(), modules: BTreeMap::new(), builtin: String::new() };
        let (firmware, none, licences) = (Firmware::default(), BTreeMap::new(), BTreeMap::new());
        let tree = tree(&Contents {
            programs: &programs,
            fsck: b"fsck",
            drivers: &drivers,
            firmware: &firmware,
            licences: &licences,
            manifest: "{}",
            added: &none,
        });
        let paths: Vec<&str> = tree.iter().map(|(path, _)| path).collect();
        for path in [
            "init",
            "bin/keelson-vmm",
            "sbin/e2fsck",
            "lib/modules/6/modules.dep",
            "dev/console",
            "dev/null",
            "proc",
            "state",
        ] {
            assert!(paths.contains(&path), "{path}");
        }
        let packed = pack(&tree, b"intel", b"amd");
        assert_eq!(packed, pack(&tree, b"intel", b"amd"));
        assert!(packed.starts_with(b"070701"));
    }
}
