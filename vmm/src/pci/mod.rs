//! The PCI bus of a machine: which function sits in which slot of bus 0, and where its BARs answer.
//!
//! One bus, no bridges but the host's own, one function per slot. Configuration space is reached by the ECAM area (PCI Express base
//! specification 5.0, 7.2.2) and by the ports 0xcf8 and 0xcfc (PCI local bus 3.0, 3.2.2.3.2): see [`access`]. The monitor is its guest's
//! firmware, so it assigns the BARs; a guest may size and move them as on any PC, and the bus keeps the MMIO map in step.

pub mod access;
pub mod config_space;
pub mod function;
pub mod host_bridge;
pub mod msix;

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use keelson_vmm_control::StateSet;

use crate::devices::bus::{Bus, BusDevice};
use crate::state::StateError;
use crate::state::sections::Sections;
use config_space::BAR_COUNT;
use function::PciFunction;
use host_bridge::HostBridge;

/// The slots of one bus.
pub const SLOTS: u8 = 32;
/// Bytes of configuration space that the ECAM area has for one function.
pub const ECAM_FUNCTION_SIZE: u16 = 4096;
/// The part of the 32-bit window that each slot's BARs are put into at power-on: a slot's addresses do not depend on what sits in the others.
pub const SLOT_WINDOW: u64 = 1 << 20;

/// A function as the bus and the machine share it.
pub type SharedFunction = Arc<Mutex<dyn PciFunction>>;

/// Why a function could not be put on the bus.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PciError {
    /// There is no such slot, or it is the host bridge's.
    #[error("PCI slot {slot} does not exist or is the host bridge's; devices have the slots 1 to 31")]
    NoSuchSlot {
        /// The slot that was asked for.
        slot: u8,
    },
    /// Another function has the slot.
    #[error("PCI slot {slot} is taken")]
    SlotTaken {
        /// The slot that was asked for.
        slot: u8,
    },
    /// The BARs do not fit the slot's part of the window.
    #[error(
        "the BARs of the function in PCI slot {slot} do not fit its {SLOT_WINDOW:#x} bytes of the 32-bit window"
    )]
    BarsTooLarge {
        /// The slot.
        slot: u8,
    },
}

/// Where a configuration access goes, on bus 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConfigAddress {
    /// The slot (PCI's "device number"), 0 to 31.
    pub slot: u8,
    /// The function within the slot, 0 to 7.
    pub function: u8,
    /// The byte within the function's configuration space, 0 to 4095.
    pub register: u16,
}

struct Slot {
    function: SharedFunction,
    /// Where each BAR answers on the MMIO bus now.
    mapped: [Option<u64>; BAR_COUNT],
    /// What each BAR holds after power-on.
    home: [Option<u64>; BAR_COUNT],
}

/// PCI bus 0.
pub struct PciBus {
    slots: BTreeMap<u8, Slot>,
    /// Weak, since the MMIO bus holds this one (its ECAM area): a machine that ends must not be kept alive by itself.
    mmio: Weak<Bus>,
    /// Where BARs may answer. An address outside (on RAM, on an interrupt controller) is kept in the register but not decoded.
    windows: Vec<Range<u64>>,
}

impl std::fmt::Debug for PciBus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map().entries(self.slots.iter().map(|(slot, s)| (slot, s.mapped))).finish()
    }
}

/// One BAR on the MMIO bus.
struct BarRange {
    function: SharedFunction,
    bar: usize,
}

impl BusDevice for BarRange {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        lock(&self.function).bar_read(self.bar, offset, data);
    }
    fn write(&mut self, offset: u64, data: &[u8]) {
        lock(&self.function).bar_write(self.bar, offset, data);
    }
}

/// A poisoned lock is taken all the same: the release build aborts on a panic, so only tests can see one.
fn lock(function: &SharedFunction) -> std::sync::MutexGuard<'_, dyn PciFunction + 'static> {
    function.lock().unwrap_or_else(PoisonError::into_inner)
}

impl PciBus {
    /// A bus with a host bridge in slot 0. BARs are put at the start of `window32` (which must have [`SLOT_WINDOW`] for each slot) and may
    /// be moved by the guest anywhere in `window32` and, when there is one, in `window64`.
    pub fn new(mmio: &Arc<Bus>, window32: Range<u64>, window64: Option<Range<u64>>) -> Self {
        Self::with_bridge(HostBridge::new(), mmio, window32, window64)
    }

    /// As [`PciBus::new`], with a host bridge that may have been restored.
    pub fn with_bridge(
        bridge: HostBridge,
        mmio: &Arc<Bus>,
        window32: Range<u64>,
        window64: Option<Range<u64>>,
    ) -> Self {
        let bridge: SharedFunction = Arc::new(Mutex::new(bridge));
        let slot = Slot { function: bridge, mapped: [None; BAR_COUNT], home: [None; BAR_COUNT] };
        Self {
            slots: BTreeMap::from([(0, slot)]),
            mmio: Arc::downgrade(mmio),
            windows: std::iter::once(window32).chain(window64).collect(),
        }
    }

    /// Puts a function in a slot; its BARs get their power-on addresses.
    pub fn add(&mut self, slot: u8, function: SharedFunction) -> Result<(), PciError> {
        let home = self.home(slot, &function)?;
        place(&mut *lock(&function), &home);
        self.seat(slot, function, home);
        Ok(())
    }

    /// Puts a restored function in a slot; its BARs stay where the guest has put them.
    pub fn add_restored(&mut self, slot: u8, function: SharedFunction) -> Result<(), PciError> {
        let home = self.home(slot, &function)?;
        self.seat(slot, function, home);
        Ok(())
    }

    fn seat(&mut self, slot: u8, function: SharedFunction, home: [Option<u64>; BAR_COUNT]) {
        self.slots.insert(slot, Slot { function, mapped: [None; BAR_COUNT], home });
        self.map();
    }

    /// Where the BARs of a function are put at power-on.
    fn home(&self, slot: u8, function: &SharedFunction) -> Result<[Option<u64>; BAR_COUNT], PciError> {
        if slot == 0 || slot >= SLOTS {
            return Err(PciError::NoSuchSlot { slot });
        }
        if self.slots.contains_key(&slot) {
            return Err(PciError::SlotTaken { slot });
        }
        let start = self.windows.first().map_or(0, |w| w.start) + u64::from(slot) * SLOT_WINDOW;
        let mut home = [None; BAR_COUNT];
        let mut next = start;
        for (index, size) in lock(function).config().bar_sizes() {
            let address = next.next_multiple_of(size);
            next = address + size;
            if next > start + SLOT_WINDOW {
                return Err(PciError::BarsTooLarge { slot });
            }
            if let Some(home) = home.get_mut(index) {
                *home = Some(address);
            }
        }
        Ok(home)
    }

    /// The function in a slot.
    pub fn function(&self, slot: u8) -> Option<&SharedFunction> {
        self.slots.get(&slot).map(|s| &s.function)
    }

    /// The guest reads configuration space. What is not there reads as ones.
    pub fn config_read(&mut self, at: ConfigAddress, data: &mut [u8]) {
        match self.slots.get(&at.slot) {
            Some(slot)
                if at.function == 0
                    && usize::from(at.register) + data.len() <= usize::from(ECAM_FUNCTION_SIZE) =>
            {
                lock(&slot.function).config_read(at.register, data);
            }
            _ => data.fill(0xff),
        }
    }

    /// The guest writes configuration space.
    pub fn config_write(&mut self, at: ConfigAddress, data: &[u8]) {
        let Some(slot) = self.slots.get(&at.slot) else { return };
        if at.function != 0 || usize::from(at.register) + data.len() > usize::from(ECAM_FUNCTION_SIZE) {
            return;
        }
        lock(&slot.function).config_write(at.register, data);
        if config_space::affects_decoding(at.register, data.len()) {
            self.map();
        }
    }

    /// Quiesces every function: when it returns, no worker touches guest memory, a disk or a tap.
    pub fn pause(&self) {
        self.slots.values().for_each(|s| lock(&s.function).pause());
    }

    /// Adds the state of every function; a section's instance is the slot. The bus is paused.
    pub fn save(&self, sections: &mut Sections, set: StateSet) -> Result<(), StateError> {
        self.slots.iter().try_for_each(|(slot, s)| sections.save(&*lock(&s.function), (*slot).into(), set))
    }

    /// Makes durable what guests have had answered; the slot whose disk cannot. The bus is paused.
    pub fn flush(&self) -> Result<(), (u8, io::Error)> {
        self.slots.iter().try_for_each(|(slot, s)| lock(&s.function).flush().map_err(|e| (*slot, e)))
    }

    /// Lets the functions work again and look at their queues once.
    pub fn resume(&self) {
        self.slots.values().for_each(|s| lock(&s.function).resume());
    }

    /// The reset of the whole machine: every function and its BARs are as at power-on.
    pub fn reset(&mut self) {
        for slot in self.slots.values() {
            let mut function = lock(&slot.function);
            function.reset();
            place(&mut *function, &slot.home);
        }
        self.map();
    }

    /// Brings the MMIO bus in step with what every function decodes. All slots are looked at, since a BAR that had no place because
    /// another one lay there gets it when the other moves away.
    fn map(&mut self) {
        // Gone only while the machine is taken apart.
        let Some(mmio) = self.mmio.upgrade() else { return };
        let wanted = |slot: &Slot, bar: usize, size: u64| {
            let address = lock(&slot.function).config().decoded(bar)?;
            let end = address.checked_add(size)?;
            self.windows.iter().any(|w| w.start <= address && end <= w.end).then_some(address)
        };
        let mut moves = Vec::new();
        for (number, slot) in &self.slots {
            let sizes = lock(&slot.function).config().bar_sizes();
            for (bar, size) in sizes {
                let wanted = wanted(slot, bar, size);
                if slot.mapped.get(bar).copied().flatten() != wanted {
                    moves.push((*number, bar, size, wanted));
                }
            }
        }
        for (number, bar, _, _) in &moves {
            if let Some(slot) = self.slots.get_mut(number)
                && let Some(old) = slot.mapped.get_mut(*bar).and_then(Option::take)
            {
                lock(&slot.function).bar_moved(*bar, None);
                mmio.remove(old);
            }
        }
        for (number, bar, size, wanted) in moves {
            let (Some(slot), Some(address)) = (self.slots.get_mut(&number), wanted) else { continue };
            let range = BarRange { function: Arc::clone(&slot.function), bar };
            if let Err(overlap) = mmio.insert(address, size, Arc::new(Mutex::new(range))) {
                // A guest can cause this at will, so it is no warning.
                log::debug!("BAR {bar} of PCI slot {number} is not decoded: {overlap}");
                continue;
            }
            if let Some(mapped) = slot.mapped.get_mut(bar) {
                *mapped = Some(address);
            }
            lock(&slot.function).bar_moved(bar, Some(address));
        }
    }
}

/// Writes power-on addresses into BARs.
fn place(function: &mut dyn PciFunction, home: &[Option<u64>; BAR_COUNT]) {
    for (index, address) in home.iter().enumerate() {
        if let Some(address) = address {
            function.config_mut().set_bar(index, *address);
        }
    }
}

#[cfg(test)]
mod tests;
