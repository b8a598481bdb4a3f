//! Booting a bzImage by the Linux x86 boot protocol's 64-bit entry (Documentation/arch/x86/boot.rst).

use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::KernelLoader;
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::loader::bzimage::BzImage;
use vm_memory::{Bytes, GuestAddress};

use super::{
    BootError, COMMAND_LINE, GDT, HIGH_MEMORY, PAGE_TABLES, Payload, ZERO_PAGE, load_initramfs, memory_map,
    ram_bytes,
};
use crate::kvm::Entry;
use crate::memory::GuestRam;

/// xloadflags: the kernel has the 64-bit entry at 0x200.
const XLF_KERNEL_64: u16 = 1;
/// type_of_loader: no number was assigned to this loader.
const LOADER_UNDEFINED: u8 = 0xff;
/// loadflags: print nothing early is off; the heap end is not set: neither concerns the 64-bit entry.
const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;

pub(super) fn load(ram: &GuestRam, payload: &mut Payload, rsdp: u64, end: u64) -> Result<Entry, BootError> {
    let damaged = |problem: String| BootError::Damaged { problem };
    // The loader checks the header's magic, reads within the file and writes within guest memory alone; what it takes from the
    // file unchecked (sizes and addresses in the header) is checked here before it is used.
    let loaded = BzImage::load(ram, Some(GuestAddress(HIGH_MEMORY)), &mut payload.kernel, None);
    let loaded = loaded.map_err(|e| damaged(e.to_string()))?;
    let mut header = loaded.setup_header.ok_or_else(|| damaged("it has no set-up header".into()))?;
    let (version, flags) = (header.version, header.xloadflags);
    if version < 0x20c || flags & XLF_KERNEL_64 == 0 {
        return Err(BootError::No64BitEntry { version });
    }
    let limit = usize::try_from(header.cmdline_size).unwrap_or(usize::MAX);
    if payload.cmdline.len() > limit {
        return Err(BootError::LongCommandLine { length: payload.cmdline.len(), limit });
    }
    // The kernel unpacks itself in place, to an address aligned as it wants, and needs `init_size` bytes there.
    let align = u64::from(header.kernel_alignment).max(1);
    let place = HIGH_MEMORY.div_ceil(align).saturating_mul(align).max(header.pref_address);
    let needed = place.saturating_add(u64::from(header.init_size)).max(loaded.kernel_end);
    if needed > end {
        return Err(BootError::TooLittleMemory { what: "the kernel", needed, end });
    }
    let limit = end.min(u64::from(header.initrd_addr_max).saturating_add(1));
    let initramfs = load_initramfs(ram, payload, needed, limit)?;

    header.type_of_loader = LOADER_UNDEFINED;
    header.cmd_line_ptr = u32::try_from(COMMAND_LINE).unwrap_or_default();
    let (image, size) = initramfs.unwrap_or_default();
    // Both lie below 3 GiB, where `end` is.
    header.ramdisk_image = u32::try_from(image).unwrap_or_default();
    header.ramdisk_size = u32::try_from(size).unwrap_or_default();
    let mut params = boot_params { hdr: header, acpi_rsdp_addr: rsdp, ..Default::default() };
    let map = memory_map(ram_bytes(ram));
    params.e820_entries = u8::try_from(map.len()).unwrap_or_default();
    for (entry, range) in params.e820_table.iter_mut().zip(&map) {
        *entry = boot_e820_entry {
            addr: range.start,
            size: range.length,
            r#type: if range.ram { E820_RAM } else { E820_RESERVED },
        };
    }
    let params = BootParams::new(&params, GuestAddress(ZERO_PAGE));
    LinuxBootConfigurator::write_bootparams(&params, ram).map_err(|e| damaged(e.to_string()))?;
    write_descriptors(ram)?;
    write_page_tables(ram)?;
    Ok(Entry::Long { rip: HIGH_MEMORY + 0x200, boot_params: ZERO_PAGE, page_table: PAGE_TABLES, gdt: GDT })
}

/// Null, null, flat 64-bit code at 0x10, flat data at 0x18, as the boot protocol wants them.
fn write_descriptors(ram: &GuestRam) -> Result<(), BootError> {
    for (at, descriptor) in (0u64..).zip([0u64, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff]) {
        ram.write_obj(descriptor, GuestAddress(GDT + at * 8))?;
    }
    Ok(())
}

/// The first 4 GiB one to one, in pages of 2 MiB.
fn write_page_tables(ram: &GuestRam) -> Result<(), BootError> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    let pointers = PAGE_TABLES + 0x1000;
    ram.write_obj(pointers | PRESENT_WRITABLE, GuestAddress(PAGE_TABLES))?;
    for gib in 0..4u64 {
        let directory = pointers + 0x1000 * (gib + 1);
        ram.write_obj(directory | PRESENT_WRITABLE, GuestAddress(pointers + gib * 8))?;
        let entries =
            (0..512u64).flat_map(|n| ((gib << 30) | (n << 21) | LARGE | PRESENT_WRITABLE).to_le_bytes());
        ram.write_slice(&entries.collect::<Vec<u8>>(), GuestAddress(directory))?;
    }
    Ok(())
}
