//! A take at work: on a thread of its own, since the store may hang under it, and open until it has read back whose the epoch is.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Outcome, Progress, Take, register};
use crate::datastores::Directory;

/// The pauses between attempts on a store that answers with errors: first, longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// A take that has begun. Dropping this ends nothing: what was issued is seen to its end.
#[derive(Debug, Default)]
pub struct Taking {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    outcome: Option<Outcome>,
    /// Nobody waits for the outcome any more.
    left: bool,
}

impl Taking {
    /// Begins. `orphaned` is called when the outcome comes after the last waiter has left.
    pub fn begin(
        directory: Directory,
        take: Take,
        orphaned: impl FnOnce() + Send + 'static,
    ) -> io::Result<Arc<Self>> {
        let taking = Arc::new(Self::default());
        let working = Arc::clone(&taking);
        std::thread::Builder::new().name("take".into()).spawn(move || {
            let outcome = finish(&directory, take);
            let mut state = working.lock();
            state.outcome = Some(outcome);
            let left = state.left;
            drop(state);
            working.changed.notify_all();
            if left {
                orphaned();
            }
        })?;
        Ok(taking)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the outcome, at most until `deadline`. `None`: it is still open, and that is all that is known.
    pub fn wait(&self, deadline: Instant) -> Option<Outcome> {
        let mut state = self.lock();
        state.left = false;
        loop {
            if let Some(outcome) = &state.outcome {
                return Some(outcome.clone());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                state.left = true;
                return None;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

fn finish(directory: &Directory, mut take: Take) -> Outcome {
    let mut pause = PAUSE.0;
    loop {
        let answer = register::perform(directory, &take);
        let before = take.clone();
        take = match take.answered(answer.clone()) {
            Progress::On(take) => take,
            Progress::Open(take) => {
                // Said at first, and once more when it has become a matter of patience.
                if pause == PAUSE.0 || (pause < PAUSE.1 && pause * 2 >= PAUSE.1) {
                    log::warn!("a take is open: {:?} was answered with {answer:?}", before.step());
                }
                // No event tells when a store has recovered.
                std::thread::sleep(pause);
                pause = (pause * 2).min(PAUSE.1);
                take
            }
            Progress::Ended(outcome) => {
                register::tidy(directory, &before);
                return outcome;
            }
        };
    }
}
