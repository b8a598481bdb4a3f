//! The PC's clock and its CMOS memory (Motorola MC146818): the time of day is the host's, in UTC; a guest that sets it keeps the
//! difference. It raises no interrupt (the FADT says that it wakes nothing).
//!
//! Saved: the selected register, the memory, the difference to the host's clock.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::bus::BusDevice;
use super::saved::{BadState, Saved, versioned};

/// The port that selects a register; the next one is its data.
pub const INDEX_PORT: u16 = 0x70;

const REGISTERS: usize = 128;
const STATUS_A: usize = 0x0a;
const STATUS_B: usize = 0x0b;
const STATUS_C: usize = 0x0c;
const STATUS_D: usize = 0x0d;
const CENTURY: usize = 0x32;
/// Status B: 24-hour mode.
const HOURS_24: u8 = 1 << 1;
/// Status B: values are binary, not BCD.
const BINARY: u8 = 1 << 2;
/// Status B: the clock stands still while it is being set.
const SET: u8 = 1 << 7;
/// Status D: memory and time are valid.
const VALID: u8 = 1 << 7;

/// Where the time comes from: seconds since 1970-01-01 00:00:00 UTC.
pub type Clock = Box<dyn Fn() -> i64 + Send>;

/// The host's clock.
pub fn host_clock() -> Clock {
    Box::new(|| match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_secs()).map_or(i64::MIN, |s| -s),
    })
}

/// The clock.
pub struct Rtc {
    index: usize,
    memory: [u8; REGISTERS],
    /// The guest's time less the host's, in seconds.
    difference: i64,
    clock: Clock,
}

impl std::fmt::Debug for Rtc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Rtc {{ difference: {} }}", self.difference)
    }
}

/// What travels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RtcV1 {
    index: u8,
    memory: Vec<u8>,
    difference: i64,
}

versioned!(RtcV1 = 1, for tests RtcV0 = 0 { index: u8, memory: Vec<u8> } without { difference = 0 });

/// A date and a time of day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Civil {
    year: i64,
    month: u8,
    day: u8,
    hour: u8,
    minute: u8,
    second: u8,
    /// 1 is Sunday.
    weekday: u8,
}

/// Days since 1970-01-01 of a day in the Gregorian calendar, counting years from March so that the leap day comes last.
fn days_from_civil(year: i64, month: u8, day: u8) -> i64 {
    let (year, month) =
        if month <= 2 { (year - 1, i64::from(month) + 9) } else { (year, i64::from(month) - 3) };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * month + 2) / 5 + i64::from(day) - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

impl Civil {
    fn from_seconds(seconds: i64) -> Self {
        let (days, of_day) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
        // A first guess is never too late, and a few years early at most.
        let mut year = 1970 + days.div_euclid(366);
        while days_from_civil(year + 1, 1, 1) <= days {
            year += 1;
        }
        let mut month = 1;
        while month < 12 && days_from_civil(year, month + 1, 1) <= days {
            month += 1;
        }
        let byte = |n: i64| u8::try_from(n).unwrap_or_default();
        Self {
            year,
            month,
            day: byte(days - days_from_civil(year, month, 1) + 1),
            hour: byte(of_day / 3600),
            minute: byte(of_day / 60 % 60),
            second: byte(of_day % 60),
            weekday: byte((days + 4).rem_euclid(7) + 1),
        }
    }

    fn seconds(self) -> i64 {
        let of_day = i64::from(self.hour) * 3600 + i64::from(self.minute) * 60 + i64::from(self.second);
        days_from_civil(self.year, self.month, self.day) * 86_400 + of_day
    }
}

impl Rtc {
    /// A clock that shows the host's time.
    pub fn new(clock: Clock) -> Self {
        let mut memory = [0; REGISTERS];
        // Divider as for 32.768 kHz, 24 hours, BCD: what firmware would have set.
        (memory[STATUS_A], memory[STATUS_B]) = (0x26, HOURS_24);
        Self { index: 0, memory, difference: 0, clock }
    }

    fn now(&self) -> i64 {
        (self.clock)().saturating_add(self.difference).clamp(0, 253_402_300_799)
    }

    fn stored(&self, register: usize) -> u8 {
        self.memory.get(register).copied().unwrap_or(0xff)
    }

    fn encoded(&self, value: u8) -> u8 {
        if self.stored(STATUS_B) & BINARY != 0 { value } else { ((value / 10 % 10) << 4) | (value % 10) }
    }

    fn encoded_hour(&self, hour: u8) -> u8 {
        if self.stored(STATUS_B) & HOURS_24 != 0 {
            return self.encoded(hour);
        }
        let twelve = if hour.is_multiple_of(12) { 12 } else { hour % 12 };
        self.encoded(twelve) | if hour >= 12 { 0x80 } else { 0 }
    }

    fn decoded(&self, raw: u8) -> u8 {
        if self.stored(STATUS_B) & BINARY != 0 {
            raw
        } else {
            (raw >> 4).wrapping_mul(10).wrapping_add(raw & 0xf)
        }
    }

    fn decoded_hour(&self, raw: u8) -> u8 {
        if self.stored(STATUS_B) & HOURS_24 != 0 {
            return self.decoded(raw);
        }
        let twelve = self.decoded(raw & 0x7f) % 12;
        if raw & 0x80 != 0 { twelve + 12 } else { twelve }
    }

    fn register(&self, register: usize) -> u8 {
        if self.stored(STATUS_B) & SET == 0 {
            let time = Civil::from_seconds(self.now());
            let year = u8::try_from(time.year.rem_euclid(100)).unwrap_or_default();
            let century = u8::try_from(time.year / 100).unwrap_or_default();
            match register {
                0 => return self.encoded(time.second),
                2 => return self.encoded(time.minute),
                4 => return self.encoded_hour(time.hour),
                6 => return self.encoded(time.weekday),
                7 => return self.encoded(time.day),
                8 => return self.encoded(time.month),
                9 => return self.encoded(year),
                CENTURY => return self.encoded(century),
                _ => {}
            }
        }
        match register {
            STATUS_C => 0,
            STATUS_D => VALID,
            _ => self.stored(register),
        }
    }

    /// The clock stands: what was its time is now plain memory, to be read and written register by register.
    fn freeze(&mut self) {
        for register in [0, 2, 4, 6, 7, 8, 9, CENTURY] {
            let value = self.register(register);
            if let Some(byte) = self.memory.get_mut(register) {
                *byte = value;
            }
        }
    }

    /// The clock runs again, from the time in memory. A time that does not exist changes nothing.
    fn thaw(&mut self) {
        let time = Civil {
            year: i64::from(self.decoded(self.stored(CENTURY))) * 100
                + i64::from(self.decoded(self.stored(9))),
            month: self.decoded(self.stored(8)),
            day: self.decoded(self.stored(7)),
            hour: self.decoded_hour(self.stored(4)),
            minute: self.decoded(self.stored(2)),
            second: self.decoded(self.stored(0)),
            weekday: 1,
        };
        let exists = (1..=12).contains(&time.month) && (1..=31).contains(&time.day);
        if exists && time.hour < 24 && time.minute < 60 && time.second < 60 {
            self.difference = time.seconds().saturating_sub((self.clock)());
        }
    }

    fn set_register(&mut self, register: usize, value: u8) {
        let running = self.stored(STATUS_B) & SET == 0;
        let is_time = matches!(register, 0 | 2 | 4 | 6 | 7 | 8 | 9 | CENTURY);
        if register == STATUS_B {
            let stands = value & SET != 0;
            if running && stands {
                self.freeze();
            }
            // Thawed by the mode in which the time was written.
            self.memory[STATUS_B] = value;
            if !running && !stands {
                self.thaw();
            }
            return;
        }
        if matches!(register, STATUS_C | STATUS_D) {
            return;
        }
        // A write to a running clock sets that part of the time at once.
        if is_time && running {
            self.freeze();
        }
        if let Some(byte) = self.memory.get_mut(register) {
            *byte = value;
        }
        if is_time && running {
            self.thaw();
        }
    }
}

impl BusDevice for Rtc {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some(byte) = data.first_mut() {
            *byte = if offset == 1 { self.register(self.index) } else { 0xff };
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let Some(value) = data.first() else { return };
        match offset {
            0 => self.index = usize::from(value & 0x7f), // bit 7 masks NMI on real machines
            _ => self.set_register(self.index, *value),
        }
    }
}

impl Saved for Rtc {
    const KIND: &'static str = "rtc";
    type State = RtcV1;
    type Host = Clock;

    fn save(&self) -> RtcV1 {
        let index = u8::try_from(self.index).unwrap_or_default();
        RtcV1 { index, memory: self.memory.to_vec(), difference: self.difference }
    }

    fn restore(state: RtcV1, clock: Clock) -> Result<Self, BadState> {
        BadState::unless_within("index", state.index.into(), 0x7f)?;
        let length = state.memory.len();
        let memory = state.memory.try_into();
        let memory =
            memory.map_err(|_| BadState::new("memory", format!("{length} bytes, not {REGISTERS}")))?;
        Ok(Self { index: usize::from(state.index), memory, difference: state.difference, clock })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(seconds: i64) -> Rtc {
        Rtc::new(Box::new(move || seconds))
    }

    fn get(rtc: &mut Rtc, register: u8) -> u8 {
        let mut byte = [0];
        rtc.write(0, &[register]);
        rtc.read(1, &mut byte);
        byte[0]
    }

    fn set(rtc: &mut Rtc, register: u8, value: u8) {
        rtc.write(0, &[register]);
        rtc.write(1, &[value]);
    }

    #[test]
    fn a_known_moment_reads_as_bcd() {
        // 2024-02-29 23:59:58 UTC was a Thursday.
        let mut rtc = at(1_709_251_198);
        let read = [0x32, 9, 8, 7, 4, 2, 0, 6].map(|r| get(&mut rtc, r));
        assert_eq!(read, [0x20, 0x24, 0x02, 0x29, 0x23, 0x59, 0x58, 5]);
        assert_eq!((get(&mut rtc, 0x0a) & 0x80, get(&mut rtc, 0x0d)), (0, 0x80));
    }

    #[test]
    fn twelve_hour_mode_marks_the_afternoon() {
        let mut rtc = at(23 * 3600);
        set(&mut rtc, 0x0b, BINARY);
        assert_eq!(get(&mut rtc, 4), 0x80 | 11);
        let mut midnight = at(0);
        set(&mut midnight, 0x0b, 0);
        assert_eq!(get(&mut midnight, 4), 0x12);
    }

    #[test]
    fn a_guest_that_sets_the_clock_keeps_the_difference() {
        let mut rtc = at(1_000_000);
        set(&mut rtc, 0x0b, HOURS_24 | SET);
        for (register, value) in
            [(0x32, 0x20), (9, 0x30), (8, 0x01), (7, 0x02), (4, 0x03), (2, 0x04), (0, 0x05)]
        {
            set(&mut rtc, register, value);
        }
        set(&mut rtc, 0x0b, HOURS_24);
        assert_eq!([9, 8, 7, 4, 2, 0].map(|r| get(&mut rtc, r)), [0x30, 0x01, 0x02, 0x03, 0x04, 0x05]);
        assert_eq!(Civil::from_seconds(rtc.now()).year, 2030);
    }

    proptest! {
        #[test]
        fn every_second_has_one_date(seconds in 0i64..253_402_300_799) {
            let civil = Civil::from_seconds(seconds);
            prop_assert_eq!(civil.seconds(), seconds);
            prop_assert!((1..=12).contains(&civil.month) && (1..=31).contains(&civil.day));
        }

        #[test]
        fn random_accesses_never_panic_and_a_restored_clock_reads_the_same(
            accesses in prop::collection::vec((0u64..2, any::<u8>()), 0..100), seconds in any::<i64>()
        ) {
            let mut rtc = at(seconds);
            for (offset, value) in accesses {
                rtc.write(offset, &[value]);
                rtc.read(offset, &mut [0; 4]);
            }
            let mut again = Rtc::restore(rtc.save(), Box::new(move || seconds)).unwrap();
            for register in 0..128 {
                prop_assert_eq!(get(&mut again, register), get(&mut rtc, register));
            }
        }
    }
}
