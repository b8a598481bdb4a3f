//! The wall clock at boot: the kernel has set it from the hardware clock where it could; a time before this program was written
//! is a clock that lost its battery or a kernel that could not read it.

use std::fs::File;
use std::os::fd::AsFd;

use nix::time::{ClockId, clock_settime};

use crate::{clock, sys};

/// 2026-11-01 00:00 UTC: no host runs before.
const EARLIEST_MS: u64 = 1_793_491_200_000;

/// Sets the clock when it must be wrong. `false` when it still is, and stands at the earliest possible time.
pub(crate) fn set_if_wrong() -> bool {
    if clock::wall_ms() >= EARLIEST_MS {
        return true;
    }
    let read = File::open("/dev/rtc0").ok().and_then(|rtc| sys::ioctl::hardware_clock(rtc.as_fd()).ok());
    let seconds = read.and_then(epoch_seconds).filter(|s| s.saturating_mul(1000) >= EARLIEST_MS);
    let set = i64::try_from(seconds.unwrap_or(EARLIEST_MS / 1000)).unwrap_or(0);
    let _ = clock_settime(ClockId::CLOCK_REALTIME, nix::sys::time::TimeSpec::new(set, 0));
    seconds.is_some()
}

/// Seconds since the Unix epoch of the hardware clock's fields, which are UTC.
fn epoch_seconds([s, mi, h, d, mo, y]: [i32; 6]) -> Option<u64> {
    let valid = (0..60).contains(&mi)
        && (0..=60).contains(&s)
        && (0..24).contains(&h)
        && (1..=31).contains(&d)
        && (0..12).contains(&mo);
    if !valid || !(70..1000).contains(&y) {
        return None;
    }
    // Days since 1970-03-01 in years that begin in March, so that the leap day is the last (proleptic Gregorian).
    let (year, month) = if mo < 2 {
        (i64::from(y) + 1899, i64::from(mo) + 10)
    } else {
        (i64::from(y) + 1900, i64::from(mo) - 2)
    };
    let days =
        year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + i64::from(d) - 1 - 719_468;
    u64::try_from(days * 86_400 + i64::from(h) * 3600 + i64::from(mi) * 60 + i64::from(s)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_counted() {
        assert_eq!(epoch_seconds([0, 0, 0, 1, 0, 70]), Some(0));
        assert_eq!(epoch_seconds([0, 0, 0, 1, 10, 126]), Some(EARLIEST_MS / 1000));
        assert_eq!(epoch_seconds([59, 59, 23, 29, 1, 100]), Some(951_868_799));
        assert_eq!(epoch_seconds([0, 0, 0, 0, 0, 100]), None);
    }
}
