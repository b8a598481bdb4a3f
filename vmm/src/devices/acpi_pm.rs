//! ACPI fixed hardware (ACPI 6.5, 4.8): the power button, the sleep register for power-off, the reset register.
//!
//! Saved: status, enable, control. Not saved: the interrupt line, whose level follows from status and enable.

use serde::{Deserialize, Serialize};

use super::bus::BusDevice;
use super::saved::{BadState, Saved, versioned};
use super::{Ask, LevelLine, Outcome};

/// PM1_STS (16 bits), then PM1_EN (16 bits).
pub const PM1_EVENT: u16 = 0x600;
/// PM1_CNT (16 bits).
pub const PM1_CONTROL: u16 = 0x604;
/// The reset register (8 bits).
pub const RESET_PORT: u16 = 0x608;
/// What resets when written to [`RESET_PORT`].
pub const RESET_VALUE: u8 = 1;
/// How many ports there are, from [`PM1_EVENT`] on.
pub const PM_PORTS: u16 = 16;
/// The system control interrupt.
pub const SCI: u16 = 9;
/// SLP_TYP of S5 (soft off).
pub const SLEEP_TYPE_OFF: u8 = 5;

const POWER_BUTTON: u16 = 1 << 8;
/// Bits of status and enable that exist here: timer, bus master, global lock, power button, sleep button, RTC.
const KNOWN: u16 = 0x0731;
const SCI_ENABLED: u16 = 1;
const SLEEP_ENABLE: u16 = 1 << 13;

/// The registers.
pub struct AcpiPm {
    status: u16,
    enable: u16,
    control: u16,
    line: LevelLine,
    ask: Ask,
}

impl std::fmt::Debug for AcpiPm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AcpiPm {{ status: {:#x}, enable: {:#x} }}", self.status, self.enable)
    }
}

/// What travels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcpiPmV1 {
    status: u16,
    enable: u16,
    control: u16,
}

versioned!(AcpiPmV1 = 1, for tests AcpiPmV0 = 0 { status: u16, enable: u16 } without { control = 0 });

impl AcpiPm {
    /// As after power-on.
    pub fn new(line: LevelLine, ask: Ask) -> Self {
        Self { status: 0, enable: 0, control: 0, line, ask }
    }

    /// The power button is pressed: the guest sees it at once, or when it next looks.
    pub fn press(&mut self) {
        self.status |= POWER_BUTTON;
        self.drive();
    }

    fn drive(&self) {
        (self.line)(self.status & self.enable != 0);
    }

    fn byte(&self, offset: u64) -> u8 {
        let halves = match offset {
            0 | 1 => self.status,
            2 | 3 => self.enable,
            // There is no SMI command port: the machine is always in ACPI mode.
            4 | 5 => self.control | SCI_ENABLED,
            _ => 0,
        };
        let [low, high] = halves.to_le_bytes();
        if offset & 1 == 0 { low } else { high }
    }

    fn set_byte(&mut self, offset: u64, value: u8) {
        let shifted = if offset & 1 == 0 { u16::from(value) } else { u16::from(value) << 8 };
        let kept = if offset & 1 == 0 { 0xff00 } else { 0x00ff };
        match offset {
            // Writing a one clears a status bit.
            0 | 1 => self.status &= !shifted,
            2 | 3 => self.enable = (self.enable & kept) | (shifted & KNOWN),
            4 | 5 => {
                self.control = ((self.control & kept) | shifted) & !SLEEP_ENABLE;
                let sleep_type = (self.control >> 10) & 7;
                if shifted & SLEEP_ENABLE != 0 && sleep_type == u16::from(SLEEP_TYPE_OFF) {
                    (self.ask)(Outcome::PowerOff);
                }
            }
            8 if value == RESET_VALUE => (self.ask)(Outcome::Reset),
            _ => {}
        }
        self.drive();
    }
}

impl BusDevice for AcpiPm {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            *byte = self.byte(at);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (at, byte) in (offset..).zip(data) {
            self.set_byte(at, *byte);
        }
    }
}

impl Saved for AcpiPm {
    const KIND: &'static str = "acpi-pm";
    type State = AcpiPmV1;
    type Host = (LevelLine, Ask);

    fn save(&self) -> AcpiPmV1 {
        AcpiPmV1 { status: self.status, enable: self.enable, control: self.control }
    }

    fn restore(state: AcpiPmV1, (line, ask): Self::Host) -> Result<Self, BadState> {
        BadState::unless_within("status", state.status.into(), KNOWN.into())?;
        BadState::unless_within("enable", state.enable.into(), KNOWN.into())?;
        BadState::unless_within("control", state.control.into(), u64::from(!SLEEP_ENABLE))?;
        let pm = Self { status: state.status, enable: state.enable, control: state.control, line, ask };
        pm.drive();
        Ok(pm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Arc, Mutex};

    type Seen = (AcpiPm, Arc<AtomicBool>, Arc<Mutex<Vec<Outcome>>>);

    fn pm() -> Seen {
        let (level, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(vec![])));
        let (l, a) = (Arc::clone(&level), Arc::clone(&asked));
        let ask: Ask = Arc::new(move |outcome| a.lock().unwrap().push(outcome));
        (AcpiPm::new(Box::new(move |high| l.store(high, Ordering::Relaxed)), ask), level, asked)
    }

    fn read16(pm: &mut AcpiPm, offset: u64) -> u16 {
        let mut two = [0; 2];
        pm.read(offset, &mut two);
        u16::from_le_bytes(two)
    }

    #[test]
    fn the_button_interrupts_once_enabled_and_until_acknowledged() {
        let (mut pm, level, _) = pm();
        pm.press();
        assert!(!level.load(Ordering::Relaxed), "not enabled yet");
        pm.write(2, &POWER_BUTTON.to_le_bytes());
        assert!(level.load(Ordering::Relaxed), "it was pressed before");
        assert_eq!(read16(&mut pm, 0), POWER_BUTTON);
        pm.write(0, &POWER_BUTTON.to_le_bytes());
        assert_eq!((read16(&mut pm, 0), level.load(Ordering::Relaxed)), (0, false));
    }

    #[test]
    fn only_s5_switches_off_and_only_the_reset_value_resets() {
        let (mut pm, _, asked) = pm();
        let control = |kind: u16| (SLEEP_ENABLE | (kind << 10)).to_le_bytes();
        pm.write(4, &control(3));
        pm.write(8, &[0]);
        assert!(asked.lock().unwrap().is_empty());
        pm.write(4, &control(u16::from(SLEEP_TYPE_OFF)));
        pm.write(8, &[RESET_VALUE]);
        assert_eq!(*asked.lock().unwrap(), [Outcome::PowerOff, Outcome::Reset]);
        assert_eq!(read16(&mut pm, 4) & (SCI_ENABLED | SLEEP_ENABLE), SCI_ENABLED);
    }

    proptest! {
        #[test]
        fn a_restored_block_is_the_saved_one(writes in prop::collection::vec((0u64..16, any::<u8>()), 0..40), presses in 0..2) {
            let (mut pm, level, _) = pm();
            writes.iter().for_each(|(offset, value)| pm.write(*offset, &[*value]));
            (0..presses).for_each(|_| pm.press());
            let bytes = postcard::to_stdvec(&pm.save()).unwrap();
            let (_, restored_level, _) = { let p = self::pm(); (p.0, p.1, p.2) };
            let line = Arc::clone(&restored_level);
            let host: (LevelLine, Ask) = (Box::new(move |h| line.store(h, Ordering::Relaxed)), Arc::new(|_| {}));
            let again = AcpiPm::restore(postcard::from_bytes(&bytes).unwrap(), host).unwrap();
            prop_assert_eq!(again.save(), pm.save());
            prop_assert_eq!(restored_level.load(Ordering::Relaxed), level.load(Ordering::Relaxed));
        }
    }
}
