//! Booting an ELF kernel by its PVH entry (Xen's x86/HVM direct boot ABI, which Linux and others share).

use std::fs::File;
use std::os::unix::fs::FileExt;

use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::KernelLoader;
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use vm_memory::{Address, Bytes, GuestAddress};

use super::{
    BootError, COMMAND_LINE, HIGH_MEMORY, MEMORY_MAP, MODULE_LIST, Payload, START_INFO, load_initramfs,
    memory_map, ram_bytes,
};
use crate::kvm::Entry;
use crate::memory::GuestRam;

const START_MAGIC: u32 = 0x336e_c578;
const TYPE_RAM: u32 = 1;
const TYPE_RESERVED: u32 = 2;

pub(super) fn load(ram: &GuestRam, payload: &mut Payload, rsdp: u64, end: u64) -> Result<Entry, BootError> {
    let damaged = |problem: String| BootError::Damaged { problem };
    let segments = segments(&payload.kernel)?;
    let low = segments.iter().map(|s| s.address).min().unwrap_or(HIGH_MEMORY);
    let needed = segments
        .iter()
        .map(|s| s.address.saturating_add(s.in_memory))
        .max()
        .unwrap_or(HIGH_MEMORY)
        .max(HIGH_MEMORY);
    if low < HIGH_MEMORY {
        return Err(damaged(format!("a segment wants to be loaded at {low:#x}, below {HIGH_MEMORY:#x}")));
    }
    if needed > end {
        return Err(BootError::TooLittleMemory { what: "the kernel", needed, end });
    }
    let loaded = Elf::load(ram, None, &mut payload.kernel, None).map_err(|e| damaged(e.to_string()))?;
    let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap else {
        return Err(BootError::NoPvhNote);
    };
    let eip =
        u32::try_from(entry.raw_value()).map_err(|_| damaged("its PVH entry lies above 4 GiB".into()))?;
    for segment in &segments {
        clear_rest(ram, segment)?;
    }
    let initramfs = load_initramfs(ram, payload, needed, end)?;

    let map = memory_map(ram_bytes(ram));
    let map: Vec<_> = map
        .iter()
        .map(|e| hvm_memmap_table_entry {
            addr: e.start,
            size: e.length,
            type_: if e.ram { TYPE_RAM } else { TYPE_RESERVED },
            reserved: 0,
        })
        .collect();
    let mut info = hvm_start_info {
        magic: START_MAGIC,
        version: 1,
        cmdline_paddr: COMMAND_LINE,
        rsdp_paddr: rsdp,
        memmap_paddr: MEMORY_MAP,
        memmap_entries: u32::try_from(map.len()).unwrap_or_default(),
        ..Default::default()
    };
    if initramfs.is_some() {
        info.nr_modules = 1;
        info.modlist_paddr = MODULE_LIST;
    }
    let mut params = BootParams::new(&info, GuestAddress(START_INFO));
    params.set_sections(&map, GuestAddress(MEMORY_MAP));
    if let Some((paddr, size)) = initramfs {
        params.set_modules(
            &[hvm_modlist_entry { paddr, size, ..Default::default() }],
            GuestAddress(MODULE_LIST),
        );
    }
    PvhBootConfigurator::write_bootparams(&params, ram).map_err(|e| damaged(e.to_string()))?;
    Ok(Entry::Protected { eip, start_info: u32::try_from(START_INFO).unwrap_or_default() })
}

/// A segment that is loaded: where to, how many bytes the file has of it, and how many it has in memory.
struct Segment {
    address: u64,
    in_file: u64,
    in_memory: u64,
}

/// The segments of an ELF64 file; sizes and addresses are the file's own word.
fn segments(kernel: &File) -> Result<Vec<Segment>, BootError> {
    const PT_LOAD: u32 = 1;
    let read = |at, bytes: &mut [u8]| {
        kernel.read_exact_at(bytes, at).map_err(|e| BootError::Read { what: "kernel file", source: e })
    };
    let mut head = [0u8; 64];
    read(0, &mut head)?;
    if head.get(4) != Some(&2) {
        return Err(BootError::Damaged { problem: "it is no 64-bit ELF file".into() });
    }
    let (table, count) = (u64_at(&head, 0x20), u16_at(&head, 0x38));
    let mut segments = Vec::new();
    for n in 0..u64::from(count) {
        let mut entry = [0u8; 56];
        let at = table.checked_add(n * 56).filter(|at| i64::try_from(*at).is_ok());
        read(
            at.ok_or_else(|| BootError::Damaged {
                problem: "its program headers lie beyond its end".into(),
            })?,
            &mut entry,
        )?;
        if u64_at(&entry, 0) & 0xffff_ffff == u64::from(PT_LOAD) {
            let segment = Segment {
                address: u64_at(&entry, 0x18),
                in_file: u64_at(&entry, 0x20),
                in_memory: u64_at(&entry, 0x28),
            };
            if segment.in_memory > 0 {
                segments.push(segment);
            }
        }
    }
    Ok(segments)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).and_then(|b| b.try_into().ok()).map_or(0, u16::from_le_bytes)
}

/// Zeroes what a segment has in memory beyond the file's bytes, where memory is not zero already: it is when the machine is new,
/// and need not be after a reset. Reading an untouched page of a memfd does not allocate it.
fn clear_rest(ram: &GuestRam, segment: &Segment) -> Result<(), BootError> {
    let mut at = segment.address.saturating_add(segment.in_file);
    let end = segment.address.saturating_add(segment.in_memory);
    let mut chunk = [0u8; 4096];
    while at < end {
        let length = (4096 - (at & 0xfff)).min(end - at);
        let part = chunk.get_mut(..usize::try_from(length).unwrap_or(0)).unwrap_or_default();
        ram.read_slice(part, GuestAddress(at))?;
        if part.iter().any(|b| *b != 0) {
            part.fill(0);
            ram.write_slice(part, GuestAddress(at))?;
        }
        at += length;
    }
    Ok(())
}
