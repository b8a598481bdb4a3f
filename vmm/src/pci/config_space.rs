//! A type-0 configuration space (PCI local bus 3.0, 6.1): which bytes it holds and which bits the guest may change.

use crate::devices::saved::BadState;

/// Bytes that are implemented; the rest of the 4096 of PCI Express reads as zero (no extended capability).
pub const SIZE: usize = 256;
/// BAR registers of a type-0 header.
pub const BAR_COUNT: usize = 6;

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const CACHE_LINE_SIZE: usize = 0x0c;
const LATENCY_TIMER: usize = 0x0d;
const BAR0: usize = 0x10;
const SUBSYSTEM_VENDOR: usize = 0x2c;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
/// Where the first capability goes: right behind the header.
const FIRST_CAPABILITY: usize = 0x40;

const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_BUS_MASTER: u16 = 1 << 2;
const COMMAND_INTX_DISABLE: u16 = 1 << 10;
const STATUS_CAPABILITIES: u16 = 1 << 4;
/// A memory BAR, anywhere in 64 bits, not prefetchable (6.2.5.1).
const BAR_64BIT: u32 = 0b100;

/// Who a function says it is.
#[derive(Debug, Clone, Copy)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Revision ID.
    pub revision: u8,
    /// Base class, sub-class and programming interface, in that order from bit 23 down.
    pub class: u32,
    /// Subsystem vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem: u16,
}

/// How wide a BAR's address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BarWidth {
    /// One register; the address is below 4 GiB.
    Bits32,
    /// Two registers.
    Bits64,
}

#[derive(Debug, Clone, Copy)]
struct Bar {
    size: u64,
    width: BarWidth,
}

/// The configuration space of one function.
#[derive(Debug, Clone)]
pub struct ConfigSpace {
    bytes: [u8; SIZE],
    writable: [u8; SIZE],
    /// The bytes as at power-on, BARs zero.
    fresh: [u8; SIZE],
    bars: [Option<Bar>; BAR_COUNT],
    /// The first free byte behind the capabilities, and the pointer byte that the next one is linked from.
    free: usize,
    link: usize,
}

/// Whether a write there can change where BARs answer: the command register or a BAR.
pub fn affects_decoding(register: u16, length: usize) -> bool {
    let (start, end) = (usize::from(register), usize::from(register) + length);
    (start < COMMAND + 2 && end > COMMAND) || (start < BAR0 + 4 * BAR_COUNT && end > BAR0)
}

impl ConfigSpace {
    /// A header without BARs and capabilities. Interrupt pin 0: there is no INTx, interrupts are message-signalled.
    pub fn new(id: Identity) -> Self {
        let mut space = Self {
            bytes: [0; SIZE],
            writable: [0; SIZE],
            fresh: [0; SIZE],
            bars: [None; BAR_COUNT],
            free: FIRST_CAPABILITY,
            link: CAPABILITIES,
        };
        let class = id.class.to_le_bytes();
        space.define(0, &id.vendor.to_le_bytes(), &[]);
        space.define(2, &id.device.to_le_bytes(), &[]);
        space.define(8, &[id.revision, class[0], class[1], class[2]], &[]);
        space.define(SUBSYSTEM_VENDOR, &id.subsystem_vendor.to_le_bytes(), &[]);
        space.define(SUBSYSTEM_VENDOR + 2, &id.subsystem.to_le_bytes(), &[]);
        space.define(
            COMMAND,
            &[],
            &(COMMAND_MEMORY | COMMAND_BUS_MASTER | COMMAND_INTX_DISABLE).to_le_bytes(),
        );
        space.define(CACHE_LINE_SIZE, &[], &[0xff]);
        space.define(LATENCY_TIMER, &[], &[0xff]);
        space.define(INTERRUPT_LINE, &[], &[0xff]);
        space
    }

    /// Sets bytes and their writable bits as at power-on.
    fn define(&mut self, at: usize, value: &[u8], writable: &[u8]) {
        debug_assert!(
            at + value.len().max(writable.len()) <= SIZE,
            "configuration space is {SIZE} bytes long"
        );
        for (i, byte) in value.iter().enumerate() {
            if let (Some(b), Some(f)) = (self.bytes.get_mut(at + i), self.fresh.get_mut(at + i)) {
                (*b, *f) = (*byte, *byte);
            }
        }
        for (i, mask) in writable.iter().enumerate() {
            if let Some(w) = self.writable.get_mut(at + i) {
                *w = *mask;
            }
        }
    }

    /// Gives the function a memory BAR of `size` bytes, a power of two of at least 16. A 64-bit one takes the next register too.
    pub fn add_memory_bar(&mut self, index: usize, size: u64, width: BarWidth) {
        debug_assert!(
            size.is_power_of_two()
                && size >= 16
                && index + usize::from(width == BarWidth::Bits64) < BAR_COUNT
        );
        let Some(bar) = self.bars.get_mut(index) else { return };
        *bar = Some(Bar { size, width });
        let mask = !(size - 1);
        let at = BAR0 + 4 * index;
        match width {
            BarWidth::Bits32 => self.define(at, &0u32.to_le_bytes(), &(mask as u32).to_le_bytes()),
            BarWidth::Bits64 => self.define(at, &u64::from(BAR_64BIT).to_le_bytes(), &mask.to_le_bytes()),
        }
    }

    /// Appends a capability (6.7): `body` is what follows ID and link, `writable` the guest's bits in it. Returns where it is.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> usize {
        let at = self.free;
        self.define(at, &[id, 0], &[]);
        self.define(at + 2, body, writable);
        self.define(self.link, &[at as u8], &[]);
        self.define(STATUS, &STATUS_CAPABILITIES.to_le_bytes(), &[]);
        self.link = at + 1;
        self.free = (at + 2 + body.len()).next_multiple_of(4);
        at
    }

    /// Reads; what lies beyond the implemented bytes is zero.
    pub fn read(&self, register: u16, data: &mut [u8]) {
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = self.bytes.get(usize::from(register) + i).copied().unwrap_or(0);
        }
    }

    /// Writes the bits that the guest may change.
    pub fn write(&mut self, register: u16, data: &[u8]) {
        for (i, value) in data.iter().enumerate() {
            let at = usize::from(register) + i;
            if let (Some(byte), Some(mask)) = (self.bytes.get_mut(at), self.writable.get(at)) {
                *byte = (*byte & !mask) | (value & mask);
            }
        }
    }

    /// A little-endian 16-bit register.
    pub fn u16_at(&self, at: usize) -> u16 {
        let byte = |i: usize| u16::from(self.bytes.get(at + i).copied().unwrap_or(0));
        byte(0) | byte(1) << 8
    }

    /// A little-endian 32-bit register.
    pub fn u32_at(&self, at: usize) -> u32 {
        u32::from(self.u16_at(at)) | u32::from(self.u16_at(at + 2)) << 16
    }

    /// The memory BARs: index and size.
    pub fn bar_sizes(&self) -> Vec<(usize, u64)> {
        self.bars.iter().enumerate().filter_map(|(i, bar)| bar.map(|b| (i, b.size))).collect()
    }

    /// The address that a BAR holds; `None` when there is no such BAR.
    pub fn bar_address(&self, index: usize) -> Option<u64> {
        let bar = self.bars.get(index).copied().flatten()?;
        let at = BAR0 + 4 * index;
        let high = match bar.width {
            BarWidth::Bits32 => 0,
            BarWidth::Bits64 => u64::from(self.u32_at(at + 4)),
        };
        Some((high << 32 | u64::from(self.u32_at(at))) & !(bar.size - 1))
    }

    /// The address that a BAR answers at: what it holds, while the guest has memory decoding on.
    pub fn decoded(&self, index: usize) -> Option<u64> {
        self.bar_address(index).filter(|_| self.u16_at(COMMAND) & COMMAND_MEMORY != 0)
    }

    /// Puts a BAR at an address, as firmware does.
    pub fn set_bar(&mut self, index: usize, address: u64) {
        let Some(bar) = self.bars.get(index).copied().flatten() else { return };
        let at = (BAR0 + 4 * index) as u16;
        match bar.width {
            BarWidth::Bits32 => self.write(at, &(address as u32).to_le_bytes()),
            BarWidth::Bits64 => self.write(at, &address.to_le_bytes()),
        }
    }

    /// Everything as at power-on, BARs zero.
    pub fn reset(&mut self) {
        self.bytes = self.fresh;
    }

    /// The bytes, to be saved.
    pub fn bytes(&self) -> &[u8; SIZE] {
        &self.bytes
    }

    /// Takes saved bytes, which may differ from a fresh function only where the guest may write.
    pub fn restore(&mut self, saved: &[u8]) -> Result<(), BadState> {
        if saved.len() != SIZE {
            return Err(BadState::new("config_space", format!("{} bytes instead of {SIZE}", saved.len())));
        }
        for (at, ((saved, fresh), writable)) in saved.iter().zip(&self.fresh).zip(&self.writable).enumerate()
        {
            if (saved ^ fresh) & !writable != 0 {
                return Err(BadState::new(
                    "config_space",
                    format!("byte {at:#x} is {saved:#x}, read-only bits of this device differ"),
                ));
            }
        }
        self.bytes.copy_from_slice(saved);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn space() -> ConfigSpace {
        let id = Identity {
            vendor: 0x1af4,
            device: 0x1042,
            revision: 1,
            class: 0x01_80_00,
            subsystem_vendor: 1,
            subsystem: 2,
        };
        let mut space = ConfigSpace::new(id);
        space.add_memory_bar(0, 0x8000, BarWidth::Bits64);
        space.add_memory_bar(2, 0x1000, BarWidth::Bits32);
        space.add_capability(0x11, &[2, 0, 0, 0], &[0, 0xc0]);
        space.add_capability(0x09, &[0; 14], &[]);
        space
    }

    #[test]
    fn a_bar_of_ones_reads_back_its_size() {
        let mut space = space();
        space.write(0x10, &u64::MAX.to_le_bytes());
        space.write(0x18, &u32::MAX.to_le_bytes());
        space.write(0x1c, &u32::MAX.to_le_bytes());
        assert_eq!(space.u32_at(0x10), 0xffff_8004);
        assert_eq!(space.u32_at(0x14), 0xffff_ffff);
        assert_eq!(space.u32_at(0x18), 0xffff_f000);
        assert_eq!(space.u32_at(0x1c), 0, "a BAR that is not there has no bit");
        assert_eq!(space.bar_address(2), Some(0xffff_f000));
    }

    #[test]
    fn a_bar_is_decoded_while_memory_is_on() {
        let mut space = space();
        space.set_bar(0, 0x1_c000_0000);
        assert_eq!((space.bar_address(0), space.decoded(0)), (Some(0x1_c000_0000), None));
        space.write(4, &[2]);
        assert_eq!(space.decoded(0), Some(0x1_c000_0000));
        assert_eq!(space.decoded(1), None);
    }

    #[test]
    fn the_capability_list_can_be_walked() {
        let space = space();
        assert_eq!(space.u16_at(0x06), 0x10);
        let first = usize::from(space.bytes[0x34]);
        let second = usize::from(space.bytes[first + 1]);
        assert_eq!((space.bytes[first], space.bytes[second], space.bytes[second + 1]), (0x11, 0x09, 0));
        assert_eq!((first, second), (0x40, 0x48));
    }

    proptest! {
        #[test]
        fn read_only_bits_survive_any_write(writes in prop::collection::vec((0u16..4096, prop::collection::vec(any::<u8>(), 1..9)), 1..64)) {
            let mut space = space();
            for (register, data) in writes {
                space.write(register, &data);
                let mut read = [0; 8];
                space.read(register, &mut read);
            }
            let bytes = *space.bytes();
            let mut other = super::tests::space();
            prop_assert_eq!(other.restore(&bytes), Ok(()));
            prop_assert_eq!(other.bytes(), &bytes);
        }

        #[test]
        fn a_saved_space_with_a_read_only_bit_flipped_is_refused(at in 0usize..SIZE, bit in 0u8..8) {
            let mut saved = *space().bytes();
            saved[at] ^= 1 << bit;
            let writable = space().writable[at] >> bit & 1 == 1;
            prop_assert_eq!(space().restore(&saved).is_ok(), writable);
        }
    }
}
