//! Going down in order: guests first, then hostd, the console, the network, then everything else; last the file systems.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use keelson_init_control::{PowerAction, UnitId};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::clock;
use crate::host::{Core, Host};
use crate::journal;
use crate::unit::Then;

/// How long a daemon may take to end.
const DAEMON_DEADLINE: Duration = Duration::from_secs(5);
/// How long a killed process may take to be gone (it may wait for a disk).
const GONE_WITHIN: Duration = Duration::from_secs(5);
/// What guests get when nobody says how long (a signal, Ctrl-Alt-Del).
pub(crate) const GUEST_DEADLINE: Duration = Duration::from_secs(60);

/// Set when all is done and a light init may exit with it.
static DOWN: AtomicBool = AtomicBool::new(false);

/// Whether a light host is down.
pub(crate) fn is_down() -> bool {
    DOWN.load(Ordering::Acquire)
}

/// Begins on a thread of its own; a second call only hurries the guests.
pub(crate) fn begin(host: &Arc<Host>, action: PowerAction, guests: Duration) {
    if !host.lock().begin_power(action) {
        stop_all(host, guests, |id| matches!(id, UnitId::Vm(_)));
        return;
    }
    let word = if action == PowerAction::Reboot { "restarts" } else { "shuts down" };
    log::warn!("the host {word}");
    let shared = Arc::clone(host);
    let thread =
        std::thread::Builder::new().name("power".into()).spawn(move || go_down(&shared, action, guests));
    if let Err(e) = thread {
        // Without a thread it is done here: late answers are better than a host that stays up.
        log::error!("no thread to go down in ({e}); going down without one");
        go_down(host, action, guests);
    }
}

fn go_down(host: &Arc<Host>, action: PowerAction, guests: Duration) {
    let dcui = |id: &UnitId| matches!(id, UnitId::Dcui(_));
    stop_and_wait(host, guests, |id| matches!(id, UnitId::Vm(_)));
    stop_and_wait(host, DAEMON_DEADLINE, |id| *id == UnitId::Hostd);
    stop_and_wait(host, DAEMON_DEADLINE, dcui);
    journal::show_on_console(true);
    stop_and_wait(host, DAEMON_DEADLINE, |id| *id == UnitId::Netd);
    log::info!("all units have ended; what is left is killed");
    let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
    host.groups.clear();
    flush(host);
    finish(host, action);
}

fn stop_all(host: &Host, deadline: Duration, which: impl Fn(&UnitId) -> bool) {
    let ids: Vec<UnitId> = host.lock().units.keys().copied().filter(|id| which(id)).collect();
    for id in ids {
        let _ = host.stop(id, deadline, Then::Stay);
    }
}

fn stop_and_wait(host: &Host, deadline: Duration, which: impl Fn(&UnitId) -> bool) {
    stop_all(host, deadline, &which);
    let done = |core: &Core| core.units.iter().all(|(id, entry)| !which(id) || entry.unit.ended());
    let until = clock::now().saturating_add(deadline).saturating_add(GONE_WITHIN);
    if !host.wait_until(until, done) {
        log::error!("a unit did not end although it was killed; going on without it");
    }
}

fn flush(host: &Host) {
    if host.light {
        return;
    }
    nix::unistd::sync();
    let none: Option<&str> = None;
    if let Err(e) = umount2("/state", MntFlags::empty()) {
        log::warn!("/state cannot be unmounted ({}); it is made read-only", e.desc());
        if let Err(e) = mount(none, "/state", none, MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, none) {
            log::error!("/state cannot be made read-only: {}", e.desc());
        }
    }
    nix::unistd::sync();
}

fn finish(host: &Host, action: PowerAction) {
    log::info!("down");
    if host.light {
        DOWN.store(true, Ordering::Release);
        host.poke();
        return;
    }
    let mode = match action {
        PowerAction::PowerOff => nix::sys::reboot::RebootMode::RB_POWER_OFF,
        PowerAction::Reboot => nix::sys::reboot::RebootMode::RB_AUTOBOOT,
    };
    // Returns only when it failed.
    let Err(e) = nix::sys::reboot::reboot(mode);
    log::error!("the machine does not go down ({}); switch it off", e.desc());
}
