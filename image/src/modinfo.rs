//! What a kernel module says about itself in its `.modinfo` section, read without kmod so that every build machine gives the
//! same answer.

use std::io::Read;

use object::{Object, ObjectSection};
use serde::{Deserialize, Serialize};

/// A module is refused beyond this size: none comes near it, and a damaged xz stream could grow without end.
const LARGEST: u64 = 64 << 20;

/// Why a module could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ModinfoError {
    /// Not an xz stream.
    #[error("not unpacked")]
    Unpack(#[from] std::io::Error),
    /// Not an ELF object with a `.modinfo` section.
    #[error("no module")]
    Elf(#[from] object::Error),
}

/// The fields that matter here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Modinfo {
    /// Modules whose symbols it uses, with underscores.
    pub depends: Vec<String>,
    /// Device patterns and other names it answers to.
    pub aliases: Vec<String>,
    /// Lines such as `pre: a b post: c`.
    pub softdeps: Vec<String>,
    /// Firmware files it may ask for.
    pub firmware: Vec<String>,
    /// What its author says the licence is.
    pub licence: String,
}

/// A module name as the kernel spells it: of a file name, without the ending and with underscores.
pub fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

/// Unpacks a `.ko.xz`.
pub fn unpack(xz: &[u8]) -> Result<Vec<u8>, ModinfoError> {
    let mut elf = Vec::new();
    lzma_rust2::XzReader::new(xz, true).take(LARGEST).read_to_end(&mut elf)?;
    Ok(elf)
}

/// Reads the fields of a module as Debian ships it (`.ko.xz`) or unpacked.
pub fn read(module: &[u8]) -> Result<Modinfo, ModinfoError> {
    if module.starts_with(b"\x7fELF") {
        return read_elf(module);
    }
    read_elf(&unpack(module)?)
}

fn read_elf(elf: &[u8]) -> Result<Modinfo, ModinfoError> {
    let file = object::File::parse(elf)?;
    let Some(section) = file.section_by_name(".modinfo") else { return Ok(Modinfo::default()) };
    Ok(parse(section.data()?))
}

/// The section is `key=value` strings, each ended by a zero byte.
fn parse(section: &[u8]) -> Modinfo {
    let mut info = Modinfo::default();
    for field in section.split(|byte| *byte == 0) {
        let field = String::from_utf8_lossy(field);
        let Some((key, value)) = field.split_once('=') else { continue };
        match key {
            "depends" => {
                info.depends.extend(
                    value.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")),
                );
            }
            "alias" => info.aliases.push(value.to_owned()),
            "softdep" => info.softdeps.push(value.to_owned()),
            "firmware" => info.firmware.push(value.to_owned()),
            "license" => value.clone_into(&mut info.licence),
            _ => {}
        }
    }
    info
}

/// The names in softdep lines: what should be loaded before, and after.
pub fn softdep_names(softdeps: &[String]) -> Vec<String> {
    softdeps
        .iter()
        .flat_map(|line| line.split_whitespace())
        .filter(|word| !matches!(*word, "pre:" | "post:"))
        .map(|name| name.replace('-', "_"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_told_apart() {
        let info = parse(b"license=GPL\0depends=a-b,c\0alias=pci:v*\0alias=x\0firmware=f/w.bin\0softdep=pre: q-r post: s\0=\0");
        assert_eq!(info.depends, ["a_b", "c"]);
        assert_eq!(info.aliases.len(), 2);
        assert_eq!(info.firmware, ["f/w.bin"]);
        assert_eq!(softdep_names(&info.softdeps), ["q_r", "s"]);
    }

    #[test]
    fn names_are_the_kernels() {
        assert_eq!(module_name("kernel/drivers/usb/host/xhci-pci.ko.xz"), "xhci_pci");
    }

    proptest::proptest! {
        #[test]
        fn random_bytes_are_no_module(mut bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..2048)) {
            let _ = parse(&bytes);
            let _ = read(&bytes);
            let with_magic = [b"\x7fELF\x02\x01\x01".as_slice(), &bytes].concat();
            let _ = read(&with_magic);
            bytes.splice(0..0, *b"\xfd7zXZ\0");
            let _ = read(&bytes);
        }
    }
}
