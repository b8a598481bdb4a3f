//! The PC's old ways to reset: the keyboard controller's reset line (port 0x64) and the reset control register (port 0xcf9).

use serde::{Deserialize, Serialize};

use super::bus::{BusDevice, SharedDevice};
use super::saved::{BadState, Saved, versioned};
use super::{Ask, Outcome};

/// The keyboard controller's command port. There is no keyboard: status reads as "nothing here, ready".
pub const KEYBOARD_COMMAND: u16 = 0x64;
/// PCI configuration address and data, with the reset control register among them.
pub const PCI_CONFIG: u16 = 0xcf8;
/// How many ports [`PciConfigPorts`] answers at.
pub const PCI_CONFIG_PORTS: u16 = 8;

/// Command 0xfe pulses the reset line.
const PULSE_RESET: u8 = 0xfe;
/// Bit 2 of 0xcf9 resets the processor, by its rising edge.
const RESET_CPU: u8 = 1 << 2;

/// The keyboard controller, as far as it resets. It has no state to save.
pub struct KeyboardReset(Ask);

impl std::fmt::Debug for KeyboardReset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyboardReset")
    }
}

impl KeyboardReset {
    /// At [`KEYBOARD_COMMAND`], one port.
    pub fn new(ask: Ask) -> Self {
        Self(ask)
    }
}

impl BusDevice for KeyboardReset {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        if data.first() == Some(&PULSE_RESET) {
            (self.0)(Outcome::Reset);
        }
    }
}

/// The eight ports from 0xcf8 on: a byte at 0xcf9 is the reset control register, everything else is PCI configuration.
pub struct PciConfigPorts {
    pci: SharedDevice,
    control: u8,
    ask: Ask,
}

impl std::fmt::Debug for PciConfigPorts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PciConfigPorts")
    }
}

impl PciConfigPorts {
    /// In front of the ports of a PCI bus.
    pub fn new(pci: SharedDevice, ask: Ask) -> Self {
        Self { pci, control: 0, ask }
    }
}

impl BusDevice for PciConfigPorts {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match data {
            [byte] if offset == 1 => *byte = self.control & !RESET_CPU,
            _ => self.pci.lock().unwrap_or_else(std::sync::PoisonError::into_inner).read(offset, data),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        match data {
            [byte] if offset == 1 => {
                self.control = *byte;
                if byte & RESET_CPU != 0 {
                    (self.ask)(Outcome::Reset);
                }
            }
            _ => self.pci.lock().unwrap_or_else(std::sync::PoisonError::into_inner).write(offset, data),
        }
    }
}

/// What travels: the reset control register. Configuration ports save themselves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResetControlV1 {
    control: u8,
}

versioned!(ResetControlV1 = 1, for tests ResetControlV0 = 0 { } without { control = 0 });

impl Saved for PciConfigPorts {
    const KIND: &'static str = "reset-control";
    type State = ResetControlV1;
    type Host = (SharedDevice, Ask);

    fn save(&self) -> ResetControlV1 {
        ResetControlV1 { control: self.control }
    }

    fn restore(state: ResetControlV1, (pci, ask): Self::Host) -> Result<Self, BadState> {
        Ok(Self { pci, control: state.control, ask })
    }
}

/// What answers where nothing is: reads as ones. It stands in for the PCI bus of a machine without one.
#[derive(Debug, Clone, Copy)]
pub struct Nothing;

impl BusDevice for Nothing {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn write(&mut self, _offset: u64, _data: &[u8]) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[test]
    fn each_port_resets_by_its_own_word_only() {
        let asked = Arc::new(Mutex::new(0));
        let a = Arc::clone(&asked);
        let ask: Ask = Arc::new(move |_| *a.lock().unwrap() += 1);
        let mut keyboard = KeyboardReset::new(Arc::clone(&ask));
        keyboard.write(0, &[0xd1]);
        let mut ports = PciConfigPorts::new(Arc::new(Mutex::new(Nothing)), ask);
        ports.write(0, &0x8000_0004u32.to_le_bytes());
        ports.write(1, &[2]);
        assert_eq!(*asked.lock().unwrap(), 0);
        keyboard.write(0, &[PULSE_RESET]);
        ports.write(1, &[6]);
        assert_eq!(*asked.lock().unwrap(), 2);
        let mut four = [0; 4];
        ports.read(4, &mut four);
        assert_eq!(four, [0xff; 4]);
    }
}
