//! The two clocks of init: monotonic since its zero, and wall clock.

use std::sync::OnceLock;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use crate::unit::Moment;

static ZERO: OnceLock<Duration> = OnceLock::new();

/// CLOCK_BOOTTIME: since the kernel started.
fn boot_time() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default()
}

/// Puts the zero of [`now`] here, for a light host; else it is the start of the kernel.
pub(crate) fn start_here() {
    let _ = ZERO.set(boot_time());
}

/// Since the kernel started, or since a light init did.
pub(crate) fn now() -> Duration {
    boot_time().saturating_sub(*ZERO.get_or_init(|| Duration::ZERO))
}

/// The same in milliseconds.
pub(crate) fn now_ms() -> u64 {
    u64::try_from(now().as_millis()).unwrap_or(u64::MAX)
}

/// Milliseconds since the Unix epoch.
pub(crate) fn wall_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// This moment on both.
pub(crate) fn moment() -> Moment {
    Moment { now: now(), wall_ms: wall_ms() }
}
