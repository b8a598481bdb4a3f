//! The two ways to configuration space: the ECAM area and the ports 0xcf8 and 0xcfc.

use std::sync::{Arc, Mutex, PoisonError};

use super::{ConfigAddress, PciBus};
use crate::devices::bus::BusDevice;
use serde::{Deserialize, Serialize};

use crate::devices::saved::{BadState, Saved, versioned};

/// The ECAM area of bus 0, 1 MiB (PCI Express base specification 5.0, 7.2.2): slot, function and register are in the address.
#[derive(Debug)]
pub struct Ecam(Arc<Mutex<PciBus>>);

impl Ecam {
    /// The area of `bus`.
    pub fn new(bus: Arc<Mutex<PciBus>>) -> Self {
        Self(bus)
    }
}

fn ecam_address(offset: u64) -> Option<ConfigAddress> {
    (offset < 1 << 20).then_some(ConfigAddress {
        slot: (offset >> 15 & 0x1f) as u8,
        function: (offset >> 12 & 7) as u8,
        register: (offset & 0xfff) as u16,
    })
}

impl BusDevice for Ecam {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match ecam_address(offset) {
            Some(at) => self.0.lock().unwrap_or_else(PoisonError::into_inner).config_read(at, data),
            None => data.fill(0xff),
        }
    }
    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(at) = ecam_address(offset) {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).config_write(at, data);
        }
    }
}

/// The first port: CONFIG_ADDRESS at 0, CONFIG_DATA at 4.
pub const PORTS_BASE: u16 = 0xcf8;
/// How many ports there are.
pub const PORTS: u16 = 8;

const ENABLE: u32 = 1 << 31;
/// The bits of CONFIG_ADDRESS that exist (PCI local bus 3.0, 3.2.2.3.2).
const ADDRESS_BITS: u32 = 0x80ff_fffc;

/// CONFIG_ADDRESS and CONFIG_DATA.
#[derive(Debug)]
pub struct ConfigPorts {
    bus: Arc<Mutex<PciBus>>,
    address: u32,
}

impl ConfigPorts {
    /// The ports of `bus`.
    pub fn new(bus: Arc<Mutex<PciBus>>) -> Self {
        Self { bus, address: 0 }
    }

    fn target(&self, offset: u64) -> Option<ConfigAddress> {
        let byte = offset.checked_sub(4).filter(|byte| *byte < 4)?;
        let on_bus_0 = self.address & ENABLE != 0 && self.address >> 16 & 0xff == 0;
        on_bus_0.then_some(ConfigAddress {
            slot: (self.address >> 11 & 0x1f) as u8,
            function: (self.address >> 8 & 7) as u8,
            register: (self.address & 0xfc) as u16 + byte as u16,
        })
    }
}

impl BusDevice for ConfigPorts {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if offset == 0 && data.len() == 4 {
            data.copy_from_slice(&self.address.to_le_bytes());
            return;
        }
        match self.target(offset) {
            Some(at) => self.bus.lock().unwrap_or_else(PoisonError::into_inner).config_read(at, data),
            None => data.fill(0xff),
        }
    }
    fn write(&mut self, offset: u64, data: &[u8]) {
        // Only a whole doubleword is CONFIG_ADDRESS; smaller accesses there are other chips' (0xcf9 is a reset register on PCs).
        if let (0, Ok(address)) = (offset, data.try_into()) {
            self.address = u32::from_le_bytes(address) & ADDRESS_BITS;
        } else if let Some(at) = self.target(offset) {
            self.bus.lock().unwrap_or_else(PoisonError::into_inner).config_write(at, data);
        }
    }
}

/// What travels: CONFIG_ADDRESS.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigPortsV1 {
    address: u32,
}

versioned!(ConfigPortsV1 = 1, for tests ConfigPortsV0 = 0 { address: u32 } without {});

impl Saved for ConfigPorts {
    const KIND: &'static str = "pci-config-ports";
    type State = ConfigPortsV1;
    type Host = Arc<Mutex<PciBus>>;

    fn save(&self) -> ConfigPortsV1 {
        ConfigPortsV1 { address: self.address }
    }
    fn restore(ConfigPortsV1 { address }: ConfigPortsV1, bus: Self::Host) -> Result<Self, BadState> {
        BadState::unless_within("config_address", address.into(), ADDRESS_BITS.into())?;
        Ok(Self { bus, address })
    }
}
