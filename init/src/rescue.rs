//! What is done when init panics all the same. Lints and tests keep it from happening; the kernel must not stop if it does.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::signalfd::SignalFd;

use crate::host::Host;
use crate::reactor;

/// After so many panics of the main loop the host is restarted instead: it would only be busy panicking.
const PANICS_MAX: u32 = 8;

/// Runs the main loop; when it panics it is entered again, and a helper thread that panics is put to rest. Panics cannot be
/// unwound here (the profile aborts), so both happen inside the panic hook, which does not return.
pub(crate) fn guard(host: &Arc<Host>, signals: &Arc<SignalFd>) {
    static PANICS: AtomicU32 = AtomicU32::new(0);
    let main = std::thread::current().id();
    let (shared, signals) = (Arc::clone(host), Arc::clone(signals));
    std::panic::set_hook(Box::new(move |info| {
        let text = info.to_string().replace('\n', " ");
        let free = shared.lock_is_free();
        if free {
            log::error!("init panicked and goes on; please report this: {text}");
        }
        let again = PANICS.fetch_add(1, Ordering::Relaxed) < PANICS_MAX;
        if free && again && std::thread::current().id() != main {
            loop {
                std::thread::park();
            }
        }
        if free && again {
            loop {
                reactor::run(&shared, &signals);
            }
        }
        // The lock is held by what panicked, so no unit can be served any more: a restart is the shortest way back.
        nix::unistd::sync();
        let _ = nix::sys::reboot::reboot(nix::sys::reboot::RebootMode::RB_AUTOBOOT);
    }));
}
