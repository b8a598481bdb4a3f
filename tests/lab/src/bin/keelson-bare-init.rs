//! The bench's yardstick: an init that says when the kernel handed over to it and what memory there is, and switches the machine off.

use std::convert::Infallible;
use std::io::Write;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::time::{ClockId, clock_gettime};

fn main() -> Result<Infallible, nix::errno::Errno> {
    // The clock that Keelson's init reads first, too: since the kernel started.
    let handed_over = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from);
    if let Err(e) = tell(handed_over) {
        // Where that failed, the kernel's own console is all there is.
        eprintln!("bare init: {e}");
    }
    reboot(RebootMode::RB_POWER_OFF)
}

fn tell(handed_over: Result<Duration, nix::errno::Errno>) -> std::io::Result<()> {
    let none = None::<&str>;
    mount(none, "/dev", Some("devtmpfs"), MsFlags::empty(), none)?;
    mount(none, "/proc", Some("proc"), MsFlags::empty(), none)?;
    let memory = std::fs::read_to_string("/proc/meminfo")?;
    let value = |name| memory.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim();
    let mut line = std::fs::File::options().write(true).open("/dev/ttyS0")?;
    let us = handed_over?.as_micros();
    writeln!(line, "bare init at {us} us with {} of {}", value("MemAvailable:"), value("MemTotal:"))
}
