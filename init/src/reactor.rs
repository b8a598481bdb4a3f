//! The main loop of PID 1: signals, children that ended, units that are due.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use keelson_init_control::{Exit, PowerAction};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::clock;
use crate::host::Host;
use crate::power::{self, GUEST_DEADLINE};

/// The signals that init answers; all threads have them blocked.
const ANSWERED: [Signal; 5] =
    [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGPWR, Signal::SIGUSR1];

/// Blocks the signals for this thread and those that it will start, and opens the descriptor that they come through.
pub(crate) fn signals() -> Result<SignalFd, Errno> {
    let mut set = SigSet::empty();
    for signal in ANSWERED {
        set.add(signal);
    }
    set.thread_block()?;
    SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
}

/// Runs until a light host is down; on a server, for ever.
pub(crate) fn run(host: &Arc<Host>, signals: &SignalFd) {
    while !power::is_down() {
        reap(host);
        let next = host.tick();
        let wait = next.map_or(PollTimeout::NONE, |at| timeout(at.saturating_sub(clock::now())));
        let mut fds = [
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(host.wake().as_fd(), PollFlags::POLLIN),
        ];
        if let Err(e) = poll(&mut fds, wait)
            && e != Errno::EINTR
        {
            log::error!("the main loop cannot wait: {}", e.desc());
        }
        let _ = host.wake().read();
        while let Ok(Some(info)) = signals.read_signal() {
            if let Some(signal) = i32::try_from(info.ssi_signo).ok().and_then(|n| Signal::try_from(n).ok()) {
                answer(host, signal);
            }
        }
    }
}

/// Rounded up: a poll that ends early would spin until the time has come.
fn timeout(wait: Duration) -> PollTimeout {
    let ms = wait.as_nanos().div_ceil(1_000_000);
    PollTimeout::try_from(i32::try_from(ms).unwrap_or(i32::MAX)).unwrap_or(PollTimeout::MAX)
}

fn answer(host: &Arc<Host>, signal: Signal) {
    match signal {
        // Ctrl-Alt-Del on a server. On a light host both mean the same: end.
        Signal::SIGINT if !host.light => power::begin(host, PowerAction::Reboot, GUEST_DEADLINE),
        Signal::SIGINT | Signal::SIGTERM | Signal::SIGPWR => {
            power::begin(host, PowerAction::PowerOff, GUEST_DEADLINE)
        }
        _ => {}
    }
}

/// Collects every child that ended, ours and those that lost their parent.
fn reap(host: &Host) {
    loop {
        match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG | WaitPidFlag::__WALL)) {
            Ok(WaitStatus::Exited(pid, code)) => host.reaped(pid.as_raw(), Exit::Code(code)),
            Ok(WaitStatus::Signaled(pid, signal, _)) => {
                host.reaped(pid.as_raw(), Exit::Signal(signal as i32))
            }
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => {
                log::error!("children cannot be waited for: {}", e.desc());
                return;
            }
        }
    }
}
