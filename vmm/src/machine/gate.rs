//! The gate that every vCPU passes before it enters the guest: open, held (paused), or shut for good.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kvm_ioctls::VcpuFd;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Held,
    Open,
    Shut,
}

/// What a vCPU's thread does while it is held: KVM answers about a vCPU best on the thread that runs it. Told the vCPU's number.
pub(super) type Errand = Arc<dyn Fn(u32, &VcpuFd) + Send + Sync>;

struct State {
    phase: Phase,
    /// The latest errand and its number.
    errand: Option<Errand>,
    errands: u64,
    /// vCPUs that wait here.
    waiting: usize,
    /// vCPUs that will never pass again.
    gone: usize,
}

/// The gate of one board.
pub(super) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
    vcpus: usize,
}

/// What a vCPU is to do.
pub(super) enum Passage {
    /// Enter the guest.
    Through,
    /// Enter the guest, having waited.
    AfterHold,
    /// Do this, and ask again.
    Errand(Errand),
    /// End.
    Never,
}

impl Gate {
    /// Held, for this many vCPUs.
    pub(super) fn new(vcpus: usize) -> Self {
        Self {
            state: Mutex::new(State { phase: Phase::Held, errand: None, errands: 0, waiting: 0, gone: 0 }),
            changed: Condvar::new(),
            vcpus,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A vCPU asks to pass; it waits here while the gate is held. `done` is its count of errands, 0 at first.
    pub(super) fn pass(&self, done: &mut u64) -> Passage {
        let mut state = self.state();
        let mut waited = false;
        while state.phase == Phase::Held {
            if *done < state.errands
                && let Some(errand) = &state.errand
            {
                *done = state.errands;
                return Passage::Errand(Arc::clone(errand));
            }
            waited = true;
            state.waiting += 1;
            self.changed.notify_all();
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.waiting -= 1;
        }
        match state.phase {
            Phase::Shut => Passage::Never,
            _ if waited => Passage::AfterHold,
            _ => Passage::Through,
        }
    }

    /// Sends every vCPU that is held, or comes to be, on an errand. Whoever sends it hears of its end by what it does.
    pub(super) fn send(&self, errand: Errand) {
        let mut state = self.state();
        state.errand = Some(errand);
        state.errands += 1;
        self.changed.notify_all();
    }

    /// Nobody goes on the errand any more.
    pub(super) fn recall(&self) {
        self.state().errand = None;
    }

    /// A vCPU has ended.
    pub(super) fn leave(&self) {
        self.state().gone += 1;
        self.changed.notify_all();
    }

    /// Holds whoever comes next. A gate that is shut stays so. Whoever is inside the guest must be kicked by the caller.
    pub(super) fn hold(&self) {
        self.change(Phase::Held);
    }

    /// Opens.
    pub(super) fn open(&self) {
        self.change(Phase::Open);
    }

    /// Shuts for good.
    pub(super) fn shut(&self) {
        self.change(Phase::Shut);
    }

    fn change(&self, phase: Phase) {
        let mut state = self.state();
        if state.phase != Phase::Shut {
            state.phase = phase;
        }
        self.changed.notify_all();
    }

    /// Waits until no vCPU is in the guest; false when `within` passes first.
    pub(super) fn wait_empty(&self, within: Duration) -> bool {
        let end = Instant::now() + within;
        let mut state = self.state();
        while state.waiting + state.gone < self.vcpus {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn nobody_passes_while_held_and_all_leave_when_shut() {
        let gate = Arc::new(Gate::new(3));
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let gate = Arc::clone(&gate);
                std::thread::spawn(move || {
                    let mut passed = 0u32;
                    let mut errands = 0;
                    while !matches!(gate.pass(&mut errands), Passage::Never) {
                        passed += 1;
                        std::thread::yield_now();
                    }
                    gate.leave();
                    passed
                })
            })
            .collect();
        assert!(gate.wait_empty(Duration::from_secs(10)));
        gate.open();
        while gate.wait_empty(Duration::ZERO) {
            std::thread::yield_now();
        }
        gate.hold();
        assert!(gate.wait_empty(Duration::from_secs(10)));
        gate.shut();
        gate.open();
        for thread in threads {
            thread.join().unwrap();
        }
        assert!(gate.wait_empty(Duration::ZERO));
    }
}
