//! The host bridge at 00:00.0: it says that there is a PCI bus, and does nothing.

use serde::{Deserialize, Serialize};

use super::config_space::{ConfigSpace, Identity};
use super::function::PciFunction;
use crate::devices::saved::{BadState, Saved, versioned};

/// Vendor and device of QEMU's generic PCI Express host bridge, which says nothing about a chipset: guests attach no quirks to it.
const VENDOR: u16 = 0x1b36;
const DEVICE: u16 = 0x0008;
/// Bridge device, host bridge (PCI code and ID assignment 1.11, 1.7).
const CLASS: u32 = 0x06_00_00;

/// The bridge between the processors and bus 0.
#[derive(Debug)]
pub struct HostBridge(ConfigSpace);

impl HostBridge {
    /// The bridge, which has no state that a guest could change in earnest.
    #[expect(clippy::new_without_default, reason = "a bridge is made, not defaulted")]
    pub fn new() -> Self {
        Self(ConfigSpace::new(Identity {
            vendor: VENDOR,
            device: DEVICE,
            revision: 0,
            class: CLASS,
            subsystem_vendor: 0,
            subsystem: 0,
        }))
    }
}

impl PciFunction for HostBridge {
    fn config(&self) -> &ConfigSpace {
        &self.0
    }
    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.0
    }
    fn bar_read(&mut self, _bar: usize, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn bar_write(&mut self, _bar: usize, _offset: u64, _data: &[u8]) {}
    fn bar_moved(&mut self, _bar: usize, _address: Option<u64>) {}
    fn reset(&mut self) {
        self.0.reset();
    }
    fn pause(&mut self) {}
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
    fn resume(&mut self) {}
}

/// What travels: the configuration space.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostBridgeV1 {
    config_space: Vec<u8>,
}

versioned!(HostBridgeV1 = 1, for tests HostBridgeV0 = 0 { config_space: Vec<u8> } without { });

impl Saved for HostBridge {
    const KIND: &'static str = "host-bridge";
    type State = HostBridgeV1;
    type Host = ();

    fn save(&self) -> HostBridgeV1 {
        HostBridgeV1 { config_space: self.0.bytes().to_vec() }
    }

    fn restore(state: HostBridgeV1, (): ()) -> Result<Self, BadState> {
        let mut bridge = Self::new();
        bridge.0.restore(&state.config_space)?;
        Ok(bridge)
    }
}
