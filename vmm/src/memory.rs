//! Guest memory: where RAM lies in the guest's physical address space, and the memfd that holds it.

use std::fs::File;
use std::os::unix::fs::MetadataExt;

use nix::sys::memfd::{MFdFlags, memfd_create};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionCollection, GuestRegionMmap};

/// Guest RAM. It is written by the guest at any time: it is reached through volatile accesses or system calls, never as a slice.
pub type GuestRam = GuestMemoryMmap<()>;

/// Where the hole for PCI begins: RAM lies below it, and from [`HIGH_RAM`] on.
pub const LOW_RAM_END: u64 = 0xc000_0000;
/// Where RAM goes on above the hole.
pub const HIGH_RAM: u64 = 1 << 32;
/// The 32-bit window for BARs: its first address.
pub const MMIO32_BASE: u64 = LOW_RAM_END;
/// The first address after the 32-bit window for BARs.
pub const MMIO32_END: u64 = ECAM_BASE;
/// PCI configuration space (MCFG) of bus 0.
pub const ECAM_BASE: u64 = 0xe000_0000;
/// The length of the ECAM area: 32 devices, 8 functions, 4 KiB each.
pub const ECAM_SIZE: u64 = 1 << 20;
/// The first I/O APIC.
pub const IOAPIC_BASE: u32 = 0xfec0_0000;
/// The local APICs.
pub const LAPIC_BASE: u32 = 0xfee0_0000;
/// Three pages that KVM on Intel needs for real mode; reserved in every memory map that we give out.
pub const KVM_TSS: u64 = 0xfffb_d000;
/// One page that KVM on Intel needs for its identity map.
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;

/// Why there is no guest memory.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The size does not fit an address space.
    #[error("{mib} MiB of guest memory is more than this host can address")]
    TooMuch {
        /// What was asked for, in MiB.
        mib: u64,
    },
    /// The memfd could not be made or sized.
    #[error("a memfd of {mib} MiB for the guest's memory could not be made")]
    Memfd {
        /// What was asked for, in MiB.
        mib: u64,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The memfd that was handed in is of another size.
    #[error("the memory descriptor holds {found} bytes, but the configuration says {wanted}")]
    WrongSize {
        /// What the configuration says, in bytes.
        wanted: u64,
        /// The descriptor's size, in bytes.
        found: u64,
    },
    /// The memory could not be mapped.
    #[error("the guest's memory ({mib} MiB) could not be mapped")]
    Map {
        /// What was asked for, in MiB.
        mib: u64,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// The RAM ranges of a machine with `bytes` of memory: guest-physical start and length, in the order in which the memfd holds them.
pub fn layout(bytes: u64) -> Vec<(u64, u64)> {
    let low = bytes.min(LOW_RAM_END);
    let mut ranges = vec![(0, low)];
    if bytes > low {
        ranges.push((HIGH_RAM, bytes - low));
    }
    ranges
}

/// The first address above all RAM and above the 32-bit space.
pub fn ram_top(bytes: u64) -> u64 {
    HIGH_RAM + bytes.saturating_sub(LOW_RAM_END)
}

/// Guest memory as a machine keeps it.
#[derive(Debug)]
pub struct Memory {
    /// The mapping.
    pub ram: GuestRam,
    /// The memfd behind it.
    pub file: File,
    /// Its size, in bytes.
    pub bytes: u64,
}

impl Memory {
    /// Maps `mib` MiB from `file`, or from a memfd of its own. No page is touched, and none is reserved.
    pub fn new(mib: u64, file: Option<File>) -> Result<Self, MemoryError> {
        // 2^46 bytes are half of what a process can map (4-level paging), far more than a host has.
        let bytes = mib.checked_mul(1 << 20).filter(|b| *b <= 1 << 46).ok_or(MemoryError::TooMuch { mib })?;
        let file = match file {
            Some(file) => file,
            None => {
                let made = memfd_create(c"guest-memory", MFdFlags::MFD_CLOEXEC);
                let file = File::from(made.map_err(|e| MemoryError::Memfd { mib, source: e.into() })?);
                file.set_len(bytes).map_err(|source| MemoryError::Memfd { mib, source })?;
                file
            }
        };
        let found = file.metadata().map_err(|source| MemoryError::Memfd { mib, source })?.len();
        if found != bytes {
            return Err(MemoryError::WrongSize { wanted: bytes, found });
        }
        let map_error = |e: Box<dyn std::error::Error + Send + Sync>| MemoryError::Map { mib, source: e };
        let mut offset = 0;
        let mut regions = Vec::new();
        for (start, length) in layout(bytes) {
            let clone = file.try_clone().map_err(|e| map_error(e.into()))?;
            let size = usize::try_from(length).map_err(|_| MemoryError::TooMuch { mib })?;
            let region = MmapRegionBuilder::new(size)
                .with_file_offset(FileOffset::new(clone, offset))
                .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
                .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
                .build()
                .map_err(|e| map_error(e.into()))?;
            let region =
                GuestRegionMmap::new(region, GuestAddress(start)).ok_or(MemoryError::TooMuch { mib })?;
            regions.push(region);
            offset += length;
        }
        let ram = GuestRegionCollection::from_regions(regions).map_err(|e| map_error(e.into()))?;
        Ok(Self { ram, file, bytes })
    }

    /// How much of it the host has allocated (what was written), in bytes.
    pub fn touched(&self) -> u64 {
        self.file.metadata().map_or(0, |m| m.blocks() * 512)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    #[test]
    fn ram_leaves_the_hole_free() {
        assert_eq!(layout(1 << 30), [(0, 1 << 30)]);
        assert_eq!(layout(3 << 30), [(0, 3 << 30)]);
        assert_eq!(layout(5 << 30), [(0, 3 << 30), (4 << 30, 2 << 30)]);
        assert_eq!((ram_top(1 << 30), ram_top(5 << 30)), (4 << 30, 6 << 30));
    }

    #[test]
    fn untouched_memory_costs_nothing_and_both_parts_are_one_file() {
        let memory = Memory::new(3073, None).unwrap();
        assert_eq!(memory.touched(), 0);
        memory.ram.write_obj(7u8, GuestAddress(HIGH_RAM)).unwrap();
        assert_eq!(memory.touched(), 4096);
        let mut byte = [0u8];
        std::os::unix::fs::FileExt::read_exact_at(&memory.file, &mut byte, LOW_RAM_END).unwrap();
        assert_eq!(byte, [7]);
        assert!(memory.ram.write_obj(7u8, GuestAddress(LOW_RAM_END)).is_err());
    }

    #[test]
    fn a_descriptor_of_another_size_is_refused() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        assert!(matches!(Memory::new(2, Some(file)), Err(MemoryError::WrongSize { found: 0x10_0000, .. })));
        assert!(matches!(Memory::new(u64::MAX, None), Err(MemoryError::TooMuch { .. })));
    }
}
