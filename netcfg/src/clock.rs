//! The clock that leases are measured by, and the randomness that retries are spread by.

use std::time::Duration;

use nix::time::ClockId;

/// Time since the kernel started, sleep included (CLOCK_BOOTTIME): it survives a restart of netd and no one sets it.
pub(crate) fn boottime() -> Duration {
    // The call cannot fail for this clock (Linux has had it since 2.6.39).
    ClockId::CLOCK_BOOTTIME.now().map(Duration::from).unwrap_or_default()
}

/// This boot's id: a time since boot counts only within it.
pub(crate) fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|id| id.trim().to_owned())
        .unwrap_or_default()
}

/// Pseudo-random numbers (SplitMix64): enough to spread retries and pick transaction numbers, repeatable in tests.
#[derive(Debug, Clone)]
pub(crate) struct Jitter(u64);

impl Jitter {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Seeded by the kernel.
    pub(crate) fn seeded() -> Self {
        let mut seed = [0u8; 8];
        if getrandom::fill(&mut seed).is_err() {
            seed = u64::try_from(boottime().as_nanos()).unwrap_or(u64::MAX).to_le_bytes();
        }
        Self(u64::from_le_bytes(seed))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn xid(&mut self) -> u32 {
        (self.next() >> 32) as u32
    }

    /// A time within `from..from + width`.
    pub(crate) fn between(&mut self, from: Duration, width: Duration) -> Duration {
        let nanos = u64::try_from(width.as_nanos()).unwrap_or(u64::MAX).max(1);
        from + Duration::from_nanos(self.next() % nanos)
    }
}
