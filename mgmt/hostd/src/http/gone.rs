//! How a route learns that its client has gone.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

type Hook = Box<dyn FnOnce() + Send>;

/// Tells that the client has closed its connection. Clones tell the same.
#[derive(Clone, Default)]
pub struct Gone(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    gone: bool,
    hooks: Vec<Hook>,
}

impl Gone {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the client has gone.
    pub fn is_gone(&self) -> bool {
        self.state().gone
    }

    /// Calls `hook` when the client goes, at once when it has gone: a stream can have the socket shut down that it waits on.
    pub fn on_gone(&self, hook: impl FnOnce() + Send + 'static) {
        let mut state = self.state();
        if state.gone {
            drop(state);
            hook();
        } else {
            state.hooks.push(Box::new(hook));
        }
    }

    /// Waits for `time`, shorter when the client goes; true when it has gone.
    pub fn wait(&self, time: Duration) -> bool {
        let until = Instant::now() + time;
        let mut state = self.state();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if state.gone || left.is_zero() {
                return state.gone;
            }
            state = self.0.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Says that the client has gone.
    pub fn set(&self) {
        let mut state = self.state();
        state.gone = true;
        let hooks = std::mem::take(&mut state.hooks);
        drop(state);
        self.0.changed.notify_all();
        for hook in hooks {
            hook();
        }
    }
}

impl fmt::Debug for Gone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gone({})", self.is_gone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn a_hook_runs_once_whether_it_came_before_or_after() {
        let gone = Gone::default();
        let (say, heard) = mpsc::channel();
        let early = say.clone();
        gone.on_gone(move || early.send("early").unwrap());
        assert!(!gone.wait(Duration::ZERO));
        gone.set();
        gone.set();
        gone.on_gone(move || say.send("late").unwrap());
        assert_eq!(heard.iter().collect::<Vec<_>>(), ["early", "late"]);
        assert!(gone.wait(Duration::from_secs(60)), "a wait ends at once when the client has gone");
    }
}
