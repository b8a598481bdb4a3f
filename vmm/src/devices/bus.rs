//! Who answers at an address: a map from address ranges, of ports or of guest-physical memory, to devices.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// A device that answers at a range of ports or guest-physical addresses.
///
/// `offset` counts from the range's base. Accesses are 1, 2, 4 or 8 bytes long and lie within the range. A device never panics,
/// whatever the guest does: what it does not know reads as ones and is ignored when written.
pub trait BusDevice: Send {
    /// The guest reads `data.len()` bytes at `offset`.
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// The guest writes `data` at `offset`.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// A device as the bus holds it.
pub type SharedDevice = Arc<Mutex<dyn BusDevice>>;

/// A range cannot be taken: another device has a part of it, or it is empty, or it wraps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the address range {base:#x}+{length:#x} is taken, empty or wraps")]
pub struct Overlap {
    /// The first address that was wanted.
    pub base: u64,
    /// How many addresses were wanted.
    pub length: u64,
}

struct Range {
    length: u64,
    device: SharedDevice,
}

/// Address ranges and the devices behind them. Ranges may come and go while the machine runs (a guest moves a BAR).
#[derive(Default)]
pub struct Bus {
    ranges: RwLock<BTreeMap<u64, Range>>,
}

impl std::fmt::Debug for Bus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ranges = self.ranges.read().unwrap_or_else(PoisonError::into_inner);
        f.debug_list()
            .entries(ranges.iter().map(|(base, range)| format!("{base:#x}+{:#x}", range.length)))
            .finish()
    }
}

impl Bus {
    /// An empty bus.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a device at `base`.
    pub fn insert(&self, base: u64, length: u64, device: SharedDevice) -> Result<(), Overlap> {
        let refused = Overlap { base, length };
        let last = length.checked_sub(1).and_then(|more| base.checked_add(more)).ok_or(refused)?;
        let mut ranges = self.ranges.write().unwrap_or_else(PoisonError::into_inner);
        if let Some((below, range)) = ranges.range(..=last).next_back()
            && below + (range.length - 1) >= base
        {
            return Err(refused);
        }
        ranges.insert(base, Range { length, device });
        Ok(())
    }

    /// Takes away the device that was put at exactly `base`; false when there is none.
    pub fn remove(&self, base: u64) -> bool {
        self.ranges.write().unwrap_or_else(PoisonError::into_inner).remove(&base).is_some()
    }

    /// The guest reads. False when nobody answers; `data` is then untouched.
    pub fn read(&self, address: u64, data: &mut [u8]) -> bool {
        let Some((offset, device)) = self.find(address, data.len()) else { return false };
        device.lock().unwrap_or_else(PoisonError::into_inner).read(offset, data);
        true
    }

    /// The guest writes. False when nobody answers.
    pub fn write(&self, address: u64, data: &[u8]) -> bool {
        let Some((offset, device)) = self.find(address, data.len()) else { return false };
        device.lock().unwrap_or_else(PoisonError::into_inner).write(offset, data);
        true
    }

    /// The lock on the map is released before the device runs, so a device may change the map (a BAR that moves).
    fn find(&self, address: u64, length: usize) -> Option<(u64, SharedDevice)> {
        let ranges = self.ranges.read().unwrap_or_else(PoisonError::into_inner);
        let (base, range) = ranges.range(..=address).next_back()?;
        let offset = address - base;
        let end = offset.checked_add(u64::try_from(length).ok()?)?;
        (end <= range.length).then(|| (offset, Arc::clone(&range.device)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    struct Ram(Vec<u8>);
    impl BusDevice for Ram {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            let at = offset as usize;
            data.copy_from_slice(&self.0[at..at + data.len()]);
        }
        fn write(&mut self, offset: u64, data: &[u8]) {
            let at = offset as usize;
            self.0[at..at + data.len()].copy_from_slice(data);
        }
    }

    fn ram(length: usize) -> SharedDevice {
        Arc::new(Mutex::new(Ram(vec![0; length])))
    }

    #[test]
    fn an_access_across_the_end_of_a_range_reaches_nobody() {
        let bus = Bus::new();
        bus.insert(0x3f8, 8, ram(8)).unwrap();
        let mut four = [0u8; 4];
        assert!(bus.read(0x3fc, &mut four));
        assert!(!bus.read(0x3fd, &mut four));
        assert!(!bus.write(0x400, &[1]));
        assert!(!bus.read(u64::MAX, &mut four));
    }

    #[test]
    fn an_empty_or_wrapping_range_is_refused() {
        let bus = Bus::new();
        assert!(bus.insert(5, 0, ram(1)).is_err());
        assert!(bus.insert(u64::MAX, 2, ram(2)).is_err());
        bus.insert(u64::MAX, 1, ram(1)).unwrap();
        assert!(bus.write(u64::MAX, &[7]));
    }

    proptest! {
        /// Against a model: an array of 64 cells that say which range owns them.
        #[test]
        fn ranges_never_overlap(asked in prop::collection::vec((0u64..60, 1u64..16, any::<bool>()), 1..40)) {
            let bus = Bus::new();
            let mut owner = [None; 80];
            for (base, length, remove) in asked {
                let cells = base as usize..(base + length) as usize;
                if remove {
                    prop_assert_eq!(bus.remove(base), owner[base as usize] == Some(base));
                    owner.iter_mut().filter(|o| **o == Some(base)).for_each(|o| *o = None);
                } else {
                    let free = owner[cells.clone()].iter().all(Option::is_none);
                    prop_assert_eq!(bus.insert(base, length, ram(length as usize)).is_ok(), free);
                    if free {
                        owner[cells].fill(Some(base));
                    }
                }
                for (at, who) in owner.iter().enumerate() {
                    prop_assert_eq!(bus.write(at as u64, &[1]), who.is_some());
                }
            }
        }
    }
}
