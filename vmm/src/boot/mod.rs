//! What is in guest memory when the first instruction runs: kernel, initramfs, command line, memory map, firmware tables.

mod bzimage;
mod pvh;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::kvm::Entry;
use crate::memory::{ECAM_BASE, ECAM_SIZE, GuestRam, KVM_IDENTITY_MAP, LOW_RAM_END, layout};

// Where the boot data lies. Everything below 1 MiB is ours until the kernel has read it; kernels load at 1 MiB or above.
const GDT: u64 = 0x500;
const START_INFO: u64 = 0x6000;
const MODULE_LIST: u64 = 0x6040;
const MEMORY_MAP: u64 = 0x6080;
const ZERO_PAGE: u64 = 0x7000;
const PAGE_TABLES: u64 = 0x9000;
const COMMAND_LINE: u64 = 0x2_0000;
/// The end of conventional memory: above it lie what a BIOS would keep (EBDA) and the firmware tables.
const LOW_MEMORY_END: u64 = 0x9_fc00;
/// Where the firmware tables begin (within the range that a kernel without boot parameters searches for the RSDP).
pub const TABLES: u64 = 0xe_0000;
/// The first address at which a kernel may be loaded, and the end of the firmware tables.
pub const HIGH_MEMORY: u64 = 0x10_0000;

/// What is booted, as descriptors: they are kept, for a reset loads anew.
#[derive(Debug)]
pub struct Payload {
    /// The kernel: a bzImage or an ELF with a PVH note.
    pub kernel: File,
    /// The initramfs.
    pub initramfs: Option<File>,
    /// The command line, without a NUL.
    pub cmdline: String,
}

/// Why a payload cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The file is neither kind of kernel.
    #[error(
        "the kernel file is no kernel that can be booted: it is neither a bzImage (`HdrS` at offset 0x202) nor an ELF file. Give \
         the file that a distribution installs as /boot/vmlinuz-VERSION, or an uncompressed vmlinux with CONFIG_PVH"
    )]
    NoKernel,
    /// The ELF has no entry for us.
    #[error(
        "the kernel file is an ELF file without a PVH entry note: build it with CONFIG_PVH, or give the bzImage of the same kernel"
    )]
    NoPvhNote,
    /// An old or 32-bit bzImage.
    #[error(
        "the bzImage has no 64-bit entry (boot protocol {version:#x}): kernels since Linux 3.8 built for x86-64 have one"
    )]
    No64BitEntry {
        /// The boot protocol that it announces.
        version: u16,
    },
    /// The file is cut or contradicts itself.
    #[error("the kernel file is damaged: {problem}")]
    Damaged {
        /// What is wrong.
        problem: String,
    },
    /// The memory is too small.
    #[error(
        "{what} needs guest memory up to {needed:#x}, but the machine's memory below the PCI hole ends at {end:#x}: give it more"
    )]
    TooLittleMemory {
        /// What does not fit.
        what: &'static str,
        /// The address that it would need.
        needed: u64,
        /// What there is.
        end: u64,
    },
    /// The command line is longer than this kernel takes.
    #[error("the command line of {length} bytes is longer than the {limit} that this kernel takes")]
    LongCommandLine {
        /// Its length.
        length: usize,
        /// The limit.
        limit: usize,
    },
    /// A file could not be read.
    #[error("the {what} could not be read")]
    Read {
        /// Which file.
        what: &'static str,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// Guest memory could not be written where it must be.
    #[error("the guest's memory could not be written")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

/// A range of the memory map that the guest is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct MapEntry {
    start: u64,
    length: u64,
    ram: bool,
}

/// The memory map: RAM but for what firmware would keep, and the ranges that no RAM may be assumed in.
fn memory_map(bytes: u64) -> Vec<MapEntry> {
    let entry = |start, end: u64, ram| MapEntry { start, length: end.saturating_sub(start), ram };
    let mut map = vec![entry(0, LOW_MEMORY_END, true), entry(LOW_MEMORY_END, HIGH_MEMORY, false)];
    for (start, length) in layout(bytes) {
        map.push(entry(start.max(HIGH_MEMORY), start + length, true));
    }
    map.push(entry(ECAM_BASE, ECAM_BASE + ECAM_SIZE, false));
    map.push(entry(KVM_IDENTITY_MAP, KVM_IDENTITY_MAP + 0x4000, false));
    map.sort_by_key(|e| e.start);
    map
}

/// The total size of RAM, in bytes.
fn ram_bytes(ram: &GuestRam) -> u64 {
    ram.iter().map(GuestMemoryRegion::len).sum()
}

/// Puts everything into guest memory and says how the first vCPU enters it. `rsdp` is where the firmware tables' root is.
pub fn load(ram: &GuestRam, payload: &mut Payload, rsdp: u64) -> Result<Entry, BootError> {
    let end = ram_bytes(ram).min(LOW_RAM_END);
    let kind = kind(&mut payload.kernel)?;
    let mut text = payload.cmdline.clone().into_bytes();
    text.push(0);
    ram.write_slice(&text, GuestAddress(COMMAND_LINE))?;
    match kind {
        Kind::BzImage => bzimage::load(ram, payload, rsdp, end),
        Kind::Elf => pvh::load(ram, payload, rsdp, end),
    }
}

enum Kind {
    BzImage,
    Elf,
}

fn kind(kernel: &mut File) -> Result<Kind, BootError> {
    let read = |e| BootError::Read { what: "kernel file", source: e };
    let mut head = Vec::with_capacity(0x206);
    kernel.seek(SeekFrom::Start(0)).map_err(read)?;
    Read::by_ref(kernel).take(0x206).read_to_end(&mut head).map_err(read)?;
    if head.starts_with(b"\x7fELF") {
        return Ok(Kind::Elf);
    }
    if head.get(0x202..0x206) == Some(b"HdrS".as_slice()) {
        return Ok(Kind::BzImage);
    }
    Err(BootError::NoKernel)
}

/// Loads the initramfs as high as it may be: below `limit`, above `floor`. Returns its address and length.
fn load_initramfs(
    ram: &GuestRam,
    payload: &mut Payload,
    floor: u64,
    limit: u64,
) -> Result<Option<(u64, u64)>, BootError> {
    let Some(file) = payload.initramfs.as_mut() else { return Ok(None) };
    let read = |e| BootError::Read { what: "initramfs file", source: e };
    let length = file.metadata().map_err(read)?.len();
    if length == 0 {
        return Ok(None);
    }
    let address = limit.checked_sub(length).map(|a| a & !0xfff).filter(|a| *a >= floor);
    let address = address.ok_or(BootError::TooLittleMemory {
        what: "kernel and initramfs together",
        needed: floor.saturating_add(length).saturating_add(0xfff),
        end: limit,
    })?;
    file.seek(SeekFrom::Start(0)).map_err(read)?;
    let count = usize::try_from(length).unwrap_or(usize::MAX);
    ram.read_exact_volatile_from(GuestAddress(address), file, count)?;
    Ok(Some((address, length)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Memory;
    use proptest::prelude::*;
    use std::io::Write;

    fn payload(kernel: &[u8]) -> Payload {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(kernel).unwrap();
        Payload { kernel: file, initramfs: None, cmdline: "console=ttyS0".into() }
    }

    #[test]
    fn a_file_that_is_no_kernel_is_named_so() {
        let memory = Memory::new(16, None).unwrap();
        for bytes in [&b""[..], b"#!/bin/sh\n", &[0u8; 4096]] {
            assert!(matches!(load(&memory.ram, &mut payload(bytes), TABLES), Err(BootError::NoKernel)));
        }
    }

    #[test]
    fn the_memory_map_never_overlaps_and_has_all_ram_above_one_mib() {
        for mib in [16u64, 3072, 3073, 8192] {
            let map = memory_map(mib << 20);
            assert!(map.windows(2).all(|w| w[0].start + w[0].length <= w[1].start), "{map:?}");
            let ram: u64 = map.iter().filter(|e| e.ram).map(|e| e.length).sum();
            assert_eq!(ram, (mib << 20) - (HIGH_MEMORY - LOW_MEMORY_END));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        /// Whatever a kernel file says of itself, loading it ends with an entry or an error.
        #[test]
        fn random_kernels_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 64..2048), elf in any::<bool>(), notes in 0u16..4) {
            if elf {
                bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
                bytes[0x20..0x28].copy_from_slice(&64u64.to_le_bytes());
                bytes[0x36..0x3a].copy_from_slice(&[56, 0, notes as u8, 0]);
            } else if bytes.len() > 0x300 {
                bytes[0x202..0x206].copy_from_slice(b"HdrS");
                bytes[0x211] |= 1;
            }
            let memory = Memory::new(16, None).unwrap();
            let _ = load(&memory.ram, &mut payload(&bytes), TABLES);
        }
    }
}
