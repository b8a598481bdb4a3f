//! MSI-X of one function (PCI local bus 3.0, 6.8.2): table, pending bits, masks, and the way of a message to KVM.
//!
//! A masked vector keeps its route in KVM: whether an event goes out is decided here, under one lock, so masking costs no system
//! call and an event is never lost. The route changes only when an unmasked vector's message does.

use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::devices::lines::{MsiLine, MsiMessage, MsiRouter};
use crate::devices::saved::BadState;

/// The capability's ID.
pub const CAPABILITY: u8 = 0x11;
/// Message control: MSI-X is on.
pub const ENABLE: u16 = 1 << 15;
/// Message control: all vectors are masked.
pub const FUNCTION_MASK: u16 = 1 << 14;
/// Bytes of a table entry.
pub const ENTRY_SIZE: u64 = 16;

const VECTOR_MASKED: u32 = 1;

#[derive(Debug)]
struct Vector {
    line: MsiLine,
    message: MsiMessage,
    masked: bool,
    pending: bool,
    /// What KVM has.
    routed: Option<MsiMessage>,
}

/// The MSI-X structures of one function.
pub struct Msix {
    router: Arc<dyn MsiRouter>,
    vectors: Vec<Vector>,
    enabled: bool,
    function_masked: bool,
    /// A refused route has been logged.
    complained: bool,
}

impl std::fmt::Debug for Msix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Msix")
            .field("enabled", &self.enabled)
            .field("vectors", &self.vectors)
            .finish_non_exhaustive()
    }
}

/// What travels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsixStateV1 {
    enabled: bool,
    function_masked: bool,
    vectors: Vec<VectorStateV1>,
}

/// A table entry and its pending bit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct VectorStateV1 {
    address: u64,
    data: u32,
    masked: bool,
    pending: bool,
}

/// What became of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// It is on its way, or pending behind a mask.
    Taken,
    /// MSI-X is off, or there is no such vector.
    Off,
}

impl Msix {
    /// `count` vectors, masked, as at power-on.
    pub fn new(router: Arc<dyn MsiRouter>, count: u16) -> io::Result<Self> {
        let vectors = (0..count)
            .map(|_| {
                let line = router.allocate()?;
                Ok(Vector {
                    line,
                    message: MsiMessage { address: 0, data: 0 },
                    masked: true,
                    pending: false,
                    routed: None,
                })
            })
            .collect::<io::Result<_>>()?;
        Ok(Self { router, vectors, enabled: false, function_masked: false, complained: false })
    }

    /// How many vectors there are.
    pub fn count(&self) -> u16 {
        self.vectors.len() as u16
    }

    /// The guest wrote message control.
    pub fn set_control(&mut self, control: u16) {
        self.enabled = control & ENABLE != 0;
        self.function_masked = control & FUNCTION_MASK != 0;
        for index in 0..self.vectors.len() {
            self.settle(index);
        }
    }

    /// Raises a vector.
    pub fn trigger(&mut self, vector: u16) -> Delivery {
        let Some(entry) = self.vectors.get_mut(usize::from(vector)).filter(|_| self.enabled) else {
            return Delivery::Off;
        };
        entry.pending = true;
        self.settle(usize::from(vector));
        Delivery::Taken
    }

    /// Brings a vector's route in step and lets a pending event out, if nothing masks it.
    fn settle(&mut self, index: usize) {
        let open = self.enabled && !self.function_masked;
        let Some(vector) = self.vectors.get_mut(index).filter(|v| open && !v.masked) else { return };
        if vector.routed != Some(vector.message) {
            if let Err(e) = self.router.route(vector.line.gsi, Some(vector.message)) {
                // The event stays pending; the guest's next change of this vector tries again. A guest can cause this at will: one line.
                log::log!(
                    if self.complained { log::Level::Debug } else { log::Level::Error },
                    "MSI-X vector {index}: KVM does not take the message {:x?}: {e}",
                    vector.message
                );
                self.complained = true;
                return;
            }
            vector.routed = Some(vector.message);
        }
        if std::mem::take(&mut vector.pending)
            && let Err(e) = vector.line.event.write(1)
        {
            log::error!("MSI-X vector {index}: its event cannot be written: {e}");
        }
    }

    /// The guest reads the table: aligned doublewords or quadwords (6.8.2); anything else reads as zero.
    pub fn table_read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if !aligned(offset, data.len()) {
            return;
        }
        for (i, word) in data.chunks_exact_mut(4).enumerate() {
            let (index, register) = split(offset + 4 * i as u64);
            let Some(vector) = self.vectors.get(index) else { continue };
            let value = match register {
                0 => vector.message.address as u32,
                1 => (vector.message.address >> 32) as u32,
                2 => vector.message.data,
                _ => u32::from(vector.masked) * VECTOR_MASKED,
            };
            word.copy_from_slice(&value.to_le_bytes());
        }
    }

    /// The guest writes the table.
    pub fn table_write(&mut self, offset: u64, data: &[u8]) {
        if !aligned(offset, data.len()) {
            return;
        }
        for (i, word) in data.chunks_exact(4).enumerate() {
            let (index, register) = split(offset + 4 * i as u64);
            let (Some(vector), Ok(word)) = (self.vectors.get_mut(index), word.try_into()) else { continue };
            let value = u32::from_le_bytes(word);
            match register {
                0 => vector.message.address = vector.message.address & !0xffff_ffff | u64::from(value & !3),
                1 => vector.message.address = vector.message.address & 0xffff_ffff | u64::from(value) << 32,
                2 => vector.message.data = value,
                _ => vector.masked = value & VECTOR_MASKED != 0,
            }
            // A message may change only while it is masked (6.8.2.9), so a vector is looked at when its mask is written.
            if register == 3 {
                self.settle(index);
            }
        }
    }

    /// The guest reads the pending bits.
    pub fn pba_read(&self, offset: u64, data: &mut [u8]) {
        for (i, byte) in data.iter_mut().enumerate() {
            let first = usize::try_from(offset).unwrap_or(usize::MAX).saturating_add(i).saturating_mul(8);
            let bit = |n: usize| self.vectors.get(first.saturating_add(n)).is_some_and(|v| v.pending);
            *byte = (0..8).fold(0, |bits, n| bits | u8::from(bit(n)) << n);
        }
    }

    /// Whether message control says the same as the masks in here.
    pub fn agrees_with(&self, control: u16) -> bool {
        self.enabled == (control & ENABLE != 0) && self.function_masked == (control & FUNCTION_MASK != 0)
    }

    /// As at power-on.
    pub fn reset(&mut self) {
        (self.enabled, self.function_masked) = (false, false);
        for vector in &mut self.vectors {
            (vector.message, vector.masked, vector.pending) =
                (MsiMessage { address: 0, data: 0 }, true, false);
            if vector.routed.take().is_some()
                && let Err(e) = self.router.route(vector.line.gsi, None)
            {
                log::warn!("the route of GSI {} cannot be taken away: {e}", vector.line.gsi);
            }
        }
    }

    /// What travels.
    pub fn save(&self) -> MsixStateV1 {
        let vectors = self.vectors.iter().map(|v| VectorStateV1 {
            address: v.message.address,
            data: v.message.data,
            masked: v.masked,
            pending: v.pending,
        });
        MsixStateV1 {
            enabled: self.enabled,
            function_masked: self.function_masked,
            vectors: vectors.collect(),
        }
    }

    /// Takes saved state; routes are set up, pending events that nothing masks go out.
    pub fn restore(&mut self, state: MsixStateV1) -> Result<(), BadState> {
        if state.vectors.len() != self.vectors.len() {
            let problem = format!("{} vectors, this device has {}", state.vectors.len(), self.vectors.len());
            return Err(BadState::new("msix.vectors", problem));
        }
        if let Some(bad) = state.vectors.iter().find(|v| v.address & 3 != 0) {
            return Err(BadState::new(
                "msix.vectors",
                format!("message address {:#x} is not aligned", bad.address),
            ));
        }
        (self.enabled, self.function_masked) = (state.enabled, state.function_masked);
        for (index, saved) in state.vectors.into_iter().enumerate() {
            if let Some(vector) = self.vectors.get_mut(index) {
                vector.message = MsiMessage { address: saved.address, data: saved.data };
                (vector.masked, vector.pending) = (saved.masked, saved.pending);
            }
            self.settle(index);
        }
        Ok(())
    }
}

fn aligned(offset: u64, length: usize) -> bool {
    matches!(length, 4 | 8) && offset.is_multiple_of(length as u64)
}

/// A table offset as entry and doubleword.
fn split(offset: u64) -> (usize, u64) {
    (usize::try_from(offset / ENTRY_SIZE).unwrap_or(usize::MAX), offset % ENTRY_SIZE / 4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::testing::FakeRouter;
    use proptest::prelude::*;

    fn msix(router: &Arc<FakeRouter>, count: u16) -> Msix {
        Msix::new(Arc::clone(router) as Arc<dyn MsiRouter>, count).unwrap()
    }

    fn write(msix: &mut Msix, vector: u64, register: u64, value: u32) {
        msix.table_write(vector * 16 + register * 4, &value.to_le_bytes());
    }

    fn program(msix: &mut Msix, vector: u64, data: u32) {
        write(msix, vector, 0, 0xfee0_1000);
        write(msix, vector, 1, 0);
        write(msix, vector, 2, data);
        write(msix, vector, 3, 0);
    }

    #[test]
    fn an_event_behind_a_mask_is_pending_and_comes_on_unmask() {
        let router = Arc::new(FakeRouter::default());
        let mut msix = msix(&router, 2);
        assert_eq!(msix.trigger(0), Delivery::Off);
        program(&mut msix, 1, 0x41);
        msix.set_control(ENABLE);
        write(&mut msix, 1, 3, VECTOR_MASKED);
        assert_eq!(msix.trigger(1), Delivery::Taken);
        let mut pba = [0; 8];
        msix.pba_read(0, &mut pba);
        assert_eq!((pba[0], router.taken(1)), (0b10, 0));
        write(&mut msix, 1, 3, 0);
        msix.pba_read(0, &mut pba);
        assert_eq!((pba[0], router.taken(1)), (0, 1));
        assert_eq!(router.route_of(1), Some(MsiMessage { address: 0xfee0_1000, data: 0x41 }));
        msix.set_control(ENABLE | FUNCTION_MASK);
        msix.trigger(1);
        assert_eq!(router.taken(1), 0);
        msix.set_control(ENABLE);
        assert_eq!(router.taken(1), 1);
        assert_eq!(msix.trigger(2), Delivery::Off, "no such vector");
    }

    #[test]
    fn a_mask_costs_no_route() {
        let router = Arc::new(FakeRouter::default());
        let mut msix = msix(&router, 1);
        msix.set_control(ENABLE);
        program(&mut msix, 0, 0x41);
        let before = router.routes_set();
        for _ in 0..5 {
            write(&mut msix, 0, 3, VECTOR_MASKED);
            write(&mut msix, 0, 3, 0);
        }
        assert_eq!(router.routes_set(), before);
        write(&mut msix, 0, 3, VECTOR_MASKED);
        program(&mut msix, 0, 0x42);
        assert_eq!((router.routes_set(), router.route_of(0).unwrap().data), (before + 1, 0x42));
    }

    #[test]
    fn a_restored_vector_delivers_what_was_pending() {
        let router = Arc::new(FakeRouter::default());
        let mut old = msix(&router, 2);
        program(&mut old, 0, 0x50);
        old.set_control(ENABLE | FUNCTION_MASK);
        old.trigger(0);
        let state = old.save();
        let router = Arc::new(FakeRouter::default());
        let mut new = msix(&router, 2);
        new.restore(state.clone()).unwrap();
        assert_eq!((new.save(), router.taken(0)), (state.clone(), 0));
        new.set_control(ENABLE);
        assert_eq!(router.taken(0), 1);
        assert!(msix(&router, 3).restore(state).is_err());
    }

    proptest! {
        #[test]
        fn nothing_panics(accesses in prop::collection::vec((0u64..0x1010, prop::collection::vec(any::<u8>(), 1..9), any::<u16>()), 1..64)) {
            let router = Arc::new(FakeRouter::default());
            let mut msix = msix(&router, 3);
            for (offset, data, control) in accesses {
                msix.table_write(offset, &data);
                msix.set_control(control);
                msix.trigger(control & 7);
                let mut read = data.clone();
                msix.table_read(offset, &mut read);
                msix.pba_read(offset, &mut read);
            }
            let state = msix.save();
            let mut other = super::tests::msix(&router, 3);
            other.restore(state.clone()).unwrap();
            // What was pending and unmasked cannot have been saved, so both agree.
            prop_assert_eq!(other.save(), state);
        }
    }
}
